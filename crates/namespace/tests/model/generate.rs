//! Random sequences, made to collide: few names (some with one hash), few inodes, several callers.

use crate::acl::{self, Ace, Acl};
use crate::action::Action;
use crate::pack::Packing;
use crate::world::{BLOCK_SIZE, SLOTS, callers, object_bytes};
use bytes::Bytes;
use chronofs_core::ops::{NewNode, RenameMode, Request, XattrMode};
use chronofs_core::slice::{Codec, NewSlice, Place, Seal, Slice};
use chronofs_core::{Ino, Name, ObjectId, Retention, SessionId, SetAttr, SetTime, SliceId};

/// Pairs of names with one 55-bit hash under [`crate::world::HASH_KEY`], found by search.
pub const TIED_NAMES: [[&str; 2]; 4] = [
    ["cpa13ozhtup", "o5gxdyhgnlw"],
    ["baz0gegffzr", "jx1nwr13dyu"],
    ["xh1oooxpz5p", "yvfw4uhl5zb"],
    ["dm4zarjeh14", "ctuw04rq32a"],
];
/// The same among names of extended attributes.
pub const TIED_XATTRS: [[&str; 2]; 2] =
    [["user.eaghtybo1lq", "user.qxnlwjlwc1a"], ["user.hx1bpcqyl5o", "user.pxtenwmvtkw"]];

/// A small generator of random numbers (splitmix64): the same numbers from a seed for ever.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }
}

/// A sequence and the volume it is for.
pub struct Case {
    pub retention: Retention,
    pub actions: Vec<Action>,
}

struct Maker {
    rng: Rng,
    names: Vec<Name>,
    /// Slots below this one hold directories, as a rule.
    dirs: u64,
    slots: u64,
    next_object: u64,
    quotas: bool,
    scopes: bool,
}

pub fn case(seed: u64) -> Case {
    let mut rng = Rng::new(seed);
    let retention = match rng.below(10) {
        0 => Retention::None,
        1..=4 => Retention::Seconds(1),
        _ => Retention::Forever,
    };
    let names = some_names(&mut rng);
    let (quotas, scopes) = (rng.one_in(4), rng.one_in(4));
    let dirs = 1 + rng.below(SLOTS as u64 / 2);
    let slots = dirs + 2 + rng.below(SLOTS as u64 - dirs - 1);
    let len = 10 + rng.below(10 + rng.clone().below(300));
    let mut maker = Maker { rng, names, dirs, slots, next_object: 1, quotas, scopes };
    let mut actions = vec![
        // Without this most of what others than root try would be refused.
        maker.root_mode(),
    ];
    actions.extend((1..slots).map(|slot| maker.first(slot)));
    actions.extend((0..len).map(|_| maker.action()));
    let picks = (0..maker.rng.below(4)).map(|_| maker.rng.next()).collect();
    let limit = 1 + maker.rng.below(20) as usize;
    let all = Action::ForgetAll {
        tick: maker.time(),
        limit: 1 + maker.rng.below(20) as u32,
        pick: maker.rng.next(),
    };
    actions.extend([Action::Apply, Action::CheckNow, Action::Verify, all]);
    actions.extend([Action::Verify, Action::CollectAll, Action::Verify, Action::RepackAll, Action::Verify]);
    // Slices that lie elsewhere are cut and removed, too.
    let cuts = (dirs..slots).map(|slot| {
        let set = SetAttr { size: Some(maker.rng.below(70)), by_handle: true, ..SetAttr::default() };
        let request = Request::SetAttr { ino: Ino(slot), set };
        Action::Ask { caller: 0, scope: 0, read_only: false, tick: 1, keep: 0, request }
    });
    actions.extend(cuts.collect::<Vec<_>>());
    let all = Action::ForgetAll { tick: maker.time(), limit: 9, pick: maker.rng.next() };
    actions.extend([Action::Verify, all, Action::Verify, Action::CollectAll, Action::Verify]);
    actions.push(Action::Expire { picks, limit });
    Case { retention, actions }
}

