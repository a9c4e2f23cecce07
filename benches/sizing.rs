//! What an event costs, for planning: bytes in Kafka, in the tables and in the state, and time of a processor.
//!
//! `cargo bench --bench sizing -- [--events N] [--callbacks N]`; needs java and maven for the broker. What the figures mean
//! for a number of bots: `deploy/README.md`.

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[path = "../tests/it/parts/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests, which use all of it")]
mod parts;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;
#[path = "../tests/it/tools.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod tools;

use generate::{DAY_MS, HOUR_MS, MARCH_MS, Plan, history, tick_line};
use harness::{Home, Server, TOKEN, http, message_body, runtime, sign};
use parts::Kafka;
use setup::{files, number};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Stdio;

fn main() {
    let events = number("--events", 2_000_000);
    let callbacks = number("--callbacks", 100_000);
    let kafka = Kafka::start(1);
    let lake = tempfile::tempdir().unwrap();
    let home = Home::new(&[
        &format!("lake.url = {:?}", lake.path().to_str().unwrap()),
        r#"log.kind = "kafka""#,
        &format!("kafka.brokers = {:?}", kafka.brokers()),
        r#"kafka.topic = "sizing""#,
        r#"kafka.state_topic = "sizing-state""#,
        r#"kafka.group = "sizing""#,
    ]);
    println!("{events} events of 10 days, one broker");
    let (importing, text) = spent(|| fill(&home, events));
    println!("| an event as a line of NDJSON | {} B |", text / events);
    println!("| an event in the topic, with its index | {} B |", kafka.bytes("sizing-") / events);
    println!("| processor, import into the topic | {:.1} µs an event |", importing / events as f64);

    let last = tick_line(MARCH_MS + 10 * DAY_MS + HOUR_MS);
    let (folding, _) = spent(|| home.ok_with(&["import", "--wait", "-"], last.as_bytes()));
    println!("| processor, consume + fold + commit | {:.1} µs an event |", folding / events as f64);
    println!("| the state in the changelog, as it grows | {} B an event |", kafka.bytes("sizing-state-") / events);

    let count = |query: &str| home.number(query) as u64;
    for table in ["events", "messages", "sessions"] {
        let rows = count(&format!("select count(*) from {table}"));
        let bytes = bytes(&lake.path().join(table));
        println!(
            "| {table}: rows an event, bytes a row | {:.2}, {} B |",
            rows as f64 / events as f64,
            bytes / rows.max(1)
        );
    }
    let unsettled = count("select count(*) from messages where state = 'provisional'");
    let state = bytes(&home.data().join("state"));
    println!("| the state on disk | {} B an unsettled message |", state / unsettled.max(1));

    let server = home.serve();
    let before = processor(server.pid());
    post(&server, callbacks);
    let taken = processor(server.pid()) - before;
    println!("| processor, a callback taken, recorded, folded and committed | {:.0} µs |", taken / callbacks as f64);
}

/// What it takes of the processor in the processes it starts and waits for, in µs.
fn spent<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let before = ticks("self", [13, 14]);
    let result = work();
    (ticks("self", [13, 14]) - before, result)
}

/// What a process has taken of the processor, in µs.
fn processor(pid: u32) -> f64 {
    ticks(&pid.to_string(), [11, 12])
}

/// The sum of two fields of `/proc/PID/stat`, counted from the state of the process on, in µs.
fn ticks(pid: &str, fields: [usize; 2]) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let hundredths: u64 = fields.iter().map(|field| after_name[*field].parse::<u64>().unwrap()).sum();
    // Linux counts in hundredths of a second, whatever its clock.
    hundredths as f64 * 10_000.0
}

fn bytes(dir: &Path) -> u64 {
    files(dir).iter().filter(|(path, _)| !path.to_string_lossy().contains("_delta_log")).map(|(_, bytes)| bytes).sum()
}

/// Imports a history; how many bytes its lines have.
fn fill(home: &Home, events: u64) -> u64 {
    let mut child = home.command(&["import", "-"]).stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut out = BufWriter::with_capacity(1 << 20, child.stdin.take().unwrap());
    let plan = Plan { seed: 7, events: events as usize, users: events / 8, start_ms: MARCH_MS, span_ms: 10 * DAY_MS };
    let mut written = 0;
    for event in history(&plan) {
        let mut line = Vec::new();
        event.write_line(&mut line).unwrap();
        written += line.len() as u64;
        out.write_all(&line).unwrap();
    }
    out.flush().unwrap();
    drop(out);
    assert!(child.wait().unwrap().success(), "the import failed");
    written
}

/// Posts signed callbacks, 32 at a time.
fn post(server: &Server, callbacks: u64) {
    let url = format!("{}/webhooks/bot1", server.gateway);
    runtime().block_on(async {
        let mut under_way = tokio::task::JoinSet::new();
        for n in 0..callbacks {
            if under_way.len() >= 32 {
                under_way.join_next().await.unwrap().unwrap();
            }
            let body = message_body(&format!("user-{}==", n % 9973), 1_000_000 + n);
            let callback = http().post(&url).header("X-Viber-Content-Signature", sign(TOKEN, &body)).body(body);
            under_way.spawn(async move { assert_eq!(callback.send().await.unwrap().status(), 200) });
        }
        under_way.join_all().await;
    });
}
