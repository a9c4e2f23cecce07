//! The layer table of `src/lib.rs` is what the code does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Module of a file: the first part of its path under `src`.
fn module(file: &Path) -> String {
    let inner = file.strip_prefix(src()).unwrap();
    let first = inner.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// What each module may import, from the table, and with each what that one may import; `None` is everything.
fn table() -> BTreeMap<String, Option<BTreeSet<String>>> {
    let text = std::fs::read_to_string(src().join("lib.rs")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | [`")?.strip_suffix(" |"));
    let rows: Vec<(String, &str)> =
        rows.map(|row| (row.split('`').next().unwrap().to_owned(), row.rsplit(" | ").next().unwrap())).collect();
    let mut table: BTreeMap<String, Option<BTreeSet<String>>> = BTreeMap::new();
    for (name, may) in &rows {
        let mut allowed: BTreeSet<String> = may.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        // Rows stand in the order of the flow: what a row names is above it.
        let below: Vec<String> = allowed.iter().filter_map(|one| table.get(one)?.clone()).flatten().collect();
        allowed.extend(below);
        table.insert(name.clone(), (*may != "everything").then_some(allowed));
    }
    table
}

/// The code of a file without its tests and comments.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    own.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test_file(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "tests.rs") || file.components().any(|part| part.as_os_str() == "tests")
}

/// Modules of ours that a piece of code names as `crate::x`, also in groups.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap().split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let name = name.trim_start().split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap();
            found.insert(name.to_owned());
        }
    }
    found.remove("");
    found
}

#[test]
fn modules_import_what_the_table_allows() {
    let table = table();
    assert!(table.len() >= 10, "the layer table was not found: {table:?}");
    let mut wrong = Vec::new();
    for file in sources(&src()) {
        let module = module(&file);
        if module == "lib" || module == "main" || is_test_file(&file) {
            continue;
        }
        let Some(allowed) = table.get(&module) else {
            wrong.push(format!("{}: module {module} is not in the table", file.display()));
            continue;
        };
        let Some(allowed) = allowed else { continue };
        for import in imports(&code(&file)) {
            if import != module && table.contains_key(&import) && !allowed.contains(&import) {
                wrong.push(format!("{}: {module} may not import {import}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn events_and_the_fold_are_pure() {
    let mut wrong = Vec::new();
    for file in sources(&src()) {
        if !["event", "session"].contains(&module(&file).as_str()) || is_test_file(&file) {
            continue;
        }
        let code = code(&file);
        for word in
            ["std::time", "std::fs", "std::thread", "std::net", "std::env", "tokio", "rand::", "Utc::now", "SystemTime"]
        {
            if code.contains(word) {
                wrong.push(format!("{}: {word}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
