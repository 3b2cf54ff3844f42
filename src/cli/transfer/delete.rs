//! `location-service delete`: deletes the locations whose ids are in a file.
//!
//! The file is read, and its rows are counted and rejected, as by an import ([`super::import`]).

use std::path::PathBuf;

use clap::Args;

use super::{
    TransferError,
    import::{self, FileArgs, ImportArgs, ImportSummary, Purpose},
};

/// Options of `delete`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
The ids are those of an import of the same file: the column or key `id`, or derived with --id-from and \
--id-namespace. A row whose location isn't there is counted as missing. The exit code is 0 only if no \
location of the file is left that the caller may see. Rejected rows go to a file of the same format.

Examples:
  location-service delete --from sites.csv --id-from number --dry-run
  location-service export - --production-run-id spring | \\
      location-service delete --from - --format ndjson")]
pub struct DeleteArgs {
    /// File with the ids; - for stdin
    #[arg(long, value_name = "FILE")]
    from: PathBuf,

    #[command(flatten)]
    options: FileArgs,
}

/// Deletes the locations of a file.
///
/// # Errors
/// Those of [`import::import`].
pub async fn delete(args: DeleteArgs) -> Result<ImportSummary, TransferError> {
    import::import(ImportArgs {
        file: args.from,
        purpose: Purpose::Delete,
        map: Vec::new(),
        set: Vec::new(),
        decimal_comma: false,
        update: false,
        options: args.options,
    })
    .await
}
