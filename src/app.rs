//! The composition root: builds the parts from the settings, starts them, and stops them in order.
//!
//! One process at a time works on a data directory, told by a lock on `LOCK` in it. The server writes its addresses to
//! `server.json` beside it, and commands that find the lock taken work through these.

mod access;
mod accounts;
mod demo;
mod figures;
mod gateway;
mod listeners;
mod membership;
mod projector;
mod query;
mod recording;
mod registry;
mod serve;
mod ticks;

pub use access::{Access, Offline, ServerInfo, access, access_to_read};
pub use demo::{DemoInfo, DemoOptions, demo};
pub use serve::{Listeners, serve};

use crate::cluster::ClientError;
use crate::config::{AccountSeries, Config, ConfigError, LogKind};
use crate::console::directory::DirectoryError;
use crate::durable_file::{self, DurableFileError};
use crate::gateway::account_store::AccountStore;
use crate::gateway::accounts::AccountsError;
use crate::gateway::bots::BotsError;
use crate::gateway::shelf::{Shelf, ShelfError};
use crate::gateway::tls::TlsError;
use crate::gateway::upstream::UpstreamError;
use crate::lake::{self, Lake, LakeError};
use crate::log::embedded::{EmbeddedLog, Options, Retention};
use crate::log::kafka::{self, KafkaLog};
use crate::log::registry::Registry;
use crate::log::{EventLog, LogError};
use crate::metrics::{AccountLabels, Metrics};
use crate::projector::feed::Feed;
use crate::projector::{ProjectorError, RebuildError};
use crate::query::QueryError;
use crate::session::{Policies, policy::PolicyError};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Memory for what is read from the log.
const LOG_CACHE_BYTES: u64 = 32 << 20;
/// So long the tables are tried to be opened while their store does not answer.
const OPENED_WITHIN: Duration = Duration::from_secs(300);
const LOCK: &str = "LOCK";
const INSTANCE: &str = "instance.json";
/// What is known of the topic that is the log.
const KAFKA: &str = "kafka.json";
/// What was known last of the log's registry.
const REGISTRY: &str = "registry.json";

/// µs since the epoch, UTC.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Why the program cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Accounts(#[from] AccountsError),
    #[error("{setting}: {error}")]
    Tls { setting: &'static str, error: Box<TlsError> },
    #[error(transparent)]
    DurableFile(#[from] DurableFileError),
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    Bots(#[from] BotsError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Projector(#[from] ProjectorError),
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What is asked for lies in a directory that nothing was ever recorded in.
    #[error(
        "there is no data in {path}: name the directory that has it (data_dir in the config, or --data-dir); `counterbat serve` and `counterbat import` make a new one"
    )]
    NoData { path: PathBuf },
    /// A file of the data directory.
    #[error("{path}: {error}")]
    File { path: PathBuf, error: std::io::Error },
    /// A listener or a task failed.
    #[error("{what}: {reason}")]
    Failed { what: &'static str, reason: String },
}

impl AppError {
    fn file(path: &Path, error: std::io::Error) -> Self {
        AppError::File { path: path.to_owned(), error }
    }
}

/// The wall clock.
pub fn wall_clock() -> Clock {
    Arc::new(|| chrono::Utc::now().timestamp_micros())
}

/// The data directory, held by this process until dropped.
struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Takes the directory, which is made where it is missing; [`LogError::InUse`] when another process has it.
    fn take(path: &Path) -> Result<Self, AppError> {
        std::fs::create_dir_all(path).map_err(|error| AppError::file(path, error))?;
        let lock_path = path.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|error| AppError::file(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LogError::InUse { path: path.display().to_string() }.into()),
            Err(TryLockError::Error(error)) => return Err(AppError::file(&lock_path, error)),
        }
        // What a killed server left would send commands to where nobody answers.
        access::remove_server_info(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }
}

impl DataDir {
    /// A name for whoever works on this directory, made once.
    fn instance(&self) -> Result<String, AppError> {
        let path = self.path.join(INSTANCE);
        if let Some(name) = durable_file::read::<String>(&path)? {
            return Ok(name);
        }
        let name = Uuid::now_v7().to_string();
        durable_file::write(&path, &name)?;
        Ok(name)
    }
}

/// Whether the brokers must answer at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Brokers {
    Needed,
    /// Not where they have answered before.
    Awaited,
}

