//! What a mount remembers of its talk with the server: calls under way, answers not durable yet, files open.
//!
//! It does no I/O: frames to send are encoded into `out`, frames received are handed in. So everything that a
//! reconnect must get right can be tested without a network.

use super::replay::ReplayBuffer;
use bytes::{Bytes, BytesMut};
use chronofs_core::ops::{Replayed, Reply, Request};
use chronofs_core::{Caller, Errno, Ino, SessionId, Version};
use chronofs_wire::frame;
use chronofs_wire::message::{ToServer, Welcome};
use std::collections::{BTreeMap, HashMap};
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

/// A transfer of an object's bytes through the server.
#[derive(Clone)]
pub(crate) enum Transfer {
    Put { name: String, bytes: Bytes },
    Get { name: String, offset: u64, len: u32 },
}

struct PendingTransfer {
    transfer: Transfer,
    waiter: oneshot::Sender<Result<Bytes, Errno>>,
}

/// See the module.
pub(crate) struct State {
    phase: Phase,
    session: SessionId,
    boot: u64,
    epoch: u64,
    /// Highest version any answer named.
    seen: Version,
    next_id: u64,
    calls: BTreeMap<u64, Call>,
    next_transfer: u64,
    transfers: BTreeMap<u64, PendingTransfer>,
    replay: ReplayBuffer,
    opens: HashMap<Ino, u32>,
    /// Frames to be written next.
    out: BytesMut,
}

