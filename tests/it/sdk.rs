//! Viber's own SDKs, unmodified but for the base URL, work through the gateway: bots written on them set a webhook, send,
//! and receive, with the sandbox as Viber.

use super::double::Double;
use super::harness::{Home, PATIENCE, Server, TOKEN, sign, until};
use super::tools::{node, python};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// What the bots send in the step `send`, in order, as `message_type` has it.
const SENT: [Option<&str>; 11] = [
    Some("text"),
    Some("picture"),
    Some("video"),
    Some("file"),
    Some("contact"),
    Some("location"),
    Some("url"),
    Some("sticker"),
    Some("rich_media"),
    Some("text"),
    None,
];
const ALL_TYPES: [&str; 7] =
    ["subscribed", "unsubscribed", "conversation_started", "delivered", "failed", "message", "seen"];

/// What differs between the SDKs.
struct Sdk {
    /// Callbacks give the SDK's users their token.
    tells_tokens_of: &'static [&'static str],
    /// What it asks for when it is told no event types.
    default_types: &'static [&'static str],
    /// It reads tokens in responses as a double.
    rounds_tokens: bool,
    tracking_data: &'static str,
}

const PYTHON: Sdk = Sdk {
    tells_tokens_of: &["conversation_started", "message", "delivered", "seen", "failed"],
    default_types: &ALL_TYPES,
    rounds_tokens: false,
    tracking_data: "order-17",
};
const NODE: Sdk = Sdk {
    tells_tokens_of: &["webhook", "message", "delivered", "seen", "failed"],
    default_types: &["subscribed", "unsubscribed", "conversation_started", "delivered", "message", "seen"],
    rounds_tokens: true,
    tracking_data: r#"{"order":17}"#,
};

/// A bot in another language, killed when dropped.
struct Bot {
    child: Child,
    steps: ChildStdin,
    told: Receiver<Value>,
    /// What it received and nobody asked for yet.
    events: Vec<Value>,
    url: String,
}

impl Bot {
    fn start(mut command: Command, script: &str, base: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sdk").join(script);
        let mut child = command
            .arg(script)
            .args([base, TOKEN])
            .envs([("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (steps, lines) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                tell.send(serde_json::from_str(&line).unwrap_or(Value::String(line))).ok();
            }
        });
        let mut bot = Bot { child, steps, told, events: Vec::new(), url: String::new() };
        bot.url = bot.next()["url"].as_str().unwrap().to_owned();
        bot
    }

    fn next(&mut self) -> Value {
        let next = self.told.recv_timeout(PATIENCE);
        next.unwrap_or_else(|error| panic!("the bot says no more: {error}; before: {:#?}", self.events))
    }

    /// Has it take a step that must succeed: what came of it.
    fn step(&mut self, step: Value) -> Value {
        writeln!(self.steps, "{step}").unwrap();
        loop {
            let mut told = self.next();
            if told.get("event").is_some() {
                self.events.push(told);
                continue;
            }
            assert!(told["error"].is_null() && told["done"] == step[0], "{step}: {told}");
            return told["result"].take();
        }
    }

