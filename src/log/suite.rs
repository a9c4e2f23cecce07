//! What every log must do, written against the trait.

use super::embedded::{EmbeddedLog, Options, Retention};
use super::{EventLog, LogError, Position};
use crate::event::Event;
use std::path::Path;
use std::sync::Arc;

fn open(dir: &Path, partitions: u32, retention: Retention) -> Result<EmbeddedLog, LogError> {
    EmbeddedLog::open(dir, Options { partitions, cache_bytes: 8 << 20, retention }, Arc::new(|| 1_000_000))
}

fn event(n: usize) -> Event {
    Event {
        id: n.to_string(),
        source: "/accounts/bot".into(),
        kind: "com.viber.callback.seen".into(),
        time_us: Some(n as i64),
        data: format!("{{\"n\":{n}}}").into_bytes(),
        ..Event::default()
    }
}

async fn ids(log: &dyn EventLog, partition: u32, from: u64) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let records = log.read(partition, from + ids.len() as u64, 7, 100).await.unwrap().records;
        if records.is_empty() {
            return ids;
        }
        for record in records {
            assert_eq!(record.offset, from + ids.len() as u64);
            ids.push(record.event.id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn appended_records_are_read_in_order_also_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 3, Retention::default()).unwrap();
    let id = log.id().clone();
    for n in (0..30).step_by(3) {
        let positions = log.append(vec![(0, event(n)), (2, event(n + 1)), (0, event(n + 2))]).await.unwrap();
        let offset = n as u64 / 3;
        assert_eq!(
            positions,
            [
                Position { partition: 0, offset: offset * 2 },
                Position { partition: 2, offset },
                Position { partition: 0, offset: offset * 2 + 1 },
            ]
        );
    }
    let first = (ids(&log, 0, 0).await, ids(&log, 1, 0).await, ids(&log, 2, 3).await);
    assert_eq!((first.0.len(), first.1.len(), first.2.len()), (20, 0, 7));
    assert_eq!(first.2[0], "10");
    drop(log);
    let log = loop {
        // The writer thread ends after the last handle.
        match open(dir.path(), 3, Retention::default()) {
            Err(LogError::InUse { .. }) => tokio::task::yield_now().await,
            log => break log.unwrap(),
        }
    };
    assert_eq!(log.id(), &id);
    assert_eq!((ids(&log, 0, 0).await, ids(&log, 1, 0).await, ids(&log, 2, 3).await), first);
    assert_eq!(log.append(vec![(1, event(1))]).await.unwrap(), [Position { partition: 1, offset: 0 }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_appends_get_dense_offsets_in_their_own_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(open(dir.path(), 1, Retention::default()).unwrap());
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let log = log.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    log.append(vec![(0, event(task * 100 + n))]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let ids: Vec<usize> = ids(log.as_ref(), 0, 0).await.iter().map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids.len(), 320);
    for task in 0..16 {
        let own: Vec<usize> = ids.iter().copied().filter(|id| id / 100 == task).collect();
        assert!(own.is_sorted() && own.len() == 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_lands_when_its_caller_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 1, Retention::default()).unwrap();
    let mut appended = log.appended();
    {
        let append = log.append(vec![(0, event(7))]);
        let mut append = Box::pin(append);
        let _ = futures::poll!(&mut append);
    }
    appended.wait_for(|n| *n > 0).await.unwrap();
    assert_eq!(ids(&log, 0, 0).await, ["7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 2, Retention::default()).unwrap();
    assert!(matches!(open(dir.path(), 2, Retention::default()), Err(LogError::InUse { .. })));
    let gone = log.read(0, 1, 1, 1).await.unwrap_err();
    assert!(matches!(gone, LogError::Gone { wanted: 1, start: 0, end: 0, .. }), "{gone}");
    drop(log);
    let other = loop {
        match open(dir.path(), 3, Retention::default()) {
            Err(LogError::InUse { .. }) => tokio::task::yield_now().await,
            other => break other.err().unwrap(),
        }
    };
    assert!(matches!(other, LogError::Partitions { made: 2, asked: 3 }), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_keeps_what_is_not_in_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 2, Retention { max_age_us: Some(10), max_bytes: None }).unwrap();
    for n in 0..10 {
        log.append(vec![(0, event(n)), (1, event(n))]).await.unwrap();
    }
    log.retain(&[4, 0], 1_000_005).await.unwrap();
    assert_eq!(log.bounds(0).await.unwrap(), (0, 10), "nothing is old enough");
    log.retain(&[4, 0], 2_000_000).await.unwrap();
    assert_eq!(log.bounds(0).await.unwrap(), (4, 10));
    assert_eq!(log.bounds(1).await.unwrap(), (0, 10));
    assert!(matches!(log.read(0, 3, 1, 1).await, Err(LogError::Gone { .. })));
    assert_eq!(ids(&log, 0, 4).await.len(), 6);
}
