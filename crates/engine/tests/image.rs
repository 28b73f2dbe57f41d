//! Images of a running engine: whatever happens between the steps, and after them, what opens from the two folders is
//! exactly the state at the end of the log's image.
//!
//! `CHRONOFS_CASES` sets the number of seeds, `CHRONOFS_SEED` runs one alone.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::embedded::{self, Embedded, MemMedium, MemStore, Options, RocksOptions, Sealed};
use chronofs_engine::memory::State;
use chronofs_engine::sim::{Fault, Random, SimDisk};
use chronofs_engine::{Batch, Change, Commit, Engine, EngineError, Reads};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::cases;

type Simulated = Embedded<MemStore, SimDisk>;

struct Run {
    seed: u64,
    random: Random,
    disk: SimDisk,
    medium: MemMedium,
    history: Vec<Commit>,
    /// Images that were made: their folders, and the commits until their end.
    made: Vec<(PathBuf, PathBuf, Sealed, usize)>,
    /// Attempts that failed.
    failed: u64,
}

fn state_after(history: &[Commit]) -> State {
    let mut state = State::default();
    history.iter().for_each(|commit| state.apply(commit));
    state
}

fn pairs(view: &(impl Reads + ?Sized)) -> Vec<(Bytes, Bytes)> {
    view.scan(b"", &[0xff; 4], usize::MAX).unwrap()
}

impl Run {
    fn new(seed: u64) -> Run {
        let disk = SimDisk::new(seed ^ 0x5eed);
        let random = Random::new(seed);
        let (medium, history, made) = (MemMedium::default(), Vec::new(), Vec::new());
        Run { seed, random, disk, medium, history, made, failed: 0 }
    }

    fn options(&mut self) -> Options {
        Options {
            segment_bytes: 2048 << self.random.below(4),
            flush_log_bytes: 4096 << self.random.below(3),
            row_cache_bytes: 0,
            ceiling_ahead: Duration::from_nanos(1000),
            keeper: false,
            ..Options::default()
        }
    }

    fn open(&mut self) -> Arc<Simulated> {
        let options = self.options();
        let engine = Embedded::new(self.disk.clone(), MemStore::open(self.medium.clone()), options).unwrap();
        let survived =
            self.history.iter().take_while(|commit| commit.version <= engine.opening().last_commit).count();
        self.history.truncate(survived);
        assert_eq!(pairs(&*engine.view()), pairs(&state_after(&self.history)), "seed {}", self.seed);
        Arc::new(engine)
    }

    /// Commits, flushes, drops segments.
    fn work(&mut self, engine: &Simulated) -> Result<(), EngineError> {
        for _ in 0..self.random.below(12) {
            match self.random.below(10) {
                0 => engine.flush()?,
                1 => engine.maintain()?,
                2 => drop(self.medium.complete_one()),
                3 => engine.mark(engine.applied())?,
                4 => drop(engine.sync()?),
                _ => self.commit(engine)?,
            }
        }
        Ok(())
    }

    fn commit(&mut self, engine: &Simulated) -> Result<(), EngineError> {
        if let Some(reason) = engine.stopped() {
            return Err(EngineError::Stopped(reason));
        }
        let last = engine.applied();
        let version = last.next(last.0 + self.random.below(60));
        let changes = (0..1 + self.random.below(3)).map(|_| {
            let key = Bytes::from(format!("key {}", self.random.below(16)));
            match self.random.one_in(4) {
                true => Change::Delete(key),
                false => Change::Put(key, Bytes::from(vec![7; self.random.below(300) as usize])),
            }
        });
        let commit = Commit { version, tag: Bytes::from("tag"), batch: Batch(changes.collect()) };
        self.history.push(commit.clone());
        match engine.apply(vec![commit]) {
            Err(EngineError::NoSpace { .. }) => {
                self.history.pop();
                Ok(())
            }
            other => other,
        }
    }

    /// The steps of a member, with work between all of them.
    fn image(&mut self, engine: &Arc<Simulated>) -> Result<(), EngineError> {
        let n = self.made.len() as u64 * 1000 + self.failed;
        let (store, log) = (PathBuf::from(format!("{n}-storage")), PathBuf::from(format!("{n}-tlog")));
        engine.prepare_image()?;
        self.work(engine)?;
        let hold = engine.hold_log();
        self.work(engine)?;
        hold.image_store(&store)?;
        self.work(engine)?;
        let applied = self.history.len();
        let sealed = hold.image_log(&log)?;
        self.made.push((store, log, sealed, applied));
        Ok(())
    }

