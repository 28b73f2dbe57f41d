//! Disaster drills without any loss of a server: objects that are lost or damaged, and files that somebody deletes. Each runs under
//! load, compares what is there again with what was, and prints how long it took and what is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use chronofs_e2e::drill::{Drill, Load};
use chronofs_e2e::process::{run, text, text_of};
use chronofs_e2e::tree::files_under;
use chronofs_e2e::{Installation, Manifest, Rng, change};
use serde_json::Value;

const BLOCK: usize = 1 << 20;

fn of(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

/// Copies a tree with all that `cp` can keep of it.
fn copy(from: &Path, to: &Path) {
    let copied = run(Command::new("cp").arg("-a").arg(from).arg(to));
    assert!(copied.status.success(), "{}", text_of(&copied));
}

/// Writes a block of a file, synced; gives the object that this made. Nobody else may write meanwhile.
fn object_of_block(installation: &Installation, path: &Path, bytes: &[u8]) -> PathBuf {
    let folder = installation.path("blocks/objects");
    let before = files_under(&folder);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    let end = file.metadata().unwrap().len();
    assert_eq!(end % BLOCK as u64, 0);
    file.write_all_at(bytes, end).unwrap();
    file.sync_all().unwrap();
    let mut made = files_under(&folder);
    made.retain(|object| !before.contains(object));
    made.into_iter().max_by_key(|object| fs::metadata(object).unwrap().len()).expect("an object")
}

/// The lines that a command prints as JSON, whatever it ends with.
fn lines(installation: &Installation, arguments: &[&str]) -> Vec<Value> {
    let output = run(&mut installation.command(arguments));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let parsed = said.lines().map(|line| {
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}: {}", text_of(&output)))
    });
    parsed.collect()
}

#[test]
fn of_objects_that_are_lost_or_damaged_all_comes_back_that_a_copy_has_and_the_rest_is_named() {
    let seed = chronofs_e2e::seed("drill of objects");
    let mut installation = Installation::start();
    let flags = ["--block-size", "1MiB", "--compression", "none", "--retention", "1h"];
    installation.create_volume("one", &flags);
    let mount = installation.mount("one", &[]);
    let mut rng = Rng::new(seed);
    let quiet = mount.path("quiet");
    change::changed_tree(&quiet, &mut rng).unwrap();
    // What is still being stored of it would be taken for the objects of these blocks.
    mount.instant();
    let of_quiet =
        [0, 1].map(|_| object_of_block(&installation, &quiet.join("of two blocks"), &rng.bytes(BLOCK)));
    let was = of(&quiet);
    let saved = installation.path("saved");
    copy(&mount.dir, &saved);
    // No copy has this.
    let newer = rng.bytes(BLOCK);
    let of_newer = object_of_block(&installation, &mount.path("newer"), &newer);
    let load = Load::on(&mount.path("busy"));
    load.goes_on();

    let (missing, damaged) = (&of_quiet[0], &of_quiet[1]);
    let kept = fs::read(&of_newer).unwrap();
    fs::remove_file(missing).unwrap();
    let mut other = fs::read(damaged).unwrap();
    other[BLOCK / 2] ^= 1;
    fs::write(damaged, other).unwrap();
    fs::remove_file(&of_newer).unwrap();
    let drill = Drill::struck("objects lost and damaged");
    load.goes_on();

    let found = lines(&installation, &["analyze", "blocks", "one", "--deep", "--json"]);
    let sum = found.last().unwrap();
    assert_eq!(sum["sum"]["faults"], 3, "{found:?}");
    let repair = ["analyze", "repair", "one", "--deep", "--json", "--from-copy", text(&saved)];
    let done = lines(&installation, &repair);
    let mended = done.iter().filter(|line| line.get("mended").is_some()).count();
    let lost: Vec<&Value> = done.iter().filter_map(|line| line.get("lost")).collect();
    assert_eq!((mended, lost.len()), (2, 1), "{done:?}");
    assert_eq!(lost[0]["paths"][0]["path"], "/newer", "{lost:?}");
    drill.recovered("what a copy of the files has is put back");
    let range = (lost[0]["from"].as_u64(), lost[0]["to"].as_u64());
    assert_eq!(range, (Some(0), Some(BLOCK as u64)), "{lost:?}");
    drill.says(&format!(
        "lost: bytes {} to {} of {}",
        lost[0]["from"], lost[0]["to"], lost[0]["paths"][0]["path"]
    ));

    // No cache of this one knows what was.
    let fresh = installation.mount("one", &[]);
    drill.is_whole("what the copy has", &was, &of(&fresh.path("quiet")));
    let error = fs::read(fresh.path("newer")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    load.goes_on();
    let written = load.end();
    assert!(drill.account(&written, &fresh.path("busy"), None).is_empty());
    drop((mount, fresh));

    // Nothing else is wrong, and nothing at all when that object turns up again.
    installation.meta.stop();
    let folder = installation.path("meta");
    installation.ok(&["meta", "verify", "--db-folder", text(&folder)]);
    let said = installation.fails(&["meta", "verify", "--blocks", "--db-folder", text(&folder)]);
    let name = |object: &Path| text(object.strip_prefix(installation.path("blocks")).unwrap()).to_owned();
    let faults: Vec<&str> = said.lines().filter(|line| line.starts_with("volume ")).collect();
    assert!(!faults.is_empty() && faults.iter().all(|line| line.contains(&name(&of_newer))), "{said}");
    fs::write(&of_newer, kept).unwrap();
    installation.ok(&["meta", "verify", "--blocks", "--db-folder", text(&folder)]);
}

#[test]
fn what_somebody_deletes_comes_back_from_an_instant_before_while_others_write() {
    let seed = chronofs_e2e::seed("drill of deleted files");
    let mut installation = Installation::start();
    installation.create_volume("one", &["--retention", "1h"]);
    let mount = installation.mount("one", &[]);
    let quiet = mount.path("quiet");
    change::changed_tree(&quiet, &mut Rng::new(seed)).unwrap();
    let was = of(&quiet);
    let load = Load::on(&mount.path("busy"));
    load.goes_on();
    let good = mount.instant();
    load.goes_on();

    fs::remove_dir_all(&quiet).unwrap();
    let drill = Drill::struck("a tree was deleted");
    assert!(!quiet.exists());
    load.goes_on();
    let past = installation.mount_past(&mount, &good);
    copy(&past.path("quiet"), &quiet);
    drill.recovered("all files are there again");
    drill.is_whole("what was deleted", &was, &of(&quiet));
    drill.is_whole("what was deleted, as it was", &was, &of(&past.path("quiet")));
    drop(past);
    load.goes_on();
    let written = load.end();
    assert!(drill.account(&written, &mount.path("busy"), None).is_empty());
    drop(mount);
    installation.stop_meta_and_verify();
}
