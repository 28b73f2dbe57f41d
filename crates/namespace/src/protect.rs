//! What may not be forgotten: the instants of a volume that somebody can still ask for.

use crate::rows::{Session, Volume};
use chronofs_core::{SessionId, Version, VolumeIndex};
use chronofs_history::Protected;

/// The protected instants of a volume: all from its horizon on, and each instant that a session leases. A session
/// counts until it is ended, not until its time runs out.
pub fn protected_instants(
    index: VolumeIndex,
    volume: &Volume,
    sessions: &[(SessionId, Session)],
) -> Protected {
    let leases = sessions.iter().filter(|(_, session)| session.volume == index);
    let leases = leases.filter_map(|(_, session)| session.at).map(|at| (at, at));
    leases.chain([(volume.horizon, Version::MAX)]).collect()
}
