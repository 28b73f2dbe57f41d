//! Runs a snapshot program: starts it with its arguments and a clean environment, keeps the ends of what it says, and
//! sees to it that nothing of it is left, whatever it does.
//!
//! One loop waits for the program's end, its output, the time limit and an abort; the caller's thread is the only one.
//! The program runs in a process group that its guard leads, which ends it when this server is killed. Both stay unreaped
//! until the group is empty, so that their numbers cannot pass to somebody else while signals go there.

mod group;
mod guard;
mod output;

pub use guard::{GUARD, Guard, stand_guard};
pub use output::Output;

use crate::name::{Role, SnapshotUid};
use crate::whitelist::Program;
use group::Group;
use guard::Guarding;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, PipeReader, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a program finds as `PATH`; of the server's own environment it sees nothing.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long may pass between two looks at processes that no descriptor tells about.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Within this time those end who were killed together.
const AT_ONCE: Duration = Duration::from_millis(100);

/// A program and what it is told.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The program; only a [`Whitelist`](crate::Whitelist) gives one out.
    pub program: Program,
    /// The caller's own arguments, which come first.
    pub arguments: Vec<OsString>,
    /// The folder to make an image of.
    pub path: PathBuf,
    /// The server's version.
    pub version: String,
    /// What of the server the folder holds.
    pub role: Role,
    /// The snapshot.
    pub uid: SnapshotUid,
    /// What else it should know.
    pub surroundings: Surroundings,
    /// Who ends it when this process is killed.
    pub guard: Guard,
}

/// What a program finds in its environment, so that nothing has to be scraped out of /proc. Each is the variable
/// `CHRONOFS_SNAPSHOT_` and its name in upper case, and is left out where it is `None`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the names say it; each is a variable of that name")]
pub struct Surroundings {
    pub attempt: Option<String>,
    pub cluster_id: Option<String>,
    pub node_id: Option<String>,
    pub address: Option<String>,
    /// `key=value`, separated by commas.
    pub locality: Option<String>,
    pub epoch: Option<String>,
    /// When the program is killed, in seconds since the epoch.
    pub deadline: Option<String>,
    /// The path of the cluster file.
    pub cluster_file: Option<String>,
}

impl Surroundings {
    /// The variables that are set.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("CHRONOFS_SNAPSHOT_ATTEMPT", &self.attempt),
            ("CHRONOFS_SNAPSHOT_CLUSTER_ID", &self.cluster_id),
            ("CHRONOFS_SNAPSHOT_NODE_ID", &self.node_id),
            ("CHRONOFS_SNAPSHOT_ADDRESS", &self.address),
            ("CHRONOFS_SNAPSHOT_LOCALITY", &self.locality),
            ("CHRONOFS_SNAPSHOT_EPOCH", &self.epoch),
            ("CHRONOFS_SNAPSHOT_DEADLINE", &self.deadline),
            ("CHRONOFS_SNAPSHOT_CLUSTER_FILE", &self.cluster_file),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

/// What a server was started with that says where it stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Whereabouts {
    /// The path of its cluster file, which is absolute: a program starts in another folder.
    pub cluster_file: Option<PathBuf>,
    /// Machine, zone and so on.
    pub locality: BTreeMap<String, String>,
}

impl Whereabouts {
    /// As `key=value`, separated by commas; `None` if nothing is known.
    #[must_use]
    pub fn locality_text(&self) -> Option<String> {
        let pairs: Vec<_> = self.locality.iter().map(|(key, value)| format!("{key}={value}")).collect();
        (!pairs.is_empty()).then(|| pairs.join(","))
    }
}

/// How long a program may take for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Until it has ended: `SNAP_CREATE_MAX_TIMEOUT`.
    pub run: Duration,
    /// After SIGTERM, until SIGKILL.
    pub terminate: Duration,
    /// After its end, until the processes that it started have ended too.
    pub left: Duration,
    /// After SIGKILL; what the kernel does not let go by then is given up.
    pub kill: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let seconds = Duration::from_secs;
        Limits { run: seconds(300), terminate: seconds(5), left: seconds(2), kill: seconds(10) }
    }
}

/// Stops a program from another thread; also before it was started, so an abort is never too early.
#[derive(Clone, Debug)]
pub struct Abort(Arc<OwnedFd>);

