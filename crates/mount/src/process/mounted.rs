//! A mount that is served by this process, from the first session to the last flush.

use super::error::MountError;
use super::mountinfo;
use super::options::MountOptions;
use crate::connection::{Connection, Credentials, Source, Wanted};
use crate::fuse::Face;
use crate::fuse::pages::{self, Pages};
use crate::keys::KeyRing;
use crate::objects::direct::{self, DirectKeys};
use crate::objects::outage::{OnStoreOutage, Patience};
use crate::vfs::{Labels, Own, Vfs};
use chronofs_blocks::DiskCache;
use chronofs_core::Version;
use chronofs_keys::VolumeSecret;
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::mount::{UnmountFlags, mount_remount, unmount};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};

/// Threads that read requests of the kernel. More do not help: what takes long becomes a task.
const FUSE_THREADS: usize = 3;
/// What the kernel reads ahead of a program that reads in order, in KiB.
const READ_AHEAD_KIB: u32 = 4096;

/// What to mount where.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// Where the volume is served.
    pub source: Source,
    /// Who mounts.
    pub credentials: Credentials,
    /// An existing directory, by absolute path.
    pub dir: PathBuf,
    /// The instant to show; `None` is the present.
    pub at: Option<Version>,
    /// What the kernel is told of it.
    pub options: MountOptions,
    /// A disk cache.
    pub disk_cache: Option<DiskCacheSpec>,
    /// How people call the volume.
    pub volume: String,
    /// What becomes of operations while the block store cannot be used.
    pub on_store_outage: OnStoreOutage,
    /// Credentials of the bucket, if this mount uses its own.
    pub direct: Option<DirectKeys>,
    /// What opens the volume, if it is encrypted.
    pub secret: Option<VolumeSecret>,
}

/// Where and how large a disk cache is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskCacheSpec {
    /// Its folder, by absolute path.
    pub dir: PathBuf,
    /// The most bytes of the disk that it takes.
    pub bytes_max: u64,
}

/// A mount served by this process.
pub struct Mounted {
    runtime: Runtime,
    vfs: Arc<Vfs>,
    session: BackgroundSession,
    pages: Pages,
    dir: PathBuf,
    volume: String,
}

impl Mounted {
    /// Opens an encrypted volume's keys, then a session, then mounts: what is refused is refused before anything is mounted.
    pub fn mount(spec: MountSpec) -> Result<Mounted, MountError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("chronofs")
            .enable_all()
            .build()
            .map_err(MountError::system("start threads"))?;
        let keys = open_keys(&runtime, &spec)?;
        let direct = match spec.direct {
            Some(keys) => Some(
                runtime
                    .block_on(direct::open(&spec.source, keys))
                    .map_err(|reason| MountError::Direct { volume: spec.volume.clone(), reason })?,
            ),
            None => None,
        };
        let wanted = Wanted {
            source: spec.source,
            credentials: spec.credentials,
            client_name: client_name(&spec.dir),
            at: spec.at,
            read_only: spec.options.read_only() || spec.at.is_some(),
            direct: direct.is_some(),
            sealed: keys.is_some(),
        };
        let opened = runtime.block_on(Connection::open(wanted));
        let (connection, welcome, events) = opened
            .map_err(|source| MountError::Open { volume: spec.volume.clone(), source: Box::new(source) })?;
        let labels = Labels { volume: welcome.volume.name.clone(), dir: spec.dir.clone() };
        let disk = spec.disk_cache.map(|disk| DiskCache::start(&disk.dir, disk.bytes_max));
        let vfs = {
            let _within = runtime.enter();
            let own = Own { disk, direct, keys };
            Vfs::new(connection, &welcome, events, labels, own, Patience::new(spec.on_store_outage))
        };
        let volume = welcome.volume.name.clone();
        let (session, pages) = attach(&vfs, &runtime, &spec.dir, &spec.volume, spec.options)?;
        raise_read_ahead(&spec.dir);
        tracing::info!(%volume, dir = %spec.dir.display(), session = welcome.session.0, "mounted");
        Ok(Mounted { runtime, vfs, session, pages, dir: spec.dir, volume })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What asks this mount to end, from another thread.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter { dir: self.dir.clone() }
    }

    /// Waits until the mount is unmounted by anybody, stores everything that was written, and ends the session.
    pub fn wait(self) -> Result<(), MountError> {
        let Mounted { runtime, vfs, session, dir, volume, .. } = self;
        let ended = session.join();
        if let Err(error) = ended {
            tracing::error!("serving {}: {error}", dir.display());
        }
        finish(&runtime, &vfs, &volume, std::future::pending())
    }

    /// Waits until the mount is unmounted or SIGTERM or SIGINT asks for it; programs that still use it then get
    /// errors once everything that was written is stored. Another such signal after that gives up what the block store
    /// does not take.
    pub fn wait_or_signal(self) -> Result<(), MountError> {
        let Mounted { runtime, vfs, session, pages, dir, volume } = self;
        let (ended, signalled) = tokio::sync::oneshot::channel();
        let joiner = std::thread::spawn(move || {
            let joined = session.join();
            let _ = ended.send(());
            joined
        });
        let unmounter = Unmounter { dir: dir.clone() };
        let detached = runtime.block_on(async {
            tokio::select! {
                _ = signalled => false,
                () = asked_to_stop() => {
                    let freed = tokio::task::spawn_blocking(move || unmounter.unmount_or_detach()).await;
                    !matches!(freed, Ok(Ok(true)))
                }
            }
        });
        if detached {
            runtime.block_on(pages.write_back(&vfs));
        } else if let Ok(Err(error)) = joiner.join() {
            tracing::error!("serving {}: {error}", dir.display());
        }
        finish(&runtime, &vfs, &volume, asked_to_stop())
    }

    /// Unmounts, stores everything that was written, and ends the session.
    pub fn unmount(self) -> Result<(), MountError> {
        self.unmounter().unmount_or_detach()?;
        self.wait()
    }
}

