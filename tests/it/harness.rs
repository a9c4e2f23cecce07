//! Runs the binary: commands on a data directory, and servers that are asked, stopped and killed.

use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Nothing that must happen is waited for longer than this.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// The token of account `bot1` in every test config.
pub const TOKEN: &str = "5c0ffee15c0ffee1-0123456789abcdef-fedcba9876543210";

/// A config and a data directory.
pub struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    /// A fresh one: accounts `bot1` and `bot2`, free ports, no ticks; `settings` are whole TOML sections of keys to
    /// add, as `fold.policy = "vbm"` lines.
    pub fn new(settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home { dir };
        home.configure(settings);
        home
    }

    /// One whose data directory lies elsewhere.
    pub fn with_data(data: &Path, settings: &[&str]) -> Self {
        let home = Home::new(&[]);
        let line = format!("data_dir = {:?}", data.to_str().unwrap());
        let mut all = vec![line.as_str()];
        all.extend(settings);
        home.configure(&all);
        home
    }

    /// Writes the config anew. Settings are dotted keys, later ones replace earlier ones.
    pub fn configure(&self, settings: &[&str]) {
        let data = format!("data_dir = {:?}", self.dir.path().join("data").to_str().unwrap());
        let defaults = [
            data.as_str(),
            r#"gateway.listen = "127.0.0.1:0""#,
            r#"console.listen = "127.0.0.1:0""#,
            r#"log.tick_every = "0s""#,
        ];
        let mut lines: Vec<&str> = Vec::new();
        for line in defaults.iter().chain(settings) {
            let key = line.split('=').next().unwrap();
            lines.retain(|known| known.split('=').next().unwrap() != key);
            lines.push(line);
        }
        let accounts = format!(
            "[[accounts]]\nname = \"bot1\"\ntoken = \"{TOKEN}\"\n\n[[accounts]]\nname = \"bot2\"\ntoken = \"two-{TOKEN}\"\n"
        );
        std::fs::write(self.config(), format!("{}\n\n{accounts}", lines.join("\n"))).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("counterbat.toml")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The data directory, where it was not placed elsewhere.
    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_counterbat"));
        command.arg("--config").arg(self.config()).args(args).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // What the one who runs the tests has set for a server of their own is not what is tested.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("COUNTERBAT_")) {
            command.env_remove(name);
        }
        command
    }

    /// Runs to the end with this input.
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // A command that stops early does not read the rest.
            scope.spawn(move || stdin.write_all(input).ok());
            child.wait_with_output().unwrap()
        })
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, b"")
    }

    /// Runs a command that must succeed; what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, b"")
    }

    pub fn ok_with(&self, args: &[&str], input: &[u8]) -> String {
        let output = self.run_with(args, input);
        assert!(output.status.success(), "counterbat {args:?} failed: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must fail with exit code 1; its error text.
    pub fn fails_with(&self, args: &[&str], input: &[u8]) -> String {
        let output = self.run_with(args, input);
        assert_eq!(output.status.code(), Some(1), "counterbat {args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }

    /// Rows of a query by the CLI.
    pub fn sql(&self, query: &str) -> Vec<Value> {
        let rows = self.ok(&["sql", "--format", "ndjson", query]);
        rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The single number a query gives.
    pub fn number(&self, query: &str) -> i64 {
        only_number(&self.sql(query))
    }

    /// Every row of `sessions` and `messages`, and what became of the events, as text that two runs can be compared by.
    pub fn tables(&self) -> Tables {
        let csv = |query: &str| self.ok(&["sql", "--format", "csv", query]);
        Tables {
            sessions: csv("select * from sessions order by session_id"),
            messages: csv("select * from messages order by account, user_id, message_token"),
        }
    }

    /// Starts `serve` and waits until it has told its addresses.
    pub fn serve(&self) -> Server {
        Server::start(self.command(&["serve"]))
    }

    /// Starts it with these roles.
    pub fn serve_as(&self, roles: &str) -> Server {
        Server::start(self.command(&["serve", "--roles", roles]))
    }
}

/// What folding gave, in full.
#[derive(PartialEq, Eq)]
pub struct Tables {
    pub sessions: String,
    pub messages: String,
}

impl Tables {
    /// Fails with the first line that differs, not with megabytes.
    pub fn assert_equal(&self, other: &Tables, what: &str) {
        for (name, mine, theirs) in
            [("sessions", &self.sessions, &other.sessions), ("messages", &self.messages, &other.messages)]
        {
            let (mut a, mut b) = (mine.lines(), theirs.lines());
            for line in 1.. {
                match (a.next(), b.next()) {
                    (None, None) => break,
                    (left, right) => assert_eq!(left, right, "{what}: {name}, line {line}"),
                }
            }
        }
    }
}

/// A running `serve`, killed when dropped.
pub struct Server {
    child: Child,
    /// Empty where it is none.
    pub gateway: String,
    pub console: String,
    /// Host and port; empty where it is none.
    pub postgres: String,
    stderr: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Server {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let (mut errors, log) = (BufReader::new(child.stderr.take().unwrap()), stderr.clone());
        std::thread::spawn(move || {
            let mut line = String::new();
            while errors.read_line(&mut line).is_ok_and(|n| n > 0) {
                log.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut gateway, mut console, mut postgres) = (None, None, String::new());
        // The console comes last, and the other addresses only where there are such.
        while console.is_none() {
            let Some(Ok(line)) = lines.next() else {
                child.wait().ok();
                std::thread::sleep(Duration::from_millis(50));
                panic!("serve ended before it told its addresses: {}", stderr.lock().unwrap());
            };
            let address = line
                .split_whitespace()
                .find(|word| word.starts_with("http://") || word.starts_with("https://"))
                .map(str::to_owned);
            if let Some(address) = line.strip_prefix("postgres ") {
                address.clone_into(&mut postgres);
            } else if line.contains("gateway") {
                gateway = address;
            } else if line.contains("console") {
                console = address;
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        let trim = |address: String| address.trim_end_matches('/').to_owned();
        Server {
            child,
            gateway: gateway.map(trim).unwrap_or_default(),
            console: console.map(trim).unwrap(),
            postgres,
            stderr,
        }
    }

    pub fn log(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.pid());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit that follows.
    pub fn stop(mut self) -> ExitStatus {
        assert!(Command::new("kill").arg(self.pid().to_string()).status().unwrap().success());
        wait_exit(&mut self.child)
    }

    /// SIGTERM, and the end in order that must follow; where it is another one, the log is told.
    pub fn stop_in_order(mut self) {
        assert!(Command::new("kill").arg(self.pid().to_string()).status().unwrap().success());
        assert!(wait_exit(&mut self.child).success(), "the server has not ended in order");
    }

    pub fn get(&self, path: &str) -> Reply {
        request(http().get(format!("{}{path}", self.console)))
    }

    pub fn sql_as(&self, query: &str, accept: &str) -> Reply {
        let body = serde_json::json!({ "sql": query }).to_string();
        let url = format!("{}/api/v1/sql", self.console);
        request(http().post(url).header("content-type", "application/json").header("accept", accept).body(body))
    }

    /// Rows of a query over HTTP.
    pub fn sql(&self, query: &str) -> Vec<Value> {
        let reply = self.sql_as(query, "application/json");
        assert_eq!(reply.status, 200, "{query}: {}", reply.text());
        serde_json::from_slice(&reply.body).unwrap()
    }

    pub fn number(&self, query: &str) -> i64 {
        only_number(&self.sql(query))
    }

    /// Posts a callback signed with the token of `bot1`.
    pub fn callback(&self, body: &str) -> Reply {
        self.callback_signed(body, &sign(TOKEN, body))
    }

    pub fn callback_signed(&self, body: &str, signature: &str) -> Reply {
        let url = format!("{}/webhooks/bot1", self.gateway);
        request(http().post(url).header("X-Viber-Content-Signature", signature).body(body.to_owned()))
    }

    /// The value of a series of `/metrics`, 0 when it is not there.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").text();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- the server's log:\n{}", self.log());
        }
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: String,
    /// How new the rows of an answer to a query are.
    pub freshness: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        text(&self.body)
    }

    /// The `detail` of a problem document.
    pub fn problem(&self) -> String {
        assert_eq!(self.content_type, "application/problem+json", "{}", self.text());
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        problem["detail"].as_str().unwrap_or_default().to_owned()
    }
}

/// The client of all requests.
pub fn http() -> &'static reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    CLIENT.get_or_init(|| reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap())
}

/// The runtime of all requests.
pub fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap())
}

/// Sends a request that must be answered.
pub fn request(request: reqwest::RequestBuilder) -> Reply {
    try_request(request).unwrap()
}

/// Sends a request to a server that may be gone.
pub fn try_request(request: reqwest::RequestBuilder) -> reqwest::Result<Reply> {
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime().spawn(async move {
        let reply = async {
            let response = request.send().await?;
            let header = |name: &str| {
                let value = response.headers().get(name).and_then(|value| value.to_str().ok());
                value.unwrap_or_default().to_owned()
            };
            let (content_type, freshness) = (header("content-type"), header("counterbat-freshness"));
            let status = response.status().as_u16();
            Ok(Reply { status, content_type, freshness, body: response.bytes().await?.to_vec() })
        };
        sender.send(reply.await).ok();
    });
    receiver.recv().unwrap()
}

/// Lower-case hex HMAC-SHA256, as Viber signs callbacks.
pub fn sign(token: &str, body: &str) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(token.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// A `message` callback of now.
pub fn message_body(user: &str, token: u64) -> String {
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    format!(
        r#"{{"event":"message","timestamp":{now_ms},"chat_hostname":"SN-CALLBACK-02_","message_token":{token},"sender":{{"id":"{user}","name":"Olena","country":"UA","language":"uk","api_version":10}},"message":{{"type":"text","text":"hi"}},"silent":false}}"#
    )
}

/// Asks until the answer is there, or fails with the last one.
pub fn until<T: Debug>(what: &str, mut ask: impl FnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let started = Instant::now();
    loop {
        let answer = ask();
        if wanted(&answer) {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "{what} did not come; last: {answer:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port that nobody has now, below those that the system gives to connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 100) as u16 * 100;
    let mut ports = std::iter::repeat_with(|| start + NEXT.fetch_add(1, Ordering::Relaxed));
    ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Waits for the end of a process.
pub fn wait_exit(child: &mut Child) -> ExitStatus {
    until("the end of the process", || child.try_wait().unwrap(), Option::is_some).unwrap()
}

/// Kills a process after a while, unless it ends before; true when it was killed.
pub fn kill_after(child: &mut Child, pause: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < pause {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().ok();
    child.wait().unwrap();
    true
}

pub fn only_number(rows: &[Value]) -> i64 {
    let row = rows.first().and_then(Value::as_object).unwrap_or_else(|| panic!("no row: {rows:?}"));
    row.values().next().and_then(Value::as_i64).unwrap_or_else(|| panic!("no number: {rows:?}"))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Unpacked contents of a file under `tests/golden`.
pub fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// A token made by the command, and its entry in the config.
pub fn token(home: &Home, args: &[&str]) -> (String, String) {
    let made = home.ok(&[&["token", "new"], args, &["--json"]].concat());
    let made: Value = serde_json::from_str(&made).unwrap();
    let Value::Object(mut entry) = made else { panic!("{made}") };
    let Some(Value::String(token)) = entry.remove("token") else { panic!("no token") };
    let keys = entry.iter().filter(|(_, value)| **value != json!([])).map(|(key, value)| format!("{key} = {value}"));
    (token, format!("{{ {} }}", keys.collect::<Vec<_>>().join(", ")))
}
