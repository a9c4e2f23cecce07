//! The server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), without channel binding.

use crate::config::Scram;
use crate::console::tokens::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::digest::CtOutput;
use sha2::{Digest, Sha256};

/// The mechanism's name.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// Why a client is not let in.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not keep to the protocol.
    Malformed,
    /// It does not know the password.
    Wrong,
}

/// A client that has been asked for its proof.
#[derive(Debug, Clone)]
pub struct Challenge {
    scram: Scram,
    /// What it said of channel binding; it says so again under its proof.
    header: String,
    client_first: String,
    server_first: String,
    nonce: String,
}

impl Challenge {
    /// What is asked of a client that sent `first`. `nonce` is random, of printable characters without a comma.
    pub fn new(scram: Scram, first: &[u8], nonce: &str) -> Result<Self, Refused> {
        let first = std::str::from_utf8(first).map_err(|_| Refused::Malformed)?;
        // `n` or `y`, and nobody in whose name it speaks: binding to a channel was not offered.
        let (flag, rest) = first.split_once(",,").ok_or(Refused::Malformed)?;
        if !matches!(flag, "n" | "y") {
            return Err(Refused::Malformed);
        }
        let theirs = attribute(rest, "r=").filter(|nonce| !nonce.is_empty()).ok_or(Refused::Malformed)?;
        let nonce = format!("{theirs}{nonce}");
        let server_first = format!("r={nonce},s={},i={}", BASE64.encode(&scram.salt), scram.iterations);
        Ok(Self { scram, header: format!("{flag},,"), client_first: rest.to_owned(), server_first, nonce })
    }

    /// The question.
    pub fn question(&self) -> &str {
        &self.server_first
    }

    /// The server's own proof, for a client whose answer proves that it knows the password.
    pub fn check(&self, answer: &[u8]) -> Result<String, Refused> {
        let answer = std::str::from_utf8(answer).map_err(|_| Refused::Malformed)?;
        let (said, proof) = answer.rsplit_once(",p=").ok_or(Refused::Malformed)?;
        let proof: [u8; 32] =
            BASE64.decode(proof).ok().and_then(|proof| proof.try_into().ok()).ok_or(Refused::Malformed)?;
        let bound = attribute(said, "c=").and_then(|bound| BASE64.decode(bound).ok());
        if bound.as_deref() != Some(self.header.as_bytes()) || attribute(said, "r=") != Some(&self.nonce) {
            return Err(Refused::Malformed);
        }
        let all = format!("{},{},{said}", self.client_first, self.server_first);
        let signature = hmac(&self.scram.stored_key, &[all.as_bytes()]);
        let key: Vec<u8> = proof.iter().zip(signature).map(|(proof, signature)| proof ^ signature).collect();
        // Compared in constant time.
        let (theirs, ours) = (CtOutput::<Sha256>::new(Sha256::digest(key)), self.scram.stored_key);
        if theirs != CtOutput::new(ours.into()) {
            return Err(Refused::Wrong);
        }
        Ok(format!("v={}", BASE64.encode(hmac(&self.scram.server_key, &[all.as_bytes()]))))
    }
}

fn attribute<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    message.split(',').find_map(|part| part.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3.
    fn example() -> Challenge {
        let bytes = |text: &str| BASE64.decode(text).unwrap();
        let scram = Scram {
            iterations: 4096,
            salt: bytes("W22ZaJ0SNY7soEsUEjb6gQ=="),
            stored_key: bytes("WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=").try_into().unwrap(),
            server_key: bytes("wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=").try_into().unwrap(),
        };
        Challenge::new(scram, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO", "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0").unwrap()
    }

    #[test]
    fn the_example_of_the_standard_is_let_in() {
        let challenge = example();
        let question = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(challenge.question(), question);
        let answer = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let known = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(challenge.check(answer.as_bytes()), Ok(known.to_owned()));
    }

    #[test]
    fn others_are_not() {
        let challenge = example();
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let wrong = format!("c=biws,r={nonce},p={}", BASE64.encode([7; 32]));
        assert_eq!(challenge.check(wrong.as_bytes()), Err(Refused::Wrong));
        let good = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        for malformed in [
            String::new(),
            format!("c=biws,r={nonce}"),
            format!("c=biws,r={nonce},p=short"),
            format!("c=eSws,r={nonce},p={good}"),
            format!("c=biws,r=rOprNGfwEbeRWgbNEkqO,p={good}"),
        ] {
            assert_eq!(challenge.check(malformed.as_bytes()), Err(Refused::Malformed), "{malformed}");
        }
        for first in ["", "n,,", "p=tls-unique,,n=user,r=abc", "n,a=other,n=user,r=abc", "n,,n=user,r="] {
            let refused = Challenge::new(challenge.scram.clone(), first.as_bytes(), "x").err();
            assert_eq!(refused, Some(Refused::Malformed), "{first}");
        }
    }
}
