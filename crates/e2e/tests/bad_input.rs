//! What people and machines get wrong: each is refused or reported with the thing, the reason and the next step, and
//! nothing that was acknowledged is lost over it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use chronofs_e2e::installation::{assert_failed_cleanly, detach, token_in};
use chronofs_e2e::process::{Process, free_address, run, text_of, wait_for};
use chronofs_e2e::{Installation, Rng};
use chronofs_wire::token::{Token, TokenKind};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An empty folder to mount at.
fn place(installation: &Installation) -> PathBuf {
    let dir = installation.path("place");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// The token with another secret.
fn forged(token: &str) -> String {
    let good: Token = token.parse().unwrap();
    let drawn = Token::draw(TokenKind::Volume, &good.admin, good.pin).unwrap();
    Token { secret: drawn.secret, ..good }.to_string()
}

/// A token of the right server that nobody issued.
fn unknown(token: &str) -> String {
    let good: Token = token.parse().unwrap();
    Token::draw(TokenKind::Volume, &good.admin, good.pin).unwrap().to_string()
}

#[test]
fn tokens_that_do_not_fit_are_refused() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    installation.create_volume("other", &[]);
    let dir = place(&installation);
    let good = installation.create_token("v", &[]);
    let for_other = installation.create_token("other", &[]);
    let no_past = installation.create_token("v", &["--no-past"]);
    let table: [(&str, &str, &[&str], &str); 7] = [
        ("no token at all", "hello", &[], "token"),
        ("a token cut short", &good[..good.len() / 2], &[], "token"),
        ("a token with another secret", &forged(&good), &[], "token"),
        ("a token that nobody issued", &unknown(&good), &[], "token"),
        ("a token of another volume", &for_other, &[], "token"),
        ("a token without the past", &no_past, &["--at-time", "-1s"], "past"),
        ("a volume that is not there", &good, &[], "nowhere"),
    ];
    for (what, token, flags, expected) in table {
        let volume = if expected == "nowhere" { "nowhere" } else { "v" };
        let mut arguments = vec!["mount", "start", volume, text(&dir), "--token", token];
        arguments.extend(flags);
        let said = installation.fails(&arguments);
        assert!(said.to_lowercase().contains(expected), "{what}: {said}");
        assert!(!chronofs_e2e::installation::is_mount_point(&dir), "{what}: mounted all the same");
        assert!(!said.contains(&good), "{what}: the message shows a secret: {said}");
    }
}

#[test]
fn a_deleted_token_opens_nothing_any_more() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let dir = place(&installation);
    let token = installation.create_token("v", &[]);
    let mut mount = installation.mount_with("v", &token, &[]);
    mount.unmount();
    let list = installation.ok(&["configure", "list", "volume-token", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let ids: Vec<&str> = list.as_array().unwrap().iter().filter_map(|t| t["id"].as_str()).collect();
    assert!(!ids.is_empty(), "{list}");
    for id in ids {
        installation.ok(&["configure", "delete", "volume-token", id]);
    }
    wait_for("the token to be refused", || {
        let output = run(&mut installation.command(&["mount", "start", "v", text(&dir), "--token", &token]));
        detach(&dir);
        (!output.status.success()).then(|| assert_failed_cleanly(&output, "mount start"))
    });
}

#[test]
fn a_token_confines_to_what_it_names() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let whole = installation.mount("v", &[]);
    fs::create_dir_all(whole.path("a/b")).unwrap();
    fs::write(whole.path("a/inside"), "inside").unwrap();
    fs::write(whole.path("outside"), "outside").unwrap();
    whole.instant();

    let read_only = installation.mount_with("v", &installation.create_token("v", &["--read-only"]), &[]);
    assert_eq!(fs::read_to_string(read_only.path("a/inside")).unwrap(), "inside");
    let error = fs::write(read_only.path("new"), "x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{error}");

    let part = installation.mount_with("v", &installation.create_token("v", &["--path", "/a"]), &[]);
    let mut names: Vec<_> = fs::read_dir(&part.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["b", "inside"]);
    assert!(!part.path("outside").exists());
    fs::write(part.path("b/new"), "from within").unwrap();
    assert_eq!(fs::read_to_string(whole.path("a/b/new")).unwrap(), "from within");
}

