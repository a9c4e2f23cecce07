//! A double of Viber's bot API that obeys Viber's rules, and traffic for it.
//!
//! [`Sandbox::start`] serves the API, tells bots what their users do, and keeps a ledger of all of it. [`traffic`] is users
//! who write, [`demo_bot`] is a bot that answers. All live in one [`time::SandboxTime`], which may run fast, and draw from
//! one seed.
//!
//! Pure: [`billing`], [`message`], [`event`], [`receipts`], [`retry`]. What must be one step is done in [`double`], under
//! the bot's lock.

mod act;
mod answer;
mod api;
pub mod billing;
mod bot;
mod code;
mod control;
mod cut;
mod delivery;
pub mod demo_bot;
mod dice;
mod double;
mod event;
mod faults;
mod ledger;
mod message;
mod methods;
mod offer;
mod receipts;
mod retry;
mod schedule;
pub mod time;
mod token;
pub mod traffic;
mod user;

pub use act::{Act, ActError, Acted, BotError};
pub use bot::{BotInfo, NewBot};
pub use event::{Contact, Content, Event, Location};
pub use faults::Faults;
pub use ledger::{Attempt, Call, Callback, Counts, Entry, Ledger, Lines, Outcome, Receiver, Told};
pub use receipts::ReceiptRates;
pub use retry::RetrySchedule;
pub use token::made_at_ms;
pub use user::{NewUser, Profile, UserInfo};

use axum::Router;
use cut::{CutListener, Cutter};
use delivery::{Courier, run_lane, run_schedule};
use double::Double;
use serde::Serialize;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use time::SandboxTime;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

/// How callbacks go.
#[derive(Debug, Clone)]
pub struct Pace {
    pub retries: RetrySchedule,
    pub receipts: ReceiptRates,
    /// A webhook that has not answered within this (real time) has not taken the callback.
    pub answer_within: Duration,
    /// The signature is in the URL too, as `sig`.
    pub sig_in_url: bool,
    /// Callbacks of one bot under way at once. Those of one user go one after the other.
    pub lanes: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            retries: RetrySchedule::default(),
            receipts: ReceiptRates::default(),
            answer_within: Duration::from_secs(5),
            sig_in_url: false,
            lanes: 32,
        }
    }
}

/// What a sandbox is made of.
pub struct Options {
    pub listener: TcpListener,
    pub time: SandboxTime,
    /// Tokens, users, receipts and faults follow from it.
    pub seed: u64,
    pub pace: Pace,
    /// Lines the ledger keeps.
    pub ledger_entries: usize,
    /// Ends everything when it turns true, or when its sender goes.
    pub stop: watch::Receiver<bool>,
}

impl Options {
    /// As Viber does it, with a ledger of 2 million lines.
    pub fn new(listener: TcpListener, time: SandboxTime, seed: u64, stop: watch::Receiver<bool>) -> Self {
        Self { listener, time, seed, pace: Pace::default(), ledger_entries: 2_000_000, stop }
    }
}

/// Why a sandbox cannot start. The machine's fault; a retry rarely helps.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the sandbox's listener has no address: {0}")]
    Listener(#[from] io::Error),
    #[error("the HTTP client for callbacks cannot be made: {0}")]
    Client(#[from] reqwest::Error),
}

/// Counts of everything, since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Sandbox time, ms since the epoch.
    pub now_ms: i64,
    pub bots: usize,
    pub users: usize,
    pub subscribers: usize,
    /// Receipts to come, and callbacks waiting for their turn or their retry.
    pub scheduled: usize,
    /// Callbacks neither acknowledged nor given up.
    pub outstanding: u64,
    #[serde(flatten)]
    pub counts: Counts,
}

/// A running sandbox. Cheap to clone.
#[derive(Clone)]
pub struct Sandbox {
    double: Arc<Double>,
    base_url: Arc<str>,
    lanes: usize,
    tasks: TaskTracker,
    runtime: Handle,
    stop: watch::Receiver<bool>,
}

