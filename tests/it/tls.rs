//! TLS of the gRPC port.

use std::{
    fs, io,
    net::SocketAddr,
    pin::Pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use hyper_util::rt::TokioIo;
use location_service::proto::location::v1::{self, location_service_client::LocationServiceClient};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use servers::certificates::{Authority, Identity, IdentityFiles};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::{
    harness::{
        self, Client, PATIENCE, cache_status, create, eventually, names, of_run, storage, token,
    },
    observe::scrape,
    process::{Home, Process, Refusal, output, service},
    robustness::PREFACE,
};

const DAY: Duration = Duration::from_hours(24);

/// A service with TLS, and the authority of its certificate.
struct Fixture {
    home: Home,
    authority: Authority,
    files: IdentityFiles,
}

impl Fixture {
    fn new() -> Self {
        let home = Home::new();
        let authority = Authority::new("ours");
        let files = authority
            .issue("localhost")
            .write(home.dir.path(), "server");
        Self {
            home,
            authority,
            files,
        }
    }

    fn command(&self) -> Command {
        let mut command = self.home.command();
        command
            .arg("--tls-cert-file")
            .arg(&self.files.certificate)
            .arg("--tls-key-file")
            .arg(&self.files.key);
        command
    }

    async fn start(&self) -> Process {
        self.home.run(self.command()).await.expect("it starts")
    }

    /// A client that trusts the authority.
    fn client(&self) -> ClientSettings<'_> {
        ClientSettings {
            authority: &self.authority,
            identity: None,
            version: &TLS13,
            protocols: &["h2"],
        }
    }
}

#[derive(Clone, Copy)]
struct ClientSettings<'a> {
    authority: &'a Authority,
    identity: Option<&'a Identity>,
    version: &'static SupportedProtocolVersion,
    protocols: &'a [&'a str],
}

impl ClientSettings<'_> {
    fn config(&self) -> ClientConfig {
        let config = ClientConfig::builder_with_protocol_versions(&[self.version])
            .with_root_certificates(roots(self.authority));
        let mut config = match self.identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = pair(identity);
                config.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        config.alpn_protocols = self
            .protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        config
    }

    async fn connect_over<IO>(&self, stream: IO) -> io::Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from("localhost").expect("a name");
        let connect = TlsConnector::from(Arc::new(self.config())).connect(name, stream);
        timeout(PATIENCE, connect)
            .await
            .expect("a handshake in time")
    }

    async fn connect(&self, process: &Process) -> io::Result<TlsStream<TcpStream>> {
        self.connect_over(tcp(process).await).await
    }

    /// A channel over a connection that is counted.
    async fn channel(&self, process: &Process, records: Arc<AtomicUsize>) -> Channel {
        let stream = Counted {
            stream: tcp(process).await,
            records,
            rest_of_record: 0,
            header: Vec::new(),
        };
        let mut session = Some(TokioIo::new(
            self.connect_over(stream).await.expect("a session"),
        ));
        let endpoint = Endpoint::new(process.url.clone()).expect("a URL");
        endpoint
            .connect_with_connector(tower::service_fn(move |_| {
                let session = session.take().ok_or(io::ErrorKind::NotConnected);
                async move { session.map_err(io::Error::from) }
            }))
            .await
            .expect("a channel")
    }

    async fn admin(&self, process: &Process) -> Client {
        harness::admin(self.channel(process, Arc::default()).await)
    }

    /// The certificate that the service presents.
    async fn presented(&self, process: &Process) -> CertificateDer<'static> {
        let session = self.connect(process).await.expect("a session");
        let (_, session) = session.get_ref();
        let chain = session.peer_certificates().expect("a certificate");
        chain[0].clone().into_owned()
    }
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")
}

/// The chain and the key.
fn pair(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes());
    (vec![certificate(&identity.certificate)], key.expect("PEM"))
}

fn authority_of(process: &Process) -> &str {
    let (_, address) = process.url.split_once("://").expect("a URL");
    address
}

async fn tcp(process: &Process) -> TcpStream {
    TcpStream::connect(authority_of(process))
        .await
        .expect("the service accepts")
}

/// Reads until the service closes the connection.
async fn read_to_end(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut received = Vec::new();
    let closed = stream.read_to_end(&mut received);
    let _ = timeout(PATIENCE, closed).await.expect("closed in time");
    received
}

