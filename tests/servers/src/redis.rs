//! Redis: a server, a Cluster of three masters, a master with a replica and Sentinels.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{certificates::Authority, free_port, supervised::Supervised, until};

/// Counts the members of the service's indexes, and those without an entry. Time stands still within
/// a script, so nothing expires between the two.
const INDEX_MEMBERS: &str = "
local members, dead, cursor = 0, 0, '0'
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', '*{*}:keys', 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    local base = string.sub(key, 1, -5)
    for _, member in ipairs(redis.call('SMEMBERS', key)) do
      members = members + 1
      dead = dead + 1 - redis.call('EXISTS', base .. member)
    end
  end
until cursor == '0'
return {members, dead}";

/// Inserts entries under a tag, like fills but faster.
const POPULATE: &str = "
for i = ARGV[1], ARGV[2] do
  redis.call('SADD', KEYS[1] .. 'keys', 'schema:ListLocations:' .. i)
  redis.call('SET', KEYS[1] .. 'schema:ListLocations:' .. i, 'x', 'EX', 300)
end";

/// A private Redis server, without persistence unless its arguments enable it.
pub struct RedisServer {
    /// The port of unencrypted connections.
    pub port: u16,
    /// The port of TLS connections; zero without TLS.
    pub tls_port: u16,
    program: &'static str,
    args: Vec<String>,
    /// Dropped before its folder.
    running: Option<Supervised>,
    dir: TempDir,
}

impl RedisServer {
    /// An empty server.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with additional arguments, such as `["--maxmemory", "5mb"]`.
    pub fn start_with(args: &[&str]) -> Self {
        Self::launch("redis-server", args, None)
    }

    /// A server that also speaks TLS, as `localhost` on [`tls_port`](Self::tls_port), and the
    /// certificate of the authority that signed its own.
    pub fn start_tls() -> (Self, PathBuf) {
        let dir = TempDir::new().expect("a temporary folder");
        let authority = Authority::new("redis");
        authority.issue("localhost").write(dir.path(), "tls");
        let authority = authority.write(dir.path(), "ca.crt");
        let tls_port = free_port();
        let config = format!(
            "tls-port {tls_port}\ntls-cert-file tls.crt\ntls-key-file tls.key\n\
             tls-ca-cert-file ca.crt\ntls-auth-clients no\n"
        );
        let mut server = Self::launch_in(dir, "redis-server", &[], Some(&config));
        server.tls_port = tls_port;
        (server, authority)
    }

    /// A program of Redis, with arguments and further lines of configuration.
    pub fn launch(program: &'static str, args: &[&str], config: Option<&str>) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        Self::launch_in(dir, program, args, config)
    }

    fn launch_in(dir: TempDir, program: &'static str, args: &[&str], config: Option<&str>) -> Self {
        let mut server = Self {
            port: 0,
            tls_port: 0,
            program,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            dir,
            running: None,
        };
        // Another process may take the port before the server does.
        for _ in 0..5 {
            server.port = free_port();
            let text = format!(
                "port {}\nbind 127.0.0.1\nsave \"\"\n{}\n",
                server.port,
                config.unwrap_or_default()
            );
            fs::write(server.dir.path().join("redis.conf"), text).expect("a writable folder");
            server.spawn();
            if server.responds() {
                return server;
            }
            server.kill();
        }
        let log = fs::read_to_string(server.dir.path().join("log"));
        panic!("{program} doesn't start: {log:?}");
    }

    fn spawn(&mut self) {
        // `REDIS_SERVER` selects another version or Valkey. `redis-sentinel` is the same program with
        // `--sentinel`.
        let server = env::var("REDIS_SERVER");
        let server = server.as_deref().unwrap_or("redis-server");
        let sentinel = (self.program == "redis-sentinel").then_some("--sentinel");
        let args = [server, "redis.conf"]
            .into_iter()
            .chain(sentinel)
            .chain(self.args.iter().map(String::as_str));
        let command = &mut Command::new("env");
        command.current_dir(self.dir.path());
        self.running = Some(Supervised::start(command, args, ""));
    }

    fn responds(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.try_command(&["PING"]).as_deref() == Some("PONG") {
                return true;
            }
            if !self.alive() {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }

    fn alive(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| crate::is_alive(running.pid()))
    }

    /// The URL of the server.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The process id of the running server.
    pub fn pid(&self) -> &str {
        self.running.as_ref().expect("it runs").pid()
    }

    /// A file of the server's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command with `redis-cli`, and returns its output.
    pub fn command(&self, args: &[&str]) -> String {
        self.try_command(args)
            .unwrap_or_else(|| panic!("{args:?} failed on port {}", self.port))
    }

    fn try_command(&self, args: &[&str]) -> Option<String> {
        let output = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(args)
            .output()
            .expect("redis-cli is installed");
        let text = String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned();
        output.status.success().then_some(text)
    }

    /// The number of calls of a command, as counted by the server.
    pub fn calls(&self, command: &str) -> u64 {
        let prefix = format!("cmdstat_{command}:calls=");
        self.command(&["INFO", "commandstats"])
            .lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .and_then(|rest| rest.split(',').next())
            .map_or(0, |calls| calls.parse().expect("a number"))
    }

