//! Signals that tell a client to go, for commands that have something to end first: a snapshot, a backup.
//!
//! Handlers of signals stay installed for as long as the process lives. So that a shell in which a snapshot was taken does not
//! ignore SIGTERM from then on, a thread stays as well: a signal that comes while nobody minds ends the process, as if no
//! handler had ever been there.

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Who is to end while something is being asked for hears so long whether it has begun.
const BEGUN_WITHIN: Duration = Duration::from_secs(5);

/// Who minds signals now.
struct Minded {
    listeners: usize,
    /// One that is to end the process, and no more than what it is at, came while somebody did.
    told_to_end: bool,
}

static MINDED: Mutex<Minded> = Mutex::new(Minded { listeners: 0, told_to_end: false });

fn minded() -> MutexGuard<'static, Minded> {
    MINDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the process was told to end, and not just what it was at, which Ctrl-C does.
pub(crate) fn told_to_end() -> bool {
    minded().told_to_end
}

/// While there is one, signals are for whoever has it.
pub(crate) struct Interrupts {
    signals: Signals,
    _listening: Listening,
}

impl Interrupts {
    /// From now on. Within a runtime only.
    pub(crate) fn new() -> Result<Interrupts> {
        let listening = Listening::new();
        stand_by()?;
        Ok(Interrupts { signals: Signals::new()?, _listening: listening })
    }

    /// Waits for one.
    pub(crate) async fn next(&mut self) {
        self.signals.next().await;
    }

    /// Has something begun, and says whether a signal came meanwhile. Without an answer nobody knows whether it has.
    pub(crate) async fn beside<T>(&mut self, begin: impl Future<Output = T>) -> (Option<T>, bool) {
        tokio::pin!(begin);
        tokio::select! {
            begun = &mut begin => (Some(begun), false),
            () = self.next() => (tokio::time::timeout(BEGUN_WITHIN, &mut begin).await.ok(), true),
        }
    }
}

struct Listening;

impl Listening {
    fn new() -> Listening {
        minded().listeners += 1;
        Listening
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        minded().listeners -= 1;
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> Result<Signals> {
        let listen = |kind: SignalKind| signal(kind).context("cannot listen for signals");
        let hangup = if ignores_hangup() { None } else { Some(listen(SignalKind::hangup())?) };
        let (interrupt, terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        Ok(Signals { interrupt, terminate, hangup })
    }

    async fn next(&mut self) -> SignalKind {
        let Signals { interrupt, terminate, hangup } = self;
        let hung_up = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
            _ = hung_up => SignalKind::hangup(),
        }
    }
}

/// Whether it was started to outlive its terminal, as with nohup. Listening would undo that.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is number 1, so it is the lowest bit.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Starts the thread of the module, once.
fn stand_by() -> Result<()> {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let started = std::thread::Builder::new().name("signals".to_owned()).spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Without it signals do nothing once nobody minds.
        if let Ok(runtime) = runtime {
            runtime.block_on(end_when_told());
        }
    });
    started.map(drop).context("cannot listen for signals")
}

async fn end_when_told() {
    let Ok(mut signals) = Signals::new() else { return };
    loop {
        let signal = signals.next().await;
        let mut minded = minded();
        if minded.listeners == 0 {
            std::process::exit(128 + signal.as_raw_value());
        }
        minded.told_to_end |= signal != SignalKind::interrupt();
    }
}
