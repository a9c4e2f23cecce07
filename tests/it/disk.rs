//! A full disk: refused clearly, nothing acknowledged lost, on again when there is room.

use super::harness::{Home, message_body, until};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of its own. Needs root.
struct SmallDisk {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(megabytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk { path, _dir: dir }),
            other => {
                assert!(std::env::var_os("CI").is_none(), "a tmpfs cannot be mounted: {other:?}");
                eprintln!("not tested: mounting a tmpfs needs root");
                None
            }
        }
    }

    /// Takes all the room but this much.
    fn fill(&self, but: u64) -> PathBuf {
        let ballast = self.path.join("ballast");
        std::fs::write(&ballast, vec![0u8; self.free().saturating_sub(but) as usize]).unwrap();
        ballast
    }

    fn free(&self) -> u64 {
        let output = Command::new("df").args(["--output=avail", "-B1"]).arg(&self.path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.path).status().ok();
    }
}

fn large_body(token: u64) -> String {
    let text = "x".repeat(6000);
    message_body(&format!("user-{}==", token % 40), token).replace(r#""text":"hi""#, &format!(r#""text":"{text}""#))
}

#[test]
fn a_full_disk_loses_nothing_and_is_left_behind() {
    let Some(disk) = SmallDisk::mount(400) else { return };
    let data = disk.path.join("data");
    let home = Home::with_data(&data, &[r#"lake.commit_every = "1s""#, r#"lake.snapshot_every = "1s""#]);
    let server = home.serve();
    let mut acknowledged = Vec::new();
    let mut token = 1_000_000;
    let mut post = |acknowledged: &mut Vec<u64>| {
        token += 1;
        let reply = server.callback(&large_body(token));
        if reply.status == 200 {
            acknowledged.push(token);
        }
        reply.status
    };
    for _ in 0..50 {
        assert_eq!(post(&mut acknowledged), 200);
    }

    let ballast = disk.fill(200_000);
    let refused = until("a refusal", || post(&mut acknowledged), |status| *status != 200);
    assert_eq!(refused, 503);
    until("unreadiness", || server.get("/readyz").status, |status| *status == 503);
    assert!(post_is_refused_clearly(&server.get("/readyz").text()), "{}", server.get("/readyz").text());

    std::fs::remove_file(ballast).unwrap();
    until("acceptance", || post(&mut acknowledged), |status| *status == 200);
    until("readiness", || server.get("/readyz").status, |status| *status == 200);
    assert_holds(&acknowledged, |query| server.number(query));

    server.kill();
    assert_holds(&acknowledged, |query| home.number(query));
    assert!(Path::new(&data).join("log").is_dir());
}

fn post_is_refused_clearly(text: &str) -> bool {
    text.contains("log") || text.contains("space") || text.contains("disk")
}

/// Every acknowledged callback is there; refused ones may be.
fn assert_holds(acknowledged: &[u64], number: impl Fn(&str) -> i64) {
    let list: Vec<String> = acknowledged.iter().map(u64::to_string).collect();
    let query =
        format!("select count(distinct message_token) from events where message_token in ({})", list.join(", "));
    assert_eq!(number(&query), acknowledged.len() as i64);
}
