//! Accounts that come and go while the server runs, their limits, and TLS.

use super::harness::{Home, Reply, Server, TOKEN, http, message_body, request, sign, until};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const KEY: &str = r#"gateway.key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f""#;
/// Nobody answers there, so a call that is let through says so.
const NO_VIBER: &str = r#"upstream.url = "http://127.0.0.1:9""#;
const ONE: &str = "1111111111111111-aaaaaaaaaaaaaaaa-1111111111111111";
const TWO: &str = "2222222222222222-bbbbbbbbbbbbbbbb-2222222222222222";

fn callback(server: &Server, account: &str, token: &str, n: u64) -> u16 {
    let body = message_body("user-1==", n);
    let url = format!("{}/webhooks/{account}", server.gateway);
    request(http().post(url).header("X-Viber-Content-Signature", sign(token, &body)).body(body)).status
}

/// The status of Viber's kind that a call with this token gets.
fn call(server: &Server, token: &str) -> i64 {
    let body = json!({ "auth_token": token, "receiver": "user-1==", "type": "text", "text": "hi" }).to_string();
    let reply = request(http().post(format!("{}/pa/send_message", server.gateway)).body(body));
    assert_eq!(reply.status, 200);
    serde_json::from_slice::<Value>(&reply.body).unwrap()["status"].as_i64().unwrap()
}

/// A `message` callback of now, as a line of a file.
fn message_event(account: &str, user: &str, token: u64) -> String {
    let data: Value = serde_json::from_str(&message_body(user, token)).unwrap();
    let event = json!({ "specversion": "1.0", "id": format!("message/{token}/{user}"), "subject": user,
        "source": format!("/accounts/{account}"), "type": "com.viber.callback.message", "data": data });
    format!("{event}\n")
}

/// What a call gets that is let through to no Viber.
const RELAYED: i64 = 1000;

fn api(server: &Server, method: Method, path: &str, body: &str) -> Reply {
    request(http().request(method, format!("{}/api/v1/accounts{path}", server.console)).body(body.to_owned()))
}

