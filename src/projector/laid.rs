//! Rows that are laid over the tables, on their way into Arrow.

use crate::lake::picture::Overlay;
use crate::lake::rows::{MessageRows, SessionRows, message_key, session_key};
use crate::state::overlay::{Laid, LaidRow, OverlayKey, RowId};
use crate::state::split_user_key;
use std::collections::HashSet;

/// Builders for rows of either table.
pub(super) enum Builder {
    Sessions(Box<SessionRows>),
    Messages(Box<MessageRows>),
}

impl Builder {
    pub fn new(table: Laid) -> Self {
        match table {
            Laid::Sessions => Builder::Sessions(Box::default()),
            Laid::Messages => Builder::Messages(Box::default()),
        }
    }

    pub fn push(&mut self, account: &str, user: &str, row: &LaidRow) {
        match (self, row) {
            (Builder::Sessions(rows), LaidRow::Session(row)) => rows.push(account, user, row),
            (Builder::Messages(rows), LaidRow::Message(row)) => rows.push(account, user, row),
            // A row of the other table cannot get here: keys and rows are made and read by table.
            _ => {}
        }
    }

    pub fn finish(self) -> Vec<arrow::array::RecordBatch> {
        let batch = match self {
            Builder::Sessions(rows) => rows.finish(),
            Builder::Messages(rows) => rows.finish(),
        };
        if batch.num_rows() == 0 { Vec::new() } else { vec![batch] }
    }
}

/// Rows that are laid over a table, and the keys they replace.
pub(super) struct LaidRows {
    pub rows: Builder,
    /// `None` where there is no file with a row to replace.
    pub replaced: Option<HashSet<Box<[u8]>>>,
    hours: HashSet<(u32, i64)>,
}

impl LaidRows {
    pub fn new(table: Laid) -> Self {
        Self { rows: Builder::new(table), replaced: Some(HashSet::new()), hours: HashSet::new() }
    }

    /// Where no file has a row yet.
    pub fn over_nothing(table: Laid) -> Self {
        Self { replaced: None, ..Self::new(table) }
    }

    pub fn add(&mut self, key: &OverlayKey, row: &LaidRow) {
        let Some((account, user)) = split_user_key(&key.user) else { return };
        self.hours.insert((key.partition, key.hour));
        if let Some(replaced) = &mut self.replaced {
            replaced.insert(match key.id {
                RowId::Session(id) => session_key(&id),
                RowId::Message(token) => message_key(account, user, token),
            });
        }
        self.rows.push(account, user, row);
    }

    /// What is to be laid over the table's files.
    pub fn finish(self) -> Overlay {
        Overlay { rows: self.rows.finish(), replaced: self.replaced.unwrap_or_default(), hours: self.hours }
    }
}
