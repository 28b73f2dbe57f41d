//! A folder of files as an image: copied or cloned with its holes, remembered with sizes and checksums, compared later.
//!
//! Everything that is written is synced before the call returns; who calls moves it into place afterwards.

use crate::error::Error;
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, FileTimes, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown, symlink,
};
use std::path::Path;

const BUFFER: usize = 256 << 10;

/// How the bytes of a file come into an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Read and written, and summed on the way.
    Copy,
    /// Shared, by the file system; nothing is read.
    Clone,
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
}

/// One file, folder or link of an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its path below the image's folder.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file, holes included.
    #[serde(default)]
    pub size: u64,
    /// BLAKE3 of a file's bytes, where they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// How an image differs from what it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Damage {
    #[error("{0} is missing")]
    Missing(String),
    #[error("{0} was added")]
    Added(String),
    #[error("{0} is no longer what it was: file, folder or link")]
    Kind(String),
    #[error("{path} is {size} bytes long, not {expected} as when it was made")]
    Size { path: String, size: u64, expected: u64 },
    #[error("{path} has other content than when it was made (its BLAKE3 differs)")]
    Content { path: String },
}

/// Copies what is in folder `from` into the new folder `to`: of its top level only names that `keep` wants. Sockets and pipes
/// hold nothing and are passed over.
pub fn copy_tree(from: &Path, to: &Path, way: Way, keep: &dyn Fn(&str) -> bool) -> Result<Vec<Entry>, Error> {
    new_folder(to)?;
    copy_into(from, to, way, keep)
}

/// The same into a folder that exists; nothing in it is overwritten.
pub fn copy_into(from: &Path, to: &Path, way: Way, keep: &dyn Fn(&str) -> bool) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    let meta = fs::metadata(from).map_err(Error::io("look at", from))?;
    copy_folder(from, to, "", way, keep, &meta, &mut entries)?;
    Ok(entries)
}

fn new_folder(folder: &Path) -> Result<(), Error> {
    DirBuilder::new().mode(0o700).create(folder).map_err(Error::io("make folder", folder))
}

fn copy_folder(
    from: &Path,
    to: &Path,
    below: &str,
    way: Way,
    keep: &dyn Fn(&str) -> bool,
    meta: &Metadata,
    entries: &mut Vec<Entry>,
) -> Result<(), Error> {
    for name in names(from)? {
        if below.is_empty() && !keep(&name) {
            continue;
        }
        let (source, target) = (from.join(&name), to.join(&name));
        let path = format!("{below}{name}");
        let meta = fs::symlink_metadata(&source).map_err(Error::io("look at", &source))?;
        let kind = meta.file_type();
        let mut entry = Entry { path, kind: Kind::File, size: 0, blake3: None, target: None };
        if kind.is_file() {
            (entry.size, entry.blake3) = copy_file(&source, &target, way, &meta)?;
        } else if kind.is_dir() {
            entry.kind = Kind::Folder;
            let below = format!("{}/", entry.path);
            entries.push(entry);
            new_folder(&target)?;
            copy_folder(&source, &target, &below, way, keep, &meta, entries)?;
            continue;
        } else if kind.is_symlink() {
            entry.kind = Kind::Link;
            entry.target = Some(copy_link(&source, &target, &meta)?);
        } else if kind.is_socket() || kind.is_fifo() {
            continue;
        } else {
            return Err(Error::Special(source));
        }
        entries.push(entry);
    }
    let folder = File::open(to).map_err(Error::io("open", to))?;
    same_owner_and_mode(&folder, meta).and_then(|()| folder.sync_all()).map_err(Error::io("sync", to))
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        names.push(entry.file_name().into_string().map_err(|_| Error::NotUtf8(entry.path()))?);
    }
    names.sort();
    Ok(names)
}

fn copy_link(from: &Path, to: &Path, meta: &Metadata) -> Result<String, Error> {
    let target = fs::read_link(from).map_err(Error::io("read link", from))?;
    symlink(&target, to).map_err(Error::io("make link", to))?;
    if fs::symlink_metadata(to).map_err(Error::io("look at", to))?.uid() != meta.uid() {
        lchown(to, Some(meta.uid()), Some(meta.gid())).map_err(Error::io("set the owner of", to))?;
    }
    target.into_os_string().into_string().map_err(|_| Error::NotUtf8(from.to_owned()))
}

