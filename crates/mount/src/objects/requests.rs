//! Signed requests at hand: reads that came with slices, puts that were asked for. Times are handed in.
//!
//! A request is used for a time after it came, by this machine's own watch, and is valid for longer: so it does not
//! matter what clocks show. One that is getting old is still used, and asked for anew meanwhile.

use crate::data::lock;
use chronofs_core::{ObjectId, SessionId, SignedRequest};
use chronofs_wire::message::SignedGet;
use quick_cache::sync::Cache;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// How many reads are kept: about 6 MiB of them.
const GETS_MAX: usize = 8192;
/// Counters so far below one that is used are not used any more.
const BEHIND_MAX: u64 = 256;

/// A request and when it came.
#[derive(Clone, Debug)]
struct Kept {
    request: SignedRequest,
    came: Duration,
}

/// A request that can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Usable {
    pub(crate) request: SignedRequest,
    /// A newer one should be asked for.
    pub(crate) ages: bool,
}

impl Kept {
    fn usable(self, now: Duration, use_for: Duration) -> Option<Usable> {
        let age = now.saturating_sub(self.came);
        (age < use_for).then(|| Usable { request: self.request, ages: age >= use_for * 3 / 4 })
    }
}

/// Puts of one session, by object counter.
#[derive(Debug, Default)]
struct Puts {
    session: Option<SessionId>,
    kept: BTreeMap<u64, Kept>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Requests {
    /// By object and first byte; `None` for any range of the object.
    gets: Cache<(ObjectId, Option<u64>), Kept>,
    puts: Mutex<Puts>,
}

impl Requests {
    pub(crate) fn new() -> Self {
        Requests { gets: Cache::new(GETS_MAX), puts: Mutex::default() }
    }

    /// Keeps reads that came.
    pub(crate) fn add_gets(&self, gets: Vec<SignedGet>, now: Duration) {
        for SignedGet { object, range, request } in gets {
            self.gets.insert((object, range.map(|(offset, _)| offset)), Kept { request, came: now });
        }
    }

    /// A request that reads from `offset` of `object` on.
    pub(crate) fn get(
        &self,
        object: ObjectId,
        offset: u64,
        now: Duration,
        use_for: Duration,
    ) -> Option<Usable> {
        let kept = self.gets.get(&(object, Some(offset))).or_else(|| self.gets.get(&(object, None)));
        kept?.usable(now, use_for)
    }

    /// The store takes this one no more.
    pub(crate) fn forget_get(&self, object: ObjectId, offset: u64) {
        self.gets.remove(&(object, Some(offset)));
        self.gets.remove(&(object, None));
    }

    /// Keeps puts of the objects from counter `first` on.
    pub(crate) fn add_puts(
        &self,
        session: SessionId,
        first: u64,
        requests: Vec<SignedRequest>,
        now: Duration,
    ) {
        let mut puts = lock(&self.puts);
        if puts.session != Some(session) {
            *puts = Puts { session: Some(session), kept: BTreeMap::new() };
        }
        let kept = (first..).zip(requests).map(|(n, request)| (n, Kept { request, came: now }));
        puts.kept.extend(kept);
    }

    /// A request that puts `object`, and how many are at hand for objects after it.
    pub(crate) fn put(&self, object: ObjectId, now: Duration, use_for: Duration) -> Option<(Usable, usize)> {
        let mut puts = lock(&self.puts);
        if puts.session != Some(object.session) {
            return None;
        }
        puts.kept = puts.kept.split_off(&object.n.saturating_sub(BEHIND_MAX));
        let found = puts.kept.get(&object.n)?.clone().usable(now, use_for)?;
        Some((found, puts.kept.range(object.n + 1..).count()))
    }

    /// No put that is at hand is used any more: the server that signed it may have known less than the one that is
    /// there now.
    pub(crate) fn forget_puts(&self) {
        *lock(&self.puts) = Puts::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USE_FOR: Duration = Duration::from_secs(600);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(5000 + seconds)
    }

    fn object(n: u64) -> ObjectId {
        ObjectId { incarnation: 1, session: SessionId(2), n }
    }

    fn request(n: u64) -> SignedRequest {
        SignedRequest { url: format!("https://store/{n}"), headers: Vec::new() }
    }

    fn get(n: u64, range: Option<(u64, u32)>) -> SignedGet {
        SignedGet { object: object(n), range, request: request(n) }
    }

    #[test]
    fn a_request_is_used_for_its_time_and_renewed_before_that_ends() {
        let requests = Requests::new();
        requests.add_gets(vec![get(1, Some((64, 10)))], at(0));
        let used = |seconds| requests.get(object(1), 64, at(seconds), USE_FOR).map(|used| used.ages);
        assert_eq!(
            (used(0), used(449), used(450), used(599)),
            (Some(false), Some(false), Some(true), Some(true))
        );
        assert_eq!(used(600), None);
        requests.add_gets(vec![get(1, Some((64, 10)))], at(590));
        assert_eq!(used(600), Some(false));
        requests.forget_get(object(1), 64);
        assert_eq!(used(600), None);
    }

    #[test]
    fn a_range_is_read_by_its_own_request_or_by_one_for_the_whole_object() {
        let requests = Requests::new();
        requests.add_gets(vec![get(1, Some((64, 10))), get(2, None)], at(0));
        let found = |n, offset| requests.get(object(n), offset, at(0), USE_FOR).is_some();
        assert!(found(1, 64) && !found(1, 65) && found(2, 64) && found(2, 0) && !found(3, 0));
    }

    #[test]
    fn puts_are_of_one_session_and_end_with_it() {
        let requests = Requests::new();
        requests.add_puts(SessionId(2), 5, (5..9).map(request).collect(), at(0));
        let found =
            |object: ObjectId| requests.put(object, at(1), USE_FOR).map(|(used, left)| (used.request, left));
        assert_eq!(found(object(6)), Some((request(6), 2)));
        assert_eq!((found(object(4)), found(object(9))), (None, None));
        let other = ObjectId { session: SessionId(3), ..object(6) };
        assert_eq!(found(other), None);
        assert!(requests.put(object(6), at(600), USE_FOR).is_none(), "its time is over");
        requests.add_puts(SessionId(3), 6, vec![request(6)], at(1));
        assert!(found(other).is_some() && found(object(6)).is_none());
        requests.forget_puts();
        assert_eq!(found(other), None);
    }

    #[test]
    fn what_lies_far_behind_is_forgotten() {
        let requests = Requests::new();
        for first in (0..10_000).step_by(32) {
            requests.add_puts(SessionId(2), first, (first..first + 32).map(request).collect(), at(0));
            assert!(requests.put(object(first), at(0), USE_FOR).is_some());
        }
        assert!(lock(&requests.puts).kept.len() < 2 * BEHIND_MAX as usize);
    }
}
