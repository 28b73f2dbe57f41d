//! POSIX ACLs: the bytes of `system.posix_acl_*`, what they allow, and how they and the mode keep in step.

use chronofs_core::{Caller, Errno};

/// Name of the access ACL.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the default ACL of a directory.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

/// A list: permissions are three bits each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Acl {
    user: u16,
    users: Vec<(u32, u16)>,
    group: u16,
    groups: Vec<(u32, u16)>,
    mask: Option<u16>,
    other: u16,
}

impl Acl {
    /// Reads the bytes of the attribute; `None` for a list without entries, which means no list.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Acl>, Errno> {
        let (version, mut rest) = bytes.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::EOPNOTSUPP);
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let mut acl = Acl { user: 0, users: vec![], group: 0, groups: vec![], mask: None, other: 0 };
        // Entries stand in the order of their tags; the last tag seen says what may follow.
        let mut last = 0;
        while let Some((entry, next)) = rest.split_first_chunk::<8>() {
            rest = next;
            let [t0, t1, p0, p1, id @ ..] = *entry;
            let (tag, perm, id) =
                (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([p0, p1]), u32::from_le_bytes(id));
            let once = !matches!(tag, USER | GROUP);
            if perm > 7 || tag < last || (once && tag == last) {
                return Err(Errno::EINVAL);
            }
            match tag {
                USER_OBJ => acl.user = perm,
                USER if last >= USER_OBJ && id != NO_ID => acl.users.push((id, perm)),
                GROUP_OBJ if last >= USER_OBJ => acl.group = perm,
                GROUP if last >= GROUP_OBJ && id != NO_ID => acl.groups.push((id, perm)),
                MASK if last >= GROUP_OBJ => acl.mask = Some(perm),
                OTHER if last >= GROUP_OBJ => acl.other = perm,
                _ => return Err(Errno::EINVAL),
            }
            last = tag;
        }
        let named = !acl.users.is_empty() || !acl.groups.is_empty();
        if last != OTHER || !rest.is_empty() || (named && acl.mask.is_none()) {
            return Err(Errno::EINVAL);
        }
        Ok(Some(acl))
    }

    /// Whether setting `bytes` means to remove the list.
    pub(crate) fn is_no_list(bytes: &[u8]) -> bool {
        bytes.is_empty() || matches!(Acl::parse(bytes), Ok(None))
    }

    /// The bytes of the attribute.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        let mut push = |tag: u16, perm: u16, id: u32| {
            out.extend(tag.to_le_bytes());
            out.extend(perm.to_le_bytes());
            out.extend(id.to_le_bytes());
        };
        push(USER_OBJ, self.user, NO_ID);
        self.users.iter().for_each(|&(id, perm)| push(USER, perm, id));
        push(GROUP_OBJ, self.group, NO_ID);
        self.groups.iter().for_each(|&(id, perm)| push(GROUP, perm, id));
        self.mask.into_iter().for_each(|perm| push(MASK, perm, NO_ID));
        push(OTHER, self.other, NO_ID);
        out
    }

    /// The nine permission bits that say the same, or as much of it as bits can.
    pub(crate) fn mode(&self) -> u16 {
        self.user << 6 | self.mask.unwrap_or(self.group) << 3 | self.other
    }

    /// Whether nine bits say it all.
    pub(crate) fn is_minimal(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.mask.is_none()
    }

    /// After chmod(2) to `mode`.
    pub(crate) fn set_mode(&mut self, mode: u16) {
        self.user = mode >> 6 & 7;
        *self.mask.as_mut().unwrap_or(&mut self.group) = mode >> 3 & 7;
        self.other = mode & 7;
    }

    /// As a default ACL handed down to a new inode that the program gave `mode`.
    pub(crate) fn inherited(&self, mode: u16) -> Acl {
        let mut acl = self.clone();
        acl.set_mode(self.mode() & mode);
        acl
    }

    /// Whether it lets `caller`, who is not the owner, do all of `want` with an inode of group `gid`.
    pub(crate) fn allows(&self, caller: &Caller, gid: u32, want: u16) -> bool {
        let mask = self.mask.unwrap_or(7);
        if let Some(&(_, perm)) = self.users.iter().find(|(id, _)| *id == caller.uid) {
            return perm & mask & want == want;
        }
        let own = caller.in_group(gid).then_some(self.group);
        let named = self.groups.iter().filter(|(id, _)| caller.in_group(*id)).map(|&(_, perm)| perm);
        let mut matched = false;
        for perm in own.into_iter().chain(named) {
            matched = true;
            if perm & mask & want == want {
                return true;
            }
        }
        !matched && self.other & want == want
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            out.extend(tag.to_le_bytes());
            out.extend(perm.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        out
    }

    const NAMED: [(u16, u16, u32); 6] = [
        (USER_OBJ, 7, NO_ID),
        (USER, 6, 10),
        (GROUP_OBJ, 5, NO_ID),
        (GROUP, 1, 20),
        (MASK, 6, NO_ID),
        (OTHER, 0, NO_ID),
    ];

    fn who(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn a_list_reads_back_as_written() {
        let acl = Acl::parse(&bytes(&NAMED)).unwrap().unwrap();
        assert_eq!(acl.encode(), bytes(&NAMED));
        assert_eq!(acl.mode(), 0o760);
        assert!(!acl.is_minimal());
        assert_eq!(Acl::parse(&bytes(&[])), Ok(None));
    }

    #[test]
    fn malformed_lists_are_refused() {
        let without = |n: usize| {
            let mut entries = NAMED.to_vec();
            entries.remove(n);
            bytes(&entries)
        };
        for missing in [0, 2, 4, 5] {
            assert_eq!(Acl::parse(&without(missing)), Err(Errno::EINVAL), "without entry {missing}");
        }
        let mut twice = NAMED.to_vec();
        twice.insert(0, NAMED[0]);
        let mut wrong_order = NAMED.to_vec();
        wrong_order.swap(1, 3);
        let mut perm = NAMED.to_vec();
        perm[0].1 = 8;
        for entries in [twice, wrong_order, perm] {
            assert_eq!(Acl::parse(&bytes(&entries)), Err(Errno::EINVAL), "{entries:?}");
        }
        let whole = bytes(&NAMED);
        assert_eq!(Acl::parse(&whole[..whole.len() - 1]), Err(Errno::EINVAL));
        assert_eq!(Acl::parse(&[]), Err(Errno::EINVAL));
        assert_eq!(Acl::parse(&[3, 0, 0, 0]), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn the_mask_limits_named_users_and_all_groups() {
        let acl = Acl::parse(&bytes(&NAMED)).unwrap().unwrap();
        assert!(acl.allows(&who(10, 1, &[]), 30, 6));
        assert!(!acl.allows(&who(10, 1, &[]), 30, 1));
        assert!(acl.allows(&who(11, 30, &[]), 30, 4));
        assert!(!acl.allows(&who(11, 30, &[]), 30, 1), "x of the owning group is masked");
        assert!(!acl.allows(&who(11, 20, &[]), 30, 4), "its group matched and gives nothing");
        assert!(acl.allows(&who(11, 20, &[30]), 30, 4));
        assert!(!acl.allows(&who(12, 1, &[]), 30, 4));
    }

    #[test]
    fn modes_and_lists_keep_in_step() {
        let mut acl = Acl::parse(&bytes(&NAMED)).unwrap().unwrap();
        acl.set_mode(0o640);
        assert_eq!((acl.mode(), acl.group, acl.mask), (0o640, 5, Some(4)));
        assert_eq!(acl.inherited(0o600).mode(), 0o600);
        let minimal = bytes(&[NAMED[0], NAMED[2], NAMED[5]]);
        let acl = Acl::parse(&minimal).unwrap().unwrap();
        assert!(acl.is_minimal());
        assert_eq!(acl.mode(), 0o750);
    }
}
