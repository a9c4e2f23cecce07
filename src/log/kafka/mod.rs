//! The log of many machines: a topic of Kafka, CloudEvents in binary mode (spec §2).
//!
//! [`topic`] makes and checks the topics, [`cursor`] reads, [`record`] is the form of a record, [`group`] shares the
//! partitions among processes, [`registry`] holds what they tell each other; here is the producer.

mod changelog;
mod client;
mod cursor;
mod group;
mod record;
mod registry;
mod topic;

pub use client::Settings;

use super::registry::Registry;
use super::{EventLog, Fetched, Group, LogError, LogId, Position};
use crate::event::Event;
use async_trait::async_trait;
use client::{PATIENCE, Quiet, refused};
use cursor::{Cursors, Read};
use group::KafkaGroup;
use rdkafka::error::KafkaError;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;
use registry::KafkaRegistry;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, watch};
use topic::{Purpose, Topic, Topics};

/// Where the log is known, a start waits no longer for a broker.
const SHORT_PATIENCE: Duration = Duration::from_secs(3);
/// For so long after something was acknowledged the log counts as writable without asking.
const TRUST: Duration = Duration::from_secs(2);
/// Where the producer's queue is full, so long is waited before the next try.
const QUEUE_FULL: Duration = Duration::from_millis(5);

/// What is kept of a topic that was opened, so that it can be opened while no broker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub id: LogId,
    pub brokers: String,
    pub topic: String,
    pub partitions: u32,
    min_insync: usize,
}

/// A topic as the log.
pub struct KafkaLog {
    id: LogId,
    topic: Topic,
    writing: Arc<Writing>,
    cursors: Arc<Cursors>,
    /// Read from the first time that somebody asks.
    registry: OnceCell<Arc<KafkaRegistry>>,
}

/// The producer, and how it fares.
struct Writing {
    settings: Settings,
    id: LogId,
    topic: Topic,
    /// Whether the brokers have said that they have this very log.
    confirmed: AtomicBool,
    producer: Mutex<FutureProducer<Quiet>>,
    /// When something was acknowledged last, unless something failed since.
    acknowledged: Mutex<Option<Instant>>,
}

impl KafkaLog {
    /// Opens the topic, which is made where it is missing and may be made.
    pub async fn open(settings: Settings) -> Result<Self, LogError> {
        Self::opened(settings, PATIENCE).await
    }

    /// Opens the topic, or what is known of it where no broker answers soon. Nothing is read or written then before one
    /// has said that it has this very log.
    pub async fn open_known(settings: Settings, known: Known) -> Result<Self, LogError> {
        let is_same = (&known.brokers, &known.topic) == (&settings.brokers, &settings.topic);
        if !is_same || known.partitions != settings.partitions {
            return Self::open(settings).await;
        }
        match Self::opened(settings.clone(), SHORT_PATIENCE).await {
            Err(error) if error.is_transient() => {
                tracing::error!(%error, "no broker answers: the log is opened as it was known, and asked for on and on");
                let topic = Topic { partitions: known.partitions, min_insync: known.min_insync };
                Self::new(settings, known.id, topic, false)
            }
            opened => opened,
        }
    }

    /// What to keep for [`KafkaLog::open_known`].
    pub fn known(&self) -> Known {
        let Settings { brokers, topic, .. } = self.writing.settings.clone();
        let Topic { partitions, min_insync } = self.topic;
        Known { id: self.id.clone(), brokers, topic, partitions, min_insync }
    }

    async fn opened(settings: Settings, patience: Duration) -> Result<Self, LogError> {
        // The client's threads are made and asked here, and some of its calls block.
        let open = move || futures::executor::block_on(Self::open_blocking(settings, patience));
        let opening = tokio::task::spawn_blocking(open);
        opening.await.map_err(|error| LogError::Unwritable(error.to_string()))?
    }

