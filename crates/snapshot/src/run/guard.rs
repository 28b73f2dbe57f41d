//! Ends a program whose server is gone: killed, it cannot do so itself.
//!
//! A guard is a process of our own executable. It leads the process group in which the program then runs, and holds one end
//! of a socket whose other end only the server has. When that end closes, which the kernel does however the server ends, the
//! guard kills the group. Since it leads the group from before the program starts until it is reaped, the number of the group
//! is never another's, and there is no moment at which a program runs without it.
//!
//! The group gets SIGTERM sometimes, from the server or from the program itself, so the guard blocks signals before it says
//! that it is there. A program may leave the group (`setsid`); so the server sends a descriptor of it, too.

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process_group, pidfd_send_signal};
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, stdin};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The first argument of a guard. Whoever hands in its executable has its `main` call [`stand_guard`] then.
pub const GUARD: &str = "snap-guard";
/// A guard that is not there by then does not come; it does nothing before but to start.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How much a guard gives way to others. What it takes is the time to load an executable, just when programs start on every
/// image at once; those who wait for the server have a better use for that.
const NICE: i32 = 10;

/// How guards are started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guard {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Guard {
    /// By another program, for tests of what is no executable with a `main` of ours.
    #[must_use]
    pub fn by(program: PathBuf, arguments: Vec<OsString>) -> Guard {
        Guard { program, arguments }
    }

    /// Starts one. It is there when this returns.
    pub(super) fn start(&self) -> io::Result<Guarding> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(&self.program);
        command.arg0("chronofs").args(&self.arguments).current_dir("/").process_group(0);
        command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        let process = start_giving_way(&mut command)?;
        // The command holds their end, without which it would never be closed.
        drop(command);
        let guarding = Guarding { process, socket: ours };
        let until = Instant::now() + READY_WITHIN;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match super::wait(&mut [PollFd::new(&guarding.socket, PollFlags::IN)], left) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        match rustix::net::recv(&guarding.socket, &mut [0; 1], RecvFlags::DONTWAIT) {
            Ok((1.., _)) => Ok(guarding),
            // It says why only to who starts it by hand.
            _ => Err(io::Error::other("its guard, another process of this executable, did not start")),
        }
    }
}

/// Starts a process that gives way to others. A thread of its own does it, since priority is a thread's, is inherited, and
/// cannot be raised again by everybody.
fn start_giving_way(command: &mut Command) -> io::Result<Child> {
    thread::scope(|scope| {
        let start = || {
            // Without it the guard takes what others would have.
            let _ = rustix::process::nice(NICE);
            command.spawn()
        };
        let starting = thread::Builder::new().name("snapshot-guard".to_owned()).spawn_scoped(scope, start)?;
        starting.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts a guard panicked")))
    })
}

/// By the executable that this process runs, also if its file was replaced since.
impl Default for Guard {
    fn default() -> Guard {
        Guard::by(PathBuf::from("/proc/self/exe"), vec![GUARD.into()])
    }
}

/// A guard at work. Dropped, it goes, and whom it guards stays.
#[derive(Debug)]
pub(super) struct Guarding {
    process: Child,
    /// Readable when the guard is gone.
    socket: OwnedFd,
}

impl Guarding {
    /// The group that it leads.
    pub(super) fn group(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Tells it whom it guards, wherever that goes.
    pub(super) fn tell(&self, program: Pid, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [pidfd];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let number = program.as_raw_nonzero().get().to_ne_bytes();
        match sendmsg(&self.socket, &[IoSlice::new(&number)], &mut control, SendFlags::NOSIGNAL) {
            // The program was so quick as to end it. Whoever waits for the program sees that.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Guarding {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Guarding {
    fn drop(&mut self) {
        // What is gone already is no error; and reaped it is in any case.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a guard does: nothing, until its server is gone. Then it ends the program, all of its group, and itself.
pub fn stand_guard() -> io::Result<()> {
    // Whoever starts it by hand is not to lose a group that is somebody else's.
    if getpgrp() != getpid() {
        return Err(io::Error::other("a guard is started by the servers alone"));
    }
    SigSet::all().thread_block()?;
    let server = stdin();
    rustix::net::send(&server, &[1], SendFlags::NOSIGNAL)?;
    let mut program = None;
    loop {
        match hear(server.as_fd()) {
            Ok(Some(told)) => program = Some(told),
            Err(Errno::INTR) => {}
            // Whatever keeps it from hearing the server keeps it from hearing of its end.
            Ok(None) | Err(_) => break,
        }
    }
    if let Some((number, pidfd)) = program {
        // Stopped it does not end, so that a group with its number is its own.
        if pidfd_send_signal(&pidfd, Signal::STOP).is_ok() {
            let _ = kill_process_group(number, Signal::KILL);
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
    Ok(kill_process_group(getpgrp(), Signal::KILL)?)
}

/// The next word of the server; `None` at its end.
fn hear(server: BorrowedFd<'_>) -> Result<Option<(Pid, OwnedFd)>, Errno> {
    let mut number = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let heard = recvmsg(server, &mut [IoSliceMut::new(&mut number)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if heard.bytes == 0 {
        return Ok(None);
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let program = Pid::from_raw(i32::from_ne_bytes(number)).zip(descriptor);
    program.map(Some).ok_or(Errno::BADMSG)
}
