//! Dependencies go one way, `main → cli → app → server → api → {auth, service} → {cache, store} → {model,
//! proto, error}`, and every module names only the modules and crates that it needs.

use std::{collections::BTreeSet, fs, path::Path};

/// Crates that every module may use.
const COMMON: &[&str] = &[
    "arc_swap",
    "async_trait",
    "bytes",
    "futures_util",
    "parking_lot",
    "thiserror",
    "tokio",
    "tokio_util",
    "tracing",
    "uuid",
];

/// A module of `src/`, with the other modules and the crates that it may use.
struct Module {
    name: &'static str,
    modules: &'static [&'static str],
    crates: &'static [&'static str],
}

/// Every module, from the top layer down.
#[rustfmt::skip]
const MODULES: &[Module] = &[
    Module {
        name: "main",
        modules: &[],
        crates: &["mimalloc"],
    },
    Module {
        name: "cli",
        modules: &[
            "app", "auth", "config", "error", "fuzz", "model", "proto", "store", "telemetry", "tls",
        ],
        crates: &[
            "base64", "clap", "clap_complete", "clap_mangen", "encoding_rs", "flate2", "http", "hyper_util",
            "indicatif", "memchr", "prost", "prost_reflect", "prost_types", "rustix", "rustls",
            "serde", "serde_json", "strsim", "tokio_rustls", "toml", "tonic", "tonic_health", "tonic_types",
            "tower", "tracing_subscriber", "zstd",
        ],
    },
    Module {
        name: "lib",
        modules: &[],
        crates: &[],
    },
    Module {
        name: "config",
        modules: &["store", "telemetry", "tls"],
        crates: &["http"],
    },
    Module {
        name: "app",
        modules: &[
            "auth", "cache", "config", "coordination", "error", "server", "service", "store", "tls",
        ],
        crates: &[],
    },
    Module {
        name: "server",
        modules: &["api", "auth", "error", "model", "proto", "service", "store", "telemetry", "tls"],
        crates: &[
            "http", "http_body", "http_body_util", "hyper", "hyper_util", "pin_project_lite",
            "prometheus", "prost_reflect", "rand", "rustix", "tokio_rustls", "tonic", "tonic_health",
            "tonic_reflection", "tonic_types", "tower",
        ],
    },
    Module {
        name: "auth",
        modules: &["config", "error", "files", "fuzz", "http_client", "model", "tls"],
        crates: &[
            "aws_lc_rs", "base64", "blake3", "http", "http_body_util", "jsonwebtoken", "quick_cache", "serde",
            "serde_json", "tokio_rustls",
        ],
    },
    Module {
        name: "api",
        modules: &["cache", "error", "fuzz", "model", "proto", "service", "telemetry", "threads"],
        crates: &[
            "blake3", "flate2", "http", "http_body", "http_body_util", "prost", "prost_reflect",
            "prost_types", "tonic", "tonic_prost", "tonic_types", "tower", "zstd",
        ],
    },
    Module {
        name: "service",
        modules: &[
            "cache", "coordination", "error", "failpoints", "model", "page_token", "proto", "store",
            "telemetry",
        ],
        crates: &[],
    },
    Module {
        name: "coordination",
        modules: &["cache", "model", "store"],
        crates: &[],
    },
    Module {
        name: "cache",
        modules: &["failpoints", "model", "proto", "telemetry", "tls"],
        crates: &["blake3", "fred", "percent_encoding", "prost", "quick_cache", "rand"],
    },
    Module {
        name: "store",
        modules: &["error", "failpoints", "model", "telemetry", "threads"],
        crates: &["serde", "serde_json", "sqlx"],
    },
    Module {
        name: "page_token",
        modules: &["error", "fuzz", "model", "proto"],
        crates: &["base64", "blake3"],
    },
    Module {
        name: "proto",
        modules: &["error", "model"],
        crates: &["location_client", "prost", "prost_reflect", "prost_types"],
    },
    Module {
        name: "error",
        modules: &["model"],
        crates: &[],
    },
    Module {
        name: "model",
        modules: &[],
        crates: &["unicode_normalization"],
    },
    Module {
        name: "tls",
        modules: &["files"],
        crates: &["rustls", "rustls_native_certs"],
    },
    Module {
        name: "threads",
        modules: &[],
        crates: &["rustix"],
    },
    Module {
        name: "files",
        modules: &[],
        crates: &[],
    },
    Module {
        name: "failpoints",
        modules: &[],
        crates: &[],
    },
    Module {
        name: "telemetry",
        modules: &["http_client", "tls"],
        crates: &[
            "http", "http_body_util", "hyper_util", "opentelemetry", "opentelemetry_http", "opentelemetry_otlp",
            "opentelemetry_sdk", "rustls", "serde_json", "tokio_rustls", "tonic", "tower", "tracing_subscriber",
        ],
    },
    Module {
        name: "http_client",
        modules: &[],
        crates: &["http", "http_body_util", "hyper", "hyper_util", "rustls", "tokio_rustls"],
    },
    Module {
        name: "fuzz",
        modules: &[],
        crates: &[],
    },
];

/// Names that only some files of a module may use.
const RESTRICTED: &[(&str, &[&str])] = &[
    ("fred", &["cache/redis/"]),
    ("crate::store::sqlite", &["app.rs"]),
    ("crate::store::postgres", &["app.rs"]),
    ("crate::cache::MemoryCache", &["app.rs"]),
    ("crate::cache::RedisCache", &["app.rs", "coordination.rs"]),
];

