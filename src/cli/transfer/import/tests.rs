//! Tests of reading, splitting and rejecting rows.

use std::{fmt::Write as _, fs, path::PathBuf};

use location_service::proto::location::v1::Location;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::{
    reader::MAX_ROW_BYTES,
    refusals::{parse_ranges, split},
    rows::{Part, Reject, Row},
    *,
};
use crate::cli::transfer::row::Given;

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    args: ImportArgs,
}

pub fn args(arguments: &[&str]) -> ImportArgs {
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

fn names(part: &Part) -> Vec<(u64, &str)> {
    part.rows
        .iter()
        .map(|row| (row.line, row.location.display_name.as_str()))
        .collect()
}

fn reasons(rejects: &[Reject]) -> Vec<(u64, &str)> {
    rejects
        .iter()
        .map(|reject| (reject.line, reject.reason.as_str()))
        .collect()
}

const STORAGE: [&str; 2] = ["--set", "type=storage"];

/// All rows and rejects of a file.
fn read(name: &str, content: &[u8], arguments: &[&str]) -> Part {
    let (mut rows, _, _dir) = rows(name, content, &[&STORAGE, arguments].concat());
    rows.next_part(10_000).unwrap()
}

#[test]
fn csv_is_read_in_batches_with_line_numbers() {
    let content = "\u{feff}display_name,capacity\n\"A\nB\",1\n\nC,x\nD\nE,5\nF,6\n";
    for end in ["\n", "\r\n", "\r"] {
        let content = content.replace('\n', end);
        let (mut rows, _, _dir) = rows("a.csv", content.as_bytes(), &STORAGE);
        let first = rows.next_part(3).unwrap();
        let name = format!("A{end}B");
        assert_eq!(names(&first), [(2, name.as_str())]);
        assert_eq!(
            reasons(&first.rejects),
            [
                (5, "capacity must be a whole number, is `x`"),
                (6, "has 1 field, the header has 2")
            ]
        );
        let second = rows.next_part(3).unwrap();
        assert_eq!(names(&second), [(7, "E"), (8, "F")]);
        assert_eq!(first.bytes + second.bytes, content.len() as u64);
        assert!(rows.next_part(3).unwrap().rows.is_empty());
        assert_eq!(rows.blank, 1);
    }
}

#[test]
fn ndjson_is_read_with_line_numbers() {
    let mut content = b"\xef\xbb\xbf{\"displayName\":\"A\"}\r\n\n{\"x\":1}\n\xff\n".to_vec();
    content.extend(vec![b' '; 10]);
    content.extend(vec![b'x'; MAX_ROW_BYTES + 1]);
    content.extend(b"\n{\"displayName\":\"B\"}");
    let batch = read("a.ndjson", &content, &[]);
    assert_eq!(names(&batch), [(1, "A"), (6, "B")]);
    assert_eq!(batch.rejects.len(), 3);
    assert_eq!(
        reasons(&batch.rejects),
        [
            (3, "`x` isn't a field of a location"),
            (4, "isn't UTF-8: set --encoding"),
            (5, "is longer than 20971520 bytes")
        ]
    );
    assert_eq!(batch.bytes, content.len() as u64);

    let array = read(
        "a.json",
        b" [\n{\"displayName\":\"A\"},\n\n{\"displayName\":\"B\"}]",
        &[],
    );
    assert_eq!(names(&array), [(2, "A"), (4, "B")]);
}

#[test]
fn a_part_of_a_file_is_divided_into_batches_of_neighbouring_ids() {
    let content = "id,display_name\n3,C\n1,A\nx\n5,E\n2,B\n4,D\n";
    let part = read("a.csv", content.as_bytes(), &["--id-from", "id"]);
    let mut sorted: Vec<_> = part
        .rows
        .iter()
        .map(|row| row.location.id.clone())
        .collect();
    sorted.sort();
    let batches: Vec<_> = part.into_batches(2).collect();
    let ids = |batch: &Batch| -> Vec<String> {
        let rows = batch.rows.iter();
        rows.map(|row| row.location.id.clone()).collect()
    };
    assert_eq!(batches.iter().flat_map(ids).collect::<Vec<_>>(), sorted);
    let shapes = batches.iter();
    let shapes = shapes.map(|batch| (batch.rows.len(), batch.rejects.len(), batch.ends_part));
    assert_eq!(
        shapes.collect::<Vec<_>>(),
        [(2, 0, false), (2, 0, false), (1, 1, true)]
    );
    assert_eq!(batches[2].bytes, content.len() as u64);
}

#[test]
fn large_rows_make_small_batches() {
    let content = format!(
        "display_name,x\n{}",
        format!("A,{}\n", "x".repeat(600_000)).repeat(6)
    );
    let (mut rows, _, _dir) = rows("a.csv", content.as_bytes(), &STORAGE);
    assert_eq!(rows.next_part(500).unwrap().rows.len(), 4);
    assert_eq!(rows.next_part(500).unwrap().rows.len(), 2);
}

#[test]
fn wide_columns_that_are_not_imported_are_no_obstacle() {
    let wide = "x".repeat(MAX_ROW_BYTES / 2);
    let content =
        format!("display_name,geometry,capacity\nA,,1\nB,\"{wide}\",2\nC,{wide},3\nD,,4\n");
    let batch = read("a.csv", content.as_bytes(), &["--batch-size", "1"]);
    assert_eq!(names(&batch), [(2, "A"), (3, "B")]);
    let content = format!("display_name,description\nA,a\nB,{wide}\nC,c\n");
    let (mut rows, _, _dir) = rows("a.csv", content.as_bytes(), &STORAGE);
    let mut batch = rows.next_part(10).unwrap();
    batch.rows.extend(rows.next_part(10).unwrap().rows);
    assert_eq!(names(&batch), [(2, "A"), (4, "C")]);
    assert_eq!(
        reasons(&batch.rejects),
        [(3, "description is longer than 1048576 bytes")]
    );
}

/// The lines of the rows, and of the rejects.
fn lines_of(part: &Part) -> (Vec<u64>, Vec<u64>) {
    (
        part.rows.iter().map(|row| row.line).collect(),
        part.rejects.iter().map(|reject| reject.line).collect(),
    )
}

/// Checks that a file has one row.
fn assert_one_row(name: &str, content: &[u8], arguments: &[&str]) {
    let batch = read(name, content, arguments);
    let shown = String::from_utf8_lossy(content);
    assert!(batch.rejects.is_empty(), "{shown}: {:?}", batch.rejects);
    let [row] = &batch.rows[..] else {
        panic!("{shown}: {:?}", batch.rows)
    };
    assert_eq!(
        (row.location.display_name.as_str(), row.location.capacity),
        ("Aé", 1234),
        "{shown}"
    );
}

#[test]
fn files_of_many_encodings_and_formats_are_read() {
    let utf16 = |text: &str| -> Vec<u8> {
        let units = text.encode_utf16().collect::<Vec<_>>();
        [0xff, 0xfe]
            .into_iter()
            .chain(units.into_iter().flat_map(u16::to_le_bytes))
            .collect()
    };
    let gzip = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let plain = b"display_name,capacity\nA\xc3\xa9,1234\n".to_vec();
    for (name, content, arguments) in [
        ("a.csv", plain.clone(), &[][..]),
        (
            "a.ndjson",
            "{\"displayName\": \" A\u{e9} \", \"capacity\": \" 1234 \"}".into(),
            &[],
        ),
        ("a.csv", gzip(&plain), &[]),
        ("a.csv", zstd::encode_all(&*plain, 0).unwrap(), &[]),
        (
            "a.json",
            "{\n  \"displayName\": \"Aé\",\n  \"capacity\": 1234\n}\n".into(),
            &[],
        ),
        ("a.csv", utf16("display_name;capacity\r\nAé;1234\r\n"), &[]),
        (
            "a.csv",
            utf16("display_name;capacity\r\nAé;1234\r\n")[2..].to_vec(),
            &["--encoding", "UTF-16LE"],
        ),
        ("a.csv.gz", gzip(&plain), &[]),
        ("a.csv.zst", zstd::encode_all(&plain[..], 0).unwrap(), &[]),
        (
            "a.json",
            "[{\"displayName\":\"Aé\",\"capacity\":1234}]".into(),
            &[],
        ),
        (
            "a.json",
            utf16("[{\"displayName\":\"Aé\",\"capacity\":1234}]"),
            &[],
        ),
    ] {
        assert_one_row(name, &content, arguments);
    }
}

#[test]
fn files_of_many_dialects_are_read() {
    for (name, content, arguments) in [
        (
            "a.csv",
            b"\"display\n_name\";capacity\nA\xc3\xa9;1234\n".to_vec(),
            &[][..],
        ),
        (
            "a.csv",
            b"display_name;capacity;\nA\xc3\xa9;1234;\n".to_vec(),
            &[],
        ),
        (
            "a.csv",
            b"display_name\tcapacity\nA\xc3\xa9\t1234".to_vec(),
            &[],
        ),
        (
            "a.tsv",
            b"display_name\tcapacity\nA\xc3\xa9\t1234".to_vec(),
            &[],
        ),
        (
            "a.csv",
            b"display_name|capacity\nA\xc3\xa9|1234".to_vec(),
            &[],
        ),
        (
            "a.csv",
            b"sep=^\r\ndisplay_name^capacity\r\nA\xc3\xa9^1234".to_vec(),
            &[],
        ),
        (
            "a.csv",
            b"\"sep=;\"\ndisplay_name;capacity\nA\xc3\xa9;1234".to_vec(),
            &[],
        ),
        (
            "a.csv",
            b"display_name:capacity\nA\xc3\xa9:1234".to_vec(),
            &["--delimiter", ":"],
        ),
        (
            "a.csv",
            b"Display Name;CAPACITY\nA\xe9;1.234,0\n".to_vec(),
            &["--encoding", "windows-1252", "--decimal-comma"],
        ),
        (
            "a.csv",
            b"display_name,capacity\n,,\n , \nA\xc3\xa9,1234\n,,,\n".to_vec(),
            &[],
        ),
        (
            "a.csv",
            b"\n\ndisplay_name, capacity\n\"A\xc3\xa9\" , \"1234\"\n".to_vec(),
            &[],
        ),
    ] {
        assert_one_row(name, &content, arguments);
    }
}

#[test]
fn invalid_quotes_cost_their_rows_only() {
    for (rest, bad) in [
        ("B,\"5 inch\nC,ok\nD,ok\n", vec![3]),
        ("B,\"5 inch\nC,\"ok\"\nD,ok\n", vec![3]),
        ("B,5\" inch\nC,ok\nD,ok\n", vec![3]),
        ("B,\"5\" inch\nC,ok\nD,ok\n", vec![3]),
        // Closed by the quote of another row: the cells don't fit.
        ("B,\"5 inch\nC,ok\nD\",x\n", vec![3, 5]),
        ("\"B,5 inch\nC\",ok\nD,ok\n", vec![]),
    ] {
        for end in ["\n", "\r\n", "\r"] {
            let content = format!("display_name,description\nA,ok\n{rest}").replace('\n', end);
            let batch = read("a.csv", content.as_bytes(), &[]);
            let (good, rejected) = lines_of(&batch);
            assert_eq!(rejected, bad, "{content:?}: {:?}", reasons(&batch.rejects));
            if !bad.is_empty() {
                let all: Vec<_> = (2..6).filter(|line| !bad.contains(line)).collect();
                assert_eq!(good, all, "{content:?}");
            }
        }
    }
}

#[test]
fn a_repeated_id_is_rejected_with_both_lines() {
    let mut content = String::from("k,display_name\n");
    for number in 0..2_000 {
        writeln!(content, "{},A", number % 500).expect("a string");
    }
    let from = [&STORAGE[..], &["--id-from", "k"]].concat();
    let (mut rows, _, _dir) = rows("a.csv", content.as_bytes(), &from);
    let (mut good, mut rejects) = (0, Vec::new());
    loop {
        let batch = rows.next_part(300).unwrap();
        if batch.is_empty() {
            break;
        }
        good += batch.rows.len();
        rejects.extend(batch.rejects);
    }
    assert_eq!((good, rejects.len()), (500, 1_500));
    let last = &rejects[1_499];
    assert_eq!(last.line, 2_001);
    assert!(
        last.reason.contains("as line 501: line 2001 is left out"),
        "{}",
        last.reason
    );

    // Also with ids of their own, in any case.
    let id = "0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70";
    let content = format!("id,display_name\n{id},A\n{},A\n7,B\n", id.to_uppercase());
    let batch = read("a.csv", content.as_bytes(), &[]);
    assert_eq!(lines_of(&batch), (vec![2], vec![3, 4]));
    assert!(batch.rejects[1].reason.contains("use --id-from id"));

    // Equal rows without ids are rows of their own.
    let batch = read(
        "a.csv",
        b"display_name,capacity\rDock,5\rDock,5\rDock,5\r",
        &[],
    );
    let ids: std::collections::HashSet<_> = batch.rows.iter().map(|row| &row.location.id).collect();
    assert_eq!(ids.len(), 3);
}

fn rejects_of(rows: &Rows, args: &ImportArgs) -> Rejects {
    Rejects::new(args, rows.header.clone(), rows.encoding).unwrap()
}

/// The rejects file of a file, imported with the same arguments.
fn rejects_file(name: &str, content: &[u8], arguments: &[&str]) -> (Vec<u8>, PathBuf) {
    let (mut rows, args, dir) = rows(name, content, arguments);
    let mut rejects = rejects_of(&rows, &args);
    for reject in rows.next_part(100).unwrap().rejects {
        rejects.write(&reject).unwrap();
    }
    rejects.flush().unwrap();
    let file = rejects.path.strip_prefix(dir.path()).unwrap().to_owned();
    (fs::read(&rejects.path).unwrap(), file)
}

#[test]
fn rejected_rows_can_be_corrected_and_imported() {
    let content = b"display_name,capacity\n\"A, \"\"1\"\"\",x\nB\nC,1\nD,\"2\n";
    let (rejected, path) = rejects_file("a.csv", content, &STORAGE);
    assert_eq!(path, PathBuf::from("a.csv.rejects.csv"));
    let text = String::from_utf8(rejected.clone()).unwrap();
    assert_eq!(
        text,
        "reject_line,reject_reason,display_name,capacity\n\
         2,\"capacity must be a whole number, is `x`\",\"A, \"\"1\"\"\",x\n\
         3,\"has 1 field, the header has 2\",B\n\
         5,has a quote that isn't closed,D,\"2\n"
    );
    // As it is, it is rejected for the same reasons, and rejected again without more columns.
    let (again, _) = rejects_file("b.csv", &rejected, &STORAGE);
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.split_once(',').unwrap().1)
        .collect();
    let again = String::from_utf8(again).unwrap();
    let lines_again: Vec<_> = again
        .lines()
        .map(|line| line.split_once(',').unwrap().1)
        .collect();
    assert_eq!(lines_again, lines);
    let corrected = text
        .replace(",x\n", ",7\n")
        .replace(",B\n", ",B,8\n")
        .replace("\"2", "2");
    let batch = read("b.csv", corrected.as_bytes(), &[]);
    assert_eq!(names(&batch), [(2, "A, \"1\""), (3, "B"), (4, "D")]);
    // The row has the id that it would have in the corrected original.
    let original = read(
        "a.csv",
        b"display_name,capacity\n\"A, \"\"1\"\"\",7\nB,8\n",
        &[],
    );
    assert_eq!(batch.rows[0].location.id, original.rows[0].location.id);

    let cells = "\u{feff}display_name;capacity\r\nÉ;x\r\n";
    let utf16: Vec<u8> = cells.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let (rejected, _) = rejects_file("a.csv", &utf16, &STORAGE);
    let batch = read("b.csv", &rejected, &[]);
    assert_eq!(
        reasons(&batch.rejects),
        [(2, "capacity must be a whole number, is `x`")]
    );

    let rows = b"[{\"x\": \"\\u00e9\",\n\"y\":1},\n7,{\"displayName\":\"A\"},{\"displayName\": }]";
    let (rejected, path) = rejects_file("a.json", rows, &STORAGE);
    assert_eq!(path, PathBuf::from("a.json.rejects.ndjson"));
    let text = String::from_utf8(rejected).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(
        lines[0],
        "{\"reject_line\":1,\"reject_reason\":\"`x` isn't a field of a location\",\"x\":\"\\u00e9\",\"y\":1}"
    );
    let batch = read("b.ndjson", text.as_bytes(), &[]);
    assert_eq!(batch.rejects.len(), 3);
    assert_eq!(batch.rejects[1].reason, "isn't a JSON object");
    let corrected = text
        .replace("\"x\":", "\"displayName\":")
        .replace(",\"y\":1", "")
        .replace("\"reject_row\":\"7\"", "\"displayName\":\"7\"")
        .replace("\\\"displayName\\\": }", "\\\"displayName\\\":\\\"C\\\"}");
    let batch = read("b.ndjson", corrected.as_bytes(), &[]);
    assert_eq!(names(&batch), [(1, "é"), (2, "7"), (3, "C")]);
}

