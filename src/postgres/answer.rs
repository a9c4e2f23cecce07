//! Answers of the engine as rows on the wire.

use super::cancel::Interrupt;
use super::error::{error, of_query, state};
use super::types::fields;
use super::values::Columns;
use crate::query::QueryStream;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use pgwire::api::portal::Format;
use pgwire::api::results::{FieldInfo, QueryResponse};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::data::DataRow;
use std::sync::Arc;

/// An answer of which some rows may have been fetched.
pub struct Cursor {
    pub schema: SchemaRef,
    answer: QueryStream,
    /// Found, and not fetched yet.
    rest: Option<RecordBatch>,
    /// Outlasts the transaction.
    pub holds: bool,
}

/// The rows cannot be written.
fn broken(failed: &ArrowError) -> PgWireError {
    error(state::INTERNAL, failed.to_string())
}

/// The whole answer, as it is found, with the columns that the client was told of where it was.
pub fn response(answer: QueryStream, told: Option<SchemaRef>, format: &Format, interrupt: Interrupt) -> QueryResponse {
    let schema = told.unwrap_or_else(|| answer.schema());
    let fields = Arc::new(fields(&schema, format));
    let columns = fields.clone();
    let batches = stream::try_unfold((answer, interrupt), |(mut answer, mut interrupt)| async move {
        let batch = interrupt.or(next(&mut answer)).await?;
        PgWireResult::Ok(batch.map(|batch| (batch, (answer, interrupt))))
    });
    let rows = batches.map_ok(move |batch| stream::iter(rows(&schema, &batch, &columns))).try_flatten();
    QueryResponse::new(fields, rows)
}

async fn next(answer: &mut QueryStream) -> PgWireResult<Option<RecordBatch>> {
    answer.next().await.transpose().map_err(|failed| of_query(&failed, "", None))
}

fn rows(
    schema: &SchemaRef,
    batch: &RecordBatch,
    fields: &[FieldInfo],
) -> impl Iterator<Item = PgWireResult<DataRow>> + Send + use<> {
    let (count, columns) = (batch.num_rows(), Columns::new(schema, batch, fields));
    let (columns, failed) = match columns {
        Ok(columns) => (Some(columns), None),
        Err(failed) => (None, Some(Err(broken(&failed)))),
    };
    let written = columns.into_iter().flat_map(move |columns| {
        (0..count).map(move |row| columns.row(row).map_err(|failed| broken(&failed))).collect::<Vec<_>>()
    });
    failed.into_iter().chain(written)
}

impl Cursor {
    pub fn new(answer: QueryStream, holds: bool) -> Self {
        Self { schema: answer.schema(), answer, rest: None, holds }
    }

    /// The next rows, all without a number; fewer at the end.
    pub async fn fetch(
        &mut self,
        most: Option<usize>,
        format: &Format,
        interrupt: &mut Interrupt,
    ) -> PgWireResult<(Vec<FieldInfo>, Vec<DataRow>)> {
        let fields = fields(&self.schema, format);
        let mut found = Vec::new();
        while most.is_none_or(|most| found.len() < most) {
            let batch = match self.rest.take() {
                Some(batch) => batch,
                None => match interrupt.or(next(&mut self.answer)).await? {
                    Some(batch) => batch,
                    None => break,
                },
            };
            let wanted = most.map_or(batch.num_rows(), |most| batch.num_rows().min(most - found.len()));
            if wanted < batch.num_rows() {
                self.rest = Some(batch.slice(wanted, batch.num_rows() - wanted));
            }
            for row in rows(&self.schema, &batch.slice(0, wanted), &fields) {
                found.push(row?);
            }
        }
        Ok((fields, found))
    }
}

/// Rows that are there.
pub fn known(fields: Vec<FieldInfo>, rows: Vec<DataRow>, tag: &str) -> QueryResponse {
    let rows: std::pin::Pin<Box<dyn Stream<Item = PgWireResult<DataRow>> + Send>> =
        Box::pin(stream::iter(rows.into_iter().map(Ok)));
    let mut response = QueryResponse::new(Arc::new(fields), rows);
    response.set_command_tag(tag);
    response
}
