//! What waits on this machine while the log is away: a durable queue of events, in the order they came.
//!
//! It lies on the storage of the embedded log, in one partition, so those who wait share an fsync. An event is removed
//! only once the log has acknowledged it: a kill between the two gives the log a repeat, never a gap.

use super::embedded::{Clock, EmbeddedLog, Options, Retention};
use super::{EventLog, LogError};
use crate::event::{Event, Record};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Memory for what is read back.
const CACHE_BYTES: u64 = 8 << 20;
/// What an event takes beside its texts and its data.
const OVERHEAD: u64 = 64;
/// What is read at once to see how much waits.
const COUNT_RECORDS: usize = 4096;
const COUNT_BYTES: usize = 8 << 20;

/// How much waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Level {
    pub events: u64,
    /// Of the events, not of the files that hold them: those are given back a little later.
    pub bytes: u64,
}

impl Level {
    /// Of these events.
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        events
            .into_iter()
            .fold(Level::default(), |level, event| Level { events: level.events + 1, bytes: level.bytes + size(event) })
    }

    fn add(&mut self, more: Level) {
        self.events += more.events;
        self.bytes += more.bytes;
    }
}

fn size(event: &Event) -> u64 {
    let optional = [&event.subject, &event.content_type, &event.signature];
    let texts = [&event.id, &event.source, &event.kind].into_iter().chain(optional.into_iter().flatten());
    let extensions = event.extensions.iter().flat_map(|(name, value)| [name, value]);
    let text: usize = texts.chain(extensions).map(String::len).sum();
    (text + event.data.len()) as u64 + OVERHEAD
}

/// Why no more may be put into the spill.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpillError {
    /// Passes as the log takes what waits.
    #[error("the spill is full: {bytes} bytes of {limit} wait for the log")]
    Full { bytes: u64, limit: u64 },
    /// The disk's fault; passes when it can be written again.
    #[error("the spill cannot be written: {0}")]
    Broken(String),
}

/// A durable queue of events.
pub struct Spill {
    queue: EmbeddedLog,
    limit: u64,
    waiting: Mutex<Waiting>,
    /// Whether the disk took what was put last.
    sound: AtomicBool,
}

/// A put under way, which is over when this is dropped.
struct Put<'a>(&'a Spill);

impl<'a> Put<'a> {
    fn begin(spill: &'a Spill, level: Level) -> Self {
        let mut waiting = spill.waiting();
        waiting.begun += 1;
        waiting.level.add(level);
        Put(spill)
    }
}

impl Drop for Put<'_> {
    fn drop(&mut self) {
        self.0.waiting().over += 1;
    }
}

#[derive(Default)]
struct Waiting {
    level: Level,
    /// Puts that were begun, and those of them that are over.
    begun: u64,
    over: u64,
}

impl Spill {
    /// Opens the queue in `dir`, or makes it, and counts what waits in it. It has room for `limit` bytes of events.
    pub async fn open(dir: &Path, limit: u64, clock: Clock) -> Result<Self, LogError> {
        let options = Options { partitions: 1, cache_bytes: CACHE_BYTES, retention: Retention::default() };
        let dir = dir.to_owned();
        let opening = tokio::task::spawn_blocking(move || EmbeddedLog::open(&dir, options, clock)).await;
        let queue = opening.map_err(|error| LogError::Unwritable(error.to_string()))??;
        let spill = Self { queue, limit, waiting: Mutex::default(), sound: AtomicBool::new(true) };
        let (mut next, end) = spill.queue.bounds(0).await?;
        while next < end {
            let fetched = spill.queue.read(0, next, COUNT_RECORDS, COUNT_BYTES).await?;
            spill.waiting().level.add(Level::of(fetched.records.iter().map(|record| &record.event)));
            next = fetched.next;
        }
        Ok(spill)
    }

    /// Puts events at the end. `Ok` once they are durable. They count as waiting from the call on, so that what comes
    /// after it goes behind them; also after an error, for they may be there. Takes them beyond the limit too: that is for
    /// [`Spill::check`] to tell before something is begun that has to be recorded.
    pub async fn put(&self, events: Vec<Event>) -> Result<(), LogError> {
        let put = Put::begin(self, Level::of(&events));
        let done = self.queue.append(events.into_iter().map(|event| (0, event)).collect()).await;
        drop(put);
        self.sound.store(done.is_ok(), Ordering::Release);
        done.map(|_| ())
    }

