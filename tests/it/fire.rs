//! Exactly once, whatever burns: projectors are killed and stopped, brokers go, partitions move, wires are cut, while a
//! ledger outside the program says what must be there.
//!
//! `TEST_LONG=1` takes 300,000 events and five minutes of fire instead of 30,000 and 40 seconds; `TEST_EVENTS`,
//! `TEST_SECONDS` and `TEST_SEED` set their own.

use super::cluster::Cluster;
use super::generate::{DAY_MS, Generated, HOUR_MS, MARCH_MS, Plan, Random, history, lines, tick_line};
use super::harness::{Home, Tables, until};
use super::parts::{Cuts, Kafka, Minio, missing, produce};
use super::viber::{is_long, number, seed};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 6;

/// Short intervals, so that much is under way at any moment.
const BUSY: [&str; 2] = [r#"lake.commit_every = "1s""#, r#"lake.snapshot_every = "2s""#];

/// Events in the tables as the first who answers sees them; 0 when nobody does.
fn archived(homes: &[Home]) -> i64 {
    let count = |home: &Home| {
        let output = home.run(&["sql", "--format", "ndjson", "select count(*) as n from events"]);
        let row: Value = serde_json::from_slice(&output.stdout).ok()?;
        row["n"].as_i64()
    };
    homes.iter().filter(|home| is_served(home)).filter_map(count).max().unwrap_or(0)
}

/// Whether a server has the data directory; else a command would take it, and the server that starts be refused.
fn is_served(home: &Home) -> bool {
    home.data().join("server.json").exists()
}

/// Waits until a server on this data directory answers.
fn until_it_answers(home: &Home) {
    until("a server", || is_served(home), |served| *served);
    until("an answer", || home.run(&["sql", "select 1"]).status.success(), |done| *done);
}

/// A `serve` that is killed, paused and started again.
struct Projector<'a> {
    home: &'a Home,
    child: Option<Child>,
}

impl<'a> Projector<'a> {
    fn start(home: &'a Home) -> Self {
        let mut projector = Projector { home, child: None };
        projector.run();
        projector
    }

    /// Starts it where it does not run, be it that it has ended by itself.
    fn run(&mut self) {
        if self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none()) {
            return;
        }
        let log = std::fs::File::options().create(true).append(true).open(self.home.path("serve.log")).unwrap();
        let mut command: Command = self.home.command(&["serve"]);
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    fn signal(&self, signal: &str) {
        if let Some(child) = &self.child {
            Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status().unwrap();
        }
    }

    /// kill -9.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().unwrap();
        }
    }

    /// SIGTERM, and the end that follows.
    fn stop(&mut self) {
        self.signal("TERM");
        if let Some(mut child) = self.child.take() {
            super::harness::wait_exit(&mut child);
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.path("serve.log")).unwrap_or_default()
    }
}

impl Drop for Projector<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the end of a projector's log:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        self.kill();
    }
}

/// The tables of one import into an embedded log, and how often each id came.
fn quiet(events: &[Generated]) -> (Tables, BTreeMap<String, i64>) {
    let home = Home::new(&[&format!("log.partitions = {PARTITIONS}")]);
    home.ok_with(&["import", "--wait", "-"], &file(events));
    (home.tables(), ids(&home))
}

fn file(events: &[Generated]) -> Vec<u8> {
    let mut bytes = lines(events);
    bytes.extend(last_tick(events).into_bytes());
    bytes
}

fn last_tick(events: &[Generated]) -> String {
    tick_line(events.iter().map(|event| event.arrival_ms).max().unwrap() + HOUR_MS)
}

fn ids(home: &Home) -> BTreeMap<String, i64> {
    let rows = home.sql("select event_id, disposition, count(*) as n from events group by 1, 2");
    let key = |row: &Value| format!("{} {}", row["event_id"], row["disposition"]);
    rows.iter().map(|row| (key(row), row["n"].as_i64().unwrap())).collect()
}

