//! From files to the registry: what a data directory knows of accounts and webhooks from the time when its gateway was
//! alone.

use super::account_store::{AccountStore, StoredAccount};
use super::accounts::AccountsError;
use super::registrations::Registration;
use super::shelf::{Entries, Kind, Shelf};
use super::vault::Vault;
use std::path::Path;

/// Takes over into `shared`, the shelf of all gateways, what files of the data directory hold and it does not know. The
/// files are set aside then, so that nothing is taken over twice. An account whose token cannot be opened is an error: no
/// other gateway could open it either. Waits for disk and brokers.
pub fn adopt_files(data_dir: &Path, shared: &Shelf, vault: Option<&Vault>) -> Result<(), AccountsError> {
    let files = Shelf::files(data_dir);
    let known = shared.entries().unwrap_or_default();
    let accounts = AccountStore::new(files.clone()).files()?;
    for (_, account) in &accounts {
        check(account, vault)?;
    }
    for (path, account) in accounts {
        adopt(shared, &known, Kind::Account, &account.name, Some(&account))?;
        files.set_aside(&path)?;
    }
    for (path, registration) in files.read_files::<Registration>(Kind::Webhook)? {
        let Some(account) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        let kept = Registration { pending: None, ..registration };
        adopt(shared, &known, Kind::Webhook, account, kept.confirmed.is_some().then_some(&kept))?;
        files.set_aside(&path)?;
    }
    Ok(())
}

fn adopt(
    shared: &Shelf,
    known: &Entries,
    kind: Kind,
    account: &str,
    what: Option<&impl serde::Serialize>,
) -> Result<(), AccountsError> {
    if known.contains_key(&kind.key(account)) {
        tracing::warn!(account, ?kind, "the registry knows it already: what the data directory says is set aside");
    } else if what.is_some() {
        shared.save(kind, account, what)?;
        tracing::info!(account, ?kind, "taken over from the data directory into the registry");
    }
    Ok(())
}

fn check(account: &StoredAccount, vault: Option<&Vault>) -> Result<(), AccountsError> {
    let name = || account.name.clone();
    for token in &account.tokens {
        let vault = vault.ok_or_else(|| AccountsError::Locked(name()))?;
        vault.open(&account.name, &token.sealed).map_err(|error| AccountsError::Unopened { name: name(), error })?;
    }
    Ok(())
}
