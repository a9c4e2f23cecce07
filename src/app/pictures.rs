//! The tables as SQL sees them: one picture of everything appended up to now, or of what is committed.

use crate::lake::picture::TableView;
use crate::lake::{FileEntry, Lake, TableName, schema};
use crate::log::EventLog;
use crate::projector::ProjectorHandle;
use crate::query::Pictures;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use object_store::ObjectStore;
use std::collections::BTreeMap;
use std::sync::Arc;
use url::Url;

/// A running projector and the log it reads.
pub(super) struct Live {
    pub log: Arc<dyn EventLog>,
    pub projector: ProjectorHandle,
}

#[async_trait]
impl Pictures for Live {
    async fn take(&self, tables: &[TableName]) -> Result<BTreeMap<TableName, TableView>, String> {
        let ends = super::log_ends(&*self.log).await.map_err(|error| error.to_string())?;
        self.projector.wait_folded(&ends).await.map_err(|error| error.to_string())?;
        self.projector.picture(tables).await.map_err(|error| error.to_string())
    }

    fn schema(&self, table: TableName) -> SchemaRef {
        schema::of(table)
    }

    fn object_store(&self) -> (Url, Arc<dyn ObjectStore>) {
        self.projector.lake().object_store()
    }

    fn location(&self, table: TableName, file: &FileEntry) -> object_store::path::Path {
        self.projector.lake().location(table, file)
    }
}

/// The tables as they are committed.
pub(super) struct Committed(pub Arc<Lake>);

#[async_trait]
impl Pictures for Committed {
    async fn take(&self, tables: &[TableName]) -> Result<BTreeMap<TableName, TableView>, String> {
        self.0.refresh().await.map_err(|error| error.to_string())?;
        let view = |name: TableName| {
            let clean = self.0.table(name).snapshot().files.values().cloned().collect();
            (name, TableView { clean, ..TableView::default() })
        };
        Ok(tables.iter().copied().map(view).collect())
    }

    fn schema(&self, table: TableName) -> SchemaRef {
        schema::of(table)
    }

    fn object_store(&self) -> (Url, Arc<dyn ObjectStore>) {
        self.0.object_store()
    }

    fn location(&self, table: TableName, file: &FileEntry) -> object_store::path::Path {
        self.0.location(table, file)
    }
}
