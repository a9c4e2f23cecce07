//! The bots: found by name for callbacks, by token for calls; from the config, and added while the gateway runs.
//!
//! Readers take a snapshot, which a change replaces as a whole once it is durable: one made here, or one that another
//! gateway has made and the registry tells of.

mod error;
mod summary;
mod table;

use super::account::{digest, is_valid};
use super::account_store::{AccountStore, ByName, StoredAccount, StoredToken};
use super::clock::Now;
use super::shelf::Entries;
use super::vault::Vault;
use crate::event::is_account_name;
use crate::session::{Policies, PolicyChain};
use futures::executor::block_on;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use table::Table;

pub use super::account::Account;
pub use error::AccountsError;
pub use summary::{AccountSummary, Origin, TokenSummary};

/// Longer texts are no tokens; Viber's have 50 characters.
const MAX_TOKEN: usize = 1024;

/// An account of the config.
pub struct Configured {
    pub name: String,
    /// `None` where a command does not know it: such an account is listed, and takes no calls.
    pub token: Option<String>,
    /// In words.
    pub policy: Option<String>,
    /// Requests per second; `None` is the default.
    pub limit: Option<u32>,
}

/// What the accounts are opened with.
pub struct Parts {
    pub configured: Vec<Configured>,
    pub store: AccountStore,
    /// `None` where no key is set.
    pub vault: Option<Vault>,
    /// Whether a token that cannot be opened, or a name or token that two accounts have, is an error. Where it is none,
    /// calls may find the wrong account or none, but all can be listed and put in order.
    pub strict: bool,
    /// Requests per second of accounts that say nothing of it; 0 is no limit.
    pub default_limit: u32,
    /// Learns the policies of accounts that are added.
    pub policies: Policies,
    /// µs since the epoch, UTC.
    pub now: Now,
}

/// A change to an account; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Adjustment {
    pub paused: Option<bool>,
    /// `Some(None)` goes back to the default.
    pub limit: Option<Option<u32>>,
}

/// All bots. Cheap to clone. Changes wait for the disk or the brokers: not on a thread that others wait for.
#[derive(Clone)]
pub struct Accounts(Arc<Inner>);

struct Inner {
    configured: Vec<Configured>,
    store: AccountStore,
    vault: Option<Vault>,
    strict: bool,
    default_limit: u32,
    policies: Policies,
    now: Now,
    /// Whoever changes something holds it from the first look to the end.
    known: Mutex<Known>,
    shown: RwLock<Shown>,
}

/// What is stored.
#[derive(Default)]
struct Known {
    accounts: ByName,
    /// What the registry had then.
    entries: Option<Entries>,
    /// What is wrong with some of them, as it was told.
    complaints: Vec<String>,
}

/// What look-ups see.
#[derive(Clone, Default)]
struct Shown {
    table: Arc<Table>,
    /// What the registry had when it was made.
    entries: Option<Entries>,
}

impl Accounts {
    /// Brings together the accounts of the config and those that are stored.
    pub fn open(parts: Parts) -> Result<Self, AccountsError> {
        let Parts { configured, store, vault, strict, default_limit, policies, now } = parts;
        // What comes after is read again later, and nothing of it is missed.
        let entries = store.shelf().entries();
        let stored = store.load()?.into_iter().map(|account| (account.name.clone(), account)).collect();
        let (known, shown) = (Mutex::default(), RwLock::default());
        let inner = Inner { configured, store, vault, strict, default_limit, policies, now, known, shown };
        let (table, complaints) = inner.build(&stored, (&Table::default(), &ByName::new()));
        if let Some(error) = complaints.into_iter().next().filter(|_| strict) {
            return Err(error);
        }
        for account in stored.values() {
            inner.learn(account)?;
        }
        *inner.known() = Known { accounts: stored, entries: entries.clone(), complaints: Vec::new() };
        inner.show(table, entries);
        Ok(Self(Arc::new(inner)))
    }

    /// The account of that name.
    pub fn named(&self, name: &str) -> Option<Arc<Account>> {
        self.0.table().by_name.get(name).cloned()
    }

    /// The account with that token, if it is valid now.
    pub fn with_token(&self, token: &str) -> Option<Arc<Account>> {
        let table = self.0.table();
        let (account, until_ms) = table.by_token.get(&digest(token))?;
        is_valid(*until_ms, self.0.now_ms()).then(|| account.clone())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.table().by_name.is_empty()
    }

