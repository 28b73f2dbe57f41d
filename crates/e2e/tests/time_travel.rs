//! Every instant of a volume can be mounted and is exactly what was there, wherever its bytes lie.
//!
//! Long variant: `CHRONOFS_ENTRIES=20000 CHRONOFS_INSTANTS=200 cargo test --workspace --test time_travel`.
//! In a store of others: `scripts/stores`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chronofs_core::Version;
use chronofs_e2e::gcs_double::GcsDouble;
use chronofs_e2e::installation::{assert_failed_cleanly, detach};
use chronofs_e2e::manifest::Entry;
use chronofs_e2e::model::{Writer, now_ns};
use chronofs_e2e::object_server::{Kind, ObjectServer};
use chronofs_e2e::process::{run, run_within, text_of, wait_for};
use chronofs_e2e::{Installation, Manifest, Mount, Place, Rng, change, env_number, seed, tree};
use serde_json::Value;

/// How many writers run beside each other, each in a folder of its own.
const WRITERS: usize = 3;

fn manifest(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

fn rsync(from: &Path, to: &Path) {
    // Without the window rsync leaves times alone that differ by less than a second.
    let mut rsync = Command::new("rsync");
    rsync.args(["-aHAXS", "--modify-window=-1"]).arg(from.join("")).arg(to.join(""));
    // The tree of the longer variant takes minutes on a busy machine.
    let output = run_within(Duration::from_secs(1800), &mut rsync);
    assert!(output.status.success(), "rsync: {}", text_of(&output));
}

/// The instant in the middle, as `--at-time` takes it.
fn shown(instant_ns: u64) -> String {
    Version(instant_ns).to_string()
}

/// Mounts the past at `instant`, gives what `look` sees there, and unmounts.
fn in_the_past<T>(
    installation: &Installation,
    live: &Mount,
    instant: &str,
    look: impl FnOnce(&Path) -> T,
) -> T {
    let mut past = installation.mount_past(live, instant);
    let seen = look(&past.dir);
    past.unmount();
    fs::remove_dir(&past.dir).unwrap();
    seen
}

/// How much is done.
struct Round {
    /// Names in the tree.
    entries: usize,
    /// Instants during writes that are looked at, beside a third as many quiet ones.
    instants: usize,
}

#[test]
fn every_instant_between_and_during_changes_mounts_exactly() {
    let entries = env_number("CHRONOFS_ENTRIES", 3_000) as usize;
    let instants = env_number("CHRONOFS_INSTANTS", 50) as usize;
    every_instant_is_exact(&Place::Folder, Round { entries, instants });
}

#[test]
fn every_instant_is_exact_in_a_bucket_of_s3() {
    let server = Place::Server(ObjectServer::start(Kind::Moto));
    every_instant_is_exact(&server, Round { entries: 1_000, instants: 15 });
}

#[test]
fn every_instant_is_exact_in_a_container_of_azure() {
    let server = Place::Server(ObjectServer::start(Kind::Azurite));
    every_instant_is_exact(&server, Round { entries: 400, instants: 6 });
}

#[test]
fn every_instant_is_exact_in_the_double_of_gcs() {
    every_instant_is_exact(&Place::Gcs(GcsDouble::start()), Round { entries: 400, instants: 6 });
}

#[test]
#[ignore = "needs a store that CHRONOFS_STORE names: scripts/stores"]
fn every_instant_is_exact_in_the_store_that_the_environment_names() {
    let entries = env_number("CHRONOFS_ENTRIES", 1_000) as usize;
    let instants = env_number("CHRONOFS_INSTANTS", 15) as usize;
    every_instant_is_exact(&Place::of_environment(), Round { entries, instants });
}

fn every_instant_is_exact(place: &Place, Round { entries, instants }: Round) {
    let seed = seed("time_travel");
    let mut installation = Installation::start();
    place.create_volume(&installation, "v", &["--retention", "-1"]);
    let mut live = installation.mount("v", &[]);
    let rng = Rng::new(seed);

    // A real tree, made on a local disk and copied in as people do.
    let source = tempfile::tempdir().unwrap();
    tree::generate(source.path(), entries, &mut rng.split("tree")).unwrap();
    let root = live.path("tree");
    rsync(source.path(), &root);
    let original = manifest(source.path());
    let acl = |e: &Entry| e.xattrs.contains_key(&b"system.posix_acl_access"[..]);
    assert!(original.0.values().any(acl), "the tree has no ACL: does the temporary folder's disk keep any?");
    original.assert_same(&manifest(&root), "the tree after rsync");
    let mut quiet = vec![Quiet::now(&live, Vec::new())];

    // Quiet instants between batches of changes; during each batch writers record what they do.
    let quiet_count = instants.div_ceil(3);
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|n| Writer::new(&live.path(&format!("w{n}")), rng.split(&format!("w{n}"))).unwrap())
        .collect();
    let mut changes = rng.split("changes");
    for batch in 0..quiet_count {
        change_while_writers_run(&root, &mut writers, entries / 50, &mut changes, seed, batch);
        let folders: Vec<Manifest> = writers.iter().map(|w| w.folder().manifest()).collect();
        for (writer, expected) in writers.iter().zip(&folders) {
            expected.assert_same(&manifest(writer.root()), &format!("seed {seed}: a writer's folder, live"));
        }
        quiet.push(Quiet::now(&live, folders));
    }
    let mut draw = rng.split("instants");
    for (n, then) in quiet.iter().enumerate() {
        // In turn the instant that was asked for, and one of the quiet time behind it.
        let at = match n % 2 {
            0 => then.at.clone(),
            _ => shown(draw.between(then.from_ns, then.until_ns)),
        };
        then.check(&installation, &live, &at, seed);
    }
    check_while_writes_ran(&installation, &live, &writers, instants, &mut draw, seed);
    println!("{} quiet times and {instants} instants during writes were exact", quiet.len());
    let found = gc(&installation)["stores"][0]["found"]["count"].as_u64().unwrap();
    println!("{found} objects lie in the store");
    assert!(found as usize >= entries / 80, "only {found} objects: little of this was about the store");
    live.unmount();
    installation.stop_meta_and_verify();
}

