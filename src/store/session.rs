//! Checks that connections lead to sessions of their own, with the settings that they ask for.
//!
//! A pooler may drop the settings, or let connections share sessions. The first would leave writes
//! without their bounds, the second breaks advisory locks and prepared statements.

use std::time::Duration;

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, Row as _, postgres::PgConnectOptions,
};
use tokio::time::timeout;

use super::{OpenError, postgres::refused};

/// Timeout of the whole check, with two connections.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Checks connections with these options and settings, which must be part of the options. `database`
/// is the name for messages.
pub(super) async fn check(
    connect: &PgConnectOptions,
    settings: &[(&str, String)],
    database: &str,
) -> Result<(), OpenError> {
    let problem = match timeout(TIMEOUT, problem(connect, settings)).await {
        Ok(Ok(problem)) => problem,
        Ok(Err(error)) if is_unsupported_parameter(&error) => Some(format!(
            "refuses the settings that the service asks for ({error}): for PgBouncer, set \
             ignore_startup_parameters = extra_float_digits,options and give the role the settings: {}",
            alter_role(connect, settings)
        )),
        Ok(Err(error)) => return Err(refused(database, error)),
        Err(elapsed) => return Err(refused(database, elapsed)),
    };
    match problem {
        None => Ok(()),
        Some(problem) => Err(OpenError::Session {
            database: database.to_owned(),
            problem,
        }),
    }
}

async fn problem(
    connect: &PgConnectOptions,
    settings: &[(&str, String)],
) -> sqlx::Result<Option<String>> {
    let mut first = connect.connect().await?;
    // `setting` has no unit, and neither have the values of `settings`.
    let actual: Vec<(String, String)> = sqlx::raw_sql("SELECT name, setting FROM pg_settings")
        .fetch_all(&mut first)
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<sqlx::Result<_>>()?;
    let is_set = |(name, value): &(&str, String)| {
        actual
            .iter()
            .any(|(set, actual)| set == name && actual == value)
    };
    let wrong: Vec<_> = settings
        .iter()
        .filter(|setting| !is_set(setting))
        .cloned()
        .collect();
    if !wrong.is_empty() {
        return Ok(Some(format!(
            "doesn't use the settings that the service asks for, so a pooler has dropped them: give \
             them to the role: {}",
            alter_role(connect, &wrong)
        )));
    }
    // If sessions are shared, a transaction of the second connection gets the session of the first one,
    // or the first one gets another session during the transaction.
    let own = session(&mut first).await?;
    let mut second = connect.connect().await?;
    let mut transaction = second.begin().await?;
    let shared = own == session(&mut transaction).await? || own != session(&mut first).await?;
    drop(transaction);
    // The check is done, whether or not they close cleanly.
    let _ = (first.close().await, second.close().await);
    Ok(shared.then(|| {
        "lets connections share sessions, as a pooler in transaction mode does: use its session mode"
            .to_owned()
    }))
}

/// The process of the server that runs the connection's statements. Uses no prepared statement, which a
/// pooler could lose.
async fn session(connection: &mut PgConnection) -> sqlx::Result<i32> {
    let row = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection);
    row.await?.try_get(0)
}

fn is_unsupported_parameter(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.message().contains("unsupported startup parameter"))
}

/// The statements that give settings to the role of the options.
fn alter_role(connect: &PgConnectOptions, settings: &[(&str, String)]) -> String {
    let role = connect.get_username().replace('"', "\"\"");
    let statements: Vec<_> = settings
        .iter()
        .map(|(name, value)| format!("ALTER ROLE \"{role}\" SET {name} = '{value}'"))
        .collect();
    statements.join("; ")
}
