//! Rows found by the hash of a name: entries of a directory, extended attributes of an inode.
//!
//! Names of one hash take tie slots one after the other. A row has the flag `MORE` once the next slot was used, so
//! a lookup ends at the first row without it and is one get as a rule. A removed row with `MORE` leaves a tombstone.

use crate::rows::{ENTRY, Entry, Format, MORE, TOMBSTONE, XATTR, Xattr, position_key};
use bytes::Bytes;
use chronofs_core::name::Position;
use chronofs_core::{FileKind, Ino};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::{Snapshot, Table, Txn};

pub(crate) trait Slot: Format {
    const TABLE: Table;
    fn name(&self) -> &[u8];
    fn set_flags(&mut self, flags: u16);
    fn tombstone() -> Self;

    fn is_tombstone(&self) -> bool {
        self.flags() & TOMBSTONE != 0
    }
}

impl Slot for Entry {
    const TABLE: Table = ENTRY;
    fn name(&self) -> &[u8] {
        &self.name
    }
    fn set_flags(&mut self, flags: u16) {
        self.flags = flags;
    }
    fn tombstone() -> Self {
        Entry { flags: TOMBSTONE | MORE, kind: FileKind::File, ino: Ino(0), name: Bytes::new() }
    }
}

impl Slot for Xattr {
    const TABLE: Table = XATTR;
    fn name(&self) -> &[u8] {
        &self.name
    }
    fn set_flags(&mut self, flags: u16) {
        self.flags = flags;
    }
    fn tombstone() -> Self {
        Xattr { flags: TOMBSTONE | MORE, name: Bytes::new(), value: Bytes::new() }
    }
}

/// Where a name is, or where it would go.
pub(crate) struct Search<T> {
    pub(crate) hit: Option<(Position, T)>,
    /// The slot for the name if it is not there; `None` when all ties are taken.
    pub(crate) free: Option<Free<T>>,
}

/// A free slot.
pub(crate) struct Free<T> {
    pub(crate) position: Position,
    /// The flags the row starts with.
    flags: u16,
    /// A tombstone is there.
    taken: bool,
    /// The row before, which must learn that there is more.
    before: Option<(Position, T)>,
}

/// Looks for `name`, whose first position is `first`, among the rows of `owner`.
pub(crate) fn find<T: Slot, R: Reads>(
    tables: &Snapshot<R>,
    owner: Ino,
    first: Position,
    name: &[u8],
) -> Result<Search<T>, ReadStop> {
    let mut free: Option<Free<T>> = None;
    let mut before: Option<(Position, T)> = None;
    for tie in 0..Position::TIES {
        let position = first.with_tie(tie);
        let key = position_key(owner, position);
        let row = match tables.get(T::TABLE, &key)? {
            Some(row) => T::decode(T::TABLE, &key, &row.value)?,
            None => {
                let before = before.filter(|(_, row)| row.flags() & MORE == 0);
                let free = free.unwrap_or(Free { position, flags: 0, taken: false, before });
                return Ok(Search { hit: None, free: Some(free) });
            }
        };
        if row.is_tombstone() {
            let flags = row.flags() & MORE;
            free = free.or(Some(Free { position, flags, taken: true, before: None }));
        } else if row.name() == name {
            return Ok(Search { hit: Some((position, row)), free });
        }
        if row.flags() & MORE == 0 {
            if tie + 1 < Position::TIES {
                let position = first.with_tie(tie + 1);
                let before = Some((first.with_tie(tie), row));
                free = free.or(Some(Free { position, flags: 0, taken: false, before }));
            }
            return Ok(Search { hit: None, free });
        }
        before = Some((position, row));
    }
    Ok(Search { hit: None, free })
}

/// Puts `row` into a free slot.
pub(crate) fn insert<T: Slot, R: Reads>(
    txn: &mut Txn<R>,
    owner: Ino,
    free: Free<T>,
    mut row: T,
) -> Result<(), ReadStop> {
    if let Some((position, mut before)) = free.before {
        before.set_flags(before.flags() | MORE);
        txn.put(T::TABLE, &position_key(owner, position), &before.encode()?)?;
    }
    row.set_flags(free.flags);
    let key = position_key(owner, free.position);
    if free.taken {
        txn.put(T::TABLE, &key, &row.encode()?)?;
    } else {
        txn.insert(T::TABLE, &key, &row.encode()?);
    }
    Ok(())
}

