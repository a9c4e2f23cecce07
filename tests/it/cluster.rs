//! Data directories whose processes share a topic of Kafka and tables in an S3 store.

use super::harness::{Home, Server, until};
use super::parts::{self, Kafka, Minio};
use counterbat::log::kafka::Settings;
use serde_json::Value;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether this machine cannot start what the processes share.
pub fn missing() -> bool {
    parts::missing("shared kafka") || parts::missing("shared minio")
}

/// A name that nothing else has, also where brokers and store have run for long.
pub fn name(what: &str) -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    format!("{what}-{now_ms}-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))
}

/// A topic of this name, made when it is missing, with those that belong to it.
pub fn settings(brokers: &str, topic: &str, partitions: u32) -> Settings {
    Settings {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        state_topic: format!("{topic}-state"),
        registry_topic: format!("{topic}-registry"),
        group: topic.to_owned(),
        create_topics: true,
        replication: None,
        partitions,
        properties: Vec::new(),
    }
}

/// What the processes share. Topic and tables come into being with the first of them.
pub struct Cluster {
    name: String,
    bucket: String,
    settings: Vec<String>,
}

impl Cluster {
    /// On the shared brokers and store. Settings as in [`Home::new`], the same for all.
    pub fn new(partitions: u32, settings: &[&str]) -> Self {
        let minio = Minio::shared();
        Self::on(&Kafka::shared().brokers(), minio, &minio.endpoint(), partitions, settings)
    }

    /// On these brokers, and a store that is reached at `endpoint`.
    pub fn on(brokers: &str, minio: &Minio, endpoint: &str, partitions: u32, settings: &[&str]) -> Self {
        let name = name("shared");
        let key = |variable: &str| minio.env().into_iter().find(|(name, _)| *name == variable).unwrap().1;
        let mut cluster = Cluster { name, bucket: minio.bucket().to_owned(), settings: Vec::new() };
        cluster.settings = vec![
            format!("log.kind = {:?}", "kafka"),
            format!("log.partitions = {partitions}"),
            format!("kafka.brokers = {brokers:?}"),
            format!("kafka.topic = {:?}", cluster.topic()),
            format!("kafka.state_topic = {:?}", cluster.state_topic()),
            format!("kafka.registry_topic = {:?}", cluster.registry_topic()),
            format!("kafka.group = {:?}", cluster.name),
            format!("lake.url = {:?}", format!("s3://{}", cluster.lake())),
            format!("lake.s3.endpoint = {endpoint:?}"),
            format!("lake.s3.access_key_id = {:?}", key("AWS_ACCESS_KEY_ID")),
            format!("lake.s3.secret_access_key = {:?}", key("AWS_SECRET_ACCESS_KEY")),
        ];
        cluster.settings.extend(settings.iter().map(|line| (*line).to_owned()));
        cluster
    }

    pub fn topic(&self) -> String {
        format!("{}.events", self.name)
    }

    pub fn state_topic(&self) -> String {
        format!("{}.state", self.name)
    }

    pub fn registry_topic(&self) -> String {
        format!("{}.registry", self.name)
    }

    /// Where the tables lie: `bucket/prefix`.
    pub fn lake(&self) -> String {
        format!("{}/{}", self.bucket, self.name)
    }

    /// A data directory of its own.
    pub fn home(&self) -> Home {
        self.home_with(&[])
    }

    pub fn home_with(&self, settings: &[&str]) -> Home {
        Home::new(&self.settings.iter().map(String::as_str).chain(settings.iter().copied()).collect::<Vec<_>>())
    }
}

/// How many partitions a server works on, as far as it has said.
fn share(server: &Server) -> usize {
    let log = server.log();
    let told = log.lines().rev().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let fields = &line["fields"];
        let partitions = fields["partitions"].as_str().filter(|_| fields["message"] == "partitions are assigned");
        Some(partitions.or(fields["left"].as_str())?.to_owned())
    });
    told.map_or(0, |set| set.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty()).count())
}

/// Waits until the servers have shared the partitions among them, each with as many as any other, or one more.
pub fn wait_shared(servers: &[&Server], partitions: usize) {
    let least = partitions / servers.len();
    let shares = || servers.iter().map(|server| share(server)).collect::<Vec<_>>();
    let is_fair = |shares: &Vec<usize>| {
        shares.iter().sum::<usize>() == partitions && shares.iter().all(|share| (least..=least + 1).contains(share))
    };
    until("a share for every server", shares, is_fair);
}

/// Ends servers in order, all at once.
pub fn stop_all(servers: Vec<Server>) {
    std::thread::scope(|scope| {
        for server in servers {
            scope.spawn(|| server.stop_in_order());
        }
    });
}
