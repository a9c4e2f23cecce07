//! The accounts of the config and those of the data directory, brought together.

use super::{AppError, Base};
use crate::config::{Account, Config};
use crate::gateway::account_store::{AccountStore, StoredAccount};
use crate::gateway::accounts::{self, Accounts, Configured};
use crate::gateway::vault::Vault;
use crate::session::{Policies, Policy, PolicyChain};

/// What every account is folded under, removed ones too. What the config says of one goes before what is stored.
pub(super) fn policies(config: &Config, stored: &[StoredAccount]) -> Result<Policies, AppError> {
    let policies = Policies::default();
    for account in config.accounts.iter().filter(|account| !account.policies.is_empty()) {
        let first = Policy::named(&account.policies[0].policy)?;
        let mut later = Vec::new();
        for from in &account.policies[1..] {
            // A later policy without a start was refused with the settings.
            later.push((from.valid_from_ms.unwrap_or(i64::MAX), Policy::named(&from.policy)?));
        }
        policies.learn(&account.name, PolicyChain::new(first, later));
    }
    let is_configured = |name: &str| config.accounts.iter().any(|account| account.name == name);
    for account in stored.iter().filter(|account| !is_configured(&account.name)) {
        if let Some(policy) = accounts::policy_of(account)? {
            policies.learn(&account.name, policy);
        }
    }
    Ok(policies)
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

    fn accounts(
        &self,
        strict: bool,
        token: impl Fn(&Account) -> Result<Option<String>, AppError>,
    ) -> Result<Accounts, AppError> {
        let mut configured = Vec::new();
        for account in &self.config.accounts {
            let policies: Vec<&str> = account.policies.iter().map(|from| from.policy.as_str()).collect();
            configured.push(Configured {
                name: account.name.clone(),
                token: token(account)?,
                policy: (!policies.is_empty()).then(|| policies.join(", then ")),
                limit: account.limit,
            });
        }
        let gateway = &self.config.gateway;
        let key = gateway.read_key()?;
        let vault = key.map(|key| Vault::new(key.reveal())).transpose().map_err(accounts::AccountsError::from)?;
        Ok(Accounts::open(accounts::Parts {
            configured,
            stored: self.stored.clone(),
            store: AccountStore::new(&self.dir.path),
            vault,
            strict,
            default_limit: gateway.requests_per_second,
            policies: self.policies.clone(),
            now: self.clock.clone(),
        })?)
    }
}
