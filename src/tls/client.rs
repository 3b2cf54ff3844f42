//! TLS of the connections to other servers.

use std::path::PathBuf;

use rustls::{ClientConfig, RootCertStore};

use super::pem::{FileError, authorities, certificates, private_key};

/// Files for connections over TLS, which are read once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate authorities that sign the servers' certificates. `None` trusts those of the
    /// system.
    pub authorities: Option<PathBuf>,
    /// The certificate to present to servers that require one.
    pub client: Option<ClientCertificate>,
}

/// Files with a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, followed by those of intermediate authorities.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Reads the files.
    pub fn client_config(&self) -> Result<ClientConfig, FileError> {
        let roots = if let Some(path) = &self.authorities {
            authorities(path)?
        } else {
            let mut roots = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            roots
        };
        let config = ClientConfig::builder().with_root_certificates(roots);
        match &self.client {
            None => Ok(config.with_no_client_auth()),
            Some(ClientCertificate { certificate, key }) => config
                .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
                .map_err(|error| FileError::new(key, &error)),
        }
    }
}
