//! From the proto to the model: every violation of a request is collected.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    cache::Tag,
    error::{Error, Result, Violation},
    model::{
        Address, AddressText, Capacity, Change, Coordinates, Details, Etag, LabelKey, LabelValue,
        ListQuery, LocationId, LocationState, LocationType, MAX_ADDRESS_LINES, MAX_LABELS,
        NewLocation, Order, OrderField, OwnerId, Predicate, Principal, ProductionRunId, RegionCode,
        ReportQuery, Text, fold_case, parse_uuid,
    },
    proto::location::v1,
    service::{Creation, Write},
};

/// The most items of a batch.
const MAX_BATCH: usize = 1_000;
/// How many characters of a path that isn't known an error repeats.
const MAX_SHOWN_PATH: usize = 64;
const DEFAULT_PAGE: u32 = 50;
const MAX_PAGE: u32 = 1_000;

type Text256 = Text<0, 256>;

/// What is wrong with a request, so far.
#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(Violation {
            field: field.into(),
            description: description.into(),
        });
    }

    /// The value, or `None` with its violation noted.
    fn check<T, E: Into<String>>(
        &mut self,
        field: impl Into<String>,
        parsed: Result<T, E>,
    ) -> Option<T> {
        parsed.map_err(|why| self.add(field, why)).ok()
    }

    fn finish<T>(self, value: Option<T>) -> Result<T> {
        value
            .filter(|_| self.0.is_empty())
            .ok_or(Error::InvalidArgument(self.0))
    }
}

/// The list that a request asks for, and its page token.
pub fn list(request: v1::ListLocationsRequest) -> Result<(ListQuery, String)> {
    let mut bad = Violations::default();
    let predicate = predicate(
        request.r#type,
        request.production_run_id,
        request.owner_id,
        &mut bad,
    );
    let state = state_filter(request.state, &mut bad);
    let text = bad.check("query", Text256::parse(request.query));
    let order = bad.check("order_by", parse_order(&request.order_by));
    let limit = bad.check("page_size", parse_page_size(request.page_size));
    let skip = bad.check("skip", parse_count(request.skip));
    let query = (|| {
        Some(ListQuery {
            predicate: predicate?,
            state: state?,
            text: fold_case(text?.as_str()),
            order: order?,
            limit: limit?,
            skip: skip?,
            count: request.include_total_size,
        })
    })();
    Ok((bad.finish(query)?, request.page_token))
}

/// The list that a request asks about, who would ask for it, and its page token.
pub fn explain_list(request: v1::ExplainListRequest) -> Result<(Principal, ListQuery, String)> {
    let Some(listing) = request.request else {
        return Err(Error::invalid("request", "is required"));
    };
    let subject = if request.subject.is_empty() {
        // An admin's list is the same whoever the admin is.
        Principal {
            subject: OwnerId::from_trusted("admin".to_owned()),
            admin: true,
        }
    } else {
        Principal {
            subject: OwnerId::parse(request.subject)
                .map_err(|why| Error::invalid("subject", why))?,
            admin: false,
        }
    };
    let (query, page_token) = list(listing).map_err(within_request)?;
    Ok((subject, query, page_token))
}

/// An error about a list's fields, as one about the request that contains the list.
pub fn within_request(error: Error) -> Error {
    match error {
        Error::InvalidArgument(mut violations) => {
            for violation in &mut violations {
                violation.field.insert_str(0, "request.");
            }
            Error::InvalidArgument(violations)
        }
        error => error,
    }
}

/// The tag that a request names; `None` for everything.
pub fn invalidate(request: v1::InvalidateRequest) -> Result<Option<Tag>> {
    let by_predicate =
        request.r#type != 0 || request.production_run_id.is_some() || !request.owner_id.is_empty();
    let by_location = !request.location_id.is_empty();
    if usize::from(by_predicate) + usize::from(by_location) + usize::from(request.everything) > 1 {
        return Err(Error::invalid(
            if request.everything {
                "everything"
            } else {
                "location_id"
            },
            "excludes the other fields: set one or the other",
        ));
    }
    if request.everything {
        return Ok(None);
    }
    if by_location {
        return LocationId::parse(&request.location_id)
            .map(|id| Some(Tag::of_location(id)))
            .map_err(|why| Error::invalid("location_id", why));
    }
    let mut bad = Violations::default();
    let predicate = predicate(
        request.r#type,
        request.production_run_id,
        request.owner_id,
        &mut bad,
    );
    let tag = predicate.map(|predicate| Tag::of_predicate(&predicate));
    bad.finish(tag).map(Some)
}

