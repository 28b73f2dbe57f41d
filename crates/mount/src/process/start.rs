//! `chronofs mount start`: checks, then a mount in the foreground or in a process of its own.

use super::daemon;
use super::error::MountError;
use super::mounted::{DiskCacheSpec, MountSpec, Mounted};
use super::mountinfo;
use super::options::MountOptions;
use crate::connection::{Credentials, Source};
use crate::objects::direct::DirectKeys;
use crate::objects::outage::OnStoreOutage;
use chronofs_blocks::cache::CACHE_BYTES_MIN;
use chronofs_core::time::parse_instant;
use chronofs_keys::VolumeSecret;
use chronofs_wire::cluster::ClusterFile;
use chronofs_wire::http::AdminClient;
use chronofs_wire::token::{Token, TokenKind};
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What to start.
#[derive(Debug)]
pub struct StartConfig {
    /// Name or id of the volume.
    pub volume: String,
    /// Where to mount it.
    pub dir: PathBuf,
    /// The instant to show, as people write it.
    pub at: Option<String>,
    /// What the kernel is told of the mount.
    pub options: MountOptions,
    /// A disk cache.
    pub disk_cache: Option<DiskCacheSpec>,
    /// What becomes of operations while the block store cannot be used.
    pub on_store_outage: OnStoreOutage,
    /// Credentials of the bucket, if the mount is to use its own.
    pub direct: Option<DirectKeys>,
    /// What opens the volume, if it is encrypted.
    pub secret: Option<VolumeSecret>,
    /// Serve in this process instead of a child.
    pub foreground: bool,
    /// The volume token.
    pub token: String,
    /// Where the admin server is (`host:port`), if not where the cluster file or the token says.
    pub admin: Option<String>,
    /// The cluster that is meant, if that is said.
    pub cluster: Option<ClusterFile>,
    /// Where to say that the mount is there (`ready`), or why it is not; for whoever started this process. A
    /// child started by [`start`] itself needs none.
    pub ready: Option<OwnedFd>,
}

/// Mounts. In the foreground it returns when the mount has ended; else as soon as the mount is there, served by a
/// child in a session of its own that is started with the same command line, and logs to a file instead of standard
/// error. The caller sets up logging. Not to be called within an async runtime.
pub fn start(config: StartConfig) -> Result<(), MountError> {
    let child = daemon::is_child();
    if !child && !config.foreground {
        return daemon::start_child(&config.volume, &check(&config)?.dir, config.secret.as_ref());
    }
    let mut ready = daemon::Ready::new(config.ready.as_ref(), child)?;
    let checked = check(&config);
    if child {
        // A process that lives long must not keep a folder busy. Not earlier: what was asked for may be relative to it.
        let _ = std::env::set_current_dir("/");
    }
    let mounted = checked.and_then(Mounted::mount);
    match mounted {
        Ok(mounted) => {
            ready.say("ready");
            mounted.wait_or_signal()
        }
        Err(error) => {
            ready.say(&format!("error {error}"));
            Err(error)
        }
    }
}

/// Everything that can be known without the server.
fn check(config: &StartConfig) -> Result<MountSpec, MountError> {
    let token = Token::parse_as(&config.token, TokenKind::Volume)?;
    let at = match &config.at {
        Some(text) => Some(parse_instant(text, &jiff::Zoned::now())?),
        None => None,
    };
    let dir = usable_dir(&config.dir)?;
    let disk_cache = config.disk_cache.as_ref().map(|wanted| usable_cache(wanted, &dir)).transpose()?;
    let admin = AdminClient::reached(&token, config.admin.as_deref(), config.cluster.as_ref())?;
    Ok(MountSpec {
        source: Source::Admin { admin, volume: config.volume.clone() },
        credentials: Credentials { id: token.id, secret: token.secret },
        dir,
        at,
        options: config.options,
        disk_cache,
        volume: config.volume.clone(),
        on_store_outage: config.on_store_outage,
        direct: config.direct.clone(),
        secret: config.secret.clone(),
    })
}

/// A disk cache that can be used while a volume is mounted on `mount_dir`. Whether its disk works shows later, and is no
/// reason not to mount.
fn usable_cache(wanted: &DiskCacheSpec, mount_dir: &Path) -> Result<DiskCacheSpec, MountError> {
    let refuse = |reason: String| MountError::DiskCache { dir: wanted.dir.clone(), reason };
    if wanted.bytes_max < CACHE_BYTES_MIN {
        return Err(refuse(format!("its size must be at least {} MiB", CACHE_BYTES_MIN >> 20)));
    }
    // It need not exist yet.
    let plain = std::path::absolute(&wanted.dir).map_err(|error| refuse(error.to_string()))?;
    let dir = plain.canonicalize().unwrap_or(plain);
    if dir.starts_with(mount_dir) {
        return Err(refuse("it lies in the mount itself; name a folder on another disk".to_owned()));
    }
    Ok(DiskCacheSpec { dir, bytes_max: wanted.bytes_max })
}

