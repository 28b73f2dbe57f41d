//! The namespace on an engine and the model beside it, taken through the same actions and compared.

use crate::action::Action;
use crate::client::{Cursor, Note};
use crate::mutate::{Around, Scope};
use crate::pack::Packed;
use crate::query::Reader;
use crate::state::State;
use bytes::Bytes;
use chronofs_core::ops::{Reply, Request, SystemRequest};
use chronofs_core::slice::NewSlice;
use chronofs_core::volume::{Compression, VolumeSpec};
use chronofs_core::{Caller, Errno, Ino, ObjectId, Retention, SessionId, SliceId, Version, VolumeIndex};
use chronofs_engine::memory::Memory;
use chronofs_engine::{Batch, Commit, Engine, Overlay, View};
use chronofs_namespace::{Ctx, SystemCtx, SystemReply};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub const SLOTS: usize = 12;
/// Little, so that rows of most inodes are removed in several steps.
const FREED_MAX: usize = 2;
pub const BLOCK_SIZE: u32 = chronofs_core::volume::BLOCK_SIZE_MIN;
/// The key of the name hash under which the generator's tied names have one hash.
pub const HASH_KEY: [u8; 16] = *b"chronofs-tie-key";

/// What a crash takes back to the last group that was applied.
#[derive(Clone)]
struct Applied {
    past: usize,
    horizon: Version,
    used: BTreeSet<Ino>,
    open: BTreeMap<Ino, u32>,
}

pub struct World {
    pub engine: Memory,
    pub pending: Vec<Commit>,
    applied: Applied,
    pub index: VolumeIndex,
    pub session: SessionId,
    pub spec: VolumeSpec,
    /// Every version, oldest first; the last is the present.
    past: Vec<Arc<State>>,
    used: BTreeSet<Ino>,
    open: BTreeMap<Ino, u32>,
    slots: [Ino; SLOTS],
    pub cursors: [Option<Cursor>; 2],
    pub notes: [Option<Note>; 2],
    pub cookies: BTreeMap<(Ino, Bytes, Ino), u64>,
    pub leases: Vec<(SessionId, Version)>,
    /// Instants that disk snapshots keep: from, and up to, if that is known.
    pub sets: Vec<(u128, Version, Option<Version>)>,
    pub next_set: u128,
    /// What lies before it may be forgotten.
    pub horizon: Version,
    /// Where the sweep goes on.
    pub sweep: Bytes,
    /// Objects that the store has deleted.
    pub deleted: BTreeSet<ObjectId>,
    /// All that was retired before is condemned.
    pub condemned_to: Version,
    pub packed: Packed,
}

pub type Check = Result<(), String>;

macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

pub fn callers() -> Vec<Caller> {
    let caller = |uid, gid, groups: &[u32]| Caller { uid, gid, groups: groups.to_vec() };
    vec![
        Caller::ROOT,
        caller(1000, 1000, &[100]),
        caller(1001, 1001, &[100, 1000]),
        caller(1002, 100, &[]),
        caller(1003, 1003, &[]),
    ]
}

/// The bytes of the object that slice `id` was stored in: every client writes its own pattern.
pub fn object_bytes(id: SliceId, len: u32) -> Vec<u8> {
    (0..len).map(|at| (id.object.n as u8).wrapping_mul(31).wrapping_add(at as u8) | 1).collect()
}

