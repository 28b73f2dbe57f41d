//! A full disk under the log: changes are refused before they are acknowledged, and nothing acknowledged is lost.
//!
//! In a process of its own: files that are open in a mount whose server is away hold up every new process.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use chronofs_e2e::installation::detach;
use chronofs_e2e::process::{run, text, text_of, wait_for};
use chronofs_e2e::{Installation, Mount, Rng};

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Writes `count` files with an fsync each, until the first error.
fn write_until_error(mount: &Mount, count: u32, bytes: &[u8]) -> (Vec<PathBuf>, Option<io::Error>) {
    let mut synced = Vec::new();
    for n in 0..count {
        let path = mount.path(&format!("file {n}"));
        match write_synced(&path, bytes) {
            Ok(()) => synced.push(path),
            Err(e) => return (synced, Some(e)),
        }
    }
    (synced, None)
}

/// A mounted tmpfs of its own size; unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(dir: PathBuf, mib: u32) -> SmallDisk {
        fs::create_dir_all(&dir).unwrap();
        let output = run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "small"])
            .arg(&dir));
        assert!(output.status.success(), "mounting a tmpfs: {}", text_of(&output));
        SmallDisk(dir)
    }

    fn resize(&self, mib: u32) {
        let output = run(Command::new("mount").args(["-o", &format!("remount,size={mib}m")]).arg(&self.0));
        assert!(output.status.success(), "resizing a tmpfs: {}", text_of(&output));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

#[test]
fn a_full_disk_under_the_log_loses_nothing_acknowledged() {
    let holder = tempfile::tempdir().unwrap();
    // Room for the server to start with, but not for what is written: 400 MB in inline and staged slices.
    let disk = SmallDisk::new(holder.path().join("small"), 400);
    let mut installation = Installation::start_with_meta_folder(&disk.0.join("meta"));
    installation.create_volume("v", &[]);
    let mut mount = installation.mount("v", &[]);
    let bytes = Rng::new(1).bytes(60_000);
    let (mut synced, error) = write_until_error(&mount, 20_000, &bytes);
    let error = error.expect("a full disk must be told");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "after {} files: {error}", synced.len());
    assert!(synced.len() > 100, "only {} files before the disk was full", synced.len());
    let check = |synced: &[PathBuf], what: &str| {
        for path in synced {
            let found = fs::read(path).unwrap_or_else(|e| panic!("{what}: {}: {e}", path.display()));
            assert!(found == bytes, "{what}: {} lost what fsync returned for", path.display());
        }
    };
    check(&synced, "while full");

    // Room is all that it needs: the same server goes on.
    let pid = installation.meta.pid();
    disk.resize(1500);
    wait_for("writes to go on", || write_synced(&mount.path("again"), &bytes).ok());
    for n in 0..50 {
        write_synced(&mount.path(&format!("more {n}")), &bytes).unwrap();
    }
    installation.meta.assert_running();
    assert_eq!(installation.meta.pid(), pid);
    synced.push(mount.path("again"));
    synced.extend((0..50).map(|n| mount.path(&format!("more {n}"))));
    check(&synced, "with more room");

    installation.meta.kill();
    installation.start_meta();
    check(&synced, "after a restart with more room");
    write_synced(&mount.path("at last"), &bytes).unwrap();
    mount.instant();
    mount.unmount();
    installation.meta.stop();
    installation.ok(&["meta", "verify", "--blocks", "--db-folder", text(&disk.0.join("meta"))]);
    drop(installation);
}
