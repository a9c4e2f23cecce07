//! Generations that are kept beside the live tables, for what-if: `generations/<name>/` below the tables' place, with Delta
//! tables of their own and `generation.json`, which appears once they are complete. Without it there is no generation.

use super::claim::claims;
use super::generation::Place;
use super::store::Created;
use super::table::lock;
use super::{Lake, LakeError};
use crate::event::shown::brief;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

const FOLDER: &str = "generations";
const INFO: &str = "generation.json";
/// Schemas that SQL has already, and the word for the live tables.
const RESERVED: [&str; 5] = ["public", "live", "information_schema", "pg_catalog", "counterbat"];
const LONGEST_NAME: usize = 63;

/// What a kept generation was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GenerationInfo {
    pub name: String,
    /// µs since the epoch, UTC, like the other times.
    pub made_us: i64,
    /// The policies it was folded under, in words.
    pub policies: String,
    /// The accounts that were refolded; empty: all of them.
    pub accounts: Vec<String>,
    /// Rows with an earlier reference time were not refolded.
    pub from_us: Option<i64>,
    /// Events that were folded.
    pub events: u64,
    /// When the newest of them was appended.
    pub up_to_us: Option<i64>,
    /// By log partition, the offset before which all were.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub positions: BTreeMap<u32, u64>,
    /// By log partition, from the first to the last, in ms: how far time had come there.
    pub watermarks_ms: Vec<Option<i64>>,
    /// The one policy of what was refolded, by name; `None` where it was those of the config.
    #[serde(default)]
    pub policy: Option<String>,
    /// That policy, as TOML, where it is none of those that every process knows.
    pub policy_toml: Option<String>,
    /// Bytes of its files.
    pub bytes: u64,
    /// The claim it was made under; empty where it was made before there were any.
    #[serde(default)]
    pub made_by: String,
}

/// A kept generation, open.
#[derive(Clone)]
pub struct Kept {
    pub info: GenerationInfo,
    /// Its tables; it has no `events`.
    pub lake: Arc<Lake>,
}

/// Whether a generation that is kept can have this name: a plain word of SQL that no other schema has.
pub fn is_generation_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.len() <= LONGEST_NAME
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(plain)
        && !RESERVED.contains(&name)
}

