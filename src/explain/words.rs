//! A story in sentences.

use super::{Cost, Counts, Meaning, NoCost, Original, Placed, Reported, Skew, Step, Told};
use crate::event::shown::harmless;
use crate::event::time::{format_ms, format_us};
use crate::event::{Disposition, Origin};
use crate::session::row::CloseReason;
use serde_json::Value;

const UNITS: [(i64, &str); 3] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min")];

/// A time span, exact to the ms: `2 h 3.5 s`.
pub fn span(ms: i64) -> String {
    let mut rest = ms.saturating_abs();
    let mut parts = Vec::new();
    for (unit_ms, unit) in UNITS {
        if rest >= unit_ms {
            parts.push(format!("{} {unit}", rest / unit_ms));
            rest %= unit_ms;
        }
    }
    if rest > 0 || parts.is_empty() {
        let fraction = format!("{:03}", rest % 1000);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        parts.push(format!("{}{point}{fraction} s", rest / 1000));
    }
    parts.join(" ")
}

/// The sentences of a [`super::Story`] in JSON, for a terminal.
pub fn of_story(story: &Value) -> String {
    let text = |value: &Value| harmless(value.as_str().unwrap_or_default());
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut lines = vec![match (story["account"].as_str(), story["user_id"].as_str()) {
        (Some(account), Some(user)) => format!("user {} of account {account}", harmless(user)),
        (Some(account), None) => format!("account {account}, no user"),
        (None, _) => "no account".to_owned(),
    }];
    for step in list(&story["steps"]) {
        let token = step["message_token"].as_str().map(|token| format!(" {token}")).unwrap_or_default();
        let (at, event) = (text(&step["event_time"]), text(&step["event"]));
        lines.push(String::new());
        lines.push(format!("{at}  {event}{token}  (partition {}, offset {})", step["partition"], step["offset"]));
        lines.extend(list(&step["words"]).iter().map(|words| format!("  {}", text(words))));
    }
    for session in list(&story["sessions"]) {
        lines.push(String::new());
        let words = list(&session["words"]);
        lines.extend(
            words.iter().enumerate().map(|(n, words)| format!("{}{}", if n > 0 { "  " } else { "" }, text(words))),
        );
    }
    lines.join("\n") + "\n"
}

/// A record in sentences.
pub(super) fn of_step(step: &Step, origin: Origin) -> Vec<String> {
    let mut words = vec![received(step, origin)];
    let disposition = step.disposition.as_str();
    match (&step.duplicate_of, &step.meaning) {
        (Some(copy), _) if step.disposition == Disposition::Duplicate && !copy.is_replaced => {
            let other = other_report(&step.meaning).map(|other| format!("; {other}")).unwrap_or_default();
            words.push(format!("{disposition} of {}: changes nothing{other}", first(copy)));
        }
        (Some(copy), meaning) if copy.is_replaced => {
            words.push(format!("{disposition} of {}; of all copies this one counts, being the smallest", first(copy)));
            words.extend(counted(meaning));
        }
        (_, meaning) => {
            let late = match step.disposition {
                Disposition::TooLate if !matches!(meaning, Meaning::TooLate { .. }) => {
                    "came too late, and was folded in by a rebuild"
                }
                Disposition::TooLate => "came too late",
                _ => disposition,
            };
            let mut sentences = counted(meaning);
            match sentences.first_mut() {
                Some(first) => *first = format!("{late}: {first}"),
                None => sentences.push(late.to_owned()),
            }
            words.extend(sentences);
        }
    }
    for changed in &step.changed {
        words.push(format!(
            "by its arrival message {} is {}, which was {}",
            changed.message_token,
            changed.is.as_str(),
            changed.was.as_str()
        ));
    }
    words
}

fn first(copy: &Original) -> String {
    let received = format_us(copy.received_us);
    format!("the one received {received} (partition {}, offset {})", copy.partition, copy.offset)
}

/// When it was received, and how long after the time it counts with.
fn received(step: &Step, origin: Origin) -> String {
    let received = format_us(step.received_us);
    match step.skew {
        Some(Skew::Ahead { ahead_ms, appended_ms }) => format!(
            "recorded as of {received}, {} ahead of the log's clock: not believed, it counts as received when it was appended, {}",
            span(ahead_ms),
            format_ms(appended_ms)
        ),
        Some(Skew::Timestamp) => {
            format!("received {received}; its own timestamp is not believed, so it counts as of then")
        }
        None => {
            let later_ms = step.received_us.div_euclid(1000).saturating_sub(step.t_ms);
            match later_ms {
                // A call counts as of its answer.
                0 if origin == Origin::Callback => format!("received {received}, at once"),
                0 => format!("received {received}"),
                1.. => format!("received {received}, {} after its own time", span(later_ms)),
                _ => format!("received {received}, {} before its own time", span(later_ms)),
            }
        }
    }
}

