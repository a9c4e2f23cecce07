//! A rebuild that takes the place of tables which several servers share: they fold on, nobody sees them half switched, and
//! whoever is killed does not matter.
//!
//! `TEST_LONG=1` kills the maker and the others many times.

use super::cluster::{Cluster, missing, stop_all, wait_shared};
use super::generate::{Generated, Random, lines};
use super::harness::{Home, Server, http, request, until};
use super::rebuilds::{Traffic, input, newest_rebuild, share, some_events};
use super::viber::{is_long, number, seed};
use serde_json::Value;
use std::sync::atomic::Ordering;

const BUSY: [&str; 3] = [r#"fold.memory = "64MiB""#, r#"lake.commit_every = "500ms""#, r#"lake.snapshot_every = "1s""#];

fn counts(ask: impl Fn(&str) -> i64) -> (i64, i64) {
    let count = |table: &str| ask(&format!("select count(*) from {table} where user_id not like 'live-%'"));
    (count("sessions"), count("messages"))
}

fn ask_for_a_rebuild(server: &Server) -> String {
    let posted = request(http().post(format!("{}/api/v1/rebuilds", server.console)).body("{}"));
    assert_eq!(posted.status, 202, "{}", posted.text());
    newest_rebuild(server)["job"]["name"].as_str().unwrap().to_owned()
}

#[test]
fn a_rebuild_takes_the_place_of_tables_that_servers_share() {
    if missing() {
        return;
    }
    let (events, kills) = if is_long() { (300_000, 6) } else { (24_000, 2) };
    let events = some_events(number("TEST_EVENTS").map_or(events, |number| number as usize));
    // A third of the users is too late for the live tables, and in time for a rebuild.
    let (late, rest): (Vec<Generated>, Vec<Generated>) = events.iter().partition(|event| event.user % 3 == 0);
    let late_in = |home: &Home| {
        home.ok_with(&["import", "--wait", "-"], &input(&rest));
        home.ok_with(&["import", "--wait", "--late", "-"], &lines(&late));
    };
    let [straight, live] = [Home::new(&[]), Home::new(&[])];
    straight.ok_with(&["import", "--wait", "-"], &input(&events));
    late_in(&live);
    let [before, rebuilt] = [live, straight].map(|home| counts(|query| home.number(query)));
    assert!(before.0 < rebuilt.0 && before.1 < rebuilt.1, "{before:?}, then {rebuilt:?}");

    let cluster = Cluster::new(3, &BUSY);
    let homes = [cluster.home(), cluster.home()];
    let mut servers = homes.each_ref().map(|home| Some(home.serve()));
    wait_shared(&servers.each_ref().map(|server| server.as_ref().unwrap()), 3);
    late_in(&homes[0]);
    let other = servers[1].as_ref().unwrap();
    // What the first server folds is seen here once it is committed.
    until("the tables", || counts(|query| other.number(query)), |counts| *counts == before);

    let traffic = Traffic::new(other);
    let (writing, asking) = (traffic.clone(), traffic.clone());
    let writer = std::thread::spawn(move || writing.write());
    let asker = std::thread::spawn(move || asking.ask(&[before, rebuilt]));
    let name = ask_for_a_rebuild(servers[0].as_ref().unwrap());
    let mut random = Random(seed());
    for kill in 1..=kills {
        let wanted = f64::from(kill) / f64::from(kills + 1);
        let look = || newest_rebuild(servers[0].as_ref().unwrap());
        let seen = until("progress", look, |rebuild| share(rebuild) >= wanted);
        println!("the maker is killed at {} ({})", seen["progress"], seen["job"]["phase"]);
        servers[0].take().unwrap().kill();
        if random.below(2) == 0 {
            println!("and the other");
            servers[1].take().unwrap().kill();
            servers[1] = Some(homes[1].serve());
            traffic.point_to(servers[1].as_ref().unwrap());
        }
        servers[0] = Some(homes[0].serve());
    }
    // Once more in the switch itself, where that is seen.
    let look = || newest_rebuild(servers[0].as_ref().unwrap());
    let is_late = |phase: &str| phase == "switching" || phase == "done";
    let seen = until("the switch", look, |rebuild| {
        is_late(rebuild["job"]["phase"].as_str().unwrap()) || rebuild["progress"]["step"] == "switching"
    });
    println!("the maker is killed at {} ({})", seen["progress"], seen["job"]["phase"]);
    servers[0].take().unwrap().kill();
    servers[0] = Some(homes[0].serve());
    let look = || newest_rebuild(servers[0].as_ref().unwrap());
    let done = until("the rebuild", look, |rebuild| rebuild["job"]["phase"] == "done");
    assert_eq!(done["job"]["name"], name.as_str(), "it is the one that was asked for");
    let answered = traffic.answered.load(Ordering::Relaxed);
    until("answers after the switch", || traffic.answered.load(Ordering::Relaxed), |now| *now > answered + 3);
    traffic.ended.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    asker.join().unwrap();

    let servers = servers.map(Option::unwrap);
    for server in &servers {
        until("the new tables", || counts(|query| server.number(query)), |counts| *counts == rebuilt);
        assert!(!server.log().contains("no state was handed over"), "a state was folded anew: {}", server.log());
        assert!(!server.log().contains("panicked"), "{}", server.log());
    }
    // Each verifies what it folds, and any of them explains what it does not fold itself.
    let session = servers[0].sql("select session_id from sessions where user_id not like 'live-%' order by 1 limit 1");
    let session = session[0]["session_id"].as_str().unwrap();
    for home in &homes {
        let told: Value = serde_json::from_str(&home.ok(&["verify", "--format", "json"])).unwrap();
        assert_eq!(told["sound"], true, "{told:#}");
        assert!(told["summary"]["tables"]["sessions"]["compared"].as_i64().unwrap() > 0, "{told:#}");
        assert!(home.ok(&["explain", session]).contains(session));
    }
    // Held against the same events imported into nothing, and folded at any age.
    let file = homes[0].path("all.ndjson");
    homes[0].ok(&["export", file.to_str().unwrap()]);
    let tables = homes[1].tables();
    stop_all(servers.into());
    tables.assert_equal(&homes[0].tables(), "after a restart");
    let anew = Home::new(&[]);
    anew.ok(&["import", "--wait", "--late", file.to_str().unwrap()]);
    anew.ok(&["rebuild"]);
    anew.tables().assert_equal(&tables, "imported anew");
}
