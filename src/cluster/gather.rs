//! One picture of the tables, from all processes that fold the log.

use super::ANSWER_WITHIN;
use super::client::{Answer, AskError, Client};
use super::decide::{NOBODY, Next, Nodes, Outcome, Place, Search};
use super::wire::Question;
use crate::lake::picture::{Overlay, Standing, TableView};
use crate::lake::{AsOf, FileEntry, Kept, Lake, LakeError, TableName, TableSnapshot, schema};
use crate::log::registry::{Node, Registry};
use crate::log::{self, EventLog};
use crate::metrics::Metrics;
use crate::projector::{Asked, ProjectorError, ProjectorHandle, Told};
use crate::query::{Freshness, Picture, Pictures, QueryError};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::future::join_all;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use url::Url;

/// So often all are asked again when tables or owners have changed meanwhile; then the answer goes without the rest.
const ROUNDS: usize = 6;

/// The other processes.
pub struct Peers {
    pub registry: Arc<dyn Registry>,
    pub client: Client,
    /// This process among them.
    pub instance: String,
}

/// Takes pictures of the tables.
pub struct Gathering {
    pub log: Arc<dyn EventLog>,
    pub lake: Arc<Lake>,
    /// Where this process folds partitions.
    pub local: Option<ProjectorHandle>,
    /// `None` where this process has the log to itself, or cannot ask others.
    pub peers: Option<Peers>,
    pub metrics: Arc<Metrics>,
    /// What was told last to be missing, and why.
    pub told: Mutex<BTreeMap<u32, String>>,
}

/// Tables that are switched are looked at again so soon, and for so long.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const SWITCHED_WITHIN: Duration = Duration::from_secs(20);

/// Where nobody is at work on a partition, the tables are looked at anew for so long: who has left has committed before.
const LOOK_FOR: Duration = Duration::from_secs(2);

const NO_END: &str = "the log does not say where it ends";

type Overlays = BTreeMap<TableName, Overlay>;

/// Brings the tables up to date now and then, so that queries hardly ever have to wait for it. `reads_only` is a process
/// that never deletes what has left the tables.
pub async fn keep_fresh(lake: Arc<Lake>, every: Duration, reads_only: bool) {
    loop {
        tokio::time::sleep(every).await;
        lake.refresh().await.unwrap_or_else(|error| tracing::debug!(%error, "the tables are not readable now"));
        if reads_only {
            lake.forget_dead();
        }
    }
}

/// Whether a rebuild has taken the place of one table and not yet of the other: each is switched by a commit of its own.
fn is_half_switched(snapshots: &BTreeMap<TableName, TableSnapshot>) -> bool {
    let rebuild = |name| snapshots.get(&name).map(|snapshot| snapshot.rebuild);
    matches!((rebuild(TableName::Messages), rebuild(TableName::Sessions)), (Some(one), Some(other)) if one != other)
}

