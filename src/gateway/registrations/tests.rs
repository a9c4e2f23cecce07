use super::*;
use crate::gateway::shelf::tests::MemoryRegistry;
use crate::log::registry::Registry;
use std::sync::atomic::Ordering;

fn webhook(url: &str, types: Option<&[&str]>) -> Webhook {
    let event_types = types.map(|types| types.iter().map(|one| (*one).to_owned()).collect());
    Webhook { url: url.into(), event_types, send_name: true, send_photo: false }
}

fn url(found: Option<Arc<Webhook>>) -> Option<String> {
    found.map(|webhook| webhook.url.clone())
}

#[tokio::test]
async fn a_webhook_is_in_force_once_confirmed_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let all = Arc::new(Registrations::open(Shelf::files(dir.path())).unwrap());
    let first = all.begin("shop", Some(webhook("https://a", None))).await.unwrap();
    assert_eq!((all.confirmed("shop"), url(all.target("shop", "message").await)), (None, None));
    assert_eq!(url(all.target("shop", "webhook").await).as_deref(), Some("https://a"));
    first.confirm().await.unwrap();
    let second = all.begin("shop", Some(webhook("https://b", Some(&["seen"])))).await.unwrap();
    assert_eq!(url(all.target("shop", "seen").await).as_deref(), Some("https://a"));
    // As if the process had ended here.
    let again = Arc::new(Registrations::open(Shelf::files(dir.path())).unwrap());
    assert_eq!(url(again.target("shop", "webhook").await).as_deref(), Some("https://a"));
    second.forget().await.unwrap();
    assert_eq!(url(all.target("shop", "webhook").await).as_deref(), Some("https://a"));
    all.begin("shop", None).await.unwrap().confirm().await.unwrap();
    assert_eq!(all.confirmed("shop"), None);
    assert_eq!(Registrations::open(Shelf::files(dir.path())).unwrap().confirmed("shop"), None);
    all.begin("shop", Some(webhook("https://c", None))).await.unwrap().confirm().await.unwrap();
    all.forget("shop").unwrap();
    assert_eq!(all.confirmed("shop"), None);
    assert_eq!(Registrations::open(Shelf::files(dir.path())).unwrap().confirmed("shop"), None);
}

#[tokio::test]
async fn changes_of_an_account_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let all = Arc::new(Registrations::open(Shelf::files(dir.path())).unwrap());
    let first = all.begin("shop", Some(webhook("https://a", None))).await.unwrap();
    let waits = {
        tokio::spawn({
            let all = all.clone();
            async move { all.begin("shop", Some(webhook("https://b", None))).await }
        })
    };
    all.begin("other", Some(webhook("https://c", None))).await.unwrap().confirm().await.unwrap();
    assert!(!waits.is_finished());
    first.confirm().await.unwrap();
    waits.await.unwrap().unwrap().confirm().await.unwrap();
    assert_eq!(url(all.confirmed("shop")).as_deref(), Some("https://b"));
}

#[test]
fn optional_events_are_asked_for() {
    let some = webhook("https://a", Some(&["seen"]));
    for event in ["seen", "message", "subscribed", "unsubscribed", "webhook", "client_status", "new_one"] {
        assert!(some.wants(event), "{event}");
    }
    for event in ["delivered", "failed", "conversation_started"] {
        assert!(!some.wants(event), "{event}");
        assert!(webhook("https://a", None).wants(event));
    }
}

#[test]
fn a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("webhooks")).unwrap();
    std::fs::write(dir.path().join("webhooks/shop.json"), "{").unwrap();
    let error = Registrations::open(Shelf::files(dir.path())).err().unwrap().to_string();
    assert!(error.contains("shop.json"), "{error}");
}

/// Registrations of a gateway that shares them.
fn shared(registry: &Arc<MemoryRegistry>) -> Arc<Registrations> {
    Arc::new(Registrations::open(Shelf::shared(registry.clone())).unwrap())
}

#[tokio::test]
async fn a_check_may_come_to_another_gateway() {
    let here = Arc::new(MemoryRegistry::default());
    let there = here.other();
    let (one, other) = (shared(&here), shared(&there));
    let change = one.begin("shop", Some(webhook("https://a", None))).await.unwrap();
    // Nothing has arrived there, and yet.
    assert_eq!(url(other.target("shop", "webhook").await).as_deref(), Some("https://a"));
    assert_eq!(url(other.target("shop", "message").await), None);
    change.confirm().await.unwrap();
    there.catch_up().await.unwrap();
    assert_eq!(url(other.target("shop", "message").await).as_deref(), Some("https://a"));
    assert_eq!(other.accounts(), ["shop"]);
    assert!(here.entries().borrow().keys().eq(["webhook/shop"]));
    // Without the brokers, what is known counts.
    there.is_away.store(true, Ordering::SeqCst);
    assert_eq!(url(other.target("shop", "webhook").await).as_deref(), Some("https://a"));
    there.is_away.store(false, Ordering::SeqCst);
    other.begin("shop", None).await.unwrap().confirm().await.unwrap();
    here.catch_up().await.unwrap();
    assert_eq!((one.confirmed("shop"), one.accounts().len()), (None, 0));
}

#[tokio::test]
async fn what_viber_took_is_not_undone_by_a_change_that_it_refused() {
    let here = Arc::new(MemoryRegistry::default());
    let there = here.other();
    let (one, other) = (shared(&here), shared(&there));
    let first = one.begin("shop", Some(webhook("https://a", None))).await.unwrap();
    let second = other.begin("shop", Some(webhook("https://b", None))).await.unwrap();
    assert_eq!(url(one.target("shop", "webhook").await).as_deref(), Some("https://b"), "the newest");
    first.confirm().await.unwrap();
    // The other gateway has not heard of that when it gives up.
    second.forget().await.unwrap();
    for gateway in [&one, &other] {
        assert_eq!(url(gateway.target("shop", "webhook").await).as_deref(), Some("https://a"));
    }
    there.catch_up().await.unwrap();
    assert!(there.entries().borrow().keys().eq(["webhook/shop"]), "{:?}", there.entries());
    other.forget("shop").unwrap();
    assert!(there.entries().borrow().is_empty());
}

#[tokio::test]
async fn a_webhook_that_cannot_be_stored_is_in_force_here_and_stored_later() {
    let here = Arc::new(MemoryRegistry::default());
    let one = shared(&here);
    let change = one.begin("shop", Some(webhook("https://a", None))).await.unwrap();
    here.is_away.store(true, Ordering::SeqCst);
    assert!(change.confirm().await.unwrap_err().to_string().contains("no broker"));
    assert_eq!((url(one.confirmed("shop")).as_deref(), one.accounts()), (Some("https://a"), vec!["shop".to_owned()]));
    here.is_away.store(false, Ordering::SeqCst);
    let mut entries = here.entries();
    entries.wait_for(|entries| entries.contains_key("webhook/shop")).await.unwrap();
    assert_eq!(url(shared(&here).confirmed("shop")).as_deref(), Some("https://a"));
    // A start says which entry is damaged; later it counts as none.
    here.put("webhook/shop", Some(b"[".to_vec())).await.unwrap();
    assert_eq!(one.confirmed("shop"), None);
    let error = Registrations::open(Shelf::shared(here)).err().unwrap().to_string();
    assert!(error.contains("webhook/shop in the registry is damaged"), "{error}");
}
