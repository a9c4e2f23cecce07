//! The brokers go away while bots send, and the gateway is killed in the middle of it: nothing that was answered, and
//! nothing that Viber took, is missing without being told of.
//!
//! `TEST_LONG=1` has the brokers away for 60 s instead of 8; `TEST_SEED` sets the moments.

use super::generate::Random;
use super::harness::{Home, Server, TOKEN, free_port, http, runtime, try_request, until};
use super::parts::{Kafka, missing};
use super::schemas::validate;
use super::viber::{BOT, Viber, call, is_long, recorded, seed, text_to};
use counterbat::event::Event;
use counterbat::event::time::parse_rfc3339_us;
use counterbat::log::kafka::{KafkaLog, Settings};
use counterbat::log::{EventLog, LogId};
use counterbat::sandbox::Faults;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Threads that send, each to users of its own, one message after the other.
const SENDERS: usize = 4;
const USERS_EACH: usize = 60;
/// Pauses between the messages of a thread.
const SEND_EVERY: Duration = Duration::from_millis(15);

/// A config whose log is a topic of these brokers.
fn on(viber: &Viber, brokers: &str, topic: &str, more: &[&str]) -> Home {
    let lines = [
        r#"log.kind = "kafka""#.to_owned(),
        "log.partitions = 3".to_owned(),
        format!("kafka.brokers = {brokers:?}"),
        format!("kafka.topic = {topic:?}"),
        format!("kafka.state_topic = {:?}", format!("{topic}.state")),
        format!("kafka.registry_topic = {:?}", format!("{topic}.registry")),
        format!("kafka.group = {topic:?}"),
        format!(r#"gateway.listen = "127.0.0.1:{}""#, free_port()),
        r#"lake.commit_every = "1s""#.to_owned(),
    ];
    viber.home(&lines.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>())
}

/// Waits until the log has all that waited for it.
fn drained(server: &Server) {
    until("an empty spill", || server.metric("counterbat_spill_events"), |n| *n == 0.0);
}

fn is_ready(server: &Server) -> bool {
    server.get("/readyz").status == 200
}

/// Bots that send while the gateway may be gone.
struct Load<'a> {
    viber: &'a Viber,
    gateway: String,
    over: AtomicBool,
    /// Tokens of messages whose answer reached the client.
    answered: Mutex<BTreeSet<u64>>,
}

impl Load<'_> {
    fn send(&self, users: &[String], mut random: Random) {
        let mut written = BTreeSet::new();
        while !self.over.load(Ordering::Relaxed) {
            let n = random.below(users.len() as u64) as usize;
            let user = &users[n];
            // Every other user writes, once, before something is sent to them: a session is open then.
            if n.is_multiple_of(2) && written.insert(n) {
                self.viber.write(user);
            }
            let url = format!("{}/pa/send_message", self.gateway);
            let asked = http().post(url).header("X-Viber-Auth-Token", TOKEN).body(text_to(user).to_string());
            let answer = try_request(asked).ok().and_then(|reply| serde_json::from_slice(&reply.body).ok());
            let answer: Value = answer.unwrap_or_default();
            if let (Some(0), Some(token)) = (answer["status"].as_u64(), answer["message_token"].as_u64()) {
                self.answered.lock().unwrap().insert(token);
            }
            std::thread::sleep(SEND_EVERY);
        }
    }
}

/// Goes through an outage; the server that runs at its end, when the gateway was killed, and when the brokers were back.
fn outage(kafka: &mut Kafka, home: &Home, viber: &Viber, server: Server, half: Duration) -> (Server, i64, i64) {
    std::thread::sleep(Duration::from_secs(2));
    kafka.kill(1);
    let began = Instant::now();
    until("spilled events", || server.metric("counterbat_spill_events"), |n| *n > 50.0);
    assert!(is_ready(&server), "{}", server.get("/readyz").text());
    std::thread::sleep(half.saturating_sub(began.elapsed()));
    server.kill();
    let killed_ms = viber.sandbox.time().now_ms();
    let server = home.serve();
    assert!(is_ready(&server), "{}", server.get("/readyz").text());
    let waiting = server.metric("counterbat_spill_events");
    assert!(waiting > 50.0, "what waited is not found: {waiting}");
    until("more spilled events", || server.metric("counterbat_spill_events"), |n| *n > waiting + 50.0);
    std::thread::sleep((2 * half).saturating_sub(began.elapsed()));
    let back_ms = viber.sandbox.time().now_ms();
    kafka.restart(1);
    drained(&server);
    std::thread::sleep(Duration::from_secs(2));
    (server, killed_ms, back_ms)
}

