//! Rows of a table against the rows the archive folds to: by digests of days, and where these differ row by row.

use super::report::{Day, Difference, Finding, Row, Side};
use super::{ProjectorError, Telling};
use crate::lake::rows::keys;
use crate::lake::{FileEntry, Lake, LakeError, TableName, TableSnapshot, schema};
use crate::projector::laid::Builder;
use crate::state::overlay::{Laid, LaidRow, OverlayKey, prefix};
use crate::state::{OverlayView, split_user_key};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use rustc_hash::FxHashMap;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const DAY_HOURS: i64 = 24;
const DAY_US: i64 = 86_400_000_000;
/// Rows of the fold that are made into one batch.
const BATCH_ROWS: usize = 8192;
/// Rows of a day that are compared at a time: their keys and hashes are held in memory.
/// Few in unit tests, whose days are small.
const PASS_ROWS: u64 = if cfg!(test) { 10 } else { 500_000 };

/// One log partition of a table, by days since the epoch.
pub(super) type Digests = BTreeMap<i64, Digest>;

/// Rows whatever their order: how many, and the sum of their hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Digest {
    rows: u64,
    sum: u128,
}

impl Digest {
    fn add(&mut self, hash: u128) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(hash);
    }

    fn hex(self) -> String {
        format!("{:032x}", self.sum)
    }
}

/// Hashes rows of one table.
pub(super) struct Hasher {
    table: TableName,
    converter: RowConverter,
}

impl Hasher {
    pub fn new(table: TableName) -> Result<Self, LakeError> {
        let fields = schema::of(table).fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        Ok(Self { table, converter: RowConverter::new(fields).map_err(damaged)? })
    }

    /// Of each row: the day of its reference time, and its hash over all columns.
    fn rows(&self, batch: &RecordBatch) -> Result<Vec<(i64, u128)>, LakeError> {
        let reference = if self.table == TableName::Sessions { "opened_at" } else { "sent_at" };
        let times =
            batch.column_by_name(reference).and_then(|array| array.as_primitive_opt::<TimestampMicrosecondType>());
        let times = times.ok_or_else(|| LakeError::Damaged(format!("column {reference} is missing")))?;
        let rows = self.converter.convert_columns(batch.columns()).map_err(damaged)?;
        Ok(times
            .values()
            .iter()
            .zip(rows.iter())
            .map(|(us, row)| (us.div_euclid(DAY_US), hash(row.as_ref())))
            .collect())
    }

    /// Adds the rows of a batch to the digests of their days.
    pub fn digest(&self, batch: &RecordBatch, into: &mut Digests) -> Result<(), LakeError> {
        for (day, hash) in self.rows(batch)? {
            into.entry(day).or_default().add(hash);
        }
        Ok(())
    }
}

fn hash(bytes: &[u8]) -> u128 {
    let digest = Sha256::digest(bytes);
    digest[..16].iter().fold(0, |sum, byte| (sum << 8) | u128::from(*byte))
}

fn damaged(error: ArrowError) -> LakeError {
    LakeError::Damaged(error.to_string())
}

fn laid(table: TableName) -> Laid {
    if table == TableName::Sessions { Laid::Sessions } else { Laid::Messages }
}

/// What the archive of a partition folds to, and the table that must have the same.
pub(super) struct Comparison<'a> {
    pub lake: &'a Lake,
    pub snapshot: &'a TableSnapshot,
    pub table: TableName,
    pub partition: u32,
    /// Holds all rows of the fold.
    pub fold: OverlayView,
    pub hasher: Hasher,
    /// Rows named of a day that differs.
    pub named: usize,
}

