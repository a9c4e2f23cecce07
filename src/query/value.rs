//! Single values as text: what JSON, CSV and tables for people say of them.

use crate::event::shown::harmless;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, downcast_integer_array};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Field, Float32Type, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit,
    TimestampMicrosecondType, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, Datelike, Timelike};
use std::io::Write;
use std::sync::Arc;

/// A column of a batch, ready to be written value by value.
pub(super) struct Text<'a> {
    name: Vec<u8>,
    column: ArrayRef,
    token: bool,
    /// For types that are no concern of ours: intervals, binary.
    other: Option<ArrayFormatter<'a>>,
}

const OPTIONS: FormatOptions<'static> = FormatOptions::new();

/// The columns of `batch`.
pub(super) fn columns<'a>(schema: &SchemaRef, batch: &'a RecordBatch) -> Result<Vec<Text<'a>>, ArrowError> {
    schema.fields().iter().zip(batch.columns()).map(|(field, column)| Text::new(field, column)).collect()
}

/// Whether a column of this name holds the bit patterns of unsigned tokens.
pub fn is_token(field: &Field) -> bool {
    field.name().ends_with("_token") && matches!(field.data_type(), DataType::Int64 | DataType::UInt64)
}

impl<'a> Text<'a> {
    fn new(field: &Field, column: &'a ArrayRef) -> Result<Text<'a>, ArrowError> {
        let mut name = Vec::new();
        json_text(field.name(), &mut name);
        let plain = plain(column)?;
        let other = if known(plain.data_type()) { None } else { Some(ArrayFormatter::try_new(column, &OPTIONS)?) };
        Ok(Text { name, column: plain, token: is_token(field), other })
    }

    /// The name as a JSON string.
    pub(super) fn json_name(&self) -> &[u8] {
        &self.name
    }

    /// The value as JSON.
    pub(super) fn json(&self, row: usize, out: &mut Vec<u8>) {
        if self.column.is_null(row) {
            return out.extend_from_slice(b"null");
        }
        match &self.other {
            Some(other) => json_text(&other.value(row).to_string(), out),
            None => json_value(&self.column, row, self.token, out),
        }
    }

    /// The value as a field of CSV.
    pub(super) fn csv(&self, row: usize, out: &mut Vec<u8>) {
        if self.column.is_null(row) {
            return;
        }
        if let Some(other) = &self.other {
            return csv_text(&other.value(row).to_string(), out);
        }
        if let DataType::Utf8 = self.column.data_type() {
            return csv_text(self.column.as_string::<i32>().value(row), out);
        }
        let mut json = Vec::new();
        json_value(&self.column, row, self.token, &mut json);
        let nested = self.column.data_type().is_nested();
        let text = String::from_utf8_lossy(&json);
        // Numbers, and texts without anything to escape in them: times, decimals, tokens.
        csv_text(if nested { &text } else { text.trim_matches('"') }, out);
    }
}

/// One representation per kind of value: text as Utf8, times as microseconds, without dictionaries and views.
fn plain(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match column.data_type() {
        DataType::LargeUtf8 | DataType::Utf8View => cast(column, &DataType::Utf8),
        DataType::Dictionary(_, value) => plain(&cast(column, value)?),
        DataType::Timestamp(TimeUnit::Microsecond, _) => Ok(column.clone()),
        DataType::Timestamp(_, zone) => cast(column, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone())),
        DataType::Date64 => cast(column, &DataType::Date32),
        DataType::Float16 => cast(column, &DataType::Float32),
        _ => Ok(column.clone()),
    }
}

fn known(kind: &DataType) -> bool {
    match kind {
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => true,
        DataType::Struct(_) | DataType::Null | DataType::Boolean | DataType::Utf8 => true,
        DataType::Float32 | DataType::Float64 | DataType::Date32 | DataType::Timestamp(TimeUnit::Microsecond, _) => {
            true
        }
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => true,
        kind => kind.is_integer(),
    }
}

