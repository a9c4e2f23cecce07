//! Clients of PostgreSQL, the real ones: psql, psycopg, SQLAlchemy, pgcli, ADBC and JDBC, on golden data; and clients that are none.

use super::golden::{assert_golden, import};
use super::harness::{Home, Server, text, until};
use super::tools::{jdbc, pgcli, postgres_python, psql};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const LISTEN: &str = r#"postgres.listen = "127.0.0.1:0""#;

/// A client with the address of a server in its environment, where libpq looks for it.
pub fn with_server(mut command: Command, server: &Server) -> Command {
    let (host, port) = server.postgres.rsplit_once(':').unwrap();
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    let set = [
        ("PGHOST", host),
        ("PGPORT", port),
        ("PGUSER", "analyst"),
        ("PGDATABASE", "counterbat"),
        ("PGCONNECT_TIMEOUT", "60"),
    ];
    command.envs(set).env("PGSSLMODE", "prefer").stdin(Stdio::null());
    command
}

/// `psql` with these arguments.
fn ask(server: &Server, args: &[&str]) -> Option<Output> {
    let mut command = with_server(psql()?, server);
    Some(command.args(["-X", "-v", "VERBOSITY=verbose"]).args(args).output().unwrap())
}

/// What it prints, which must be without an error.
fn shown(server: &Server, args: &[&str]) -> Option<String> {
    let output = ask(server, args)?;
    let (shown, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "psql {args:?}: {said}{shown}");
    Some(shown)
}

fn python(server: &Server, test: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/postgres.py");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/small");
    let mut command = with_server(postgres_python(), server);
    let output = command.arg(script).arg(test).arg(golden).output().unwrap();
    assert!(output.status.success(), "{test}: {}{}", text(&output.stdout), text(&output.stderr));
}

fn small() -> (Home, Server) {
    let home = Home::new(&[LISTEN]);
    import(&home, "small");
    let server = home.serve();
    (home, server)
}

#[test]
fn psql_shows_what_there_is() {
    let (_home, server) = small();
    let Some(tables) = shown(&server, &["-c", "\\dt"]) else { return };
    for table in ["events", "sessions", "messages", "policies", "partitions"] {
        assert!(tables.contains(table), "{tables}");
    }
    assert!(!tables.contains("usage_daily"), "{tables}");
    let views = shown(&server, &["-c", "\\dv"]).unwrap();
    assert!(views.contains("usage_daily") && !views.contains(" sessions "), "{views}");
    let all = shown(&server, &["-c", "\\d"]).unwrap();
    assert!(all.contains("usage_daily") && all.contains(" sessions "), "{all}");
    let sessions = shown(&server, &["-A", "-t", "-c", "\\d sessions"]).unwrap();
    for column in [
        "session_id|text||not null|",
        "country|text|||",
        "opened_at|timestamp with time zone||not null|",
        "opened_by_token|numeric||not null|",
        "first_response_ms|bigint|||",
        "inbound|integer||not null|",
        "cost|numeric|||",
    ] {
        assert!(sessions.lines().any(|line| line == column), "{column}: {sessions}");
    }
    let databases = shown(&server, &["-A", "-t", "-c", "\\l"]).unwrap();
    assert!(databases.lines().any(|line| line.starts_with("counterbat|")), "{databases}");
    let schemas = shown(&server, &["-A", "-t", "-c", "\\dn"]).unwrap();
    assert!(schemas.lines().any(|line| line.starts_with("public|")), "{schemas}");
    for command in ["\\d usage_daily", "\\dt+", "\\df", "\\du", "\\conninfo", "\\dT"] {
        shown(&server, &["-c", command]).unwrap();
    }
    assert!(ask_for_error(&server, "\\di").contains("Did not find any relations"));
    assert!(!server.log().contains("has no answer"), "{}", server.log());
}

#[test]
fn psql_completes_names() {
    let (_home, server) = small();
    if psql().is_some() {
        python(&server, "completion");
        assert!(!server.log().contains("has no answer"), "{}", server.log());
    }
}

