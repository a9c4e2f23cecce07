//! Policies: tariffs as dated data (spec §4). Pure.

use super::money::Money;
use super::outline::{Outline, digest};
use crate::event::shown::brief;
use borsh::BorshSerialize;
use compact_str::CompactString;
use serde::{Deserialize, Deserializer};
use std::sync::Arc;

const BUILT_IN: [&str; 5] = [
    include_str!("policies/counterbat.toml"),
    include_str!("policies/viber-2022.toml"),
    include_str!("policies/viber-2024.toml"),
    include_str!("policies/gupshup.toml"),
    include_str!("policies/vbm.toml"),
];

/// No session is longer: 31 days, which is as far as the views look back for the session of a message.
const MAX_LENGTH_MS: i64 = 31 * 86_400_000;
/// In ms, the greatest first.
const UNITS: [(&str, i64); 3] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)];
const MAX_OUTBOUND: u32 = 1_000_000;
const MAX_FREE: u64 = 1_000_000_000;
const MAX_FEE_MICROS: i64 = 1_000_000_000_000;

/// How long sessions last and what is charged.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    #[serde(deserialize_with = "name")]
    pub name: CompactString,
    pub service: ServiceTerms,
    /// `None`: a charged message opens no session.
    pub paid: Option<PaidTerms>,
    /// Free out-of-session messages per account and UTC month.
    pub free_out_of_session_per_month: u64,
    pub charged_on: ChargedOn,
    /// A decimal number as text.
    pub monthly_fee_eur: String,
}

/// Terms of a service session. Durations in ms.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, BorshSerialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceTerms {
    #[serde(rename = "length", deserialize_with = "duration_ms")]
    pub length_ms: i64,
    pub anchor: Anchor,
    /// With [`Anchor::Last`], and only with it: the session never lasts longer than this.
    #[serde(rename = "max_length", default, deserialize_with = "optional_duration_ms")]
    pub max_length_ms: Option<i64>,
    /// The n-th outbound message closes the session.
    pub max_outbound: Option<u32>,
}

/// Terms of a paid session. Durations in ms.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, BorshSerialize)]
#[serde(deny_unknown_fields)]
pub struct PaidTerms {
    #[serde(rename = "length", deserialize_with = "duration_ms")]
    pub length_ms: i64,
}

/// From which message of the user the length counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, BorshSerialize)]
#[serde(rename_all = "lowercase")]
pub enum Anchor {
    First,
    Last,
}

/// When a message is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, BorshSerialize)]
#[serde(rename_all = "lowercase")]
pub enum ChargedOn {
    Sent,
    Delivered,
}

/// Why a policy was not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    #[error(
        "there is no policy \"{}\"; built in are: counterbat, viber-2022, viber-2024, gupshup, vbm; others are files that the config names under [fold] policy_files",
        brief(.0)
    )]
    Unknown(String),
    /// The text says in which line and field.
    #[error("{0}")]
    Invalid(String),
    /// Rows tell under which policy they were made by its name alone.
    #[error(
        "name: {0:?} is a built-in policy, and this one is another, which rows could not tell: give it a name of its own"
    )]
    Taken(String),
}

