//! Objects that are damaged or gone, and folders that are away, read-only or somebody else's: each is reported with the
//! thing, the reason and the next step, and nothing that was acknowledged is lost over it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use chronofs_e2e::installation::{assert_failed_cleanly, detach};
use chronofs_e2e::process::{run, text, text_of, wait_for};
use chronofs_e2e::tree::files_under;
use chronofs_e2e::{Installation, Rng};

/// The 64 KiB pieces of `path` that cannot be read; those that can must be `expected`.
fn unreadable(path: &Path, expected: &[u8]) -> Vec<u64> {
    let file = File::open(path).unwrap();
    let mut failed = Vec::new();
    for (n, piece) in expected.chunks(64 << 10).enumerate() {
        let mut buffer = vec![0; piece.len()];
        match file.read_exact_at(&mut buffer, (n as u64) << 16) {
            Ok(()) => assert!(buffer == piece, "wrong bytes were returned at {}", n << 16),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(5), "EIO is expected: {e}");
                failed.push(n as u64);
            }
        }
    }
    failed
}

/// The number behind `field=` in a line of the log.
fn logged(line: &str, field: &str) -> u64 {
    let start = format!("{field}=");
    let value = line.split(' ').find_map(|word| word.strip_prefix(&start));
    value.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no number {field} in: {line}"))
}

#[test]
fn a_damaged_or_missing_object_fails_its_range_and_no_other() {
    let installation = Installation::start();
    installation.create_volume("v", &["--block-size", "1MiB", "--compression", "none"]);
    let mut writer = installation.mount("v", &[]);
    let bytes: Vec<u8> = {
        let mut rng = Rng::new(2);
        (0..6 << 17).flat_map(|_| rng.bits().to_le_bytes()).collect()
    };
    for (n, block) in bytes.chunks(1 << 20).enumerate() {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).open(writer.path("file")).unwrap();
        file.write_all_at(block, (n as u64) << 20).unwrap();
        file.sync_all().unwrap();
    }
    writer.unmount();
    let objects: Vec<PathBuf> = files_under(&installation.path("blocks"))
        .into_iter()
        .filter(|p| fs::metadata(p).unwrap().len() > 900_000)
        .collect();
    assert!(objects.len() >= 6, "one object for each block at least: {objects:?}");
    let victim = &objects[0];
    // As the log names it: the whole path within the store.
    let object = text(victim.strip_prefix(installation.path("blocks")).unwrap()).to_owned();
    let healthy = fs::read(victim).unwrap();

    let mut damaged = healthy.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    let hidden = installation.path("hidden");
    for what in ["damaged", "missing"] {
        match what {
            "damaged" => fs::write(victim, &damaged).unwrap(),
            _ => fs::rename(victim, &hidden).unwrap(),
        }
        let mut mount = installation.mount("v", &[]);
        let failed = unreadable(&mount.path("file"), &bytes);
        assert!(!failed.is_empty(), "{what}: everything could be read");
        let (first, last) = (failed[0], *failed.last().unwrap());
        assert!(first / 16 == last / 16, "{what}: more than one block failed: pieces {failed:?}");
        let ino = fs::metadata(mount.path("file")).unwrap().ino();
        let log = mount.process.log();
        let lines: Vec<&str> =
            log.lines().filter(|line| line.contains(&format!("object=\"{object}\""))).collect();
        assert!(!lines.is_empty(), "{what}: the log does not name object {object}: {log}");
        for line in &lines {
            assert_eq!((logged(line, "ino"), logged(line, "block")), (ino, first / 16), "{what}: {line}");
        }
        // The bytes of the block that the log says cannot be read are those that cannot.
        let from = lines.iter().map(|line| logged(line, "offset")).min().unwrap();
        let to = lines.iter().map(|line| logged(line, "offset") + logged(line, "len")).max().unwrap();
        assert_eq!((from >> 16, (to - 1) >> 16), (first % 16, last % 16), "{what}: {lines:?}");
        mount.unmount();
    }
    fs::write(victim, &healthy).unwrap();
    let mount = installation.mount("v", &[]);
    assert_eq!(unreadable(&mount.path("file"), &bytes), [0u64; 0], "whole again");
}

/// Writes `bytes` at `offset` of a file, synced; gives the objects that this made, and the file's inode.
fn objects_of_write(
    installation: &Installation,
    path: &Path,
    bytes: &[u8],
    offset: u64,
) -> (Vec<PathBuf>, u64) {
    let folder = installation.path("blocks/objects");
    let before = files_under(&folder);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
    let mut made = files_under(&folder);
    made.retain(|object| !before.contains(object));
    assert!(!made.is_empty(), "{} bytes made no object", bytes.len());
    (made, file.metadata().unwrap().ino())
}

