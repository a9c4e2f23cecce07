//! A Viber of the tests' own, the sandbox in this process, and a bot that answers as it is told.

use super::harness::{Home, Server, TOKEN, free_port, http, request};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use counterbat::sandbox::time::SandboxTime;
use counterbat::sandbox::{Act, Acted, Callback, Content, Faults, NewBot, NewUser, Options, RetrySchedule, Sandbox};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The bot at the sandbox; the account in the config has its name.
pub const BOT: &str = "bot1";

/// A seed from `TEST_SEED`, else any; printed, so that a run can be made again.
pub fn seed() -> u64 {
    let seed = number("TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}");
    seed
}

/// The number that an environment variable sets.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Whether there is time for the long form.
pub fn is_long() -> bool {
    std::env::var("TEST_LONG").is_ok_and(|text| text == "1")
}

/// The sandbox at real time, with one bot. A callback that was not acknowledged comes again every 200 ms.
pub struct Viber {
    pub sandbox: Sandbox,
    pub users: Vec<String>,
    runtime: Runtime,
    stop: watch::Sender<bool>,
}

impl Viber {
    pub fn start(seed: u64, users: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (stop, stopped) = watch::channel(false);
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let mut options = Options::new(listener, SandboxTime::from_now(1.0), seed, stopped);
        options.pace.retries = RetrySchedule { first: Vec::new(), then: Duration::from_millis(200), retries: 3_000 };
        let sandbox = {
            let _inside = runtime.enter();
            Sandbox::start(options).unwrap()
        };
        sandbox.add_bot(NewBot { token: Some(TOKEN.to_owned()), ..NewBot::named(BOT) }).unwrap();
        let users = sandbox.add_users(BOT, users, &NewUser { api_version: Some(10), ..NewUser::default() }).unwrap();
        let users = users.into_iter().map(|user| user.profile.id.to_string()).collect();
        Viber { sandbox, users, runtime, stop }
    }

    /// A config for a gateway before it, which may reach bots on this machine.
    pub fn home(&self, settings: &[&str]) -> Home {
        let upstream = format!("upstream.url = {:?}", self.sandbox.base_url());
        let mut all = vec![upstream.as_str(), "relay.allow_private = true", r#"fold.policy = "viber-2022""#];
        all.extend(settings);
        Home::new(&all)
    }

    pub fn write(&self, user: &str) -> Acted {
        self.sandbox.act(BOT, user, Act::Write(Content::text("hi"))).unwrap()
    }

    /// All users subscribe, so that they can be written to.
    pub fn subscribe_all(&self) {
        for user in &self.users {
            self.sandbox.act(BOT, user, Act::Subscribe).unwrap();
        }
    }

    pub fn faults(&self, faults: Faults) {
        self.sandbox.set_faults(faults);
    }

    /// User and token of every message it accepted.
    pub fn accepted(&self) -> BTreeSet<(String, u64)> {
        let calls = self.sandbox.ledger().calls().into_iter().filter(|call| call.status == Some(0));
        let to_each = |call: counterbat::sandbox::Call| {
            let token = call.message_token;
            call.receivers
                .into_iter()
                .filter(|receiver| receiver.status == 0)
                .filter_map(move |receiver| Some((receiver.id.to_string(), token?)))
        };
        calls.filter(|call| call.method == "send_message").flat_map(to_each).collect()
    }

    /// Callbacks that it told.
    pub fn callbacks(&self) -> Vec<Callback> {
        self.sandbox.ledger().callbacks()
    }

    /// Starts a bot of its own.
    pub fn bot(&self) -> Bot {
        Bot::start(&self.runtime)
    }
}

impl Drop for Viber {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// How a bot takes its callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Status(u16),
    /// Answers 200 after this.
    Slow(Duration),
}

/// What is told to a bot, and what it got.
#[derive(Clone)]
struct Ear {
    mood: Arc<Mutex<Mood>>,
    got: Arc<Mutex<Vec<u64>>>,
}

async fn hear(State(ear): State<Ear>, body: Bytes) -> StatusCode {
    let callback: Value = serde_json::from_slice(&body).unwrap_or_default();
    ear.got.lock().unwrap().push(callback["message_token"].as_u64().unwrap_or_default());
    let mood = *ear.mood.lock().unwrap();
    match mood {
        Mood::Status(code) => StatusCode::from_u16(code).unwrap(),
        Mood::Slow(pause) => {
            tokio::time::sleep(pause).await;
            StatusCode::OK
        }
    }
}

/// A bot at an address of its own. It can be shut down and opened again.
pub struct Bot {
    port: u16,
    ear: Ear,
    runtime: tokio::runtime::Handle,
    open: Mutex<Option<(watch::Sender<bool>, tokio::task::JoinHandle<()>)>>,
}

impl Bot {
    fn start(runtime: &Runtime) -> Self {
        let ear = Ear { mood: Arc::new(Mutex::new(Mood::Status(200))), got: Arc::default() };
        let bot = Bot { port: free_port(), ear, runtime: runtime.handle().clone(), open: Mutex::default() };
        bot.open();
        bot
    }