impl Policy {
    /// Reads a policy from TOML.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy = Self::parse_kept(text)?;
        policy.check().map_err(|(field, reason)| refusal(text, line_of(text, field), &reason))?;
        Ok(policy)
    }

    /// Reads one that was accepted when rows were made under it: it need not be within the limits of today.
    pub fn parse_kept(text: &str) -> Result<Self, PolicyError> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            refusal(text, before.map(|before| before.matches('\n').count()), &error.message().replace('\n', "; "))
        })
    }

    /// What no type says: else the field, with its table, and why it is refused.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.bytes().all(is_letter) {
            return Err(("name", format!("\"{}\" is not 1 to 64 of a-z, 0-9, _ and -", brief(&self.name))));
        }
        let ServiceTerms { length_ms, anchor, max_length_ms, max_outbound } = self.service;
        let lengths = [
            ("service.length", Some(length_ms)),
            ("service.max_length", max_length_ms),
            ("paid.length", self.paid.as_ref().map(|paid| paid.length_ms)),
        ];
        for (field, ms) in lengths {
            if let Some(ms) = ms.filter(|ms| *ms > MAX_LENGTH_MS) {
                return Err((field, too_long(&duration(ms))));
            }
        }
        match (anchor, max_length_ms) {
            (Anchor::First, Some(_)) => {
                return Err((
                    "service.max_length",
                    "only a session with anchor \"last\" grows, so only it has one".into(),
                ));
            }
            (Anchor::Last, None) => {
                return Err(("service.anchor", "a session that grows needs a max_length, \"31d\" at the most".into()));
            }
            (Anchor::Last, Some(max_ms)) if max_ms < length_ms => {
                return Err(("service.max_length", "it is shorter than length".into()));
            }
            _ => {}
        }
        match max_outbound {
            Some(0) => {
                return Err(("service.max_outbound", "a session has at least 1; leave it out for no limit".into()));
            }
            Some(many) if many > MAX_OUTBOUND => {
                return Err(("service.max_outbound", too_many(many.into(), MAX_OUTBOUND.into())));
            }
            _ => {}
        }
        let free = self.free_out_of_session_per_month;
        if free > MAX_FREE {
            return Err(("free_out_of_session_per_month", too_many(free, MAX_FREE)));
        }
        let refuse = |reason: &str| ("monthly_fee_eur", format!("{:?}: {reason}", self.monthly_fee_eur));
        match Money::parse(&self.monthly_fee_eur).map_err(refuse)? {
            fee if fee.micros() > MAX_FEE_MICROS => Err(refuse("it is more than 1000000, the most")),
            _ => Ok(()),
        }
    }

    /// Its name, and what stands for all that the fold goes by.
    fn outline(&self) -> String {
        let Policy { name, service, paid, charged_on, .. } = self;
        // Writing to memory fails only when memory runs out, which aborts by itself.
        let bytes = borsh::to_vec(&(service, paid, charged_on)).unwrap_or_default();
        format!("{name} {}", digest(&bytes))
    }

    /// Reads a policy that is used beside the built-in ones: one of their names is its name only where it is that policy.
    pub fn parse_own(text: &str) -> Result<Self, PolicyError> {
        let policy = Self::parse(text)?;
        match Self::named(&policy.name) {
            Ok(built_in) if *built_in != policy => Err(PolicyError::Taken(policy.name.into())),
            _ => Ok(policy),
        }
    }

    /// The built-in policies.
    pub fn built_in() -> Result<Vec<Arc<Self>>, PolicyError> {
        BUILT_IN.into_iter().map(|text| Self::parse(text).map(Arc::new)).collect()
    }

    /// The built-in policy of that name.
    pub fn named(name: &str) -> Result<Arc<Self>, PolicyError> {
        for text in BUILT_IN {
            let policy = Self::parse(text)?;
            if policy.name == name {
                return Ok(Arc::new(policy));
            }
        }
        Err(PolicyError::Unknown(name.to_owned()))
    }
}

/// The policies of an account over time: each holds from its start to the next one's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyChain {
    first: Arc<Policy>,
    /// `(start in ms, policy)`, ascending.
    later: Vec<(i64, Arc<Policy>)>,
}

impl PolicyChain {
    /// One policy for all time.
    pub fn always(policy: Arc<Policy>) -> Self {
        Self { first: policy, later: Vec::new() }
    }

    /// A chain: `first`, then each of `later` (start in ms since the epoch, UTC) from its start on.
    pub fn new(first: Arc<Policy>, mut later: Vec<(i64, Arc<Policy>)>) -> Self {
        later.sort_by_key(|(start_ms, _)| *start_ms);
        Self { first, later }
    }

    /// What holds from when on.
    pub fn outline(&self) -> Outline {
        let later = self.later.iter().map(|(start_ms, policy)| (*start_ms, policy.outline()));
        std::iter::once((i64::MIN, self.first.outline())).chain(later).collect()
    }

    /// All of them, from the first to the last.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.starts().map(|(_, policy)| policy)
    }

    /// All of them, each with its start in ms, which the first has none of.
    pub fn starts(&self) -> impl Iterator<Item = (Option<i64>, &Arc<Policy>)> {
        let later = self.later.iter().map(|(start_ms, policy)| (Some(*start_ms), policy));
        std::iter::once((None, &self.first)).chain(later)
    }

    /// The policy in force at a time.
    pub fn at(&self, t_ms: i64) -> &Policy {
        match self.later.partition_point(|(start_ms, _)| *start_ms <= t_ms) {
            0 => &self.first,
            n => &self.later[n - 1].1,
        }
    }
}

