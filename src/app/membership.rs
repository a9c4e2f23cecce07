//! Who is there: each process says in the registry where it is reached, what its roles are and which partitions it folds.

use super::{AppError, Base};
use crate::log::Assignment;
use crate::log::registry::{Node, Registry};
use crate::projector::ProjectorHandle;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What could not be said is said again so soon.
const AGAIN: Duration = Duration::from_secs(1);
/// At the end it is said for so long; who asks a process that has gone notices.
const FAREWELL: Duration = Duration::from_secs(5);

/// A process among others.
pub(super) struct Member {
    registry: Arc<dyn Registry>,
    instance: String,
    node: Node,
    clock: super::Clock,
}

impl Member {
    /// `None` where no other process shares the log. `console` is where the console listens.
    pub fn new(base: &Base, console: SocketAddr) -> Result<Option<Self>, AppError> {
        let Some(registry) = base.registry.clone() else { return Ok(None) };
        let cluster = &base.config.cluster;
        let node = Node {
            address: cluster.address(console)?,
            roles: base.config.roles.iter().map(|role| role.to_string()).collect(),
            partitions: Vec::new(),
            log_id: base.log.id().to_string(),
            assignment: 0,
            at_us: 0,
        };
        Ok(Some(Self { registry, instance: base.dir.instance()?, node, clock: base.clock.clone() }))
    }

    /// Says so now and whenever the projector works on other partitions, until it is time to end, and then takes it back.
    pub fn tell(self, projector: Option<&ProjectorHandle>, halted: watch::Receiver<bool>) -> JoinHandle<()> {
        // Who folds nothing has the same assignment for ever.
        let (keeper, nothing) = watch::channel(Assignment::default());
        let assignment = projector.map_or(nothing, ProjectorHandle::assignment);
        tokio::spawn(async move {
            self.follow(assignment, halted).await;
            drop(keeper);
            let key = Node::key(&self.instance);
            let gone = self.registry.put(&key, None);
            if !tokio::time::timeout(FAREWELL, gone).await.is_ok_and(|gone| gone.is_ok()) {
                tracing::warn!("the registry still names this process: the others find that it does not answer");
            }
        })
    }

    async fn follow(&self, mut assignment: watch::Receiver<Assignment>, mut halted: watch::Receiver<bool>) {
        let mut told: Option<Assignment> = None;
        while !*halted.borrow() {
            let now = assignment.borrow_and_update().clone();
            let step = async {
                if told.as_ref() == Some(&now) {
                    if assignment.changed().await.is_err() {
                        // The projector has ended, so this is about to.
                        std::future::pending::<()>().await;
                    }
                } else if self.say(&now).await {
                    told = Some(now);
                } else {
                    tokio::time::sleep(AGAIN).await;
                }
            };
            tokio::select! {
                () = step => {}
                _ = halted.wait_for(|halt| *halt) => return,
            }
        }
    }

    async fn say(&self, assignment: &Assignment) -> bool {
        let node = Node {
            partitions: assignment.partitions.clone(),
            assignment: assignment.number,
            at_us: (self.clock)(),
            ..self.node.clone()
        };
        // A node has nothing in it that could not be written.
        let value = serde_json::to_vec(&node).unwrap_or_default();
        let said = self.registry.put(&Node::key(&self.instance), Some(value)).await;
        if let Err(error) = &said {
            tracing::debug!(%error, "the registry does not know yet what this process works on");
        }
        said.is_ok()
    }
}
