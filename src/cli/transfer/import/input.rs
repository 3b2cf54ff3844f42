//! The bytes of the file to import: decompressed, and decoded to UTF-8.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use encoding_rs::{Decoder, DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::ImportArgs;
use crate::cli::transfer::{
    FileName, Format, STANDARD_STREAM, TransferError, compression::Compression,
};

/// The bytes that are decoded at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Stands for bytes that can't be decoded. It is invalid in UTF-8, so the cell with it is rejected.
const UNDECODABLE: u8 = 0xff;

/// An open file, or stdin.
pub struct Input {
    /// The size of a regular file, in bytes.
    pub size: Option<u64>,
    /// The bytes of the file that were read so far.
    pub read: Arc<AtomicU64>,
    pub text: Box<dyn Read + Send>,
    pub path: PathBuf,
    pub format: Format,
    /// The delimiter that the extension names.
    pub delimiter: Option<u8>,
    pub encoding: TextEncoding,
}

/// The encoding of the file, and whether it begins with a byte order mark.
#[derive(Debug, Clone, Copy)]
pub struct TextEncoding {
    encoding: &'static Encoding,
    has_mark: bool,
}

impl Input {
    pub fn open(args: &ImportArgs) -> Result<Self, TransferError> {
        let path = &args.file;
        let name = FileName::of(path);
        if is_spreadsheet(path) {
            return Err(spreadsheet(path));
        }
        let format = args.options.format.or(name.format).ok_or_else(|| {
            TransferError::Usage(
                "the name of the file doesn't tell its format: set --format csv or --format ndjson"
                    .to_owned(),
            )
        })?;
        let read_error = |cause| TransferError::Read {
            path: path.clone(),
            cause,
        };
        if let Some(Compression::Other { decompress }) = name.compression {
            return Err(TransferError::Usage(format!(
                "files of this kind aren't decompressed: run {decompress} {} | location-service \
                 {} - --format {}",
                path.display(),
                args.purpose.command(),
                format.extension(),
            )));
        }
        let file = if path == Path::new(STANDARD_STREAM) {
            io::stdin().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::open(path)
        }
        .map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if metadata.is_dir() {
            return Err(read_error(io::ErrorKind::IsADirectory.into()));
        }
        let read = Arc::new(AtomicU64::new(0));
        let mut counted = BufReader::with_capacity(
            CHUNK_BYTES,
            Counted {
                inner: file,
                read: Arc::clone(&read),
            },
        );
        let start = counted.fill_buf().map_err(read_error)?;
        if start.starts_with(b"PK\x03\x04") {
            return Err(spreadsheet(path));
        }
        let compression = name.compression.or_else(|| Compression::of_content(start));
        let bytes: Box<dyn Read + Send> = match compression {
            None | Some(Compression::Other { .. }) => Box::new(counted),
            Some(Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(counted)),
            Some(Compression::Zstd) => {
                Box::new(zstd::Decoder::with_buffer(counted).map_err(read_error)?)
            }
        };
        let (encoding, text) = decode(bytes, args.options.encoding).map_err(read_error)?;
        Ok(Self {
            size: metadata.is_file().then_some(metadata.len()),
            read,
            text,
            path: path.clone(),
            format,
            delimiter: name.delimiter,
            encoding,
        })
    }
}

/// Whether the extension is that of a workbook.
fn is_spreadsheet(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| {
        ["xlsx", "xlsm", "xlsb", "xls", "ods", "numbers"]
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    })
}

fn spreadsheet(path: &Path) -> TransferError {
    TransferError::Usage(format!(
        "{} is a workbook or an archive, which isn't read: in the spreadsheet program, save the \
         sheet as \"CSV UTF-8\", and use that file",
        path.display()
    ))
}

/// Parses the name of an encoding, such as `UTF-16LE` or `windows-1252`.
pub fn parse_encoding(label: &str) -> Result<&'static Encoding, String> {
    let label = if label.eq_ignore_ascii_case("utf-16") {
        "utf-16le"
    } else {
        label
    };
    Encoding::for_label(label.as_bytes()).ok_or_else(|| {
        "isn't a known encoding: use UTF-8, UTF-16LE, UTF-16BE or windows-1252, or another label \
         of the WHATWG Encoding Standard"
            .to_owned()
    })
}

/// Decodes text. A byte order mark at its beginning decides, otherwise `encoding`, otherwise it is
/// UTF-8.
fn decode(
    mut bytes: Box<dyn Read + Send>,
    encoding: Option<&'static Encoding>,
) -> io::Result<(TextEncoding, Box<dyn Read + Send>)> {
    let mut first = Vec::new();
    (&mut bytes).take(3).read_to_end(&mut first)?;
    let (encoding, mark_len) = match Encoding::for_bom(&first) {
        Some((encoding, length)) => (encoding, length),
        None => (encoding.unwrap_or_else(|| guess(&first)), 0),
    };
    let rest = io::Cursor::new(first.split_off(mark_len)).chain(bytes);
    let text: Box<dyn Read + Send> = if encoding == UTF_8 {
        Box::new(rest)
    } else {
        Box::new(Decoded {
            inner: rest,
            decoder: encoding.new_decoder_without_bom_handling(),
            encoded: vec![0; CHUNK_BYTES],
            text: Vec::new(),
            position: 0,
            is_at_end: false,
        })
    };
    let encoding = TextEncoding {
        encoding,
        has_mark: mark_len > 0,
    };
    Ok((encoding, text))
}