fn some_names(rng: &mut Rng) -> Vec<Name> {
    let mut names: Vec<Vec<u8>> = vec![b"a".to_vec()];
    names.extend(rng.pick(&TIED_NAMES).map(|name| name.as_bytes().to_vec()));
    if rng.one_in(2) {
        names.push(rng.pick(&TIED_NAMES)[0].as_bytes().to_vec());
    }
    if rng.one_in(4) {
        names.push(rng.pick(&[vec![0xff, 0xfe], vec![b'n'; 255], b" \n".to_vec(), b"...".to_vec()]));
    }
    names.into_iter().map(|name| Name::new(name).expect("a name")).collect()
}

impl Maker {
    fn root_mode(&mut self) -> Action {
        let mode = self.rng.pick(&[0o777, 0o777, 0o1777, 0o2777, 0o775]);
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        Action::Ask {
            caller: 0,
            scope: 0,
            read_only: false,
            tick: 5,
            keep: 0,
            request: Request::SetAttr { ino: Ino(0), set },
        }
    }

    /// Something for a slot to hold at the start.
    fn first(&mut self, slot: u64) -> Action {
        let node = if slot < self.dirs { NewNode::Dir } else { NewNode::File };
        let (parent, name) = (Ino(self.rng.below(slot.min(self.dirs))), self.name());
        let mode = self.rng.pick(&[0o777, 0o755, 0o644, 0o1777]);
        let request = Request::Create { parent, name, node, mode, umask: 0, open: false, exclusive: true };
        Action::Ask {
            caller: self.caller(),
            scope: 0,
            read_only: false,
            tick: 1,
            keep: slot as usize,
            request,
        }
    }

    /// Any slot.
    fn slot(&mut self) -> usize {
        self.rng.below(self.slots) as usize
    }

    fn ino(&mut self) -> Ino {
        Ino(self.slot() as u64)
    }

    /// A directory, as a rule; the root and the first slots come up more often, so that requests meet.
    fn dir(&mut self) -> Ino {
        if self.rng.one_in(12) {
            return self.ino();
        }
        let wide = self.rng.below(self.dirs);
        Ino(if self.rng.one_in(2) { self.rng.below(wide + 1) } else { wide })
    }

    /// No directory, as a rule.
    fn file(&mut self) -> Ino {
        if self.rng.one_in(12) {
            return self.ino();
        }
        Ino(self.dirs + self.rng.below(self.slots - self.dirs))
    }

    fn name(&mut self) -> Name {
        self.rng.pick(&self.names)
    }

    fn tick(&mut self) -> u64 {
        if self.rng.one_in(2) { 1 } else { 1 + self.rng.below(1000) }
    }

    /// A good part of the retention of a second.
    fn time(&mut self) -> u64 {
        self.rng.below(700_000_000) + 1
    }

    fn caller(&mut self) -> usize {
        let others = callers().len() as u64;
        if self.rng.one_in(3) { 0 } else { self.rng.below(others) as usize }
    }

    fn action(&mut self) -> Action {
        match self.rng.below(100) {
            0..65 => self.ask(),
            65..67 => Action::Horizon { tick: self.time() },
            67..70 => Action::Forget { limit: 1 + self.rng.below(20) as u32 },
            70..76 => {
                let request = self.read();
                Action::AskPast { caller: self.caller(), pick: self.rng.next(), request }
            }
            76..79 => Action::Close { slot: self.file().0 as usize },
            79..82 => Action::Reap { slot: self.file().0 as usize, tick: self.tick() },
            82..84 => Action::List { slot: self.dir().0 as usize, cursor: self.rng.below(2) as usize },
            84..88 => {
                let limit = 1 + self.rng.below(3) as u32;
                Action::Page { cursor: self.rng.below(2) as usize, limit, attrs: self.rng.one_in(2) }
            }
            88 if self.rng.one_in(3) => {
                Action::Repack { pick: self.rng.next(), step: 1 + self.rng.below(3) as usize }
            }
            88 => self.pack(),
            89..91 => {
                let (block, note) = (self.rng.pick(&[0, 0, 0, 1]), self.rng.below(2) as usize);
                Action::ReadBlock { slot: self.file().0 as usize, block, note }
            }
            91..94 => {
                let (note, one) = (self.rng.below(2) as usize, self.rng.one_in(2));
                Action::Merge { note, tick: self.tick(), one, id: self.slice_id() }
            }
            94 if self.quotas => {
                let bytes = self.rng.pick(&[None, Some(0), Some(100), Some(700)]);
                let inodes = self.rng.pick(&[None, Some(1), Some(4), Some(8)]);
                Action::Quota { bytes, inodes, tick: self.tick() }
            }
            95 => self.rng.pick(&[Action::Crash, Action::Verify]),
            96 => match self.rng.below(3) {
                0 => self.rng.pick(&[Action::KeepPast { tick: 7 }, Action::Cut, Action::LetGo]),
                _ => self.rng.pick(&[
                    Action::Apply,
                    Action::Apply,
                    Action::Lease { tick: 7 },
                    Action::EndLease,
                ]),
            },
            97 if self.rng.one_in(2) => Action::Purge { tick: self.tick() },
            98 => match self.rng.below(3) {
                0 => Action::CheckPast { pick: self.rng.next() },
                1 => Action::Condemn { limit: 1 + self.rng.below(8) as u32 },
                _ => Action::Delete { limit: 1 + self.rng.below(8) as usize },
            },
            97 => Action::CheckNow,
            _ => Action::CheckPast { pick: self.rng.next() },
        }
    }

