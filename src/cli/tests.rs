//! Tests of arguments, settings and their precedence.

use std::{collections::BTreeMap, ffi::OsString, fs, path::PathBuf, time::Duration};

use clap::{Args as _, CommandFactory as _};
use location_service::{
    config::{AccessLog, DatabaseUrl, KeyFile, LogFormat, ServeConfig},
    store::Migrate,
};
use tempfile::TempDir;

use super::{
    Cli, Command,
    args::{CONFIG, ServeArgs},
    error::ConfigError,
    file::{matches, parse},
    with_command,
};

fn words(line: &[&str]) -> Vec<OsString> {
    ["location-service"]
        .iter()
        .chain(line)
        .map(OsString::from)
        .collect()
}

fn serve(flags: &[&str]) -> Result<ServeConfig, ConfigError> {
    match parse::<Cli>(words(&[&["serve"], flags].concat()))?.command {
        Command::Serve(args) => args.check(),
        _ => panic!("the command is serve"),
    }
}

/// The text of the error and of its cause.
fn refusal<T>(outcome: Result<T, ConfigError>) -> String {
    let error = outcome.err().expect("it is refused");
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    format!("{error} {}", cause.unwrap_or_default())
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// `serve` with a file of this content.
fn from_file(content: &str) -> Result<ServeConfig, ConfigError> {
    let files = Files::new();
    serve(&["--config", &files.write("config.toml", content)])
}

#[test]
fn clap_finds_no_conflict_in_the_command_line() {
    Cli::command().debug_assert();
}

#[test]
fn defaults_need_no_setting() {
    let config = serve(&[]).ok().unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:50051");
    assert!(config.database.url == DatabaseUrl::Sqlite("locations.db".into()));
    assert!(config.redis.is_none());
    assert_eq!(config.cache.ttl, Duration::from_mins(5));
    assert_eq!(config.cache.max_bytes, 64 * 1024 * 1024);
    assert_eq!(config.auth.keys, None);
    assert_eq!(config.server.shutdown_grace, Duration::from_secs(10));
    assert_eq!(config.server.metrics_listen, None);
    assert_eq!(config.server.access_log, AccessLog::Errors);
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.log.filter.to_string(), "info");
}

#[test]
fn every_flag_has_its_environment_variable() {
    let serve = ServeArgs::augment_args(clap::Command::new("serve"));
    for arg in serve.get_arguments() {
        let name = arg.get_long().unwrap().to_uppercase().replace('-', "_");
        let expected = format!("LOCATION_SERVICE_{name}");
        assert_eq!(arg.get_env().unwrap().to_str(), Some(expected.as_str()));
    }
}

#[test]
fn flags_override_the_environment_then_the_file_then_the_default() {
    let files = Files::new();
    let file = files.write(
        "config.toml",
        "jwt-issuer = 'file'\njwt-audience = 'file'\ncache-ttl = 7",
    );
    // A variable that every process has, because a test can't set one.
    let path = std::env::var("PATH").unwrap();
    let command = || {
        Cli::command().mut_subcommand("serve", |serve| {
            serve.mut_arg("jwt_issuer", |arg| arg.env("PATH"))
        })
    };
    let issuer = |flags: &[&str]| {
        let matches = matches(command(), words(&[&["serve"], flags].concat()))
            .ok()
            .unwrap();
        let (_, serve) = matches.subcommand().unwrap();
        serve.get_one::<String>("jwt_issuer").cloned()
    };
    assert_eq!(
        issuer(&["--config", &file, "--jwt-issuer", "flag"]).unwrap(),
        "flag"
    );
    assert_eq!(issuer(&["--config", &file]).unwrap(), path);

    let config = serve(&["--config", &file]).ok().unwrap();
    assert_eq!(config.auth.issuer.as_deref(), Some("file"));
    let config = serve(&["--jwt-issuer", "flag", "--config", &file])
        .ok()
        .unwrap();
    assert_eq!(config.auth.issuer.as_deref(), Some("flag"));
    assert_eq!(config.auth.audience.as_deref(), Some("file"));
    assert_eq!(config.cache.ttl, Duration::from_secs(7));
    assert_eq!(config.cache.max_bytes, 64 * 1024 * 1024);
}

