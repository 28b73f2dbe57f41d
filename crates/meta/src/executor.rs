//! The threads around the core: one decides, a few read, one makes durable.

use crate::core::{Core, Decided};
use crate::machine::{
    ConnId, DeleteJob, Effect, Event, Now, ObjectAction, ObjectJob, PackJob, ReadJob, SharedView,
    SignedAnswer, kind_of, objects,
};
use crate::metrics::Metrics;
use crate::server::outbox::Outbox;
use crate::sync::{SyncState, sync_loop};
use chronofs_core::{Errno, Version};
use chronofs_engine::{EngineError, ReadStop, View};
use chronofs_namespace::{Ctx, FREED_MAX};
use chronofs_wire::message::{Hello, HelloAnswer, ToClient};
use chronofs_wire::question::{KeyOp, KeyRefused, KeyReply};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

/// How many inputs may be queued before connections have to wait.
const QUEUE: usize = 4096;
/// How many inputs are taken at once.
const GROUP_MAX: usize = 256;
/// Threads that do the longer reads.
const READERS: usize = 2;

/// Something to be done on the executor's thread.
pub type Ask = Box<dyn FnOnce(&mut Core, Now) + Send>;

/// What the executor is handed.
pub enum Input {
    /// A connection says hello.
    Open(ConnId, Arc<Outbox>, Box<Hello>),
    /// Frames of one connection. Their bytes count as in flight for as long as the permit is held: until they are
    /// decided.
    Received(Vec<Event>, OwnedSemaphorePermit),
    /// Whatever else happens.
    Events(Vec<Event>),
    /// A question about the machine.
    Ask(Ask),
    /// An operator's question about the key space. Not answered if the server ends before.
    Keys(KeyOp, oneshot::Sender<Result<KeyReply, KeyRefused>>),
    /// The clean end. Answered when all is durable.
    Stop(oneshot::Sender<Result<(), EngineError>>),
}

/// Who carries out what the executor does not.
pub trait ObjectHandler: Send + Sync + 'static {
    /// Stores or reads an object and puts the answer into the outbox.
    fn handle(&self, job: ObjectJob, outbox: Arc<Outbox>);

    /// Puts an answer into the outbox, and before it requests for the objects that it names.
    fn send_signed(&self, answer: SignedAnswer, outbox: Arc<Outbox>);

    /// Deletes objects and tells what became of them.
    fn delete(&self, job: DeleteJob, tell: mpsc::WeakSender<Input>);

    /// Stores staged slices that `view` has in an object, and tells.
    fn pack(&self, job: PackJob, view: Arc<dyn View>, tell: mpsc::WeakSender<Input>);
}

/// What the server's clocks show.
pub fn now() -> Now {
    let wall_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    // The clients measure with this clock too: what they cache has run out here no earlier than there.
    let steady = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let steady_ns =
        (steady.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(steady.tv_nsec as u64);
    Now { wall_ns, steady_ns }
}

/// The running executor.
pub struct Executor {
    /// Where inputs go.
    pub queue: mpsc::Sender<Input>,
    /// Resolves when a thread failed; then the process is to end.
    pub failed: oneshot::Receiver<EngineError>,
    thread: JoinHandle<()>,
    syncer: (Arc<SyncState>, JoinHandle<()>),
}

impl Executor {
    /// Starts the threads.
    pub fn start(
        core: Core,
        metrics: Arc<Metrics>,
        objects: impl ObjectHandler,
        questions: watch::Sender<u64>,
    ) -> std::io::Result<Executor> {
        let (queue, inputs) = mpsc::channel(QUEUE);
        let (failure, failed) = oneshot::channel();
        let failure = Arc::new(Mutex::new(Some(failure)));
        let sync_state = Arc::new(SyncState::default());
        let syncer = std::thread::Builder::new().name("meta-sync".to_owned()).spawn({
            let (state, engine, queue) = (sync_state.clone(), core.engine.clone(), queue.clone());
            let (metrics, failure) = (metrics.clone(), failure.clone());
            move || {
                let failure = ReportsPanic(failure);
                sync_loop(&state, &*engine, &queue, &metrics).unwrap_or_else(|error| fail(&failure.0, error))
            }
        })?;
        let objects: Arc<dyn ObjectHandler> = Arc::new(objects);
        let readers = (0..READERS).map(|n| spawn_reader(n, metrics.clone(), objects.clone()));
        let readers = readers.collect::<Result<_, _>>()?;
        let worker = Worker {
            core,
            metrics,
            outboxes: HashMap::new(),
            readers,
            objects,
            queue: queue.downgrade(),
            questions,
            sync: sync_state.clone(),
            full_since: None,
            keyed: HashMap::new(),
            next_key: 0,
        };
        let thread = std::thread::Builder::new().name("meta-exec".to_owned()).spawn(move || {
            let failure = ReportsPanic(failure);
            worker.run(inputs).unwrap_or_else(|error| fail(&failure.0, error))
        })?;
        Ok(Executor { queue, failed, thread, syncer: (sync_state, syncer) })
    }

    /// Ends in order: replies are written, all is made durable. Blocks the calling thread.
    pub fn stop(self) -> Result<(), EngineError> {
        let stopped = || EngineError::Stopped("the executor is gone".to_owned());
        let (sender, done) = oneshot::channel();
        let result = match self.queue.blocking_send(Input::Stop(sender)) {
            Ok(()) => done.blocking_recv().unwrap_or_else(|_| Err(stopped())),
            Err(_) => Err(stopped()),
        };
        let (state, syncer) = self.syncer;
        state.change(|inner| inner.stop = true);
        drop(self.queue);
        let joined = self.thread.join().is_ok() && syncer.join().is_ok();
        if joined { result } else { Err(stopped()) }
    }
}

type Failure = Mutex<Option<oneshot::Sender<EngineError>>>;

/// Ends the server when the thread that holds it panics: without one of its threads it would only look alive.
struct ReportsPanic(Arc<Failure>);

impl Drop for ReportsPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fail(&self.0, EngineError::Stopped("a thread of the server panicked".to_owned()));
        }
    }
}

