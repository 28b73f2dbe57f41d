//! Disaster drill: the admin server's database is lost under load, and no backup is left. It is made anew of the block store alone,
//! a folder or a bucket.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::path::Path;

use chronofs_e2e::clone::objects;
use chronofs_e2e::drill::{Drill, Load};
use chronofs_e2e::object_server::{BUCKET, Kind, ObjectServer, request};
use chronofs_e2e::process::{text, wait_for};
use chronofs_e2e::{Installation, Manifest, Rng, change};
use serde_json::Value;

fn of(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

/// Descriptions of volumes in the block store, each with its text.
fn described(installation: &Installation) -> Vec<String> {
    let folders = fs::read_dir(installation.path("blocks/volumes")).into_iter().flatten();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn an_admin_server_of_which_nothing_is_left_is_made_anew_of_the_block_store() {
    let seed = chronofs_e2e::seed("rebuild");
    let mut installation = Installation::start();
    let key = installation.path("volume.key");
    installation.ok(&["configure", "init", "volume-key", text(&key)]);
    let with_key = ["--key-file", text(&key)];
    installation.create_volume("one", &["--retention", "1h"]);
    installation.create_volume("two", &[&["--encrypt"][..], &with_key].concat());
    let (one, two) = (installation.mount("one", &[]), installation.mount("two", &with_key));
    change::changed_tree(&one.path("tree"), &mut Rng::new(seed)).unwrap();
    change::changed_tree(&two.path("tree"), &mut Rng::new(seed + 1)).unwrap();
    let moment = one.instant();
    let was = of(&one.dir);
    change::random_batch(&one.path("tree"), 60, &mut Rng::new(seed + 2)).unwrap();
    let live = [of(&one.dir), of(&two.dir)];
    // What is said of a volume follows its changes.
    installation.ok(&["configure", "update", "volume", "one", "--retention", "2h"]);
    installation.create_volume("three", &[]);
    wait_for("the third volume to be described", || (described(&installation).len() == 3).then_some(()));
    installation.ok(&["configure", "delete", "volume", "three"]);
    wait_for("volumes to be described in the block store", || {
        let all = described(&installation);
        let has = |part: &str| all.iter().any(|one| one.contains(part));
        (all.len() == 3 && has("\"2h\"") && has("\"deleted\":true")).then_some(())
    });
    drop((one, two));

    installation.admin.kill();
    let drill = Drill::struck("admin server's database lost, no backup");
    fs::remove_dir_all(installation.path("admin")).unwrap();
    let (folder, blocks) = (installation.path("admin"), installation.path("blocks"));
    let address = installation.admin_address.to_string();
    let rebuild = |blocks: &Path, more: &[&str]| -> Vec<String> {
        let place = ["--name", "bytes", "--kind", "local", "--path", text(blocks)];
        let start = ["admin", "rebuild", "--db-folder", text(&folder), "--address", &address];
        [&start[..], &place, more].concat().into_iter().map(str::to_owned).collect()
    };
    let run = |installation: &Installation, arguments: Vec<String>| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        installation.ok(&arguments)
    };
    let fails = |arguments: Vec<String>| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        installation.fails(&arguments)
    };
    let empty = installation.path("empty");
    fs::create_dir(&empty).unwrap();
    assert!(fails(rebuild(&empty, &[])).contains("cannot be read"));
    let said = fails(rebuild(&blocks, &["--cluster", "lab:42"]));
    assert!(said.contains("no volume of cluster lab:42, but of chronofs:"), "{said}");
    assert!(!folder.exists(), "nothing is half done");

    let made: Value = serde_json::from_str(&run(&installation, rebuild(&blocks, &["--json"]))).unwrap();
    let names = |of: &str| -> Vec<&str> {
        made[of].as_array().unwrap().iter().map(|found| found["name"].as_str().unwrap()).collect()
    };
    let mut volumes = names("volumes");
    volumes[..2].sort_unstable();
    assert_eq!((volumes, names("metadata_stores")), (vec!["one", "two", "three"], vec!["store"]), "{made}");
    let volume =
        |name: &str| made["volumes"].as_array().unwrap().iter().find(|found| found["name"] == name).unwrap();
    assert_eq!(
        (&volume("two")["encrypted"], &volume("three")["deleted"]),
        (&true.into(), &true.into()),
        "{made}"
    );
    let again = fails(rebuild(&blocks, &[]));
    assert!(again.contains("is block store 'bytes' already"), "{again}");

    installation.start_admin();
    installation.ok(&["configure", "init", "creds", "--token", made["root_token"].as_str().unwrap()]);
    let token = made["metadata_stores"][0]["token"].as_str().unwrap();
    let meta = installation.path("meta");
    installation.meta.stop();
    installation.ok(&["meta", "init", "creds", "--token", token, "--db-folder", text(&meta)]);
    installation.start_meta();
    let said = installation.ok(&["restore", "status", "--wait", "60s"]);
    assert!(said.contains("block store bytes"), "{said}");
    let (one, two) = (installation.mount("one", &[]), installation.mount("two", &with_key));
    live[0].assert_same(&of(&one.dir), &format!("seed {seed}: the volume"));
    live[1].assert_same(&of(&two.dir), &format!("seed {seed}: the encrypted volume"));
    drill.recovered("files are read again");
    let past = installation.mount_past(&one, &moment);
    was.assert_same(&of(&past.dir), &format!("seed {seed}: at {moment}"));
    drop(past);
    let shown: Value =
        serde_json::from_str(&installation.ok(&["configure", "show", "volume", "one", "--json"])).unwrap();
    assert_eq!((&shown["retention"], &shown["state"]), (&"2h".into(), &"ready".into()), "{shown}");
    fs::write(one.path("new"), "written since").unwrap();
    installation.ok(&["configure", "undelete", "volume", "three"]);
    drop(installation.mount("three", &[]));
    installation.ok(&["restore", "accept"]);
    drop((one, two));
    nothing_is_made_in_an_empty_folder(&mut installation, token);
    installation.stop_meta_and_verify();
}

