//! Recorded callbacks sent to their bot again.

use super::harness::until;
use super::viber::{Mood, Viber, seed};

#[test]
fn what_a_bot_missed_is_sent_again() {
    let viber = Viber::start(seed(), 3);
    let home = viber.home(&[]);
    let server = home.serve();
    let bot = viber.bot();
    bot.register(&server);
    let mut written = Vec::new();
    for user in &viber.users {
        let token = viber.write(user).message_token;
        until("the message at the bot", || bot.got(), |got| got.contains(&token));
        written.push(token);
    }
    let before = bot.got().len();

    let now = chrono::Utc::now().to_rfc3339();
    let args = ["redeliver", "--account", "bot1", "--from", "2020-01-01", "--to", &now];
    let told: serde_json::Value = serde_json::from_str(&home.ok(&args)).unwrap();
    assert_eq!(told["taken"], 3, "{told}");
    // In the order in which they came, and without the validation of the webhook.
    assert_eq!(bot.got()[before..], written);
    let events = server.number("select count(*) from events");

    bot.mood(Mood::Status(500));
    let error = home.fails_with(&args, b"");
    assert!(error.contains("3 callbacks not taken"), "{error}");
    let none = ["redeliver", "--account", "bot1", "--from", "2020-01-01", "--to", "2020-01-02"];
    assert!(home.ok(&none).contains("\"total\":0"));
    for (account, wanted) in [("bot2", "no webhook"), ("bot3", "no account")] {
        let error = home.fails_with(&["redeliver", "--account", account, "--from", "2020-01-01", "--to", &now], b"");
        assert!(error.contains(wanted), "{error}");
    }
    let future = ["redeliver", "--account", "bot1", "--from", "2020-01-01", "--to", "2100-01-01"];
    let error = home.fails_with(&future, b"");
    assert!(error.contains("2100-01-01") && error.contains("is in the future"), "{error}");
    assert_eq!(server.number("select count(*) from events"), events, "a redelivery is recorded");

    // Without a server it works on the data directory.
    bot.mood(Mood::Status(200));
    assert!(server.stop().success());
    assert!(home.ok(&args).contains("\"taken\":3"));
    assert!(home.fails_with(&future, b"").contains("is in the future"));
}
