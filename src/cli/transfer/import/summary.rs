//! The result of an import.

use std::{fmt, path::PathBuf, time::Duration};

use indicatif::HumanCount;

use super::{Purpose, send::Fate};
use crate::cli::transfer::{
    EXIT_INTERRUPTED, TransferError, compare::Difference, progress::describe_rate,
};

/// The number of rows by their result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub created: u64,
    pub updated: u64,
    pub unchanged: u64,
    pub different: u64,
    pub rejected: u64,
    pub deleted: u64,
    pub missing: u64,
}

impl Counts {
    pub fn add(&mut self, fate: &Fate) {
        *match fate {
            Fate::Created => &mut self.created,
            Fate::Updated(_) => &mut self.updated,
            Fate::Unchanged => &mut self.unchanged,
            Fate::Different(_) => &mut self.different,
            Fate::Rejected(_) => &mut self.rejected,
            Fate::Deleted => &mut self.deleted,
            Fate::Missing => &mut self.missing,
        } += 1;
    }

    pub fn total(self) -> u64 {
        self.created
            + self.updated
            + self.unchanged
            + self.different
            + self.rejected
            + self.deleted
            + self.missing
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, name: &str, differences: &[Difference]| {
            f.write_str(name)?;
            for (index, difference) in differences.iter().enumerate() {
                write!(f, "{}{difference}", if index == 0 { ": " } else { "; " })?;
            }
            Ok(())
        };
        match self {
            Self::Created => f.write_str("created"),
            Self::Updated(differences) => list(f, "updated", differences),
            Self::Unchanged => f.write_str("unchanged"),
            Self::Deleted => f.write_str("deleted"),
            Self::Missing => f.write_str("missing"),
            Self::Different(differences) => list(f, "different", differences),
            Self::Rejected(reject) => write!(f, "rejected: {}", reject.reason),
        }
    }
}

/// The result of an import.
#[derive(Debug)]
pub struct ImportSummary {
    pub(super) counts: Counts,
    pub(super) purpose: Purpose,
    pub(super) is_dry_run: bool,
    /// The path of the rejects file, if it has all rejected rows.
    pub(super) rejects: Option<PathBuf>,
    pub(super) elapsed: Duration,
    pub(super) is_interrupted: bool,
    /// The error that ended the import early.
    pub(super) failure: Option<TransferError>,
}

impl ImportSummary {
    /// The exit code of the process: 0 if every row of the file is in the service as the file has
    /// it, or would be, 130 after an interrupt, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        if self.is_interrupted {
            EXIT_INTERRUPTED
        } else {
            let Counts {
                different,
                rejected,
                ..
            } = self.counts;
            u8::from(rejected > 0 || different > 0 || self.failure.is_some())
        }
    }
}

impl fmt::Display for ImportSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts;
        if self.is_dry_run {
            write!(f, "dry run, nothing was written: ")?;
        }
        let total = describe_rate(counts.total(), self.elapsed);
        write!(f, "{total} in {:.1?}: ", self.elapsed)?;
        let [
            created,
            updated,
            unchanged,
            different,
            rejected,
            deleted,
            missing,
        ] = [
            counts.created,
            counts.updated,
            counts.unchanged,
            counts.different,
            counts.rejected,
            counts.deleted,
            counts.missing,
        ]
        .map(HumanCount);
        match self.purpose {
            Purpose::Import => write!(
                f,
                "{created} created, {updated} updated, {unchanged} unchanged, {different} \
                 different, {rejected} rejected"
            )?,
            Purpose::Delete => {
                write!(
                    f,
                    "{deleted} deleted, {missing} missing, {rejected} rejected"
                )?;
            }
        }
        if let Some(rejects) = self.rejects.as_ref().filter(|_| counts.rejected > 0) {
            write!(f, " (see {})", rejects.display())?;
        }
        if counts.different > 0 {
            write!(
                f,
                "\nlocations that differ from the file: {}. Update them with --update, or, if their \
                 keys belong to other data, import it with an --id-namespace of its own",
                HumanCount(counts.different)
            )?;
        }
        if let Some(failure) = &self.failure {
            write!(f, "\nended early: {failure}")?;
        } else if self.is_interrupted {
            write!(f, "\ninterrupted")?;
        } else {
            return Ok(());
        }
        write!(
            f,
            "\nnot every row was {}: run the same command again, which skips what is done",
            match self.purpose {
                Purpose::Import => "imported",
                Purpose::Delete => "read",
            }
        )
    }
}
