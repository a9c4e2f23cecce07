//! Appends event files to the log: parsed on all cores, checked and appended in order.

use super::chunk::{self, CHUNK_BYTES, Content, Item, Line, read_chunks};
use crate::event::Event;
use crate::event::time::format_ms;
use crate::log::{EventLog, LogError, Position, read_before};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A batch of one partition is appended when it holds this many events or bytes.
const BATCH_EVENTS: usize = 2000;
const BATCH_BYTES: usize = 1 << 20;
/// Blocks parsed ahead of the one being appended.
const PARSED_AHEAD: usize = 4;

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Summary {
    /// Lines read, blank ones included.
    pub lines: u64,
    /// Events durably in the log.
    pub appended: u64,
    /// Lines that were no event and were set aside.
    pub bad: u64,
    /// Events among the appended that came too late: only a rebuild folds them in.
    pub too_late: u64,
    /// Offset after the last event appended, by partition.
    pub ends: BTreeMap<u32, u64>,
}

impl Summary {
    /// Adds what another file brought.
    pub fn add(&mut self, other: &Summary) {
        self.lines += other.lines;
        self.appended += other.appended;
        self.bad += other.bad;
        self.too_late += other.too_late;
        self.ends.extend(other.ends.iter().map(|(partition, end)| (*partition, *end)));
    }
}

/// Why an import stopped before the end of its input. What stood before is appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The line is no event.
    Bad { line: u64, reason: String },
    /// The fold would leave the event out (spec §3, disposition 3).
    TooLate { line: u64, event_ms: i64, partition: u32, watermark_ms: i64, allowed_lateness_ms: i64 },
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Bad { line, reason } => {
                write!(f, "line {line}: {reason}. Mend it, or set bad lines aside with --skip-bad FILE")
            }
            Stop::TooLate { line, event_ms, partition, watermark_ms, allowed_lateness_ms } => write!(
                f,
                "line {line}: the event of {} is too late: partition {partition} has reached {}, and [fold] \
                 allowed_lateness is {}. With --late it is appended all the same, changes no row yet, and \
                 `counterbat rebuild` folds it in; or raise allowed_lateness before importing",
                format_ms(*event_ms),
                format_ms(*watermark_ms),
                duration(*allowed_lateness_ms),
            ),
        }
    }
}

/// Milliseconds in the largest unit that divides them.
fn duration(ms: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let unit = UNITS.iter().find(|(length, _)| ms % length == 0);
    unit.map_or_else(|| format!("{ms}ms"), |(length, name)| format!("{}{name}", ms / length))
}

/// What an import did, and whether it reached the end.
#[derive(Debug)]
pub struct Outcome {
    pub summary: Summary,
    pub stopped: Option<Stop>,
}

/// Why an import failed. Events before the failure may be appended: appending them again is harmless.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("reading failed after line {line}: {source}")]
    Read { line: u64, source: io::Error },
    #[error("{source} ({appended} events were appended before)")]
    Log { appended: u64, source: LogError },
    #[error("writing the bad line {line} aside failed: {source}")]
    Skip { line: u64, source: io::Error },
    #[error("a parsing thread failed: {0}")]
    Thread(String),
}

/// A bad line set aside.
#[derive(Debug)]
pub struct Skipped<'a> {
    pub line: u64,
    pub reason: &'a str,
    pub text: &'a [u8],
}

