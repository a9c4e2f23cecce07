//! What a statement wants: an answer of the engine, or something of the session.

use super::copy::{self, Copied};
use super::error::{error, state};
use super::words::{Kind, Word};
use pgwire::error::PgWireResult;

/// What a statement wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// An answer of the engine, or a reason why there is none.
    Query,
    Begin,
    Commit,
    Rollback,
    RollbackToSavepoint,
    /// `SAVEPOINT` and `RELEASE`: there is nothing to be saved.
    Savepoint(&'static str),
    Set {
        name: String,
        value: Option<String>,
    },
    /// What a transaction is to be: none writes.
    SetTransaction,
    Show(String),
    /// All where it has no name.
    Reset(Option<String>),
    Discard,
    /// All where it has no name.
    Deallocate(Option<String>),
    Unlisten,
    /// The query is what begins at this byte of the text.
    Declare {
        name: String,
        query: usize,
        holds: bool,
    },
    /// As many rows as there are where it has no number; passed over where they are not wanted.
    Fetch {
        cursor: String,
        rows: Option<usize>,
        wanted: bool,
    },
    /// All where it has no name.
    Close(Option<String>),
    /// To the client.
    Copy(Copied),
}

impl Command {
    /// What a statement of these words, in this text, wants.
    pub fn of(sql: &str, words: &[Word]) -> PgWireResult<Self> {
        let Some(Kind::Plain(verb)) = words.first().map(|word| &word.kind) else { return Ok(Command::Query) };
        let rest = &words[1..];
        let has = |word: &str| rest.iter().any(|own| own.is(word));
        Ok(match verb.as_str() {
            "begin" | "start" => Command::Begin,
            "commit" | "end" => Command::Commit,
            "rollback" | "abort" if has("to") => Command::RollbackToSavepoint,
            "rollback" | "abort" => Command::Rollback,
            "savepoint" => Command::Savepoint("SAVEPOINT"),
            "release" => Command::Savepoint("RELEASE"),
            "set" => set(rest)?,
            "show" if rest.first().is_some_and(|what| ["tables", "columns"].iter().any(|known| what.is(known))) => {
                Command::Query
            }
            "show" => Command::Show(setting(rest)?),
            "reset" => Command::Reset(Some(setting(rest)?).filter(|name| name != "all")),
            "discard" => Command::Discard,
            "deallocate" => Command::Deallocate(all_or(rest.iter().find(|word| !word.is("prepare")))?),
            "unlisten" => Command::Unlisten,
            "declare" => declare(rest)?,
            "fetch" | "move" => fetch(rest, verb == "fetch")?,
            "close" => Command::Close(all_or(rest.first())?),
            "copy" => match copy::read(sql, words)? {
                Some(copied) => Command::Copy(copied),
                None => Command::Query,
            },
            _ => Command::Query,
        })
    }
}

fn malformed(verb: &str) -> pgwire::error::PgWireError {
    error(state::SYNTAX, format!("{verb}: this form of it is not known"))
}

fn all_or(word: Option<&Word>) -> PgWireResult<Option<String>> {
    let word = word.ok_or_else(|| malformed("CLOSE or DEALLOCATE"))?;
    if word.is("all") { Ok(None) } else { Ok(word.name().map(str::to_owned)) }
}

/// The name of a setting, which may be several words.
fn setting(words: &[Word]) -> PgWireResult<String> {
    let words: Vec<&str> = words.iter().filter_map(Word::name).collect();
    match words.as_slice() {
        ["time", "zone", ..] => Ok("timezone".to_owned()),
        ["transaction", "isolation", "level"] => Ok("transaction_isolation".to_owned()),
        ["session", "authorization"] => Ok("session_authorization".to_owned()),
        [_, ..] => Ok(words.join(".")),
        [] => Err(malformed("SHOW or RESET")),
    }
}

fn set(words: &[Word]) -> PgWireResult<Command> {
    let malformed = || malformed("SET");
    let words = match words.first() {
        Some(first) if first.is("session") && words.get(1).is_some_and(|next| next.is("characteristics")) => {
            return Ok(Command::SetTransaction);
        }
        Some(first) if first.is("session") || first.is("local") => &words[1..],
        _ => words,
    };
    let first = words.first().ok_or_else(malformed)?;
    if first.is("transaction") {
        return Ok(Command::SetTransaction);
    }
    let value = |words: &[Word]| {
        let values: Vec<&str> = words.iter().filter_map(Word::value).collect();
        let value = values.join(", ");
        (value != "default").then_some(value)
    };
    if first.is("time") && words.get(1).is_some_and(|next| next.is("zone")) {
        return Ok(Command::Set { name: "timezone".to_owned(), value: value(&words[2..]) });
    }
    if first.is("names") {
        return Ok(Command::Set { name: "client_encoding".to_owned(), value: value(&words[1..]) });
    }
    let sign = words.iter().position(|word| word.is("to") || word.kind == Kind::Sign('=')).ok_or_else(malformed)?;
    if words.len() == sign + 1 {
        return Err(malformed());
    }
    Ok(Command::Set { name: setting(&words[..sign])?, value: value(&words[sign + 1..]) })
}

