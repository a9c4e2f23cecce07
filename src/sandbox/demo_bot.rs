//! A bot to look at: answers its users, welcomes them, and sends them promos and broadcasts.

use super::bot::{Bot, NewBot};
use super::dice::{Dice, Purpose, chance, exponential, seconds};
use super::offer::{KINDS, message};
use super::time::SandboxTime;
use super::until_stop;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use rand::Rng;
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Where the callbacks come.
const PATH: &str = "/viber";
const DAY: Duration = Duration::from_secs(86_400);
const MAX_RECEIVERS: usize = 300;
/// A promo is for somebody who has not written for so long.
const QUIET_US: i64 = 25 * 3_600_000_000;
/// Callbacks remembered, to know repeats by.
const REMEMBERED: usize = 20_000;
/// Real time.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How the bot behaves. Days are of sandbox time.
#[derive(Debug, Clone, PartialEq)]
pub struct BotHabits {
    pub promos_per_day: f64,
    pub broadcasts_per_day: f64,
    /// Seconds between a message and its first answer, and between answers.
    pub think: (f64, f64),
}

impl Default for BotHabits {
    fn default() -> Self {
        Self { promos_per_day: 20.0, broadcasts_per_day: 1.0, think: (1.0, 8.0) }
    }
}

/// What a demo bot is made of.
pub struct DemoBotOptions {
    /// Gets the callbacks.
    pub listener: TcpListener,
    pub name: String,
    pub token: String,
    /// `http://<address>` of the gateway or the sandbox.
    pub api_base: String,
    pub time: SandboxTime,
    pub seed: u64,
    pub habits: BotHabits,
    /// Ends the bot when it turns true, or when its sender goes.
    pub stop: watch::Receiver<bool>,
}

/// Why a bot cannot start. The machine's fault.
#[derive(Debug, thiserror::Error)]
pub enum DemoBotError {
    #[error("the listener of bot `{0}` has no address: {1}")]
    Listener(String, std::io::Error),
    #[error("the HTTP client of bot `{0}` cannot be made: {1}")]
    Client(String, reqwest::Error),
}

/// What a bot has done and met.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BotStats {
    /// Callbacks with a good signature by event, repeats left out.
    pub callbacks: BTreeMap<String, u64>,
    pub repeated: u64,
    pub bad_signatures: u64,
    pub welcomed: u64,
    /// Messages whose answers have all gone out.
    pub answered: u64,
    /// Calls by `status`; `no answer` where there was none that could be read.
    pub calls: BTreeMap<String, u64>,
}

/// A running bot. Cheap to clone.
#[derive(Clone)]
pub struct DemoBot(Arc<Inner>);

struct Inner {
    /// Knows the name and the token, and how to sign.
    bot: Bot,
    api_base: String,
    webhook: String,
    client: reqwest::Client,
    time: SandboxTime,
    dice: Dice,
    habits: BotHabits,
    book: Mutex<Book>,
    registered: watch::Sender<bool>,
    tasks: TaskTracker,
    stop: watch::Receiver<bool>,
}

/// What the bot keeps.
#[derive(Default)]
struct Book {
    stats: BotStats,
    /// Subscribers, in order of their first message.
    users: Vec<String>,
    known: FxHashMap<String, Known>,
    seen: FxHashSet<(String, u64, String)>,
    seen_order: VecDeque<(String, u64, String)>,
}

