//! `compare` of the live tables with a generation under another policy: two months of messages.
//!
//! `cargo bench --bench compare -- [--messages N] [--users N]`

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[path = "setup/imported.rs"]
mod imported;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;

use generate::{DAY_MS, MARCH_MS, Plan, history};
use harness::Home;
use imported::import;
use serde_json::Value;
use setup::{number, rate, resident, size, timed};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const TWO_MONTHS_MS: i64 = 61 * DAY_MS;

fn main() {
    let wanted = number("--messages", 1_000_000);
    let users = number("--users", wanted / 20 + 1);
    let home = Home::new(&[r#"fold.policy = "viber-2022""#]);
    // Somewhat less than every third event of such a history is a message sent.
    let events = usize::try_from(wanted).unwrap() * 16 / 5;
    let plan = Plan { seed: 1, events, users, start_ms: MARCH_MS, span_ms: TWO_MONTHS_MS };
    import(&home, &history(&plan));
    let count = |table: &str| home.number(&format!("select count(*) from {table}")).unsigned_abs();
    let (messages, sessions) = (count("messages"), count("sessions"));
    println!("{events} events of {users} users in two months: {messages} messages, {sessions} sessions");

    let (_, made, peak) = watched(home.command(&["rebuild", "--as", "other", "--policy", "gupshup"]));
    println!("| rebuild --as, offline | {}, largest RSS {} |", rate(events as u64, made), size(peak));
    let rows = messages + sessions;
    for args in [&["--rows", "0"][..], &["--rows", "100"]] {
        let mut command = home.command(&["compare", "live", "other", "--format", "json"]);
        let (output, took, peak) = watched_in(command.args(args));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        println!(
            "| compare live other {}, {} sessions and {} messages differ | {:.1} s, {} rows, largest RSS {} |",
            args.join(" "),
            found["sessions"]["differing"],
            found["messages"]["differing"],
            took.as_secs_f64(),
            rate(rows, took),
            size(peak)
        );
    }
}

fn watched(mut command: Command) -> (Output, Duration, u64) {
    watched_in(&mut command)
}

/// Runs a command that must succeed: its output, how long it took, and its largest resident memory.
fn watched_in(command: &mut Command) -> (Output, Duration, u64) {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let pid = child.id();
    let watching = std::thread::spawn(move || {
        let mut peak = 0;
        loop {
            let (largest, _) = resident(pid);
            if largest == 0 {
                return peak;
            }
            peak = largest;
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (output, took) = timed(|| child.wait_with_output().unwrap());
    assert!(output.status.success());
    (output, took, watching.join().unwrap())
}
