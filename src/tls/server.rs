//! TLS of the port that the service listens on.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    CertificateError, Error, RootCertStore, ServerConfig,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::pem::{FileError, authorities, certificates, private_key};
use crate::files::Stamp;

/// The only protocol of the port, as clients negotiate it.
const HTTP2: &[u8] = b"h2";

/// The time between two checks of the files for a change.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long before the certificate expires the warnings begin: 14 days.
const EXPIRY_NOTICE: Duration = Duration::from_hours(14 * 24);

/// The time between two warnings.
const NOTICE_INTERVAL: Duration = Duration::from_hours(24);

/// The files of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsFiles {
    /// The certificate, followed by those of intermediate authorities.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The authorities that sign the certificates of clients. `None` asks clients for no certificate.
    pub client_authorities: Option<PathBuf>,
}

/// A file of the server can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{setting} {file}")]
pub struct ServerTlsError {
    /// The setting that names the file.
    pub setting: &'static str,
    /// The file, and what is wrong with it.
    pub file: FileError,
}

/// The certificate, its key and the authorities of clients, which are read again when their files
/// change. Files that can't be used leave the old ones in use.
pub struct ServerTls {
    files: ServerTlsFiles,
    current: ArcSwap<Loaded>,
    watch: Mutex<Watch>,
}

/// The content of one version of the files.
struct Loaded {
    config: Arc<ServerConfig>,
    validity: Validity,
}

/// The state of the files at the last check.
struct Watch {
    stamps: Stamps,
    /// Why they can't be used, if that wasn't logged yet.
    problem: Option<ServerTlsError>,
}

/// `None` if a file is missing.
type Stamps = [Option<Stamp>; 3];

impl ServerTlsFiles {
    fn stamps(&self) -> Stamps {
        [
            Stamp::of(&self.certificate),
            Stamp::of(&self.key),
            self.client_authorities.as_deref().and_then(Stamp::of),
        ]
    }

    fn load(&self) -> Result<Loaded, ServerTlsError> {
        let of_certificate = in_setting("tls-cert-file");
        let of_key = in_setting("tls-key-file");
        let of_authorities = in_setting("tls-client-ca-file");

        let chain = certificates(&self.certificate).map_err(of_certificate)?;
        let key = private_key(&self.key).map_err(of_key)?;
        let validity = chain
            .first()
            .map_or(Err(CertificateError::BadEncoding.into()), Validity::of);
        let validity =
            validity.map_err(|error| of_certificate(FileError::new(&self.certificate, &error)))?;
        if let Some(age) = validity.expired(SystemTime::now()) {
            let problem = format!("it expired {} ago: renew it", LargestUnit(age));
            return Err(of_certificate(FileError::new(&self.certificate, &problem)));
        }
        let builder = ServerConfig::builder();
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = authorities(path).map_err(of_authorities)?;
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| of_authorities(FileError::new(path, &error)))?,
                )
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                Error::InconsistentKeys(_) => of_key(FileError::new(
                    &self.key,
                    &format_args!(
                        "it isn't the key of the first certificate in {}",
                        self.certificate.display()
                    ),
                )),
                Error::InvalidCertificate(_) => {
                    of_certificate(FileError::new(&self.certificate, &error))
                }
                _ => of_key(FileError::new(&self.key, &error)),
            })?;
        config.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(Loaded {
            config: Arc::new(config),
            validity,
        })
    }
}

fn in_setting(setting: &'static str) -> impl Fn(FileError) -> ServerTlsError + Copy {
    move |file| ServerTlsError { setting, file }
}

impl ServerTls {
    /// Reads the files.
    pub fn load(files: &ServerTlsFiles) -> Result<Self, ServerTlsError> {
        // The stamps are taken first: a change during the read is noticed by the next check.
        let watch = Watch {
            stamps: files.stamps(),
            problem: None,
        };
        Ok(Self {
            current: ArcSwap::from_pointee(files.load()?),
            files: files.clone(),
            watch: Mutex::new(watch),
        })
    }

