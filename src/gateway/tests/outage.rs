//! The log goes away and comes back: what comes of calls waits, or is told to be missing.

use super::*;
use crate::gateway::gap::Gap;
use crate::log::spill::Spill;
use std::path::Path;

const ROOM: u64 = 1 << 20;

async fn spill(dir: &Path, limit: u64) -> Spill {
    loop {
        match Spill::open(&dir.join("spill"), limit, Arc::new(|| NOW)).await {
            // The writer of the one before has not ended yet.
            Err(LogError::InUse { .. }) => tokio::task::yield_now().await,
            spill => return spill.unwrap(),
        }
    }
}

async fn recording(dir: &Path, limit: u64) -> Recording {
    let gap = Some(Gap::open(dir.join("gap.json")).unwrap());
    Recording { spill: Some(spill(dir, limit).await), gap, ..Recording::default() }
}

async fn start(limit: u64, change: impl FnOnce(&mut Recording)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let mut recording = recording(dir.path(), limit).await;
    change(&mut recording);
    let ((viber, upstream), log) = (double().await, MemoryLog::new());
    let bots = Bots::new(Duration::from_secs(20), true).unwrap();
    world_recording(upstream, viber, bots, dir, log, recording).await
}

impl World {
    fn goes_away(&self) {
        self.log.broken.store(true, Ordering::SeqCst);
    }

    fn comes_back(&self) {
        self.log.broken.store(false, Ordering::SeqCst);
    }

    async fn send(&self, user: &str) -> String {
        self.call("/pa/send_message", &format!(r#"{{"receiver":"{user}"}}"#), Some(TOKEN)).await
    }

    async fn until_shown(&self, line: &str) {
        let shown = async {
            while !self.shows(line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), shown).await.expect(line);
    }

    /// The users that the recorded calls are to, in order.
    fn users(&self) -> Vec<String> {
        self.log.events().into_iter().filter_map(|event| event.subject).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_of_calls_waits_and_goes_in_first() {
    let world = start(ROOM, |_| ()).await;
    assert_eq!(world.send("u0").await, ANSWER);
    world.goes_away();
    let users: Vec<String> = (0..20).map(|n| format!("u{n}")).collect();
    for user in &users[1..] {
        assert_eq!(world.send(user).await, ANSWER, "{user}");
    }
    let body = br#"{"event":"message","message_token":7,"sender":{"id":"u=="}}"#;
    assert_eq!(world.callback("/webhooks/shop", body, Some(&sign(body))).await, StatusCode::SERVICE_UNAVAILABLE);
    assert!(world.shows("counterbat_spill_events 19") && world.shows("counterbat_spilled_events_total 19"));
    assert!(world.gateway.is_spilling() && world.gateway.check_recordable().await.is_ok());
    assert_eq!(world.users(), ["u0"]);
    world.comes_back();
    world.log.wait_for(20).await;
    assert_eq!(world.users(), users);
    world.until_shown("counterbat_spill_events 0").await;
    assert!(world.shows("counterbat_drained_events_total 19") && world.shows("counterbat_spill_bytes 0"));
    assert_eq!(world.send("last").await, ANSWER);
    assert_eq!(world.users().last().unwrap(), "last");
    assert_eq!(world.callback("/webhooks/shop", body, Some(&sign(body))).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_found_by_the_next_start() {
    let world = start(ROOM, |_| ()).await;
    world.goes_away();
    for user in ["a", "b", "c"] {
        assert_eq!(world.send(user).await, ANSWER);
    }
    let World { gateway, dir, viber, server, client, .. } = world;
    assert!(gateway.drain(Duration::from_secs(30)).await);
    // Nobody has it any more once the connections are closed.
    server.abort();
    drop((gateway, client));
    let (log, (_, upstream)) = (MemoryLog::new(), double().await);
    let bots = Bots::new(Duration::from_secs(20), true).unwrap();
    let recording = recording(dir.path(), ROOM).await;
    let world = world_recording(upstream, viber, bots, dir, log, recording).await;
    assert_eq!(world.send("d").await, ANSWER);
    world.log.wait_for(4).await;
    assert_eq!(world.users(), ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_takes_late_is_not_brought_in_again() {
    let world = start(ROOM, |_| ()).await;
    world.log.stalls.send_replace(true);
    assert_eq!(world.send("slow").await, ANSWER);
    assert_eq!(world.send("behind").await, ANSWER);
    assert!(world.shows("counterbat_spill_events 2") && world.users().is_empty());
    world.log.stalls.send_replace(false);
    world.until_shown("counterbat_spill_events 0").await;
    assert_eq!(world.users(), ["slow", "behind"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spill_turns_calls_away() {
    let world = start(1, |recording| recording.intent = true).await;
    world.goes_away();
    // The first finds it empty.
    assert_eq!(world.send("a").await, ANSWER);
    for _ in 0..3 {
        assert!(world.send("b").await.contains("was not sent"));
    }
    assert_eq!(world.viber.asked.lock().unwrap().len(), 1);
    assert!(world.gateway.check_recordable().await.unwrap_err().to_string().contains("full"));
    world.comes_back();
    world.until_shown("counterbat_spill_events 0").await;
    assert_eq!(world.send("c").await, ANSWER);
    let events = world.log.wait_for(4).await;
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.rsplit('.').next().unwrap()).collect();
    assert_eq!(kinds, ["started", "send_message", "started", "send_message"]);
    let id = format!(r#"{{"call_id":"{}""#, events[2].id);
    assert!(events[3].data.starts_with(id.as_bytes()) && events[2].data.starts_with(id.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_a_full_spill_is_told_to_be_missing() {
    let world = start(1, |recording| recording.pass_unrecordable = true).await;
    world.goes_away();
    assert_eq!(world.send("a").await, ANSWER);
    for _ in 0..3 {
        assert_eq!(world.send("b").await, ANSWER);
    }
    world.call("/pa/get_online", r#"{"ids":["b"]}"#, Some(TOKEN)).await;
    assert!(world.shows(r#"counterbat_passed_unrecorded_total{account="shop"} 4"#));
    // As a kill leaves it.
    let kept = std::fs::read_to_string(world.dir.path().join("gap.json")).unwrap();
    assert!(kept.contains(r#""send_message": 3"#), "{kept}");
    world.comes_back();
    let events = world.log.wait_for(3).await;
    assert_eq!(world.users(), ["a"]);
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["com.viber.api.send_message", "counterbat.gap.opened", "counterbat.gap.closed"]);
    let told: serde_json::Value = serde_json::from_slice(&events[2].data).unwrap();
    assert_eq!(told["calls"], serde_json::json!({"get_online": 1, "send_message": 3}));
    assert_eq!((events[2].source.as_str(), events[1].time_us), ("/accounts/shop", Some(NOW)));
    let told_once = async {
        while world.dir.path().join("gap.json").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told_once).await.unwrap();
    assert_eq!(world.send("c").await, ANSWER);
    assert_eq!(world.users(), ["a", "c"]);
}
