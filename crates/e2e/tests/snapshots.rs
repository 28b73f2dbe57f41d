//! Disk snapshots of a real installation: taken under load, restored on other ports, and all the ways in which one fails.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chronofs_e2e::installation::token_in;
use chronofs_e2e::process::{Process, free_address, http_get, run, text, text_of, wait_for};
use chronofs_e2e::snapshot::{PAGE, Programs, read_record, uid_in};
use chronofs_e2e::{Installation, Mount};
use serde_json::Value;

/// Its first argument says what it does; it notes what it was told.
const MISCHIEF: &str = r#"#!/bin/sh
[ -n "$CHRONOFS_SNAPSHOT_CLUSTER_ID" ] || exit 9
line=$(printf '%s|' "$@")
printf '%s\n' "$line" >> "$(dirname "$0")/told"
case "$1" in
    exit3) echo "there is no room for it"; exit 3;;
    sleep) trap '' TERM; sleep 63; exit 0;;
    slow) trap '' TERM; sleep 64; exit 0;;
    linger) sleep 15; exit 0;;
    *) exit 0;;
esac
"#;

/// Writes small files one after the other.
struct Writer {
    stop: Arc<AtomicBool>,
    begun: Arc<AtomicU64>,
    closed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

fn content(n: u64) -> String {
    // Most travel with the metadata, some become objects.
    let times = if n % 50 == 7 { 40_000 } else { 20 + n % 700 };
    format!("file {n} ").repeat(times as usize)
}

impl Writer {
    fn start(folder: &Path) -> Writer {
        let (stop, begun, closed) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::default());
        let thread = std::thread::spawn({
            let (folder, stop) = (folder.to_owned(), stop.clone());
            let (begun, closed): (Arc<AtomicU64>, Arc<AtomicU64>) = (Arc::clone(&begun), Arc::clone(&closed));
            move || {
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    begun.store(n + 1, Ordering::SeqCst);
                    fs::write(folder.join(n.to_string()), content(n)).unwrap();
                    closed.store(n + 1, Ordering::SeqCst);
                }
            }
        });
        Writer { stop, begun, closed, thread: Some(thread) }
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Another metadata store with its server.
fn second_store(installation: &Installation, program: &Path) -> Process {
    let store = token_in(&installation.ok(&["configure", "create", "metadata-store", "other"]));
    let folder = installation.path("meta2");
    installation.ok(&["meta", "init", "creds", "--token", &store, "--db-folder", text(&folder)]);
    let cluster = installation.path("admin/chronofs.cluster");
    let more =
        ["--whitelist-binpath", text(program), "--locality", "zoneid=z2,machineid=m2", "--cluster-file"];
    meta_on(&folder, &installation.path("meta2.log"), &[&more[..], &[text(&cluster)]].concat())
}

/// A metadata server on ports of its own.
fn meta_on(folder: &Path, log: &Path, more: &[&str]) -> Process {
    let (address, http) = (free_address().to_string(), free_address());
    let shown = http.to_string();
    let mut arguments = vec!["meta", "start", "--db-folder", text(folder), "--bind-addr", &address];
    arguments.extend(["--advertise", &address, "--http-addr", &shown]);
    arguments.extend(more);
    let mut process = Process::new("meta", &arguments, &[], log);
    process.start();
    wait_for("a metadata server to be ready", || {
        process.assert_running();
        http_get(http, "/readyz").ok().filter(|(status, _)| *status == 200)
    });
    process
}

/// Copies the files of an image, without what it says about itself.
fn copy_files(image: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(image).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.file_type().unwrap().is_file(), "{:?}: an image is flat", entry.path());
        let name = entry.file_name().into_string().unwrap();
        if !name.starts_with("chronofs-image.") {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

/// An engine's folder of the images of a store and of its log.
fn put_together(storage: &Path, tlog: &Path, engine: &Path) {
    copy_files(storage, &engine.join("store"));
    copy_files(tlog, &engine.join("log"));
    fs::rename(engine.join("store/format"), engine.join("format")).unwrap();
}

/// The servers of a set beside their source: only to be looked at.
struct Restored {
    _servers: Vec<Process>,
    address: SocketAddr,
}

/// Of images of each role, with the folder of the metadata server that they are of.
fn restore(installation: &Installation, coord: &Path, stores: &[(PathBuf, PathBuf, PathBuf)]) -> Restored {
    let (address, folder) = (free_address(), installation.path("restored-admin"));
    copy_files(coord, &folder);
    let shown = address.to_string();
    let arguments = ["admin", "start", "--db-folder", text(&folder), "--bind-addr", &shown];
    let mut admin = Process::new("admin", &arguments, &[], &installation.path("restored-admin.log"));
    admin.start();
    wait_for("the restored admin server", || {
        admin.assert_running();
        std::net::TcpStream::connect(address).ok()
    });
    let mut servers = vec![admin];
    for (n, (source, storage, tlog)) in stores.iter().enumerate() {
        let folder = installation.path(&format!("restored-meta{n}"));
        put_together(storage, tlog, &folder.join("engine"));
        let said = installation.ok(&["meta", "verify", "--db-folder", text(&folder)]);
        assert!(said.contains("nothing is wrong"), "{said}");
        let token = fs::read_to_string(source.join("credentials")).unwrap();
        let shown = address.to_string();
        let keep = ["meta", "init", "creds", "--token", token.trim(), "--admin", &shown, "--db-folder"];
        installation.ok(&[&keep[..], &[text(&folder)]].concat());
        servers.push(meta_on(&folder, &installation.path(&format!("restored-meta{n}.log")), &[]));
    }
    Restored { _servers: servers, address }
}

/// What is there are the first so many files, each whole but for the last, and they are those of the cut.
fn check_files(dir: &Path, least: u64, most: u64) {
    let mut there: Vec<u64> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    there.sort_unstable();
    let count = there.len() as u64;
    assert_eq!(there, (0..count).collect::<Vec<_>>(), "files are missing in between");
    assert!((least..=most).contains(&count), "{count} files, not {least} to {most}");
    for n in 0..count {
        let found = fs::read_to_string(dir.join(n.to_string())).unwrap();
        let whole = found == content(n);
        assert!(whole || (n + 1 == count && n >= least && content(n).starts_with(&found)), "file {n}");
    }
}

fn create(installation: &Installation, program: &Path, arguments: &[&str]) -> String {
    let command = ["snapshot", "create", "--", text(program)];
    uid_in(&installation.ok(&[&command[..], arguments].concat()))
}

#[test]
fn a_set_taken_under_load_is_each_store_at_its_cut() {
    let programs = Programs::new();
    let program = programs.snap_create();
    let installation = Installation::start_with_whitelist(&[&program], &["--locality", "zoneid=z0"]);
    let _second = second_store(&installation, &program);
    installation.create_volume("one", &[]);
    let other =
        ["configure", "create", "volume", "two", "--block-store", "blocks", "--metadata-store", "other"];
    installation.ok(&other);
    let mounts = ["one", "two"].map(|volume| installation.mount(volume, &[]));
    fs::write(mounts[0].path("0"), content(0)).unwrap();
    let then = mounts[0].instant();
    let mut writers = [0, 1].map(|n| Writer::start(&mounts[n].dir));
    std::thread::sleep(Duration::from_millis(700));
    let backup = installation.path("backup");
    let before: Vec<u64> = writers.iter().map(|writer| writer.closed.load(Ordering::SeqCst)).collect();
    let uid = create(&installation, &program, &["--destdir", text(&backup), "--method", "copy"]);
    let after: Vec<u64> = writers.iter().map(|writer| writer.begun.load(Ordering::SeqCst)).collect();
    std::thread::sleep(Duration::from_millis(300));
    writers.iter_mut().for_each(Writer::stop);
    assert!(before.iter().all(|&n| n > 10) && before < after, "{before:?} {after:?}: there was no load");
    let verify = ["snap-create", "verify", "--destdir", text(&backup), "--uid", &uid];
    assert!(installation.ok(&verify).contains("whole"));
    let listed = installation.ok(&["snapshot", "list"]);
    assert!(listed.contains(&uid) && listed.contains("COMPLETE"), "{listed}");
    let record = installation.path("record.json");
    installation.ok(&["snapshot", "describe", &uid, "--record", text(&record)]);
    let record = read_record(&record);
    assert_eq!(record["cuts"].as_object().unwrap().len(), 2, "{record}");
    assert_eq!(record["labels"].as_object().unwrap().len(), 3, "{record}");
    // What was prepared is gone, and the copies are enough.
    for folder in ["meta/engine/images", "meta2/engine/images", "admin/images"] {
        let folder = installation.path(folder);
        wait_for("images to go", || {
            fs::read_dir(&folder).unwrap().all(|e| e.unwrap().path().is_file()).then_some(())
        });
    }
    let image = |address: &str, role: &str| backup.join(&uid).join(address).join(role).join("files");
    let nodes = record["intent"]["nodes"].as_array().unwrap();
    let address = |name: &str| {
        let node = nodes.iter().find(|node| node["name"] == name).unwrap();
        node["address"].as_str().unwrap().to_owned()
    };
    let store = |name: &str, folder: &str| {
        (installation.path(folder), image(&address(name), "storage"), image(&address(name), "tlog"))
    };
    // Each says where its server stands; one that was told nothing says nothing.
    let said = |name: &str, role: &str| -> Value {
        let manifest = image(&address(name), role).with_file_name("manifest.json");
        serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap()
    };
    let cluster = fs::read_to_string(installation.path("admin/chronofs.cluster")).unwrap();
    for role in ["storage", "tlog"] {
        let other = said("other", role);
        assert_eq!(other["locality"], serde_json::json!({ "zoneid": "z2", "machineid": "m2" }));
        assert_eq!(other["cluster_file"], cluster);
        assert_eq!(said("store", role)["locality"], serde_json::json!({}));
    }
    let coord = said("admin", "coord");
    assert_eq!((&coord["locality"]["zoneid"], &coord["cluster_file"]), (&"z0".into(), &cluster.into()));
    let status = installation.ok(&["cli", "--exec", "status details"]);
    assert!(status.contains("machineid=m2,zoneid=z2") && status.contains("zoneid=z0"), "{status}");
    let stores = [store("store", "meta"), store("other", "meta2")];
    let restored = restore(&installation, &image(&address("admin"), "coord"), &stores);
    let admin = restored.address.to_string();
    for (n, live) in mounts.iter().enumerate() {
        let copy = installation.mount_with(&live.volume, &live.token, &["--admin", &admin]);
        check_files(&copy.dir, before[n], after[n]);
    }
    let past = ["--admin", &admin, "--at-time", then.as_str()];
    let past = installation.mount_with("one", &mounts[0].token, &past);
    check_files(&past.dir, 1, 1);
    drop(past);
    let said = installation.ok(&["snapshot", "delete", &uid]);
    assert!(said.contains("forgotten"), "{said}");
    assert!(installation.fails(&["snapshot", "describe", &uid]).contains("no snapshot"));
    let said = installation.ok(&["snapshot", "delete", &uid]);
    assert!(said.contains("gone already"), "{said}");
    assert!(installation.fails(&["snapshot", "delete", &"0".repeat(32)]).contains("no snapshot"));
}

#[test]
fn the_script_of_the_page_makes_a_set_that_opens_at_its_cut() {
    let programs = Programs::new();
    let program = programs.add("snap_create.sh", PAGE);
    let mut installation = Installation::start_with_whitelist(&[&program], &[]);
    installation.create_volume("one", &[]);
    let mount = installation.mount("one", &[]);
    let backup = installation.path("backup");
    let mut writer = Writer::start(&mount.dir);
    for round in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        let uid = create(&installation, &program, &["--destdir", text(&backup)]);
        let image = |role: &str| backup.join(&uid).join(role);
        assert!(image("coord").join("admin.sqlite").is_file());
        let folder = installation.path(&format!("opened{round}"));
        put_together(&image("storage"), &image("tlog"), &folder.join("engine"));
        let label: Value =
            serde_json::from_slice(&fs::read(image("tlog").join("chronofs-image.json")).unwrap()).unwrap();
        assert_eq!(label["attempt"]["uid"], uid.as_str());
        let said = installation.ok(&["meta", "verify", "--db-folder", text(&folder)]);
        assert!(said.contains("nothing is wrong"), "{said}");
    }
    writer.stop();
    drop(mount);
    installation.stop_meta_and_verify();
}

/// `chronofs snapshot create` on its way.
fn begin(installation: &Installation, uid: &str, program: &Path, argument: &str) -> Child {
    let arguments = ["snapshot", "create", "--uid", uid, "--", text(program), argument];
    let mut command = installation.command(&arguments);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the snapshot to run its program", || {
        let shown = installation.ok(&["snapshot", "status", "--json"]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        (shown["phase"] == "run" && shown["intent"]["attempt"]["uid"] == uid).then_some(())
    });
    child
}