impl Book {
    /// Whether the callback comes for the first time, as far as can be remembered.
    fn is_new(&mut self, callback: &Callback, user: &str) -> bool {
        let key = (callback.event.clone(), callback.message_token, user.to_owned());
        if !self.seen.insert(key.clone()) {
            return false;
        }
        self.seen_order.push_back(key);
        if self.seen_order.len() > REMEMBERED
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}

#[derive(Default)]
struct Known {
    messages: u64,
    /// When the last message came, µs since the epoch; 0 without one.
    last_us: i64,
    gone: bool,
}

#[derive(Deserialize)]
struct Person {
    id: String,
}

/// The members of a callback the bot looks at.
#[derive(Deserialize)]
struct Callback {
    event: String,
    #[serde(default)]
    message_token: u64,
    sender: Option<Person>,
    user: Option<Person>,
    user_id: Option<String>,
}

impl Callback {
    fn user(&self) -> Option<&str> {
        let person = self.sender.as_ref().or(self.user.as_ref()).map(|person| person.id.as_str());
        person.or(self.user_id.as_deref())
    }
}

impl DemoBot {
    /// Starts the bot. It asks for its webhook by itself, again and again until it is set: [`DemoBot::registered`].
    pub fn start(options: DemoBotOptions) -> Result<DemoBot, DemoBotError> {
        let DemoBotOptions { listener, name, token, api_base, time, seed, habits, stop } = options;
        let address = listener.local_addr().map_err(|error| DemoBotError::Listener(name.clone(), error))?;
        let client = reqwest::Client::builder().no_proxy().timeout(CALL_TIMEOUT).build();
        let client = client.map_err(|error| DemoBotError::Client(name.clone(), error))?;
        let dice = Dice::new(seed);
        let inner = Inner {
            bot: Bot::new(&dice, 0, NewBot { token: Some(token), ..NewBot::named(name) }, Vec::new()),
            api_base: api_base.trim_end_matches('/').to_owned(),
            webhook: format!("http://{address}{PATH}"),
            client,
            time,
            dice,
            habits,
            book: Mutex::default(),
            registered: watch::Sender::new(false),
            tasks: TaskTracker::new(),
            stop,
        };
        let bot = DemoBot(Arc::new(inner));
        let router = Router::new().route(PATH, post(receive)).with_state(bot.clone());
        let mut stop = bot.0.stop.clone();
        bot.0.tasks.spawn(async move {
            let served =
                axum::serve(listener, router).with_graceful_shutdown(async move { until_stop(&mut stop).await });
            if let Err(error) = served.await {
                tracing::error!(%error, "a demo bot's listener failed");
            }
        });
        bot.spawn(|bot| async move { bot.register().await });
        bot.spawn(|bot| async move { bot.send_promos().await });
        bot.spawn(|bot| async move { bot.send_broadcasts().await });
        bot.0.tasks.close();
        Ok(bot)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.bot.name
    }

    /// Where its callbacks come.
    pub fn webhook(&self) -> &str {
        &self.0.webhook
    }

    /// Waits until its webhook is set.
    pub async fn registered(&self) {
        // The sender lives as long as the bot.
        let _ = self.0.registered.subscribe().wait_for(|registered| *registered).await;
    }

    /// What it has done and met.
    pub fn stats(&self) -> BotStats {
        self.book().stats.clone()
    }

