//! A process of a part, which never outlives the tests.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a program in its own place, with a guard beside it that reads from a pipe which the tests hold: the end of the
/// pipe without a word is the end of the tests, however they ended. The guard then kills the program and, once the other
/// programs of the folder have been killed as well, removes the folder.
const GUARDED: &str = r#"
exec 3<&0 < /dev/null
(read -r _ <&3 || { kill -9 $$; sleep 1; rm -rf "$0"; }) > /dev/null 2>&1 &
exec "$@" 3<&-
"#;

/// Killed when dropped.
pub struct Process {
    child: Child,
    guard: ChildStdin,
    log: PathBuf,
}

impl Process {
    /// Starts a command, whose output goes to the file `log`. The folder goes with the tests when they are killed.
    pub fn start(command: &Command, folder: &Path, log: PathBuf) -> Self {
        let output = std::fs::File::create(&log).unwrap();
        let mut guarded = Command::new("sh");
        guarded.args(["-c", GUARDED]).arg(folder).arg(command.get_program()).args(command.get_args());
        guarded.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        guarded.stdin(Stdio::piped()).stdout(output.try_clone().unwrap()).stderr(output);
        let mut child = guarded.spawn().unwrap();
        // Taken from it, because to wait for a child closes its pipe first.
        let guard = child.stdin.take().unwrap();
        Process { child, guard, log }
    }

    /// What it has said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last it has said.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Whether it has ended by itself.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// SIGTERM; does not wait.
    pub fn ask_to_end(&self) {
        // Fails where it has ended by itself, which is as good.
        Command::new("sh").args(["-c", "kill -TERM $0", &self.child.id().to_string()]).output().ok();
    }

    /// Waits for the end after [`Process::ask_to_end`]; kills it after `limit`.
    pub fn end_within(mut self, limit: Duration) {
        let asked = Instant::now();
        while asked.elapsed() < limit && !self.is_over() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        // Until it has gone, its ports and files are not free.
        self.child.wait().ok();
        self.guard.write_all(b"over\n").ok();
    }
}
