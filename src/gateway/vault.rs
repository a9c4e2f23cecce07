//! Tokens at rest: sealed with XChaCha20-Poly1305 under a key from the config.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use chacha20poly1305::aead::{Aead, AeadCore, KeyInit, OsRng, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

/// Bytes before the sealed text.
const NONCE: usize = 24;

/// A key that is none. The text says what is, and never what was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key of [gateway] is neither 64 hexadecimal digits nor 32 bytes in base64: make one by `openssl rand -hex 32`"
)]
pub struct BadKey;

/// A sealed token that cannot be opened: another key, another account's, or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was sealed under another key, or is damaged")]
pub struct Unopened;

/// Seals and opens tokens. The key is never shown.
pub struct Vault(XChaCha20Poly1305);

impl Vault {
    /// With a key written as 64 hexadecimal digits or as base64 of 32 bytes.
    pub fn new(key: &str) -> Result<Self, BadKey> {
        let key = key.trim();
        let mut bytes = [0; 32];
        if hex::decode_to_slice(key, &mut bytes).is_err() {
            let decoded = STANDARD_NO_PAD.decode(key.trim_end_matches('=')).map_err(|_| BadKey)?;
            bytes = decoded.try_into().map_err(|_| BadKey)?;
        }
        Ok(Self(XChaCha20Poly1305::new(Key::from_slice(&bytes))))
    }

    /// A token, sealed for this account, as base64 text.
    pub fn seal(&self, account: &str, token: &str) -> String {
        let nonce = XChaCha20Poly1305::generate_nonce(&mut OsRng);
        let payload = Payload { msg: token.as_bytes(), aad: account.as_bytes() };
        // It fails only for texts of 256 GiB.
        let sealed = self.0.encrypt(&nonce, payload).expect("a short text");
        STANDARD.encode([nonce.as_slice(), &sealed].concat())
    }

    /// The token that was sealed for this account.
    pub fn open(&self, account: &str, sealed: &str) -> Result<String, Unopened> {
        let bytes = STANDARD.decode(sealed).map_err(|_| Unopened)?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE).ok_or(Unopened)?;
        let payload = Payload { msg: sealed, aad: account.as_bytes() };
        let token = self.0.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| Unopened)?;
        String::from_utf8(token).map_err(|_| Unopened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(byte: u8) -> Vault {
        Vault::new(&hex::encode([byte; 32])).unwrap()
    }

    #[test]
    fn only_the_same_key_and_account_open_it() {
        let sealed = vault(1).seal("shop", "5c0ffee1");
        assert_eq!(vault(1).open("shop", &sealed), Ok("5c0ffee1".into()));
        assert_eq!(vault(2).open("shop", &sealed), Err(Unopened));
        assert_eq!(vault(1).open("bar", &sealed), Err(Unopened));
        assert_ne!(vault(1).seal("shop", "5c0ffee1"), sealed);
        assert!(!sealed.contains("5c0ffee1") && !sealed.contains(&STANDARD.encode("5c0ffee1")[..8]));
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let sealed = STANDARD.decode(vault(1).seal("shop", "token")).unwrap();
        for at in 0..sealed.len() {
            let mut tampered = sealed.clone();
            tampered[at] ^= 1;
            assert_eq!(vault(1).open("shop", &STANDARD.encode(&tampered)), Err(Unopened), "byte {at}");
            assert_eq!(vault(1).open("shop", &STANDARD.encode(&sealed[..at])), Err(Unopened), "{at} bytes");
        }
        assert_eq!(vault(1).open("shop", "no base64!"), Err(Unopened));
    }

    #[test]
    fn a_key_is_hex_or_base64_of_32_bytes() {
        let bytes: [u8; 32] = std::array::from_fn(|n| n as u8 * 7);
        let sealed = Vault::new(&hex::encode(bytes)).unwrap().seal("shop", "token");
        for key in [hex::encode_upper(bytes), STANDARD.encode(bytes), format!(" {}\n", STANDARD_NO_PAD.encode(bytes))] {
            assert_eq!(Vault::new(&key).unwrap().open("shop", &sealed), Ok("token".into()), "{key}");
        }
        for bad in ["", "hush", &"ab".repeat(31), &"ab".repeat(33), &"zz".repeat(32), &STANDARD.encode([0; 31])] {
            let error = Vault::new(bad).err().unwrap().to_string();
            assert!(error.contains("openssl rand -hex 32") && (bad.is_empty() || !error.contains(bad)), "{bad}");
        }
    }
}