/// Whether the fire has been put out, or the feeding is over.
struct Fire {
    random: Random,
    out: Instant,
}

impl Fire {
    fn pause(&mut self, least_ms: u64, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(least_ms + self.random.below(most_ms - least_ms)));
    }

    fn burns(&self) -> bool {
        Instant::now() < self.out
    }

    /// One thing that goes wrong, and is mended after a while.
    fn strike(&mut self, projectors: &mut [Projector<'_>], kafka: &mut Kafka, store: &Cuts) {
        let victim = self.random.below(projectors.len() as u64) as usize;
        let broker = 1 + self.random.below(3) as usize;
        match self.random.below(12) {
            0..=2 => {
                println!("projector {victim} is killed");
                projectors[victim].kill();
                self.pause(50, 3000);
            }
            3 => {
                println!("projector {victim} is stopped");
                projectors[victim].stop();
                self.pause(50, 2000);
            }
            4 => {
                println!("projector {victim} sleeps");
                projectors[victim].signal("STOP");
                self.pause(500, 9000);
                projectors[victim].signal("CONT");
            }
            5 => {
                println!("broker {broker} is killed");
                kafka.kill(broker);
                self.pause(500, 4000);
                kafka.restart(broker);
            }
            6 => {
                println!("broker {broker} is stopped");
                kafka.terminate(broker);
                self.pause(500, 3000);
                kafka.restart(broker);
            }
            7 | 8 => {
                println!("the store's wires are cut");
                store.cut();
                store.refuse(true);
                self.pause(50, 3000);
                store.refuse(false);
            }
            9 => {
                println!("the store is slow");
                store.delay(Duration::from_millis(100 + self.random.below(300)));
                self.pause(500, 3000);
                store.delay(Duration::ZERO);
            }
            10 => {
                println!("the store says nothing");
                store.stall(true);
                self.pause(200, 2500);
                store.stall(false);
            }
            _ => {
                println!("wires to broker {broker} are cut");
                kafka.cuts(broker).cut();
                kafka.cuts(broker).delay(Duration::from_millis(self.random.below(50)));
                self.pause(50, 1500);
                kafka.cuts(broker).delay(Duration::ZERO);
            }
        }
        projectors.iter_mut().for_each(Projector::run);
        self.pause(100, 1500);
    }
}

#[test]
fn under_fire_every_event_counts_once() {
    if missing("kafka") || missing("minio") {
        return;
    }
    let seed = seed();
    let events = number("TEST_EVENTS").unwrap_or(if is_long() { 300_000 } else { 30_000 }) as usize;
    let seconds = number("TEST_SECONDS").unwrap_or(if is_long() { 300 } else { 40 });
    println!("{events} events, {seconds} s");
    let plan = Plan { seed, events, users: events as u64 / 8, start_ms: MARCH_MS, span_ms: 20 * DAY_MS };
    let ledger = history(&plan);
    let (wanted, wanted_ids) = quiet(&ledger);

    let (mut kafka, minio) = (Kafka::start(3), Minio::start());
    let store = Cuts::before(minio.address());
    let endpoint = format!("http://{}", store.address());
    let patience = r#"kafka.properties."session.timeout.ms" = 6000"#;
    let settings = [BUSY[0], BUSY[1], patience];
    let cluster = Cluster::on(&kafka.brokers_behind_cuts(), &minio, &endpoint, PARTITIONS, &settings);
    let homes: Vec<Home> = (0..3).map(|_| cluster.home()).collect();
    let mut projectors: Vec<Projector<'_>> = homes.iter().map(Projector::start).collect();
    until_it_answers(&homes[0]);

    let (fed, brokers, topic) = (AtomicBool::new(false), kafka.brokers(), cluster.topic());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // As the gateways do: to the brokers, each event until it is acknowledged.
            let pieces = ledger.len().div_ceil(seconds.max(4) as usize);
            let began = Instant::now();
            for (n, piece) in ledger.chunks(pieces).enumerate() {
                assert_eq!(produce(&brokers, &topic, "murmur2_random", &lines(piece)), piece.len());
                let due = Duration::from_millis(n as u64 * 1000);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
            fed.store(true, Ordering::SeqCst);
        });
        let mut fire = Fire { random: Random(seed ^ 0x6669_7265), out: Instant::now() + Duration::from_secs(seconds) };
        while fire.burns() {
            fire.strike(&mut projectors, &mut kafka, &store);
        }
    });
    assert!(fed.load(Ordering::SeqCst));
    println!("the fire is out");
    until("every event in the tables", || archived(&homes), |n| *n >= events as i64);
    projectors.iter_mut().for_each(Projector::stop);

    let home = &homes[0];
    home.ok_with(&["import", "--wait", "-"], last_tick(&ledger).as_bytes());
    assert_eq!(home.number("select count(*) from events"), events as i64);
    let found = ids(home);
    let missing = wanted_ids.iter().find(|(id, n)| found.get(*id) != Some(n));
    assert_eq!(missing.map(|(id, n)| (id, n, found.get(id))), None, "the ledger has what the tables have not");
    wanted.assert_equal(&home.tables(), "after the fire");
    // Another process, with nothing of its own, takes everything over.
    std::fs::remove_dir_all(home.data()).unwrap();
    wanted.assert_equal(&home.tables(), "taken over");
}

