//! `/metrics` as Prometheus sees it.

use super::harness::{Home, golden, message_body, until};
use super::tools::{prometheus, promtool};
use serde_json::Value;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Stdio};

#[test]
fn promtool_finds_nothing_to_say() {
    let home = Home::new(&[]);
    let server = home.serve();
    home.ok_with(&["import", "--wait", "-"], &golden("busy/events.ndjson.gz"));
    server.callback(&message_body("user-1==", 1));
    server.callback_signed(&message_body("user-1==", 2), "00");
    server.sql("select 1");
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("counterbat_events_total{"), "{metrics}");

    let mut child = promtool()
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

/// A file below `deploy`.
fn deployed(path: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

#[test]
fn each_alert_is_heard_when_it_should_be_and_has_a_remedy() {
    for args in [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]] {
        let output = promtool().args(args).current_dir(deployed("prometheus")).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
    let read = |path: &str| std::fs::read_to_string(deployed(path)).unwrap();
    let (rules, tests, remedies) = (read("prometheus/rules.yml"), read("prometheus/rules_test.yml"), read("alerts.md"));
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 15);
    for alert in alerts {
        let heard = tests.match_indices(alert).count();
        assert!(heard >= 1, "no test hears {alert}");
        assert!(remedies.contains(&format!("`{alert}`")), "no remedy for {alert}");
    }
}

#[test]
fn the_counters_are_those_of_sql() {
    let home = Home::new(&[]);
    let server = home.serve();
    home.ok_with(&["import", "--wait", "-"], &golden("busy/events.ndjson.gz"));
    for row in server.sql("select disposition, count(*) as n from events group by 1") {
        let series = format!(r#"counterbat_events_total{{disposition="{}"}}"#, row["disposition"].as_str().unwrap());
        assert_eq!(server.metric(&series) as i64, row["n"].as_i64().unwrap(), "{series}");
    }
    let open =
        server.number("select count(*) from sessions where state = 'open' and account = 'bot1' and kind = 'service'");
    let series = r#"counterbat_sessions_open{account="bot1",kind="service"}"#;
    until("the gauge", || server.metric(series) as i64, |value| *value == open);
}

#[test]
fn a_prometheus_scrapes_it() {
    let made: Value = serde_json::from_str(&Home::new(&[]).ok(&["token", "new", "prometheus", "--json"])).unwrap();
    let tokens = format!("console.tokens = [{{ name = \"prometheus\", sha256 = {} }}]", made["sha256"]);
    let home = Home::new(&[&tokens]);
    std::fs::write(home.path("token"), made["token"].as_str().unwrap()).unwrap();
    let server = home.serve();
    for n in 0..7 {
        assert_eq!(server.callback(&message_body("user-1==", 10 + n)).status, 200);
    }
    let target = server.console.trim_start_matches("http://");
    let config = home.path("prometheus.yml");
    let job = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: counterbat\n  authorization: {{credentials_file: token}}\n  static_configs: [{{targets: [\"{target}\"]}}]\n"
    );
    std::fs::write(&config, job).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let scraper = Killed(
        prometheus()
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", home.path("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let query = "sum(counterbat_callbacks_total{account=\"bot1\",event=\"message\"})";
    let url = reqwest::Url::parse_with_params(&format!("http://127.0.0.1:{port}/api/v1/query"), [("query", query)]);
    let (url, client) = (url.unwrap(), reqwest::Client::builder().no_proxy().build().unwrap());
    until(
        "the scraped value",
        || {
            let reply = super::harness::try_request(client.get(url.clone())).ok()?;
            let answer: Value = serde_json::from_slice(&reply.body).ok()?;
            answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
        },
        |value| value.as_deref() == Some("7"),
    );
    drop(scraper);
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
