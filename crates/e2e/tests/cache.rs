//! The disk cache of real mounts: what it gives while the block store is away, what it bears, and what it takes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use chronofs_e2e::installation::detach;
use chronofs_e2e::process::{run, text_of, wait_for};
use chronofs_e2e::{Installation, Mount, Rng};
use serde_json::Value;

/// Bytes that no compression makes small.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| rng.bits().to_le_bytes()).take(len).collect()
}

fn cached(installation: &Installation, volume: &str, dir: &Path, size: &str) -> Mount {
    installation.mount(volume, &["--cache-dir", dir.to_str().unwrap(), "--cache-size", size])
}

/// What `mount list --json` says of the cache of a mount.
fn figures(installation: &Installation, mount: &Mount) -> Value {
    let listed: Value = serde_json::from_str(&installation.ok(&["mount", "list", "--json"])).unwrap();
    let dir = mount.dir.to_str().unwrap();
    let found = listed.as_array().unwrap().iter().find(|listed| listed["dir"] == dir);
    found.unwrap_or_else(|| panic!("{dir} is not in {listed}"))["status"]["disk_cache"].clone()
}

fn count(figures: &Value, name: &str) -> u64 {
    figures[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {figures}"))
}

fn wait_until_loaded(installation: &Installation, mount: &Mount) {
    wait_for("the index of the cache", || (figures(installation, mount)["loading"] == false).then_some(()));
}

fn segments(cache: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.file_name().is_some_and(|name| name != "lock")).collect()
}

fn allocated(cache: &Path) -> u64 {
    let blocks = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.blocks());
    segments(cache).iter().map(blocks).sum::<u64>() * 512
}

#[test]
fn the_cache_alone_serves_what_was_read_and_damage_in_it_is_mended_from_the_store() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let cache = installation.path("cache");
    let files = [("small", noise(1, 100)), ("large", noise(2, 9 << 20)), ("odd", noise(3, 777_777))];
    let mut plain = installation.mount("v", &[]);
    for (name, bytes) in files.iter().chain([&("other", noise(4, 1 << 20))]) {
        fs::write(plain.path(name), bytes).unwrap();
    }
    plain.unmount();
    let check = |mount: &Mount| {
        for (name, bytes) in &files {
            assert!(&fs::read(mount.path(name)).unwrap() == bytes, "{name}");
        }
    };
    let mut mount = cached(&installation, "v", &cache, "256M");
    check(&mount);
    wait_for("the slices", || (count(&figures(&installation, &mount), "kept") == 4).then_some(()));
    mount.kill();

    // Without its marker the server would not serve the volume at all.
    let (objects, away) = (installation.path("blocks/objects"), installation.path("away"));
    fs::rename(&objects, &away).unwrap();
    let mut mount = cached(&installation, "v", &cache, "256M");
    wait_until_loaded(&installation, &mount);
    check(&mount);
    let after = figures(&installation, &mount);
    assert_eq!(
        (count(&after, "hits"), count(&after, "misses"), count(&after, "damaged")),
        (4, 0, 0),
        "{after}"
    );
    assert!(count(&after, "hit_bytes") > 9 << 20 && count(&after, "bytes") == allocated(&cache), "{after}");
    fs::read(mount.path("other"))
        .expect_err("the objects are away, so what is not in the cache is not there");
    mount.unmount();

    fs::rename(&away, &objects).unwrap();
    let mut rng = Rng::new(5);
    for path in segments(&cache) {
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for at in (0..file.metadata().unwrap().len()).step_by(64 << 10) {
            file.write_all_at(&rng.bits().to_le_bytes(), at + rng.bits() % 1000).unwrap();
        }
    }
    let mut mount = cached(&installation, "v", &cache, "256M");
    wait_until_loaded(&installation, &mount);
    check(&mount);
    let after = figures(&installation, &mount);
    assert!(count(&after, "hits") == 0 && count(&after, "kept") == 4, "{after}");
    mount.unmount();
    let log = mount.process.log();
    assert!(log.contains("the disk cache in") && log.contains("is closed"), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn mounts_that_share_a_folder_keep_its_quota_and_read_what_each_other_wrote() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let cache = installation.path("cache");
    let mut one = cached(&installation, "v", &cache, "96M");
    let other = cached(&installation, "v", &cache, "96M");
    let len = 6 << 20;
    for n in 0..30 {
        let mount = if n % 3 == 0 { &other } else { &one };
        fs::write(mount.path(&format!("file {n}")), noise(n, len)).unwrap();
        let taken = allocated(&cache);
        assert!(taken <= 96 << 20, "{taken} after {n}");
    }
    for (n, mount) in (0..30).map(|n| (n, if n % 2 == 0 { &one } else { &other })) {
        assert!(fs::read(mount.path(&format!("file {n}"))).unwrap() == noise(n, len), "file {n}");
        assert!(allocated(&cache) <= 96 << 20);
    }
    one.unmount();
    drop(other);
    // Without each other and without the store. Up to four segments of 16 MiB were being written at the end, and what came
    // faster than the disk took it was not kept: so how many of them are there is a matter of time.
    fs::rename(installation.path("blocks/objects"), installation.path("away")).unwrap();
    let third = cached(&installation, "v", &cache, "96M");
    wait_until_loaded(&installation, &third);
    let mut there = 0;
    for n in 20..30 {
        if let Ok(read) = fs::read(third.path(&format!("file {n}"))) {
            assert!(read == noise(n, len), "file {n}");
            there += 1;
        }
    }
    assert!(there >= 2, "{there} of the last ten files are in the cache; {}", figures(&installation, &third));
}

