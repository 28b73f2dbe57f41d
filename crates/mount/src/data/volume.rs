//! What all files of a mounted volume share: memory, caches, object counters, and the background flusher.

use super::budget::Budget;
use super::counters::{Counters, InUse};
use super::file::FileData;
use super::meta::Meta;
use super::slices::SliceCache;
use super::{Config, lock};
use crate::clock::jittered_by;
use chronofs_blocks::grant::Grant;
use chronofs_blocks::hedge::Hedges;
use chronofs_blocks::{DiskCache, ObjectPort};
use chronofs_core::{Attr, Errno, Ino, ObjectId, SessionId};
use futures::StreamExt;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// How often the background flusher looks for old bytes.
const TICK: Duration = Duration::from_millis(250);
/// How long a file whose write-back failed waits for the next try.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How many counters are asked for when a grant runs out.
const GRANT_COUNT: u64 = 1 << 20;
/// How many files are written back at once.
const FLUSHES_MAX: usize = 8;

/// The content of the files of one mounted volume.
pub struct Data<M: Meta> {
    pub(super) config: Config,
    pub(super) meta: Arc<M>,
    pub(super) port: Arc<dyn ObjectPort>,
    pub(super) budget: Budget,
    /// Bytes that were written and that the server refused for good.
    pub(super) refused: AtomicU64,
    pub(super) cache: SliceCache,
    /// Seals and puts under way.
    pub(super) uploads: Semaphore,
    /// Read-aheads under way.
    pub(super) read_aheads: Arc<Semaphore>,
    pub(super) runtime: tokio::runtime::Handle,
    grant: tokio::sync::Mutex<Grant>,
    counters: Arc<Counters>,
    new_grant: Mutex<Option<Grant>>,
    /// Whose ids the server takes: incarnation and session.
    writer: Mutex<(u16, SessionId)>,
    files: Mutex<HashMap<Ino, Weak<FileData<M>>>>,
    queue: Mutex<VecDeque<Queued<M>>>,
    /// Nothing written is taken any more. Held by whoever takes something over.
    closed: RwLock<bool>,
    /// Wakes the flusher before its next tick.
    pressure: Notify,
    flushes: Arc<Semaphore>,
    this: Weak<Data<M>>,
}

/// A file with unpublished bytes. Every such file is queued or being written back, and so cannot be forgotten.
struct Queued<M: Meta> {
    due: Instant,
    file: Arc<FileData<M>>,
}

impl<M: Meta> Data<M> {
    /// The data path of a volume. Must be called within a tokio runtime, on which it works from then on; it ends
    /// when the last reference to it goes.
    pub fn start(config: Config, meta: Arc<M>, port: Arc<dyn ObjectPort>) -> Arc<Self> {
        let tuning = config.tuning.clone();
        let data = Arc::new_cyclic(|this| Data {
            budget: Budget::new(tuning.dirty_bytes_max),
            refused: AtomicU64::new(0),
            cache: SliceCache::new(tuning.cache_bytes_max),
            uploads: Semaphore::new(tuning.uploads_max),
            read_aheads: Arc::new(Semaphore::new(tuning.read_aheads_max)),
            runtime: tokio::runtime::Handle::current(),
            grant: tokio::sync::Mutex::new(Grant::new(config.incarnation, config.session, config.grant)),
            counters: Arc::new(Counters::new(config.session, config.grant.0)),
            new_grant: Mutex::new(None),
            writer: Mutex::new((config.incarnation, config.session)),
            files: Mutex::new(HashMap::new()),
            queue: Mutex::new(VecDeque::new()),
            closed: RwLock::new(false),
            pressure: Notify::new(),
            flushes: Arc::new(Semaphore::new(FLUSHES_MAX)),
            this: this.clone(),
            meta,
            port,
            config,
        });
        data.runtime.spawn(flush_in_background(Arc::downgrade(&data)));
        data
    }

