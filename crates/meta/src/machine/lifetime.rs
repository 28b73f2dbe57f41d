//! What time brings: silent sessions end, orphans go, leases are renewed, replies are written down.

use super::group::{Group, Then, Undo};
use super::session::Session;
use super::tag::KeptReplies;
use super::volumes::VolumeState;
use super::{Machine, Waits, calls};
use chronofs_core::ops::Reply;
use chronofs_core::ops::SystemRequest;
use chronofs_core::{Ino, SessionId, Version, VolumeIndex};
use chronofs_engine::{EngineError, Reads};
use chronofs_history::{Table, Txn};
use chronofs_namespace::SystemReply;
use chronofs_namespace::rows::{ORPHAN, STORE_WIDE};
use chronofs_wire::message::ToClient;

/// The replies of all sessions as of the last mark, one row in the store-wide tables. Key: none.
pub(super) const REPLIES: Table = Table { number: 0x40, key_len: 0, name: "replies" };

/// How many orphans are freed at a time.
const REAP_MAX: usize = 256;

/// How many commits at a time remove rows of inodes that are gone.
const PURGE_STEPS: usize = 4;

/// How many files whose last open ended are looked at at a time: most are no orphans, and a busy volume closes
/// thousands a second.
const REAP_LOOKS_MAX: usize = 8192;

/// A busy server writes replies down at the latest after this time.
const MARK_AFTER_NS: u64 = 30_000_000_000;

impl Machine {
    pub(super) fn tick(&mut self, group: &mut Group) -> Result<(), EngineError> {
        self.recovery_progress(group)?;
        if self.is_recovering() {
            return Ok(());
        }
        self.tell_durable(group);
        self.lapse_caches(group);
        self.cut_off_revoked(group);
        if group.full {
            return Ok(());
        }
        self.assign(group)?;
        self.expire_sessions(group)?;
        self.end_reclaim_window(group)?;
        self.admit_waiting(group)?;
        self.renew_leases(group)?;
        self.note_floors(group)?;
        self.reap(group)?;
        self.purge(group)?;
        self.advance_horizons(group)?;
        self.end_holds(group)?;
        self.watch_falls(group)?;
        self.forget(group)?;
        self.give_up(group)?;
        self.drop_rows(group)?;
        self.collect(group)?;
        self.pack(group)?;
        self.mark(group)
    }

    /// The store is durable up to `version`: who waited for that is answered.
    pub(super) fn became_durable(&mut self, group: &mut Group, version: Version) {
        if version >= self.believed && !self.is_recovering() {
            self.durable = self.durable.max(version);
        }
        self.keys_durable(group);
        let durable = self.durable;
        for deferred in std::mem::take(&mut self.deferred) {
            if deferred.version > durable {
                self.deferred.push_back(deferred);
                continue;
            }
            match deferred.what {
                Waits::Sync { id } => {
                    let result = Ok(Reply::Instant(deferred.version));
                    group.answer(deferred.conn, id, calls::SYNC, deferred.version, durable, result);
                }
                Waits::Welcome { session, replay } => self.welcome(group, deferred.conn, session, replay),
            }
        }
    }

    /// Clients drop what they kept for a replay once they know that it is durable.
    fn tell_durable(&mut self, group: &mut Group) {
        let durable = self.durable;
        for session in self.sessions.values_mut() {
            let Some(conn) = session.conn else { continue };
            if !session.replaying
                && session.told_durable < session.last_commit
                && session.told_durable < durable
            {
                group.undo.push(Undo::Told(session.id, session.told_durable));
                session.told_durable = durable;
                group.send(conn, ToClient::Durable { version: durable });
            }
        }
    }

    fn expire_sessions(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let life_ns = u64::from(self.config.life_ms) * 1_000_000;
        let now_ns = group.steady_ns;
        let over: Vec<SessionId> = self
            .sessions
            .values()
            .filter(|session| {
                let gone = self.volumes.get(&session.index).is_none_or(|volume| volume.row.deleted.is_some());
                // A connection that is silent for so long is cut off by its own timer. One that is there is never
                // judged by the clock: it may have been set forward, or this server have stood still.
                let silent = now_ns.saturating_sub(session.heard_ns) > life_ns;
                gone || (session.conn.is_none() && silent)
            })
            .map(|session| session.id)
            .collect();
        for session in over {
            self.end_session(group, session)?;
        }
        Ok(())
    }

    /// Ends a session through the log.
    pub(super) fn end_session(&mut self, group: &mut Group, session: SessionId) -> Result<(), EngineError> {
        if group.full {
            return Ok(());
        }
        if self.system(group, &SystemRequest::EndSession { session })?.is_ok() {
            group.thens.push(Then::SessionOver(session));
        }
        Ok(())
    }

