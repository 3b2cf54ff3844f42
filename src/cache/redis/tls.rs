//! TLS of connections to Redis.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use fred::{
    prelude::Config,
    types::config::{TlsConfig, TlsConnector},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
};

use super::config::RedisConfigError;

/// Files in PEM for connections to Redis over TLS, which are read once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate authorities that sign the servers' certificates. `None` trusts those of the system.
    pub authorities: Option<PathBuf>,
    /// The certificate to present to servers that require one.
    pub client: Option<ClientCertificate>,
}

/// Files in PEM with a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, followed by those of intermediate authorities.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Makes connections use the files, if there are any.
    pub(super) fn apply(&self, connect: &mut Config) -> Result<(), RedisConfigError> {
        if *self == Self::default() {
            return Ok(());
        }
        if connect.tls.is_none() {
            return Err(RedisConfigError::TlsFilesWithoutTls);
        }
        connect.tls = Some(self.load()?);
        Ok(())
    }

    fn load(&self) -> Result<TlsConfig, RedisConfigError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.authorities {
            for authority in certificates(path)? {
                roots
                    .add(authority)
                    .map_err(|error| unusable(path, &error))?;
            }
        } else {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
        let config = ClientConfig::builder().with_root_certificates(roots);
        let config = match &self.client {
            None => config.with_no_client_auth(),
            Some(ClientCertificate { certificate, key }) => {
                let chain = certificates(certificate)?;
                let private = PrivateKeyDer::from_pem_file(key);
                let private = private.map_err(|error| unreadable(key, "private key", error))?;
                config
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| unusable(key, &error))?
            }
        };
        Ok(TlsConnector::from(config).into())
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RedisConfigError> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = found.map_err(|error| unreadable(path, "certificate", error))?;
    if found.is_empty() {
        return Err(unreadable(path, "certificate", pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn unreadable(path: &Path, item: &str, error: pem::Error) -> RedisConfigError {
    match error {
        pem::Error::NoItemsFound => unusable(path, &format_args!("it has no {item} in PEM")),
        pem::Error::Io(error) => unusable(path, &error),
        error => unusable(path, &error),
    }
}

fn unusable(path: &Path, problem: &dyn Display) -> RedisConfigError {
    RedisConfigError::TlsFile {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}
