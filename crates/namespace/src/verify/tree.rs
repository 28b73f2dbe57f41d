//! Inodes, directories, entries and links: everything named is there, and counted right.

use super::{Check, Sums};
use crate::look::DEPTH_MAX;
use crate::rows::{
    Body, DIR, Dir, ENTRY, Entry, INODE, Inode, LINK, Link, MORE, ORPHAN, Orphan, PURGE, Purge, ino_key,
    link_key, number_at, position_key,
};
use crate::slots::{self, Slot};
use chronofs_core::name::Position;
use chronofs_core::{FileKind, Ino, Name};
use chronofs_engine::{Change, ReadStop, Reads};
use chronofs_history::Table;

pub(super) fn check<R: Reads + Copy>(check: &mut Check<'_, R>) -> Result<Sums, ReadStop> {
    let mut sums = Sums::default();
    check.each::<Inode>(INODE, &[], |check, key, inode| inode_row(check, key, &inode, &mut sums))?;
    if check.get::<Inode>(INODE, &ino_key(Ino::ROOT))?.is_none_or(|root| !root.is_dir()) {
        check.fault(INODE, &ino_key(Ino::ROOT), "no root directory", "one");
    }
    check.each::<Dir>(DIR, &[], dir_row)?;
    check.each::<Entry>(ENTRY, &[], entry_row)?;
    check.each::<Link>(LINK, &[], link_row)?;
    check.each_plain::<Orphan>(ORPHAN, orphan_row)?;
    check.each_plain::<Purge>(PURGE, purge_row)?;
    Ok(sums)
}

fn inode_row<R: Reads + Copy>(
    check: &mut Check<'_, R>,
    key: &[u8],
    inode: &Inode,
    sums: &mut Sums,
) -> Result<(), ReadStop> {
    let ino = Ino(number_at(key, 0));
    sums.inodes += 1;
    if ino.0 >> 48 == u64::from(check.volume.incarnation) {
        sums.counter_max = sums.counter_max.max(ino.counter());
    }
    if inode.mode & !0o7777 != 0 {
        check.fault(INODE, key, format!("mode {:o}", inode.mode), "twelve bits");
    }
    if let Body::File { allocated, .. } = &inode.body {
        sums.bytes += allocated;
    }
    let nlink = match inode.node() {
        Some(node) => node.nlink,
        None => match check.get::<Dir>(DIR, key)? {
            Some(dir) => dir.nlink,
            None => {
                check.fault(INODE, key, "a directory without its row", "a row in table dir");
                return Ok(());
            }
        },
    };
    let orphan = check.tables.get_plain(ORPHAN, key)?.is_some();
    check.equal(INODE, key, "orphan row", orphan, nlink == 0);
    if nlink > 0 && ino != Ino::ROOT {
        names(check, INODE, key, (inode.parent, inode.position), ino, inode.kind())?;
    }
    if inode.is_dir() {
        return if nlink > 0 { connected(check, key, ino) } else { Ok(()) };
    }
    let mut further = 0;
    let unreadable = check.unreadable;
    check.each::<Link>(LINK, key, |_, _, _| {
        further += 1;
        Ok(())
    })?;
    let expected = if nlink == 0 { 0 } else { nlink - 1 };
    let mend = if check.unreadable == unreadable { links_mended(check, key, inode, further)? } else { None };
    check.equal_with(INODE, key, "further link rows", further, expected, mend);
    if check.tables.get(LINK, &link_key(ino, inode.parent, inode.position))?.is_some() {
        check.fault(INODE, key, "its first link is a further link too", "one of both");
    }
    Ok(())
}

/// The row with as many links as rows say, if the first one is there.
fn links_mended<R: Reads + Copy>(
    check: &mut Check<'_, R>,
    key: &[u8],
    inode: &Inode,
    further: u32,
) -> Result<Option<Change>, ReadStop> {
    let at = position_key(inode.parent, inode.position);
    let named = check.get::<Entry>(ENTRY, &at)?.is_some_and(|entry| {
        !entry.is_tombstone() && ino_key(entry.ino) == *key && entry.kind == inode.kind()
    });
    let mut right = inode.clone();
    match right.node_mut() {
        Some(node) if named => node.nlink = further + 1,
        _ => return Ok(None),
    }
    check.live(INODE, key, &right)
}

/// The entry at a link must name the inode.
fn names<R: Reads + Copy>(
    check: &mut Check<'_, R>,
    table: Table,
    key: &[u8],
    at: (Ino, Position),
    ino: Ino,
    kind: FileKind,
) -> Result<(), ReadStop> {
    let entry = check.get::<Entry>(ENTRY, &position_key(at.0, at.1))?.filter(|entry| !entry.is_tombstone());
    match entry {
        Some(entry) => {
            check.equal(table, key, "entry of the link names", (entry.ino, entry.kind), (ino, kind))
        }
        None => {
            check.fault(table, key, format!("no entry at {:?} {:?}", at.0, at.1), format!("one of {ino:?}"))
        }
    }
    Ok(())
}

