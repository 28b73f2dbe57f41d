//! Holds, and rows of the audit log.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A row of the audit log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Audited {
    /// Its number: they rise.
    pub n: u64,
    /// When, RFC 3339.
    pub at: String,
    /// Who: `account NAME`, or what else the token was of, `token ID` of an unknown one, or `nobody`.
    pub who: String,
    /// The address that it came from.
    pub address: String,
    /// Method and route.
    pub action: String,
    /// What it was done with.
    pub object: String,
    /// `done`, or why not.
    pub outcome: String,
    /// How often, of refused attempts that were alike.
    pub times: u64,
}

/// Instants of a volume that are kept beyond its window.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Hold {
    /// Its id.
    pub id: String,
    /// The volume.
    pub volume: String,
    /// The first instant, RFC 3339.
    pub from: String,
    /// The last one; the same if it is just one.
    pub to: String,
    /// Who made it: an account, `brake`, or `registered copy`.
    pub owner: String,
    /// What for.
    pub reason: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// When it ends by itself, RFC 3339.
    pub ends: Option<String>,
    /// `held`, `ending`, or `lost`: its server says that it does not have it.
    pub state: String,
    /// What is to be known about the state.
    pub detail: Option<String>,
}

/// Holds, the newest first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Holds {
    /// What is known of.
    pub holds: Vec<Hold>,
    /// Metadata stores whose servers have not said what they hold, each with the reason: of those only the holds are listed that were
    /// made here. None: the list is whole.
    pub silent: Vec<String>,
}

/// Body of `POST /v1/holds`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewHold {
    /// Name or id of the volume.
    pub volume: String,
    /// The first instant, nanoseconds since the epoch.
    pub from_ns: u64,
    /// The last one; the first unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_ns: Option<u64>,
    /// What for.
    pub reason: String,
    /// When it ends by itself, nanoseconds since the epoch; never unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ns: Option<u64>,
}
