//! kill -9 of meta, admin and mount at random moments under load: nothing acknowledged is lost.
//!
//! Long variant: `CHRONOFS_ROUNDS=1000 cargo test --workspace --test crashes`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chronofs_e2e::process::PATIENCE;
use chronofs_e2e::{Installation, Manifest, Mount, Rng, env_number, seed};

const WORKERS: u64 = 3;

/// After how many rounds a look through another mount is noted with its instant.
const NOTE_EVERY: u64 = 5;

/// What a worker knows of one of its files: the bytes that an fsync returned for, and those of a write under way.
#[derive(Clone, Debug, Default)]
struct Known {
    synced: Vec<u8>,
    maybe: Option<Vec<u8>>,
}

/// A worker's folder as it was told by the system calls that returned.
struct Worker {
    dir: PathBuf,
    rng: Rng,
    files: BTreeMap<String, Known>,
    /// Names that may or may not be there: their call failed because the mount was killed.
    unsure: Vec<(String, Option<Known>)>,
    counter: u64,
    steps: u64,
}

impl Worker {
    fn new(dir: PathBuf, rng: Rng) -> Worker {
        fs::create_dir(&dir).unwrap();
        Worker { dir, rng, files: BTreeMap::new(), unsure: Vec::new(), counter: 0, steps: 0 }
    }

    /// Works until told to stop, or until a call fails, which only a killed mount may cause.
    fn work(&mut self, stop: &AtomicBool) -> io::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.step()?;
            self.steps += 1;
        }
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        let names: Vec<String> = self.files.keys().cloned().collect();
        self.counter += 1;
        let fresh = format!("f{}", self.counter);
        match self.rng.below(10) {
            0..4 if names.len() < 200 => self.create(fresh),
            0..7 if !names.is_empty() => {
                let name = self.rng.pick(&names).clone();
                self.overwrite(&name)
            }
            7..9 if !names.is_empty() => {
                let name = self.rng.pick(&names).clone();
                self.rename(&name, fresh)
            }
            9 if names.len() > 20 => {
                let name = self.rng.pick(&names).clone();
                self.unlink(&name)
            }
            _ => self.create(fresh),
        }
    }

    fn create(&mut self, name: String) -> io::Result<()> {
        match OpenOptions::new().write(true).create_new(true).open(self.dir.join(&name)) {
            Ok(_) => {
                self.files.insert(name.clone(), Known::default());
                self.overwrite(&name)
            }
            Err(e) => {
                self.unsure.push((name, Some(Known::default())));
                Err(e)
            }
        }
    }

    /// One write of at most 64 KiB over the whole file, and an fsync.
    fn overwrite(&mut self, name: &str) -> io::Result<()> {
        let known = self.files.get_mut(name).expect("a file of this worker");
        let longer = known.synced.len().max(1) + self.rng.below(4000) as usize;
        let bytes = self.rng.bytes(longer.min(60_000));
        known.maybe = Some(bytes.clone());
        let file = OpenOptions::new().write(true).open(self.dir.join(name))?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        drop(file);
        known.synced = bytes;
        known.maybe = None;
        Ok(())
    }

    fn rename(&mut self, from: &str, to: String) -> io::Result<()> {
        let known = self.files.remove(from).expect("a file of this worker");
        let result = fs::rename(self.dir.join(from), self.dir.join(&to));
        if result.is_ok() {
            self.files.insert(to, known);
        } else {
            self.unsure.push((from.to_owned(), Some(known.clone())));
            self.unsure.push((to, Some(known)));
        }
        result
    }

    fn unlink(&mut self, name: &str) -> io::Result<()> {
        let known = self.files.remove(name).expect("a file of this worker");
        let result = fs::remove_file(self.dir.join(name));
        if result.is_err() {
            self.unsure.push((name.to_owned(), Some(known)));
        }
        result
    }

    /// Compares the folder with what is known, and takes over what it says about the calls that failed.
    fn check(&mut self, what: &str) {
        let mut found = read_folder(&self.dir).unwrap_or_else(|e| panic!("{what}: {e}"));
        let unsure_count = self.unsure.len();
        let mut unsure_found = 0;
        for (name, known) in self.unsure.drain(..) {
            if let Some(bytes) = found.get(&name) {
                let known = known.unwrap_or_default();
                let sure = *bytes == known.synced || Some(bytes) == known.maybe.as_ref();
                assert!(sure, "{what}: {name} holds {} bytes that nobody wrote", bytes.len());
                self.files.insert(name, known);
                unsure_found += 1;
            }
        }
        // A rename that failed left one of its two names, never both, never none; others leave at most one.
        assert!(unsure_found <= 1, "{what}: both names of a rename are there");
        assert!(unsure_count < 2 || unsure_found == 1, "{what}: a rename that was cut off lost the file");
        for (name, known) in &mut self.files {
            let bytes =
                found.remove(name).unwrap_or_else(|| panic!("{what}: {name} was acknowledged and is lost"));
            let maybe = known.maybe.take();
            if bytes != known.synced {
                assert_eq!(Some(&bytes), maybe.as_ref(), "{what}: {name} lost what fsync returned for");
                known.synced = bytes;
            }
        }
        let more: Vec<&String> = found.keys().collect();
        assert!(more.is_empty(), "{what}: names that should not be there: {more:?}");
    }
}

fn read_folder(dir: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().expect("this worker's names are text");
        found.insert(name, fs::read(entry.path())?);
    }
    Ok(found)
}

