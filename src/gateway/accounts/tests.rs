//! Accounts of the config and of a data directory.

mod shared;

use super::*;
use crate::gateway::shelf::Shelf;
use crate::gateway::signature::Verifier;
use crate::session::Policy;
use hmac::{Hmac, Mac};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use tempfile::TempDir;

const NOW_US: i64 = 1_760_000_000_000_000;
const HOUR: Duration = Duration::from_secs(3600);

impl Accounts {
    /// Of the config alone.
    pub fn new(accounts: impl IntoIterator<Item = (String, String)>) -> Result<Self, AccountsError> {
        let accounts = accounts.into_iter().map(|(name, token)| configured(&name, &token)).collect();
        Accounts::open(parts(Path::new("no-such-folder"), accounts, None, Arc::new(|| NOW_US)))
    }
}

fn configured(name: &str, token: &str) -> Configured {
    Configured { name: name.to_owned(), token: Some(token.to_owned()), policy: None, limit: None }
}

fn parts(dir: &Path, configured: Vec<Configured>, key: Option<u8>, now: Now) -> Parts {
    let store = AccountStore::new(Shelf::files(dir));
    Parts {
        configured,
        store,
        vault: key.map(|byte| Vault::new(&hex::encode([byte; 32])).unwrap()),
        strict: true,
        default_limit: 0,
        policies: Policies::default(),
        now,
    }
}

/// Accounts on a data directory, and their time.
struct World {
    dir: TempDir,
    now_us: Arc<AtomicI64>,
    policies: Policies,
    accounts: Accounts,
}

impl World {
    /// With `shop` of the config.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now_us = Arc::new(AtomicI64::new(NOW_US));
        let (policies, accounts) = Self::open(&dir, &now_us, Some(1)).unwrap();
        World { dir, now_us, policies, accounts }
    }

    fn open(dir: &TempDir, now_us: &Arc<AtomicI64>, key: Option<u8>) -> Result<(Policies, Accounts), AccountsError> {
        let clock = now_us.clone();
        let now: Now = Arc::new(move || clock.load(Ordering::SeqCst));
        let parts = parts(dir.path(), vec![configured("shop", "token-shop")], key, now);
        Ok((parts.policies.clone(), Accounts::open(parts)?))
    }

    fn restart(&mut self) {
        (self.policies, self.accounts) = Self::open(&self.dir, &self.now_us, Some(1)).unwrap();
    }

    fn pass(&self, time: Duration) {
        self.now_us.fetch_add(time.as_micros() as i64, Ordering::SeqCst);
    }

    /// Names of the accounts that these tokens belong to.
    fn owners(&self, tokens: &[&str]) -> Vec<Option<String>> {
        tokens.iter().map(|token| self.accounts.with_token(token).map(|account| account.name.clone())).collect()
    }
}

