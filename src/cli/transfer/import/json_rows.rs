//! The rows of a JSON file: one object per line, indented objects, or the elements of one array.

use std::{
    io::{self, BufRead, BufReader, Read},
    mem,
};

use memchr::memchr2;

use super::{
    reader::MAX_ROW_BYTES,
    records::{count_breaks, reserve},
};
use crate::cli::transfer::json_text::ValueEnd;

/// Maximum number of blanks that are read ahead after the brace of the first line.
const MAX_BLANKS: usize = 64 * 1024;

/// A row of the file.
#[derive(Debug, Default)]
pub struct JsonRow {
    /// The first line, counted from 1.
    pub line: u64,
    /// The row as it is in the file. Empty if it is too long.
    pub raw: Vec<u8>,
    /// Why the row can't be read.
    pub problem: Option<String>,
}

/// Reads rows.
pub struct JsonRows<R> {
    input: BufReader<R>,
    place: Place,
    layout: Option<Layout>,
    /// The beginning of the first row, which was read to tell the layout.
    ahead: Vec<u8>,
}

/// The place of the next byte.
struct Place {
    /// The line, counted from 1.
    line: u64,
    is_after_return: bool,
}

impl Place {
    /// Passes bytes. Those that break no line may be passed again.
    fn pass(&mut self, bytes: &[u8]) {
        let ends_pair = self.is_after_return && bytes.starts_with(b"\n");
        self.line += count_breaks(bytes) - u64::from(ends_pair);
        if let Some(last) = bytes.last() {
            self.is_after_return = *last == b'\r';
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Lines,
    /// Objects that begin with a line of their brace only, as programs indent them.
    Objects,
    /// The next byte is of an element, or the end of the array.
    Array,
    /// The array has ended.
    Ended,
}

impl<R: Read> JsonRows<R> {
    pub fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(64 * 1024, input),
            place: Place {
                line: 1,
                is_after_return: false,
            },
            layout: None,
            ahead: Vec::new(),
        }
    }

    /// The next row. `None` at the end of the file.
    pub fn next_row(&mut self) -> io::Result<Option<JsonRow>> {
        let layout = if let Some(layout) = self.layout {
            layout
        } else {
            let first = self.skip_blank()?;
            let layout = match first {
                Some(b'[') => {
                    self.input.consume(1);
                    Layout::Array
                }
                Some(b'{') if self.is_brace_only()? => Layout::Objects,
                _ => Layout::Lines,
            };
            self.layout = Some(layout);
            layout
        };
        match layout {
            Layout::Lines => self.next_line(),
            Layout::Objects if !self.ahead.is_empty() => self.next_object().map(Some),
            Layout::Objects => match self.skip_blank()? {
                Some(b'{') => self.next_object().map(Some),
                _ => self.next_line(),
            },
            Layout::Array => self.next_element(),
            Layout::Ended => match self.skip_blank()? {
                None => Ok(None),
                Some(_) => Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("line {}: text after the end of the array", self.place.line),
                )),
            },
        }
    }

    /// Whether the line has nothing after its brace. The next bytes may not have been read yet.
    fn is_brace_only(&mut self) -> io::Result<bool> {
        loop {
            match self.input.fill_buf()?.first().copied() {
                Some(byte) if self.ahead.is_empty() || self.is_blank_ahead(byte) => {
                    self.ahead.push(byte);
                    self.input.consume(1);
                }
                next => return Ok(matches!(next, Some(b'\n' | b'\r'))),
            }
        }
    }

    fn is_blank_ahead(&self, byte: u8) -> bool {
        matches!(byte, b' ' | b'\t') && self.ahead.len() < MAX_BLANKS
    }

    /// Skips white space. Returns the next byte, if there is one.
    fn skip_blank(&mut self) -> io::Result<Option<u8>> {
        loop {
            let available = self.input.fill_buf()?;
            let Some(first) = available.first().copied() else {
                return Ok(None);
            };
            self.place.pass(&[first]);
            if !first.is_ascii_whitespace() {
                return Ok(Some(first));
            }
            self.input.consume(1);
        }
    }

    fn next_line(&mut self) -> io::Result<Option<JsonRow>> {
        if self.ahead.is_empty() && self.skip_blank()?.is_none() {
            return Ok(None);
        }
        let mut row = JsonRow {
            line: self.place.line,
            raw: mem::take(&mut self.ahead),
            ..JsonRow::default()
        };
        loop {
            let available = self.input.fill_buf()?;
            // Raw carriage returns are no part of JSON, except between its values.
            let end = memchr2(b'\n', b'\r', available);
            let count = end.unwrap_or(available.len());
            row.append(&available[..count]);
            let is_end = end.is_some() || available.is_empty();
            self.input.consume(count);
            if is_end {
                return Ok(Some(row));
            }
        }
    }

    fn next_object(&mut self) -> io::Result<JsonRow> {
        let mut row = JsonRow {
            line: self.place.line,
            raw: mem::take(&mut self.ahead),
            ..JsonRow::default()
        };
        let mut end = ValueEnd::default();
        for byte in &row.raw {
            end.is_at(*byte);
        }
        loop {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                return Err(incomplete("an object", row.line));
            }
            let last = available.iter().position(|byte| {
                end.is_at(*byte);
                *byte == b'}' && end.is_closed()
            });
            let count = last.map_or(available.len(), |last| last + 1);
            self.place.pass(&available[..count]);
            row.append(&available[..count]);
            self.input.consume(count);
            if last.is_some() {
                return Ok(row);
            }
        }
    }

    fn next_element(&mut self) -> io::Result<Option<JsonRow>> {
        let mut row = JsonRow::default();
        let first = self.skip_blank()?;
        row.line = self.place.line;
        match first {
            Some(b']') => {
                self.input.consume(1);
                self.layout = Some(Layout::Ended);
                return self.next_row();
            }
            Some(b',') => {
                self.input.consume(1);
                row.problem = Some("has no value before a comma".to_owned());
                return Ok(Some(row));
            }
            _ => {}
        }
        let mut end = ValueEnd::default();
        loop {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                return Err(incomplete("the array", row.line));
            }
            let at = available
                .iter()
                .position(|byte| end.is_at(*byte) && *byte != b':');
            let count = at.unwrap_or(available.len());
            let last = at.map(|at| available[at]);
            self.place.pass(&available[..count]);
            self.place.pass(last.as_slice());
            row.append(&available[..count]);
            self.input.consume(count);
            match last {
                None => {}
                Some(b',') => {
                    self.input.consume(1);
                    return Ok(Some(row));
                }
                Some(b'}') => {
                    self.input.consume(1);
                    row.append(b"}");
                }
                Some(_) => return Ok(Some(row)),
            }
        }
    }
}

