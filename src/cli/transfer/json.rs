//! Locations as JSON objects, in the JSON form of protobuf.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use prost_reflect::{DynamicMessage, Kind};

use super::{
    csv::REJECT_COLUMNS,
    fields::{Field, Mapping, MappingSource},
    json_text::{check, elements, members, string},
    names::normalize,
    row::{Parsed, RowBuilder, RowRules},
    values,
};

/// In a file of rejected rows, the key with the text of a row that isn't an object.
pub const REJECT_ROW: &str = "reject_row";

/// Maximum number of ignored keys that are reported.
const MAX_IGNORED: usize = 50;

/// Parses rows.
#[derive(Debug)]
pub struct Keys {
    map: Vec<Mapping>,
    id_from: Option<String>,
    rules: Arc<RowRules>,
    /// The fields of the messages in a location, by the normalized path of the message.
    messages: HashMap<String, Vec<Field>>,
    /// The keys that aren't imported. Without `--map`, such a key is an error.
    pub ignored: BTreeSet<String>,
    /// Whether all keys except those of ids are ignored.
    only_ids: bool,
}

impl Keys {
    pub fn new(map: &[Mapping], rules: RowRules, id_from: Option<&str>) -> Self {
        let mut messages: HashMap<_, Vec<Field>> = HashMap::new();
        for field in Field::all() {
            if let Some((parent, _)) = field.to_string().rsplit_once('.') {
                messages.entry(normalize(parent)).or_default().push(field);
            }
        }
        Self {
            map: map.to_vec(),
            id_from: id_from.map(str::to_owned),
            rules: Arc::new(rules),
            messages,
            ignored: BTreeSet::new(),
            only_ids: false,
        }
    }

    /// Ignores all keys except those of ids.
    pub fn of_ids(rules: RowRules, id_from: Option<&str>) -> Self {
        Self {
            only_ids: true,
            ..Self::new(&[], rules, id_from)
        }
    }

    /// Parses a row. A key with `null` or an empty text leaves its field unset.
    pub fn parse(&mut self, text: &str) -> Result<Parsed, String> {
        check(text)?;
        let row = members(text).ok_or("isn't a JSON object")?;
        check_repeats(&row)?;
        if let Some((_, original)) = row.iter().find(|(key, _)| key == REJECT_ROW) {
            let original = string(original).ok_or("reject_row must be text")?;
            let mut parsed = self.parse(&original)?;
            parsed.original_line = original_line(&row);
            return Ok(parsed);
        }
        // `fill` changes `self`, so it can't borrow the rules and the map from it.
        let rules = Arc::clone(&self.rules);
        let mut builder = RowBuilder::new(&rules);
        let map = std::mem::take(&mut self.map);
        let result = self.fill(&mut builder, &row, &map);
        self.map = map;
        result?;
        let id = match &self.id_from {
            None => None,
            Some(path) => Some(
                find(&row, path)
                    .and_then(scalar)
                    .map(|text| text.trim().to_owned())
                    .filter(|text| !text.is_empty())
                    .ok_or_else(|| {
                        format!(
                            "{path} is neither text nor a number, so no id can be derived from it"
                        )
                    })?,
            ),
        };
        let mut parsed = builder.finish(id.as_deref())?;
        parsed.original_line = original_line(&row);
        Ok(parsed)
    }

    fn fill(
        &mut self,
        builder: &mut RowBuilder<'_>,
        row: &[(String, &str)],
        map: &[Mapping],
    ) -> Result<(), String> {
        for Mapping { field, source } in map {
            match source {
                MappingSource::Text(text) => builder.text(field, text)?,
                MappingSource::Column(path) => match find(row, path) {
                    Some(value) => set(builder, field, value, is_export(row))?,
                    None => builder.give(field),
                },
            }
        }
        for (key, value) in row {
            if self.only_ids && !Field::by_name(key).is_some_and(|field| field.is_id()) {
                continue;
            }
            let is_mapped = |path: &str| {
                path == key || path.split_once('.').is_some_and(|(first, _)| first == key)
            };
            let is_source = map.iter().any(
                |mapping| matches!(&mapping.source, MappingSource::Column(path) if is_mapped(path)),
            ) || self.id_from.as_deref().is_some_and(is_mapped);
            let member = Member {
                prefix: "",
                is_source,
                is_exact: is_export(row),
            };
            self.member(builder, member, key, value, map)?;
        }
        Ok(())
    }

    /// Takes over a member of the row, or of a message in it.
    fn member(
        &mut self,
        builder: &mut RowBuilder<'_>,
        member: Member<'_>,
        key: &str,
        value: &str,
        map: &[Mapping],
    ) -> Result<(), String> {
        let Member {
            prefix,
            is_source,
            is_exact,
        } = member;
        let path = if prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{prefix}.{key}")
        };
        if let Some(fields) = self.messages.get(&normalize(&path)) {
            if value == "null" {
                for field in fields {
                    builder.give(field);
                }
                return Ok(());
            }
            let inner = members(value);
            if inner.is_none() && is_source {
                return Ok(());
            }
            let inner = inner.ok_or_else(|| format!("{path} must be an object, is {value}"))?;
            check_repeats(&inner)?;
            let member = Member {
                prefix: &path,
                is_source: false,
                is_exact,
            };
            return inner
                .iter()
                .try_for_each(|(key, value)| self.member(builder, member, key, value, map));
        }
        match Field::by_name(&path).filter(|field| field.key().is_none()) {
            Some(field) => {
                let is_given = field.is_output_only()
                    || (field.is_id() && self.id_from.is_some())
                    || map.iter().any(|mapping| mapping.field == field)
                    || self.rules.is_constant(&field);
                if is_given || (is_source && !map.is_empty() && !is_plain(&field, value)) {
                    return Ok(());
                }
                set(builder, &field, value, is_exact)
            }
            None if is_source || REJECT_COLUMNS.contains(&path.as_str()) => Ok(()),
            None if map.is_empty() => Err(match Field::suggest(&path) {
                Some(field) => format!("`{path}` isn't a field: did you mean `{field}`?"),
                None => format!("`{path}` isn't a field of a location"),
            }),
            None => {
                if self.ignored.len() < MAX_IGNORED {
                    self.ignored.insert(path);
                }
                Ok(())
            }
        }
    }
}

