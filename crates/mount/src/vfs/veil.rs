//! What the server is not to know of an encrypted volume: names, targets of symbolic links, attributes. Requests are sealed on
//! their way out, and replies opened on their way in, so nothing else of the mount knows of it.
//!
//! The server goes on deciding: who may do what, by numbers, modes and lists (`system.posix_acl_*`), and what an attribute is
//! by what it begins with (`user.`, `trusted.`, `security.`). These stay as they are, and so do names of `security.`, which are
//! the kernel's and known to everybody. A name is bound to its directory, an attribute to its inode.

use bytes::Bytes;
use chronofs_core::ops::{DirEntry, NewNode, Reply, Request};
use chronofs_core::{Attr, Errno, FileKind, Ino, Name};
use chronofs_keys::VolumeKeys;
use chronofs_keys::volume::VALUE_OVERHEAD;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

const ENTRY: &str = "entry";
const XATTR: &str = "attribute";
const TARGET: &str = "target";
/// The longest target of a symbolic link and the longest name of an attribute, as programs know them.
const TARGET_LEN_MAX: usize = 4095;
const XATTR_NAME_MAX: usize = 255;
/// Names that do not open are remembered up to so many: more than anybody looks at.
const UNREADABLE_MAX: usize = 10_000;

/// See the module.
pub(super) struct Veil {
    keys: Arc<VolumeKeys>,
    /// Entries whose names do not open: shown as they are stored, and nothing can be done with them.
    unreadable: Mutex<HashSet<(Ino, Bytes)>>,
}

/// What a request asked about, for the reply to it.
pub(super) enum Asked {
    Dir(Ino),
    Target(Ino),
    Value(Ino, Bytes),
    Names(Ino),
    Else,
}

/// How much of an attribute is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// Name and value; the name from this byte on.
    All(usize),
    Value,
    Nothing,
}

fn part_of(name: &[u8]) -> Part {
    for prefix in [&b"user."[..], b"trusted."] {
        if name.len() > prefix.len() && name.starts_with(prefix) {
            return Part::All(prefix.len());
        }
    }
    if name.starts_with(b"security.") { Part::Value } else { Part::Nothing }
}

/// The system gives no random numbers, or the cipher refuses: nothing may go out.
fn refused(error: chronofs_keys::Error) -> Errno {
    tracing::error!("what a program asked for cannot be encrypted: {error}");
    Errno::EIO
}

impl Veil {
    pub(super) fn new(keys: Arc<VolumeKeys>) -> Self {
        Veil { keys, unreadable: Mutex::default() }
    }

    /// Whether the name of this entry did not open.
    pub(super) fn is_unreadable(&self, dir: Ino, name: &Bytes) -> bool {
        let unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        !unreadable.is_empty() && unreadable.contains(&(dir.live(), name.clone()))
    }

    /// The request as the server may see it.
    pub(super) fn seal(&self, request: Request) -> Result<(Request, Asked), Errno> {
        let sealed = match request {
            Request::Lookup { parent, name } => Request::Lookup { parent, name: self.name(parent, &name)? },
            Request::ReadDir { dir, after, limit, attrs } => {
                return Ok((Request::ReadDir { dir, after, limit, attrs }, Asked::Dir(dir)));
            }
            Request::ReadLink { ino } => return Ok((Request::ReadLink { ino }, Asked::Target(ino))),
            Request::GetXattr { ino, name } => {
                let name = self.xattr_name(ino, &name)?;
                return Ok((Request::GetXattr { ino, name: name.clone() }, Asked::Value(ino, name)));
            }
            Request::ListXattr { ino } => return Ok((Request::ListXattr { ino }, Asked::Names(ino))),
            Request::Create { parent, name, node, mode, umask, open, exclusive } => {
                let name = self.name(parent, &name)?;
                Request::Create { parent, name, node: self.node(node)?, mode, umask, open, exclusive }
            }
            Request::Link { ino, parent, name } => {
                Request::Link { ino, parent, name: self.name(parent, &name)? }
            }
            Request::Unlink { parent, name } => Request::Unlink { parent, name: self.name(parent, &name)? },
            Request::Rmdir { parent, name } => Request::Rmdir { parent, name: self.name(parent, &name)? },
            Request::Rename { from, name, to, new_name, mode } => {
                let (name, new_name) = (self.name(from, &name)?, self.name(to, &new_name)?);
                Request::Rename { from, name, to, new_name, mode }
            }
            Request::SetXattr { ino, name, value, mode } => {
                let name = self.xattr_name(ino, &name)?;
                let value = self.xattr_value(ino, &name, value)?;
                Request::SetXattr { ino, name, value, mode }
            }
            Request::RemoveXattr { ino, name } => {
                Request::RemoveXattr { ino, name: self.xattr_name(ino, &name)? }
            }
            other => other,
        };
        Ok((sealed, Asked::Else))
    }

