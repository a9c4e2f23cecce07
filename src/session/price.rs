//! Prices: what a charged message costs by country, as dated data (spec §4). Pure.

use super::money::{Currency, Money};
use super::outline::{Outline, digest};
use crate::event::time::parse_date_ms;
use compact_str::CompactString;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What Viber reports of a message that it charged.
const CHARGED: i32 = 5;
/// The country of whatever has no rows of its own.
const REST: &str = "*";
const COLUMNS: [&str; 4] = ["country", "currency", "price", "valid_from"];

/// An amount of a currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    pub amount: Money,
    pub currency: Currency,
}

/// Prices by country and date; the default has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PriceList {
    /// Of each country `(start in ms since the epoch, UTC, price)`, ascending; `i64::MIN` is always.
    countries: FxHashMap<CompactString, Vec<(i64, Price)>>,
    rest: Vec<(i64, Price)>,
    outline: Outline,
}

/// Why a price list was not accepted. All are its writer's to mend.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PriceError {
    #[error("line {line}: {reason}")]
    Row { line: u64, reason: String },
    #[error("line {line}, {field}: {value:?}: {reason}")]
    Field { line: u64, field: &'static str, value: String, reason: &'static str },
}

/// `price`, `cost` and `currency` of a message. `cost` is `None` where it was charged and has no price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    pub price: Option<Money>,
    pub cost: Option<Money>,
    pub currency: Option<Currency>,
}

impl PriceList {
    /// Reads CSV with a head line of `country`, `currency`, `price` and `valid_from`, in any order. A value may stand in
    /// quotes, on one line.
    pub fn parse(text: &str) -> Result<Self, PriceError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
        let (line, head) = lines.next().unwrap_or((1, ""));
        let columns = columns(line, &fields(line, head)?)?;
        let mut list = PriceList::default();
        for (line, row) in lines {
            list.add(line, &fields(line, row)?, columns)?;
        }
        if list == PriceList::default() {
            return Err(PriceError::Row { line, reason: "there is no price below this head line".to_owned() });
        }
        for prices in list.countries.values_mut().chain([&mut list.rest]) {
            prices.sort_unstable_by_key(|(start_ms, _)| *start_ms);
        }
        list.outline = list.outlined();
        Ok(list)
    }

    fn add(&mut self, line: u64, row: &[String], columns: [usize; 4]) -> Result<(), PriceError> {
        if row.len() != COLUMNS.len() {
            let reason = format!("it has {} fields: expected {}", row.len(), COLUMNS.len());
            return Err(PriceError::Row { line, reason });
        }
        let [country, currency, price, valid_from] = columns.map(|at| row[at].as_str());
        let refuse = |field, value: &str, reason| PriceError::Field { line, field, value: value.to_owned(), reason };
        let is_code = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase());
        if country != REST && !is_code(country) {
            return Err(refuse("country", country, "expected two capital letters such as UA, or * for the rest"));
        }
        let known = Currency::parse(currency);
        let currency =
            known.ok_or_else(|| refuse("currency", currency, "expected three capital letters such as EUR"))?;
        let amount = Money::parse(price).map_err(|reason| refuse("price", price, reason))?;
        let start_ms = start_ms(valid_from)
            .ok_or_else(|| refuse("valid_from", valid_from, "expected a date such as 2026-03-01, or nothing"))?;
        let prices = match country {
            REST => &mut self.rest,
            country => self.countries.entry(country.into()).or_default(),
        };
        if prices.iter().any(|(known_ms, _)| *known_ms == start_ms) {
            return Err(refuse("valid_from", valid_from, "this country has a price from then on already"));
        }
        prices.push((start_ms, Price { amount, currency }));
        Ok(())
    }

    /// The price in force: the country's, else the rest's, to which a message without a country belongs.
    pub fn at(&self, country: Option<&str>, t_ms: i64) -> Option<Price> {
        let in_force = |prices: &[(i64, Price)]| {
            let started = prices.partition_point(|(start_ms, _)| *start_ms <= t_ms);
            started.checked_sub(1).map(|newest| prices[newest].1)
        };
        let own = country.and_then(|country| self.countries.get(country));
        own.and_then(|prices| in_force(prices)).or_else(|| in_force(&self.rest))
    }

    /// What a message costs that was sent then. `is_due` says whether one that Viber charges is to be paid already.
    pub fn charge(&self, country: Option<&str>, sent_at_ms: i64, billing_status: Option<i32>, is_due: bool) -> Charge {
        let price = self.at(country, sent_at_ms);
        let amount = price.map(|price| price.amount);
        let cost = match (billing_status == Some(CHARGED), amount) {
            (true, None) => None,
            (true, Some(amount)) if is_due => Some(amount),
            _ => Some(Money::ZERO),
        };
        Charge { price: amount, cost, currency: price.map(|price| price.currency) }
    }

    /// What holds from when on.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    fn outlined(&self) -> Outline {
        let mut by_start: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        let countries = self.countries.iter().map(|(country, prices)| (country.as_str(), prices));
        for (country, prices) in countries.chain([(REST, &self.rest)]) {
            for (start_ms, Price { amount, currency }) in prices {
                by_start.entry(*start_ms).or_default().push(format!("{country} {amount} {}", currency.as_str()));
            }
        }
        let told = |(start_ms, mut rows): (i64, Vec<String>)| {
            rows.sort_unstable();
            (start_ms, format!("prices {}", digest(rows.join("\n").as_bytes())))
        };
        by_start.into_iter().map(told).collect()
    }
}

