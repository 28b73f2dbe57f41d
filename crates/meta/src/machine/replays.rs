//! What was lost and is sent again is applied, in its order and in groups that the log can take.
//!
//! Each group is applied as a whole or not at all. Until the last one is durable clients are told nothing and keep
//! what they have. After a kill between two groups the next start collects it again and skips what is there: a tag says
//! that a part is, and what had survived before, because what is there has versions above all that was lost.

use super::Machine;
use super::calls::Who;
use super::group::{Effect, Group, ReplayDone, Then};
use super::recovery::Phase;
use super::session::{Collected, Kept};
use super::tag::{Brief, Tag};
use chronofs_core::ops::{Missed, Replayed, Reply, Request};
use chronofs_core::{Errno, Ino, SessionId, Version};
use chronofs_engine::{Batch, EngineError};
use chronofs_history::Snapshot;
use chronofs_namespace::rows::{INODE, ino_key};
use chronofs_wire::message::ToClient;
use std::collections::{BTreeMap, BTreeSet};

/// Calls that are being applied again.
#[derive(Debug)]
pub(super) struct Replaying {
    /// In their order.
    calls: Vec<(SessionId, Replayed)>,
    /// So many of them are done with.
    next: usize,
    /// They came after the window, from this session.
    late: Option<SessionId>,
    /// What sessions owed when it began: by that their calls are judged.
    missed: BTreeMap<SessionId, Missed>,
    /// Inodes that sessions have changed with them, and up to which version what changed them is their own.
    own: BTreeMap<(SessionId, Ino), Version>,
    /// Calls that could not be applied. Their sessions hear of it when all is done.
    parked: Vec<(SessionId, u64, Errno)>,
    /// There was no room for the next group; it is tried again at the next tick.
    stalled: bool,
}

impl Replaying {
    pub(super) fn new(
        calls: Vec<(SessionId, Replayed)>,
        late: Option<SessionId>,
        missed: BTreeMap<SessionId, Missed>,
    ) -> Self {
        let (own, parked) = (BTreeMap::new(), Vec::new());
        Replaying { calls, next: 0, late, missed, own, parked, stalled: false }
    }
}

impl Machine {
    /// Whether another group of replays is to be decided right away.
    pub fn is_replaying(&self) -> bool {
        self.replaying.as_ref().is_some_and(|replaying| !replaying.stalled)
    }

    /// Decides the next group of replays as an event of its own.
    pub fn go_on_replaying(&mut self, group: &mut Group) -> Result<(), EngineError> {
        self.replay_on(group)
    }

    /// Decides the next group of replays.
    pub(super) fn replay_on(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let Some(mut replaying) = self.replaying.take() else { return Ok(()) };
        if group.full {
            match replaying.late {
                // Parked for want of room they would be lost. Its row says that it owes them.
                Some(id) => self.cut_off(group, id),
                None => {
                    replaying.stalled = true;
                    self.replaying = Some(replaying);
                }
            }
            return Ok(());
        }
        replaying.stalled = false;
        let done = self.replay_group(group, &replaying);
        self.replaying = Some(replaying);
        group.thens.push(Then::Replayed(done?));
        Ok(())
    }

    fn replay_group(&mut self, group: &mut Group, replaying: &Replaying) -> Result<ReplayDone, EngineError> {
        let mut done = self.apply_replays(group, replaying)?;
        let (first, last) = (replaying.next == 0, done.next == replaying.calls.len());
        done.last = last;
        let changes = match replaying.late {
            // More than one group says that the rest is still to come.
            Some(id) => match (last, self.sessions.get(&id).and_then(|session| session.missed)) {
                (true, Some(_)) => vec![(id, None)],
                (false, None) => vec![(id, Some(self.survived_here()))],
                _ => Vec::new(),
            },
            None => self.window_changes(group, first, last)?,
        };
        done.missed = self.note_missed(group, changes)?;
        if last && replaying.late.is_none() {
            // Versions and inode numbers that were given out once are not given to others, whatever is cut off next.
            let seen = self.seen();
            if seen > self.last {
                self.commit_system(group, seen, Batch::default());
            }
            self.skip_lost_inos(group)?;
        }
        group.sync_first |= last;
        Ok(done)
    }

    /// What the first and the last group of a window write beside calls.
    fn window_changes(
        &mut self,
        group: &mut Group,
        first: bool,
        last: bool,
    ) -> Result<Vec<(SessionId, Option<Missed>)>, EngineError> {
        if first {
            self.note_start(group)?;
        }
        if first && !last {
            self.note_replays(group, Some(self.survived_here()));
        }
        if last && (!first || self.unfinished.is_some()) {
            self.note_replays(group, None);
        }
        let mut changes = if first { self.newly_missed() } else { Vec::new() };
        if last {
            changes.extend(self.replayed_all());
        }
        Ok(changes)
    }

