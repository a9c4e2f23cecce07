//! Runs of the projector: on what is this process's, from what is durable until something ends it.
//!
//! A run has the same partitions from its beginning to its end. When others come or go, it commits and ends, and the next
//! one has what is this process's then.

use super::buckets::Buckets;
use super::commit::{CommitPoint, Committer, Request};
use super::folding::{Folding, on_own_thread};
use super::live::{Live, PartitionStatus, Status};
use super::past::Ground;
use super::rebuild::{Pause, finish_switch};
use super::recover::note_made_under;
use super::switch::{settle_shared, switch_under_way};
use super::takeover::{TakeOver, Taken};
use super::worker::{Source, Worker};
use super::{Parts, ProjectorError, Settings, recover};
use crate::database_dir::is_in_use;
use crate::lake::{Lake, Stage, Switch, TableName};
use crate::log::{Assignment, Group, LogError};
use crate::state::{FORMAT, Meta, PartitionMark, State, StateError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustc_hash::FxHashSet;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};

/// How a run ended well.
enum Ended {
    /// It was told to stop.
    Stopped,
    /// Other partitions are this process's now.
    Reassigned,
    /// Something is to be done while none runs.
    Paused(Pause),
}

/// How often it is looked whether a switch of the tables is over.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 500 });

/// What the projector is asked for.
pub(super) struct Inbox {
    pub requests: mpsc::Receiver<Request>,
    pub pauses: mpsc::Receiver<Pause>,
}

/// The processes that share the log with this one, and what is this one's.
struct Shared {
    group: Arc<dyn Group>,
    assignment: watch::Receiver<Assignment>,
}

/// Runs, and runs again after what may pass; waits for somebody after what will not.
pub(super) async fn supervise(mut parts: Parts, live: Arc<Live>, mut inbox: Inbox) -> Result<(), ProjectorError> {
    const PAUSE: Duration = Duration::from_millis(200);
    let mut pause = PAUSE;
    let mut shared = None;
    loop {
        let error = match turn(&parts, &live, &mut inbox, &mut shared).await {
            Ok(Ended::Stopped) => return Ok(()),
            Ok(Ended::Reassigned) => {
                let joining = Status { joining: true, ..live.status() };
                live.clear(joining);
                pause = PAUSE;
                continue;
            }
            Ok(Ended::Paused(work)) => {
                live.clear(resting(&live));
                work().await;
                continue;
            }
            Err(ProjectorError::State(StateError::Damaged { path, reason })) => {
                tracing::warn!(%path, %reason, "the state is damaged and is rebuilt from events");
                recover::discard(&parts.data_dir)?;
                continue;
            }
            Err(error) => error,
        };
        if shared.is_some() && error.is_of_a_takeover() && switch_under_way(&parts.lake).await {
            tracing::debug!(%error, "waiting for the switch of the tables");
            live.clear(resting(&live));
            let mut stop = parts.stop.clone();
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                // The switch itself, where it was broken off and is made anew.
                Some(work) = inbox.pauses.recv() => work().await,
                () = told(&mut stop) => return Ok(()),
            }
            continue;
        }
        if matches!(error, ProjectorError::TakenOver) && !*parts.stop.borrow() {
            tracing::info!("{error}: looking anew which are this process's");
            live.clear(Status { joining: true, ..live.status() });
            continue;
        }
        if *parts.stop.borrow() {
            if shared.is_some() && error.is_transient() {
                tracing::warn!(%error, "what was folded last is left to the others");
                return Ok(());
            }
            return Err(error);
        }
        let stopped = !error.is_transient();
        let text = error.to_string();
        tracing::error!(error = %text, retry = !stopped, "the projector has stopped");
        if matches!(error, ProjectorError::Log(LogError::Stuck { .. })) {
            // Whatever waits for that client waits for ever; the next run has a new one.
            shared = None;
        }
        if stopped {
            live.update(|status| (status.error, status.stopped) = (Some(text), true));
        } else {
            // The next run opens the state anew, which it can only once nobody has it. Until then nothing counts as
            // folded, so queries wait rather than see tables without their overlay.
            let joining = Status { error: Some(text), joining: true, ..live.status() };
            live.clear(joining);
        }
        let wait = async { if stopped { std::future::pending().await } else { tokio::time::sleep(pause).await } };
        tokio::select! {
            () = wait => {}
            _ = parts.stop.wait_for(|stop| *stop) => return Err(error),
        }
        pause = (pause * 2).min(Duration::from_secs(5));
        parts.lake.refresh().await.unwrap_or_else(|error| tracing::debug!(%error, "the tables are not readable yet"));
    }
}

