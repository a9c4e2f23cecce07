//! An outage of the brokers: how fast sends go while what comes of them waits on the disk, and how fast the log gets it when
//! the brokers are back.
//!
//! `cargo bench --bench spill -- [--connections N] [--seconds N]`; needs wrk and nginx (Debian: apt-get install wrk nginx), java
//! and maven for the broker. Viber is an nginx that takes everything.

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[path = "setup/load.rs"]
#[allow(dead_code, reason = "shared by the bench programs")]
mod load;
#[path = "../tests/it/parts/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests, which use all of it")]
mod parts;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;
#[path = "../tests/it/tools.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod tools;

use harness::{Home, Server, TOKEN, until};
use load::{Load, Nginx, lua, wrk};
use parts::Kafka;
use serde_json::json;
use setup::{number, rate, size};
use std::time::Instant;

const ANSWER: &str = r#"{"status":0,"status_message":"ok","message_token":6156995993335728388,"billing_status":1}"#;
const USERS: u64 = 20_000;

fn main() {
    let (connections, seconds) = (number("--connections", 64), number("--seconds", 10));
    let kafka = Kafka::start(1);
    let files = Home::new(&[]);
    let viber = Nginx::start(&files.path("viber"), &format!("return 200 '{ANSWER}';"));
    let sends = files.path("sends.lua");
    let body =
        |n| json!({"receiver": format!("{n:016x}=="), "type": "text", "text": "Your order is on its way"}).to_string();
    std::fs::write(&sends, lua(&[("X-Viber-Auth-Token", TOKEN)], (0..USERS).map(|n| (body(n), None)))).unwrap();
    println!("| what | rate | p50 | p99 |\n|---|---|---|---|");
    for intent in [true, false] {
        let home = Home::new(&[
            r#"log.kind = "kafka""#,
            &format!("kafka.brokers = {:?}", kafka.brokers_behind_cuts()),
            &format!(r#"kafka.topic = "spill-{intent}""#),
            &format!(r#"kafka.state_topic = "spill-{intent}-state""#),
            &format!(r#"kafka.group = "spill-{intent}""#),
            &format!("upstream.url = {:?}", viber.address()),
            &format!("log.intent = {intent}"),
            r#"log.spill_size = "8GiB""#,
        ]);
        let server = home.serve();
        let address = format!("{}/pa/send_message", server.gateway);
        let run = || wrk(&sends, &address, connections, seconds);
        show(&format!("sends, the broker there, log.intent = {intent}"), &run());
        kafka.cuts(1).refuse(true);
        kafka.cuts(1).cut();
        let away = || server.get("/readyz").status == 200 && waiting(&server) > 0.0;
        until("the outage", || wrk(&sends, &address, 1, 1).rate > 0.0 && away(), |away| *away);
        show(&format!("sends, the broker away, log.intent = {intent}"), &run());
        drain(&kafka, &server);
        server.stop_in_order();
    }
}

fn show(what: &str, load: &Load) {
    println!("| {what} | {:.0}/s | {} | {} |", load.rate, load.p50, load.p99);
}

fn waiting(server: &Server) -> f64 {
    server.metric("counterbat_spill_events")
}

/// Lets the broker be there again, and takes the time from the first event that comes to it to the last.
fn drain(kafka: &Kafka, server: &Server) {
    let (events, bytes) = (waiting(server), server.metric("counterbat_spill_bytes"));
    kafka.cuts(1).refuse(false);
    until("the broker", || waiting(server), |left| *left < events);
    let (began, first) = (Instant::now(), waiting(server));
    until("an empty spill", || waiting(server), |left| *left == 0.0);
    let (waited, drained) = (size(bytes as u64), rate(first as u64, began.elapsed()));
    println!("| drained, of {events} events, {waited} | {drained} | | |");
}
