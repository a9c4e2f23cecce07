//! Users who write: each lives a life drawn from the seed, whatever the timing of everything else.

use super::dice::{Dice, Purpose, chance, exponential, one_of, seconds};
use super::event::{Contact, Content, Location};
use super::{Act, Sandbox, until_stop};
use rand::{Rng, RngCore};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const DAY: Duration = Duration::from_secs(86_400);
/// Share of wakings that fall into waking hours: the mean of [`wakefulness`].
const AWAKE: f64 = 0.55;
/// Acts done before others get a turn on the thread.
const TURN: usize = 64;

/// How users live. Shares are 0..1, days are of sandbox time.
#[derive(Debug, Clone, PartialEq)]
pub struct Habits {
    /// Of each user, on average.
    pub conversations_per_day: f64,
    /// Messages of the user in one, on average; at least 1.
    pub messages_per_conversation: f64,
    /// First visits that begin by opening the conversation, and get a welcome message.
    pub start_share: f64,
    /// Of the others, those who turn messages on and write later: what they are sent until then is out of session.
    pub listen_share: f64,
    /// Messages that are a press on a button, where there is one.
    pub button_share: f64,
    /// Conversations after which the user unsubscribes; most come back.
    pub unsubscribe_share: f64,
    /// Fewer conversations at night (UTC+2).
    pub day_night: bool,
    /// Users come for the first time within this.
    pub arrive_within: Duration,
    /// End after so many acts of all users.
    pub limit: Option<u64>,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            conversations_per_day: 0.7,
            messages_per_conversation: 3.0,
            start_share: 0.6,
            listen_share: 0.4,
            button_share: 0.4,
            unsubscribe_share: 0.02,
            day_night: false,
            arrive_within: DAY / 2,
            limit: None,
        }
    }
}

/// Has all users the sandbox's bots have now live, until told to stop or the limit is reached: how many acts there were.
pub async fn run(sandbox: Sandbox, seed: u64, habits: Habits, mut stop: watch::Receiver<bool>) -> u64 {
    let start_us = sandbox.time().now_us();
    let mut crowd = Crowd::new(Dice::new(seed), habits, start_us);
    for (bot_number, bot) in sandbox.bots().into_iter().enumerate() {
        // The bot was named a moment ago, and none is ever removed.
        let users = sandbox.users(&bot.name).unwrap_or_default();
        for (number, user) in users.into_iter().enumerate() {
            crowd.add((bot_number as u64) << 32 | number as u64, bot.name.clone(), user.profile.id);
        }
    }
    let mut acts = 0;
    while let Some(at_us) = crowd.next_us() {
        tokio::select! {
            biased;
            () = until_stop(&mut stop) => break,
            () = sandbox.time().sleep_until_us(at_us) => {}
        }
        for _ in 0..TURN {
            if crowd.next_us().is_none_or(|at_us| at_us > sandbox.time().now_us()) {
                break;
            }
            let Some((bot, user, act)) = crowd.step() else { continue };
            if let Err(reason) = sandbox.act(&bot, &user, act) {
                tracing::debug!(%reason, "a user could not do it");
            }
            acts += 1;
            if crowd.habits.limit.is_some_and(|limit| acts >= limit) {
                return acts;
            }
        }
        tokio::task::yield_now().await;
    }
    acts
}

/// One user's life.
struct Life {
    number: u64,
    bot: Arc<str>,
    user: Arc<str>,
    /// Steps taken, each with its own place in the stream.
    steps: u64,
    begun: bool,
    gone: bool,
    /// Messages left in the conversation.
    left: u32,
}

