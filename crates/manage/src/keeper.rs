//! Services where no systemd runs: a keeper for each, which starts the server again when it ends by itself.
//!
//! The keeper holds a lock on `RUN/NAME.pid` for as long as it lives, so nobody takes the number of another process for it.
//! The file holds its number and that of the server, which is checked against what runs under it, and how often a server has ended.

use crate::{LAST_WORDS, STARTED_AFTER, Service, State, last_lines, make_folder};
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// A server that did not end within this time after SIGTERM is killed, as by the unit's TimeoutStopSec.
const STOPS_WITHIN: Duration = Duration::from_secs(60);
/// The pauses before a server is started again: doubled each time, and the first again when it ran for longer than the last.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The keeper looks after its server so often.
const SERVER_LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOKS_END_WITHIN: Duration = Duration::from_secs(2);

/// What stands in the file: the keeper, and the server while it runs.
#[derive(Clone, Copy, Default)]
struct Kept {
    locked: bool,
    keeper: Option<Pid>,
    server: Option<Pid>,
    /// How often a server has ended by itself under this keeper.
    ended: u32,
}

pub(crate) fn state(service: &Service) -> Result<State> {
    let kept = look(service)?;
    Ok(match (kept.locked, kept.server) {
        (_, Some(server)) => State::Running(server.as_raw_nonzero().get().unsigned_abs()),
        (true, None) => State::Restarting,
        (false, None) => State::Stopped,
    })
}

pub(crate) fn start(service: &Service) -> Result<()> {
    let Service { name, places, own } = service;
    // What cannot be run is said here and not in a log.
    service.command()?;
    make_folder(&places.run)?;
    make_folder(&places.logs)?;
    let log = service.log();
    let said = OpenOptions::new().create(true).append(true).open(&log);
    let said = said.with_context(|| format!("cannot write {}", log.display()))?;
    let mut keeper = Command::new(own);
    keeper.args(["manage", "keep", name, "--unit-dir"]).arg(&places.units);
    keeper.arg("--run-dir").arg(&places.run).arg("--log-dir").arg(&places.logs);
    keeper.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).process_group(0);
    let mut keeper = keeper.spawn().context("cannot start a keeper")?;
    let (begun, mut running) = (Instant::now(), None);
    loop {
        sleep(LOOK_EVERY);
        let kept = look(service)?;
        let server = kept.server;
        // It may have ended before anybody looked. What a keeper before has left does not count.
        let ended = kept.ended > 0 && kept.keeper == pid_of(keeper.id());
        if let Some(status) = keeper.try_wait().context("cannot wait for the keeper")? {
            bail!("{name} was not started, {status}:\n{}", last_lines(&log, LAST_WORDS)?);
        }
        match (server, running) {
            (Some(pid), Some((first, since))) if pid == first => {
                if Instant::duration_since(&Instant::now(), since) >= STARTED_AFTER {
                    return Ok(());
                }
            }
            (Some(pid), None) => running = Some((pid, Instant::now())),
            (None, None) if begun.elapsed() < STOPS_WITHIN && !ended => {}
            // It has ended, or is another one.
            _ => {
                let said = last_lines(&log, LAST_WORDS)?;
                stop(service)?;
                bail!("{name} ended as soon as it was started:\n{said}");
            }
        }
    }
}

pub(crate) fn stop(service: &Service) -> Result<()> {
    let kept = look(service)?;
    // A keeper that was killed has left its server behind.
    let whom = if kept.locked { kept.keeper } else { kept.server };
    let begun = Instant::now();
    if let Some(pid) = whom {
        end(pid, Signal::TERM)?;
    }
    while state(service)? != State::Stopped {
        if begun.elapsed() > STOPS_WITHIN + Duration::from_secs(10) {
            bail!(
                "{} does not end; its last words:\n{}",
                service.name,
                last_lines(&service.log(), LAST_WORDS)?
            );
        }
        sleep(LOOK_EVERY);
    }
    Ok(())
}

pub(crate) fn show_log(service: &Service, lines: u32, follow: bool) -> Result<Infallible> {
    let mut command = Command::new("tail");
    command.args(["-n", &lines.to_string()]);
    if follow {
        command.arg("-F");
    }
    Err(command.arg(service.log()).exec()).context("cannot run tail")
}

/// Keeps a service running until SIGTERM or SIGINT. For [`Service::start`]'s child.
///
/// # Errors
/// Another keeper is there, or the server cannot be run.
pub fn keep(service: &Service) -> Result<()> {
    // Nobody's Ctrl-C and no end of a login ends it.
    let _ = rustix::process::setsid();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(keep_running(service))
}

