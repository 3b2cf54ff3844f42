//! The records of a CSV file (RFC 4180), read strictly.
//!
//! A quote that is never closed, or that isn't where a quote may be, makes one line of the file
//! invalid. A lenient reader would take the rows after it for a part of the cell. Lines end in `\n`,
//! `\r\n` or `\r`.

use std::{
    borrow::Cow,
    io::{self, Read},
    ops::Range,
};

use memchr::{memchr, memchr3};

use super::reader::MAX_ROW_BYTES;

/// The bytes that are read at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// A row of the file.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The first line, counted from 1.
    pub line: u64,
    /// The row as it is in the file, without the end of its line.
    pub raw: Vec<u8>,
    /// Why the row can't be read.
    pub problem: Option<String>,
    cells: Vec<Cell>,
}

#[derive(Debug, Clone)]
struct Cell {
    /// With white space around the quotes.
    outer: Range<usize>,
    /// Without the quotes.
    inner: Range<usize>,
    is_quoted: bool,
    has_escapes: bool,
}

impl Record {
    /// The number of cells.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// The text of a cell. `None` if it isn't UTF-8.
    pub fn text(&self, index: usize) -> Option<Cow<'_, str>> {
        let text = std::str::from_utf8(self.bytes(index)).ok()?;
        Some(if self.cells[index].has_escapes {
            Cow::Owned(text.replace("\"\"", "\""))
        } else {
            Cow::Borrowed(text)
        })
    }

    /// The bytes of a cell, in which quotes are still doubled.
    pub fn bytes(&self, index: usize) -> &[u8] {
        &self.raw[self.cells[index].inner.clone()]
    }

    /// Whether the cell is in quotes.
    pub fn is_quoted(&self, index: usize) -> bool {
        self.cells[index].is_quoted
    }

    /// The row from a cell on, as it is in the file.
    pub fn raw_from(&self, index: usize) -> &[u8] {
        let before = index.checked_sub(1).and_then(|last| self.cells.get(last));
        let start = before.map_or(0, |cell| cell.outer.end + 1);
        self.raw.get(start..).unwrap_or_default()
    }

    /// The row as [`Self::raw_from`] returns it.
    pub fn into_raw(mut self, index: usize) -> Vec<u8> {
        let skipped = self.raw.len() - self.raw_from(index).len();
        self.raw.drain(..skipped);
        self.raw
    }

    /// Removes the cells after a position.
    fn keep_cells(&mut self, end: usize) {
        self.cells.retain(|cell| cell.outer.end <= end);
    }

    /// The length of the first line.
    fn first_line_len(&self) -> usize {
        line_len(&self.raw)
    }

    /// Whether the row has more than one line.
    pub fn is_multiline(&self) -> bool {
        self.first_line_len() < self.raw.len()
    }
}

/// The length of the first line, without its end.
fn line_len(bytes: &[u8]) -> usize {
    memchr::memchr2(b'\n', b'\r', bytes).unwrap_or(bytes.len())
}

/// Reads records.
pub struct Records<R> {
    input: R,
    delimiter: u8,
    buffer: Vec<u8>,
    /// The start of the next record in the buffer.
    start: usize,
    /// The line of the next record.
    line: u64,
    is_at_end: bool,
    /// The start of the last record in the buffer. `None` if it took the buffer over.
    last_start: Option<usize>,
}

/// Why a record isn't valid.
enum Malformed {
    Unclosed,
    TextAfterQuote,
    TooLong,
}

