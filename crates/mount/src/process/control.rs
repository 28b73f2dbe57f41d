//! What other processes do with a mount: stop it, list it, ask it for an instant.

use super::error::MountError;
use super::mountinfo::{self, MountLine};
use super::start::absolute;
use crate::vfs::{INSTANT_XATTR, STATUS_XATTR_UNCHECKED, Status};
use chronofs_blocks::StoreOutage;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::getxattr;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a mount may take to say how it is.
const STATUS_PATIENCE: Duration = Duration::from_secs(3);
/// How long the end of a mount's process is waited for without a word; with one; and while the block store is away.
const END_QUIET: Duration = Duration::from_secs(2);
const END_WITHIN: Duration = Duration::from_secs(600);
const END_WITHIN_OUTAGE: Duration = Duration::from_secs(30);
/// How often a process is told to give up: it hears that only once it has begun to end.
const FORCE_EVERY: Duration = Duration::from_millis(250);
/// The longest value that is asked for.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// How a mount is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Operations are answered.
    Connected,
    /// The server is away; operations wait.
    Waiting,
    /// The block store cannot be used; operations that need it wait or fail, as the mount was told.
    #[serde(rename = "no store")]
    NoStore,
    /// The server refuses the mount; operations fail.
    Refused,
    /// Its process does not answer.
    Stuck,
    /// Its process is gone.
    Dead,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Connected => "connected",
            State::Waiting => "waiting",
            State::NoStore => "no store",
            State::Refused => "refused",
            State::Stuck => "stuck",
            State::Dead => "dead",
        })
    }
}

/// A mount of this machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listed {
    /// Name of the volume.
    pub volume: String,
    /// Where it is mounted.
    pub dir: PathBuf,
    /// The instant shown, if not the present.
    pub at: Option<String>,
    /// Writing is refused.
    pub read_only: bool,
    /// How it is.
    pub state: State,
    /// The process that serves it.
    pub pid: Option<u32>,
    /// What the mount says of itself.
    pub status: Option<Status>,
}

/// All mounts of this machine. Needs no server.
pub fn list() -> Result<Vec<Listed>, MountError> {
    let mounts = mountinfo::chronofs_mounts().map_err(MountError::system("read the mounts"))?;
    Ok(mounts.into_iter().map(describe).collect())
}

fn describe(mount: MountLine) -> Listed {
    let (volume, at) = mount.volume_and_instant();
    let (volume, at) = (volume.to_owned(), at.map(str::to_owned));
    let (state, status) = match ask_status(&mount.dir) {
        Ok(status) if status.refused.is_some() => (State::Refused, Some(status)),
        Ok(status) if status.connected && status.store_outage.is_some() => (State::NoStore, Some(status)),
        Ok(status) if status.connected => (State::Connected, Some(status)),
        Ok(status) => (State::Waiting, Some(status)),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => (State::Dead, None),
        Err(_) => (State::Stuck, None),
    };
    Listed {
        volume,
        dir: mount.dir,
        read_only: at.is_some() || status.as_ref().is_some_and(|status| status.read_only),
        at,
        state,
        pid: status.as_ref().map(|status| status.pid),
        status,
    }
}

/// Asks on a thread of its own: a process that hangs must not hang this one.
fn ask_status(dir: &Path) -> io::Result<Status> {
    let (answer, answered) = mpsc::channel();
    let dir = dir.to_owned();
    std::thread::Builder::new().name("status".into()).spawn(move || {
        let _ = answer.send(read_xattr(&dir, STATUS_XATTR_UNCHECKED));
    })?;
    let value =
        answered.recv_timeout(STATUS_PATIENCE).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    serde_json::from_slice(&value).map_err(io::Error::other)
}

fn read_xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut value = vec![0; XATTR_BYTES_MAX];
    let len = getxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// Flushes the mount that `path` lies in; the version that shows everything written before, as an instant.
pub fn instant(path: &Path) -> Result<String, MountError> {
    match read_xattr(path, INSTANT_XATTR) {
        Ok(value) => Ok(String::from_utf8_lossy(&value).into_owned()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => {
            Err(MountError::NotMounted(path.to_owned()))
        }
        Err(error) => Err(MountError::system(format!("flush {}", path.display()))(error)),
    }
}

/// Unmounts `dir` and waits until everything that was written is stored and the process is gone; with `force` what the
/// block store does not take is given up. `notice` is told when that takes long.
pub fn stop(dir: &Path, force: bool, notice: impl FnOnce(&str)) -> Result<(), MountError> {
    let dir = match absolute(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::NotMounted(dir.to_owned()));
        }
        found => found.map_err(MountError::system(format!("find {}", dir.display())))?,
    };
    let found = mountinfo::chronofs_mount_at(&dir).map_err(MountError::system("read the mounts"))?;
    if found.is_none() {
        return Err(MountError::NotMounted(dir));
    }
    let status = ask_status(&dir);
    let server = status.as_ref().ok().and_then(|status| open_process(status.pid));
    match unmount(&dir, UnmountFlags::empty()) {
        Ok(()) => {}
        Err(rustix::io::Errno::BUSY) => return Err(MountError::InUse(dir)),
        Err(_) if status.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)) => {
            unmount(&dir, UnmountFlags::DETACH)
                .map_err(io::Error::from)
                .map_err(MountError::system(format!("take away the dead mount on {}", dir.display())))?;
        }
        Err(error) => return Err(MountError::system(format!("unmount {}", dir.display()))(error.into())),
    }
    match (server, status) {
        (Some(server), Ok(status)) => wait_for_end(&server, &dir, &status, force, notice),
        _ => Ok(()),
    }
}

/// What a mount has not stored, for people.
fn unstored(status: &Status) -> String {
    match &status.store_outage {
        Some(StoreOutage { seconds, reason }) => format!(
            "{} bytes when it was unmounted; the block store cannot be used for {seconds} s: {reason}",
            status.unstored_bytes
        ),
        None => format!("{} bytes when it was unmounted", status.unstored_bytes),
    }
}

/// A handle on the process `pid`, unless it is this one.
fn open_process(pid: u32) -> Option<OwnedFd> {
    if pid == std::process::id() {
        return None;
    }
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

fn wait_for_end(
    process: &OwnedFd,
    dir: &Path,
    status: &Status,
    force: bool,
    notice: impl FnOnce(&str),
) -> Result<(), MountError> {
    let ends =
        |limit| ends_within(process, limit).map_err(MountError::system("wait for the mount's process"));
    if ends(if force { FORCE_EVERY } else { END_QUIET })? {
        return Ok(());
    }
    let what = if force {
        "giving up what cannot be stored now"
    } else {
        "waiting until what was written is stored"
    };
    notice(&format!("unmounted; {what} ({})", unstored(status)));
    let within = if status.store_outage.is_some() { END_WITHIN_OUTAGE } else { END_WITHIN };
    let ended = if force {
        let give_up = Instant::now() + within;
        loop {
            // It is gone, if it cannot be told.
            let _ = pidfd_send_signal(process, Signal::TERM);
            match ends(FORCE_EVERY)? {
                false if Instant::now() < give_up => {}
                ended => break ended,
            }
        }
    } else {
        ends(within)?
    };
    match ended {
        true => Ok(()),
        false => {
            Err(MountError::StillStoring { dir: dir.to_owned(), pid: status.pid, what: unstored(status) })
        }
    }
}

fn ends_within(process: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = rustix::event::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ended => return ended.map(|ended| ended > 0).map_err(io::Error::from),
        }
    }
}
