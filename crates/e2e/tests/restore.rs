//! A disk snapshot of a real installation becomes a clone of it: by the steps of the page that operators start from, and
//! beside the source, which goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chronofs_e2e::Installation;
use chronofs_e2e::clone::{
    Clone, Copied, SOON, check_files, content, mapping, objects, prepare, record_of, source_of_clones,
    write_files,
};
use chronofs_e2e::installation::assert_failed_cleanly;
use chronofs_e2e::log_copies::{LogServer, keep_copies};
use chronofs_e2e::process::{run, text, text_of, wait_for};
use chronofs_e2e::snapshot::{PAGE, Programs, read_record, uid_in};
use serde_json::Value;

fn exec(installation: &Installation, commands: &str) -> String {
    let output = run(&mut installation.command(&["cli", "--exec", commands]));
    assert!(output.status.success(), "{commands}: {}", text_of(&output));
    text_of(&output)
}

#[test]
fn the_page_step_by_step_gives_what_was_there_and_nothing_that_came_later() {
    let programs = Programs::new();
    let program = programs.add("snap_create.sh", PAGE);
    let mut source = Installation::start_with_whitelist(&[&program], &[]);
    source.create_volume("one", &[]);
    let mut mount = source.mount("one", &[]);
    exec(&source, "writemode on; set key1 value1; set key2 value2");
    write_files(&mount.dir, 0..40);
    let backup = source.path("backup");
    let uid = uid_in(&exec(&source, &format!("snapshot {} --destdir {}", text(&program), text(&backup))));
    exec(&source, "writemode on; set key3 value3; set key1 changed");
    write_files(&mount.dir, 40..70);
    fs::remove_file(mount.path("7")).unwrap();
    let after_cut = mount.instant();
    mount.unmount();
    let (record, parsed) = record_of(&source, &uid);
    let set = backup.join(&uid);
    let said = source.ok(&["snapshot", "verify", text(&set)]);
    assert!(said.contains(&format!("snapshot {uid} is whole: 3 images of 2 servers")), "{said}");
    // The source is no more.
    source.meta.kill();
    source.admin.kill();
    let map = mapping(&parsed);
    let out = source.path("restore");
    let with = ["--record", text(&record)];
    let plan = [&["restore", "plan", text(&set)][..], &with].concat();
    let plan: Vec<&str> = plan.into_iter().chain(map.iter().map(String::as_str)).collect();
    let said = source.ok(&plan);
    assert!(said.contains("tlog") && said.contains(&uid), "{said}");
    let said = prepare(&source, &set, &map, &["--out", text(&out), "--record", text(&record), "--dry-run"]);
    assert!(said.contains("would prepare") && !out.exists(), "{said}");
    let made = prepare(&source, &set, &map, &["--out", text(&out), "--record", text(&record), "--json"]);
    assert!(source.ok(&["restore", "verify", text(&out)]).contains("prepared"));
    let clone = Clone::start(&source, &made, &[]);
    let said = clone.ok(&source, &["restore", "status", "--wait", "60s"]);
    assert!(said.contains(&uid) && said.contains("nothing is forgotten or deleted"), "{said}");
    let said = source.ok(&["restore", "status", text(&out)]);
    assert!(said.contains("started"), "{said}");
    let said = clone.ok(&source, &["cli", "--exec", "status; get key1; get key2; getrange key"]);
    for part in ["`key1' is `value1'", "`key2' is `value2'", "Healthy", "Restored from          - "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("key3"), "{said}");
    let cluster = text(&clone.cluster_file).to_owned();
    let there = source.mount_with("one", &mount.token, &["--cluster-file", &cluster]);
    check_files(&there.dir, 40);
    write_files(&there.dir, 40..45);
    // What the source did after the cut is an instant of nobody's here.
    let past = there.dir.with_extension("past");
    fs::create_dir(&past).unwrap();
    let arguments = [
        "mount",
        "start",
        "one",
        text(&past),
        "--foreground",
        "--at-time",
        &after_cut,
        "--cluster-file",
        &cluster,
    ];
    let mut command = source.command(&arguments);
    let output = run(command.env("CHRONOFS_TOKEN", &mount.token));
    let said = assert_failed_cleanly(&output, "a mount in the gap");
    assert!(said.contains("lost by a restore"), "{said}");
    let said = clone.ok(&source, &["restore", "accept", "--dry-run"]);
    assert!(said.contains("would accept the restore of") && said.contains("nothing is changed"), "{said}");
    let said = clone.ok(&source, &["restore", "status", "--wait", "60s"]);
    assert!(said.contains("until chronofs restore accept"), "{said}");
    clone.ok(&source, &["restore", "accept"]);
    let said = clone.ok(&source, &["restore", "accept", "--dry-run"]);
    assert!(said.contains("nothing left to accept"), "{said}");
    wait_for("the metadata server to hear that", || {
        source.ok(&["restore", "status", text(&out)]).contains("accepted").then_some(())
    });
    // It starts again as any other.
    drop(there);
    let mut clone = clone;
    clone.servers[1].stop();
    clone.servers[1].start();
    clone.ok(&source, &["restore", "status", "--wait", "60s"]);
    let there = source.mount_with("one", &mount.token, &["--cluster-file", &cluster]);
    check_files(&there.dir, 45);
}

