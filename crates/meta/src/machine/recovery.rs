//! After a restart: what sessions did and the server lost is collected and applied in its order before anything new.
//!
//! A killed server loses nothing that it answered. A power cut may take the last milliseconds of what was answered
//! but not durable; clients keep those calls until they hear that they are durable, and send them again. What
//! cannot be applied as it was, because something it rests on did not come back, is parked: not applied, reported.

use super::calls::Who;
use super::group::{Effect, Group, ReplayDone, Then};
use super::lifetime::REPLIES;
use super::session::{CLIENT_BYTES_MAX, Collected, ConnId, Kept, Session, Sharing};
use super::tag::{self, Brief, KeptReplies, Tag};
use super::{Call, Machine};
use chronofs_core::ops::{Missed, Replayed, Reply, Request, SystemRequest};
use chronofs_core::{Errno, Ino, SessionId, Version};
use chronofs_engine::{EngineError, ReadStop, Reads, Recovered};
use chronofs_history::Snapshot;
use chronofs_namespace::rows::{self, INODE, STORE_WIDE, ino_key};
use chronofs_wire::message::ToClient;
use std::collections::{BTreeMap, BTreeSet};

/// A client's clock of versions is not believed further ahead than this.
const AHEAD_MAX_NS: u64 = 3_600_000_000_000;

#[derive(Debug)]
pub(super) enum Phase {
    /// Replays are collected.
    Recovering(Recovery),
    /// As usual.
    Serving,
}

#[derive(Debug)]
pub(super) struct Recovery {
    until_ns: u64,
    /// Sessions that have not come yet, or not sent all.
    expected: BTreeSet<SessionId>,
    replays: BTreeMap<SessionId, Collected>,
    /// Of it what was once tried, in its order: the disk was full.
    sorted: Vec<(SessionId, Replayed)>,
    held: Vec<(ConnId, Call)>,
    /// What `held` takes.
    held_bytes: BTreeMap<ConnId, usize>,
    /// The highest version that a client has seen.
    seen: Version,
}

impl Machine {
    pub(super) fn is_recovering(&self) -> bool {
        matches!(self.phase, Phase::Recovering(_))
    }

    pub(super) fn restore_session(&mut self, id: SessionId, row: &rows::Session, now_ns: u64) {
        let session = self.session_of_row(id, row, now_ns);
        self.sessions.insert(id, session);
    }

    /// Fills the reply caches from the row of the last mark and the tags since.
    pub(super) fn restore_replies<R: Reads>(
        &mut self,
        reads: &R,
        recovered: &[Recovered],
    ) -> Result<(), ReadStop> {
        let row = Snapshot::new(reads, STORE_WIDE, None).get_plain(REPLIES, &[])?;
        if let Some(row) = row {
            let kept = KeptReplies::decode(&row).map_err(ReadStop::Failed)?;
            self.mark_found = kept.marked;
            for (session, replies) in kept.replies {
                for (id, version, brief) in replies {
                    self.restore_reply(session, id, version, brief);
                }
            }
        }
        for found in recovered {
            let tag = tag::decode(found.version, &found.tag).map_err(ReadStop::Failed)?;
            if let Tag::Call { session, id, reply } = tag {
                self.restore_reply(session, id, found.version, reply);
            }
        }
        Ok(())
    }

    fn restore_reply(&mut self, session: SessionId, id: u64, version: Version, brief: Brief) {
        let Some(session) = self.sessions.get_mut(&session) else { return };
        session.last_commit = session.last_commit.max(version);
        session.replies.keep(id, Kept::Brief { version, brief, counted: false });
    }

    /// A session that was alone before is alone still.
    pub(super) fn settle_after_restart(&mut self) {
        let mut live = BTreeMap::new();
        for session in self.sessions.values().filter(|session| session.is_live()) {
            *live.entry(session.index).or_insert(0u32) += 1;
        }
        for session in self.sessions.values_mut().filter(|session| session.is_live()) {
            if live.get(&session.index) == Some(&1) {
                session.sharing = Sharing::Exclusive;
            }
        }
    }

