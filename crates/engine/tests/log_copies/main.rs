//! Copies of the log of a real engine in folders: what is durable is in them, whatever happens to one of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod lab;
mod recovery;
#[path = "../support/mod.rs"]
mod support;

use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::copies::{
    Change, Connect, Coordinator, CopyError, FolderCopy, Health, Holding, Link, NotRecorded, Quorum, Setup,
    recover,
};
use chronofs_engine::embedded::{
    Embedded, EmbeddedFolder, Folder, MemMedium, MemStore, Options, Place, RealDisk, RocksOptions,
    open_copied,
};
use chronofs_engine::sim::{Fault, Random, SimDisk};
use chronofs_engine::{Batch, Commit, Engine, EngineError};
use lab::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::cases;

const STORE: &str = "018f-store";

#[test]
fn a_copy_that_fails_is_left_out_and_one_that_returns_is_caught_up() {
    let lab = Lab::new(&["a", "b"], 0);
    let engine = lab.open("meta");
    wait_until("both count", || lab.whole());
    write(&engine, 0..40);
    // Its folder becomes something else.
    lab.take_away("b");
    write(&engine, 40..80);
    // The copy still has its files open, so what counts is that nobody who reads the folder is lied to.
    wait_until("it is left out", || {
        put(&engine, 80);
        engine.sync().unwrap();
        !lab.whole()
    });
    let status = engine.copies().unwrap().status();
    let failed = status.copies.iter().find(|copy| copy.name.ends_with("/b")).unwrap();
    assert!(!failed.member && matches!(&failed.health, Health::Failed(why) if !why.is_empty()), "{failed:?}");
    write(&engine, 81..120);
    lab.bring_back("b");
    wait_until("it is back", || lab.whole());
    write(&engine, 120..140);
    lose(engine);
    // The one that never failed is lost: the other has everything.
    std::fs::remove_dir_all(lab.path("a")).unwrap();
    std::fs::write(lab.path("a"), "no folder").unwrap();
    assert_eq!(held(&lab.recover("new").unwrap()), 140);
}

#[test]
fn of_two_owners_only_the_newer_can_make_anything_durable() {
    let lab = Lab::new(&["a"], 0);
    let old = lab.open("meta");
    wait_until("it counts", || lab.whole());
    write(&old, 0..10);
    let new = lab.recover("new").unwrap();
    put(&old, 10);
    let error = old.sync().unwrap_err().to_string();
    assert!(error.contains("another owner"), "{error}");
    write(&new, 10..30);
    assert_eq!(held(&new), 30);
}

#[test]
fn without_the_coordinator_a_failed_copy_holds_everything_up_and_nothing_is_called_durable() {
    let lab = Lab::new(&["a", "b"], 0);
    let engine = Arc::new(lab.open("meta"));
    wait_until("both count", || lab.whole());
    write(&engine, 0..10);
    lab.recorded.lock().unwrap().away = true;
    std::fs::remove_dir_all(lab.path("b")).unwrap();
    std::fs::write(lab.path("b"), "no folder").unwrap();
    put(&engine, 10);
    let before = engine.durable();
    let syncing = std::thread::spawn({
        let engine = engine.clone();
        move || engine.sync().map(drop).map_err(|error| error.to_string())
    });
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!syncing.is_finished() && engine.durable() == before);
    assert!(engine.copies().unwrap().status().unrecorded.is_some());
    lab.recorded.lock().unwrap().away = false;
    syncing.join().unwrap().unwrap();
    assert!(!lab.whole() && engine.durable() > before);
}

#[test]
fn a_copy_of_another_store_is_not_touched() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("copy");
    let mut copy = FolderCopy::new(&folder, "one").unwrap();
    // An owner that has no epoch yet leaves a copy that can be opened again, too.
    copy.open(0).unwrap();
    assert!(FolderCopy::is_in(&folder));
    copy.open(3).unwrap();
    let error = FolderCopy::new(&folder, "two").err().unwrap().to_string();
    assert!(error.contains("metadata store one"), "{error}");
    let error = FolderCopy::new(&temp.path().join("no/disk"), "one").err().unwrap().to_string();
    assert!(error.contains("is not there"), "{error}");
}

