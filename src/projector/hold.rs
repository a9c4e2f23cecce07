//! The name of a generation that is to be kept: claimed by the one rebuild that makes it, of all processes, and claimed once
//! more now and then while it is at work.

use super::ProjectorError;
use super::job::{Job, Phase, RebuildError};
use super::rebuild::Site;
use crate::event::time::format_us;
use crate::lake::{Claim, Claimed, LakeError};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

const SAY_EVERY: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(20) };
/// Whoever could not say for so long that it is at work stops: others take it for gone somewhat later.
const STOPS_AFTER: Duration = Duration::from_secs(150);

/// When others were told last, by the clock that goes on while the machine sleeps.
#[derive(Clone)]
struct Said(Arc<Mutex<SystemTime>>);

impl Said {
    fn at(time: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(time)))
    }

    fn lock(&self) -> MutexGuard<'_, SystemTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether they may take this process for gone soon, or have.
    fn is_long_ago(&self) -> bool {
        // A time that is yet to come is that of a clock that was set back.
        self.lock().elapsed().is_ok_and(|silence| silence >= STOPS_AFTER)
    }

    /// Does work until `lost` tells why not, or it is long ago: then not one more step of it is made.
    async fn during(
        &self,
        lost: impl Future<Output = RebuildError>,
        work: impl Future<Output = Result<(), RebuildError>>,
    ) -> Result<(), RebuildError> {
        let (mut lost, mut work) = (pin!(lost), pin!(work));
        poll_fn(|context| match lost.as_mut().poll(context) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending if self.is_long_ago() => Poll::Ready(Err(ProjectorError::Silent.into())),
            Poll::Pending => work.as_mut().poll(context),
        })
        .await
    }
}

/// A name that is held, until this is dropped.
pub(super) struct Hold {
    said: Said,
    lost: oneshot::Receiver<RebuildError>,
    saying: JoinHandle<()>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.saying.abort();
    }
}

impl Hold {
    /// Does work that ends when the name is lost, or may be.
    pub async fn during(mut self, work: impl Future<Output = Result<(), RebuildError>>) -> Result<(), RebuildError> {
        let lost = &mut self.lost;
        // Without a word only one that broke down has ended.
        let lost = async { lost.await.unwrap_or_else(|_| ProjectorError::Silent.into()) };
        self.said.during(lost, work).await
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
        let said = Said::at(SystemTime::now());
        self.claim_to_make(&name, &job.claim).await?;
        let (tell, lost) = oneshot::channel();
        let (site, id, saying) = (self.clone(), job.claim, said.clone());
        let saying = tokio::spawn(async move {
            let error = site.say(&name, &id, &saying).await;
            // Whoever did the work may have ended it.
            let _ = tell.send(error);
        });
        Ok(Some(Hold { said, lost, saying }))
    }

    /// Claims the name of a generation, and removes all there is of it.
    pub async fn remove_kept(&self, name: &str, id: &str) -> Result<(), RebuildError> {
        let said = Said::at(SystemTime::now());
        self.claim(name, id).await?;
        said.during(self.say(name, id, &said), async { Ok(self.lake.drop_kept(name).await?) }).await
    }

    /// Says again and again that a name is held; why it is not any more.
    async fn say(&self, name: &str, id: &str, said: &Said) -> RebuildError {
        loop {
            tokio::time::sleep(SAY_EVERY).await;
            let now = SystemTime::now();
            match self.claim(name, id).await {
                Ok(Claimed::Anew) => {
                    return RebuildError::Wish(format!("generation {name} was dropped by another process"));
                }
                Ok(_) => *said.lock() = now,
                Err(RebuildError::Projector(ProjectorError::Lake(error @ LakeError::Store { .. }))) => {
                    tracing::warn!(rebuild = name, %error, "others cannot be told that it is at work");
                    if said.is_long_ago() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_slept_for_too_long_does_nothing_more() {
        let minute = Duration::from_secs(60);
        for (slept, made) in [(Duration::ZERO, 2), (STOPS_AFTER - minute, 2), (STOPS_AFTER, 1)] {
            let (said, mut steps) = (Said::at(SystemTime::now()), 0);
            let (_tell, lost) = oneshot::channel();
            let hold = Hold { said: said.clone(), lost, saying: tokio::spawn(std::future::pending()) };
            let done = hold.during(async {
                steps += 1;
                *said.lock() -= slept;
                tokio::task::yield_now().await;
                steps += 1;
                Ok(())
            });
            let done = done.await;
            assert_eq!((steps, done.is_ok()), (made, made == 2), "{slept:?}: {done:?}");
            assert!(done.is_ok() || matches!(&done, Err(RebuildError::Projector(error)) if error.is_transient()));
        }
    }
}