#[test]
fn psql_gets_rows_of_every_type() {
    let (_home, server) = small();
    let ask = |sql: &str| shown(&server, &["-A", "-t", "-c", sql]);
    let Some(one) = ask("select 1, true, null, 1.5::decimal(4,2), 'ü', date '2026-03-01', unsigned_token(-1)") else {
        return;
    };
    assert_eq!(one, "1|t||1.50|ü|2026-03-01|18446744073709551615\n");
    assert_eq!(
        ask("select timestamp '2026-03-01 10:00:00.25' at time zone 'UTC'").unwrap(),
        "2026-03-01 10:00:00.25+00\n"
    );
    assert_eq!(ask("select -1::bigint as message_token, array[1,2]").unwrap(), "18446744073709551615|{1,2}\n");
    assert_eq!(ask("select count(*) from sessions").unwrap(), "42\n");
    let csv = ask("copy (select -1 as a_token, 'b,c' as b, null as c) to stdout with csv header").unwrap();
    assert_eq!(csv, "a_token,b,c\n18446744073709551615,\"b,c\",\n");
    assert_eq!(ask("select 1; select 2").unwrap(), "1\n2\n");
    assert_eq!(ask("begin; select 1; commit").unwrap(), "BEGIN\n1\nCOMMIT\n");
    assert_eq!(ask("show server_version").unwrap(), "16.6\n");
    assert_eq!(ask("set application_name = 'x'; show application_name").unwrap(), "SET\nx\n");
    assert!(ask("explain select * from sessions").unwrap().contains("Scan"), "no plan");
    // What stands for things of the catalog stands for none of the tables.
    let none = "select 1 where 'public' in (select account from sessions where account <> 'search_path' and account <> 'pg_x')";
    assert_eq!(ask(none).unwrap(), "");
    assert_eq!(ask("select (select count(*) from sessions) from (select 'pg_x' as a) as v").unwrap(), "42\n");
    assert_eq!(
        ask("select count(*) from usage_daily('Europe/Kyiv')").unwrap(),
        server.number("select count(*) from usage_daily('Europe/Kyiv')").to_string() + "\n"
    );
}

#[test]
fn errors_have_their_states_and_places() {
    let (_home, server) = small();
    for (sql, state, place) in [
        ("select * from sesions", "42P01", ""),
        ("select accoun from sessions", "42703", "       ^"),
        ("select 1 from sessions where order by 1", "42601", ""),
        ("select nothing(1)", "42883", ""),
        ("select cast('x' as int)", "22P02", ""),
        ("select 1 / (opened_by_token - opened_by_token) from sessions", "22012", ""),
        ("drop table sessions", "25006", ""),
        ("insert into sessions select * from sessions", "25006", ""),
        ("copy sessions to '/tmp/x'", "25006", ""),
        ("set datafusion.execution.batch_size = 1", "42704", ""),
        ("fetch 1 from nothing", "34000", ""),
    ] {
        let Some(output) = ask(&server, &["-c", sql]) else { return };
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.starts_with(&format!("ERROR:  {state}: ")), "{sql}: {said}");
        let mark = said.lines().skip_while(|line| !line.starts_with("LINE 1: ")).nth(1).unwrap_or_default();
        let wanted = if place.is_empty() { String::new() } else { format!("        {place}") };
        assert!(place.is_empty() || mark == wanted, "{sql}: {said}");
    }
    // After an error a transaction does nothing until its end.
    let output = ask(
        &server,
        &["-A", "-t", "-c", "begin", "-c", "select nothing()", "-c", "select 2", "-c", "rollback", "-c", "select 3"],
    )
    .unwrap();
    assert!(text(&output.stderr).contains("25P02"), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "BEGIN\nROLLBACK\n3\n");
}

