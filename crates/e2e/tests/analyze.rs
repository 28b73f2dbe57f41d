//! Looks into volumes: every file that lost bytes is named, now and in the past, and nothing else; and what is not lost can be
//! read as ever.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use chronofs_e2e::process::{run, text, text_of, wait_for};
use chronofs_e2e::tree::files_under;
use chronofs_e2e::{Installation, Rng};
use serde_json::Value;

const PIECE: usize = 64 << 10;
const BLOCK: usize = 1 << 20;

/// Writes `bytes` at `offset` of a file, synced; gives the one object that this made.
fn object_of_write(installation: &Installation, path: &Path, bytes: &[u8], offset: usize) -> PathBuf {
    let folder = installation.path("blocks/objects");
    let before = files_under(&folder);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    file.write_all_at(bytes, offset as u64).unwrap();
    file.sync_all().unwrap();
    let mut made = files_under(&folder);
    made.retain(|object| !before.contains(object));
    let largest = made.into_iter().max_by_key(|object| fs::metadata(object).unwrap().len());
    largest.expect("an object")
}

/// The first and last byte that cannot be read, in pieces; those that can must be `expected`.
fn unreadable(path: &Path, expected: &[u8]) -> Vec<usize> {
    let file = File::open(path).unwrap();
    let mut failed = Vec::new();
    for (n, piece) in expected.chunks(PIECE).enumerate() {
        let mut buffer = vec![0; piece.len()];
        match file.read_exact_at(&mut buffer, (n * PIECE) as u64) {
            Ok(()) => assert!(buffer == piece, "{}: wrong bytes at {}", path.display(), n * PIECE),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "EIO is expected: {error}");
                failed.push(n * PIECE);
            }
        }
    }
    failed
}

/// What `analyze blocks --json` said of a volume that lost something: faults, and the sum.
fn faults(installation: &Installation, more: &[&str]) -> (Vec<Value>, Value) {
    let output = run(&mut installation.command(&[&["analyze", "blocks", "v", "--json"], more].concat()));
    assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
    let lines = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum = lines.pop().unwrap();
    assert_eq!(sum["sum"]["faults"], lines.len(), "{sum}");
    (lines, sum["sum"].clone())
}

fn of_object<'a>(installation: &Installation, faults: &'a [Value], object: &Path) -> &'a Value {
    let name = text(object.strip_prefix(installation.path("blocks")).unwrap()).to_owned();
    let mut found = faults.iter().filter(|fault| fault["object"] == name.as_str());
    let fault = found.next().unwrap_or_else(|| panic!("{name} is not among {faults:?}"));
    assert!(found.next().is_none(), "two of {name}: {faults:?}");
    fault
}

