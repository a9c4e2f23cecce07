//! Several processes on the same tables: who may commit, and that all see the same.

use super::rows::SessionRows;
use super::tests::{archive, offsets, open, session, walk};
use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;

/// What a process that starts now reads.
async fn afresh(dir: &Path) -> Lake {
    open(dir).await
}

async fn assert_same(lake: &Lake, dir: &Path) {
    lake.refresh().await.unwrap();
    let whole = afresh(dir).await;
    for name in TableName::ALL {
        assert_eq!(lake.table(name).snapshot(), whole.table(name).snapshot(), "{}", name.as_str());
    }
}

async fn bucket_file(lake: &Lake, partition: u32, hour: i64) -> FileEntry {
    let mut rows = SessionRows::default();
    rows.push("bot", "user", &session((hour % 250) as u8, hour));
    let span = Span { partition, start_hour: hour, end_hour: hour + 1 };
    lake.table(TableName::Sessions).write(Some(span), None, vec![rows.finish()]).await.unwrap()
}

/// Rewrites a bucket, as a process that refolds its partition does.
async fn rewrite(lake: &Lake, partition: u32, hour: i64) -> Result<TableSnapshot, LakeError> {
    let table = lake.table(TableName::Sessions);
    let snapshot = table.snapshot();
    let span = Span { partition, start_hour: hour, end_hour: hour + 1 };
    let remove = bucket::index(&snapshot).overlapping(span).cloned().collect();
    let add = vec![bucket_file(lake, partition, hour).await];
    let appended_us = BTreeMap::from([(partition, hour * 1000)]);
    table.commit(Change { add, remove, appended_us, operation: "rewrite", ..Change::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_claimed_last_commits_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (open(dir.path()).await, open(dir.path()).await);
    old.claim(&[0, 1]).await.unwrap();
    archive(&old, 0, 0, 5).await.unwrap();
    rewrite(&old, 1, 480_000).await.unwrap();
    new.claim(&[1]).await.unwrap();
    assert_eq!(new.table(TableName::Events).snapshot().owners, BTreeMap::from([(0, 1), (1, 2)]));

    let late = archive(&old, 1, 0, 5).await.unwrap_err();
    let clash = Clash::Owner { held: 1, found: Some(2) };
    assert!(matches!(&late, LakeError::Conflict { partition: Some(1), clash: found, .. } if *found == clash), "{late}");
    assert!(rewrite(&old, 1, 480_000).await.is_err(), "a file of the partition, without a position");
    archive(&old, 0, 5, 6).await.unwrap();
    archive(&new, 1, 0, 5).await.unwrap();
    rewrite(&new, 1, 480_000).await.unwrap();

    old.claim(&[1]).await.unwrap();
    assert!(archive(&new, 1, 5, 6).await.is_err());
    archive(&old, 1, 5, 6).await.unwrap();
    new.claim(&[0]).await.unwrap();
    archive(&new, 0, 6, 7).await.unwrap();
    new.release();
    new.refresh().await.unwrap();
    archive(&new, 1, 6, 7).await.unwrap();
    assert_same(&old, dir.path()).await;
    assert_eq!(offsets(&old, 1).await, (0..7).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_claim_at_the_same_time_get_numbers_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let lakes = futures::future::join_all((0..4).map(|_| open(dir.path()))).await;
    futures::future::join_all(lakes.iter().map(|lake| lake.claim(&[0]))).await.into_iter().for_each(Result::unwrap);
    let mut owners = Vec::new();
    for lake in &lakes {
        lake.refresh().await.unwrap();
        owners.push(lake.table(TableName::Events).snapshot().owners[&0]);
    }
    assert_eq!(owners, [4; 4], "each raised it by one");
    let mut committed = 0;
    for lake in &lakes {
        committed += usize::from(archive(lake, 0, 0, 1).await.is_ok());
    }
    assert_eq!(committed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn following_commits_gives_what_reading_the_whole_table_gives() {
    for seed in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let lakes = [open(dir.path()).await, open(dir.path()).await];
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..30 {
            let lake = &lakes[random.random_range(0..2)];
            let partition = random.random_range(0..2);
            match random.random_range(0..6) {
                0 => lake.claim(&[partition]).await.unwrap(),
                1 => {
                    // Old files are merged, or another process was faster.
                    let _ = lake.merge_events().await;
                    let _ = lake.merge_days(&BTreeMap::from([(partition, 480_100)])).await;
                }
                2 => drop(rewrite(lake, partition, random.random_range(480_000..480_030)).await),
                3 => lake.table(TableName::Events).refresh().await.unwrap(),
                _ => {
                    let events = lake.table(TableName::Events).snapshot();
                    let from = events.positions.get(&partition).copied().unwrap_or(0);
                    drop(archive(lake, partition, from, from + random.random_range(1..4)).await);
                }
            }
        }
        for lake in &lakes {
            assert_same(lake, dir.path()).await;
        }
        for partition in 0..2 {
            let end = lakes[0].table(TableName::Events).snapshot().positions.get(&partition).copied().unwrap_or(0);
            assert_eq!(offsets(&lakes[0], partition).await, (0..end).collect::<Vec<_>>(), "seed {seed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_slept_while_the_log_was_cleaned_up_wakes_to_the_newest_version() {
    for commits_first in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (busy, sleeper) = (open(dir.path()).await, open(dir.path()).await);
        for n in 0..101 {
            archive(&busy, 0, n, n + 1).await.unwrap();
        }
        busy.table(TableName::Events).checkpoint().await.unwrap();
        for version in 0..101 {
            std::fs::remove_file(dir.path().join(format!("events/_delta_log/{version:020}.json"))).unwrap();
        }
        archive(&busy, 0, 101, 102).await.unwrap();
        if commits_first {
            archive(&sleeper, 0, 0, 5).await.unwrap_err();
            archive(&sleeper, 1, 0, 5).await.unwrap();
        } else {
            sleeper.refresh().await.unwrap();
            assert_eq!(sleeper.table(TableName::Events).snapshot().positions, BTreeMap::from([(0, 102)]));
        }
        assert_same(&busy, dir.path()).await;
        assert_same(&sleeper, dir.path()).await;
        assert_eq!(offsets(&busy, 0).await, (0..102).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_others_committed_are_not_taken_for_orphans() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()).await, open(dir.path()).await);
    archive(&one, 0, 0, 5).await.unwrap();
    let table = two.table(TableName::Events);
    assert_eq!(table.delete_dead(i64::MAX / 2, 1).await.unwrap(), 0);
    let pending = one.write_events(vec![tests::events(0, 5..6)]).await.unwrap();
    assert_eq!(table.delete_dead(0, 1000).await.unwrap(), 0, "an orphan for all that is known");
    let change = Change { add: pending, operation: "archive", ..Change::default() };
    one.table(TableName::Events).commit(change).await.unwrap();
    assert_eq!(table.delete_dead(i64::MAX / 2, 1).await.unwrap(), 0, "until it was committed");
    assert_eq!(walk(dir.path()).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_process_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()).await, open(dir.path()).await);
    for n in 0..100 {
        archive(&one, 0, n, n + 1).await.unwrap();
    }
    two.refresh().await.unwrap();
    let written =
        || std::fs::metadata(dir.path().join("events/_delta_log/_last_checkpoint")).unwrap().modified().unwrap();
    one.table(TableName::Events).checkpoint().await.unwrap();
    let first = written();
    two.table(TableName::Events).checkpoint().await.unwrap();
    assert_eq!(written(), first);
    archive(&one, 1, 0, 1).await.unwrap();
    let table = one.table(TableName::Events);
    let (loaded, version) = (table.load().await.unwrap(), table.snapshot().version);
    let values = table.all_values(version).await.unwrap().unwrap();
    assert_eq!(values.len(), 4, "those of the checkpoint, and those after it");
    for (app_id, value) in values {
        let state = loaded.snapshot().unwrap();
        let found = state.transaction_version(loaded.log_store().as_ref(), app_id).await.unwrap();
        assert_eq!(found, Some(value));
    }
    two.tidy(0, &BTreeMap::new()).await.unwrap();
    one.tidy(0, &BTreeMap::new()).await.unwrap();
    assert_same(&one, dir.path()).await;
}