#[test]
fn rows_after_the_line_of_a_rejects_file_without_its_reason_are_not_blank() {
    let batch = read("a.csv", b"reject_line,display_name\n3,A\n", &[]);
    assert_eq!(names(&batch), [(2, "A")]);
}

#[test]
fn a_rejects_file_of_an_earlier_run_is_removed_but_never_the_input() {
    let (rows, args, dir) = rows("a.csv", b"display_name\nA\n", &STORAGE);
    let path = dir.path().join("a.csv.rejects.csv");
    fs::write(&path, "stale").unwrap();
    rejects_of(&rows, &args);
    assert!(!path.exists());

    let link = dir.path().join("link.csv");
    fs::hard_link(&args.file, &link).unwrap();
    let nowhere = dir.path().join("none/a.csv");
    for (path, is_there) in [(args.file.clone(), true), (link, true), (nowhere, false)] {
        let onto_itself = ImportArgs {
            options: FileArgs {
                rejects: Some(path.clone()),
                ..args.options.clone()
            },
            ..args.clone()
        };
        let refused = Rejects::new(&onto_itself, None, rows.encoding);
        assert_eq!(refused.err().unwrap().exit_code(), 2);
        assert_eq!(path.exists(), is_there);
    }
}

#[test]
fn a_truncated_array_ends_the_import_after_the_rows_before_it() {
    let content = b"[{\"displayName\":\"A\"},{\"displayName\":";
    let (mut rows, _, _dir) = rows("a.json", content, &STORAGE);
    assert_eq!(names(&rows.next_part(10).unwrap()), [(1, "A")]);
    let error = rows.next_part(10).unwrap_err().to_string();
    assert!(error.contains("the array isn't closed"), "{error}");
}

