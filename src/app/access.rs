//! How a command gets at the data: the directory itself, or the server that holds it.

use super::gateway::open_gateway;
use super::projector::Running;
use super::{AppError, Base, Brokers, Clock, LOCK, wall_clock};
use crate::config::{Config, LogKind};
use crate::console::directory::Directory;
use crate::console::explain::Explainer;
use crate::console::tokens::Token;
use crate::durable_file;
use crate::gateway::accounts::Accounts;
use crate::gateway::{Gateway, Recording};
use crate::lake::{Lake, TableName};
use crate::log::{self, EventLog, LogError};
use crate::projector::verify::report::{Summary, Told};
use crate::projector::{self, OfflineRebuilds, Progress, ProjectorHandle, Report, Wish};
use crate::query::Engine;
use crate::state::{State, StateError};
use crate::transfer;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

const SERVER_INFO: &str = "server.json";

/// Where a running server listens, for those who can read its data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// `http://…` of the console listener.
    pub console: String,
    /// `http://…` of the gateway listener, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Host and port for clients of PostgreSQL, where they are listened for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<String>,
    pub pid: u32,
    /// What the console takes beside `[console] tokens`; made anew at each start.
    pub token: Token,
}

/// The way to the data.
pub enum Access {
    /// The data directory is this process's.
    Offline(Box<Offline>),
    /// This server has it.
    Server(ServerInfo),
}

/// Takes the data directory, or finds the server that has it. [`LogError::InUse`] when another command has it.
pub async fn access(config: &Config) -> Result<Access, AppError> {
    match Base::open(config, wall_clock(), Brokers::Needed).await {
        Ok(base) => Ok(Access::Offline(Box::new(Offline { base, running: Mutex::new(None) }))),
        Err(AppError::Log(LogError::InUse { path })) => match read_server_info(&config.data_dir) {
            Some(server) => Ok(Access::Server(server)),
            None => Err(LogError::InUse { path }.into()),
        },
        Err(error) => Err(error),
    }
}

/// [`access`] for what only reads: a directory that nothing was ever recorded in is refused, and nothing is made in it. With
/// Kafka the data is elsewhere.
pub async fn access_to_read(config: &Config) -> Result<Access, AppError> {
    if config.log.kind == LogKind::Embedded && !config.data_dir.join(LOCK).exists() {
        return Err(AppError::NoData { path: config.data_dir.clone() });
    }
    access(config).await
}

/// The data directory without a server. Give it back with [`Offline::stop`].
pub struct Offline {
    base: Base,
    running: Mutex<Option<Running>>,
}

impl Offline {
    /// The log.
    pub fn log(&self) -> Arc<dyn EventLog> {
        self.base.log.clone()
    }

    /// The wall clock.
    pub fn clock(&self) -> Clock {
        self.base.clock.clone()
    }

    /// `[fold] allowed_lateness`.
    pub fn allowed_lateness_ms(&self) -> i64 {
        self.base.config.fold.allowed_lateness.as_ms()
    }

    /// The accounts. Take them once: what is changed is not seen by others taken before.
    pub fn accounts(&self) -> Result<Accounts, AppError> {
        self.base.accounts_to_change()
    }

    /// The end of every partition of the log.
    pub async fn log_ends(&self) -> Result<Vec<u64>, AppError> {
        Ok(log::ends(&*self.base.log).await?)
    }

    /// Starts the projector, once.
    pub async fn start_projector(&self) -> Result<ProjectorHandle, AppError> {
        let mut running = self.running.lock().await;
        if let Some(running) = &*running {
            return Ok(running.handle.clone());
        }
        let started = self.base.start_projector().await?;
        Ok(running.insert(started).handle.clone())
    }

    /// The gateway's parts, without its listener: for sending to the bots.
    pub fn gateway(&self) -> Result<Gateway, AppError> {
        open_gateway(
            &self.base,
            self.base.accounts_to_change()?,
            &format!("http://{}", self.base.config.gateway.listen),
            Recording::default(),
        )
    }

    /// SQL over everything the log has; starts the projector.
    pub async fn engine(&self) -> Result<Engine, AppError> {
        let projector = self.start_projector().await?;
        self.base.engine(projector.lake().clone(), Some(&projector))
    }

    /// How far time has come in each partition, without folding: what the state knows, and the times of the records
    /// since. The projector must not run.
    pub async fn watermarks(&self) -> Result<Vec<Option<i64>>, AppError> {
        let known = self.known_marks()?;
        Ok(transfer::watermarks(&*self.base.log, &known).await?)
    }

    /// Position and watermark of each partition in the state; empty where there is none of this log.
    fn known_marks(&self) -> Result<Vec<(u64, Option<i64>)>, AppError> {
        let dir = self.base.dir.path.join("state");
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let meta = match State::open(&dir, 1 << 20).and_then(|state| state.meta()) {
            // A damaged state is rebuilt when it is needed; the log alone tells the same.
            Err(StateError::Damaged { .. }) => None,
            meta => meta.map_err(projector::ProjectorError::from)?,
        };
        let meta = meta.filter(|meta| meta.log_id == self.base.log.id().0);
        let marks = meta.map(|meta| meta.partitions).unwrap_or_default();
        Ok(marks.iter().map(|mark| (mark.position, mark.watermark_ms)).collect())
    }

