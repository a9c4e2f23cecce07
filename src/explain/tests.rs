//! What no golden history has: times that are not believed, too late or at the edges, copies that count, and prices.

use super::*;
use crate::event::structured;
use crate::event::time::format_ms;
use crate::session::{Policy, PolicyChain};
use serde_json::{Value, json};

const MARCH: i64 = 1_772_323_200_000;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// Records of one user, each with its disposition.
#[derive(Default)]
struct History(Vec<Archived>);

impl History {
    fn add(&mut self, kind: &str, time_ms: i64, data: Value, disposition: Disposition) -> &mut Self {
        let line = json!({"specversion": "1.0", "id": format!("e{}", self.0.len()), "source": "/accounts/bot",
            "type": format!("com.viber.{kind}"), "subject": "ann", "time": format_ms(time_ms), "data": data});
        let event = structured::parse_line(line.to_string().as_bytes()).unwrap();
        let record = Record { offset: self.0.len() as u64, appended_at_us: (MARCH + 90 * DAY) * 1000, event };
        self.0.push(Archived { partition: 3, record, disposition, folded_late: false });
        self
    }

    fn callback(&mut self, event: &str, t_ms: i64, token: u64) -> &mut Self {
        self.late_callback(event, t_ms, 0, token, Disposition::Fact)
    }

    fn late_callback(
        &mut self,
        event: &str,
        t_ms: i64,
        late_ms: i64,
        token: u64,
        disposition: Disposition,
    ) -> &mut Self {
        let data = json!({"event": event, "timestamp": t_ms, "message_token": token});
        self.add(&format!("callback.{event}"), t_ms + late_ms, data, disposition)
    }

    fn send(&mut self, t_ms: i64, token: u64, billing_status: Option<i32>) -> &mut Self {
        let response = json!({"status": 0, "message_token": token, "billing_status": billing_status});
        self.add("api.send_message", t_ms, json!({"request": {}, "response": response}), Disposition::Fact)
    }

    fn tell(&self, policy: &str) -> Story {
        tell(Some("bot"), Some("ann"), &self.0, &terms(policy), &Costs::default())
    }

    /// The words of each record, without when it was received.
    fn words(&self, policy: &str) -> Vec<String> {
        self.tell(policy).steps.iter().map(|step| step.words[1..].join(" | ")).collect()
    }
}

fn terms(policy: &str) -> Terms {
    Terms {
        policies: PolicyChain::always(Policy::named(policy).unwrap()),
        prices: Default::default(),
        lateness_ms: Some(3 * DAY),
        settle_lateness_ms: 3 * DAY,
        delivery_window_ms: 14 * DAY,
    }
}

fn id(kind: Kind, token: u64) -> String {
    hex::encode(crate::session::fold::session_id("bot", "ann", kind, token))
}

#[test]
fn spans_are_exact() {
    for (ms, text) in [
        (0, "0 s"),
        (1, "0.001 s"),
        (300, "0.3 s"),
        (60_000, "1 min"),
        (DAY - 1, "23 h 59 min 59.999 s"),
        (DAY, "1 d"),
        (3 * DAY + 2 * HOUR + 5_000, "3 d 2 h 5 s"),
    ] {
        assert_eq!(words::span(ms), text);
    }
}

#[test]
fn receipts_count_until_the_window_is_over() {
    let mut history = History::default();
    history.send(MARCH, 1, Some(3)).callback("seen", MARCH + 14 * DAY - 1, 1).callback(
        "delivered",
        MARCH + 14 * DAY,
        1,
    );
    history.callback("delivered", MARCH, 99);
    assert_eq!(
        history.words("counterbat")[1..],
        [
            "fact: seen 13 d 23 h 59 min 59.999 s after its message was sent",
            "fact: delivered 14 d after its message was sent: not counted, receipts count for less than 14 d",
            "fact: delivered, and no message with this token is known: it waits for one until that would be too late, then \
             it counts as unmatched",
        ]
    );
}

