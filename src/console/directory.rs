//! The accounts that there are: those of the config, those added at run time, those that any event names.

use super::problem::Problem;
use crate::gateway::account_store::AccountStore;
use crate::gateway::shelf::ShelfError;
use crate::query::accounts::{NAMED_BY_EVENTS, UnknownAccount, check};
use crate::query::{Engine, QueryError};
use arrow::array::AsArray;
use futures::TryStreamExt;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Knows the accounts. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    pub engine: Arc<Engine>,
    /// Of the config.
    pub configured: Arc<BTreeSet<String>>,
    pub store: AccountStore,
}

/// Why accounts are not taken.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error(transparent)]
    Unknown(#[from] UnknownAccount),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Shelf(#[from] ShelfError),
}

impl Directory {
    /// Refuses a name that no account has. Events are asked only for names that are not configured.
    pub async fn check(&self, wanted: &[String]) -> Result<(), DirectoryError> {
        let mut known = (*self.configured).clone();
        known.extend(self.store.load()?.into_iter().map(|account| account.name));
        if wanted.iter().all(|name| known.contains(name)) {
            return Ok(());
        }
        let mut named = self.engine.query(NAMED_BY_EVENTS).await?;
        while let Some(batch) = named.try_next().await? {
            known.extend(batch.column(0).as_string::<i32>().iter().flatten().map(str::to_owned));
        }
        Ok(check(wanted, &known)?)
    }
}

impl From<DirectoryError> for Problem {
    fn from(error: DirectoryError) -> Problem {
        match error {
            DirectoryError::Unknown(error) => Problem::unprocessable(error.to_string()),
            DirectoryError::Query(error) => error.into(),
            DirectoryError::Shelf(error) => Problem::unavailable(error.to_string()),
        }
    }
}
