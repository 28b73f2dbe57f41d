//! What metadata servers and mounts ask of the admin server, as JSON over HTTPS.
//!
//! The admin server's own API for people and tools (create, list, update, delete) is defined beside its handlers;
//! only what other servers and clients depend on stands here.

use crate::log::LogEpoch;
use crate::tlog::LogServerAccess;
use chronofs_core::store::Credentials;
pub use chronofs_core::store::StoreKind;
use chronofs_core::volume::VolumeSpec;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// `POST /v1/meta/register` with the metadata store's token: this server serves the store from now on. The same to
/// `/v1/tlog/register` with a log server's token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Register {
    /// Where clients reach it: `host:port`.
    pub address: String,
    /// SHA-256 of its certificate (DER), lower-case hex.
    pub certificate_sha256: String,
    /// Drawn at every start of the server, so that a registration that is sent again is known as the same.
    pub boot: u64,
    /// The highest epoch under which a server of this folder has owned the store, 0 before the first: an admin
    /// server that was restored from an old copy goes on above it.
    #[serde(default)]
    pub epoch: u64,
}

/// The answer to [`Register`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Registered {
    /// Id of the metadata store, or of the log server.
    pub store: Uuid,
    /// Its name.
    pub name: String,
    /// The epoch under which this server owns the store: higher than any before, the same for the same boot.
    pub epoch: u64,
    /// The cluster that it belongs to, `description:id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

/// The answer to `GET /v1/cluster`, with any token: which cluster this is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Cluster {
    /// Its name, for people.
    pub description: String,
    /// What tells it from another of that name.
    pub id: String,
    /// Where its coordinator (the admin server) is.
    pub coordinators: Vec<String>,
    /// The line of its cluster file.
    pub line: String,
}

/// `GET /v1/meta/assignment?boot=BOOT&after=REVISION` with the metadata store's token: waits up to 20 s for a revision above
/// `after`, then answers with the newest. The server keeps the last one, for when the admin server is down.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Assignment {
    /// Rises with every change.
    pub revision: u64,
    /// The volumes of the store.
    pub volumes: Vec<AssignedVolume>,
    /// The tokens that open them.
    pub tokens: Vec<AssignedToken>,
    /// Folders to look at; what was found goes into the next [`Report`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<Probe>,
    /// The copies of its log.
    #[serde(default)]
    pub log: LogEpoch,
    /// The log servers that these are on. Not kept: a start with copies asks before it opens its log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_servers: Vec<LogServerAccess>,
    /// The disk snapshot that the cluster was restored from, once somebody has accepted that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_restore: Option<String>,
    /// What the restored volumes need of objects that the source stored is to be copied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy_restored: bool,
    /// Block stores in which this clone may be registered as a reader, and of which no volume is here any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reader_stores: Vec<AssignedStore>,
}

/// A folder that a block store is to move to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Probe {
    /// Stands in the answer.
    pub id: u64,
    /// The block store.
    pub store: Uuid,
    /// The folder.
    pub path: String,
}

/// The answer to a [`Probe`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Probed {
    /// That of the probe.
    pub id: u64,
    /// Why the store cannot move there, if it cannot.
    pub problem: Option<String>,
}

/// A volume in an [`Assignment`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AssignedVolume {
    /// The definition.
    pub spec: VolumeSpec,
    /// It is deleted: nobody reaches it, and it keeps all that it holds.
    pub deleted: bool,
    /// And its time is over: what it holds is to go, once it is known here to be deleted for so many seconds. Said by an
    /// admin server that is an old copy, it may mean a deletion that was taken back since; then there is time to see that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub give_up_after_s: Option<u64>,
    /// Where its objects go.
    pub store: AssignedStore,
}

/// A block store in an [`Assignment`]: its id, and what it takes to reach it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AssignedStore {
    /// Id of the block store.
    pub id: Uuid,
    /// Where it is.
    pub kind: StoreKind,
    /// What opens it.
    #[serde(default, skip_serializing_if = "Credentials::is_ambient")]
    pub credentials: Credentials,
    /// It was seen to refuse a create-only put of a name that is taken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create_only: bool,
}

/// A volume token in an [`Assignment`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AssignedToken {
    /// Its id.
    pub id: Uuid,
    /// SHA-256 of its secret, lower-case hex.
    pub secret_sha256: String,
    /// The volume it opens.
    pub volume: Uuid,
    /// The directory it is confined to (absolute within the volume), if any.
    pub path: Option<String>,
    /// It cannot write.
    pub read_only: bool,
    /// It may see the past.
    pub past: bool,
    /// When it ends, nanoseconds since the epoch, if ever.
    pub ends_ns: Option<u64>,
}

/// `POST /v1/meta/report` with the metadata store's token: what became of the assignment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Report {
    /// The revision that is in force.
    pub revision: u64,
    /// State of each volume.
    pub volumes: Vec<VolumeReport>,
    /// Answers to the probes of the assignment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probed: Vec<Probed>,
}

/// A volume in a [`Report`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VolumeReport {
    /// The volume.
    pub id: Uuid,
    /// When it was created in the metadata store.
    pub born_ns: u64,
    /// The earliest instant that can be mounted.
    pub earliest_ns: u64,
    /// Allocated bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub used_inodes: u64,
    /// Sessions now.
    pub sessions: u32,
    /// Why the volume cannot be served, if it cannot.
    pub problem: Option<String>,
    /// It was deleted for good: it cannot be taken back any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given_up: bool,
    /// And nothing of it is left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// `POST /v1/mount/resolve` with a volume token: where is the volume served?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Resolve {
    /// Name or id of the volume.
    pub volume: String,
}

/// The answer to [`Resolve`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Resolved {
    /// The volume.
    pub volume: Uuid,
    /// Its name.
    pub name: String,
    /// `host:port` of the metadata server.
    pub address: String,
    /// SHA-256 of the metadata server's certificate, lower-case hex.
    pub certificate_sha256: String,
    /// Epoch of its ownership.
    pub epoch: u64,
}

/// The answer to [`Resolve`] at `POST /v1/mount/store`: where the volume's objects are, for a mount that has credentials of
/// its own. None are in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StorePlace {
    /// Id of the block store, as its marker has it.
    pub id: Uuid,
    /// Where it is.
    pub kind: StoreKind,
    /// It was seen to refuse a create-only put of a name that is taken.
    pub create_only: bool,
}

/// The body of every answer that is not 2xx.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Problem {
    /// A word for programs: `not_found`, `in_use`, `exists`, `changed`, `invalid`, `unauthorized`, `unavailable`, `internal`.
    pub code: String,
    /// What was refused, why, and what to do next; for people.
    pub message: String,
}
