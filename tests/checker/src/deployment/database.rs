//! The database: a PostgreSQL server, or a primary with a hot standby. Each replica of the service has an
//! address of its own for it, behind a proxy that can be redirected.

use std::{fs, io};

use servers::postgres::{Postgres, number, texts};

use crate::{
    history::Label,
    network::{Destination, Network, Route},
};

/// Settings of every server, with which a standby that was away soon catches up.
const CONFIGURATION: &str = "wal_keep_size = '256MB'\nwal_retrieve_retry_interval = '200ms'";

/// Whether a commit waits for the standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    Synchronous,
    Asynchronous,
}

/// The servers, and the addresses that lead to them.
pub struct Database {
    /// The server that accepts writes.
    pub primary: Postgres,
    standby: Option<Postgres>,
    replication: Option<Replication>,
    /// The names of the databases.
    names: Vec<String>,
    /// The addresses of the replicas of the service.
    routes: Vec<Route>,
}

impl Database {
    /// Starts the servers, creates the databases, and opens an address for each replica of the service.
    pub(super) async fn start(
        network: &mut Network,
        replication: Option<Replication>,
        databases: usize,
        replicas: usize,
    ) -> Self {
        let primary = Postgres::start_with(|_| CONFIGURATION.to_owned());
        let mut names = Vec::new();
        for _ in 0..databases {
            let url = primary.database().await;
            let (_, name) = url.rsplit_once('/').expect("a database's URL");
            names.push(name.to_owned());
        }
        let mut routes = Vec::new();
        for _ in 0..replicas {
            let route = network.route(Destination::Postgres).await;
            let route = route.expect("a free port");
            route.lead_to(primary.port());
            routes.push(route);
        }
        let mut database = Self {
            primary,
            standby: None,
            replication,
            names,
            routes,
        };
        if replication.is_some() {
            database.start_standby();
        }
        database
    }

    /// The URL of the database of a replica. Replicas take turns with the databases.
    pub(super) fn url(&self, replica: usize) -> String {
        let url = self.primary.url(&self.names[replica % self.names.len()]);
        url.replace(
            &format!(":{}/", self.primary.port()),
            &format!(":{}/", self.routes[replica].port),
        )
    }

    /// The standby.
    pub fn standby(&self) -> &Postgres {
        self.standby.as_ref().expect("the topology has one")
    }

    /// The name of the first database.
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// Starts a standby of the primary, for which commits then wait if replication is synchronous.
    pub fn start_standby(&mut self) {
        self.standby = Some(self.primary.standby());
        if self.replication == Some(Replication::Synchronous) {
            self.primary.configure("synchronous_standby_names = '*'");
        }
    }

    /// Makes the standby the primary, and returns the old primary.
    pub fn promote_standby(&mut self) -> Postgres {
        let standby = self.standby.take().expect("the topology has one");
        standby.configure("synchronous_standby_names = ''");
        standby.promote();
        std::mem::replace(&mut self.primary, standby)
    }

    /// Redirects the addresses of these replicas to a server.
    pub fn redirect(&self, replicas: impl IntoIterator<Item = usize>, server: &Postgres) {
        for replica in replicas {
            self.routes[replica].lead_to(server.port());
        }
    }

    /// The id of the primary's process that sends its log to the standby.
    pub async fn log_sender(&self) -> String {
        let sql = "SELECT pid::bigint FROM pg_stat_replication";
        number(&self.primary.url("postgres"), sql).await.to_string()
    }

    /// Whether the standby receives the primary's log.
    pub(super) async fn is_replicated(&self) -> bool {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        self.standby.is_none() || number(&self.primary.url("postgres"), sql).await > 0
    }

    /// The states of all locations, as the primary has them.
    pub async fn locations(&self) -> Vec<Label> {
        let sql = "SELECT split_part(display_name, ' ', 1) FROM locations";
        let labels = texts(&self.primary.url(self.name()), sql).await;
        let labels = labels.iter().map(|label| label.parse());
        labels.collect::<Result<_, _>>().expect("labels")
    }

    /// Restarts the primary after its processes were killed.
    pub fn restart(&self) {
        // The server would wait for the process that the file names, which may be a zombie.
        match fs::remove_file(self.primary.file("data/postmaster.pid")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
            _ => self.primary.start_again(),
        }
    }
}

/// The processes of a database server.
pub fn processes(postgres: &Postgres) -> Vec<String> {
    process_tree(&postgres.pid())
}

/// A process and its children.
pub(super) fn process_tree(main: &str) -> Vec<String> {
    let children = fs::read_to_string(format!("/proc/{main}/task/{main}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace();
    std::iter::once(main)
        .chain(children)
        .map(str::to_owned)
        .collect()
}
