//! Calls: dedupe, reads on the spot, reads for other threads, mutations, opens, syncs, objects.

use super::group::{Effect, Group, ReadJob, Undo, batch_len};
use super::objects::stored;
use super::session::{ConnId, Kept, Session};
use super::tag::{Brief, Tag};
use super::{COMMIT_BYTES_MAX, Call, Deferred, Machine, Waits};
use chronofs_core::ops::{Reply, Request};
use chronofs_core::{Caller, Errno, Ino, SessionId, Version, VolumeIndex};
use chronofs_engine::EngineError;
use chronofs_namespace::{Ctx, FREED_MAX};
use chronofs_wire::message::{REPLIES_KEPT_MAX, ToClient};
use std::collections::BTreeMap;

/// Names of the kinds of requests, by [`kind_of`].
pub const KINDS: [&str; 25] = [
    "lookup",
    "parent",
    "getattr",
    "readdir",
    "readlink",
    "getxattr",
    "listxattr",
    "slices",
    "staged",
    "statfs",
    "access",
    "open",
    "close",
    "create",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "setattr",
    "setxattr",
    "removexattr",
    "publish",
    "sync",
    "grant",
    "narrowed",
];
/// Of them those that read.
pub const READS: std::ops::Range<usize> = 0..12;
/// Of them those that change something.
pub const WRITES: std::ops::Range<usize> = 13..22;
/// The kind of [`Request::Sync`].
pub(super) const SYNC: u8 = 22;

/// The kind of a request.
pub fn kind_of(request: &Request) -> u8 {
    match request {
        Request::Lookup { .. } => 0,
        Request::Parent { .. } => 1,
        Request::GetAttr { .. } => 2,
        Request::ReadDir { .. } => 3,
        Request::ReadLink { .. } => 4,
        Request::GetXattr { .. } => 5,
        Request::ListXattr { .. } => 6,
        Request::Slices { .. } => 7,
        Request::Staged { .. } => 8,
        Request::StatFs => 9,
        Request::Access { .. } => 10,
        Request::Open { .. } => 11,
        Request::Close { .. } => 12,
        Request::Create { .. } => 13,
        Request::Link { .. } => 14,
        Request::Unlink { .. } => 15,
        Request::Rmdir { .. } => 16,
        Request::Rename { .. } => 17,
        Request::SetAttr { .. } => 18,
        Request::SetXattr { .. } => 19,
        Request::RemoveXattr { .. } => 20,
        Request::Publish { .. } => 21,
        Request::Sync => SYNC,
        Request::Grant { .. } => 23,
        Request::Narrowed { .. } => 24,
    }
}

/// Whether a read is a few point reads, cheaper to do at once than to hand to another thread.
fn is_quick(request: &Request) -> bool {
    matches!(
        request,
        Request::Lookup { .. }
            | Request::Parent { .. }
            | Request::GetAttr { .. }
            | Request::ReadLink { .. }
            | Request::GetXattr { .. }
            | Request::StatFs
            | Request::Access { .. }
            | Request::Narrowed { .. }
    )
}

/// The inode that a read asks about, where it may be one without a name.
fn inode_of(request: &Request) -> Option<Ino> {
    match request {
        Request::GetAttr { ino }
        | Request::ReadLink { ino }
        | Request::GetXattr { ino, .. }
        | Request::ListXattr { ino }
        | Request::Slices { ino, .. }
        | Request::Staged { ino, .. }
        | Request::Access { ino, .. }
        | Request::Open { ino, .. } => Some(*ino),
        _ => None,
    }
}

/// What a call needs of its session, copied out so that the machine is free to change.
#[derive(Clone, Copy)]
pub(super) struct Who {
    pub(super) session: SessionId,
    pub(super) index: VolumeIndex,
    pub(super) root: Ino,
    pub(super) at: Option<Version>,
    pub(super) read_only: bool,
}

impl Who {
    pub(super) fn of(session: &Session) -> Who {
        Who {
            session: session.id,
            index: session.index,
            root: session.root,
            at: session.at,
            read_only: session.read_only,
        }
    }
}

