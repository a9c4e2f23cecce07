//! What a token shows: rows of its accounts, with data or without, whatever is tried to see more.

use super::generate::MARCH_MS;
use super::harness::{Home, Reply, Server, http, message_body, only_number, request, token, until};
use serde_json::{Value, json};

const EACH: u64 = 20;

/// A message to the bot, its answer and the receipt; of one account all users and texts are `mine`, of the other `theirs`.
fn lines() -> Vec<u8> {
    let mut lines = String::new();
    for (account, whose) in [("bot1", "mine"), ("bot2", "theirs")] {
        for n in 0..EACH {
            let (user, t_ms, token) =
                (format!("{whose}-{n}=="), MARCH_MS + n as i64 * 1000, 7_000_000_000_000_000_000 + n);
            let token = if whose == "mine" { token } else { token + 1_000_000 };
            let text = format!("{whose} text {n}");
            let said = json!({"event": "message", "timestamp": t_ms, "message_token": token,
                "sender": {"id": user, "country": "UA"}, "message": {"type": "text", "text": text}});
            let sent = json!({"request": {"receiver": user, "type": "text", "text": text, "tracking_data": text},
                "response": {"status": 0, "message_token": token + 500, "billing_status": 1}, "http_status": 200});
            let seen =
                json!({"event": "delivered", "timestamp": t_ms + 20, "message_token": token + 500, "user_id": user});
            let told = [("callback.message", said), ("api.send_message", sent), ("callback.delivered", seen)];
            for (number, (kind, data)) in told.into_iter().enumerate() {
                let time = chrono::DateTime::from_timestamp_millis(t_ms + number as i64 * 10).unwrap().to_rfc3339();
                let event = json!({"specversion": "1.0", "id": format!("{whose}/{n}/{kind}"), "source": format!("/accounts/{account}"),
                    "type": format!("com.viber.{kind}"), "subject": user, "time": time, "data": data});
                lines.push_str(&format!("{event}\n"));
            }
        }
    }
    lines.into_bytes()
}

fn ask(server: &Server, token: &str, query: &str) -> Reply {
    let post = http().post(format!("{}/api/v1/sql", server.console)).bearer_auth(token);
    request(post.header("content-type", "application/json").body(json!({ "sql": query }).to_string()))
}

fn number(server: &Server, token: &str, query: &str) -> i64 {
    let reply = ask(server, token, query);
    assert_eq!(reply.status, 200, "{query}: {}", reply.text());
    only_number(&serde_json::from_slice::<Vec<Value>>(&reply.body).unwrap())
}

