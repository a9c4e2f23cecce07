//! The state that goes with the tables of a rebuild, kept beside them for whoever folds their partitions on: pages of
//! changes, and last the mark that says how far they go. It is removed with what else the rebuild was made with.

use super::generation::{folder, rebuild_name};
use super::{Lake, LakeError, TableName};
use crate::log::StateChange;
use borsh::{BorshDeserialize, BorshSerialize};
use object_store::path::Path as ObjectPath;
use std::io::Read;

/// Below a generation's folder.
pub(super) const STATE_FOLDER: &str = "state";
const LEVEL: i32 = 1;
/// No page is larger when it is unpacked.
const LARGEST: u64 = 1 << 30;

/// The state of a partition, as a rebuild has made it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct KeptState {
    /// The next offset to fold.
    pub position: u64,
    pub pages: u32,
    /// The value of the partition's mark.
    pub mark: Option<Vec<u8>>,
}

/// Keys and values.
type Page = Vec<(Vec<u8>, Option<Vec<u8>>)>;

impl Lake {
    fn state_path(&self, rebuild: i64, partition: u32, what: &str) -> ObjectPath {
        let generation = folder(&rebuild_name(rebuild));
        self.table(TableName::Sessions).object_path(&format!("{generation}/{STATE_FOLDER}/{partition}/{what}"))
    }

    async fn keep(&self, path: ObjectPath, record: &impl BorshSerialize) -> Result<(), LakeError> {
        let packed = borsh::to_vec(record).and_then(|bytes| zstd::bulk::compress(&bytes, LEVEL));
        // The same state is kept once more where an answer was lost.
        self.store.create(&path, packed.map_err(|error| self.store.failed(&error))?.into()).await.map(drop)
    }

    async fn found<T: BorshDeserialize>(&self, path: ObjectPath) -> Result<Option<T>, LakeError> {
        let Some(bytes) = self.store.find(&path).await? else { return Ok(None) };
        let unpack = || {
            let mut unpacked = Vec::new();
            zstd::Decoder::new(&bytes[..])?.take(LARGEST).read_to_end(&mut unpacked)?;
            T::try_from_slice(&unpacked)
        };
        unpack().map(Some).map_err(|error| LakeError::Damaged(format!("{path}: {error}")))
    }

    /// Keeps a page of a partition's state. Pages count from 0.
    pub async fn keep_state_page(
        &self,
        rebuild: i64,
        partition: u32,
        page: u32,
        changes: Vec<StateChange>,
    ) -> Result<(), LakeError> {
        let page_of: Page = changes.into_iter().map(|change| (change.key, change.value)).collect();
        self.keep(self.state_path(rebuild, partition, &page.to_string()), &page_of).await
    }

    /// Keeps the mark of a partition's state, all of whose pages are kept.
    pub async fn keep_state(&self, rebuild: i64, partition: u32, state: &KeptState) -> Result<(), LakeError> {
        self.keep(self.state_path(rebuild, partition, "mark"), state).await
    }

    /// What is kept of a partition's state; `None` where it is not, or no longer.
    pub async fn kept_state(&self, rebuild: i64, partition: u32) -> Result<Option<KeptState>, LakeError> {
        self.found(self.state_path(rebuild, partition, "mark")).await
    }

    /// A page of it. [`LakeError::Damaged`] where it is missing.
    pub async fn kept_state_page(
        &self,
        rebuild: i64,
        partition: u32,
        page: u32,
    ) -> Result<Vec<StateChange>, LakeError> {
        let path = self.state_path(rebuild, partition, &page.to_string());
        let missing = || LakeError::Damaged(format!("{path} is missing"));
        let page: Page = self.found(path.clone()).await?.ok_or_else(missing)?;
        Ok(page.into_iter().map(|(key, value)| StateChange { partition, key, value }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::tests::{open, walk};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_state_is_kept_until_the_tables_are_tidied() {
        let dir = tempfile::tempdir().unwrap();
        let lake = open(dir.path()).await;
        let change = |key: u8, value: Option<&[u8]>| StateChange {
            partition: 1,
            key: vec![key],
            value: value.map(<[u8]>::to_vec),
        };
        let pages = [vec![change(1, Some(b"one")), change(2, None)], vec![change(3, Some(b""))]];
        for (number, page) in (0u32..).zip(&pages) {
            lake.keep_state_page(0x7f, 1, number, page.clone()).await.unwrap();
        }
        assert_eq!(lake.kept_state(0x7f, 1).await.unwrap(), None, "not all of it");
        let state = KeptState { position: 9, pages: 2, mark: Some(b"mark".to_vec()) };
        lake.keep_state(0x7f, 1, &state).await.unwrap();
        let other = open(dir.path()).await;
        assert_eq!(other.kept_state(0x7f, 1).await.unwrap(), Some(state));
        assert_eq!(other.kept_state(0x7f, 0).await.unwrap(), None);
        for (number, page) in (0u32..).zip(&pages) {
            assert_eq!(other.kept_state_page(0x7f, 1, number).await.unwrap(), *page);
        }
        assert!(other.kept_state_page(0x7f, 1, 2).await.is_err());
        other.table(TableName::Sessions).delete_dead(1, 2).await.unwrap();
        assert!(other.kept_state(0x7f, 1).await.unwrap().is_some(), "there is time");
        other.table(TableName::Sessions).delete_dead(3, 2).await.unwrap();
        assert_eq!(walk(&dir.path().join("sessions")).len(), 0);
    }
}