#[test]
fn a_clone_and_its_live_source_do_not_disturb_each_other() {
    let programs = Programs::new();
    let program = programs.snap_create();
    let (source, mount) = source_of_clones(&program);
    write_files(&mount.dir, 0..20);
    let set = Copied::take(&source, &program);
    let (uid, made) = (set.uid.clone(), set.prepare(&source));
    // The source goes on, and what it writes now nobody else knows.
    write_files(&mount.dir, 20..30);
    mount.instant();
    let clone = Clone::start(&source, &made, &SOON);
    let of_source = objects(&source.path("blocks/objects"));
    assert!(of_source.len() >= 6, "{}", of_source.len());
    let cluster = text(&clone.cluster_file).to_owned();
    let there = source.mount_with("one", &mount.token, &["--cluster-file", &cluster]);
    check_files(&there.dir, 20);
    (10..20).for_each(|n| fs::remove_file(there.path(&n.to_string())).unwrap());
    for name in ["own", "gone"] {
        fs::write(there.path(name), content(2)).unwrap();
    }
    there.instant();
    fs::remove_file(there.path("gone")).unwrap();
    let own = || -> usize {
        objects(&source.path("blocks/objects")).keys().filter(|path| !of_source.contains_key(*path)).count()
    };
    let written = own();
    // It forgets at once what was deleted; first of all nothing goes, and when that is accepted only what it stored itself.
    clone.ok(&source, &["configure", "update", "volume", "one", "--retention", "0", "--grace", "0"]);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(own(), written);
    clone.ok(&source, &["restore", "accept"]);
    wait_for("the clone to collect what is its own", || (own() < written).then_some(()));
    let now = objects(&source.path("blocks/objects"));
    assert!(
        of_source.iter().all(|(path, bytes)| now.get(path) == Some(bytes)),
        "an object of the source is gone"
    );
    check_files(&source.mount("one", &[]).dir, 30);
    // The other way round: the source deletes all that it has, but for what the set needs.
    (0..30).for_each(|n| fs::remove_file(mount.path(&n.to_string())).unwrap());
    source.ok(&["configure", "update", "volume", "one", "--retention", "0", "--grace", "0"]);
    wait_for("the source to collect what came after the snapshot", || {
        let now = objects(&source.path("blocks/objects"));
        of_source.keys().any(|path| !now.contains_key(path)).then_some(())
    });
    // Nobody may let go of the set while the clone reads it, which is told by name.
    let readers = source.path("blocks/readers").join(&uid);
    assert_eq!(objects(&readers).len(), 1);
    let said = source.fails(&["snapshot", "delete", &uid]);
    assert!(said.contains("is read by a clone: store at") && said.contains("restore detach"), "{said}");
    wait_for("the admin server to hear who reads it", || {
        let shown = source.ok(&["snapshot", "describe", &uid]);
        (shown.contains("COMPLETE") && shown.contains("store at")).then_some(())
    });
    assert!(
        source
            .ok(&["cli", "--exec", "status"])
            .contains(&format!("Snapshot read by       - {uid}: store at"))
    );
    let said = clone.ok(&source, &["restore", "status"]);
    assert!(said.contains("kept") && !said.contains("NOT KEPT"), "{said}");
    std::thread::sleep(Duration::from_secs(3));
    let check_clone = || {
        let fresh = source.mount_with("one", &mount.token, &["--cluster-file", &cluster]);
        (0..10).for_each(|n| {
            assert!(fs::read_to_string(fresh.path(&n.to_string())).unwrap() == content(n), "file {n}")
        });
        assert_eq!(fs::read_to_string(fresh.path("own")).unwrap(), content(2));
    };
    check_clone();
    // Nobody is led astray.
    let admin = source.admin_address.to_string();
    let said = source.fails(&["cli", "--cluster-file", &cluster, "--admin", &admin, "--exec", "status"]);
    assert!(said.contains("the cluster file is of cluster"), "{said}");
    assert!(source.fails(&["restore", "status"]).contains("not restored"));
    assert!(source.fails(&["restore", "accept"]).contains("not restored"));
    let listed = clone.ok(&source, &["snapshot", "list"]);
    assert!(listed.contains(&uid) && listed.contains("FAILED"), "{listed}");
    // For the clone's admin server the snapshot has failed; that does nothing to the pins of the source.
    let pins = || {
        let texts = objects(&source.path("blocks/pins")).into_values();
        texts.filter(|text| String::from_utf8_lossy(text).contains(&uid)).count()
    };
    assert_eq!(pins(), 1);
    // It needs the source's objects still; whoever forces it lets them go.
    let detach = ["restore", "detach", "--cluster-file", &cluster];
    let said = source.fails(&detach);
    assert!(said.contains("objects that the source stored") && said.contains("--force"), "{said}");
    check_clone();
    let said = source.fails(&[&detach[..], &["--dry-run"]].concat());
    assert!(said.contains("objects that the source stored"), "{said}");
    let said = source.ok_with_stderr(&[&detach[..], &["--force", "--dry-run"]].concat());
    assert!(said.contains("would read snapshot") && said.contains("may lose their bytes"), "{said}");
    assert_eq!(objects(&readers).len(), 1, "a dry run does nothing");
    source.ok(&[&detach[..], &["--force"]].concat());
    assert_eq!(objects(&readers).len(), 0);
    assert!(clone.ok(&source, &["restore", "status"]).contains("detached"));
    assert!(source.fails(&["restore", "detach"]).contains("not restored"));
    source.ok(&["snapshot", "delete", &uid]);
    wait_for("the source to let go of the set", || (pins() == 0).then_some(()));
    wait_for("its objects to go", || {
        let now = objects(&source.path("blocks/objects"));
        of_source
            .keys()
            .all(|path| !path.starts_with(source.path("blocks/objects")) || !now.contains_key(path))
            .then_some(())
    });
}

