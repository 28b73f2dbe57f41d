//! Why a set of our own images is not restored: each reason names the thing, what is wrong with it, and what to do.

use crate::name::{Role, SnapshotUid};
use std::path::PathBuf;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Refused {
    #[error("{0} holds no image of chronofs: name the folder that the snapshot's program wrote to")]
    Empty(PathBuf),
    #[error(
        "{0} has the checksum of a label and no label (chronofs-image.json): bring it, or take another snapshot"
    )]
    Unlabelled(PathBuf),
    #[error(
        "{place} is of snapshot {said}, and {other} of {uid}: they were mixed; restore one snapshot, never parts of two"
    )]
    Mixed { place: PathBuf, said: SnapshotUid, other: PathBuf, uid: SnapshotUid },
    #[error(
        "{place} was made by try {said} of its snapshot, and {other} by try {number}: it was left by another try; bring the image of the same one"
    )]
    Straggler { place: PathBuf, said: u64, other: PathBuf, number: u64 },
    #[error("{place} is of cluster {said}, and {other} of cluster {cluster}: restore images of one cluster")]
    TwoClusters { place: PathBuf, said: String, other: PathBuf, cluster: String },
    #[error("{place} and {other} name different members of their snapshot: they are not of one set")]
    OtherMembers { place: PathBuf, other: PathBuf },
    #[error(
        "{first} and {second} say that they are the image of the same role of the same server, and are not the same: name only one of them"
    )]
    Twice { first: PathBuf, second: PathBuf },
    #[error(
        "{place} is of {node}, which is no member of its own snapshot, or not in that role: it counts for nothing"
    )]
    Stranger { place: PathBuf, node: String },
    #[error(
        "{place} was made of {said}, and not of {named}, whose place it has: images were swapped; put each into the folder of its server"
    )]
    Swapped { place: PathBuf, said: String, named: String },
    #[error(
        "{place} was made of {said}, and not of {named}, whose place it has: images were swapped; put each into the folder of its role"
    )]
    WrongRole { place: PathBuf, said: Role, named: Role },
    #[error(
        "the set has no image of a coordinator: without one no cluster starts; bring the image of role coord of {0}"
    )]
    NoCoordinator(String),
    #[error("the image of {role} of {node} is missing, which took part: bring it, or take another snapshot")]
    Missing { node: String, role: Role },
    #[error("{storage} and {tlog} do not say the same of their server's cut: they are not of one set")]
    Cuts { storage: PathBuf, tlog: PathBuf },
    #[error("{0} does not say up to which commit it goes: it was never finished; take another snapshot")]
    NoCut(PathBuf),
    #[error(
        "nothing proves that snapshot {0} was completed: give its record (chronofs snapshot describe {0} --record FILE) with --record, or say --accept-uncommitted, and the labels alone count"
    )]
    Uncommitted(SnapshotUid),
    #[error(
        "snapshot {uid} is not complete but {state}, so its images may be of different moments: restore another, or say --accept-uncommitted, and the labels alone count"
    )]
    NotComplete { uid: SnapshotUid, state: String },
    #[error(
        "the record is of snapshot {said}, and the images are of {uid}: give the record of this snapshot"
    )]
    OtherRecord { said: SnapshotUid, uid: SnapshotUid },
    #[error(
        "the images are of try {number} of their snapshot, and its record is of try {said}: they were left by another try"
    )]
    OtherTry { said: u64, number: u64 },
    #[error("the record and the images do not name the same members: give the record of this snapshot")]
    RecordMembers,
    #[error(
        "the record says that {node} was cut at {said}, and its image says {cut}: the image is not the one of this set"
    )]
    RecordCut { node: String, said: String, cut: String },
    #[error(
        "{0} has another label (chronofs-image.json) than the one that the record has the checksum of: the image was changed, or is not the one of this set; bring the one that the snapshot's program made"
    )]
    RecordLabel(PathBuf),
    #[error(
        "'{0}' is neither an address nor a server of the set: write OLD=NEW, OLD an address or a name of restore plan"
    )]
    UnknownServer(String),
}
