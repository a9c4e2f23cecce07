//! `COPY … TO STDOUT`: an answer as one stream, in binary, as text or as CSV.

use super::answer;
use super::cancel::Interrupt;
use super::error::{error, state};
use super::types::count;
use super::words::{Kind, Word};
use crate::query::QueryStream;
use bytes::{Buf, BufMut, BytesMut};
use futures::{Sink, SinkExt, StreamExt};
use pgwire::api::portal::Format;
use pgwire::api::results::{QueryResponse, Tag};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::copy::{CopyData, CopyDone, CopyOutResponse};
use pgwire::messages::data::DataRow;

/// The signature, no flags, and no more of a header.
const BINARY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// The form of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Binary,
    Text,
    Csv { header: bool },
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    pub query: String,
    /// The byte of the text that it begins at, where it stands there as it is.
    pub start: Option<usize>,
    pub form: Form,
}

/// What is copied; `None` where it does not go to the client, which the engine has reasons against.
pub fn read(sql: &str, words: &[Word]) -> PgWireResult<Option<Copied>> {
    let Some(to) = words.windows(2).rposition(|pair| pair[0].is("to") && pair[1].is("stdout")) else { return Ok(None) };
    let (what, options) = (&words[1..to], &words[to + 2..]);
    let (Some(first), Some(last)) = (what.first(), what.last()) else { return Ok(None) };
    let (query, start) = match (&first.kind, &last.kind) {
        (Kind::Sign('('), Kind::Sign(')')) => (sql[first.end..last.start].to_owned(), Some(first.end)),
        (_, Kind::Sign(')')) => {
            let open = what.iter().position(|word| word.kind == Kind::Sign('(')).unwrap_or_default();
            let name = &sql[first.start..what[open].start];
            (format!("select {} from {name}", &sql[what[open].end..last.start]), None)
        }
        _ => (format!("select * from {}", &sql[first.start..last.end]), None),
    };
    Ok(Some(Copied { query, start, form: form(options)? }))
}

fn form(options: &[Word]) -> PgWireResult<Form> {
    let values: Vec<&str> = options.iter().filter_map(Word::value).collect();
    let has = |word: &str| values.contains(&word);
    let is_off = values.windows(2).any(|pair| pair[0] == "header" && matches!(pair[1], "false" | "off" | "0"));
    const KNOWN: [&str; 13] =
        ["with", "format", "binary", "text", "csv", "header", "true", "on", "1", "false", "off", "0", "encoding"];
    if let Some(other) = values.iter().find(|value| !KNOWN.contains(value) && !value.eq_ignore_ascii_case("utf8")) {
        return Err(error(state::NOT_SUPPORTED, format!("COPY: the option {other} is not known here")));
    }
    Ok(match () {
        () if has("binary") => Form::Binary,
        () if has("csv") => Form::Csv { header: has("header") && !is_off },
        () => Form::Text,
    })
}

/// An answer on its way.
pub struct Copy {
    form: Form,
    head: BytesMut,
    rows: QueryResponse,
}

impl Copy {
    /// The answer in this form.
    pub fn new(answer: QueryStream, form: Form, interrupt: Interrupt) -> Self {
        let head = match form {
            Form::Binary => BytesMut::from(BINARY_HEAD),
            Form::Csv { header: true } => {
                let names: Vec<String> = answer.schema().fields().iter().map(|field| csv(field.name())).collect();
                BytesMut::from(format!("{}\n", names.join(",")).as_bytes())
            }
            Form::Csv { header: false } | Form::Text => BytesMut::new(),
        };
        let format = if form == Form::Binary { Format::UnifiedBinary } else { Format::UnifiedText };
        Self { form, head, rows: answer::response(answer, None, &format, interrupt) }
    }
}

