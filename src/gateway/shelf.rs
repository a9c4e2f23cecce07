//! Where gateways keep what they know of an account: files of the data directory, or the registry that all processes of
//! a log share.

use crate::durable_file::{self, DurableFileError};
use crate::event::is_account_name;
use crate::log::LogError;
use crate::log::registry::Registry;
use futures::executor::block_on;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// What stands behind the name of a file that was taken over into the registry.
const TAKEN: &str = ".taken";

/// Everything in the registry, as it was at some moment.
pub type Entries = Arc<BTreeMap<String, Vec<u8>>>;

/// Why something could not be kept, read or forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    #[error(transparent)]
    File(#[from] DurableFileError),
    /// The brokers do not answer, mostly; trying again may help.
    #[error("the registry: {0}")]
    Registry(#[from] LogError),
    /// An entry is not as it was written. Whoever writes it anew mends it.
    #[error("{key} in the registry is damaged: {reason}")]
    Damaged { key: String, reason: String },
}

/// What is kept: one of each for an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Account,
    Webhook,
    /// A webhook that is asked for. As a file it is part of the one of [`Kind::Webhook`].
    PendingWebhook,
}

impl Kind {
    /// Of files.
    fn folder(self) -> &'static str {
        match self {
            Kind::Account => "accounts",
            Kind::Webhook | Kind::PendingWebhook => "webhooks",
        }
    }

    /// Of keys; the account's name follows.
    fn prefix(self) -> &'static str {
        match self {
            Kind::Account => "account/",
            Kind::Webhook => "webhook/",
            Kind::PendingWebhook => "pending/",
        }
    }

    pub fn key(self, account: &str) -> String {
        format!("{}{account}", self.prefix())
    }

    /// What of this kind differs: the account's name, with its value now.
    pub fn changes<'a>(self, before: &'a Entries, now: &'a Entries) -> Vec<(&'a str, Option<&'a [u8]>)> {
        let name = |key: &'a String| key.strip_prefix(self.prefix());
        let mut changes = Vec::new();
        for (key, value) in self.range(now) {
            if before.get(key) != Some(value) {
                changes.extend(name(key).map(|name| (name, Some(value.as_slice()))));
            }
        }
        let gone = self.range(before).filter(|(key, _)| !now.contains_key(*key));
        changes.extend(gone.filter_map(|(key, _)| Some((name(key)?, None))));
        changes
    }

    fn range(self, entries: &Entries) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        let prefix = self.prefix();
        entries.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix))
    }
}

/// Reads an entry of the registry.
pub(super) fn parse<T: DeserializeOwned>(kind: Kind, account: &str, value: &[u8]) -> Result<T, ShelfError> {
    let damaged = |reason: String| ShelfError::Damaged { key: kind.key(account), reason };
    if !is_account_name(account) {
        return Err(damaged("it is of no account's name".into()));
    }
    serde_json::from_slice(value).map_err(|error| damaged(error.to_string()))
}

/// The place. Cheap to clone. All that writes waits for disk or brokers.
#[derive(Clone)]
pub struct Shelf(Place);

#[derive(Clone)]
enum Place {
    /// A data directory. Nobody else may write there.
    Files(PathBuf),
    Shared {
        registry: Arc<dyn Registry>,
        entries: watch::Receiver<Entries>,
    },
}

impl Shelf {
    /// Files in a data directory.
    pub fn files(data_dir: &Path) -> Self {
        Self(Place::Files(data_dir.to_owned()))
    }

    /// The registry of all.
    pub fn shared(registry: Arc<dyn Registry>) -> Self {
        Self(Place::Shared { entries: registry.entries(), registry })
    }

    pub(super) fn is_shared(&self) -> bool {
        matches!(self.0, Place::Shared { .. })
    }

    /// What the registry has now; `None` where there are files, which nobody else changes.
    pub(super) fn entries(&self) -> Option<Entries> {
        match &self.0 {
            Place::Files(_) => None,
            Place::Shared { entries, .. } => Some(entries.borrow().clone()),
        }
    }

    /// Whether the registry has something else now.
    pub(super) fn is_newer_than(&self, known: Option<&Entries>) -> bool {
        match (&self.0, known) {
            (Place::Shared { entries, .. }, Some(known)) => !Arc::ptr_eq(&entries.borrow(), known),
            _ => false,
        }
    }