#[test]
fn what_came_too_late_changes_nothing_until_a_rebuild() {
    let mut history = History::default();
    history.send(MARCH + HOUR, 1, Some(5));
    history.late_callback("message", MARCH, 4 * DAY, 2, Disposition::TooLate);
    let late = "came too late: it tells of 4 d before, and its partition's time was further on than allowed_lateness (3 d) \
                allows; changes no row, `counterbat rebuild` folds it in";
    let charged = format!(
        "fact: out of session, and charged: opens paid session {}, [2026-03-01T01:00:00.000Z, 2026-03-02T01:00:00.000Z) \
         | expected out_of_session, Viber reported 5: agreed; the tables have no row of it",
        id(Kind::Paid, 1)
    );
    assert_eq!(history.words("counterbat"), [charged, late.to_owned()]);
    assert_eq!(
        history.tell("counterbat").steps[1].words[0],
        "received 2026-03-05T00:00:00.000Z, 4 d after its own time"
    );

    history.0[1].folded_late = true;
    let session = format!("{}, [2026-03-01T00:00:00.000Z, 2026-03-02T00:00:00.000Z)", id(Kind::Service, 2));
    assert_eq!(
        history.words("counterbat"),
        [
            format!(
                "fact: in service session {session}, message 1 of it | expected in_service, Viber reported 5: overcharged; \
                 the tables have no row of it"
            ),
            format!(
                "came too late, and was folded in by a rebuild: opens service session {session}: no service session was open \
                 | by its arrival message 1 is in_service, which was out_of_session"
            ),
        ]
    );
}

#[test]
fn a_clock_ahead_of_the_log_is_not_believed() {
    let mut history = History::default();
    let appended_ms = MARCH + 90 * DAY;
    history.send(appended_ms + HOUR, 1, Some(0));
    let step = &history.tell("counterbat").steps[0];
    assert_eq!(step.t_ms, appended_ms);
    assert_eq!(
        step.words[0],
        "recorded as of 2026-05-30T01:00:00.000Z, 1 h ahead of the log's clock: not believed, it counts as received when it \
         was appended, 2026-05-30T00:00:00.000Z"
    );
}

#[test]
fn of_copies_the_smallest_counts() {
    let mut history = History::default();
    history.callback("message", MARCH + HOUR, 1);
    history.late_callback("message", MARCH, 2 * HOUR, 1, Disposition::Duplicate);
    let session = format!("{}, [2026-03-01T00:00:00.000Z, 2026-03-02T00:00:00.000Z)", id(Kind::Service, 1));
    assert_eq!(
        history.words("counterbat"),
        [
            format!("fact: opens service session {session}: no service session was open"),
            format!(
                "duplicate of the one received 2026-03-01T01:00:00.000Z (partition 3, offset 0); of all copies this one counts, \
                 being the smallest | opens service session {session}: no service session was open"
            ),
        ]
    );
}

#[test]
fn a_sliding_window_ends_after_its_longest_time() {
    let mut history = History::default();
    for day in 0..8 {
        history.callback("message", MARCH + day * (DAY - 1), day as u64 + 1);
    }
    let first = id(Kind::Service, 1);
    let words = history.words("gupshup");
    assert_eq!(
        words[1],
        format!("fact: joins service session {first}, whose end it moves to 2026-03-02T23:59:59.999Z")
    );
    assert_eq!(
        words[6],
        format!("fact: joins service session {first}, whose end it moves to 2026-03-07T23:59:59.994Z")
    );
    // Seven days after its opening, whatever comes.
    assert_eq!(
        words[7],
        format!("fact: joins service session {first}, whose end it moves to 2026-03-08T00:00:00.000Z")
    );
    history.callback("message", MARCH + 7 * DAY, 9);
    assert!(history.words("gupshup")[8].starts_with(&format!("fact: opens service session {}", id(Kind::Service, 9))));
}

#[test]
fn a_message_at_the_moment_of_the_end_belongs_to_what_it_comes_before() {
    let mut history = History::default();
    history.callback("message", MARCH, 1).callback("unsubscribed", MARCH + HOUR, 3).callback(
        "message",
        MARCH + HOUR,
        2,
    );
    history.callback("message", MARCH + HOUR + 1, 4);
    let words = history.words("counterbat");
    assert_eq!(words[1], format!("fact: closes service session {}", id(Kind::Service, 1)));
    assert!(words[2].starts_with(&format!("fact: joins service session {}", id(Kind::Service, 1))), "{}", words[2]);
    assert!(words[3].starts_with(&format!("fact: opens service session {}", id(Kind::Service, 4))), "{}", words[3]);
}

