//! The metadata server as a deterministic machine: events in, commits and frames out.
//!
//! It holds what the server remembers between requests: sessions, opens, replies, tokens, sharing. It does no
//! I/O, reads no clock and starts no thread; the executor (or a simulation) feeds it groups of events with the time
//! and a view, hands its commits to the engine, and carries out its effects only when the engine has taken them.

mod asking;
mod calls;
mod collect;
mod copying;
mod falls;
mod figures;
mod forget;
mod group;
mod hello;
mod keys;
mod leave;
mod lifetime;
mod now;
pub mod objects;
mod pace;
mod packing;
mod parked;
mod pins;
mod recovery;
mod replays;
mod session;
mod sharing;
pub mod tag;
mod volumes;

pub use asking::{Asked, Told};
pub use calls::{KINDS, READS, WRITES, kind_of};
pub use collect::{CollectionShown, DeletedObjects};
pub use copying::CopyingShown;
pub use figures::Figures;
pub use group::{
    DeleteJob, Effect, Group, ObjectAction, ObjectJob, ReadJob, SharedView, SignFor, SignedAnswer,
};
pub use keys::{KeySum, key_sum, verify_keys};
pub use leave::LeavingShown;
pub use now::Now;
pub use packing::{MOVED_AT_ONCE, Move, PACK_SLICES_MAX, PackJob, Packed, PackingShown, Source};
pub use pins::PinsRead;
pub use session::ConnId;
pub use volumes::VolumeState;

use asking::Asking;
use chronofs_core::ops::{Missed, Request};
use chronofs_core::{Caller, Errno, ObjectId, SessionId, Version, VolumeIndex};
use chronofs_engine::{EngineError, ReadStop, Reads, Recovered};
use chronofs_namespace::PoorObject;
use chronofs_wire::admin::{AssignedToken, Assignment, KeptKeys};
use chronofs_wire::message::{Hello, ToClient, ToServer};
use chronofs_wire::question::{KeyOp, KeyReply};
use collect::Ages;
use group::{Then, Undo};
use objects::AskedSlice;
use recovery::Phase;
use session::{Kept, Session};
use std::collections::{BTreeMap, HashMap, VecDeque};
use uuid::Uuid;

/// A group takes no further commit once its commits are so long.
const GROUP_BYTES_MAX: usize = 64 << 20;
/// A commit of a client's call is no longer than this; the log takes groups of a GiB.
const COMMIT_BYTES_MAX: usize = 256 << 20;

/// What the machine is set up with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Drawn at every start.
    pub boot: u64,
    /// The epoch of ownership.
    pub epoch: u64,
    /// How long a client may use its caches after it last heard of the server.
    pub ttl_ms: u32,
    /// How long a silent session lives.
    pub life_ms: u32,
    /// How long a restarted server waits for what sessions did and it lost.
    pub replay_window_ms: u32,
    /// Replays are applied in groups of about so many bytes.
    pub replay_group_bytes: usize,
    /// Replies are written, and tags let go, after so many commits.
    pub mark_after_commits: u64,
    /// What no row names any more stays for so long: readers hold where it lies.
    pub slice_life_ms: u32,
    /// So much has to be retired at once for the brake to look at it.
    pub brake_from: u64,
    /// Nothing is forgotten or deleted when the pins in the block store were last read longer ago.
    pub pins_age_ms: u32,
    /// The least that a horizon moves by.
    pub horizon_step_ms: u32,
    /// Staged slices of a volume are packed into an object when they are so many bytes,
    pub pack_bytes: u64,
    /// or there are some for so long.
    pub pack_after_ms: u32,
    /// [`Effect::AskAdmin`] reaches an admin server.
    pub asks_admin: bool,
    /// The key space of operators holds no more than so many bytes of keys and values.
    pub key_bytes_max: u64,
    /// What the store was restored from, while nobody has accepted that: nothing is forgotten or deleted.
    pub restored: Option<String>,
    /// The commit with which it went on then, whether or not that is accepted.
    pub began_apart: Option<Version>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            boot: 0,
            epoch: 0,
            ttl_ms: 5_000,
            life_ms: 60_000,
            replay_window_ms: 10_000,
            replay_group_bytes: GROUP_BYTES_MAX,
            mark_after_commits: 50_000,
            slice_life_ms: 600_000,
            brake_from: 10_000,
            pins_age_ms: 900_000,
            horizon_step_ms: 60_000,
            pack_bytes: chronofs_blocks::object::OBJECT_BYTES_MAX as u64,
            pack_after_ms: 60_000,
            asks_admin: false,
            key_bytes_max: 256 << 20,
            restored: None,
            began_apart: None,
        }
    }
}