#[test]
fn verify_of_blocks_names_every_slice_that_is_damaged_or_missing() {
    let mut installation = Installation::start();
    installation.create_volume("shelf", &["--block-size", "1MiB", "--compression", "none"]);
    let mut mount = installation.mount("shelf", &[]);
    let mut rng = Rng::new(11);
    let (past, live) = (mount.path("past"), mount.path("live"));
    let (of_past, ino_past) = objects_of_write(&installation, &past, &rng.bytes(1 << 20), 1 << 20);
    let at = mount.instant();
    objects_of_write(&installation, &past, &rng.bytes(1 << 20), 1 << 20);
    let (of_live, ino_live) = objects_of_write(&installation, &live, &rng.bytes(1 << 20), 0);
    fs::write(mount.path("small"), rng.bytes(3000)).unwrap();
    mount.unmount();
    installation.meta.stop();

    let folder = installation.path("meta");
    let rows = ["meta", "verify", "--db-folder", text(&folder)];
    let blocks = ["meta", "verify", "--blocks", "--db-folder", text(&folder)];
    let said = installation.ok(&blocks);
    assert!(said.contains("nothing is wrong; volumes: 1, slices: "), "{said}");

    let name = |object: &Path| text(object.strip_prefix(installation.path("blocks")).unwrap()).to_owned();
    let (damaged, missing) = (&of_past[0], &of_live[0]);
    let (healthy, hidden) = (fs::read(damaged).unwrap(), installation.path("hidden"));
    let flipped: Vec<u8> =
        healthy.iter().enumerate().map(|(n, b)| if n == healthy.len() / 2 { b ^ 4 } else { *b }).collect();
    fs::rename(missing, &hidden).unwrap();
    for (content, reason) in [(&flipped[..], "checksum"), (&healthy[..healthy.len() / 2], "it ends at byte")]
    {
        fs::write(damaged, content).unwrap();
        installation.ok(&rows);
        let said = installation.fails(&blocks);
        let (mut found_past, mut found_live) = (0, 0);
        for line in said.lines().filter(|line| line.starts_with("volume ")) {
            if line.contains(&name(damaged)) {
                found_past += 1;
                let place = format!("volume shelf inode {ino_past} block 1 bytes ");
                assert!(line.starts_with(&place) && line.contains(reason), "{line}");
                let (_, life) = line.split_once("in the past from ").unwrap_or_else(|| panic!("{line}"));
                let (since, rest) = life.split_once(" to ").unwrap();
                let until = rest.split_once(": ").unwrap().0;
                assert!(since <= at.as_str() && at.as_str() < until, "{at} is not in {line}");
            } else {
                found_live += 1;
                let place = format!("volume shelf inode {ino_live} block 0 bytes ");
                assert!(line.starts_with(&place) && line.contains(", live since "), "{line}");
                assert!(line.contains(&format!("object {}: there is no such file", name(missing))), "{line}");
            }
        }
        assert!(found_past > 0 && found_live > 0, "{said}");
        assert!(said.contains(&format!("{} faults in {}", found_past + found_live, text(&folder))), "{said}");
    }
    fs::write(damaged, &healthy).unwrap();
    fs::rename(&hidden, missing).unwrap();
    installation.ok(&blocks);

    // A folder that is not there is one fault, not one for each slice.
    let (store, away) = (installation.path("blocks"), installation.path("away"));
    fs::rename(&store, &away).unwrap();
    let said = installation.fails(&blocks);
    assert_eq!(said.lines().filter(|line| line.starts_with("volume ")).count(), 1, "{said}");
    assert!(said.contains("none of its slices was looked at") && said.contains(text(&store)), "{said}");
}

#[test]
fn a_block_folder_that_is_away_or_read_only_acknowledges_nothing() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let mount = installation.mount("v", &["--on-store-outage", "fail"]);
    let blocks = installation.path("blocks");
    let big = Rng::new(3).bytes(3 << 20);
    let write = |name: &str| {
        File::create(mount.path(name)).and_then(|mut file| {
            file.write_all(&big)?;
            file.sync_all()
        })
    };
    write("before").unwrap();

    let bind = |arguments: &[&str]| {
        let output = run(Command::new("mount").args(arguments));
        assert!(output.status.success(), "mount {arguments:?}: {}", text_of(&output));
    };
    bind(&["--bind", text(&blocks), text(&blocks)]);
    bind(&["-o", "remount,bind,ro", text(&blocks)]);
    let refused = write("read-only");
    detach(&blocks);
    let error = refused.expect_err("fsync returned for bytes that could not be written");
    assert!(matches!(error.raw_os_error(), Some(5 | 30)), "EIO or EROFS: {error}");

    let away = installation.path("away");
    fs::rename(&blocks, &away).unwrap();
    let refused = write("away");
    // A put that had just seen the folder makes one on its way, and is not acknowledged.
    drop(fs::remove_dir_all(&blocks));
    fs::rename(&away, &blocks).unwrap();
    assert_eq!(refused.expect_err("fsync returned without a folder").raw_os_error(), Some(5));

    // The mount looks again in a moment.
    wait_for("the folder to be used again", || write("after").ok());
    for name in ["before", "after"] {
        assert!(fs::read(mount.path(name)).unwrap() == big, "{name}");
    }
}

