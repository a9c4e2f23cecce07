//! Leaves out files that cannot hold a wanted row, by what is known without opening them.

use crate::lake::{FileEntry, Span, TableName};
use datafusion::arrow::array::{ArrayRef, BooleanArray};
use datafusion::arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::catalog::Session;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, DFSchema, Result, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use std::collections::HashSet;

const HOUR_US: i64 = 3_600_000_000;

/// The bounds of one column in each file: the date of `events`, the hours of `sessions` and `messages`.
#[derive(Debug)]
pub(super) struct Bounds {
    column: &'static str,
    /// Least and greatest value; nulls where not known.
    ends: Vec<(ScalarValue, ScalarValue)>,
}

impl Bounds {
    pub(super) fn of(table: TableName, schema: &SchemaRef, files: &[FileEntry]) -> Bounds {
        let column = match table {
            TableName::Events => "date",
            TableName::Sessions => "opened_at",
            TableName::Messages => "sent_at",
        };
        let kind = schema.field_with_name(column).map(|field| field.data_type().clone()).unwrap_or(DataType::Null);
        let ends = files
            .iter()
            .map(|file| match (&kind, file.date, file.span.and_then(bounds_us)) {
                (DataType::Date32, date, _) => (ScalarValue::Date32(date), ScalarValue::Date32(date)),
                (DataType::Timestamp(TimeUnit::Microsecond, zone), _, ends) => {
                    let end = |us| ScalarValue::TimestampMicrosecond(us, zone.clone());
                    (end(ends.map(|(first, _)| first)), end(ends.map(|(_, last)| last)))
                }
                _ => (ScalarValue::Null, ScalarValue::Null),
            })
            .collect();
        Bounds { column, ends }
    }

    /// For each file whether it may hold a row that all of `filters` let through.
    pub(super) fn wanted(&self, state: &dyn Session, schema: &SchemaRef, filters: &[Expr]) -> Result<Vec<bool>> {
        let all = || Ok(vec![true; self.ends.len()]);
        // A filter over other columns says nothing here, and may not even be one the pruning can read.
        let bounded = |filter: &&Expr| {
            let columns = filter.column_refs();
            columns.len() == 1 && columns.iter().all(|column| column.name == self.column)
        };
        let Some(filter) = conjunction(filters.iter().filter(bounded).cloned()) else { return all() };
        let columns = DFSchema::try_from(schema.as_ref().clone())?;
        let filter = state.create_physical_expr(filter, &columns)?;
        match PruningPredicateBuilder::new().with_file_schema(schema.clone()).build(filter) {
            Some(predicate) => predicate.prune(self),
            None => all(),
        }
    }
}

fn bounds_us(span: Span) -> Option<(i64, i64)> {
    Some((span.start_hour.checked_mul(HOUR_US)?, span.end_hour.checked_mul(HOUR_US)?.checked_sub(1)?))
}

impl Bounds {
    fn column(&self, column: &Column, end: impl Fn(&(ScalarValue, ScalarValue)) -> &ScalarValue) -> Option<ArrayRef> {
        if column.name != self.column {
            return None;
        }
        ScalarValue::iter_to_array(self.ends.iter().map(|ends| end(ends).clone())).ok()
    }
}

impl PruningStatistics for Bounds {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |(first, _)| first)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |(_, last)| last)
    }

    fn num_containers(&self) -> usize {
        self.ends.len()
    }

    fn null_counts(&self, _column: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
