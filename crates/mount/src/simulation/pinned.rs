//! A service that pins instants, reads what they show as one reads a backup, and releases them.

use super::server::{BLOCK_SIZE, INDEX, VOLUME};
use super::{Life, Random, Shared, count, lock};
use crate::data::{Config, Data, Meta, Publish, PublishError, SliceList, Tuning};
use bytes::Bytes;
use chronofs_blocks::Pin;
use chronofs_core::ops::{Reply, Request};
use chronofs_core::volume::Compression;
use chronofs_core::{Attr, Caller, Errno, Ino, Retention, SessionId, SliceId, Version};
use chronofs_namespace::{Ctx, FREED_MAX};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// An instant of a file that somebody may have pinned.
#[derive(Clone, Copy)]
pub(super) struct Pinned {
    id: Uuid,
    file: usize,
    at: Version,
    state: usize,
    /// When it ends by itself, as a hold does.
    ends: Option<Version>,
    /// It was said to be kept.
    sure: bool,
}

impl Pinned {
    fn pin(&self) -> Pin {
        let mut pin = Pin::new(VOLUME, 0, self.id, self.at, self.at);
        pin.ends = self.ends;
        pin
    }

    /// Whether it surely is kept. Versions are never behind the clock, so a hold may end a little early.
    fn is_kept(&self, world: &Shared) -> bool {
        let known = lock(&world.pinned).iter().any(|other| other.id == self.id && other.sure);
        let now = world.now().wall_ns + world.ahead_ns_max();
        known && self.ends.is_none_or(|ends| now < ends.0)
    }
}

/// Reads rows as of an instant, without a session: it need not be one that can be mounted.
struct Rows(Shared, Version);

