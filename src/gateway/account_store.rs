//! The accounts that were added at run time: `accounts/<name>.json` in the data directory, or `account/<name>` in the
//! registry.

use super::shelf::{Entries, Kind, Shelf, ShelfError, parse};
use crate::durable_file::DurableFileError;
use crate::event::is_account_name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An account as it is stored. Tokens are in it sealed only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredAccount {
    pub name: String,
    /// Absent where `[fold] policy` holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(default)]
    pub paused: bool,
    /// Requests per second, 0 for no limit; absent where `[gateway] requests_per_second` holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// It is gone, but its history is folded under its policy.
    #[serde(default)]
    pub removed: bool,
    pub created_at_ms: i64,
    /// The newest first; none once it is removed.
    #[serde(default)]
    pub tokens: Vec<StoredToken>,
}

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredToken {
    /// See [`super::vault`].
    pub sealed: String,
    /// Not valid from then on; absent for the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
}

/// Every account by name, removed ones too.
pub(super) type ByName = BTreeMap<String, StoredAccount>;

/// Where the accounts are kept.
#[derive(Clone)]
pub struct AccountStore(Shelf);

impl AccountStore {
    pub fn new(shelf: Shelf) -> Self {
        Self(shelf)
    }

    /// Every account, removed ones too. One that is not as it was written is an error.
    pub fn load(&self) -> Result<Vec<StoredAccount>, ShelfError> {
        if let Some(entries) = self.0.entries() {
            return changed(&Entries::default(), &entries).into_iter().collect();
        }
        Ok(self.files()?.into_iter().map(|(_, account)| account).collect())
    }

    /// Those in files, each with its path.
    pub(super) fn files(&self) -> Result<Vec<(PathBuf, StoredAccount)>, ShelfError> {
        let files = self.0.read_files::<StoredAccount>(Kind::Account)?;
        for (path, account) in &files {
            if !is_account_name(&account.name) || Some(path) != self.0.path(Kind::Account, &account.name).as_ref() {
                let reason = format!("it is of an account named {:?}", account.name);
                return Err(DurableFileError::Damaged { path: path.clone(), reason }.into());
            }
        }
        Ok(files)
    }

    /// The shelf they are on.
    pub(super) fn shelf(&self) -> &Shelf {
        &self.0
    }

    /// Puts an account in the place of what was stored under its name, durably. Waits for it.
    pub fn save(&self, account: &StoredAccount) -> Result<(), ShelfError> {
        self.0.save(Kind::Account, &account.name, Some(account))
    }
}

/// The accounts of the registry that are there now and were not `before`, or were otherwise.
pub fn changed(before: &Entries, now: &Entries) -> Vec<Result<StoredAccount, ShelfError>> {
    let changes = Kind::Account.changes(before, now).into_iter();
    changes.filter_map(|(name, value)| Some(read(name, value?))).collect()
}

/// An account as the registry has it.
pub(super) fn read(name: &str, value: &[u8]) -> Result<StoredAccount, ShelfError> {
    let account: StoredAccount = parse(Kind::Account, name, value)?;
    if account.name == name {
        return Ok(account);
    }
    let reason = format!("it is of an account named {:?}", account.name);
    Err(ShelfError::Damaged { key: format!("account/{name}"), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> StoredAccount {
        StoredAccount {
            name: name.into(),
            policy: Some("vbm".into()),
            paused: false,
            limit: Some(20),
            removed: false,
            created_at_ms: 1_760_000_000_000,
            tokens: vec![StoredToken { sealed: "c2VhbGVk".into(), until_ms: Some(7) }],
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let store = AccountStore::new(Shelf::files(dir.path()));
        assert_eq!(store.load().unwrap(), []);
        for name in ["shop", "bar"] {
            store.save(&account(name)).unwrap();
        }
        let gone = StoredAccount { removed: true, tokens: Vec::new(), limit: None, policy: None, ..account("shop") };
        store.save(&gone).unwrap();
        assert_eq!(store.load().unwrap(), [account("bar"), gone]);
    }

    #[test]
    fn a_damaged_file_is_told_with_path_and_reason() {
        let dir = tempfile::tempdir().unwrap();
        let store = AccountStore::new(Shelf::files(dir.path()));
        store.save(&account("shop")).unwrap();
        let path = dir.path().join("accounts/shop.json");
        let whole = std::fs::read_to_string(&path).unwrap();
        for (text, reason) in [
            (whole[..whole.len() / 2].to_owned(), "EOF"),
            (whole.replace("\"paused\"", "\"pausd\""), "pausd"),
            (whole.replace("\"shop\"", "\"bar\""), "named \"bar\""),
            (whole.replace("\"shop\"", "\"../shop\""), "named"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = store.load().unwrap_err().to_string();
            assert!(error.contains("accounts/shop.json is damaged") && error.contains(reason), "{error}");
        }
    }
}
