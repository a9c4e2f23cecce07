//! The bots: found by name for callbacks, by token for calls; from the config, and added while the gateway runs.
//!
//! Readers take a snapshot, which a change replaces as a whole once it is on the disk.

mod error;
mod summary;

use super::account::{Made, Token, digest, is_valid};
use super::account_store::{AccountStore, StoredAccount, StoredToken};
use super::clock::Now;
use super::vault::Vault;
use crate::event::is_account_name;
use crate::session::{Policies, Policy, PolicyChain};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

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
    /// As [`AccountStore::load`] gave them.
    pub stored: Vec<StoredAccount>,
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

/// All bots. Cheap to clone. Changes write to the disk: not on a thread that others wait for.
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
    /// As on the disk. Whoever changes something holds it from the first look to the end.
    stored: Mutex<BTreeMap<String, StoredAccount>>,
    table: RwLock<Arc<Table>>,
}

/// What look-ups go by.
#[derive(Clone, Default)]
struct Table {
    by_name: HashMap<String, Arc<Account>>,
    by_token: HashMap<[u8; 32], (Arc<Account>, Option<i64>)>,
}

impl Table {
    /// Puts an account in the place of the one of its name; the other account that has one of its tokens, if there is one.
    fn put(&mut self, account: Account, now_ms: i64) -> Result<(), String> {
        self.remove(&account.name);
        let account = Arc::new(account);
        for token in account.tokens().filter(|token| is_valid(token.until_ms(), now_ms)) {
            let taken = self.by_token.insert(token.digest(), (account.clone(), token.until_ms()));
            if let Some((other, until_ms)) = taken
                && is_valid(until_ms, now_ms)
            {
                return Err(other.name.clone());
            }
        }
        self.by_name.insert(account.name.clone(), account);
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        if self.by_name.remove(name).is_some() {
            self.by_token.retain(|_, (account, _)| account.name != name);
        }
    }
}

impl Accounts {
    /// Brings together the accounts of the config and those of the data directory.
    pub fn open(parts: Parts) -> Result<Self, AccountsError> {
        let Parts { configured, stored, store, vault, strict, default_limit, policies, now } = parts;
        let stored: BTreeMap<_, _> = stored.into_iter().map(|account| (account.name.clone(), account)).collect();
        let inner = Inner {
            configured,
            store,
            vault,
            strict,
            default_limit,
            policies,
            now,
            stored: Mutex::default(),
            table: RwLock::default(),
        };
        let mut table = Table::default();
        for account in &inner.configured {
            if strict && stored.get(&account.name).is_some_and(|stored| !stored.removed) {
                return Err(AccountsError::InBoth(account.name.clone()));
            }
            let Some(token) = account.token.clone() else { continue };
            let made = inner.make(&account.name, (Token::new(token, None), Vec::new()), false, account.limit, None);
            inner.put(&mut table, made)?;
        }
        for account in stored.values() {
            if let Some(made) = inner.open(account, None)? {
                inner.put(&mut table, made)?;
            }
        }
        *inner.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        *inner.stored() = stored;
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
        let stored = self.0.stored();
        let kept = stored
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
        let mut stored = inner.stored();
        let known = stored.get(name);
        if inner.is_configured(name) || known.is_some_and(|known| !known.removed) {
            return Err(AccountsError::NameTaken(name.to_owned()));
        }
        let policy = match known {
            None => policy.map(str::to_owned),
            Some(known) => same_policy(known, policy)?,
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
        inner.publish(&mut stored, account)
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
        let mut stored = self.0.stored();
        let found = stored.get(name).filter(|account| !account.removed);
        let mut account = match found {
            Some(found) => found.clone(),
            None if self.0.is_configured(name) => return Err(AccountsError::Configured(name.to_owned())),
            None => return Err(AccountsError::Unknown(name.to_owned())),
        };
        edit(&mut account)?;
        self.0.publish(&mut stored, account)
    }
}

impl Inner {
    fn is_configured(&self, name: &str) -> bool {
        self.configured.iter().any(|account| account.name == name)
    }

    /// Puts in an account at the start.
    fn put(&self, table: &mut Table, account: Account) -> Result<(), AccountsError> {
        let name = account.name.clone();
        match table.put(account, self.now_ms()) {
            Err(other) if self.strict => Err(AccountsError::SameToken(other, name)),
            _ => Ok(()),
        }
    }

    /// Makes a change durable, then visible. An error leaves everything as it was.
    fn publish(
        &self,
        stored: &mut BTreeMap<String, StoredAccount>,
        mut account: StoredAccount,
    ) -> Result<AccountSummary, AccountsError> {
        let now_ms = self.now_ms();
        account.tokens.retain(|token| is_valid(token.until_ms, now_ms));
        let policy = policy_of(&account)?;
        let before = self.table();
        let mut table = Table::clone(&before);
        table.remove(&account.name);
        if let Some(made) = self.open(&account, before.by_name.get(&account.name).map(|before| &**before))? {
            table.put(made, now_ms).map_err(AccountsError::TokenTaken)?;
        }
        self.store.save(&account)?;
        // Before the first event of the account can come in.
        if let Some(policy) = policy {
            self.policies.learn(&account.name, policy);
        }
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        let summary = AccountSummary::of_stored(&account, now_ms);
        tracing::info!(
            account = account.name,
            paused = account.paused,
            removed = account.removed,
            tokens = account.tokens.len(),
            "an account was changed"
        );
        stored.insert(account.name.clone(), account);
        Ok(summary)
    }

    /// A stored account with its tokens opened; `None` where it takes no calls.
    fn open(&self, account: &StoredAccount, before: Option<&Account>) -> Result<Option<Account>, AccountsError> {
        let mut tokens = Vec::new();
        for token in account.tokens.iter().filter(|token| is_valid(token.until_ms, self.now_ms())) {
            match self.unseal(&account.name, &token.sealed) {
                Ok(text) => tokens.push(Token::new(text, token.until_ms)),
                Err(error) if self.strict => return Err(error),
                Err(_) => {}
            }
        }
        if account.removed || tokens.is_empty() {
            return Ok(None);
        }
        let newest = tokens.remove(0);
        Ok(Some(self.make(&account.name, (newest, tokens), account.paused, account.limit, before)))
    }

    fn make(
        &self,
        name: &str,
        (newest, older): (Token, Vec<Token>),
        paused: bool,
        limit: Option<u32>,
        before: Option<&Account>,
    ) -> Account {
        let limit = limit.unwrap_or(self.default_limit);
        Account::new(Made { name: name.to_owned(), newest, older, paused, limit, now: self.now.clone() }, before)
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

    fn table(&self) -> Arc<Table> {
        // It is replaced as a whole, so what a panic left locked is still good; so is the map below.
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stored(&self) -> MutexGuard<'_, BTreeMap<String, StoredAccount>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> i64 {
        (self.now)().div_euclid(1000)
    }
}

/// The policy a stored account is folded under, where it has one of its own.
pub fn policy_of(account: &StoredAccount) -> Result<Option<PolicyChain>, AccountsError> {
    let policy = account.policy.as_deref().map(Policy::named).transpose();
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