fn uid(digit: char) -> String {
    digit.to_string().repeat(32)
}

/// Nobody runs what this test started for a snapshot.
fn no_program_is_left(seconds: &str) {
    wait_for("programs to end", || {
        let left = fs::read_dir("/proc").unwrap().filter(|entry| {
            let path = entry.as_ref().unwrap().path().join("cmdline");
            fs::read(path).is_ok_and(|line| line == format!("sleep\0{seconds}\0").as_bytes())
        });
        (left.count() == 0).then_some(())
    });
}

#[test]
fn what_goes_wrong_is_said_with_its_code_and_the_next_snapshot_succeeds() {
    let programs = Programs::new();
    let program = programs.add("mischief", MISCHIEF);
    let other = programs.add("other", MISCHIEF);
    let mut installation = Installation::start_with_whitelist(&[&program], &[]);
    let nothing = |installation: &Installation| create(installation, &program, &["nothing"]);

    // Arguments come through as they are.
    let odd = ["nothing", "two words", "\"quoted\"", "", "-n", "ünï"];
    let first = create(&installation, &program, &odd);
    let told = programs.told();
    assert_eq!(told.len(), 3, "{told:?}");
    for role in ["storage", "tlog", "coord"] {
        let end = format!("|--role|{role}|--uid|{first}|");
        let line = told.iter().find(|line| line.ends_with(&end)).expect(role);
        assert!(line.starts_with("nothing|two words|\"quoted\"||-n|ünï|--path|"), "{line}");
        assert!(line.contains(&format!("|--version|{}|", env!("CARGO_PKG_VERSION"))), "{line}");
    }

    // Refused before anything runs, and at once.
    let begun = Instant::now();
    let said = installation.fails(&["snapshot", "create", "--", text(&other)]);
    assert!(
        said.contains("Snapshot command failed 2505 (Snapshot create binary path not whitelisted)."),
        "{said}"
    );
    let said = installation.fails(&["snapshot", "create", "--uid", "xyz", "--", text(&program)]);
    assert!(said.contains("failed 2509") && said.contains("with UID xyz."), "{said}");
    let said = installation.fails(&["snapshot", "create", "--uid", &first, "--", text(&program), "nothing"]);
    assert!(said.contains("failed 1083"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(programs.told().len(), 3, "nothing ran");
    // The same request again is answered, and done once.
    let again = [&["snapshot", "create", "--uid", &first, "--", text(&program)][..], &odd].concat();
    assert_eq!(uid_in(&installation.ok(&again)), first);
    assert_eq!(programs.told().len(), 3);

    let said = installation.fails(&["snapshot", "create", "--", text(&program), "exit3"]);
    let code = ["2501", "2502", "2503"].into_iter().find(|code| said.contains(&format!("failed {code}")));
    assert!(code.is_some() && said.contains("exited with 3"), "{said}");
    assert!(said.contains("there is no room for it") && said.contains("127.0.0.1:"), "{said}");
    // Of every role, with the program's last lines.
    for role in ["storage of store at ", "tlog of store at ", "coord of admin at "] {
        assert!(said.contains(role), "{role}: {said}");
    }
    assert_eq!(said.matches("there is no room for it").count(), 3, "{said}");
    nothing(&installation);

    // One at a time; the one that is under way is named, and can be ended although it ignores SIGTERM.
    let child = begin(&installation, &uid('a'), &program, "sleep");
    let said = installation.fails(&["snapshot", "create", "--", text(&program), "nothing"]);
    assert!(said.contains("failed 1000") && said.contains(&uid('a')), "{said}");
    installation.ok(&["snapshot", "abort", &uid('a')]);
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success() && text_of(&output).contains("aborted"), "{}", text_of(&output));
    nothing(&installation);
    no_program_is_left("63");

    // The metadata server, then the admin server is killed in the middle of one.
    let child = begin(&installation, &uid('b'), &program, "sleep");
    let begun = Instant::now();
    installation.meta.kill();
    installation.start_meta();
    let said = text_of(&child.wait_with_output().unwrap());
    assert!(said.contains("failed 2508"), "{said}");
    no_program_is_left("63");
    nothing(&installation);
    let child = begin(&installation, &uid('c'), &program, "sleep");
    installation.admin.kill();
    installation.start_admin();
    let said = text_of(&child.wait_with_output().unwrap());
    no_program_is_left("63");
    // By themselves they end after 63 s.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(said.contains("failed 4000") && said.contains("went down"), "{said}");
    let begun = Instant::now();
    wait_for("the metadata server to be connected again", || {
        let tried = run(&mut installation.command(&["snapshot", "create", "--", text(&program), "nothing"]));
        tried.status.success().then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());

    // Who may only look may not begin one; a store without a server is counted.
    let viewer = token_in(&installation.ok(&["configure", "create", "account", "eye", "--role", "viewer"]));
    let mut command = installation.command(&["snapshot", "create", "--", text(&program)]);
    let output = run(command.env("CHRONOFS_TOKEN", viewer));
    assert!(text_of(&output).contains("needs the role operator"), "{}", text_of(&output));
    installation.ok(&["configure", "create", "metadata-store", "empty"]);
    let said = installation.fails(&["snapshot", "create", "--", text(&program), "nothing"]);
    assert!(said.contains("failed 2506") && said.contains("'empty'"), "{said}");
    wait_for("images to go", || {
        let mut left = fs::read_dir(installation.path("meta/engine/images")).unwrap();
        left.all(|entry| entry.unwrap().path().is_file()).then_some(())
    });
}

#[test]
fn a_program_that_takes_too_long_is_killed_and_fails_the_set() {
    let programs = Programs::new();
    let program = programs.add("mischief", MISCHIEF);
    let installation = Installation::start_with_whitelist(&[&program], &["--snap-create-max-timeout", "2"]);
    let begun = Instant::now();
    let said = installation.fails(&["snapshot", "create", "--", text(&program), "slow"]);
    assert!(said.contains("did not end within 2 s"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    no_program_is_left("64");
    let mount = installation_with_volume(&installation);
    fs::write(mount.path("f"), "goes on").unwrap();
    create(&installation, &program, &["nothing"]);
}

fn installation_with_volume(installation: &Installation) -> Mount {
    installation.create_volume("v", &[]);
    installation.mount("v", &[])
}

/// What lies in a folder of notes of the block store, each as JSON.
fn notes(installation: &Installation, folder: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut open = vec![installation.path("blocks").join(folder)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            match fs::read_to_string(&path) {
                Ok(text) => found.push(serde_json::from_str(text.lines().next().unwrap()).unwrap()),
                Err(_) => open.extend(path.is_dir().then_some(path)),
            }
        }
    }
    found
}

fn pins(installation: &Installation, uid: &str) -> Vec<Value> {
    let all = notes(installation, "pins").into_iter();
    all.filter(|pin| pin["reason"].as_str().unwrap().starts_with(uid)).collect()
}

/// A volume that keeps its past, one that keeps none, and one that is deleted.
fn three_volumes(installation: &Installation) -> Mount {
    installation.create_volume("past", &["--retention", "1h"]);
    installation.create_volume("none", &["--retention", "0", "--compression", "none"]);
    installation.create_volume("gone", &[]);
    installation.ok(&["configure", "delete", "volume", "gone"]);
    let mount = installation.mount("none", &[]);
    fs::write(mount.path("f"), content(7)).unwrap();
    mount
}

#[test]
fn what_a_set_needs_is_pinned_in_the_block_store_until_it_is_deleted_and_of_a_failed_one_nothing_stays() {
    let programs = Programs::new();
    let program = programs.add("mischief", MISCHIEF);
    let mut installation = Installation::start_with_whitelist(&[&program], &[]);
    let mount = three_volumes(&installation);
    // The pins are there before the program runs.
    let child = begin(&installation, &uid('a'), &program, "sleep");
    let found = pins(&installation, &uid('a'));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|pin| pin["owner"] == "disk snapshot" && pin["ends"].is_null()), "{found:?}");
    assert_eq!(notes(&installation, "snapshots"), Vec::<Value>::new(), "it is not complete");
    installation.ok(&["snapshot", "abort", &uid('a')]);
    assert!(!child.wait_with_output().unwrap().status.success());
    installation.fails(&["snapshot", "create", "--", text(&program), "exit3"]);
    wait_for("pins to go", || notes(&installation, "pins").is_empty().then_some(()));
    // A server that is killed while its program runs knows at its next start what it keeps.
    let child = begin(&installation, &uid('b'), &program, "linger");
    installation.meta.kill();
    assert_eq!(pins(&installation, &uid('b')).len(), 3);
    installation.start_meta();
    drop(child.wait_with_output().unwrap());
    wait_for("pins to go", || notes(&installation, "pins").is_empty().then_some(()));

    let set = create(&installation, &program, &["nothing"]);
    let cut = {
        let shown = installation.ok(&["snapshot", "describe", &set, "--json"]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown["cuts"].as_object().unwrap().values().next().unwrap()["cut"].as_u64().unwrap()
    };
    let found = pins(&installation, &set);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|pin| pin["to"] == cut && pin["from"].as_u64().unwrap() <= cut), "{found:?}");
    // So does the record, in the very form of the file.
    let place = installation.path("blocks/snapshots").join(&set);
    wait_for("the record in the block store", || place.is_file().then_some(()));
    let file = installation.path("record");
    installation.ok(&["snapshot", "describe", &set, "--record", text(&file)]);
    assert_eq!(fs::read(&place).unwrap(), fs::read(&file).unwrap());

    // A block store that is away fails the next one, and says which.
    let (blocks, away) = (installation.path("blocks"), installation.path("away"));
    fs::rename(&blocks, &away).unwrap();
    let said = installation.fails(&["snapshot", "create", "--", text(&program), "nothing"]);
    assert!(said.contains("failed 2501") && said.contains("cannot be pinned in its block store"), "{said}");
    fs::rename(&away, &blocks).unwrap();
    installation.ok(&["snapshot", "delete", &set]);
    wait_for("pins and record to go", || {
        (notes(&installation, "pins").is_empty() && !place.exists()).then_some(())
    });
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), content(7));
}

