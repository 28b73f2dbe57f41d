//! Content: publishing slices, merging them, cutting a file.
//!
//! Slices of a block lie over each other, newest on top. A row that newer ones cover completely goes in the same
//! batch. When a cut changes a block its newest remaining slice gets a new key: a merge that was read before the
//! cut finds another newest slice and is refused, so it cannot bring back what was cut.

use crate::ctx::Done;
use crate::look::without_privileges;
use crate::op::Op;
use crate::rows::{Body, Format, Inode, MOVED, SLICE, STAGED, SliceRow, Staged, slice_key, staged_key};
use crate::slices::{self, visible};
use chronofs_core::ops::{Merge, Reply, SLICES_PER_BLOCK_CAP, SLICES_PER_PUBLISH_MAX};
use chronofs_core::slice::{Codec, INLINE_MAX, NewSlice, Place, STAGED_MAX, Seal, Slice, SliceKey};
use chronofs_core::{Errno, Ino};
use chronofs_engine::{ReadStop, Reads};
use std::collections::BTreeMap;
use std::ops::Range;

/// The fields of a publish request.
pub(crate) struct Published<'a> {
    pub(crate) ino: Ino,
    pub(crate) slices: &'a [NewSlice],
    pub(crate) size_min: Option<u64>,
    pub(crate) mtime_ns: Option<i64>,
    pub(crate) kill_priv: bool,
    pub(crate) merge: Option<&'a Merge>,
}

/// New slices of one block: place in the request, run, stored bytes.
type OfBlock<'a> = Vec<(u16, Slice, &'a NewSlice)>;

const CUT_PAGE: usize = 4096;
/// The most slices that a file can lose when it is cut.
pub const CUT_SLICES_MAX: usize = 1 << 18;

/// The largest file of a volume with this block size.
pub fn size_max(block_size: u32) -> u64 {
    u64::from(block_size) << 32
}