/// Takes bad lines; an import without one stops at them.
pub type SkipBad = Box<dyn FnMut(Skipped<'_>) -> io::Result<()> + Send>;

/// Writes each bad line to `out` as it was.
pub fn skip_to(mut out: impl Write + Send + 'static) -> SkipBad {
    Box::new(move |skipped| {
        out.write_all(skipped.text)?;
        out.write_all(b"\n")?;
        out.flush()
    })
}

/// The watermark of each partition as the fold has it now, for imports beside a running gateway.
pub type LiveWatermarks = Arc<dyn Fn() -> Vec<Option<i64>> + Send + Sync>;

/// Imports one stream after another into a log, with one idea of time.
pub struct Importer {
    log: Arc<dyn EventLog>,
    clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// By partition; `None` where nothing was seen yet.
    watermarks: Vec<Option<i64>>,
    live: Option<LiveWatermarks>,
    allowed_lateness_ms: i64,
    late: bool,
    skip_bad: Option<SkipBad>,
    appended: Arc<AtomicU64>,
}

impl Importer {
    /// An importer that stops at bad lines and at events too late for `allowed_lateness_ms`. `watermarks` are those of
    /// everything in the log, by partition; `clock` gives µs since the epoch.
    pub fn new(
        log: Arc<dyn EventLog>,
        clock: Arc<dyn Fn() -> i64 + Send + Sync>,
        watermarks: Vec<Option<i64>>,
        allowed_lateness_ms: i64,
    ) -> Self {
        let mut watermarks = watermarks;
        watermarks.resize(log.partitions() as usize, None);
        let appended = Arc::new(AtomicU64::new(0));
        Importer { log, clock, watermarks, live: None, allowed_lateness_ms, late: false, skip_bad: None, appended }
    }

    /// Others append too: their time counts as well.
    pub fn beside(mut self, live: LiveWatermarks) -> Self {
        self.live = Some(live);
        self
    }

    /// Appends events that come too late instead of stopping at them.
    pub fn append_late(mut self, late: bool) -> Self {
        self.late = late;
        self
    }

    /// Hands bad lines over instead of stopping at them.
    pub fn skip_bad(mut self, skip: Option<SkipBad>) -> Self {
        self.skip_bad = skip;
        self
    }

    /// Counts events as they become durable, over all streams.
    pub fn appended(&self) -> Arc<AtomicU64> {
        self.appended.clone()
    }

    /// Imports a stream of plain NDJSON whose first line has the number `first_line`.
    pub async fn run(&mut self, source: impl Read + Send + 'static, first_line: u64) -> Result<Outcome, ImportError> {
        let (parsed, mut blocks) = mpsc::channel(PARSED_AHEAD);
        let reader = self.spawn_reader(source, parsed);
        let mut run = Run::new(self.log.clone(), self.appended.clone(), first_line);
        let mut stopped = None;
        while stopped.is_none()
            && let Some(block) = blocks.recv().await
        {
            let (lines, count) = block.await.map_err(|error| ImportError::Thread(error.to_string()))?;
            self.take_live();
            stopped = self.take_block(&mut run, lines).await?;
            if stopped.is_none() {
                run.next_line += count;
            }
        }
        drop(blocks);
        // On an input that stalls the reader may hang in a read: after a stop its end is of no interest.
        let read = if stopped.is_some() { Ok(Ok(())) } else { reader.await };
        let summary = run.finish().await?;
        match read {
            Ok(Ok(())) => Ok(Outcome { summary, stopped }),
            Ok(Err(source)) => Err(ImportError::Read { line: summary.lines, source }),
            Err(error) => Err(ImportError::Thread(error.to_string())),
        }
    }

    fn spawn_reader(
        &self,
        source: impl Read + Send + 'static,
        parsed: mpsc::Sender<JoinHandle<(Vec<Line>, u64)>>,
    ) -> JoinHandle<io::Result<()>> {
        let (partitions, clock) = (self.log.partitions(), self.clock.clone());
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            read_chunks(source, CHUNK_BYTES, |bytes| {
                let now_us = clock();
                let block = runtime.spawn_blocking(move || chunk::parse(&bytes, partitions, now_us));
                parsed.blocking_send(block).is_ok()
            })
        })
    }

    fn take_live(&mut self) {
        if let Some(live) = &self.live {
            for (mine, theirs) in self.watermarks.iter_mut().zip(live()) {
                *mine = (*mine).max(theirs);
            }
        }
    }

    async fn take_block(&mut self, run: &mut Run, block: Vec<Line>) -> Result<Option<Stop>, ImportError> {
        for Line { number, content } in block {
            let line = run.next_line + number;
            match content {
                Content::Item(item) => {
                    if let Some((partition, watermark_ms)) = self.too_late(&item) {
                        if !self.late {
                            run.next_line = line + 1;
                            return Ok(Some(self.stop_at(line, &item, partition, watermark_ms)));
                        }
                        run.too_late += 1;
                    }
                    self.move_watermarks(&item);
                    run.push(*item).await?;
                }
                Content::Bad { reason, text } => {
                    let Some(skip) = &mut self.skip_bad else {
                        run.next_line = line + 1;
                        return Ok(Some(Stop::Bad { line, reason }));
                    };
                    let skipped = Skipped { line, reason: &reason, text: &text };
                    skip(skipped).map_err(|source| ImportError::Skip { line, source })?;
                    run.bad += 1;
                }
            }
        }
        Ok(None)
    }

    fn stop_at(&self, line: u64, item: &Item, partition: u32, watermark_ms: i64) -> Stop {
        let event_ms = item.fact_ms.unwrap_or(item.time_ms);
        Stop::TooLate { line, event_ms, partition, watermark_ms, allowed_lateness_ms: self.allowed_lateness_ms }
    }

    /// The partition and its watermark, when the fold would call the event too late.
    fn too_late(&self, item: &Item) -> Option<(u32, i64)> {
        let (partition, t) = (item.partition?, item.fact_ms?);
        let watermark = self.watermarks.get(partition as usize).copied().flatten()?;
        (t.saturating_add(self.allowed_lateness_ms) <= watermark).then_some((partition, watermark))
    }

    fn move_watermarks(&mut self, item: &Item) {
        let moved = match item.partition {
            Some(partition) => self.watermarks.get_mut(partition as usize..=partition as usize),
            None => Some(&mut self.watermarks[..]),
        };
        for watermark in moved.into_iter().flatten() {
            *watermark = (*watermark).max(Some(item.time_ms));
        }
    }
}

