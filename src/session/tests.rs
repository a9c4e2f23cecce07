//! The fold held against the golden histories, and against itself in every order and split.

use super::row::{MessageRow, SessionRow};
use super::{Policy, PolicyChain, PriceList, Rows, Terms, User, change};
use crate::event::{Disposition, Event, read};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
/// One currency and another, a change within the lives below, and a country without a price.
const PRICES: &str = "country,currency,price,valid_from\nUA,EUR,0.1,\nUA,EUR,0.2,2026-02-04\nPL,USD,0.3,\n";
const POLICIES: [&str; 5] = ["counterbat", "viber-2022", "viber-2024", "gupshup", "vbm"];

fn terms(policy: &str, lateness_ms: i64) -> Terms {
    Terms {
        policies: PolicyChain::always(Policy::named(policy).unwrap()),
        prices: Arc::new(PriceList::parse(PRICES).unwrap()),
        lateness_ms: Some(lateness_ms),
        settle_lateness_ms: lateness_ms,
        delivery_window_ms: 14 * DAY,
    }
}

/// A partition in memory, folding batch by batch as the projector does.
#[derive(Clone, Default)]
struct Partition {
    users: BTreeMap<(String, String), User>,
    watermark_ms: Option<i64>,
    sessions: BTreeMap<Vec<u8>, (String, String, SessionRow)>,
    messages: BTreeMap<(String, String, u64), MessageRow>,
    dispositions: BTreeMap<&'static str, usize>,
    unmatched: u64,
}

impl Partition {
    fn fold(&mut self, batch: &[Event], terms: &Terms, appended_at_us: i64) {
        let start = self.watermark_ms;
        let mut before: BTreeMap<(String, String), User> = BTreeMap::new();
        for event in batch {
            let reading = read(event, appended_at_us);
            let disposition = match (reading.malformed, reading.account, reading.user) {
                (Some(_), ..) => Disposition::Malformed,
                (_, Some(account), Some(user)) => {
                    let key = (account.to_owned(), user.to_owned());
                    let user = self.users.entry(key.clone()).or_default();
                    before.entry(key).or_insert_with(|| user.clone());
                    user.apply(&reading, self.watermark_ms, terms)
                }
                _ => Disposition::Info,
            };
            if !event.is_tick() {
                *self.dispositions.entry(disposition.as_str()).or_default() += 1;
            }
            self.watermark_ms = self.watermark_ms.max(Some(reading.time_ms));
        }
        let watermark_ms = self.watermark_ms.unwrap_or(i64::MIN);
        // Time moves for every user: here none is left out, so timers are not what is tested.
        for (key, user) in &mut self.users {
            let (account, name) = (&key.0, &key.1);
            let old = before.get(key).unwrap_or(user);
            let old = start.map_or(Rows::default(), |start| old.rows(account, name, start, terms));
            let new = user.rows(account, name, watermark_ms, terms);
            for changed in change::sessions(&old, &new) {
                if let Some(row) = changed.before {
                    self.sessions.remove(&row.session_id[..]);
                }
                if let Some(row) = changed.after {
                    self.sessions.insert(row.session_id.to_vec(), (account.clone(), name.clone(), row.clone()));
                }
            }
            for changed in change::messages(&old, &new) {
                if let Some(row) = changed.before {
                    self.messages.remove(&(account.clone(), name.clone(), row.message_token));
                }
                if let Some(row) = changed.after {
                    self.messages.insert((account.clone(), name.clone(), row.message_token), row.clone());
                }
            }
            self.unmatched += user.settle(account, name, watermark_ms, terms);
        }
    }

    /// The rows once time has moved on.
    fn finish(mut self, terms: &Terms) -> Self {
        let time_us = (self.watermark_ms.unwrap_or(0) + 60 * DAY) * 1000;
        let tick = Event { kind: crate::event::TICK_TYPE.into(), time_us: Some(time_us), ..Event::default() };
        self.fold(&[tick], terms, time_us);
        self
    }
}

