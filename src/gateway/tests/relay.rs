//! Webhooks set through the gateway, and callbacks handed on to a bot of our own.

use super::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a bot got: event, `sig`, signature header, body.
type Got = (String, Option<String>, Option<String>, Vec<u8>);

/// A bot that notes what it gets and answers as it is told.
#[derive(Default)]
struct Bot {
    got: Mutex<Vec<Got>>,
    /// By event: status, content type, body. 200 otherwise.
    answers: Mutex<BTreeMap<&'static str, (u16, &'static str, &'static str)>>,
    is_slow: AtomicBool,
}

impl Bot {
    async fn start() -> (Arc<Bot>, String) {
        let bot = Arc::new(Bot::default());
        let own = bot.clone();
        let router = Router::new().fallback(move |request: Request<Body>| async move {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, MAX_BODY).await.unwrap().to_vec();
            let event = serde_json::from_slice::<Value>(&body).unwrap()["event"].as_str().unwrap().to_owned();
            let header = parts.headers.get(SIGNATURE).map(|value| value.to_str().unwrap().to_owned());
            let query = parts.uri.query().unwrap_or_default().to_owned();
            let sig = query.split('&').find_map(|pair| pair.strip_prefix("sig=")).map(str::to_owned);
            own.got.lock().unwrap().push((event.clone(), sig, header, body));
            if own.is_slow.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let (status, kind, text) =
                own.answers.lock().unwrap().get(event.as_str()).copied().unwrap_or((200, "text/plain", ""));
            (StatusCode::from_u16(status).unwrap(), [("content-type", kind)], text).into_response()
        });
        (bot, super::serve(router).await)
    }

    fn events(&self) -> Vec<String> {
        self.got.lock().unwrap().iter().map(|(event, ..)| event.clone()).collect()
    }

    fn answer(&self, event: &'static str, status: u16, body: &'static str) {
        self.answers.lock().unwrap().insert(event, (status, "application/json", body));
    }
}

/// A Viber that validates webhooks as the real one does, and remembers the last request.
struct Validating {
    asked: Arc<Mutex<Vec<Value>>>,
    url: String,
}

