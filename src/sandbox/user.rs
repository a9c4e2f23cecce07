//! A user of one bot.

use super::billing::Session;
use super::dice::{Dice, Purpose, chance, one_of, random_bytes};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Messages a user gets within a clock hour without a reply.
const UNANSWERED_PER_HOUR: u32 = 100;
const HOUR_MS: i64 = 3_600_000;
/// `get_user_details` answers twice for a user within this.
const DETAILS_WINDOW_MS: i64 = 12 * HOUR_MS;

/// Names and languages of users who are not described.
const NAMES: [&str; 16] = [
    "Olena", "Andriy", "Iryna", "Taras", "Maria", "Ivan", "Natalia", "Petro", "Anna", "Georgi", "Elena", "Nikola",
    "Katarina", "Milos", "Lia", "Aram",
];
const PLACES: [(&str, &str, u16); 8] = [
    ("UA", "uk", 255),
    ("UA", "uk", 255),
    ("UA", "ru-RU", 255),
    ("BG", "bg", 284),
    ("RS", "sr", 220),
    ("GR", "el", 202),
    ("MD", "ro", 259),
    ("DE", "de", 262),
];

/// A user to be made; what is not given is drawn.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewUser {
    pub name: Option<String>,
    /// Two letters.
    pub country: Option<String>,
    pub language: Option<String>,
    pub api_version: Option<u64>,
    /// At least 1.
    pub devices: Option<u8>,
    /// Already subscribed, without having written.
    pub subscribed: bool,
}

/// A user as callbacks and `get_user_details` describe one.
#[derive(Debug, Clone, Serialize)]
pub struct Profile {
    /// Base64 ending in `==`, unique to the bot.
    pub id: Arc<str>,
    pub name: String,
    pub country: String,
    pub language: String,
    pub api_version: u64,
    pub mcc: u16,
    pub devices: u8,
}

/// What the control API shows of a user.
#[derive(Debug, Clone, Serialize)]
pub struct UserInfo {
    #[serde(flatten)]
    pub profile: Profile,
    pub subscribed: bool,
    /// When the session that holds now was opened, ms since the epoch.
    pub session_opened_ms: Option<i64>,
}

/// A user.
pub(super) struct User {
    pub profile: Profile,
    /// Names the user's streams of chance.
    pub number: u64,
    pub subscribed: bool,
    pub session: Option<Session>,
    pub last_wrote_ms: i64,
    /// What the next reply brings back.
    pub tracking_data: Option<String>,
    /// Reply buttons in view.
    pub buttons: Vec<String>,
    /// Messages accepted for the user so far.
    pub sent: u64,
    /// The newest message on a device that the user has not looked at.
    pub unread: Option<u64>,
    /// The clock hour messages are counted in, and how many there were without a reply.
    unanswered: (i64, u32),
    /// When details were asked for, the last two times.
    details: [i64; 2],
}

impl User {
    /// The `n`-th user of a bot.
    pub fn new(dice: &Dice, number: u64, new: NewUser) -> Self {
        let mut rng = dice.roll(Purpose::User, number, 0);
        let id = STANDARD.encode(random_bytes(&mut rng, 16)).into();
        let (country, language, mcc) = one_of(&mut rng, &PLACES);
        let name = one_of(&mut rng, &NAMES);
        let api_version = if chance(&mut rng, 0.03) { 7 } else { 10 };
        let devices = one_of(&mut rng, &[1, 1, 1, 1, 2, 2, 3]);
        let profile = Profile {
            id,
            name: new.name.unwrap_or_else(|| name.to_owned()),
            country: new.country.unwrap_or_else(|| country.to_owned()),
            language: new.language.unwrap_or_else(|| language.to_owned()),
            api_version: new.api_version.unwrap_or(api_version),
            mcc,
            devices: new.devices.unwrap_or(devices).max(1),
        };
        Self {
            profile,
            number,
            subscribed: new.subscribed,
            session: None,
            last_wrote_ms: 0,
            tracking_data: None,
            buttons: Vec::new(),
            sent: 0,
            unread: None,
            unanswered: (i64::MIN, 0),
            details: [i64::MIN; 2],
        }
    }

