//! The model's state: a plain tree in maps. A file's content is one map entry per byte that is no hole.

use crate::acl::Acl;
use bytes::Bytes;
use chronofs_core::{Attr, Caller, Errno, FileKind, Ino, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub const R: u16 = 4;
pub const W: u16 = 2;
pub const X: u16 = 1;
pub const SUID: u16 = 0o4000;
pub const SGID: u16 = 0o2000;
pub const STICKY: u16 = 0o1000;

/// What a request gets for an inode that is not there (any more).
pub const GONE: Errno = Errno::ENOENT;
/// What a request gets when a quota is used up.
pub const FULL: Errno = Errno::EDQUOT;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub kind: FileKind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub target: Bytes,
    pub size: u64,
    pub content: BTreeMap<u64, u8>,
    /// The last publish, merge or change of size.
    pub written: Version,
    pub entries: BTreeMap<Bytes, Ino>,
    pub parent: Ino,
    pub removed: bool,
    pub xattrs: BTreeMap<Bytes, Bytes>,
    pub acl: Option<Acl>,
    pub default_acl: Option<Acl>,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub crtime_ns: i64,
    pub data_version: Version,
}

impl Node {
    pub fn new(kind: FileKind, caller: &Caller, now: Version) -> Node {
        let ns = now.as_file_time_ns();
        Node {
            kind,
            mode: 0,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
            target: Bytes::new(),
            size: 0,
            content: BTreeMap::new(),
            written: now,
            entries: BTreeMap::new(),
            parent: Ino::ROOT,
            removed: false,
            xattrs: BTreeMap::new(),
            acl: None,
            default_acl: None,
            atime_ns: ns,
            mtime_ns: ns,
            ctime_ns: ns,
            crtime_ns: ns,
            data_version: now,
        }
    }

    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Dir
    }

    /// The rule of Linux: the owner's bits; else the ACL, unless the group bits are all clear; else group or other.
    pub fn may(&self, caller: &Caller, want: u16) -> bool {
        if caller.uid == 0 {
            return want & X == 0 || self.is_dir() || self.mode & 0o111 != 0;
        }
        if caller.uid == self.uid {
            return self.mode >> 6 & want == want;
        }
        if let Some(acl) = &self.acl
            && self.mode & 0o070 != 0
        {
            return acl.allows(caller, self.gid, want);
        }
        let shift = if caller.in_group(self.gid) { 3 } else { 0 };
        self.mode >> shift & want == want
    }

    pub fn check(&self, caller: &Caller, want: u16) -> Result<(), Errno> {
        if self.may(caller, want) { Ok(()) } else { Err(Errno::EACCES) }
    }

    pub fn owned_by(&self, caller: &Caller) -> bool {
        caller.uid == 0 || caller.uid == self.uid
    }

    /// Whether `caller` may leave or set the setgid bit on it.
    pub fn keeps_sgid(&self, caller: &Caller) -> bool {
        caller.uid == 0 || caller.in_group(self.gid)
    }

    /// What a write by someone unprivileged does to the mode of a file.
    pub fn drop_privileges(&mut self, caller: &Caller) {
        self.mode &= !SUID;
        if self.mode & 0o010 != 0 || !self.keeps_sgid(caller) {
            self.mode &= !SGID;
        }
    }

    /// Cuts or extends with a hole.
    pub fn resize(&mut self, size: u64, now: Version) {
        self.content.split_off(&size);
        if size != self.size {
            self.data_version = now;
        }
        (self.size, self.written) = (size, now);
    }
}

/// A volume at one version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    pub version: Version,
    pub nodes: BTreeMap<Ino, Arc<Node>>,
    pub max_bytes: Option<u64>,
    pub max_inodes: Option<u64>,
}

impl State {
    /// A new volume: a root directory of root's with mode 0755.
    pub fn new(version: Version) -> State {
        let mut root = Node::new(FileKind::Dir, &Caller::ROOT, version);
        root.mode = 0o755;
        let nodes = BTreeMap::from([(Ino::ROOT, Arc::new(root))]);
        State { version, nodes, max_bytes: None, max_inodes: None }
    }

    pub fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.nodes.get(&ino).map(Arc::as_ref).ok_or(GONE)
    }

    pub fn dir(&self, ino: Ino) -> Result<&Node, Errno> {
        let node = self.node(ino)?;
        if node.is_dir() { Ok(node) } else { Err(Errno::ENOTDIR) }
    }

    pub fn node_mut(&mut self, ino: Ino) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&ino).expect("a node that was checked"))
    }

    pub fn child(&self, dir: &Node, name: &[u8]) -> Option<Ino> {
        dir.entries.get(name).copied()
    }

    /// Directories with an entry of `ino`, once for each entry.
    pub fn links(&self, ino: Ino) -> Vec<Ino> {
        let dirs = self.nodes.iter().filter(|(_, node)| node.is_dir());
        dirs.flat_map(|(dir, node)| node.entries.values().filter(|i| **i == ino).map(|_| *dir)).collect()
    }

    pub fn nlink(&self, ino: Ino, node: &Node) -> u32 {
        if node.is_dir() {
            if node.removed {
                return 0;
            }
            let children = node.entries.values();
            return 2 + children.filter(|i| self.nodes.get(i).is_some_and(|n| n.is_dir())).count() as u32;
        }
        self.links(ino).len() as u32
    }

    pub fn attr(&self, ino: Ino) -> Result<Attr, Errno> {
        let node = self.node(ino)?;
        let size = match node.kind {
            FileKind::Dir => node.entries.len() as u64,
            FileKind::Symlink => node.target.len() as u64,
            _ => node.size,
        };
        Ok(Attr {
            ino,
            kind: node.kind,
            mode: node.mode,
            nlink: self.nlink(ino, node),
            uid: node.uid,
            gid: node.gid,
            size,
            allocated: node.content.len() as u64,
            rdev: node.rdev,
            atime_ns: node.atime_ns,
            mtime_ns: node.mtime_ns,
            ctime_ns: node.ctime_ns,
            crtime_ns: node.crtime_ns,
            data_version: node.data_version,
        })
    }

    /// Whether `dir` is `top` or lies somewhere below it.
    pub fn below(&self, mut dir: Ino, top: Ino) -> bool {
        loop {
            if dir == top {
                return true;
            }
            match self.nodes.get(&dir) {
                Some(node) if dir != Ino::ROOT => dir = node.parent,
                _ => return false,
            }
        }
    }

    pub fn used_bytes(&self) -> u64 {
        self.nodes.values().map(|node| node.content.len() as u64).sum()
    }

    pub fn used_inodes(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// Every inode that a path leads to, with the first path found, in the order of a walk.
    pub fn reachable(&self) -> BTreeSet<Ino> {
        let mut found = BTreeSet::from([Ino::ROOT]);
        let mut queue = vec![Ino::ROOT];
        while let Some(ino) = queue.pop() {
            if let Some(node) = self.nodes.get(&ino) {
                queue.extend(node.entries.values().filter(|child| found.insert(**child)));
            }
        }
        found
    }
}