/// What `meta gc --full` says.
fn gc(installation: &Installation) -> Value {
    let address = installation.http_address.to_string();
    let said = installation.ok(&["meta", "gc", "--json", "--full", "--http-addr", &address]);
    serde_json::from_str(&said).unwrap()
}

/// A time in which nobody changed anything, and how the volume looked.
struct Quiet {
    at: String,
    from_ns: u64,
    until_ns: u64,
    whole: Manifest,
    /// The writers' folders by their own record.
    folders: Vec<Manifest>,
}

impl Quiet {
    fn now(live: &Mount, folders: Vec<Manifest>) -> Quiet {
        let at = live.instant();
        let from_ns = now_ns();
        let whole = manifest(&live.dir);
        Quiet { at, from_ns, until_ns: now_ns(), whole, folders }
    }

    fn check(&self, installation: &Installation, live: &Mount, at: &str, seed: u64) {
        in_the_past(installation, live, at, |past| {
            self.whole.assert_same(&manifest(past), &format!("seed {seed}: the volume at {at}"));
            for (n, folder) in self.folders.iter().enumerate() {
                let what = format!("seed {seed}: w{n} at {at}");
                folder.assert_same(&manifest(&past.join(format!("w{n}"))), &what);
            }
        });
    }
}

/// Looks at instants while writes ran, by the record of the writers. Each is drawn from the time of one of the
/// recorded actions, so that it may cut that action off, and falls between or into actions of the other writers.
fn check_while_writes_ran(
    installation: &Installation,
    live: &Mount,
    writers: &[Writer],
    instants: usize,
    draw: &mut Rng,
    seed: u64,
) {
    // What the past showed of an action under way that changes anything visible.
    let (mut before, mut after) = (0, 0);
    for n in 0..instants {
        let action = draw.pick(writers[n % writers.len()].done());
        let instant_ns = draw.between(action.started_ns, action.ended_ns);
        let at = shown(instant_ns);
        in_the_past(installation, live, &at, |past| {
            for (n, writer) in writers.iter().enumerate() {
                let found = manifest(&past.join(format!("w{n}")));
                let possible = writer.possible_at(instant_ns);
                if !possible.contains(&found) {
                    let what = format!("seed {seed}: w{n} at {at} ({} possible)", possible.len());
                    possible[0].assert_same(&found, &what);
                }
                if let [was, becomes] = &possible[..]
                    && was != becomes
                {
                    *(if found == *was { &mut before } else { &mut after }) += 1;
                }
            }
        });
    }
    println!("actions under way at these instants: {before} as before them, {after} as after them");
    // Writing the same bytes or mode again changes nothing that can be seen; most actions do.
    assert!(before + after >= instants / 2, "only {} looks fell into an action", before + after);
}

