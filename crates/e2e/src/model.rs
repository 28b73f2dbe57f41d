//! The recorded operations of a writer and what they make of its folder: says how the folder looked at an instant
//! while writes ran.
//!
//! One writer owns one folder and does one operation at a time. Each operation is one commit, so at an instant
//! between two operations the folder is as after the first, and during one it is as before or as after it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::manifest::{Entry, Kind, Manifest};
use crate::rng::Rng;

/// Something a writer does; names are within its folder.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Action {
    Create {
        name: String,
        mode: u32,
    },
    /// One write of at most 250 KB inside of one block, then fsync. Small ones are staged, others make an object.
    WriteSynced {
        name: String,
        offset: u64,
        bytes: Vec<u8>,
    },
    Truncate {
        name: String,
        size: u64,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink {
        name: String,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        name: String,
        target: String,
    },
    Mkdir {
        name: String,
    },
    Rmdir {
        name: String,
    },
    Chmod {
        name: String,
        mode: u32,
    },
    Chown {
        name: String,
        uid: u32,
        gid: u32,
    },
    SetXattr {
        name: String,
        value: Vec<u8>,
    },
}

/// An action, when it ran (nanoseconds since the epoch by the system's clock), and the modification times that it
/// left on what it touched.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What was done.
    pub action: Action,
    /// Just before the call.
    pub started_ns: u64,
    /// Just after it.
    pub ended_ns: u64,
    mtimes: Vec<(String, i128)>,
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    content: Vec<u8>,
    target: String,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    mtime_ns: i128,
}

/// A folder as the recorded operations leave it. The empty name is the folder itself.
#[derive(Clone, Debug)]
pub struct Folder {
    names: BTreeMap<String, u64>,
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

impl Folder {
    /// An empty folder with this mode, owned by root.
    fn empty(mode: u32, mtime_ns: i128) -> Folder {
        let mut folder = Folder { names: BTreeMap::new(), nodes: BTreeMap::new(), next: 0 };
        folder.add("", Kind::Directory, mode);
        folder.node("").mtime_ns = mtime_ns;
        folder
    }

    fn add(&mut self, name: &str, kind: Kind, mode: u32) {
        let node = Node {
            kind,
            mode,
            uid: 0,
            gid: 0,
            content: Vec::new(),
            target: String::new(),
            xattrs: BTreeMap::new(),
            mtime_ns: 0,
        };
        self.nodes.insert(self.next, node);
        self.names.insert(name.to_owned(), self.next);
        self.next += 1;
    }

    fn node(&mut self, name: &str) -> &mut Node {
        let id = self.names[name];
        self.nodes.get_mut(&id).expect("a name has a node")
    }

