//! The rebuilds of a process: asked for, followed, dropped. One is made at a time.

use super::ProjectorHandle;
use super::job::{Job, Phase, RebuildError, Wish};
use super::rebuild::{AGAIN, Progress, Site, Tell};
use super::{ProjectorError, Settings};
use crate::lake::{GenerationInfo, Lake};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// A rebuild, and what it does now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Report {
    pub job: Job,
    /// While it is at work.
    pub progress: Option<Progress>,
}

/// All there is to tell of rebuilds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Listing {
    /// The last ones, the oldest first.
    pub rebuilds: Vec<Report>,
    /// Those that are kept beside the live tables.
    pub generations: Vec<GenerationInfo>,
}

/// Threads that rebuilds run on: what else the program does need not wait for them.
struct Threads(Option<Runtime>);

impl Threads {
    fn start() -> std::io::Result<Self> {
        let builder = &mut Builder::new_multi_thread();
        Ok(Self(Some(builder.worker_threads(1).thread_name("rebuild").enable_all().build()?)))
    }

    /// `None` only while it is dropped.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> Option<JoinHandle<()>> {
        self.0.as_ref().map(|runtime| runtime.spawn(work))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for the threads is not allowed within another runtime.
            runtime.shutdown_background();
        }
    }
}

/// The one at work.
struct Current {
    /// `None`: what earlier ones have left is removed, and that is all.
    name: Option<String>,
    progress: Arc<Mutex<Option<Progress>>>,
    task: JoinHandle<()>,
}

/// Makes rebuilds beside a projector. Cheap to clone.
#[derive(Clone)]
pub struct Rebuilds {
    site: Arc<Site>,
    is_shared: bool,
    threads: Arc<Threads>,
    current: Arc<Mutex<Option<Current>>>,
}

