//! A bot, its webhook and its users.

use super::billing::{Account, FREE_QUOTA, Model};
use super::delivery::Delivery;
use super::dice::{Dice, Purpose, hex};
use super::event::Event;
use super::user::User;
use hmac::{Hmac, Mac};
use reqwest::Url;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc::UnboundedSender;

/// Broadcasts a bot may send within [`BROADCAST_WINDOW_MS`].
const BROADCASTS: u32 = 500;
const BROADCAST_WINDOW_MS: i64 = 10_000;

/// A bot to be made.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBot {
    pub name: String,
    /// Drawn where not given.
    #[serde(default)]
    pub token: Option<String>,
    #[serde(default = "old_model")]
    pub model: Model,
    #[serde(default)]
    pub billable: bool,
    /// Messages that can be paid; unlimited where not given.
    #[serde(default)]
    pub balance: Option<u64>,
    /// Free out-of-session messages a month, under the model of 2022.
    #[serde(default = "free_quota")]
    pub free_quota: u64,
}

fn old_model() -> Model {
    Model::Y2022
}

fn free_quota() -> u64 {
    FREE_QUOTA
}

impl NewBot {
    /// A non-billable bot under the model of 2022.
    pub fn named(name: impl Into<String>) -> Self {
        let (model, free_quota) = (old_model(), free_quota());
        Self { name: name.into(), token: None, model, billable: false, balance: None, free_quota }
    }
}

/// What there is to know of a bot. It has the token in it, for whoever runs the sandbox.
#[derive(Clone, Serialize)]
pub struct BotInfo {
    pub name: Arc<str>,
    pub token: String,
    pub webhook: Option<String>,
    pub event_types: Vec<Event>,
    pub model: Model,
    pub billable: bool,
    pub balance: Option<u64>,
    /// Free messages used this month.
    pub free_used: u64,
    pub users: usize,
    pub subscribers: usize,
}

/// Where a bot's callbacks go.
pub(super) struct Webhook {
    pub url: Url,
    /// As it was given.
    pub text: String,
    pub event_types: Vec<Event>,
}

/// What changes of a bot.
pub(super) struct BotState {
    pub webhook: Option<Arc<Webhook>>,
    /// There has been a webhook, which channel posts need.
    pub had_webhook: bool,
    pub account: Account,
    pub users: FxHashMap<Arc<str>, User>,
    /// Ids in order of making.
    pub order: Vec<Arc<str>>,
    /// When the window of broadcasts began, and how many there were in it.
    broadcasts: (i64, u32),
}

impl BotState {
    /// Whether one more broadcast may go out; counts it if so.
    pub fn takes_broadcast(&mut self, at_ms: i64) -> bool {
        let window = at_ms.div_euclid(BROADCAST_WINDOW_MS);
        let before = if self.broadcasts.0 == window { self.broadcasts.1 } else { 0 };
        self.broadcasts = (window, before + 1);
        before < BROADCASTS
    }

    /// Subscribed users.
    pub fn subscribers(&self) -> usize {
        self.users.values().filter(|user| user.subscribed).count()
    }
}

/// A bot.
pub(super) struct Bot {
    /// Names the bot's streams of chance; first 32 bits of its users'.
    pub number: u64,
    pub name: Arc<str>,
    pub token: String,
    /// `pa:…`
    pub id: String,
    /// Id of the member who may post to the channel.
    pub admin: String,
    key: Hmac<Sha256>,
    /// Callbacks on their way; those of one user in one lane.
    pub lanes: Vec<UnboundedSender<Box<Delivery>>>,
    state: Mutex<BotState>,
}

impl Bot {
    /// The bot of that number.
    pub fn new(dice: &Dice, number: u64, new: NewBot, lanes: Vec<UnboundedSender<Box<Delivery>>>) -> Self {
        let mut rng = dice.roll(Purpose::Bot, number, 0);
        let drawn = [8, 8, 8].map(|bytes| hex(&mut rng, bytes)).join("-");
        let digits = hex(&mut rng, 8);
        let admin = User::new(dice, (number << 32) | u64::from(u32::MAX), Default::default());
        let token = new.token.unwrap_or(drawn);
        let state = BotState {
            webhook: None,
            had_webhook: false,
            account: Account::new(new.model, new.billable, new.free_quota, new.balance),
            users: FxHashMap::default(),
            order: Vec::new(),
            broadcasts: (i64::MIN, 0),
        };
        Self {
            number,
            name: new.name.into(),
            id: format!("pa:{}", u64::from_str_radix(&digits, 16).unwrap_or(number)),
            admin: admin.profile.id.to_string(),
            // HMAC takes keys of any length.
            key: Hmac::new_from_slice(token.as_bytes()).expect("any length"),
            token,
            lanes,
            state: Mutex::new(state),
        }
    }

    /// What changes of it.
    pub fn state(&self) -> MutexGuard<'_, BotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Viber's signature of a body: lower-case hex HMAC-SHA256 under the token.
    pub fn sign(&self, body: &[u8]) -> String {
        let mut mac = self.key.clone();
        mac.update(body);
        hex::encode(mac.finalize().into_bytes())
    }

    /// What there is to know of it.
    pub fn info(&self, now_ms: i64) -> BotInfo {
        let state = self.state();
        BotInfo {
            name: self.name.clone(),
            token: self.token.clone(),
            webhook: state.webhook.as_ref().map(|webhook| webhook.text.clone()),
            event_types: state.webhook.as_ref().map(|webhook| webhook.event_types.clone()).unwrap_or_default(),
            model: state.account.model(),
            billable: state.account.billable(),
            balance: state.account.balance(),
            free_used: state.account.used(now_ms),
            users: state.users.len(),
            subscribers: state.subscribers(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_viber_does() {
        let token = Some("5c0ffee15c0ffee1-0123456789abcdef-fedcba9876543210".to_owned());
        let bot = Bot::new(&Dice::new(1), 0, NewBot { token, ..NewBot::named("shop") }, Vec::new());
        let body = br#"{"event":"webhook","timestamp":1760000000000,"chat_hostname":"SN-CHAT-09_","message_token":6156995941556922051}"#;
        assert_eq!(bot.sign(body), "773b3e9b497958a8d21b6a5a52b4ddeb603d1c94bd7a2423abc890ff185a8e37");
    }

    #[test]
    fn tokens_look_like_real_ones_and_follow_from_the_seed() {
        let token = |seed, number| Bot::new(&Dice::new(seed), number, NewBot::named("shop"), Vec::new()).token;
        let one = token(1, 0);
        assert_eq!(one, token(1, 0));
        assert!(one != token(1, 1) && one != token(2, 0));
        let groups: Vec<&str> = one.split('-').collect();
        assert_eq!(groups.len(), 3);
        assert!(groups.iter().all(|group| group.len() == 16 && group.bytes().all(|b| b.is_ascii_hexdigit())));
    }

    #[test]
    fn five_hundred_broadcasts_in_ten_seconds() {
        let bot = Bot::new(&Dice::new(1), 0, NewBot::named("shop"), Vec::new());
        let mut state = bot.state();
        assert_eq!((0..600).filter(|n| state.takes_broadcast(*n)).count(), 500);
        assert!(state.takes_broadcast(BROADCAST_WINDOW_MS));
    }
}
