//! A history put into a server's tables.

use crate::generate::Generated;
use crate::harness::Home;
use std::io::BufWriter;
use std::process::Stdio;

/// Imports the events without a file of them.
pub fn import(home: &Home, events: &[Generated]) {
    let child = home
        .command(&["import", "--wait", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn();
    let mut child = child.unwrap();
    let mut out = BufWriter::with_capacity(1 << 20, child.stdin.take().unwrap());
    for event in events {
        event.write_line(&mut out).unwrap();
    }
    drop(out);
    assert!(child.wait().unwrap().success(), "the import failed");
}
