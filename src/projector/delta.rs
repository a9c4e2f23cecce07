//! What one folded batch changed.

use super::feed::Change;
use crate::metrics::Tally;
use crate::state::overlay::{LaidRow, OverlayKey};
use arrow::array::RecordBatch;

/// A row to be laid over the tables.
#[derive(Debug, Clone)]
pub(super) struct Laying {
    pub key: OverlayKey,
    pub row: LaidRow,
    /// Whether the row was not there before.
    pub fresh: bool,
}

/// What one batch of a partition gave. Visible to queries as a whole.
pub(super) struct Delta {
    pub partition: u32,
    /// The next offset to fold after it.
    pub position: u64,
    pub watermark_ms: Option<i64>,
    /// Its rows for `events`.
    pub events: Option<RecordBatch>,
    pub rows: Vec<Laying>,
    pub tally: Tally,
    /// What became of sessions; `None` where the fold is not to tell.
    pub changes: Option<Vec<Change>>,
}
