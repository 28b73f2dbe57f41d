//! Attributes and entries that need not be asked for again.
//!
//! Two rules keep them right. Nothing is taken from the cache unless the rule says that it may be believed now: for
//! ever in the past, and in the present only while no other session can change the volume. And nothing is put into
//! it that is older than the last change of the same inode by this mount: answers may overtake each other.

use chronofs_core::{Attr, Ino, Name, Version};
use quick_cache::sync::Cache as QuickCache;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How many inodes and how many entries are kept.
const CAPACITY: usize = 128 << 10;
/// How many directories are known whole, and of how many names each at the most.
const WHOLE_DIRS: usize = 256;
const WHOLE_NAMES_MAX: usize = 16 << 10;
/// Inodes share this many counters of their last change; sharing one only means asking once more.
const FLOORS: usize = 4096;
/// How long the kernel keeps what the mount of a past instant says: it never changes.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// The longest time that the kernel keeps what the present says.
pub(crate) const KERNEL_TTL_MAX: Duration = Duration::from_secs(1);

/// What a cached entry says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum CachedEntry {
    /// There is none of this name.
    Missing,
    /// It names this inode.
    Names(Ino),
}

/// See the module.
pub(crate) struct Cache {
    attrs: QuickCache<Ino, Attr>,
    entries: QuickCache<(Ino, Name), CachedEntry>,
    /// Directories that this mount made: hashes of all names that they may have. Nothing is ever taken out of such
    /// a set, so what is not in it is not there; so a tree is copied in without asking whether each name is new.
    whole: QuickCache<Ino, Arc<Mutex<HashSet<u64>>>>,
    hasher: RandomState,
    /// The content that the kernel's pages of a file show, by its version.
    pages: QuickCache<Ino, Version>,
    floors: Box<[AtomicU64]>,
    /// Nothing read at an earlier version is believed.
    floor: AtomicU64,
}

impl Cache {
    pub(crate) fn new() -> Self {
        Cache {
            attrs: QuickCache::new(CAPACITY),
            entries: QuickCache::new(CAPACITY),
            whole: QuickCache::new(WHOLE_DIRS),
            hasher: RandomState::new(),
            pages: QuickCache::new(CAPACITY),
            floors: (0..FLOORS).map(|_| AtomicU64::new(0)).collect(),
            floor: AtomicU64::new(0),
        }
    }

    /// The attributes of `ino`.
    pub(crate) fn attr(&self, ino: Ino) -> Option<Attr> {
        self.attrs.get(&ino)
    }

    /// The entry `name` of `parent`.
    pub(crate) fn entry(&self, parent: Ino, name: &Name) -> Option<CachedEntry> {
        // The key is owned, as quick_cache wants it; a name is a reference to shared bytes.
        let entry = self.entries.get(&(parent, name.clone()));
        entry.or_else(|| self.is_new(parent, name).then_some(CachedEntry::Missing))
    }

    /// Whether `parent` is known whole and never had an entry `name`.
    fn is_new(&self, parent: Ino, name: &Name) -> bool {
        let Some(names) = self.whole.get(&parent) else { return false };
        !names.lock().unwrap_or_else(PoisonError::into_inner).contains(&self.hasher.hash_one(name))
    }

    /// Keeps attributes that were right at `version`.
    pub(crate) fn put_attr(&self, attr: &Attr, version: Version) {
        if self.is_current(attr.ino, version) {
            self.attrs.insert(attr.ino, attr.clone());
            // A change may have been answered in between: then this must not stay.
            if !self.is_current(attr.ino, version) {
                self.attrs.remove(&attr.ino);
            }
        }
    }

    /// Keeps an entry that was right at `version`.
    pub(crate) fn put_entry(&self, parent: Ino, name: &Name, entry: CachedEntry, version: Version) {
        if self.is_current(parent, version) {
            let key = (parent, name.clone());
            self.entries.insert(key.clone(), entry);
            if !self.is_current(parent, version) {
                self.entries.remove(&key);
            }
        }
    }

