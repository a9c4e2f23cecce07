//! Where each bot wants its callbacks: what it asked for with `set_webhook`, kept in the data directory or in the registry
//! of all gateways.
//!
//! Viber only knows the gateway's own address, so the bot's is remembered here: stored before the call is relayed,
//! confirmed once Viber has taken it, dropped otherwise. Until then the old one stays in force, but for Viber's
//! validation, which goes to the new one. One file an account; in the registry one entry for the webhook in force and one
//! for what is asked for, so that gateways that set the same webhook at the same time cannot undo what Viber has taken.

use super::shelf::{Entries, Kind, Shelf, ShelfError, parse};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;

/// Events that Viber reports only to those who ask for them (Viber doc, `set_webhook`); all others always come.
const OPTIONAL: [&str; 4] = ["delivered", "seen", "failed", "conversation_started"];
/// Viber's check of a webhook.
const VALIDATION: &str = "webhook";
/// Viber waits for the answer to its check, so what other gateways have stored is waited for no longer than this.
const CATCH_UP: Duration = Duration::from_secs(1);
/// A webhook in force that could not be stored is tried again so soon.
const STORE_AGAIN: Duration = Duration::from_secs(1);

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
pub(super) struct Registration {
    #[serde(default)]
    pub confirmed: Option<Arc<Webhook>>,
    /// Asked for, not answered by Viber yet.
    #[serde(default)]
    pub pending: Option<Arc<Webhook>>,
}

/// The webhooks of all bots.
pub struct Registrations {
    shelf: Shelf,
    known: RwLock<Known>,
    /// One change of an account at a time, in this process.
    changing: RwLock<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What is known of them.
#[derive(Default)]
struct Known {
    by_account: HashMap<String, Registration>,
    /// What the registry had then.
    entries: Option<Entries>,
    /// Taken by Viber while the registry was away: in force here, and stored when it is back.
    unstored: HashMap<String, Option<Arc<Webhook>>>,
}

impl Registrations {
    /// Reads what there is. What was pending in a file when the process ended was never answered, so the bot knows it as
    /// failed: it is dropped. In the registry it may be another gateway's, and is under way.
    pub fn open(shelf: Shelf) -> Result<Self, ShelfError> {
        let mut known = Known::default();
        for (path, read) in shelf.read_files::<Registration>(Kind::Webhook)? {
            let Some(account) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            known.by_account.insert(account.to_owned(), Registration { pending: None, ..read });
        }
        if let Some(entries) = shelf.entries()
            && let Some(error) = known.take_in(entries).into_iter().next()
        {
            return Err(error);
        }
        Ok(Self { shelf, known: RwLock::new(known), changing: RwLock::default() })
    }

    /// The webhook in force.
    pub fn confirmed(&self, account: &str) -> Option<Arc<Webhook>> {
        self.registration(account).confirmed
    }

    /// Where an event goes now: nowhere when there is no webhook or it was not asked for. Viber's check of a webhook may be
    /// for one that another gateway is setting, and come within milliseconds: what others have stored is looked up first.
    pub async fn target(&self, account: &str, event: &str) -> Option<Arc<Webhook>> {
        if event == VALIDATION {
            match tokio::time::timeout(CATCH_UP, self.shelf.catch_up()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, account, "a webhook is checked by what is known here"),
                Err(_) => tracing::warn!(account, "the registry is slow: a webhook is checked by what is known here"),
            }
        }
        let Registration { confirmed, pending } = self.registration(account);
        let webhook = if event == VALIDATION { pending.or(confirmed) } else { confirmed };
        webhook.filter(|webhook| webhook.wants(event))
    }

    /// Those that have one.
    pub fn accounts(&self) -> Vec<String> {
        self.take_in();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let names = known.by_account.keys().chain(known.unstored.keys());
        let mut names: Vec<String> =
            names.filter(|account| known.registration(account).confirmed.is_some()).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Begins to set (`None`: remove) an account's webhook: waits for a change that is under way, then stores the wish.
    pub async fn begin(self: &Arc<Self>, account: &str, wanted: Option<Webhook>) -> Result<PendingChange, ShelfError> {
        let lock = {
            let mut changing = self.changing.write().unwrap_or_else(PoisonError::into_inner);
            changing.entry(account.to_owned()).or_default().clone()
        };
        let turn = lock.lock_owned().await;
        let change = PendingChange {
            all: self.clone(),
            account: account.to_owned(),
            before: self.registration(account).confirmed,
            wanted: wanted.map(Arc::new),
            _turn: turn,
        };
        if change.wanted.is_some() {
            let asked = Registration { confirmed: change.before.clone(), pending: change.wanted.clone() };
            self.store(account, Kind::PendingWebhook, asked).await?;
        }
        Ok(change)
    }

    /// Forgets an account's webhook, with the account. Waits for the disk or the brokers.
    pub fn forget(&self, account: &str) -> Result<(), ShelfError> {
        for kind in [Kind::Webhook, Kind::PendingWebhook] {
            self.shelf.save(kind, account, None::<&Registration>)?;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.by_account.remove(account);
        known.unstored.remove(account);
        Ok(())
    }

    fn registration(&self, account: &str) -> Registration {
        self.take_in();
        self.known.read().unwrap_or_else(PoisonError::into_inner).registration(account)
    }

    /// Takes in what other gateways have changed.
    fn take_in(&self) {
        let is_newer = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            self.shelf.is_newer_than(known.entries.as_ref())
        };
        if is_newer && let Some(entries) = self.shelf.entries() {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            for error in known.take_in(entries) {
                tracing::error!(%error, "a bot's webhook is not known");
            }
        }
    }

    /// Writes what is asked for or in force, durably, then lets it take effect. A file has both, an entry of the registry
    /// what is of its kind.
    async fn store(self: &Arc<Self>, account: &str, kind: Kind, registration: Registration) -> Result<(), ShelfError> {
        let (all, name, kept) = (self.clone(), account.to_owned(), registration.clone());
        let written = tokio::task::spawn_blocking(move || {
            let part = match (all.shelf.is_shared(), kind) {
                (true, Kind::PendingWebhook) => Registration { confirmed: None, ..kept },
                (true, _) => Registration { pending: None, ..kept },
                (false, _) => kept,
            };
            let is_empty = part.confirmed.is_none() && part.pending.is_none();
            all.shelf.save(kind, &name, (!is_empty).then_some(&part))
        });
        // The task ends without a result only in a panic or at the end of the process.
        written.await.unwrap_or(Ok(()))?;
        if !self.shelf.is_shared() {
            self.keep(account, registration);
        }
        Ok(())
    }

    fn keep(&self, account: &str, registration: Registration) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.by_account.insert(account.to_owned(), registration);
    }