#[test]
fn every_lost_range_is_named_with_its_files_and_nothing_else_fails() {
    let installation = Installation::start();
    installation.create_volume("v", &["--block-size", "1MiB", "--compression", "none", "--retention", "1h"]);
    let mut mount = installation.mount("v", &[]);
    let mut rng = Rng::new(21);
    fs::create_dir(mount.path("d")).unwrap();
    let content = rng.bytes(3 * BLOCK);
    let mut objects = Vec::new();
    for name in ["a", "d/b", "whole"] {
        let path = mount.path(name);
        let write =
            |n: usize| object_of_write(&installation, &path, &content[n * BLOCK..(n + 1) * BLOCK], n * BLOCK);
        objects.push([0, 1, 2].map(write));
    }
    fs::hard_link(mount.path("a"), mount.path("d/again")).unwrap();
    // Block 1 of d/b is of the past soon, under two names.
    fs::rename(mount.path("d/b"), mount.path("d/c")).unwrap();
    let then = mount.instant();
    let newer = rng.bytes(BLOCK);
    object_of_write(&installation, &mount.path("d/c"), &newer, BLOCK);
    for n in 0..20 {
        fs::write(mount.path(&format!("d/small{n}")), rng.bytes(100 + 100 * n)).unwrap();
    }
    mount.unmount();
    for deep in [&[][..], &["--deep"]] {
        let said = installation.ok(&[&["analyze", "blocks", "v"], deep].concat());
        assert!(said.starts_with("all are "), "{said}");
    }

    let (missing, short, flipped) = (&objects[0][1], &objects[0][2], &objects[1][1]);
    fs::rename(missing, installation.path("missing")).unwrap();
    let healthy = [short, flipped].map(|object| fs::read(object).unwrap());
    fs::write(short, &healthy[0][..BLOCK / 2]).unwrap();
    let mut other = healthy[1].clone();
    other[BLOCK / 2] ^= 8;
    fs::write(flipped, &other).unwrap();

    let (quick, _) = faults(&installation, &[]);
    let (deep, sum) = faults(&installation, &["--deep"]);
    assert_eq!((quick.len(), deep.len()), (2, 3), "{deep:?}");
    assert!(sum["slices"].as_u64().unwrap() >= 30, "{sum}");
    for found in [&quick, &deep] {
        for (object, block, fate) in [(missing, 1, "missing"), (short, 2, "damaged")] {
            let fault = of_object(&installation, found, object);
            assert_eq!((&fault["fate"], &fault["until"]), (&Value::from(fate), &Value::Null), "{fault}");
            let range = (fault["from"].as_u64(), fault["to"].as_u64());
            assert_eq!(range, (Some(block << 20), Some((block + 1) << 20)), "{fault}");
            let paths: Vec<_> = fault["paths"].as_array().unwrap().iter().map(|name| &name["path"]).collect();
            assert_eq!(paths, ["/a", "/d/again"], "{fault}");
        }
    }
    let past = of_object(&installation, &deep, flipped);
    assert!(past["reason"].as_str().unwrap().contains("checksum"), "{past}");
    let until = past["until"].as_str().unwrap();
    assert!(past["since"].as_str().unwrap() <= then.as_str() && then.as_str() < until, "{then}: {past}");
    let [b, c] = &past["paths"].as_array().unwrap()[..] else { panic!("{past}") };
    assert_eq!(
        (&b["path"], &c["path"], &b["until"]),
        (&"/d/b".into(), &"/d/c".into(), &c["since"]),
        "{past}"
    );
    assert!(c["since"].as_str().unwrap() <= then.as_str() && c["until"] == until, "{then}: {past}");
    let said = installation.fails(&["analyze", "blocks", "v", "--deep"]);
    assert!(said.contains("  now: /d/again since ") && said.contains("  past: /d/b from "), "{said}");

    // Only these ranges fail, now and then.
    let mut mount = installation.mount("v", &[]);
    let pieces = |block: usize| (block * BLOCK..(block + 1) * BLOCK).step_by(PIECE).collect::<Vec<_>>();
    let lost = [pieces(1), pieces(2)].concat();
    for name in ["a", "d/again"] {
        assert_eq!(unreadable(&mount.path(name), &content), lost, "{name}");
    }
    let now = [&content[..BLOCK], &newer, &content[2 * BLOCK..]].concat();
    for (name, bytes) in [("whole", &content), ("d/c", &now)] {
        assert!(fs::read(mount.path(name)).unwrap() == *bytes, "{name}");
    }
    for n in 0..20 {
        assert_eq!(fs::read(mount.path(&format!("d/small{n}"))).unwrap().len(), 100 + 100 * n);
    }
    fs::write(mount.path("new"), &newer).unwrap();
    let mut past = installation.mount_past(&mount, &then);
    assert_eq!(unreadable(&past.path("d/c"), &content), pieces(1));
    past.unmount();
    mount.unmount();

    fs::rename(installation.path("missing"), missing).unwrap();
    for (object, bytes) in [short, flipped].into_iter().zip(healthy) {
        fs::write(object, bytes).unwrap();
    }
    installation.ok(&["analyze", "blocks", "v", "--deep"]);
    for refused in [["analyze", "blocks", "w"].as_slice(), &["analyze", "blocks", "v", "--rate", "1M"]] {
        installation.fails(refused);
    }
    // A store that is away says nothing of its objects.
    let (store, away) = (installation.path("blocks"), installation.path("away"));
    fs::rename(&store, &away).unwrap();
    let said = installation.fails(&["analyze", "blocks", "v", "--deep"]);
    assert!(!said.contains("missing: ") && said.contains(text(&store)), "{said}");
    fs::rename(&away, &store).unwrap();
}