#[test]
fn the_environment_can_name_the_file() {
    let files = Files::new();
    let file = files.write("config.toml", "cache-ttl = 7");
    let command = Cli::command().mut_subcommand("serve", |serve| {
        serve.mut_arg(CONFIG, |arg| arg.env("CARGO_MANIFEST_DIR"))
    });
    // A directory: the error shows that the variable was read.
    let error = refusal(matches(command, words(&["serve"])));
    assert!(
        error.contains("cannot read the configuration file"),
        "{error}"
    );
    assert!(serve(&["--config", &file]).is_ok());
}

#[test]
fn the_file_provides_required_options_of_token() {
    let files = Files::new();
    let secret = files.write("secret", "s");
    let content = format!("jwt-secret-file = '{secret}'\njwt-issuer = 'me'\nlog-format = 'json'");
    let file = files.write("config.toml", &content);
    let parsed = parse::<Cli>(words(&["token", "--subject", "ann", "--config", &file]));
    let Ok(Cli {
        command: Command::Token(args),
    }) = parsed
    else {
        panic!("{}", refusal(parsed));
    };
    assert_eq!(args.jwt_secret_file, PathBuf::from(secret));
    assert_eq!(args.claims.jwt_issuer.as_deref(), Some("me"));
    assert_eq!(args.ttl_secs, Duration::from_hours(1));
    assert!(!args.admin);

    let error = refusal(parse::<Cli>(words(&["token", "--subject", "ann"])));
    assert!(error.contains("--jwt-secret-file"), "{error}");
}

/// A value of each setting that isn't its default.
fn values_by_flag(files: &Files) -> BTreeMap<&'static str, String> {
    let database = files.0.path().join("x.db");
    [
        ("listen", "127.0.0.1:1".to_owned()),
        ("metrics-listen", "127.0.0.1:2".to_owned()),
        ("tls-cert-file", files.write("server-cert", "c")),
        ("tls-key-file", files.write("server-key", "k")),
        ("tls-client-ca-file", files.write("client-ca", "c")),
        ("max-connection-age-secs", "600".to_owned()),
        ("max-connections", "4".to_owned()),
        ("max-calls-per-caller", "5".to_owned()),
        ("shutdown-grace-secs", "0".to_owned()),
        ("database-url", format!("sqlite:{}", database.display())),
        ("database-max-connections", "3".to_owned()),
        ("migrate", "never".to_owned()),
        ("redis-url", "redis://cache".to_owned()),
        ("redis-tls-ca-file", files.write("ca", "c")),
        ("redis-tls-cert-file", files.write("cert", "c")),
        ("redis-tls-key-file", files.write("client-key", "k")),
        ("redis-key-prefix", "p:".to_owned()),
        ("cache-ttl", "9".to_owned()),
        ("cache-max-bytes", "10".to_owned()),
        ("jwt-secret-file", files.write("secret", "s")),
        ("jwt-public-key-file", files.write("key", "k")),
        ("jwks-file", files.write("jwks", "{}")),
        ("jwt-issuer", "i".to_owned()),
        ("jwt-audience", "a".to_owned()),
        ("access-log", "all".to_owned()),
        ("log-format", "json".to_owned()),
        ("log-filter", "warn,location_service=debug".to_owned()),
    ]
    .into()
}

