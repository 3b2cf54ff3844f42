//! Requests to write.

use prost::Message as _;

use super::{MAX_BATCH, check_batch, optional, update_mask::Changes};
use crate::{
    error::{Error, Result, Violations},
    model::{Etag, LocationId, NewLocation, OwnerId, Principal, parse_uuid},
    proto::{
        from_proto::{Fields, location_type},
        location::v1,
    },
    service::{Creation, Write},
};

/// A write, or only its validation.
pub struct WriteCall {
    pub write: Write,
    pub validate_only: bool,
}

pub fn create(request: v1::CreateLocationRequest, caller: &Principal) -> Result<WriteCall> {
    let mut violations = Violations::default();
    let validate_only = request.validate_only;
    let creation = creation(request, caller, "", &mut violations);
    let write = creation.map(|creation| Write::Create(vec![creation]));
    Ok(WriteCall {
        write: violations.finish(write)?,
        validate_only,
    })
}

pub fn batch_create(
    request: v1::BatchCreateLocationsRequest,
    caller: &Principal,
) -> Result<WriteCall> {
    let mut violations = Violations::default();
    check_batch("requests", request.requests.len(), &mut violations);
    let validate_only = request
        .requests
        .first()
        .is_some_and(|first| first.validate_only);
    let requests = request.requests.into_iter().take(MAX_BATCH).enumerate();
    let creations = requests
        .filter_map(|(index, request)| {
            let path = format!("requests[{index}].");
            if request.validate_only != validate_only {
                violations.add(
                    format!("{path}validate_only"),
                    "must be the same in all requests of a batch",
                );
            }
            creation(request, caller, &path, &mut violations)
        })
        .collect();
    Ok(WriteCall {
        write: violations.finish(Some(Write::Create(creations)))?,
        validate_only,
    })
}

/// Converts a creation whose fields have paths that begin with `path`.
fn creation(
    mut request: v1::CreateLocationRequest,
    caller: &Principal,
    path: &str,
    violations: &mut Violations,
) -> Option<Creation> {
    let request_id = optional(!request.request_id.is_empty(), || {
        violations.check(format!("{path}request_id"), parse_uuid(&request.request_id))
    });
    request.request_id.clear();
    let fingerprint = blake3::hash(&request.encode_to_vec()).into();
    let id = optional(!request.location_id.is_empty(), || {
        violations.check(
            format!("{path}location_id"),
            LocationId::parse(&request.location_id),
        )
    });
    let path = format!("{path}location");
    let Some(mut location) = request.location else {
        violations.add(path, "is required");
        return None;
    };
    let kind = violations.check(format!("{path}.type"), location_type(location.r#type));
    // Only an admin may create locations of other owners; the field is output only otherwise.
    let owner = if caller.admin && !location.owner_id.is_empty() {
        violations.check(
            format!("{path}.owner_id"),
            OwnerId::parse(std::mem::take(&mut location.owner_id)),
        )
    } else {
        Some(caller.subject.clone())
    };
    let details = Fields::all(&path, violations).details(location);
    Some(Creation {
        location: NewLocation {
            id: id?,
            kind: kind?,
            owner: owner?,
            details,
        },
        request_id: request_id?,
        fingerprint,
    })
}

pub fn update(request: v1::UpdateLocationRequest) -> Result<WriteCall> {
    let mut violations = Violations::default();
    let Some(location) = request.location else {
        return Err(Error::invalid("location", "is required"));
    };
    let id = violations.check("location.id", LocationId::parse(&location.id));
    let etag = etag(&location.etag);
    let mask = request.update_mask.unwrap_or_default();
    let changes = Changes::parse(&location, mask.paths, &mut violations)?;
    let write = id.map(|id| Write::Update {
        id,
        etag,
        edit: Box::new(move |current| changes.apply(current)),
    });
    Ok(WriteCall {
        write: violations.finish(write)?,
        validate_only: request.validate_only,
    })
}

pub fn delete(request: &v1::DeleteLocationRequest) -> Result<WriteCall> {
    let id = LocationId::parse(&request.id).map_err(|violation| Error::invalid("id", violation))?;
    let write = Write::Delete {
        id,
        etag: etag(&request.etag),
        allow_missing: request.allow_missing,
    };
    Ok(WriteCall {
        write,
        validate_only: request.validate_only,
    })
}

fn etag(text: &str) -> Option<Etag> {
    (!text.is_empty()).then(|| Etag::parse(text))
}
