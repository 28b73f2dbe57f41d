//! Everything that is visible of a tree, in a form that can be compared: names, types, modes, owners, times, sizes,
//! content, hard links, symlink targets, xattrs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What a directory entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl Kind {
    fn of(metadata: &Metadata) -> Kind {
        let t = metadata.file_type();
        match () {
            () if t.is_dir() => Kind::Directory,
            () if t.is_symlink() => Kind::Symlink,
            () if t.is_fifo() => Kind::Fifo,
            () if t.is_socket() => Kind::Socket,
            () if t.is_char_device() => Kind::CharDevice,
            () if t.is_block_device() => Kind::BlockDevice,
            () => Kind::File,
        }
    }
}

/// One name of a tree and what hangs on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Type.
    pub kind: Kind,
    /// Permission bits with suid, sgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i128,
    /// Size in bytes (0 for directories: file systems differ there).
    pub size: u64,
    /// Hard links (0 for directories: file systems differ there).
    pub nlink: u64,
    /// Major and minor number of a device.
    pub device: u64,
    /// BLAKE3 of the content, of files.
    pub content: Option<blake3::Hash>,
    /// Target, of symlinks.
    pub target: Option<Vec<u8>>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name (in byte order) in this tree of the same inode: shows which names are hard links.
    pub same_as: Vec<u8>,
}

/// Entries by their path within the tree; the tree's root is the empty path.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Manifest(pub BTreeMap<Vec<u8>, Entry>);

impl Manifest {
    /// Walks `root`. An entry that cannot be read is an error that names it: nothing is left out.
    pub fn of(root: &Path) -> io::Result<Manifest> {
        let mut walk = Walk { root, entries: BTreeMap::new(), inodes: BTreeMap::new() };
        walk.visit(Vec::new())?;
        let Walk { mut entries, inodes, .. } = walk;
        for paths in inodes.values() {
            let first = paths.iter().min().cloned().unwrap_or_default();
            for path in paths {
                if let Some(entry) = entries.get_mut(path) {
                    entry.same_as.clone_from(&first);
                }
            }
        }
        Ok(Manifest(entries))
    }

    /// Without modification times, where a copy or a model does not carry them.
    pub fn without_times(mut self) -> Manifest {
        self.0.values_mut().for_each(|entry| entry.mtime_ns = 0);
        self
    }

    /// The differences to `other`, in words, at most `max` of them.
    pub fn differences(&self, other: &Manifest, max: usize) -> Vec<String> {
        let mut out = Vec::new();
        for (path, entry) in &self.0 {
            match other.0.get(path) {
                None => out.push(format!("only in the first: {}", show(path))),
                Some(second) if second != entry => {
                    out.push(format!("{}: {}", show(path), differing_fields(entry, second)));
                }
                Some(_) => {}
            }
        }
        out.extend(
            other
                .0
                .keys()
                .filter(|p| !self.0.contains_key(*p))
                .map(|p| format!("only in the second: {}", show(p))),
        );
        let count = out.len();
        out.truncate(max);
        if count > max {
            out.push(format!("... {count} differences in all"));
        }
        out
    }

    /// Panics with the differences unless `self` (what is expected) equals `found`.
    #[track_caller]
    pub fn assert_same(&self, found: &Manifest, what: &str) {
        let differences = self.differences(found, 12);
        assert!(
            differences.is_empty(),
            "{what}: first is expected, second is found:\n  {}",
            differences.join("\n  ")
        );
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a manifest of {} entries", self.0.len())
    }
}

/// A path as printable text.
pub fn show(path: &[u8]) -> String {
    let text = path.escape_ascii().to_string();
    if text.len() > 120 { format!("{}...({} bytes)", &text[..100], path.len()) } else { text }
}

fn differing_fields(a: &Entry, b: &Entry) -> String {
    let mut out = Vec::new();
    let mut field = |name: &str, a: &dyn fmt::Debug, b: &dyn fmt::Debug| {
        let (a, b) = (format!("{a:?}"), format!("{b:?}"));
        if a != b {
            out.push(format!("{name} {a} / {b}"));
        }
    };
    field("type", &a.kind, &b.kind);
    field("mode", &format_args!("{:o}", a.mode), &format_args!("{:o}", b.mode));
    field("uid", &a.uid, &b.uid);
    field("gid", &a.gid, &b.gid);
    field("mtime", &a.mtime_ns, &b.mtime_ns);
    field("size", &a.size, &b.size);
    field("links", &a.nlink, &b.nlink);
    field("device", &a.device, &b.device);
    field("content", &a.content, &b.content);
    field("target", &a.target.as_deref().map(show), &b.target.as_deref().map(show));
    field("xattrs", &a.xattrs, &b.xattrs);
    field("same inode as", &show(&a.same_as), &show(&b.same_as));
    out.join(", ")
}

struct Walk<'a> {
    root: &'a Path,
    entries: BTreeMap<Vec<u8>, Entry>,
    /// Paths of each inode that has more than one link.
    inodes: BTreeMap<(u64, u64), Vec<Vec<u8>>>,
}

impl Walk<'_> {
    fn visit(&mut self, path: Vec<u8>) -> io::Result<()> {
        let full =
            if path.is_empty() { self.root.to_owned() } else { self.root.join(OsStr::from_bytes(&path)) };
        let named =
            |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", show(full.as_os_str().as_bytes())));
        let (entry, metadata) = read_entry(&full, &path).map_err(named)?;
        let is_dir = entry.kind == Kind::Directory;
        if entry.nlink > 1 {
            self.inodes.entry((metadata.dev(), metadata.ino())).or_default().push(path.clone());
        }
        self.entries.insert(path.clone(), entry);
        if is_dir {
            for child in fs::read_dir(&full).map_err(named)? {
                let name = child.map_err(named)?.file_name();
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name.as_bytes());
                self.visit(below)?;
            }
        }
        Ok(())
    }
}

fn read_entry(full: &Path, path: &[u8]) -> io::Result<(Entry, Metadata)> {
    let metadata = fs::symlink_metadata(full)?;
    let kind = Kind::of(&metadata);
    let is_dir = kind == Kind::Directory;
    let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    let mut xattrs = BTreeMap::new();
    for name in xattr::list(full)? {
        if let Some(value) = xattr::get(full, &name)? {
            xattrs.insert(name.as_bytes().to_vec(), value);
        }
    }
    let entry = Entry {
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        size: if is_dir { 0 } else { metadata.size() },
        nlink: if is_dir { 0 } else { metadata.nlink() },
        device: if is_device { metadata.rdev() } else { 0 },
        content: if kind == Kind::File { Some(hash_file(full)?) } else { None },
        target: if kind == Kind::Symlink {
            Some(fs::read_link(full)?.as_os_str().as_bytes().to_vec())
        } else {
            None
        },
        xattrs,
        same_as: path.to_vec(),
    };
    Ok((entry, metadata))
}

/// BLAKE3 of a file's content; also checks that as many bytes can be read as the size says.
fn hash_file(path: &Path) -> io::Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0u64;
    loop {
        let len = file.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        hasher.update(&buffer[..len]);
        total += len as u64;
    }
    let size = file.metadata()?.len();
    if total != size {
        return Err(io::Error::other(format!("{total} bytes could be read, the size is {size}")));
    }
    Ok(hasher.finalize())
}