/// Ways to see rows of another account, or what tells of them.
const WAYS: [&str; 62] = [
    "select * from sessions",
    "select * from messages",
    "select * from events",
    "select * from sessions where account = 'bot2'",
    "select * from sessions where account <> 'bot1' or true",
    "select * from sessions where not (account = 'bot1')",
    "select * from public.sessions",
    "select * from counterbat.public.sessions",
    "select * from \"sessions\" s",
    "table sessions",
    "select user_id from (select * from messages) m",
    "with all_of as (select * from messages) select * from all_of",
    "with recursive r as (select user_id, 1 as n from sessions union all select user_id, n + 1 from r where n < 3) select * from r",
    "select (select max(user_id) from sessions)",
    "select max(user_id), min(user_id) from messages",
    "select string_agg(user_id, ',') from messages",
    "select array_agg(user_id) from messages",
    "select array_agg(data) from events",
    "select a.user_id, b.user_id from sessions a cross join sessions b",
    "select b.user_id from sessions a full join sessions b on a.account <> b.account",
    "select b.user_id from (values ('bot2')) v(account) join sessions b using (account)",
    "select s.user_id from sessions s where exists (select 1 from messages m where m.account <> s.account)",
    "select user_id from sessions where account in (select account from events)",
    "select user_id from sessions union select user_id from messages union all select user_id from events",
    "select user_id from sessions except select user_id from sessions where account = 'bot1'",
    "select user_id from messages intersect select user_id from events where account = 'bot2'",
    "select * from users",
    "select * from open_sessions",
    "select * from user_timeline",
    "select * from billing_audit",
    "select * from billing_accuracy",
    "select * from usage_daily where account = 'bot2'",
    "select * from usage_daily('Europe/Kyiv')",
    "select * from spend_daily",
    "select * from quota_monthly",
    "select * from predictions",
    "select * from completeness",
    "select * from statement_monthly",
    "select * from avoidable_cost",
    "select * from first_response",
    "select * from delivery_funnel",
    "select * from account_policies",
    "select * from kept.sessions",
    "select * from kept.events",
    "select * from kept.usage_daily",
    "select user_id from sessions where cast(user_id as int) = 1",
    "select user_id from sessions where 1 / (case when account = 'bot2' then 0 else 1 end) > 0",
    "select arrow_cast(user_id, 'Int64') from sessions",
    "select to_timestamp(user_id) from messages",
    "select cast(data as int) from events",
    "select * from events where data like '%theirs%' and cast(data as int) > 0",
    "select case when account = 'bot2' then cast(user_id as int) end from sessions",
    "select row_number() over (order by account desc), user_id from sessions",
    "select lead(user_id) over (order by user_id), first_value(user_id) over (order by user_id desc) from sessions",
    "select user_id from messages order by account desc limit 3",
    "select distinct user_id from events order by user_id desc",
    "explain select * from sessions where user_id like 'th%'",
    "explain analyze select * from sessions",
    "explain verbose select count(*) from events",
    "select * from information_schema.columns c join sessions s on true",
    "describe sessions",
    "select unnest(array_agg(user_id)) from sessions",
];

#[test]
fn a_token_of_some_accounts_shows_no_others() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &lines());
    home.ok(&["rebuild", "--as", "kept"]);
    let (mine, mine_entry) = token(&home, &["mine", "--accounts", "bot1", "--data"]);
    let (blind, blind_entry) = token(&home, &["blind"]);
    let (ops, ops_entry) = token(&home, &["ops", "--operator", "--data"]);
    home.configure(&[&format!("console.tokens = [{mine_entry}, {blind_entry}, {ops_entry}]")]);
    let server = home.serve();

    let mut answered = 0;
    for query in WAYS {
        let reply = ask(&server, &mine, query);
        let text = reply.text().to_lowercase();
        assert!(!text.contains("theirs"), "{query}: {text}");
        answered += usize::from(reply.status == 200);
        assert!([200, 400, 403, 422].contains(&reply.status), "{query}: {} {text}", reply.status);
    }
    assert!(answered > 45, "most of them are answered: {answered}");
    // What is shown is all of one's own, and figures are of that alone.
    for (query, all) in [
        ("select count(*) from events", 3),
        ("select count(*) from sessions", 1),
        ("select count(*) from messages", 1),
        ("select sum(outbound) from sessions", 1),
        ("select count(*) from users", 1),
        ("select sum(out_total) from (select count(*) as out_total from messages group by account) t", 1),
        ("select count(*) from kept.events", 3),
        ("select count(*) from kept.sessions", 1),
        ("select count(data) from events", 3),
        ("select count(*) from events where user_id like '%=='", 3),
        ("select count(*) from events where data like '%text%'", 2),
    ] {
        let each = i64::try_from(EACH).unwrap() * all;
        assert_eq!(number(&server, &mine, query), each, "{query}");
        let whole = number(&server, &ops, query);
        assert_eq!(whole, 2 * each, "{query}");
    }
    assert_eq!(number(&server, &mine, "select count(*) from sessions where account = 'bot2'"), 0);

    // All accounts, and nothing that was written.
    assert_eq!(number(&server, &blind, "select count(*) from events"), 6 * EACH as i64);
    for query in [
        "select count(data) from events",
        "select count(*) from events where data like '%text%'",
        "select count(data) from kept.events",
        "select count(*) from (select * from events order by data) e where data is not null",
    ] {
        assert_eq!(number(&server, &blind, query), 0, "{query}");
    }
    let shown = ask(&server, &blind, "select * from events").text();
    assert!(shown.contains("theirs-1==") && !shown.contains("text 1"), "{shown}");
}

