//! What one node asks another, and the answer in bytes.
//!
//! An answer is a run of Arrow IPC streams under one Zstandard frame. For each table asked for, in the order of
//! [`TableName`], there are its rows, and but for `events` the keys that they replace and the buckets that these lie in.

use crate::lake::picture::{Overlay, Standing};
use crate::lake::{TableName, schema};
use crate::projector::Asked;
use arrow::array::{ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt32Type};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;

/// Rows of text shrink to a fifth by the fastest level.
const LEVEL: i32 = 1;

/// What is asked of a projector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The id of the log.
    pub log: String,
    /// By partition: everything before this offset is to be seen.
    pub ends: BTreeMap<u32, u64>,
    /// By name, where the tables stand that the answer is to be laid over.
    pub tables: BTreeMap<String, Standing>,
}

/// Why an answer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the rows are damaged: {0}")]
    Arrow(#[from] ArrowError),
    #[error("the rows are damaged: {0}")]
    Io(#[from] std::io::Error),
    #[error("the rows have other columns than this program's: was the other node started with another version of it?")]
    Columns,
}

impl Question {
    /// A question for these partitions, with where they end.
    pub fn new(log: &str, ends: BTreeMap<u32, u64>, tables: &BTreeMap<TableName, Standing>) -> Self {
        let only = |standing: &Standing| {
            let (mut owners, mut positions) = (standing.owners.clone(), standing.positions.clone());
            owners.retain(|partition, _| ends.contains_key(partition));
            positions.retain(|partition, _| ends.contains_key(partition));
            Standing { version: standing.version, owners, positions }
        };
        let tables = tables.iter().map(|(name, standing)| (name.as_str().to_owned(), only(standing))).collect();
        Self { log: log.to_owned(), tables, ends }
    }

    /// What the projector is asked. Tables it does not know are none it could lay anything over.
    pub fn asked(&self) -> Asked {
        let known = |(name, standing): (&String, &Standing)| Some((TableName::from_name(name)?, standing.clone()));
        Asked {
            partitions: self.ends.keys().copied().collect(),
            tables: self.tables.iter().filter_map(known).collect(),
        }
    }
}

/// The answer's bytes.
pub fn encode(overlays: &BTreeMap<TableName, Overlay>) -> Result<Vec<u8>, WireError> {
    let mut body = zstd::Encoder::new(Vec::new(), LEVEL)?;
    for (name, overlay) in overlays {
        let columns = schema::of(*name);
        write(&mut body, &concat_batches(&columns, &overlay.rows)?)?;
        if *name != TableName::Events {
            write(&mut body, &keys(overlay)?)?;
            write(&mut body, &hours(overlay)?)?;
        }
    }
    Ok(body.finish()?)
}

/// Reads an answer about these tables.
pub fn decode(
    bytes: &[u8],
    tables: impl Iterator<Item = TableName>,
) -> Result<BTreeMap<TableName, Overlay>, WireError> {
    let mut body = zstd::Decoder::new(bytes)?;
    let mut overlays = BTreeMap::new();
    for name in tables {
        let mut overlay = Overlay { rows: read(&mut body, &schema::of(name))?, ..Overlay::default() };
        overlay.rows.retain(|batch| batch.num_rows() > 0);
        if name != TableName::Events {
            for batch in read(&mut body, &key_columns())? {
                overlay.replaced.extend(batch.column(0).as_binary::<i32>().iter().flatten().map(Box::from));
            }
            for batch in read(&mut body, &hour_columns())? {
                let partitions = batch.column(0).as_primitive::<UInt32Type>().values().iter().copied();
                let hours = batch.column(1).as_primitive::<Int64Type>().values().iter().copied();
                overlay.hours.extend(partitions.zip(hours));
            }
        }
        overlays.insert(name, overlay);
    }
    Ok(overlays)
}

fn key_columns() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("key", DataType::Binary, false)]))
}

fn hour_columns() -> SchemaRef {
    let partition = Field::new("partition", DataType::UInt32, false);
    Arc::new(Schema::new(vec![partition, Field::new("hour", DataType::Int64, false)]))
}

fn keys(overlay: &Overlay) -> Result<RecordBatch, ArrowError> {
    let keys: BinaryArray = overlay.replaced.iter().map(|key| Some(&key[..])).collect();
    RecordBatch::try_new(key_columns(), vec![Arc::new(keys)])
}

