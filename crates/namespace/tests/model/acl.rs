//! POSIX ACLs as Linux has them, written the long way round.

use bytes::Bytes;
use chronofs_core::{Caller, Errno};

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

pub const USER_OBJ: u16 = 0x01;
pub const USER: u16 = 0x02;
pub const GROUP_OBJ: u16 = 0x04;
pub const GROUP: u16 = 0x08;
pub const MASK: u16 = 0x10;
pub const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

/// One entry: tag, permission bits, id of a named user or group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ace {
    pub tag: u16,
    pub perm: u16,
    pub id: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl(pub Vec<Ace>);

impl Acl {
    /// Reads the form of the extended attribute; whether it is valid is another question. `None` is the empty list, which removes an ACL.
    pub fn parse(value: &[u8]) -> Result<Option<Acl>, Errno> {
        if value.is_empty() {
            return Ok(None);
        }
        let Some((version, entries)) = value.split_first_chunk::<4>() else { return Err(Errno::EINVAL) };
        if u32::from_le_bytes(*version) != 2 {
            return Err(Errno::EOPNOTSUPP);
        }
        if entries.len() % 8 != 0 {
            return Err(Errno::EINVAL);
        }
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |n, &b| n << 8 | u32::from(b));
        let list: Vec<Ace> = entries
            .chunks(8)
            .map(|e| Ace {
                tag: number(&e[..2]) as u16,
                perm: number(&e[2..4]) as u16,
                id: if matches!(number(&e[..2]) as u16, USER | GROUP) { number(&e[4..]) } else { NO_ID },
            })
            .collect();
        if list.is_empty() {
            return Ok(None);
        }
        Ok(Some(Acl(list)))
    }

    /// The entries stand in order: owner, users, owning group, groups, mask (needed with users or groups), other.
    pub fn valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|ace| ace.tag == tag).count();
        let named = count(USER) + count(GROUP);
        self.0.windows(2).all(|pair| pair[0].tag <= pair[1].tag)
            && self.0.iter().all(|ace| ace.perm <= 7)
            && self.0.iter().all(|ace| [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&ace.tag))
            && count(USER_OBJ) == 1
            && count(GROUP_OBJ) == 1
            && count(OTHER) == 1
            && (count(MASK) == 1 || count(MASK) == 0 && named == 0)
            && self.0.iter().all(|ace| !matches!(ace.tag, USER | GROUP) || ace.id != NO_ID)
    }

    pub fn to_value(&self) -> Bytes {
        let mut out = 2u32.to_le_bytes().to_vec();
        for ace in &self.0 {
            out.extend(ace.tag.to_le_bytes());
            out.extend(ace.perm.to_le_bytes());
            out.extend(ace.id.to_le_bytes());
        }
        out.into()
    }

    pub fn of(&self, tag: u16) -> Option<u16> {
        self.0.iter().find(|ace| ace.tag == tag).map(|ace| ace.perm)
    }

    pub fn set(&mut self, tag: u16, perm: u16) {
        self.0.iter_mut().filter(|ace| ace.tag == tag).for_each(|ace| ace.perm = perm);
    }

    /// Whether it says more than nine mode bits can.
    pub fn extended(&self) -> bool {
        self.0.iter().any(|ace| matches!(ace.tag, USER | GROUP | MASK))
    }

    /// The entry that the group bits of the mode show.
    pub fn group_class(&self) -> u16 {
        if self.of(MASK).is_some() { MASK } else { GROUP_OBJ }
    }

    /// The nine mode bits that stand for it.
    pub fn mode(&self) -> u16 {
        let bits = |tag| self.of(tag).unwrap_or(0);
        bits(USER_OBJ) << 6 | bits(self.group_class()) << 3 | bits(OTHER)
    }

    pub fn chmod(&mut self, mode: u16) {
        self.set(USER_OBJ, mode >> 6 & 7);
        self.set(self.group_class(), mode >> 3 & 7);
        self.set(OTHER, mode & 7);
    }

    /// What a new file gets of a directory's default ACL: the ACL and the mode, each cut by the other.
    pub fn inherit(&self, mode: u16) -> (Acl, u16) {
        let mut acl = self.clone();
        for (tag, shift) in [(USER_OBJ, 6), (self.group_class(), 3), (OTHER, 0)] {
            acl.set(tag, acl.of(tag).unwrap_or(0) & (mode >> shift));
        }
        let mode = mode & !0o777 | acl.mode();
        (acl, mode)
    }

    /// Whether someone who is not the owner may do `want`.
    pub fn allows(&self, caller: &Caller, gid: u32, want: u16) -> bool {
        let mask = self.of(MASK).unwrap_or(7);
        if let Some(user) = self.0.iter().find(|ace| ace.tag == USER && ace.id == caller.uid) {
            return user.perm & mask & want == want;
        }
        let groups: Vec<u16> = self
            .0
            .iter()
            .filter(|ace| {
                ace.tag == GROUP_OBJ && caller.in_group(gid) || ace.tag == GROUP && caller.in_group(ace.id)
            })
            .map(|ace| ace.perm)
            .collect();
        match groups.is_empty() {
            true => self.of(OTHER).unwrap_or(0) & want == want,
            false => groups.iter().any(|perm| perm & mask & want == want),
        }
    }
}
