//! What slices take, against a listing of all rows.

use super::*;
use crate::{HeldFrom, Lies, SpentSlice, held_slices, inode_page, last_known, spent_blocks};
use std::collections::BTreeMap;

type Summed = BTreeMap<(Ino, u32), Vec<SpentSlice>>;

/// The same from all rows at once.
fn summed(fs: &Fs) -> Summed {
    let mut slices: BTreeMap<(Ino, u32, SliceId), SpentSlice> = BTreeMap::new();
    let mut next = Some(HeldFrom::default());
    while let Some(from) = next {
        let page;
        (page, next) = held_slices(&fs.state, VOLUME, &from, 1000).unwrap();
        for held in page {
            let Some(seal) = held.slice.place.seal() else { continue };
            let lies = match held.slice.place {
                Place::Staged(_) => Lies::Staged,
                _ => Lies::Inline,
            };
            let (stored, full) = (seal.stored_len, seal.full_len);
            let (since, until) = (held.key.version, held.until);
            let first = SpentSlice { stored, full, lies, since, until };
            let known = slices.entry((held.ino, held.key.block, seal.id)).or_insert(first);
            known.since = known.since.min(since);
            known.until =
                if known.until.is_none() || until.is_none() { None } else { known.until.max(until) };
        }
    }
    let mut summed = Summed::new();
    for ((ino, block, _), slice) in slices {
        summed.entry((ino, block)).or_default().push(slice);
    }
    summed
}

#[test]
fn every_slice_is_counted_once_whatever_the_page() {
    let mut fs = Fs::new();
    for n in 0..4 {
        let file = fs.file(Ino::ROOT, &format!("f{n}"));
        for round in 0..12u32 {
            let block = (round * 7 + n) % 3;
            fs.write(file, block * BLOCK + round % 5 * 3, &vec![round as u8; 4 + (round % 4) as usize * 9]);
        }
        fs.truncate(file, u64::from(BLOCK) + 6).unwrap();
        if n == 2 {
            fs.unlink(&ROOT, Ino::ROOT, "f2").unwrap();
        }
    }
    let expected = summed(&fs);
    assert!(expected.values().flatten().any(|slice| slice.until.is_some()));
    assert!(expected.values().flatten().any(|slice| slice.until.is_none()));
    for limit in [1, 2, 5, 1000] {
        let (mut found, mut from) = (Summed::new(), Some(Vec::new()));
        while let Some(start) = from {
            let blocks;
            (blocks, from) = spent_blocks(&fs.state, VOLUME, &start, limit).unwrap();
            for block in blocks {
                assert!(found.insert((block.ino, block.block), block.slices).is_none(), "limit {limit}");
            }
        }
        assert_eq!(found, expected, "limit {limit}");
    }
}

#[test]
fn inodes_come_page_by_page_and_what_was_removed_is_known_by_its_last_place() {
    let mut fs = Fs::new();
    let dir = fs.dir(Ino::ROOT, "d");
    let file = fs.file(Ino::ROOT, "f");
    fs.chown(&ROOT, file, 7, 8).unwrap();
    fs.rename((Ino::ROOT, "f"), (dir, "g")).unwrap();
    assert_eq!(last_known(&fs.state, VOLUME, file).unwrap(), Some((7, dir)));
    for limit in [1, 2, 3, 100] {
        let (mut found, mut from) = (0, Some(Ino(0)));
        while let Some(start) = from {
            let page;
            (page, from) = inode_page(&fs.state, VOLUME, start, limit).unwrap();
            found += page.len();
        }
        assert_eq!(found, 3, "limit {limit}");
    }
    fs.unlink(&ROOT, dir, "g").unwrap();
    assert_eq!(last_known(&fs.state, VOLUME, file).unwrap(), Some((7, dir)));
    assert_eq!(last_known(&fs.state, VOLUME, Ino(99)).unwrap(), None);
}
