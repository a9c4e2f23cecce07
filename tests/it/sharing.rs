//! Processes that share a topic and the tables: what they fold together is what one would, whoever comes and goes.
//!
//! `TEST_LONG=1` folds every golden history with every number of partitions and of processes, under every policy.

use super::cluster::{Cluster, missing, stop_all, wait_shared};
use super::generate::{DAY_MS, HOUR_MS, MARCH_MS, Plan, history, lines, tick_line};
use super::golden::{assert_golden, assert_totals, import, settings};
use super::harness::{Home, Server};
use super::parts::{self, Kafka, Minio, spark_totals};
use super::viber::is_long;
use serde_json::json;
use std::collections::BTreeMap;

fn check_golden(history: &str, policy: &str, partitions: u32, processes: usize) {
    let settings = settings(history, policy);
    let cluster = Cluster::new(partitions, &settings.iter().map(String::as_str).collect::<Vec<_>>());
    let homes: Vec<Home> = (0..processes).map(|_| cluster.home()).collect();
    let mut servers: Vec<Server> = homes.iter().map(Home::serve).collect();
    wait_shared(&servers.iter().collect::<Vec<_>>(), partitions as usize);
    import(&homes[0], history);
    if processes > 1 {
        if partitions as usize >= processes {
            let folded = |server: &Server| server.metric(r#"counterbat_events_total{disposition="fact"}"#);
            assert!(servers.iter().all(|server| folded(server) > 0.0), "a server has folded nothing");
        }
        stop_all(std::mem::take(&mut servers));
        servers.push(homes[processes - 1].serve());
    }
    let ask = |query: &str| servers[0].sql(query);
    let when = format!("{partitions} partitions, {processes} processes");
    assert_golden(ask, history, policy, &when);
    assert_totals(ask, history, policy);
}

fn check_all(history: &str, short: &[(u32, usize)]) {
    if missing() {
        return;
    }
    for (partitions, processes) in [(1, 1), (3, 1), (12, 1), (1, 3), (3, 3), (12, 3)] {
        if is_long() || short.contains(&(partitions, processes)) {
            check_golden(history, "counterbat", partitions, processes);
        }
    }
    for policy in ["gupshup", "vbm", "viber-2022", "viber-2024"] {
        if is_long() {
            check_golden(history, policy, 3, 3);
        }
    }
}

#[test]
fn the_small_history_is_shared() {
    check_all("small", &[(1, 1), (3, 1), (12, 1), (1, 3), (3, 3), (12, 3)]);
}

#[test]
fn the_busy_history_is_shared() {
    check_all("busy", &[(12, 3)]);
}

#[test]
fn the_tangled_history_is_shared() {
    check_all("tangled", &[(3, 3)]);
}

#[test]
fn the_chatty_history_is_shared() {
    check_all("chatty", &[(3, 1)]);
}

/// A history in pieces that follow each other, and at the end a tick that leaves the last days unsettled.
fn pieces(seed: u64) -> Vec<Vec<u8>> {
    let events = history(&Plan { seed, events: 3000, users: 300, start_ms: MARCH_MS, span_ms: 30 * DAY_MS });
    let mut pieces: Vec<Vec<u8>> = events.chunks(1000).map(lines).collect();
    let last = events.iter().map(|event| event.arrival_ms).max().unwrap();
    pieces.last_mut().unwrap().extend(tick_line(last + HOUR_MS).into_bytes());
    pieces
}

/// What the embedded parts make of it, with nobody to disturb them.
fn undisturbed(pieces: &[Vec<u8>]) -> Home {
    let home = Home::new(&["log.partitions = 3"]);
    home.ok_with(&["import", "--wait", "-"], &pieces.concat());
    home
}

fn add(home: &Home, piece: &[u8]) {
    home.ok_with(&["import", "--wait", "-"], piece);
}

fn count(server: &Server, words: &str) -> usize {
    server.log().matches(words).count()
}

const TAKEN_OVER: &str = "took over the partition's state";
const FROM_EVENTS: &str = "no state was handed over: rebuilding it from events";

#[test]
fn a_killed_process_is_followed_by_another() {
    if missing() {
        return;
    }
    let pieces = pieces(41);
    let cluster = Cluster::new(3, &[]);
    let first = cluster.home();
    let server = first.serve();
    add(&first, &pieces[0]);
    server.kill();
    drop(first);

    let second = cluster.home();
    let server = second.serve();
    add(&second, &pieces[1]);
    assert_eq!((count(&server, TAKEN_OVER), count(&server, FROM_EVENTS)), (3, 0), "{}", server.log());
    undisturbed(&pieces[..2]).tables().assert_equal(&second.tables(), "taken over");
    // Its own state is as good as what was handed over.
    server.stop_in_order();
    let server = second.serve();
    undisturbed(&pieces[..2]).tables().assert_equal(&second.tables(), "gone on with");
    assert_eq!((count(&server, TAKEN_OVER), count(&server, FROM_EVENTS)), (0, 0), "{}", server.log());
    server.stop_in_order();
    drop(second);

    Kafka::shared().delete_topics(&[&cluster.state_topic()]);
    let third = cluster.home();
    let server = third.serve();
    add(&third, &pieces[2]);
    assert_eq!((count(&server, TAKEN_OVER), count(&server, FROM_EVENTS)), (0, 3), "{}", server.log());
    let all = undisturbed(&pieces);
    all.tables().assert_equal(&third.tables(), "with the state topic lost");
    server.stop_in_order();
    drop(third);

    let fourth = cluster.home();
    let server = fourth.serve();
    all.tables().assert_equal(&fourth.tables(), "handed over again");
    assert_eq!((count(&server, TAKEN_OVER), count(&server, FROM_EVENTS)), (3, 0), "{}", server.log());
    assert_eq!(server.number("select count(*) from events"), 3000);
}

#[test]
fn an_export_of_the_topic_fills_an_embedded_log() {
    if missing() {
        return;
    }
    let home = Cluster::new(3, &[]).home();
    let server = home.serve();
    add(&home, &pieces(42).concat());
    let file = home.path("all.ndjson.zst");
    home.ok(&["export", file.to_str().unwrap()]);
    let copy = Home::new(&[]);
    copy.ok(&["import", "--wait", file.to_str().unwrap()]);
    copy.tables().assert_equal(&home.tables(), "exported");
    let dispositions = "select disposition, count(*) as n from events group by 1 order by 1";
    assert_eq!(copy.sql(dispositions), server.sql(dispositions));
    server.stop_in_order();
    let again = home.path("again.ndjson");
    home.ok(&["export", again.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(again).unwrap().lines().count(), 3001, "the events, and a tick");
}

#[test]
fn a_rebuild_of_shared_tables_is_gone_on_with() {
    if missing() {
        return;
    }
    let pieces = pieces(43);
    let cluster = Cluster::new(3, &[]);
    let first = cluster.home();
    add(&first, &pieces[0]);
    first.ok(&["rebuild"]);
    let server = first.serve();
    undisturbed(&pieces[..1]).tables().assert_equal(&first.tables(), "rebuilt");
    add(&first, &pieces[1]);
    let two = undisturbed(&pieces[..2]).tables();
    two.assert_equal(&first.tables(), "rebuilt and gone on with");
    server.stop_in_order();

    // By a process that had nothing to do with it before, and whose data directory is lost then.
    cluster.home().ok(&["rebuild"]);
    let third = cluster.home();
    let server = third.serve();
    two.assert_equal(&third.tables(), "rebuilt elsewhere");
    add(&third, &pieces[2]);
    undisturbed(&pieces).tables().assert_equal(&third.tables(), "rebuilt elsewhere and gone on with");
    assert_eq!(server.number("select count(*) from events"), 3000);
}

#[test]
fn spark_counts_what_own_sql_counts() {
    if parts::missing("spark") || missing() {
        return;
    }
    let cluster = Cluster::new(3, &[]);
    let home = cluster.home();
    add(&home, &pieces(44).concat());
    let server = home.serve();
    let number = |query: &str| server.number(query);
    let mut totals: BTreeMap<String, i64> = BTreeMap::new();
    for table in ["events", "sessions", "messages"] {
        totals.insert(table.to_owned(), number(&format!("select count(*) from {table}")));
    }
    for column in ["charged", "inbound", "outbound"] {
        totals.insert(column.to_owned(), number(&format!("select cast(sum({column}) as bigint) from sessions")));
    }
    assert_eq!(totals["events"], 3000);
    assert!(totals["charged"] > 0, "{totals:?}");
    server.stop_in_order();
    assert_eq!(spark_totals(Minio::shared(), &format!("s3a://{}", cluster.lake())), json!(totals));
}