#[test]
fn a_set_whose_time_is_over_is_shown_as_expired_until_it_is_deleted() {
    let programs = Programs::new();
    let program = programs.add("snap_create.sh", PAGE);
    let installation = Installation::start_with_whitelist(&[&program], &[]);
    let _mount = installation_with_volume(&installation);
    let backup = installation.path("backup");
    let command = ["snapshot", "create", "--keep", "1s", "--", text(&program), "--destdir", text(&backup)];
    let set = uid_in(&installation.ok(&command));
    let describe = ["snapshot", "describe", set.as_str()];
    let shown = wait_for("the set to expire", || {
        let shown = installation.ok(&describe);
        shown.contains("EXPIRED").then_some(shown)
    });
    assert!(shown.contains("(over: it may not be whole)"), "{shown}");
    let listed = installation.ok(&["snapshot", "list"]);
    assert!(listed.contains(&set) && listed.contains("EXPIRED"), "{listed}");
    wait_for("its pins to go", || pins(&installation, &set).is_empty().then_some(()));
    // Its images are what they were; whoever takes them says that files may lack their bytes.
    let verify = ["snapshot", "verify", text(&backup)];
    let said = installation.fails(&verify);
    assert!(said.contains("--accept-expired"), "{said}");
    installation.ok(&[&verify[..], &["--accept-expired"]].concat());
    assert!(installation.ok(&["snapshot", "delete", &set]).contains("is forgotten"));
    assert!(installation.fails(&describe).contains("no snapshot"));
}