    /// Brings in what others have written up to now.
    pub(super) async fn catch_up(&self) -> Result<(), ShelfError> {
        match &self.0 {
            Place::Files(_) => Ok(()),
            Place::Shared { registry, .. } => Ok(registry.catch_up().await?),
        }
    }

    /// Everything of a kind that files hold, each with its path; none where there is a registry.
    pub(super) fn read_files<T: DeserializeOwned>(&self, kind: Kind) -> Result<Vec<(PathBuf, T)>, ShelfError> {
        let Place::Files(dir) = &self.0 else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for path in durable_file::list(&dir.join(kind.folder()))? {
            if let Some(read) = durable_file::read::<T>(&path)? {
                all.push((path, read));
            }
        }
        Ok(all)
    }

    /// Where a file of that kind lies; `None` where there is a registry.
    pub(super) fn path(&self, kind: Kind, account: &str) -> Option<PathBuf> {
        match &self.0 {
            Place::Files(dir) => Some(dir.join(kind.folder()).join(format!("{account}.json"))),
            Place::Shared { .. } => None,
        }
    }

    /// Puts something in the place of what was kept, durably; `None` removes it. Waits for the disk or the brokers: not on
    /// a thread that others wait for.
    pub(super) fn save(&self, kind: Kind, account: &str, what: Option<&impl Serialize>) -> Result<(), ShelfError> {
        if let Some(path) = self.path(kind, account) {
            return Ok(match what {
                Some(what) => durable_file::write(&path, what),
                None => durable_file::remove(&path),
            }?);
        }
        let Place::Shared { registry, .. } = &self.0 else { return Ok(()) };
        let key = kind.key(account);
        let damaged = |error: serde_json::Error| ShelfError::Damaged { key: key.clone(), reason: error.to_string() };
        let value = what.map(serde_json::to_vec).transpose().map_err(damaged)?;
        Ok(block_on(registry.put(&key, value))?)
    }

    /// Sets a file aside whose content is elsewhere now.
    pub(super) fn set_aside(&self, path: &Path) -> Result<(), ShelfError> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(TAKEN);
        let failed = |error| DurableFileError::Io { path: path.to_owned(), error };
        Ok(std::fs::rename(path, aside).map_err(failed)?)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use async_trait::async_trait;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A process's registry in memory. Others over the same `truth` learn of a change only when they catch up.
    #[derive(Default)]
    pub struct MemoryRegistry {
        truth: Arc<Mutex<Entries>>,
        entries: watch::Sender<Entries>,
        /// Whether no broker answers.
        pub is_away: AtomicBool,
    }

    impl MemoryRegistry {
        /// Another process's.
        pub fn other(&self) -> Arc<Self> {
            Arc::new(Self { truth: self.truth.clone(), ..Self::default() })
        }

        fn check(&self) -> Result<(), LogError> {
            match self.is_away.load(Ordering::SeqCst) {
                true => Err(LogError::Unwritable("no broker".into())),
                false => Ok(()),
            }
        }
    }

    #[async_trait]
    impl Registry for MemoryRegistry {
        fn entries(&self) -> watch::Receiver<Entries> {
            self.entries.subscribe()
        }

        async fn put(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), LogError> {
            self.check()?;
            {
                let mut truth = self.truth.lock().unwrap();
                let entries = Arc::make_mut(&mut truth);
                match value {
                    Some(value) => entries.insert(key.to_owned(), value),
                    None => entries.remove(key),
                };
            }
            self.catch_up().await
        }

        async fn catch_up(&self) -> Result<(), LogError> {
            self.check()?;
            self.entries.send_replace(self.truth.lock().unwrap().clone());
            Ok(())
        }
    }

    #[test]
    fn changes_are_told_by_kind() {
        let entries = |pairs: &[(&str, &str)]| -> Entries {
            let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec());
            Arc::new(pairs.iter().map(pair).collect())
        };
        let before = entries(&[("account/a", "1"), ("account/b", "1"), ("webhook/a", "1"), ("account", "x")]);
        let now = entries(&[("account/b", "2"), ("account/c", "3"), ("node/x", "1"), ("webhook/a", "1")]);
        let told = Kind::Account.changes(&before, &now);
        assert_eq!(told, [("b", Some(&b"2"[..])), ("c", Some(&b"3"[..])), ("a", None)]);
        assert_eq!(Kind::Webhook.changes(&before, &now), []);
    }
}
