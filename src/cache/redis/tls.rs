//! TLS of connections to Redis.

use fred::{prelude::Config, types::config::TlsConnector};

use super::config::RedisConfigError;
use crate::tls::TlsFiles;

/// Makes connections use the files, if there are any.
pub(super) fn apply(files: &TlsFiles, connect: &mut Config) -> Result<(), RedisConfigError> {
    if *files == TlsFiles::default() {
        return Ok(());
    }
    if connect.tls.is_none() {
        return Err(RedisConfigError::TlsFilesWithoutTls);
    }
    let config = files.client_config().map_err(RedisConfigError::TlsFile)?;
    connect.tls = Some(TlsConnector::from(config).into());
    Ok(())
}
