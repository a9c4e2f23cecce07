//! Which policy each account is folded under.

use super::PolicyChain;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Policies by account. Clones share them, so that an account can come in while the fold runs; one that is in stays as it
/// is, for its rows were made under that policy.
#[derive(Debug, Clone, Default)]
pub struct Policies(Arc<RwLock<BTreeMap<String, PolicyChain>>>);

impl Policies {
    /// Lets an account be folded under `chain` from now on, unless it has a policy already.
    pub fn learn(&self, account: &str, chain: PolicyChain) {
        // The map is whole at every moment, so one that a panic left locked is still good.
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(account.to_owned()).or_insert(chain);
    }

    /// The policy of an account, where it has one of its own.
    pub fn of(&self, account: &str) -> Option<PolicyChain> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(account).cloned()
    }

    /// Others, by which these accounts are folded under `chain`. What is learnt later by one is not by the other.
    pub fn with(&self, accounts: &[String], chain: &PolicyChain) -> Self {
        let mut known = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        known.extend(accounts.iter().map(|account| (account.clone(), chain.clone())));
        Self(Arc::new(RwLock::new(known)))
    }

    /// Whether no account goes by another one.
    pub fn are_all(&self, chain: &PolicyChain) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().all(|known| known == chain)
    }

    /// How many accounts have one. It grows when, and only when, an answer of [`Policies::of`] changes.
    pub fn count(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// All of them in words that change when they do.
    pub fn describe(&self) -> String {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let accounts: Vec<String> =
            known.iter().map(|(account, chain)| format!("{account}: {}", chain.describe())).collect();
        accounts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Policy;

    #[test]
    fn a_policy_is_learnt_once_and_by_all_clones() {
        let chain = |name| PolicyChain::always(Policy::named(name).unwrap());
        let policies = Policies::default();
        let shared = policies.clone();
        assert_eq!((shared.of("shop"), shared.count()), (None, 0));
        policies.learn("shop", chain("vbm"));
        policies.learn("shop", chain("gupshup"));
        assert_eq!((shared.of("shop"), shared.count()), (Some(chain("vbm")), 1));
        policies.learn("bar", chain("gupshup"));
        assert_eq!(shared.describe(), "bar: gupshup; shop: vbm");
        let other = policies.with(&["shop".into()], &chain("viber-2022"));
        assert_eq!(other.describe(), "bar: gupshup; shop: viber-2022");
        assert_eq!(shared.of("shop"), Some(chain("vbm")));
        assert!(!shared.are_all(&chain("gupshup")));
        assert!(policies.with(&["shop".into()], &chain("gupshup")).are_all(&chain("gupshup")));
    }
}
