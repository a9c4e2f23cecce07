//! `[gateway]`: the public listener, and what the accounts kept in the data directory need.

use super::load::ConfigError;
use super::{Secret, Span, TokenSource};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    pub listen: SocketAddr,
    /// How often Viber is asked where it sends the callbacks; 0 is off.
    pub watch_every: Span,
    /// Of accounts that set none; 0 is no limit.
    pub requests_per_second: u32,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_secret")]
    pub key: Option<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// `None` is plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// `[gateway] tls`: PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            watch_every: Span::seconds(600),
            requests_per_second: 0,
            key: None,
            key_env: None,
            key_file: None,
            tls: None,
        }
    }
}

impl Gateway {
    /// Reads the key that tokens are stored under from where it is; `None` where none is set.
    pub fn read_key(&self) -> Result<Option<Secret>, ConfigError> {
        self.key_source().map(|source| source.read().map_err(ConfigError::Key)).transpose()
    }

    fn key_source(&self) -> Option<TokenSource> {
        let inline = self.key.clone().map(TokenSource::Inline);
        inline.or(self.key_env.clone().map(TokenSource::Env)).or(self.key_file.clone().map(TokenSource::File))
    }
}

/// One whose key is in one place.
pub(super) fn one_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Gateway, D::Error> {
    let gateway = Gateway::deserialize(deserializer)?;
    let given = [gateway.key.is_some(), gateway.key_env.is_some(), gateway.key_file.is_some()];
    match given.into_iter().filter(|given| *given).count() {
        0 | 1 => Ok(gateway),
        _ => Err(D::Error::custom("give one of key, key_env and key_file")),
    }
}

pub(super) fn some_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    // What was written instead of a text may be the secret.
    let text = String::deserialize(deserializer).map_err(|_| D::Error::custom("expected a text in quotes"))?;
    Ok(Some(Secret::new(text)))
}
