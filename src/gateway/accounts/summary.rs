//! What may be told of an account: everything but its tokens.

use super::super::account::is_valid;
use super::super::account_store::StoredAccount;
use super::Configured;
use crate::event::time::format_us;
use serde::{Deserialize, Serialize};

/// What may be told of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccountSummary {
    pub name: String,
    pub origin: Origin,
    pub paused: bool,
    /// `None` is that of `[fold] policy`.
    pub policy: Option<String>,
    /// Requests per second, 0 for no limit; `None` is that of `[gateway] requests_per_second`.
    pub limit: Option<u32>,
    /// Those valid now, the newest first.
    pub tokens: Vec<TokenSummary>,
}

/// Where an account is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Config,
    Data,
}

/// What may be told of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenSummary {
    /// RFC 3339; `None` has no end.
    pub until: Option<String>,
}

impl AccountSummary {
    pub(super) fn of_configured(account: &Configured) -> Self {
        Self {
            name: account.name.clone(),
            origin: Origin::Config,
            paused: false,
            policy: account.policy.clone(),
            limit: account.limit,
            tokens: vec![TokenSummary { until: None }],
        }
    }

    /// With the tokens that are valid now.
    pub(super) fn of_stored(account: &StoredAccount, now_ms: i64) -> Self {
        let ends = account.tokens.iter().map(|token| token.until_ms).filter(|until_ms| is_valid(*until_ms, now_ms));
        let told = |until_ms: i64| format_us(until_ms.saturating_mul(1000));
        Self {
            name: account.name.clone(),
            origin: Origin::Data,
            paused: account.paused,
            policy: account.policy.clone(),
            limit: account.limit,
            tokens: ends.map(|until_ms| TokenSummary { until: until_ms.map(told) }).collect(),
        }
    }
}