    /// This mount made the directory `dir` at `version`, empty.
    pub(crate) fn made_dir(&self, dir: Ino, version: Version) {
        if self.is_current(dir, version) {
            self.whole.insert(dir, Arc::default());
            // Somebody who was told of it sooner may have made something in it.
            if !self.is_current(dir, version) {
                self.whole.remove(&dir);
            }
        }
    }

    /// From now on the entry `name` of `parent` may be there. Whether it is known that it never was before.
    pub(crate) fn naming(&self, parent: Ino, name: &Name) -> bool {
        let Some(names) = self.whole.get(&parent) else { return false };
        let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = names.insert(self.hasher.hash_one(name));
        if names.len() > WHOLE_NAMES_MAX {
            self.whole.remove(&parent);
        }
        is_new
    }

    /// Whether what was read of `ino` at `version` has not been changed by this mount since.
    pub(crate) fn is_current(&self, ino: Ino, version: Version) -> bool {
        version.0 >= self.floor_of(ino).load(Ordering::SeqCst)
            && version.0 >= self.floor.load(Ordering::SeqCst)
    }

    /// This mount changed `ino` at `version`: what was kept of its attributes is gone.
    pub(crate) fn changed(&self, ino: Ino, version: Version) {
        self.floor_of(ino).fetch_max(version.0, Ordering::SeqCst);
        self.attrs.remove(&ino);
    }

    /// This mount changed the entry `name` of `parent` at `version`. Gives the inode it named, if it was kept.
    pub(crate) fn changed_entry(&self, parent: Ino, name: &Name, version: Version) -> Option<CachedEntry> {
        self.changed(parent, version);
        self.naming(parent, name);
        self.entries.remove(&(parent, name.clone())).map(|(_, entry)| entry)
    }

    /// The attributes of an inode that is not known by number changed at `version`: none is kept.
    pub(crate) fn changed_unknown(&self, version: Version) {
        self.floor.fetch_max(version.0, Ordering::SeqCst);
        self.attrs.clear();
    }

    /// The file is opened with this content: whether the kernel may keep the pages that it has of it.
    pub(crate) fn opened(&self, ino: Ino, data_version: Version) -> bool {
        let keep = self.pages.get(&ino) == Some(data_version);
        if !keep {
            self.pages.insert(ino, data_version);
        }
        keep
    }

    /// This mount changed the content of `ino`; `pages` is what the kernel's pages show now, if that is known.
    pub(crate) fn published(&self, ino: Ino, pages: Option<Version>) {
        match pages {
            // Only what was known before can be known now.
            Some(version) if self.pages.get(&ino).is_some() => self.pages.insert(ino, version),
            _ => drop(self.pages.remove(&ino)),
        }
    }

    /// The kernel's pages of any file may show what is lost.
    pub(crate) fn forget_pages(&self) {
        self.pages.clear();
    }

    /// Forgets everything, and believes nothing read before `version`.
    pub(crate) fn clear(&self, version: Version) {
        self.floor.fetch_max(version.0, Ordering::SeqCst);
        self.attrs.clear();
        self.entries.clear();
        self.whole.clear();
    }

