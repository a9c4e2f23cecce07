//! What is answered from memory: users and quotes with many sessions open, and `/metrics` with many accounts.
//!
//! `cargo bench --bench console -- [--sessions N] [--accounts N] [--seconds S]`

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[allow(dead_code, reason = "shared by the bench programs")]
#[path = "setup/load.rs"]
mod load;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;

use harness::{Home, Server, until};
use load::{Load, wrk};
use serde_json::json;
use setup::{number, size, timed};
use std::io::{BufWriter, Write};
use std::process::Stdio;

/// Users that are asked for in turn.
const ASKED: u64 = 10_000;

fn main() {
    let (sessions, accounts) = (number("--sessions", 1_000_000), number("--accounts", 1_000));
    let seconds = number("--seconds", 20);
    let home = Home::new(&[]);
    let mut child =
        home.command(&["import", "--wait", "-"]).stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    write_openings(child.stdin.take().unwrap(), sessions, accounts);
    assert!(child.wait().unwrap().success(), "the import failed");
    let server = home.serve();
    until("readiness", || server.get("/readyz").status, |status| *status == 200);
    println!("{sessions} open sessions of {accounts} accounts, {seconds} s each, 8 connections");

    let reference = asked(&home, &server, seconds, |_| "/healthz".to_owned());
    let user = |n: u64| {
        let n = n * (sessions / ASKED.min(sessions)) % sessions;
        (format!("bot{}", n % accounts), format!("user-{n}"))
    };
    let users = asked(&home, &server, seconds, |n| {
        let (account, user) = user(n);
        format!("/api/v1/users/{account}/{user}")
    });
    let quotes = asked(&home, &server, seconds, |n| {
        let (account, user) = user(n);
        format!("/api/v1/quote?account={account}&user_id={user}")
    });
    println!("\n| | p50 | p99 | rate |\n|---|---|---|---|");
    for (name, load) in [("/healthz (reference)", reference), ("/api/v1/users", users), ("/api/v1/quote", quotes)] {
        println!("| {name} | {} | {} | {:.1} k/s |", load.p50, load.p99, load.rate / 1e3);
    }

    let mut scrapes: Vec<f64> = Vec::new();
    let mut bytes = 0;
    for _ in 0..50 {
        let (reply, took) = timed(|| server.get("/metrics"));
        assert_eq!(reply.status, 200);
        bytes = reply.body.len() as u64;
        scrapes.push(took.as_secs_f64() * 1e3);
    }
    scrapes.sort_by(f64::total_cmp);
    let lines = server.get("/metrics").text().lines().filter(|line| !line.starts_with('#')).count();
    println!("| /metrics, {lines} series, {} | {:.1} ms | {:.1} ms | |", size(bytes), scrapes[25], scrapes[49]);
}

/// Gets these addresses in turn.
fn asked(home: &Home, server: &Server, seconds: u64, path: impl Fn(u64) -> String) -> Load {
    let script = home.path("get.lua");
    let paths: String = (0..ASKED).map(|n| format!("{:?},\n", path(n))).collect();
    let text = format!(
        "local paths = {{\n{paths}}}\nlocal n = 0\nfunction request()\n  n = n % #paths + 1\n  return wrk.format('GET', paths[n])\nend\n"
    );
    std::fs::write(&script, text).unwrap();
    wrk(&script, &server.console, 8, seconds)
}

/// A message of each user, all of the last minutes.
fn write_openings(input: impl Write, sessions: u64, accounts: u64) {
    let mut out = BufWriter::with_capacity(1 << 20, input);
    let now_ms = u64::try_from(chrono::Utc::now().timestamp_millis()).expect("a time after 1970");
    for n in 0..sessions {
        let t_ms = now_ms - 600_000 + 600_000 * n / sessions;
        let time = counterbat::event::time::format_ms(i64::try_from(t_ms).expect("a time before 2262"));
        let (account, user) = (format!("bot{}", n % accounts), format!("user-{n}"));
        let said = json!({"event": "message", "timestamp": t_ms, "message_token": n, "sender": {"id": user, "country": "UA"},
            "message": {"type": "text", "text": "hi"}});
        let event = json!({"specversion": "1.0", "id": n.to_string(), "source": format!("/accounts/{account}"),
            "type": "com.viber.callback.message", "subject": user, "time": time, "data": said});
        writeln!(out, "{event}").unwrap();
    }
    out.flush().unwrap();
}
