//! The state topic: changes of what projectors remember, by partition of the log.

use super::super::{LogError, StateChange};
use super::LONG;
use super::client::{Brief, PATIENCE, Quiet, Settings, refused};
use super::topic::STATE_RECORD_BYTES;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// A transaction that its process has left open is broken off by the brokers after this; until then nobody can take over
/// what it touched.
const TRANSACTION_MS: &str = "30000";
/// A transaction left open by a process that died is broken off by then.
const OPEN_TRANSACTION: Duration = Duration::from_secs(60);
/// A transaction must be through with its records by then: soon after, the brokers break it off.
const FLUSH: Duration = Duration::from_secs(25);
/// A broker that says nothing for so long is away.
const SILENCE: Duration = Duration::from_secs(30);
/// Where the producer's queue is full, so long is waited before the next try.
const QUEUE_FULL: Duration = Duration::from_millis(5);
const POLL: Duration = Duration::from_millis(100);

pub(super) fn unwritable(topic: &str, error: &KafkaError) -> LogError {
    LogError::Unwritable(format!("topic {topic}: {error}"))
}

/// Who writes the transactions of one process.
pub(super) struct Writer {
    settings: Settings,
    /// Names the process for good.
    instance: String,
    /// None after a transaction has failed, for what state it is in then is hard to say.
    producer: Option<Brief<ThreadedProducer<Quiet>>>,
}

impl Writer {
    /// Breaks off what its namesake before it has left open. Blocks.
    pub fn open(settings: &Settings, instance: &str) -> Result<Self, LogError> {
        let mut writer = Self { settings: settings.clone(), instance: instance.to_owned(), producer: None };
        writer.settle()?;
        Ok(writer)
    }

    /// Sees to it that every transaction before has come to its end: what is read after this changes only by what is
    /// written after it. Blocks.
    pub fn settle(&mut self) -> Result<(), LogError> {
        self.producer = Some(self.take_producer()?);
        Ok(())
    }

    /// Writes changes as one transaction, closed by `offsets` of the member that `member` gives then. What fails is
    /// broken off, whole. Blocks.
    pub fn write(
        &mut self,
        changes: &[StateChange],
        offsets: TopicPartitionList,
        member: impl FnOnce() -> Result<ConsumerGroupMetadata, KafkaError>,
    ) -> Result<(), LogError> {
        let topic = self.settings.state_topic.clone();
        let failed = |error: KafkaError| unwritable(&topic, &error);
        let producer = self.take_producer()?;
        producer.begin_transaction().map_err(failed)?;
        let written = send(&producer, &topic, changes)
            .and_then(|()| producer.flush(FLUSH))
            .and_then(|()| close(&producer, offsets, member()?))
            .and_then(|()| producer.commit_transaction(PATIENCE));
        match &written {
            Ok(()) => {}
            // A call that is still out holds the producer; the next one breaks off what this one has left open.
            Err(KafkaError::Global(RDKafkaErrorCode::OperationTimedOut)) => {}
            Err(_) => {
                if let Err(error) = producer.abort_transaction(PATIENCE) {
                    tracing::debug!(%error, "a transaction that failed could not be broken off; the next producer does it");
                }
            }
        }
        written.map_err(failed)?;
        self.producer = Some(producer);
        Ok(())
    }

    /// The producer, or a new one, which breaks off what the one before has left open.
    fn take_producer(&mut self) -> Result<Brief<ThreadedProducer<Quiet>>, LogError> {
        if let Some(producer) = self.producer.take() {
            return Ok(producer);
        }
        let mut config = self.settings.producer();
        config
            .set("transactional.id", format!("{}-{}", self.settings.state_topic, self.instance))
            .set("transaction.timeout.ms", TRANSACTION_MS)
            .set("message.max.bytes", STATE_RECORD_BYTES.to_string())
            .set("linger.ms", "20");
        let producer: Brief<ThreadedProducer<Quiet>> = Brief::new(config.create_with_context(Quiet).map_err(refused)?);
        let ready = producer.init_transactions(PATIENCE * 3);
        ready.map_err(|error| unwritable(&self.settings.state_topic, &error))?;
        Ok(producer)
    }
}

