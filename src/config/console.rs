//! `[console]`: the second listener, and who may ask it.

use super::load::ConfigError;
use crate::event::check_account_name;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::net::SocketAddr;

/// `[console]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Console {
    pub listen: SocketAddr,
    /// None: whoever is on this machine may ask.
    #[serde(deserialize_with = "all")]
    pub tokens: Vec<ConsoleToken>,
}

/// One who may ask: whoever has the token of this digest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleToken {
    #[serde(deserialize_with = "name")]
    pub name: String,
    #[serde(deserialize_with = "digest", serialize_with = "hex_digits")]
    pub sha256: [u8; 32],
}

impl Default for Console {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8081)), tokens: Vec::new() }
    }
}

impl Console {
    /// Refuses to listen for other machines where everybody could ask.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.listen.ip().is_loopback() || !self.tokens.is_empty() {
            return Ok(());
        }
        Err(ConfigError::OpenConsole(self.listen))
    }
}

/// Tokens whose names differ.
fn all<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ConsoleToken>, D::Error> {
    let tokens = Vec::<ConsoleToken>::deserialize(deserializer)?;
    for (n, token) in tokens.iter().enumerate() {
        if tokens[..n].iter().any(|earlier| earlier.name == token.name) {
            return Err(D::Error::custom(format!("tokens: there are two named `{}`", token.name)));
        }
    }
    Ok(tokens)
}

/// Of the form of an account's name, so that no token of ours can be one by mistake: they are longer.
fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    check_account_name(&name).map_err(|error| D::Error::custom(format!("tokens: name: {error}")))?;
    Ok(name)
}

/// The error does not quote what was given: it may be the token itself.
fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    const WANTED: &str = "tokens: sha256: expected the 64 hexadecimal digits that `counterbat token new NAME` prints, not the token itself";
    let text = String::deserialize(deserializer).map_err(|_| D::Error::custom(WANTED))?;
    let mut digest = [0; 32];
    hex::decode_to_slice(&text, &mut digest).map_err(|_| D::Error::custom(WANTED))?;
    Ok(digest)
}

fn hex_digits<S: Serializer>(digest: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(digest))
}
