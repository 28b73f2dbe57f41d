//! A small deterministic random generator (SplitMix64): the same seed gives the same test on every machine.

/// See the module.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that depends on `seed` alone.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// A generator of its own for the actor `name`, so that one actor's draws do not move another's.
    pub fn split(&self, name: &str) -> Rng {
        let hash = blake3::hash(&[&self.0.to_le_bytes(), name.as_bytes()].concat());
        Rng(u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap()))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end` (at least 1).
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end.max(1)
    }

    /// A number in `start..end`.
    pub fn between(&mut self, start: u64, end: u64) -> u64 {
        start + self.below(end - start)
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `items`, which are not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// `len` random bytes: half of the time compressible.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let alphabet = if self.one_in(2) { 4 } else { 256 };
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend(self.bits().to_le_bytes().map(|byte| (u16::from(byte) % alphabet) as u8));
        }
        out.truncate(len);
        out
    }
}