impl<R: Reads + ?Sized> Op<'_, R> {
    pub(crate) fn publish(&mut self, new: &Published<'_>) -> Done<Reply> {
        let mut inode = self.look().named(new.ino)?;
        let before = inode.clone();
        let file_size = match &inode.body {
            Body::File { size, .. } => *size,
            Body::Dir => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        };
        self.check_slices(new)?;
        if let Some(merge) = new.merge {
            self.merge(new, &mut inode, merge, file_size)?;
        } else {
            self.lay(new, &mut inode, file_size)?;
            if new.kill_priv {
                inode.mode = without_privileges(&self.ctx.caller, inode.mode, inode.gid);
                self.drop_capability(new.ino, &mut inode)?;
            }
        }
        if inode != before {
            self.put_inode(new.ino, &inode)?;
        }
        Ok(Reply::Attr(inode.attr(new.ino, None)))
    }

    /// Errors: EINVAL, EFBIG.
    fn check_slices(&self, new: &Published<'_>) -> Done<()> {
        if new.slices.len() > SLICES_PER_PUBLISH_MAX {
            return Err(Errno::EINVAL.into());
        }
        if new.size_min.is_some_and(|size| size > size_max(self.volume.spec.block_size)) {
            return Err(Errno::EFBIG.into());
        }
        let mut granted = 0..0;
        if new.slices.iter().any(|slice| slice.slice.place.seal().is_some()) {
            let session = crate::system::session(self.reads, self.ctx.session)?;
            let session = session.filter(|session| session.volume == self.ctx.volume);
            let session = session.ok_or(Errno::ESTALE)?;
            granted = session.floor..session.granted;
        }
        for slice in new.slices {
            self.check_slice(slice, &granted)?;
        }
        Ok(())
    }

    fn check_slice(&self, new: &NewSlice, granted: &Range<u64>) -> Result<(), Errno> {
        let slice = &new.slice;
        let block_size = self.volume.spec.block_size;
        let fits = slice.len > 0 && slice.offset.checked_add(slice.len).is_some_and(|end| end <= block_size);
        let placed = match (&slice.place, &new.staged) {
            (Place::Hole, None) => slice.skip == 0,
            (Place::Inline(seal, bytes), None) => {
                bytes.len() <= INLINE_MAX && bytes.len() == seal.stored_len as usize
            }
            (Place::Staged(seal), Some(bytes)) => {
                bytes.len() <= STAGED_MAX && bytes.len() == seal.stored_len as usize
            }
            (Place::Object(..), None) => true,
            _ => false,
        };
        let sealed = slice.place.seal().is_none_or(|seal| self.seal_is_sound(seal, slice, granted));
        if fits && placed && sealed { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn seal_is_sound(&self, seal: &Seal, slice: &Slice, granted: &Range<u64>) -> bool {
        let object = seal.id.object;
        let ours = object.session == self.ctx.session && object.incarnation == self.volume.incarnation;
        let shown = slice.skip.checked_add(slice.len).is_some_and(|end| end <= seal.full_len);
        let sized = seal.stored_len > 0 && seal.full_len <= self.volume.spec.block_size;
        ours && granted.contains(&object.n)
            && shown
            && sized
            && (seal.codec != Codec::Raw || seal.stored_len == seal.full_len)
            // What is encrypted and what is not are never mixed.
            && seal.codec.is_sealed() == self.volume.is_encrypted()
    }

    /// Lays the new slices over what is there.
    fn lay(&mut self, new: &Published<'_>, inode: &mut Inode, file_size: u64) -> Done<()> {
        let block_size = u64::from(self.volume.spec.block_size);
        let start = |slice: &NewSlice| u64::from(slice.block) * block_size + u64::from(slice.slice.offset);
        let data_end = new.slices.iter().filter(|slice| slice.slice.place != Place::Hole);
        let data_end = data_end.map(|slice| start(slice) + u64::from(slice.slice.len)).max();
        let size = file_size.max(new.size_min.unwrap_or(0)).max(data_end.unwrap_or(0));
        let mut blocks: BTreeMap<u32, OfBlock<'_>> = BTreeMap::new();
        for (n, new_slice) in (0..).zip(new.slices) {
            // Only a hole can reach past the end, and there is nothing to be punched.
            let len = size.saturating_sub(start(new_slice)).min(u64::from(new_slice.slice.len)) as u32;
            if len > 0 {
                let slice = Slice { len, ..new_slice.slice.clone() };
                blocks.entry(new_slice.block).or_default().push((n, slice, new_slice));
            }
        }
        let (mut bytes_before, mut bytes_after) = (0, 0);
        for (block, laid) in blocks {
            let there = slices::of_block(&self.tables(), new.ino, block)?;
            bytes_before += visible(there.iter().map(|(_, slice)| slice)).1;
            bytes_after += self.lay_block(new.ino, block, there, laid)?;
        }
        self.account(bytes_before, bytes_after)?;
        let changed = size != file_size || !new.slices.is_empty();
        let now_ns = self.now_ns();
        let version = self.ctx.version;
        if let Body::File { node, size: file_size, allocated, data_version } = &mut inode.body {
            *file_size = size;
            *allocated = allocated.saturating_sub(bytes_before) + bytes_after;
            if changed {
                *data_version = version;
            }
            node.ctime_ns = now_ns;
            node.mtime_ns = new.mtime_ns.map_or(node.mtime_ns, |mtime_ns| mtime_ns.min(now_ns));
        }
        Ok(())
    }

    /// Lays slices over a block and removes what is covered. Gives the bytes of the block that are no holes.
    /// Errors: EBUSY when the block has too many slices to take more.
    fn lay_block(
        &mut self,
        ino: Ino,
        block: u32,
        there: Vec<(SliceKey, Slice)>,
        laid: OfBlock<'_>,
    ) -> Done<u64> {
        let all = there.iter().map(|(_, slice)| slice).chain(laid.iter().map(|(_, slice, _)| slice));
        let (shown, allocated) = visible(all);
        let left = if allocated > 0 { shown.iter().filter(|bytes| **bytes > 0).count() } else { 0 };
        if there.len() >= SLICES_PER_BLOCK_CAP && left > there.len() {
            return Err(Errno::EBUSY.into());
        }
        let (shown_there, shown_laid) = shown.split_at(there.len());
        for ((key, _), shown) in there.iter().zip(shown_there) {
            if *shown == 0 || allocated == 0 {
                self.txn.delete(SLICE, &slice_key(ino, *key))?;
            }
        }
        for ((n, slice, new), shown) in laid.into_iter().zip(shown_laid) {
            if *shown > 0 && allocated > 0 {
                let key = SliceKey { block, version: self.ctx.version, n };
                self.insert_slice(ino, key, slice, new)?;
            }
        }
        Ok(allocated)
    }

    fn insert_slice(&mut self, ino: Ino, key: SliceKey, slice: Slice, new: &NewSlice) -> Done<()> {
        if let (Place::Staged(seal), Some(bytes)) = (&slice.place, &new.staged) {
            let staged_key = staged_key(seal.id);
            let taken = self.txn.get_plain(STAGED, &staged_key)?.is_some()
                || self.txn.get_plain(MOVED, &staged_key)?.is_some();
            if taken {
                return Err(Errno::EINVAL.into());
            }
            let row = Staged {
                flags: 0,
                ino,
                block: key.block,
                offset: slice.offset,
                len: slice.len,
                codec: seal.codec,
                full_len: seal.full_len,
                crc32c: seal.crc32c,
                bytes: bytes.clone(),
            };
            self.txn.put_plain(STAGED, &staged_key, &row.encode()?);
        }
        self.txn.insert(SLICE, &slice_key(ino, key), &SliceRow { flags: 0, slice }.encode()?);
        Ok(())
    }

    /// Replaces the slices of a block by what they show. Errors: EAGAIN when they are not what was merged.
    fn merge(&mut self, new: &Published<'_>, inode: &mut Inode, merge: &Merge, file_size: u64) -> Done<()> {
        let start = u64::from(merge.block) * u64::from(self.volume.spec.block_size);
        let there = slices::of_block(&self.tables(), new.ino, merge.block)?;
        if there.last().is_none_or(|(key, _)| *key != merge.newest) {
            return Err(Errno::EAGAIN.into());
        }
        let inside = |s: &NewSlice| {
            let end = start + u64::from(s.slice.offset) + u64::from(s.slice.len);
            s.block == merge.block && end <= file_size
        };
        if !new.slices.iter().all(inside) {
            return Err(Errno::EINVAL.into());
        }
        let before = visible(there.iter().map(|(_, slice)| slice)).1;
        for (key, _) in there {
            self.txn.delete(SLICE, &slice_key(new.ino, key))?;
        }
        let laid = (0..).zip(new.slices).map(|(n, slice)| (n, slice.slice.clone(), slice)).collect();
        let after = self.lay_block(new.ino, merge.block, Vec::new(), laid)?;
        self.account(before, after)?;
        if let Body::File { allocated, .. } = &mut inode.body {
            *allocated = allocated.saturating_sub(before) + after;
        }
        Ok(())
    }

    /// Gives the file another size; the caller puts the inode. Errors: EFBIG, EINVAL.
    pub(crate) fn resize(&mut self, ino: Ino, inode: &mut Inode, new_size: u64) -> Done<()> {
        if new_size > size_max(self.volume.spec.block_size) {
            return Err(Errno::EFBIG.into());
        }
        let Body::File { size: old_size, .. } = inode.body else { return Err(Errno::EINVAL.into()) };
        let freed = if new_size < old_size { self.cut(ino, new_size)? } else { 0 };
        self.account(freed, 0)?;
        let (version, now_ns) = (self.ctx.version, self.now_ns());
        if let Body::File { node, size, allocated, data_version } = &mut inode.body {
            *size = new_size;
            *allocated = allocated.saturating_sub(freed);
            if new_size != old_size {
                *data_version = version;
            }
            (node.mtime_ns, node.ctime_ns) = (now_ns, now_ns);
        }
        Ok(())
    }

    /// Removes the content from `size` on. Gives the bytes freed.
    fn cut(&mut self, ino: Ino, size: u64) -> Done<u64> {
        let block_size = u64::from(self.volume.spec.block_size);
        let Ok(block) = u32::try_from(size / block_size) else { return Ok(0) };
        let offset = (size % block_size) as u32;
        self.check_cut(ino, block)?;
        let mut freed = self.cut_block(ino, block, offset)?;
        let mut next = block.checked_add(1);
        while let Some(first) = next {
            let Some((key, _)) = slices::page(&self.tables(), ino, &first.to_be_bytes(), 1)?.pop() else {
                break;
            };
            freed += self.cut_block(ino, key.block, 0)?;
            next = key.block.checked_add(1);
        }
        Ok(freed)
    }

    /// A cut is one commit, which has to be of bounded size. Errors: EFBIG.
    fn check_cut(&self, ino: Ino, block: u32) -> Done<()> {
        let mut start = block.to_be_bytes().to_vec();
        let mut found = 0;
        loop {
            let page = slices::page(&self.tables(), ino, &start, CUT_PAGE)?;
            found += page.len();
            if found > CUT_SLICES_MAX {
                return Err(Errno::EFBIG.into());
            }
            match page.last() {
                Some((key, _)) if page.len() == CUT_PAGE => start = slices::after(ino, *key),
                _ => return Ok(()),
            }
        }
    }

    /// Removes the content of a block from `offset` on. Gives the bytes freed.
    fn cut_block(&mut self, ino: Ino, block: u32, offset: u32) -> Done<u64> {
        let there = slices::of_block(&self.tables(), ino, block)?;
        let before = visible(there.iter().map(|(_, slice)| slice)).1;
        if there.iter().all(|(_, slice)| slice.offset + slice.len <= offset) {
            return Ok(0);
        }
        let cut: Vec<(SliceKey, Slice, bool)> = there
            .into_iter()
            .map(|(key, slice)| {
                let len = slice.len.min(offset.saturating_sub(slice.offset));
                (key, Slice { len, ..slice.clone() }, len < slice.len)
            })
            .collect();
        let (shown, after) = visible(cut.iter().map(|(_, slice, _)| slice).filter(|slice| slice.len > 0));
        let mut shown = shown.into_iter();
        let mut kept = Vec::new();
        for (key, slice, trimmed) in cut {
            let stays = slice.len > 0 && shown.next().is_some_and(|bytes| bytes > 0) && after > 0;
            if stays {
                kept.push((key, slice, trimmed));
            } else {
                self.txn.delete(SLICE, &slice_key(ino, key))?;
            }
        }
        self.put_cut(ino, block, kept)?;
        Ok(before - after)
    }

    /// Puts what a cut left of a block, the newest slice under a new key.
    fn put_cut(
        &mut self,
        ino: Ino,
        block: u32,
        mut kept: Vec<(SliceKey, Slice, bool)>,
    ) -> Result<(), ReadStop> {
        if let Some((old, slice, _)) = kept.pop() {
            let key = SliceKey { block, version: self.ctx.version, n: 0 };
            self.txn.delete(SLICE, &slice_key(ino, old))?;
            self.txn.insert(SLICE, &slice_key(ino, key), &SliceRow { flags: 0, slice }.encode()?);
        }
        for (key, slice, trimmed) in kept {
            if trimmed {
                self.txn.put(SLICE, &slice_key(ino, key), &SliceRow { flags: 0, slice }.encode()?)?;
            }
        }
        Ok(())
    }
}