/// Replaces the row at `position`, which has `flags`, by `row`.
pub(crate) fn replace<T: Slot, R: Reads>(
    txn: &mut Txn<R>,
    owner: Ino,
    position: Position,
    flags: u16,
    mut row: T,
) -> Result<(), ReadStop> {
    row.set_flags(flags);
    txn.put(T::TABLE, &position_key(owner, position), &row.encode()?)
}

/// Removes the row at `position`, which has `flags`.
pub(crate) fn remove<T: Slot, R: Reads>(
    txn: &mut Txn<R>,
    owner: Ino,
    position: Position,
    flags: u16,
) -> Result<(), ReadStop> {
    let key = position_key(owner, position);
    if flags & MORE != 0 {
        txn.put(T::TABLE, &key, &T::tombstone().encode()?)
    } else {
        txn.delete(T::TABLE, &key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::{Version, VolumeIndex};
    use chronofs_engine::memory::State;
    use chronofs_engine::{Commit, Reads};

    const DIR: Ino = Ino(7);
    const FIRST: Position = Position(0x4200);

    fn entry(ino: u64, name: &str) -> Entry {
        Entry { flags: 0, kind: FileKind::File, ino: Ino(ino), name: Bytes::copy_from_slice(name.as_bytes()) }
    }

    fn change(state: &mut State, version: u64, act: impl FnOnce(&mut Txn<&State>)) {
        let version = Version(version);
        let mut txn = Txn::new(&*state, VolumeIndex(1), version, true);
        act(&mut txn);
        let batch = txn.into_batch();
        state.apply(&Commit { version, tag: Bytes::new(), batch });
    }

    fn add(state: &mut State, version: u64, name: &str) {
        change(state, version, |txn| {
            let search = find::<Entry, _>(&txn.now(), DIR, FIRST, name.as_bytes()).unwrap();
            insert(txn, DIR, search.free.unwrap(), entry(version, name)).unwrap();
        });
    }

    fn drop(state: &mut State, version: u64, name: &str) {
        change(state, version, |txn| {
            let search = find::<Entry, _>(&txn.now(), DIR, FIRST, name.as_bytes()).unwrap();
            let (position, row) = search.hit.unwrap();
            remove::<Entry, _>(txn, DIR, position, row.flags).unwrap();
        });
    }

    fn ino_of(state: &State, at: Option<u64>, name: &str) -> Option<u64> {
        let tables = Snapshot::new(state, VolumeIndex(1), at.map(Version));
        find::<Entry, _>(&tables, DIR, FIRST, name.as_bytes()).unwrap().hit.map(|(_, row)| row.ino.0)
    }

    #[test]
    fn names_of_one_hash_are_told_apart_now_and_in_the_past() {
        let mut state = State::default();
        for (version, name) in [(1, "a"), (2, "b"), (3, "c")] {
            add(&mut state, version, name);
        }
        drop(&mut state, 4, "b");
        assert_eq!(["a", "b", "c"].map(|name| ino_of(&state, None, name)), [Some(1), None, Some(3)]);
        drop(&mut state, 5, "a");
        add(&mut state, 6, "d");
        assert_eq!(["a", "b", "c", "d"].map(|n| ino_of(&state, None, n)), [None, None, Some(3), Some(6)]);
        assert_eq!(
            ["a", "b", "c", "d"].map(|n| ino_of(&state, Some(3), n)),
            [Some(1), Some(2), Some(3), None]
        );
        assert_eq!(["a", "b", "c", "d"].map(|n| ino_of(&state, Some(4), n)), [Some(1), None, Some(3), None]);
        drop(&mut state, 7, "c");
        drop(&mut state, 8, "d");
        add(&mut state, 9, "c");
        assert_eq!(["a", "b", "c", "d"].map(|n| ino_of(&state, None, n)), [None, None, Some(9), None]);
    }

    #[test]
    fn a_hash_with_every_tie_taken_has_no_slot() {
        let mut state = State::default();
        for version in 1..=Position::TIES {
            add(&mut state, version, &format!("n{version}"));
        }
        let tables = Snapshot::new(&state, VolumeIndex(1), None);
        let search = find::<Entry, _>(&tables, DIR, FIRST, b"one more").unwrap();
        assert!(search.hit.is_none() && search.free.is_none());
        assert_eq!(ino_of(&state, None, "n256"), Some(256));
        drop(&mut state, 300, "n100");
        add(&mut state, 301, "one more");
        assert_eq!(ino_of(&state, None, "one more"), Some(301));
        assert_eq!(state.scan(&[], &[0xff], 1).unwrap().len(), 1);
    }
}
