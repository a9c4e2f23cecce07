//! The dashboards and rules of `deploy/`: whatever they ask has an answer.

use super::demo::Demo;
use super::golden::{import, settings};
use super::harness::{Home, Server, free_port, http, message_body, request, text, try_request, until};
use super::postgres::with_server;
use super::tools::{postgres_python, prometheus};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

fn dashboards() -> Vec<(String, Value)> {
    let folder = std::fs::read_dir(deployed("grafana/dashboards")).unwrap();
    let paths = folder.map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap())
    };
    paths.map(read).collect()
}

/// Panel and query, of those panels that have queries of this kind.
fn queries(kind: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, dashboard) in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let panel = format!("{name}/{}", panel["title"].as_str().unwrap());
                found.extend(target[kind].as_str().map(|query| (panel, query.to_owned())));
            }
        }
    }
    found
}

/// The panels whose queries have rows, of those that ask SQL.
fn panels_with_rows(server: &Server) -> BTreeSet<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/dashboards.py");
    let mut command = with_server(postgres_python(), server);
    let output = command.arg(script).arg(deployed("grafana/dashboards")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let counts = lines.lines().map(|line| line.rsplit_once('/').unwrap());
    counts.filter(|(_, rows)| *rows != "0").map(|(panel, _)| panel.to_owned()).collect()
}