impl Abort {
    /// One that nobody has pulled.
    pub fn new() -> io::Result<Abort> {
        Ok(Abort(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?)))
    }

    /// Ends the program and what it started, as the time limit does.
    pub fn abort(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// Whether somebody has pulled it.
    #[must_use]
    pub fn is_pulled(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&*self.0, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// How a program ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum End {
    /// By itself, with this status.
    #[error("exited with {0}")]
    Exited(i32),
    /// By a signal that was not ours.
    #[error("was killed by signal {0}")]
    Signalled(i32),
    /// It was not started.
    #[error("could not be started: {0}")]
    NotStarted(String),
    /// It exceeded its time, and was killed.
    #[error("did not end within {} s and was killed", .0.as_secs_f64())]
    TimedOut(Duration),
    /// It was stopped on demand.
    #[error("was aborted")]
    Aborted,
    /// Its guard is gone; without it nobody would end it if the server were killed.
    #[error("was killed, since the process that guards it had been killed by somebody")]
    Unguarded,
    /// It ended with 0 while processes that it had started went on, perhaps with the image; they were killed.
    #[error(
        "ended while {0} of the processes that it had started still ran; they were killed: let it wait for them"
    )]
    LeftRunning(usize),
    /// It, or what it started, stays in the kernel in spite of SIGKILL.
    #[error(
        "could not be killed: process {0} hangs in the kernel, most likely in a disk or file system that does not answer"
    )]
    Stuck(u32),
}

/// What came of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// How it ended.
    pub end: End,
    /// What it said, on standard output and standard error together.
    pub output: Output,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Only an end with status 0, with nothing left of it, makes an image.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.end == End::Exited(0)
    }
}

/// Runs a program to its end, or to its limit, or until `abort`. It blocks; nothing of the program is left afterwards.
#[must_use]
pub fn run(call: &Invocation, limits: &Limits, abort: &Abort) -> Report {
    let begun = Instant::now();
    let (end, output) = match Running::start(call) {
        Ok(running) => running.finish(begun, limits, abort),
        Err(error) => (End::NotStarted(error.to_string()), Output::default()),
    };
    Report { end, output, took: begun.elapsed() }
}

/// Why a wait came to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Ended,
    TimeIsUp,
    Aborted,
    Unguarded,
}

struct Running {
    child: Child,
    /// Readable when the program has ended.
    ended: OwnedFd,
    group: Group,
    guard: Guarding,
    /// `None` after its end was read.
    pipe: Option<PipeReader>,
    output: Output,
    /// Nothing of it is left, or it was given up; its number may be another's.
    over: bool,
}