/// The price lists of all accounts.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    /// Of accounts without one of their own.
    pub default: Arc<PriceList>,
    pub accounts: BTreeMap<String, Arc<PriceList>>,
}

impl Prices {
    /// The price list of an account.
    pub fn of(&self, account: &str) -> &Arc<PriceList> {
        self.accounts.get(account).unwrap_or(&self.default)
    }
}

/// Where the columns stand, in the order of [`COLUMNS`].
fn columns(line: u64, head: &[String]) -> Result<[usize; 4], PriceError> {
    let refuse = |reason| PriceError::Row { line, reason };
    let wanted = COLUMNS.join(",");
    if let Some(other) = head.iter().find(|name| !COLUMNS.contains(&name.as_str())) {
        return Err(refuse(format!("there is no column {other:?}: expected the head line {wanted}")));
    }
    let mut places = [0; 4];
    for (place, column) in places.iter_mut().zip(COLUMNS) {
        let mut found = (0..head.len()).filter(|at| head[*at] == column);
        *place = match (found.next(), found.next()) {
            (Some(at), None) => at,
            (None, _) => return Err(refuse(format!("column {column} is missing: expected the head line {wanted}"))),
            (Some(_), Some(_)) => return Err(refuse(format!("there are two columns {column}"))),
        };
    }
    Ok(places)
}

/// The start of a UTC date in ms; always, for nothing. `None` for anything else.
fn start_ms(date: &str) -> Option<i64> {
    if date.is_empty() { Some(i64::MIN) } else { parse_date_ms(date) }
}

/// The values of a line. One in quotes may have commas in it, and two quotes for one.
fn fields(line: u64, mut rest: &str) -> Result<Vec<String>, PriceError> {
    let refuse = |reason: &str| PriceError::Row { line, reason: reason.to_owned() };
    let mut fields = Vec::new();
    loop {
        rest = rest.trim_start();
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let end = closing_quote(quoted).ok_or_else(|| refuse("a quote is not closed on it"))?;
                (quoted[..end].replace("\"\"", "\""), quoted[end + 1..].trim_start())
            }
            None => {
                let (field, after) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
                (field.trim_end().to_owned(), after)
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(refuse("something stands between a closing quote and the comma")),
        }
    }
}