impl World {
    pub fn new(retention: Retention) -> World {
        let spec = VolumeSpec {
            id: uuid::Uuid::from_u128(7),
            name: "model".to_owned(),
            block_size: BLOCK_SIZE,
            compression: Compression::None,
            retention,
            max_bytes: None,
            max_inodes: None,
            hash_key: HASH_KEY,
        };
        let start = Version(1_000_000_000);
        let used = BTreeSet::from([Ino::ROOT]);
        let mut world = World {
            engine: Memory::default(),
            pending: Vec::new(),
            applied: Applied { past: 1, horizon: start, used: used.clone(), open: BTreeMap::new() },
            index: VolumeIndex(0),
            session: SessionId(0),
            spec: spec.clone(),
            past: vec![Arc::new(State::new(start))],
            used,
            open: BTreeMap::new(),
            slots: [Ino::ROOT; SLOTS],
            cursors: [None, None],
            notes: [None, None],
            cookies: BTreeMap::new(),
            leases: Vec::new(),
            sets: Vec::new(),
            next_set: 1,
            horizon: start,
            sweep: Bytes::new(),
            deleted: BTreeSet::new(),
            condemned_to: Version(0),
            packed: Packed::new(),
        };
        match world.system(start, &SystemRequest::CreateVolume(spec)).expect("a new volume") {
            SystemReply::Volume { index, .. } => world.index = index,
            other => panic!("{other:?}"),
        }
        world.apply();
        let open = SystemRequest::OpenSession {
            volume: world.spec.id,
            client: 1,
            at: None,
            read_only: false,
            ttl_ms: 60_000,
            scope: chronofs_core::ops::Scope { token: uuid::Uuid::nil(), root: Ino::ROOT },
        };
        match world.system(Version(start.0 + 1), &open).expect("a session") {
            SystemReply::Session { id, .. } => world.session = id,
            other => panic!("{other:?}"),
        }
        world.unchanged(Version(start.0 + 1));
        world.apply();
        world
    }

    pub fn now(&self) -> &Arc<State> {
        self.past.last().expect("never empty")
    }

    pub fn act(&mut self, action: &Action) -> Check {
        match action {
            Action::Ask { caller, scope, read_only, tick, keep, request } => {
                let scope = self.slots[*scope];
                let request = self.resolved(request);
                if self.names_condemned(&request)? {
                    return Ok(());
                }
                let caller = callers()[*caller].clone();
                match request.mutates() {
                    true => self.mutate(&caller, scope, *read_only, *tick, *keep, &request, None),
                    false => self.ask(&caller, scope, *read_only, None, &request),
                }
            }
            Action::AskPast { caller, pick, request } => {
                let (at, _) = self.instant(*pick);
                let request = self.resolved(request);
                self.ask(&callers()[*caller], Ino::ROOT, true, Some(at), &request)
            }
            Action::Close { slot } => {
                self.close(self.slots[*slot]);
                Ok(())
            }
            Action::Reap { slot, tick } => self.reap(self.slots[*slot], *tick),
            Action::Purge { tick } => self.purge(*tick),
            Action::List { slot, cursor } => {
                self.list(self.slots[*slot], *cursor);
                Ok(())
            }
            Action::Page { cursor, limit, attrs } => self.page(*cursor, *limit, *attrs),
            Action::ReadBlock { slot, block, note } => self.read_block(self.slots[*slot], *block, *note),
            Action::Merge { note, tick, one, id } => self.merge(*note, *tick, *one, *id),
            Action::Quota { bytes, inodes, tick } => self.quota(*bytes, *inodes, *tick),
            Action::Lease { tick } => self.lease(*tick),
            Action::EndLease => self.end_lease(),
            Action::KeepPast { tick } => self.keep_past(*tick),
            Action::Cut => self.cut(),
            Action::LetGo => self.let_go(),
            Action::Crash => {
                self.crash();
                Ok(())
            }
            Action::Apply => {
                self.apply();
                Ok(())
            }
            Action::CheckNow => self.check_tree(None),
            Action::CheckPast { pick } => {
                let (at, _) = self.instant(*pick);
                self.check_tree(Some(at))
            }
            Action::Verify => {
                let faults = self.with_reads(|reads| chronofs_namespace::verify(reads));
                let faults = faults.map_err(|stop| format!("verify: {stop}"))?;
                ensure!(faults.is_empty(), "verify finds {faults:?}");
                Ok(())
            }
            Action::Horizon { tick } => self.move_horizon(*tick),
            Action::Forget { limit } => self.forget(*limit),
            Action::ForgetAll { tick, limit, pick } => self.forget_all(*tick, *limit, *pick),
            Action::Pack(packing) => self.pack(packing),
            Action::Repack { pick, step } => self.repack_one(*pick, *step),
            Action::RepackAll => self.repack_all(),
            Action::Condemn { limit } => self.condemn(*limit).map(drop),
            Action::Delete { limit } => self.delete(*limit).map(drop),
            Action::CollectAll => self.collect_all(),
            Action::Expire { picks, limit } => self.expire(picks, *limit),
        }
    }

