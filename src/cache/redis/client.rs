//! The transport: a connection that is kept, commands with deadlines, and a bound on those in flight.
//! Knows neither tags nor epochs.

use std::{
    iter,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use fred::{
    clients::WithOptions,
    interfaces::{ClientLike as _, ClusterInterface as _, EventInterface as _, LuaInterface as _},
    prelude::{
        Builder, Client, Error as FredError, ErrorKind, FromValue, Key as RedisKey, Options,
        ReconnectPolicy, Value,
    },
    types::{
        ClusterHash, CustomCommand,
        config::{ReconnectError, Server},
        scripts::Script,
    },
    util::redis_keyslot,
};
use futures_util::{
    FutureExt as _, Stream, StreamExt as _,
    future::{BoxFuture, Either, join_all},
};
use parking_lot::RwLock;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    time::{sleep, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::config::{RedisConfig, RedisConfigError, parse_url};
use crate::cache::{CacheError, stats::Counters};

/// The timeout of a command that closes or reopens tags, from its sending.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);

/// The timeout of a read, including its wait for a permit. A read that times out falls back to the
/// database.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

/// The timeout of connecting and of setting up a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The first delay before a reconnection, in milliseconds. It doubles each time.
const RECONNECT_MIN_MS: u32 = 50;

/// The longest delay before a reconnection, in milliseconds.
const RECONNECT_MAX_MS: u32 = 1_000;

/// The delay before the replacement of a client that ended or hung connects.
const RESTART_DELAY: Duration = Duration::from_millis(200);

/// Permits for commands in flight, one for [`KEYS_PER_PERMIT`] keys: so few that the last reply arrives
/// well before its timeout.
const MAX_IN_FLIGHT: usize = 1_024;

/// Maximum number of keys that a permit stands for: those of one tag.
const KEYS_PER_PERMIT: usize = 4;

/// Keys that one step of a scan looks at.
const SCAN_COUNT: u32 = 1_000;

/// The timeout of a scan from one matching key to the next.
const SCAN_TIMEOUT: Duration = Duration::from_secs(10);

/// A server, a Sentinel set or a Cluster. The calls of a script take one round trip (on a Cluster, one for
/// each node).
#[derive(Debug)]
pub(super) struct RedisClient {
    /// Replaced when it hangs.
    client: RwLock<Client>,
    permits: Arc<Semaphore>,
    /// The number of replies so far.
    replies: Arc<AtomicU64>,
    /// Notified when commands time out and no reply comes at all.
    stuck: Arc<Notify>,
    counters: Arc<Counters>,
}

/// A script's keys and arguments.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) keys: Vec<RedisKey>,
    pub(super) args: Vec<Value>,
}

impl Call {
    fn permits(&self) -> u32 {
        u32::try_from(self.keys.len().div_ceil(KEYS_PER_PERMIT)).unwrap_or(u32::MAX)
    }
}

impl RedisClient {
    pub(super) fn new(
        config: &RedisConfig,
        counters: Arc<Counters>,
    ) -> Result<Self, RedisConfigError> {
        let mut client = parse_url(&config.url)?;
        super::tls::apply(&config.tls, &mut client)?;
        // A server that can't be reached at the start is retried like one that is lost later.
        client.fail_fast = false;
        let client = Builder::from_config(client)
            .set_policy(ReconnectPolicy::new_exponential(
                0,
                RECONNECT_MIN_MS,
                RECONNECT_MAX_MS,
                2,
            ))
            .with_performance_config(|performance| {
                performance.default_command_timeout = COMMAND_TIMEOUT;
            })
            .with_connection_config(|connection| {
                connection.connection_timeout = CONNECT_TIMEOUT;
                connection.internal_command_timeout = CONNECT_TIMEOUT;
                // Larger than the number of permits.
                connection.max_command_buffer_len = 2 * MAX_IN_FLIGHT;
                // A command is sent once: a second execution could set a version that a write has
                // invalidated in between (`Protection::DrawnOnce` in tests/model).
                connection.max_command_attempts = 1;
                connection.tcp.nodelay = Some(true);
                // A master that a failover has demoted.
                connection.reconnect_errors = vec![ReconnectError::ReadOnly];
            })
            .build()
            .map_err(|error| RedisConfigError::Url(error.details().to_owned()))?;
        Ok(Self {
            client: RwLock::new(client),
            permits: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            replies: Arc::default(),
            stuck: Arc::default(),
            counters,
        })
    }

    fn client(&self) -> Client {
        self.client.read().clone()
    }

    /// Whether this is a Cluster, whose scripts work on one slot each.
    pub(super) fn is_clustered(&self) -> bool {
        self.client.read().is_clustered()
    }

    /// Fails if there is no connection.
    pub(super) fn connected(&self) -> Result<(), CacheError> {
        if self.client.read().is_connected() {
            return Ok(());
        }
        Err(CacheError::Disconnected)
    }

    /// Waits for the first connection, for as long as connecting may take.
    pub(super) async fn wait_for_connection(&self) {
        let client = self.client();
        let _ = timeout(CONNECT_TIMEOUT, client.wait_for_connect()).await;
    }

    /// Runs a script with the read timeout.
    pub(super) async fn run<T: FromValue + Send + 'static>(
        &self,
        script: &Script,
        call: Call,
    ) -> Result<T, CacheError> {
        let replies = self.run_each(script, vec![call]).await?;
        replies
            .into_iter()
            .next()
            .unwrap_or(Err(CacheError::ShuttingDown))
    }

    /// Runs a script once for each call, with the read timeout. Each call has a result of its own: a
    /// node of a Cluster may be down.
    pub(super) async fn run_each<T: FromValue + Send + 'static>(
        &self,
        script: &Script,
        calls: Vec<Call>,
    ) -> Result<Vec<Result<T, CacheError>>, CacheError> {
        let before = self.replies.load(Ordering::Relaxed);
        let deadline = Instant::now() + READ_TIMEOUT;
        let replies = self.send(script, calls, deadline);
        if let Ok(replies) = timeout_at(deadline.into(), replies).await {
            return replies;
        }
        if self.replies.load(Ordering::Relaxed) == before {
            self.stuck.notify_one();
        }
        Err(CacheError::Timeout)
    }

    /// Runs a script once for each call, all of which must succeed. Waits for permits until the
    /// deadline, and then for replies.
    pub(super) async fn run_all<T: FromValue + Send + 'static>(
        &self,
        script: &Script,
        calls: Vec<Call>,
        permits_until: Instant,
    ) -> Result<Vec<T>, CacheError> {
        let replies = self.send(script, calls, permits_until).await?;
        replies.into_iter().collect()
    }

    /// Runs a script once for each call, as soon as there are permits for all. The commands are sent
    /// together, without waiting for replies.
    async fn send<T: FromValue + Send + 'static>(
        &self,
        script: &Script,
        calls: Vec<Call>,
        permits_until: Instant,
    ) -> Result<Vec<Result<T, CacheError>>, CacheError> {
        self.connected()?;
        let permits = calls.iter().map(Call::permits).sum();
        let permits = timeout_at(
            permits_until.into(),
            Arc::clone(&self.permits).acquire_many_owned(permits),
        )
        .await
        .map_err(|_| CacheError::QueueFull)?
        .map_err(|_| CacheError::ShuttingDown)?;
        self.counters.round_trips.add(1);
        let client = self.client();
        let (replies, stuck) = (Arc::clone(&self.replies), Arc::clone(&self.stuck));
        let hash = script.sha1().clone();
        let commands = async move {
            let before = replies.load(Ordering::Relaxed);
            let commands = calls.into_iter().map(|call| {
                let command = client.evalsha(hash.clone(), call.keys, call.args);
                let replies = &replies;
                async move {
                    let reply: Result<T, FredError> = command.await;
                    if !is_timeout(&reply) {
                        replies.fetch_add(1, Ordering::Relaxed);
                    }
                    reply
                }
            });
            let results = join_all(commands).await;
            // One node of a Cluster may hang while the others reply.
            if results.iter().any(is_timeout)
                && (client.is_clustered() || replies.load(Ordering::Relaxed) == before)
            {
                stuck.notify_one();
            }
            drop(permits);
            results
                .into_iter()
                .map(|reply| reply.map_err(map_error))
                .collect()
        };
        // Goes on if the caller leaves: fred still has the commands, and they need their permits.
        Ok(Detached(Some(commands.boxed())).await)
    }

    /// The keys that match a pattern, on every node.
    pub(super) fn scan(
        &self,
        pattern: String,
    ) -> impl Stream<Item = Result<RedisKey, CacheError>> + Send + Unpin + use<> {
        let client = self.client();
        let keys = if client.is_clustered() {
            Either::Left(client.scan_cluster_buffered(pattern, Some(SCAN_COUNT), None))
        } else {
            Either::Right(client.scan_buffered(pattern, Some(SCAN_COUNT), None))
        };
        // Without a key in time the scan ends with an error.
        Box::pin(futures_util::stream::unfold(
            Some(Box::pin(keys)),
            |keys| async {
                let mut keys = keys?;
                match timeout(SCAN_TIMEOUT, keys.next()).await {
                    Ok(key) => Some((key?.map_err(map_error), Some(keys))),
                    Err(_) => Some((Err(CacheError::Timeout), None)),
                }
            },
        ))
    }

    /// Reads which nodes of a Cluster are masters, and of which slots.
    pub(super) async fn sync_topology(&self) -> Result<(), CacheError> {
        let client = self.client();
        if !client.is_clustered() {
            return Ok(());
        }
        match timeout(CONNECT_TIMEOUT, client.sync_cluster()).await {
            Ok(synced) => synced.map_err(map_error),
            Err(_) => Err(CacheError::Timeout),
        }
    }

    /// The masters, as far as the topology is known; or the one server that is connected.
    pub(super) fn masters(&self) -> Vec<Master> {
        let client = self.client();
        let nodes = match client.cached_cluster_state() {
            Some(state) if client.is_clustered() => {
                state.unique_primary_nodes().into_iter().map(Some).collect()
            }
            _ => vec![None],
        };
        let master = |node| Master {
            client: client.clone(),
            node,
        };
        nodes.into_iter().map(master).collect()
    }

    /// Keeps the client running. It reconnects by itself, but ends at some errors, and may wait forever
    /// on a server that accepts commands and doesn't reply: then another client takes its place.
    pub(super) async fn keep_connected(self: Arc<Self>) {
        // A state is logged when it changes.
        let mut logged: Option<String> = None;
        let mut report = move |problem: Option<String>| {
            if problem == logged {
                return;
            }
            if let Some(error) = &problem {
                tracing::warn!(%error, "no connection to Redis");
            } else {
                tracing::info!("connected to Redis again");
            }
            logged = problem;
        };
        loop {
            let client = self.client();
            let mut errors = client.error_rx();
            let mut connections = client.reconnect_rx();
            let mut router = AbortOnDropHandle::new(client.connect());
            loop {
                tokio::select! {
                    ended = &mut router => {
                        report(Some(match ended {
                            Ok(Err(error)) => error.details().to_owned(),
                            ended => format!("the client has ended: {ended:?}"),
                        }));
                        break;
                    }
                    () = self.stuck.notified() => {
                        report(Some("the server doesn't respond".to_owned()));
                        break;
                    }
                    Ok((error, _)) = errors.recv() => report(Some(error.details().to_owned())),
                    Ok(_) = connections.recv() => report(None),
                }
            }
            drop(router);
            self.replace_client();
            sleep(RESTART_DELAY).await;
            // Commands that have timed out by now were sent to the old connection.
            let _ = self.stuck.notified().now_or_never();
        }
    }

    /// Replaces the client by one that isn't connected. The old one can't be started again: it still
    /// counts the commands that it was dropped with as queued, and never flushes a connection's
    /// buffer as long as commands seem to be queued behind.
    fn replace_client(&self) {
        let mut client = self.client.write();
        *client = client.clone_new();
    }
}