#[test]
fn what_is_written_is_shown_to_those_who_may_see_it_and_views_count_the_same() {
    let home = Home::new(&[]);
    // Two sends that were begun, of which one has a result; and a broadcast refused to one of its receivers.
    let event = |id: &str, kind: &str, data: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/accounts/bot1","type":"{kind}","subject":"u==","time":"2026-03-01T10:00:00Z","data":{data}}}"#
        ) + "\n"
    };
    let calls = ["0193a8a5-0000-7000-8000-000000000001", "0193a8a5-0000-7000-8000-000000000002"];
    let mut all = lines();
    for id in calls {
        let started = json!({"call_id": id, "method": "send_message", "receivers": ["u=="], "digest": "0".repeat(64)});
        all.extend(event(id, "counterbat.call.started", &started.to_string()).into_bytes());
    }
    let result = format!(
        r#"{{"call_id":"{}","request":{{"text":"secret"}},"response":{{"status":0,"message_token":99}},"http_status":200}}"#,
        calls[0]
    );
    all.extend(event("result", "com.viber.api.send_message", &result).into_bytes());
    let broadcast = r#"{"request":{"text":"secret"},"response":{"status":0,"message_token":98,"failed_list":[{"receiver":"v==","status":7,"receiver_status": 23}]},"http_status":200}"#;
    all.extend(event("broadcast", "com.viber.api.broadcast_message", broadcast).into_bytes());
    home.ok_with(&["import", "--wait", "-"], &all);
    let (blind, blind_entry) = token(&home, &["blind"]);
    let (sees, sees_entry) = token(&home, &["sees", "--data"]);
    let (mine, mine_entry) = token(&home, &["mine", "--accounts", "bot1"]);
    home.configure(&[&format!("console.tokens = [{blind_entry}, {sees_entry}, {mine_entry}]")]);
    let server = home.serve();
    for query in [
        "select count(*) from unknown_calls",
        "select count(*) from unknown_calls('2026-03-01')",
        "select coalesce(sum(unknown_calls), 0) from completeness",
        "select coalesce(sum(refused_free), 0) from quota_monthly",
        "select count(*) from events where type = 'send_message' and message_token = 99",
    ] {
        let wanted = number(&server, &sees, query);
        assert!(wanted > 0, "{query}");
        assert_eq!([number(&server, &blind, query), number(&server, &mine, query)], [wanted; 2], "{query}");
    }
    for (column, table) in [("tracking_data", "messages"), ("signature", "events")] {
        let query = format!("select count({column}) from {table}");
        assert_eq!([number(&server, &blind, &query), number(&server, &mine, &query)], [0; 2], "{query}");
    }
    assert!(number(&server, &sees, "select count(tracking_data) from messages") > 0);
    for query in
        ["select * from events", "select * from messages", "select * from user_timeline", "select * from unknown_calls"]
    {
        let shown = ask(&server, &blind, query).text();
        assert!(!shown.contains("secret") && !shown.contains("text 1"), "{query}: {shown}");
    }
    // Who sees some accounts learns nothing of how much there is of others.
    assert_eq!(number(&server, &mine, "select count(\"offset\") from events"), 0);
    assert_eq!(number(&server, &mine, "select count(*) from events where \"offset\" >= 0"), 0);
    assert!(number(&server, &blind, "select count(\"offset\") from events") > 0);
    assert_eq!(
        number(&server, &mine, "select count(*) from partitions where watermark <> date_trunc('hour', watermark)"),
        0
    );
}

