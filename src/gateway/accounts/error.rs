//! Why accounts cannot be served or changed.

use super::super::shelf::ShelfError;
use super::super::vault::{BadKey, Unopened};
use crate::event::shown::brief;
use crate::session::policy::PolicyError;

/// Why the accounts cannot be served, or one of them not be changed. Only [`AccountsError::Shelf`] may pass by itself. No
/// text says a token or a key.
#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    /// A call could not be told to belong to one of them.
    #[error("accounts `{0}` and `{1}` have the same token")]
    SameToken(String, String),
    #[error(
        "account `{0}` is both in the config and added at run time: take it out of the config, or remove the other by `counterbat account remove {0}`"
    )]
    InBoth(String),
    #[error("`{}` is no name for an account: expected 1 to 64 of a-z, 0-9, _ and -", brief(.0))]
    BadName(String),
    #[error("the token is empty, too long, or has characters that no token has")]
    BadToken,
    #[error("there is an account `{0}` already")]
    NameTaken(String),
    #[error("this token is already a token of account `{0}`")]
    TokenTaken(String),
    #[error("there is no account `{}`", brief(.0))]
    Unknown(String),
    #[error("account `{0}` comes from the config: change it there, under [[accounts]], and restart")]
    Configured(String),
    #[error(
        "account `{name}` is known from before and folded under {known}, so it cannot get policy `{given}`: its sessions would not be those it had; leave the policy out, or take another name"
    )]
    OtherPolicy { name: String, known: String, given: String },
    #[error("account `{name}`: {error}")]
    Policy { name: String, error: PolicyError },
    #[error(
        "tokens are stored encrypted, and there is no key for it: set key_file under [gateway] to a file made by `openssl rand -hex 32`, or key or key_env"
    )]
    NoKey,
    #[error("the token of account `{name}` cannot be opened with the key of [gateway]: {error}")]
    Unopened { name: String, error: Unopened },
    #[error(
        "the token of account `{0}` is stored encrypted, and [gateway] has no key: set the one under which it was added"
    )]
    Locked(String),
    #[error(transparent)]
    Key(#[from] BadKey),
    /// Where they are stored.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
}

impl AccountsError {
    /// What a change of this account is refused with, where a table with it complains so.
    pub(super) fn of_change(self, account: &str) -> Option<AccountsError> {
        match self {
            AccountsError::SameToken(one, other) if one == account => Some(AccountsError::TokenTaken(other)),
            AccountsError::SameToken(one, other) if other == account => Some(AccountsError::TokenTaken(one)),
            AccountsError::Unopened { name, error } if name == account => Some(AccountsError::Unopened { name, error }),
            AccountsError::Locked(name) if name == account => Some(AccountsError::Locked(name)),
            _ => None,
        }
    }
}
