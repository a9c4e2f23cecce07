//! `/openapi.json` against the running server: it does what it is described to do.
//!
//! `TEST_LONG=1` asks each operation 300 times instead of 20; `TEST_SEED` draws the same again.

use super::golden::import;
use super::harness::{Home, text};
use super::tools::schemathesis;
use super::viber::{is_long, seed};
use serde_json::Value;
use std::path::Path;

#[test]
fn the_server_is_as_it_is_described() {
    let home = Home::new(&[]);
    import(&home, "small");
    let server = home.serve();
    let described: Value = serde_json::from_slice(&server.get("/openapi.json").body).unwrap();
    assert_eq!(described["openapi"], "3.1.0");
    assert!(described["paths"]["/api/v1/stream"]["get"]["responses"]["200"].is_object(), "{described}");
    let (examples, seed) = (if is_long() { "300" } else { "20" }, seed().to_string());
    eprintln!("seed {seed}");
    let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/openapi");
    let output = schemathesis()
        .env("PYTHONPATH", hooks)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .args(["run", &format!("{}/openapi.json", server.console)])
        // What never ends is asked by tests of its own.
        .args(["--exclude-path", "/api/v1/stream", "--max-examples", examples, "--seed", &seed])
        .args(["--phases", "examples,coverage,fuzzing", "--no-color", "--request-timeout", "60"])
        .arg("--checks=not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance")
        .current_dir(home.path(""))
        .output()
        .unwrap();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
}
