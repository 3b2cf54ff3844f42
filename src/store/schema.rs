//! The schema of a database: inspecting, checking and migrating it.
//!
//! A release has migrations with numbers, and a database has a table of those that were applied to it.
//! A release runs on its own schema, and on a newer one that is compatible: the file name of a
//! migration ends in `.compatible_with_N.sql` if a release whose newest migration is `N` runs on the
//! schema afterwards. The mark is part of the description that is stored with each applied migration,
//! so an older release finds it there. See `migrations/README.md`.

use std::collections::BTreeMap;

use sqlx::{
    Executor, FromRow, IntoArguments,
    migrate::{Migrate as Connection, MigrateError, Migrator},
};

use super::{Migrate, OpenError, sql::Dialect};

/// The text before the number in the description of a compatible migration.
const COMPATIBLE: &str = ".compatible with ";

/// The migrations of this release and of a database.
#[derive(Debug)]
pub struct SchemaStatus {
    /// The file, or the server and its database.
    pub database: String,
    /// The number of this release's newest migration.
    pub release: i64,
    /// The migrations that this release has, or that were applied, in their order.
    pub migrations: Vec<MigrationStatus>,
}

/// A migration of this release or of a database.
#[derive(Debug)]
pub struct MigrationStatus {
    /// The number.
    pub version: i64,
    /// The change, in a few words.
    pub name: String,
    /// The number that a release's newest migration must have at least for the release to run on the
    /// schema afterwards: the migration's own, unless it is marked as compatible.
    pub oldest: i64,
    /// Whether it was applied.
    pub state: MigrationState,
    /// Its statements; `None` if this release doesn't have it.
    pub sql: Option<&'static str>,
}

/// Whether a migration was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationState {
    /// Applied, as this release has it.
    Applied,
    /// Not applied.
    Pending,
    /// Applied with other statements than this release has.
    Changed,
    /// Begun, and failed.
    Failed,
    /// Applied by a newer release, and compatible with this one.
    Compatible,
    /// Applied by a newer release, and not compatible with this one.
    Incompatible,
}

/// A row of the table of applied migrations: the number, description, checksum and success.
pub(super) type AppliedRow = (i64, String, Vec<u8>, bool);

impl SchemaStatus {
    /// The status of a database with these rows in its table of applied migrations.
    pub(super) fn new(
        database: &str,
        migrations: &'static Migrator,
        applied: Vec<AppliedRow>,
    ) -> Self {
        let release = migrations
            .iter()
            .map(|migration| migration.version)
            .max()
            .unwrap_or_default();
        let mut all: BTreeMap<_, _> = migrations
            .iter()
            .map(|migration| {
                let pending = MigrationStatus::new(
                    migration.version,
                    &migration.description,
                    Some(migration.sql.as_str()),
                    MigrationState::Pending,
                );
                (migration.version, (pending, Some(&migration.checksum)))
            })
            .collect();
        for (version, description, checksum, success) in applied {
            let (status, expected) = all.entry(version).or_insert_with(|| {
                let state = MigrationState::Incompatible;
                (
                    MigrationStatus::new(version, &description, None, state),
                    None,
                )
            });
            status.state = match expected {
                _ if !success => MigrationState::Failed,
                Some(expected) if ***expected == *checksum => MigrationState::Applied,
                Some(_) => MigrationState::Changed,
                // A mark is a promise to earlier releases only.
                None if status.oldest <= release && version > release => MigrationState::Compatible,
                None => MigrationState::Incompatible,
            };
        }
        Self {
            database: database.to_owned(),
            release,
            migrations: all.into_values().map(|(status, _)| status).collect(),
        }
    }

    /// The migrations in this state.
    pub fn in_state(&self, state: MigrationState) -> impl Iterator<Item = &MigrationStatus> {
        self.migrations
            .iter()
            .filter(move |migration| migration.state == state)
    }

    /// The number of the newest migration that was applied.
    pub fn version(&self) -> Option<i64> {
        let applied = self.migrations.iter().rev();
        applied
            .filter(|migration| migration.state != MigrationState::Pending)
            .map(|migration| migration.version)
            .next()
    }