impl Rebuilds {
    /// Goes on with the one that is not finished, if there is one. `is_shared` says that other processes work on the log.
    pub async fn start(
        projector: &ProjectorHandle,
        data_dir: &Path,
        settings: Arc<Settings>,
        is_shared: bool,
    ) -> Result<Self, RebuildError> {
        let pauses = Some(projector.pauses.clone());
        let site = Site::new(projector.lake().clone(), data_dir.to_owned(), settings, pauses);
        let failed = |error: std::io::Error| ProjectorError::Halted(format!("no thread for rebuilds: {error}"));
        let threads = Arc::new(Threads::start().map_err(failed)?);
        let rebuilds = Self { site, is_shared, threads, current: Arc::default() };
        let unfinished = rebuilds.site.jobs().unfinished()?.map(|job| job.name);
        if let Some(rebuild) = &unfinished {
            tracing::info!(rebuild, "going on with a rebuild");
        }
        rebuilds.pursue(unfinished);
        Ok(rebuilds)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a rebuild.
    pub async fn ask(&self, wish: Wish) -> Result<Report, RebuildError> {
        let _one = self.site.changing.lock().await;
        let job = self.site.prepare(wish, self.is_shared).await?;
        let is_at_work = |current: &Current| current.name.as_ref() == Some(&job.name) && !current.task.is_finished();
        if !self.lock().as_ref().is_some_and(is_at_work) {
            self.pursue(Some(job.name.clone()));
        }
        Ok(self.report(job))
    }

    /// Removes what others have left, then works on this one until it has ended.
    fn pursue(&self, name: Option<String>) {
        let progress: Arc<Mutex<Option<Progress>>> = Arc::default();
        let (site, named, told) = (self.site.clone(), name.clone(), progress.clone());
        let task = self.threads.spawn(async move {
            site.sweep().await;
            if let Some(name) = named {
                pursue(site, name, told).await;
            }
        });
        *self.lock() = task.map(|task| Current { name, progress, task });
    }

    fn report(&self, job: Job) -> Report {
        let current = self.lock();
        let of_it = current.as_ref().filter(|current| current.name.as_ref() == Some(&job.name) && !job.has_ended());
        let progress = of_it.and_then(|current| *current.progress.lock().unwrap_or_else(PoisonError::into_inner));
        Report { job, progress }
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Result<Report, RebuildError> {
        let job = self.site.jobs().get(name)?.ok_or_else(|| RebuildError::Unknown(name.to_owned()))?;
        Ok(self.report(job))
    }

    /// All of them.
    pub async fn list(&self) -> Result<Listing, RebuildError> {
        let rebuilds = self.site.jobs().all()?.into_iter().map(|job| self.report(job)).collect();
        Ok(Listing { rebuilds, generations: self.site.lake.generations().await? })
    }

    /// Removes a generation, or a rebuild that has not ended well.
    pub async fn drop(&self, name: &str) -> Result<(), RebuildError> {
        let _one = self.site.changing.lock().await;
        let at_work = self.lock().take_if(|current| current.name.as_deref() == Some(name));
        if let Some(current) = at_work {
            current.task.abort();
            // It was told to end; how it did does not matter.
            let _ = current.task.await;
        }
        self.site.forget(name).await
    }

    /// Leaves the one at work to the next start of the program.
    pub async fn stop(&self) {
        let current = self.lock().take();
        if let Some(current) = current {
            current.task.abort();
            let _ = current.task.await;
        }
    }
}

async fn pursue(site: Arc<Site>, name: String, progress: Arc<Mutex<Option<Progress>>>) {
    let tell: Tell = Arc::new(move |now| *progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(now));
    loop {
        // A switch that is marked is completed by the projector's next run.
        while site.is_marked() {
            tokio::time::sleep(AGAIN).await;
        }
        let Err(error) = site.carry_out(&name, &tell).await else { return };
        match &error {
            // The program ends; the next one goes on.
            RebuildError::Projector(ProjectorError::Stopped) => return,
            _ if site.is_marked() => {}
            RebuildError::Projector(cause) if cause.is_transient() => {
                tracing::warn!(rebuild = name, %error, "the rebuild cannot go on now, and is tried again");
            }
            _ => {
                let failed = site.fail(&name, &error).await;
                return failed.unwrap_or_else(|error| tracing::warn!(%error, "what is left of it stays for now"));
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Site {
    /// Notes down a new rebuild. An unfinished one with the same wish is gone on with instead. Who calls it holds `changing`.
    pub async fn prepare(&self, wish: Wish, is_shared: bool) -> Result<Job, RebuildError> {
        let jobs = self.jobs();
        if let Some(job) = jobs.unfinished()? {
            return if job.wish == wish { Ok(job) } else { Err(RebuildError::Busy(job.name)) };
        }
        wish.check(&self.settings)?;
        jobs.forget_old()?;
        let asked_us = (self.settings.clock)();
        let name = wish.keep_as.clone().unwrap_or_else(|| format!("{asked_us:x}"));
        // The one before of this name may have the name still.
        self.put_in_order(&name).await?;
        super::recover::remove(&jobs.state_dir(&name))?;
        let job = Job {
            policies: wish.settings(&self.settings)?.policies_in_words(),
            name,
            // Something may be there of one that was not finished.
            phase: if wish.keep_as.is_some() { Phase::Clearing } else { Phase::Folding },
            wish,
            asked_us,
            ended_us: None,
            is_shared,
            lateness_ms: None,
            reach: None,
            error: None,
            claim: Uuid::now_v7().to_string(),
            leaves: false,
        };
        let before = jobs.get(&job.name)?;
        jobs.put(&job)?;
        if let Some(name) = &job.wish.keep_as
            && let Err(error) = self.claim_to_make(name, &job.claim).await
        {
            // The one before that was made under this name is told of as before.
            match before {
                Some(before) => jobs.put(&before)?,
                None => jobs.remove(name)?,
            }
            return Err(error);
        }
        Ok(job)
    }
}

/// Rebuilds where no projector runs, on the data directory that this process holds.
pub struct OfflineRebuilds {
    site: Arc<Site>,
    is_shared: bool,
}

impl OfflineRebuilds {
    /// `settings` are what the live tables are folded by.
    pub fn new(lake: Arc<Lake>, data_dir: PathBuf, settings: Settings, is_shared: bool) -> Self {
        Self { site: Site::new(lake, data_dir, Arc::new(settings), None), is_shared }
    }

    /// Makes a rebuild, or goes on with one that was asked for in the same words.
    pub async fn rebuild(
        &self,
        wish: Wish,
        tell: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Report, RebuildError> {
        self.site.settle().await?;
        self.site.sweep().await;
        let job = {
            let _one = self.site.changing.lock().await;
            self.site.prepare(wish, self.is_shared).await?
        };
        let tell: Tell = Arc::new(tell);
        let carried_out = self.site.carry_out(&job.name, &tell).await;
        if let Err(error) = carried_out {
            // What may pass is gone on with by the same command.
            let passes = matches!(&error, RebuildError::Projector(cause) if cause.is_transient());
            if !passes && !self.site.is_marked() {
                self.site.fail(&job.name, &error).await?;
            }
            return Err(error);
        }
        let job = self.site.jobs().get(&job.name)?.ok_or(RebuildError::Unknown(job.name))?;
        Ok(Report { job, progress: None })
    }

    /// All there is to tell.
    pub async fn list(&self) -> Result<Listing, RebuildError> {
        let rebuilds = self.site.jobs().all()?.into_iter().map(|job| Report { job, progress: None }).collect();
        Ok(Listing { rebuilds, generations: self.site.lake.generations().await? })
    }

    /// Removes a generation, or a rebuild that was not finished.
    pub async fn drop(&self, name: &str) -> Result<(), RebuildError> {
        let _one = self.site.changing.lock().await;
        self.site.forget(name).await
    }
}
