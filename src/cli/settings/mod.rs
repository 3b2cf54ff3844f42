//! Settings from flags, environment variables and the settings file, and one report of all that are
//! wrong.
//!
//! Every value goes through the parser of its flag, whatever its source. `clap` stops at the first
//! wrong value and names its flag, even if the value came from the environment, so the values are
//! first parsed one by one: each problem names the flag, the variable, or the line of the file that
//! has to be corrected.

mod command;
mod environment;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    path::PathBuf,
};

use clap::{
    Arg, ArgMatches, Command, CommandFactory as _, FromArgMatches as _,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};

use self::command::{
    describe, help, hide_url, mask, quote, with_defaults, without_environment, without_parsers,
};
pub use self::environment::{Environment, nearest};
use super::{
    Cli,
    args::CONFIG,
    error::{ConfigError, Problems},
    file::{self, File},
    values::boolean,
};

/// Maximum length of a value in a report.
const MAX_SHOWN_CHARS: usize = 80;

/// Where a value came from.
#[derive(Clone)]
enum Source {
    Flag,
    Variable(String),
    File { path: PathBuf, line: usize },
}

/// Where the settings of a command came from.
#[derive(Clone, Default)]
pub struct Sources {
    by_flag: BTreeMap<String, Source>,
    /// Variables that set nothing.
    pub unknown_variables: Vec<String>,
}

impl Sources {
    /// The name of a setting as its source spells it, for messages.
    pub fn name(&self, flag: &str) -> String {
        match self.by_flag.get(flag) {
            None | Some(Source::Flag) => format!("--{flag}"),
            Some(Source::Variable(name)) => name.clone(),
            Some(Source::File { path, line }) => {
                format!("{flag} ({})", file::place(path, *line))
            }
        }
    }

    /// The report of settings that contradict each other.
    pub fn report(&self, conflicts: Vec<Conflict>) -> ConfigError {
        let problems = conflicts.into_iter().map(|conflict| conflict.message);
        ConfigError::Settings(Problems {
            problems: problems.collect(),
            notes: self.unknown_variables.clone(),
        })
    }
}

/// Settings that are valid, and contradict each other.
pub struct Conflict {
    /// The flags of the settings.
    pub flags: Vec<&'static str>,
    pub message: String,
}

/// Parses the command line, the environment, and the settings file that one of them names. The first
/// argument is the name of the program, the second one that of the command.
pub fn parse(args: &[OsString], environment: &Environment) -> Result<Cli, ConfigError> {
    let mut report = Report {
        sources: Sources {
            unknown_variables: environment.unknown(),
            ..Sources::default()
        },
        problems: Vec::new(),
        wrong: BTreeSet::new(),
        is_incomplete: false,
    };
    let (matches, args) = report.structure(args)?;
    let Some((name, given)) = matches.subcommand() else {
        return Err(report.end(Cli::command().try_get_matches_from(args).err()));
    };
    let command = Cli::command();
    let command = command.find_subcommand(name).cloned().unwrap_or_default();
    let mut words = Vec::new();
    let mut file = None;
    for arg in command.get_arguments() {
        if arg.get_id() == CONFIG {
            file = report.file(&command, arg, given, environment);
        } else {
            words.extend(report.given(arg, given));
            words.extend(report.variable(arg, given, environment));
        }
    }
    let parse = |words: Vec<OsString>, rest: &[OsString], wrong: &BTreeSet<String>| {
        let command = without_environment(Cli::command());
        let command = match &file {
            Some(file) => with_defaults(command, file, wrong),
            None => command,
        };
        let mut all = args[..2].to_vec();
        all.extend(words);
        all.extend_from_slice(rest);
        command
            .try_get_matches_from(all)
            .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches))
    };
    if report.problems.is_empty() {
        // The variables come ahead of the rest, which may end with `--` and operands.
        let variables = words.into_iter().filter_map(|word| match word {
            Word::Variable(text) => Some(text),
            Word::Flag(_) => None,
        });
        return match parse(variables.collect(), &args[2..], &report.wrong) {
            Ok(cli) => Ok(Cli {
                sources: report.sources,
                ..cli
            }),
            Err(error) => Err(report.end(Some(error))),
        };
    }
    // The valid settings may contradict each other.
    let words = words.into_iter().map(|word| match word {
        Word::Variable(text) | Word::Flag(text) => text,
    });
    let cli = parse(words.collect(), &[], &report.wrong);
    if let Ok(cli) = cli
        && !report.is_incomplete
    {
        let conflicts = cli.command.conflicts(&report.sources).into_iter();
        let of_right_settings = conflicts.filter(|conflict| {
            let mut flags = conflict.flags.iter();
            !flags.any(|flag| report.wrong.contains(*flag))
        });
        report
            .problems
            .extend(of_right_settings.map(|conflict| conflict.message));
    }
    Err(report.end(None))
}

