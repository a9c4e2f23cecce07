//! A seeded history of bot traffic: the same seed gives the same bytes, anywhere.

use counterbat::event::time::format_ms;
use std::io::Write;

/// A small generator of random numbers whose sequence will never change (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True in `percent` of cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Any order of the items.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// What to generate.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub events: usize,
    pub users: u64,
    pub start_ms: i64,
    pub span_ms: i64,
}

pub const HOUR_MS: i64 = 3_600_000;
pub const DAY_MS: i64 = 24 * HOUR_MS;
/// 2026-03-01T00:00:00Z
pub const MARCH_MS: i64 = 1_772_323_200_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Message,
    /// With the billing status the bot was told.
    Send(i32),
    Broadcast(i32),
    Refused,
    Delivered,
    Seen,
    Failed,
    Unsubscribed,
    Subscribed,
    Started,
}

/// One event, not yet written out. `arrival_ms` is its `time`.
#[derive(Debug, Clone, Copy)]
pub struct Generated {
    pub arrival_ms: i64,
    pub t_ms: i64,
    pub user: u64,
    pub token: u64,
    pub what: What,
}

/// A history of exactly `plan.events` events in order of arrival, with some repeats.
pub fn history(plan: &Plan) -> Vec<Generated> {
    let mut random = Random(plan.seed);
    let mut events = Vec::with_capacity(plan.events + 32);
    let mut serial = 0;
    while events.len() < plan.events {
        let user = random.below(plan.users);
        let t_ms = plan.start_ms + random.below(plan.span_ms as u64) as i64;
        let mut chat = Chat { random: &mut random, events: &mut events, serial: &mut serial, user };
        match chat.random.below(100) {
            0..70 => chat.conversation(t_ms),
            70..92 => chat.push_message(t_ms),
            92..96 => chat.add(t_ms, What::Started),
            96..98 => chat.add(t_ms, What::Subscribed),
            _ => chat.add(t_ms, What::Unsubscribed),
        }
    }
    events.truncate(plan.events);
    events.sort_by_key(|event| (event.arrival_ms, event.token, event.user));
    events
}

struct Chat<'a> {
    random: &'a mut Random,
    events: &'a mut Vec<Generated>,
    serial: &'a mut u64,
    user: u64,
}

impl Chat<'_> {
    fn token(&mut self) -> u64 {
        *self.serial += 1;
        // Few tokens need the 64th bit; all must come through.
        let top = if (*self.serial).is_multiple_of(97) { 1 << 63 } else { 0 };
        top | (6_150_000_000_000_000_000 + *self.serial * 1_048_583 + self.random.below(1_000_000))
    }

    fn add(&mut self, t_ms: i64, what: What) {
        let token = self.token();
        self.add_with(t_ms, token, what);
    }

    fn add_with(&mut self, t_ms: i64, token: u64, what: What) {
        let arrival_ms = t_ms + self.random.below(400) as i64;
        let event = Generated { arrival_ms, t_ms, user: self.user, token, what };
        self.events.push(event);
        if self.random.chance(2) {
            let later = 10_000 + self.random.below(600_000) as i64;
            self.events.push(Generated { arrival_ms: arrival_ms + later, ..event });
        }
    }

    fn conversation(&mut self, mut t_ms: i64) {
        for _ in 0..=self.random.below(3) {
            self.add(t_ms, What::Message);
            for _ in 0..=self.random.below(2) {
                t_ms += 500 + self.random.below(60_000) as i64;
                let billing = if self.random.chance(1) { 5 } else { 1 + self.random.below(2) as i32 };
                self.send(t_ms, What::Send(billing));
            }
            t_ms += self.random.below(5 * HOUR_MS as u64) as i64;
        }
    }

    fn push_message(&mut self, t_ms: i64) {
        let billing = [5, 5, 5, 3, 4, 1][self.random.below(6) as usize];
        match self.random.below(10) {
            0 => self.add(t_ms, What::Refused),
            1 | 2 => self.send(t_ms, What::Broadcast(billing)),
            _ => self.send(t_ms, What::Send(billing)),
        }
    }

    fn send(&mut self, t_ms: i64, what: What) {
        let token = self.token();
        self.add_with(t_ms, token, what);
        if self.random.chance(3) {
            return self.add_with(t_ms + 1500, token, What::Failed);
        }
        let slow = if self.random.chance(5) { 2 * DAY_MS as u64 } else { 5000 };
        let delivered = t_ms + 300 + self.random.below(slow) as i64;
        self.add_with(delivered, token, What::Delivered);
        if self.random.chance(50) {
            let seen = delivered + 1000 + self.random.below(3 * HOUR_MS as u64) as i64;
            self.add_with(seen, token, What::Seen);
        }
    }
}

/// The Viber user id of a user: shaped like the real ones, `/` and `=` included now and then.
pub fn user_id(user: u64) -> String {
    let mut random = Random(user);
    let (a, b) = (random.next(), random.next());
    format!("{a:016x}{}{:07x}==", if b.is_multiple_of(8) { '/' } else { 'x' }, b >> 36)
}

/// The account of a user of this history.
pub fn account(user: u64) -> &'static str {
    if user % 5 < 4 { "bot1" } else { "bot2" }
}