/// What the machine finds at its start, beside the state itself.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Tags since the last mark.
    pub recovered: Vec<Recovered>,
    /// Applied mutations may have been lost: the machine went down with its operating system, or it is not known.
    pub maybe_lost: bool,
    /// The last commit that survived. Versions above it, up to the engine's first `applied`, may have been given to
    /// commits that did not.
    pub last_commit: Version,
}

/// A call of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// Its id.
    pub id: u64,
    /// The client has the answers up to here.
    pub acked: u64,
    /// Who asks.
    pub caller: Caller,
    /// What.
    pub request: Request,
}

/// Something that happens to the server.
#[derive(Clone, Debug)]
pub enum Event {
    /// A connection opens.
    Hello(ConnId, Box<Hello>),
    /// A call comes in.
    Call(ConnId, Call),
    /// Any other frame comes in.
    Frame(ConnId, ToServer),
    /// A connection is gone.
    Gone(ConnId),
    /// Time passes.
    Tick,
    /// The store is durable up to here.
    Durable(Version),
    /// The admin server says what is to be served.
    Assignment(Box<Assignment>),
    /// The admin server was asked, as [`Effect::AskAdmin`] wants, after this question and all before it; what it said
    /// came in an [`Event::Assignment`] before. Or it could not be asked, because of this.
    AdminAsked(u64, Option<String>),
    /// What became of objects that were handed out with [`Effect::Delete`]. Without any handed out: these objects,
    /// condemned before, are not in the store.
    Deleted(Box<DeletedObjects>),
    /// Objects of a volume were found in its store that look like garbage.
    Garbage(Uuid, Vec<ObjectId>),
    /// [`Effect::Pack`] was carried out, or could not be.
    Packed(Box<PackJob>, Result<Packed, String>),
    /// All the objects of a volume of which little is needed were found.
    Poor(Uuid, Vec<PoorObject>),
    /// The admin server says whether this start owns the store.
    Owner(bool),
    /// A store was looked through twice, and this volume, which is given up, has no object in it.
    NoneFound(Uuid),
    /// An operator asks something of the key space; [`Effect::Keyed`] brings the answer, under this number.
    Keys(u64, KeyOp),
    /// The pins of a volume in its block store were read, or could not be.
    Pins(Box<PinsRead>),
}

/// Someone waits until a version is durable.
#[derive(Debug)]
struct Deferred {
    version: Version,
    conn: ConnId,
    what: Waits,
}

#[derive(Clone, Copy, Debug)]
enum Waits {
    Sync { id: u64 },
    Welcome { session: SessionId, replay: bool },
}

/// A hello that waits until the sessions there are have let go of their caches.
#[derive(Clone, Debug)]
struct WaitingHello {
    conn: ConnId,
    hello: Box<Hello>,
    volume: VolumeIndex,
}

/// The machine.
pub struct Machine {
    config: Config,
    volumes: BTreeMap<VolumeIndex, VolumeState>,
    tokens: BTreeMap<Uuid, AssignedToken>,
    assignment: Option<Box<Assignment>>,
    /// An assignment that is not (wholly) applied yet.
    to_assign: Option<Box<Assignment>>,
    /// Volumes that were served before, and of which nothing is here, with the reason why none is made in their place.
    missing: BTreeMap<Uuid, String>,
    sessions: BTreeMap<SessionId, Session>,
    conns: HashMap<ConnId, SessionId>,
    waiting: Vec<WaitingHello>,
    asking: Vec<Asking>,
    /// Of them those to be decided next.
    asked: Vec<Asked>,
    questions: u64,
    deferred: VecDeque<Deferred>,
    /// Answers of the key space that rest on what is not durable yet.
    keyed: Vec<(u64, KeyReply)>,
    phase: Phase,
    /// What is being applied again, if anything.
    replaying: Option<replays::Replaying>,
    /// An earlier start applied a part of what was lost, before which this had survived.
    unfinished: Option<Missed>,
    /// Calls held back while replays were collected, to be decided next.
    released: Vec<(ConnId, Call)>,
    /// Until then, or until every session told its opens, every file counts as open.
    reclaim_until_ns: Option<u64>,
    last: Version,
    /// Told to clients: everything they were answered up to here survives.
    durable: Version,
    /// What the engine says of durability is believed from here on: below, clients may hold calls that were lost and
    /// are applied again, but not durable yet.
    believed: Version,
    /// The last commit that survived the last stop.
    recovered: Version,
    /// The mark that was found at the start: what clients were answered up to here survived. Marks of this run lie
    /// above all that was lost and say nothing of it.
    mark_found: Version,
    marked_ns: u64,
    commits_since_mark: u64,
    parked: u64,
    /// Which volume's past comes first at the next tick.
    forget_turn: usize,
    ages: Ages,
    /// When a client's call was decided last.
    called_ns: Option<u64>,
    /// Until then it is known that no other start has taken the store over.
    owns_until_ns: Option<u64>,
    /// The state says that this start has not read the pins of block stores yet, or that it has.
    start_noted: bool,
}

