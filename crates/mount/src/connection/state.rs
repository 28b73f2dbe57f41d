//! What a mount remembers of its talk with the server: calls under way, answers not durable yet, files open.
//!
//! It does no I/O: frames to send are taken out, frames received are handed in. So everything that a
//! reconnect must get right can be tested without a network.

use super::flow::{EXPECTED_BYTES_MAX, IDS_MAX, Load, OUT_BYTES_MAX, TRANSFER_BYTES_MAX};
use super::replay::ReplayBuffer;
use bytes::{Bytes, BytesMut};
use chronofs_blocks::ShownBy;
use chronofs_core::ops::{Replayed, Reply, Request};
use chronofs_core::{Caller, Errno, Ino, ObjectId, SessionId, SignedRequest, Version};
use chronofs_wire::frame;
use chronofs_wire::message::{ToServer, UNSAVED_BYTES_MAX, Welcome};
use std::collections::{BTreeMap, HashMap, VecDeque};
use tokio::sync::oneshot;

/// What the server said, and the version it was said at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The commit of a mutation, else the version read.
    pub version: Version,
    /// A reply, or an error that is as true at `version`.
    pub result: Result<Reply, Errno>,
}

/// How a mount stands with its server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Calls are sent as they come.
    Up,
    /// Calls wait.
    Down,
    /// The server refuses the mount: calls fail.
    Refused(Errno),
}

/// The answer of a call, when it comes.
pub(crate) type Waiter<T> = oneshot::Receiver<Result<T, Errno>>;

struct Call {
    caller: Caller,
    request: Request,
    /// It was sent at least once, so the server may have done it.
    sent: bool,
    waiter: oneshot::Sender<Result<Answer, Errno>>,
}

/// A transfer of an object's bytes through the server, or what it takes to do without one.
#[derive(Clone)]
pub(crate) enum Transfer {
    Put { name: String, bytes: Bytes },
    Get { shown_by: ShownBy, object: ObjectId, offset: u64, len: u32 },
    SignPuts { first: u64, count: u32 },
}

/// What a transfer brings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Delivery {
    /// Bytes; none when an object was stored.
    Bytes(Bytes),
    /// Signed puts.
    Puts(Vec<SignedRequest>),
}

struct PendingTransfer {
    transfer: Transfer,
    waiter: oneshot::Sender<Result<Delivery, Errno>>,
}

/// What is to be sent. Calls and objects are held anyway until they are answered, and encoded only when the network
/// takes them.
enum Outgoing {
    Message(ToServer),
    Call(u64),
    Transfer(u64),
}

/// See the module.
pub(crate) struct State {
    phase: Phase,
    session: SessionId,
    epoch: u64,
    /// The run of the server that was heard last.
    boot: u64,
    /// When the volume was put back from a copy last.
    restored: Version,
    /// How often answered changes of an inode were lost.
    lost: BTreeMap<Ino, u64>,
    /// Highest version any answer named.
    seen: Version,
    next_id: u64,
    calls: BTreeMap<u64, Call>,
    /// What `calls` take.
    load: Load,
    /// Calls for which there is no room yet. They have no id, so the server is not asked to remember anything of them.
    line: VecDeque<Call>,
    next_transfer: u64,
    transfers: BTreeMap<u64, PendingTransfer>,
    transfer_bytes: usize,
    transfer_line: VecDeque<PendingTransfer>,
    replay: ReplayBuffer,
    opens: HashMap<Ino, u32>,
    /// Of the objects of this session with lower counters nothing more is handed in to be published.
    floor: (SessionId, u64),
    /// To be sent next, in this order.
    sending: VecDeque<Outgoing>,
}

