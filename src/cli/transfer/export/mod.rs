//! `location-service export`: writes the locations that the caller may read to a file.

mod encoder;
mod output;

use std::{
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use location_service::proto::location::v1::{ListLocationsRequest, ListLocationsResponse};
use tokio::task::yield_now;

pub(super) use self::encoder::Encoder;
use self::output::Output;
use super::{
    Compression, FileName, Format, Interrupts, STANDARD_STREAM, TransferError,
    client::{Client, ConnectionArgs},
    fields::Field,
    progress::{Progress, describe_rate},
    values,
};

/// The number of locations of a page: the most that the service returns.
const PAGE_SIZE: i32 = 1000;

/// Yields to the tasks that send the request for the next page, before a page is written: the write
/// blocks their thread.
const YIELDS: usize = 4;

/// Options of `export`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
`location-service import` reads the file unchanged: it creates the same ids and, if the caller is an \
admin, the same owners. It ignores times and etags, which the service sets.

Files that end in .csv, .tsv, .ndjson, .jsonl or .json are written in that format, and compressed if \
.gz or .zst follows. Writes during the export cause neither gaps nor duplicates.

Spreadsheets run cells that begin with =, +, - or @ as formulas. --escape-formulas puts a single quote \
before them; such a file is for people, because an import would take the quote for a part of the text.

Examples:
  location-service export locations.ndjson.zst
  location-service export sites.csv --bom --escape-formulas --columns display_name,capacity,labels.colour
  location-service export --type storage --state active --query dock --format csv | head")]
pub struct ExportArgs {
    /// File to write, which is replaced only when the export is complete; - for stdout
    #[arg(value_name = "FILE", default_value = STANDARD_STREAM)]
    file: PathBuf,

    /// Format of the file [default: by its extension; ndjson for stdout]
    #[arg(long)]
    format: Option<Format>,

    /// Only these fields, in this order, such as `display_name,address.locality,labels.colour`
    /// [default: all fields]
    #[arg(long, value_name = "FIELDS", value_delimiter = ',', num_args = 1..)]
    columns: Vec<Field>,

    /// Only locations of this type: delivery or storage
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
    kind: Option<i32>,

    /// Only locations of this production run; "" for locations without one
    #[arg(long, value_name = "ID")]
    production_run_id: Option<String>,

    /// Only locations of this owner
    #[arg(long, value_name = "SUBJECT")]
    owner_id: Option<String>,

    /// Only locations in this state: active or inactive
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    state: Option<i32>,

    /// Only locations whose name contains this text, case-insensitive
    #[arg(long, value_name = "TEXT")]
    query: Option<String>,

    /// Only locations with this label. Repeatable: all of them are required
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,

    /// Order: `create_time`, `update_time`, `display_name` or `capacity`, with ` desc` to reverse it
    #[arg(long, value_name = "FIELD", default_value = "create_time")]
    order_by: String,

    /// Begins a CSV file with a byte order mark, which Excel needs to read UTF-8
    #[arg(long)]
    bom: bool,

    /// Puts a single quote before CSV cells that spreadsheets would run as formulas
    #[arg(long)]
    escape_formulas: bool,

    #[command(flatten)]
    connection: ConnectionArgs,
}

fn parse_type(text: &str) -> Result<i32, String> {
    parse_enum("type", text)
}

fn parse_state(text: &str) -> Result<i32, String> {
    parse_enum("state", text)
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("has no `=`")?;
    if key.is_empty() {
        return Err("names no key before `=`".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_enum(field: &str, text: &str) -> Result<i32, String> {
    let field: Field = field.parse()?;
    let enumeration = field.enumeration().ok_or("has no values")?;
    values::parse_enum(&enumeration, text)
}

/// The form of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub format: Format,
    pub delimiter: u8,
    pub compression: Option<Compression>,
}

impl ExportArgs {
    pub(super) fn form(&self) -> Result<Form, TransferError> {
        let path = &self.file;
        let name = FileName::of(path);
        let usage = |text| Err(TransferError::Usage(text));
        if let Some(Compression::Other { .. }) = name.compression {
            return usage(format!(
                "{} names a compression that isn't supported: use .gz or .zst",
                path.display()
            ));
        }
        let is_named = path.extension().is_some();
        let format = match (self.format, name.format) {
            (Some(format), Some(named)) if format != named => {
                return usage(format!(
                    "--format {0} contradicts the extension of {1}: use .{0}, or leave --format out",
                    format.extension(),
                    path.display()
                ));
            }
            (Some(format), _) | (None, Some(format)) => format,
            (None, None) if !is_named => Format::Ndjson,
            (None, None) => {
                return usage(format!(
                    "the extension of {} names no format: use .csv, .tsv, .ndjson, .jsonl or .json, \
                     perhaps with .gz or .zst, or set --format csv or --format ndjson",
                    path.display()
                ));
            }
        };
        if format == Format::Ndjson && (self.bom || self.escape_formulas) {
            return usage(
                "--bom and --escape-formulas are for CSV, but the format is NDJSON".to_owned(),
            );
        }
        if format == Format::Ndjson && self.columns.iter().any(|field| field.key().is_some()) {
            return usage("--columns labels.KEY is for CSV: use labels".to_owned());
        }
        let repeated = self.label.iter().enumerate().find(|(index, (key, value))| {
            let before = &self.label[..*index];
            before
                .iter()
                .any(|(other, text)| other == key && text != value)
        });
        if let Some((_, (key, _))) = repeated {
            return usage(format!(
                "--label {key} is given with two values, but a label has one: remove one"
            ));
        }
        Ok(Form {
            format,
            delimiter: name.delimiter.unwrap_or(b','),
            compression: name.compression,
        })
    }

    pub(super) fn encoder(&self, form: Form) -> Encoder {
        Encoder::new(form, self.columns.clone(), self.bom, self.escape_formulas)
    }
}

/// The result of an export.
#[derive(Debug)]
pub struct ExportSummary {
    written: u64,
    elapsed: Duration,
    /// Cells that spreadsheets run as formulas.
    formulas: u64,
}

impl fmt::Display for ExportSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in {:.1?} exported",
            describe_rate(self.written, self.elapsed),
            self.elapsed
        )?;
        if self.formulas > 0 {
            write!(
                f,
                "\n{} cells begin with =, +, - or @, which a spreadsheet runs as formulas: for \
                 spreadsheets use --escape-formulas",
                self.formulas
            )?;
        }
        Ok(())
    }
}