fn copy_file(from: &Path, to: &Path, way: Way, meta: &Metadata) -> Result<(u64, Option<String>), Error> {
    let source = File::open(from).map_err(Error::io("open", from))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let target = options.open(to).map_err(Error::io("make", to))?;
    let (size, sum) = match way {
        Way::Copy => {
            let (size, sum) = copy_bytes(&source, &target).map_err(Error::io("copy", from))?;
            (size, Some(sum))
        }
        Way::Clone => {
            let (from, to) = (from.to_owned(), to.to_owned());
            ioctl_ficlone(&target, &source).map_err(|e| Error::NoReflink {
                from,
                to: to.clone(),
                source: e.into(),
            })?;
            (target.metadata().map_err(Error::io("look at", &to))?.len(), None)
        }
    };
    let finish = || {
        same_owner_and_mode(&target, meta)?;
        target.set_times(FileTimes::new().set_modified(meta.modified()?))?;
        target.sync_all()
    };
    finish().map_err(Error::io("write", to))?;
    Ok((size, sum))
}

/// Owner first: setting it takes special bits of the mode away.
fn same_owner_and_mode(file: &File, meta: &Metadata) -> io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (meta.uid(), meta.gid()) {
        fchown(file, Some(meta.uid()), Some(meta.gid()))?;
    }
    file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))
}

/// Bytes as they are, holes as holes. A file that grows meanwhile is copied to the size that it had at first.
fn copy_bytes(from: &File, to: &File) -> io::Result<(u64, String)> {
    let mut sum = Sum::default();
    let mut size = from.metadata()?.len();
    let mut at = 0;
    while at < size {
        let data = next_data(from, at, size)?;
        sum.zeros(data - at);
        at = data;
        let end = if at < size { seek(from, SeekFrom::Hole(at))?.min(size) } else { size };
        while at < end {
            let read = sum.read(from, at, end)?;
            if read.is_empty() {
                // It became shorter meanwhile.
                size = at;
                break;
            }
            to.write_all_at(read, at)?;
            at += read.len() as u64;
        }
    }
    to.set_len(size)?;
    Ok((size, sum.finish()))
}

fn next_data(file: &File, at: u64, size: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(data.min(size)),
        Err(rustix::io::Errno::NXIO) => Ok(size),
        Err(error) => Err(error.into()),
    }
}

/// Size and BLAKE3 of a file; holes are not read.
pub(crate) fn sum_of(path: &Path) -> Result<(u64, String), Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let read = || {
        let mut sum = Sum::default();
        let size = file.metadata()?.len();
        let mut at = 0;
        while at < size {
            let data = next_data(&file, at, size)?;
            sum.zeros(data - at);
            at = data;
            let read = sum.read(&file, at, size)?.len() as u64;
            if read == 0 {
                break;
            }
            at += read;
        }
        Ok::<_, io::Error>((at, sum.finish()))
    };
    read().map_err(Error::io("read", path))
}

struct Sum {
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
}

impl Default for Sum {
    fn default() -> Sum {
        Sum { hasher: blake3::Hasher::new(), buffer: vec![0; BUFFER] }
    }
}