    pub(super) fn session_over(&mut self, group: &mut Group, id: SessionId) {
        let opens: Vec<(Ino, u32)> = match self.sessions.get(&id) {
            Some(session) => session.opens.iter().map(|(&ino, &count)| (ino, count)).collect(),
            None => return,
        };
        for (ino, count) in opens {
            self.count_closed(id, ino, count);
        }
        let Some(session) = self.sessions.remove(&id) else { return };
        if session.at.is_some()
            && let Some(volume) = self.volumes.get_mut(&session.index)
        {
            // The commit that ended it is this one or an earlier one of the group.
            volume.forgetting.lease_ended(self.last);
        }
        if let Some(conn) = session.conn {
            self.conns.remove(&conn);
            self.deferred.retain(|deferred| deferred.conn != conn);
            group.effects.push(super::Effect::Close(conn));
        }
        self.settle_sharing(group, session.index);
    }

    /// Leases on instants are renewed in the log at every third of their life, while their mount is heard of.
    fn renew_leases(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let third_ns = u64::from(self.config.life_ms) * 1_000_000 / 3;
        let due: Vec<SessionId> = self
            .sessions
            .values()
            .filter(|session| {
                session.at.is_some() && group.steady_ns.saturating_sub(session.leased_ns) > third_ns
            })
            .map(|session| session.id)
            .collect();
        for session in due {
            if self.system(group, &SystemRequest::RenewSession { session })?.is_ok() {
                group.thens.push(Then::LeaseRenewed(session));
            }
        }
        Ok(())
    }

