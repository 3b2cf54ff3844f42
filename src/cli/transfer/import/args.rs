//! The arguments of `import`, and those that it shares with `delete`.

use std::path::PathBuf;

use clap::Args;
use encoding_rs::Encoding;
use uuid::Uuid;

use super::input;
use crate::cli::transfer::{
    Format, STANDARD_STREAM, TransferError,
    client::ConnectionArgs,
    fields::{Constant, Field, Mapping, MappingSource},
    ids,
    numbers::NumberStyle,
    row::RowRules,
};

/// Options of `import`.
#[allow(
    clippy::doc_markdown,
    reason = "the comments are the help, where backticks don't belong"
)]
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Every row is created, compared with the location that has its id, or rejected. The summary counts the \
rows that were created, updated (--update), unchanged (exists and is equal), different (exists, differs, \
left alone) and rejected. The exit code is 0 only if every row of the file is in the service as the \
file has it. Rejected rows go to a file of the same format, which can be corrected and imported.

An import that runs again creates nothing twice. Rows without an id are recognized by line and content.

Names of columns are compared without case, spaces, underscores and hyphens; white space around cells \
is removed. An empty cell or null leaves a field unset, and is compared as such; fields that the file \
doesn't have are left alone. Thousands may be separated, and UK is read as GB. Files in gzip or zstd \
are decompressed, .tsv has tabs. JSON is read as one object per line, as indented objects or as one \
array; with --map, keys that aren't mapped and are no fields are ignored.

Examples:
  location-service import depots.ndjson
  location-service import sites.csv --dry-run --verbose
  location-service import cities.csv.gz \\
      --set type=storage --map capacity=population --id-from geoname_id
  location-service import adressen.csv --encoding windows-1252 --decimal-comma \\
      --set type=delivery --map display_name=Name --map coordinates.latitude=Breite \\
      --map coordinates.longitude=Länge --id-from Nr --id-namespace adressen
  location-service import cities.json --set type=storage --map display_name=name \\
      --map coordinates.latitude=geo.lat --map coordinates.longitude=geo.lng")]
pub struct ImportArgs {
    /// File to read; - for stdin
    #[arg(value_name = "FILE", default_value = STANDARD_STREAM)]
    pub(in crate::cli::transfer) file: PathBuf,

    /// Reads numbers with decimal commas, such as 48,85 and 1.234
    #[arg(long)]
    pub(in crate::cli::transfer) decimal_comma: bool,

    /// Reads a field from a CSV column, or from a key of JSON rows such as geo.lat or lines.0; text
    /// in double quotes stands for itself. Fields are paths such as display_name,
    /// address.region_code or labels.KEY. A column with the name of a field needs no mapping.
    /// Repeatable: several columns of a list such as address.address_lines are its elements
    #[arg(long, value_name = "FIELD=COLUMN", value_parser = parse_mapping)]
    pub(in crate::cli::transfer) map: Vec<Mapping>,

    /// Sets a field of every row, and overrides the file. Repeatable
    #[arg(long, value_name = "FIELD=VALUE", value_parser = parse_constant)]
    pub(in crate::cli::transfer) set: Vec<Constant>,

    /// Updates existing locations that differ from the file, in the fields that the file has
    #[arg(long)]
    pub(in crate::cli::transfer) update: bool,

    #[command(flatten)]
    pub(in crate::cli::transfer) options: FileArgs,

    #[arg(skip)]
    pub(in crate::cli::transfer) purpose: Purpose,
}

/// The operation on the rows of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Their locations are created, compared or updated.
    #[default]
    Import,
    /// The locations with their ids are deleted.
    Delete,
}

impl Purpose {
    /// The command, up to the name of its file.
    pub(super) fn command(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Delete => "delete --from",
        }
    }
}

/// Options of the commands that read a file.
#[allow(
    clippy::doc_markdown,
    reason = "the comments are the help, where backticks don't belong"
)]
#[derive(Debug, Clone, Args)]
pub struct FileArgs {
    /// Format of the file [default: by its extension]
    #[arg(long)]
    pub(super) format: Option<Format>,

    /// Delimiter of a CSV file: one ASCII character, or `tab` [default: a line `sep=`, otherwise
    /// guessed from the header]
    #[arg(long, value_name = "CHARACTER", value_parser = parse_delimiter)]
    pub(super) delimiter: Option<u8>,

    /// Encoding of the file: UTF-8, UTF-16LE, UTF-16BE, windows-1252 or another label of the WHATWG
    /// Encoding Standard. A byte order mark overrides it [default: UTF-8]
    #[arg(long, value_name = "NAME", value_parser = input::parse_encoding)]
    pub(super) encoding: Option<&'static Encoding>,

