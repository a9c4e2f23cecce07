//! Import and export files: what is refused, set aside, and comes back.

use super::generate::{DAY_MS, MARCH_MS, Plan, history, lines, tick_line};
use super::harness::{Home, golden};
use serde_json::Value;
use std::io::Write;

fn few_lines(seed: u64) -> Vec<Vec<u8>> {
    let plan = Plan { seed, events: 40, users: 5, start_ms: MARCH_MS, span_ms: DAY_MS };
    lines(&history(&plan)).split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
}

fn summary(stdout: &str) -> Value {
    serde_json::from_str(stdout).unwrap_or_else(|error| panic!("no summary ({error}): {stdout}"))
}

/// Runs the check offline, and again through a server.
fn both_ways(check: impl Fn(&Home)) {
    check(&Home::new(&[]));
    let home = Home::new(&[]);
    let server = home.serve();
    check(&home);
    assert!(server.stop().success());
}

#[test]
fn a_bad_line_stops_the_import_by_its_number() {
    both_ways(|home| {
        let mut lines = few_lines(1);
        lines.insert(20, b"{\"specversion\":\"1.0\"\n".to_vec());
        let error = home.fails_with(&["import", "--wait", "-"], &lines.concat());
        assert!(error.contains("line 21"), "{error}");
        assert!(error.contains("20 events"), "{error}");
        assert_eq!(home.number("select count(*) from events"), 20);
    });
}

#[test]
fn bad_lines_are_set_aside() {
    both_ways(|home| {
        let mut lines = few_lines(2);
        lines.insert(0, b"this is no event\n".to_vec());
        lines.insert(30, b"[1, 2]\n".to_vec());
        let aside = home.path("bad.ndjson");
        let args = ["import", "--wait", "--skip-bad", aside.to_str().unwrap(), "-"];
        let summary = summary(&home.ok_with(&args, &lines.concat()));
        assert_eq!((&summary["appended"], &summary["bad"]), (&40.into(), &2.into()), "{summary}");
        assert_eq!(std::fs::read_to_string(aside).unwrap(), "this is no event\n[1, 2]\n");
        assert_eq!(home.number("select count(*) from events"), 40);
    });
}

#[test]
fn a_late_event_stops_the_import_and_late_lets_it_in() {
    both_ways(|home| {
        let mut input = few_lines(3).concat();
        input.extend(tick_line(MARCH_MS + 30 * DAY_MS).into_bytes());
        home.ok_with(&["import", "--wait", "-"], &input);
        let before = home.number("select count(*) from sessions");

        let late = few_lines(4).concat();
        let error = home.fails_with(&["import", "-"], &late);
        for part in ["line ", "too late", "2026-03-31T00:00:00", "--late"] {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
        let output = home.run_with(&["import", "--wait", "--late", "-"], &late);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains("rebuild"), "{told}");
        let summary = summary(&String::from_utf8_lossy(&output.stdout));
        let too_late = home.number("select count(*) from events where disposition = 'too_late'");
        assert!(too_late > 0);
        assert_eq!(summary["too_late"].as_i64(), Some(too_late), "{summary}");
        assert_eq!(home.number("select count(*) from sessions"), before, "a late event changed a row");
    });
}

#[test]
fn a_rebuild_folds_in_what_came_too_late() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], tick_line(MARCH_MS + 30 * DAY_MS).as_bytes());
    home.ok_with(&["import", "--wait", "--late", "-"], &few_lines(4).concat());
    let before = home.number("select count(*) from messages");
    home.ok(&["rebuild"]);

    let straight = Home::new(&[]);
    let input = [few_lines(4).concat(), tick_line(MARCH_MS + 30 * DAY_MS).into_bytes()].concat();
    straight.ok_with(&["import", "--wait", "-"], &input);
    assert!(before < straight.number("select count(*) from messages"));
    straight.tables().assert_equal(&home.tables(), "rebuilt");
    // A state that is lost afterwards is made again as the rebuild made it, and what came since as it came.
    let since = tick_line(MARCH_MS + 60 * DAY_MS);
    home.ok_with(&["import", "--wait", "-"], since.as_bytes());
    home.ok_with(&["import", "--wait", "--late", "-"], &few_lines(5).concat());
    let after = home.tables();
    std::fs::remove_dir_all(home.data().join("state")).unwrap();
    after.assert_equal(&home.tables(), "rebuilt, then the state lost");
}