async fn validating() -> Validating {
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let seen = asked.clone();
    let current: Arc<Mutex<String>> = Arc::default();
    let router = Router::new().fallback(move |request: Request<Body>| async move {
        let path = request.uri().path().to_owned();
        let body = axum::body::to_bytes(request.into_body(), MAX_BODY).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        seen.lock().unwrap().push(body.clone());
        if path.ends_with("get_account_info") {
            let webhook = current.lock().unwrap().clone();
            return json!({"status":0,"webhook":webhook,"event_types":["delivered","seen","message"]}).to_string();
        }
        let url = body["url"].as_str().unwrap().to_owned();
        if url.is_empty() {
            current.lock().unwrap().clear();
            return r#"{"status":0,"status_message":"ok"}"#.to_owned();
        }
        let check = br#"{"event":"webhook","timestamp":1,"message_token":1}"#;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(&url).header(SIGNATURE, sign(check)).body(check.to_vec());
        let status = request.send().await.unwrap().status();
        if status != StatusCode::OK {
            return format!(r#"{{"status":1,"status_message":"invalidUrl: got {}"}}"#, status.as_u16());
        }
        *current.lock().unwrap() = url;
        r#"{"status":0,"status_message":"ok","event_types":["delivered","seen","message"]}"#.to_owned()
    });
    Validating { asked, url: super::serve(router).await }
}

async fn set(world: &World, body: &Value) -> Value {
    serde_json::from_str(&world.call("/pa/set_webhook", &body.to_string(), Some(TOKEN)).await).unwrap()
}

/// A world whose bot has set its webhook.
async fn connected(event_types: Option<Value>) -> (World, Arc<Bot>) {
    let (viber, (bot, bot_url)) = (validating().await, Bot::start().await);
    let world = world_at(viber.url, Arc::default()).await;
    let mut body = json!({"url": format!("{bot_url}/hook?key=1")});
    if let Some(types) = event_types {
        body["event_types"] = types;
    }
    assert_eq!(set(&world, &body).await["status"], 0);
    bot.got.lock().unwrap().clear();
    (world, bot)
}

fn body(event: &str) -> Vec<u8> {
    format!(r#"{{"event":"{event}", "timestamp":1759999999000,"message_token":7,"user_id":"u=="}}"#).into_bytes()
}

async fn call_back(world: &World, event: &str) -> (StatusCode, String, String) {
    let body = body(event);
    let request =
        world.client.post(format!("{}/webhooks/shop", world.address)).header(SIGNATURE, sign(&body)).body(body);
    let response = request.send().await.unwrap();
    let kind = response.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
    (response.status(), kind, response.text().await.unwrap())
}

#[tokio::test]
async fn viber_gets_our_address_and_the_bot_sees_its_own() {
    let (viber, (bot, bot_url)) = (validating().await, Bot::start().await);
    let world = world_at(viber.url.clone(), Arc::default()).await;
    let own = format!("{bot_url}/hook");
    let answer = set(&world, &json!({"url": own, "event_types": ["seen"], "send_name": true})).await;
    assert_eq!(answer, json!({"status":0,"status_message":"ok","event_types":["seen","message"]}));
    assert_eq!(bot.events(), ["webhook"]);
    let sent = viber.asked.lock().unwrap()[0].clone();
    assert_eq!(sent, json!({"url": format!("{}/webhooks/shop", world.address), "send_name": true}));
    let info = world.call("/pa/get_account_info", "{}", Some(TOKEN)).await;
    assert_eq!(info, json!({"status":0,"webhook":own,"event_types":["seen","message"]}).to_string());
    let recorded = world.log.events();
    let calls: Vec<&Event> = recorded.iter().filter(|event| event.kind.contains(".api.")).collect();
    let data = std::str::from_utf8(&calls[0].data).unwrap();
    assert!(data.contains(&own) && data.contains(r#""event_types":["delivered","seen","message"]"#), "{data}");
}

#[tokio::test]
async fn a_webhook_that_viber_refuses_is_not_in_force() {
    let (world, bot) = connected(None).await;
    let (other, other_url) = Bot::start().await;
    other.answer("webhook", 500, "");
    let answer = set(&world, &json!({"url": other_url})).await;
    assert_eq!(answer["status_message"], "invalidUrl: got 500");
    assert_eq!(other.events(), ["webhook"]);
    assert_eq!(call_back(&world, "message").await.0, StatusCode::OK);
    assert_eq!(bot.events(), ["message"]);
    let own = format!("{}/webhooks/shop", world.address);
    for url in [own.as_str(), "ftp://x", "no url"] {
        assert_eq!(set(&world, &json!({"url": url})).await["status"], 1, "{url}");
    }
}

#[tokio::test]
async fn a_removed_webhook_gets_nothing() {
    let (world, bot) = connected(None).await;
    assert_eq!(set(&world, &json!({"url":""})).await, json!({"status":0,"status_message":"ok","event_types":[]}));
    assert_eq!(call_back(&world, "message").await.0, StatusCode::OK);
    assert!(bot.events().is_empty());
    assert_eq!(world.log.events().last().unwrap().kind, "com.viber.callback.message");
}

#[tokio::test]
async fn callbacks_reach_the_bot_byte_for_byte() {
    let (world, bot) = connected(None).await;
    assert_eq!(call_back(&world, "seen").await, (StatusCode::OK, String::new(), String::new()));
    let signature = sign(&body("seen"));
    let wanted = ("seen".to_owned(), Some(signature.clone()), Some(signature), body("seen"));
    assert_eq!(*bot.got.lock().unwrap(), [wanted]);
    bot.answer("message", 418, "no welcome");
    assert_eq!(call_back(&world, "message").await, (StatusCode::IM_A_TEAPOT, String::new(), String::new()));
}

#[tokio::test]
async fn what_the_bot_did_not_ask_for_is_recorded_only() {
    let (world, bot) = connected(Some(json!(["seen"]))).await;
    for event in ["delivered", "seen", "failed", "conversation_started", "message", "subscribed", "brand_new"] {
        assert_eq!(call_back(&world, event).await.0, StatusCode::OK, "{event}");
    }
    assert_eq!(bot.events(), ["seen", "message", "subscribed", "brand_new"]);
    let tee = format!("{}/webhooks/shop?tee=1", world.address);
    let request = world.client.post(tee).header(SIGNATURE, sign(&body("seen"))).body(body("seen"));
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(bot.events().len(), 4);
    let callbacks = world.log.events().iter().filter(|event| event.kind.contains(".callback.")).count();
    assert_eq!(callbacks, 1 + 8);
}

#[tokio::test]
async fn a_welcome_message_is_passed_and_recorded() {
    let (world, bot) = connected(None).await;
    let welcome = r#"{"auth_token":"tok-1","type":"text","text":"hi"}"#;
    bot.answer("conversation_started", 200, welcome);
    bot.answer("message", 200, welcome);
    assert_eq!(call_back(&world, "message").await.2, "");
    let before = world.log.events().len();
    let (status, kind, text) = call_back(&world, "conversation_started").await;
    assert_eq!((status, kind.as_str(), text.as_str()), (StatusCode::OK, "application/json", welcome));
    let events = world.log.events();
    assert_eq!(events.len(), before + 2);
    let event = &events[before + 1];
    assert_eq!((event.kind.as_str(), event.subject.as_deref()), ("com.viber.api.welcome_message", Some("u==")));
    let data = std::str::from_utf8(&event.data).unwrap();
    assert_eq!(data, r#"{"request":{"type":"text","text":"hi"},"response":null,"http_status":null}"#);
    bot.answer("conversation_started", 200, r#"{"status":0}"#);
    call_back(&world, "conversation_started").await;
    assert_eq!(world.log.events().len(), before + 3);
}

#[tokio::test]
async fn what_the_bot_does_not_take_is_left_to_viber() {
    let (viber, (bot, bot_url)) = (validating().await, Bot::start().await);
    let world = world_with(viber.url, Arc::default(), Bots::new(Duration::from_millis(300), true).unwrap()).await;
    assert_eq!(set(&world, &json!({"url": bot_url})).await["status"], 0);
    bot.is_slow.store(true, Ordering::SeqCst);
    assert_eq!(call_back(&world, "message").await.0, StatusCode::BAD_GATEWAY);
    assert_eq!(world.log.events().last().unwrap().kind, "com.viber.callback.message");
    let text = String::from_utf8(world.metrics.render().unwrap()).unwrap();
    assert!(text.contains(r#"counterbat_relays_total{account="shop",outcome="timed_out"} 1"#), "{text}");
}

#[tokio::test]
async fn private_addresses_are_not_reached() {
    let (viber, (bot, bot_url)) = (validating().await, Bot::start().await);
    let world = world_with(viber.url, Arc::default(), Bots::new(Duration::from_secs(20), false).unwrap()).await;
    let port = bot_url.rsplit(':').next().unwrap().to_owned();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f000001"] {
        let answer = set(&world, &json!({"url": format!("http://{host}:{port}/")})).await;
        assert_eq!(answer["status"], 1, "{host}: {answer}");
    }
    assert!(bot.events().is_empty());
}

#[tokio::test]
async fn callbacks_are_sent_again() {
    let (world, bot) = connected(Some(json!([]))).await;
    let signature = sign(&body("message"));
    let again = |event: &'static str| world.gateway.deliver_again("shop", event, &signature, body(event).into());
    assert_eq!(again("message").await, Ok(Some(StatusCode::OK)));
    assert_eq!(again("seen").await, Ok(None));
    assert_eq!(bot.got.lock().unwrap()[0].1.as_deref(), Some(signature.as_str()));
    assert!(world.gateway.check_redelivery("none").is_err() && world.gateway.check_redelivery("shop").is_ok());
}

#[tokio::test]
async fn a_webhook_set_past_the_gateway_is_noticed() {
    let (viber, (_bot, bot_url)) = (validating().await, Bot::start().await);
    let world = world_at(viber.url.clone(), Arc::default()).await;
    assert_eq!(set(&world, &json!({"url": bot_url})).await["status"], 0);
    let watching = tokio::spawn(watch(world.gateway.clone(), Duration::from_millis(20)));
    let told = async |wanted: u8| {
        let series = format!("counterbat_webhook_elsewhere{{account=\"shop\"}} {wanted}\n");
        let found = async {
            while !String::from_utf8(world.metrics.render().unwrap()).unwrap().contains(&series) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), found).await.expect(&series);
    };
    told(0).await;
    let past = world.client.post(format!("{}/pa/set_webhook", viber.url)).body(json!({"url": bot_url}).to_string());
    assert!(past.send().await.unwrap().status().is_success());
    told(1).await;
    assert_eq!(set(&world, &json!({"url": bot_url})).await["status"], 0);
    told(0).await;
    watching.abort();
    // These calls are no bot's: they are not recorded.
    let kinds = world.log.events().into_iter().map(|event| event.kind);
    assert!(kinds.into_iter().all(|kind| !kind.ends_with("get_account_info")));
}
