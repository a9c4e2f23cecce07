//! How the brokers are spoken to: settings of librdkafka, and what it has to say.

use super::super::LogError;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use std::ops::Deref;
use std::time::Duration;

/// An answer that is not there by then does not come.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A client whose end nobody waits for. Ending one talks to its brokers, and where they went away just then it may not come
/// to its end at all: the library has no time limit for that.
pub(super) struct Brief<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Brief<T> {
    pub fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send + 'static> Deref for Brief<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken out only when it is dropped")
    }
}

impl<T: Send + 'static> Drop for Brief<T> {
    fn drop(&mut self) {
        let client = self.0.take();
        std::thread::spawn(move || drop(client));
    }
}

/// Where the log is and how it is reached. Without `Debug`: the properties may hold passwords.
#[derive(Clone)]
pub struct Settings {
    /// `host:port`, with commas between.
    pub brokers: String,
    pub topic: String,
    pub state_topic: String,
    /// Of what the processes tell each other.
    pub registry_topic: String,
    /// The consumer group of the projectors that share the partitions.
    pub group: String,
    /// Whether missing topics are made.
    pub create_topics: bool,
    /// Copies of a topic that is made; `None`: 3, or as many as there are brokers.
    pub replication: Option<u16>,
    /// For a new topic; one that exists must have this number.
    pub partitions: u32,
    /// More settings of librdkafka.
    pub properties: Vec<(String, String)>,
}

impl Settings {
    /// Settings of any client: `ours`, under what the user asks for.
    pub(super) fn client(&self, ours: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("client.id", "counterbat");
        // A broker that comes back is noticed within a second or so.
        config.set("reconnect.backoff.max.ms", "1000");
        // A client that looked at the topic just when its brokers were away looks again so soon; by default after minutes.
        config.set("topic.metadata.refresh.interval.ms", "10000");
        for (name, value) in ours {
            config.set(*name, *value);
        }
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set_log_level(RDKafkaLogLevel::Warning);
        config
    }

    /// Settings of a producer to the log: durable before it is acknowledged, in order, each record once.
    pub(super) fn producer(&self) -> ClientConfig {
        self.client(&[
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("partitioner", "murmur2_random"),
            ("compression.type", "lz4"),
            // Under load a request fills up while the one before is on its way; at rest nobody waits for company.
            ("linger.ms", "2"),
            ("batch.size", "1000000"),
            ("message.max.bytes", "4000000"),
            ("queue.buffering.max.kbytes", "131072"),
            ("queue.buffering.max.messages", "500000"),
            // Whoever waits for an answer has turned away by then.
            ("message.timeout.ms", "10000"),
            ("request.timeout.ms", "5000"),
        ])
    }

    /// Settings of a consumer that is told what to read.
    pub(super) fn consumer(&self) -> ClientConfig {
        self.client(&[
            // Needed to read at all; such a consumer is no member of it.
            ("group.id", &self.group),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
            ("check.crcs", "true"),
            ("queued.max.messages.kbytes", "16384"),
            ("fetch.message.max.bytes", "2000000"),
            ("fetch.wait.max.ms", "100"),
        ])
    }
}

/// The client's own messages go to the debug log: what matters of them comes back as an error where it was asked for.
#[derive(Clone, Default)]
pub(super) struct Quiet;

impl ConsumerContext for Quiet {}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl ClientContext for Quiet {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

/// The error of making a client. Values are left out: one may be a password.
pub(super) fn refused(error: KafkaError) -> LogError {
    match error {
        KafkaError::ClientConfig(_, reason, name, value) => {
            LogError::Property { name, reason: reason.replace(&format!("\"{value}\""), "that value") }
        }
        error => LogError::Unwritable(format!("no client for the brokers: {error}")),
    }
}
