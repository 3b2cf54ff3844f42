//! The file that an export writes.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
};

use crate::cli::transfer::{
    TransferError,
    compression::{Compression, Writer},
    ignore_broken_pipe, progress,
};

/// A file under a temporary name. Unless [`Output::keep`] gives it its own name, dropping it deletes
/// it.
pub struct Output {
    /// `None` once it is complete.
    file: Option<Writer>,
    path: PathBuf,
    /// `None` for a device or a pipe, which is written in place.
    temporary: Option<PathBuf>,
}

impl Output {
    pub fn create(path: &Path, compression: Option<Compression>) -> Result<Self, TransferError> {
        let write_error = |cause| TransferError::Write {
            path: path.to_owned(),
            cause,
        };
        let is_special = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
        if is_special {
            let file = File::options()
                .write(true)
                .open(path)
                .map_err(write_error)?;
            return Ok(Self {
                file: Some(Writer::new(file, compression).map_err(write_error)?),
                path: path.to_owned(),
                temporary: None,
            });
        }
        // The target of a symbolic link is replaced, not the link.
        let own = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        note_leftovers(&own);
        let mut temporary = own.clone().into_os_string();
        temporary.push(format!(".{}{PARTIAL}", process::id()));
        let temporary = PathBuf::from(temporary);
        let file = File::create(&temporary).map_err(write_error)?;
        Ok(Self {
            file: Some(Writer::new(file, compression).map_err(write_error)?),
            path: own,
            temporary: Some(temporary),
        })
    }

    /// Completes the file, syncs it to the disk and gives it its own name.
    pub fn keep(mut self) -> Result<(), TransferError> {
        let file = self
            .file
            .take()
            .map_or_else(|| Err(io::ErrorKind::BrokenPipe.into()), Writer::finish);
        let kept = match &self.temporary {
            None => ignore_broken_pipe(file.map(|_| ())),
            Some(temporary) => file
                .and_then(|file| file.sync_all())
                .and_then(|()| fs::rename(temporary, &self.path)),
        };
        kept.map_err(|cause| TransferError::Write {
            path: self.path.clone(),
            cause,
        })?;
        self.temporary = None;
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// The suffix of the names of incomplete files.
const PARTIAL: &str = ".partial";

/// Names the files that killed exports left beside a file.
fn note_leftovers(own: &Path) {
    for path in leftovers(own) {
        progress::note(&format!(
            "{} was left by an export that was killed: delete it",
            path.display()
        ));
    }
}

/// The incomplete files beside a file whose processes have ended.
fn leftovers(own: &Path) -> Vec<PathBuf> {
    let Some(name) = own.file_name().and_then(|name| name.to_str()) else {
        return Vec::new();
    };
    let folder = own.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Ok(entries) = fs::read_dir(folder.unwrap_or(Path::new("."))) else {
        return Vec::new();
    };
    let is_leftover = |path: &PathBuf| {
        let process = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|other| other.strip_prefix(name)?.strip_prefix('.'))
            .and_then(|rest| rest.strip_suffix(PARTIAL)?.parse::<u32>().ok());
        process.is_some_and(|process| {
            process != process::id() && !Path::new(&format!("/proc/{process}")).exists()
        })
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_leftover)
        .collect()
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The caller reports the error that the export failed with, not this one.
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_only_when_the_new_one_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.csv");
        let files = || fs::read_dir(dir.path()).unwrap().count();
        fs::write(&path, "old").unwrap();

        let mut output = Output::create(&path, None).unwrap();
        output.write_all(b"new").unwrap();
        assert_eq!(files(), 2);
        drop(output);
        assert_eq!(
            (fs::read_to_string(&path).unwrap().as_str(), files()),
            ("old", 1)
        );

        let mut output = Output::create(&path, None).unwrap();
        output.write_all(b"new").unwrap();
        output.keep().unwrap();
        assert_eq!(
            (fs::read_to_string(&path).unwrap().as_str(), files()),
            ("new", 1)
        );
    }

    #[test]
    fn links_and_devices_are_written_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("out"), dir.path().join("link"));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut output = Output::create(&link, None).unwrap();
        output.write_all(b"new").unwrap();
        output.keep().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");

        let output = Output::create(Path::new("/dev/null"), None).unwrap();
        assert!(output.temporary.is_none());

        let mut output = Output::create(Path::new("/dev/full"), None).unwrap();
        output.write_all(b"new").unwrap();
        let error = output.keep().unwrap_err().to_string();
        assert!(error.starts_with("cannot write /dev/full: "), "{error}");
    }

    #[test]
    fn the_reader_of_a_pipe_may_leave() {
        let (reader, writer) = io::pipe().unwrap();
        let path = format!("/dev/fd/{}", writer.as_raw_fd());
        let mut output = Output::create(Path::new(&path), None).unwrap();
        drop(reader);
        output.write_all(b"new").unwrap();
        output.keep().unwrap();
    }

    #[test]
    fn files_of_killed_exports_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("out.csv");
        for name in [
            "out.csv.4294967295.partial",
            &format!("out.csv.{}.partial", process::id()),
            "out.csv.1.partial",
            "other.csv.4294967295.partial",
            "out.csv.x.partial",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(
            leftovers(&own),
            [dir.path().join("out.csv.4294967295.partial")]
        );
    }
}
