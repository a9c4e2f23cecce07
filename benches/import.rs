//! Import of generated traffic to committed tables, against two things it cannot do without: parsing the same lines as
//! JSON on all cores, and writing the same bytes durably.
//!
//! `cargo bench --bench import -- [--events N] [--users N]`

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;

use generate::{DAY_MS, MARCH_MS, Plan, history};
use harness::Home;
use setup::{number, rate, size, timed};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

fn main() {
    let events = number("--events", 2_000_000);
    let users = number("--users", 1_000_000);
    let home = Home::new(&[]);
    let file = home.path("events.ndjson");
    let plan = Plan { seed: 1, events: events as usize, users, start_ms: MARCH_MS, span_ms: 30 * DAY_MS };
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&file).unwrap());
    for event in history(&plan) {
        event.write_line(&mut out).unwrap();
    }
    out.into_inner().unwrap().sync_all().unwrap();
    let bytes = file.metadata().unwrap().len();
    println!("{events} events of {users} users in {}, {} each", size(bytes), size(bytes / events));

    let (_, parse) = timed(|| parse_all(&file));
    println!("| parse the lines as JSON, {} threads | {} |", threads(), rate(events, parse));
    let (_, durable) = timed(|| copy_durably(&file, &home.path("copy")));
    println!("| write the bytes, fsync per MB | {} |", rate(events, durable));
    std::fs::remove_file(home.path("copy")).unwrap();

    let (_, append) = timed(|| home.ok(&["import", file.to_str().unwrap()]));
    println!("| import (log only) | {} |", rate(events, append));
    std::fs::remove_dir_all(home.data()).unwrap();
    let (_, import) = timed(|| home.ok(&["import", "--wait", file.to_str().unwrap()]));
    println!("| import --wait (committed tables) | {} |", rate(events, import));
    assert_eq!(home.number("select count(*) from events"), events as i64);
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn parse_all(file: &Path) {
    let bytes = std::fs::read(file).unwrap();
    let lines: Vec<&[u8]> = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()).collect();
    std::thread::scope(|scope| {
        for part in lines.chunks(lines.len().div_ceil(threads())) {
            scope.spawn(move || {
                let parsed = part.iter().filter(|line| serde_json::from_slice::<serde_json::Value>(line).is_ok());
                assert_eq!(parsed.count(), part.len());
            });
        }
    });
}

fn copy_durably(from: &Path, to: &Path) {
    let (mut source, mut target) = (File::open(from).unwrap(), File::create(to).unwrap());
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = source.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        target.write_all(&buffer[..n]).unwrap();
        target.sync_data().unwrap();
    }
}
