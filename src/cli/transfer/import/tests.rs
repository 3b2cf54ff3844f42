//! Tests of reading, splitting and rejecting rows.

use std::fs;

use location_service::proto::location::v1::CreateLocationRequest;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::{
    reader::{MAX_ROW_BYTES, Raw, Reject, Row},
    send::{parse_ranges, split},
    *,
};

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    args: ImportArgs,
}

fn args(arguments: &[&str]) -> ImportArgs {
    try_args(arguments).unwrap()
}

fn try_args(arguments: &[&str]) -> Result<ImportArgs, String> {
    use clap::Parser as _;
    Command::try_parse_from(["import"].iter().chain(arguments))
        .map(|command| command.args)
        .map_err(|error| error.to_string())
}

/// The rows of a file with this content, in a temporary folder.
fn rows(name: &str, content: &[u8], arguments: &[&str]) -> (Rows, ImportArgs, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    let args = args(&[&[path.to_str().unwrap()], arguments].concat());
    let rows = Rows::new(Input::open(&args).unwrap(), &args).unwrap();
    (rows, args, dir)
}

fn names(batch: &Batch) -> Vec<(u64, &str)> {
    batch
        .rows
        .iter()
        .map(|row| {
            (
                row.line,
                row.request.location.as_ref().unwrap().display_name.as_str(),
            )
        })
        .collect()
}

fn reasons(rejects: &[Reject]) -> Vec<(u64, &str)> {
    rejects
        .iter()
        .map(|reject| (reject.line, reject.reason.as_str()))
        .collect()
}

const STORAGE: [&str; 2] = ["--set", "type=storage"];

#[test]
fn csv_is_read_in_batches_with_line_numbers() {
    let content = b"\xef\xbb\xbfdisplay_name,capacity\n\"A\nB\",1\n\nC,x\nD\nE,5\nF,6\n";
    let with_crlf = String::from_utf8_lossy(content).replace('\n', "\r\n");
    let mut crlf = rows("b.csv", with_crlf.as_bytes(), &STORAGE).0;
    let lines = |batch: &Batch| batch.rows.iter().map(|row| row.line).collect::<Vec<_>>();
    assert_eq!(lines(&crlf.next_batch(3).unwrap()), [2]);
    assert_eq!(lines(&crlf.next_batch(3).unwrap()), [7, 8]);

    let (mut rows, _, _dir) = rows("a.csv", content, &STORAGE);
    let first = rows.next_batch(3).unwrap();
    assert_eq!(names(&first), [(2, "A\nB")]);
    assert_eq!(
        reasons(&first.rejects),
        [
            (5, "capacity must be a whole number, is `x`"),
            (6, "has 1 fields, the header has 2")
        ]
    );
    let second = rows.next_batch(3).unwrap();
    assert_eq!(names(&second), [(7, "E"), (8, "F")]);
    assert_eq!(first.bytes + second.bytes, content.len() as u64);
    assert!(rows.next_batch(3).unwrap().rows.is_empty());
}

#[test]
fn ndjson_is_read_with_line_numbers() {
    let mut content = b"\xef\xbb\xbf{\"displayName\":\"A\"}\r\n\n{\"x\":1}\n\xff\n".to_vec();
    content.extend(vec![b' '; 10]);
    content.extend(vec![b'x'; 3 * MAX_ROW_BYTES]);
    content.extend(b"\n{\"displayName\":\"B\"}");
    let (mut rows, _, _dir) = rows("a.ndjson", &content, &STORAGE);
    let batch = rows.next_batch(10).unwrap();
    assert_eq!(names(&batch), [(1, "A"), (6, "B")]);
    assert_eq!(batch.rejects.len(), 3);
    assert_eq!(batch.rejects[0].line, 3);
    assert_eq!(
        reasons(&batch.rejects[1..]),
        [(4, "isn't UTF-8"), (5, "is longer than 1048576 bytes")]
    );
    assert_eq!(batch.bytes, content.len() as u64);
}

