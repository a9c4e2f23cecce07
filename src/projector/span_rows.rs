//! Rows of one partition on their way into new files of `sessions` and `messages`, each file one [`Span`].
//!
//! Rows come user by user, files are written when all of them are there. What memory does not hold rests in one temporary
//! file meanwhile.

use super::ProjectorError;
use crate::lake::bucket::Span;
use crate::lake::rows::{MessageRows, SessionRows};
use crate::lake::{FileEntry, Table, TableName};
use crate::session::row::{MessageRow, SessionRow};
use crate::state::split_user_key;
use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use futures::stream::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// So many rows are in memory: about 80 MB. Few in unit tests, whose histories are short.
const ROWS_IN_MEMORY: usize = if cfg!(test) { 64 } else { 200_000 };
/// Files written at the same time.
const SIDE_BY_SIDE: usize = 2;

/// A row and the user it is of, as [`crate::state::user_key`] names it.
type RowOf<R> = (Arc<[u8]>, R);

/// Rows of either table, by span.
pub(super) struct SpanRows {
    dir: PathBuf,
    sessions: BTreeMap<Span, Vec<RowOf<SessionRow>>>,
    messages: BTreeMap<Span, Vec<RowOf<MessageRow>>>,
    rows: usize,
    resting: Option<Resting>,
}

/// What rests in the temporary file.
struct Resting {
    file: File,
    end: u64,
    /// Where the rows of a span lie, in the order they came: start and length in bytes.
    runs: BTreeMap<(TableName, Span), Vec<(u64, usize)>>,
}

impl SpanRows {
    /// None yet. The temporary file is made in `dir`.
    pub fn new(dir: &Path) -> Self {
        let (sessions, messages) = Default::default();
        Self { dir: dir.to_owned(), sessions, messages, rows: 0, resting: None }
    }

    pub fn session(&mut self, span: Span, user: &Arc<[u8]>, row: SessionRow) {
        self.sessions.entry(span).or_default().push((user.clone(), row));
        self.rows += 1;
    }

    pub fn message(&mut self, span: Span, user: &Arc<[u8]>, row: MessageRow) {
        self.messages.entry(span).or_default().push((user.clone(), row));
        self.rows += 1;
    }

    /// Makes room where there are many in memory. Blocks.
    pub fn make_room(&mut self) -> Result<(), ProjectorError> {
        if self.rows < ROWS_IN_MEMORY {
            return Ok(());
        }
        let failed = |error: std::io::Error| super::recover::io(&self.dir, &error);
        let mut resting = match self.resting.take() {
            Some(resting) => resting,
            None => Resting { file: tempfile::tempfile_in(&self.dir).map_err(failed)?, end: 0, runs: BTreeMap::new() },
        };
        for (span, rows) in std::mem::take(&mut self.sessions) {
            resting.add(TableName::Sessions, span, &sessions(&rows)).map_err(failed)?;
        }
        for (span, rows) in std::mem::take(&mut self.messages) {
            resting.add(TableName::Messages, span, &messages(&rows)).map_err(failed)?;
        }
        self.rows = 0;
        self.resting = Some(resting);
        Ok(())
    }

    /// Writes all rows of a table as files of it, each in the order its rows came.
    pub async fn write(&mut self, table: &Table) -> Result<Vec<FileEntry>, ProjectorError> {
        let name = table.name();
        let mut last = match name {
            TableName::Sessions => Last::Sessions(std::mem::take(&mut self.sessions)),
            _ => Last::Messages(std::mem::take(&mut self.messages)),
        };
        let mut spans = last.spans();
        if let Some(resting) = &self.resting {
            spans.extend(resting.runs.keys().filter(|(of, _)| *of == name).map(|(_, span)| *span));
            spans.sort_unstable();
            spans.dedup();
        }
        let (resting, dir) = (&self.resting, &self.dir);
        let files = spans.into_iter().map(|span| {
            let last = last.take(span);
            async move {
                let read = || resting.as_ref().map_or(Ok(Vec::new()), |resting| resting.read(name, span));
                let mut batches = tokio::task::block_in_place(read).map_err(|error| super::recover::io(dir, &error))?;
                batches.extend(tokio::task::block_in_place(last));
                Ok::<_, ProjectorError>(table.write(Some(span), None, batches).await?)
            }
        });
        futures::stream::iter(files).buffer_unordered(SIDE_BY_SIDE).try_collect().await
    }
}

/// Rows of one table that are in memory, by span.
enum Last {
    Sessions(BTreeMap<Span, Vec<RowOf<SessionRow>>>),
    Messages(BTreeMap<Span, Vec<RowOf<MessageRow>>>),
}

impl Last {
    fn spans(&self) -> Vec<Span> {
        match self {
            Last::Sessions(rows) => rows.keys().copied().collect(),
            Last::Messages(rows) => rows.keys().copied().collect(),
        }
    }

    /// Takes out the rows of a span; called, it makes a batch of them.
    fn take(&mut self, span: Span) -> impl FnOnce() -> Option<RecordBatch> + use<> {
        let (mut of_sessions, mut of_messages) = (None, None);
        match self {
            Last::Sessions(rows) => of_sessions = rows.remove(&span),
            Last::Messages(rows) => of_messages = rows.remove(&span),
        }
        move || of_sessions.map(|rows| sessions(&rows)).or_else(|| of_messages.map(|rows| messages(&rows)))
    }
}

fn sessions(rows: &[RowOf<SessionRow>]) -> RecordBatch {
    let mut built = SessionRows::default();
    for (key, row) in rows {
        if let Some((account, user)) = split_user_key(key) {
            built.push(account, user, row);
        }
    }
    built.finish()
}

fn messages(rows: &[RowOf<MessageRow>]) -> RecordBatch {
    let mut built = MessageRows::default();
    for (key, row) in rows {
        if let Some((account, user)) = split_user_key(key) {
            built.push(account, user, row);
        }
    }
    built.finish()
}

impl Resting {
    fn add(&mut self, name: TableName, span: Span, rows: &RecordBatch) -> std::io::Result<()> {
        let written = StreamWriter::try_new(Vec::new(), &rows.schema()).and_then(|mut writer| {
            writer.write(rows)?;
            writer.into_inner()
        });
        let bytes = written.map_err(std::io::Error::other)?;
        self.file.write_all_at(&bytes, self.end)?;
        self.runs.entry((name, span)).or_default().push((self.end, bytes.len()));
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn read(&self, name: TableName, span: Span) -> std::io::Result<Vec<RecordBatch>> {
        let mut batches = Vec::new();
        for (start, length) in self.runs.get(&(name, span)).into_iter().flatten() {
            let mut bytes = vec![0; *length];
            self.file.read_exact_at(&mut bytes, *start)?;
            let reader = StreamReader::try_new(bytes.as_slice(), None).map_err(std::io::Error::other)?;
            for batch in reader {
                batches.push(batch.map_err(std::io::Error::other)?);
            }
        }
        Ok(batches)
    }
}