/// How it counts; the first sentence follows the disposition.
fn counted(meaning: &Meaning) -> Vec<String> {
    match meaning {
        Meaning::Malformed { reason } | Meaning::Nothing { reason } => vec![reason.clone()],
        Meaning::TooLate { behind_ms, lateness_ms } => {
            let lateness = lateness_ms.map(|ms| format!(" ({})", span(ms))).unwrap_or_default();
            let behind =
                if *behind_ms > 0 { format!("it tells of {} before, and ", span(*behind_ms)) } else { String::new() };
            vec![format!(
                "{behind}its partition's time was further on than allowed_lateness{lateness} allows; changes no row, \
                 `counterbat rebuild` folds it in"
            )]
        }
        Meaning::Inbound { session: Some(session), opens: true, .. } => {
            vec![format!("opens {}: no service session was open", window(session))]
        }
        Meaning::Inbound { session: Some(session), end_ms, .. } => match end_ms {
            Some(end_ms) => vec![format!("joins {}, whose end it moves to {}", name(session), format_ms(*end_ms))],
            None => vec![format!("joins {}", window(session))],
        },
        Meaning::Inbound { session: None, .. } => vec!["lies in no session".to_owned()],
        Meaning::Outbound { .. } => outbound(meaning),
        Meaning::Receipt { receipt, counts, failure } => {
            let failure = failure.as_ref().map(|failure| format!(" ({failure})")).unwrap_or_default();
            vec![match counts {
                Counts::For { after_ms } => {
                    format!("{receipt}{failure} {} after its message was sent", span(*after_ms))
                }
                Counts::TooLong { after_ms, window_ms } => format!(
                    "{receipt}{failure} {} after its message was sent: not counted, receipts count for less than {}",
                    span(*after_ms),
                    span(*window_ms)
                ),
                Counts::Unmatched => format!(
                    "{receipt}{failure}, and no message with this token is known: it waits for one until that would be too \
                     late, then it counts as unmatched"
                ),
            }]
        }
        Meaning::Unsubscribed { closes } if closes.is_empty() => vec!["no session was open".to_owned()],
        Meaning::Unsubscribed { closes } => {
            vec![format!("closes {}", closes.iter().map(name).collect::<Vec<_>>().join(" and "))]
        }
        Meaning::Subscribed => vec!["opens no session, only a message does".to_owned()],
    }
}

fn outbound(meaning: &Meaning) -> Vec<String> {
    let Meaning::Outbound {
        expected,
        billing_status,
        told,
        is_broadcast,
        verdict,
        session,
        opens,
        number,
        closes,
        cost,
    } = meaning
    else {
        return Vec::new();
    };
    let place = match session {
        None => "out of session: neither a service nor a paid session was open".to_owned(),
        Some(session) if *opens => format!("out of session, and charged: opens {}", window(session)),
        Some(session) => {
            let end = if *closes { ", the last it may have: closes it" } else { "" };
            format!("in {}, message {number} of it{end}", window(session))
        }
    };
    let counted = billing_status.map_or(Reported::Nothing, Reported::Status);
    // What cannot be read counts as nothing.
    let shown = if counted == Reported::Nothing && *told == Reported::Unreadable { *told } else { counted };
    let reported = format!("Viber reported {}", what(shown));
    let whole = if *is_broadcast { " for the whole broadcast" } else { "" };
    let (expected, verdict) = (expected.as_str(), verdict.as_str());
    let mut words = vec![place, format!("expected {expected}, {reported}{whole}: {verdict}; {}", price(cost))];
    words.extend(other_report(meaning));
    words
}

fn what(reported: Reported) -> String {
    match reported {
        Reported::Status(status) => status.to_string(),
        Reported::Nothing => "nothing".to_owned(),
        Reported::Unreadable => "a billing_status that is no whole number, which counts as none".to_owned(),
    }
}

/// Where a copy reports otherwise than the one that counts.
fn other_report(meaning: &Meaning) -> Option<String> {
    let Meaning::Outbound { billing_status, told, .. } = meaning else { return None };
    let counted = billing_status.map_or(Reported::Nothing, Reported::Status);
    let is_same = counted == *told || (counted == Reported::Nothing && *told == Reported::Unreadable);
    (!is_same).then(|| format!("in this copy Viber reported {}, in the one that counts {}", what(*told), what(counted)))
}

fn name(session: &Placed) -> String {
    format!("{} session {}", session.kind.as_str(), session.session_id)
}

/// A session with its window, whose end is no longer part of it.
fn window(session: &Placed) -> String {
    format!("{}, [{}, {})", name(session), format_ms(session.opened_ms), format_ms(session.ends_ms))
}

fn price(cost: &Cost) -> String {
    match &cost.amount {
        None => match &cost.because {
            None | Some(NoCost::NoPrice) => "no price known".to_owned(),
            Some(NoCost::NoRow) => "the tables have no row of it".to_owned(),
            Some(NoCost::Currencies(currencies)) => {
                format!("charged in {}, which have no sum", currencies.join(" and "))
            }
            Some(NoCost::TooLarge) => {
                "the sum of what its messages cost has more than 12 digits before the point".to_owned()
            }
        },
        Some(amount) => {
            let short = if amount.contains('.') { amount.trim_end_matches('0').trim_end_matches('.') } else { amount };
            let currency = cost.currency.as_ref().map(|currency| format!(" {currency}")).unwrap_or_default();
            if short == "0" { "costs nothing".to_owned() } else { format!("costs {short}{currency}") }
        }
    }
}

/// A session in sentences.
pub(super) fn of_session(told: &Told) -> Vec<String> {
    let Told { session, close_reason, opened_by_token, inbound, outbound, charged, overcharged, cost, .. } = told;
    let end = match close_reason {
        None => "it is open",
        Some(CloseReason::Expired) => "ended when its time was over",
        Some(CloseReason::Cap) => "closed by the last message it may have",
        Some(CloseReason::Unsubscribed) => "closed as the user unsubscribed",
    };
    vec![
        window(session),
        format!("opened by message {opened_by_token}, under policy {}; {end}", session.policy),
        format!(
            "{inbound} inbound, {outbound} outbound, of these {charged} charged, {overcharged} overcharged; {}",
            price(cost)
        ),
    ]
}
