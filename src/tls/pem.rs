//! Certificates and private keys in PEM.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

use crate::files;

/// Maximum size of a file. The bundle of all public authorities has a quarter of it.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A file can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} can't be used: {problem}", path.display())]
pub struct FileError {
    /// The path of the file.
    pub path: PathBuf,
    /// What is wrong with it, and how to correct it.
    pub problem: String,
}

impl FileError {
    pub(super) fn new(path: &Path, problem: &dyn Display) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }
}

/// Reads one or more certificates.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let content = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    let found = found.map_err(|error| unreadable(path, &error))?;
    if found.is_empty() {
        return Err(missing(path, "certificate", &content));
    }
    Ok(found)
}

/// Reads the first private key.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let content = read(path)?;
    PrivateKeyDer::from_pem_slice(&content).map_err(|error| match error {
        pem::Error::NoItemsFound => missing(path, "private key", &content),
        error => unreadable(path, &error),
    })
}

/// Reads one or more certificate authorities.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots
            .add(authority)
            .map_err(|error| FileError::new(path, &error))?;
    }
    Ok(roots)
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    files::read(path, MAX_FILE_BYTES).map_err(|error| FileError::new(path, &error))
}

fn unreadable(path: &Path, error: &pem::Error) -> FileError {
    FileError::new(path, &format_args!("it isn't valid PEM: {error}"))
}

/// The error for a file without an item, which names what the file has instead.
fn missing(path: &Path, item: &str, content: &[u8]) -> FileError {
    let text = String::from_utf8_lossy(content);
    let hint = if text.trim().is_empty() {
        ": it is empty"
    } else if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY") {
        ": it has an encrypted one, which `openssl pkey -in FILE -out PLAIN` decrypts"
    } else if text.contains("PRIVATE KEY-----") {
        ": it has a private key"
    } else if text.contains("-----BEGIN CERTIFICATE-----") {
        ": it has a certificate"
    } else {
        ""
    };
    FileError::new(path, &format_args!("it has no {item} in PEM{hint}"))
}
