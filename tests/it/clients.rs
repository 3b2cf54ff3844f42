//! Sessions of clients in other languages with the real binary.

use std::{path::Path, process::Command};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    harness::token,
    process::{Home, in_repository, isolated, output, output_of, tool},
};

const HIT: &str = "location-service; hit; detail=local";

/// Runs the script of a session. Its last argument is `last`, or the path of the database.
async fn session(mut interpreter: Command, script: &str, last: Option<&Path>) {
    let home = Home::new();
    let service = home.start().await;
    interpreter
        .arg(in_repository(script))
        .arg(service.url.trim_start_matches("http://"))
        .arg(in_repository("proto"))
        .arg(token("root", true))
        .arg(last.unwrap_or(&home.database));
    let printed = output_of(interpreter).await;
    assert!(printed.ends_with("the session is over\n"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn python_with_grpcio() {
    let python = isolated(tool("python/bin/python"));
    session(python, "tests/clients/session.py", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_with_grpc_js() {
    let modules = tool("node/node_modules");
    session(
        isolated("node"),
        "tests/clients/session.mjs",
        Some(&modules),
    )
    .await;
}

/// The rules of the table in tests/README.md, by clients that are generated from the proto and use no
/// other code of the project.
#[tokio::test(flavor = "multi_thread")]
async fn the_rules_hold_with_python_and_grpcurl() {
    let python = isolated(tool("python/bin/python"));
    session(python, "tests/clients/rules.py", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_hold_with_node() {
    let modules = tool("node/node_modules");
    session(isolated("node"), "tests/clients/rules.mjs", Some(&modules)).await;
}

#[test]
fn every_rule_of_the_table_has_a_step_or_a_test() {
    let rules = std::fs::read_to_string(in_repository("tests/clients/rules.json"));
    let rules: Vec<Value> = serde_json::from_str(&rules.expect("a file")).expect("it is JSON");
    let readme = std::fs::read_to_string(in_repository("tests/README.md")).expect("a file");
    let table: Vec<_> = readme
        .lines()
        .filter(|line| line.starts_with("| AIP-") || line.starts_with("| RFC "))
        .collect();
    let names = |row: &str| {
        let rules = row.split('|').nth(1).expect("a column").trim();
        let rules = rules.split(", ").map(str::to_owned);
        rules.collect::<Vec<_>>()
    };
    let listed: Vec<_> = table.iter().flat_map(|row| names(row)).collect();
    for step in &rules {
        let rule = step["rule"].as_str().expect("text");
        assert!(
            listed.iter().any(|name| name == rule),
            "{rule} isn't in the table"
        );
    }
    for row in table {
        let in_rules = names(row)
            .iter()
            .all(|name| rules.iter().any(|step| step["rule"] == **name));
        assert_eq!(row.contains("`rules`"), in_rules, "{row}");
        let tests = row.split('|').nth(3).expect("a column");
        assert!(tests.contains('`'), "{row} names no test");
        for test in tests.split('`').skip(1).step_by(2) {
            let (module, name) = test.split_once("::").unwrap_or((test, ""));
            let function = format!("fn {}", name.trim_end_matches('…'));
            let exists = ["it/conformance", "it"].iter().any(|folder| {
                let path = in_repository(&format!("tests/{folder}/{module}.rs"));
                std::fs::read_to_string(path).is_ok_and(|source| source.contains(&function))
            });
            assert!(exists || test == "rules", "{test} doesn't exist");
        }
    }
}

/// Calls with grpcurl.
struct Grpcurl {
    address: String,
    token: String,
}

/// The output of grpcurl, with headers, and whether the call succeeded.
struct Printed {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Grpcurl {
    async fn run(&self, options: &[&str], arguments: &[&str]) -> Printed {
        let mut command = isolated(tool("python/bin/grpcurl"));
        command
            .args(["-plaintext", "-max-time", "20"])
            .args(options)
            .arg(&self.address)
            .args(arguments);
        let output = output(command).await;
        Printed {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    async fn call(&self, options: &[&str], method: &str, request: &Value) -> Printed {
        let bearer = format!("authorization: Bearer {}", self.token);
        let request = request.to_string();
        let mut all = vec!["-H", &bearer, "-d", &request];
        all.extend(options);
        let method = format!("location.v1.LocationService/{method}");
        self.run(&all, &[&method]).await
    }

    /// Makes a call that must succeed, and returns the response.
    async fn response(&self, method: &str, request: Value) -> Value {
        let printed = self.call(&[], method, &request).await;
        assert!(printed.success, "{method}: {}", printed.stderr);
        serde_json::from_str(&printed.stdout).expect("grpcurl prints JSON")
    }

    /// Makes a call that must fail, and returns the error that grpcurl printed.
    async fn refusal(&self, method: &str, request: Value) -> String {
        let printed = self.call(&[], method, &request).await;
        assert!(!printed.success, "{method}: {}", printed.stdout);
        printed.stderr
    }

    async fn cache_status(&self, method: &str, request: &Value) -> String {
        let printed = self.call(&["-v"], method, request).await;
        let status = printed
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("cache-status: "));
        status.expect("every cached method says it").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a session is one story")]
async fn grpcurl_with_reflection() {
    let home = Home::new();
    let service = home.start().await;
    let grpcurl = Grpcurl {
        address: service.url.trim_start_matches("http://").to_owned(),
        token: token("root", true),
    };

    let services = grpcurl.run(&[], &["list"]).await.stdout;
    for name in ["location.v1.LocationService", "grpc.health.v1.Health"] {
        assert!(services.lines().any(|line| line == name), "{services}");
    }
    let methods = grpcurl.run(&[], &["list", "location.v1.LocationService"]);
    assert_eq!(methods.await.stdout.lines().count(), 10);
    let described = grpcurl.run(&[], &["describe", "location.v1.Location"]);
    assert!(described.await.stdout.contains("string display_name = 3;"));
    let health = grpcurl.run(&[], &["grpc.health.v1.Health/Check"]).await;
    assert!(health.stdout.contains("\"SERVING\""), "{}", health.stderr);

    let list = ["location.v1.LocationService/ListLocations"];
    let stranger = grpcurl.run(&[], &list).await;
    assert!(!stranger.success);
    assert!(
        stranger.stderr.contains("Unauthenticated"),
        "{}",
        stranger.stderr
    );

    let of_run = json!({"production_run_id": "grpcurl"});
    let create = json!({
        "location": {
            "type": "LOCATION_TYPE_STORAGE",
            "display_name": "Første lager",
            "production_run_id": "grpcurl",
            "address": {"locality": "København", "region_code": "DK"},
            "capacity": "12"
        },
        "request_id": Uuid::new_v4().to_string()
    });
    let created = grpcurl.response("CreateLocation", create.clone()).await;
    assert_eq!(created["displayName"], "Første lager");
    assert_eq!(grpcurl.response("CreateLocation", create).await, created);

    let listed = grpcurl.response("ListLocations", of_run.clone()).await;
    assert_eq!(listed["locations"], json!([created]));
    assert_eq!(grpcurl.cache_status("ListLocations", &of_run).await, HIT);
    let id = &created["id"];
    assert_eq!(
        grpcurl.response("GetLocation", json!({"id": id})).await,
        created
    );

    let update = json!({
        "location": {"id": id, "etag": created["etag"], "display_name": "Andet lager"},
        "update_mask": {"paths": ["display_name"]}
    });
    let updated = grpcurl.response("UpdateLocation", update.clone()).await;
    assert_eq!(updated["displayName"], "Andet lager");
    assert_eq!(updated["capacity"], "12");
    // A repeated update changes nothing, so its etag may be the old one.
    let again = grpcurl.response("UpdateLocation", update.clone()).await;
    assert_eq!(again, updated);
    let mut update = update;
    update["location"]["display_name"] = json!("Tredje lager");
    let stale = grpcurl.refusal("UpdateLocation", update).await;
    for said in ["Code: Aborted", "ETAG_MISMATCH", "google.rpc.ResourceInfo"] {
        assert!(stale.contains(said), "{stale}");
    }

    let requests: Vec<_> = (0..3)
        .map(|number| {
            json!({"location": {
                "type": "LOCATION_TYPE_DELIVERY",
                "display_name": format!("Ramp {number}"),
                "production_run_id": "grpcurl",
                "capacity": number
            }})
        })
        .collect();
    let ramps = grpcurl.response("BatchCreateLocations", json!({"requests": requests}));
    let ramps = ramps.await["locations"].take();
    let ids = json!({"ids": [ramps[2]["id"], ramps[0]["id"]]});
    let found = grpcurl.response("BatchGetLocations", ids).await;
    assert_eq!(found["locations"], json!([ramps[2], ramps[0]]));
    let reports = grpcurl
        .response("ListLocationReports", of_run.clone())
        .await;
    assert_eq!(reports["reports"][0]["locationCount"], "3");

    let mut page = json!({"production_run_id": "grpcurl", "page_size": 3, "order_by": "capacity"});
    let first = grpcurl.response("ListLocations", page.clone()).await;
    assert_eq!(first["locations"], ramps);
    page["page_token"] = first["nextPageToken"].clone();
    let second = grpcurl.response("ListLocations", page).await;
    assert_eq!(second, json!({"locations": [updated]}));

    let query = json!({"query": "RAMP 2"});
    let response = grpcurl.response("ListLocations", query.clone()).await;
    assert_eq!(response["locations"], json!([ramps[2]]));
    let bad = json!({"location": {"capacity": -1}, "request_id": "x"});
    let bad = grpcurl.refusal("CreateLocation", bad).await;
    for said in [
        "google.rpc.BadRequest",
        "location.type",
        "location.capacity",
        "request_id",
    ] {
        assert!(bad.contains(said), "{bad}");
    }
    let delete = json!({"id": id, "etag": updated["etag"]});
    assert_eq!(
        grpcurl.response("DeleteLocation", delete.clone()).await,
        json!({})
    );
    let listed = grpcurl.response("ListLocations", of_run).await;
    assert_eq!(listed["locations"].as_array().map(Vec::len), Some(3));
    let gone = grpcurl.refusal("DeleteLocation", delete).await;
    assert!(gone.contains("Code: NotFound"), "{gone}");
}
