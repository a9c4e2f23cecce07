//! The double itself: its bots, and what users and bots do to each other.

use super::Pace;
use super::act::{Act, ActError, Acted, BotError};
use super::bot::{Bot, BotInfo, BotState, NewBot, Webhook};
use super::code::{Code, Refusal};
use super::delivery::{Courier, Delivery};
use super::dice::{Dice, Purpose};
use super::event::{self, Content, Event};
use super::faults::{FaultSwitch, Faults};
use super::ledger::{Attempt, Call, Callback, Ledger, Receiver};
use super::message::{self, Message};
use super::receipts::{self, ReceiptRates};
use super::retry::RetrySchedule;
use super::schedule::{Job, Schedule};
use super::time::SandboxTime;
use super::token::Tokens;
use super::user::{NewUser, User, UserInfo};
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

/// A callback to be told.
struct Told {
    event: Event,
    token: u64,
    at_us: i64,
    body: String,
    opens_session: bool,
    lost: bool,
    first: Option<oneshot::Sender<Attempt>>,
}

#[derive(Default)]
struct Bots {
    all: Vec<Arc<Bot>>,
    by_name: FxHashMap<Arc<str>, Arc<Bot>>,
    by_token: FxHashMap<String, Arc<Bot>>,
}

/// The double. Shared by all its tasks.
pub(super) struct Double {
    pub time: SandboxTime,
    pub dice: Dice,
    pub tokens: Tokens,
    pub ledger: Ledger,
    pub faults: FaultSwitch,
    pub schedule: Schedule,
    pub courier: Courier,
    pub retries: RetrySchedule,
    receipts: ReceiptRates,
    bots: RwLock<Bots>,
}

impl Double {
    /// Without bots.
    pub fn new(time: SandboxTime, seed: u64, pace: Pace, ledger_entries: usize, courier: Courier) -> Self {
        let dice = Dice::new(seed);
        Self {
            time,
            tokens: Tokens::default(),
            ledger: Ledger::new(ledger_entries),
            faults: FaultSwitch::new(dice.clone()),
            dice,
            schedule: Schedule::default(),
            courier,
            retries: pace.retries,
            receipts: pace.receipts,
            bots: RwLock::default(),
        }
    }

    /// Adds a bot.
    pub fn add_bot(&self, new: NewBot, lanes: Vec<UnboundedSender<Box<Delivery>>>) -> Result<BotInfo, BotError> {
        let mut bots = self.bots.write().unwrap_or_else(PoisonError::into_inner);
        if new.name.is_empty() || new.name.chars().count() > 75 {
            return Err(BotError::BadName);
        }
        if new.token.as_ref().is_some_and(|token| token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(BotError::BadToken(new.name));
        }
        if bots.by_name.contains_key(new.name.as_str()) {
            return Err(BotError::NameTaken(new.name));
        }
        let bot = Arc::new(Bot::new(&self.dice, bots.all.len() as u64, new, lanes));
        if bots.by_token.contains_key(&bot.token) {
            return Err(BotError::TokenTaken(bot.name.to_string()));
        }
        bots.by_name.insert(bot.name.clone(), bot.clone());
        bots.by_token.insert(bot.token.clone(), bot.clone());
        let info = bot.info(self.time.now_ms());
        bots.all.push(bot);
        Ok(info)
    }

    /// All bots, in order of making.
    pub fn bots(&self) -> Vec<Arc<Bot>> {
        self.bots.read().unwrap_or_else(PoisonError::into_inner).all.clone()
    }

    /// The bot of that name.
    pub fn bot(&self, name: &str) -> Result<Arc<Bot>, ActError> {
        let bots = self.bots.read().unwrap_or_else(PoisonError::into_inner);
        bots.by_name.get(name).cloned().ok_or_else(|| ActError::NoBot(name.to_owned()))
    }

    /// The bot with that token.
    pub fn bot_with_token(&self, token: &str) -> Option<Arc<Bot>> {
        self.bots.read().unwrap_or_else(PoisonError::into_inner).by_token.get(token).cloned()
    }

    /// Adds `count` users to a bot.
    pub fn add_users(&self, bot: &Bot, count: usize, new: &NewUser) -> Vec<UserInfo> {
        let mut state = bot.state();
        let now_ms = self.time.now_ms();
        let add = |_| {
            let user = User::new(&self.dice, (bot.number << 32) | state.order.len() as u64, new.clone());
            let info = user.info(now_ms);
            state.order.push(user.profile.id.clone());
            state.users.insert(user.profile.id.clone(), user);
            info
        };
        (0..count).map(add).collect()
    }