    /// A past instant and its state; a leased one or the present when no history is kept.
    pub fn instant(&self, pick: u64) -> (Version, Arc<State>) {
        let last = self.past.len() - 1;
        if self.spec.retention == Retention::None {
            let leased = self.leases.get(pick as usize % (self.leases.len() + 1));
            let at = leased.map_or(self.now().version, |(_, at)| *at);
            return (at, self.state_at(Some(at)));
        }
        let leased = self.leases.get((pick / 8) as usize % (self.leases.len() + 1));
        if let Some((_, at)) = leased.filter(|_| pick.is_multiple_of(8)) {
            return (*at, self.state_at(Some(*at)));
        }
        let first = self.past.partition_point(|state| state.version <= self.horizon) - 1;
        let n = first + (pick / 4) as usize % (last + 1 - first);
        // An instant between two commits shows the earlier one.
        let until = self.past.get(n + 1).map_or(u64::MAX, |next| next.version.0);
        let at = Version((self.past[n].version.0 + pick % 4).min(until - 1)).max(self.horizon);
        (at, self.past[n].clone())
    }

    pub fn state_at(&self, at: Option<Version>) -> Arc<State> {
        let Some(at) = at else { return self.now().clone() };
        let next = self.past.partition_point(|state| state.version <= at);
        self.past[next - 1].clone()
    }

    /// Runs `read` on everything decided so far.
    pub fn with_reads<T>(&self, read: impl FnOnce(&Overlay<&dyn View>) -> T) -> T {
        let view = self.engine.view();
        let mut overlay = Overlay::new(&*view);
        self.pending.iter().for_each(|commit| overlay.push(&commit.batch));
        read(&overlay)
    }

    pub fn system(&mut self, version: Version, request: &SystemRequest) -> Result<SystemReply, String> {
        let is_open = |ino| self.open.contains_key(&ino);
        // At times it is known, and in the other half of them looked for.
        let index = self.index;
        let place = |_| version.0.is_multiple_of(2).then_some(index);
        let ctx = SystemCtx { version, is_open: &is_open, freed_max: FREED_MAX, place: &place };
        let outcome = self
            .with_reads(|reads| chronofs_namespace::system(reads, &ctx, request))
            .map_err(|stop| format!("{request:?}: {stop}"))?;
        let reply = outcome.reply.map_err(|error| format!("{request:?}: {error}"))?;
        self.pending.push(Commit { version, tag: Bytes::new(), batch: outcome.batch });
        Ok(reply)
    }

    pub fn query(
        &self,
        caller: &Caller,
        root: Ino,
        read_only: bool,
        at: Option<Version>,
        request: &Request,
    ) -> Result<Result<Reply, Errno>, String> {
        let is_open = |ino| self.open.contains_key(&ino);
        let ctx = Ctx {
            volume: self.index,
            version: self.now().version,
            at,
            caller: caller.clone(),
            session: self.session,
            root,
            read_only,
            is_open: &is_open,
            holds: &is_open,
            freed_max: FREED_MAX,
            made: None,
        };
        self.with_reads(|reads| chronofs_namespace::query(reads, &ctx, request))
            .map_err(|stop| format!("{request:?} at {at:?}: {stop}"))
    }

