//! Images that are snapshots of a whole volume: btrfs, LVM, ZFS, each by its own tools.

use crate::error::Error;
use crate::manifest::{Made, Manifest, Method};
use crate::tree::{Kind, list_tree};
use rustix::fs::{FsWord, statfs, syncfs};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder in an image that is a subvolume.
const SUBVOLUME: &str = "subvolume";
const BTRFS_MAGIC: FsWord = 0x9123_683e;
/// The inode number of every subvolume's root, and of the folder that stands for a nested one in a snapshot.
const SUBVOLUME_INODE: u64 = 256;
const MISSING_SUBVOLUME_INODE: u64 = 2;

/// A read-only snapshot of the subvolume that the data folder is or lies in.
pub(super) fn btrfs(path: &Path, staging: &Path) -> Result<Made, Error> {
    if !is_btrfs(path) {
        return Err(Error::NotBtrfs(path.to_owned()));
    }
    let device = device_of(path)?;
    let in_it = |part: &&Path| device_of(part).is_ok_and(|other| other == device);
    let root = path.ancestors().take_while(in_it).find(|part| is_subvolume(part));
    let root = root.ok_or_else(|| Error::NoSubvolume(path.to_owned()))?;
    let below = path.strip_prefix(root).unwrap_or(Path::new(""));
    let target = staging.join(SUBVOLUME);
    tool(
        "btrfs",
        ["subvolume".as_ref(), "snapshot".as_ref(), "-r".as_ref(), root.as_os_str(), target.as_os_str()],
    )?;
    let data = target.join(below);
    for entry in list_tree(&data)?.iter().filter(|entry| entry.kind == Kind::Folder) {
        let folder = data.join(&entry.path);
        let meta = fs::symlink_metadata(&folder).map_err(Error::io("look at", &folder))?;
        if meta.ino() == MISSING_SUBVOLUME_INODE {
            return Err(Error::NestedSubvolume(path.join(&entry.path)));
        }
    }
    let opened = File::open(&target).map_err(Error::io("open", &target))?;
    syncfs(&opened).map_err(Error::io("sync", &target))?;
    let data = Path::new(SUBVOLUME).join(below).display().to_string();
    Ok(Made { data: Some(data.trim_end_matches('/').to_owned()), volume: None, entries: None })
}

/// A snapshot of the logical volume under the data folder; as large as its origin where it is not thin.
pub(super) fn lvm(path: &Path, name: &str) -> Result<Made, Error> {
    let device =
        tool("findmnt", ["-n", "-o", "SOURCE", "--target"].map(Path::new).iter().copied().chain([path]))?;
    let columns = ["--noheadings", "--separator", "|", "-o", "vg_name,lv_name,pool_lv"];
    let said = tool("lvs", columns.into_iter().chain([device.as_str()]))?;
    let fields: Vec<&str> = said.split('|').map(str::trim).collect();
    let [group, volume, pool] = fields[..] else {
        return Err(Error::Tool { command: format!("lvs {device}"), said: format!("it answered '{said}'") });
    };
    let origin = format!("{group}/{volume}");
    let room: &[&str] = if pool.is_empty() { &["--extents", "100%ORIGIN"] } else { &[] };
    tool("lvcreate", ["--snapshot", "--name", name].iter().chain(room).chain([&origin.as_str()]))?;
    Ok(Made { data: None, volume: Some(format!("{group}/{name}")), entries: None })
}

/// A snapshot of the dataset; its files are readable below `.zfs`.
pub(super) fn zfs(path: &Path, name: &str) -> Result<Made, Error> {
    let said =
        tool("zfs", ["list", "-H", "-o", "name,mountpoint"].map(Path::new).iter().copied().chain([path]))?;
    let (dataset, mountpoint) = said.split_once('\t').unwrap_or((&said, ""));
    let below = path.strip_prefix(mountpoint).map_err(|_| Error::Tool {
        command: format!("zfs list {}", path.display()),
        said: format!("dataset {dataset} is mounted at '{mountpoint}', where this folder is not"),
    })?;
    let volume = format!("{dataset}@{name}");
    tool("zfs", ["snapshot", &volume])?;
    let data = Path::new(mountpoint).join(".zfs/snapshot").join(name).join(below).display().to_string();
    Ok(Made { data: Some(data), volume: Some(volume), entries: None })
}

pub(super) fn remove_lvm(manifest: &Manifest) -> Result<(), Error> {
    let Some(volume) = &manifest.volume else { return Ok(()) };
    tool("lvremove", ["--yes", volume.as_str()]).map(drop)
}

pub(super) fn remove_zfs(manifest: &Manifest) -> Result<(), Error> {
    // Without a name of a snapshot in it, it would be the dataset that is destroyed.
    let Some(volume) = manifest.volume.as_ref().filter(|volume| volume.contains('@')) else { return Ok(()) };
    tool("zfs", ["destroy", volume.as_str()]).map(drop)
}

/// Subvolumes directly in an image; the rest goes with the folder.
pub(super) fn remove_subvolumes(folder: &Path) -> Result<(), Error> {
    let subvolume = folder.join(SUBVOLUME);
    if !is_btrfs(folder) || !is_subvolume(&subvolume) {
        return Ok(());
    }
    tool("btrfs", ["subvolume".as_ref(), "delete".as_ref(), "--commit-after".as_ref(), subvolume.as_os_str()])
        .map(drop)
}

/// Whether what an image names outside of its folder, or as its volume, is there.
pub(super) fn check(folder: &Path, manifest: &Manifest) -> Result<(), Error> {
    let volume = manifest.volume.as_deref().unwrap_or_default();
    match manifest.method {
        Method::Btrfs => {
            let subvolume = folder.join(SUBVOLUME);
            let said = tool(
                "btrfs",
                [Path::new("property"), Path::new("get"), Path::new("-ts"), &subvolume, Path::new("ro")],
            )?;
            match said.as_str() {
                "ro=true" => Ok(()),
                _ => Err(Error::Tool {
                    command: "btrfs property".to_owned(),
                    said: format!("it can be written: {said}"),
                }),
            }
        }
        Method::Lvm => {
            let said = tool("lvs", ["--noheadings", "-o", "lv_snapshot_invalid", volume])?;
            match said.contains("invalid") {
                true => Err(Error::Tool {
                    command: format!("lvs {volume}"),
                    said: "the snapshot has overflowed".to_owned(),
                }),
                false => Ok(()),
            }
        }
        Method::Zfs => tool("zfs", ["list", "-H", "-t", "snapshot", "-o", "name", volume]).map(drop),
        Method::Copy | Method::Reflink | Method::Command => Ok(()),
    }
}

fn is_btrfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.f_type == BTRFS_MAGIC)
}

fn is_subvolume(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && meta.ino() == SUBVOLUME_INODE)
}

fn device_of(path: &Path) -> Result<u64, Error> {
    Ok(fs::metadata(path).map_err(Error::io("look at", path))?.dev())
}

/// Runs a tool, and gives what it says on standard output, trimmed.
fn tool<A: AsRef<std::ffi::OsStr>>(
    name: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String, Error> {
    let arguments: Vec<PathBuf> =
        arguments.into_iter().map(|argument| PathBuf::from(argument.as_ref())).collect();
    let shown =
        arguments.iter().fold(name.to_owned(), |line, argument| format!("{line} {}", argument.display()));
    let failed = |said: String| Error::Tool { command: shown.clone(), said };
    let ran = Command::new(name).args(&arguments).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = ran.map_err(|error| failed(format!("{error}; is {name} installed?")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(format!("{}: {said}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
