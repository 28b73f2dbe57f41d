//! Who asks: the user and groups of a request, with the supplementary groups that FUSE does not tell.

use crate::process::procstatus;
use chronofs_core::Caller;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the groups of a thread are believed: long enough for a burst of calls, short enough that a thread id is
/// not used again by a program of another user meanwhile.
const BELIEVED: Duration = Duration::from_millis(300);
const KEPT_MAX: usize = 1024;

struct Known {
    uid: u32,
    gid: u32,
    since: Instant,
    groups: Vec<u32>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Callers {
    known: Mutex<HashMap<u32, Known>>,
}

impl Callers {
    /// The caller behind a request of thread `tid`.
    pub(crate) fn caller(&self, uid: u32, gid: u32, tid: u32) -> Caller {
        // Groups give root nothing that it has not got.
        let groups = if uid == 0 { Vec::new() } else { self.groups(uid, gid, tid) };
        Caller { uid, gid, groups }
    }

    fn groups(&self, uid: u32, gid: u32, tid: u32) -> Vec<u32> {
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&tid)
            && (found.uid, found.gid) == (uid, gid)
            && now.duration_since(found.since) < BELIEVED
        {
            return found.groups.clone();
        }
        let groups = procstatus::groups_of(tid).unwrap_or_default();
        if known.len() >= KEPT_MAX {
            known.clear();
        }
        known.insert(tid, Known { uid, gid, since: now, groups: groups.clone() });
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_asked_for_no_groups_and_others_for_those_of_their_thread() {
        let callers = Callers::default();
        assert_eq!(callers.caller(0, 0, std::process::id()), Caller::ROOT);
        let mine = procstatus::groups_of(std::process::id()).unwrap();
        assert_eq!(callers.caller(1000, 1000, std::process::id()).groups, mine);
        assert_eq!(
            callers.caller(1000, 1000, u32::MAX - 1).groups,
            Vec::<u32>::new(),
            "a thread that is gone"
        );
    }
}
