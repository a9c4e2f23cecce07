//! Gateways, projectors and query nodes as processes of their own, around Kafka and an object store.

use super::cluster::{Cluster, missing, stop_all};
use super::harness::{Home, Reply, Server, TOKEN, free_port, http, message_body, request, runtime, sign, until};
use super::parts::Kafka;
use super::viber::{Mood, Viber, call, seed, text_to};
use counterbat::log::EventLog;
use counterbat::log::kafka::{KafkaLog, Settings};
use counterbat::log::registry::Node;
use counterbat::sandbox::NewBot;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const KEY: &str = r#"gateway.key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f""#;
const SECRET: &str = r#"cluster.secret = "0123456789abcdef0123456789abcdef""#;
const ONE: &str = "1111111111111111-aaaaaaaaaaaaaaaa-1111111111111111";
const TWO: &str = "2222222222222222-bbbbbbbbbbbbbbbb-2222222222222222";

/// Two gateways, a projector and a query node. Viber reaches the second gateway alone.
struct Apart {
    cluster: Cluster,
    gateways: [Home; 2],
    projector: Home,
    query: Home,
}

impl Apart {
    fn new(viber: &Viber) -> Self {
        let second = format!("127.0.0.1:{}", free_port());
        let upstream = format!("upstream.url = {:?}", viber.sandbox.base_url());
        let public = format!("public_url = {:?}", format!("http://{second}"));
        let soon = ["lake.commit_every = \"200ms\"", "lake.snapshot_every = \"200ms\""];
        let all = [KEY, SECRET, &upstream, &public, "relay.allow_private = true"];
        let cluster = Cluster::new(3, &[&all[..], &soon].concat());
        let home = |role: &str| cluster.home_with(&[&format!("roles = [{role:?}]")]);
        let listen = format!("gateway.listen = {second:?}");
        let gateways = [home("gateway"), cluster.home_with(&[r#"roles = ["gateway"]"#, &listen])];
        Apart { gateways, projector: home("projector"), query: home("query"), cluster }
    }

    /// What the registry says of the processes that are there.
    fn nodes(&self) -> BTreeMap<String, Node> {
        let settings = Settings {
            brokers: Kafka::shared().brokers(),
            topic: self.cluster.topic(),
            state_topic: self.cluster.state_topic(),
            registry_topic: self.cluster.registry_topic(),
            group: "nobody".into(),
            create_topics: false,
            replication: None,
            partitions: 3,
            properties: Vec::new(),
        };
        let entries = runtime().block_on(async {
            let log = KafkaLog::open(settings).await.unwrap();
            log.registry().await.unwrap().unwrap().entries().borrow().clone()
        });
        Node::all(&entries)
    }
}

/// The status of Viber's kind that a call with this token gets.
fn status(server: &Server, token: &str) -> i64 {
    let reply = request(
        http().post(format!("{}/pa/get_account_info", server.gateway)).header("X-Viber-Auth-Token", token).body("{}"),
    );
    serde_json::from_slice::<Value>(&reply.body).unwrap()["status"].as_i64().unwrap()
}

fn callback(server: &Server, account: &str, token: &str, n: u64) -> u16 {
    let body = message_body("user-1==", n);
    let url = format!("{}/webhooks/{account}", server.gateway);
    request(http().post(url).header("X-Viber-Content-Signature", sign(token, &body)).body(body)).status
}

fn console(server: &Server, method: Method, path: &str) -> Reply {
    request(http().request(method, format!("{}{path}", server.console)).body(r#"{"sql":"select 1"}"#))
}

#[test]
fn each_role_alone_does_its_part() {
    if missing() {
        return;
    }
    let viber = Viber::start(seed(), 2);
    let apart = Apart::new(&viber);
    let [one, two] = [apart.gateways[0].serve(), apart.gateways[1].serve()];
    let (projector, query) = (apart.projector.serve(), apart.query.serve());
    for server in [&one, &two, &projector, &query] {
        until("readiness", || server.get("/readyz").status, |status| *status == 200);
    }

    // Who is there.
    let nodes = until(
        "all of them",
        || apart.nodes(),
        |nodes| nodes.len() == 4 && nodes.values().any(|node| node.partitions == [0, 1, 2]),
    );
    for (server, role) in [(&one, "gateway"), (&two, "gateway"), (&projector, "projector"), (&query, "query")] {
        let node = nodes.values().find(|node| node.address == server.console).unwrap();
        assert_eq!(node.roles, [role]);
        assert_eq!(node.partitions, if role == "projector" { vec![0, 1, 2] } else { Vec::new() });
        assert!(node.log_id.ends_with(&apart.cluster.topic()) && node.at_us > 0, "{node:?}");
        assert_eq!(server.gateway.is_empty(), role != "gateway");
    }

    // A webhook that is set at one gateway is checked by way of the other.
    let bot = viber.bot();
    bot.mood(Mood::Status(500));
    let url = format!("http://127.0.0.1:{}/bot", bot.port());
    let refused = call(&one.gateway, "set_webhook", &json!({ "url": url }));
    assert_ne!(refused.1["status"], 0, "the bot has refused the check: {refused:?}");
    bot.mood(Mood::Status(200));
    bot.register(&one);
    assert!(!bot.got().is_empty(), "the check did not reach the bot");
    let shown = || call(&two.gateway, "get_account_info", &json!({})).1["webhook"].clone();
    until("the webhook", shown, |shown| *shown == url.as_str());

    // What Viber tells the one and a bot sends through the other is folded, and seen.
    let written = viber.write(&viber.users[0]).message_token;
    until("the message at the bot", || bot.got(), |got| got.contains(&written));
    let sent = call(&one.gateway, "send_message", &text_to(&viber.users[0])).1;
    assert_eq!(sent["status"], 0, "{sent}");
    let session = format!("select inbound, outbound from sessions where user_id = '{}'", viber.users[0]);
    until("the session", || query.sql(&session), |rows| *rows == [json!({"inbound": 1, "outbound": 1})]);

    // What is not its role, it says.
    for (server, method, path, role) in [
        (&one, Method::POST, "/api/v1/sql", "query"),
        (&one, Method::POST, "/api/v1/import", "projector"),
        (&one, Method::GET, "/api/v1/export", "projector"),
        (&one, Method::POST, "/api/v1/redeliver", "query"),
        (&projector, Method::POST, "/api/v1/sql", "query"),
        (&projector, Method::GET, "/api/v1/accounts", "gateway"),
        (&query, Method::GET, "/api/v1/accounts/shop", "gateway"),
        (&query, Method::POST, "/api/v1/redeliver", "gateway"),
    ] {
        let reply = console(server, method, path);
        assert!(reply.status == 501 && reply.problem().contains(&format!("role {role}")), "{path}: {}", reply.text());
    }
    let error = apart.gateways[0].fails_with(&["sql", "select 1"], b"");
    assert!(error.contains("role query"), "{error}");
    assert!(one.metric(r#"counterbat_calls_total{account="bot1",method="send_message",status="0"}"#) > 0.0);
    for (home, server) in [(&apart.gateways[0], &one), (&apart.gateways[1], &two), (&apart.query, &query)] {
        assert!(!home.data().join("state").exists() && !server.log().contains("partitions are assigned"));
    }

    // Who ends in order is no longer there; who was killed is, until it is back.
    projector.stop_in_order();
    until("the farewell", || apart.nodes().len(), |nodes| *nodes == 3);
    assert_eq!(query.sql(&session).len(), 1, "without a projector the tables are still there");
    query.kill();
    assert_eq!(apart.nodes().len(), 3);
    let query = apart.query.serve();
    let has = |nodes: &BTreeMap<String, Node>| nodes.values().any(|node| node.address == query.console);
    until("its new address", || apart.nodes(), has);
    assert_eq!(apart.nodes().len(), 3);
    stop_all(vec![one, two, query]);
    assert_eq!(apart.nodes(), BTreeMap::new());
}

#[test]
fn an_account_is_every_gateways() {
    if missing() {
        return;
    }
    let viber = Viber::start(seed(), 1);
    viber.sandbox.add_bot(NewBot { token: Some(ONE.to_owned()), ..NewBot::named("shop") }).unwrap();
    let apart = Apart::new(&viber);
    // One that was added when there was no other gateway.
    let before = Home::new(&[KEY]);
    before.ok_with(&["account", "add", "older", "--policy", "gupshup"], TWO.as_bytes());
    let file = apart.gateways[0].data().join("accounts/older.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::copy(before.data().join("accounts/older.json"), &file).unwrap();

    let [one, two] = [apart.gateways[0].serve(), apart.gateways[1].serve()];
    let (projector, query) = (apart.projector.serve(), apart.query.serve());
    until("the news", || one.log(), |log| log.contains("taken over from the data directory"));
    assert!(!file.exists());
    until("the older account", || callback(&two, "older", TWO, 1), |status| *status == 200);

    assert_eq!(callback(&two, "shop", ONE, 2), 403);
    apart.gateways[0].ok_with(&["account", "add", "shop", "--policy", "vbm"], ONE.as_bytes());
    until("the new account", || callback(&two, "shop", ONE, 2), |status| *status == 200);
    assert_eq!(status(&two, ONE), 0);
    // A projector goes by the policy that was given at a gateway.
    let policies = "select account, policy from sessions order by account";
    let wanted = [json!({"account": "older", "policy": "gupshup"}), json!({"account": "shop", "policy": "vbm"})];
    until("the sessions", || query.sql(policies), |rows| *rows == wanted);
    let error = apart.gateways[1].fails_with(&["account", "add", "shop"], b"other-token");
    assert!(error.contains("already"), "{error}");
    apart.gateways[1].ok(&["account", "pause", "shop"]);
    until("the pause", || status(&one, ONE), |status| *status == 9);
    apart.gateways[1].ok(&["account", "resume", "shop"]);
    apart.gateways[0].ok(&["account", "remove", "shop"]);
    until("the removal", || callback(&two, "shop", ONE, 3), |status| *status == 403);

    // Accounts are looked at and changed without a server as well, and servers use what came of it.
    one.stop_in_order();
    assert!(apart.gateways[0].ok(&["account", "list"]).contains("older"));
    apart.gateways[0].ok_with(&["account", "add", "shop"], ONE.as_bytes());
    until("its return", || callback(&two, "shop", ONE, 4), |status| *status == 200);

    // A gateway with another key can serve none of them, and says so.
    let stranger = apart.cluster.home_with(&[r#"roles = ["gateway"]"#, &KEY.replace("00", "ff")]);
    let error = stranger.fails_with(&["serve"], b"");
    assert!(error.contains("`older` cannot be opened") && !error.contains(TWO), "{error}");
    for token in [ONE, TWO, TOKEN] {
        assert!(!two.log().contains(token) && !projector.log().contains(token));
    }
    stop_all(vec![two, projector, query]);
}

#[test]
fn roles_that_cannot_be_are_refused() {
    let home = Home::new(&[]);
    for roles in ["gateway", "projector,query"] {
        let error = home.fails_with(&["serve", "--roles", roles], b"");
        assert!(error.contains(&format!("roles {roles}")) && error.contains(r#"kind = "kafka""#), "{error}");
    }
    let output = home.run(&["serve", "--roles", "gateway,gatway"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("no role `gatway`: the roles are gateway, projector and query"), "{error}");
    home.configure(&[r#"roles = ["bot"]"#]);
    let error = home.fails_with(&["serve"], b"");
    assert!(error.contains("no role `bot`") && error.contains("line "), "{error}");
    home.configure(&[r#"roles = ["query"]"#, r#"log.kind = "kafka""#]);
    let error = home.fails_with(&["serve"], b"");
    assert!(error.contains("secret_file under [cluster]"), "{error}");
    home.configure(&[r#"roles = ["query"]"#, r#"log.kind = "kafka""#, r#"cluster.secret = "hush""#]);
    let error = home.fails_with(&["serve"], b"");
    assert!(error.contains("4 characters") && !error.contains("hush"), "{error}");
    // The flag goes before the config.
    home.configure(&[r#"roles = ["query"]"#]);
    let server = home.serve_as("gateway,projector,query");
    assert!(!server.gateway.is_empty());
    server.stop_in_order();
}
