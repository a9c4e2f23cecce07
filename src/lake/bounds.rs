//! What is told of rows without reading them: the least and the greatest value of a column, how many are NULL. Engines skip
//! rows by it, so it must hold.

use super::{TableName, schema};
use arrow::array::{Array, ArrayRef, RecordBatch, Scalar, StringArray, UInt64Array};
use arrow::compute::cast;
use arrow::compute::kernels::cmp::{gt, lt};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::errors::ParquetError;
use serde_json::Value;
use std::ops::Range;
use std::sync::Arc;

/// What one place tells of the columns of some rows, and what these rows have shown of it.
pub(super) struct Bounds {
    /// Who tells it, as a plural.
    whose: String,
    columns: Vec<Bound>,
}

struct Bound {
    column: String,
    /// The rows it is told of.
    rows: Range<usize>,
    /// One value each.
    least: Option<ArrayRef>,
    most: Option<ArrayRef>,
    nulls: Option<u64>,
    found_nulls: u64,
    holds: bool,
}

impl Bounds {
    /// What the table's log tells of a file, in Delta's JSON; else what is wrong with that.
    pub fn of_log(name: TableName, stats: &str) -> Result<Self, String> {
        let told: Value =
            serde_json::from_str(stats).map_err(|error| format!("its statistics cannot be read: {error}"))?;
        let schema = schema::in_files(name);
        let columns = schema.fields().iter().map(|field| {
            let bound = |of: &str| value(&told[of][field.name()], field.data_type());
            let read = bound("minValues").zip(bound("maxValues"));
            let (least, most) =
                read.ok_or_else(|| format!("its statistics of {} are no values of that column", field.name()))?;
            let nulls = told["nullCount"][field.name()].as_u64();
            Ok(Bound::new(field.name(), 0..usize::MAX, least, most, nulls))
        });
        Ok(Self { whose: "its statistics".to_owned(), columns: columns.collect::<Result<_, String>>()? })
    }

    /// What a Parquet file tells of a row group, and of the pages in it.
    pub fn of_group(file: &ArrowReaderMetadata, group: usize) -> Result<[Self; 2], ParquetError> {
        let parquet = file.metadata();
        let rows = rows_of(file, group);
        let (mut whole, mut paged) = (Vec::new(), Vec::new());
        for field in file.schema().fields() {
            let column = field.name();
            let told = StatisticsConverter::try_new(column, file.schema(), file.parquet_schema())?
                .with_missing_null_counts_as_zero(false);
            let groups = || [parquet.row_group(group)];
            let (least, most) = (told.row_group_mins(groups())?, told.row_group_maxes(groups())?);
            let nulls = told.row_group_null_counts(groups())?;
            whole.push(Bound::new(column, 0..rows, one(&least, 0), one(&most, 0), number(&nulls, 0)));
            let (Some(index), Some(offsets)) = (parquet.column_index(), parquet.offset_index()) else { continue };
            let (least, most) =
                (told.data_page_mins(index, offsets, [&group])?, told.data_page_maxes(index, offsets, [&group])?);
            let nulls = told.data_page_null_counts(index, offsets, [&group])?;
            let pages = told.parquet_column_index().and_then(|at| Some(offsets.get(group)?.get(at)?.page_locations()));
            let starts: Vec<usize> = pages
                .into_iter()
                .flatten()
                .map(|page| usize::try_from(page.first_row_index).unwrap_or(usize::MAX))
                .collect();
            for (page, start) in starts.iter().enumerate() {
                let end = starts.get(page + 1).copied().unwrap_or(rows);
                paged.push(Bound::new(column, *start..end, one(&least, page), one(&most, page), number(&nulls, page)));
            }
        }
        let of_group = |what: &str| format!("the {what} of row group {group} in the file");
        Ok([
            Self { whose: of_group("statistics"), columns: whole },
            Self { whose: of_group("page statistics"), columns: paged },
        ])
    }

    /// Holds rows against it, of which the first is the `at`th of all it is told of.
    pub fn add(&mut self, at: usize, batch: &RecordBatch) -> Result<(), ArrowError> {
        for bound in &mut self.columns {
            let (start, end) = (bound.rows.start.max(at), bound.rows.end.min(at + batch.num_rows()));
            let Some(values) = batch.column_by_name(&bound.column).filter(|_| start < end) else { continue };
            bound.add(&values.slice(start - at, end - start))?;
        }
        Ok(())
    }

    /// What it tells and the rows do not, each column once.
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = Vec::new();
        for Bound { column, nulls, found_nulls, holds, .. } in &self.columns {
            if !holds {
                faults.push(format!("{column} lies outside of what {} say", self.whose));
            }
            if let Some(nulls) = nulls.filter(|nulls| nulls != found_nulls) {
                faults.push(format!("{column} is NULL in {found_nulls} rows, and {} say {nulls}", self.whose));
            }
        }
        faults.dedup();
        faults
    }
}

impl Bound {
    fn new(
        column: &str,
        rows: Range<usize>,
        least: Option<ArrayRef>,
        most: Option<ArrayRef>,
        nulls: Option<u64>,
    ) -> Self {
        Self { column: column.to_owned(), rows, least, most, nulls, found_nulls: 0, holds: true }
    }

    fn add(&mut self, values: &ArrayRef) -> Result<(), ArrowError> {
        self.found_nulls += values.null_count() as u64;
        if let Some(least) = &self.least {
            self.holds &= lt(values, &Scalar::new(least.clone()))?.true_count() == 0;
        }
        if let Some(most) = &self.most {
            self.holds &= gt(values, &Scalar::new(most.clone()))?.true_count() == 0;
        }
        Ok(())
    }
}

/// How many rows a row group has, as the file tells.
pub(super) fn rows_of(file: &ArrowReaderMetadata, group: usize) -> usize {
    usize::try_from(file.metadata().row_group(group).num_rows()).unwrap_or(0)
}

/// A value of an array, where it is one.
fn one(array: &ArrayRef, at: usize) -> Option<ArrayRef> {
    (at < array.len() && array.is_valid(at)).then(|| array.slice(at, 1))
}

fn number(array: &UInt64Array, at: usize) -> Option<u64> {
    (at < array.len() && array.is_valid(at)).then(|| array.value(at))
}

/// A value of Delta's statistics, `Some(None)` where none is told; `None` where it is none of the column's type.
fn value(told: &Value, kind: &DataType) -> Option<Option<ArrayRef>> {
    let text = match told {
        Value::Null => return Some(None),
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => told.to_string(),
        Value::Array(_) | Value::Object(_) => return None,
    };
    // Years that RFC 3339 cannot write.
    if matches!(kind, DataType::Timestamp(..)) && text.starts_with(['+', '-']) {
        return Some(None);
    }
    let text: ArrayRef = Arc::new(StringArray::from(vec![text]));
    cast(&text, kind).ok().filter(|value| value.is_valid(0)).map(Some)
}
