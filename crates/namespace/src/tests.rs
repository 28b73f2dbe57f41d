//! Behaviours, one test each. After every mutation all invariants are checked.

mod access;
mod collect;
mod content;
mod large;
mod leave;
mod mended;
mod named;
mod names;
mod past;
mod rename;
mod sealed;
mod spent;
mod store;
mod verified;
mod xattrs;

use crate::{Ctx, FREED_MAX, SystemCtx, SystemError, SystemReply, query, step, system, verify};
use bytes::Bytes;
use chronofs_core::ops::{NewNode, RenameMode, Reply, Request, Scope, SystemRequest};
use chronofs_core::slice::{Codec, NewSlice, Place, PlacedSlice, Seal, Slice};
use chronofs_core::volume::{BLOCK_SIZE_MIN, Compression, VolumeSpec};
use chronofs_core::{
    Attr, Caller, Errno, Ino, Name, ObjectId, Retention, SessionId, SetAttr, SliceId, Version, VolumeIndex,
};
use chronofs_engine::Commit;
use chronofs_engine::memory::State;
use std::collections::BTreeSet;
use uuid::Uuid;

pub(crate) const ROOT: Caller = Caller::ROOT;
pub(crate) const BLOCK: u32 = BLOCK_SIZE_MIN;
pub(crate) const VOLUME: VolumeIndex = VolumeIndex(1);

