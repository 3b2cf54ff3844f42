//! `location-service export`: writes the locations that the caller may read to a file.

mod output;

use std::{
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use location_service::proto::location::v1::{
    ListLocationsRequest, ListLocationsResponse, Location,
};
use prost_reflect::DynamicMessage;

use self::output::Output;
use super::{
    Compression, Format, Interrupts, STANDARD_STREAM, TransferError,
    client::{Client, ConnectionArgs},
    csv,
    fields::{self, Field},
    json,
    progress::{Progress, describe_rate},
};

/// The number of locations of a page: the most that the service returns.
const PAGE_SIZE: i32 = 1000;

/// Options of `export`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
`location-service import` reads the file unchanged: it creates the same ids and, if the caller is an \
admin, the same owners. It ignores times and etags, which the service sets.

Writes during the export cause neither gaps nor duplicates.

Examples:
  location-service export locations.ndjson
  location-service export --type storage --format csv | head")]
pub struct ExportArgs {
    /// File to write, which is replaced only when the export is complete; - for stdout
    #[arg(value_name = "FILE", default_value = STANDARD_STREAM)]
    file: PathBuf,

    /// Format of the file [default: by its extension; ndjson if it has none]
    #[arg(long)]
    format: Option<Format>,

    /// Only locations of this type: delivery or storage
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
    kind: Option<i32>,

    /// Only locations of this production run; "" for locations without one
    #[arg(long, value_name = "ID")]
    production_run_id: Option<String>,

    /// Only locations of this owner
    #[arg(long, value_name = "SUBJECT")]
    owner_id: Option<String>,

    #[command(flatten)]
    connection: ConnectionArgs,
}

fn parse_type(text: &str) -> Result<i32, String> {
    let field: Field = "type".parse()?;
    let enumeration = field.enumeration().ok_or("has no values")?;
    fields::parse_enum(&enumeration, text)
}

impl ExportArgs {
    pub(super) fn format(&self) -> Result<Format, TransferError> {
        let path = &self.file;
        if let Some(compression) = Compression::of(path) {
            return Err(TransferError::Usage(format!(
                "an export isn't compressed: run location-service export - --format csv | {} > {}",
                compression.compress,
                path.display()
            )));
        }
        match self.format.or_else(|| Format::guess(path)) {
            Some(format) => Ok(format),
            None if path.extension().is_none() => Ok(Format::Ndjson),
            None => Err(TransferError::Usage(format!(
                "the extension of {} names no format: set --format csv or --format ndjson",
                path.display()
            ))),
        }
    }
}

/// The result of an export.
#[derive(Debug)]
pub struct ExportSummary {
    written: u64,
    elapsed: Duration,
}

impl fmt::Display for ExportSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in {:.1?} exported",
            describe_rate(self.written, self.elapsed),
            self.elapsed
        )
    }
}

/// Exports to a file or to stdout, and shows the progress on stderr. If it fails, the file is as it
/// was before.
pub async fn export(args: ExportArgs) -> Result<ExportSummary, TransferError> {
    let encoder = Encoder::new(args.format()?);
    let client = Client::connect(&args.connection).await?;
    let request = ListLocationsRequest {
        page_size: PAGE_SIZE,
        r#type: args.kind.unwrap_or_default(),
        production_run_id: args.production_run_id,
        owner_id: args.owner_id.unwrap_or_default(),
        // Locations that are created during the export come last, so it includes them.
        order_by: "create_time".to_owned(),
        ..ListLocationsRequest::default()
    };

    if args.file == Path::new(STANDARD_STREAM) {
        // A signal ends the process: there is nothing to clean up, and a write may block forever.
        return write_pages(&client, request, &encoder, &mut io::stdout())
            .await
            .map_err(|error| error.in_file(&args.file));
    }

    let mut interrupts = Interrupts::listen()?;
    let mut output = Output::create(&args.file)?;
    let written = tokio::select! {
        written = write_pages(&client, request, &encoder, &mut output.file) => written,
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

/// Writes page after page, until the last one or until the reader of stdout closes it. The writes
/// block the thread, which has nothing else to do.
async fn write_pages(
    client: &Client,
    mut request: ListLocationsRequest,
    encoder: &Encoder,
    output: &mut impl Write,
) -> Result<ExportSummary, PagesError> {
    let mut progress = Progress::start(None);
    let mut written = 0;
    let mut buffer = encoder.header()?;
    loop {
        let page = list(client, request.clone()).await?;
        for location in &page.locations {
            encoder.append(location, &mut buffer)?;
        }
        let is_last = page.next_page_token.is_empty();
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
        if is_last || is_closed {
            return Ok(ExportSummary {
                written,
                elapsed: progress.finish(),
            });
        }
        request.page_token = page.next_page_token;
    }
}

async fn list(
    client: &Client,
    request: ListLocationsRequest,
) -> Result<ListLocationsResponse, TransferError> {
    client
        .call(request, |mut service, request| async move {
            service.list_locations(request).await
        })
        .await
        .map_err(|status| TransferError::Call {
            method: "ListLocations",
            status: Box::new(status),
        })
}

/// Encodes locations in a format.
pub(super) enum Encoder {
    Csv(csv::Encoder),
    Ndjson,
}

impl Encoder {
    pub(super) fn new(format: Format) -> Self {
        match format {
            Format::Csv => Self::Csv(csv::Encoder::new()),
            Format::Ndjson => Self::Ndjson,
        }
    }

    /// The start of a file.
    pub(super) fn header(&self) -> Result<Vec<u8>, TransferError> {
        let mut out = Vec::new();
        if let Self::Csv(encoder) = self {
            encoder.write_header(&mut out)?;
        }
        Ok(out)
    }

    /// Appends a row.
    pub(super) fn append(
        &self,
        location: &Location,
        out: &mut Vec<u8>,
    ) -> Result<(), TransferError> {
        let mut message = DynamicMessage::new(fields::descriptor().clone());
        message
            .transcode_from(location)
            .map_err(|error| TransferError::Internal(error.to_string()))?;
        match self {
            Self::Csv(encoder) => encoder.write(&message, out),
            Self::Ndjson => json::write(&message, out),
        }
    }
}