#[test]
fn large_rows_make_small_batches() {
    let content = format!(
        "display_name,description\n{}",
        format!("A,{}\n", "x".repeat(300_000)).repeat(6)
    );
    let (mut rows, _, _dir) = rows("a.csv", content.as_bytes(), &STORAGE);
    assert_eq!(rows.next_batch(500).unwrap().rows.len(), 4);
    assert_eq!(rows.next_batch(500).unwrap().rows.len(), 2);
}

#[test]
fn an_unclosed_quote_ends_the_import_with_its_line() {
    let content = format!("display_name\nA\n\"B\n{}", "C\n".repeat(MAX_ROW_BYTES));
    let (mut rows, _, _dir) = rows("a.csv", content.as_bytes(), &STORAGE);
    let error = rows.next_batch(10).unwrap_err().to_string();
    assert!(error.contains("line 3: the row has more than"), "{error}");
}

#[test]
fn a_repeated_id_is_rejected_with_the_line_of_the_first() {
    let content = b"k,display_name\n1,A\n2,B\n1,C\n";
    let (mut rows, _, _dir) = rows(
        "a.csv",
        content,
        &[&STORAGE[..], &["--id-from", "k"]].concat(),
    );
    let batch = rows.next_batch(10).unwrap();
    assert_eq!(names(&batch), [(2, "A"), (3, "B")]);
    assert!(batch.rejects[0].reason.ends_with("as line 2"));
}

#[test]
fn rejected_csv_rows_can_be_corrected_and_imported() {
    let content = b"display_name,capacity\n\"A, \"\"1\"\"\",x\n";
    let (mut rows, args, _dir) = rows("a.csv", content, &STORAGE);
    let header = rows.header.clone();
    let mut rejects = Rejects::new(&args, header).unwrap();
    rejects.write(&[]).unwrap();
    assert!(!rejects.path.exists());
    let batch = rows.next_batch(10).unwrap();
    rejects.write(&batch.rejects).unwrap();
    rejects.write(&batch.rejects).unwrap();
    assert_eq!(rejects.count, 2);

    let line = "2,\"capacity must be a whole number, is `x`\",\"A, \"\"1\"\"\",x\n";
    let text = fs::read_to_string(&rejects.path).unwrap();
    assert_eq!(
        text,
        format!("reject_line,reject_reason,display_name,capacity\n{line}{line}")
    );
    assert!(rejects.path.ends_with("a.csv.rejects.csv"));
}

#[test]
fn rejected_ndjson_rows_are_written_unchanged() {
    let (mut rows, args, _dir) = rows("a.ndjson", b"{\"x\": \"\\u00e9\"}\n", &[]);
    let mut rejects = Rejects::new(&args, None).unwrap();
    rejects
        .write(&rows.next_batch(10).unwrap().rejects)
        .unwrap();
    let text = fs::read_to_string(&rejects.path).unwrap();
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["line"], 1);
    assert_eq!(line["row"], "{\"x\": \"\\u00e9\"}");
}

