//! Disaster drills: the metadata is lost under load, and there is no backup. The server begins anew, and files come back from the
//! objects alone: all that had been packed into one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use chronofs_e2e::clone::objects;
use chronofs_e2e::drill::{Drill, Load, Written};
use chronofs_e2e::process::{text, wait_for};
use chronofs_e2e::{Installation, Rng};
use serde_json::Value;

/// Too large to travel with the metadata, and of several blocks.
const LARGE: usize = 9 << 20;
/// Packed with others.
const SMALL: usize = 5000;

/// Contents that are written to files of a mount: they are all that comes back.
fn write_files(dir: &Path, seed: u64) -> Vec<Vec<u8>> {
    let mut random = Rng::new(seed);
    let all: Vec<Vec<u8>> = (0..20).map(|n| random.bytes(if n == 0 { LARGE } else { SMALL + n })).collect();
    for (n, content) in all.iter().enumerate() {
        fs::write(dir.join(n.to_string()), content).unwrap();
    }
    all
}

/// Waits until so many files of a volume are not only in the metadata.
fn wait_for_packing(installation: &Installation, files: usize) {
    wait_for("small files to be packed", || (packed(installation) >= files as u64).then_some(()));
}

/// How many small files the server has packed into objects.
fn packed(installation: &Installation) -> u64 {
    let shown =
        installation.ok(&["meta", "gc", "--json", "--http-addr", &installation.http_address.to_string()]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let packed = |volume: &Value| volume["packing"]["slices"].as_u64();
    shown["volumes"].as_array().into_iter().flatten().filter_map(packed).sum()
}

/// Begins to write, and waits until some of what is written is packed.
fn load(installation: &Installation, dir: &Path) -> Load {
    let before = packed(installation);
    let load = Load::on(dir);
    load.goes_on();
    wait_for_packing(installation, before as usize + 5);
    load.goes_on();
    load
}

/// What of the load is salvaged, and what is not.
fn account(drill: &Drill, written: &Written, found: &BTreeMap<Vec<u8>, String>) {
    let salvaged = written.files.iter().filter(|file| found.contains_key(&written.content(file))).count();
    let all = written.files.len();
    drill.says(&format!(
        "lost: all names, owners, times and the past; of {all} small files that were stored under load {}, which were not \
         packed yet; {salvaged} are salvaged",
        all - salvaged
    ));
    assert!(salvaged >= 5, "what was packed is salvaged: {salvaged} of {all}");
}

/// What `analyze salvage` puts into a folder, by content.
fn salvaged(installation: &Installation, volume: &str, more: &[&str]) -> BTreeMap<Vec<u8>, String> {
    let to = installation.path(&format!("salvaged-{volume}"));
    let arguments = [&["analyze", "salvage", volume, "--to", text(&to)][..], more].concat();
    installation.ok(&arguments);
    let files = fs::read_dir(&to).unwrap().map(|file| file.unwrap());
    files.map(|file| (fs::read(file.path()).unwrap(), file.file_name().into_string().unwrap())).collect()
}

fn assert_has_all(found: &BTreeMap<Vec<u8>, String>, wanted: &[Vec<u8>]) {
    for (n, content) in wanted.iter().enumerate() {
        assert!(
            found.contains_key(content),
            "file {n} of {} bytes is not among {:?}",
            content.len(),
            found.values()
        );
    }
}

/// A program that has a file open, and writes to it when it is told. It is a process of its own: whatever this one starts would wait for
/// the mount, since the kernel closes in the new process what is open here.
fn writer_of(path: &Path) -> Child {
    let script = r#"exec 3<>"$0"; echo ready; read -r; printf 'not stored' >&3; read -r"#;
    let mut command = Command::new("bash");
    command.args(["-c", script, text(path)]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = command.spawn().unwrap();
    let mut ready = [0; 6];
    writer.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    writer
}

fn begin_anew(installation: &Installation, token: &str) {
    let meta = installation.path("meta");
    let arguments = ["meta", "init", "creds", "--token", token, "--db-folder", text(&meta), "--begin-anew"];
    let said = installation.ok(&arguments);
    assert!(said.contains("analyze salvage") && said.contains("restore accept"), "{said}");
    // As after a try that was interrupted.
    installation.ok(&arguments);
}

#[test]
fn of_a_metadata_server_without_any_backup_the_files_come_back_from_their_objects() {
    let seed = chronofs_e2e::seed("anew");
    let mut installation = Installation::start_with_meta_arguments(&["--pack-after", "1"]);
    installation.create_volume("one", &[]);
    let mount = installation.mount("one", &[]);
    let contents = write_files(&mount.dir, seed);
    wait_for_packing(&installation, contents.len() - 1);
    let load = load(&installation, &mount.path("busy"));
    let mut writer = writer_of(&mount.path("0"));
    let token = fs::read_to_string(installation.path("meta/credentials")).unwrap();
    installation.meta.kill();
    let drill = Drill::struck("metadata lost, no backup");
    let before = objects(&installation.path("blocks/objects"));
    writer.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    fs::rename(installation.path("meta"), installation.path("old")).unwrap();

    begin_anew(&installation, token.trim());
    installation.start_meta();
    wait_for("the mount to show the empty volume", || {
        fs::read_dir(&mount.dir).ok().filter(|_| !mount.path("1").exists()).map(drop)
    });
    drill.recovered("the volume is there again");
    let written = load.end();
    drop(writer.stdin.take());
    writer.wait().unwrap();
    wait_for("what was written to lie in lost+found", || {
        let mut found = fs::read_dir(mount.path("lost+found")).ok()?.map(|entry| entry.unwrap().path());
        found.find(|path| fs::read(path).is_ok_and(|all| all.ends_with(b"not stored")))
    });
    let said = installation.ok(&["restore", "status", "--wait", "60s"]);
    for part in ["restored in place", "nothing", "one", "restore accept"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    drill.says(&said);
    let found = salvaged(&installation, "one", &[]);
    drill.recovered("files are salvaged");
    assert_has_all(&found, &contents);
    account(&drill, &written, &found);
    let meta = installation.path("meta");
    let again =
        ["meta", "init", "creds", "--token", token.trim(), "--db-folder", text(&meta), "--begin-anew"];
    let refused = installation.fails(&again);
    assert!(refused.contains("is not empty"), "{refused}");
    // The lost server comes back.
    let (address, old) = (chronofs_e2e::process::free_address().to_string(), installation.path("old"));
    let refused = installation.fails(&["meta", "start", "--db-folder", text(&old), "--bind-addr", &address]);
    assert!(refused.contains("restored from nothing (restore epoch 1)"), "{refused}");

    installation.ok(&["restore", "accept"]);
    fs::write(mount.path("new"), "written since").unwrap();
    let http = installation.http_address.to_string();
    installation.ok(&["meta", "gc", "--full", "--http-addr", &http]);
    let kept = objects(&installation.path("blocks/objects"));
    assert!(
        before.iter().all(|(path, bytes)| kept.get(path) == Some(bytes)),
        "objects of the lost volume stay"
    );
    // Started again, it serves what it has.
    installation.meta.stop();
    installation.start_meta();
    assert_eq!(fs::read_to_string(mount.path("new")).unwrap(), "written since");
    drop(mount);
    installation.stop_meta_and_verify();
}

#[test]
fn of_both_servers_without_any_backup_the_files_come_back_from_the_block_store_and_the_volumes_secret() {
    let seed = chronofs_e2e::seed("anew all");
    let mut installation = Installation::start_with_meta_arguments(&["--pack-after", "1"]);
    let key = installation.path("volume.key");
    installation.ok(&["configure", "init", "volume-key", text(&key)]);
    let with_key = ["--key-file", text(&key)];
    installation.create_volume("two", &[&["--encrypt"][..], &with_key].concat());
    let mut mount = installation.mount("two", &with_key);
    let contents = write_files(&mount.dir, seed);
    wait_for_packing(&installation, contents.len() - 1);
    wait_for("the volume to be described in the block store", || {
        fs::read_dir(installation.path("blocks/volumes")).ok()?.next().map(drop)
    });
    let load = load(&installation, &mount.path("busy"));
    installation.meta.kill();
    installation.admin.kill();
    let drill = Drill::struck("both servers lost, no backup");
    mount.kill();
    let written = load.end();
    for folder in ["admin", "meta"] {
        fs::remove_dir_all(installation.path(folder)).unwrap();
    }

    let (folder, blocks) = (installation.path("admin"), installation.path("blocks"));
    let address = installation.admin_address.to_string();
    let place = ["--name", "bytes", "--kind", "local", "--path", text(&blocks), "--json"];
    let start = ["admin", "rebuild", "--db-folder", text(&folder), "--address", &address];
    let made: Value = serde_json::from_str(&installation.ok(&[&start[..], &place].concat())).unwrap();
    installation.start_admin();
    installation.ok(&["configure", "init", "creds", "--token", made["root_token"].as_str().unwrap()]);
    begin_anew(&installation, made["metadata_stores"][0]["token"].as_str().unwrap());
    installation.start_meta();
    installation.ok(&["restore", "status", "--wait", "60s"]);
    let found = salvaged(&installation, "two", &with_key);
    drill.recovered("files are salvaged");
    assert_has_all(&found, &contents);
    account(&drill, &written, &found);
    let mount = installation.mount("two", &with_key);
    fs::write(mount.path("new"), "written since").unwrap();
    installation.ok(&["restore", "accept"]);
    drop(mount);
    installation.stop_meta_and_verify();
}
