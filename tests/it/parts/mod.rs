//! The real parts Counterbat works with, started by the tests: Kafka brokers, an S3 store, Spark, and a wire that can be
//! cut. Each listens on 127.0.0.1 and lives in a folder of its own.

mod checks;
mod cuts;
mod kafka;
mod minio;
mod process;

pub use cuts::Cuts;
pub use kafka::Kafka;
pub use minio::Minio;

use crate::tools;

/// Whether tests with a part must be left out, because this machine cannot start it: `kafka`, `minio` or `spark`; with
/// `shared ` before it, whether there is none that runs already either. Tells how to get it. In CI nothing is left
/// out: there the start fails, and says what is missing.
pub fn missing(part: &str) -> bool {
    let (part, running) = match part.strip_prefix("shared ") {
        Some("kafka") => ("kafka", std::env::var_os(kafka::RUNNING)),
        Some("minio") => ("minio", std::env::var_os(minio::RUNNING)),
        Some(part) => panic!("there is no shared {part}"),
        None => (part, None),
    };
    if running.is_some() || std::env::var_os("CI").is_some() {
        return false;
    }
    let lacks = tools::lacks(part);
    if let Some(reason) = &lacks {
        eprintln!("not tested: {reason}");
    }
    lacks.is_some()
}