#[test]
fn invalid_arguments_are_refused() {
    for (arguments, reason) in [
        (["--set", "type=shed"], "type must be delivery or storage"),
        (["--set", "id=1"], "use --id-from"),
        (["--set", "etag=1"], "set by the service"),
        (["--set", "x=1"], "isn't a field of a location"),
        (["--map", "capacity"], "has no `=`"),
        (["--batch-size", "1001"], "1..=1000"),
        (["--in-flight", "0"], "1..=64"),
    ] {
        let error = try_args(&arguments).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let open = |arguments: &[&str]| Input::open(&args(arguments)).err().unwrap().to_string();
    assert!(open(&["-"]).contains("--format csv or --format ndjson"));
    assert!(open(&["a.csv.gz"]).contains("zcat a.csv.gz |"));
    assert!(open(&["a.ndjson", "--map", "capacity=x"]).contains("--map names CSV columns"));
    assert!(open(&["/nowhere/a.csv"]).contains("cannot read /nowhere/a.csv: No such file"));
    let (_, args, _dir) = rows("a.ndjson", b"", &[]);
    let onto_itself = ImportArgs {
        rejects: Some(args.file.clone()),
        ..args
    };
    assert!(Rejects::new(&onto_itself, None).is_err());
}

fn batch_rows(count: u64) -> Vec<Row> {
    (0..count)
        .map(|line| Row {
            line,
            raw: Raw::Line(Vec::new()),
            request: CreateLocationRequest {
                location_id: format!("id-{line}"),
                ..CreateLocationRequest::default()
            },
        })
        .collect()
}

fn lines(batches: &[Vec<Row>]) -> Vec<Vec<u64>> {
    batches
        .iter()
        .map(|rows| rows.iter().map(|row| row.line).collect())
        .collect()
}

#[test]
fn rows_that_the_service_refuses_are_rejected_with_all_violations() {
    let details = ErrorDetails::with_bad_request(vec![
        FieldViolation::new("requests[1].location.display_name", "is required"),
        FieldViolation::new("requests[1].location_id", "must be a UUID"),
        FieldViolation::new("requests[3].location.address.region_code", "must be a code"),
        FieldViolation::new("requests[9].location.capacity", "names no row"),
        FieldViolation::new("requests", "neither"),
    ]);
    let status = Status::with_error_details(Code::InvalidArgument, "bad", details);
    let mut outcome = Outcome::default();
    let pending = split(&status, batch_rows(5), &mut outcome);
    assert_eq!(
        reasons(&outcome.rejects),
        [
            (1, "display_name is required; id must be a UUID"),
            (3, "address.region_code must be a code")
        ]
    );
    assert_eq!(lines(&pending), [[0, 2, 4]]);
}

#[test]
fn existing_rows_are_counted_and_the_others_are_sent_again() {
    let details = ErrorDetails::with_error_info(
        "ALREADY_EXISTS",
        "location.v1",
        [("indexes".to_owned(), "0-1,3".to_owned())],
    );
    let status = Status::with_error_details(Code::AlreadyExists, "used", details);
    let mut outcome = Outcome::default();
    let mut rows = batch_rows(5);
    rows[3].request.location_id.clear();
    let pending = split(&status, rows, &mut outcome);
    assert_eq!(outcome.existing, 2);
    assert_eq!(reasons(&outcome.rejects), [(3, "used")]);
    assert_eq!(lines(&pending), [[2, 4]]);
}

#[test]
fn a_refusal_that_names_no_row_is_narrowed_down_by_halves() {
    let status = Status::invalid_argument("something is wrong");
    let mut outcome = Outcome::default();
    let mut pending = split(&status, batch_rows(3), &mut outcome);
    assert_eq!(lines(&pending), [vec![1, 2], vec![0]]);
    let last = pending.pop().unwrap();
    split(&status, last, &mut outcome);
    assert_eq!(reasons(&outcome.rejects), [(0, "something is wrong")]);
}

#[test]
fn a_summary_has_the_counts_and_the_next_step() {
    let mut summary = ImportSummary {
        created: 1234,
        without_id: 0,
        existing: 5,
        rejected: 0,
        rejects: "x.rejects.csv".into(),
        elapsed: Duration::from_secs(1),
        is_interrupted: false,
        failure: None,
    };
    assert_eq!(
        summary.to_string(),
        "1,239 rows, 1,239/s in 1.0s: 1,234 created, 5 already existed, 0 rejected"
    );
    assert_eq!(summary.exit_code(), 0);
    summary.without_id = 3;
    assert!(
        summary
            .to_string()
            .contains("created (3 without an id, perhaps by an earlier run), 5")
    );
    summary.rejected = 1;
    assert!(
        summary
            .to_string()
            .ends_with("1 rejected (see x.rejects.csv)")
    );
    assert_eq!(summary.exit_code(), 1);
    summary.is_interrupted = true;
    assert!(
        summary
            .to_string()
            .ends_with("run the same command again: it creates nothing twice")
    );
    assert_eq!(summary.exit_code(), 130);
}

#[test]
fn ranges_are_parsed_within_their_limit() {
    assert_eq!(parse_ranges("0-2,5", 6).unwrap(), [0, 1, 2, 5]);
    assert_eq!(parse_ranges("0", 1).unwrap(), [0]);
    for bad in [
        "",
        "a",
        "3-2",
        "0-6",
        "6",
        "1,",
        "-1",
        "0-18446744073709551615",
    ] {
        assert_eq!(parse_ranges(bad, 6), None, "{bad}");
    }
}
