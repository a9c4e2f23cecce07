//! Query nodes beside projectors in other processes: how soon an event is seen, and what is fetched for a query.
//!
//! `cargo bench --bench nodes -- [--seconds N] [--rate N] [--partitions N]`; needs java and maven for the broker, Go for
//! the store.

#[path = "../tests/it/cluster.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod cluster;
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

use cluster::Cluster;
use harness::{Home, Server, message_body, only_number, until};
use setup::number;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SECRET: &str = r#"cluster.secret = "0123456789abcdef0123456789abcdef""#;

fn main() {
    let (seconds, rate) = (number("--seconds", 30), number("--rate", 100));
    let partitions = number("--partitions", 6) as u32;
    println!("| projectors | seen after, p50 / p99 | query alone, p50 / p99 | fetched a query | queries |");
    for projectors in [1, 3] {
        run(projectors, partitions, seconds, rate);
    }
}

fn node(cluster: &Cluster, role: &str) -> Home {
    cluster.home_with(&[&format!("roles = [{role:?}]"), SECRET])
}

/// Callbacks at a steady rate, and beside them probes: a callback of a new user, and how long after its acknowledgement a
/// query node, asked again and again, has it.
fn run(projectors: usize, partitions: u32, seconds: u64, rate: u64) {
    let cluster = Cluster::new(partitions, &[]);
    let serve = |role: &str, n: usize| -> Vec<(Home, Server)> {
        let homes: Vec<Home> = (0..n).map(|_| node(&cluster, role)).collect();
        homes.into_iter().map(|home| (home.serve(), home)).map(|(server, home)| (home, server)).collect()
    };
    let (gateways, folding, queries) = (serve("gateway", 2), serve("projector", projectors), serve("query", 1));
    let (gateway, query) = (&gateways[0].1, &queries[0].1);
    let others: Vec<&Server> = folding.iter().map(|(_, server)| server).collect();
    cluster::wait_shared(&others, partitions as usize);
    let freshness = || query.sql_as("select count(*) from sessions", "application/json").freshness;
    until("all projectors", freshness, |freshness| freshness == "complete");

    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(1_000_000_000));
    let bytes = "counterbat_overlay_bytes_total";
    let (mut seen, mut asked) = (Vec::new(), Vec::new());
    let before = query.metric(bytes);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let token = sent.fetch_add(1, Ordering::Relaxed);
                    gateways[1].1.callback(&message_body(&format!("load-{}==", token % 5000), token));
                    std::thread::sleep(Duration::from_micros(4_000_000 / rate).saturating_sub(began.elapsed()));
                }
            });
        }
        let began = Instant::now();
        for n in 0.. {
            if began.elapsed() > Duration::from_secs(seconds) {
                break;
            }
            let user = format!("probe-{n}==");
            assert_eq!(gateway.callback(&message_body(&user, n)).status, 200);
            let acknowledged = Instant::now();
            loop {
                let one = Instant::now();
                let rows = query.sql(&format!("select count(*) from sessions where user_id = '{user}'"));
                asked.push(one.elapsed());
                if only_number(&rows) == 1 {
                    break;
                }
            }
            seen.push(acknowledged.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Ordering::Relaxed);
    });
    let fetched = (query.metric(bytes) - before) / asked.len() as f64;
    println!(
        "| {projectors} | {} | {} | {:.0} KB | {} |",
        percentiles(seen),
        percentiles(asked.clone()),
        fetched / 1e3,
        asked.len()
    );
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    format!("{:.0} / {:.0} ms", at(50), at(99))
}