/// A valid value as an argument.
enum Word {
    Flag(OsString),
    Variable(OsString),
}

/// The sources of the settings, and the problems that were found.
struct Report {
    sources: Sources,
    problems: Vec<String>,
    /// The flags of the settings that are wrong.
    wrong: BTreeSet<String>,
    /// Whether other settings may be missing, because an argument or the file can't be read.
    is_incomplete: bool,
}

impl Report {
    /// Splits the arguments into flags and operands, and removes those that don't exist.
    fn structure(&mut self, args: &[OsString]) -> Result<(ArgMatches, Vec<OsString>), ConfigError> {
        let mut args = args.to_vec();
        let raw = without_parsers(Cli::command());
        loop {
            let error = match raw.clone().try_get_matches_from(&args) {
                Ok(matches) => return Ok((matches, args)),
                Err(error) => error,
            };
            if !error.use_stderr() {
                return Err(help(&args, error).into());
            }
            if !self.remove_unknown(&error, &mut args) {
                return Err(self.end(Some(error)));
            }
        }
    }

    /// Records and removes an argument that doesn't exist. Returns whether there was one.
    fn remove_unknown(&mut self, error: &clap::Error, args: &mut Vec<OsString>) -> bool {
        let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else {
            return false;
        };
        let with_value = format!("{unknown}=");
        let is_unknown = |arg: &OsString| {
            let text = arg.to_string_lossy();
            text == *unknown || text.starts_with(&with_value)
        };
        let position = args.iter().skip(2).position(is_unknown);
        let (ErrorKind::UnknownArgument, Some(position)) = (error.kind(), position) else {
            return false;
        };
        let position = position + 2;
        let command = args[1].to_string_lossy().into_owned();
        let mut text = if unknown.starts_with('-') {
            format!("{unknown} isn't an option of `{command}`")
        } else {
            format!("{} is one argument too many", quote(&hide_url(unknown)))
        };
        if let Some(ContextValue::String(nearest)) = error.get(ContextKind::SuggestedArg) {
            let _ = write!(text, ": did you mean {nearest}?");
        }
        self.problems.push(text);
        self.is_incomplete = true;
        let removed = args.remove(position).to_string_lossy().into_owned();
        let may_be_value = |next: &OsString| !next.as_encoded_bytes().starts_with(b"-");
        if removed.starts_with("--")
            && !removed.contains('=')
            && args.get(position).is_some_and(may_be_value)
        {
            args.remove(position);
        }
        true
    }

    /// Checks the values on the command line.
    fn given(&mut self, arg: &Arg, given: &ArgMatches) -> Vec<Word> {
        let id = arg.get_id().as_str();
        if given.value_source(id) != Some(ValueSource::CommandLine) {
            return Vec::new();
        }
        let flag = arg.get_long().unwrap_or_default();
        self.sources.by_flag.insert(flag.to_owned(), Source::Flag);
        if !arg.get_action().takes_values() {
            return vec![Word::Flag(format!("--{flag}").into())];
        }
        let values = given.get_raw(id).into_iter().flatten();
        let mut words = Vec::new();
        for value in values {
            if let Some(problem) = problem_of(arg, value) {
                let place = match arg.get_long() {
                    Some(flag) => format!("--{flag}"),
                    None => id.to_uppercase(),
                };
                let shown = shown(arg, value).map(|value| format!("={value}"));
                self.wrong(arg, &place, shown, &problem);
            } else if !flag.is_empty() {
                words.push(Word::Flag(word(flag, value)));
            }
        }
        words
    }

