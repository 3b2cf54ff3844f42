//! Tests of the server's files and of their changes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, SystemTime},
};

use servers::certificates::{Authority, Identity};
use tempfile::TempDir;

use super::{
    ServerTls, ServerTlsFiles,
    server::{Phase, Validity},
};

const DAY: Duration = Duration::from_hours(24);

struct Fixture {
    dir: TempDir,
    authority: Authority,
    files: ServerTlsFiles,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let authority = Authority::new("ours");
        let files = authority.issue("localhost").write(dir.path(), "server");
        let files = ServerTlsFiles {
            certificate: files.certificate,
            key: files.key,
            client_authorities: Some(authority.write(dir.path(), "clients.crt")),
        };
        Self {
            dir,
            authority,
            files,
        }
    }

    fn refusal(&self) -> String {
        let refused = ServerTls::load(&self.files).err().expect("it is refused");
        refused.to_string()
    }

    fn issue(&self, from_days: i64, to_days: i64) -> Identity {
        let now = SystemTime::now();
        let at = |days: i64| {
            let distance = DAY * u32::try_from(days.abs()).expect("few days");
            if days < 0 {
                now - distance
            } else {
                now + distance
            }
        };
        self.authority
            .issue_between("localhost", at(from_days), at(to_days))
    }
}

#[test]
fn files_that_cannot_be_used_are_refused_with_flag_path_and_reason() {
    let good = Fixture::new();
    let other = good.authority.issue("localhost");
    let expired = good.issue(-9, -3);
    let of = |path: &Path| fs::read_to_string(path).expect("a file");
    let (certificate, key) = (of(&good.files.certificate), of(&good.files.key));
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let damaged = certificate.replacen("MII", "MIJ", 1);
    for (setting, content, reason) in [
        (
            "tls-cert-file",
            "",
            "has no certificate in PEM: it is empty",
        ),
        ("tls-cert-file", "\n", "it is empty"),
        ("tls-cert-file", "text", "has no certificate in PEM"),
        ("tls-cert-file", &key, "it has a private key"),
        ("tls-cert-file", &certificate[..200], "isn't valid PEM"),
        ("tls-cert-file", &damaged, "invalid"),
        (
            "tls-cert-file",
            &expired.certificate,
            "it expired 3 days ago: renew it",
        ),
        ("tls-key-file", "", "has no private key in PEM: it is empty"),
        ("tls-key-file", &certificate, "it has a certificate"),
        ("tls-key-file", encrypted, "openssl pkey"),
        (
            "tls-key-file",
            &other.key,
            "it isn't the key of the first certificate in",
        ),
        ("tls-client-ca-file", "", "has no certificate in PEM"),
        ("tls-client-ca-file", &damaged, "can't be used"),
    ] {
        let fixture = Fixture::new();
        fs::write(&fixture.files.certificate, &certificate).expect("a file");
        fs::write(&fixture.files.key, &key).expect("a file");
        let path = match setting {
            "tls-cert-file" => fixture.files.certificate.clone(),
            "tls-key-file" => fixture.files.key.clone(),
            _ => fixture.files.client_authorities.clone().expect("a file"),
        };
        fs::write(&path, content).expect("a file");
        let refusal = fixture.refusal();
        let start = format!("{setting} {} can't be used: ", path.display());
        assert!(refusal.starts_with(&start), "{refusal}");
        assert!(refusal.contains(reason), "{reason}: {refusal}");
    }
    let fixture = Fixture::new();
    fs::remove_file(&fixture.files.key).expect("a file");
    assert!(
        fixture.refusal().contains("No such file"),
        "{}",
        fixture.refusal()
    );
    fs::create_dir(&fixture.files.key).expect("a folder");
    assert!(
        fixture.refusal().contains("regular file"),
        "{}",
        fixture.refusal()
    );
}

#[test]
fn a_problem_is_reported_once_and_leaves_the_old_certificate_in_use() {
    let fixture = Fixture::new();
    let tls = ServerTls::load(&fixture.files).expect("good files");
    let first = tls.config();
    assert!(tls.check().is_none(), "nothing has changed");

    let next = fixture.issue(-1, 30);
    fs::write(&fixture.files.certificate, &next.certificate).expect("a file");
    assert!(tls.check().is_none(), "the key may follow");
    let problem = tls.check().expect("it hasn't followed").to_string();
    assert!(problem.contains("isn't the key of"), "{problem}");
    assert!(tls.check().is_none(), "it was reported");
    assert!(std::sync::Arc::ptr_eq(&tls.config(), &first));

    fs::write(&fixture.files.key, &next.key).expect("a file");
    assert!(tls.check().is_none());
    assert!(!std::sync::Arc::ptr_eq(&tls.config(), &first));
    let days = tls
        .expiry()
        .duration_since(SystemTime::now())
        .expect("valid");
    assert!(days > 29 * DAY && days < 31 * DAY, "{days:?}");

    // A pair whose halves are written one after the other causes no report.
    let last = fixture.issue(-1, 60);
    fs::write(&fixture.files.key, &last.key).expect("a file");
    assert!(tls.check().is_none());
    fs::write(&fixture.files.certificate, &last.certificate).expect("a file");
    assert!(tls.check().is_none());
    assert!(tls.check().is_none());
    assert!(tls.expiry() > SystemTime::now() + 59 * DAY);

    fs::write(
        fixture.files.client_authorities.as_ref().expect("a file"),
        "",
    )
    .expect("a file");
    assert!(tls.check().is_none());
    let problem = tls.check().expect("an empty file").to_string();
    assert!(problem.starts_with("tls-client-ca-file"), "{problem}");
}

/// As Kubernetes replaces secrets: the files are links into a folder that is itself a link, which is
/// exchanged.
#[test]
fn a_change_of_a_symbolic_link_is_noticed() {
    let mut fixture = Fixture::new();
    let root = fixture.dir.path().to_owned();
    for (name, days) in [("first", 30), ("second", 60)] {
        fs::create_dir(root.join(name)).expect("a folder");
        let identity = fixture.issue(-1, days);
        fs::write(root.join(name).join("tls.crt"), identity.certificate).expect("a file");
        fs::write(root.join(name).join("tls.key"), identity.key).expect("a file");
    }
    symlink("first", root.join("..data")).expect("a link");
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), root.join(name)).expect("a link");
    }
    fixture.files.certificate = root.join("tls.crt");
    fixture.files.key = root.join("tls.key");
    let tls = ServerTls::load(&fixture.files).expect("good files");
    assert!(tls.expiry() < SystemTime::now() + 31 * DAY);

    symlink("second", root.join("..data_tmp")).expect("a link");
    fs::rename(root.join("..data_tmp"), root.join("..data")).expect("exchanged");
    assert!(tls.check().is_none());
    assert!(tls.expiry() > SystemTime::now() + 59 * DAY);
}

#[test]
fn the_phases_of_a_certificate_follow_each_other() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    for (from, to, phase) in [
        (1, 90, Phase::NotYet),
        (-1, 90, Phase::Valid),
        (-1, 15, Phase::Valid),
        (-1, 13, Phase::ExpiresSoon),
        (-9, -1, Phase::Expired),
    ] {
        let files = fixture.issue(from, to).write(fixture.dir.path(), "phase");
        let chain = super::pem::certificates(&files.certificate).expect("a certificate");
        let validity = Validity::of(&chain[0]).expect("a period");
        assert_eq!(validity.phase(now), phase, "{from} to {to}");
    }
}
