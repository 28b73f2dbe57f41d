//! A place of backups in a folder, with sets of one server's images, made, spoilt and brought back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use chronofs_backup::{Depot, Depth, Error, Key, Manifest, PROGRAM, Place, Stored, Where};
use chronofs_keys::Passphrase;
use chronofs_snapshot::label::Label;
use chronofs_snapshot::protocol::{Attempt, Cut, Intent, Node, Record, State};
use chronofs_snapshot::tree::list_tree;
use chronofs_snapshot::{Role, SnapshotUid};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CLUSTER: &str = "lab:42";

struct Lab {
    folder: tempfile::TempDir,
    key: Key,
}

fn uid(n: u64) -> SnapshotUid {
    format!("{n:032x}").parse().unwrap()
}

fn node() -> Node {
    Node {
        id: "01".to_owned(),
        name: "one".to_owned(),
        address: "10.0.0.1:8444".to_owned(),
        epoch: 3,
        roles: vec![Role::Storage, Role::Tlog],
        copies: Vec::new(),
    }
}

fn record(n: u64) -> Record {
    let intent = Intent {
        attempt: Attempt { uid: uid(n), number: n },
        cluster: CLUSTER.to_owned(),
        program: PROGRAM.to_owned(),
        arguments: vec!["/mnt/backup".to_owned()],
        nodes: vec![node()],
        started_ns: 1,
        keep_until_ns: Some(9),
        hold_ms: 30_000,
        run_ms: 300_000,
        ended: BTreeMap::new(),
    };
    let cuts = BTreeMap::from([("01".to_owned(), Cut { store: 10, cut: 12 })]);
    let (bytes, held_ms, failures) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let labels = BTreeMap::new();
    Record {
        intent,
        state: State::Complete,
        ended_ns: Some(2),
        cuts,
        bytes,
        held_ms,
        labels,
        code: None,
        failures,
    }
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("depot")).unwrap();
        Lab { folder, key: Key::draw().unwrap() }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("depot")
    }

    fn place(&self) -> Box<dyn Place> {
        Where::folder(self.root().to_str().unwrap()).open().unwrap()
    }

    fn depot(&self) -> Depot {
        Depot::begin(self.place(), self.key.clone(), CLUSTER).unwrap()
    }

    /// The image of a role in attempt `n`, with these files.
    fn image(&self, n: u64, role: Role, files: &[(&str, Vec<u8>)]) -> PathBuf {
        let image = self.folder.path().join(format!("images/{n}/{role}"));
        fs::create_dir_all(&image).unwrap();
        for (name, bytes) in files {
            fs::write(image.join(name), bytes).unwrap();
        }
        let attempt = Attempt { uid: uid(n), number: n };
        let mut label = Label::new(CLUSTER.to_owned(), attempt, vec![node()], &node(), role);
        label.cut = Some(Cut { store: 10, cut: 12 });
        label.files = list_tree(&image).unwrap();
        for entry in &mut label.files {
            let bytes = fs::read(image.join(&entry.path)).unwrap();
            entry.blake3 = Some(blake3::hash(&bytes).to_hex().to_string());
        }
        label.write(&image).unwrap();
        image
    }

    fn store(&self, n: u64, role: Role, files: &[(&str, Vec<u8>)]) -> Result<Stored, Error> {
        let image = self.image(n, role, files);
        self.depot().store(&record(n).intent.attempt, "01", role, &image, &|| false)
    }

    /// A backup of a store that has this, and a log that nothing else has.
    fn backup(&self, n: u64, files: &[(&str, Vec<u8>)]) -> Manifest {
        self.store(n, Role::Storage, files).unwrap();
        self.store(n, Role::Tlog, &[("log", vec![n as u8; 100])]).unwrap();
        self.depot().finish(&record(n)).unwrap()
    }

    fn chunks(&self) -> BTreeMap<String, u64> {
        self.place().list("chunks").unwrap()
    }
}

