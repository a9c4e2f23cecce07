//! What becomes of a message on its way to the user's devices. Pure.

use super::dice::{chance, exponential, seconds};
use rand::RngCore;
use std::time::Duration;

/// Viber keeps trying to deliver for so long.
pub const DELIVERY_WINDOW: Duration = Duration::from_secs(14 * 86_400);

/// How messages fare, as shares of 0..1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReceiptRates {
    /// Messages that fail on the device.
    pub failed: f64,
    /// Messages whose first device is away for hours or days. Those away for more than 14 days are never told of.
    pub late: f64,
    /// Messages after which the user looks at the chat.
    pub seen: f64,
}

impl Default for ReceiptRates {
    fn default() -> Self {
        Self { failed: 0.002, late: 0.04, seen: 0.6 }
    }
}

/// The receipts of one message: how long after the send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipts {
    /// The message could not be shown. Then there is nothing else.
    pub failed: Option<Duration>,
    /// One for each device that got it in time.
    pub delivered: Vec<Duration>,
    /// The user looks at the chat, not before the first delivery.
    pub looked: Option<Duration>,
}

/// Draws the receipts of a message to a user with that many devices.
pub fn draw(rng: &mut impl RngCore, rates: &ReceiptRates, devices: u8) -> Receipts {
    if chance(rng, rates.failed) {
        return Receipts { failed: Some(seconds(rng, 1.0, 60.0)), ..Receipts::default() };
    }
    let first = if chance(rng, rates.late) {
        // A phone switched off: hours mostly, weeks now and then.
        seconds(rng, 3_600.0, 6.0 * 3_600.0).saturating_add(exponential(rng, Duration::from_secs(2 * 86_400)))
    } else {
        seconds(rng, 0.3, 4.0)
    };
    let others = (1..devices.max(1)).map(|_| first.saturating_add(exponential(rng, Duration::from_secs(1_200))));
    let mut delivered = vec![first];
    delivered.extend(others);
    delivered.retain(|after| *after < DELIVERY_WINDOW);
    let looks = chance(rng, rates.seen);
    let looked = seconds(rng, 2.0, 60.0).saturating_add(exponential(rng, Duration::from_secs(600)));
    let looked = delivered.first().filter(|_| looks).map(|first| first.saturating_add(looked));
    Receipts { failed: None, delivered, looked: looked.filter(|after| *after < DELIVERY_WINDOW) }
}

#[cfg(test)]
mod tests {
    use super::super::dice::{Dice, Purpose};
    use super::*;

    #[test]
    fn one_per_device_and_nothing_after_14_days() {
        let rates = ReceiptRates { failed: 0.05, late: 0.3, seen: 0.5 };
        let dice = Dice::new(3);
        let all: Vec<Receipts> =
            (0..20_000).map(|n| draw(&mut dice.roll(Purpose::Receipts, 1, n), &rates, 3)).collect();
        let failed = all.iter().filter(|one| one.failed.is_some()).count();
        assert!((800..1_200).contains(&failed), "{failed}");
        assert!(all.iter().filter(|one| one.failed.is_some()).all(|one| one.delivered.is_empty()));
        assert!(all.iter().any(|one| one.delivered.is_empty() && one.failed.is_none()), "some are never delivered");
        assert!(all.iter().any(|one| one.delivered.iter().any(|after| after.as_secs() > 7 * 86_400)));
        for one in &all {
            assert!(one.delivered.len() <= 3);
            assert!(one.delivered.iter().chain(&one.looked).all(|after| *after < DELIVERY_WINDOW));
            assert!(one.looked.is_none_or(|looked| one.delivered.iter().min().is_some_and(|first| *first < looked)));
        }
    }

    #[test]
    fn rates_of_nothing_are_kept() {
        let rates = ReceiptRates { failed: 0.0, late: 0.0, seen: 0.0 };
        for n in 0..1_000 {
            let one = draw(&mut Dice::new(3).roll(Purpose::Receipts, 1, n), &rates, 1);
            assert!(one.failed.is_none() && one.looked.is_none() && one.delivered.len() == 1);
            assert!(one.delivered[0] < Duration::from_secs(5));
        }
    }
}