impl Machine {
    pub(super) fn call(&mut self, group: &mut Group, conn: ConnId, call: &Call) -> Result<(), EngineError> {
        let Some(id) = self.heard(group, conn) else { return Ok(()) };
        if self.hold_back(group, conn, call) {
            return Ok(());
        }
        self.note_call(group);
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        session.called = true;
        // What is open is told before any call of a connection; what is opened from here on is counted as it comes.
        session.reclaimed = true;
        session.replies.acknowledge(call.acked);
        if session.replies.is_acknowledged(call.id) {
            return Ok(());
        }
        let who = Who::of(session);
        if let Some(kept) = session.replies.get(call.id) {
            let kept = kept.clone();
            return self.answer_again(group, conn, who, call, kept);
        }
        if session.replies.len() >= REPLIES_KEPT_MAX {
            let message =
                format!("{REPLIES_KEPT_MAX} answers are not acknowledged; acknowledge them with `acked`");
            group.send(conn, ToClient::Refused { message });
            group.effects.push(Effect::Close(conn));
            return Ok(());
        }
        match &call.request {
            Request::Sync => self.sync(group, conn, call.id),
            Request::Close { ino, count } => self.close(group, conn, who, call.id, *ino, *count),
            Request::Open { .. } if who.at.is_none() => self.open(group, conn, who, call)?,
            request if request.mutates() => self.mutate(group, conn, who, call)?,
            request if is_quick(request) && who.at.is_none() => {
                let result = self.query(group, who, &call.caller, request)?;
                self.answer_read(group, conn, call, result);
            }
            request => {
                let job = self.read_job(conn, who, call.id, call.caller.clone(), request.clone());
                group.effects.push(Effect::Read(Box::new(job)));
            }
        }
        Ok(())
    }

    /// What a reader thread needs to answer for the session.
    pub(super) fn read_job(
        &self,
        conn: ConnId,
        who: Who,
        id: u64,
        caller: Caller,
        request: Request,
    ) -> ReadJob {
        ReadJob {
            conn,
            id,
            held: inode_of(&request).is_some_and(|ino| self.holds(who.session, ino)),
            caller,
            request,
            volume: who.index,
            session: who.session,
            root: who.root,
            at: who.at,
            read_only: who.read_only,
            sign: self.sessions.get(&who.session).and_then(|session| self.sign_for(session)),
        }
    }

    fn answer_read(&self, group: &mut Group, conn: ConnId, call: &Call, result: Result<Reply, Errno>) {
        group.answer(conn, call.id, kind_of(&call.request), self.last, self.durable, result);
    }

    /// A read in the present, on the spot.
    pub(super) fn query(
        &self,
        group: &mut Group,
        who: Who,
        caller: &Caller,
        request: &Request,
    ) -> Result<Result<Reply, Errno>, EngineError> {
        self.query_at(group, who, caller, request, who.at)
    }

    fn query_at(
        &self,
        group: &mut Group,
        who: Who,
        caller: &Caller,
        request: &Request,
        at: Option<Version>,
    ) -> Result<Result<Reply, Errno>, EngineError> {
        let is_open = |ino: Ino| self.is_open(who.index, ino);
        let holds = |ino: Ino| self.holds(who.session, ino);
        let ctx = Ctx {
            volume: who.index,
            version: self.last,
            at,
            caller: caller.clone(),
            session: who.session,
            root: who.root,
            read_only: who.read_only,
            is_open: &is_open,
            holds: &holds,
            freed_max: FREED_MAX,
            made: None,
        };
        match chronofs_namespace::query(&group.reads, &ctx, request) {
            Ok(result) => Ok(result),
            Err(stop) => self.stopped(group, stop, &format!("{request:?}")).map(Err),
        }
    }

    /// Whether anybody may have `ino` open.
    pub(super) fn is_open(&self, index: VolumeIndex, ino: Ino) -> bool {
        self.reclaim_until_ns.is_some()
            || self.volumes.get(&index).is_some_and(|volume| volume.opens.contains_key(&ino))
    }

    /// Whether the session may have `ino` open: after a restart it tells what it has.
    fn holds(&self, session: SessionId, ino: Ino) -> bool {
        let untold = |session: &Session| self.reclaim_until_ns.is_some() && !session.reclaimed;
        self.sessions.get(&session).is_some_and(|session| session.opens.contains_key(&ino) || untold(session))
    }

