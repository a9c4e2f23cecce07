//! What calls are answered: members in the order of the documentation.

use super::code::{Code, Refusal};
use super::event::{CHAT_HOST, Event, Location};
use super::ledger::Receiver;
use serde::Serialize;
use std::borrow::Cow;
use std::sync::Arc;

/// An answer, its members in the order of the documentation.
#[derive(Default, Serialize)]
pub(super) struct Answer {
    pub status: u16,
    pub status_message: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_token: Option<u64>,
    #[serde(flatten)]
    pub account: Option<AccountInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<Online>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_hostname: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billing_status: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_types: Option<Vec<Event>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_list: Option<Vec<Failed>>,
    /// For the ledger, as the next.
    #[serde(skip)]
    pub receivers: Vec<Receiver>,
    /// When a message was decided on, sandbox time, ms since the epoch.
    #[serde(skip)]
    pub decided_at_ms: Option<i64>,
}

impl Answer {
    /// The beginning of an answer that says yes.
    pub fn ok() -> Self {
        Self { status_message: "ok".into(), chat_hostname: Some(CHAT_HOST), ..Self::default() }
    }

    /// An answer that refuses.
    pub fn refusal(refusal: Refusal) -> Self {
        Self { status: refusal.status, status_message: refusal.text, chat_hostname: Some(CHAT_HOST), ..Self::default() }
    }

    /// A caller who is not known is told no more than that.
    pub fn stranger(code: Code) -> Self {
        Self { chat_hostname: None, ..Self::refusal(code.into()) }
    }
}

#[derive(Serialize)]
pub(super) struct Failed {
    pub receiver: String,
    #[serde(flatten)]
    pub refusal: Refusal,
}

#[derive(Serialize)]
pub(super) struct AccountInfo {
    pub id: String,
    pub name: Arc<str>,
    pub uri: String,
    pub icon: String,
    pub background: String,
    pub category: &'static str,
    pub subcategory: &'static str,
    pub location: Location,
    pub country: &'static str,
    pub webhook: String,
    pub event_types: Vec<Event>,
    pub subscribers_count: usize,
    pub members: [Member; 1],
}

#[derive(Serialize)]
pub(super) struct Member {
    pub id: String,
    pub name: &'static str,
    pub avatar: &'static str,
    pub role: &'static str,
}

#[derive(Serialize)]
pub(super) struct UserDetails {
    pub id: Arc<str>,
    pub name: String,
    pub avatar: String,
    pub country: String,
    pub language: String,
    pub primary_device_os: &'static str,
    pub api_version: u64,
    pub viber_version: &'static str,
    pub mcc: u16,
    pub mnc: u16,
    pub device_type: &'static str,
}

#[derive(Serialize)]
pub(super) struct Online {
    pub id: String,
    pub online_status: u8,
    pub online_status_message: &'static str,
    pub last_online: i64,
}
