use super::*;

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
