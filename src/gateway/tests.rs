//! The gateway's routes over a log in memory and a Viber of our own.

mod outage;
mod relay;

use super::*;
use crate::event::Event;
use crate::log::{Fetched, LogError, LogId, Position};
use crate::metrics::AccountLabels;
use async_trait::async_trait;
use axum::http::{Method, Request, StatusCode};
use axum::response::IntoResponse;
use hmac::{Hmac, Mac};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use url::Url;

const TOKEN: &str = "tok-1";
const NOW: i64 = 1_760_000_000_000_000;

/// Keeps events in memory, or refuses them.
struct MemoryLog {
    id: LogId,
    events: Mutex<Vec<Event>>,
    broken: AtomicBool,
    /// What is appended is there only once this is false.
    stalls: watch::Sender<bool>,
    appended: watch::Sender<u64>,
}

impl MemoryLog {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            id: LogId("test".into()),
            events: Mutex::default(),
            broken: AtomicBool::default(),
            stalls: watch::Sender::new(false),
            appended: watch::Sender::new(0),
        })
    }

    fn refusal(&self) -> Result<(), LogError> {
        if self.broken.load(Ordering::SeqCst) { Err(LogError::Unwritable("no room".into())) } else { Ok(()) }
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    async fn wait_for(&self, n: usize) -> Vec<Event> {
        let mut appended = self.appended.subscribe();
        let wait = appended.wait_for(|count| *count >= n as u64);
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap().unwrap();
        self.events()
    }
}

#[async_trait]
impl EventLog for MemoryLog {
    fn id(&self) -> &LogId {
        &self.id
    }
    fn partitions(&self) -> u32 {
        4
    }
    async fn append(&self, batch: Vec<(u32, Event)>) -> Result<Vec<Position>, LogError> {
        self.stalls.subscribe().wait_for(|stalls| !stalls).await.unwrap();
        self.refusal()?;
        let mut events = self.events.lock().unwrap();
        events.extend(batch.into_iter().map(|(_, event)| event));
        self.appended.send_replace(events.len() as u64);
        Ok(Vec::new())
    }
    async fn read(&self, _: u32, _: u64, _: usize, _: usize) -> Result<Fetched, LogError> {
        Ok(Fetched::default())
    }
    async fn bounds(&self, _: u32) -> Result<(u64, u64), LogError> {
        Ok((0, 0))
    }
    fn appended(&self) -> watch::Receiver<u64> {
        self.appended.subscribe()
    }
    async fn check_writable(&self) -> Result<(), LogError> {
        self.refusal()
    }
    async fn retain(&self, _: &[u64], _: i64) -> Result<(), LogError> {
        Ok(())
    }
}

/// What the test's Viber was asked, and what makes it answer.
#[derive(Default)]
struct Viber {
    asked: Mutex<Vec<(Method, String, Vec<u8>)>>,
    go: Notify,
    waits: AtomicBool,
    breaks_log: Mutex<Option<Arc<MemoryLog>>>,
}

const ANSWER: &str = r#"{"status":0,"status_message":"ok","message_token":6156995993335728388,"billing_status":1 }"#;

struct World {
    log: Arc<MemoryLog>,
    viber: Arc<Viber>,
    gateway: Gateway,
    metrics: Arc<Metrics>,
    address: String,
    client: reqwest::Client,
    server: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

async fn world() -> World {
    let (viber, upstream) = double().await;
    world_at(upstream, viber).await
}

/// A Viber that answers everything alike, and where it is.
async fn double() -> (Arc<Viber>, String) {
    let viber = Arc::new(Viber::default());
    let seen = viber.clone();
    let double = Router::new().fallback(move |request: Request<Body>| async move {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, MAX_BODY).await.unwrap();
        seen.asked.lock().unwrap().push((parts.method, parts.uri.to_string(), body.to_vec()));
        if seen.waits.load(Ordering::SeqCst) {
            seen.go.notified().await;
        }
        if let Some(log) = &*seen.breaks_log.lock().unwrap() {
            log.broken.store(true, Ordering::SeqCst);
        }
        ([("content-type", "application/json;charset=utf-8")], ANSWER).into_response()
    });
    (viber, serve(double).await)
}

async fn world_at(upstream: String, viber: Arc<Viber>) -> World {
    world_with(upstream, viber, Bots::new(Duration::from_secs(20), true).unwrap()).await
}

