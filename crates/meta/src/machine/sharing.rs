//! Who may cache: a lease per volume. A session alone on its volume may let its kernel cache; before a second one
//! is admitted, the first says that it let go, or is silent for so long that its caches have lapsed.

use super::Machine;
use super::group::{Effect, Group, Undo};
use super::session::Sharing;
use chronofs_core::{SessionId, VolumeIndex};
use chronofs_engine::EngineError;
use chronofs_wire::message::ToClient;

impl Machine {
    /// Tells the sessions of a volume what they may do now, given who is there and who waits.
    pub(super) fn settle_sharing(&mut self, group: &mut Group, index: VolumeIndex) {
        let live =
            self.sessions.values().filter(|session| session.index == index && session.is_live()).count();
        let waiting = self.waiting.iter().any(|waiting| waiting.volume == index);
        let shared = live > 1 || waiting;
        let now_ns = group.steady_ns;
        for session in self.sessions.values_mut() {
            if session.index != index || !session.is_live() {
                continue;
            }
            // One that is not connected is told when it comes back, or lapses.
            let Some(conn) = session.conn else { continue };
            // A question that goes with a group the disk had no room for is asked again.
            group.undo.push(Undo::Shared(session.id, session.sharing, session.acks_due));
            match (shared, session.sharing) {
                (true, Sharing::Exclusive) => {
                    session.sharing = Sharing::Asked(now_ns);
                    session.acks_due += 1;
                    group.effects.push(Effect::Send(conn, ToClient::Shared { shared: true }));
                }
                (false, Sharing::Asked(_) | Sharing::Shared) => {
                    session.sharing = Sharing::Exclusive;
                    group.effects.push(Effect::Send(conn, ToClient::Shared { shared: false }));
                }
                _ => {}
            }
        }
    }

    /// A session let go of its caches. Only the answer to the last question counts: it may have been alone again
    /// in between.
    pub(super) fn shared_ack(&mut self, group: &mut Group, id: SessionId) -> Result<(), EngineError> {
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        // An acknowledgement counts once, also when its group is decided again.
        group.undo.push(Undo::Shared(id, session.sharing, session.acks_due));
        session.acks_due = session.acks_due.saturating_sub(1);
        if session.acks_due == 0 && matches!(session.sharing, Sharing::Asked(_)) {
            session.sharing = Sharing::Shared;
        }
        self.admit_waiting(group)
    }

    /// What silent sessions cached is over: they need not be asked any more.
    pub(super) fn lapse_caches(&mut self, group: &mut Group) {
        let now_ns = group.steady_ns;
        let ttl_ns = u64::from(self.config.ttl_ms) * 1_000_000;
        let waiting: Vec<VolumeIndex> = self.waiting.iter().map(|waiting| waiting.volume).collect();
        for session in self.sessions.values_mut().filter(|session| waiting.contains(&session.index)) {
            let silent = now_ns.saturating_sub(session.heard_ns) > ttl_ns;
            match session.sharing {
                Sharing::Exclusive | Sharing::Asked(_) if silent => session.sharing = Sharing::Shared,
                // It is alive and does not answer: caches in kernels are over by now, and it holds up others.
                Sharing::Asked(since_ns) if now_ns.saturating_sub(since_ns) > 2 * ttl_ns => {
                    session.sharing = Sharing::Shared;
                    group.effects.push(Effect::Warn(format!(
                        "session {} of {} did not say that it let go of its caches; going on without it",
                        session.id.0, session.client_name
                    )));
                }
                _ => {}
            }
        }
    }

    /// Whether nobody on a volume caches past a request.
    pub(super) fn caches_are_gone(&self, index: VolumeIndex) -> bool {
        let mut live = self.sessions.values().filter(|session| session.index == index && session.is_live());
        live.all(|session| session.sharing == Sharing::Shared)
    }
}
