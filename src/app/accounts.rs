//! The accounts of the config and those that are stored, brought together.

use super::{AppError, Base};
use crate::config::{Account, Config};
use crate::gateway::account_store::{self, AccountStore, StoredAccount};
use crate::gateway::accounts::{self, Accounts, Configured};
use crate::gateway::shelf::Entries;
use crate::gateway::vault::Vault;
use crate::log::LogError;
use crate::log::registry::Registry;
use crate::session::{Policies, PolicyChain, Prices};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What every account is folded under, removed ones too. What the config says of one goes before what is stored.
pub(super) fn policies(config: &Config, stored: &[StoredAccount]) -> Result<Policies, AppError> {
    let policies = Policies::with_own(config.tariffs.own().cloned());
    for account in config.accounts.iter().filter(|account| !account.policies.is_empty()) {
        let first = config.tariffs.policy(&account.policies[0].policy)?;
        let mut later = Vec::new();
        for from in &account.policies[1..] {
            // A later policy without a start was refused with the settings.
            later.push((from.valid_from_ms.unwrap_or(i64::MAX), config.tariffs.policy(&from.policy)?));
        }
        policies.learn(&account.name, PolicyChain::new(first, later));
    }
    let is_configured = |name: &str| config.accounts.iter().any(|account| account.name == name);
    for account in stored.iter().filter(|account| !is_configured(&account.name)) {
        if let Some(policy) = accounts::policy_of(account, &policies)? {
            policies.learn(&account.name, policy);
        }
    }
    Ok(policies)
}

/// What charged messages of every account cost.
pub(super) fn prices(config: &Config) -> Prices {
    let list = |file: &Option<PathBuf>| file.as_deref().map(|file| config.tariffs.prices(file));
    let accounts = config.accounts.iter().filter_map(|account| Some((account.name.clone(), list(&account.prices)?)));
    Prices { default: list(&config.fold.prices).unwrap_or_default(), accounts: accounts.collect() }
}

impl Base {
    /// All accounts, to be served: every token must be known.
    pub(super) fn accounts_to_serve(&self) -> Result<Accounts, AppError> {
        self.accounts(true, |account| Ok(Some(account.read_token()?.reveal().to_owned())))
    }

    /// All accounts, to be looked at and changed by a command, which may not know every token.
    pub(super) fn accounts_to_change(&self) -> Result<Accounts, AppError> {
        self.accounts(false, |account| Ok(account.read_token().ok().map(|token| token.reveal().to_owned())))
    }

    /// What opens the tokens that are stored; `None` where no key is set.
    pub(super) fn vault(&self) -> Result<Option<Vault>, AppError> {
        let key = self.config.gateway.read_key()?;
        Ok(key.map(|key| Vault::new(key.reveal())).transpose().map_err(accounts::AccountsError::from)?)
    }

    fn accounts(
        &self,
        strict: bool,
        token: impl Fn(&Account) -> Result<Option<String>, AppError>,
    ) -> Result<Accounts, AppError> {
        let mut configured = Vec::new();
        for account in &self.config.accounts {
            let named = account.policies.iter().map(|from| self.config.tariffs.policy(&from.policy));
            let policies: Vec<_> = named.map(|policy| Ok(policy?.name.clone())).collect::<Result<_, AppError>>()?;
            configured.push(Configured {
                name: account.name.clone(),
                token: token(account)?,
                policy: (!policies.is_empty()).then(|| policies.join(", then ")),
                limit: account.limit,
            });
        }
        Ok(Accounts::open(accounts::Parts {
            configured,
            store: AccountStore::new(self.shelf.clone()),
            vault: self.vault()?,
            strict,
            default_limit: self.config.gateway.requests_per_second,
            policies: self.policies.clone(),
            now: self.clock.clone(),
        })?)
    }
}

/// Learns the policies of accounts that come in while the fold runs, at whichever gateway.
pub(super) struct PolicyBook {
    registry: Arc<dyn Registry>,
    policies: Policies,
    /// Accounts whose policy is the config's to say.
    configured: Vec<String>,
    /// What has been learnt.
    known: Mutex<Entries>,
}

impl PolicyBook {
    pub fn new(base: &Base, registry: Arc<dyn Registry>) -> Arc<Self> {
        let configured = base.config.accounts.iter().map(|account| account.name.clone()).collect();
        Arc::new(Self { registry, policies: base.policies.clone(), configured, known: Mutex::default() })
    }

    /// Learns everything that other processes have made known up to now.
    pub async fn catch_up(&self) -> Result<(), LogError> {
        self.registry.catch_up().await?;
        self.learn();
        Ok(())
    }

    /// Learns for ever.
    pub async fn follow(&self) {
        let mut entries = self.registry.entries();
        loop {
            self.learn();
            if entries.changed().await.is_err() {
                return;
            }
        }
    }

    fn learn(&self) {
        // Behind the lock everything is learnt, or nothing was.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.registry.entries().borrow().clone();
        for changed in account_store::changed(&known, &now) {
            let learnt = changed.map_err(accounts::AccountsError::from).and_then(|account| {
                if let Some(policy) = accounts::policy_of(&account, &self.policies)?
                    && !self.configured.contains(&account.name)
                {
                    self.policies.learn(&account.name, policy);
                }
                Ok(())
            });
            if let Err(error) = learnt {
                tracing::error!(%error, "an account of the registry is folded under [fold] policy");
            }
        }
        *known = now;
    }
}
