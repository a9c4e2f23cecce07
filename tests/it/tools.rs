//! Programs of others that the tests hold Counterbat against. `.ci/tools` fetches them into a cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where `.ci/tools` puts what it fetches: `$TEST_TOOLS`, else `~/.cache/counterbat/tools`.
fn cache() -> PathBuf {
    let set = std::env::var_os("TEST_TOOLS").map(PathBuf::from);
    set.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/counterbat/tools"))
}

/// Runs `.ci/tools` once: what it said, where it failed what it could not fetch.
fn fetch() -> &'static Result<String, String> {
    static FETCHED: OnceLock<Result<String, String>> = OnceLock::new();
    FETCHED.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/tools");
        let output = Command::new("bash").arg(script).env("TEST_TOOLS", cache()).output();
        let output = output.map_err(|error| error.to_string())?;
        let said = super::harness::text(&output.stderr);
        if output.status.success() { Ok(said) } else { Err(said) }
    })
}

/// The path of a tool, fetched when it is not there yet.
fn tool(name: &str) -> PathBuf {
    let fetched = fetch();
    let path = cache().join("bin").join(name);
    assert!(
        path.exists(),
        "{name} is missing: run .ci/tools (Debian, needs apt-get, dpkg, python3, node, npm, java, mvn and go), or put it at {}. {}",
        path.display(),
        fetched.as_ref().err().map_or("", String::as_str),
    );
    path
}

/// Why this machine cannot be given a tool, if it cannot.
pub fn lacks(name: &str) -> Option<String> {
    let said = fetch();
    if cache().join("bin").join(name).exists() {
        return None;
    }
    let (Ok(said) | Err(said)) = said;
    Some(format!("no {name}: {said}"))
}

/// The folder of the programs.
pub fn programs() -> PathBuf {
    cache().join("bin")
}

pub fn promtool() -> Command {
    Command::new(tool("promtool"))
}

pub fn prometheus() -> Command {
    Command::new(tool("prometheus"))
}

/// A Python with duckdb, pyarrow, deltalake, jsonschema, PyYAML, confluent-kafka and viberbot.
pub fn python() -> Command {
    Command::new(tool("python"))
}

/// A Python with psycopg, SQLAlchemy, pgcli and ADBC.
pub fn postgres_python() -> Command {
    Command::new(tool("postgres-python"))
}

/// A Python with Apache Superset.
pub fn superset_python() -> Command {
    Command::new(tool("superset-python"))
}

/// Asks an interface that is described by OpenAPI whatever its description allows, and more.
pub fn schemathesis() -> Command {
    Command::new(tool("schemathesis"))
}

/// The client of PostgreSQL with completion.
pub fn pgcli() -> Command {
    Command::new(tool("pgcli"))
}

/// PostgreSQL's own client; none where there is none, unless this is CI, where that is an error.
pub fn psql() -> Option<Command> {
    unless_left_out("psql")
}

/// Java with PostgreSQL's driver, as [`psql`] is.
pub fn jdbc() -> Option<Command> {
    unless_left_out("jdbc")
}

fn unless_left_out(name: &str) -> Option<Command> {
    if std::env::var_os("CI").is_none()
        && let Some(why) = lacks(name)
    {
        eprintln!("not tested: {why}");
        return None;
    }
    Some(Command::new(tool(name)))
}

/// A client of Kafka.
pub fn kcat() -> Command {
    Command::new(tool("kcat"))
}

/// Java with the classes of Kafka: takes options of the JVM, a class and its arguments.
pub fn kafka() -> Command {
    Command::new(tool("kafka"))
}

/// Prints the JSON schema of compose files.
pub fn compose_schema() -> Command {
    Command::new(tool("compose-schema"))
}

/// The S3 server.
pub fn minio() -> Command {
    Command::new(tool("minio"))
}

/// A Python with pyspark, and in `SPARK_TEST_JARS` the folder of what Spark needs for Delta Lake and S3.
pub fn spark_python() -> Command {
    Command::new(tool("spark-python"))
}

/// A Node that finds viber-bot; none where there is no Node, unless this is CI, where that is an error.
pub fn node() -> Option<Command> {
    let is_there =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|said| said.status.success());
    if std::env::var_os("CI").is_none() && !(is_there("node") && is_there("npm")) {
        eprintln!("not tested: there is no node and npm here (Debian: apt-get install nodejs npm)");
        return None;
    }
    Some(Command::new(tool("node")))
}
