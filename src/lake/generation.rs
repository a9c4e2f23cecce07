//! Generations: `sessions` and `messages` built anew beside the live ones, and taken over whole.
//!
//! The tables of one that is to be taken over lie in a folder below the live tables', with Delta logs of their own, so that
//! the live table can take over their files where they are. One that is to be kept has a folder of its own.

use super::kept_state::STATE_FOLDER;
use super::table::{LOG_FOLDER, lock};
use super::{Lake, LakeError, TableName};
use deltalake::kernel::Transaction;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use std::collections::BTreeMap;
use std::time::Duration;

const PREFIX: &str = "generation-";

/// The folder of a generation below a table's.
pub(super) fn folder(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Whether a path below a table is of what a generation was built and handed over with, its rows apart.
pub(super) fn is_scaffold(path: &str) -> bool {
    let of_it = |rest: &str| rest.starts_with(LOG_FOLDER) || rest.starts_with(STATE_FOLDER);
    path.split_once('/').is_some_and(|(folder, rest)| folder.starts_with(PREFIX) && of_it(rest))
}

/// Generations are not gone on with when they were begun so long ago.
pub const LONGEST_BUILD: Duration = Duration::from_secs(30 * 86_400);

/// Whether the folder of a generation, whose name tells when it was begun, may be one that a process makes or will go on with,
/// where the tables are those of this `rebuild`.
pub(super) fn may_be_built(folder: &str, rebuild: i64, now_ms: i64) -> bool {
    let number = folder.strip_prefix(PREFIX).map(rebuild_number);
    let longest_us = i64::try_from(LONGEST_BUILD.as_micros()).unwrap_or(i64::MAX);
    number.is_some_and(|begun_us| begun_us > rebuild && now_ms.saturating_mul(1000) - begun_us < longest_us)
}

/// Where a generation's tables lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Below the folders of the live tables.
    Below(String),
    /// Beside them.
    Beside(String),
}

impl Place {
    /// The folder of one of its tables, below the store's root.
    pub fn folder(&self, table: TableName) -> String {
        match self {
            Place::Below(name) => format!("{}/{}", table.as_str(), folder(name)),
            Place::Beside(name) => format!("{}/{}", super::kept::folder(name), table.as_str()),
        }
    }
}

/// The number by which the tables tell the rebuild of this name.
pub fn rebuild_number(name: &str) -> i64 {
    i64::from_str_radix(name, 16).unwrap_or(1)
}

/// The name of the rebuild that the tables tell by this number.
pub fn rebuild_name(number: i64) -> String {
    format!("{number:x}")
}

const TABLES: [TableName; 2] = [TableName::Messages, TableName::Sessions];

impl Lake {
    /// Opens a generation's tables, or makes them. It has no `events`. Its files are left alone by [`Lake::tidy`] until it
    /// is adopted or dropped.
    pub async fn generation(&self, name: &str) -> Result<Lake, LakeError> {
        for table in TABLES {
            lock(&self.table(table).building).insert(folder(name));
        }
        self.open_generation(Place::Below(name.to_owned())).await
    }

    pub(super) async fn open_generation(&self, place: Place) -> Result<Lake, LakeError> {
        Lake::open_in(self.store.clone(), &self.log, self.partitions, Some(place)).await
    }

    /// Makes a generation's rows those of the live tables: one commit per table. Repeating it changes nothing. One that is
    /// not complete is refused, and so is one that is to follow another rebuild than that which the tables' rows come from.
    pub async fn adopt(&self, name: &str, follows: i64) -> Result<(), LakeError> {
        let rebuild = rebuild_number(name);
        for table_name in TABLES {
            let table = self.table(table_name);
            table.refresh().await?;
            if table.snapshot().rebuild == rebuild {
                continue;
            }
            let built = self.generation(name).await?.table(table_name).snapshot();
            if built.positions.is_empty() {
                return Err(LakeError::Generation(format!("generation {name} is not complete")));
            }
            let add = built.files.values().cloned().map(|mut file| {
                file.path = format!("{}/{}", folder(name), file.path);
                file
            });
            let add = add.collect();
            let rebuilt = built.positions.iter().map(|(partition, position)| {
                Transaction::new(table.rebuilt_app(*partition), i64::try_from(*position).unwrap_or(i64::MAX))
            });
            table.replace_all(add, (follows, rebuild), rebuilt.collect()).await?;
        }
        self.built(name);
        Ok(())
    }

