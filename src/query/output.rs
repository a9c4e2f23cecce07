//! Answers as JSON, NDJSON, CSV, an Arrow stream, Parquet or a table for people, written as they come.
//!
//! In JSON, NDJSON and CSV a BIGINT column whose name ends in `_token` is the unsigned number (in JSON as a string:
//! most readers of JSON have 53 bits), timestamps are RFC 3339 in UTC, decimals keep all their digits.

use super::value::{self, Text};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::util::pretty::pretty_format_batches;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use std::io::{self, Write};

/// What an answer can be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An array of objects.
    Json,
    /// An object a line.
    Ndjson,
    /// RFC 4180 with a head line; NULL is an empty field, an empty text `""`.
    Csv,
    /// The Arrow IPC stream.
    Arrow,
    Parquet,
    /// A table of text with borders. It is written at the end, being as wide as its widest value.
    Table,
}

/// Why an answer cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes one answer into `W`. Without [`Writer::finish`] what is written is not whole.
pub struct Writer<W: Write + Send> {
    inner: Inner<W>,
}

enum Inner<W: Write + Send> {
    Text { format: Format, schema: SchemaRef, out: W, rows: u64, block: Vec<u8> },
    Arrow(Box<StreamWriter<W>>),
    Parquet(Box<ArrowWriter<W>>),
    Table { schema: SchemaRef, out: W, batches: Vec<RecordBatch> },
}

impl<W: Write + Send> Writer<W> {
    /// Begins an answer with these columns.
    pub fn new(format: Format, schema: SchemaRef, mut out: W) -> Result<Writer<W>, OutputError> {
        let inner = match format {
            Format::Json | Format::Ndjson => Inner::Text { format, schema, out, rows: 0, block: Vec::new() },
            Format::Csv => {
                let mut head = Vec::new();
                for (index, field) in schema.fields().iter().enumerate() {
                    if index > 0 {
                        head.push(b',');
                    }
                    value::csv_text(field.name(), &mut head);
                }
                head.push(b'\n');
                out.write_all(&head)?;
                Inner::Text { format, schema, out, rows: 0, block: Vec::new() }
            }
            Format::Arrow => Inner::Arrow(Box::new(StreamWriter::try_new(out, &schema)?)),
            Format::Parquet => {
                let properties =
                    WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
                Inner::Parquet(Box::new(ArrowWriter::try_new(out, schema, Some(properties))?))
            }
            Format::Table => Inner::Table { schema, out, batches: Vec::new() },
        };
        Ok(Writer { inner })
    }

    /// Writes the rows of a batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), OutputError> {
        match &mut self.inner {
            Inner::Text { format, schema, out, rows, block } => {
                block.clear();
                let columns = value::columns(schema, batch)?;
                for row in 0..batch.num_rows() {
                    match format {
                        Format::Csv => csv_row(&columns, row, block),
                        Format::Ndjson => {
                            json_row(&columns, row, block);
                            block.push(b'\n');
                        }
                        _ => {
                            block.extend_from_slice(if *rows == 0 { b"[" } else { b",\n" });
                            json_row(&columns, row, block);
                        }
                    }
                    *rows += 1;
                }
                out.write_all(block)?;
            }
            Inner::Arrow(writer) => writer.write(batch)?,
            Inner::Parquet(writer) => writer.write(batch)?,
            Inner::Table { schema, batches, .. } => batches.push(value::readable(schema, batch)?),
        }
        Ok(())
    }

    /// Ends the answer and gives back what it was written into.
    pub fn finish(self) -> Result<W, OutputError> {
        let mut out = match self.inner {
            Inner::Text { format: Format::Json, mut out, rows, .. } => {
                out.write_all(if rows == 0 { b"[]\n" } else { b"]\n" })?;
                out
            }
            Inner::Text { out, .. } => out,
            Inner::Arrow(writer) => writer.into_inner()?,
            Inner::Parquet(writer) => writer.into_inner()?,
            Inner::Table { schema, mut out, mut batches } => {
                if batches.is_empty() {
                    batches.push(value::readable(&schema, &RecordBatch::new_empty(schema.clone()))?);
                }
                writeln!(out, "{}", pretty_format_batches(&batches)?)?;
                out
            }
        };
        out.flush()?;
        Ok(out)
    }

    /// What is written into, to take out what has come together so far.
    pub fn get_mut(&mut self) -> Option<&mut W> {
        match &mut self.inner {
            Inner::Text { out, .. } | Inner::Table { out, .. } => Some(out),
            Inner::Arrow(writer) => Some(writer.get_mut()),
            // Parquet is written at its end: row groups wait in the writer.
            Inner::Parquet(_) => None,
        }
    }
}

fn json_row(columns: &[Text<'_>], row: usize, out: &mut Vec<u8>) {
    out.push(b'{');
    for (index, column) in columns.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(column.json_name());
        out.push(b':');
        column.json(row, out);
    }
    out.push(b'}');
}

fn csv_row(columns: &[Text<'_>], row: usize, out: &mut Vec<u8>) {
    let start = out.len();
    for (index, column) in columns.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        column.csv(row, out);
    }
    // A single NULL would be an empty line, which readers skip.
    if out.len() == start && columns.len() == 1 {
        out.extend_from_slice(b"\"\"");
    }
    out.push(b'\n');
}
