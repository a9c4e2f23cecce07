//! SQL functions of our own.

use crate::event::user_key;
use crate::log::partitioner::partition;
use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, IntervalMonthDayNanoArray, StringArray};
use datafusion::arrow::datatypes::{
    DataType, Float64Type, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit,
};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use std::sync::Arc;

/// `unsigned_token(bigint) -> text`: a token as the unsigned number that Viber sent.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct UnsignedToken {
    signature: Signature,
}

impl Default for UnsignedToken {
    fn default() -> UnsignedToken {
        UnsignedToken { signature: Signature::exact(vec![DataType::Int64], Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for UnsignedToken {
    fn name(&self) -> &str {
        "unsigned_token"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let texts: Option<ArrayRef> = columns.first().map(|tokens| {
            let tokens = tokens.as_primitive::<Int64Type>().iter();
            let text = |token: i64| token.cast_unsigned().to_string();
            Arc::new(tokens.map(|token| token.map(text)).collect::<StringArray>()) as ArrayRef
        });
        // The signature lets through exactly one argument.
        let texts = texts.unwrap_or_else(|| Arc::new(StringArray::new_null(arguments.number_rows)));
        Ok(ColumnarValue::Array(texts))
    }
}

/// `slice_of(text, slices) -> bigint`: a number from 0 below `slices`, the same for the same text: what is too much to be
/// joined at once is joined slice by slice.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct SliceOf {
    signature: Signature,
}

impl Default for SliceOf {
    fn default() -> SliceOf {
        SliceOf { signature: Signature::exact(vec![DataType::Utf8, DataType::Int64], Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for SliceOf {
    fn name(&self) -> &str {
        "slice_of"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let [texts, slices] = columns.as_slice() else { return exec_err!("slice_of takes a text and a number") };
        let rows = texts.as_string::<i32>().iter().zip(slices.as_primitive::<Int64Type>()).map(|row| match row {
            (Some(text), Some(slices)) => match i32::try_from(slices) {
                Ok(slices @ 1..) => Ok(Some(i64::from(partition(text.as_bytes(), slices.unsigned_abs())))),
                _ => exec_err!("slice_of: the number of slices must be 1 to {}, but is {slices}", i32::MAX),
            },
            _ => Ok(None),
        });
        Ok(ColumnarValue::Array(Arc::new(rows.collect::<Result<Int64Array>>()?) as ArrayRef))
    }
}

/// `partition_of(account, user_id) -> bigint`: the partition of the log that has the user's events. Files of other partitions
/// are not opened where it is held to a number.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct PartitionOf {
    partitions: u32,
    signature: Signature,
}

impl PartitionOf {
    pub(super) const NAME: &str = "partition_of";

    /// The function for a log of so many.
    pub fn new(partitions: u32) -> PartitionOf {
        let signature = Signature::exact(vec![DataType::Utf8, DataType::Utf8], Volatility::Immutable);
        PartitionOf { partitions, signature }
    }
}

impl ScalarUDFImpl for PartitionOf {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let [accounts, users] = columns.as_slice() else {
            return exec_err!("partition_of takes an account and a user");
        };
        let of = |account, user| i64::from(partition(user_key(account, user).as_bytes(), self.partitions));
        let rows = accounts.as_string::<i32>().iter().zip(users.as_string::<i32>());
        let numbers: Int64Array = rows.map(|(account, user)| Some(of(account?, user?))).collect();
        Ok(ColumnarValue::Array(Arc::new(numbers) as ArrayRef))
    }
}

/// `interval_times(interval, double) -> interval`: what PostgreSQL has as `interval * number`. Parts of months and days go
/// down to smaller units, of 30 days and of 24 hours.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct IntervalTimes {
    signature: Signature,
}

impl Default for IntervalTimes {
    fn default() -> IntervalTimes {
        let arguments = vec![DataType::Interval(IntervalUnit::MonthDayNano), DataType::Float64];
        IntervalTimes { signature: Signature::exact(arguments, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for IntervalTimes {
    fn name(&self) -> &str {
        "interval_times"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Interval(IntervalUnit::MonthDayNano))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let [intervals, numbers] = columns.as_slice() else { return exec_err!("interval_times takes two values") };
        let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>();
        let numbers = numbers.as_primitive::<Float64Type>();
        let rows = intervals.iter().zip(numbers).map(|row| match row {
            (Some(interval), Some(number)) => times(interval, number).map(Some),
            _ => Ok(None),
        });
        Ok(ColumnarValue::Array(Arc::new(rows.collect::<Result<IntervalMonthDayNanoArray>>()?) as ArrayRef))
    }
}

fn times(interval: IntervalMonthDayNano, by: f64) -> Result<IntervalMonthDayNano> {
    // To the µs, as PostgreSQL has it: 0.3 months are 9 days.
    let rounded = |number: f64| (number * 1e6).round() / 1e6;
    let months = f64::from(interval.months) * by;
    let days = rounded(f64::from(interval.days) * by + rounded(months.fract()) * 30.0);
    let nanoseconds = interval.nanoseconds as f64 * by + rounded(days.fract()) * 86_400e9;
    let fits = |number: f64, most: f64| number.abs() < most;
    let is_interval =
        fits(months, f64::from(i32::MAX)) && fits(days, f64::from(i32::MAX)) && fits(nanoseconds, i64::MAX as f64);
    if !is_interval {
        return exec_err!("the interval times {by} is no interval");
    }
    Ok(IntervalMonthDayNano::new(months.trunc() as i32, days.trunc() as i32, nanoseconds.round() as i64))
}

/// `delivery_window() -> interval`: so long after a message receipts count for it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct DeliveryWindow {
    window: IntervalMonthDayNano,
    signature: Signature,
}

impl DeliveryWindow {
    /// The function that gives this many ms.
    pub fn new(ms: i64) -> DeliveryWindow {
        let window = IntervalMonthDayNano::new(0, 0, ms.saturating_mul(1_000_000));
        DeliveryWindow { window, signature: Signature::nullary(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for DeliveryWindow {
    fn name(&self) -> &str {
        "delivery_window"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Interval(IntervalUnit::MonthDayNano))
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(self.window))))
    }
}