#[test]
fn every_query_of_a_dashboard_has_rows() {
    let prices = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/prices");
    let mut with_rows = BTreeSet::new();
    for (history, policy, list) in [("busy", "viber-2022", "dated.csv"), ("tangled", "viber-2024", "gaps.csv")] {
        let mut settings = settings(history, policy);
        settings.push(format!("fold.prices = {:?}", prices.join(list).to_str().unwrap()));
        settings.push(r#"postgres.listen = "127.0.0.1:0""#.to_owned());
        let home = Home::new(&settings.iter().map(String::as_str).collect::<Vec<_>>());
        import(&home, history);
        with_rows.extend(panels_with_rows(&home.serve()));
    }
    // Sessions that are open now.
    let (_home, server) = with_money();
    assert_eq!(server.callback(&message_body("v==", 99)).status, 200);
    until("the session", || server.number("select count(*) from open_sessions"), |open| *open == 1);
    with_rows.extend(panels_with_rows(&server));
    let all: BTreeSet<String> = queries("rawSql").into_iter().map(|(panel, _)| panel).collect();
    assert!(all.len() > 15);
    let without: Vec<&String> = all.difference(&with_rows).collect();
    assert!(without.is_empty(), "no rows: {without:?}");
}

/// A server that has messages of this month which cost something, free ones among them, a budget, and a send of which
/// nobody knows what became.
fn with_money() -> (Home, Server) {
    let home = Home::new(&[]);
    let prices = home.path("prices.csv");
    std::fs::write(&prices, "country,currency,price,valid_from\nUA,EUR,0.05,2020-01-01\n").unwrap();
    let prices = format!("fold.prices = {:?}", prices.to_str().unwrap());
    let listen = r#"postgres.listen = "127.0.0.1:0""#;
    home.configure(&[&prices, r#"fold.policy = "viber-2022""#, "log.intent = true", listen]);
    let config = std::fs::read_to_string(home.config()).unwrap();
    let budget = "name = \"bot1\"\nbudget = { EUR = \"250\" }";
    std::fs::write(home.config(), config.replace("name = \"bot1\"", budget)).unwrap();
    let now = chrono::Utc::now();
    // Of this month also on its first day, and long ago enough for a call to be over.
    let at = |seconds: i64| (now - chrono::TimeDelta::seconds(seconds)).to_rfc3339();
    let line = |id: &str, kind: &str, time: String, data: Value| {
        let event = json!({"specversion": "1.0", "id": id, "source": "/accounts/bot1", "type": kind, "subject": "u==",
            "time": time, "data": data});
        format!("{event}\n")
    };
    let mut lines = line(
        "said",
        "com.viber.callback.subscribed",
        at(120),
        json!({"event": "subscribed",
        "timestamp": now.timestamp_millis() - 120_000, "message_token": 1, "user": {"id": "u==", "country": "UA"}}),
    );
    let sent = |n: i64| {
        let sent = json!({"request": {"receiver": "u==", "type": "text", "text": "hi"},
            "response": {"status": 0, "message_token": 10 + n, "billing_status": if n == 0 { 3 } else { 5 }}, "http_status": 200});
        line(&format!("sent-{n}"), "com.viber.api.send_message", at(100 - n), sent)
    };
    lines.extend((0..3).map(sent));
    let call = "0193a8a5-0000-7000-8000-000000000001";
    let started = json!({"call_id": call, "method": "send_message", "receivers": ["u=="], "digest": "0".repeat(64)});
    lines.push_str(&line(call, "counterbat.call.started", at(90), started));
    home.ok_with(&["import", "--wait", "-"], lines.as_bytes());
    let server = home.serve();
    // What a server has folded itself is in its counters.
    home.ok_with(&["import", "--wait", "-"], sent(3).as_bytes());
    (home, server)
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What has no series while all is well: without the comparison, and without the labels that name a misfortune.
fn while_all_is_well(expr: &str) -> String {
    let mut expr = expr.trim().to_owned();
    for comparison in [" >= ", " == ", " > ", " < "] {
        if let Some((left, right)) = expr.rsplit_once(comparison)
            && right.trim().parse::<f64>().is_ok()
        {
            expr = left.to_owned();
        }
    }
    for label in [r#"{status=~"23|24"}"#, r#"{reason=~"bad_signature|missing_signature"}"#] {
        expr = expr.replace(label, "");
    }
    // Callbacks come in: whoever has none of them is all who send.
    expr.split("unless").next().unwrap_or_default().to_owned()
}

#[test]
fn every_query_of_prometheus_has_an_answer() {
    let home = Home::new(&[]);
    let demo = Demo::start(&home, &["--speed", "1440", "--users", "40"]);
    let (money_home, money) = with_money();
    let port = free_port();
    let [target, other] =
        [&demo.console, &money.console].map(|console| console.trim_start_matches("http://").to_owned());
    // Somebody who is not Viber.
    let forged = http().post(format!("{}/webhooks/bot1", money.gateway)).body("{}");
    assert_ne!(request(forged).status, 200);
    let config = home.path("prometheus.yml");
    let rules = deployed("prometheus/rules.yml");
    let job = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules:?}]\nscrape_configs:\n- job_name: \
         counterbat\n  static_configs: [{{targets: [\"{target}\", \"{other}\"]}}]\n"
    );
    std::fs::write(&config, job).unwrap();
    let _scraper = Killed(
        prometheus()
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", home.path("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = |path: &str, query: &str| -> Option<Value> {
        let url = format!("http://127.0.0.1:{port}/api/v1/{path}");
        let url = reqwest::Url::parse_with_params(&url, [("query", query)]).unwrap();
        let reply = try_request(client.get(url)).ok()?;
        let answer: Value = serde_json::from_slice(&reply.body).ok()?;
        assert_ne!(answer["status"], "error", "{query}: {answer}");
        Some(answer["data"].clone())
    };
    let has_answer = |query: &str| {
        ask("query", query).is_some_and(|data| data["result"].as_array().is_some_and(|series| !series.is_empty()))
    };
    let rules = until(
        "the rules",
        || ask("rules", ""),
        |rules| rules.as_ref().is_some_and(|all| all["groups"] != Value::Array(Vec::new())),
    );
    let groups = rules.unwrap()["groups"].as_array().unwrap().clone();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned();
    let of_rules =
        rules.map(|rule| (rule["name"].as_str().unwrap().to_owned(), rule["query"].as_str().unwrap().to_owned()));
    let dashboards = queries("expr").into_iter();
    let all: Vec<(String, String)> = of_rules.chain(dashboards).collect();
    assert!(all.len() > 40, "{}", all.len());
    for (name, query) in all {
        let query = while_all_is_well(&query).replace("$account", ".*").replace("$__rate_interval", "1m");
        until(&format!("an answer to {name} ({query})"), || has_answer(&query), |has| *has);
    }
    drop((money, money_home));
}
