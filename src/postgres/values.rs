//! Values as PostgreSQL writes them, as text and in binary.

use super::numeric;
use super::types::{count, plain_type};
use crate::query::is_token;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    IntervalMonthDayNanoType, IntervalUnit, Schema, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::{BufMut, BytesMut};
use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, Timelike};
use pgwire::api::results::{FieldFormat, FieldInfo};
use pgwire::messages::data::DataRow;
use std::fmt::Write as _;
use std::sync::Arc;

/// 2000-01-01, from which PostgreSQL counts, in days and µs since the epoch.
const DAYS_2000: i32 = 10_957;
const US_2000: i64 = DAYS_2000 as i64 * 86_400_000_000;

/// The columns of a batch, each in one of the few types that are written here.
pub struct Columns(Vec<Column>);

struct Column {
    values: ArrayRef,
    format: FieldFormat,
}

impl Columns {
    /// Of a batch of an answer, to be written as `fields` say, which describe `schema`. Values of a parameter may have given it
    /// columns of other types; numeric ones may have other digits.
    pub fn new(schema: &Schema, batch: &RecordBatch, fields: &[FieldInfo]) -> Result<Self, ArrowError> {
        let columns = schema.fields().iter().zip(batch.columns()).zip(fields);
        let column = |((field, values), info): ((&Arc<Field>, &ArrayRef), &FieldInfo)| {
            let (told, found) = (field.data_type(), values.data_type());
            let as_told = match told == found || (told.is_decimal() && found.is_decimal()) {
                true => values.clone(),
                false if told.is_null() => strict(values, &DataType::Utf8)?,
                false => strict(values, told)?,
            };
            let values = if is_token(field) { unsigned(&as_told)? } else { plain(&as_told)? };
            Ok(Column { values, format: info.format() })
        };
        Ok(Self(columns.map(column).collect::<Result<_, ArrowError>>()?))
    }

    /// A row of it.
    pub fn row(&self, row: usize) -> Result<DataRow, ArrowError> {
        let mut buffer = BytesMut::with_capacity(self.0.len() * 16);
        for column in &self.0 {
            put(&column.values, row, column.format, &mut buffer)?;
        }
        Ok(DataRow::new(buffer, count(self.0.len())))
    }
}

