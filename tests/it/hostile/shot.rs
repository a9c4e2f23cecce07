//! Hostile requests, drawn one by one.

use super::{CLIENTS, MIB};
use crate::generate::Random;
use crate::harness::{TOKEN, message_body, sign};
use hmac::{Hmac, Mac};

/// What must come of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// The token is right: relayed, once.
    Relayed,
    /// The signature of this body is right: answered 200 and recorded, once.
    Recorded(Vec<u8>),
    /// Token or signature are right, all else is odd: taken whole or not at all.
    Either,
    /// Answered with this HTTP status, and neither relayed nor recorded.
    Refused(u16),
    /// `/pa` refuses with HTTP 200 and this `status`.
    Told(u64),
    /// Whatever the answer: neither relayed nor recorded.
    Nothing,
}

/// A request, as its bytes.
pub struct Shot {
    pub bytes: Vec<u8>,
    pub wanted: Wanted,
    /// Whether the client sends no more after that, so that the server need not wait.
    pub is_torn: bool,
}

/// Where the shots of one client come from.
pub struct Gunner {
    pub random: Random,
    /// Names the request at the Viber behind the gateway.
    pub mark: u64,
}

/// The `n`-th of several.
fn pick<'a, T: ?Sized>(random: &mut Random, from: &[&'a T]) -> &'a T {
    from[random.below(from.len() as u64) as usize]
}