pub(crate) fn user(uid: u32) -> Caller {
    Caller { uid, gid: uid, groups: Vec::new() }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

pub(crate) fn spec() -> VolumeSpec {
    VolumeSpec {
        id: Uuid::from_u128(7),
        name: "v".to_owned(),
        block_size: BLOCK,
        compression: Compression::None,
        retention: Retention::Seconds(3600),
        max_bytes: None,
        max_inodes: None,
        hash_key: [3; 16],
    }
}

/// A store in memory with one volume and one session.
pub(crate) struct Fs {
    pub(crate) state: State,
    pub(crate) version: u64,
    pub(crate) open: BTreeSet<Ino>,
    pub(crate) session: SessionId,
    pub(crate) root: Ino,
    pub(crate) next_slice: u64,
}

/// A token that is confined to nothing.
pub(crate) const WHOLE: Scope = Scope { token: Uuid::nil(), root: Ino::ROOT };

impl Fs {
    pub(crate) fn new() -> Fs {
        Fs::with(spec())
    }

    pub(crate) fn with(spec: VolumeSpec) -> Fs {
        let mut fs = Fs {
            state: State::default(),
            version: 1_000_000_000_000,
            open: BTreeSet::new(),
            session: SessionId(0),
            root: Ino::ROOT,
            next_slice: 0,
        };
        let id = spec.id;
        fs.system(SystemRequest::CreateVolume(spec)).unwrap();
        let open = SystemRequest::OpenSession {
            volume: id,
            client: 1,
            at: None,
            read_only: false,
            ttl_ms: 1000,
            scope: WHOLE,
        };
        match fs.system(open).unwrap() {
            SystemReply::Session { id, .. } => fs.session = id,
            other => panic!("{other:?}"),
        }
        fs
    }

    pub(crate) fn now(&self) -> Version {
        Version(self.version)
    }

    pub(crate) fn commit(&mut self, batch: chronofs_engine::Batch) {
        self.state.apply(&Commit { version: self.now(), tag: Bytes::new(), batch });
        let faults = verify(&self.state).unwrap();
        assert!(faults.is_empty(), "{}", faults.iter().map(|f| format!("{f}\n")).collect::<String>());
    }

    pub(crate) fn system(&mut self, request: SystemRequest) -> Result<SystemReply, SystemError> {
        self.version += 10;
        let open = self.open.clone();
        let is_open = |ino| open.contains(&ino);
        let ctx =
            SystemCtx { version: self.now(), is_open: &is_open, freed_max: FREED_MAX, place: &|_| None };
        let outcome = system(&self.state, &ctx, &request).unwrap();
        if outcome.reply.is_err() {
            assert_eq!(outcome.batch.0, [], "a refusal changes nothing");
        }
        self.commit(outcome.batch);
        outcome.reply
    }

    /// Decides a mutation or answers a read as `caller`.
    pub(crate) fn ask(&mut self, caller: &Caller, request: Request) -> Result<Reply, Errno> {
        if !request.mutates() {
            return self.read(caller, None, &request);
        }
        self.version += 10;
        let open = self.open.clone();
        let is_open = |ino| open.contains(&ino);
        let ctx = self.ctx(caller, None, &is_open);
        let outcome = step(&self.state, &ctx, &request).unwrap();
        let again = step(&self.state, &ctx, &request).unwrap();
        assert_eq!(outcome, again, "the same request gives the same bytes");
        if outcome.reply.is_err() {
            assert_eq!(outcome.batch.0, [], "a refusal changes nothing");
        }
        self.commit(outcome.batch);
        outcome.reply
    }

    pub(crate) fn ctx<'a>(
        &self,
        caller: &Caller,
        at: Option<Version>,
        is_open: &'a dyn Fn(Ino) -> bool,
    ) -> Ctx<'a> {
        Ctx {
            volume: VOLUME,
            version: self.now(),
            at,
            caller: caller.clone(),
            session: self.session,
            root: self.root,
            read_only: false,
            is_open,
            holds: is_open,
            freed_max: FREED_MAX,
            made: None,
        }
    }

    pub(crate) fn read(
        &self,
        caller: &Caller,
        at: Option<Version>,
        request: &Request,
    ) -> Result<Reply, Errno> {
        let is_open = |ino| self.open.contains(&ino);
        query(&self.state, &self.ctx(caller, at, &is_open), request).unwrap()
    }

    pub(crate) fn make_as(
        &mut self,
        caller: &Caller,
        parent: Ino,
        text: &str,
        node: NewNode,
        mode: u16,
    ) -> Result<Attr, Errno> {
        let request =
            Request::Create { parent, name: name(text), node, mode, umask: 0, open: false, exclusive: true };
        self.ask(caller, request).map(attr_in)
    }

    pub(crate) fn file(&mut self, parent: Ino, text: &str) -> Ino {
        self.make_as(&ROOT, parent, text, NewNode::File, 0o644).unwrap().ino
    }

    pub(crate) fn dir(&mut self, parent: Ino, text: &str) -> Ino {
        self.make_as(&ROOT, parent, text, NewNode::Dir, 0o755).unwrap().ino
    }

    pub(crate) fn attr(&self, ino: Ino) -> Attr {
        attr_in(self.read(&ROOT, None, &Request::GetAttr { ino }).unwrap())
    }

    pub(crate) fn lookup(&self, parent: Ino, text: &str) -> Result<Ino, Errno> {
        self.lookup_at(None, parent, text)
    }

    pub(crate) fn lookup_at(&self, at: Option<Version>, parent: Ino, text: &str) -> Result<Ino, Errno> {
        self.read(&ROOT, at, &Request::Lookup { parent, name: name(text) }).map(|reply| attr_in(reply).ino)
    }

    pub(crate) fn link(&mut self, ino: Ino, parent: Ino, text: &str) -> Result<Reply, Errno> {
        self.ask(&ROOT, Request::Link { ino, parent, name: name(text) })
    }

    pub(crate) fn unlink(&mut self, caller: &Caller, parent: Ino, text: &str) -> Result<Reply, Errno> {
        self.ask(caller, Request::Unlink { parent, name: name(text) })
    }

    pub(crate) fn rmdir(&mut self, parent: Ino, text: &str) -> Result<Reply, Errno> {
        self.ask(&ROOT, Request::Rmdir { parent, name: name(text) })
    }

    pub(crate) fn rename(&mut self, from: (Ino, &str), to: (Ino, &str)) -> Result<Reply, Errno> {
        self.rename_as(&ROOT, from, to, RenameMode::Replace)
    }

    pub(crate) fn rename_as(
        &mut self,
        caller: &Caller,
        from: (Ino, &str),
        to: (Ino, &str),
        mode: RenameMode,
    ) -> Result<Reply, Errno> {
        let (old, new) = (name(from.1), name(to.1));
        self.ask(caller, Request::Rename { from: from.0, name: old, to: to.0, new_name: new, mode })
    }

    pub(crate) fn set(&mut self, caller: &Caller, ino: Ino, set: SetAttr) -> Result<Attr, Errno> {
        self.ask(caller, Request::SetAttr { ino, set }).map(attr_in)
    }

    pub(crate) fn chmod(&mut self, caller: &Caller, ino: Ino, mode: u16) -> Result<Attr, Errno> {
        self.set(caller, ino, SetAttr { mode: Some(mode), ..SetAttr::default() })
    }

    pub(crate) fn chown(&mut self, caller: &Caller, ino: Ino, uid: u32, gid: u32) -> Result<Attr, Errno> {
        self.set(caller, ino, SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() })
    }

    pub(crate) fn truncate(&mut self, ino: Ino, size: u64) -> Result<Attr, Errno> {
        self.set(&ROOT, ino, SetAttr { size: Some(size), ..SetAttr::default() })
    }

    /// Names of a directory, in the order of cookies, read `limit` at a time.
    pub(crate) fn list(&self, at: Option<Version>, dir: Ino, limit: u32) -> Result<Vec<String>, Errno> {
        let mut names = Vec::new();
        let mut after = 0;
        loop {
            let request = Request::ReadDir { dir, after, limit, attrs: false };
            let Reply::Entries { entries, end } = self.read(&ROOT, at, &request)? else { panic!() };
            if let Some(last) = entries.last() {
                after = last.cookie;
            }
            names.extend(entries.into_iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
            if end {
                return Ok(names);
            }
        }
    }

    pub(crate) fn list_cookies(&self, dir: Ino) -> Vec<u64> {
        let request = Request::ReadDir { dir, after: 0, limit: 1000, attrs: false };
        match self.read(&ROOT, None, &request).unwrap() {
            Reply::Entries { entries, .. } => entries.iter().map(|entry| entry.cookie).collect(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn seal(&mut self, len: u32) -> Seal {
        self.next_slice += 1;
        let object = ObjectId { incarnation: 0, session: self.session, n: self.next_slice };
        let id = SliceId { object, index: 0 };
        Seal { id, codec: Codec::Raw, stored_len: len, full_len: len, crc32c: 1 }
    }

    /// A slice of `bytes` at `offset` of a block: inline if short, else staged.
    pub(crate) fn slice(&mut self, block: u32, offset: u32, bytes: &[u8]) -> NewSlice {
        let len = bytes.len() as u32;
        let seal = self.seal(len);
        let bytes = Bytes::copy_from_slice(bytes);
        let (place, staged) =
            if len <= 8 { (Place::Inline(seal, bytes), None) } else { (Place::Staged(seal), Some(bytes)) };
        NewSlice { block, slice: Slice { offset, len, skip: 0, place }, staged }
    }

    pub(crate) fn publish(&mut self, ino: Ino, slices: Vec<NewSlice>) -> Result<Attr, Errno> {
        let request =
            Request::Publish { ino, slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None };
        self.ask(&ROOT, request).map(attr_in)
    }

    pub(crate) fn write(&mut self, ino: Ino, offset: u32, bytes: &[u8]) -> Attr {
        let slice = self.slice(offset / BLOCK, offset % BLOCK, bytes);
        self.publish(ino, vec![slice]).unwrap()
    }

    pub(crate) fn slices(&self, at: Option<Version>, ino: Ino) -> Vec<PlacedSlice> {
        let request = Request::Slices { ino, first: 0, count: u32::MAX, staged: true };
        match self.read(&ROOT, at, &request).unwrap() {
            Reply::Slices(slices) => slices,
            other => panic!("{other:?}"),
        }
    }

    /// The first `limit` bytes of a file as its slices show them.
    pub(crate) fn bytes(&self, at: Option<Version>, ino: Ino, limit: usize) -> Vec<u8> {
        let attr = attr_in(self.read(&ROOT, at, &Request::GetAttr { ino }).unwrap());
        let mut content = vec![0; limit.min(attr.size as usize)];
        for placed in self.slices(at, ino) {
            let slice = placed.slice;
            let stored = match &slice.place {
                Place::Inline(_, bytes) => bytes.to_vec(),
                Place::Staged(_) => placed.staged.unwrap().to_vec(),
                Place::Hole => vec![0; (slice.skip + slice.len) as usize],
                Place::Object(..) | Place::Moved(..) => panic!("no objects in these tests"),
            };
            let start = (u64::from(placed.key.block) * u64::from(BLOCK) + u64::from(slice.offset)) as usize;
            for n in 0..slice.len as usize {
                if let Some(byte) = content.get_mut(start + n) {
                    *byte = stored[slice.skip as usize + n];
                }
            }
        }
        content
    }
}

pub(crate) fn attr_in(reply: Reply) -> Attr {
    match reply {
        Reply::Attr(attr) | Reply::Opened { attr, .. } => attr,
        other => panic!("{other:?}"),
    }
}
