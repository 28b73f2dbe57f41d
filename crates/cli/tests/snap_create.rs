//! `chronofs snap-create` as servers call it: by a FoundationDB server unchanged, which here is a stand-in with its
//! recorded command line; on real btrfs and xfs, which take root, loop devices and their tools.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

#[path = "../../snapshot/tests/support/mod.rs"]
mod support;

use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{ADDRESSES, Recorded, UID, assert_restored, right_restore, run};
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_chronofs");

fn chronofs(arguments: &[&str]) -> Output {
    Command::new(BIN).args(arguments).output().unwrap()
}

#[track_caller]
fn ok(arguments: &[&str]) -> String {
    let output = chronofs(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(arguments: &[&str], expected: &str) {
    let output = chronofs(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", said(&output));
    assert!(said(&output).contains(expected), "{arguments:?}: {}", said(&output));
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A process with the command line of a FoundationDB server. It calls the program with the arguments that it is told in
/// variables, as the server does: the caller's own, then its four.
struct FdbServer {
    folder: TempDir,
    /// Beside it, the executable under a name that is its role.
    program: PathBuf,
}

impl FdbServer {
    fn new() -> FdbServer {
        let folder = tempfile::tempdir().unwrap();
        let server = folder.path().join("fdbserver");
        let call = r#"#!/bin/sh
            "$PROGRAM" $OWN --path "$DATA" --version 7.3.79 --role "$ROLE" --uid "$SNAPSHOT"
            exit $?
        "#;
        fs::write(&server, call).unwrap();
        fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
        let program = folder.path().join("snap-create.fdb");
        symlink(BIN, &program).unwrap();
        FdbServer { folder, program }
    }

    fn call(&self, command_line: &[String], own: &str, data: &Path, role: &str) -> Output {
        let mut server = Command::new(self.folder.path().join("fdbserver"));
        server.args(&command_line[1..]).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        server
            .env("PROGRAM", &self.program)
            .env("OWN", own)
            .env("DATA", data)
            .env("ROLE", role)
            .env("SNAPSHOT", UID);
        server.output().unwrap()
    }
}

/// The recorded command line of a server, with a cluster file that is there.
fn command_line(recorded: &Recorded, address: &str) -> Vec<String> {
    let coord = recorded.image(address, "coord");
    let line = fs::read_to_string(coord.join("parent-cmdline")).unwrap();
    let cluster_file = coord.join("fdb.cluster");
    line.split_whitespace()
        .map(|word| word.replace("/etc/foundationdb/fdb.cluster", text(&cluster_file)))
        .collect()
}

#[test]
fn a_foundationdb_server_calls_it_unchanged_and_its_images_are_restored() {
    let recorded = Recorded::new();
    let server = FdbServer::new();
    let backup = tempfile::tempdir().unwrap();
    let destdir = text(backup.path());
    for address in ADDRESSES {
        let line = command_line(&recorded, address);
        for role in ["storage", "tlog", "coord"] {
            let data = recorded.image(address, role).join("files");
            let output = server.call(&line, &format!("--destdir {destdir}"), &data, role);
            assert!(output.status.success(), "{}", said(&output));
        }
    }
    let image = backup.path().join(UID).join("127.0.0.1:4602/tlog");
    let manifest: Value = serde_json::from_slice(&fs::read(image.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["name"], format!("trial:127.0.0.1:4602:{UID}"));
    assert_eq!((&manifest["server_version"], &manifest["role"]), (&"7.3.79".into(), &"tlog".into()));
    assert_eq!(
        (&manifest["locality"]["machineid"], &manifest["locality"]["zoneid"]),
        (&"m2".into(), &"z2".into())
    );
    let cluster_file =
        fs::read_to_string(recorded.image("127.0.0.1:4602", "coord").join("fdb.cluster")).unwrap();
    assert_eq!(manifest["cluster_file"], cluster_file);
    let words: Vec<_> =
        manifest["command_line"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert!(words.join(" ").contains("-p 127.0.0.1:4602 -l 127.0.0.1:4602 --datadir"), "{words:?}");
    // Nobody but the owner looks into images.
    assert_eq!(fs::metadata(backup.path().join(UID)).unwrap().permissions().mode() & 0o777, 0o700);
    // Once more is refused, and says so to the server.
    let data = recorded.image("127.0.0.1:4602", "tlog").join("files");
    let line = command_line(&recorded, "127.0.0.1:4602");
    let output = server.call(&line, &format!("--destdir {destdir}"), &data, "tlog");
    assert!(
        output.status.code() == Some(1) && said(&output).contains("an image is never overwritten"),
        "{}",
        said(&output)
    );

    let listed: Vec<Value> =
        serde_json::from_str(&ok(&["snap-create", "list", "--destdir", destdir, "--json"])).unwrap();
    assert_eq!(listed.len(), 9);
    assert!(ok(&["snap-create", "list", "--destdir", destdir, "--role", "coord"]).lines().count() == 4);
    let verified = ok(&["snap-create", "verify", "--destdir", destdir]);
    assert_eq!(
        verified.lines().filter(|line| line.contains("content") && line.ends_with("whole")).count(),
        9
    );
    restore(&recorded, &backup.path().join(UID));

    let flipped = support::one_named(&image.join("files"), "log2-");
    File::options().write(true).open(&flipped).unwrap().write_all_at(&[1], 50 << 20).unwrap();
    fails(&["snap-create", "verify", "--destdir", destdir], "127.0.0.1:4602/tlog: log2-");
    let set = text(&backup.path().join(UID)).to_owned();
    let maps: Vec<String> = ADDRESSES.iter().map(|old| format!("--map={old}={old}")).collect();
    let out = tempfile::tempdir().unwrap();
    let mut prepare = vec!["restore", "prepare", &set, "--out", text(out.path())];
    prepare.extend(maps.iter().map(String::as_str));
    fails(&prepare, "has other content than when it was made");

    ok(&[
        "snap-create",
        "delete",
        "--destdir",
        destdir,
        "--uid",
        UID,
        "--address",
        "127.0.0.1:4602",
        "--role",
        "tlog",
    ]);
    assert!(!image.exists() && image.parent().unwrap().exists());
    ok(&["snap-create", "delete", "--destdir", destdir, "--uid", UID]);
    assert_eq!(fs::read_dir(backup.path()).unwrap().count(), 0);
    fails(&["snap-create", "delete", "--destdir", destdir, "--uid", UID], "no image of de01497a");
}

/// The whole way of an operator, by the commands.
fn restore(recorded: &Recorded, set: &Path) {
    let out = tempfile::tempdir().unwrap();
    let map = out.path().join("map");
    let lines = ADDRESSES.map(|old| format!("{old} {}\n", old.replace(":4", ":5")));
    fs::write(&map, lines.concat()).unwrap();
    let to = out.path().join("restored");
    let (map, to_text, set) = (text(&map), text(&to), text(set));
    let plan = ok(&["restore", "plan", set, "--map-file", map]);
    assert!(
        plan.contains("127.0.0.1:4601") && plan.contains("@127.0.0.1:5601,127.0.0.1:5602,127.0.0.1:5603"),
        "{plan}"
    );
    fails(
        &["restore", "plan", set, "--map", "127.0.0.1:4601=127.0.0.1:5601"],
        "127.0.0.1:4602 has no new address",
    );
    let dry = ok(&["restore", "prepare", set, "--map-file", map, "--out", to_text, "--dry-run"]);
    assert!(dry.contains("would prepare") && !to.exists(), "{dry}");
    let prepared = ok(&["restore", "prepare", set, "--map-file", map, "--out", to_text]);
    let start = format!(
        "fdbserver --cluster-file {to_text}/127.0.0.1:5602/fdb.cluster --public-address 127.0.0.1:5602"
    );
    assert!(prepared.contains(&start) && prepared.contains("--locality-machineid m2"), "{prepared}");
    for old in ADDRESSES {
        let data = to.join(old.replace(":4", ":5")).join("data");
        assert_restored(&data, &right_restore(|role| recorded.image(old, role).join("files")));
    }
    fails(&["restore", "prepare", set, "--map-file", map, "--out", to_text], "exists and is not empty");
    assert_eq!(ok(&["restore", "status", to_text]).matches("as prepared").count(), 3);
    assert_eq!(ok(&["restore", "verify", to_text]).matches("as prepared").count(), 3);
    fs::remove_file(to.join("127.0.0.1:5603/data/processId")).unwrap();
    fails(&["restore", "verify", to_text], "processId is missing");
    assert_eq!(ok(&["restore", "status", to_text]).matches("changed").count(), 1);
}

#[test]
fn a_chronofs_server_says_who_it_is_in_variables() {
    let world = tempfile::tempdir().unwrap();
    let (data, backup) = (world.path().join("data"), world.path().join("backup"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("segment"), "log").unwrap();
    let create = |variables: &[(&str, &str)]| {
        let mut command = Command::new(BIN);
        command.args([
            "snap-create",
            "--destdir",
            text(&backup),
            "--path",
            text(&data),
            "--version",
            "0.1.0",
        ]);
        command.args(["--role", "tlog", "--uid", UID, "--json"]).env_clear().envs(variables.iter().copied());
        command.output().unwrap()
    };
    let output = create(&[]);
    assert!(
        output.status.code() == Some(1) && said(&output).contains("give it with --address"),
        "{}",
        said(&output)
    );
    let output = create(&[
        ("CHRONOFS_SNAPSHOT_ADDRESS", "10.0.0.1:8444"),
        ("CHRONOFS_SNAPSHOT_CLUSTER_ID", "home"),
        ("CHRONOFS_SNAPSHOT_LOCALITY", "zone=z1,rack=r7"),
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let manifest: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(manifest["name"], format!("home:10.0.0.1:8444:{UID}"));
    assert_eq!(manifest["locality"]["rack"], "r7");
    // A folder in the data folder would hold itself.
    let inside = text(&data.join("images")).to_owned();
    let address = ["--address", "10.0.0.1:8444", "--version", "1", "--role", "tlog", "--uid", UID];
    let arguments = [&["snap-create", "--destdir", &inside, "--path", text(&data)][..], &address].concat();
    fails(&arguments, "which is to be copied");
    assert!(!data.join("images").exists());
}

#[test]
fn a_program_of_ones_own_is_chosen_by_name_among_those_of_the_administrator() {
    let world = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(world.path()).unwrap();
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("conf/snap-create.d")).unwrap();
    fs::create_dir(at("data")).unwrap();
    let program = at("conf/snap-create.d/disk");
    let script = "#!/bin/sh\necho \"$CHRONOFS_SNAPSHOT_ACTION $CHRONOFS_SNAPSHOT_NAME $*\" >> \"${0%/*}/../said\"\n\
                  [ \"$CHRONOFS_SNAPSHOT_ACTION\" = delete ] || echo 17 > \"$CHRONOFS_SNAPSHOT_IMAGE/volume-id\"\n\
                  [ \"$6\" != coord ]\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let call = |action: &str, role: &str, name: &str| {
        let mut command = Command::new(BIN);
        command.args([
            "snap-create",
            action,
            "--destdir",
            text(&at("backup")),
            "--method",
            "command",
            "--command",
            name,
        ]);
        command.args(["--path", text(&at("data")), "--version", "1", "--role", role, "--uid", UID]);
        command.args(["--address", "10.0.0.1:1"]).env("CHRONOFS_CONFIG_DIR", at("conf"));
        command.output().unwrap()
    };
    let output = call("create", "tlog", "disk");
    assert!(output.status.success(), "{}", said(&output));
    let image = at("backup").join(UID).join("10.0.0.1:1/tlog");
    assert_eq!(fs::read_to_string(image.join("volume-id")).unwrap(), "17\n");
    let output = call("create", "coord", "disk");
    assert!(output.status.code() == Some(1) && said(&output).contains("exit status: 1"), "{}", said(&output));
    assert_eq!(fs::read_dir(image.parent().unwrap()).unwrap().count(), 1, "nothing half is left");
    for elsewhere in ["/bin/true", "../snap-create.d/disk", "", "disk/", "missing"] {
        assert_eq!(call("create", "storage", elsewhere).status.code(), Some(1), "{elsewhere}");
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(said(&call("create", "storage", "disk")).contains("can be written by others"));
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(call("delete", "tlog", "disk").status.success());
    assert!(!image.exists());
    let lines = fs::read_to_string(at("conf/said")).unwrap();
    let name = format!("unnamed:10.0.0.1:1:{UID}");
    let told = format!("--path {} --version 1 --role tlog --uid {UID}", text(&at("data")));
    assert_eq!(lines.lines().next().unwrap(), format!("create {name} {told}"));
    assert_eq!(lines.lines().last().unwrap(), format!("delete {name} {told}"));
}

#[test]
fn a_wrong_call_is_refused_before_anything_is_made() {
    let world = tempfile::tempdir().unwrap();
    let destdir = world.path().join("backup");
    for (arguments, code, expected) in [
        (&["--uid", "DE01"][..], 2, "is not a snapshot's UID"),
        (&["--role", "proxy"], 2, "is not a role"),
        (&["--uid", UID, "--uid", UID], 2, "cannot be used multiple times"),
        (&["--path", "/", "--version", "1", "--role", "tlog"], 1, "--uid is missing"),
        (
            &["--path", "/none", "--version", "1", "--role", "tlog", "--uid", UID, "--address", "a:1"],
            1,
            "cannot find /none",
        ),
    ] {
        let output = chronofs(&[&["snap-create", "--destdir", text(&destdir)][..], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(said(&output).contains(expected), "{}", said(&output));
        assert!(!destdir.exists());
    }
}

/// A file system of its own on a loop device; unmounted at the end.
struct Disk {
    _folder: TempDir,
    mount: PathBuf,
}

impl Disk {
    fn new(make: &[&str]) -> Disk {
        assert!(
            is_root(),
            "this test mounts {} on a loop device: run it as root (scripts/test does not change user)",
            make[0]
        );
        let folder = tempfile::Builder::new().prefix("chronofs-disk-").tempdir().unwrap();
        let (image, mount) = (folder.path().join("image"), folder.path().join("mount"));
        File::create(&image).unwrap().set_len(400 << 20).unwrap();
        fs::create_dir(&mount).unwrap();
        // Not skipped where the tools are missing: scripts/test installs them (btrfs-progs, xfsprogs).
        run(Command::new(make[0]).args(&make[1..]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Disk { _folder: folder, mount }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.mount).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn is_root() -> bool {
    run(Command::new("id").arg("-u")).trim() == "0"
}

fn snap_create<'a>(destdir: &'a Path, path: &'a Path, method: &'a str, role: &'a str) -> Vec<&'a str> {
    let mut arguments =
        vec!["snap-create", "--destdir", text(destdir), "--method", method, "--path", text(path)];
    arguments.extend(["--version", "7.3.79", "--role", role, "--uid", UID, "--address", "10.0.0.1:4500"]);
    arguments
}

#[test]
fn on_btrfs_an_image_is_a_read_only_snapshot_of_the_subvolume() {
    let disk = Disk::new(&["mkfs.btrfs", "-q"]);
    let volume = disk.mount.join("volume");
    run(Command::new("btrfs").args(["subvolume", "create"]).arg(&volume));
    let data = volume.join("fdb/data/4500");
    fs::create_dir_all(data.join("inner")).unwrap();
    fs::write(data.join("storage-1"), "before").unwrap();
    let backup = disk.mount.join("backup");
    ok(&snap_create(&backup, &data, "btrfs", "storage"));
    ok(&snap_create(&backup, &volume, "btrfs", "tlog"));
    fs::write(data.join("storage-1"), "after").unwrap();
    let server = backup.join(UID).join("10.0.0.1:4500");
    let image = server.join("storage/subvolume/fdb/data/4500/storage-1");
    assert_eq!(fs::read_to_string(&image).unwrap(), "before");
    assert_eq!(fs::read_to_string(server.join("tlog/subvolume/fdb/data/4500/storage-1")).unwrap(), "before");
    assert!(fs::write(&image, "changed").is_err(), "it is read-only");
    let manifest: Value =
        serde_json::from_slice(&fs::read(server.join("storage/manifest.json")).unwrap()).unwrap();
    assert_eq!(
        (&manifest["method"], &manifest["data"]),
        (&"btrfs".into(), &"subvolume/fdb/data/4500".into())
    );
    assert_eq!(ok(&["snap-create", "verify", "--destdir", text(&backup)]).matches("whole").count(), 2);
    let writable = server.join("storage/subvolume");
    run(Command::new("btrfs").args(["property", "set", "-ts"]).arg(&writable).args(["ro", "false"]));
    fails(&["snap-create", "verify", "--destdir", text(&backup)], "it can be written");
    // A subvolume within would be missing from the snapshot.
    run(Command::new("btrfs").args(["subvolume", "create"]).arg(data.join("inner/nested")));
    fails(&snap_create(&backup, &data, "btrfs", "coord"), "inner/nested is a subvolume of its own");
    assert!(!server.join("coord").exists());
    assert_eq!(fs::read_dir(&server).unwrap().count(), 2, "nothing half is left");
    ok(&["snap-create", "delete", "--destdir", text(&backup), "--uid", UID]);
    assert_eq!(fs::read_dir(&backup).unwrap().count(), 0);
    let left = run(Command::new("btrfs").args(["subvolume", "list", "-o"]).arg(&disk.mount));
    assert!(!left.contains("backup"), "{left}");
    ok(&snap_create(&backup, &data, "reflink", "storage"));
    // Elsewhere it cannot be done, and says so.
    let elsewhere = tempfile::tempdir().unwrap();
    fails(
        &snap_create(&elsewhere.path().join("x"), &data, "btrfs", "storage"),
        "btrfs subvolume snapshot -r",
    );
    fails(&snap_create(&backup, elsewhere.path(), "btrfs", "coord"), "is not on btrfs");
}

#[test]
fn on_xfs_an_image_shares_its_blocks_with_the_data() {
    let disk = Disk::new(&["mkfs.xfs", "-q", "-m", "reflink=1"]);
    let data = disk.mount.join("data");
    fs::create_dir(&data).unwrap();
    let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let file = File::create(data.join("storage-1")).unwrap();
    for n in 0..100 {
        file.write_all_at(&bytes, n * bytes.len() as u64).unwrap();
    }
    file.set_len(1 << 30).unwrap();
    file.sync_all().unwrap();
    let used = || run(Command::new("df").args(["--output=used", "-B1"]).arg(&disk.mount));
    let used = || used().lines().nth(1).unwrap().trim().parse::<u64>().unwrap();
    let before = used();
    let backup = disk.mount.join("backup");
    ok(&snap_create(&backup, &data, "reflink", "storage"));
    assert!(used() < before + (4 << 20), "40 MB are shared, not copied: {} bytes more", used() - before);
    file.write_all_at(b"after", 0).unwrap();
    let image = backup.join(UID).join("10.0.0.1:4500/storage/files/storage-1");
    let image = File::open(image).unwrap();
    let mut read = vec![0; bytes.len()];
    image.read_exact_at(&mut read, 0).unwrap();
    assert!(read == bytes && image.metadata().unwrap().len() == 1 << 30);
    let verified = ok(&["snap-create", "verify", "--destdir", text(&backup)]);
    assert!(verified.contains("sizes") && verified.contains("whole"), "{verified}");
    let elsewhere = tempfile::tempdir().unwrap();
    fails(
        &snap_create(&elsewhere.path().join("x"), &data, "reflink", "storage"),
        "needs both on one btrfs or xfs",
    );
    assert_eq!(fs::read_dir(elsewhere.path().join("x").join(UID).join("10.0.0.1:4500")).unwrap().count(), 0);
}