impl Sum {
    fn zeros(&mut self, mut count: u64) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while count > 0 {
            let part = count.min(ZEROS.len() as u64);
            #[allow(clippy::cast_possible_truncation, reason = "not longer than ZEROS")]
            self.hasher.update(&ZEROS[..part as usize]);
            count -= part;
        }
    }

    /// What is at `at`, up to `end` or the buffer's size; nothing at the end of the file.
    fn read(&mut self, file: &File, at: u64, end: u64) -> io::Result<&[u8]> {
        #[allow(clippy::cast_possible_truncation, reason = "not longer than the buffer")]
        let most = (end - at).min(BUFFER as u64) as usize;
        let read = loop {
            match file.read_at(&mut self.buffer[..most], at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.hasher.update(&self.buffer[..read]);
        Ok(&self.buffer[..read])
    }

    fn finish(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

/// What is in a folder: kinds, sizes and targets, without checksums.
pub fn list_tree(folder: &Path) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    list_folder(folder, "", &mut entries)?;
    Ok(entries)
}

fn list_folder(folder: &Path, below: &str, entries: &mut Vec<Entry>) -> Result<(), Error> {
    for name in names(folder)? {
        let place = folder.join(&name);
        let meta = fs::symlink_metadata(&place).map_err(Error::io("look at", &place))?;
        let path = format!("{below}{name}");
        let mut entry = Entry { path, kind: Kind::File, size: 0, blake3: None, target: None };
        if meta.is_dir() {
            entry.kind = Kind::Folder;
            let below = format!("{}/", entry.path);
            entries.push(entry);
            list_folder(&place, &below, entries)?;
            continue;
        } else if meta.is_symlink() {
            entry.kind = Kind::Link;
            let target = fs::read_link(&place).map_err(Error::io("read link", &place))?;
            entry.target = Some(target.into_os_string().into_string().map_err(|_| Error::NotUtf8(place))?);
        } else if meta.is_file() {
            entry.size = meta.len();
        } else {
            continue;
        }
        entries.push(entry);
    }
    Ok(())
}

/// How much of an image is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Names, kinds, sizes.
    Sizes,
    /// And every byte of files whose checksum is known.
    Content,
}

/// All that is different from `expected` in what `keep` wants of the top level of `folder`.
pub fn compare_tree(
    folder: &Path,
    expected: &[Entry],
    depth: Depth,
    keep: &dyn Fn(&str) -> bool,
) -> Result<Vec<Damage>, Error> {
    let mut found = list_tree(folder)?;
    if depth == Depth::Content {
        let summed: BTreeMap<&str, u64> =
            expected.iter().filter(|e| e.blake3.is_some()).map(|e| (e.path.as_str(), e.size)).collect();
        // What has another size is damaged anyhow.
        let worth = |entry: &&mut Entry| {
            entry.kind == Kind::File && summed.get(entry.path.as_str()) == Some(&entry.size)
        };
        for entry in found.iter_mut().filter(worth) {
            entry.blake3 = Some(sum_of(&folder.join(&entry.path))?.1);
        }
    }
    Ok(differences(expected, &found, keep))
}

/// What is different in `found`; checksums count where both have them.
#[must_use]
pub fn differences(expected: &[Entry], found: &[Entry], keep: &dyn Fn(&str) -> bool) -> Vec<Damage> {
    let wanted = |entry: &&Entry| keep(entry.path.split('/').next().unwrap_or_default());
    let mut found: BTreeMap<&str, &Entry> =
        found.iter().filter(wanted).map(|e| (e.path.as_str(), e)).collect();
    let mut damages = Vec::new();
    for entry in expected.iter().filter(wanted) {
        let path = entry.path.clone();
        let Some(now) = found.remove(entry.path.as_str()) else {
            damages.push(Damage::Missing(path));
            continue;
        };
        let other_sum = entry.blake3.as_ref().zip(now.blake3.as_ref()).is_some_and(|(then, now)| then != now);
        if now.kind != entry.kind || now.target != entry.target {
            damages.push(Damage::Kind(path));
        } else if now.size != entry.size {
            damages.push(Damage::Size { path, size: now.size, expected: entry.size });
        } else if other_sum {
            damages.push(Damage::Content { path });
        }
    }
    damages.extend(found.into_keys().map(|path| Damage::Added(path.to_owned())));
    damages
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a sparse file, an empty one, one with special bits, a folder in a folder, a link and a socket.
    fn example() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let sparse = File::create(at("sparse")).unwrap();
        sparse.write_all_at(b"start", 0).unwrap();
        sparse.write_all_at(&[7; 5000], 40 << 20).unwrap();
        sparse.set_len(64 << 20).unwrap();
        fs::write(at("empty"), "").unwrap();
        fs::write(at("special"), "x").unwrap();
        fs::set_permissions(at("special"), fs::Permissions::from_mode(0o2600)).unwrap();
        fs::create_dir_all(at("outer/inner")).unwrap();
        fs::set_permissions(at("outer"), fs::Permissions::from_mode(0o751)).unwrap();
        fs::write(at("outer/inner/deep"), "deep").unwrap();
        symlink("outer/inner", at("link")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
        folder
    }

    fn all(_: &str) -> bool {
        true
    }

    #[test]
    fn a_copy_is_the_same_down_to_its_holes() {
        let from = example();
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("copy");
        let entries = copy_tree(from.path(), &to, Way::Copy, &all).unwrap();
        let paths: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["empty", "link", "outer", "outer/inner", "outer/inner/deep", "sparse", "special"]);
        for name in ["sparse", "empty", "special", "outer/inner/deep"] {
            assert!(fs::read(from.path().join(name)).unwrap() == fs::read(to.join(name)).unwrap(), "{name}");
        }
        let sparse = fs::metadata(to.join("sparse")).unwrap();
        assert!(sparse.len() == 64 << 20 && sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
        for name in ["special", "outer"] {
            let mode = |root: &Path| fs::metadata(root.join(name)).unwrap().mode();
            assert_eq!(mode(&to), mode(from.path()), "{name}");
        }
        let mut whole = vec![0; 64 << 20];
        whole[..5].copy_from_slice(b"start");
        whole[40 << 20..(40 << 20) + 5000].fill(7);
        let sum = blake3::hash(&whole).to_hex().to_string();
        let entry = entries.iter().find(|entry| entry.path == "sparse").unwrap();
        assert_eq!((entry.size, entry.blake3.as_deref()), (64 << 20, Some(sum.as_str())));
        assert_eq!(sum_of(&to.join("sparse")).unwrap(), (64 << 20, sum));
        assert_eq!(compare_tree(&to, &entries, Depth::Content, &all).unwrap(), []);
    }

    #[test]
    fn only_wanted_names_of_the_top_level_are_copied() {
        let from = example();
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("copy");
        let entries = copy_tree(from.path(), &to, Way::Copy, &|name| name.starts_with('o')).unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(list_tree(&to).unwrap().len(), 3);
    }

    #[test]
    fn each_damage_is_found_and_named() {
        let from = example();
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("copy");
        let entries = copy_tree(from.path(), &to, Way::Copy, &all).unwrap();
        File::options().write(true).open(to.join("sparse")).unwrap().write_all_at(&[1], 50 << 20).unwrap();
        fs::write(to.join("empty"), "no").unwrap();
        fs::remove_file(to.join("outer/inner/deep")).unwrap();
        fs::remove_file(to.join("link")).unwrap();
        fs::create_dir(to.join("link")).unwrap();
        fs::write(to.join("new"), "").unwrap();
        let sizes = [
            Damage::Size { path: "empty".to_owned(), size: 2, expected: 0 },
            Damage::Kind("link".to_owned()),
            Damage::Missing("outer/inner/deep".to_owned()),
        ];
        let added = Damage::Added("new".to_owned());
        let content = Damage::Content { path: "sparse".to_owned() };
        let found = compare_tree(&to, &entries, Depth::Sizes, &all).unwrap();
        assert_eq!(found, [&sizes[..], std::slice::from_ref(&added)].concat());
        let found = compare_tree(&to, &entries, Depth::Content, &all).unwrap();
        assert_eq!(found, [&sizes[..], &[content, added]].concat());
    }

    #[test]
    fn a_device_is_refused_and_a_target_is_never_overwritten() {
        let from = example();
        let place = tempfile::tempdir().unwrap();
        assert!(copy_tree(from.path(), place.path(), Way::Copy, &all).is_err(), "the folder exists");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        let device = from.path().join("device");
        let mode = rustix::fs::Mode::from(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &device, rustix::fs::FileType::CharacterDevice, mode, 0x103)
            .unwrap();
        let error = copy_tree(from.path(), &place.path().join("copy"), Way::Copy, &all).unwrap_err();
        assert!(matches!(&error, Error::Special(path) if *path == device), "{error}");
    }
}
