//! Durations and sizes as the config writes them: `"10s"`, `"3d"`, `"512MiB"`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::time::Duration;

/// A length of time, written as a whole number and a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes, written as a whole number and a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const SPAN_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
/// Longer than anything that makes sense, and safe to add to any time in µs.
const MAX_MS: u64 = 100 * 365 * 86_400_000;

impl Span {
    /// Of so many seconds.
    pub const fn seconds(n: u64) -> Self {
        Span(Duration::from_secs(n))
    }

    /// Of so many days.
    pub const fn days(n: u64) -> Self {
        Span(Duration::from_secs(n * 86_400))
    }

    /// In milliseconds.
    pub fn as_ms(self) -> i64 {
        // No span is longer than 100 years.
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }

    /// Reads `"10s"`.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse(text, &SPAN_UNITS)
            .filter(|ms| *ms <= MAX_MS)
            .map(|ms| Span(Duration::from_millis(ms)))
            .ok_or_else(|| format!("`{text}` is no duration such as \"10s\", \"500ms\", \"5m\", \"24h\" or \"3d\""))
    }
}

impl Size {
    /// Of so many MiB.
    pub const fn mib(n: u64) -> Self {
        Size(n << 20)
    }

    /// Reads `"512MiB"`.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse(text, &SIZE_UNITS)
            .map(Size)
            .ok_or_else(|| format!("`{text}` is no size such as \"64KiB\", \"512MiB\" or \"2GiB\""))
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (_, factor) = units.iter().find(|(unit, _)| *unit == &text[split..])?;
    text[..split].parse::<u64>().ok()?.checked_mul(*factor)
}

fn write(f: &mut fmt::Formatter<'_>, n: u64, units: &[(&str, u64)]) -> fmt::Result {
    let whole = units.iter().rev().find(|(_, factor)| n != 0 && n.is_multiple_of(*factor));
    let (unit, factor) = whole.unwrap_or(if units[0].0 == "ms" { &units[1] } else { &units[0] });
    write!(f, "{}{unit}", n / factor)
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &SPAN_UNITS)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0, &SIZE_UNITS)
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$type>::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}
as_text!(Span);
as_text!(Size);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_durations() {
        for (text, ms) in [("0s", 0), ("10s", 10_000), ("500ms", 500), ("5m", 300_000), ("24h", 86_400_000)] {
            assert_eq!(Span::parse(text), Ok(Span(Duration::from_millis(ms))), "{text}");
        }
        assert_eq!(Span::parse("24h").map(|span| span.to_string()), Ok("1d".into()));
        assert_eq!(Span::seconds(0).to_string(), "0s");
        for text in ["", "10", "s", "-1s", "1.5h", "10 s", "10sec", "99999999999d", "18446744073709551615d"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_and_writes_sizes() {
        assert_eq!(Size::parse("512MiB"), Ok(Size::mib(512)));
        assert_eq!(Size::mib(1024).to_string(), "1GiB");
        assert_eq!(Size(0).to_string(), "0B");
        for text in ["512", "512mb", "1TiB", "99999999999999GiB"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
    }
}
