//! The parts themselves: they start, keep what they are given through a kill, and the wire does as it is told.

use super::{Cuts, Kafka, Minio, missing, produce, spark_totals};
use crate::harness::{text, until};
use crate::tools::{kcat, python};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

fn write(brokers: &str, topic: &str, lines: &str) {
    let mut kcat = kcat();
    kcat.args(["-P", "-b", brokers, "-t", topic, "-X", "acks=all"]).stdin(Stdio::piped());
    let mut kcat = kcat.spawn().unwrap();
    kcat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(kcat.wait().unwrap().success());
}

fn consume(brokers: &str, topic: &str) -> String {
    let output = kcat().args(["-C", "-e", "-q", "-b", brokers, "-t", topic]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_shared_broker_takes_and_gives() {
    if missing("shared kafka") {
        return;
    }
    let kafka = Kafka::shared();
    let topic = format!("checks-{}", std::process::id());
    kafka.make_topic(&topic, 1, &["retention.ms=-1"]);
    write(&kafka.brokers(), &topic, "one\ntwo\n");
    assert_eq!(consume(&kafka.brokers(), &topic), "one\ntwo\n");
}

#[test]
fn events_are_written_in_binary_mode() {
    if missing("shared kafka") {
        return;
    }
    let kafka = Kafka::shared();
    let topic = format!("events-{}", std::process::id());
    kafka.make_topic(&topic, 1, &["retention.ms=-1"]);
    let events = r#"{"specversion":"1.0","id":"1","source":"/accounts/bot1","type":"t","subject":"u","data":{"a" :1.0e0}}
{"specversion":"1.0","id":"2","source":"/accounts/bot1","type":"t","vibersignature":"s","data_base64":"/w=="}
"#;
    assert_eq!(produce(&kafka.brokers(), &topic, "murmur2_random", events.as_bytes()), 2);
    let output = kcat().args(["-C", "-e", "-q", "-b", &kafka.brokers(), "-t", &topic, "-f", "%k|%h|%s\n"]).output();
    let got = output.unwrap().stdout;
    let first = r#"bot1/u|ce_specversion=1.0,ce_id=1,ce_source=/accounts/bot1,ce_type=t,ce_subject=u,content-type=application/json|{"a" :1.0e0}"#;
    let second = "bot1|ce_specversion=1.0,ce_id=2,ce_source=/accounts/bot1,ce_type=t,ce_vibersignature=s,content-type=application/json|";
    let wanted = [first.as_bytes(), b"\n", second.as_bytes(), b"\xff\n"].concat();
    assert_eq!(text(&got), text(&wanted));
    assert_eq!(got, wanted);
}

#[test]
fn a_killed_broker_still_has_what_it_took() {
    if missing("kafka") {
        return;
    }
    let mut kafka = Kafka::start(1);
    kafka.make_topic("kept", 1, &[]);
    write(&kafka.brokers_behind_cuts(), "kept", "one\n");
    kafka.kill(1);
    kafka.restart(1);
    write(&kafka.brokers(), "kept", "two\n");
    kafka.terminate(1);
    kafka.restart(1);
    assert_eq!(consume(&kafka.brokers_behind_cuts(), "kept"), "one\ntwo\n");

    let answers = |brokers: &str| kcat().args(["-L", "-m", "2", "-b", brokers]).output().unwrap().status.success();
    kafka.cuts(1).refuse(true);
    assert!(!answers(&kafka.brokers_behind_cuts()));
    assert!(answers(&kafka.brokers()));
}

#[test]
fn two_brokers_of_three_go_on() {
    if missing("kafka") {
        return;
    }
    let mut kafka = Kafka::start(3);
    kafka.make_topic("kept", 1, &[]);
    write(&kafka.brokers(), "kept", "one\n");
    kafka.kill(2);
    write(&kafka.brokers(), "kept", "two\n");
    kafka.restart(2);
    kafka.kill(1);
    assert_eq!(consume(&kafka.brokers(), "kept"), "one\ntwo\n");
}

#[test]
fn a_killed_store_still_has_what_it_took() {
    if missing("minio") {
        return;
    }
    let mut minio = Minio::start();
    let run = |minio: &Minio, code: &str| {
        let store = "import os; from pyarrow.fs import S3FileSystem; \
                     store = S3FileSystem(endpoint_override=os.environ['AWS_ENDPOINT_URL'])";
        run_python(minio, &format!("{store}; {code}"), &[])
    };
    let file = format!("{}/some/where", minio.bucket());
    run(&minio, &format!("store.open_output_stream('{file}').write(b'kept')"));
    minio.kill();
    minio.restart();
    assert_eq!(run(&minio, &format!("print(store.open_input_stream('{file}').read().decode())")), "kept\n");
}

/// Runs Python code against the store; what it printed.
fn run_python(minio: &Minio, code: &str, args: &[&str]) -> String {
    let output = python().args(["-c", code]).args(args).envs(minio.env()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn spark_reads_delta_tables_in_the_store() {
    if missing("spark") || missing("shared minio") {
        return;
    }
    let minio = Minio::shared();
    let lake = format!("{}/checks-{}", minio.bucket(), std::process::id());
    let tables = r#"
import sys, pyarrow
from deltalake import write_deltalake
counts = {"charged": [0, 1], "inbound": [2, 3], "outbound": [4, None]}
sessions = pyarrow.table({name: pyarrow.array(values, pyarrow.int32()) for name, values in counts.items()})
for _ in range(2):
    write_deltalake(f"s3://{sys.argv[1]}/sessions", sessions, mode="append")
for name, rows in ("events", 3), ("messages", 5):
    write_deltalake(f"s3://{sys.argv[1]}/{name}", pyarrow.table({"n": list(range(rows))}))
"#;
    run_python(minio, tables, &[&lake]);
    let wanted = serde_json::json!({
        "events": 3, "sessions": 4, "messages": 5, "charged": 2, "inbound": 10, "outbound": 8,
    });
    assert_eq!(spark_totals(minio, &format!("s3a://{lake}")), wanted);
}

/// Sends back what it gets.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            std::thread::spawn(move || {
                let connection = connection.unwrap();
                std::io::copy(&mut &connection, &mut &connection).ok();
            });
        }
    });
    address
}