async fn world_with(upstream: String, viber: Arc<Viber>, bots: Bots) -> World {
    world_recording(upstream, viber, bots, tempfile::tempdir().unwrap(), MemoryLog::new(), Recording::default()).await
}

async fn world_recording(
    upstream: String,
    viber: Arc<Viber>,
    bots: Bots,
    dir: tempfile::TempDir,
    log: Arc<MemoryLog>,
    recording: Recording,
) -> World {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let metrics = Arc::new(Metrics::new(AccountLabels::All));
    let gateway = Gateway::new(Parts {
        log: log.clone(),
        recording,
        accounts: Accounts::new([("shop".to_owned(), TOKEN.to_owned())]).unwrap(),
        upstream: Upstream::new(&Url::parse(&upstream).unwrap(), Duration::from_secs(20)).unwrap(),
        bots,
        registrations: Registrations::open(shelf::Shelf::files(dir.path())).unwrap(),
        public_url: Url::parse(&address).unwrap(),
        metrics: metrics.clone(),
        now: Arc::new(|| NOW),
    });
    let router = gateway.router();
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    World { log, viber, gateway, metrics, address, client, server, dir }
}

impl World {
    async fn callback(&self, path: &str, body: &[u8], signature: Option<&str>) -> StatusCode {
        let mut request = self.client.post(format!("{}{path}", self.address)).body(body.to_vec());
        if let Some(signature) = signature {
            request = request.header("X-Viber-Content-Signature", signature);
        }
        request.send().await.unwrap().status()
    }