#[test]
fn instants_that_cannot_be_had_are_refused_with_those_that_can() {
    let installation = Installation::start();
    installation.create_volume("v", &["--retention", "1h"]);
    let live = installation.mount("v", &[]);
    fs::write(live.path("file"), "x").unwrap();
    live.instant();
    let dir = place(&installation);
    let mount = |at: &str| {
        installation.fails(&["mount", "start", "v", text(&dir), "--token", &live.token, "--at-time", at])
    };
    for at in ["2999-01-01T00:00:00Z", "1999-01-01T00:00:00Z", "-2h", "-30m", "yesterday 00:00"] {
        let said = mount(at);
        // The one that was asked for, the earliest and the latest.
        let instants = said.matches("Z").count();
        assert!(said.contains("cannot be had") && instants >= 3, "{at}: {said}");
        let foreground = installation.fails(&[
            "mount",
            "start",
            "v",
            text(&dir),
            "--token",
            &live.token,
            "--at-time",
            at,
            "--foreground",
            "--log-level=error",
        ]);
        for said in [said, foreground] {
            assert_eq!(said.matches("cannot be had").count(), 1, "{at}: {said}");
            assert_eq!(said.lines().count(), 1, "{at}: {said}");
        }
    }
    for at in ["", "noon", "2026-03-15", "2026-03-15T10:30:00", "--", "-5x", "2026-13-45T10:30:00Z"] {
        let said = installation.fails(&[
            "mount",
            "start",
            "v",
            text(&dir),
            "--token",
            &live.token,
            &format!("--at-time={at}"),
        ]);
        assert!(said.contains("RFC 3339") || said.contains("--at-time"), "{at}: {said}");
    }
}

