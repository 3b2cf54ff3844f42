//! Updates by field mask (AIP-134, AIP-161).
//!
//! An update merges the masked fields of the request into the current location as a message, by the
//! descriptor, and converts the result. Fields of `Location` need no code here.

use std::collections::BTreeSet;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _};

use crate::{
    error::{Error, Result, Violations},
    model::{Details, LabelKey, Location, LocationType},
    proto::{
        self,
        from_proto::{Fields, location_type},
        location::v1,
    },
};

/// The output only fields, which updates ignore (AIP-203).
const OUTPUT_ONLY: [&str; 5] = ["id", "owner_id", "create_time", "update_time", "etag"];

/// The immutable field.
const TYPE: &str = "type";

/// The prefix of violations.
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
}

impl Changes {
    /// Parses a mask and the fields that it names.
    pub fn parse(
        location: &v1::Location,
        mask: Vec<String>,
        violations: &mut Violations,
    ) -> Result<Self> {
        let mut changes = Self {
            source: proto::to_dynamic(location)?,
            paths: Vec::new(),
            mask: Vec::new(),
            kind: None,
        };
        for path in changes.expand(mask, violations) {
            if OUTPUT_ONLY.contains(&path.as_str()) {
                continue;
            }
            if path == TYPE {
                // The caller doesn't know the type if it is unspecified.
                if location.r#type != 0 {
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
        // Reports invalid values even if the location can't be read.
        changes.merge(&v1::Location::default(), violations)?;
        Ok(changes)
    }

    /// Returns the paths of a mask without repeats. An empty mask stands for the fields that are
    /// set, and `*` for all.
    fn expand(&self, mask: Vec<String>, violations: &mut Violations) -> BTreeSet<String> {
        let mut paths: BTreeSet<_> = mask.into_iter().collect();
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

    /// Returns the details of a location with the changes.
    pub fn apply(&self, current: &Location) -> Result<Details> {
        let mut violations = Violations::default();
        if self.kind.is_some_and(|kind| kind != current.kind) {
            violations.add(
                format!("{LOCATION}.{TYPE}"),
                "is immutable: leave it unset, or create another location",
            );
        }
        let details = self.merge(&current.clone().into(), &mut violations)?;
        violations.finish(Some(details))
    }

    /// Merges the masked fields into a location. Only the masked fields are checked: limits may have
    /// been lower when the others were stored.
    fn merge(&self, location: &v1::Location, violations: &mut Violations) -> Result<Details> {
        let mut merged = proto::to_dynamic(location)?;
        for path in &self.paths {
            path.copy(&self.source, &mut merged);
        }
        let merged = merged.transcode_to().map_err(Error::internal)?;
        Ok(Fields::masked(LOCATION, &self.mask, violations).details(merged))
    }
}

/// The path of a field, or of a label.
struct Path {
    fields: Vec<FieldDescriptor>,
    /// The key, if the last field is a map and the path names one of its values.
    key: Option<String>,
}

impl Path {
    fn parse(text: &str) -> Result<Self, String> {
        let path = Self::resolve(text).ok_or_else(|| {
            let shown: String = text.chars().take(MAX_SHOWN_CHARS).collect();
            format!(
                "{shown:?} isn't a field of Location: use a path such as display_name, \
                 address.locality or labels.colour, or *"
            )
        })?;
        if let Some(key) = &path.key {
            LabelKey::parse(key.clone()).map_err(|violation| format!("key {violation}"))?;
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
            if field.is_map() {
                let key = Some(unquote(inner).to_owned());
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

/// Removes the backticks around a key with special characters (AIP-161).
fn unquote(key: &str) -> &str {
    key.strip_prefix('`')
        .and_then(|key| key.strip_suffix('`'))
        .unwrap_or(key)
}