    fn apply(&mut self, recorded: &Recorded) {
        match &recorded.action {
            Action::Create { name, mode } => self.add(name, Kind::File, *mode),
            Action::WriteSynced { name, offset, bytes } => {
                let node = self.node(name);
                let end = *offset as usize + bytes.len();
                node.content.resize(node.content.len().max(end), 0);
                node.content[*offset as usize..end].copy_from_slice(bytes);
            }
            Action::Truncate { name, size } => self.node(name).content.resize(*size as usize, 0),
            Action::Rename { from, to } => self.rename(from, to),
            Action::Unlink { name } | Action::Rmdir { name } => drop(self.names.remove(name)),
            Action::Link { from, to } => drop(self.names.insert(to.clone(), self.names[from])),
            Action::Symlink { name, target } => {
                self.add(name, Kind::Symlink, 0o777);
                self.node(name).target.clone_from(target);
            }
            Action::Mkdir { name } => self.add(name, Kind::Directory, 0o755),
            Action::Chmod { name, mode } => self.node(name).mode = *mode,
            Action::Chown { name, uid, gid } => (self.node(name).uid, self.node(name).gid) = (*uid, *gid),
            Action::SetXattr { name, value } => {
                self.node(name).xattrs.insert(b"user.model".to_vec(), value.clone());
            }
        }
        for (name, mtime_ns) in &recorded.mtimes {
            self.node(name).mtime_ns = *mtime_ns;
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        if self.names.get(from) == self.names.get(to) {
            return; // two names of one file: POSIX does nothing
        }
        let inside = format!("{from}/");
        let moved: Vec<String> =
            self.names.keys().filter(|n| *n == from || n.starts_with(&inside)).cloned().collect();
        for old in moved {
            let id = self.names.remove(&old).expect("just listed");
            self.names.insert(format!("{to}{}", &old[from.len()..]), id);
        }
    }

    /// As a manifest of the folder.
    pub fn manifest(&self) -> Manifest {
        let mut first: BTreeMap<u64, (&str, u64)> = BTreeMap::new();
        for (name, id) in &self.names {
            first.entry(*id).or_insert((name, 0)).1 += 1;
        }
        let entry = |name: &str, id: u64| {
            let node = &self.nodes[&id];
            let is_dir = node.kind == Kind::Directory;
            let size = if node.kind == Kind::Symlink { node.target.len() } else { node.content.len() } as u64;
            Entry {
                kind: node.kind,
                mode: node.mode,
                uid: node.uid,
                gid: node.gid,
                mtime_ns: node.mtime_ns,
                size,
                nlink: if is_dir { 0 } else { first[&id].1 },
                device: 0,
                content: (node.kind == Kind::File).then(|| blake3::hash(&node.content)),
                target: (node.kind == Kind::Symlink).then(|| node.target.clone().into_bytes()),
                xattrs: node.xattrs.clone(),
                same_as: if is_dir { name.as_bytes().to_vec() } else { first[&id].0.as_bytes().to_vec() },
            }
        };
        Manifest(self.names.iter().map(|(name, id)| (name.as_bytes().to_vec(), entry(name, *id))).collect())
    }
}

/// A writer of one folder.
pub struct Writer {
    root: PathBuf,
    base: Folder,
    now: Folder,
    done: Vec<Recorded>,
    rng: Rng,
    counter: u64,
}

impl Writer {
    /// Makes folder `root` and writes in it.
    pub fn new(root: &Path, rng: Rng) -> io::Result<Writer> {
        fs::create_dir(root)?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
        let base = Folder::empty(0o755, mtime_of(root)?);
        Ok(Writer { root: root.to_owned(), now: base.clone(), base, done: Vec::new(), rng, counter: 0 })
    }

    /// The folder it writes in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder as it is now.
    pub fn folder(&self) -> &Folder {
        &self.now
    }

    /// What was done so far, in order.
    pub fn done(&self) -> &[Recorded] {
        &self.done
    }

    /// Does one random action on the real folder and records it.
    pub fn step(&mut self) -> io::Result<()> {
        let action = self.choose();
        let started_ns = now_ns();
        self.perform(&action).map_err(|e| io::Error::new(e.kind(), format!("{action:?}: {e}")))?;
        let ended_ns = now_ns();
        let mut recorded = Recorded { action, started_ns, ended_ns, mtimes: Vec::new() };
        self.now.apply(&recorded);
        for name in touched(&recorded.action) {
            if self.now.names.contains_key(&name) {
                let mtime_ns = mtime_of(&self.root.join(&name))?;
                self.now.node(&name).mtime_ns = mtime_ns;
                recorded.mtimes.push((name, mtime_ns));
            }
        }
        self.done.push(recorded);
        Ok(())
    }

    /// How the folder may have looked at an instant: one manifest, or two when an action was under way.
    pub fn possible_at(&self, instant_ns: u64) -> Vec<Manifest> {
        let mut folder = self.base.clone();
        for recorded in &self.done {
            if recorded.started_ns > instant_ns {
                break;
            }
            if recorded.ended_ns >= instant_ns {
                let before = folder.manifest();
                folder.apply(recorded);
                return vec![before, folder.manifest()];
            }
            folder.apply(recorded);
        }
        vec![folder.manifest()]
    }