/// What a mount that has seen nothing yet shows, now or at an instant.
fn seen_cold(installation: &Installation, live: &Mount, flags: &[&str]) -> Manifest {
    let mut cold = installation.mount_with(&live.volume, &live.token, flags);
    let seen = Manifest::of(&cold.dir).unwrap_or_else(|e| panic!("{flags:?}: {e}"));
    cold.unmount();
    fs::remove_dir(&cold.dir).unwrap();
    seen
}

/// The instant, and the volume then, on which the mount that wrote (and whose content was just checked) and one that
/// has nothing cached agree.
fn note(installation: &Installation, live: &Mount, what: &str) -> (String, Manifest) {
    let at = live.instant();
    let seen = Manifest::of(&live.dir).unwrap_or_else(|e| panic!("{what}: {e}"));
    seen.assert_same(&seen_cold(installation, live, &[]), &format!("{what}: a fresh mount"));
    (at, seen)
}

#[test]
fn nothing_acknowledged_is_lost_when_processes_are_killed() {
    let seed = seed("crashes");
    let rounds = env_number("CHRONOFS_ROUNDS", 50);
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut mount = installation.mount("v", &[]);
    let rng = Rng::new(seed);
    let mut workers: Vec<Worker> = (0..WORKERS)
        .map(|n| Worker::new(mount.path(&format!("w{n}")), rng.split(&format!("worker {n}"))))
        .collect();
    let mut draw = rng.split("kills");
    let mut killed = [0u64; 3];
    let mut noted = Vec::new();
    for round in 0..rounds {
        let victim = draw.below(3) as usize;
        let what = format!("seed {seed}, round {round}, killed {}", ["meta", "mount", "admin"][victim]);
        let pause = Duration::from_micros(draw.between(5_000, 400_000));
        let again = Duration::from_micros(draw.between(5_000, 300_000));
        let stop = AtomicBool::new(false);
        installation.meta.prepare();
        installation.admin.prepare();
        std::thread::scope(|scope| {
            let running: Vec<_> = workers.iter_mut().map(|w| scope.spawn(|| w.work(&stop))).collect();
            std::thread::sleep(pause);
            match victim {
                0 => {
                    installation.meta.kill();
                    std::thread::sleep(again / 3);
                    installation.start_meta();
                }
                1 => mount.kill(),
                _ => {
                    installation.admin.kill();
                    installation.start_admin();
                }
            }
            if victim != 1 {
                std::thread::sleep(again);
                mount.process.assert_running();
            }
            stop.store(true, Ordering::Relaxed);
            let started = Instant::now();
            for worker in running {
                let result = worker.join().unwrap();
                assert!(victim == 1 || result.is_ok(), "{what}: a call failed: {result:?}");
            }
            assert!(started.elapsed() < PATIENCE, "{what}: calls hung for {:?}", started.elapsed());
        });
        if victim == 1 {
            mount.start();
        }
        killed[victim] += 1;
        workers.iter_mut().for_each(|w| w.check(&what));
        if round % NOTE_EVERY == 0 || round + 1 == rounds {
            noted.push(note(&installation, &mount, &what));
        }
    }
    let steps: u64 = workers.iter().map(|w| w.steps).sum();
    println!("{rounds} rounds, killed [meta, mount, admin] {killed:?}, {steps} steps of {WORKERS} workers");
    assert!(steps > rounds * 10, "the workers hardly worked ({steps} steps): this test shows nothing");
    // Once more through a mount that has seen nothing, after a last kill; then all of the past.
    mount.unmount();
    installation.meta.kill();
    installation.start_meta();
    mount.start();
    let what = format!("seed {seed}, after all rounds");
    workers.iter_mut().for_each(|w| w.check(&what));
    let (_, last) = noted.last().unwrap();
    last.assert_same(&Manifest::of(&mount.dir).unwrap(), &what);
    for (at, then) in &noted {
        let seen = seen_cold(&installation, &mount, &["--at-time", at]);
        then.assert_same(&seen, &format!("seed {seed}: the past at {at}, after all rounds"));
    }
    mount.unmount();
    installation.stop_meta_and_verify();
}

/// A restart by SIGTERM in the middle of writes is invisible: no call fails, nothing is lost.
#[test]
fn servers_that_are_stopped_and_started_again_interrupt_nobody() {
    let seed = seed("restarts");
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut mount = installation.mount("v", &[]);
    let mut worker = Worker::new(mount.path("w"), Rng::new(seed));
    for round in 0..5 {
        let stop = AtomicBool::new(false);
        installation.meta.prepare();
        installation.admin.prepare();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| worker.work(&stop));
            std::thread::sleep(Duration::from_millis(100));
            installation.meta.stop();
            installation.admin.stop();
            std::thread::sleep(Duration::from_millis(100));
            installation.start_meta();
            installation.start_admin();
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
            running.join().unwrap().unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
        });
        worker.check(&format!("seed {seed}, round {round}"));
    }
    let log = mount.process.log();
    assert!(!log.contains("session is over"), "the mount did not get its session back:\n{log}");
    mount.unmount();
    installation.stop_meta_and_verify();
}

/// An open file that was unlinked, and locks on nothing else: what only the session knows survives a restart too.
#[test]
fn an_open_unlinked_file_can_be_read_after_the_server_was_killed() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut mount = installation.mount("v", &[]);
    fs::write(mount.path("file"), vec![7u8; 300_000]).unwrap();
    let file = fs::File::open(mount.path("file")).unwrap();
    fs::remove_file(mount.path("file")).unwrap();
    installation.meta.prepare();
    installation.meta.kill();
    installation.start_meta();
    assert!(!mount.path("file").exists());
    let mut bytes = vec![0; 300_000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|b| *b == 7));
    drop(file);
    mount.unmount();
    installation.stop_meta_and_verify();
}
