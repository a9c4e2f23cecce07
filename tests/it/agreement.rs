//! The sandbox bills by its rules, the fold judges by ours: they agree to the message, and where they do not, the
//! sandbox's ledger says why.
//!
//! `TEST_LONG=1` runs for an hour at 100 times real time instead of 40 seconds at 7200; `TEST_SECONDS` and `TEST_SEED`
//! set their own.

use super::demo::Demo;
use super::harness::{Home, http, request, until};
use super::viber::{is_long, seed};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const DAY_MS: i64 = 86_400_000;

/// What there is to say of a verdict.
const AGREED: &str = "agreed";
const MISBILLED: &str = "misbilled";
/// `billing_status` of a broadcast is one for the whole list.
const BROADCAST: &str = "one value for a whole broadcast";
const EDGE: &str = "a session began or ended while the answer was on its way";
const LOST: &str = "an opening was lost";

/// Account, user, token.
type Key = (String, String, u64);

/// What the sandbox decided of one message to one user.
#[derive(Debug, Clone, Copy)]
struct Decided {
    at_ms: i64,
    /// Of this receiver, which a broadcast does not tell.
    own: i64,
    /// As answered.
    reported: i64,
    misbilled: bool,
}

/// A row of `messages`.
#[derive(Debug)]
struct Judged {
    sent_ms: i64,
    reported: i64,
    expected: String,
    verdict: String,
}

/// What a user did, in order: ms, and whether it was a message (else the user left) and whether it was told to the bot.
#[derive(Debug, Clone, Copy)]
struct Deed {
    at_ms: i64,
    is_message: bool,
    lost: bool,
}

/// The ledger, as far as billing goes.
#[derive(Default)]
struct Ledger {
    messages: BTreeMap<Key, Decided>,
    deeds: BTreeMap<(String, String), Vec<Deed>>,
}

impl Ledger {
    fn read(sandbox: &str) -> Self {
        let text = request(http().get(format!("{sandbox}/sandbox/ledger"))).text();
        let mut ledger = Ledger::default();
        for line in text.lines() {
            let entry: Value = serde_json::from_str(line).unwrap();
            if entry["kind"] == "call" { ledger.call(&entry) } else { ledger.callback(&entry) }
        }
        ledger
    }

    fn call(&mut self, call: &Value) {
        let is_send = call["method"] == "send_message" || call["method"] == "broadcast_message";
        if !is_send || call["status"] != 0 {
            return;
        }
        for receiver in call["receivers"].as_array().unwrap().iter().filter(|receiver| receiver["status"] == 0) {
            let decided = Decided {
                at_ms: call["decided_at_ms"].as_i64().unwrap(),
                own: receiver["billing_status"].as_i64().unwrap(),
                reported: call["billing_status"].as_i64().unwrap(),
                misbilled: receiver["misbilled"] == true,
            };
            let token = call["message_token"].as_u64().unwrap();
            self.messages.insert((owned(&call["bot"]), owned(&receiver["id"]), token), decided);
        }
    }

    fn callback(&mut self, told: &Value) {
        let is_message = told["event"] == "message";
        if is_message || told["event"] == "unsubscribed" {
            let deed = Deed { at_ms: told["timestamp_ms"].as_i64().unwrap(), is_message, lost: told["lost"] == true };
            self.deeds.entry((owned(&told["bot"]), owned(&told["user"]))).or_default().push(deed);
        }
    }

    /// Windows of a user's sessions, `[start, end)`: by what the user did, or only by what the bot was told of it.
    fn sessions(&self, account: &str, user: &str, with_lost: bool) -> Vec<(i64, i64)> {
        let mut windows: Vec<(i64, i64)> = Vec::new();
        let deeds = self.deeds.get(&(account.to_owned(), user.to_owned())).map_or(&[][..], Vec::as_slice);
        for deed in deeds.iter().filter(|deed| with_lost || !deed.lost) {
            let open = windows.last_mut().filter(|(start, end)| (*start..*end).contains(&deed.at_ms));
            match (deed.is_message, open) {
                (true, None) => windows.push((deed.at_ms, deed.at_ms + DAY_MS)),
                (false, Some((_, end))) => *end = deed.at_ms,
                _ => {}
            }
        }
        windows
    }

    /// What the verdict on a message is, and where it is not `agreed`, or only by chance, why; `None` where the ledger
    /// knows no reason.
    fn reason(&self, (account, user, _): &Key, decided: &Decided, judged: &Judged) -> Option<&'static str> {
        let in_session = decided.misbilled || matches!(decided.own, 1 | 2);
        if (judged.expected == "in_service") == in_session {
            return match judged.verdict.as_str() {
                "agreed" if !decided.misbilled => Some(AGREED),
                "overcharged" if decided.misbilled => Some(MISBILLED),
                _ if decided.own != decided.reported => Some(BROADCAST),
                _ => None,
            };
        }
        let (theirs, ours) = (self.sessions(account, user, true), self.sessions(account, user, false));
        let holds = |windows: &[(i64, i64)], at_ms| windows.iter().any(|(start, end)| (*start..*end).contains(&at_ms));
        let mut edges = theirs.iter().chain(&ours).flat_map(|(start, end)| [*start, *end]);
        match () {
            () if edges.any(|edge| (decided.at_ms..=judged.sent_ms).contains(&edge)) => Some(EDGE),
            () if holds(&theirs, decided.at_ms) != holds(&ours, judged.sent_ms) => Some(LOST),
            () => None,
        }
    }
}