    /// The events that have waited longest, about `max_bytes` of them; none when nothing waits.
    pub async fn oldest(&self, max_records: usize, max_bytes: usize) -> Result<Vec<Record>, LogError> {
        let begun = self.waiting().begun;
        let (start, end) = self.queue.bounds(0).await?;
        if start == end {
            let mut waiting = self.waiting();
            if waiting.begun == begun && waiting.over == begun {
                // What could not be put is not here after all.
                waiting.level = Level::default();
            }
            return Ok(Vec::new());
        }
        Ok(self.queue.read(0, start, max_records, max_bytes).await?.records)
    }

    /// Removes the oldest events, which are these, for good. One caller at a time.
    pub async fn forget(&self, oldest: &[Record]) -> Result<(), LogError> {
        let Some(last) = oldest.last() else { return Ok(()) };
        self.queue.forget(0, last.offset + 1).await?;
        let gone = Level::of(oldest.iter().map(|record| &record.event));
        let level = &mut self.waiting().level;
        level.events = level.events.saturating_sub(gone.events);
        level.bytes = level.bytes.saturating_sub(gone.bytes);
        Ok(())
    }

    /// How much waits.
    pub fn level(&self) -> Level {
        self.waiting().level
    }

    /// Whether more may be put. Asks the disk only where it failed before.
    pub async fn check(&self) -> Result<(), SpillError> {
        let bytes = self.level().bytes;
        if bytes >= self.limit {
            return Err(SpillError::Full { bytes, limit: self.limit });
        }
        if !self.sound.load(Ordering::Acquire) {
            self.probe().await?;
        }
        Ok(())
    }

    /// Whether the disk takes something now.
    pub async fn probe(&self) -> Result<(), SpillError> {
        let probed = self.queue.check_writable().await;
        self.sound.store(probed.is_ok(), Ordering::Release);
        probed.map_err(|error| SpillError::Broken(error.to_string()))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Each change is of one field after the other, and none can panic between.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn events(ids: std::ops::Range<u32>) -> Vec<Event> {
        ids.map(|n| Event { id: n.to_string(), data: vec![b'x'; 100], ..Event::default() }).collect()
    }

    /// Opens it as soon as the writer thread of the one before has ended.
    async fn open(dir: &Path, limit: u64) -> Spill {
        loop {
            match Spill::open(dir, limit, Arc::new(|| 1)).await {
                Err(LogError::InUse { .. }) => tokio::task::yield_now().await,
                spill => return spill.unwrap(),
            }
        }
    }

    fn ids(records: &[Record]) -> Vec<&str> {
        records.iter().map(|record| record.event.id.as_str()).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn it_keeps_order_and_remembers_what_waits() {
        let dir = tempfile::tempdir().unwrap();
        let spill = open(dir.path(), 1 << 20).await;
        assert!(spill.oldest(10, 1 << 20).await.unwrap().is_empty());
        for n in 0..5 {
            spill.put(events(n * 2..n * 2 + 2)).await.unwrap();
        }
        let level = spill.level();
        assert_eq!(level, Level::of(&events(0..10)));
        let first = spill.oldest(4, 1 << 20).await.unwrap();
        assert_eq!(ids(&first), ["0", "1", "2", "3"]);
        spill.forget(&first).await.unwrap();
        drop(spill);
        let spill = open(dir.path(), 1 << 20).await;
        assert_eq!(spill.level(), Level::of(&events(4..10)));
        let rest = spill.oldest(10, 1 << 20).await.unwrap();
        assert_eq!(ids(&rest), ["4", "5", "6", "7", "8", "9"]);
        spill.forget(&rest).await.unwrap();
        assert_eq!(spill.level(), Level::default());
        drop(spill);
        assert_eq!(open(dir.path(), 1 << 20).await.level(), Level::default());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_one_says_so_and_still_takes_what_was_begun() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Level::of(&events(10..12)).bytes;
        let spill = open(dir.path(), limit).await;
        spill.put(events(10..11)).await.unwrap();
        spill.check().await.unwrap();
        spill.put(events(11..12)).await.unwrap();
        assert_eq!(spill.check().await, Err(SpillError::Full { bytes: limit, limit }));
        spill.put(events(12..13)).await.unwrap();
        let all = spill.oldest(10, 1 << 20).await.unwrap();
        spill.forget(&all[..2]).await.unwrap();
        spill.check().await.unwrap();
        assert_eq!(ids(&spill.oldest(10, 1 << 20).await.unwrap()), ["12"]);
    }
}
