//! Who is asked for what, and what follows from the answers; pure.

use crate::log::registry::Node;
use std::collections::{BTreeMap, BTreeSet};

/// The other processes, by instance.
pub(super) type Nodes = BTreeMap<String, Node>;

/// Where a partition's newest rows may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// In this process.
    Here,
    /// In the process of this name.
    There(String),
}

/// What came of asking one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has told all of these partitions.
    Laid(BTreeSet<u32>),
    /// The tables are too old for it.
    TooOld,
    /// There was no answer, or none that is of use; in words.
    Failed(String),
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// The answers go together: by partition, why one is not among them.
    Take(BTreeMap<u32, String>),
    /// The tables are to be read anew, and then all are to be asked again.
    Refresh,
    /// All are to be asked again, by what is known now.
    AskAgain,
}

/// What one query has learned of the places it asked.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Who did not have which partition, and why as far as that is known.
    without: BTreeMap<(Place, u32), Option<String>>,
}

pub(super) const NOBODY: &str = "no projector has said that it folds it";
const ELSEWHERE: &str = "its projector has given it up";
const STALE: &str = "its projector commits faster than the tables can be read";

impl Search {
    /// Where to ask for each partition. `here` are those of this process; of others, whoever has told last counts.
    pub fn places(&self, partitions: u32, here: &[u32], nodes: &Nodes) -> BTreeMap<Place, Vec<u32>> {
        let mut places: BTreeMap<Place, Vec<u32>> = BTreeMap::new();
        for partition in 0..partitions {
            if here.contains(&partition) {
                places.entry(Place::Here).or_default().push(partition);
            } else if let Some(place) = self.owner(partition, nodes) {
                places.entry(place).or_default().push(partition);
            }
        }
        places
    }

    fn owner(&self, partition: u32, nodes: &Nodes) -> Option<Place> {
        let claiming = nodes.iter().filter(|(_, node)| node.partitions.contains(&partition));
        let place = |instance: &String| Place::There(instance.clone());
        claiming
            .filter(|(instance, _)| !self.without.contains_key(&(place(instance), partition)))
            .max_by_key(|(instance, node)| (node.at_us, *instance))
            .map(|(instance, _)| place(instance))
    }