impl Comparison<'_> {
    /// Compares all days, given those of the table; tells what differs. Returns how many rows were compared.
    pub async fn run(&self, found: &Digests, telling: &Telling<'_>) -> Result<u64, ProjectorError> {
        let mut wanted = Digests::new();
        tokio::task::block_in_place(|| {
            self.each_of_fold(None, &mut |batch| {
                telling.advance(batch.num_rows() as u64);
                Ok(self.hasher.digest(batch, &mut wanted)?)
            })
        })?;
        let days: BTreeSet<i64> = wanted.keys().chain(found.keys()).copied().collect();
        for day in days {
            let of = |digests: &Digests| digests.get(&day).copied().unwrap_or_default();
            let (table, fold) = (of(found), of(&wanted));
            if table != fold {
                self.explain(day, table, fold, telling).await?;
            }
        }
        Ok(wanted.values().map(|digest| digest.rows).sum())
    }

    /// Finds out which rows of a day differ.
    async fn explain(
        &self,
        day: i64,
        table: Digest,
        fold: Digest,
        telling: &Telling<'_>,
    ) -> Result<(), ProjectorError> {
        let mut apart = Apart::default();
        let passes = table.rows.max(fold.rows).div_ceil(PASS_ROWS).max(1);
        for pass in 0..passes {
            self.pass(day, (pass, passes), &mut apart).await?;
        }
        let counted = |difference| apart.counts.get(&difference).copied().unwrap_or(0);
        telling.find(Finding::Day(Day {
            table: self.table.as_str().to_owned(),
            partition: self.partition,
            date: date(day),
            rows: Side { table: table.rows, fold: fold.rows },
            digest: Side { table: table.hex(), fold: fold.hex() },
            missing: counted(Difference::Missing),
            surplus: counted(Difference::Surplus),
            twice: counted(Difference::Twice),
            changed: counted(Difference::Changed),
        }));
        self.name(day, apart.named, telling).await
    }

    /// Compares the rows whose key falls to this pass of so many.
    async fn pass(&self, day: i64, (pass, passes): (u64, u64), apart: &mut Apart) -> Result<(), ProjectorError> {
        let falls_to = |key: &[u8]| key_hash(key) % passes == pass;
        let mut waiting: FxHashMap<Box<[u8]>, Option<u128>> = FxHashMap::default();
        tokio::task::block_in_place(|| {
            self.each_of_fold(Some(day), &mut |batch| {
                let rows = keys(self.table, batch)?.into_iter().zip(self.hasher.rows(batch)?);
                waiting.extend(rows.filter(|(key, _)| falls_to(key)).map(|(key, (_, hash))| (key, Some(hash))));
                Ok(())
            })
        })?;
        let mut look = |batch: &RecordBatch| {
            let rows = keys(self.table, batch)?.into_iter().zip(self.hasher.rows(batch)?);
            for (key, (_, hash)) in rows.filter(|(key, (of, _))| *of == day && falls_to(key)) {
                match waiting.get_mut(&key) {
                    None => {
                        apart.note(Difference::Surplus, &key, self.named);
                        waiting.insert(key, None);
                    }
                    Some(None) => apart.note(Difference::Twice, &key, self.named),
                    Some(wanted) => {
                        if *wanted != Some(hash) {
                            apart.note(Difference::Changed, &key, self.named);
                        }
                        *wanted = None;
                    }
                }
            }
            Ok(())
        };
        for file in self.files(day) {
            self.lake.table(self.table).audit(&file, &mut look).await?;
        }
        for key in waiting.into_iter().filter(|(_, hash)| hash.is_some()).map(|(key, _)| key) {
            apart.note(Difference::Missing, &key, self.named);
        }
        Ok(())
    }

    /// Tells of rows with all that differs.
    async fn name(
        &self,
        day: i64,
        named: BTreeMap<Box<[u8]>, Difference>,
        telling: &Telling<'_>,
    ) -> Result<(), ProjectorError> {
        let (mut of_fold, mut of_table) = (BTreeMap::new(), BTreeMap::new());
        let take = |batch: &RecordBatch, into: &mut BTreeMap<Box<[u8]>, RecordBatch>| -> Result<(), LakeError> {
            let rows = keys(self.table, batch)?.into_iter().enumerate().filter(|(_, key)| named.contains_key(key));
            into.extend(rows.map(|(row, key)| (key, batch.slice(row, 1))));
            Ok(())
        };
        tokio::task::block_in_place(|| self.each_of_fold(Some(day), &mut |batch| Ok(take(batch, &mut of_fold)?)))?;
        for file in self.files(day) {
            self.lake.table(self.table).audit(&file, &mut |batch| take(batch, &mut of_table)).await?;
        }
        for (key, difference) in &named {
            let (is, must) = (of_table.get(key), of_fold.get(key));
            let Some(any) = is.or(must) else { continue };
            let columns = match (difference, is, must) {
                (Difference::Changed, Some(is), Some(must)) => different(is, must)?,
                _ => BTreeMap::new(),
            };
            let text = |column: &str| shown(any, column).map(Option::unwrap_or_default);
            let id = if self.table == TableName::Sessions { "session_id" } else { "message_token" };
            telling.find(Finding::Row(Row {
                table: self.table.as_str().to_owned(),
                account: text("account")?,
                user_id: text("user_id")?,
                id: text(id)?,
                difference: *difference,
                columns,
            }));
        }
        Ok(())
    }

    /// The files that hold a day, or a part of it.
    fn files(&self, day: i64) -> Vec<FileEntry> {
        let hours = hours(day);
        let holds = |file: &&FileEntry| {
            file.span.is_some_and(|span| {
                span.partition == self.partition && span.start_hour < hours.end && span.end_hour > hours.start
            })
        };
        self.snapshot.files.values().filter(holds).cloned().collect()
    }

    /// Calls `each` with the rows of the fold (of one day), some thousand at a time.
    fn each_of_fold(
        &self,
        day: Option<i64>,
        each: &mut dyn FnMut(&RecordBatch) -> Result<(), ProjectorError>,
    ) -> Result<(), ProjectorError> {
        let table = laid(self.table);
        let prefixes: Vec<Vec<u8>> = match day {
            Some(day) => hours(day).map(|hour| prefix(table, self.partition, Some(hour))).collect(),
            None => vec![prefix(table, self.partition, None)],
        };
        let (mut rows, mut waiting, mut failed) = (Builder::new(table), 0, None);
        let mut flush =
            |rows: &mut Builder| std::mem::replace(rows, Builder::new(table)).finish().iter().try_for_each(&mut *each);
        for prefix in prefixes {
            self.fold.each(&prefix, |key, value| {
                let key = OverlayKey::from_bytes(key).ok_or_else(|| self.fold.damaged("an overlay key"))?;
                let row = LaidRow::from_bytes(table, value).ok_or_else(|| self.fold.damaged("an overlay row"))?;
                let Some((account, user)) = split_user_key(&key.user) else { return Ok(()) };
                rows.push(account, user, &row);
                waiting += 1;
                if waiting == BATCH_ROWS && failed.is_none() {
                    waiting = 0;
                    failed = flush(&mut rows).err();
                }
                Ok(())
            })?;
        }
        match failed {
            Some(error) => Err(error),
            None => flush(&mut rows),
        }
    }
}

