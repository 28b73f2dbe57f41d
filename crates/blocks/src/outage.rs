//! Since when a block store cannot be used and why, as its answers say. Times are handed in.
//!
//! What a store says of one object (missing, damaged, taken) or of its own space is an answer and no outage.

use crate::port::{StoreError, Trouble};
use chronofs_core::Errno;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An outage that is going on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreOutage {
    /// How long it has lasted.
    pub seconds: u64,
    /// What happened last.
    pub reason: String,
}

/// What an answer means for the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// It can be used, or the answer says nothing of it.
    Nothing,
    /// It cannot be used any more: this is the first answer that says so.
    Began,
    /// It still cannot be used.
    GoesOn,
    /// It can be used again, after this long.
    Ended(Duration),
}

#[derive(Debug)]
struct Began {
    at: Instant,
    reason: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Outage(Mutex<Option<Began>>);

impl Outage {
    /// Takes in an answer that came at `now`.
    pub fn heard<T>(&self, answer: &Result<T, StoreError>, now: Instant) -> Heard {
        match answer {
            Err(error) if is_outage(error) => self.failed(&error.reason, now),
            // It is full or read-only, and says so; or it was not asked.
            Err(StoreError {
                trouble: Trouble::Unavailable | Trouble::SessionOver | Trouble::NotShown,
                ..
            }) => Heard::Nothing,
            Ok(_) | Err(_) => {
                self.state().take().map_or(Heard::Nothing, |began| Heard::Ended(now.duration_since(began.at)))
            }
        }
    }

    /// The outage there is, if any.
    pub fn now(&self, now: Instant) -> Option<StoreOutage> {
        self.state().as_ref().map(|began| StoreOutage {
            seconds: now.duration_since(began.at).as_secs(),
            reason: began.reason.clone(),
        })
    }

    fn failed(&self, reason: &str, now: Instant) -> Heard {
        let mut state = self.state();
        match &mut *state {
            Some(began) => {
                reason.clone_into(&mut began.reason);
                Heard::GoesOn
            }
            None => {
                *state = Some(Began { at: now, reason: reason.to_owned() });
                Heard::Began
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, Option<Began>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error says that the store cannot be used at all. One with an error number of its own (a full disk) says
/// more than that.
pub fn is_outage(error: &StoreError) -> bool {
    error.trouble == Trouble::Unavailable && error.errno == Errno::EIO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_begins_once_keeps_its_last_reason_and_ends_with_the_first_answer() {
        let (outage, start) = (Outage::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let away = |reason: &str| Err::<(), _>(StoreError::unavailable("o", Errno::EIO, reason));
        assert_eq!((outage.heard(&Ok(()), at(0)), outage.now(at(0))), (Heard::Nothing, None));
        assert_eq!(outage.heard(&away("first"), at(1)), Heard::Began);
        assert_eq!(outage.heard(&away("second"), at(5)), Heard::GoesOn);
        assert_eq!(outage.now(at(11)), Some(StoreOutage { seconds: 10, reason: "second".to_owned() }));
        let full = Err::<(), _>(StoreError::unavailable("o", Errno::ENOSPC, "full"));
        for not_asked in [full, Err(StoreError::session_over("o")), Err(StoreError::not_shown("o"))] {
            assert_eq!(outage.heard(&not_asked, at(12)), Heard::Nothing);
        }
        assert!(outage.now(at(12)).is_some());
        let missing = Err::<(), _>(StoreError::missing("o", ""));
        assert_eq!(outage.heard(&missing, at(13)), Heard::Ended(Duration::from_secs(12)));
        assert_eq!(outage.now(at(13)), None);
        assert_eq!(outage.heard(&Ok(()), at(14)), Heard::Nothing);
    }
}