#[test]
fn a_rebuild_leaves_the_tables_of_another_log_alone() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &few_lines(6).concat());
    let files = || {
        let listed = walk(&home.data().join("lake"));
        listed.into_iter().filter(|path| path.ends_with(".parquet") || path.ends_with(".json")).collect::<Vec<_>>()
    };
    let before = files();
    assert!(!before.is_empty());
    std::fs::remove_dir_all(home.data().join("log")).unwrap();
    for args in [&["rebuild"][..], &["rebuild", "--as", "other"]] {
        let error = home.fails_with(args, b"");
        assert!(error.contains("events table") && error.contains("log"), "{error}");
        assert_eq!(files(), before, "{args:?}");
    }
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => paths.extend(walk(&path)),
            false => paths.push(path.display().to_string()),
        }
    }
    paths.sort();
    paths
}

#[test]
fn a_rebuild_takes_in_a_late_country_however_long_the_log() {
    let line = |kind: &str, user: &str, t_ms: i64, data: serde_json::Value| {
        let time = chrono::DateTime::from_timestamp_millis(t_ms).unwrap().to_rfc3339();
        serde_json::json!({"specversion": "1.0", "id": format!("{kind}/{user}/{t_ms}"), "source": "/accounts/bot1",
            "type": format!("com.viber.{kind}"), "subject": user, "time": time, "data": data})
        .to_string()
            + "\n"
    };
    let sent = |t_ms: i64, token: u64| {
        let data = serde_json::json!({"request": {}, "response": {"status": 0, "message_token": token}});
        line("api.send_message", "u", t_ms, data)
    };
    let later = MARCH_MS + 4 * DAY_MS;
    let mut lines = sent(MARCH_MS + 3_600_000, 7) + &sent(later, 8);
    for n in 0..10_000 {
        let data = serde_json::json!({"event": "webhook", "timestamp": later, "message_token": n});
        lines += &line("callback.webhook", "w", later + n, data);
    }
    let user = serde_json::json!({"id": "u", "country": "UA"});
    let data =
        serde_json::json!({"event": "conversation_started", "timestamp": MARCH_MS, "message_token": 1, "user": user});
    lines += &line("callback.conversation_started", "u", MARCH_MS, data);
    let home = Home::new(&["log.partitions = 1"]);
    home.ok_with(&["import", "--wait", "--late", "-"], lines.as_bytes());
    home.ok(&["rebuild"]);
    assert_eq!(home.number("select count(*) from messages where country = 'UA'"), 2);
}

#[test]
fn long_answers_keep_their_order() {
    let home = Home::new(&[]);
    let plan = Plan { seed: 21, events: 30_000, users: 500, start_ms: MARCH_MS, span_ms: DAY_MS };
    home.ok_with(&["import", "--wait", "-"], &lines(&history(&plan)));
    let query = "select partition, \"offset\", md5(data) from events order by partition, \"offset\"";
    let rows = home.ok(&["sql", "--format", "csv", query]);
    let keys: Vec<(u32, u64)> = rows
        .lines()
        .skip(1)
        .map(|line| {
            let mut cells = line.split(',');
            let mut number = || cells.next().unwrap().parse::<u64>().unwrap();
            (number() as u32, number())
        })
        .collect();
    assert_eq!(keys.len(), 30_000);
    assert!(keys.is_sorted(), "rows come out of order");
}

