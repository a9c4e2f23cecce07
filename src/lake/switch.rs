//! How processes that share the tables tell each other that those of a rebuild take the place of the live ones.
//!
//! `switch/` holds a chain of records. Whoever makes a switch goes on from the newest one at each step, so that a step which
//! comes too late is refused. The chain is never taken away: a number that was used once is not used again.

use super::chain::Chain;
use super::table::lock;
use super::{Lake, LakeError};
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

const FOLDER: &str = "switch";
/// Whoever has begun one and said nothing for so long is gone.
const GONE_AFTER: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(300) };

/// How far a switch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Everybody else lets the tables alone.
    Begun,
    /// It is to be completed, by whoever sees it first: its tables are complete.
    Decided,
    /// It is complete, or was given up.
    Ended,
}

/// The newest word on a switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// The rebuild's name.
    pub rebuild: String,
    /// The rebuild that the tables' rows come from until then; 0 where there was none.
    pub follows: i64,
    pub stage: Stage,
    /// The process that says so, for people.
    pub maker: String,
    /// Names those who speak, each time they begin to.
    pub voice: String,
    /// When it did, in µs since the epoch, UTC.
    pub told_us: i64,
}

/// A record of the chain; no two are the same.
#[derive(Serialize, Deserialize)]
struct Word {
    id: String,
    #[serde(flatten)]
    switch: Switch,
}

/// What a process has heard of switches last.
#[derive(Debug, Clone)]
pub struct Heard {
    /// 0 where there was never a word.
    pub number: u64,
    pub switch: Option<Switch>,
    /// For how long this process has heard nothing newer. The clocks of processes may differ.
    silent: Duration,
}

impl Heard {
    /// Whether it is nobody's any more, though it was not decided.
    pub fn is_dead(&self) -> bool {
        self.switch.as_ref().is_some_and(|switch| switch.stage == Stage::Begun) && self.silent >= GONE_AFTER
    }
}

impl Lake {
    fn switches(&self) -> Chain<'_> {
        Chain { store: &self.store, root: ObjectPath::from(FOLDER) }
    }

    /// The newest word on a switch.
    pub async fn switch(&self) -> Result<Heard, LakeError> {
        let newest = self.switches().newest::<Word>().await?;
        let (number, switch) = newest.map_or((0, None), |(number, word)| (number, Some(word.switch)));
        let mut heard = lock(&self.heard);
        if heard.is_none_or(|(known, _)| known != number) {
            *heard = Some((number, Instant::now()));
        }
        let silent = heard.map_or(Duration::ZERO, |(_, since)| since.elapsed());
        Ok(Heard { number, switch, silent })
    }

    /// Says what follows the word of number `after`. The new one's number, or `None` where another process has spoken.
    pub async fn tell_switch(&self, after: u64, switch: Switch) -> Result<Option<u64>, LakeError> {
        self.switches().append(after, &Word { id: uuid::Uuid::now_v7().to_string(), switch }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::tests::open;

    fn word(rebuild: &str, stage: Stage, minute: i64) -> Switch {
        Switch {
            rebuild: rebuild.into(),
            follows: 0,
            stage,
            maker: "a test".into(),
            voice: rebuild.into(),
            told_us: minute * 60_000_000,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_those_that_speak_at_once_one_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let lakes = futures::future::join_all((0..6).map(|_| open(dir.path()))).await;
        assert_eq!(lakes[0].switch().await.unwrap().switch, None);
        let mut number = 0;
        for round in 0..5 {
            let say = |n: usize| word(&n.to_string(), Stage::Begun, round);
            let said = lakes.iter().enumerate().map(|(n, lake)| lake.tell_switch(number, say(n)));
            let said = futures::future::join_all(said).await;
            let heard: Vec<usize> = (0..said.len()).filter(|n| matches!(said[*n], Ok(Some(_)))).collect();
            let Heard { number: newest, switch, .. } = lakes[5].switch().await.unwrap();
            assert_eq!(heard.len(), 1, "{said:?}");
            assert_eq!(switch, Some(say(heard[0])));
            assert!(newest == number + 1);
            number = newest;
        }
        // One that slept from the second to the fifth.
        assert_eq!(lakes[0].tell_switch(1, word("0", Stage::Decided, 9)).await.unwrap(), None);
        assert_eq!(lakes[1].switch().await.unwrap().number, number);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_says_nothing_more_is_gone_whatever_the_clocks_say_and_a_decision_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (maker, other) = (open(dir.path()).await, open(dir.path()).await);
        // Long ago, as its clock has it.
        let number = maker.tell_switch(0, word("a", Stage::Begun, 0)).await.unwrap().unwrap();
        assert!(!other.switch().await.unwrap().is_dead());
        tokio::time::sleep(GONE_AFTER).await;
        assert!(other.switch().await.unwrap().is_dead());
        let number = maker.tell_switch(number, word("a", Stage::Begun, 0)).await.unwrap().unwrap();
        assert!(!other.switch().await.unwrap().is_dead(), "it has spoken");
        maker.tell_switch(number, word("a", Stage::Decided, 0)).await.unwrap().unwrap();
        other.switch().await.unwrap();
        tokio::time::sleep(GONE_AFTER).await;
        assert!(!other.switch().await.unwrap().is_dead());
    }
}
