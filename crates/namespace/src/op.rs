//! One mutation in the making: the transaction, the counters, and the changes that several requests share.

use crate::counted::count;
use crate::ctx::{Ctx, Done};
use crate::look::{Look, inode_in, missing};
use crate::rows::{
    COUNTERS, Counters, DIR, Dir, ENTRY, Format, INODE, Inode, LINK, Link, ORPHAN, Orphan, PURGE, Purge,
    SLICE, Volume, XATTR, ino_key, link_key, number_at,
};
use crate::system::LOST_INOS_MAX;
use chronofs_core::name::Position;
use chronofs_core::{Errno, Ino, Retention};
use chronofs_engine::{Batch, Overlay, ReadStop, Reads};
use chronofs_history::{Snapshot, Table, Txn};

/// The most links of an inode, and so of subdirectories.
pub const LINKS_MAX: u32 = 65_000;
const PAGE: usize = 256;

pub(crate) struct Op<'a, R: Reads + ?Sized> {
    pub(crate) ctx: &'a Ctx<'a>,
    pub(crate) volume: &'a Volume,
    pub(crate) txn: Txn<&'a R>,
    /// The volume's counters once they were asked for.
    counters: Option<Counters>,
    /// Changes of store-wide tables.
    pub(crate) store_wide: Batch,
    pub(crate) reads: &'a R,
}

impl<'a, R: Reads + ?Sized> Op<'a, R> {
    pub(crate) fn new(reads: &'a R, ctx: &'a Ctx<'a>, volume: &'a Volume) -> Self {
        let keep_history = volume.spec.retention != Retention::None || volume.leases > 0;
        let txn = Txn::new(reads, ctx.volume, ctx.version, keep_history);
        Op { ctx, volume, txn, counters: None, store_wide: Batch::default(), reads }
    }

    /// All that changed, and what that changes in the counts of objects. Errors: EINVAL for one that is condemned.
    pub(crate) fn into_batch(mut self) -> Done<Batch> {
        if let Some(counters) = self.counters {
            self.txn.put_plain(COUNTERS, &[], &counters.encode()?);
        }
        let mut batch = self.txn.into_batch();
        count(self.reads, self.ctx.volume, self.volume, self.ctx.version, &[], &mut batch)?;
        batch.0.extend(self.store_wide.0);
        Ok(batch)
    }

    /// The volume with the changes so far.
    pub(crate) fn look(&self) -> Look<'_, &Overlay<&'a R>> {
        Look { tables: self.txn.now(), present: None, ctx: self.ctx, volume: self.volume }
    }

    pub(crate) fn now_ns(&self) -> i64 {
        self.ctx.version.as_file_time_ns()
    }

    pub(crate) fn counters(&mut self) -> Result<&mut Counters, ReadStop> {
        if self.counters.is_none() {
            let row = self.txn.get_plain(COUNTERS, &[])?.ok_or_else(|| missing("counters", Ino::ROOT))?;
            self.counters = Some(Counters::decode(COUNTERS, &[], &row)?);
        }
        self.counters.as_mut().ok_or_else(|| missing("counters", Ino::ROOT))
    }

    /// A new inode number, counted against the quota. Errors: EDQUOT, ENOSPC.
    pub(crate) fn new_ino(&mut self) -> Done<Ino> {
        let (incarnation, max_inodes) = (self.volume.incarnation, self.volume.spec.max_inodes);
        let again = match self.ctx.made {
            Some(made) => self.is_free(made)?.then_some(made.counter()),
            None => None,
        };
        let counters = self.counters()?;
        if max_inodes.is_some_and(|max| counters.used_inodes >= max) {
            return Err(Errno::EDQUOT.into());
        }
        let counter = again.unwrap_or(counters.next_ino);
        if counter >= Ino::COUNTER_END {
            return Err(Errno::ENOSPC.into());
        }
        counters.next_ino = counters.next_ino.max(counter + 1);
        counters.used_inodes += 1;
        Ok(Ino::new(incarnation, counter))
    }

