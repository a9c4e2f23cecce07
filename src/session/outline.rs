//! What accounts are folded under, in short: enough to tell whether rows made before would be made otherwise now. Pure.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What an account goes by: from when on (ms since the epoch, UTC; `i64::MIN` is always) what holds, in words that are
/// others when it is another.
pub type Outline = Vec<(i64, String)>;

/// What all accounts go by.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Outlines {
    /// What holds for all of them, at all times.
    pub common: String,
    /// Of accounts without one of their own.
    pub default: Outline,
    pub accounts: BTreeMap<String, Outline>,
}

impl Outlines {
    /// Those of the `met` accounts that had at some time up to the watermark what they would not have under `now`. What
    /// begins later has made no row yet.
    pub fn changed<'a>(
        &self,
        now: &Outlines,
        met: impl IntoIterator<Item = &'a str>,
        watermark_ms: i64,
    ) -> Vec<&'a str> {
        let is_same = |account: &&str| {
            let began = |outlines: &'_ Outlines| -> Vec<(i64, String)> {
                outlines.of(account).iter().filter(|(start_ms, _)| *start_ms <= watermark_ms).cloned().collect()
            };
            self.common == now.common && began(self) == began(now)
        };
        met.into_iter().filter(|account| !is_same(account)).collect()
    }

    fn of(&self, account: &str) -> &Outline {
        self.accounts.get(account).unwrap_or(&self.default)
    }
}

/// Some hex digits that are others for other bytes.
pub(super) fn digest(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes)[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlines(default: &[(i64, &str)], accounts: &[(&str, &[(i64, &str)])]) -> Outlines {
        let outline =
            |parts: &[(i64, &str)]| parts.iter().map(|(start_ms, what)| (*start_ms, (*what).into())).collect();
        Outlines {
            common: "3 days".into(),
            default: outline(default),
            accounts: accounts.iter().map(|(name, parts)| ((*name).to_owned(), outline(parts))).collect(),
        }
    }

    #[test]
    fn only_what_began_for_accounts_that_were_met_has_changed() {
        let before = outlines(&[(i64::MIN, "a")], &[("shop", &[(i64::MIN, "b"), (100, "c")])]);
        let changed = |now: &Outlines, watermark_ms| before.changed(now, ["bar", "shop"], watermark_ms);
        assert_eq!(changed(&before, i64::MAX), [""; 0]);
        let later = outlines(&[(i64::MIN, "a"), (300, "d")], &[("shop", &[(i64::MIN, "b"), (100, "c"), (200, "d")])]);
        assert_eq!(changed(&later, 199), [""; 0]);
        assert_eq!(changed(&later, 200), ["shop"]);
        assert_eq!(changed(&later, 300), ["bar", "shop"]);
        let own = outlines(&[(i64::MIN, "a")], &[("bar", &[(i64::MIN, "a")]), ("new", &[(i64::MIN, "z")])]);
        assert_eq!(changed(&own, 0), ["shop"], "what is the same is no change, and who is new has no rows");
        let all = Outlines { common: "4 days".into(), ..before.clone() };
        assert_eq!(changed(&all, 0), ["bar", "shop"]);
    }
}
