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
    settings::{self, Environment},
    values::bytes,
    with_command,
};

fn words(line: &[&str]) -> Vec<OsString> {
    ["location-service"]
        .iter()
        .chain(line)
        .map(OsString::from)
        .collect()
}

/// Parses a command line with these environment variables.
fn parse_with(line: &[&str], variables: &[(&str, &str)]) -> Result<Cli, ConfigError> {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), OsString::from(value)));
    settings::parse(&words(line), &Environment(variables.collect()))
}

fn parse(line: &[&str]) -> Result<Cli, ConfigError> {
    parse_with(line, &[])
}

fn serve_with(flags: &[&str], variables: &[(&str, &str)]) -> Result<ServeConfig, ConfigError> {
    let Cli { command, sources } = parse_with(&[&["serve"], flags].concat(), variables)?;
    match command {
        Command::Serve(args) => args.check(&sources).map_err(|found| sources.report(found)),
        _ => panic!("the command is serve"),
    }
}

fn serve(flags: &[&str]) -> Result<ServeConfig, ConfigError> {
    serve_with(flags, &[])
}

/// The text of the error.
fn refusal<T>(outcome: Result<T, ConfigError>) -> String {
    outcome.err().expect("it is refused").to_string()
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
    let variable = [("LOCATION_SERVICE_JWT_ISSUER", "variable")];
    let from_file = ["--config", &file];
    let with_flag = ["--jwt-issuer", "flag", "--config", &file];
    for (flags, variables, expected) in [
        (&with_flag[..], &variable[..], "flag"),
        (&with_flag, &[], "flag"),
        (&from_file, &variable, "variable"),
        (&from_file, &[], "file"),
    ] {
        let config = serve_with(flags, variables).ok().unwrap();
        assert_eq!(config.auth.issuer.as_deref(), Some(expected));
        assert_eq!(config.auth.audience.as_deref(), Some("file"));
        assert_eq!(config.cache.ttl, Duration::from_secs(7));
        assert_eq!(config.cache.max_bytes, 64 * 1024 * 1024);
    }
}

#[test]
fn the_environment_can_name_the_file() {
    let files = Files::new();
    let file = files.write("config.toml", "cache-ttl = 7");
    let config = serve_with(&[], &[("LOCATION_SERVICE_CONFIG", &file)]);
    assert_eq!(config.ok().unwrap().cache.ttl, Duration::from_secs(7));
    let error = refusal(serve_with(&[], &[("LOCATION_SERVICE_CONFIG", "/missing")]));
    assert!(
        error.starts_with("LOCATION_SERVICE_CONFIG: cannot read the configuration file /missing"),
        "{error}"
    );
}

#[test]
fn the_file_provides_required_options_of_token() {
    let files = Files::new();
    let secret = files.write("secret", "s");
    // `token` doesn't take the last two settings.
    let content = format!(
        "jwt-secret-file = '{secret}'\njwt-issuer = 'me'\nlog-format = 'json'\nlisten = 'x'"
    );
    let file = files.write("config.toml", &content);
    let parsed = parse(&["token", "--subject", "ann", "--config", &file]);
    let Ok(Cli {
        command: Command::Token(args),
        ..
    }) = parsed
    else {
        panic!("{}", refusal(parsed));
    };
    assert_eq!(args.jwt_secret_file, PathBuf::from(secret));
    assert_eq!(args.claims.jwt_issuer.as_deref(), Some("me"));
    assert_eq!(args.ttl_secs, Duration::from_hours(1));
    assert!(!args.admin);

    let error = refusal(parse(&["token", "--subject", "ann"]));
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
        ("jwks-url", "https://id.example.com/keys".to_owned()),
        ("revoke-unreadable-keys", "true".to_owned()),
        ("jwt-issuer", "i".to_owned()),
        ("jwt-audience", "a".to_owned()),
        ("jwt-admin-claim", "groups=ops".to_owned()),
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
        let parsed = parse(&["serve", "--config", &file]);
        let sources = parsed
            .unwrap_or_else(|error| panic!("{flag}: {error}"))
            .sources;
        assert_eq!(sources.name(flag), format!("{flag} ({file}, line 1)"));
    }
}

