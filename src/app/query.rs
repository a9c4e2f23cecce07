//! The role `query`: SQL over the tables, with what a projector of this process has beyond them.

use super::{AppError, Base, pictures};
use crate::lake::Lake;
use crate::projector::ProjectorHandle;
use crate::query::{Engine, Limits, Pictures};
use std::sync::Arc;

impl Base {
    /// SQL over everything appended up to now.
    pub(super) fn engine(&self, projector: &ProjectorHandle) -> Result<Engine, AppError> {
        self.engine_over(Arc::new(pictures::Live { log: self.log.clone(), projector: projector.clone() }))
    }

    /// SQL over the tables as they are committed.
    pub(super) fn engine_over_tables(&self, lake: Arc<Lake>) -> Result<Engine, AppError> {
        self.engine_over(Arc::new(pictures::Committed(lake)))
    }

    fn engine_over(&self, source: Arc<dyn Pictures>) -> Result<Engine, AppError> {
        let sql = &self.config.sql;
        let limits = Limits {
            max_rows: sql.max_rows,
            timeout: sql.timeout.0,
            memory_bytes: usize::try_from(sql.memory.0).unwrap_or(usize::MAX),
        };
        Ok(Engine::new(source, limits)?)
    }
}
