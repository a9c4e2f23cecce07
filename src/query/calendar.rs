//! Hours, days and months of a time zone, as functions of SQL.
//!
//! `date_trunc` counts in nanoseconds, and so refuses a query for one row from before 1677 or after 2262. These take all
//! times that the tables can hold.

use chrono::{DateTime, Datelike, Offset, TimeZone, Utc};
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{AsArray, Date32Array, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Date32Type, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use std::sync::Arc;

const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3600 * SECOND_US;
const DAY_US: i64 = 24 * HOUR_US;
const UTC: &str = "UTC";

/// What a [`Calendar`] function gives. None of them ever falls while time rises, but where clocks are set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// `local_hour(timestamp, zone) -> timestamp`: when the hour began, by the clocks of the zone.
    Hour,
    /// `local_date(timestamp, zone) -> date`: the day, by the clocks of the zone.
    Date,
    /// `month_of(date) -> date`: the first day of the month.
    Month,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 3] = [Part::Hour, Part::Date, Part::Month];

    /// The function's name.
    pub fn name(self) -> &'static str {
        match self {
            Part::Hour => "local_hour",
            Part::Date => "local_date",
            Part::Month => "month_of",
        }
    }
}

/// A function of the calendar.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Calendar {
    part: Part,
    signature: Signature,
}

impl Calendar {
    /// The function that gives `part`.
    pub fn new(part: Part) -> Calendar {
        let arguments = match part {
            Part::Hour | Part::Date => vec![utc_timestamp(), DataType::Utf8],
            Part::Month => vec![DataType::Date32],
        };
        Calendar { part, signature: Signature::exact(arguments, Volatility::Immutable) }
    }
}

/// A time zone by its name in the IANA database, or as an offset such as `+03:00`.
pub fn zone(name: &str) -> Option<Tz> {
    name.parse().ok()
}

/// The type of the tables' timestamps.
pub fn utc_timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()))
}

impl ScalarUDFImpl for Calendar {
    fn name(&self) -> &str {
        self.part.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(match self.part {
            Part::Hour => utc_timestamp(),
            Part::Date | Part::Month => DataType::Date32,
        })
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [times, rest @ ..] = arguments.args.as_slice() else {
            return Err(DataFusionError::Internal(format!("{} without arguments", self.part.name())));
        };
        let times = times.to_array(arguments.number_rows)?;
        if self.part == Part::Month {
            let days = times.as_primitive::<Date32Type>().iter();
            return Ok(ColumnarValue::Array(Arc::new(days.map(|day| day.and_then(month_of)).collect::<Date32Array>())));
        }
        let zone = match rest {
            [ColumnarValue::Scalar(ScalarValue::Utf8(Some(name)))] => {
                zone(name).ok_or_else(|| DataFusionError::Plan(format!("there is no time zone {name:?}")))?
            }
            _ => return Err(DataFusionError::Plan(format!("{} takes the time zone as a literal", self.part.name()))),
        };
        let times = times.as_primitive::<TimestampMicrosecondType>().iter();
        Ok(ColumnarValue::Array(match self.part {
            Part::Hour => {
                let hours = times.map(|time| time.and_then(|us| local_hour(us, zone)));
                Arc::new(hours.collect::<TimestampMicrosecondArray>().with_timezone(UTC))
            }
            Part::Date | Part::Month => {
                let dates = times.map(|time| time.and_then(|us| local_date(us, zone)));
                Arc::new(dates.collect::<Date32Array>())
            }
        }))
    }
}

/// `None` where the calendar does not reach.
fn offset_us(us: i64, zone: Tz) -> Option<i64> {
    let time: DateTime<Utc> = DateTime::from_timestamp_micros(us)?;
    Some(i64::from(zone.offset_from_utc_datetime(&time.naive_utc()).fix().local_minus_utc()) * SECOND_US)
}

fn local_hour(us: i64, zone: Tz) -> Option<i64> {
    let offset_us = offset_us(us, zone)?;
    Some(us - (us + offset_us).rem_euclid(HOUR_US))
}

fn local_date(us: i64, zone: Tz) -> Option<i32> {
    let offset_us = offset_us(us, zone)?;
    i32::try_from((us + offset_us).div_euclid(DAY_US)).ok()
}

fn month_of(day: i32) -> Option<i32> {
    let date = Date32Type::to_naive_date_opt(day)?;
    day.checked_sub(i32::try_from(date.day0()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(text: &str) -> i64 {
        crate::event::time::parse_rfc3339_us(text).unwrap()
    }

    #[test]
    fn hours_and_days_are_those_of_the_zone() {
        let (utc, kyiv, kolkata) = (zone("UTC").unwrap(), zone("Europe/Kyiv").unwrap(), zone("Asia/Kolkata").unwrap());
        let day =
            |text: &str, zone| Date32Type::to_naive_date_opt(local_date(us(text), zone).unwrap()).unwrap().to_string();
        assert_eq!(day("2026-03-01T22:30:00Z", utc), "2026-03-01");
        assert_eq!(day("2026-03-01T22:30:00Z", kyiv), "2026-03-02");
        assert_eq!(local_hour(us("2026-03-01T22:29:59Z"), kolkata), Some(us("2026-03-01T21:30:00Z")));
        // In the night of 2026-10-25 the hour from three to four comes twice in Kyiv.
        assert_eq!(local_hour(us("2026-10-25T00:59:00Z"), kyiv), Some(us("2026-10-25T00:00:00Z")));
        assert_eq!(local_hour(us("2026-10-25T01:01:00Z"), kyiv), Some(us("2026-10-25T01:00:00Z")));
        assert_eq!(day("2026-10-25T21:30:00Z", kyiv), "2026-10-25");
        assert!(zone("Europe/Nowhere").is_none());
    }

    #[test]
    fn far_times_have_hours_days_and_months_too() {
        let utc = zone("UTC").unwrap();
        assert_eq!(local_hour(us("0001-01-01T10:59:00Z"), utc), Some(us("0001-01-01T10:00:00Z")));
        assert_eq!(local_date(-1, utc), Some(-1));
        assert_eq!(local_date(us("9999-12-31T23:00:00Z"), utc).and_then(month_of), Some(2_932_896 - 30));
        assert_eq!(local_date(i64::MAX, utc), None);
        assert_eq!((month_of(31), month_of(-1)), (Some(31), Some(-31)));
    }
}
