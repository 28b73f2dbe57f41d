//! Slices, staged bytes, extended attributes: what the inodes say of them is so.

use super::Check;
use super::tree::slot_row;
use crate::acl::{ACCESS, Acl, DEFAULT};
use crate::rows::{
    Body, INODE, Inode, MOVED, Moved, SLICE, STAGED, SliceRow, Staged, XATTR, Xattr, ino_key, number_at,
    parse_slice_key, staged_key,
};
use crate::slices::visible;
use crate::slots::Slot;
use chronofs_core::slice::{INLINE_MAX, Place, STAGED_MAX, Slice, SliceKey};
use chronofs_core::{Ino, SessionId, Version};
use chronofs_engine::{ReadStop, Reads};

pub(super) fn check<R: Reads + Copy>(check: &mut Check<'_, R>) -> Result<(), ReadStop> {
    check.each::<Inode>(INODE, &[], |check, key, inode| {
        xattr_flags(check, key, &inode)?;
        file(check, key, &inode)
    })?;
    check.each::<SliceRow>(SLICE, &[], slice_row)?;
    check.each::<Xattr>(XATTR, &[], xattr_row)?;
    check.each_plain::<Staged>(STAGED, |check, key, row| {
        if row.bytes.is_empty() || row.bytes.len() > STAGED_MAX {
            check.fault(STAGED, key, format!("{} bytes", row.bytes.len()), format!("1 to {STAGED_MAX}"));
        }
        Ok(())
    })?;
    check.each_plain::<Moved>(MOVED, |check, key, row| {
        let packs = crate::pack::packs(&check.tables, row.object.incarnation)?;
        if row.object.session != SessionId::SERVER || row.object.n >= packs.granted {
            check.fault(
                MOVED,
                key,
                format!("in object {}", row.object),
                "one that the server granted itself",
            );
        }
        Ok(())
    })
}

/// A file's slices against its row, block by block.
fn file<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], inode: &Inode) -> Result<(), ReadStop> {
    let Body::File { size, allocated, data_version, .. } = &inode.body else { return Ok(()) };
    let mut sum = 0;
    let unreadable = check.unreadable;
    let mut block: Vec<(SliceKey, Slice)> = Vec::new();
    check.each::<SliceRow>(SLICE, key, |check, slice_key, row| {
        let (_, slice_key) = parse_slice_key(slice_key);
        if block.first().is_some_and(|(first, _)| first.block != slice_key.block) {
            sum += block_of(check, key, *size, &block);
            block.clear();
        }
        block.push((slice_key, row.slice));
        Ok(())
    })?;
    sum += block_of(check, key, *size, &block);
    let mut right = inode.clone();
    if let Body::File { allocated, .. } = &mut right.body {
        *allocated = sum;
    }
    // If slices of this file were lost, this is what still says so.
    check.doubtful |= *allocated != sum;
    let decided = check.unreadable == unreadable && !check.lossy;
    let mend = if decided { check.live(INODE, key, &right)? } else { None };
    check.equal_with(INODE, key, "allocated bytes", *allocated, sum, mend);
    if *data_version == Version::ZERO {
        check.fault(INODE, key, "no data version", "a version");
    }
    Ok(())
}

/// Gives the bytes of a block that are no holes.
fn block_of<R: Reads + Copy>(
    check: &mut Check<'_, R>,
    key: &[u8],
    size: u64,
    slices: &[(SliceKey, Slice)],
) -> u64 {
    let (shown, allocated) = visible(slices.iter().map(|(_, slice)| slice));
    let block_size = u64::from(check.volume.spec.block_size);
    for ((slice_key, slice), shown) in slices.iter().zip(shown) {
        let row_key = crate::rows::slice_key(Ino(number_at(key, 0)), *slice_key);
        if shown == 0 {
            check.fault(SLICE, &row_key, "covered by newer slices", "no row");
        }
        let end = u64::from(slice.offset) + u64::from(slice.len);
        if end > block_size || u64::from(slice_key.block) * block_size + end > size {
            check.fault(
                SLICE,
                &row_key,
                format!("ends at byte {end} of its block"),
                format!("within size {size}"),
            );
        }
    }
    allocated
}

