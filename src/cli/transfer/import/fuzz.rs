//! Damaged files: nothing panics, and the rows don't depend on the sizes of the pieces that are read.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use location_service::proto::location::v1::Location;

use super::{tests::args, *};
use crate::fuzz::{fuzz, mutated};

/// Reads up to this many bytes at a time.
struct Pieces(Box<dyn Read + Send>, usize);

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = buffer.len().min(self.1);
        self.0.read(&mut buffer[..size])
    }
}

/// A row of the file, or the error that ends it.
#[derive(Debug, PartialEq)]
struct ReadRow {
    line: u64,
    raw: Vec<u8>,
    location: Option<Location>,
    reason: String,
}

impl ReadRow {
    fn new(line: u64, raw: Vec<u8>, result: Result<Location, String>) -> Self {
        Self {
            line,
            raw,
            reason: result.as_ref().err().cloned().unwrap_or_default(),
            location: result.ok(),
        }
    }

    fn failure(error: &TransferError) -> Self {
        Self::new(0, Vec::new(), Err(error.to_string()))
    }
}

/// All rows of a file that is read in pieces, and the error that ends it.
fn read(path: &Path, piece_bytes: Option<usize>) -> Vec<ReadRow> {
    let args = args(&[path.to_str().unwrap(), "--set", "type=storage"]);
    let opened = Input::open(&args).and_then(|mut input| {
        if let Some(bytes) = piece_bytes {
            input.text = Box::new(Pieces(input.text, bytes));
        }
        Rows::new(input, &args)
    });
    let mut rows = match opened {
        Ok(rows) => rows,
        Err(error) => return vec![ReadRow::failure(&error)],
    };
    let mut all = Vec::new();
    let mut last = 0;
    loop {
        match rows.next_part(100) {
            Ok(batch) if batch.is_empty() => return all,
            Ok(batch) => {
                let mut outcomes: Vec<_> = batch
                    .rows
                    .into_iter()
                    .map(|row| ReadRow::new(row.line, row.raw, Ok(row.location)))
                    .collect();
                let rejects = batch.rejects.into_iter();
                outcomes.extend(rejects.map(|it| ReadRow::new(it.line, it.raw, Err(it.reason))));
                outcomes.sort_by_key(|outcome| outcome.line);
                for outcome in outcomes {
                    // Elements of an array may be on one line.
                    let may_repeat = !path.ends_with("a.csv");
                    assert!(outcome.line > last || outcome.line == last && may_repeat);
                    assert!(outcome.location.as_ref().is_none_or(|it| !it.id.is_empty()));
                    last = outcome.line;
                    all.push(outcome);
                }
            }
            Err(error) => {
                all.push(ReadRow::failure(&error));
                return all;
            }
        }
    }
}

fn fuzz_files(name: &str, corpus: &[&[u8]]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let corpus = corpus.iter().map(|file| file.to_vec()).collect();
    fuzz(mutated(corpus), |content| {
        fs::write(&path, &content).unwrap();
        let piece = content.len() / 32 + 1;
        assert_eq!(read(&path, None), read(&path, Some(piece)));
    });
}

#[test]
fn csv_files() {
    let columns = "display_name,latitude,longitude,capacity,labels.zone,address.address_lines,state\n\
                   Quay 1,53.5,-9.9,7,a,Hall 2,active\n\
                   \"Quay, \"\"2\"\"\",\"1\n2\",0,,\"\",,\n\
                   ,,,,,,\n\
                   Łódź 🏭,0,0,1e3,b,,inactive\n";
    let utf_16: Vec<u8> = "\u{feff}display_name;capacity\nQuay;5\nLódź;6\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    fuzz_files(
        "a.csv",
        &[
            columns.as_bytes(),
            columns.replace('\n', "\r\n").as_bytes(),
            b"sep=;\ndisplay_name;capacity\rDock;5\rDock;\"6\"\r",
            b"\xef\xbb\xbfdisplay_name\tcapacity\nA\t5\nB\t\"6\" \n",
            b"id,display_name\n0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70,A\n,B\n",
            &utf_16,
        ],
    );
}

#[test]
fn json_files() {
    let rows = [
        r#"{"displayName":"Quay","coordinates":{"latitude":40.631900787353516,"longitude":-0.5},"capacity":"7"}"#,
        r#"{"id":"0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70","displayName":"\u0141\ud83c\udfed","labels":{"a":"b"}}"#,
        r#" {"display_name":"A","address":{"addressLines":["1","2"],"regionCode":"DE"},"type":"storage"} "#,
    ];
    let lines = rows.join("\n");
    let array = format!(" [\n{},\n\n{}\n] ", rows[0], rows[1]);
    fuzz_files("a.ndjson", &[lines.as_bytes(), array.as_bytes()]);
    fuzz_files("a.json", &[array.as_bytes(), lines.as_bytes()]);
}