#[test]
fn what_is_no_fact_says_why() {
    let mut history = History::default();
    let welcome = json!({"request": {"type": "text"}, "response": null});
    history.add("api.welcome_message", MARCH, welcome, Disposition::Info);
    history.callback("message", MARCH, 1).0[1].disposition = Disposition::Malformed;
    history.add("callback.client_status", MARCH, json!({"event": "client_status"}), Disposition::Info);
    assert_eq!(
        history.words("counterbat"),
        [
            "info: a welcome message is free, and lies in no session",
            "malformed: it lies in a partition where its key does not belong: its producer must use Kafka's default \
             partitioner (murmur2)",
            "info: a callback of this kind opens nothing",
        ]
    );
}

#[test]
fn costs_are_those_of_the_tables() {
    let mut history = History::default();
    history.send(MARCH, 1, Some(5)).send(MARCH + 1, 2, Some(3));
    let costs = Costs {
        messages: BTreeMap::from([(1, cost("0.012300", "EUR")), (2, cost("0.000000", "EUR"))]),
        sessions: BTreeMap::from([(id(Kind::Paid, 1), cost("0.012300", "EUR"))]),
        open: BTreeSet::new(),
    };
    let story = tell(Some("bot"), Some("ann"), &history.0, &terms("counterbat"), &costs);
    let last = |step: usize| story.steps[step].words.last().cloned().unwrap();
    assert_eq!(last(0), "expected out_of_session, Viber reported 5: agreed; costs 0.0123 EUR");
    assert_eq!(last(1), "expected in_paid, Viber reported 3: agreed; costs nothing");
    assert_eq!(
        story.sessions[0].words[2],
        "0 inbound, 2 outbound, of these 1 charged, 0 overcharged; costs 0.0123 EUR"
    );
}

fn cost(amount: &str, currency: &str) -> Cost {
    Cost { amount: Some(amount.to_owned()), currency: Some(currency.to_owned()), because: None }
}

#[test]
fn why_there_is_no_cost_is_told() {
    let mut history = History::default();
    history.send(MARCH, 1, Some(5)).send(MARCH + 1, 2, Some(5));
    let none = Cost::default;
    let session = |first: Cost, second: Cost| {
        let costs = Costs {
            messages: BTreeMap::from([(1, first), (2, second)]),
            sessions: BTreeMap::from([(id(Kind::Paid, 1), none())]),
            open: BTreeSet::new(),
        };
        let story = tell(Some("bot"), Some("ann"), &history.0, &terms("counterbat"), &costs);
        let words = story.sessions[0].words[2].split_once("; ").unwrap().1.to_owned();
        (words, serde_json::to_value(&story.sessions[0].cost).unwrap()["because"].clone())
    };
    let (much, eur, usd) = (cost("999999999999.000000", "EUR"), cost("1.000000", "EUR"), cost("0.100000", "USD"));
    let told = |words: &str, because: Value| (words.to_owned(), because);
    assert_eq!(session(eur.clone(), none()), told("no price known", json!("no_price")));
    let both = json!({"currencies": ["EUR", "USD"]});
    assert_eq!(session(eur.clone(), usd), told("charged in EUR and USD, which have no sum", both));
    let (words, because) = session(much, eur);
    assert!(words.starts_with("the sum of what its messages cost has more than 12 digits"), "{words}");
    assert_eq!(because, "too_large");
    assert_eq!(history.tell("counterbat").sessions[0].cost.because, Some(NoCost::NoRow));
}

#[test]
fn a_session_that_is_open_has_no_reason_to_have_closed() {
    let mut history = History::default();
    history.callback("message", MARCH, 1);
    let told = |open: &[String]| {
        let costs = Costs { open: open.iter().cloned().collect(), ..Costs::default() };
        let story = tell(Some("bot"), Some("ann"), &history.0, &terms("counterbat"), &costs);
        (
            serde_json::to_value(&story).unwrap()["sessions"][0]["close_reason"].clone(),
            story.sessions[0].words[1].clone(),
        )
    };
    let opened = "opened by message 1, under policy counterbat; ";
    assert_eq!(told(&[id(Kind::Service, 1)]), (Value::Null, format!("{opened}it is open")));
    assert_eq!(told(&[]), (json!("expired"), format!("{opened}ended when its time was over")));
}