fn slice_row<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], row: SliceRow) -> Result<(), ReadStop> {
    let (ino, _) = parse_slice_key(key);
    let inode = check.get::<Inode>(INODE, &ino_key(ino))?;
    let is_file = inode.is_some_and(|inode| matches!(inode.body, Body::File { .. }));
    if !is_file && !check.is_purged(ino)? {
        check.fault(SLICE, key, format!("slice of {ino:?}, which is no file"), "a file");
    }
    slice(check, key, &row.slice)
}

/// A slice, live or of the past: it is whole, and its staged bytes are there.
pub(super) fn slice<R: Reads + Copy>(
    check: &mut Check<'_, R>,
    key: &[u8],
    slice: &Slice,
) -> Result<(), ReadStop> {
    if slice.len == 0 {
        check.fault(SLICE, key, "an empty slice", "bytes");
    }
    let Some(seal) = slice.place.seal() else { return Ok(()) };
    if slice.skip.checked_add(slice.len).is_none_or(|end| end > seal.full_len) {
        check.fault(
            SLICE,
            key,
            format!("shows {} + {}", slice.skip, slice.len),
            format!("in {}", seal.full_len),
        );
    }
    let stored = match &slice.place {
        Place::Inline(_, bytes) if bytes.len() > INLINE_MAX => {
            check.fault(SLICE, key, format!("{} bytes inline", bytes.len()), format!("up to {INLINE_MAX}"));
            None
        }
        Place::Inline(_, bytes) => Some(bytes.len()),
        Place::Staged(seal) => {
            let staged_key = staged_key(seal.id);
            let row = check.tables.get_plain(STAGED, &staged_key)?;
            let row = row.and_then(|row| check.decode::<Staged>(STAGED, &staged_key, &row));
            let moved = check.tables.get_plain(MOVED, &staged_key)?.is_some();
            if row.is_some() == moved {
                let found = if moved { "both there and moved" } else { "not there" };
                check.fault(SLICE, key, format!("staged bytes of {} are {found}", seal.id), "a row");
            }
            if let Some(row) = &row {
                check.equal(STAGED, &staged_key, "seal", row.seal(seal.id), *seal);
            }
            row.map(|row| row.bytes.len())
        }
        Place::Moved(..) => {
            check.fault(SLICE, key, "a place for replies", "staged");
            None
        }
        Place::Hole | Place::Object(..) => None,
    };
    if let Some(stored) = stored {
        check.equal(SLICE, key, "stored bytes", stored, seal.stored_len as usize);
    }
    Ok(())
}

fn xattr_flags<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], inode: &Inode) -> Result<(), ReadStop> {
    let mut flags = 0;
    let mut access = None;
    check.each::<Xattr>(XATTR, key, |_, _, row| {
        if !row.is_tombstone() {
            flags |= Inode::HAS_XATTR;
            if row.name == ACCESS {
                flags |= Inode::HAS_ACL;
                access = Acl::parse(&row.value).ok().flatten();
            } else if row.name == DEFAULT {
                flags |= Inode::HAS_DEFAULT_ACL;
            }
        }
        Ok(())
    })?;
    check.equal(INODE, key, "attribute flags", inode.flags, flags);
    if let Some(acl) = access {
        check.equal(INODE, key, "mode beside an ACL", inode.mode & 0o777, acl.mode());
    }
    Ok(())
}

fn xattr_row<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], row: Xattr) -> Result<(), ReadStop> {
    if check.is_purged(Ino(number_at(key, 0)))? {
        return Ok(());
    }
    slot_row(check, key, &row)?;
    if check.tables.get(INODE, &key[..8])?.is_none() {
        check.fault(XATTR, key, "no inode", "an inode row");
    }
    let acl = row.name == ACCESS || row.name == DEFAULT;
    if acl && !matches!(Acl::parse(&row.value), Ok(Some(_))) {
        check.fault(XATTR, key, "a malformed ACL", "an ACL");
    }
    Ok(())
}