/// Bytes that no other seed gives; longer than a piece if that is asked for.
fn bytes(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn same(a: &Path, b: &Path) {
    let list = |at: &Path| -> Vec<(String, Vec<u8>)> {
        let files = list_tree(at).unwrap().into_iter();
        files.map(|file| (file.path.clone(), fs::read(at.join(&file.path)).unwrap())).collect()
    };
    assert_eq!(list(a), list(b));
}

#[test]
fn a_backup_comes_back_byte_for_byte_and_the_next_one_stores_only_what_is_new() {
    let lab = Lab::new();
    // Longer than one piece, empty, and twice the same.
    let large = bytes(1, (16 << 20) + 5);
    let files = [("a.sst", large.clone()), ("empty", Vec::new()), ("b", bytes(2, 9)), ("c", bytes(2, 9))];
    let first = lab.backup(1, &files);
    assert!(first.bytes() > large.len() as u64 && first.stored() >= large.len() as u64);
    let more = [("a.sst", large), ("d.sst", bytes(3, 1000))];
    let second = lab.backup(2, &more);
    // The new file, the log, and two labels with their sums.
    assert!((1000..6000).contains(&second.stored()), "{}", second.stored());
    let depot = lab.depot();
    let listed: Vec<_> = depot.sets().unwrap().into_iter().map(|(uid, set)| (uid, set.unwrap())).collect();
    assert_eq!(listed, [(uid(2), second.clone()), (uid(1), first.clone())]);
    for manifest in [&first, &second] {
        assert_eq!(depot.verify(manifest, Depth::Content).unwrap(), []);
        let n = manifest.record.intent.attempt.number;
        let (set, record) = depot.restore(manifest, lab.folder.path()).unwrap();
        for role in [Role::Storage, Role::Tlog] {
            let image = lab.folder.path().join(format!("images/{n}/{role}"));
            same(&image, &set.join("10.0.0.1:8444").join(role.as_str()));
        }
        let read = chronofs_snapshot::record::open(&fs::read(record).unwrap()).unwrap();
        assert_eq!(read, manifest.record);
        assert!(depot.restore(manifest, lab.folder.path()).is_err(), "nothing is overwritten");
    }
    // Zeros take no room.
    let third = lab.backup(3, &[("log", vec![0; 40 << 20])]);
    assert!(third.stored() < 20_000, "{}", third.stored());
    assert_eq!(depot.verify(&third, Depth::Content).unwrap(), []);
    // Names and bytes tell nothing of what is in them.
    let all = fs::read(lab.root().join(lab.chunks().keys().last().unwrap())).unwrap();
    assert!(!all.windows(4).any(|part| part == [1, 1, 1, 1]));
}

#[test]
fn the_wrong_key_another_cluster_and_another_folder_are_known_before_anything_is_written() {
    let lab = Lab::new();
    assert!(matches!(Depot::open(lab.place(), lab.key.clone()), Err(Error::NotADepot(_))));
    lab.depot();
    let before = list_tree(&lab.root()).unwrap();
    let wrong = Key::draw().unwrap();
    assert!(matches!(Depot::open(lab.place(), wrong.clone()), Err(Error::WrongKey(_))));
    assert!(matches!(Depot::begin(lab.place(), wrong, CLUSTER), Err(Error::WrongKey(_))));
    let other = Depot::begin(lab.place(), lab.key.clone(), "lab:43");
    assert!(matches!(other, Err(Error::AnotherCluster { .. })));
    assert_eq!(list_tree(&lab.root()).unwrap(), before);
    let strange = Lab::new();
    fs::write(strange.root().join("letter"), "dear").unwrap();
    let refused = Depot::begin(strange.place(), strange.key.clone(), CLUSTER);
    assert!(matches!(refused, Err(Error::NotEmpty(_))));
    let none = lab.root().join("none");
    assert!(Where::folder(none.to_str().unwrap()).open().is_err(), "a disk that is not mounted");
    assert!(Where::folder("relative").open().is_err());
}

#[test]
fn what_has_no_manifest_is_no_backup_and_its_pieces_are_used_again_or_go() {
    let lab = Lab::new();
    lab.store(1, Role::Storage, &[("a.sst", bytes(1, 5000)), ("old.sst", bytes(9, 7000))]).unwrap();
    let depot = lab.depot();
    assert!(depot.sets().unwrap().is_empty());
    let refused = depot.finish(&record(1)).unwrap_err().to_string();
    assert!(refused.contains("tlog of one was not stored"), "{refused}");
    let second = lab.store(2, Role::Storage, &[("a.sst", bytes(1, 5000))]).unwrap();
    assert!(second.new < 4000, "{second:?}");
    lab.store(2, Role::Tlog, &[("log", bytes(4, 10))]).unwrap();
    let manifest = depot.finish(&record(2)).unwrap();
    let before = lab.chunks().len();
    assert!(depot.sweep(&[]).unwrap() >= 7000);
    assert!(lab.chunks().len() < before);
    assert_eq!(depot.verify(&manifest, Depth::Content).unwrap(), []);
    assert_eq!(depot.sweep(&[]).unwrap(), 0);
}

#[test]
fn one_that_was_stopped_or_whose_file_changed_stores_nothing_under_a_name_that_lies() {
    let lab = Lab::new();
    let image = lab.image(1, Role::Storage, &[("a.sst", bytes(1, 5000)), ("b.sst", bytes(2, 17 << 20))]);
    let attempt = record(1).intent.attempt;
    let stopped = lab.depot().store(&attempt, "01", Role::Storage, &image, &|| true);
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert!(lab.chunks().is_empty());
    for name in ["a.sst", "b.sst"] {
        // What of an earlier try is stored already is not read again.
        lab.depot().sweep(&[]).unwrap();
        let mut changed = fs::read(image.join(name)).unwrap();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        let good = std::mem::replace(&mut changed, fs::read(image.join(name)).unwrap());
        fs::write(image.join(name), good).unwrap();
        let refused = lab.depot().store(&attempt, "01", Role::Storage, &image, &|| false);
        assert!(matches!(refused, Err(Error::Changed { .. })), "{name}");
        fs::write(image.join(name), changed).unwrap();
    }
    lab.depot().store(&attempt, "01", Role::Storage, &image, &|| false).unwrap();
    lab.store(1, Role::Tlog, &[("log", bytes(4, 10))]).unwrap();
    let manifest = lab.depot().finish(&record(1)).unwrap();
    assert_eq!(lab.depot().verify(&manifest, Depth::Content).unwrap(), []);
}

#[test]
fn deleting_removes_what_no_other_backup_names_and_nothing_that_is_unknown() {
    let lab = Lab::new();
    lab.backup(1, &[("shared", bytes(1, 4000)), ("first", bytes(2, 3000))]);
    let second = lab.backup(2, &[("shared", bytes(1, 4000)), ("second", bytes(3, 2000))]);
    lab.place().put("chunks/ff/strange", b"of somebody").unwrap();
    let depot = lab.depot();
    let freed = depot.delete(&uid(1), &[]).unwrap();
    assert!((3000..8000).contains(&freed), "{freed}");
    assert!(lab.chunks().contains_key("chunks/ff/strange"));
    assert_eq!(depot.verify(&second, Depth::Content).unwrap(), []);
    assert!(matches!(depot.set(&uid(1)), Err(Error::NoBackup { .. })));
    assert!(matches!(depot.delete(&uid(1), &[]), Err(Error::NoBackup { .. })));
    // One that is known and is not there may name anything; so may a manifest that cannot be read.
    lab.backup(4, &[("fourth", bytes(6, 100))]);
    assert!(matches!(depot.delete(&uid(4), &[uid(4), uid(2), uid(9)]), Err(Error::NoBackup { .. })));
    assert!(depot.set(&uid(4)).is_ok());
    depot.delete(&uid(4), &[uid(4), uid(2)]).unwrap();
    lab.backup(3, &[("third", bytes(5, 100))]);
    let path = lab.root().join(format!("sets/{}", uid(2)));
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    let before = lab.chunks();
    assert!(matches!(depot.delete(&uid(3), &[]), Err(Error::Damaged { .. })));
    assert_eq!(lab.chunks(), before);
    assert!(depot.set(&uid(3)).is_ok(), "it is still a backup");
    fs::write(&path, good).unwrap();
    depot.delete(&uid(3), &[]).unwrap();
    depot.delete(&uid(2), &[]).unwrap();
    assert_eq!(lab.chunks().into_keys().collect::<Vec<_>>(), ["chunks/ff/strange"]);
}

#[test]
fn a_deletion_that_was_interrupted_is_finished_by_the_next() {
    let lab = Lab::new();
    lab.backup(1, &[("first", bytes(2, 3000))]);
    let depot = lab.depot();
    // As after a crash just before pieces go.
    let set = format!("sets/{}", uid(1));
    let sealed = lab.place().get(&set).unwrap().unwrap();
    lab.place().put(&format!("deleted/{}", uid(1)), &sealed).unwrap();
    lab.place().remove(&set).unwrap();
    assert!(depot.sets().unwrap().is_empty());
    assert!(depot.sweep(&[]).unwrap() >= 3000);
    assert!(lab.chunks().is_empty());
}

#[test]
fn every_byte_that_is_damaged_or_missing_is_found_and_never_restored() {
    let lab = Lab::new();
    let manifest = lab.backup(1, &[("a.sst", bytes(1, 5000))]);
    let depot = lab.depot();
    for object in lab.chunks().keys() {
        let path = lab.root().join(object);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert_eq!(depot.verify(&manifest, Depth::Sizes).unwrap(), [], "sizes do not tell");
        assert_eq!(depot.verify(&manifest, Depth::Content).unwrap().len(), 1);
        assert!(depot.restore(&manifest, lab.folder.path()).is_err());
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert_eq!(depot.verify(&manifest, Depth::Sizes).unwrap().len(), 1);
        fs::remove_file(&path).unwrap();
        assert_eq!(depot.verify(&manifest, Depth::Sizes).unwrap().len(), 1);
        assert!(depot.restore(&manifest, lab.folder.path()).is_err());
        let left = fs::read_dir(lab.folder.path()).unwrap().map(|e| e.unwrap().file_name());
        assert_eq!(left.filter(|name| name != "depot" && name != "images").count(), 0);
        fs::write(&path, good).unwrap();
    }
    // One manifest in the place of another.
    lab.backup(2, &[("a.sst", bytes(1, 5000))]);
    let at = |n| lab.root().join(format!("sets/{}", uid(n)));
    fs::copy(at(1), at(2)).unwrap();
    assert!(matches!(depot.set(&uid(2)), Err(Error::Damaged { .. })));
}

/// Bytes that packing makes smaller, so that their length does not tell how long they lie there.
fn letters(seed: u8, length: usize) -> Vec<u8> {
    bytes(seed, length).into_iter().map(|byte| b'a' + byte % 16).collect()
}

/// Cuts all pieces off, each in the middle.
fn cut_all(lab: &Lab) {
    for object in lab.chunks().keys() {
        let path = lab.root().join(object);
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() / 2]).unwrap();
    }
}

