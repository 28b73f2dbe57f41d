//! Disks of a test's own: a file system on a loop device, which is unmounted at the end.

use crate::process::{run, text_of};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// As large as the smallest that their makers accept, and some room; holes of the image take none.
const SIZE_BYTES: u64 = 1 << 30;

/// See the module.
pub struct Disk {
    /// The file that holds it.
    pub image: PathBuf,
    /// Where it is mounted.
    pub mount: PathBuf,
}

impl Disk {
    /// A new file system of `mkfs`, the command that makes one, in `folder`. Where the tool is missing the test fails:
    /// scripts/test installs it.
    #[track_caller]
    pub fn new(folder: &Path, name: &str, mkfs: &[&str]) -> Disk {
        let image = folder.join(format!("{name}.disk"));
        File::create(&image).and_then(|file| file.set_len(SIZE_BYTES)).expect("a file for a disk");
        done(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image));
        Disk::mount(image, folder.join(name), "rw")
    }

    /// Mounts what `image` holds, with options of mount.
    #[track_caller]
    pub fn mount(image: PathBuf, at: PathBuf, options: &str) -> Disk {
        fs::create_dir(&at).expect("a folder to mount at");
        done(Command::new("mount").args(["-o", &format!("loop,{options}")]).arg(&image).arg(&at));
        Disk { image, mount: at }
    }
}

/// A folder of one disk shown in the place of a folder of another one, until it is dropped.
pub struct Bound(PathBuf);

impl Bound {
    /// Shows `folder` at `at`, which is made.
    #[track_caller]
    pub fn new(folder: &Path, at: PathBuf) -> Bound {
        fs::create_dir(&at).expect("a folder to mount at");
        done(Command::new("mount").arg("--bind").arg(folder).arg(&at));
        Bound(at)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Somebody may use it still when a test fails: it goes with the last of them.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

/// Runs a tool, which must succeed, and gives what it printed.
#[track_caller]
pub fn done(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", text_of(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
