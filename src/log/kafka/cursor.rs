//! Reading one partition from some offset on.
//!
//! A [`Cursor`] is a consumer of one partition that stands at one offset. [`Cursors`] keeps those that were used last, so
//! that whoever reads on finds one that has fetched ahead, and several readers of a partition do not disturb each other.

use super::super::{LogError, LogId};
use super::client::{Brief, PATIENCE, Quiet, Settings, refused};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Cursors kept of one partition: the fold's, and those of an export or two.
const KEPT: usize = 3;
/// One that nobody has used for so long is let go.
const IDLE: Duration = Duration::from_secs(60);
/// A cursor that nothing has come from for so long is held against the end of its partition; twice behind it, it stalls.
const STALLED: Duration = Duration::from_secs(5);
/// The end is known by then, or it is asked for another time: a reader waits.
const GLANCE: Duration = Duration::from_secs(1);
/// At the end of what has been fetched, so long is waited for more: an event of the client itself may stand before it.
const LINGER: Duration = Duration::from_millis(1);

/// What the client tells of the partition now and then.
#[derive(Default)]
struct Seen {
    /// Everything before this offset was handed over, whether there is a record at the offset before or not.
    passed: AtomicU64,
    /// The end that readers may see.
    end: AtomicU64,
}

struct Context {
    partition: i32,
    seen: Arc<Seen>,
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        let partitions = statistics.topics.values().filter_map(|topic| topic.partitions.get(&self.partition));
        for partition in partitions {
            let offset = |offset: i64| u64::try_from(offset).unwrap_or(0);
            self.seen.end.fetch_max(offset(partition.ls_offset), Ordering::Relaxed);
            if partition.fetchq_cnt == 0 && partition.eof_offset == partition.next_offset {
                self.seen.passed.fetch_max(offset(partition.eof_offset), Ordering::Relaxed);
            }
        }
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Quiet.error(error, reason);
    }
}

impl ConsumerContext for Context {}

/// A consumer of one partition, and the offset it stands at.
struct Cursor {
    consumer: Brief<BaseConsumer<Context>>,
    seen: Arc<Seen>,
    next: u64,
    used: Instant,
    /// When it moved last, or was held against the end.
    moved: Instant,
    /// It was behind the end when it was held against it last, and has not moved since.
    doubted: bool,
}

/// What a cursor handed over, and where it stands.
pub(super) struct Read<T> {
    pub records: Vec<T>,
    /// Where to read on.
    pub next: u64,
    /// The end of the partition as far as it is known: never before `next`.
    pub end: u64,
}

/// The cursors of a topic.
pub(super) struct Cursors {
    settings: Settings,
    id: LogId,
    /// Reads nothing: it asks.
    asking: Brief<BaseConsumer<Quiet>>,
    idle: Mutex<HashMap<u32, Vec<Cursor>>>,
    bump: watch::Sender<u64>,
}

impl Cursors {
    pub fn new(settings: Settings, id: LogId) -> Result<Self, LogError> {
        let asking = Brief::new(settings.consumer().create_with_context(Quiet).map_err(refused)?);
        Ok(Self { settings, id, asking, idle: Mutex::default(), bump: watch::Sender::new(0) })
    }

    /// Changes when something came in.
    pub fn appended(&self) -> watch::Receiver<u64> {
        self.bump.subscribe()
    }

    /// Tells readers that there may be something.
    pub fn wake(&self) {
        self.bump.send_modify(|n| *n += 1);
    }

