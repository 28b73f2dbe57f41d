//! Rows that other rows decide: each kind is damaged, the fault is told, and mended to what it was.

use super::*;
use crate::rows::{
    self, COUNTERS, DIR, Format, INODE, OBJECT, RETIRED, Refs, SHARED, STORE_WIDE, TALLY, ino_key,
    object_key, staged_key,
};
use crate::{list_unproven, mends, unproven};
use chronofs_engine::{Batch, Change};
use chronofs_history::{Snapshot, Table, encode_plain, encode_versioned};

/// Two files in a directory, a hard link, a staged slice, an object that one row names, and one that none does.
struct Sound {
    fs: Fs,
    dir: Ino,
    file: Ino,
    held: ObjectId,
    retired: ObjectId,
    shared: SliceId,
}

impl Sound {
    fn new() -> Sound {
        let mut fs = Fs::with(VolumeSpec { retention: Retention::None, ..spec() });
        let dir = fs.dir(Ino::ROOT, "d");
        fs.dir(dir, "below");
        let (file, gone) = (fs.file(dir, "f"), fs.file(dir, "gone"));
        fs.link(file, Ino::ROOT, "g").unwrap();
        let object = |fs: &mut Fs, ino: Ino| {
            let seal = fs.seal(100);
            let slice = Slice { offset: 0, len: 100, skip: 0, place: Place::Object(seal, 0) };
            fs.publish(ino, vec![NewSlice { block: 1, slice, staged: None }]).unwrap();
            seal.id.object
        };
        let (held, retired) = (object(&mut fs, file), object(&mut fs, gone));
        fs.unlink(&ROOT, dir, "gone").unwrap();
        fs.write(file, 0, &[1; 30]);
        let Place::Staged(Seal { id: shared, .. }) = fs.slices(None, file)[0].slice.place else { panic!() };
        Sound { fs, dir, file, held, retired, shared }
    }