/// Sends it. The library would tell of an error in a way that clients do not know.
pub async fn send<C>(client: &mut C, copy: Copy) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let Copy { form, head: mut piece, mut rows } = copy;
    let (format, columns) = (i8::from(form == Form::Binary), rows.row_schema().len());
    let response = CopyOutResponse::new(format, count(columns), vec![format.into(); columns]);
    client.feed(PgWireBackendMessage::CopyOutResponse(response)).await?;
    let mut sent = 0;
    while let Some(row) = rows.data_rows().next().await {
        // The head goes with the first row, as PostgreSQL has it.
        put(&row?, form, &mut piece)?;
        client.feed(PgWireBackendMessage::CopyData(CopyData::new(piece.split().freeze()))).await?;
        sent += 1;
    }
    if form == Form::Binary {
        piece.put_i16(-1);
    }
    if !piece.is_empty() {
        client.feed(PgWireBackendMessage::CopyData(CopyData::new(piece.freeze()))).await?;
    }
    client.feed(PgWireBackendMessage::CopyDone(CopyDone::new())).await?;
    let done = Tag::new("COPY").with_rows(sent);
    client.feed(PgWireBackendMessage::CommandComplete(done.into())).await?;
    Ok(())
}

fn put(row: &DataRow, form: Form, line: &mut BytesMut) -> PgWireResult<()> {
    if form == Form::Binary {
        line.put_i16(row.field_count);
        line.put_slice(&row.data);
        return Ok(());
    }
    let mut rest = &row.data[..];
    for column in 0..row.field_count {
        if column > 0 {
            line.put_u8(if form == Form::Text { b'\t' } else { b',' });
        }
        // It was written by ourselves, whole.
        let Ok(length) = usize::try_from(rest.get_i32()) else {
            line.put_slice(if form == Form::Text { "\\N" } else { "" }.as_bytes());
            continue;
        };
        let value = std::str::from_utf8(&rest[..length]).map_err(|_| not_utf8())?;
        let written = if form == Form::Text { escaped(value) } else { csv(value) };
        line.put_slice(written.as_bytes());
        rest.advance(length);
    }
    line.put_u8(b'\n');
    Ok(())
}

fn not_utf8() -> PgWireError {
    error(state::INTERNAL, "a value is not UTF-8")
}

fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c => text.push(c),
        }
    }
    text
}

/// Quoted where it must be, and when it is empty, for nothing at all is NULL.
fn csv(value: &str) -> String {
    let plain = !value.is_empty() && value != "\\." && !value.contains([',', '"', '\n', '\r']);
    if plain { value.to_owned() } else { format!("\"{}\"", value.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::super::words::statements;
    use super::*;

    fn of(sql: &str) -> Option<Copied> {
        read(sql, &statements(sql)[0]).unwrap()
    }

    #[test]
    fn what_goes_to_the_client_is_known() {
        let wanted = |query: &str, start, form| Some(Copied { query: query.to_owned(), start, form });
        let query = wanted("SELECT f(1) AS a", Some(6), Form::Binary);
        assert_eq!(of("COPY (SELECT f(1) AS a) TO STDOUT (FORMAT binary)"), query);
        assert_eq!(of("copy sessions to stdout"), wanted("select * from sessions", None, Form::Text));
        assert_eq!(
            of("COPY public.sessions (account, cost) TO STDOUT WITH CSV HEADER"),
            wanted("select account, cost from public.sessions ", None, Form::Csv { header: true })
        );
        assert_eq!(of("COPY sessions TO '/tmp/x'"), None);
        assert_eq!(of("COPY sessions FROM STDIN"), None);
        assert!(read("copy s to stdout (delimiter '|')", &statements("copy s to stdout (delimiter '|')")[0]).is_err());
    }

    #[test]
    fn rows_are_written_so_that_they_can_be_read() {
        let mut data = BytesMut::new();
        for value in [Some("a\tb\\"), None, Some("c,\"d\""), Some("")] {
            match value {
                Some(value) => {
                    data.put_i32(value.len() as i32);
                    data.put_slice(value.as_bytes());
                }
                None => data.put_i32(-1),
            }
        }
        let row = DataRow::new(data, 4);
        let line = |form| {
            let mut line = BytesMut::new();
            put(&row, form, &mut line).unwrap();
            String::from_utf8(line.to_vec()).unwrap()
        };
        assert_eq!(line(Form::Text), "a\\tb\\\\\t\\N\tc,\"d\"\t\n");
        assert_eq!(line(Form::Csv { header: false }), "a\tb\\,,\"c,\"\"d\"\"\",\"\"\n");
    }
}