    /// The content of the regular file `attr` describes, as all its open handles share it.
    pub fn file(&self, attr: &Attr) -> Arc<FileData<M>> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&attr.ino).and_then(Weak::upgrade) {
            return file;
        }
        let file = Arc::new(FileData::new(self.strong(), attr));
        files.insert(attr.ino, Arc::downgrade(&file));
        file
    }

    /// The content of an inode that somebody uses, if anybody does.
    pub fn existing(&self, ino: Ino) -> Option<Arc<FileData<M>>> {
        lock(&self.files).get(&ino).and_then(Weak::upgrade)
    }

    /// Publishes what was written to any file before the call. Goes on after an error and gives the first.
    pub async fn flush_all(&self) -> Result<(), Errno> {
        let files: Vec<_> = lock(&self.files).values().filter_map(Weak::upgrade).collect();
        let unclean = futures::stream::iter(files.into_iter().filter(|file| file.is_unclean()));
        let results: Vec<_> = unclean
            .map(|file| async move { file.write_back().await })
            .buffer_unordered(FLUSHES_MAX)
            .collect()
            .await;
        results.into_iter().collect()
    }

    /// Whether anything written is not yet published.
    pub fn is_unclean(&self) -> bool {
        let files: Vec<_> = lock(&self.files).values().filter_map(Weak::upgrade).collect();
        files.iter().any(|file| file.is_unclean())
    }

    /// Written bytes that are not yet published.
    pub fn unpublished(&self) -> u64 {
        self.budget.used()
    }

    /// Bytes that were written and that the server refused for good.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Reads of the store that were sent a second time.
    pub fn hedges(&self) -> Hedges {
        self.port.hedges()
    }

    /// The disk cache, if there is one.
    pub fn disk(&self) -> Option<&Arc<DiskCache>> {
        self.config.disk.as_ref()
    }

    /// Refuses whatever is written from here on. What was taken before is taken whole: the next [`Data::flush_all`]
    /// finds it.
    pub fn close(&self) {
        *self.closed.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Holds [`Data::close`] up for as long as something is taken over. ENOTCONN when it was called.
    pub(super) fn admit(&self) -> Result<RwLockReadGuard<'_, bool>, Errno> {
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        if *closed { Err(Errno::ENOTCONN) } else { Ok(closed) }
    }

    /// Ends the background work after [`Data::flush_all`]: what is unpublished still is given up.
    pub fn stop(&self) {
        // Dropped outside the lock: the last reference to a file takes locks of its own.
        let queued = std::mem::take(&mut *lock(&self.queue));
        drop(queued);
    }

    /// Takes ids from the grant of a new session from now on. What was sealed for the old one and is not published
    /// is sealed again.
    pub fn set_grant(&self, incarnation: u16, session: SessionId, range: (u64, u64)) {
        *lock(&self.new_grant) = Some(Grant::new(incarnation, session, range));
        *lock(&self.writer) = (incarnation, session);
    }

    /// Whether the server would still take slices with this id.
    pub(super) fn is_own(&self, id: ObjectId) -> bool {
        *lock(&self.writer) == (id.incarnation, id.session)
    }

    /// Ids that nobody else ever gets, and for as long as something may be published under them, a word of that.
    pub(super) async fn object_ids(&self, count: usize) -> Result<(Vec<ObjectId>, Option<InUse>), Errno> {
        let mut grant = self.grant.lock().await;
        loop {
            if let Some(new) = lock(&self.new_grant).take() {
                self.counters.begin(new.session(), new.next());
                *grant = new;
            }
            if let Some(ids) = grant.take(count) {
                let in_use = self.counters.use_of(&ids);
                return Ok((ids, in_use));
            }
            let range = self.meta.grant(GRANT_COUNT.max(count as u64)).await?;
            grant.extend(range);
        }
    }

    /// Sees to it that `file` is written back after `delay`.
    pub(super) fn enqueue(&self, file: Arc<FileData<M>>, delay: Duration) {
        lock(&self.queue).push_back(Queued { due: Instant::now() + delay, file });
        if self.budget.is_tight() {
            self.press();
        }
    }

    /// Asks for room: the oldest bytes are written back now.
    pub(super) fn press(&self) {
        self.pressure.notify_one();
    }

    pub(super) fn strong(&self) -> Arc<Self> {
        match self.this.upgrade() {
            Some(data) => data,
            None => unreachable!("whoever calls a method of it holds it"),
        }
    }

    /// Called when the last user of an inode's content goes.
    pub(super) fn forget(&self, ino: Ino) {
        let mut files = lock(&self.files);
        if files.get(&ino).is_some_and(|file| file.strong_count() == 0) {
            files.remove(&ino);
        }
    }

    /// The next file that is due, or, when memory is tight, the oldest.
    fn next_due(&self, now: Instant) -> Option<Arc<FileData<M>>> {
        let mut queue = lock(&self.queue);
        let tight = self.budget.is_tight();
        // Files whose write-back failed come again later than others; with a handful of entries a scan is cheap,
        // and without failures the front is always the oldest.
        let at = match queue.front() {
            Some(front) if front.due <= now || tight => 0,
            _ => queue.iter().position(|queued| queued.due <= now)?,
        };
        queue.remove(at).map(|queued| queued.file)
    }
}

impl<M: Meta> fmt::Debug for Data<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Data")
            .field("config", &self.config)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

/// Writes back what is old, or the oldest when memory is tight, until the volume's data path is gone.
async fn flush_in_background<M: Meta>(data: Weak<Data<M>>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        tick.tick().await;
        if let Some(strong) = data.upgrade() {
            let (session, floor) = strong.counters.floor();
            if told.replace((session, floor)) != Some((session, floor)) {
                strong.meta.published_below(session, floor);
            }
        }
        loop {
            let Some(strong) = data.upgrade() else { return };
            let Ok(permit) = strong.flushes.clone().acquire_owned().await else { return };
            let Some(file) = strong.next_due(Instant::now()) else { break };
            let random_share = strong.config.tuning.random_share;
            strong.runtime.spawn(async move {
                let written = file.write_back().await;
                drop(permit);
                if written.is_err() {
                    let wait = jittered_by(random_share(), RETRY_AFTER, 1, RETRY_AFTER * 2);
                    tokio::time::sleep(wait).await;
                }
                file.requeue();
            });
        }
        let Some(strong) = data.upgrade() else { return };
        let pressed = strong.pressure.notified();
        // A tick or somebody who needs memory, whichever comes first.
        let _ = tokio::time::timeout(TICK, pressed).await;
        tick.reset_immediately();
    }
}
