//! `location-service migrate`.

use std::fmt::Write as _;

use clap::Args;
use location_service::{
    app,
    store::{MigrationState, SchemaStatus},
};

use super::{
    args::{ConfigArg, DatabaseArg, LogArgs},
    error::Error,
    print,
    serve::start_log,
    settings::Sources,
};

/// Options of `migrate`.
#[derive(Args, Clone)]
pub struct MigrateArgs {
    #[command(flatten)]
    config: ConfigArg,

    #[command(flatten)]
    database: DatabaseArg,

    /// Lists the migrations and whether each was applied, and changes nothing. Exits with 0 if this
    /// release can use the database as it is, and with 1 if migrations are pending or wrong
    #[arg(long)]
    status: bool,

    /// Prints the SQL of the pending migrations, and changes nothing
    #[arg(long, conflicts_with = "status")]
    dry_run: bool,

    #[command(flatten)]
    log: LogArgs,
}

/// Migrates the schema of the database, or shows its state.
pub async fn migrate(args: MigrateArgs, sources: &Sources) -> Result<(), Error> {
    start_log(&args.log.into(), sources)?;
    let database = args.database.database_url;
    if !args.status && !args.dry_run {
        return app::migrate(&database).await.map_err(Error::Migrate);
    }
    let schema = app::schema_status(&database)
        .await
        .map_err(Error::Migrate)?;
    if args.dry_run {
        check(&schema)?;
        return print(pending_sql(&schema).as_bytes());
    }
    print(table(&schema).as_bytes())?;
    check(&schema)?;
    match schema.in_state(MigrationState::Pending).next() {
        Some(_) => Err(Error::Pending),
        None => Ok(()),
    }
}

fn check(schema: &SchemaStatus) -> Result<(), Error> {
    schema
        .check_applied()
        .map_err(|error| Error::Migrate(error.into()))
}

/// A line for each migration, and the result.
fn table(schema: &SchemaStatus) -> String {
    let mut text = format!("{}\n", schema.database);
    for migration in &schema.migrations {
        let state = match migration.state {
            MigrationState::Applied => "applied",
            MigrationState::Pending => "pending",
            MigrationState::Changed => "applied with other SQL than this release has",
            MigrationState::Failed => "failed",
            MigrationState::Compatible => "applied by a newer release, compatible",
            MigrationState::Incompatible => "applied by another release, not compatible",
        };
        let _ = writeln!(
            text,
            "{:04}  {}: {state}",
            migration.version, migration.name
        );
    }
    let pending = schema.in_state(MigrationState::Pending).count();
    let _ = match (schema.version(), pending) {
        (None, _) => writeln!(
            text,
            "no schema; this release has schema {:04}",
            schema.release
        ),
        (Some(version), 0) => writeln!(
            text,
            "schema {version:04}; this release has schema {:04}",
            schema.release
        ),
        (Some(version), pending) => writeln!(
            text,
            "schema {version:04}; this release has schema {:04}: {pending} pending",
            schema.release
        ),
    };
    text
}

/// The statements of the pending migrations, as a script.
fn pending_sql(schema: &SchemaStatus) -> String {
    let mut script = format!("-- {}\n", schema.database);
    for migration in schema.in_state(MigrationState::Pending) {
        let _ = write!(
            script,
            "\n-- {:04} {}: one transaction, which also adds a row to _sqlx_migrations\n{}",
            migration.version,
            migration.name,
            migration.sql.unwrap_or_default()
        );
    }
    if schema.in_state(MigrationState::Pending).next().is_none() {
        script.push_str("-- no migration is pending\n");
    }
    script.push_str(
        "\n-- Afterwards display_name_lower is recomputed if this release has other rules for it than\n\
         -- name_folding.version.\n",
    );
    script
}