    /// An event it received or will receive.
    fn event(&mut self, name: &str) -> Value {
        loop {
            if let Some(place) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.remove(place);
            }
            let told = self.next();
            assert!(!["forged", "unparsed"].contains(&told["event"].as_str().unwrap()), "for {name}: {told}");
            self.events.push(told);
        }
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Sandbox, gateway and bot. The sandbox is fast, so that receipts take seconds.
struct World {
    sdk: Sdk,
    viber: Double,
    home: Home,
    server: Server,
    bot: Bot,
}

impl World {
    fn start(sdk: Sdk, command: Command, script: &str) -> Self {
        let viber = Double::start(2, 10);
        let upstream = format!("upstream.url = {:?}", viber.url);
        // The watch makes calls of its own.
        let home = Home::new(&[&upstream, "relay.allow_private = true", r#"gateway.watch_every = "0s""#]);
        let server = home.serve();
        let bot = Bot::start(command, script, &server.gateway);
        World { sdk, viber, home, server, bot }
    }

    /// The next event of that name is of this user and, where the SDK tells it, of this token.
    fn event(&mut self, name: &str, user: Option<&str>, token: Option<&str>) -> Value {
        let event = self.bot.event(name);
        assert_eq!(event["user"].as_str(), user, "{event}");
        if let Some(token) = token.filter(|_| self.sdk.tells_tokens_of.contains(&name)) {
            assert_eq!(event["token"], token, "{event}");
        }
        event
    }

    /// A token of a response, as the SDK has it.
    fn as_answered(&self, token: &Value) -> String {
        let exact = token.as_u64().unwrap();
        // Shortest digits that are the same double, as JavaScript prints it.
        if self.sdk.rounds_tokens { format!("{}", exact as f64) } else { exact.to_string() }
    }

    fn set_webhook(&mut self) {
        let account = self.bot.step(json!(["account"]));
        assert_eq!((&account["name"], &account["webhook"]), (&json!("shop"), &json!("")));
        assert_eq!(self.bot.step(json!(["set_webhook", null])), json!(self.sdk.default_types));
        let validation = self.viber.ledger("callbacks")[0]["message_token"].to_string();
        self.event("webhook", None, Some(&validation));
        let some = json!(["subscribed", "unsubscribed", "message", "seen"]);
        assert_eq!(self.bot.step(json!(["set_webhook", ["seen"]])), some);
        let account = self.bot.step(json!(["account"]));
        assert_eq!((&account["webhook"], &account["event_types"]), (&json!(self.bot.url), &some));
        assert_eq!(self.bot.step(json!(["set_webhook", ALL_TYPES])), json!(ALL_TYPES));
        for _ in 0..2 {
            self.event("webhook", None, None);
        }
    }

    /// A user comes, and gets a welcome message by the SDK's means.
    fn welcome(&mut self) {
        let user = self.viber.users[0].clone();
        let token = self.viber.act(&user, "start", &json!({"context": "campaign=7"}));
        let started = self.event("conversation_started", Some(&user), Some(&token));
        assert_eq!((&started["context"], &started["name"]), (&json!("campaign=7"), &json!("Olena")));
        let calls = self.viber.ledger("calls");
        let welcomes: Vec<&Value> = calls.iter().filter(|call| call["method"] == "welcome_message").collect();
        assert_eq!(welcomes.len(), 1);
        assert_eq!((&welcomes[0]["status"], &welcomes[0]["receivers"][0]["id"]), (&json!(0), &json!(user)));
        let token = self.viber.act(&user, "subscribe", &json!({}));
        self.event("subscribed", Some(&user), Some(&token));
    }

    /// What users send is what the SDK reads.
    fn receive(&mut self) {
        let user = self.viber.users[0].clone();
        let media = "https://media.example/user";
        for content in [
            json!({"type": "text", "text": "Доброго дня"}),
            json!({"type": "picture", "media": media, "thumbnail": media, "file_name": "a.jpg", "size": 10, "text": "Look"}),
            json!({"type": "video", "media": media, "thumbnail": media, "file_name": "a.mp4", "size": 10, "duration": 3}),
            json!({"type": "file", "media": media, "file_name": "a.pdf", "size": 10}),
            json!({"type": "contact", "contact": {"name": "Taras", "phone_number": "380441234567"}}),
            json!({"type": "location", "location": {"lat": 50.4501, "lon": 30.5234}}),
            json!({"type": "url", "media": media}),
            json!({"type": "sticker", "sticker_id": 46105}),
        ] {
            let token = self.viber.act(&user, "write", &json!({"message": content}));
            let event = self.event("message", Some(&user), Some(&token));
            let read = without_nulls(&event["message"]);
            assert!(read.len() > 1, "{event}");
            for (name, value) in &read {
                assert_eq!(value, &content[name], "{event}");
            }
        }
    }

    /// All the SDK can send arrives, and the receipts come back.
    fn send(&mut self) {
        let user = self.viber.users[0].clone();
        let tokens = self.bot.step(json!(["send", user]));
        let calls = self.viber.ledger("calls");
        let taken: Vec<&Value> = calls.iter().filter(|call| call["method"] == "send_message").collect();
        assert!(taken.iter().all(|call| call["status"] == 0 && call["receivers"][0]["id"] == json!(user)));
        let exact: Vec<String> = taken.iter().map(|call| self.as_answered(&call["message_token"])).collect();
        assert_eq!(tokens, json!(exact));
        let sent: Vec<String> = taken.iter().map(|call| call["message_token"].to_string()).collect();
        let delivered = self.event("delivered", Some(&user), None);
        assert!(sent.iter().any(|token| delivered["token"] == *token), "{delivered}");
        // Users look by themselves as well; either way there is one.
        let viber = &self.viber;
        let is_seen = || {
            viber.try_act(&user, "seen", &json!({}));
            viber.ledger("callbacks").into_iter().find(|told| told["event"] == "seen")
        };
        let seen = until("a look", is_seen, Option::is_some).unwrap()["message_token"].to_string();
        self.event("seen", Some(&user), Some(&seen));
        let token = self.viber.act(&user, "write", &json!({}));
        let reply = self.event("message", Some(&user), Some(&token));
        let tracking = reply["tracking"].as_str().map_or_else(|| reply["tracking"].to_string(), str::to_owned);
        assert_eq!(tracking, self.sdk.tracking_data, "{reply}");

        self.viber.set_faults(&json!({"unshowable": 1}));
        self.bot.step(json!(["send_one", user]));
        let last = self.viber.ledger("calls").pop().unwrap()["message_token"].to_string();
        let failed = self.event("failed", Some(&user), Some(&last));
        assert!(failed["desc"].as_str().is_some_and(|text| !text.is_empty()), "{failed}");
    }

    /// The other calls.
    fn ask(&mut self) {
        let (user, other) = (self.viber.users[0].clone(), self.viber.users[1].clone());
        let account = self.bot.step(json!(["account"]));
        assert_eq!(account["subscribers_count"], 1);
        let online = self.bot.step(json!(["online", [user, other]]));
        let found: Vec<&Value> = online.as_array().unwrap().iter().map(|one| &one["id"]).collect();
        assert_eq!(found, [&user, &other]);
        assert_eq!(online[0]["online_status_message"], "online");
        let details = self.bot.step(json!(["details", user]));
        assert_eq!(
            (&details["id"], &details["name"], &details["country"]),
            (&json!(user), &json!("Olena"), &json!("UA"))
        );
        let tokens = self.bot.step(json!(["post", account["members"][0]["id"]]));
        let posted = self.viber.ledger("calls").pop().unwrap();
        assert_eq!(tokens, json!([self.as_answered(&posted["message_token"])]));
    }

    /// Afterwards nothing comes any more.
    fn remove_webhook(&mut self) {
        let user = self.viber.users[0].clone();
        let token = self.viber.act(&user, "unsubscribe", &json!({}));
        self.event("unsubscribed", Some(&user), Some(&token));
        assert_eq!(self.bot.step(json!(["remove_webhook"])), json!([]));
        assert_eq!(self.bot.step(json!(["account"]))["webhook"], "");
        let written: Value = serde_json::from_slice(&self.viber.try_act(&user, "write", &json!({})).body).unwrap();
        assert_eq!(written["told"], false);
    }

    /// What the sandbox took and told is in SQL, `extra` callbacks beside it.
    fn check_tables(&self, extra: &[&str]) {
        let wanted = || {
            let mut wanted: BTreeMap<(String, String), i64> = BTreeMap::new();
            let mut count = |origin: &str, name: &str| *wanted.entry((origin.into(), name.into())).or_default() += 1;
            for call in self.viber.ledger("calls") {
                let method = call["method"].as_str().unwrap();
                count("call", method);
                if ["send_message", "broadcast_message"].contains(&method) {
                    count("counterbat", "call.started");
                }
            }
            for told in self.viber.ledger("callbacks").iter().filter(|told| told["acknowledged"] == true) {
                count("callback", told["event"].as_str().unwrap());
            }
            extra.iter().for_each(|event| count("callback", event));
            wanted
        };
        let found = || {
            let rows = self.server.sql("select origin, type, count(*) as n from events group by origin, type");
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let counts =
                rows.iter().map(|row| ((text(&row["origin"]), text(&row["type"])), row["n"].as_i64().unwrap()));
            counts.collect::<BTreeMap<_, _>>()
        };
        let (told, _) = until("all of it in events", || (wanted(), found()), |(wanted, found)| wanted == found);
        // The SDK for Node repeats it in its answers to later callbacks, where it is none.
        assert_eq!(told[&("call".to_owned(), "welcome_message".to_owned())], 1);
        for event in ALL_TYPES.iter().chain(&["webhook"]) {
            assert!(told.contains_key(&("callback".to_owned(), (*event).to_owned())), "no {event} in {told:?}");
        }

        let sent = self.server.sql("select message_token, message_type from messages order by message_token");
        let calls = self.viber.ledger("calls");
        let tokens = calls.iter().filter(|call| call["method"] == "send_message");
        let tokens: Vec<String> = tokens.map(|call| call["message_token"].to_string()).collect();
        let types = SENT.iter().copied().chain([Some("text")]);
        let rows: Vec<Value> = tokens
            .iter()
            .zip(types)
            .map(|(token, kind)| json!({"message_token": token, "message_type": kind}))
            .collect();
        assert_eq!(sent, rows);
        assert!(!self.home.ok(&["export", "-"]).contains(TOKEN));
    }
}

fn without_nulls(members: &Value) -> Map<String, Value> {
    let keep = |value: &Value| !value.is_null();
    let one = |(name, value): (&String, &Value)| {
        let value = if value.is_object() { Value::Object(without_nulls(value)) } else { value.clone() };
        (name.clone(), value)
    };
    members.as_object().unwrap().iter().filter(|(_, value)| keep(value)).map(one).collect()
}

#[test]
fn the_python_sdk_works_unchanged() {
    let mut world = World::start(PYTHON, python(), "python_bot.py");
    world.set_webhook();
    world.welcome();
    world.receive();
    world.send();
    world.ask();
    world.remove_webhook();
    world.check_tables(&[]);
}

#[test]
fn the_node_sdk_works_unchanged() {
    let Some(node) = node() else { return };
    let mut world = World::start(NODE, node, "node_bot.js");
    world.set_webhook();
    world.welcome();
    world.receive();
    world.send();
    // What the sandbox does not do: a callback of a kind that the SDK has no name for.
    let user = world.viber.users[0].clone();
    let body = json!({"event": "client_status", "timestamp": 1_760_000_300_789_u64,
        "message_token": 6_156_997_203_157_921_735_u64, "chat_hostname": "SN-CALLBACK-04_", "user": {"id": user},
        "status": {"type": "payment", "code": 0}})
    .to_string();
    assert_eq!(world.server.callback_signed(&body, &sign(TOKEN, &body)).status, 200);
    assert_eq!(world.event("client_status", Some(&user), None)["token"], "6156997203157921735");
    world.ask();
    world.remove_webhook();
    world.check_tables(&["client_status"]);
}
