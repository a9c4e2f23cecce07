//! What the processes of the log tell each other: a compacted topic of one partition, read whole and followed.

use super::super::registry::Registry;
use super::super::{LogError, LogId};
use super::client::Settings;
use super::cursor::{Cursors, Read};
use super::topic::{Purpose, Topics};
use super::{Writing, blocking};
use async_trait::async_trait;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::FutureRecord;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const PARTITION: u32 = 0;
/// Most that is read at once.
const RECORDS: usize = 1000;
const BYTES: usize = 1 << 20;
/// The client tells of what comes; a cursor that has stood still is noticed when it is read, so that is done this often.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure so long is waited before the next try.
const PAUSE: Duration = Duration::from_millis(200);
/// What is in the topic has been read by then, or it cannot be.
const PATIENCE: Duration = Duration::from_secs(30);

type Entries = BTreeMap<String, Vec<u8>>;
/// A key, and its new value or none.
type Change = (String, Option<Vec<u8>>);

/// The registry of one process. Dropping it ends the reading.
pub struct KafkaRegistry {
    writing: Arc<Writing>,
    cursors: Arc<Cursors>,
    entries: watch::Receiver<Arc<Entries>>,
    /// Everything before this offset is in `entries`.
    passed: watch::Receiver<u64>,
    following: JoinHandle<()>,
}

/// Who reads the topic.
struct Reader {
    cursors: Arc<Cursors>,
    next: u64,
    map: Arc<Entries>,
    /// The map is not shown before this offset: it would lack what is known already.
    whole_from: u64,
    entries: watch::Sender<Arc<Entries>>,
    passed: watch::Sender<u64>,
}

impl KafkaRegistry {
    /// Opens the topic, which is made where it is missing and may be made, and reads all it has now.
    pub async fn open(settings: &Settings) -> Result<Self, LogError> {
        let settings = Settings { topic: settings.registry_topic.clone(), ..settings.clone() };
        let opening = move || {
            let topics = Topics::new(&settings)?;
            let made = futures::executor::block_on(topics.open(&settings.topic, Purpose::Registry, 1))?;
            if made.partitions != 1 {
                return Err(LogError::Topic {
                    topic: settings.topic.clone(),
                    problem: format!("it has {} partitions, but must have 1", made.partitions),
                    mend: "name another one: [kafka] registry_topic".into(),
                });
            }
            let id = LogId(settings.topic.clone());
            let cursors = Cursors::new(settings.clone(), id.clone())?;
            Ok((Writing::open(settings, id, made, true)?, cursors))
        };
        let (writing, cursors) = blocking(PARTITION, opening).await?;
        let cursors = Arc::new(cursors);
        let (start, end) = bounds(&cursors).await?;
        let (entries, passed) = (watch::Sender::default(), watch::Sender::new(start));
        let known = (entries.subscribe(), passed.subscribe());
        let reader =
            Reader { cursors: cursors.clone(), next: start, map: Arc::default(), whole_from: end, entries, passed };
        let following = tokio::spawn(reader.follow());
        let registry = Self { writing: Arc::new(writing), cursors, entries: known.0, passed: known.1, following };
        registry.wait_passed(end).await?;
        Ok(registry)
    }

    async fn wait_passed(&self, end: u64) -> Result<(), LogError> {
        let mut passed = self.passed.clone();
        let waited = tokio::time::timeout(PATIENCE, passed.wait_for(|passed| *passed >= end)).await;
        if waited.is_ok_and(|waited| waited.is_ok()) {
            return Ok(());
        }
        let (topic, passed) = (&self.writing.settings.topic, *self.passed.borrow());
        let reason = format!("topic {topic}: nothing has come for {} s, though it ends at {end}", PATIENCE.as_secs());
        Err(LogError::Unreadable { partition: PARTITION, offset: passed, reason })
    }
}

impl Drop for KafkaRegistry {
    fn drop(&mut self) {
        self.following.abort();
    }
}

#[async_trait]
impl Registry for KafkaRegistry {
    fn entries(&self) -> watch::Receiver<Arc<Entries>> {
        self.entries.clone()
    }

    async fn put(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), LogError> {
        let (writing, key) = (self.writing.clone(), key.to_owned());
        let putting = tokio::spawn(async move {
            let partition = i32::try_from(PARTITION).unwrap_or(0);
            let record = FutureRecord::to(&writing.settings.topic).partition(partition).key(key.as_str());
            match &value {
                Some(value) => writing.produce(record.payload(value)).await,
                None => writing.produce(record).await,
            }
        });
        let offset = putting.await.map_err(|error| LogError::Unwritable(error.to_string()))??;
        self.wait_passed(offset + 1).await
    }

    async fn catch_up(&self) -> Result<(), LogError> {
        let cursors = self.cursors.clone();
        let (_, end) = blocking(PARTITION, move || cursors.bounds(PARTITION)).await?;
        self.wait_passed(end).await
    }
}

/// First offset and end of a topic that may be so new that not every broker knows it.
async fn bounds(cursors: &Arc<Cursors>) -> Result<(u64, u64), LogError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asking = cursors.clone();
        match blocking(PARTITION, move || asking.bounds(PARTITION)).await {
            Err(error) if error.is_transient() && Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            found => return found,
        }
    }
}

impl Reader {
    /// Reads for ever.
    async fn follow(mut self) {
        let mut appended = self.cursors.appended();
        let mut fails = false;
        loop {
            // Before the read, so that what comes during it is not slept through.
            appended.mark_unchanged();
            match self.step().await {
                Ok(0) => {
                    fails = false;
                    // In time or not: it is looked at again.
                    let _ = tokio::time::timeout(LOOK, appended.changed()).await;
                }
                Ok(_) => fails = false,
                Err(LogError::Gone { start, end, .. }) => {
                    tracing::warn!(start, end, "the registry's topic was made anew, or cut off: it is read again");
                    (self.next, self.whole_from, self.map) = (start, end, Arc::default());
                    self.show();
                }
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        tracing::warn!(%error, "the registry cannot be read for now");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Reads once; how many changes there were.
    async fn step(&mut self) -> Result<usize, LogError> {
        let (cursors, from) = (self.cursors.clone(), self.next);
        let read = move || cursors.read(PARTITION, from, RECORDS, BYTES, change);
        let Read { records, next, .. } = blocking(PARTITION, read).await?;
        if next == self.next {
            return Ok(0);
        }
        let count = records.len();
        let map = Arc::make_mut(&mut self.map);
        for (key, value) in records.into_iter().flatten() {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        self.next = next;
        self.show();
        Ok(count)
    }

    /// Shows what is known, where it is whole: first the entries, then how far they go.
    fn show(&self) {
        if self.next >= self.whole_from {
            self.entries.send_replace(self.map.clone());
            self.passed.send_replace(self.next);
        }
    }
}

/// A record as a change; one whose key is no text is nobody's.
fn change(message: &BorrowedMessage<'_>) -> Option<Change> {
    let key = std::str::from_utf8(message.key()?).ok()?;
    Some((key.to_owned(), message.payload().map(<[u8]>::to_vec)))
}