    /// A user does something. `first` is told of the first attempt to tell the bot.
    pub fn act(
        &self,
        bot: &Arc<Bot>,
        user: &str,
        act: Act,
        first: Option<oneshot::Sender<Attempt>>,
    ) -> Result<Acted, ActError> {
        let mut state = bot.state();
        let webhook = state.webhook.clone();
        // Under the lock, so that the order of timestamps is the order of what happens.
        let at_us = self.time.now_us();
        let at_ms = at_us.div_euclid(1000);
        let missing = || ActError::NoUser { bot: bot.name.to_string(), user: user.to_owned() };
        let user = state.users.get_mut(user).ok_or_else(missing)?;
        let mut opened = false;
        let mut lost = false;
        let id = user.profile.id.to_string();
        let (event, token, body) = match act {
            Act::Start { context } => {
                let token = self.tokens.next(at_ms);
                let (profile, context) = (&user.profile, context.as_deref());
                let body = event::conversation_started(at_ms, token, profile, context, user.subscribed);
                (Event::ConversationStarted, token, body)
            }
            Act::Subscribe if user.subscribed => return Err(ActError::Subscribed(id)),
            Act::Subscribe => {
                user.subscribed = true;
                user.forget();
                let token = self.tokens.next(at_ms);
                (Event::Subscribed, token, event::subscribed(at_ms, token, &user.profile))
            }
            Act::Unsubscribe if !user.subscribed => return Err(ActError::NotSubscribed(id)),
            Act::Unsubscribe => {
                user.unsubscribe();
                let token = self.tokens.next(at_ms);
                (Event::Unsubscribed, token, event::unsubscribed(at_ms, token, &user.profile))
            }
            Act::Write(_) | Act::Press { .. } => {
                let mut content = match act {
                    Act::Write(content) => content,
                    Act::Press { pick, or } => match user.buttons.get(pick % user.buttons.len().max(1)) {
                        Some(action) => Content::text(action),
                        None => or,
                    },
                    _ => Content::default(),
                };
                content.tracking_data = user.tracking_data.take();
                opened = user.wrote(at_ms);
                if opened {
                    self.ledger.session_opened();
                    lost = self.faults.loses_opening();
                }
                let token = self.tokens.next(at_ms);
                (Event::Message, token, event::message(at_ms, token, &user.profile, &content))
            }
            Act::See => {
                let token = user.unread.take().ok_or(ActError::NothingToSee(id))?;
                (Event::Seen, token, event::receipt(Event::Seen, at_ms, token, &user.profile.id))
            }
        };
        let told = Told { event, token, at_us, body, opens_session: opened, lost, first };
        let told = self.tell(bot, webhook.as_deref(), user, told);
        Ok(Acted { message_token: token, timestamp: at_ms, opened_session: opened, told })
    }

    /// A bot's message to one user: what it is billed as and whether that is wrong on purpose, or the refusal.
    pub fn send(
        &self,
        bot: &Arc<Bot>,
        state: &mut BotState,
        receiver: &str,
        message: &Message,
        sending: Sending,
    ) -> Result<(u8, bool), Refusal> {
        let Sending { token, at_us, misbill, .. } = sending;
        let at_ms = at_us.div_euclid(1000);
        let user = state.users.get_mut(receiver).ok_or(Code::RECEIVER_NOT_REGISTERED)?;
        if !user.subscribed {
            return Err(Code::RECEIVER_NOT_SUBSCRIBED.into());
        }
        if message.min_api_version > user.profile.api_version {
            return Err(Code::API_VERSION_NOT_SUPPORTED.into());
        }
        if !sending.is_broadcast && !user.takes_one_more(at_ms) {
            return Err(Code::TOO_MANY_REQUESTS.into());
        }
        let mut billing_status = state.account.bill(user.session, message.inline, at_ms)?;
        let misbilled = misbill && billing_status == 2;
        if misbilled {
            billing_status = state.account.charge();
        }
        if !sending.is_broadcast {
            user.count_one_more(at_ms);
        } else {
            user.sent += 1;
        }
        if let Some(tracking_data) = &message.tracking_data {
            user.tracking_data = Some(personal(tracking_data, user));
        }
        if let Some(buttons) = &message.buttons {
            user.buttons = buttons.iter().map(|action| personal(action, user)).collect();
        }
        self.plan_receipts(bot, user, token, at_us);
        Ok((billing_status, misbilled))
    }

    fn plan_receipts(&self, bot: &Arc<Bot>, user: &User, token: u64, at_us: i64) {
        let mut rng = self.dice.roll(Purpose::Receipts, user.number, user.sent);
        let receipts = receipts::draw(&mut rng, &self.receipts, user.profile.devices);
        let put = |after: Duration, job| {
            self.schedule.put(at_us.saturating_add(i64::try_from(after.as_micros()).unwrap_or(i64::MAX)), job);
        };
        let id = &user.profile.id;
        let receipt = |event| Job::Receipt { bot: bot.clone(), user: id.clone(), token, event };
        receipts.failed.into_iter().for_each(|after| put(after, receipt(Event::Failed)));
        receipts.delivered.into_iter().for_each(|after| put(after, receipt(Event::Delivered)));
        receipts.looked.into_iter().for_each(|after| put(after, Job::Look { bot: bot.clone(), user: id.clone() }));
    }