/// A master, for commands that no key routes to a node. They fail at once while there is no connection.
#[derive(Debug)]
pub(super) struct Master {
    client: Client,
    /// `None` stands for the one server that the client is connected to.
    node: Option<Server>,
}

impl Master {
    /// A text whose hash tag `{text}` is in a slot of this master. `None` if it has no slot.
    pub(super) fn own_hash_tag(&self, stem: &str) -> Option<String> {
        let Some(node) = &self.node else {
            return Some(stem.to_owned());
        };
        let topology = self.client.cached_cluster_state()?;
        (0..u16::MAX)
            .map(|number| format!("{stem}-{number}"))
            .find(|text| topology.get_server(redis_keyslot(text.as_bytes())) == Some(node))
    }

    /// A section of the server's information.
    pub(super) async fn info(&self, section: &'static str) -> Result<Info, CacheError> {
        self.command("INFO", vec![section.into()]).await.map(Info)
    }

    pub(super) async fn load(&self, script: &Script) -> Result<(), CacheError> {
        let lua = script.lua().cloned().unwrap_or_default();
        let _: Value = self
            .command("SCRIPT", vec!["LOAD".into(), lua.into()])
            .await?;
        Ok(())
    }

    /// Removes all scripts.
    pub(super) async fn remove_scripts(&self) -> Result<(), CacheError> {
        let flushed = self.command("SCRIPT", vec!["FLUSH".into(), "ASYNC".into()]);
        flushed.await.map(|_: Value| ())
    }

