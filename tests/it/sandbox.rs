//! `counterbat sandbox`: what it prints is true, and it ends when told to.

use super::harness::{Home, request, until, wait_exit};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command};

/// A running sandbox, killed when dropped, and the first lines it printed.
struct Sandbox {
    child: Child,
    lines: Vec<String>,
}

impl Sandbox {
    fn start(home: &Home, args: &[&str]) -> Self {
        let mut child = home.command(&[&["sandbox"], args].concat()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Sandbox { lines: out.lines().map_while(Result::ok).take(3).collect(), child }
    }

    fn address(&self) -> &str {
        self.lines[0].strip_prefix("sandbox ").expect("an address")
    }

    /// The tokens of `bot-1` and `bot-2`.
    fn tokens(&self) -> [String; 2] {
        [1, 2].map(|n| self.lines[n].strip_prefix(&format!("bot bot-{n} ")).expect("a token").to_owned())
    }

    fn stop(mut self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        assert!(wait_exit(&mut self.child).success());
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn it_serves_what_it_prints_and_ends_in_order() {
    let home = Home::new(&[]);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    // Its own bots answer straight to it, so the address is needed before: a free one that was just let go.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let through = format!("http://{free}");
    let busy = ["--listen", &free, "--speed", "5000", "--users", "20", "--seed", "5", "--through", &through];
    let busy = Sandbox::start(&home, &busy);
    assert_eq!(busy.address(), through);
    let stats =
        || -> Value { serde_json::from_slice(&request(client.get(format!("{through}/sandbox/stats"))).body).unwrap() };
    let acknowledged = |stats: &Value| stats["callbacks"]["delivered"]["acknowledged"].as_u64().unwrap_or(0);
    until("answers on devices", stats, |stats| acknowledged(stats) > 100);
    let tokens = busy.tokens();
    busy.stop();

    let quiet = Sandbox::start(&home, &["--listen", "127.0.0.1:0", "--seed", "5", "--quiet-users"]);
    assert_eq!(tokens, quiet.tokens(), "the same seed");
    let info = client.get(format!("{}/pa/get_account_info", quiet.address()));
    let info = request(info.header("X-Viber-Auth-Token", &tokens[1]));
    let info: Value = serde_json::from_slice(&info.body).unwrap();
    assert_eq!((&info["status"], &info["name"]), (&0.into(), &"bot-2".into()));
    quiet.stop();

    assert_eq!(home.run(&["sandbox", "--speed", "0"]).status.code(), Some(2));
}
