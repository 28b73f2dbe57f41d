use super::*;
use crate::rows::{self, Format, INODE, SLICE, ino_key, position_key};
use chronofs_engine::{Batch, Change};
use chronofs_history::{Snapshot, Table};

/// Applies raw changes and gives what verify says, as text.
fn after(fs: &mut Fs, changes: Vec<Change>) -> String {
    fs.version += 1;
    fs.state.apply(&Commit { version: fs.now(), tag: Bytes::new(), batch: Batch(changes) });
    verify(&fs.state).unwrap().iter().map(|fault| format!("{fault}\n")).collect()
}

fn raw(fs: &Fs, table: Table, key: &[u8]) -> (Bytes, Vec<u8>) {
    let key = table.live_key(VOLUME, key);
    let value = fs.state.pairs().find(|(k, _)| **k == key).unwrap().1.to_vec();
    (key, value)
}

fn damaged<T: Format>(fs: &Fs, table: Table, key: &[u8], change: impl FnOnce(&mut T)) -> Change {
    let row = Snapshot::new(&fs.state, VOLUME, None).get(table, key).unwrap().unwrap();
    let mut decoded = T::decode(table, key, &row.value).unwrap();
    change(&mut decoded);
    let (key, value) = raw(fs, table, key);
    Change::Put(key, [&value[..9], &decoded.encode().unwrap()].concat().into())
}

fn small() -> (Fs, Ino, Ino) {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    let f = fs.file(d, "f");
    fs.write(f, 0, b"some staged bytes");
    fs.write(f, 3, b"over");
    fs.link(f, Ino::ROOT, "g").unwrap();
    (fs, d, f)
}

#[test]
fn a_sound_store_has_no_faults() {
    let (mut fs, ..) = small();
    assert_eq!(after(&mut fs, Vec::new()), "");
}

#[test]
fn wrong_counts_are_named_with_what_they_should_be() {
    let (mut fs, d, f) = small();
    let dir = damaged::<rows::Dir>(&fs, rows::DIR, &ino_key(d), |dir| dir.entries = 5);
    let inode = damaged::<rows::Inode>(&fs, INODE, &ino_key(f), |inode| {
        if let rows::Body::File { allocated, node, .. } = &mut inode.body {
            *allocated = 99;
            node.nlink = 3;
        }
    });
    let report = after(&mut fs, vec![dir, inode]);
    for line in [
        "volume 1 table dir key 0000000000000002: entries 5; expected 1",
        "volume 1 table inode key 0000000000000003: further link rows 1; expected 2",
        "volume 1 table inode key 0000000000000003: allocated bytes 99; expected 17",
        "volume 1 table counters key : used bytes 17; expected 99",
    ] {
        assert!(report.contains(line), "{line}\nnot in\n{report}");
    }
}

#[test]
fn missing_rows_are_found_from_both_sides() {
    let (mut fs, d, f) = small();
    let position = fs.list_cookies(d)[2];
    let entry = rows::ENTRY.live_key(VOLUME, &position_key(d, chronofs_core::name::Position(position)));
    let report = after(&mut fs, vec![Change::Delete(entry)]);
    assert!(report.contains("no entry at"), "{report}");
    assert!(report.contains("entries 1; expected 0"), "{report}");
    let (mut fs, ..) = small();
    let report = after(&mut fs, vec![Change::Delete(INODE.live_key(VOLUME, &ino_key(f)))]);
    assert!(report.contains("which is not there"), "{report}");
    assert!(report.contains("which is no file"), "{report}");
}

#[test]
fn lost_staged_bytes_are_found_in_the_past_too() {
    let (mut fs, _, f) = small();
    fs.truncate(f, 0).unwrap();
    let staged: Vec<Change> = fs
        .state
        .pairs()
        .filter(|(key, _)| key[0] == rows::STAGED.number)
        .map(|(key, _)| Change::Delete(key.clone()))
        .collect();
    assert_eq!(staged.len(), 1);
    let report = after(&mut fs, staged);
    assert!(report.contains("staged bytes of 0/1/1#0 are not there"), "{report}");
}

#[test]
fn overlapping_intervals_and_rubbish_are_found() {
    let (mut fs, _, f) = small();
    fs.truncate(f, 2).unwrap();
    let (past, value) = fs
        .state
        .pairs()
        .find(|(key, _)| key[..2] == [0x80, INODE.number])
        .map(|(k, v)| (k.clone(), v.clone()))
        .unwrap();
    let mut later = past.to_vec();
    later[past.len() - 1] += 1;
    let report = after(&mut fs, vec![Change::Put(later.into(), value)]);
    assert!(report.contains("as the one before it"), "{report}");
    let (mut fs, _, f) = small();
    let (key, mut value) = raw(&fs, INODE, &ino_key(f));
    value.truncate(value.len() - 1);
    let report = after(&mut fs, vec![Change::Put(key, value.into())]);
    assert!(report.contains("its bytes are not a row"), "{report}");
}

#[test]
fn covered_slices_and_slices_past_the_end_are_found() {
    let (mut fs, _, f) = small();
    let keys: Vec<_> = fs.slices(None, f).iter().map(|placed| placed.key).collect();
    let key = |n: usize| rows::slice_key(f, keys[n]);
    let covered =
        damaged::<rows::SliceRow>(&fs, SLICE, &key(0), |row| (row.slice.offset, row.slice.len) = (4, 2));
    let outside = damaged::<rows::SliceRow>(&fs, SLICE, &key(1), |row| row.slice.offset = 15);
    let report = after(&mut fs, vec![covered]);
    assert!(report.contains("covered by newer slices"), "{report}");
    let report = after(&mut fs, vec![outside]);
    assert!(report.contains("expected within size 17"), "{report}");
}

#[test]
fn the_slices_of_every_instant_are_listed_whatever_the_page() {
    let (mut fs, _, f) = small();
    let mut instants = vec![fs.now()];
    fs.write(f, 9, &[7; 500]);
    instants.push(fs.now());
    fs.truncate(f, 100).unwrap();
    instants.push(fs.now());
    fs.write(f, 0, b"all over again");
    instants.push(fs.now());
    let listed = |limit: usize| {
        let (mut found, mut next) = (Vec::new(), Some(crate::HeldFrom::default()));
        while let Some(from) = next {
            let page;
            (page, next) = crate::held_slices(&fs.state, VOLUME, &from, limit).unwrap();
            assert!(page.len() <= limit);
            found.extend(page);
        }
        found
    };
    let found = listed(100);
    assert!(found.iter().any(|held| held.until.is_none()) && found.iter().any(|held| held.until.is_some()));
    assert_eq!(listed(1), found);
    assert_eq!(listed(2), found);
    for at in instants {
        let mut then: Vec<_> = found
            .iter()
            .filter(|held| held.since <= at && held.until.is_none_or(|until| at < until))
            .map(|held| (held.key, held.slice.clone(), held.staged.clone()))
            .collect();
        then.sort_by_key(|(key, ..)| *key);
        let seen = fs.slices(Some(at), f);
        assert_eq!(then.len(), seen.len(), "at {at:?}");
        for ((key, slice, staged), seen) in then.iter().zip(&seen) {
            assert_eq!((key, slice), (&seen.key, &seen.slice), "at {at:?}");
            assert_eq!(staged.is_some(), matches!(slice.place, chronofs_core::slice::Place::Staged(_)));
        }
    }
}