impl Machine {
    /// The machine on the state in `reads`; its commits are to be above `last`.
    pub fn new<R: Reads>(
        config: Config,
        reads: &R,
        last: Version,
        found: Found,
        now: Now,
    ) -> Result<Self, ReadStop> {
        let mut machine = Machine {
            phase: Phase::Serving,
            replaying: None,
            unfinished: None,
            reclaim_until_ns: None,
            volumes: BTreeMap::new(),
            tokens: BTreeMap::new(),
            assignment: None,
            to_assign: None,
            missing: BTreeMap::new(),
            sessions: BTreeMap::new(),
            conns: HashMap::new(),
            waiting: Vec::new(),
            asking: Vec::new(),
            asked: Vec::new(),
            questions: 0,
            deferred: VecDeque::new(),
            keyed: Vec::new(),
            released: Vec::new(),
            last,
            durable: last,
            believed: last,
            recovered: found.last_commit,
            mark_found: Version::ZERO,
            marked_ns: now.steady_ns,
            commits_since_mark: found.recovered.len() as u64,
            parked: 0,
            forget_turn: 0,
            ages: Ages::default(),
            called_ns: None,
            owns_until_ns: None,
            start_noted: false,
            config,
        };
        for (index, row) in chronofs_namespace::list_volumes(reads)? {
            let mut volume = VolumeState::new(index, row);
            let keys = chronofs_namespace::sealed_keys(reads, index)?;
            volume.keys = keys.map(|row| KeptKeys { revision: row.revision, sealed: row.sealed });
            machine.volumes.insert(index, volume);
        }
        for (index, survived) in chronofs_namespace::list_unproven(reads)? {
            machine.set_unproven(index, Some(survived));
        }
        for (id, row) in chronofs_namespace::list_sessions(reads)? {
            machine.restore_session(id, &row, now.steady_ns);
        }
        machine.restore_replies(reads, &found.recovered)?;
        machine.settle_after_restart();
        machine.begin_recovery(found.maybe_lost, now.steady_ns);
        Ok(machine)
    }

    /// The last version given.
    pub fn last(&self) -> Version {
        self.last
    }

    /// What clients may be told is durable. Less than what the engine says while calls that were lost, and are
    /// applied again, are not durable yet.
    pub fn durable(&self) -> Version {
        self.durable
    }

