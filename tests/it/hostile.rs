//! Requests of people who mean harm, or know no better: nothing of theirs is recorded unless they have the token, the
//! gateway stays up, and what was signed is kept byte for byte.
//!
//! `TEST_LONG=1` takes 10,000 requests instead of 1,500; `TEST_SEED` draws the same again.

mod shot;

use super::generate::Random;
use super::harness::{Home, Server, TOKEN, message_body, until};
use super::viber::{is_long, seed};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use shot::{Gunner, Shot, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: usize = 1 << 20;
/// Requests under way at once.
const CLIENTS: u64 = 4;
/// What the memory may grow by over all requests. Caches fill, and allocators keep what they had.
const GROWTH_KIB: u64 = 400 << 10;
/// An answer that takes longer never comes.
const ANSWER: Duration = Duration::from_secs(60);

/// Sends a request's bytes; what came back, which may be nothing.
fn fire(gateway: &str, shot: &Shot) -> Vec<u8> {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream.set_write_timeout(Some(ANSWER)).unwrap();
    // A server that has seen enough closes, and what is still to come is in vain.
    let _ = stream.write_all(&shot.bytes);
    if shot.is_torn {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// HTTP status of an answer; of several, as to `Expect`, the last one's.
fn status(answer: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(answer);
    let statuses = text.split("HTTP/1.").skip(1).filter_map(|rest| rest.get(2..5)?.parse().ok());
    statuses.last()
}

/// Viber's `status` in an answer.
fn viber_status(answer: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(answer).into_owned();
    let body: Value = serde_json::from_str(text.split("\r\n\r\n").last()?).ok()?;
    body["status"].as_u64()
}

/// The Viber behind the gateway: counts what comes, by mark, and answers badly.
type Seen = Arc<Mutex<BTreeMap<u64, u64>>>;

async fn answer_badly(State(seen): State<Seen>, request: Request) -> Response {
    let mark = request.headers().get("x-mark").and_then(|mark| mark.to_str().ok()?.parse().ok()).unwrap_or(0);
    *seen.lock().unwrap().entry(mark).or_default() += 1;
    let _ = axum::body::to_bytes(request.into_body(), 2 * MIB).await;
    let bodies: [&[u8]; 9] = [
        b"",
        b"{",
        b"[]",
        b"{\"status\":\"x\"}",
        b"{\"status\":0,\"message_token\":\"x\",\"billing_status\":{}}",
        b"{\"status\":1e99}",
        b"\xff\xfe",
        b"{\"status\":0}",
        b"<html>",
    ];
    let code = if mark.is_multiple_of(11) { StatusCode::NOT_FOUND } else { StatusCode::OK };
    (code, Body::from(bodies[(mark / CLIENTS % 9) as usize])).into_response()
}

fn start_viber(runtime: &tokio::runtime::Runtime) -> (String, Seen) {
    let seen = Seen::default();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer_badly).with_state(seen.clone());
    runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, seen)
}

fn resident_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What was sent and what came of it, of one or more clients.
#[derive(Default)]
struct Score {
    /// Bodies that must be recorded.
    signed: Vec<Vec<u8>>,
    /// Callbacks of the odd kind that were answered 200.
    odd: u64,
    /// Marks that must have come to Viber, and those that may.
    relayed: Vec<u64>,
    maybe: Vec<u64>,
    answers: BTreeMap<Option<u16>, u64>,
}

impl Score {
    fn add(&mut self, shot: Shot, mark: u64, answer: &[u8]) {
        let code = status(answer);
        *self.answers.entry(code).or_default() += 1;
        let head = String::from_utf8_lossy(&shot.bytes[..shot.bytes.len().min(300)]).into_owned();
        let context = || format!("mark {mark}, {:?}: {head:?} got {:?}", shot.wanted, String::from_utf8_lossy(answer));
        // Nothing here makes a bot or a log go away, so there is no reason for any of them.
        assert!(code.is_none_or(|code| code < 500), "{}", context());
        match shot.wanted {
            Wanted::Relayed => {
                assert!(code.is_some(), "{}", context());
                self.relayed.push(mark);
            }
            Wanted::Recorded(body) => {
                assert_eq!(code, Some(200), "{head}");
                self.signed.push(body);
            }
            Wanted::Either => {
                let is_hook = head.contains("webhooks");
                self.odd += u64::from(is_hook && code == Some(200));
                self.maybe.push(mark);
            }
            Wanted::Refused(wanted) => assert_eq!(code, Some(wanted), "{}", context()),
            Wanted::Told(wanted) => {
                assert_eq!((code, viber_status(answer)), (Some(200), Some(wanted)), "{}", context())
            }
            Wanted::Nothing => {}
        }
    }

    fn join(mut self, other: Score) -> Score {
        self.signed.extend(other.signed);
        self.relayed.extend(other.relayed);
        self.maybe.extend(other.maybe);
        self.odd += other.odd;
        for (code, n) in other.answers {
            *self.answers.entry(code).or_default() += n;
        }
        self
    }
}

/// Fires from several clients at once.
fn volley(gateway: &str, seed: u64, requests: u64, first: u64) -> Score {
    let client = |n: u64| {
        let mut gunner = Gunner { random: Random(seed ^ (n << 32)), mark: first + n };
        let mut score = Score::default();
        for _ in 0..requests / CLIENTS {
            let shot = gunner.shot();
            let answer = fire(gateway, &shot);
            score.add(shot, gunner.mark, &answer);
        }
        score
    };
    std::thread::scope(|scope| {
        let client = &client;
        let clients: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || client(n))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).fold(Score::default(), Score::join)
    })
}

