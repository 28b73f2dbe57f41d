//! Reading the volume for a request: inodes by number and by name, path scope, permissions.

use crate::acl::{ACCESS, Acl};
use crate::ctx::{Ctx, Done};
use crate::rows::{DIR, Dir, Entry, Format, INODE, Inode, LINK, Volume, Xattr, ino_key, number_at};
use crate::slots::{self, Search};
use chronofs_core::name::Position;
use chronofs_core::{Attr, Caller, Errno, Ino, Name, Version};
use chronofs_engine::{EngineError, ReadStop, Reads};
use chronofs_history::Snapshot;

pub(crate) const READ: u16 = 4;
pub(crate) const WRITE: u16 = 2;
pub(crate) const EXEC: u16 = 1;
pub(crate) const S_ISUID: u16 = 0o4000;
pub(crate) const S_ISGID: u16 = 0o2000;
pub(crate) const S_ISVTX: u16 = 0o1000;
const LINKS_PER_PAGE: usize = 256;
/// The most directories that are walked: deeper than any path a kernel lets through, and an end to a loop of
/// damaged rows.
pub(crate) const DEPTH_MAX: usize = 1 << 16;

/// The volume as one request sees it.
#[derive(Clone, Copy)]
pub(crate) struct Look<'a, R> {
    /// The tables, now or at the instant asked for.
    pub(crate) tables: Snapshot<R>,
    /// The present, when `tables` are the past.
    pub(crate) present: Option<Snapshot<R>>,
    pub(crate) ctx: &'a Ctx<'a>,
    pub(crate) volume: &'a Volume,
}

impl<R: Reads + Copy> Look<'_, R> {
    pub(crate) fn inode_if(&self, ino: Ino) -> Result<Option<Inode>, ReadStop> {
        inode_in(&self.tables, ino)
    }

    /// Errors: ENOENT.
    pub(crate) fn inode(&self, ino: Ino) -> Done<Inode> {
        Ok(self.inode_if(ino)?.ok_or(Errno::ENOENT)?)
    }

    /// An inode that a request names: within the session's scope. Errors: ENOENT.
    pub(crate) fn named(&self, ino: Ino) -> Done<Inode> {
        let inode = self.inode(ino)?;
        if self.in_scope(ino, &inode)? { Ok(inode) } else { Err(Errno::ENOENT.into()) }
    }

    /// A directory that a request names. Errors: ENOENT, ENOTDIR.
    pub(crate) fn named_dir(&self, ino: Ino) -> Done<Inode> {
        let inode = self.named(ino)?;
        if inode.is_dir() { Ok(inode) } else { Err(Errno::ENOTDIR.into()) }
    }

    /// A directory's row and since when it holds.
    pub(crate) fn dir(&self, ino: Ino) -> Done<(Dir, Version)> {
        let key = ino_key(ino);
        match self.tables.get(DIR, &key)? {
            Some(row) => Ok((Dir::decode(DIR, &key, &row.value)?, row.since)),
            None => Err(missing("directory row", ino).into()),
        }
    }

    pub(crate) fn attr_of(&self, ino: Ino, inode: &Inode) -> Done<Attr> {
        if inode.is_dir() {
            let (dir, since) = self.dir(ino)?;
            Ok(inode.attr(ino, Some((&dir, since))))
        } else {
            Ok(inode.attr(ino, None))
        }
    }

    pub(crate) fn attr(&self, ino: Ino) -> Done<Attr> {
        self.attr_of(ino, &self.inode(ino)?)
    }

    /// The inode an entry names. That it is missing is damage, not ENOENT.
    pub(crate) fn target(&self, ino: Ino) -> Done<Inode> {
        Ok(self.inode_if(ino)?.ok_or_else(|| missing("inode row", ino))?)
    }

    pub(crate) fn find(&self, dir: Ino, name: &Name) -> Result<Search<Entry>, ReadStop> {
        let first = Position::of(name.as_bytes(), &self.volume.spec.hash_key);
        slots::find(&self.tables, dir, first, name.as_bytes())
    }

    pub(crate) fn find_xattr(&self, ino: Ino, name: &[u8]) -> Result<Search<Xattr>, ReadStop> {
        find_xattr_in(&self.tables, self.volume, ino, name)
    }

    /// Whether `caller` may do `want` (of [`READ`], [`WRITE`], [`EXEC`]) with the inode. In the past: as of then
    /// and, as long as the inode lives, now. Errors: EACCES.
    pub(crate) fn allow(&self, ino: Ino, inode: &Inode, want: u16) -> Done<()> {
        let caller = &self.ctx.caller;
        if !permitted(&self.tables, self.volume, ino, inode, caller, want)? {
            return Err(Errno::EACCES.into());
        }
        if caller.uid != 0
            && let Some(present) = &self.present
            && let Some(inode) = inode_in(present, ino)?
            && !permitted(present, self.volume, ino, &inode, caller, want)?
        {
            return Err(Errno::EACCES.into());
        }
        Ok(())
    }

    /// Whether some caller may do less with the inode now than at the instant. It says yes where that would take
    /// more than a look at the modes.
    pub(crate) fn narrowed(&self, ino: Ino, then: &Inode) -> Done<bool> {
        let Some(present) = &self.present else { return Ok(false) };
        let Some(now) = inode_in(present, ino)? else { return Ok(false) };
        let same_classes =
            (now.uid, now.gid) == (then.uid, then.gid) && (now.flags | then.flags) & Inode::HAS_ACL == 0;
        Ok(!same_classes || then.mode & !now.mode & 0o777 != 0)
    }

    /// Whether the inode is the scope's root or below it. One without links is if the session has it open:
    /// what others have open may never have been in its scope.
    pub(crate) fn in_scope(&self, ino: Ino, inode: &Inode) -> Done<bool> {
        let root = self.ctx.root;
        if root == Ino::ROOT || ino == root {
            return Ok(true);
        }
        if inode.is_dir() {
            return self.is_below(inode.parent, root);
        }
        if inode.node().is_some_and(|node| node.nlink == 0) {
            return Ok((self.ctx.holds)(ino));
        }
        if self.is_below(inode.parent, root)? {
            return Ok(true);
        }
        let mut start = Vec::new();
        loop {
            let page = self.tables.scan(LINK, &ino_key(ino), &start, LINKS_PER_PAGE)?;
            for (key, _) in &page {
                if self.is_below(Ino(number_at(key, 8)), root)? {
                    return Ok(true);
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == LINKS_PER_PAGE => start = [&key[8..], &[0]].concat(),
                _ => return Ok(false),
            }
        }
    }

    /// Whether `dir` is `root` or below it: walks up the back-references.
    pub(crate) fn is_below(&self, mut dir: Ino, root: Ino) -> Done<bool> {
        for _ in 0..DEPTH_MAX {
            if dir == root {
                return Ok(true);
            }
            if dir == Ino::ROOT {
                return Ok(false);
            }
            match self.inode_if(dir)? {
                Some(inode) => dir = inode.parent,
                None => return Ok(false),
            }
        }
        Err(Errno::ELOOP.into())
    }
}

