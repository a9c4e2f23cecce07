//! `[postgres]`: the third listener, for clients of PostgreSQL.

use super::Console;
use super::load::ConfigError;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// `[postgres]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Postgres {
    /// `None` is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
}

impl Postgres {
    /// Refuses to listen for other machines where everybody could ask, and half a pair of files.
    pub(super) fn check(&self, console: &Console) -> Result<(), ConfigError> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(ConfigError::HalfTls);
        }
        match self.listen {
            Some(listen) if !listen.ip().is_loopback() && console.tokens.is_empty() => {
                Err(ConfigError::OpenPostgres(listen))
            }
            _ => Ok(()),
        }
    }
}
