//! The state topic: changes of what projectors remember, by partition of the log.

use super::super::{LogError, StateChange};
use super::client::{PATIENCE, Quiet, Settings, refused};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};

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

/// Writes changes as one transaction, closed by `offsets`. What fails is broken off, whole. Blocks.
pub(super) fn write(
    producer: &ThreadedProducer<Quiet>,
    topic: &str,
    changes: &[StateChange],
    offsets: impl FnOnce() -> Result<(), KafkaError>,
) -> Result<(), KafkaError> {
    producer.begin_transaction()?;
    let written = send(producer, topic, changes)
        .and_then(|()| producer.flush(FLUSH))
        .and_then(|()| offsets())
        .and_then(|()| producer.commit_transaction(PATIENCE));
    if written.is_err()
        && let Err(error) = producer.abort_transaction(PATIENCE)
    {
        tracing::debug!(%error, "a transaction that failed could not be broken off; the brokers do it");
    }
    written
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
    config.set("fetch.message.max.bytes", "8000000").set("queued.max.messages.kbytes", "65536");
    let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet).map_err(refused)?;
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
    let asking: BaseConsumer<Quiet> = config.create_with_context(Quiet)?;
    let (_, end) = asking.fetch_watermarks(&settings.state_topic, partition, PATIENCE)?;
    let deadline = Instant::now() + OPEN_TRANSACTION;
    while consumer.fetch_watermarks(&settings.state_topic, partition, PATIENCE)?.1 < end {
        if Instant::now() > deadline {
            return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