#[test]
fn bad_commands_name_what_is_wrong() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let dir = place(&installation);
    let file = installation.path("a file");
    fs::write(&file, "x").unwrap();
    let in_file = file.join("folder");
    let (blocks, fresh) = (installation.path("blocks"), installation.path("fresh"));
    let volume = |name: &'static str, flags: &[&'static str]| {
        let mut all = vec![
            "configure",
            "create",
            "volume",
            name,
            "--block-store",
            "blocks",
            "--metadata-store",
            "store",
        ];
        all.extend(flags);
        all
    };
    let token = installation.create_token("v", &[]);
    let store = |name: &'static str, path| {
        vec!["configure", "create", "block-store", name, "--kind", "local", "--path", path]
    };
    let table: Vec<(Vec<&str>, &str)> = vec![
        (vec!["frobnicate"], "frobnicate"),
        (vec!["mount", "start"], "VOLUME"),
        (vec!["mount", "start", "v", text(&dir), "--token", &token, "--frobnicate"], "--frobnicate"),
        (vec!["mount", "start", "v", "/proc/nowhere/folder", "--token", &token], "/proc/nowhere/folder"),
        (vec!["mount", "start", "v", text(&file), "--token", &token], "a file"),
        (vec!["mount", "start", "v", text(&dir), "--token-file", "/no/such/file"], "/no/such/file"),
        (vec!["mount", "stop", text(&dir)], text(&dir)),
        (vec!["instant", text(&dir)], text(&dir)),
        (vec!["mount", "start", "", text(&dir)], "VOLUME"),
        (vec!["mount", "start", "v@soon", text(&dir), "--token", &token], "'soon'"),
        (vec!["mount", "start", "v", "/", "--token", &token], "another directory"),
        (vec!["mount", "start", "v", "/proc/self", "--token", &token], "another directory"),
        (vec!["mount", "start", "v", text(&dir), "-o", "shiny", "--token", &token], "'shiny'"),
        (vec!["mount", "start", "v", text(&dir), "-o", "admin=a b", "--token", &token], "'a b'"),
        (vec!["mount", "start", "v", text(&dir), "--admin", "h:99999"], "HOST:PORT"),
        (vec!["mount", "start", "v", text(&dir), "--token-file", text(&dir)], text(&dir)),
        (vec!["mount", "start", "v", text(&dir), "--log-level", "loud"], "loud"),
        (vec!["mount", "stop", "/no/such/folder"], "mount list"),
        (vec!["mount", "init", "creds", "--token", &token, "--volume", ""], "--volume"),
        (vec!["mount", "init", "systemd", "--output", "/no/such/folder"], "/no/such/folder"),
        (vec!["configure", "init", "creds", "--token", &token], "account"),
        (vec!["configure", "list", "volume", "--admin", "http://h"], "http://h"),
        (vec!["admin", "init", "creds", "--db-folder", text(&fresh), "--address", "a b"], "'a b'"),
        (vec!["admin", "init", "creds", "--db-folder", text(&file)], "a file"),
        (vec!["admin", "start", "--db-folder", text(&dir)], "init creds"),
        (vec!["admin", "start", "--db-folder", text(&in_file)], "Not a directory"),
        (vec!["admin", "status", "--db-folder", text(&in_file)], "Not a directory"),
        (vec!["meta", "start", "--db-folder", text(&file)], "a file"),
        (vec!["meta", "start", "--db-folder", text(&fresh), "--advertise", ""], "--advertise"),
        (vec!["man", "/no/such/folder"], "/no/such/folder"),
        (vec!["completions", "tcsh"], "tcsh"),
        (vec!["meta", "verify", "--db-folder", text(&dir)], "holds no metadata store"),
        (vec!["meta", "verify", "--db-folder", "/proc/nowhere/folder"], "/proc/nowhere/folder"),
        (vec!["meta", "init", "creds", "--token", "x", "--db-folder", text(&dir)], "token"),
        (volume("v", &[]), "volume 'v' exists already"),
        (volume("", &[]), "name"),
        (volume("a/b", &[]), "a/b"),
        (volume("w", &["--block-size", "100"]), "block"),
        (volume("w", &["--block-size", "huge"]), "huge"),
        (volume("w", &["--compression", "rar"]), "rar"),
        (volume("w", &["--retention", "7 parsecs"]), "7 parsecs"),
        (volume("w", &["--max-bytes", "-5"]), "-5"),
        (
            vec!["configure", "create", "volume", "w", "--block-store", "nope", "--metadata-store", "store"],
            "nope",
        ),
        (
            vec!["configure", "create", "volume", "w", "--block-store", "blocks", "--metadata-store", "nope"],
            "nope",
        ),
        (store("blocks", text(&blocks)), "block-store 'blocks' exists already"),
        (store("relative", "some/folder"), "some/folder"),
        (vec!["configure", "show", "volume", "nope"], "nope"),
        (vec!["configure", "delete", "volume", "nope"], "nope"),
        (vec!["configure", "update", "volume", "nope", "--retention", "1d"], "nope"),
        (
            vec!["configure", "delete", "block-store", "blocks"],
            "block-store 'blocks' is in use by volume 'v'",
        ),
        (
            vec!["configure", "delete", "metadata-store", "store"],
            "metadata-store 'store' is in use by volume 'v'",
        ),
        (vec!["configure", "create", "volume-token", "--volume", "nope"], "nope"),
        (vec!["configure", "create", "volume-token", "--volume", "v", "--ends", "soon"], "soon"),
    ];
    for (arguments, expected) in table {
        let said = installation.fails(&arguments);
        assert!(
            said.contains(expected),
            "chronofs {}: does not name {expected}: {said}",
            arguments.join(" ")
        );
        assert!(fs::read_dir(&dir).unwrap().next().is_none(), "{arguments:?} left something behind");
        assert!(!fresh.exists(), "{arguments:?} left a folder behind");
    }
}

