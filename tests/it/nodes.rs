//! Gateways, projectors and query nodes as processes of their own, around brokers and a store: what one of them takes,
//! another shows, and when one is gone the others go on.
//!
//! `TEST_LONG=1` kills each kind of node ten times instead of once, and takes three brokers of its own of which one is
//! killed now and then as well; `TEST_SEED` sets the moments.

use super::cluster::{Cluster, missing, stop_all, wait_shared};
use super::firekills::{Load, assert_ledger};
use super::generate::Random;
use super::harness::{Home, Reply, Server, free_port, http, message_body, request, text, until};
use super::parts::{self, Kafka, Minio};
use super::viber::{Recorded, Viber, is_long, recorded, seed};
use serde_json::Value;
use std::ops::Deref;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const PARTITIONS: u32 = 6;
const SECRET: &str = r#"cluster.secret = "0123456789abcdef0123456789abcdef""#;
const OTHER_SECRET: &str = r#"cluster.secret = "fedcba9876543210fedcba9876543210""#;
/// Much is under way at any moment: every second table version is another one's.
const BUSY: [&str; 2] = [r#"lake.commit_every = "500ms""#, r#"lake.snapshot_every = "1s""#];
const COMPLETE: &str = "complete";

/// A data directory for a node with this role.
fn home(cluster: &Cluster, role: &str, settings: &[&str]) -> Home {
    let role = format!("roles = [{role:?}]");
    cluster.home_with(&[&[role.as_str(), SECRET][..], settings].concat())
}

/// A running node. The server goes before its data directory.
struct Node {
    server: Server,
    home: Home,
}

impl Node {
    fn start(home: Home) -> Self {
        Node { server: home.serve(), home }
    }
}

impl Deref for Node {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

fn node(cluster: &Cluster, role: &str, settings: &[&str]) -> Node {
    Node::start(home(cluster, role, settings))
}

fn several(cluster: &Cluster, role: &str, n: usize) -> Vec<Node> {
    (0..n).map(|_| node(cluster, role, &[])).collect()
}

fn ask(server: &Server, query: &str) -> Reply {
    server.sql_as(query, "application/json")
}

/// A single number, and how new it is; an answer there must be.
fn number(server: &Server, query: &str) -> (i64, String) {
    let reply = ask(server, query);
    assert_eq!(reply.status, 200, "{query}: {}", reply.text());
    let rows: Vec<Value> = serde_json::from_slice(&reply.body).unwrap();
    (super::harness::only_number(&rows), reply.freshness)
}

fn until_complete(server: &Server) {
    until("all rows", || number(server, "select count(*) from sessions").1, |freshness| freshness == COMPLETE);
}

/// Partitions that the header says are behind.
fn behind(freshness: &str) -> usize {
    let Some((_, rest)) = freshness.split_once("behind=(") else { return 0 };
    rest.split(')').next().unwrap().split_whitespace().count()
}

#[test]
fn what_is_acknowledged_is_seen_by_every_query_node() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(PARTITIONS, &BUSY);
    let [gateways, projectors, queries] =
        [("gateway", 2), ("projector", 3), ("query", 2)].map(|(role, n)| several(&cluster, role, n));
    wait_shared(&projectors.iter().map(|node| &node.server).collect::<Vec<_>>(), PARTITIONS as usize);
    queries.iter().for_each(|query| until_complete(query));
    for n in 0..60u64 {
        let (token, user) = (7_000_000_000_000_000_000 + n, format!("user-{n}=="));
        let gateway = &gateways[(n % 2) as usize];
        assert_eq!(gateway.callback(&message_body(&user, token)).status, 200);
        for query in &queries {
            let seen = number(query, &format!("select count(*) from events where user_id = '{user}'"));
            assert_eq!(seen, (1, COMPLETE.to_owned()), "event {n}");
            let open = number(query, &format!("select count(*) from open_sessions where user_id = '{user}'"));
            assert_eq!(open, (1, COMPLETE.to_owned()), "session {n}");
        }
    }
    // A query node has nothing of its own: another one tells the same.
    let another = node(&cluster, "query", &[]);
    assert_eq!(number(&another, "select count(*) from messages join events using (user_id)").0, 0);
    assert_eq!(number(&another, "select count(*) from sessions"), (60, COMPLETE.to_owned()));
    let shown = another.metric("counterbat_overlay_bytes_total");
    assert!(shown > 0.0 && another.metric("counterbat_partitions_behind") == 0.0);
    // What is not its role is somebody else's.
    assert_eq!(ask(&projectors[0], "select 1").status, 501);
}

#[test]
fn a_projector_that_stands_still_makes_answers_older() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(PARTITIONS, &BUSY);
    let (gateway, projectors) = (node(&cluster, "gateway", &[]), several(&cluster, "projector", 2));
    wait_shared(&[&projectors[0], &projectors[1]], PARTITIONS as usize);
    let send = |from: u64, to: u64| {
        for n in from..to {
            assert_eq!(gateway.callback(&message_body(&format!("user-{n}=="), n)).status, 200);
        }
    };
    send(0, 60);
    let count = "select count(*) from events";
    // Who is answered by nobody sees what is committed: all of it, so that what is behind has a time. The other one opens
    // the tables after that, and so knows as much.
    let stranger = node(&cluster, "query", &[OTHER_SECRET]);
    until("the commits", || number(&stranger, count).0, |committed| *committed == 60);
    let query = node(&cluster, "query", &[]);
    until_complete(&query);
    assert_eq!(number(&query, count), (60, COMPLETE.to_owned()));
    let told = || query.log().matches("queries see these partitions as they are committed").count();
    let before = told();

    projectors[0].signal("STOP");
    send(60, 120);
    let (seen, freshness) = number(&query, count);
    assert!((60..120).contains(&seen), "{seen} {freshness}");
    assert!((1..6).contains(&behind(&freshness)) && freshness.contains(";until=\"20"), "{freshness}");
    for _ in 0..3 {
        assert_eq!(number(&query, count), (seen, freshness.clone()));
    }
    assert_eq!(query.metric("counterbat_partitions_behind"), behind(&freshness) as f64);
    assert_eq!(told(), before + 1, "{}", query.log());
    assert!(query.log().contains("has not answered within 2 s"), "{}", query.log());
    let output = query.home.run(&["sql", count]);
    assert!(output.status.success() && text(&output.stderr).contains("behind="), "{}", text(&output.stderr));

    projectors[0].signal("CONT");
    until("all rows again", || number(&query, count), |answer| *answer == (120, COMPLETE.to_owned()));
    assert!(query.log().contains("queries see all partitions up to now again"));

    projectors.into_iter().for_each(|projector| projector.server.kill());
    let (seen, freshness) = number(&query, count);
    assert!(seen >= 60 && behind(&freshness) == 6, "{seen} {freshness}");
    assert!(query.log().contains("cannot be reached"), "{}", query.log());
}