async fn keep_running(service: &Service) -> Result<()> {
    let path = service.lock();
    // Nobody else is to lock it.
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
    let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let left = read(service, &mut file, false)?.server;
    let begun = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Whoever looks holds the lock as well, for a moment.
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOOKS_END_WITHIN => {
                tokio::time::sleep(LOOK_EVERY).await
            }
            Err(Errno::WOULDBLOCK) => bail!("{} runs already", service.name),
            locked => break locked.with_context(|| format!("cannot lock {}", path.display()))?,
        }
    }
    if let Some(pid) = left {
        bail!(
            "process {} of a keeper that was killed still runs; chronofs manage stop ends it",
            pid.as_raw_nonzero()
        );
    }
    // What stands there may be the number of one that was.
    write(&file, None, 0)?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let (mut pause, mut times) = (PAUSE_FIRST, 0u32);
    loop {
        let command = service.command()?;
        let server = Command::new(&command[0]).args(&command[1..]).stdin(Stdio::null()).spawn();
        let mut server = server.with_context(|| format!("cannot run {}", command[0]))?;
        let began = Instant::now();
        write(&file, Some(server.id()), times)?;
        let ended = tokio::select! {
            ended = ended(&mut server) => Some(ended?),
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        };
        let Some(ended) = ended else {
            let ended = finish(&mut server).await;
            write(&file, None, times)?;
            return ended;
        };
        times = times.saturating_add(1);
        write(&file, None, times)?;
        if began.elapsed() > pause {
            pause = PAUSE_FIRST;
        }
        eprintln!("{} ended by itself, {ended}; it is started again in {} s", service.name, pause.as_secs());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Waits until the server has ended.
async fn ended(server: &mut Child) -> Result<ExitStatus> {
    loop {
        if let Some(ended) = server.try_wait().context("cannot wait for the server")? {
            return Ok(ended);
        }
        tokio::time::sleep(SERVER_LOOK_EVERY).await;
    }
}

/// Ends the server.
async fn finish(server: &mut Child) -> Result<()> {
    if let Some(pid) = pid_of(server.id()) {
        end(pid, Signal::TERM)?;
    }
    match tokio::time::timeout(STOPS_WITHIN, ended(server)).await {
        Ok(ended) => ended.map(drop),
        Err(_) => {
            eprintln!("the server did not end within {} s and is killed", STOPS_WITHIN.as_secs());
            server.kill().context("cannot kill the server")?;
            server.wait().map(drop).context("cannot wait for the server")
        }
    }
}

/// What runs of a service now.
fn look(service: &Service) -> Result<Kept> {
    let path = service.lock();
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Kept::default()),
        file => file.with_context(|| format!("cannot open {}", path.display()))?,
    };
    let locked = match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => true,
        free => free.map(|()| false).with_context(|| format!("cannot lock {}", path.display()))?,
    };
    read(service, &mut file, locked)
}

fn read(service: &Service, file: &mut File, locked: bool) -> Result<Kept> {
    let mut text = String::new();
    file.read_to_string(&mut text).context("cannot read which processes run")?;
    let mut numbers = text.lines().map(|line| line.trim().parse::<u32>().ok());
    let keeper = numbers
        .next()
        .flatten()
        .and_then(pid_of)
        .filter(|pid| runs(*pid, &["manage", "keep", &service.name]));
    let server = match (numbers.next().flatten().and_then(pid_of), service.command()) {
        (None, _) => None,
        // The unit file may have been changed since, but not what it is a unit of.
        (Some(pid), Ok(command)) => {
            let command: Vec<&str> = command.iter().skip(1).take(2).map(String::as_str).collect();
            Some(pid).filter(|pid| runs(*pid, &command))
        }
        // The keeper knows.
        (Some(_), Err(_)) if keeper.is_some() => None,
        // Without keeper and unit nobody can tell: it is not said that nothing runs.
        (Some(_), Err(error)) => return Err(error),
    };
    let ended = numbers.next().flatten().unwrap_or(0);
    Ok(Kept { locked, keeper, server, ended })
}

/// Whether the process is what was started with these arguments first, and not one that has got its number since. Also as a
/// zombie that nobody has reaped it has ended.
fn runs(pid: Pid, arguments: &[&str]) -> bool {
    let Ok(runs) = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else { return false };
    let mut runs = runs.split(|byte| *byte == 0).skip(1);
    arguments.iter().all(|argument| runs.next() == Some(argument.as_bytes()))
}

fn write(file: &File, server: Option<u32>, ended: u32) -> Result<()> {
    // Always as long, and put at once: whoever looks meanwhile sees the old or the new.
    let server = server.map(|pid| pid.to_string()).unwrap_or_default();
    let text = format!("{:>10}\n{server:>10}\n{ended:>10}\n", std::process::id());
    file.write_all_at(text.as_bytes(), 0).context("cannot write which processes run")
}

fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Sends a signal; a process that is gone needs none.
fn end(pid: Pid, signal: Signal) -> Result<()> {
    match kill_process(pid, signal) {
        Err(Errno::SRCH) => Ok(()),
        sent => sent.with_context(|| format!("cannot end process {}", pid.as_raw_nonzero())),
    }
}