fn fail(failure: &Failure, error: EngineError) {
    tracing::error!(%error, "the metadata store failed; the server ends");
    if let Some(sender) = failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        drop(sender.send(error));
    }
}

struct Worker {
    core: Core,
    metrics: Arc<Metrics>,
    outboxes: HashMap<ConnId, Arc<Outbox>>,
    readers: Vec<std_mpsc::SyncSender<ReadTask>>,
    objects: Arc<dyn ObjectHandler>,
    /// Weak, because the executor ends when nobody else can hand it anything.
    queue: mpsc::WeakSender<Input>,
    /// The last question to the admin server.
    questions: watch::Sender<u64>,
    sync: Arc<SyncState>,
    full_since: Option<Instant>,
    /// Who waits for an answer about the key space, by its number.
    keyed: HashMap<u64, oneshot::Sender<Result<KeyReply, KeyRefused>>>,
    next_key: u64,
}

impl Worker {
    fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> Result<(), EngineError> {
        let mut taken = Vec::with_capacity(GROUP_MAX);
        loop {
            if inputs.blocking_recv_many(&mut taken, GROUP_MAX) == 0 {
                return Ok(());
            }
            let now = now();
            let mut events: Vec<Event> = self.sync.take_durable().map(Event::Durable).into_iter().collect();
            let mut in_flight = Vec::new();
            for input in taken.drain(..) {
                match input {
                    Input::Received(more, permit) => {
                        events.extend(more);
                        in_flight.push(permit);
                    }
                    Input::Open(conn, outbox, hello) => {
                        self.outboxes.insert(conn, outbox);
                        events.push(Event::Hello(conn, hello));
                    }
                    Input::Events(more) => events.extend(more),
                    Input::Keys(op, answer) => {
                        self.next_key += 1;
                        self.keyed.insert(self.next_key, answer);
                        self.metrics.asked_keys(op.writes());
                        events.push(Event::Keys(self.next_key, op));
                    }
                    Input::Ask(ask) => {
                        self.decide(now, std::mem::take(&mut events))?;
                        let before = self.core.engine.applied();
                        ask(&mut self.core, now);
                        if self.core.engine.applied() > before {
                            self.sync.change(|inner| inner.dirty());
                        }
                    }
                    Input::Stop(done) => {
                        self.decide(now, std::mem::take(&mut events))?;
                        let result = self.core.stop(now).map(drop);
                        self.outboxes.values().for_each(|outbox| outbox.close());
                        drop(done.send(result));
                        return Ok(());
                    }
                }
            }
            self.decide(now, events)?;
        }
    }

    fn decide(&mut self, now: Now, events: Vec<Event>) -> Result<(), EngineError> {
        if events.is_empty() {
            return Ok(());
        }
        let gone: Vec<ConnId> = events
            .iter()
            .filter_map(|event| match event {
                Event::Gone(conn) => Some(*conn),
                _ => None,
            })
            .collect();
        let mut decided: Vec<Decided> = Vec::new();
        let sync = &self.sync;
        self.core.run(now, events, &mut |group| {
            // At once, however long the rest of the events takes.
            if group.commits > 0 {
                sync.change(|inner| inner.dirty());
            }
            decided.push(group);
        })?;
        let mut view = None;
        for group in decided {
            self.count(&group);
            for effect in group.effects {
                self.carry_out(effect, &mut view);
            }
        }
        for conn in gone {
            self.outboxes.remove(&conn);
        }
        Ok(())
    }