#[test]
fn nodes_that_do_not_belong_together_are_told_so() {
    if missing() {
        return;
    }
    let cluster = Cluster::new(2, &[]);
    let [gateway, projector, query] = ["gateway", "projector", "query"].map(|role| node(&cluster, role, &[]));
    until_complete(&query);
    assert_eq!(gateway.callback(&message_body("ann==", 1)).status, 200);

    let url = format!("{}/internal/v1/overlay", projector.console);
    for (given, words) in
        [(None, "only those who show the secret"), (Some("fedcba9876543210fedcba9876543210"), "another one")]
    {
        let mut post = http().post(&url).body("{}");
        if let Some(given) = given {
            post = post.bearer_auth(given);
        }
        let reply = request(post);
        assert_eq!(reply.status, 403, "{}", reply.text());
        assert!(reply.problem().contains(words), "{}", reply.text());
    }
    let stranger = node(&cluster, "query", &[OTHER_SECRET]);
    let (seen, freshness) = number(&stranger, "select count(*) from events");
    assert_eq!((seen, behind(&freshness)), (0, 2), "{freshness}");
    assert!(stranger.log().contains("[cluster] secret must be the same on all nodes"), "{}", stranger.log());
    for server in [&stranger, &query, &projector] {
        assert!(!server.log().contains("fedcba98") && !server.log().contains("01234567"), "a secret in the log");
    }

    // Another topic and tables of its own, but the same registry.
    let other = Cluster::new(2, &[]);
    let registry = format!("kafka.registry_topic = {:?}", cluster.registry_topic());
    let lost = node(&other, "query", &[&registry]);
    let (seen, freshness) = number(&lost, "select count(*) from events");
    assert_eq!((seen, behind(&freshness)), (0, 2), "{freshness}");
    assert!(lost.log().contains("nodes of one cluster must name the same topic"), "{}", lost.log());
    // The tables of the first.
    let lake = format!("lake.url = {:?}", format!("s3://{}", cluster.lake()));
    let refused = home(&other, "query", &[&lake]).fails_with(&["serve"], b"");
    assert!(refused.contains("holds positions of log"), "{refused}");
    assert_eq!(number(&query, "select count(*) from events"), (1, COMPLETE.to_owned()));
}

