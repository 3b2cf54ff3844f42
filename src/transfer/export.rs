//! `location-service export`: all that the caller may see becomes a file.

use std::{
    fmt,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use super::{
    Client, ConnectionArgs, Format, Interrupts, STANDARD_STREAM, TransferError,
    progress::{Progress, describe_rate},
    rows::{Field, Json, parse_type},
};
use crate::proto::location::v1::{
    ListLocationsRequest, ListLocationsResponse, Location, LocationType,
};

/// How many locations a page has: what the service answers at most.
const PAGE_SIZE: i32 = 1000;

/// Writes down all locations that the caller may see, through any running service.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
`location-service import` takes the file back unchanged: the same ids and, if an admin imports it, \
the same owners. Times and etags are the service's and aren't taken back.

Locations that are written meanwhile cause no gap and no repeat.

Examples:
  location-service export locations.ndjson
  location-service export --type storage --format csv | head")]
pub struct ExportArgs {
    /// The file to write, kept only when it is complete; - for standard output
    #[arg(value_name = "FILE", default_value = STANDARD_STREAM)]
    pub file: PathBuf,

    /// What to write [default: what the file's extension says, or ndjson]
    #[arg(long)]
    pub format: Option<Format>,

    /// Only locations of this type: delivery or storage
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
    kind: Option<LocationType>,

    /// Only locations of this production run; "" for those without one
    #[arg(long, value_name = "ID")]
    pub production_run_id: Option<String>,

    /// Only locations of this owner
    #[arg(long, value_name = "SUBJECT")]
    pub owner_id: Option<String>,

    /// Which service to export from.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// What an export did.
#[derive(Debug)]
pub struct ExportSummary {
    /// How many locations were written.
    pub written: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether the reader of standard output closed it before the end.
    pub closed: bool,
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

/// Exports to a file, or to standard output, showing progress on standard error.
///
/// # Errors
/// What goes wrong. A file is then as it was before.
pub async fn export(args: ExportArgs) -> Result<ExportSummary, TransferError> {
    let format = args
        .format
        .or_else(|| Format::guess(&args.file))
        .unwrap_or(Format::Ndjson);
    let encoder = Encoder::new(format)?;
    let client = Client::connect(&args.connection).await?;
    let request = ListLocationsRequest {
        page_size: PAGE_SIZE,
        r#type: args.kind.unwrap_or_default().into(),
        production_run_id: args.production_run_id,
        owner_id: args.owner_id.unwrap_or_default(),
        // What is created meanwhile comes last, so that the export has it too.
        order_by: "create_time".to_owned(),
        ..ListLocationsRequest::default()
    };

    if args.file == Path::new(STANDARD_STREAM) {
        // No signal is listened to: there is nothing to tidy up, and writing may block for ever.
        return write_pages(&client, request, &encoder, &mut io::stdout())
            .await
            .map_err(|cause| cause.of(&args.file));
    }

    let mut interrupts = Interrupts::listen()?;
    let mut output = Output::create(&args.file)?;
    let written = tokio::select! {
        written = write_pages(&client, request, &encoder, &mut output.file) => written,
        () = interrupts.next() => return Err(TransferError::Interrupted),
    };
    let summary = written.map_err(|cause| cause.of(&args.file))?;
    output.keep()?;
    Ok(summary)
}

/// Why pages weren't written.
enum PagesError {
    Transfer(TransferError),
    Write(io::Error),
}

impl PagesError {
    fn of(self, path: &Path) -> TransferError {
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

/// Writes page after page. Blocks while it writes, which only this task waits for.
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
        let last = page.next_page_token.is_empty();
        let result = output
            .write_all(&buffer)
            .and_then(|()| if last { output.flush() } else { Ok(()) });
        let closed = match result {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => true,
            Err(error) => return Err(PagesError::Write(error)),
        };
        let count = page.locations.len() as u64;
        written += count;
        progress.advance(count, buffer.len() as u64);
        buffer.clear();
        if last || closed {
            return Ok(ExportSummary {
                written,
                elapsed: progress.finish(),
                closed,
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

/// Writes locations down in a format.
enum Encoder {
    Csv,
    Ndjson(Json),
}

impl Encoder {
    fn new(format: Format) -> Result<Self, TransferError> {
        Ok(match format {
            Format::Csv => Self::Csv,
            Format::Ndjson => Self::Ndjson(Json::new()?),
        })
    }

    /// What a file begins with.
    fn header(&self) -> Result<Vec<u8>, TransferError> {
        let mut out = Vec::new();
        if let Self::Csv = self {
            append_record(Field::COLUMNS.iter().map(ToString::to_string), &mut out)?;
        }
        Ok(out)
    }

    /// Appends a row.
    fn append(&self, location: &Location, out: &mut Vec<u8>) -> Result<(), TransferError> {
        match self {
            Self::Csv => {
                let cells: Result<Vec<_>, _> = Field::COLUMNS
                    .iter()
                    .map(|field| field.get(location))
                    .collect();
                let cells = cells.map_err(|error| TransferError::Internal(error.to_string()))?;
                append_record(cells.into_iter(), out)
            }
            Self::Ndjson(json) => json.write(location, out),
        }
    }
}

fn append_record(
    cells: impl Iterator<Item = String>,
    out: &mut Vec<u8>,
) -> Result<(), TransferError> {
    let mut writer = csv::Writer::from_writer(out);
    writer
        .write_record(cells.map(String::into_bytes))
        .and_then(|()| Ok(writer.flush()?))
        .map_err(|error| TransferError::Internal(error.to_string()))
}

/// A file that takes its name when it is complete, and goes away if it never is.
struct Output {
    file: BufWriter<File>,
    /// The temporary name and the final one, of a regular file.
    names: Option<(PathBuf, PathBuf)>,
}

impl Output {
    fn create(path: &Path) -> Result<Self, TransferError> {
        let write_error = |cause| TransferError::Write {
            path: path.to_owned(),
            cause,
        };
        // A device or a pipe is written to, not replaced.
        let is_special = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
        if is_special {
            let file = File::options()
                .write(true)
                .open(path)
                .map_err(write_error)?;
            return Ok(Self {
                file: BufWriter::new(file),
                names: None,
            });
        }
        // A link stays one.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{}.partial", process::id()));
        let temporary = PathBuf::from(temporary);
        let file = File::create(&temporary).map_err(write_error)?;
        Ok(Self {
            file: BufWriter::new(file),
            names: Some((temporary, path)),
        })
    }

    /// Gives the file its name, once its content is on the disk.
    fn keep(mut self) -> Result<(), TransferError> {
        let Some((temporary, path)) = &self.names else {
            return Ok(());
        };
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(temporary, path))
            .map_err(|cause| TransferError::Write {
                path: path.clone(),
                cause,
            })?;
        self.names = None;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.names {
            // Nothing is left to do about it: the error that brought us here is the one to report.
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::rows::tests::full, *};

    #[test]
    fn csv_has_a_column_a_field() {
        let encoder = Encoder::new(Format::Csv).unwrap();
        let mut out = encoder.header().unwrap();
        encoder.append(&full(), &mut out).unwrap();
        let mut reader = csv::Reader::from_reader(out.as_slice());
        let header = reader.headers().unwrap().clone();
        assert_eq!(
            header.iter().collect::<Vec<_>>().join(","),
            "id,type,display_name,production_run_id,owner_id,address.address_lines,\
             address.locality,address.administrative_area,address.postal_code,\
             address.region_code,coordinates.latitude,coordinates.longitude,capacity,state,\
             description,labels,create_time,update_time,etag"
        );
        let row = reader.records().next().unwrap().unwrap();
        let cell = |name| &row[header.iter().position(|column| column == name).unwrap()];
        assert_eq!(cell("type"), "LOCATION_TYPE_STORAGE");
        assert_eq!(cell("labels"), r#"{"\"":"\n","a.b":"c=d","naïve":""}"#);
        assert_eq!(cell("create_time"), "2023-11-14T22:13:20.123456Z");
    }

    #[test]
    fn a_file_is_replaced_only_when_the_new_one_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.csv");
        let files = || fs::read_dir(dir.path()).unwrap().count();
        fs::write(&path, "old").unwrap();

        let mut output = Output::create(&path).unwrap();
        output.file.write_all(b"new").unwrap();
        assert_eq!(files(), 2);
        drop(output);
        assert_eq!(
            (fs::read_to_string(&path).unwrap().as_str(), files()),
            ("old", 1)
        );

        let mut output = Output::create(&path).unwrap();
        output.file.write_all(b"new").unwrap();
        output.keep().unwrap();
        assert_eq!(
            (fs::read_to_string(&path).unwrap().as_str(), files()),
            ("new", 1)
        );
    }

    #[test]
    fn a_link_and_a_device_stay_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("out"), dir.path().join("link"));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut output = Output::create(&link).unwrap();
        output.file.write_all(b"new").unwrap();
        output.keep().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");

        let output = Output::create(Path::new("/dev/null")).unwrap();
        assert!(output.names.is_none());
    }
}
