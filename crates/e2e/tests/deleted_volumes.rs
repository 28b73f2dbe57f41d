//! A deleted volume is kept for its time and comes back whole; then all of it goes, and nothing of another volume does,
//! with a metadata server that is killed in between.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use chronofs_blocks::parse_object_name;
use chronofs_e2e::{Installation, Manifest, Mount, Rng, seed};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Paths of all files below `path`.
fn files(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => files(&entry.path(), found),
            Ok(_) => found.push(entry.path()),
            Err(_) => {}
        }
    }
}

/// How many objects of a volume are in the store.
fn objects(installation: &Installation, volume: Uuid) -> usize {
    let (blocks, mut found) = (installation.path("blocks"), Vec::new());
    files(&blocks.join("objects"), &mut found);
    let name = |path: &PathBuf| path.strip_prefix(&blocks).unwrap().to_str().unwrap().to_owned();
    let of = found.iter().map(|path| parse_object_name(&name(path)).expect("nothing but objects").0);
    of.filter(|&of| of == volume).count()
}

fn json(installation: &Installation, arguments: &[&str]) -> Value {
    serde_json::from_str(&installation.ok(&[arguments, &["--json"]].concat())).unwrap()
}

fn id_of(installation: &Installation, volume: &str) -> Uuid {
    let shown = json(installation, &["configure", "show", "volume", volume]);
    shown["id"].as_str().unwrap().parse().unwrap()
}

fn deleted(installation: &Installation) -> Vec<Value> {
    json(installation, &["configure", "list", "deleted-volume"]).as_array().unwrap().clone()
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(90), "{what} took too long");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Deletes a volume; the admin server hears within seconds that nobody has it mounted any more.
fn delete(installation: &Installation, volume: &str, flags: &[&str]) {
    for token in json(installation, &["configure", "list", "volume-token"]).as_array().unwrap() {
        if token["volume"] == volume {
            installation.ok(&["configure", "delete", "volume-token", token["id"].as_str().unwrap()]);
        }
    }
    let delete = [&["configure", "delete", "volume", volume][..], flags].concat();
    wait("the delete", || installation.command(&delete).output().unwrap().status.success().then_some(()));
}

/// Files large and small, and instants of the past with what was there.
fn fill(live: &Mount, rng: &mut Rng) -> Vec<(String, Manifest)> {
    let mut moments = Vec::new();
    fs::create_dir(live.path("dir")).unwrap();
    for round in 0..3 {
        for n in 0..4 {
            fs::write(live.path(&format!("large{n}")), rng.bytes(300_000)).unwrap();
        }
        for n in 0..150 {
            fs::write(live.path(&format!("dir/small{n}")), rng.bytes(4_000)).unwrap();
        }
        fs::remove_file(live.path(&format!("dir/small{round}"))).unwrap();
        std::os::unix::fs::symlink("large0", live.path(&format!("link{round}"))).unwrap();
        moments.push((live.instant(), Manifest::of(&live.dir).unwrap()));
    }
    moments
}

/// The volume shows all its files, now and at each instant.
fn check(installation: &Installation, volume: &str, moments: &[(String, Manifest)], seed: u64) {
    let mut live = installation.mount(volume, &[]);
    let (_, last) = moments.last().unwrap();
    last.assert_same(&Manifest::of(&live.dir).unwrap(), &format!("seed {seed}: {volume} now"));
    for (at, was) in moments {
        let mut past = installation.mount_past(&live, at);
        was.assert_same(&Manifest::of(&past.dir).unwrap(), &format!("seed {seed}: {volume} at {at}"));
        past.unmount();
    }
    live.unmount();
}

fn restart_meta(installation: &mut Installation) {
    installation.meta.kill();
    installation.start_meta();
}

#[test]
fn a_deleted_volume_comes_back_whole_in_its_time_and_goes_to_the_last_byte_after_it() {
    let seed = seed("deleted volumes");
    let mut rng = Rng::new(seed);
    let arguments = ["--slice-life", "1", "--horizon-step", "1", "--pack-after", "1"];
    let mut installation = Installation::start_with_meta_arguments(&arguments);
    let mut moments = Vec::new();
    for volume in ["goes", "stays"] {
        installation.create_volume(volume, &["--compression", "none", "--retention", "1h"]);
        let mut live = installation.mount(volume, &[]);
        moments.push(fill(&live, &mut rng));
        live.unmount();
    }
    let (goes, stays) = (id_of(&installation, "goes"), id_of(&installation, "stays"));
    let id = goes.to_string();

    // Deleted by mistake. It keeps every object, whatever happens to the server, and its name is free.
    delete(&installation, "goes", &[]);
    let kept = deleted(&installation);
    assert_eq!((&kept[0]["name"], &kept[0]["state"]), (&"goes".into(), &"kept".into()), "{kept:?}");
    std::thread::sleep(Duration::from_secs(2));
    let before = objects(&installation, goes);
    restart_meta(&mut installation);
    std::thread::sleep(Duration::from_secs(4));
    assert!(before >= 12 && objects(&installation, goes) == before, "{before}");
    let http = installation.http_address.to_string();
    let gc = json(&installation, &["meta", "gc", "--full", "--http-addr", &http]);
    let leaving = gc["volumes"].as_array().unwrap().iter().find(|volume| volume["leaving"]["kept"] == true);
    assert!(leaving.unwrap()["name"].as_str().unwrap().contains(&id), "{gc}");
    assert_eq!(objects(&installation, goes), before);
    installation.create_volume("goes", &[]);
    assert!(installation.fails(&["configure", "undelete", "volume", "goes"]).contains("exists already"));
    installation.ok(&["configure", "undelete", "volume", &id, "--new-name", "back"]);
    check(&installation, "back", &moments[0], seed);

    // For good: within seconds, and a server that dies in the middle of it goes on.
    delete(&installation, "back", &["--keep", "3s"]);
    assert_eq!(deleted(&installation)[0]["state"], "kept");
    let begun = Instant::now();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1500 + rng.below(1000)));
        restart_meta(&mut installation);
    }
    wait("the objects to go", || (objects(&installation, goes) == 0).then_some(()));
    let refused = wait("the word of it", || {
        let state = deleted(&installation).first().map(|volume| volume["state"].clone());
        (state != Some("due".into())).then(|| installation.fails(&["configure", "undelete", "volume", &id]))
    });
    assert!(refused.contains("given up") || refused.contains("does not exist"), "{refused}");
    wait("the last of it to go", || deleted(&installation).is_empty().then_some(()));
    println!("all of it was gone after {:?}", begun.elapsed());
    let status = json(&installation, &["meta", "status", "--http-addr", &http]).to_string();
    assert!(!status.contains(&id), "{status}");
    check(&installation, "stays", &moments[1], seed);
    assert!(objects(&installation, stays) >= 12);

    // A word gives up what is kept for ever; then the store is empty, and is not needed any more.
    delete(&installation, "goes", &["--keep", "0"]);
    delete(&installation, "stays", &["--keep", "-1"]);
    assert!(
        installation
            .fails(&["configure", "delete", "block-store", "blocks"])
            .contains("deleted-volume 'stays'")
    );
    installation.ok(&["configure", "delete", "deleted-volume", "stays"]);
    wait("everything to go", || {
        let mut found = Vec::new();
        files(&installation.path("blocks/objects"), &mut found);
        (found.is_empty() && deleted(&installation).is_empty()).then_some(())
    });
    installation.ok(&["configure", "delete", "block-store", "blocks"]);
    installation.stop_meta_and_verify();
}
