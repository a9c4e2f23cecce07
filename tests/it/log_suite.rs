//! What every log promises, written against the trait: the unit tests run it on the embedded log, the tests of the whole
//! program on a topic of Kafka.
//!
//! `open` opens the log of one test with a number of partitions, also a second time once all its handles are gone.

use super::{Event, EventLog, LogError, Position, read_before};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

type Opened = Result<Arc<dyn EventLog>, LogError>;

/// Nothing that must happen is waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Ids from an offset to the end, read a few at a time.
async fn ids(log: &dyn EventLog, partition: u32, from: u64) -> Vec<String> {
    let (_, end) = log.bounds(partition).await.unwrap();
    let (mut ids, mut next) = (Vec::new(), from);
    while next < end {
        let fetched = read_before(log, partition, next, end, 7, 100).await.unwrap();
        for record in fetched.records {
            assert_eq!(record.offset, next);
            assert_eq!(record.event, event(record.event.id.parse().unwrap()));
            ids.push(record.event.id);
            next += 1;
        }
    }
    ids
}

pub async fn appended_records_are_read_in_order_also_after_reopening<F: Future<Output = Opened>>(
    open: impl Fn(u32) -> F,
) {
    let log = open(3).await.unwrap();
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
    let first = (ids(&*log, 0, 0).await, ids(&*log, 1, 0).await, ids(&*log, 2, 3).await);
    assert_eq!((first.0.len(), first.1.len(), first.2.len()), (20, 0, 7));
    assert_eq!(first.2[0], "10");
    drop(log);
    let log = open(3).await.unwrap();
    assert_eq!(log.id(), &id);
    assert_eq!((ids(&*log, 0, 0).await, ids(&*log, 1, 0).await, ids(&*log, 2, 3).await), first);
    assert_eq!(log.append(vec![(1, event(1))]).await.unwrap(), [Position { partition: 1, offset: 0 }]);
}

pub async fn concurrent_appends_get_dense_offsets_in_their_own_order<F: Future<Output = Opened>>(
    open: impl Fn(u32) -> F,
) {
    let log = open(1).await.unwrap();
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
    let ids: Vec<usize> = ids(&*log, 0, 0).await.iter().map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids.len(), 320);
    for task in 0..16 {
        let own: Vec<usize> = ids.iter().copied().filter(|id| id / 100 == task).collect();
        assert!(own.is_sorted() && own.len() == 20);
    }
}

/// One who waits at the end hears of it.
pub async fn an_append_lands_when_its_caller_goes_away<F: Future<Output = Opened>>(open: impl Fn(u32) -> F) {
    let log = open(1).await.unwrap();
    let mut appended = log.appended();
    assert_eq!(log.read(0, 0, 9, 999).await.unwrap().records, []);
    {
        let append = log.append(vec![(0, event(7))]);
        let mut append = Box::pin(append);
        let _ = futures::poll!(&mut append);
    }
    let heard = async {
        while log.read(0, 0, 9, 999).await.unwrap().records.is_empty() {
            appended.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.unwrap();
    assert_eq!(ids(&*log, 0, 0).await, ["7"]);
}

pub async fn what_cannot_be_is_refused_and_named<F: Future<Output = Opened>>(open: impl Fn(u32) -> F) {
    let log = open(2).await.unwrap();
    let gone = read_before(&*log, 0, 1, 2, 1, 1).await.unwrap_err();
    assert!(matches!(gone, LogError::Gone { wanted: 1, start: 0, end: 0, .. }), "{gone}");
    assert!(!gone.is_transient());
    drop(log);
    let other = open(3).await.err().unwrap();
    assert!(matches!(other, LogError::Partitions { made: 2, asked: 3 }), "{other}");
}

/// Hands each promise to a macro, which makes a test of it.
macro_rules! every_log {
    ($run:ident) => {
        $run!(appended_records_are_read_in_order_also_after_reopening);
        $run!(concurrent_appends_get_dense_offsets_in_their_own_order);
        $run!(an_append_lands_when_its_caller_goes_away);
        $run!(what_cannot_be_is_refused_and_named);
    };
}
pub(crate) use every_log;