#[test]
fn a_look_that_was_stopped_goes_on_where_it_was_also_after_a_start_of_the_server() {
    let mut installation = Installation::start();
    installation.create_volume("v", &["--block-size", "1MiB", "--compression", "none"]);
    let mut mount = installation.mount("v", &[]);
    let mut rng = Rng::new(22);
    let first = object_of_write(&installation, &mount.path("first"), &rng.bytes(BLOCK), 0);
    for n in 0..600 {
        fs::write(mount.path(&format!("small{n}")), rng.bytes(300)).unwrap();
    }
    let last = object_of_write(&installation, &mount.path("last"), &rng.bytes(BLOCK), 0);
    mount.unmount();
    fs::remove_file(&first).unwrap();
    fs::remove_file(&last).unwrap();
    let kept = installation.path("kept");
    let look = ["analyze", "blocks", "v", "--json", "--deep", "--resume", text(&kept)];
    // After its first page, the larger part of a minute passes by.
    let slowly = [&look[..], &["--rate", "20K"]].concat();
    let begin = || {
        let mut command = installation.command(&slowly);
        let running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the first page", || kept.exists().then_some(()));
        running
    };
    let mut stopped = begin();
    stopped.kill().unwrap();
    let said = String::from_utf8(stopped.wait_with_output().unwrap().stdout).unwrap();
    assert!(said.contains("/first") && !said.contains("/last"), "{said}");

    // The rest, and the sums of both.
    let output = run(&mut installation.command(&look));
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!said.contains("/first") && said.contains("/last"), "{said}");
    let sum: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&sum["sum"]["faults"], &sum["sum"]["slices"]), (&2.into(), &602.into()), "{sum}");
    assert!(!kept.exists());

    // The command itself goes on behind a start of the server, which forgets.
    let restarted = begin();
    installation.meta.stop();
    installation.start_meta();
    let kept_now = fs::read(&kept).unwrap();
    wait_for("the look to go on", || (fs::read(&kept).ok()? != kept_now).then_some(()));
    let mut restarted = restarted;
    restarted.kill().unwrap();
    let said = String::from_utf8(restarted.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(said.matches("/first").count(), 1, "{said}");
}