    /// Every image, opened, is its cut; and it is that again when it is opened once more.
    fn check(&self) {
        for (store, log, sealed, applied) in &self.made {
            let seed = self.seed;
            let options = Options { segment_bytes: 4096, keeper: false, ..Options::default() };
            let medium = self.medium.of_image(store).unwrap();
            let engine =
                Embedded::new(self.disk.of_image(log), MemStore::open(medium.clone()), options.clone());
            let engine = engine.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let found = engine.opening();
            assert_eq!((found.last_commit, found.torn), (sealed.version, false), "seed {seed}");
            assert_eq!(pairs(&*engine.view()), pairs(&state_after(&self.history[..*applied])), "seed {seed}");
            let version = engine.floor().next(0);
            engine.apply(vec![Commit { version, tag: Bytes::new(), batch: Batch::default() }]).unwrap();
            drop(engine);
            let again = Embedded::new(self.disk.of_image(log), MemStore::open(medium), options).unwrap();
            assert_eq!(again.opening().last_commit, version, "seed {seed}: a restored engine goes on");
        }
    }
}

/// Runs one seed. Says how many images there were, and how many were not made.
fn run(seed: u64) -> (usize, u64) {
    let mut run = Run::new(seed);
    for _ in 0..1 + run.random.below(3) {
        let engine = run.open();
        for _ in 0..run.random.below(3) {
            if run.random.one_in(2) {
                let fault = [Fault::Io, Fault::NoSpace, Fault::PowerCut][run.random.below(3) as usize];
                run.disk.fail_at(1 + run.random.below(40), fault);
            }
            if run.work(&engine).is_ok() && run.image(&engine).is_err() {
                run.failed += 1;
            }
            // What failed has left no hold, and the engine goes on, or has stopped for good.
            let _ = run.work(&engine);
        }
        run.disk.power_off();
        drop(engine);
        run.medium.crash();
        match run.random.one_in(2) {
            true => run.disk.power_on(),
            false => run.disk.thaw(),
        }
    }
    drop(run.open());
    run.check();
    (run.made.len(), run.failed)
}

#[test]
fn an_image_is_the_state_at_its_end_whatever_happens_between_its_steps() {
    if let Ok(seed) = std::env::var("CHRONOFS_SEED") {
        run(seed.parse().unwrap());
        return;
    }
    let (mut made, mut failed) = (0, 0);
    let seeds = cases(2000);
    for seed in 0..seeds {
        let ran = std::panic::catch_unwind(|| run(seed));
        let (here, not_here) =
            ran.unwrap_or_else(|_| panic!("seed {seed} failed: replay it with CHRONOFS_SEED={seed}"));
        made += here as u64;
        failed += not_here;
    }
    assert!(made >= seeds / 2 && failed >= seeds / 20, "{made} images, {failed} failures: too few to tell");
}

#[test]
fn an_image_of_the_log_that_was_cut_off_is_damage_and_no_earlier_state() {
    let disk = SimDisk::new(1);
    let medium = MemMedium::default();
    let options = Options { segment_bytes: 4096, keeper: false, ..Options::default() };
    let engine =
        Arc::new(Embedded::new(disk.clone(), MemStore::open(medium.clone()), options.clone()).unwrap());
    engine.apply(vec![support::commit(1, [support::put("a", "1")])]).unwrap();
    let hold = engine.hold_log();
    hold.image_store(Path::new("s")).unwrap();
    engine.apply(vec![support::commit(2, [support::put("a", "2")])]).unwrap();
    let sealed = hold.image_log(Path::new("l")).unwrap();
    let open = |disk: SimDisk| {
        let store = MemStore::open(medium.of_image(Path::new("s")).unwrap());
        Embedded::new(disk, store, options.clone()).map(|engine| engine.opening().last_commit)
    };
    let image = disk.copy().of_image(Path::new("l"));
    image.damage("00000000000000000001.log", |bytes| bytes[sealed.place.offset as usize - 40..].fill(0));
    let error = open(image).unwrap_err().to_string();
    assert!(error.contains("durable up to the end of the segment"), "{error}");
    assert_eq!(open(disk.copy().of_image(Path::new("l"))).unwrap(), Version(2));
}

#[test]
fn while_the_log_is_held_no_segment_goes() {
    let disk = SimDisk::new(1);
    let medium = MemMedium::default();
    let options = Options { segment_bytes: 1024, keeper: false, ..Options::default() };
    let engine = Arc::new(Embedded::new(disk.clone(), MemStore::open(medium.clone()), options).unwrap());
    let write = |from: u64| {
        for version in from..from + 40 {
            engine
                .apply(vec![support::commit(version, [support::put("a", "a value of some length")])])
                .unwrap();
        }
        engine.mark(engine.applied()).unwrap();
        engine.sync().unwrap();
        engine.flush().unwrap();
        medium.complete_one();
        engine.maintain().unwrap();
        engine.metrics().log_segments
    };
    let hold = (engine.hold_log(), engine.hold_log());
    let held = write(1);
    assert!(held > 3, "{held}");
    drop(hold.0);
    let grown = write(100);
    assert!(grown > held, "one of two holds is left");
    drop(hold.1);
    assert!(write(200) < grown, "what the holds kept is gone");
}

