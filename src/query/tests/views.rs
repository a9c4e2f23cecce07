//! Views over made-up rows, with money in them.

use super::{Fixture, LIMITS, csv};
use crate::event::time::{parse_date_ms, parse_rfc3339_us};
use crate::lake::TableName::{Events, Messages, Sessions};
use crate::query::Engine;
use crate::session::{Policy, PolicyChain};
use std::sync::Arc;

/// Two free messages a month, charged when sent, and a fee.
const TINY: &str = r#"
name = "tiny"
free_out_of_session_per_month = 2
charged_on = "sent"
monthly_fee_eur = "12.5"

[service]
length = "24h"
anchor = "first"
"#;

const MESSAGE: [&str; 16] = [
    "account",
    "user_id",
    "message_token",
    "sent_at",
    "method",
    "expected",
    "billing_status",
    "billing_inferred",
    "verdict",
    "delivered_at",
    "country",
    "price",
    "cost",
    "currency",
    "state",
    "policy",
];

/// A settled message that was not delivered: user, token, time, expected, billing_status, verdict, cost, currency.
fn message([user, token, at, expected, status, verdict, cost, currency]: [&'static str; 8]) -> [&'static str; 16] {
    let price = if cost.is_empty() { "" } else { "0.019600" };
    let (method, state, policy) = ("send_message", "settled", "tiny");
    [
        "shop", user, token, at, method, expected, status, "false", verdict, "", "UA", price, cost, currency, state,
        policy,
    ]
}

const SESSION: [&str; 10] = [
    "session_id",
    "account",
    "user_id",
    "kind",
    "state",
    "opened_at",
    "expires_at",
    "closed_at",
    "opened_by_token",
    "policy",
];

/// A watermark.
fn ms(text: &str) -> Option<i64> {
    Some(parse_rfc3339_us(text).unwrap() / 1000)
}

fn engine(messages: &[[&'static str; 8]], sessions: &[[&str; 10]], watermarks: &[Option<i64>]) -> Engine {
    engine_under(&[], messages, sessions, watermarks)
}

/// With policies that the account goes over to at some dates; it begins with the tiny one.
fn engine_under(
    later: &[(&str, &str)],
    messages: &[[&'static str; 8]],
    sessions: &[[&str; 10]],
    watermarks: &[Option<i64>],
) -> Engine {
    let mut fixture = Fixture::empty();
    if !later.is_empty() {
        let step = |(date, name): &(&str, &str)| (parse_date_ms(date).unwrap(), Policy::named(name).unwrap());
        let tiny = Arc::new(Policy::parse(TINY).unwrap());
        fixture.policies.learn("shop", PolicyChain::new(tiny, later.iter().map(step).collect()));
    }
    fixture.policy = Arc::new(Policy::parse(TINY).unwrap());
    fixture.watermarks_ms = watermarks.to_vec();
    let messages: Vec<[&str; 16]> = messages.iter().map(|row| message(*row)).collect();
    let messages: Vec<&[&str]> = messages.iter().map(<[&str; 16]>::as_slice).collect();
    let sessions: Vec<&[&str]> = sessions.iter().map(<[&str; 10]>::as_slice).collect();
    fixture.lay(Messages, &MESSAGE, &messages);
    fixture.lay(Sessions, &SESSION, &sessions);
    // Told twice, and of one receiver of a broadcast.
    let refused = ["call", "send_message", "shop", "x/1", "2026-03-05T00:00:00Z", "24", "{}", "2026-03-05"];
    let data = r#"{"request":{"text":"\"receiver_status\":24,"},"receiver_status":23}"#;
    let partly = ["call", "broadcast_message", "shop", "x/2", "2026-03-06T00:00:00Z", "0", data, "2026-03-06"];
    let names = ["origin", "type", "account", "event_id", "received_at", "status", "data", "date"];
    fixture.lay(Events, &names, &[&refused, &refused, &partly]);
    fixture.engine(LIMITS)
}

/// By the day 1 of the year 1 too: one strange row must not break a view.
const HISTORY: [[&str; 8]; 8] = [
    ["ann", "5", "2026-03-01T10:00:00Z", "out_of_session", "3", "agreed", "0", "EUR"],
    ["bob", "-1", "2026-03-01T10:00:00Z", "out_of_session", "5", "agreed", "0.1", "EUR"],
    ["ann", "7", "2026-03-02T10:00:00Z", "out_of_session", "5", "agreed", "0.2", "EUR"],
    ["ann", "8", "2026-03-02T23:30:00Z", "in_service", "5", "overcharged", "0.000001", "EUR"],
    ["cid", "9", "2026-03-03T10:00:00Z", "out_of_session", "5", "agreed", "", ""],
    ["cid", "10", "2026-03-03T10:00:01Z", "out_of_session", "5", "agreed", "0.30", "USD"],
    ["ann", "11", "2026-04-01T00:00:00Z", "out_of_session", "4", "agreed", "0", "EUR"],
    ["eve", "12", "0001-01-01T00:00:00Z", "in_service", "1", "agreed", "0", "EUR"],
];

#[tokio::test]
async fn what_is_beyond_the_quota_is_predicted_to_be_charged() {
    let engine = engine(&HISTORY, &[], &[]);
    assert_eq!(
        csv(
            &engine,
            "SELECT message_token, nth, free_quota, charged, cost, reported_charged, reported_cost FROM predictions \
             WHERE account = 'shop' AND month = '2026-03-01' ORDER BY sent_at, nth"
        )
        .await,
        "5,1,2,false,0.000000,false,0.000000\
         |18446744073709551615,2,2,false,0.000000,true,0.100000\
         |7,3,2,true,0.019600,true,0.200000\
         |8,,2,false,0.000000,true,0.000001\
         |9,4,2,true,,true,\
         |10,5,2,true,0.019600,true,0.300000"
    );
    assert_eq!(
        csv(
            &engine,
            "SELECT month, policy, free_quota, out_of_session, used, free_left, reported_free, reported_charged, \
             charged_in_quota, refused_free, refused_balance, first_refused_at, as_of, round(per_day * 31, 4), exhausted_at, exhausts_at \
             FROM quota_monthly WHERE month > '2026-01-01' ORDER BY month"
        )
        .await,
        "2026-03-01,tiny,2,5,2,0,1,5,1,1,1,2026-03-05T00:00:00.000Z,2026-04-01T00:00:00.000Z,5.0,2026-03-01T10:00:00.000Z,\
         |2026-04-01,tiny,2,1,1,1,1,0,0,0,0,,2026-05-01T00:00:00.000Z,1.0333,,"
    );
}

#[tokio::test]
async fn money_is_summed_as_decimals() {
    let engine = engine(&HISTORY, &[], &[]);
    assert_eq!(
        csv(
            &engine,
            "SELECT day, currency, charged, disputed, unpriced, cost, disputed_cost FROM spend_daily ORDER BY day, currency"
        )
        .await,
        "2026-03-01,EUR,1,0,0,0.100000,\
         |2026-03-02,EUR,2,1,0,0.200001,0.000001\
         |2026-03-03,USD,1,0,0,0.300000,\
         |2026-03-03,,1,0,1,,"
    );
    assert_eq!(
        csv(&engine, "SELECT day, sum(cost) FROM spend_daily('Europe/Kyiv') GROUP BY day ORDER BY day").await,
        "2026-03-01,0.100000|2026-03-02,0.200000|2026-03-03,0.300001"
    );
    assert_eq!(
        csv(&engine, "SELECT day, at_stake, unpriced, accuracy FROM billing_accuracy ORDER BY day").await,
        "0001-01-01,,0,1.0|2026-03-01,,0,1.0|2026-03-02,0.000001,0,0.5|2026-03-03,,0,1.0|2026-04-01,,0,1.0"
    );
    assert_eq!(
        csv(&engine, "SELECT message_token, at_stake, reason FROM billing_audit").await,
        "8,0.000001,unexplained"
    );
}

#[tokio::test]
async fn a_statement_is_there_once_its_month_cannot_change() {
    let statement = "SELECT month, currency, messages, charged, unpriced, disputed, cost, fee, settled_at \
                     FROM statement_monthly WHERE month > '0003-01-01' ORDER BY month, currency";
    // March ends, and what may still come for it comes within three days; April's last session settles later than that.
    let session = |state| {
        let (opened, ends) = ("2026-04-29T12:00:00Z", "2026-04-30T12:00:00Z");
        ["ab", "shop", "ann", "service", state, opened, ends, ends, "1", "tiny"]
    };
    let march = "2026-03-01,EUR,5,4,1,0.000001,0.300001,12.500000,2026-04-04T00:00:00.000Z\
                 |2026-03-01,USD,1,1,0,0.000000,0.300000,0.000000,2026-04-04T00:00:00.000Z";
    let april = "2026-04-01,EUR,1,0,0,0.000000,0.000000,12.500000,2026-05-17T12:00:00.000Z";
    let (early, due) = (ms("2026-04-03T23:59:59.999Z"), ms("2026-04-04T00:00:00Z"));
    let last = ms("2026-05-17T12:00:00Z");
    for (watermarks, state, wanted) in [
        (vec![due, early], "closed", String::new()),
        (vec![due, None], "closed", String::new()),
        (vec![due, due], "closed", march.to_owned()),
        (vec![last, due], "closed", march.to_owned()),
        (vec![last, last], "closed", march.to_owned()),
        (vec![last, last], "settled", format!("{march}|{april}")),
    ] {
        let engine = engine(&HISTORY, &[session(state)], &watermarks);
        assert_eq!(csv(&engine, statement).await, wanted, "{watermarks:?}, {state}");
    }
}

#[tokio::test]
async fn a_month_without_a_message_has_its_fee_for_a_year() {
    let message = |at| [["ann", "5", at, "in_service", "5", "overcharged", "0.2", "USD"]];
    let (opened, ends) = ("2026-03-03T12:00:00Z", "2026-03-04T12:00:00Z");
    let session = ["ab", "shop", "ann", "service", "settled", opened, ends, ends, "1", "viber-2024"];
    let statement =
        "SELECT month, currency, messages, charged, cost, fee FROM statement_monthly ORDER BY month, currency";
    let later = [("2026-03-01", "viber-2024")];
    let told = async |at, until| csv(&engine_under(&later, &message(at), &[session], &[ms(until)]), statement).await;
    let january = "2026-01-01,EUR,0,0,0.000000,12.500000|2026-01-01,USD,1,1,0.200000,0.000000";
    let fees = "2026-02-01,EUR,0,0,0.000000,12.500000|2026-03-01,EUR,0,0,0.000000,100.000000|2026-04-01,EUR,0,0,0.000000,100.000000";
    assert_eq!(told("2026-01-05T10:00:00Z", "2026-05-04T00:00:00Z").await, format!("{january}|{fees}"));
    let later = told("2026-01-05T10:00:00Z", "2029-01-01T00:00:00Z").await;
    assert!(later.starts_with(&format!("{january}|{fees}")), "{later}");
    assert!(later.ends_with("|2027-03-01,EUR,0,0,0.000000,100.000000"), "{later}");
    assert_eq!(later.split('|').count(), 16, "{later}");
}

#[tokio::test]
async fn the_fee_of_a_month_without_a_message_is_that_of_the_policy_in_force() {
    let until = ms("2026-06-04T00:00:00Z");
    let message = [["ann", "5", "2026-01-05T10:00:00Z", "in_service", "1", "agreed", "0", "EUR"]];
    let later = [("2026-03-31", "viber-2024"), ("2026-05-01", "vbm")];
    let months = "SELECT month, policy, fee FROM settled_months ORDER BY month";
    assert_eq!(
        csv(&engine_under(&later, &message, &[], &[until]), months).await,
        "2026-01-01,tiny,12.500000|2026-02-01,tiny,12.500000|2026-03-01,viber-2024,100.000000\
         |2026-04-01,viber-2024,100.000000|2026-05-01,vbm,0.000000"
    );
    // An account without a policy of its own, of which there are others.
    let message = [["ann", "5", "2026-04-05T10:00:00Z", "in_service", "1", "agreed", "0", "EUR"]];
    let told = engine_under(&later, &message, &[], &[until]);
    assert_eq!(
        csv(&told, "SELECT account, valid_from, policy FROM account_policies ORDER BY account NULLS LAST, policy")
            .await,
        "shop,,tiny|shop,2026-05-01T00:00:00.000Z,vbm|shop,2026-03-31T00:00:00.000Z,viber-2024|,,tiny"
    );
    assert_eq!(
        csv(&engine(&message, &[], &[until]), months).await,
        "2026-04-01,tiny,12.500000|2026-05-01,tiny,12.500000"
    );
}

#[tokio::test]
async fn a_statement_counts_each_message_in_one_currency() {
    let rows = [
        ["ann", "1", "2026-03-01T10:00:00Z", "out_of_session", "5", "agreed", "0.1", "EUR"],
        ["ann", "2", "2026-03-01T11:00:00Z", "out_of_session", "5", "agreed", "0.2", "USD"],
        ["ann", "3", "2026-03-01T12:00:00Z", "out_of_session", "5", "agreed", "0.4", "USD"],
        ["ann", "4", "2026-03-01T13:00:00Z", "out_of_session", "5", "agreed", "", ""],
        ["ann", "5", "2026-03-01T14:00:00Z", "out_of_session", "3", "agreed", "0", "EUR"],
        ["ann", "6", "2026-03-01T15:00:00Z", "in_service", "1", "agreed", "0", "USD"],
    ];
    let engine = engine(&rows, &[], &[Some(1_780_000_000_000)]);
    let statement = "SELECT currency, messages, charged, unpriced, cost, fee FROM statement_monthly WHERE month = '2026-03-01' ORDER BY currency";
    assert_eq!(csv(&engine, statement).await, "EUR,1,1,0,0.100000,12.500000|USD,5,3,1,0.600000,0.000000");
}

#[tokio::test]
async fn what_is_asked_from_a_day_on_looks_back_as_far_as_windows_reach() {
    let mut fixture = Fixture::empty();
    // As one was that nothing bounded.
    let (opened, expires) = ("2026-01-01T00:00:00Z", "2026-03-20T00:00:00Z");
    let names = ["session_id", "account", "user_id", "kind", "opened_at", "expires_at"];
    fixture.lay(Sessions, &names, &[&["ab", "shop", "ann", "service", opened, expires]]);
    let names = ["account", "user_id", "message_token", "session_id", "sent_at", "expected", "verdict"];
    let charged = ["shop", "ann", "7", "ab", "2026-03-05T00:00:00Z", "in_service", "overcharged"];
    let old = ["shop", "bob", "8", "", "2026-01-25T00:00:00Z", "out_of_session", "agreed"];
    fixture.lay(Messages, &names, &[&charged, &old]);
    let names =
        ["origin", "type", "account", "user_id", "message_token", "event_time", "received_at", "disposition", "date"];
    let (at, told) = ("2026-02-07T00:00:00Z", "2026-03-05T10:00:00Z");
    fixture.lay(Events, &names, &[&["callback", "delivered", "shop", "bob", "8", at, told, "fact", "2026-03-05"]]);
    let engine = fixture.engine(LIMITS);
    for of in ["", "('2026-03-01')"] {
        let reason = format!("SELECT message_token, split_part(reason, ':', 1) FROM billing_audit{of}");
        assert_eq!(csv(&engine, &reason).await, "7,policy", "{of}");
        let unsent = format!("SELECT hour, receipts, unsent FROM completeness{of}");
        assert_eq!(csv(&engine, &unsent).await, "2026-03-05T10:00:00.000Z,1,0", "{of}");
    }
    assert_eq!(csv(&engine, "SELECT now() + delivery_window() = now() + INTERVAL '14 days'").await, "true");
}

#[tokio::test]
async fn numbers_with_a_point_are_decimals() {
    let engine = engine(&HISTORY, &[], &[]);
    for (sql, wanted) in [
        ("sum(cost) * 1.2", "0.7200012"),
        ("sum(cost) * 1.2 = 0.7200012", "true"),
        ("0.1 + 0.2 = 0.3", "true"),
        ("arrow_typeof(sum(cost) * 1.19)", "\"Decimal128(32, 8)\""),
        ("arrow_typeof(sum(cost) * 1.5e0)", "Float64"),
        ("1e3", "1000.0"),
        ("-2.5E-1", "-0.25"),
    ] {
        assert_eq!(csv(&engine, &format!("SELECT {sql} FROM messages LIMIT 1")).await, wanted, "{sql}");
    }
}

#[tokio::test]
async fn what_would_have_been_free_nearby_is_avoidable() {
    let session = |id, opened, closed| [id, "shop", "ann", "service", "settled", opened, closed, closed, "1", "tiny"];
    let sessions = [
        session("aa", "2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z"),
        session("bb", "2026-03-02T10:20:00Z", "2026-03-03T10:20:00Z"),
    ];
    let engine = engine(&HISTORY, &sessions, &[]);
    let columns = "SELECT message_token, session_id, side, distance_ms, cost, currency FROM";
    assert_eq!(csv(&engine, &format!("{columns} avoidable_cost")).await, "7,bb,before,1200000,0.200000,EUR");
    assert_eq!(csv(&engine, &format!("{columns} avoidable_cost(20)")).await, "7,bb,before,1200000,0.200000,EUR");
    assert_eq!(csv(&engine, &format!("{columns} avoidable_cost(19)")).await, "");
}

#[tokio::test]
async fn policies_are_told_by_their_terms() {
    let engine = engine(&[], &[], &[Some(1_772_323_200_000), None]);
    assert_eq!(
        csv(&engine, "SELECT * FROM policies ORDER BY name").await,
        "counterbat,86400,first,,,86400,0,delivered,0.000000\
         |gupshup,86400,last,604800,,,0,sent,0.000000\
         |tiny,86400,first,,,,2,sent,12.500000\
         |vbm,86400,first,,60,,0,sent,0.000000\
         |viber-2022,86400,first,,,,10000,sent,0.000000\
         |viber-2024,86400,first,,,,0,delivered,100.000000"
    );
    assert_eq!(
        csv(&engine, "SELECT * FROM partitions").await,
        "0,2026-03-01T00:00:00.000Z,259200,1209600|1,,259200,1209600"
    );
}
