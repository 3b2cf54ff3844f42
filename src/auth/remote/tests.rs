//! Tests of published keys: each has an issuer of its own, a small HTTP server.

use std::{
    future::pending,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::UNIX_EPOCH,
};

use futures_util::future::join_all;
use http::{HeaderMap, header::AUTHORIZATION};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    auth::{
        Authenticator,
        tests::{Signer, jwks},
        verifier::{Keys, Verifier},
    },
    config::AuthConfig,
};

/// A reply of the issuer.
#[derive(Clone)]
enum Reply {
    Body(String),
    Status(&'static str),
    Huge,
    Silence,
}

#[derive(Clone)]
struct Issuer {
    address: SocketAddr,
    /// The reply to requests for the metadata, and to those for the keys.
    replies: Arc<Mutex<(Reply, Reply)>>,
    /// Requests for the keys.
    requests: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start(keys: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metadata = json!({
            "issuer": format!("http://{address}"),
            "jwks_uri": format!("http://{address}/keys"),
        });
        let issuer = Self {
            address,
            replies: Arc::new(Mutex::new((Reply::Body(metadata.to_string()), keys))),
            requests: Arc::default(),
        };
        let server = issuer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.reply(stream).await });
            }
        });
        issuer
    }

    async fn reply(&self, mut stream: TcpStream) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let reply = if request.starts_with(b"GET /keys HTTP/1.1\r\n") {
            self.requests.fetch_add(1, Ordering::SeqCst);
            self.replies.lock().1.clone()
        } else {
            assert!(request.starts_with(b"GET /.well-known/openid-configuration HTTP/1.1\r\n"));
            self.replies.lock().0.clone()
        };
        let head = match &reply {
            Reply::Silence => pending().await,
            Reply::Status(status) => {
                format!("HTTP/1.1 {status}\r\nlocation: /keys\r\ncontent-length: 0\r\n\r\n")
            }
            Reply::Body(body) => {
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())
            }
            Reply::Huge => "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
        };
        stream.write_all(head.as_bytes()).await.unwrap();
        match reply {
            Reply::Body(body) => stream.write_all(body.as_bytes()).await.unwrap(),
            // Until the client has enough.
            Reply::Huge => while stream.write_all(&[b' '; 4096]).await.is_ok() {},
            Reply::Status(_) | Reply::Silence => {}
        }
    }

    fn set_keys(&self, keys: Reply) {
        self.replies.lock().1 = keys;
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn url(&self) -> RemoteKeys {
        let url = format!("http://{}/keys", self.address);
        RemoteKeys::Url(RemoteKeys::parse_url(&url).unwrap())
    }

    fn name(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn published(signers: &[(&Signer, &str)]) -> Reply {
    let keys: Vec<_> = signers.iter().map(|(signer, id)| signer.jwk(id)).collect();
    Reply::Body(jwks(&keys))
}

/// An authenticator that fetches again after this long at the earliest.
async fn authenticator(source: &RemoteKeys, min_interval: Duration) -> Authenticator {
    let keys = FetchedKeys::start_with(source, INTERVAL, min_interval, Duration::ZERO);
    let keys = Keys::Remote(keys.await.unwrap());
    let verifier = Verifier::new(keys, &AuthConfig::default());
    Authenticator {
        verifier: Some(verifier),
    }
}

async fn accepts(authenticator: &Authenticator, token: &str) -> bool {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    authenticator.authenticate(&headers).await.is_ok()
}

fn token(signer: &Signer, id: &str) -> String {
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs();
    signer.sign(Some(id), &json!({"sub": "ann", "exp": now + 60}))
}

#[tokio::test]
async fn keys_of_an_issuer_rotate_without_a_refused_call() {
    let (old, new) = (Signer::ec(), Signer::ed());
    let issuer = Issuer::start(published(&[(&old, "1")])).await;
    let source = RemoteKeys::of_issuer(&issuer.name()).unwrap();
    let authenticator = authenticator(&source, Duration::ZERO).await;
    assert!(accepts(&authenticator, &token(&old, "1")).await);
    issuer.set_keys(published(&[(&new, "2")]));
    assert!(accepts(&authenticator, &token(&new, "2")).await);
    assert!(!accepts(&authenticator, &token(&old, "1")).await);
}

#[tokio::test]
async fn old_keys_stay_while_the_issuer_is_down() {
    let (old, new) = (Signer::ec(), Signer::ec());
    let issuer = Issuer::start(published(&[(&old, "1")])).await;
    let authenticator = authenticator(&issuer.url(), Duration::ZERO).await;
    for failure in [
        Reply::Status("503 Service Unavailable"),
        Reply::Huge,
        Reply::Body("<html>".to_owned()),
        Reply::Body(jwks(&[])),
    ] {
        issuer.set_keys(failure);
        assert!(!accepts(&authenticator, &token(&new, "2")).await);
        assert!(accepts(&authenticator, &token(&old, "1")).await);
    }
    issuer.set_keys(published(&[(&new, "2")]));
    assert!(accepts(&authenticator, &token(&new, "2")).await);
}

#[tokio::test]
async fn tokens_with_unknown_keys_share_rare_fetches() {
    const MIN_INTERVAL: Duration = Duration::from_millis(500);
    let signer = Signer::ec();
    let issuer = Issuer::start(published(&[(&signer, "1")])).await;
    let authenticator = authenticator(&issuer.url(), MIN_INTERVAL).await;
    let unknown = token(&Signer::ec(), "2");
    let flood = || join_all((0..100).map(|_| accepts(&authenticator, &unknown)));
    assert!(!flood().await.contains(&true));
    assert_eq!(issuer.requests(), 1, "the first fetch is too recent");
    sleep(MIN_INTERVAL).await;
    assert!(!flood().await.contains(&true));
    assert!(!flood().await.contains(&true));
    assert_eq!(issuer.requests(), 2);
    assert!(accepts(&authenticator, &token(&signer, "1")).await);
}

/// A caller that leaves doesn't end the fetch.
#[tokio::test]
async fn a_fetch_outlives_the_call_that_began_it() {
    let (old, new) = (Signer::ec(), Signer::ec());
    let issuer = Issuer::start(published(&[(&old, "1")])).await;
    let authenticator = authenticator(&issuer.url(), Duration::ZERO).await;
    issuer.set_keys(published(&[(&new, "2")]));
    let (new, mut headers) = (token(&new, "2"), HeaderMap::new());
    headers.insert(AUTHORIZATION, format!("Bearer {new}").parse().unwrap());
    let mut call = Box::pin(authenticator.authenticate(&headers));
    assert!(futures_util::poll!(&mut call).is_pending());
    drop(call);
    let keys = match &authenticator.verifier.as_ref().unwrap().keys {
        Keys::Remote(keys) => keys,
        Keys::File(_) => panic!("the keys are fetched"),
    };
    let mut flight = keys.shared.flight.subscribe();
    flight.wait_for(|flight| !flight.is_running).await.unwrap();
    assert!(accepts(&authenticator, &new).await);
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test]
async fn a_start_without_usable_keys_fails_with_the_reason() {
    let good = Signer::ec();
    let good = published(&[(&good, "1")]);
    let metadata = |issuer: &str, keys: &str| {
        Reply::Body(json!({"issuer": issuer, "jwks_uri": keys}).to_string())
    };
    let html = Reply::Body("<html>".to_owned());
    let secret = Reply::Body(jwks(&[Signer::secret(&[b'x'; 32]).jwk("s")]));
    for (found, keys, expected) in [
        (None, html.clone(), "isn't a JSON Web Key Set"),
        (None, Reply::Body("{}".to_owned()), "no array `keys`"),
        (None, Reply::Body(jwks(&[])), "holds no key"),
        (None, secret, "must not be published"),
        (None, Reply::Status("302 Found"), "status 302"),
        (None, Reply::Status("404 Not Found"), "status 404"),
        (None, Reply::Huge, "1048576 bytes"),
        (Some(html), good.clone(), "isn't JSON"),
        (
            Some(Reply::Status("404 Not Found")),
            good.clone(),
            "status 404",
        ),
        (
            Some(metadata("https://evil", "https://evil/keys")),
            good.clone(),
            "not exactly of",
        ),
        (
            Some(metadata("ISSUER/", "https://id/keys")),
            good.clone(),
            "not exactly of",
        ),
        (Some(metadata("ISSUER", "")), good.clone(), "`jwks_uri`"),
        (
            Some(metadata("ISSUER", "http://id.example.com/keys")),
            good.clone(),
            "`jwks_uri`",
        ),
        (
            Some(metadata("ISSUER", "file:///etc/passwd")),
            good.clone(),
            "`jwks_uri`",
        ),
    ] {
        let issuer = Issuer::start(keys).await;
        let name = issuer.name();
        if let Some(found) = found {
            issuer.replies.lock().0 = match found {
                Reply::Body(body) => Reply::Body(body.replace("ISSUER", &name)),
                other => other,
            };
        }
        let source = RemoteKeys::of_issuer(&name).unwrap();
        let start = FetchedKeys::start_with(&source, INTERVAL, MIN_INTERVAL, Duration::ZERO);
        let Err(KeyError::Fetch { url, source }) = start.await else {
            panic!("{expected}: it starts");
        };
        assert_eq!(url, format!("{name}/.well-known/openid-configuration"));
        let cause = std::error::Error::source(&source).map(ToString::to_string);
        let text = format!("{source} {}", cause.unwrap_or_default());
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_does_not_respond_is_given_up() {
    let issuer = Issuer::start(Reply::Silence).await;
    let start = FetchedKeys::start(&issuer.url()).await;
    let Err(KeyError::Fetch { source, .. }) = start else {
        panic!("it starts");
    };
    assert!(matches!(source, FetchError::Timeout), "{source}");
}

#[test]
fn keys_come_over_tls_or_from_this_machine() {
    for url in [
        "https://id.example.com/keys",
        "https://id.example.com:8443/a/b?c=d",
        "http://127.0.0.1:1/keys",
        "http://[::1]/keys",
        "http://localhost:8080/keys",
    ] {
        assert!(RemoteKeys::parse_url(url).is_ok(), "{url}");
    }
    for url in [
        "http://id.example.com/keys",
        "http://10.0.0.1/keys",
        "http://localhost.example.com/keys",
        "https://ann:hunter2@id.example.com/keys",
        "id.example.com",
        "/keys",
        "",
        "ftp://id.example.com",
    ] {
        let problem = RemoteKeys::parse_url(url).unwrap_err();
        assert!(!problem.contains("hunter2"), "{problem}");
    }
    for issuer in [
        "me",
        "http://id.example.com",
        "https://id.example.com?x",
        "https://a#b",
    ] {
        assert_eq!(RemoteKeys::of_issuer(issuer), None, "{issuer}");
    }
    for issuer in [
        "https://id.example.com/tenant",
        "https://id.example.com/tenant/",
    ] {
        let found = RemoteKeys::of_issuer(issuer).unwrap().to_string();
        assert_eq!(
            found,
            "https://id.example.com/tenant/.well-known/openid-configuration"
        );
    }
}