    pub fn open(&self) {
        let router = Router::new().route("/bot", post(hear)).with_state(self.ear.clone());
        let (stop, mut stopped) = watch::channel(false);
        let listener = self.runtime.block_on(TcpListener::bind(("127.0.0.1", self.port))).unwrap();
        let served = axum::serve(listener, router).with_graceful_shutdown(async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        });
        let task = self.runtime.spawn(async move { served.await.unwrap() });
        *self.open.lock().unwrap() = Some((stop, task));
    }

    /// Where it listens on this machine, at `/bot`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Nobody listens at its address once this returns.
    pub fn shut(&self) {
        let (stop, task) = self.open.lock().unwrap().take().unwrap();
        stop.send_replace(true);
        self.runtime.block_on(task).unwrap();
    }

    pub fn mood(&self, mood: Mood) {
        *self.ear.mood.lock().unwrap() = mood;
    }

    /// Tokens of what it got, repeats and all.
    pub fn got(&self) -> Vec<u64> {
        self.ear.got.lock().unwrap().clone()
    }

    /// Has itself set as the webhook, through the gateway.
    pub fn register(&self, server: &Server) {
        let url = format!("http://127.0.0.1:{}/bot", self.port);
        let answer = call(&server.gateway, "set_webhook", &json!({ "url": url }));
        assert_eq!(answer.1["status"], 0, "{answer:?}");
    }
}

/// Calls a method through the gateway: HTTP status, and the answer where it is JSON.
pub fn call(gateway: &str, method: &str, body: &Value) -> (u16, Value) {
    let url = format!("{gateway}/pa/{method}");
    let reply = request(http().post(url).header("X-Viber-Auth-Token", TOKEN).body(body.to_string()));
    (reply.status, serde_json::from_slice(&reply.body).unwrap_or_default())
}

/// A message to a user.
pub fn text_to(user: &str) -> Value {
    json!({ "receiver": user, "type": "text", "text": "Your parcel is here", "sender": { "name": "Bot" } })
}

/// The row of `events` that a test looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recorded {
    pub origin: String,
    pub kind: String,
    pub user: Option<String>,
    pub token: Option<u64>,
    /// Viber's, of a call.
    pub status: Option<i64>,
    pub disposition: String,
    pub data: String,
}

/// All of `events`, by way of `sql`.
pub fn recorded(sql: impl Fn(&str) -> Vec<Value>) -> Vec<Recorded> {
    let rows = sql("select origin, type, user_id, message_token, status, disposition, data from events");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let row = |row: Value| Recorded {
        origin: text(&row["origin"]).unwrap(),
        kind: text(&row["type"]).unwrap(),
        user: text(&row["user_id"]),
        token: text(&row["message_token"]).map(|token| token.parse().unwrap()),
        status: row["status"].as_i64(),
        disposition: text(&row["disposition"]).unwrap(),
        data: text(&row["data"]).unwrap(),
    };
    rows.into_iter().map(row).collect()
}
