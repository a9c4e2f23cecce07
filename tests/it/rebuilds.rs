//! Rebuilds beside a running server: the same rows, whatever goes on meanwhile, and nobody sees them half built.

use super::generate::{DAY_MS, Generated, HOUR_MS, MARCH_MS, Plan, history, lines, tick_line};
use super::harness::{Home, Reply, Server, http, message_body, sign, text, try_request, until};
use super::tools::python;
use super::viber::{is_long, number, seed};
use serde_json::Value;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub fn some_events(events: usize) -> Vec<Generated> {
    let plan = Plan { seed: seed(), events, users: events as u64 / 8, start_ms: MARCH_MS, span_ms: 40 * DAY_MS };
    history(&plan)
}

/// The events, then a tick that leaves the last days unsettled.
pub fn input(events: &[Generated]) -> Vec<u8> {
    let last = events.iter().map(|event| event.arrival_ms).max().unwrap();
    [lines(events), tick_line(last + HOUR_MS).into_bytes()].concat()
}

#[test]
fn a_rebuild_beside_a_server_changes_no_row() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &input(&some_events(20_000)));
    let server = home.serve();
    let before = home.tables();
    let told: Value = serde_json::from_str(&home.ok(&["rebuild"])).unwrap();
    assert_eq!((&told["kept"], &told["events"]), (&false.into(), &20_000.into()), "{told}");
    // Until the projector has the new tables it says what it waits for.
    let says = |reply: &Reply| reply.status == 200 || reply.text().contains("recovering: the tables of a rebuild");
    until(
        "readiness",
        || server.get("/readyz"),
        |reply| {
            assert!(says(reply), "{}", reply.text());
            reply.status == 200
        },
    );
    before.assert_equal(&home.tables(), "rebuilt");
    // What comes in afterwards is folded on.
    assert_eq!(server.callback(&message_body("later==", 77)).status, 200);
    assert_eq!(server.number("select count(*) from sessions where user_id = 'later=='"), 1);
    home.ok(&["rebuild"]);
    assert_eq!(server.number("select count(*) from sessions where user_id = 'later=='"), 1);
    server.stop_in_order();
    std::fs::remove_dir_all(home.data().join("state")).unwrap();
    assert_eq!(home.number("select count(*) from sessions where user_id = 'later=='"), 1);
}

#[test]
fn a_rebuild_beside_a_server_folds_in_what_came_too_late() {
    let events = some_events(6_000);
    let (late, rest): (Vec<Generated>, Vec<Generated>) = events.iter().partition(|event| event.user % 3 == 0);
    let end = tick_line(MARCH_MS + 50 * DAY_MS);
    let home = Home::new(&[]);
    let server = home.serve();
    home.ok_with(&["import", "--wait", "-"], &[lines(&rest), end.clone().into_bytes()].concat());
    home.ok_with(&["import", "--wait", "--late", "-"], &lines(&late));
    let before = home.tables();
    home.ok(&["rebuild"]);

    let straight = Home::new(&[]);
    straight.ok_with(&["import", "--wait", "-"], &[lines(&events), end.into_bytes()].concat());
    straight.tables().assert_equal(&home.tables(), "rebuilt beside the server");
    assert!(before.sessions != home.tables().sessions);
    // The archive is not rewritten: what usage counts of it is what had come in time.
    let late = "select count(distinct message_token) from events where type = 'message' and disposition = 'too_late'";
    let more = "select (select sum(inbound) from sessions) - (select sum(inbound) from usage_monthly)";
    assert!(server.number(late) > 0);
    assert_eq!(server.number(more), server.number(late));
    server.stop_in_order();
    straight.tables().assert_equal(&home.tables(), "after a restart");
}

/// Counts the rows of a Delta table by its own log again and again until standard input ends: the least and the most, and
/// how often two files had one row.
const READER: &str = r#"
import json, os, sys, threading
from deltalake import DeltaTable
import pyarrow.compute as pc
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
counts, twice = [], 0
while not ended.is_set() or not counts:
    rows = DeltaTable(sys.argv[1]).to_pyarrow_dataset().to_table(columns=["session_id"])
    counts.append(rows.num_rows)
    twice += rows.num_rows - len(pc.unique(rows["session_id"]))