#[test]
fn what_the_present_and_the_past_take_is_summed_up() {
    let installation = Installation::start();
    installation.create_volume("v", &["--block-size", "1MiB", "--compression", "none", "--retention", "1h"]);
    let mut mount = installation.mount("v", &[]);
    let mut rng = Rng::new(23);
    fs::create_dir_all(mount.path("d/e")).unwrap();
    fs::create_dir(mount.path("f")).unwrap();
    for (name, times) in [("d/e/twice", 2), ("f/once", 1), ("removed", 1)] {
        for _ in 0..times {
            object_of_write(&installation, &mount.path(name), &rng.bytes(BLOCK), 0);
        }
    }
    fs::remove_file(mount.path("removed")).unwrap();
    mount.unmount();
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&installation.ok(&[&["analyze"], arguments, &["--json"]].concat())).unwrap()
    };
    let mib = |n: u64| Value::from(n << 20);
    let usage = json(&["usage", "v", "--by", "folder"]);
    assert_eq!((&usage["live"]["bytes"], &usage["past"]["bytes"]), (&mib(2), &mib(2)), "{usage}");
    assert_eq!(usage["kept_bytes"], mib(2), "{usage}");
    let part = |name: &str| {
        let parts = usage["parts"].as_array().unwrap();
        let part =
            parts.iter().find(|part| part["name"] == name).unwrap_or_else(|| panic!("{name}: {usage}"));
        (part["live_bytes"].clone(), part["past_bytes"].clone())
    };
    assert_eq!((part("/d"), part("/f"), part("/")), ((mib(1), mib(1)), (mib(1), mib(0)), (mib(0), mib(1))));
    let none = json(&["usage", "v", "--retention", "0", "--by", "owner"]);
    assert_eq!((&none["past"]["bytes"], &none["kept_bytes"]), (&mib(2), &mib(0)), "{none}");
    assert_eq!(none["parts"][0]["name"], "0", "{none}");
    let by_age = json(&["usage", "v", "--retention", "30m", "--by", "age"]);
    assert_eq!((&by_age["kept_bytes"], by_age["parts"].as_array().unwrap().len()), (&mib(2), 1), "{by_age}");
    let inodes = json(&["volume", "v"])["inodes"].clone();
    assert_eq!((&inodes["files"], &inodes["folders"]), (&2.into(), &4.into()), "{inodes}");
    assert_eq!((&inodes["size_bytes"], &inodes["allocated_bytes"]), (&mib(2), &mib(2)), "{inodes}");
    let objects = json(&["objects", "v"]);
    assert_eq!(
        (&objects["direct"]["count"], &objects["known"]["count"]),
        (&4.into(), &4.into()),
        "{objects}"
    );
    for shown in [&["usage", "v", "--retention", "1d"][..], &["volume", "v"], &["objects", "v"]] {
        installation.ok(&[&["analyze"], shown].concat());
    }
    let said = installation.ok(&["meta", "verify", "--online"]);
    assert!(said.starts_with("nothing is wrong as of ") && said.contains("volumes: 1"), "{said}");
    installation.ok(&["meta", "verify", "--online", "--metadata-store", "store"]);
    let none = installation.fails(&["meta", "verify", "--online", "--metadata-store", "other"]);
    assert!(none.contains("'other' does not exist"), "{none}");
}

/// Runs `analyze repair v --json` with further words: its exit code, what was put back, what stays lost, and the sums.
fn repair(installation: &Installation, more: &[&str]) -> (Option<i32>, Vec<Value>, Vec<Value>, Value) {
    let output = run(&mut installation.command(&[&["analyze", "repair", "v", "--json"], more].concat()));
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (mut mended, mut lost, mut sum) = (Vec::new(), Vec::new(), Value::Null);
    for line in lines {
        match (line.get("mended"), line.get("lost"), line.get("sum")) {
            (Some(one), ..) => mended.push(one.clone()),
            (_, Some(one), _) => lost.push(one.clone()),
            (.., said) => sum = said.unwrap_or_else(|| panic!("{line}")).clone(),
        }
    }
    assert_eq!(sum["faults"], lost.len(), "{}", text_of(&output));
    (output.status.code(), mended, lost, sum)
}