#[test]
fn invalid_arguments_are_refused() {
    for (arguments, reason) in [
        (["--set", "type=shed"], "type must be delivery or storage"),
        (["--set", "id=1"], "use --id-from"),
        (["--set", "etag=1"], "set by the service"),
        (["--set", "x=1"], "isn't a field of a location"),
        (
            ["--set", "adress.locality=1"],
            "did you mean `address.locality`?",
        ),
        (["--map", "capacity"], "has no `=`"),
        (["--map", "capacity="], "names no column"),
        (["--batch-size", "1001"], "1..=1000"),
        (["--in-flight", "0"], "1..=64"),
        (["--delimiter", ";;"], "one ASCII character"),
        (["--encoding", "latin-77"], "windows-1252"),
    ] {
        let error = try_args(&arguments).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    for (arguments, reason) in [
        (
            &["--map", "capacity=a", "--map", "capacity=b"][..],
            "--map capacity is given twice",
        ),
        (
            &["--set", "capacity=1", "--set", "capacity=2"],
            "--set capacity is given twice",
        ),
        (
            &["--map", "capacity=a", "--set", "capacity=2"],
            "are both given",
        ),
        (&["--id-namespace", "a"], "set both"),
        (&["--set", "coordinates.latitude=48,5"], "--decimal-comma"),
    ] {
        let error = args(arguments).check().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(reason), "{error}");
    }
    let lines = [
        "--map",
        "address.address_lines=a",
        "--map",
        "address.address_lines=b",
    ];
    args(&lines).check().unwrap();
    let open = |arguments: &[&str]| Input::open(&args(arguments)).err().unwrap().to_string();
    assert!(open(&["-"]).contains("--format csv or --format ndjson"));
    assert!(
        open(&["a.csv.bz2"])
            .ends_with("run bzcat a.csv.bz2 | location-service import - --format csv")
    );
    let deleted = ImportArgs {
        purpose: Purpose::Delete,
        ..args(&["a.jsonl.xz"])
    };
    assert!(
        Input::open(&deleted)
            .err()
            .unwrap()
            .to_string()
            .ends_with("run xzcat a.jsonl.xz | location-service delete --from - --format ndjson")
    );
    assert!(open(&["a.xlsx"]).contains("save the sheet as \"CSV UTF-8\""));
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.csv");
    fs::write(&archive, b"PK\x03\x04\x14\0").unwrap();
    assert!(open(&[archive.to_str().unwrap()]).contains("a workbook or an archive"));
    assert!(open(&["/nowhere/a.csv"]).contains("cannot read /nowhere/a.csv: No such file"));
}