    /// All accounts, by name.
    pub fn list(&self) -> Vec<AccountSummary> {
        let known = self.0.up_to_date();
        let kept = known
            .accounts
            .values()
            .filter(|account| !account.removed)
            .map(|account| AccountSummary::of_stored(account, self.0.now_ms()));
        let mut all: Vec<AccountSummary> =
            self.0.configured.iter().map(AccountSummary::of_configured).chain(kept).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// One account.
    pub fn show(&self, name: &str) -> Result<AccountSummary, AccountsError> {
        let found = self.list().into_iter().find(|account| account.name == name);
        found.ok_or_else(|| AccountsError::Unknown(name.to_owned()))
    }

    /// Adds an account. Its policy is fixed from then on; one that was there before and was removed has the policy it had.
    pub fn add(
        &self,
        name: &str,
        token: &str,
        policy: Option<&str>,
        limit: Option<u32>,
    ) -> Result<AccountSummary, AccountsError> {
        let inner = &*self.0;
        if !is_account_name(name) {
            return Err(AccountsError::BadName(name.to_owned()));
        }
        let sealed = inner.seal(name, token)?;
        block_on(inner.store.shelf().catch_up())?;
        let mut known = inner.up_to_date();
        let before = known.accounts.get(name);
        if inner.is_configured(name) || before.is_some_and(|before| !before.removed) {
            return Err(AccountsError::NameTaken(name.to_owned()));
        }
        let policy = match before {
            None => policy.map(str::to_owned),
            Some(before) => same_policy(before, policy)?,
        };
        let account = StoredAccount {
            name: name.to_owned(),
            policy,
            paused: false,
            limit,
            removed: false,
            created_at_ms: inner.now_ms(),
            tokens: vec![StoredToken { sealed, until_ms: None }],
        };
        inner.publish(&mut known, account)
    }

    /// Gives an account a new token. Those it has stay valid for `keep_old`, or until their end where that is sooner. One
    /// of them may be the new one again.
    pub fn rotate(&self, name: &str, token: &str, keep_old: Duration) -> Result<AccountSummary, AccountsError> {
        let inner = &*self.0;
        let end_ms = inner.now_ms().saturating_add(i64::try_from(keep_old.as_millis()).unwrap_or(i64::MAX));
        self.change(name, |account| {
            let sealed = inner.seal(name, token)?;
            if self.named(name).is_some_and(|account| digest(account.token()) == digest(token)) {
                return Err(AccountsError::TokenTaken(name.to_owned()));
            }
            account.tokens.retain(|old| !inner.unseal(name, &old.sealed).is_ok_and(|old| old == token));
            for old in &mut account.tokens {
                old.until_ms = Some(old.until_ms.map_or(end_ms, |until_ms| until_ms.min(end_ms)));
            }
            account.tokens.insert(0, StoredToken { sealed, until_ms: None });
            Ok(())
        })
    }

    /// Pauses, resumes or limits an account.
    pub fn adjust(&self, name: &str, adjustment: Adjustment) -> Result<AccountSummary, AccountsError> {
        self.change(name, |account| {
            account.paused = adjustment.paused.unwrap_or(account.paused);
            account.limit = adjustment.limit.unwrap_or(account.limit);
            Ok(())
        })
    }

    /// Removes an account: its tokens are forgotten, its calls and callbacks refused. What was recorded stays, and is
    /// folded as before.
    pub fn remove(&self, name: &str) -> Result<(), AccountsError> {
        self.change(name, |account| {
            (account.removed, account.paused) = (true, false);
            account.tokens.clear();
            Ok(())
        })
        .map(drop)
    }

    fn change(
        &self,
        name: &str,
        edit: impl FnOnce(&mut StoredAccount) -> Result<(), AccountsError>,
    ) -> Result<AccountSummary, AccountsError> {
        block_on(self.0.store.shelf().catch_up())?;
        let mut known = self.0.up_to_date();
        let found = known.accounts.get(name).filter(|account| !account.removed);
        let mut account = match found {
            Some(found) => found.clone(),
            None if self.0.is_configured(name) => return Err(AccountsError::Configured(name.to_owned())),
            None => return Err(AccountsError::Unknown(name.to_owned())),
        };
        edit(&mut account)?;
        self.0.publish(&mut known, account)
    }
}

impl Inner {
    fn is_configured(&self, name: &str) -> bool {
        self.configured.iter().any(|account| account.name == name)
    }

