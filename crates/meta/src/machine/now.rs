//! What the server's clocks show. They come in from outside: the machine reads none.

/// Two clocks at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Nanoseconds since the epoch. Names instants. People set this clock, so it measures nothing.
    pub wall_ns: u64,
    /// Nanoseconds since some moment before the start. Measures how long something took: nobody sets it, and it runs on
    /// while the machine sleeps.
    pub steady_ns: u64,
}

impl From<u64> for Now {
    /// One clock for both, as simulations have it.
    fn from(ns: u64) -> Now {
        Now { wall_ns: ns, steady_ns: ns }
    }
}