/// Homes of one role, and the servers that run on them; none while one is killed.
struct Kind {
    homes: Vec<Home>,
    servers: Vec<Mutex<Option<Server>>>,
}

impl Kind {
    fn start(homes: Vec<Home>) -> Self {
        let servers = homes.iter().map(|home| Mutex::new(Some(home.serve()))).collect();
        Kind { homes, servers }
    }

    fn with<T>(&self, n: usize, get: impl Fn(&Server) -> T) -> T {
        get(self.servers[n].lock().unwrap().as_ref().unwrap())
    }

    /// kill -9.
    fn kill(&self, n: usize) {
        let server = self.servers[n].lock().unwrap().take().unwrap();
        let log = server.log();
        assert!(!log.contains("panicked"), "{log}");
        server.kill();
    }

    fn restart(&self, n: usize) {
        *self.servers[n].lock().unwrap() = Some(self.homes[n].serve());
    }

    /// All that run; the data directories stay.
    fn take(&self) -> Vec<Server> {
        self.servers.iter().filter_map(|server| server.lock().unwrap().take()).collect()
    }
}

/// What is the same however the tables and what is laid over them are put together, as long as it is of one moment: calls
/// that were recorded and rows of `messages`, callbacks that were recorded and their sum in `sessions`.
const AGREEMENT: &str = "select \
     (select count(*) from events where type = 'send_message' and disposition = 'fact') as sends, \
     (select count(*) from messages) as messages, \
     (select count(*) from events where type = 'message' and disposition = 'fact') as received, \
     (select cast(coalesce(sum(inbound), 0) as bigint) from sessions) as inbound";

/// Asks the query nodes in turn, of which one is there at any time.
#[derive(Default)]
struct Asking {
    over: AtomicBool,
    complete: AtomicUsize,
    older: AtomicUsize,
}

impl Asking {
    fn run(&self, queries: &Kind) {
        while !self.over.load(Ordering::Relaxed) {
            let mut answered = 0;
            for query in &queries.servers {
                // Held, so that it is not killed before it has answered.
                let server = query.lock().unwrap();
                let Some(server) = &*server else { continue };
                let reply = ask(server, AGREEMENT);
                assert_eq!(reply.status, 200, "{}", reply.text());
                self.check(&reply);
                answered += 1;
            }
            assert!(answered > 0, "nobody answers queries");
        }
    }