#[test]
fn what_is_lost_is_put_back_from_a_copy_of_the_store_a_cache_or_a_copy_of_the_files() {
    let mut installation = Installation::start();
    installation.create_volume("v", &["--block-size", "1MiB", "--compression", "lz4", "--retention", "1h"]);
    let cache = installation.path("cache");
    let mut mount = installation.mount("v", &["--cache-dir", text(&cache), "--cache-size", "64MiB"]);
    let mut rng = Rng::new(24);
    fs::create_dir(mount.path("d")).unwrap();
    // Half of it can be compressed.
    let content = [rng.bytes(BLOCK), [rng.bytes(BLOCK / 4), vec![7; BLOCK * 3 / 4]].concat()].concat();
    let path = mount.path("d/file");
    let mut objects = Vec::from(
        [0, 1]
            .map(|n| object_of_write(&installation, &path, &content[n * BLOCK..(n + 1) * BLOCK], n * BLOCK)),
    );
    objects.push(object_of_write(&installation, &mount.path("past"), &content[..BLOCK], 0));
    let then = mount.instant();
    let newer = rng.bytes(BLOCK);
    object_of_write(&installation, &mount.path("past"), &newer, 0);
    let (copy, store_copy) = (installation.path("copy"), installation.path("store-copy"));
    for (from, to) in [(&mount.dir, &copy), (&installation.path("blocks"), &store_copy)] {
        let copied = std::process::Command::new("cp").args(["-a", text(from), text(to)]).status().unwrap();
        assert!(copied.success());
    }
    let healthy: Vec<Vec<u8>> = objects.iter().map(|object| fs::read(object).unwrap()).collect();
    // Gone, cut, and changed, of the past.
    let damage = || {
        fs::remove_file(&objects[0]).unwrap();
        fs::write(&objects[1], &healthy[1][..100]).unwrap();
        let mut changed = healthy[2].clone();
        changed[BLOCK / 3] ^= 1;
        fs::write(&objects[2], changed).unwrap();
    };
    let is_as_it_was = || {
        let mut now = installation.mount("v", &[]);
        assert!(
            fs::read(now.path("d/file")).unwrap() == content && fs::read(now.path("past")).unwrap() == newer
        );
        let mut past = installation.mount_past(&now, &then);
        assert!(fs::read(past.path("past")).unwrap() == content[..BLOCK]);
        past.unmount();
        now.unmount();
        installation.ok(&["analyze", "blocks", "v", "--deep"]);
    };
    damage();
    let missing = installation.fails(&["analyze", "repair", "v"]);
    assert!(missing.contains("--from-store"), "{missing}");

    // A copy of the store has all, and a dry run only says so.
    let from_store = ["--deep", "--from-store", text(&store_copy)];
    let (code, mended, lost, _) = repair(&installation, &[&from_store[..], &["--dry-run"]].concat());
    assert_eq!((code, mended.len(), lost.len(), objects[0].exists()), (Some(0), 3, 0, false), "{mended:?}");
    let (code, again, ..) = repair(&installation, &from_store);
    assert_eq!((code, &again), (Some(0), &mended));
    for (object, healthy) in objects.iter().zip(&healthy) {
        assert!(fs::read(object).unwrap() == *healthy, "byte for byte");
    }
    is_as_it_was();
    let (code, mended, _, sum) = repair(&installation, &from_store);
    assert_eq!(
        (code, mended.len(), &sum["mended_bytes"]),
        (Some(0), 0, &0.into()),
        "nothing is lost any more"
    );

    // The files have what is of the present, also compressed; a block store of another name has the rest.
    damage();
    let (code, mended, lost, _) = repair(&installation, &["--deep", "--from-copy", text(&copy)]);
    assert_eq!((code, mended.len(), lost.len()), (Some(1), 2, 1), "{mended:?} {lost:?}");
    assert_eq!(lost[0]["paths"][0]["path"], "/past", "{lost:?}");
    assert!(lost[0]["until"].is_string(), "{lost:?}");
    let said = installation.fails(&["analyze", "repair", "v", "--deep", "--from-copy", text(&copy)]);
    assert!(said.contains("past: /past") && said.contains("chronofs backup restore"), "{said}");
    let folder = text(&store_copy);
    installation.ok(&["configure", "create", "block-store", "spare", "--kind", "local", "--path", folder]);
    let (code, mended, lost, _) = repair(&installation, &["--deep", "--from-store", "spare"]);
    assert_eq!((code, mended.len(), lost.len()), (Some(0), 1, 0), "{mended:?} {lost:?}");
    is_as_it_was();

    // The cache of a mount that goes on meanwhile has what it wrote.
    damage();
    let from_cache = ["--deep", "--from-cache", text(&cache)];
    wait_for("the cache to be written", || {
        let (.., lost, _) = repair(&installation, &[&from_cache[..], &["--dry-run"]].concat());
        lost.is_empty().then_some(())
    });
    let (code, mended, ..) = repair(&installation, &from_cache);
    assert_eq!((code, mended.len()), (Some(0), 3), "{mended:?}");
    fs::write(mount.path("new"), &newer).unwrap();
    is_as_it_was();
    mount.unmount();
    let audited = installation.ok(&["audit", "list"]);
    assert!(
        audited.contains("repair of volume v (dry run)") && audited.contains("POST /v1/analyze"),
        "{audited}"
    );
    installation.stop_meta_and_verify();
}