pub(crate) fn inode_in<R: Reads>(tables: &Snapshot<R>, ino: Ino) -> Result<Option<Inode>, ReadStop> {
    let key = ino_key(ino);
    tables.get(INODE, &key)?.map(|row| Inode::decode(INODE, &key, &row.value)).transpose()
}

pub(crate) fn find_xattr_in<R: Reads>(
    tables: &Snapshot<R>,
    volume: &Volume,
    ino: Ino,
    name: &[u8],
) -> Result<Search<Xattr>, ReadStop> {
    slots::find(tables, ino, Position::of(name, &volume.spec.hash_key), name)
}

/// A row that others say must be there is not.
pub(crate) fn missing(what: &str, ino: Ino) -> ReadStop {
    let detail = "other rows say that it must be there; run `chronofs meta verify`".to_owned();
    ReadStop::Failed(EngineError::Damaged { what: format!("{what} of inode {ino}"), detail })
}

fn permitted<R: Reads>(
    tables: &Snapshot<R>,
    volume: &Volume,
    ino: Ino,
    inode: &Inode,
    caller: &Caller,
    want: u16,
) -> Done<bool> {
    if caller.uid == 0 {
        return Ok(want & EXEC == 0 || inode.is_dir() || inode.mode & 0o111 != 0);
    }
    if caller.uid == inode.uid {
        return Ok(inode.mode >> 6 & want == want);
    }
    // As Linux does: a list whose mask gives nothing is not asked.
    if inode.flags & Inode::HAS_ACL != 0 && inode.mode & 0o070 != 0 {
        let row = find_xattr_in(tables, volume, ino, ACCESS)?.hit;
        if let Some(acl) = row.and_then(|(_, row)| Acl::parse(&row.value).ok().flatten()) {
            return Ok(acl.allows(caller, inode.gid, want));
        }
    }
    let bits = if caller.in_group(inode.gid) { inode.mode >> 3 } else { inode.mode };
    Ok(bits & want == want)
}

/// Whether the caller is the superuser or owns the inode.
pub(crate) fn owns(caller: &Caller, inode: &Inode) -> bool {
    caller.uid == 0 || caller.uid == inode.uid
}

/// The rule of the sticky bit: an entry goes only by the hand of root, of its inode's owner, or of the directory's.
/// Errors: EPERM.
pub(crate) fn check_sticky(caller: &Caller, dir: &Inode, inode: &Inode) -> Result<(), Errno> {
    if dir.mode & S_ISVTX == 0 || owns(caller, inode) || owns(caller, dir) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// `mode` without the bits that a change of content or owner by `caller` takes away: setuid, and setgid where the
/// group may execute or is not the caller's.
pub(crate) fn without_privileges(caller: &Caller, mode: u16, gid: u32) -> u16 {
    let outsider = caller.uid != 0 && !caller.in_group(gid);
    let drop_gid = mode & S_ISGID != 0 && (mode & 0o010 != 0 || outsider);
    mode & !S_ISUID & if drop_gid { !S_ISGID } else { !0 }
}