    /// Whether the server has all these scripts.
    pub(super) async fn has(
        &self,
        scripts: impl Iterator<Item = &Script>,
    ) -> Result<bool, CacheError> {
        let hashes = scripts.map(|script| script.sha1().clone().into());
        let arguments = iter::once("EXISTS".into()).chain(hashes).collect();
        let known: Vec<bool> = self.command("SCRIPT", arguments).await?;
        Ok(!known.contains(&false))
    }

    /// Runs a script on this node, whatever its keys' slots.
    pub(super) async fn run(&self, script: &Script, call: Call) -> Result<(), CacheError> {
        let mut arguments: Vec<Value> = vec![script.sha1().clone().into()];
        arguments.push(i64::try_from(call.keys.len()).unwrap_or(i64::MAX).into());
        arguments.extend(call.keys.into_iter().map(Value::from));
        arguments.extend(call.args);
        let _: Value = self.command("EVALSHA", arguments).await?;
        Ok(())
    }

    /// Runs a command on this node. fred's own methods for scripts choose the node by themselves.
    async fn command<T: FromValue>(
        &self,
        name: &'static str,
        arguments: Vec<Value>,
    ) -> Result<T, CacheError> {
        let options = Options {
            cluster_node: self.node.clone(),
            fail_fast: true,
            timeout: Some(READ_TIMEOUT),
            ..Options::default()
        };
        let node: WithOptions<Client> = self.client.with_options(&options);
        let name = CustomCommand::new_static(name, ClusterHash::Random, false);
        node.custom(name, arguments).await.map_err(map_error)
    }
}