fn hours(overlay: &Overlay) -> Result<RecordBatch, ArrowError> {
    let partitions: UInt32Array = overlay.hours.iter().map(|(partition, _)| *partition).collect();
    let hours: Int64Array = overlay.hours.iter().map(|(_, hour)| *hour).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(partitions), Arc::new(hours)];
    RecordBatch::try_new(hour_columns(), columns)
}

fn write(body: &mut impl Write, batch: &RecordBatch) -> Result<(), ArrowError> {
    let mut writer = StreamWriter::try_new(body, &batch.schema())?;
    writer.write(batch)?;
    writer.finish()
}

fn read(body: &mut impl Read, columns: &SchemaRef) -> Result<Vec<RecordBatch>, WireError> {
    let reader = StreamReader::try_new(body, None)?;
    if reader.schema().fields() != columns.fields() {
        return Err(WireError::Columns);
    }
    Ok(reader.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::new_null_array;
    use std::collections::HashSet;

    /// A row of nothing but defaults.
    fn rows(table: TableName, n: usize) -> RecordBatch {
        let columns = schema::of(table);
        let column = |field: &Arc<Field>| match field.is_nullable() {
            true => new_null_array(field.data_type(), n),
            false => arrow::array::make_array(
                new_null_array(field.data_type(), n).to_data().into_builder().nulls(None).build().unwrap(),
            ),
        };
        RecordBatch::try_new(columns.clone(), columns.fields().iter().map(column).collect()).unwrap()
    }

    #[test]
    fn an_answer_comes_back_as_it_was() {
        let (events, sessions) = (rows(TableName::Events, 2), rows(TableName::Sessions, 3));
        let laid = Overlay {
            rows: vec![sessions.slice(0, 1), sessions.slice(1, 2)],
            replaced: HashSet::from([Box::from([1, 2, 3]), Box::from([])]),
            hours: HashSet::from([(7, -3), (0, 490_000)]),
        };
        let overlays = BTreeMap::from([
            (TableName::Events, Overlay { rows: vec![events.clone()], ..Overlay::default() }),
            (TableName::Sessions, laid.clone()),
            (TableName::Messages, Overlay::default()),
        ]);
        let bytes = encode(&overlays).unwrap();
        let read = decode(&bytes, overlays.keys().copied()).unwrap();
        assert_eq!(read[&TableName::Events].rows, [events]);
        assert_eq!(read[&TableName::Sessions].rows, [sessions]);
        assert_eq!(read[&TableName::Sessions].replaced, laid.replaced);
        assert_eq!(read[&TableName::Sessions].hours, laid.hours);
        assert!(read[&TableName::Messages].rows.is_empty() && read[&TableName::Messages].replaced.is_empty());
    }

    #[test]
    fn what_is_cut_short_or_foreign_is_no_answer() {
        let overlays = BTreeMap::from([(
            TableName::Events,
            Overlay { rows: vec![rows(TableName::Events, 2)], ..Overlay::default() },
        )]);
        let bytes = encode(&overlays).unwrap();
        let events = || [TableName::Events].into_iter();
        assert!(decode(&bytes[..bytes.len() / 2], events()).is_err());
        assert!(decode(b"no such thing", events()).is_err());
        assert!(matches!(decode(&bytes, [TableName::Sessions].into_iter()), Err(WireError::Columns)));
    }

    #[test]
    fn a_question_names_only_its_partitions() {
        let standing = Standing {
            version: 9,
            owners: BTreeMap::from([(0, 1), (1, 2)]),
            positions: BTreeMap::from([(0, 100), (1, 200)]),
        };
        let tables = BTreeMap::from([(TableName::Events, standing)]);
        let question = Question::new("log", BTreeMap::from([(1, 250)]), &tables);
        let sent = serde_json::to_vec(&question).unwrap();
        let asked = serde_json::from_slice::<Question>(&sent).unwrap().asked();
        assert_eq!(asked.partitions, [1]);
        let theirs = &asked.tables[&TableName::Events];
        assert_eq!((theirs.version, &theirs.owners, &theirs.positions), (9, &[(1, 2)].into(), &[(1, 200)].into()));
    }
}
