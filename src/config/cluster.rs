//! `[cluster]`: how the processes that share a log reach each other.

use super::load::ConfigError;
use super::secret::{Given, HasSecret, some_secret};
use super::{Secret, some_http_url};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use url::Url;

/// Shorter secrets might be guessed.
const SHORTEST: usize = 32;

/// `[cluster]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// Where others reach the console; `None`: where it listens.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_http_url")]
    pub advertise: Option<Url>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_secret")]
    pub secret: Option<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
}

impl Cluster {
    /// Where the others reach a console that listens here: `http://host:port`, without a slash at its end.
    pub fn address(&self, console: SocketAddr) -> Result<String, ConfigError> {
        match &self.advertise {
            Some(url) => Ok(url.as_str().trim_end_matches('/').to_owned()),
            None if console.ip().is_unspecified() => Err(ConfigError::Cluster(format!(
                "the console listens on {console}, which is no address that the other processes could ask at: set \
                 advertise to one, such as \"http://10.0.0.5:{}\"",
                console.port()
            ))),
            None => Ok(format!("http://{console}")),
        }
    }

    /// Reads the secret that the processes know each other by; `None` where none is set.
    pub fn read_secret(&self) -> Result<Option<Secret>, ConfigError> {
        let refuse = |reason: String| ConfigError::Cluster(format!("the secret: {reason}"));
        let Some(secret) = self.given().read().map_err(refuse)? else { return Ok(None) };
        match secret.reveal().chars().count() {
            SHORTEST.. => Ok(Some(secret)),
            short => Err(refuse(format!(
                "it has {short} characters, and at least {SHORTEST} are needed: make one by `openssl rand -hex 32`"
            ))),
        }
    }

    pub(super) fn has_secret(&self) -> bool {
        self.given().is_set()
    }
}

impl HasSecret for Cluster {
    fn given(&self) -> Given<'_> {
        Given { name: "secret", whence: "", text: &self.secret, env: &self.secret_env, file: &self.secret_file }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long() {
        let read = |secret: Option<&str>| {
            let cluster = Cluster { secret: secret.map(Secret::new), ..Cluster::default() };
            cluster.read_secret().map(|secret| secret.map(|secret| secret.reveal().to_owned()))
        };
        assert_eq!(read(None).unwrap(), None);
        let long = "0123456789abcdef0123456789abcdef";
        assert_eq!(read(Some(&format!(" {long}\n"))).unwrap().as_deref(), Some(long));
        let error = read(Some(&long[1..])).unwrap_err().to_string();
        assert!(error.contains("31 characters") && error.contains("openssl") && !error.contains(&long[1..]), "{error}");
    }

    #[test]
    fn others_reach_it_where_it_listens_or_where_it_says() {
        let address = |advertise: Option<&str>, console: &str| {
            let advertise = advertise.map(|url| Url::parse(url).unwrap());
            Cluster { advertise, ..Cluster::default() }.address(console.parse().unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(address(None, "127.0.0.1:8081").unwrap(), "http://127.0.0.1:8081");
        assert_eq!(address(None, "[::1]:81").unwrap(), "http://[::1]:81");
        assert_eq!(address(Some("http://node-1:8081/"), "0.0.0.0:8081").unwrap(), "http://node-1:8081");
        for all in ["0.0.0.0:8081", "[::]:8081"] {
            assert!(address(None, all).unwrap_err().contains("set advertise"), "{all}");
        }
    }
}
