//! The processes that share a log, and one picture of the tables from all of them.
//!
//! A partition's newest rows are known to its projector alone, which lays them over the tables as whoever asks has read
//! them ([`crate::projector::Told`]). So a query reads a version of each table, asks every owner what is to be laid over
//! these very versions, and reads them anew where one says that they are too old. Who cannot be asked is left out, and
//! the answer says so ([`crate::query::Freshness`]).

mod client;
mod decide;
mod following;
mod gather;
mod routes;
mod standing;
mod wire;

pub use client::{Client, ClientError};
pub use following::follow;
pub use gather::{Gathering, Peers, keep_fresh};
pub use routes::{Answering, router};
pub use standing::ClusterStandings;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::time::Duration;

/// A projector that has not answered by then is left out of a query.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What the nodes know each other by.
#[derive(Clone)]
pub struct ClusterSecret(String);

impl ClusterSecret {
    /// A secret as it is configured.
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    fn reveal(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not tell how much of it is right.
    fn is(&self, given: &str) -> bool {
        // Any key will do; HMAC takes those of any length.
        let Ok(mac) = Hmac::<Sha256>::new_from_slice(b"counterbat") else { return false };
        let digest = mac.clone().chain_update(&self.0).finalize().into_bytes();
        mac.chain_update(given).verify_slice(&digest).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_itself_is_right() {
        let secret = ClusterSecret::new("correct horse battery staple".to_owned());
        assert!(secret.is("correct horse battery staple"));
        for wrong in ["", "correct horse battery stapl", "correct horse battery staple ", "counterbat"] {
            assert!(!secret.is(wrong), "{wrong:?}");
        }
    }
}
