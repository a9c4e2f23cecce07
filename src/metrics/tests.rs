use super::*;
use crate::event::Disposition;
use crate::session::money::{Currency, Money};
use crate::session::row::{CloseReason, Expected, MessageRow, Method};

fn text(metrics: &Metrics) -> String {
    String::from_utf8(metrics.render().unwrap()).unwrap()
}

#[test]
fn fixed_series_exist_from_the_start() {
    let text = text(&Metrics::new(AccountLabels::All));
    for line in [
        "counterbat_events_total{disposition=\"fact\"} 0",
        "counterbat_events_total{disposition=\"too_late\"} 0",
        "counterbat_rejected_total{reason=\"bad_signature\"} 0",
        "counterbat_receipts_unmatched_total 0",
        "process_open_fds",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
}

#[test]
fn a_tally_counts_when_it_is_applied() {
    let metrics = Metrics::new(AccountLabels::All);
    let mut tally = Tally::default();
    tally.event_folded(Disposition::Fact);
    tally.event_folded(Disposition::Fact);
    tally.session_opened("shop", Kind::Service);
    tally.sessions_open_delta("shop", Kind::Service, 1);
    tally.session_closed("shop", Kind::Paid, CloseReason::Cap);
    tally.receipt_folded("shop", "seen");
    tally.receipt_unmatched();
    tally.corrected("verdict");
    assert!(text(&metrics).contains("counterbat_events_total{disposition=\"fact\"} 0"));
    metrics.apply(&tally);
    let text = text(&metrics);
    for line in [
        "counterbat_events_total{disposition=\"fact\"} 2",
        "counterbat_sessions_opened_total{account=\"shop\",kind=\"service\"} 1",
        "counterbat_sessions_open{account=\"shop\",kind=\"service\"} 1",
        "counterbat_sessions_closed_total{account=\"shop\",kind=\"paid\",reason=\"cap\"} 1",
        "counterbat_receipts_total{account=\"shop\",event=\"seen\"} 1",
        "counterbat_receipts_unmatched_total 1",
        "counterbat_corrections_total{kind=\"verdict\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
}

#[test]
fn account_labels_are_bounded() {
    let metrics = Metrics::new(AccountLabels::First(1));
    for account in ["a", "b", "a", "c"] {
        metrics.callbacks(account).received("message");
    }
    let found = text(&metrics);
    assert!(found.contains("counterbat_callbacks_total{account=\"a\",event=\"message\"} 2"), "{found}");
    assert!(found.contains("counterbat_callbacks_total{account=\"other\",event=\"message\"} 2"), "{found}");
    let metrics = Metrics::new(AccountLabels::None);
    metrics.callbacks("a").received("message");
    assert!(!text(&metrics).contains("account=\"a\""));
}

#[test]
fn strangers_make_no_series() {
    let metrics = Metrics::new(AccountLabels::All);
    metrics.callbacks("a").received("surprise");
    metrics.call_relayed("a", "drop_everything", Some(12345));
    metrics.call_relayed("a", "send_message", None);
    let text = text(&metrics);
    assert!(text.contains("counterbat_callbacks_total{account=\"a\",event=\"other\"} 1"), "{text}");
    assert!(text.contains("{account=\"a\",method=\"other\",status=\"other\"} 1"), "{text}");
    assert!(text.contains("{account=\"a\",method=\"send_message\",status=\"none\"} 1"), "{text}");
}

#[test]
fn open_sessions_of_all_partitions_add_up() {
    let metrics = Metrics::new(AccountLabels::All);
    let open = [("a", Kind::Service, 2), ("a", Kind::Service, 3)];
    metrics.set_sessions_open(open);
    metrics.set_sessions_open(open);
    assert!(text(&metrics).contains("counterbat_sessions_open{account=\"a\",kind=\"service\"} 5"));
}

/// A charged message that costs this amount of a currency.
fn charged(cost: Option<(&str, &str)>) -> MessageRow {
    let (cost, currency) = cost.unzip();
    MessageRow {
        message_token: 7,
        session_id: None,
        sent_at_ms: 0,
        method: Method::Send,
        message_type: None,
        tracking_data: None,
        expected: Expected::OutOfSession,
        billing_status: Some(5),
        verdict: Verdict::Agreed,
        delivered_at_ms: None,
        seen_at_ms: None,
        failed_at_ms: None,
        failure: None,
        country: Some("UA".into()),
        price: cost.map(|_| Money::parse("0.1").unwrap()),
        cost: cost.map(|cost| Money::parse(cost).unwrap()),
        currency: currency.and_then(Currency::parse),
        settled: false,
        policy: "counterbat".into(),
    }
}

#[test]
fn money_is_counted_when_it_is_first_spent() {
    let metrics = Metrics::new(AccountLabels::All);
    let (none, nothing) = (charged(None), charged(Some(("0", "EUR"))));
    let (tenth, fifth) = (charged(Some(("0.1", "EUR"))), charged(Some(("0.2", "EUR"))));
    let mut tally = Tally::default();
    for row in [&none, &nothing, &tenth] {
        tally.message_folded("shop", row);
    }
    for (old, new) in [(&none, &tenth), (&nothing, &tenth), (&nothing, &none), (&tenth, &fifth), (&tenth, &none)] {
        tally.message_changed("shop", old, new);
    }
    metrics.apply(&tally);
    let text = text(&metrics);
    for line in [
        "counterbat_spend_total{account=\"shop\",currency=\"EUR\"} 0.3\n",
        "counterbat_unpriced_messages_total{account=\"shop\"} 1\n",
        "counterbat_charged_messages_total{account=\"shop\",country=\"UA\"} 3\n",
        "counterbat_corrections_total{kind=\"cost\"} 2\n",
        "counterbat_rebuild_needed 0\n",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
}
