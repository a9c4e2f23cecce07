//! What a verification tells: how far it is, what it found, and what to do about it. Pure.

use crate::lake::TableName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What is told while it runs, a line each; the last one is `Done`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    Progress(Progress),
    Finding(Finding),
    /// A record that came too late to be folded in: no error.
    TooLate(TooLate),
    Done(Summary),
    /// It could not be brought to its end.
    Failed(String),
}

/// How far it is: rows of all steps together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// A record that changed no row because it came too late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TooLate {
    pub partition: u32,
    pub offset: u64,
    pub event_id: String,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Finding {
    /// The tables could not be brought up to date, so rows were not compared.
    Stalled { error: String },
    /// A file that is not what its table's log says of it.
    File { table: String, path: String, fault: String },
    /// Records of the log that are not archived, from the first offset to the last.
    Missing { partition: u32, first: u64, last: u64 },
    /// Records that are archived more than once.
    Repeated { partition: u32, first: u64, last: u64 },
    /// Archived records that the log does not have, though it holds what lies around them.
    Unknown { partition: u32, first: u64, last: u64 },
    /// An archived record that says something else than the log (or than its own data, where the log no longer has it).
    Record { partition: u32, offset: u64, columns: Vec<String> },
    /// A day of a table whose rows are not what the archive folds to.
    Day(Day),
    /// One of the rows of such a day.
    Row(Row),
}

/// Rows of one table, log partition and UTC day (of `opened_at` or `sent_at`), as they are and as they must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Day {
    pub table: String,
    pub partition: u32,
    /// `2026-03-01`.
    pub date: String,
    pub rows: Side<u64>,
    /// Hex of the sum of the rows' hashes: the order of rows does not matter.
    pub digest: Side<String>,
    pub missing: u64,
    pub surplus: u64,
    pub twice: u64,
    pub changed: u64,
}

/// What the table has, and what the archive folds to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side<T> {
    pub table: T,
    pub fold: T,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub table: String,
    pub account: String,
    pub user_id: String,
    /// `session_id`, or the token in decimal.
    pub id: String,
    pub difference: Difference,
    /// What differs, by column; empty but for changed rows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, Side<Option<String>>>,
}

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The archive folds to it, the table has none.
    Missing,
    /// The table has it, the archive does not fold to it.
    Surplus,
    /// The table has more than one.
    Twice,
    Changed,
}

/// What was looked at, and how it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// By name.
    pub tables: BTreeMap<String, TableSummary>,
    /// Records of the log that were held against the archive.
    pub log_records: u64,
    /// Not folded in: came too late.
    pub too_late: u64,
    /// Log partitions that other processes fold, which have to be asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<u32>,
    /// All findings, also those beyond what was told one by one.
    pub findings: u64,
}

/// Of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSummary {
    pub version: u64,
    pub files: u64,
    pub rows: u64,
    /// Rows compared with the fold; of `events`, with the log or their own data.
    pub compared: u64,
    pub findings: u64,
}

impl Summary {
    /// Whether everything is as it must be.
    pub fn is_sound(&self) -> bool {
        self.findings == 0
    }
}

