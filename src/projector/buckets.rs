//! Which buckets of `sessions` and `messages` are rewritten when, and the rewriting.
//!
//! A bucket is the rows of one partition and hour. One with a new row is due every `snapshot_every`; one whose rows only
//! changed, every `max(snapshot_every, age / 12)`: receipts for old messages touch nearly every hour, and rewriting them
//! all each minute would rewrite everything. A commit rewrites only files that hold changed rows.

use super::commit::Rewrite;
use super::delta::Delta;
use super::laid::LaidRows;
use super::{ProjectorError, Settings};
use crate::lake::bucket::{self, Index, Span};
use crate::lake::picture::Overlay;
use crate::lake::{FileEntry, Lake, TableName};
use crate::state::overlay::{Laid, LaidRow, OverlayKey, hour_in, hour_of, prefix};
use crate::state::{OverlayView, State};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DAY_HOURS: i64 = 24;
/// Once so many changed rows are in files, these are committed before others are written: their keys are held until then.
/// Few in unit tests, whose histories are short.
const ROWS_PER_COMMIT: usize = if cfg!(test) { 50 } else { 1_000_000 };
/// Files written at the same time: each waits for the disk more than it computes.
const SIDE_BY_SIDE: usize = 6;
/// Hours this old lie in files of whole days: what still changes there changes seldom, and the files stay few.
const DAYS_AFTER_MS: i64 = 3 * 86_400_000;
/// Maintenance at most this often.
const MAINTAIN_EVERY: Duration = Duration::from_secs(300);
/// So many small files are merged before that, even in runs that are short: queries open every one.
const MANY_FILES: usize = 200;
const MERGE_EVERY: Duration = Duration::from_secs(15);
/// Writing buckets takes at most one part in this many of the time.
const REST_FACTOR: u32 = 8;

#[derive(Debug, Clone, Copy)]
struct Dirty {
    /// Since when a new row waits.
    fresh: bool,
    last: Option<Instant>,
}

/// When which bucket was written and changed.
pub(super) struct Buckets {
    snapshot_every: Duration,
    dirty: FxHashMap<(Laid, u32, i64), Dirty>,
    last: Instant,
    started: Instant,
    took: Duration,
    maintained: Instant,
    merged: Instant,
    watermarks: BTreeMap<u32, Option<i64>>,
}

impl Buckets {
    pub fn new(settings: &Settings) -> Self {
        let now = Instant::now();
        Self {
            snapshot_every: settings.snapshot_every,
            dirty: FxHashMap::default(),
            last: now,
            started: now,
            took: Duration::ZERO,
            maintained: now,
            merged: now,
            watermarks: BTreeMap::new(),
        }
    }