    /// Does what was due at `at_us`.
    pub fn perform(&self, at_us: i64, job: Job) {
        match job {
            Job::Deliver(delivery) => {
                let lanes = &delivery.bot.lanes;
                if let Some(lane) = lanes.get(delivery.lane % lanes.len().max(1)) {
                    // A lane ends with the sandbox only.
                    let _ = lane.clone().send(delivery);
                }
            }
            Job::Receipt { bot, user, token, event } => {
                self.tell_receipt(&bot, &user, at_us, event, |user| {
                    if event == Event::Delivered {
                        user.unread = user.unread.max(Some(token));
                    }
                    Some(token)
                });
            }
            Job::Look { bot, user } => self.tell_receipt(&bot, &user, at_us, Event::Seen, |user| user.unread.take()),
        }
    }

    fn tell_receipt(
        &self,
        bot: &Arc<Bot>,
        user: &str,
        at_us: i64,
        event: Event,
        token: impl FnOnce(&mut User) -> Option<u64>,
    ) {
        let mut state = bot.state();
        let webhook = state.webhook.clone();
        let Some(user) = state.users.get_mut(user) else { return };
        let Some(token) = token(user) else { return };
        let body = event::receipt(event, at_us.div_euclid(1000), token, &user.profile.id);
        let told = Told { event, token, at_us, body, opens_session: false, lost: false, first: None };
        self.tell(bot, webhook.as_deref(), user, told);
    }

    /// Writes a callback into the ledger and sends it on its way, where the webhook asked for it. Whether it will be tried.
    fn tell(&self, bot: &Arc<Bot>, webhook: Option<&Webhook>, user: &User, told: Told) -> bool {
        if !webhook.is_some_and(|webhook| webhook.event_types.contains(&told.event)) {
            return false;
        }
        let body = Bytes::from(told.body);
        let id = user.profile.id.clone();
        let line = self.ledger.told(Callback {
            bot: bot.name.clone(),
            event: told.event,
            message_token: told.token,
            user: Some(id.clone()),
            timestamp_ms: told.at_us.div_euclid(1000),
            body: body.clone(),
            opens_session: told.opens_session,
            lost: told.lost,
            attempts: Vec::new(),
            acknowledged: false,
        });
        if told.lost {
            return false;
        }
        let delivery = Delivery {
            bot: bot.clone(),
            event: told.event,
            user: id,
            lane: user.number as usize,
            line,
            signature: bot.sign(&body),
            body,
            failed: 0,
            first: told.first,
        };
        self.schedule.put(told.at_us, Job::Deliver(Box::new(delivery)));
        true
    }

    /// Takes the answer to `conversation_started` as the welcome message, where it is one.
    pub fn welcome(&self, bot: &Arc<Bot>, user: &Arc<str>, answer: &[u8]) {
        let Ok(serde_json::Value::Object(body)) = serde_json::from_slice(answer) else { return };
        // Bots answer with all sorts of things; what names a type is meant as a message.
        if !body.contains_key("type") {
            return;
        }
        let read = message::read(&body);
        let mut state = bot.state();
        let at_ms = self.time.now_ms();
        if let (Ok(message), Some(user)) = (&read, state.users.get_mut(user)) {
            user.tracking_data = message.tracking_data.as_ref().map(|tracking_data| personal(tracking_data, user));
            user.buttons = message.buttons.clone().unwrap_or_default();
        }
        let status = read.map_or_else(|refusal| refusal.status, |_| 0);
        self.ledger.called(Call {
            bot: Some(bot.name.clone()),
            method: "welcome_message",
            receivers: vec![Receiver { id: user.clone(), status, billing_status: None, misbilled: false }],
            status: Some(status),
            http_status: None,
            message_token: None,
            billing_status: None,
            decided_at_ms: at_ms,
            cut: false,
        });
    }

    /// Switches all faults.
    pub fn set_faults(&self, faults: Faults) {
        tracing::info!(?faults, "faults switched");
        self.faults.set(faults);
    }
}

/// How a message goes out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sending {
    pub token: u64,
    pub at_us: i64,
    /// The fault: an in-session message of a billable bot is charged.
    pub misbill: bool,
    pub is_broadcast: bool,
}

/// A text with the placeholders of broadcasts filled in.
fn personal(text: &str, user: &User) -> String {
    if !text.contains("replace_me_with_") {
        return text.to_owned();
    }
    let id: &str = &user.profile.id;
    let encoded: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    text.replace("replace_me_with_receiver_id", id)
        .replace("replace_me_with_url_encoded_receiver_id", &encoded)
        .replace("replace_me_with_user_name", &user.profile.name)
}