#[test]
fn a_long_query_is_cancelled_or_runs_out_of_time() {
    let home = Home::new(&[LISTEN, r#"sql.timeout = "60s""#]);
    let server = home.serve();
    let series = |name: &str| format!("generate_series(1, 20000) {name}");
    let from = ["a", "b", "c"].map(series).join(", ");
    let long = &format!("select count(*) from {from} where a.value + b.value + c.value = 7");
    let Some(output) = ask(&server, &["-c", "set statement_timeout = '200ms'", "-c", long]) else { return };
    assert!(text(&output.stderr).contains("57014"), "{}", text(&output.stderr));
    let mut command = with_server(psql().unwrap(), &server);
    let child = command.args(["-X", "-v", "VERBOSITY=verbose", "-c", "select 'begun'", "-c", long]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    // psql asks the server to cancel when it is interrupted; before it has sent the query it just ends, so it is told again.
    let pid = child.id().to_string();
    until(
        "the end of the query",
        || {
            Command::new("kill").args(["-INT", &pid]).status().unwrap();
            child.try_wait().unwrap()
        },
        Option::is_some,
    );
    let said = text(&child.wait_with_output().unwrap().stderr);
    assert!(said.contains("57014") || said.is_empty(), "{said}");
    assert_eq!(server.number("select 1"), 1);
}

#[test]
fn with_tokens_only_their_owners_are_let_in() {
    let everywhere = r#"postgres.listen = "0.0.0.0:0""#;
    let home = Home::new(&[everywhere]);
    let refused = home.fails_with(&["serve"], b"");
    assert!(refused.contains("[postgres] listen") && refused.contains("counterbat token new NAME"), "{refused}");

    let made: Value = serde_json::from_str(&home.ok(&["token", "new", "grafana", "--json"])).unwrap();
    let old: Value = serde_json::from_str(&home.ok(&["token", "new", "old", "--json"])).unwrap();
    let token = made["token"].as_str().unwrap();
    let tokens = format!(
        "console.tokens = [{{ name = \"grafana\", sha256 = {}, scram = {} }}, {{ name = \"old\", sha256 = {} }}]",
        made["sha256"], made["scram"], old["sha256"]
    );
    home.configure(&[LISTEN, &tokens]);
    let server = home.serve();
    let came = |user: &str, password: &str| {
        let mut command = with_server(psql()?, &server);
        command.env("PGUSER", user).env("PGPASSWORD", password).env("PGAPPNAME", "board");
        let output = command.args(["-X", "-w", "-A", "-t", "-c", "select 'hush'"]).output().unwrap();
        Some((text(&output.stdout), text(&output.stderr)))
    };
    let Some((shown, said)) = came("grafana", token) else { return };
    assert_eq!((shown.as_str(), said.as_str()), ("hush\n", ""));
    for (user, password) in
        [("grafana", "wrong"), ("grafana", old["token"].as_str().unwrap()), ("nobody", token), ("old", "x")]
    {
        let (shown, said) = came(user, password).unwrap();
        assert!(shown.is_empty() && said.contains("FATAL"), "{user}: {said}{shown}");
    }
    // Who may not come in does not learn why.
    let (_, said) = came("old", old["token"].as_str().unwrap()).unwrap();
    assert!(said.contains("authentication failed") && !said.contains("scram"), "{said}");
    let log = until("the log", || server.log(), |log| log.contains("\"board\""));
    assert!(log.contains("has no scram"), "{log}");
    assert!(log.contains("grafana") && !log.contains(token) && !log.contains("hush"), "{log}");
}

#[test]
fn tls_is_spoken_with_those_who_ask_for_it() {
    let home = Home::new(&[]);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(home.path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(home.path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let cert = format!("postgres.tls_cert = {:?}", home.path("cert.pem").to_str().unwrap());
    home.configure(&[LISTEN, &cert]);
    assert!(home.fails_with(&["serve"], b"").contains("tls_key"));
    let key = format!("postgres.tls_key = {:?}", home.path("key.pem").to_str().unwrap());
    home.configure(&[LISTEN, &cert, &key]);
    let server = home.serve();
    let encrypted = |mode: &str| {
        let mut command = with_server(psql()?, &server);
        command.env("PGSSLMODE", mode).env("PGSSLROOTCERT", home.path("cert.pem")).env("PGHOSTADDR", "127.0.0.1");
        let output = command.env("PGHOST", "localhost").args(["-X", "-c", "\\conninfo"]).output().unwrap();
        assert!(output.status.success(), "{mode}: {}", text(&output.stderr));
        Some(text(&output.stdout).contains("SSL connection"))
    };
    let Some(required) = encrypted("require") else { return };
    assert!(required && encrypted("verify-full").unwrap() && !encrypted("disable").unwrap());
}

#[test]
fn the_server_ends_with_clients_connected() {
    let home = Home::new(&[LISTEN]);
    let server = home.serve();
    let Some(mut command) = psql() else { return };
    command = with_server(command, &server);
    let child = command.args(["-X", "-A", "-t"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"select 'begun';\n").unwrap();
    let mut first = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    server.stop_in_order();
    child.stdin.as_mut().unwrap().write_all(b"select 1;\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(text(&output.stderr).contains("terminating connection"), "{}", text(&output.stderr));
}

#[test]
fn psycopg_gets_the_golden_rows() {
    let (_home, server) = small();
    python(&server, "golden");
}

#[test]
fn psycopg_asks_with_parameters_and_cursors() {
    let (_home, server) = small();
    python(&server, "queries");
}

#[test]
fn sqlalchemy_reflects_the_tables() {
    let (_home, server) = small();
    python(&server, "sqlalchemy");
    python(&server, "sqlalchemy_psycopg2");
    assert!(!server.log().contains("has no answer"), "{}", server.log());
}

#[test]
fn adbc_copies_the_golden_rows() {
    let (_home, server) = small();
    python(&server, "adbc");
    assert!(!server.log().contains("has no answer"), "{}", server.log());
}

#[test]
fn pgcli_completes_names() {
    let (home, server) = small();
    python(&server, "pgcli");
    let mut command = with_server(pgcli(), &server);
    command.env("HOME", home.path("")).env("XDG_CONFIG_HOME", home.path("config")).env("TERM", "dumb");
    let command = command.args(["--no-password", "--less-chatty"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"select count(*) as all_of_them from sessions;\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = text(&output.stdout);
    assert!(shown.contains("all_of_them") && shown.contains("42"), "{shown}{}", text(&output.stderr));
    assert!(!server.log().contains("has no answer"), "{}", server.log());
}

/// PostgreSQL's driver for Java; what it printed.
fn java(server: &Server, options: &str, args: &[&str]) -> Option<String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/postgres/Jdbc.java");
    let url = format!("jdbc:postgresql://{}/counterbat?user=analyst{options}", server.postgres);
    let output = jdbc()?.arg(program).arg(url).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    Some(text(&output.stdout))
}

#[test]
fn jdbc_gets_the_golden_rows() {
    let (_home, server) = small();
    // As the driver does it by itself, and in binary from the first time on.
    for options in ["", "&prepareThreshold=-1", "&preferQueryMode=simple"] {
        if jdbc().is_none() {
            return;
        }
        let rows = |query: &str| {
            let lines = java(&server, options, &["rows", query]).unwrap();
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        assert_golden(rows, "small", "counterbat", options);
    }
}

#[test]
fn jdbc_asks_with_parameters_and_lists_the_tables() {
    let (_home, server) = small();
    if java(&server, "", &["queries"]).is_some() {
        java(&server, "", &["catalog"]).unwrap();
    }
    assert!(!server.log().contains("has no answer"), "{}", server.log());
}

#[test]
fn generations_are_schemas() {
    let (home, server) = small();
    let Some(_) = psql() else { return };
    let ask = |sql: &str| shown(&server, &["-A", "-t", "-c", sql]).unwrap();
    assert!(!ask("\\dn").contains("same"));
    home.ok(&["rebuild", "--as", "same"]);
    assert!(ask("\\dn").lines().any(|line| line.starts_with("same|")));
    let tables = ask("\\dt same.*");
    assert!(tables.lines().any(|line| line.starts_with("same|sessions|table")), "{tables}");
    assert!(ask("\\dv same.*").contains("same|usage_daily|view"));
    assert!(ask("\\d same.sessions").contains("opened_at|timestamp with time zone"));
    // Without their schema only the live ones are found.
    assert!(!ask("\\dt").contains("same") && ask("\\d sessions").matches("session_id|text").count() == 1);
    assert_eq!(ask("select count(*) from same.sessions"), "42\n");
    let output = ask_for_error(&server, "set search_path = same");
    assert!(output.contains("0A000") && output.contains("same.sessions"), "{output}");
    home.ok(&["rebuild", "--drop", "same"]);
    assert!(!ask("\\dn").contains("same"));
    assert!(ask_for_error(&server, "\\d same.sessions").contains("Did not find"));
}

fn ask_for_error(server: &Server, sql: &str) -> String {
    text(&ask(server, &["-c", sql]).unwrap().stderr)
}

/// A message of the protocol.
fn message(kind: &[u8], body: &[u8]) -> Vec<u8> {
    [kind, &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn start() -> Vec<u8> {
    message(b"", b"\0\x03\0\0user\0analyst\0database\0counterbat\0\0")
}

/// Everything that is answered, up to the end of the connection or what is waited for.
fn answered(stream: &mut TcpStream, until: &[u8]) -> Vec<u8> {
    let (mut all, mut some) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut some) {
            // Cut off with bytes that were not read.
            Ok(0) | Err(_) => return all,
            Ok(count) => all.extend_from_slice(&some[..count]),
        }
        if all.ends_with(until) && !until.is_empty() {
            return all;
        }
    }
}

const READY: &[u8] = b"Z\0\0\0\x05I";

fn connect(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(&server.postgres).unwrap();
    stream.write_all(&start()).unwrap();
    assert!(answered(&mut stream, READY).ends_with(READY));
    stream
}

#[test]
fn whatever_is_sent_the_others_are_answered() {
    let home = Home::new(&[LISTEN]);
    let server = home.serve();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\0\0\0\0\0\0\0\0",
        b"\xff\xff\xff\xff\0\x03\0\0",
        b"\x7f\xff\xff\xff\0\x03\0\0",
        b"\0\0\0\x08\0\x02\0\0",
        b"\x16\x03\x01\0\x05\x01\0\0\x01\0",
    ] {
        let mut stream = TcpStream::connect(&server.postgres).unwrap();
        stream.write_all(bytes).unwrap();
        // The server may have hung up already.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        answered(&mut stream, b"");
    }
    // Messages cut short, too long, of no kind, in no order.
    for bytes in [
        message(b"B", b""),
        message(b"B", b"\0\0\xff\xff"),
        message(b"P", b"\0select $1\0\xff\xff"),
        message(b"E", b"\0"),
        message(b"D", b""),
        message(b"C", b"S"),
        message(b"Q", b"select 1"),
        message(b"!", b"what"),
        message(b"d", b"data"),
        b"Q\0\0\0\0".to_vec(),
        b"Q\x7f\xff\xff\xff".to_vec(),
        message(b"Q", &vec![b' '; 2 << 20]),
    ] {
        let mut stream = connect(&server);
        // It may be cut off before it has sent all.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        answered(&mut stream, b"");
    }
    // A number of rows is no number of bytes to be set aside.
    for most in [i32::MAX, -1, i32::MIN] {
        let mut stream = connect(&server);
        let parse = message(b"P", b"\0select 7\0\0\0");
        let bind = message(b"B", &[0; 8]);
        let execute = message(b"E", &[&b"\0"[..], &most.to_be_bytes()].concat());
        stream.write_all(&[parse, bind, execute, message(b"S", b"")].concat()).unwrap();
        let all = answered(&mut stream, READY);
        assert!(all.windows(9).any(|bytes| bytes == b"SELECT 1\0"), "{most}: {}", String::from_utf8_lossy(&all));
    }
    assert!(answered(&mut connect_and_ask(&server), READY).ends_with(READY));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

fn connect_and_ask(server: &Server) -> TcpStream {
    let mut stream = connect(server);
    stream.write_all(&message(b"Q", b"select 1\0")).unwrap();
    stream
}

#[test]
fn before_it_is_let_in_a_client_is_not_waited_for_with_much() {
    let home = Home::new(&[]);
    let made: Value = serde_json::from_str(&home.ok(&["token", "new", "grafana", "--json"])).unwrap();
    let tokens =
        format!("console.tokens = [{{ name = \"grafana\", sha256 = {}, scram = {} }}]", made["sha256"], made["scram"]);
    home.configure(&[LISTEN, &tokens]);
    let server = home.serve();
    for bytes in [
        message(b"p", b""),
        message(b"p", b"SCRAM-SHA-256"),
        message(b"p", b"SCRAM-SHA-256\0\0\0\xff\xff"),
        message(b"p", b"SCRAM-SHA-256-PLUS\0\0\0\0\0"),
        message(b"p", b"SCRAM-SHA-256\0\xff\xff\xff\xff"),
        message(b"Q", b"select 1\0"),
        // More than anybody needs to be let in: it is cut off without waiting for the rest.
        b"Q\0\x0f\0\0".to_vec(),
    ] {
        let mut stream = TcpStream::connect(&server.postgres).unwrap();
        stream.write_all(&start()).unwrap();
        stream.write_all(&bytes).unwrap();
        let all = answered(&mut stream, b"");
        assert!(all.windows(6).any(|bytes| bytes == b"VFATAL"), "{bytes:?}: {}", String::from_utf8_lossy(&all));
        assert!(!all.windows(9).any(|bytes| bytes == b"R\0\0\0\x08\0\0\0\0"), "{bytes:?}");
    }
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn there_is_room_for_so_many() {
    let home = Home::new(&[LISTEN]);
    let server = home.serve();
    let mut others: Vec<TcpStream> = (0..200).map(|_| connect(&server)).collect();
    let mut one_more = TcpStream::connect(&server.postgres).unwrap();
    one_more.write_all(&start()).unwrap();
    let all = answered(&mut one_more, b"");
    assert!(String::from_utf8_lossy(&all).contains("53300"), "{}", String::from_utf8_lossy(&all));
    others.pop();
    until(
        "a place",
        || {
            let mut stream = TcpStream::connect(&server.postgres).unwrap();
            stream.write_all(&start()).unwrap();
            answered(&mut stream, READY)
        },
        |all| all.ends_with(READY) && !String::from_utf8_lossy(all).contains("53300"),
    );
}

/// What other tools ask the catalog for, in statements of the same shape: the tools themselves cannot be had here.
#[test]
fn what_dbeaver_metabase_grafana_and_superset_ask_is_answered() {
    let (_home, server) = small();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/postgres/asked");
    let tools = ["dbeaver", "metabase", "grafana", "superset"];
    let mut command = with_server(postgres_python(), &server);
    command.arg(folder.join("ask.py")).args(tools.map(|tool| folder.join(format!("{tool}.sql"))));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    for tool in tools {
        let of_tool = &found[format!("{tool}.sql")];
        assert!(of_tool["statements"].as_u64().unwrap() >= 20, "{found}");
        assert_eq!(of_tool["failed"], Value::Array(Vec::new()), "{tool}");
        assert!(of_tool["rows"].as_u64().unwrap() > 50, "{found}");
        assert!(of_tool["says"]["sessions"] == true && of_tool["says"]["session_id"] == true, "{found}");
    }
    assert!(!server.log().contains("has no answer"), "{}", server.log());
}
