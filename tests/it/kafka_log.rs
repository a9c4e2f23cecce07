//! A topic of Kafka keeps what every log promises.

use super::cluster::{name, settings};
use super::harness::runtime;
use super::parts::{Kafka, missing};
use counterbat::event::Event;
use counterbat::log::kafka::KafkaLog;
use counterbat::log::{EventLog, LogError, Position, read_before};
use std::sync::Arc;

#[path = "log_suite.rs"]
mod promises;

async fn open(topic: &str, partitions: u32) -> Result<Arc<dyn EventLog>, LogError> {
    let settings = settings(&Kafka::shared().brokers(), topic, partitions);
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
