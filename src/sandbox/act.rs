//! What users and owners can do, and why it may not be done.

use super::event::Content;
use serde::Serialize;

/// What a user does.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Opens the conversation; with a context where it was by a deep link.
    Start { context: Option<String> },
    /// Turns messages on.
    Subscribe,
    /// Turns messages off.
    Unsubscribe,
    /// Sends a message; it subscribes, too.
    Write(Content),
    /// Presses one of the buttons in view, or sends this where there are none.
    Press { pick: usize, or: Content },
    /// Looks at the chat.
    See,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Acted {
    pub message_token: u64,
    /// Sandbox time, ms since the epoch: the callback's `timestamp`.
    pub timestamp: i64,
    /// The message opened a session.
    pub opened_session: bool,
    /// There is a callback: the bot has a webhook that asked for it, and no fault has lost it.
    pub told: bool,
}

/// Why nothing was done. Whoever asked named the wrong one, or what is so already; a retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActError {
    #[error("there is no bot named `{0}`")]
    NoBot(String),
    #[error("bot `{bot}` has no user `{user}`")]
    NoUser { bot: String, user: String },
    #[error("user `{0}` is subscribed already")]
    Subscribed(String),
    #[error("user `{0}` is not subscribed")]
    NotSubscribed(String),
    #[error("user `{0}` has no unread message")]
    NothingToSee(String),
}

/// Why a bot cannot be made. The caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BotError {
    #[error("there is a bot named `{0}` already")]
    NameTaken(String),
    #[error("a bot's name has 1 to 75 characters")]
    BadName,
    #[error("the token of bot `{0}` is that of another bot")]
    TokenTaken(String),
    #[error("the token of bot `{0}` is empty, or has characters that no HTTP header takes")]
    BadToken(String),
}
