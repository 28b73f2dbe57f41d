//! A clone of a disk snapshot parts with its source: it copies what it needs, or needs nothing, and is registered there no longer.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chronofs_e2e::Installation;
use chronofs_e2e::clone::{Clone, Copied, SOON, content, objects, source_of_clones, write_files};
use chronofs_e2e::manifest::Manifest;
use chronofs_e2e::process::{run, text, wait_for};
use chronofs_e2e::snapshot::Programs;
use serde_json::Value;

/// What is there but for what is written beside.
fn manifest(dir: &Path) -> Manifest {
    let mut manifest = Manifest::of(dir).unwrap();
    manifest.0.retain(|path, _| !path.starts_with(b"beside"));
    manifest
}

/// Runs `work` while files are written in a folder, and read again.
fn beside<T>(dir: &Path, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let dir = dir.join("beside");
            for n in 0.. {
                let path = dir.join((n % 7).to_string());
                fs::write(&path, content(n)).unwrap();
                assert!(fs::read_to_string(&path).unwrap() == content(n), "file {n}");
                if over.load(Ordering::Relaxed) {
                    return n;
                }
            }
            0
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        assert!(writing.join().unwrap() > 0);
        done
    })
}

/// What the metadata server of a clone says of what it needs of its source, and for how many objects of its own it has done so.
fn foreign(clone: &Clone, source: &Installation) -> Value {
    // It ends with 1 while anything ails the clone, and a server that is slow to answer has not said what it needs.
    wait_for("the metadata server of the clone to answer", || {
        let status = ["restore", "status", "--json", "--cluster-file", text(&clone.cluster_file)];
        let output = run(&mut source.command(&status));
        let said: Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(said["servers"][0]["foreign"].clone()).filter(|foreign| !foreign.is_null())
    })
}