    /// The number of calls of each command, except those that these tests and the health checks of
    /// the service make.
    pub fn all_calls(&self) -> Vec<(String, u64)> {
        let info = self.command(&["INFO", "commandstats"]);
        let names = info.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let own = ["info", "config|resetstat", "script|exists"].contains(&name);
            (!own).then_some(name)
        });
        let mut calls: Vec<_> = names
            .map(|name| (name.to_owned(), self.calls(name)))
            .collect();
        calls.sort_unstable();
        calls
    }

    /// The number of members of the service's indexes, and of those without an entry.
    pub fn index_members(&self) -> (u64, u64) {
        let reply = self.command(&["--raw", "EVAL", INDEX_MEMBERS, "0"]);
        let mut counts = reply.lines().map(|line| line.parse().expect("a number"));
        let mut count = || counts.next().expect("two numbers");
        (count(), count())
    }

    /// Inserts `count` entries under a tag, whose keys begin with `base`.
    pub fn populate(&self, base: &str, count: usize) {
        for first in (0..count).step_by(50_000) {
            let last = (first + 50_000).min(count) - 1;
            let (first, last) = (first.to_string(), last.to_string());
            self.command(&["EVAL", POPULATE, "1", base, &first, &last]);
        }
    }

    /// The keys that match a pattern.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        let text = self.command(&["--raw", "KEYS", pattern]);
        text.lines().map(str::to_owned).collect()
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Kills the server and restarts it on the same port, with its persisted data.
    pub fn restart(&mut self) {
        self.kill();
        self.spawn();
        assert!(self.responds(), "it starts again");
    }

    /// Suspends the server: it accepts connections and requests, and never responds.
    pub fn suspend(&self) {
        self.signal("STOP");
    }

    /// Resumes a suspended server.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        assert!(crate::signal(name, [self.pid()]), "{name}");
    }
}

/// A Cluster of three masters.
pub struct RedisCluster {
    /// The masters, in the order of their slots.
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// An empty Cluster, whose slots are all served.
    pub fn start() -> Self {
        let nodes: Vec<_> = (0..3)
            .map(|_| {
                let bus = free_port().to_string();
                RedisServer::start_with(&[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &bus,
                    "--cluster-node-timeout",
                    "2000",
                ])
            })
            .collect();
        let bounds = [0, 5461, 10923, 16384];
        for (node, bound) in nodes.iter().zip(bounds.windows(2)) {
            let (first, last) = (bound[0].to_string(), (bound[1] - 1).to_string());
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
        }
        for node in &nodes[1..] {
            let bus = node.command(&["--raw", "CONFIG", "GET", "cluster-port"]);
            let bus = bus.lines().last().expect("a value").to_owned();
            nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), &bus]);
        }
        let cluster = Self { nodes };
        until("every node sees every slot served", || {
            cluster.nodes.iter().all(|node| {
                let info = node.command(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            })
        });
        cluster
    }

    /// The URL of the Cluster, with all nodes.
    pub fn url(&self) -> String {
        let [first, rest @ ..] = &self.nodes[..] else {
            unreachable!("there are three")
        };
        let mut url = format!("redis-cluster://127.0.0.1:{}", first.port);
        for (i, node) in rest.iter().enumerate() {
            let separator = if i == 0 { '?' } else { '&' };
            let _ = write!(url, "{separator}node=127.0.0.1:{}", node.port);
        }
        url
    }
}

/// A master, a replica, and three Sentinels that fail over after half a second.
pub struct RedisSentinels {
    /// The master at the start.
    pub master: RedisServer,
    /// Its replica.
    pub replica: RedisServer,
    /// The Sentinels.
    pub sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// Starts a set that is ready to fail over.
    pub fn start() -> Self {
        let master = RedisServer::start();
        let port = master.port.to_string();
        let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
        until("the replica has synchronised", || {
            replica
                .command(&["INFO", "replication"])
                .contains("master_link_status:up")
        });
        let config = format!(
            "sentinel monitor main 127.0.0.1 {port} 2\n\
             sentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 3000\n"
        );
        let sentinels: Vec<_> = (0..3)
            .map(|_| RedisServer::launch("redis-sentinel", &[], Some(&config)))
            .collect();
        until(
            "every Sentinel knows the other Sentinels and the replica",
            || {
                sentinels.iter().all(|sentinel| {
                    let state = sentinel.command(&["--raw", "SENTINEL", "MASTER", "main"]);
                    let lines: Vec<_> = state.lines().collect();
                    let has = |name, value| lines.windows(2).any(|pair| pair == [name, value]);
                    has("num-other-sentinels", "2") && has("num-slaves", "1")
                })
            },
        );
        Self {
            master,
            replica,
            sentinels,
        }
    }

    /// The URL of the Sentinels.
    pub fn url(&self) -> String {
        let ports: Vec<_> = self
            .sentinels
            .iter()
            .map(|sentinel| sentinel.port)
            .collect();
        format!(
            "redis-sentinel://127.0.0.1:{}?sentinelServiceName=main&node=127.0.0.1:{}&node=127.0.0.1:{}",
            ports[0], ports[1], ports[2]
        )
    }
}
