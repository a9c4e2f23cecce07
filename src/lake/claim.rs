//! Who makes a generation that is kept: of several processes one.
//!
//! `generations/<name>/claims/` holds small objects under rising numbers, of which the newest counts. Whoever makes the
//! generation writes the next one now and then; whoever takes over from one that is silent writes it too. It is written
//! only where its name is new, so of two that do so at once one is refused.

use super::chain::Chain;
use super::kept::{folder, is_generation_name};
use super::store::Created;
use super::{Lake, LakeError};
use crate::event::shown::brief;
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const FOLDER: &str = "claims";
/// Whoever has said nothing for so long is gone.
const GONE_AFTER: Duration = Duration::from_secs(300);
/// A claim that changes hands just then is looked at again, so often.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Says who makes a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Names the rebuild.
    pub id: String,
    /// The process, for people.
    pub maker: String,
    /// When it said so, in µs since the epoch, UTC.
    pub told_us: i64,
}

/// What became of claiming a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// It was this claim's already.
    Again,
    /// It was nobody's, or that of one who is gone, of whom something may be there.
    Anew,
    /// It is another's.
    By(Claim),
}

impl Claim {
    /// Whether at this time nothing more is to be expected of its maker.
    pub fn is_dead(&self, now_us: i64) -> bool {
        now_us.saturating_sub(self.told_us) >= i64::try_from(GONE_AFTER.as_micros()).unwrap_or(i64::MAX)
    }
}

/// The folder of a generation's claims, below the tables' place.
pub(super) fn claims(name: &str) -> ObjectPath {
    ObjectPath::from(format!("{}/{FOLDER}", folder(name)))
}