    fn mutate(&mut self, group: &mut Group, conn: ConnId, who: Who, call: &Call) -> Result<(), EngineError> {
        let kind = kind_of(&call.request);
        let version = self.next_version(group);
        let (result, brief) = if group.full {
            (Err(Errno::ENOSPC), None)
        } else {
            self.decide(group, who, &call.caller, &call.request, version, None)?
        };
        let version = match brief {
            Some((reply, batch)) => {
                self.last = version;
                group.commit(version, &Tag::Call { session: who.session, id: call.id, reply }, batch);
                self.note_change(who);
                version
            }
            None => self.last,
        };
        if let Ok(Reply::Opened { attr, .. }) = &result {
            self.count_opened(who.session, attr.ino, 1);
            group.undo.push(Undo::Opened(who.session, attr.ino));
        }
        if let Some(session) = self.sessions.get_mut(&who.session) {
            if let Ok(Reply::Grant { end, .. }) = &result {
                group.undo.push(Undo::Granted(who.session, session.granted));
                session.granted = *end;
            }
            session.last_commit = version;
            // The slices of a file that was there already may be big and can be read again.
            let kept = match &result {
                Ok(reply @ Reply::Opened { slices: Some(slices), .. }) if !slices.is_empty() => {
                    Kept::Brief { version, brief: Brief::of(reply), counted: true }
                }
                _ => Kept::Full(version, result.clone()),
            };
            session.replies.keep(call.id, kept);
            group.undo.push(Undo::Replied(who.session, call.id));
        }
        group.answer(conn, call.id, kind, version, self.durable, result);
        Ok(())
    }

    /// A session changes its volume.
    pub(super) fn note_change(&mut self, who: Who) {
        if let Some(volume) = self.volumes.get_mut(&who.index) {
            volume.changed_by.note(who.session);
        }
    }