/// The reply to `INFO`.
pub(super) struct Info(String);

impl Info {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    }
}

/// A future that runs to its end even if its caller drops it. Spawning it at once would cost each
/// command two turns of the scheduler.
struct Detached<T: Send + 'static>(Option<BoxFuture<'static, T>>);

impl<T: Send + 'static> Future for Detached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(mut work) = self.0.take() else {
            unreachable!("it isn't polled after its end");
        };
        let polled = work.poll_unpin(context);
        if polled.is_pending() {
            self.0 = Some(work);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        if let (Some(rest), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(rest);
        }
    }
}

fn is_timeout<T>(reply: &Result<T, FredError>) -> bool {
    matches!(reply, Err(error) if *error.kind() == ErrorKind::Timeout)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn map_error(error: FredError) -> CacheError {
    let details = error.details();
    // The first word of an error that the server sent. The client's own errors have other kinds.
    let code = details.split(' ').next().unwrap_or_default();
    match error.kind() {
        ErrorKind::Timeout => CacheError::Timeout,
        ErrorKind::Canceled | ErrorKind::IO | ErrorKind::Backpressure => CacheError::Disconnected,
        ErrorKind::Cluster => CacheError::Busy(details.to_owned()),
        _ if ["BUSY", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN"].contains(&code) => {
            CacheError::Busy(details.to_owned())
        }
        ErrorKind::Routing => CacheError::Busy(details.to_owned()),
        _ if code == "NOSCRIPT" => CacheError::WrongServer(details.to_owned()),
        _ => CacheError::Refused(details.to_owned()),
    }
}
