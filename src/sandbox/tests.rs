//! The sandbox over HTTP, as bots and gateways meet it.

mod life;

use super::*;
use axum::http::{HeaderMap, StatusCode, Uri};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use std::collections::VecDeque;
use std::sync::Mutex;

const T: i64 = 1_760_000_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    sandbox: Sandbox,
    halt: watch::Sender<bool>,
    client: reqwest::Client,
    bot: BotInfo,
}

/// What a webhook got.
#[derive(Clone)]
struct Got {
    body: String,
    signature: String,
    query: String,
}

/// A webhook that answers what it is told to, and 200 with nothing after that.
#[derive(Clone, Default)]
struct Hook {
    got: Arc<Mutex<Vec<Got>>>,
    answers: Arc<Mutex<VecDeque<(StatusCode, String)>>>,
}

impl Hook {
    async fn serve(&self) -> String {
        let hook = self.clone();
        let router = Router::new().fallback(move |uri: Uri, headers: HeaderMap, body: String| async move {
            let signature = headers["x-viber-content-signature"].to_str().unwrap().to_owned();
            let query = uri.query().unwrap_or_default().to_owned();
            hook.got.lock().unwrap().push(Got { body, signature, query });
            hook.answers.lock().unwrap().pop_front().unwrap_or_default()
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }

    fn answer(&self, status: u16, body: &str) {
        self.answers.lock().unwrap().push_back((StatusCode::from_u16(status).unwrap(), body.to_owned()));
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }
}

fn exact_receipts() -> ReceiptRates {
    ReceiptRates { failed: 0.0, late: 0.0, seen: 0.5 }
}

async fn world(speed: f64, pace: Pace, bot: NewBot) -> World {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (halt, stop) = watch::channel(false);
    let sandbox =
        Sandbox::start(Options { pace, ..Options::new(listener, SandboxTime::new(T, speed), 7, stop) }).unwrap();
    let bot = sandbox.add_bot(bot).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    World { sandbox, halt, client, bot }
}

impl World {
    async fn call_as(&self, token: Option<&str>, method: &str, body: &Value) -> reqwest::Result<(StatusCode, Value)> {
        let mut request = self.client.post(format!("{}/pa/{method}", self.sandbox.base_url())).body(body.to_string());
        if let Some(token) = token {
            request = request.header("X-Viber-Auth-Token", token);
        }
        let response = request.send().await?;
        let status = response.status();
        Ok((status, serde_json::from_slice(&response.bytes().await?).unwrap_or_default()))
    }

    async fn call(&self, method: &str, body: Value) -> Value {
        self.call_as(Some(&self.bot.token), method, &body).await.unwrap().1
    }

    async fn control(&self, path: &str, body: Value) -> Value {
        let url = format!("{}/sandbox/{path}", self.sandbox.base_url());
        let response = self.client.post(url).body(body.to_string()).send().await.unwrap();
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    }

    async fn hook(&self) -> Hook {
        let hook = Hook::default();
        let url = hook.serve().await;
        assert_eq!(self.call("set_webhook", json!({ "url": url })).await["status"], 0);
        hook
    }

    fn users(&self, count: usize) -> Vec<String> {
        let users = self.sandbox.add_users(&self.bot.name, count, &NewUser::default()).unwrap();
        users.into_iter().map(|user| user.profile.id.to_string()).collect()
    }

    fn write(&self, user: &str) -> Acted {
        self.sandbox.act(&self.bot.name, user, Act::Write(Content::text("hi"))).unwrap()
    }

    async fn send(&self, user: &str) -> Value {
        self.call("send_message", text_to(user)).await
    }

    async fn until(&self, what: &str, done: impl Fn(&Stats) -> bool) -> Stats {
        let wait = async {
            loop {
                let stats = self.sandbox.stats();
                if done(&stats) {
                    return stats;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| panic!("never {what}: {:?}", self.sandbox.stats()))
    }

    async fn settled(&self) -> Stats {
        self.until("settled", |stats| stats.outstanding == 0 && stats.scheduled == 0).await
    }

    async fn stop(self) {
        self.halt.send_replace(true);
        tokio::time::timeout(PATIENCE, self.sandbox.stopped()).await.expect("it stops");
    }
}

fn text_to(user: &str) -> Value {
    json!({ "receiver": user, "type": "text", "text": "hi", "sender": { "name": "Shop" } })
}

fn signature(token: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(token.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

#[tokio::test]
async fn callers_are_known_by_their_token() {
    let world = world(1.0, Pace::default(), NewBot::named("shop")).await;
    let token = world.bot.token.clone();
    let ask = async |token: Option<&str>, body: Value| {
        world.call_as(token, "get_account_info", &body).await.unwrap().1.to_string()
    };
    assert!(ask(Some(&token), json!({})).await.contains("\"status\":0"));
    assert!(ask(None, json!({ "auth_token": token })).await.contains("\"status\":0"));
    assert!(ask(Some(&token), json!({ "auth_token": token })).await.contains("\"status\":0"));
    let wrong = r#"{"status":2,"status_message":"invalidAuthToken"}"#;
    for (header, body) in
        [(Some("x"), json!({})), (None, json!({"auth_token": 5})), (Some(token.as_str()), json!({"auth_token": "x"}))]
    {
        assert_eq!(ask(header, body).await, wrong);
    }
    assert_eq!(ask(None, json!({})).await, r#"{"status":2,"status_message":"missing_auth_token"}"#);
    let got = world.client.get(format!("{}//pa/get_account_info", world.sandbox.base_url()));
    let got = got.header("x-viber-auth-token", &token).send().await.unwrap().bytes().await.unwrap();
    let info: Value = serde_json::from_slice(&got).unwrap();
    assert_eq!((&info["name"], &info["webhook"], &info["subscribers_count"]), (&json!("shop"), &json!(""), &json!(0)));
    assert_eq!(world.call_as(Some(&token), "no_such", &json!({})).await.unwrap().0, StatusCode::NOT_FOUND);
    world.stop().await;
}

#[tokio::test]
async fn a_webhook_is_validated_and_removed() {
    let world = world(1.0, Pace::default(), NewBot::named("shop")).await;
    let hook = Hook::default();
    let url = hook.serve().await;
    for answer in [500, 204, 302] {
        hook.answer(answer, "");
        assert_eq!(world.call("set_webhook", json!({ "url": url })).await["status"], 1);
    }
    for (body, status) in [
        (json!({}), 4),
        (json!({"url": 5}), 3),
        (json!({"url": "viber"}), 1),
        (json!({"url": "http://127.0.0.1:1/"}), 1),
        (json!({"url": url, "event_types": "all"}), 3),
    ] {
        assert_eq!(world.call("set_webhook", body).await["status"], status);
    }
    assert_eq!(world.send("nobody").await["status"], 10);

    let event_types = json!(["delivered", "webhook", "something"]);
    let answer = world.call("set_webhook", json!({ "url": url, "event_types": event_types })).await;
    assert_eq!(answer["event_types"], json!(["subscribed", "unsubscribed", "delivered", "message"]));
    let got = hook.got().pop().unwrap();
    assert_eq!(got.signature, signature(&world.bot.token, &got.body));
    assert!(got.body.starts_with(r#"{"event":"webhook","timestamp":"#) && got.query.is_empty(), "{}", got.body);
    let none = world.call("set_webhook", json!({ "url": url, "event_types": [] })).await;
    assert_eq!(none["event_types"], json!(["subscribed", "unsubscribed", "message"]));
    let all = world.call("set_webhook", json!({ "url": url, "event_types": null })).await;
    assert_eq!(all["event_types"].as_array().unwrap().len(), 7);
    assert_eq!(world.call("get_account_info", json!({})).await["webhook"], url);

    let gone = world.call("set_webhook", json!({ "url": "" })).await;
    assert_eq!(
        gone.to_string(),
        json!({"status": 0, "status_message": "ok", "chat_hostname": "SN-CHAT-05_", "event_types": []}).to_string()
    );
    assert_eq!(world.send("nobody").await["status"], 10);
    world.stop().await;
}

#[tokio::test]
async fn sends_are_refused_for_what_they_are() {
    let world = world(1.0, Pace::default(), NewBot::named("shop")).await;
    world.hook().await;
    let user = &world.users(1)[0];
    assert_eq!(world.send("nobody").await["status"], 5);
    assert_eq!(world.send(user).await["status"], 6);
    // Opening the conversation is no subscription.
    world.sandbox.act("shop", user, Act::Start { context: None }).unwrap();
    assert_eq!(world.send(user).await["status"], 6);
    world.write(user);
    assert_eq!(world.send(user).await["status"], 0);

    let with = |name: &str, value: Value| {
        let mut body = text_to(user);
        body[name] = value;
        body
    };
    for (body, status) in [
        (with("text", Value::Null), 4),
        (with("receiver", Value::Null), 4),
        (with("type", json!("song")), 3),
        (with("keyboard", json!({"Buttons": []})), 3),
        (with("min_api_version", json!(99)), 13),
        (json!([1]), 3),
        (with("text", json!("x".repeat(31 * 1024))), 3),
    ] {
        assert_eq!(world.call("send_message", body).await["status"], status);
    }
    let broken = world.client.post(format!("{}/pa/send_message", world.sandbox.base_url()));
    let broken = broken.header("x-viber-auth-token", &world.bot.token).body("{\"receiver\":").send().await.unwrap();
    assert_eq!(broken.status(), 200);
    assert!(broken.text().await.unwrap().starts_with(r#"{"status":3,"status_message":"badData: "#));

    world.sandbox.act("shop", user, Act::Unsubscribe).unwrap();
    assert_eq!(world.send(user).await["status"], 6);
    world.stop().await;
}

#[tokio::test]
async fn a_hundred_messages_without_a_reply() {
    let world = world(1.0, Pace::default(), NewBot::named("shop")).await;
    world.hook().await;
    let user = &world.users(1)[0];
    world.write(user);
    let mut tokens = Vec::new();
    for n in 0..101 {
        let answer = world.send(user).await;
        assert_eq!(answer["status"], if n < 100 { 0 } else { 12 }, "message {n}");
        tokens.push(answer["message_token"].as_u64().unwrap());
    }
    assert!(tokens.is_sorted_by(|a, b| a < b));
    world.write(user);
    let answer = world.client.post(format!("{}/pa/send_message", world.sandbox.base_url()));
    let answer = answer.header("x-viber-auth-token", &world.bot.token).body(text_to(user).to_string());
    let answer = answer.send().await.unwrap().text().await.unwrap();
    let token: u64 = answer.split("\"message_token\":").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert_eq!(
        answer,
        format!(
            r#"{{"status":0,"status_message":"ok","message_token":{token},"chat_hostname":"SN-CHAT-05_","billing_status":1}}"#
        )
    );
    world.stop().await;
}

#[tokio::test]
async fn broadcasts_details_presence_and_posts() {
    let world = world(1.0, Pace::default(), NewBot { free_quota: 1, ..NewBot::named("shop") }).await;
    world.hook().await;
    let users = world.users(4);
    world.write(&users[0]);
    for user in &users[1..3] {
        world.sandbox.act("shop", user, Act::Subscribe).unwrap();
    }
    let mut body = text_to("");
    body["broadcast_list"] = json!([users[0], users[1], users[2], users[3], "nobody", users[0]]);
    let answer = world.call("broadcast_message", body.clone()).await;
    // In session; free out of session; beyond the quota of a non-billable bot; not subscribed; unknown.
    let failed: Vec<_> = answer["failed_list"].as_array().unwrap().iter().map(|one| one["status"].clone()).collect();
    assert_eq!(
        (&answer["status"], &answer["billing_status"], failed),
        (&json!(0), &json!(3), vec![json!(23), json!(6), json!(5)])
    );
    let call = world.sandbox.ledger().calls().pop().unwrap();
    let billed: Vec<_> = call.receivers.iter().map(|one| one.billing_status).collect();
    assert_eq!(billed, [Some(1), Some(3), None, None, None]);
    body["broadcast_list"] = json!(vec!["x"; 301]);
    assert_eq!(world.call("broadcast_message", body).await["status"], 3);

    let details = world.call("get_user_details", json!({ "id": users[0] })).await;
    assert_eq!((&details["status"], &details["user"]["id"]), (&json!(0), &json!(users[0])));
    for (user, status) in [(&users[0], 0), (&users[0], 12), (&users[3], 6), (&"nobody".to_owned(), 5)] {
        assert_eq!(world.call("get_user_details", json!({ "id": user })).await["status"], status);
    }
    let online = world.call("get_online", json!({ "ids": [users[0], users[1], "nobody"] })).await;
    let seen: Vec<_> = online["users"].as_array().unwrap().iter().map(|one| one["online_status"].clone()).collect();
    assert_eq!(seen, [0, 1, 4].map(|status| json!(status)));
    assert_eq!(world.call("get_online", json!({ "ids": vec!["x"; 101] })).await["status"], 3);

    let info = world.call("get_account_info", json!({})).await;
    assert_eq!(info["subscribers_count"], 3);
    let post = |from: &Value| json!({ "from": from, "type": "text", "text": "news" });
    assert_eq!(world.call("post", post(&info["members"][0]["id"])).await["status"], 0);
    assert_eq!(world.call("post", post(&json!(users[0]))).await["status"], 15);
    world.stop().await;
}

#[tokio::test]
async fn tracking_data_comes_back_once_and_buttons_are_pressed() {
    let world = world(1.0, Pace::default(), NewBot::named("shop")).await;
    let hook = world.hook().await;
    let user = &world.users(1)[0];
    hook.answer(200, r#"{"sender":{"name":"Shop"},"type":"text","text":"Welcome","tracking_data":"w"}"#);
    let act = |action: &str| json!({ "bot": "shop", "user": user, "action": action, "wait": true });
    let started = world.control("act", act("start")).await;
    assert_eq!(started["first_attempt"]["http_status"], 200);
    let welcome = world.sandbox.ledger().calls().pop().unwrap();
    assert_eq!((welcome.method, welcome.status, welcome.message_token), ("welcome_message", Some(0), None));
    assert_eq!(world.control("act", act("write")).await["opened_session"], true);
    let keyboard = json!({ "Type": "keyboard", "Buttons": [{ "ActionBody": "yes" }] });
    let mut body = text_to(user);
    body["keyboard"] = keyboard;
    body["tracking_data"] = json!("for replace_me_with_receiver_id");
    assert_eq!(world.call("send_message", body).await["billing_status"], 1);
    let press = Act::Press { pick: 5, or: Content::text("no") };
    assert!(!world.sandbox.act("shop", user, press).unwrap().opened_session);
    world.until("told", |stats| stats.counts.callbacks["message"].acknowledged == 2).await;
    let messages: Vec<Value> = hook.got().iter().filter_map(|got| serde_json::from_str(&got.body).ok()).collect();
    let messages: Vec<_> =
        messages.iter().filter(|body| body["event"] == "message").map(|body| &body["message"]).collect();
    assert_eq!(messages[0], &json!({ "type": "text", "text": "Hello", "tracking_data": "w" }));
    let data = format!("for {user}");
    assert_eq!(messages[1], &json!({ "type": "text", "text": "yes", "tracking_data": data }));
    world.stop().await;
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_again_as_it_was() {
    let pace = Pace { sig_in_url: true, ..Pace::default() };
    let world = world(20_000.0, pace, NewBot::named("shop")).await;
    let hook = world.hook().await;
    let user = &world.users(1)[0];
    for status in [500, 404, 201] {
        hook.answer(status, "");
    }
    world.write(user);
    world.until("acknowledged", |stats| stats.counts.callbacks["message"].acknowledged == 1).await;
    let [_, got @ ..] = &hook.got()[..] else { panic!("the validation came first") };
    assert_eq!(got.len(), 4);
    for one in got {
        assert_eq!((&one.body, &one.signature), (&got[0].body, &signature(&world.bot.token, &got[0].body)));
        assert_eq!(one.query, format!("sig={}", one.signature));
    }
    let callback = world.sandbox.ledger().callbacks().pop().unwrap();
    let waits: Vec<i64> = callback.attempts.windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms).collect();
    assert!(
        callback.acknowledged && waits.iter().zip([10, 60, 300]).all(|(wait, least)| *wait >= least * 1000),
        "{waits:?}"
    );

    // Ten retries, then never again.
    for _ in 0..20 {
        hook.answer(500, "");
    }
    world.write(user);
    let stats = world.until("given up", |stats| stats.counts.callbacks["message"].given_up == 1).await;
    assert_eq!((stats.outstanding, stats.counts.callbacks["message"].attempts), (0, 4 + 11));
    world.stop().await;
}

#[tokio::test]
async fn a_bot_that_hangs_holds_up_no_other() {
    let world = world(1.0, Pace::default(), NewBot::named("slow")).await;
    let stuck = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let fast = world.hook().await;
    // From now on its connections are taken and never answered.
    let url = format!("http://{}/", stuck.local_addr().unwrap());
    let slow = world.sandbox.add_bot(NewBot::named("stuck")).unwrap();
    let answering = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = stuck.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
    };
    let body = json!({ "url": url });
    let (set, ()) = tokio::join!(world.call_as(Some(&slow.token), "set_webhook", &body), answering);
    assert_eq!(set.unwrap().1["status"], 0);
    for user in world.sandbox.add_users("stuck", 100, &NewUser::default()).unwrap() {
        world.sandbox.act("stuck", &user.profile.id, Act::Subscribe).unwrap();
    }
    let user = &world.users(1)[0];
    let act = json!({ "bot": "slow", "user": user, "action": "write", "wait": true });
    assert_eq!(world.control("act", act).await["first_attempt"]["http_status"], 200);
    assert_eq!(fast.got().len(), 2);
    assert_eq!(world.sandbox.stats().counts.callbacks["subscribed"].acknowledged, 0);
    drop(stuck);
    world.stop().await;
}

#[tokio::test]
async fn faults_do_what_they_say() {
    let bot = NewBot { billable: true, balance: Some(5), ..NewBot::named("shop") };
    let world = world(1.0, Pace { receipts: exact_receipts(), ..Pace::default() }, bot).await;
    let hook = world.hook().await;
    let user = &world.users(1)[0];
    let put = async |faults: Value| {
        let url = format!("{}/sandbox/faults", world.sandbox.base_url());
        assert_eq!(world.client.put(url).body(faults.to_string()).send().await.unwrap().status(), 200);
    };
    let body = text_to(user);
    let send = || world.call_as(Some(&world.bot.token), "send_message", &body);

    put(json!({ "lost_openings": 1.0 })).await;
    let lost = world.write(user);
    assert!(lost.opened_session && !lost.told);
    assert_eq!(hook.got().len(), 1, "the validation alone");
    assert!(world.sandbox.ledger().callbacks().iter().any(|one| one.lost && one.opens_session));
    // The session is there all the same.
    put(json!({})).await;
    assert_eq!(send().await.unwrap().1["billing_status"], 2);

    put(json!({ "misbill": 1.0 })).await;
    assert_eq!(send().await.unwrap().1["billing_status"], 5);
    assert_eq!(world.sandbox.bots()[0].balance, Some(4));
    let calls = world.sandbox.ledger().calls().len();

    put(json!({ "down": true })).await;
    assert!(send().await.is_err());
    put(json!({ "http_500": 1.0 })).await;
    assert_eq!(send().await.unwrap().0, StatusCode::INTERNAL_SERVER_ERROR);
    put(json!({ "cut_after_accept": 1.0 })).await;
    assert!(send().await.is_err());
    // Only sends are cut.
    assert_eq!(world.call("get_account_info", json!({})).await["status"], 0);
    let [down, failed, cut, _] = &world.sandbox.ledger().calls()[calls..] else { panic!("four calls") };
    assert_eq!((down.status, down.http_status, down.cut), (None, None, false));
    assert_eq!((failed.status, failed.http_status, failed.cut), (None, Some(500), false));
    assert_eq!((cut.status, cut.http_status, cut.cut, cut.billing_status), (Some(0), None, true, Some(2)));
    let stats = world.sandbox.stats();
    assert_eq!((stats.counts.misbilled, stats.counts.cut), (1, 1));
    put(json!({ "slow_ms": 1 })).await;
    assert_eq!(send().await.unwrap().1["status"], 0);
    // What was accepted is delivered, answered or not.
    let cut = cut.message_token.unwrap();
    let delivered = |one: &Callback| one.event == Event::Delivered && one.message_token == cut;
    world.until("delivered", |_| world.sandbox.ledger().callbacks().iter().any(delivered)).await;
    world.stop().await;
}

#[tokio::test]
async fn the_control_api_tells_what_is_wrong() {
    let world = world(1.0, Pace::default(), NewBot::named("shop")).await;
    let user = &world.users(1)[0];
    let get = async |path: &str| {
        let got = world.client.get(format!("{}/sandbox/{path}", world.sandbox.base_url())).send().await.unwrap();
        got.text().await.unwrap()
    };
    assert!(world.control("bots", json!({ "name": "shop" })).await["error"].as_str().unwrap().contains("already"));
    let made = world.control("bots", json!({ "name": "new", "model": "2024", "billable": true, "balance": 3 })).await;
    assert_eq!((&made["model"], &made["balance"]), (&json!("2024"), &json!(3)));
    let added =
        world.control("users", json!({ "bot": "new", "count": 3, "user": { "country": "BG", "devices": 2 } })).await;
    assert_eq!(
        (added.as_array().unwrap().len(), &added[2]["country"], &added[2]["devices"]),
        (3, &json!("BG"), &json!(2))
    );
    for (act, why) in [
        (json!({ "bot": "x", "user": user, "action": "write" }), "no bot"),
        (json!({ "bot": "shop", "user": "x", "action": "write" }), "no user"),
        (json!({ "bot": "shop", "user": user, "action": "unsubscribe" }), "not subscribed"),
        (json!({ "bot": "shop", "user": user, "action": "seen" }), "no unread"),
        (json!({ "bot": "shop", "user": user, "action": "dance" }), "unknown variant"),
    ] {
        let answer = world.control("act", act).await;
        assert!(answer["error"].as_str().unwrap().contains(why), "{answer}");
    }
    // Without a webhook nobody is told, and nobody waits.
    let written = world.control("act", json!({ "bot": "shop", "user": user, "action": "write", "wait": true })).await;
    assert_eq!((&written["told"], &written["opened_session"]), (&json!(false), &json!(true)));
    assert!(get("users?bot=shop").await.contains("session_opened_ms"));
    world.call("get_account_info", json!({})).await;
    let line: Value = serde_json::from_str(get("ledger?kind=calls").await.lines().next().unwrap()).unwrap();
    assert_eq!((&line["seq"], &line["kind"], &line["method"]), (&json!(0), &json!("call"), &json!("get_account_info")));
    assert_eq!(get("ledger?since=1").await, "");
    assert!(get("ledger?kind=all").await.contains("neither"));
    let stats: Value = serde_json::from_str(&get("stats").await).unwrap();
    assert_eq!((&stats["bots"], &stats["users"], &stats["sessions_opened"]), (&json!(2), &json!(4), &json!(1)));
    world.stop().await;
}
