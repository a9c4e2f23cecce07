//! What rebuilds leave: removed when they end, else at the next start of a server or a rebuild.

use super::ProjectorError;
use super::job::{Job, Phase, RebuildError};
use super::rebuild::Site;
use super::recover::remove;
use crate::lake::is_generation_name;
use uuid::Uuid;

impl Site {
    /// Removes what rebuilds of this data directory that have ended do not need. What cannot be removed now is left for the
    /// next time; what other processes have begun is theirs to go on with, however long they are away.
    pub async fn sweep(&self) {
        if let Err(error) = self.try_to_sweep().await {
            tracing::warn!(%error, "some of what rebuilds have left cannot be removed now");
        }
    }

    async fn try_to_sweep(&self) -> Result<(), RebuildError> {
        for job in self.jobs().all()? {
            let _one = self.changing.lock().await;
            self.put_in_order(&job.name).await?;
        }
        let _one = self.changing.lock().await;
        for dir in self.jobs().useless()? {
            remove(&dir)?;
        }
        Ok(())
    }

    /// Removes what a rebuild has left that has ended or is given up, as it stands now; any other is left alone. Who calls it
    /// holds `changing`.
    pub async fn put_in_order(&self, name: &str) -> Result<(), RebuildError> {
        match self.jobs().get(name)? {
            Some(job) if job.phase == Phase::Clearing && job.error.is_some() => self.clear_given_up(job).await,
            Some(job) if job.phase == Phase::Done && job.leaves => self.clear_done(job).await,
            _ => Ok(()),
        }
    }

    /// Removes all of a rebuild that is given up.
    pub async fn clear_away(&self, name: &str) -> Result<(), RebuildError> {
        let _one = self.changing.lock().await;
        self.put_in_order(name).await
    }

    /// Removes what a rebuild was made with.
    async fn clear_done(&self, mut job: Job) -> Result<(), RebuildError> {
        match &job.wish.keep_as {
            Some(name) => self.lake.release_name(name, &job.claim).await?,
            None => self.lake.forget_building(&job.name).await?,
        }
        remove(&self.jobs().state_dir(&job.name))?;
        remove(&self.jobs().old_state_dir(&job.name))?;
        job.leaves = false;
        Ok(self.jobs().put(&job)?)
    }

    async fn clear_given_up(&self, mut job: Job) -> Result<(), RebuildError> {
        self.clear(&job).await?;
        if let Some(name) = &job.wish.keep_as {
            self.lake.release_name(name, &job.claim).await?;
        }
        job.phase = Phase::Failed;
        Ok(self.jobs().put(&job)?)
    }

    /// Removes what there is of a rebuild that is not complete.
    pub async fn clear(&self, job: &Job) -> Result<(), RebuildError> {
        match &job.wish.keep_as {
            // Where another has it, that is its work.
            Some(name) if self.lake.claim_of(name).await?.is_some_and(|claim| claim.id == job.claim) => {
                self.remove_kept(name, &job.claim).await?;
            }
            Some(_) => {}
            None => self.lake.drop_generation(&job.name).await?,
        }
        Ok(remove(&self.jobs().state_dir(&job.name))?)
    }

    /// Removes a generation, or what there is of a rebuild that is not at work. Who calls it holds `changing`.
    pub async fn forget(&self, name: &str) -> Result<(), RebuildError> {
        // Nothing is taken away from under a switch.
        let _alone = self.switching.lock().await;
        let jobs = self.jobs();
        let job = jobs.get(name)?;
        let is_live = match &job {
            Some(job) if job.phase == Phase::Switching && job.is_shared => self.has_switched(job).await?,
            Some(job) => job.phase == Phase::Done || job.phase == Phase::Switching && self.is_marked(),
            None => false,
        };
        match &job {
            Some(job) if job.wish.keep_as.is_none() && is_live => {
                return Err(RebuildError::IsLive(name.to_owned()));
            }
            Some(job) if job.wish.keep_as.is_none() => self.clear(job).await?,
            _ => self.drop_kept(name, job.as_ref()).await?,
        }
        Ok(jobs.remove(name)?)
    }

    /// Removes a generation that was to be kept, unless another process is at work on it.
    async fn drop_kept(&self, name: &str, job: Option<&Job>) -> Result<(), RebuildError> {
        let is_there = is_generation_name(name)
            && (job.is_some()
                || self.lake.generation_info(name).await?.is_some()
                || self.lake.claim_of(name).await?.is_some());
        if !is_there {
            return Err(RebuildError::Unknown(name.to_owned()));
        }
        // Nobody makes it meanwhile, however long that takes.
        let id = job.map_or_else(|| Uuid::now_v7().to_string(), |job| job.claim.clone());
        self.remove_kept(name, &id).await?;
        self.lake.release_name(name, &id).await?;
        Ok(remove(&self.jobs().state_dir(name)).map_err(ProjectorError::from)?)
    }
}