    /// Checks the value of the variable, unless the command line overrides it.
    fn variable(
        &mut self,
        arg: &Arg,
        given: &ArgMatches,
        environment: &Environment,
    ) -> Option<Word> {
        let (name, value) = environment.get(arg)?;
        let flag = arg.get_long()?;
        if given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            return None;
        }
        let source = Source::Variable(name.to_owned());
        self.sources.by_flag.insert(flag.to_owned(), source);
        if let Some(problem) = problem_of(arg, value) {
            let shown = shown(arg, value).map(|value| format!("={value}"));
            self.wrong(arg, name, shown, &problem);
            return None;
        }
        if arg.get_action().takes_values() {
            return Some(Word::Variable(word(flag, value)));
        }
        let is_set = value.to_str().is_some_and(|text| boolean(text) == Ok(true));
        is_set.then(|| Word::Variable(format!("--{flag}").into()))
    }

    /// Reads the settings file, and checks the values that the command takes.
    fn file(
        &mut self,
        command: &Command,
        config: &Arg,
        given: &ArgMatches,
        environment: &Environment,
    ) -> Option<File> {
        let on_command_line = given.value_source(CONFIG) == Some(ValueSource::CommandLine);
        let (place, path) = match given.get_raw(CONFIG).and_then(|mut values| values.next()) {
            Some(path) if on_command_line => ("--config".to_owned(), path),
            _ => {
                let (name, path) = environment.get(config)?;
                (name.to_owned(), path)
            }
        };
        let path = PathBuf::from(path);
        let file = match file::read(&path) {
            Ok(file) => file,
            Err(error) => {
                let path = path.display();
                let problem =
                    format!("{place}: cannot read the configuration file {path}: {error}");
                self.problems.push(problem);
                self.is_incomplete = true;
                return None;
            }
        };
        if !file.problems.is_empty() {
            self.problems.extend_from_slice(&file.problems);
            self.is_incomplete = true;
        }
        for setting in &file.settings {
            let long = Some(setting.flag.as_str());
            let Some(arg) = command.get_arguments().find(|arg| arg.get_long() == long) else {
                continue;
            };
            let source = Source::File {
                path: path.clone(),
                line: setting.line,
            };
            self.sources.by_flag.insert(setting.flag.clone(), source);
            let value = OsStr::new(&setting.value);
            if let Some(problem) = problem_of(arg, value) {
                let place = file::place(&path, setting.line);
                let key = format!("{place}: {}", setting.key);
                let quote = if setting.is_text { "\"" } else { "" };
                let shown = shown(arg, value).map(|value| format!(" = {quote}{value}{quote}"));
                self.wrong(arg, &key, shown, &problem);
            }
        }
        Some(file)
    }

    /// Records a wrong value. `shown` is the value as text, or `None` if it may hold a password.
    fn wrong(&mut self, arg: &Arg, place: &str, shown: Option<String>, problem: &str) {
        let shown = shown.unwrap_or_default();
        self.problems.push(format!("{place}{shown}: {problem}"));
        match arg.get_long() {
            Some(flag) => {
                self.wrong.insert(flag.to_owned());
            }
            None => self.is_incomplete = true,
        }
    }

    /// The report, with an error of `clap` about arguments that are missing or don't fit together.
    fn end(&mut self, error: Option<clap::Error>) -> ConfigError {
        let notes = std::mem::take(&mut self.sources.unknown_variables);
        let mut problems = std::mem::take(&mut self.problems);
        match error {
            Some(error) if problems.is_empty() && notes.is_empty() => return mask(error).into(),
            Some(error) => problems.push(describe(error)),
            None => {}
        }
        ConfigError::Settings(Problems { problems, notes })
    }
}

fn word(flag: &str, value: &OsStr) -> OsString {
    let mut word = OsString::from(format!("--{flag}="));
    word.push(value);
    word
}

/// Why a value is invalid, without the value.
fn problem_of(arg: &Arg, value: &OsStr) -> Option<String> {
    if !arg.get_action().takes_values() {
        return value.to_str().and_then(|text| boolean(text).err());
    }
    let mut alone = Arg::new("value")
        .long("value")
        .allow_hyphen_values(true)
        .value_parser(arg.get_value_parser().clone());
    if let Some(delimiter) = arg.get_value_delimiter() {
        alone = alone.value_delimiter(delimiter);
    }
    let command = Command::new("setting")
        .no_binary_name(true)
        .disable_help_flag(true)
        .arg(alone);
    let error = command
        .try_get_matches_from([OsStr::new("--value"), value])
        .err()?;
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue) {
        return Some(format!("must be one of {}", values.join(", ")));
    }
    Some(match error.kind() {
        ErrorKind::InvalidUtf8 => "isn't text in UTF-8".to_owned(),
        _ => error
            .source()
            .map_or_else(|| "has no value".to_owned(), ToString::to_string),
    })
}

/// The value, unless it may hold a password.
fn shown(arg: &Arg, value: &OsStr) -> Option<String> {
    if arg.is_hide_env_values_set() {
        return None;
    }
    let value = value.to_string_lossy();
    let mut chars = value.chars();
    let mut text = String::new();
    text.extend(
        chars
            .by_ref()
            .take(MAX_SHOWN_CHARS)
            .flat_map(char::escape_debug),
    );
    if chars.next().is_some() {
        text.push_str("...");
    }
    Some(text)
}