/// Counts the TLS records that the service sends.
struct Counted {
    stream: TcpStream,
    records: Arc<AtomicUsize>,
    header: Vec<u8>,
    rest_of_record: usize,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        for &byte in &buffer.filled()[before..] {
            if self.rest_of_record > 0 {
                self.rest_of_record -= 1;
                continue;
            }
            self.header.push(byte);
            if let [_, _, _, high, low] = self.header[..] {
                self.rest_of_record = usize::from(high) << 8 | usize::from(low);
                self.header.clear();
                self.records.fetch_add(1, Ordering::Relaxed);
            }
        }
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Lists a run, and returns the cache status.
async fn list(client: &mut Client) -> String {
    let response = client.list_locations(of_run("run")).await.expect("listed");
    assert_eq!(names(&response), ["a"]);
    cache_status(&response).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_served_over_tls_1_2_and_1_3() {
    let fixture = Fixture::new();
    let process = fixture.start().await;
    assert!(process.url.starts_with("https://"), "{}", process.url);
    let mut admin = fixture.client().admin(&process).await;
    let location = create(storage("a", "run"));
    admin.create_location(location).await.expect("created");
    let large: Vec<_> = (0..1_000)
        .map(|number| {
            create(v1::Location {
                description: "x".repeat(1_900),
                ..storage(&format!("{number}"), "large")
            })
        })
        .collect();
    let requests = v1::BatchCreateLocationsRequest { requests: large };
    admin
        .batch_create_locations(requests)
        .await
        .expect("created");
    for (version, protocols) in [
        (&TLS13, &["h2"][..]),
        (&TLS12, &["h2"]),
        (&TLS13, &["http/1.1", "h2"]),
        // Some old clients don't negotiate.
        (&TLS12, &[]),
    ] {
        let settings = ClientSettings {
            version,
            protocols,
            ..fixture.client()
        };
        let mut client = settings.admin(&process).await;
        list(&mut client).await;
        let status = list(&mut client).await;
        assert!(status.contains("hit; detail=local"), "{status}");
        // More than the buffers of the connection hold.
        let request = v1::ListLocationsRequest {
            page_size: 1_000,
            ..of_run("large")
        };
        let lists = (0..4).map(|_| {
            let mut client = client.clone();
            let request = request.clone();
            async move { client.list_locations(request).await.expect("listed") }
        });
        for response in join_all(lists).await {
            assert_eq!(response.into_inner().locations.len(), 1_000);
        }
    }
    let old = ClientSettings {
        protocols: &["http/1.1"],
        ..fixture.client()
    };
    let refused = old.connect(&process).await.expect_err("no HTTP/1.1");
    let expected = "received fatal alert: NoApplicationProtocol";
    assert_eq!(refused.to_string(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_responses_of_concurrent_calls_share_records() {
    const CALLS: usize = 50;
    let fixture = Fixture::new();
    let process = fixture.start().await;
    let records = Arc::default();
    let channel = fixture
        .client()
        .channel(&process, Arc::clone(&records))
        .await;
    let mut client = harness::admin(channel);
    let location = create(storage("a", "run"));
    client.create_location(location).await.expect("created");
    list(&mut client).await;
    let before = records.load(Ordering::Relaxed);
    join_all((0..CALLS).map(|_| {
        let mut client = client.clone();
        async move { list(&mut client).await }
    }))
    .await;
    let used = records.load(Ordering::Relaxed) - before;
    // Each response has three frames.
    assert!(used < CALLS, "{used} records");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_need_a_certificate_of_the_configured_authority() {
    let fixture = Fixture::new();
    let clients = Authority::new("clients");
    let file = clients.write(fixture.home.dir.path(), "clients.crt");
    let mut command = fixture.command();
    command.arg("--tls-client-ca-file").arg(&file);
    let process = fixture.home.run(command).await.expect("it starts");
    let known = clients.issue("caller");
    let stranger = fixture.authority.issue("caller");
    for version in [&TLS12, &TLS13] {
        for (identity, alerts) in [
            (None, &["HandshakeFailure", "CertificateRequired"][..]),
            (
                Some(&stranger),
                &["UnknownCA", "DecryptError", "BadCertificate"],
            ),
        ] {
            let settings = ClientSettings {
                identity,
                version,
                ..fixture.client()
            };
            // With TLS 1.3 the refusal arrives only at the first read, after the client's handshake.
            let refused = async {
                let mut session = settings.connect(&process).await?;
                session.read_u8().await
            };
            let error = refused.await.expect_err("it is refused").to_string();
            let alert = error.strip_prefix("received fatal alert: ");
            let is_known = alert.is_some_and(|alert| alerts.contains(&alert));
            assert!(is_known, "{version:?}: {error}");
        }
        let settings = ClientSettings {
            identity: Some(&known),
            version,
            ..fixture.client()
        };
        let mut admin = settings.admin(&process).await;
        admin.list_locations(of_run("run")).await.expect("listed");
        // The certificate isn't a token.
        let channel = settings.channel(&process, Arc::default()).await;
        let anonymous = LocationServiceClient::new(channel)
            .list_locations(of_run("run"))
            .await;
        let status = anonymous.expect_err("no token");
        assert_eq!(status.code(), Code::Unauthenticated);
    }

    // Further authorities are trusted without a restart.
    let both = format!("{}{}", clients.pem(), fixture.authority.pem());
    fs::write(&file, both).expect("a file");
    eventually("the other authority is trusted", || {
        let settings = ClientSettings {
            identity: Some(&stranger),
            ..fixture.client()
        };
        let process = &process;
        async move {
            let mut session = settings.connect(process).await.expect("a session");
            session.write_all(PREFACE).await.is_ok() && session.read_u8().await.is_ok()
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let fixture = Fixture::new();
    let soon = SystemTime::now() + 13 * DAY;
    let first = fixture
        .authority
        .issue_between("localhost", SystemTime::now() - DAY, soon);
    let folder = fixture.home.dir.path();
    first.write(folder, "server");
    let process = fixture.start().await;
    let mut open = fixture.client().admin(&process).await;
    let location = create(storage("a", "run"));
    open.create_location(location).await.expect("created");
    assert_eq!(
        fixture.client().presented(&process).await,
        certificate(&first.certificate)
    );

    // The key belongs to another certificate.
    let next = fixture.authority.issue("localhost");
    fs::write(&fixture.files.certificate, &next.certificate).expect("a file");
    let problem = "the TLS files have changed and can't be used: the old ones stay in use";
    eventually("the mismatch is logged", || async {
        fixture.home.log().contains(problem)
    })
    .await;
    assert_eq!(
        fixture.client().presented(&process).await,
        certificate(&first.certificate)
    );

    fs::write(&fixture.files.key, &next.key).expect("a file");
    eventually("the new pair is in use", || async {
        fixture.client().presented(&process).await == certificate(&next.certificate)
    })
    .await;
    list(&mut open).await;
    let log = fixture.home.log();
    for line in [problem, "the TLS certificate expires in 12 days: renew it"] {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
}

/// A time in whole seconds, as certificates have them.
fn from_now(distance: Duration) -> SystemTime {
    let time = UNIX_EPOCH.elapsed().expect("after 1970") + distance;
    UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

/// Waits until the metric has this time.
async fn expiry_is(time: SystemTime, metrics: SocketAddr) {
    let expected = time.duration_since(UNIX_EPOCH).expect("after 1970");
    eventually("the metric has the expiry", || async {
        let samples = scrape(metrics).await;
        let expiry = samples["location_service_tls_certificate_expiry_seconds"];
        (expiry - expected.as_secs_f64()).abs() < 0.5
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_expiry_of_the_certificate_in_use_is_a_metric_and_in_the_log() {
    // Enough to start on a busy machine.
    let soon = from_now(Duration::from_secs(12));
    let fixture = Fixture::new();
    let folder = fixture.home.dir.path();
    let issue = |expiry| {
        let yesterday = SystemTime::now() - DAY;
        let identity = fixture
            .authority
            .issue_between("localhost", yesterday, expiry);
        identity.write(folder, "server");
    };
    issue(soon);
    let mut command = fixture.command();
    command.args(["--metrics-listen", "127.0.0.1:0"]);
    let _process = fixture.home.run(command).await.expect("it starts");
    let metrics = fixture.home.metrics().await;
    expiry_is(soon, metrics).await;
    let logged = |line: &'static str| {
        let home = &fixture.home;
        eventually(line, move || async move { home.log().contains(line) })
    };
    logged("the TLS certificate expires in ").await;
    assert!(!fixture.home.log().contains("has expired"));
    logged("the TLS certificate has expired, so clients refuse it: renew it").await;
    assert!(SystemTime::now() > soon);
    expiry_is(soon, metrics).await;

    let later = from_now(30 * DAY);
    issue(later);
    expiry_is(later, metrics).await;
    let log = fixture.home.log();
    for line in ["certificate expires in", "certificate has expired"] {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_at_start() {
    let fixture = Fixture::new();
    let folder = fixture.home.dir.path();
    let path = |name: &str| folder.join(name).display().to_string();
    let expired = SystemTime::now() - DAY;
    fixture
        .authority
        .issue_between("localhost", expired - DAY, expired)
        .write(folder, "expired");
    fixture.authority.issue("localhost").write(folder, "other");
    fs::write(folder.join("empty"), "").expect("a file");
    let (certificate, key) = (path("server.crt"), path("server.key"));
    let pair = |certificate: &str, key: &str| {
        [
            format!("--tls-cert-file={certificate}"),
            format!("--tls-key-file={key}"),
        ]
    };
    for (flags, expected) in [
        (
            vec![format!("--tls-cert-file={certificate}")],
            ["tls-cert-file", "tls-key-file", "set both"],
        ),
        (
            vec![format!("--tls-key-file={key}")],
            ["tls-key-file", "tls-cert-file", "set both"],
        ),
        (
            vec![format!("--tls-client-ca-file={certificate}")],
            ["tls-client-ca-file", "tls-cert-file", "without"],
        ),
        (
            pair(&path("missing"), &key).to_vec(),
            ["--tls-cert-file", "missing", "No such file"],
        ),
        (
            pair(&path("empty"), &key).to_vec(),
            ["tls-cert-file", &path("empty"), "it is empty"],
        ),
        (
            pair(&path("expired.crt"), &path("expired.key")).to_vec(),
            ["tls-cert-file", "expired.crt", "it expired 1 day ago"],
        ),
        (
            pair(&certificate, &path("other.key")).to_vec(),
            [
                "tls-key-file",
                "other.key",
                "isn't the key of the first certificate",
            ],
        ),
    ] {
        let mut command = fixture.home.command();
        command.args(&flags);
        let refused = fixture.home.run(command).await.map(drop);
        let Refusal { status, stderr } = refused.expect_err("it is refused");
        assert_eq!(status.code(), Some(2), "{stderr}");
        for part in expected {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
    }
    assert!(!fixture.home.database.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_the_other_protocol_is_refused_at_once_and_quietly() {
    let fixture = Fixture::new();
    let process = fixture.start().await;
    let hint = "This port speaks TLS";
    let exchange = async |bytes: &[u8]| {
        let mut stream = tcp(&process).await;
        stream.write_all(bytes).await.expect("sent");
        read_to_end(stream).await
    };
    let http1 = exchange(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let http1 = String::from_utf8(http1).expect("text");
    assert!(
        http1.starts_with("HTTP/1.1 400 ") && http1.contains(hint),
        "{http1}"
    );
    for bytes in [&b"\0\x01garbage"[..], b"\x16\x03\x01\0\x04abcd", b"hello\n"] {
        exchange(bytes).await;
    }
    let http2 = exchange(PREFACE).await;
    let http2 = String::from_utf8_lossy(&http2);
    assert!(http2.contains(hint), "{http2}");
    assert_quiet(&fixture.home);
    drop(process);

    let process = fixture.home.start().await;
    let refused = fixture.client().connect(&process).await;
    refused.map(drop).expect_err("no TLS");
    assert_quiet(&fixture.home);
}

fn assert_quiet(home: &Home) {
    let log = home.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_given_up() {
    let fixture = Fixture::new();
    let process = fixture.start().await;
    let mut silent = Vec::new();
    // Nothing, the beginning of a hello, and a session without a request.
    for bytes in [&b""[..], b"\x16\x03\x01\x01\0\x01\0"] {
        let mut stream = tcp(&process).await;
        stream.write_all(bytes).await.expect("sent");
        silent.push(tokio::spawn(read_to_end(stream)));
    }
    let session = fixture.client().connect(&process).await.expect("a session");
    silent.push(tokio::spawn(async { read_to_end(session).await }));
    let mut admin = fixture.client().admin(&process).await;
    admin.list_locations(of_run("run")).await.expect("listed");
    for closed in silent {
        closed.await.expect("closed in time");
    }
    assert_quiet(&fixture.home);
}

#[tokio::test]
async fn a_service_without_tls_warns_unless_it_listens_on_loopback() {
    let mut home = Home::new();
    let loopback = home.listen;
    home.listen = "0.0.0.0:0".parse().expect("an address");
    let process = home.start().await;
    assert!(home.log().contains("unencrypted"), "{}", home.log());
    drop(process);
    home.listen = loopback;
    let _process = home.start().await;
    assert_quiet(&home);
}

/// Runs a command of the binary, and returns whether it succeeded and what it printed to stderr.
async fn run(url: &str, command: &str, flags: &[&str]) -> (bool, String) {
    let mut binary = service([command, "--server", url]);
    binary
        .args(flags)
        .env("LOCATION_SERVICE_TOKEN", token("root", true));
    let output = timeout(PATIENCE, output(binary))
        .await
        .expect("it ends in time");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_that_call_a_service_speak_tls() {
    let fixture = Fixture::new();
    let folder = fixture.home.dir.path();
    let path = |name: &str| folder.join(name).display().to_string();
    let clients = Authority::new("clients");
    clients.write(folder, "clients.crt");
    clients.issue("caller").write(folder, "caller");
    fixture.authority.issue("caller").write(folder, "stranger");
    fixture.authority.write(folder, "ca.crt");
    let mut command = fixture.command();
    command.args(["--tls-client-ca-file", &path("clients.crt")]);
    let process = fixture.home.run(command).await.expect("it starts");
    let url = process.url.replace("127.0.0.1", "localhost");

    let (authority, certificate, key) = (path("ca.crt"), path("caller.crt"), path("caller.key"));
    let ca = ["--tls-ca-file", &authority];
    let known = [
        &ca[..],
        &["--tls-cert-file", &certificate, "--tls-key-file", &key],
    ]
    .concat();
    let strange = (path("stranger.crt"), path("stranger.key"));
    let strange = ["--tls-cert-file", &strange.0, "--tls-key-file", &strange.1];
    let strange = [&ca[..], &strange].concat();

    let rows = path("rows.csv");
    fs::write(
        &rows,
        "id,type,display_name\n01890a5d-ac96-774b-bcce-b302099a8057,storage,a\n",
    )
    .expect("a file");
    let exported = path("exported.csv");
    for (command, arguments) in [
        ("healthcheck", &[][..]),
        ("import", &[rows.as_str()]),
        ("export", &[exported.as_str()]),
        ("delete", &["--from", &rows]),
    ] {
        let flags = [&known, arguments].concat();
        let (succeeded, stderr) = run(&url, command, &flags).await;
        assert!(succeeded, "{command}: {stderr}");
    }
    let exported = fs::read_to_string(exported).expect("it was written");
    assert!(
        exported.contains("01890a5d-ac96-774b-bcce-b302099a8057"),
        "{exported}"
    );

    let plain_home = Home::new();
    let plain = plain_home.start().await;
    let by_address = &process.url;
    let without_tls = url.replace("https", "http");
    let with_tls = plain.url.replace("http", "https");
    let expired = expired_server(&fixture.authority).await;
    let missing = ["--tls-ca-file", "/missing"];
    let half = ["--tls-cert-file", &certificate];
    for (url, flags, expected) in [
        (
            &url,
            &[][..],
            "give the authority's certificate with --tls-ca-file",
        ),
        (by_address, &known, "its certificate isn't for 127.0.0.1"),
        (&expired, &known, "its certificate has expired"),
        (
            &url,
            &ca,
            "requires a client certificate: give --tls-cert-file and",
        ),
        (&url, &strange, "refuses the client certificate"),
        (&without_tls, &[], "has TLS: use https://"),
        (&with_tls, &ca, "has no TLS: use http://"),
        (&plain.url, &ca, "--server is http://"),
        (&url, &missing, "--tls-ca-file"),
        (&url, &half, "--tls-key-file"),
    ] {
        for (command, arguments) in [("healthcheck", &[][..]), ("import", &[rows.as_str()])] {
            let flags = [flags, arguments].concat();
            let (succeeded, stderr) = run(url, command, &flags).await;
            assert!(!succeeded, "{command} {expected}");
            assert!(stderr.contains(expected), "{command} {expected}: {stderr}");
        }
    }
}

/// The address of a server whose certificate has expired.
async fn expired_server(authority: &Authority) -> String {
    let now = SystemTime::now();
    let identity = authority.issue_between("localhost", now - 2 * DAY, now - DAY);
    let acceptor = acceptor(&identity, None);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
        }
    });
    format!("https://localhost:{port}")
}

/// The TLS of a server that isn't the service. With an authority it requires certificates of clients.
pub fn acceptor(identity: &Identity, clients: Option<&Authority>) -> TlsAcceptor {
    let builder = ServerConfig::builder();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots(authority))).build();
            builder.with_client_cert_verifier(verifier.expect("an authority"))
        }
    };
    let (chain, key) = pair(identity);
    let config = builder.with_single_cert(chain, key).expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}

fn roots(authority: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots
        .add(certificate(&authority.pem()))
        .expect("an authority");
    roots
}
