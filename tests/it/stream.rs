//! What becomes of sessions, as it is told to those who follow it.
//!
//! `TEST_LONG=1` has 500 clients follow for a minute instead of 40 for some seconds.

use super::cluster::{Cluster, missing, wait_shared};
use super::generate::MARCH_MS;
use super::harness::{Home, PATIENCE, Server, TOKEN, http, message_body, request, runtime, sign, token, until};
use super::viber::is_long;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// One event as it came.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    name: String,
    data: Value,
}

/// What a client has got so far.
#[derive(Debug, Clone, Default)]
struct Got {
    events: Vec<Event>,
    /// The newest id, of an event or on its own.
    last_id: String,
    is_over: bool,
}

/// A client that follows until it is dropped.
struct Client {
    got: Arc<Mutex<Got>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes whole events off the front of `text`; of many only the users are kept.
fn take_events(text: &mut String, got: &Mutex<Got>, only_users: bool) {
    while let Some(end) = text.find("\n\n") {
        let block: String = text.drain(..end + 2).collect();
        let (mut name, mut id, mut data) = (String::new(), None, None);
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("event", value)) => name = value.to_owned(),
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("data", value)) => data = Some(serde_json::from_str::<Value>(value).unwrap()),
                _ => {}
            }
        }
        if only_users {
            data = data.map(|data| json!({ "user_id": data["user_id"] }));
        }
        let mut got = got.lock().unwrap();
        got.last_id = id.unwrap_or(std::mem::take(&mut got.last_id));
        got.events.extend(data.map(|data| Event { name, data }));
    }
}

impl Client {
    fn follow(server: &Server, query: &str, token: &str, last_id: Option<&str>) -> Self {
        Self::start(server, query, token, last_id, false)
    }

    fn start(server: &Server, query: &str, token: &str, last_id: Option<&str>, only_users: bool) -> Self {
        let mut get = http().get(format!("{}/api/v1/stream{query}", server.console)).bearer_auth(token);
        if let Some(last_id) = last_id {
            get = get.header("last-event-id", last_id);
        }
        let mut response = runtime().block_on(async { get.timeout(PATIENCE).send().await }).unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let got = Arc::new(Mutex::new(Got::default()));
        let shared = got.clone();
        let task = runtime().spawn(async move {
            let mut text = String::new();
            while let Ok(Some(piece)) = response.chunk().await {
                text.push_str(std::str::from_utf8(&piece).unwrap());
                take_events(&mut text, &shared, only_users);
            }
            shared.lock().unwrap().is_over = true;
        });
        Client { got, task }
    }

    fn got(&self) -> Got {
        self.got.lock().unwrap().clone()
    }

    /// The sessions told so far, with what became of them.
    fn told(&self) -> Vec<(String, Value)> {
        let events = self.got().events;
        events.into_iter().filter(|event| event.name != "counters").map(|event| (event.name, event.data)).collect()
    }

    /// How many sessions of `bot1` are open, as it was told last.
    fn open(&self) -> Option<i64> {
        let counters = self.got().events.into_iter().rfind(|event| event.name == "counters")?.data;
        let of_bot1 = counters["accounts"].as_array().unwrap().iter().find(|of| of["account"] == "bot1")?.clone();
        of_bot1["open_service"].as_i64()
    }

    fn until(&self, n: usize) -> Vec<(String, Value)> {
        until("events", || self.told(), |told| told.len() >= n)
    }

    fn last_id(&self) -> String {
        until("an id", || self.got().last_id, |id| !id.is_empty())
    }
}