    /// Whether a lost create may have its number again: it is one of those that may have been lost, and nothing is or
    /// was here under it.
    fn is_free(&mut self, ino: Ino) -> Done<bool> {
        let key = ino_key(ino);
        if ino.counter() > self.counters()?.next_ino.saturating_add(LOST_INOS_MAX)
            || self.txn.get(INODE, &key)?.is_some()
            || self.txn.get_plain(PURGE, &key)?.is_some()
        {
            return Ok(false);
        }
        let past = self.txn.now().history(INODE, &key, 1)?;
        Ok(past.first().is_none_or(|row| row.key() != key))
    }

    /// `before` bytes became `after`. Errors: EDQUOT if they grew past the quota.
    pub(crate) fn account(&mut self, before: u64, after: u64) -> Done<()> {
        if before == after {
            return Ok(());
        }
        let max_bytes = self.volume.spec.max_bytes;
        let counters = self.counters()?;
        let used = counters.used_bytes.saturating_sub(before).saturating_add(after);
        if after > before && max_bytes.is_some_and(|max| used > max) {
            return Err(Errno::EDQUOT.into());
        }
        counters.used_bytes = used;
        Ok(())
    }

    pub(crate) fn put_inode(&mut self, ino: Ino, inode: &Inode) -> Result<(), ReadStop> {
        self.txn.put(INODE, &ino_key(ino), &inode.encode()?)
    }

    /// Changes the row of a directory.
    pub(crate) fn change_dir(&mut self, ino: Ino, change: impl FnOnce(&mut Dir)) -> Done<()> {
        let (mut dir, _) = self.look().dir(ino)?;
        change(&mut dir);
        Ok(self.txn.put(DIR, &ino_key(ino), &dir.encode()?)?)
    }

    /// Entries of a directory changed: so many more entries and subdirectories.
    pub(crate) fn touch_dir(&mut self, ino: Ino, entries: i64, subdirs: i32) -> Done<()> {
        let now_ns = self.now_ns();
        self.change_dir(ino, |dir| {
            (dir.mtime_ns, dir.ctime_ns) = (now_ns, now_ns);
            dir.entries = dir.entries.saturating_add_signed(entries);
            dir.nlink = dir.nlink.saturating_add_signed(subdirs);
        })
    }

    /// The inode changed. Its row is put by the caller where that is not a directory.
    pub(crate) fn touch_inode(&mut self, ino: Ino, inode: &mut Inode) -> Done<()> {
        let now_ns = self.now_ns();
        match inode.node_mut() {
            Some(node) => node.ctime_ns = now_ns,
            None => self.change_dir(ino, |dir| dir.ctime_ns = now_ns)?,
        }
        Ok(())
    }

    pub(crate) fn add_link_row(&mut self, ino: Ino, parent: Ino, position: Position) -> Result<(), ReadStop> {
        self.txn.put(LINK, &link_key(ino, parent, position), &Link { flags: 0 }.encode()?)
    }

    /// The link at `from` is at `to` now; the caller puts the inode.
    pub(crate) fn move_link(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        from: (Ino, Position),
        to: (Ino, Position),
    ) -> Result<(), ReadStop> {
        if (inode.parent, inode.position) == from {
            (inode.parent, inode.position) = to;
            return Ok(());
        }
        self.txn.delete(LINK, &link_key(ino, from.0, from.1))?;
        self.add_link_row(ino, to.0, to.1)
    }

    /// The entry at (`parent`, `position`) no longer names the inode, which is no directory: one link less. The last
    /// one takes the inode with it, unless somebody has it open.
    pub(crate) fn drop_link(
        &mut self,
        ino: Ino,
        mut inode: Inode,
        parent: Ino,
        position: Position,
    ) -> Done<()> {
        let now_ns = self.now_ns();
        let node = inode.node_mut().ok_or(Errno::EISDIR)?;
        node.nlink = node.nlink.saturating_sub(1);
        node.ctime_ns = now_ns;
        if node.nlink == 0 {
            return self.retire(ino, &inode);
        }
        if (inode.parent, inode.position) == (parent, position) {
            let further = self.txn.now().scan(LINK, &ino_key(ino), &[], 1)?.pop();
            let (key, _) = further.ok_or_else(|| missing("further link row", ino))?;
            (inode.parent, inode.position) = (Ino(number_at(&key, 8)), Position(number_at(&key, 16)));
            self.txn.delete(LINK, &key)?;
        } else {
            self.txn.delete(LINK, &link_key(ino, parent, position))?;
        }
        Ok(self.put_inode(ino, &inode)?)
    }

