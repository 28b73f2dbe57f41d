//! A metadata server and an object store in memory that fail and dawdle by seed, for the tests of the data path.

use super::lock;
use super::meta::{Made, Meta, ParkedAt, Publish, PublishError, SliceList};
use crate::testing;
use bytes::Bytes;
use chronofs_blocks::layout::{Shows, layout};
use chronofs_blocks::name::parse_object_name;
use chronofs_blocks::{ObjectPort, ShownBy, StoreError};
use chronofs_core::slice::{Place, PlacedSlice, SliceKey};
use chronofs_core::{Attr, Errno, Ino, ObjectId, SessionId, SliceId, Version};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// How many cases a property test runs: `CHRONOFS_CASES`, else `default`.
pub(super) fn cases(default: u32) -> u32 {
    std::env::var("CHRONOFS_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

pub(super) const INO: Ino = Ino(42);
/// Where what was written to it goes when it is lost, and what is said of that.
pub(super) const PARKED: Ino = Ino(43);
const REPORT: Ino = Ino(44);
pub(super) const VOLUME: Uuid = Uuid::from_u128(1);
/// More slices than this are too many for one reply.
const SLICES_PER_REPLY_MAX: usize = 100;
/// A block with so many slices takes no more.
pub(super) const SLICES_PER_BLOCK_CAP: usize = 40;

/// Random numbers by seed.
#[derive(Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }
}

/// When and how the world fails.
#[derive(Debug)]
pub(super) struct Faults {
    rng: Mutex<Rng>,
    /// One call in this many fails; 0: none.
    one_in: Mutex<u64>,
    delay_ms_max: u64,
}

impl Faults {
    pub(super) fn new(seed: u64, one_in: u64, delay_ms_max: u64) -> Arc<Self> {
        Arc::new(Faults { rng: Mutex::new(Rng::new(seed)), one_in: Mutex::new(one_in), delay_ms_max })
    }

    pub(super) fn heal(&self) {
        *lock(&self.one_in) = 0;
    }

    async fn delay(&self) {
        let ms = lock(&self.rng).below(self.delay_ms_max + 1);
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    fn fails(&self) -> bool {
        let one_in = *lock(&self.one_in);
        lock(&self.rng).one_in(one_in)
    }
}

#[derive(Clone, Debug, Default)]
struct Inner {
    version: u64,
    size: u64,
    mtime_ns: i64,
    data_version: u64,
    block_size: u32,
    slices: Vec<PlacedSlice>,
    staged: HashMap<SliceId, Bytes>,
    moved: HashMap<SliceId, (ObjectId, u64)>,
    packs: u64,
    granted: u64,
    /// The one session whose ids are taken, if only one.
    session: Option<SessionId>,
    merges: u64,
    /// How often slices were asked for.
    asked: u64,
    /// The most bytes that are no holes.
    max_bytes: Option<u64>,
    /// The answer to every publish, if not what is right.
    refuse: Option<PublishError>,
    /// The next publish is done, and its answer is lost.
    unanswered: bool,
    boot: u64,
    /// How often something was lost.
    lost: u64,
    /// What survives when the power is cut, as soon as it was said of a slice that it is not staged.
    survives: Option<Box<Inner>>,
    /// The file is not there any more; nothing can be parked so many times.
    gone: Option<u32>,
    /// How often it was put back from a copy.
    restores: u64,
    /// Files that were made for what is parked.
    made: u32,
    /// What was said to be parked.
    parked: Vec<(Ino, String, u64)>,
    /// Bytes of the report.
    reported: u64,
}

impl Inner {
    fn attr(&self) -> Attr {
        let (mtime_ns, data_version) = (self.mtime_ns, Version(self.data_version));
        Attr { size: self.size, mtime_ns, data_version, ..testing::attr(INO.0) }
    }

    /// Shows a slice that was packed, or repacked, where it lies.
    fn show_moved(&self, placed: &mut PlacedSlice) {
        if let Place::Staged(seal) | Place::Object(seal, _) = placed.slice.place
            && let Some(&(object, at)) = self.moved.get(&seal.id)
        {
            placed.slice.place = Place::Moved(seal, object, at);
        }
    }

    fn allocated(&self) -> u64 {
        let blocks: BTreeSet<u32> = self.slices.iter().map(|placed| placed.key.block).collect();
        let of_block = |block: u32| {
            let mut slices: Vec<_> =
                self.slices.iter().filter(|placed| placed.key.block == block).cloned().collect();
            slices.sort_by_key(|placed| placed.key);
            let segments = layout(&slices, self.block_size);
            segments.iter().filter(|s| s.shows != Shows::Hole).map(|s| u64::from(s.len)).sum::<u64>()
        };
        blocks.into_iter().map(of_block).sum()
    }

    fn apply(&mut self, publish: Publish) -> Result<(), Errno> {
        let Some(max) = self.max_bytes else { return self.lay(publish) };
        let before = self.clone();
        self.lay(publish)?;
        let after = self.allocated();
        if after > before.allocated() && after > max {
            *self = before;
            return Err(Errno::EDQUOT);
        }
        Ok(())
    }

    fn lay(&mut self, publish: Publish) -> Result<(), Errno> {
        if let Some(merge) = &publish.merge {
            let newest = self.slices.iter().filter(|p| p.key.block == merge.block).map(|p| p.key).max();
            if newest != Some(merge.newest) {
                return Err(Errno::EAGAIN);
            }
            self.slices.retain(|placed| placed.key.block != merge.block);
            self.merges += 1;
        }
        let strange = |id: &SliceId| self.session.is_some_and(|session| id.object.session != session);
        if publish.slices.iter().filter_map(|new| new.slice.place.seal()).any(|seal| strange(&seal.id)) {
            return Err(Errno::EINVAL);
        }
        let of_block = |block| self.slices.iter().filter(|placed| placed.key.block == block).count();
        if publish.slices.iter().any(|new| of_block(new.block) >= SLICES_PER_BLOCK_CAP) {
            return Err(Errno::EBUSY);
        }
        self.version += 1;
        for (new, n) in publish.slices.into_iter().zip(0..) {
            assert!(new.slice.offset + new.slice.len <= self.block_size && new.slice.len > 0, "{new:?}");
            if let Place::Staged(seal) = &new.slice.place {
                let stored = new.staged.clone().expect("a staged slice brings its bytes");
                assert!(self.staged.insert(seal.id, stored).is_none(), "an id is used twice");
            }
            let key = SliceKey { block: new.block, version: Version(self.version), n };
            self.slices.push(PlacedSlice { key, slice: new.slice, staged: None });
        }
        if publish.merge.is_none() {
            self.data_version = self.version;
            self.size = self.size.max(publish.size_min.unwrap_or(0));
            self.mtime_ns = publish.mtime_ns.unwrap_or(self.mtime_ns);
        }
        Ok(())
    }
}

/// What a metadata server has on its disk.
pub(super) struct Survives(Inner);

/// A metadata server with one file.
#[derive(Debug)]
pub(super) struct MemoryMeta {
    inner: Mutex<Inner>,
    faults: Arc<Faults>,
    exclusive: bool,
}

impl MemoryMeta {
    pub(super) fn new(faults: Arc<Faults>, exclusive: bool, block_size: u32) -> Arc<Self> {
        let inner = Inner { block_size, version: 1, data_version: 1, granted: 100, ..Inner::default() };
        Arc::new(MemoryMeta { inner: Mutex::new(inner), faults, exclusive })
    }

    pub(super) fn attr(&self) -> Attr {
        lock(&self.inner).attr()
    }

    pub(super) fn merges(&self) -> u64 {
        lock(&self.inner).merges
    }

    pub(super) fn asked(&self) -> u64 {
        lock(&self.inner).asked
    }

    pub(super) fn all_slices(&self) -> Vec<PlacedSlice> {
        let inner = lock(&self.inner);
        let mut slices = inner.slices.clone();
        slices.iter_mut().for_each(|placed| inner.show_moved(placed));
        slices
    }

    /// Takes away all but the newest slice.
    pub(super) fn drop_covered(&self) {
        let mut inner = lock(&self.inner);
        let newest = inner.slices.iter().map(|placed| placed.key).max();
        inner.slices.retain(|placed| Some(placed.key) == newest);
    }

    /// From now on there is room for so many bytes more.
    pub(super) fn leave_room(&self, bytes: u64) {
        let mut inner = lock(&self.inner);
        inner.max_bytes = Some(inner.allocated() + bytes);
    }

    /// Moves the bytes of every staged slice into an object of the server's.
    pub(super) fn pack(&self, port: &MemoryPort) {
        let mut inner = lock(&self.inner);
        inner.packs += 1;
        let object = ObjectId { incarnation: 1, session: SessionId::SERVER, n: inner.packs };
        let mut packed = Vec::new();
        for (id, stored) in std::mem::take(&mut inner.staged) {
            inner.moved.insert(id, (object, packed.len() as u64));
            packed.extend_from_slice(&stored);
        }
        let name = chronofs_blocks::object_name(VOLUME, object);
        lock(&port.objects).insert(name, packed.into());
    }

    /// Moves the bytes of every slice in an object into a new one, and removes the old ones.
    pub(super) fn repack(&self, port: &MemoryPort) {
        let mut inner = lock(&self.inner);
        inner.packs += 1;
        let object = ObjectId { incarnation: 1, session: SessionId::SERVER, n: inner.packs };
        let (mut packed, mut moved, mut objects) = (Vec::new(), Vec::new(), lock(&port.objects));
        for mut placed in inner.slices.clone() {
            inner.show_moved(&mut placed);
            let (seal, from, at) = match placed.slice.place {
                Place::Object(seal, at) => (seal, seal.id.object, at as usize),
                Place::Moved(seal, from, at) => (seal, from, at as usize),
                _ => continue,
            };
            let stored = &objects[&chronofs_blocks::object_name(VOLUME, from)];
            moved.push((seal.id, (object, packed.len() as u64)));
            packed.extend_from_slice(&stored[at..at + seal.stored_len as usize]);
        }
        objects.clear();
        objects.insert(chronofs_blocks::object_name(VOLUME, object), packed.into());
        inner.moved.extend(moved);
    }

    pub(super) fn refuse(&self, error: Option<PublishError>) {
        lock(&self.inner).refuse = error;
    }

    /// The next publish is done, and the server refuses the mount before its answer has come.
    pub(super) fn lose_next_answer(&self) {
        lock(&self.inner).unanswered = true;
    }

    /// What would be lost with the power from now on.
    pub(super) fn durable(&self) -> Survives {
        Survives(lock(&self.inner).clone())
    }

    /// The power is cut and the server starts anew; it gives no version twice. Whether the mount is told that answered
    /// calls are lost.
    pub(super) fn restart(&self, survives: &Survives, told: bool) {
        let mut inner = lock(&self.inner);
        let (version, boot, lost) = (inner.version + 1, inner.boot + 1, inner.lost + u64::from(told));
        *inner = Inner { version, boot, lost, granted: inner.granted, ..survives.0.clone() };
    }

    /// The same, without a word, when it was said next of a slice that it is not staged.
    pub(super) fn restart_when_missed(&self, survives: Survives) {
        lock(&self.inner).survives = Some(Box::new(survives.0));
    }

    /// The server is put back from a copy that is older than the file; at first nothing can be parked.
    pub(super) fn restore(&self, fails: u32) {
        let mut inner = lock(&self.inner);
        let Inner { version, boot, granted, block_size, restores, .. } = *inner;
        let (boot, restores, gone) = (boot + 1, restores + 1, Some(fails));
        *inner = Inner { version, boot, granted, block_size, gone, restores, ..Inner::default() };
    }

    /// It is put back from one that has the file as it is.
    pub(super) fn restore_with_it(&self) {
        let mut inner = lock(&self.inner);
        (inner.boot, inner.restores) = (inner.boot + 1, inner.restores + 1);
    }

    /// It goes on at versions far below those that it gave before, and is not said to run anew.
    pub(super) fn set_back(&self) {
        let mut inner = lock(&self.inner);
        (inner.version, inner.data_version) = (1, 1);
    }

    /// Somebody removes the file.
    pub(super) fn remove(&self) {
        lock(&self.inner).gone = Some(0);
    }

    /// How many files were made for what is parked.
    pub(super) fn made(&self) -> u32 {
        lock(&self.inner).made
    }

    /// What was said to be parked, and how long the report is.
    pub(super) fn parked_there(&self) -> (Vec<(Ino, String, u64)>, u64) {
        let inner = lock(&self.inner);
        (inner.parked.clone(), inner.reported)
    }

    pub(super) fn take_only(&self, session: SessionId) {
        lock(&self.inner).session = Some(session);
    }

    /// SetAttr of the size.
    pub(super) async fn truncate(&self, size: u64) -> Result<Attr, Errno> {
        self.faults.delay().await;
        let attr = {
            let mut inner = lock(&self.inner);
            inner.version += 1;
            inner.data_version = inner.version;
            inner.size = size;
            let block_size = u64::from(inner.block_size);
            inner.slices.retain_mut(|placed| {
                let start = u64::from(placed.key.block) * block_size + u64::from(placed.slice.offset);
                placed.slice.len = u64::from(placed.slice.len).min(size.saturating_sub(start)) as u32;
                placed.slice.len > 0
            });
            inner.attr()
        };
        self.faults.delay().await;
        Ok(attr)
    }
}

impl Meta for MemoryMeta {
    async fn attributes(&self, _: Ino) -> Result<Attr, Errno> {
        self.faults.delay().await;
        Ok(self.attr())
    }

    fn boot(&self) -> u64 {
        lock(&self.inner).boot
    }

    fn lost(&self, _: Ino) -> u64 {
        lock(&self.inner).lost
    }

    async fn slices(&self, _: Ino, first: u32, count: u32) -> Result<SliceList, Errno> {
        self.faults.delay().await;
        let list = {
            let mut inner = lock(&self.inner);
            inner.asked += 1;
            let blocks = u64::from(first)..u64::from(first) + u64::from(count);
            let asked = |placed: &&PlacedSlice| blocks.contains(&u64::from(placed.key.block));
            let mut slices: Vec<_> = inner.slices.iter().filter(asked).cloned().collect();
            if slices.len() > SLICES_PER_REPLY_MAX && count > 1 {
                return Err(Errno::EOVERFLOW);
            }
            slices.sort_by_key(|placed| placed.key);
            slices.iter_mut().for_each(|placed| inner.show_moved(placed));
            for placed in slices.iter_mut().step_by(3) {
                placed.staged =
                    placed.slice.place.seal().and_then(|seal| inner.staged.get(&seal.id).cloned());
            }
            SliceList { version: Version(inner.version), slices }
        };
        self.faults.delay().await;
        Ok(list)
    }

    async fn staged(&self, _: Ino, ids: Vec<SliceId>) -> Result<Vec<Bytes>, Errno> {
        self.faults.delay().await;
        let mut inner = lock(&self.inner);
        let found: Result<Vec<Bytes>, Errno> =
            ids.iter().take(2).map(|id| inner.staged.get(id).cloned().ok_or(Errno::EINVAL)).collect();
        if found.is_err()
            && let Some(survives) = inner.survives.take()
        {
            let (version, boot, granted) = (inner.version + 1, inner.boot + 1, inner.granted);
            *inner = Inner { version, boot, granted, ..*survives };
        }
        found
    }

    async fn publish(&self, publish: Publish) -> Result<Attr, PublishError> {
        self.faults.delay().await;
        let attr = {
            let fails = self.faults.fails();
            let mut inner = lock(&self.inner);
            if let Some(error) = inner.refuse {
                return Err(error);
            }
            if fails {
                return Err(PublishError::Answered(Errno::EAGAIN));
            }
            match publish.ino {
                INO if inner.gone.is_some() => return Err(PublishError::Answered(Errno::ENOENT)),
                REPORT => {
                    inner.reported = inner.reported.max(publish.size_min.unwrap_or(0));
                    return Ok(Attr { size: inner.reported, ..testing::attr(REPORT.0) });
                }
                _ => {}
            }
            inner.apply(publish).map_err(PublishError::Answered)?;
            if std::mem::take(&mut inner.unanswered) {
                return Err(PublishError::NoAnswer(Errno::EACCES));
            }
            inner.attr()
        };
        self.faults.delay().await;
        Ok(attr)
    }

    async fn grant(&self, _: u64) -> Result<(u64, u64), Errno> {
        self.faults.delay().await;
        let mut inner = lock(&self.inner);
        let first = inner.granted;
        inner.granted += 10;
        Ok((first, first + 10))
    }

    fn restores(&self) -> u64 {
        lock(&self.inner).restores
    }

    async fn park(&self, _: Ino, made: &mut Made) -> Result<ParkedAt, Errno> {
        self.faults.delay().await;
        let mut inner = lock(&self.inner);
        if made.file.is_none() {
            inner.made += 1;
            made.file = Some((testing::attr(PARKED.0), "43".to_owned()));
        }
        match &mut inner.gone {
            Some(fails @ 1..) => {
                *fails -= 1;
                Err(Errno::EAGAIN)
            }
            _ => Ok(ParkedAt {
                attr: Attr { size: 0, ..testing::attr(PARKED.0) },
                report: Attr { size: 0, ..testing::attr(REPORT.0) },
                path: "lost+found/43".to_owned(),
                head: "lost\n".to_owned(),
            }),
        }
    }

    fn parked(&self, ino: Ino, path: &str, bytes: u64) {
        lock(&self.inner).parked.push((ino, path.to_owned(), bytes));
    }

    fn now_ns(&self) -> i64 {
        1_000_000
    }

    fn exclusive(&self) -> bool {
        self.exclusive
    }
}

/// An object store.
#[derive(Debug)]
pub(super) struct MemoryPort {
    objects: Mutex<HashMap<String, Bytes>>,
    gets: Mutex<u64>,
    /// The one session whose objects are taken, if only one.
    session: Mutex<Option<SessionId>>,
    /// Whose blocks must show what is read, if anybody's.
    shown: Mutex<Option<Arc<MemoryMeta>>>,
    faults: Arc<Faults>,
}

impl MemoryPort {
    /// From now on only what blocks show can be read.
    pub(super) fn read_only_what_shows(&self, meta: &Arc<MemoryMeta>) {
        *lock(&self.shown) = Some(meta.clone());
    }

    pub(super) fn new(faults: Arc<Faults>) -> Arc<Self> {
        Arc::new(MemoryPort {
            objects: Mutex::default(),
            gets: Mutex::default(),
            session: Mutex::default(),
            shown: Mutex::default(),
            faults,
        })
    }

    pub(super) fn take_only(&self, session: SessionId) {
        *lock(&self.session) = Some(session);
    }

    pub(super) fn gets(&self) -> u64 {
        *lock(&self.gets)
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.objects).len()
    }

    /// Damages or removes every object.
    pub(super) fn harm(&self, remove: bool) {
        let mut objects = lock(&self.objects);
        if remove {
            objects.clear();
        }
        for bytes in objects.values_mut() {
            *bytes = bytes.iter().map(|byte| byte ^ 1).collect();
        }
    }
}

impl ObjectPort for MemoryPort {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            self.faults.delay().await;
            let session = parse_object_name(name).map(|(_, object)| object.session);
            if lock(&self.session).is_some_and(|only| session != Some(only)) {
                return Err(StoreError::session_over(name));
            }
            let fails = self.faults.fails();
            // A put that fails may have arrived all the same.
            if !fails || bytes.len().is_multiple_of(2) {
                let old = lock(&self.objects).insert(name.to_owned(), bytes.clone());
                assert!(old.is_none_or(|old| old == bytes), "{name} was put twice with other bytes");
            }
            if fails { Err(StoreError::unavailable(name, Errno::EIO, "the seed says so")) } else { Ok(()) }
        }
        .boxed()
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        async move {
            self.faults.delay().await;
            *lock(&self.gets) += 1;
            let found = lock(&self.objects).get(name).cloned();
            let bytes = found.ok_or_else(|| StoreError::missing(name, "it was never put"))?;
            let start = offset as usize;
            let range = bytes.get(start..start + len as usize);
            range.map(Bytes::copy_from_slice).ok_or_else(|| StoreError::damaged(name, "it is too short"))
        }
        .boxed()
    }
    fn get_slice<'a>(
        &'a self,
        shown_by: ShownBy,
        name: &'a str,
        offset: u64,
        len: u32,
    ) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        let shows = |placed: &PlacedSlice| {
            let (object, at, seal) = match &placed.slice.place {
                Place::Object(seal, at) => (seal.id.object, *at, seal),
                Place::Moved(seal, object, at) => (*object, *at, seal),
                _ => return false,
            };
            placed.key.block == shown_by.block
                && parse_object_name(name).is_some_and(|(_, named)| named == object)
                && (at, seal.stored_len) == (offset, len)
        };
        let shown = lock(&self.shown).as_ref().is_none_or(|meta| meta.all_slices().iter().any(shows));
        match shown {
            true => self.get(name, offset, len),
            false => async move { Err(StoreError::not_shown(name)) }.boxed(),
        }
    }
}
