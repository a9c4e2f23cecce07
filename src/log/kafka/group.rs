//! The projectors that share a topic: a consumer group, and the changelog of what they remember.
//!
//! The group's consumer reads nothing: it says which partitions are this process's, and holds a revocation back until
//! what was folded of them is committed. What a batch of the state changes goes to the state topic in one transaction
//! with the group's offsets, so that a member that has been taken over can store nothing.

use super::super::{Assignment, Group, Handed, LogError, StateChange};
use super::changelog::{self, Writer};
use super::client::{PATIENCE, Quiet, Settings, refused};
use super::{LONGEST, come_back, stuck};
use async_trait::async_trait;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// A member that is silent for so long is out, and others take its partitions.
const SESSION_MS: &str = "10000";
/// A member that nobody polls for so long leaves: one that a call holds which does not come back. Longer than [`LET_GO`].
const POLL_WITHIN_MS: &str = "90000";
/// How often the group's thread looks whether it is time to end.
const POLL: Duration = Duration::from_millis(100);
/// Leaving the group takes at most this long.
const LEAVE: Duration = Duration::from_secs(5);
/// A projector that does not let go of revoked partitions by then has lost them.
const LET_GO: Duration = Duration::from_secs(60);

/// What the rebalance callbacks and the projector tell each other.
struct Talk {
    topic: String,
    assignment: watch::Sender<Assignment>,
    /// The newest assignment that the projector works by.
    entered: Mutex<u64>,
    moved: Condvar,
    leaving: AtomicBool,
}

impl Talk {
    fn tell(&self, partitions: BTreeSet<u32>, lost: bool) -> u64 {
        let mut number = 0;
        self.assignment.send_modify(|assignment| {
            number = assignment.number + 1;
            let lost = if lost { number } else { assignment.lost };
            *assignment = Assignment { number, partitions: partitions.into_iter().collect(), lost };
        });
        number
    }

    fn entered(&self) -> MutexGuard<'_, u64> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the projector works by nothing older; false when it does not come to that in time.
    fn wait_entered(&self, number: u64) -> bool {
        let is_behind = |entered: &mut u64| *entered < number && !self.leaving.load(Ordering::Relaxed);
        let waited = self.moved.wait_timeout_while(self.entered(), LET_GO, is_behind);
        !waited.is_ok_and(|(_, timeout)| timeout.timed_out())
    }
}

#[derive(Clone)]
struct Member(Arc<Talk>);

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Quiet.error(error, reason);
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(revoked) = rebalance else { return };
        let lost = consumer.assignment_lost();
        let mut left = held(consumer);
        for partition in partitions(revoked) {
            left.remove(&partition);
        }
        tracing::info!(left = ?left, lost, "partitions are taken away");
        let number = self.0.tell(left.clone(), lost);
        if !self.0.wait_entered(number) {
            tracing::warn!("the projector has not let go of revoked partitions in time and starts over");
            self.0.tell(left, true);
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(assigned) => {
                // Others read; this consumer only belongs.
                if let Err(error) = consumer.pause(assigned) {
                    tracing::debug!(%error, "pausing");
                }
                let held = held(consumer);
                tracing::info!(partitions = ?held, topic = self.0.topic, "partitions are assigned");
                self.0.tell(held, false);
            }
            Rebalance::Revoke(_) => {}
            Rebalance::Error(error) => tracing::warn!(%error, "the group cannot rebalance"),
        }
    }
}

fn held(consumer: &BaseConsumer<Member>) -> BTreeSet<u32> {
    consumer.assignment().map(|assignment| partitions(&assignment).collect()).unwrap_or_default()
}

fn partitions(list: &TopicPartitionList) -> impl Iterator<Item = u32> + use<> {
    let elements = list.elements();
    let numbers: Vec<u32> = elements.iter().filter_map(|element| u32::try_from(element.partition()).ok()).collect();
    numbers.into_iter()
}

/// This process's place in the group. Dropping it leaves the group.
pub struct KafkaGroup {
    settings: Settings,
    talk: Arc<Talk>,
    /// None once it has left.
    consumer: Option<Arc<BaseConsumer<Member>>>,
    writer: Arc<Mutex<Writer>>,
    polling: Option<JoinHandle<()>>,
}

impl KafkaGroup {
    /// Joins the group. `instance` names this process for good: one that starts again under its name breaks off what it
    /// left half done. Blocks.
    pub fn join(settings: &Settings, instance: &str) -> Result<Self, LogError> {
        let writer = Writer::open(settings, instance)?;
        let talk = Arc::new(Talk {
            topic: settings.topic.clone(),
            assignment: watch::Sender::new(Assignment::default()),
            entered: Mutex::new(0),
            moved: Condvar::new(),
            leaving: AtomicBool::new(false),
        });
        let mut config = settings.consumer();
        config.set("auto.offset.reset", "earliest").set("partition.assignment.strategy", "cooperative-sticky");
        let ours = [
            ("session.timeout.ms", SESSION_MS),
            ("heartbeat.interval.ms", "1000"),
            ("max.poll.interval.ms", POLL_WITHIN_MS),
        ];
        for (name, value) in ours {
            if !settings.properties.iter().any(|(own, _)| own == name) {
                config.set(name, value);
            }
        }
        let consumer: BaseConsumer<Member> = config.create_with_context(Member(talk.clone())).map_err(refused)?;
        let consumer = Arc::new(consumer);
        let failed = |error: &dyn std::fmt::Display| LogError::Unwritable(format!("group {}: {error}", settings.group));
        consumer.subscribe(&[&settings.topic]).map_err(|error| failed(&error))?;
        let (member, talking) = (consumer.clone(), talk.clone());
        let poll = move || {
            while !talking.leaving.load(Ordering::Relaxed) {
                if let Some(Err(error)) = member.poll(POLL) {
                    tracing::debug!(%error, "the group");
                }
            }
        };
        let polling =
            std::thread::Builder::new().name("kafka-group".into()).spawn(poll).map_err(|error| failed(&error))?;
        Ok(Self {
            settings: settings.clone(),
            talk,
            consumer: Some(consumer),
            writer: Arc::new(Mutex::new(writer)),
            polling: Some(polling),
        })
    }