fn change_while_writers_run(
    root: &Path,
    writers: &mut [Writer],
    count: usize,
    changes: &mut Rng,
    seed: u64,
    batch: usize,
) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in writers {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    writer.step().unwrap_or_else(|e| panic!("seed {seed}, batch {batch}: {e}"));
                }
            });
        }
        let done = change::random_batch(root, count, changes);
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|e| panic!("seed {seed}, batch {batch}: {e}"));
    });
}

#[test]
fn a_mounted_past_is_read_only_and_stays_while_the_present_changes() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let live = installation.mount("v", &[]);
    fs::create_dir(live.path("dir")).unwrap();
    fs::write(live.path("dir/file"), "before").unwrap();
    let at = live.instant();
    let past = installation.mount_past(&live, &at);
    let expected = manifest(&past.dir);

    for (what, result) in [
        ("create", fs::write(past.path("new"), "x")),
        ("overwrite", fs::write(past.path("dir/file"), "x")),
        ("unlink", fs::remove_file(past.path("dir/file"))),
        ("rename", fs::rename(past.path("dir"), past.path("other"))),
        ("mkdir", fs::create_dir(past.path("d"))),
        ("xattr", xattr::set(past.path("dir/file"), "user.a", b"b")),
    ] {
        let error = result.expect_err(what);
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{what}: {error}");
    }

    fs::remove_dir_all(live.path("dir")).unwrap();
    fs::write(live.path("dir"), "now a file").unwrap();
    live.instant();
    expected.assert_same(&manifest(&past.dir), "the mounted past after the present changed");
    assert_eq!(fs::read_to_string(past.path("dir/file")).unwrap(), "before");
    assert_eq!(fs::read_to_string(live.path("dir")).unwrap(), "now a file");
}

#[test]
fn the_past_is_the_same_after_the_servers_were_restarted() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut live = installation.mount("v", &[]);
    let mut quiet = Vec::new();
    let mut rng = Rng::new(seed("restarted"));
    tree::generate(&live.path(""), 150, &mut rng).unwrap();
    for _ in 0..4 {
        change::random_batch(&live.dir, 30, &mut rng).unwrap();
        quiet.push((live.instant(), manifest(&live.dir)));
        installation.meta.stop();
        installation.start_meta();
        installation.admin.kill();
        installation.start_admin();
    }
    for (at, expected) in &quiet {
        in_the_past(&installation, &live, at, |past| {
            expected.assert_same(&manifest(past), &format!("at {at}"))
        });
    }
    live.unmount();
    installation.stop_meta_and_verify();
}

