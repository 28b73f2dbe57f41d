//! After a restart: what sessions did and the server lost is collected and applied in its order before anything new.
//!
//! A killed server loses nothing that it answered. A power cut may take the last milliseconds of what was answered
//! but not durable; clients keep those calls until they hear that they are durable, and send them again. What
//! cannot be applied as it was, because something it rests on did not come back, is parked: not applied, reported.

use super::group::{Effect, Group};
use super::lifetime::REPLIES;
use super::replays::Replaying;
use super::session::{CLIENT_BYTES_MAX, Collected, ConnId, Kept, Session, Sharing};
use super::tag::{self, Brief, KeptReplies, Tag};
use super::{Call, Machine};
use chronofs_core::ops::{Missed, Replayed, SystemRequest};
use chronofs_core::{Ino, SessionId, Version};
use chronofs_engine::{EngineError, ReadStop, Reads, Recovered};
use chronofs_history::Snapshot;
use chronofs_namespace::rows::{self, STORE_WIDE};
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
    pub(super) held: Vec<(ConnId, Call)>,
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
            match tag {
                Tag::Call { session, id, reply } => self.restore_reply(session, id, found.version, reply),
                Tag::Replays(unfinished) => self.unfinished = unfinished,
                Tag::System => {}
            }
        }
        // Of what was lost then a part is there again, at versions above all of it: what survived that loss still says
        // what may be missing.
        if let Some(missed) = self.unfinished {
            (self.recovered, self.mark_found) = (missed.recovered, missed.mark);
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
        if !(maybe_lost || self.unfinished.is_some()) || !self.sessions.values().any(Session::is_live) {
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
            // The window has closed before it had sent all: it is asked again.
            Phase::Recovering(_) if self.replaying.is_some() => {
                self.cut_off(group, id);
                Ok(())
            }
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
    pub(super) fn cut_off(&mut self, group: &mut Group, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id)
            && let Some(conn) = session.conn.take()
        {
            session.late = Collected::default();
            self.conns.remove(&conn);
            self.forget_held(conn);
            group.effects.push(Effect::Close(conn));
        }
    }

    /// Ends the window when everybody came or the time is over: what was collected is applied from here on.
    pub(super) fn recovery_progress(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let Phase::Recovering(recovery) = &mut self.phase else { return Ok(()) };
        let over = recovery.expected.is_empty() || group.steady_ns >= recovery.until_ns;
        if self.replaying.is_none() {
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
            let mut calls = Vec::new();
            for (id, collected) in std::mem::take(&mut recovery.replays) {
                calls.extend(collected.calls.into_iter().map(|call| (id, call)));
            }
            // A create that found its file has the version of whoever was before it: it comes behind that.
            calls.sort_by_key(|(session, call)| (call.version, call.found, *session, call.id));
            self.replaying = Some(Replaying::new(calls, None, self.missed()));
        }
        self.replay_on(group)
    }

    /// What sessions owed from windows before this one.
    pub(super) fn missed(&self) -> BTreeMap<SessionId, Missed> {
        self.sessions.values().filter_map(|session| Some((session.id, session.missed?))).collect()
    }

    /// Who was not back when the window closed owes from then on what it had: of two power cuts the older took more.
    pub(super) fn newly_missed(&self) -> Vec<(SessionId, Option<Missed>)> {
        let Phase::Recovering(recovery) = &self.phase else { return Vec::new() };
        let owes = recovery.expected.iter().filter_map(|id| self.sessions.get(id));
        let new = owes.filter(|session| session.missed.is_none());
        new.map(|session| (session.id, Some(self.survived_here()))).collect()
    }

    /// Who was back owes nothing once all is applied.
    pub(super) fn replayed_all(&self) -> Vec<(SessionId, Option<Missed>)> {
        let Phase::Recovering(recovery) = &self.phase else { return Vec::new() };
        let owed = self.sessions.values().filter(|session| session.missed.is_some());
        owed.filter(|session| !recovery.expected.contains(&session.id))
            .map(|session| (session.id, None))
            .collect()
    }

    /// The highest version that a client has seen.
    pub(super) fn seen(&self) -> Version {
        match &self.phase {
            Phase::Recovering(recovery) => recovery.seen,
            Phase::Serving => Version::ZERO,
        }
    }

    /// Whether a session comes while what others replayed is being applied, and has not sent what it owes itself.
    pub(super) fn comes_between(&self, id: SessionId) -> bool {
        match &self.phase {
            Phase::Recovering(recovery) => self.replaying.is_some() && recovery.expected.contains(&id),
            Phase::Serving => false,
        }
    }

    /// What survived the last power cut, as this start found it.
    pub(super) fn survived_here(&self) -> Missed {
        Missed { recovered: self.recovered, mark: self.mark_found }
    }

    /// Writes what sessions are still to replay into their rows, so that they are asked however many restarts lie in
    /// between.
    pub(super) fn note_missed(
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
}
