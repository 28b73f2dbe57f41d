//! Who may search and list which directory of a mounted past.
//!
//! There a user needs the right of the instant and the right of now. The kernel knows the modes of then only, and what
//! it and the client's cache keep of names serves every user alike. So the server is asked for each user and
//! directory, and its word is believed for a moment.

use chronofs_core::{Caller, Ino};
use quick_cache::sync::Cache;
use std::time::{Duration, Instant};

/// How long a right that was there is believed to be there: reading a tree asks once for each directory, and what is
/// taken away now is gone in the past a moment later.
const BELIEVED: Duration = Duration::from_secs(1);
const KEPT_MAX: usize = 16 << 10;

/// What is done with a directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Right {
    /// Its names are looked up.
    Search,
    /// It is listed.
    List,
}

/// See the module.
pub(super) struct Rights {
    /// When the server was asked, and said yes.
    granted: Cache<(Ino, Right, Caller), Instant>,
}

impl Rights {
    pub(super) fn new() -> Self {
        Rights { granted: Cache::new(KEPT_MAX) }
    }

    /// Whether `caller` is known to have this right.
    pub(super) fn has(&self, caller: &Caller, dir: Ino, right: Right) -> bool {
        // Every directory is open to root.
        caller.uid == 0
            || self.granted.get(&(dir, right, caller.clone())).is_some_and(|asked| asked.elapsed() < BELIEVED)
    }

    /// The server, asked at the instant `asked`, said that `caller` has this right.
    pub(super) fn granted(&self, caller: Caller, dir: Ino, right: Right, asked: Instant) {
        self.granted.insert((dir, right, caller), asked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_is_one_callers_for_one_thing_and_for_a_moment() {
        let rights = Rights::new();
        let ann = Caller { uid: 1000, gid: 1000, groups: vec![5] };
        let without_group = Caller { groups: Vec::new(), ..ann.clone() };
        rights.granted(ann.clone(), Ino(7), Right::Search, Instant::now());
        assert!(rights.has(&ann, Ino(7), Right::Search));
        assert!(!rights.has(&ann, Ino(7), Right::List));
        assert!(!rights.has(&ann, Ino(8), Right::Search));
        assert!(!rights.has(&without_group, Ino(7), Right::Search), "it may have been the group's");
        assert!(rights.has(&Caller::ROOT, Ino(8), Right::List));
        rights.granted(ann.clone(), Ino(7), Right::Search, Instant::now() - BELIEVED);
        assert!(!rights.has(&ann, Ino(7), Right::Search), "asked too long ago");
    }
}
