//! Callbacks on their way: posted, signed, tried again.

use super::bot::{Bot, Webhook};
use super::double::Double;
use super::event::Event;
use super::ledger::{Attempt, Outcome};
use super::schedule::{Job, Next};
use super::until_stop;
use bytes::{Bytes, BytesMut};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Url, redirect};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{oneshot, watch};

/// Where the signature is.
const SIGNATURE: &str = "X-Viber-Content-Signature";
/// Longer answers are not read to their end; a welcome message is a request of 30 KB at most.
const MAX_ANSWER: usize = 64 * 1024;
/// Jobs done before others get a turn on the thread.
const TURN: usize = 256;

/// A callback that is to be acknowledged.
pub(super) struct Delivery {
    pub bot: Arc<Bot>,
    pub event: Event,
    pub user: Arc<str>,
    pub lane: usize,
    /// Its line in the ledger.
    pub line: u64,
    pub body: Bytes,
    pub signature: String,
    /// Attempts that have failed.
    pub failed: u32,
    /// Told of the first attempt.
    pub first: Option<oneshot::Sender<Attempt>>,
}

/// Posts callbacks.
pub(super) struct Courier {
    client: Client,
    sig_in_url: bool,
}

impl Courier {
    /// `answer_within` is real time. With `sig_in_url` the signature is in the URL too, as `sig`.
    pub fn new(answer_within: Duration, sig_in_url: bool) -> Result<Self, reqwest::Error> {
        // Webhooks are near: a proxy of the environment has no part in it.
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(answer_within)
            .user_agent("counterbat-sandbox")
            .build()?;
        Ok(Self { client, sig_in_url })
    }

    /// Posts a body: what came of it, and the answer's body where there was one.
    pub async fn post(&self, url: &Url, body: Bytes, signature: &str) -> (Outcome, Bytes) {
        let mut url = url.clone();
        if self.sig_in_url {
            url.query_pairs_mut().append_pair("sig", signature);
        }
        let request = self.client.post(url).header(CONTENT_TYPE, "application/json").header(SIGNATURE, signature);
        let read = async {
            let mut response = request.body(body).send().await?;
            let mut answer = BytesMut::new();
            while let Some(chunk) = response.chunk().await? {
                answer.extend_from_slice(&chunk);
                if answer.len() > MAX_ANSWER {
                    break;
                }
            }
            Ok::<_, reqwest::Error>((Outcome::HttpStatus(response.status().as_u16()), answer.freeze()))
        };
        read.await.unwrap_or_else(|error| (Outcome::Error(why(&error)), Bytes::new()))
    }
}

fn why(error: &reqwest::Error) -> &'static str {
    match error {
        error if error.is_timeout() => "timeout",
        error if error.is_connect() => "connect",
        _ => "broken",
    }
}

/// Does what is scheduled, when it is due, until told to stop.
pub(super) async fn run_schedule(double: Arc<Double>, mut stop: watch::Receiver<bool>) {
    loop {
        let mut next_us = None;
        for _ in 0..TURN {
            match double.schedule.next(double.time.now_us()) {
                Next::Now(at_us, job) => double.perform(at_us, job),
                Next::At(at_us) => next_us = Some(at_us),
                Next::Nothing => next_us = Some(i64::MAX),
            }
            if next_us.is_some() {
                break;
            }
        }
        let Some(next_us) = next_us else {
            if *stop.borrow() {
                return;
            }
            tokio::task::yield_now().await;
            continue;
        };
        tokio::select! {
            biased;
            () = until_stop(&mut stop) => return,
            () = double.schedule.sooner.notified() => {}
            () = double.time.sleep_until_us(next_us) => {}
        }
    }
}

/// Tries the callbacks of one lane, one after the other, until told to stop. One under way is finished.
pub(super) async fn run_lane(
    double: Arc<Double>,
    mut deliveries: UnboundedReceiver<Box<Delivery>>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let delivery = tokio::select! {
            biased;
            () = until_stop(&mut stop) => return,
            delivery = deliveries.recv() => delivery,
        };
        let Some(delivery) = delivery else { return };
        attempt(&double, delivery).await;
    }
}

async fn attempt(double: &Arc<Double>, mut delivery: Box<Delivery>) {
    let webhook: Option<Arc<Webhook>> = delivery.bot.state().webhook.clone();
    let (outcome, answer) = match &webhook {
        Some(webhook) => double.courier.post(&webhook.url, delivery.body.clone(), &delivery.signature).await,
        None => (Outcome::Error("no_webhook"), Bytes::new()),
    };
    let now_us = double.time.now_us();
    let attempt = Attempt { at_ms: now_us.div_euclid(1000), outcome };
    let acknowledged = outcome.is_acknowledged();
    if acknowledged && delivery.event == Event::ConversationStarted {
        double.welcome(&delivery.bot, &delivery.user, &answer);
    }
    delivery.failed += u32::from(!acknowledged);
    let wait = double.retries.wait(delivery.failed).filter(|_| webhook.is_some());
    double.ledger.attempted(delivery.line, delivery.event, attempt.clone(), wait.is_none());
    if let Some(first) = delivery.first.take() {
        // Whoever asked may have gone.
        let _ = first.send(attempt);
    }
    if let Some(wait) = wait.filter(|_| !acknowledged) {
        let wait_us = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
        double.schedule.put(now_us.saturating_add(wait_us), Job::Deliver(delivery));
    }
}