    /// A broker must have answered after `patience`.
    async fn open_blocking(settings: Settings, patience: Duration) -> Result<Self, LogError> {
        let topics = Topics::new(&settings)?;
        let id = LogId(format!("{}.{}", topics.cluster_id(patience)?, settings.topic));
        let topic = topics.open(&settings.topic, Purpose::Events, settings.partitions).await?;
        if topic.partitions != settings.partitions {
            return Err(LogError::Partitions { made: topic.partitions, asked: settings.partitions });
        }
        drop(topics);
        Self::new(settings, id, topic, true)
    }

    fn new(settings: Settings, id: LogId, topic: Topic, confirmed: bool) -> Result<Self, LogError> {
        let cursors = Arc::new(Cursors::new(settings.clone(), id.clone())?);
        let writing = Arc::new(Writing::open(settings, id.clone(), topic, confirmed)?);
        Ok(Self { id, topic, writing, cursors, registry: OnceCell::new() })
    }
}

impl Writing {
    fn open(settings: Settings, id: LogId, topic: Topic, confirmed: bool) -> Result<Self, LogError> {
        let producer = Mutex::new(settings.producer().create_with_context(Quiet).map_err(refused)?);
        let (confirmed, acknowledged) = (AtomicBool::new(confirmed), Mutex::new(None));
        Ok(Self { settings, id, topic, confirmed, producer, acknowledged })
    }

    fn producer(&self) -> FutureProducer<Quiet> {
        self.producer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn trust(&self) -> MutexGuard<'_, Option<Instant>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged(&self, well: bool) {
        *self.trust() = well.then(Instant::now);
    }

    /// Whether every partition has a leader and enough copies. Blocks.
    fn look(&self) -> Result<(), LogError> {
        self.confirm()?;
        let name = &self.settings.topic;
        let unwritable = |reason: String| LogError::Unwritable(format!("topic {name}: {reason}"));
        let metadata = self.producer().client().fetch_metadata(Some(name), PATIENCE / 5);
        let metadata = metadata.map_err(|error| unwritable(error.to_string()))?;
        let found = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
        if found.len() < self.topic.partitions as usize {
            return Err(unwritable("it is not there".into()));
        }
        for partition in found {
            if let Some(error) = partition.error() {
                let error = RDKafkaErrorCode::from(error);
                return Err(unwritable(format!("partition {}: {error}", partition.id())));
            }
            if partition.isr().len() < self.topic.min_insync {
                return Err(unwritable(format!("partition {} has too few copies in sync", partition.id())));
            }
        }
        self.acknowledged(true);
        Ok(())
    }

    /// Asks the brokers, once, whether they have this very log. Blocks.
    fn confirm(&self) -> Result<(), LogError> {
        if self.confirmed.load(Ordering::Acquire) {
            return Ok(());
        }
        let Settings { topic, brokers, .. } = &self.settings;
        let unwritable = |reason: String| LogError::Unwritable(format!("topic {topic}: {reason}"));
        let producer = self.producer();
        let cluster = producer.client().fetch_cluster_id(PATIENCE / 5);
        let cluster = cluster.ok_or_else(|| unwritable(format!("no broker of {brokers} has answered")))?;
        let found = LogId(format!("{cluster}.{topic}"));
        if found != self.id {
            let reason = format!("the brokers {brokers} have another log now, {found} instead of {}", self.id);
            return Err(unwritable(format!("{reason}: start anew once that is what is meant")));
        }
        tracing::info!(log = %self.id, "the brokers answer, and have the log that is known");
        self.confirmed.store(true, Ordering::Release);
        Ok(())
    }