fn sign_bytes(token: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(token.as_bytes()).unwrap();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// A request of HTTP/1.1 with this body, announced by its length.
fn http1(line: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{line}\r\nHost: gateway\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    [head.as_bytes(), b"\r\n", body].concat()
}

const SEND: &str = "POST /pa/send_message HTTP/1.1";
const HOOK: &str = "POST /webhooks/bot1 HTTP/1.1";
const AUTH: &str = "X-Viber-Auth-Token";
const SIGNATURE: &str = "X-Viber-Content-Signature";

impl Gunner {
    /// The next one.
    pub fn shot(&mut self) -> Shot {
        self.mark += CLIENTS;
        match self.random.below(100) {
            0..22 => self.signed_body(),
            22..40 => self.call_body(),
            40..55 => self.near_signature(),
            55..70 => self.near_token(),
            70..73 => self.too_large(),
            73..81 => self.odd_path(),
            81..93 => self.odd_head(),
            _ => self.garbage(),
        }
    }

    fn whole(bytes: Vec<u8>, wanted: Wanted) -> Shot {
        Shot { bytes, wanted, is_torn: false }
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.below(end as u64) as usize
    }

    /// A value of a type that nobody expects.
    fn odd_value(&mut self) -> String {
        let values = [
            "null",
            "true",
            "-1",
            "0",
            "1e999",
            "-0.0",
            "18446744073709551615",
            "18446744073709551616",
            "1.5",
            "-9223372036854775809",
            "\"\"",
            "[]",
            "{}",
            "[[[]]]",
            "\"\\u0000\"",
            "\"\\ud83d\\ude00\"",
            "\"\u{202e}x\"",
            "\"9\"",
            "\"-9\"",
            "[null,{\"id\":[]}]",
            "{\"id\":{\"id\":null}}",
            "\"../../../etc/passwd\"",
            "\"'; --\"",
        ];
        match self.below(values.len() + 1) {
            n if n < values.len() => values[n].to_owned(),
            _ => format!("\"{}\"", "w".repeat(self.below(20_000))),
        }
    }

    /// An object whose members are those of a good one, some of them of a wrong type, some twice, some gone.
    fn odd_object(&mut self, members: &[(&str, &str)]) -> String {
        let mut written = Vec::new();
        for (name, value) in members {
            let value = if self.random.chance(35) { self.odd_value() } else { (*value).to_owned() };
            let times = [1, 1, 1, 1, 1, 1, 0, 2][self.below(8)];
            (0..times).for_each(|_| written.push(format!("\"{name}\":{value}")));
        }
        self.random.shuffle(&mut written);
        format!("{{{}}}", written.join(","))
    }

    fn callback(&mut self) -> String {
        let event = pick(
            &mut self.random,
            &[
                "message",
                "delivered",
                "seen",
                "failed",
                "subscribed",
                "unsubscribed",
                "conversation_started",
                "webhook",
                "x",
            ],
        );
        let now_ms = chrono::Utc::now().timestamp_millis().to_string();
        let (event, token) = (format!("\"{event}\""), (self.mark + (1 << 40)).to_string());
        self.odd_object(&[
            ("event", &event),
            ("timestamp", &now_ms),
            ("message_token", &token),
            ("sender", r#"{"id":"u==","name":"O","country":"UA"}"#),
            ("user", r#"{"id":"u==","country":"UA"}"#),
            ("user_id", "\"u==\""),
            ("message", r#"{"type":"text","text":"hi"}"#),
        ])
    }

    fn call(&mut self) -> String {
        self.odd_object(&[
            ("receiver", "\"u==\""),
            ("type", "\"text\""),
            ("text", "\"hi\""),
            ("tracking_data", "\"t\""),
            ("sender", r#"{"name":"Bot"}"#),
            ("keyboard", r#"{"Type":"keyboard","Buttons":[]}"#),
            ("min_api_version", "1"),
        ])
    }

    /// A body that is odd in one way or another, made of a good one.
    fn odd_body(&mut self, good: String) -> Vec<u8> {
        let deep = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n)).into_bytes();
        let mut bytes = good.into_bytes();
        match self.below(14) {
            0 => bytes.truncate(self.below(bytes.len() + 1)),
            1 => {
                let depth = [100, 127, 128, 129, 5_000, 100_000][self.below(6)];
                return deep("[", "]", depth);
            }
            2 => {
                let depth = [100, 127, 128, 5_000, 50_000][self.below(5)];
                return deep("{\"event\":", "}", depth);
            }
            3 => {
                for _ in 0..=self.below(4) {
                    let place = self.below(bytes.len() + 1);
                    bytes.insert(place, 0x80 | self.random.next() as u8);
                }
            }
            4 => bytes = (0..self.below(2_000)).map(|_| self.random.next() as u8).collect(),
            5 => bytes.clear(),
            6 => bytes = b" \t\r\n".repeat(self.below(50)),
            7 => bytes.splice(0..0, *b"\xef\xbb\xbf").for_each(drop),
            8 => {
                bytes = format!("{{\"message_token\":{},\"event\":\"message\"}}", "1".repeat(self.below(5_000)))
                    .into_bytes()
            }
            9 => bytes.extend(b"\0\0\0"),
            10 => bytes = format!("[{}]", String::from_utf8_lossy(&bytes)).into_bytes(),
            11 if self.random.chance(10) => bytes = format!("{{\"x\":\"{}\"}}", "y".repeat(MIB - 100)).into_bytes(),
            _ => {}
        }
        bytes
    }

    fn signed_body(&mut self) -> Shot {
        let good = self.callback();
        let body = self.odd_body(good);
        let signature = sign_bytes(TOKEN, &body);
        let bytes = match self.below(3) {
            0 => http1(&format!("POST /webhooks/bot1?sig={signature} HTTP/1.1"), &[], &body),
            1 => http1(HOOK, &[(SIGNATURE, &signature), ("Content-Type", "text/\u{fc}")], &body),
            _ => http1(HOOK, &[(SIGNATURE, &signature)], &body),
        };
        Self::whole(bytes, Wanted::Recorded(body))
    }

    fn call_body(&mut self) -> Shot {
        let good = self.call();
        let body = self.odd_body(good);
        let methods = ["send_message", "get_account_info", "get_user_details", "get_online", "post", "no_such_method"];
        let line = format!("POST /pa/{} HTTP/1.1", methods[self.below(methods.len())]);
        Self::whole(http1(&line, &[(AUTH, TOKEN), ("X-Mark", &self.mark.to_string())], &body), Wanted::Relayed)
    }

    fn near_signature(&mut self) -> Shot {
        let body = message_body("near==", self.mark);
        let right = sign(TOKEN, &body);
        let off = |at: usize| {
            let mut wrong = right.clone().into_bytes();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            String::from_utf8(wrong).unwrap()
        };
        let place = self.below(64);
        let (header, query, wanted): (Vec<String>, String, Wanted) = match self.below(20) {
            0 => (vec![off(0)], String::new(), Wanted::Refused(403)),
            1 => (vec![off(63)], String::new(), Wanted::Refused(403)),
            2 => (vec![off(place)], String::new(), Wanted::Refused(403)),
            3 => (vec![right[..place].to_owned()], String::new(), Wanted::Refused(403)),
            4 => (vec![format!("{right}{right}")], String::new(), Wanted::Refused(403)),
            5 => (vec![format!("{right}00")], String::new(), Wanted::Refused(403)),
            6 => (vec![format!("sha256={right}")], String::new(), Wanted::Refused(403)),
            7 => (vec![format!("{} {}", &right[..32], &right[32..])], String::new(), Wanted::Refused(403)),
            8 => (vec![sign(TOKEN, &format!("{body}\n"))], String::new(), Wanted::Refused(403)),
            9 => (vec![sign(&TOKEN.to_uppercase(), &body)], String::new(), Wanted::Refused(403)),
            10 => (vec![sign(&format!("two-{TOKEN}"), &body)], String::new(), Wanted::Refused(403)),
            11 => (vec![sign("", &body)], String::new(), Wanted::Refused(403)),
            12 => (vec![], String::new(), Wanted::Refused(403)),
            13 => (vec![], format!("?sig={}", off(place)), Wanted::Refused(403)),
            14 => (vec![], format!("?sig={}&sig={right}", off(place)), Wanted::Refused(403)),
            15 => (vec![off(place)], format!("?sig={right}"), Wanted::Refused(403)),
            16 => (vec![String::new()], format!("?sig={right}"), Wanted::Refused(403)),
            // The same bytes in another spelling: whoever wrote it knows the token.
            17 => (vec![right.to_uppercase()], String::new(), Wanted::Either),
            18 => (vec![right.clone(), off(place)], String::new(), Wanted::Either),
            _ => (vec![], format!("?tee=1&sig=%20{right}&sig=x"), Wanted::Either),
        };
        let headers: Vec<(&str, &str)> = header.iter().map(|value| (SIGNATURE, value.as_str())).collect();
        let account = if query.is_empty() && self.random.chance(10) { "bot2" } else { "bot1" };
        // Of another bot it is the signature of nobody, but for the one that is that bot's.
        let wanted = if account == "bot1" { wanted } else { Wanted::Either };
        let line = format!("POST /webhooks/{account}{query} HTTP/1.1");
        Self::whole(http1(&line, &headers, body.as_bytes()), wanted)
    }

    fn near_token(&mut self) -> Shot {
        let place = self.below(TOKEN.len());
        let mut off = TOKEN.to_owned().into_bytes();
        off[place] = if off[place] == b'0' { b'1' } else { b'0' };
        let off = String::from_utf8(off).unwrap();
        let in_body = |token: &str| format!(r#"{{"auth_token":{token},"receiver":"u==","type":"text","text":"x"}}"#);
        let quoted = |token: &str| in_body(&format!("\"{token}\""));
        let plain = r#"{"receiver":"u=="}"#.to_owned();
        let (tokens, body, wanted): (Vec<String>, String, Wanted) = match self.below(18) {
            0 => (vec![off], plain, Wanted::Told(2)),
            1 => (vec![TOKEN.to_uppercase()], plain, Wanted::Told(2)),
            2 => (vec![TOKEN[..place].to_owned()], plain, Wanted::Told(2)),
            3 => (vec![format!("{TOKEN}0")], plain, Wanted::Told(2)),
            4 => (vec![format!("Bearer {TOKEN}")], plain, Wanted::Told(2)),
            5 => (vec![format!("\"{TOKEN}\"")], plain, Wanted::Told(2)),
            6 => (vec![format!("{TOKEN},{TOKEN}")], plain, Wanted::Told(2)),
            7 => (vec![String::new()], plain, Wanted::Told(2)),
            8 => (vec![], plain, Wanted::Told(2)),
            9 => (vec![], quoted(&off), Wanted::Told(2)),
            10 => (vec![TOKEN.to_owned()], quoted(&off), Wanted::Told(2)),
            11 => (vec![off], quoted(TOKEN), Wanted::Told(2)),
            12 => (vec![TOKEN.to_owned()], in_body(&self.odd_type()), Wanted::Told(2)),
            13 => (vec![], in_body(&format!("[\"{TOKEN}\"]")), Wanted::Told(2)),
            14 => (vec![format!("two-{TOKEN}")], quoted(TOKEN), Wanted::Told(2)),
            15 => (vec![], quoted(TOKEN), Wanted::Relayed),
            16 => (vec![TOKEN.to_owned()], quoted(TOKEN), Wanted::Relayed),
            _ => (vec![TOKEN.to_owned(), off], plain, Wanted::Either),
        };
        let mark = self.mark.to_string();
        let mut headers: Vec<(&str, &str)> = tokens.iter().map(|token| (AUTH, token.as_str())).collect();
        headers.push(("X-Mark", &mark));
        Self::whole(http1(SEND, &headers, body.as_bytes()), wanted)
    }

    /// A value that is no token and not null.
    fn odd_type(&mut self) -> String {
        ["1", "true", "[]", "{}", "\"\"", "1.5"][self.below(6)].to_owned()
    }

    fn too_large(&mut self) -> Shot {
        let size = MIB + 1 + self.below(MIB);
        let body = vec![b' '; size];
        let signature = sign_bytes(TOKEN, &body);
        let (line, auth, wanted) = match self.below(2) {
            0 => (SEND, format!("{AUTH}: {TOKEN}"), Wanted::Told(3)),
            _ => (HOOK, format!("{SIGNATURE}: {signature}"), Wanted::Refused(413)),
        };
        let head = format!("{line}\r\nHost: gateway\r\nConnection: close\r\nX-Mark: {}\r\n{auth}\r\n", self.mark);
        let bytes = if self.random.chance(50) {
            // The server need not read what it is told is too much, so it is not sent.
            format!("{head}Content-Length: {size}\r\n\r\n").into_bytes()
        } else {
            let chunk = MIB + 1;
            [format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk:x}\r\n").as_bytes(), &body[..chunk]].concat()
        };
        Self::whole(bytes, wanted)
    }

    fn odd_path(&mut self) -> Shot {
        let (body, mark) = (message_body("path==", self.mark), self.mark.to_string());
        let signature = sign(TOKEN, &body);
        let path = pick(
            &mut self.random,
            &[
                "//pa/send_message",
                "//pa//send_message",
                "/pa//send_message",
                "/pa/send_message/",
                "/pa/",
                "/pa",
                "/",
                "/pa/send%5fmessage",
                "/pa/%2e%2e/pa/send_message",
                "/pa/../pa/send_message",
                "/pa/..%2fsend_message",
                "/PA/send_message",
                "/pa/SEND_MESSAGE",
                "/pa/send_message%00",
                "/pa/send message",
                "/pa/%ff%fe",
                "/pa/%",
                "http://gateway/pa/send_message",
                "http://other/webhooks/bot1",
                "http://a:b@c/pa/send_message",
                "*",
                "gateway:80",
                "/webhooks/bot1/",
                "/webhooks//bot1",
                "/webhooks/%62ot1",
                "/webhooks/bot1%00",
                "/webhooks/..%2f",
                "/webhooks/",
                "/webhooks/bot1?",
                "/webhooks/bot1?sig",
                "/webhooks/bot1#x",
                "/webhooks/%2e%2e/metrics",
                "/metrics",
                "/api/v1/sql",
                "/pa/send_message?a=b&%00=%ff",
                "/webhooks/bot1;x=1",
                "\\webhooks\\bot1",
                "",
            ],
        );
        let method = pick(
            &mut self.random,
            &[
                "POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "post",
                "F\u{0}O",
            ],
        );
        let path =
            if self.random.chance(10) { format!("/pa/{}", "a".repeat(self.below(100_000))) } else { path.to_owned() };
        let headers = [(AUTH, TOKEN), (SIGNATURE, signature.as_str()), ("X-Mark", mark.as_str())];
        Self::whole(http1(&format!("{method} {path} HTTP/1.1"), &headers, body.as_bytes()), Wanted::Either)
    }

    fn odd_head(&mut self) -> Shot {
        let body = message_body("head==", self.mark);
        let (n, signature) = (body.len(), sign(TOKEN, &body));
        let chunked = format!("{n:x}\r\n{body}\r\n0\r\n\r\n");
        let to_bot = self.random.chance(50);
        let line = if to_bot { HOOK } else { SEND };
        let long = "l".repeat(self.below(200_000));
        let many = "a: b\r\n".repeat(90 + self.below(40));
        // What follows the host, up to the end of the request.
        let rest = match self.below(20) {
            0 => format!("Content-Length: {n}\r\nContent-Length: {n}\r\n\r\n{body}"),
            1 => format!("Content-Length: {n}\r\nContent-Length: {}\r\n\r\n{body}", n + 1),
            2 => format!("Content-Length: {n}, {n}\r\n\r\n{body}"),
            3 => format!("Content-Length: +{n}\r\n\r\n{body}"),
            4 => format!("Content-Length: -1\r\n\r\n{body}"),
            5 => format!("Content-Length: 99999999999999999999999\r\n\r\n{body}"),
            6 => format!("Transfer-Encoding: chunked\r\n\r\n{chunked}"),
            7 => format!("Transfer-Encoding: chunked\r\nContent-Length: {n}\r\n\r\n{chunked}"),
            8 => format!("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
            9 => format!("Transfer-Encoding: identity, chunked\r\n\r\n{chunked}"),
            10 => format!("Transfer-Encoding: xchunked\r\n\r\n{chunked}"),
            11 => format!("Transfer-Encoding : chunked\r\n\r\n{chunked}"),
            12 => format!("Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{body}\r\n0\r\n\r\n"),
            13 => format!("X-Long: {long}\r\nContent-Length: {n}\r\n\r\n{body}"),
            14 => format!("{many}Content-Length: {n}\r\n\r\n{body}"),
            15 => format!("X-Nul: a\0b\r\nContent-Length: {n}\r\n\r\n{body}"),
            16 => format!("X-Fold: a\r\n b\r\nContent-Length: {n}\r\n\r\n{body}"),
            17 => format!("Upgrade: h2c\r\nExpect: 100-continue\r\nContent-Length: {n}\r\n\r\n{body}"),
            18 => format!("Content-Encoding: gzip\r\nX-\u{fc}: x\r\nContent-Length: {n}\r\n\r\n{body}"),
            _ => format!("Content-Length: {}\r\n\r\n{body}", n / 2),
        };
        let host =
            pick(&mut self.random, &["Host: gateway\r\n", "Host: gateway\r\nHost: other\r\n", "", "Host: \0\r\n"]);
        let version = if self.random.chance(10) { "HTTP/1.0" } else { "HTTP/1.1" };
        let line = line.replace("HTTP/1.1", version);
        let auth = format!("{AUTH}: {TOKEN}\r\n{SIGNATURE}: {signature}\r\nX-Mark: {}\r\n", self.mark);
        let text = format!("{line}\r\n{host}Connection: close\r\n{auth}{rest}");
        Self::whole(text.into_bytes(), Wanted::Either)
    }

    /// What is no request, or half of one.
    fn garbage(&mut self) -> Shot {
        let whole = http1(SEND, &[(AUTH, TOKEN)], message_body("half==", self.mark).as_bytes());
        let noise = |random: &mut Random, n| (0..n).map(|_| random.next() as u8).collect::<Vec<u8>>();
        let size = self.below(5_000);
        let bytes = match self.below(7) {
            0 => noise(&mut self.random, size),
            1 => [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &noise(&mut self.random, size)].concat(),
            2 => [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &noise(&mut self.random, 500)].concat(),
            3 => vec![b'A'; self.below(2 * MIB)],
            4 => b"\r\n".repeat(size),
            // All but the end of it, at least one byte short.
            _ => whole[..self.below(whole.len())].to_vec(),
        };
        Shot { bytes, wanted: Wanted::Nothing, is_torn: true }
    }
}