#[test]
fn every_setting_can_come_from_the_file() {
    let files = Files::new();
    let values = values_by_flag(&files);
    let serve = ServeArgs::augment_args(clap::Command::new("serve"));
    for arg in serve.get_arguments().filter(|arg| arg.get_id() != CONFIG) {
        let flag = arg.get_long().unwrap();
        let value = values.get(flag);
        let value = value.unwrap_or_else(|| panic!("{flag} has no value to try"));
        let default = arg.get_default_values().first();
        assert!(
            default.is_none_or(|default| default != value.as_str()),
            "{flag}"
        );

        let file = files.write("one.toml", &format!("{flag} = '{value}'"));
        let matches = matches(Cli::command(), words(&["serve", "--config", &file]));
        let matches = matches.unwrap_or_else(|error| panic!("{flag}: {error}"));
        let (_, serve) = matches.subcommand().unwrap();
        let parsed: Vec<_> = serve.get_raw(arg.get_id().as_str()).unwrap().collect();
        assert_eq!(parsed, [value.as_str()], "{flag}");
    }
}

#[test]
fn settings_of_the_file_reach_the_service() {
    let files = Files::new();
    let values = values_by_flag(&files);
    let lines: Vec<_> = values
        .iter()
        // Tokens are verified with one key file.
        .filter(|(flag, _)| !["jwt-secret-file", "jwt-public-key-file"].contains(flag))
        .map(|(flag, value)| match value.parse::<u64>() {
            Ok(number) => format!("{flag} = {number}"),
            Err(_) => format!("{flag} = '{value}'"),
        })
        .collect();
    let config = from_file(&lines.join("\n"));
    let config = config.map_err(|error| error.to_string()).ok().unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:1");
    assert_eq!(config.server.shutdown_grace, Duration::ZERO);
    assert_eq!(config.server.max_connections, Some(4));
    assert_eq!(
        config.server.max_connection_age,
        Some(Duration::from_mins(10))
    );
    let tls = config.server.tls.expect("files");
    assert_eq!(tls.certificate, files.0.path().join("server-cert"));
    assert_eq!(tls.key, files.0.path().join("server-key"));
    assert_eq!(
        tls.client_authorities,
        Some(files.0.path().join("client-ca"))
    );
    assert_eq!(config.server.max_calls_per_caller, Some(5));
    assert!(config.database.url == DatabaseUrl::Sqlite(files.0.path().join("x.db")));
    assert_eq!(config.database.max_connections, 3);
    assert_eq!(config.database.migrate, Migrate::Never);
    let redis = config.redis.unwrap();
    let client = redis.tls.client.expect("a client certificate");
    assert_eq!(client.certificate, files.0.path().join("cert"));
    assert_eq!(client.key, files.0.path().join("client-key"));
    assert_eq!(redis.tls.authorities, Some(files.0.path().join("ca")));
    assert_eq!(
        (redis.url.as_str(), redis.key_prefix.as_str()),
        ("redis://cache", "p:")
    );
    assert_eq!(config.cache.ttl, Duration::from_secs(9));
    assert_eq!(config.cache.max_bytes, 10);
    assert_eq!(
        config.auth.keys,
        Some(KeyFile::Jwks(values["jwks-file"].clone().into()))
    );
    assert_eq!(config.auth.issuer.as_deref(), Some("i"));
    assert_eq!(config.auth.audience.as_deref(), Some("a"));
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.filter.to_string(), "location_service=debug,warn");
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_the_nearest_known_one() {
    for (line, nearest) in [
        ("cache-tll = 1", "cache-ttl"),
        ("cache_tll = 1", "cache-ttl"),
        ("databse-url = 'x'", "database-url"),
    ] {
        let error = refusal(from_file(line));
        assert!(error.contains("config.toml"), "{error}");
        assert!(error.contains(line.split(' ').next().unwrap()), "{error}");
        assert!(
            error.contains(&format!("did you mean `{nearest}`?")),
            "{error}"
        );
    }
    for line in [
        "zzz = 1",
        "config = 'x'",
        "subject = 'x'",
        "help = 'x'",
        "\"\" = 1",
    ] {
        assert!(
            refusal(from_file(line)).contains("isn't a setting"),
            "{line}"
        );
    }
}

