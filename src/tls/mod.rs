//! TLS: of the port that the service listens on, and of connections that the service and the command
//! line make. Files are in PEM.

mod client;
mod pem;
mod server;
#[cfg(test)]
mod tests;

pub use self::{
    client::{ClientCertificate, TlsFiles},
    pem::FileError,
    server::{ServerTls, ServerTlsError, ServerTlsFiles},
};
