//! How things stand with a user, as the console tells it.

use crate::event::time::format_ms;
use crate::session::Standing;
use crate::session::row::SessionRow;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How things stand with a user, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Standing)]
pub struct Told {
    pub account: String,
    pub user_id: String,
    #[schema(required)]
    pub country: Option<String>,
    /// RFC 3339, UTC.
    pub as_of: String,
    /// Those that are open, the newest last.
    pub sessions: Vec<OpenSession>,
    pub quote: Quoted,
}

/// An open session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpenSession {
    pub session_id: String,
    /// `service` or `paid`.
    pub kind: String,
    pub opened_at: String,
    pub expires_at: String,
    /// Whole minutes until then.
    pub minutes_left: i64,
    pub inbound: u32,
    pub outbound: u32,
    pub policy: String,
}

/// What a message to the user would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quoted {
    /// `in_service`, `in_paid` or `out_of_session`.
    pub expected: String,
    /// `None` where that is a matter of how many free messages the month has left.
    #[schema(required)]
    pub is_free: Option<bool>,
    #[schema(required)]
    pub until: Option<String>,
    /// Of one that is charged, as a decimal number; `None` where none is known.
    #[schema(required)]
    pub price: Option<String>,
    #[schema(required)]
    pub currency: Option<String>,
    /// How many messages out of sessions are free in a UTC month.
    pub free_per_month: u64,
    pub policy: String,
}

impl Told {
    /// Of a user at `now_ms`, ms since the epoch.
    pub fn new(account: &str, user: &str, now_ms: i64, standing: &Standing) -> Self {
        let Standing { country, open, quote } = standing;
        let is_free = match (quote.is_in_session(), quote.free_per_month) {
            (true, _) => Some(true),
            (false, 0) => Some(false),
            (false, _) => None,
        };
        Self {
            account: account.to_owned(),
            user_id: user.to_owned(),
            country: country.as_ref().map(ToString::to_string),
            as_of: format_ms(now_ms),
            sessions: open.iter().map(|row| OpenSession::new(row, now_ms)).collect(),
            quote: Quoted {
                expected: quote.expected.as_str().to_owned(),
                is_free,
                until: quote.until_ms.map(format_ms),
                price: quote.price.map(|price| price.to_string()),
                currency: quote.currency.map(|currency| currency.as_str().to_owned()),
                free_per_month: quote.free_per_month,
                policy: quote.policy.to_string(),
            },
        }
    }
}

impl OpenSession {
    fn new(row: &SessionRow, now_ms: i64) -> Self {
        Self {
            session_id: hex::encode(row.session_id),
            kind: row.kind.as_str().to_owned(),
            opened_at: format_ms(row.opened_at_ms),
            expires_at: format_ms(row.expires_at_ms),
            minutes_left: (row.expires_at_ms - now_ms).max(0) / 60_000,
            inbound: row.inbound,
            outbound: row.outbound,
            policy: row.policy.to_string(),
        }
    }
}