#[test]
fn an_invalid_value_in_the_file_is_refused_with_key_and_limit() {
    for (line, limit) in [
        ("cache-ttl = 0", "1..=31536000"),
        ("cache-ttl = -1", "invalid digit"),
        ("cache-ttl = 1.5", "integer, is of type float"),
        ("cache-ttl = ['1']", "is of type array"),
        ("cache-max-bytes = 0", "1..18446744073709551615"),
        ("log-format = 'xml'", "one of text, json"),
        ("listen = ''", "such as 127.0.0.1:50051"),
        ("[cache]\nttl = 1", "is of type table"),
    ] {
        let error = refusal(from_file(line));
        assert!(error.contains("config.toml: `"), "{error}");
        assert!(error.contains(limit), "{error}");
    }
    let secret = refusal(from_file("database-url = 'mysql://ann:hunter2@db'"));
    assert!(
        secret.contains("sqlite:") && !secret.contains("hunter2"),
        "{secret}"
    );
}

#[test]
fn an_unreadable_file_is_named() {
    let error = refusal(serve(&["--config", "/missing.toml"]));
    assert!(
        error.contains("/missing.toml") && error.contains("No such file"),
        "{error}"
    );
    let error = refusal(from_file("listen ="));
    assert!(
        error.contains("isn't TOML") && error.contains("line 1"),
        "{error}"
    );
}

