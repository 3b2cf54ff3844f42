//! A private PostgreSQL server.

use std::{
    env, fs, iter,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions,
};

use crate::free_port;

/// The folder of Debian's programs.
const BINARIES: &str = "/usr/lib/postgresql/15/bin";
const USER: &str = "postgres";

/// Maximum number of attempts to restore a dump.
const RESTORES: usize = 10;

/// Waits for the end of its input, at the latest when the test process ends. Then stops the server,
/// even a suspended one, and deletes its folder.
const GUARDIAN: &str = r#"
    cat >/dev/null
    if [ -s "$1/data/postmaster.pid" ]; then
        pid=$(head -n 1 "$1/data/postmaster.pid")
        kill -CONT "$pid"
        "$2" -D "$1/data" -m immediate -t 20 stop
    fi
    rm -rf "$1"
"#;

/// How a dump replaces a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restore {
    /// Each object is dropped and created again, in one transaction.
    Clean,
    /// The database is dropped, with its connections, and created again.
    Recreate,
}

/// A PostgreSQL server with its own data folder and port. Dropping it stops it.
pub struct Postgres {
    dir: PathBuf,
    port: u16,
    guardian: Child,
    databases: AtomicU32,
}

impl Postgres {
    /// The server of all tests that leave it unchanged.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts a server, and waits until it accepts connections.
    pub fn start() -> Self {
        Self::start_with(|_| String::new())
    }

    /// Starts a server with further lines in its configuration. The function that returns them may
    /// put files into the server's folder, its argument.
    pub fn start_with(configuration: impl FnOnce(&Path) -> String) -> Self {
        let server = Self::prepare();
        let extra = configuration(&server.dir);
        if is_root() {
            run(Command::new("chown").args(["-R", USER]).arg(&server.dir));
        }
        run(as_user(&program("initdb"))
            .args([
                "--no-sync",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ])
            .arg("--username=postgres")
            .arg("--pgdata")
            .arg(server.dir.join("data")));
        let configuration = format!(
            "listen_addresses = '127.0.0.1'\n\
             port = {}\n\
             unix_socket_directories = ''\n\
             fsync = off\n\
             max_connections = 200\n\
             {extra}\n",
            server.port
        );
        let file = server.dir.join("data/postgresql.auto.conf");
        fs::write(file, configuration).expect("the configuration can be written");
        server.start_again();
        server
    }

    /// Starts a hot standby of this server.
    #[must_use]
    pub fn standby(&self) -> Self {
        let server = Self::prepare();
        run(as_user(&program("pg_basebackup"))
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .arg("--dbname")
            .arg(self.url("postgres"))
            .arg("--pgdata")
            .arg(server.dir.join("data")));
        server.set_port(server.port);
        server.start_again();
        server
    }

    /// Adds a line to the configuration of a running server, which reloads it.
    pub fn configure(&self, line: &str) {
        self.append_configuration(line);
        run(self.pg_ctl().arg("reload"));
    }

    /// Makes a standby a primary.
    pub fn promote(&self) {
        run(self.pg_ctl().args(["--wait", "promote"]));
    }

    /// Moves a stopped server to the port of another one, and starts it.
    pub fn start_in_place_of(&mut self, other: &Self) {
        self.port = other.port;
        self.set_port(self.port);
        self.start_again();
    }

    fn set_port(&self, port: u16) {
        self.append_configuration(&format!("port = {port}"));
    }

    fn append_configuration(&self, line: &str) {
        let file = self.dir.join("data/postgresql.auto.conf");
        let configuration = fs::read_to_string(&file).expect("the configuration can be read");
        fs::write(file, format!("{configuration}\n{line}\n"))
            .expect("the configuration can be written");
    }

