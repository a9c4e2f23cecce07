//! A running `counterbat sandbox`: what its users do, and what it took and told.

use super::harness::{Reply, TOKEN, http, request};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// The name of its bot.
pub const BOT: &str = "shop";

/// A sandbox with one bot that has the token of account `bot1`, and users who do only what they are told. Killed when
/// dropped.
pub struct Double {
    child: Child,
    /// In place of `https://chatapi.viber.com`.
    pub url: String,
    /// Ids of the users.
    pub users: Vec<String>,
}

impl Double {
    /// With this many users; everything goes `speed` times faster than real time.
    pub fn start(users: usize, speed: u32) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_counterbat"))
            .args(["sandbox", "--listen", "127.0.0.1:0", "--bots", "0", "--quiet-users", "--speed", &speed.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        let url = first.strip_prefix("sandbox ").unwrap_or_else(|| panic!("the sandbox says: {first}")).to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        let mut double = Double { child, url, users: Vec::new() };
        double.control("bots", &json!({"name": BOT, "token": TOKEN}));
        let user = json!({"name": "Olena", "country": "UA", "language": "uk", "api_version": 10, "devices": 1});
        let made = double.control("users", &json!({"bot": BOT, "count": users, "user": user}));
        let ids = made.as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap().to_owned());
        double.users = ids.collect();
        double
    }

    fn control(&self, path: &str, body: &Value) -> Value {
        let reply = request(http().post(format!("{}/sandbox/{path}", self.url)).body(body.to_string()));
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text());
        serde_json::from_slice(&reply.body).unwrap()
    }

    /// A user does something; the answer to the first attempt to tell the bot.
    pub fn try_act(&self, user: &str, action: &str, more: &Value) -> Reply {
        let mut deed = json!({"bot": BOT, "user": user, "action": action, "wait": true});
        deed.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request(http().post(format!("{}/sandbox/act", self.url)).body(deed.to_string()))
    }

    /// A user does something that is possible, and the bot takes it at once: its token.
    pub fn act(&self, user: &str, action: &str, more: &Value) -> String {
        let reply = self.try_act(user, action, more);
        let done: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(done["first_attempt"]["http_status"], 200, "{action} {more}: {done}");
        done["message_token"].to_string()
    }

    /// Switches all faults.
    pub fn set_faults(&self, faults: &Value) {
        let reply = request(http().put(format!("{}/sandbox/faults", self.url)).body(faults.to_string()));
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// Lines of the ledger of a kind: `calls` or `callbacks`.
    pub fn ledger(&self, kind: &str) -> Vec<Value> {
        let reply = request(http().get(format!("{}/sandbox/ledger?kind={kind}", self.url)));
        reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