print(json.dumps({"least": min(counts), "looks": len(counts), "twice": twice}), flush=True)
# Threads of pyarrow that are still there when the interpreter is taken down may end it by a signal.
os._exit(0)
"#;

/// Writes callbacks and asks queries while servers come and go.
pub struct Traffic {
    pub ended: AtomicBool,
    /// Gateway and console of the server of now.
    server: Mutex<(String, String)>,
    acknowledged: AtomicU64,
    pub answered: AtomicU64,
}

impl Traffic {
    pub fn new(server: &Server) -> Arc<Self> {
        Arc::new(Traffic {
            ended: AtomicBool::new(false),
            server: Mutex::new((server.gateway.clone(), server.console.clone())),
            acknowledged: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        })
    }

    pub fn point_to(&self, server: &Server) {
        *self.server.lock().unwrap() = (server.gateway.clone(), server.console.clone());
    }

    pub fn write(&self) {
        for n in 0.. {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let (gateway, _) = self.server.lock().unwrap().clone();
            let body = message_body(&format!("live-{}==", n % 400), 7_000_000_000_000_000_000 + n);
            let signature = sign(super::harness::TOKEN, &body);
            let post = http().post(format!("{gateway}/webhooks/bot1"));
            let sent = try_request(post.header("X-Viber-Content-Signature", signature).body(body));
            if sent.is_ok_and(|reply| reply.status == 200) {
                self.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Every answer has all sessions and messages of the history, as many as some tables have, and, where it is complete,
    /// every callback acknowledged before it was asked for.
    pub fn ask(&self, tables: &[(i64, i64)]) {
        let query = "select (select count(*) from sessions where user_id not like 'live-%') as old, \
                     (select count(*) from messages where user_id not like 'live-%') as messages, \
                     (select count(distinct session_id) from sessions where user_id not like 'live-%') as once, \
                     (select coalesce(sum(inbound), 0) from sessions where user_id like 'live-%') as live, \
                     (select count(*) from events where user_id like 'live-%') as events";
        while !self.ended.load(Ordering::Relaxed) {
            let (_, console) = self.server.lock().unwrap().clone();
            let least = self.acknowledged.load(Ordering::SeqCst);
            let body = serde_json::json!({ "sql": query }).to_string();
            let Ok(reply) = try_request(http().post(format!("{console}/api/v1/sql")).body(body)) else { continue };
            if reply.status == 503 {
                // A server that is stopping or starting has no tables to show.
                continue;
            }
            assert_eq!(reply.status, 200, "{}", reply.text());
            let Ok(rows) = serde_json::from_slice::<Value>(&reply.body) else { continue };
            let count = |name: &str| rows[0][name].as_i64().unwrap();
            let seen = (count("old"), count("messages"));
            assert!(
                tables.contains(&seen) && count("once") == seen.0,
                "a half-built table is seen: {rows}, of {tables:?}"
            );
            let is_complete = reply.freshness == "complete";
            assert!(
                !is_complete || count("live") as u64 >= least && count("live") == count("events"),
                "{rows}: {least} acknowledged"
            );
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub fn newest_rebuild(server: &Server) -> Value {
    let listing: Value = serde_json::from_slice(&server.get("/api/v1/rebuilds").body).unwrap();
    listing["rebuilds"].as_array().unwrap().last().cloned().unwrap_or_default()
}

/// How far a rebuild is with folding, from 0 to 1.
pub fn share(rebuild: &Value) -> f64 {
    let count = |what: &str| rebuild["progress"][what].as_f64().unwrap_or(0.0);
    if rebuild["job"]["phase"] == "folding" { count("done") / count("total").max(1.0) } else { 1.0 }
}

#[test]
fn a_rebuild_under_load_goes_on_after_kills() {
    let (events, kills) = if is_long() { (600_000, 6) } else { (120_000, 3) };
    let events = number("TEST_EVENTS").map_or(events, |number| number as usize);
    // Little memory: what is folded becomes durable often.
    let settings = [r#"fold.memory = "64MiB""#, r#"lake.commit_every = "200ms""#, r#"lake.snapshot_every = "1s""#];
    let home = Home::new(&settings);
    home.ok_with(&["import", "--wait", "-"], &input(&some_events(events)));
    let sessions = home.number("select count(*) from sessions");
    let mut server = home.serve();
    let traffic = Traffic::new(&server);
    let mut reader = python()
        .args(["-c", READER])
        .arg(home.data().join("lake/sessions"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python can be started");
    let (writing, asking) = (traffic.clone(), traffic.clone());
    let writer = std::thread::spawn(move || writing.write());
    let tables = (sessions, home.number("select count(*) from messages"));
    let asker = std::thread::spawn(move || asking.ask(&[tables]));

    let posted = super::harness::request(http().post(format!("{}/api/v1/rebuilds", server.console)).body("{}"));
    assert_eq!(posted.status, 202, "{}", posted.text());
    let name = newest_rebuild(&server)["job"]["name"].clone();
    let mut went_on = 0;
    for kill in 1..=kills {
        let wanted = f64::from(kill) / f64::from(kills + 1);
        let seen = until("progress", || newest_rebuild(&server), |rebuild| share(rebuild) >= wanted);
        println!("killed at {}", seen["progress"]);
        server.kill();
        server = home.serve();
        traffic.point_to(&server);
        went_on += usize::from(server.log().contains("the rebuild goes on where it was"));
    }
    let done = until("the rebuild", || newest_rebuild(&server), |rebuild| rebuild["job"]["phase"] == "done");
    assert_eq!(done["job"]["name"], name, "it is the one that was asked for");
    until("a look", || server.log(), |log| log.contains("serving"));
    went_on += usize::from(server.log().contains("the rebuild goes on where it was"));
    assert!(went_on > 0, "every start began anew");
    let answered = traffic.answered.load(Ordering::Relaxed);
    until("answers after the switch", || traffic.answered.load(Ordering::Relaxed), |now| *now > answered + 3);
    traffic.ended.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    asker.join().unwrap();
    drop(reader.stdin.take());
    let read = reader.wait_with_output().unwrap();
    assert!(read.status.success());
    let read: Value = serde_json::from_slice(&read.stdout).unwrap_or_else(|_| panic!("{}", text(&read.stdout)));
    assert!(read["least"].as_i64().unwrap() >= sessions && read["twice"] == 0, "{read}, of {sessions} sessions");

    // Held against the same events imported into nothing.
    let before = home.tables();
    let file = home.path("all.ndjson");
    home.ok(&["export", file.to_str().unwrap()]);
    server.stop_in_order();
    before.assert_equal(&home.tables(), "after a restart");
    let straight = Home::new(&[]);
    straight.ok(&["import", "--wait", "--late", file.to_str().unwrap()]);
    straight.tables().assert_equal(&before, "imported anew");
    assert!(!home.data().join("rebuilds").join(format!("{}.state", name.as_str().unwrap())).exists());
}

#[test]
fn a_rebuild_cut_off_offline_is_gone_on_with() {
    let home = Home::new(&[r#"fold.memory = "64MiB""#]);
    home.ok_with(&["import", "--wait", "-"], &input(&some_events(60_000)));
    let before = home.tables();
    let mut random = super::generate::Random(seed());
    for _ in 0..4 {
        let mut child = home.command(&["rebuild"]).spawn().unwrap();
        let pause = std::time::Duration::from_millis(100 + random.below(1_500));
        println!("killed after {pause:?}: {}", super::harness::kill_after(&mut child, pause));
    }
    before.assert_equal(&home.tables(), "cut off");
    home.ok(&["rebuild"]);
    before.assert_equal(&home.tables(), "rebuilt in the end");
}

#[test]
fn another_rebuild_waits_for_the_unfinished_one_or_its_end() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &input(&some_events(60_000)));
    let server = home.serve();
    let ask = |body: &str| {
        super::harness::request(http().post(format!("{}/api/v1/rebuilds", server.console)).body(body.to_owned()))
    };
    assert_eq!(ask(r#"{"as":"one"}"#).status, 202);
    // The same wish again is the same rebuild; another one is refused while it lasts.
    let (again, other) = (ask(r#"{"as":"one"}"#).status, ask(r#"{"as":"two"}"#));
    assert!(again == 202 || again == 422, "{again}");
    assert!(other.status == 202 || (other.status == 409 && other.problem().contains("one")), "{}", other.text());
    let gone = super::harness::request(http().delete(format!("{}/api/v1/rebuilds/one", server.console)));
    assert_eq!(gone.status, 204, "{}", gone.text());
    assert_eq!(server.sql_as("select * from one.sessions", "application/json").status, 422);
    until("its end", || ask(r#"{"as":"three"}"#).status, |status| *status == 202);
}

/// How the newest rebuild of a data directory stands, as its file says.
fn phase(home: &Home) -> Option<String> {
    let files = std::fs::read_dir(home.data().join("rebuilds")).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let newest = files.filter(|path| path.extension().is_some_and(|extension| extension == "json")).max()?;
    let job: Value = serde_json::from_slice(&std::fs::read(newest).ok()?).ok()?;
    Some(job["phase"].as_str()?.to_owned())
}

#[test]
fn a_rebuild_killed_during_its_switch_is_completed_or_begun_anew() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &input(&some_events(12_000)));
    let mut random = super::generate::Random(seed() ^ 0x7377_6974);
    let rounds = if is_long() { 40 } else { 5 };
    let (mut before, mut switched, mut within, mut round) = (home.tables(), 0, 0, 0);
    // As long as none is within, some more.
    while round < rounds || within == 0 && round < 4 * rounds {
        // Under another policy, so that the old rows and the new ones are told apart.
        let policy = ["vbm", "counterbat"][round % 2];
        home.configure(&[&format!("fold.policy = {policy:?}")]);
        let mut child = home.command(&["rebuild"]).spawn().unwrap();
        let began = std::time::Instant::now();
        while phase(&home).as_deref() != Some("switching") && child.try_wait().unwrap().is_none() {
            assert!(began.elapsed().as_secs() < 120, "it never came to the switch");
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        // The first at once.
        let pause = std::time::Duration::from_micros(if round == 0 { 0 } else { random.below(250_000) });
        let killed = super::harness::kill_after(&mut child, pause);
        let left = phase(&home);
        println!("round {round}: killed {pause:?} into the switch: {killed}, then {left:?}");
        within += usize::from(killed && left.as_deref() == Some("switching"));
        let now = home.tables();
        let of = |table: &str| home.number(&format!("select count(*) from {table} where policy = {}", quoted(policy)));
        let all = |table: &str| home.number(&format!("select count(*) from {table}"));
        let made = ["sessions", "messages"].map(|table| (of(table), all(table)));
        let is_new = made.iter().all(|(of, all)| of == all);
        assert!(is_new || made.iter().all(|(of, _)| *of == 0), "half of it is switched to: {made:?}");
        if is_new {
            switched += 1;
        } else {
            before.assert_equal(&now, "cut off before the switch");
            home.ok(&["rebuild"]);
        }
        before = home.tables();
        round += 1;
    }
    println!("{within} of {round} cut off within, {switched} completed");
    assert!(within > 0, "no kill fell into a switch");
    home.ok(&["verify"]);
    home.ok(&["rebuild"]);
    let left = std::fs::read_dir(home.data().join("rebuilds")).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(left.filter(|path| path.is_dir()).count(), 0, "states are left");
}

fn quoted(text: &str) -> String {
    format!("'{text}'")
}
