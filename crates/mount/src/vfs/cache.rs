//! Attributes and entries that need not be asked for again.
//!
//! Two rules keep them right. Nothing is taken from the cache unless the rule says that it may be believed now: for
//! ever in the past, and in the present only while no other session can change the volume. And nothing is put into
//! it that is older than the last change of the same inode by this mount: answers may overtake each other.

use chronofs_core::{Attr, Ino, Name, Version};
use quick_cache::sync::Cache as QuickCache;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many inodes and how many entries are kept.
const CAPACITY: usize = 128 << 10;
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
        self.entries.get(&(parent, name.clone()))
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

    /// Forgets everything, and believes nothing read before `version`.
    pub(crate) fn clear(&self, version: Version) {
        self.floor.fetch_max(version.0, Ordering::SeqCst);
        self.attrs.clear();
        self.entries.clear();
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