    /// What a mutation comes to: the answer and, if anything changes, what to commit. `made` is the inode that a create
    /// gave before a power cut.
    #[allow(
        clippy::type_complexity,
        reason = "an answer with what belongs to it, taken apart by its two callers at once"
    )]
    pub(super) fn decide(
        &self,
        group: &mut Group,
        who: Who,
        caller: &Caller,
        request: &Request,
        version: Version,
        made: Option<Ino>,
    ) -> Result<(Result<Reply, Errno>, Option<(Brief, chronofs_engine::Batch)>), EngineError> {
        let is_open = |ino: Ino| self.is_open(who.index, ino);
        let holds = |ino: Ino| self.holds(who.session, ino);
        let ctx = Ctx {
            volume: who.index,
            version,
            at: None,
            caller: caller.clone(),
            session: who.session,
            root: who.root,
            read_only: who.read_only || who.at.is_some(),
            is_open: &is_open,
            holds: &holds,
            freed_max: FREED_MAX,
            made,
        };
        match chronofs_namespace::step(&group.reads, &ctx, request) {
            Ok(outcome) => Ok(match outcome.reply {
                // Files that are there are opened by the thousand. Anything else has a version of its own, though it
                // changes nothing: it tells its place in the order when it is replayed.
                Ok(reply) if outcome.batch.0.is_empty() && matches!(request, Request::Create { .. }) => {
                    (Ok(reply), None)
                }
                Ok(_) if batch_len(&outcome.batch) > COMMIT_BYTES_MAX => {
                    let kind = KINDS[usize::from(kind_of(request))];
                    group.effects.push(Effect::Warn(format!(
                        "a {kind} of session {} would change {} MiB of metadata at once and is refused: the limit is {} MiB",
                        who.session.0,
                        batch_len(&outcome.batch) >> 20,
                        COMMIT_BYTES_MAX >> 20
                    )));
                    (Err(Errno::EFBIG), None)
                }
                Ok(reply) => {
                    let brief = Brief::of(&reply);
                    (Ok(reply), Some((brief, outcome.batch)))
                }
                Err(errno) => (Err(errno), None),
            }),
            Err(stop) => {
                let errno = self.stopped(group, stop, &format!("{request:?}"))?;
                Ok((Err(errno), None))
            }
        }
    }

    /// Opens are registered once per call, though it may come again; what the answer held is read again then.
    fn open(&mut self, group: &mut Group, conn: ConnId, who: Who, call: &Call) -> Result<(), EngineError> {
        let result = self.query(group, who, &call.caller, &call.request)?;
        if let Ok(Reply::Opened { attr, .. }) = &result {
            self.count_opened(who.session, attr.ino, 1);
            group.undo.push(Undo::Opened(who.session, attr.ino));
            let kept = Kept::Brief { version: self.last, brief: Brief::Opened(attr.ino), counted: true };
            self.keep(group, who.session, call.id, kept);
        }
        match result {
            Ok(reply) if stored(&reply).next().is_some() => {
                group.answered.push((kind_of(&call.request), 0));
                self.answer_stored(group, conn, who.session, (call.id, self.last, reply));
            }
            result => self.answer_read(group, conn, call, result),
        }
        Ok(())
    }

    fn close(&mut self, group: &mut Group, conn: ConnId, who: Who, id: u64, ino: Ino, count: u32) {
        if who.at.is_none() {
            let open = self.sessions.get(&who.session).and_then(|session| session.opens.get(&ino).copied());
            let count = count.min(open.unwrap_or(0));
            self.count_closed(who.session, ino, count);
            group.undo.push(Undo::Closed(who.session, ino, count));
            self.keep(group, who.session, id, Kept::Closed(self.last));
        }
        let kind = kind_of(&Request::Close { ino, count });
        group.answer(conn, id, kind, self.last, self.durable, Ok(Reply::Done));
    }

    fn keep(&mut self, group: &mut Group, session: SessionId, id: u64, kept: Kept) {
        if let Some(found) = self.sessions.get_mut(&session) {
            found.replies.keep(id, kept);
            group.undo.push(Undo::Replied(session, id));
        }
    }

    /// Everything decided before is durable when the answer goes out.
    fn sync(&mut self, group: &mut Group, conn: ConnId, id: u64) {
        let version = self.last;
        if version <= self.durable {
            group.answer(conn, id, SYNC, version, self.durable, Ok(Reply::Instant(version)));
            return;
        }
        self.deferred.push_back(Deferred { version, conn, what: Waits::Sync { id } });
        group.undo.push(Undo::Deferred);
        group.effects.push(Effect::Hurry);
    }

    fn answer_again(
        &mut self,
        group: &mut Group,
        conn: ConnId,
        who: Who,
        call: &Call,
        kept: Kept,
    ) -> Result<(), EngineError> {
        let (version, result) = match kept {
            Kept::Full(version, result) => (version, result),
            Kept::Closed(version) => (version, Ok(Reply::Done)),
            Kept::Brief { version, brief, counted } => {
                if let (Brief::Opened(ino), false) = (&brief, counted) {
                    self.count_opened(who.session, *ino, 1);
                    group.undo.push(Undo::Opened(who.session, *ino));
                    self.set_counted(who.session, call.id);
                    group.undo.push(Undo::Counted(who.session, call.id));
                }
                (version, self.read_brief(group, who, version, brief)?)
            }
        };
        group.answer(conn, call.id, kind_of(&call.request), version, self.durable, result);
        Ok(())
    }

    fn set_counted(&mut self, session: SessionId, id: u64) {
        let kept = self.sessions.get_mut(&session).and_then(|session| session.replies.get_mut(id));
        if let Some(Kept::Brief { counted, .. }) = kept {
            *counted = true;
        }
    }

    /// The reply behind its short form: attributes as they are now or, if the inode is gone, as they were. If that is
    /// before the horizon, what is left of it is no whole: then the inode is just gone.
    fn read_brief(
        &self,
        group: &mut Group,
        who: Who,
        version: Version,
        brief: Brief,
    ) -> Result<Result<Reply, Errno>, EngineError> {
        let (ino, opened) = match brief {
            Brief::Done => return Ok(Ok(Reply::Done)),
            Brief::Grant { first, end } => return Ok(Ok(Reply::Grant { first, end })),
            Brief::Attr(ino) => (ino, false),
            Brief::Opened(ino) => (ino, true),
        };
        let request = Request::GetAttr { ino };
        let mut result = self.query_at(group, who, &Caller::ROOT, &request, None)?;
        let horizon = self.volumes.get(&who.index).map_or(Version::MAX, |volume| volume.row.horizon);
        if result.is_err() && version >= horizon {
            result = self.query_at(group, who, &Caller::ROOT, &request, Some(version))?;
        }
        Ok(result.map(|reply| match reply {
            Reply::Attr(attr) if opened => Reply::Opened { attr, slices: None },
            reply => reply,
        }))
    }

    pub(super) fn count_opened(&mut self, session: SessionId, ino: Ino, count: u32) {
        if count == 0 {
            return;
        }
        let Some(session) = self.sessions.get_mut(&session) else { return };
        *session.opens.entry(ino).or_default() += count;
        if let Some(volume) = self.volumes.get_mut(&session.index) {
            *volume.opens.entry(ino).or_default() += count;
            volume.to_reap.remove(&ino);
        }
    }

    pub(super) fn count_closed(&mut self, session: SessionId, ino: Ino, count: u32) {
        if count == 0 {
            return;
        }
        let Some(session) = self.sessions.get_mut(&session) else { return };
        take(&mut session.opens, ino, count);
        if let Some(volume) = self.volumes.get_mut(&session.index)
            && volume.closed(ino, count)
        {
            volume.to_reap.insert(ino);
        }
    }
}

/// Takes `count` from the count of `ino`; an entry never stands at 0.
pub(super) fn take(counts: &mut BTreeMap<Ino, u32>, ino: Ino, count: u32) {
    if let Some(have) = counts.get_mut(&ino) {
        *have = have.saturating_sub(count);
        if *have == 0 {
            counts.remove(&ino);
        }
    }
}
