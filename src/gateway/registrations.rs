//! Where each bot wants its callbacks: what it asked for with `set_webhook`, kept in the data directory.
//!
//! Viber only knows the gateway's own address, so the bot's is remembered here: stored before the call is relayed,
//! confirmed once Viber has taken it, dropped otherwise. Until then the old one stays in force, but for Viber's
//! validation, which goes to the new one. One file an account.

use crate::durable_file::{self, DurableFileError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::OwnedMutexGuard;

/// Events that Viber reports only to those who ask for them (Viber doc, `set_webhook`); all others always come.
const OPTIONAL: [&str; 4] = ["delivered", "seen", "failed", "conversation_started"];
/// Viber's check of a webhook.
const VALIDATION: &str = "webhook";

/// What a bot asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    pub url: String,
    /// `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_types: Option<Vec<String>>,
    #[serde(default)]
    pub send_name: bool,
    #[serde(default)]
    pub send_photo: bool,
}

impl Webhook {
    /// Whether the bot is told of such an event: those it asked for, and always those that are not optional.
    pub fn wants(&self, event: &str) -> bool {
        match &self.event_types {
            Some(asked) => !OPTIONAL.contains(&event) || asked.iter().any(|one| one == event),
            None => true,
        }
    }
}

/// As it is stored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Registration {
    #[serde(default)]
    confirmed: Option<Arc<Webhook>>,
    /// Asked for, not answered by Viber yet.
    #[serde(default)]
    pending: Option<Arc<Webhook>>,
}

/// The webhooks of all bots.
pub struct Registrations {
    dir: PathBuf,
    by_account: RwLock<HashMap<String, Registration>>,
    /// One change of an account at a time.
    changing: RwLock<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Registrations {
    /// Reads what `dir` holds. What was pending when the process ended was never answered,
    /// so the bot knows it as failed: it is dropped.
    pub fn open(dir: &Path) -> Result<Self, DurableFileError> {
        let mut by_account = HashMap::new();
        for path in durable_file::list(dir)? {
            let Some(account) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            let Some(read) = durable_file::read::<Registration>(&path)? else { continue };
            by_account.insert(account.to_owned(), Registration { pending: None, ..read });
        }
        Ok(Self { dir: dir.to_owned(), by_account: RwLock::new(by_account), changing: RwLock::default() })
    }

    /// The webhook in force.
    pub fn confirmed(&self, account: &str) -> Option<Arc<Webhook>> {
        self.registration(account).confirmed
    }

    /// Where an event goes now: nowhere when there is no webhook or it was not asked for.
    pub fn target(&self, account: &str, event: &str) -> Option<Arc<Webhook>> {
        let Registration { confirmed, pending } = self.registration(account);
        let webhook = if event == VALIDATION { pending.or(confirmed) } else { confirmed };
        webhook.filter(|webhook| webhook.wants(event))
    }

    /// Those that have one.
    pub fn accounts(&self) -> Vec<String> {
        let all = self.by_account.read().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .filter(|(_, registration)| registration.confirmed.is_some())
            .map(|(account, _)| account.clone())
            .collect()
    }

    /// Begins to set (`None`: remove) an account's webhook: waits for a change that is under way, then stores the wish.
    pub async fn begin(
        self: &Arc<Self>,
        account: &str,
        wanted: Option<Webhook>,
    ) -> Result<PendingChange, DurableFileError> {
        let lock = {
            let mut changing = self.changing.write().unwrap_or_else(PoisonError::into_inner);
            changing.entry(account.to_owned()).or_default().clone()
        };
        let turn = lock.lock_owned().await;
        let wanted = wanted.map(Arc::new);
        let before = self.registration(account).confirmed;
        if wanted.is_some() {
            self.store(account, Registration { confirmed: before.clone(), pending: wanted.clone() }).await?;
        }
        Ok(PendingChange { all: self.clone(), account: account.to_owned(), before, wanted, _turn: turn })
    }

    /// Forgets an account's webhook, with the account. Waits for the disk.
    pub fn forget(&self, account: &str) -> Result<(), DurableFileError> {
        durable_file::remove(&self.dir.join(format!("{account}.json")))?;
        self.by_account.write().unwrap_or_else(PoisonError::into_inner).remove(account);
        Ok(())
    }

    fn registration(&self, account: &str) -> Registration {
        let all = self.by_account.read().unwrap_or_else(PoisonError::into_inner);
        all.get(account).cloned().unwrap_or_default()
    }

    /// Writes it, durably, then lets it take effect.
    async fn store(&self, account: &str, registration: Registration) -> Result<(), DurableFileError> {
        let path = self.dir.join(format!("{account}.json"));
        let kept = registration.clone();
        let written = tokio::task::spawn_blocking(move || match kept {
            Registration { confirmed: None, pending: None } => durable_file::remove(&path),
            kept => durable_file::write(&path, &kept),
        });
        // The task ends without a result only in a panic or at the end of the process.
        written.await.unwrap_or(Ok(()))?;
        self.keep(account, registration);
        Ok(())
    }

    fn keep(&self, account: &str, registration: Registration) {
        let mut all = self.by_account.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(account.to_owned(), registration);
    }
}

/// A `set_webhook` under way.
pub struct PendingChange {
    all: Arc<Registrations>,
    account: String,
    before: Option<Arc<Webhook>>,
    wanted: Option<Arc<Webhook>>,
    _turn: OwnedMutexGuard<()>,
}

impl PendingChange {
    /// Viber has taken it: from now on it is in force. When it cannot be stored it is in force all the same, until the
    /// process ends: the error says so.
    pub async fn confirm(self) -> Result<(), DurableFileError> {
        let registration = Registration { confirmed: self.wanted.clone(), pending: None };
        let stored = self.all.store(&self.account, registration.clone()).await;
        if stored.is_err() {
            self.all.keep(&self.account, registration);
        }
        stored
    }