    #[allow(clippy::too_many_arguments)]
    pub fn mutate(
        &mut self,
        caller: &Caller,
        root: Ino,
        read_only: bool,
        tick: u64,
        keep: usize,
        request: &Request,
        merged: Option<(&BTreeMap<u64, u8>, Version)>,
    ) -> Check {
        let version = Version(self.now().version.0 + tick);
        let open = self.open.clone();
        let is_open = |ino| open.contains_key(&ino);
        let ctx = Ctx {
            volume: self.index,
            version,
            at: None,
            caller: caller.clone(),
            session: self.session,
            root,
            read_only,
            is_open: &is_open,
            holds: &is_open,
            freed_max: FREED_MAX,
            made: None,
        };
        let outcome = self
            .with_reads(|reads| chronofs_namespace::step(reads, &ctx, request))
            .map_err(|stop| format!("{request:?}: {stop}"))?;
        self.pending.push(Commit { version, tag: Bytes::new(), batch: outcome.batch.clone() });
        let made = self.inode_made(request, &outcome.reply)?;
        let mut next = State::clone(self.now());
        let bytes_of = |new: &NewSlice| self.shown(&new.slice, new.staged.as_ref());
        let around = Around {
            caller,
            now: version,
            scope: Scope { root, is_open: &is_open },
            read_only,
            block_size: u64::from(BLOCK_SIZE),
            given: &|| made.unwrap_or(Ino(u64::MAX)),
            bytes_of: &bytes_of,
            merged,
            merge_refused: outcome.reply == Err(Errno::EAGAIN),
        };
        let expected = next.mutate(&around, request);
        self.same_reply(request, &expected, &outcome.reply, &next, false)?;
        if expected.is_err() {
            self.pending.pop();
            ensure!(outcome.batch == Batch::default(), "{request:?}: refused, but its batch is not empty");
            return Ok(());
        }
        let now = self.now().clone();
        for ino in next.nodes.keys().filter(|ino| !now.nodes.contains_key(ino)) {
            let first = self.used.insert(*ino);
            ensure!(first, "{ino:?} was given before");
        }
        self.past.push(Arc::new(next));
        if let Ok(Reply::Attr(attr) | Reply::Opened { attr, .. }) = &outcome.reply
            && matches!(request, Request::Create { .. })
        {
            self.slots[keep] = attr.ino;
        }
        if let (Request::Create { .. }, Ok(Reply::Opened { attr, .. })) = (request, &outcome.reply) {
            *self.open.entry(attr.ino).or_default() += 1;
        }
        self.keep_stable();
        Ok(())
    }

    /// The number of the inode that a request has made, if it has.
    fn inode_made(&self, request: &Request, reply: &Result<Reply, Errno>) -> Result<Option<Ino>, String> {
        match (request, reply) {
            (Request::Create { .. }, Ok(Reply::Attr(attr) | Reply::Opened { attr, .. })) => {
                Ok(Some(attr.ino))
            }
            (Request::Rename { from, name, .. }, Ok(_)) => {
                let lookup = Request::Lookup { parent: *from, name: name.clone() };
                match self.query(&Caller::ROOT, Ino::ROOT, false, None, &lookup)? {
                    Ok(Reply::Attr(attr)) => Ok(Some(attr.ino)),
                    _ => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }

    fn ask(
        &mut self,
        caller: &Caller,
        root: Ino,
        read_only: bool,
        at: Option<Version>,
        request: &Request,
    ) -> Check {
        let got = self.query(caller, root, read_only, at, request)?;
        let state = self.state_at(at);
        let is_open = |ino| self.open.contains_key(&ino);
        let reader = Reader {
            state: &state,
            present: at.map(|_| &**self.now()),
            caller,
            scope: Scope { root, is_open: &is_open },
            read_only,
        };
        // The counters that statfs shows have no history.
        if at.is_some() && *request == Request::StatFs {
            return Ok(());
        }
        let expected = reader.query(request);
        self.same_reply(request, &expected, &got, &state, at.is_some())?;
        if let (Request::Open { ino, .. }, None, Ok(_)) = (request, at, &got) {
            *self.open.entry(*ino).or_default() += 1;
        }
        Ok(())
    }

    fn close(&mut self, ino: Ino) {
        if let Some(count) = self.open.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&ino);
            }
        }
    }

