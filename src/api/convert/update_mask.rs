//! Updates by field mask (AIP-134, AIP-161).
//!
//! An update merges the masked fields of the request into the message of the current location, and
//! converts the result. The fields come from the message's descriptor, so most need no code here.

use std::collections::BTreeSet;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _};

use crate::{
    error::{Result, Violations},
    model::{Details, LabelKey, Location, LocationType, OwnerId, Principal},
    proto::{
        self,
        convert::{Fields, location_type},
        location::v1,
    },
    service::Edited,
};

/// The output only fields, which updates ignore (AIP-161).
const OUTPUT_ONLY: [&str; 4] = ["id", "create_time", "update_time", "etag"];

/// The immutable field.
const TYPE: &str = "type";

/// The field that only an admin can change.
const OWNER: &str = "owner_id";

/// A field whose unset value stands for a default, so that a mask can't clear it.
const STATE: &str = "state";

/// The position, which is set as a whole or not at all.
const COORDINATES: &str = "coordinates";

/// The parts of the position.
const COORDINATE_PATHS: [&str; 2] = ["coordinates.latitude", "coordinates.longitude"];

/// The path of the location in a request.
const LOCATION: &str = "location";

/// Maximum number of characters of an unknown path that an error shows.
const MAX_SHOWN_CHARS: usize = 64;

/// The changes of an update.
pub struct Changes {
    /// The new values.
    source: DynamicMessage,
    paths: Vec<Path>,
    /// The paths as text, without backticks.
    mask: Vec<String>,
    /// The type, if the mask names it.
    kind: Option<LocationType>,
    /// The new owner.
    owner: Option<OwnerId>,
}

impl Changes {
    /// Parses a mask and the fields that it names.
    pub fn parse(
        location: &v1::Location,
        mask: Vec<String>,
        caller: &Principal,
        violations: &mut Violations,
    ) -> Result<Self> {
        let mut changes = Self {
            source: proto::to_dynamic(location)?,
            paths: Vec::new(),
            mask: Vec::new(),
            kind: None,
            owner: None,
        };
        let mask: BTreeSet<_> = mask.into_iter().collect();
        let is_explicit = !mask.is_empty() && !mask.contains("*");
        if is_explicit {
            changes.owner = check_explicit(location, &mask, caller, violations);
        }
        for path in changes.expand(mask, violations) {
            if path == OWNER || OUTPUT_ONLY.contains(&path.as_str()) {
                continue;
            }
            if path == TYPE {
                // The caller may not know the type.
                if location.r#type != 0 || is_explicit {
                    let field = format!("{LOCATION}.{TYPE}");
                    changes.kind = violations.check(field, location_type(location.r#type));
                }
                continue;
            }
            if let Some(path) = violations.check("update_mask", Path::parse(&path)) {
                changes.mask.push(path.name());
                changes.paths.push(path);
            }
        }
        // Reports invalid values without the current location.
        changes.merge(&v1::Location::default(), violations)?;
        Ok(changes)
    }

    /// Returns the paths of a mask without repeats. An empty mask stands for the fields that are
    /// set, and `*` for all.
    fn expand(&self, mut paths: BTreeSet<String>, violations: &mut Violations) -> BTreeSet<String> {
        let all = paths.remove("*");
        if all && !paths.is_empty() {
            violations.add("update_mask", "must not have other paths next to *");
        }
        if all || paths.is_empty() {
            let fields = self.source.descriptor();
            let fields = fields.fields();
            paths = fields
                .filter(|field| all || self.source.has_field(field))
                .map(|field| field.name().to_owned())
                .collect();
        }
        paths
    }

    /// Returns the fields of a location with the changes.
    pub fn apply(&self, current: &Location) -> Result<Edited> {
        let mut violations = Violations::default();
        if self.kind.is_some_and(|kind| kind != current.kind) {
            violations.add(
                format!("{LOCATION}.{TYPE}"),
                "is immutable: leave it unset, or create another location",
            );
        }
        let names = |path: &str| self.mask.iter().any(|named| named == path);
        if current.details.coordinates.is_none()
            && !names(COORDINATES)
            && COORDINATE_PATHS
                .into_iter()
                .filter(|path| names(path))
                .count()
                == 1
        {
            violations.add(
                "update_mask",
                "names one of the coordinates of a location without a position: name coordinates, and set both",
            );
        }
        let details = self.merge(&current.clone().into(), &mut violations)?;
        let owner = self.owner.as_ref().unwrap_or(&current.owner).clone();
        violations.finish(Some(Edited { owner, details }))
    }

    /// Merges the masked fields into a location. Only the masked fields are checked: limits may have
    /// been lower when the others were stored.
    fn merge(&self, location: &v1::Location, violations: &mut Violations) -> Result<Details> {
        let mut merged = proto::to_dynamic(location)?;
        for path in &self.paths {
            path.copy(&self.source, &mut merged);
        }
        let merged = proto::from_dynamic(&merged)?;
        Ok(Fields::masked(LOCATION, &self.mask, violations).details(merged))
    }
}

/// Checks the fields of a mask that is neither empty nor `*`: each must be able to have an effect.
/// Returns the new owner, if the mask names it.
fn check_explicit(
    location: &v1::Location,
    mask: &BTreeSet<String>,
    caller: &Principal,
    violations: &mut Violations,
) -> Option<OwnerId> {
    if mask.contains(STATE) && location.state == 0 {
        violations.add(
            format!("{LOCATION}.{STATE}"),
            "is required if the mask names it: set it, or leave it out of the mask",
        );
    }
    if location.coordinates.is_none() && COORDINATE_PATHS.iter().any(|path| mask.contains(*path)) {
        violations.add(
            format!("{LOCATION}.{COORDINATES}"),
            "is required if the mask names one of the coordinates; name coordinates to remove the \
             position",
        );
    }
    if !mask.contains(OWNER) {
        return None;
    }
    let field = format!("{LOCATION}.{OWNER}");
    let owner = violations.check(field.clone(), OwnerId::parse(location.owner_id.clone()))?;
    if !caller.admin && owner != caller.subject {
        violations.add(
            field,
            "can be changed only by an admin: leave it out of the mask",
        );
        return None;
    }
    Some(owner)
}

/// The path of a field, or of a label.
struct Path {
    fields: Vec<FieldDescriptor>,
    /// The key, if the last field is a map and the path names one of its values.
    key: Option<String>,
}

impl Path {
    fn parse(text: &str) -> Result<Self, String> {
        let shown = || text.chars().take(MAX_SHOWN_CHARS).collect::<String>();
        let path = Self::resolve(text).ok_or_else(|| {
            format!(
                "{:?} isn't a field of Location: use a path such as display_name, \
                 address.locality, labels.colour or labels.`a.b`, or *",
                shown()
            )
        })?;
        if let Some(key) = &path.key {
            LabelKey::parse(key.clone())
                .map_err(|violation| format!("the key of {:?} {violation}", shown()))?;
        }
        Ok(path)
    }

