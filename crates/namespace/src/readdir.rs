//! Directory listings: cookies are positions, so they stay right whatever changes around them.

use crate::ctx::Done;
use crate::look::{Look, READ};
use crate::rows::{ENTRY, Entry, Format, Inode, ino_key, number_at};
use crate::slots::Slot;
use bytes::Bytes;
use chronofs_core::name::Position;
use chronofs_core::ops::{DirEntry, Reply};
use chronofs_core::{Errno, FileKind, Ino};
use chronofs_engine::Reads;

const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
/// The most entries that one reply carries.
pub const ENTRIES_PER_REPLY_MAX: u32 = 8192;
const PAGE_MAX: usize = 512;

/// `..` of a directory; of the scope's root it is itself.
pub(crate) fn parent_of<R>(look: &Look<'_, R>, dir: Ino, inode: &Inode) -> Ino {
    if dir == look.ctx.root { dir } else { inode.parent }
}

/// Entries after the cookie `after`. The caller needs the right to read: on behalf of those that have the directory
/// open, who were checked when they opened it, a mount asks as root.
pub(crate) fn read<R: Reads + Copy>(
    look: &Look<'_, R>,
    dir: Ino,
    after: u64,
    limit: u32,
    attrs: bool,
) -> Done<Reply> {
    let inode = look.named_dir(dir)?;
    look.allow(dir, &inode, READ)?;
    if look.dir(dir)?.0.nlink == 0 {
        return Err(Errno::ENOENT.into());
    }
    let limit = limit.clamp(1, ENTRIES_PER_REPLY_MAX) as usize;
    let mut entries = Vec::new();
    let dots: [(u64, &'static [u8], Ino); 2] =
        [(DOT, b".", dir), (DOT_DOT, b"..", parent_of(look, dir, &inode))];
    for (cookie, name, ino) in dots {
        if cookie > after && entries.len() < limit {
            let attr = if attrs { Some(look.attr(ino)?) } else { None };
            entries.push(DirEntry { cookie, name: Bytes::from_static(name), ino, kind: FileKind::Dir, attr });
        }
    }
    let mut start = after.saturating_add(1).max(Position::FIRST.0);
    loop {
        let wanted = (limit - entries.len()).min(PAGE_MAX);
        if wanted == 0 || after == u64::MAX {
            return Ok(Reply::Entries { entries, end: after == u64::MAX });
        }
        let page = look.tables.scan(ENTRY, &ino_key(dir), &start.to_be_bytes(), wanted)?;
        let last_page = page.len() < wanted;
        for (key, row) in page {
            let row = Entry::decode(ENTRY, &key, &row.value)?;
            let cookie = number_at(&key, 8);
            start = cookie.saturating_add(1);
            if row.is_tombstone() {
                continue;
            }
            let attr = if attrs { Some(look.attr_of(row.ino, &look.target(row.ino)?)?) } else { None };
            entries.push(DirEntry { cookie, name: row.name, ino: row.ino, kind: row.kind, attr });
        }
        if last_page {
            return Ok(Reply::Entries { entries, end: true });
        }
    }
}
