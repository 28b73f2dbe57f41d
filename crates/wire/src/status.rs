//! How a cluster is: what the admin server says of itself, of every metadata server, and of what ails them.

use crate::admin::{Cluster, RestoreEpoch};
use crate::tlog::LogServerSaid;
use rustix::fs::StatVfs;
use rustix::system::uname;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;
use uuid::Uuid;

/// A process and what it lives on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ProcessStatus {
    /// Its number.
    pub pid: u32,
    /// The version of the program.
    pub version: String,
    /// Tells machines apart: the kernel's boot id.
    pub machine: String,
    /// The machine's name.
    pub host: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Memory it has.
    pub memory_bytes: u64,
    /// Memory that is left on its machine.
    pub memory_free_bytes: u64,
    /// Room on the disk of its folder.
    pub disk_free_bytes: u64,
    /// Size of that disk.
    pub disk_bytes: u64,
    /// Where it stands, as it was started with: machine, zone and so on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub locality: BTreeMap<String, String>,
}

impl ProcessStatus {
    /// This process, which began at `started` and keeps its data in `folder`. What the system does not tell is 0.
    pub fn look(started: Instant, folder: &Path, locality: BTreeMap<String, String>) -> Self {
        let disk = rustix::fs::statvfs(folder).ok();
        let bytes =
            |of: fn(&StatVfs) -> u64| disk.as_ref().map_or(0, |disk| disk.f_frsize.saturating_mul(of(disk)));
        ProcessStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            host: uname().nodename().to_string_lossy().into_owned(),
            uptime_s: started.elapsed().as_secs(),
            memory_bytes: kib("/proc/self/status", "VmRSS:") << 10,
            memory_free_bytes: memory_free_bytes(),
            disk_free_bytes: bytes(|disk| disk.f_bavail),
            disk_bytes: bytes(|disk| disk.f_blocks),
            locality,
        }
    }
}

/// What the machine could give to who asks for memory, without swapping; 0 if it does not say.
pub fn memory_free_bytes() -> u64 {
    kib("/proc/meminfo", "MemAvailable:") << 10
}

/// The number of KiB in the line of a file of /proc that begins with `name`.
fn kib(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let number =
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// How often something happens, a second, over the last seconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Rates {
    /// Requests that read.
    pub reads: f64,
    /// Requests that change something.
    pub writes: f64,
    /// Commits.
    pub commits: f64,
}

/// Writes are refused, because the disk is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FullDisk {
    /// For so many seconds.
    pub seconds: u64,
    /// The last one was refused so many seconds ago.
    pub last_seconds: u64,
}

/// What the page `/status` of a metadata server says, as far as it matters here.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct MetaSaid {
    /// The process.
    pub process: ProcessStatus,
    /// It has a list of volumes.
    pub assigned: bool,
    /// Figures.
    pub figures: FiguresSaid,
    /// Writes are refused.
    pub full: Option<FullDisk>,
    /// Seconds for which the disk has been making the log durable, if it is at it.
    pub syncing_s: f64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Bytes of the store.
    pub store_bytes: u64,
    /// Log and store lie on different disks.
    pub apart: bool,
    /// How often something happens.
    pub rates: Rates,
    /// Pairs of the operators' key space.
    pub keys: KeysSaid,
    /// Volumes.
    pub volumes: Vec<VolumeSaid>,
    /// Block stores.
    pub stores: Vec<StoreSaid>,
    /// Copies of the log.
    pub log: LogSaid,
    /// It was restored from a disk snapshot.
    pub restored: Option<RestoredSaid>,
}

/// What it means that log and store of a metadata server lie on different disks, and what to do.
pub const APART: &str = "log and store lie on different disks: an image of running disks by other tools is whole only if both are \
                         taken at one instant; use chronofs snapshot create or backup create";

/// The copies of a log, and the epoch under which they count.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LogSaid {
    /// The epoch; 0 if there never was a copy.
    pub epoch: u64,
    /// So many copies may lack what is durable.
    pub anti_quorum: u32,
    /// Each copy.
    pub copies: Vec<LogCopySaid>,
    /// Why another epoch, which is needed, cannot be had.
    pub problem: Option<String>,
}

/// See [`LogSaid`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LogCopySaid {
    /// Where it is.
    pub name: String,
    /// What is durable waits for it.
    pub counts: bool,
    /// Bytes that it lacks.
    pub behind_bytes: u64,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<String>,
}

