//! Import into and export from an embedded log.

use super::import::{skip_to, watermarks};
use super::*;
use crate::event::time::parse_rfc3339_us;
use crate::log::EventLog;
use crate::log::embedded::{EmbeddedLog, Options, Retention};
use std::sync::{Arc, Mutex};

const DAY_MS: i64 = 86_400_000;

struct Fixture {
    _dir: tempfile::TempDir,
    log: Arc<dyn EventLog>,
}

fn now_us() -> i64 {
    parse_rfc3339_us("2026-06-01T00:00:00Z").unwrap()
}

fn fixture(partitions: u32) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { partitions, cache_bytes: 16 << 20, retention: Retention::default() };
    let log = EmbeddedLog::open(dir.path(), options, Arc::new(now_us)).unwrap();
    Fixture { _dir: dir, log: Arc::new(log) }
}

fn importer(fixture: &Fixture) -> Importer {
    Importer::new(fixture.log.clone(), Arc::new(now_us), Vec::new(), 3 * DAY_MS)
}

fn line(user: &str, n: u64, day: u32) -> String {
    format!(
        r#"{{"specversion":"1.0","id":"{n}","source":"/accounts/bot","type":"com.viber.callback.message","subject":"{user}","time":"2026-03-{day:02}T00:00:00.{:03}Z","data":{{"event":"message","message_token":{n},"sender":{{"id":"{user}"}},"message":{{"type":"text"}}}}}}"#,
        n % 1000
    ) + "\n"
}

fn tick(day: u32) -> String {
    format!(
        r#"{{"specversion":"1.0","id":"t","source":"/counterbat","type":"counterbat.clock.ticked","time":"2026-03-{day:02}T00:00:00Z","data":{{}}}}"#
    ) + "\n"
}

async fn run(importer: &mut Importer, text: String) -> Outcome {
    importer.run(std::io::Cursor::new(text), 1).await.unwrap()
}

