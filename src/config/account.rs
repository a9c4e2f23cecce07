//! `[[accounts]]`: the bots, their tokens and their policies.

use super::load::ConfigError;
use crate::event::check_account_name;
use crate::event::time::parse_date_ms;
use crate::session::money::{Currency, Money};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use toml::Spanned;
use toml::value::{Datetime, Value};

/// Text that is never shown: not in logs, not by `{:?}`, not by `counterbat config`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The secret itself. Only for computing with it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

/// Where a secret is: an account's token, or a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    Inline(Secret),
    /// In this environment variable.
    Env(String),
    /// In this file, white space around it cut off.
    File(PathBuf),
}

/// A policy, and from when it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFrom {
    /// ms since the epoch, UTC; `None` for the account's first policy.
    pub valid_from_ms: Option<i64>,
    /// By name, or the file it is in.
    pub policy: String,
}

/// A bot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub token: TokenSource,
    /// In order of time; empty where `[fold] policy` holds.
    pub policies: Vec<PolicyFrom>,
    /// `None` where `[fold] prices` holds.
    pub prices: Option<PathBuf>,
    /// Requests per second, 0 for no limit; `None` where `[gateway] requests_per_second` holds.
    pub limit: Option<u32>,
    /// What it may cost in a UTC month, by currency, as a decimal number, for alerts: nothing is stopped.
    pub budget: BTreeMap<String, String>,
}

impl Account {
    /// Reads the token from where it is.
    pub fn read_token(&self) -> Result<Secret, ConfigError> {
        let refuse = |reason: String| ConfigError::Token { account: self.name.clone(), reason };
        let secret = self.token.read().map_err(refuse)?;
        let text = secret.reveal();
        // It travels in an HTTP header, so anything else could not be Viber's.
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(refuse("it is empty or has characters no token has".to_owned()));
        }
        Ok(secret)
    }
}

impl TokenSource {
    /// Reads the secret, white space around it cut off; else says why not.
    pub(super) fn read(&self) -> Result<Secret, String> {
        let text = match self {
            TokenSource::Inline(secret) => secret.reveal().to_owned(),
            TokenSource::Env(name) => {
                std::env::var(name).map_err(|_| format!("environment variable {name} is not set"))?
            }
            TokenSource::File(path) => {
                std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?
            }
        };
        Ok(Secret::new(text.trim()))
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_env: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policies: Option<Vec<WrittenPolicy>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prices: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    budget: BTreeMap<String, String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenPolicy {
    policy: String,
    /// A date, in quotes or as TOML has them.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "date")]
    valid_from: Option<String>,
}

impl Written {
    fn account(self) -> Result<Account, String> {
        let name = self.name;
        check_account_name(&name).map_err(|error| format!("name: {error}"))?;
        let token = match (self.token, self.token_env, self.token_file) {
            (Some(token), None, None) => TokenSource::Inline(Secret::new(token)),
            (None, Some(variable), None) => TokenSource::Env(variable),
            (None, None, Some(file)) => TokenSource::File(file),
            _ => return Err(format!("account `{name}` needs one of token, token_env and token_file")),
        };
        let policies = match (self.policy, self.policies) {
            (None, None) => Vec::new(),
            (Some(policy), None) => vec![PolicyFrom { valid_from_ms: None, policy }],
            (None, Some(chain)) if chain.is_empty() => {
                return Err(format!("account `{name}`: policies is empty: leave it out for [fold] policy"));
            }
            (None, Some(chain)) => chain.into_iter().map(WrittenPolicy::read).collect::<Result<_, _>>()?,
            (Some(_), Some(_)) => return Err(format!("account `{name}` has both policy and policies: give one")),
        };
        let starts: Vec<Option<i64>> = policies.iter().map(|from| from.valid_from_ms).collect();
        if starts.first().is_some_and(Option::is_some) || !starts.is_sorted_by(|a, b| a < b) {
            return Err(format!(
                "account `{name}`: the first of policies has no valid_from, each later one a later valid_from than the one before"
            ));
        }
        for (currency, budget) in &self.budget {
            if Currency::parse(currency).is_none() || Money::parse(budget).is_err() {
                return Err(format!(
                    "account `{name}`: budget: {currency} = {budget:?} is no amount of a currency, as in budget = {{ EUR = \"250\" }}"
                ));
            }
        }
        Ok(Account { name, token, policies, prices: self.prices, limit: self.limit, budget: self.budget })
    }
}

impl WrittenPolicy {
    fn read(self) -> Result<PolicyFrom, String> {
        let valid_from_ms = self.valid_from.as_deref().map(date_ms).transpose()?;
        Ok(PolicyFrom { valid_from_ms, policy: self.policy })
    }
}

fn date_ms(text: &str) -> Result<i64, String> {
    parse_date_ms(text).ok_or_else(|| format!("valid_from: `{text}` is no date such as \"2026-03-01\""))
}

fn date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(Some(text)),
        Value::Datetime(Datetime { date: Some(date), time: None, .. }) => Ok(Some(date.to_string())),
        _ => Err(D::Error::custom(
            "valid_from: expected a date such as \"2026-03-01\", from whose beginning in UTC on it holds",
        )),
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Written::deserialize(deserializer)?.account().map_err(D::Error::custom)
    }
}

impl Serialize for Account {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let policies: Vec<WrittenPolicy> = self
            .policies
            .iter()
            .map(|from| WrittenPolicy {
                policy: from.policy.clone(),
                valid_from: from
                    .valid_from_ms
                    .and_then(chrono::DateTime::from_timestamp_millis)
                    .map(|start| start.format("%Y-%m-%d").to_string()),
            })
            .collect();
        let mut written = Written {
            name: self.name.clone(),
            token: None,
            token_env: None,
            token_file: None,
            policy: None,
            policies: (!policies.is_empty()).then_some(policies),
            prices: self.prices.clone(),
            limit: self.limit,
            budget: self.budget.clone(),
        };
        match &self.token {
            TokenSource::Inline(_) => written.token = Some("(secret)".into()),
            TokenSource::Env(variable) => written.token_env = Some(variable.clone()),
            TokenSource::File(file) => written.token_file = Some(file.clone()),
        }
        written.serialize(serializer)
    }
}

/// Where in the text of the config the block of an account begins that is refused: a list is refused as a whole.
pub(super) fn refused_at(text: &str) -> Option<usize> {
    #[derive(Deserialize)]
    struct Blocks {
        accounts: Vec<Spanned<Value>>,
    }
    let blocks: Blocks = toml::from_str(text).ok()?;
    let mut names = BTreeSet::new();
    let mut is_refused = |block: &&Spanned<Value>| match Account::deserialize(block.get_ref().clone()) {
        Ok(account) => !names.insert(account.name),
        Err(_) => true,
    };
    blocks.accounts.iter().find(|block| is_refused(block)).map(|block| block.span().start)
}

/// Accounts whose names differ.
pub(super) fn all<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Account>, D::Error> {
    let accounts = Vec::<Account>::deserialize(deserializer)?;
    for (n, account) in accounts.iter().enumerate() {
        if accounts[..n].iter().any(|earlier| earlier.name == account.name) {
            return Err(D::Error::custom(format!("there are two accounts named `{}`", account.name)));
        }
    }
    Ok(accounts)
}