#[test]
fn ports_and_folders_belong_to_one_process() {
    let installation = Installation::start();
    let (admin, meta) = (installation.path("admin"), installation.path("meta"));
    let (admin_port, meta_port) =
        (installation.admin_address.to_string(), installation.meta_address.to_string());
    let free = free_address().to_string();
    let spare = installation.path("spare");
    let token = token_in(&installation.ok(&["configure", "create", "metadata-store", "spare"]));
    installation.ok(&["meta", "init", "creds", "--token", &token, "--db-folder", text(&spare)]);
    let start = |role: &'static str, folder: &Path, address: &str| {
        let mut arguments = vec![role.to_owned(), "start".to_owned(), "--db-folder".to_owned()];
        arguments.extend([text(folder).to_owned(), "--bind-addr".to_owned(), address.to_owned()]);
        if role == "meta" {
            arguments.extend(["--http-addr".to_owned(), free_address().to_string()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        installation.fails(&arguments)
    };
    for (what, said, expected) in [
        ("a second admin on the folder", start("admin", &admin, &free), text(&admin)),
        ("a second meta on the folder", start("meta", &meta, &free), text(&meta)),
        ("meta on a port in use", start("meta", &spare, &meta_port), &meta_port),
        ("meta on the admin's port", start("meta", &spare, &admin_port), &admin_port),
        (
            "a folder that was not initialised",
            start("meta", &installation.path("fresh"), &free),
            "init creds",
        ),
    ] {
        assert!(said.contains(expected), "{what}: does not name {expected}: {said}");
    }
}

/// All files under `dir`.
fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files_under(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

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
    let mount = installation.mount("v", &[]);
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
    fs::rename(&away, &blocks).unwrap();
    assert_eq!(refused.expect_err("fsync returned without a folder").raw_os_error(), Some(5));

    write("after").unwrap();
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
    let said = installation.fails(&["mount", "start", "w", text(&place(&installation)), "--token", &token]);
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

#[test]
fn own_certificates_that_do_not_fit_stop_the_start() {
    let installation = Installation::start();
    let folder = installation.path("admin-with-certificate");
    let (certificate, key) = (installation.path("cert.pem"), installation.path("key.pem"));
    fs::write(&certificate, "no certificate").unwrap();
    let address = free_address().to_string();
    installation.ok(&["admin", "init", "creds", "--db-folder", text(&folder), "--address", &address]);
    let arguments = [
        "admin",
        "start",
        "--db-folder",
        text(&folder),
        "--bind-addr",
        &address,
        "--tls-cert",
        text(&certificate),
        "--tls-key",
        text(&key),
    ];
    for (what, expected) in [("a missing key", "key.pem"), ("a broken certificate", "cert.pem")] {
        let mut process = Process::new("admin", &arguments, &[], &installation.path("tls.log"));
        process.start();
        assert!(!process.wait().success(), "{what}: started");
        assert!(process.log().contains(expected), "{what}: {}", process.log());
        fs::write(&key, "no key").unwrap();
    }
}

/// SHA-256 of the certificate that a server shows, as openssl writes it.
fn shown_certificate(address: &str) -> String {
    let script = r#"openssl s_client -connect "$1" < /dev/null 2> /dev/null | openssl x509 -noout -sha256 -fingerprint"#;
    let output = run(Command::new("bash").args(["-o", "pipefail", "-c", script, "shown", address]));
    assert!(output.status.success(), "openssl s_client {address}: {}", text_of(&output));
    text_of(&output)
}

#[test]
fn servers_with_certificates_of_somebody_else_serve_mounts() {
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str, kind: &[&str]| {
        let (certificate, key) =
            (folder.path().join(format!("{name}.crt")), folder.path().join(format!("{name}.key")));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-newkey"]);
        let output = run(command.args(kind).arg("-out").arg(&certificate).arg("-keyout").arg(&key));
        assert!(output.status.success(), "openssl req: {}", text_of(&output));
        let print = run(Command::new("openssl")
            .args(["x509", "-noout", "-sha256", "-fingerprint", "-in"])
            .arg(&certificate));
        (
            [
                "--tls-cert".to_owned(),
                text(&certificate).to_owned(),
                "--tls-key".to_owned(),
                text(&key).to_owned(),
            ],
            text_of(&print),
        )
    };
    let (of_admin, admin_print) = made("admin", &["rsa:2048"]);
    let (of_meta, meta_print) = made("meta", &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    let mut installation = Installation::start_with_tls(&of_admin, &of_meta);
    assert_eq!(shown_certificate(&installation.admin_address.to_string()), admin_print);
    assert_eq!(shown_certificate(&installation.meta_address.to_string()), meta_print);
    assert_ne!(admin_print, meta_print);

    installation.create_volume("v", &[]);
    let mut mount = installation.mount("v", &[]);
    let bytes = Rng::new(4).bytes(3 << 20);
    fs::write(mount.path("file"), &bytes).unwrap();
    let at = mount.instant();
    fs::write(mount.path("more"), "x").unwrap();
    let mut past = installation.mount_past(&mount, &at);
    assert!(!past.path("more").exists());
    // Both servers come back with the same certificates, which the mounts go on to trust.
    installation.admin.stop();
    installation.start_admin();
    installation.meta.kill();
    installation.start_meta();
    assert!(fs::read(past.path("file")).unwrap() == bytes);
    fs::write(mount.path("more"), "y").unwrap();
    assert_eq!(shown_certificate(&installation.meta_address.to_string()), meta_print);
    past.unmount();
    mount.unmount();
}
