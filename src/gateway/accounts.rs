//! The bots: found by name for callbacks, by token for calls.

use super::signature::Verifier;
use crate::event::SOURCE_PREFIX;
use crate::metrics::{Callbacks, Metrics};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// Why the accounts cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    /// A call could not be told to belong to one of them.
    #[error("accounts `{0}` and `{1}` have the same token")]
    SameToken(String, String),
}

/// A bot.
pub struct Account {
    pub name: String,
    /// `/accounts/<name>`.
    pub source: String,
    pub verifier: Verifier,
    token: String,
    callbacks: OnceLock<Callbacks>,
}

impl Account {
    /// For calls of the gateway's own.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Its callback counters, made with its first callback.
    pub fn callbacks(&self, metrics: &Metrics) -> &Callbacks {
        self.callbacks.get_or_init(|| metrics.callbacks(&self.name))
    }

    /// The text without the token, wherever it stands in it.
    pub fn redact(&self, text: String) -> String {
        if text.contains(&self.token) { text.replace(&self.token, "(token)") } else { text }
    }
}

/// All bots.
pub struct Accounts {
    by_name: HashMap<String, Arc<Account>>,
    /// By digest, so that how long a look-up takes says nothing of a token.
    by_token: HashMap<[u8; 32], Arc<Account>>,
}

impl Accounts {
    /// From names and tokens.
    pub fn new(accounts: impl IntoIterator<Item = (String, String)>) -> Result<Self, AccountsError> {
        let (mut by_name, mut by_token) = (HashMap::new(), HashMap::<_, Arc<Account>>::new());
        for (name, token) in accounts {
            let digest = Sha256::digest(token.as_bytes()).into();
            let account = Arc::new(Account {
                source: format!("{SOURCE_PREFIX}{name}"),
                verifier: Verifier::new(&token),
                callbacks: OnceLock::new(),
                name: name.clone(),
                token,
            });
            if let Some(other) = by_token.insert(digest, account.clone()) {
                return Err(AccountsError::SameToken(other.name.clone(), name));
            }
            by_name.insert(name, account);
        }
        Ok(Self { by_name, by_token })
    }

    /// The account of that name.
    pub fn named(&self, name: &str) -> Option<&Arc<Account>> {
        self.by_name.get(name)
    }

    /// The account with that token.
    pub fn with_token(&self, token: &str) -> Option<&Arc<Account>> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        self.by_token.get(&digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_name_and_token() {
        let pairs = [("a", "token-a"), ("b", "token-b")].map(|(name, token)| (name.to_owned(), token.to_owned()));
        let accounts = Accounts::new(pairs).unwrap();
        assert_eq!(accounts.named("a").unwrap().source, "/accounts/a");
        assert_eq!(accounts.with_token("token-b").unwrap().name, "b");
        assert!(accounts.with_token("token-c").is_none() && accounts.named("c").is_none());
        assert!(!accounts.named("a").unwrap().redact("x token-a y".into()).contains("token-a"));
    }

    #[test]
    fn one_token_is_one_account() {
        let pairs = ["a", "b"].map(|name| (name.to_owned(), "same".to_owned()));
        assert!(Accounts::new(pairs).is_err_and(|error| !error.to_string().contains("same token`")));
    }
}