#[test]
fn no_call_of_a_function_takes_all_there_is() {
    let home = Home::new(&[]);
    let server = home.serve();
    for call in [
        "repeat('a', 1000000000)",
        "levenshtein('a', 'b')",
        "range(0, 1000000000)",
        "lpad('a', 1000000000, 'b')",
        "array_repeat(1, 1000000000)",
    ] {
        let reply = server.sql_as(&format!("select length(cast({call} as varchar))"), "application/json");
        assert!(reply.status == 422 || reply.status == 400, "{call}: {} {}", reply.status, reply.text());
    }
    assert_eq!(server.sql("select lpad('7', 3, '0') as n, rpad('7', 3) as m"), [json!({"n": "007", "m": "7  "})]);
    assert_eq!(server.number("select count(*) from generate_series(1, 3)"), 3);
}

#[test]
fn a_viewer_acts_on_nothing() {
    let home = Home::new(&[]);
    let (viewer, viewer_entry) = token(&home, &["viewer", "--data"]);
    let (some, some_entry) = token(&home, &["some", "--accounts", "bot1", "--data"]);
    let (ops, ops_entry) = token(&home, &["ops", "--operator"]);
    let few = some_entry.replace(" }", ", max_rows = 2, timeout = \"5s\" }");
    home.configure(&[&format!("console.tokens = [{viewer_entry}, {few}, {ops_entry}]")]);
    let server = home.serve();
    let status = |token: &str, method: &str, path: &str| {
        let url = format!("{}{path}", server.console);
        request(http().request(method.parse().unwrap(), url).bearer_auth(token).body("")).status
    };
    let acts = [
        ("POST", "/api/v1/import"),
        ("GET", "/api/v1/export"),
        ("POST", "/api/v1/rebuilds"),
        ("GET", "/api/v1/rebuilds"),
        ("DELETE", "/api/v1/rebuilds/one"),
        ("POST", "/api/v1/verify"),
        ("POST", "/api/v1/redeliver"),
        ("GET", "/api/v1/accounts"),
        ("DELETE", "/api/v1/accounts/bot1"),
        ("POST", "/api/v1/accounts/bot1/rotate"),
    ];
    for (method, path) in acts {
        for token in [&viewer, &some] {
            assert_eq!(status(token, method, path), 403, "{method} {path}");
        }
        assert_ne!(status(&ops, method, path), 403, "{method} {path}");
    }
    let of_both = |path: &str| [status(&viewer, "GET", path), status(&some, "GET", path)];
    assert_eq!(of_both("/metrics"), [200, 403]);
    assert_eq!(of_both("/api/v1/explain?q=1"), [status(&ops, "GET", "/api/v1/explain?q=1"), 403]);
    assert_eq!(of_both("/nowhere"), [404, 404]);

    assert_eq!(ask(&server, &some, "select * from generate_series(1, 2)").status, 200);
    let refused = ask(&server, &some, "select * from generate_series(1, 3)");
    assert!(refused.status == 400 || refused.text().contains("more than 2 rows"), "{}", refused.text());
    assert_eq!(ask(&server, &viewer, "select * from generate_series(1, 3)").status, 200);

    let wrong = ops_entry.replace(" }", ", accounts = [\"bot1\"] }");
    home.configure(&[&format!("console.tokens = [{wrong}]")]);
    let error = home.fails_with(&["config"], b"");
    assert!(error.contains("`ops`") && error.contains("accounts"), "{error}");
}

fn get(server: &Server, token: &str, path: &str) -> (u16, Value) {
    let reply = request(http().get(format!("{}{path}", server.console)).bearer_auth(token));
    (reply.status, serde_json::from_slice(&reply.body).unwrap_or_default())
}