fn batch_rows(count: u64) -> Vec<Row> {
    (0..count)
        .map(|line| Row {
            line,
            raw: Vec::new(),
            location: Location::default(),
            given: Given::default(),
            derived: None,
        })
        .collect()
}

fn lines(batches: &[Vec<Row>]) -> Vec<Vec<u64>> {
    batches
        .iter()
        .map(|rows| rows.iter().map(|row| row.line).collect())
        .collect()
}

fn rejected(outcome: &Outcome) -> Vec<(u64, String)> {
    let fates = outcome.fates.iter();
    fates
        .filter_map(|(_, fate)| match fate {
            Fate::Rejected(reject) => Some((reject.line, reject.reason.clone())),
            _ => None,
        })
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
    let (existing, pending) = split(&status, batch_rows(5), &mut outcome);
    assert_eq!(
        rejected(&outcome),
        [
            (1, "display_name is required; id must be a UUID".to_owned()),
            (3, "address.region_code must be a code".to_owned())
        ]
    );
    assert!(existing.is_empty());
    assert_eq!(lines(&pending), [[0, 2, 4]]);
}

#[test]
fn existing_rows_are_compared_and_the_others_are_sent_again() {
    let details = ErrorDetails::with_error_info(
        "ALREADY_EXISTS",
        "location.v1",
        [("indexes".to_owned(), "0-1,3".to_owned())],
    );
    let status = Status::with_error_details(Code::AlreadyExists, "used", details);
    let mut outcome = Outcome::default();
    let (existing, pending) = split(&status, batch_rows(5), &mut outcome);
    assert_eq!(lines(&[existing]), [[0, 1, 3]]);
    assert!(outcome.fates.is_empty());
    assert_eq!(lines(&pending), [[2, 4]]);
}