/// Files below a folder that hold these bytes.
fn files_with(dir: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if std::fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn an_account_lives_from_add_to_remove_across_restarts() {
    let home = Home::new(&[KEY, NO_VIBER]);
    let server = home.serve();
    assert_eq!((callback(&server, "shop", ONE, 1), call(&server, ONE)), (403, 2));
    // The fold has met the account, in every partition, before it is added.
    let early: String = (0..32).map(|n| message_event("shop", &format!("early-{n}"), n)).collect();
    home.ok_with(&["import", "--wait", "-"], early.as_bytes());
    home.ok_with(&["account", "add", "shop", "--policy", "vbm"], format!("{ONE}\n").as_bytes());
    assert_eq!((callback(&server, "shop", ONE, 1), call(&server, ONE)), (200, RELAYED));
    let session = "select policy, inbound from sessions where account = 'shop' and user_id = 'user-1=='";
    let rows = until("the session", || server.sql(session), |rows| !rows.is_empty());
    assert_eq!(rows, [json!({"policy": "vbm", "inbound": 1})]);

    std::fs::write(home.path("two.token"), TWO).unwrap();
    home.ok(&["account", "rotate", "shop", "--keep-old", "48h", "--token-file", "two.token"]);
    for (token, n) in [(ONE, 2), (TWO, 3)] {
        assert_eq!((callback(&server, "shop", token, n), call(&server, token)), (200, RELAYED), "{n}");
    }
    home.ok(&["account", "pause", "shop"]);
    let paused = (callback(&server, "shop", TWO, 4), call(&server, TWO), call(&server, ONE));
    assert_eq!(paused, (200, 9, 9));
    assert_eq!(server.metric(r#"counterbat_rejected_total{reason="paused"}"#), 2.0);
    let mut log = server.log();
    assert!(server.stop().success());

    let listed = home.ok(&["account", "list"]);
    assert!(listed.lines().any(|line| line.starts_with("shop  data    paused  vbm") && line.contains("2, one until")));
    home.ok(&["account", "resume", "shop"]);
    let server = home.serve();
    for (token, n) in [(ONE, 5), (TWO, 6)] {
        assert_eq!((callback(&server, "shop", token, n), call(&server, token)), (200, RELAYED), "{n}");
    }
    home.ok(&["account", "remove", "shop"]);
    assert_eq!((callback(&server, "shop", TWO, 7), call(&server, TWO)), (403, 2));
    assert!(home.fails_with(&["account", "show", "shop"], b"").contains("no account `shop`"));
    until("the last fact", || server.sql(session)[0]["inbound"].as_i64(), |n| *n == Some(6));
    let counterbat = "select count(*) from sessions where account = 'shop' and policy = 'counterbat'";
    assert_eq!(server.number(counterbat), 32);
    log.push_str(&server.log());
    assert!(server.stop().success());

    // Its history is folded as before, and comes with it when it comes back.
    home.ok(&["rebuild"]);
    assert_eq!(home.sql(session), [json!({"policy": "vbm", "inbound": 6})]);
    assert_eq!(home.number(counterbat), 0);
    let error = home.fails_with(&["account", "add", "shop", "--policy", "gupshup"], ONE.as_bytes());
    assert!(error.contains("folded under policy `vbm`"), "{error}");
    assert!(home.ok_with(&["account", "add", "shop"], ONE.as_bytes()).contains("vbm"));
    for token in [ONE, TWO, TOKEN] {
        assert_eq!(files_with(&home.data(), token.as_bytes()), [""; 0]);
        assert!(!log.contains(token));
    }
}

#[test]
fn tokens_are_stored_under_the_key_of_the_config_alone() {
    let home = Home::new(&[]);
    let error = home.fails_with(&["account", "add", "shop"], ONE.as_bytes());
    assert!(error.contains("key_file") && error.contains("openssl rand -hex 32"), "{error}");
    home.configure(&[r#"gateway.key = "too-short""#]);
    let error = home.fails_with(&["account", "list"], b"");
    assert!(error.contains("openssl rand -hex 32") && !error.contains("too-short"), "{error}");
    home.configure(&[KEY]);
    home.ok_with(&["account", "add", "shop"], ONE.as_bytes());
    assert!(home.ok(&["config"]).contains("key = \"(secret)\""));

    home.configure(&[r#"gateway.key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=""#]);
    drop(home.serve());
    home.configure(&[&KEY.replace("00", "ff")]);
    let error = home.fails_with(&["serve"], b"");
    assert!(error.contains("account `shop` cannot be opened") && !error.contains(ONE), "{error}");
    home.configure(&[]);
    assert!(home.fails_with(&["serve"], b"").contains("`shop`"));
    // Without the key it can still be seen and removed.
    assert!(home.ok(&["account", "list"]).contains("shop"));
    home.ok(&["account", "remove", "shop"]);
    drop(home.serve());

    std::fs::write(home.data().join("accounts/shop.json"), "{").unwrap();
    for command in [&["serve"][..], &["sql", "select 1"], &["account", "list"]] {
        let error = home.fails_with(command, b"");
        assert!(error.contains("accounts/shop.json is damaged"), "{error}");
    }
}

#[test]
fn operators_change_accounts_over_http() {
    let home = Home::new(&[KEY, NO_VIBER]);
    let server = home.serve();
    let new = json!({ "name": "shop", "token": ONE, "policy": "viber-2024", "limit": 5 }).to_string();
    let added = api(&server, Method::POST, "", &new);
    assert_eq!(added.status, 201, "{}", added.text());
    let shop = json!({"name": "shop", "origin": "data", "paused": false, "policy": "viber-2024", "limit": 5,
        "tokens": [{"until": null}]});
    assert_eq!(serde_json::from_slice::<Value>(&added.body).unwrap(), shop);
    let all: Vec<Value> = serde_json::from_slice(&api(&server, Method::GET, "", "").body).unwrap();
    assert_eq!(all.iter().map(|one| one["origin"].as_str().unwrap()).collect::<Vec<_>>(), ["config", "config", "data"]);
    assert_eq!(all[2], shop);
    let changed = api(&server, Method::PATCH, "/shop", r#"{"paused":true,"limit":null}"#);
    let changed: Value = serde_json::from_slice(&changed.body).unwrap();
    assert_eq!((&changed["paused"], &changed["limit"]), (&json!(true), &Value::Null));
    let rotated = api(&server, Method::POST, "/shop/rotate", &json!({ "token": TWO, "keep_old": "1h" }).to_string());
    assert_eq!(serde_json::from_slice::<Value>(&rotated.body).unwrap()["tokens"].as_array().unwrap().len(), 2);

    let taken = json!({ "name": "other", "token": TOKEN }).to_string();
    let misspelt = format!(r#"{{"name":"other","tokn":"{ONE}"}}"#);
    for (method, path, body, status, part) in [
        (Method::POST, "", new.as_str(), 409, "already"),
        (Method::POST, "", &taken, 409, "token of account `bot1`"),
        (Method::POST, "", r#"{"name":"A","token":"x"}"#, 422, "no name"),
        (Method::POST, "", &misspelt, 400, "\"token\""),
        (Method::PATCH, "/shop", r#"{"limit":"5"}"#, 400, "limit"),
        (Method::PATCH, "/bot1", r#"{"paused":true}"#, 409, "comes from the config"),
        (Method::GET, "/nobody", "", 404, "no account `nobody`"),
        (Method::POST, "/nobody/rotate", r#"{"token":"x"}"#, 404, "nobody"),
    ] {
        let reply = api(&server, method, path, body);
        let text = reply.problem();
        assert!(reply.status == status && text.contains(part), "{path} {body}: {} {text}", reply.status);
        assert!([ONE, TWO, TOKEN].iter().all(|token| !text.contains(token)), "{text}");
    }
    assert_eq!(api(&server, Method::DELETE, "/shop", "").status, 204);
    assert_eq!(api(&server, Method::DELETE, "/shop", "").status, 404);
}

#[test]
fn calls_over_the_limit_are_refused() {
    // Two seconds' worth at once; the rest of the minute that a slow machine may take gives one a second.
    let home = Home::new(&[KEY, NO_VIBER, "gateway.requests_per_second = 1"]);
    let server = home.serve();
    home.ok_with(&["account", "add", "free", "--limit", "0"], ONE.as_bytes());
    let statuses: Vec<i64> = (0..50).map(|_| call(&server, TOKEN)).collect();
    assert_eq!(statuses[..2], [RELAYED, RELAYED]);
    assert!(statuses.contains(&12), "{statuses:?}");
    assert!((0..50).all(|_| call(&server, ONE) == RELAYED));
    // Callbacks are not limited.
    assert!((0..50).all(|n| callback(&server, "bot1", TOKEN, 100 + n) == 200));
    let refused = statuses.iter().filter(|status| **status == 12).count();
    assert_eq!(server.metric(r#"counterbat_rejected_total{reason="rate_limited"}"#), refused as f64);
}

#[test]
fn the_gateway_speaks_tls() {
    let home = Home::new(&[NO_VIBER]);
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(home.path("chain.pem"), cert.pem()).unwrap();
    home.configure(&[NO_VIBER, r#"gateway.tls = { cert = "chain.pem", key = "key.pem" }"#]);
    let error = home.fails_with(&["serve"], b"");
    assert!(error.contains("key.pem"), "{error}");
    std::fs::write(home.path("key.pem"), signing_key.serialize_pem()).unwrap();
    let server = home.serve();
    let port = server.gateway.strip_prefix("https://127.0.0.1:").unwrap();
    for version in ["--http1.1", "--http2"] {
        let output = Command::new("curl")
            .args(["-sS", version, "--noproxy", "*", "--resolve", &format!("localhost:{port}:127.0.0.1")])
            .arg("--cacert")
            .arg(home.path("chain.pem"))
            .args(["-H", &format!("X-Viber-Auth-Token: {TOKEN}"), "-w", " %{http_version}"])
            .arg(format!("https://localhost:{port}/pa/get_account_info"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let wanted = if version == "--http2" { " 2" } else { " 1.1" };
        assert!(said.starts_with(r#"{"status":1000"#) && said.ends_with(wanted), "{version}: {output:?}");
    }
    // Commands go to the console, which stays plain.
    assert!(home.ok(&["account", "list"]).contains("bot1"));
    assert!(server.stop().success());
}