const COUNTRIES: [&str; 6] = ["UA", "PL", "DE", "GE", "RO", "BY"];

impl Generated {
    fn kind(&self) -> &'static str {
        match self.what {
            What::Message => "callback.message",
            What::Send(_) | What::Refused => "api.send_message",
            What::Broadcast(_) => "api.broadcast_message",
            What::Delivered => "callback.delivered",
            What::Seen => "callback.seen",
            What::Failed => "callback.failed",
            What::Unsubscribed => "callback.unsubscribed",
            What::Subscribed => "callback.subscribed",
            What::Started => "callback.conversation_started",
        }
    }

    /// Random hexadecimal text that no compressor makes small, the same for the same event.
    fn text(&self, length: usize) -> String {
        let mut random = Random(self.token);
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            text.push_str(&format!("{:016x}", random.next()));
        }
        text.truncate(length);
        text
    }

    /// The body of the callback, or the recorded call.
    pub fn data(&self) -> String {
        let Generated { t_ms, token, user, .. } = *self;
        let id = user_id(user);
        let profile = format!(
            r#"{{"id":"{id}","name":"{}","avatar":"https://media.example/{}.jpg","language":"uk","country":"{}","api_version":10}}"#,
            self.text(6),
            self.text(24),
            COUNTRIES[(user % 6) as usize],
        );
        let head = |event: &str| {
            format!(
                r#"{{"event":"{event}","timestamp":{t_ms},"chat_hostname":"SN-CALLBACK-02_","message_token":{token}"#
            )
        };
        match self.what {
            What::Message => {
                let text = self.text(20 + (token % 80) as usize);
                let message = format!(r#"{{"type":"text","text":"{text}","tracking_data":"order-{user}"}}"#);
                format!(r#"{},"sender":{profile},"message":{message},"silent":false}}"#, head("message"))
            }
            What::Subscribed => format!(r#"{},"user":{profile}}}"#, head("subscribed")),
            What::Started => {
                format!(r#"{},"type":"open","user":{profile},"subscribed":false}}"#, head("conversation_started"))
            }
            What::Unsubscribed => format!(r#"{},"user_id":"{id}"}}"#, head("unsubscribed")),
            What::Delivered => format!(r#"{},"user_id":"{id}"}}"#, head("delivered")),
            What::Seen => format!(r#"{},"user_id":"{id}"}}"#, head("seen")),
            What::Failed => format!(r#"{},"user_id":"{id}","desc":"no such device"}}"#, head("failed")),
            What::Send(billing) => {
                let request = format!(r#""receiver":"{id}",{}"#, self.request());
                let response = self.response(billing);
                format!(r#"{{"request":{{{request}}},"response":{response},"http_status":200}}"#)
            }
            What::Broadcast(billing) => {
                let (request, response) = (self.request(), self.response(billing));
                format!(
                    r#"{{"request":{{{request}}},"response":{response},"http_status":200,"receiver":"{id}","receiver_status":0}}"#
                )
            }
            What::Refused => {
                let response = r#"{"status":6,"status_message":"notSubscribed","chat_hostname":"SN-CHAT-05_"}"#;
                let request = format!(r#""receiver":"{id}",{}"#, self.request());
                format!(r#"{{"request":{{{request}}},"response":{response},"http_status":200}}"#)
            }
        }
    }

    fn request(&self) -> String {
        let kind = ["text", "picture", "rich_media"][(self.token % 3) as usize];
        let text = self.text(20 + (self.token % 60) as usize);
        let tracking = self.token % 1000;
        format!(
            r#""min_api_version":1,"type":"{kind}","sender":{{"name":"Shop"}},"tracking_data":"t{tracking}","text":"{text}""#
        )
    }

    fn response(&self, billing: i32) -> String {
        let token = self.token;
        format!(
            r#"{{"status":0,"status_message":"ok","message_token":{token},"chat_hostname":"SN-CHAT-05_","billing_status":{billing}}}"#
        )
    }

    /// Writes the event as one line of an import file.
    pub fn write_line(&self, out: &mut impl Write) -> std::io::Result<()> {
        let (kind, token) = (self.kind(), self.token);
        let (_, name) = kind.split_once('.').unwrap_or(("", kind));
        let user = user_id(self.user);
        let (account, time, data) = (account(self.user), format_ms(self.arrival_ms), self.data());
        writeln!(
            out,
            r#"{{"specversion":"1.0","id":"{name}/{token}/{user}","source":"/accounts/{account}","type":"com.viber.{kind}","subject":"{user}","time":"{time}","datacontenttype":"application/json","data":{data}}}"#
        )
    }
}

/// A tick for every partition, as a line.
pub fn tick_line(time_ms: i64) -> String {
    let time = format_ms(time_ms);
    format!(
        r#"{{"specversion":"1.0","id":"tick/{time}","source":"/counterbat","type":"counterbat.clock.ticked","time":"{time}","datacontenttype":"application/json","data":{{}}}}"#
    ) + "\n"
}

/// All events as an import file.
pub fn lines(events: &[Generated]) -> Vec<u8> {
    let mut out = Vec::with_capacity(events.len() * 600);
    for event in events {
        event.write_line(&mut out).expect("a Vec takes every write");
    }
    out
}
