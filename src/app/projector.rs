//! The role `projector`: the fold, and what it goes by.

use super::accounts::{self, PolicyBook};
use super::{AppError, Base};
use crate::config::LogKind;
use crate::projector::verify::Verifier;
use crate::projector::{self, NewestPolicies, ProjectorError, ProjectorHandle, Rebuilds};
use crate::session::PolicyChain;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

/// How often the log is looked at for what retention may remove.
const RETAIN_EVERY: Duration = Duration::from_secs(300);

/// A projector at work.
pub(super) struct Running {
    pub handle: ProjectorHandle,
    settings: Arc<projector::Settings>,
    stop: watch::Sender<bool>,
    pub task: JoinHandle<Result<(), ProjectorError>>,
    /// Follows what becomes of accounts elsewhere.
    following: Option<JoinHandle<()>>,
}

impl Running {
    /// Lets it commit what it has, and waits for its end.
    pub async fn stop(self) -> Result<(), AppError> {
        // Nobody listens when it has ended already.
        let _ = self.stop.send(true);
        self.following.inspect(JoinHandle::abort);
        ended(self.task.await)
    }
}

pub(super) fn ended(result: Result<Result<(), ProjectorError>, JoinError>) -> Result<(), AppError> {
    match result {
        Ok(result) => Ok(result?),
        Err(error) => Err(AppError::Failed { what: "the projector", reason: error.to_string() }),
    }
}

impl Base {
    pub(super) async fn start_projector(&self) -> Result<Running, AppError> {
        let (stop, stopped) = watch::channel(false);
        let book = self.registry.clone().map(|registry| PolicyBook::new(self, registry));
        let newest = book.clone().map(|book| -> NewestPolicies {
            Arc::new(move || {
                let book = book.clone();
                Box::pin(async move { book.catch_up().await })
            })
        });
        let settings = Arc::new(projector::Settings { newest_policies: newest, ..self.settings()? });
        let parts = projector::Parts {
            log: self.log.clone(),
            lake: self.lake().await?,
            data_dir: self.dir.path.clone(),
            instance: self.dir.instance()?,
            settings: settings.clone(),
            stop: stopped,
        };
        let (handle, task) = projector::start(parts).await?;
        let following = book.map(|book| tokio::spawn(async move { book.follow().await }));
        Ok(Running { handle, settings, stop, task, following })
    }

    /// Rebuilds beside a projector at work. One that was not finished is gone on with.
    pub(super) async fn rebuilds(&self, running: &Running) -> Result<Rebuilds, AppError> {
        let (handle, settings) = (&running.handle, running.settings.clone());
        Ok(Rebuilds::start(handle, &self.dir.path, settings, self.shares_its_log()).await?)
    }

    /// Whether other processes may work on the same log.
    pub(super) fn shares_its_log(&self) -> bool {
        self.config.log.kind == LogKind::Kafka
    }

    /// Holds the tables against the log.
    pub(super) fn verifier(&self, projector: &ProjectorHandle) -> Result<Verifier, AppError> {
        Ok(Verifier {
            log: self.log.clone(),
            projector: projector.clone(),
            settings: Arc::new(self.settings()?),
            data_dir: self.dir.path.clone(),
            busy: Arc::default(),
        })
    }

    /// What a fold goes by that is alone.
    pub(super) fn settings(&self) -> Result<projector::Settings, AppError> {
        let config = &self.config;
        Ok(projector::Settings {
            partitions: self.log.partitions(),
            log_id: self.log.id().to_string(),
            lateness_ms: Some(config.fold.allowed_lateness.as_ms()),
            settle_lateness_ms: config.fold.allowed_lateness.as_ms(),
            delivery_window_ms: config.fold.delivery_window.as_ms(),
            any_age: false,
            policies: self.policies.clone(),
            newest_policies: None,
            default_policy: PolicyChain::always(config.tariffs.policy(&config.fold.policy)?),
            prices: accounts::prices(config),
            commit_every: config.lake.commit_every.0,
            snapshot_every: config.lake.snapshot_every.0,
            memory_bytes: config.fold.memory.0,
            metrics: self.metrics.clone(),
            clock: self.clock.clone(),
            feed: self.feed.clone(),
        })
    }
}

/// Removes from the log what the tables have and retention lets go.
pub(super) fn retain(base: &Base, projector: ProjectorHandle, halted: watch::Receiver<bool>) -> JoinHandle<()> {
    let (log, clock) = (base.log.clone(), base.clock.clone());
    let is_on = base.config.log.retention_age.is_some() || base.config.log.retention_size.is_some();
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(RETAIN_EVERY);
        while is_on && !*halted.borrow() {
            interval.tick().await;
            let archived: Vec<u64> = projector.status().partitions.iter().map(|part| part.archived).collect();
            if let Err(error) = log.retain(&archived, clock()).await {
                tracing::warn!(%error, "old records could not be removed from the log");
            }
        }
    })
}
