//! Why a set is not restored: each reason names the thing, what is wrong with it, and what to do.

use crate::name::{Address, Role, SnapshotUid};
use std::path::PathBuf;

/// Why a set, or where it is to go, is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Refused {
    #[error(
        "{0} is not named by a snapshot's UID: name the folder DESTDIR/UID that the snapshot command's UID tells"
    )]
    NoUid(PathBuf),
    #[error(
        "{folder} holds snapshot {other}, and the other folders {uid}: restore one snapshot, never parts of two"
    )]
    TwoSets { folder: PathBuf, uid: SnapshotUid, other: SnapshotUid },
    #[error("{0} holds no image: name the folder that holds ADDRESS/ROLE, or ROLE")]
    Empty(PathBuf),
    #[error("{0} does not say which server its images are of: name it as ADDRESS=DIR")]
    NoAddress(PathBuf),
    #[error("{first} and {second} are both the image of {role} of {address}: name only one of them")]
    Twice { address: Address, role: Role, first: PathBuf, second: PathBuf },
    #[error(
        "{place} is of snapshot {said}, not of {uid}: it was mixed into this set; put the right image in its place"
    )]
    Mixed { place: PathBuf, said: String, uid: SnapshotUid },
    #[error(
        "{place} was made of {said}, and not of {address}, whose place it has: images were swapped; put each into the folder of its server"
    )]
    Swapped { place: PathBuf, said: Address, address: Address },
    #[error(
        "{place} was made of {said}, and not of {role}, whose place it has: images were swapped; put each into the folder of its role"
    )]
    WrongRole { place: PathBuf, said: Role, role: Role },
    #[error("{0} has no files: the image was never finished; take another snapshot")]
    NoFiles(PathBuf),
    #[error(
        "{place} is the snapshot {volume} of a volume: mount that, and name the data folder in it with --attached {address}/{role}=DIR"
    )]
    NotAttached { place: PathBuf, volume: String, address: Address, role: Role },
    #[error("{0} is not as its program wrote it: {1}; take another image")]
    Unreadable(PathBuf, String),
    #[error(
        "no cluster file is known: no image holds one; give that of the source cluster with --cluster-file"
    )]
    NoClusterFile,
    #[error("{place} is of cluster {said}, and {other} of cluster {cluster}: restore images of one cluster")]
    TwoClusters { place: PathBuf, said: String, other: PathBuf, cluster: String },
    #[error(
        "{place} names the coordinators {said}, and {other} names {coordinators}: they changed during the snapshot; take another"
    )]
    Coordinators { place: PathBuf, said: String, other: PathBuf, coordinators: String },
    #[error(
        "the set has no image of a coordinator: without one no cluster starts; bring the images of role coord of {0}"
    )]
    NoCoordinators(String),
    #[error("the set has no image of role {0}: bring those of all servers, or take another snapshot")]
    NoneOf(Role),
    #[error(
        "the image of coord of {0} is missing, which the cluster file names as a coordinator: bring it, or take another snapshot"
    )]
    MissingCoordinator(Address),
    #[error(
        "{place} is of a coordinator, but the cluster file does not name {address}: the image is of another time; take another snapshot"
    )]
    NotACoordinator { place: PathBuf, address: Address },
    #[error(
        "the image of {role} of {address} is missing: {place} shows that this server has files of that role; bring it, or take another snapshot"
    )]
    Missing { address: Address, role: Role, place: PathBuf },
    #[error(
        "{place} holds no file of its role {role} ({pattern}): it is of another folder, or not whole; take another snapshot"
    )]
    Hollow { place: PathBuf, role: Role, pattern: &'static str },
    #[error(
        "{place} and {other} were made of two processes, though both have places of {address}: images of two servers were swapped; put each into the folder of its server"
    )]
    TwoProcesses { place: PathBuf, other: PathBuf, address: Address },
    #[error(
        "{place} and {other} are of the same process, but of two servers: one image was put in place of another; bring the right one"
    )]
    OneProcess { place: PathBuf, other: PathBuf },
    #[error(
        "{place} is of cluster id {said}, and {other} of {cluster}: images of two clusters were mixed; bring the right one"
    )]
    ForeignCluster { place: PathBuf, said: String, other: PathBuf, cluster: String },
    #[error(
        "{file} is {size} bytes long, which is not whole pages of 4096: it was cut off; take another image"
    )]
    Torn { file: PathBuf, size: u64 },
    #[error("'{0}' is no mapping: write OLD=NEW, each IP:PORT")]
    NoMapping(String),
    #[error("{0} has no new address: map every server of the set, also one that keeps its address ({0}={0})")]
    NotMapped(Address),
    #[error("{old} is mapped to {first} and to {second}: give each server one new address")]
    MappedTwice { old: Address, first: Address, second: Address },
    #[error("{first} and {second} are both mapped to {new}: give each server a new address of its own")]
    OneForTwo { new: Address, first: Address, second: Address },
    #[error("{0} is mapped, but no image is of it: map only servers of the set (restore plan shows them)")]
    NotInSet(Address),
    #[error(
        "{0} exists and is not empty: nothing is overwritten; name another folder with --out, or move it away"
    )]
    NotEmpty(PathBuf),
    #[error("{out} lies in {set}, which it is restored from: name a folder outside of it with --out")]
    OutInSet { out: PathBuf, set: PathBuf },
    #[error("{0} is no server of the set: --only takes an old or a new address of the plan")]
    OnlyUnknown(Address),
    #[error("{0} holds nothing that restore prepared: name the folder that was given as --out")]
    NothingPrepared(PathBuf),
}