    fn reap(&mut self, ino: Ino, tick: u64) -> Check {
        let version = Version(self.now().version.0 + tick);
        self.system(version, &SystemRequest::Reap { volume: self.spec.id, ino })?;
        let mut next = State::clone(self.now());
        next.version = version;
        next.reap(ino, self.open.contains_key(&ino));
        self.past.push(Arc::new(next));
        Ok(())
    }

    fn purge(&mut self, tick: u64) -> Check {
        let found = self.with_reads(|reads| chronofs_namespace::first_purge(reads, self.index));
        let Some(ino) = found.map_err(|stop| format!("first_purge: {stop}"))? else { return Ok(()) };
        let version = Version(self.now().version.0 + tick);
        self.system(version, &SystemRequest::Purge { volume: self.spec.id, ino })?;
        self.unchanged(version);
        Ok(())
    }

    fn quota(&mut self, bytes: Option<u64>, inodes: Option<u64>, tick: u64) -> Check {
        let version = Version(self.now().version.0 + tick);
        self.spec.max_bytes = bytes;
        self.spec.max_inodes = inodes;
        self.system(version, &SystemRequest::UpdateVolume(self.spec.clone()))?;
        self.pass_window(version);
        let mut next = State::clone(self.now());
        (next.version, next.max_bytes, next.max_inodes) = (version, bytes, inodes);
        self.past.push(Arc::new(next));
        Ok(())
    }

    /// A commit that changes nothing that the model knows.
    pub fn unchanged(&mut self, version: Version) {
        let mut next = State::clone(self.now());
        next.version = version;
        self.past.push(Arc::new(next));
    }

    pub fn apply(&mut self) {
        self.engine.apply(std::mem::take(&mut self.pending)).expect("memory takes all");
        self.applied = Applied {
            past: self.past.len(),
            horizon: self.horizon,
            used: self.used.clone(),
            open: self.open.clone(),
        };
    }

    fn crash(&mut self) {
        self.pending.clear();
        self.past.truncate(self.applied.past);
        self.horizon = self.applied.horizon;
        self.used = self.applied.used.clone();
        self.open = self.applied.open.clone();
        self.spec.max_bytes = self.now().max_bytes;
        self.spec.max_inodes = self.now().max_inodes;
        self.cursors = [None, None];
        self.notes = [None, None];
        self.cookies.clear();
        self.condemned_to = Version(0);
        // A lease that came or went since then did not; the ones that went are not asked for again.
        let last = self.now().version;
        self.leases.retain(|(_, at)| *at <= last);
    }

    fn resolved(&self, request: &Request) -> Request {
        let mut request = request.clone();
        let slot = |ino: &mut Ino| *ino = self.slots[ino.0 as usize];
        match &mut request {
            Request::Lookup { parent: ino, .. }
            | Request::Parent { dir: ino }
            | Request::Narrowed { dir: ino }
            | Request::GetAttr { ino }
            | Request::ReadDir { dir: ino, .. }
            | Request::ReadLink { ino }
            | Request::GetXattr { ino, .. }
            | Request::ListXattr { ino }
            | Request::Slices { ino, .. }
            | Request::Access { ino, .. }
            | Request::Open { ino, .. }
            | Request::Create { parent: ino, .. }
            | Request::Unlink { parent: ino, .. }
            | Request::Rmdir { parent: ino, .. }
            | Request::SetAttr { ino, .. }
            | Request::SetXattr { ino, .. }
            | Request::RemoveXattr { ino, .. }
            | Request::Publish { ino, .. } => slot(ino),
            Request::Link { ino, parent, .. } => {
                slot(ino);
                slot(parent);
            }
            Request::Rename { from, to, .. } => {
                slot(from);
                slot(to);
            }
            _ => {}
        }
        request
    }
}
