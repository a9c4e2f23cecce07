//! The topic as other programs see it and write to it, and topics that are not what they must be.

use super::cluster::{Cluster, missing};
use super::generate::{DAY_MS, Generated, MARCH_MS, Plan, account, history, lines, tick_line, user_id};
use super::harness::{Home, Server, message_body, sign, text, until};
use super::parts::{Kafka, produce};
use super::tools::{kafka, kcat};
use counterbat::event::time::parse_rfc3339_us;
use counterbat::log::partitioner::partition;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;

/// How a topic for events is made by hand.
const RIGHT: [&str; 3] = ["message.timestamp.type=LogAppendTime", "retention.ms=-1", "max.message.bytes=4000000"];

fn few(seed: u64, events: usize, users: u64) -> Vec<Generated> {
    history(&Plan { seed, events, users, start_ms: MARCH_MS, span_ms: DAY_MS })
}

/// A record of a topic.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    key: String,
    headers: BTreeMap<String, String>,
    value: String,
}

/// All records of a topic with one partition, as `kcat` shows them.
fn records(topic: &str) -> Vec<Found> {
    let brokers = Kafka::shared().brokers();
    let shown = kcat().args(["-C", "-e", "-q", "-b", &brokers, "-t", topic, "-f", "%k\n%h\n%s\n"]).output().unwrap();
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let shown = text(&shown.stdout);
    let lines: Vec<&str> = shown.split('\n').collect();
    let record = |lines: &[&str]| Found {
        key: lines[0].to_owned(),
        headers: lines[1].split(',').filter_map(|header| header.split_once('=')).map(owned).collect(),
        value: lines[2].to_owned(),
    };
    lines.chunks_exact(3).map(record).collect()
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Writes plain lines to a topic, as a program does that knows nothing of CloudEvents.
fn write_plain(topic: &str, partition: u32, lines: &str) {
    let mut kcat = kcat();
    kcat.args(["-P", "-b", &Kafka::shared().brokers(), "-t", topic, "-p", &partition.to_string()]);
    let mut kcat = kcat.stdin(Stdio::piped()).spawn().unwrap();
    kcat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(kcat.wait().unwrap().success());
}

fn dispositions(ask: impl Fn(&str) -> Vec<Value>) -> BTreeMap<String, i64> {
    let rows = ask("select disposition, count(*) as n from events group by disposition");
    rows.iter().map(|row| (row["disposition"].as_str().unwrap().to_owned(), row["n"].as_i64().unwrap())).collect()
}

/// Waits until a server says that it is not ready, and why in these words; all that it says then.
fn complaint(server: &Server, words: &str) -> String {
    let reply = until(words, || server.get("/readyz"), |reply| reply.text().contains(words));
    assert_eq!(reply.status, 503, "{}", reply.text());
    reply.text()
}

#[test]
fn what_comes_in_lies_in_the_topic_byte_for_byte() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(1, &[]);
    let home = cluster.home();
    let events = few(31, 200, 20);
    home.ok_with(&["import", "-"], &lines(&events));
    let server = home.serve();
    let body = message_body("a/b+c==", 6_150_000_000_000_000_001).replace("\"silent\"", " \"silent\" ");
    assert_eq!(server.callback(&body).status, 200);

    let found = records(&cluster.topic());
    assert_eq!(found.len(), events.len() + 1);
    let imported = lines(&events);
    let imported = imported.split(|b| *b == b'\n').map(|line| serde_json::from_slice(line).unwrap_or(Value::Null));
    for ((event, line), record) in events.iter().zip(imported).zip(&found) {
        let attribute = |name: &str| line[name].as_str().unwrap();
        let key = format!("{}/{}", attribute("source").strip_prefix("/accounts/").unwrap(), attribute("subject"));
        assert_eq!((&record.key, &record.value), (&key, &event.data()));
        for name in ["specversion", "id", "source", "type", "subject"] {
            assert_eq!(record.headers[&format!("ce_{name}")], attribute(name));
        }
        assert_eq!(parse_rfc3339_us(&record.headers["ce_time"]), parse_rfc3339_us(attribute("time")));
        assert_eq!(record.headers["content-type"], "application/json");
        assert_eq!(record.headers.len(), 7, "{:?}", record.headers);
    }
    let callback = found.last().unwrap();
    assert_eq!((callback.key.as_str(), &callback.value), ("bot1/a/b+c==", &body));
    for (name, value) in [
        ("ce_id", "message/6150000000000000001/a/b+c=="),
        ("ce_source", "/accounts/bot1"),
        ("ce_type", "com.viber.callback.message"),
        ("ce_subject", "a/b+c=="),
        ("ce_vibersignature", &sign(super::harness::TOKEN, &body)),
    ] {
        assert_eq!(callback.headers[name], value, "{name}");
    }
}