impl<R: Read> Records<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            delimiter: b',',
            buffer: Vec::new(),
            start: 0,
            line: 1,
            is_at_end: false,
            last_start: None,
        }
    }

    pub fn set_delimiter(&mut self, delimiter: u8) {
        self.delimiter = delimiter;
    }

    pub fn delimiter(&self) -> u8 {
        self.delimiter
    }

    /// The next line, without reading past it. `None` at the end of the file.
    pub fn peek_line(&mut self) -> io::Result<Option<&[u8]>> {
        let end = self.find(0, |bytes| memchr::memchr2(b'\n', b'\r', bytes))?;
        let end = end.unwrap_or(self.buffer.len() - self.start);
        if end == 0 && self.byte(0)?.is_none() {
            return Ok(None);
        }
        Ok(Some(&self.buffer[self.start..self.start + end]))
    }

    /// The next record with another delimiter, without reading past it. `None` if it isn't well formed.
    pub fn peek_record(&mut self, delimiter: u8) -> io::Result<Option<Record>> {
        let own = std::mem::replace(&mut self.delimiter, delimiter);
        let mut record = Record::default();
        let scanned = self.scan(&mut record);
        self.delimiter = own;
        let Ok(end) = scanned? else {
            return Ok(None);
        };
        record.raw = self.slice(0..end).to_vec();
        Ok(record.problem.is_none().then_some(record))
    }

    /// Skips the line that [`Self::peek_line`] returned.
    pub fn skip_line(&mut self) -> io::Result<()> {
        let end = line_len(&self.buffer[self.start..]);
        self.start += end + self.line_end_len(end)?;
        self.line += 1;
        Ok(())
    }

    /// The next record. `None` at the end of the file.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        self.discard_read();
        if self.byte(0)?.is_none() {
            return Ok(None);
        }
        let mut record = Record {
            line: self.line,
            ..Record::default()
        };
        let (end, next) = match self.scan(&mut record)? {
            Ok(end) => (end, end + self.line_end_len(end)?),
            Err(malformed) => {
                let line_end = self.line_end(&malformed)?;
                record.keep_cells(line_end.0);
                record.problem = Some(match malformed {
                    Malformed::Unclosed => "has a quote that isn't closed".to_owned(),
                    Malformed::TextAfterQuote => {
                        "has text after a closing quote: double the quotes inside a cell".to_owned()
                    }
                    Malformed::TooLong => format!("is longer than {MAX_ROW_BYTES} bytes"),
                });
                line_end
            }
        };
        if end > MAX_ROW_BYTES / 8 {
            // A large row takes over the buffer, instead of a copy.
            self.buffer.drain(..self.start);
            self.start = 0;
            let rest = self.buffer.split_off(next.min(self.buffer.len()));
            record.raw = std::mem::replace(&mut self.buffer, rest);
            record.raw.truncate(end);
            self.last_start = None;
        } else {
            record.raw = self.buffer[self.start..self.start + end].to_vec();
            self.last_start = Some(self.start);
            self.start += next;
        }
        let breaks = record.cells.iter().filter(|cell| cell.is_quoted);
        self.line += 1 + breaks
            .map(|cell| count_breaks(&record.raw[cell.inner.clone()]))
            .sum::<u64>();
        Ok(Some(record))
    }

    /// Reduces the record that [`Self::next_record`] returned last to its first line. The next record is
    /// its second line.
    pub fn split_last(&mut self, record: &mut Record) -> io::Result<()> {
        let Some(start) = self.last_start else {
            return Ok(());
        };
        let first_line = record.first_line_len();
        self.start = start;
        record.raw.truncate(first_line);
        record.keep_cells(first_line);
        self.start += first_line + self.line_end_len(first_line)?;
        self.line = record.line + 1;
        Ok(())
    }

    /// The number of cells of a line. `None` if it isn't a well-formed record.
    pub fn count_cells(&self, line: &[u8]) -> Option<usize> {
        let mut records = Records::new(line);
        records.delimiter = self.delimiter;
        let record = records.next_record().ok()??;
        record.problem.is_none().then(|| record.len())
    }

    /// Finds the cells and the end of a record.
    fn scan(&mut self, record: &mut Record) -> io::Result<Result<usize, Malformed>> {
        let mut pos = 0;
        loop {
            let from = pos;
            let mut first = pos;
            while matches!(self.byte(first)?, Some(byte) if self.is_blank(byte)) {
                first += 1;
            }
            let cell = if self.byte(first)? == Some(b'"') {
                match self.scan_quoted(from, first)? {
                    Ok(cell) => cell,
                    Err(malformed) => return Ok(Err(malformed)),
                }
            } else {
                let delimiter = self.delimiter;
                let end = self.find(first, |bytes| memchr3(delimiter, b'\n', b'\r', bytes))?;
                let end = end.unwrap_or(self.buffer.len() - self.start);
                let cell = from..end;
                if memchr(b'"', self.slice(cell.clone())).is_some() {
                    record.problem = Some(
                        "has a quote inside an unquoted cell: put the cell in quotes and double \
                         the quotes inside it"
                            .to_owned(),
                    );
                }
                Cell {
                    outer: cell.clone(),
                    inner: cell,
                    is_quoted: false,
                    has_escapes: false,
                }
            };
            pos = cell.outer.end;
            record.cells.push(cell);
            if pos > MAX_ROW_BYTES {
                return Ok(Err(Malformed::TooLong));
            }
            match self.byte(pos)? {
                Some(byte) if byte == self.delimiter => pos += 1,
                _ => return Ok(Ok(pos)),
            }
        }
    }

    /// Scans a cell that begins at `from` and whose quote opens at `open`.
    fn scan_quoted(&mut self, from: usize, open: usize) -> io::Result<Result<Cell, Malformed>> {
        let mut has_escapes = false;
        let mut pos = open + 1;
        loop {
            let Some(quote) = self.find(pos, |bytes| memchr(b'"', bytes))? else {
                return Ok(Err(Malformed::Unclosed));
            };
            if self.byte(quote + 1)? == Some(b'"') {
                has_escapes = true;
                pos = quote + 2;
                continue;
            }
            let mut end = quote + 1;
            while matches!(self.byte(end)?, Some(byte) if self.is_blank(byte)) {
                end += 1;
            }
            return Ok(match self.byte(end)? {
                Some(byte) if byte != self.delimiter && !matches!(byte, b'\n' | b'\r') => {
                    Err(Malformed::TextAfterQuote)
                }
                _ => Ok(Cell {
                    outer: from..end,
                    inner: open + 1..quote,
                    is_quoted: true,
                    has_escapes,
                }),
            });
        }
    }

    /// The end of the first line, and the start of the next one.
    fn line_end(&mut self, malformed: &Malformed) -> io::Result<(usize, usize)> {
        if let Malformed::TooLong = malformed {
            // Nothing of it is kept, and the rest of the line is skipped.
            loop {
                let length = line_len(&self.buffer[self.start..]);
                if self.start + length < self.buffer.len() {
                    self.start += length;
                    return Ok((0, self.line_end_len(0)?));
                }
                self.buffer.clear();
                self.start = 0;
                if !self.fill()? {
                    return Ok((0, 0));
                }
            }
        }
        let end = self.find(0, |bytes| memchr::memchr2(b'\n', b'\r', bytes))?;
        if end.is_none() && !self.is_at_end {
            return self.line_end(&Malformed::TooLong);
        }
        let end = end.unwrap_or(self.buffer.len() - self.start);
        Ok((end, end + self.line_end_len(end)?))
    }

    /// The length of the line end at a position: 0 at the end of the file.
    fn line_end_len(&mut self, at: usize) -> io::Result<usize> {
        Ok(match self.byte(at)? {
            Some(b'\r') if self.byte(at + 1)? == Some(b'\n') => 2,
            Some(_) => 1,
            None => 0,
        })
    }

    fn is_blank(&self, byte: u8) -> bool {
        matches!(byte, b' ' | b'\t') && byte != self.delimiter
    }

    fn slice(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[self.start + range.start..self.start + range.end]
    }

    /// The byte at a position after the start of the record. `None` at the end of the file.
    fn byte(&mut self, at: usize) -> io::Result<Option<u8>> {
        loop {
            if let Some(byte) = self.buffer.get(self.start + at) {
                return Ok(Some(*byte));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// The first position from `from` on that `find` finds. `None` if there is none before the end
    /// of the file or the limit of a row.
    fn find(
        &mut self,
        from: usize,
        find: impl Fn(&[u8]) -> Option<usize>,
    ) -> io::Result<Option<usize>> {
        let mut from = from;
        loop {
            let bytes = &self.buffer[(self.start + from).min(self.buffer.len())..];
            if let Some(index) = find(bytes) {
                return Ok(Some(from + index));
            }
            from += bytes.len();
            if from > MAX_ROW_BYTES || !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Reads more. Returns whether there was more.
    fn fill(&mut self) -> io::Result<bool> {
        if self.is_at_end {
            return Ok(false);
        }
        let length = self.buffer.len();
        reserve(&mut self.buffer, CHUNK_BYTES);
        self.buffer.resize(length + CHUNK_BYTES, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[length..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.buffer
            .truncate(length + read.as_ref().map_or(0, |read| *read));
        self.is_at_end = read? == 0;
        Ok(!self.is_at_end)
    }

    /// Removes the records that were read from the buffer, once they take most of it.
    fn discard_read(&mut self) {
        if self.start > CHUNK_BYTES && self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
    }
}

/// Makes room in the buffer of a row. A large buffer gets the maximum at once, so that it isn't copied
/// again and again while it grows: memory that isn't written costs nothing.
pub fn reserve(buffer: &mut Vec<u8>, additional: usize) {
    const LARGE: usize = 1024 * 1024;
    let length = buffer.len() + additional;
    if length > LARGE && length > buffer.capacity() {
        buffer.reserve_exact((MAX_ROW_BYTES + 2 * CHUNK_BYTES).max(length) - buffer.len());
    }
}

/// The number of line breaks: `\n`, `\r\n` and `\r`.
pub fn count_breaks(bytes: &[u8]) -> u64 {
    memchr::memchr2_iter(b'\n', b'\r', bytes)
        .filter(|at| !(bytes[*at] == b'\n' && *at > 0 && bytes[at - 1] == b'\r'))
        .count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of a text, each as its line and its cells, or its problem.
    fn read(text: &str) -> Vec<(u64, Vec<String>)> {
        let mut records = Records::new(text.as_bytes());
        let mut all = Vec::new();
        while let Some(record) = records.next_record().unwrap() {
            let cells = match &record.problem {
                Some(problem) => vec![format!("! {problem}")],
                None => (0..record.len())
                    .map(|index| record.text(index).unwrap().into_owned())
                    .collect(),
            };
            all.push((record.line, cells));
        }
        all
    }

    fn lines(text: &str) -> Vec<(u64, String)> {
        read(text)
            .into_iter()
            .map(|(line, cells)| (line, cells.join("|")))
            .collect()
    }

    #[test]
    fn cells_and_lines_are_found_whatever_ends_a_line() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["a,\"b\"\"c\"", "\"d;\u{1}e\", f ,", "", " \"g\" ,h"]
                .join(end)
                .replace('\u{1}', end);
            let read = lines(&text);
            let multiline = format!("d;{end}e| f |");
            assert_eq!(
                read,
                [
                    (1, "a|b\"c".to_owned()),
                    (2, multiline),
                    (4, String::new()),
                    (5, "g|h".to_owned()),
                ]
            );
            // The end of the last line makes no further record.
            assert_eq!(lines(&format!("{text}{end}")), read);
        }
    }

    #[test]
    fn an_invalid_quote_costs_one_line() {
        for (text, expected) in [
            // Unclosed to the end of the file.
            ("A,ok\nB,\"5 inch\nC,ok\nD,ok\n", vec![2]),
            // The next quote has text after it.
            ("A,ok\nB,\"5 inch\nC,\"ok\"\nD,ok\n", vec![2]),
            ("A,ok\nB,\"5\" inch\nC,ok\nD,ok\n", vec![2]),
            ("A,ok\nB,5\" inch\nC,ok\nD,ok\n", vec![2]),
            ("A,ok\nB,5\"\nC,\"6\nD,ok\n", vec![2, 3]),
            ("A,ok\r\nB,\"5 inch\r\nC,ok\r\nD,ok", vec![2]),
        ] {
            let read = lines(text);
            let lines: Vec<_> = read.iter().map(|(line, _)| *line).collect();
            assert_eq!(lines, [1, 2, 3, 4], "{text:?}: {read:?}");
            let bad: Vec<_> = read
                .iter()
                .filter(|(_, cells)| cells.starts_with("! has "))
                .map(|(line, _)| *line)
                .collect();
            assert_eq!(bad, expected, "{text:?}: {read:?}");
        }
    }

    #[test]
    fn rows_are_as_long_as_they_are() {
        let wide = "x".repeat(MAX_ROW_BYTES / 4);
        let text = format!("a,b\nA,{wide}\nB,\"{wide}\"\nC,c\n");
        let read = read(&text);
        assert_eq!(read[1].1, ["A", &wide]);
        assert_eq!(read[2].1, ["B", &wide]);
        assert_eq!(read[3], (4, vec!["C".to_owned(), "c".to_owned()]));

        let too_long = "x".repeat(MAX_ROW_BYTES + 3 * CHUNK_BYTES);
        let read = lines(&format!("a\n{too_long}\nb\n"));
        assert_eq!(read[1].0, 2);
        assert!(read[1].1.starts_with("! is longer than"));
        assert_eq!(read[2], (3, "b".to_owned()));
    }
}
