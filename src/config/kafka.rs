//! `[kafka]`: the brokers and the topics, where `[log] kind = "kafka"`.

use super::load::ConfigError;
use super::{Secret, TokenSource};
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What the log's promises rest on, so nobody else may set it.
const OURS: [&str; 15] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "isolation.level",
    "partition.assignment.strategy",
    "partitioner",
    "request.required.acks",
    "statistics.interval.ms",
    "transactional.id",
];

/// `[kafka]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// `host:port`, several with commas between.
    #[serde(deserialize_with = "brokers")]
    pub brokers: String,
    #[serde(deserialize_with = "topic")]
    pub topic: String,
    #[serde(deserialize_with = "topic")]
    pub state_topic: String,
    #[serde(deserialize_with = "topic")]
    pub registry_topic: String,
    #[serde(deserialize_with = "topic")]
    pub group: String,
    pub create_topics: bool,
    /// Of topics that are made; `None`: 3, or as many as there are brokers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<u16>,
    pub properties: Properties,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".into(),
            topic: "counterbat.events".into(),
            state_topic: "counterbat.state".into(),
            registry_topic: "counterbat.registry".into(),
            group: "counterbat".into(),
            create_topics: true,
            replication: None,
            properties: Properties::default(),
        }
    }
}

/// `[kafka.properties]`: settings of librdkafka by their names there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties(BTreeMap<String, TokenSource>);

impl Properties {
    /// The settings with their values, read from where they are.
    pub fn read(&self) -> Result<BTreeMap<String, Secret>, ConfigError> {
        let read = |(name, source): (&String, &TokenSource)| {
            let refuse = |reason| ConfigError::Property { name: name.clone(), reason };
            Ok((name.clone(), source.read().map_err(refuse)?))
        };
        self.0.iter().map(read).collect()
    }

    /// Whether a value is to be found in this environment variable.
    pub(super) fn is_read_from(&self, variable: &str) -> bool {
        self.0.values().any(|source| matches!(source, TokenSource::Env(own) if own == variable))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Number(i64),
    Flag(bool),
    From(From),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum From {
    Env(String),
    File(PathBuf),
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written: BTreeMap<String, toml::Value> = BTreeMap::deserialize(deserializer)?;
        let mut properties = BTreeMap::new();
        for (name, value) in written {
            if OURS.contains(&name.as_str()) {
                return Err(D::Error::custom(format!("`{name}` is set by counterbat itself: leave it out")));
            }
            // What was written may be a password, so it is not quoted.
            let value = value.try_into().map_err(|_| {
                D::Error::custom(format!(
                    "`{name}` is neither text, number, true, false, {{ env = … }} nor {{ file = … }}"
                ))
            })?;
            let source = match value {
                Written::Text(text) => TokenSource::Inline(Secret::new(text)),
                Written::Number(number) => TokenSource::Inline(Secret::new(number.to_string())),
                Written::Flag(flag) => TokenSource::Inline(Secret::new(flag.to_string())),
                Written::From(From::Env(variable)) => TokenSource::Env(variable),
                Written::From(From::File(path)) => TokenSource::File(path),
            };
            properties.insert(name, source);
        }
        Ok(Self(properties))
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, source) in &self.0 {
            match source {
                TokenSource::Inline(secret) => map.serialize_entry(name, secret)?,
                TokenSource::Env(variable) => map.serialize_entry(name, &BTreeMap::from([("env", variable)]))?,
                TokenSource::File(path) => map.serialize_entry(name, &BTreeMap::from([("file", path)]))?,
            }
        }
        map.end()
    }
}

fn brokers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_address = |broker: &str| {
        broker.trim().rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if text.split(',').all(is_address) {
        Ok(text)
    } else {
        Err(D::Error::custom(format!("`{text}` is no list of host:port with commas between")))
    }
}

/// A name that Kafka takes for a topic or a group.
fn topic<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let is_lawful = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=249).contains(&name.len()) && name.bytes().all(is_lawful) {
        Ok(name)
    } else {
        Err(D::Error::custom(format!("`{name}` is no name of the form [a-zA-Z0-9._-]{{1,249}}")))
    }
}