/// The rows that differ: how many of each kind, and the keys of the first of them.
#[derive(Default)]
struct Apart {
    counts: BTreeMap<Difference, u64>,
    named: BTreeMap<Box<[u8]>, Difference>,
}

impl Apart {
    fn note(&mut self, difference: Difference, key: &[u8], most: usize) {
        *self.counts.entry(difference).or_default() += 1;
        if self.named.len() < most {
            self.named.insert(key.into(), difference);
        }
    }
}

fn key_hash(key: &[u8]) -> u64 {
    (hash(key) >> 64) as u64
}

fn hours(day: i64) -> Range<i64> {
    day * DAY_HOURS..(day + 1) * DAY_HOURS
}

fn date(day: i64) -> String {
    let time = chrono::DateTime::from_timestamp(day.saturating_mul(86_400), 0);
    time.map_or_else(|| day.to_string(), |time| time.format("%Y-%m-%d").to_string())
}

/// The columns in which two rows differ.
fn different(is: &RecordBatch, must: &RecordBatch) -> Result<BTreeMap<String, Side<Option<String>>>, LakeError> {
    let mut columns = BTreeMap::new();
    for field in must.schema().fields() {
        let (table, fold) = (shown(is, field.name())?, shown(must, field.name())?);
        if table != fold {
            columns.insert(field.name().clone(), Side { table, fold });
        }
    }
    Ok(columns)
}