/// A server that is started on a folder with nothing in it makes no volume in the place of those that it is to serve.
fn nothing_is_made_in_an_empty_folder(installation: &mut Installation, token: &str) {
    let (meta, aside) = (installation.path("meta"), installation.path("aside"));
    let before = objects(&installation.path("blocks/objects"));
    installation.meta.stop();
    fs::rename(&meta, &aside).unwrap();
    installation.ok(&["meta", "init", "creds", "--token", token, "--db-folder", text(&meta)]);
    installation.start_meta();
    let shown = |installation: &Installation| -> Value {
        let shown = installation.ok(&["configure", "show", "volume", "one", "--json"]);
        serde_json::from_str(&shown).unwrap()
    };
    wait_for("the volume to have a problem", || {
        let shown = shown(installation);
        let detail = shown["detail"].as_str().unwrap_or_default();
        (shown["state"] == "problem" && detail.contains("this folder has nothing of it")).then_some(())
    });
    assert_eq!(objects(&installation.path("blocks/objects")), before);
    installation.meta.stop();
    fs::remove_dir_all(&meta).unwrap();
    fs::rename(&aside, &meta).unwrap();
    installation.start_meta();
    wait_for("the volume to be there again", || (shown(installation)["state"] == "ready").then_some(()));
}

/// As of a folder, of a bucket; and mounts that go on meanwhile lose nothing but their tokens.
#[test]
fn an_admin_server_is_made_anew_of_a_bucket_while_a_mount_writes() {
    let seed = chronofs_e2e::seed("rebuild of a bucket");
    let server = ObjectServer::start(Kind::Moto);
    let mut installation = Installation::start();
    installation.create_block_store("cloud", &server.flags(), &[]);
    installation.create_volume_in("cloud", "one", &["--retention", "1h"]);
    let mount = installation.mount("one", &[]);
    let quiet = mount.path("quiet");
    change::changed_tree(&quiet, &mut Rng::new(seed)).unwrap();
    fs::write(quiet.join("large"), Rng::new(seed).bytes(5 << 20)).unwrap();
    let moment = mount.instant();
    let (was, was_quiet) = (of(&mount.dir), of(&quiet));
    let load = Load::on(&mount.path("busy"));
    load.goes_on();
    let listed = format!("/{BUCKET}?list-type=2&prefix=volumes");
    wait_for("the volume to be described in the bucket", || {
        request(server.address, "GET", &listed, &[]).1.contains("<Key>volumes/").then_some(())
    });
    installation.admin.kill();
    let drill = Drill::struck("admin server's database lost, no backup, and a bucket");
    fs::remove_dir_all(installation.path("admin")).unwrap();
    // The mount goes on without it.
    load.goes_on();

    let (folder, address) = (installation.path("admin"), installation.admin_address.to_string());
    let flags = server.flags();
    let mut rebuild = vec!["admin", "rebuild", "--db-folder", text(&folder), "--address", &address];
    rebuild.extend(["--name", "bytes", "--json"].into_iter().chain(flags.iter().map(String::as_str)));
    let made: Value = serde_json::from_str(&installation.ok(&rebuild)).unwrap();
    assert_eq!(made["volumes"][0]["name"], "one", "{made}");
    installation.start_admin();
    installation.ok(&["configure", "init", "creds", "--token", made["root_token"].as_str().unwrap()]);
    installation.ok(&["configure", "probe", "block-store", "bytes"]);
    let (meta, token) = (installation.path("meta"), made["metadata_stores"][0]["token"].as_str().unwrap());
    // Its tokens are gone, and the mount with them.
    let written = load.end();
    drop(mount);
    installation.meta.stop();
    installation.ok(&["meta", "init", "creds", "--token", token, "--db-folder", text(&meta)]);
    installation.start_meta();
    let said = installation.ok(&["restore", "status", "--wait", "60s"]);
    assert!(said.contains("block store bytes"), "{said}");
    let mount = installation.mount("one", &[]);
    drill.recovered("files are read again");
    drill.says(&said);
    drill.is_whole("what nobody wrote to meanwhile", &was_quiet, &of(&mount.path("quiet")));
    assert!(drill.account(&written, &mount.path("busy"), None).is_empty());
    let past = installation.mount_past(&mount, &moment);
    was.assert_same(&of(&past.dir), &format!("seed {seed}: at {moment}"));
    drop(past);
    fs::write(mount.path("new"), "written since").unwrap();
    installation.ok(&["restore", "accept"]);
    drop(mount);
    installation.stop_meta_and_verify();
}