/// One stream on its way into the log.
struct Run {
    log: Arc<dyn EventLog>,
    lanes: Vec<Lane>,
    ends: BTreeMap<u32, u64>,
    events: u64,
    appended: Arc<AtomicU64>,
    appended_before: u64,
    bad: u64,
    too_late: u64,
    first_line: u64,
    /// Number of the first line not yet taken.
    next_line: u64,
}

/// The events of one partition: a batch being filled and one being appended, so that order holds without trusting
/// the log to order appends that overlap.
#[derive(Default)]
struct Lane {
    batch: Vec<(u32, Event)>,
    bytes: usize,
    under_way: Option<JoinHandle<Result<Vec<Position>, LogError>>>,
}

impl Run {
    fn new(log: Arc<dyn EventLog>, appended: Arc<AtomicU64>, first_line: u64) -> Self {
        let lanes = (0..log.partitions()).map(|_| Lane::default()).collect();
        let appended_before = appended.load(Ordering::Relaxed);
        let ends = BTreeMap::new();
        Run {
            log,
            lanes,
            ends,
            events: 0,
            appended,
            appended_before,
            bad: 0,
            too_late: 0,
            first_line,
            next_line: first_line,
        }
    }

    async fn push(&mut self, item: Item) -> Result<(), ImportError> {
        self.events += 1;
        match item.partition {
            Some(partition) => self.push_to(partition, item.event).await,
            None => {
                for partition in 0..self.log.partitions() {
                    self.push_to(partition, item.event.clone()).await?;
                }
                Ok(())
            }
        }
    }

    async fn push_to(&mut self, partition: u32, event: Event) -> Result<(), ImportError> {
        let lane = &mut self.lanes[partition as usize];
        lane.bytes += event.data.len() + event.id.len() + event.kind.len() + 64;
        lane.batch.push((partition, event));
        if lane.batch.len() >= BATCH_EVENTS || lane.bytes >= BATCH_BYTES {
            self.send(partition).await?;
        }
        Ok(())
    }

    /// Waits for the batch before, then starts the filled one.
    async fn send(&mut self, partition: u32) -> Result<(), ImportError> {
        self.settle(partition).await?;
        let lane = &mut self.lanes[partition as usize];
        lane.bytes = 0;
        let batch = std::mem::take(&mut lane.batch);
        if !batch.is_empty() {
            let log = self.log.clone();
            lane.under_way = Some(tokio::spawn(async move { log.append(batch).await }));
        }
        Ok(())
    }

    async fn settle(&mut self, partition: u32) -> Result<(), ImportError> {
        let Some(under_way) = self.lanes[partition as usize].under_way.take() else { return Ok(()) };
        let positions = match under_way.await {
            Ok(Ok(positions)) => positions,
            Ok(Err(source)) => return Err(ImportError::Log { appended: self.durable(), source }),
            Err(error) => return Err(ImportError::Thread(error.to_string())),
        };
        self.appended.fetch_add(positions.len() as u64, Ordering::Relaxed);
        if let Some(last) = positions.last() {
            self.ends.insert(partition, last.offset + 1);
        }
        Ok(())
    }

    fn durable(&self) -> u64 {
        self.appended.load(Ordering::Relaxed) - self.appended_before
    }

    async fn finish(mut self) -> Result<Summary, ImportError> {
        for partition in 0..self.log.partitions() {
            self.send(partition).await?;
        }
        for partition in 0..self.log.partitions() {
            self.settle(partition).await?;
        }
        Ok(Summary {
            lines: self.next_line - self.first_line,
            appended: self.events,
            bad: self.bad,
            too_late: self.too_late,
            ends: self.ends,
        })
    }
}

/// The watermark of each partition of a log: that of `known` (next offset, watermark), moved by what lies behind.
/// `known` may be shorter than the log has partitions; the missing ones are read from their first record.
pub async fn watermarks(log: &dyn EventLog, known: &[(u64, Option<i64>)]) -> Result<Vec<Option<i64>>, LogError> {
    let mut all = Vec::new();
    for partition in 0..log.partitions() {
        let (start, end) = log.bounds(partition).await?;
        let (position, mut watermark) = known.get(partition as usize).copied().unwrap_or((start, None));
        let mut next = position.max(start);
        while next < end {
            let fetched = read_before(log, partition, next, end, 4096, 8 << 20).await?;
            next = fetched.next;
            let newest = fetched.records.iter().map(|r| crate::event::read(&r.event, r.appended_at_us).time_ms).max();
            watermark = watermark.max(newest);
        }
        all.push(watermark);
    }
    Ok(all)
}
