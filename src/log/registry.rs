//! Small facts that all processes of a log share, by key: the newest value of each counts.

use super::LogError;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Small facts that all processes of a log share, by key: the newest value of each counts.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// All entries as known now; changes as others write.
    fn entries(&self) -> watch::Receiver<Arc<BTreeMap<String, Vec<u8>>>>;

    /// Sets a value, or removes it. `Ok` once it is durable and in this process's own `entries`.
    async fn put(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), LogError>;

    /// Waits until everything that was put before, by whomever, is in `entries`.
    async fn catch_up(&self) -> Result<(), LogError> {
        Ok(())
    }
}

/// Of keys of [`Node`]s; the name follows by which a process is known for good.
const NODE: &str = "node/";

/// A process of the log, as it says of itself: under `node/<instance>`, from its start to its end in order. One that was
/// killed is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `http://host:port` where others reach its console.
    pub address: String,
    /// `gateway`, `projector`, `query`.
    pub roles: Vec<String>,
    /// Those it folds.
    pub partitions: Vec<u32>,
    /// The log it works on.
    pub log_id: String,
    /// The number of its assignment; it grows while the process runs.
    pub assignment: u64,
    /// When it said so, by its clock, in µs since the epoch.
    pub at_us: i64,
}

impl Node {
    /// Where a process says who it is.
    pub fn key(instance: &str) -> String {
        format!("{NODE}{instance}")
    }

    /// All that are there, by instance. What is not of this form is left out.
    pub fn all(entries: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Node> {
        let nodes = entries.range(NODE.to_owned()..).map_while(|(key, value)| Some((key.strip_prefix(NODE)?, value)));
        nodes.filter_map(|(instance, value)| Some((instance.to_owned(), serde_json::from_slice(value).ok()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_found_among_other_entries() {
        let node = Node {
            address: "http://127.0.0.1:8081".into(),
            roles: vec!["query".into()],
            partitions: vec![1, 3],
            log_id: "log".into(),
            assignment: 2,
            at_us: 5,
        };
        let entries = BTreeMap::from([
            ("account/a".to_owned(), b"{}".to_vec()),
            (Node::key("b"), serde_json::to_vec(&node).unwrap()),
            (Node::key("c"), b"{}".to_vec()),
            ("webhook/a".to_owned(), b"{}".to_vec()),
        ]);
        assert_eq!(Node::all(&entries), BTreeMap::from([("b".to_owned(), node)]));
    }
}
