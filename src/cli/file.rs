//! The settings file.
//!
//! The keys of the file are the names of the flags of `serve`. The other commands use the same file,
//! and ignore the keys of flags that they don't have.

use std::{fs, io, path::Path};

use clap::{Args as _, Command};
use toml::de::{DeTable, DeValue};

use super::{
    args::{CONFIG, ServeArgs},
    settings::nearest,
};

/// The settings of a file, and its problems.
pub struct File {
    pub settings: Vec<Setting>,
    /// Without the text of the lines, which may hold passwords.
    pub problems: Vec<String>,
}

/// A key of the file and its value as text.
pub struct Setting {
    /// The key, spelled as in the file.
    pub key: String,
    /// The key, spelled as a flag.
    pub flag: String,
    pub value: String,
    /// Whether the value is a string in the file.
    pub is_text: bool,
    /// The line of the key, from 1 on.
    pub line: usize,
}

/// Reads a file. Fails only if it can't be read.
pub fn read(path: &Path) -> io::Result<File> {
    Ok(parse(path, &fs::read_to_string(path)?))
}

/// A line of the file, for messages.
pub fn place(path: &Path, line: usize) -> String {
    format!("{}, line {line}", path.display())
}

fn parse(path: &Path, text: &str) -> File {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut problems = syntax_errors(path, text, &errors);
    if !problems.is_empty() {
        return File {
            settings: Vec::new(),
            problems,
        };
    }
    let command = ServeArgs::augment_args(Command::new("file"));
    let mut flags: Vec<_> = command
        .get_arguments()
        .filter(|arg| arg.get_id() != CONFIG)
        .filter_map(|arg| arg.get_long())
        .collect();
    flags.sort_unstable();
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut settings: Vec<Setting> = Vec::new();
    for (key, value) in entries {
        let line = line(text, key.span().start);
        match setting(key.get_ref(), value.get_ref(), line, &flags) {
            Ok(setting) => match settings.iter().find(|other| other.flag == setting.flag) {
                None => settings.push(setting),
                Some(first) => problems.push(format!(
                    "{}: {} is set a second time, after line {}",
                    place(path, line),
                    setting.key,
                    first.line
                )),
            },
            Err(problem) => problems.push(format!("{}: {problem}", place(path, line))),
        }
    }
    File { settings, problems }
}

/// Converts an entry, whose key must be a flag of `serve`. `cache_ttl` is the same key as `cache-ttl`,
/// because many TOML files spell keys that way.
fn setting(key: &str, value: &DeValue<'_>, line: usize, flags: &[&str]) -> Result<Setting, String> {
    let flag = key.replace('_', "-");
    let key = match key {
        "" => "\"\"".to_owned(),
        key => key.escape_debug().to_string(),
    };
    let wrong_type = || {
        let kind = value.type_str();
        format!("{key} must be a string, an integer or a boolean, is of type {kind}")
    };
    if let DeValue::Table(table) = value {
        let mut problem = wrong_type();
        let inner = table
            .keys()
            .map(|inner| format!("{flag}-{}", inner.get_ref()));
        let inner: Vec<_> = inner
            .filter(|flag| flags.contains(&flag.as_str()))
            .collect();
        if !inner.is_empty() {
            let names = inner.join(", ");
            problem = format!("{problem}: the file has no tables, set {names} at its top");
        }
        return Err(problem);
    }
    if !flags.contains(&flag.as_str()) {
        return Err(match nearest(&flag, flags.iter().copied(), "") {
            Some(nearest) => format!("{key} isn't a setting: did you mean {nearest}?"),
            None => {
                format!("{key} isn't a setting: the keys are the names of the flags of `serve`")
            }
        });
    }
    let (value, is_text) = match value {
        DeValue::String(text) => (text.to_string(), true),
        DeValue::Integer(number) => {
            let number = i128::from_str_radix(number.as_str(), number.radix());
            let number = number.map_err(|_| format!("{key} is too large a number"))?;
            (number.to_string(), false)
        }
        DeValue::Boolean(value) => (value.to_string(), false),
        _ => return Err(wrong_type()),
    };
    Ok(Setting {
        key,
        flag,
        value,
        is_text,
        line,
    })
}

/// The first syntax error of each line: the others may be consequences of it. `toml`'s own text
/// repeats the line, which may hold a password.
fn syntax_errors(path: &Path, text: &str, errors: &[toml::de::Error]) -> Vec<String> {
    let mut errors: Vec<_> = errors
        .iter()
        .map(|error| {
            let start = error.span().map_or(0, |span| span.start);
            (line(text, start), start, error.message())
        })
        .collect();
    errors.sort_unstable();
    errors.dedup_by_key(|&mut (line, ..)| line);
    let path = path.display();
    let describe = |(line, start, reason): (usize, usize, &str)| {
        let before = text.get(..start).unwrap_or_default();
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        format!("the configuration file {path} isn't TOML: line {line}, column {column}: {reason}")
    };
    errors.into_iter().map(describe).collect()
}

fn line(text: &str, offset: usize) -> usize {
    text.get(..offset).unwrap_or_default().matches('\n').count() + 1
}