impl Life {
    /// The next step, taken at `at_us`: what the user does, and how long until the one after.
    fn step(&mut self, dice: &Dice, habits: &Habits, at_us: i64) -> (Option<Act>, Duration) {
        let mut rng = dice.roll(Purpose::Traffic, self.number, self.steps);
        self.steps += 1;
        if !self.begun {
            self.begun = true;
            self.left = length(&mut rng, habits);
            if chance(&mut rng, habits.start_share) {
                let context = chance(&mut rng, 0.3).then(|| format!("campaign={}", rng.random_range(1..10)));
                return (Some(Act::Start { context }), seconds(&mut rng, 5.0, 90.0));
            }
            if chance(&mut rng, habits.listen_share) {
                return (Some(Act::Subscribe), idle(&mut rng, habits));
            }
        } else if self.left == 0 {
            let idle = idle(&mut rng, habits);
            if habits.day_night && !chance(&mut rng, wakefulness(at_us)) {
                return (None, idle);
            }
            if !self.gone && chance(&mut rng, habits.unsubscribe_share) {
                self.gone = true;
                return (Some(Act::Unsubscribe), idle + exponential(&mut rng, DAY));
            }
            self.left = length(&mut rng, habits);
            if std::mem::take(&mut self.gone) && chance(&mut rng, 0.3) {
                return (Some(Act::Subscribe), seconds(&mut rng, 2.0, 30.0));
            }
        }
        self.left -= 1;
        let wait = if self.left == 0 { idle(&mut rng, habits) } else { seconds(&mut rng, 8.0, 240.0) };
        let content = content(&mut rng);
        let act = if chance(&mut rng, habits.button_share) {
            Act::Press { pick: rng.random_range(0..6), or: content }
        } else {
            Act::Write(content)
        };
        (Some(act), wait)
    }
}

/// Messages of one conversation: at least 1, geometrically distributed.
fn length(rng: &mut impl RngCore, habits: &Habits) -> u32 {
    let more = 1.0 - 1.0 / habits.messages_per_conversation.max(1.0);
    1 + (0..200).take_while(|_| chance(rng, more)).count() as u32
}

fn idle(rng: &mut impl RngCore, habits: &Habits) -> Duration {
    let awake = if habits.day_night { AWAKE } else { 1.0 };
    exponential(rng, DAY.div_f64((habits.conversations_per_day / awake).clamp(1e-6, 1e6)))
}

/// How likely users are to be about at this time: 0.1 at 4 in the morning, 1 at 4 in the afternoon, UTC+2.
fn wakefulness(at_us: i64) -> f64 {
    let hour = (at_us.div_euclid(1_000_000) + 2 * 3_600).rem_euclid(86_400) as f64 / 3_600.0;
    AWAKE + (1.0 - AWAKE) * ((hour - 16.0) / 24.0 * std::f64::consts::TAU).cos()
}

/// A message of any type; mostly text.
fn content(rng: &mut impl RngCore) -> Content {
    const TEXTS: [&str; 8] =
        ["Hello", "Where is my order?", "Thanks!", "Дякую", "How much is it?", "Yes", "Привіт 👋", "Call me, please"];
    let base = |kind: &str| Content { kind: kind.into(), ..Content::default() };
    let media = |name: &str| Some(format!("https://media.example/{name}"));
    match rng.random_range(0..40) {
        0 | 1 => Content {
            media: media("photo.jpg"),
            thumbnail: media("photo_small.jpg"),
            file_name: Some("photo.jpg".into()),
            size: Some(183_022),
            ..base("picture")
        },
        2 => Content {
            media: media("clip.mp4"),
            thumbnail: media("clip.jpg"),
            file_name: Some("clip.mp4".into()),
            size: Some(1_830_220),
            duration: Some(9),
            ..base("video")
        },
        3 => {
            Content { media: media("bill.pdf"), file_name: Some("bill.pdf".into()), size: Some(40_960), ..base("file") }
        }
        4 | 5 => Content { sticker_id: Some(46_105 + u64::from(rng.random::<u8>())), ..base("sticker") },
        6 => {
            let phone_number = format!("38067{:07}", rng.random_range(0..10_000_000));
            let contact = Contact { name: "Me".into(), phone_number, avatar: None };
            Content { contact: Some(contact), ..base("contact") }
        }
        7 => Content { media: media("page"), ..base("url") },
        8 => {
            let location = Location { lat: 50.0 + rng.random::<f64>(), lon: 30.0 + rng.random::<f64>() };
            Content { location: Some(location), ..base("location") }
        }
        _ => Content::text(one_of(rng, &TEXTS)),
    }
}

/// All lives, in order of their next steps.
struct Crowd {
    dice: Dice,
    habits: Habits,
    start_us: i64,
    lives: Vec<Life>,
    /// When the next step of which life is.
    steps: BinaryHeap<Reverse<(i64, usize)>>,
}