    pub(super) fn begin_recovery(&mut self, maybe_lost: bool, now_ns: u64) {
        if self.sessions.values().any(Session::is_live) {
            self.reclaim_until_ns = Some(now_ns + 2 * u64::from(self.config.life_ms) * 1_000_000);
        }
        // Who only reads has nothing to replay, but may know inodes that were lost.
        if !maybe_lost || !self.sessions.values().any(Session::is_live) {
            return;
        }
        let writes = |session: &&Session| session.is_live() && !session.read_only;
        let expected: BTreeSet<SessionId> =
            self.sessions.values().filter(writes).map(|session| session.id).collect();
        self.durable = self.recovered;
        self.phase = Phase::Recovering(Recovery {
            until_ns: now_ns + u64::from(self.config.replay_window_ms) * 1_000_000,
            expected,
            replays: BTreeMap::new(),
            sorted: Vec::new(),
            held: Vec::new(),
            held_bytes: BTreeMap::new(),
            seen: self.recovered,
        });
    }

    /// Holds a call back while replays are collected. Who calls more than a client may without an answer is cut off.
    pub(super) fn hold_back(&mut self, group: &mut Group, conn: ConnId, call: &Call) -> bool {
        let Phase::Recovering(recovery) = &mut self.phase else { return false };
        let bytes = recovery.held_bytes.entry(conn).or_default();
        if *bytes <= CLIENT_BYTES_MAX {
            *bytes += call.request.weight();
            recovery.held.push((conn, call.clone()));
        }
        if *bytes > CLIENT_BYTES_MAX {
            group.effects.push(Effect::Close(conn));
        }
        true
    }

    /// What a connection called that is gone, its client calls again on the next.
    pub(super) fn forget_held(&mut self, conn: ConnId) {
        let Phase::Recovering(recovery) = &mut self.phase else { return };
        if recovery.held_bytes.remove(&conn).is_some() {
            recovery.held.retain(|(of, _)| *of != conn);
        }
    }

    /// A session is back, having seen `seen`: whether it has something to replay.
    pub(super) fn expect_replay(&mut self, group: &Group, id: SessionId, seen: Version) -> bool {
        let believable = seen.0 <= group.now_ns.saturating_add(AHEAD_MAX_NS);
        let live = self.sessions.get(&id).is_some_and(|session| session.is_live() && !session.read_only);
        match &mut self.phase {
            Phase::Recovering(recovery) => {
                if believable {
                    recovery.seen = recovery.seen.max(seen);
                }
                // What it has seen does not tell: a call that was replayed before and lost again has had a version
                // that nobody heard of. Who has nothing says so, and who has sent a part of it sends all again.
                let replays = live && recovery.expected.contains(&id);
                if replays {
                    recovery.replays.remove(&id);
                    recovery.sorted.retain(|(of, _)| *of != id);
                }
                replays
            }
            // It missed the window, or its calls were thought to be safe: better asked than lost.
            Phase::Serving => {
                let Some(session) = self.sessions.get(&id) else { return false };
                session.missed.is_some() || (live && !session.called && believable && seen > self.recovered)
            }
        }
    }

    /// What a session has open, after a restart.
    pub(super) fn reclaim(&mut self, id: SessionId, opens: Vec<(Ino, u32)>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        // Opens of the past hold nothing back: what was then stays anyway.
        if session.reclaimed || !session.is_live() {
            return;
        }
        session.reclaimed = true;
        for (ino, count) in opens {
            self.count_opened(id, ino, count);
        }
    }

