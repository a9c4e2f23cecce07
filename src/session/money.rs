//! Money: decimal(18,6), exact from the price list to the sum (spec §4). Pure.

use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;

/// Digits after the point.
const DECIMALS: usize = 6;
const MICROS: i64 = 1_000_000;
/// decimal(18,6) has no more.
const MAX_MICROS: i64 = 999_999_999_999_999_999;

/// An amount in millionths of its currency, of at most 18 digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Money(i64);

impl Money {
    pub const ZERO: Money = Money(0);

    /// Reads a decimal number that is not negative, such as `0.0123`; else says why it is none.
    pub fn parse(text: &str) -> Result<Money, &'static str> {
        if text.starts_with('-') {
            return Err("it is negative");
        }
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) {
            return Err("expected a decimal number such as 0.0123");
        }
        if fraction.len() > DECIMALS {
            return Err("it has more than 6 decimals");
        }
        // Both are digits, so they fail for their length alone.
        let micros = format!("{fraction:0<DECIMALS$}").parse::<i64>().ok();
        let whole = whole.parse::<i64>().ok().and_then(|whole| whole.checked_mul(MICROS));
        let sum = whole.zip(micros).and_then(|(whole, micros)| whole.checked_add(micros));
        sum.filter(|sum| *sum <= MAX_MICROS).map(Money).ok_or("it has more than 12 digits before the point")
    }

    /// In millionths.
    pub fn micros(self) -> i64 {
        self.0
    }

    /// The sum; `None` where it has more than 18 digits.
    pub fn checked_add(self, other: Money) -> Option<Money> {
        self.0.checked_add(other.0).filter(|sum| sum.unsigned_abs() <= MAX_MICROS.unsigned_abs()).map(Money)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, micros) =
            (self.0.unsigned_abs() / MICROS.unsigned_abs(), self.0.unsigned_abs() % MICROS.unsigned_abs());
        write!(f, "{sign}{whole}.{micros:0DECIMALS$}")
    }
}

/// A currency by its three capital letters (ISO 4217).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Currency([u8; 3]);

impl Currency {
    /// Reads a code; `None` for anything but three capital letters.
    pub fn parse(text: &str) -> Option<Currency> {
        let code: [u8; 3] = text.as_bytes().try_into().ok()?;
        code.iter().all(u8::is_ascii_uppercase).then_some(Currency(code))
    }

    /// The three letters.
    pub fn as_str(&self) -> &str {
        // What was decoded from a damaged state may be anything.
        std::str::from_utf8(&self.0).unwrap_or("")
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Adds up the costs of a session's messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bill {
    /// `None` once a cost is not known, or the sum has too many digits.
    sum: Option<Money>,
    /// Of the costs that are not zero.
    charged: Named,
    /// Of all.
    any: Named,
}

/// The currency of several amounts.
#[derive(Debug, Clone, Copy)]
enum Named {
    Nothing,
    One(Currency),
    Several,
}

impl Named {
    fn add(&mut self, currency: Currency) {
        *self = match *self {
            Named::Nothing => Named::One(currency),
            Named::One(one) if one == currency => Named::One(one),
            _ => Named::Several,
        };
    }
}

impl Default for Bill {
    fn default() -> Self {
        Bill { sum: Some(Money::ZERO), charged: Named::Nothing, any: Named::Nothing }
    }
}

impl Bill {
    pub fn add(&mut self, cost: Option<Money>, currency: Option<Currency>) {
        self.sum = self.sum.zip(cost).and_then(|(sum, cost)| sum.checked_add(cost));
        if let Some(currency) = currency {
            self.any.add(currency);
            if cost.is_some_and(|cost| cost != Money::ZERO) {
                self.charged.add(currency);
            }
        }
    }

    /// The sum and its currency. Amounts of several currencies have no sum.
    pub fn total(&self) -> (Option<Money>, Option<Currency>) {
        match (self.charged, self.any) {
            (Named::Several, _) => (None, None),
            (Named::One(currency), _) | (Named::Nothing, Named::One(currency)) => (self.sum, Some(currency)),
            (Named::Nothing, _) => (self.sum, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn money(text: &str) -> Money {
        Money::parse(text).unwrap()
    }

    #[test]
    fn amounts_are_read_and_shown_exactly() {
        for (text, micros, shown) in [
            ("0", 0, "0.000000"),
            ("0.0123", 12_300, "0.012300"),
            ("0.000001", 1, "0.000001"),
            ("0007.10", 7_100_000, "7.100000"),
            ("999999999999.999999", 999_999_999_999_999_999, "999999999999.999999"),
        ] {
            assert_eq!((money(text).micros(), money(text).to_string().as_str()), (micros, shown), "{text}");
        }
        assert_eq!(Money(-1).to_string(), "-0.000001");
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for (text, reason) in [
            ("", "decimal number"),
            ("0,01", "decimal number"),
            ("1.", "decimal number"),
            (".5", "decimal number"),
            ("+1", "decimal number"),
            ("1e3", "decimal number"),
            ("1.2.3", "decimal number"),
            ("\u{661}", "decimal number"),
            ("-0.01", "negative"),
            ("0.0000001", "6 decimals"),
            ("1000000000000", "12 digits"),
            ("99999999999999999999999999", "12 digits"),
        ] {
            assert!(Money::parse(text).is_err_and(|error| error.contains(reason)), "{text}");
        }
    }

    #[test]
    fn a_sum_that_no_column_holds_is_none() {
        let most = money("999999999999.999999");
        assert_eq!(most.checked_add(Money::ZERO), Some(most));
        assert_eq!(most.checked_add(money("0.000001")), None);
    }

    #[test]
    fn currencies_are_three_capital_letters() {
        assert_eq!(Currency::parse("EUR").map(|eur| eur.as_str().to_owned()), Some("EUR".to_owned()));
        for bad in ["", "eur", "EURO", "EU", "E1R", "\u{20ac}"] {
            assert_eq!(Currency::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_bill_has_one_currency_or_no_sum() {
        let (eur, usd) = (Currency::parse("EUR"), Currency::parse("USD"));
        let bill = |lines: &[(Option<&str>, Option<Currency>)]| {
            let mut bill = Bill::default();
            lines.iter().for_each(|(cost, currency)| bill.add(cost.map(money), *currency));
            bill.total()
        };
        assert_eq!(bill(&[]), (Some(Money::ZERO), None));
        assert_eq!(bill(&[(Some("0.1"), eur), (Some("0.2"), eur), (Some("0"), None)]), (Some(money("0.3")), eur));
        assert_eq!(bill(&[(Some("0.1"), eur), (Some("0"), usd)]), (Some(money("0.1")), eur));
        assert_eq!(bill(&[(Some("0.1"), eur), (Some("0.1"), usd)]), (None, None));
        assert_eq!(bill(&[(Some("0"), eur), (Some("0"), usd)]), (Some(Money::ZERO), None));
        assert_eq!(bill(&[(Some("0.1"), eur), (None, None)]), (None, eur));
        assert_eq!(bill(&[(Some("999999999999"), eur), (Some("1"), eur)]), (None, eur));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(micros in 0..=MAX_MICROS) {
            prop_assert_eq!(Money::parse(&Money(micros).to_string()), Ok(Money(micros)));
        }
    }
}
