//! Tables of the catalog that are told here: the settings, and what tells of keys.

use super::catalog_words::EMPTY;
use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray, new_null_array};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::common::Result;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The settings of PostgreSQL that clients ask for, as they are here. 16 is the version whose catalog is told.
pub const SETTINGS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("DateStyle", "ISO, MDY"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "on"),
    ("extra_float_digits", "1"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("IntervalStyle", "postgres"),
    ("is_superuser", "off"),
    ("lc_collate", "C"),
    ("lc_monetary", "C"),
    ("max_identifier_length", "63"),
    ("max_index_keys", "32"),
    ("search_path", "public"),
    ("server_encoding", "UTF8"),
    ("server_version", "16.6"),
    ("server_version_num", "160006"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("TimeZone", "UTC"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "on"),
];

/// Those that no client sets.
const FIXED: [&str; 9] = [
    "in_hot_standby",
    "integer_datetimes",
    "is_superuser",
    "lc_collate",
    "max_identifier_length",
    "max_index_keys",
    "server_encoding",
    "server_version",
    "server_version_num",
];

const PG_SETTINGS: &str = "pg_settings";

/// `pg_catalog` with the settings that there are here, and what tells of keys: there are none.
#[derive(Debug)]
pub(super) struct WithSettings {
    told: Arc<dyn SchemaProvider>,
    settings: Arc<MemTable>,
    /// Tables of `information_schema` without rows.
    empty: BTreeMap<&'static str, Arc<MemTable>>,
}

/// Lays them over what is `told`.
pub(super) fn with_settings(told: Arc<dyn SchemaProvider>) -> Result<WithSettings> {
    Ok(WithSettings { told, settings: settings()?, empty: empty()? })
}

#[async_trait]
impl SchemaProvider for WithSettings {
    fn table_names(&self) -> Vec<String> {
        self.told.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if name == PG_SETTINGS {
            return Ok(Some(self.settings.clone()));
        }
        if let Some(empty) = self.empty.get(name) {
            return Ok(Some(empty.clone()));
        }
        self.told.table(name).await
    }

    fn table_exist(&self, name: &str) -> bool {
        self.empty.contains_key(name) || self.told.table_exist(name)
    }
}

/// The tables of `information_schema` that tell of keys, with their columns (SQL:2016, part 11).
fn empty() -> Result<BTreeMap<&'static str, Arc<MemTable>>> {
    let table = |name: &'static str| {
        let columns: &[&str] = match name {
            "table_constraints" => {
                &["constraint", "table", "constraint_type", "is_deferrable", "initially_deferred", "enforced"]
            }
            "key_column_usage" => {
                &["constraint", "table", "column_name", "ordinal_position", "position_in_unique_constraint"]
            }
            "referential_constraints" => {
                &["constraint", "unique_constraint", "match_option", "update_rule", "delete_rule"]
            }
            _ => &["table", "column_name", "constraint"],
        };
        let fields = columns.iter().flat_map(|column| match *column {
            // What is named has three parts.
            "constraint" | "table" | "unique_constraint" => {
                ["catalog", "schema", "name"].map(|part| format!("{column}_{part}")).to_vec()
            }
            other => vec![other.to_owned()],
        });
        let fields = fields.map(|name| {
            let is_number = name.contains("position");
            Field::new(name, if is_number { DataType::Int32 } else { DataType::Utf8 }, true)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Ok((name, Arc::new(MemTable::try_new(schema, vec![Vec::new()])?)))
    };
    EMPTY.into_iter().map(table).collect()
}

/// The columns that PostgreSQL's `pg_settings` has; of a setting its name and its value are known.
fn settings() -> Result<Arc<MemTable>> {
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(SETTINGS.iter().map(|(name, _)| name)));
    let values: ArrayRef = Arc::new(StringArray::from_iter_values(SETTINGS.iter().map(|(_, value)| value)));
    let context = |name: &str| if FIXED.contains(&name) { "internal" } else { "user" };
    let contexts: ArrayRef = Arc::new(StringArray::from_iter_values(SETTINGS.iter().map(|(name, _)| context(name))));
    let columns = [
        ("name", DataType::Utf8),
        ("setting", DataType::Utf8),
        ("unit", DataType::Utf8),
        ("category", DataType::Utf8),
        ("short_desc", DataType::Utf8),
        ("extra_desc", DataType::Utf8),
        ("context", DataType::Utf8),
        ("vartype", DataType::Utf8),
        ("source", DataType::Utf8),
        ("min_val", DataType::Utf8),
        ("max_val", DataType::Utf8),
        ("enumvals", DataType::new_list(DataType::Utf8, true)),
        ("boot_val", DataType::Utf8),
        ("reset_val", DataType::Utf8),
        ("sourcefile", DataType::Utf8),
        ("sourceline", DataType::Int32),
        ("pending_restart", DataType::Boolean),
    ];
    let value = |(name, data_type): &(&str, DataType)| match *name {
        "name" => names.clone(),
        "setting" | "boot_val" | "reset_val" => values.clone(),
        "context" => contexts.clone(),
        _ => new_null_array(data_type, SETTINGS.len()),
    };
    let rows = columns.iter().map(value).collect();
    let fields = columns.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(schema.clone(), rows)?;
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
}
