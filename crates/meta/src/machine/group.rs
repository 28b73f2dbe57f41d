//! A group of events that is decided together: what they read, what they commit, and what is to be done once the
//! engine has taken the commits.

use super::WaitingHello;
use super::now::Now;
use super::packing::{PackJob, PackStep};
use super::session::{ConnId, Session, Sharing};
use super::tag::{self, Brief, Tag};
use bytes::Bytes;
use chronofs_core::ops::{Missed, Reply, Request};
use chronofs_core::{Caller, Errno, Ino, ObjectId, SessionId, Version, VolumeIndex};
use chronofs_engine::{Batch, Change, Commit, Overlay, ReadStop, Reads, View};
use chronofs_namespace::rows::{Sum, Volume};
use chronofs_wire::admin::KeptKeys;
use chronofs_wire::message::{HelloAnswer, ToClient};
use chronofs_wire::question::{KeyRefused, KeyReply};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Bytes of keys and values in a batch.
pub(super) fn batch_len(batch: &Batch) -> usize {
    let change_len = |change: &Change| match change {
        Change::Put(key, value) => key.len() + value.len(),
        Change::Delete(key) => key.len(),
    };
    batch.0.iter().map(change_len).sum()
}

/// A view of the engine that can be read through an overlay.
#[derive(Clone)]
pub struct SharedView(pub Arc<dyn View>);

impl Reads for SharedView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadStop> {
        self.0.get(key)
    }
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadStop> {
        self.0.scan(from, to, limit)
    }
    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<(Bytes, Bytes)>, ReadStop> {
        self.0.first(from, to)
    }
}

/// What a group reads: the engine's state with the group's own commits over it.
pub(super) type GroupReads = Overlay<SharedView>;

/// A read that does not have to be done by the executor. It runs on a view taken after the group is applied, so it
/// sees every mutation answered before it was sent.
#[derive(Clone, Debug)]
pub struct ReadJob {
    /// Who gets the answer.
    pub conn: ConnId,
    /// The call.
    pub id: u64,
    /// Who asks.
    pub caller: Caller,
    /// What is asked.
    pub request: Request,
    /// Volume.
    pub volume: VolumeIndex,
    /// Session.
    pub session: SessionId,
    /// The session's root.
    pub root: Ino,
    /// The instant.
    pub at: Option<Version>,
    /// The session cannot write.
    pub read_only: bool,
    /// The session has open what is asked about.
    pub held: bool,
    /// How the session is given requests that read the objects it is told.
    pub sign: Option<SignFor>,
}

/// For whom requests are signed that read objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignFor {
    /// The volume.
    pub volume: Uuid,
    /// Objects are signed for whole, to one who may read all of them; else just the ranges that are told.
    pub whole: bool,
}

/// An answer that names objects; with it go requests that read them.
#[derive(Debug)]
pub struct SignedAnswer {
    /// For whom.
    pub sign: SignFor,
    /// The objects and ranges that it names.
    pub stored: Vec<(ObjectId, u64, u32)>,
    /// The answer.
    pub answer: ToClient,
}

/// An object to be stored or read for a client.
#[derive(Clone, Debug)]
pub struct ObjectJob {
    /// Who gets the answer.
    pub conn: ConnId,
    /// The call.
    pub id: u64,
    /// The volume whose store is meant.
    pub volume: Uuid,
    /// The object's name. To put it is the session's right; to read it only what [`ObjectAction::Get`] says.
    pub name: String,
    /// What to do.
    pub action: ObjectAction,
}

/// See [`ObjectJob`].
#[derive(Clone, Debug)]
pub enum ObjectAction {
    /// Store these bytes.
    Put(Bytes),
    /// Read this range, if the block shows a slice that lies just there.
    Get {
        /// Asks for the slices of the block with the session's eyes.
        shown_by: Box<ReadJob>,
        /// The object.
        object: ObjectId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Sign puts of these objects.
    SignPuts(Vec<String>),
}

/// Objects that are to be deleted: nothing can name them again, and that is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeleteJob {
    /// Their volume.
    pub volume: Uuid,
    /// They.
    pub objects: Vec<ObjectId>,
}