#[test]
fn a_block_folder_that_is_not_there_is_refused_from_the_start() {
    let installation = Installation::start();
    let create =
        ["configure", "create", "block-store", "gone", "--kind", "local", "--path", "/proc/nowhere/folder"];
    let output = run(&mut installation.command(&create));
    if !output.status.success() {
        assert!(assert_failed_cleanly(&output, "create block-store").contains("/proc/nowhere/folder"));
        return;
    }
    // The admin server need not see the folder; then whoever serves the volume must say so at its first use.
    installation.ok(&[
        "configure",
        "create",
        "volume",
        "w",
        "--block-store",
        "gone",
        "--metadata-store",
        "store",
    ]);
    let token = installation.create_token("w", &[]);
    let place = installation.path("place");
    fs::create_dir(&place).unwrap();
    let said = installation.fails(&["mount", "start", "w", text(&place), "--token", &token]);
    assert!(said.contains("/proc/nowhere/folder"), "{said}");
}

#[test]
fn a_block_store_moves_only_to_where_its_objects_are() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let (blocks, moved) = (installation.path("blocks"), installation.path("moved"));
    let (empty, strange, file) =
        (installation.path("empty"), installation.path("strange"), installation.path("file"));
    fs::create_dir(&empty).unwrap();
    fs::create_dir(&strange).unwrap();
    fs::write(&file, "x").unwrap();
    let update = |to: &Path| -> Vec<String> {
        ["configure", "update", "block-store", "blocks", "--path", text(to)].map(str::to_owned).to_vec()
    };
    let refused = |installation: &Installation, to: &Path, expected: &str| {
        let arguments = update(to);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let said = installation.fails(&arguments);
        assert!(said.contains(text(to)) && said.contains(expected), "{}: {said}", to.display());
        let shown = installation.ok(&["configure", "show", "block-store", "blocks", "--json"]);
        assert!(shown.contains(&format!("\"{}\"", text(&blocks))), "it moved all the same: {shown}");
    };
    let bytes = Rng::new(8).bytes(3 << 20);
    let mut mount = installation.mount("v", &[]);
    fs::write(mount.path("big"), &bytes).unwrap();
    refused(&installation, &moved, "unmount first");
    mount.unmount();

    // The folder of another store, marked by the server.
    let arguments =
        ["configure", "create", "block-store", "other", "--kind", "local", "--path", text(&strange)];
    installation.ok(&arguments);
    let of_other =
        ["configure", "create", "volume", "w", "--block-store", "other", "--metadata-store", "store"];
    installation.ok(&of_other);
    let read_only = installation.path("read-only");
    fs::create_dir(&read_only).unwrap();
    let copied = run(Command::new("cp").arg("-a").arg(blocks.join(".")).arg(&read_only));
    assert!(copied.status.success(), "{}", text_of(&copied));
    for arguments in [["--bind", text(&read_only)], ["-o", "remount,bind,ro"]] {
        let output = run(Command::new("mount").args(arguments).arg(&read_only));
        assert!(output.status.success(), "{}", text_of(&output));
    }
    refused(&installation, &read_only, "cannot be written to");
    detach(&read_only);
    for (to, expected) in [
        (&moved, "right disk is mounted"),
        (&empty, "right disk is mounted"),
        (&file, "right disk is mounted"),
        (&strange, "names the store"),
    ] {
        refused(&installation, to, expected);
    }
    refused(&installation, Path::new("relative"), "not absolute");

    fs::rename(&blocks, &moved).unwrap();
    let arguments = update(&moved);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    installation.ok(&arguments);
    let mut mount = installation.mount("v", &[]);
    assert!(fs::read(mount.path("big")).unwrap() == bytes, "what was written before the move");
    fs::write(mount.path("new"), &bytes).unwrap();
    mount.unmount();

    installation.meta.stop();
    fs::rename(&moved, &blocks).unwrap();
    let back = update(&blocks);
    let back: Vec<&str> = back.iter().map(String::as_str).collect();
    let said = installation.fails(&back);
    assert!(said.contains("'store'") && said.contains("start it"), "{said}");
    installation.start_meta();
    wait_for("the server to look", || run(&mut installation.command(&back)).status.success().then_some(()));
    let mount = installation.mount("v", &[]);
    for name in ["big", "new"] {
        assert!(fs::read(mount.path(name)).unwrap() == bytes, "{name}");
    }
}