    fn count(&mut self, group: &Decided) {
        for &(kind, errno) in &group.answered {
            self.metrics.answered(kind, errno);
        }
        if group.commits > 0 {
            self.metrics.commits.inc_by(group.commits as u64);
            self.metrics.group_size.observe(group.commits as f64);
            self.metrics.log_bytes.inc_by(group.bytes as u64);
            self.metrics.forgotten.inc_by(group.forgotten);
        }
        match (&group.full, self.full_since) {
            (Some(error), None) => {
                self.metrics.full.inc();
                self.metrics.refused_full();
                self.full_since = Some(Instant::now());
                tracing::error!(
                    error,
                    "the metadata store's disk is full; writes answer ENOSPC until there is room"
                );
            }
            (Some(_), Some(_)) => {
                self.metrics.full.inc();
                self.metrics.refused_full();
            }
            (None, Some(since)) if group.commits > 0 => {
                self.full_since = None;
                self.metrics.has_room();
                tracing::info!(seconds = since.elapsed().as_secs(), "the metadata store has room again");
            }
            (None, _) => {}
        }
    }

    fn carry_out(&mut self, effect: Effect, view: &mut Option<Arc<dyn View>>) {
        match effect {
            Effect::Send(conn, frame) => self.push(conn, &frame),
            Effect::Answer(conn, answer) => {
                let refused = answer.is_err();
                if let Err(refusal) = &answer {
                    tracing::info!(reason = ?refusal.reason, "a client is refused: {}", refusal.message);
                }
                self.push::<HelloAnswer>(conn, &answer);
                if refused && let Some(outbox) = self.outboxes.get(&conn) {
                    outbox.close();
                }
            }
            Effect::Close(conn) => {
                if let Some(outbox) = self.outboxes.get(&conn) {
                    outbox.close();
                }
            }
            Effect::Read(job) => self.read(job.conn, Job::Call(job), view),
            Effect::Object(job) if matches!(job.action, ObjectAction::Get { .. }) => {
                self.read(job.conn, Job::Object(job), view);
            }
            Effect::Object(job) => {
                if let Some(outbox) = self.outboxes.get(&job.conn).cloned() {
                    self.objects.handle(*job, outbox);
                }
            }
            Effect::SendSigned(conn, answer) => {
                if let Some(outbox) = self.outboxes.get(&conn).cloned() {
                    self.objects.send_signed(*answer, outbox);
                }
            }
            Effect::Delete(job) => self.objects.delete(job, self.queue.clone()),
            Effect::Pack(job) => {
                let view = view.get_or_insert_with(|| self.core.engine.view()).clone();
                self.objects.pack(*job, view, self.queue.clone());
            }
            Effect::Hurry => self.sync.change(|inner| {
                inner.hurry = true;
                inner.dirty();
            }),
            Effect::Mark(version) => self.sync.change(|inner| {
                inner.mark = Some(version);
                inner.dirty();
            }),
            Effect::AskAdmin(question) => drop(self.questions.send_replace(question)),
            Effect::Warn(warning) => tracing::warn!("{warning}"),
            Effect::Keyed(id, answer) => {
                if let Some(asker) = self.keyed.remove(&id) {
                    // Who does not wait any more finds out by reading the key.
                    drop(asker.send(answer));
                }
            }
        }
    }

    /// Hands a read to the reader of the connection.
    fn read(&self, conn: ConnId, job: Job, view: &mut Option<Arc<dyn View>>) {
        let Some(outbox) = self.outboxes.get(&conn).cloned() else { return };
        let view = view.get_or_insert_with(|| self.core.engine.view()).clone();
        let reader = &self.readers[conn.0 as usize % self.readers.len()];
        let durable = self.core.machine.durable();
        drop(reader.send(ReadTask { job, view, outbox, durable }));
    }

    fn push<T: serde::Serialize>(&self, conn: ConnId, frame: &T) {
        let Some(outbox) = self.outboxes.get(&conn) else { return };
        if let Err(error) = outbox.push(frame) {
            tracing::error!(%error, "an answer could not be encoded; the connection ends");
            outbox.cut();
        }
    }
}