    /// A server without data: its folder, its port and its guardian.
    fn prepare() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("location-service-postgres-")
            .tempdir()
            .expect("a temporary folder can be made")
            .keep();
        if is_root() {
            run(Command::new("chown").arg(USER).arg(&dir));
        }
        let guardian = as_user("sh")
            .args(["-c", GUARDIAN, "guardian"])
            .arg(&dir)
            .arg(program("pg_ctl"))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh can be run");
        Self {
            dir,
            port: free_port(),
            guardian,
            databases: AtomicU32::new(0),
        }
    }

    /// Restarts it after [`stop`](Self::stop), on the same port.
    pub fn start_again(&self) {
        run(self
            .pg_ctl()
            .arg("--log")
            .arg(self.log())
            .args(["--wait", "start"]));
    }

    /// Copies the data folder, as a disk's snapshot does, to `name` beside it.
    pub fn save_snapshot(&self, name: &str) {
        run(Command::new("cp")
            .arg("--archive")
            .arg(self.dir.join("data"))
            .arg(self.dir.join(name)));
    }

    /// Replaces the data folder of a stopped server by a copy.
    pub fn restore_snapshot(&self, name: &str) {
        let data = self.dir.join("data");
        fs::remove_dir_all(&data).expect("the folder can be removed");
        fs::rename(self.dir.join(name), data).expect("the folder can be renamed");
    }

    /// Stops it and closes its connections.
    pub fn stop(&self) {
        run(self.pg_ctl().args(["--wait", "--mode=fast", "stop"]));
    }

    /// Sends a signal, such as `STOP` or `CONT`, to all of its processes.
    pub fn signal(&self, signal: &str) {
        let (main, children) = (self.pid(), self.children());
        kill(signal, iter::once(&main).chain(&children));
    }

    /// The process ids of the main process's children.
    pub fn children(&self) -> Vec<String> {
        let main = self.pid();
        let children = fs::read_to_string(format!("/proc/{main}/task/{main}/children"));
        let children = children.expect("the server runs");
        children.split_whitespace().map(str::to_owned).collect()
    }

    /// The process id of the server's main process.
    pub fn pid(&self) -> String {
        let file = fs::read_to_string(self.dir.join("data/postmaster.pid"));
        let file = file.expect("the server runs");
        file.lines().next().expect("a process id").to_owned()
    }

    /// The server's log file.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// A file of the server's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Creates an empty database, and returns its URL.
    pub async fn database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{number}");
        let maintenance = self.url("postgres");
        execute(&maintenance, &format!("CREATE DATABASE {name}")).await;
        self.url(&name)
    }

    /// Dumps a database to a file.
    pub fn dump(&self, database: &str, file: &Path) {
        run(client("pg_dump")
            .args(["--format=custom", "--dbname", &self.url(database)])
            .arg("--file")
            .arg(file));
    }

    /// Replaces a database by a dump.
    pub fn restore(&self, database: &str, file: &Path, how: Restore) {
        let mut options = vec!["--single-transaction"];
        match how {
            Restore::Clean => options.extend(["--clean", "--if-exists"]),
            Restore::Recreate => {
                let maintenance = self.url("postgres");
                let drop = ["--force", "--maintenance-db", &maintenance, database];
                run(client("dropdb").args(drop));
                run(client("createdb").args(["--maintenance-db", &maintenance, database]));
            }
        }
        let mut restore = client("pg_restore");
        restore
            .args(options)
            .args(["--dbname", &self.url(database)])
            .arg(file);
        // Calls in progress lock the tables in another order, so the server may cancel the restore.
        for attempt in 1.. {
            let output = restore.output().expect("pg_restore can be run");
            if output.status.success() {
                return;
            }
            let error = String::from_utf8_lossy(&output.stderr);
            let is_tried_again = attempt < RESTORES && error.contains("deadlock detected");
            assert!(is_tried_again, "{restore:?}: {error}");
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    fn pg_ctl(&self) -> Command {
        let mut command = as_user(&program("pg_ctl"));
        command.arg("--pgdata").arg(self.dir.join("data"));
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}

/// Connects to a database as its administrator.
pub async fn connect(url: &str) -> PgConnection {
    let options: PgConnectOptions = url.parse().expect("a URL");
    options.connect().await.expect("the server accepts")
}

/// Runs statements on a database.
pub async fn execute(url: &str, sql: &str) {
    let mut connection = connect(url).await;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .expect("the statements are right");
    connection.close().await.expect("the connection ends");
}

/// The texts in a query's only column.
pub async fn texts(url: &str, sql: &str) -> Vec<String> {
    let mut connection = connect(url).await;
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_all(&mut connection)
        .await
        .expect("the query returns texts")
}

/// The first number of a query's result.
pub async fn number(url: &str, sql: &str) -> i64 {
    let mut connection = connect(url).await;
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(&mut connection)
        .await
        .expect("the query returns a number")
}

/// Sends a signal to processes, all of which must exist.
pub fn kill(signal: &str, pids: impl IntoIterator<Item = impl AsRef<str>>) {
    for pid in pids {
        let pid = pid.as_ref();
        assert!(crate::signal(signal, [pid]), "{signal} {pid}");
    }
}

/// A client program.
fn client(name: &str) -> Command {
    Command::new(program(name))
}

/// The path of a program: in `POSTGRES_BIN` or `POSTGRES_CLIENT_BIN` if it is there, otherwise Debian's.
fn program(name: &str) -> String {
    ["POSTGRES_BIN", "POSTGRES_CLIENT_BIN"]
        .into_iter()
        .filter_map(|variable| env::var(variable).ok())
        .map(|folder| format!("{folder}/{name}"))
        .find(|path| Path::new(path).exists())
        .unwrap_or_else(|| format!("{BINARIES}/{name}"))
}

/// Runs a program as `postgres` instead of root, which `initdb` and the server refuse.
pub(crate) fn as_user(program: &str) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", USER, "--regid", USER, "--init-groups", "--"])
        .arg(program)
        .current_dir("/");
    command
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").expect("/proc is there").uid() == 0
}

fn run(command: &mut Command) {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap_or_else(|error| panic!("{command:?} can't be run: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