impl Sandbox {
    /// Starts serving. Must be called on a tokio runtime.
    pub fn start(options: Options) -> Result<Sandbox, SandboxError> {
        let Options { listener, time, seed, pace, ledger_entries, stop } = options;
        let base_url = format!("http://{}", listener.local_addr()?).into();
        let courier = Courier::new(pace.answer_within, pace.sig_in_url)?;
        let lanes = pace.lanes.max(1);
        let double = Arc::new(Double::new(time, seed, pace, ledger_entries, courier));
        let (tasks, runtime) = (TaskTracker::new(), Handle::current());
        let sandbox = Sandbox { double, base_url, lanes, tasks, runtime, stop };
        sandbox.tasks.spawn(run_schedule(sandbox.double.clone(), sandbox.stop.clone()));
        let mut stop = sandbox.stop.clone();
        let service = sandbox.router().into_make_service_with_connect_info::<Cutter>();
        sandbox.tasks.spawn(async move {
            let served = axum::serve(CutListener(listener), service);
            if let Err(error) = served.with_graceful_shutdown(async move { until_stop(&mut stop).await }).await {
                tracing::error!(%error, "the sandbox's listener failed");
            }
        });
        sandbox.tasks.close();
        Ok(sandbox)
    }

    fn router(&self) -> Router {
        api::router().with_state(self.double.clone()).merge(control::router().with_state(self.clone()))
    }

    /// `http://<address>`: what stands in place of `https://chatapi.viber.com`.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Its clock.
    pub fn time(&self) -> &SandboxTime {
        &self.double.time
    }

    /// Adds a bot.
    pub fn add_bot(&self, new: NewBot) -> Result<BotInfo, BotError> {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..self.lanes).map(|_| mpsc::unbounded_channel()).unzip();
        let info = self.double.add_bot(new, senders)?;
        for deliveries in receivers {
            let lane = run_lane(self.double.clone(), deliveries, self.stop.clone());
            self.tasks.spawn_on(lane, &self.runtime);
        }
        Ok(info)
    }

    /// All bots, in order of making.
    pub fn bots(&self) -> Vec<BotInfo> {
        let now_ms = self.double.time.now_ms();
        self.double.bots().iter().map(|bot| bot.info(now_ms)).collect()
    }

    /// Adds users to a bot, alike but for what is drawn.
    pub fn add_users(&self, bot: &str, count: usize, new: &NewUser) -> Result<Vec<UserInfo>, ActError> {
        Ok(self.double.add_users(&*self.double.bot(bot)?, count, new))
    }

    /// A bot's users, in order of making.
    pub fn users(&self, bot: &str) -> Result<Vec<UserInfo>, ActError> {
        let bot = self.double.bot(bot)?;
        let state = bot.state();
        let now_ms = self.double.time.now_ms();
        Ok(state.order.iter().filter_map(|id| state.users.get(id)).map(|user| user.info(now_ms)).collect())
    }

    /// A user does something.
    pub fn act(&self, bot: &str, user: &str, act: Act) -> Result<Acted, ActError> {
        self.act_and_tell(bot, user, act, None)
    }

    /// A user does something; `first` is told of the first attempt to tell the bot, or dropped where there is none.
    pub fn act_and_tell(
        &self,
        bot: &str,
        user: &str,
        act: Act,
        first: Option<oneshot::Sender<Attempt>>,
    ) -> Result<Acted, ActError> {
        self.double.act(&self.double.bot(bot)?, user, act, first)
    }

    /// The faults that are on.
    pub fn faults(&self) -> Faults {
        self.double.faults.get()
    }

    /// Switches all faults.
    pub fn set_faults(&self, faults: Faults) {
        self.double.set_faults(faults);
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.double.ledger
    }

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        let bots = self.double.bots();
        let (mut users, mut subscribers) = (0, 0);
        for bot in &bots {
            let state = bot.state();
            users += state.users.len();
            subscribers += state.subscribers();
        }
        let counts = self.double.ledger.counts();
        let outstanding = counts.outstanding();
        let scheduled = self.double.schedule.len();
        Stats {
            now_ms: self.double.time.now_ms(),
            bots: bots.len(),
            users,
            subscribers,
            scheduled,
            outstanding,
            counts,
        }
    }

    /// Waits until everything has ended after the stop signal.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

/// Returns once the signal is true or its sender has gone.
async fn until_stop(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender has gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests;