/// A clone copies what it needs, beside clients and through a kill. Then the source forgets the snapshot and all that was in
/// it, and the clone has everything: what is there now, and what was there before the snapshot.
#[test]
fn a_clone_that_has_copied_what_it_needs_outlives_the_snapshot_at_its_source() {
    let programs = Programs::new();
    let program = programs.snap_create();
    let flags = [&SOON[..], &["--pack-after", "1"]].concat();
    let source = Installation::start_for_snapshots(&[&program], &[], &flags);
    source.create_volume("one", &["--retention", "1h", "--compression", "none"]);
    let mount = source.mount("one", &[]);
    fs::create_dir(mount.path("beside")).unwrap();
    write_files(&mount.dir, 0..30);
    // More than fits into two objects of the server.
    for n in 0..40u8 {
        fs::write(mount.path(&format!("large{n}")), vec![n; 1 << 20]).unwrap();
    }
    // What the server packs: too much to travel with the metadata.
    for n in 0..20u8 {
        fs::write(mount.path(&format!("small{n}")), vec![n; 4096]).unwrap();
    }
    let then = mount.instant();
    let was = manifest(&mount.dir);
    (0..10).for_each(|n| fs::remove_file(mount.path(&n.to_string())).unwrap());
    (0..4).for_each(|n| fs::write(mount.path(&format!("large{n}")), content(n)).unwrap());
    let of_server = |path: &Path| path.parent().is_some_and(|session| session.ends_with("0"));
    wait_for("small files to be packed", || {
        objects(&source.path("blocks/objects")).keys().any(|path| of_server(path)).then_some(())
    });
    let set = beside(&mount.dir, || Copied::take(&source, &program));
    let (uid, made) = (set.uid.clone(), set.prepare(&source));
    let mut clone = Clone::start(&source, &made, &flags);
    clone.ok(&source, &["restore", "status", "--wait", "60s"]);
    let cluster = text(&clone.cluster_file).to_owned();
    let there = source.mount_with("one", &mount.token, &["--cluster-file", &cluster]);
    let now = manifest(&there.dir);
    assert!(now.0.len() > 50);
    // Nothing is copied on the sly, nor before somebody has looked at the clone.
    let said = source.fails(&["restore", "detach", "--cluster-file", &cluster]);
    assert!(said.contains("objects that the source stored") && said.contains("--copy"), "{said}");
    let copy = ["restore", "detach", "--copy", "--cluster-file", &cluster];
    let said = source.fails(&copy);
    assert!(said.contains("nobody has accepted the restore"), "{said}");
    clone.ok(&source, &["restore", "accept"]);
    let before = foreign(&clone, &source);
    assert!(before["objects"].as_u64() > Some(40) && before["copying"] == false, "{before}");
    // One that is needed is away for now: however fast the others are copied, the server is killed before it has all.
    let all = objects(&source.path("blocks/objects"));
    let large = all.into_iter().find(|(_, bytes)| bytes.len() >= 1 << 20).unwrap().0;
    let aside = source.path("aside");
    fs::rename(&large, &aside).unwrap();
    assert!(source.ok(&copy).contains("restore status says how far"));
    let some = beside(&there.dir, || {
        wait_for("some objects to be copied", || {
            Some(foreign(&clone, &source)).filter(|said| said["copied_objects"].as_u64() > Some(0))
        })
    });
    clone.servers[1].kill();
    assert!(some["objects"].as_u64() > Some(0), "all were copied before the server was killed: {some}");
    fs::rename(&aside, &large).unwrap();
    clone.servers[1].start();
    clone.ok(&source, &["restore", "status", "--wait", "60s"]);
    let shown = clone.ok(&source, &["restore", "status"]);
    assert!(shown.contains("copying since") && shown.contains("copied"), "{shown}");
    beside(&there.dir, || {
        wait_for("all to be copied", || {
            let said = foreign(&clone, &source);
            assert_eq!(
                (&said["left"], &said["waits"]),
                (&Value::Array(vec![]), &Value::Array(vec![])),
                "{said}"
            );
            (said["objects"] == 0 && said["unnamed"] == 0).then_some(())
        })
    });
    assert!(source.fails(&["snapshot", "delete", &uid]).contains("is read by a clone"));
    source.ok(&["restore", "detach", "--cluster-file", &cluster]);
    let shown = clone.ok(&source, &["restore", "status"]);
    assert!(shown.contains("detached") && !shown.contains("copying since"), "{shown}");
    // Nothing that the source has ever stored is left.
    let of_source: Vec<PathBuf> = {
        let incarnation = |path: &Path| path.iter().rev().nth(2).map(|part| part.to_owned());
        let all = objects(&source.path("blocks/objects")).into_keys();
        all.filter(|path| incarnation(path).is_some_and(|part| part == "0")).collect()
    };
    assert!(of_source.len() > 40, "{of_source:?}");
    source.ok(&["snapshot", "delete", &uid]);
    for path in fs::read_dir(&mount.dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    source.ok(&["configure", "update", "volume", "one", "--retention", "0", "--grace", "0"]);
    wait_for("all objects of the source to go", || of_source.iter().all(|path| !path.exists()).then_some(()));
    let fresh = source.mount_with("one", &mount.token, &["--cluster-file", &cluster]);
    now.assert_same(&manifest(&fresh.dir), "what the clone has");
    let past = source.mount_with("one", &mount.token, &["--cluster-file", &cluster, "--at-time", &then]);
    was.assert_same(&manifest(&past.dir), "what the clone had before the snapshot");
    drop((past, fresh, there));
    clone.servers[1].stop();
    let made: Value = serde_json::from_str(&made).unwrap();
    let meta = made.as_array().unwrap().iter().find(|server| server["server"] == "store").unwrap();
    let data = Path::new(meta["folder"].as_str().unwrap()).join("data");
    source.ok(&["meta", "verify", "--blocks", "--db-folder", text(&data)]);
}

/// All that the clone had of its source is deleted for good. No volume is left in whose store it could be looked for, and it is
/// registered there all the same, until it detaches.
#[test]
fn a_clone_whose_restored_volumes_are_gone_detaches_and_the_source_forgets_the_snapshot() {
    let programs = Programs::new();
    let program = programs.snap_create();
    let (source, mount) = source_of_clones(&program);
    write_files(&mount.dir, 0..10);
    let was = manifest(&mount.dir);
    let set = Copied::take(&source, &program);
    let (uid, made) = (set.uid.clone(), set.prepare(&source));
    let mut clone = Clone::start(&source, &made, &SOON);
    clone.ok(&source, &["restore", "status", "--wait", "60s"]);
    clone.ok(&source, &["restore", "accept"]);
    let readers = source.path("blocks/readers").join(&uid);
    wait_for("the clone to register", || (objects(&readers).len() == 1).then_some(()));
    let of_source = objects(&source.path("blocks/objects"));
    let tokens: Value =
        serde_json::from_str(&clone.ok(&source, &["configure", "list", "volume-token", "--json"])).unwrap();
    for token in tokens.as_array().unwrap() {
        clone.ok(&source, &["configure", "delete", "volume-token", token["id"].as_str().unwrap()]);
    }
    clone.ok(&source, &["configure", "delete", "volume", "one", "--keep", "0"]);
    // What its source keeps for the snapshot comes first, which is tried every half minute.
    let begun = Instant::now();
    loop {
        let left = clone.ok(&source, &["configure", "list", "deleted-volume", "--json"]);
        if serde_json::from_str::<Value>(&left).unwrap().as_array().unwrap().is_empty() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(180), "the volume stays in the clone: {left}");
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("the volume was gone from the clone after {:?}", begun.elapsed());
    // A server that starts anew knows of its registration by the admin server alone.
    clone.servers[1].stop();
    clone.servers[1].start();
    clone.ok(&source, &["restore", "status", "--wait", "60s"]);
    assert!(source.fails(&["snapshot", "delete", &uid]).contains("is read by a clone"));
    clone.ok(&source, &["restore", "detach"]);
    assert!(objects(&readers).is_empty(), "the clone is registered still");
    assert!(clone.ok(&source, &["restore", "status"]).contains("detached"));
    source.ok(&["snapshot", "delete", &uid]);
    assert_eq!(objects(&source.path("blocks/objects")), of_source, "the clone deleted what was its source's");
    was.assert_same(&manifest(&source.mount("one", &[]).dir), "what the source has");
}
