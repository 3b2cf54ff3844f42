//! The boundary at which errors of the layers below become errors of the domain.

use std::sync::Arc;

use crate::{cache::CacheError, error::Error, store::StoreError};

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::AlreadyExists { id, indexes } => Self::AlreadyExists { id, indexes },
            StoreError::Conflict(cause) => Self::Conflict(cause),
            StoreError::Full(cause) => Self::StorageFull(cause),
            StoreError::Unavailable(cause) => Self::DatabaseUnavailable(cause),
            StoreError::Overloaded { limit, value } => Self::Overloaded { limit, value },
            StoreError::TooSlow(limit) => Self::QueryTooSlow(limit),
            StoreError::OutcomeUnknown(cause) => Self::OutcomeUnknown(cause),
            StoreError::Corrupt(_) | StoreError::Unexpected(_) => Self::Internal(Arc::new(error)),
        }
    }
}

impl From<CacheError> for Error {
    fn from(error: CacheError) -> Self {
        Self::CacheUnavailable(Arc::new(error))
    }
}