/// A mounted tmpfs of its own size; unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(dir: PathBuf) -> SmallDisk {
        fs::create_dir_all(&dir).unwrap();
        let disk = SmallDisk(dir);
        disk.mount("size=40m");
        disk
    }

    fn mount(&self, options: &str) {
        let output = run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "small"]).arg(&self.0));
        assert!(output.status.success(), "mounting a tmpfs: {}", text_of(&output));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

#[test]
fn a_disk_that_is_full_or_read_only_or_not_to_be_trusted_fails_no_read() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let disk = SmallDisk::new(installation.path("disk"));
    let cache = disk.0.join("cache");
    let check = |mount: &Mount| {
        for n in 0..6 {
            assert!(fs::read(mount.path(&format!("file {n}"))).unwrap() == noise(n, 8 << 20), "file {n}");
        }
    };
    let mut mount = cached(&installation, "v", &cache, "1G");
    (0..6).for_each(|n| fs::write(mount.path(&format!("file {n}")), noise(n, 8 << 20)).unwrap());
    check(&mount);
    // The disk holds fewer than were written: older ones went, and the last are there.
    let after = wait_for("evictions", || {
        let after = figures(&installation, &mount);
        (count(&after, "evicted") > 0).then_some(after)
    });
    assert!(after["trouble"].is_null() && count(&after, "slices") > 2, "{after}");
    mount.unmount();

    let output = run(Command::new("mount").args(["-o", "remount,ro"]).arg(&disk.0));
    assert!(output.status.success(), "{}", text_of(&output));
    let mut mount = cached(&installation, "v", &cache, "1G");
    wait_until_loaded(&installation, &mount);
    check(&mount);
    let after = figures(&installation, &mount);
    assert!(count(&after, "hits") > 2 && after["trouble"].as_str().unwrap().contains("Read-only"), "{after}");
    mount.unmount();
    let warnings = mount
        .process
        .log()
        .lines()
        .filter(|line| line.contains("WARN") && line.contains("disk cache"))
        .count();
    assert_eq!(warnings, 1, "{}", mount.process.log());

    // Others may write to /tmp, and so could give this mount bytes of their making.
    let mut mount = cached(&installation, "v", Path::new("/tmp"), "1G");
    check(&mount);
    let after = figures(&installation, &mount);
    assert!(after["trouble"].as_str().unwrap().contains("others may write"), "{after}");
    assert_eq!(count(&after, "hits"), 0);
    mount.unmount();
}

#[test]
fn the_options_of_the_cache_are_those_of_fstab_too_and_what_makes_no_sense_is_refused() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let cache = installation.path("cache");
    let words = format!("cache-dir={},cache-size=64M", cache.display());
    let mount = installation.mount("v", &["-o", &words]);
    wait_until_loaded(&installation, &mount);
    let after = figures(&installation, &mount);
    assert_eq!((count(&after, "bytes_max"), after["dir"].as_str()), (64 << 20, cache.to_str()));
    let none = installation.mount("v", &[]);
    assert!(figures(&installation, &none).is_null());
    let dir = installation.path("mnt");
    fs::create_dir(&dir).unwrap();
    let dir = dir.to_str().unwrap();
    let inside = format!("{dir}/cache");
    for (flags, said) in [
        (&["--cache-size", "1G"][..], "--cache-dir"),
        (&["--cache-dir", "/c", "--cache-size", "1M"], "at least 64 MiB"),
        (&["--cache-dir", "/c", "--cache-size", "much"], "not a size"),
        (&["--cache-dir", &inside], "in the mount itself"),
    ] {
        let arguments = [&["mount", "start", "v", dir, "--token", &mount.token][..], flags].concat();
        let refused = installation.fails(&arguments);
        assert!(refused.contains(said), "{flags:?}: {refused}");
    }
}
