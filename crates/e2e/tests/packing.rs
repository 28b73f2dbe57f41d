//! Many small files lie in few objects, and nobody who reads them sees a difference: live, after a remount, in the past.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use chronofs_e2e::{Installation, Manifest, Mount, Rng, seed};
use serde_json::Value;

const FILES: u64 = 640;

fn manifest(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

/// How many objects there are below `path`.
fn objects(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let each = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => objects(&entry.path()),
        found => found.is_ok().into(),
    });
    each.sum()
}

fn volume_status(installation: &Installation) -> Value {
    let address = installation.http_address.to_string();
    let status = installation.ok(&["meta", "gc", "--json", "--http-addr", &address]);
    serde_json::from_str::<Value>(&status).unwrap()["volumes"][0].clone()
}

fn until(installation: &Installation, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let status = volume_status(installation);
        if is(&status) {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} takes too long: {status}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn is_packed(status: &Value) -> bool {
    status["to_pack"]["count"] == 0
}

fn small_files(live: &Mount, rng: &mut Rng) {
    for n in 0..FILES {
        let folder = live.path(&format!("d{}", n % 7));
        fs::create_dir_all(&folder).unwrap();
        let len = rng.between(1_000, 9_000) as usize;
        fs::write(folder.join(format!("f{n}")), rng.bytes(len)).unwrap();
    }
}

#[test]
fn small_files_are_packed_into_few_objects_and_read_back_at_every_instant() {
    let mut rng = Rng::new(seed("packing"));
    let mut installation = Installation::start_with_meta_arguments(&["--pack-after", "2"]);
    installation.create_volume("v", &["--retention", "1h"]);
    let blocks = installation.path("blocks/objects");
    let mut live = installation.mount("v", &[]);
    small_files(&live, &mut rng);
    let before = (live.instant(), manifest(&live.dir));
    let packed = until(&installation, "packing", is_packed);
    let there = objects(&blocks);
    assert!((1..=FILES / 32).contains(&there), "{there} objects for {FILES} files: {packed}");
    assert_eq!(packed["packing"]["slices"], FILES, "{packed}");
    assert_eq!(packed["packing"]["objects"], there, "{packed}");
    before.1.assert_same(&manifest(&live.dir), "the mount that wrote them");

    // What is overwritten, cut or removed now was packed before; the past shows it from its objects.
    for n in 0..FILES / 4 {
        let path = live.path(&format!("d{}/f{n}", n % 7));
        match n % 4 {
            0 => fs::write(&path, rng.bytes(3_000)).unwrap(),
            1 => fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(700).unwrap(),
            2 => fs::remove_file(&path).unwrap(),
            _ => {}
        }
    }
    let after = (live.instant(), manifest(&live.dir));
    until(&installation, "packing what is new", is_packed);
    let cold = installation.mount_with("v", &live.token, &[]);
    after.1.assert_same(&manifest(&cold.dir), "another mount");
    drop(cold);
    live.unmount();
    let mut live = installation.mount("v", &[]);
    after.1.assert_same(&manifest(&live.dir), "a new mount");
    for (at, was) in [&before, &after] {
        let mut past = installation.mount_past(&live, at);
        was.assert_same(&manifest(&past.dir), &format!("the volume at {at}"));
        past.unmount();
    }
    let there = objects(&blocks);
    assert!(there <= 2 * FILES / 32, "{there} objects");
    live.unmount();
    installation.stop_meta_and_verify();
}

#[test]
fn while_the_store_is_away_small_files_stay_in_the_metadata_and_are_packed_when_it_is_back() {
    let mut rng = Rng::new(seed("packing away"));
    let mut installation = Installation::start_with_meta_arguments(&["--pack-after", "1"]);
    installation.create_volume("v", &["--compression", "none"]);
    let mut live = installation.mount("v", &[]);
    let (blocks, away) = (installation.path("blocks"), installation.path("away"));
    fs::rename(&blocks, &away).unwrap();
    fs::create_dir(&blocks).unwrap();
    let contents: Vec<Vec<u8>> = (0..40).map(|_| rng.bytes(5_000)).collect();
    for (n, bytes) in contents.iter().enumerate() {
        fs::write(live.path(&format!("f{n}")), bytes).unwrap();
    }
    live.instant();
    let failed = until(&installation, "failing to pack", |status| status["packing"]["problem"].is_string());
    let problem = failed["packing"]["problem"].as_str().unwrap();
    assert!(problem.contains("not the store's folder any more"), "{problem}");
    assert_eq!((&failed["to_pack"]["count"], &failed["to_pack"]["bytes"]), (&40.into(), &200_000.into()));
    let check = |live: &Mount| {
        for (n, bytes) in contents.iter().enumerate() {
            assert!(fs::read(live.path(&format!("f{n}"))).unwrap() == *bytes, "f{n}");
        }
    };
    let cold = installation.mount_with("v", &live.token, &[]);
    check(&cold);
    drop(cold);
    fs::remove_dir(&blocks).unwrap();
    fs::rename(&away, &blocks).unwrap();
    let packed = until(&installation, "packing", is_packed);
    assert!(packed["packing"]["problem"].is_null(), "{packed}");
    assert_eq!(objects(&blocks.join("objects")), 1);
    let cold = installation.mount_with("v", &live.token, &[]);
    check(&cold);
    drop(cold);
    live.unmount();
    installation.stop_meta_and_verify();
}

/// Bytes of all objects below `path`.
fn stored(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let each = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => stored(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    each.sum()
}

/// Collects until the store holds at most 5 % more than what is needed; gives both.
fn collect(installation: &Installation, what: &str) -> (u64, u64) {
    let (blocks, begun) = (installation.path("blocks/objects"), Instant::now());
    let address = installation.http_address.to_string();
    loop {
        installation.ok(&["meta", "gc", "--full", "--http-addr", &address]);
        let status = installation.ok(&["meta", "gc", "--dry-run", "--json", "--http-addr", &address]);
        let status = serde_json::from_str::<Value>(&status).unwrap()["volumes"][0].clone();
        let (kept, needed) = (stored(&blocks), status["live_bytes"].as_u64().unwrap());
        if kept * 100 <= needed * 105 {
            return (kept, needed);
        }
        let late = begun.elapsed() > Duration::from_secs(90);
        assert!(!late, "{what}: {kept} bytes are kept and {needed} needed: {status}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn objects_of_which_little_is_needed_are_repacked_and_the_space_comes_back() {
    const BLOCK: usize = 256 << 10;
    // All of it while the mount that has written it goes on.
    let mut rng = Rng::new(seed("repacking"));
    let timing = ["--pack-after", "1", "--slice-life", "1", "--horizon-step", "1"];
    let mut installation = Installation::start_with_meta_arguments(&timing);
    let flags = ["--retention", "10s", "--compression", "none", "--block-size", "256KiB"];
    installation.create_volume("v", &flags);
    let blocks = installation.path("blocks/objects");
    let mut live = installation.mount("v", &[]);
    small_files(&live, &mut rng);
    // One object each, of ten slices.
    let large: Vec<String> = (0..6).map(|n| format!("large{n}")).collect();
    large.iter().for_each(|name| fs::write(live.path(name), rng.bytes(10 * BLOCK)).unwrap());
    let mut leased = installation.mount_past(&live, &live.instant());
    let before = manifest(&live.dir);
    until(&installation, "packing", is_packed);
    for n in (0..FILES).filter(|n| n % 8 != 0) {
        fs::remove_file(live.path(&format!("d{}/f{n}", n % 7))).unwrap();
    }
    for name in &large {
        let file = fs::OpenOptions::new().write(true).open(live.path(name)).unwrap();
        for block in (0..10).filter(|block| block % 3 != 0) {
            let bytes = rng.bytes(BLOCK);
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, (block * BLOCK) as u64).unwrap();
        }
    }
    live.instant();
    let after = manifest(&live.dir);
    // A mount that has listed slices where they lie now, and reads some of them when they lie elsewhere.
    let listed = installation.mount_with("v", &live.token, &[]);
    large.iter().for_each(|name| {
        let file = fs::File::open(listed.path(name)).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut [0], 0).unwrap();
    });
    let address = installation.http_address.to_string();
    installation.ok(&["meta", "gc", "--full", "--http-addr", &address]);
    before.assert_same(&manifest(&leased.dir), "the mounted past, which needs all of it");
    let most = stored(&blocks);
    leased.unmount();

    let (kept, needed) = collect(&installation, "after all of the past left the window");
    println!("{most} bytes were stored; {kept} are now, for {needed} that are needed");
    assert!(2 * most > 3 * kept, "{most} bytes were stored, {kept} are now");
    let status = volume_status(&installation);
    assert!(status["packing"]["repacked"].as_u64() > Some(0), "{status}");
    after.assert_same(&manifest(&listed.dir), "a mount that knew where slices were");
    after.assert_same(&manifest(&live.dir), "the one that had put them there");
    drop(listed);
    let cold = installation.mount_with("v", &live.token, &[]);
    after.assert_same(&manifest(&cold.dir), "another mount");
    drop(cold);
    live.unmount();
    installation.stop_meta_and_verify();
}