/// What every kind of work is built on. The lock is given back last.
struct Base {
    config: Config,
    clock: Clock,
    metrics: Arc<Metrics>,
    log: Arc<dyn EventLog>,
    /// What all processes of the log know; `None` where this is the only one.
    registry: Option<Arc<dyn Registry>>,
    /// Where accounts and webhooks are kept.
    shelf: Shelf,
    /// Of the log, where it is a topic.
    topic: Option<kafka::Known>,
    policies: Policies,
    /// What becomes of sessions, for those who follow it.
    feed: Arc<Feed>,
    dir: DataDir,
}

impl Base {
    /// Takes the data directory and opens the log.
    async fn open(config: &Config, clock: Clock, brokers: Brokers) -> Result<Self, AppError> {
        let dir = DataDir::take(&config.data_dir)?;
        let (log, topic) = open_log(config, &dir, &clock, brokers).await?;
        let registry = registry::open(&log, dir.path.join(REGISTRY)).await?;
        let shelf = match &registry {
            Some(registry) => Shelf::shared(registry.clone()),
            None => Shelf::files(&dir.path),
        };
        let policies = accounts::policies(config, &AccountStore::new(shelf.clone()).load()?)?;
        let labels = match config.metrics.accounts {
            AccountSeries::All => AccountLabels::All,
            AccountSeries::First(n) => AccountLabels::First(n),
            AccountSeries::None => AccountLabels::None,
        };
        let metrics = Arc::new(Metrics::new(labels));
        let feed = Arc::new(Feed::new(hex::encode(rand::random::<[u8; 8]>())));
        Ok(Self { config: config.clone(), clock, metrics, log, registry, shelf, topic, policies, feed, dir })
    }

    async fn lake(&self) -> Result<Arc<Lake>, AppError> {
        let s3 = &self.config.lake.s3;
        let location = lake::Location {
            url: self.config.lake_url(),
            s3: lake::S3Settings {
                endpoint: s3.endpoint.as_ref().map(ToString::to_string),
                region: s3.region.clone(),
                access_key_id: s3.access_key_id.clone(),
                secret_access_key: s3.read_secret()?.map(|secret| secret.reveal().to_owned()),
                virtual_hosted_style: s3.virtual_hosted_style,
            },
        };
        // The client of the store tries a request again, but not an answer that broke off in the middle.
        let began = Instant::now();
        loop {
            match Lake::open(location.clone(), self.log.id(), self.log.partitions()).await {
                Err(error) if error.is_transient() && began.elapsed() < OPENED_WITHIN => {
                    tracing::warn!(%error, "the tables cannot be opened now; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                opened => return Ok(Arc::new(opened?)),
            }
        }
    }
}

/// Opens the log that the settings name, or makes it.
async fn open_log(
    config: &Config,
    dir: &DataDir,
    clock: &Clock,
    brokers: Brokers,
) -> Result<(Arc<dyn EventLog>, Option<kafka::Known>), AppError> {
    match config.log.kind {
        LogKind::Embedded => {
            let options = Options {
                partitions: config.log.partitions,
                cache_bytes: LOG_CACHE_BYTES,
                retention: Retention {
                    max_age_us: config.log.retention_age.map(|age| age.as_ms().saturating_mul(1000)),
                    max_bytes: config.log.retention_size.map(|size| size.0),
                },
            };
            let (path, clock) = (dir.path.join("log"), clock.clone());
            let opening = tokio::task::spawn_blocking(move || EmbeddedLog::open(&path, options, clock)).await;
            let opened =
                opening.map_err(|error| AppError::Failed { what: "opening the log", reason: error.to_string() })?;
            Ok((Arc::new(opened?), None))
        }
        LogKind::Kafka => {
            let kafka = &config.kafka;
            let properties = kafka.properties.read()?;
            let settings = kafka::Settings {
                brokers: kafka.brokers.clone(),
                topic: kafka.topic.clone(),
                state_topic: kafka.state_topic.clone(),
                registry_topic: kafka.registry_topic.clone(),
                group: kafka.group.clone(),
                create_topics: kafka.create_topics,
                replication: kafka.replication,
                partitions: config.log.partitions,
                properties: properties.into_iter().map(|(name, value)| (name, value.reveal().to_owned())).collect(),
            };
            let log = match durable_file::read(&dir.path.join(KAFKA))? {
                Some(known) if brokers == Brokers::Awaited => KafkaLog::open_known(settings, known).await?,
                _ => KafkaLog::open(settings).await?,
            };
            let known = log.known();
            Ok((Arc::new(log), Some(known)))
        }
    }
}