fn owned(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn messages(home: &Home, data: &str) -> BTreeMap<Key, Judged> {
    let query = "select account, user_id, message_token, sent_at, billing_status, expected, verdict from messages";
    let rows = home.ok(&["--data-dir", data, "sql", "--format", "ndjson", query]);
    let mut messages = BTreeMap::new();
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let sent_at = chrono::DateTime::parse_from_rfc3339(row["sent_at"].as_str().unwrap()).unwrap();
        let judged = Judged {
            sent_ms: sent_at.timestamp_millis(),
            reported: row["billing_status"].as_i64().unwrap(),
            expected: owned(&row["expected"]),
            verdict: owned(&row["verdict"]),
        };
        let token = row["message_token"].as_str().unwrap().parse().unwrap();
        messages.insert((owned(&row["account"]), owned(&row["user_id"]), token), judged);
    }
    messages
}

fn by_status<'a>(all: impl Iterator<Item = (&'a Key, i64)>) -> BTreeMap<(&'a str, i64), u64> {
    let mut counts = BTreeMap::new();
    for ((account, ..), status) in all {
        *counts.entry((account.as_str(), status)).or_default() += 1;
    }
    counts
}

/// Runs a demo with these faults for a while: what the ledger says of the verdicts, counted.
fn verdicts(misbill: f64, lost_openings: f64) -> BTreeMap<&'static str, u64> {
    let (seconds, speed) = if is_long() { (3_600, "100") } else { (40, "7200") };
    let seconds = std::env::var("TEST_SECONDS").map_or(seconds, |text| text.parse().expect("TEST_SECONDS"));
    // What the demo has appended but not folded when it ends, the command that reads it folds: under the same rules.
    let home = Home::new(&[r#"fold.policy = "viber-2022""#]);
    let data = home.path("demo").to_str().unwrap().to_owned();
    let (seed, share) = (seed().to_string(), misbill.to_string());
    let args = ["--data-dir", &data, "--seed", &seed, "--speed", speed, "--users", "60", "--misbilled", &share];
    let mut demo = Demo::start(&home, &args);
    let set = |faults: Value| {
        let put = http().put(format!("{}/sandbox/faults", demo.sandbox)).body(faults.to_string());
        assert_eq!(request(put).status, 200);
    };
    set(json!({ "misbill": misbill, "lost_openings": lost_openings }));
    std::thread::sleep(Duration::from_secs(seconds));
    // From now on nothing is accepted, so that both sides come to rest on the same messages.
    set(json!({ "down": true }));
    let counts = || {
        let recorded = demo.sql("select count(*) as n from messages")[0]["n"].as_i64();
        (Ledger::read(&demo.sandbox).messages.len() as i64, recorded.unwrap())
    };
    until("the same messages on both sides", counts, |(accepted, recorded)| accepted == recorded);
    let ledger = Ledger::read(&demo.sandbox);
    assert_eq!(demo.interrupt().code(), Some(0));
    compare(&ledger, &messages(&home, &data))
}

fn compare(ledger: &Ledger, messages: &BTreeMap<Key, Judged>) -> BTreeMap<&'static str, u64> {
    assert!(messages.len() > 500, "hardly any traffic: {} messages", messages.len());
    assert!(messages.keys().eq(ledger.messages.keys()), "not the same messages");
    assert_eq!(
        by_status(messages.iter().map(|(key, judged)| (key, judged.reported))),
        by_status(ledger.messages.iter().map(|(key, decided)| (key, decided.reported))),
        "messages by account and billing_status"
    );
    let mut reasons = BTreeMap::from([AGREED, MISBILLED, BROADCAST, EDGE, LOST].map(|reason| (reason, 0)));
    for (key, judged) in messages {
        let decided = &ledger.messages[key];
        let reason = ledger.reason(key, decided, judged);
        let reason = reason.unwrap_or_else(|| panic!("{key:?}: {judged:?}, but {decided:?}"));
        *reasons.entry(reason).or_default() += 1;
    }
    println!("{} messages: {reasons:?}", messages.len());
    assert!(reasons[EDGE] * 50 < messages.len() as u64, "too many to be chance: {reasons:?}");
    reasons
}

#[test]
fn without_faults_all_verdicts_agree() {
    let reasons = verdicts(0.0, 0.0);
    assert_eq!((reasons[MISBILLED], reasons[LOST]), (0, 0));
}

#[test]
fn faults_are_named_by_the_verdicts() {
    let reasons = verdicts(0.05, 0.2);
    assert!(reasons[MISBILLED] > 0 && reasons[LOST] > 0, "{reasons:?}");
}