    /// The directory, which is empty, has lost its entry.
    pub(crate) fn drop_dir(&mut self, ino: Ino, inode: &Inode) -> Done<()> {
        if !(self.ctx.is_open)(ino) {
            return self.free(ino, inode);
        }
        let now_ns = self.now_ns();
        self.change_dir(ino, |dir| {
            dir.nlink = 0;
            dir.ctime_ns = now_ns;
        })?;
        self.make_orphan(ino)
    }

    /// The inode has no links: it goes, or waits as an orphan.
    fn retire(&mut self, ino: Ino, inode: &Inode) -> Done<()> {
        if !(self.ctx.is_open)(ino) {
            return self.free(ino, inode);
        }
        self.put_inode(ino, inode)?;
        self.make_orphan(ino)
    }

    fn make_orphan(&mut self, ino: Ino) -> Done<()> {
        let orphan = Orphan { flags: 0, since: self.ctx.version };
        self.txn.put_plain(ORPHAN, &ino_key(ino), &orphan.encode()?);
        Ok(())
    }

    /// Removes an inode. Rows beyond what a commit may take stay for [`Op::purge`]: nobody finds them any more.
    pub(crate) fn free(&mut self, ino: Ino, inode: &Inode) -> Done<()> {
        let attr = inode.attr(ino, None);
        let mut left = self.ctx.freed_max;
        let mut tables = Vec::new();
        if inode.is_dir() {
            self.txn.delete(DIR, &ino_key(ino))?;
            // An empty directory can still hold tombstones.
            tables.push(ENTRY);
        } else if attr.kind == chronofs_core::FileKind::File {
            tables.push(SLICE);
            self.account(attr.allocated, 0)?;
        }
        if inode.flags & Inode::HAS_XATTR != 0 {
            tables.push(XATTR);
        }
        if !self.delete_all(&tables, ino, &mut left)? {
            let purge = Purge { flags: 0, since: self.ctx.version };
            self.txn.put_plain(PURGE, &ino_key(ino), &purge.encode()?);
        }
        self.txn.delete(INODE, &ino_key(ino))?;
        let counters = self.counters()?;
        counters.used_inodes = counters.used_inodes.saturating_sub(1);
        Ok(())
    }

    /// Removes further rows of an inode that is gone.
    pub(crate) fn purge(&mut self, ino: Ino) -> Done<()> {
        let key = ino_key(ino);
        if self.txn.get_plain(PURGE, &key)?.is_none() {
            return Ok(());
        }
        let mut left = self.ctx.freed_max;
        if self.delete_all(&[SLICE, XATTR, ENTRY], ino, &mut left)? {
            self.txn.delete_plain(PURGE, &key);
        }
        Ok(())
    }

    /// Removes the rows of `tables` whose key starts with the inode, as far as `left` goes. Whether none is left over.
    fn delete_all(&mut self, tables: &[Table], ino: Ino, left: &mut usize) -> Result<bool, ReadStop> {
        const KIB: usize = 1 << 10;
        for table in tables {
            loop {
                let page = self.txn.now().scan(*table, &ino_key(ino), &[], PAGE)?;
                for (key, row) in &page {
                    if *left == 0 {
                        return Ok(false);
                    }
                    *left = left.saturating_sub(1 + row.value.len() / KIB);
                    self.txn.delete(*table, key)?;
                }
                if page.len() < PAGE {
                    break;
                }
            }
        }
        Ok(true)
    }

    /// Frees an orphan that nobody has open.
    pub(crate) fn reap(&mut self, ino: Ino) -> Done<()> {
        let key = ino_key(ino);
        if self.txn.get_plain(ORPHAN, &key)?.is_none() || (self.ctx.is_open)(ino) {
            return Ok(());
        }
        let inode = inode_in(&self.txn.now(), ino)?.ok_or_else(|| missing("inode row", ino))?;
        self.txn.delete_plain(ORPHAN, &key);
        self.free(ino, &inode)
    }

    /// The tables, to be looked at while the operation changes.
    pub(crate) fn tables(&self) -> Snapshot<&Overlay<&'a R>> {
        self.txn.now()
    }
}
