//! Records of which the newest counts: small objects under rising numbers, each written only where its name is new. Of two
//! processes that go on from the same record at once, one is refused.

use super::LakeError;
use super::store::{Created, Store};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The records below a folder.
pub(super) struct Chain<'a> {
    pub store: &'a Store,
    pub root: ObjectPath,
}

impl Chain<'_> {
    /// Where the record of this number lies.
    pub fn path(&self, number: u64) -> ObjectPath {
        ObjectPath::from(format!("{}/{number:020}.json", self.root))
    }

    /// The newest record, and its number.
    pub async fn newest<T: DeserializeOwned>(&self) -> Result<Option<(u64, T)>, LakeError> {
        for number in self.numbers().await?.into_iter().rev() {
            // One that is gone since has a newer one, or was taken back.
            let Some(bytes) = self.store.find(&self.path(number)).await? else { continue };
            let damaged = |error: serde_json::Error| LakeError::Damaged(format!("{}: {error}", self.path(number)));
            return serde_json::from_slice(&bytes).map(|record| Some((number, record))).map_err(damaged);
        }
        Ok(None)
    }

    /// Goes on from the record of number `after`, 0 where there is none. The new number, or `None` where another process
    /// has gone on from it. No two records may be the same.
    pub async fn append<T: Serialize>(&self, after: u64, record: &T) -> Result<Option<u64>, LakeError> {
        let number = after + 1;
        let text = serde_json::to_vec_pretty(record).map_err(|error| self.store.failed(&error))?;
        let created = self.store.create(&self.path(number), text.into()).await?;
        let numbers = self.numbers().await?;
        // One that slept while others went on writes a number that is past.
        if created == Created::Exists || numbers.last() != Some(&number) {
            return Ok(None);
        }
        for older in numbers.into_iter().filter(|older| *older < number) {
            // What stays is removed by the next one.
            let removed = self.store.delete(&self.path(older)).await;
            removed.unwrap_or_else(|error| tracing::debug!(%error, "an older record stays"));
        }
        Ok(Some(number))
    }

    /// Those of the records that are there, in order.
    pub async fn numbers(&self) -> Result<Vec<u64>, LakeError> {
        let objects = self.store.objects();
        let listed: Vec<_> = objects
            .list(Some(&self.root))
            .try_collect()
            .await
            .map_err(|error: object_store::Error| self.store.failed(&error))?;
        let number = |path: &ObjectPath| path.filename()?.strip_suffix(".json")?.parse().ok();
        let mut numbers: Vec<u64> = listed.iter().filter_map(|object| number(&object.location)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}