    /// The reply as programs are to see it.
    pub(super) fn open(&self, asked: &Asked, reply: Reply) -> Result<Reply, Errno> {
        Ok(match (asked, reply) {
            (_, Reply::Attr(attr)) => Reply::Attr(shown(attr)),
            (Asked::Dir(dir), Reply::Entries { mut entries, end }) => {
                entries.iter_mut().for_each(|entry| self.open_entry(*dir, entry));
                Reply::Entries { entries, end }
            }
            (Asked::Target(ino), Reply::Bytes(sealed)) => {
                let target = self.keys.open_value(TARGET, &[], &sealed);
                Reply::Bytes(target.ok_or_else(|| self.broken("the target of a symbolic link", *ino))?.into())
            }
            (Asked::Value(ino, name), Reply::Bytes(value)) => Reply::Bytes(match part_of(name) {
                Part::Nothing => value,
                _ => {
                    let value = self.keys.open_value(XATTR, &of_xattr(*ino, name), &value);
                    value.ok_or_else(|| self.broken("an extended attribute", *ino))?.into()
                }
            }),
            (Asked::Names(ino), Reply::Names(names)) => {
                let names = names.into_iter().map(|name| self.open_xattr_name(*ino, name));
                Reply::Names(names.collect::<Result<_, _>>()?)
            }
            (_, other) => other,
        })
    }

    fn broken(&self, what: &str, ino: Ino) -> Errno {
        tracing::error!(%ino, "{what} does not open with the volume's key: somebody else wrote or changed it");
        Errno::EIO
    }

    fn name(&self, dir: Ino, name: &Name) -> Result<Name, Errno> {
        if self.is_unreadable(dir, &Bytes::copy_from_slice(name.as_bytes())) {
            return Err(Errno::EIO);
        }
        let sealed = self.keys.seal_name(ENTRY, dir.live().0, name.as_bytes()).map_err(refused)?;
        Name::sealed(sealed)
    }

    fn open_entry(&self, dir: Ino, entry: &mut DirEntry) {
        if matches!(entry.name.as_ref(), b"." | b"..") {
            entry.attr = entry.attr.take().map(shown);
            return;
        }
        match self.keys.open_name(ENTRY, dir.live().0, &entry.name) {
            Some(name) if Name::new(name.clone()).is_ok() => {
                entry.name = name.into();
                entry.attr = entry.attr.take().map(shown);
            }
            _ => {
                entry.attr = None;
                let mut unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
                if unreadable.len() < UNREADABLE_MAX && unreadable.insert((dir.live(), entry.name.clone())) {
                    tracing::error!(
                        %dir, cookie = entry.cookie, ino = %entry.ino,
                        "the name of an entry does not open with the volume's key: somebody else wrote or changed it; it is \
                         shown as it is stored, and nothing can be done with it"
                    );
                }
            }
        }
    }

    fn node(&self, node: NewNode) -> Result<NewNode, Errno> {
        let NewNode::Symlink(target) = node else { return Ok(node) };
        if target.len() > TARGET_LEN_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if target.is_empty() {
            return Ok(NewNode::Symlink(target));
        }
        Ok(NewNode::Symlink(self.keys.seal_value(TARGET, &[], &target).map_err(refused)?.into()))
    }