/// Puts the group's offsets into the transaction. The client may forget its own time limit here when the group's
/// coordinator goes away (librdkafka issues 5456 and 5511), so the call gets a thread, which is left to itself then.
fn close(
    producer: &ThreadedProducer<Quiet>,
    offsets: TopicPartitionList,
    member: ConsumerGroupMetadata,
) -> Result<(), KafkaError> {
    let (producer, (done, wait)) = (producer.clone(), mpsc::channel());
    std::thread::spawn(move || {
        // Nobody waits any more where it took too long.
        let _ = done.send(producer.send_offsets_to_transaction(&offsets, &member, PATIENCE));
    });
    let told = wait.recv_timeout(PATIENCE + Duration::from_secs(2));
    told.unwrap_or_else(|error| {
        Err(KafkaError::Global(match error {
            RecvTimeoutError::Timeout => RDKafkaErrorCode::OperationTimedOut,
            RecvTimeoutError::Disconnected => RDKafkaErrorCode::Fail,
        }))
    })
}

fn send(producer: &ThreadedProducer<Quiet>, topic: &str, changes: &[StateChange]) -> Result<(), KafkaError> {
    for change in changes {
        let mut record =
            BaseRecord::to(topic).partition(i32::try_from(change.partition).unwrap_or(i32::MAX)).key(&change.key[..]);
        if let Some(value) = &change.value {
            record = record.payload(&value[..]);
        }
        let mut sent = producer.send(record);
        while let Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) = sent {
            std::thread::sleep(QUEUE_FULL);
            sent = producer.send(record);
        }
        sent.map_err(|(error, _)| error)?;
    }
    Ok(())
}

/// Reads the changes of a partition, oldest first, to the end that there is now; those of broken-off transactions are
/// left out. Ends early when `each` says false. Blocks.
pub(super) fn read(
    settings: &Settings,
    partition: u32,
    mut each: impl FnMut(StateChange) -> bool,
) -> Result<(), LogError> {
    let topic = &settings.state_topic;
    let number = i32::try_from(partition).unwrap_or(i32::MAX);
    let failed =
        |error: KafkaError| LogError::Unreadable { partition, offset: 0, reason: format!("topic {topic}: {error}") };
    let mut config = settings.consumer();
    config.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
    config.set("fetch.message.max.bytes", "8000000").set("queued.max.messages.kbytes", "32768");
    let consumer: Brief<BaseConsumer<Quiet>> = Brief::new(config.create_with_context(Quiet).map_err(refused)?);
    wait_for_transactions(settings, &consumer, number).map_err(failed)?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, number, Offset::Beginning).map_err(failed)?;
    consumer.assign(&assignment).map_err(failed)?;
    let mut heard = Instant::now();
    loop {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                heard = Instant::now();
                let change = StateChange {
                    partition,
                    key: message.key().unwrap_or_default().to_vec(),
                    value: message.payload().map(<[u8]>::to_vec),
                };
                if !each(change) {
                    return Ok(());
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
            None => {}
            Some(Err(error)) => return Err(failed(error)),
        }
        if heard.elapsed() > SILENCE {
            return Err(failed(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)));
        }
    }
}

/// Waits until what is written now can be read: until no transaction is open that began before.
fn wait_for_transactions(
    settings: &Settings,
    consumer: &BaseConsumer<Quiet>,
    partition: i32,
) -> Result<(), KafkaError> {
    let mut config = settings.consumer();
    config.set("isolation.level", "read_uncommitted");
    let asking: Brief<BaseConsumer<Quiet>> = Brief::new(config.create_with_context(Quiet)?);
    let (_, end) = asking.fetch_watermarks(&settings.state_topic, partition, PATIENCE)?;
    let (began, mut is_told) = (Instant::now(), false);
    while consumer.fetch_watermarks(&settings.state_topic, partition, PATIENCE)?.1 < end {
        if began.elapsed() > OPEN_TRANSACTION {
            return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
        }
        if began.elapsed() > LONG && !std::mem::replace(&mut is_told, true) {
            tracing::warn!(partition, "a transaction is still open that brokers have to break off; waiting for it");
        }
        std::thread::sleep(POLL);
    }
    if is_told {
        tracing::warn!(partition, seconds = began.elapsed().as_secs(), "the open transaction has come to its end");
    }
    Ok(())
}
