//! `GET /api/v1/sessions`: sessions page by page, newest first; `GET /api/v1/sessions/{id}`: one, and what happened in it.

use super::problem::{Named, Problem};
use super::sql::FRESHNESS;
use crate::event::check_account_name;
use crate::event::time::{format_us, parse_time_us};
use crate::projector::feed::Session;
use crate::query::output::{Format, Writer};
use crate::query::{Asker, Engine};
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use futures::TryStreamExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// Sessions of a page, where nothing is said, and at most.
const PAGE: (usize, usize) = (100, 1000);
/// What is told of a session's user: so many facts.
const MOST_FACTS: usize = 1000;

/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/sessions", "/api/v1/sessions/{id}"];

/// The routes, answered by `engine`.
pub fn router(engine: Arc<Engine>) -> Router {
    Router::new().route(ROUTES[0], get(list)).route(ROUTES[1], get(one)).with_state(engine)
}

/// Which sessions.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    account: Option<String>,
    user_id: Option<String>,
    /// `service` or `paid`.
    #[param(pattern = "^(service|paid)$")]
    kind: Option<String>,
    /// `open`, `closed` or `settled`.
    #[param(pattern = "^(open|closed|settled)$")]
    state: Option<String>,
    /// RFC 3339, or a date in UTC: opened then or later.
    from: Option<String>,
    /// Opened before.
    to: Option<String>,
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl Filter {
    fn limit(&self) -> Result<usize, Problem> {
        let (usual, most) = PAGE;
        match self.limit {
            None => Ok(usual),
            Some(limit) if (1..=most).contains(&limit) => Ok(limit),
            Some(limit) => Err(Problem::bad_request(format!("limit: {limit} is not from 1 to {most}"))),
        }
    }

    /// One session more than the page has tells whether there is another page.
    fn sql(&self) -> Result<String, Problem> {
        let mut conditions = Vec::new();
        if let Some(account) = &self.account {
            check_account_name(account).map_err(|error| Problem::bad_request(format!("account: {error}")))?;
            conditions.push(format!("account = {}", quoted(account)));
        }
        conditions.extend(self.user_id.as_ref().map(|user| format!("user_id = {}", quoted(user))));
        for (name, value, words) in
            [("kind", &self.kind, &["service", "paid"][..]), ("state", &self.state, &["open", "closed", "settled"])]
        {
            let Some(value) = value else { continue };
            if !words.contains(&value.as_str()) {
                return Err(Problem::bad_request(format!("{name}: `{value}` is none of {}", words.join(", "))));
            }
            conditions.push(format!("{name} = '{value}'"));
        }
        for (name, value, compares) in [("from", &self.from, ">="), ("to", &self.to, "<")] {
            let Some(value) = value else { continue };
            let us = parse_time_us(value).map_err(|error| Problem::bad_request(format!("{name}: {error}")))?;
            conditions.push(format!("opened_at {compares} timestamp '{}'", format_us(us)));
        }
        if let Some(cursor) = &self.cursor {
            let (us, id) = read_cursor(cursor).ok_or_else(|| {
                Problem::bad_request(
                    "cursor: it is not the `next` of a page: leave it out to begin at the newest session",
                )
            })?;
            let at = format!("timestamp '{}'", format_us(us));
            conditions.push(format!("opened_at <= {at} and (opened_at < {at} or session_id < {})", quoted(&id)));
        }
        let condition = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" and ") };
        let limit = self.limit()? + 1;
        Ok(format!("select * from sessions where {condition} order by opened_at desc, session_id desc limit {limit}"))
    }
}

/// A text as SQL has it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Where a page ends: opening (µs) and id of its last session.
fn cursor(us: i64, id: &str) -> String {
    BASE64.encode(format!("{us} {id}"))
}

fn read_cursor(cursor: &str) -> Option<(i64, String)> {
    let text = String::from_utf8(BASE64.decode(cursor).ok()?).ok()?;
    let (us, id) = text.split_once(' ')?;
    let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_id.then_some((us.parse().ok()?, id.to_owned()))
}

/// A page of sessions.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `list` writes")]
pub(super) struct Sessions {
    sessions: Vec<Session<'static>>,
    /// The `cursor` of the next page; null at the last one.
    #[schema(required)]
    next: Option<String>,
}

/// A session, and what happened in it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `one` writes")]
pub(super) struct SessionTold {
    session: Session<'static>,
    timeline: Vec<Happened>,
}

/// Something that happened to a user.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes a row of user_timeline")]
pub(super) struct Happened {
    at: String,
    what: String,
    #[schema(required)]
    message_token: Option<String>,
    #[schema(required)]
    detail: Option<String>,
}

