//! Variants of the command line, and its errors as text.

use std::{collections::BTreeSet, ffi::OsString};

use clap::{
    Command, CommandFactory as _,
    error::{ContextKind, ContextValue},
    value_parser,
};

use crate::cli::{Cli, file::File};

/// The help or the version. It comes from the unchanged command, because it shows the environment
/// variables and the valid values.
pub fn help(args: &[OsString], raw: clap::Error) -> clap::Error {
    let is_help = |error: &clap::Error| !error.use_stderr();
    let alone = args.iter().take(2).cloned().chain(["--help".into()]);
    [args.to_vec(), alone.collect()]
        .into_iter()
        .filter_map(|args| Cli::command().try_get_matches_from(args).err())
        .find(is_help)
        .unwrap_or(raw)
}

pub fn without_environment(command: Command) -> Command {
    command
        .mut_args(|arg| arg.env(None::<&str>))
        .mut_subcommands(without_environment)
}

/// The command without validation: flags accept any value, and none is required.
pub fn without_parsers(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let arg = arg.env(None::<&str>).required(false);
            if arg.get_action().takes_values() {
                arg.value_parser(value_parser!(OsString))
            } else {
                arg
            }
        })
        .mut_subcommands(without_parsers)
}

/// Makes the settings of the file the defaults of their flags, except those in `wrong`.
pub fn with_defaults(command: Command, file: &File, wrong: &BTreeSet<String>) -> Command {
    command
        .mut_args(|arg| {
            let setting = file
                .settings
                .iter()
                .find(|setting| arg.get_long() == Some(&setting.flag));
            match setting {
                Some(setting) if !wrong.contains(&setting.flag) => {
                    arg.default_value(setting.value.clone()).required(false)
                }
                _ => arg,
            }
        })
        .mut_subcommands(|command| with_defaults(command, file, wrong))
}

/// The text without the part after the scheme of a URL, which may hold a password.
pub fn hide_url(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, _)) => format!("{scheme}:..."),
        None => text.to_owned(),
    }
}

pub fn quote(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}

/// Hides URLs in an error.
pub fn mask(mut error: clap::Error) -> clap::Error {
    for kind in [
        ContextKind::InvalidArg,
        ContextKind::InvalidSubcommand,
        ContextKind::InvalidValue,
    ] {
        if let Some(ContextValue::String(text)) = error.get(kind) {
            let hidden = ContextValue::String(hide_url(text));
            error.insert(kind, hidden);
        }
    }
    error
}

/// The problem in an error of `clap`, without the usage.
pub fn describe(error: clap::Error) -> String {
    let text = mask(error).render().to_string();
    let text = text.trim_start_matches("error: ");
    let end = text.find("\n\n").unwrap_or(text.len());
    let lines: Vec<_> = text[..end].lines().map(str::trim).collect();
    lines.join(" ")
}
