//! Recomputes `display_name_lower`, the searched form of the names, when its rules have changed.

use sqlx::{Executor, FromRow, IntoArguments, QueryBuilder};
use uuid::Uuid;

use super::{
    Dialect,
    query::{StatementExt as _, Value},
};
use crate::model::{FOLDING_VERSION, fold_case};

/// Names that are read at a time, and written in one transaction.
const PAGE: i64 = 1_000;

/// Folds all names by the rules of this release, unless that was done before. Repeats and concurrent
/// calls do no harm.
pub(in crate::store) async fn refold_names<DB: Dialect>(
    connection: &mut DB::Connection,
) -> sqlx::Result<()>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    (i64,): for<'r> FromRow<'r, DB::Row>,
    (Uuid, String, String): for<'r> FromRow<'r, DB::Row>,
{
    let mut statement = QueryBuilder::<DB>::new("SELECT version FROM name_folding");
    let (version,): (i64,) = statement
        .build_query_as()
        .fetch_one(&mut *connection)
        .await?;
    if version >= FOLDING_VERSION {
        return Ok(());
    }
    let mut after = None;
    loop {
        let mut statement =
            QueryBuilder::<DB>::new("SELECT id, display_name, display_name_lower FROM locations");
        if let Some(after) = after {
            statement.push(" WHERE id > ").value(Value::Id(after));
        }
        statement
            .push(" ORDER BY id LIMIT ")
            .value(Value::Int(PAGE));
        let names: Vec<(Uuid, String, String)> = statement
            .build_query_as()
            .fetch_all(&mut *connection)
            .await?;
        let Some((last, ..)) = names.last() else {
            break;
        };
        after = Some(*last);
        let stale: Vec<_> = names
            .into_iter()
            .filter_map(|(id, name, stored)| {
                let folded = fold_case(&name);
                (folded != stored).then_some((id, name, folded))
            })
            .collect();
        if stale.is_empty() {
            continue;
        }
        (&mut *connection).execute(DB::BEGIN).await?;
        for (id, name, folded) in stale {
            let mut statement =
                QueryBuilder::<DB>::new("UPDATE locations SET display_name_lower = ");
            statement.value(Value::Text(folded));
            statement.push(" WHERE id = ").value(Value::Id(id));
            // Another replica may have renamed it meanwhile.
            statement
                .push(" AND display_name = ")
                .value(Value::Text(name));
            statement.build().execute(&mut *connection).await?;
        }
        (&mut *connection).execute("COMMIT").await?;
    }
    let mut statement = QueryBuilder::<DB>::new("UPDATE name_folding SET version = ");
    statement.value(Value::Int(FOLDING_VERSION));
    statement.build().execute(&mut *connection).await?;
    Ok(())
}