    /// Checks that no migration prevents this release from migrating or using the database.
    pub fn check_applied(&self) -> Result<(), OpenError> {
        let refused = |error: MigrateError| OpenError::Refused {
            database: self.database.clone(),
            source: error.into(),
        };
        let version = |state| self.in_state(state).map(|migration| migration.version);
        if let Some(failed) = version(MigrationState::Failed).next() {
            return Err(refused(MigrateError::Dirty(failed)));
        }
        let incompatible = self.in_state(MigrationState::Incompatible);
        if let Some(needs) = incompatible.map(|migration| migration.oldest).max() {
            return Err(match self.version() {
                Some(version) if version > self.release => OpenError::Newer {
                    database: self.database.clone(),
                    version,
                    needs,
                    release: self.release,
                },
                _ => refused(MigrateError::VersionMissing(needs)),
            });
        }
        match version(MigrationState::Changed).next() {
            Some(changed) => Err(refused(MigrateError::VersionMismatch(changed))),
            None => Ok(()),
        }
    }

    /// Checks that this release can use the database as it is.
    pub(super) fn check(&self) -> Result<(), OpenError> {
        self.check_applied()?;
        match self.in_state(MigrationState::Pending).next() {
            Some(pending) => Err(OpenError::Older {
                database: self.database.clone(),
                version: pending.version,
            }),
            None => Ok(()),
        }
    }
}

impl MigrationStatus {
    fn new(
        version: i64,
        description: &str,
        sql: Option<&'static str>,
        state: MigrationState,
    ) -> Self {
        let mark = description
            .rsplit_once(COMPATIBLE)
            .and_then(|(name, oldest)| Some((name, oldest.parse().ok()?)));
        let (name, oldest) = mark.unwrap_or((description, version));
        Self {
            version,
            name: name.to_owned(),
            oldest,
            state,
            sql,
        }
    }
}

/// Reads which migrations were applied to a database.
pub(super) async fn inspect<DB: Dialect>(
    connection: &mut DB::Connection,
    migrations: &'static Migrator,
    database: &str,
) -> sqlx::Result<SchemaStatus>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    AppliedRow: for<'r> FromRow<'r, DB::Row>,
{
    let applied = sqlx::query_as(
        "SELECT version, description, checksum, success FROM _sqlx_migrations ORDER BY version",
    )
    .fetch_all(connection)
    .await;
    let applied = match applied {
        Err(error) if is_missing_table(&error) => Vec::new(),
        applied => applied?,
    };
    Ok(SchemaStatus::new(database, migrations, applied))
}

/// Ensures that a database has a schema that this release can use. After an error the connection may
/// still hold the migrations' lock: close it. `refused` maps errors of statements.
pub(super) async fn ensure<DB: Dialect>(
    connection: &mut DB::Connection,
    migrations: &'static Migrator,
    migrate: Migrate,
    database: &str,
    refused: impl Fn(sqlx::Error) -> OpenError,
) -> Result<(), OpenError>
where
    DB::Connection: Connection,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    AppliedRow: for<'r> FromRow<'r, DB::Row>,
{
    let status = inspect::<DB>(connection, migrations, database).await;
    match (status.map_err(&refused)?.check(), migrate) {
        (Err(OpenError::Older { .. }), Migrate::Auto) => {}
        (outcome, _) => return outcome,
    }
    match migrations.run_direct(None, connection, false).await {
        Ok(()) => Ok(()),
        // A newer release has migrated it meanwhile.
        Err(MigrateError::VersionMissing(_)) => {
            let status = inspect::<DB>(connection, migrations, database).await;
            status.map_err(&refused)?.check()
        }
        Err(MigrateError::Execute(error)) => Err(refused(error)),
        Err(error) => Err(OpenError::Refused {
            database: database.to_owned(),
            source: error.into(),
        }),
    }
}

/// Whether the error is that of a missing table, in a database that was never migrated. SQLite has
/// no code for it.
fn is_missing_table(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.code().is_some_and(|code| code == "42P01")
            || error.message().starts_with("no such table")
    })
}
