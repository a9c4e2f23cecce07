//! Memory and restart with many unsettled messages: the state's memory is a cache with a limit.
//!
//! `cargo bench --bench memory -- [--messages N] [--users N] [--memory MIB]`

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;

use generate::{DAY_MS, Generated, MARCH_MS, Random, What};
use harness::{Home, until};
use setup::{files, number, rate, resident, size, timed};
use std::io::{BufWriter, Write};
use std::process::Stdio;

fn main() {
    let messages = number("--messages", 20_000_000);
    let users = number("--users", 1_000_000);
    let memory = format!("fold.memory = \"{}MiB\"", number("--memory", 256));
    let home = Home::new(&[&memory]);

    let mut child =
        home.command(&["import", "--wait", "-"]).stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let pid = child.id();
    let input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || write_messages(input, messages, users));
    let mut peak = 0;
    let (status, took) = timed(|| {
        loop {
            peak = peak.max(resident(pid).0);
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    });
    assert!(status.success(), "the import failed");
    writer.join().unwrap();
    println!("{messages} messages of {users} users over 10 days, [fold] memory as set: {memory}");
    println!("| import --wait | {} |", rate(messages, took));
    println!("| largest RSS of the import | {} |", size(peak));
    println!("| state on disk | {} |", size(files(&home.data().join("state")).values().sum()));

    let (server, start) = timed(|| {
        let server = home.serve();
        until("readiness", || server.get("/readyz").status, |status| *status == 200);
        server
    });
    println!("| restart until ready | {:.1} s |", start.as_secs_f64());
    println!("| RSS once ready | {} |", size(resident(server.pid()).1));
    let (counted, asked) = timed(|| server.number("select count(*) from messages where state = 'provisional'"));
    assert_eq!(counted, messages as i64);
    println!("| count of unsettled messages by SQL | {:.1} s |", asked.as_secs_f64());
    println!("| largest RSS of the server | {} |", size(resident(server.pid()).0));
    assert!(server.stop().success());
}

/// Sends in order of time, to random users, each with its own token.
fn write_messages(input: impl Write, messages: u64, users: u64) {
    let mut out = BufWriter::with_capacity(1 << 20, input);
    let mut random = Random(3);
    for n in 0..messages {
        let t_ms = MARCH_MS + (10 * DAY_MS) * n as i64 / messages as i64;
        let token = 6_150_000_000_000_000_000 + n * 977;
        let what = What::Send(1 + (random.below(5) as i32));
        let event = Generated { arrival_ms: t_ms, t_ms, user: random.below(users), token, what };
        event.write_line(&mut out).unwrap();
    }
    out.flush().unwrap();
}