fn incomplete(what: &str, line: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!(
            "{what} isn't closed: the row at line {line} is incomplete, is the file truncated?"
        ),
    )
}

impl JsonRow {
    fn append(&mut self, bytes: &[u8]) {
        if self.problem.is_some() {
            return;
        }
        if self.raw.len() + bytes.len() > MAX_ROW_BYTES {
            self.raw = Vec::new();
            self.problem = Some(format!("is longer than {MAX_ROW_BYTES} bytes"));
            return;
        }
        reserve(&mut self.raw, bytes.len());
        self.raw.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(u64, String)>, String> {
        let mut rows = JsonRows::new(text.as_bytes());
        let mut all = Vec::new();
        while let Some(row) = rows.next_row().map_err(|error| error.to_string())? {
            let text = String::from_utf8(row.raw).unwrap().trim().to_owned();
            all.push((row.line, row.problem.unwrap_or(text)));
        }
        Ok(all)
    }

    #[test]
    fn rows_are_lines_or_the_elements_of_an_array() {
        let lines = |rows: &[(u64, &str)]| {
            Ok(rows
                .iter()
                .map(|(line, text)| (*line, (*text).to_owned()))
                .collect::<Vec<_>>())
        };
        assert_eq!(
            read("{\"a\":1}\r\n\n  {\"b\":\"]\"}\n[1]"),
            lines(&[(1, "{\"a\":1}"), (3, "{\"b\":\"]\"}"), (4, "[1]")])
        );
        assert_eq!(
            read("\n [{\"a\":[1,{}]},\n{\"b\":\"],\\\"\"\n},3]\n "),
            lines(&[(2, "{\"a\":[1,{}]}"), (3, "{\"b\":\"],\\\"\"\n}"), (4, "3")])
        );
        assert_eq!(read("[]"), lines(&[]));
        assert_eq!(read(""), lines(&[]));
        assert_eq!(
            read("[1,,2]"),
            lines(&[(1, "1"), (1, "has no value before a comma"), (1, "2")])
        );
        assert!(
            read("[{\"a\":1},\n{\"a\":")
                .unwrap_err()
                .contains("line 2 is incomplete")
        );
        assert_eq!(
            read("{\n \"a\": {\"b\": \"}\"}\n}\n{\n}{\"c\":1}\nx\n"),
            lines(&[
                (1, "{\n \"a\": {\"b\": \"}\"}\n}"),
                (4, "{\n}"),
                (5, "{\"c\":1}"),
                (6, "x")
            ])
        );
        assert!(
            read("{\n\"a\":1\n")
                .unwrap_err()
                .contains("line 1 is incomplete")
        );
        assert_eq!(read("1\r2\r\r3"), lines(&[(1, "1"), (2, "2"), (4, "3")]));
        assert_eq!(
            read("1\r2\n3\r\n4"),
            lines(&[(1, "1"), (2, "2"), (3, "3"), (4, "4")])
        );
        assert_eq!(read("[{}},1]"), lines(&[(1, "{}}"), (1, "1")]));
        assert!(read("[] x").unwrap_err().contains("after the end"));
    }

    #[test]
    fn lines_are_counted_whatever_ends_them() {
        for end in ["\n", "\r\n", "\r"] {
            for text in [
                "{\n\"a\":\n1\n}\n\n{\n}\n",
                "[{\n\"a\":\n1\n},\n\n{}\n]",
                "[\n1\n\n,\n2\n,\n\n3]",
            ] {
                let expected: Vec<_> = read(text).unwrap().iter().map(|row| row.0).collect();
                let read = read(&text.replace('\n', end)).unwrap();
                let lines: Vec<_> = read.iter().map(|row| row.0).collect();
                assert_eq!(lines, expected, "{text:?} with {end:?}");
            }
        }
        let mixed = read("[1\r,\n2\n,\r3]").unwrap();
        let lines: Vec<_> = mixed.iter().map(|row| row.0).collect();
        assert_eq!(lines, [1, 3, 5]);
    }

    #[test]
    fn a_row_over_the_limit_costs_itself_only() {
        let wide = "x".repeat(MAX_ROW_BYTES + 1);
        for text in [
            format!("{{}}\n\"{wide}\"\n{{}}"),
            format!("[{{}},\"{wide}\",{{}}]"),
        ] {
            let rows = read(&text).unwrap();
            assert_eq!(
                (rows.len(), rows[0].1.as_str(), rows[2].1.as_str()),
                (3, "{}", "{}")
            );
            assert!(rows[1].1.starts_with("is longer than"), "{}", rows[1].1);
        }
    }
}