#[test]
fn packed_files_are_read() {
    let plain = few_lines(5).concat();
    let home = Home::new(&[]);
    let (gz, zst) = (home.path("a.ndjson.gz"), home.path("b.ndjson.zst"));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&plain).unwrap();
    std::fs::write(&gz, encoder.finish().unwrap()).unwrap();
    std::fs::write(&zst, zstd::encode_all(few_lines(6).concat().as_slice(), 3).unwrap()).unwrap();
    let printed = home.ok(&["import", "--wait", gz.to_str().unwrap(), zst.to_str().unwrap()]);
    assert_eq!(summary(&printed)["appended"], 80, "{printed}");
    assert_eq!(home.number("select count(*) from events"), 80);
}

#[test]
fn the_same_file_twice_changes_nothing() {
    let home = Home::new(&[]);
    let input = few_lines(7).concat();
    home.ok_with(&["import", "--wait", "-"], &input);
    let once = home.tables();
    home.ok_with(&["import", "--wait", "-"], &input);
    once.assert_equal(&home.tables(), "imported twice");
    assert_eq!(home.number("select count(*) from events"), 80);
}

#[test]
fn an_export_gives_the_same_tables() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &golden("busy/events.ndjson.gz"));
    let tables = home.tables();
    for (name, served) in [("all.ndjson.gz", false), ("all.ndjson.zst", true)] {
        let server = served.then(|| home.serve());
        let file = home.path(name);
        home.ok(&["export", file.to_str().unwrap()]);
        drop(server);
        let copy = Home::new(&[]);
        copy.ok(&["import", "--wait", file.to_str().unwrap()]);
        tables.assert_equal(&copy.tables(), name);
        let dispositions = "select disposition, count(*) as n from events group by 1 order by 1";
        assert_eq!(home.sql(dispositions), copy.sql(dispositions));
    }
}

#[test]
fn an_export_can_be_narrowed() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &golden("busy/events.ndjson.gz"));
    let args = ["export", "--from", "2026-02-26T00:00:00Z", "--to", "2026-02-27T00:00:00Z", "--account", "bot2", "-"];
    let printed = home.ok(&args);
    let events: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, events) = events.split_last().unwrap();
    assert_eq!(last["type"], "counterbat.clock.ticked");
    assert!(events.iter().all(|event| event["source"] == "/accounts/bot2"));
    let counted = "select count(*) from events where account = 'bot2' \
                   and received_at >= '2026-02-26T00:00:00Z' and received_at < '2026-02-27T00:00:00Z'";
    assert_eq!(home.number(counted), events.len() as i64);
    assert!(!events.is_empty());
}

#[test]
fn data_comes_back_byte_for_byte() {
    let data = r#"{"event" : "message","timestamp":1772323200123, "message_token":6150000000000000001,"sender":{"id":"u","name":"Ол\u0435на \ud83d\ude00"},"message":{"type":"text","text":"1.10e3"},"x":1.10e3}"#;
    let line = format!(
        r#"{{"specversion":"1.0","id":"1","source":"/accounts/bot1","type":"com.viber.callback.message","subject":"u","time":"2026-03-01T00:00:01.5Z","vibersignature":"ab12","datacontenttype":"application/json","data":{data}}}"#
    );
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], format!("{line}\n").as_bytes());
    assert_eq!(home.sql("select data from events")[0]["data"], data);
    let exported = home.ok(&["export", "-"]);
    assert!(exported.lines().next().unwrap().contains(&format!(r#""data":{data}"#)), "{exported}");
    assert!(exported.contains(r#""vibersignature":"ab12""#), "{exported}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let home = Home::new(&[]);
    assert_eq!(home.run(&["import"]).status.code(), Some(2));
    assert_eq!(home.run(&["export", "--from", "yesterday", "-"]).status.code(), Some(2));
    let error = home.fails_with(&["import", "no-such-file.ndjson"], b"");
    assert!(error.contains("no-such-file.ndjson"), "{error}");
}
