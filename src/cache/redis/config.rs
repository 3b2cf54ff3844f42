//! The settings of the Redis engine.

use std::{fmt, time::Duration};

use fred::prelude::Config;

use crate::tls::{FileError, TlsFiles};

const SCHEMES: [&str; 6] = [
    "redis",
    "rediss",
    "redis-sentinel",
    "rediss-sentinel",
    "redis-cluster",
    "rediss-cluster",
];

/// Settings of the Redis engine. It needs Redis 7.0 or later.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[[user]:password@]host[:port][/database]`; with TLS `rediss://`; or
    /// `redis-sentinel://host:port?sentinelServiceName=NAME`, or `redis-cluster://host:port`, where
    /// `node=host:port` in the query adds a node.
    pub url: String,
    /// Files for TLS. Must be empty for a URL without TLS.
    pub tls: TlsFiles,
    /// The prefix of every key, so that several services can share a server. No braces.
    pub prefix: String,
    /// Maximum size of the entries in the process.
    pub max_local_bytes: u64,
    /// Time to live of an entry: in Redis since it was filled, in the process since it was last read.
    pub ttl: Duration,
}

/// An invalid [`RedisConfig`]. Never contains the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisConfigError {
    /// The URL is malformed.
    #[error(
        "the Redis URL is invalid: {0}; give redis://[[user]:password@]host[:port][/database], or \
         the same with rediss, redis-sentinel (and ?sentinelServiceName=NAME) or redis-cluster"
    )]
    Url(String),
    /// The prefix has a brace, which would move keys to other slots of a Cluster.
    #[error("the Redis key prefix {0:?} has a brace: choose one without")]
    Prefix(String),
    /// There are files for TLS, and the URL connects without TLS.
    #[error(
        "there are TLS files for Redis, but its URL connects without TLS: give a rediss://, \
         rediss-sentinel:// or rediss-cluster:// URL"
    )]
    TlsFilesWithoutTls,
    /// A file for TLS can't be used.
    #[error("the TLS file for Redis {0}")]
    TlsFile(FileError),
}

/// Changes whenever the names or the meaning of keys change.
const LAYOUT: u8 = 1;

/// The settings that all replicas on one database must share, because each invalidates the others'
/// entries. The epoch's row has their fingerprint.
#[derive(Debug, Clone)]
pub(super) struct SharedSettings {
    pub(super) prefix: String,
    database: u8,
}

impl SharedSettings {
    pub(super) fn new(config: &RedisConfig) -> Result<Self, RedisConfigError> {
        if config.prefix.contains(['{', '}']) {
            return Err(RedisConfigError::Prefix(config.prefix.clone()));
        }
        Ok(Self {
            prefix: config.prefix.clone(),
            database: parse_url(&config.url)?.database.unwrap_or(0),
        })
    }

    /// A digest of the settings.
    pub(super) fn fingerprint(&self) -> u64 {
        let digest = blake3::hash(self.to_string().as_bytes());
        digest.as_bytes()[..8]
            .iter()
            .fold(0, |bits, byte| bits << 8 | u64::from(*byte))
    }
}

impl fmt::Display for SharedSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prefix, database } = self;
        write!(
            f,
            "key prefix {prefix:?}, database {database}, layout {LAYOUT}"
        )
    }
}

/// Parses a URL, without repeating any part of it in an error.
pub(super) fn parse_url(url: &str) -> Result<Config, RedisConfigError> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !scheme.is_some_and(|scheme| SCHEMES.contains(&scheme)) {
        return Err(RedisConfigError::Url("unknown scheme".to_owned()));
    }
    Config::from_url(url).map_err(|error| {
        let details = error.details();
        // This message repeats a part of the URL.
        RedisConfigError::Url(if details.starts_with("Invalid host:port") {
            "a node isn't host:port".to_owned()
        } else {
            details.to_owned()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_differ_have_different_fingerprints() {
        let fingerprint = |url: &str, prefix: &str| {
            let config = RedisConfig {
                url: url.to_owned(),
                tls: TlsFiles::default(),
                prefix: prefix.to_owned(),
                max_local_bytes: 0,
                ttl: Duration::from_secs(1),
            };
            let settings = SharedSettings::new(&config).expect("valid");
            settings.fingerprint()
        };
        let usual = fingerprint("redis://a", "t1");
        assert_eq!(usual, fingerprint("redis://user:password@b/0", "t1"));
        assert_ne!(usual, fingerprint("redis://a", "t11"));
        assert_ne!(usual, fingerprint("redis://a/1", "t1"));
    }

    #[test]
    fn a_prefix_with_a_brace_is_refused() {
        let config = RedisConfig {
            url: "redis://localhost".to_owned(),
            tls: TlsFiles::default(),
            prefix: "a{b".to_owned(),
            max_local_bytes: 0,
            ttl: Duration::from_secs(1),
        };
        let error = SharedSettings::new(&config).expect_err("a brace");
        assert_eq!(
            error.to_string(),
            "the Redis key prefix \"a{b\" has a brace: choose one without"
        );
    }

    #[test]
    fn a_malformed_url_is_reported_without_its_password() {
        for url in [
            "",
            "user:hunter2@host",
            "http://user:hunter2@host",
            "redis://user:hunter2@",
            "redis://user:hunter2@host:port",
            "redis://user:hunter2@host/database",
            "redis-sentinel://user:hunter2@host",
            "redis-cluster://user:hunter2@host?node=hunter2",
        ] {
            let text = parse_url(url).expect_err("malformed").to_string();
            assert!(text.starts_with("the Redis URL is invalid: "), "{text}");
            assert!(!text.contains("hunter2"), "{url}: {text}");
        }
    }
}