    /// Waits until everything has ended after the stop signal.
    pub async fn stopped(&self) {
        self.0.tasks.wait().await;
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs something until it ends or the stop signal comes.
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, what: impl FnOnce(DemoBot) -> F) {
        let mut stop = self.0.stop.clone();
        let what = what(self.clone());
        self.0.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = until_stop(&mut stop) => {}
                () = what => {}
            }
        });
    }

    async fn register(&self) {
        let body = json!({ "url": self.0.webhook, "send_name": true, "send_photo": true });
        let mut said = false;
        while self.call("set_webhook", &body).await != Some(0) {
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(bot = self.name(), api = self.0.api_base, "the webhook cannot be set yet; trying on");
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        self.0.registered.send_replace(true);
    }

    /// Calls a method: the answer's `status`.
    async fn call(&self, method: &str, body: &Value) -> Option<i64> {
        let request = self.0.client.post(format!("{}/pa/{method}", self.0.api_base));
        let request = request
            .header("X-Viber-Auth-Token", &self.0.bot.token)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.to_string());
        let answered = async { request.send().await?.bytes().await }.await;
        let status =
            answered.ok().and_then(|answer| serde_json::from_slice::<Value>(&answer).ok()?.get("status")?.as_i64());
        let name = status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
        *self.book().stats.calls.entry(name).or_default() += 1;
        status
    }

    /// Answers one message with 1 to 3 sends.
    async fn reply(&self, user: String, n: u64) {
        let mut hasher = FxHasher::default();
        hasher.write(user.as_bytes());
        let mut rng = self.0.dice.roll(Purpose::Reply, hasher.finish(), n);
        let (least, most) = self.0.habits.think;
        for part in 0..rng.random_range(1..=3) {
            self.0.time.sleep(seconds(&mut rng, least, most)).await;
            let mut body = message(self.name(), rng.random_range(0..KINDS));
            body["receiver"] = json!(user);
            if part == 0 && chance(&mut rng, 0.5) {
                body["tracking_data"] = json!(format!("step-{n}"));
            }
            self.call("send_message", &body).await;
        }
        self.book().stats.answered += 1;
    }

    async fn send_promos(&self) {
        for n in 0.. {
            let mut rng = self.0.dice.roll(Purpose::Promo, 0, n);
            self.0.time.sleep(gap(&mut rng, self.0.habits.promos_per_day)).await;
            let Some(user) = self.somebody_quiet(&mut rng) else { continue };
            let mut body = message(self.name(), rng.random_range(0..4));
            body["receiver"] = json!(user);
            self.call("send_message", &body).await;
        }
    }

    async fn send_broadcasts(&self) {
        for n in 0.. {
            let mut rng = self.0.dice.roll(Purpose::Promo, 1, n);
            self.0.time.sleep(gap(&mut rng, self.0.habits.broadcasts_per_day)).await;
            let receivers: Vec<String> = {
                let book = self.book();
                let first = rng.random_range(0..book.users.len().max(1));
                book.users.iter().cycle().skip(first).take(book.users.len().min(MAX_RECEIVERS)).cloned().collect()
            };
            if receivers.is_empty() {
                continue;
            }
            let mut body = message(self.name(), 0);
            body["text"] = json!("News for replace_me_with_user_name");
            body["broadcast_list"] = json!(receivers);
            self.call("broadcast_message", &body).await;
        }
    }

    /// A subscriber who has not written lately, if a few tries find one.
    fn somebody_quiet(&self, rng: &mut impl Rng) -> Option<String> {
        let book = self.book();
        let before_us = self.0.time.now_us() - QUIET_US;
        let mut tries = (0..8).filter_map(|_| book.users.get(rng.random_range(0..book.users.len().max(1))));
        tries.find(|user| book.known.get(*user).is_some_and(|one| !one.gone && one.last_us < before_us)).cloned()
    }

    /// Notes a callback; the user's message to be answered, if it is one and no repeat.
    fn note(&self, callback: &Callback) -> Option<(String, u64)> {
        let mut book = self.book();
        let user = callback.user().unwrap_or_default();
        // Receipts come once per device, all alike: a repeat cannot be told.
        if !["delivered", "seen"].contains(&callback.event.as_str()) && !book.is_new(callback, user) {
            book.stats.repeated += 1;
            return None;
        }
        *book.stats.callbacks.entry(callback.event.clone()).or_default() += 1;
        let now_us = self.0.time.now_us();
        match callback.event.as_str() {
            name @ ("message" | "subscribed") => {
                let is_new = !book.known.contains_key(user);
                let known = book.known.entry(user.to_owned()).or_default();
                known.gone = false;
                if name == "message" {
                    known.messages += 1;
                    known.last_us = now_us;
                }
                let messages = known.messages;
                if is_new {
                    book.users.push(user.to_owned());
                }
                (name == "message").then(|| (user.to_owned(), messages))
            }
            "unsubscribed" => {
                if let Some(known) = book.known.get_mut(user) {
                    known.gone = true;
                }
                None
            }
            _ => None,
        }
    }
}

fn gap(rng: &mut impl Rng, per_day: f64) -> Duration {
    if per_day > 0.0 { exponential(rng, DAY.div_f64(per_day)) } else { Duration::MAX }
}

async fn receive(State(bot): State<DemoBot>, RawQuery(query): RawQuery, headers: HeaderMap, body: Bytes) -> Response {
    let header = headers.get("x-viber-content-signature").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let in_query = || {
        let query = query?;
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.find(|(name, _)| name == "sig").map(|(_, value)| value.into_owned())
    };
    // A demo: nobody measures how long comparing takes.
    if header.or_else(in_query).as_deref() != Some(bot.0.bot.sign(&body).as_str()) {
        bot.book().stats.bad_signatures += 1;
        return StatusCode::FORBIDDEN.into_response();
    }
    let Ok(callback) = serde_json::from_slice::<Callback>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    if let Some((user, n)) = bot.note(&callback) {
        bot.spawn(|bot| async move { bot.reply(user, n).await });
    }
    if callback.event != "conversation_started" {
        return StatusCode::OK.into_response();
    }
    bot.book().stats.welcomed += 1;
    let mut welcome = message(bot.name(), 0);
    welcome["text"] = json!("Welcome! What are you looking for?");
    welcome["tracking_data"] = json!("welcome");
    ([(header::CONTENT_TYPE, "application/json")], welcome.to_string()).into_response()
}
