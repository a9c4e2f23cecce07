//! What becomes of sessions in other processes, for those who follow it here.

use super::client::Client;
use super::gather::Peers;
use crate::log::registry::{Node, Registry};
use crate::projector::feed::{Feed, Part};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// So long an answer waits for something to tell: less than whoever asks waits for an answer.
pub(super) const TELL_WITHIN: Duration = Duration::from_secs(1);
/// Changes that come soon after each other are told together.
const TOGETHER: Duration = Duration::from_millis(50);
/// A process that does not answer is asked again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// A question of another process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AboutChanges {
    pub log: String,
    /// By partition: the rebuild and the position that it is followed up to; `None` where it is not followed yet.
    pub after: BTreeMap<u32, Option<(i64, u64)>>,
}

/// What another process tells.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct ToldOfChanges {
    pub parts: BTreeMap<u32, Part>,
}

/// Follows all processes that fold the log, from the moment on that `feed` is wanted; `log` is the log's id.
pub async fn follow(feed: Arc<Feed>, peers: Peers, log: String) {
    let Peers { registry, client, instance } = peers;
    let (client, log): (Arc<Client>, Arc<str>) = (Arc::new(client), log.into());
    // The feed is there as long as this runs.
    if feed.wanted().wait_for(|wanted| *wanted).await.is_err() {
        return;
    }
    let mut entries = registry.entries();
    let mut following: BTreeMap<String, AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        let nodes = Node::all(&entries.borrow_and_update());
        following.retain(|instance, _| nodes.contains_key(instance));
        for other in nodes.into_keys().filter(|other| *other != instance) {
            following.entry(other.clone()).or_insert_with(|| {
                let (feed, registry, client, log) = (feed.clone(), registry.clone(), client.clone(), log.clone());
                AbortOnDropHandle::new(tokio::spawn(async move {
                    follow_one(&feed, &*registry, &client, &log, &other).await
                }))
            });
        }
        if entries.changed().await.is_err() {
            return;
        }
    }
}

/// Follows one process for as long as it is there. One that folds nothing is asked too: it keeps what it will have folded.
async fn follow_one(feed: &Feed, registry: &dyn Registry, client: &Client, log: &str, instance: &str) {
    let mut trouble = None;
    loop {
        let Some(node) = Node::all(&registry.entries().borrow()).remove(instance) else { return };
        if node.roles.iter().any(|role| role == "projector") {
            let newest = feed.newest();
            let known = |partition: &u32| newest.places.get(*partition as usize).copied().flatten();
            let after = |partition: &u32| (*partition, known(partition).map(|place| (newest.rebuild, place.position)));
            let question = AboutChanges { log: log.to_owned(), after: node.partitions.iter().map(after).collect() };
            match client.about_changes(&node.address, &question).await {
                Ok(told) => {
                    trouble = None;
                    told.parts.into_iter().for_each(|(partition, part)| feed.take(partition, part));
                    tokio::time::sleep(TOGETHER).await;
                    continue;
                }
                Err(error) => {
                    // One that was killed is in the registry until it comes back.
                    let error = error.to_string();
                    if trouble.as_ref() != Some(&error) {
                        tracing::info!(%error, "changes of sessions are not followed there");
                        trouble = Some(error);
                    }
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
