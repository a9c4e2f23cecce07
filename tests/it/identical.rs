//! The same calls straight to the sandbox and through the gateway get the same bytes.

use super::double::Double;
use super::harness::{Home, Server, TOKEN, http, runtime};
use axum::Router;
use axum::http::{StatusCode, Uri};
use reqwest::Method;
use serde_json::{Value, json};
use std::fmt::Debug;

/// Two sandboxes with the same tokens and users: one for itself, one behind a gateway.
struct Ways {
    direct: Double,
    behind: Double,
    server: Server,
    _home: Home,
    /// A bot that answers 200, and 500 at `/500`.
    bot: String,
}

/// What is compared of an answer.
#[derive(Debug, PartialEq)]
struct Answer {
    version: reqwest::Version,
    status: u16,
    /// All but the date.
    headers: Vec<(String, String)>,
    /// Each digit of what follows from the clock is a 1.
    body: String,
}

impl Ways {
    fn new() -> Self {
        let (direct, behind) = (Double::start(3, 1), Double::start(3, 1));
        assert_eq!(direct.users, behind.users);
        let upstream = format!("upstream.url = {:?}", behind.url);
        let home = Home::new(&[&upstream, "relay.allow_private = true", r#"gateway.watch_every = "0s""#]);
        let server = home.serve();
        let listener = runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let bot = format!("http://{}", listener.local_addr().unwrap());
        let answer =
            async |uri: Uri| if uri.path() == "/500" { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        runtime().spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Ways { direct, behind, server, _home: home, bot }
    }

    fn user(&self, n: usize) -> &str {
        &self.direct.users[n]
    }

    /// On both sides a user does the same.
    fn act(&self, user: usize, action: &str) {
        for side in [&self.direct, &self.behind] {
            side.act(&side.users[user], action, &json!({}));
        }
    }

    /// A call both ways: what both answer.
    fn both(&self, call: &Call) -> (Answer, Answer) {
        (call.send(&self.direct.url), call.send(&self.server.gateway))
    }

    /// A call that is answered the same both ways; Viber's status in it, -1 where there is none.
    fn same(&self, call: Call) -> i64 {
        let (direct, through) = self.both(&call);
        assert_eq!(direct, through, "{} {}", call.path, String::from_utf8_lossy(&call.body));
        status(&direct)
    }
}

fn status(answer: &Answer) -> i64 {
    serde_json::from_str(&answer.body).map_or(-1, |body: Value| body["status"].as_i64().unwrap_or(-1))
}

/// A call; the token is that of the header.
struct Call {
    method: Method,
    path: String,
    token: Option<&'static str>,
    body: Vec<u8>,
}

impl Call {
    fn send(&self, base: &str) -> Answer {
        let mut request = http().request(self.method.clone(), format!("{base}{}", self.path)).body(self.body.clone());
        if let Some(token) = self.token {
            request = request.header("X-Viber-Auth-Token", token);
        }
        runtime().block_on(async {
            let response = request.send().await.unwrap();
            let headers = response.headers().iter().filter(|(name, _)| *name != "date");
            let text = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
                (name.to_string(), value.to_str().unwrap().to_owned())
            };
            let mut headers: Vec<_> = headers.map(text).collect();
            headers.sort();
            let (version, status) = (response.version(), response.status().as_u16());
            Answer { version, status, headers, body: timeless(&response.text().await.unwrap()) }
        })
    }
}

/// With the token in the header.
fn call(name: &str, body: impl ToString) -> Call {
    Call { method: Method::POST, path: format!("/pa/{name}"), token: Some(TOKEN), body: body.to_string().into_bytes() }
}

/// With no token but what the body has.
fn bare(name: &str, body: impl ToString) -> Call {
    Call { token: None, ..call(name, body) }
}

fn timeless(body: &str) -> String {
    let (mut out, mut rest) = (String::new(), body);
    let next = |rest: &str| {
        let names = ["\"message_token\":", "\"last_online\":"].into_iter();
        names.filter_map(|name| Some(rest.find(name)? + name.len())).min()
    };
    while let Some(end) = next(rest) {
        let digits = rest[end..].bytes().take_while(u8::is_ascii_digit).count();
        out = out + &rest[..end] + &"1".repeat(digits);
        rest = &rest[end + digits..];
    }
    out + rest
}

/// A text message.
fn text(receiver: &str) -> Value {
    json!({"receiver": receiver, "sender": {"name": "Shop"}, "type": "text", "text": "Hello 👋"})
}

/// An object with more members.
fn with(mut object: Value, more: Value) -> Value {
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

#[test]
fn webhooks() {
    let ways = Ways::new();
    let url = format!("{}/viber?key=1", ways.bot);
    let shown = |types: Value| {
        let (_, through) = ways.both(&call("get_account_info", "{}"));
        let info: Value = serde_json::from_str(&through.body).unwrap();
        assert_eq!((&info["webhook"], &info["event_types"]), (&json!(url), &types));
    };
    assert_eq!(ways.same(call("get_account_info", "{}")), 0);
    assert_eq!(ways.same(call("send_message", text(ways.user(0)))), 10);
    for types in [json!(null), json!([]), json!(["seen", "seen", "message", "client_status"]), json!(["failed"])] {
        let body = json!({"url": url, "event_types": types, "send_name": true, "is_inline": false});
        assert_eq!(ways.same(call("set_webhook", body)), 0, "{types}");
        assert_eq!(ways.same(call("get_account_info", "{}")), 0);
    }
    shown(json!(["subscribed", "unsubscribed", "failed", "message"]));
    let authorized = json!({"url": url, "auth_token": TOKEN});
    assert_eq!(ways.same(bare("set_webhook", authorized)), 0);
    assert_eq!(ways.same(call("set_webhook", format!(r#" {{ "url":"x", "url":{} }} "#, json!(url)))), 0);
    // Refused, so the last one stays.
    for (body, status) in [
        (json!({"url": format!("{}/500", ways.bot)}), 1),
        (json!({"url": url, "event_types": "seen"}), 3),
        (json!({"url": url, "event_types": [1]}), 3),
        (json!({"url": 5}), 3),
        (json!({"url": null}), 4),
        (json!({}), 4),
        (json!([url]), 3),
    ] {
        assert_eq!(ways.same(call("set_webhook", &body)), status, "{body}");
    }
    // Here the gateway must say something of its own: why the webhook cannot be one, and how it cannot be reached.
    for url in ["ftp://bot.example/", "no url", "http://127.0.0.1:9/"] {
        let (direct, through) = ways.both(&call("set_webhook", json!({"url": url})));
        assert_eq!((status(&direct), status(&through)), (1, 1), "{url}");
    }
    shown(json!(["subscribed", "unsubscribed", "conversation_started", "delivered", "failed", "message", "seen"]));
    for path in ["/pa/get_account_info", "//pa/get_account_info", "/pa/get_account_info?x=%20y"] {
        for method in [Method::GET, Method::POST] {
            assert_eq!(ways.same(Call { method, path: path.to_owned(), ..call("", "") }), 0, "{path}");
        }
    }
    for _ in 0..2 {
        assert_eq!(ways.same(call("set_webhook", r#"{"url":""}"#)), 0);
        assert_eq!(ways.same(bare("get_account_info", json!({"auth_token": TOKEN}))), 0);
    }
}

#[test]
fn messages_and_questions() {
    let ways = Ways::new();
    assert_eq!(ways.same(call("set_webhook", json!({"url": ways.bot}))), 0);
    let (user, silent) = (ways.user(0), ways.user(1));
    assert_eq!(ways.same(call("send_message", text(user))), 6);
    ways.act(0, "write");
    ways.act(2, "subscribe");
    let button = json!({"ActionType": "reply", "ActionBody": "order", "Text": "Order"});
    let keyboard = json!({"Type": "keyboard", "Buttons": [button]});
    let cards = json!({"Type": "rich_media", "ButtonsGroupRows": 1, "Buttons": [button]});
    let media = "https://media.example/a.jpg";
    let payment = json!({"type": "GooglePay", "total_price": 1.50, "currency_code": "UAH",
        "payment_parameters": [{"key": "a", "value": "b"}]});
    for (message, status) in [
        (json!({}), 0),
        (json!({"keyboard": keyboard, "tracking_data": "order-17"}), 0),
        (json!({"type": "picture", "media": media, "thumbnail": null}), 0),
        (json!({"type": "video", "media": media, "size": 1000, "duration": 10}), 0),
        (json!({"type": "file", "media": media, "size": 1000, "file_name": "a.pdf"}), 0),
        (json!({"type": "contact", "contact": {"name": "Taras", "phone_number": "+380441234567"}}), 0),
        (json!({"type": "location", "location": {"lat": "50.4501", "lon": 30.5234}}), 0),
        (json!({"type": "url", "media": media}), 0),
        (json!({"type": "sticker", "sticker_id": 46105}), 0),
        (json!({"type": "rich_media", "rich_media": cards, "min_api_version": 7, "alt_text": "Cards"}), 0),
        (json!({"type": "payment", "payment": payment, "min_api_version": 10}), 0),
        (json!({"type": null, "keyboard": keyboard}), 0),
        (json!({"type": "poem"}), 3),
        (json!({"type": "file", "media": media, "size": 1, "file_name": "a.exe"}), 3),
        (json!({"text": null}), 4),
        (json!({"sender": {}}), 4),
        (json!({"receiver": null}), 4),
        (json!({"receiver": "nobody=="}), 5),
        (json!({"receiver": silent}), 6),
        (json!({"min_api_version": 99}), 13),
    ] {
        assert_eq!(ways.same(call("send_message", with(text(user), message.clone()))), status, "{message}");
    }
    let body = with(text(user), json!({"auth_token": TOKEN}));
    assert_eq!(ways.same(bare("send_message", &body)), 0);
    assert_eq!(ways.same(call("send_message", &body)), 0);
    assert_eq!(ways.same(Call { path: "//pa/send_message?x=1".to_owned(), ..bare("", &body) }), 0);
    let list = json!([user, silent, "nobody==", ways.user(2)]);
    for (list, status) in [(list, 0), (json!([]), 4), (json!(user), 3), (json!(vec!["x"; 301]), 3)] {
        let body = with(text(user), json!({"receiver": null, "broadcast_list": list}));
        assert_eq!(ways.same(call("broadcast_message", body)), status);
    }
    for (ids, status) in [(json!([user, silent, "nobody=="]), 0), (json!(vec!["x"; 101]), 3), (json!(null), 4)] {
        assert_eq!(ways.same(call("get_online", json!({"ids": ids}))), status);
    }
    for (id, status) in [(user, 0), (user, 0), (user, 12), (silent, 6), ("nobody==", 5)] {
        assert_eq!(ways.same(call("get_user_details", json!({"id": id}))), status);
    }
    let (account, _) = ways.both(&call("get_account_info", "{}"));
    let account: Value = serde_json::from_str(&account.body).unwrap();
    for (member, status) in [(&account["members"][0]["id"], 0), (&json!(user), 15), (&json!(null), 4)] {
        assert_eq!(ways.same(call("post", json!({"from": member, "type": "text", "text": "News"}))), status);
    }
}

#[test]
fn calls_that_are_none() {
    let ways = Ways::new();
    const OTHER: &str = "0000000000000000-0000000000000000-0000000000000000";
    for name in ["send_message", "get_account_info", "set_webhook"] {
        let with_token = |token: Value| bare(name, json!({"auth_token": token, "url": ways.bot}));
        assert_eq!(ways.same(Call { token: Some(OTHER), ..call(name, "{}") }), 2);
        assert_eq!(ways.same(Call { token: Some(""), ..call(name, "{}") }), 2);
        assert_eq!(ways.same(Call { token: Some(OTHER), ..with_token(json!(TOKEN)) }), 2);
        for token in [json!(OTHER), json!(5), json!([TOKEN]), json!(""), json!(null)] {
            assert_eq!(ways.same(with_token(token)), 2);
        }
        for body in ["", "{}", "[]", "{", r#"{"auth_token""#] {
            assert_eq!(ways.same(bare(name, body)), 2, "{body}");
        }
    }
    assert_eq!(ways.same(call("set_webhook", json!({"url": ways.bot}))), 0);
    let long = format!("{{\"text\":\"{}\"}}", "x".repeat(31 * 1024));
    let deep = "[".repeat(20_000);
    for name in ["send_message", "broadcast_message", "set_webhook", "get_online", "get_user_details", "post"] {
        for body in ["{", "[]", "null", "{\"a\":1e999}", &long, &deep, r#"{"a":"\ud800"}"#] {
            assert_eq!(ways.same(call(name, body)), 3, "{name}: {}", &body[..body.len().min(40)]);
        }
        assert_eq!(ways.same(Call { body: b"{\"text\":\"\xff\"}".to_vec(), ..call(name, "") }), 3);
        assert_eq!(ways.same(call(name, "")), 4, "{name}");
    }
    for name in ["no_such_method", "Send_Message", "send-message"] {
        assert_eq!(ways.same(call(name, "{}")), -1);
    }
}
