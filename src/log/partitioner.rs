//! Which partition an event belongs to: murmur2 of its key, as Kafka's default partitioner has it (spec §2).

use crate::event::Event;

/// Where an event goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    One(u32),
    /// A tick moves the time of every partition.
    Every,
}

/// The route of an event in a log of `partitions` partitions.
pub fn route(event: &Event, partitions: u32) -> Route {
    if event.is_tick() { Route::Every } else { Route::One(partition(event.key().as_bytes(), partitions)) }
}

/// The partition of a key: murmur2 without its sign bit, modulo the number of partitions.
pub fn partition(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions.max(1)
}

/// MurmurHash2 with the seed and the 32-bit mixing that Kafka's clients use.
pub fn murmur2(key: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    for (at, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * at);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Apache Kafka's own tests.
    #[test]
    fn murmur2_is_kafkas() {
        for (key, hash) in [
            ("21", -973932308),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            ("abc", 479470107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn ticks_go_everywhere() {
        let tick = Event { kind: crate::event::TICK_TYPE.into(), ..Event::default() };
        assert_eq!(route(&tick, 4), Route::Every);
        let event = Event { source: "/accounts/bot".into(), subject: Some("u".into()), ..Event::default() };
        assert_eq!(route(&event, 4), Route::One(partition(b"bot/u", 4)));
    }
}
