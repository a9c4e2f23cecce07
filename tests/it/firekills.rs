//! A gateway under load, killed again and again: what it answered for is recorded, and what is recorded is true.
//!
//! `TEST_LONG=1` kills 50 times instead of 6; `TEST_SEED` sets the moments.

use super::generate::Random;
use super::harness::{Home, Server, TOKEN, free_port, http, try_request};
use super::viber::{Recorded, Viber, is_long, recorded, seed, text_to};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const USERS: usize = 400;
/// Threads that send, each one message after the other.
const SENDERS: usize = 4;
/// Pauses of a user's hand: 100 callbacks a second.
const WRITE_EVERY: Duration = Duration::from_millis(10);
/// What Viber accepted this long before a kill may not have been answered, and so not recorded, when it came.
const LAST_MS: i64 = 1_000;

/// Load on gateways that may be gone at any moment.
pub struct Load<'a> {
    pub viber: &'a Viber,
    pub gateways: Vec<String>,
    pub over: AtomicBool,
    /// Tokens of messages whose answer reached the client.
    pub answered: Mutex<BTreeSet<u64>>,
}

impl<'a> Load<'a> {
    pub fn new(viber: &'a Viber, gateways: Vec<String>) -> Self {
        Load { viber, gateways, over: AtomicBool::new(false), answered: Mutex::default() }
    }