/// Bodies of the callbacks as `events` has them, short ones only.
fn short_bodies(home: &Home) -> BTreeSet<Vec<u8>> {
    let rows = home.sql("select data, data_base64 from events where origin = 'callback' and length(data) < 3000");
    let body = |row: Value| {
        let data = row["data"].as_str().unwrap();
        if row["data_base64"] == true { STANDARD.decode(data).unwrap() } else { data.as_bytes().to_vec() }
    };
    rows.into_iter().map(body).collect()
}

#[test]
fn nothing_hostile_gets_in_or_stops_it() {
    let (seed, requests) = (seed(), if is_long() { 10_000 } else { 1_500 });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (url, seen) = start_viber(&runtime);
    let upstream = format!("upstream.url = {url:?}");
    let home = Home::new(&[&upstream, r#"fold.memory = "64MiB""#, r#"lake.commit_every = "1s""#]);
    let server = home.serve();
    let gateway = server.gateway.trim_start_matches("http://").to_owned();

    // Some never get further than half a head, and stay.
    let half = |_| {
        let mut stream = TcpStream::connect(&gateway).unwrap();
        stream.write_all(b"POST /pa/send_message HTTP/1.1\r\nHost: ga").unwrap();
        stream
    };
    let idlers: Vec<TcpStream> = (0..200).map(half).collect();
    let warm = volley(&gateway, !seed, 400, 0);
    let before = resident_kib(&server);
    let score = warm.join(volley(&gateway, seed, requests, 1 << 20));
    let after = resident_kib(&server);
    drop(idlers);
    println!("{requests} requests, answers {:?}; memory {before} KiB, then {after} KiB", score.answers);
    assert!(after < before + GROWTH_KIB, "the memory grew from {before} to {after} KiB");

    // It is alive and well.
    assert_eq!(server.callback(&message_body("good==", 1)).status, 200);
    until("readiness", || server.get("/readyz").status, |status| *status == 200);
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains(TOKEN), "the token is in the log");
    assert_eq!(server.stop().code(), Some(0));

    let seen = seen.lock().unwrap().clone();
    for mark in &score.relayed {
        assert_eq!(seen.get(mark), Some(&1), "call {mark} came to Viber");
    }
    for (mark, times) in &seen {
        assert!(*times == 1 && (score.relayed.contains(mark) || score.maybe.contains(mark)), "call {mark}: {times}");
    }
    let signed = score.signed.len() as u64 + score.odd + 1;
    let by_origin =
        "select origin, count(*) as n from events where origin <> 'counterbat' group by origin order by origin";
    let wanted =
        [("call", seen.len() as u64), ("callback", signed)].map(|(origin, n)| json!({ "origin": origin, "n": n }));
    assert_eq!(home.sql(by_origin), wanted);
    assert_eq!(home.number("select count(*) from unknown_calls"), 0);

    let kept = short_bodies(&home);
    for body in score.signed.iter().filter(|body| body.len() < 2000) {
        assert!(kept.contains(body), "not kept byte for byte: {:?}", String::from_utf8_lossy(body));
    }
}