fn sign(token: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(token.as_bytes()).unwrap();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

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

#[test]
fn an_added_account_is_there_at_once_and_after_a_restart() {
    let mut world = World::new();
    let added = world.accounts.add("bar", "token-bar", Some("vbm"), Some(7)).unwrap();
    for _ in 0..2 {
        assert_eq!(world.accounts.list().len(), 2);
        assert_eq!(world.accounts.show("bar").unwrap(), added);
        assert_eq!(world.owners(&["token-bar", "token-shop"]), [Some("bar".into()), Some("shop".into())]);
        world.restart();
    }
    assert_eq!((added.origin, added.policy.as_deref(), added.limit), (Origin::Data, Some("vbm"), Some(7)));
    let file = std::fs::read_to_string(world.dir.path().join("accounts/bar.json")).unwrap();
    assert!(!file.contains("token-bar"), "{file}");
}

#[test]
fn names_and_tokens_that_are_taken_are_refused() {
    let world = World::new();
    world.accounts.add("bar", "token-bar", None, None).unwrap();
    let refusal = |name: &str, token: &str, policy| {
        world.accounts.add(name, token, policy, None).map(drop).unwrap_err().to_string()
    };
    assert_eq!(refusal("bar", "other", None), "there is an account `bar` already");
    assert_eq!(refusal("shop", "other", None), "there is an account `shop` already");
    assert_eq!(refusal("new", "token-bar", None), "this token is already a token of account `bar`");
    assert_eq!(refusal("new", "token-shop", None), "this token is already a token of account `shop`");
    assert!(refusal("A b", "other", None).contains("no name for an account"));
    assert!(refusal("new", "other", Some("mine")).contains("mine"));
    for bad in ["", "two words", "ümlaut", &"x".repeat(2000)] {
        assert!(matches!(world.accounts.add("new", bad, None, None), Err(AccountsError::BadToken)), "{bad}");
    }
    assert!(
        matches!(world.accounts.rotate("bar", "token-shop", HOUR), Err(AccountsError::TokenTaken(other)) if other == "shop")
    );
    assert_eq!(world.accounts.list().len(), 2);
    assert!(!world.dir.path().join("accounts/new.json").exists());
}

#[test]
fn two_tokens_are_valid_until_the_end_of_the_old_one() {
    let mut world = World::new();
    world.accounts.add("bar", "old", None, None).unwrap();
    let rotated = world.accounts.rotate("bar", "new", 2 * HOUR).unwrap();
    assert_eq!(rotated.tokens[0].until, None);
    assert_eq!(rotated.tokens[1].until.as_deref(), Some("2025-10-09T10:53:20.000Z"));
    world.restart();
    let verified = |world: &World| {
        let account = world.accounts.named("bar").unwrap();
        ["old", "new", "other"].map(|token| account.verify(&sign(token, b"body"), b"body"))
    };
    world.pass(HOUR);
    assert_eq!(world.owners(&["old", "new"]), [Some("bar".into()), Some("bar".into())]);
    assert_eq!(verified(&world), [true, true, false]);
    assert_eq!(world.accounts.named("bar").unwrap().token(), "new");
    assert_eq!(world.accounts.named("bar").unwrap().redact("old new".into()), "(token) (token)");
    world.pass(HOUR);
    for _ in 0..2 {
        assert_eq!(world.owners(&["old", "new"]), [None, Some("bar".into())]);
        assert_eq!(verified(&world), [false, true, false]);
        assert_eq!(world.accounts.show("bar").unwrap().tokens.len(), 1);
        world.restart();
    }
    // A token that ended is free.
    world.accounts.add("baz", "old", None, None).unwrap();
    assert_eq!(world.owners(&["old"]), [Some("baz".into())]);
}

#[test]
fn rotations_follow_each_other() {
    let world = World::new();
    world.accounts.add("bar", "one", None, None).unwrap();
    world.accounts.rotate("bar", "two", 2 * HOUR).unwrap();
    world.accounts.rotate("bar", "three", HOUR).unwrap();
    assert!(world.owners(&["one", "two", "three"]).iter().all(Option::is_some));
    assert!(matches!(world.accounts.rotate("bar", "three", HOUR), Err(AccountsError::TokenTaken(_))));
    // Back to one that is still valid: it is the newest again.
    let back = world.accounts.rotate("bar", "two", 3 * HOUR).unwrap();
    assert_eq!(back.tokens.iter().filter(|token| token.until.is_none()).count(), 1);
    assert_eq!((back.tokens.len(), world.accounts.named("bar").unwrap().token()), (3, "two"));
    world.pass(HOUR);
    assert_eq!(world.owners(&["one", "two", "three"]), [None, Some("bar".into()), Some("bar".into())]);
    world.accounts.rotate("bar", "four", Duration::ZERO).unwrap();
    assert_eq!(world.owners(&["one", "two", "three", "four"]), [None, None, None, Some("bar".into())]);
}

#[test]
fn paused_and_limited_until_told_otherwise() {
    let mut world = World::new();
    world.accounts.add("bar", "token-bar", None, Some(1)).unwrap();
    let calls = |world: &World| {
        let account = world.accounts.named("bar").unwrap();
        (0..9).filter(|_| account.admits_call()).count()
    };
    assert_eq!(calls(&world), 2);
    world.accounts.adjust("bar", Adjustment { paused: Some(true), limit: None }).unwrap();
    // The limit is the same, so what was used of it is.
    assert_eq!((world.accounts.named("bar").unwrap().is_paused(), calls(&world)), (true, 0));
    world.restart();
    assert!(world.accounts.named("bar").unwrap().is_paused());
    world.accounts.adjust("bar", Adjustment { paused: Some(false), limit: Some(Some(2)) }).unwrap();
    assert_eq!((world.accounts.named("bar").unwrap().is_paused(), calls(&world)), (false, 4));
    world.accounts.adjust("bar", Adjustment { paused: None, limit: Some(None) }).unwrap();
    assert_eq!((world.accounts.show("bar").unwrap().limit, calls(&world)), (None, 9));
}

#[test]
fn what_was_removed_is_folded_as_before_and_comes_back_so() {
    let mut world = World::new();
    world.accounts.add("bar", "token-bar", Some("vbm"), None).unwrap();
    world.accounts.add("baz", "token-baz", None, None).unwrap();
    let vbm = PolicyChain::always(Policy::named("vbm").unwrap());
    assert_eq!(world.policies.known(), [("bar".to_owned(), vbm.clone())].into());
    world.accounts.remove("bar").unwrap();
    world.accounts.remove("baz").unwrap();
    world.restart();
    assert!(world.accounts.named("bar").is_none() && world.owners(&["token-bar"]) == [None]);
    assert!(matches!(world.accounts.remove("bar"), Err(AccountsError::Unknown(_))));
    let stored = AccountStore::new(Shelf::files(world.dir.path())).load().unwrap();
    assert!(stored.iter().all(|account| account.removed && account.tokens.is_empty()));
    assert_eq!(policy_of(&stored[0], &world.policies).unwrap(), Some(vbm));
    for name in ["bar", "baz"] {
        let error = world.accounts.add(name, "again", Some("gupshup"), None).unwrap_err().to_string();
        assert!(error.contains("cannot get policy `gupshup`"), "{error}");
    }
    assert_eq!(world.accounts.add("bar", "again", None, None).unwrap().policy.as_deref(), Some("vbm"));
    assert_eq!(world.accounts.add("baz", "token-baz", None, None).unwrap().policy, None);
    assert_eq!(world.owners(&["again"]), [Some("bar".into())]);
}

#[test]
fn accounts_of_the_config_are_changed_there() {
    let world = World::new();
    let error = world.accounts.rotate("shop", "other", HOUR).unwrap_err().to_string();
    assert!(error.contains("comes from the config"), "{error}");
    assert!(world.accounts.adjust("shop", Adjustment::default()).is_err() && world.accounts.remove("shop").is_err());
    world.accounts.add("bar", "token-bar", None, None).unwrap();
    let both = parts(world.dir.path(), vec![configured("bar", "x")], Some(1), Arc::new(|| NOW_US));
    assert!(matches!(Accounts::open(both), Err(AccountsError::InBoth(name)) if name == "bar"));
    let both = parts(world.dir.path(), vec![configured("bar", "token-bar")], None, Arc::new(|| NOW_US));
    Accounts::open(Parts { strict: false, ..both }).unwrap().remove("bar").unwrap();
    let one = parts(world.dir.path(), vec![configured("bar", "token-bar")], None, Arc::new(|| NOW_US));
    assert_eq!(Accounts::open(one).unwrap().list().len(), 1);
}

#[test]
fn tokens_need_the_key_they_were_stored_under() {
    let world = World::new();
    world.accounts.add("bar", "token-bar", None, None).unwrap();
    for (key, text) in [(Some(2), "`bar` cannot be opened"), (None, "[gateway] has no key")] {
        let error = World::open(&world.dir, &world.now_us, key).map(drop).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains("`bar`") && !error.contains("token-bar"), "{error}");
    }
    let lost = Parts { strict: false, ..parts(world.dir.path(), Vec::new(), None, Arc::new(|| NOW_US)) };
    let accounts = Accounts::open(lost).unwrap();
    assert_eq!(accounts.list().len(), 1);
    let error = accounts.add("new", "token-new", None, None).unwrap_err().to_string();
    assert!(error.contains("openssl rand -hex 32") && error.contains("key_file"), "{error}");
    accounts.remove("bar").unwrap();
    World::open(&world.dir, &world.now_us, None).map(drop).unwrap();
}