    fn offsets(&self, positions: &[Handed]) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        for handed in positions {
            let partition = i32::try_from(handed.partition).unwrap_or(i32::MAX);
            let offset = Offset::Offset(i64::try_from(handed.position).unwrap_or(i64::MAX));
            let mut element = list.add_partition(&self.settings.topic, partition);
            element.set_offset(offset)?;
            element.set_metadata(&handed.basis);
        }
        Ok(list)
    }
}

impl Drop for KafkaGroup {
    fn drop(&mut self) {
        {
            let _entered = self.talk.entered();
            self.talk.leaving.store(true, Ordering::Relaxed);
            self.talk.moved.notify_all();
        }
        let (polling, consumer) = (self.polling.take(), self.consumer.take());
        let (left, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            if let Some(polling) = polling {
                // A thread that panicked has said so itself.
                let _ = polling.join();
            }
            drop(consumer);
            // Nobody waits any more where that took too long.
            let _ = left.send(());
        });
        // Leaving needs the brokers: without them the others notice by its silence.
        if wait.recv_timeout(LEAVE).is_err() {
            tracing::warn!("the group could not be left in time; the others notice when the session is over");
        }
    }
}

#[async_trait]
impl Group for KafkaGroup {
    fn assignment(&self) -> watch::Receiver<Assignment> {
        self.talk.assignment.subscribe()
    }

    fn enter(&self, number: u64) {
        *self.talk.entered() = number;
        self.talk.moved.notify_all();
    }

    async fn handed(&self, partition: u32) -> Result<Option<Handed>, LogError> {
        let (consumer, topic) = (self.consumer.clone(), self.settings.topic.clone());
        let writer = self.writer.clone();
        let ask = move || {
            let Some(consumer) = consumer else { return Ok(None) };
            writer.lock().unwrap_or_else(PoisonError::into_inner).settle()?;
            let mut list = TopicPartitionList::new();
            list.add_partition(&topic, i32::try_from(partition).unwrap_or(i32::MAX));
            let failed = |error: KafkaError| LogError::Unreadable {
                partition,
                offset: 0,
                reason: format!("the group's offset: {error}"),
            };
            let list = consumer.committed_offsets(list, PATIENCE * 3).map_err(failed)?;
            Ok(list.elements().first().and_then(|element| match element.offset() {
                Offset::Offset(position) => {
                    let position = u64::try_from(position).ok()?;
                    Some(Handed { partition, position, basis: element.metadata().to_owned() })
                }
                _ => None,
            }))
        };
        super::blocking(partition, ask).await
    }

    async fn store(&self, changes: Vec<StateChange>, positions: Vec<Handed>) -> Result<(), LogError> {
        let topic = self.settings.state_topic.clone();
        let offsets = self.offsets(&positions).map_err(|error| changelog::unwritable(&topic, &error))?;
        let (writer, consumer) = (self.writer.clone(), self.consumer.clone());
        // Whoever asks may be gone by the time this is written, and the partitions be lost.
        let (talk, entered) = (self.talk.clone(), *self.talk.entered());
        let write = move || {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            writer.write(&changes, offsets, || {
                let member = consumer.and_then(|consumer| consumer.group_metadata()).ok_or(KafkaError::Canceled)?;
                // In this order: what was lost later makes the member's generation an old one, which the brokers refuse.
                let lost = talk.assignment.borrow().lost > entered;
                if lost { Err(KafkaError::Canceled) } else { Ok(member) }
            })
        };
        come_back(LONGEST, &self.settings.state_topic, write).await?.map_err(LogError::Unwritable)?
    }

    async fn restore(
        &self,
        partition: u32,
        mut each: Box<dyn FnMut(StateChange) -> bool + Send>,
    ) -> Result<(), LogError> {
        let settings = self.settings.clone();
        let came = Arc::new(AtomicU64::new(0));
        let coming = came.clone();
        let each = move |change| {
            coming.fetch_add(1, Ordering::Relaxed);
            each(change)
        };
        let mut reading = tokio::task::spawn_blocking(move || changelog::read(&settings, partition, each));
        // However long it takes: it is not stuck as long as something comes.
        let mut seen = 0;
        loop {
            if let Ok(read) = tokio::time::timeout(LONGEST, &mut reading).await {
                return read.map_err(|error| LogError::Unwritable(error.to_string()))?;
            }
            let now = came.load(Ordering::Relaxed);
            if std::mem::replace(&mut seen, now) == now {
                return Err(stuck(&self.settings.state_topic, LONGEST));
            }
        }
    }
}
