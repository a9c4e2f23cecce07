//! What look-ups go by: made from the accounts of the config and those that are stored.

use super::super::account::{Account, Made, Token, is_valid};
use super::super::account_store::{self, ByName, StoredAccount};
use super::super::shelf::{Entries, Kind};
use super::{AccountsError, Inner, Known, Shown, policy_of};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

/// Accounts by name and by token.
#[derive(Default)]
pub(super) struct Table {
    pub by_name: HashMap<String, Arc<Account>>,
    pub by_token: HashMap<[u8; 32], (Arc<Account>, Option<i64>)>,
}

impl Table {
    /// Puts an account in, unless another one has one of its tokens: then that one's name is the error.
    fn put(&mut self, account: Arc<Account>, now_ms: i64) -> Result<(), String> {
        let valid = || account.tokens().filter(|token| is_valid(token.until_ms(), now_ms));
        for token in valid() {
            match self.by_token.get(&token.digest()) {
                Some((other, until_ms)) if is_valid(*until_ms, now_ms) => return Err(other.name.clone()),
                _ => {}
            }
        }
        for token in valid() {
            self.by_token.insert(token.digest(), (account.clone(), token.until_ms()));
        }
        self.by_name.insert(account.name.clone(), account);
        Ok(())
    }
}

impl Inner {
    /// The table of the config's accounts and these, and why some of them are not in it. What has not changed `before` is
    /// taken from there.
    pub(super) fn build(&self, stored: &ByName, before: (&Table, &ByName)) -> (Table, Vec<AccountsError>) {
        let (old, old_stored) = before;
        let now_ms = self.now_ms();
        let (mut table, mut complaints) = (Table::default(), Vec::new());
        let mut put = |account: Arc<Account>, complaints: &mut Vec<AccountsError>| {
            let name = account.name.clone();
            complaints.extend(table.put(account, now_ms).err().map(|other| AccountsError::SameToken(other, name)));
        };
        for account in &self.configured {
            let Some(token) = account.token.clone() else { continue };
            let known = old.by_name.get(&account.name);
            let made = || {
                let tokens = (Token::new(token, None), Vec::new());
                Arc::new(self.make(&account.name, tokens, false, account.limit, None))
            };
            put(known.cloned().unwrap_or_else(made), &mut complaints);
        }
        for account in stored.values() {
            if self.is_configured(&account.name) {
                if !account.removed {
                    complaints.push(AccountsError::InBoth(account.name.clone()));
                }
                continue;
            }
            let known = old.by_name.get(&account.name);
            match known.filter(|_| old_stored.get(&account.name) == Some(account)) {
                Some(same) => put(same.clone(), &mut complaints),
                None => match self.open(account, known.map(|known| &**known)) {
                    Ok(Some(made)) => put(Arc::new(made), &mut complaints),
                    Ok(None) => {}
                    Err(error) => complaints.push(error),
                },
            }
        }
        (table, complaints)
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

    /// Lets what the registry has now take effect. What cannot be served is told, once, and refused.
    pub(super) fn take_in(&self, known: &mut Known, entries: Entries) {
        let before = known.entries.clone().unwrap_or_default();
        let mut accounts = known.accounts.clone();
        let mut told: Vec<AccountsError> = Vec::new();
        for (name, value) in Kind::Account.changes(&before, &entries) {
            accounts.remove(name);
            let Some(value) = value else { continue };
            let taken = account_store::read(name, value).map_err(AccountsError::from).and_then(|account| {
                self.learn(&account)?;
                Ok(account)
            });
            match taken {
                Ok(account) => drop(accounts.insert(name.to_owned(), account)),
                Err(error) => told.push(error),
            }
        }
        if accounts == known.accounts && told.is_empty() {
            let shown = Shown { entries: Some(entries.clone()), ..self.shown() };
            *self.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
        } else {
            let (table, complaints) = self.build(&accounts, (&self.shown().table, &known.accounts));
            told.extend(complaints);
            self.show(table, Some(entries.clone()));
            let complaints: Vec<String> = told.iter().map(ToString::to_string).collect();
            for complaint in complaints.iter().filter(|complaint| !known.complaints.contains(complaint)) {
                tracing::error!(%complaint, "an account of the registry is refused");
            }
            (known.accounts, known.complaints) = (accounts, complaints);
        }
        known.entries = Some(entries);
    }

    /// Lets an account be folded under its policy.
    pub(super) fn learn(&self, account: &StoredAccount) -> Result<(), AccountsError> {
        if let Some(policy) = policy_of(account, &self.policies)?
            && !self.is_configured(&account.name)
        {
            self.policies.learn(&account.name, policy);
        }
        Ok(())
    }
}