#[test]
fn invalid_flags_are_refused_with_the_limit() {
    for (flags, expected) in [
        (["--listen", "localhost"], "127.0.0.1:50051"),
        (["--shutdown-grace-secs", "3601"], "0..=3600"),
        (["--cache-ttl", "31536001"], "1..=31536000"),
        (["--database-url", "mysql://x"], "sqlite: or postgres://"),
        (["--database-url", "sqlite:"], "must name a file"),
        (["--database-url", "sqlite::memory:"], "must name a file"),
        (["--database-url", "sqlite:x?mode=ro"], "must name a file"),
        (
            ["--database-url", "sqlite:/missing/x.db"],
            "/missing doesn't exist",
        ),
        (["--redis-url", "http://x"], "redis-sentinel://"),
        (["--redis-url", "redis://"], "must be a host"),
        (["--jwks-file", "/missing"], "No such file"),
        (["--jwt-secret-file", "/"], "plain file"),
        (["--jwt-issuer", ""], "must not be empty"),
        (["--log-filter", "a=b=c"], "target=level"),
        (["--log-format", "xml"], "possible values: text, json"),
    ] {
        let error = refusal(serve(&flags));
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
}

#[test]
fn errors_show_no_password() {
    for flag in ["--database-url", "--redis-url"] {
        for url in ["postgress://ann:hunter2@db", "rediss:hunter2@db", "hunter2"] {
            let error = refusal(serve(&[flag, url]));
            assert!(error.contains(":..."), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

#[test]
fn a_syntax_error_in_the_file_shows_no_password() {
    for content in [
        "cache-ttl = 1\ndatabase-url = \"postgres://ann:hunter2@db",
        "cache-ttl = 1\nredis-url = 'redis://:hunter2@db\nlisten = 'x'",
        "cache-ttl = 1\nredis-url = redis://:hunter2@db",
        "cache-ttl = 1\nredis-url = \"redis://:\\hunter2@db\"",
        "cache-ttl = 1\nredis-url 'redis://:hunter2@db'",
    ] {
        let error = refusal(from_file(content));
        assert!(error.contains("isn't TOML: line 2, column "), "{error}");
        assert!(!error.contains("unter2"), "{error}");
    }
}

#[test]
fn unknown_url_parameters_are_refused_by_name() {
    for (flag, url, expected) in [
        (
            "--database-url",
            "postgres://ann:hunter2@db/d?sslmod=require",
            "unknown parameter `sslmod`: use sslmode, ",
        ),
        (
            "--database-url",
            "postgres://ann:hunter2@db/d?sslmode=require&SSLROOTCERT=/x",
            "unknown parameter `SSLROOTCERT`",
        ),
        ("--database-url", "postgres://ann:p?hunter2@db/d", "%3F"),
        (
            "--redis-url",
            "redis://:hunter2@host?db=3",
            "unknown parameter `db`: redis:// has none",
        ),
        (
            "--redis-url",
            "rediss://:hunter2@host?node=b:1",
            "unknown parameter `node`",
        ),
        (
            "--redis-url",
            "redis-cluster://:hunter2@host:1?nodes=b:1",
            "unknown parameter `nodes`: use node",
        ),
        (
            "--redis-url",
            "redis-sentinel://:hunter2@host?sentinelServiceName=m&sentinelUser=x",
            "unknown parameter `sentinelUser`: use node, sentinelServiceName, sentinelUsername",
        ),
    ] {
        let error = refusal(serve(&[flag, url]));
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        let error = refusal(from_file(&format!("{} = '{url}'", &flag[2..])));
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    for (flag, url) in [
        (
            "--database-url",
            "postgres://db/d?sslmode=require&options[search_path]=x&user=ann",
        ),
        (
            "--database-url",
            "postgres:///d?host=/run/postgresql&application_name=a",
        ),
        ("--redis-url", "redis-cluster://a:1?node=b:1&node=c:1"),
        (
            "--redis-url",
            "rediss-sentinel://a?sentinelServiceName=m&node=b:1",
        ),
    ] {
        assert!(serve(&[flag, url]).is_ok(), "{url}");
    }
}

#[test]
fn urls_of_every_engine_are_accepted() {
    for url in ["postgres://u:p@h/d", "postgresql://h/d"] {
        let config = serve(&["--database-url", url]).ok().unwrap();
        assert!(config.database.url == DatabaseUrl::Postgres(url.to_owned()));
    }
    let config = serve(&["--database-url", "sqlite:///tmp/x.db"])
        .ok()
        .unwrap();
    assert!(config.database.url == DatabaseUrl::Sqlite("/tmp/x.db".into()));
    for scheme in ["redis", "rediss", "redis-sentinel", "redis-cluster"] {
        assert!(serve(&["--redis-url", &format!("{scheme}://h:1")]).is_ok());
    }
}

#[test]
fn development_mode_listens_on_loopback_only() {
    let error = refusal(serve(&["--listen", "0.0.0.0:50051"]));
    assert!(
        error.contains("0.0.0.0:50051") && error.contains("jwks-file"),
        "{error}"
    );
    assert!(serve(&["--listen", "[::]:0"]).is_err());
    assert!(serve(&["--listen", "[::1]:0"]).is_ok());
    let files = Files::new();
    let secret = files.write("secret", "s");
    assert!(serve(&["--listen", "0.0.0.0:0", "--jwt-secret-file", &secret]).is_ok());
}

#[test]
fn two_key_files_are_refused() {
    let files = Files::new();
    let key = files.write("key", "k");
    let kinds = ["--jwt-secret-file", "--jwt-public-key-file", "--jwks-file"];
    for (first, second) in [(0, 1), (0, 2), (1, 2)] {
        let error = refusal(serve(&[kinds[first], &key, kinds[second], &key]));
        assert!(error.contains(&kinds[first][2..]), "{error}");
        assert!(error.contains(&kinds[second][2..]), "{error}");
    }
    let content = format!("jwks-file = '{key}'");
    let file = files.write("config.toml", &content);
    assert!(serve(&["--config", &file, "--jwt-secret-file", &key]).is_err());
}

#[test]
fn serve_is_the_default_command() {
    let complete = |line: &str| {
        let args = line.split_whitespace().map(OsString::from).collect();
        with_command(args).join(" ".as_ref())
    };
    assert_eq!(complete("location-service"), "location-service serve");
    assert_eq!(
        complete("location-service --listen x"),
        "location-service serve --listen x"
    );
    assert_eq!(complete(""), "serve");
    for line in [
        "token --admin",
        "bogus",
        "--help",
        "-h",
        "--version",
        "-V",
        "help serve",
    ] {
        let line = format!("location-service {line}");
        assert_eq!(complete(&line), line.as_str());
    }
}
