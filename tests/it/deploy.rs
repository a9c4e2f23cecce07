//! docker-compose.yml, without an engine for containers: it is a valid compose file, and each of its services works when
//! started by hand with the very command, environment, files and health check it has there.

use super::harness::{TOKEN, free_port, http, message_body, request, sign, text, until};
use super::parts::{Process, missing};
use super::tools;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const URL: &str = "https://bots.example.com";
/// Services whose program cannot be had without an engine.
const NOT_STARTED: [&str; 1] = ["grafana"];

/// The compose file with what belongs to it, in a folder of its own, after `deploy/init`.
/// What of `.env` is no secret: digests and verifiers of tokens are shown to whoever may look at the config.
const PUBLIC: [&str; 5] =
    ["PUBLIC_URL", "KAFKA_CLUSTER_ID", "CONSOLE_TOKEN_SHA256", "MONITORING_TOKEN_SHA256", "MONITORING_TOKEN_SCRAM"];

struct Deployment {
    dir: tempfile::TempDir,
}

impl Deployment {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut copy = Command::new("cp");
        copy.arg("-r").args(["docker-compose.yml", "deploy"].map(|name| top.join(name)));
        let copied = copy.arg(dir.path()).output().unwrap();
        assert!(copied.status.success(), "{}", text(&copied.stderr));
        let deployment = Deployment { dir };
        let made = deployment.init(&[URL]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        deployment
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn init(&self, args: &[&str]) -> Output {
        Command::new("bash").arg(self.path("deploy/init")).args(args).output().unwrap()
    }

    /// What `.env` says.
    fn variables(&self) -> BTreeMap<String, String> {
        let env = std::fs::read_to_string(self.path(".env")).unwrap();
        let lines = env.lines().filter(|line| !line.starts_with('#'));
        let told = lines.filter_map(|line| line.split_once('='));
        told.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect()
    }

    /// Reads the compose file as `by_hand.py` says.
    fn read(&self, variables: &BTreeMap<String, String>) -> Output {
        let schema = self.path("schema.json");
        std::fs::write(&schema, tools::compose_schema().output().unwrap().stdout).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/deploy/by_hand.py");
        let ports = (0..32).map(|_| free_port().to_string());
        let mut command = tools::python();
        command.arg(script).arg(schema).arg(self.path("root")).args(ports);
        command.env_clear().envs(variables).env("PATH", path()).current_dir(self.dir.path());
        command.stdin(std::fs::File::open(self.path("docker-compose.yml")).unwrap()).output().unwrap()
    }

    /// What the compose file says when it is read with these variables.
    fn plan(&self, variables: &BTreeMap<String, String>) -> Value {
        let output = self.read(variables);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// The programs of the tests come first.
fn path() -> String {
    let own = Path::new(env!("CARGO_BIN_EXE_counterbat")).parent().unwrap();
    format!("{}:{}:{}", own.display(), tools::programs().display(), std::env::var("PATH").unwrap_or_default())
}

#[test]
fn the_compose_file_is_valid_and_brings_no_secrets() {
    if missing("compose-schema") {
        return;
    }
    let deployment = Deployment::new();
    let variables = deployment.variables();
    let read = deployment.plan(&variables);
    for (name, service) in read["compose"]["services"].as_object().unwrap() {
        let tag = service["image"].as_str().unwrap().rsplit_once(':').expect("an image has a tag").1;
        assert!(tag.chars().any(|c| c.is_ascii_digit()), "{name}: {tag} is no version");
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        assert!(!service["volumes"].is_null() || name == "proxy", "{name} forgets");
        // Only what Viber calls is open to others.
        for published in service["ports"].as_array().into_iter().flatten() {
            let published = published.as_str().unwrap();
            assert!(published.starts_with("127.0.0.1:") || published == "443:443", "{name}: {published}");
        }
        // A secret in the environment is shown to whoever may look at the container.
        for (key, value) in service["environment"].as_object().into_iter().flatten() {
            let secrets = variables.iter().filter(|(name, _)| !PUBLIC.contains(&&***name));
            for (secret, hidden) in secrets {
                assert!(!value.as_str().unwrap().contains(hidden.as_str()), "{name}: {key} shows {secret}");
            }
        }
    }
    // The operator's token is for people, no service has it.
    for missing in variables.keys().filter(|name| *name != "CONSOLE_TOKEN") {
        let rest = variables.clone().into_iter().filter(|(name, _)| name != missing).collect();
        let output = deployment.read(&rest);
        assert!(!output.status.success() && text(&output.stderr).contains(missing.as_str()), "{missing}");
    }
}

#[test]
fn init_makes_secrets_once() {
    let deployment = Deployment::new();
    let (first, other) = (deployment.variables(), Deployment::new().variables());
    for (name, value) in first.iter().filter(|(name, _)| *name != "PUBLIC_URL") {
        assert_ne!(Some(value), other.get(name), "{name} is no secret");
    }
    let again = deployment.init(&["https://else.example.com"]);
    assert!(again.status.success() && text(&again.stdout).contains("left as it is"), "{}", text(&again.stdout));
    assert_eq!(deployment.variables(), first);
    let refused = deployment.init(&["bots.example.com"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn every_service_works_by_its_own_command() {
    if ["kafka", "minio", "compose-schema"].into_iter().any(missing) {
        return;
    }
    let deployment = Deployment::new();
    let variables = deployment.variables();
    let read = deployment.plan(&variables);
    let services = read["services"].as_object().unwrap();
    let address = |of: &str| read["addresses"][of].as_str().unwrap_or_else(|| panic!("no {of}")).to_owned();

    let mut running: BTreeMap<&str, Process> = BTreeMap::new();
    let wanted = || services.keys().map(String::as_str).filter(|name| !NOT_STARTED.contains(name));
    while running.len() < wanted().count() {
        let next = wanted().find(|name| {
            let needs = services[*name]["after"].as_array().unwrap();
            !running.contains_key(name) && needs.iter().all(|need| running.contains_key(need.as_str().unwrap()))
        });
        let name = next.expect("no service waits for itself");
        let service = &services[name];
        let log = deployment.path(&format!("{name}.log"));
        let mut process = Process::start(&command(service, "argv"), deployment.dir.path(), log);
        let health = || command(service, "health").output().unwrap();
        until(
            &format!("the health of {name}"),
            || {
                assert!(!process.is_over(), "{name} has ended: {}", process.log_end());
                health()
            },
            |output| output.status.success(),
        );
        running.insert(name, process);
    }

    // As an operator adds a bot, and as Viber and an analyst then come to it.
    let mut add = inside(&services["gateway-1"], OsStr::new("counterbat"), ["account", "add", "shop"].map(OsStr::new));
    let mut child = add.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(TOKEN.as_bytes()).unwrap();
    let added = child.wait_with_output().unwrap();
    assert!(added.status.success(), "{}", text(&added.stderr));

    let certificate = std::fs::read(deployment.path("deploy/tls/certificate.pem")).unwrap();
    let client = reqwest::Client::builder()
        .no_proxy()
        .add_root_certificate(reqwest::Certificate::from_pem(&certificate).unwrap())
        .resolve("bots.example.com", address("proxy:443").parse().unwrap())
        .build()
        .unwrap();
    let proxy = format!("https://bots.example.com:{}", address("proxy:443").rsplit_once(':').unwrap().1);
    let body = message_body("user-1==", 77);
    let signature = sign(TOKEN, &body);
    // Both gateways take turns.
    for _ in 0..4 {
        let callback = client.post(format!("{proxy}/webhooks/shop")).header("X-Viber-Content-Signature", &signature);
        let reply = request(callback.body(body.clone()));
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let sql = |token: &str| {
        let ask = http().post(format!("http://{}/api/v1/sql", address("query:8081"))).bearer_auth(token);
        request(
            ask.header("content-type", "application/json").body(r#"{"sql":"select account, inbound from sessions"}"#),
        )
    };
    assert_eq!(sql("guessed").status, 401);
    let rows = until("the session", || sql(&variables["CONSOLE_TOKEN"]).text(), |rows| rows.contains("shop"));
    assert_eq!(rows.trim(), r#"[{"account":"shop","inbound":1}]"#);

    let up = || {
        let url = format!("http://{}/api/v1/query?query=sum(up)", address("prometheus:9090"));
        let answer: Value = serde_json::from_slice(&request(http().get(url)).body).unwrap_or_default();
        answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
    };
    until("Prometheus to see all nodes", up, |up| up.as_deref() == Some("5"));

    let stopped = ["proxy", "gateway-1", "gateway-2", "projector-1", "projector-2", "query", "prometheus"];
    for name in stopped {
        let process = running.remove(name).unwrap();
        process.ask_to_end();
        process.end_within(Duration::from_secs(60));
    }
}

/// A command of a service's: `argv` or `health`.
fn command(service: &Value, which: &str) -> Command {
    let mut words = service[which].as_array().unwrap().iter().map(|word| OsStr::new(word.as_str().unwrap()));
    let program = words.next().unwrap();
    inside(service, program, words)
}

/// A program with the environment and the folder of a service.
fn inside<'a>(service: &Value, program: &OsStr, args: impl IntoIterator<Item = &'a OsStr>) -> Command {
    let mut command = Command::new("env");
    command.arg("-C").arg(service["cwd"].as_str().unwrap()).arg(format!("PATH={}", path()));
    for (name, value) in service["env"].as_object().unwrap() {
        command.arg(format!("{name}={}", value.as_str().unwrap()));
    }
    command.arg(program).args(args);
    command
}