/// Exports to a file or to stdout, and shows the progress on stderr. If it fails, the file is as it
/// was before.
pub async fn export(args: ExportArgs) -> Result<ExportSummary, TransferError> {
    let form = args.form()?;
    let mut encoder = args.encoder(form);
    let client = Client::connect(&args.connection).await?;
    let request = ListLocationsRequest {
        page_size: PAGE_SIZE,
        r#type: args.kind.unwrap_or_default(),
        production_run_id: args.production_run_id,
        owner_id: args.owner_id.unwrap_or_default(),
        state: args.state.unwrap_or_default(),
        query: args.query.unwrap_or_default(),
        labels: args.label.into_iter().collect(),
        // By default, locations that are created during the export come last, so it includes them.
        order_by: args.order_by,
        ..ListLocationsRequest::default()
    };

    if args.file == Path::new(STANDARD_STREAM) {
        // A signal ends the process: there is nothing to clean up, and a write may block forever.
        return write_pages(&client, request, &mut encoder, &mut io::stdout())
            .await
            .map_err(|error| error.in_file(&args.file));
    }

    let mut interrupts = Interrupts::listen()?;
    let mut output = Output::create(&args.file, form.compression)?;
    let written = tokio::select! {
        written = write_pages(&client, request, &mut encoder, &mut output) => written,
        () = interrupts.next() => return Err(TransferError::Interrupted),
    };
    let summary = written.map_err(|error| error.in_file(&args.file))?;
    output.keep()?;
    Ok(summary)
}

/// Why pages weren't written.
enum PagesError {
    Transfer(TransferError),
    Write(io::Error),
}

impl PagesError {
    fn in_file(self, path: &Path) -> TransferError {
        match self {
            Self::Transfer(error) => error,
            Self::Write(cause) => TransferError::Write {
                path: path.to_owned(),
                cause,
            },
        }
    }
}

impl From<TransferError> for PagesError {
    fn from(error: TransferError) -> Self {
        Self::Transfer(error)
    }
}

/// Writes page after page, until the last one or until the reader of stdout closes it.
async fn write_pages(
    client: &Client,
    request: ListLocationsRequest,
    encoder: &mut Encoder,
    output: &mut impl Write,
) -> Result<ExportSummary, PagesError> {
    let mut progress = Progress::start(None);
    let mut written = 0;
    let mut buffer = encoder.header();
    let mut page = list(client, request.clone()).await?;
    loop {
        let is_last = page.next_page_token.is_empty();
        // The next page is fetched while this one is written.
        let next = (!is_last).then(|| {
            let request = ListLocationsRequest {
                page_token: std::mem::take(&mut page.next_page_token),
                ..request.clone()
            };
            let client = client.clone();
            tokio::spawn(async move { list(&client, request).await })
        });
        for _ in 0..YIELDS {
            yield_now().await;
        }
        for location in &page.locations {
            encoder.append(location, &mut buffer)?;
        }
        let result = output
            .write_all(&buffer)
            .and_then(|()| if is_last { output.flush() } else { Ok(()) });
        let is_closed = match result {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => true,
            Err(error) => return Err(PagesError::Write(error)),
        };
        let count = page.locations.len() as u64;
        written += count;
        progress.advance(count, buffer.len() as u64);
        buffer.clear();
        match next {
            Some(next) if !is_closed => {
                page = next
                    .await
                    .map_err(|error| TransferError::Internal(error.to_string()))??;
            }
            _ => {
                return Ok(ExportSummary {
                    written,
                    elapsed: progress.finish(),
                    formulas: encoder.formulas(),
                });
            }
        }
    }
}

async fn list(
    client: &Client,
    request: ListLocationsRequest,
) -> Result<ListLocationsResponse, TransferError> {
    client
        .call(
            || request.clone(),
            |mut service, request| async move { service.list_locations(request).await },
        )
        .await
        .map_err(|status| TransferError::call("ListLocations", status))
}
