//! The schema of a database: checking and migrating it.

use sqlx::migrate::{Migrate as Connection, MigrateError, Migrator};

use super::{Migrate, OpenError};

/// Ensures that a database has this release's schema. After an error the connection may still hold
/// the migrations' lock: close it. `refused` maps errors of statements.
pub(super) async fn ensure<C: Connection>(
    connection: &mut C,
    migrations: &Migrator,
    migrate: Migrate,
    database: &str,
    refused: impl FnOnce(sqlx::Error) -> OpenError,
) -> Result<(), OpenError> {
    let outcome = match migrate {
        Migrate::Auto => migrations.run_direct(None, connection, false).await,
        Migrate::Never => check(connection, migrations).await,
    };
    let database = || database.to_owned();
    outcome.map_err(|error| match error {
        MigrateError::VersionMissing(version) => OpenError::Newer {
            database: database(),
            version,
        },
        MigrateError::VersionNotPresent(version) => OpenError::Older {
            database: database(),
            version,
        },
        MigrateError::Execute(error) => refused(error),
        error => OpenError::Refused {
            database: database(),
            source: error.into(),
        },
    })
}

/// Fails as a migration would if the schema is newer than this release or has other migrations, and
/// with `VersionNotPresent` if it is older.
async fn check<C: Connection>(
    connection: &mut C,
    migrations: &Migrator,
) -> Result<(), MigrateError> {
    let applied = match connection
        .list_applied_migrations(&migrations.table_name)
        .await
    {
        Err(MigrateError::Execute(error)) if is_missing_table(&error) => Vec::new(),
        applied => applied?,
    };
    if let Some(newer) = applied
        .iter()
        .find(|applied| !migrations.version_exists(applied.version))
    {
        return Err(MigrateError::VersionMissing(newer.version));
    }
    for migration in migrations.iter() {
        match applied
            .iter()
            .find(|applied| applied.version == migration.version)
        {
            None => return Err(MigrateError::VersionNotPresent(migration.version)),
            Some(applied) if applied.checksum != migration.checksum => {
                return Err(MigrateError::VersionMismatch(migration.version));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Whether the error is that of a missing table, in a database that was never migrated. SQLite has
/// no code for it.
fn is_missing_table(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.code().is_some_and(|code| code == "42P01")
            || error.message().starts_with("no such table")
    })
}
