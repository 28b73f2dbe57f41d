//! The file system, without FUSE in its types: what the calls of programs do to a volume.
//!
//! Operations are async and speak of inodes, names and open files by number. What a cache can answer at once is
//! answered by the `try_` functions, which never wait. It must not know how requests come in or answers go out.

mod attributes;
pub(crate) mod cache;
mod callers;
mod directories;
mod files;
mod lost_found;
mod meta_link;
mod namespace;
mod reply;
mod rights;
mod upkeep;
mod veil;
mod xattrs;

pub(crate) use attributes::Change;
pub(crate) use callers::Callers;
pub(crate) use directories::Listing;
pub(crate) use files::{Access, Opened, Write};
pub(crate) use namespace::NewFile;
pub use xattrs::Status;
pub(crate) use xattrs::{INSTANT_XATTR, STATUS_XATTR_UNCHECKED};

use crate::connection::{Answer, Connection, Event};
use crate::data::{Config, Data};
use crate::keys::KeyRing;
use crate::objects;
use crate::objects::outage::Patience;
use cache::{Cache, FOR_EVER, KERNEL_TTL_MAX};
use chronofs_blocks::{DiskCache, RemoteStore};
use chronofs_core::ops::{Reply, Request, StatFs};
use chronofs_core::{Attr, Caller, Errno, Ino, Version};
use chronofs_wire::message::Welcome;
use files::Files;
use meta_link::MetaLink;
use rights::Rights;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use veil::Veil;

/// How long the end of a mount goes on trying when the object store fails or the server refuses, and how often.
const LAST_PATIENCE: Duration = Duration::from_secs(60);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// What a mount shows and where, for people.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    /// The volume's name.
    pub(crate) volume: String,
    /// The directory it is mounted on.
    pub(crate) dir: PathBuf,
}

/// What a mount has of its own: a disk, a way to the bucket, and the keys of an encrypted volume.
#[derive(Default)]
pub(crate) struct Own {
    pub(crate) disk: Option<Arc<DiskCache>>,
    pub(crate) direct: Option<Arc<RemoteStore>>,
    pub(crate) keys: Option<Arc<KeyRing>>,
}

/// What an operation that names an inode says about it, and how long the kernel may believe that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Shown {
    /// Its attributes, with what is written and not published yet. `None`: there is no such name.
    pub(crate) attr: Option<Attr>,
    /// How long the attributes may be believed.
    pub(crate) ttl: Duration,
    /// How long the name may be: nothing, where only the server knows who may use it (`rights`).
    pub(crate) name_ttl: Duration,
}

/// See the module.
pub(crate) struct Vfs {
    connection: Arc<Connection>,
    /// Between this and the server, if the volume is encrypted.
    veil: Option<Veil>,
    data: Arc<Data<MetaLink>>,
    cache: Arc<Cache>,
    files: Files,
    rights: Rights,
    labels: Labels,
    patience: Arc<Patience>,
    root: Ino,
    read_only: bool,
    at: Option<Version>,
    /// Has the kernel forget what it has of a file.
    wrong_pages: OnceLock<Box<dyn Fn(Ino) + Send + Sync>>,
}

impl Vfs {
    /// The volume that `connection` was welcomed to. Within a tokio runtime.
    pub(crate) fn new(
        connection: Arc<Connection>,
        welcome: &Welcome,
        events: UnboundedReceiver<Event>,
        labels: Labels,
        own: Own,
        patience: Arc<Patience>,
    ) -> Arc<Self> {
        let Own { disk, direct, keys } = own;
        // The key of names never changes.
        let veil = keys.as_ref().map(|keys| Veil::new(keys.now()));
        let cache = Arc::new(Cache::new());
        let link = MetaLink { connection: Arc::clone(&connection), cache: Arc::clone(&cache) };
        let port = objects::port(welcome, &connection, direct, &patience);
        let config = Config {
            volume: welcome.volume.id,
            incarnation: welcome.incarnation,
            session: welcome.session,
            grant: welcome.grant,
            block_size: welcome.volume.block_size,
            compression: welcome.volume.compression,
            read_only: welcome.read_only,
            keys,
            disk,
            tuning: Default::default(),
        };
        let data = Data::start(config, Arc::new(link), port);
        let vfs = Arc::new(Vfs {
            connection,
            veil,
            data,
            cache,
            files: Files::default(),
            rights: Rights::new(),
            labels,
            patience,
            root: welcome.root,
            read_only: welcome.read_only,
            at: welcome.at,
            wrong_pages: OnceLock::new(),
        });
        tokio::spawn(upkeep::run(Arc::downgrade(&vfs), events));
        vfs
    }

    /// `forget` is called, from a task, when what the kernel has of a file may be wrong.
    pub(crate) fn on_wrong_pages(&self, forget: impl Fn(Ino) + Send + Sync + 'static) {
        let _ = self.wrong_pages.set(Box::new(forget));
    }

    /// The directory that is mounted.
    pub(crate) fn root(&self) -> Ino {
        self.root
    }

    /// The instant shown, if not the present.
    pub(crate) fn at(&self) -> Option<Version> {
        self.at
    }

    /// Whether writing is refused.
    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Asks the server, which sees of an encrypted volume what it may.
    async fn ask(&self, caller: Caller, request: Request) -> Result<Answer, Errno> {
        let Some(veil) = &self.veil else { return self.connection.ask(caller, request).await };
        let (sealed, asked) = veil.seal(request)?;
        let answer = self.connection.ask(caller, sealed).await?;
        let Answer { version, result } = answer;
        Ok(Answer { version, result: result.and_then(|reply| veil.open(&asked, reply)) })
    }