    fn check(&self, reply: &Reply) {
        let rows: Vec<Value> = serde_json::from_slice(&reply.body).unwrap();
        let count = |name: &str| rows[0][name].as_i64().unwrap();
        if reply.freshness == COMPLETE {
            assert_eq!(count("sends"), count("messages"), "{rows:?}");
            assert_eq!(count("received"), count("inbound"), "{rows:?}");
            self.complete.fetch_add(1, Ordering::Relaxed);
        } else {
            assert!(behind(&reply.freshness) > 0, "{}", reply.freshness);
            self.older.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn each_kind_of_node_is_killed_under_load() {
    if parts::missing("kafka") || parts::missing("minio") {
        return;
    }
    let seed = seed();
    let rounds = if is_long() { 10 } else { 1 };
    let mut own = is_long().then(|| Kafka::start(3));
    let brokers = own.as_ref().map_or_else(|| Kafka::shared().brokers(), Kafka::brokers);
    let minio = Minio::shared();
    let viber = Viber::start(seed, 200);
    let upstream = format!("upstream.url = {:?}", viber.sandbox.base_url());
    let ports = [free_port(), free_port()];
    // Viber tells the first one; the bot sends through both.
    let public = format!(r#"public_url = "http://127.0.0.1:{}""#, ports[0]);
    let settings = [
        BUSY[0],
        BUSY[1],
        r#"kafka.properties."session.timeout.ms" = 6000"#,
        upstream.as_str(),
        public.as_str(),
        "relay.allow_private = true",
        r#"fold.policy = "viber-2022""#,
    ];
    let cluster = Cluster::on(&brokers, minio, &minio.endpoint(), PARTITIONS, &settings);
    let listen = |port| home(&cluster, "gateway", &[&format!(r#"gateway.listen = "127.0.0.1:{port}""#)]);
    let gateways = Kind::start(ports.map(listen).into());
    let homes = |role, n| (0..n).map(|_| home(&cluster, role, &[])).collect();
    let (projectors, queries) = (Kind::start(homes("projector", 3)), Kind::start(homes("query", 2)));
    let bot = viber.bot();
    gateways.with(0, |gateway| bot.register(gateway));
    queries.with(0, until_complete);
    viber.subscribe_all();

    let addresses = (0..2).map(|n| gateways.with(n, |gateway| gateway.gateway.clone())).collect();
    let (load, asking) = (Load::new(&viber, addresses), Asking::default());
    let mut random = Random(seed);
    let kills = std::thread::scope(|scope| {
        for _ in 0..2 {
            let random = Random(random.next());
            scope.spawn(|| load.send(random));
        }
        let of_users = Random(random.next());
        scope.spawn(|| load.write(of_users));
        scope.spawn(|| asking.run(&queries));
        let burn = std::panic::AssertUnwindSafe(|| {
            let mut kills = Vec::new();
            for _ in 0..rounds {
                for kind in [&gateways, &projectors, &queries] {
                    let victim = random.below(kind.servers.len() as u64) as usize;
                    std::thread::sleep(Duration::from_millis(1000 + random.below(2000)));
                    if std::ptr::eq(kind, &gateways) {
                        kills.push(viber.sandbox.time().now_ms());
                    }
                    kind.kill(victim);
                    std::thread::sleep(Duration::from_millis(random.below(3000)));
                    kind.restart(victim);
                }
                if let Some(kafka) = &mut own {
                    let broker = 1 + random.below(3) as usize;
                    kafka.kill(broker);
                    std::thread::sleep(Duration::from_millis(500 + random.below(3000)));
                    kafka.restart(broker);
                }
            }
            kills
        });
        let kills = std::panic::catch_unwind(burn);
        load.over.store(true, Ordering::Relaxed);
        asking.over.store(true, Ordering::Relaxed);
        kills.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    until("all callbacks", || viber.sandbox.stats().outstanding, |outstanding| *outstanding == 0);
    // From here on nothing is taken, so all see the same.
    stop_all(gateways.take());
    let asked = queries.take();
    asked.iter().for_each(until_complete);
    let [complete, older] = [&asking.complete, &asking.older].map(|count| count.load(Ordering::Relaxed));
    println!("{complete} answers with all rows, {older} with older ones");
    assert!(complete > 0);
    let answered = load.answered.into_inner().unwrap();
    assert!(answered.len() > 50, "there was hardly any load: {}", answered.len());
    let tables: Vec<Vec<Recorded>> = asked.iter().map(|query| recorded(|sql| query.sql(sql))).collect();
    let mut sorted = tables.clone();
    sorted.iter_mut().for_each(|rows| rows.sort_unstable());
    let differing = sorted[0].iter().zip(&sorted[1]).find(|(one, other)| one != other);
    assert_eq!(differing, None, "two query nodes see two things");
    assert_eq!(tables[0].len(), tables[1].len(), "a row is there twice");
    let copies = assert_ledger(&tables[0], &viber, &kills, &answered);
    // Where no broker is killed, none takes what it does not acknowledge.
    assert!(is_long() || copies == 0, "{copies} messages are recorded twice");
    stop_all([asked, projectors.take()].into_iter().flatten().collect());
}
