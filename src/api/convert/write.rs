//! Requests to write.

use super::{super::codec::off_worker, MAX_BATCH, check_batch, optional, update_mask::Changes};
use crate::{
    error::{Result, Violations},
    model::{Etag, LocationId, NewLocation, OwnerId, Principal, parse_uuid},
    proto::{
        canonical::canonical_creation,
        convert::{Fields, location_type},
        location::v1,
    },
    service::{Creation, Deletion, Generated, Idempotency, Update, Write, WriteCall, Written},
};

/// Batches of more requests are parsed off the workers.
const LARGE_BATCH: usize = 100;

pub fn create(request: v1::CreateLocationRequest, caller: &Principal) -> Result<WriteCall> {
    let validate_only = request.validate_only;
    let mut violations = Violations::default();
    let creation = creation(request, caller, &mut violations);
    let creation = violations.finish(creation)?;
    Ok(single(Write::Create(vec![creation]), validate_only))
}

pub fn update(request: v1::UpdateLocationRequest, caller: &Principal) -> Result<WriteCall> {
    let validate_only = request.validate_only;
    let mut violations = Violations::default();
    let update = parse_update(request, caller, &mut violations)?;
    let update = violations.finish(update)?;
    Ok(single(Write::Update(vec![update]), validate_only))
}

pub fn delete(request: &v1::DeleteLocationRequest) -> Result<WriteCall> {
    let validate_only = request.validate_only;
    let mut violations = Violations::default();
    let deletion = deletion(request, &mut violations);
    let deletion = violations.finish(deletion)?;
    Ok(single(Write::Delete(vec![deletion]), validate_only))
}

fn single(write: Write, validate_only: bool) -> WriteCall {
    WriteCall {
        write,
        batch: false,
        validate_only,
    }
}

pub fn batch_create(
    request: v1::BatchCreateLocationsRequest,
    caller: &Principal,
) -> Result<WriteCall> {
    batch(
        request.requests,
        |request| request.validate_only,
        |request, violations| Ok(creation(request, caller, violations)),
        Write::Create,
    )
}

pub fn batch_update(
    request: v1::BatchUpdateLocationsRequest,
    caller: &Principal,
) -> Result<WriteCall> {
    batch(
        request.requests,
        |request| request.validate_only,
        |request, violations| parse_update(request, caller, violations),
        Write::Update,
    )
}

pub fn batch_delete(request: v1::BatchDeleteLocationsRequest) -> Result<WriteCall> {
    batch(
        request.requests,
        |request| request.validate_only,
        |request, violations| Ok(deletion(&request, violations)),
        Write::Delete,
    )
}

/// Parses the requests of a batch, and collects the violations of all. Large batches are parsed off
/// the workers.
fn batch<Request, Item>(
    requests: Vec<Request>,
    validate_only: impl Fn(&Request) -> bool,
    parse: impl Fn(Request, &mut Violations) -> Result<Option<Item>>,
    write: impl FnOnce(Vec<Item>) -> Write,
) -> Result<WriteCall> {
    off_worker(requests.len() > LARGE_BATCH, || {
        parse_batch(requests, validate_only, parse, write)
    })
}

fn parse_batch<Request, Item>(
    requests: Vec<Request>,
    validate_only: impl Fn(&Request) -> bool,
    parse: impl Fn(Request, &mut Violations) -> Result<Option<Item>>,
    write: impl FnOnce(Vec<Item>) -> Write,
) -> Result<WriteCall> {
    let mut violations = Violations::default();
    check_batch("requests", requests.len(), &mut violations);
    let only_validated = requests.first().is_some_and(&validate_only);
    let mut items = Vec::with_capacity(requests.len().min(MAX_BATCH));
    for (index, request) in requests.into_iter().take(MAX_BATCH).enumerate() {
        let mut own = Violations::default();
        if validate_only(&request) != only_validated {
            own.add(
                "validate_only",
                "must be the same in all requests of a batch",
            );
        }
        items.extend(parse(request, &mut own)?);
        own.prefix(&format!("requests[{index}]."));
        violations.append(own);
    }
    Ok(WriteCall {
        write: write(violations.finish(Some(items))?),
        batch: true,
        validate_only: only_validated,
    })
}

fn creation(
    request: v1::CreateLocationRequest,
    caller: &Principal,
    violations: &mut Violations,
) -> Option<Creation> {
    let request_id = optional(!request.request_id.is_empty(), || {
        violations.check("request_id", parse_uuid(&request.request_id))
    });
    let id = optional(!request.location_id.is_empty(), || {
        violations.check("location_id", LocationId::parse(&request.location_id))
    });
    let Some(location) = request.location else {
        violations.add("location", "is required");
        return None;
    };
    let location = new_location(location, id, caller, violations)?;
    Some(Creation {
        idempotency: request_id?.map(|request_id| Idempotency {
            request_id,
            fingerprint: blake3::hash(&canonical_creation(&location)).into(),
        }),
        location,
    })
}

/// Parses a location to create. `id` is `None` if it is invalid.
fn new_location(
    mut location: v1::Location,
    id: Option<Option<LocationId>>,
    caller: &Principal,
    violations: &mut Violations,
) -> Option<NewLocation> {
    let kind = violations.check("location.type", location_type(location.r#type));
    // Only an admin may create locations of other owners; the field is output only otherwise.
    let owner = if caller.admin && !location.owner_id.is_empty() {
        violations.check(
            "location.owner_id",
            OwnerId::parse(std::mem::take(&mut location.owner_id)),
        )
    } else {
        Some(caller.subject.clone())
    };
    let details = Fields::all("location", violations).details(location);
    Some(NewLocation {
        id: id?,
        kind: kind?,
        owner: owner?,
        details,
    })
}

fn parse_update(
    request: v1::UpdateLocationRequest,
    caller: &Principal,
    violations: &mut Violations,
) -> Result<Option<Update>> {
    let Some(location) = request.location else {
        violations.add("location", "is required");
        return Ok(None);
    };
    let id = violations.check("location.id", LocationId::parse(&location.id));
    let etag = etag(&location.etag);
    let mask = request.update_mask.unwrap_or_default();
    let changes = Changes::parse(&location, mask.paths, caller, violations)?;
    let Some(id) = id else {
        return Ok(None);
    };
    let create = request.allow_missing.then(|| {
        let mut violations = Violations::default();
        let new = new_location(location, Some(Some(id)), caller, &mut violations);
        violations.check_all(new)
    });
    Ok(Some(Update {
        id,
        etag,
        edit: Box::new(move |current| changes.apply(current)),
        create,
    }))
}

fn deletion(request: &v1::DeleteLocationRequest, violations: &mut Violations) -> Option<Deletion> {
    let id = violations.check("id", LocationId::parse(&request.id))?;
    Some(Deletion {
        id,
        etag: etag(&request.etag),
        allow_missing: request.allow_missing,
    })
}

fn etag(text: &str) -> Option<Etag> {
    (!text.is_empty()).then(|| Etag::parse(text))
}

/// Returns a written location; without the fields that the write would have generated, if it was
/// only validated.
pub fn written(written: Written, validate_only: bool) -> v1::Location {
    let Written {
        location,
        generated,
    } = written;
    let mut location = v1::Location::from(location);
    if validate_only && generated != Generated::Nothing {
        location.update_time = None;
        location.etag.clear();
        if let Generated::ForCreation { id } = generated {
            location.create_time = None;
            if id {
                location.id.clear();
            }
        }
    }
    location
}
