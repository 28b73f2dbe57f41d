//! What metadata servers ask about the copies of their logs.

use serde::{Deserialize, Serialize};

/// Copies of a log, and how many of them may lack what is durable.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogCopies {
    /// Each is the absolute path of a folder on the machine of the metadata server, or `tlog:` and the name of a log server.
    pub copies: Vec<String>,
    /// A commit is durable when all but so many have it.
    #[serde(default)]
    pub anti_quorum: u32,
}

/// `POST /v1/meta/log` with the metadata store's token: the start with this `boot`, which owns the store, opens another epoch of
/// its log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct OpenLog {
    /// Drawn at the start that asks.
    pub boot: u64,
    /// The highest epoch that is known there to have been: an admin server that was restored goes on above it.
    #[serde(default)]
    pub above: u64,
    /// Which copies are to count in place of those of that epoch. Without it they stay the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<LogChange>,
}

/// See [`OpenLog`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogChange {
    /// The epoch that ends.
    pub after: u64,
    /// What counts from then on.
    pub members: LogCopies,
}

/// The answer to [`OpenLog`], and how a log stands in an assignment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogEpoch {
    /// The epoch; 0 before the first.
    pub epoch: u64,
    /// The copies that count in it.
    pub members: LogCopies,
    /// What operators want.
    pub wanted: LogCopies,
    /// The start of a metadata server that opened it.
    #[serde(default)]
    pub boot: u64,
}
