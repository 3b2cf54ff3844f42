//! Retries by clients while servers are killed: nothing is created or updated twice, and nothing
//! that was acknowledged is missing.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use location_service::proto::location::v1;
use serde_json::Value;
use servers::{fixed_port, postgres::Postgres, redis::RedisServer};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::{
    harness::{PATIENCE, admin, connect, create, names, of_run, storage, token},
    process::{Home, Process, in_repository, isolated, tool},
};

/// The policy of [`client/service-config.json`](../../client/service-config.json), which `tonic`
/// leaves to the caller.
struct RetryPolicy {
    timeout: Duration,
    attempts: u64,
    backoff: Duration,
    max_backoff: Duration,
    codes: Vec<Code>,
}

impl RetryPolicy {
    fn read() -> Self {
        let text = std::fs::read_to_string(in_repository("client/service-config.json"));
        let config: Value = serde_json::from_str(&text.expect("a file")).expect("it is JSON");
        let method = &config["methodConfig"][0];
        let policy = &method["retryPolicy"];
        let seconds = |value: &Value| {
            let seconds = value.as_str().and_then(|text| text.strip_suffix('s'));
            Duration::from_secs_f64(seconds.expect("a duration").parse().expect("a number"))
        };
        let code = |name: &Value| match name.as_str() {
            Some("UNAVAILABLE") => Code::Unavailable,
            Some("RESOURCE_EXHAUSTED") => Code::ResourceExhausted,
            _ => panic!("{name}"),
        };
        let codes = policy["retryableStatusCodes"].as_array();
        Self {
            timeout: seconds(&method["timeout"]),
            attempts: policy["maxAttempts"].as_u64().expect("a number"),
            backoff: seconds(&policy["initialBackoff"]),
            max_backoff: seconds(&policy["maxBackoff"]),
            codes: codes.expect("a list").iter().map(code).collect(),
        }
    }

