//! Keys that an issuer publishes over TLS.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use http_body_util::Full;
use hyper::{
    Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use location_service::proto::location::v1::location_service_client::LocationServiceClient;
use parking_lot::Mutex;
use serde_json::{Value, json};
use servers::certificates::Authority;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, transport::Channel};

use crate::{
    harness::{Bearer, eventually, of_run},
    process::{Home, Process, service},
    tls::acceptor,
};

const AUDIENCE: &str = "locations";

/// The shortest time between two fetches.
const MIN_INTERVAL: Duration = Duration::from_secs(30);

/// A key of the issuer.
struct Key {
    id: &'static str,
    key: EncodingKey,
}

impl Key {
    fn new(id: &'static str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let der = pair.to_pkcs8v1().expect("a key");
        Self {
            id,
            key: EncodingKey::from_ec_der(der.as_ref()),
        }
    }

    fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).expect("a key");
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).expect("JSON")
    }

    /// A token that the key has signed.
    fn token(&self, issuer: &str) -> Bearer {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.to_owned());
        let expiry = UNIX_EPOCH.elapsed().expect("after 1970") + Duration::from_mins(10);
        let claims = json!({
            "sub": "ann",
            "aud": AUDIENCE,
            "iss": issuer,
            "exp": expiry.as_secs(),
        });
        let token = jsonwebtoken::encode(&header, &claims, &self.key).expect("signed");
        Bearer(format!("Bearer {token}"))
    }
}

/// An issuer at an `https` URL, and the service that fetches its keys.
struct Issuer {
    home: Home,
    url: String,
    /// The certificate authority of its URL.
    authority: Authority,
    published: Arc<Mutex<Vec<Value>>>,
    server: AbortOnDropHandle<()>,
}

impl Issuer {
    async fn start(key: &Key) -> Self {
        let authority = Authority::new("issuers");
        let acceptor = acceptor(&authority.issue("localhost"), None);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let url = format!("https://localhost:{port}");
        let published = Arc::new(Mutex::new(vec![key.public()]));
        let (keys, issuer) = (Arc::clone(&published), url.clone());
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(session) = acceptor.accept(stream).await else {
                    continue;
                };
                let respond = service_fn(|request: Request<Incoming>| {
                    let body = match request.uri().path() {
                        "/.well-known/openid-configuration" => {
                            json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")})
                        }
                        "/keys" => json!({ "keys": *keys.lock() }),
                        other => panic!("{other}"),
                    };
                    let body = Full::new(Bytes::from(body.to_string()));
                    async move { Ok::<_, hyper::Error>(Response::new(body)) }
                });
                let session = TokioIo::new(session);
                let connection = http1::Builder::new().serve_connection(session, respond);
                let _ = connection.await;
            }
        });
        Self {
            home: Home::new(),
            url,
            authority,
            published,
            server: AbortOnDropHandle::new(server),
        }
    }

    /// The command that serves with the keys of these flags.
    fn command(&self, flags: &[&str]) -> Command {
        let database = self.home.database.display();
        let authority = self.authority.write(self.home.dir.path(), "ca.crt");
        let mut command = service(["serve", "--listen", "127.0.0.1:0"]);
        command
            .arg(format!("--database-url=sqlite:{database}"))
            .args(["--jwt-audience", AUDIENCE])
            .args(flags)
            .env("SSL_CERT_FILE", authority);
        command
    }
}

/// Lists with a token, and returns whether it is accepted.
async fn accepts(process: &Process, token: Bearer) -> bool {
    let channel = Channel::from_shared(process.url.clone()).expect("a URL");
    let channel = channel.connect_lazy();
    let mut client = LocationServiceClient::with_interceptor(channel, token);
    match client.list_locations(of_run("run")).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), Code::Unauthenticated, "{status}");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_over_tls_and_stay_while_the_issuer_is_down() {
    let [old, new] = ["old", "new"].map(Key::new);
    let (rotating, leaving) = (Issuer::start(&old).await, Issuer::start(&old).await);
    let keys = format!("{}/keys", rotating.url);
    let by_url = rotating.command(&["--jwks-url", &keys]);
    let by_url = rotating.home.run(by_url).await.expect("it starts");
    let by_issuer = leaving.command(&["--jwt-issuer", &leaving.url]);
    let by_issuer = leaving.home.run(by_issuer).await.expect("it starts");
    let start = Instant::now();
    for (process, issuer) in [(&by_url, &rotating), (&by_issuer, &leaving)] {
        assert!(accepts(process, old.token(&issuer.url)).await);
        assert!(!accepts(process, new.token(&issuer.url)).await);
    }
    assert!(!accepts(&by_issuer, old.token(&rotating.url)).await);

    *rotating.published.lock() = vec![new.public()];
    let Issuer {
        home, url, server, ..
    } = leaving;
    drop(server);
    sleep_until(start + MIN_INTERVAL).await;
    let new_is_accepted = || accepts(&by_url, new.token(&rotating.url));
    eventually("the new key is fetched", new_is_accepted).await;
    assert!(!accepts(&by_url, old.token(&rotating.url)).await);
    let line = "cannot fetch the keys: the old keys stay in use";
    eventually("the fetch fails", || async {
        assert!(!accepts(&by_issuer, new.token(&url)).await);
        home.log().contains(line)
    })
    .await;
    assert!(accepts(&by_issuer, old.token(&url)).await);
    assert_eq!(home.log().matches(line).count(), 1, "{}", home.log());
    assert!(!rotating.home.log().contains(line));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_whose_certificate_is_not_trusted_has_no_keys() {
    let issuer = Issuer::start(&Key::new("1")).await;
    let mut command = issuer.command(&["--jwt-issuer", &issuer.url]);
    let other = Authority::new("other").write(issuer.home.dir.path(), "other.crt");
    command.env("SSL_CERT_FILE", other);
    let refused = issuer.home.run(command).await.map(drop);
    let stderr = refused.expect_err("it is refused").stderr;
    for part in ["the TLS handshake failed", "UnknownIssuer"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}