/// What a reader does.
enum Job {
    /// Answers a call.
    Call(Box<ReadJob>),
    /// Looks whether the session may read an object, and lets it.
    Object(Box<ObjectJob>),
}

struct ReadTask {
    job: Job,
    view: Arc<dyn View>,
    outbox: Arc<Outbox>,
    durable: Version,
}

impl ReadTask {
    fn run(self, metrics: &Metrics, handler: &dyn ObjectHandler) {
        let answer = match self.job {
            Job::Call(job) => {
                let version = self.view.version();
                let result = run_read_guarded(&job, &self.view);
                metrics.answered(kind_of(&job.request), result.as_ref().err().map_or(0, |errno| errno.0));
                let stored: Vec<_> = result.iter().flat_map(objects::stored).collect();
                let answer = ToClient::Return { id: job.id, version, durable: self.durable, result };
                match job.sign {
                    Some(sign) if !stored.is_empty() => {
                        return handler.send_signed(SignedAnswer { sign, stored, answer }, self.outbox);
                    }
                    _ => answer,
                }
            }
            Job::Object(job) => match may_read(&job, &self.view) {
                Ok(()) => return handler.handle(*job, self.outbox),
                Err(errno) => ToClient::Object { id: job.id, result: Err(errno) },
            },
        };
        if let Err(error) = self.outbox.push(&answer) {
            tracing::error!(%error, "an answer could not be encoded; the connection ends");
            self.outbox.cut();
        }
    }
}

fn spawn_reader(
    n: usize,
    metrics: Arc<Metrics>,
    objects: Arc<dyn ObjectHandler>,
) -> std::io::Result<std_mpsc::SyncSender<ReadTask>> {
    let (sender, tasks) = std_mpsc::sync_channel::<ReadTask>(1024);
    std::thread::Builder::new().name(format!("meta-read-{n}")).spawn(move || {
        for task in tasks {
            task.run(&metrics, &*objects);
        }
    })?;
    Ok(sender)
}

/// Whether the block that a read names shows what it is to bring. ESTALE if not: who was told so before asks again.
fn may_read(job: &ObjectJob, view: &Arc<dyn View>) -> Result<(), Errno> {
    let ObjectAction::Get { shown_by, object, offset, len } = &job.action else { return Err(Errno::EINVAL) };
    match run_read_guarded(shown_by, view) {
        Ok(reply) if objects::shows(&reply, *object, *offset, *len) => Ok(()),
        Err(Errno::EIO) => Err(Errno::EIO),
        _ => Err(Errno::ESTALE),
    }
}

/// A read changes nothing, so one that panics is the trouble of the one who asked: the thread goes on.
fn run_read_guarded(job: &ReadJob, view: &Arc<dyn View>) -> Result<chronofs_core::ops::Reply, Errno> {
    std::panic::catch_unwind(AssertUnwindSafe(|| run_read(job, view.clone()))).unwrap_or_else(|_| {
        tracing::error!(request = ?job.request, "a read panicked and is answered with EIO");
        Err(Errno::EIO)
    })
}

/// Answers a read on a view.
pub fn run_read(job: &ReadJob, view: Arc<dyn View>) -> Result<chronofs_core::ops::Reply, Errno> {
    // Only mutations ask whether anybody has a file open.
    let is_open = |_| true;
    let holds = |_| job.held;
    let ctx = Ctx {
        volume: job.volume,
        version: view.version(),
        at: job.at,
        caller: job.caller.clone(),
        session: job.session,
        root: job.root,
        read_only: job.read_only,
        is_open: &is_open,
        holds: &holds,
        freed_max: FREED_MAX,
        made: None,
    };
    match chronofs_namespace::query(&SharedView(view), &ctx, &job.request) {
        Ok(result) => result,
        Err(ReadStop::Failed(error)) => {
            tracing::error!(%error, request = ?job.request, "a read failed and is answered with EIO");
            Err(Errno::EIO)
        }
        Err(ReadStop::Need(_)) => Err(Errno::EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_ends_the_server() {
        let (sender, mut failed) = oneshot::channel();
        let failure = Arc::new(Mutex::new(Some(sender)));
        let kept_by_another_thread = failure.clone();
        let quiet = std::thread::spawn({
            let failure = failure.clone();
            move || drop(ReportsPanic(failure))
        });
        quiet.join().unwrap();
        assert!(failed.try_recv().is_err(), "an orderly end is no failure");
        let thread = std::thread::spawn(move || {
            let _failure = ReportsPanic(failure);
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(matches!(failed.try_recv(), Ok(EngineError::Stopped(_))));
        drop(kept_by_another_thread);
    }
}