/// Where the first quote is that is not one of two.
fn closing_quote(quoted: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + quoted[from..].find('"')?;
        if !quoted[at + 1..].starts_with('"') {
            return Some(at);
        }
        from = at + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARCH: i64 = 1_772_323_200_000;
    const LIST: &str = "country,currency,price,valid_from\nUA,EUR,0.0123,\nUA,EUR,0.02,2026-03-01\n\
                        PL,USD,0.5,2026-03-01\n*,EUR,0.1,\n";

    fn at(list: &PriceList, country: Option<&str>, t_ms: i64) -> String {
        let price = list.at(country, t_ms);
        price.map_or("none".into(), |price| format!("{} {:?}", price.amount, price.currency))
    }

    #[test]
    fn the_price_in_force_is_that_of_country_and_date() {
        let list = PriceList::parse(LIST).unwrap();
        for (country, t_ms, price) in [
            (Some("UA"), i64::MIN, "0.012300 EUR"),
            (Some("UA"), MARCH - 1, "0.012300 EUR"),
            (Some("UA"), MARCH, "0.020000 EUR"),
            (Some("PL"), MARCH - 1, "0.100000 EUR"),
            (Some("PL"), i64::MAX, "0.500000 USD"),
            (Some("DE"), 0, "0.100000 EUR"),
            (None, 0, "0.100000 EUR"),
        ] {
            assert_eq!(at(&list, country, t_ms), price, "{country:?} at {t_ms}");
        }
        let some = PriceList::parse("\u{feff}valid_from,price,currency,country\r\n\r\n2026-03-01,\"1\",EUR,\"UA\"\r\n")
            .unwrap();
        assert_eq!(at(&some, Some("UA"), MARCH - 1), "none");
        assert_eq!(at(&some, Some("UA"), MARCH), "1.000000 EUR");
        assert_eq!(at(&some, None, MARCH), "none");
        assert_eq!(at(&PriceList::default(), Some("UA"), MARCH), "none");
    }

    #[test]
    fn a_message_costs_its_price_once_viber_charges_it() {
        let (list, none) = (PriceList::parse(LIST).unwrap(), PriceList::default());
        let cost = |list: &PriceList, status, is_due| {
            let charge = list.charge(Some("UA"), 0, status, is_due);
            (charge.price.map(Money::micros), charge.cost.map(Money::micros))
        };
        assert_eq!(cost(&list, Some(5), true), (Some(12_300), Some(12_300)));
        assert_eq!(cost(&list, Some(5), false), (Some(12_300), Some(0)));
        for status in [None, Some(0), Some(1), Some(4), Some(6)] {
            assert_eq!(cost(&list, status, true), (Some(12_300), Some(0)), "{status:?}");
            assert_eq!(cost(&none, status, true), (None, Some(0)), "{status:?}");
        }
        assert_eq!((cost(&none, Some(5), true), cost(&none, Some(5), false)), ((None, None), (None, None)));
    }

    #[test]
    fn mistakes_are_refused_with_line_field_and_value() {
        let head = "country,currency,price,valid_from\n";
        for (text, wanted) in [
            ("", "line 1: there is no column \"\": expected the head line country,currency,price,valid_from"),
            ("UA,EUR,0.1,\n", "line 1: there is no column \"UA\""),
            ("country,currency,price\n", "line 1: column valid_from is missing"),
            ("country,currency,price,valid_from,note\n", "line 1: there is no column \"note\""),
            ("country,currency,price,valid_from,price\n", "line 1: there are two columns price"),
            (&format!("{head}UA,EUR,0.1\n"), "line 2: it has 3 fields"),
            (&format!("{head}\nUA,EUR,0.1,,\n"), "line 3: it has 5 fields"),
            (&format!("{head}ua,EUR,0.1,\n"), "line 2, country: \"ua\": expected two capital letters"),
            (&format!("{head}UA,euro,0.1,\n"), "line 2, currency: \"euro\": expected three capital letters"),
            (&format!("{head}UA,EUR,0.1,\nPL,EUR,-1,\n"), "line 3, price: \"-1\": it is negative"),
            (&format!("{head}UA,EUR,0.1,,\r\n"), "line 2: it has 5 fields"),
            (&format!("{head}UA,EUR,\"0,01\",\n"), "line 2, price: \"0,01\": expected a decimal number"),
            (&format!("{head}UA,EUR,\"0.01,\n"), "line 2: a quote is not closed on it"),
            (&format!("{head}UA,EUR,\"0.01\"1,\n"), "line 2: something stands between"),
            (&format!("{head}\"U\"\"A\",EUR,0.01,\n"), "line 2, country: \"U\\\"A\""),
            (head, "line 1: there is no price below this head line"),
            (&head.replace(',', ";"), "line 1: there is no column \"country;currency;price;valid_from\": expected"),
            (&format!("{head}UA,EUR,0.1.2,\r\n"), "line 2, price: \"0.1.2\": expected a decimal number"),
            (&format!("{head}UA,EUR,0.1234567,\n"), "line 2, price: \"0.1234567\": it has more than 6 decimals"),
            (&format!("{head}UA,EUR,0.1,2026-02-30\n"), "line 2, valid_from: \"2026-02-30\": expected a date"),
            (&format!("{head}UA,EUR,0.1,2026-3-1\n"), "line 2, valid_from: \"2026-3-1\": expected a date"),
            (&format!("{head}*,EUR,0.1,\n*,USD,0.2,\n"), "line 3, valid_from: \"\": this country has a price"),
        ] {
            let error = PriceList::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn the_outline_tells_what_changed_from_when_on() {
        let list = PriceList::parse(LIST).unwrap();
        let starts: Vec<i64> = list.outline().iter().map(|(start_ms, _)| *start_ms).collect();
        assert_eq!(starts, [i64::MIN, MARCH]);
        let later = PriceList::parse(&format!("{LIST}UA,EUR,0.03,2026-04-01\n")).unwrap();
        assert_eq!(later.outline()[..2], list.outline()[..]);
        let other = PriceList::parse(&LIST.replace("PL,USD", "PL,EUR")).unwrap();
        assert_eq!(other.outline()[0], list.outline()[0]);
        assert_ne!(other.outline()[1], list.outline()[1]);
    }
}
