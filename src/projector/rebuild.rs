//! `rebuild`: refolds every archived event, of any age, into new tables and a new state, and switches to them at once.

use super::buckets::Buckets;
use super::recover::{Plan, io, move_into_place, rebuilt_dir, remove, replay};
use super::{ProjectorError, Settings};
use crate::lake::{Change, Lake, TableName};
use crate::state::{Meta, State};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What a rebuild tells while it runs.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// Events refolded, of how many.
    Folding { done: u64, total: u64 },
    /// The new tables are being written.
    Writing,
    /// The new tables take the place of the old.
    Switching,
}

/// Refolds `events` into `sessions`, `messages` and the state. Nothing may run on the data directory meanwhile. Until the
/// switch the old tables and state stay as they are; a switch that is interrupted is completed by the next start.
pub async fn rebuild(
    lake: &Arc<Lake>,
    data_dir: &Path,
    settings: Settings,
    tell: impl Fn(Progress) + Sync,
) -> Result<(), ProjectorError> {
    finish_switch(lake, data_dir).await?;
    let positions = lake.table(TableName::Events).snapshot().positions;
    let settings = Arc::new(any_age(lake, &settings, &positions).await?);
    let dir = rebuilt_dir(data_dir);
    remove(&dir)?;
    let state = State::open(&dir, settings.state_bytes())?;
    let plan = Plan { settings: settings.clone(), before: None };
    let mut meta = replay(lake, &state, &plan, &|done, total| tell(Progress::Folding { done, total })).await?;
    tell(Progress::Writing);
    let name = format!("{:x}", (settings.clock)());
    let generation = Arc::new(lake.generation(&name).await?);
    let written = write(&generation, &state, &settings, &meta).await;
    // The state is one that the new tables can be gone on with.
    let rebuild = i64::from_str_radix(&name, 16).unwrap_or(1);
    meta.partitions.iter_mut().for_each(|mark| mark.rebuild = rebuild);
    let mut batch = state.batch();
    batch.set_meta(&meta);
    let written = written.and_then(|()| Ok(batch.commit()?));
    drop(state);
    if let Err(error) = written {
        // What is left of it is deleted with other files that nobody committed, if it cannot be now.
        let _ = lake.drop_generation(&name).await;
        return Err(error);
    }
    tell(Progress::Switching);
    let marker = data_dir.join(MARKER);
    std::fs::write(&marker, &name)
        .and_then(|()| std::fs::File::open(&marker)?.sync_all())
        .and_then(|()| std::fs::File::open(data_dir)?.sync_all())
        .map_err(|error| io(&marker, &error))?;
    finish_switch(lake, data_dir).await
}

/// Its presence says that the generation it names, and the state beside it, are complete.
const MARKER: &str = "state.switch";

/// The terms under which no event archived before these positions is too late.
pub(super) async fn any_age(
    lake: &Lake,
    settings: &Settings,
    before: &BTreeMap<u32, u64>,
) -> Result<Settings, ProjectorError> {
    let mut settings = Settings { any_age: true, ..settings.clone() };
    for (partition, before) in before {
        let widest_ms = lake.widest_lateness(*partition, *before).await?;
        settings.lateness_ms = settings.lateness_ms.map(|lateness_ms| lateness_ms.max(widest_ms.saturating_add(1)));
    }
    Ok(settings)
}

/// Writes all rows of the state into the generation's tables.
async fn write(generation: &Lake, state: &State, settings: &Settings, meta: &Meta) -> Result<(), ProjectorError> {
    let mut buckets = Buckets::new(settings);
    let watermarks: BTreeMap<u32, Option<i64>> =
        (0u32..).zip(&meta.partitions).map(|(partition, mark)| (partition, mark.watermark_ms)).collect();
    for name in [TableName::Messages, TableName::Sessions] {
        let mut more = true;
        while more {
            let rewrite = buckets.rewrite(name, generation, state, &watermarks, true).await?;
            // The last one is committed even without a row: it says how far the rebuild went.
            let rewrite = rewrite.unwrap_or_default();
            more = rewrite.more;
            let positions = (0u32..).zip(&meta.partitions).map(|(p, mark)| (p, (None, mark.position)));
            let change = Change {
                add: rewrite.add,
                remove: rewrite.remove,
                positions: if more { BTreeMap::new() } else { positions.collect() },
                operation: "rebuild",
                ..Change::default()
            };
            generation.table(name).commit(change).await?;
            state.lift(&rewrite.keys)?;
        }
    }
    Ok(())
}

/// Completes a switch that was begun; does nothing when there is none. Safe to repeat.
pub async fn finish_switch(lake: &Lake, data_dir: &Path) -> Result<(), ProjectorError> {
    let marker = data_dir.join(MARKER);
    let name = match std::fs::read_to_string(&marker) {
        Ok(name) => name,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(&marker, &error).into()),
    };
    lake.adopt(&name).await?;
    let (new, state) = (rebuilt_dir(data_dir), data_dir.join("state"));
    if new.exists() {
        remove(&state)?;
        move_into_place(&new, &state)?;
    }
    std::fs::remove_file(&marker).map_err(|error| io(&marker, &error))?;
    Ok(())
}
