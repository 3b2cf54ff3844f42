//! Data goes one way, `main → app → {api, auth} → service → {cache, store} → {model, proto, error}`,
//! and each foreign crate is known where it must be and nowhere else.

use std::{fs, path::Path};

/// What a name in the code means, and the files (or folders) of `src/` that may say it. Whatever
/// isn't said of a file here, it may do.
const RULES: &[(&str, &[&str])] = &[
    ("tonic", &["cli/", "server/", "api/"]),
    // The command line, which the library doesn't know.
    ("clap", &["cli/"]),
    ("clap_complete", &["cli/"]),
    ("csv", &["cli/"]),
    ("indicatif", &["cli/"]),
    ("prost_reflect", &["cli/", "api/", "proto/"]),
    ("toml", &["cli/"]),
    ("crate::cli", &["main.rs", "cli/"]),
    ("sqlx", &["store/"]),
    ("fred", &["cache/redis/"]),
    // The engines.
    ("crate::store::sqlite", &["app.rs", "store/"]),
    ("crate::store::postgres", &["app.rs", "store/"]),
    ("MemoryCache", &["app.rs", "cache/"]),
    ("RedisCache", &["app.rs", "coordination.rs", "cache/"]),
    // The layers, each known to those above it.
    ("crate::app", &["cli/", "app.rs"]),
    ("crate::telemetry", &["cli/"]),
    (
        "crate::config",
        &["cli/", "app.rs", "auth/", "telemetry.rs"],
    ),
    ("crate::auth", &["cli/", "app.rs", "server/", "auth/"]),
    // `proto` names the codec of the cached answers in what it generates, which isn't in `src/`.
    ("crate::server", &["app.rs", "server/"]),
    ("crate::api", &["server/", "api/"]),
    ("crate::service", &["app.rs", "server/", "api/"]),
    ("crate::page_token", &["service/"]),
    ("crate::coordination", &["app.rs", "service/"]),
    (
        "crate::cache",
        &["app.rs", "api/", "service/", "coordination.rs", "cache/"],
    ),
    (
        "crate::store",
        &[
            "cli/",
            "app.rs",
            "config.rs",
            "server/",
            "service/",
            "coordination.rs",
            "store/",
        ],
    ),
];

#[test]
fn each_layer_knows_only_what_is_beneath_it() {
    let mut wrong = Vec::new();
    let mut files = 0;
    visit(
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")),
        "",
        &mut |file, source| {
            files += 1;
            let names = names_in(source);
            for (name, allowed) in RULES {
                let may = allowed.iter().any(|place| match place.strip_suffix('/') {
                    Some(folder) => file.starts_with(place) || file == format!("{folder}.rs"),
                    None => file == *place,
                });
                let says = names.iter().any(|said| {
                    said.strip_prefix(name)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
                });
                if says && !may {
                    wrong.push(format!("src/{file} names {name}, which is for {allowed:?}"));
                }
            }
        },
    );
    assert!(files > 10, "src/ has {files} files");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_are_found_however_they_are_written() {
    let source = r"
        //! tonic is a crate.
        use crate::{cache::{Key, NextFlight}, store::Store, error::Error};
        use sqlx as database;
        fn f() -> tonic::Status { location_service::app::run(/* fred */) } // fred::x
    ";
    let names = names_in(source);
    for name in [
        "crate::cache::NextFlight",
        "crate::store::Store",
        "sqlx",
        "tonic::Status",
        "crate::app::run",
    ] {
        assert!(names.iter().any(|said| said == name), "{name}: {names:?}");
    }
    assert!(!names.iter().any(|said| said.starts_with("fred")));
}

fn visit(folder: &Path, prefix: &str, each: &mut impl FnMut(&str, &str)) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = format!("{prefix}{}", name.expect("a name in UTF-8"));
        if path.is_dir() {
            visit(&path, &format!("{name}/"), each);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            each(&name, &fs::read_to_string(&path).expect("Rust is UTF-8"));
        }
    }
}

/// The paths in a source, outside comments, with the braces of `use` written out.
fn names_in(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .map(|line| line.replace("location_service::", "crate::") + " ")
        .collect();
    let code = without_block_comments(&code);
    let mut names = Vec::new();
    // The prefix that each open brace stands behind: empty if it isn't one of `use`.
    let mut prefixes = vec![String::new()];
    let mut path = String::new();
    for char in code.chars() {
        match char {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | ':' => path.push(char),
            '{' => {
                let within = if path.ends_with("::") {
                    format!("{}{path}", prefixes.last().map_or("", String::as_str))
                } else {
                    String::new()
                };
                prefixes.push(within);
                path.clear();
            }
            _ => {
                if !path.is_empty() {
                    let prefix = prefixes.last().map_or("", String::as_str);
                    names.push(format!("{prefix}{path}"));
                    path.clear();
                }
                if char == '}' && prefixes.len() > 1 {
                    prefixes.pop();
                }
            }
        }
    }
    names
}

fn without_block_comments(code: &str) -> String {
    let mut parts = code.split("/*");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(part.split_once("*/").map_or("", |(_, rest)| rest));
    }
    kept
}