    /// Derives ids from a CSV column, or from a key of JSON rows: each is the UUIDv5 of the value
    /// in the namespace 2687012b-4479-55e8-ac73-e435775c7324. Without it, the column or key `id` is
    /// the id
    #[arg(long, value_name = "COLUMN")]
    pub(super) id_from: Option<String>,

    /// Scopes the ids of --id-from: equal keys of files with different namespaces are different
    /// locations. The namespace of ids is then the UUIDv5 of NAME in that of --id-from
    #[arg(long, value_name = "NAME")]
    pub(super) id_namespace: Option<String>,

    /// Validates everything and writes nothing to the service: the summary and the rejects file are
    /// those that an import would have
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Prints the result of each row to stdout
    #[arg(long)]
    pub(super) verbose: bool,

    /// Maximum number of rows per call
    #[arg(long, value_name = "ROWS", default_value_t = 1000,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) batch_size: u16,

    /// Maximum number of calls in flight
    #[arg(long, value_name = "CALLS", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) in_flight: u16,

    /// File for rejected rows, each with its line and the reason. An existing one is removed first;
    /// created only if a row is rejected [default: FILE.rejects.csv or FILE.rejects.ndjson]
    #[arg(long, value_name = "FILE")]
    pub(super) rejects: Option<PathBuf>,

    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
}

impl ImportArgs {
    pub(super) fn style(&self) -> NumberStyle {
        NumberStyle {
            decimal_comma: self.decimal_comma,
        }
    }

    pub(super) fn namespace(&self) -> Uuid {
        ids::namespace(self.options.id_namespace.as_deref())
    }

    /// Checks the options that depend on each other.
    pub(super) fn check(&self) -> Result<(), TransferError> {
        let usage = |text| Err(TransferError::Usage(text));
        if self.options.id_namespace.is_some() && self.options.id_from.is_none() {
            return usage("--id-namespace scopes the ids of --id-from: set both".to_owned());
        }
        let single = |field: &&Field| !field.is_list() && !field.is_map();
        let mapped: Vec<_> = self.map.iter().map(|mapping| &mapping.field).collect();
        let constants: Vec<_> = self.set.iter().map(|constant| &constant.field).collect();
        for (fields, flag) in [(&mapped, "--map"), (&constants, "--set")] {
            for (index, field) in fields.iter().enumerate() {
                if single(field) && fields[..index].contains(field) {
                    return usage(format!(
                        "{flag} {field} is given twice, but it has a single value: remove one"
                    ));
                }
            }
        }
        if let Some(field) = mapped.iter().find(|field| constants.contains(field)) {
            return usage(format!(
                "--map {field} and --set {field} are both given: remove one"
            ));
        }
        self.rules().map(drop)
    }

    /// The options that apply to every row.
    pub(super) fn rules(&self) -> Result<RowRules, TransferError> {
        RowRules::new(self.set.clone(), self.style(), self.namespace())
    }
}

fn parse_delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        _ if text.eq_ignore_ascii_case("tab") || text == "\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n') => Ok(*byte),
        _ => Err("must be one ASCII character other than a quote, or `tab`".to_owned()),
    }
}

fn parse_assignment(text: &str) -> Result<(Field, &str), String> {
    let (field, value) = text.split_once('=').ok_or("has no `=`")?;
    let field: Field = field.parse()?;
    if field.is_output_only() {
        return Err(format!("{field} is set by the service"));
    }
    Ok((field, value))
}

fn parse_mapping(text: &str) -> Result<Mapping, String> {
    let (field, column) = parse_assignment(text)?;
    if field.is_id() {
        return Err("an id comes from the column `id`, or from --id-from".to_owned());
    }
    let quoted = column
        .strip_prefix('"')
        .and_then(|column| column.strip_suffix('"'));
    let source = match quoted {
        Some(text) if !text.is_empty() => MappingSource::Text(text.to_owned()),
        _ if column.is_empty() => return Err("names no column after `=`".to_owned()),
        _ => MappingSource::Column(column.to_owned()),
    };
    Ok(Mapping { field, source })
}

fn parse_constant(text: &str) -> Result<Constant, String> {
    let (field, value) = parse_assignment(text)?;
    if field.is_id() {
        return Err("an id belongs to one location: use --id-from, or an id column".to_owned());
    }
    if value.is_empty() {
        return Err(format!("{field} has no value after `=`"));
    }
    // The style of the file is known later.
    let styles = [true, false].map(|decimal_comma| NumberStyle { decimal_comma });
    if styles
        .iter()
        .all(|style| field.parse(value, *style).is_err())
    {
        let error = field.parse(value, NumberStyle::default()).err();
        return Err(format!("{field} {}", error.unwrap_or_default()));
    }
    let value = value.to_owned();
    Ok(Constant { field, value })
}
