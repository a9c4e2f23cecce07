//! The topics: made as they must be, and looked at before they are used.

use super::super::LogError;
use super::client::{Brief, PATIENCE, Quiet, Settings, refused};
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataTopic;
use rdkafka::types::RDKafkaErrorCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a topic is for, which decides how it must be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Events,
    State,
    Registry,
}

impl Purpose {
    /// The settings that a topic must have.
    fn wanted(self) -> &'static [(&'static str, &'static str)] {
        match self {
            // By default records with old times are removed, and with CreateTime such from the future refused.
            Purpose::Events => &[("message.timestamp.type", "LogAppendTime"), ("cleanup.policy", "delete")],
            Purpose::State | Purpose::Registry => &[("cleanup.policy", "compact")],
        }
    }

    /// More settings of a topic that is made.
    fn initial(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Purpose::Events => &[("retention.ms", "-1"), ("retention.bytes", "-1")],
            Purpose::State => &[("min.cleanable.dirty.ratio", "0.3"), ("segment.bytes", "134217728")],
            Purpose::Registry => &[("min.cleanable.dirty.ratio", "0.3"), ("segment.bytes", "16777216")],
        }
    }

    /// What a record may need, in bytes: a call with its answer, each up to 1 MiB; what is remembered of one user; what is
    /// known of one account.
    fn record_bytes(self) -> u64 {
        match self {
            Purpose::Events => 4_000_000,
            Purpose::State => STATE_RECORD_BYTES,
            Purpose::Registry => 1_000_000,
        }
    }
}

/// Most bytes of a record of the state topic.
pub(super) const STATE_RECORD_BYTES: u64 = 32_000_000;

/// What is known of a topic that is as it must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Topic {
    pub partitions: u32,
    /// Copies that must have a record before it is acknowledged.
    pub min_insync: usize,
}

/// Keeps what a client said last of a connection that failed.
#[derive(Default)]
struct Complaints(Mutex<String>);

impl ClientContext for Complaints {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // That all are down says less than why one is.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            reason.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        }
        Quiet.error(error, reason);
    }
}

impl ConsumerContext for Complaints {}

/// The topic of that name, made where it is missing. Blocks.
pub(super) struct Topics<'a> {
    pub settings: &'a Settings,
    pub admin: AdminClient<Quiet>,
    /// Brokers make a topic that a producer or an administrator asks about, but not for a consumer.
    asking: Brief<BaseConsumer<Complaints>>,
}

impl<'a> Topics<'a> {
    pub fn new(settings: &'a Settings) -> Result<Self, LogError> {
        let admin = settings.client(&[]).create_with_context(Quiet).map_err(refused)?;
        let asking = Brief::new(settings.consumer().create_with_context(Complaints::default()).map_err(refused)?);
        Ok(Self { settings, admin, asking })
    }

    /// Names the cluster, which is part of the log's id, where a broker answers within `patience`.
    pub fn cluster_id(&self, patience: Duration) -> Result<String, LogError> {
        let id = self.admin.inner().fetch_cluster_id(patience);
        id.ok_or_else(|| self.unreachable(&format!("no broker has answered{}", self.cause())))
    }

    /// What the client has to say of its connections: that a password is wrong, above all.
    fn cause(&self) -> String {
        // It says so only when it is asked for events, one at a time.
        for _ in 0..100 {
            let _ = self.asking.poll(Duration::ZERO);
        }
        let said = self.asking.context().0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_empty() { String::new() } else { format!(": {said}") }
    }

    fn unreachable(&self, reason: &str) -> LogError {
        LogError::Unwritable(format!("the brokers {}: {reason}", self.settings.brokers))
    }

    /// Looks at a topic, which is made first where it is missing and may be made.
    pub async fn open(&self, name: &str, purpose: Purpose, partitions: u32) -> Result<Topic, LogError> {
        let partitions = match self.partitions(name)? {
            Some(made) => made,
            None if self.settings.create_topics => self.create(name, purpose, partitions).await?,
            None => {
                let settings = purpose.wanted().iter().chain(purpose.initial());
                let mut configs: String = settings.map(|(key, value)| format!(" --config {key}={value}")).collect();
                configs.push_str(&format!(" --config max.message.bytes={}", purpose.record_bytes()));
                return Err(LogError::Topic {
                    topic: name.to_owned(),
                    problem: "it is not there".into(),
                    mend: format!(
                        "make it: kafka-topics.sh --bootstrap-server {} --create --topic {name} --partitions {partitions}{configs}, or set [kafka] create_topics = true",
                        self.settings.brokers
                    ),
                });
            }
        };
        let min_insync = self.check(name, purpose).await?;
        Ok(Topic { partitions, min_insync })
    }