    /// Bots that send, through any of the gateways.
    pub fn send(&self, mut random: Random) {
        while !self.over.load(Ordering::Relaxed) {
            let user = &self.viber.users[random.below(self.viber.users.len() as u64) as usize];
            let gateway = &self.gateways[random.below(self.gateways.len() as u64) as usize];
            let url = format!("{gateway}/pa/send_message");
            let asked = http().post(url).header("X-Viber-Auth-Token", TOKEN).body(text_to(user).to_string());
            let answer = try_request(asked).ok().and_then(|reply| serde_json::from_slice(&reply.body).ok());
            let answer: serde_json::Value = answer.unwrap_or_default();
            match (answer["status"].as_u64(), answer["message_token"].as_u64()) {
                (Some(0), Some(token)) => {
                    self.answered.lock().unwrap().insert(token);
                }
                // It is gone, or the user has had enough for this hour.
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Users who write.
    pub fn write(&self, mut random: Random) {
        while !self.over.load(Ordering::Relaxed) {
            self.viber.write(&self.viber.users[random.below(self.viber.users.len() as u64) as usize]);
            std::thread::sleep(WRITE_EVERY);
        }
    }
}

/// When a gateway was killed, ms since the epoch.
type Kills = Vec<i64>;

/// Serves and kills, by and by; in the middle it ends in order. The last one that was started, and the kills.
fn serve_and_kill(home: &Home, viber: &Viber, random: &mut Random, times: usize, first: Server) -> (Server, Kills) {
    let (mut server, mut kills) = (first, Vec::new());
    for n in 0..=times {
        let life = Duration::from_millis(1_300 + random.below(1_500));
        std::thread::sleep(life);
        if n == times / 2 {
            let log = server.log();
            assert!(!log.contains("panicked"), "{log}");
            assert_eq!(server.stop().code(), Some(0), "an orderly end in the middle of it");
            nothing_is_missing(&recorded(|query| home.sql(query)), viber, &kills);
        } else {
            kills.push(viber.sandbox.time().now_ms());
            server.kill();
        }
        server = home.serve();
    }
    (server, kills)
}

/// Whether it was accepted so shortly before a kill that its answer may not have come to the gateway, or not to the log.
fn is_excused(kills: &[i64], at_ms: i64) -> bool {
    // What was on its way to Viber at the kill is accepted a little later.
    kills.iter().any(|kill| (kill - LAST_MS..kill + LAST_MS).contains(&at_ms))
}

/// Every message that Viber accepted is recorded, but those a kill came between; those, by when they were accepted.
fn nothing_is_missing(rows: &[Recorded], viber: &Viber, kills: &[i64]) -> usize {
    let accepted = viber.accepted();
    let sent: BTreeSet<u64> =
        rows.iter().filter(|row| row.origin == "call" && row.status == Some(0)).filter_map(|row| row.token).collect();
    let calls = viber.sandbox.ledger().calls();
    let at = |token| calls.iter().find(|call| call.message_token == Some(token)).unwrap().decided_at_ms;
    let missing: Vec<u64> = accepted.iter().map(|(_, token)| *token).filter(|token| !sent.contains(token)).collect();
    for token in &missing {
        let at_ms = at(*token);
        let next = kills.iter().find(|kill| **kill >= at_ms).map(|kill| kill - at_ms);
        assert!(is_excused(kills, at_ms), "message {token} is not recorded, {next:?} ms before the next kill");
    }
    missing.len()
}

#[test]
fn kills_under_load_lose_nothing_that_was_answered() {
    let times = if is_long() { 50 } else { 6 };
    let seed = seed();
    let viber = Viber::start(seed, USERS);
    let address = format!(r#"gateway.listen = "127.0.0.1:{}""#, free_port());
    let home = viber.home(&[&address, r#"lake.commit_every = "1s""#]);
    let (server, bot) = (home.serve(), viber.bot());
    bot.register(&server);
    viber.subscribe_all();

    let load = Load::new(&viber, vec![server.gateway.clone()]);
    let mut random = Random(seed);
    let (server, kills) = std::thread::scope(|scope| {
        for _ in 0..SENDERS {
            let random = Random(random.next());
            scope.spawn(|| load.send(random));
        }
        let of_users = Random(random.next());
        scope.spawn(|| load.write(of_users));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            serve_and_kill(&home, &viber, &mut random, times, server)
        }));
        load.over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    // What was missed comes again, now that there is somebody to take it.
    let started = Instant::now();
    super::harness::until("all callbacks", || viber.sandbox.stats().outstanding, |outstanding| *outstanding == 0);
    println!("{} kills; the last callbacks came after {:?}", kills.len(), started.elapsed());
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(server.stop().code(), Some(0));

    let answered = load.answered.into_inner().unwrap();
    assert!(answered.len() > 20 * times, "there was hardly any load: {}", answered.len());
    assert_eq!(assert_ledger(&recorded(|query| home.sql(query)), &viber, &kills, &answered), 0);
}

/// What is recorded is what Viber knows, and whatever was answered for is there. `kills` are those of gateways. How many sends
/// are recorded twice, the second time as a duplicate.
pub fn assert_ledger(rows: &[Recorded], viber: &Viber, kills: &[i64], answered: &BTreeSet<u64>) -> usize {
    let missing = nothing_is_missing(rows, viber, kills);
    let accepted: BTreeSet<u64> = viber.accepted().into_iter().map(|(_, token)| token).collect();
    let of_sends = || rows.iter().filter(|row| row.kind == "send_message" && row.status == Some(0));
    let of = |disposition| {
        of_sends().filter(move |row| row.disposition == disposition).filter_map(|row| row.token).collect::<Vec<u64>>()
    };
    let (sent, again) = (of("fact"), of("duplicate"));
    let once: BTreeSet<u64> = sent.iter().copied().collect();
    println!(
        "Viber accepted {}, recorded {}, {} of them twice, {missing} within {LAST_MS} ms of a kill are not",
        accepted.len(),
        sent.len(),
        again.len()
    );
    assert_eq!(once.len(), sent.len(), "a message counts twice");
    // What a broker has taken and not acknowledged in time is appended again, from the spill.
    assert!(again.iter().all(|token| once.contains(token)), "a copy counts, and what it copies does not");
    assert_eq!(sent.len() + again.len(), of_sends().count(), "an accepted message is no fact");
    assert!(once.is_subset(&accepted), "Viber knows nothing of {:?}", once.difference(&accepted).next());
    assert!(answered.is_subset(&once), "answered, but not recorded: {:?}", answered.difference(&once).next());

    let told = viber.callbacks();
    type Key<'a> = (&'a str, u64, Option<&'a str>);
    let known: BTreeSet<Key> =
        told.iter().map(|one| (one.event.name(), one.message_token, one.user.as_deref())).collect();
    let callbacks: BTreeSet<Key> = rows
        .iter()
        .filter(|row| row.origin == "callback")
        .map(|row| (row.kind.as_str(), row.token.unwrap(), row.user.as_deref()))
        .collect();
    println!("{} callbacks told, {} recorded", known.len(), callbacks.len());
    assert!(callbacks.is_subset(&known), "never told: {:?}", callbacks.difference(&known).next());
    for one in told.iter().filter(|one| one.acknowledged) {
        let key = (one.event.name(), one.message_token, one.user.as_deref());
        assert!(callbacks.contains(&key), "acknowledged, but not recorded: {key:?}");
    }
    // Each fact counts once, however often it came.
    let facts = rows.iter().filter(|row| row.kind == "message" && row.disposition == "fact").count();
    assert_eq!(facts, known.iter().filter(|(name, ..)| *name == "message").count());
    again.len()
}
