//! Writes the log as NDJSON that an import takes back to the same tables.

use crate::event::time::format_ms;
use crate::event::{Event, Record, TICK_TYPE, read, structured};
use crate::log::{EventLog, Fetched, LogError, read_before};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A block handed out is about this long.
const BLOCK_BYTES: usize = 256 << 10;
const READ_RECORDS: usize = 2048;
const READ_BYTES: usize = 2 << 20;

/// Which events are written. Times are µs since the epoch, held against an event's `time`.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The first moment wanted.
    pub from_us: Option<i64>,
    /// The first moment no longer wanted.
    pub to_us: Option<i64>,
    pub account: Option<String>,
}

impl Filter {
    fn takes(&self, event: &Event, time_us: i64) -> bool {
        self.from_us.is_none_or(|from| time_us >= from)
            && self.to_us.is_none_or(|to| time_us < to)
            && self.account.as_deref().is_none_or(|account| event.account() == Some(account))
    }
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Walks the log as it is when opened. Events come in the order in which time moved on in their partitions, those of one
/// partition in their own order: an import finds none of them later than the fold did, into whatever partitions it puts
/// them. The times of appending do not tell that: brokers give one to a whole batch. Ticks are left out; one tick of the
/// largest watermark ends the file.
pub struct Exporter {
    log: Arc<dyn EventLog>,
    filter: Filter,
    lanes: Vec<Lane>,
    watermark_ms: Option<i64>,
    exported: u64,
    trimmed: BTreeMap<u32, u64>,
    ended: bool,
}

struct Lane {
    next: u64,
    end: u64,
    /// The watermark of the partition after what was read.
    reached_ms: i64,
    waiting: VecDeque<Waiting>,
}

/// A record that was read, and not written yet.
struct Waiting {
    record: Record,
    time_ms: i64,
    /// The watermark of its partition with it.
    reached_ms: i64,
}

impl Lane {
    fn take_in(&mut self, fetched: Fetched) {
        self.next = fetched.next;
        for record in fetched.records {
            let time_ms = read(&record.event, record.appended_at_us).time_ms;
            self.reached_ms = self.reached_ms.max(time_ms);
            self.waiting.push_back(Waiting { record, time_ms, reached_ms: self.reached_ms });
        }
    }
}

impl Exporter {
    /// Starts at the first record still held and will end at the last one there is now.
    pub async fn open(log: Arc<dyn EventLog>, filter: Filter) -> Result<Self, ExportError> {
        let mut lanes = Vec::new();
        let mut trimmed = BTreeMap::new();
        for partition in 0..log.partitions() {
            let (start, end) = log.bounds(partition).await?;
            if start > 0 {
                trimmed.insert(partition, start);
            }
            lanes.push(Lane { next: start, end, reached_ms: i64::MIN, waiting: VecDeque::new() });
        }
        Ok(Exporter { log, filter, lanes, watermark_ms: None, exported: 0, trimmed, ended: false })
    }

    /// First offset still held of every partition that retention has shortened: what lay before is not in the file.
    pub fn trimmed(&self) -> &BTreeMap<u32, u64> {
        &self.trimmed
    }

    /// Events written so far, the closing tick not counted.
    pub fn exported(&self) -> u64 {
        self.exported
    }

    /// Records there are between the start and the end, and how many of them were passed.
    pub fn passed(&self) -> (u64, u64) {
        let left: u64 = self.lanes.iter().map(|lane| lane.end - lane.next + lane.waiting.len() as u64).sum();
        let all = self.lanes.iter().zip(0u32..).map(|(lane, p)| lane.end - self.trimmed.get(&p).unwrap_or(&0)).sum();
        (all, all - left.min(all))
    }

    /// The next lines; `None` after the closing tick.
    pub async fn next_block(&mut self) -> Result<Option<Vec<u8>>, ExportError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = Vec::with_capacity(BLOCK_BYTES + 8192);
        while block.len() < BLOCK_BYTES {
            let Some(waiting) = self.next_record().await? else {
                self.ended = true;
                if let Some(watermark_ms) = self.watermark_ms {
                    structured::write_line(&tick(watermark_ms), &mut block);
                }
                break;
            };
            self.write(waiting, &mut block);
        }
        Ok(Some(block))
    }

    fn write(&mut self, Waiting { record, time_ms, .. }: Waiting, block: &mut Vec<u8>) {
        self.watermark_ms = self.watermark_ms.max(Some(time_ms));
        if record.event.is_tick() {
            return;
        }
        let mut event = record.event;
        // A later import must not take its own append time where this log took the one it has: neither for a missing
        // time nor for one too far ahead.
        let time_us = event.time_us.filter(|us| us.div_euclid(1000) == time_ms).unwrap_or(time_ms * 1000);
        event.time_us = Some(time_us);
        if self.filter.takes(&event, time_us) {
            structured::write_line(&event, block);
            self.exported += 1;
        }
    }

    /// Of the heads of all partitions the one with which time has come least far.
    async fn next_record(&mut self) -> Result<Option<Waiting>, ExportError> {
        for (lane, partition) in self.lanes.iter_mut().zip(0u32..) {
            if lane.waiting.is_empty() && lane.next < lane.end {
                let (next, end) = (lane.next, lane.end);
                lane.take_in(read_before(&*self.log, partition, next, end, READ_RECORDS, READ_BYTES).await?);
            }
        }
        let head = |(i, lane): (usize, &Lane)| {
            let head = lane.waiting.front()?;
            Some((head.reached_ms, head.record.appended_at_us, i))
        };
        let first = self.lanes.iter().enumerate().filter_map(head).min();
        Ok(first.and_then(|(.., lane)| self.lanes[lane].waiting.pop_front()))
    }
}

/// A tick for every partition.
fn tick(watermark_ms: i64) -> Event {
    Event {
        id: format!("tick/{}", format_ms(watermark_ms)),
        source: "/counterbat".to_owned(),
        kind: TICK_TYPE.to_owned(),
        time_us: Some(watermark_ms * 1000),
        content_type: Some("application/json".to_owned()),
        data: b"{}".to_vec(),
        ..Event::default()
    }
}