/// The absolute path of a directory that can be mounted on. A dead mount on it is taken away.
fn usable_dir(dir: &Path) -> Result<PathBuf, MountError> {
    let refuse = |reason: String| MountError::Dir { dir: dir.to_owned(), reason };
    let absolute =
        absolute(dir).map_err(|error| refuse(format!("{error}; create it or name another one")))?;
    let mut found = fs::metadata(&absolute);
    if found.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)) {
        tracing::warn!("taking away the dead mount on {}", absolute.display());
        unmount(&absolute, UnmountFlags::DETACH)
            .map_err(|error| refuse(format!("a dead mount is in the way: {error}")))?;
        found = fs::metadata(&absolute);
    }
    if absolute.starts_with("/proc") || ["/", "/sys", "/dev"].iter().any(|kept| absolute == Path::new(kept)) {
        return Err(refuse("the system needs what is there; name another directory".to_owned()));
    }
    match found {
        Ok(found) if !found.is_dir() => Err(refuse("it is not a directory".to_owned())),
        Ok(_) => {
            let mounts =
                mountinfo::chronofs_mount_at(&absolute).map_err(MountError::system("read the mounts"))?;
            match mounts {
                Some(mount) => Err(refuse(format!(
                    "the volume '{}' is mounted there; stop it first (`chronofs mount stop {}`) or name another \
                     directory",
                    mount.volume_and_instant().0,
                    absolute.display()
                ))),
                None => Ok(absolute),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(refuse("it does not exist; create it or name another one".to_owned()))
        }
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// The absolute path of `dir` with every link resolved but without asking what is mounted on `dir` itself: a dead
/// mount does not answer.
pub(super) fn absolute(dir: &Path) -> io::Result<PathBuf> {
    match dir.canonicalize() {
        Ok(absolute) => Ok(absolute),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            let plain = std::path::absolute(dir)?;
            let name = plain.file_name().unwrap_or(OsStr::new("."));
            let parent = plain.parent().unwrap_or(Path::new("/"));
            Ok(parent.canonicalize()?.join(name))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_must_exist_and_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(usable_dir(folder.path()).is_ok());
        let missing = usable_dir(&folder.path().join("missing")).unwrap_err().to_string();
        assert!(missing.contains("missing") && missing.contains("create it"), "{missing}");
        for kept in ["/", "/proc", "/proc/self", "/dev"] {
            let refused = usable_dir(Path::new(kept)).unwrap_err().to_string();
            assert!(refused.contains("the system needs"), "{refused}");
        }
        let no_dir = usable_dir(&file).unwrap_err().to_string();
        assert!(no_dir.contains("not a directory"), "{no_dir}");
    }

    #[test]
    fn a_disk_cache_lies_outside_of_the_mount_and_has_room() {
        let folder = tempfile::tempdir().unwrap();
        let (mount, place) = (folder.path().canonicalize().unwrap(), Path::new("/var/cache/not-there-yet"));
        let cache =
            |dir: &Path, bytes_max| usable_cache(&DiskCacheSpec { dir: dir.to_owned(), bytes_max }, &mount);
        let fine = DiskCacheSpec { dir: place.to_owned(), bytes_max: CACHE_BYTES_MIN };
        assert_eq!(cache(place, CACHE_BYTES_MIN).unwrap(), fine);
        assert!(cache(Path::new("cache"), CACHE_BYTES_MIN).unwrap().dir.is_absolute());
        let small = cache(place, CACHE_BYTES_MIN - 1).unwrap_err().to_string();
        assert!(small.contains("at least 64 MiB"), "{small}");
        for inside in [mount.clone(), mount.join("cache")] {
            let refused = cache(&inside, CACHE_BYTES_MIN).unwrap_err().to_string();
            assert!(refused.contains("in the mount itself"), "{refused}");
        }
    }

    #[test]
    fn what_does_not_read_is_refused_before_anything_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let config = |token: &str, at: Option<&str>| StartConfig {
            volume: "v".into(),
            dir: folder.path().to_owned(),
            at: at.map(str::to_owned),
            options: MountOptions::default(),
            disk_cache: None,
            on_store_outage: OnStoreOutage::default(),
            direct: None,
            secret: None,
            foreground: true,
            token: token.into(),
            admin: None,
            cluster: None,
            ready: None,
        };
        assert!(matches!(check(&config("x", None)), Err(MountError::Token(_))));
        let pin = chronofs_wire::identity::Sha256::of(b"");
        let token = Token::draw(TokenKind::Volume, "127.0.0.1:1", pin).unwrap().to_string();
        assert!(matches!(check(&config(&token, Some("soon"))), Err(MountError::Instant(_))));
        assert!(check(&config(&token, Some("-2h"))).unwrap().at.is_some());
    }
}