    /// Reads what has been fetched from `from` on, each record made by `make`. Blocks for a moment at most.
    pub fn read<T>(
        &self,
        partition: u32,
        from: u64,
        max_records: usize,
        max_bytes: usize,
        make: impl Fn(&BorrowedMessage<'_>) -> T,
    ) -> Result<Read<T>, LogError> {
        let mut cursor = match self.take(partition, from) {
            Some(cursor) => cursor,
            None => self.open(partition, from)?,
        };
        let read = cursor.read(max_records, max_bytes, make);
        match read {
            Ok(fetched) if self.is_stalled(partition, &mut cursor) => {
                tracing::warn!(
                    partition,
                    next = fetched.next,
                    "nothing more is fetched of the partition; a new client does"
                );
                self.wake();
                Ok(fetched)
            }
            Ok(fetched) => {
                self.give_back(partition, cursor);
                Ok(fetched)
            }
            Err(error) => Err(self.explain(partition, from, &error)),
        }
    }

    /// Whether a cursor gives nothing although there is something: after leaders have changed a few times in short order,
    /// a client may stand still for good. Found behind once, it may only not have fetched yet what was appended just now.
    fn is_stalled(&self, partition: u32, cursor: &mut Cursor) -> bool {
        if cursor.moved.elapsed() < STALLED {
            return false;
        }
        cursor.moved = Instant::now();
        // The client that asks may be one that stands still, too; and no answer does not say that there is nothing.
        let end = self.ask(&self.asking, partition, GLANCE).or_else(|_| self.ask_anew(partition, GLANCE));
        let is_behind = end.map_or(true, |(_, end)| end > cursor.next);
        std::mem::replace(&mut cursor.doubted, is_behind) && is_behind
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<u32, Vec<Cursor>>> {
        // A cursor is taken out or put in whole.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, partition: u32, from: u64) -> Option<Cursor> {
        let mut idle = self.idle();
        let cursors = idle.get_mut(&partition)?;
        let at = cursors.iter().position(|cursor| cursor.next == from)?;
        Some(cursors.swap_remove(at))
    }

    fn give_back(&self, partition: u32, mut cursor: Cursor) {
        cursor.used = Instant::now();
        let mut idle = self.idle();
        let cursors = idle.entry(partition).or_default();
        cursors.push(cursor);
        cursors.sort_by_key(|cursor| std::cmp::Reverse(cursor.used));
        let fresh = cursors.iter().take(KEPT).take_while(|cursor| cursor.used.elapsed() < IDLE).count();
        cursors.truncate(fresh);
    }

    fn open(&self, partition: u32, from: u64) -> Result<Cursor, LogError> {
        let seen = Arc::new(Seen::default());
        let context = Context { partition: i32::try_from(partition).unwrap_or(i32::MAX), seen: seen.clone() };
        let mut config = self.settings.consumer();
        config.set("statistics.interval.ms", "1000");
        let mut consumer: BaseConsumer<Context> = config.create_with_context(context).map_err(refused)?;
        let bump = self.bump.clone();
        consumer.set_nonempty_callback(move || bump.send_modify(|n| *n += 1));
        let mut assignment = TopicPartitionList::new();
        let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        let (topic, number) = (&self.settings.topic, i32::try_from(partition).unwrap_or(i32::MAX));
        assignment
            .add_partition_offset(topic, number, offset)
            .and_then(|()| consumer.assign(&assignment))
            .map_err(|error| self.unreadable(partition, from, error.to_string()))?;
        let consumer = Brief::new(consumer);
        Ok(Cursor { consumer, seen, next: from, used: Instant::now(), moved: Instant::now(), doubted: false })
    }

    fn unreadable(&self, partition: u32, offset: u64, reason: String) -> LogError {
        LogError::Unreadable { partition, offset, reason }
    }

    /// The error of a read: where the offset is not there, that is asked for anew and told.
    fn explain(&self, partition: u32, from: u64, error: &KafkaError) -> LogError {
        let is_gone = matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
        );
        if !is_gone {
            return self.unreadable(partition, from, error.to_string());
        }
        match self.bounds(partition) {
            Ok((start, end)) => LogError::Gone { log: self.id.clone(), partition, wanted: from, start, end },
            Err(error) => error,
        }
    }

    /// First offset still held, and the end. Blocks until a broker answers.
    pub fn bounds(&self, partition: u32) -> Result<(u64, u64), LogError> {
        let found = self.ask(&self.asking, partition, PATIENCE).or_else(|_| self.ask_anew(partition, PATIENCE));
        found.map_err(|error| self.unreadable(partition, 0, error.to_string()))
    }

    /// A client that looked at the topic while brokers were away may go on not knowing its partitions; a new one asks.
    fn ask_anew(&self, partition: u32, within: Duration) -> Result<(u64, u64), KafkaError> {
        self.ask(&Brief::new(self.settings.consumer().create_with_context(Quiet)?), partition, within)
    }

    fn ask(&self, client: &BaseConsumer<Quiet>, partition: u32, within: Duration) -> Result<(u64, u64), KafkaError> {
        let number = i32::try_from(partition).unwrap_or(i32::MAX);
        let (start, end) = client.fetch_watermarks(&self.settings.topic, number, within)?;
        Ok((u64::try_from(start).unwrap_or(0), u64::try_from(end).unwrap_or(0)))
    }
}

impl Cursor {
    fn read<T>(
        &mut self,
        max_records: usize,
        max_bytes: usize,
        make: impl Fn(&BorrowedMessage<'_>) -> T,
    ) -> Result<Read<T>, KafkaError> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        let before = self.next;
        let (mut linger, mut is_second) = (LINGER, false);
        while records.len() < max_records.max(1) && bytes < max_bytes.max(1) {
            match self.consumer.poll(std::mem::replace(&mut linger, LINGER)) {
                Some(Ok(message)) => {
                    let offset = u64::try_from(message.offset()).unwrap_or(0);
                    // After a change of leader the client may hand over again what it has handed over.
                    if offset >= self.next {
                        self.next = offset + 1;
                        bytes += message.payload_len() + message.key_len() + 100;
                        records.push(make(&message));
                    }
                }
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) => return Err(error),
                // An event of the client itself may have taken the time. What stands behind it is found now: of a queue that
                // has not been empty nothing is told.
                None if !is_second => (linger, is_second) = (Duration::ZERO, true),
                None => break,
            }
        }
        if records.is_empty() {
            self.next = self.next.max(self.seen.passed.load(Ordering::Relaxed));
        }
        if self.next > before {
            (self.moved, self.doubted) = (Instant::now(), false);
        }
        let end = self.seen.end.load(Ordering::Relaxed).max(self.next);
        Ok(Read { records, next: self.next, end })
    }
}