/// What an operator does: plain copies of flat folders, put where an engine looks for them.
fn assembled(to: &Path, store: &Path, log: &Path, format: &Path) {
    for (image, folder) in [(store, "store"), (log, "log")] {
        fs::create_dir_all(to.join(folder)).unwrap();
        for entry in fs::read_dir(image).unwrap() {
            let entry = entry.unwrap();
            assert!(entry.file_type().unwrap().is_file(), "{:?} is flat", entry.path());
            fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
        }
    }
    fs::copy(format, to.join("format")).unwrap();
}

#[test]
fn images_of_a_folder_under_load_open_at_their_cut() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let options = Options { segment_bytes: 1 << 20, flush_log_bytes: 4 << 20, ..Options::default() };
    let engine = Arc::new(embedded::open(&at("source"), options.clone(), &RocksOptions::default()).unwrap());
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = std::thread::spawn({
        let (engine, stop, written) = (engine.clone(), stop.clone(), written.clone());
        move || {
            let mut version = 0;
            while !stop.load(Ordering::SeqCst) {
                version += 1;
                // Two rows that are always the same, and one of each version.
                let text = version.to_string();
                let changes =
                    [("left", &text), ("right", &text), (&format!("row {}", version % 5000)[..], &text)];
                let changes = changes.map(|(key, value)| support::put(key, value));
                engine.apply(vec![support::commit(version, changes)]).unwrap();
                written.store(version, Ordering::SeqCst);
                if version % 1000 == 0 {
                    engine.mark(Version(version)).unwrap();
                }
            }
        }
    });
    for round in 0..4 {
        let before = written.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(150));
        let (store, log) = (at(&format!("{round}-storage")), at(&format!("{round}-tlog")));
        let applied = written.load(Ordering::SeqCst);
        engine.prepare_image().unwrap();
        let hold = engine.hold_log();
        let position = hold.image_store(&store).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let sealed = hold.image_log(&log).unwrap();
        let after = written.load(Ordering::SeqCst) + 1;
        drop(hold);
        assert!(before < applied && position.version <= sealed.version);
        let (least, most) = (Version(applied), Version(after));
        assert!(least <= sealed.version && sealed.version <= most, "{least:?} {sealed:?} {most:?}");
        let again = hold_again(&engine, &store, &log);
        assert!(again.contains("ile exists"), "{again}");
        assembled(&at(&format!("{round}")), &store, &log, &at("source/format"));
        let restored =
            embedded::open(&at(&format!("{round}")), options.clone(), &RocksOptions::default()).unwrap();
        assert_eq!(restored.opening().last_commit, sealed.version);
        let all = support::all(&*restored.view());
        let value = |key: &str| all.iter().find(|(found, _)| found == key).map(|(_, value)| value.clone());
        let cut = Some(sealed.version.0.to_string());
        assert_eq!((value("left"), value("right")), (cut.clone(), cut));
        let rows = all.iter().filter(|(key, _)| key.starts_with("row ")).count() as u64;
        assert_eq!(rows, sealed.version.0.min(5000));
    }
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    assert_eq!(engine.stopped(), None);
}

#[test]
fn an_ended_segment_is_as_long_as_what_is_in_it() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let options = Options { segment_bytes: 1 << 20, ..Options::default() };
    let engine = Arc::new(embedded::open(&at("source"), options, &RocksOptions::default()).unwrap());
    engine.apply(vec![support::commit(1, [support::put("a", "b")])]).unwrap();
    let sealed = engine.hold_log().image_log(&at("log")).unwrap();
    let segment = at("log").join(format!("{:020}.log", sealed.place.segment));
    assert_eq!(fs::metadata(segment).unwrap().len(), sealed.place.offset);
    let metrics = engine.metrics();
    assert_eq!((metrics.log_segments, metrics.log_bytes), (2, sealed.place.offset + (1 << 20)));
}

/// A second image in the place of one is refused, and the engine goes on.
fn hold_again(engine: &Arc<embedded::EmbeddedFolder>, store: &Path, log: &Path) -> String {
    let hold = engine.hold_log();
    let store = hold.image_store(store).unwrap_err().to_string();
    let log = hold.image_log(log).unwrap_err().to_string();
    assert!(store.contains("xists"), "{store}");
    log
}
