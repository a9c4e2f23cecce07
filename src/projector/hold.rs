//! The name of a generation that is to be kept: claimed by the one rebuild that makes it, of all processes, and claimed once
//! more now and then while it is at work.

use super::ProjectorError;
use super::job::{Job, Phase, RebuildError};
use super::rebuild::Site;
use crate::event::time::format_us;
use crate::lake::{Claim, Claimed, LakeError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

const SAY_EVERY: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(20) };
/// Whoever could not say for so long that it is at work stops: others take it for gone somewhat later.
const STOPS_AFTER: Duration = Duration::from_secs(150);

/// A name that is held, until this is dropped.
pub(super) struct Hold {
    lost: oneshot::Receiver<RebuildError>,
    saying: JoinHandle<()>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.saying.abort();
    }
}

impl Hold {
    /// Does work that ends when the name is lost.
    pub async fn during(mut self, work: impl Future<Output = Result<(), RebuildError>>) -> Result<(), RebuildError> {
        tokio::select! {
            done = work => done,
            Ok(error) = &mut self.lost => Err(error),
        }
    }
}

impl Site {
    /// Claims a generation's name for a rebuild, or says once more that it is at work.
    pub async fn claim(&self, name: &str, id: &str) -> Result<Claimed, RebuildError> {
        // Two at once would take each other for somebody else.
        let _one = self.claiming.lock().await;
        let claim = Claim { id: id.to_owned(), maker: self.maker.clone(), told_us: (self.settings.clock)() };
        match self.lake.claim_name(name, &claim).await? {
            Claimed::By(Claim { maker, told_us, .. }) => {
                Err(RebuildError::Taken { name: name.to_owned(), maker, told: format_us(told_us) })
            }
            claimed => Ok(claimed),
        }
    }

    /// Claims the name of a generation that is to be made: refused where another has made one.
    pub async fn claim_to_make(&self, name: &str, id: &str) -> Result<(), RebuildError> {
        let claimed = self.claim(name, id).await?;
        match self.lake.generation_info(name).await {
            Ok(info) if info.as_ref().is_none_or(|info| info.made_by == id) => return Ok(()),
            Ok(_) => self.lake.release_name(name, id).await?,
            Err(error) => {
                if claimed == Claimed::Anew {
                    // Nobody knows of this claim after this.
                    self.lake.release_name(name, id).await?;
                }
                return Err(error.into());
            }
        }
        Err(RebuildError::Wish(format!(
            "there is a generation {name} already: drop it first (counterbat rebuild --drop {name}), or take another name"
        )))
    }

    /// Holds the name of a generation that is to be kept; `None` for any other rebuild. Where it was not this one's all the
    /// time, it is begun anew: others may have removed what there was of it.
    pub async fn hold(self: &Arc<Self>, mut job: Job) -> Result<Option<Hold>, RebuildError> {
        let Some(name) = job.wish.keep_as.clone() else { return Ok(None) };
        let is_own = |claim: Claim| claim.id == job.claim;
        if !self.lake.claim_of(&name).await?.is_some_and(is_own) && job.phase != Phase::Clearing {
            (job.phase, job.lateness_ms, job.reach) = (Phase::Clearing, None, None);
            if job.claim.is_empty() {
                job.claim = Uuid::now_v7().to_string();
            }
            self.jobs().put(&job)?;
        }
        self.claim_to_make(&name, &job.claim).await?;
        let (tell, lost) = oneshot::channel();
        let (site, id) = (self.clone(), job.claim);
        let saying = tokio::spawn(async move {
            let error = site.say(&name, &id).await;
            // Whoever did the work may have ended it.
            let _ = tell.send(error);
        });
        Ok(Some(Hold { lost, saying }))
    }

    /// Claims the name of a generation, and removes all there is of it.
    pub async fn remove_kept(&self, name: &str, id: &str) -> Result<(), RebuildError> {
        self.claim(name, id).await?;
        tokio::select! {
            removed = self.lake.drop_kept(name) => Ok(removed?),
            error = self.say(name, id) => Err(error),
        }
    }

    /// Says again and again that a name is held; why it is not any more.
    async fn say(&self, name: &str, id: &str) -> RebuildError {
        let mut said = Instant::now();
        loop {
            tokio::time::sleep(SAY_EVERY).await;
            match self.claim(name, id).await {
                Ok(Claimed::Anew) => {
                    return RebuildError::Wish(format!("generation {name} was dropped by another process"));
                }
                Ok(_) => said = Instant::now(),
                Err(RebuildError::Projector(ProjectorError::Lake(error @ LakeError::Store { .. }))) => {
                    tracing::warn!(rebuild = name, %error, "others cannot be told that it is at work");
                    if said.elapsed() >= STOPS_AFTER {
                        return error.into();
                    }
                }
                Err(error) => return error,
            }
        }
    }
}

/// Who works on a data directory, for people on other machines.
pub(super) fn maker(data_dir: &std::path::Path) -> String {
    // Elsewhere the folder must do.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => data_dir.display().to_string(),
        host => format!("{} on {host}", data_dir.display()),
    }
}