impl Running {
    fn start(call: &Invocation) -> io::Result<Running> {
        let guard = call.guard.start()?;
        let (reader, writer) = pipe()?;
        let mut command = Command::new(call.program.path());
        command.args(&call.arguments).arg("--path").arg(&call.path).arg("--version").arg(&call.version);
        command.arg("--role").arg(call.role.as_str()).arg("--uid").arg(call.uid.as_str());
        command.env_clear().env("PATH", PATH).envs(call.surroundings.variables()).current_dir("/");
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        command.process_group(guard.group().as_raw_nonzero().get());
        let mut child = command.spawn()?;
        // The command holds our ends for writing, without which there is no end of file.
        drop(command);
        let pid = Pid::from_child(&child);
        let group = Group::new(guard.group(), pid);
        let opened = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from);
        match opened.and_then(|ended| guard.tell(pid, ended.as_fd()).map(|()| ended)) {
            Ok(ended) => {
                let (pipe, output) = (Some(reader), Output::default());
                Ok(Running { child, ended, group, guard, pipe, output, over: false })
            }
            Err(error) => {
                // Nobody could wait for it with a limit, or end it when this server is killed.
                group.signal(Signal::KILL);
                child.wait()?;
                Err(error)
            }
        }
    }

    fn finish(mut self, begun: Instant, limits: &Limits, abort: &Abort) -> (End, Output) {
        let mut event = self.until_ended(begun + limits.run, Some(abort));
        if event == Event::Unguarded && self.until_ended(Instant::now() + AT_ONCE, None) == Event::Ended {
            // One signal ended both.
            event = Event::Ended;
        }
        let mut stopped = match event {
            Event::Ended => None,
            Event::Unguarded => Some(End::Unguarded),
            Event::TimeIsUp => Some(End::TimedOut(limits.run)),
            Event::Aborted => Some(End::Aborted),
        };
        if stopped.is_some() {
            self.group.signal(Signal::TERM);
            let _ = self.until_ended(Instant::now() + limits.terminate, None);
        } else {
            let left = self.until_empty(Instant::now() + limits.left);
            stopped = (left > 0).then_some(End::LeftRunning(left));
        }
        if stopped.is_some() {
            self.group.signal(Signal::KILL);
            let until = Instant::now() + limits.kill;
            let ended = self.until_ended(until, None) == Event::Ended;
            if !ended || self.until_empty(until) > 0 {
                stopped = Some(End::Stuck(self.child.id()));
            }
        }
        self.drain();
        self.over = true;
        let status = self.reap(matches!(stopped, Some(End::Stuck(_))));
        let end = match (status, stopped) {
            (Some(Ok(status)), None) => ended_with(status),
            // Its own failure tells more than what it left behind.
            (Some(Ok(status)), Some(End::LeftRunning(left))) if status.success() => End::LeftRunning(left),
            (Some(Ok(status)), Some(End::LeftRunning(_))) => ended_with(status),
            (_, Some(stopped)) => stopped,
            (Some(Err(error)), None) => End::NotStarted(format!("it cannot be waited for: {error}")),
            (None, None) => End::Stuck(self.child.id()),
        };
        (end, std::mem::take(&mut self.output))
    }

    /// Waits for the program's end, and reads what it says meanwhile. An abort is heeded, and the guard's end, where there is
    /// an `abort` to heed.
    fn until_ended(&mut self, until: Instant, abort: Option<&Abort>) -> Event {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = vec![PollFd::new(&self.ended, PollFlags::IN)];
            if let Some(abort) = abort {
                fds.extend([PollFd::new(&*abort.0, PollFlags::IN), PollFd::new(&self.guard, PollFlags::IN)]);
            }
            fds.extend(self.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            if wait(&mut fds, left).is_err() {
                // Interrupted: look again. Nothing else can happen to descriptors that are ours.
                continue;
            }
            let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
            let (ended, aborted) = (ready(0), abort.is_some() && ready(1));
            let unguarded = abort.is_some() && ready(2);
            let said = ready(fds.len() - 1) && self.pipe.is_some();
            if said {
                self.hear();
            }
            match (ended, aborted) {
                (true, _) => return Event::Ended,
                (_, true) => return Event::Aborted,
                _ if unguarded => return Event::Unguarded,
                _ if left.is_zero() => return Event::TimeIsUp,
                _ => {}
            }
        }
    }

    /// Waits until only the dead program and its guard are left of the group, and says how many others are if that does not happen.
    fn until_empty(&mut self, until: Instant) -> usize {
        loop {
            let others = self.group.others();
            if others == 0 || Instant::now() >= until {
                return others;
            }
            let mut fds: Vec<_> = self.pipe.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
            let heard = wait(&mut fds, LOOK_AGAIN).is_ok_and(|ready| ready > 0);
            if heard {
                self.hear();
            }
        }
    }

    /// Reads once from the pipe, which has something or is at its end.
    fn hear(&mut self) -> usize {
        let Some(pipe) = &mut self.pipe else { return 0 };
        match self.output.read_from(pipe) {
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted) => 1,
            Ok(read) if read > 0 => read,
            // Its end, or nothing that could be read ever again.
            _ => {
                self.pipe = None;
                0
            }
        }
    }

    /// Reads what is left in the pipe. A process that left the group may hold it and go on writing: so without waiting,
    /// and not more than any pipe holds.
    fn drain(&mut self) {
        let mut most = 1 << 20;
        let quiet = |pipe: &PipeReader| rustix::io::ioctl_fionbio(pipe, true).is_ok();
        while most > 0 && self.pipe.as_ref().is_some_and(quiet) {
            most -= self.hear().min(most);
        }
        self.pipe = None;
    }

    /// `None` if it cannot be reaped now; then a thread waits for it, so that it leaves no zombie when it ends one day.
    fn reap(&mut self, stuck: bool) -> Option<io::Result<ExitStatus>> {
        if !stuck {
            return Some(self.child.wait());
        }
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(Ok(status));
        }
        let pid = self.group.program();
        std::thread::spawn(move || {
            rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
        });
        None
    }
}

/// If its thread panics, its guard goes without ending it.
impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            self.group.signal(Signal::KILL);
            drop(self.reap(true));
        }
    }
}

fn ended_with(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, signal) => End::Signalled(signal.unwrap_or_default()),
    }
}

/// Rounded up, so that a wait does not spin in its last millisecond.
fn wait(fds: &mut [PollFd<'_>], most: Duration) -> rustix::io::Result<usize> {
    let most = most + Duration::from_micros(100);
    let timeout = Timespec {
        tv_sec: most.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: most.subsec_nanos().into(),
    };
    poll(fds, Some(&timeout))
}
