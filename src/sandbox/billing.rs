//! What a message to a user is billed as: sessions, free quota, balance. Pure.

use super::code::Code;
use chrono::{DateTime, Datelike};
use serde::{Deserialize, Serialize};

/// How long a session lasts from the message that opened it.
pub const SESSION_MS: i64 = 24 * 3_600_000;
/// Out-of-session messages that are free in a UTC calendar month, under the model of 2022.
pub const FREE_QUOTA: u64 = 10_000;

/// `billing_status` of a message in an inline conversation.
const FREE: u8 = 0;
/// `billing_status` of a message that is charged.
pub const CHARGED: u8 = 5;

/// Viber's models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Model {
    /// Of bots made before 2024-02-05: a number of free out-of-session messages each month.
    #[serde(rename = "2022")]
    Y2022,
    /// Of bots made since: every out-of-session message is paid.
    #[serde(rename = "2024")]
    Y2024,
}

/// The open or last session of a user: fixed, `[opened_ms, opened_ms + 24 h)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    pub opened_ms: i64,
}

impl Session {
    /// Whether the moment lies in the session.
    pub fn holds(&self, at_ms: i64) -> bool {
        (self.opened_ms..self.opened_ms.saturating_add(SESSION_MS)).contains(&at_ms)
    }

    /// The user wrote: the session that then holds, and whether it was opened by that.
    pub fn on_message(session: Option<Session>, at_ms: i64) -> (Session, bool) {
        match session {
            Some(session) if session.holds(at_ms) => (session, false),
            _ => (Session { opened_ms: at_ms }, true),
        }
    }
}

/// What a bot's messages are billed by, and what it has used up.
#[derive(Debug, Clone)]
pub struct Account {
    model: Model,
    billable: bool,
    free_quota: u64,
    /// Messages that can still be paid; `None` is without limit.
    balance: Option<u64>,
    /// The month that `used` counts in, as [`month`] numbers it.
    month: i64,
    used: u64,
}

impl Account {
    /// An account that has used nothing. `free_quota` counts under the model of 2022 only.
    pub fn new(model: Model, billable: bool, free_quota: u64, balance: Option<u64>) -> Self {
        Self { model, billable, free_quota, balance, month: i64::MIN, used: 0 }
    }

    /// Viber's model.
    pub fn model(&self) -> Model {
        self.model
    }

    /// Whether it has a contract.
    pub fn billable(&self) -> bool {
        self.billable
    }

    /// Messages that can still be paid; `None` is without limit.
    pub fn balance(&self) -> Option<u64> {
        self.balance
    }

    /// Free messages used in the month of this moment.
    pub fn used(&self, at_ms: i64) -> u64 {
        if self.month == month(at_ms) { self.used } else { 0 }
    }

    /// Bills a message: its `billing_status`, or the code it is refused with.
    pub fn bill(&mut self, session: Option<Session>, inline: bool, at_ms: i64) -> Result<u8, Code> {
        if inline {
            return Ok(FREE);
        }
        if session.is_some_and(|session| session.holds(at_ms)) {
            return Ok(if self.billable { 2 } else { 1 });
        }
        let used = self.used(at_ms);
        if self.model == Model::Y2022 && used < self.free_quota {
            (self.month, self.used) = (month(at_ms), used + 1);
            return Ok(if self.billable { 4 } else { 3 });
        }
        match self.balance {
            _ if !self.billable => Err(Code::FREE_MESSAGES_EXCEEDED),
            Some(0) => Err(Code::NO_BALANCE),
            _ => Ok(self.charge()),
        }
    }

    /// Takes a message's price, whatever the rules say: `billing_status` 5.
    pub fn charge(&mut self) -> u8 {
        self.balance = self.balance.map(|balance| balance.saturating_sub(1));
        CHARGED
    }
}

/// UTC calendar months since year 0.
fn month(at_ms: i64) -> i64 {
    let date = DateTime::from_timestamp_millis(at_ms).unwrap_or_default();
    i64::from(date.year()) * 12 + i64::from(date.month0())
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_760_000_000_000;

    fn at(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()
    }

    #[test]
    fn a_session_is_24_hours_from_its_first_message() {
        let (session, opened) = Session::on_message(None, T);
        assert!(opened && session.holds(T) && !session.holds(T - 1));
        // A later message does not prolong it.
        assert_eq!(Session::on_message(Some(session), T + SESSION_MS - 1), (session, false));
        assert!(session.holds(T + SESSION_MS - 1) && !session.holds(T + SESSION_MS));
        // The first one at its end opens another.
        let next = Session { opened_ms: T + SESSION_MS };
        assert_eq!(Session::on_message(Some(session), T + SESSION_MS), (next, true));
    }

    #[test]
    fn in_session_is_free_for_everyone() {
        let session = Some(Session { opened_ms: T });
        for model in [Model::Y2022, Model::Y2024] {
            for (billable, status) in [(false, 1), (true, 2)] {
                let mut account = Account::new(model, billable, 0, Some(0));
                assert_eq!(account.bill(session, false, T), Ok(status));
                assert_eq!(account.bill(session, false, T + SESSION_MS - 1), Ok(status));
                let refused = if billable { Code::NO_BALANCE } else { Code::FREE_MESSAGES_EXCEEDED };
                assert_eq!(account.bill(session, false, T + SESSION_MS), Err(refused));
                assert_eq!(account.bill(session, false, T - 1), Err(refused));
                // An inline conversation knows no session.
                assert_eq!(account.bill(None, true, T), Ok(0));
            }
        }
    }

    #[test]
    fn the_quota_is_of_a_utc_month() {
        let (last, first) = (at("2026-01-31T23:59:59.999Z"), at("2026-02-01T00:00:00Z"));
        let mut account = Account::new(Model::Y2022, false, 2, None);
        assert_eq!(account.bill(None, false, last), Ok(3));
        assert_eq!(account.bill(None, false, last), Ok(3));
        assert_eq!(account.bill(None, false, last), Err(Code::FREE_MESSAGES_EXCEEDED));
        assert_eq!(account.used(last), 2);
        assert_eq!(account.used(first), 0);
        assert_eq!(account.bill(None, false, first), Ok(3));
        assert_eq!(account.used(first), 1);
        // Nothing is carried over.
        assert_eq!(account.bill(None, false, at("2027-02-01T00:00:00Z")), Ok(3));
    }

    #[test]
    fn beyond_the_quota_a_billable_bot_pays_from_its_balance() {
        let mut account = Account::new(Model::Y2022, true, 1, Some(2));
        let statuses: Vec<_> = (0..4).map(|n| account.bill(None, false, T + n)).collect();
        assert_eq!(statuses, [Ok(4), Ok(5), Ok(5), Err(Code::NO_BALANCE)]);
        assert_eq!(account.balance(), Some(0));
        let mut unlimited = Account::new(Model::Y2024, true, FREE_QUOTA, None);
        assert!((0..100).all(|n| unlimited.bill(None, false, T + n) == Ok(5)));
        assert_eq!(unlimited.used(T), 0);
        assert_eq!(
            Account::new(Model::Y2024, false, FREE_QUOTA, None).bill(None, false, T),
            Err(Code::FREE_MESSAGES_EXCEEDED)
        );
    }
}
