//! What processes of a log tell each other is with all of them, whatever becomes of the brokers and of the topic.

use super::cluster::{name, settings};
use super::harness::{runtime, until};
use super::parts::{Kafka, missing};
use super::tools::kcat;
use counterbat::log::kafka::KafkaLog;
use counterbat::log::registry::Registry;
use counterbat::log::{EventLog, LogError};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A process as far as the registry goes. Dropping it is its end.
struct Process {
    log: KafkaLog,
    registry: Arc<dyn Registry>,
}

impl Process {
    fn try_start(brokers: &str, topic: &str) -> Result<Self, LogError> {
        runtime().block_on(async {
            let log = KafkaLog::open(settings(brokers, topic, 1)).await?;
            let registry = log.registry().await?.expect("a topic is shared");
            Ok(Self { log, registry })
        })
    }

    fn start(brokers: &str, topic: &str) -> Self {
        Self::try_start(brokers, topic).unwrap()
    }

    fn put(&self, key: &str, value: Option<&str>) -> Result<(), LogError> {
        runtime().block_on(self.registry.put(key, value.map(|value| value.as_bytes().to_vec())))
    }

    fn entries(&self) -> BTreeMap<String, String> {
        let entries = self.registry.entries().borrow().clone();
        entries.iter().map(|(key, value)| (key.clone(), String::from_utf8(value.clone()).unwrap())).collect()
    }
}

/// A text that no compression makes short.
fn noise(length: usize) -> String {
    let mut state = 1_u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'0' + ((state >> 58) as u8))
    };
    (0..length).map(|_| letter()).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn what_one_process_puts_all_have() {
    if missing("shared kafka") {
        return;
    }
    let (brokers, topic) = (Kafka::shared().brokers(), name("registry"));
    let (one, other) = (Process::start(&brokers, &topic), Process::start(&brokers, &topic));
    assert!(one.entries().is_empty() && other.entries().is_empty());
    one.put("a/1", Some("one")).unwrap();
    one.put("a/2", Some("")).unwrap();
    assert_eq!(one.entries(), pairs(&[("a/1", "one"), ("a/2", "")]), "at once, where it was put");
    until("the entries", || other.entries(), |entries| *entries == one.entries());
    other.put("a/1", Some("two")).unwrap();
    other.put("a/2", None).unwrap();
    other.put("b", Some("ü")).unwrap();
    // Without a wait, for who has to know now.
    runtime().block_on(one.registry.catch_up()).unwrap();
    let all = pairs(&[("a/1", "two"), ("b", "ü")]);
    assert_eq!(one.entries(), all);
    // Asked again, the log gives the same one.
    let again = runtime().block_on(one.log.registry()).unwrap().unwrap();
    assert!(Arc::ptr_eq(&again, &one.registry));
    drop((one, other, again));
    assert_eq!(Process::start(&brokers, &topic).entries(), all, "whole when it is there");
}

#[test]
fn puts_of_many_go_in_one_order() {
    if missing("shared kafka") {
        return;
    }
    let (brokers, topic) = (Kafka::shared().brokers(), name("registry"));
    let processes: Vec<Process> = (0..3).map(|_| Process::start(&brokers, &topic)).collect();
    std::thread::scope(|scope| {
        for (n, process) in processes.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..50 {
                    process.put("same", Some(&format!("{n}-{round}"))).unwrap();
                    process.put(&format!("own/{n}/{round}"), Some("x")).unwrap();
                }
            });
        }
    });
    for process in &processes {
        runtime().block_on(process.registry.catch_up()).unwrap();
    }
    let all = processes[0].entries();
    assert_eq!(all.len(), 151);
    assert!(processes.iter().all(|process| process.entries() == all));
}

#[test]
fn a_topic_that_was_compacted_says_the_same() {
    if missing("shared kafka") {
        return;
    }
    let (brokers, topic) = (Kafka::shared().brokers(), name("registry"));
    let registry_topic = format!("{topic}-registry");
    let settings = ["cleanup.policy=compact", "segment.bytes=1048576", "min.cleanable.dirty.ratio=0.01"];
    let more = ["delete.retention.ms=0", "max.message.bytes=1000000"];
    Kafka::shared().make_topic(&registry_topic, 1, &[&settings[..], &more].concat());
    let process = Process::start(&brokers, &topic);
    process.put("gone", Some("x")).unwrap();
    process.put("kept", Some("x")).unwrap();
    process.put("gone", None).unwrap();
    let filler = noise(200_000);
    for _ in 0..30 {
        process.put("filler", Some(&filler)).unwrap();
    }
    let records = || {
        let shown =
            kcat().args(["-C", "-e", "-q", "-b", &brokers, "-t", &registry_topic, "-f", "%k\n"]).output().unwrap();
        String::from_utf8(shown.stdout).unwrap().lines().count()
    };
    until("the compaction", records, |records| *records < 20);
    let all = pairs(&[("filler", &filler), ("kept", "x")]);
    assert_eq!(process.entries(), all);
    let fresh = Process::start(&brokers, &topic);
    assert_eq!(fresh.entries(), all);
    fresh.put("kept", None).unwrap();
    runtime().block_on(process.registry.catch_up()).unwrap();
    assert_eq!(process.entries(), pairs(&[("filler", &filler)]));
}

#[test]
fn brokers_that_go_and_come_back_are_gone_on_with() {
    if missing("kafka") {
        return;
    }
    let mut kafka = Kafka::start(1);
    let (brokers, topic) = (kafka.brokers(), name("registry"));
    let (one, other) = (Process::start(&brokers, &topic), Process::start(&brokers, &topic));
    one.put("before", Some("1")).unwrap();
    kafka.kill(1);
    // What is known stays known, and what cannot be kept is an error.
    let error = one.put("during", Some("1")).unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(one.entries(), pairs(&[("before", "1")]));
    kafka.restart(1);
    until("a put", || one.put("after", Some("1")), Result::is_ok).unwrap();
    let has = |entries: &BTreeMap<String, String>| entries.contains_key("before") && entries.contains_key("after");
    until("the entries", || other.entries(), has);
    until("a put by the other", || other.put("after", Some("2")), Result::is_ok).unwrap();
    until("its entry", || one.entries(), |entries| entries["after"] == "2");
    // One that starts only then has the same.
    until("a catch-up", || runtime().block_on(other.registry.catch_up()), Result::is_ok).unwrap();
    assert_eq!(Process::start(&brokers, &topic).entries(), other.entries());
}

#[test]
fn a_topic_that_cannot_be_the_registry_is_refused() {
    if missing("shared kafka") {
        return;
    }
    let (brokers, topic) = (Kafka::shared().brokers(), name("registry"));
    let compact = ["cleanup.policy=compact", "max.message.bytes=1000000"];
    Kafka::shared().make_topic(&format!("{topic}-registry"), 2, &compact);
    let error = Process::try_start(&brokers, &topic).err().unwrap().to_string();
    assert!(error.contains("2 partitions") && error.contains("registry_topic"), "{error}");
    let topic = name("registry");
    Kafka::shared().make_topic(&format!("{topic}-registry"), 1, &["cleanup.policy=delete"]);
    let error = Process::try_start(&brokers, &topic).err().unwrap().to_string();
    assert!(error.contains("cleanup.policy=compact"), "{error}");
}
