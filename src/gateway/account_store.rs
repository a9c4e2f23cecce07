//! The accounts that were added at run time, a file each: `accounts/<name>.json` in the data directory.

use crate::durable_file::{self, DurableFileError};
use crate::event::is_account_name;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// An account as its file has it. Tokens are in it sealed only.
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

/// The folder of the files. Nobody else may write there.
#[derive(Debug, Clone)]
pub struct AccountStore {
    folder: PathBuf,
}

impl AccountStore {
    /// In a data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("accounts") }
    }

    /// Every account, by name, removed ones too. A file that is not as it was written is an error.
    pub fn load(&self) -> Result<Vec<StoredAccount>, DurableFileError> {
        let mut accounts = Vec::new();
        for path in durable_file::list(&self.folder)? {
            let Some(account) = durable_file::read::<StoredAccount>(&path)? else { continue };
            if !is_account_name(&account.name) || path != self.path(&account.name) {
                let reason = format!("it is of an account named {:?}", account.name);
                return Err(DurableFileError::Damaged { path, reason });
            }
            accounts.push(account);
        }
        Ok(accounts)
    }

    /// Puts an account in the place of what was stored under its name, durably.
    pub fn save(&self, account: &StoredAccount) -> Result<(), DurableFileError> {
        durable_file::write(&self.path(&account.name), account)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
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
        let store = AccountStore::new(dir.path());
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
        let store = AccountStore::new(dir.path());
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