/// The line, counted from 0, in which a field is set, as `paid.length`; `None` where a table is written on one line.
fn line_of(text: &str, field: &str) -> Option<usize> {
    let (table, field) = field.split_once('.').unwrap_or(("", field));
    let mut within = "";
    text.lines().position(|line| match line.trim().strip_prefix('[') {
        Some(header) => {
            within = header.split(']').next().unwrap_or_default().trim();
            false
        }
        None => within == table && line.split_once('=').is_some_and(|(key, _)| key.trim() == field),
    })
}

/// An error in a line of a policy's text, counted from 0, and in the field that is set there.
fn refusal(text: &str, line: Option<usize>, reason: &str) -> PolicyError {
    let Some(line) = line else { return PolicyError::Invalid(reason.to_owned()) };
    let field = text.lines().nth(line).and_then(|text| text.split_once('=')).map(|(key, _)| key.trim());
    // What is missing stands in no line.
    let field = field.filter(|_| !reason.starts_with("missing"));
    let field = field.map_or(String::new(), |field| format!(", {field}"));
    PolicyError::Invalid(format!("line {}{field}: {reason}", line + 1))
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CompactString, D::Error> {
    String::deserialize(deserializer).map(CompactString::from)
}

fn too_many(many: u64, most: u64) -> String {
    format!("{many} is more than {most}, the most")
}

fn duration_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    parse_duration_ms(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn optional_duration_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    duration_ms(deserializer).map(Some)
}

fn parse_duration_ms(text: &str) -> Result<i64, String> {
    let none = || format!("{text:?} is no duration such as \"24h\" or \"7d\"");
    let split = text.find(|c: char| !c.is_ascii_digit()).filter(|split| *split > 0).ok_or_else(none)?;
    let (_, unit_ms) = UNITS.into_iter().find(|(unit, _)| *unit == &text[split..]).ok_or_else(none)?;
    // A number that has no room is too great, whatever its unit.
    match text[..split].parse::<i64>().ok().and_then(|number| number.checked_mul(unit_ms)) {
        Some(0) => Err(none()),
        ms => ms.ok_or_else(|| too_long(text)),
    }
}

/// In the greatest unit that it is a number of.
fn duration(ms: i64) -> String {
    let unit = UNITS.into_iter().find(|(_, unit_ms)| ms % unit_ms == 0);
    unit.map_or_else(|| format!("{ms}ms"), |(unit, unit_ms)| format!("{}{unit}", ms / unit_ms))
}

fn too_long(text: &str) -> String {
    format!("{text:?} is longer than \"31d\", the most")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_policies_are_those_of_the_contract() {
        let hour = 3_600_000;
        for (name, anchor, max_length_ms, max_outbound, paid, free, charged_on, fee) in [
            ("counterbat", Anchor::First, None, None, Some(24 * hour), 0, ChargedOn::Delivered, "0"),
            ("viber-2022", Anchor::First, None, None, None, 10_000, ChargedOn::Sent, "0"),
            ("viber-2024", Anchor::First, None, None, None, 0, ChargedOn::Delivered, "100"),
            ("gupshup", Anchor::Last, Some(168 * hour), None, None, 0, ChargedOn::Sent, "0"),
            ("vbm", Anchor::First, None, Some(60), None, 0, ChargedOn::Sent, "0"),
        ] {
            let policy = Policy::named(name).unwrap();
            assert_eq!(policy.service, ServiceTerms { length_ms: 24 * hour, anchor, max_length_ms, max_outbound });
            assert_eq!(policy.paid.as_ref().map(|paid| paid.length_ms), paid, "{name}");
            assert_eq!(policy.free_out_of_session_per_month, free, "{name}");
            assert_eq!((policy.charged_on, policy.monthly_fee_eur.as_str()), (charged_on, fee), "{name}");
        }
        assert_eq!(Policy::named("none"), Err(PolicyError::Unknown("none".into())));
    }

    #[test]
    fn a_chain_changes_at_its_dates() {
        let (old, new) = (Policy::named("viber-2022").unwrap(), Policy::named("counterbat").unwrap());
        let chain = PolicyChain::new(old, vec![(100, new)]);
        assert_eq!(chain.at(99).name, "viber-2022");
        assert_eq!(chain.at(100).name, "counterbat");
    }

    #[test]
    fn unknown_members_and_bad_durations_are_refused() {
        let good = include_str!("policies/vbm.toml");
        for (text, wanted) in [
            (format!("{good}\nmax_inbound = 3"), "line 12, max_inbound: unknown field"),
            (good.replace("24h", "24 hours"), "line 8, length: \"24 hours\" is no duration"),
            (good.replace("= 60", "= \"60\""), "line 10, max_outbound: invalid type"),
            (good.replace("= 60", "= 0"), "line 10, max_outbound: a session has at least 1"),
            (good.replace("\"sent\"", "\"seen\""), "line 4, charged_on: unknown variant `seen`"),
            (good.replace("\"vbm\"", "\"Our VBM\""), "line 2, name: \"Our VBM\" is not 1 to 64"),
            (good.replace("\"0\"", "\"-1\""), "line 5, monthly_fee_eur: \"-1\": it is negative"),
            (good.replace("max_outbound = 60", "max_length = \"7d\""), "line 10, max_length: only a session"),
            (good.replace("first", "last"), "line 9, anchor: a session that grows needs a max_length"),
            (
                good.replace("max_outbound = 60", "max_length = \"1h\"").replace("first", "last"),
                "line 10, max_length: it is shorter",
            ),
        ] {
            let error = Policy::parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{text}: {error}");
        }
        assert!(Policy::parse("name = \"x\"").unwrap_err().to_string().contains("service"));
    }

    #[test]
    fn what_no_tariff_has_is_refused_with_the_most_there_is() {
        let good = include_str!("policies/counterbat.toml").replace("\"first\"", "\"last\"\nmax_length = \"31d\"");
        let paid = |length: &str| good.replace("[paid]\nlength = \"24h\"", &format!("[paid]\nlength = {length:?}"));
        for (text, wanted) in [
            (good.replacen("24h", "32d", 1), "line 8, length: \"32d\" is longer than \"31d\", the most"),
            (paid("745h"), "line 13, length: \"745h\" is longer than"),
            (paid("99999999999d"), "line 13, length: \"99999999999d\" is longer than"),
            (paid("99999999999999999999d"), "line 13, length: \"99999999999999999999d\" is longer than"),
            (good.replace("31d", "32d"), "line 10, max_length: \"32d\" is longer than"),
            (
                good.replace("\"last\"", "\"last\"\nmax_outbound = 1000001"),
                "line 10, max_outbound: 1000001 is more than 1000000",
            ),
            (good.replace("\"last\"", "\"last\"\nmax_outbound = 5000000000"), "line 10, max_outbound: invalid value"),
            (
                good.replace("month = 0", "month = 1000000001"),
                "line 3, free_out_of_session_per_month: 1000000001 is more than 1000000000",
            ),
            (
                good.replace("\"0\"", "\"1000000.01\""),
                "line 5, monthly_fee_eur: \"1000000.01\": it is more than 1000000",
            ),
        ] {
            let error = Policy::parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{text}: {error}");
        }
        assert!(Policy::parse(&paid("31d").replace("\"0\"", "\"1000000\"")).is_ok());
        let kept = Policy::parse_kept(&paid("90d")).unwrap();
        assert_eq!(kept.paid.unwrap().length_ms, 90 * 86_400_000, "what was accepted once is read");
    }

    #[test]
    fn a_built_in_name_is_that_policy() {
        let vbm = include_str!("policies/vbm.toml");
        assert_eq!(Policy::parse_own(vbm).map(Arc::new), Policy::named("vbm"));
        assert_eq!(Policy::parse_own(&vbm.replace("24h", "12h")), Err(PolicyError::Taken("vbm".into())));
        assert!(Policy::parse_own(&vbm.replace("24h", "12h").replace("\"vbm\"", "\"ours\"")).is_ok());
    }

    #[test]
    fn the_outline_is_another_where_the_fold_is() {
        let vbm = include_str!("policies/vbm.toml");
        let outline = |text: &str| PolicyChain::always(Arc::new(Policy::parse(text).unwrap())).outline();
        assert_eq!(outline(vbm), outline(&vbm.replace("_eur = \"0\"", "_eur = \"9\"")));
        for (old, new) in [("60", "61"), ("24h", "23h"), ("sent", "delivered"), ("vbm", "other")] {
            assert_ne!(outline(vbm), outline(&vbm.replace(old, new)), "{old}");
        }
        let later = PolicyChain::new(Policy::named("vbm").unwrap(), vec![(100, Policy::named("gupshup").unwrap())]);
        assert_eq!((later.outline()[0].clone(), later.outline()[1].0), (outline(vbm)[0].clone(), 100));
    }
}
