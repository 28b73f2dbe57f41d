//! What nobody can ask for any more goes, its bytes too, and nothing else does: with a real window of seconds on a real
//! mount.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chronofs_blocks::{object_name, parse_object_name};
use chronofs_core::{ObjectId, SessionId};
use chronofs_e2e::model::now_ns;
use chronofs_e2e::process::{run, wait_for};
use chronofs_e2e::{Installation, Manifest, Mount, Rng, seed};
use serde_json::Value;

/// Seconds.
const WINDOW: u64 = 15;
/// Seconds that the horizon may lag behind the window, and that a mount takes.
const MARGIN: u64 = 5;
const FILES: u64 = 12;

/// A moment, and what was there.
struct Moment {
    at: String,
    ns: u64,
    was: Manifest,
}

impl Moment {
    fn now(live: &Mount) -> Moment {
        let at = live.instant();
        Moment { at, ns: now_ns(), was: manifest(&live.dir) }
    }

    fn check(&self, seen: &Path, seed: u64) {
        self.was.assert_same(&manifest(seen), &format!("seed {seed}: the volume at {}", self.at));
    }
}

fn manifest(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

/// Bytes of all objects in the block store.
fn stored(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let each = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => stored(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    each.sum()
}

fn gc(installation: &Installation, flags: &[&str]) -> Value {
    let address = installation.http_address.to_string();
    let arguments = [&["meta", "gc", "--json", "--http-addr", &address][..], flags].concat();
    serde_json::from_str(&installation.ok(&arguments)).unwrap()
}

/// Overwrites, removes and makes a few files: staged ones, and ones that fill an object.
fn change(live: &Mount, rng: &mut Rng) {
    for _ in 0..3 {
        let path = live.path(&format!("f{}", rng.between(0, FILES)));
        let len =
            if rng.between(0, 3) == 0 { rng.between(1_000, 30_000) } else { rng.between(100_000, 700_000) };
        match rng.between(0, 6) {
            0 => drop(fs::remove_file(&path)),
            _ => fs::write(&path, rng.bytes(len as usize)).unwrap(),
        }
    }
}

#[test]
fn the_window_stays_whole_and_what_left_it_comes_back_as_space() {
    let seed = seed("forgetting");
    let mut rng = Rng::new(seed);
    let mut installation =
        Installation::start_with_meta_arguments(&["--slice-life", "1", "--horizon-step", "1"]);
    installation.create_volume("v", &["--retention", &format!("{WINDOW}s"), "--compression", "none"]);
    let mut live = installation.mount("v", &[]);
    let blocks = installation.path("blocks/objects");
    fs::create_dir_all(&blocks).unwrap();
    // Nobody can say whose this is.
    fs::create_dir(blocks.join("00")).unwrap();
    fs::write(blocks.join("00/letter"), "dear").unwrap();

    // A client that is killed while it writes leaves behind what it stored and never published.
    let mut killed = installation.mount_with("v", &live.token, &[]);
    let begun = Instant::now();
    (0..FILES).for_each(|n| fs::write(live.path(&format!("f{n}")), rng.bytes(300_000)).unwrap());
    let first = Moment::now(&live);
    let mut leased = installation.mount_past(&live, &first.at);
    let big = rng.bytes(30_000_000);
    let target = killed.path("never");
    let writing = std::thread::spawn(move || drop(fs::write(target, big)));
    std::thread::sleep(Duration::from_millis(300));
    killed.kill();
    writing.join().unwrap();

    let mut moments = Vec::new();
    let mut most = 0;
    while begun.elapsed() < Duration::from_secs(3 * WINDOW) {
        for _ in 0..3 {
            change(&live, &mut rng);
            moments.push(Moment::now(&live));
        }
        most = most.max(stored(&blocks));
        let reach_ns = now_ns() - (WINDOW - MARGIN) * 1_000_000_000;
        moments.retain(|moment| moment.ns > reach_ns);
        let moment = &moments[rng.between(0, moments.len() as u64) as usize];
        let mut past = installation.mount_past(&live, &moment.at);
        moment.check(&past.dir, seed);
        past.unmount();
        first.check(&leased.dir, seed);
    }
    assert!(most > 0);
    let status = gc(&installation, &["--dry-run"]);
    let volume = &status["volumes"][0];
    assert!(volume["deleted"].as_u64().unwrap() > 0, "nothing came back by itself: {status}");
    assert!(
        volume["held"]["bytes"].as_u64() > volume["live_bytes"].as_u64(),
        "the past costs nothing: {status}"
    );
    // Only the lease holds it, for longer than the window.
    first.check(&leased.dir, seed);
    leased.unmount();

    // The killed session ends after a minute of silence; then what it stored is known garbage.
    let found = wait_for_long("space to come back", Duration::from_secs(150), || {
        let status = gc(&installation, &["--full"]);
        let (kept, needed) = (stored(&blocks), live_bytes(&live.dir));
        (kept * 100 <= needed * 105 + 100 * 100_000).then_some((status, kept, needed))
    });
    let (status, kept, needed) = found;
    println!("at most {most} bytes were stored; {kept} are now, for {needed} of files");
    assert_eq!(status["stores"][0]["quarantined"]["count"], 1, "{status}");
    assert!(blocks.join("00/letter").exists(), "what nothing explains is left alone");
    let refused = run(&mut installation.command(&[
        "mount",
        "start",
        "v",
        installation.path("mnt1").to_str().unwrap(),
        "--at-time",
        &first.at,
    ]));
    assert!(!refused.status.success(), "the first moment left the window long ago");
    let last = Moment::now(&live);
    live.unmount();
    let mut again = installation.mount("v", &[]);
    last.check(&again.dir, seed);
    again.unmount();
    installation.stop_meta_and_verify();
}

fn live_bytes(path: &Path) -> u64 {
    fs::read_dir(path).unwrap().flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

fn wait_for_long<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < limit, "{what} took longer than {limit:?}");
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// Paths of all objects below `path`.
fn objects(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        match entry.metadata().unwrap().is_dir() {
            true => objects(&entry.path(), found),
            false => found.push(entry.path()),
        }
    }
}

#[test]
fn while_a_store_has_objects_of_a_newer_copy_of_the_metadata_nothing_that_was_found_there_goes() {
    let mut installation =
        Installation::start_with_meta_arguments(&["--slice-life", "1", "--horizon-step", "1"]);
    installation.create_volume("v", &[]);
    let mut live = installation.mount("v", &[]);
    fs::write(live.path("file"), Rng::new(1).bytes(300_000)).unwrap();
    live.instant();
    live.unmount();
    let blocks = installation.path("blocks");
    let mut found = Vec::new();
    objects(&blocks.join("objects"), &mut found);
    let named: Vec<_> = found
        .iter()
        .filter_map(|path| parse_object_name(path.strip_prefix(&blocks).unwrap().to_str().unwrap()))
        .collect();
    let &[(volume, object)] = &named[..] else { panic!("{found:?}") };
    let plant = |id| {
        let path = blocks.join(object_name(volume, id));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "bytes").unwrap();
        path
    };
    // The session of the mount was granted this name, is over, and has published nothing under it. That looks like
    // garbage also to metadata that was put back from before it did.
    let garbage = plant(ObjectId { n: object.n + 5000, ..object });
    let newer = plant(ObjectId { session: SessionId(object.session.0 + 5000), ..object });
    let judged = wait_for_long("the garbage to be known as such", Duration::from_secs(30), || {
        let store = gc(&installation, &["--full"])["stores"][0].clone();
        (store["garbage"]["count"] == 1).then_some(store)
    });
    assert_eq!(judged["unexplained"], 1, "{judged}");
    for _ in 0..3 {
        gc(&installation, &["--full"]);
        std::thread::sleep(Duration::from_millis(500));
        assert!(garbage.exists() && newer.exists());
    }
    fs::remove_file(newer).unwrap();
    wait_for_long("the garbage to go", Duration::from_secs(30), || {
        gc(&installation, &["--full"]);
        (!garbage.exists()).then_some(())
    });
    assert!(found[0].exists());
    installation.stop_meta_and_verify();
}