    /// Viber has not taken it: what was in force stays so.
    pub async fn forget(self) -> Result<(), DurableFileError> {
        if self.wanted.is_none() {
            return Ok(());
        }
        let registration = Registration { confirmed: self.before.clone(), pending: None };
        let stored = self.all.store(&self.account, registration.clone()).await;
        if stored.is_err() {
            // On disk it is still pending, which a start drops as well.
            self.all.keep(&self.account, registration);
        }
        stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(url: &str, types: Option<&[&str]>) -> Webhook {
        let event_types = types.map(|types| types.iter().map(|one| (*one).to_owned()).collect());
        Webhook { url: url.into(), event_types, send_name: true, send_photo: false }
    }

    fn url(found: Option<Arc<Webhook>>) -> Option<String> {
        found.map(|webhook| webhook.url.clone())
    }

    #[tokio::test]
    async fn a_webhook_is_in_force_once_confirmed_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let all = Arc::new(Registrations::open(dir.path()).unwrap());
        let first = all.begin("shop", Some(webhook("https://a", None))).await.unwrap();
        assert_eq!((all.confirmed("shop"), url(all.target("shop", "message"))), (None, None));
        assert_eq!(url(all.target("shop", "webhook")).as_deref(), Some("https://a"));
        first.confirm().await.unwrap();
        let second = all.begin("shop", Some(webhook("https://b", Some(&["seen"])))).await.unwrap();
        assert_eq!(url(all.target("shop", "seen")).as_deref(), Some("https://a"));
        // As if the process had ended here.
        let again = Arc::new(Registrations::open(dir.path()).unwrap());
        assert_eq!(url(again.target("shop", "webhook")).as_deref(), Some("https://a"));
        second.forget().await.unwrap();
        assert_eq!(url(all.target("shop", "webhook")).as_deref(), Some("https://a"));
        all.begin("shop", None).await.unwrap().confirm().await.unwrap();
        assert_eq!(all.confirmed("shop"), None);
        assert_eq!(Registrations::open(dir.path()).unwrap().confirmed("shop"), None);
        all.begin("shop", Some(webhook("https://c", None))).await.unwrap().confirm().await.unwrap();
        all.forget("shop").unwrap();
        assert_eq!(all.confirmed("shop"), None);
        assert_eq!(Registrations::open(dir.path()).unwrap().confirmed("shop"), None);
    }

    #[tokio::test]
    async fn changes_of_an_account_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let all = Arc::new(Registrations::open(dir.path()).unwrap());
        let first = all.begin("shop", Some(webhook("https://a", None))).await.unwrap();
        let waits = {
            tokio::spawn({
                let all = all.clone();
                async move { all.begin("shop", Some(webhook("https://b", None))).await }
            })
        };
        all.begin("other", Some(webhook("https://c", None))).await.unwrap().confirm().await.unwrap();
        assert!(!waits.is_finished());
        first.confirm().await.unwrap();
        waits.await.unwrap().unwrap().confirm().await.unwrap();
        assert_eq!(url(all.confirmed("shop")).as_deref(), Some("https://b"));
    }

    #[test]
    fn optional_events_are_asked_for() {
        let some = webhook("https://a", Some(&["seen"]));
        for event in ["seen", "message", "subscribed", "unsubscribed", "webhook", "client_status", "new_one"] {
            assert!(some.wants(event), "{event}");
        }
        for event in ["delivered", "failed", "conversation_started"] {
            assert!(!some.wants(event), "{event}");
            assert!(webhook("https://a", None).wants(event));
        }
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("shop.json"), "{").unwrap();
        let error = Registrations::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("shop.json"), "{error}");
    }
}