/// The context of a member.
#[derive(Clone, Copy)]
struct Member<'a> {
    /// The path of the message that it is in.
    prefix: &'a str,
    /// Whether a mapping reads it or a part of it.
    is_source: bool,
    /// Whether text keeps the white space around it.
    is_exact: bool,
}

/// Whether the row was written by an export, whose text is exact.
fn is_export(row: &[(String, &str)]) -> bool {
    row.iter().any(|(key, _)| key == "etag")
}

/// Whether the value is one that the field may have, for a key that was also mapped elsewhere.
fn is_plain(field: &Field, value: &str) -> bool {
    field.is_list() || field.is_map() || !value.starts_with(['{', '['])
}

fn check_repeats(members: &[(String, &str)]) -> Result<(), String> {
    let mut keys = HashSet::with_capacity(members.len());
    match members.iter().find(|(key, _)| !keys.insert(key.as_str())) {
        Some((key, _)) => Err(format!("has the key `{key}` twice")),
        None => Ok(()),
    }
}

fn original_line(row: &[(String, &str)]) -> Option<u64> {
    let (_, line) = row.iter().find(|(key, _)| key == REJECT_COLUMNS[0])?;
    line.parse().ok()
}

/// The value at a path such as `geo.lat` or `lines.0`.
fn find<'a>(row: &[(String, &'a str)], path: &str) -> Option<&'a str> {
    if let Some((_, value)) = row.iter().find(|(key, _)| key == path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    let (_, value) = row.iter().find(|(key, _)| key == first)?;
    if let Some(members) = members(value) {
        return find(&members, rest);
    }
    let (index, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let element = *elements(value)?.get(index.parse::<usize>().ok()?)?;
    if rest.is_empty() {
        Some(element)
    } else {
        find(&members(element)?, rest)
    }
}

/// Text or a number as text.
fn scalar(value: &str) -> Option<String> {
    match value.as_bytes().first()? {
        b'"' => string(value),
        b'-' | b'0'..=b'9' => Some(value.to_owned()),
        _ => None,
    }
}

/// Sets a field to a JSON value. Text keeps the white space around it only in an export.
fn set(
    builder: &mut RowBuilder<'_>,
    field: &Field,
    value: &str,
    is_exact: bool,
) -> Result<(), String> {
    if value == "null" {
        builder.give(field);
        return Ok(());
    }
    let style = builder.style();
    if field.is_map() {
        let entries = members(value)
            .and_then(|entries| {
                let entries = entries.into_iter();
                entries
                    .map(|(key, value)| Some((key, scalar(value)?)))
                    .collect()
            })
            .ok_or_else(|| format!("{field} must be an object of strings"))?;
        let value = field.parse_entries(entries, style);
        return builder.value(field, value.map_err(|error| format!("{field} {error}"))?);
    }
    if field.is_list() && value.starts_with('[') {
        let texts: Option<Vec<String>> =
            elements(value).and_then(|elements| elements.into_iter().map(scalar).collect());
        let texts = texts.ok_or_else(|| format!("{field} must be an array of strings"))?;
        let value = field.parse_list(&texts, style);
        return builder.value(field, value.map_err(|error| format!("{field} {error}"))?);
    }
    let text = scalar(value)
        .or_else(|| (field.kind() == Kind::Bool).then(|| value.to_owned()))
        .ok_or_else(|| {
            let shown: String = value.chars().take(40).collect();
            format!("{field} must be text or a number, is {shown}")
        })?;
    let text = if is_exact { &*text } else { text.trim() };
    if text.is_empty() {
        builder.give(field);
        return Ok(());
    }
    builder.text(field, text)
}

/// Appends a location as one line, with all of the fields, also those without a value.
pub fn write(location: &DynamicMessage, fields: &[Field], out: &mut Vec<u8>) {
    let mut open: Option<(&str, bool)> = None;
    out.push(b'{');
    let mut needs_comma = false;
    for field in fields {
        let parent = field.json_parents().last();
        if open.map(|(name, _)| name) != parent {
            if let Some((_, true)) = open {
                out.push(b'}');
            }
            open = None;
            if let Some(name) = parent {
                let is_set = field.is_parent_set(location);
                if needs_comma {
                    out.push(b',');
                }
                out.extend(values::quote(name).bytes());
                out.extend(if is_set { b":{".as_slice() } else { b":null" });
                needs_comma = !is_set;
                open = Some((name, is_set));
            }
        }
        if let Some((_, false)) = open {
            continue;
        }
        if needs_comma {
            out.push(b',');
        }
        needs_comma = true;
        out.push(b'"');
        out.extend(field.json_name().bytes());
        out.extend(b"\":");
        out.extend(field.get_json(location).bytes());
    }
    if let Some((_, true)) = open {
        out.push(b'}');
    }
    out.extend(b"}\n");
}
