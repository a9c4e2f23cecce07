//! How new the rows of an answer are.

use super::value::rfc3339;
use std::collections::BTreeSet;

/// The header of an answer with all rows.
pub const COMPLETE: &str = "complete";

/// Up to when an answer has all rows: everything that was appended before the query came, but for partitions whose
/// projector could not be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Log partitions of which only what is committed to the tables was seen.
    pub behind: BTreeSet<u32>,
    /// When the oldest of their newest committed records was appended, in µs; `None` where one has none yet.
    pub until_us: Option<i64>,
}

impl Freshness {
    /// Whether all rows are there.
    pub fn is_complete(&self) -> bool {
        self.behind.is_empty()
    }

    /// As the value of a header: a dictionary of RFC 8941. `complete`, or
    /// `complete=?0, behind=(0 4);until="2026-03-01T10:00:00.000Z"`.
    pub fn header(&self) -> String {
        if self.is_complete() {
            return COMPLETE.to_owned();
        }
        let partitions: Vec<String> = self.behind.iter().map(u32::to_string).collect();
        let until = self.until_us.map_or(String::new(), |us| format!(";until=\"{}\"", rfc3339(us)));
        format!("complete=?0, behind=({}){until}", partitions.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_what_is_older() {
        assert_eq!(Freshness::default().header(), "complete");
        let behind = Freshness { behind: BTreeSet::from([4, 0]), until_us: Some(1_772_359_200_000_000) };
        assert_eq!(behind.header(), r#"complete=?0, behind=(0 4);until="2026-03-01T10:00:00.000Z""#);
        assert_eq!(Freshness { until_us: None, ..behind }.header(), "complete=?0, behind=(0 4)");
    }
}
