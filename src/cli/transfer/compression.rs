//! Compressed files.

use std::{
    fs::File,
    io::{self, Write},
};

use flate2::write::GzEncoder;

/// The compression that the extension of a file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Zstd,
    /// A compression that needs another program, such as `bzcat`.
    Other {
        decompress: &'static str,
    },
}

impl Compression {
    /// The compression that an extension in lower case names.
    pub fn of(extension: &str) -> Option<Self> {
        Some(match extension {
            "gz" => Self::Gzip,
            "zst" => Self::Zstd,
            "bz2" => Self::Other {
                decompress: "bzcat",
            },
            "xz" => Self::Other {
                decompress: "xzcat",
            },
            _ => return None,
        })
    }

    /// The compression that the first bytes of a file show.
    pub fn of_content(start: &[u8]) -> Option<Self> {
        if start.starts_with(&[0x1f, 0x8b]) {
            Some(Self::Gzip)
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Some(Self::Zstd)
        } else {
            None
        }
    }
}

/// A file that is compressed as it is written.
pub enum Writer {
    Plain(io::BufWriter<File>),
    Gzip(GzEncoder<io::BufWriter<File>>),
    Zstd(zstd::Encoder<'static, io::BufWriter<File>>),
}

impl Writer {
    pub fn new(file: File, compression: Option<Compression>) -> io::Result<Self> {
        let file = io::BufWriter::new(file);
        Ok(match compression {
            Some(Compression::Gzip) => {
                Self::Gzip(GzEncoder::new(file, flate2::Compression::default()))
            }
            Some(Compression::Zstd) => Self::Zstd(zstd::Encoder::new(file, 0)?),
            None | Some(Compression::Other { .. }) => Self::Plain(file),
        })
    }

    /// Writes the end of the compressed data. Returns the file.
    pub fn finish(self) -> io::Result<File> {
        let file = match self {
            Self::Plain(file) => file,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Zstd(encoder) => encoder.finish()?,
        };
        file.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
