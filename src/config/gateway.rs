//! `[gateway]`: the public listener, and what the accounts kept in the data directory need.

use super::load::ConfigError;
use super::secret::{Given, HasSecret, some_secret};
use super::{Secret, Span};
use serde::{Deserialize, Serialize};
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
        self.given().read().map_err(ConfigError::Key)
    }
}

impl HasSecret for Gateway {
    fn given(&self) -> Given<'_> {
        Given { name: "key", whence: "", text: &self.key, env: &self.key_env, file: &self.key_file }
    }
}