    /// What this server calls itself.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The epoch of ownership changed.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.config.epoch = self.config.epoch.max(epoch);
    }

    /// The volumes.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeState> {
        self.volumes.values()
    }

    /// Volumes that are to be served, and of which nothing is here though they were served before: each with what to do.
    pub fn missing(&self) -> &BTreeMap<Uuid, String> {
        &self.missing
    }

    /// The volume of an index.
    pub fn volume(&self, index: VolumeIndex) -> Option<&VolumeState> {
        self.volumes.get(&index)
    }

    /// Whether a volume list was received: before it no client can be admitted.
    pub fn is_assigned(&self) -> bool {
        self.assignment.is_some()
    }

    /// What is decided from here on is the group's. It ends with [`Machine::applied`] or [`Machine::failed`].
    pub fn begin(&mut self, group: &mut Group) -> Result<(), EngineError> {
        group.last_before = self.last;
        if self.is_recovering() { Ok(()) } else { self.note_start(group) }
    }

    /// Decides one event that stands alone. Its changes of the machine's memory that rest on commits follow in
    /// [`Machine::applied`].
    pub fn event(&mut self, group: &mut Group, event: Event) -> Result<(), EngineError> {
        match event {
            Event::Hello(conn, hello) => self.hello(group, conn, hello)?,
            Event::Call(conn, call) => self.call(group, conn, &call)?,
            Event::Frame(conn, frame) => self.frame(group, conn, frame)?,
            Event::Gone(conn) => self.gone(group, conn),
            Event::Tick => {
                self.tick(group)?;
                self.look_again(group);
            }
            Event::Durable(version) => self.became_durable(group, version),
            Event::Assignment(assignment) => {
                self.to_assign = Some(assignment);
                self.assign(group)?;
                self.look_again(group);
            }
            Event::Deleted(done) => self.objects_deleted(group, &done)?,
            Event::Garbage(volume, objects) => self.garbage_found(group, volume, &objects)?,
            Event::Packed(job, result) => self.packed(group, &job, &result),
            Event::Poor(volume, poor) => self.poor_found(volume, &poor),
            Event::Owner(owns) => self.heard_of_owner(group, owns),
            Event::NoneFound(volume) => self.none_found(group, volume)?,
            Event::Keys(id, op) => self.key_call(group, id, &op)?,
            Event::Pins(read) => self.pins_read(group, &read)?,
            Event::AdminAsked(question, failure) => self.admin_asked(group, question, failure.as_deref()),
        }
        Ok(())
    }

    /// Decides calls that come together, until their commits are as much as a group may hold. Tells how many.
    pub fn calls(&mut self, group: &mut Group, calls: &[(ConnId, Call)]) -> Result<usize, EngineError> {
        for (n, (conn, call)) in calls.iter().enumerate() {
            if group.bytes >= GROUP_BYTES_MAX {
                return Ok(n);
            }
            self.call(group, *conn, call)?;
        }
        Ok(calls.len())
    }

    /// The engine took the group's `commits`.
    pub fn applied(&mut self, group: &mut Group, commits: u64) {
        self.commits_since_mark += commits;
        for then in std::mem::take(&mut group.thens) {
            self.then(group, then);
        }
    }

    /// The group could not be decided, or the engine took none of its commits: the machine is as before it.
    pub fn failed(&mut self, group: &mut Group) {
        self.last = group.last_before;
        group.thens.clear();
        group.effects.clear();
        group.answered.clear();
        for undo in std::mem::take(&mut group.undo).into_iter().rev() {
            self.undo(undo);
        }
    }

    /// Calls that were held back and are to be decided now.
    pub fn take_released(&mut self) -> Vec<(ConnId, Call)> {
        std::mem::take(&mut self.released)
    }

    fn frame(&mut self, group: &mut Group, conn: ConnId, frame: ToServer) -> Result<(), EngineError> {
        let Some(session) = self.heard(group, conn) else { return Ok(()) };
        match frame {
            ToServer::Call { id, acked, caller, request } => {
                self.call(group, conn, &Call { id, acked, caller, request })?;
            }
            ToServer::Renew { floor } => {
                self.told_floor(session, floor);
                group.send(conn, ToClient::Renewed { now_ns: group.now_ns });
                self.tell_window(group, session, conn);
            }
            ToServer::Reclaim { opens } => self.reclaim(session, opens),
            ToServer::Replay { calls, end } => self.replay(group, session, calls, end)?,
            ToServer::SharedAck => self.shared_ack(group, session)?,
            ToServer::ParkedAck { calls } => self.parked_ack(group, session, &calls)?,
            // Its replays are not done yet, and a commit now would hide what other sessions lost: it ends by silence.
            ToServer::Goodbye if self.is_recovering() => {}
            ToServer::Goodbye => self.end_session(group, session)?,
            ToServer::PutObject { id, name, bytes } => {
                self.put_object(group, session, conn, id, name, bytes);
            }
            ToServer::GetObject { id, ino, block, object, offset, len } => {
                let asked = AskedSlice { ino, block, object, offset, len };
                self.get_object(group, session, conn, id, &asked);
            }
            ToServer::SignPuts { id, first, count } => {
                self.sign_puts(group, session, conn, id, (first, count));
            }
        }
        Ok(())
    }

    /// Something was heard of the session of `conn`.
    fn heard(&mut self, group: &mut Group, conn: ConnId) -> Option<SessionId> {
        let Some(&id) = self.conns.get(&conn) else {
            group.effects.push(Effect::Close(conn));
            return None;
        };
        if let Some(session) = self.sessions.get_mut(&id) {
            session.heard_ns = group.steady_ns;
        }
        Some(id)
    }

    fn gone(&mut self, group: &mut Group, conn: ConnId) {
        let waited = self.waiting.iter().find(|waiting| waiting.conn == conn).map(|waiting| waiting.volume);
        self.waiting.retain(|waiting| waiting.conn != conn);
        self.stop_asking(conn);
        self.forget_held(conn);
        self.deferred.retain(|deferred| deferred.conn != conn);
        if let Some(index) = waited {
            self.settle_sharing(group, index);
        }
        let Some(id) = self.conns.remove(&conn) else { return };
        let index = self.sessions.get_mut(&id).map(|session| {
            if session.conn == Some(conn) {
                session.conn = None;
            }
            session.index
        });
        if let Some(index) = index {
            self.settle_sharing(group, index);
        }
    }

    /// The next version at the group's time.
    fn next_version(&self, group: &Group) -> Version {
        self.last.next(group.now_ns)
    }

    /// What a stopped read is for the one who asked: EIO with a warning when rows are damaged. Anything else stops
    /// the server.
    fn stopped(&self, group: &mut Group, stop: ReadStop, what: &str) -> Result<Errno, EngineError> {
        match stop {
            ReadStop::Failed(error @ EngineError::Damaged { .. }) => {
                group.effects.push(Effect::Warn(format!("{what}: answered with EIO: {error}")));
                Ok(Errno::EIO)
            }
            ReadStop::Failed(error) => Err(error),
            ReadStop::Need(_) => {
                Err(EngineError::Store("asked to fetch keys first, which this server does not do".to_owned()))
            }
        }
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Replied(session, id) => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.replies.forget(id);
                }
            }
            Undo::Opened(session, ino) => self.count_closed(session, ino, 1),
            Undo::Closed(session, ino, count) => self.count_opened(session, ino, count),
            Undo::Granted(session, granted) => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.granted = granted;
                }
            }
            Undo::Shared(session, sharing, acks_due) => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    (session.sharing, session.acks_due) = (sharing, acks_due);
                }
            }
            Undo::Waited(waiting) => self.waiting.push(waiting),
            Undo::Told(session, durable) => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.told_durable = durable;
                }
            }
            Undo::Deferred => drop(self.deferred.pop_back()),
            Undo::Keyed => drop(self.keyed.pop()),
            Undo::Counted(session, id) => {
                let kept = self.sessions.get_mut(&session).and_then(|session| session.replies.get_mut(id));
                if let Some(Kept::Brief { counted, .. }) = kept {
                    *counted = false;
                }
            }
        }
    }

    fn then(&mut self, group: &mut Group, then: Then) {
        match then {
            Then::VolumeChanged(index, row) => self.volume_changed(group, index, *row),
            Then::KeysChanged(index, keys) => self.keys_changed(index, keys),
            Then::HorizonMoved(index, horizon) => self.horizon_moved(index, horizon),
            Then::SessionOpened(session, conn) => self.session_opened(group, *session, conn),
            Then::SessionOver(session) => self.session_over(group, session),
            Then::LeaseRenewed(session) => self.lease_renewed(group, session),
            Then::FloorNoted(session, floor) => self.floor_noted(group, session, floor),
            Then::Forgot { index, rows, next } => {
                if let Some(volume) = self.volumes.get_mut(&index) {
                    volume.forgetting.stepped(next, rows);
                }
            }
            Then::Dropped { index, rows, next } => self.dropped(index, rows, next),
            Then::Condemned { index, staged, braked, fell, next } => {
                self.condemned(group, index, (staged, braked, next), fell);
            }
            Then::HandedOut(index, objects) => self.handed_out(group, index, objects),
            Then::PackStepped(index, step) => self.pack_stepped(group, index, step),
            Then::ObjectsGone(index, gone) => self.objects_gone(group, index, gone),
            Then::PinsRead(index, read_ns, problem) => self.pins_known(index, read_ns, problem),
            Then::Unproven(index, survived) => self.set_unproven(index, survived),
            Then::StartNoted => self.start_noted = true,
            Then::Released(index) => self.hold_ended(index),
            Then::FallTold(index) => self.fall_told(index),
            Then::Reaped(index, ino) => {
                if let Some(volume) = self.volumes.get_mut(&index) {
                    volume.to_reap.remove(&ino);
                }
            }
            Then::Marked(version) => {
                (self.marked_ns, self.commits_since_mark) = (group.steady_ns, 0);
                group.effects.push(Effect::Mark(version));
            }
            Then::Replayed(replayed) => self.replays_applied(group, replayed),
            Then::Heard(session, left) => {
                let last = self.last;
                if let Some(session) = self.sessions.get_mut(&session) {
                    // It need not keep them any longer, and is told so.
                    session.last_commit = session.last_commit.max(last);
                    session.parked = left;
                }
            }
        }
    }
}
