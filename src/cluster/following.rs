//! What becomes of sessions in other processes, for those who follow it here.

use super::client::Client;
use super::gather::Peers;
use crate::log::registry::{Node, Registry};
use crate::projector::feed::{Cursor, Feed};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// So long an answer waits for something to tell: less than whoever asks waits for an answer.
pub(super) const TELL_WITHIN: Duration = Duration::from_secs(1);
/// Changes that come soon after each other are told together.
const TOGETHER: Duration = Duration::from_millis(50);
/// So often it is looked whether all of them are followed.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A process that does not answer is asked again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// A question of another process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AboutChanges {
    pub log: String,
    /// How far it has told; `None` at the beginning.
    pub after: Option<Cursor>,
}

/// Follows all processes that fold the log while `feed` is wanted; `log` is the log's id.
pub async fn follow(feed: Arc<Feed>, peers: Peers, log: String) {
    let mut wanted = feed.wanted();
    // The feed is there as long as this runs.
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        tokio::select! {
            () = follow_all(&feed, &peers, &log) => return,
            // Wanted no more, or again already: what was known has been forgotten.
            _ = wanted.changed() => {}
        }
    }
}

async fn follow_all(feed: &Arc<Feed>, peers: &Peers, log: &str) {
    let mut entries = peers.registry.entries();
    let mut following: BTreeMap<String, AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        let nodes = Node::all(&entries.borrow_and_update());
        following.retain(|instance, task| nodes.contains_key(instance) && !task.is_finished());
        for other in nodes.into_keys().filter(|other| *other != peers.instance) {
            following.entry(other.clone()).or_insert_with(|| {
                let (feed, registry, client) = (feed.clone(), peers.registry.clone(), peers.client.clone());
                let log = log.to_owned();
                let following = async move { follow_one(&feed, &*registry, &client, &log, &other).await };
                AbortOnDropHandle::new(tokio::spawn(following))
            });
        }
        // Looked at now and then besides: one that has left may have come back while its task was ending.
        if let Ok(Err(_)) = tokio::time::timeout(LOOK_EVERY, entries.changed()).await {
            return;
        }
    }
}

/// Follows one process for as long as it is there. One that folds nothing is asked too: it keeps what it will have folded.
async fn follow_one(feed: &Feed, registry: &dyn Registry, client: &Client, log: &str, instance: &str) {
    let (mut after, mut trouble): (Option<Cursor>, Option<String>) = (None, None);
    loop {
        let Some(node) = Node::all(&registry.entries().borrow()).remove(instance) else { return };
        let mut pause = AGAIN;
        if node.roles.iter().any(|role| role == "projector") {
            let question = AboutChanges { log: log.to_owned(), after: after.clone() };
            match client.about_changes(&node.address, &question).await {
                Ok(answer) => {
                    (after, trouble, pause) = (Some(answer.cursor.clone()), None, TOGETHER);
                    feed.follow(answer);
                }
                // One that was killed is in the registry until it comes back.
                Err(error) => {
                    let error = error.to_string();
                    if trouble.as_ref() != Some(&error) {
                        tracing::info!(%error, "changes of sessions are not followed there");
                        trouble = Some(error);
                    }
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}