/// What a metadata server says of the disk snapshot that it was restored from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoredSaid {
    /// The snapshot.
    pub uid: String,
    /// The cluster that it was taken of.
    pub source: String,
    /// As of when the store was restored.
    pub cut: Option<String>,
    /// Somebody has said that the restore is as it should be.
    pub accepted: bool,
    /// Volumes that the restored admin server knew and the store did not: they were made empty.
    pub only_admin: Vec<String>,
    /// Volumes that only the store knew: nobody reaches them.
    pub only_here: Vec<String>,
    /// In how many block stores it is registered as a reader of the snapshot.
    pub readers: u64,
    /// Whether the source kept the snapshot when that was last looked at.
    pub kept: Option<bool>,
    /// It is registered no longer, because somebody said so.
    pub detached: bool,
    /// What it needs of objects that the source stored.
    pub foreign: Option<ForeignSaid>,
    /// It goes on in the place of its source.
    pub in_place: bool,
    /// The instant with which it went on: those between the cut and it are refused.
    pub began: Option<String>,
}

/// What a clone needs of objects that its source stored, and how the copying of them goes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ForeignSaid {
    /// They are to be copied.
    pub copying: bool,
    /// So many objects are named,
    pub objects: u64,
    /// and so many of their bytes.
    pub bytes: u64,
    /// So many are named no longer, and readers may still know of them for some minutes.
    pub unnamed: u64,
    /// Objects of which all that was needed was copied, since the server started.
    pub copied_objects: u64,
    /// Bytes that were copied since then.
    pub copied_bytes: u64,
    /// Bytes copied in a second, lately.
    pub bytes_per_second: u64,
    /// Some that could not be copied when they were last looked at, with the reason.
    pub left: Vec<String>,
    /// Why volumes wait.
    pub waits: Vec<String>,
}

/// See [`MetaSaid`].
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct FiguresSaid {
    /// Sessions.
    pub sessions: u64,
    /// What a power cut took is being collected.
    pub recovering: bool,
    /// The revision of the list of volumes that is in force.
    pub revision: u64,
}

/// See [`MetaSaid`].
#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct KeysSaid {
    /// Pairs.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// See [`MetaSaid`].
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct VolumeSaid {
    /// Its name.
    pub name: String,
    /// Why it cannot be served, if it cannot.
    pub problem: Option<String>,
    /// How it is collected.
    pub collection: CollectionSaid,
}

/// See [`MetaSaid`].
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CollectionSaid {
    /// The instant that is held because more than half of the files were removed within an hour after it.
    pub held_at: Option<String>,
}

/// See [`MetaSaid`].
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StoreSaid {
    /// Where it is.
    pub place: String,
    /// It cannot be used.
    pub outage: Option<OutageSaid>,
}

/// See [`MetaSaid`].
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct OutageSaid {
    /// For so long.
    pub seconds: u64,
    /// Why.
    pub reason: String,
}

/// The state of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Nothing ails it.
    Healthy,
    /// It serves, but not all.
    Degraded,
    /// It does not have what the admin server knows, or its disk does not follow.
    Behind,
    /// Its disk is full: it reads, and refuses what writes.
    Full,
    /// It collects what a power cut took; calls wait.
    Replaying,
    /// It opens its store.
    Starting,
    /// It does not answer.
    Unreachable,
    /// It has never been there.
    NeverSeen,
}

/// A metadata server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Member {
    /// Id of its metadata store.
    pub id: Uuid,
    /// Name of its metadata store.
    pub name: String,
    /// What it keeps: `storage`, `tlog`.
    pub roles: Vec<String>,
    /// Where clients reach it.
    pub address: Option<String>,
    /// Under which epoch it owns its store.
    pub epoch: u64,
    /// How it is.
    pub state: MemberState,
    /// What ails it, if anything.
    pub fault: Option<String>,
    /// Seconds since it was last heard of, if it was since the admin server started.
    pub heard_s: Option<u64>,
    /// Its volumes.
    pub volumes: Vec<String>,
    /// It holds the operators' key space.
    pub key_space: bool,
    /// What it says of itself, if it says anything now.
    #[cfg_attr(feature = "schema", schema(value_type = Option<Object>))]
    pub said: Option<serde_json::Value>,
}

impl Member {
    /// What it says of itself, as far as it is understood.
    pub fn understood(&self) -> Option<MetaSaid> {
        self.said.as_ref().and_then(|said| serde_json::from_value(said.clone()).ok())
    }
}

/// `GET /v1/status` with the token of an account.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ClusterStatus {
    /// Which cluster.
    pub cluster: Cluster,
    /// Nothing ails any member.
    pub healthy: bool,
    /// What does, each with the name of the member.
    pub faults: Vec<String>,
    /// The admin server's clock, nanoseconds since the epoch.
    pub now_ns: u64,
    /// The admin server.
    pub coordinator: ProcessStatus,
    /// Bytes of its database.
    pub database_bytes: u64,
    /// The metadata servers.
    pub members: Vec<Member>,
    /// The log servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_servers: Vec<LogServerStatus>,
    /// Volumes that are not deleted.
    pub volumes: u64,
    /// Bytes of files in them, as last reported.
    pub used_bytes: u64,
    /// Block stores.
    pub block_stores: u64,
    /// Disk snapshots that are being taken.
    pub running_snapshots: u64,
    /// Backups that are being made.
    pub running_backups: u64,
    /// The cluster was restored from a disk snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<RestoredCluster>,
    /// Metadata servers that were restored in place, each by its newest restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restored_servers: Vec<RestoredServer>,
    /// The admin server was restored in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_admin: Option<RestoredAdmin>,
    /// What ails nobody yet, and should be known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Clones that read what this cluster keeps for its disk snapshots, each with the snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshot_readers: Vec<String>,
}

