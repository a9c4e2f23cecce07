//! Application transactions by name: the newest value of each, in one reading of the log.

use super::table::LOG_FOLDER;
use super::{LakeError, Table};
use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use deltalake::DeltaTable;
use deltalake::kernel::Action;
use futures::stream::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::{HashMap, HashSet};

/// Commits that are fetched at a time.
const FETCHES: usize = 16;

impl Table {
    /// The newest values of these transactions in a table that was loaded; those never committed are missing.
    pub(super) async fn values(
        &self,
        table: &DeltaTable,
        app_ids: HashSet<String>,
    ) -> Result<HashMap<String, i64>, LakeError> {
        let state = table.snapshot().map_err(|error| self.store.failed(&error))?;
        if let Some(mut values) = self.all_values(state.version()).await? {
            values.retain(|app_id, _| app_ids.contains(app_id));
            return Ok(values);
        }
        // `deltalake` reads the log anew for every one.
        let mut values = HashMap::new();
        for app_id in app_ids {
            let value = state.transaction_version(table.log_store().as_ref(), &app_id).await;
            if let Some(value) = value.map_err(|error| self.store.failed(&error))? {
                values.insert(app_id, value);
            }
        }
        Ok(values)
    }

    /// All of them: from the checkpoint, and the commits after it. `None` where the log is not laid out so.
    pub(super) async fn all_values(&self, version: u64) -> Result<Option<HashMap<String, i64>>, LakeError> {
        let (mut values, first) = match self.last_checkpoint().await? {
            None => (HashMap::new(), 0),
            Some(checkpoint) if checkpoint > version => return Ok(None),
            Some(checkpoint) => {
                let path = self.object_path(&format!("{LOG_FOLDER}/{checkpoint:020}.checkpoint.parquet"));
                let Some(values) = self.store.find(&path).await?.and_then(values_of_checkpoint) else {
                    return Ok(None);
                };
                (values, checkpoint + 1)
            }
        };
        let fetch = async |version| self.store.find(&self.commit_path(version)).await;
        let commits = futures::stream::iter((first..=version).map(fetch)).buffered(FETCHES);
        let commits: Vec<Option<Bytes>> = commits.try_collect().await?;
        for commit in commits {
            let Some(commit) = commit else { return Ok(None) };
            let names_one = |line: &&[u8]| line.windows(5).any(|part| part == b"\"txn\"");
            for line in commit.split(|byte| *byte == b'\n').filter(names_one) {
                match serde_json::from_slice(line) {
                    Ok(Action::Txn(txn)) => {
                        values.insert(txn.app_id, txn.version);
                    }
                    Ok(_) => {}
                    Err(_) => return Ok(None),
                }
            }
        }
        Ok(Some(values))
    }

    /// The version of the newest checkpoint, whoever wrote it. A hint that cannot be read is none.
    pub(super) async fn last_checkpoint(&self) -> Result<Option<u64>, LakeError> {
        #[derive(serde::Deserialize)]
        struct Hint {
            version: u64,
        }
        let hint = self.store.find(&self.object_path(&format!("{LOG_FOLDER}/_last_checkpoint"))).await?;
        Ok(hint.and_then(|hint| serde_json::from_slice(&hint).ok()).map(|Hint { version }| version))
    }
}

/// The column `txn` of a checkpoint in one file.
fn values_of_checkpoint(bytes: Bytes) -> Option<HashMap<String, i64>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).ok()?;
    let txn = ProjectionMask::columns(builder.parquet_schema(), ["txn"]);
    let mut values = HashMap::new();
    for batch in builder.with_projection(txn).build().ok()? {
        let batch = batch.ok()?;
        let txn = batch.column_by_name("txn")?.as_struct_opt()?;
        let app_ids = txn.column_by_name("appId")?.as_string_opt::<i32>()?;
        let versions = txn.column_by_name("version")?.as_primitive_opt::<Int64Type>()?;
        let rows = (0..txn.len()).filter(|row| txn.is_valid(*row));
        values.extend(rows.map(|row| (app_ids.value(row).to_owned(), versions.value(row))));
    }
    Some(values)
}