impl State {
    /// The state after the first welcome.
    pub(crate) fn new(welcome: &Welcome) -> Self {
        let mut state = State {
            phase: Phase::Up,
            session: welcome.session,
            epoch: welcome.epoch,
            boot: welcome.boot,
            restored: welcome.restored,
            lost: BTreeMap::new(),
            seen: welcome.applied,
            next_id: 1,
            calls: BTreeMap::new(),
            load: Load::default(),
            line: VecDeque::new(),
            next_transfer: 1,
            transfers: BTreeMap::new(),
            transfer_bytes: 0,
            transfer_line: VecDeque::new(),
            replay: ReplayBuffer::default(),
            opens: HashMap::new(),
            floor: (welcome.session, 0),
            sending: VecDeque::new(),
        };
        state.replay.durable(welcome.durable);
        state
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn seen(&self) -> Version {
        self.seen
    }

    /// Calls and transfers without an answer, and answers that are not durable.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let calls = self.calls.len() + self.line.len();
        (calls + self.transfers.len() + self.transfer_line.len(), self.replay.len())
    }

    /// Whether there is something to send.
    pub(crate) fn has_frames(&self) -> bool {
        !self.sending.is_empty()
    }

    /// Frames to be written now, as many as go out in one piece.
    pub(crate) fn take_out(&mut self) -> BytesMut {
        let mut out = BytesMut::new();
        while out.len() < OUT_BYTES_MAX
            && let Some(next) = self.sending.pop_front()
        {
            match next {
                Outgoing::Message(message) => encode(&message, &mut out),
                Outgoing::Call(id) => self.encode_call(id, &mut out),
                Outgoing::Transfer(id) => {
                    if let Some(pending) = self.transfers.get(&id) {
                        encode(&pending.transfer.clone().message(id), &mut out);
                    }
                }
            }
        }
        out
    }

    /// Starts a call. It is sent as soon as there is room for it and the server is there.
    pub(crate) fn call(&mut self, caller: Caller, request: Request) -> Waiter<Answer> {
        let (waiter, answer) = oneshot::channel();
        if let Phase::Refused(errno) = self.phase {
            let _ = waiter.send(Err(errno));
            return answer;
        }
        // Whoever is in the line already is there because its like has no room.
        let has_room = self.has_room(request.mutates());
        let call = Call { caller, request, sent: false, waiter };
        if has_room {
            self.admit(call)
        } else {
            self.line.push_back(call)
        }
        answer
    }

    /// Whether another call may have an id now. A mutation also needs room among what may have to be sent again.
    fn has_room(&self, mutates: bool) -> bool {
        let oldest = self.calls.keys().next().map_or(self.next_id, |first| *first);
        self.next_id - oldest < IDS_MAX
            && self.load.expected < EXPECTED_BYTES_MAX
            && (!mutates || self.load.unanswered + self.replay.bytes() < UNSAVED_BYTES_MAX)
    }

    fn admit(&mut self, call: Call) {
        let id = self.next_id;
        self.next_id += 1;
        self.load.add(&call.request);
        self.calls.insert(id, call);
        self.send(Outgoing::Call(id));
    }

    /// Lets in who waits, as far as there is room: mutations and others each in their order.
    fn admit_waiting(&mut self) {
        while self.has_room(false) {
            let mutations = self.has_room(true);
            let Some(n) = self.line.iter().position(|call| mutations || !call.request.mutates()) else {
                break;
            };
            let Some(call) = self.line.remove(n) else { break };
            self.admit(call);
        }
        while self.transfer_bytes < TRANSFER_BYTES_MAX {
            let Some(pending) = self.transfer_line.pop_front() else { break };
            self.admit_transfer(pending);
        }
    }

    fn remove_call(&mut self, id: u64) -> Option<Call> {
        let call = self.calls.remove(&id)?;
        self.load.remove(&call.request);
        Some(call)
    }

    /// Starts a transfer of an object's bytes.
    pub(crate) fn transfer(&mut self, transfer: Transfer) -> Waiter<Delivery> {
        let (waiter, answer) = oneshot::channel();
        if let Phase::Refused(errno) = self.phase {
            let _ = waiter.send(Err(errno));
            return answer;
        }
        let pending = PendingTransfer { transfer, waiter };
        if self.transfer_bytes < TRANSFER_BYTES_MAX {
            self.admit_transfer(pending);
        } else {
            self.transfer_line.push_back(pending);
        }
        answer
    }

