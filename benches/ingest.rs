//! Durable callbacks through `serve`, against nginx that answers 200 without looking, under the same wrk.
//!
//! `cargo bench --bench ingest -- [--connections N] [--seconds N]`; needs wrk and nginx (Debian: apt-get install wrk nginx).

#[path = "../tests/it/generate.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod generate;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod harness;
#[path = "setup/load.rs"]
#[allow(dead_code, reason = "shared by the bench programs")]
mod load;
#[allow(dead_code, reason = "shared by the bench programs")]
mod setup;

use harness::{Home, TOKEN, message_body, sign};
use load::{Nginx, wrk};
use setup::number;
use std::fmt::Write;

/// Different callbacks, posted in turn.
const BODIES: u64 = 20_000;

fn main() {
    let connections = number("--connections", 64);
    let seconds = number("--seconds", 10);
    let home = Home::new(&[]);
    let script = home.path("post.lua");
    std::fs::write(&script, lua()).unwrap();

    let nginx = Nginx::start(&home.path("nginx"), "return 200 \"\";");
    let reference = wrk(&script, &format!("{}/webhooks/bot1", nginx.address()), connections, seconds).rate;
    drop(nginx);
    println!("| nginx, return 200 | {reference:.0} requests/s |");

    let server = home.serve();
    let ours = wrk(&script, &format!("{}/webhooks/bot1", server.gateway), connections, seconds).rate;
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