    /// Removes what a generation that was adopted was while it was built.
    pub async fn forget_building(&self, name: &str) -> Result<(), LakeError> {
        for table in TABLES {
            let log = format!("{}/{LOG_FOLDER}", folder(name));
            self.delete_below(&self.table(table).object_path(&log)).await?;
        }
        Ok(())
    }

    fn built(&self, name: &str) {
        for table in TABLES {
            lock(&self.table(table).building).remove(&folder(name));
        }
    }

    /// Names the rebuild that the rows come from, as far as the tables were read; 0 where there was none.
    pub fn rebuild(&self) -> i64 {
        self.table(TableName::Sessions).snapshot().rebuild
    }

    /// Whether any table has the rows of this rebuild, as far as the tables were read.
    pub fn has_adopted(&self, name: &str) -> bool {
        TABLES.iter().any(|table| self.table(*table).snapshot().rebuild == rebuild_number(name))
    }

    /// The rebuild that one of this name follows, which may be adopted half by now.
    pub fn follows(&self, name: &str) -> i64 {
        let rebuilds = TABLES.map(|table| self.table(table).snapshot().rebuild);
        rebuilds.into_iter().find(|rebuild| *rebuild != rebuild_number(name)).unwrap_or(0)
    }

    /// By partition, the position before which the rows come from a rebuild, which took in events of any age. Empty when
    /// there was none.
    pub async fn rebuilt_to(&self) -> Result<BTreeMap<u32, u64>, LakeError> {
        let table = self.table(TableName::Sessions);
        let app_ids: BTreeMap<u32, String> = (0..self.partitions).map(|p| (p, table.rebuilt_app(p))).collect();
        let values = table.values(&table.load().await?, app_ids.values().cloned().collect()).await?;
        let position = |app_id: &String| values.get(app_id).map(|version| u64::try_from(*version).unwrap_or(0));
        Ok(app_ids.iter().filter_map(|(partition, app_id)| Some((*partition, position(app_id)?))).collect())
    }

    /// Removes a generation's files; refused for one that was adopted.
    pub async fn drop_generation(&self, name: &str) -> Result<(), LakeError> {
        let below = format!("{}/", folder(name));
        // Another process may have made it live.
        for table in TABLES {
            self.table(table).refresh().await?;
        }
        let is_live =
            |table: &TableName| self.table(*table).snapshot().files.keys().any(|path| path.starts_with(&below));
        if TABLES.iter().any(is_live) {
            return Err(LakeError::Generation(format!("generation {name} is part of the live tables")));
        }
        for table_name in TABLES {
            self.delete_below(&self.table(table_name).object_path(&folder(name))).await?;
        }
        self.built(name);
        Ok(())
    }

    pub(super) async fn delete_below(&self, root: &ObjectPath) -> Result<(), LakeError> {
        let listed: Vec<_> = self
            .store
            .objects()
            .list(Some(root))
            .try_collect()
            .await
            .map_err(|error: object_store::Error| self.store.failed(&error))?;
        for object in listed {
            self.store.delete(&object.location).await?;
        }
        Ok(())
    }

    /// Deletes files of a generation that later ones of it have replaced: nobody reads it before it is complete.
    pub async fn sweep(&self, now_ms: i64) -> Result<(), LakeError> {
        for table in TABLES {
            self.table(table).delete_dead(now_ms, 0).await?;
        }
        Ok(())
    }

