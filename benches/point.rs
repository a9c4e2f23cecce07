//! One user's messages and sessions over PostgreSQL's wire, asked of a server with months of them, and of PostgreSQL 15 with
//! an index on the same rows.
//!
//! `cargo bench --bench point -- [--messages N] [--users N] [--asked N]`. It takes PostgreSQL's programs from
//! `$POSTGRES_BIN`, by default `/usr/lib/postgresql/15/bin` (Debian: apt-get install postgresql-15).

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[path = "setup/imported.rs"]
mod imported;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;
#[path = "../tests/it/tools.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod tools;

use generate::{DAY_MS, MARCH_MS, Plan, account, history, user_id};
use harness::{Home, until};
use imported::import;
use setup::{number, resident, size, timed};
use std::io::{BufWriter, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const TWO_MONTHS_MS: i64 = 61 * DAY_MS;

/// The columns of the tables as PostgreSQL has them.
const SESSIONS: &str = "session_id text, account text, user_id text, country text, kind text, state text, \
    opened_at timestamptz, expires_at timestamptz, closed_at timestamptz, close_reason text, opened_by_token numeric, \
    inbound int, outbound int, delivered int, seen int, failed int, charged int, overcharged int, first_response_ms bigint, \
    last_event_at timestamptz, cost numeric, currency text, policy text";
const MESSAGES: &str = "account text, user_id text, message_token numeric, session_id text, sent_at timestamptz, \
    method text, message_type text, tracking_data text, expected text, billing_status int, billing_inferred bool, \
    verdict text, delivered_at timestamptz, seen_at timestamptz, failed_at timestamptz, failure text, country text, \
    price numeric, cost numeric, currency text, state text, policy text";

/// Asks both for the same users in turn, and holds the answers against each other.
const CLIENT: &str = r#"
import json, sys, time, psycopg
ours, theirs, users = sys.argv[1], sys.argv[2], [json.loads(line) for line in open(sys.argv[3])]
asked = {
    "messages": "select sent_at, message_type, verdict, billing_status from messages where account = %s and user_id = %s order by sent_at, message_token",
    "sessions": "select opened_at, inbound, outbound, cost from sessions where account = %s and user_id = %s order by opened_at",
    "messages of a day": "select sent_at, verdict from messages where account = %s and user_id = %s and sent_at >= '2026-03-20T00:00:00Z' and sent_at < '2026-03-21T00:00:00Z' order by sent_at, message_token",
}
connections = [psycopg.connect(url, autocommit=True) for url in (ours, theirs)]
for connection in connections:
    connection.execute("set time zone 'UTC'")
for name, sql in asked.items():
    took, rows = ([], []), 0
    # The first ones are not counted: files are opened, statements prepared.
    for n, user in enumerate(users[: len(users) // 10] + users):
        answers = []
        for connection, times in zip(connections, took):
            began = time.perf_counter()
            answers.append(connection.execute(sql, user).fetchall())
            if n >= len(users) // 10:
                times.append((time.perf_counter() - began) * 1e3)
        assert answers[0] == answers[1], (name, user, answers)
        rows += len(answers[0])
    for times in took:
        times.sort()
    at = lambda times, share: f"{times[int(len(times) * share)]:.2f} ms"
    print(f"| {name}: {rows / len(users) / 1.1:.1f} rows | " + " | ".join(f"{at(times, 0.5)} | {at(times, 0.99)}" for times in took) + " |")
"#;

fn main() {
    let wanted = number("--messages", 1_000_000);
    let users = number("--users", wanted / 20 + 1);
    let asked = number("--asked", 1_000);
    let home =
        Home::new(&[r#"postgres.listen = "127.0.0.1:0""#, "sql.max_rows = 1_000_000_000", r#"sql.timeout = "1h""#]);
    // Somewhat less than every third event of such a history is a message sent.
    let plan = Plan {
        seed: 1,
        events: usize::try_from(wanted).unwrap() * 16 / 5,
        users,
        start_ms: MARCH_MS,
        span_ms: TWO_MONTHS_MS,
    };
    import(&home, &history(&plan));
    let server = home.serve();
    until("readiness", || server.get("/readyz").status, |status| *status == 200);
    let count = |table: &str| server.number(&format!("select count(*) from {table}"));
    println!("{} messages, {} sessions of {users} users in two months", count("messages"), count("sessions"));

    let reference = Postgres::start();
    let (ours, theirs) = (format!("postgresql://analyst@{}/counterbat", server.postgres), reference.url());
    let ((), took) = timed(|| reference.fill(&ours));
    println!("PostgreSQL has them, indexed, after {:.0} s", took.as_secs_f64());

    let list = home.path("users.ndjson");
    let mut file = BufWriter::new(std::fs::File::create(&list).unwrap());
    for n in 0..asked {
        // All over the users, in no order.
        let user = (n * 7_919_317) % users;
        writeln!(file, "{}", serde_json::json!([account(user), user_id(user)])).unwrap();
    }
    drop(file);
    println!("\n| of one user | p50 | p99 | PostgreSQL 15: p50 | p99 |\n|---|---|---|---|---|");
    let status = tools::postgres_python().args(["-c", CLIENT, &ours, &theirs]).arg(&list).status().unwrap();
    assert!(status.success(), "the answers differ");
    let (peak, _) = resident(server.pid());
    println!("largest RSS of the server {}, of which the cache of the state is up to 512 MiB", size(peak));
}

/// A PostgreSQL of our own, ended when dropped.
struct Postgres {
    server: Child,
    port: u16,
    bin: PathBuf,
    _dir: TempDir,
}

impl Postgres {
    /// PostgreSQL refuses to be root, so then it is `nobody`.
    fn start() -> Self {
        let bin = std::env::var("POSTGRES_BIN").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned());
        let bin = PathBuf::from(bin);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = TempDir::new().unwrap();
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
        if is_root {
            assert!(Command::new("chown").arg("nobody").arg(dir.path()).status().unwrap().success());
        }
        let run = |program: &str, args: &[&str]| {
            let program = bin.join(program);
            let mut command = match is_root {
                true => {
                    let mut command = Command::new("setpriv");
                    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
                    command
                }
                false => Command::new(program),
            };
            command.args(args).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let data = dir.path().join("data").display().to_string();
        let made = run("initdb", &["-D", &data, "-A", "trust", "-U", "analyst", "-E", "UTF8", "--locale=C"]).status();
        assert!(made.is_ok_and(|status| status.success()), "no PostgreSQL 15 in {}", bin.display());
        let port_text = port.to_string();
        let sockets = dir.path().display().to_string();
        // As much memory as ours may take; it need not last.
        let settings = ["-c", "shared_buffers=1GB", "-c", "maintenance_work_mem=512MB", "-c", "fsync=off"];
        let mut args = vec!["-D", &data, "-h", "127.0.0.1", "-p", &port_text, "-k", &sockets];
        args.extend(settings);
        let server = run("postgres", &args).spawn().unwrap();
        let postgres = Self { server, port, bin, _dir: dir };
        let ready = || postgres.psql("select 1").stderr(Stdio::null()).status().unwrap();
        until("PostgreSQL", ready, |status| status.success());
        postgres
    }

    fn url(&self) -> String {
        format!("postgresql://analyst@127.0.0.1:{}/postgres", self.port)
    }

    fn psql(&self, sql: &str) -> Command {
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", sql]).stdout(Stdio::null());
        command
    }

    /// Copies both tables out of ours, with an index for what will be asked.
    fn fill(&self, ours: &str) {
        let run = |sql: &str| assert!(self.psql(sql).status().unwrap().success(), "{sql}");
        for (table, columns, time) in [("sessions", SESSIONS, "opened_at"), ("messages", MESSAGES, "sent_at")] {
            run(&format!("create unlogged table {table} ({columns})"));
            let names: Vec<&str> = columns.split(", ").filter_map(|column| column.split(' ').next()).collect();
            let names = names.join(", ");
            let psql = self.bin.join("psql").display().to_string();
            let copied = format!(
                "set -o pipefail; '{psql}' -X -q -d '{ours}' -c 'copy (select {names} from {table}) to stdout' | \
                 '{psql}' -X -q -v ON_ERROR_STOP=1 -d '{}' -c 'copy {table} from stdin'",
                self.url()
            );
            assert!(Command::new("bash").args(["-c", &copied]).status().unwrap().success(), "{table} cannot be copied");
            run(&format!("create index on {table} (account, user_id, {time})"));
            run(&format!("vacuum analyze {table}"));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The stop that waits for no client.
        let _ = Command::new("kill").args(["-INT", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
    }
}
