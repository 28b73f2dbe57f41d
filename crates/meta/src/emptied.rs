//! When nothing is left of a volume that is given up.
//!
//! With the last row of such a volume goes the knowledge that anything of it could be in the store, and what a listing has left
//! out would lie there for ever. So one listing that shows nothing is not believed: another one, some time after it and with
//! none between them that shows something, has to show nothing, too. Not in the state: a restart begins anew.

use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// Volumes that hold nothing any more, and since when listings show nothing of them.
#[derive(Debug, Default)]
pub(crate) struct Emptied(BTreeMap<Uuid, Instant>);

impl Emptied {
    /// Listings show something of the volume, or it is not at its end.
    pub(crate) fn not_yet(&mut self, volume: Uuid) {
        self.0.remove(&volume);
    }

    /// A whole listing has shown nothing of the volume, which holds nothing that is known of. Whether that is believed: it
    /// is if it was seen `pause` ago.
    pub(crate) fn shows_nothing(&mut self, volume: Uuid, now: Instant, pause: Duration) -> bool {
        let since = *self.0.entry(volume).or_insert(now);
        since < now && now.duration_since(since) >= pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_listings_some_time_apart_have_to_show_nothing_with_none_between_that_shows_something() {
        const PAUSE: Duration = Duration::from_secs(600);
        let (begun, one, other) = (Instant::now(), Uuid::from_u128(1), Uuid::from_u128(2));
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut emptied = Emptied::default();
        assert!(!emptied.shows_nothing(one, at(0), PAUSE));
        assert!(!emptied.shows_nothing(one, at(599), PAUSE), "so soon it may leave out the same");
        assert!(!emptied.shows_nothing(other, at(600), PAUSE), "that was another one");
        emptied.not_yet(one);
        assert!(!emptied.shows_nothing(one, at(700), PAUSE), "something was there between");
        assert!(emptied.shows_nothing(one, at(1300), PAUSE));
        let third = Uuid::from_u128(3);
        assert!(!emptied.shows_nothing(third, at(0), Duration::ZERO), "one listing is never enough");
    }
}
