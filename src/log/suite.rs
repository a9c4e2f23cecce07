//! What every log must do, on the embedded log; and what only that does.

use super::embedded::{EmbeddedLog, Options, Retention};
use super::{EventLog, LogError, Position, read_before};
use crate::event::Event;
use std::path::Path;
use std::sync::Arc;

#[path = "../../tests/it/log_suite.rs"]
mod promises;

fn open(dir: &Path, partitions: u32, retention: Retention) -> Result<EmbeddedLog, LogError> {
    EmbeddedLog::open(dir, Options { partitions, cache_bytes: 8 << 20, retention }, Arc::new(|| 1_000_000))
}

/// Opens the log as soon as the writer thread of the one before has ended.
async fn reopen(dir: &Path, partitions: u32) -> Result<Arc<dyn EventLog>, LogError> {
    loop {
        match open(dir, partitions, Retention::default()) {
            Err(LogError::InUse { .. }) => tokio::task::yield_now().await,
            log => return Ok(Arc::new(log?)),
        }
    }
}

macro_rules! embedded {
    ($promise:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $promise() {
            let dir = tempfile::tempdir().unwrap();
            promises::$promise(|partitions| reopen(dir.path(), partitions)).await;
        }
    };
}

promises::every_log!(embedded);

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _log = open(dir.path(), 2, Retention::default()).unwrap();
    assert!(matches!(open(dir.path(), 2, Retention::default()), Err(LogError::InUse { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_keeps_what_is_not_in_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 2, Retention { max_age_us: Some(10), max_bytes: None }).unwrap();
    for _ in 0..10 {
        log.append(vec![(0, Event::default()), (1, Event::default())]).await.unwrap();
    }
    log.retain(&[4, 0], 1_000_005).await.unwrap();
    assert_eq!(log.bounds(0).await.unwrap(), (0, 10), "nothing is old enough");
    log.retain(&[4, 0], 2_000_000).await.unwrap();
    assert_eq!(log.bounds(0).await.unwrap(), (4, 10));
    assert_eq!(log.bounds(1).await.unwrap(), (0, 10));
    assert!(matches!(log.read(0, 3, 1, 1).await, Err(LogError::Gone { .. })));
    assert_eq!(log.read(0, 4, 10, 1000).await.unwrap().records.len(), 6);
}
