//! The settings file.
//!
//! The keys of the file are the names of the flags. Its values become the defaults of the flags
//! before the command line is parsed, so every value goes through the same parser, whatever its
//! source.

use std::{
    error::Error as _,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use clap::{
    ArgMatches, Args as _, Command, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{
    args::{CONFIG, ServeArgs},
    error::ConfigError,
};

/// Parses arguments, whose first is the name of the program, the environment, and the settings file
/// that one of the two names.
pub fn parse<C: Parser>(args: Vec<OsString>) -> Result<C, ConfigError> {
    let mut matches = matches(C::command(), args)?;
    Ok(C::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut C::command()))?)
}

pub(super) fn matches(command: Command, args: Vec<OsString>) -> Result<ArgMatches, ConfigError> {
    // The first pass only finds the file. Its errors are ignored, because the file may provide a
    // missing argument; the second pass reports the remaining errors.
    let first = command
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(&args)?;
    let of_command = first.subcommand().map_or(&first, |(_, matches)| matches);
    let command = match of_command.try_get_one::<PathBuf>(CONFIG) {
        Ok(Some(path)) => with_defaults(command, &read_file(path)?),
        _ => command,
    };
    command
        .try_get_matches_from(args)
        .map_err(|error| mask(error).into())
}

/// A key of the file, spelled as a flag, and its value as text.
struct Setting {
    flag: String,
    value: String,
}

/// Replaces the defaults of the flags, in each command that has them.
fn with_defaults(command: Command, settings: &[Setting]) -> Command {
    command
        .mut_args(|arg| {
            let setting = settings
                .iter()
                .find(|setting| arg.get_long() == Some(&setting.flag));
            match setting {
                Some(setting) => arg.default_value(setting.value.clone()).required(false),
                None => arg,
            }
        })
        .mut_subcommands(|command| with_defaults(command, settings))
}

fn read_file(path: &Path) -> Result<Vec<Setting>, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        problem: describe(&error, &text),
    })?;
    table
        .into_iter()
        .map(|(key, value)| {
            check(&key, value).map_err(|problem| ConfigError::Key {
                path: path.to_owned(),
                key,
                problem,
            })
        })
        .collect()
}

/// The position and the reason of a syntax error. `toml`'s own text repeats the line, which may hold
/// a password.
fn describe(error: &toml::de::Error, text: &str) -> String {
    let before = error
        .span()
        .and_then(|span| text.get(..span.start))
        .unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    format!("line {line}, column {column}: {}", error.message())
}

/// Checks that `serve` has a flag of this name that accepts the value. `cache_ttl` is the same key as
/// `cache-ttl`, because many TOML files spell keys that way.
fn check(key: &str, value: toml::Value) -> Result<Setting, String> {
    let flag = key.replace('_', "-");
    let value = match value {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        other => {
            return Err(format!(
                "must be a string or an integer, is of type {}",
                other.type_str()
            ));
        }
    };
    // Without the environment, which must not hide an invalid value of the file.
    let command = ServeArgs::augment_args(Command::new("file").no_binary_name(true))
        .disable_help_flag(true)
        .mut_args(|arg| arg.env(None::<&str>))
        .mut_arg(CONFIG, |arg| arg.long(None::<&str>));
    match command.try_get_matches_from([format!("--{flag}={value}")]) {
        Ok(_) => Ok(Setting { flag, value }),
        Err(error) if error.kind() == ErrorKind::UnknownArgument => {
            Err(match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(flag)) => {
                    format!(
                        "isn't a setting: did you mean `{}`?",
                        flag.trim_start_matches('-')
                    )
                }
                _ => "isn't a setting: the keys are the names of the flags of `serve`".to_owned(),
            })
        }
        Err(error) => Err(problem(&error)),
    }
}

/// The reason why a value is invalid, without the value, which may be a secret.
fn problem(error: &clap::Error) -> String {
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue) {
        return format!("must be one of {}", values.join(", "));
    }
    error
        .source()
        .map_or_else(|| "has no value".to_owned(), ToString::to_string)
}

/// Removes the part after the scheme of a URL, which may hold a password, from an error.
fn mask(mut error: clap::Error) -> clap::Error {
    if let (Some(ContextValue::String(arg)), Some(ContextValue::String(value))) = (
        error.get(ContextKind::InvalidArg),
        error.get(ContextKind::InvalidValue),
    ) && arg.contains("-url ")
    {
        let scheme = value.split_once(':').map_or("", |(scheme, _)| scheme);
        let masked = ContextValue::String(format!("{scheme}:..."));
        error.insert(ContextKind::InvalidValue, masked);
    }
    error
}
