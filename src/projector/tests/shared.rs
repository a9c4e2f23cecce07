//! A log that several processes share, and a client of it that does not come back.

use super::*;
use crate::log::{Assignment, Fetched, Group, Handed, LogId, Position, StateChange};
use async_trait::async_trait;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An embedded log that is shared with others, through clients some of which do not come back.
pub(super) struct Shared {
    log: Arc<EmbeddedLog>,
    joined: Arc<AtomicUsize>,
    /// How many of its clients do not come back.
    stuck: usize,
}

impl Shared {
    /// One whose client comes back.
    pub fn over(log: &Arc<EmbeddedLog>) -> Arc<Self> {
        Arc::new(Self { log: log.clone(), joined: Arc::default(), stuck: 0 })
    }
}

struct Member {
    assignment: watch::Sender<Assignment>,
    is_stuck: bool,
}

#[async_trait]
impl EventLog for Shared {
    fn id(&self) -> &LogId {
        self.log.id()
    }

    fn partitions(&self) -> u32 {
        self.log.partitions()
    }

    async fn append(&self, batch: Vec<(u32, Event)>) -> Result<Vec<Position>, LogError> {
        self.log.append(batch).await
    }

    async fn read(&self, partition: u32, from: u64, records: usize, bytes: usize) -> Result<Fetched, LogError> {
        self.log.read(partition, from, records, bytes).await
    }

    async fn bounds(&self, partition: u32) -> Result<(u64, u64), LogError> {
        self.log.bounds(partition).await
    }

    fn appended(&self) -> watch::Receiver<u64> {
        self.log.appended()
    }

    async fn check_writable(&self) -> Result<(), LogError> {
        self.log.check_writable().await
    }

    async fn join(&self, _: &str) -> Result<Option<Arc<dyn Group>>, LogError> {
        let is_stuck = self.joined.fetch_add(1, Ordering::SeqCst) < self.stuck;
        let partitions = (0..self.partitions()).collect();
        let assignment = watch::Sender::new(Assignment { number: 1, partitions, lost: 0 });
        Ok(Some(Arc::new(Member { assignment, is_stuck })))
    }

    async fn retain(&self, _: &[u64], _: i64) -> Result<(), LogError> {
        Ok(())
    }
}

#[async_trait]
impl Group for Member {
    fn assignment(&self) -> watch::Receiver<Assignment> {
        self.assignment.subscribe()
    }

    fn enter(&self, _: u64) {}

    async fn handed(&self, _: u32) -> Result<Option<Handed>, LogError> {
        if self.is_stuck { Err(LogError::Stuck { what: "a test".into(), after_s: 0 }) } else { Ok(None) }
    }

    async fn store(&self, _: Vec<StateChange>, _: Vec<Handed>) -> Result<(), LogError> {
        Ok(())
    }

    async fn restore(&self, _: u32, _: Box<dyn FnMut(StateChange) -> bool + Send>) -> Result<(), LogError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_client_that_does_not_come_back_joins_with_another() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path()).await;
    append(&log, &events("small")).await;
    let lake = Arc::new(Lake::open("memory:///", log.id(), 3).await.unwrap());
    let joined = Arc::new(AtomicUsize::new(0));
    let shared = Arc::new(Shared { log: log.clone(), joined: joined.clone(), stuck: 1 });
    run_once(dir.path(), &lake, shared, true).await;
    assert_eq!(joined.load(Ordering::SeqCst), 2);
    assert_eq!(sessions(&lake).await.len(), golden_sessions("small"));
}