#[test]
fn a_refusal_that_names_no_row_is_narrowed_down_by_halves() {
    let status = Status::invalid_argument("something is wrong");
    let mut outcome = Outcome::default();
    let (_, mut pending) = split(&status, batch_rows(3), &mut outcome);
    assert_eq!(lines(&pending), [vec![1, 2], vec![0]]);
    let last = pending.pop().unwrap();
    split(&status, last, &mut outcome);
    assert_eq!(rejected(&outcome), [(0, "something is wrong".to_owned())]);
}

#[test]
fn a_summary_has_the_counts_and_the_next_step() {
    let summary = |counts| ImportSummary {
        counts,
        purpose: Purpose::Import,
        is_dry_run: false,
        rejects: Some("x.rejects.csv".into()),
        elapsed: std::time::Duration::from_secs(1),
        is_interrupted: false,
        failure: None,
    };
    let good = Counts {
        created: 1234,
        updated: 2,
        unchanged: 5,
        ..Counts::default()
    };
    assert_eq!(
        summary(good).to_string(),
        "1,241 rows, 1,241/s in 1.0s: 1,234 created, 2 updated, 5 unchanged, 0 different, 0 rejected"
    );
    assert_eq!(summary(good).exit_code(), 0);
    let different = summary(Counts {
        different: 1,
        ..good
    });
    assert!(different.to_string().contains("--update"));
    assert_eq!(different.exit_code(), 1);
    let mut bad = summary(Counts {
        rejected: 1,
        ..good
    });
    assert!(bad.to_string().ends_with("1 rejected (see x.rejects.csv)"));
    assert_eq!(bad.exit_code(), 1);
    bad.is_interrupted = true;
    assert!(bad.to_string().ends_with("which skips what is done"));
    assert_eq!(bad.exit_code(), 130);
    let failed = ImportSummary {
        failure: Some(TransferError::Interrupted),
        ..summary(good)
    };
    assert_eq!(failed.exit_code(), 1);
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