    fn of_kind(&self, kind: Kind) -> Vec<String> {
        let is = |id: &u64| self.now.nodes[id].kind == kind;
        self.now
            .names
            .iter()
            .filter(|(name, id)| !name.is_empty() && is(id))
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn fresh(&mut self, dirs: &[String]) -> String {
        self.counter += 1;
        let name = format!("n{}", self.counter);
        if dirs.is_empty() || self.rng.one_in(2) { name } else { format!("{}/{name}", self.rng.pick(dirs)) }
    }

    fn choose(&mut self) -> Action {
        let (files, dirs) = (self.of_kind(Kind::File), self.of_kind(Kind::Directory));
        let fresh = self.fresh(&dirs);
        if files.len() < 5 {
            return Action::Create { name: fresh, mode: 0o640 };
        }
        let name = self.rng.pick(&files).clone();
        match self.rng.below(16) {
            0..3 => Action::Create { name: fresh, mode: *self.rng.pick(&[0o600, 0o644, 0o751]) },
            3..7 => {
                let most = if self.rng.one_in(4) { 250_000 } else { 60_000 };
                let len = self.rng.between(1, most) as usize;
                Action::WriteSynced { name, offset: self.rng.below(100_000), bytes: self.rng.bytes(len) }
            }
            7 => Action::Truncate { name, size: self.rng.below(120_000) },
            8 => Action::Rename { from: name, to: fresh },
            9 => Action::Rename { from: name, to: self.rng.pick(&files).clone() },
            10 => Action::Unlink { name },
            11 => Action::Link { from: name, to: fresh },
            12 => Action::Symlink { name: fresh.clone(), target: format!("to/{fresh}") },
            13 => self.choose_for_folder(&dirs, fresh),
            14 => Action::Chmod { name, mode: self.rng.below(0o1000) as u32 },
            _ => match self.rng.one_in(2) {
                true => {
                    Action::Chown { name, uid: self.rng.below(99) as u32, gid: self.rng.below(99) as u32 }
                }
                false => Action::SetXattr { name, value: self.rng.bytes(50) },
            },
        }
    }

    fn choose_for_folder(&mut self, dirs: &[String], fresh: String) -> Action {
        if dirs.is_empty() || self.rng.one_in(2) {
            return Action::Mkdir { name: fresh };
        }
        let dir = self.rng.pick(dirs).clone();
        let inside = format!("{dir}/");
        match self.now.names.keys().any(|name| name.starts_with(&inside)) {
            false => Action::Rmdir { name: dir },
            true => Action::Rename { from: dir, to: format!("moved{}", self.counter) },
        }
    }

    fn perform(&self, action: &Action) -> io::Result<()> {
        let at = |name: &str| self.root.join(name);
        match action {
            Action::Create { name, mode } => {
                let file = OpenOptions::new().write(true).create_new(true).mode(*mode).open(at(name))?;
                file.metadata().map(drop)
            }
            Action::WriteSynced { name, offset, bytes } => {
                let file = OpenOptions::new().write(true).open(at(name))?;
                let written = file.write_at(bytes, *offset)?;
                if written != bytes.len() {
                    return Err(io::Error::other(format!("{written} of {} bytes written", bytes.len())));
                }
                file.sync_all()
            }
            Action::Truncate { name, size } => OpenOptions::new().write(true).open(at(name))?.set_len(*size),
            Action::Rename { from, to } => fs::rename(at(from), at(to)),
            Action::Unlink { name } => fs::remove_file(at(name)),
            Action::Rmdir { name } => fs::remove_dir(at(name)),
            Action::Link { from, to } => fs::hard_link(at(from), at(to)),
            Action::Symlink { name, target } => symlink(target, at(name)),
            Action::Mkdir { name } => fs::create_dir(at(name)),
            Action::Chmod { name, mode } => fs::set_permissions(at(name), fs::Permissions::from_mode(*mode)),
            Action::Chown { name, uid, gid } => std::os::unix::fs::chown(at(name), Some(*uid), Some(*gid)),
            Action::SetXattr { name, value } => xattr::set(at(name), "user.model", value),
        }
    }
}

/// The names whose modification time an action may change (renaming a folder changes no time inside of it).
fn touched(action: &Action) -> Vec<String> {
    let parent = |name: &str| name.rsplit_once('/').map(|(dir, _)| dir.to_owned()).unwrap_or_default();
    match action {
        Action::Create { name, .. } | Action::Symlink { name, .. } | Action::Mkdir { name } => {
            vec![name.clone(), parent(name)]
        }
        Action::WriteSynced { name, .. } | Action::Truncate { name, .. } => vec![name.clone()],
        Action::Rename { from, to } => vec![parent(from), parent(to)],
        Action::Unlink { name } | Action::Rmdir { name } => vec![parent(name)],
        Action::Link { to, .. } => vec![parent(to)],
        Action::Chmod { .. } | Action::Chown { .. } | Action::SetXattr { .. } => Vec::new(),
    }
}

fn mtime_of(path: &Path) -> io::Result<i128> {
    let metadata = fs::symlink_metadata(path)?;
    Ok(i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()))
}

/// The system's clock, nanoseconds since the epoch.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_nanos() as u64).unwrap_or_default()
}
