//! Makes an image: `DESTDIR/UID/ADDRESS/ROLE` with `manifest.json` and what the method puts there.
//!
//! It is made under another name beside its place, and moved there when all of it is on disk: what has the name of an
//! image is a whole one.

mod command;
mod volume;

pub use command::programs_folder;

use crate::error::Error;
use crate::manifest::{Made, Manifest, Method};
use crate::name::{Address, Role, SnapshotUid};
use crate::server::Server;
use crate::tree::{Way, copy_tree};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The folder of the files in an image that holds files.
pub const FILES: &str = "files";

/// What to make an image of, and where.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where images go.
    pub destdir: PathBuf,
    /// How it is made.
    pub method: Method,
    /// The data folder.
    pub path: PathBuf,
    /// The server's version.
    pub version: String,
    /// What of the server the data folder holds.
    pub role: Role,
    /// The snapshot.
    pub uid: SnapshotUid,
    /// Whose data folder it is.
    pub server: Server,
    /// Now, as RFC 3339.
    pub created: String,
    /// The program of [`Method::Command`], by its name in [`programs_folder`].
    pub command: Option<String>,
}

/// Where the image of a role of a server is.
#[must_use]
pub fn image_folder(destdir: &Path, uid: &SnapshotUid, address: &Address, role: Role) -> PathBuf {
    destdir.join(uid.as_str()).join(address.to_string()).join(role.as_str())
}

/// Makes an image, or fails and leaves nothing that looks like one.
pub fn create(request: &Request) -> Result<Manifest, Error> {
    let path = fs::canonicalize(&request.path).map_err(Error::io("find", &request.path))?;
    if !path.is_dir() {
        return Err(Error::NotAFolder(path));
    }
    if matches!(request.method, Method::Copy | Method::Reflink) && truly(&request.destdir)?.starts_with(&path)
    {
        return Err(Error::Inside { destdir: request.destdir.clone(), path });
    }
    let image = image_folder(&request.destdir, &request.uid, &request.server.address, request.role);
    if fs::symlink_metadata(&image).is_ok() {
        return Err(Error::Exists(image));
    }
    // With the number of the process, so that one that was killed half-way is in nobody's way.
    let staging = image.with_file_name(format!(".{}.{}", request.role, std::process::id()));
    make_folders(&staging)?;
    let made = fill(request, &path, &staging, &image).inspect_err(|_| discard(&staging, None))?;
    let manifest = Manifest::new(request, made);
    let finished = manifest
        .write(&staging)
        .and_then(|()| sync(&staging))
        .and_then(|()| move_into_place(&staging, &image));
    finished.inspect_err(|_| discard(&staging, Some(&manifest)))?;
    Ok(manifest)
}

/// Where a folder is that need not exist yet.
fn truly(folder: &Path) -> Result<PathBuf, Error> {
    let folder = std::path::absolute(folder).map_err(Error::io("find", folder))?;
    let exists = folder.ancestors().find(|part| part.exists()).unwrap_or(&folder);
    let real = fs::canonicalize(exists).map_err(Error::io("find", exists))?;
    Ok(folder.strip_prefix(exists).map_or_else(|_| real.clone(), |rest| real.join(rest)))
}

fn fill(request: &Request, path: &Path, staging: &Path, image: &Path) -> Result<Made, Error> {
    let copied = |way| -> Result<Made, Error> {
        let entries = copy_tree(path, &staging.join(FILES), way, &|_| true)?;
        Ok(Made { data: Some(FILES.to_owned()), volume: None, entries: Some(entries) })
    };
    match request.method {
        Method::Copy => copied(Way::Copy),
        Method::Reflink => copied(Way::Clone),
        Method::Btrfs => volume::btrfs(path, staging),
        Method::Lvm => volume::lvm(path, &volume_name(request, '-')),
        Method::Zfs => volume::zfs(path, &volume_name(request, ':')),
        Method::Command => command::run(request, path, staging, image),
    }
}

/// A name for a volume of all data that is this role's image; `colon` is what the tool allows in its place.
fn volume_name(request: &Request, colon: char) -> String {
    let address = request.server.address.to_string().replace(['[', ']'], "").replace(':', &colon.to_string());
    format!("chronofs-{}-{}-{address}", request.uid, request.role)
}

/// Everything that an image is goes with it, also its volume.
pub(crate) fn remove(folder: &Path, manifest: Option<&Manifest>) -> Result<(), Error> {
    match manifest.map(|manifest| (manifest.method, manifest)) {
        Some((Method::Lvm, manifest)) => volume::remove_lvm(manifest)?,
        Some((Method::Zfs, manifest)) => volume::remove_zfs(manifest)?,
        Some((Method::Command, manifest)) => command::remove(manifest, folder)?,
        _ => volume::remove_subvolumes(folder)?,
    }
    fs::remove_dir_all(folder).map_err(Error::io("remove", folder))
}

/// Whether what belongs to an image besides its files is there.
pub(crate) fn check_volume(folder: &Path, manifest: &Manifest) -> Result<(), Error> {
    volume::check(folder, manifest)
}

/// What failed half-way. That it could not be taken away is not the failure to tell; `delete` does it later.
fn discard(folder: &Path, manifest: Option<&Manifest>) {
    let _ = remove(folder, manifest);
}

/// Folders for the owner only: images hold everything that the database holds. Each new one is made durable.
fn make_folders(folder: &Path) -> Result<(), Error> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folders(parent)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => made.map_err(Error::io("make folder", folder)),
    }?;
    sync(parent)
}

pub(crate) fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(Error::io("sync", folder))
}

fn move_into_place(staging: &Path, image: &Path) -> Result<(), Error> {
    match renameat_with(CWD, staging, CWD, image, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => Err(Error::Exists(image.to_owned())),
        moved => moved.map_err(Error::io("make", image)),
    }?;
    sync(image.parent().unwrap_or(image))
}