/// A set keeps what its volumes were, also where they keep no past, and one that is deleted; a copy of the metadata from
/// before it, too.
#[test]
fn old_metadata_finds_the_pins_of_a_set_that_it_does_not_know_and_deletes_nothing() {
    let programs = Programs::new();
    let program = programs.add("mischief", MISCHIEF);
    let soon = ["--slice-life", "1", "--horizon-step", "1"];
    let mut installation = Installation::start_for_snapshots(&[&program], &[], &soon);
    let mount = three_volumes(&installation);
    mount.instant();
    drop(mount);
    // Both are copied, so that nobody knows of a newer folder of metadata.
    let folders =
        ["meta", "admin"].map(|name| (installation.path(name), installation.path(&format!("old-{name}"))));
    installation.meta.stop();
    installation.admin.stop();
    for (folder, old) in &folders {
        assert!(std::process::Command::new("cp").arg("-a").args([folder, old]).status().unwrap().success());
    }
    installation.start_admin();
    installation.start_meta();
    wait_for("the metadata server to take part", || {
        let tried = run(&mut installation.command(&["snapshot", "create", "--", text(&program), "nothing"]));
        tried.status.success().then_some(())
    });
    let blocks = installation.path("blocks/objects");
    let objects = || {
        let mut command = std::process::Command::new("find");
        let found = command.arg(&blocks).args(["-type", "f"]).output().unwrap();
        String::from_utf8(found.stdout).unwrap().lines().count()
    };
    let before = objects();
    assert!(before > 0);
    let mount = installation.mount("none", &[]);
    fs::remove_file(mount.path("f")).unwrap();
    mount.instant();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(objects(), before, "a set needs it");
    drop(mount);
    installation.meta.stop();
    installation.admin.stop();
    for (folder, old) in &folders {
        fs::remove_dir_all(folder).unwrap();
        fs::rename(old, folder).unwrap();
    }
    installation.start_admin();
    installation.start_meta();
    let mount = installation.mount("none", &[]);
    fs::remove_file(mount.path("f")).unwrap();
    mount.instant();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(objects(), before);
    let (_, said) = http_get(installation.http_address, "/gc").unwrap();
    assert!(said.contains("it is an old copy"), "{said}");
}