/// The source lets go by force while a clone reads, and another clone comes when nothing is kept any more.
#[test]
fn a_clone_that_comes_too_late_or_is_forgotten_by_force_says_so() {
    let programs = Programs::new();
    let program = programs.snap_create();
    let (source, mount) = source_of_clones(&program);
    write_files(&mount.dir, 0..10);
    let backup = source.path("backup");
    let create = ["snapshot", "create", "--", text(&program), "--destdir", text(&backup), "--method", "copy"];
    let uid = uid_in(&source.ok(&create));
    // The record of the block store will do.
    let place = source.path("blocks/snapshots").join(&uid);
    wait_for("the record in the block store", || place.is_file().then_some(()));
    let kept = source.path("record");
    fs::copy(&place, &kept).unwrap();
    let parsed = read_record(&kept);
    let start = |out: &str| {
        let out = source.path(out);
        let with = ["--out", text(&out), "--record", text(&kept), "--json"];
        let made = prepare(&source, &backup.join(&uid), &mapping(&parsed), &with);
        Clone::start(&source, &made, &[])
    };
    let readers = source.path("blocks/readers").join(&uid);
    let first = start("first");
    wait_for("the clone to register", || (objects(&readers).len() == 1).then_some(()));
    assert!(source.fails(&["snapshot", "delete", &uid]).contains("is read by a clone"));
    source.ok(&["snapshot", "delete", &uid, "--force"]);
    assert_eq!(objects(&readers).len(), 0);
    wait_for("the source to let go of the set", || {
        objects(&source.path("blocks/pins")).is_empty().then_some(())
    });
    drop(first);
    let second = start("second");
    wait_for("the clone to find that out", || {
        second.ok(&source, &["restore", "status"]).contains("NOT KEPT").then_some(())
    });
    assert!(second.servers[1].log().contains("the source does not keep this snapshot"));
}

