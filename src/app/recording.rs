//! How the gateway records: what it has on this machine for when the log is away.

use super::{AppError, Base, KAFKA};
use crate::config::Unrecordable;
use crate::durable_file;
use crate::gateway::Recording;
use crate::gateway::gap::Gap;
use crate::log::LogError;
use crate::log::kafka::Known;
use crate::log::spill::Spill;

const SPILL: &str = "spill";
const GAP: &str = "gap.json";

/// As the settings say. A spill that holds events of another log is refused: they would go astray.
pub(super) async fn recording(base: &Base) -> Result<Recording, AppError> {
    let settings = &base.config.log;
    Ok(Recording {
        spill: match &base.topic {
            Some(topic) => Some(spill(base, topic).await?),
            None => None,
        },
        gap: Some(Gap::open(base.dir.path.join(GAP))?),
        pass_unrecordable: settings.on_unrecordable == Unrecordable::Pass,
        intent: settings.intent,
    })
}

async fn spill(base: &Base, topic: &Known) -> Result<Spill, AppError> {
    let path = base.dir.path.join(SPILL);
    let spill = Spill::open(&path, base.config.log.spill_size.0, base.clock.clone()).await?;
    let known_path = base.dir.path.join(KAFKA);
    let known: Option<Known> = durable_file::read(&known_path)?;
    let events = spill.level().events;
    if let Some(other) = known.as_ref().filter(|known| known.id != topic.id && events > 0) {
        let path = path.display().to_string();
        return Err(LogError::Spilled { path, events, other: other.id.clone() }.into());
    }
    if known.as_ref() != Some(topic) {
        durable_file::write(&known_path, topic)?;
    }
    Ok(spill)
}