/// The keys of the volume, if it is encrypted. From then on the process leaves nothing of its memory behind when it fails.
fn open_keys(runtime: &Runtime, spec: &MountSpec) -> Result<Option<Arc<KeyRing>>, MountError> {
    let target = runtime
        .block_on(spec.source.resolve())
        .map_err(|error| MountError::Open { volume: spec.volume.clone(), source: Box::new(error.into()) })?;
    let keys = KeyRing::open(&spec.source, &target, &spec.volume, spec.secret.as_ref())?;
    if keys.is_some() {
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .map_err(io::Error::from)
            .map_err(MountError::system("keep the keys of the volume out of core dumps"))?;
    }
    Ok(keys)
}

/// Asks a mount of this process to end.
#[derive(Clone, Debug)]
pub struct Unmounter {
    dir: PathBuf,
}

impl Unmounter {
    /// Unmounts; takes the mount out of sight only when it is in use. Whether nobody used it.
    pub fn unmount_or_detach(&self) -> Result<bool, MountError> {
        match unmount(&self.dir, UnmountFlags::empty()) {
            // Somebody else unmounted it.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(true),
            Err(_) => {
                let action = format!("unmount {}", self.dir.display());
                unmount(&self.dir, UnmountFlags::DETACH)
                    .map_err(io::Error::from)
                    .map_err(MountError::system(action))?;
                Ok(false)
            }
        }
    }
}

fn finish(
    runtime: &Runtime,
    vfs: &Arc<Vfs>,
    volume: &str,
    forced: impl Future<Output = ()>,
) -> Result<(), MountError> {
    let stored = runtime.block_on(vfs.shut_down(forced));
    stored.map_err(|errno| {
        let bytes = vfs.unstored();
        tracing::error!(bytes, "not everything that was written could be stored: {errno}");
        MountError::Unflushed { volume: volume.to_owned(), bytes, errno }
    })?;
    match vfs.refused() {
        0 => tracing::info!("unmounted; everything that was written is stored"),
        bytes => {
            tracing::warn!(bytes, "unmounted; all is stored but what the server refused, as was said then")
        }
    }
    Ok(())
}

async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be caught; use umount");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Mounts and begins to answer the kernel.
fn attach(
    vfs: &Arc<Vfs>,
    runtime: &Runtime,
    dir: &Path,
    volume: &str,
    options: MountOptions,
) -> Result<(BackgroundSession, Pages), MountError> {
    let (pages, asked) = Pages::new();
    let face = Face::new(Arc::clone(vfs), runtime.handle().clone(), pages.clone());
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(FUSE_THREADS);
    config.mount_options = vec![
        MountOption::FSName(mountinfo::source(volume, vfs.at())),
        MountOption::CUSTOM("subtype=chronofs".to_owned()),
        MountOption::DefaultPermissions,
    ];
    config.mount_options.extend(options.for_fuser(vfs.read_only()));
    let mounted = Session::new(face, dir, &config).and_then(|session| {
        // Before any request is answered, so that nobody sees the mount without them.
        if let Some(flags) = options.for_remount(vfs.read_only()) {
            mount_remount(dir, flags, "")?;
        }
        let notifier = session.notifier();
        let background = session.spawn()?;
        std::thread::Builder::new()
            .name("chronofs-pages".into())
            .spawn(move || pages::serve(&notifier, &asked))?;
        Ok((background, pages))
    });
    mounted.map_err(|error| {
        let next = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "; mount as root, or see to it that this user may use /dev/fuse"
            }
            _ => "",
        };
        MountError::Dir { dir: dir.to_owned(), reason: format!("{error}{next}") }
    })
}

/// The kernel reads 128 KiB ahead unless told otherwise: far less than an object store likes.
fn raise_read_ahead(dir: &Path) {
    let Ok(Some(mount)) = mountinfo::chronofs_mount_at(dir) else { return };
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB.to_string()) {
        tracing::debug!("{setting} cannot be set: {error}");
    }
}

fn client_name(dir: &Path) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host} pid {} on {}", std::process::id(), dir.display())
}
