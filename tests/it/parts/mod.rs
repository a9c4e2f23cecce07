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
pub use process::Process;

use crate::harness::text;
use crate::tools;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

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
    let lacks = tools::lacks(if part == "spark" { "spark-python" } else { part });
    if let Some(reason) = &lacks {
        eprintln!("not tested: {reason}");
    }
    lacks.is_some()
}

/// A file beside this one.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/parts").join(name)
}

/// Writes CloudEvents, in structured mode one a line, to a topic in binary mode, with librdkafka's `murmur2_random`
/// (Kafka's own partitioner), `consistent_random` or another. Returns how many were acknowledged: all.
pub fn produce(brokers: &str, topic: &str, partitioner: &str, events: &[u8]) -> usize {
    let mut command = tools::python();
    command.arg(script("produce.py")).args([brokers, topic, partitioner]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // One that fails does not read the rest.
    stdin.write_all(events).ok();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim().parse().unwrap()
}

/// What Spark finds in the tables of `lake`, `s3a://bucket/prefix` in the store or a folder: rows of `events`, `sessions`
/// and `messages`, and the sums of `charged`, `inbound` and `outbound` of the sessions, each by its name.
pub fn spark_totals(minio: &Minio, lake: &str) -> serde_json::Value {
    let mut command = tools::spark_python();
    let output = command.arg(script("spark_totals.py")).arg(lake).envs(minio.env()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stdout)))
}