/// A value of a [`known`] type, not NULL.
fn json_value(column: &dyn Array, row: usize, token: bool, out: &mut Vec<u8>) {
    match column.data_type() {
        DataType::Boolean => out.extend_from_slice(if column.as_boolean().value(row) { b"true" } else { b"false" }),
        DataType::Utf8 => json_text(column.as_string::<i32>().value(row), out),
        DataType::Int64 if token => {
            put(out, format_args!("\"{}\"", column.as_primitive::<Int64Type>().value(row).cast_unsigned()));
        }
        DataType::UInt64 if token => put(out, format_args!("\"{}\"", column.as_primitive::<UInt64Type>().value(row))),
        DataType::Float32 => json_float(f64::from(column.as_primitive::<Float32Type>().value(row)), out),
        DataType::Float64 => json_float(column.as_primitive::<Float64Type>().value(row), out),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let us = column.as_primitive::<TimestampMicrosecondType>().value(row);
            put(out, format_args!("\"{}\"", rfc3339(us)));
        }
        DataType::Date32 => match column.as_primitive::<Date32Type>().value_as_date(row) {
            Some(date) => put(out, format_args!("\"{}\"", date.format("%Y-%m-%d"))),
            None => out.extend_from_slice(b"null"),
        },
        DataType::List(field) => json_list(field, &column.as_list::<i32>().value(row), out),
        DataType::LargeList(field) => json_list(field, &column.as_list::<i64>().value(row), out),
        DataType::FixedSizeList(field, _) => json_list(field, &column.as_fixed_size_list().value(row), out),
        DataType::Struct(fields) => {
            out.push(b'{');
            for (index, (field, column)) in fields.iter().zip(column.as_struct().columns()).enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                json_text(field.name(), out);
                out.push(b':');
                json_nested(field, column, row, out);
            }
            out.push(b'}');
        }
        kind if kind.is_integer() => downcast_integer_array!(
            column => put(out, format_args!("{}", column.value(row))),
            _ => out.extend_from_slice(b"null")
        ),
        // Decimals as strings: a number would lose digits in most readers. NULL columns have no other values.
        _ => json_formatted(column, row, out),
    }
}

fn json_list(field: &Field, items: &ArrayRef, out: &mut Vec<u8>) {
    out.push(b'[');
    for row in 0..items.len() {
        if row > 0 {
            out.push(b',');
        }
        json_nested(field, items, row, out);
    }
    out.push(b']');
}

fn json_nested(field: &Field, column: &ArrayRef, row: usize, out: &mut Vec<u8>) {
    let one = column.slice(row, 1);
    match plain(&one) {
        Ok(one) if one.is_null(0) => out.extend_from_slice(b"null"),
        Ok(one) if known(one.data_type()) => json_value(&one, 0, is_token(field), out),
        _ => json_formatted(&one, 0, out),
    }
}

fn json_formatted(column: &dyn Array, row: usize, out: &mut Vec<u8>) {
    match ArrayFormatter::try_new(column, &OPTIONS) {
        Ok(formatter) => json_text(&formatter.value(row).to_string(), out),
        Err(_) => out.extend_from_slice(b"null"),
    }
}

/// JSON has no infinities and no NaN.
fn json_float(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() { put(out, format_args!("{value:?}")) } else { out.extend_from_slice(b"null") }
}

fn json_text(text: &str, out: &mut Vec<u8>) {
    // Writing a str into a Vec fails for no reason.
    serde_json::to_writer(out, text).ok();
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing into a Vec fails for no reason.
    out.write_fmt(text).ok();
}

/// A field of CSV, quoted where it must be and when it is empty, for nothing at all is NULL.
pub(super) fn csv_text(text: &str, out: &mut Vec<u8>) {
    let plain = !text.is_empty() && !text.contains(['"', ',', '\n', '\r']) && text.trim().len() == text.len();
    if plain {
        return out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    out.push(b'"');
}

/// RFC 3339 in UTC with 3 fraction digits, 6 where there are microseconds.
pub(super) fn rfc3339(us: i64) -> String {
    let Some(time) = DateTime::from_timestamp_micros(us) else { return us.to_string() };
    let (year, month, day) = (time.year(), time.month(), time.day());
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    let fraction = us.rem_euclid(1_000_000);
    let head = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if fraction % 1000 == 0 { format!("{head}.{:03}Z", fraction / 1000) } else { format!("{head}.{fraction:06}Z") }
}

/// The batch with tokens and times as people are to read them, and nothing in texts that would move a cursor.
pub(super) fn readable(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        let column = plain(column)?;
        let texts: Option<StringArray> = match column.data_type() {
            DataType::Int64 if is_token(field) => {
                let tokens = column.as_primitive::<Int64Type>().iter();
                Some(tokens.map(|token| token.map(|token| token.cast_unsigned().to_string())).collect())
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                let times = column.as_primitive::<TimestampMicrosecondType>().iter();
                Some(times.map(|time| time.map(rfc3339)).collect())
            }
            DataType::Utf8 => Some(column.as_string::<i32>().iter().map(|text| text.map(harmless)).collect()),
            _ => None,
        };
        let column = texts.map_or(column, |texts| Arc::new(texts) as ArrayRef);
        fields.push(Field::new(harmless(field.name()), column.data_type().clone(), true));
        columns.push(column);
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}
