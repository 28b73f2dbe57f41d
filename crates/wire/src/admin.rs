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
use std::collections::BTreeMap;
use uuid::Uuid;

/// `POST /v1/meta/register` with the metadata store's token: this server serves the store from now on. The same to
/// `/v1/tlog/register` with a log server's token.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
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
    /// The restore in place that its folder goes on from, if any. A folder of before the newest one is refused ([`FENCED`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreEpoch>,
    /// Its log is written anew from copies that have all of it, so it goes on from the newest restore whatever its folder says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovers: bool,
    /// The last commit that its store was opened with. A folder whose server has told of a later one ([`Report::durable_ns`]) is an
    /// older copy. None: the store is not open yet, has no commit, or had no server before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_commit_ns: Option<u64>,
}

/// The code of the refusal of a folder that was followed by a restore in place.
pub const FENCED: &str = "fenced";

/// A restore of a metadata server in place: what it knew since the cut is lost, and who goes on from what was before the
/// restore is refused.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RestoreEpoch {
    /// Counts the restores of the store; 0: the admin server has not said yet.
    pub epoch: u64,
    /// Drawn when the folder was prepared.
    pub id: String,
    /// The disk snapshot or backup.
    pub uid: String,
    /// The last instant that it holds, nanoseconds since the epoch.
    pub cut_ns: u64,
    /// The instant with which the store went on; what lies between is lost. None before its first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_ns: Option<u64>,
    /// When its folder was prepared: one that was so before a later restore began is of before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared_ns: Option<u64>,
}

/// `POST /v1/meta/known` with the metadata store's token: what the admin server said last, before it was restored. It compares
/// that with what it has now.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Known {
    /// Ids of the volume tokens that were good.
    pub tokens: Vec<Uuid>,
    /// Volumes that were there, with their names.
    pub volumes: BTreeMap<Uuid, String>,
    /// Those that were deleted.
    pub deleted: BTreeMap<Uuid, String>,
    /// [`Assignment::admin_epoch`] of what was said: what this restored admin server said itself is no answer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub admin_epoch: u64,
}

impl Known {
    /// What an assignment says.
    #[must_use]
    pub fn of(assignment: &Assignment) -> Known {
        let (deleted, volumes): (Vec<_>, Vec<_>) =
            assignment.volumes.iter().partition(|volume| volume.deleted);
        let named = |of: Vec<&AssignedVolume>| {
            of.into_iter().map(|volume| (volume.spec.id, volume.spec.name.clone())).collect()
        };
        Known {
            tokens: assignment.tokens.iter().map(|token| token.id).collect(),
            volumes: named(volumes),
            deleted: named(deleted),
            admin_epoch: assignment.admin_epoch,
        }
    }
}

/// The answer to [`Register`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
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
    /// The newest restore of the store in place, which this start goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreEpoch>,
    /// The admin server was restored and wants to hear what it said before ([`Known`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub review: bool,
    /// Rises with each restore of the admin server in place, mostly to the instant of that, nanoseconds since the epoch; 0: there
    /// was none. One of before that, which comes back, is not followed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub admin_epoch: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
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
    /// The disk snapshot that the cluster was restored from, or the id of the restore of this store in place, once somebody has
    /// accepted that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_restore: Option<String>,
    /// What the restored volumes need of objects that the source stored is to be copied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy_restored: bool,
    /// Block stores in which this clone may be registered as a reader, and of which no volume is here any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reader_stores: Vec<AssignedStore>,
    /// [`Registered::admin_epoch`] of the admin server that says this.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub admin_epoch: u64,
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
    /// Its metadata server has reported it: whoever has nothing of it has another folder than that one, or lost it.
    /// Since when, nanoseconds since the epoch; 0: it has not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub born_ns: u64,
    /// And its time is over: what it holds is to go, once it is known here to be deleted for so many seconds. Said by an
    /// admin server that is an old copy, it may mean a deletion that was taken back since; then there is time to see that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub give_up_after_s: Option<u64>,
    /// Where its objects go.
    pub store: AssignedStore,
    /// Its sealed keys, if it is encrypted: they are kept with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeptKeys>,
}

/// The sealed keys of a volume as servers keep them: they open nothing to them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KeptKeys {
    /// Rises with every change.
    pub revision: u64,
    /// JSON, as `SealedKeys` of the crate `keys` writes it.
    pub sealed: String,
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
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Report {
    /// The revision that is in force.
    pub revision: u64,
    /// State of each volume.
    pub volumes: Vec<VolumeReport>,
    /// Answers to the probes of the assignment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probed: Vec<Probed>,
    /// The epoch that the server's folder holds: an older copy of it holds a lower one. 0: it could not be written.
    #[serde(default)]
    pub kept_epoch: u64,
    /// The start that says this, as in [`Register::boot`].
    #[serde(default)]
    pub boot: u64,
    /// The last commit that is durable, in the log and in the copies of it that count: a copy of the folder from before it does not have
    /// it. 0: there is none.
    #[serde(default)]
    pub durable_ns: u64,
}

/// A volume in a [`Report`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
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
    /// It was served before, and the server has nothing of it; its figures say nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
    /// It was deleted for good: it cannot be taken back any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given_up: bool,
    /// And nothing of it is left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// Sealed keys that are newer than those of the assignment: the admin server was restored from an old copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeptKeys>,
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
    /// The sealed keys of the volume, if it is encrypted: JSON, as `SealedKeys` of the crate `keys` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
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

/// `POST /v1/mount/parked` with a volume token that may write: a mount held written bytes of files that a restore of the metadata
/// server has lost, and has put them into others. It goes into the audit log: once for each mount and restore.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ParkedBytes {
    /// What the mount calls itself.
    pub mount: String,
    /// Where the first of them are now, below the directory that the mount shows.
    pub path: String,
    /// How many files are lost that it had bytes of.
    pub files: u64,
    /// How many bytes.
    pub bytes: u64,
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
