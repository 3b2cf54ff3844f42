//! The files of `deploy/` name metrics, flags and variables that exist.

use std::{collections::BTreeSet, fs};

use tempfile::TempDir;

use crate::{
    harness::{Pair, TestApp},
    observe::{self, serve_metrics},
    process::{in_repository, output_of, service},
};

fn file(name: &str) -> String {
    let path = in_repository("deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<&str> {
    text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_')
        .filter(|word| {
            ["location_service_", "grpc_server_", "process_"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
        })
        .collect()
}

/// The name of the family of a series.
fn family(name: &str) -> &str {
    ["_bucket", "_count", "_sum"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name)
}

#[tokio::test]
async fn dashboards_and_alerts_name_the_metrics_of_the_service() {
    let app = TestApp::spawn_changed(Pair::Embedded, serve_metrics).await;
    let scraped = observe::metrics(app.metrics.expect("a port")).await;
    app.stop().await;
    let series = metrics(&scraped);
    let dashboard = file("grafana/dashboard.json");
    serde_json::from_str::<serde_json::Value>(&dashboard).expect("JSON");
    let alerts = file("prometheus/alerts.yml");
    for used in [&dashboard, &alerts] {
        let used = metrics(used);
        assert!(!used.is_empty(), "no metrics");
        let unknown: Vec<_> = used.difference(&series).copied().collect();
        assert_eq!(unknown, [""; 0], "no such metric");
    }
    let shown: BTreeSet<_> = metrics(&dashboard).into_iter().map(family).collect();
    let missing: Vec<_> = series
        .into_iter()
        .map(family)
        .filter(|name| !shown.contains(name))
        .filter(|name| {
            // The dashboard shows other metrics of the process, and counts calls when they end.
            ![
                "grpc_server_started_total",
                "process_threads",
                "process_virtual_memory_bytes",
            ]
            .contains(name)
        })
        .collect();
    assert_eq!(missing, [""; 0], "not in the dashboard");
}

#[test]
fn every_alert_is_in_the_readme() {
    let (alerts, readme) = (file("prometheus/alerts.yml"), file("README.md"));
    let alerts: Vec<_> = alerts
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- alert: "))
        .collect();
    assert!(!alerts.is_empty(), "no alerts");
    let missing: Vec<_> = alerts
        .into_iter()
        .filter(|alert| !readme.contains(&format!("\n| `{alert}` |")))
        .collect();
    assert_eq!(missing, [""; 0], "not in deploy/README.md");
}

#[tokio::test]
async fn manifests_and_settings_name_the_flags_of_the_service() {
    let help = output_of(service(["serve", "--help"])).await;
    let flags: BTreeSet<_> = help
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--"))
        .collect();
    let variables = ["kubernetes/location-service.yaml", "Dockerfile"].map(file);
    let named = variables.iter().flat_map(|text| {
        text.split(|char: char| !char.is_ascii_uppercase() && char != '_')
            .filter_map(|word| word.strip_prefix("LOCATION_SERVICE_"))
            .filter(|name| *name != "PORT")
            .map(|name| name.to_lowercase().replace('_', "-"))
    });
    let named: Vec<_> = named.collect();
    let settings = file("debian/config.toml");
    let keys = settings.lines().filter_map(|line| {
        let (key, _) = line.trim_start_matches('#').split_once(" = ")?;
        Some(key.to_owned())
    });
    let keys: Vec<_> = keys.collect();
    assert!(!named.is_empty() && !keys.is_empty(), "no settings");
    let unknown: Vec<_> = named
        .into_iter()
        .chain(keys)
        .filter(|name| !flags.contains(name.as_str()))
        .collect();
    assert_eq!(unknown, [""; 0], "no such setting");
}

#[tokio::test]
async fn every_command_has_a_man_page() {
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().to_str().expect("UTF-8");
    output_of(service(["man", path])).await;
    let help = output_of(service(["--help"])).await;
    let (_, commands) = help.split_once("\nCommands:\n").expect("a list");
    let commands = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        // Another line of a description, and the command that has no page.
        .filter(|command| !["", "help"].contains(command));
    let mut pages = vec!["location-service".to_owned()];
    pages.extend(commands.map(|command| format!("location-service-{command}")));
    assert!(pages.contains(&"location-service-migrate".to_owned()));
    for page in pages {
        let text = fs::read_to_string(dir.path().join(format!("{page}.1")));
        let text = text.unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".SH OPTIONS"), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = output_of(service(["completions", shell])).await;
        assert!(script.contains("healthcheck"), "{shell}");
    }
}