fn declare(words: &[Word]) -> PgWireResult<Command> {
    let malformed = || malformed("DECLARE");
    let name = words.first().and_then(Word::name).ok_or_else(malformed)?.to_owned();
    let cursor = words.iter().position(|word| word.is("cursor")).ok_or_else(malformed)?;
    let after = &words[cursor + 1..];
    let until = after.iter().position(|word| word.is("for")).ok_or_else(malformed)?;
    let query = after.get(until + 1).ok_or_else(malformed)?.start;
    let holds = after[..until].iter().any(|word| word.is("with"));
    if words[1..cursor].iter().any(|word| word.is("scroll")) && !words[1..cursor].iter().any(|word| word.is("no")) {
        return Err(error(state::NOT_SUPPORTED, "a cursor goes forward only here: declare it without SCROLL"));
    }
    Ok(Command::Declare { name, query, holds })
}

fn fetch(words: &[Word], wanted: bool) -> PgWireResult<Command> {
    let malformed = || malformed("FETCH");
    let (last, direction) = words.split_last().ok_or_else(malformed)?;
    let cursor = last.name().ok_or_else(malformed)?.to_owned();
    let direction: Vec<&str> =
        direction.iter().filter(|word| !word.is("from") && !word.is("in")).filter_map(Word::value).collect();
    if words.iter().any(|word| word.kind == Kind::Sign('-')) {
        return Err(error(state::NOT_SUPPORTED, "a cursor goes forward only here"));
    }
    let rows = match direction.as_slice() {
        [] | ["next" | "forward"] => Some(1),
        ["all"] | ["forward", "all"] => None,
        [count] | ["forward", count] => match count.parse() {
            Ok(count) => Some(count),
            Err(_) => return Err(error(state::NOT_SUPPORTED, "a cursor goes forward only here")),
        },
        _ => return Err(malformed()),
    };
    Ok(Command::Fetch { cursor, rows, wanted })
}

#[cfg(test)]
mod tests {
    use super::super::words::statements;
    use super::*;

    fn command(sql: &str) -> Command {
        Command::of(sql, &statements(sql)[0]).unwrap()
    }

    #[test]
    fn statements_of_clients_are_known() {
        let set = |name: &str, value: Option<&str>| Command::Set { name: name.into(), value: value.map(str::to_owned) };
        for (sql, wanted) in [
            ("SELECT 1", Command::Query),
            ("(SELECT 1)", Command::Query),
            ("/* ping */ BEGIN READ ONLY", Command::Begin),
            ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ", Command::Begin),
            ("END", Command::Commit),
            ("ROLLBACK TO SAVEPOINT a", Command::RollbackToSavepoint),
            ("ABORT", Command::Rollback),
            ("SET extra_float_digits = 3", set("extra_float_digits", Some("3"))),
            ("SET SESSION search_path TO public, 'x'", set("search_path", Some("public, x"))),
            ("set local statement_timeout = DEFAULT", set("statement_timeout", None)),
            ("SET TIME ZONE 'UTC'", set("timezone", Some("UTC"))),
            ("SET NAMES 'utf8'", set("client_encoding", Some("utf8"))),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Command::SetTransaction),
            ("SHOW TRANSACTION ISOLATION LEVEL", Command::Show("transaction_isolation".into())),
            ("show server_version", Command::Show("server_version".into())),
            ("SHOW TABLES", Command::Query),
            ("RESET ALL", Command::Reset(None)),
            ("DISCARD ALL", Command::Discard),
            ("DEALLOCATE PREPARE \"_pg3_0\"", Command::Deallocate(Some("_pg3_0".into()))),
            ("CLOSE c", Command::Close(Some("c".into()))),
            ("DECLARE \"C 1\" CURSOR FOR SELECT 1", Command::Declare { name: "C 1".into(), query: 25, holds: false }),
            (
                "declare c no scroll cursor with hold for values (1)",
                Command::Declare { name: "c".into(), query: 41, holds: true },
            ),
            ("FETCH FORWARD 100 FROM \"c\"", Command::Fetch { cursor: "c".into(), rows: Some(100), wanted: true }),
            ("FETCH c", Command::Fetch { cursor: "c".into(), rows: Some(1), wanted: true }),
            ("MOVE ALL IN c", Command::Fetch { cursor: "c".into(), rows: None, wanted: false }),
            ("DROP TABLE events", Command::Query),
        ] {
            assert_eq!(command(sql), wanted, "{sql}");
        }
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for sql in [
            "SET",
            "SET x",
            "SET x =",
            "DECLARE",
            "DECLARE c CURSOR",
            "FETCH BACKWARD 1 FROM c",
            "FETCH -1 FROM c",
            "CLOSE",
        ] {
            assert!(Command::of(sql, &statements(sql)[0]).is_err(), "{sql}");
        }
    }
}