#[test]
fn settings_of_the_file_reach_the_service() {
    let files = Files::new();
    let values = values_by_flag(&files);
    let lines: Vec<_> = values
        .iter()
        // Tokens are verified with one key file.
        .filter(|(flag, _)| !["jwt-secret-file", "jwt-public-key-file", "jwks-url"].contains(flag))
        .map(|(flag, value)| match *flag {
            // Only replicas on PostgreSQL share a Redis.
            "database-url" => (flag, "postgres://db/d"),
            _ => (flag, value.as_str()),
        })
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
    assert!(config.database.url == DatabaseUrl::Postgres("postgres://db/d".to_owned()));
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
    assert!(config.auth.revoke_unreadable_keys);
    let admin = config.auth.admin_claim.unwrap();
    assert_eq!(
        (admin.name.as_str(), admin.value.as_deref()),
        ("groups", Some("ops"))
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
            error.contains(&format!("did you mean {nearest}?")),
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
        ("cache-ttl = 0", "1 to 31536000"),
        ("cache-ttl = -1", "1 to 31536000"),
        ("cache-ttl = 1.5", "a boolean, is of type float"),
        ("cache-ttl = ['1']", "is of type array"),
        ("cache-max-bytes = 0", "1 or more bytes"),
        ("log-format = 'xml'", "one of text, json"),
        ("listen = ''", "such as 127.0.0.1:50051"),
        ("[cache]\nttl = 1", "is of type table"),
    ] {
        let error = refusal(from_file(line));
        assert!(error.contains("config.toml, line "), "{error}");
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
    let error = refusal(from_file(
        "listen =\ncache-ttl = 7\nlog-format = 'json\nissuer = ]",
    ));
    for line in ["line 1, column ", "line 3, column ", "line 4, column "] {
        assert_eq!(error.matches(line).count(), 1, "{error}");
    }
    assert_eq!(error.matches("isn't TOML").count(), 3, "{error}");
}

#[test]
fn invalid_flags_are_refused_with_the_limit() {
    for (flags, expected) in [
        (["--listen", "localhost"], "127.0.0.1:50051"),
        (["--shutdown-grace-secs", "3601"], "0 to 3600"),
        (["--cache-ttl", "31536001"], "1 to 31536000"),
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
        (["--log-format", "xml"], "one of text, json"),
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
            assert!(error.starts_with(&format!("{flag}: must")), "{error}");
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
        assert!(parse(&["serve", flag, url]).is_ok(), "{url}");
    }
}

#[test]
fn urls_of_every_engine_are_accepted() {
    for url in ["postgres://u:p@h/d", "postgresql://h/d"] {
        let config = serve(&["--database-url", url, "--redis-url", "redis://h"]);
        let config = config.ok().unwrap();
        assert!(config.database.url == DatabaseUrl::Postgres(url.to_owned()));
    }
    let config = serve(&["--database-url", "sqlite:///tmp/x.db"])
        .ok()
        .unwrap();
    assert!(config.database.url == DatabaseUrl::Sqlite("/tmp/x.db".into()));
    for scheme in ["redis", "rediss", "redis-sentinel", "redis-cluster"] {
        let url = format!("{scheme}://h:1");
        assert!(serve(&["--redis-url", &url, "--database-url", "postgres://h/d"]).is_ok());
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
        assert!(error.contains(kinds[first]), "{error}");
        assert!(error.contains(kinds[second]), "{error}");
    }
    let content = format!("jwks-file = '{key}'");
    let file = files.write("config.toml", &content);
    let error = refusal(serve_with(
        &["--config", &file],
        &[("LOCATION_SERVICE_JWT_SECRET_FILE", &key)],
    ));
    let both =
        format!("LOCATION_SERVICE_JWT_SECRET_FILE and jwks-file ({file}, line 1) are both set");
    assert!(error.starts_with(&both), "{error}");
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

/// One run reports all that has to be corrected, each where it was set.
#[test]
fn every_wrong_setting_is_reported_at_once_with_its_place() {
    let files = Files::new();
    let file = files.write(
        "config.toml",
        "# Comment\ncache-ttl = 0\n\ncache_tll = 1\nlog-format = 'xml'\nlog_format = 'json'\n\
         redis-url = 'http://:hunter2@h'",
    );
    let error = refusal(serve_with(
        &[
            "--listen=localhost",
            "--cache-max-byte",
            "7",
            "--database-max-connections",
            "0",
            "--config",
            &file,
        ],
        &[
            ("LOCATION_SERVICE_SHUTDOWN_GRACE_SECS", "5 weeks"),
            ("LOCATION_SERVICE_DATABASE_URL", "mysql://ann:hunter2@h"),
            // Overridden by the flag.
            ("LOCATION_SERVICE_LISTEN", "nowhere"),
            ("LOCATION_SERVICE_CACHE_TTL_SECS", "1"),
        ],
    ));
    for line in [
        "--listen=localhost: must be an IP address and a port",
        "--cache-max-byte isn't an option of `serve`: did you mean --cache-max-bytes?",
        "--database-max-connections=0: must be a whole number from 1 to 1000",
        "LOCATION_SERVICE_SHUTDOWN_GRACE_SECS=5 weeks: must be a time of 0 to 3600 seconds",
        "LOCATION_SERVICE_DATABASE_URL: must start with sqlite: or postgres://",
        &format!("{file}, line 2: cache-ttl = 0: must be a time of 1 to 31536000 seconds"),
        &format!("{file}, line 4: cache_tll isn't a setting: did you mean cache-ttl?"),
        &format!("{file}, line 5: log-format = \"xml\": must be one of text, json"),
        &format!("{file}, line 6: log_format is set a second time, after line 5"),
        &format!("{file}, line 7: redis-url: must be a host after redis://"),
    ] {
        assert!(error.contains(&format!("\n  {line}")), "{line}\n{error}");
    }
    assert!(error.starts_with("10 settings are wrong\n"), "{error}");
    let note = "\nwarning: the environment variable LOCATION_SERVICE_CACHE_TTL_SECS isn't a \
                setting: did you mean LOCATION_SERVICE_CACHE_TTL?";
    assert!(error.contains(note), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn settings_that_contradict_each_other_are_reported_with_wrong_ones() {
    let files = Files::new();
    let key = files.write("key", "k");
    let conflict = "--redis-tls-cert-file is set without redis-tls-key-file";
    let flags = ["--redis-tls-cert-file", &key, "--cache-ttl", "0"];
    let error = refusal(serve(&flags));
    assert!(error.starts_with("3 settings are wrong"), "{error}");
    assert!(error.contains(conflict), "{error}");
    assert!(
        error.contains("--redis-tls-cert-file is set without redis-url"),
        "{error}"
    );
    assert!(error.contains("--cache-ttl=0"), "{error}");

    // A wrong key file isn't a missing one, nor is one whose flag is misspelt.
    for key in [["--jwks-file", "/missing"], ["--jwks-fil", "/missing"]] {
        let error = refusal(serve(&["--listen", "0.0.0.0:0", key[0], key[1]]));
        assert!(!error.contains("every caller is an admin"), "{error}");
    }
    let error = refusal(serve_with(&[], &[("LOCATION_SERVICE_LISTEN", "0.0.0.0:0")]));
    assert!(
        error.starts_with("LOCATION_SERVICE_LISTEN=0.0.0.0:0: without a key"),
        "{error}"
    );
    for (flags, expected) in [
        (["--database-url", "postgres://h/d"], "set redis-url too"),
        (["--redis-url", "redis://h"], "set database-url to"),
    ] {
        let error = refusal(serve(&flags));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn unknown_variables_are_named_but_not_those_of_kubernetes() {
    let of_kubernetes = [
        ("LOCATION_SERVICE_SERVICE_HOST", "10.0.0.1"),
        ("LOCATION_SERVICE_SERVICE_PORT", "50051"),
        ("LOCATION_SERVICE_SERVICE_PORT_GRPC", "50051"),
        ("LOCATION_SERVICE_PORT", "tcp://10.0.0.1:50051"),
        ("LOCATION_SERVICE_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("LOCATION_SERVICE_PORT_50051_TCP_PROTO", "tcp"),
        ("LOCATION_SERVICE_PORT_50051_TCP_PORT", "50051"),
        ("LOCATION_SERVICE_PORT_50051_TCP_ADDR", "10.0.0.1"),
        // A Service named location-service-metrics.
        ("LOCATION_SERVICE_METRICS_SERVICE_HOST", "10.0.0.2"),
        ("LOCATION_SERVICE_METRICS_PORT", "tcp://10.0.0.2:9090"),
        ("LOCATION_SERVICE_METRICS_PORT_9090_TCP_ADDR", "10.0.0.2"),
        // Of other commands.
        ("LOCATION_SERVICE_TOKEN", "x"),
        ("LOCATION_SERVICE_SERVER", "x"),
    ];
    let unknown = |variables: &[(&str, &str)]| {
        let parsed = parse_with(&["serve"], variables);
        let sources = parsed.unwrap_or_else(|error| panic!("{error}")).sources;
        sources.unknown_variables
    };
    assert_eq!(unknown(&of_kubernetes), [""; 0]);
    for (name, value, nearest) in [
        ("LOCATION_SERVICE_PORT", "50051", None),
        ("LOCATION_SERVICE_PORT_X", "1", None),
        (
            "LOCATION_SERVICE_LISTEM",
            "1",
            Some("LOCATION_SERVICE_LISTEN"),
        ),
        (
            "LOCATION_SERVICE_JWKSFILE",
            "1",
            Some("LOCATION_SERVICE_JWKS_FILE"),
        ),
        ("LOCATION_SERVICE_XYZZY", "hunter2", None),
    ] {
        let mut all = of_kubernetes.to_vec();
        all.retain(|(other, _)| *other != name);
        all.push((name, value));
        let expected = match nearest {
            Some(nearest) => format!("variable {name} isn't a setting: did you mean {nearest}?"),
            None => format!("variable {name} isn't a setting"),
        };
        let found = unknown(&all);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with(&expected), "{found:?}");
    }
    // Those of a Service named location, and a mistake.
    let of_location = [
        ("LOCATION_PORT", "tcp://10.0.0.1:50051"),
        ("LOCATION_SERVICE_HOST", "10.0.0.1"),
        ("LOCATION_SERVICE_PORT", "50051"),
        ("LOCATION_SERVICE_PORT_GRPC", "50051"),
    ];
    assert_eq!(unknown(&of_location), [""; 0]);
    assert_eq!(unknown(&of_location[1..]).len(), 3);
    // They may explain why a required option is missing.
    let error = refusal(parse_with(
        &["token", "--subject", "ann"],
        &[("LOCATION_SERVICE_JWT_SECRET", "hunter2")],
    ));
    assert!(error.contains("--jwt-secret-file"), "{error}");
    assert!(
        error.contains("did you mean LOCATION_SERVICE_JWT_SECRET_FILE?"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn sizes_and_times_have_units() {
    let size = bytes(1);
    for (text, expected) in [
        ("1", 1),
        ("1000B", 1_000),
        ("10MB", 10_000_000),
        ("10mb", 10_000_000),
        ("64MiB", 67_108_864),
        ("512 KiB", 524_288),
        ("64Mi", 67_108_864),
        ("2GB", 2_000_000_000),
        ("1 TiB", 1 << 40),
    ] {
        assert_eq!(size(text), Ok(expected), "{text}");
    }
    for text in [
        "",
        "0",
        "-1",
        "64M",
        "1.5GiB",
        "MiB",
        "1 XB",
        "99999999TiB",
        "0x10",
        "1é",
    ] {
        assert!(size(text).is_err(), "{text}");
    }
    for (text, expected) in [
        ("7", 7),
        ("7s", 7),
        ("2m", 120),
        ("1 h", 3_600),
        ("1d", 86_400),
    ] {
        let config = serve(&["--cache-ttl", text]).ok().unwrap();
        assert_eq!(config.cache.ttl, Duration::from_secs(expected), "{text}");
    }
    for text in ["", "1w", "1.5s", "366d", "500ms", "1m30s"] {
        assert!(serve(&["--cache-ttl", text]).is_err(), "{text}");
    }
    let config =
        from_file("cache-max-bytes = '10MB'\ncache-ttl = '5m'\nshutdown-grace-secs = '5s'");
    let config = config.ok().unwrap();
    assert_eq!(config.cache.max_bytes, 10_000_000);
    assert_eq!(config.cache.ttl, Duration::from_mins(5));
    assert_eq!(config.server.shutdown_grace, Duration::from_secs(5));
}

#[test]
fn help_lists_the_options_that_a_command_takes() {
    for (command, lists, lacks) in [
        (
            "migrate",
            &["--config", "--database-url", "--log-format"][..],
            &["--listen", "--redis"],
        ),
        (
            "token",
            &["--subject", "--jwt-issuer"],
            &["--listen", "--database-url"],
        ),
        (
            "healthcheck",
            &["--server"],
            &["--config", "--database-url"],
        ),
        (
            "serve",
            &["--listen", "ossible values"],
            &["--subject", "--server "],
        ),
    ] {
        for flags in [&["--help"][..], &["--help", "--bogus"], &["-h"]] {
            let parsed = parse(&[&[command], flags].concat());
            let Err(ConfigError::CommandLine(help)) = parsed else {
                panic!("{command} {flags:?} prints help");
            };
            assert!(!help.use_stderr());
            let help = help.to_string();
            assert!(lists.iter().all(|text| help.contains(text)), "{help}");
            assert!(lacks.iter().all(|text| !help.contains(text)), "{help}");
        }
    }
    let error = refusal(parse(&["migrate", "--listen", "127.0.0.1:1"]));
    assert!(
        error.starts_with("--listen isn't an option of `migrate`"),
        "{error}"
    );
}

#[test]
fn arguments_that_look_like_urls_are_hidden() {
    let url = "postgres://ann:hunter2@h/d";
    for line in [
        &["serve", url][..],
        &["token", "--subject", "a", url],
        &[url],
    ] {
        let error = refusal(parse(line));
        assert!(
            error.contains("postgres:...") && !error.contains("hunter2"),
            "{error}"
        );
    }
    let error = refusal(parse(&[
        "import",
        "--databse-url",
        url,
        "a.csv",
        "--server",
        "x",
    ]));
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn published_keys_need_an_audience() {
    let files = Files::new();
    let key = files.write("key", "k");
    let url = ["--jwks-url", "https://id.example.com/keys"];
    let issuer = ["--jwt-issuer", "https://id.example.com"];
    let audience = ["--jwt-audience", "a"];
    for (flags, expected) in [
        (&[url][..], "--jwks-url makes the service accept"),
        (&[issuer], "--jwt-issuer makes the service accept"),
        (
            &[url, audience, ["--jwks-file", &key]],
            "--jwks-file and --jwks-url are both set",
        ),
        (
            &[["--jwks-url", "http://id.example.com"]],
            "must be a URL with https://",
        ),
        (&[["--jwt-admin-claim", "x="]], "must be a claim"),
    ] {
        let error = refusal(serve(&flags.concat()));
        assert!(error.contains(expected), "{error}");
    }
    let error = refusal(serve(&["--revoke-unreadable-keys"]));
    assert!(
        error.contains("--revoke-unreadable-keys is set without a key file"),
        "{error}"
    );
    let remote = |flags: &[[&str; 2]]| {
        let config = serve(&flags.concat());
        config.unwrap_or_else(|error| panic!("{error}")).auth.remote
    };
    let found = |flags: &[[&str; 2]]| remote(flags).unwrap().to_string();
    assert_eq!(found(&[url, audience, ["--listen", "0.0.0.0:0"]]), url[1]);
    assert_eq!(found(&[url, issuer, audience]), url[1]);
    assert_eq!(
        found(&[issuer, audience, ["--listen", "0.0.0.0:0"]]),
        "https://id.example.com/.well-known/openid-configuration"
    );
    // Another key wins, and other issuers have no metadata.
    assert!(remote(&[issuer, ["--jwks-file", &key]]).is_none());
    assert!(remote(&[["--jwt-issuer", "me"]]).is_none());
}