#[test]
fn what_becomes_of_sessions_is_told_as_it_happens() {
    let home = Home::new(&[]);
    let (mine, mine_entry) = token(&home, &["mine", "--accounts", "bot2"]);
    let (all, all_entry) = token(&home, &["all"]);
    home.configure(&[&format!("console.tokens = [{mine_entry}, {all_entry}]")]);
    let server = home.serve();
    let (everything, others) =
        (Client::follow(&server, "", &all, None), Client::follow(&server, "?kind=service", &mine, None));
    let paid = Client::follow(&server, "?account=bot1&kind=paid", &all, None);
    let began = everything.last_id();

    assert_eq!(server.callback(&message_body("user-1==", 1)).status, 200);
    let told = everything.until(1);
    assert_eq!((told[0].0.as_str(), &told[0].1["user_id"]), ("opened", &json!("user-1==")));
    let listed = request(http().get(format!("{}/api/v1/sessions", server.console)).bearer_auth(&all));
    let listed: Value = serde_json::from_slice(&listed.body).unwrap();
    assert_eq!(listed["sessions"][0], told[0].1, "it is the session as it is listed");
    let first_id = everything.last_id();

    let happens = |body: &str, number: usize, what: &str, user: &str| {
        assert_eq!(server.callback(body).status, 200);
        let told = everything.until(number);
        assert_eq!((told.len(), told[number - 1].0.as_str()), (number, what), "{told:?}");
        assert_eq!(told[number - 1].1["user_id"], user, "{told:?}");
        told[number - 1].1.clone()
    };
    let updated = happens(&message_body("user-1==", u64::MAX), 2, "updated", "user-1==");
    assert_eq!((&updated["inbound"], &updated["state"]), (&json!(2), &json!("open")));
    happens(&message_body("user-2==", 3), 3, "opened", "user-2==");
    let now_ms = chrono::Utc::now().timestamp_millis();
    let gone = json!({"event": "unsubscribed", "timestamp": now_ms, "user_id": "user-1==", "message_token": 4});
    let closed = happens(&gone.to_string(), 4, "closed", "user-1==");
    assert_eq!(closed["close_reason"], "unsubscribed");
    until("counters", || everything.open(), |open| *open == Some(1));

    // Who comes back is told the rest, and nothing twice.
    let last_id = everything.last_id();
    for (id, known) in [(&began, 0), (&first_id, 1), (&last_id, 4)] {
        let back = Client::follow(&server, "", &all, Some(id));
        back.last_id();
        assert_eq!(back.until(4 - known), everything.told()[known..]);
    }
    let behind = Client::follow(&server, "", &all, Some(&last_id));
    happens(&message_body("user-3==", 6), 5, "opened", "user-3==");
    assert_eq!(behind.until(1), everything.told()[4..]);
    let elsewhere = Client::follow(&server, "", &all, Some("0123456789abcdef-1"));
    assert_eq!(elsewhere.until(1)[0].0, "reset", "another process");

    // Nothing of others, and nothing that was not asked for.
    assert_eq!((others.told(), paid.told()), (Vec::new(), Vec::new()));
    assert!(others.got().events.iter().all(|event| event.data["accounts"] == json!([])));
    let sealed = others.last_id();
    assert!(!sealed.contains('-'), "it tells how much there is of all: {sealed}");
    let back = Client::follow(&server, "", &mine, Some(&sealed));
    let token_of_bot2 = format!("two-{TOKEN}");
    let said = message_body("user-7==", 7);
    let of_bot2 = http().post(format!("{}/webhooks/bot2", server.gateway));
    let signed = of_bot2.header("X-Viber-Content-Signature", sign(&token_of_bot2, &said)).body(said);
    assert_eq!(request(signed).status, 200);
    for client in [&others, &back] {
        let told = client.until(1);
        assert_eq!((told.len(), told[0].0.as_str(), &told[0].1["user_id"]), (1, "opened", &json!("user-7==")));
    }
    assert_eq!(others.last_id().len(), sealed.len(), "how long a number is");
    // What nobody here has made may be the id of another time: browsers do not come back from an error.
    for (token, id) in [(&all, "1-2-3"), (&all, "x"), (&all, sealed.as_str()), (&mine, last_id.as_str())] {
        assert_eq!(Client::follow(&server, "", token, Some(id)).until(1)[0].0, "reset", "{id}");
    }
    for (query, token, status, what) in [
        ("?account=bot1", &mine, 403, "account"),
        ("?account=No", &all, 400, "account"),
        ("?kind=free", &all, 400, "kind"),
        ("?nothing=1", &all, 400, "nothing"),
    ] {
        let get = http().get(format!("{}/api/v1/stream{query}", server.console)).bearer_auth(token);
        let reply = request(get);
        assert!(
            reply.status == status && reply.problem().contains(what),
            "{query}: {} {}",
            reply.status,
            reply.problem()
        );
    }

    // It ends with the server, and the server with it open.
    server.stop_in_order();
    until("the end", || everything.got().is_over, |is_over| *is_over);
    let (last_id, sealed) = (everything.last_id(), others.last_id());
    let server = home.serve();
    for (token, id) in [(&all, &last_id), (&mine, &sealed)] {
        assert_eq!(Client::follow(&server, "", token, Some(id)).until(1)[0].0, "reset", "after a restart");
    }

    // Other tables take the place of these.
    let client = Client::follow(&server, "", &all, None);
    until("counters", || client.open(), |open| *open == Some(2));
    home.ok(&["rebuild"]);
    assert_eq!(client.until(1)[0].0, "reset");
    until("counters", || client.open(), |open| *open == Some(2));
}

