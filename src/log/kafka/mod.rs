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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, watch};
use topic::{Purpose, Topic, Topics};

/// For so long after something was acknowledged the log counts as writable without asking.
const TRUST: Duration = Duration::from_secs(2);
/// Where the producer's queue is full, so long is waited before the next try.
const QUEUE_FULL: Duration = Duration::from_millis(5);

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
    producer: Mutex<FutureProducer<Quiet>>,
    /// When something was acknowledged last, unless something failed since.
    acknowledged: Mutex<Option<Instant>>,
}

impl KafkaLog {
    /// Opens the topic, which is made where it is missing and may be made.
    pub async fn open(settings: Settings) -> Result<Self, LogError> {
        // The client's threads are made and asked here, and some of its calls block.
        let opening = tokio::task::spawn_blocking(move || futures::executor::block_on(Self::open_blocking(settings)));
        opening.await.map_err(|error| LogError::Unwritable(error.to_string()))?
    }

    async fn open_blocking(settings: Settings) -> Result<Self, LogError> {
        let topics = Topics::new(&settings)?;
        let id = LogId(format!("{}.{}", topics.cluster_id()?, settings.topic));
        let topic = topics.open(&settings.topic, Purpose::Events, settings.partitions).await?;
        if topic.partitions != settings.partitions {
            return Err(LogError::Partitions { made: topic.partitions, asked: settings.partitions });
        }
        drop(topics);
        let cursors = Arc::new(Cursors::new(settings.clone(), id.clone())?);
        let writing = Arc::new(Writing::open(settings)?);
        Ok(Self { id, topic, writing, cursors, registry: OnceCell::new() })
    }

    /// Whether every partition has a leader and enough copies. Blocks.
    fn look(writing: &Writing, topic: Topic) -> Result<(), LogError> {
        let name = &writing.settings.topic;
        let unwritable = |reason: String| LogError::Unwritable(format!("topic {name}: {reason}"));
        let metadata = writing.producer().client().fetch_metadata(Some(name), PATIENCE / 5);
        let metadata = metadata.map_err(|error| unwritable(error.to_string()))?;
        let found = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
        if found.len() < topic.partitions as usize {
            return Err(unwritable("it is not there".into()));
        }
        for partition in found {
            if let Some(error) = partition.error() {
                let error = RDKafkaErrorCode::from(error);
                return Err(unwritable(format!("partition {}: {error}", partition.id())));
            }
            if partition.isr().len() < topic.min_insync {
                return Err(unwritable(format!("partition {} has too few copies in sync", partition.id())));
            }
        }
        writing.acknowledged(true);
        Ok(())
    }
}

impl Writing {
    fn open(settings: Settings) -> Result<Self, LogError> {
        let producer = settings.producer().create_with_context(Quiet).map_err(refused)?;
        Ok(Self { settings, producer: Mutex::new(producer), acknowledged: Mutex::new(None) })
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

    /// Sends all, in order, then waits for all.
    async fn append(&self, batch: Vec<(u32, Event)>) -> Result<Vec<Position>, LogError> {
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

async fn blocking<T: Send + 'static>(
    partition: u32,
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| LogError::Unreadable { partition, offset: 0, reason: error.to_string() })?
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
        let cursors = self.cursors.clone();
        let read = move || cursors.read(partition, from, max_records, max_bytes, record::read);
        let Read { records, next, end } = blocking(partition, read).await?;
        Ok(Fetched { records, next, end })
    }

    async fn bounds(&self, partition: u32) -> Result<(u64, u64), LogError> {
        let cursors = self.cursors.clone();
        blocking(partition, move || cursors.bounds(partition)).await
    }

    fn appended(&self) -> watch::Receiver<u64> {
        self.cursors.appended()
    }

    async fn check_writable(&self) -> Result<(), LogError> {
        if self.writing.trust().is_some_and(|at| at.elapsed() < TRUST) {
            return Ok(());
        }
        let (writing, topic) = (self.writing.clone(), self.topic);
        let looked = tokio::task::spawn_blocking(move || Self::look(&writing, topic)).await;
        looked.map_err(|error| LogError::Unwritable(error.to_string()))?
    }

    async fn join(&self, instance: &str) -> Result<Option<Arc<dyn Group>>, LogError> {
        let (settings, instance) = (self.writing.settings.clone(), instance.to_owned());
        let partitions = self.topic.partitions;
        let join = move || {
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
