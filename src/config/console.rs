//! `[console]`: the second listener, and who may ask it.

use super::Span;
use super::load::ConfigError;
use crate::event::check_account_name;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
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
    /// What a client of PostgreSQL is known by; without it the token is not taken there.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "scram",
        serialize_with = "scram_text"
    )]
    pub scram: Option<Scram>,
    #[serde(default)]
    pub role: TokenRole,
    /// Only rows of these accounts are shown; none: all rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<String>,
    /// Whether `events.data` is shown: what users and bots have written.
    #[serde(default)]
    pub data: bool,
    /// Rows of an answer, where less than `[sql] max_rows`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<u64>,
    /// Working time of a query, where less than `[sql] timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

/// What whoever has a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    /// Asks.
    #[default]
    Viewer,
    /// Does all that the console offers, of all accounts.
    Operator,
}

/// What is known of a token that is a password of SCRAM-SHA-256 (RFC 5802): enough to tell who has it, not to be one.
#[derive(Clone, PartialEq, Eq)]
pub struct Scram {
    pub iterations: u32,
    pub salt: Vec<u8>,
    pub stored_key: [u8; 32],
    pub server_key: [u8; 32],
}

impl Scram {
    /// Reads what [`fmt::Display`] writes: `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, as PostgreSQL has it.
    fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let bytes = |text: &str| BASE64.decode(text).ok();
        Some(Self {
            iterations: iterations.parse().ok().filter(|n| *n > 0)?,
            salt: bytes(salt).filter(|salt| !salt.is_empty())?,
            stored_key: bytes(stored)?.try_into().ok()?,
            server_key: bytes(server)?.try_into().ok()?,
        })
    }
}

impl fmt::Display for Scram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored, server] =
            [&self.salt[..], &self.stored_key[..], &self.server_key[..]].map(|bytes| BASE64.encode(bytes));
        write!(f, "SCRAM-SHA-256${}:{salt}${stored}:{server}", self.iterations)
    }
}

impl fmt::Debug for Scram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(verifier)")
    }
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
        if token.role == TokenRole::Operator && !token.accounts.is_empty() {
            return Err(D::Error::custom(format!(
                "tokens: `{}` is of an operator, who acts on all accounts: leave `accounts` out, or make it a viewer's",
                token.name
            )));
        }
        for account in &token.accounts {
            check_account_name(account).map_err(|error| D::Error::custom(format!("tokens: accounts: {error}")))?;
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

/// The error does not quote what was given, either.
fn scram<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Scram>, D::Error> {
    const WANTED: &str =
        "tokens: scram: expected the `SCRAM-SHA-256$…` that `counterbat token new NAME` prints, not the token itself";
    let text = String::deserialize(deserializer).map_err(|_| D::Error::custom(WANTED))?;
    Scram::parse(&text).map(Some).ok_or_else(|| D::Error::custom(WANTED))
}

fn scram_text<S: Serializer>(scram: &Option<Scram>, serializer: S) -> Result<S::Ok, S::Error> {
    match scram {
        Some(scram) => serializer.collect_str(scram),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_is_written_as_postgresql_writes_it() {
        let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        let scram = Scram::parse(text).unwrap();
        assert_eq!((scram.iterations, scram.salt.len()), (4096, 16));
        assert_eq!(scram.to_string(), text);
        assert_eq!(format!("{scram:?}"), "(verifier)");
        for bad in ["", "cbt_0123", "SCRAM-SHA-256$0:AAAA$AAAA:AAAA", "SCRAM-SHA-256$4096:$AAAA:AAAA", &text[1..]] {
            assert_eq!(Scram::parse(bad), None, "{bad}");
        }
    }
}
