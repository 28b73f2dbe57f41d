//! Reads: what a client asks without changing anything, now or at an instant.

use crate::ctx::Done;
use crate::look::{EXEC, Look, READ, WRITE, missing};
use crate::rows::{Body, COUNTERS, Counters, Format, Inode, STAGED, Staged, TALLY, Tally, staged_key};
use crate::{readdir, slices, xattr};
use bytes::Bytes;
use chronofs_core::ops::{REPLY_BYTES_MAX, Reply, Request, SLICES_PER_BLOCK_MAX, StatFs};
use chronofs_core::slice::{Place, PlacedSlice, Slice, SliceKey};
use chronofs_core::{Errno, FileKind, Ino, Name, SliceId};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::Snapshot;

const PAGE: usize = 256;
/// The most slices that one reply carries.
pub const SLICES_PER_REPLY_MAX: usize = 1 << 14;
/// The most staged bytes that come along with an open.
const OPEN_BYTES_MAX: usize = 256 << 10;

pub(crate) fn read<R: Reads + Copy>(look: &Look<'_, R>, request: &Request) -> Done<Reply> {
    match request {
        Request::Lookup { parent, name } => lookup(look, *parent, name),
        Request::Parent { dir } => parent(look, *dir),
        Request::GetAttr { ino } => Ok(Reply::Attr(look.attr_of(*ino, &look.named(*ino)?)?)),
        Request::ReadDir { dir, after, limit, attrs } => readdir::read(look, *dir, *after, *limit, *attrs),
        Request::ReadLink { ino } => match look.named(*ino)?.body {
            Body::Symlink { target, .. } => Ok(Reply::Bytes(target)),
            _ => Err(Errno::EINVAL.into()),
        },
        Request::GetXattr { ino, name } => xattr::get(look, *ino, name),
        Request::ListXattr { ino } => xattr::list(look, *ino),
        Request::Slices { ino, first, count, staged } => blocks(look, *ino, *first, *count, *staged),
        Request::Staged { ino, ids } => staged(look, *ino, ids),
        Request::StatFs => stat_fs(look),
        Request::Access { ino, mask } => access(look, *ino, *mask),
        Request::Narrowed { dir } => Ok(Reply::Narrowed(look.narrowed(*dir, &look.named_dir(*dir)?)?)),
        Request::Open { ino, read, write } => open(look, *ino, *read, *write),
        Request::Close { .. } => Ok(Reply::Done),
        Request::Sync => Ok(Reply::Instant(look.ctx.version)),
        _ => Err(Errno::EINVAL.into()),
    }
}

fn lookup<R: Reads + Copy>(look: &Look<'_, R>, parent: Ino, name: &Name) -> Done<Reply> {
    let dir = look.named_dir(parent)?;
    look.allow(parent, &dir, EXEC)?;
    let (_, entry) = look.find(parent, name)?.hit.ok_or(Errno::ENOENT)?;
    let inode = look.target(entry.ino)?;
    Ok(Reply::Attr(look.attr_of(entry.ino, &inode)?))
}

fn parent<R: Reads + Copy>(look: &Look<'_, R>, dir: Ino) -> Done<Reply> {
    let inode = look.named_dir(dir)?;
    look.allow(dir, &inode, EXEC)?;
    let parent = readdir::parent_of(look, dir, &inode);
    if look.dir(dir)?.0.nlink == 0 {
        return Err(Errno::ENOENT.into());
    }
    Ok(Reply::Attr(look.attr(parent)?))
}

/// The slices of a run of blocks. Errors: EOVERFLOW if they are too many for one reply: ask for fewer blocks.
fn blocks<R: Reads + Copy>(
    look: &Look<'_, R>,
    ino: Ino,
    first: u32,
    count: u32,
    with_staged: bool,
) -> Done<Reply> {
    require_file(&look.named(ino)?)?;
    let last = u64::from(first) + u64::from(count);
    let mut found: Vec<(SliceKey, Slice)> = Vec::new();
    let mut start = first.to_be_bytes().to_vec();
    loop {
        let page = slices::page(&look.tables, ino, &start, PAGE)?;
        let last_page = page.len() < PAGE;
        if let Some((key, _)) = page.last() {
            start = slices::after(ino, *key);
        }
        let page_len = page.len();
        found.extend(page.into_iter().take_while(|(key, _)| u64::from(key.block) < last));
        if found.len() > SLICES_PER_REPLY_MAX {
            return Err(Errno::EOVERFLOW.into());
        }
        let past_end =
            start.first_chunk::<4>().is_some_and(|block| u64::from(u32::from_be_bytes(*block)) >= last);
        if last_page || page_len == 0 || past_end {
            break;
        }
    }
    let budget = if with_staged { REPLY_BYTES_MAX } else { 0 };
    Ok(Reply::Slices(place(look, found, budget)?.0))
}

