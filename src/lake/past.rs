//! A table as it was: at an older version, or at a time, as any reader of the Delta log would find it.

use super::table::LOG_FOLDER;
use super::{LakeError, Table, TableSnapshot};
use crate::event::time::{format_ms, format_us};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use std::collections::BTreeMap;

/// Files looked for at the same time.
const SIDE_BY_SIDE: usize = 16;

/// Which of its versions a table is read at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsOf {
    Version(u64),
    /// The newest that was committed by then, in µs since the epoch.
    At(i64),
}

impl AsOf {
    fn in_words(self) -> String {
        match self {
            AsOf::Version(version) => format!("at version {version}"),
            AsOf::At(us) => format!("as of {}", format_us(us)),
        }
    }
}

impl Table {
    /// The table's files then; without positions. [`LakeError::Past`] where it did not exist yet, or where what it was made
    /// of is gone: files that have left a table are kept for a day.
    pub async fn as_of(&self, asked: AsOf) -> Result<TableSnapshot, LakeError> {
        let commits = self.commits().await?;
        let gone = |reason: String| LakeError::Past { table: self.name().as_str(), asked: asked.in_words(), reason };
        let kept = || match commits.first_key_value() {
            Some((version, ms)) => {
                let now = commits.last_key_value().map_or(*version, |(version, _)| *version);
                format!("older versions are kept for a day; the log has {version} (of {}) to {now}", format_ms(*ms))
            }
            None => "it has no log".to_owned(),
        };
        let version = match asked {
            AsOf::Version(version) => commits.contains_key(&version).then_some(version),
            AsOf::At(us) => {
                commits.iter().rev().find(|(_, ms)| **ms <= us.div_euclid(1000)).map(|(version, _)| *version)
            }
        };
        let version = version.ok_or_else(|| gone(kept()))?;
        let mut table = self.handle()?;
        // Without the commits before it, or a checkpoint, a version can no longer be made out.
        table.load_version(version).await.map_err(|error| gone(format!("{error}; {}", kept())))?;
        let snapshot = self.read_files(&table)?;
        let live = self.snapshot().files;
        let old = snapshot.files.keys().filter(|path| !live.contains_key(*path));
        let paths: Vec<_> = old.map(|path| self.object_path(path)).collect();
        let found = futures::stream::iter(paths).map(|path| async move { self.store.exists(&path).await });
        let mut found = found.buffer_unordered(SIDE_BY_SIDE);
        while let Some(found) = found.try_next().await? {
            if !found {
                return Err(gone(format!("files of it are deleted; {}", kept())));
            }
        }
        Ok(snapshot)
    }

    /// The commits that are still in the log, and when each was written, in ms.
    async fn commits(&self) -> Result<BTreeMap<u64, i64>, LakeError> {
        let root = self.object_path(LOG_FOLDER);
        let objects = self.store.objects();
        let mut commits = BTreeMap::new();
        let mut listed = objects.list(Some(&root));
        while let Some(object) =
            listed.try_next().await.map_err(|error: object_store::Error| self.store.failed(&error))?
        {
            let version = object.location.filename().and_then(|name| name.strip_suffix(".json")?.parse::<u64>().ok());
            commits.extend(version.map(|version| (version, object.last_modified.timestamp_millis())));
        }
        Ok(commits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::{Change, Lake, TableName};
    use crate::log::LogId;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_older_version_is_read_while_its_files_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let lake = Lake::open(&dir.path().display().to_string(), &LogId("l".into()), 1).await.unwrap();
        let table = lake.table(TableName::Messages);
        let span = crate::lake::Span { partition: 0, start_hour: 1, end_hour: 2 };
        let rows = crate::lake::rows::MessageRows::default().finish();
        let one = table.write(Some(span), None, vec![rows.clone()]).await.unwrap();
        table.commit(Change { add: vec![one.clone()], ..Change::default() }).await.unwrap();
        let other = table.write(Some(span), None, vec![rows]).await.unwrap();
        table
            .commit(Change { add: vec![other.clone()], remove: vec![one.clone()], ..Change::default() })
            .await
            .unwrap();
        let files = |snapshot: TableSnapshot| snapshot.files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(files(table.as_of(AsOf::Version(0)).await.unwrap()), [""; 0]);
        assert_eq!(files(table.as_of(AsOf::Version(1)).await.unwrap()), std::slice::from_ref(&one.path));
        assert_eq!(files(table.as_of(AsOf::At(i64::MAX)).await.unwrap()), [other.path]);
        let told = |error: Result<TableSnapshot, LakeError>| error.unwrap_err().to_string();
        let error = told(table.as_of(AsOf::Version(9)).await);
        assert!(error.contains("messages cannot be read at version 9") && error.contains("to 2"), "{error}");
        assert!(told(table.as_of(AsOf::At(0)).await).contains("as of 1970-01-01"));
        std::fs::remove_file(dir.path().join("messages").join(&one.path)).unwrap();
        assert!(told(table.as_of(AsOf::Version(1)).await).contains("deleted"));
    }
}