/// The reports that a request asks for, and its page token.
pub fn reports(request: v1::ListLocationReportsRequest) -> Result<(ReportQuery, String)> {
    let mut bad = Violations::default();
    let predicate = predicate(
        request.r#type,
        request.production_run_id,
        request.owner_id,
        &mut bad,
    );
    let limit = bad.check("page_size", parse_page_size(request.page_size));
    let query = predicate
        .zip(limit)
        .map(|(predicate, limit)| ReportQuery { predicate, limit });
    Ok((bad.finish(query)?, request.page_token))
}

/// The id that a request names.
pub fn get(request: &v1::GetLocationRequest) -> Result<LocationId> {
    LocationId::parse(&request.id).map_err(|why| Error::invalid("id", why))
}

/// The ids that a request names.
pub fn batch_get(request: &v1::BatchGetLocationsRequest) -> Result<Vec<LocationId>> {
    let mut bad = Violations::default();
    check_batch("ids", request.ids.len(), &mut bad);
    let ids = request.ids.iter().take(MAX_BATCH).enumerate();
    let ids = ids
        .filter_map(|(index, id)| bad.check(format!("ids[{index}]"), LocationId::parse(id)))
        .collect();
    bad.finish(Some(ids))
}

/// The creation that a request asks for, and whether only to validate it.
pub fn create(request: v1::CreateLocationRequest, caller: &Principal) -> Result<(Write, bool)> {
    let mut bad = Violations::default();
    let validate_only = request.validate_only;
    let creation = creation(request, caller, "", &mut bad);
    let write = creation.map(|creation| Write::Create(vec![creation]));
    Ok((bad.finish(write)?, validate_only))
}

/// The creations that a request asks for, and whether only to validate them.
pub fn batch_create(
    request: v1::BatchCreateLocationsRequest,
    caller: &Principal,
) -> Result<(Write, bool)> {
    let mut bad = Violations::default();
    check_batch("requests", request.requests.len(), &mut bad);
    let validate_only = request
        .requests
        .first()
        .is_some_and(|one| one.validate_only);
    let requests = request.requests.into_iter().take(MAX_BATCH).enumerate();
    let creations = requests
        .filter_map(|(index, request)| {
            let path = format!("requests[{index}].");
            if request.validate_only != validate_only {
                bad.add(
                    format!("{path}validate_only"),
                    "must be the same in all requests of a batch",
                );
            }
            creation(request, caller, &path, &mut bad)
        })
        .collect();
    let write = bad.finish(Some(Write::Create(creations)))?;
    Ok((write, validate_only))
}

/// The update that a request asks for, and whether only to validate it.
pub fn update(request: v1::UpdateLocationRequest) -> Result<(Write, bool)> {
    let mut bad = Violations::default();
    let Some(location) = request.location else {
        return Err(Error::invalid("location", "is required"));
    };
    let id = bad.check("location.id", LocationId::parse(&location.id));
    let etag = etag(&location.etag);
    // Without repeats, each of which would be a copy of the field. Sorted, whole fields come before
    // their parts.
    let paths: BTreeSet<_> = request
        .update_mask
        .unwrap_or_default()
        .paths
        .into_iter()
        .collect();
    let changes = if paths.is_empty() {
        changes(populated(&location), &location, &mut bad)
    } else {
        let all = paths.contains("*");
        if all && paths.len() > 1 {
            bad.add("update_mask", "may have no other path beside *");
        }
        if all {
            changes(MUTABLE, &location, &mut bad)
        } else {
            changes(paths.iter().map(String::as_str), &location, &mut bad)
        }
    };
    let write = id.map(|id| Write::Update { id, etag, changes });
    Ok((bad.finish(write)?, request.validate_only))
}

/// The deletion that a request asks for, and whether only to validate it.
pub fn delete(request: &v1::DeleteLocationRequest) -> Result<(Write, bool)> {
    let id = LocationId::parse(&request.id).map_err(|why| Error::invalid("id", why))?;
    let write = Write::Delete {
        id,
        etag: etag(&request.etag),
        allow_missing: request.allow_missing,
    };
    Ok((write, request.validate_only))
}

