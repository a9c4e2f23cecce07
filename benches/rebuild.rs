//! Rebuild from the archive against the same fold written in SQL for DuckDB, over the same Parquet files; and the comparison
//! of two generations.
//!
//! `cargo bench --bench rebuild -- [--events N] [--users N]`

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;
#[path = "../tests/it/tools.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod tools;

use generate::{DAY_MS, MARCH_MS, Plan, history};
use harness::Home;
use serde_json::Value;
use setup::{number, rate, resident, size, timed};
use std::fs::File;
use std::io::BufWriter;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Sessions and messages as policy viber-2022 has them: windows of a day from the user's first message, closed by an
/// unsubscription; each outbound message with its receipts and the session it belongs to.
const FOLD: &str = r#"
import json, sys, time, resource, duckdb
from deltalake import DeltaTable
files = DeltaTable(sys.argv[1] + "/events").file_uris()
db = duckdb.connect()
db.execute("set threads = 2")
# Standard output is for what it tells.
db.execute("set enable_progress_bar = false")
db.execute("set preserve_insertion_order = false")
began = time.time()
db.execute(f"create view events as select * from read_parquet({files!r}, hive_partitioning = false) where disposition = 'fact'")
db.execute("""create table facts as
  select account, user_id, message_token as token, event_time as t, origin, type, billing_status, message_type, country from events""")
db.execute("create table said as select account, user_id, t, token from facts where type = 'message'")
db.execute("create table gone as select account, user_id, t from facts where type = 'unsubscribed'")
db.execute("""create table opened as
  with recursive opening as (
    select account, user_id, min(t) as t from said group by all
    union all
    select o.account, o.user_id, n.t from (
      select o.account, o.user_id, least(o.t + interval 24 hour, coalesce(g.t, o.t + interval 24 hour)) as over
      from opening o asof left join gone g on o.account = g.account and o.user_id = g.user_id and g.t > o.t) o
    asof join said n on o.account = n.account and o.user_id = n.user_id and n.t >= o.over)
  select o.account, o.user_id, o.t as opened_at,
    least(o.t + interval 24 hour, coalesce(g.t, o.t + interval 24 hour)) as closed_at
  from opening o asof left join gone g on o.account = g.account and o.user_id = g.user_id and g.t > o.t""")
db.execute("""create table receipts as select account, user_id, token,
    min(t) filter (where type = 'delivered') as delivered_at, min(t) filter (where type = 'seen') as seen_at,
    min(t) filter (where type = 'failed') as failed_at
  from facts where type in ('delivered', 'seen', 'failed') group by all""")
db.execute("""create table messages as
  select m.*, r.delivered_at, r.seen_at, r.failed_at, s.opened_at,
    case when s.opened_at is not null and m.t < s.closed_at then 'in_service' else 'out_of_session' end as expected
  from (select * from facts where type in ('send_message', 'broadcast_message')) m
  left join receipts r using (account, user_id, token)
  asof left join opened s on m.account = s.account and m.user_id = s.user_id and m.t >= s.opened_at""")
db.execute("""create table sessions as
  select s.account, s.user_id, s.opened_at, s.closed_at, coalesce(i.inbound, 0) as inbound, coalesce(m.outbound, 0) as outbound,
    coalesce(m.delivered, 0) as delivered, coalesce(m.charged, 0) as charged
  from opened s
  left join (select a.account, a.user_id, s.opened_at, count(*) as inbound from said a
    asof join opened s on a.account = s.account and a.user_id = s.user_id and a.t >= s.opened_at group by all) i
    using (account, user_id, opened_at)
  left join (select account, user_id, opened_at, count(*) as outbound, count(delivered_at) as delivered,
      count(*) filter (where billing_status = 5) as charged
    from messages where expected = 'in_service' group by all) m using (account, user_id, opened_at)""")
for name in ["sessions", "messages"]:
    db.execute(f"copy {name} to '{sys.argv[2]}/{name}.parquet' (format parquet, compression zstd)")
took = time.time() - began
print(json.dumps({
    "seconds": took,
    "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "sessions": db.execute("select count(*) from sessions").fetchone()[0],
    "outbound": int(db.execute("select sum(outbound) from sessions").fetchone()[0]),
    "messages": db.execute("select count(*) from messages").fetchone()[0],
}))
"#;

fn main() {
    let events = number("--events", 2_000_000);
    let users = number("--users", 250_000);
    let home = Home::new(&[r#"fold.policy = "viber-2022""#]);
    let file = home.path("events.ndjson");
    let plan = Plan { seed: 1, events: events as usize, users, start_ms: MARCH_MS, span_ms: 30 * DAY_MS };
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&file).unwrap());
    for event in history(&plan) {
        event.write_line(&mut out).unwrap();
    }
    out.into_inner().unwrap().sync_all().unwrap();
    home.ok(&["import", "--wait", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    println!("{events} events of {users} users, archived");

    let (took, peak) = watched(home.command(&["rebuild"]));
    println!("| rebuild, offline, switched to | {}, largest RSS {} |", rate(events, took), size(peak));
    let (kept, _) = watched(home.command(&["rebuild", "--as", "other", "--policy", "gupshup"]));
    println!("| rebuild --as, another policy | {} |", rate(events, kept));

    let theirs = tools::python().args(["-c", FOLD]).arg(home.data().join("lake")).arg(home.path("")).output().unwrap();
    assert!(theirs.status.success(), "{}", harness::text(&theirs.stderr));
    let theirs: Value = serde_json::from_slice(&theirs.stdout).unwrap();
    let seconds = theirs["seconds"].as_f64().unwrap();
    let (rss, fold) = (size(theirs["rss"].as_u64().unwrap()), rate(events, Duration::from_secs_f64(seconds)));
    println!("| DuckDB, 2 threads, the same fold in SQL over the same files | {fold}, largest RSS {rss} |");
    println!("| ours to theirs | {:.2} |", seconds / took.as_secs_f64());
    for (what, query) in [
        ("sessions", "select count(*) from sessions"),
        ("outbound", "select sum(outbound) from sessions"),
        ("messages", "select count(*) from messages"),
    ] {
        assert_eq!(theirs[what], home.number(query), "{what}");
    }
    let (text, took) = timed(|| home.ok(&["compare", "live", "other", "--format", "json"]));
    let found: Value = serde_json::from_str(&text).unwrap();
    let rows = home.number("select (select count(*) from sessions) + (select count(*) from messages)") as u64;
    println!(
        "| compare live other, {} sessions and {} messages differ | {:.1} s, {} rows |",
        found["sessions"]["differing"],
        found["messages"]["differing"],
        took.as_secs_f64(),
        rate(rows, took)
    );
}

/// Runs a command that must succeed: how long it took, and its largest resident memory.
fn watched(mut command: Command) -> (Duration, u64) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    let (pid, mut peak) = (child.id(), 0);
    let (status, took) = timed(|| {
        loop {
            peak = peak.max(resident(pid).0);
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert!(status.success());
    (took, peak)
}