fn newest_segment(copy: &Path) -> PathBuf {
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(copy.join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names.pop().unwrap()
}

fn segments(log: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    names.sort();
    names
}

/// Why a copy failed.
fn problem(engine: &EmbeddedFolder, name: &str) -> Option<String> {
    let copies = engine.copies().unwrap().status().copies;
    let copy = copies.into_iter().find(|copy| copy.name.ends_with(name)).unwrap();
    match copy.health {
        Health::Failed(why) if !copy.member => Some(why),
        _ => None,
    }
}

/// The store takes what was written, and the log gives up what nobody needs.
fn flush(engine: &EmbeddedFolder, n: u64) {
    engine.mark(engine.applied()).unwrap();
    put(engine, n);
    engine.sync().unwrap();
    engine.flush().unwrap();
}

#[test]
fn what_a_copy_that_is_away_lacks_stays_in_the_log() {
    let lab = Lab::new(&["a", "b"], 0);
    let engine = lab.open("meta");
    wait_until("both count", || lab.whole());
    write(&engine, 0..40);
    toggle(&lab, true);
    // What was open is still written to, until it is opened anew.
    wait_until("it is left out", || {
        put(&engine, 40);
        engine.sync().unwrap();
        !lab.whole()
    });
    drop(engine);
    // Nor does a start forget that: where the copy ends is not known then.
    let engine = lab.open("meta");
    write(&engine, 41..640);
    for _ in 0..3 {
        flush(&engine, 640);
    }
    assert!(problem(&engine, "/b").is_some() && segments(&lab.path("meta/log")).len() > 20);
    toggle(&lab, false);
    wait_until("it is back", || lab.whole());
    wait_until("the log is not kept any more", || {
        flush(&engine, 640);
        segments(&lab.path("meta/log")).len() < 20
    });
    lose(engine);
    std::fs::remove_dir_all(lab.path("a")).unwrap();
    std::fs::write(lab.path("a"), "no folder").unwrap();
    assert_eq!(held(&lab.recover("new").unwrap()), 641);
}

#[test]
fn a_copy_with_a_hole_that_the_log_cannot_fill_does_not_count() {
    let lab = Lab::new(&["a", "b"], 0);
    let engine = lab.open("meta");
    wait_until("both count", || lab.whole());
    write(&engine, 0..600);
    wait_until("the log begins later", || {
        flush(&engine, 600);
        segments(&lab.path("meta/log"))[0] > lab.path("meta/log/00000000000000000006.log")
    });
    let copied = |n: usize| lab.path("b/log").join(segments(&lab.path("b/log"))[n].file_name().unwrap());
    let all = segments(&lab.path("b/log"));
    assert!(all.len() > 8 && all[0].ends_with("00000000000000000001.log"), "{all:?}");
    drop(engine);
    let damages: [&dyn Fn(); 3] = [
        // It was away for too long.
        &|| all[3..].iter().for_each(|path| std::fs::remove_file(path).unwrap()),
        // It missed a part, and went on later.
        &|| std::fs::File::options().write(true).open(copied(1)).unwrap().set_len(30_000).unwrap(),
        &|| std::fs::remove_file(copied(1)).unwrap(),
    ];
    for (n, damage) in damages.iter().enumerate() {
        if n > 0 {
            std::fs::remove_dir_all(lab.path("b")).unwrap();
            let mut copy = std::process::Command::new("cp");
            assert!(copy.arg("-a").arg(lab.path("a")).arg(lab.path("b")).status().unwrap().success());
        }
        damage();
        let before = segments(&lab.path("b/log"));
        let engine = lab.open("meta");
        wait_until("it is left out", || {
            put(&engine, 601);
            engine.sync().unwrap();
            !lab.whole()
                && problem(&engine, "/b").is_some_and(|why| why.contains("it lacks the log from offset"))
        });
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!lab.whole() && before == segments(&lab.path("b/log")), "case {n}: it is left as it is");
        drop(engine);
    }
    // One that begins anew counts.
    std::fs::remove_dir_all(lab.path("b")).unwrap();
    let engine = lab.open("meta");
    wait_until("the new one counts", || lab.whole());
    lose(engine);
    assert_eq!(held(&lab.recover("new").unwrap()), 602);
}