/// The encoding of a file without a byte order mark. It begins with an ASCII character, of the header or
/// a bracket, and UTF-16 encodes that with a zero byte.
fn guess(first: &[u8]) -> &'static Encoding {
    match first {
        [0, second, ..] if *second != 0 => UTF_16BE,
        [first, 0, ..] if *first != 0 => UTF_16LE,
        _ => UTF_8,
    }
}

impl TextEncoding {
    /// The encoded byte order mark, or nothing if the file has none.
    pub fn mark(self) -> Vec<u8> {
        if self.has_mark {
            self.encode("\u{feff}")
        } else {
            Vec::new()
        }
    }

    /// Whether the file is UTF-8, so that its rows weren't decoded.
    pub fn is_utf8(self) -> bool {
        self.encoding == UTF_8
    }

    /// Text in this encoding. Characters that it lacks become `?`.
    pub fn encode(self, text: &str) -> Vec<u8> {
        if self.encoding == UTF_16LE {
            return text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        }
        if self.encoding == UTF_16BE {
            return text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        }
        let mut encoder = self.encoding.new_encoder();
        let mut out = Vec::with_capacity(text.len());
        let mut rest = text;
        loop {
            out.reserve(rest.len() + 16);
            let (result, read) =
                encoder.encode_from_utf8_to_vec_without_replacement(rest, &mut out, true);
            rest = &rest[read..];
            match result {
                encoding_rs::EncoderResult::InputEmpty => return out,
                encoding_rs::EncoderResult::OutputFull => {}
                encoding_rs::EncoderResult::Unmappable(_) => out.push(b'?'),
            }
        }
    }
}

/// Counts the bytes that are read.
struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Text that is decoded as it is read.
struct Decoded<R> {
    inner: R,
    decoder: Decoder,
    /// The buffer of the bytes that are decoded at a time.
    encoded: Vec<u8>,
    /// Decoded text, read up to `position`.
    text: Vec<u8>,
    position: usize,
    is_at_end: bool,
}

impl<R: Read> Decoded<R> {
    fn refill(&mut self) -> io::Result<()> {
        let count = self.inner.read(&mut self.encoded)?;
        self.is_at_end = count == 0;
        self.text.clear();
        self.position = 0;
        let mut from = 0;
        loop {
            self.text.reserve(CHUNK_BYTES);
            let start = self.text.len();
            self.text.resize(self.text.capacity(), 0);
            let (result, read, written) = self.decoder.decode_to_utf8_without_replacement(
                &self.encoded[from..count],
                &mut self.text[start..],
                self.is_at_end,
            );
            self.text.truncate(start + written);
            from += read;
            match result {
                DecoderResult::InputEmpty => break,
                DecoderResult::OutputFull => {}
                DecoderResult::Malformed(..) => self.text.push(UNDECODABLE),
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Decoded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.text.len() {
            if self.is_at_end {
                return Ok(0);
            }
            self.refill()?;
        }
        let count = buffer.len().min(self.text.len() - self.position);
        buffer[..count].copy_from_slice(&self.text[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8], label: Option<&str>) -> Vec<u8> {
        let encoding = label.map(|label| parse_encoding(label).unwrap());
        let (_, mut text) = decode(Box::new(io::Cursor::new(bytes.to_vec())), encoding).unwrap();
        let mut out = Vec::new();
        text.read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn text_is_decoded_by_its_mark_or_the_given_encoding() {
        let text = "é;Łódź 🏭\n".repeat(20_000);
        let encode = |label: &str, text: &str| {
            TextEncoding {
                encoding: parse_encoding(label).unwrap(),
                has_mark: false,
            }
            .encode(text)
        };
        for label in ["UTF-16LE", "utf-16be", "UTF-8"] {
            let marked = [encode(label, "\u{feff}"), encode(label, &text)].concat();
            assert_eq!(decoded(&marked, None), text.as_bytes(), "{label}");
            assert_eq!(decoded(&marked, Some("windows-1252")), text.as_bytes());
            assert_eq!(decoded(&encode(label, &text), Some(label)), text.as_bytes());
        }
        // Without a mark, UTF-16 is recognized by an ASCII character at its beginning.
        assert_eq!(
            decoded(&encode("utf-16le", "id;é"), None),
            "id;é".as_bytes()
        );
        assert_eq!(
            decoded(&encode("utf-16be", "id;é"), None),
            "id;é".as_bytes()
        );
        assert_eq!(
            decoded(b"caf\xe9 \x80", Some("windows-1252")),
            "café €".as_bytes()
        );
        assert_eq!(encode("windows-1252", "café € Ł"), b"caf\xe9 \x80 ?");
        // A lone surrogate isn't text.
        assert_eq!(decoded(b"\xff\xfea\0\0\xd8b\0", None), b"a\xffb");
        assert!(
            parse_encoding("latin-77")
                .unwrap_err()
                .contains("windows-1252")
        );
    }
}