fn etag(text: &str) -> Option<Etag> {
    (!text.is_empty()).then(|| Etag::parse(text))
}

fn check_batch(field: &str, count: usize, bad: &mut Violations) {
    if count == 0 || count > MAX_BATCH {
        bad.add(
            field,
            format!("must have 1 to {MAX_BATCH} items, has {count}"),
        );
    }
}

fn creation(
    mut request: v1::CreateLocationRequest,
    caller: &Principal,
    path: &str,
    bad: &mut Violations,
) -> Option<Creation> {
    let request_id = optional(&request.request_id, |id| {
        bad.check(format!("{path}request_id"), parse_uuid(id))
    });
    request.request_id.clear();
    let fingerprint = blake3::hash(&prost::Message::encode_to_vec(&request)).into();
    let id = optional(&request.location_id, |id| {
        bad.check(format!("{path}location_id"), LocationId::parse(id))
    });
    let path = format!("{path}location");
    let Some(location) = request.location else {
        bad.add(path, "is required");
        return None;
    };
    let kind = required_type(location.r#type, format!("{path}.type"), bad);
    // An output only field, but for an admin.
    let owner = if caller.admin && !location.owner_id.is_empty() {
        bad.check(
            format!("{path}.owner_id"),
            OwnerId::parse(location.owner_id.clone()),
        )
    } else {
        Some(caller.subject.clone())
    };
    let details = details(location, &path, bad);
    Some(Creation {
        location: NewLocation {
            id: id?,
            kind: kind?,
            owner: owner?,
            details: details?,
        },
        request_id: request_id?,
        fingerprint,
    })
}

/// `Some(None)` for empty text, `None` for text that is invalid.
fn optional<T>(text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if text.is_empty() {
        Some(None)
    } else {
        parse(text).map(Some)
    }
}

fn details(location: v1::Location, path: &str, bad: &mut Violations) -> Option<Details> {
    let at = |field: &str| format!("{path}.{field}");
    let display_name = bad.check(at("display_name"), Text::parse(location.display_name));
    let production_run_id = bad.check(
        at("production_run_id"),
        Text::parse(location.production_run_id),
    );
    let address = address(location.address.unwrap_or_default(), &at("address"), bad);
    let coordinates = coordinates(location.coordinates, path, bad);
    let capacity = bad.check(at("capacity"), Capacity::new(location.capacity));
    let state = state(location.state, at("state"), bad);
    let description = bad.check(at("description"), Text::parse(location.description));
    let labels = labels(location.labels, &at("labels"), bad);
    Some(Details {
        display_name: display_name?,
        production_run_id: production_run_id?,
        address: address?,
        coordinates: coordinates?,
        capacity: capacity?,
        state: state?,
        description: description?,
        labels: labels?,
    })
}

fn address(address: v1::Address, path: &str, bad: &mut Violations) -> Option<Address> {
    let at = |field: &str| format!("{path}.{field}");
    let lines = address_lines(address.address_lines, &at("address_lines"), bad);
    let locality = bad.check(at("locality"), Text::parse(address.locality));
    let administrative_area = bad.check(
        at("administrative_area"),
        Text::parse(address.administrative_area),
    );
    let postal_code = bad.check(at("postal_code"), Text::parse(address.postal_code));
    let region_code = bad.check(at("region_code"), RegionCode::parse(&address.region_code));
    Some(Address {
        lines: lines?,
        locality: locality?,
        administrative_area: administrative_area?,
        postal_code: postal_code?,
        region_code: region_code?,
    })
}

fn address_lines(lines: Vec<String>, path: &str, bad: &mut Violations) -> Option<Vec<AddressText>> {
    let count = lines.len();
    if count > MAX_ADDRESS_LINES {
        bad.add(
            path,
            format!("may have up to {MAX_ADDRESS_LINES} lines, has {count}"),
        );
        return None;
    }
    let lines = lines.into_iter().enumerate();
    let lines: Vec<_> = lines
        .filter_map(|(index, line)| bad.check(format!("{path}[{index}]"), Text::parse(line)))
        .collect();
    (lines.len() == count).then_some(lines)
}

fn coordinates(
    position: Option<v1::LatLng>,
    path: &str,
    bad: &mut Violations,
) -> Option<Option<Coordinates>> {
    let Some(position) = position else {
        return Some(None);
    };
    Coordinates::new(position.latitude, position.longitude)
        .map(Some)
        .map_err(|violations| {
            for (field, why) in violations {
                bad.add(format!("{path}.{field}"), why);
            }
        })
        .ok()
}

fn labels(
    labels: BTreeMap<String, String>,
    path: &str,
    bad: &mut Violations,
) -> Option<BTreeMap<LabelKey, LabelValue>> {
    let count = labels.len();
    if count > MAX_LABELS {
        bad.add(path, format!("may have up to {MAX_LABELS}, has {count}"));
        return None;
    }
    let labels: BTreeMap<_, _> = labels
        .into_iter()
        .filter_map(|(key, value)| label(key, value, path, bad))
        .collect();
    (labels.len() == count).then_some(labels)
}

fn label(
    key: String,
    value: String,
    path: &str,
    bad: &mut Violations,
) -> Option<(LabelKey, LabelValue)> {
    let shown: String = key.chars().take(LabelKey::MAX).collect();
    let value = bad.check(format!("{path}.{shown}"), Text::parse(value));
    let key = bad.check(format!("{path} key {shown:?}"), Text::parse(key));
    key.zip(value)
}

/// The fields of a location that an update changes.
const MUTABLE: [&str; 9] = [
    "type",
    "display_name",
    "production_run_id",
    "address",
    "coordinates",
    "capacity",
    "state",
    "description",
    "labels",
];

/// Those of them that are set.
fn populated(location: &v1::Location) -> impl Iterator<Item = &'static str> {
    let set = [
        location.r#type != 0,
        !location.display_name.is_empty(),
        !location.production_run_id.is_empty(),
        location.address.is_some(),
        location.coordinates.is_some(),
        location.capacity != 0,
        location.state != 0,
        !location.description.is_empty(),
        !location.labels.is_empty(),
    ];
    MUTABLE
        .into_iter()
        .zip(set)
        .filter_map(|(field, set)| set.then_some(field))
}

