//! The registry of the log, and what this process remembers of it: a gateway starts while no broker answers, with the
//! accounts and webhooks that it knew last.

use super::AppError;
use crate::durable_file;
use crate::log::registry::Registry;
use crate::log::{EventLog, LogError};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// So often the registry is asked for while no broker answers.
const RETRY: Duration = Duration::from_secs(1);

type Entries = BTreeMap<String, Vec<u8>>;

/// Opens the registry; `None` where the log has none. Where no broker answers, `memory`, a file, says what it held last: if
/// there is one, that has to do until one does.
pub(super) async fn open(log: &Arc<dyn EventLog>, memory: PathBuf) -> Result<Option<Arc<dyn Registry>>, AppError> {
    let remembered: Option<BTreeMap<String, String>> = durable_file::read(&memory)?;
    let opened = match (&remembered, log.check_writable().await) {
        (Some(_), Err(error)) if error.is_transient() => Err(error),
        _ => log.registry().await,
    };
    let (registry, known) = match (opened, remembered) {
        (Ok(None), _) => return Ok(None),
        (Ok(Some(registry)), _) => {
            let known = registry.entries().borrow().clone();
            (Some(registry), known)
        }
        (Err(error), Some(remembered)) if error.is_transient() => {
            tracing::warn!(%error, "accounts and webhooks are those that were known last, until a broker answers");
            let bytes = remembered.into_iter().map(|(key, value)| (key, value.into_bytes()));
            (None, Arc::new(bytes.collect()))
        }
        (Err(error), _) => return Err(error.into()),
    };
    let (entries, source) = (watch::Sender::new(known), watch::Sender::new(registry));
    let (seen, opened) = (entries.subscribe(), source.subscribe());
    let following = tokio::spawn(follow(log.clone(), source, entries, memory));
    Ok(Some(Arc::new(Remembered { entries: seen, source: opened, following })))
}

/// A registry that is known before it can be asked.
struct Remembered {
    entries: watch::Receiver<Arc<Entries>>,
    /// `None` while no broker has answered.
    source: watch::Receiver<Option<Arc<dyn Registry>>>,
    following: JoinHandle<()>,
}

impl Drop for Remembered {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Remembered {
    fn source(&self) -> Result<Arc<dyn Registry>, LogError> {
        let away =
            || LogError::Unwritable("accounts and webhooks cannot be changed before a broker has answered".into());
        self.source.borrow().clone().ok_or_else(away)
    }

    /// Waits until everything that `source` shows is shown here.
    async fn wait_shown(&self, source: &dyn Registry) {
        let (theirs, mut ours) = (source.entries(), self.entries.clone());
        while !Arc::ptr_eq(&theirs.borrow(), &ours.borrow_and_update()) {
            if ours.changed().await.is_err() {
                return;
            }
        }
    }
}

#[async_trait]
impl Registry for Remembered {
    fn entries(&self) -> watch::Receiver<Arc<Entries>> {
        self.entries.clone()
    }

    async fn put(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), LogError> {
        let source = self.source()?;
        source.put(key, value).await?;
        self.wait_shown(&*source).await;
        Ok(())
    }

    async fn catch_up(&self) -> Result<(), LogError> {
        let source = self.source()?;
        source.catch_up().await?;
        self.wait_shown(&*source).await;
        Ok(())
    }
}

/// Opens what is not open yet; then shows and remembers every change, for ever.
async fn follow(
    log: Arc<dyn EventLog>,
    source: watch::Sender<Option<Arc<dyn Registry>>>,
    entries: watch::Sender<Arc<Entries>>,
    memory: PathBuf,
) {
    let mut registry = source.borrow().clone();
    while registry.is_none() {
        tokio::time::sleep(RETRY).await;
        registry = log.registry().await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the registry cannot be read yet");
            None
        });
    }
    let Some(registry) = registry else { return };
    source.send_replace(Some(registry.clone()));
    let mut theirs = registry.entries();
    loop {
        let now = theirs.borrow_and_update().clone();
        let (path, kept) = (memory.clone(), now.clone());
        let written = tokio::task::spawn_blocking(move || durable_file::write(&path, &texts(&kept))).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "accounts and webhooks are not remembered for a start without brokers");
        }
        // What is shown is remembered: nobody is told of an account that a kill could take back.
        entries.send_replace(now);
        if theirs.changed().await.is_err() {
            return;
        }
    }
}

/// As they are written down: what is of this program is text.
fn texts(entries: &Entries) -> BTreeMap<&str, &str> {
    entries.iter().filter_map(|(key, value)| Some((key.as_str(), std::str::from_utf8(value).ok()?))).collect()
}