fn events(history: &str) -> Vec<Event> {
    golden_lines(&format!("{history}/events.ndjson.gz"))
        .map(|line| {
            let value: Value = serde_json::from_str(&line).unwrap();
            let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
            let raw: BTreeMap<String, Box<serde_json::value::RawValue>> = serde_json::from_str(&line).unwrap();
            let time_us =
                text("time").map(|time| chrono::DateTime::parse_from_rfc3339(&time).unwrap().timestamp_micros());
            Event {
                id: text("id").unwrap(),
                source: text("source").unwrap(),
                kind: text("type").unwrap(),
                subject: text("subject"),
                time_us,
                data: raw.get("data").map(|data| data.get().as_bytes().to_vec()).unwrap_or_default(),
                ..Event::default()
            }
        })
        .collect()
}

fn golden_lines(path: &str) -> impl Iterator<Item = String> {
    let file = std::fs::File::open(format!("{}/tests/golden/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text.lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

fn time(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).unwrap().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

fn session_json(account: &str, user: &str, row: &SessionRow) -> Value {
    json!({
        "session_id": hex::encode(row.session_id), "account": account, "user_id": user,
        "country": row.country.as_deref(), "kind": row.kind.as_str(), "opened_at": time(row.opened_at_ms),
        "expires_at": time(row.expires_at_ms), "closed_at": row.closed.map(|(at, _)| time(at)),
        "close_reason": row.closed.map(|(_, reason)| reason.as_str()), "opened_by_token": row.opened_by_token,
        "inbound": row.inbound, "outbound": row.outbound, "delivered": row.delivered, "seen": row.seen,
        "failed": row.failed, "charged": row.charged, "overcharged": row.overcharged,
        "first_response_ms": row.first_response_ms, "last_event_at": time(row.last_event_at_ms),
        "policy": row.policy.as_str(),
    })
}

fn message_json(account: &str, user: &str, row: &MessageRow) -> Value {
    json!({
        "account": account, "user_id": user, "message_token": row.message_token,
        "session_id": row.session_id.map(hex::encode), "sent_at": time(row.sent_at_ms), "method": row.method.as_str(),
        "message_type": row.message_type.as_deref(), "tracking_data": row.tracking_data.as_deref(),
        "expected": row.expected.as_str(), "billing_status": row.billing_status,
        "billing_inferred": row.method == super::row::Method::Broadcast, "verdict": row.verdict.as_str(),
        "delivered_at": row.delivered_at_ms.map(time), "seen_at": row.seen_at_ms.map(time),
        "failed_at": row.failed_at_ms.map(time), "country": row.country.as_deref(), "policy": row.policy.as_str(),
    })
}

fn sorted(rows: impl Iterator<Item = Value>) -> Vec<String> {
    let mut rows: Vec<String> = rows.map(|row| row.to_string()).collect();
    rows.sort();
    rows
}

fn assert_golden(history: &str, policy: &str, partition: &Partition) {
    let golden = |table: &str| {
        sorted(golden_lines(&format!("{history}/{table}.{policy}.ndjson.gz")).map(|line| {
            let row: Value = serde_json::from_str(&line).unwrap();
            row
        }))
    };
    let sessions = sorted(partition.sessions.values().map(|(account, user, row)| session_json(account, user, row)));
    let messages = sorted(partition.messages.iter().map(|(key, row)| message_json(&key.0, &key.1, row)));
    for (name, ours, theirs) in [("sessions", sessions, golden("sessions")), ("messages", messages, golden("messages"))]
    {
        for (our, their) in ours.iter().zip(&theirs) {
            assert_eq!(our, their, "{history} {policy} {name}");
        }
        assert_eq!(ours.len(), theirs.len(), "{history} {policy} {name}");
    }
    let path = format!("{}/tests/golden/{history}/totals.{policy}.json", env!("CARGO_MANIFEST_DIR"));
    let totals: BTreeMap<String, usize> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (name, count) in totals.iter().filter_map(|(name, count)| Some((name.strip_prefix("disposition.")?, *count))) {
        assert_eq!(partition.dispositions.get(name).copied().unwrap_or(0), count, "{history} {policy} {name}");
    }
}

fn check_history(history: &str, lateness_ms: i64) {
    let events = events(history);
    let now_us = events.iter().filter_map(|event| event.time_us).max().unwrap() + 1;
    for policy in POLICIES {
        let terms = terms(policy, lateness_ms);
        let mut partition = Partition::default();
        for batch in events.chunks(events.len() / 20 + 1) {
            partition.fold(batch, &terms, now_us);
        }
        assert_golden(history, policy, &partition.finish(&terms));
    }
}

#[test]
fn golden_small() {
    check_history("small", 3 * DAY);
}

#[test]
fn golden_busy() {
    check_history("busy", 3 * DAY);
}

#[test]
fn golden_chatty() {
    check_history("chatty", 3 * DAY);
}

#[test]
fn golden_tangled() {
    check_history("tangled", 30 * DAY);
}

/// A short random life of one or two users, as events in order of time.
fn life() -> impl Strategy<Value = Vec<Event>> {
    let step = (0..8u8, 0..2u8, 0..(30 * HOUR), 0..6u64, proptest::option::of(0..7i32), 0..3u8);
    proptest::collection::vec(step, 1..40).prop_map(|steps| {
        let mut t_ms = 1_770_000_000_000;
        let mut events = Vec::new();
        for (n, (what, user, gap, token, billing, country)) in steps.into_iter().enumerate() {
            t_ms += gap / 7;
            let user = ["a", "b"][usize::from(user)];
            let country = ["UA", "PL", "DE"][usize::from(country)];
            let (kind, data) = match what {
                0 | 1 => (
                    "callback.message",
                    json!({"timestamp": t_ms, "message_token": n,
                    "sender": {"id": user, "country": country}}),
                ),
                2 | 3 => (
                    "api.send_message",
                    json!({"request": {"type": "text", "tracking_data": format!("t{token}")},
                    "response": {"status": 0, "message_token": token, "billing_status": billing}}),
                ),
                4 => ("callback.delivered", json!({"timestamp": t_ms, "message_token": token})),
                5 => ("callback.seen", json!({"timestamp": t_ms, "message_token": token})),
                6 => ("callback.failed", json!({"timestamp": t_ms, "message_token": token, "desc": format!("f{n}")})),
                _ => ("callback.unsubscribed", json!({"timestamp": t_ms, "message_token": n})),
            };
            events.push(Event {
                source: "/accounts/bot".into(),
                kind: format!("com.viber.{kind}"),
                subject: Some(user.into()),
                time_us: Some((t_ms + 250) * 1000),
                data: data.to_string().into_bytes(),
                ..Event::default()
            });
        }
        events
    })
}

const NOW_US: i64 = 1_800_000_000_000_000;

fn run<'a>(batches: impl Iterator<Item = &'a [Event]>, terms: &Terms) -> Partition {
    let mut partition = Partition::default();
    for batch in batches {
        partition.fold(batch, terms, NOW_US);
    }
    partition.finish(terms)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Order of arrival, repeats and the split into batches leave no trace in the rows.
    #[test]
    fn order_repeats_and_splits_do_not_matter(
        (shuffled, straight) in life().prop_flat_map(|events| {
            let twice: Vec<Event> = events.iter().chain(events.iter().take(7)).cloned().collect();
            (Just(twice).prop_shuffle(), Just(events))
        }),
        split in 1..9usize,
        policy in 0..5usize,
    ) {
        let terms = terms(POLICIES[policy], 400 * DAY);
        let expected = run(std::iter::once(&straight[..]), &terms);
        let got = run(shuffled.chunks(split), &terms);
        prop_assert_eq!(&got.sessions, &expected.sessions);
        prop_assert_eq!(&got.messages, &expected.messages);
    }

    /// A short lateness, which forgets on the way, gives the rows of a fold that never forgets, when all is in time.
    #[test]
    fn forgetting_does_not_matter_in_time_order(events in life(), split in 1..9usize, policy in 0..5usize) {
        // Tokens of sends repeat in a life; a repeat after the identity is forgotten is another message by the rules.
        let mut seen = std::collections::HashSet::new();
        let events: Vec<Event> = events
            .into_iter()
            .filter(|event| {
                let reading = read(event, NOW_US);
                !matches!(reading.fact, Some(crate::event::Fact::Outbound(_))) || seen.insert((event.subject.clone(), reading.token))
            })
            .collect();
        // Receipts before their message would be given up: leave those out.
        let mut sent = std::collections::HashSet::new();
        let events: Vec<Event> = events
            .into_iter()
            .filter(|event| {
                let reading = read(event, NOW_US);
                let key = (event.subject.clone(), reading.token);
                match reading.fact {
                    Some(crate::event::Fact::Outbound(_)) => sent.insert(key),
                    Some(crate::event::Fact::Receipt(..)) => sent.contains(&key),
                    _ => true,
                }
            })
            .collect();
        let short = Terms { settle_lateness_ms: 400 * DAY, ..terms(POLICIES[policy], HOUR) };
        let long = terms(POLICIES[policy], 400 * DAY);
        let expected = run(std::iter::once(&events[..]), &long);
        let got = run(events.chunks(split), &short);
        prop_assert_eq!(&got.sessions, &expected.sessions);
        prop_assert_eq!(&got.messages, &expected.messages);
    }

    /// Stopping anywhere and going on from the encoded state changes nothing.
    #[test]
    fn stop_and_resume_does_not_matter(events in life(), stop in 0..40usize, policy in 0..5usize) {
        let terms = terms(POLICIES[policy], 2 * DAY);
        let expected = run(events.chunks(1), &terms);
        let mut partition = Partition::default();
        for (n, batch) in events.chunks(1).enumerate() {
            if n == stop {
                for user in partition.users.values_mut() {
                    *user = borsh::from_slice(&borsh::to_vec(user).unwrap()).unwrap();
                }
            }
            partition.fold(batch, &terms, NOW_US);
        }
        let got = partition.finish(&terms);
        prop_assert_eq!(&got.sessions, &expected.sessions);
        prop_assert_eq!(&got.messages, &expected.messages);
    }
}

#[test]
fn too_late_changes_nothing_and_is_told() {
    let terms = terms("counterbat", 3 * DAY);
    let inbound = |t_ms: i64, token: u64| Event {
        source: "/accounts/bot".into(),
        kind: "com.viber.callback.message".into(),
        subject: Some("a".into()),
        time_us: Some(t_ms * 1000),
        data: json!({"timestamp": t_ms, "message_token": token}).to_string().into_bytes(),
        ..Event::default()
    };
    let start = 1_770_000_000_000;
    let mut partition = Partition::default();
    partition.fold(&[inbound(start + 3 * DAY, 1)], &terms, NOW_US);
    partition.fold(&[inbound(start, 2)], &terms, NOW_US);
    partition.fold(&[inbound(start + 1, 3)], &terms, NOW_US);
    assert_eq!(partition.dispositions, BTreeMap::from([("fact", 2), ("too_late", 1)]));
    assert_eq!(partition.sessions.len(), 2);
}

const START: i64 = 1_770_000_000_000;

fn event(kind: &str, t_ms: i64, data: Value) -> Event {
    Event {
        source: "/accounts/bot".into(),
        kind: format!("com.viber.{kind}"),
        subject: Some("a".into()),
        time_us: Some(t_ms * 1000),
        data: data.to_string().into_bytes(),
        ..Event::default()
    }
}

fn sent(t_ms: i64, token: u64) -> Event {
    event("api.send_message", t_ms, json!({"request": {}, "response": {"status": 0, "message_token": token}}))
}

fn receipt(kind: &str, t_ms: i64, token: u64) -> Event {
    event(&format!("callback.{kind}"), t_ms, json!({"timestamp": t_ms, "message_token": token}))
}

fn tick(t_ms: i64) -> Event {
    Event { kind: crate::event::TICK_TYPE.into(), time_us: Some(t_ms * 1000), ..Event::default() }
}

#[test]
fn a_receipt_is_given_up_by_time_and_not_by_batch() {
    let terms = terms("counterbat", 3 * DAY);
    let events = [receipt("delivered", START, 7), tick(START + 4 * DAY), sent(START + 4 * DAY, 7)];
    for size in 1..=3 {
        let partition = run(events.chunks(size), &terms);
        let row = partition.messages.values().next().unwrap();
        assert_eq!((row.delivered_at_ms, partition.unmatched), (None, 1), "in batches of {size}");
    }
    let early = [receipt("delivered", START, 7), tick(START + 3 * DAY - 1), sent(START + 3 * DAY - 1, 7)];
    let partition = run(early.chunks(3), &terms);
    assert_eq!(partition.messages.values().next().unwrap().delivered_at_ms, Some(START));
}

#[test]
fn a_receipt_is_known_for_as_long_as_any_fact() {
    let terms = terms("counterbat", 3 * DAY);
    let seen = receipt("seen", START + 17 * DAY - HOUR, 7);
    let events = [sent(START, 7), seen.clone(), tick(START + 17 * DAY + 1), seen, tick(START + 30 * DAY)];
    for size in [1, 2, 5] {
        let partition = run(events.chunks(size), &terms);
        assert_eq!(partition.dispositions, BTreeMap::from([("fact", 2), ("duplicate", 1)]), "in batches of {size}");
        assert!(partition.users.values().all(User::is_empty), "something is kept for ever");
    }
    // Another device, when the first copy is forgotten, begins the identity anew.
    let days = [0, 4, 5].map(|days| receipt("delivered", START + days * DAY, 7));
    let events = [&[sent(START, 7)], &days[..]].concat();
    for size in [1, 4] {
        let partition = run(events.chunks(size), &terms);
        assert_eq!(partition.dispositions, BTreeMap::from([("fact", 3), ("duplicate", 1)]), "in batches of {size}");
        assert_eq!(partition.messages.values().next().unwrap().delivered_at_ms, Some(START));
    }
}

/// The cost of every message, by token, and of every session, in order of its opening.
fn costs(partition: &Partition) -> (Vec<String>, Vec<String>) {
    let told = |cost: Option<super::money::Money>| cost.map_or("none".to_owned(), |cost| cost.to_string());
    let mut sessions: Vec<&SessionRow> = partition.sessions.values().map(|(_, _, row)| row).collect();
    sessions.sort_by_key(|row| row.opened_at_ms);
    let messages = partition.messages.values().map(|row| told(row.cost)).collect();
    (messages, sessions.into_iter().map(|row| told(row.cost)).collect())
}

fn charged(t_ms: i64, token: u64) -> Event {
    let response = json!({"status": 0, "message_token": token, "billing_status": 5});
    event("api.send_message", t_ms, json!({"request": {}, "response": response}))
}

fn inbound_from(country: &str, t_ms: i64, token: u64) -> Event {
    let sender = json!({"id": "a", "country": country});
    event("callback.message", t_ms, json!({"timestamp": t_ms, "message_token": token, "sender": sender}))
}

#[test]
fn a_message_is_charged_as_the_policy_of_its_session_says() {
    let (delivered, sent) = (Policy::named("viber-2024").unwrap(), Policy::named("vbm").unwrap());
    let policies = PolicyChain::new(delivered, vec![(START + HOUR, sent)]);
    let terms = Terms { policies, ..terms("vbm", 3 * DAY) };
    let events = [
        inbound_from("UA", START, 1),
        // In a session that began under the first policy, then out of any under the second.
        charged(START + 2 * HOUR, 2),
        charged(START + 2 * HOUR, 3),
        charged(START + 25 * HOUR, 4),
        receipt("delivered", START + 26 * HOUR, 3),
    ];
    let (messages, sessions) = costs(&run(events.chunks(2), &terms));
    assert_eq!(messages, ["0.000000", "0.100000", "0.100000"]);
    assert_eq!(sessions, ["0.100000"]);
}

#[test]
fn a_session_costs_what_its_messages_do_if_that_has_a_sum() {
    let terms = terms("vbm", 3 * DAY);
    let feb_4 = 1_770_163_200_000;
    let start = feb_4 - 2 * HOUR;
    let told = |tail: &[Event]| {
        let head = [inbound_from("UA", start, 1), charged(start + HOUR, 2), charged(feb_4, 3)];
        let (messages, sessions) = costs(&run(std::iter::once(&[&head[..], tail].concat()[..]), &terms));
        (messages.join(" "), sessions.join(" "))
    };
    assert_eq!(told(&[]), ("0.100000 0.200000".into(), "0.300000".into()));
    let elsewhere = |country, t_ms| [inbound_from(country, t_ms, 4), charged(t_ms + 1, 5)];
    let poland = told(&elsewhere("PL", feb_4 + HOUR));
    assert_eq!(poland, ("0.100000 0.200000 0.300000".into(), "none".into()), "two currencies");
    let nowhere = told(&elsewhere("DE", feb_4 + HOUR));
    assert_eq!(nowhere, ("0.100000 0.200000 none".into(), "none".into()), "no price");
}