#[test]
fn pieces_that_were_cut_off_are_stored_again_by_the_next_backup_that_has_them() {
    let lab = Lab::new();
    let files = [("raw", bytes(1, 5000)), ("packed", letters(2, 5000)), ("long", letters(3, (16 << 20) + 9))];
    let first = lab.backup(1, &files);
    assert_eq!(lab.depot().verify(&first, Depth::Content).unwrap(), []);
    let lengths = lab.chunks();
    cut_all(&lab);
    assert!(!lab.depot().verify(&first, Depth::Sizes).unwrap().is_empty());
    let second = lab.backup(2, &files);
    assert!(second.stored() > 7 << 20, "{}", second.stored());
    assert!(lengths.iter().filter(|(object, length)| lab.chunks()[*object] == **length).count() >= 4);
    for depth in [Depth::Sizes, Depth::Content] {
        assert_eq!(lab.depot().verify(&second, depth).unwrap(), []);
    }
    lab.depot().restore(&second, lab.folder.path()).unwrap();
    // What only the first one has stays damaged: its log and its labels.
    let damages = lab.depot().verify(&first, Depth::Content).unwrap();
    assert!(damages.iter().all(|damage| !["raw", "packed", "long"].contains(&damage.file.as_str())));
    let third = lab.backup(3, &files);
    assert!(third.stored() < 6000, "what is whole is used again: {}", third.stored());
}

