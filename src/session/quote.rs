//! What a message to a user would be at a moment: in which session, whether it is free, what it may cost. Pure.
//!
//! It is found by playing the message as any other: the rules are those of the fold.

use super::money::{Currency, Money};
use super::row::{Expected, SessionRow, SessionState};
use super::user::Sending;
use super::{Terms, User};
use crate::event::Method;
use compact_str::CompactString;

/// How things stand with a user at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub country: Option<CompactString>,
    /// Sessions that are open, the newest last.
    pub open: Vec<SessionRow>,
    /// What a message to the user would be.
    pub quote: Quote,
}

/// What a message would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    pub expected: Expected,
    /// Until when it would be that, in ms since the epoch; `None` out of sessions.
    pub until_ms: Option<i64>,
    /// What one that is charged costs: in force for the user's country then; `None` where none is known.
    pub price: Option<Money>,
    pub currency: Option<Currency>,
    /// How many such messages the policy has free in a UTC month.
    pub free_per_month: u64,
    pub policy: CompactString,
}

impl Quote {
    /// Whether it would be free whatever is left of a month's free messages.
    pub fn is_in_session(&self) -> bool {
        self.expected != Expected::OutOfSession
    }
}

impl User {
    /// How things stand at `now_ms`, with the facts that are known.
    pub fn standing(&self, account: &str, name: &str, now_ms: i64, terms: &Terms) -> Standing {
        let rows = self.rows(account, name, now_ms, terms);
        let is_open = |row: &SessionRow| row.state == SessionState::Open && row.opened_at_ms <= now_ms;
        let mut open: Vec<SessionRow> = rows.sessions.into_iter().filter(is_open).collect();
        open.sort_by_key(|row| row.opened_at_ms);
        let quote = self.quote(account, name, now_ms, terms);
        Standing { country: quote.1, open, quote: quote.0 }
    }

    fn quote(&self, account: &str, name: &str, now_ms: i64, terms: &Terms) -> (Quote, Option<CompactString>) {
        // No message of Viber's has this token, and what follows the moment does not count for it.
        const TOKEN: u64 = 0;
        let mut asked = self.clone();
        asked.recent.retain(|fact| fact.t_ms <= now_ms);
        let sending = Sending {
            method: Method::Send,
            billing_status: None,
            message_type: None,
            tracking_data: None,
            receipts: super::user::Receipts::default(),
        };
        asked.add_sending(now_ms, TOKEN, sending);
        let rows = asked.rows(account, name, now_ms, terms);
        let policy = terms.policies.at(now_ms);
        let row = rows.messages.into_iter().find(|row| row.message_token == TOKEN);
        let Some(row) = row else {
            // It was put there.
            let (expected, until_ms) = (Expected::OutOfSession, None);
            let free_per_month = policy.free_out_of_session_per_month;
            let quote =
                Quote { expected, until_ms, price: None, currency: None, free_per_month, policy: policy.name.clone() };
            return (quote, None);
        };
        let session = rows
            .sessions
            .iter()
            .find(|session| row.expected != Expected::OutOfSession && Some(session.session_id) == row.session_id);
        let quote = Quote {
            expected: row.expected,
            until_ms: session.map(|session| session.expires_at_ms),
            price: row.price,
            currency: row.currency,
            free_per_month: policy.free_out_of_session_per_month,
            policy: row.policy,
        };
        (quote, row.country)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Fact;
    use crate::session::{Policy, PolicyChain, PriceList};
    use std::sync::Arc;

    const HOUR: i64 = 3_600_000;
    const DAY: i64 = 24 * HOUR;
    const T: i64 = 1_772_323_200_000;

    fn terms(policy: &str) -> Terms {
        Terms {
            policies: PolicyChain::always(Policy::named(policy).unwrap()),
            prices: Arc::new(PriceList::parse("country,currency,price,valid_from\nUA,EUR,0.1,\n").unwrap()),
            lateness_ms: Some(3 * DAY),
            settle_lateness_ms: 3 * DAY,
            delivery_window_ms: 14 * DAY,
        }
    }

    fn hears(user: &mut User, t_ms: i64, token: u64, fact: Fact, terms: &Terms) {
        user.hear(t_ms, Some(token), Some(&fact), Some(&"UA".into()), Some(t_ms), terms);
    }

    #[test]
    fn a_message_is_free_in_a_session_and_has_a_price_out_of_it() {
        let terms = terms("counterbat");
        let mut user = User::default();
        let stranger = user.standing("bot", "ann", T, &terms);
        assert_eq!((stranger.open.len(), stranger.quote.expected), (0, Expected::OutOfSession));
        assert_eq!((stranger.country, stranger.quote.price), (None, None));

        hears(&mut user, T, 1, Fact::Inbound, &terms);
        let before = user.clone();
        let within = user.standing("bot", "ann", T + 23 * HOUR, &terms);
        assert_eq!((within.open.len(), within.quote.expected), (1, Expected::InService));
        assert_eq!(within.quote.until_ms, Some(T + DAY));
        assert!(within.quote.is_in_session());
        assert_eq!(user, before, "asking changes nothing");

        // The end of a window is not part of it.
        let after = user.standing("bot", "ann", T + DAY, &terms);
        assert_eq!((after.open.len(), after.quote.expected, after.quote.until_ms), (0, Expected::OutOfSession, None));
        assert_eq!(after.quote.price, Money::parse("0.1").ok());
        assert_eq!(after.country.as_deref(), Some("UA"));
        assert!(!after.quote.is_in_session());

        hears(&mut user, T + HOUR, 2, Fact::Unsubscribed, &terms);
        assert_eq!(user.standing("bot", "ann", T + 2 * HOUR, &terms).quote.expected, Expected::OutOfSession);
    }
}
