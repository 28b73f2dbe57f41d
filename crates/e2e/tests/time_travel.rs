//! Every instant of a volume can be mounted and is exactly what was there.
//!
//! Long variant: `CHRONOFS_ENTRIES=20000 CHRONOFS_INSTANTS=200 cargo test -p chronofs-e2e --test time_travel`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chronofs_core::Version;
use chronofs_e2e::model::Writer;
use chronofs_e2e::process::{run, text_of};
use chronofs_e2e::{Installation, Manifest, Mount, Rng, change, env_number, seed, tree};

/// How many writers run beside each other, each in a folder of its own.
const WRITERS: usize = 3;

fn manifest(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

fn rsync(from: &Path, to: &Path) {
    // Without the window rsync leaves times alone that differ by less than a second.
    let output =
        run(Command::new("rsync").args(["-aHAXS", "--modify-window=-1"]).arg(from.join("")).arg(to.join("")));
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

#[test]
fn every_instant_between_and_during_changes_mounts_exactly() {
    let seed = seed("time_travel");
    let entries = env_number("CHRONOFS_ENTRIES", 3_000) as usize;
    let instants = env_number("CHRONOFS_INSTANTS", 50) as usize;
    let installation = Installation::start();
    installation.create_volume("v", &["--retention", "-1"]);
    let live = installation.mount("v", &[]);
    let rng = Rng::new(seed);

    // A real tree, made on a local disk and copied in as people do.
    let source = tempfile::tempdir().unwrap();
    tree::generate(source.path(), entries, &mut rng.split("tree")).unwrap();
    let root = live.path("tree");
    rsync(source.path(), &root);
    let original = manifest(source.path());
    original.assert_same(&manifest(&root), "the tree after rsync");
    let copied_at = live.instant();

    // Quiet instants between batches of changes; during each batch writers record what they do.
    let quiet_count = instants.div_ceil(3);
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|n| Writer::new(&live.path(&format!("w{n}")), rng.split(&format!("w{n}"))).unwrap())
        .collect();
    let mut quiet = vec![(copied_at.clone(), original.clone(), Vec::new())];
    let mut changes = rng.split("changes");
    let started_ns = chronofs_e2e::model::now_ns();
    for batch in 0..quiet_count {
        change_while_writers_run(&root, &mut writers, entries / 50, &mut changes, seed, batch);
        let folders: Vec<Manifest> = writers.iter().map(|w| w.folder().manifest()).collect();
        for (writer, expected) in writers.iter().zip(&folders) {
            expected.assert_same(&manifest(writer.root()), &format!("seed {seed}: a writer's folder, live"));
        }
        let at = live.instant();
        quiet.push((at, manifest(&root), folders));
    }
    let ended_ns = chronofs_e2e::model::now_ns();

    for (at, tree_then, folders_then) in &quiet {
        in_the_past(&installation, &live, at, |past| {
            tree_then.assert_same(&manifest(&past.join("tree")), &format!("seed {seed}: the tree at {at}"));
            for (n, folder) in folders_then.iter().enumerate() {
                folder.assert_same(
                    &manifest(&past.join(format!("w{n}"))),
                    &format!("seed {seed}: w{n} at {at}"),
                );
            }
        });
    }

    // Random instants while writes ran, from the record of the writers.
    let mut draw = rng.split("instants");
    for _ in 0..instants {
        let instant_ns = draw.between(started_ns, ended_ns);
        let at = shown(instant_ns);
        in_the_past(&installation, &live, &at, |past| {
            for (n, writer) in writers.iter().enumerate() {
                let found = manifest(&past.join(format!("w{n}")));
                let possible = writer.possible_at(instant_ns);
                if !possible.contains(&found) {
                    possible[0].assert_same(
                        &found,
                        &format!("seed {seed}: w{n} at {at} ({} possible)", possible.len()),
                    );
                }
            }
        });
    }
    println!("{} quiet instants and {instants} during writes were exact", quiet.len());
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
    let live = installation.mount("v", &[]);
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
    let ago = format!("-{}s", (chronofs_e2e::model::now_ns() - ns) / 1_000_000_000);
    for spelling in [&ago, &at, &with_offset] {
        let seen = in_the_past(&installation, &live, spelling, |past| {
            fs::read_to_string(past.join("file")).unwrap()
        });
        assert_eq!(seen, "one", "at {spelling}");
    }
}