/// What is to be done after a group, in order.
#[derive(Debug)]
pub enum Effect {
    /// Send a frame.
    Send(ConnId, ToClient),
    /// Answer a hello; after a refusal the connection closes.
    Answer(ConnId, HelloAnswer),
    /// Close a connection once what was sent before is out.
    Close(ConnId),
    /// Read on another thread.
    Read(Box<ReadJob>),
    /// Store or read an object.
    Object(Box<ObjectJob>),
    /// Send an answer with requests for what it names.
    SendSigned(ConnId, Box<SignedAnswer>),
    /// Delete objects from a volume's store, then tell with [`super::Event::Deleted`].
    Delete(DeleteJob),
    /// Store staged slices in an object, as they are after the group, and tell with [`super::Event::Packed`].
    Pack(Box<PackJob>),
    /// Somebody waits for what was committed to become durable.
    Hurry,
    /// Tags before this version are not needed any more.
    Mark(Version),
    /// Ask the admin server for an assignment, then tell with [`super::Event::AdminAsked`] that this question is
    /// answered.
    AskAdmin(u64),
    /// A human should know.
    Warn(String),
    /// The answer to the question of this number about the key space. What it rests on is durable.
    Keyed(u64, Result<KeyReply, KeyRefused>),
}

/// A change of the machine's memory that holds only when the group's commits do.
#[derive(Debug)]
pub(super) enum Then {
    /// A volume was created, changed or marked as deleted.
    VolumeChanged(VolumeIndex, Box<Volume>),
    /// What lies before this in a volume's past is out of reach.
    HorizonMoved(VolumeIndex, Version),
    /// A session was opened for the hello of a connection.
    SessionOpened(Box<Session>, ConnId),
    /// A session is over.
    SessionOver(SessionId),
    /// A session's lease on an instant was renewed.
    LeaseRenewed(SessionId),
    /// The row of the session has this floor.
    FloorNoted(SessionId, u64),
    /// Other sealed keys are kept.
    KeysChanged(VolumeIndex, KeptKeys),
    /// A sweep forgot rows and goes on here.
    Forgot { index: VolumeIndex, rows: u32, next: Option<Bytes> },
    /// Rows of a volume that is given up are gone, and it goes on here.
    Dropped { index: VolumeIndex, rows: u32, next: Option<Bytes> },
    /// What was retired is condemned; `fell`: after what is held had fallen, which it has braked for if need be.
    Condemned { index: VolumeIndex, staged: u32, braked: bool, fell: bool, next: Version },
    /// Condemned objects are handed out for deletion.
    HandedOut(VolumeIndex, Vec<ObjectId>),
    /// So many objects are gone.
    ObjectsGone(VolumeIndex, Sum),
    /// The packing of a volume went on.
    PackStepped(VolumeIndex, PackStep),
    /// The pins of a block store were read then, and all are obeyed, but for this problem.
    PinsRead(VolumeIndex, u64, Option<String>),
    /// The state says from now on whether the pins of a volume are still to be read, and since which start.
    Unproven(VolumeIndex, Option<Version>),
    /// The state says so of every volume as of this start.
    StartNoted,
    /// An instant is no longer kept.
    Released(VolumeIndex),
    /// A sudden fall of a volume's files is held, or was warned of.
    FallTold(VolumeIndex),
    /// An inode was freed.
    Reaped(VolumeIndex, Ino),
    /// The replies are in the state.
    Marked(Version),
    /// Replays are applied.
    Replayed(ReplayDone),
    /// A session knows of lost calls; these are left.
    Heard(SessionId, BTreeMap<u64, Errno>),
}

