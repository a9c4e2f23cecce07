//! Kafka brokers, each a process of its own that is broker and controller.

use super::process::Process;
use super::{Cuts, script};
use crate::harness::{free_port, text, until};
use crate::tools;
use std::fmt::Write;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Addresses of brokers that run already, `host:port,…`: they are the shared ones.
pub const RUNNING: &str = "KAFKA_BROKERS";

const JVM: [&str; 3] = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"];

/// A cluster of brokers with ids from 1 on, which ends with its data when dropped.
pub struct Kafka {
    nodes: Vec<Node>,
    brokers: String,
    dir: Option<tempfile::TempDir>,
}

struct Node {
    id: usize,
    home: PathBuf,
    /// For the tests, for clients behind the wire, for the controllers.
    ports: [u16; 3],
    cuts: Cuts,
    /// Of its folder, as its fellows know it.
    uuid: String,
    process: Option<Process>,
}

impl Kafka {
    /// Starts 1 or 3 brokers. Topics of three are kept by all of them, and a write needs two.
    pub fn start(brokers: usize) -> Self {
        let mut attempts = (0..5).map(|_| Kafka::try_start(brokers));
        attempts.find_map(Result::ok).expect("free ports")
    }

    /// One broker for all tests of this process, which have topics of their own on it; or what `KAFKA_BROKERS` says.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var(RUNNING) {
            Ok(brokers) => Kafka { nodes: Vec::new(), brokers, dir: None },
            Err(_) => Kafka::start(1),
        })
    }

    /// `host:port,…`
    pub fn brokers(&self) -> String {
        self.brokers.clone()
    }

    /// The same brokers for clients behind the wires: whoever asks here is told of no other addresses than these.
    pub fn brokers_behind_cuts(&self) -> String {
        join(self.nodes.iter().map(|node| node.cuts.address()))
    }

    /// The wire before a broker, on which only those are who came by [`Kafka::brokers_behind_cuts`].
    pub fn cuts(&self, id: usize) -> &Cuts {
        &self.nodes[id - 1].cuts
    }

    /// Makes a topic with settings as `retention.ms=-1`. The default retention takes away records older than 7 days.
    pub fn make_topic(&self, name: &str, partitions: usize, settings: &[&str]) {
        let mut command = tools::python();
        command.arg(script("make_topic.py")).args([&self.brokers, name, &partitions.to_string()]).args(settings);
        let output = command.output().unwrap();
        assert!(output.status.success(), "the topic {name}: {}", text(&output.stderr));
    }

    /// Removes topics with all that is in them.
    pub fn delete_topics(&self, names: &[&str]) {
        let mut command = tools::python();
        let output = command.arg(script("delete_topics.py")).arg(&self.brokers).args(names).output().unwrap();
        assert!(output.status.success(), "the topics {names:?}: {}", text(&output.stderr));
    }

    /// Bytes on the disks of all brokers of the partitions whose names begin so.
    #[allow(dead_code, reason = "a bench measures it")]
    pub fn bytes(&self, prefix: &str) -> u64 {
        let partitions = |node: &Node| std::fs::read_dir(node.home.join("data")).unwrap();
        let named = self.nodes.iter().flat_map(partitions).flatten().filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok())
        });
        let files = named.flat_map(|partition| std::fs::read_dir(partition.path()).unwrap().flatten());
        // What is laid out for an index before it is filled takes no room.
        let taken = |entry: std::fs::DirEntry| entry.metadata().map_or(0, |meta| meta.blocks() * 512);
        files.map(taken).sum()
    }

    /// kill -9.
    pub fn kill(&mut self, id: usize) {
        self.nodes[id - 1].process = None;
    }

    /// An orderly end; kill -9 if it takes more than half a minute, as it may where no other controller is left.
    pub fn terminate(&mut self, id: usize) {
        if let Some(process) = self.nodes[id - 1].process.take() {
            process.ask_to_end();
            process.end_within(Duration::from_secs(30));
        }
    }

    /// Starts a broker that was ended, and waits until it serves.
    pub fn restart(&mut self, id: usize) {
        let folder = self.dir.as_ref().unwrap().path();
        let node = &mut self.nodes[id - 1];
        assert!(node.process.is_none(), "broker {id} runs: two of them would wreck its data");
        node.run(folder);
        node.wait_started().unwrap_or_else(|log| panic!("broker {id} did not start: {log}"));
        node.wait_known(&[id]);
    }

    /// Fails with the log where another process took one of the ports.
    fn try_start(brokers: usize) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes: Vec<Node> = (1..=brokers).map(|id| Node::new(id, dir.path())).collect();
        let controllers = join(nodes.iter().map(|node| format!("127.0.0.1:{}", node.ports[2])));
        let voters = join(nodes.iter().map(|node| format!("{}@127.0.0.1:{}:{}", node.id, node.ports[2], node.uuid)));
        let cluster = uuid();
        std::thread::scope(|scope| {
            for node in &nodes {
                scope.spawn(|| node.format(brokers, &cluster, &controllers, &voters));
            }
        });
        for node in &mut nodes {
            node.run(dir.path());
        }
        for node in &mut nodes {
            node.wait_started()
                .map_err(|log| if log.contains("Address already in use") { log } else { panic!("no Kafka: {log}") })?;
        }
        let all: Vec<usize> = (1..=brokers).collect();
        nodes.iter().for_each(|node| node.wait_known(&all));
        let brokers = join(nodes.iter().map(|node| format!("127.0.0.1:{}", node.ports[0])));
        Ok(Kafka { nodes, brokers, dir: Some(dir) })
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let processes: Vec<Process> = self.nodes.iter_mut().filter_map(|node| node.process.take()).collect();
        if std::thread::panicking() {
            processes.iter().for_each(|process| eprintln!("--- the end of a broker's log:\n{}", process.log_end()));
        }
        processes.iter().for_each(Process::ask_to_end);
        processes.into_iter().for_each(|process| process.end_within(Duration::from_secs(3)));
    }
}