    /// Sends all, in order, then waits for all.
    async fn append(self: Arc<Self>, batch: Vec<(u32, Event)>) -> Result<Vec<Position>, LogError> {
        if !self.confirmed.load(Ordering::Acquire) {
            let writing = self.clone();
            blocking(0, move || writing.confirm()).await?;
        }
        let producer = self.producer();
        let mut sent = Vec::with_capacity(batch.len());
        let mut failure = None;
        for (partition, event) in &batch {
            match self.send(&producer, *partition, event).await {
                Ok(delivery) => sent.push(delivery),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let mut positions = Vec::with_capacity(sent.len());
        for delivery in sent {
            match delivery.await {
                Ok(Ok(delivered)) => positions.push(Position {
                    partition: u32::try_from(delivered.partition).unwrap_or(0),
                    offset: u64::try_from(delivered.offset).unwrap_or(0),
                }),
                Ok(Err((error, _))) => failure = failure.or(Some(error)),
                Err(_) => failure = failure.or(Some(KafkaError::Canceled)),
            }
        }
        self.acknowledged(failure.is_none());
        match failure {
            None => Ok(positions),
            Some(error) => {
                self.replace_dead(&producer);
                Err(LogError::Unwritable(format!("topic {}: {error}", self.settings.topic)))
            }
        }
    }

    async fn send(
        &self,
        producer: &FutureProducer<Quiet>,
        partition: u32,
        event: &Event,
    ) -> Result<DeliveryFuture, KafkaError> {
        let key = event.key();
        let record = FutureRecord::to(&self.settings.topic)
            .partition(i32::try_from(partition).unwrap_or(i32::MAX))
            .key(key.as_str())
            .payload(&event.data)
            .headers(record::headers(event));
        Self::enqueue(producer, record).await
    }

    /// Sends one record and waits until it is durable; its offset.
    async fn produce(&self, record: FutureRecord<'_, str, Vec<u8>>) -> Result<u64, LogError> {
        let producer = self.producer();
        let delivered = match Self::enqueue(&producer, record).await {
            Ok(delivery) => match delivery.await {
                Ok(delivered) => delivered.map_err(|(error, _)| error),
                Err(_) => Err(KafkaError::Canceled),
            },
            Err(error) => Err(error),
        };
        match delivered {
            Ok(delivered) => Ok(u64::try_from(delivered.offset).unwrap_or(0)),
            Err(error) => {
                self.replace_dead(&producer);
                Err(LogError::Unwritable(format!("topic {}: {error}", self.settings.topic)))
            }
        }
    }

    /// Hands a record to the producer, as soon as it has room.
    async fn enqueue(
        producer: &FutureProducer<Quiet>,
        record: FutureRecord<'_, str, Vec<u8>>,
    ) -> Result<DeliveryFuture, KafkaError> {
        let mut sending = producer.send_result(record);
        loop {
            match sending {
                Ok(delivery) => return Ok(delivery),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => {
                    tokio::time::sleep(QUEUE_FULL).await;
                    sending = producer.send_result(record);
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// A producer that has given up for good is replaced by a new one.
    fn replace_dead(&self, producer: &FutureProducer<Quiet>) {
        let Some((code, reason)) = producer.client().fatal_error() else { return };
        tracing::warn!(%code, reason, "the producer has given up; a new one takes its place");
        match self.settings.producer().create_with_context(Quiet) {
            Ok(fresh) => *self.producer.lock().unwrap_or_else(PoisonError::into_inner) = fresh,
            Err(error) => tracing::error!(error = %refused(error), "no new producer"),
        }
    }
}

/// The client ends every call by itself long before. One that is still out then may never come back: parts of the library
/// wait without a limit, as when it closes a consumer.
const LONGEST: Duration = Duration::from_secs(120);
/// What takes longer than this is told to the log.
const LONG: Duration = Duration::from_secs(10);

async fn blocking<T: Send + 'static>(
    partition: u32,
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    let failed = |reason| LogError::Unreadable { partition, offset: 0, reason };
    come_back(LONGEST, &format!("partition {partition}"), work).await?.map_err(failed)?
}

/// What comes of a call, or how it ended without.
async fn come_back<T: Send + 'static>(
    longest: Duration,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Result<T, String>, LogError> {
    let (began, mut work) = (Instant::now(), tokio::task::spawn_blocking(work));
    if let Ok(done) = tokio::time::timeout(LONG.min(longest), &mut work).await {
        return Ok(done.map_err(|error| error.to_string()));
    }
    tracing::warn!(what, seconds = began.elapsed().as_secs(), "Kafka has not answered yet");
    match tokio::time::timeout(longest.saturating_sub(LONG), work).await {
        Ok(done) => {
            tracing::warn!(what, seconds = began.elapsed().as_secs(), "Kafka has answered late");
            Ok(done.map_err(|error| error.to_string()))
        }
        Err(_) => Err(stuck(what, longest)),
    }
}

fn stuck(what: &str, longest: Duration) -> LogError {
    LogError::Stuck { what: what.to_owned(), after_s: longest.as_secs() }
}

#[async_trait]
impl EventLog for KafkaLog {
    fn id(&self) -> &LogId {
        &self.id
    }

    fn partitions(&self) -> u32 {
        self.topic.partitions
    }

    async fn append(&self, batch: Vec<(u32, Event)>) -> Result<Vec<Position>, LogError> {
        let writing = self.writing.clone();
        let appending = tokio::spawn(async move { writing.append(batch).await });
        let appended = appending.await.map_err(|error| LogError::Unwritable(error.to_string()))?;
        self.cursors.wake();
        appended
    }

    async fn read(&self, partition: u32, from: u64, max_records: usize, max_bytes: usize) -> Result<Fetched, LogError> {
        let (writing, cursors) = (self.writing.clone(), self.cursors.clone());
        let read = move || {
            writing.confirm()?;
            cursors.read(partition, from, max_records, max_bytes, record::read)
        };
        let Read { records, next, end } = blocking(partition, read).await?;
        Ok(Fetched { records, next, end })
    }

    async fn bounds(&self, partition: u32) -> Result<(u64, u64), LogError> {
        let (writing, cursors) = (self.writing.clone(), self.cursors.clone());
        let bounds = move || {
            writing.confirm()?;
            cursors.bounds(partition)
        };
        blocking(partition, bounds).await
    }

    fn appended(&self) -> watch::Receiver<u64> {
        self.cursors.appended()
    }

    async fn check_writable(&self) -> Result<(), LogError> {
        if self.writing.trust().is_some_and(|at| at.elapsed() < TRUST) {
            return Ok(());
        }
        let writing = self.writing.clone();
        let looked = tokio::task::spawn_blocking(move || writing.look()).await;
        looked.map_err(|error| LogError::Unwritable(error.to_string()))?
    }

    async fn join(&self, instance: &str) -> Result<Option<Arc<dyn Group>>, LogError> {
        let (writing, instance) = (self.writing.clone(), instance.to_owned());
        let (settings, partitions) = (self.writing.settings.clone(), self.topic.partitions);
        let join = move || {
            writing.confirm()?;
            let topics = Topics::new(&settings)?;
            let state = topics.open(&settings.state_topic, Purpose::State, partitions);
            let state = futures::executor::block_on(state)?;
            if state.partitions != partitions {
                return Err(LogError::Topic {
                    topic: settings.state_topic,
                    problem: format!("it has {} partitions, the events have {partitions}", state.partitions),
                    mend: "remove it while no projector runs: it is made anew, and filled from the tables".into(),
                });
            }
            KafkaGroup::join(&settings, &instance)
        };
        let group = blocking(0, join).await?;
        Ok(Some(Arc::new(group)))
    }

    async fn registry(&self) -> Result<Option<Arc<dyn Registry>>, LogError> {
        let registry = self.registry.get_or_try_init(|| async {
            Ok::<_, LogError>(Arc::new(KafkaRegistry::open(&self.writing.settings).await?))
        });
        Ok(Some(registry.await?.clone()))
    }

    /// The topic's own retention holds: the brokers remove what it says.
    async fn retain(&self, _: &[u64], _: i64) -> Result<(), LogError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_does_not_come_back_is_left() {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let left = come_back(Duration::from_millis(1), "partition 3", move || wait.recv().is_ok()).await.unwrap_err();
        assert!(matches!(&left, LogError::Stuck { what, .. } if what == "partition 3"), "{left}");
        assert!(left.is_transient());
        drop(end);
        assert_eq!(come_back(LONGEST, "partition 3", || 7).await.unwrap(), Ok(7));
    }
}
