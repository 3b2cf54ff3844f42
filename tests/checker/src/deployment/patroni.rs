//! PostgreSQL under a real manager: three servers with Patroni and synchronous replication, etcd, and
//! a proxy, whose address leads to the primary. From the Debian packages `patroni`, `etcd-server` and
//! `haproxy`.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use servers::{free_port, postgres::execute, supervised::Supervised};
use tempfile::TempDir;
use tokio::task::block_in_place;

const ETCD: &str = "/usr/bin/etcd";
const HAPROXY: &str = "/usr/sbin/haproxy";
const PATRONI: &str = "/usr/bin/patroni";
const POSTGRES: &str = "/usr/lib/postgresql/15/bin";

/// The name of the database.
const DATABASE: &str = "checker";

/// Timeout of a request to Patroni.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum time for the cluster to start.
const PATIENCE: Duration = Duration::from_mins(2);

/// Ends a node's PostgreSQL server, which outlives its Patroni.
const STOP_POSTGRES: &str =
    "[ -s data/postmaster.pid ] && \"$POSTGRES/pg_ctl\" -D data -m immediate -t 20 stop >>log";

/// The cluster. Dropping it ends all processes.
pub struct Patroni {
    nodes: Vec<Node>,
    /// The port that leads to the primary.
    port: u16,
    /// etcd and the proxy.
    _others: [Supervised; 2],
    _dir: TempDir,
}

/// A server and its Patroni.
struct Node {
    process: Option<Supervised>,
    dir: std::path::PathBuf,
    api: u16,
}

/// Whether all programs are installed.
pub fn is_installed() -> bool {
    [ETCD, HAPROXY, PATRONI]
        .iter()
        .all(|program| Path::new(program).exists())
}

