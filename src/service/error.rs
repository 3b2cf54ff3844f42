//! The boundary at which errors of the layers below become errors of the domain.

use std::sync::Arc;

use crate::{
    cache::CacheError,
    error::{Culprits, Error},
    store::StoreError,
};

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::AlreadyExists { id, .. } => Self::AlreadyExists(Culprits::single(id)),
            StoreError::Conflict(cause) => Self::Conflict(cause),
            StoreError::Full(cause) => Self::StorageFull(cause),
            StoreError::Unavailable(cause) => Self::DatabaseUnavailable(cause),
            StoreError::Overloaded { limit, value } => Self::Overloaded { limit, value },
            StoreError::TooSlow(limit) => Self::QueryTooSlow(limit),
            StoreError::OutcomeUnknown(cause) => Self::outcome_unknown(cause),
            StoreError::Corrupt(_) | StoreError::Unexpected(_) => Self::Internal(Arc::new(error)),
        }
    }
}

impl From<CacheError> for Error {
    fn from(error: CacheError) -> Self {
        Self::CacheUnavailable(Arc::new(error))
    }
}