fn changes<'a>(
    paths: impl IntoIterator<Item = &'a str>,
    location: &v1::Location,
    bad: &mut Violations,
) -> Vec<Change> {
    paths
        .into_iter()
        .filter_map(|path| change(path, location, bad))
        .collect()
}

/// The change that a path of a mask stands for; `None` if it is invalid or changes nothing.
fn change(path: &str, location: &v1::Location, bad: &mut Violations) -> Option<Change> {
    let field = format!("location.{path}");
    let address = || location.address.clone().unwrap_or_default();
    let position = || location.coordinates.unwrap_or_default();
    let zero = v1::LatLng::default();
    Some(match path {
        // Unspecified means that the client doesn't know it: it can't be changed anyway.
        "type" if location.r#type == 0 => return None,
        "type" => Change::Type(required_type(location.r#type, field, bad)?),
        "display_name" => {
            Change::DisplayName(bad.check(field, Text::parse(location.display_name.clone()))?)
        }
        "production_run_id" => Change::ProductionRunId(
            bad.check(field, Text::parse(location.production_run_id.clone()))?,
        ),
        "address" => Change::Address(self::address(address(), &field, bad)?),
        "address.address_lines" => {
            Change::AddressLines(address_lines(address().address_lines, &field, bad)?)
        }
        "address.locality" => Change::Locality(bad.check(field, Text::parse(address().locality))?),
        "address.administrative_area" => Change::AdministrativeArea(
            bad.check(field, Text::parse(address().administrative_area))?,
        ),
        "address.postal_code" => {
            Change::PostalCode(bad.check(field, Text::parse(address().postal_code))?)
        }
        "address.region_code" => {
            Change::RegionCode(bad.check(field, RegionCode::parse(&address().region_code))?)
        }
        "coordinates" => Change::Coordinates(coordinates(location.coordinates, "location", bad)?),
        "coordinates.latitude" => {
            let latitude = position().latitude;
            Change::Latitude(coordinates(
                Some(v1::LatLng { latitude, ..zero }),
                "location",
                bad,
            )??)
        }
        "coordinates.longitude" => {
            let longitude = position().longitude;
            Change::Longitude(coordinates(
                Some(v1::LatLng { longitude, ..zero }),
                "location",
                bad,
            )??)
        }
        "capacity" => Change::Capacity(bad.check(field, Capacity::new(location.capacity))?),
        "state" => Change::State(state(location.state, field, bad)?),
        "description" => {
            Change::Description(bad.check(field, Text::parse(location.description.clone()))?)
        }
        "labels" => Change::Labels(labels(location.labels.clone(), &field, bad)?),
        // AIP-203: output only fields are ignored.
        "id" | "owner_id" | "create_time" | "update_time" | "etag" => return None,
        path => {
            let Some(key) = path.strip_prefix("labels.") else {
                let shown: String = path.chars().take(MAX_SHOWN_PATH).collect();
                bad.add(
                    "update_mask",
                    format!(
                        "names {shown:?}, which is no field of a location: use names such as \
                         display_name, address.locality, labels.colour, or *"
                    ),
                );
                return None;
            };
            // AIP-161: a key with other characters stands between backticks.
            let key = key
                .strip_prefix('`')
                .and_then(|key| key.strip_suffix('`'))
                .unwrap_or(key)
                .to_owned();
            match location.labels.get(&key) {
                Some(value) => {
                    let (key, value) = label(key, value.clone(), "location.labels", bad)?;
                    Change::Label(key, Some(value))
                }
                None => Change::Label(bad.check("update_mask", Text::parse(key))?, None),
            }
        }
    })
}

fn predicate(
    kind: i32,
    run: Option<String>,
    owner: String,
    bad: &mut Violations,
) -> Option<Predicate> {
    let kind = match kind {
        0 => Some(None),
        _ => required_type(kind, "type".to_owned(), bad).map(Some),
    };
    let run = match run {
        None => Some(None),
        Some(run) => bad
            .check("production_run_id", ProductionRunId::parse(run))
            .map(Some),
    };
    let owner = match owner.as_str() {
        "" => Some(None),
        _ => bad.check("owner_id", OwnerId::parse(owner)).map(Some),
    };
    Some(Predicate {
        kind: kind?,
        run: run?,
        owner: owner?,
    })
}

fn required_type(number: i32, field: String, bad: &mut Violations) -> Option<LocationType> {
    bad.check(
        field,
        LocationType::from_number(number.into())
            .ok_or("must be LOCATION_TYPE_DELIVERY (1) or LOCATION_TYPE_STORAGE (2)"),
    )
}

fn state(number: i32, field: String, bad: &mut Violations) -> Option<LocationState> {
    match number {
        0 => Some(LocationState::Active),
        _ => bad.check(
            field,
            LocationState::from_number(number.into())
                .ok_or("must be LOCATION_STATE_ACTIVE (1) or LOCATION_STATE_INACTIVE (2)"),
        ),
    }
}

fn state_filter(number: i32, bad: &mut Violations) -> Option<Option<LocationState>> {
    match number {
        0 => Some(None),
        _ => state(number, "state".to_owned(), bad).map(Some),
    }
}

fn parse_count(value: i32) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("must be 0 or more, is {value}"))
}

fn parse_page_size(value: i32) -> Result<u32, String> {
    Ok(match parse_count(value)? {
        0 => DEFAULT_PAGE,
        size => size.min(MAX_PAGE),
    })
}

/// AIP-132: a field, and ` desc` or nothing; further spaces don't matter.
fn parse_order(text: &str) -> Result<Order, String> {
    let mut words = text.split_whitespace();
    let field = match words.next() {
        None => return Ok(Order::default()),
        Some("create_time") => Some(OrderField::CreateTime),
        Some("update_time") => Some(OrderField::UpdateTime),
        Some("display_name") => Some(OrderField::DisplayName),
        Some("capacity") => Some(OrderField::Capacity),
        Some(_) => None,
    };
    let descending = match words.next() {
        None => Some(false),
        Some("desc") => Some(true),
        Some(_) => None,
    };
    match (field, descending, words.next()) {
        (Some(field), Some(descending), None) => Ok(Order { field, descending }),
        _ => Err(
            "must be create_time, update_time, display_name or capacity, and ` desc` or nothing \
             after it"
                .to_owned(),
        ),
    }
}