    /// What follows from the answers of a round. After the `last` one what there is has to do.
    pub fn judge(
        &mut self,
        partitions: u32,
        answers: &[(Place, Vec<u32>, Outcome)],
        nodes: &Nodes,
        is_last: bool,
    ) -> Next {
        let mut missing: BTreeMap<u32, String> = (0..partitions).map(|partition| (partition, NOBODY.into())).collect();
        let (mut is_stale, mut moved) = (false, false);
        for (place, asked, outcome) in answers {
            for partition in asked {
                let reason = match outcome {
                    Outcome::Laid(laid) if laid.contains(partition) => {
                        missing.remove(partition);
                        continue;
                    }
                    Outcome::TooOld => {
                        is_stale = true;
                        missing.insert(*partition, STALE.into());
                        continue;
                    }
                    Outcome::Laid(_) => None,
                    Outcome::Failed(reason) => Some(reason.clone()),
                };
                missing.insert(*partition, reason.clone().unwrap_or_else(|| ELSEWHERE.into()));
                match place {
                    // This process knows by itself what is its own, and will know it anew.
                    Place::Here => moved = true,
                    Place::There(_) => {
                        self.without.insert((place.clone(), *partition), reason);
                        moved |= self.owner(*partition, nodes).is_some();
                    }
                }
            }
        }
        for (partition, reason) in &mut missing {
            let known = self.without.iter().find_map(|((_, of), why)| why.as_ref().filter(|_| of == partition));
            if reason == NOBODY
                && let Some(known) = known
            {
                reason.clone_from(known);
            }
        }
        match () {
            () if is_last => Next::Take(missing),
            () if is_stale => Next::Refresh,
            () if moved => Next::AskAgain,
            () => Next::Take(missing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes<const N: usize>(nodes: [(&str, &[u32], i64); N]) -> Nodes {
        let node = |partitions: &[u32], at_us| Node {
            address: String::new(),
            roles: vec!["projector".into()],
            partitions: partitions.to_vec(),
            log_id: "log".into(),
            assignment: 1,
            at_us,
        };
        nodes.map(|(instance, partitions, at_us)| (instance.to_owned(), node(partitions, at_us))).into()
    }

    fn there(instance: &str) -> Place {
        Place::There(instance.into())
    }

    fn laid(partitions: &[u32]) -> Outcome {
        Outcome::Laid(partitions.iter().copied().collect())
    }

    #[test]
    fn the_newest_word_says_who_has_a_partition() {
        let nodes = nodes([("a", &[0, 1][..], 5), ("b", &[1, 2], 9), ("me", &[3], 7)]);
        let places = Search::default().places(5, &[3], &nodes);
        assert_eq!(places[&Place::Here], [3]);
        assert_eq!(places[&there("a")], [0]);
        assert_eq!(places[&there("b")], [1, 2]);
        assert_eq!(places.len(), 3, "nobody has 4");
    }

    #[test]
    fn answers_for_the_same_tables_are_taken_together() {
        let nodes = nodes([("a", &[0], 1), ("b", &[1], 1)]);
        let answers = [(there("a"), vec![0], laid(&[0])), (there("b"), vec![1], laid(&[1]))];
        assert_eq!(Search::default().judge(2, &answers, &nodes, false), Next::Take(BTreeMap::new()));
        // One whose tables were newer makes all of them be asked again, until there is no more time for it.
        let answers = [(there("a"), vec![0], laid(&[0])), (there("b"), vec![1], Outcome::TooOld)];
        assert_eq!(Search::default().judge(2, &answers, &nodes, false), Next::Refresh);
        let last = Search::default().judge(2, &answers, &nodes, true);
        assert_eq!(last, Next::Take(BTreeMap::from([(1, STALE.to_owned())])));
    }

    #[test]
    fn who_does_not_answer_is_asked_once() {
        let nodes = nodes([("a", &[0], 1), ("b", &[1], 1)]);
        let mut search = Search::default();
        let silent = (there("b"), vec![1], Outcome::Failed("it is silent".into()));
        let missing = BTreeMap::from([(1, "it is silent".to_owned())]);
        assert_eq!(
            search.judge(2, &[(there("a"), vec![0], laid(&[0])), silent.clone()], &nodes, false),
            Next::Take(missing.clone())
        );

        let mut search = Search::default();
        assert_eq!(search.judge(2, &[(there("a"), vec![0], Outcome::TooOld), silent], &nodes, false), Next::Refresh);
        let places = search.places(2, &[], &nodes);
        assert_eq!(places, BTreeMap::from([(there("a"), vec![0])]));
        let again = search.judge(2, &[(there("a"), vec![0], laid(&[0]))], &nodes, false);
        assert_eq!(again, Next::Take(missing), "why it is missing is not forgotten");
    }

    #[test]
    fn a_partition_that_moved_is_looked_for() {
        let nodes = nodes([("a", &[0], 9), ("b", &[0], 1)]);
        let mut search = Search::default();
        assert_eq!(search.judge(1, &[(there("a"), vec![0], laid(&[]))], &nodes, false), Next::AskAgain);
        assert_eq!(search.places(1, &[], &nodes), BTreeMap::from([(there("b"), vec![0])]));
        let end = search.judge(1, &[(there("b"), vec![0], laid(&[]))], &nodes, false);
        assert_eq!(end, Next::Take(BTreeMap::from([(0, ELSEWHERE.to_owned())])));
        // One of this process is looked for again by itself.
        let mut search = Search::default();
        assert_eq!(search.judge(1, &[(Place::Here, vec![0], laid(&[]))], &Nodes::new(), false), Next::AskAgain);
        assert_eq!(search.places(1, &[0], &Nodes::new()), BTreeMap::from([(Place::Here, vec![0])]));
    }
}