    fn floor_of(&self, ino: Ino) -> &AtomicU64 {
        // Counters of neighbouring inodes are neighbours; any spread does.
        let slot = (ino.0 as usize) % FLOORS;
        &self.floors[slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::attr;

    fn name(text: &str) -> Name {
        Name::new(text.to_owned()).unwrap()
    }

    #[test]
    fn an_answer_older_than_a_change_is_not_kept() {
        let cache = Cache::new();
        cache.put_attr(&attr(5), Version(10));
        assert!(cache.attr(Ino(5)).is_some());
        cache.changed(Ino(5), Version(20));
        assert!(cache.attr(Ino(5)).is_none());
        cache.put_attr(&attr(5), Version(19));
        assert!(cache.attr(Ino(5)).is_none(), "it was overtaken by the change");
        cache.put_attr(&attr(5), Version(20));
        assert!(cache.attr(Ino(5)).is_some());
        cache.put_attr(&attr(6), Version(1));
        assert!(cache.attr(Ino(6)).is_some(), "another inode is not concerned");
    }

    #[test]
    fn a_changed_entry_is_asked_for_again_and_its_neighbours_are_not() {
        let cache = Cache::new();
        let (a, b) = (name("a"), name("b"));
        cache.put_entry(Ino(1), &a, CachedEntry::Names(Ino(5)), Version(1));
        cache.put_entry(Ino(1), &b, CachedEntry::Missing, Version(1));
        assert_eq!(cache.changed_entry(Ino(1), &a, Version(2)), Some(CachedEntry::Names(Ino(5))));
        assert_eq!(cache.entry(Ino(1), &a), None);
        assert_eq!(cache.entry(Ino(1), &b), Some(CachedEntry::Missing));
        cache.put_entry(Ino(1), &a, CachedEntry::Names(Ino(5)), Version(1));
        assert_eq!(cache.entry(Ino(1), &a), None, "read before the change");
    }

    #[test]
    fn a_directory_made_here_is_known_to_lack_what_was_never_named_in_it() {
        let cache = Cache::new();
        let (a, b) = (name("a"), name("b"));
        assert_eq!(cache.entry(Ino(9), &a), None, "nothing is known of a directory that was found");
        cache.made_dir(Ino(9), Version(10));
        assert_eq!(cache.entry(Ino(9), &a), Some(CachedEntry::Missing));
        assert!(cache.naming(Ino(9), &a));
        assert!(!cache.naming(Ino(9), &a), "it may be there now");
        assert_eq!(cache.entry(Ino(9), &a), None, "a create is on its way");
        cache.changed_entry(Ino(9), &b, Version(12));
        assert_eq!(cache.entry(Ino(9), &b), None, "made, perhaps, and in no cache any more");
        cache.clear(Version(13));
        assert_eq!(cache.entry(Ino(9), &name("c")), None, "another mount may make it");
        cache.made_dir(Ino(9), Version(10));
        assert_eq!(cache.entry(Ino(9), &name("c")), None, "the answer is older than the clearing");
    }

    #[test]
    fn a_directory_in_which_something_was_made_before_its_own_answer_came_is_not_known() {
        let cache = Cache::new();
        cache.changed_entry(Ino(9), &name("a"), Version(11));
        cache.made_dir(Ino(9), Version(10));
        assert_eq!(cache.entry(Ino(9), &name("a")), None);
    }

    #[test]
    fn a_directory_of_very_many_names_is_not_known_whole() {
        let cache = Cache::new();
        cache.made_dir(Ino(9), Version(10));
        for n in 0..=WHOLE_NAMES_MAX {
            assert_eq!(cache.entry(Ino(9), &name("x")), Some(CachedEntry::Missing));
            cache.naming(Ino(9), &name(&n.to_string()));
        }
        assert_eq!(cache.entry(Ino(9), &name("x")), None);
    }

    #[test]
    fn the_kernel_keeps_pages_only_of_content_that_is_known_to_be_unchanged() {
        let cache = Cache::new();
        assert!(!cache.opened(Ino(5), Version(1)));
        assert!(cache.opened(Ino(5), Version(1)));
        assert!(!cache.opened(Ino(5), Version(2)), "somebody else published");
        cache.published(Ino(5), Some(Version(3)));
        assert!(cache.opened(Ino(5), Version(3)), "nobody else can have");
        cache.published(Ino(5), None);
        assert!(!cache.opened(Ino(5), Version(4)), "somebody may have in between");
    }

    #[test]
    fn after_clearing_nothing_read_before_comes_back() {
        let cache = Cache::new();
        cache.put_attr(&attr(5), Version(10));
        cache.clear(Version(30));
        assert!(cache.attr(Ino(5)).is_none());
        cache.put_attr(&attr(5), Version(29));
        assert!(cache.attr(Ino(5)).is_none());
        cache.put_attr(&attr(5), Version(30));
        cache.changed_unknown(Version(31));
        assert!(cache.attr(Ino(5)).is_none());
    }
}