    fn pairs(&self) -> Vec<(Bytes, Bytes)> {
        self.fs.state.pairs().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn row<T: Format>(&self, index: VolumeIndex, table: Table, key: &[u8]) -> T {
        let tables = Snapshot::new(&self.fs.state, index, None);
        T::decode(table, key, &tables.get_plain(table, key).unwrap().unwrap()).unwrap()
    }

    fn plain<T: Format>(&self, table: Table, key: &[u8], change: impl FnOnce(&mut T)) -> Change {
        let mut row = self.row::<T>(VOLUME, table, key);
        change(&mut row);
        Change::Put(table.live_key(VOLUME, key), encode_plain(&row.encode().unwrap()))
    }

    fn live<T: Format>(&self, table: Table, ino: Ino, change: impl FnOnce(&mut T)) -> Change {
        let key = ino_key(ino);
        let found = Snapshot::new(&self.fs.state, VOLUME, None).get(table, &key).unwrap().unwrap();
        let mut row = T::decode(table, &key, &found.value).unwrap();
        change(&mut row);
        Change::Put(table.live_key(VOLUME, &key), encode_versioned(found.since, &row.encode().unwrap()))
    }

    fn apply(&mut self, batch: Vec<Change>) {
        self.fs.version += 10;
        let version = self.fs.now();
        self.fs.state.apply(&Commit { version, tag: Bytes::new(), batch: Batch(batch) });
    }

    fn faults(&self) -> String {
        verify(&self.fs.state).unwrap().iter().map(|fault| format!("{fault}\n")).collect()
    }

    /// Mends in one commit; gives how many faults that ended.
    fn mend(&mut self) -> usize {
        let (faults, batch) = mends(&self.fs.state, Version(self.fs.version + 10)).unwrap();
        assert_eq!(faults.is_empty(), batch.0.is_empty());
        if !batch.0.is_empty() {
            self.apply(batch.0);
        }
        assert_eq!(mends(&self.fs.state, self.fs.now()).unwrap().1.0, [], "nothing more");
        faults.len()
    }
}

type Damage = fn(&Sound) -> Change;

/// What is damaged, and the fault that is told.
const DAMAGES: [(Damage, &str); 15] = [
    (|it| it.live::<rows::Dir>(DIR, it.dir, |dir| dir.entries = 7), "entries 7; expected 2"),
    (|it| it.live::<rows::Dir>(DIR, it.dir, |dir| dir.nlink = 9), "links 9; expected 3"),
    (
        |it| it.live::<rows::Inode>(INODE, it.file, |inode| inode.node_mut().unwrap().nlink = 5),
        "further link rows 1; expected 4",
    ),
    (
        |it| {
            it.live::<rows::Inode>(INODE, it.file, |inode| {
                if let rows::Body::File { allocated, .. } = &mut inode.body {
                    *allocated = 4;
                }
            })
        },
        "allocated bytes 4; expected 130",
    ),
    (|it| it.plain::<rows::Counters>(COUNTERS, &[], |row| row.used_inodes = 1), "used inodes 1; expected 4"),
    (|it| it.plain::<rows::Counters>(COUNTERS, &[], |row| row.used_bytes = 1), "used bytes 1; expected 130"),
    (
        |it| it.plain::<Refs>(OBJECT, &object_key(it.held), |row| row.rows = 2),
        "rows that name it 2; expected 1",
    ),
    (|it| it.plain::<Refs>(OBJECT, &object_key(it.held), |row| row.named = 2), "named bytes 2; expected 100"),
    (
        |it| it.plain::<Refs>(OBJECT, &object_key(it.held), |row| row.retired = Some(Version(5))),
        "retired true; expected false",
    ),
    (
        |it| Change::Delete(OBJECT.live_key(VOLUME, &object_key(it.held))),
        "no count; expected 1: so many rows name it",
    ),
    (
        |it| {
            let refs = Refs { rows: 3, bytes: 30, ..Refs::new(it.fs.now()) };
            let key = SHARED.live_key(VOLUME, &staged_key(it.shared));
            Change::Put(key, encode_plain(&refs.encode().unwrap()))
        },
        "rows that name it 3; expected 1",
    ),
    (
        |it| {
            let refs: Refs = it.row(VOLUME, OBJECT, &object_key(it.retired));
            let named = crate::counted::Named::Object(it.retired);
            Change::Delete(RETIRED.live_key(VOLUME, &named.retired_key(refs.retired.unwrap())))
        },
        "no row; expected one: it is retired since",
    ),
    (
        |it| {
            let named = crate::counted::Named::Object(it.held);
            let row = rows::Retired { flags: 0, bytes: 100 };
            let key = RETIRED.live_key(VOLUME, &named.retired_key(Version(5)));
            Change::Put(key, encode_plain(&row.encode().unwrap()))
        },
        "entered as retired; expected no row: its count says otherwise",
    ),
    (|it| it.plain::<rows::Tally>(TALLY, &[], |row| row.held.bytes = 3), "held Sum { count: 2, bytes: 3 }"),
    (
        |it| {
            let key = VOLUME.0.to_be_bytes();
            let mut row: rows::Volume = it.row(STORE_WIDE, rows::VOLUME, &key);
            row.leases = 3;
            Change::Put(rows::VOLUME.live_key(STORE_WIDE, &key), encode_plain(&row.encode().unwrap()))
        },
        "leases 3; expected 0",
    ),
];

#[test]
fn each_kind_of_row_that_others_decide_is_told_and_mended_to_what_it_was() {
    for (damage, told) in DAMAGES {
        let mut it = Sound::new();
        assert_eq!((it.faults(), it.mend()), (String::new(), 0));
        let sound = it.pairs();
        let change = damage(&it);
        it.apply(vec![change]);
        let faults = it.faults();
        assert!(faults.contains(told), "{told}\nnot in\n{faults}");
        assert!(it.mend() > 0, "{told}");
        assert_eq!(it.faults(), "", "{told}");
        let strip = |pairs: Vec<(Bytes, Bytes)>| -> Vec<(Bytes, Bytes)> {
            // A count that is made anew says when.
            pairs
                .into_iter()
                .filter(|(key, _)| !(told.starts_with("no count") && key[0] == OBJECT.number))
                .collect()
        };
        assert_eq!(strip(it.pairs()), strip(sound), "{told}");
    }
}

#[test]
fn all_of_them_at_once_are_mended() {
    let mut it = Sound::new();
    // Not those that damage a row which another has damaged; nor what is allocated, after which no count is lowered.
    let changes = [0, 4, 6, 11, 13, 14].map(|n: usize| DAMAGES[n].0(&it)).to_vec();
    let sound = it.pairs();
    it.apply(changes);
    it.mend();
    assert_eq!((it.faults(), it.pairs()), (String::new(), sound));
}

#[test]
fn no_count_is_made_while_a_row_that_may_name_something_cannot_be_read() {
    let mut it = Sound::new();
    let slice = it.fs.slices(None, it.file).into_iter().find(|placed| placed.key.block == 1).unwrap();
    let key = rows::SLICE.live_key(VOLUME, &rows::slice_key(it.file, slice.key));
    it.apply(vec![Change::Put(key.clone(), Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff]))]);
    let faults = it.faults();
    assert!(faults.contains("its bytes are not a row"), "{faults}");
    assert!(faults.contains("rows that name it 1; expected 0"), "{faults}");
    it.mend();
    let refs: Refs = it.row(VOLUME, OBJECT, &object_key(it.held));
    assert_eq!((refs.rows, refs.retired), (1, None), "what the damaged row named is kept");
    let inode = it.fs.attr(it.file);
    assert_eq!(inode.allocated, 130, "what is allocated is not known");
}

