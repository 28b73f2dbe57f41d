//! Reading directories, page by page.

use super::cache::CachedEntry;
use super::rights::Right;
use super::{Shown, Vfs, reply};
use chronofs_core::ops::{DirEntry, Reply, Request};
use chronofs_core::{Caller, Errno, Ino, Name, Version};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Mutex;

/// Entries asked for at once.
const PAGE_ENTRIES: u32 = 1024;
/// Entries handed out at once: more than the kernel's buffer holds.
const LISTED_MAX: usize = 512;
/// An entry whose attributes changed since the page was read is asked for again, this many before what is there is
/// handed out.
const REFRESHED_MAX: usize = 32;
/// The right to read, as access(2) has it.
const READ: u8 = 4;

/// An open directory: the page that was read last.
pub(crate) struct DirHandle {
    ino: Ino,
    page: Mutex<Option<Arc<Page>>>,
}

struct Page {
    /// The cookie it was read after.
    after: u64,
    entries: Vec<DirEntry>,
    /// With attributes.
    attrs: bool,
    version: Version,
    end: bool,
}

/// An entry as it is handed out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Listing {
    /// Cookie, name, inode and type; the attributes stand in `shown`.
    pub(crate) entry: DirEntry,
    /// Its attributes, if asked for.
    pub(crate) shown: Option<Shown>,
}

impl Vfs {
    /// Opens a directory, if it is known that the caller may list it: in the present the kernel has asked.
    pub(crate) fn try_opendir(&self, caller: impl FnOnce() -> Caller, ino: Ino) -> Option<u64> {
        let allowed = self.at.is_none() || self.rights.has(&caller(), ino, Right::List);
        allowed.then(|| self.hold_dir(ino))
    }

    /// Opens a directory of the past.
    pub(crate) async fn opendir(&self, caller: Caller, ino: Ino) -> Result<u64, Errno> {
        self.learn_rights(ino).await;
        if !self.rights.has(&caller, ino, Right::List) {
            let asked = Instant::now();
            self.access(caller.clone(), ino, READ).await?;
            self.rights.granted(caller, ino, Right::List, asked);
        }
        Ok(self.hold_dir(ino))
    }

    fn hold_dir(&self, ino: Ino) -> u64 {
        self.files.add_dir(DirHandle { ino, page: Mutex::new(None) })
    }

    /// Closes a directory.
    pub(crate) fn releasedir(&self, handle: u64) {
        self.files.remove_dir(handle);
    }

    /// The entries of an open directory after the cookie `after`, as many as are at hand. None: the end. Whoever
    /// lists it was checked when it was opened, and may go on whatever becomes of its rights.
    pub(crate) async fn readdir(
        &self,
        handle: u64,
        mut after: u64,
        attrs: bool,
    ) -> Result<Vec<Listing>, Errno> {
        let dir = self.files.dir(handle)?;
        loop {
            let (page, first) = self.page(&dir, after, attrs).await?;
            let entries = page.entries[first..].iter().take(LISTED_MAX);
            let last = entries.clone().last().map(|entry| entry.cookie);
            let entries = entries.cloned();
            if !attrs {
                return Ok(entries.map(|entry| Listing { entry, shown: None }).collect());
            }
            let listed = self.with_attrs(dir.ino, entries, page.version).await?;
            match last {
                // All of these are gone since they were read. None would be taken for the end.
                Some(last) if listed.is_empty() => after = last,
                _ => return Ok(listed),
            }
        }
    }

    /// The page that holds the entries after the cookie `after`, and where they begin in it.
    async fn page(&self, dir: &DirHandle, after: u64, attrs: bool) -> Result<(Arc<Page>, usize), Errno> {
        let mut kept = dir.page.lock().await;
        if let Some((page, first)) = kept.as_ref().and_then(|page| Some((page, page.place(after, attrs)?))) {
            return Ok((Arc::clone(page), first));
        }
        let page = Arc::new(self.read_page(dir.ino, after, attrs).await?);
        *kept = Some(Arc::clone(&page));
        Ok((page, 0))
    }