async fn exported(fixture: &Fixture, filter: Filter) -> String {
    let mut exporter = Exporter::open(fixture.log.clone(), filter).await.unwrap();
    let mut text = Vec::new();
    while let Some(block) = exporter.next_block().await.unwrap() {
        text.extend(block);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn order_is_kept_in_every_partition() {
    let fixture = fixture(4);
    let text: String = (0..30_000).map(|n| line(&format!("u{}", n % 7), n, 1)).collect();
    let outcome = run(&mut importer(&fixture), text).await;
    assert_eq!((outcome.summary.lines, outcome.summary.appended), (30_000, 30_000));
    let mut all = 0;
    for partition in 0..4 {
        let mut from = 0;
        let mut last = None;
        loop {
            let records = fixture.log.read(partition, from, 1000, 1 << 20).await.unwrap().records;
            let Some(end) = records.last() else { break };
            from = end.offset + 1;
            for record in records {
                let n: u64 = record.event.id.parse().unwrap();
                assert!(last.is_none_or(|last| last < n));
                (last, all) = (Some(n), all + 1);
            }
        }
        assert_eq!(outcome.summary.ends.get(&partition).copied().unwrap_or(0), from);
    }
    assert_eq!(all, 30_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_ends_the_import_and_names_itself() {
    let fixture = fixture(2);
    let text = [line("a", 1, 1), "\n".into(), line("b", 2, 1), "{}\n".into(), line("a", 3, 1)].concat();
    let outcome = run(&mut importer(&fixture), text).await;
    let Some(Stop::Bad { line, reason }) = outcome.stopped else { panic!("{:?}", outcome.stopped) };
    assert_eq!(line, 4);
    assert!(!reason.is_empty());
    assert_eq!((outcome.summary.lines, outcome.summary.appended), (4, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn skipped_lines_are_handed_over_as_they_were() {
    let fixture = fixture(2);
    let aside = Arc::new(Mutex::new(Vec::new()));
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let text = [line("a", 1, 1), "{no\n".into(), line("b", 2, 1)].concat();
    let mut importer = importer(&fixture).skip_bad(Some(skip_to(Shared(aside.clone()))));
    let outcome = run(&mut importer, text).await;
    assert_eq!((outcome.summary.appended, outcome.summary.bad), (2, 1));
    assert_eq!(*aside.lock().unwrap(), b"{no\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn lateness_begins_at_the_watermark_less_the_allowed() {
    let fixture = fixture(1);
    let mut importer = importer(&fixture);
    // `t + 3d <= watermark` is too late: the first moment of day 7 is, a millisecond later is not.
    let outcome = run(&mut importer, [tick(10), line("a", 1, 7), line("a", 1000, 7)].concat()).await;
    let Some(Stop::TooLate { line: number, partition, watermark_ms, .. }) = outcome.stopped else {
        panic!("{:?}", outcome.stopped)
    };
    assert_eq!((number, partition), (3, 0));
    assert_eq!(watermark_ms * 1000, parse_rfc3339_us("2026-03-10T00:00:00Z").unwrap());
    assert_eq!(outcome.summary.appended, 2);
    let text = Stop::TooLate { line: 3, event_ms: 0, partition, watermark_ms, allowed_lateness_ms: 3 * DAY_MS };
    assert!(text.to_string().contains("is 3d") && text.to_string().contains("--late"), "{text}");

    let mut importer = importer_late(&fixture).await;
    let outcome = run(&mut importer, line("a", 1000, 7)).await;
    assert_eq!((outcome.summary.appended, outcome.summary.too_late, outcome.stopped), (1, 1, None));
}

async fn importer_late(fixture: &Fixture) -> Importer {
    let known = watermarks(fixture.log.as_ref(), &[]).await.unwrap();
    Importer::new(fixture.log.clone(), Arc::new(now_us), known, 3 * DAY_MS).append_late(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_goes_to_every_partition_and_is_exported_once() {
    let fixture = fixture(4);
    run(&mut importer(&fixture), [line("a", 1, 2), tick(9), line("b", 2, 8)].concat()).await;
    let known = watermarks(fixture.log.as_ref(), &[]).await.unwrap();
    let day_9 = parse_rfc3339_us("2026-03-09T00:00:00Z").unwrap() / 1000;
    assert_eq!(known, vec![Some(day_9); 4]);
    let text = exported(&fixture, Filter::default()).await;
    let ids: Vec<&str> =
        text.lines().map(|line| if line.contains("clock.ticked") { "tick" } else { "event" }).collect();
    assert_eq!(ids, ["event", "event", "tick"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_what_was_imported() {
    let fixture = fixture(4);
    let text: String = (0..5000).map(|n| line(&format!("u{}", n % 50), n, 1 + (n / 1000) as u32)).collect();
    run(&mut importer(&fixture), text.clone()).await;
    let out = exported(&fixture, Filter::default()).await;
    let mut lines: Vec<&str> = out.lines().collect();
    assert!(lines.pop().unwrap().contains("2026-03-05T00:00:00.999Z"));
    let events = |lines: Vec<&str>| -> Vec<crate::event::Event> {
        let mut events: Vec<_> =
            lines.iter().map(|line| crate::event::structured::parse_line(line.as_bytes()).unwrap()).collect();
        events.sort_by_key(|event| event.id.parse::<u64>().unwrap());
        events
    };
    assert_eq!(events(lines), events(text.lines().collect()));

    let from_us = parse_rfc3339_us("2026-03-02T00:00:00Z");
    let to_us = parse_rfc3339_us("2026-03-03T00:00:00Z");
    let part = exported(&fixture, Filter { from_us, to_us, account: Some("bot".into()) }).await;
    assert_eq!(part.lines().count(), 1001);
    let none = exported(&fixture, Filter { account: Some("other".into()), ..Filter::default() }).await;
    assert_eq!(none.lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_records_appended_at_one_time_is_in_order_of_theirs() {
    // All of them have the same time of appending here, as the records of a batch have in Kafka.
    let fixture = fixture(4);
    let text: String = (1..=28).map(|day| line(&format!("u{}", day % 7), u64::from(day), day)).collect();
    run(&mut importer(&fixture), text).await;
    let exported = exported(&fixture, Filter::default()).await;
    let outcome = run(&mut importer(&self::fixture(1)), exported.clone()).await;
    assert!(outcome.stopped.is_none(), "{exported}");
    assert_eq!(outcome.summary.lines, 28 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_time_is_exported_as_the_append_time() {
    let fixture = fixture(1);
    let text = r#"{"specversion":"1.0","id":"1","source":"/accounts/bot","type":"x","data":1}"#;
    run(&mut importer(&fixture), text.to_owned()).await;
    let out = exported(&fixture, Filter::default()).await;
    assert!(out.lines().next().unwrap().contains(r#""time":"2026-06-01T00:00:00.000Z""#), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_a_packed_file_is_told_after_what_could_be_read() {
    let fixture = fixture(1);
    let text: String = (0..20_000).map(|n| line("a", n, 1)).collect();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
    let mut packed = encoder.finish().unwrap();
    packed.truncate(packed.len() / 2);
    let source = source::unpack(std::io::Cursor::new(packed), "a.gz").unwrap();
    let error = importer(&fixture).run(source, 1).await.unwrap_err();
    assert!(matches!(error, ImportError::Read { line, .. } if line > 0), "{error}");
    assert!(fixture.log.bounds(0).await.unwrap().1 > 0);
}