impl Rows {
    async fn read(&self, request: Request) -> Result<(Version, Reply), Errno> {
        let view = loop {
            match self.0.view() {
                Some(view) => break view,
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let version = view.0.version();
        let ctx = Ctx {
            volume: INDEX,
            version,
            at: Some(self.1),
            caller: Caller::ROOT,
            session: SessionId(0),
            root: Ino::ROOT,
            read_only: true,
            is_open: &|_| true,
            holds: &|_| true,
            freed_max: FREED_MAX,
            made: None,
        };
        chronofs_namespace::query(&view, &ctx, &request).unwrap().map(|reply| (version, reply))
    }
}

impl Meta for Rows {
    async fn attributes(&self, ino: Ino) -> Result<Attr, Errno> {
        match self.read(Request::GetAttr { ino }).await? {
            (_, Reply::Attr(attr)) => Ok(attr),
            (_, other) => panic!("{other:?}"),
        }
    }

    fn boot(&self) -> u64 {
        0
    }

    fn lost(&self, _: Ino) -> u64 {
        0
    }

    async fn slices(&self, ino: Ino, first: u32, count: u32) -> Result<SliceList, Errno> {
        match self.read(Request::Slices { ino, first, count, staged: true }).await? {
            (version, Reply::Slices(slices)) => Ok(SliceList { version, slices }),
            (_, other) => panic!("{other:?}"),
        }
    }

    async fn staged(&self, ino: Ino, ids: Vec<SliceId>) -> Result<Vec<Bytes>, Errno> {
        match self.read(Request::Staged { ino, ids }).await? {
            (_, Reply::Staged(bytes)) => Ok(bytes),
            (_, other) => panic!("{other:?}"),
        }
    }

    async fn publish(&self, _: Publish) -> Result<Attr, PublishError> {
        unreachable!("nothing is written")
    }

    async fn grant(&self, _: u64) -> Result<(u64, u64), Errno> {
        unreachable!("nothing is written")
    }

    fn now_ns(&self) -> i64 {
        0
    }

    fn exclusive(&self) -> bool {
        false
    }
}

/// Pins instants that were acknowledged, looks at them later, and releases some.
pub(super) async fn pin_now_and_then(world: &Shared, mut random: Random) {
    loop {
        tokio::time::sleep(Duration::from_millis(300 + random.below(2000))).await;
        let pinned = lock(&world.pinned).clone();
        match random.below(5) {
            0 | 1 => pin(world, &mut random).await,
            4 => pin_beside_an_old_copy(world, &mut random),
            2 if !pinned.is_empty() => {
                look(world, pinned[random.below(pinned.len() as u64) as usize]).await.ok();
            }
            3 if !pinned.is_empty() => {
                release(world, pinned[random.below(pinned.len() as u64) as usize].id).await;
            }
            _ => {}
        }
    }
}

/// An instant that was acknowledged, of one of the files.
fn choose(world: &Shared, random: &mut Random) -> Option<Pinned> {
    let mut known = Vec::new();
    for (n, file) in lock(&world.files).iter().enumerate() {
        known.extend(file.instants.last().map(|&(at, state)| (n, at, state)));
    }
    if known.is_empty() {
        return None;
    }
    let (file, at, state) = known[random.below(known.len() as u64) as usize];
    let id = Uuid::from_u128(u128::from(world.number()));
    // Longer than any window that passes here.
    let hold_ns = random.one_in(3).then(|| (4 + random.below(60)) * 1_000_000_000);
    let ends = hold_ns.map(|hold_ns| Version(world.now().wall_ns + world.ahead_ns_max() + hold_ns));
    Some(Pinned { id, file, at, state, ends, sure: false })
}

/// The server starts on metadata that is older than a pin: only the store has it.
fn pin_beside_an_old_copy(world: &Shared, random: &mut Random) {
    let Some(pinned) = choose(world, random) else { return };
    let has_history = !matches!(world.retention, Retention::None);
    if !has_history || !world.is_in_window(pinned.at) {
        return;
    }
    world.stop_server(false);
    let pin = pinned.pin();
    world.bucket.lay(pin.name(), pin.encode().unwrap());
    count(&world.told.pinned_beside);
    lock(&world.pinned).push(Pinned { sure: true, ..pinned });
    world.start_server();
}

async fn pin(world: &Shared, random: &mut Random) {
    let Some(pinned) = choose(world, random) else { return };
    let Some(collector) = world.collector() else { return };
    let id = pinned.id;
    // Without an answer it may be kept, or not.
    lock(&world.pinned).push(pinned);
    let done = collector.pin(&pinned.pin()).await.is_ok();
    if done {
        count(&world.told.pinned);
        lock(&world.pinned).iter_mut().filter(|pinned| pinned.id == id).for_each(|pinned| pinned.sure = true);
    }
}

async fn release(world: &Shared, id: Uuid) {
    let Some(collector) = world.collector() else { return };
    lock(&world.pinned).iter_mut().filter(|pinned| pinned.id == id).for_each(|pinned| pinned.sure = false);
    if collector.unpin(VOLUME, id).await.is_ok() {
        lock(&world.pinned).retain(|pinned| pinned.id != id);
        lock(&world.unpinned).push(id);
    }
}

/// What is surely pinned shows what it was, or, while the store fails, nothing.
async fn look(world: &Shared, pinned: Pinned) -> Result<(), Errno> {
    let (ino, expected) = world.file(pinned.file, |file| (file.ino, file.state(pinned.state)));
    let rows = Rows(world.clone(), pinned.at);
    let attr = match rows.attributes(ino).await {
        Ok(attr) => attr,
        other => {
            assert!(!pinned.is_kept(world), "what is pinned is not known any more: {other:?}");
            return Ok(());
        }
    };
    let config = Config {
        volume: VOLUME,
        incarnation: 0,
        session: SessionId(0),
        grant: (0, 0),
        block_size: BLOCK_SIZE,
        compression: Compression::None,
        read_only: true,
        keys: None,
        disk: None,
        tuning: Tuning::default(),
    };
    let port = Arc::new(world.bucket.store(&Life::new(), world.create_only));
    let data = Data::start(config, Arc::new(rows), port);
    let file = data.file(&attr);
    file.opened(&attr, None);
    let found = file.read(0, u32::MAX).await;
    if !(pinned.sure && pinned.is_kept(world)) {
        return Ok(());
    }
    if pinned.ends.is_some() {
        count(&world.told.held);
    }
    assert!(found.clone().is_ok_and(|found| found == **expected) || found == Err(Errno::EIO), "pinned bytes");
    found.map(drop)
}

/// With an honest store all is there that is pinned; then nobody needs it any more.
pub(super) async fn look_at_pinned(world: &Shared) {
    let pinned = lock(&world.pinned).clone();
    for pinned in pinned {
        look(world, pinned).await.expect("the store is honest");
    }
}

pub(super) async fn release_all(world: &Shared) {
    // A store that only says that it has deleted a pin brings it back: so it is released once more.
    let again = std::mem::take(&mut *lock(&world.unpinned));
    let pinned: Vec<Uuid> = lock(&world.pinned).iter().map(|pinned| pinned.id).collect();
    for id in again.into_iter().chain(pinned) {
        release(world, id).await;
    }
    assert!(lock(&world.pinned).is_empty(), "with an honest store pins can be released");
}
