//! Paths, for people and for tokens: what an inode is called, and what a path names.

use crate::look::inode_in;
use crate::rows::{ENTRY, Entry, Format, ORPHAN, Orphan, PURGE, position_key};
use crate::slots;
use crate::{read, system};
use chronofs_core::name::Position;
use chronofs_core::ops::StatFs;
use chronofs_core::{FileKind, Ino, Version, VolumeIndex};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::Snapshot;

/// The most directories that are walked: deeper than any path a kernel lets through, and an end to a loop of
/// damaged rows.
pub const DEPTH_MAX: usize = 1 << 16;

/// What `path` (names with `/` between) names below `root`, at an instant or now. Symbolic links are not followed,
/// `..` names nothing.
pub fn resolve<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    at: Option<Version>,
    root: Ino,
    path: &[u8],
) -> Result<Option<(Ino, FileKind)>, ReadStop> {
    let Some(row) = system::volume(reads, volume)? else { return Ok(None) };
    let tables = Snapshot::new(reads, volume, at);
    let Some(inode) = inode_in(&tables, root)? else { return Ok(None) };
    let (mut ino, mut kind) = (root, inode.kind());
    for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        let first = Position::of(name, &row.spec.hash_key);
        match slots::find::<Entry, _>(&tables, ino, first, name)?.hit {
            Some((_, entry)) => (ino, kind) = (entry.ino, entry.kind),
            None => return Ok(None),
        }
    }
    Ok(Some((ino, kind)))
}

/// A path of an inode from the volume's root, starting with `/`, by its first link. `None` if it has no path.
pub fn path_of<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    at: Option<Version>,
    ino: Ino,
) -> Result<Option<Vec<u8>>, ReadStop> {
    let tables = Snapshot::new(reads, volume, at);
    let mut names = Vec::new();
    let mut below = ino;
    while below != Ino::ROOT {
        let Some(inode) = inode_in(&tables, below)? else { return Ok(None) };
        let key = position_key(inode.parent, inode.position);
        let Some(row) = tables.get(ENTRY, &key)? else { return Ok(None) };
        let entry = Entry::decode(ENTRY, &key, &row.value)?;
        if entry.ino != below || names.len() == DEPTH_MAX {
            return Ok(None);
        }
        names.push(entry.name);
        below = inode.parent;
    }
    let mut path = Vec::new();
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Ok(Some(if path.is_empty() { b"/".to_vec() } else { path }))
}

/// Inodes without links that wait for their last close, with the version since which they do.
pub fn list_orphans<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
) -> Result<Vec<(Ino, Version)>, ReadStop> {
    let rows = system::scan_plain::<Orphan, R>(reads, ORPHAN, volume)?;
    Ok(rows.into_iter().map(|(key, row)| (Ino(system::number_of(&key)), row.since)).collect())
}

/// An inode that is gone and has rows left, if there is one.
pub fn first_purge<R: Reads + ?Sized>(reads: &R, volume: VolumeIndex) -> Result<Option<Ino>, ReadStop> {
    let row = Snapshot::new(reads, volume, None).scan_plain(PURGE, &[], &[], 1)?.pop();
    Ok(row.map(|(key, _)| Ino(system::number_of(&key))))
}

/// What a volume uses and may use.
pub fn usage<R: Reads + ?Sized>(reads: &R, volume: VolumeIndex) -> Result<Option<StatFs>, ReadStop> {
    let Some(row) = system::volume(reads, volume)? else { return Ok(None) };
    let counters = read::counters(&Snapshot::new(reads, volume, None))?;
    Ok(Some(StatFs {
        used_bytes: counters.used_bytes,
        used_inodes: counters.used_inodes,
        max_bytes: row.spec.max_bytes,
        max_inodes: row.spec.max_inodes,
    }))
}
