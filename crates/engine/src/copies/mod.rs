//! Copies of the log, in folders on other disks or on other machines.
//!
//! What is copied are the bytes of the log's files, so a copy is a log that recovery can read. One thread for each copy reads
//! what was written from the log's own files and ships it; one more asks the coordinator for another epoch when a copy failed
//! or came back. [`owner`] and [`fence`] decide, and do no I/O. Laid out in `docs/arch/copies.md`.

pub mod fence;
pub mod folder;
pub mod link;
pub mod owner;
pub mod recover;
mod ship;

pub use folder::FolderCopy;
pub use link::{CopyError, Held, Holding, Link, Wake};
pub use owner::{Change, CopyStatus, Health, Owner, Quorum};

use crate::EngineError;
use crate::embedded::Place;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a copy may owe what was written before it is left out.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Who does not count and is further behind, or has been away for longer, is not waited for: the log's space is freed.
const LAG_MAX_SEGMENTS: u64 = 64;
/// After the coordinator could not be asked.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How often the clock is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same where there is no copy.
const IDLE: Duration = Duration::from_secs(60);

/// Why the coordinator did not record a change.
#[derive(Debug)]
pub enum NotRecorded {
    /// Somebody else owns the log now. For good.
    Superseded(String),
    /// Whether it was recorded is not known: the same is to be asked again.
    Unknown(String),
}

/// Who records which copies count. Asked again after an unknown outcome, it must answer as the first time.
pub trait Coordinator: Send + Sync {
    /// Records a change under a new epoch, above `above`, and gives it.
    fn change(&self, change: &Change, above: u64) -> Result<u64, NotRecorded>;
}

/// Reaches a copy by its name.
pub type Connect = Arc<dyn Fn(&str) -> Result<Box<dyn Link>, CopyError> + Send + Sync>;

/// What it takes to have copies.
#[derive(Clone)]
pub struct Setup {
    /// The epoch under which this start owns the log.
    pub epoch: u64,
    /// What the coordinator has recorded.
    pub recorded: Quorum,
    /// What operators want.
    pub wanted: Quorum,
    /// Who records.
    pub coordinator: Arc<dyn Coordinator>,
    /// How copies are reached.
    pub connect: Connect,
    /// See [`DEADLINE`].
    pub deadline: Duration,
}

/// The log that is copied.
pub(crate) trait Source: Send + Sync + 'static {
    /// Its segments, oldest first, and where each but the newest ends.
    fn ends(&self) -> Vec<(u64, Option<u64>)>;

    /// Bytes of a segment.
    fn read(&self, place: Place, length: usize) -> Result<Bytes, EngineError>;
}

/// The copies of a log that runs.
pub struct Copies {
    setup: Setup,
    begun: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    owner: Owner,
    /// Why nothing can be made durable any more.
    ended: Option<String>,
    closing: bool,
    /// A copy obeys an owner of this epoch.
    fenced: u64,
    /// Segments before this are not needed for a recovery.
    trim: u64,
    /// What the coordinator answered last, if it did not record.
    unrecorded: Option<String>,
    /// Which thread ships to each copy, by the number that it was given. One that hangs in a copy that was taken out and named
    /// again meanwhile has nothing to say any more.
    shippers: BTreeMap<String, u64>,
    threads: Vec<JoinHandle<()>>,
}

impl State {
    fn is_shipper(&self, name: &str, number: u64) -> bool {
        self.owner.knows(name) && self.shippers.get(name) == Some(&number)
    }
}

