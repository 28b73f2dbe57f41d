//! Who may search and list which directory of a mounted past.
//!
//! There a user needs the right of the instant and the right of now. The kernel knows the modes of then only, and what
//! it and the client's cache keep of names serves every user alike. So the server is asked of each directory whether
//! its rights are narrower now: if they are not, as almost always, the modes of then say all, and the kernel may keep
//! names of it for a moment. Of a directory whose rights are narrower it may keep nothing, and the server is asked for
//! each user. Its words are believed for a moment.

use chronofs_core::{Caller, Ino};
use quick_cache::sync::Cache;
use std::time::{Duration, Instant};

/// How long the server's word is believed, the time that the kernel keeps names included: what is taken away now is
/// gone in the past a moment later. As long as the kernel believes names of the present.
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
    /// When the server was asked of a directory, and whether its rights are narrower now.
    narrowed: Cache<Ino, (Instant, bool)>,
    /// When the server was asked for a caller, and said yes.
    granted: Cache<(Ino, Right, Caller), Instant>,
}

impl Rights {
    pub(super) fn new() -> Self {
        Rights { narrowed: Cache::new(KEPT_MAX), granted: Cache::new(KEPT_MAX) }
    }

    /// Whether the rights of `dir` are known to be, or not to be, narrower now.
    pub(super) fn known(&self, dir: Ino) -> bool {
        self.narrowed.get(&dir).is_some_and(|(asked, _)| asked.elapsed() < BELIEVED)
    }

    /// How long the modes of then still say all of who may use `dir`.
    pub(super) fn as_then(&self, dir: Ino) -> Duration {
        match self.narrowed.get(&dir) {
            Some((asked, false)) => BELIEVED.saturating_sub(asked.elapsed()),
            _ => Duration::ZERO,
        }
    }

    /// Whether `caller`, whom the kernel let through by the modes of then, is known to have this right.
    pub(super) fn has(&self, caller: &Caller, dir: Ino, right: Right) -> bool {
        // Every directory is open to root.
        caller.uid == 0
            || !self.as_then(dir).is_zero()
            || self.granted.get(&(dir, right, caller.clone())).is_some_and(|asked| asked.elapsed() < BELIEVED)
    }

    /// The server, asked at the instant `asked`, said whether the rights of `dir` are narrower now.
    pub(super) fn learned(&self, dir: Ino, narrowed: bool, asked: Instant) {
        self.narrowed.insert(dir, (asked, narrowed));
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

    #[test]
    fn a_directory_whose_rights_are_not_narrower_is_everybodys_for_a_moment() {
        let rights = Rights::new();
        let ann = Caller { uid: 1000, gid: 1000, groups: Vec::new() };
        assert!(!rights.known(Ino(7)));
        rights.learned(Ino(7), false, Instant::now());
        assert!(rights.known(Ino(7)) && rights.has(&ann, Ino(7), Right::List));
        assert!(rights.as_then(Ino(7)) > Duration::ZERO && rights.as_then(Ino(7)) <= BELIEVED);
        rights.learned(Ino(7), true, Instant::now());
        assert!(rights.known(Ino(7)) && !rights.has(&ann, Ino(7), Right::List));
        assert!(rights.as_then(Ino(7)).is_zero(), "the kernel would let everybody use its names");
        rights.learned(Ino(7), false, Instant::now() - BELIEVED);
        assert!(!rights.known(Ino(7)) && !rights.has(&ann, Ino(7), Right::List), "asked too long ago");
        assert!(rights.as_then(Ino(7)).is_zero());
    }
}