#[test]
fn other_programs_may_write_to_the_topic() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(3, &[]);
    let home = cluster.home();
    let server = home.serve();
    let events = lines(&few(32, 600, 60));
    assert_eq!(produce(&Kafka::shared().brokers(), &cluster.topic(), "murmur2_random", &events), 600);
    let tick = tick_line(MARCH_MS + 30 * DAY_MS);
    home.ok_with(&["import", "--wait", "-"], tick.as_bytes());
    let other = Home::new(&["log.partitions = 3"]);
    other.ok_with(&["import", "--wait", "-"], &[&events[..], tick.as_bytes()].concat());
    other.tables().assert_equal(&home.tables(), "written by another program");
    assert_eq!(dispositions(|query| server.sql(query)), dispositions(|query| other.sql(query)));
    assert!(!server.log().contains("wrong partition"), "{}", server.log());
}

#[test]
fn what_does_not_belong_is_malformed_and_stops_nothing() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(3, &[]);
    let server_home = cluster.home();
    let server = server_home.serve();
    let (brokers, topic) = (Kafka::shared().brokers(), cluster.topic());
    write_plain(&topic, 1, "no event\n{\"neither\": \"is this\"}\n");
    let settled = |n: i64| until("the events", || server.number("select count(*) from events"), |found| *found == n);
    settled(2);
    assert!(!server.log().contains("partitioner"), "nobody's partitioner is wrong yet: {}", server.log());
    let plain = server.sql("select data, account, disposition from events order by \"offset\"");
    assert_eq!(plain[0], serde_json::json!({"data": "no event", "account": null, "disposition": "malformed"}));

    let events = lines(&few(33, 300, 60));
    produce(&brokers, &topic, "consistent_random", &events);
    settled(302);
    let malformed = dispositions(|query| server.sql(query))["malformed"];
    assert!((50..302).contains(&malformed), "{malformed} malformed");
    let log = server.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("partitioner=murmur2_random")).collect();
    assert!((1..=3).contains(&told.len()), "once for each partition: {told:#?}");
    assert!(!log.contains(r#""level":"ERROR""#), "{log}");

    produce(&brokers, &topic, "murmur2_random", &lines(&few(34, 300, 60)));
    settled(602);
    assert_eq!(dispositions(|query| server.sql(query))["malformed"], malformed);
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn a_topic_that_is_not_there_is_asked_for() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(5, &["kafka.create_topics = false"]);
    let error = cluster.home().fails_with(&["serve"], b"");
    let topic = cluster.topic();
    for part in [
        &topic,
        "--create",
        "--partitions 5",
        "--config message.timestamp.type=LogAppendTime",
        "--config retention.ms=-1",
        "create_topics = true",
    ] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    // What it says is what helps.
    make_as_told(&error, &topic, 5);
    let error = cluster.home().fails_with(&["serve"], b"");
    assert!(error.contains(&cluster.registry_topic()) && error.contains("--partitions 1"), "{error}");
    make_as_told(&error, &cluster.registry_topic(), 1);
    let error = cluster.home().fails_with(&["sql", "select 1 from events"], b"");
    assert!(error.contains(&cluster.state_topic()) && error.contains("cleanup.policy=compact"), "{error}");
    let home = cluster.home();
    complaint(&home.serve(), "cleanup.policy=compact");
    make_as_told(&error, &cluster.state_topic(), 5);
    assert_eq!(home.number("select count(*) from events"), 0);
}

/// Makes a topic with the settings of the command that an error names.
fn make_as_told(error: &str, topic: &str, partitions: usize) {
    let words: Vec<&str> = error.split([' ', ',']).collect();
    let settings = words.windows(2).filter(|pair| pair[0] == "--config").map(|pair| pair[1]).collect::<Vec<_>>();
    Kafka::shared().make_topic(topic, partitions, &settings);
}

#[test]
fn a_topic_with_wrong_settings_is_refused() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(3, &[]);
    let topic = cluster.topic();
    Kafka::shared().make_topic(&topic, 3, &[]);
    let error = cluster.home().fails_with(&["serve"], b"");
    let command = "kafka-configs.sh --bootstrap-server ";
    for part in [
        "message.timestamp.type is CreateTime, but must be LogAppendTime",
        "retention.ms is 604800000, but must be -1",
        command,
        &format!("--entity-name {topic} --add-config message.timestamp.type=LogAppendTime,retention.ms=-1"),
    ] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    // The command mends it.
    let (_, args) = error.split_once("kafka-configs.sh ").unwrap();
    let mut configs = kafka();
    configs.arg("-Xmx128m").arg("kafka.admin.ConfigCommand").args(args.trim_end().trim_end_matches('"').split(' '));
    let output = configs.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(cluster.home().number("select count(*) from events"), 0);

    let other = cluster.home_with(&["log.partitions = 4"]);
    let error = other.fails_with(&["serve"], b"");
    assert!(error.contains("made with 3 partitions, the config asks for 4"), "{error}");
}