    /// Calls until an attempt succeeds or fails with another code.
    async fn call<M: Clone, R, F>(&self, message: &M, call: impl Fn(Request<M>) -> F) -> Option<R>
    where
        F: Future<Output = Result<R, Status>>,
    {
        let mut backoff = self.backoff;
        for attempt in 1.. {
            let mut request = Request::new(message.clone());
            request.set_timeout(self.timeout);
            match call(request).await {
                Ok(response) => return Some(response),
                Err(status) => {
                    let wrong = [Code::NotFound, Code::AlreadyExists, Code::Internal];
                    // The client itself calls a broken stream internal; errors of the service have
                    // details.
                    assert!(
                        status.details().is_empty() || !wrong.contains(&status.code()),
                        "{status:?}"
                    );
                    if attempt >= self.attempts || !self.codes.contains(&status.code()) {
                        return None;
                    }
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(self.max_backoff);
        }
        None
    }
}

/// Creates locations with `tonic` until it is stopped, and checks that each one that was acknowledged
/// is there, and none twice.
async fn with_tonic(address: String, stopped: Arc<AtomicBool>) {
    const RUN: &str = "retries-tonic";
    let policy = RetryPolicy::read();
    let client = admin(connect(&format!("http://{address}")).await);
    let mut acknowledged = Vec::new();
    for number in 1.. {
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("dock {number}");
        let request = v1::CreateLocationRequest {
            request_id: Uuid::new_v4().to_string(),
            ..create(storage(&name, RUN))
        };
        let created = policy.call(&request, |request| {
            let mut client = client.clone();
            async move { client.create_location(request).await }
        });
        if created.await.is_some() {
            acknowledged.push(name);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let list = v1::ListLocationsRequest {
        page_size: 1_000,
        ..of_run(RUN)
    };
    let listed = client.clone().list_locations(list).await.expect("listed");
    let mut names = names(&listed);
    names.sort_unstable();
    assert!(names.len() < 1_000, "more than a page");
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "created twice");
    for name in &acknowledged {
        assert!(
            names.binary_search(&name.as_str()).is_ok(),
            "{name} is missing"
        );
    }
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
    println!("tonic: {count} created");
}

/// The script of a session, which reads a line before each of its phases.
struct Script(Child);

impl Script {
    fn start(mut interpreter: Command, script: &str, address: &str, last: &[&Path]) -> Self {
        interpreter
            .arg(in_repository(script))
            .arg(address)
            .arg(in_repository("proto"))
            .arg(token("root", true))
            .args(last)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(interpreter.spawn().expect("the interpreter runs"))
    }

    fn next_phase(&mut self) {
        let input = self.0.stdin.as_mut().expect("piped");
        // If the script has ended, `end` prints its error.
        let _ = input.write_all(b"\n");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        // One byte at a time, so that no later line is lost.
        let output = self.0.stdout.as_mut().expect("piped");
        let read = BufReader::with_capacity(1, output).read_line(&mut line);
        read.expect("UTF-8");
        line
    }

    fn end(mut self) -> String {
        let last = self.line();
        if !last.ends_with("the session is over\n") {
            let mut error = String::new();
            let _ = self
                .0
                .stderr
                .take()
                .expect("piped")
                .read_to_string(&mut error);
            panic!("{last}{error}");
        }
        self.0.wait().expect("it ends");
        last
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A deployment whose servers are killed. Each of them starts again with its data.
struct Deployment {
    postgres: Postgres,
    redis: RedisServer,
    database: String,
    home: Home,
    service: Option<Process>,
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    Postgres,
    Redis,
    Service,
}

impl Deployment {
    async fn start() -> Self {
        let (postgres, redis) = (Postgres::start(), RedisServer::start());
        let mut home = Home::new();
        home.listen = SocketAddr::from(([127, 0, 0, 1], fixed_port()));
        let mut deployment = Self {
            database: postgres.database().await,
            postgres,
            redis,
            home,
            service: None,
        };
        deployment.serve().await;
        deployment
    }

    async fn serve(&mut self) {
        let command = self.home.command_on(&self.database, &self.redis.url());
        self.service = Some(self.home.run(command).await.expect("it starts"));
    }

    async fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Postgres => {
                // PostgreSQL restarts its processes after they are killed. Some may already have exited.
                servers::signal("KILL", self.postgres.children());
            }
            Victim::Redis => self.redis.restart(),
            Victim::Service => {
                self.service.take().expect("it runs").kill();
                self.serve().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_are_safe_while_servers_are_killed() {
    use Victim::{Postgres, Redis, Service};
    let mut deployment = Deployment::start().await;
    let address = deployment.home.listen.to_string();
    let modules = tool("node/node_modules");
    let config = |name| in_repository("client").join(name);
    let mut scripts = [
        Script::start(
            isolated(tool("python/bin/python")),
            "tests/clients/retries.py",
            &address,
            &[&config("service-config.json")],
        ),
        Script::start(
            isolated("node"),
            "tests/clients/retries.mjs",
            &address,
            &[&config("service-config-hedging.json"), &modules],
        ),
    ];
    let stopped = Arc::new(AtomicBool::new(false));
    let tonic = tokio::spawn(with_tonic(address, Arc::clone(&stopped)));
    // After a connection breaks, a client doesn't know whether the service received the creation. So
    // while the service is killed, every creation has a request id.
    for victims in [
        &[Postgres, Redis, Postgres, Postgres][..],
        &[Service, Postgres, Service],
    ] {
        for victim in victims {
            // Long enough for several writes, so that kills come at different points of a write.
            tokio::time::sleep(Duration::from_millis(900)).await;
            deployment.kill(*victim).await;
        }
        tokio::time::sleep(Duration::from_millis(900)).await;
        scripts.iter_mut().for_each(Script::next_phase);
        if let [Postgres, ..] = victims {
            scripts = tokio::task::spawn_blocking(move || {
                for script in &mut scripts {
                    if script.line() != "ready\n" {
                        let _ = script.0.kill();
                    }
                }
                scripts
            })
            .await
            .expect("no panic");
        }
    }
    stopped.store(true, Ordering::Relaxed);
    let ended = tokio::task::spawn_blocking(move || scripts.map(Script::end));
    let printed = tokio::time::timeout(PATIENCE, ended)
        .await
        .expect("they end in time")
        .expect("no panic");
    print!("{}", printed.concat());
    tonic.await.expect("no panic");
}