    /// Bytes of the files of `sessions` and `messages`.
    pub fn bytes(&self) -> u64 {
        let bytes = |table: &TableName| self.table(*table).snapshot().files.values().map(|file| file.size).sum::<u64>();
        TABLES.iter().map(bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::rows::SessionRows;
    use crate::lake::tests::{open, session, walk};
    use crate::lake::{Change, Span, TableSnapshot};

    async fn write(lake: &Lake, hour: i64) {
        let mut rows = SessionRows::default();
        rows.push("bot", "user", &session((hour % 250) as u8, hour));
        let span = Span { partition: 1, start_hour: hour, end_hour: hour + 1 };
        let table = lake.table(TableName::Sessions);
        let add = vec![table.write(Some(span), None, vec![rows.finish()]).await.unwrap()];
        table.commit(Change { add, operation: "test", ..Change::default() }).await.unwrap();
    }

    async fn complete(generation: &Lake) {
        for name in TABLES {
            let change = Change { positions: BTreeMap::from([(0, (None, 7)), (1, (None, 9))]), ..Change::default() };
            generation.table(name).commit(change).await.unwrap();
        }
    }

    fn live(lake: &Lake) -> [TableSnapshot; 2] {
        TABLES.map(|name| lake.table(name).snapshot())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_generation_is_adopted_once_it_is_complete_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let lake = open(dir.path()).await;
        write(&lake, 480_000).await;
        let before = live(&lake);
        let generation = lake.generation("7f").await.unwrap();
        write(&generation, 480_001).await;
        write(&generation, 480_002).await;
        let refused = lake.adopt("7f", 0).await.unwrap_err();
        assert!(
            matches!(&refused, LakeError::Generation(_)) && refused.to_string().contains("not complete"),
            "{refused}"
        );
        assert!(lake.adopt("80", 0).await.is_err(), "there is none of this name");
        assert_eq!(live(&lake), before);
        assert_eq!((lake.rebuild(), lake.rebuilt_to().await.unwrap()), (0, BTreeMap::new()));

        complete(&generation).await;
        lake.adopt("7f", 0).await.unwrap();
        let adopted = live(&lake);
        let paths: Vec<&String> = adopted[1].files.keys().collect();
        assert!(paths.len() == 2 && paths.iter().all(|path| path.starts_with("generation-7f/")), "{paths:?}");
        assert_eq!((lake.rebuild(), lake.rebuilt_to().await.unwrap()), (0x7f, [(0, 7), (1, 9)].into()));
        lake.adopt("7f", 0).await.unwrap();
        assert_eq!(live(&lake), adopted, "once more changes nothing");
        assert!(lake.drop_generation("7f").await.is_err(), "it is live");
        lake.forget_building("7f").await.unwrap();
        let again = open(dir.path()).await;
        again.adopt("7f", 0).await.unwrap();
        assert_eq!(live(&again)[1].files, adopted[1].files, "what it was built with is not needed any more");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_generation_was_built_with_goes_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let lake = open(dir.path()).await;
        let generation = lake.generation("7f").await.unwrap();
        write(&generation, 480_001).await;
        let log = dir.path().join("sessions/generation-7f/_delta_log");
        let logged = || std::fs::read_dir(&log).unwrap().count();
        let table = lake.table(TableName::Sessions);
        table.delete_dead(i64::MAX / 2, 0).await.unwrap();
        assert!(logged() > 0, "it is being built");
        complete(&generation).await;
        lake.adopt("7f", 0).await.unwrap();
        table.delete_dead(i64::MAX / 2, 0).await.unwrap();
        assert_eq!((logged(), walk(&dir.path().join("sessions")).len()), (0, 1), "its rows are live");

        // One that was given up, found by a process that knows nothing of it.
        write(&lake.generation("80").await.unwrap(), 480_002).await;
        let other = open(dir.path()).await;
        other.table(TableName::Sessions).delete_dead(i64::MAX / 2, 0).await.unwrap();
        assert_eq!(walk(&dir.path().join("sessions")).len(), 1);
    }
}
