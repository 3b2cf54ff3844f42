//! The boundary at which the errors of the layers below become those of a call.

use std::sync::Arc;

use crate::{error::Error, store::StoreError};

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::AlreadyExists { id, indexes } => Self::AlreadyExists { id, indexes },
            StoreError::Conflict(cause) => Self::Conflict(cause),
            StoreError::Full(cause) => Self::StorageFull(cause),
            StoreError::Unavailable(cause) => Self::DatabaseUnavailable(cause),
            StoreError::OutcomeUnknown(cause) => Self::OutcomeUnknown(cause),
            StoreError::Corrupt(_) | StoreError::Unexpected(_) => Self::Internal(Arc::new(error)),
        }
    }
}