    /// The configuration of new connections.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().config)
    }

    /// When the certificate in use expires.
    pub fn expiry(&self) -> SystemTime {
        self.current.load().validity.not_after
    }

    /// Rereads the files, and logs the outcome.
    pub fn reload(&self) {
        let mut watch = self.watch.lock();
        watch.stamps = self.files.stamps();
        watch.problem = None;
        log_problem(self.reread().err());
    }

    /// Rereads the files if one has changed since the last check. Returns a problem that was there at
    /// the last check too, once: files that are replaced one after the other don't match meanwhile.
    pub(super) fn check(&self) -> Option<ServerTlsError> {
        let mut watch = self.watch.lock();
        let stamps = self.files.stamps();
        if stamps == watch.stamps {
            return watch.problem.take();
        }
        watch.stamps = stamps;
        watch.problem = self.reread().err();
        None
    }

    fn reread(&self) -> Result<(), ServerTlsError> {
        let loaded = self.files.load()?;
        tracing::info!(
            tls.certificate = %self.files.certificate.display(),
            tls.valid_for = %LargestUnit(loaded.validity.remaining(SystemTime::now())),
            "the TLS files were reread and are used for new connections",
        );
        self.current.store(Arc::new(loaded));
        Ok(())
    }

    /// Checks the files for changes each second. Warns once a day from 14 days before the
    /// certificate expires.
    pub async fn watch_loop(self: Arc<Self>) {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut noticed: Option<(Phase, Instant)> = None;
        loop {
            ticks.tick().await;
            log_problem(self.check());
            let phase = self.current.load().validity.phase(SystemTime::now());
            let is_known = noticed.is_some_and(|(earlier, at)| {
                earlier == phase && (phase == Phase::Valid || at.elapsed() < NOTICE_INTERVAL)
            });
            if !is_known {
                self.log_phase(phase);
                noticed = Some((phase, Instant::now()));
            }
        }
    }

    fn log_phase(&self, phase: Phase) {
        let path: &Path = &self.files.certificate;
        let remaining = self.current.load().validity.remaining(SystemTime::now());
        match phase {
            Phase::Valid => {}
            Phase::NotYet => tracing::warn!(
                tls.certificate = %path.display(),
                "the TLS certificate isn't valid yet, so clients refuse it: check the clocks",
            ),
            Phase::ExpiresSoon => tracing::warn!(
                tls.certificate = %path.display(),
                "the TLS certificate expires in {}: renew it", LargestUnit(remaining),
            ),
            Phase::Expired => tracing::error!(
                tls.certificate = %path.display(),
                "the TLS certificate has expired, so clients refuse it: renew it",
            ),
        }
    }
}

fn log_problem(problem: Option<ServerTlsError>) {
    if let Some(error) = problem {
        tracing::error!(
            error = &error as &(dyn std::error::Error + 'static),
            "the TLS files have changed and can't be used: the old ones stay in use",
        );
    }
}

/// The period in which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
}

/// The phase of a certificate's validity at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    NotYet,
    Valid,
    /// Within [`EXPIRY_NOTICE`].
    ExpiresSoon,
    Expired,
}

impl Validity {
    /// Reads the period of a certificate from the errors of two verifications, one at a time before it
    /// and one after it, which state its limits.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let refusal = |seconds| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &RootCertStore::empty(),
                &[],
                now,
                &[],
            )
        };
        let at = |time: UnixTime| UNIX_EPOCH + Duration::from_secs(time.as_secs());
        let not_before = match refusal(0) {
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            })) => at(not_before),
            Err(error @ Error::InvalidCertificate(CertificateError::BadEncoding)) => {
                return Err(error);
            }
            _ => UNIX_EPOCH,
        };
        match refusal(u64::MAX) {
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) => Ok(Self {
                not_before,
                not_after: at(not_after),
            }),
            Err(error) => Err(error),
            Ok(()) => Err(CertificateError::BadEncoding.into()),
        }
    }

    pub(super) fn phase(self, now: SystemTime) -> Phase {
        if now < self.not_before {
            Phase::NotYet
        } else if now > self.not_after {
            Phase::Expired
        } else if self.remaining(now) < EXPIRY_NOTICE {
            Phase::ExpiresSoon
        } else {
            Phase::Valid
        }
    }

    fn remaining(self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// For how long the certificate has been expired.
    fn expired(self, now: SystemTime) -> Option<Duration> {
        now.duration_since(self.not_after).ok()
    }
}

/// Displays a duration in its largest unit.
struct LargestUnit(Duration);

impl std::fmt::Display for LargestUnit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        let (count, unit) = match seconds {
            0..60 => (seconds, "second"),
            60..3_600 => (seconds / 60, "minute"),
            3_600..86_400 => (seconds / 3_600, "hour"),
            _ => (seconds / 86_400, "day"),
        };
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "{count} {unit}{plural}")
    }
}