    async fn read_page(&self, dir: Ino, after: u64, attrs: bool) -> Result<Page, Errno> {
        let request = Request::ReadDir { dir, after, limit: PAGE_ENTRIES, attrs };
        // Both questions travel together.
        let page = self.call(Caller::ROOT, request);
        let (version, entries, end) = match tokio::join!(page, self.learn_rights(dir)).0? {
            (version, Reply::Entries { entries, end }) => (version, entries, end),
            (_, other) => return Err(reply::unexpected(&other)),
        };
        if self.ttl().is_some() {
            for entry in &entries {
                let Ok(name) = Name::new(entry.name.clone()) else { continue };
                if self.is_unreadable(dir, entry) {
                    continue;
                }
                self.cache.put_entry(dir, &name, CachedEntry::Names(entry.ino), version);
                if let Some(attr) = &entry.attr {
                    self.cache.put_attr(attr, version);
                }
            }
        }
        Ok(Page { after, entries, attrs, version, end })
    }

    /// Whether the entry's name did not open, so that it names nothing.
    fn is_unreadable(&self, dir: Ino, entry: &DirEntry) -> bool {
        self.veil.as_ref().is_some_and(|veil| veil.is_unreadable(dir, &entry.name))
    }

    /// Joins entries with attributes that are right now: those of a page may be from before a change.
    async fn with_attrs(
        &self,
        dir: Ino,
        entries: impl Iterator<Item = DirEntry>,
        version: Version,
    ) -> Result<Vec<Listing>, Errno> {
        let mut listed = Vec::new();
        let mut refreshed = 0;
        for mut entry in entries {
            let attr = entry.attr.take().filter(|attr| self.cache.is_current(attr.ino, version));
            let shown = match attr {
                Some(attr) => Some(self.show_in(dir, Some(attr))),
                None if is_dot(&entry) || self.is_unreadable(dir, &entry) => None,
                None => match self.cache.attr(entry.ino).filter(|_| self.ttl().is_some()) {
                    Some(attr) => Some(self.show_in(dir, Some(attr))),
                    None if refreshed >= REFRESHED_MAX && !listed.is_empty() => break,
                    None => {
                        refreshed += 1;
                        match self.getattr(Caller::ROOT, entry.ino).await {
                            Ok(Shown { attr, .. }) => Some(self.show_in(dir, attr)),
                            // Removed since the page was read: readdir may show it or not.
                            Err(Errno::ENOENT | Errno::ESTALE) => continue,
                            Err(errno) => return Err(errno),
                        }
                    }
                },
            };
            listed.push(Listing { entry, shown });
        }
        Ok(listed)
    }
}

fn is_dot(entry: &DirEntry) -> bool {
    matches!(entry.name.as_ref(), b"." | b"..")
}

impl Page {
    /// Where the entries after the cookie `after` begin in this page, unless it does not hold them.
    fn place(&self, after: u64, attrs: bool) -> Option<usize> {
        // From the start again: a program that rewinds wants to see what changed.
        if after == 0 || (attrs && !self.attrs) {
            return None;
        }
        if after == self.after {
            return Some(0);
        }
        let found = self.entries.binary_search_by_key(&after, |entry| entry.cookie).ok()? + 1;
        (found < self.entries.len() || self.end).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use chronofs_core::FileKind;

    fn page(after: u64, cookies: &[u64], end: bool) -> Page {
        let entries = cookies
            .iter()
            .map(|&cookie| DirEntry {
                cookie,
                name: Bytes::from(cookie.to_string()),
                ino: Ino(cookie),
                kind: FileKind::File,
                attr: None,
            })
            .collect();
        Page { after, entries, attrs: false, version: Version(1), end }
    }

    #[test]
    fn a_page_serves_the_cookies_it_holds() {
        let middle = page(30, &[40, 50, 60], false);
        assert_eq!(middle.place(30, false), Some(0));
        assert_eq!(middle.place(40, false), Some(1));
        assert_eq!(middle.place(60, false), None, "what follows stands on the next page");
        assert_eq!(middle.place(45, false), None, "a cookie of an entry that is not there");
        assert_eq!(middle.place(40, true), None, "attributes were not asked for");
    }

    #[test]
    fn the_last_page_knows_the_end_and_a_rewind_reads_again() {
        let last = page(0, &[1, 2, 300], true);
        assert_eq!(last.place(300, false), Some(3));
        assert_eq!(last.place(0, false), None);
    }
}
