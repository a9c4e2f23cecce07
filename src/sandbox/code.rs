//! Viber's error codes, and a refusal.

use serde::Serialize;
use std::borrow::Cow;

/// A code of Viber's, and the text it usually comes with. Programs compare codes, never texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u16, pub &'static str);

impl Code {
    pub const INVALID_URL: Code = Code(1, "invalidUrl");
    pub const INVALID_AUTH_TOKEN: Code = Code(2, "invalidAuthToken");
    pub const MISSING_AUTH_TOKEN: Code = Code(2, "missing_auth_token");
    pub const BAD_DATA: Code = Code(3, "badData");
    pub const MISSING_DATA: Code = Code(4, "missingData");
    pub const RECEIVER_NOT_REGISTERED: Code = Code(5, "Not found");
    pub const RECEIVER_NOT_SUBSCRIBED: Code = Code(6, "notSubscribed");
    pub const WEBHOOK_NOT_SET: Code = Code(10, "webhookNotSet");
    pub const TOO_MANY_REQUESTS: Code = Code(12, "Too many requests");
    pub const API_VERSION_NOT_SUPPORTED: Code = Code(13, "apiVersionNotSupported");
    pub const INCOMPATIBLE_WITH_VERSION: Code = Code(14, "incompatibleWithVersion");
    pub const NOT_AUTHORIZED: Code = Code(15, "publicAccountNotAuthorized");
    pub const FREE_MESSAGES_EXCEEDED: Code = Code(23, "freeMessagesExceeded");
    pub const NO_BALANCE: Code = Code(24, "noBalance");

    /// A refusal with more than the usual text.
    pub fn because(self, why: impl AsRef<str>) -> Refusal {
        Refusal { status: self.0, text: format!("{}: {}", self.1, why.as_ref()).into() }
    }
}

/// A request refused: `status` and `status_message` of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub status: u16,
    #[serde(rename = "status_message")]
    pub text: Cow<'static, str>,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Refusal { status: code.0, text: code.1.into() }
    }
}