impl Gathering {
    async fn gather(&self, tables: &[TableName]) -> Result<Picture, GatherError> {
        let partitions = self.log.partitions();
        let known = self.ends().await?;
        let ends = known.clone().unwrap_or_else(|| vec![0; partitions as usize]);
        let mut search = Search::default();
        let (mut round, began, mut is_newest) = (1, Instant::now(), false);
        loop {
            let here = match &self.local {
                Some(local) => {
                    local.wait_folded(&ends).await?;
                    local.status().owned()
                }
                None => Vec::new(),
            };
            let snapshots: BTreeMap<TableName, TableSnapshot> =
                tables.iter().map(|name| (*name, self.lake.table(*name).snapshot())).collect();
            if is_half_switched(&snapshots) {
                if began.elapsed() >= SWITCHED_WITHIN {
                    return Err(GatherError::HalfSwitched);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
                self.lake.refresh().await?;
                continue;
            }
            let standings = snapshots.iter().map(|(name, snapshot)| (*name, snapshot.standing())).collect();
            let nodes = self.nodes();
            let places = search.places(partitions, &here, &nodes);
            let asking = places.into_iter().map(|(place, asked)| self.ask(place, asked, &ends, &standings, &nodes));
            let mut answers = Vec::new();
            let mut overlays = Overlays::new();
            for (place, asked, outcome, laid) in join_all(asking).await.into_iter().collect::<Result<Vec<_>, _>>()? {
                answers.push((place, asked, outcome));
                for (name, overlay) in laid {
                    overlays.entry(name).or_default().join(overlay);
                }
            }
            match search.judge(partitions, &answers, &nodes, round == ROUNDS) {
                Next::Take(missing) if missing.values().any(|reason| reason == NOBODY) && !is_newest => {
                    is_newest = true;
                    // Where the store does not answer, what is known is shown, and how old it is.
                    let _ = tokio::time::timeout(LOOK_FOR, self.lake.refresh()).await;
                }
                Next::Take(mut missing) => {
                    if known.is_none() {
                        for partition in 0..partitions {
                            missing.entry(partition).or_insert_with(|| NO_END.to_owned());
                        }
                    }
                    let view = |(name, snapshot): (&TableName, &TableSnapshot)| {
                        (*name, TableView::of(snapshot, overlays.remove(name).unwrap_or_default()))
                    };
                    let freshness = freshness(&snapshots, missing.keys().copied().collect());
                    let tables = snapshots.iter().map(view).collect();
                    let events = snapshots.get(&TableName::Events).map(|events| &events.watermarks);
                    let watermarks_ms = events.map_or_else(Vec::new, |known| {
                        (0..partitions).map(|partition| known.get(&partition).copied()).collect()
                    });
                    self.tell(missing);
                    return Ok(Picture { tables, freshness, watermarks_ms });
                }
                Next::Refresh => self.lake.refresh().await?,
                Next::AskAgain => {}
            }
            round += 1;
        }
    }

    /// Where the partitions end; `None` where the log does not say so in time, and others could not be waited for anyway.
    async fn ends(&self) -> Result<Option<Vec<u64>>, GatherError> {
        if self.peers.is_none() {
            return Ok(Some(log::ends(&*self.log).await?));
        }
        match tokio::time::timeout(ANSWER_WITHIN, log::ends(&*self.log)).await {
            Ok(Ok(ends)) => Ok(Some(ends)),
            Ok(Err(error)) if !error.is_transient() => Err(error.into()),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    fn nodes(&self) -> Nodes {
        let Some(peers) = &self.peers else { return Nodes::new() };
        let mut nodes = Node::all(&peers.registry.entries().borrow());
        nodes.remove(&peers.instance);
        nodes
    }

    /// Asks one place for some partitions.
    async fn ask(
        &self,
        place: Place,
        asked: Vec<u32>,
        ends: &[u64],
        standings: &BTreeMap<TableName, Standing>,
        nodes: &Nodes,
    ) -> Result<(Place, Vec<u32>, Outcome, Overlays), GatherError> {
        let (outcome, overlays) = match &place {
            Place::Here => self.ask_here(&asked, standings).await?,
            Place::There(instance) => match (&self.peers, nodes.get(instance)) {
                (Some(peers), Some(node)) => {
                    let ends = asked.iter().map(|own| (*own, ends[*own as usize])).collect();
                    let question = Question::new(&self.log.id().0, ends, standings);
                    self.ask_there(&peers.client, &node.address, &question).await
                }
                _ => (Outcome::Failed("it is gone".to_owned()), Overlays::new()),
            },
        };
        Ok((place, asked, outcome, overlays))
    }

    async fn ask_here(
        &self,
        asked: &[u32],
        standings: &BTreeMap<TableName, Standing>,
    ) -> Result<(Outcome, Overlays), GatherError> {
        let Some(local) = &self.local else { return Ok((Outcome::Laid(BTreeSet::new()), Overlays::new())) };
        Ok(match local.overlay(Asked { partitions: asked.to_vec(), tables: standings.clone() }).await? {
            Told::Laid { partitions, overlays } => (Outcome::Laid(partitions.into_iter().collect()), overlays),
            Told::TooOld => (Outcome::TooOld, Overlays::new()),
        })
    }

    async fn ask_there(&self, client: &Client, address: &str, question: &Question) -> (Outcome, Overlays) {
        let started = Instant::now();
        let answer = client.ask(address, question).await;
        let took = started.elapsed();
        match answer {
            Ok(Answer::Laid { partitions, overlays, bytes }) => {
                self.metrics.overlay_fetched("laid", bytes, took);
                (Outcome::Laid(partitions), overlays)
            }
            Ok(Answer::TooOld) => {
                self.metrics.overlay_fetched("too_old", 0, took);
                (Outcome::TooOld, Overlays::new())
            }
            Err(error) => {
                let outcome = match error {
                    AskError::Refused { .. } | AskError::Damaged { .. } => "refused",
                    AskError::Silent { .. } => "silent",
                    AskError::Unreachable(_) => "unreachable",
                };
                self.metrics.overlay_fetched(outcome, 0, took);
                (Outcome::Failed(error.to_string()), Overlays::new())
            }
        }
    }

    /// Tells what is missing, where that has changed.
    fn tell(&self, mut missing: BTreeMap<u32, String>) {
        self.metrics.partitions_behind(missing.len());
        if self.peers.is_none() {
            missing
                .values_mut()
                .for_each(|reason| *reason = "[cluster] secret is not set, so nobody is asked".to_owned());
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == missing {
            return;
        }
        let mut reasons: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (partition, reason) in &missing {
            reasons.entry(reason).or_default().push(*partition);
        }
        for (reason, partitions) in reasons {
            tracing::warn!(?partitions, reason, "queries see these partitions as they are committed");
        }
        if missing.is_empty() {
            tracing::info!("queries see all partitions up to now again");
        }
        *told = missing;
    }
}

/// How new a picture is without what was folded of some partitions.
fn freshness(tables: &BTreeMap<TableName, TableSnapshot>, behind: BTreeSet<u32>) -> Freshness {
    let known = tables.values().flat_map(|table| behind.iter().map(|partition| table.appended_us.get(partition)));
    // Where one is not known, the whole is not.
    let until_us = known.collect::<Option<Vec<&i64>>>().and_then(|times| times.into_iter().min().copied());
    Freshness { behind, until_us }
}

/// Why there is no picture at all.
#[derive(Debug, thiserror::Error)]
enum GatherError {
    #[error(transparent)]
    Log(#[from] crate::log::LogError),
    #[error(transparent)]
    Projector(#[from] ProjectorError),
    #[error(transparent)]
    Lake(#[from] crate::lake::LakeError),
    /// Whoever switches them, or sees that next, completes it.
    #[error("one table is that of a rebuild, and the other is not yet: ask again in a moment")]
    HalfSwitched,
}

#[async_trait]
impl Pictures for Gathering {
    async fn take(&self, tables: &[TableName]) -> Result<Picture, String> {
        self.gather(tables).await.map_err(|error| error.to_string())
    }

    async fn take_past(&self, tables: &[TableName], at: AsOf) -> Result<Picture, QueryError> {
        let mut picture = Picture::default();
        for name in tables {
            let snapshot = self.lake.table(*name).as_of(at).await.map_err(|error| match error {
                LakeError::Past { .. } => QueryError::Past(error.to_string()),
                error => QueryError::Internal(error.to_string()),
            })?;
            picture.tables.insert(*name, TableView::of(&snapshot, Overlay::default()));
        }
        Ok(picture)
    }

    async fn generation(&self, name: &str) -> Result<Option<Kept>, String> {
        self.lake.kept(name).await.map_err(|error| error.to_string())
    }

    async fn generations(&self) -> Result<Vec<String>, String> {
        let generations = self.lake.generations().await.map_err(|error| error.to_string())?;
        Ok(generations.into_iter().map(|generation| generation.name).collect())
    }

    fn partitions(&self) -> u32 {
        self.log.partitions()
    }

    fn schema(&self, table: TableName) -> SchemaRef {
        schema::of(table)
    }

    fn object_store(&self) -> (Url, Arc<dyn ObjectStore>) {
        self.lake.object_store()
    }

    fn location(&self, table: TableName, file: &FileEntry) -> ObjectPath {
        self.lake.location(table, file)
    }
}
