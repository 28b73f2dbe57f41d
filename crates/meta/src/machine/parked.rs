//! Calls that a power cut took for good: they stand in their session's row until its client says that it knows.

use super::Machine;
use super::group::{Group, ReplayDone, Then};
use chronofs_core::ops::SystemRequest;
use chronofs_core::{Errno, SessionId};
use chronofs_engine::EngineError;
use std::collections::BTreeMap;

/// The most lost calls of a session that are kept until it knows of them: a client keeps fewer to replay.
const PARKED_KEPT_MAX: usize = 1 << 17;

impl Machine {
    /// Writes what is lost into the rows of its sessions: they are told until they say that they know, however many
    /// connections and starts that takes.
    pub(super) fn note_parked(
        &mut self,
        group: &mut Group,
        done: &mut ReplayDone,
    ) -> Result<(), EngineError> {
        let of =
            |id: SessionId| self.sessions.get(&id).map(|session| session.parked.clone()).unwrap_or_default();
        for &(id, call, errno) in &done.parked {
            let unheard = done.unheard.entry(id).or_insert_with(|| of(id));
            if unheard.len() < PARKED_KEPT_MAX {
                unheard.insert(call, errno);
            }
        }
        for &(id, call, ..) in &done.applied {
            // It was lost once, and is done after all.
            if self.sessions.get(&id).is_some_and(|session| session.parked.contains_key(&call)) {
                done.unheard.entry(id).or_insert_with(|| of(id)).remove(&call);
            }
        }
        for (&session, calls) in &done.unheard {
            self.write_parked(group, session, calls)?;
        }
        Ok(())
    }

    fn write_parked(
        &mut self,
        group: &mut Group,
        session: SessionId,
        calls: &BTreeMap<u64, Errno>,
    ) -> Result<(), EngineError> {
        let calls = calls.iter().map(|(&id, &errno)| (id, errno)).collect();
        // One that is over in the state is told nothing.
        drop(self.system(group, &SystemRequest::NoteParked { session, calls })?);
        Ok(())
    }

    /// A client knows that calls are lost.
    pub(super) fn parked_ack(
        &mut self,
        group: &mut Group,
        id: SessionId,
        calls: &[u64],
    ) -> Result<(), EngineError> {
        let Some(session) = self.sessions.get(&id) else { return Ok(()) };
        let mut left = session.parked.clone();
        for call in calls {
            left.remove(call);
        }
        // While replays are collected a commit would hide what others lost. Then, and on a full disk, it is told again.
        if self.is_recovering() || group.full || left.len() == session.parked.len() {
            return Ok(());
        }
        self.write_parked(group, id, &left)?;
        group.thens.push(Then::Heard(id, left));
        Ok(())
    }
}