/// Callbacks that open a session each, as lines of an event file.
fn openings(from: u64, to: u64) -> Vec<u8> {
    let mut lines = String::new();
    for n in from..to {
        let (user, t_ms) = (format!("user-{n}=="), MARCH_MS + n as i64);
        let time = chrono::DateTime::from_timestamp_millis(t_ms).unwrap().to_rfc3339();
        let said = json!({"event": "message", "timestamp": t_ms, "message_token": n, "sender": {"id": user},
            "message": {"type": "text", "text": "hi"}});
        let event = json!({"specversion": "1.0", "id": n.to_string(), "source": "/accounts/bot1",
            "type": "com.viber.callback.message", "subject": user, "time": time, "data": said});
        lines.push_str(&format!("{event}\n"));
    }
    lines.into_bytes()
}

/// A client that has asked and does not read: hardly anything is on its way to it.
async fn mute(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = server.console.strip_prefix("http://").unwrap();
    let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
    let request = format!("GET /api/v1/stream HTTP/1.1\r\nhost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[test]
fn of_many_clients_none_misses_anything_and_who_does_not_read_is_cut_off() {
    let (clients, lasting) = if is_long() { (500, Duration::from_secs(60)) } else { (40, Duration::from_secs(2)) };
    let home = Home::new(&[]);
    let server = home.serve();
    let mut stopped = runtime().block_on(mute(&server));
    let clients: Vec<Client> = (0..clients).map(|_| Client::start(&server, "", "", None, true)).collect();
    clients.iter().for_each(|client| drop(client.last_id()));
    assert_eq!(server.metric("counterbat_stream_clients"), clients.len() as f64 + 1.0);

    // More than the buffers of two sockets, at a pace that lasts.
    let (total, pieces) = (16_000, 40);
    let began = Instant::now();
    for piece in 0..pieces {
        let lines = openings(piece * total / pieces, (piece + 1) * total / pieces);
        let post = http().post(format!("{}/api/v1/import", server.console)).body(lines);
        assert_eq!(request(post).status, 200);
        let due = lasting * u32::try_from(piece + 1).unwrap() / u32::try_from(pieces).unwrap();
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    let users = |told: &[(String, Value)]| {
        let mut users: BTreeMap<String, usize> = BTreeMap::new();
        for (name, data) in told {
            assert_eq!(name, "opened", "{data}");
            *users.entry(data["user_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        users
    };
    let once: BTreeMap<String, usize> = (0..total).map(|n| (format!("user-{n}=="), 1)).collect();
    let count =
        |client: &Client| client.got.lock().unwrap().events.iter().filter(|event| event.name == "opened").count();
    for client in &clients {
        until("all events", || count(client), |n| *n >= total as usize);
        assert!(users(&client.told()) == once, "something was missed or told twice");
    }

    until("the cut", || server.metric("counterbat_stream_clients_cut_total"), |cut| *cut == 1.0);
    let got = Mutex::new(Got::default());
    let mut bytes = Vec::new();
    // What was on its way, up to the end of the connection, in order or not.
    let _ = runtime().block_on(stopped.read_to_end(&mut bytes));
    let mut text = String::from_utf8_lossy(&bytes).replace('\r', "");
    // The sizes of pieces stand on lines of their own between them.
    let is_size = |line: &str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    text = text.lines().filter(|line| !is_size(line)).collect::<Vec<_>>().join("\n");
    take_events(&mut text, &got, true);
    let got = got.into_inner().unwrap();
    let heard: Vec<(String, Value)> =
        got.events.into_iter().filter(|event| event.name == "opened").map(|event| (event.name, event.data)).collect();
    assert!(!heard.is_empty() && heard.len() < total as usize, "{} came before it was cut off", heard.len());
    let back = Client::start(&server, "", "", Some(&got.last_id), true);
    let rest = back.until(total as usize - heard.len());
    assert!(users(&[heard, rest].concat()) == once, "something was missed or told twice");
    drop((clients, back));
    until("nobody", || server.metric("counterbat_stream_clients"), |clients| *clients == 0.0);
}

const SECRET: &str = r#"cluster.secret = "0123456789abcdef0123456789abcdef""#;

#[test]
fn a_query_node_tells_what_projectors_fold() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(4, &[r#"lake.commit_every = "500ms""#]);
    let home = |role: &str| cluster.home_with(&[&format!("roles = [{role:?}]"), SECRET]);
    let homes = [home("gateway"), home("projector"), home("projector"), home("query"), home("query")];
    let [gateway, one, two, query, other] = &homes;
    let (gateway, one, two) = (gateway.serve(), one.serve(), two.serve());
    let (query, other) = (query.serve(), other.serve());
    wait_shared(&[&one, &two], 4);
    let (client, beside) = (Client::follow(&query, "", "", None), Client::follow(&other, "", "", None));
    let mut n = 0;
    let mut send = |messages: u64| {
        for _ in 0..messages {
            n += 1;
            assert_eq!(gateway.callback(&message_body(&format!("user-{n}=="), n)).status, 200);
        }
        n
    };
    let heard = |client: &Client, user: u64| {
        client.told().iter().filter(|(_, data)| data["user_id"] == format!("user-{user}==")).count()
    };
    // It begins with a word that what it was before is to be read, and then tells everything.
    for client in [&client, &beside] {
        until("the beginning", || client.told(), |told| told.first().is_some_and(|(what, _)| what == "reset"));
        until(
            "the first",
            || {
                let last = send(4);
                std::thread::sleep(Duration::from_millis(200));
                (last - 3..=last).all(|user| heard(client, user) == 1)
            },
            |all| *all,
        );
    }
    let (resumed, before) = (client.last_id(), client.told().len());
    let last = send(40);
    for user in last - 39..=last {
        until("each", || heard(&client, user), |times| *times > 0);
    }
    let since = client.told()[before..].to_vec();
    assert!(since.len() == 40 && since.iter().all(|(what, _)| what == "opened"), "{since:?}");
    assert_eq!(Client::follow(&query, "", "", Some(&resumed)).until(40), since);
    assert_eq!(Client::follow(&other, "", "", Some(&resumed)).until(1)[0].0, "reset");

    for client in [&client, &beside] {
        until("counters", || client.open(), |open| *open == i64::try_from(last).ok());
    }

    // One projector is gone: the other one's are told, where something may be missing after a word of it.
    one.kill();
    wait_shared(&[&two], 4);
    until(
        "what is sent after",
        || {
            let last = send(4);
            std::thread::sleep(Duration::from_millis(200));
            (last - 3..=last).all(|user| heard(&client, user) > 0)
        },
        |all| *all,
    );
}