#[test]
fn a_change_that_is_not_on_the_disk_is_not_made() {
    let world = World::new();
    world.accounts.add("bar", "token-bar", None, None).unwrap();
    std::fs::create_dir(world.dir.path().join("accounts/bar.json.partial")).unwrap();
    let error = world.accounts.rotate("bar", "new", HOUR).unwrap_err();
    assert!(matches!(error, AccountsError::Shelf(_)), "{error}");
    assert_eq!(world.owners(&["token-bar", "new"]), [Some("bar".into()), None]);
    assert_eq!(world.accounts.show("bar").unwrap().tokens.len(), 1);
}

#[test]
fn every_reader_sees_a_whole_change() {
    let world = World::new();
    world.accounts.add("bar", "a-0", None, None).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !world.accounts.named("bar").unwrap().is_paused() {
                let account = world.accounts.named("bar").unwrap();
                // Whatever its newest token is, it is found by it, and signs for it.
                assert!(world.accounts.with_token(account.token()).is_some());
                assert!(account.verify(&sign(account.token(), b"x"), b"x"));
                assert!(Verifier::new(account.token()).verify(&sign(account.token(), b"x"), b"x"));
            }
        });
        for n in 1..20 {
            world.accounts.rotate("bar", &format!("a-{n}"), HOUR).unwrap();
        }
        world.accounts.adjust("bar", Adjustment { paused: Some(true), limit: None }).unwrap();
        reader.join().unwrap();
    });
}