/// What the client goes on after by itself.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::NotCoordinator
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

    const TOPIC: &str = "counterbat.events";

    /// A cluster of one broker with `records` in partition 0, and its cursors.
    fn with_records(records: u32) -> (MockCluster<'static, DefaultProducerContext>, Cursors) {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 1, 1).unwrap();
        let settings = settings(&cluster.bootstrap_servers());
        let producer: BaseProducer = settings.producer().create().unwrap();
        for record in 0..records {
            producer.send(BaseRecord::<str, str>::to(TOPIC).partition(0).payload(&record.to_string())).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
        (cluster, Cursors::new(settings, LogId("test".into())).unwrap())
    }

    fn settings(brokers: &str) -> Settings {
        Settings {
            brokers: brokers.into(),
            topic: TOPIC.into(),
            state_topic: "counterbat.state".into(),
            registry_topic: "counterbat.registry".into(),
            group: "counterbat".into(),
            create_topics: false,
            replication: None,
            partitions: 1,
            properties: Vec::new(),
        }
    }

    /// The number of records read from the beginning on, once there are any; each reading as if long after the one before.
    fn read_patiently(cursors: &Cursors) -> usize {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            let read = cursors.read(0, 0, 100, 1 << 20, |_| ()).unwrap();
            if !read.records.is_empty() {
                return read.records.len();
            }
            for cursor in cursors.idle().values_mut().flatten().filter(|cursor| is_still(cursor)) {
                cursor.moved -= STALLED;
            }
        }
        0
    }

    /// Has one cursor at the beginning, whose client gives nothing any more.
    fn stall(cursors: &Cursors) {
        let cursor = cursors.open(0, 0).unwrap();
        cursor.consumer.assign(&TopicPartitionList::new()).unwrap();
        cursors.give_back(0, cursor);
    }

    fn is_still(cursor: &Cursor) -> bool {
        cursor.consumer.assignment().is_ok_and(|assignment| assignment.count() == 0)
    }

    #[test]
    fn a_cursor_that_stands_still_is_replaced() {
        let (_cluster, cursors) = with_records(3);
        stall(&cursors);
        assert_eq!(read_patiently(&cursors), 3);
    }

    #[test]
    fn a_cursor_that_stands_still_is_replaced_though_the_client_that_asks_stands_still_too() {
        let (_cluster, mut cursors) = with_records(3);
        // Nobody listens there.
        let asking = settings("127.0.0.1:1").consumer().create_with_context(Quiet).unwrap();
        cursors.asking = Brief::new(asking);
        stall(&cursors);
        assert_eq!(read_patiently(&cursors), 3);
    }

    #[test]
    fn a_cursor_is_replaced_when_nobody_says_whether_there_is_more() {
        let (cluster, cursors) = with_records(3);
        stall(&cursors);
        cluster.broker_down(1).unwrap();
        let silent = Cursors::new(settings("127.0.0.1:1"), LogId("test".into())).unwrap();
        let mut cursor = cursors.take(0, 0).unwrap();
        for stalled in [false, true] {
            cursor.moved -= STALLED;
            assert_eq!(silent.is_stalled(0, &mut cursor), stalled);
        }
    }

    #[test]
    fn a_cursor_at_the_end_is_kept() {
        let (_cluster, cursors) = with_records(0);
        stall(&cursors);
        for _ in 0..3 {
            cursors.idle().values_mut().flatten().for_each(|cursor| cursor.moved -= STALLED);
            assert!(cursors.read(0, 0, 100, 1 << 20, |_| ()).unwrap().records.is_empty());
            assert!(cursors.idle().values().flatten().all(is_still));
        }
    }

    /// A partition as the client tells of it.
    fn told(queued: i64, eof: i64, next: i64) -> Statistics {
        let mut statistics = Statistics::default();
        let partition = rdkafka::statistics::Partition {
            fetchq_cnt: queued,
            eof_offset: eof,
            next_offset: next,
            ls_offset: next,
            ..Default::default()
        };
        let mut topic = rdkafka::statistics::Topic::default();
        topic.partitions.insert(3, partition);
        statistics.topics.insert("counterbat.events".into(), topic);
        statistics
    }

    #[test]
    fn an_end_without_a_record_counts_only_once_everything_was_handed_over() {
        let seen = Arc::new(Seen::default());
        let context = Context { partition: 3, seen: seen.clone() };
        context.stats(told(1, 9, 9));
        assert_eq!((seen.passed.load(Ordering::Relaxed), seen.end.load(Ordering::Relaxed)), (0, 9));
        context.stats(told(0, 9, 12));
        assert_eq!(seen.passed.load(Ordering::Relaxed), 0);
        context.stats(told(0, 12, 12));
        assert_eq!(seen.passed.load(Ordering::Relaxed), 12);
        context.stats(told(0, -1001, -1001));
        assert_eq!(seen.passed.load(Ordering::Relaxed), 12);
    }
}