    /// Archives what the log has, then folds all archived events anew into new tables, and ends the work.
    pub async fn rebuild(
        self,
        wish: Wish,
        tell: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Report, AppError> {
        wish.scope()?;
        let mut lake = self.base.tables_of_this_log().await?;
        let archived = lake.table(TableName::Events).snapshot().positions;
        let ends = self.log_ends().await?;
        let is_archived = (0u32..).zip(&ends).all(|(partition, end)| archived.get(&partition).unwrap_or(&0) >= end);
        // Where the log is archived to its end its state and tables need not be brought up to date: others take their place.
        let is_beside = wish.keep_as.is_some() || !wish.accounts.is_empty();
        if !is_archived || is_beside || self.base.shares_its_log() {
            let projector = self.start_projector().await?;
            projector.wait_committed(&ends).await?;
            self.directory().await?.check(&wish.accounts).await?;
            if let Some(running) = self.running.lock().await.take() {
                running.stop().await?;
            }
            drop(projector);
            lake = self.base.lake().await?;
        }
        Ok(self.offline_rebuilds(lake)?.rebuild(wish, tell).await?)
    }

    /// The rebuilds of this data directory, and the generations that are kept.
    pub async fn rebuilds(&self) -> Result<OfflineRebuilds, AppError> {
        self.offline_rebuilds(self.base.lake().await?)
    }

    fn offline_rebuilds(&self, lake: Arc<Lake>) -> Result<OfflineRebuilds, AppError> {
        let (dir, settings) = (self.base.dir.path.clone(), self.base.settings()?);
        Ok(OfflineRebuilds::new(lake, dir, settings, self.base.shares_its_log()))
    }

    /// Knows which accounts there are; starts the projector.
    pub async fn directory(&self) -> Result<Directory, AppError> {
        Ok(self.base.directory(Arc::new(self.engine().await?)))
    }

    /// Tells what became of events; starts the projector.
    pub async fn explainer(&self) -> Result<Explainer, AppError> {
        let lake = self.start_projector().await?.lake().clone();
        self.base.explainer(Arc::new(self.engine().await?), lake)
    }

    /// Folds what the log has, and holds the tables against it; starts the projector. Of a day that differs so many rows
    /// are `named`.
    pub async fn verify(&self, named: usize, tell: &(dyn Fn(Told) + Send + Sync)) -> Result<Summary, AppError> {
        let projector = self.start_projector().await?;
        Ok(self.base.verifier(&projector)?.run(named, tell).await?)
    }

    /// Lets the projector commit, where it runs, and gives the data directory back.
    pub async fn stop(self) -> Result<(), AppError> {
        match self.running.into_inner() {
            Some(running) => running.stop().await,
            None => Ok(()),
        }
    }
}

fn server_info_path(dir: &Path) -> PathBuf {
    dir.join(SERVER_INFO)
}

fn read_server_info(dir: &Path) -> Option<ServerInfo> {
    durable_file::read(&server_info_path(dir)).ok()?
}

/// Tells where the server listens. The file appears complete.
pub(super) fn write_server_info(dir: &Path, server: &ServerInfo) -> Result<(), AppError> {
    Ok(durable_file::write(&server_info_path(dir), server)?)
}

/// Removes what a server told.
pub(super) fn remove_server_info(dir: &Path) -> Result<(), AppError> {
    Ok(durable_file::remove(&server_info_path(dir))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        Config { data_dir: dir.join("data"), ..Config::default() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let Access::Offline(first) = access(&config).await.unwrap() else { panic!("nobody else has it") };
        let second = access(&config).await.err().unwrap();
        assert!(second.to_string().contains("in use"), "{second}");
        let token = Token::random();
        let server =
            ServerInfo { console: "http://c".into(), gateway: Some("http://g".into()), postgres: None, pid: 7, token };
        write_server_info(&config.data_dir, &server).unwrap();
        assert!(!format!("{server:?}").contains(server.token.reveal()));
        assert!(matches!(access(&config).await.unwrap(), Access::Server(found) if found == server));
        first.stop().await.unwrap();
        // Killed servers leave their addresses behind.
        let Access::Offline(third) = access(&config).await.unwrap() else { panic!("it is free again") };
        assert_eq!(read_server_info(&config.data_dir), None);
        third.stop().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_made_only_to_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let none = access_to_read(&config).await.err().unwrap();
        assert!(none.to_string().contains("there is no data in") && none.to_string().contains("--data-dir"), "{none}");
        assert!(!config.data_dir.exists());
        let Access::Offline(made) = access(&config).await.unwrap() else { panic!("nobody else has it") };
        made.stop().await.unwrap();
        let Access::Offline(read) = access_to_read(&config).await.unwrap() else { panic!("it is free again") };
        read.stop().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn watermarks_are_told_without_folding() {
        let dir = tempfile::tempdir().unwrap();
        let Access::Offline(offline) = access(&config(dir.path())).await.unwrap() else { panic!("nobody else has it") };
        assert_eq!(offline.watermarks().await.unwrap(), [None; 4]);
        let event = crate::event::Event {
            kind: crate::event::TICK_TYPE.into(),
            source: "/counterbat".into(),
            time_us: Some(1_760_000_000_000_000),
            ..Default::default()
        };
        offline.log().append(vec![(2, event)]).await.unwrap();
        assert_eq!(offline.watermarks().await.unwrap(), [None, None, Some(1_760_000_000_000), None]);
        offline.stop().await.unwrap();
    }
}