#[test]
fn a_mounted_past_stays_readable_when_the_window_moves_on() {
    let mut installation = Installation::start();
    installation.create_volume("v", &["--retention", "5s"]);
    let mut live = installation.mount("v", &[]);
    let mut rng = Rng::new(seed("window"));
    tree::generate(&live.path(""), 200, &mut rng).unwrap();
    let expected = manifest(&live.dir);
    let at = live.instant();
    // Nothing of it is read yet, so that nothing is in a cache of the mount's.
    let mut past = installation.mount_past(&live, &at);

    change::random_batch(&live.dir, 50, &mut rng).unwrap();
    for entry in fs::read_dir(&live.dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
    fs::write(live.path("other"), "of now").unwrap();
    let changed = live.instant();
    let place = installation.path("place");
    fs::create_dir(&place).unwrap();
    let mount = |at: &str| {
        let start = ["mount", "start", "v", place.to_str().unwrap(), "--token", &live.token, "--at-time", at];
        let output = run(&mut installation.command(&start));
        detach(&place);
        (!output.status.success()).then(|| assert_failed_cleanly(&output, "mount start"))
    };
    // Also what superseded it has left the window.
    wait_for("the window to move on", || mount(&changed));
    let refusal = mount(&at).expect("an instant before the window was mounted");
    let (_, choice) = refusal
        .split_once(&format!("{at} cannot be had: choose one from "))
        .unwrap_or_else(|| panic!("{refusal}"));
    let (earliest, latest) = choice.trim().split_once(" to ").unwrap_or_else(|| panic!("{refusal}"));
    assert!(*at < *changed && *changed < *earliest && *earliest < *latest, "{refusal}");

    installation.meta.kill();
    installation.start_meta();
    expected.assert_same(&manifest(&past.dir), "the mounted past that has left the window");
    assert_eq!(fs::read_to_string(live.path("other")).unwrap(), "of now");
    past.unmount();
    live.unmount();
    installation.stop_meta_and_verify();
}

#[test]
fn instants_are_taken_in_every_documented_spelling() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let live = installation.mount("v", &[]);
    fs::write(live.path("file"), "one").unwrap();
    let at = live.instant();
    assert!(
        at.ends_with('Z') && at.len() == "2026-03-15T10:30:00.123456789Z".len(),
        "nine digits, UTC: {at}"
    );
    std::thread::sleep(Duration::from_secs(4));
    fs::write(live.path("file"), "two").unwrap();
    live.instant();
    let ns: u64 =
        chronofs_core::time::parse_instant(&at, &"2026-01-01T00:00:00Z[UTC]".parse().unwrap()).unwrap().0;
    let date = |format: &str| {
        let seconds = format!("@{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
        let output = run(Command::new("date").args(["-d", &seconds, format]).env("TZ", "Asia/Kolkata"));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let with_offset = date("+%Y-%m-%dT%H:%M:%S.%N+05:30");
    // As many whole seconds ago as lead to just after the first write, well before the second.
    let ago = format!("-{}s", (now_ns() - ns) / 1_000_000_000);
    for spelling in [&ago, &at, &with_offset] {
        let seen = in_the_past(&installation, &live, spelling, |past| {
            fs::read_to_string(past.join("file")).unwrap()
        });
        assert_eq!(seen, "one", "at {spelling}");
    }
    // A day and a time, in a zone in which midnight came two seconds after the first whole second of the file.
    let second = ns.div_ceil(1_000_000_000);
    let east = (2 * 86_400 - 2 - second % 86_400) % 86_400;
    let zone = format!("<here>-{}:{:02}:{:02}", east / 3600, east / 60 % 60, east % 60);
    let place = installation.path("place");
    fs::create_dir(&place).unwrap();
    let shown = place.to_str().unwrap();
    for spelling in ["yesterday 23:59:58", "today 00:00", "today"] {
        let start = ["mount", "start", "v", shown, "--token", &live.token, "--at-time", spelling];
        let output = run(installation.command(&start).env("TZ", &zone));
        assert!(output.status.success(), "{spelling} in {zone}: {}", text_of(&output));
        let seen = fs::read_to_string(place.join("file")).unwrap();
        installation.ok(&["mount", "stop", shown]);
        assert_eq!(seen, "one", "at {spelling} in {zone}");
    }
}