/// The row of the slice of block 1 of `file`, which names the object `held`.
fn slice_key_of(it: &Sound) -> Bytes {
    let slice = it.fs.slices(None, it.file).into_iter().find(|placed| placed.key.block == 1).unwrap();
    rows::SLICE.live_key(VOLUME, &rows::slice_key(it.file, slice.key))
}

#[test]
fn an_object_whose_rows_were_lost_is_never_made_one_that_can_be_deleted() {
    let mut it = Sound::new();
    let lost = slice_key_of(&it);
    it.apply(vec![Change::Delete(lost)]);
    // As often as anybody likes: what tells of the loss stays, too.
    for _ in 0..2 {
        it.mend();
        let refs: Refs = it.row(VOLUME, OBJECT, &object_key(it.held));
        assert_eq!((refs.rows, refs.retired), (1, None));
        assert_eq!(it.fs.attr(it.file).allocated, 130);
        let faults = it.faults();
        assert!(faults.contains("rows that name it 1; expected 0: not corrected, since"), "{faults}");
        assert!(faults.contains("allocated bytes 130; expected 30"), "{faults}");
    }
}

#[test]
fn a_count_is_not_lowered_to_nothing_where_nothing_else_tells_of_a_loss_either() {
    let mut it = Sound::new();
    let lost = slice_key_of(&it);
    let unallocated = it.live::<rows::Inode>(INODE, it.file, |inode| {
        if let rows::Body::File { allocated, .. } = &mut inode.body {
            *allocated = 30;
        }
    });
    it.apply(vec![Change::Delete(lost), unallocated]);
    assert!(it.mend() > 0, "the sum of used bytes");
    let refs: Refs = it.row(VOLUME, OBJECT, &object_key(it.held));
    assert_eq!((refs.rows, refs.named, refs.retired), (1, 100, None));
    let faults = it.faults();
    assert!(faults.contains("expected 0: not corrected, since what no row names is deleted"), "{faults}");
}

#[test]
fn no_count_is_lowered_in_a_volume_that_seems_to_have_lost_rows() {
    let mut it = Sound::new();
    // One row still names it; that another did before it was lost is as likely as a count that is wrong.
    let high = it.plain::<Refs>(OBJECT, &object_key(it.held), |row| row.rows = 2);
    let allocated = DAMAGES[3].0(&it);
    it.apply(vec![high, allocated]);
    for _ in 0..2 {
        it.mend();
        assert_eq!(it.row::<Refs>(VOLUME, OBJECT, &object_key(it.held)).rows, 2);
        let faults = it.faults();
        assert!(faults.contains("expected 1: not corrected, since other faults of this volume"), "{faults}");
    }
    // A count that is too low is raised there, too.
    let low = it.plain::<Refs>(OBJECT, &object_key(it.held), |row| row.rows = 0);
    it.apply(vec![low]);
    it.mend();
    assert_eq!(it.row::<Refs>(VOLUME, OBJECT, &object_key(it.held)).rows, 1);
}

#[test]
fn what_is_allocated_is_mended_where_no_count_is_too_high() {
    let mut it = Sound::new();
    let sound = it.pairs();
    let allocated = DAMAGES[3].0(&it);
    it.apply(vec![allocated]);
    it.mend();
    assert_eq!((it.faults(), it.pairs()), (String::new(), sound));
}

#[test]
fn what_stands_for_itself_is_not_guessed() {
    let mut it = Sound::new();
    let gone = Change::Delete(INODE.live_key(VOLUME, &ino_key(it.file)));
    it.apply(vec![gone]);
    it.mend();
    let faults = it.faults();
    assert!(faults.contains("which is not there; expected an inode"), "{faults}");
}

#[test]
fn what_an_earlier_start_noted_outlives_a_repair() {
    let mut fs = Fs::new();
    let made = list_unproven(&fs.state).unwrap();
    assert_eq!(made.len(), 1);
    assert_eq!(unproven(&fs.state, Version(7)).unwrap(), Batch::default());
    fs.system(SystemRequest::NoteUnproven { volume: spec().id, survived: None }).unwrap();
    let noted = unproven(&fs.state, Version(7)).unwrap();
    fs.version += 10;
    fs.commit(noted);
    assert_eq!(list_unproven(&fs.state).unwrap(), [(VOLUME, Version(7))]);
    assert_eq!(unproven(&fs.state, Version(8)).unwrap(), Batch::default());
}