    /// Notes what changed.
    pub fn note<'a>(&mut self, deltas: impl Iterator<Item = &'a Arc<Delta>>) {
        for laying in deltas.flat_map(|delta| &delta.rows) {
            let key = (laying.key.table, laying.key.partition, laying.key.hour);
            let dirty = self.dirty.entry(key).or_insert(Dirty { fresh: false, last: None });
            dirty.fresh |= laying.fresh;
        }
    }

    /// Whether a look at the buckets is due. While the fold catches up, rewriting rests in proportion to what it costs.
    pub fn is_due(&self, lagging: bool) -> bool {
        let rest = if lagging { self.snapshot_every.max(self.took * REST_FACTOR) } else { self.snapshot_every };
        self.last.elapsed() >= rest
    }

    /// Notes that a look has ended.
    pub fn rested(&mut self) {
        self.last = Instant::now();
        self.took = self.started.elapsed();
    }

    pub fn maintenance_due(&mut self) -> bool {
        let due = self.maintained.elapsed() >= MAINTAIN_EVERY;
        if due {
            self.maintained = Instant::now();
        }
        due
    }

    /// Whether small files are to be merged now; `mergeable` tells how many could be.
    pub fn merge_due(&mut self, mergeable: impl FnOnce() -> usize) -> bool {
        let due = self.merged.elapsed() >= MERGE_EVERY && mergeable() >= MANY_FILES;
        if due {
            self.merged = Instant::now();
        }
        due
    }

    /// By partition, the hour before which rows lie in files of whole days.
    pub fn days_before(&self) -> BTreeMap<u32, i64> {
        self.watermarks
            .iter()
            .filter_map(|(partition, watermark_ms)| {
                Some((*partition, hour_of((*watermark_ms)?.saturating_sub(DAYS_AFTER_MS))))
            })
            .collect()
    }

    /// Writes new files for the due buckets of a table in the partitions that `watermarks` has, as many as one commit should take. `None` when none is due.
    pub async fn rewrite(
        &mut self,
        name: TableName,
        lake: &Lake,
        state: &State,
        watermarks: &BTreeMap<u32, Option<i64>>,
        all: bool,
    ) -> Result<Option<Rewrite>, ProjectorError> {
        self.started = Instant::now();
        self.watermarks.clone_from(watermarks);
        let table = match name {
            TableName::Sessions => Laid::Sessions,
            TableName::Messages | TableName::Events => Laid::Messages,
        };
        let overlay = state.overlay();
        let snapshot = lake.table(name).snapshot();
        let index = bucket::index(&snapshot);
        let mut spans = BTreeSet::new();
        for (&partition, watermark_ms) in watermarks {
            for hour in dirty_hours(&overlay, table, partition)? {
                if all || self.hour_is_due(table, partition, hour, *watermark_ms) {
                    spans.insert(self.span_for(&index, partition, hour, *watermark_ms));
                }
            }
        }
        if spans.is_empty() {
            return Ok(None);
        }
        let write = |span: Span| {
            let old: Vec<FileEntry> = index.overlapping(span).cloned().collect();
            let overlay = &overlay;
            async move {
                let mut keys = Vec::new();
                let laid = if old.is_empty() { LaidRows::over_nothing(table) } else { LaidRows::new(table) };
                let collected = tokio::task::block_in_place(|| collect(overlay, laid, table, span, &mut keys))?;
                let Overlay { rows, replaced, .. } = collected.finish();
                let file = bucket::rewrite(lake.table(name), span, &old, Arc::new(replaced), rows).await?;
                Ok::<_, ProjectorError>((file, old, keys))
            }
        };
        let mut rewrite = Rewrite::default();
        let (mut spans, mut written) = (spans.into_iter().peekable(), FuturesUnordered::new());
        loop {
            while written.len() < SIDE_BY_SIDE && rewrite.keys.len() < ROWS_PER_COMMIT {
                let Some(span) = spans.next() else { break };
                // All of them were written: that one of a day was due must not leave the others due one by one.
                for hour in span.start_hour..span.end_hour {
                    let dirty = Dirty { fresh: false, last: Some(Instant::now()) };
                    self.dirty.insert((table, span.partition, hour), dirty);
                }
                written.push(write(span));
            }
            let Some(done) = written.next().await else { break };
            let (file, old, keys) = done?;
            rewrite.add.extend(file);
            rewrite.remove.extend(old);
            rewrite.keys.extend(keys);
        }
        drop(written);
        rewrite.more = spans.peek().is_some();
        self.forget_old(watermarks);
        Ok(Some(rewrite))
    }

    fn hour_is_due(&self, table: Laid, partition: u32, hour: i64, watermark_ms: Option<i64>) -> bool {
        let Some(Dirty { fresh: false, last: Some(last) }) = self.dirty.get(&(table, partition, hour)) else {
            return true;
        };
        let age_ms = watermark_ms.unwrap_or(0).saturating_sub((hour + 1) * 3_600_000).max(0);
        let rest = Duration::from_millis(u64::try_from(age_ms / 12).unwrap_or(0)).max(self.snapshot_every);
        last.elapsed() >= rest
    }

    /// The span to write for an hour: its whole day where the day is old, else that of the file that has it, else itself.
    /// Spans of one rewrite never overlap.
    fn span_for(&self, index: &Index<'_>, partition: u32, hour: i64, watermark_ms: Option<i64>) -> Span {
        let fresh = fresh_span(partition, hour, watermark_ms);
        if fresh.end_hour - fresh.start_hour == DAY_HOURS {
            return fresh;
        }
        index.covering(partition, hour).and_then(|file| file.span).unwrap_or(fresh)
    }

    fn forget_old(&mut self, watermarks: &BTreeMap<u32, Option<i64>>) {
        let horizon = |partition: u32| {
            let watermark_ms = watermarks.get(&partition).copied().flatten().unwrap_or(i64::MIN / 2);
            hour_of(watermark_ms.saturating_sub(60 * 86_400_000))
        };
        self.dirty.retain(|(_, partition, hour), _| *hour >= horizon(*partition));
    }
}

/// The span of a new file for an hour: its whole day where the day is old, else itself.
pub(super) fn fresh_span(partition: u32, hour: i64, watermark_ms: Option<i64>) -> Span {
    let day = hour.div_euclid(DAY_HOURS) * DAY_HOURS;
    let old_ms = (day + DAY_HOURS).saturating_mul(3_600_000).saturating_add(DAYS_AFTER_MS);
    if watermark_ms.is_some_and(|watermark_ms| watermark_ms >= old_ms) {
        return Span { partition, start_hour: day, end_hour: day + DAY_HOURS };
    }
    Span { partition, start_hour: hour, end_hour: hour + 1 }
}

/// The hours of a partition that have overlay rows.
fn dirty_hours(overlay: &OverlayView, table: Laid, partition: u32) -> Result<Vec<i64>, ProjectorError> {
    let mut hours = Vec::new();
    let all = prefix(table, partition, None);
    let mut from = all.clone();
    while let Some(key) = overlay.first_from(&all, &from)? {
        let hour = hour_in(&key).ok_or_else(|| overlay.damaged("an overlay key"))?;
        hours.push(hour);
        from = prefix(table, partition, Some(hour + 1));
    }
    Ok(hours)
}

/// Adds the overlay rows of a span to `laid`, and their keys to `keys`.
fn collect(
    overlay: &OverlayView,
    mut laid: LaidRows,
    table: Laid,
    span: Span,
    keys: &mut Vec<Vec<u8>>,
) -> Result<LaidRows, ProjectorError> {
    for hour in span.start_hour..span.end_hour {
        overlay.each(&prefix(table, span.partition, Some(hour)), |key, value| {
            keys.push(key.to_vec());
            let row = LaidRow::from_bytes(table, value).ok_or_else(|| overlay.damaged("an overlay row"))?;
            let key = OverlayKey::from_bytes(key).ok_or_else(|| overlay.damaged("an overlay key"))?;
            laid.add(&key, &row);
            Ok(())
        })?;
    }
    Ok(laid)
}
