//! The file that an export writes.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process,
};

use crate::cli::transfer::TransferError;

/// A file under a temporary name. Unless [`Output::keep`] gives it its own name, dropping it deletes
/// it.
pub struct Output {
    pub file: BufWriter<File>,
    /// `None` for a device or a pipe, which is written in place.
    names: Option<Names>,
}

struct Names {
    temporary: PathBuf,
    own: PathBuf,
}

impl Output {
    pub fn create(path: &Path) -> Result<Self, TransferError> {
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
                file: BufWriter::new(file),
                names: None,
            });
        }
        // The target of a symbolic link is replaced, not the link.
        let own = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut temporary = own.clone().into_os_string();
        temporary.push(format!(".{}.partial", process::id()));
        let temporary = PathBuf::from(temporary);
        let file = File::create(&temporary).map_err(write_error)?;
        Ok(Self {
            file: BufWriter::new(file),
            names: Some(Names { temporary, own }),
        })
    }

    /// Syncs the file to the disk and gives it its own name.
    pub fn keep(mut self) -> Result<(), TransferError> {
        let Some(Names { temporary, own }) = &self.names else {
            return Ok(());
        };
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(temporary, own))
            .map_err(|cause| TransferError::Write {
                path: own.clone(),
                cause,
            })?;
        self.names = None;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(Names { temporary, .. }) = &self.names {
            // The caller reports the error that the export failed with, not this one.
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn links_and_devices_are_written_in_place() {
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
