//! MinIO: an S3 store that syncs to disk and takes conditional puts right.

use super::process::Process;
use super::script;
use crate::harness::{free_port, text, until};
use crate::tools;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::time::Duration;

/// The address of a store that runs already, `http://host:port`: it is the shared one, with the bucket `$S3_BUCKET` and the
/// keys `$AWS_ACCESS_KEY_ID` and `$AWS_SECRET_ACCESS_KEY`.
pub const RUNNING: &str = "S3_ENDPOINT";

const BUCKET: &str = "lake";
const ACCESS_KEY: &str = "tests";
const SECRET_KEY: &str = "not-a-secret";

/// A store with one bucket, which ends with its data when dropped.
pub struct Minio {
    address: String,
    console: String,
    bucket: String,
    access_key: String,
    secret_key: String,
    process: Option<Process>,
    dir: Option<tempfile::TempDir>,
}

impl Minio {
    pub fn start() -> Self {
        let mut attempts = (0..5).map(|_| Minio::try_start());
        let minio = attempts.find_map(Result::ok).expect("free ports");
        minio.make_bucket();
        minio
    }

    /// One store for all tests of this process, which have prefixes of their own in it; or what `S3_ENDPOINT` says.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Minio> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var(RUNNING) {
            Ok(endpoint) => {
                let set = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("with {RUNNING} set, set {name}"));
                Minio {
                    address: endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned(),
                    bucket: set("S3_BUCKET"),
                    access_key: set("AWS_ACCESS_KEY_ID"),
                    secret_key: set("AWS_SECRET_ACCESS_KEY"),
                    ..Minio::at_free_ports()
                }
            }
            Err(_) => Minio::start(),
        })
    }

    /// `http://host:port`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// `host:port`
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Environment of a process that works with the store as most S3 clients know it.
    pub fn env(&self) -> [(&'static str, String); 7] {
        [
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "false".to_owned()),
            // Spelled as deltalake reads it: a commit is a put that must not replace anything.
            ("aws_conditional_put", "etag".to_owned()),
        ]
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again where it was, and waits until it serves.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "MinIO runs: two of them would wreck its data");
        self.run().unwrap_or_else(|log| panic!("MinIO did not start: {log}"));
    }

    fn at_free_ports() -> Self {
        let port = || format!("127.0.0.1:{}", free_port());
        Minio {
            address: port(),
            console: port(),
            bucket: BUCKET.to_owned(),
            access_key: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.to_owned(),
            process: None,
            dir: None,
        }
    }

    /// Fails with the log where another process took one of the ports.
    fn try_start() -> Result<Self, String> {
        let mut minio = Minio { dir: Some(tempfile::tempdir().unwrap()), ..Minio::at_free_ports() };
        minio
            .run()
            .map_err(|log| if log.contains("port is already in use") { log } else { panic!("no MinIO: {log}") })?;
        Ok(minio)
    }

    /// Fails with the log when it ends instead of serving.
    fn run(&mut self) -> Result<(), String> {
        let folder = self.dir.as_ref().unwrap().path();
        let mut command = tools::minio();
        command.arg("server").arg(folder.join("data")).args(["--quiet", "--address", &self.address]);
        command.args(["--console-address", &self.console]);
        command.envs([("MINIO_ROOT_USER", ACCESS_KEY), ("MINIO_ROOT_PASSWORD", SECRET_KEY), ("MINIO_BROWSER", "off")]);
        let mut process = Process::start(&command, folder, folder.join("log"));
        let mut serves = || match process.is_over() {
            true => Some(Err(process.log())),
            false => is_healthy(&self.address).then_some(Ok(())),
        };
        until("the start of MinIO", &mut serves, Option::is_some).unwrap()?;
        self.process = Some(process);
        Ok(())
    }

    fn make_bucket(&self) {
        let output = tools::python().arg(script("make_bucket.py")).arg(&self.bucket).envs(self.env()).output().unwrap();
        assert!(output.status.success(), "the bucket: {}", text(&output.stderr));
    }
}

/// Whether it answers that it serves.
fn is_healthy(address: &str) -> bool {
    let ask = || {
        let mut connection = TcpStream::connect(address)?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(connection, "GET /minio/health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok::<bool, std::io::Error>(answer.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}