    fn xattr_name(&self, ino: Ino, name: &Bytes) -> Result<Bytes, Errno> {
        let Part::All(from) = part_of(name) else { return Ok(name.clone()) };
        if name.len() > XATTR_NAME_MAX {
            return Err(Errno::ERANGE);
        }
        let (space, rest) = name.split_at(from);
        let sealed = self.keys.seal_name(XATTR, ino.live().0, rest).map_err(refused)?;
        Ok([space, &sealed].concat().into())
    }

    fn open_xattr_name(&self, ino: Ino, name: Bytes) -> Result<Bytes, Errno> {
        let Part::All(from) = part_of(&name) else { return Ok(name) };
        let (space, rest) = name.split_at(from);
        let opened = self.keys.open_name(XATTR, ino.live().0, rest);
        let opened = opened.ok_or_else(|| self.broken("the name of an extended attribute", ino))?;
        Ok([space, &opened].concat().into())
    }

    /// `name` is the sealed one.
    fn xattr_value(&self, ino: Ino, name: &Bytes, value: Bytes) -> Result<Bytes, Errno> {
        if part_of(name) == Part::Nothing {
            return Ok(value);
        }
        Ok(self.keys.seal_value(XATTR, &of_xattr(ino, name), &value).map_err(refused)?.into())
    }
}

/// What the value of an attribute is bound to.
fn of_xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
    [&ino.live().0.to_le_bytes(), name].concat()
}

