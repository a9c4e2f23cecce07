//! A real broker: acknowledged appends, and consume + fold + commit against the same consumer doing nothing.
//!
//! `cargo bench --bench kafka -- [--events N] [--partitions N] [--seconds N]`; needs java and maven for the broker.

#[path = "../tests/it/cluster.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod cluster;
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

use counterbat::event::Event;
use counterbat::log::kafka::{KafkaLog, Settings};
use counterbat::log::{EventLog, partitioner, read_before};
use generate::{DAY_MS, HOUR_MS, MARCH_MS, Plan, history, tick_line};
use harness::Home;
use parts::Kafka;
use setup::{number, rate, timed};
use std::io::{BufWriter, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() {
    let events = number("--events", 3_000_000);
    let partitions = number("--partitions", 4) as u32;
    let seconds = number("--seconds", 10);
    let kafka = Kafka::start(1);
    let settings = |topic: &str| cluster::settings(&kafka.brokers(), topic, partitions);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();

    acknowledged(&runtime, settings("acks"), seconds);

    let brokers = format!("kafka.brokers = {:?}", kafka.brokers());
    let lake = tempfile::tempdir().unwrap();
    let home = Home::new(&[
        &format!("lake.url = {:?}", lake.path().to_str().unwrap()),
        r#"log.kind = "kafka""#,
        &format!("log.partitions = {partitions}"),
        &brokers,
        r#"kafka.topic = "bench""#,
        r#"kafka.state_topic = "bench-state""#,
        r#"kafka.registry_topic = "bench-registry""#,
        r#"kafka.group = "bench""#,
    ]);
    let ((), took) = timed(|| fill(&home, events));
    println!("{events} events, {partitions} partitions, one broker");
    println!("| import into the topic | {} |", rate(events, took));

    let (read, nothing) = timed(|| runtime.block_on(read_all(settings("bench"))));
    println!("| consumer that does nothing | {} |", rate(read, nothing));

    let last = tick_line(MARCH_MS + 10 * DAY_MS + HOUR_MS);
    let (_, folded) = timed(|| home.ok_with(&["import", "--wait", "-"], last.as_bytes()));
    println!("| consume, fold, commit all tables | {} |", rate(events, folded));
    println!("| ratio | {:.2} |", nothing.as_secs_f64() / folded.as_secs_f64());

    let count = || home.number("select count(*) from messages where state = 'provisional'");
    let (unsettled, restart) = timed(count);
    println!("| restart until caught up and asked, {unsettled} unsettled messages | {:.1} s |", restart.as_secs_f64());
    std::fs::remove_dir_all(home.data()).unwrap();
    let (again, taken) = timed(count);
    assert_eq!(again, unsettled);
    println!("| the same after taking all partitions over from the changelog | {:.1} s |", taken.as_secs_f64());
}

/// Single events at 1,000 a second, each awaited.
fn acknowledged(runtime: &tokio::runtime::Runtime, settings: Settings, seconds: u64) {
    let log = Arc::new(runtime.block_on(KafkaLog::open(settings)).unwrap());
    let mut took: Vec<Duration> = runtime.block_on(async {
        let mut appends = tokio::task::JoinSet::new();
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        for n in 0..seconds * 1000 {
            tick.tick().await;
            let (log, event) = (log.clone(), callback(n));
            appends.spawn(async move {
                let partition = partitioner::partition(event.key().as_bytes(), log.partitions());
                let began = Instant::now();
                log.append(vec![(partition, event)]).await.unwrap();
                began.elapsed()
            });
        }
        appends.join_all().await
    });
    // The first second connects.
    took.drain(..took.len().min(1000));
    took.sort();
    let at = |percent: usize| took[took.len() * percent / 100].as_secs_f64() * 1e3;
    println!("| append acknowledged at 1,000/s, p50 / p99 | {:.1} / {:.1} ms |", at(50), at(99));
}

fn callback(n: u64) -> Event {
    let user = format!("user-{}==", n % 977);
    Event {
        id: format!("message/{n}/{user}"),
        source: "/accounts/bot1".into(),
        kind: "com.viber.callback.message".into(),
        time_us: Some((MARCH_MS + n as i64) * 1000),
        data: harness::message_body(&user, n).into_bytes(),
        subject: Some(user),
        ..Event::default()
    }
}

fn fill(home: &Home, events: u64) {
    let mut child = home.command(&["import", "-"]).stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut out = BufWriter::with_capacity(1 << 20, child.stdin.take().unwrap());
    let plan = Plan { seed: 7, events: events as usize, users: events / 8, start_ms: MARCH_MS, span_ms: 10 * DAY_MS };
    for event in history(&plan) {
        event.write_line(&mut out).unwrap();
    }
    out.flush().unwrap();
    drop(out);
    assert!(child.wait().unwrap().success(), "the import failed");
}

/// Reads the topic from beginning to end, all partitions at the same time; how many records there were.
async fn read_all(settings: Settings) -> u64 {
    let log = Arc::new(KafkaLog::open(settings).await.unwrap());
    let mut reads = tokio::task::JoinSet::new();
    for partition in 0..log.partitions() {
        let log = log.clone();
        reads.spawn(async move {
            let (mut next, end) = log.bounds(partition).await.unwrap();
            let mut records = 0;
            while next < end {
                let fetched = read_before(&*log, partition, next, end, 8192, 8 << 20).await.unwrap();
                records += fetched.records.len() as u64;
                next = fetched.next;
            }
            records
        });
    }
    reads.join_all().await.into_iter().sum()
}