/// Power cuts of the owner's machine at any operation of its disk, and copies that come and go, by a seed. The copies' own
/// threads take their time, so a seed does not run the same way twice; what is asserted holds whichever way.
#[test]
fn after_every_power_cut_the_log_and_each_whole_copy_hold_what_was_durable() {
    for seed in 0..cases(40) {
        let lab = Lab::new(&["a", "b"], 0);
        let mut random = Random::new(seed);
        let (disk, medium) = (SimDisk::new(seed), MemMedium::default());
        let mut durable = Version::ZERO;
        for round in 0..6 {
            let options =
                Options { segment_bytes: 8 << 10, flush_bytes: 1 << 30, keeper: false, ..Options::default() };
            let store = MemStore::open(medium.clone());
            // Where the disk was so slow that copy a was left out, b alone can say that this log is the newest: a start waits for it.
            if !lab.recorded.lock().unwrap().quorum.members.iter().any(|name| name.ends_with("/a")) {
                toggle(&lab, false);
            }
            let engine = Embedded::with_copies(disk.clone(), store, options, Some(lab.setup())).unwrap();
            let found = engine.opening().last_commit;
            assert!(
                found >= durable,
                "seed {seed}, round {round}: {found:?} is there, {durable:?} was durable"
            );
            if round == 0 {
                wait_until("both count", || lab.whole());
            }
            disk.fail_at(1 + random.below(120), Fault::PowerCut);
            loop {
                let version = Version(engine.applied().0 + 1);
                let value = Bytes::from(vec![1; random.below(900) as usize]);
                let batch = Batch(vec![chronofs_engine::Change::Put(Bytes::from_static(b"key"), value)]);
                if engine.apply(vec![Commit { version, tag: Bytes::new(), batch }]).is_err() {
                    break;
                }
                if random.one_in(3) {
                    let Ok(synced) = engine.sync() else { break };
                    durable = durable.max(synced.min(engine.applied()));
                }
                if random.one_in(30) {
                    toggle(&lab, random.one_in(2));
                }
            }
            disk.power_off();
            drop(engine);
            disk.power_on();
            check_copies(&lab, durable, seed);
        }
    }
}

/// Takes copy b away, or brings it back.
fn toggle(lab: &Lab, away: bool) {
    let (there, gone) = (lab.path("b"), lab.path("b away"));
    if away && there.is_dir() {
        lab.take_away("b");
    } else if !away && gone.is_dir() {
        lab.bring_back("b");
    }
}

/// Each copy that counts has all that was durable: a log alone recovers it.
fn check_copies(lab: &Lab, durable: Version, seed: u64) {
    let members = lab.recorded.lock().unwrap().quorum.members.clone();
    for name in members {
        // One that is away now counts until somebody asks for an epoch without it.
        let folder = Path::new(&name).is_dir().then(|| PathBuf::from(&name));
        let log = folder.unwrap_or_else(|| lab.path("b away")).join("log");
        let to = lab.path("looked at");
        let _ = std::fs::remove_dir_all(&to);
        assert!(std::process::Command::new("cp").arg("-a").arg(&log).arg(&to).status().unwrap().success());
        let store = MemStore::open(MemMedium::default());
        let options = Options { keeper: false, ..Options::default() };
        let engine = Embedded::new(RealDisk::new(&to).unwrap(), store, options).unwrap();
        let found = engine.opening().last_commit;
        assert!(found >= durable, "seed {seed}: copy {name} has {found:?}, and {durable:?} was durable");
    }
}

#[test]
fn a_copy_is_shipped_to_by_one_thread_also_when_it_is_named_again() {
    let lab = Lab::new(&["a", "b"], 0);
    let engine = lab.open("meta");
    wait_until("both count", || lab.whole());
    let only_a = Quorum { members: lab.wanted.members.iter().take(1).cloned().collect(), anti_quorum: 0 };
    for n in 0..20 {
        engine.want_copies(&only_a).unwrap();
        write(&engine, n * 20..n * 20 + 20);
        engine.want_copies(&lab.wanted).unwrap();
    }
    wait_until("both count again", || lab.whole());
    write(&engine, 400..420);
    lose(engine);
    lab.take_away("a");
    assert_eq!(held(&lab.recover("new").unwrap()), 420);
}

/// A copy whose disk takes its time, or fails from when it is said to.
struct Poor(FolderCopy, Option<Arc<AtomicBool>>);

impl Poor {
    fn works(&self) -> Result<(), CopyError> {
        match &self.1 {
            Some(fails) if fails.load(Ordering::SeqCst) => Err(CopyError::Unusable("gone".to_owned())),
            _ => Ok(()),
        }
    }
}

impl Link for Poor {
    fn append(&mut self, epoch: u64, place: Place, bytes: &Bytes) -> Result<(), CopyError> {
        self.works()?;
        if self.1.is_none() {
            std::thread::sleep(Duration::from_millis(200));
        }
        self.0.append(epoch, place, bytes)
    }

    fn seal(&mut self, epoch: u64) -> Result<Holding, CopyError> {
        self.0.seal(epoch)
    }

    fn open(&mut self, epoch: u64) -> Result<Holding, CopyError> {
        self.works()?;
        self.0.open(epoch)
    }

    fn whole(&mut self, epoch: u64) -> Result<(), CopyError> {
        self.0.whole(epoch)
    }

    fn cut(&mut self, epoch: u64, place: Place) -> Result<(), CopyError> {
        self.0.cut(epoch, place)
    }

