//! The fold alone, on one core: facts of many users, settled as time moves, all rows at the end; once user by user, and
//! once in order of arrival, where nearly every fact is of another user. Against counting the same facts by user in a
//! hash map, and sorting them by user and time.
//!
//! `cargo bench --bench fold -- [--facts N] [--users N]`

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;

/// As in the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use counterbat::event::{Fact, Method, Origin, Outbound, Reading, Receipt};
use counterbat::session::{Policy, PolicyChain, Terms, User};
use generate::{DAY_MS, Generated, MARCH_MS, Plan, What, account, history, user_id};
use rustc_hash::FxHashMap;
use setup::{number, rate, timed};

fn main() {
    let facts = number("--facts", 10_000_000);
    let users = number("--users", 1_000_000);
    let plan = Plan { seed: 2, events: facts as usize, users, start_ms: MARCH_MS, span_ms: 30 * DAY_MS };
    let events: Vec<Generated> =
        history(&plan).into_iter().filter(|event| !matches!(event.what, What::Started | What::Refused)).collect();
    let ids: Vec<String> = (0..users).map(user_id).collect();
    let facts = events.len() as u64;
    println!("{facts} facts of {users} users, one core");

    let (counted, hash) = timed(|| {
        let mut counts: FxHashMap<&str, u64> = FxHashMap::default();
        for event in &events {
            *counts.entry(ids[event.user as usize].as_str()).or_default() += 1;
        }
        counts.len()
    });
    println!("| count by user in a hash map ({counted} users met) | {} |", rate(facts, hash));
    let mut by_user = events.clone();
    let ((), sort) = timed(|| by_user.sort_unstable_by_key(|event| (event.user, event.t_ms, event.token)));
    println!("| sort by user, time, token | {} |", rate(facts, sort));

    let policy = Policy::named("counterbat").expect("built in");
    let terms = Terms {
        policies: PolicyChain::always(policy),
        prices: Default::default(),
        lateness_ms: Some(3 * DAY_MS),
        settle_lateness_ms: 3 * DAY_MS,
        delivery_window_ms: 14 * DAY_MS,
    };
    let end_ms = events.iter().map(|event| event.arrival_ms).max().unwrap_or(MARCH_MS);
    let ((sessions, messages), took) = timed(|| fold_by_user(&by_user, &ids, &terms, end_ms));
    println!("| fold user by user ({sessions} sessions, {messages} messages unsettled) | {} |", rate(facts, took));
    let ((sessions, messages), took) = timed(|| fold_by_arrival(&events, &ids, &terms));
    println!("| fold by arrival ({sessions} sessions, {messages} messages unsettled) | {} |", rate(facts, took));
}

fn fold_by_user(events: &[Generated], ids: &[String], terms: &Terms, end_ms: i64) -> (usize, usize) {
    let mut rows = (0, 0);
    for facts in events.chunk_by(|a, b| a.user == b.user) {
        let (id, account) = (ids[facts[0].user as usize].as_str(), account(facts[0].user));
        let mut user = User::default();
        let mut watermark_ms = None;
        for event in facts {
            user.apply(&reading(event, account, id), watermark_ms, terms);
            watermark_ms = watermark_ms.max(Some(event.arrival_ms));
        }
        user.settle(account, id, end_ms, terms);
        let found = user.rows(account, id, end_ms, terms);
        rows = (rows.0 + found.sessions.len(), rows.1 + found.messages.len());
    }
    rows
}

fn fold_by_arrival(events: &[Generated], ids: &[String], terms: &Terms) -> (usize, usize) {
    let mut users = vec![User::default(); ids.len()];
    let mut watermark_ms = None;
    for event in events {
        let (id, account) = (ids[event.user as usize].as_str(), account(event.user));
        let user = &mut users[event.user as usize];
        user.apply(&reading(event, account, id), watermark_ms, terms);
        let moved_ms = event.arrival_ms.max(watermark_ms.unwrap_or(i64::MIN));
        watermark_ms = Some(moved_ms);
        user.settle(account, id, moved_ms, terms);
    }
    let mut rows = (0, 0);
    for ((user, id), number) in users.iter().zip(ids).zip(0..) {
        let found = user.rows(account(number), id, watermark_ms.unwrap_or(0), terms);
        rows = (rows.0 + found.sessions.len(), rows.1 + found.messages.len());
    }
    rows
}

fn reading<'a>(event: &Generated, account: &'a str, user: &'a str) -> Reading<'a> {
    let outbound = |method, billing| {
        Fact::Outbound(Outbound {
            method,
            billing_status: Some(billing),
            message_type: Some("text".into()),
            tracking_data: Some("t1".into()),
        })
    };
    let (origin, kind, fact) = match event.what {
        What::Message | What::Started | What::Refused => (Origin::Callback, "message", Fact::Inbound),
        What::Send(billing) => (Origin::Call, "send_message", outbound(Method::Send, billing)),
        What::Broadcast(billing) => (Origin::Call, "broadcast_message", outbound(Method::Broadcast, billing)),
        What::Delivered => (Origin::Callback, "delivered", Fact::Receipt(Receipt::Delivered, None)),
        What::Seen => (Origin::Callback, "seen", Fact::Receipt(Receipt::Seen, None)),
        What::Failed => (Origin::Callback, "failed", Fact::Receipt(Receipt::Failed, None)),
        What::Unsubscribed => (Origin::Callback, "unsubscribed", Fact::Unsubscribed),
        What::Subscribed => (Origin::Callback, "subscribed", Fact::Subscribed),
    };
    Reading {
        account: Some(account),
        user: Some(user),
        origin,
        kind,
        token: Some(event.token),
        t_ms: event.t_ms,
        received_at_us: event.arrival_ms * 1000,
        time_ms: event.arrival_ms,
        skewed: false,
        status: None,
        billing_status: None,
        message_type: None,
        country: matches!(event.what, What::Message).then(|| "UA".into()),
        fact: Some(fact),
        malformed: None,
    }
}
