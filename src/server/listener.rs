//! The listener: accepts connections within the limits of [`Connections`], and serves each in a task
//! of its own, from the TLS handshake to its end.

use std::{convert::Infallible, error::Error as StdError, io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, sleep_until},
};
use tonic::body::Body;
use tower::Service;

use super::{
    connection::Connection,
    connections::{Activity, Connections},
    handshake::handshake,
    streams::{NewStreams, Streams},
};
use crate::tls::ServerTls;

/// Concurrent calls of one connection.
const MAX_STREAMS_PER_CONNECTION: u32 = 256;

/// The interval of HTTP/2 pings.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// A connection whose peer doesn't acknowledge a ping in this time is closed.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Sockets beyond the limit of connections: those that are closed for new ones, until their tasks
/// have dropped them.
const CLOSING_SOCKETS: usize = 32;

/// The pause after a failed `accept`, which is usually a lack of file descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A socket that accepts connections.
pub struct Listener {
    pub socket: TcpListener,
    pub connections: Arc<Connections>,
    /// `None` serves without TLS.
    pub tls: Option<Arc<ServerTls>>,
    /// The age at which connections are ended.
    pub max_age: Option<MaxAge>,
}

/// The age at which connections are ended, so that their clients connect again, perhaps to another
/// replica.
#[derive(Debug, Clone, Copy)]
pub struct MaxAge {
    /// The mean age. Each connection's has jitter of up to a tenth, so that clients which connected
    /// together don't all reconnect together.
    pub mean: Duration,
    /// The time for the calls of a connection to end after it accepts no new ones.
    pub grace: Duration,
}

impl MaxAge {
    fn pick(self) -> Duration {
        self.mean.mul_f64(rand::random_range(0.9..1.1))
    }
}

impl Listener {
    /// Serves until `stop` completes, and then until all connections have ended. `service` must always
    /// be ready: it is called without `poll_ready`.
    pub async fn serve<S, B>(self, service: S, stop: impl Future<Output = ()>)
    where
        S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send,
        B: http_body::Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>>,
        B: Send + 'static,
    {
        let sockets = Arc::new(Semaphore::new(self.connections.max() + CLOSING_SOCKETS));
        // Its receivers count the connections.
        let (stopping, stopped) = watch::channel(());
        let accept = async {
            loop {
                let (stream, activity, permit) = self.accept(&sockets).await;
                let task = Task {
                    service: service.clone(),
                    tls: self.tls.clone(),
                    max_age: self.max_age,
                    stopped: stopped.clone(),
                };
                tokio::spawn(task.run(stream, activity, permit));
            }
        };
        tokio::select! {
            () = stop => {}
            () = accept => {}
        }
        drop((self, stopped));
        stopping.send_replace(());
        stopping.closed().await;
    }

