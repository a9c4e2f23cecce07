//! One consistent picture of a table: its files at a version, and the rows that stand in for or beside them.

use super::FileEntry;
use arrow::array::RecordBatch;
use std::collections::HashSet;
use std::sync::Arc;

/// What a query reads of one table.
#[derive(Debug, Clone, Default)]
pub struct TableView {
    /// Files none of whose rows changed since they were written.
    pub clean: Vec<FileEntry>,
    /// Files with rows whose key may be in `replaced`.
    pub dirty: Vec<FileEntry>,
    /// Keys ([`super::rows::session_key`], [`super::rows::message_key`]) of rows in `dirty` that no longer hold.
    pub replaced: Arc<HashSet<Box<[u8]>>>,
    /// Rows to be read besides the files, in the table's schema.
    pub rows: Vec<RecordBatch>,
}