#[test]
fn a_store_that_is_away_loses_nothing_and_collection_goes_on_when_it_is_back() {
    let mut installation =
        Installation::start_with_meta_arguments(&["--slice-life", "1", "--horizon-step", "1"]);
    installation.create_volume("v", &["--retention", "0", "--compression", "none"]);
    let mut live = installation.mount("v", &[]);
    let mut rng = Rng::new(seed("store away"));
    fs::write(live.path("kept"), rng.bytes(400_000)).unwrap();
    fs::write(live.path("gone"), rng.bytes(400_000)).unwrap();
    live.instant();
    let (blocks, away) = (installation.path("blocks"), installation.path("away"));
    fs::rename(&blocks, &away).unwrap();
    fs::create_dir(&blocks).unwrap();
    fs::remove_file(live.path("gone")).unwrap();
    let problem = wait_for("the collection to fail", || {
        let status = gc(&installation, &[]);
        status["volumes"][0]["problem"].as_str().map(str::to_owned)
    });
    assert!(problem.contains("not the store's folder any more"), "{problem}");
    assert!(stored(&away) > 800_000);
    fs::remove_dir(&blocks).unwrap();
    fs::rename(&away, &blocks).unwrap();
    wait_for("the space to come back", || (stored(&blocks) < 500_000).then_some(()));
    let status = gc(&installation, &["--full"]);
    assert_eq!(status["stores"][0]["found"]["count"], 1, "{status}");
    assert!(status["volumes"][0]["problem"].is_null(), "{status}");
    assert_eq!(fs::read(live.path("kept")).unwrap().len(), 400_000);
    live.unmount();
    installation.stop_meta_and_verify();
}
