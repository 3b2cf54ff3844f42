//! The names of fields as people write them.

use std::{collections::HashMap, sync::LazyLock};

use super::fields::Field;

impl Field {
    /// The field that a name stands for, compared without case, spaces, underscores and hyphens.
    pub fn by_name(name: &str) -> Option<Self> {
        static NAMES: LazyLock<HashMap<String, Field>> = LazyLock::new(|| {
            let fields = Field::all();
            fields
                .into_iter()
                .map(|field| (normalize(&field.to_string()), field))
                .collect()
        });
        let name = name.trim();
        if let Some(field) = NAMES.get(&normalize(name)) {
            return Some(field.clone());
        }
        let (map, key) = name.split_once('.')?;
        let (field, key) = (NAMES.get(&normalize(map))?, key.trim());
        (field.is_map() && !key.is_empty()).then(|| field.entry(key))
    }

    /// The path of a field with a similar name: one that begins or ends with it, or that a typing error
    /// may have changed.
    pub fn suggest(name: &str) -> Option<String> {
        let wanted = normalize(name);
        if wanted.len() < 3 {
            return None;
        }
        let fields = Self::all()
            .into_iter()
            .filter(|field| !field.is_output_only() && !field.is_id());
        fields
            .map(|field| {
                let leaf = normalize(field.name());
                let distance = if leaf.starts_with(&wanted) || leaf.ends_with(&wanted) {
                    1
                } else {
                    let path = normalize(&field.to_string());
                    strsim::damerau_levenshtein(&leaf, &wanted)
                        .min(strsim::damerau_levenshtein(&path, &wanted))
                };
                (distance, field)
            })
            .filter(|(distance, _)| *distance <= 1 + wanted.len() / 8)
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, field)| field.to_string())
    }
}

/// A name without case, spaces, underscores and hyphens.
pub fn normalize(name: &str) -> String {
    name.chars()
        .filter(|char| !char.is_whitespace() && !matches!(char, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}