    fn admit_transfer(&mut self, pending: PendingTransfer) {
        let id = self.next_transfer;
        self.next_transfer += 1;
        self.transfer_bytes += pending.transfer.bytes();
        self.transfers.insert(id, pending);
        self.send(Outgoing::Transfer(id));
    }

    fn remove_transfer(&mut self, id: u64) -> Option<PendingTransfer> {
        let pending = self.transfers.remove(&id)?;
        self.transfer_bytes -= pending.transfer.bytes();
        Some(pending)
    }

    /// Says that the session lives, before anything else: its time must not run out behind bytes that wait for a slow
    /// network. Dropped when the server is away.
    pub(crate) fn renew(&mut self) {
        let renewing = matches!(self.sending.front(), Some(Outgoing::Message(ToServer::Renew { .. })));
        if self.phase == Phase::Up && !renewing {
            let floor = self.floor();
            self.sending.push_front(Outgoing::Message(ToServer::Renew { floor }));
        }
    }

    /// From now on no call is handed in that publishes what lies in an object of `session` with a counter below `floor`.
    pub(crate) fn set_floor(&mut self, session: SessionId, floor: u64) {
        self.floor = (session, floor);
    }

    /// Below which counter no object of the session is named by anything that is to be published or may be replayed.
    fn floor(&self) -> u64 {
        let (session, floor) = self.floor;
        if session != self.session {
            return 0;
        }
        let waiting = self.calls.values().chain(&self.line).map(|call| &call.request);
        let named =
            waiting.chain(self.replay.requests()).filter_map(|request| lowest_named(request, session));
        named.fold(floor, u64::min)
    }

    /// Queues a frame that needs no memory here. Dropped when the server is away.
    pub(crate) fn send_if_up(&mut self, message: ToServer) {
        self.send(Outgoing::Message(message));
    }

    /// The answer to call `id` came.
    pub(crate) fn returned(
        &mut self,
        id: u64,
        version: Version,
        durable: Version,
        result: Result<Reply, Errno>,
    ) {
        self.seen = self.seen.max(version);
        let Some(call) = self.remove_call(id) else { return };
        if let Ok(reply) = &result {
            self.note_opens(&call.request, reply);
            if call.request.mutates() {
                let (made, found) = (made_by(&call.request, reply), only_found(&call.request, reply));
                let Call { caller, request, .. } = call;
                self.replay.keep(Replayed { id, version, caller, request, made, found });
            }
        }
        self.replay.durable(durable);
        let _ = call.waiter.send(Ok(Answer { version, result }));
        self.admit_waiting();
    }

    /// The answer to transfer `id` came.
    pub(crate) fn transferred(&mut self, id: u64, result: Result<Delivery, Errno>) {
        if let Some(pending) = self.remove_transfer(id) {
            let _ = pending.waiter.send(result);
        }
        self.admit_waiting();
    }

    pub(crate) fn durable(&mut self, version: Version) {
        self.replay.durable(version);
        self.admit_waiting();
    }

    /// The connection is gone: calls wait from now on.
    pub(crate) fn down(&mut self) {
        if self.phase == Phase::Up {
            self.phase = Phase::Down;
        }
        self.sending.clear();
    }

    /// The server refuses the mount: calls under way and to come fail with `errno`.
    pub(crate) fn refused(&mut self, errno: Errno) {
        self.phase = Phase::Refused(errno);
        self.sending.clear();
        self.load = Load::default();
        let calls = std::mem::take(&mut self.calls).into_values();
        for call in calls.chain(std::mem::take(&mut self.line)) {
            let _ = call.waiter.send(Err(errno));
        }
        self.transfer_bytes = 0;
        let transfers = std::mem::take(&mut self.transfers).into_values();
        for pending in transfers.chain(std::mem::take(&mut self.transfer_line)) {
            let _ = pending.waiter.send(Err(errno));
        }
    }

    /// The server says that calls are lost, which it had answered: they are not sent again. From here on whoever asks is
    /// told so, before any answer that comes behind this.
    pub(crate) fn parked(&mut self, calls: impl IntoIterator<Item = u64>) {
        let ids = calls.into_iter().collect();
        let lost = self.replay.take(&ids);
        self.note_lost(&lost);
        self.admit_waiting();
    }

