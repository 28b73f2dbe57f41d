//! What a path names, and what the metadata server asks about a volume.

use crate::look::inode_in;
use crate::rows::{Entry, ORPHAN, Orphan, PURGE};
use crate::slots;
use crate::{read, system};
use chronofs_core::name::Position;
use chronofs_core::ops::StatFs;
use chronofs_core::{FileKind, Ino, Version, VolumeIndex};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::Snapshot;

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