    async fn call(&self, path: &str, body: &str, token: Option<&str>) -> String {
        let mut request = self.client.post(format!("{}{path}", self.address)).body(body.to_owned());
        if let Some(token) = token {
            request = request.header("X-Viber-Auth-Token", token);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.text().await.unwrap()
    }

    fn rejected(&self, reason: &str) -> bool {
        self.shows(&format!("counterbat_rejected_total{{reason=\"{reason}\"}} 1"))
    }

    /// Whether there is such a line in the metrics.
    fn shows(&self, line: &str) -> bool {
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        text.contains(&format!("{line}\n"))
    }
}

fn sign(body: &[u8]) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(TOKEN.as_bytes()).unwrap();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

#[tokio::test]
async fn a_signed_callback_is_recorded_as_it_came() {
    let world = world().await;
    let body = br#"{"event":"message", "timestamp":1759999999000,"message_token":7,"sender":{"id":"u=="}}"#;
    assert_eq!(world.callback("/webhooks/shop", body, Some(&sign(body))).await, StatusCode::OK);
    let seen = format!("/webhooks/shop?sig={}", sign(b"not json"));
    assert_eq!(world.callback(&seen, b"not json", None).await, StatusCode::OK);
    let started = br#"{"event":"conversation_started","message_token":8,"user":{"id":"v"}}"#;
    assert_eq!(world.callback("/webhooks/shop", started, Some(&sign(started))).await, StatusCode::OK);
    let events = world.log.events();
    let wanted = Event {
        id: "message/7/u==".into(),
        source: "/accounts/shop".into(),
        kind: "com.viber.callback.message".into(),
        subject: Some("u==".into()),
        time_us: Some(NOW),
        content_type: Some("application/json".into()),
        signature: Some(sign(body)),
        extensions: Vec::new(),
        data: body.to_vec(),
    };
    assert_eq!(events[0], wanted);
    assert_eq!((events[1].kind.as_str(), &events[1].subject), ("com.viber.callback.unknown", &None));
    assert_eq!(events[1].data, b"not json");
    assert_eq!(events[2].id, "conversation_started/8/v");
}

#[tokio::test]
async fn what_is_not_viber_s_is_refused_and_counted() {
    let world = world().await;
    let body = b"{}";
    for (path, signature, status, reason) in [
        ("/webhooks/shop", None, 403, "missing_signature"),
        ("/webhooks/shop", Some("00"), 403, "bad_signature"),
        ("/webhooks/none", Some(sign(body).as_str()), 403, "unknown_account"),
    ] {
        assert_eq!(world.callback(path, body, signature).await.as_u16(), status, "{reason}");
        assert!(world.rejected(reason), "{reason}");
    }
    let large = vec![b' '; MAX_BODY + 1];
    assert_eq!(world.callback("/webhooks/shop", &large, Some(&sign(&large))).await.as_u16(), 413);
    assert!(world.rejected("too_large") && world.log.events().is_empty());
    world.log.broken.store(true, Ordering::SeqCst);
    assert_eq!(world.callback("/webhooks/shop", body, Some(&sign(body))).await.as_u16(), 503);
}

#[tokio::test]
async fn a_call_is_relayed_unchanged_and_recorded() {
    let world = world().await;
    let body = r#"{ "receiver":"u==","type":"text","text":"hi" }"#;
    for path in ["/pa/send_message", "//pa/send_message"] {
        assert_eq!(world.call(path, body, Some(TOKEN)).await, ANSWER, "{path}");
    }
    let asked = world.viber.asked.lock().unwrap().clone();
    assert_eq!(asked[0], (Method::POST, "/pa/send_message".into(), body.into()));
    let events = world.log.events();
    assert_eq!(events[0].id, "send_message/6156995993335728388/u==");
    let wanted = format!("{{\"request\":{body},\"response\":{ANSWER},\"http_status\":200}}");
    assert_eq!(events[0].data, wanted.as_bytes());
    let in_body = format!(r#"{{"auth_token":"{TOKEN}","receiver":"u=="}}"#);
    assert_eq!(world.call("/pa/send_message", &in_body, None).await, ANSWER);
    assert_eq!(world.viber.asked.lock().unwrap()[2].2, in_body.as_bytes());
    assert!(!String::from_utf8(world.log.events()[2].data.clone()).unwrap().contains(TOKEN));
    let got = world.client.get(format!("{}/pa/get_account_info", world.address)).header("X-Viber-Auth-Token", TOKEN);
    assert_eq!(got.send().await.unwrap().text().await.unwrap(), ANSWER);
    assert_eq!(world.viber.asked.lock().unwrap()[3].0, Method::GET);
    let head = world.client.head(format!("{}/pa/get_account_info", world.address)).header("X-Viber-Auth-Token", TOKEN);
    assert_eq!(head.send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(world.viber.asked.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn calls_without_a_known_token_get_no_further() {
    let world = world().await;
    let other = r#"{"auth_token":"other"}"#;
    for (body, token) in [("{}", Some("other")), (other, None), (other, Some(TOKEN))] {
        let answer = world.call("/pa/send_message", body, token).await;
        assert_eq!(answer, r#"{"status":2,"status_message":"invalidAuthToken"}"#);
    }
    let answer = world.call("/pa/send_message", "{}", None).await;
    assert_eq!(answer, r#"{"status":2,"status_message":"missing_auth_token"}"#);
    let large = " ".repeat(MAX_BODY + 1);
    assert!(world.call("/pa/send_message", &large, Some(TOKEN)).await.contains("\"status\":3"));
    world.log.broken.store(true, Ordering::SeqCst);
    assert!(world.call("/pa/send_message", "{}", Some(TOKEN)).await.contains("not sent"));
    assert!(world.viber.asked.lock().unwrap().is_empty() && world.log.events().is_empty());
}

#[tokio::test]
async fn an_unreachable_viber_is_told_and_recorded() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = world_at(format!("http://{free}"), Arc::default()).await;
    let answer = world.call("/pa/send_message", r#"{"receiver":"u"}"#, Some(TOKEN)).await;
    assert!(answer.contains("was not sent"), "{answer}");
    let data = String::from_utf8(world.log.events()[0].data.clone()).unwrap();
    assert_eq!(data, r#"{"request":{"receiver":"u"},"response":null,"http_status":null}"#);
}

#[tokio::test]
async fn a_client_that_hangs_up_changes_nothing() {
    let world = world().await;
    world.viber.waits.store(true, Ordering::SeqCst);
    let url = format!("{}/pa/send_message", world.address);
    let request = world.client.post(url).header("X-Viber-Auth-Token", TOKEN).body("{}").send();
    let client = tokio::spawn(request);
    let asked = async {
        while world.viber.asked.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.unwrap();
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    world.viber.go.notify_one();
    assert_eq!(world.log.wait_for(1).await[0].kind, "com.viber.api.send_message");
    assert!(world.gateway.drain(Duration::from_secs(30)).await);
}

#[tokio::test]
async fn what_viber_took_is_answered_and_recorded_later() {
    let world = world().await;
    *world.viber.breaks_log.lock().unwrap() = Some(world.log.clone());
    assert_eq!(world.call("/pa/send_message", r#"{"receiver":"u"}"#, Some(TOKEN)).await, ANSWER);
    assert!(world.log.events().is_empty());
    world.log.broken.store(false, Ordering::SeqCst);
    assert_eq!(world.log.wait_for(1).await[0].subject.as_deref(), Some("u"));
}
