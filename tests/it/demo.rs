//! `counterbat demo`, as whoever tries it meets it.

use super::harness::{Home, PATIENCE, Reply, http, request, text, until, wait_exit};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus};
use std::sync::{Arc, Mutex};

/// A running demo, killed when dropped.
pub struct Demo {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: Arc<Mutex<String>>,
    pub gateway: String,
    pub console: String,
    pub sandbox: String,
    /// The commands it shows.
    pub commands: Vec<String>,
}

impl Demo {
    /// Starts one, and waits until it has said hello. Temporary directories come to lie under `tmp` of the home.
    pub fn start(home: &Home, args: &[&str]) -> Self {
        let tmp = home.path("tmp");
        std::fs::create_dir_all(&tmp).unwrap();
        let mut child = home.command(&[&["demo"][..], args].concat()).env("TMPDIR", &tmp).spawn().unwrap();
        let stderr: Arc<Mutex<String>> = Arc::default();
        let (mut errors, log) = (BufReader::new(child.stderr.take().unwrap()), stderr.clone());
        std::thread::spawn(move || {
            let mut line = String::new();
            while errors.read_line(&mut line).is_ok_and(|n| n > 0) {
                log.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (mut addresses, mut commands) = (Vec::new(), Vec::new());
        while commands.len() < 3 {
            let mut line = String::new();
            let read = stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "the demo ended before it said hello: {}", log_of(&stderr));
            for name in ["gateway", "console", "sandbox"] {
                if let Some(rest) = line.strip_prefix(name) {
                    addresses.extend(rest.split_whitespace().next().map(str::to_owned));
                }
            }
            if line.contains(" sql \"") {
                commands.push(line.trim().to_owned());
            }
        }
        let [gateway, console, sandbox]: [String; 3] = addresses.try_into().unwrap();
        Demo { child, stdout, stderr, gateway, console, sandbox, commands }
    }

    pub fn get(&self, url: &str) -> Reply {
        request(http().get(url))
    }

    /// Rows of a query over HTTP.
    pub fn sql(&self, query: &str) -> Vec<Value> {
        let body = json!({ "sql": query }).to_string();
        let url = format!("{}/api/v1/sql", self.console);
        let reply = request(http().post(url).header("content-type", "application/json").body(body));
        assert_eq!(reply.status, 200, "{query}: {}", reply.text());
        serde_json::from_slice(&reply.body).unwrap()
    }

    pub fn log(&self) -> String {
        log_of(&self.stderr)
    }

    /// SIGINT, and the exit that follows.
    pub fn interrupt(&mut self) -> ExitStatus {
        let interrupted = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(interrupted.unwrap().success());
        self.wait()
    }

    /// The end that comes by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let status = wait_exit(&mut self.child);
        assert!(!self.log().contains("panicked"), "{}", self.log());
        status
    }

    /// What it still had to say, once it has ended.
    pub fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        rest
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- the demo's log:\n{}", self.log());
        }
    }
}

fn log_of(stderr: &Mutex<String>) -> String {
    stderr.lock().unwrap().clone()
}

/// Names in the folder where temporary directories are made.
fn temporary(home: &Home) -> Vec<String> {
    let entries = std::fs::read_dir(home.path("tmp")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn it_shows_sessions_within_seconds_and_leaves_nothing_behind() {
    let home = Home::new(&[]);
    // Many are misbilled, so that the third command finds some of them soon.
    let args = ["--for", "600", "--users", "50", "--speed", "600", "--misbilled", "0.3"];
    let mut demo = Demo::start(&home, &args);
    until("readiness", || demo.get(&format!("{}/readyz", demo.console)).status, |status| *status == 200);
    assert_eq!(demo.get(&format!("{}/sandbox/stats", demo.sandbox)).status, 200);
    assert_eq!(demo.get(&format!("{}/pa/get_account_info", demo.gateway)).status, 200);
    until("sessions", || demo.sql("select * from sessions limit 3"), |rows| !rows.is_empty());
    assert_eq!(temporary(&home).len(), 1, "{:?}", temporary(&home));

    for command in &demo.commands {
        let run = || {
            let output = Command::new("sh").arg("-c").arg(command).current_dir("/").output().unwrap();
            assert!(output.status.success(), "{command}: {}", text(&output.stderr));
            text(&output.stdout)
        };
        // Rows of the bots, under a heading.
        let has_rows = |table: &String| ["club", "shop", "bank"].iter().any(|bot| table.contains(bot));
        until(command, run, has_rows);
    }
    let started = std::time::Instant::now();
    assert_eq!(demo.interrupt().code(), Some(0));
    assert!(started.elapsed() < PATIENCE / 4, "the end took {:?}", started.elapsed());
    assert_eq!(demo.rest(), "\n", "nothing is kept");
    assert_eq!(temporary(&home), [""; 0], "nothing is left");
}

#[test]
fn what_is_kept_can_be_asked() {
    let home = Home::new(&[]);
    let mut demo = Demo::start(&home, &["--for", "8", "--users", "50", "--speed", "600", "--keep"]);
    assert_eq!(demo.wait().code(), Some(0), "it ends by itself");
    let rest = demo.rest();
    let dir = rest.lines().find_map(|line| line.strip_prefix("kept: ")).unwrap_or_else(|| panic!("{rest:?}"));
    let sessions = home.ok(&["--data-dir", dir, "sql", "--format", "csv", "select count(*) from sessions"]);
    let count: u64 = sessions.lines().nth(1).unwrap().parse().unwrap();
    assert!(count > 0, "{sessions}");
}

#[test]
fn taken_ports_are_no_hindrance() {
    let home = Home::new(&[]);
    // Whoever has the usual ports keeps them: two at once run side by side.
    let mut one = Demo::start(&home, &["--users", "1"]);
    let mut two = Demo::start(&home, &["--users", "1"]);
    assert!(one.gateway != two.gateway && one.console != two.console && one.sandbox != two.sandbox);
    assert_eq!((one.interrupt().code(), two.interrupt().code()), (Some(0), Some(0)));
}
