//! Which policy each account is folded under.

use super::policy::PolicyError;
use super::{Policy, PolicyChain};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Policies by account. Clones share them, so that an account can come in while the fold runs; one that is in stays as it
/// is, for its rows were made under that policy.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    accounts: Arc<RwLock<BTreeMap<String, PolicyChain>>>,
    /// By name: what there is beside the built-in ones.
    own: Arc<BTreeMap<String, Arc<Policy>>>,
}

impl Policies {
    /// None yet; accounts may name `own` policies beside the built-in ones.
    pub fn with_own(own: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        let own = own.into_iter().map(|policy| (policy.name.to_string(), policy)).collect();
        Self { own: Arc::new(own), ..Self::default() }
    }

    /// The policy of that name, built in or own.
    pub fn named(&self, name: &str) -> Result<Arc<Policy>, PolicyError> {
        self.own.get(name).map_or_else(|| Policy::named(name), |own| Ok(own.clone()))
    }

    /// The policies that are not built in, by name.
    pub fn own(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.own.values()
    }

    /// Lets an account be folded under `chain` from now on, unless it has a policy already.
    pub fn learn(&self, account: &str, chain: PolicyChain) {
        // The map is whole at every moment, so one that a panic left locked is still good.
        let mut known = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(account.to_owned()).or_insert(chain);
    }

    /// The policy of an account, where it has one of its own.
    pub fn of(&self, account: &str) -> Option<PolicyChain> {
        self.accounts.read().unwrap_or_else(PoisonError::into_inner).get(account).cloned()
    }

    /// Every policy that is in force for one of the accounts at some time. Some may be there more than once.
    pub fn all(&self) -> Vec<Arc<Policy>> {
        let known = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        known.values().flat_map(PolicyChain::policies).cloned().collect()
    }

    /// Others, by which these accounts are folded under `chain`. What is learnt later by one is not by the other.
    pub fn with(&self, accounts: &[String], chain: &PolicyChain) -> Self {
        let mut known = self.known();
        known.extend(accounts.iter().map(|account| (account.clone(), chain.clone())));
        Self { accounts: Arc::new(RwLock::new(known)), own: self.own.clone() }
    }

    /// Whether no account goes by another one.
    pub fn are_all(&self, chain: &PolicyChain) -> bool {
        self.accounts.read().unwrap_or_else(PoisonError::into_inner).values().all(|known| known == chain)
    }

    /// How many accounts have one. It grows when, and only when, an answer of [`Policies::of`] changes.
    pub fn count(&self) -> usize {
        self.accounts.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// All of them, by account.
    pub fn known(&self) -> BTreeMap<String, PolicyChain> {
        self.accounts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let known = [("bar", "gupshup"), ("shop", "vbm")].map(|(account, name)| (account.to_owned(), chain(name)));
        assert_eq!(shared.known(), BTreeMap::from(known));
        let other = policies.with(&["shop".into()], &chain("viber-2022"));
        assert_eq!((other.of("shop"), other.of("bar")), (Some(chain("viber-2022")), Some(chain("gupshup"))));
        assert_eq!(shared.of("shop"), Some(chain("vbm")));
        assert!(!shared.are_all(&chain("gupshup")));
        assert!(policies.with(&["shop".into()], &chain("gupshup")).are_all(&chain("gupshup")));
    }

    #[test]
    fn own_policies_go_by_their_names() {
        let mine = Policy::parse(&include_str!("policies/vbm.toml").replace("\"vbm\"", "\"mine\"")).unwrap();
        let policies = Policies::with_own([Arc::new(mine.clone())]);
        assert_eq!(policies.named("mine").as_deref(), Ok(&mine));
        assert_eq!(policies.named("vbm"), Policy::named("vbm"));
        assert_eq!(policies.clone().named("none"), Err(PolicyError::Unknown("none".into())));
    }
}