#[test]
fn sets_that_are_not_whole_are_refused_by_every_command() {
    let programs = Programs::new();
    let program = programs.snap_create();
    let source = Installation::start_with_whitelist(&[&program], &[]);
    let backup = source.path("backup");
    let create = ["snapshot", "create", "--", text(&program), "--destdir", text(&backup), "--method", "copy"];
    let uids = [0, 1].map(|_| uid_in(&source.ok(&create)));
    let (record, parsed) = record_of(&source, &uids[0]);
    let set = backup.join(&uids[0]);
    let map = mapping(&parsed);
    let out = source.path("restore");
    let refused = |words: &str, more: &[&str]| {
        let mut arguments = vec!["restore", "prepare", text(&set), "--out", text(&out)];
        arguments.extend(map.iter().map(String::as_str).chain(more.iter().copied()));
        let said = source.fails(&arguments);
        assert!(said.contains(words), "{words}: {said}");
        assert!(!out.exists() || fs::read_dir(&out).unwrap().next().is_none(), "something was made");
    };
    refused("nothing proves that snapshot", &[]);
    let (other, _) = record_of(&source, &uids[1]);
    refused("the record is of snapshot", &["--record", text(&other)]);
    let said = source.fails(&["restore", "prepare", text(&set), "--out", text(&out), "--accept-uncommitted"]);
    assert!(said.contains("has no new address"), "{said}");
    // One byte of a file that is copied.
    let coord = fs::read_dir(&set)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("coord").is_dir());
    let database = coord.unwrap().join("coord/files/admin.sqlite");
    let mut bytes = fs::read(&database).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    fs::write(&database, &bytes).unwrap();
    refused("admin.sqlite has other content", &["--record", text(&record)]);
    refused("admin.sqlite has other content", &["--record", text(&record), "--dry-run"]);
    let said = source.fails(&["snapshot", "verify", text(&set)]);
    assert!(said.contains("admin.sqlite has other content"), "{said}");
    bytes[at] ^= 1;
    fs::write(&database, &bytes).unwrap();
    source.ok(&["snapshot", "verify", text(&set)]);
    source.ok(&["snapshot", "verify", text(&set), "--record", text(&record)]);
    // Whoever serves a folder that is not what was prepared, serves nothing.
    let made = prepare(&source, &set, &map, &["--out", text(&out), "--accept-uncommitted", "--json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    let meta = made.as_array().unwrap().iter().find(|server| server["server"] == "store").unwrap();
    let data = Path::new(meta["folder"].as_str().unwrap()).join("data");
    let mark = fs::read_to_string(data.join("chronofs-restore.json")).unwrap();
    let cut = parsed["cuts"].as_object().unwrap().values().next().unwrap()["cut"].as_u64().unwrap();
    fs::write(data.join("chronofs-restore.json"), mark.replace(&cut.to_string(), &(cut + 1).to_string()))
        .unwrap();
    let arguments: Vec<&str> = meta["start"].as_str().unwrap().split(' ').skip(1).collect();
    let said = source.fails(&arguments);
    assert!(said.contains("the labels of its images say"), "{said}");
}

/// The image of a log server's copy is in the set, and the set is not whole without it; a clone begins without copies, and
/// never asks the log server of its source.
#[test]
fn a_clone_of_a_set_with_a_log_server_begins_without_copies() {
    let programs = Programs::new();
    let program = programs.snap_create();
    let source = Installation::start_with_whitelist(&[&program], &[]);
    source.create_volume("one", &[]);
    let mut far = LogServer::with_program(&source, "far", &program);
    far.start();
    keep_copies(&source, &["tlog:far"]);
    let mut mount = source.mount("one", &[]);
    write_files(&mount.dir, 0..40);
    let backup = source.path("backup");
    let create = ["snapshot", "create", "--", text(&program), "--destdir", text(&backup), "--method", "copy"];
    let uid = uid_in(&source.ok(&create));
    write_files(&mount.dir, 40..50);
    let (record, parsed) = record_of(&source, &uid);
    let set = backup.join(&uid);
    let said = source.ok(&["snapshot", "verify", text(&set)]);
    assert!(said.contains(&format!("snapshot {uid} is whole: 4 images of 3 servers")), "{said}");
    // The segments of the copy are those of the metadata server's log, up to the same end.
    let files = |address: &str| {
        let files = fs::read_dir(set.join(address).join("tlog/files")).unwrap();
        let segments = files.filter_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let segment = name.rsplit('-').next().unwrap().strip_suffix(".log")?.parse::<u64>().ok()?;
            Some((segment, fs::read(&path).unwrap()))
        });
        segments.collect::<BTreeMap<u64, Vec<u8>>>()
    };
    let (log, copy) = (files(&source.meta_address.to_string()), files(&far.address.to_string()));
    assert!(!copy.is_empty());
    for (segment, bytes) in &copy {
        // The log's own file is longer than what is in it.
        let (same, rest) = log[segment].split_at(bytes.len());
        assert!(same == bytes && rest.iter().all(|byte| *byte == 0), "segment {segment} is another one");
    }
    // The log's own image is closed with the header of a segment that follows.
    assert_eq!(copy.keys().last().unwrap() + 1, *log.keys().last().unwrap());

    let image = set.join(far.address.to_string());
    let aside = backup.join("aside");
    fs::rename(&image, &aside).unwrap();
    let refused = source.fails(&["snapshot", "verify", text(&set)]);
    assert!(refused.contains("the image of tlog of far") && refused.contains("is missing"), "{refused}");
    fs::rename(&aside, &image).unwrap();

    let appended = || fs::read_to_string(fence_of(&far.folder)).unwrap();
    let before = appended();
    let out = source.path("restore");
    let map = mapping(&parsed);
    let plan = source
        .ok(&[&["restore", "plan", text(&set), "--record", text(&record)][..], &as_text(&map)].concat());
    assert!(plan.contains("left out      far"), "{plan}");
    let prepared = prepare(&source, &set, &map, &["--record", text(&record), "--out", text(&out), "--json"]);
    let clone = Clone::start(&source, &prepared, &[]);
    let shown = clone.ok(&source, &["configure", "show", "metadata-store", "store", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["log"]["members"]["copies"].as_array().unwrap().len(), 0);
    assert_eq!(clone.ok(&source, &["configure", "list", "log-server", "--json"]).trim(), "[]");
    assert_eq!(appended(), before, "the copy of the source was opened");
    // The source goes on with its own.
    write_files(&mount.dir, 50..55);
    check_files(&mount.dir, 55);
    mount.unmount();
}

fn as_text(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// The fence of the one copy in a log server's folder.
fn fence_of(folder: &Path) -> PathBuf {
    let mut stores = fs::read_dir(folder.join("stores")).unwrap();
    stores.next().unwrap().unwrap().path().join("fence")
}