/// A value of a batch's first row as text; `None` is NULL.
fn shown(batch: &RecordBatch, column: &str) -> Result<Option<String>, LakeError> {
    let Some(array) = batch.column_by_name(column).filter(|array| array.is_valid(0)) else { return Ok(None) };
    if let Some(tokens) = array.as_primitive_opt::<Int64Type>()
        && column.ends_with("_token")
    {
        return Ok(Some(tokens.value(0).cast_unsigned().to_string()));
    }
    if let Some(times) = array.as_primitive_opt::<TimestampMicrosecondType>() {
        return Ok(Some(crate::event::time::format_us(times.value(0))));
    }
    let options = FormatOptions::new();
    Ok(Some(ArrayFormatter::try_new(array.as_ref(), &options).map_err(damaged)?.value(0).to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::report::Told;
    use super::*;
    use crate::event::{Event, read};
    use crate::lake::Span;
    use crate::lake::rows::SessionRows;
    use crate::log::LogId;
    use crate::session::row::SessionRow;
    use crate::session::{Policy, PolicyChain, Terms, User};
    use crate::state::overlay::{RowId, hour_of};
    use crate::state::{State, user_key};
    use std::sync::{Arc, Mutex};
    use tempfile::TempDir;

    const MARCH: i64 = 1_772_323_200_000;

    /// The session of a user who has written once.
    fn session(user: &str, t_ms: i64) -> SessionRow {
        let terms = Terms {
            policies: PolicyChain::always(Policy::named("counterbat").unwrap()),
            prices: Default::default(),
            lateness_ms: None,
            settle_lateness_ms: 0,
            delivery_window_ms: 0,
        };
        let event = Event {
            source: "/accounts/bot".into(),
            kind: "com.viber.callback.message".into(),
            subject: Some(user.to_owned()),
            data: format!(r#"{{"timestamp":{t_ms},"message_token":1}}"#).into_bytes(),
            ..Event::default()
        };
        let mut fold = User::default();
        fold.apply(&read(&event, t_ms * 1000), None, &terms);
        fold.rows("bot", user, t_ms, &terms).sessions[0].clone()
    }

    /// A state and a table, each with rows of a day.
    struct Sides {
        _dir: TempDir,
        state: State,
        lake: Lake,
        snapshot: TableSnapshot,
        rows: RecordBatch,
    }

    impl Sides {
        async fn new(of_fold: &[(&str, &SessionRow)], of_table: &[(&str, &SessionRow)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let state = State::open(dir.path(), 16 << 20).unwrap();
            let lake = Lake::open("memory:///", &LogId("l".into()), 1).await.unwrap();
            let mut batch = state.batch();
            for (user, row) in of_fold {
                let key = OverlayKey {
                    table: Laid::Sessions,
                    partition: 0,
                    hour: hour_of(row.opened_at_ms),
                    user: user_key("bot", user),
                    id: RowId::Session(row.session_id),
                };
                batch.lay(&key.to_bytes(), &LaidRow::Session((*row).clone()).to_bytes());
            }
            batch.commit().unwrap();
            let mut rows = SessionRows::default();
            of_table.iter().for_each(|(user, row)| rows.push("bot", user, row));
            let rows = rows.finish();
            let start_hour = hour_of(MARCH);
            let span = Span { partition: 0, start_hour, end_hour: start_hour + 24 };
            let file = lake.table(TableName::Sessions).write(Some(span), None, vec![rows.clone()]).await.unwrap();
            let files = Arc::new(BTreeMap::from([(file.path.clone(), file)]));
            let snapshot = TableSnapshot { files, ..TableSnapshot::default() };
            Self { _dir: dir, state, lake, snapshot, rows }
        }

        /// The rows compared, and what is told, where so many rows are named.
        async fn told(&self, named: usize) -> (u64, Vec<Told>) {
            let comparison = Comparison {
                lake: &self.lake,
                snapshot: &self.snapshot,
                table: TableName::Sessions,
                partition: 0,
                fold: self.state.overlay(),
                hasher: Hasher::new(TableName::Sessions).unwrap(),
                named,
            };
            let mut digests = Digests::new();
            comparison.hasher.digest(&self.rows, &mut digests).unwrap();
            let told = Mutex::new(Vec::new());
            let tell = |finding: Told| told.lock().unwrap().push(finding);
            let compared = comparison.run(&digests, &Telling::new(&tell)).await.unwrap();
            (compared, told.into_inner().unwrap())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rows_that_differ_are_counted_and_named() {
        let users: Vec<String> = (0..45).map(|n| format!("user-{n}")).collect();
        let rows: Vec<SessionRow> = (0..).zip(&users).map(|(n, user)| session(user, MARCH + n * 60_000)).collect();
        let other = SessionRow { inbound: rows[3].inbound + 1, ..rows[3].clone() };
        let mut of_fold: Vec<(&str, &SessionRow)> = users.iter().map(String::as_str).zip(&rows).collect();
        let mut of_table = of_fold.clone();
        of_fold.remove(40);
        of_table[3].1 = &other;
        of_table.push(of_table[7]);
        of_table.remove(5);
        let apart = Sides::new(&of_fold, &of_table).await;
        let (compared, told) = apart.told(3).await;
        assert_eq!(compared, 44);
        let Told::Finding(Finding::Day(day)) = &told[0] else { panic!("{told:?}") };
        assert_eq!((day.missing, day.surplus, day.twice, day.changed), (1, 1, 1, 1), "{day:?}");
        assert_eq!((day.rows.table, day.rows.fold, day.date.as_str()), (45, 44, "2026-03-01"));
        assert_eq!(told.len(), 4, "three of four are named");

        let mut named: Vec<(String, Difference, usize)> = Vec::new();
        for told in apart.told(9).await.1 {
            if let Told::Finding(Finding::Row(row)) = told {
                named.push((row.user_id, row.difference, row.columns.len()));
            }
        }
        named.sort();
        let wanted = [
            ("user-3", Difference::Changed, 1),
            ("user-40", Difference::Surplus, 0),
            ("user-5", Difference::Missing, 0),
            ("user-7", Difference::Twice, 0),
        ];
        assert_eq!(named, wanted.map(|(user, difference, columns)| (user.to_owned(), difference, columns)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_day_that_only_the_table_has_is_told() {
        let (_, told) = Sides::new(&[], &[("ann", &session("ann", MARCH))]).await.told(1).await;
        let Told::Finding(Finding::Day(day)) = &told[0] else { panic!("{told:?}") };
        assert_eq!((day.surplus, day.rows.table, day.rows.fold), (1, 1, 0), "{day:?}");
    }
}