impl Copies {
    /// The copies of a log that ends at `end`.
    pub(crate) fn new(setup: Setup, end: Place) -> Arc<Self> {
        let deadline_ms = u64::try_from(setup.deadline.as_millis()).unwrap_or(u64::MAX);
        let owner = Owner::new(setup.epoch, setup.recorded.clone(), &setup.wanted, end, deadline_ms);
        let state = State {
            owner,
            ended: None,
            closing: false,
            fenced: 0,
            trim: 0,
            unrecorded: None,
            shippers: BTreeMap::new(),
            threads: Vec::new(),
        };
        Arc::new(Copies { setup, begun: Instant::now(), state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn wait_a_while<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Begins to ship what `source` holds.
    pub(crate) fn start(self: &Arc<Self>, source: Arc<dyn Source>) -> Result<(), EngineError> {
        // From now on they owe what is there.
        let end = self.lock().owner.target();
        self.written(end);
        let asking = self.clone();
        self.spawn("log-epoch", move || asking.keep_epoch())?;
        let known: Vec<String> = self.lock().owner.status().into_iter().map(|copy| copy.name).collect();
        self.ship_to(known, &source)
    }

    /// Operators want these copies from now on.
    pub(crate) fn want(
        self: &Arc<Self>,
        wanted: &Quorum,
        source: &Arc<dyn Source>,
    ) -> Result<(), EngineError> {
        let new = self.lock().owner.want(wanted);
        self.changed.notify_all();
        self.ship_to(new, source)
    }

    fn ship_to(self: &Arc<Self>, names: Vec<String>, source: &Arc<dyn Source>) -> Result<(), EngineError> {
        for name in names {
            let number = {
                let mut state = self.lock();
                let last = state.shippers.values().copied().max().unwrap_or(0);
                state.shippers.insert(name.clone(), last + 1);
                last + 1
            };
            let (copies, source) = (self.clone(), source.clone());
            self.spawn("log-copy", move || copies.keep_shipping(&name, number, &*source))?;
        }
        Ok(())
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), EngineError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let path = name.to_owned();
        let thread = thread.map_err(|source| EngineError::Io { action: "start the thread", path, source })?;
        self.lock().threads.push(thread);
        Ok(())
    }

    /// The log goes up to `place`, and that is to be durable.
    pub(crate) fn written(&self, place: Place) {
        let now_ms = self.now_ms();
        let mut state = self.lock();
        state.owner.written(place, now_ms);
        let any = state.owner.has_copies();
        drop(state);
        if any {
            self.changed.notify_all();
        }
    }

    /// Returns when enough copies have everything before `place`.
    pub(crate) fn wait(&self, place: Place) -> Result<(), EngineError> {
        let mut state = self.lock();
        loop {
            if let Some(why) = &state.ended {
                return Err(EngineError::Stopped(why.clone()));
            }
            if state.owner.durable() >= place {
                return Ok(());
            }
            if state.closing {
                return Err(EngineError::Stopped("the log copies are closed".to_owned()));
            }
            state = self.wait_a_while(state, LOOK_EVERY);
        }
    }

    /// Whether no copy needs a segment any more.
    pub(crate) fn may_pop(&self, segment: u64) -> bool {
        let mut state = self.lock();
        let newest = state.owner.target().segment;
        state.owner.limit_lag(|at| newest.saturating_sub(at.segment) > LAG_MAX_SEGMENTS);
        state.owner.needed(LAG_MAX_SEGMENTS).is_none_or(|needed| needed.segment > segment)
    }

    /// Copies need not keep segments before this one: a snapshot has what is in them.
    pub fn trim(&self, before: u64) {
        let mut state = self.lock();
        state.trim = state.trim.max(before);
        drop(state);
        self.changed.notify_all();
    }

    /// Nothing is waited for any more: what is not durable yet is not called so.
    pub fn give_up(&self, why: &str) {
        self.lock().ended.get_or_insert_with(|| why.to_owned());
        self.changed.notify_all();
    }

    /// Ends the threads. A copy that hangs is left to itself: the process is about to end.
    pub(crate) fn close(&self) {
        let threads = {
            let mut state = self.lock();
            state.closing = true;
            std::mem::take(&mut state.threads)
        };
        self.changed.notify_all();
        let until = Instant::now() + self.setup.deadline;
        for thread in threads {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            if thread.is_finished() {
                // A thread that panicked has said so itself.
                let _ = thread.join();
            }
        }
    }

    /// Asks the coordinator for other epochs, until the copies are closed.
    fn keep_epoch(&self) {
        let mut state = self.lock();
        let mut told = false;
        while !state.closing {
            let now_ms = self.now_ms();
            state.owner.tick(now_ms);
            if !told && !state.owner.confirmed() && self.begun.elapsed() > self.setup.deadline {
                told = true;
                tracing::error!(
                    "the start waits for copies of the log, which must confirm that this log is not an old one; one that is lost for good is taken out with configure update metadata-store --log-copies, and another start"
                );
            }
            let fenced = state.fenced;
            let epoch = state.owner.epoch();
            if fenced > epoch && state.owner.wants_change().is_none() {
                state.owner.renew();
            }
            let Some(change) = state.owner.wants_change().filter(|_| state.ended.is_none()) else {
                let time = if state.owner.has_copies() { LOOK_EVERY } else { IDLE };
                state = self.wait_a_while(state, time);
                continue;
            };
            drop(state);
            let answer = self.setup.coordinator.change(&change, fenced);
            state = self.lock();
            match answer {
                Ok(epoch) => {
                    let (members, lacking) = (&change.quorum.members, change.quorum.anti_quorum);
                    tracing::warn!(
                        epoch,
                        ?members,
                        lacking,
                        "a new epoch of the log: these copies count from now on"
                    );
                    state.unrecorded = None;
                    state.owner.changed(epoch);
                    self.changed.notify_all();
                }
                Err(NotRecorded::Superseded(why)) => {
                    state.ended = Some(format!("the log has another owner: {why}"));
                    self.changed.notify_all();
                }
                Err(NotRecorded::Unknown(why)) => {
                    if state.unrecorded.is_none() {
                        tracing::error!(
                            "the copies of the log cannot be changed, and nothing becomes durable meanwhile: {why}"
                        );
                    }
                    state.unrecorded = Some(why);
                    state = self.wait_a_while(state, ASK_AGAIN);
                }
            }
        }
    }

    /// How the copies are: each one, the epoch, and why no other epoch can be had, if so.
    pub fn status(&self) -> Status {
        let state = self.lock();
        Status {
            epoch: state.owner.epoch(),
            anti_quorum: state.owner.recorded().anti_quorum,
            end: state.owner.target(),
            copies: state.owner.status(),
            unrecorded: state.unrecorded.clone(),
        }
    }
}

/// See [`Copies::status`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The epoch of the log.
    pub epoch: u64,
    /// So many copies may lack what is durable.
    pub anti_quorum: usize,
    /// Where the log ends.
    pub end: Place,
    /// Each copy.
    pub copies: Vec<CopyStatus>,
    /// Why the coordinator does not record another epoch, though one is wanted.
    pub unrecorded: Option<String>,
}