    /// Says in the log that replays are applied in part, or in whole.
    fn note_replays(&mut self, group: &mut Group, unfinished: Option<Missed>) {
        let version = self.next_version(group);
        self.last = version;
        group.commit(version, &Tag::Replays(unfinished), Batch::default());
    }

    /// Applies replays in their order, as many as go into a group. They get new versions: the engine gives no version
    /// twice, and nobody has seen an instant that was not durable.
    fn apply_replays(&mut self, group: &mut Group, replaying: &Replaying) -> Result<ReplayDone, EngineError> {
        let mut done = ReplayDone { next: replaying.next, ..ReplayDone::default() };
        let mut seen: BTreeSet<(SessionId, u64)> = BTreeSet::new();
        for &(id, ref call) in &replaying.calls[replaying.next..] {
            if group.bytes() >= self.config.replay_group_bytes {
                break;
            }
            done.next += 1;
            let Some(session) = self.sessions.get(&id) else { continue };
            let missed = replaying.missed.get(&id).copied();
            let late = missed.is_some() || !self.is_recovering();
            let survived = missed.unwrap_or(self.survived_here());
            // Not by its version whether it survived a power cut: one that was replayed before has had another since.
            let there = call.version <= survived.mark
                || session.replies.get(call.id).is_some()
                || !seen.insert((id, call.id));
            if there || !call.request.mutates() {
                // It was done again before a kill between two groups, perhaps.
                let done_at = session.replies.get(call.id).and_then(Kept::committed);
                let made = call.made.filter(|_| !call.found);
                if let (Some(version), Some(ino)) = (done_at, changed_alone(&call.request).or(made)) {
                    done.own.insert((id, ino), version);
                }
                continue;
            }
            let who = Who::of(session);
            let own = |ino| done.own.get(&(id, ino)).or(replaying.own.get(&(id, ino))).copied();
            let foreign = late && self.changed_since(group, who, &call.request, own, survived.recovered)?;
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
                        let inos = call.made.into_iter().chain(changed);
                        done.own.extend(inos.map(|ino| ((id, ino), Version::MAX)));
                    }
                    done.applied.push((id, call.id, version, brief));
                }
                Err(errno) => done.parked.push((id, call.id, errno)),
            }
        }
        self.note_parked(group, &mut done)?;
        Ok(done)
    }

    /// Calls that come when the window is over: too late for their place in the order. What can be done without
    /// touching what others did since is done now, and durable before the client hears of it: it compares
    /// what it hears with the versions of old.
    pub(super) fn replay_late(
        &mut self,
        group: &mut Group,
        id: SessionId,
        calls: Vec<Replayed>,
        end: bool,
    ) -> Result<(), EngineError> {
        if group.full {
            // Parked for want of room they would be lost.
            self.replaying = None;
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
        self.replaying = Some(Replaying::new(late, Some(id), self.missed()));
        self.replay_on(group)
    }

    /// Whether others changed since what a call that comes late is to change.
    fn changed_since(
        &self,
        group: &mut Group,
        who: Who,
        request: &Request,
        own: impl Fn(Ino) -> Option<Version>,
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
            Ok(row) => Ok(row.is_some_and(|row| row.since > recovered && own(ino) < Some(row.since))),
            Err(stop) => self.stopped(group, stop, "reading what a late call changes").map(|_| true),
        }
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

    /// The engine took a group of replays.
    pub(super) fn replays_applied(&mut self, group: &mut Group, done: ReplayDone) {
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
        let Some(mut replaying) = self.replaying.take() else { return };
        replaying.parked.extend(done.parked);
        if done.last {
            self.replayed(group, replaying);
            return;
        }
        replaying.next = done.next;
        replaying.own.extend(done.own);
        self.replaying = Some(replaying);
    }

    /// All is applied, and durable.
    fn replayed(&mut self, group: &mut Group, replaying: Replaying) {
        let (last, late) = (self.last, replaying.late);
        for session in self.sessions.values_mut().filter(|session| late.is_none_or(|late| late == session.id))
        {
            // Whatever became of its calls, it need not keep them once all this is durable, and is told so.
            session.last_commit = session.last_commit.max(last);
            if late.is_some() {
                (session.replaying, session.late) = (false, Collected::default());
            }
        }
        let mut parked: BTreeMap<SessionId, Vec<(u64, Errno)>> = BTreeMap::new();
        for (session, id, errno) in replaying.parked {
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
        if late.is_none()
            && let Phase::Recovering(recovery) = std::mem::replace(&mut self.phase, Phase::Serving)
        {
            self.released = recovery.held;
            self.believed = self.last;
            self.unfinished = None;
        }
        group.effects.push(Effect::Hurry);
    }
}

/// Whether a mutation takes a name away.
fn removes(request: &Request) -> bool {
    matches!(request, Request::Unlink { .. } | Request::Rmdir { .. } | Request::Rename { .. })
}

/// The inode whose own row a mutation changes, and is not done where others changed it before.
fn changed_alone(request: &Request) -> Option<Ino> {
    changed_ino(request).filter(|_| !matches!(request, Request::Link { .. }))
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