    async fn accept(
        &self,
        sockets: &Arc<Semaphore>,
    ) -> (TcpStream, Arc<Activity>, OwnedSemaphorePermit) {
        loop {
            let permit = Arc::clone(sockets).acquire_owned().await;
            let permit = permit.unwrap_or_else(|_| unreachable!("the semaphore is never closed"));
            let accepted = match self.socket.accept().await {
                Ok((stream, address)) => stream.set_nodelay(true).map(|()| (stream, address)),
                Err(error) => Err(error),
            };
            match accepted {
                Ok((stream, address)) => {
                    // If there is no idle connection to close, the new one is closed.
                    if let Some(activity) = self.connections.add(address.ip()) {
                        return (stream, activity, permit);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }
}

/// HTTP/2, and HTTP/1 to refuse its requests in its own terms: see `protocol`.
fn http(streams: NewStreams) -> auto::Builder<NewStreams> {
    let mut http = auto::Builder::new(streams);
    http.http1().timer(TokioTimer::new());
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        // Short deadlines reset many streams before a busy server has accepted them.
        .max_pending_accept_reset_streams(Some(MAX_STREAMS_PER_CONNECTION as usize));
    http
}

/// The task of a connection.
struct Task<S> {
    service: S,
    tls: Option<Arc<ServerTls>>,
    max_age: Option<MaxAge>,
    stopped: watch::Receiver<()>,
}

impl<S, B> Task<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>>,
    B: Send + 'static,
{
    async fn run(
        mut self,
        stream: TcpStream,
        activity: Arc<Activity>,
        permit: OwnedSemaphorePermit,
    ) {
        let accepted = Instant::now();
        let connection = match &self.tls {
            None => Connection::plain(stream, Arc::clone(&activity), permit),
            Some(tls) => {
                let handshake = tokio::select! {
                    session = handshake(tls, stream) => session,
                    // The time limit of the first request is that of the handshake too.
                    () = activity.closed() => Err(io::ErrorKind::TimedOut.into()),
                    _ = self.stopped.changed() => Err(io::ErrorKind::ConnectionAborted.into()),
                };
                match handshake {
                    Ok(session) => Connection::encrypted(session, Arc::clone(&activity), permit),
                    Err(error) => {
                        tracing::debug!(
                            client.address = %activity.address(),
                            %error,
                            "a TLS handshake failed",
                        );
                        activity.remove();
                        return;
                    }
                }
            }
        };
        self.serve(connection, activity, accepted).await;
    }

    async fn serve(mut self, connection: Connection, activity: Arc<Activity>, accepted: Instant) {
        let service = service_fn(|request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Arc::clone(&activity));
            // A call begins, with its deadline, before its stream's first turn.
            self.service.clone().call(request)
        });
        let new_streams = connection.new_streams();
        let http = http(new_streams.clone());
        let mut exchange = pin!(http.serve_connection(TokioIo::new(connection), service));
        let mut streams = Streams::new(new_streams);
        let mut end = pin!(sleep_until(
            accepted + self.max_age.map(MaxAge::pick).unwrap_or_default()
        ));
        let (mut is_aging, mut is_stopping, mut is_ending) = (self.max_age.is_some(), false, false);
        loop {
            tokio::select! {
                biased;
                result = streams.run(exchange.as_mut()) => {
                    if let Err(error) = result {
                        tracing::debug!(error = &*error as &dyn StdError, "a connection failed");
                    }
                    return;
                }
                _ = self.stopped.changed(), if !is_stopping => is_stopping = true,
                () = &mut end, if is_aging => match self.max_age {
                    Some(age) if !is_ending => end.as_mut().reset(Instant::now() + age.grace),
                    // The remaining streams are reset.
                    _ => return,
                },
            }
            // Sends GOAWAY: calls in flight end, and the client makes new ones on another connection.
            exchange.as_mut().graceful_shutdown();
            is_aging &= !is_stopping;
            is_ending = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{future::pending, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::time::timeout;
    use tower::service_fn;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A body that never ends.
    type Endless = StreamBody<stream::Pending<Result<Frame<Bytes>, Infallible>>>;

    #[tokio::test]
    async fn a_connection_of_the_maximum_age_takes_no_calls_and_ends_after_the_grace() {
        let age = MaxAge {
            mean: Duration::from_millis(200),
            grace: Duration::from_millis(300),
        };
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("bound");
        let listener = Listener {
            socket,
            connections: Connections::new(None),
            tls: None,
            max_age: Some(age),
        };
        let service = service_fn(|_: Request<Body>| async {
            let body: Endless = StreamBody::new(stream::pending());
            Ok::<_, Infallible>(Response::new(body))
        });
        tokio::spawn(listener.serve(service, pending()));

        let stream = TcpStream::connect(address).await.expect("it accepts");
        let started = Instant::now();
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let request = Request::post("http://localhost/").body(());
        let mut client = client.ready().await.expect("a connection");
        let (response, _) = client
            .send_request(request.expect("a request"), true)
            .expect("sent");
        let mut body = response.await.expect("a response").into_body();

        let refused = async {
            while let Ok(ready) = client.clone().ready().await {
                drop(ready);
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, refused)
            .await
            .expect("no new calls in time");
        assert!(started.elapsed() >= age.mean.mul_f64(0.9));
        assert!(!connection.is_finished(), "the stream has the grace");
        let end = timeout(PATIENCE, body.data())
            .await
            .expect("it ends in time");
        assert!(!matches!(end, Some(Ok(_))));
        assert!(started.elapsed() >= age.mean.mul_f64(0.9) + age.grace);
    }

    #[test]
    fn ages_differ_by_up_to_a_tenth() {
        let age = MaxAge {
            mean: Duration::from_secs(100),
            grace: Duration::ZERO,
        };
        let ages: Vec<_> = (0..100).map(|_| age.pick().as_secs_f64()).collect();
        assert!(ages.iter().all(|age| (90.0..110.0).contains(age)));
        assert!(ages.iter().any(|age| *age < 97.0) && ages.iter().any(|age| *age > 103.0));
    }
}