    /// Keeps a webhook in force that the registry does not take now, and stores it when it does, unless the account has got
    /// another one by then.
    fn store_later(self: &Arc<Self>, account: String, webhook: Option<Arc<Webhook>>) {
        {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.unstored.insert(account.clone(), webhook.clone());
        }
        let all = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(STORE_AGAIN).await;
                all.take_in();
                let is_still = {
                    let known = all.known.read().unwrap_or_else(PoisonError::into_inner);
                    known.unstored.get(&account) == Some(&webhook)
                };
                if !is_still {
                    return;
                }
                let confirmed = Registration { confirmed: webhook.clone(), pending: None };
                if all.store(&account, Kind::Webhook, confirmed).await.is_ok() {
                    tracing::info!(account, "the webhook in force is stored");
                    all.take_in();
                    let mut known = all.known.write().unwrap_or_else(PoisonError::into_inner);
                    known.unstored.remove(&account);
                    return;
                }
            }
        });
    }
}

impl Known {
    fn registration(&self, account: &str) -> Registration {
        let mut registration = self.by_account.get(account).cloned().unwrap_or_default();
        if let Some(confirmed) = self.unstored.get(account) {
            registration.confirmed.clone_from(confirmed);
        }
        registration
    }

    /// Goes by what the registry has now; what cannot be read of it counts as nothing.
    fn take_in(&mut self, entries: Entries) -> Vec<ShelfError> {
        let before = self.entries.replace(entries.clone()).unwrap_or_default();
        let mut errors = Vec::new();
        for kind in [Kind::Webhook, Kind::PendingWebhook] {
            for (account, value) in kind.changes(&before, &entries) {
                let read = value.map(|value| parse::<Registration>(kind, account, value)).transpose();
                let read = read.unwrap_or_else(|error| {
                    errors.push(error);
                    None
                });
                let known = self.by_account.entry(account.to_owned()).or_default();
                match kind {
                    Kind::PendingWebhook => known.pending = read.and_then(|read| read.pending),
                    _ => {
                        known.confirmed = read.and_then(|read| read.confirmed);
                        // Newer than what this process could not store.
                        self.unstored.remove(account);
                    }
                }
            }
        }
        errors
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
    pub async fn confirm(self) -> Result<(), ShelfError> {
        let registration = Registration { confirmed: self.wanted.clone(), pending: None };
        let stored = self.all.store(&self.account, Kind::Webhook, registration.clone()).await;
        match (&stored, self.all.shelf.is_shared()) {
            (Ok(()), true) => self.drop_pending().await.unwrap_or_else(|error| {
                tracing::debug!(%error, account = self.account, "a webhook that is confirmed is still marked as asked for");
            }),
            (Err(_), true) => self.all.store_later(self.account.clone(), self.wanted.clone()),
            (Err(_), false) => self.all.keep(&self.account, registration),
            (Ok(()), false) => {}
        }
        stored
    }

    /// Viber has not taken it: what was in force stays so.
    pub async fn forget(self) -> Result<(), ShelfError> {
        if self.wanted.is_none() {
            return Ok(());
        }
        if self.all.shelf.is_shared() {
            return self.drop_pending().await;
        }
        let registration = Registration { confirmed: self.before.clone(), pending: None };
        let stored = self.all.store(&self.account, Kind::Webhook, registration.clone()).await;
        if stored.is_err() {
            // On disk it is still pending, which a start drops as well.
            self.all.keep(&self.account, registration);
        }
        stored
    }

    /// Takes the wish out of the registry, unless another gateway's stands there by now.
    async fn drop_pending(&self) -> Result<(), ShelfError> {
        if self.wanted.is_none() || self.all.registration(&self.account).pending != self.wanted {
            return Ok(());
        }
        self.all.store(&self.account, Kind::PendingWebhook, Registration::default()).await
    }
}

#[cfg(test)]
mod tests;