    /// As [`Vfs::ask`], for what the server can only do or refuse.
    async fn call(&self, caller: Caller, request: Request) -> Result<(Version, Reply), Errno> {
        let answer = self.ask(caller, request).await?;
        answer.result.map(|reply| (answer.version, reply))
    }

    /// Figures of the volume.
    pub(crate) async fn statfs(&self) -> Result<StatFs, Errno> {
        match self.connection.call(Caller::ROOT, Request::StatFs).await? {
            (_, Reply::StatFs(figures)) => Ok(figures),
            (_, other) => Err(reply::unexpected(&other)),
        }
    }

    /// Everything written before is published and durable when this returns; the instant that shows it.
    pub(crate) async fn sync_all(&self) -> Result<Version, Errno> {
        if let Some(at) = self.at {
            return Ok(at);
        }
        self.data.flush_all().await?;
        self.sync().await
    }

    /// fsync of a directory: every change before is durable when this returns.
    pub(crate) async fn fsyncdir(&self) -> Result<(), Errno> {
        self.sync().await.map(drop)
    }

    /// What the server has applied is durable when this returns; its version.
    pub(crate) async fn sync(&self) -> Result<Version, Errno> {
        match self.connection.call(Caller::ROOT, Request::Sync).await? {
            (_, Reply::Instant(version)) => Ok(version),
            (_, other) => Err(reply::unexpected(&other)),
        }
    }

    /// Ends the mount: takes no more, publishes everything, waits until it is durable, says goodbye. Waits for servers
    /// that are away as long as there is anything that would be lost; for the block store until `forced`, or a while if
    /// operations are to fail.
    pub(crate) async fn shut_down(&self, forced: impl Future<Output = ()>) -> Result<(), Errno> {
        // Programs may go on writing to a mount that was taken out of sight.
        self.data.close();
        let flushed = self.flush_for_good(forced).await;
        let status = self.connection.status();
        let synced = if status.waiting + status.undurable > 0 && !self.read_only {
            self.sync().await.map(drop)
        } else {
            Ok(())
        };
        self.close_disk_cache().await;
        self.connection.close().await;
        flushed.and(synced)
    }

    async fn close_disk_cache(&self) {
        let Some(disk) = self.data.disk().cloned() else { return };
        let closing = Arc::clone(&disk);
        // It waits for the disk.
        if tokio::task::spawn_blocking(move || closing.close()).await.is_ok() {
            let figures = disk.figures();
            tracing::info!(
                hits = figures.hits,
                misses = figures.misses,
                kept = figures.kept,
                skipped = figures.skipped,
                evicted = figures.evicted,
                damaged = figures.damaged,
                slices = figures.slices,
                "the disk cache in {} is closed",
                figures.dir.display()
            );
        }
    }

    /// Publishes everything for the last time: what is not stored now is lost, so passing trouble is waited out.
    async fn flush_for_good(&self, forced: impl Future<Output = ()>) -> Result<(), Errno> {
        tokio::pin!(forced);
        let (mut is_forced, mut give_up) = (false, None);
        loop {
            let flushing = self.data.flush_all();
            tokio::pin!(flushing);
            let flushed = tokio::select! {
                flushed = &mut flushing => flushed,
                () = &mut forced, if !is_forced => {
                    is_forced = true;
                    self.patience.give_up();
                    flushing.await
                }
            };
            if !self.data.is_unclean() {
                return flushed;
            }
            let errno = flushed.err().unwrap_or(Errno::EIO);
            if is_forced || Instant::now() >= *give_up.get_or_insert_with(|| Instant::now() + LAST_PATIENCE) {
                return Err(errno);
            }
            tracing::warn!("not everything that was written could be stored yet ({errno}); trying again");
            tokio::time::sleep(LAST_RETRY).await;
        }
    }

    /// Bytes that were written and are not stored.
    pub(crate) fn unstored(&self) -> u64 {
        self.data.unpublished()
    }

    /// Bytes that were written and that the server refused for good.
    pub(crate) fn refused(&self) -> u64 {
        self.data.refused()
    }

    /// How long the kernel may believe what is said now; `None` when nothing may be believed past the answer.
    fn ttl(&self) -> Option<Duration> {
        if self.at.is_some() {
            return Some(FOR_EVER);
        }
        let left = self.connection.lease_left(KERNEL_TTL_MAX);
        (!left.is_zero()).then_some(left)
    }

    /// Attributes as they are shown: with what is written and not published yet.
    fn show(&self, attr: Attr) -> Shown {
        let attr = match self.data.existing(attr.ino) {
            Some(file) => file.overlay(attr),
            None => attr,
        };
        self.shown(Some(attr))
    }

    /// What a name in `dir` stands for.
    fn show_in(&self, dir: Ino, attr: Option<Attr>) -> Shown {
        let shown = match attr {
            Some(attr) => self.show(attr),
            None => self.shown(None),
        };
        if self.at.is_some() { Shown { name_ttl: self.rights.as_then(dir), ..shown } } else { shown }
    }

    fn shown(&self, attr: Option<Attr>) -> Shown {
        let ttl = self.ttl().unwrap_or(Duration::ZERO);
        Shown { attr, ttl, name_ttl: ttl }
    }

    /// Asks whether the rights of a directory of the past are narrower now, unless that is known. Where there is no
    /// answer, each caller's right is asked for.
    async fn learn_rights(&self, dir: Ino) {
        if self.at.is_none() || self.rights.known(dir) {
            return;
        }
        let asked = Instant::now();
        if let Ok((_, Reply::Narrowed(narrowed))) =
            self.connection.call(Caller::ROOT, Request::Narrowed { dir }).await
        {
            self.rights.learned(dir, narrowed, asked);
        }
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }
}