    fn note_lost(&mut self, calls: &[Replayed]) {
        for ino in calls.iter().filter_map(changed) {
            *self.lost.entry(ino).or_default() += 1;
        }
    }

    /// How often answered changes of `ino` were lost.
    pub(crate) fn lost(&self, ino: Ino) -> u64 {
        self.lost.get(&ino).copied().unwrap_or(0)
    }

    /// Whether this welcome is the first of a run of the server.
    fn is_new_run(&mut self, welcome: &Welcome) -> bool {
        std::mem::replace(&mut self.boot, welcome.boot) != welcome.boot
    }

    /// The same session goes on over a new connection: what the server needs to be told, then every call that has
    /// no answer, in order and with its id. Tells whether the server was started anew.
    pub(crate) fn resumed(&mut self, welcome: &Welcome) -> bool {
        let restarted = self.is_new_run(welcome);
        self.epoch = welcome.epoch;
        self.phase = Phase::Up;
        self.sending.clear();
        self.replay.durable(welcome.durable);
        // Not only to a server that has restarted since: the connection on which it was told may have been lost before
        // it heard. One that knows takes no notice.
        self.send_reclaim();
        if welcome.replay {
            self.send_replay();
        }
        self.resend();
        restarted
    }

    /// The old session is over and `welcome` opened a new one. What the old one may have done without an answer
    /// fails; what was never sent goes on; files stay open. Tells whether the server was started anew, and how many answered
    /// calls may be lost then: a welcome to a new session is durable, and with it what that run of the server had done.
    pub(crate) fn replaced(&mut self, welcome: &Welcome) -> (bool, usize) {
        let restarted = self.is_new_run(welcome);
        let mut lost = self.replay.take_all();
        lost.retain(|_| restarted);
        self.note_lost(&lost);
        if std::mem::replace(&mut self.restored, welcome.restored) != welcome.restored {
            // Its versions may go on below what was seen of the lost server, whose clock was ahead.
            (self.replay, self.seen) = (ReplayBuffer::default(), welcome.applied);
        }
        self.session = welcome.session;
        self.epoch = welcome.epoch;
        self.phase = Phase::Up;
        self.sending.clear();
        self.replay.durable(welcome.durable);
        let failed: Vec<u64> = self
            .calls
            .iter()
            .filter(|(_, call)| call.sent && call.request.mutates())
            .map(|(id, _)| *id)
            .collect();
        for id in failed {
            if let Some(call) = self.remove_call(id) {
                let _ = call.waiter.send(Err(Errno::EIO));
            }
        }
        // Objects are named after the session whose grant explains them: the new one may not put those.
        let is_put = |pending: &PendingTransfer| {
            matches!(pending.transfer, Transfer::Put { .. } | Transfer::SignPuts { .. })
        };
        let puts: Vec<u64> =
            self.transfers.iter().filter(|(_, pending)| is_put(pending)).map(|(id, _)| *id).collect();
        let puts: Vec<PendingTransfer> = puts.into_iter().filter_map(|id| self.remove_transfer(id)).collect();
        let (line, gets) = std::mem::take(&mut self.transfer_line).into_iter().partition(is_put);
        self.transfer_line = gets;
        for pending in puts.into_iter().chain::<VecDeque<_>>(line) {
            let _ = pending.waiter.send(Err(Errno::EIO));
        }
        self.send_reclaim();
        self.resend();
        (restarted, lost.len())
    }

    fn send_reclaim(&mut self) {
        let opens: Vec<(Ino, u32)> = self.opens.iter().map(|(ino, count)| (*ino, *count)).collect();
        self.send(Outgoing::Message(ToServer::Reclaim { opens }));
    }

    /// All of it is in line from now on: news of durability may concern what came before the loss.
    fn send_replay(&mut self) {
        let chunks = self.replay.chunks();
        let last = chunks.len() - 1;
        for (n, calls) in chunks.into_iter().enumerate() {
            self.send(Outgoing::Message(ToServer::Replay { calls, end: n == last }));
        }
    }