impl State {
    /// The state after the first welcome.
    pub(crate) fn new(welcome: &Welcome) -> Self {
        let mut state = State {
            phase: Phase::Up,
            session: welcome.session,
            boot: welcome.boot,
            epoch: welcome.epoch,
            seen: welcome.applied,
            next_id: 1,
            calls: BTreeMap::new(),
            next_transfer: 1,
            transfers: BTreeMap::new(),
            replay: ReplayBuffer::default(),
            opens: HashMap::new(),
            out: BytesMut::new(),
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
        (self.calls.len() + self.transfers.len(), self.replay.len())
    }

    /// Frames to be written now, all at once.
    pub(crate) fn take_out(&mut self) -> BytesMut {
        self.out.split()
    }

    /// Starts a call. It is sent now if the server is there, else when it is back.
    pub(crate) fn call(&mut self, caller: Caller, request: Request) -> Waiter<Answer> {
        let (waiter, answer) = oneshot::channel();
        if let Phase::Refused(errno) = self.phase {
            let _ = waiter.send(Err(errno));
            return answer;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.calls.insert(id, Call { caller, request, sent: false, waiter });
        if self.phase == Phase::Up {
            self.send_call(id);
        }
        answer
    }

    /// Starts a transfer of an object's bytes.
    pub(crate) fn transfer(&mut self, transfer: Transfer) -> Waiter<Bytes> {
        let (waiter, answer) = oneshot::channel();
        if let Phase::Refused(errno) = self.phase {
            let _ = waiter.send(Err(errno));
            return answer;
        }
        let id = self.next_transfer;
        self.next_transfer += 1;
        let message = transfer.message(id);
        self.transfers.insert(id, PendingTransfer { transfer, waiter });
        if self.phase == Phase::Up {
            self.send(&message);
        }
        answer
    }

    /// Queues a frame that needs no memory here. Dropped when the server is away.
    pub(crate) fn send_if_up(&mut self, message: &ToServer) {
        if self.phase == Phase::Up {
            self.send(message);
        }
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
        let Some(call) = self.calls.remove(&id) else { return };
        if let Ok(reply) = &result {
            self.note_opens(&call.request, reply);
            if call.request.mutates() {
                let made = made_by(&call.request, reply);
                self.replay.keep(Replayed { id, version, caller: call.caller, request: call.request, made });
            }
        }
        self.replay.durable(durable);
        let _ = call.waiter.send(Ok(Answer { version, result }));
    }

    /// The answer to transfer `id` came.
    pub(crate) fn transferred(&mut self, id: u64, result: Result<Bytes, Errno>) {
        if let Some(pending) = self.transfers.remove(&id) {
            let _ = pending.waiter.send(result);
        }
    }

    pub(crate) fn durable(&mut self, version: Version) {
        self.replay.durable(version);
    }

    /// The connection is gone: calls wait from now on.
    pub(crate) fn down(&mut self) {
        if self.phase == Phase::Up {
            self.phase = Phase::Down;
        }
        self.out.clear();
    }

    /// The server refuses the mount: calls under way and to come fail with `errno`.
    pub(crate) fn refused(&mut self, errno: Errno) {
        self.phase = Phase::Refused(errno);
        self.out.clear();
        for call in std::mem::take(&mut self.calls).into_values() {
            let _ = call.waiter.send(Err(errno));
        }
        for pending in std::mem::take(&mut self.transfers).into_values() {
            let _ = pending.waiter.send(Err(errno));
        }
    }

    /// The same session goes on over a new connection: what the server needs to be told, then every call that has
    /// no answer, in order and with its id.
    pub(crate) fn resumed(&mut self, welcome: &Welcome) {
        let restarted = welcome.boot != self.boot;
        self.boot = welcome.boot;
        self.epoch = welcome.epoch;
        self.phase = Phase::Up;
        self.out.clear();
        self.replay.durable(welcome.durable);
        if restarted {
            self.send_reclaim();
        }
        if welcome.replay {
            self.send_replay();
        }
        self.resend();
    }

    /// The old session is over and `welcome` opened a new one. What the old one may have done without an answer
    /// fails; what was never sent goes on; files stay open. Tells how many answered calls may be lost.
    pub(crate) fn replaced(&mut self, welcome: &Welcome) -> usize {
        let lost = self.replay.clear();
        self.session = welcome.session;
        self.boot = welcome.boot;
        self.epoch = welcome.epoch;
        self.phase = Phase::Up;
        self.out.clear();
        self.replay.durable(welcome.durable);
        let failed: Vec<u64> = self
            .calls
            .iter()
            .filter(|(_, call)| call.sent && call.request.mutates())
            .map(|(id, _)| *id)
            .collect();
        for call in failed.iter().filter_map(|id| self.calls.remove(id)) {
            let _ = call.waiter.send(Err(Errno::EIO));
        }
        // Objects are named after the session whose grant explains them: the new one may not put those.
        let puts: Vec<u64> = self
            .transfers
            .iter()
            .filter(|(_, pending)| matches!(pending.transfer, Transfer::Put { .. }))
            .map(|(id, _)| *id)
            .collect();
        for pending in puts.iter().filter_map(|id| self.transfers.remove(id)) {
            let _ = pending.waiter.send(Err(Errno::EIO));
        }
        self.send_reclaim();
        self.resend();
        lost
    }

    fn send_reclaim(&mut self) {
        let opens: Vec<(Ino, u32)> = self.opens.iter().map(|(ino, count)| (*ino, *count)).collect();
        self.send(&ToServer::Reclaim { opens });
    }

    fn send_replay(&mut self) {
        let chunks = self.replay.chunks();
        let last = chunks.len() - 1;
        for (n, calls) in chunks.into_iter().enumerate() {
            self.send(&ToServer::Replay { calls, end: n == last });
        }
    }

    fn resend(&mut self) {
        let ids: Vec<u64> = self.calls.keys().copied().collect();
        for id in ids {
            self.send_call(id);
        }
        let transfers: Vec<ToServer> =
            self.transfers.iter().map(|(id, pending)| pending.transfer.clone().message(*id)).collect();
        for message in &transfers {
            self.send(message);
        }
    }

    fn send_call(&mut self, id: u64) {
        let acked = self.calls.keys().next().map_or(self.next_id, |first| *first) - 1;
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.sent = true;
        // The message owns what it sends: lend it caller and request, and take them back.
        let caller = std::mem::replace(&mut call.caller, Caller::ROOT);
        let request = std::mem::replace(&mut call.request, Request::StatFs);
        let message = ToServer::Call { id, acked, caller, request };
        let encoded = frame::encode(&message, &mut self.out);
        if let ToServer::Call { caller, request, .. } = message {
            call.caller = caller;
            call.request = request;
        }
        if let Err(error) = encoded {
            tracing::error!("call {id} cannot be sent: {error}");
            if let Some(call) = self.calls.remove(&id) {
                let _ = call.waiter.send(Err(Errno::EIO));
            }
        }
    }

    fn send(&mut self, message: &ToServer) {
        if let Err(error) = frame::encode(message, &mut self.out) {
            tracing::error!("a message cannot be sent: {error}");
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

/// The inode that a create gave: what follows names it, so a replay must give the same one.
fn made_by(request: &Request, reply: &Reply) -> Option<Ino> {
    match (request, reply) {
        (Request::Create { .. }, Reply::Attr(attr) | Reply::Opened { attr, .. }) => Some(attr.ino),
        _ => None,
    }
}

impl Transfer {
    fn message(&self, id: u64) -> ToServer {
        match self.clone() {
            Transfer::Put { name, bytes } => ToServer::PutObject { id, name, bytes },
            Transfer::Get { name, offset, len } => ToServer::GetObject { id, name, offset, len },
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