    pub(super) fn lease_renewed(&mut self, group: &Group, session: SessionId) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.leased_ns = group.steady_ns;
        }
    }

    /// A session says up to which of its objects it has published what it will. While it has something to replay that is not
    /// taken from it: what it replays may lie in them.
    pub(super) fn told_floor(&mut self, session: SessionId, floor: u64) {
        if let Some(session) = self.sessions.get_mut(&session)
            && !session.replaying
            && session.missed.is_none()
        {
            session.floor = session.floor.max(floor);
        }
    }

    /// What sessions said of their objects is written down at every third of their life, so that what they stored in vain is
    /// found, and what is hardly needed any more is repacked, while they run.
    fn note_floors(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let third_ns = u64::from(self.config.life_ms) * 1_000_000 / 3;
        let is_due = |session: &&Session| {
            session.floor > session.floor_noted
                && group.steady_ns.saturating_sub(session.floor_noted_ns) > third_ns
        };
        let due = self.sessions.values().filter(is_due).map(|session| (session.id, session.floor));
        for (session, floor) in due.collect::<Vec<_>>() {
            if self.system(group, &SystemRequest::NoteFloor { session, floor })?.is_ok() {
                group.thens.push(Then::FloorNoted(session, floor));
            }
        }
        Ok(())
    }

    pub(super) fn floor_noted(&mut self, group: &Group, session: SessionId, floor: u64) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.floor_noted = session.floor_noted.max(floor);
            session.floor_noted_ns = group.steady_ns;
        }
    }

    /// Every session has told what it has open, or is over, and what nobody has open and has no link goes. Who comes at
    /// the last moment may have told it in a frame that is not read yet; one that never does is not waited for any longer
    /// than another life of a session.
    fn end_reclaim_window(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let Some(until_ns) = self.reclaim_until_ns else { return Ok(()) };
        // A session that was opened since had nothing open when the server went down.
        let told = |session: &Session| session.reclaimed || session.called || !session.is_live();
        if !self.sessions.values().all(told) && group.steady_ns < until_ns {
            return Ok(());
        }
        self.reclaim_until_ns = None;
        let indexes: Vec<VolumeIndex> = self.volumes.keys().copied().collect();
        indexes.into_iter().try_for_each(|index| self.look_for_orphans(group, index))
    }

    /// Files of a volume without links that nobody has open are to go.
    pub(super) fn look_for_orphans(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
    ) -> Result<(), EngineError> {
        let orphans = match chronofs_namespace::list_orphans(&group.reads, index) {
            Ok(found) => found,
            Err(stop) => return self.stopped(group, stop, "listing files without links").map(drop),
        };
        if let Some(volume) = self.volumes.get_mut(&index) {
            let unopened = orphans.into_iter().map(|(ino, _)| ino);
            volume.to_reap.extend(unopened.filter(|ino| !volume.opens.contains_key(ino)));
        }
        Ok(())
    }

    /// Frees files whose last open ended and that have no link.
    fn reap(&mut self, group: &mut Group) -> Result<(), EngineError> {
        if self.reclaim_until_ns.is_some() {
            return Ok(());
        }
        // What a deleted volume holds is not freed file by file, and must not stand in the way of others.
        for volume in self.volumes.values_mut().filter(|volume| volume.row.deleted.is_some()) {
            volume.to_reap.clear();
        }
        let returned =
            |volume: &mut VolumeState| std::mem::take(&mut volume.leaving.returned).then_some(volume.index);
        let returned: Vec<VolumeIndex> = self.volumes.values_mut().filter_map(returned).collect();
        returned.into_iter().try_for_each(|index| self.look_for_orphans(group, index))?;
        let candidates: Vec<(VolumeIndex, Ino)> = self
            .volumes
            .values()
            .flat_map(|volume| volume.to_reap.iter().map(|&ino| (volume.index, ino)))
            .take(REAP_LOOKS_MAX)
            .collect();
        let mut freed = 0;
        for (index, ino) in candidates {
            let key = ORPHAN.live_key(index, &ino.0.to_be_bytes());
            let orphan = match group.reads.get(&key) {
                Ok(row) => row.is_some(),
                Err(stop) => {
                    self.stopped(group, stop, "looking for a file without links")?;
                    false
                }
            };
            let Some(volume) = self.volumes.get_mut(&index) else { continue };
            if !orphan || volume.opens.contains_key(&ino) {
                volume.to_reap.remove(&ino);
                continue;
            }
            if freed == REAP_MAX {
                continue;
            }
            freed += 1;
            let request = SystemRequest::Reap { volume: volume.id(), ino };
            match self.system(group, &request) {
                Ok(Ok(_)) => group.thens.push(Then::Reaped(index, ino)),
                Ok(Err(_)) => {}
                // It was warned of. A file that cannot be freed takes room; that is no reason to serve nobody.
                Err(EngineError::Damaged { .. }) => {
                    if let Some(volume) = self.volumes.get_mut(&index) {
                        volume.to_reap.remove(&ino);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes a few more rows of inodes that are gone and had too many for one commit.
    fn purge(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let live = self.volumes.values().filter(|volume| volume.row.is_live() && !volume.purge_damaged);
        let indexes: Vec<VolumeIndex> = live.map(|volume| volume.index).collect();
        let mut steps = PURGE_STEPS;
        for index in indexes {
            while steps > 0 {
                let found = match chronofs_namespace::first_purge(&group.reads, index) {
                    Ok(found) => found,
                    Err(stop) => {
                        self.stopped(group, stop, "looking for rows of files that are gone")?;
                        None
                    }
                };
                let Some(ino) = found else { break };
                let Some(volume) = self.volumes.get(&index) else { break };
                if volume.purge_damaged {
                    break;
                }
                steps -= 1;
                match self.system(group, &SystemRequest::Purge { volume: volume.id(), ino }) {
                    Ok(_) => {}
                    // It was warned of, and the rows take nothing but room.
                    Err(EngineError::Damaged { .. }) => {
                        if let Some(volume) = self.volumes.get_mut(&index) {
                            volume.purge_damaged = true;
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Has the horizons follow their windows, so that what is out of reach may be forgotten. In steps of a hundredth of
    /// the window, but at least a minute: each is a commit.
    fn advance_horizons(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let now = self.next_version(group);
        let step_ns_min = u64::from(self.config.horizon_step_ms) * 1_000_000;
        let due: Vec<(VolumeIndex, SystemRequest)> = self
            .volumes
            .values()
            .filter_map(|volume| {
                let to = volume.row.spec.retention.window_start(now);
                let step_ns = (now.0.saturating_sub(to.0) / 100).max(step_ns_min);
                let far = to.0.saturating_sub(volume.row.horizon.0) >= step_ns;
                let request = SystemRequest::AdvanceHorizon { volume: volume.id(), to };
                (far && volume.row.deleted.is_none()).then_some((volume.index, request))
            })
            .collect();
        for (index, request) in due {
            if let Ok(SystemReply::Horizon(horizon)) = self.system(group, &request)? {
                group.thens.push(Then::HorizonMoved(index, horizon));
            }
        }
        Ok(())
    }

    /// Writes the replies of all sessions into the state, so that the tags before are not needed any more.
    fn mark(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let due = self.commits_since_mark >= self.config.mark_after_commits
            || (self.commits_since_mark > 1
                && group.steady_ns.saturating_sub(self.marked_ns) > MARK_AFTER_NS);
        if due { self.write_mark(group) } else { Ok(()) }
    }

    pub(super) fn write_mark(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let sessions = self.sessions.values().map(|session| (session.id, session.replies.briefs().collect()));
        let version = self.next_version(group);
        let replies = sessions.filter(|(_, replies): &(_, Vec<_>)| !replies.is_empty()).collect();
        let kept = KeptReplies { flags: 0, marked: version, replies };
        let row = kept.encode()?;
        let mut txn = Txn::new(&group.reads, STORE_WIDE, version, false);
        txn.put_plain(REPLIES, &[], &row);
        let batch = txn.into_batch();
        self.commit_system(group, version, batch);
        group.thens.push(Then::Marked(version));
        Ok(())
    }

    /// Events of a clean stop: replies are written down, so that the next start has nothing to recover.
    pub fn stop(&mut self, group: &mut Group) -> Result<(), EngineError> {
        if self.is_recovering() || group.full { Ok(()) } else { self.write_mark(group) }
    }

    /// Bytes and inodes in use on a volume.
    pub fn volume_figures(&self, group: &mut Group, index: VolumeIndex) -> Result<(u64, u64), EngineError> {
        match chronofs_namespace::usage(&group.reads, index) {
            Ok(usage) => Ok(usage.map_or((0, 0), |figures| (figures.used_bytes, figures.used_inodes))),
            Err(stop) => self.stopped(group, stop, "reading the figures of a volume").map(|_| (0, 0)),
        }
    }
}