#[test]
fn a_projector_that_slept_through_its_session_commits_nothing() {
    if missing("shared kafka") || missing("shared minio") {
        return;
    }
    let seed = seed();
    let rounds = if is_long() { 10 } else { 2 };
    let plan = Plan { seed, events: 6000, users: 700, start_ms: MARCH_MS, span_ms: 10 * DAY_MS };
    let ledger = history(&plan);
    let (wanted, wanted_ids) = quiet(&ledger);
    let settings = [
        BUSY[0],
        BUSY[1],
        r#"kafka.properties."session.timeout.ms" = 1500"#,
        r#"kafka.properties."heartbeat.interval.ms" = 300"#,
    ];
    let (kafka, cluster) = (Kafka::shared(), Cluster::new(PARTITIONS, &settings));
    let homes = [cluster.home(), cluster.home()];
    let mut projectors: Vec<Projector<'_>> = homes.iter().map(Projector::start).collect();
    let assigned = |projector: &Projector<'_>| projector.log().matches("partitions are assigned").count();
    homes.iter().for_each(until_it_answers);

    let topic = cluster.topic();
    let mut random = Random(seed);
    let pieces: Vec<&[Generated]> = ledger.chunks(ledger.len().div_ceil(2 * rounds)).collect();
    let mut sent = 0;
    for (round, pair) in pieces.chunks(2).enumerate() {
        // It sleeps at any moment of its work, with records folded that are in no table yet.
        sent += produce(&kafka.brokers(), &topic, "murmur2_random", &lines(pair[0]));
        std::thread::sleep(Duration::from_millis(random.below(1200)));
        let (sleeper, other) = (round % 2, (round + 1) % 2);
        projectors[sleeper].signal("STOP");
        let before = assigned(&projectors[sleeper]);
        for piece in &pair[1..] {
            sent += produce(&kafka.brokers(), &topic, "murmur2_random", &lines(piece));
        }
        let awake = &homes[other..=other];
        until("the other to have everything", || archived(awake), |n| *n == sent as i64);
        projectors[sleeper].signal("CONT");
        until("its return", || assigned(&projectors[sleeper]), |now| *now > before);
    }
    projectors.iter_mut().for_each(Projector::stop);
    let home = &homes[0];
    home.ok_with(&["import", "--wait", "-"], last_tick(&ledger).as_bytes());
    assert_eq!(ids(home), wanted_ids);
    wanted.assert_equal(&home.tables(), "after the sleep");
}
