//! The projector over a real log, state and lake: what it commits, and what a restart, a loss and a rebuild leave.

use super::*;
use crate::event::{Event, structured};
use crate::lake::{Lake, TableName};
use crate::log::embedded::{EmbeddedLog, Options, Retention};
use crate::log::partitioner::{Route, route};
use crate::metrics::{AccountLabels, Metrics};
use crate::session::Policy;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

mod generations;
mod shared;
mod shared_switch;
mod store;
mod switching;

const DAY: i64 = 86_400_000;

fn events(history: &str) -> Vec<Event> {
    let path = format!("{}/tests/golden/{history}/events.ndjson.gz", env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text.lines().map(|line| structured::parse_line(line.as_bytes()).unwrap()).collect()
}

fn now_us() -> i64 {
    chrono::Utc::now().timestamp_micros()
}

fn settings(log: &dyn EventLog) -> Settings {
    Settings {
        partitions: log.partitions(),
        log_id: log.id().0.clone(),
        lateness_ms: Some(3 * DAY),
        settle_lateness_ms: 3 * DAY,
        delivery_window_ms: 14 * DAY,
        any_age: false,
        policies: Policies::default(),
        newest_policies: None,
        default_policy: PolicyChain::always(Policy::named("counterbat").unwrap()),
        prices: Prices::default(),
        commit_every: Duration::from_millis(50),
        snapshot_every: Duration::from_millis(80),
        memory_bytes: 64 << 20,
        metrics: Arc::new(Metrics::new(AccountLabels::All)),
        clock: Arc::new(now_us),
        feed: Arc::new(Feed::new("test".to_owned())),
    }
}

async fn open_log(dir: &Path) -> Arc<EmbeddedLog> {
    loop {
        let options = Options { partitions: 3, cache_bytes: 8 << 20, retention: Retention::default() };
        match EmbeddedLog::open(&dir.join("log"), options, Arc::new(now_us)) {
            Err(LogError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            log => return Arc::new(log.unwrap()),
        }
    }
}

async fn append(log: &EmbeddedLog, events: &[Event]) {
    let mut batch = Vec::new();
    for event in events {
        match route(event, log.partitions()) {
            Route::One(partition) => batch.push((partition, event.clone())),
            Route::Every => batch.extend((0..log.partitions()).map(|partition| (partition, event.clone()))),
        }
    }
    log.append(batch).await.unwrap();
}

/// Runs a projector until everything is committed, and stops it; or drops it there and then.
async fn run_once(dir: &Path, lake: &Arc<Lake>, log: Arc<dyn EventLog>, tidy_end: bool) {
    let settings = settings(&*log);
    run_by(settings, dir, lake, log, tidy_end).await;
}

async fn run_by(settings: Settings, dir: &Path, lake: &Arc<Lake>, log: Arc<dyn EventLog>, tidy_end: bool) {
    let (stop, stopped) = watch::channel(false);
    let parts = Parts {
        log: log.clone(),
        lake: lake.clone(),
        data_dir: dir.to_owned(),
        instance: "one".into(),
        settings: Arc::new(settings),
        stop: stopped,
    };
    let (handle, task) = start(parts).await.unwrap();
    let mut ends = Vec::new();
    for partition in 0..log.partitions() {
        ends.push(log.bounds(partition).await.unwrap().1);
    }
    handle.wait_committed(&ends).await.unwrap();
    if tidy_end {
        stop.send(true).unwrap();
        task.await.unwrap().unwrap();
    } else {
        task.abort();
        let _ = task.await;
    }
}

async fn rows(lake: &Lake, name: TableName) -> Vec<RecordBatch> {
    let table = lake.table(name);
    let mut batches = Vec::new();
    for file in table.snapshot().files.values() {
        batches.extend(table.read(file).await.unwrap());
    }
    batches
}

/// Sessions by id, with the figures that matter.
async fn sessions(lake: &Lake) -> BTreeMap<String, String> {
    let mut sessions = BTreeMap::new();
    for batch in rows(lake, TableName::Sessions).await {
        for row in 0..batch.num_rows() {
            let text = |column: &str| batch.column_by_name(column).unwrap().as_string::<i32>().value(row).to_owned();
            let count = |column: &str| batch.column_by_name(column).unwrap().as_primitive::<Int32Type>().value(row);
            let figures: Vec<i32> =
                ["inbound", "outbound", "delivered", "seen", "failed", "charged"].into_iter().map(count).collect();
            let line = format!("{} {} {} {figures:?}", text("user_id"), text("kind"), text("close_reason"));
            assert_eq!(sessions.insert(text("session_id"), line), None, "a session twice");
        }
    }
    sessions
}

async fn messages(lake: &Lake) -> BTreeMap<(String, String, i64), String> {
    let mut messages = BTreeMap::new();
    for batch in rows(lake, TableName::Messages).await {
        for row in 0..batch.num_rows() {
            let text = |column: &str| batch.column_by_name(column).unwrap().as_string::<i32>().value(row).to_owned();
            let token = batch.column_by_name("message_token").unwrap().as_primitive::<Int64Type>().value(row);
            let key = (text("account"), text("user_id"), token);
            assert_eq!(messages.insert(key, text("verdict") + &text("state")), None, "a message twice");
        }
    }
    messages
}

fn differences(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>) -> Vec<String> {
    let only = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>, sign: &str| -> Vec<String> {
        a.iter().filter(|(key, row)| b.get(*key) != Some(row)).map(|(key, row)| format!("{sign} {key} {row}")).collect()
    };
    [only(ours, theirs, "-"), only(theirs, ours, "+")].concat()
}

async fn archived(lake: &Lake) -> usize {
    rows(lake, TableName::Events).await.iter().map(RecordBatch::num_rows).sum()
}

fn golden_sessions(history: &str) -> usize {
    let path = format!("{}/tests/golden/{history}/totals.counterbat.json", env!("CARGO_MANIFEST_DIR"));
    let totals: BTreeMap<String, usize> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    totals["sessions"]
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_the_same_after_restarts_a_lost_state_and_a_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path()).await;
    let url = dir.path().join("lake").display().to_string();
    let lake = Arc::new(Lake::open(&url, log.id(), 3).await.unwrap());
    let events = events("busy");
    let ticks = events.iter().filter(|event| event.is_tick()).count();
    for (n, part) in events.chunks(events.len() / 4 + 1).enumerate() {
        append(&log, part).await;
        run_once(dir.path(), &lake, log.clone(), n % 2 == 0).await;
    }
    assert_eq!(archived(&lake).await, events.len() - ticks);
    let (first, first_messages) = (sessions(&lake).await, messages(&lake).await);
    assert_eq!(first.len(), golden_sessions("busy"));

    std::fs::remove_dir_all(dir.path().join("state")).unwrap();
    run_once(dir.path(), &lake, log.clone(), true).await;
    assert_eq!(archived(&lake).await, events.len() - ticks, "nothing is archived twice");
    assert!(sessions(&lake).await == first && messages(&lake).await == first_messages, "after the state was lost");

    let rebuilds = OfflineRebuilds::new(lake.clone(), dir.path().to_owned(), settings(&*log), false);
    let report = rebuilds.rebuild(Wish::default(), |_| {}).await.unwrap();
    assert_eq!((report.job.phase, report.job.reach.unwrap().events), (Phase::Done, (events.len() - ticks) as u64));
    assert_eq!(differences(&first, &sessions(&lake).await), Vec::<String>::new(), "after a rebuild");
    assert!(messages(&lake).await == first_messages, "after a rebuild");

    drop(lake);
    let lake = Arc::new(Lake::open(&url, log.id(), 3).await.unwrap());
    run_once(dir.path(), &lake, log.clone(), true).await;
    assert!(sessions(&lake).await == first && messages(&lake).await == first_messages, "opened again");
}

/// What a bot was told or did, `day` days after 1 March 2026.
fn on_day(day: i64, user: &str, what: &str, token: u64) -> Event {
    at(1_772_323_200_000 + day * DAY, 0, user, what, token)
}

/// What a bot was told or did; of what it was told it heard `after_ms` later.
fn at(t_ms: i64, after_ms: i64, user: &str, what: &str, token: u64) -> Event {
    let time = chrono::DateTime::from_timestamp_millis(t_ms + after_ms).unwrap().to_rfc3339();
    let (kind, data) = match what {
        "send_message" => {
            let response = format!(r#"{{"status":0,"message_token":{token},"billing_status":1}}"#);
            (
                "api.send_message",
                format!(
                    r#"{{"request":{{"receiver":"{user}","type":"text"}},"response":{response},"http_status":200}}"#
                ),
            )
        }
        callback => {
            let told = format!(
                r#"{{"event":"{callback}","timestamp":{t_ms},"message_token":{token},"sender":{{"id":"{user}"}}}}"#
            );
            (callback, told)
        }
    };
    let kind = if what == "send_message" { kind.to_owned() } else { format!("callback.{kind}") };
    let line = format!(
        r#"{{"specversion":"1.0","id":"{what}/{token}/{user}/{t_ms}","source":"/accounts/bot1","type":"com.viber.{kind}","subject":"{user}","time":"{time}","datacontenttype":"application/json","data":{data}}}"#
    );
    structured::parse_line(line.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_forgets_what_the_live_fold_forgets() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path()).await;
    let url = dir.path().join("lake").display().to_string();
    let lake = Arc::new(Lake::open(&url, log.id(), 3).await.unwrap());
    let mut history = Vec::new();
    for user in ["one", "two"] {
        history.push(on_day(0, user, "message", 1));
        history.push(on_day(0, user, "send_message", 2));
        history.push(on_day(1, user, "delivered", 2));
        // Between them time goes on, and for one of them by its own events.
        history.extend((2..45).filter(|_| user == "two").map(|day| on_day(day, "two", "message", 100 + day as u64)));
        history.push(on_day(50, user, "send_message", 2));
        history.push(on_day(50, user, "seen", 2));
    }
    // One message of the session is still awaited a repeat of when the other is forgotten: the session had both.
    history.push(on_day(0, "three", "message", 11));
    history.extend([12, 13].map(|token| on_day(0, "three", "send_message", token)));
    history.extend([12, 13].map(|token| on_day(1, "three", "delivered", token)));
    history.push(on_day(19, "three", "seen", 13));
    history.push(on_day(20, "three", "delivered", 13));
    history.sort_by_key(|event| event.time_us);
    for part in history.chunks(7) {
        append(&log, part).await;
        run_once(dir.path(), &lake, log.clone(), true).await;
    }
    let told = async |lake: &Lake| {
        let mut told = Vec::new();
        for batch in rows(lake, TableName::Messages).await {
            let time = |column: &str| batch.column_by_name(column).unwrap().as_primitive::<TimestampMicrosecondType>();
            for row in 0..batch.num_rows() {
                let user = batch.column_by_name("user_id").unwrap().as_string::<i32>().value(row).to_owned();
                told.push((user, time("sent_at").value(row), time("seen_at").is_valid(row)));
            }
        }
        told.sort();
        told
    };
    let live = told(&lake).await;
    assert_eq!(live.iter().map(|(_, _, is_seen)| *is_seen).collect::<Vec<_>>(), [false, false, false, false, true]);
    let live_sessions = sessions(&lake).await;
    let rebuilds = OfflineRebuilds::new(lake.clone(), dir.path().to_owned(), settings(&*log), false);
    rebuilds.rebuild(Wish::default(), |_| {}).await.unwrap();
    assert_eq!(told(&lake).await, live);
    assert_eq!(sessions(&lake).await, live_sessions);
}

/// A random month of three users: of what the bot was told it hears up to two days later, and of some of it twice.
fn month() -> impl Strategy<Value = Vec<Event>> {
    let whats = ["message", "message", "send_message", "send_message", "delivered", "seen", "failed", "unsubscribed"];
    let user = proptest::sample::select(vec!["one", "two", "three"]);
    let step = (proptest::sample::select(whats.to_vec()), user, 0..DAY, 0..(2 * DAY), 0..3usize);
    proptest::collection::vec(step, 1..80).prop_map(|steps| {
        let (mut now_ms, mut tokens, mut month) = (1_772_323_200_000, BTreeMap::new(), Vec::new());
        for (n, (what, user, gap_ms, after_ms, copies)) in steps.into_iter().enumerate() {
            now_ms += gap_ms;
            let is_receipt = ["delivered", "seen", "failed"].contains(&what);
            // A receipt is that of the message sent last.
            let token = if is_receipt { tokens.get(user).copied().unwrap_or(0) } else { n as u64 + 1 };
            let after_ms = if what == "send_message" { 0 } else { after_ms };
            if what == "send_message" {
                tokens.insert(user, token);
            }
            for copy in 0..copies.max(1) as i64 {
                let heard_ms = now_ms + after_ms + copy * 1000;
                month.push((heard_ms, at(now_ms, heard_ms - now_ms, user, what, token)));
            }
        }
        month.sort_by_key(|(heard_ms, _)| *heard_ms);
        month.into_iter().map(|(_, event)| event).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// User by user comes of any history what came of it event by event, in every column.
    #[test]
    fn a_rebuild_gives_what_the_live_fold_gave(history in month(), parts in 1..4usize) {
        let told = tokio::runtime::Runtime::new().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let log = open_log(dir.path()).await;
            let url = dir.path().join("lake").display().to_string();
            let lake = Arc::new(Lake::open(&url, log.id(), 3).await.unwrap());
            for part in history.chunks(history.len().div_ceil(parts)) {
                append(&log, part).await;
                run_once(dir.path(), &lake, log.clone(), true).await;
            }
            let live = whole_rows(&lake).await;
            let rebuilds = OfflineRebuilds::new(lake.clone(), dir.path().to_owned(), settings(&*log), false);
            rebuilds.rebuild(Wish::default(), |_| {}).await.unwrap();
            (live, whole_rows(&lake).await)
        });
        prop_assert_eq!(told.0, told.1);
    }
}

/// All that the tables say of sessions and messages, a line a row.
async fn whole_rows(lake: &Lake) -> Vec<String> {
    let mut lines = Vec::new();
    for name in [TableName::Sessions, TableName::Messages] {
        for batch in rows(lake, name).await {
            let shown: Vec<_> = batch.columns().iter().map(|column| shown(column)).collect();
            lines.extend((0..batch.num_rows()).map(|row| {
                let values = shown.iter().map(|column| column.value(row).to_string());
                format!("{name:?} {}", values.collect::<Vec<_>>().join(" "))
            }));
        }
    }
    lines.sort();
    lines
}

fn shown(column: &dyn Array) -> ArrayFormatter<'_> {
    ArrayFormatter::try_new(column, &FormatOptions::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_show_what_is_folded_before_it_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path()).await;
    let lake = Arc::new(Lake::open("memory:///", log.id(), 3).await.unwrap());
    let settings = Settings { commit_every: Duration::from_secs(3600), ..settings(&*log) };
    let (_stop, stopped) = watch::channel(false);
    let data_dir = dir.path().to_owned();
    let parts = Parts {
        log: log.clone(),
        lake: lake.clone(),
        data_dir,
        instance: "one".into(),
        settings: Arc::new(settings),
        stop: stopped,
    };
    let (handle, _task) = start(parts).await.unwrap();
    append(&log, &events("small")).await;
    let mut ends = Vec::new();
    for partition in 0..3 {
        ends.push(log.bounds(partition).await.unwrap().1);
    }
    handle.wait_folded(&ends).await.unwrap();
    let standing = |name: TableName| (name, lake.table(name).snapshot().standing());
    let tables = [TableName::Events, TableName::Sessions].map(standing).into();
    let told = handle.overlay(Asked { partitions: vec![0, 1, 2], tables }).await.unwrap();
    let Told::Laid { partitions, overlays } = told else { panic!("the tables are as old as the projector") };
    let count = |name: &TableName| overlays[name].rows.iter().map(RecordBatch::num_rows).sum::<usize>();
    assert_eq!((count(&TableName::Events), count(&TableName::Sessions)), (226, golden_sessions("small")));
    assert_eq!(partitions, [0, 1, 2]);
    assert!(lake.table(TableName::Events).snapshot().files.is_empty());
}

#[tokio::test]
async fn a_fold_and_a_rebuild_beside_it_keep_within_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_log(dir.path()).await;
    for memory_bytes in [256 << 20, 512 << 20, 3 << 30] {
        let fold = Settings { memory_bytes, ..settings(&*log) };
        let beside = Settings { memory_bytes: fold.beside_bytes(), ..fold.clone() };
        let alone = Settings { memory_bytes: fold.alone_bytes(), ..fold.clone() };
        // Caches and buffers, what is not written yet, and what is being written.
        let most = |settings: &Settings| settings.state_bytes() + 2 * 3 * settings.layer_bytes() as u64;
        assert!(most(&fold) + most(&beside) <= memory_bytes, "{memory_bytes}: {}, {}", most(&fold), most(&beside));
        assert!(most(&alone) <= memory_bytes && alone.state_bytes() > fold.state_bytes(), "{}", most(&alone));
    }
}
