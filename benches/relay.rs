//! What the gateway costs in the path: sends to Viber and callbacks to a bot, through it, straight, and through nginx as a
//! reverse proxy, under the same wrk, one after the other; sends also without a record of their start (`log.intent`).
//!
//! `cargo bench --bench relay -- [--connections N] [--seconds N]`; needs wrk and nginx (Debian: apt-get install wrk nginx).
//! Viber is the sandbox, the bot an nginx that answers 200.

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[path = "setup/load.rs"]
#[allow(dead_code, reason = "shared by the bench programs")]
mod load;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;

use harness::{Home, Reply, TOKEN, message_body, request, sign};
use load::{Load, Nginx, lua, wrk};
use serde_json::{Value, json};
use setup::number;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// More than Viber lets write to in an hour: each gets few messages.
const USERS: u64 = 20_000;

fn main() {
    let (connections, seconds) = (number("--connections", 64), number("--seconds", 10));
    let sandbox = Sandbox::start();
    let receivers = sandbox.subscribers();
    let files = Home::new(&[]);
    let bot = Nginx::start(&files.path("bot"), "return 200 \"\";");
    let home = Home::new(&[&format!("upstream.url = {:?}", sandbox.url), "relay.allow_private = true"]);
    let server = home.serve();
    let set = json!({ "url": bot.address(), "event_types": [] });
    assert_eq!(call(&server.gateway, "set_webhook", &set)["status"], 0);

    let sends = files.path("sends.lua");
    std::fs::write(&sends, lua(&[("X-Viber-Auth-Token", TOKEN)], receivers.iter().map(|id| (send_body(id), None))))
        .unwrap();
    let callbacks = files.path("callbacks.lua");
    let bodies =
        (0..USERS).map(|n| message_body(&format!("{:016x}==", n % 4096), 6_150_000_000_000_000_000 + n * 7919));
    std::fs::write(
        &callbacks,
        lua(
            &[],
            bodies.map(|body| {
                let signature = sign(TOKEN, &body);
                (body, Some(signature))
            }),
        ),
    )
    .unwrap();

    println!("| what | path | rate | p50 | p99 |\n|---|---|---|---|---|");
    let run = |script, address: &str, path: &str| wrk(script, &format!("{address}{path}"), connections, seconds);
    let proxy = Nginx::proxy(&files.path("to-viber"), &sandbox.url);
    show("sends", "the sandbox, called directly", &run(&sends, &sandbox.url, "/pa/send_message"), None);
    let reference = run(&sends, &proxy.address(), "/pa/send_message");
    show("sends", "nginx as a reverse proxy", &reference, None);
    let plain = Home::new(&[&format!("upstream.url = {:?}", sandbox.url), "log.intent = false"]);
    let without = plain.serve();
    let recorded = run(&sends, &without.gateway, "/pa/send_message");
    show("sends", "counterbat: recorded with its answer, log.intent = false", &recorded, Some(&reference));
    assert!(without.stop().success());
    let recorded = run(&sends, &server.gateway, "/pa/send_message");
    show("sends", "counterbat: its start recorded as well", &recorded, Some(&reference));
    for row in server.sql("select type, count(*) as n, avg(octet_length(data)) as bytes from events group by type") {
        println!("{row}");
    }
    drop(proxy);
    let proxy = Nginx::proxy(&files.path("to-bot"), &bot.address());
    show("callbacks", "the bot, called directly", &run(&callbacks, &bot.address(), "/webhooks/bot1"), None);
    let reference = run(&callbacks, &proxy.address(), "/webhooks/bot1");
    show("callbacks", "nginx as a reverse proxy", &reference, None);
    show(
        "callbacks",
        "counterbat: verified, durable, handed on",
        &run(&callbacks, &server.gateway, "/webhooks/bot1"),
        Some(&reference),
    );
    println!("{} events are in SQL", server.number("select count(*) from events"));
    assert!(server.stop().success());
}

fn show(what: &str, path: &str, load: &Load, reference: Option<&Load>) {
    let ratio = reference.map_or(String::new(), |reference| format!(" ({:.2} of nginx)", load.rate / reference.rate));
    println!("| {what} | {path} | {:.0}/s{ratio} | {} | {} |", load.rate, load.p50, load.p99);
}

fn send_body(receiver: &str) -> String {
    json!({"receiver": receiver, "type": "text", "text": "Your order is on its way", "sender": {"name": "Shop"}})
        .to_string()
}

fn call(base: &str, method: &str, body: &Value) -> Value {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{base}/pa/{method}");
    json_of(&request(http.post(url).header("X-Viber-Auth-Token", TOKEN).body(body.to_string())))
}

fn json_of(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_else(|_| panic!("no JSON: {}", reply.text()))
}

/// The Viber double, with one bot whose token is that of `bot1`.
struct Sandbox {
    child: Child,
    url: String,
}

impl Sandbox {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_counterbat"))
            .args(["sandbox", "--listen", "127.0.0.1:0", "--bots", "0", "--quiet-users"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        let url = line.strip_prefix("sandbox ").unwrap_or_else(|| panic!("no address: {line}")).to_owned();
        let sandbox = Sandbox { child, url };
        sandbox.control("bots", &json!({"name": "bot1", "token": TOKEN}));
        sandbox
    }

    fn control(&self, what: &str, body: &Value) -> Value {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        json_of(&request(http.post(format!("{}/sandbox/{what}", self.url)).body(body.to_string())))
    }

    /// Ids of users who may be written to.
    fn subscribers(&self) -> Vec<String> {
        let made =
            self.control("users", &json!({"bot": "bot1", "count": USERS, "user": {"subscribed": true, "devices": 1}}));
        made.as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
