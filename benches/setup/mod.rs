//! What the bench programs share: arguments, figures, memory and bytes of a process.

use std::path::Path;
use std::time::{Duration, Instant};

/// `--name VALUE` of the command line, else the default.
pub fn number(name: &str, default: u64) -> u64 {
    let args: Vec<String> = std::env::args().collect();
    let given = args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    given.map_or(default, |text| text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name} takes a number")))
}

/// Runs and tells how long it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

/// A rate in thousands or millions a second.
pub fn rate(n: u64, took: Duration) -> String {
    let per_second = n as f64 / took.as_secs_f64();
    if per_second >= 1e6 { format!("{:.2} M/s", per_second / 1e6) } else { format!("{:.0} k/s", per_second / 1e3) }
}

/// Bytes in the largest fitting unit.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// A number of `/proc/PID/FILE`, in its own unit; 0 when the process has gone.
pub fn proc(pid: u32, file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or(0)
}

/// Largest and present resident memory of a process, in bytes.
pub fn resident(pid: u32) -> (u64, u64) {
    (proc(pid, "status", "VmHWM:") * 1024, proc(pid, "status", "VmRSS:") * 1024)
}

/// Files below a folder with their sizes.
pub fn files(dir: &Path) -> std::collections::BTreeMap<std::path::PathBuf, u64> {
    let mut found = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => found.extend(files(&entry.path())),
            Ok(meta) => {
                found.insert(entry.path(), meta.len());
            }
            Err(_) => {}
        }
    }
    found
}
