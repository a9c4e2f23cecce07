//! Generations: beside the live tables under other policies, in part, listed and dropped; and the tables as they were.

use super::cluster::{Cluster, missing, stop_all, wait_shared};
use super::generate::{DAY_MS, MARCH_MS, Plan, history, lines, tick_line};
use super::golden::{assert_golden, import, settings};
use super::harness::{Home, Server, http, request, until};
use serde_json::Value;

fn with_history(history: &str) -> Home {
    let settings = settings(history, "counterbat");
    let home = Home::new(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    import(&home, history);
    home
}

fn few() -> Plan {
    Plan { seed: 1, events: 200, users: 40, start_ms: MARCH_MS, span_ms: DAY_MS }
}

/// The rows of a generation, asked for as if they were live.
fn of(name: &str, ask: impl Fn(&str) -> Vec<Value>) -> impl Fn(&str) -> Vec<Value> {
    let from = format!("from {name}.");
    move |query| ask(&query.replace("from ", &from))
}

#[test]
fn a_generation_has_the_golden_rows_of_its_policy() {
    for history in ["busy", "tangled", "chatty"] {
        let home = with_history(history);
        let server = home.serve();
        let vbm = home.path("ours.toml");
        std::fs::copy(format!("{}/src/session/policies/vbm.toml", env!("CARGO_MANIFEST_DIR")), &vbm).unwrap();
        for (name, policy, given) in [
            ("g_1", "gupshup", "gupshup"),
            ("v_2022", "viber-2022", "viber-2022"),
            ("own", "vbm", vbm.to_str().unwrap()),
        ] {
            let told: Value = serde_json::from_str(&home.ok(&["rebuild", "--as", name, "--policy", given])).unwrap();
            assert_eq!((&told["name"], &told["kept"]), (&name.into(), &true.into()), "{told}");
            assert_eq!(told["events"], server.number("select count(*) from events"));
            assert_golden(of(name, |query| server.sql(query)), history, policy, name);
        }
        assert_golden(|query| server.sql(query), history, "counterbat", "beside generations");
        server.stop_in_order();
        // They are there without a server too, and for other policies one is made without it.
        assert_golden(of("own", |query| home.sql(query)), history, "vbm", "offline");
        home.ok(&["rebuild", "--as", "off_line", "--policy", "viber-2024"]);
        assert_golden(of("off_line", |query| home.sql(query)), history, "viber-2024", "made offline");
        assert_golden(|query| home.sql(query), history, "counterbat", "after all");
    }
}

#[test]
fn a_generation_has_views_and_joins_with_the_live_tables() {
    let home = with_history("busy");
    home.ok(&["rebuild", "--as", "same"]);
    let joined = "select count(*) from same.sessions as a join sessions as b using (session_id) join same.users as u \
                  on u.account = a.account and u.user_id = a.user_id";
    assert_eq!(home.number(joined), home.number("select count(*) from sessions"));
    assert_eq!(home.number("select count(*) from same.events"), home.number("select count(*) from events"));
    for table in ["sessions", "messages", "users", "user_timeline"] {
        let differing = format!("select count(*) from (select * from same.{table} except select * from {table})");
        assert_eq!(home.number(&differing), 0, "{table}");
    }
    // What comes in later is not of it.
    let events = home.number("select count(*) from events");
    home.ok_with(&["import", "--wait", "--late", "-"], &lines(&history(&Plan { seed: 9, ..few() })));
    assert!(home.number("select count(*) from events") > events);
    assert_eq!(home.number("select count(*) from same.events"), events);
    assert_eq!(home.number("select count(distinct partition) from same.events"), 4);
    let schemas = home.sql("select distinct table_schema from information_schema.tables order by 1");
    assert!(schemas.iter().any(|row| row["table_schema"] == "same"), "{schemas:?}");
}

#[test]
fn rows_outside_of_what_is_refolded_stay_as_they_are() {
    let home = with_history("busy");
    let server = home.serve();
    let from = "2026-03-02T00:00:00Z";
    home.ok(&["rebuild", "--as", "whole", "--policy", "gupshup"]);
    home.ok(&["rebuild", "--as", "part", "--policy", "gupshup", "--accounts", "bot1", "--from", from]);
    for (table, at) in [("sessions", "opened_at"), ("messages", "sent_at")] {
        let inside = format!("account = 'bot1' and {at} >= timestamp '{from}'");
        let same = |mine: &str, theirs: &str, condition: &str| {
            let except = |a: &str, b: &str| {
                server.number(&format!(
                    "select count(*) from (select * from {a} where {condition} except select * from {b} where {condition})"
                ))
            };
            assert_eq!((except(mine, theirs), except(theirs, mine)), (0, 0), "{mine}, {theirs}: {condition}");
            assert!(server.number(&format!("select count(*) from {mine} where {condition}")) > 0, "{condition}");
        };
        same(&format!("part.{table}"), &format!("whole.{table}"), &inside);
        same(&format!("part.{table}"), &format!("public.{table}"), &format!("not ({inside})"));
    }
}

#[test]
fn a_generation_is_read_whatever_limits_there_are_now() {
    let home = with_history("small");
    let text = include_str!("../../src/session/policies/vbm.toml").replace("\"vbm\"", "\"ours\"");
    std::fs::write(home.path("ours.toml"), &text).unwrap();
    home.ok(&["rebuild", "--as", "g", "--policy", home.path("ours.toml").to_str().unwrap()]);
    // As one was made when sessions might be longer.
    let file = home.data().join("lake/generations/g/generation.json");
    let mut info: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    info["policy_toml"] = text.replace("24h", "32d").into();
    std::fs::write(&file, info.to_string()).unwrap();
    assert_eq!(home.number("select service_length_s from g.policies where name = 'ours'"), 32 * 86_400);
    assert_eq!(home.number("select count(*) from g.messages where policy <> 'ours'"), 0);
    assert_eq!(home.number("select count(*) from g.account_policies where policy = 'ours'"), 1);
}

fn names(server: &Server) -> Vec<String> {
    let listing: Value = serde_json::from_slice(&server.get("/api/v1/rebuilds").body).unwrap();
    let generations = listing["generations"].as_array().unwrap();
    generations.iter().map(|generation| generation["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn generations_are_listed_and_dropped() {
    let home = with_history("small");
    let server = home.serve();
    home.ok(&["rebuild", "--as", "march_v2", "--policy", "vbm"]);
    home.ok(&["rebuild", "--as", "april"]);
    assert_eq!(names(&server), ["april", "march_v2"]);
    let list = home.ok(&["rebuild", "--list"]);
    let events = server.number("select count(*) from events").to_string();
    let line = list.lines().find(|line| line.starts_with("march_v2")).unwrap();
    assert!(line.contains("kept") && line.contains("vbm") && line.contains(&events), "{list}");

    let taken = home.fails_with(&["rebuild", "--as", "april"], b"");
    assert!(taken.contains("already") && taken.contains("--drop april"), "{taken}");
    home.ok(&["rebuild", "--drop", "march_v2"]);
    assert_eq!(names(&server), ["april"]);
    let gone = server.sql_as("select * from march_v2.sessions", "application/json");
    assert_eq!(gone.status, 422);
    assert!(gone.problem().contains("no generation named march_v2; there are: april"), "{}", gone.problem());
    assert!(home.fails_with(&["rebuild", "--drop", "march_v2"], b"").contains("no generation"));
    let outside = super::harness::request(
        super::harness::http().delete(format!("{}/api/v1/rebuilds/..%2Fserver", server.console)),
    );
    assert_eq!(outside.status, 404, "{}", outside.text());
    // The name is free again, for another policy too.
    home.ok(&["rebuild", "--as", "march_v2", "--policy", "gupshup"]);
    assert_golden(of("march_v2", |query| server.sql(query)), "small", "gupshup", "made again");

    let live: Value = serde_json::from_str(&home.ok(&["rebuild"])).unwrap();
    let refused = home.fails_with(&["rebuild", "--drop", live["name"].as_str().unwrap()], b"");
    assert!(refused.contains("cannot be dropped"), "{refused}");
    server.stop_in_order();
    home.ok(&["rebuild", "--drop", "april"]);
    assert!(!home.ok(&["rebuild", "--list"]).contains("april"));
    assert!(!home.data().join("lake/generations/april/sessions/_delta_log").join("00000000000000000000.json").exists());
}

#[test]
fn what_cannot_be_rebuilt_is_refused() {
    let home = with_history("small");
    let vbm = include_str!("../../src/session/policies/vbm.toml");
    std::fs::write(home.path("taken.toml"), vbm.replace("24h", "12h")).unwrap();
    std::fs::write(home.path("wrong.toml"), vbm.replace("24h", "12 h")).unwrap();
    let server = home.serve();
    let before = home.tables();
    for (args, reason) in [
        (&["rebuild", "--policy", "vbm"][..], "--as"),
        (&["rebuild", "--as", "public"], "no name for a generation"),
        (&["rebuild", "--as", "March"], "no name for a generation"),
        (&["rebuild", "--as", "a", "--policy", "nonsense"], "nonsense"),
        (&["rebuild", "--as", "a", "--policy", "./none.toml"], "none.toml"),
        (&["rebuild", "--as", "a", "--accounts", "Bot 1"], "accounts"),
        (&["rebuild", "--as", "a", "--accounts", "bot1,bto2"], "there is no account `bto2`; there are: bot1, bot2"),
        (&["rebuild", "--as", "a", "--policy", "./taken.toml"], "./taken.toml: name: \"vbm\" is a built-in policy"),
        (&["rebuild", "--as", "a", "--policy", "./wrong.toml"], "./wrong.toml: line 8, length: \"12 h\""),
    ] {
        let error = home.fails_with(args, b"");
        assert!(error.contains(reason), "{args:?}: {error}");
    }
    for args in [
        &["rebuild", "--accounts", "bot1"][..],
        &["rebuild", "--from", "2026-03-01"],
        &["rebuild", "--list", "--as", "a"],
    ] {
        assert_eq!(home.run(args).status.code(), Some(2), "{args:?}");
    }
    let reply = super::harness::request(
        super::harness::http().post(format!("{}/api/v1/rebuilds", server.console)).body(r#"{"accounts":["bot1"]}"#),
    );
    assert_eq!(reply.status, 422);
    assert!(reply.problem().contains("cannot take the place"), "{}", reply.problem());
    let ask = |body: &str| {
        super::harness::request(
            super::harness::http().post(format!("{}/api/v1/rebuilds", server.console)).body(body.to_owned()),
        )
    };
    for (body, reason) in [
        (r#"{"as":"a","accounts":["bto2"]}"#.to_owned(), "there is no account `bto2`; there are: bot1, bot2"),
        (r#"{"as":"a","from":"March"}"#.to_owned(), "from: `March` is no time"),
        (
            serde_json::json!({"as": "a", "policy_toml": vbm.replace("24h", "12h")}).to_string(),
            "policy_toml: name: \"vbm\"",
        ),
    ] {
        let reply = ask(&body);
        assert_eq!((reply.status, reply.problem().contains(reason)), (422, true), "{body}: {}", reply.problem());
    }
    before.assert_equal(&home.tables(), "after refusals");
    // The same policies by another word are the configured ones.
    home.ok(&["rebuild", "--policy", "counterbat"]);
    // A date is its beginning, and nothing at all asks for what the command does without options.
    let finished = |reply: super::harness::Reply| {
        assert_eq!(reply.status, 202, "{}", reply.text());
        let name = serde_json::from_slice::<Value>(&reply.body).unwrap()["job"]["name"].as_str().unwrap().to_owned();
        let report = || serde_json::from_slice::<Value>(&server.get(&format!("/api/v1/rebuilds/{name}")).body).unwrap();
        let ended = |report: &Value| ["done", "failed"].contains(&report["job"]["phase"].as_str().unwrap());
        super::harness::until("the rebuild", report, ended)["job"].clone()
    };
    let dated = finished(ask(r#"{"as":"dated","from":"2026-03-01"}"#));
    assert_eq!(
        (&dated["phase"], &dated["wish"]["from"]),
        (&"done".into(), &"2026-03-01T00:00:00.000Z".into()),
        "{dated}"
    );
    assert_eq!(finished(ask(""))["phase"], "done");
}

#[test]
fn what_only_reads_makes_no_data_directory() {
    let home = Home::new(&[]);
    for args in [
        &["sql", "select 1"][..],
        &["verify"],
        &["explain", "7"],
        &["compare", "live", "g"],
        &["rebuild", "--list"],
        &["rebuild"],
        &["export", "-"],
    ] {
        let error = home.fails_with(args, b"");
        assert!(error.contains("there is no data in") && error.contains("--data-dir"), "{args:?}: {error}");
        assert!(!home.data().exists(), "{args:?}");
    }
    // Nor is another folder taken for one.
    std::fs::create_dir(home.data()).unwrap();
    assert!(home.fails_with(&["sql", "select 1"], b"").contains("there is no data in"));
    assert_eq!(std::fs::read_dir(home.data()).unwrap().count(), 0);
    home.ok(&["import", "-"]);
    assert_eq!(home.number("select count(*) from events"), 0);
}

#[test]
fn the_tables_are_read_as_they_were() {
    let home = Home::new(&[]);
    let plan = Plan { seed: 5, events: 4_000, users: 300, start_ms: MARCH_MS, span_ms: 10 * DAY_MS };
    let events = history(&plan);
    let (first, second) = events.split_at(2_000);
    home.ok_with(&["import", "--wait", "-"], &lines(first));
    let newest = || {
        let log = home.data().join("lake/sessions/_delta_log");
        let names = std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| name.strip_suffix(".json")?.parse::<u64>().ok()).max().unwrap()
    };
    let counted = ["select count(*) from sessions", "select count(*) from messages", "select count(*) from events"];
    let before = counted.map(|query| home.number(query));
    let (version, at) = (newest().to_string(), chrono::Utc::now().to_rfc3339());
    home.ok_with(&["import", "--wait", "-"], &lines(second));
    let server = home.serve();
    let number = |args: &[&str]| home.ok(args).lines().last().unwrap().parse::<i64>().unwrap();
    for (query, before) in counted.iter().zip(before) {
        assert!(server.number(query) > before, "{query}");
        assert_eq!(number(&["sql", "--format", "csv", "--at", &at, query]), before, "{query}");
    }
    assert_eq!(number(&["sql", "--format", "csv", "--version", &version, counted[0]]), before[0]);
    let ask = |body: Value| {
        super::harness::request(
            super::harness::http().post(format!("{}/api/v1/sql", server.console)).body(body.to_string()),
        )
    };
    let reply = ask(serde_json::json!({"sql": "select count(*) as n from sessions", "at": at}));
    assert_eq!(serde_json::from_slice::<Value>(&reply.body).unwrap()[0]["n"], before[0]);
    let both = "select count(*) from sessions join messages using (session_id)";
    let refused = ask(serde_json::json!({"sql": both, "version": 1}));
    assert_eq!(refused.status, 403);
    assert!(refused.problem().contains("ask one table at a version"), "{}", refused.problem());
    assert_eq!(ask(serde_json::json!({"sql": both, "at": at})).status, 200);
    assert_eq!(ask(serde_json::json!({"sql": both, "at": "yesterday"})).status, 400);
    for settled in ["statement_monthly", "settled_months", "partitions"] {
        let refused = ask(serde_json::json!({"sql": format!("select * from {settled}"), "at": at}));
        assert_eq!(refused.status, 403, "{settled}: {}", refused.text());
        assert!(refused.problem().contains("how far the partitions had come then is not kept"), "{settled}");
    }
    let unknown = ask(serde_json::json!({"sql": counted[0], "version": 999_999}));
    assert_eq!((unknown.status, unknown.problem().contains("at version 999999")), (404, true), "{}", unknown.problem());
    assert_eq!(ask(serde_json::json!({"sql": both, "at": "2020-01-01"})).status, 404);
    let error = home.fails_with(&["sql", "--at", "2020-01-01", counted[0]], b"");
    assert!(error.contains("kept for a day"), "{error}");
    let error = home.fails_with(&["sql", "--version", "999999", counted[0]], b"");
    assert!(error.contains("at version 999999"), "{error}");
    home.ok_with(&["import", "--wait", "-"], tick_line(MARCH_MS + 11 * DAY_MS).as_bytes());
    assert_eq!(number(&["sql", "--format", "csv", "--at", &at, counted[1]]), before[1]);
}

#[test]
fn generations_of_shared_tables_are_seen_by_all() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(3, &[]);
    let homes = [cluster.home(), cluster.home()];
    let servers = homes.each_ref().map(Home::serve);
    wait_shared(&servers.each_ref(), 3);
    import(&homes[0], "busy");
    homes[0].ok(&["rebuild", "--as", "g_1", "--policy", "gupshup"]);
    for server in &servers {
        assert_golden(of("g_1", |query| server.sql(query)), "busy", "gupshup", "shared");
    }
    assert_eq!(names(&servers[1]), ["g_1"]);
    homes[1].ok(&["rebuild", "--drop", "g_1"]);
    let gone = servers[0].sql_as("select * from g_1.sessions", "application/json");
    assert_eq!(gone.status, 422, "{}", gone.text());
    stop_all(servers.into());
}

#[test]
fn of_processes_that_share_the_log_one_makes_a_generation() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(3, &[r#"fold.memory = "64MiB""#]);
    let homes = [cluster.home(), cluster.home()];
    let mut servers = homes.each_ref().map(|home| Some(home.serve()));
    wait_shared(&servers.each_ref().map(|server| server.as_ref().unwrap()), 3);
    let plan = Plan { events: 30_000, users: 4_000, span_ms: 40 * DAY_MS, ..few() };
    homes[0].ok_with(&["import", "--wait", "-"], &lines(&history(&plan)));
    let ask = |server: &Server| {
        let wish = r#"{"as":"g","policy":"gupshup"}"#;
        request(http().post(format!("{}/api/v1/rebuilds", server.console)).body(wish))
    };
    let asked: Vec<_> = std::thread::scope(|scope| {
        let asking = servers.each_ref().map(|server| scope.spawn(|| ask(server.as_ref().unwrap())));
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let maker = asked.iter().position(|reply| reply.status == 202).expect("one of them is to make it");
    let other = 1 - maker;
    assert_eq!(asked[other].status, 409, "{}", asked[other].text());
    let told = asked[other].problem();
    let dir = homes[maker].data().display().to_string();
    assert!(told.contains("another process is at work on generation g") && told.contains(&dir), "{told}");

    // A kill does not make it anybody's, and its maker goes on with it.
    servers[maker].take().unwrap().kill();
    assert_eq!(ask(servers[other].as_ref().unwrap()).status, 409);
    let error = homes[other].fails_with(&["rebuild", "--drop", "g"], b"");
    assert!(error.contains("another process is at work"), "{error}");
    let maker = homes[maker].serve();
    let found = || maker.get("/api/v1/rebuilds/g").text();
    until("the generation", found, |job| job.contains(r#""phase":"done""#));
    let other = servers[other].take().unwrap();
    let rows = "(select account, user_id, message_token, sent_at from messages)";
    let made = rows.replace("from ", "from g.");
    let differing = format!("select count(*) from (({rows} except {made}) union all ({made} except {rows}))");
    until("the same messages", || other.number(&differing), |differing| *differing == 0);
    assert!(other.number("select count(*) from g.sessions") > 0);
    assert_eq!(other.number("select count(*) from g.sessions where policy <> 'gupshup'"), 0);
    assert!(ask(&other).problem().contains("there is a generation g already"));
    stop_all(vec![maker, other]);
}