    /// The user wrote: whether that opened a session.
    pub fn wrote(&mut self, at_ms: i64) -> bool {
        let (session, opened) = Session::on_message(self.session, at_ms);
        self.session = Some(session);
        self.subscribed = true;
        self.last_wrote_ms = at_ms;
        self.unanswered = (i64::MIN, 0);
        opened
    }

    /// The user wants no more messages: the session ends with that.
    pub fn unsubscribe(&mut self) {
        self.subscribed = false;
        self.session = None;
        self.forget();
    }

    /// Context and tracking data are cleared.
    pub fn forget(&mut self) {
        self.tracking_data = None;
        self.buttons.clear();
    }

    /// Whether one more message may go out without a reply.
    pub fn takes_one_more(&self, at_ms: i64) -> bool {
        let (hour, count) = self.unanswered;
        hour != at_ms.div_euclid(HOUR_MS) || count < UNANSWERED_PER_HOUR
    }

    /// One more message went out.
    pub fn count_one_more(&mut self, at_ms: i64) {
        let hour = at_ms.div_euclid(HOUR_MS);
        let before = if self.unanswered.0 == hour { self.unanswered.1 } else { 0 };
        self.unanswered = (hour, before + 1);
        self.sent += 1;
    }

    /// Whether details may be told once more; counts it if so.
    pub fn tells_details(&mut self, at_ms: i64) -> bool {
        let [older, newer] = self.details;
        let tells = older == i64::MIN || at_ms - older >= DETAILS_WINDOW_MS;
        if tells {
            self.details = [newer, at_ms];
        }
        tells
    }

    /// What the control API shows.
    pub fn info(&self, now_ms: i64) -> UserInfo {
        let session = self.session.filter(|session| session.holds(now_ms));
        UserInfo {
            profile: self.profile.clone(),
            subscribed: self.subscribed,
            session_opened_ms: session.map(|session| session.opened_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_760_000_400_000;

    fn user(number: u64) -> User {
        User::new(&Dice::new(1), number, NewUser::default())
    }

    #[test]
    fn ids_look_like_real_ones_and_follow_from_the_seed() {
        let ids: std::collections::HashSet<_> = (0..1_000).map(|n| user(n).profile.id).collect();
        assert_eq!(ids.len(), 1_000);
        assert!(ids.iter().all(|id| id.len() == 24 && id.ends_with("==")));
        assert!(ids.contains(&user(7).profile.id));
    }

    #[test]
    fn a_hundred_an_hour_without_reply() {
        let mut user = user(0);
        let hour = T - T % HOUR_MS;
        let most = (0..200).take_while(|n| {
            let takes = user.takes_one_more(hour + n);
            user.count_one_more(hour + n);
            takes
        });
        assert_eq!(most.count(), 100);
        // The next clock hour and a reply start anew.
        assert!(!user.takes_one_more(hour + HOUR_MS - 1) && user.takes_one_more(hour + HOUR_MS));
        user.wrote(hour + 500);
        assert!(user.takes_one_more(hour + 501));
    }

    #[test]
    fn details_twice_in_twelve_hours() {
        let mut user = user(0);
        assert!(user.tells_details(T) && user.tells_details(T + 5));
        assert!(!user.tells_details(T + DETAILS_WINDOW_MS - 1));
        assert!(user.tells_details(T + DETAILS_WINDOW_MS));
        assert!(!user.tells_details(T + DETAILS_WINDOW_MS + 4));
    }

    #[test]
    fn unsubscribing_ends_the_session_and_writing_opens_another() {
        let mut user = user(0);
        assert!(user.wrote(T) && !user.wrote(T + 1));
        user.unsubscribe();
        assert!(!user.subscribed && user.info(T + 2).session_opened_ms.is_none());
        assert!(user.wrote(T + 3) && user.subscribed);
    }
}