    fn resend(&mut self) {
        self.sending.extend(self.calls.keys().map(|id| Outgoing::Call(*id)));
        self.sending.extend(self.transfers.keys().map(|id| Outgoing::Transfer(*id)));
        self.admit_waiting();
    }

    fn send(&mut self, outgoing: Outgoing) {
        if self.phase == Phase::Up {
            self.sending.push_back(outgoing);
        }
    }

    fn encode_call(&mut self, id: u64, out: &mut BytesMut) {
        let acked = self.calls.keys().next().map_or(self.next_id, |first| *first) - 1;
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.sent = true;
        // The message owns what it sends: lend it caller and request, and take them back.
        let caller = std::mem::replace(&mut call.caller, Caller::ROOT);
        let request = std::mem::replace(&mut call.request, Request::StatFs);
        let message = ToServer::Call { id, acked, caller, request };
        let encoded = frame::encode(&message, out);
        if let ToServer::Call { caller, request, .. } = message {
            call.caller = caller;
            call.request = request;
        }
        if let Err(error) = encoded {
            tracing::error!("call {id} cannot be sent: {error}");
            if let Some(call) = self.remove_call(id) {
                let _ = call.waiter.send(Err(Errno::EIO));
            }
        }
    }

    /// Keeps the count of files that the server has as open for this session.
    fn note_opens(&mut self, request: &Request, reply: &Reply) {
        match (request, reply) {
            (Request::Open { .. } | Request::Create { .. }, Reply::Opened { attr, .. }) => {
                *self.opens.entry(attr.ino).or_insert(0) += 1;
            }
            (Request::Close { ino, count }, _) => {
                if let Some(open) = self.opens.get_mut(ino) {
                    *open = open.saturating_sub(*count);
                    if *open == 0 {
                        self.opens.remove(ino);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The lowest counter of the objects of `session` that a publish names.
fn lowest_named(request: &Request, session: SessionId) -> Option<u64> {
    let Request::Publish { slices, .. } = request else { return None };
    let objects = slices.iter().filter_map(|new| Some(new.slice.place.seal()?.id.object));
    objects.filter(|object| object.session == session).map(|object| object.n).min()
}

/// The inode that a create gave: what follows names it, so a replay must give the same one.
fn made_by(request: &Request, reply: &Reply) -> Option<Ino> {
    match (request, reply) {
        (Request::Create { .. }, Reply::Attr(attr) | Reply::Opened { attr, .. }) => Some(attr.ino),
        _ => None,
    }
}

/// The inode that a call changed or made.
fn changed(call: &Replayed) -> Option<Ino> {
    match &call.request {
        Request::SetAttr { ino, .. }
        | Request::SetXattr { ino, .. }
        | Request::RemoveXattr { ino, .. }
        | Request::Publish { ino, .. }
        | Request::Link { ino, .. } => Some(*ino),
        _ => call.made.filter(|_| !call.found),
    }
}

/// Whether a create opened a file that was there: of one that it makes the reply lists the slices, none.
fn only_found(request: &Request, reply: &Reply) -> bool {
    matches!(request, Request::Create { exclusive: false, .. })
        && matches!(reply, Reply::Opened { slices: None, .. })
}

fn encode(message: &ToServer, out: &mut BytesMut) {
    if let Err(error) = frame::encode(message, out) {
        tracing::error!("a message cannot be sent: {error}");
    }
}

impl Transfer {
    /// Bytes of the object that are on their way.
    fn bytes(&self) -> usize {
        match self {
            Transfer::Put { bytes, .. } => bytes.len(),
            Transfer::Get { len, .. } => *len as usize,
            Transfer::SignPuts { .. } => 0,
        }
    }

    fn message(self, id: u64) -> ToServer {
        match self {
            Transfer::Put { name, bytes } => ToServer::PutObject { id, name, bytes },
            Transfer::Get { shown_by: ShownBy { ino, block }, object, offset, len } => {
                ToServer::GetObject { id, ino, block, object, offset, len }
            }
            Transfer::SignPuts { first, count } => ToServer::SignPuts { id, first, count },
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
