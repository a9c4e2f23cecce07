//! Ticks: they tell partitions without traffic that time goes on.

use super::Base;
use crate::event::{Event, TICK_TYPE};
use crate::log::{EventLog, LogError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

/// Where ticks come from.
const TICK_SOURCE: &str = "/counterbat";

/// Ticks idle partitions until it is time to end. Several processes do not do it more often than one: whoever is first
/// makes the partition look busy to the others.
pub(super) fn tick(base: &Base, halted: watch::Receiver<bool>) -> JoinHandle<()> {
    let (log, clock, every) = (base.log.clone(), base.clock.clone(), base.config.log.tick_every.0);
    tokio::spawn(async move {
        if every.is_zero() {
            return;
        }
        let mut seen = vec![None; log.partitions() as usize];
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*halted.borrow() {
            interval.tick().await;
            for (partition, seen) in (0u32..).zip(&mut seen) {
                if let Err(error) = tick_idle(&*log, partition, seen, clock()).await {
                    tracing::debug!(%error, partition, "no tick");
                }
            }
        }
    })
}

/// Ticks a partition whose end is still where it was `seen`.
async fn tick_idle(log: &dyn EventLog, partition: u32, seen: &mut Option<u64>, now_us: i64) -> Result<(), LogError> {
    let (_, end) = log.bounds(partition).await?;
    if seen.replace(end) != Some(end) {
        return Ok(());
    }
    let tick = Event {
        id: Uuid::now_v7().to_string(),
        source: TICK_SOURCE.to_owned(),
        kind: TICK_TYPE.to_owned(),
        time_us: Some(now_us),
        content_type: Some("application/json".to_owned()),
        data: b"{}".to_vec(),
        ..Event::default()
    };
    let positions = log.append(vec![(partition, tick)]).await?;
    *seen = positions.last().map(|position| position.offset + 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::embedded::{EmbeddedLog, Options, Retention};
    use std::sync::Arc;

    #[tokio::test]
    async fn only_idle_partitions_are_ticked() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { partitions: 2, cache_bytes: 1 << 20, retention: Retention::default() };
        let log = EmbeddedLog::open(dir.path(), options, Arc::new(|| 5)).unwrap();
        let mut seen = [None, None];
        for round in 0..3 {
            if round == 1 {
                log.append(vec![(1, Event::default())]).await.unwrap();
            }
            for partition in 0..2 {
                tick_idle(&log, partition, &mut seen[partition as usize], 7).await.unwrap();
            }
        }
        assert_eq!(log.bounds(0).await.unwrap().1, 2);
        assert_eq!(log.bounds(1).await.unwrap().1, 2);
        let ticks = log.read(0, 0, 10, 1000).await.unwrap().records;
        assert!(ticks.iter().all(|record| record.event.is_tick() && record.event.time_us == Some(7)));
    }

    #[tokio::test]
    async fn two_who_tick_do_not_tick_more() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { partitions: 1, cache_bytes: 1 << 20, retention: Retention::default() };
        let log = EmbeddedLog::open(dir.path(), options, Arc::new(|| 5)).unwrap();
        let (mut one, mut other) = (None, None);
        for _ in 0..4 {
            tick_idle(&log, 0, &mut one, 7).await.unwrap();
            tick_idle(&log, 0, &mut other, 7).await.unwrap();
        }
        assert_eq!(log.bounds(0).await.unwrap().1, 3, "one tick a round after the first look");
    }
}
