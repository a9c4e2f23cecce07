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

    /// Nanoseconds of one call, of two that are made in turn: the fastest of many short batches each, which no other
    /// load on the machine slows down.
    fn fastest(mut calls: [&mut dyn FnMut() -> bool; 2]) -> [f64; 2] {
        const BATCH: u32 = 32;
        let mut fastest = [f64::INFINITY; 2];
        for _ in 0..4_000 {
            for (call, fastest) in calls.iter_mut().zip(&mut fastest) {
                let started = std::time::Instant::now();
                for _ in 0..BATCH {
                    assert!(!std::hint::black_box(call()));
                }
                *fastest = fastest.min(started.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH));
            }
        }
        fastest
    }

    /// What the check must not be: it ends at the first character that differs.
    fn verify_hastily(verifier: &Verifier, signature: &str, body: &[u8]) -> bool {
        let mut mac = verifier.0.clone();
        mac.update(body);
        let right = hex::encode(mac.finalize().into_bytes());
        right.len() == signature.len()
            && right.bytes().zip(signature.bytes()).all(|(a, b)| std::hint::black_box(a) == b)
    }

    #[test]
    fn time_does_not_tell_where_a_signature_differs() {
        let (verifier, body) = (Verifier::new("5c0ffee15c0ffee1"), b"{\"event\":\"webhook\"}");
        let mut mac = verifier.0.clone();
        mac.update(body);
        let right = hex::encode(mac.finalize().into_bytes());
        let other = |digit: &str| if digit == "0" { "1" } else { "0" };
        let first = format!("{}{}", other(&right[..1]), &right[1..]);
        let last = format!("{}{}", &right[..63], other(&right[63..]));
        let difference = |verify: fn(&Verifier, &str, &[u8]) -> bool| {
            let [early, late] =
                fastest([&mut || verify(&verifier, &first, body), &mut || verify(&verifier, &last, body)]);
            late - early
        };
        let (hasty, ours) =
            (difference(verify_hastily), difference(|verifier, signature, body| verifier.verify(signature, body)));
        println!("the last character differs instead of the first: {ours:.2} ns, {hasty:.2} ns where that shows");
        assert!(hasty > 0.0 && ours.abs() < hasty / 5.0, "{ours:.2} ns, {hasty:.2} ns where it shows");
    }

    #[test]
    fn no_comparison_but_the_one_in_constant_time() {
        // What `==` on 64 bytes gives away is below a nanosecond, too little for a clock: so the code is looked at.
        let code = include_str!("signature.rs").split("#[cfg(test)]").next().unwrap_or_default();
        assert!(code.contains(".verify_slice(") && !code.contains("==") && !code.contains("!="), "{code}");
    }
}