    /// All that is staged, or some, in several commits, or given up in between.
    fn pack(&mut self) -> Action {
        if self.rng.one_in(2) {
            return Action::Pack(Packing { bytes: 1 << 20, rows: 1000, step: 1000, steps: 1 });
        }
        let (bytes, rows) = (self.rng.below(300) as usize, 1 + self.rng.below(6) as usize);
        let (step, steps) = (1 + self.rng.below(3) as usize, self.rng.below(5) as usize);
        Action::Pack(Packing { bytes, rows, step, steps })
    }

    fn ask(&mut self) -> Action {
        let request = if self.rng.one_in(6) { self.read() } else { self.write() };
        let new_dir = matches!(request, Request::Create { node: NewNode::Dir, .. });
        let keep =
            if new_dir { self.rng.below(self.dirs).max(1) as usize } else { self.file().0.max(1) as usize };
        let scope = if self.scopes && self.rng.one_in(3) { self.slot() } else { 0 };
        let read_only = self.rng.one_in(60);
        Action::Ask { caller: self.caller(), scope, read_only, tick: self.tick(), keep, request }
    }

    fn read(&mut self) -> Request {
        let ino = self.ino();
        match self.rng.below(13) {
            0 | 1 => Request::Lookup { parent: self.dir(), name: self.name() },
            2 => Request::Parent { dir: self.dir() },
            3 => Request::GetAttr { ino },
            4 => Request::ReadDir { dir: self.dir(), after: 0, limit: 10, attrs: true },
            5 => Request::ReadLink { ino: self.file() },
            6 => Request::GetXattr { ino, name: self.xattr_name() },
            7 => Request::ListXattr { ino },
            8 => Request::Slices { ino: self.file(), first: 0, count: 4, staged: true },
            9 => Request::StatFs,
            10 => Request::Access { ino, mask: self.rng.below(8) as u8 },
            11 => Request::Narrowed { dir: self.dir() },
            _ => Request::Open {
                ino: if self.rng.one_in(3) { ino } else { self.file() },
                read: self.rng.one_in(2),
                write: self.rng.one_in(2),
            },
        }
    }

    fn write(&mut self) -> Request {
        match self.rng.below(100) {
            0..28 => self.create(),
            28..34 => Request::Link { ino: self.file(), parent: self.dir(), name: self.name() },
            34..42 => Request::Unlink { parent: self.dir(), name: self.name() },
            42..46 => Request::Rmdir { parent: self.dir(), name: self.name() },
            46..60 => Request::Rename {
                from: self.dir(),
                name: self.name(),
                to: self.dir(),
                new_name: self.name(),
                mode: self.rng.pick(&[
                    RenameMode::Replace,
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                    RenameMode::Whiteout,
                ]),
            },
            60..72 => self.change_attr(),
            72..80 => self.set_xattr(),
            80..83 => Request::RemoveXattr { ino: self.ino(), name: self.xattr_name() },
            _ => self.publish(),
        }
    }