/// Where its user's events lie among three partitions.
fn partition_of(event: &Generated) -> u32 {
    partition(format!("{}/{}", account(event.user), user_id(event.user)).as_bytes(), 3)
}

/// Spec §7.6: the position of the tables is nowhere in the topic that has taken the name of theirs.
#[test]
fn a_topic_made_anew_is_not_taken_for_the_old_one() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(3, &[]);
    let (kafka, topic) = (Kafka::shared(), cluster.topic());
    let home = cluster.home();
    // One user: one partition.
    home.ok_with(&["import", "--wait", "-"], &lines(&few(35, 30, 1)));
    kafka.delete_topics(&[&topic]);
    kafka.make_topic(&topic, 3, &RIGHT);
    produce(&kafka.brokers(), &topic, "murmur2_random", &lines(&few(36, 10, 1)));

    let server = home.serve();
    let said = complaint(&server, "is not folded on");
    for part in ["offsets 0..10", "30 was asked for", "another log"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    // What the tables hold is told, and the other partitions go on.
    assert_eq!(server.number("select count(*) from events"), 30);
    let stopped = partition_of(&few(35, 1, 1)[0]);
    let others: Vec<Generated> = few(37, 100, 50).into_iter().filter(|event| partition_of(event) != stopped).collect();
    home.ok_with(&["import", "--wait", "-"], &lines(&others));
    assert_eq!(server.number("select count(*) from events"), 30 + others.len() as i64);
    server.stop_in_order();

    produce(&kafka.brokers(), &topic, "murmur2_random", &lines(&few(36, 40, 1)));
    let server = home.serve();
    let said = complaint(&server, "another record at offset 29");
    assert!(said.contains("the log was replaced"), "{said}");
    let refused = server.sql_as("select count(*) from events", "application/json");
    assert!(refused.problem().contains("the log was replaced"), "{}", refused.text());
}