/// Tokens by user, in order.
type Sent = BTreeMap<String, Vec<u64>>;

#[test]
fn nothing_is_lost_while_the_brokers_are_away() {
    if missing("kafka") {
        return;
    }
    let half = Duration::from_secs(if is_long() { 30 } else { 4 });
    let seed = seed();
    let viber = Viber::start(seed, SENDERS * USERS_EACH);
    let mut kafka = Kafka::start(1);
    let home = on(&viber, &kafka.brokers(), "outage", &[]);
    let server = home.serve();
    let bot = viber.bot();
    bot.register(&server);
    viber.subscribe_all();
    let (gateway, mut random) = (server.gateway.clone(), Random(seed));
    let load = Load { viber: &viber, gateway, over: AtomicBool::new(false), answered: Mutex::default() };
    let (server, killed_ms, back_ms) = std::thread::scope(|scope| {
        for users in viber.users.chunks(USERS_EACH) {
            let (random, load) = (Random(random.next()), &load);
            scope.spawn(move || load.send(users, random));
        }
        let through = std::panic::AssertUnwindSafe(|| outage(&mut kafka, &home, &viber, server, half));
        let done = std::panic::catch_unwind(through);
        load.over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    until("all callbacks", || viber.sandbox.stats().outstanding, |outstanding| *outstanding == 0);
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.contains("the log is back and has all that waited for it"), "{log}");
    // A slow moment of the brokers may be one more outage; what waits is not told of one by one.
    assert!(log.matches("the log is away").count() < 10, "{log}");

    let sent = recorded_sends(&server, &viber, back_ms);
    let accepted = accepted(&viber);
    let unknown = unknown(&server, killed_ms);
    let mut excused = unknown.clone();
    let all: BTreeSet<u64> = sent.values().flatten().copied().collect();
    for (user, tokens) in &accepted {
        for token in tokens.iter().filter(|token| !all.contains(token)) {
            let left = excused.get_mut(user).filter(|left| **left > 0);
            *left.unwrap_or_else(|| panic!("message {token} to {user} is neither recorded nor unknown")) -= 1;
        }
        let kept: Vec<u64> = tokens.iter().copied().filter(|token| all.contains(token)).collect();
        assert_eq!(sent.get(user).cloned().unwrap_or_default(), kept, "the order of what was sent to {user}");
    }
    let answered = load.answered.into_inner().unwrap();
    println!(
        "{} accepted, {} recorded, {} answered, {unknown:?} unknown",
        accepted.values().map(Vec::len).sum::<usize>(),
        all.len(),
        answered.len()
    );
    assert!(answered.len() > 300, "there was hardly any load: {}", answered.len());
    assert!(answered.is_subset(&all), "answered, but not recorded: {:?}", answered.difference(&all).next());
    assert!(unknown.values().sum::<usize>() <= SENDERS, "more calls are unknown than were under way: {unknown:?}");

    let verdicts = server.sql("select verdict, count(*) as n from messages group by verdict");
    assert_eq!(verdicts.len(), 1, "{verdicts:?}");
    assert_eq!((verdicts[0]["verdict"].as_str(), verdicts[0]["n"].as_u64()), (Some("agreed"), Some(all.len() as u64)));
    assert!(server.number("select count(*) from sessions") > 10);
    server.stop_in_order();
    let quiet = Home::new(&[r#"fold.policy = "viber-2022""#, "log.partitions = 3"]);
    let export = home.ok(&["export", "-"]);
    quiet.ok_with(&["import", "--wait", "-"], export.as_bytes());
    quiet.tables().assert_equal(&home.tables(), "after the outage");
    assert_eq!(validate(export.as_bytes())["wrong"], json!([]));
}

/// What Viber accepted, in its order.
fn accepted(viber: &Viber) -> Sent {
    let mut sent = Sent::new();
    for call in viber.sandbox.ledger().calls() {
        if let ("send_message", Some(0), Some(token)) = (call.method, call.status, call.message_token) {
            sent.entry(call.receivers[0].id.to_string()).or_default().push(token);
        }
    }
    sent
}

/// What was recorded, in the order of the log, each message where it is first; none with a time from after the outage
/// that it was sent in.
fn recorded_sends(server: &Server, viber: &Viber, back_ms: i64) -> Sent {
    let decided = |call: counterbat::sandbox::Call| Some((call.message_token?, call.decided_at_ms));
    let decided: BTreeMap<u64, i64> = viber.sandbox.ledger().calls().into_iter().filter_map(decided).collect();
    let rows = server.sql(
        "select user_id, message_token, received_at from events where type = 'send_message' and status = 0 \
         order by partition, \"offset\"",
    );
    let (mut sent, mut seen) = (Sent::new(), BTreeSet::new());
    for row in rows {
        let token: u64 = row["message_token"].as_str().unwrap().parse().unwrap();
        let at_ms = decided.get(&token).unwrap_or_else(|| panic!("Viber knows nothing of {token}"));
        let received_us = parse_rfc3339_us(row["received_at"].as_str().unwrap()).unwrap();
        let is_of_outage = *at_ms < back_ms - 2_000;
        assert!(!is_of_outage || received_us / 1000 < back_ms, "{token} has not kept its time: {row}");
        if seen.insert(token) {
            sent.entry(row["user_id"].as_str().unwrap().to_owned()).or_default().push(token);
        }
    }
    sent
}

/// Sends of which nobody knows, by user: all of them were under way when the gateway was killed.
fn unknown(server: &Server, killed_ms: i64) -> BTreeMap<String, usize> {
    let mut users = BTreeMap::new();
    for row in server.sql("select user_id, started_at from unknown_calls") {
        let started_ms = parse_rfc3339_us(row["started_at"].as_str().unwrap()).unwrap() / 1000;
        assert!(started_ms <= killed_ms, "a call after the kill is unknown: {row}");
        *users.entry(row["user_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    users
}

#[test]
fn a_send_cut_off_by_a_kill_is_unknown_and_listed() {
    let viber = Viber::start(seed(), 3);
    let address = format!(r#"gateway.listen = "127.0.0.1:{}""#, free_port());
    let home = viber.home(&[&address, r#"upstream.timeout = "20s""#]);
    let server = home.serve();
    let bot = viber.bot();
    bot.register(&server);
    viber.subscribe_all();
    until("the subscriptions", || viber.sandbox.stats().outstanding, |outstanding| *outstanding == 0);
    let user = &viber.users[0];
    assert_eq!(call(&server.gateway, "send_message", &text_to(user)).1["status"], 0);
    assert_eq!(server.sql("select * from unknown_calls"), Vec::<Value>::new());

    viber.faults(Faults { slow_ms: 10_000, ..Faults::default() });
    let mut broadcast = text_to(user);
    broadcast.as_object_mut().unwrap().remove("receiver");
    broadcast["broadcast_list"] = json!(viber.users[1..]);
    let gateway = server.gateway.clone();
    std::thread::scope(|scope| {
        for (method, body) in [("send_message", text_to(user)), ("broadcast_message", broadcast.clone())] {
            let url = format!("{gateway}/pa/{method}");
            scope.spawn(move || {
                let asked = http().post(url).header("X-Viber-Auth-Token", TOKEN).body(body.to_string());
                try_request(asked).expect_err("nobody is left to answer");
            });
        }
        let taken = || viber.sandbox.ledger().calls().iter().filter(|call| call.message_token.is_some()).count();
        until("Viber to take them", taken, |n| *n == 3);
        server.kill();
    });
    viber.faults(Faults::default());
    let server = home.serve();
    let rows = server.sql("select * from unknown_calls order by method");
    assert_eq!(rows.len(), 2, "{rows:?}");
    let text = |row: &Value, column: &str| row[column].as_str().unwrap_or_default().to_owned();
    assert_eq!((text(&rows[0], "method"), rows[0]["user_id"].clone()), ("broadcast_message".into(), Value::Null));
    assert_eq!(text(&rows[0], "receivers"), json!(viber.users[1..]).to_string());
    assert_eq!((text(&rows[1], "method"), &text(&rows[1], "user_id")), ("send_message".into(), user));
    assert_eq!(text(&rows[1], "receivers"), json!([user]).to_string());
    for row in &rows {
        assert_eq!(text(row, "account"), BOT);
        let id = text(row, "call_id");
        let starts = server.sql(&format!("select type from events where event_id = '{id}'"));
        assert_eq!(starts, [json!({"type": "call.started"})]);
        assert!(row["age_seconds"].as_i64().is_some_and(|age| (0..3600).contains(&age)), "{row}");
        assert_eq!(text(row, "digest").len(), 64);
    }
    // The next one is answered, and told apart by its id.
    assert_eq!(call(&server.gateway, "send_message", &text_to(user)).1["status"], 0);
    assert_eq!(server.number("select count(*) from unknown_calls"), 2);
    server.stop_in_order();
    assert_eq!(validate(home.ok(&["export", "-"]).as_bytes())["wrong"], json!([]));
}

#[test]
fn sends_without_a_result_are_counted() {
    let viber = Viber::start(seed(), 1);
    let home = viber.home(&[r#"upstream.timeout = "1s""#]);
    // As a gateway that was killed a minute ago leaves it, and a call half an hour ago whose result came.
    let now_ms = viber.sandbox.time().now_ms();
    let started = |n: u32, ago_ms: i64| {
        let time = counterbat::event::time::format_us((now_ms - ago_ms) * 1000);
        let id = format!("01900000-0000-7000-8000-00000000000{n}");
        let data = json!({"call_id": id, "method": "send_message", "receivers": ["u"], "digest": "0".repeat(64)});
        json!({"specversion": "1.0", "id": id, "source": "/accounts/bot1", "type": "counterbat.call.started",
            "subject": "u", "time": time, "data": data})
    };
    let mut result = started(2, 1_799_000);
    result["type"] = json!("com.viber.api.send_message");
    let id = &result["id"];
    let data = format!(r#"{{"call_id":{id},"request":{{}},"response":null,"http_status":null}}"#);
    let mut lines: Vec<String> = [started(1, 60_000), started(2, 1_800_000)].iter().map(Value::to_string).collect();
    result["data"] = json!(null);
    lines.push(result.to_string().replace(r#""data":null"#, &format!(r#""data":{data}"#)));
    home.ok_with(&["import", "-"], lines.join("\n").as_bytes());
    let server = home.serve();
    let series = r#"counterbat_unknown_calls{account="bot1"}"#;
    until(series, || server.metric(series), |n| *n == 1.0);
    assert_eq!(server.number("select count(*) from unknown_calls"), 1);
}

#[test]
fn what_the_registry_held_is_known_while_the_brokers_are_away() {
    if missing("kafka") {
        return;
    }
    let viber = Viber::start(seed(), 1);
    let mut kafka = Kafka::start(1);
    let key = format!("gateway.key = \"{}\"", "5e".repeat(32));
    let home = on(&viber, &kafka.brokers(), "remembered", &[&key]);
    let server = home.serve();
    home.ok_with(&["account", "add", "late"], b"token-of-a-late-account");
    server.kill();
    kafka.kill(1);
    let server = home.serve();
    let refused = home.fails_with(&["account", "pause", "late"], b"");
    assert!(refused.contains("before a broker has answered"), "{refused}");
    let account = || -> Value { serde_json::from_slice(&server.get("/api/v1/accounts/late").body).unwrap() };
    assert_eq!(account()["paused"], false, "{}", account());
    kafka.restart(1);
    until("a change", || home.run(&["account", "pause", "late"]), |output| output.status.success());
    assert_eq!(account()["paused"], true, "{}", account());
}

#[test]
fn a_log_opened_as_it_was_known_is_written_only_where_it_is_the_same() {
    if missing("kafka") {
        return;
    }
    let kafka = Kafka::start(1);
    let settings = || Settings {
        brokers: kafka.brokers_behind_cuts(),
        topic: "known".into(),
        state_topic: "known.state".into(),
        registry_topic: "known.registry".into(),
        group: "known".into(),
        create_topics: true,
        replication: None,
        partitions: 2,
        properties: Vec::new(),
    };
    let away = |is_away| {
        kafka.cuts(1).refuse(is_away);
        kafka.cuts(1).cut();
    };
    runtime().block_on(async {
        let known = KafkaLog::open(settings()).await.unwrap().known();
        away(true);
        let log = KafkaLog::open_known(settings(), known.clone()).await.unwrap();
        let mut foreign = known.clone();
        foreign.id = LogId("elsewhere.known".into());
        let other = KafkaLog::open_known(settings(), foreign).await.unwrap();
        assert_eq!((log.id(), log.partitions()), (&known.id, 2));
        assert!(log.append(vec![(1, Event::default())]).await.is_err());
        let mut moved = known.clone();
        moved.brokers = "127.0.0.1:1".into();
        assert!(KafkaLog::open_known(settings(), moved).await.is_err(), "these brokers were never reached");
        away(false);
        while log.append(vec![(1, Event::default())]).await.is_err() {}
        assert_eq!(log.bounds(1).await.unwrap().1, 1);
        let refused = other.append(vec![(1, Event::default())]).await.unwrap_err().to_string();
        assert!(refused.contains("have another log now"), "{refused}");
        assert!(other.read(1, 0, 1, 1).await.is_err() && other.check_writable().await.is_err());
        assert_eq!(log.bounds(1).await.unwrap().1, 1);
    });
}

/// Sends until the answer is as wanted.
fn send_until(server: &Server, user: &str, what: &str, wanted: impl Fn(&Value) -> bool) {
    until(what, || call(&server.gateway, "send_message", &text_to(user)).1, wanted);
}

fn is_refused(answer: &Value) -> bool {
    let text = answer["status_message"].as_str().unwrap_or_default();
    answer["status"] != 0 && text.contains("was not sent")
}

#[test]
fn a_full_spill_refuses_or_passes_what_it_cannot_keep() {
    if missing("kafka") {
        return;
    }
    let viber = Viber::start(seed(), 2);
    let kafka = Kafka::start(1);
    let brokers = kafka.brokers_behind_cuts();
    let small = r#"log.spill_size = "3KiB""#;
    let (user, other) = (&viber.users[0], &viber.users[1]);

    let home = on(&viber, &brokers, "refuses", &[small]);
    let server = home.serve();
    let bot = viber.bot();
    bot.register(&server);
    viber.subscribe_all();
    until("the subscriptions", || viber.sandbox.stats().outstanding, |outstanding| *outstanding == 0);
    kafka.cuts(1).refuse(true);
    kafka.cuts(1).cut();
    send_until(&server, user, "a refusal", is_refused);
    let before = viber.accepted().len();
    assert!(before > 0 && is_refused(&call(&server.gateway, "send_message", &text_to(user)).1));
    assert_eq!(viber.accepted().len(), before, "what was refused was not sent");
    let ready = server.get("/readyz");
    assert!(ready.status == 503 && ready.text().contains("the spill is full"), "{}", ready.text());
    kafka.cuts(1).refuse(false);
    drained(&server);
    until("readiness", || is_ready(&server), |ready| *ready);
    send_until(&server, user, "acceptance", |answer| answer["status"] == 0);
    let kept = |server: &Server| {
        server.number("select count(distinct message_token) from events where status = 0 and type = 'send_message'")
    };
    assert_eq!(kept(&server), viber.accepted().len() as i64);
    server.stop_in_order();

    let home = on(&viber, &brokers, "passes", &[small, r#"log.on_unrecordable = "pass""#]);
    let server = home.serve();
    let before = viber.accepted().len();
    kafka.cuts(1).refuse(true);
    kafka.cuts(1).cut();
    let passed = |server: &Server| server.metric(r#"counterbat_passed_unrecorded_total{account="bot1"}"#);
    let send = |server: &Server| {
        assert_eq!(call(&server.gateway, "send_message", &text_to(other)).1["status"], 0);
        passed(server)
    };
    until("a call that passes", || send(&server), |n| *n == 1.0);
    server.kill();
    // The gap goes on where it was.
    let server = home.serve();
    assert_eq!(send(&server), 1.0);
    kafka.cuts(1).refuse(false);
    drained(&server);
    let gap =
        || server.sql("select type, account, data, received_at from events where type like 'gap.%' order by type");
    let told = until("the gap in the log", gap, |rows| rows.len() == 2);
    let closed: Value = serde_json::from_str(told[0]["data"].as_str().unwrap()).unwrap();
    let opened: Value = serde_json::from_str(told[1]["data"].as_str().unwrap()).unwrap();
    assert_eq!((closed["calls"].clone(), &closed["gap_id"]), (json!({"send_message": 2}), &opened["gap_id"]));
    assert_eq!(told[0]["account"], BOT);
    assert_eq!(kept(&server) + 2, (viber.accepted().len() - before) as i64);
    let rows = recorded(|query| server.sql(query));
    assert!(rows.iter().any(|row| row.kind == "call.started"));
    server.stop_in_order();
    assert_eq!(validate(home.ok(&["export", "-"]).as_bytes())["wrong"], json!([]));
}