/// The status while tables are switched. Until the next run queries wait: they see the tables as before, or as they are
/// made meanwhile.
fn resting(live: &Live) -> Status {
    let what = Some("the tables of a rebuild take the place of the old ones".to_owned());
    Status { joining: true, recovering: what, ..live.status() }
}

/// One run, on what is this process's.
async fn turn(
    parts: &Parts,
    live: &Arc<Live>,
    inbox: &mut Inbox,
    shared: &mut Option<Shared>,
) -> Result<Ended, ProjectorError> {
    // What is half switched is of no use to a run.
    finish_switch(&parts.lake, &parts.data_dir, (parts.settings.clock)()).await?;
    if shared.is_none()
        && let Some(group) = parts.log.join(&parts.instance).await?
    {
        *shared = Some(Shared { assignment: group.assignment(), group });
    }
    let Some(Shared { group, assignment }) = shared else {
        let all = (0..parts.settings.partitions).collect::<Vec<_>>();
        return run(parts, live, inbox, &all, None).await;
    };
    let now = assignment.borrow_and_update().clone();
    group.enter(now.number);
    live.assigned(&now);
    settle_shared(&parts.lake, &parts.data_dir, (parts.settings.clock)()).await?;
    if now.partitions.is_empty() {
        parts.lake.release();
        parts.settings.metrics.set_rebuild_needed(false);
        let joining = Status { joining: now.number == 0, ..foreign(parts) };
        live.clear(joining);
        return idle(parts, live, inbox, assignment).await;
    }
    let (group, mut moved) = (group.clone(), assignment.clone());
    let lost = async move {
        // The sender lives as long as the group.
        while moved.changed().await.is_ok() {
            if moved.borrow().lost > now.number {
                return;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = run(parts, live, inbox, &now.partitions, Some((group, assignment))) => ended,
        () = lost => Err(ProjectorError::Lost),
    }
}

/// The status of a process that folds nothing now.
fn foreign(parts: &Parts) -> Status {
    let events = parts.lake.table(TableName::Events).snapshot();
    let partition = |partition: u32| {
        let position = events.positions.get(&partition).copied().unwrap_or(0);
        let watermark_ms = events.watermarks.get(&partition).copied();
        PartitionStatus { folded: position, archived: position, log_end: position, watermark_ms, ..Default::default() }
    };
    Status { partitions: (0..parts.settings.partitions).map(partition).collect(), ..Status::default() }
}

/// Waits for partitions, and shows meanwhile what others commit.
async fn idle(
    parts: &Parts,
    live: &Live,
    inbox: &mut Inbox,
    assignment: &mut watch::Receiver<Assignment>,
) -> Result<Ended, ProjectorError> {
    let mut stop = parts.stop.clone();
    loop {
        tokio::select! {
            () = changed(Some(&mut *assignment)) => return Ok(Ended::Reassigned),
            () = told(&mut stop) => return Ok(Ended::Stopped),
            Some(work) = inbox.pauses.recv() => return Ok(Ended::Paused(work)),
            Some(request) = inbox.requests.recv() => {
                // Nothing of this process waits to be committed. The one who asked may have gone.
                let _ = request.done.send(CommitPoint::default());
            }
            () = tokio::time::sleep(parts.settings.commit_every) => {
                parts.lake.refresh().await?;
                live.update(|status| status.partitions = foreign(parts).partitions);
            }
        }
    }
}

type Sharing<'a> = Option<(Arc<dyn Group>, &'a mut watch::Receiver<Assignment>)>;

/// One run, from what is durable until stop, a change of the assignment, or failure.
async fn run(
    parts: &Parts,
    live: &Arc<Live>,
    inbox: &mut Inbox,
    partitions: &[u32],
    mut sharing: Sharing<'_>,
) -> Result<Ended, ProjectorError> {
    let settings = &parts.settings;
    if let Some(theirs) = parts.lake.table(TableName::Events).foreign_log() {
        return Err(ProjectorError::OtherLog { what: "the events table", ours: settings.log_id.clone(), theirs });
    }
    let (state, Taken { meta, refused }) = match &mut sharing {
        Some((group, assignment)) => {
            let mut stop = parts.stop.clone();
            // What is half taken over is taken over anew by whoever comes next.
            tokio::select! {
                taken = taken_over(parts, live, &**group, partitions) => taken?,
                () = changed(Some(&mut *assignment)) => return Ok(Ended::Reassigned),
                () = told(&mut stop) => return Ok(Ended::Stopped),
            }
        }
        None => own_state(parts, live).await?,
    };
    // An error counts until something was committed again.
    let Status { error, committed_us, .. } = live.status();
    let mut status = Status { error, committed_us, ..foreign(parts) };
    for partition in partitions {
        let mark = &meta.partitions[*partition as usize];
        status.partitions[*partition as usize] = PartitionStatus {
            folded: mark.position,
            archived: mark.position,
            log_end: mark.position,
            watermark_ms: mark.watermark_ms,
            owned: true,
            is_outdated: mark.is_outdated,
            error: refused.get(partition).map(ToString::to_string),
        };
    }
    settings.metrics.set_rebuild_needed(status.is_outdated());
    live.reset(state.clone(), ground(&parts.lake, sharing.is_some()), status);
    let open = partitions.iter().flat_map(|partition| &meta.partitions[*partition as usize].open);
    settings.metrics.set_sessions_open(open.map(|(account, kind, n)| (account.as_str(), *kind, *n)));
    let partitions: Vec<u32> = partitions.iter().copied().filter(|own| !refused.contains_key(own)).collect();
    drive(parts, live, inbox, state, meta, &partitions, sharing).await
}

/// The tables as a run finds them.
fn ground(lake: &Lake, is_shared: bool) -> Ground {
    let mut ground = Ground { is_shared, ..Ground::default() };
    for name in TableName::ALL {
        let table = lake.table(name);
        ground.held.insert(name, table.held());
        ground.versions.insert(name, table.snapshot().version);
    }
    ground.archived = lake.table(TableName::Events).snapshot().positions;
    ground
}

/// The state of a process that has the log to itself.
async fn own_state(parts: &Parts, live: &Arc<Live>) -> Result<(State, Taken), ProjectorError> {
    let settings = &parts.settings;
    let dir = parts.data_dir.join("state");
    let archived = parts.lake.table(TableName::Events).snapshot();
    let (mut state, mut meta) = open_state(&dir, settings).await?;
    let ahead = |meta: &Meta| {
        (0u32..).zip(&meta.partitions).any(|(p, mark)| mark.position > archived.positions.get(&p).copied().unwrap_or(0))
    };
    let lost = meta.is_none() && archived.positions.values().any(|position| *position > 0);
    if lost || meta.as_ref().is_some_and(ahead) {
        drop(state);
        recover::discard(&parts.data_dir)?;
        recover::recover(parts, live).await?;
        (state, meta) = open_state(&dir, settings).await?;
    }
    let mut meta = meta.unwrap_or_else(|| new_meta(settings));
    if meta.log_id != settings.log_id {
        let theirs = std::mem::take(&mut meta.log_id);
        return Err(ProjectorError::OtherLog { what: "the state", ours: settings.log_id.clone(), theirs });
    }
    meta.partitions.resize(settings.partitions as usize, PartitionMark::default());
    go_by(&mut meta, settings);
    note_made_under(&parts.data_dir, &meta).map_err(super::rebuild::told)?;
    Ok((state, Taken { meta, refused: BTreeMap::new() }))
}

/// From here on rows are made under the settings of now.
fn go_by(meta: &mut Meta, settings: &Settings) {
    let changed = meta.go_by(settings.describe_policies());
    if !changed.is_empty() {
        tracing::warn!(
            accounts = changed.join(", "),
            "policies or prices were changed for times that are folded already: these rows stay as they are until \
             `counterbat rebuild`"
        );
    }
}

/// The state of partitions that others may have had before.
async fn taken_over(
    parts: &Parts,
    live: &Arc<Live>,
    group: &dyn Group,
    partitions: &[u32],
) -> Result<(State, Taken), ProjectorError> {
    let settings = &parts.settings;
    if let Some(newest) = &settings.newest_policies {
        // The accounts of what is folded from the archive were known when it came in.
        newest().await?;
    }
    parts.lake.claim(partitions).await?;
    // One that was begun before the claim, and has been looked for before that.
    if let Some(Switch { stage: Stage::Begun | Stage::Decided, maker, .. }) = parts.lake.switch().await?.switch {
        return Err(ProjectorError::Switching { maker });
    }
    let (state, meta) = open_state(&parts.data_dir.join("state"), settings).await?;
    // What another log has left here is of no use, and all of this one is to be had elsewhere.
    let meta = meta.filter(|meta| meta.log_id == settings.log_id).unwrap_or_else(|| new_meta(settings));
    let mut meta = Meta { format: FORMAT, ..meta };
    meta.partitions.resize(settings.partitions as usize, PartitionMark::default());
    go_by(&mut meta, settings);
    parts.lake.refresh().await?;
    let rebuild = parts.lake.rebuild();
    let taking = TakeOver { parts, live, group, state: state.clone(), meta: Mutex::new(meta), rebuild };
    let taken = taking.run(partitions).await?;
    Ok((state, taken))
}

fn new_meta(settings: &Settings) -> Meta {
    Meta { format: FORMAT, log_id: settings.log_id.clone(), ..Meta::default() }
}

/// Opens the state once the run and the queries before have let go of it.
pub(super) async fn open_state(dir: &Path, settings: &Settings) -> Result<(State, Option<Meta>), ProjectorError> {
    wait_free(dir).await?;
    let state = State::open(dir, settings.state_bytes())?;
    let meta = state.meta()?;
    Ok((state, meta))
}

/// Waits until nobody has a state open any more: queries may, for what they have been told.
pub(super) async fn wait_free(dir: &Path) -> Result<(), ProjectorError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let began = Instant::now();
    while is_in_use(dir).map_err(|error| recover::io(dir, &error))? {
        if began.elapsed() >= PATIENCE {
            return Err(StateError::Busy { path: dir.display().to_string() }.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Starts the tasks and waits for the first to fail, or for all to end.
async fn drive(
    parts: &Parts,
    live: &Arc<Live>,
    inbox: &mut Inbox,
    state: State,
    meta: Meta,
    partitions: &[u32],
    sharing: Sharing<'_>,
) -> Result<Ended, ProjectorError> {
    let (halt, halted) = watch::channel(false);
    let archived = parts.lake.table(TableName::Events).snapshot().positions;
    let flush_wanted = Arc::new(Notify::new());
    let mut tasks = FuturesUnordered::new();
    let mut workers = BTreeMap::new();
    for &partition in partitions {
        let mark = meta.partitions[partition as usize].clone();
        let worker = Worker::new(partition, parts.settings.clone(), state.clone(), mark);
        let (sender, commands) = mpsc::channel(4);
        let (looker, looks) = mpsc::channel(64);
        workers.insert(partition, sender);
        live.look_through(partition, looker);
        let archive_from = archived.get(&partition).copied().unwrap_or(0);
        let fold = Folding {
            partition,
            worker,
            commands,
            looks,
            log: parts.log.clone(),
            live: live.clone(),
            settings: parts.settings.clone(),
            flush_wanted: flush_wanted.clone(),
            source: Source::Log { archive_from },
            met: FxHashSet::default(),
        };
        tasks.push(on_own_thread(partition, fold.run(halted.clone()))?);
    }
    let (group, mut moved) = sharing.unzip();
    let committer = Committer {
        settings: parts.settings.clone(),
        lake: parts.lake.clone(),
        buckets: Buckets::new(&parts.settings),
        live: live.clone(),
        lifted: Vec::new(),
        state,
        meta,
        group,
        workers,
        flush_wanted,
    };
    let mut stop = parts.stop.clone();
    let mut ended = None;
    let Inbox { requests, pauses } = inbox;
    let result = {
        let committing = committer.run(requests, halted);
        tokio::pin!(committing);
        loop {
            tokio::select! {
                result = &mut committing => break result,
                () = told(&mut stop), if ended.is_none() => ended = Some(Ended::Stopped),
                () = changed(moved.as_deref_mut()), if ended.is_none() => ended = Some(Ended::Reassigned),
                Some(work) = pauses.recv(), if ended.is_none() => ended = Some(Ended::Paused(work)),
                // A thread ends well only when the committer is gone; one that panics is a bug whose text is on stderr
                // already.
                Some(fold) = tasks.next() => {
                    break fold.unwrap_or_else(|_| Err(ProjectorError::Halted("a fold has panicked".into())));
                }
            }
            // The committer listens: it is polled next.
            let _ = halt.send(ended.is_some());
        }
    };
    // The committer is gone, so the threads end; the next run needs the state for itself.
    while tasks.next().await.is_some() {}
    result.map(|()| ended.unwrap_or(Ended::Stopped))
}

/// Waits until it is time to end. Who could tell goes away only then.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Waits until the assignment is another one; for ever where there is none.
async fn changed(assignment: Option<&mut watch::Receiver<Assignment>>) {
    if let Some(assignment) = assignment
        && assignment.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