/// A change of the machine's memory made by a call, to be taken back if its commit cannot be.
#[derive(Debug)]
pub(super) enum Undo {
    Replied(SessionId, u64),
    Opened(SessionId, Ino),
    Closed(SessionId, Ino, u32),
    /// What a session was granted before.
    Granted(SessionId, u64),
    Deferred,
    Keyed,
    Counted(SessionId, u64),
    /// How a session stood with others, and how many acknowledgements it owed.
    Shared(SessionId, Sharing, u32),
    Waited(WaitingHello),
    /// The durable version that a session was told before.
    Told(SessionId, Version),
}

/// What came of a group of replays.
#[derive(Debug, Default)]
pub(super) struct ReplayDone {
    /// So many of the calls are done with.
    pub(super) next: usize,
    /// Those are all.
    pub(super) last: bool,
    /// Inodes that sessions changed with them, and up to which version what changed them is their own.
    pub(super) own: BTreeMap<(SessionId, Ino), Version>,
    /// Applied calls.
    pub(super) applied: Vec<(SessionId, u64, Version, Brief)>,
    /// Calls that could not be applied.
    pub(super) parked: Vec<(SessionId, u64, Errno)>,
    /// What is lost of sessions as their rows have it from now on.
    pub(super) unheard: BTreeMap<SessionId, BTreeMap<u64, Errno>>,
    /// Sessions whose rows say from now on that they are still to replay, or that they have.
    pub(super) missed: Vec<(SessionId, Option<Missed>)>,
}

/// The group.
pub struct Group {
    /// The server's clock: names instants.
    pub now_ns: u64,
    /// Measures how long something took.
    pub steady_ns: u64,
    /// What its events read.
    pub(super) reads: GroupReads,
    /// What they commit.
    pub commits: Vec<Commit>,
    /// What follows from them.
    pub effects: Vec<Effect>,
    /// Requests answered, with kind and errno (0: none).
    pub answered: Vec<(u8, i32)>,
    /// See [`Group::bytes`].
    pub(super) bytes: usize,
    /// Rows of the past that the commits forget.
    pub forgotten: u64,
    /// Every write is answered with ENOSPC.
    pub full: bool,
    pub(super) thens: Vec<Then>,
    pub(super) undo: Vec<Undo>,
    /// Nothing is given out before all of it is durable.
    pub(super) sync_first: bool,
    pub(super) last_before: Version,
}

impl Group {
    /// An empty group on `view`.
    pub fn new(now: Now, view: Arc<dyn View>, full: bool) -> Self {
        Group {
            now_ns: now.wall_ns,
            steady_ns: now.steady_ns,
            reads: Overlay::new(SharedView(view)),
            commits: Vec::new(),
            effects: Vec::new(),
            answered: Vec::new(),
            bytes: 0,
            forgotten: 0,
            full,
            thens: Vec::new(),
            undo: Vec::new(),
            sync_first: false,
            last_before: Version::ZERO,
        }
    }

    /// Adds a commit; the events that follow see it.
    pub(super) fn commit(&mut self, version: Version, tag: &Tag, batch: Batch) {
        self.reads.push(&batch);
        let tag = tag::encode(tag);
        self.bytes += tag.len() + batch_len(&batch);
        self.commits.push(Commit { version, tag, batch });
    }

    /// Bytes of keys, values and tags in the commits.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether its commits have to be durable before anything of it, or after it, is given out.
    pub fn sync_first(&self) -> bool {
        self.sync_first
    }

    /// Sends a frame once the group is applied.
    pub(super) fn send(&mut self, conn: ConnId, frame: ToClient) {
        self.effects.push(Effect::Send(conn, frame));
    }

    /// Answers a call.
    pub(super) fn answer(
        &mut self,
        conn: ConnId,
        id: u64,
        kind: u8,
        version: Version,
        durable: Version,
        result: Result<Reply, Errno>,
    ) {
        self.answered.push((kind, result.as_ref().err().map_or(0, |errno| errno.0)));
        self.send(conn, ToClient::Return { id, version, durable, result });
    }
}