    /// Makes a change durable, then visible. An error leaves everything as it was.
    fn publish(&self, known: &mut Known, mut account: StoredAccount) -> Result<AccountSummary, AccountsError> {
        let now_ms = self.now_ms();
        account.tokens.retain(|token| is_valid(token.until_ms, now_ms));
        policy_of(&account, &self.policies)?;
        let mut accounts = known.accounts.clone();
        accounts.insert(account.name.clone(), account.clone());
        let (table, complaints) = self.build(&accounts, (&self.shown().table, &known.accounts));
        if let Some(error) = complaints.into_iter().find_map(|complaint| complaint.of_change(&account.name)) {
            return Err(error);
        }
        self.store.save(&account)?;
        tracing::info!(
            account = account.name,
            paused = account.paused,
            removed = account.removed,
            tokens = account.tokens.len(),
            "an account was changed"
        );
        let summary = AccountSummary::of_stored(&account, now_ms);
        match self.store.shelf().entries() {
            Some(entries) => self.take_in(known, entries),
            None => {
                // Before the first event of the account can come in.
                self.learn(&account)?;
                known.accounts = accounts;
                self.show(table, None);
            }
        }
        Ok(summary)
    }

    fn seal(&self, name: &str, token: &str) -> Result<String, AccountsError> {
        // It travels in an HTTP header, so anything else could not be Viber's.
        if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(AccountsError::BadToken);
        }
        Ok(self.vault.as_ref().ok_or(AccountsError::NoKey)?.seal(name, token))
    }

    fn unseal(&self, name: &str, sealed: &str) -> Result<String, AccountsError> {
        let vault = self.vault.as_ref().ok_or_else(|| AccountsError::Locked(name.to_owned()))?;
        vault.open(name, sealed).map_err(|error| AccountsError::Unopened { name: name.to_owned(), error })
    }

    /// What look-ups go by, with what other gateways have changed.
    fn table(&self) -> Arc<Table> {
        let shown = self.shown();
        if !self.store.shelf().is_newer_than(shown.entries.as_ref()) {
            return shown.table;
        }
        // Whoever has it is about to show the same, or changes something and waits for the brokers.
        if let Ok(mut known) = self.known.try_lock()
            && let Some(entries) = self.store.shelf().entries()
        {
            self.take_in(&mut known, entries);
        }
        self.shown().table
    }

    fn show(&self, table: Table, entries: Option<Entries>) {
        let shown = Shown { table: Arc::new(table), entries };
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    fn shown(&self) -> Shown {
        // It is replaced as a whole, so what a panic left locked is still good; so is what is known.
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is stored, with what other gateways have changed.
    fn up_to_date(&self) -> MutexGuard<'_, Known> {
        let mut known = self.known();
        if self.store.shelf().is_newer_than(known.entries.as_ref())
            && let Some(entries) = self.store.shelf().entries()
        {
            self.take_in(&mut known, entries);
        }
        known
    }

    fn now_ms(&self) -> i64 {
        (self.now)().div_euclid(1000)
    }
}

/// The policy a stored account is folded under, one of `policies`, where it has one of its own.
pub fn policy_of(account: &StoredAccount, policies: &Policies) -> Result<Option<PolicyChain>, AccountsError> {
    let policy = account.policy.as_deref().map(|name| policies.named(name)).transpose();
    let policy = policy.map_err(|error| AccountsError::Policy { name: account.name.clone(), error })?;
    Ok(policy.map(PolicyChain::always))
}

/// The policy of an account that is known already; another one is refused.
fn same_policy(known: &StoredAccount, given: Option<&str>) -> Result<Option<String>, AccountsError> {
    match given {
        Some(given) if known.policy.as_deref() != Some(given) => Err(AccountsError::OtherPolicy {
            name: known.name.clone(),
            known: known.policy.as_ref().map_or("[fold] policy".to_owned(), |policy| format!("policy `{policy}`")),
            given: given.to_owned(),
        }),
        _ => Ok(known.policy.clone()),
    }
}

#[cfg(test)]
mod tests;
