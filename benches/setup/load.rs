//! Load by wrk, and nginx to measure against (Debian: apt-get install wrk nginx).

use crate::harness;
use std::fmt::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};

/// What wrk saw.
pub struct Load {
    /// Requests a second.
    pub rate: f64,
    /// As wrk prints them: `1.23ms`.
    pub p50: String,
    pub p99: String,
}

/// Sends what the script makes for so long.
pub fn wrk(script: &Path, address: &str, connections: u64, seconds: u64) -> Load {
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--latency", "-s"])
        .arg(script)
        .arg(address)
        .output()
        .expect("wrk is missing: apt-get install wrk nginx");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    assert!(!text.contains("Non-2xx"), "requests were refused");
    let after =
        |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap_or("?").trim().to_owned();
    Load { rate: after("Requests/sec:").parse().expect("wrk tells a rate"), p50: after("50%"), p99: after("99%") }
}

/// A running nginx, ended when dropped.
pub struct Nginx {
    child: Child,
    port: u16,
}

impl Nginx {
    /// Two workers that answer everything by this rule of a `location`; its files lie in `dir`.
    pub fn start(dir: &Path, rule: &str) -> Self {
        Self::with(dir, "", rule)
    }

    /// A reverse proxy of this server (`http://host:port`), which keeps its connections as ours does.
    pub fn proxy(dir: &Path, server: &str) -> Self {
        let host = server.trim_start_matches("http://");
        Self::with(dir, &format!("upstream behind {{ server {host}; keepalive 128; }}"), "proxy_pass http://behind;")
    }

    fn with(dir: &Path, upstream: &str, rule: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        std::fs::create_dir(dir).unwrap();
        let config = format!(
            "worker_processes 2;\ndaemon off;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{ worker_connections 1024; }}\n\
             http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi; \
             uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi; keepalive_requests 100000000;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; {upstream}\n\
             server {{ listen 127.0.0.1:{port}; location / {{ {rule} }} }} }}\n",
            dir.display()
        );
        std::fs::write(dir.join("nginx.conf"), config).unwrap();
        let child = Command::new("nginx").arg("-c").arg(dir.join("nginx.conf")).arg("-p").arg(dir).spawn();
        let child = child.expect("nginx is missing: apt-get install wrk nginx");
        let connect = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        harness::until("nginx", connect, |open| *open);
        Nginx { child, port }
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers on SIGTERM; kill -9 would leave them.
        Command::new("kill").arg(self.child.id().to_string()).status().ok();
        self.child.wait().ok();
    }
}

/// A script for wrk that posts these bodies in turn, each with its signature where it has one.
pub fn lua(headers: &[(&str, &str)], bodies: impl Iterator<Item = (String, Option<String>)>) -> String {
    let mut text = String::from("local requests = {}\nlocal n = 0\nfunction init(args)\n  local bodies = {\n");
    for (body, signature) in bodies {
        // JSON holds no long bracket, so this needs no escapes.
        writeln!(text, "    {{[==[{body}]==], '{}'}},", signature.unwrap_or_default())
            .expect("a String takes every write");
    }
    let fixed: String = headers.iter().map(|(name, value)| format!("['{name}'] = '{value}', ")).collect();
    write!(
        text,
        "  }}\n  for i, b in ipairs(bodies) do\n    requests[i] = wrk.format('POST', nil, {{{fixed}['X-Viber-Content-Signature'] = b[2], \
         ['Content-Type'] = 'application/json'}}, b[1])\n  end\nend\n\
         function request()\n  n = n % #requests + 1\n  return requests[n]\nend\n"
    )
    .expect("a String takes every write");
    text
}