/// A directory is below the root.
fn connected<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], ino: Ino) -> Result<(), ReadStop> {
    let mut dir = ino;
    for _ in 0..DEPTH_MAX {
        if dir == Ino::ROOT {
            return Ok(());
        }
        match crate::look::inode_in(&check.tables, dir)? {
            Some(inode) if inode.is_dir() => dir = inode.parent,
            _ => break,
        }
    }
    check.fault(INODE, key, format!("not below the root: the way up ends at {dir:?}"), "the root");
    Ok(())
}

fn dir_row<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], dir: Dir) -> Result<(), ReadStop> {
    if check.get::<Inode>(INODE, key)?.is_none_or(|inode| !inode.is_dir()) {
        check.fault(DIR, key, "no directory", "an inode row that is one");
    }
    let (mut entries, mut subdirs) = (0, 0);
    let unreadable = check.unreadable;
    check.each::<Entry>(ENTRY, key, |_, _, entry| {
        if !entry.is_tombstone() {
            entries += 1;
            subdirs += u32::from(entry.kind == FileKind::Dir);
        }
        Ok(())
    })?;
    let orphan = check.tables.get_plain(ORPHAN, key)?.is_some();
    let nlink = if orphan { 0 } else { 2 + subdirs };
    let right = Dir { entries, nlink, ..dir.clone() };
    let mend = if check.unreadable == unreadable { check.live(DIR, key, &right)? } else { None };
    check.equal_with(DIR, key, "entries", dir.entries, entries, mend.clone());
    check.equal_with(DIR, key, "links", dir.nlink, nlink, mend);
    Ok(())
}

fn entry_row<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], entry: Entry) -> Result<(), ReadStop> {
    let (dir, position) = (Ino(number_at(key, 0)), Position(number_at(key, 8)));
    if entry.is_tombstone() && check.is_purged(dir)? {
        return Ok(());
    }
    slot_row(check, key, &entry)?;
    if check.get::<Inode>(INODE, &ino_key(dir))?.is_none_or(|inode| !inode.is_dir()) {
        check.fault(ENTRY, key, format!("in {dir:?}, which is no directory"), "a directory");
    }
    if entry.is_tombstone() {
        return Ok(());
    }
    let name_max = check.volume.name_max();
    let is_name = |name: Name| !name.is_longer_than(name_max);
    if !Name::sealed(entry.name.clone()).is_ok_and(is_name) {
        check.fault(ENTRY, key, format!("name \"{}\"", entry.name.escape_ascii()), "a name");
    }
    let Some(inode) = check.get::<Inode>(INODE, &ino_key(entry.ino))? else {
        check.fault(ENTRY, key, format!("names {:?}, which is not there", entry.ino), "an inode");
        return Ok(());
    };
    check.equal(ENTRY, key, "type", entry.kind, inode.kind());
    let first = (inode.parent, inode.position) == (dir, position);
    if !first && check.tables.get(LINK, &link_key(entry.ino, dir, position))?.is_none() {
        let expected = format!("a back-reference of {:?} to this entry", entry.ino);
        check.fault(ENTRY, key, "no back-reference", expected);
    }
    Ok(())
}

/// A row found by the hash of its name: it stands where a lookup finds it.
pub(super) fn slot_row<T: Slot, R: Reads + Copy>(
    check: &mut Check<'_, R>,
    key: &[u8],
    row: &T,
) -> Result<(), ReadStop> {
    let (owner, position) = (Ino(number_at(key, 0)), Position(number_at(key, 8)));
    if row.is_tombstone() {
        if row.flags() & MORE == 0 {
            check.fault(T::TABLE, key, "a tombstone without more", "no row");
        }
        return Ok(());
    }
    let first = Position::of(row.name(), &check.volume.spec.hash_key);
    let found =
        slots::find::<T, R>(&check.tables, owner, first, row.name())?.hit.map(|(position, _)| position);
    check.equal(T::TABLE, key, "lookup of its name finds", found, Some(position));
    Ok(())
}

fn link_row<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], _: Link) -> Result<(), ReadStop> {
    let (ino, parent, position) =
        (Ino(number_at(key, 0)), Ino(number_at(key, 8)), Position(number_at(key, 16)));
    match check.get::<Inode>(INODE, &ino_key(ino))? {
        Some(inode) if !inode.is_dir() => names(check, LINK, key, (parent, position), ino, inode.kind()),
        Some(_) => {
            check.fault(LINK, key, "link of a directory", "no row");
            Ok(())
        }
        None => {
            check.fault(LINK, key, format!("{ino:?} is not there"), "an inode");
            Ok(())
        }
    }
}

fn orphan_row<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], _: Orphan) -> Result<(), ReadStop> {
    if check.tables.get(INODE, key)?.is_none() {
        check.fault(ORPHAN, key, "no inode", "an inode row");
    }
    Ok(())
}

fn purge_row<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], _: Purge) -> Result<(), ReadStop> {
    if check.tables.get(INODE, key)?.is_some() {
        check.fault(PURGE, key, "an inode row", "none: it is gone");
    }
    Ok(())
}
