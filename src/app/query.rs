//! The role `query`: SQL over the tables, with what this process and the others have beyond them.

use super::{AppError, Base};
use crate::cluster::{self, Answering, Client, ClusterSecret, ClusterStandings, Gathering, Peers, keep_fresh};
use crate::config::Role;
use crate::console::directory::Directory;
use crate::console::explain::Explainer;
use crate::console::stream::Stream;
use crate::console::tokens::hmac;
use crate::console::users::Users;
use crate::gateway::account_store::AccountStore;
use crate::gateway::vault::Vault;
use crate::lake::{Lake, TableName};
use crate::projector::{ProjectorError, ProjectorHandle};
use crate::query::{Engine, Limits, Reference};
use axum::Router;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often the tables are looked at for what others commit: it is less for a query to do then.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Changes of sessions are kept so long after the last who asked: who was cut off comes back within that.
const REST_AFTER: Duration = Duration::from_secs(600);

impl Base {
    /// SQL over everything appended up to now, as far as those who fold it can be asked.
    pub(super) fn engine(&self, lake: Arc<Lake>, projector: Option<&ProjectorHandle>) -> Result<Engine, AppError> {
        let peers = self.peers()?;
        let source = Gathering {
            log: self.log.clone(),
            lake,
            local: projector.cloned(),
            peers,
            metrics: self.metrics.clone(),
            told: Mutex::default(),
        };
        let sql = &self.config.sql;
        let limits = Limits {
            max_rows: sql.max_rows,
            timeout: sql.timeout.0,
            memory_bytes: usize::try_from(sql.memory.0).unwrap_or(usize::MAX),
        };
        let fold = &self.config.fold;
        let reference = Reference::new(
            self.policies.clone(),
            self.config.tariffs.policy(&fold.policy)?,
            fold.allowed_lateness.as_ms(),
            fold.delivery_window.as_ms(),
        )?;
        Ok(Engine::new(Arc::new(source), reference, limits)?)
    }

    /// The other processes, where there may be some that can be asked.
    fn peers(&self) -> Result<Option<Peers>, AppError> {
        let (Some(registry), Some(secret)) = (&self.registry, self.cluster_secret()?) else { return Ok(None) };
        Ok(Some(Peers { registry: registry.clone(), client: Client::new(secret)?, instance: self.dir.instance()? }))
    }

    /// Follows what becomes of sessions elsewhere.
    pub(super) fn follow_changes(&self) -> Result<Option<JoinHandle<()>>, AppError> {
        let following = |peers| cluster::follow(self.feed.clone(), peers, self.log.id().0.clone());
        Ok(self.peers()?.map(|peers| tokio::spawn(following(peers))))
    }

    /// Lets what becomes of sessions be forgotten where nobody asks for it any more.
    pub(super) fn rest_feed(&self) -> JoinHandle<()> {
        let feed = self.feed.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REST_AFTER).await;
                feed.rest();
            }
        })
    }

    /// Tells what becomes of sessions.
    pub(super) fn stream(&self, folds: bool, halted: watch::Receiver<bool>) -> Result<Stream, AppError> {
        let secret = self.config.cluster.read_secret()?;
        // What the processes share, so that any of them can open what another has sealed.
        let key = match &secret {
            Some(secret) => hmac(secret.reveal().as_bytes(), &[b"ids of the stream"]),
            None => rand::random(),
        };
        let vault = Vault::new(&hex::encode(key));
        Ok(Stream {
            feed: self.feed.clone(),
            is_fed: folds || self.registry.is_some() && secret.is_some(),
            vault: Arc::new(vault.map_err(|error| AppError::Failed { what: "a key", reason: error.to_string() })?),
            metrics: self.metrics.clone(),
            clock: self.clock.clone(),
            halted,
        })
    }

    /// Tells how things stand with users.
    pub(super) fn users(&self, projector: Option<&ProjectorHandle>) -> Result<Users, AppError> {
        let standings = ClusterStandings {
            log: self.log.id().clone(),
            partitions: self.log.partitions(),
            local: projector.cloned(),
            peers: self.peers()?,
        };
        Ok(Users { standings: Arc::new(standings), clock: self.clock.clone() })
    }

    /// Tells what became of events, and why.
    pub(super) fn explainer(&self, engine: Arc<Engine>, lake: Arc<Lake>) -> Result<Explainer, AppError> {
        Ok(Explainer { directory: self.directory(engine), lake, settings: Arc::new(self.settings()?) })
    }

    /// Knows which accounts there are.
    pub(super) fn directory(&self, engine: Arc<Engine>) -> Directory {
        let configured = self.config.accounts.iter().map(|account| account.name.clone()).collect();
        Directory { engine, configured: Arc::new(configured), store: AccountStore::new(self.shelf.clone()) }
    }

    /// The tables, where no projector is started on them: one looks by itself whether they are of its log.
    pub(super) async fn tables_of_this_log(&self) -> Result<Arc<Lake>, AppError> {
        let lake = self.lake().await?;
        match lake.table(TableName::Events).foreign_log() {
            None => Ok(lake),
            Some(theirs) => {
                let ours = self.log.id().to_string();
                Err(ProjectorError::OtherLog { what: "the events table", ours, theirs }.into())
            }
        }
    }

    /// What this process answers others.
    pub(super) fn answers(&self, projector: &ProjectorHandle) -> Result<Router, AppError> {
        let answering = Answering { log: self.log.id().clone(), projector: projector.clone(), feed: self.feed.clone() };
        Ok(cluster::router(answering, self.cluster_secret()?))
    }

    /// Follows what others commit to the tables.
    pub(super) fn follow_tables(&self, lake: &Arc<Lake>) -> Option<JoinHandle<()>> {
        let reads_only = !self.config.roles.has(Role::Projector);
        self.registry.as_ref().map(|_| tokio::spawn(keep_fresh(lake.clone(), REFRESH_EVERY, reads_only)))
    }

    fn cluster_secret(&self) -> Result<Option<ClusterSecret>, AppError> {
        let secret = self.config.cluster.read_secret()?;
        Ok(secret.map(|secret| ClusterSecret::new(secret.reveal().to_owned())))
    }
}