    fn pop(&mut self, epoch: u64, before: u64) -> Result<(), CopyError> {
        self.0.pop(epoch, before)
    }

    fn sum(&mut self, segment: u64, length: u64) -> Result<[u8; 32], CopyError> {
        self.0.sum(segment, length)
    }

    fn read(&mut self, place: Place, length: u64) -> Result<Bytes, CopyError> {
        self.0.read(place, length)
    }
}

#[test]
fn copies_that_are_in_the_middle_of_a_burst_when_another_one_fails_go_on_counting() {
    let lab = Lab::new(&["a", "b", "c"], 0);
    let fails = Arc::new(AtomicBool::new(false));
    let mut setup = lab.setup();
    setup.connect = Arc::new({
        let fails = fails.clone();
        move |name: &str| -> Result<Box<dyn Link>, CopyError> {
            let copy = FolderCopy::new(Path::new(name), STORE)?;
            Ok(Box::new(Poor(copy, name.ends_with("/c").then(|| fails.clone()))))
        }
    });
    let engine = lab.open_with("meta", setup).unwrap();
    wait_until("all count", || lab.whole());
    write(&engine, 0..3);
    lab.recorded.lock().unwrap().changes.clear();
    fails.store(true, Ordering::SeqCst);
    // One group of five parts.
    let version = Version(engine.applied().0 + 1);
    let value = Bytes::from(vec![1; 18 << 20]);
    let batch = Batch(vec![chronofs_engine::Change::Put(Bytes::from_static(b"burst"), value)]);
    engine.apply(vec![Commit { version, tag: Bytes::new(), batch }]).unwrap();
    engine.sync().unwrap();
    let counted = lab.wanted.members.iter().filter(|name| !name.ends_with("/c")).cloned().collect();
    let others = Quorum { members: counted, anti_quorum: 0 };
    assert_eq!(lab.recorded.lock().unwrap().changes, [others], "only the one that failed is left out");
    fails.store(false, Ordering::SeqCst);
    wait_until("it is back", || lab.whole());
    lose(engine);
    for lost in ["a", "c"] {
        lab.take_away(lost);
    }
    lab.recorded.lock().unwrap().quorum.members.retain(|name| name.ends_with("/b"));
    assert_eq!(held(&lab.recover("new").unwrap()), 4);
}

/// Its folder is put back to what it was at an earlier time, as by a restore from an image of its disk.
#[test]
fn a_copy_that_went_back_is_left_out_before_it_is_caught_up() {
    let lab = Lab::new(&["a", "b"], 0);
    let engine = lab.open("meta");
    wait_until("both count", || lab.whole());
    write(&engine, 0..20);
    drop(engine);
    let mut copy = std::process::Command::new("cp");
    assert!(copy.arg("-a").arg(lab.path("b")).arg(lab.path("b away")).status().unwrap().success());
    let engine = Arc::new(lab.open("meta"));
    write(&engine, 20..60);
    assert!(lab.whole());
    let changes = {
        let mut recorded = lab.recorded.lock().unwrap();
        recorded.away = true;
        recorded.changes.len()
    };
    let copy_b = || {
        let copies = engine.copies().unwrap().status().copies;
        copies.into_iter().find(|copy| copy.name.ends_with("/b")).unwrap()
    };
    let had = copy_b().acked;
    lab.exchange("b");
    put(&engine, 60);
    let syncing = std::thread::spawn({
        let engine = engine.clone();
        move || engine.sync().map(drop).map_err(|error| error.to_string())
    });
    let failed = || {
        let copy = copy_b();
        assert!(copy.member, "nobody could record that it does not count");
        let seen =
            matches!(copy.health, Health::Failed(why) if why.contains("less than it had acknowledged"));
        assert!(!seen || copy.acked < had, "it counts for what it has now");
        seen
    };
    wait_until("it is seen", failed);
    // It is tried again, and not caught up as long as a recovery would take it for one that has all.
    std::thread::sleep(Duration::from_secs(3));
    assert!(failed() && !syncing.is_finished());
    lab.recorded.lock().unwrap().away = false;
    syncing.join().unwrap().unwrap();
    wait_until("it counts again", || lab.whole());
    let names = |quorum: &Quorum| quorum.members.len();
    let counted: Vec<_> = lab.recorded.lock().unwrap().changes[changes..].iter().map(names).collect();
    assert_eq!(counted, [1, 2]);
    lose(Arc::into_inner(engine).unwrap());
    lab.take_away("a");
    assert_eq!(held(&lab.recover("new").unwrap()), 61);
}
