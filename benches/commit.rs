//! What a commit writes after few new events, beside many unsettled messages: it follows the new ones.
//!
//! `cargo bench --bench commit -- [--events N] [--new N]`; about 2 of 5 events are messages.

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;

use generate::{DAY_MS, Generated, HOUR_MS, MARCH_MS, Plan, history};
use harness::Home;
use setup::{files, number, proc, size, timed};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

fn main() {
    let events = number("--events", 12_500_000);
    let new = number("--new", 1000);
    let home = Home::new(&[]);
    let plan = Plan { seed: 4, events: events as usize, users: 1_000_000, start_ms: MARCH_MS, span_ms: 14 * DAY_MS };
    let base = home.path("base.ndjson");
    write(&base, &history(&plan));
    let (_, took) = timed(|| home.ok(&["import", "--wait", base.to_str().unwrap()]));
    let unsettled = home.number("select count(*) from messages where state = 'provisional'");
    println!("{unsettled} unsettled messages of 14 days, imported in {:.0} s", took.as_secs_f64());

    let start_ms = MARCH_MS + 14 * DAY_MS;
    let fresh = Plan { seed: 5, events: new as usize, users: 1_000_000, start_ms, span_ms: HOUR_MS / 12 };
    let mut fresh = history(&fresh);
    // What answers these messages days later belongs to other commits.
    fresh.iter_mut().for_each(|event| event.arrival_ms = event.arrival_ms.min(start_ms + HOUR_MS));
    let file = home.path("new.ndjson");
    write(&file, &fresh);
    let lake = home.data().join("lake");
    let before = files(&lake);
    let mut child = home.command(&["import", "--wait", file.to_str().unwrap()]).spawn().unwrap();
    let mut written = 0;
    let status = loop {
        written = written.max(proc(child.id(), "io", "write_bytes:"));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert!(status.success());
    let after = files(&lake);
    for table in ["events", "messages", "sessions"] {
        let added = after.iter().filter(|(path, _)| path.starts_with(lake.join(table)) && !before.contains_key(*path));
        let (count, bytes) = added.fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes));
        let all: u64 =
            after.iter().filter(|(path, _)| path.starts_with(lake.join(table))).map(|(_, bytes)| bytes).sum();
        println!("| {table}: {count} new files after {new} events | {} of {} |", size(bytes), size(all));
    }
    println!("| all bytes the process wrote (log, state, tables) | {} |", size(written));
}

fn write(path: &Path, events: &[Generated]) {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    for event in events {
        event.write_line(&mut out).unwrap();
    }
    out.flush().unwrap();
}