    /// Calls that a session was answered and the server may have lost.
    pub(super) fn replay(
        &mut self,
        group: &mut Group,
        id: SessionId,
        calls: Vec<Replayed>,
        end: bool,
    ) -> Result<(), EngineError> {
        match &mut self.phase {
            // It has sent all.
            Phase::Recovering(recovery) if !recovery.expected.contains(&id) => Ok(()),
            Phase::Recovering(recovery) => {
                let collected = recovery.replays.entry(id).or_default();
                if !collected.take(calls) {
                    recovery.replays.remove(&id);
                    self.cut_off(group, id);
                    return Ok(());
                }
                if end {
                    recovery.expected.remove(&id);
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.replaying = false;
                    }
                }
                self.recovery_progress(group)
            }
            Phase::Serving => self.replay_late(group, id, calls, end),
        }
    }

    /// Ends the connection of a session. Its client comes again and is asked again; what it sent behind on this one must
    /// not be taken for a sign that it has nothing.
    fn cut_off(&mut self, group: &mut Group, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id)
            && let Some(conn) = session.conn.take()
        {
            session.late = Collected::default();
            self.conns.remove(&conn);
            self.forget_held(conn);
            group.effects.push(Effect::Close(conn));
        }
    }

    /// Calls that come when the window is over: too late for their place in the order. What can be done without
    /// touching what others did since is done now, all at once, and durable before the client hears of it: it compares
    /// what it hears with the versions of old.
    fn replay_late(
        &mut self,
        group: &mut Group,
        id: SessionId,
        calls: Vec<Replayed>,
        end: bool,
    ) -> Result<(), EngineError> {
        if group.full {
            // Parked for want of room they would be lost.
            self.cut_off(group, id);
            return Ok(());
        }
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.replaying) else {
            return Ok(());
        };
        if !session.late.take(calls) {
            self.cut_off(group, id);
            return Ok(());
        }
        if !end {
            return Ok(());
        }
        // Where there turns out to be no room for them, the client sends them again.
        let late = std::mem::take(&mut session.late);
        let mut late: Vec<(SessionId, Replayed)> = late.calls.into_iter().map(|call| (id, call)).collect();
        late.sort_by_key(|(_, call)| (call.version, call.found, call.id));
        let owes = session.missed.is_some();
        let mut done = self.apply_replays(group, &late)?;
        done.late = Some(id);
        if owes {
            done.missed = self.note_missed(group, vec![(id, None)])?;
        }
        group.sync_first = true;
        group.thens.push(Then::Replayed(done));
        Ok(())
    }

    /// Whether others changed since what a call that comes late is to change.
    fn changed_since(
        &self,
        group: &mut Group,
        who: Who,
        request: &Request,
        own: &BTreeSet<(SessionId, Ino)>,
        recovered: Version,
    ) -> Result<bool, EngineError> {
        if removes(request) {
            let volume = self.volumes.get(&who.index);
            // Who changed the volume in an earlier run is not known any more.
            return Ok(recovered < self.recovered
                || volume.is_some_and(|volume| volume.changed_by.others(who.session)));
        }
        let Some(ino) = changed_ino(request) else { return Ok(false) };
        match Snapshot::new(&group.reads, who.index, None).get(INODE, &ino_key(ino)) {
            Ok(row) => Ok(row.is_some_and(|row| row.since > recovered) && !own.contains(&(who.session, ino))),
            Err(stop) => self.stopped(group, stop, "reading what a late call changes").map(|_| true),
        }
    }

    /// Ends the window when everybody came or the time is over.
    pub(super) fn recovery_progress(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let Phase::Recovering(recovery) = &self.phase else { return Ok(()) };
        let over = recovery.expected.is_empty() || group.steady_ns >= recovery.until_ns;
        if !over || group.full {
            return Ok(());
        }
        let missing = recovery.expected.len();
        if missing > 0 {
            group.effects.push(Effect::Warn(format!(
                "{missing} session(s) did not come back within the replay window; what only they did since the \
                 last durable commit is lost unless they come back later"
            )));
        }
        let seen = recovery.seen;
        let here = self.survived_here();
        let changes = |session: &Session| {
            // The older of two power cuts took more.
            let missed = recovery.expected.contains(&session.id).then(|| session.missed.unwrap_or(here));
            (missed != session.missed).then_some((session.id, missed))
        };
        let missed = self.sessions.values().filter_map(changes).collect();
        let mut done = self.apply_collected(group)?;
        done.window = true;
        done.missed = self.note_missed(group, missed)?;
        // Versions and inode numbers that were given out once are not given to others, whatever is cut off next.
        if seen > self.last {
            self.commit_system(group, seen, chronofs_engine::Batch::default());
        }
        self.skip_lost_inos(group)?;
        group.sync_first = true;
        group.thens.push(Then::Replayed(done));
        Ok(())
    }

    /// Applies what was collected. It stays until the engine has taken it.
    fn apply_collected(&mut self, group: &mut Group) -> Result<ReplayDone, EngineError> {
        let Phase::Recovering(recovery) = &mut self.phase else { return Ok(ReplayDone::default()) };
        let mut replays = std::mem::take(&mut recovery.sorted);
        for (id, collected) in std::mem::take(&mut recovery.replays) {
            replays.extend(collected.calls.into_iter().map(|call| (id, call)));
        }
        // A create that found its file has the version of whoever was before it: it comes behind that.
        replays.sort_by_key(|(session, call)| (call.version, call.found, *session, call.id));
        let done = self.apply_replays(group, &replays);
        if let Phase::Recovering(recovery) = &mut self.phase {
            recovery.sorted = replays;
        }
        done
    }

    /// What survived the last power cut, as this start found it.
    fn survived_here(&self) -> Missed {
        Missed { recovered: self.recovered, mark: self.mark_found }
    }

    /// Writes what sessions are still to replay into their rows, so that they are asked however many restarts lie in
    /// between.
    fn note_missed(
        &mut self,
        group: &mut Group,
        changes: Vec<(SessionId, Option<Missed>)>,
    ) -> Result<Vec<(SessionId, Option<Missed>)>, EngineError> {
        for &(session, missed) in &changes {
            // One that is over in the state owes nothing.
            drop(self.system(group, &SystemRequest::NoteMissed { session, missed })?);
        }
        Ok(changes)
    }

    /// Applies replays in their order. They get new versions: the engine gives no version twice, and nobody has seen
    /// an instant that was not durable.
    fn apply_replays(
        &mut self,
        group: &mut Group,
        replays: &[(SessionId, Replayed)],
    ) -> Result<ReplayDone, EngineError> {
        let mut done = ReplayDone::default();
        let mut own: BTreeSet<(SessionId, Ino)> = BTreeSet::new();
        let mut seen: BTreeSet<(SessionId, u64)> = BTreeSet::new();
        for &(id, ref call) in replays {
            let Some(session) = self.sessions.get(&id) else { continue };
            let late = session.missed.is_some() || !self.is_recovering();
            let survived = session.missed.unwrap_or(self.survived_here());
            // Not by its version whether it survived a power cut: one that was replayed before has had another since.
            let there = call.version <= survived.mark
                || session.replies.get(call.id).is_some()
                || !seen.insert((id, call.id));
            if there || !call.request.mutates() {
                continue;
            }
            let who = Who::of(session);
            let foreign = late && self.changed_since(group, who, &call.request, &own, survived.recovered)?;
            // What only adds undoes nothing.
            if foreign && !matches!(call.request, Request::Link { .. }) {
                done.parked.push((id, call.id, Errno::ESTALE));
                continue;
            }
            let before = group.commits.len();
            match self.apply_replay(group, who, call)? {
                Ok((version, brief)) => {
                    // A create that found its file was beaten to it.
                    if !foreign && group.commits.len() > before {
                        let changed = changed_ino(&call.request);
                        own.extend(call.made.into_iter().chain(changed).map(|ino| (id, ino)));
                    }
                    done.applied.push((id, call.id, version, brief));
                }
                Err(errno) => done.parked.push((id, call.id, errno)),
            }
        }
        self.note_parked(group, &mut done)?;
        Ok(done)
    }

    fn apply_replay(
        &mut self,
        group: &mut Group,
        who: Who,
        call: &Replayed,
    ) -> Result<Result<(Version, Brief), Errno>, EngineError> {
        if group.full {
            return Ok(Err(Errno::ENOSPC));
        }
        let version = self.next_version(group);
        // It gets the number it had: creates that nobody was answered for are not among the replays, and took numbers too.
        let (result, commit) = self.decide(group, who, &call.caller, &call.request, version, call.made)?;
        let reply = match result {
            Ok(reply) => reply,
            Err(errno) => return Ok(Err(errno)),
        };
        let brief = Brief::of(&reply);
        let made = match &reply {
            Reply::Attr(attr) | Reply::Opened { attr, .. } => Some(attr.ino),
            _ => None,
        };
        // Another inode than the client knows: what follows would go to the wrong file. As nothing is made under another
        // number, what names an inode that stays lost finds none, and is parked by itself.
        if call.made.is_some() && call.made != made {
            return Ok(Err(Errno::ESTALE));
        }
        if let Some((_, batch)) = commit {
            self.last = version;
            let tag = Tag::Call { session: who.session, id: call.id, reply: brief.clone() };
            group.commit(version, &tag, batch);
            self.note_change(who);
        }
        Ok(Ok((version, brief)))
    }

    /// No volume gives a new file the number of one that was lost: clients have that open, know its target, or come
    /// with it when the window is over.
    fn skip_lost_inos(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let here = self.volumes.values().filter(|volume| volume.row.deleted.is_none());
        for index in here.map(|volume| volume.index).collect::<Vec<_>>() {
            let version = self.next_version(group);
            match chronofs_namespace::skip_lost_inos(&group.reads, index, version) {
                Ok(batch) => self.commit_system(group, version, batch),
                // Creates meet the same row, and are refused.
                Err(stop) => drop(self.stopped(group, stop, "reading the counters of a volume")?),
            }
        }
        Ok(())
    }

    /// The engine took the replays.
    pub(super) fn replays_applied(&mut self, group: &mut Group, done: ReplayDone) {
        let last = self.last;
        for session in
            self.sessions.values_mut().filter(|session| done.window || done.late == Some(session.id))
        {
            // Whatever became of its calls, it need not keep them once all this is durable, and is told so.
            session.last_commit = session.last_commit.max(last);
            if done.late.is_some() {
                (session.replaying, session.late) = (false, Collected::default());
            }
        }
        for (session, missed) in done.missed {
            if let Some(session) = self.sessions.get_mut(&session) {
                session.missed = missed;
            }
        }
        for (session, id, version, brief) in done.applied {
            if let Some(session) = self.sessions.get_mut(&session) {
                if let Brief::Grant { end, .. } = brief {
                    session.granted = session.granted.max(end);
                }
                // Its opens are in what the session reclaims.
                session.replies.keep(id, Kept::Brief { version, brief, counted: true });
            }
        }
        for (session, calls) in done.unheard {
            if let Some(session) = self.sessions.get_mut(&session) {
                session.parked = calls;
            }
        }
        let mut parked: BTreeMap<SessionId, Vec<(u64, Errno)>> = BTreeMap::new();
        for (session, id, errno) in done.parked {
            self.parked += 1;
            parked.entry(session).or_default().push((id, errno));
        }
        for (id, calls) in parked {
            let Some(session) = self.sessions.get(&id) else { continue };
            group.effects.push(Effect::Warn(format!(
                "{} calls of session {} ({}) were lost with the power and cannot be done again: {calls:?}",
                calls.len(),
                id.0,
                session.client_name
            )));
            if let Some(conn) = session.conn {
                group.send(conn, ToClient::Parked { calls });
            }
        }
        if done.window
            && let Phase::Recovering(recovery) = std::mem::replace(&mut self.phase, Phase::Serving)
        {
            self.released = recovery.held;
            self.believed = self.last;
        }
        group.effects.push(Effect::Hurry);
    }
}

/// Whether a mutation takes a name away.
fn removes(request: &Request) -> bool {
    matches!(request, Request::Unlink { .. } | Request::Rmdir { .. } | Request::Rename { .. })
}

/// The inode whose own row a mutation changes, but for those that remove.
fn changed_ino(request: &Request) -> Option<Ino> {
    match request {
        Request::SetAttr { ino, .. }
        | Request::SetXattr { ino, .. }
        | Request::RemoveXattr { ino, .. }
        | Request::Publish { ino, .. }
        | Request::Link { ino, .. } => Some(*ino),
        _ => None,
    }
}
