//! A topic of Kafka keeps what every log promises.

use super::cluster::name;
use super::harness::runtime;
use super::parts::{Kafka, missing};
use counterbat::event::Event;
use counterbat::log::kafka::{KafkaLog, Settings};
use counterbat::log::{EventLog, LogError, Position, read_before};
use std::sync::Arc;

#[path = "log_suite.rs"]
mod promises;

async fn open(topic: &str, partitions: u32) -> Result<Arc<dyn EventLog>, LogError> {
    let settings = Settings {
        brokers: Kafka::shared().brokers(),
        topic: topic.to_owned(),
        state_topic: format!("{topic}-state"),
        registry_topic: format!("{topic}-registry"),
        group: topic.to_owned(),
        create_topics: true,
        replication: None,
        partitions,
        properties: Vec::new(),
    };
    Ok(Arc::new(KafkaLog::open(settings).await?))
}

macro_rules! kafka {
    ($promise:ident) => {
        #[test]
        fn $promise() {
            if missing("shared kafka") {
                return;
            }
            let topic = name("log");
            runtime().block_on(promises::$promise(|partitions| open(&topic, partitions)));
        }
    };
}

promises::every_log!(kafka);
