//! Accounts that several gateways share.

use super::*;
use crate::gateway::adopt_files;
use crate::gateway::shelf::tests::MemoryRegistry;
use crate::log::registry::Registry;

/// Accounts of a gateway that shares them, with `shop` of the config.
fn shared(registry: &Arc<MemoryRegistry>, key: u8) -> Result<Accounts, AccountsError> {
    let parts =
        parts(Path::new("no-such-folder"), vec![configured("shop", "token-shop")], Some(key), Arc::new(|| NOW_US));
    Accounts::open(Parts { store: AccountStore::new(Shelf::shared(registry.clone())), ..parts })
}

/// What others have written arrives.
fn arrive(registry: &MemoryRegistry) {
    block_on(registry.catch_up()).unwrap();
}

fn owner(accounts: &Accounts, token: &str) -> Option<String> {
    accounts.with_token(token).map(|account| account.name.clone())
}

#[test]
fn what_one_gateway_changes_the_others_use() {
    let here = Arc::new(MemoryRegistry::default());
    let there = here.other();
    let (one, other) = (shared(&here, 1).unwrap(), shared(&there, 1).unwrap());
    one.add("bar", "token-bar", Some("vbm"), Some(0)).unwrap();
    assert_eq!(owner(&other, "token-bar"), None);
    arrive(&there);
    assert_eq!(owner(&other, "token-bar").as_deref(), Some("bar"));
    assert_eq!(other.show("bar").unwrap(), one.show("bar").unwrap());
    assert_eq!(other.0.policies.known().into_keys().collect::<Vec<_>>(), ["bar"]);
    // A change starts from what is in force everywhere, whether it has arrived by itself or not.
    other.rotate("bar", "token-new", HOUR).unwrap();
    let paused = one.adjust("bar", Adjustment { paused: Some(true), limit: None }).unwrap();
    assert_eq!((paused.tokens.len(), owner(&one, "token-new").as_deref()), (2, Some("bar")));
    assert!(matches!(other.add("bar", "more", None, None), Err(AccountsError::NameTaken(_))));
    assert!(other.named("bar").unwrap().is_paused());
    other.remove("bar").unwrap();
    arrive(&here);
    assert_eq!((owner(&one, "token-bar"), owner(&one, "token-new"), one.list().len()), (None, None, 1));
    // A gateway that starts knows all of it.
    let late = here.other();
    one.add("baz", "token-baz", None, None).unwrap();
    arrive(&late);
    assert_eq!(owner(&shared(&late, 1).unwrap(), "token-baz").as_deref(), Some("baz"));
}

#[test]
fn a_change_that_no_broker_takes_is_not_made() {
    let registry = Arc::new(MemoryRegistry::default());
    let accounts = shared(&registry, 1).unwrap();
    accounts.add("bar", "token-bar", None, None).unwrap();
    registry.is_away.store(true, Ordering::SeqCst);
    let error = accounts.rotate("bar", "new", HOUR).unwrap_err();
    assert!(matches!(error, AccountsError::Shelf(_)) && error.to_string().contains("no broker"), "{error}");
    assert_eq!((owner(&accounts, "token-bar").as_deref(), owner(&accounts, "new")), (Some("bar"), None));
}

