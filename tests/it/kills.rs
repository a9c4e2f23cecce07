//! Imports and servers killed at random moments end with the tables of a run that nobody disturbed.
//!
//! `TEST_LONG=1` takes a million events and 20 kills; `TEST_EVENTS` and `TEST_SEED` set their own.

use super::generate::{DAY_MS, Generated, HOUR_MS, MARCH_MS, Plan, Random, history, lines, tick_line};
use super::harness::{Home, Tables, kill_after};
use super::viber::{is_long, number, seed};
use std::path::Path;
use std::time::Duration;

struct Size {
    events: usize,
    import_kills: usize,
    serve_kills: usize,
    seed: u64,
}

fn size() -> Size {
    let long = is_long();
    let events = number("TEST_EVENTS").unwrap_or(if long { 1_000_000 } else { 60_000 }) as usize;
    let kills = if long { 10 } else { 4 };
    // The moments of the kills are random anyway; the seed is printed so that the history can be made again.
    let seed = seed();
    println!("{events} events");
    Size { events, import_kills: kills, serve_kills: kills, seed }
}

fn plan(size: &Size, span_ms: i64) -> Plan {
    Plan { seed: size.seed, events: size.events, users: size.events as u64 / 8, start_ms: MARCH_MS, span_ms }
}

/// The import file: the events, then a tick that leaves the last days unsettled.
fn file(home: &Home, name: &str, events: &[Generated]) -> String {
    let mut bytes = lines(events);
    let last = events.iter().map(|event| event.arrival_ms).max().unwrap();
    bytes.extend(tick_line(last + HOUR_MS).into_bytes());
    let path = home.path(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Imports in one go; what the tables hold then. Every event lies there once.
fn undisturbed(file: &str, events: usize, settings: &[&str]) -> Tables {
    let home = Home::new(settings);
    home.ok(&["import", "--wait", file]);
    assert_eq!(home.number("select count(*) from events"), events as i64);
    assert_each_position_once(&home, 1);
    assert_eq!(home.number("select count(*) from events where disposition in ('malformed', 'too_late')"), 0);
    home.tables()
}

/// `imports` is how often the file was imported at most; each import ends with a tick of every partition.
fn assert_each_position_once(home: &Home, imports: usize) {
    let twice = "select count(*) from (select partition, \"offset\" from events group by 1, 2 having count(*) > 1)";
    assert_eq!(home.number(twice), 0, "a position is archived twice");
    // Only ticks are not in the archive.
    let missing = "select coalesce(sum(held), 0) from (select max(\"offset\") + 1 - count(*) as held from events group by partition)";
    let missing = home.number(missing);
    assert!((0..=4 * imports as i64).contains(&missing), "{missing} positions are not in the archive");
}

fn kill_imports(home: &Home, random: &mut Random, args: &[&str], kills: usize) {
    for _ in 0..kills {
        let mut child = home.command(args).spawn().unwrap();
        let pause = Duration::from_millis(20 + random.below(1500));
        let killed = kill_after(&mut child, pause);
        println!("import after {pause:?}: {}", if killed { "killed" } else { "had ended" });
    }
}

fn kill_servers(home: &Home, random: &mut Random, args: &[&str], kills: usize) {
    for _ in 0..kills {
        let server = home.serve();
        let mut client = home.command(args).spawn().unwrap();
        let pause = Duration::from_millis(20 + random.below(2500));
        let ended = !kill_after(&mut client, pause);
        println!("serve killed after {pause:?}; the client {}", if ended { "had ended" } else { "was at work" });
        server.kill();
    }
}

fn killed_run(file: &str, size: &Size, settings: &[&str], args: &[&str]) -> Home {
    let home = Home::new(settings);
    let mut random = Random(size.seed ^ 0x6b69_6c6c);
    let mut args = args.to_vec();
    args.push(file);
    kill_imports(&home, &mut random, &args, size.import_kills);
    kill_servers(&home, &mut random, &args, size.serve_kills);
    home.ok(&args);
    assert_each_position_once(&home, size.import_kills + size.serve_kills + 1);
    home
}

#[test]
fn kills_in_the_middle_change_nothing() {
    let size = size();
    let events = history(&plan(&size, 40 * DAY_MS));
    let files = Home::new(&[]);
    let file = file(&files, "ordered.ndjson", &events);
    let quiet = undisturbed(&file, events.len(), &[]);

    // An import begun again finds most of its events too late by now: they are repeats, and change no row.
    let home = killed_run(&file, &size, &[], &["import", "--wait", "--late"]);
    quiet.assert_equal(&home.tables(), "after kills");
    std::fs::remove_dir_all(home.data().join("state")).unwrap();
    quiet.assert_equal(&home.tables(), "after kills, state deleted");
    home.ok(&["rebuild"]);
    quiet.assert_equal(&home.tables(), "after kills, rebuilt");
}

#[test]
fn arrival_in_any_order_changes_nothing() {
    let size = size();
    let settings = [r#"fold.allowed_lateness = "365d""#];
    let mut events = history(&plan(&size, 40 * DAY_MS));
    let files = Home::new(&[]);
    let ordered = file(&files, "ordered.ndjson", &events);
    let quiet = undisturbed(&ordered, events.len(), &settings);

    Random(size.seed ^ 0x7368_7566).shuffle(&mut events);
    let shuffled = file(&files, "shuffled.ndjson", &events);
    let home = killed_run(&shuffled, &size, &settings, &["import", "--wait"]);
    quiet.assert_equal(&home.tables(), "shuffled, after kills");
    assert!(Path::new(&shuffled).exists());
}

#[test]
fn acknowledged_callbacks_survive_a_kill() {
    let home = Home::new(&[]);
    let server = home.serve();
    for n in 0..200 {
        let body = super::harness::message_body(&format!("user-{}==", n % 50), 6_150_000_000_000_000_000 + n);
        assert_eq!(server.callback(&body).status, 200);
    }
    server.kill();
    assert_eq!(home.number("select count(distinct message_token) from events where disposition = 'fact'"), 200);
    assert_eq!(home.number("select sum(inbound) from sessions"), 200);
    let server = home.serve();
    assert_eq!(server.number("select count(*) from events"), 200);
}
