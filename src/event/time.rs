//! Times as text: RFC 3339 in, RFC 3339 in UTC out. Pure.

use chrono::{DateTime, SecondsFormat};

/// Reads RFC 3339 with any offset; finer parts than µs are cut off. `None` where it is none, or out of range.
pub fn parse_rfc3339_us(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros())
}

/// [`parse_rfc3339_us`], or a date, which is its first moment in UTC; else says what is wanted.
pub fn parse_time_us(text: &str) -> Result<i64, String> {
    let midnight_us = || parse_date_ms(text).map(|ms| ms.saturating_mul(1000));
    parse_rfc3339_us(text)
        .or_else(midnight_us)
        .ok_or_else(|| format!("`{text}` is no time like 2026-03-01T00:00:00Z, and no date like 2026-03-01"))
}

/// The first moment of a UTC date such as `2026-03-01`, in ms. `None` where it is none.
pub fn parse_date_ms(text: &str) -> Option<i64> {
    let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|_| text.len() == "2026-03-01".len())?;
    Some(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis())
}

/// RFC 3339 in UTC with `Z`: three fraction digits where it is whole ms, else six. A time outside the years that
/// RFC 3339 can write is given as the number of µs.
pub fn format_us(us: i64) -> String {
    let digits = if us % 1000 == 0 { SecondsFormat::Millis } else { SecondsFormat::Micros };
    match DateTime::from_timestamp_micros(us) {
        Some(time) => time.to_rfc3339_opts(digits, true),
        None => us.to_string(),
    }
}

/// [`format_us`] of ms.
pub fn format_ms(ms: i64) -> String {
    format_us(ms.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_its_first_moment() {
        assert_eq!(parse_time_us("2026-03-01").map(format_us), Ok("2026-03-01T00:00:00.000Z".to_owned()));
        assert_eq!(parse_time_us("2026-03-01T02:00:00+02:00"), parse_time_us("2026-03-01"));
        for text in ["", "March", "2026-02-30", "2026-3-1", "20260301T0", "2026-03-01T00:00:00"] {
            assert!(parse_time_us(text).is_err_and(|error| error.contains(&format!("`{text}`"))), "{text}");
        }
    }

    #[test]
    fn any_offset_is_read_and_utc_is_written() {
        let us = parse_rfc3339_us("2026-02-25T10:28:00.436+02:00").unwrap();
        assert_eq!(format_us(us), "2026-02-25T08:28:00.436Z");
        assert_eq!(format_us(us + 1), "2026-02-25T08:28:00.436001Z");
        assert_eq!(parse_rfc3339_us("2026-02-25T08:28:00.436001999Z"), Some(us + 1));
        assert_eq!(parse_rfc3339_us("2026-02-25 nonsense"), None);
        assert_eq!(format_us(i64::MAX), i64::MAX.to_string());
    }
}
