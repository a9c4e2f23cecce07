//! Viber, bots and clients that fail: what was accepted is recorded, and whoever asked is told the truth.
//!
//! `TEST_LONG=1` hangs up 500 times instead of 60; `TEST_SEED` sets the moments.

use super::generate::Random;
use super::harness::{Home, Server, TOKEN, free_port, message_body, sign, until};
use super::viber::{BOT, Bot, Mood, Recorded, Viber, call, is_long, recorded, seed, text_to};
use counterbat::sandbox::Faults;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

struct World {
    server: Server,
    home: Home,
    bot: Bot,
    viber: Viber,
}

fn world(users: usize, settings: &[&str]) -> World {
    let viber = Viber::start(seed(), users);
    let home = viber.home(settings);
    let (server, bot) = (home.serve(), viber.bot());
    bot.register(&server);
    viber.subscribe_all();
    until("the subscriptions", || viber.sandbox.stats().outstanding, |outstanding| *outstanding == 0);
    World { server, home, bot, viber }
}

impl World {
    /// Sends one message to each of these users: what each client was told.
    fn send(&self, users: &[String]) -> Vec<(u16, Value)> {
        std::thread::scope(|scope| {
            let each = |user: &String| call(&self.server.gateway, "send_message", &text_to(user));
            let threads: Vec<_> = users.iter().map(|user| scope.spawn(move || each(user))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Ends the server in order, then holds all it recorded against the ledger.
    fn settle(self) -> (Vec<Recorded>, Viber) {
        assert_eq!(self.server.stop().code(), Some(0));
        let rows = recorded(|query| self.home.sql(query));
        holds_what_viber_accepted(&self.viber, &rows);
        holds_what_was_acknowledged(&self.viber, &rows);
        (rows, self.viber)
    }
}

/// Messages whose events tell of no answer, by user.
fn unanswered(rows: &[Recorded]) -> BTreeMap<&str, usize> {
    let mut users = BTreeMap::new();
    for row in rows.iter().filter(|row| row.kind == "send_message" && row.data.contains(r#","response":null,"#)) {
        *users.entry(row.user.as_deref().unwrap()).or_default() += 1;
    }
    users
}

/// Every message Viber accepted is in `events`: with its token, or as a call whose answer never came; and no other.
fn holds_what_viber_accepted(viber: &Viber, rows: &[Recorded]) {
    let accepted = viber.accepted();
    let sends = rows.iter().filter(|row| row.kind == "send_message" && row.status == Some(0));
    let answered: Vec<(String, u64)> = sends.map(|row| (row.user.clone().unwrap(), row.token.unwrap())).collect();
    let once: BTreeSet<(String, u64)> = answered.iter().cloned().collect();
    assert_eq!(once.len(), answered.len(), "a message is recorded twice");
    assert!(once.is_subset(&accepted), "Viber knows nothing of {:?}", once.difference(&accepted).next());
    let mut silent = unanswered(rows);
    for (user, token) in accepted.difference(&once) {
        let left = silent.get_mut(user.as_str()).filter(|left| **left > 0);
        *left.unwrap_or_else(|| panic!("message {token} to {user} is not recorded")) -= 1;
    }
}

/// Every callback that was answered 200 is in `events`.
fn holds_what_was_acknowledged(viber: &Viber, rows: &[Recorded]) {
    let found: BTreeSet<(&str, Option<u64>, Option<&str>)> = rows
        .iter()
        .filter(|row| row.origin == "callback")
        .map(|row| (row.kind.as_str(), row.token, row.user.as_deref()))
        .collect();
    for one in viber.callbacks().iter().filter(|one| one.acknowledged) {
        // Of a validation neither token nor user is one of a fact, but the text is kept all the same.
        let name = one.event.name();
        let is_there = found.contains(&(name, Some(one.message_token), one.user.as_deref()));
        assert!(is_there, "callback {name} {} is not recorded", one.message_token);
    }
}

fn failures(server: &Server, reason: &str) -> f64 {
    server.metric(&format!("counterbat_upstream_failures_total{{reason=\"{reason}\"}}"))
}

/// The text for the one who called, of an answer that stands in for Viber's.
fn told(answer: &(u16, Value)) -> &str {
    assert_eq!(answer.0, 200, "{answer:?}");
    assert!(answer.1["status"].as_i64().is_some_and(|status| status != 0), "{answer:?}");
    answer.1["status_message"].as_str().unwrap()
}

#[test]
fn a_slow_viber_is_waited_for() {
    let world = world(20, &[r#"upstream.timeout = "20s""#]);
    world.viber.faults(Faults { slow_ms: 400, ..Faults::default() });
    let answers = world.send(&world.viber.users);
    assert!(answers.iter().all(|(http, answer)| *http == 200 && answer["status"] == 0), "{answers:?}");
    let (rows, viber) = world.settle();
    assert_eq!((viber.accepted().len(), unanswered(&rows).len()), (20, 0));
}

#[test]
fn a_viber_slower_than_the_time_out_may_have_sent() {
    let world = world(20, &[r#"upstream.timeout = "500ms""#]);
    world.viber.faults(Faults { slow_ms: 4_000, ..Faults::default() });
    for answer in world.send(&world.viber.users) {
        assert!(told(&answer).contains("may have been sent"), "{answer:?}");
    }
    assert_eq!(failures(&world.server, "timed_out"), 20.0);
    let (rows, viber) = world.settle();
    assert_eq!((viber.accepted().len(), unanswered(&rows).len()), (20, 20));
}

#[test]
fn a_cut_after_accepting_may_have_sent_and_is_not_repeated() {
    let world = world(40, &[]);
    // Once well, so that connections are open which could be used, and tried, again.
    let (well, cut) = world.viber.users.split_at(20);
    assert!(world.send(well).iter().all(|(_, answer)| answer["status"] == 0));
    world.viber.faults(Faults { cut_after_accept: 1.0, ..Faults::default() });
    for answer in world.send(cut) {
        assert!(told(&answer).contains("may have been sent"), "{answer:?}");
    }
    assert_eq!(failures(&world.server, "broken"), 20.0);
    let cut: BTreeSet<String> = cut.iter().cloned().collect();
    let (rows, viber) = world.settle();
    assert_eq!(viber.accepted().len(), 40, "each message is accepted once");
    let cuts = viber.sandbox.ledger().calls().into_iter().filter(|call| call.cut).count();
    assert_eq!(cuts, 20);
    assert_eq!(unanswered(&rows), cut.iter().map(|user| (user.as_str(), 1)).collect());
}

#[test]
fn a_viber_that_hangs_up_at_once_may_have_sent() {
    let world = world(20, &[]);
    world.viber.faults(Faults { down: true, ..Faults::default() });
    for answer in world.send(&world.viber.users) {
        assert!(told(&answer).contains("may have been sent"), "{answer:?}");
    }
    assert_eq!(failures(&world.server, "broken"), 20.0);
    let (rows, viber) = world.settle();
    assert_eq!((viber.accepted().len(), unanswered(&rows).len()), (0, 20));
}

#[test]
fn what_cannot_be_sent_is_told_so() {
    let nobody = format!("upstream.url = \"http://127.0.0.1:{}\"", free_port());
    let home = Home::new(&[&nobody]);
    let server = home.serve();
    for n in 0..20 {
        let answer = call(&server.gateway, "send_message", &text_to(&format!("user-{n}==")));
        assert!(told(&answer).contains("was not sent"), "{answer:?}");
    }
    assert_eq!(failures(&server, "not_sent"), 20.0);
    assert_eq!(server.metric(r#"counterbat_calls_total{account="bot1",method="send_message",status="none"}"#), 20.0);
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(unanswered(&recorded(|query| home.sql(query))).len(), 20);
}

#[test]
fn an_error_page_of_viber_is_passed_on_and_kept() {
    let world = world(20, &[]);
    world.viber.faults(Faults { http_500: 1.0, ..Faults::default() });
    assert!(world.send(&world.viber.users).iter().all(|(http, _)| *http == 500));
    let series = r#"counterbat_calls_total{account="bot1",method="send_message",status="none"}"#;
    assert_eq!(world.server.metric(series), 20.0);
    let (rows, viber) = world.settle();
    assert!(viber.accepted().is_empty());
    let pages =
        rows.iter().filter(|row| row.data.contains("HTTP ERROR 500") && row.data.contains(r#""http_status":500"#));
    assert_eq!(pages.count(), 20);
}

/// Users write while the bot fails; it gets well; everything has come to it by Viber's repeats.
fn callbacks_come_again(outcome: &str, http: u16, fail: impl Fn(&Bot), heal: impl Fn(&Bot)) {
    const USERS: usize = 10;
    let world = world(USERS, &[r#"relay.timeout = "300ms""#]);
    let World { server, bot, viber, .. } = &world;
    fail(bot);
    let written: BTreeSet<u64> = viber.users.iter().map(|user| viber.write(user).message_token).collect();
    let tries = || viber.callbacks().into_iter().filter(|one| written.contains(&one.message_token)).collect::<Vec<_>>();
    until("a second try of each", tries, |told| told.iter().all(|one| one.attempts.len() >= 2));
    // Nothing was acknowledged, but all of it is recorded.
    let count = || server.number("select count(distinct message_token) from events where type = 'message'");
    until("the records", count, |n| *n == USERS as i64);
    heal(bot);
    let told = until("the end of the repeats", tries, |told| told.iter().all(|one| one.acknowledged));
    for one in &told {
        let (last, failed) = one.attempts.split_last().unwrap();
        assert!(last.outcome.is_acknowledged());
        let wanted = counterbat::sandbox::Outcome::HttpStatus(http);
        assert!(failed.iter().all(|attempt| attempt.outcome == wanted), "{failed:?}");
    }
    assert!(written.is_subset(&bot.got().into_iter().collect()));

    let attempts: usize = told.iter().map(|one| one.attempts.len()).sum();
    let repeats = attempts - USERS;
    let counted = |series: &str, wanted: usize| {
        until(series, || server.metric(series), |value| *value == wanted as f64);
    };
    counted(r#"counterbat_callbacks_total{account="bot1",event="message"}"#, attempts);
    counted(&format!("counterbat_relays_total{{account=\"bot1\",outcome=\"{outcome}\"}}"), repeats);
    counted(r#"counterbat_events_total{disposition="duplicate"}"#, repeats);
    let (rows, _) = world.settle();
    let of = |wanted: &str| rows.iter().filter(|row| row.kind == "message" && row.disposition == wanted).count();
    assert_eq!((of("fact"), of("duplicate")), (USERS, repeats));
}

#[test]
fn a_bot_that_is_slow_gets_it_again() {
    let slow = Mood::Slow(Duration::from_secs(2));
    callbacks_come_again("timed_out", 502, |bot| bot.mood(slow), |bot| bot.mood(Mood::Status(200)));
}

#[test]
fn a_bot_that_is_down_gets_it_again() {
    callbacks_come_again("unreachable", 502, Bot::shut, Bot::open);
}

#[test]
fn a_bot_that_refuses_gets_it_again() {
    for code in [500, 404] {
        let refuse = |bot: &Bot| bot.mood(Mood::Status(code));
        callbacks_come_again("refused", code, refuse, |bot| bot.mood(Mood::Status(200)));
    }
}

/// How far a client gets before it hangs up.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Until {
    Head,
    HalfTheBody,
    TheEnd,
}

/// Sends so much of a message to a user, and is gone.
fn hang_up(gateway: &str, user: &str, how: Until, pause: Duration) {
    let body = text_to(user).to_string();
    let head = format!(
        "POST /pa/send_message HTTP/1.1\r\nHost: gateway\r\nX-Viber-Auth-Token: {TOKEN}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let sent = match how {
        Until::Head => 0,
        Until::HalfTheBody => body.len() / 2,
        Until::TheEnd => body.len(),
    };
    let mut stream = TcpStream::connect(gateway.trim_start_matches("http://")).unwrap();
    stream.write_all(format!("{head}{}", &body[..sent]).as_bytes()).unwrap();
    std::thread::sleep(pause);
}

#[test]
fn clients_that_hang_up_change_nothing() {
    let times = if is_long() { 500 } else { 60 };
    let world = world(times, &[]);
    let mut random = Random(seed());
    let mut plans = BTreeMap::new();
    for (n, user) in world.viber.users.iter().enumerate() {
        // The second half of them hangs up while Viber is slow.
        if n == times / 2 {
            world.viber.faults(Faults { slow_ms: 150, ..Faults::default() });
        }
        let how = [Until::Head, Until::HalfTheBody, Until::TheEnd, Until::TheEnd][random.below(4) as usize];
        hang_up(&world.server.gateway, user, how, Duration::from_micros(random.below(4_000)));
        plans.insert(user.clone(), how);
    }
    let body = message_body("user-x==", 77);
    assert_eq!(world.server.callback_signed(&body, &sign(TOKEN, &body)).status, 200, "it goes on");
    let (rows, viber) = world.settle();
    let accepted = viber.accepted();
    let whole = plans.values().filter(|how| **how == Until::TheEnd).count();
    println!("{times} hung up, {whole} of them after the whole request; Viber accepted {}", accepted.len());
    assert!(accepted.len() > whole / 10, "hardly any call went on without its client");
    assert!(accepted.iter().all(|(user, _)| plans[user] == Until::TheEnd), "half a message was sent");
    assert!(unanswered(&rows).is_empty(), "Viber's answer is recorded although the client has gone");
    assert_eq!(rows.iter().filter(|row| row.kind == "send_message").count(), accepted.len());
    assert!(viber.sandbox.bots().iter().any(|bot| &*bot.name == BOT));
}