/// A log server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogServerStatus {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where metadata servers reach it.
    pub address: Option<String>,
    /// The epoch of its last registration.
    pub epoch: u64,
    /// How it is.
    pub state: MemberState,
    /// What ails it, if anything.
    pub fault: Option<String>,
    /// Seconds since it was last heard of, if it was since the admin server started.
    pub heard_s: Option<u64>,
    /// The metadata stores that keep copies of their logs on it.
    pub stores: Vec<String>,
    /// What it said of itself when it was last heard of.
    pub said: Option<LogServerSaid>,
}

/// The answer to `POST /v1/restore/accept`: what is accepted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct AcceptedRestores {
    /// The cluster is a clone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<RestoredCluster>,
    /// Metadata servers in place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<RestoredServer>,
    /// The admin server in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<RestoredAdmin>,
}

/// A metadata server that was restored in place: the newest time that this was done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RestoredServer {
    /// Name of its metadata store.
    pub store: String,
    /// Which restore that is, of what and as of when.
    pub restore: RestoreEpoch,
    /// When the admin server heard of it, nanoseconds since the epoch.
    pub learned_ns: u64,
    /// When somebody said that the restore is as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_ns: Option<u64>,
}

/// An admin server that was restored in place, and what is to be looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RestoredAdmin {
    /// The disk snapshot or backup.
    pub uid: String,
    /// As of when its database is, nanoseconds since the epoch.
    pub cut_ns: u64,
    /// When its folder was prepared.
    pub prepared_ns: u64,
    /// Above that of every restore of it that was known then. Metadata servers follow none with a lower one.
    pub epoch: u64,
    /// When somebody said that the restore is as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_ns: Option<u64>,
    /// What metadata servers said that they had been told since, by the name of their store; one that is missing has said
    /// nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reviews: BTreeMap<String, Review>,
}

/// What a metadata server was told after the copy of the admin server's database was made, as far as that differs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Review {
    /// Volume tokens that were revoked, or have ended: the database has them. They open nothing until the restore is accepted.
    pub revoked: Vec<String>,
    /// Volume tokens that were made: the database does not have them, and they open nothing.
    pub made: Vec<String>,
    /// Volumes that were made: nobody reaches them.
    pub volumes_made: Vec<String>,
    /// Volumes that were deleted: they are back.
    pub volumes_deleted: Vec<String>,
}

impl Review {
    /// Whether there is nothing to look at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Review::default()
    }
}

impl RestoredAdmin {
    /// Sentences of what is to be looked at.
    #[must_use]
    pub fn to_review(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (store, review) in &self.reviews {
            let mut say = |of: &[String], what: &str| {
                if !of.is_empty() {
                    lines.push(format!("{store}: {what}: {}", of.join(", ")));
                }
            };
            say(
                &review.revoked,
                "volume tokens that were revoked after the copy was made, and would work again once the restore is accepted; \
                 chronofs configure delete volume-token revokes them again",
            );
            say(
                &review.made,
                "volume tokens that were made after the copy and open nothing any more; make others for who holds them",
            );
            say(
                &review.volumes_made,
                "volumes that were made after the copy, and that nobody reaches any more",
            );
            say(&review.volumes_deleted, "volumes that were deleted after the copy, and are back");
        }
        lines
    }
}

/// The disk snapshot that a cluster was restored from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RestoredCluster {
    /// Its UID.
    pub uid: String,
    /// The cluster that it was taken of.
    pub source: String,
    /// When the clone was prepared, nanoseconds since the epoch.
    pub prepared_ns: u64,
    /// When somebody said that the restore is as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_ns: Option<u64>,
    /// Since when what it needs of its source is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copying_ns: Option<u64>,
    /// When it was detached: it is registered nowhere as a reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached_ns: Option<u64>,
    /// The block stores that the servers of its metadata stores may be registered in, by the id of the metadata store.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stores: BTreeMap<String, Vec<Uuid>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_itself() {
        let seen = ProcessStatus::look(Instant::now(), Path::new("/"), BTreeMap::new());
        assert_eq!(seen.pid, std::process::id());
        assert!(seen.memory_bytes > 1 << 20 && seen.memory_free_bytes > 0, "{seen:?}");
        assert!(seen.disk_bytes > seen.disk_free_bytes && !seen.machine.is_empty(), "{seen:?}");
        let nowhere = ProcessStatus::look(Instant::now(), Path::new("/nowhere"), BTreeMap::new());
        assert_eq!((nowhere.disk_bytes, nowhere.disk_free_bytes), (0, 0));
    }
}