impl Lake {
    /// Claims the name of a generation that is to be kept, or says once more who has it.
    pub async fn claim_name(&self, name: &str, claim: &Claim) -> Result<Claimed, LakeError> {
        if !is_generation_name(name) {
            return Err(LakeError::Generation(format!("no generation can be named `{}`", brief(name))));
        }
        let mut was_lost = false;
        for _ in 0..TRIES {
            match self.try_to_claim(name, claim).await? {
                // What a try before this one wrote is no proof that it was held all the time.
                Some(Claimed::Again) if was_lost => return Ok(Claimed::Anew),
                Some(claimed) => return Ok(claimed),
                None => was_lost = true,
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(self.store.failed(&format!("the claim of generation {name} changes hands")))
    }

    /// `None` where the claim was given back, or taken, at that very moment.
    async fn try_to_claim(&self, name: &str, claim: &Claim) -> Result<Option<Claimed>, LakeError> {
        let chain = self.claim_chain(name);
        let newest: Option<(u64, Claim)> = chain.newest().await?;
        let claimed = match &newest {
            Some((_, other)) if other.id == claim.id => Claimed::Again,
            Some((_, other)) if !other.is_dead(claim.told_us) => return Ok(Some(Claimed::By(other.clone()))),
            _ => Claimed::Anew,
        };
        let number = newest.map_or(1, |(number, _)| number + 1);
        let text = serde_json::to_vec_pretty(claim).map_err(|error| self.store.failed(&error))?;
        let created = self.store.create(&chain.path(number), text.into()).await?;
        // One that slept while others went on writes a number that is past.
        match chain.newest::<Claim>().await? {
            Some((newest, _)) if newest == number && created == Created::Yes => {}
            Some((_, other)) if other.id != claim.id => return Ok(Some(Claimed::By(other))),
            _ => return Ok(None),
        }
        for older in chain.numbers().await?.into_iter().filter(|older| *older < number) {
            self.store.delete(&chain.path(older)).await?;
        }
        Ok(Some(claimed))
    }

    /// Who makes a generation, or did last.
    pub async fn claim_of(&self, name: &str) -> Result<Option<Claim>, LakeError> {
        Ok(self.claim_chain(name).newest().await?.map(|(_, claim)| claim))
    }

    /// Gives a claim back. Another's is left alone.
    pub async fn release_name(&self, name: &str, id: &str) -> Result<(), LakeError> {
        let chain = self.claim_chain(name);
        let own = chain.newest::<Claim>().await?.filter(|(_, claim)| claim.id == id);
        let Some((newest, _)) = own else { return Ok(()) };
        // The newest goes last: until then it is this one's.
        for number in chain.numbers().await?.into_iter().filter(|number| *number <= newest) {
            self.store.delete(&chain.path(number)).await?;
        }
        Ok(())
    }

    fn claim_chain(&self, name: &str) -> Chain<'_> {
        Chain { store: &self.store, root: claims(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::tests::open;

    const MINUTE_US: i64 = 60_000_000;

    fn claim(id: &str, minute: i64) -> Claim {
        Claim { id: id.into(), maker: format!("the maker of {id}"), told_us: minute * MINUTE_US }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_name_is_one_makers_until_it_is_given_back_or_its_maker_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (open(dir.path()).await, open(dir.path()).await);
        assert_eq!(one.claim_name("g", &claim("a", 0)).await.unwrap(), Claimed::Anew);
        assert_eq!(two.claim_name("g", &claim("b", 4)).await.unwrap(), Claimed::By(claim("a", 0)));
        assert_eq!(two.claim_name("other", &claim("b", 4)).await.unwrap(), Claimed::Anew);
        assert_eq!(one.claim_name("g", &claim("a", 4)).await.unwrap(), Claimed::Again);
        assert_eq!(two.claim_name("g", &claim("b", 8)).await.unwrap(), Claimed::By(claim("a", 4)));
        assert_eq!(two.claim_name("g", &claim("b", 9)).await.unwrap(), Claimed::Anew, "silent for five minutes");
        assert_eq!(one.claim_name("g", &claim("a", 9)).await.unwrap(), Claimed::By(claim("b", 9)));
        one.release_name("g", "a").await.unwrap();
        assert_eq!(one.claim_of("g").await.unwrap(), Some(claim("b", 9)), "it is not a's to give back");
        two.release_name("g", "b").await.unwrap();
        assert_eq!(one.claim_of("g").await.unwrap(), None);
        assert_eq!(one.claim_name("g", &claim("a", 10)).await.unwrap(), Claimed::Anew);
        assert_eq!(one.claim_chain("g").numbers().await.unwrap().len(), 1, "older ones are removed");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_name_that_is_given_back_at_that_moment_can_be_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let lake = open(dir.path()).await;
        let own = claim("a", 0);
        for round in 0..300 {
            lake.claim_name("g", &own).await.unwrap();
            let (released, claimed) = tokio::join!(lake.release_name("g", "a"), lake.claim_name("g", &own));
            released.unwrap();
            let claimed = claimed.unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert!(matches!(claimed, Claimed::Again | Claimed::Anew), "{claimed:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_that_claim_a_name_at_once_one_has_it() {
        for minute in [0, 60] {
            let dir = tempfile::tempdir().unwrap();
            let lakes = futures::future::join_all((0..6).map(|_| open(dir.path()))).await;
            if minute > 0 {
                lakes[0].claim_name("g", &claim("gone", 0)).await.unwrap();
            }
            let claims: Vec<Claim> = (0..6).map(|n| claim(&n.to_string(), minute)).collect();
            let tries = lakes.iter().zip(&claims).map(|(lake, claim)| lake.claim_name("g", claim));
            let tries = futures::future::join_all(tries).await;
            let holder = lakes[0].claim_of("g").await.unwrap().unwrap();
            for (tried, claim) in tries.iter().zip(&claims) {
                let has_it = matches!(tried, Ok(Claimed::Anew));
                assert_eq!(has_it, holder.id == claim.id, "{tried:?} of {claim:?}, held by {holder:?}");
            }
        }
    }
}