#[test]
fn each_module_uses_only_what_its_layer_may() {
    let crates = dependencies();
    let mut errors = Vec::new();
    let mut needed = BTreeSet::new();
    for_each_file(&mut |file, source| {
        let module = file.split(['/', '.']).next().unwrap_or_default();
        let Some(allowed) = MODULES.iter().find(|listed| listed.name == module) else {
            errors.push(format!("src/{file} is in no module of the table"));
            return;
        };
        for name in names_in(source) {
            let mut segments = name.split("::");
            let first = segments.next().unwrap_or_default();
            let used = match segments.next() {
                Some(module) if first == "crate" => module,
                Some(_) if crates.contains(first) => first,
                _ => continue,
            };
            let may = if first == "crate" {
                used == module || allowed.modules.contains(&used)
            } else {
                COMMON.contains(&used) || allowed.crates.contains(&used)
            };
            if !may {
                errors.push(format!("src/{file} uses {name}"));
            }
            needed.insert((allowed.name, used.to_owned()));
        }
    });
    for module in MODULES {
        for listed in module.modules.iter().chain(module.crates) {
            let is_needed = needed.contains(&(module.name, (*listed).to_owned()));
            if !is_needed || COMMON.contains(listed) {
                let name = module.name;
                errors.push(format!("{name} doesn't need {listed} in the table"));
            }
        }
    }
    for listed in COMMON {
        if !needed.iter().any(|(_, used)| used == listed) {
            errors.push(format!("no module uses {listed}"));
        }
    }
    errors.sort();
    errors.dedup();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

/// The client crate depends on no server, database or cache.
#[test]
fn the_client_crate_needs_tonic_only_as_a_client() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/client/Cargo.toml");
    let manifest: toml::Table = fs::read_to_string(manifest)
        .expect("a file")
        .parse()
        .expect("it is TOML");
    let dependencies = manifest["dependencies"].as_table().expect("a table");
    let names: Vec<_> = dependencies.keys().map(String::as_str).collect();
    assert_eq!(names, ["prost", "prost-types", "tonic", "tonic-prost"]);
    let tonic = &dependencies["tonic"];
    assert_eq!(tonic["default-features"].as_bool(), Some(false));
    for feature in tonic["features"].as_array().expect("a list") {
        let allowed = ["channel", "codegen", "gzip", "zstd"];
        assert!(
            allowed.contains(&feature.as_str().expect("text")),
            "{feature}"
        );
    }
}

#[test]
fn engines_are_named_only_where_they_are_opened() {
    let mut errors = Vec::new();
    for_each_file(&mut |file, source| {
        let names = names_in(source);
        for (restricted, places) in RESTRICTED {
            let may = places
                .iter()
                .any(|place| file == *place || (place.ends_with('/') && file.starts_with(place)));
            let uses = names.iter().any(|name| {
                name.strip_prefix(restricted)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            });
            if uses && !may {
                errors.push(format!("src/{file} uses {restricted}"));
            }
        }
    });
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn names_are_found_however_they_are_written() {
    let source = r#"
        //! tonic is a crate.
        use crate::{cache::{Key, NextFlight}, store::Store, error::Error};
        use sqlx as database;
        fn f() -> tonic::Status { location_service::app::run(/* fred */) } // fred::x
        const URL: &str = "http://x"; http::Uri::from_static(URL);
    "#;
    let names = names_in(source);
    for name in [
        "crate::cache::NextFlight",
        "crate::store::Store",
        "sqlx::",
        "tonic::Status",
        "crate::app::run",
        "http::Uri::from_static",
    ] {
        assert!(names.iter().any(|said| said == name), "{name}: {names:?}");
    }
    assert!(!names.iter().any(|said| said.starts_with("fred")));
}

/// The dependencies, as they are named in paths.
fn dependencies() -> BTreeSet<String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("it is readable");
    let (_, rest) = manifest
        .split_once("\n[dependencies]\n")
        .expect("it has dependencies");
    let crates: BTreeSet<_> = rest
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once(['=', '.']))
        .map(|(name, _)| name.trim().replace('-', "_"))
        .collect();
    assert!(crates.len() > 20, "{crates:?}");
    crates
}

/// Calls `each` with the path in `src/` and the source of every file.
fn for_each_file(each: &mut impl FnMut(&str, &str)) {
    let mut files = 0;
    visit(
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")),
        "",
        &mut |file, source| {
            files += 1;
            each(file, source);
        },
    );
    assert!(files > 10, "src/ has {files} files");
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

/// The paths in a source, outside comments, with the braces of `use` expanded. A path of one segment
/// after `use` ends with `::`. A URL in a string is no comment.
fn names_in(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .map(|line| line.replace("://", " "))
        .map(|line| line.split("//").next().unwrap_or_default().to_owned())
        .map(|line| line.replace("location_service::", "crate::") + " ")
        .collect();
    let code = without_block_comments(&code);
    let mut names = Vec::new();
    // The path before each open brace; empty if the brace isn't part of a `use`.
    let mut prefixes = vec![String::new()];
    let mut path = String::new();
    let mut after_use = false;
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
                    let mut name = format!("{prefix}{path}");
                    if after_use && !name.contains("::") {
                        name.push_str("::");
                    }
                    after_use = name == "use";
                    names.push(name);
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