    fn create(&mut self) -> Request {
        let node = match self.rng.below(12) {
            0..5 => NewNode::File,
            5..9 => NewNode::Dir,
            9 => NewNode::Symlink(self.rng.pick(&[Bytes::from_static(b"a/b"), vec![b'x'; 4095].into()])),
            10 => self.rng.pick(&[NewNode::Fifo, NewNode::Socket]),
            _ => self.rng.pick(&[NewNode::Char(0x103), NewNode::Block(0x801)]),
        };
        let file = node == NewNode::File;
        let allowed = if node == NewNode::Dir { 0o1777 } else { 0o7777 };
        Request::Create {
            parent: self.dir(),
            name: self.name(),
            mode: self.mode() & allowed,
            umask: self.rng.pick(&[0, 0o022, 0o077]),
            open: file && self.rng.one_in(3),
            exclusive: !file || self.rng.one_in(2),
            node,
        }
    }

    fn mode(&mut self) -> u16 {
        let special = if self.rng.one_in(3) { self.rng.below(8) as u16 } else { 0 };
        special << 9 | self.rng.pick(&[0o777, 0o777, 0o755, 0o644, 0o770, 0o707, 0o070, 0o000, 0o711])
    }

    fn change_attr(&mut self) -> Request {
        let set = self.set_attr();
        Request::SetAttr { ino: if set.size.is_some() { self.file() } else { self.ino() }, set }
    }

    fn set_attr(&mut self) -> SetAttr {
        let mut set = SetAttr::default();
        let ids = [0, 100, 1000, 1001, 1002];
        match self.rng.below(10) {
            0..3 => set.mode = Some(self.mode()),
            3 | 4 => {
                set.uid = Some(self.rng.pick(&ids)).filter(|_| self.rng.one_in(2));
                set.gid = Some(self.rng.pick(&ids)).filter(|_| self.rng.one_in(2) || set.uid.is_none());
            }
            5..8 => {
                let block = u64::from(BLOCK_SIZE);
                let size = self.rng.below(60);
                set.size = Some(self.rng.pick(&[0, size, size + 30, block + size, block, 1 << 60]));
                set.by_handle = self.rng.one_in(2);
                set.kill_priv = self.rng.one_in(3);
            }
            _ => {
                let times = [None, Some(SetTime::Now), Some(SetTime::At(-5)), Some(SetTime::At(1 << 60))];
                set.mtime = self.rng.pick(&times);
                set.atime = self.rng.pick(&times);
                if (set.mtime, set.atime) == (None, None) {
                    set.atime = Some(SetTime::Now);
                }
            }
        }
        set
    }

    fn xattr_name(&mut self) -> Bytes {
        if self.rng.one_in(2) {
            let pair = TIED_XATTRS[0];
            return Bytes::from_static(self.rng.pick(&pair).as_bytes());
        }
        let name = self.rng.pick(&[
            "user.a",
            TIED_XATTRS[1][0],
            TIED_XATTRS[1][1],
            "trusted.a",
            "security.a",
            "system.posix_acl_access",
            "system.posix_acl_default",
            "other.a",
        ]);
        Bytes::from_static(name.as_bytes())
    }

    fn set_xattr(&mut self) -> Request {
        let ino = self.ino();
        if self.rng.one_in(2) {
            let name = self.rng.pick(&[acl::ACCESS, acl::DEFAULT]);
            let value = if self.rng.one_in(10) { Bytes::new() } else { self.acl().to_value() };
            return Request::SetXattr { ino, name: Bytes::from_static(name), value, mode: XattrMode::Any };
        }
        let name = loop {
            let name = self.xattr_name();
            if name != acl::ACCESS && name != acl::DEFAULT {
                break name;
            }
        };
        let value = vec![self.rng.below(3) as u8; self.rng.below(4) as usize];
        let mode = self.rng.pick(&[XattrMode::Any, XattrMode::Any, XattrMode::Create, XattrMode::Replace]);
        Request::SetXattr { ino, name, value: value.into(), mode }
    }