/// Fetches the bytes of staged slices as far as `budget` goes, and says whether all came along. Those that were moved are
/// shown where they lie now.
fn place<R: Reads + Copy>(
    look: &Look<'_, R>,
    found: Vec<(SliceKey, Slice)>,
    mut budget: usize,
) -> Done<(Vec<PlacedSlice>, bool)> {
    let mut whole = true;
    let repacked = is_repacked(look)?;
    let mut placed = Vec::with_capacity(found.len());
    for (key, mut slice) in found {
        let mut staged = None;
        if let Place::Staged(seal) = &slice.place {
            let seal = *seal;
            let fits = seal.stored_len as usize <= budget;
            let row = if fits { staged_row(look, seal.id)? } else { None };
            match row {
                Some(row) => {
                    budget -= seal.stored_len as usize;
                    staged = Some(row.bytes);
                }
                None => match crate::pack::moved(&look.tables, seal.id)? {
                    Some(moved) => slice.place = Place::Moved(seal, moved.object, moved.at),
                    None if fits => return Err(lost(seal.id).into()),
                    // What comes later comes with its own request: a reader gets a prefix.
                    None => (whole, budget) = (false, 0),
                },
            }
        }
        if let Place::Object(seal, _) = slice.place
            && repacked
            && let Some(moved) = crate::pack::moved(&look.tables, seal.id)?
        {
            slice.place = Place::Moved(seal, moved.object, moved.at);
        }
        placed.push(PlacedSlice { key, slice, staged });
    }
    Ok((placed, whole))
}

/// Whether slices that were born in objects may lie elsewhere.
fn is_repacked<R: Reads + Copy>(look: &Look<'_, R>) -> Result<bool, ReadStop> {
    let row = look.tables.get_plain(TALLY, &[])?;
    let tally = row.map(|row| Tally::decode(TALLY, &[], &row)).transpose()?;
    Ok(tally.is_some_and(|tally| tally.flags & Tally::REPACKED != 0))
}

fn staged_row<R: Reads + Copy>(look: &Look<'_, R>, id: SliceId) -> Result<Option<Staged>, ReadStop> {
    let key = staged_key(id);
    look.tables.get_plain(STAGED, &key)?.map(|row| Staged::decode(STAGED, &key, &row)).transpose()
}

fn lost(id: SliceId) -> ReadStop {
    missing("staged bytes of a slice", Ino(id.object.n))
}

/// Stored bytes of staged slices of a file. Errors: EINVAL for what is no staged slice of it, or not any more.
fn staged<R: Reads + Copy>(look: &Look<'_, R>, ino: Ino, ids: &[SliceId]) -> Done<Reply> {
    require_file(&look.named(ino)?)?;
    let mut found: Vec<Bytes> = Vec::new();
    let mut sum = 0;
    for id in ids {
        let row = staged_row(look, *id)?.filter(|row| row.ino == ino).ok_or(Errno::EINVAL)?;
        sum += row.bytes.len();
        if sum > REPLY_BYTES_MAX && !found.is_empty() {
            break;
        }
        found.push(row.bytes);
    }
    Ok(Reply::Staged(found))
}

fn require_file(inode: &Inode) -> Result<(), Errno> {
    match inode.kind() {
        FileKind::File => Ok(()),
        FileKind::Dir => Err(Errno::EISDIR),
        _ => Err(Errno::EINVAL),
    }
}

fn stat_fs<R: Reads + Copy>(look: &Look<'_, R>) -> Done<Reply> {
    let spec = &look.volume.spec;
    let counters = counters(&look.tables)?;
    Ok(Reply::StatFs(StatFs {
        used_bytes: counters.used_bytes,
        used_inodes: counters.used_inodes,
        max_bytes: spec.max_bytes,
        max_inodes: spec.max_inodes,
    }))
}

pub(crate) fn counters<R: Reads>(tables: &Snapshot<R>) -> Result<Counters, ReadStop> {
    let row = tables.get_plain(COUNTERS, &[])?.ok_or_else(|| missing("counters", Ino::ROOT))?;
    Counters::decode(COUNTERS, &[], &row)
}

fn access<R: Reads + Copy>(look: &Look<'_, R>, ino: Ino, mask: u8) -> Done<Reply> {
    let inode = look.named(ino)?;
    let want = u16::from(mask);
    if want & !(READ | WRITE | EXEC) != 0 {
        return Err(Errno::EINVAL.into());
    }
    check_writable(look, &inode, want & WRITE != 0)?;
    look.allow(ino, &inode, want)?;
    Ok(Reply::Done)
}

/// Errors: EROFS. What is no file, directory or link is not on the volume and may be written.
fn check_writable<R>(look: &Look<'_, R>, inode: &Inode, write: bool) -> Result<(), Errno> {
    let stored = matches!(inode.kind(), FileKind::File | FileKind::Dir | FileKind::Symlink);
    if write && stored && (look.ctx.read_only || look.ctx.at.is_some()) { Err(Errno::EROFS) } else { Ok(()) }
}

/// The right to open, and the slices of a small file, so that its first read asks nothing more.
fn open<R: Reads + Copy>(look: &Look<'_, R>, ino: Ino, read: bool, write: bool) -> Done<Reply> {
    let inode = look.named(ino)?;
    match inode.kind() {
        FileKind::Symlink => return Err(Errno::ELOOP.into()),
        FileKind::Dir if write => return Err(Errno::EISDIR.into()),
        _ => {}
    }
    check_writable(look, &inode, write)?;
    look.allow(ino, &inode, if read { READ } else { 0 } | if write { WRITE } else { 0 })?;
    let attr = look.attr_of(ino, &inode)?;
    let small = read && attr.kind == FileKind::File && attr.size <= u64::from(look.volume.spec.block_size);
    if !small {
        return Ok(Reply::Opened { attr, slices: None });
    }
    let found = slices::page(&look.tables, ino, &[], SLICES_PER_BLOCK_MAX + 1)?;
    let slices = match found.len() {
        0..=SLICES_PER_BLOCK_MAX => Some(place(look, found, OPEN_BYTES_MAX)?).filter(|(_, whole)| *whole),
        _ => None,
    };
    Ok(Reply::Opened { attr, slices: slices.map(|(placed, _)| placed) })
}