#[test]
fn sessions_are_listed_page_by_page_and_told_one_by_one() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &lines());
    let (mine, mine_entry) = token(&home, &["mine", "--accounts", "bot1"]);
    let (all, all_entry) = token(&home, &["all"]);
    home.configure(&[&format!("console.tokens = [{mine_entry}, {all_entry}]")]);
    let server = home.serve();
    let pages = |token: &str, filter: &str| {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let (status, page) = get(&server, token, &format!("/api/v1/sessions?limit=7{filter}{cursor}"));
            assert_eq!(status, 200, "{page}");
            let sessions = page["sessions"].as_array().unwrap();
            seen.extend(sessions.iter().map(|row| (row["opened_at"].clone(), row["session_id"].clone())));
            let Some(next) = page["next"].as_str() else { break };
            assert_eq!(sessions.len(), 7);
            cursor = format!("&cursor={next}");
        }
        seen.into_iter()
            .map(|(at, id)| (at.as_str().unwrap().to_owned(), id.as_str().unwrap().to_owned()))
            .collect::<Vec<_>>()
    };
    let seen = pages(&all, "");
    assert_eq!(seen.len(), 2 * EACH as usize);
    assert!(seen.is_sorted_by(|a, b| a > b), "newest first, each once");
    assert_eq!(pages(&mine, "").len(), EACH as usize);
    assert_eq!(pages(&all, "&account=bot2&kind=service&state=open").len(), EACH as usize);
    assert_eq!(pages(&mine, "&account=bot2").len(), 0);
    assert_eq!(pages(&all, "&user_id=mine-3%3D%3D").len(), 1);
    assert_eq!(pages(&all, "&from=2026-03-01T00:00:10Z&to=2026-03-01T00:00:12Z").len(), 4);

    let (status, page) = get(&server, &all, "/api/v1/sessions?account=bot2&limit=1");
    assert_eq!(status, 200);
    let session = &page["sessions"][0];
    let path = format!("/api/v1/sessions/{}", session["session_id"].as_str().unwrap());
    let (status, told) = get(&server, &all, &path);
    assert_eq!((status, &told["session"]), (200, session));
    let what: Vec<&str> =
        told["timeline"].as_array().unwrap().iter().map(|fact| fact["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["inbound", "session_opened", "outbound", "delivered"]);
    assert!(told["timeline"][2]["message_token"].is_string(), "{told}");
    assert_eq!(get(&server, &mine, &path).0, 404, "of another account");
    for wrong in ["/api/v1/sessions/none", "/api/v1/sessions/00"] {
        assert_eq!(get(&server, &all, wrong).0, 404);
    }
    for wrong in ["limit=0", "limit=x", "kind=free", "cursor=abc", "from=soon", "nothing=1"] {
        assert_eq!(get(&server, &all, &format!("/api/v1/sessions?{wrong}")).0, 400, "{wrong}");
    }
}

#[test]
fn how_things_stand_with_a_user_is_told_from_the_state() {
    let home = Home::new(&[r#"fold.policy = "counterbat""#]);
    let (mine, mine_entry) = token(&home, &["mine", "--accounts", "bot1"]);
    let (all, all_entry) = token(&home, &["all"]);
    home.configure(&[&format!("console.tokens = [{mine_entry}, {all_entry}]")]);
    let server = home.serve();
    until("readiness", || server.get("/readyz").status, |status| *status == 200);
    let user = "a/b+c==";
    let path = "/api/v1/users/bot1/a%2Fb%2Bc%3D%3D";
    let (status, told) = get(&server, &all, path);
    assert_eq!(
        (status, &told["sessions"], &told["quote"]["expected"]),
        (200, &json!([]), &json!("out_of_session")),
        "{told}"
    );
    assert_eq!(server.callback(&message_body(user, 77)).status, 200);
    let (_, told) = until("the session", || get(&server, &all, path), |(_, told)| told["sessions"] != json!([]));
    assert_eq!((&told["quote"]["expected"], &told["quote"]["is_free"]), (&json!("in_service"), &json!(true)), "{told}");
    assert!((1438..=1440).contains(&told["sessions"][0]["minutes_left"].as_i64().unwrap()), "{told}");
    let (status, quote) = get(&server, &all, "/api/v1/quote?account=bot1&user_id=a%2Fb%2Bc%3D%3D");
    assert_eq!((status, &quote["quote"]["expected"]), (200, &json!("in_service")));
    assert_eq!(get(&server, &mine, path).0, 200);
    assert_eq!(get(&server, &mine, "/api/v1/users/bot2/x").0, 403);
    assert_eq!(get(&server, &all, "/api/v1/users/No%20Name/x").0, 400);
    assert_eq!(get(&server, &all, "/api/v1/quote?account=bot1").0, 400);
}
