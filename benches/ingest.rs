//! Durable callbacks through `serve`, against nginx that answers 200 without looking, under the same wrk.
//!
//! `cargo bench --bench ingest -- [--connections N] [--seconds N]`; needs wrk and nginx (Debian: apt-get install wrk nginx).

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;

use harness::{Home, TOKEN, message_body, sign};
use setup::number;
use std::fmt::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};

/// Different callbacks, posted in turn.
const BODIES: u64 = 20_000;

fn main() {
    let connections = number("--connections", 64);
    let seconds = number("--seconds", 10);
    let home = Home::new(&[]);
    let script = home.path("post.lua");
    std::fs::write(&script, lua()).unwrap();

    let nginx = Nginx::start(&home);
    let address = format!("http://127.0.0.1:{}/webhooks/bot1", nginx.port);
    let reference = wrk(&script, &address, connections, seconds);
    drop(nginx);
    println!("| nginx, return 200 | {reference:.0} requests/s |");

    let server = home.serve();
    let ours = wrk(&script, &format!("{}/webhooks/bot1", server.gateway), connections, seconds);
    println!("| counterbat serve, verified and durable | {ours:.0} requests/s |");
    println!("| ratio at {connections} connections | {:.2} |", ours / reference);
    let posted = server.number("select count(*) from events");
    println!("{posted} events are in SQL");
    assert!(posted as f64 >= ours * seconds as f64 * 0.9, "what was acknowledged is not there");
    assert!(server.stop().success());
}

/// A script for wrk that posts signed callbacks.
fn lua() -> String {
    let mut text = String::from("local requests = {}\nlocal n = 0\nfunction init(args)\n  local bodies = {\n");
    for n in 0..BODIES {
        let body = message_body(&format!("{:016x}==", n % 4096), 6_150_000_000_000_000_000 + n * 7919);
        let signature = sign(TOKEN, &body);
        // JSON holds no long bracket, so this needs no escapes.
        writeln!(text, "    {{[==[{body}]==], '{signature}'}},").expect("a String takes every write");
    }
    text.push_str(
        "  }\n  for i, b in ipairs(bodies) do\n    requests[i] = wrk.format('POST', nil, {['X-Viber-Content-Signature'] = b[2], \
         ['Content-Type'] = 'application/json'}, b[1])\n  end\nend\n\
         function request()\n  n = n % #requests + 1\n  return requests[n]\nend\n",
    );
    text
}

fn wrk(script: &Path, address: &str, connections: u64, seconds: u64) -> f64 {
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--latency", "-s"])
        .arg(script)
        .arg(address)
        .output()
        .expect("wrk is missing: apt-get install wrk nginx");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    assert!(!text.contains("Non-2xx"), "callbacks were refused");
    let line = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")).expect("wrk tells a rate");
    line.trim().parse().expect("a number")
}

struct Nginx {
    child: Child,
    port: u16,
}

impl Nginx {
    fn start(home: &Home) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = home.path("nginx");
        std::fs::create_dir(&dir).unwrap();
        let config = format!(
            "worker_processes 2;\ndaemon off;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{ worker_connections 1024; }}\n\
             http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi; \
             uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi; keepalive_requests 100000000;\n\
             server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"\"; }} }} }}\n",
            dir.display()
        );
        std::fs::write(dir.join("nginx.conf"), config).unwrap();
        let child = Command::new("nginx").arg("-c").arg(dir.join("nginx.conf")).arg("-p").arg(&dir).spawn();
        let child = child.expect("nginx is missing: apt-get install wrk nginx");
        let connect = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        harness::until("nginx", connect, |open| *open);
        Nginx { child, port }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers on SIGTERM; kill -9 would leave them.
        Command::new("kill").arg(self.child.id().to_string()).status().ok();
        self.child.wait().ok();
    }
}