    fn acl(&mut self) -> Acl {
        let mut perm = || self.rng.pick(&[7u16, 7, 6, 5, 4, 0]);
        let (user_obj, group_obj, other, mask) = (perm(), perm(), perm(), perm());
        let mut list = vec![Ace { tag: acl::USER_OBJ, perm: user_obj, id: u32::MAX }];
        let mut named = false;
        for uid in [1000, 1001, 1002] {
            if self.rng.one_in(3) {
                named = true;
                list.push(Ace { tag: acl::USER, perm: self.rng.below(8) as u16, id: uid });
            }
        }
        list.push(Ace { tag: acl::GROUP_OBJ, perm: group_obj, id: u32::MAX });
        for gid in [100, 1000] {
            if self.rng.one_in(3) {
                named = true;
                list.push(Ace { tag: acl::GROUP, perm: self.rng.below(8) as u16, id: gid });
            }
        }
        if named || self.rng.one_in(4) {
            list.push(Ace { tag: acl::MASK, perm: mask, id: u32::MAX });
        }
        list.push(Ace { tag: acl::OTHER, perm: other, id: u32::MAX });
        if self.rng.one_in(12) {
            let broken = self.rng.below(list.len() as u64) as usize;
            list.remove(broken);
        }
        Acl(list)
    }

    fn slice_id(&mut self) -> SliceId {
        self.next_object += 1;
        SliceId { object: ObjectId { incarnation: 0, session: SessionId(1), n: self.next_object }, index: 0 }
    }

    /// Writes of one publish: short, near the starts and ends of blocks, over one another.
    fn publish(&mut self) -> Request {
        let mut slices = Vec::new();
        let mut end = 0;
        for _ in 0..self.rng.below(4) {
            let block = self.rng.pick(&[0u32, 0, 0, 1, 2]);
            let len = 1 + self.rng.below(40) as u32;
            let low = self.rng.below(60) as u32;
            let offset =
                self.rng.pick(&[low, low, BLOCK_SIZE - len, (BLOCK_SIZE - 20).min(BLOCK_SIZE - len)]);
            slices.push(self.slice(block, offset, len));
            end = end.max(u64::from(block) * u64::from(BLOCK_SIZE) + u64::from(offset + len));
        }
        let further = end + self.rng.below(30);
        Request::Publish {
            ino: self.file(),
            size_min: if slices.is_empty() { None } else { Some(self.rng.pick(&[end, end, further])) },
            slices,
            mtime_ns: self.rng.pick(&[None, Some(i64::MAX), Some(1_000_000_001), Some(-3)]),
            kill_priv: self.rng.one_in(3),
            merge: None,
        }
    }

    fn slice(&mut self, block: u32, offset: u32, len: u32) -> NewSlice {
        let id = self.slice_id();
        let skip = if self.rng.one_in(4) { self.rng.below(8) as u32 } else { 0 };
        let bytes = Bytes::from(object_bytes(id, skip + len + self.rng.below(3) as u32));
        let seal = sealed(id, bytes.len());
        let (place, staged) = match self.rng.below(4) {
            0 => (Place::Hole, None),
            1 => (Place::Inline(seal, bytes), None),
            2 => (Place::Staged(seal), Some(bytes)),
            _ => {
                let mut seal = seal;
                if self.rng.one_in(2) {
                    // Of an object that was published before, or is still to be.
                    seal.id = SliceId { index: self.next_object as u32, ..self.slice_id() };
                    seal.id.object.n = 1 + self.rng.below(self.next_object);
                }
                (Place::Object(seal, 64), None)
            }
        };
        let skip = if place == Place::Hole { 0 } else { skip };
        NewSlice { block, slice: Slice { offset, len, skip, place }, staged }
    }
}

fn sealed(id: SliceId, len: usize) -> Seal {
    Seal { id, codec: Codec::Raw, stored_len: len as u32, full_len: len as u32, crc32c: 0 }
}

/// A slice with its bytes in its row.
pub fn inline(block: u32, offset: u32, bytes: Bytes, id: SliceId) -> NewSlice {
    let len = bytes.len() as u32;
    let place = Place::Inline(sealed(id, bytes.len()), bytes);
    NewSlice { block, slice: Slice { offset, len, skip: 0, place }, staged: None }
}