impl Crowd {
    fn new(dice: Dice, habits: Habits, start_us: i64) -> Self {
        Self { dice, habits, start_us, lives: Vec::new(), steps: BinaryHeap::new() }
    }

    fn add(&mut self, number: u64, bot: Arc<str>, user: Arc<str>) {
        let mut life = Life { number, bot, user, steps: 0, begun: false, gone: false, left: 0 };
        let mut rng = self.dice.roll(Purpose::Traffic, number, life.steps);
        life.steps += 1;
        let first = seconds(&mut rng, 0.0, self.habits.arrive_within.as_secs_f64());
        self.steps.push(Reverse((after(self.start_us, first), self.lives.len())));
        self.lives.push(life);
    }

    /// When the next step is.
    fn next_us(&self) -> Option<i64> {
        self.steps.peek().map(|Reverse((at_us, _))| *at_us)
    }

    /// Takes the next step: who does what, where anything is done. The one after follows from when this one was due, not
    /// from when it is taken.
    fn step(&mut self) -> Option<(Arc<str>, Arc<str>, Act)> {
        let Reverse((at_us, place)) = self.steps.pop()?;
        let life = self.lives.get_mut(place)?;
        let (act, wait) = life.step(&self.dice, &self.habits, at_us);
        self.steps.push(Reverse((after(at_us, wait), place)));
        Some((life.bot.clone(), life.user.clone(), act?))
    }
}

fn after(at_us: i64, wait: Duration) -> i64 {
    at_us.saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_760_000_000_000_000;

    fn crowd(seed: u64, users: u64, habits: Habits) -> Crowd {
        let mut crowd = Crowd::new(Dice::new(seed), habits, T);
        for number in 0..users {
            crowd.add(number, "shop".into(), format!("user-{number}").into());
        }
        crowd
    }

    /// All acts of so many days, with their times.
    fn acts(mut crowd: Crowd, days: i64) -> Vec<(i64, Arc<str>, Act)> {
        let mut acts = Vec::new();
        while let Some(at_us) = crowd.next_us().filter(|at_us| *at_us < T + days * 86_400_000_000) {
            acts.extend(crowd.step().map(|(_, user, act)| (at_us, user, act)));
        }
        acts
    }

    #[test]
    fn the_same_seed_gives_the_same_lives() {
        let live = |seed| acts(crowd(seed, 50, Habits::default()), 10);
        assert_eq!(live(1), live(1));
        assert_ne!(live(1), live(2));
    }

    #[test]
    fn rates_are_as_asked_by_day_and_night() {
        for day_night in [false, true] {
            let habits = Habits { conversations_per_day: 2.0, day_night, ..Habits::default() };
            let all = acts(crowd(3, 200, habits), 20);
            let messages =
                all.iter().filter(|(_, _, act)| matches!(act, Act::Write(_) | Act::Press { .. })).count() as f64;
            // 200 users, 20 days, 2 conversations of 3 messages.
            let share = messages / 24_000.0;
            assert!((0.85..1.1).contains(&share), "{share} with day_night = {day_night}");
            let is_night = |at_us: i64| (at_us / 3_600_000_000 + 2) % 24 < 8;
            let night = all.iter().filter(|(at_us, ..)| is_night(*at_us)).count() as f64 / all.len() as f64;
            assert!(if day_night { night < 0.2 } else { night > 0.28 }, "{night} at night");
        }
    }

    #[test]
    fn users_do_everything() {
        let habits = Habits { unsubscribe_share: 0.1, ..Habits::default() };
        let all = acts(crowd(3, 100, habits), 20);
        let count = |wanted: fn(&Act) -> bool| all.iter().filter(|(_, _, act)| wanted(act)).count();
        assert!(count(|act| matches!(act, Act::Start { context: Some(_) })) > 0);
        assert!(count(|act| *act == Act::Start { context: None }) > 0);
        assert!(count(|act| *act == Act::Unsubscribe) > 0 && count(|act| *act == Act::Subscribe) > 0);
        let mut kinds: Vec<_> = all
            .iter()
            .filter_map(|(_, _, act)| if let Act::Write(content) = act { Some(content.kind.as_str()) } else { None })
            .collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds, ["contact", "file", "location", "picture", "sticker", "text", "url", "video"]);
    }
}