impl Patroni {
    /// Starts a cluster with an empty database.
    pub(super) async fn start() -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        // For the user `postgres`.
        run(Command::new("chmod").arg("755").arg(dir.path()));
        let (etcd, peer) = (free_port(), free_port());
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let folder = |name: &str| {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).expect("a folder");
            folder
        };
        let etcd_args = [
            ETCD.to_owned(),
            "--name=etcd".to_owned(),
            "--data-dir=data".to_owned(),
            format!("--listen-client-urls={}", url(etcd)),
            format!("--advertise-client-urls={}", url(etcd)),
            format!("--listen-peer-urls={}", url(peer)),
            format!("--initial-advertise-peer-urls={}", url(peer)),
            format!("--initial-cluster=etcd={}", url(peer)),
        ];
        let etcd_process = start(&folder("etcd"), "root", &etcd_args, "");
        let mut servers = String::new();
        let mut nodes = Vec::new();
        for number in 0..3 {
            let (api, port) = (free_port(), free_port());
            let _ = writeln!(
                servers,
                "server node{number} 127.0.0.1:{port} check port {api}"
            );
            let dir = folder(&format!("node{number}"));
            let settings = settings(number, &dir, (etcd, api, port));
            fs::write(dir.join("patroni.yml"), settings).expect("a file");
            let mut node = Node {
                process: None,
                dir,
                api,
            };
            run(Command::new("chown")
                .args(["-R", "postgres"])
                .arg(&node.dir));
            node.start();
            nodes.push(node);
        }
        let port = free_port();
        let proxy = folder("haproxy");
        fs::write(proxy.join("haproxy.cfg"), proxy_settings(port, &servers)).expect("a file");
        let args = [HAPROXY, "-db", "-f", "haproxy.cfg"].map(str::to_owned);
        let proxy = start(&proxy, "root", &args, "");
        let patroni = Self {
            nodes,
            port,
            _others: [etcd_process, proxy],
            _dir: dir,
        };
        block_in_place(|| {
            let deadline = Instant::now() + PATIENCE;
            while !patroni.is_whole() || !patroni.accepts() {
                assert!(
                    Instant::now() < deadline,
                    "not whole: {:?}",
                    patroni.members()
                );
                thread::sleep(Duration::from_millis(200));
            }
        });
        let maintenance = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        execute(&maintenance, &format!("CREATE DATABASE {DATABASE}")).await;
        patroni
    }

    /// The URL of the database.
    pub(super) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{DATABASE}", self.port)
    }

    fn accepts(&self) -> bool {
        let ready = Command::new(format!("{POSTGRES}/pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .status();
        ready.is_ok_and(|status| status.success())
    }

    /// The role and state of each node, as one of them sees them.
    fn members(&self) -> Vec<(String, String)> {
        let members = self.nodes.iter().find_map(|node| {
            let (_, body) = request(node.api, "GET", "/cluster", "")?;
            let cluster: Value = serde_json::from_str(&body).ok()?;
            cluster["members"].as_array().cloned()
        });
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let members = members.unwrap_or_default();
        let members = members.iter();
        members
            .map(|member| (text(&member["role"]), text(&member["state"])))
            .collect()
    }

    /// Whether there is a primary with two standbys, one of them synchronous.
    pub(super) fn is_whole(&self) -> bool {
        let members = self.members();
        let count = |role: &str| members.iter().filter(|(is, _)| is == role).count();
        let run = |state: &str| state == "running" || state == "streaming";
        members.len() == 3
            && count("leader") == 1
            && count("sync_standby") == 1
            && members.iter().all(|(_, state)| run(state))
    }

    /// The number of the primary's node.
    fn primary(&self) -> Option<usize> {
        self.nodes.iter().position(|node| {
            let response = request(node.api, "GET", "/primary", "");
            response.is_some_and(|(status, _)| status == 200)
        })
    }

    /// Whether a node is the primary.
    pub fn has_primary(&self) -> bool {
        self.primary().is_some()
    }

    /// Asks for a planned switchover. Returns whether it was done.
    pub fn switch_over(&self) -> bool {
        let Some(primary) = self.primary() else {
            return false;
        };
        let body = format!(r#"{{"leader": "node{primary}"}}"#);
        let response = request(self.nodes[primary].api, "POST", "/switchover", &body);
        response.is_some_and(|(status, _)| status == 200)
    }

    /// Kills the primary and its Patroni. Returns the number of the node.
    pub fn kill_primary(&mut self) -> Option<usize> {
        let primary = self.primary()?;
        let node = &mut self.nodes[primary];
        // First Patroni, which would start the server again.
        let pids = node.processes();
        if let Some(process) = &node.process {
            servers::signal("KILL", [process.pid()]);
        }
        servers::signal("KILL", pids);
        node.process = None;
        Some(primary)
    }

    /// Starts a killed node.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].start();
    }
}

impl Node {
    fn start(&mut self) {
        let args = [PATRONI, "patroni.yml"].map(str::to_owned);
        self.process = Some(start(&self.dir, "postgres", &args, STOP_POSTGRES));
    }

    /// The processes of its PostgreSQL server.
    fn processes(&self) -> Vec<String> {
        let file = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap_or_default();
        let Some(main) = file.lines().next() else {
            return Vec::new();
        };
        super::database::process_tree(main)
    }
}

/// Starts a program as a user, in a folder. The shell command `last` runs after its end.
fn start(dir: &Path, user: &str, args: &[String], last: &str) -> Supervised {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", user, "--regid", user, "--init-groups", "--"])
        .env("POSTGRES", POSTGRES)
        .env("HOME", dir)
        .current_dir(dir);
    Supervised::start(&mut command, args, last)
}

fn settings(number: usize, dir: &Path, (etcd, api, port): (u16, u16, u16)) -> String {
    let dir = dir.display();
    format!(
        "scope: checker
name: node{number}
restapi: {{listen: '127.0.0.1:{api}', connect_address: '127.0.0.1:{api}'}}
etcd3: {{host: '127.0.0.1:{etcd}'}}
bootstrap:
  dcs:
    ttl: 6
    loop_wait: 1
    retry_timeout: 2
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      parameters: {{max_connections: 200, wal_log_hints: 'on', wal_keep_size: 256MB}}
  initdb: [{{encoding: UTF8}}, {{locale: C.UTF-8}}, {{auth: trust}}, no-sync]
  pg_hba: ['host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust']
postgresql:
  listen: 127.0.0.1:{port}
  connect_address: 127.0.0.1:{port}
  data_dir: {dir}/data
  bin_dir: {POSTGRES}
  pgpass: {dir}/pgpass
  remove_data_directory_on_rewind_failure: true
  remove_data_directory_on_diverged_timelines: true
  authentication:
    superuser: {{username: postgres, password: unused}}
    replication: {{username: postgres, password: unused}}
    rewind: {{username: postgres, password: unused}}
  parameters: {{unix_socket_directories: '{dir}', fsync: 'off'}}
"
    )
}

fn proxy_settings(port: u16, servers: &str) -> String {
    format!(
        "defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout check 1s
listen primary
    bind 127.0.0.1:{port}
    option httpchk GET /primary
    http-check expect status 200
    default-server inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions
    {servers}"
    )
}

/// Sends a request over HTTP, and returns the status and the body of the response.
fn request(port: u16, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    let status = response.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = response.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(status.is_ok_and(|status| status.success()), "{command:?}");
}
