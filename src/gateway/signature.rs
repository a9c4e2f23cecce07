//! Viber's signature of a callback: lower-case hex HMAC-SHA256 of the raw body under the account's token.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Verifies the signatures of one account. The key is prepared once.
#[derive(Clone)]
pub struct Verifier(Hmac<Sha256>);

impl Verifier {
    /// For callbacks signed with this token.
    pub fn new(token: &str) -> Self {
        // HMAC takes keys of any length.
        Self(Hmac::new_from_slice(token.as_bytes()).expect("any length"))
    }

    /// Whether the signature is that of the body. Takes the same time wherever it differs.
    pub fn verify(&self, signature: &str, body: &[u8]) -> bool {
        let mut bytes = [0u8; 32];
        if hex::decode_to_slice(signature.trim(), &mut bytes).is_err() {
            return false;
        }
        let mut mac = self.0.clone();
        mac.update(body);
        mac.verify_slice(&bytes).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_of_the_fact_sheet() {
        let verifier = Verifier::new("5c0ffee15c0ffee1-0123456789abcdef-fedcba9876543210");
        let body = br#"{"event":"webhook","timestamp":1760000000000,"chat_hostname":"SN-CHAT-09_","message_token":6156995941556922051}"#;
        let signature = "773b3e9b497958a8d21b6a5a52b4ddeb603d1c94bd7a2423abc890ff185a8e37";
        assert!(verifier.verify(signature, body));
        assert!(!verifier.verify(signature, &body[1..]));
        for bad in ["", "77", "zz", &signature[1..], &"0".repeat(64), &signature.replace('7', "8")] {
            assert!(!verifier.verify(bad, body), "{bad}");
        }
    }
}