fn ping(connection: &mut TcpStream) -> std::io::Result<()> {
    connection.write_all(b"ping")?;
    connection.read_exact(&mut [0; 4])
}

#[test]
fn a_wire_is_cut_refused_stalled_and_slowed() {
    let cuts = Cuts::before(&echo());
    let connect = || TcpStream::connect(cuts.address()).unwrap();
    let mut open = connect();
    ping(&mut open).unwrap();

    cuts.refuse(true);
    ping(&mut connect()).unwrap_err();
    ping(&mut open).unwrap();
    cuts.cut();
    ping(&mut open).unwrap_err();
    cuts.refuse(false);
    let mut open = connect();
    ping(&mut open).unwrap();

    cuts.stall(true);
    open.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let stalled = ping(&mut open).unwrap_err();
    assert!([ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&stalled.kind()), "{stalled}");
    cuts.stall(false);
    open.set_read_timeout(None).unwrap();
    open.read_exact(&mut [0; 4]).unwrap();

    cuts.delay(Duration::from_millis(50));
    let sent = std::time::Instant::now();
    ping(&mut open).unwrap();
    assert!(sent.elapsed() >= Duration::from_millis(100));
    cuts.stall(true);
    open.write_all(b"lost").unwrap();
    cuts.cut();
    assert_eq!(open.read(&mut [0; 4]).unwrap_or(0), 0, "what was stalled is lost with the connection");
}

#[test]
fn a_wire_to_nowhere_opens_when_somebody_listens() {
    let port = crate::harness::free_port();
    let cuts = Cuts::before(&format!("127.0.0.1:{port}"));
    let connect = || TcpStream::connect(cuts.address()).unwrap();
    ping(&mut connect()).unwrap_err();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let mut client = connect();
    let (mut server, _) = listener.accept().unwrap();
    drop(listener);
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    drop(server);
    until("the end", || client.read(&mut [0; 4]).unwrap_or(0), |length| *length == 0);
}