/// Sessions page by page, the newest first.
#[utoipa::path(get, path = ROUTES[0], tag = "ask", params(Filter), responses((status = 200, description = "A page", body = Sessions), Problem))]
pub(super) async fn list(
    State(engine): State<Arc<Engine>>,
    asker: Option<Extension<Arc<Asker>>>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(filter) = filter?;
    let (mut sessions, freshness) = rows(&engine, &filter.sql()?, asker).await?;
    let mut next = Value::Null;
    if sessions.len() > filter.limit()? {
        sessions.truncate(filter.limit()?);
        let last = sessions.last().and_then(|row| serde_json::from_str::<Value>(row.get()).ok()).unwrap_or_default();
        let opened = last["opened_at"].as_str().and_then(|time| parse_time_us(time).ok());
        if let (Some(us), Some(id)) = (opened, last["session_id"].as_str()) {
            next = cursor(us, id).into();
        }
    }
    Ok(answer(&json!({ "sessions": sessions, "next": next }), freshness))
}

/// One session, and what happened in it.
#[utoipa::path(get, path = ROUTES[1], tag = "ask", params(("id" = String, Path, description = "`session_id`")), responses((status = 200, description = "The session", body = SessionTold), Problem))]
pub(super) async fn one(
    State(engine): State<Arc<Engine>>,
    asker: Option<Extension<Arc<Asker>>>,
    Named(id): Named<String>,
) -> Result<Response, Problem> {
    let unknown = || Problem::new(StatusCode::NOT_FOUND, format!("no session has the id `{id}`"));
    if id.len() > 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Err(unknown());
    }
    let (sessions, freshness) =
        rows(&engine, &format!("select * from sessions where session_id = '{id}'"), asker.clone()).await?;
    let session = sessions.into_iter().next().ok_or_else(unknown)?;
    let told: Value = serde_json::from_str(session.get()).unwrap_or_default();
    let text = |column: &str| told[column].as_str().map(quoted).unwrap_or_else(|| "null".to_owned());
    let time = |column: &str| told[column].as_str().map(|time| format!("timestamp '{time}'"));
    let over = time("closed_at").or_else(|| time("expires_at")).unwrap_or_else(|| "now()".to_owned());
    // What happens at its end closes it.
    let timeline = format!(
        "select at, what, message_token, detail from user_timeline where account = {} and user_id = {} and at >= {} and at <= {over} \
         and (session_id is null or session_id = '{id}') order by at, step, message_token limit {MOST_FACTS}",
        text("account"),
        text("user_id"),
        time("opened_at").unwrap_or_else(|| "now()".to_owned()),
    );
    let (timeline, _) = rows(&engine, &timeline, asker).await?;
    Ok(answer(&json!({ "session": session, "timeline": timeline }), freshness))
}

/// Rows as JSON has them, and how new they are.
async fn rows(
    engine: &Engine,
    sql: &str,
    asker: Option<Extension<Arc<Asker>>>,
) -> Result<(Vec<Box<RawValue>>, HeaderValue), Problem> {
    let asker = asker.map_or(Asker::ANYBODY, |Extension(asker)| Asker::clone(&asker));
    // So few rows are within any limit.
    let mut found = engine.query_as_of(sql, None, &Asker { max_rows: None, ..asker }).await?;
    let freshness =
        HeaderValue::try_from(found.freshness().header()).unwrap_or(HeaderValue::from_static("complete=?0"));
    let broken = |error: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error);
    let mut writer =
        Writer::new(Format::Json, found.schema(), Vec::new()).map_err(|error| broken(error.to_string()))?;
    while let Some(batch) = found.try_next().await? {
        writer.write(&batch).map_err(|error| broken(error.to_string()))?;
    }
    let written = writer.finish().map_err(|error| broken(error.to_string()))?;
    Ok((serde_json::from_slice(&written).map_err(|error| broken(error.to_string()))?, freshness))
}

fn answer(document: &Value, freshness: HeaderValue) -> Response {
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), (FRESHNESS, freshness)];
    (headers, document.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let id = "0b5a1a4ed2f84c1d9d0f5c7f2b1e6a33";
        assert_eq!(read_cursor(&cursor(1_772_323_200_123_456, id)), Some((1_772_323_200_123_456, id.to_owned())));
        for bad in ["", "x", &BASE64.encode("1"), &BASE64.encode("one 0b"), &BASE64.encode("1 ' or true"), "%%%"] {
            assert_eq!(read_cursor(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_filter_says_what_is_wrong_with_it() {
        let of = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.sql().map_err(|problem| problem.detail)
        };
        assert!(of(|_| {}).unwrap().contains("where true"));
        let quoted = of(|filter| filter.user_id = Some("o'hara' or true --".into())).unwrap();
        assert!(quoted.contains("user_id = 'o''hara'' or true --'"), "{quoted}");
        type Change = fn(&mut Filter);
        let wrong: [(Change, &str); 6] = [
            (|filter| filter.kind = Some("free".into()), "kind"),
            (|filter| filter.state = Some("'".into()), "state"),
            (|filter| filter.from = Some("yesterday".into()), "from"),
            (|filter| filter.limit = Some(0), "limit"),
            (|filter| filter.cursor = Some("abc".into()), "cursor"),
            (|filter| filter.account = Some("No Name".into()), "account"),
        ];
        for (change, field) in wrong {
            let said = of(change).unwrap_err();
            assert!(said.starts_with(field), "{said}");
        }
    }
}