#[test]
fn a_piece_that_is_cut_off_in_a_place_without_backups_is_not_taken_for_whole() {
    let lab = Lab::new();
    let files = [("packed", letters(2, 50_000)), ("raw", bytes(1, 5000))];
    lab.store(1, Role::Storage, &files).unwrap();
    let again = lab.store(2, Role::Storage, &files).unwrap();
    assert!(again.new < 4000, "what no backup names is used again: {again:?}");
    cut_all(&lab);
    let manifest = lab.backup(3, &files);
    assert!(manifest.stored() > 20_000, "{}", manifest.stored());
    assert_eq!(lab.depot().verify(&manifest, Depth::Content).unwrap(), []);
}

#[test]
fn a_piece_that_was_found_damaged_is_stored_again_though_its_length_is_right() {
    let lab = Lab::new();
    let files = [("a.sst", bytes(1, 5000)), ("b.sst", letters(2, 5000))];
    let first = lab.backup(1, &files);
    for object in lab.chunks().keys() {
        let path = lab.root().join(object);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let marks = || lab.place().list("damaged").unwrap().len();
    assert_eq!((lab.depot().verify(&first, Depth::Sizes).unwrap(), marks()), (Vec::new(), 0));
    let damages = lab.depot().verify(&first, Depth::Content).unwrap();
    assert!(damages.iter().any(|damage| damage.file == "a.sst"), "{damages:?}");
    assert_eq!(marks(), lab.chunks().len());
    let second = lab.backup(2, &files);
    assert!(second.stored() > 7000, "{}", second.stored());
    assert_eq!(lab.depot().verify(&second, Depth::Content).unwrap(), []);
    // Marks go with what they mark: by being stored again, or by being removed.
    assert!(marks() > 0, "what only the first has is damaged still");
    lab.depot().delete(&uid(1), &[]).unwrap();
    assert_eq!(marks(), 0);
}

#[test]
fn one_at_a_time_changes_a_place_until_it_is_over() {
    const MINUTE: u64 = 60_000_000_000;
    let lab = Lab::new();
    let depot = lab.depot();
    let mut first = depot.lease("a", "backup 1", 0).unwrap();
    let busy = depot.lease("b", "backup 2", 5 * MINUTE).unwrap_err().to_string();
    assert!(busy.contains("backup 1") && busy.contains("361 s"), "{busy}");
    depot.renew(&mut first, 5 * MINUTE).unwrap();
    assert!(depot.lease("b", "backup 2", 15 * MINUTE).is_err());
    let second = depot.lease("b", "backup 2", 17 * MINUTE).unwrap();
    assert!(matches!(depot.renew(&mut first, 17 * MINUTE), Err(Error::LeaseLost(_))));
    depot.give_back(first, 17 * MINUTE).unwrap();
    assert!(depot.lease("a", "backup 3", 17 * MINUTE).is_err(), "it was not the first one's to give back");
    depot.give_back(second, 17 * MINUTE).unwrap();
    let third = depot.lease("a", "backup 3", 17 * MINUTE).unwrap();
    // Its owner died and is back.
    let fourth = depot.lease("a", "backup 4", 17 * MINUTE).unwrap();
    depot.give_back(third, 17 * MINUTE).unwrap();
    assert!(depot.lease("b", "backup 5", 17 * MINUTE).is_err());
    depot.give_back(fourth, 17 * MINUTE).unwrap();
    depot.lease("b", "backup 5", 17 * MINUTE).unwrap();
}

#[test]
fn the_form_of_a_manifest_stays() {
    let lab = Lab::new();
    let mut manifest = lab.backup(7, &[("a.sst", b"content".to_vec())]);
    // How well something is packed is not part of the form.
    for image in &mut manifest.images {
        image.stored = 1000;
        image.sealed.values_mut().flatten().for_each(|length| *length = 100);
    }
    let text = serde_json::to_string_pretty(&manifest).unwrap() + "\n";
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/manifest-1.json");
    if std::env::var("CHRONOFS_GOLDEN").is_ok_and(|word| word == "write") {
        fs::write(golden, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(golden).unwrap());
    assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
}

#[test]
fn all_members_store_at_once_into_one_folder() {
    let lab = Lab::new();
    lab.depot();
    for n in 1..6 {
        let files = |role: u8| -> Vec<(String, Vec<u8>)> {
            (0..20).map(|k| (format!("{k}.sst"), bytes(role * 20 + k, 3000 + n as usize))).collect()
        };
        let roles = [(Role::Storage, files(0)), (Role::Tlog, files(1))];
        std::thread::scope(|scope| {
            for (role, files) in &roles {
                let files: Vec<(&str, Vec<u8>)> =
                    files.iter().map(|(name, b)| (name.as_str(), b.clone())).collect();
                let lab = &lab;
                scope.spawn(move || lab.store(n, *role, &files).unwrap());
            }
        });
        let manifest = lab.depot().finish(&record(n)).unwrap();
        assert_eq!(lab.depot().verify(&manifest, Depth::Content).unwrap(), []);
    }
}

/// A place that takes its time, as a bucket does, and notes what is put there.
struct Slow {
    place: Box<dyn Place>,
    now: AtomicUsize,
    peak: AtomicUsize,
    put: Mutex<Vec<String>>,
}

/// What a depot is given of it.
struct Shared(Arc<Slow>);

impl Place for Shared {
    fn shown(&self) -> String {
        self.0.place.shown()
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        self.0.place.get(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.0.peak.fetch_max(self.0.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        let put = self.0.place.put(name, bytes);
        self.0.now.fetch_sub(1, Ordering::SeqCst);
        self.0.put.lock().unwrap().push(name.split('/').next().unwrap().to_owned());
        put
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
        self.0.place.put_new(name, bytes)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.0.place.remove(name)
    }

    fn list(&self, folder: &str) -> Result<BTreeMap<String, u64>, Error> {
        self.0.place.list(folder)
    }

    fn is_empty(&self) -> Result<bool, Error> {
        self.0.place.is_empty()
    }
}

#[test]
fn pieces_go_several_at_once_between_their_part_and_the_manifest() {
    let lab = Lab::new();
    let (now, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let slow = Arc::new(Slow { place: lab.place(), now, peak, put: Mutex::default() });
    let depot = Depot::begin(Box::new(Shared(slow.clone())), lab.key.clone(), CLUSTER).unwrap();
    let files: Vec<(String, Vec<u8>)> =
        (0..24).map(|n| (format!("{n}.sst"), bytes(n, 3000 + n as usize))).collect();
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, b)| (name.as_str(), b.clone())).collect();
    let attempt = record(1).intent.attempt;
    for (role, files) in [(Role::Storage, &files[..]), (Role::Tlog, &files[..1])] {
        let image = lab.image(1, role, files);
        depot.store(&attempt, "01", role, &image, &|| false).unwrap();
    }
    let manifest = depot.finish(&record(1)).unwrap();
    assert_eq!(depot.verify(&manifest, Depth::Content).unwrap(), []);
    let peak = slow.peak.load(Ordering::SeqCst);
    assert!((3..=8).contains(&peak), "{peak} at once");
    let mut put = slow.put.lock().unwrap().clone();
    put.dedup();
    assert_eq!(put, ["parts", "chunks", "parts", "chunks", "parts", "sets"]);
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.to_owned().into()).unwrap()
}

#[test]
fn a_place_is_opened_by_its_passphrase_alone_and_by_no_weaker_way_to_it() {
    let lab = Lab::new();
    let words = passphrase("correct horse");
    let refused = Depot::begin(lab.place(), passphrase("short"), CLUSTER);
    assert!(matches!(refused, Err(Error::Key(_))), "a new one has to be worth something");
    assert_eq!(list_tree(&lab.root()).unwrap(), []);
    let made = Depot::begin(lab.place(), words.clone(), CLUSTER).unwrap();
    let before = list_tree(&lab.root()).unwrap();
    assert_eq!(Depot::begin(lab.place(), words.clone(), CLUSTER).unwrap().id(), made.id());
    assert_eq!(Depot::open(lab.place(), words.clone()).unwrap().key(), made.key());
    // The members of a backup are told its key.
    assert!(Depot::open(lab.place(), made.key().clone()).is_ok());
    let wrong = Depot::open(lab.place(), passphrase("correct hors"));
    assert!(matches!(wrong, Err(Error::WrongPassphrase(_))));
    assert!(matches!(Depot::open(lab.place(), lab.key.clone()), Err(Error::ByPassphrase(_))));
    assert_eq!(list_tree(&lab.root()).unwrap(), before);
    // Who can change the place cannot have the key derived in a way that is easier to guess.
    let marker = lab.root().join("chronofs-backup.json");
    let text = fs::read_to_string(&marker).unwrap();
    assert!(!text.contains("horse") && !text.contains(made.key().reveal().as_str()));
    fs::write(&marker, text.replace("\"memory_kib\":65536", "\"memory_kib\":64")).unwrap();
    let refused = Depot::open(lab.place(), words).map(drop).unwrap_err().to_string();
    assert!(refused.contains("weaker"), "{refused}");
    // A place of a key file has no passphrase.
    let other = Lab::new();
    other.depot();
    assert!(matches!(Depot::open(other.place(), passphrase("correct horse")), Err(Error::ByKey(_))));
}