#[test]
fn each_copy_tells_what_it_reported() {
    let mut history = History::default();
    history.send(MARCH + 10, 1, Some(5)).send(MARCH, 1, Some(1)).send(MARCH + 20, 1, None);
    history.0[1].disposition = Disposition::Duplicate;
    history.0[2].disposition = Disposition::Duplicate;
    let words = history.words("counterbat");
    assert!(words[0].ends_with("| in this copy Viber reported 5, in the one that counts 1"), "{}", words[0]);
    assert!(words[0].contains("Viber reported 1: unseen_session"), "{}", words[0]);
    assert!(
        words[1].contains("Viber reported 1: unseen_session") && !words[1].contains("in this copy"),
        "{}",
        words[1]
    );
    assert!(
        words[2].ends_with("changes nothing; in this copy Viber reported nothing, in the one that counts 1"),
        "{}",
        words[2]
    );
}

#[test]
fn a_billing_status_that_cannot_be_read_is_told() {
    for (status, is_readable) in [
        (json!(5.5), false),
        (json!("five"), false),
        (json!(5_000_000_000_i64), false),
        (json!("5"), true),
        (Value::Null, true),
    ] {
        let mut history = History::default();
        let response = json!({"status": 0, "message_token": 1, "billing_status": status});
        history.add("api.send_message", MARCH, json!({"request": {}, "response": response}), Disposition::Fact);
        let words = history.words("counterbat");
        let is_told = words[0]
            .contains("Viber reported a billing_status that is no whole number, which counts as none: unreported");
        assert_eq!(is_told, !is_readable, "{status}: {words:?}");
    }
}

#[test]
fn what_would_move_a_cursor_is_shown_escaped() {
    let mut history = History::default();
    history.send(MARCH, 1, Some(5));
    let failed = json!({"event": "failed", "timestamp": MARCH + 1, "message_token": 1, "desc": "bad\u{1b}[2J"});
    history.add("callback.failed", MARCH + 1, failed, Disposition::Fact);
    let story = tell(Some("bot"), Some("a\nn"), &history.0, &terms("counterbat"), &Costs::default());
    let text = words::of_story(&serde_json::to_value(story).unwrap());
    assert!(text.starts_with("user a\\nn of account bot\n"), "{text}");
    assert!(text.contains("failed (bad\\u{1b}[2J) 0.001 s after") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn a_story_is_told_about_what_was_asked() {
    let mut history = History::default();
    history.callback("message", MARCH, 1).send(MARCH + 1, 2, Some(1)).callback("seen", MARCH + 2, 2);
    history.callback("message", MARCH + 2 * DAY, 3).send(MARCH + 2 * DAY + 1, 4, Some(1));
    let about = |focus: Focus| {
        let story = history.tell("counterbat").about(&focus);
        (story.steps.iter().map(|step| step.offset).collect::<Vec<_>>(), story.sessions.len())
    };
    assert_eq!(about(Focus::User), (vec![0, 1, 2, 3, 4], 2));
    assert_eq!(about(Focus::Session(id(Kind::Service, 1))), (vec![0, 1, 2], 1));
    assert_eq!(about(Focus::Token(2)), (vec![1, 2], 1));
    assert_eq!(about(Focus::Event("e3".into())), (vec![3], 1));
    let story = serde_json::to_value(history.tell("counterbat")).unwrap();
    assert_eq!(
        (&story["steps"][0]["message_token"], &story["steps"][0]["event"]),
        (&"1".into(), &"callback message".into())
    );
    assert_eq!(story["steps"][1]["meaning"]["expected"], "in_service");
    assert_eq!(story["sessions"][1]["ends_at"], "2026-03-04T00:00:00.000Z");
    let text = words::of_story(&story);
    assert!(text.starts_with("user ann of account bot\n\n2026-03-01T00:00:00.000Z  callback message 1  (partition 3, offset 0)\n  received"), "{text}");
}