/// The length of a symbolic link is that of its target.
fn shown(mut attr: Attr) -> Attr {
    if attr.kind == FileKind::Symlink {
        attr.size = attr.size.saturating_sub(VALUE_OVERHEAD as u64);
    }
    attr
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::ops::{RenameMode, XattrMode};
    use chronofs_keys::{SealedKeys, SecretKey, VolumeSecret};
    use uuid::Uuid;

    fn veil() -> Veil {
        let secret = VolumeSecret::Key(SecretKey::new([3; 32]));
        let sealed = SealedKeys::draw(Uuid::from_u128(5), &secret).unwrap();
        Veil::new(Arc::new(sealed.open(&sealed.kek(&secret).unwrap()).unwrap()))
    }

    fn name(text: &str) -> Name {
        Name::new(text.to_owned()).unwrap()
    }

    fn entry(name: Bytes) -> DirEntry {
        DirEntry { cookie: 300, name, ino: Ino(9), kind: FileKind::File, attr: None }
    }

    /// The entries of a directory as programs see them.
    fn listed(veil: &Veil, dir: Ino, names: Vec<Bytes>) -> Vec<Bytes> {
        let entries = names.into_iter().map(entry).collect();
        let reply = veil.open(&Asked::Dir(dir), Reply::Entries { entries, end: true }).unwrap();
        let Reply::Entries { entries, .. } = reply else { panic!("{reply:?}") };
        entries.into_iter().map(|entry| entry.name).collect()
    }

    #[test]
    fn a_name_is_sealed_for_its_directory_and_moves_sealed_for_another() {
        let veil = veil();
        let request = Request::Rename {
            from: Ino(1),
            name: name("plan"),
            to: Ino(2).in_past().live(),
            new_name: name("plan"),
            mode: RenameMode::Replace,
        };
        let (Request::Rename { name: from, new_name: to, .. }, _) = veil.seal(request).unwrap() else {
            panic!()
        };
        assert_ne!(from, to);
        let (from, to) = (Bytes::from(from), Bytes::from(to));
        assert_eq!(listed(&veil, Ino(1), vec![from.clone()]), [Bytes::from("plan")]);
        assert_eq!(listed(&veil, Ino(2).in_past(), vec![to]), [Bytes::from("plan")], "in the past too");
        let dots = vec![Bytes::from("."), Bytes::from("..")];
        assert_eq!(listed(&veil, Ino(2), dots.clone()), dots);
    }

    #[test]
    fn an_entry_that_does_not_open_is_shown_as_it_is_and_gives_eio() {
        let veil = veil();
        let stored = Bytes::from("lost+found");
        assert_eq!(listed(&veil, Ino(1), vec![stored.clone()]), std::slice::from_ref(&stored));
        assert!(veil.is_unreadable(Ino(1), &stored) && !veil.is_unreadable(Ino(2), &stored));
        let lookup = |parent| veil.seal(Request::Lookup { parent, name: name("lost+found") });
        assert!(matches!(lookup(Ino(1)), Err(Errno::EIO)));
        assert!(lookup(Ino(2)).is_ok());
    }

    #[test]
    fn a_symbolic_link_has_the_length_of_its_target() {
        let veil = veil();
        let sealed = veil.node(NewNode::Symlink(Bytes::from("../else where"))).unwrap();
        let NewNode::Symlink(sealed) = sealed else { panic!() };
        let mut attr = crate::testing::attr(9);
        (attr.kind, attr.size) = (FileKind::Symlink, sealed.len() as u64);
        let Reply::Attr(attr) = veil.open(&Asked::Else, Reply::Attr(attr)).unwrap() else { panic!() };
        assert_eq!(attr.size, 13);
        let opened = veil.open(&Asked::Target(Ino(9)), Reply::Bytes(sealed.clone())).unwrap();
        assert_eq!(opened, Reply::Bytes(Bytes::from("../else where")));
        let changed = Reply::Bytes(sealed.slice(1..));
        assert!(matches!(veil.open(&Asked::Target(Ino(9)), changed), Err(Errno::EIO)));
        let long = |len| veil.node(NewNode::Symlink(vec![b'x'; len].into()));
        assert!(long(TARGET_LEN_MAX).is_ok());
        assert!(matches!(long(TARGET_LEN_MAX + 1), Err(Errno::ENAMETOOLONG)));
    }

    #[test]
    fn attributes_are_sealed_but_for_what_the_server_and_the_kernel_must_know() {
        let veil = veil();
        let set = |ino, text: &'static str, value: &'static str| {
            let (name, value) = (Bytes::from(text), Bytes::from(value));
            let (sealed, _) =
                veil.seal(Request::SetXattr { ino, name, value, mode: XattrMode::Any }).unwrap();
            let Request::SetXattr { name, value, .. } = sealed else { panic!() };
            (name, value)
        };
        let get = |ino, stored: &Bytes, value: &Bytes| match veil
            .open(&Asked::Value(ino, stored.clone()), Reply::Bytes(value.clone()))?
        {
            Reply::Bytes(value) => Ok(value),
            other => panic!("{other:?}"),
        };
        for (text, space) in [("user.mime", "user."), ("trusted.origin", "trusted.")] {
            let (stored, value) = set(Ino(9), text, "secret");
            assert!(
                stored.starts_with(space.as_bytes()) && !stored.ends_with(&text.as_bytes()[space.len()..])
            );
            assert_ne!(stored, set(Ino(8), text, "secret").0, "another inode");
            assert_eq!(stored, set(Ino(9), text, "other").0, "it is found by its name");
            assert_eq!(get(Ino(9), &stored, &value).unwrap(), "secret");
            assert_eq!(get(Ino(8), &stored, &value), Err(Errno::EIO), "put on another inode");
            let listed = veil.open(&Asked::Names(Ino(9)), Reply::Names(vec![stored])).unwrap();
            assert_eq!(listed, Reply::Names(vec![Bytes::from(text)]));
        }
        let (stored, value) = set(Ino(9), "security.capability", "secret");
        assert!(stored == "security.capability" && value != "secret");
        assert_eq!(get(Ino(9), &stored, &value).unwrap(), "secret");
        let (stored, value) = set(Ino(9), "system.posix_acl_access", "list");
        assert!(stored == "system.posix_acl_access" && value == "list");
        assert_eq!(get(Ino(9), &stored, &value).unwrap(), "list");
    }

    #[test]
    fn the_longest_names_fit() {
        let veil = veil();
        let (sealed, _) =
            veil.seal(Request::Lookup { parent: Ino(1), name: name(&"n".repeat(255)) }).unwrap();
        assert!(matches!(sealed, Request::Lookup { .. }));
        let attribute = |len: usize| veil.xattr_name(Ino(1), &format!("user.{}", "a".repeat(len - 5)).into());
        assert!(attribute(255).unwrap().len() <= Name::SEALED_LEN_MAX);
        assert_eq!(attribute(256), Err(Errno::ERANGE));
    }
}