#[test]
fn an_entry_that_cannot_be_used_is_refused_alone() {
    let registry = Arc::new(MemoryRegistry::default());
    let accounts = shared(&registry, 1).unwrap();
    accounts.add("bar", "token-bar", None, None).unwrap();
    accounts.add("foo", "token-foo", None, None).unwrap();
    // Under another key, with a token or a name that is another account's, and no account at all.
    let stranger = Shelf::shared(registry.other());
    let foreign = |name: &str, token: &str, key: u8| StoredAccount {
        name: name.to_owned(),
        policy: None,
        paused: false,
        limit: None,
        removed: false,
        created_at_ms: 0,
        tokens: vec![StoredToken {
            sealed: Vault::new(&hex::encode([key; 32])).unwrap().seal(name, token),
            until_ms: None,
        }],
    };
    for (name, account) in [
        ("foo", foreign("foo", "token-foo", 2)),
        ("same", foreign("same", "token-bar", 1)),
        ("shop", foreign("shop", "token-other", 1)),
        ("else", foreign("bar", "token-else", 1)),
    ] {
        stranger.save(crate::gateway::shelf::Kind::Account, name, Some(&account)).unwrap();
    }
    block_on(registry.put("account/none", Some(b"{".to_vec()))).unwrap();
    let owners =
        ["token-bar", "token-shop", "token-foo", "token-other", "token-else"].map(|token| owner(&accounts, token));
    assert_eq!(owners, [Some("bar".into()), Some("shop".into()), None, None, None]);
    assert!(accounts.named("foo").is_none() && accounts.named("same").is_none());
    // A start says what it is; and what is put right counts again.
    for (key, mend, text) in [
        ("account/else", None, "it is of an account named \"bar\""),
        ("account/none", None, "account/none in the registry is damaged: EOF"),
        ("account/foo", Some(foreign("foo", "token-foo", 1)), "`foo` cannot be opened"),
        ("account/same", None, "accounts `bar` and `same` have the same token"),
        ("account/shop", None, "`shop` is both in the config"),
    ] {
        let error = shared(&registry, 1).map(drop).unwrap_err().to_string();
        assert!(error.contains(text) && !error.contains("token-"), "{error}");
        block_on(registry.put(key, mend.map(|account| serde_json::to_vec(&account).unwrap()))).unwrap();
    }
    shared(&registry, 1).unwrap();
    assert_eq!(owner(&accounts, "token-foo").as_deref(), Some("foo"));
}

#[test]
fn files_of_an_earlier_time_are_taken_over_once() {
    let world = World::new();
    world.accounts.add("bar", "token-bar", Some("vbm"), None).unwrap();
    world.accounts.add("old", "token-old", None, None).unwrap();
    world.accounts.remove("old").unwrap();
    let webhook = r#"{"confirmed":{"url":"https://bot"},"pending":{"url":"https://other"}}"#;
    std::fs::create_dir(world.dir.path().join("webhooks")).unwrap();
    std::fs::write(world.dir.path().join("webhooks/bar.json"), webhook).unwrap();
    let registry = Arc::new(MemoryRegistry::default());
    let shelf = Shelf::shared(registry.clone());
    let vault = |key: u8| Vault::new(&hex::encode([key; 32])).unwrap();
    // Nobody could open it there.
    let error = adopt_files(world.dir.path(), &shelf, Some(&vault(2))).unwrap_err().to_string();
    assert!(error.contains("`bar` cannot be opened"), "{error}");
    assert!(adopt_files(world.dir.path(), &shelf, None).is_err() && registry.entries().borrow().is_empty());
    adopt_files(world.dir.path(), &shelf, Some(&vault(1))).unwrap();
    let entries = registry.entries().borrow().clone();
    assert_eq!(entries.keys().collect::<Vec<_>>(), ["account/bar", "account/old", "webhook/bar"]);
    assert!(!String::from_utf8_lossy(&entries["webhook/bar"]).contains("other"));
    let accounts = shared(&registry, 1).unwrap();
    assert_eq!(owner(&accounts, "token-bar").as_deref(), Some("bar"));
    accounts.remove("bar").unwrap();
    block_on(registry.put("webhook/bar", None)).unwrap();
    // What has gone since does not come back, and what came in since is not replaced.
    adopt_files(world.dir.path(), &shelf, Some(&vault(1))).unwrap();
    assert!(!registry.entries().borrow().contains_key("webhook/bar"));
    world.accounts.add("old", "token-older", None, None).unwrap();
    adopt_files(world.dir.path(), &shelf, Some(&vault(1))).unwrap();
    assert_eq!((owner(&accounts, "token-bar"), owner(&accounts, "token-older")), (None, None));
    assert!(!world.dir.path().join("accounts/old.json").exists());
}