impl Finding {
    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Finding::Stalled { .. } => "stalled",
            Finding::File { .. } => "file",
            Finding::Missing { .. } => "missing",
            Finding::Repeated { .. } => "repeated",
            Finding::Unknown { .. } => "unknown",
            Finding::Record { .. } => "record",
            Finding::Day(_) => "day",
            Finding::Row(_) => "row",
        }
    }

    /// The table it is about.
    pub fn table(&self) -> &str {
        match self {
            Finding::File { table, .. } => table,
            Finding::Day(day) => &day.table,
            Finding::Row(row) => &row.table,
            Finding::Stalled { .. } => "",
            _ => TableName::Events.as_str(),
        }
    }

    /// What to do about findings of this kind.
    pub fn remedy(&self) -> &'static str {
        match self {
            Finding::Stalled { .. } => {
                "mend what stands in the way (the error says what, the server's log says more), then verify again"
            }
            Finding::File { table, .. } if table == TableName::Events.as_str() => {
                "put the file back from a copy of the tables; without one, as long as the log has the records: `counterbat \
                 export` writes them to a file, and `counterbat import` into a new data directory gives all tables anew"
            }
            Finding::File { .. } => {
                "put the file back from a copy of the tables, or have `counterbat rebuild` make the table anew from events"
            }
            Finding::Missing { .. } | Finding::Repeated { .. } | Finding::Record { .. } => {
                "somebody else wrote to the table events: put its files back from a copy; without one, as long as the log has \
                 the records: `counterbat export` writes them to a file, and `counterbat import` into a new data directory \
                 gives all tables anew"
            }
            Finding::Unknown { .. } => {
                "the log is an older copy of itself, or somebody else wrote to the table events: put back the log, or the \
                 files of the table"
            }
            Finding::Day(_) | Finding::Row(_) => {
                "`counterbat rebuild` folds all events again under the settings of now; where policies, prices, \
                 allowed_lateness or delivery_window were changed since these rows were written, that is all there is to it, \
                 else somebody else wrote to the table"
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = |first: &u64, last: &u64| match first == last {
            true => format!("offset {first}"),
            false => format!("offsets {first} to {last}"),
        };
        match self {
            Finding::Stalled { error } => {
                write!(f, "rows were not compared, the tables cannot be brought up to date: {error}")
            }
            Finding::File { table, path, fault } => write!(f, "{table}/{path}: {fault}"),
            Finding::Missing { partition, first, last } => {
                write!(f, "partition {partition}, {}: in the log, not in events", span(first, last))
            }
            Finding::Repeated { partition, first, last } => {
                write!(f, "partition {partition}, {}: more than once in events", span(first, last))
            }
            Finding::Unknown { partition, first, last } => {
                write!(f, "partition {partition}, {}: in events, not in the log", span(first, last))
            }
            Finding::Record { partition, offset, columns } => write!(
                f,
                "partition {partition}, offset {offset}: events has something else in {} than was recorded",
                columns.join(", ")
            ),
            Finding::Day(day) => {
                let Day { table, partition, date, rows, missing, surplus, twice, changed, .. } = day;
                write!(
                    f,
                    "{table} of {date}, partition {partition}: {} rows, and {} by the archive",
                    rows.table, rows.fold
                )?;
                let counts = [(missing, "missing"), (surplus, "too many"), (twice, "twice"), (changed, "changed")];
                counts.iter().filter(|(n, _)| **n > 0).try_for_each(|(n, word)| write!(f, ", {n} {word}"))
            }
            Finding::Row(row) => {
                let Row { table, account, user_id, id, difference, columns } = row;
                write!(f, "{table} {id} of {account}/{user_id}: ")?;
                match difference {
                    Difference::Missing => write!(f, "missing"),
                    Difference::Surplus => write!(f, "nothing in events gives it"),
                    Difference::Twice => write!(f, "there more than once"),
                    Difference::Changed => {
                        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
                        let columns = columns.iter().map(|(name, side)| {
                            format!("{name} is {}, must be {}", shown(&side.table), shown(&side.fold))
                        });
                        write!(f, "{}", columns.collect::<Vec<_>>().join("; "))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_told_in_words_and_survive_json() {
        let side =
            |table: &str, fold: Option<&str>| Side { table: Some(table.to_owned()), fold: fold.map(str::to_owned) };
        for (finding, words) in [
            (Finding::Missing { partition: 2, first: 5, last: 5 }, "partition 2, offset 5: in the log, not in events"),
            (
                Finding::Repeated { partition: 2, first: 5, last: 9 },
                "partition 2, offsets 5 to 9: more than once in events",
            ),
            (
                Finding::Day(Day {
                    table: "sessions".into(),
                    partition: 0,
                    date: "2026-03-01".into(),
                    rows: Side { table: 7, fold: 9 },
                    digest: Side::default(),
                    missing: 2,
                    surplus: 0,
                    twice: 0,
                    changed: 1,
                }),
                "sessions of 2026-03-01, partition 0: 7 rows, and 9 by the archive, 2 missing, 1 changed",
            ),
            (
                Finding::Row(Row {
                    table: "messages".into(),
                    account: "shop".into(),
                    user_id: "a/b==".into(),
                    id: "18446744073709551615".into(),
                    difference: Difference::Changed,
                    columns: BTreeMap::from([
                        ("verdict".to_owned(), side("agreed", Some("overcharged"))),
                        ("country".to_owned(), side("UA", None)),
                    ]),
                }),
                "messages 18446744073709551615 of shop/a/b==: country is UA, must be NULL; verdict is agreed, must be overcharged",
            ),
        ] {
            assert_eq!(finding.to_string(), words);
            let line = serde_json::to_string(&Told::Finding(finding.clone())).unwrap();
            assert_eq!(serde_json::from_str::<Told>(&line).unwrap(), Told::Finding(finding), "{line}");
        }
    }
}