    /// How many partitions a topic has; `None` where it is missing.
    fn partitions(&self, name: &str) -> Result<Option<u32>, LogError> {
        let metadata = self.asking.fetch_metadata(Some(name), PATIENCE);
        let metadata = metadata.map_err(|error| self.unreachable(&error.to_string()))?;
        let found = metadata.topics().iter().find(|topic| topic.name() == name && topic.error().is_none());
        Ok(found.map(|topic: &MetadataTopic| u32::try_from(topic.partitions().len()).unwrap_or(0)))
    }

    async fn create(&self, name: &str, purpose: Purpose, partitions: u32) -> Result<u32, LogError> {
        let metadata = self.asking.fetch_metadata(None, PATIENCE);
        let brokers = metadata.map_err(|error| self.unreachable(&error.to_string()))?.brokers().len();
        let replication = self.settings.replication.map_or(brokers.clamp(1, 3), usize::from);
        // With three copies one broker may be away, and nothing that was acknowledged is lost with another.
        let min_insync = if replication >= 3 { "2" } else { "1" };
        let mut topic = NewTopic::new(
            name,
            i32::try_from(partitions).unwrap_or(i32::MAX),
            TopicReplication::Fixed(i32::try_from(replication).unwrap_or(1)),
        )
        .set("min.insync.replicas", min_insync);
        let record_bytes = purpose.record_bytes().to_string();
        topic = topic.set("max.message.bytes", &record_bytes);
        for (key, value) in purpose.wanted().iter().chain(purpose.initial()) {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let made = self.admin.create_topics([&topic], &options).await;
        let made = made.map_err(|error| self.unreachable(&error.to_string()))?;
        match made.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => Err(LogError::Topic {
                topic: name.to_owned(),
                problem: format!("it cannot be made: {code}"),
                mend: "make it by hand, or give the user the right to create topics".into(),
            }),
            _ => {
                tracing::info!(topic = name, partitions, replication, "made the topic");
                self.wait_for(name).await
            }
        }
    }

    /// A topic just made is not known to every broker yet.
    async fn wait_for(&self, name: &str) -> Result<u32, LogError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.partitions(name)? {
                Some(partitions) if partitions > 0 => return Ok(partitions),
                _ if Instant::now() > deadline => return Err(self.unreachable("the new topic does not appear")),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// A topic's settings; `None` where they may not be read.
    async fn describe(&self, name: &str) -> Result<Option<ConfigResource>, LogError> {
        let deadline = Instant::now() + PATIENCE;
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        loop {
            let described = self.admin.describe_configs([&ResourceSpecifier::Topic(name)], &options).await;
            let described = described.map_err(|error| self.unreachable(&error.to_string()))?;
            let problem = match described.into_iter().next() {
                Some(Ok(config)) if !config.entries.is_empty() => return Ok(Some(config)),
                Some(Err(
                    RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed,
                )) => return Ok(None),
                // A broker that has not heard of a topic just made says either.
                Some(Ok(_)) | None => "none came".to_owned(),
                Some(Err(code)) => code.to_string(),
            };
            if Instant::now() > deadline {
                return Err(self.unreachable(&format!("the settings of topic {name}: {problem}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Compares the topic's settings with what they must be; its `min.insync.replicas`.
    async fn check(&self, name: &str, purpose: Purpose) -> Result<usize, LogError> {
        let Some(config) = self.describe(name).await? else {
            tracing::warn!(topic = name, "the topic's settings may not be read, so they are not checked");
            return Ok(1);
        };
        let value = |key: &str| config.get(key).and_then(|entry| entry.value.clone()).unwrap_or_default();
        let record_bytes = purpose.record_bytes();
        let least = record_bytes.to_string();
        let mut wrong: Vec<(&str, String, &str)> = purpose
            .wanted()
            .iter()
            .map(|(key, wanted)| (*key, value(key), *wanted))
            .filter(|(_, found, wanted)| found != wanted)
            .collect();
        let retention = config.get("retention.ms");
        let is_chosen = retention.is_some_and(|entry| entry.source == ConfigSource::DynamicTopic);
        if purpose == Purpose::Events && value("retention.ms") != "-1" && !is_chosen {
            // The brokers' default is nobody's wish for this topic; a value of its own is.
            wrong.push(("retention.ms", value("retention.ms"), "-1"));
        }
        if value("max.message.bytes").parse().is_ok_and(|bytes: u64| bytes < record_bytes) {
            wrong.push(("max.message.bytes", value("max.message.bytes"), &least));
        }
        if wrong.is_empty() {
            return Ok(value("min.insync.replicas").parse().unwrap_or(1));
        }
        let problem = wrong.iter().map(|(key, found, wanted)| format!("{key} is {found}, but must be {wanted}"));
        let mend = wrong.iter().map(|(key, _, wanted)| format!("{key}={wanted}")).collect::<Vec<_>>().join(",");
        Err(LogError::Topic {
            topic: name.to_owned(),
            problem: problem.collect::<Vec<_>>().join(", "),
            mend: format!(
                "mend it: kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {name} --add-config {mend}",
                self.settings.brokers
            ),
        })
    }
}
