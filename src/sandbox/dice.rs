//! Chance that can be repeated: every question has its own place in a seeded stream.

use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

/// What is drawn for. Each purpose has streams of its own, so that one cannot disturb another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Bot = 1,
    User,
    Receipts,
    Fault,
    Traffic,
    Reply,
    Promo,
}

/// A seed, from which the answer to any question follows, whenever and in whatever order it is asked.
#[derive(Debug, Clone)]
pub struct Dice {
    seed: [u8; 32],
}

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed: ChaCha8Rng::seed_from_u64(seed).get_seed() }
    }

    /// The generator for the `n`-th question of `who` about `purpose`. It is good for 128 draws; `who` counts to 2^56.
    pub fn roll(&self, purpose: Purpose, who: u64, n: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::from_seed(self.seed);
        rng.set_stream(((purpose as u64) << 56) | (who & ((1 << 56) - 1)));
        rng.set_word_pos(u128::from(n) << 8);
        rng
    }
}

/// Whether something of this share (0..1) happens. A share that is no such number is the nearest one.
pub fn chance(rng: &mut impl RngCore, share: f64) -> bool {
    rng.random::<f64>() < share
}

/// A wait with this mean, exponentially distributed.
pub fn exponential(rng: &mut impl RngCore, mean: Duration) -> Duration {
    // `random` is below 1, so the logarithm is of a positive number; the result is at most some 37 means.
    let factor = -(1.0 - rng.random::<f64>()).ln();
    Duration::try_from_secs_f64(mean.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

/// Seconds between two bounds.
pub fn seconds(rng: &mut impl RngCore, least: f64, most: f64) -> Duration {
    Duration::try_from_secs_f64(least + rng.random::<f64>() * (most - least)).unwrap_or_default()
}

/// One of them; the default where there is none.
pub fn one_of<T: Copy + Default>(rng: &mut impl RngCore, of: &[T]) -> T {
    of.choose(rng).copied().unwrap_or_default()
}

/// Lower-case hex digits of `bytes` random bytes.
pub fn hex(rng: &mut impl RngCore, bytes: usize) -> String {
    hex::encode(random_bytes(rng, bytes))
}

/// Random bytes.
pub fn random_bytes(rng: &mut impl RngCore, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    rng.fill_bytes(&mut buffer);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_question_has_the_same_answer_and_others_differ() {
        let draw = |seed, purpose, who, n| Dice::new(seed).roll(purpose, who, n).next_u64();
        let first = draw(7, Purpose::Traffic, 3, 4);
        assert_eq!(first, draw(7, Purpose::Traffic, 3, 4));
        for other in [
            draw(8, Purpose::Traffic, 3, 4),
            draw(7, Purpose::Reply, 3, 4),
            draw(7, Purpose::Traffic, 4, 4),
            draw(7, Purpose::Traffic, 3, 5),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn shares_and_waits_keep_to_their_means() {
        let dice = Dice::new(1);
        let n = 20_000;
        let mut hits = 0;
        let mut total = Duration::ZERO;
        for i in 0..n {
            let mut rng = dice.roll(Purpose::Fault, 0, i);
            hits += u32::from(chance(&mut rng, 0.25));
            total += exponential(&mut rng, Duration::from_secs(10));
        }
        assert!((4_700..5_300).contains(&hits), "{hits}");
        let mean = total.as_secs_f64() / n as f64;
        assert!((9.7..10.3).contains(&mean), "{mean}");
        let mut rng = dice.roll(Purpose::Fault, 0, 0);
        assert!(!chance(&mut rng, 0.0) && chance(&mut rng, 1.0) && !chance(&mut rng, f64::NAN));
    }
}
