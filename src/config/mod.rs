//! Settings: one TOML file, the environment over it, read strictly.
//!
//! [`DEFAULT_TOML`] is the manual: every setting with its default and what it is for. An unknown key, a bad value and an
//! unknown `COUNTERBAT_` variable are refused with their place, so a typing error never runs as a default.

mod account;
mod cluster;
mod console;
mod duration;
mod gateway;
mod kafka;
mod lake;
mod load;
mod postgres;
mod roles;
mod secret;
mod tariffs;

pub use account::{Account, PolicyFrom, Secret, TokenSource};
pub use cluster::Cluster;
pub use console::{Console, ConsoleToken, Scram, TokenRole};
pub use duration::{Size, Span};
pub use gateway::{Gateway, Tls};
pub use kafka::{Kafka, Properties};
pub use lake::{Lake, S3};
pub use load::{ConfigError, DEFAULT_FILE};
pub use postgres::Postgres;
pub use roles::{Role, Roles};
pub use tariffs::Tariffs;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;
use url::Url;

/// Every setting with its default, commented; what `counterbat config --default` prints.
pub const DEFAULT_TOML: &str = include_str!("default.toml");

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub data_dir: PathBuf,
    /// Where Viber reaches the gateway; by default at its own address.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_http_url")]
    pub public_url: Option<Url>,
    pub roles: Roles,
    #[serde(deserialize_with = "secret::in_one_place")]
    pub gateway: Gateway,
    pub console: Console,
    pub postgres: Postgres,
    pub upstream: Upstream,
    pub relay: Relay,
    pub log: Log,
    pub kafka: Kafka,
    #[serde(deserialize_with = "secret::in_one_place")]
    pub cluster: Cluster,
    #[serde(deserialize_with = "secret::in_one_place")]
    pub lake: Lake,
    pub fold: Fold,
    pub sql: Sql,
    pub metrics: Metrics,
    #[serde(deserialize_with = "account::all")]
    pub accounts: Vec<Account>,
    /// What is in the files that `[fold]` and `[[accounts]]` name.
    #[serde(skip)]
    pub tariffs: Tariffs,
}

/// `[upstream]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    #[serde(deserialize_with = "http_url")]
    pub url: Url,
    #[serde(deserialize_with = "positive")]
    pub timeout: Span,
}

/// `[relay]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relay {
    #[serde(deserialize_with = "positive")]
    pub timeout: Span,
    pub allow_private: bool,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub kind: LogKind,
    #[serde(deserialize_with = "partitions")]
    pub partitions: u32,
    /// 0 is off.
    pub tick_every: Span,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_positive")]
    pub retention_age: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_size: Option<Size>,
    /// Whether the start of a send is recorded before it is relayed.
    pub intent: bool,
    /// What waits on this machine at most while the brokers are away.
    pub spill_size: Size,
    pub on_unrecordable: Unrecordable,
}

/// What becomes of calls that cannot be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unrecordable {
    Refuse,
    Pass,
}

/// What keeps the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    Embedded,
    Kafka,
}

/// `[fold]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fold {
    /// By name, or the file it is in.
    pub policy: String,
    /// Files of policies that may be named.
    pub policy_files: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prices: Option<PathBuf>,
    #[serde(deserialize_with = "within_a_year")]
    pub allowed_lateness: Span,
    #[serde(deserialize_with = "within_a_year")]
    pub delivery_window: Span,
    #[serde(deserialize_with = "memory")]
    pub memory: Size,
}

/// `[sql]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sql {
    pub max_rows: u64,
    #[serde(deserialize_with = "positive")]
    pub timeout: Span,
    #[serde(deserialize_with = "memory")]
    pub memory: Size,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    pub accounts: AccountSeries,
}

/// Which accounts have series of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountSeries {
    All,
    First(usize),
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "counterbat-data".into(),
            public_url: None,
            roles: Roles::default(),
            gateway: Gateway::default(),
            console: Console::default(),
            postgres: Postgres::default(),
            upstream: Upstream::default(),
            relay: Relay::default(),
            log: Log::default(),
            kafka: Kafka::default(),
            cluster: Cluster::default(),
            lake: Lake::default(),
            fold: Fold::default(),
            sql: Sql::default(),
            metrics: Metrics::default(),
            accounts: Vec::new(),
            tariffs: Tariffs::default(),
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        // A literal that is a URL.
        let url = Url::parse("https://chatapi.viber.com").expect("a URL");
        Self { url, timeout: Span::seconds(30) }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self { timeout: Span::seconds(4), allow_private: false }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            kind: LogKind::Embedded,
            partitions: 4,
            tick_every: Span::seconds(10),
            retention_age: None,
            retention_size: None,
            intent: true,
            spill_size: Size::mib(1024),
            on_unrecordable: Unrecordable::Refuse,
        }
    }
}

impl Default for Fold {
    fn default() -> Self {
        Self {
            policy: "counterbat".into(),
            policy_files: Vec::new(),
            prices: None,
            allowed_lateness: Span::days(3),
            delivery_window: Span::days(14),
            memory: Size::mib(512),
        }
    }
}

impl Default for Sql {
    fn default() -> Self {
        Self { max_rows: 1_000_000, timeout: Span::seconds(60), memory: Size::mib(512) }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { accounts: AccountSeries::All }
    }
}

impl Config {
    /// Where the tables lie: `[lake] url`, or `lake` in the data directory.
    pub fn lake_url(&self) -> String {
        self.lake.url.clone().unwrap_or_else(|| self.data_dir.join("lake").to_string_lossy().into_owned())
    }
}

impl<'de> Deserialize<'de> for AccountSeries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(usize),
            Word(String),
        }
        const WANTED: &str = "expected \"all\", \"none\" or a number of accounts";
        match Written::deserialize(deserializer).map_err(|_| D::Error::custom(WANTED))? {
            Written::Number(n) => Ok(Self::First(n)),
            Written::Word(word) if word == "all" => Ok(Self::All),
            Written::Word(word) if word == "none" => Ok(Self::None),
            Written::Word(word) => Err(D::Error::custom(format!("`{word}`: {WANTED}"))),
        }
    }
}

impl Serialize for AccountSeries {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::None => serializer.serialize_str("none"),
            Self::First(n) => serializer.serialize_u64(*n as u64),
        }
    }
}

fn http_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    let url = Url::parse(&text).map_err(|error| D::Error::custom(format!("`{text}` is no URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
        return Err(D::Error::custom(format!("`{text}` is no http or https URL without a query")));
    }
    Ok(url)
}

fn some_http_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    http_url(deserializer).map(Some)
}

fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
    let span = Span::deserialize(deserializer)?;
    if span.0.is_zero() { Err(D::Error::custom("this duration must be longer than 0")) } else { Ok(span) }
}

fn within_a_year<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
    let (span, most) = (Span::deserialize(deserializer)?, Span::days(366));
    if span > most { Err(D::Error::custom(format!("{span} is longer than {most}, the most"))) } else { Ok(span) }
}

fn some_positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Span>, D::Error> {
    positive(deserializer).map(Some)
}

fn some_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Err(D::Error::custom("this must not be empty")) } else { Ok(Some(text)) }
}

fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
    let size = Size::deserialize(deserializer)?;
    if size < Size::mib(16) { Err(D::Error::custom(format!("{size} is too little: at least 16MiB"))) } else { Ok(size) }
}

fn partitions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        n @ 1..=1024 => Ok(n),
        n => Err(D::Error::custom(format!("{n} partitions: expected 1 to 1024"))),
    }
}
