//! Users and a bot, left alone until nothing is left to happen.

use super::super::demo_bot::{BotHabits, BotStats, DemoBot, DemoBotOptions};
use super::super::traffic::{self, Habits};
use super::*;
use std::collections::HashMap;

/// Everything with a demo bot straight against the sandbox, until nothing is left to happen.
async fn live(seed: u64) -> (Vec<Call>, Vec<Callback>, Stats, BotStats) {
    let pace = Pace { receipts: exact_receipts(), ..Pace::default() };
    let world = world(20_000.0, pace, NewBot { free_quota: 20, billable: true, ..NewBot::named("shop") }).await;
    world.users(40);
    let bot = DemoBot::start(DemoBotOptions {
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        name: "shop".into(),
        token: world.bot.token.clone(),
        api_base: world.sandbox.base_url().into(),
        time: world.sandbox.time().clone(),
        seed,
        habits: BotHabits { promos_per_day: 0.0, broadcasts_per_day: 0.0, ..BotHabits::default() },
        stop: world.halt.subscribe(),
    })
    .unwrap();
    tokio::time::timeout(PATIENCE, bot.registered()).await.unwrap();
    let habits = Habits {
        conversations_per_day: 3.0,
        unsubscribe_share: 0.05,
        arrive_within: Duration::from_secs(3_600),
        limit: Some(600),
        ..Habits::default()
    };
    let acts = traffic::run(world.sandbox.clone(), seed, habits, world.halt.subscribe()).await;
    assert_eq!(acts, 600);
    let all_answered = |_: &Stats| bot.stats().callbacks.get("message") == Some(&bot.stats().answered);
    world
        .until("told", |stats| stats.counts.callbacks["message"].acknowledged == stats.counts.callbacks["message"].told)
        .await;
    world.until("answered", all_answered).await;
    let stats = world.settled().await;
    let ledger = world.sandbox.ledger();
    let lived = (ledger.calls(), ledger.callbacks(), stats, bot.stats());
    world.stop().await;
    tokio::time::timeout(PATIENCE, bot.stopped()).await.unwrap();
    lived
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_with_a_bot_adds_up() {
    let (calls, callbacks, stats, bot) = live(11).await;
    assert_eq!((bot.bad_signatures, bot.repeated), (0, 0));
    assert_eq!(bot.callbacks.values().sum::<u64>(), callbacks.len() as u64);
    assert!(callbacks.iter().all(|one| one.acknowledged && one.attempts.len() == 1));

    let mut devices: HashMap<(u64, &str), usize> = HashMap::new();
    for one in callbacks.iter().filter(|one| one.event == Event::Delivered) {
        *devices.entry((one.message_token, one.user.as_ref().unwrap())).or_default() += 1;
    }
    let sends: Vec<&Call> = calls.iter().filter(|call| call.method == "send_message").collect();
    let accepted: Vec<&&Call> = sends.iter().filter(|call| call.status == Some(0)).collect();
    assert!(accepted.len() > 500, "{}", accepted.len());
    assert_eq!(stats.counts.accepted.values().sum::<u64>(), accepted.len() as u64);
    for call in &accepted {
        let receiver = &call.receivers[0];
        let receipts = devices.remove(&(call.message_token.unwrap(), &*receiver.id)).unwrap_or(0);
        assert!((1..=3).contains(&receipts), "{receipts} receipts of {call:?}");
        assert_eq!(made_at_ms(call.message_token.unwrap()), call.decided_at_ms);

        // The session, worked out again from what was told.
        let mut session = None;
        for one in callbacks.iter().filter(|one| one.user.as_ref() == Some(&receiver.id)) {
            if one.timestamp_ms <= call.decided_at_ms {
                match one.event {
                    Event::Message if one.opens_session => session = Some(one.timestamp_ms),
                    Event::Unsubscribed => session = None,
                    _ => {}
                }
            }
        }
        let in_session = session.is_some_and(|opened_ms| call.decided_at_ms - opened_ms < billing::SESSION_MS);
        assert_eq!(in_session, receiver.billing_status == Some(2), "{call:?}");
    }
    assert!(devices.is_empty(), "receipts of nothing: {devices:?}");
    let welcomes = calls.iter().filter(|call| call.method == "welcome_message" && call.status == Some(0)).count();
    assert_eq!((welcomes as u64, bot.welcomed), (stats.counts.callbacks["conversation_started"].told, welcomes as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_lives_the_same() {
    let told = |lived: &(Vec<Call>, Vec<Callback>, Stats, BotStats)| {
        let of_users = [Event::Message, Event::Subscribed, Event::Unsubscribed, Event::ConversationStarted];
        let mut told: Vec<_> = lived
            .1
            .iter()
            .filter(|one| of_users.contains(&one.event))
            .map(|one| (one.user.clone(), one.event))
            .collect();
        told.sort();
        let sends = lived.0.iter().filter(|call| call.method == "send_message").count();
        (told, sends)
    };
    let (one, other) = tokio::join!(live(5), live(5));
    assert_eq!(told(&one), told(&other));
}
