//! Figures for people and metrics.

use super::Machine;
use super::recovery::Phase;
use chronofs_core::VolumeIndex;

/// Figures for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Figures {
    /// Sessions.
    pub sessions: usize,
    /// Of them with a connection.
    pub connected: usize,
    /// Open files.
    pub opens: usize,
    /// Clients that wait for a volume to become shared.
    pub waiting: usize,
    /// Replayed calls that could not be applied, since the start.
    pub parked: u64,
    /// Lost mutations are being collected.
    pub recovering: bool,
    /// The revision of the assignment in force.
    pub revision: u64,
    /// Rows of the past that were forgotten, since the start.
    pub forgotten: u64,
}

impl Machine {
    /// How many sessions each volume has.
    pub fn sessions_of(&self, index: VolumeIndex) -> u32 {
        self.sessions.values().filter(|session| session.index == index).count() as u32
    }

    /// Figures.
    pub fn figures(&self) -> Figures {
        Figures {
            sessions: self.sessions.len(),
            connected: self.sessions.values().filter(|session| session.conn.is_some()).count(),
            opens: self.volumes.values().map(|volume| volume.opens.len()).sum(),
            waiting: self.waiting.len(),
            parked: self.parked,
            recovering: matches!(self.phase, Phase::Recovering(_)),
            revision: self.assignment.as_ref().map_or(0, |assignment| assignment.revision),
            forgotten: self.volumes.values().map(|volume| volume.forgetting.rows).sum(),
        }
    }
}