    fn resolve(text: &str) -> Option<Self> {
        let mut fields = Vec::new();
        let mut message = proto::LOCATION.clone();
        let mut rest = text;
        loop {
            let (name, inner) = match rest.split_once('.') {
                Some((name, inner)) => (name, Some(inner)),
                None => (rest, None),
            };
            let field = message.get_field_by_name(name)?;
            fields.push(field.clone());
            let Some(inner) = inner else {
                return Some(Self { fields, key: None });
            };
            if OUTPUT_ONLY.contains(&name) {
                return None;
            }
            if field.is_map() {
                let key = Some(unquote(inner)?.to_owned());
                return Some(Self { fields, key });
            }
            message = match field.kind() {
                Kind::Message(message) if !field.is_list() => message,
                _ => return None,
            };
            rest = inner;
        }
    }

    /// The path as text, without backticks.
    fn name(&self) -> String {
        let names = self.fields.iter().map(FieldDescriptor::name);
        let names: Vec<_> = names.chain(self.key.as_deref()).collect();
        names.join(".")
    }

    /// Copies the value at the path; removes it from `target` if `source` doesn't have it.
    fn copy(&self, source: &DynamicMessage, target: &mut DynamicMessage) {
        copy(&self.fields, self.key.as_deref(), source, target);
    }
}

fn copy(
    fields: &[FieldDescriptor],
    key: Option<&str>,
    source: &DynamicMessage,
    target: &mut DynamicMessage,
) {
    let [field, inner @ ..] = fields else {
        return;
    };
    let value = source.get_field(field);
    if !inner.is_empty() {
        if let Some(source) = value.as_message()
            && let Some(target) = target.get_field_mut(field).as_message_mut()
        {
            copy(inner, key, source, target);
        }
    } else if let Some(key) = key {
        let key = MapKey::String(key.to_owned());
        let Some(values) = target.get_field_mut(field).as_map_mut() else {
            return;
        };
        match value.as_map().and_then(|source| source.get(&key)) {
            Some(value) => values.insert(key, value.clone()),
            None => values.remove(&key),
        };
    } else if source.has_field(field) {
        target.set_field(field, value.into_owned());
    } else {
        target.clear_field(field);
    }
}

/// Removes the backticks around a key, which a key with a dot needs (AIP-161). `None` if they aren't
/// balanced or are missing.
fn unquote(key: &str) -> Option<&str> {
    match key.strip_prefix('`') {
        Some(quoted) => quoted.strip_suffix('`').filter(|key| !key.contains('`')),
        None => Some(key).filter(|key| !key.contains(['.', '`'])),
    }
}