/// The folder of a kept generation below the tables' place.
pub(super) fn folder(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

fn info_path(name: &str) -> ObjectPath {
    ObjectPath::from(format!("{}/{INFO}", folder(name)))
}

impl Lake {
    /// Opens the tables of a generation that is to be kept, or makes them. It is not to be seen before [`Lake::publish`].
    pub async fn generation_to_keep(&self, name: &str) -> Result<Lake, LakeError> {
        if !is_generation_name(name) {
            return Err(LakeError::Generation(format!("no generation can be named `{}`", brief(name))));
        }
        self.open_generation(Place::Beside(name.to_owned())).await
    }

    /// Lets everybody see a generation, whose tables are complete.
    pub async fn publish(&self, info: &GenerationInfo) -> Result<(), LakeError> {
        let text = serde_json::to_vec_pretty(info).map_err(|error| self.store.failed(&error))?;
        match self.store.create(&info_path(&info.name), text.into()).await? {
            Created::Yes => Ok(()),
            Created::Exists => Err(LakeError::Generation(format!("there is a generation {} already", info.name))),
        }
    }

    /// What is known of a generation; `None` where there is none of this name.
    pub async fn generation_info(&self, name: &str) -> Result<Option<GenerationInfo>, LakeError> {
        if !is_generation_name(name) {
            return Ok(None);
        }
        let Some(bytes) = self.store.find(&info_path(name)).await? else { return Ok(None) };
        let damaged = |error: serde_json::Error| LakeError::Damaged(format!("{}: {error}", info_path(name)));
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// All of them, by name.
    pub async fn generations(&self) -> Result<Vec<GenerationInfo>, LakeError> {
        let mut found = Vec::new();
        for name in self.names().await? {
            found.extend(self.generation_info(&name).await?);
        }
        found.sort_by(|one: &GenerationInfo, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// The names of all, complete or not.
    async fn names(&self) -> Result<Vec<String>, LakeError> {
        let listed = self.store.objects().list_with_delimiter(Some(&ObjectPath::from(FOLDER))).await;
        let listed = match listed {
            Err(object_store::Error::NotFound { .. }) => return Ok(Vec::new()),
            listed => listed.map_err(|error| self.store.failed(&error))?,
        };
        let names =
            listed.common_prefixes.iter().filter_map(ObjectPath::filename).filter(|name| is_generation_name(name));
        Ok(names.map(str::to_owned).collect())
    }

    /// Opens a generation to read it; `None` where there is none of this name. One that was opened before is not read anew,
    /// as it never changes.
    pub async fn kept(&self, name: &str) -> Result<Option<Kept>, LakeError> {
        let Some(info) = self.generation_info(name).await? else {
            lock(&self.kept).remove(name);
            return Ok(None);
        };
        if let Some(known) = lock(&self.kept).get(name).filter(|known| known.info == info) {
            return Ok(Some(known.clone()));
        }
        let lake = self.open_generation(Place::Beside(name.to_owned())).await?;
        let kept = Kept { info, lake: Arc::new(lake) };
        lock(&self.kept).insert(name.to_owned(), kept.clone());
        Ok(Some(kept))
    }

    /// Removes a generation, complete or not; its claim stays, and is to be the caller's. Queries that read it at this moment
    /// fail.
    pub async fn drop_kept(&self, name: &str) -> Result<(), LakeError> {
        if !is_generation_name(name) {
            return Err(LakeError::Generation(format!("there is no generation `{}`", brief(name))));
        }
        lock(&self.kept).remove(name);
        self.store.delete(&info_path(name)).await?;
        for path in self.traces(name).await? {
            self.store.delete(&path).await?;
        }
        Ok(())
    }

    /// Whether anything of a generation is there but its claim, complete or not.
    pub async fn has_traces(&self, name: &str) -> Result<bool, LakeError> {
        Ok(!self.traces(name).await?.is_empty())
    }

    async fn traces(&self, name: &str) -> Result<Vec<ObjectPath>, LakeError> {
        let objects = self.store.objects();
        let root = ObjectPath::from(folder(name));
        let listed: Vec<_> = objects
            .list(Some(&root))
            .try_collect()
            .await
            .map_err(|error: object_store::Error| self.store.failed(&error))?;
        let claims = claims(name);
        Ok(listed.into_iter().map(|object| object.location).filter(|path| !path.prefix_matches(&claims)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::TableName;
    use crate::log::LogId;

    #[test]
    fn names_are_plain_words_of_sql() {
        let longest = "a".repeat(LONGEST_NAME);
        for name in ["march", "march_v2", "a", &longest] {
            assert!(is_generation_name(name), "{name}");
        }
        let longer = "a".repeat(LONGEST_NAME + 1);
        for name in ["", "March", "2march", "_a", "a-b", "a.b", "../x", "public", "live", "information_schema", &longer]
        {
            assert!(!is_generation_name(name), "{name}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_generation_is_there_from_its_publication_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let lake = Lake::open(&dir.path().display().to_string(), &LogId("l".into()), 1).await.unwrap();
        assert_eq!(lake.generations().await.unwrap(), []);
        lake.generation_to_keep("march").await.unwrap();
        assert!(lake.kept("march").await.unwrap().is_none() && lake.generations().await.unwrap().is_empty());
        let info = GenerationInfo {
            name: "march".into(),
            made_us: 7,
            policies: "vbm".into(),
            accounts: Vec::new(),
            from_us: None,
            events: 3,
            up_to_us: Some(5),
            positions: BTreeMap::from([(0, 4)]),
            watermarks_ms: vec![Some(6)],
            policy: Some("vbm".into()),
            policy_toml: None,
            bytes: 0,
            made_by: String::new(),
        };
        lake.publish(&info).await.unwrap();
        assert!(matches!(lake.publish(&info).await, Err(LakeError::Generation(_))));
        assert_eq!(lake.generations().await.unwrap(), std::slice::from_ref(&info));
        let kept = lake.kept("march").await.unwrap().unwrap();
        assert_eq!((&kept.info, kept.lake.table(TableName::Sessions).snapshot().version), (&info, 0));
        // The live tables have no part in it.
        lake.tidy(i64::MAX, &BTreeMap::new()).await.unwrap();
        assert!(lake.has_traces("march").await.unwrap());
        lake.drop_kept("march").await.unwrap();
        assert!(lake.kept("march").await.unwrap().is_none() && !lake.has_traces("march").await.unwrap());
    }
}