impl Node {
    fn new(id: usize, folder: &Path) -> Self {
        let ports = [free_port(), free_port(), free_port()];
        let cuts = Cuts::before(&format!("127.0.0.1:{}", ports[1]));
        let home = folder.join(format!("node-{id}"));
        std::fs::create_dir(&home).unwrap();
        Node { id, home, ports, cuts, uuid: uuid(), process: None }
    }

    fn format(&self, brokers: usize, cluster: &str, controllers: &str, voters: &str) {
        let properties = self.home.join("server.properties");
        std::fs::write(&properties, self.properties(brokers, controllers)).unwrap();
        let mut command = tools::kafka();
        command.arg("-Xmx128m").args(JVM).args(["kafka.tools.StorageTool", "format", "-t", cluster, "-c"]);
        let output = command.arg(&properties).args(["--initial-controllers", voters]).output().unwrap();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    }

    fn properties(&self, brokers: usize, controllers: &str) -> String {
        let Node { id, home, ports: [port, cut_port, controller_port], cuts, .. } = self;
        let (data, behind) = (home.join("data"), cuts.address());
        let in_sync = brokers.div_ceil(2);
        // A broker that was killed is unknown to the others, or may come back, only once its session is over.
        let (session, heartbeat) = if brokers == 1 { (1_000, 200) } else { (3_000, 500) };
        let mut properties = String::new();
        for (name, value) in [
            ("node.id", &*id.to_string()),
            ("process.roles", "broker,controller"),
            (
                "listeners",
                &format!(
                    "PLAINTEXT://127.0.0.1:{port},CUT://127.0.0.1:{cut_port},CONTROLLER://127.0.0.1:{controller_port}"
                ),
            ),
            ("advertised.listeners", &format!("PLAINTEXT://127.0.0.1:{port},CUT://{behind}")),
            ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CUT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
            ("controller.listener.names", "CONTROLLER"),
            ("inter.broker.listener.name", "PLAINTEXT"),
            ("controller.quorum.bootstrap.servers", controllers),
            ("log.dirs", &data.display().to_string()),
            ("auto.create.topics.enable", "false"),
            ("default.replication.factor", &brokers.to_string()),
            ("min.insync.replicas", &in_sync.to_string()),
            ("offsets.topic.replication.factor", &brokers.to_string()),
            ("offsets.topic.num.partitions", "1"),
            ("transaction.state.log.replication.factor", &brokers.to_string()),
            ("transaction.state.log.min.isr", &in_sync.to_string()),
            ("transaction.state.log.num.partitions", "1"),
            ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "1000"),
            ("share.coordinator.state.topic.replication.factor", &brokers.to_string()),
            ("share.coordinator.state.topic.min.isr", &in_sync.to_string()),
            ("group.initial.rebalance.delay.ms", "0"),
            ("group.min.session.timeout.ms", "1000"),
            ("broker.session.timeout.ms", &session.to_string()),
            ("broker.heartbeat.interval.ms", &heartbeat.to_string()),
            ("replica.lag.time.max.ms", "5000"),
            ("initial.broker.registration.timeout.ms", "60000"),
            // The default of 128 MB does not fit the heap.
            ("log.cleaner.dedupe.buffer.size", "4194304"),
        ] {
            writeln!(properties, "{name}={value}").unwrap();
        }
        properties
    }

    fn run(&mut self, folder: &Path) {
        let mut command = tools::kafka();
        command.args(["-Xms256m", "-Xmx256m"]).args(JVM).arg("kafka.Kafka").arg(self.home.join("server.properties"));
        self.process = Some(Process::start(&command, folder, self.home.join("log")));
    }

    /// Fails with the log when it ends instead.
    fn wait_started(&mut self) -> Result<(), String> {
        let process = self.process.as_mut().unwrap();
        let started = |process: &mut Process| match process.is_over() {
            true => Some(Err(process.log())),
            false => process.log().contains("Kafka Server started").then_some(Ok(())),
        };
        until("the start of a broker", || started(process), Option::is_some).unwrap()
    }

    /// Waits until it tells clients of these brokers.
    fn wait_known(&self, ids: &[usize]) {
        let address = format!("127.0.0.1:{}", self.ports[0]);
        let ask = || {
            let output = tools::kcat().args(["-L", "-J", "-m", "5", "-b", &address]).output().unwrap();
            let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let known = metadata["brokers"].as_array().cloned().unwrap_or_default();
            known.iter().filter_map(|broker| broker["id"].as_u64()).collect::<Vec<_>>()
        };
        until("the brokers", ask, |known| ids.iter().all(|id| known.contains(&(*id as u64))));
    }
}

fn join(addresses: impl Iterator<Item = String>) -> String {
    addresses.collect::<Vec<_>>().join(",")
}

/// Sixteen bytes in URL-safe base64, as Kafka writes a UUID.
fn uuid() -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("{random:021}A")
}