/// A value with its length before it.
fn put(values: &dyn Array, row: usize, format: FieldFormat, buffer: &mut BytesMut) -> Result<(), ArrowError> {
    if values.is_null(row) || values.data_type() == &DataType::Null {
        buffer.put_i32(-1);
        return Ok(());
    }
    let start = buffer.len();
    buffer.put_i32(0);
    match format {
        FieldFormat::Binary => put_binary(values, row, buffer)?,
        FieldFormat::Text => buffer.put_slice(text(values, row)?.as_bytes()),
    }
    // No value is nearly as long as that.
    let length = (buffer.len() - start - 4) as i32;
    buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Bit patterns of tokens as the numbers that they are.
fn unsigned(values: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if values.data_type() == &DataType::UInt64 {
        return plain(values);
    }
    let tokens = values.as_primitive::<Int64Type>();
    let tokens = tokens.unary::<_, Decimal128Type>(|token| i128::from(token.cast_unsigned()));
    Ok(Arc::new(tokens.with_precision_and_scale(20, 0)?))
}

/// One representation for each type of PostgreSQL.
fn plain(values: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let wanted = match values.data_type() {
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        DataType::Date64 => DataType::Date32,
        DataType::Timestamp(unit, zone) if *unit != TimeUnit::Microsecond => {
            DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
        }
        DataType::Time32(_) | DataType::Time64(TimeUnit::Nanosecond) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Duration(_) | DataType::Interval(IntervalUnit::YearMonth | IntervalUnit::DayTime) => {
            DataType::Interval(IntervalUnit::MonthDayNano)
        }
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Dictionary(_, value) => return plain(&strict(values, value)?),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeList(item) | DataType::FixedSizeList(item, _) => DataType::List(item.clone()),
        _ => return Ok(values.clone()),
    };
    strict(values, &wanted)
}

fn strict(values: &ArrayRef, wanted: &DataType) -> Result<ArrayRef, ArrowError> {
    cast_with_options(values, wanted, &CastOptions { safe: false, ..CastOptions::default() })
}

/// A value that is not NULL, of a [`plain`] type.
fn put_binary(values: &dyn Array, row: usize, out: &mut BytesMut) -> Result<(), ArrowError> {
    match values.data_type() {
        DataType::Boolean => out.put_u8(u8::from(values.as_boolean().value(row))),
        DataType::Int16 => out.put_i16(values.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => out.put_i32(values.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => out.put_i64(values.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => out.put_f32(values.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => out.put_f64(values.as_primitive::<Float64Type>().value(row)),
        DataType::Date32 => {
            out.put_i32(values.as_primitive::<Date32Type>().value(row).saturating_sub(DAYS_2000));
        }
        DataType::Timestamp(..) => {
            out.put_i64(values.as_primitive::<TimestampMicrosecondType>().value(row).saturating_sub(US_2000));
        }
        DataType::Time64(_) => out.put_i64(values.as_primitive::<Time64MicrosecondType>().value(row)),
        DataType::Interval(_) => {
            let interval = values.as_primitive::<IntervalMonthDayNanoType>().value(row);
            out.put_i64(interval.nanoseconds / 1000);
            out.put_i32(interval.days);
            out.put_i32(interval.months);
        }
        DataType::Binary => out.put_slice(values.as_binary::<i32>().value(row)),
        DataType::List(_) => put_list(&values.as_list::<i32>().value(row), out)?,
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            numeric::put_binary(&text(values, row)?, out);
        }
        _ => out.put_slice(text(values, row)?.as_bytes()),
    }
    Ok(())
}

fn put_list(items: &ArrayRef, out: &mut BytesMut) -> Result<(), ArrowError> {
    let items = plain(items)?;
    out.put_i32(i32::from(!items.is_empty()));
    out.put_i32(i32::from(items.null_count() > 0));
    out.put_u32(plain_type(items.data_type()).oid());
    if !items.is_empty() {
        out.put_i32(i32::try_from(items.len()).unwrap_or(i32::MAX));
        out.put_i32(1);
    }
    (0..items.len()).try_for_each(|row| put(&items, row, FieldFormat::Binary, out))
}

/// A value that is not NULL, of a [`plain`] type.
pub fn text(values: &dyn Array, row: usize) -> Result<String, ArrowError> {
    Ok(match values.data_type() {
        DataType::Boolean => if values.as_boolean().value(row) { "t" } else { "f" }.to_owned(),
        DataType::Utf8 => values.as_string::<i32>().value(row).to_owned(),
        DataType::Float32 => {
            float(values.as_primitive::<Float32Type>().value(row).into(), |value| (value as f32).to_string())
        }
        DataType::Float64 => float(values.as_primitive::<Float64Type>().value(row), |value| value.to_string()),
        DataType::Timestamp(_, zone) => {
            timestamp(values.as_primitive::<TimestampMicrosecondType>().value(row), zone.is_some())
        }
        DataType::Time64(_) => time(values.as_primitive::<Time64MicrosecondType>().value(row)),
        DataType::Interval(_) => {
            let interval = values.as_primitive::<IntervalMonthDayNanoType>().value(row);
            interval_text(interval.months, interval.days, interval.nanoseconds / 1000)
        }
        DataType::Binary => format!("\\x{}", hex::encode(values.as_binary::<i32>().value(row))),
        DataType::List(_) => list_text(&values.as_list::<i32>().value(row))?,
        _ => ArrayFormatter::try_new(values, &FormatOptions::new())?.value(row).try_to_string()?,
    })
}

fn float(value: f64, finite: impl Fn(f64) -> String) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        value if value.is_infinite() => if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        value => finite(value),
    }
}

fn timestamp(us: i64, zoned: bool) -> String {
    let Some(time) = DateTime::from_timestamp_micros(us) else { return us.to_string() };
    let (date, clock) = (time.date_naive(), time.time());
    let mut text = String::with_capacity(32);
    put_date(date, &mut text);
    text.push(' ');
    put_clock(clock, &mut text);
    if zoned {
        text.push_str("+00");
    }
    text
}

fn put_date(date: NaiveDate, text: &mut String) {
    // Writing into a string fails for no reason.
    let _ = write!(text, "{:04}-{:02}-{:02}", date.year(), date.month(), date.day());
}

/// Without the zeros at the end of a fraction.
fn put_clock(clock: NaiveTime, text: &mut String) {
    // Writing into a string fails for no reason.
    let _ = write!(text, "{:02}:{:02}:{:02}", clock.hour(), clock.minute(), clock.second());
    put_fraction(clock.nanosecond() / 1000, text);
}

fn put_fraction(us: u32, text: &mut String) {
    if us > 0 {
        text.push('.');
        text.push_str(format!("{us:06}").trim_end_matches('0'));
    }
}

fn time(us: i64) -> String {
    let mut text = String::new();
    let seconds = u32::try_from(us / 1_000_000).ok();
    let nanoseconds = u32::try_from(us.rem_euclid(1_000_000) * 1000).unwrap_or_default();
    match seconds.and_then(|seconds| NaiveTime::from_num_seconds_from_midnight_opt(seconds, nanoseconds)) {
        Some(clock) => put_clock(clock, &mut text),
        None => text = us.to_string(),
    }
    text
}

/// In the style `postgres`.
fn interval_text(months: i32, days: i32, us: i64) -> String {
    let mut parts = Vec::new();
    for (count, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if count != 0 {
            parts.push(format!("{count} {unit}{}", if count == 1 { "" } else { "s" }));
        }
    }
    if us != 0 || parts.is_empty() {
        let all = us.unsigned_abs();
        let (seconds, rest) = (all / 1_000_000, (all % 1_000_000) as u32);
        let sign = if us < 0 { "-" } else { "" };
        let mut clock = format!("{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        put_fraction(rest, &mut clock);
        parts.push(clock);
    }
    parts.join(" ")
}

fn list_text(items: &ArrayRef) -> Result<String, ArrowError> {
    let items = plain(items)?;
    let mut all = String::from("{");
    for row in 0..items.len() {
        if row > 0 {
            all.push(',');
        }
        if items.is_null(row) {
            all.push_str("NULL");
            continue;
        }
        let item = text(&items, row)?;
        let is_nested = matches!(items.data_type(), DataType::List(_));
        let needs_quotes = item.is_empty()
            || item.eq_ignore_ascii_case("null")
            || item.contains(|c: char| c.is_whitespace() || matches!(c, '{' | '}' | ',' | '"' | '\\'));
        if needs_quotes && !is_nested {
            let _ = write!(all, "\"{}\"", item.replace('\\', "\\\\").replace('"', "\\\""));
        } else {
            all.push_str(&item);
        }
    }
    all.push('}');
    Ok(all)
}

#[cfg(test)]
mod tests;
