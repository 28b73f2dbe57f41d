//! How a snapshot command ends: its error codes with their names, texts and advice, and the two sentences that
//! scripts look for. They are those of FoundationDB, so that tools and people who know it need not learn anew.

use crate::name::SnapshotUid;
use serde::{Deserialize, Serialize};

/// Why a snapshot failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "u16", from = "u16")]
pub enum SnapshotCode {
    /// Another snapshot is running.
    Busy,
    /// This UID was used before, for something else.
    Duplicate,
    /// The log could not be held back.
    DisableTlogPopFailed,
    /// An image of a storage role failed.
    StorageFailed,
    /// An image of a log role failed.
    TlogFailed,
    /// An image of a coordinator failed.
    CoordFailed,
    /// The log was let go before the end.
    EnableTlogPopFailed,
    /// The program may not be run.
    PathNotWhitelisted,
    /// A server is starting, replaying or restoring.
    NotFullyRecovered,
    /// A commit may be acknowledged before all of its log copies have it.
    LogAntiQuorum,
    /// A server restarted or moved meanwhile.
    WithRecovery,
    /// The UID is none.
    InvalidUid,
    /// None of the others.
    Unknown,
}

impl SnapshotCode {
    /// All of them.
    pub const ALL: [SnapshotCode; 13] = [
        SnapshotCode::Busy,
        SnapshotCode::Duplicate,
        SnapshotCode::DisableTlogPopFailed,
        SnapshotCode::StorageFailed,
        SnapshotCode::TlogFailed,
        SnapshotCode::CoordFailed,
        SnapshotCode::EnableTlogPopFailed,
        SnapshotCode::PathNotWhitelisted,
        SnapshotCode::NotFullyRecovered,
        SnapshotCode::LogAntiQuorum,
        SnapshotCode::WithRecovery,
        SnapshotCode::InvalidUid,
        SnapshotCode::Unknown,
    ];

    /// The number that the command prints.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            SnapshotCode::Busy => 1000,
            SnapshotCode::Duplicate => 1083,
            SnapshotCode::DisableTlogPopFailed => 2500,
            SnapshotCode::StorageFailed => 2501,
            SnapshotCode::TlogFailed => 2502,
            SnapshotCode::CoordFailed => 2503,
            SnapshotCode::EnableTlogPopFailed => 2504,
            SnapshotCode::PathNotWhitelisted => 2505,
            SnapshotCode::NotFullyRecovered => 2506,
            SnapshotCode::LogAntiQuorum => 2507,
            SnapshotCode::WithRecovery => 2508,
            SnapshotCode::InvalidUid => 2509,
            SnapshotCode::Unknown => 4000,
        }
    }

    /// The name that programs know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            SnapshotCode::Busy => "operation_failed",
            SnapshotCode::Duplicate => "duplicate_snapshot_request",
            SnapshotCode::DisableTlogPopFailed => "snap_disable_tlog_pop_failed",
            SnapshotCode::StorageFailed => "snap_storage_failed",
            SnapshotCode::TlogFailed => "snap_tlog_failed",
            SnapshotCode::CoordFailed => "snap_coord_failed",
            SnapshotCode::EnableTlogPopFailed => "snap_enable_tlog_pop_failed",
            SnapshotCode::PathNotWhitelisted => "snap_path_not_whitelisted",
            SnapshotCode::NotFullyRecovered => "snap_not_fully_recovered_unsupported",
            SnapshotCode::LogAntiQuorum => "snap_log_anti_quorum_unsupported",
            SnapshotCode::WithRecovery => "snap_with_recovery_unsupported",
            SnapshotCode::InvalidUid => "snap_invalid_uid_string",
            SnapshotCode::Unknown => "unknown_error",
        }
    }

    /// What happened, in the words of the command.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            SnapshotCode::Busy => "Operation failed",
            SnapshotCode::Duplicate => {
                "A duplicate snapshot request has been sent, the old request is discarded"
            }
            SnapshotCode::DisableTlogPopFailed | SnapshotCode::EnableTlogPopFailed => "Disk Snapshot error",
            SnapshotCode::StorageFailed => "Failed to snapshot storage nodes",
            SnapshotCode::TlogFailed => "Failed to snapshot TLog nodes",
            SnapshotCode::CoordFailed => "Failed to snapshot coordinator nodes",
            SnapshotCode::PathNotWhitelisted => "Snapshot create binary path not whitelisted",
            SnapshotCode::NotFullyRecovered => "Unsupported when the cluster is not fully recovered",
            SnapshotCode::LogAntiQuorum => "Unsupported when log anti quorum is configured",
            SnapshotCode::WithRecovery => "Cluster recovery during snapshot operation not supported",
            SnapshotCode::InvalidUid => "The given uid string is not a 32-length hex string",
            SnapshotCode::Unknown => "An unknown error occurred",
        }
    }

    /// What the operator does about it.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            SnapshotCode::Busy => "Another snapshot is running: wait for its end, then retry the operation",
            SnapshotCode::Duplicate => "This UID was used before: retry the operation with another",
            SnapshotCode::DisableTlogPopFailed | SnapshotCode::EnableTlogPopFailed => {
                "No operator action is needed, retry the operation"
            }
            SnapshotCode::StorageFailed
            | SnapshotCode::TlogFailed
            | SnapshotCode::CoordFailed
            | SnapshotCode::Unknown => {
                "Verify that the snap create binary is installed and can be executed by the user running the server"
            }
            SnapshotCode::PathNotWhitelisted => {
                "Whitelist the snap create binary path and retry the operation"
            }
            SnapshotCode::NotFullyRecovered => {
                "Wait for the cluster to finish recovery and then retry the operation"
            }
            SnapshotCode::LogAntiQuorum => "Feature is not supported when log anti quorum is configured",
            SnapshotCode::WithRecovery => {
                "Recovery happened while snapshot operation was in progress, retry the operation"
            }
            SnapshotCode::InvalidUid => "Give 32 digits of 0 to 9 and a to f, or none: then one is drawn",
        }
    }

    /// The line that says so.
    #[must_use]
    pub fn failure(self, uid: impl std::fmt::Display) -> String {
        format!(
            "Snapshot command failed {} ({}). Please cleanup any instance level snapshots created with UID {uid}.",
            self.number(),
            self.text()
        )
    }
}

impl From<SnapshotCode> for u16 {
    fn from(code: SnapshotCode) -> u16 {
        code.number()
    }
}

impl From<u16> for SnapshotCode {
    /// A number that is not known here is that of an error that is not known here.
    fn from(number: u16) -> SnapshotCode {
        let known = SnapshotCode::ALL.into_iter().find(|code| code.number() == number);
        known.unwrap_or(SnapshotCode::Unknown)
    }
}

/// The line that says that a snapshot is complete and can be restored.
#[must_use]
pub fn success(uid: &SnapshotUid) -> String {
    format!("Snapshot command succeeded with UID {uid}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_scripts_look_for_is_said_word_for_word() {
        let uid = "c50263df28be44ebb596f5c2a849adbb".parse().unwrap();
        assert_eq!(success(&uid), "Snapshot command succeeded with UID c50263df28be44ebb596f5c2a849adbb");
        assert_eq!(
            SnapshotCode::PathNotWhitelisted.failure(&uid),
            "Snapshot command failed 2505 (Snapshot create binary path not whitelisted). Please cleanup any instance \
             level snapshots created with UID c50263df28be44ebb596f5c2a849adbb."
        );
    }

    #[test]
    fn each_code_has_a_number_and_a_name_of_its_own_and_advice() {
        let numbers: Vec<u16> = SnapshotCode::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(numbers, [1000, 1083, 2500, 2501, 2502, 2503, 2504, 2505, 2506, 2507, 2508, 2509, 4000]);
        let names: BTreeSet<&str> = SnapshotCode::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), SnapshotCode::ALL.len());
        assert!(SnapshotCode::ALL.iter().all(|code| !code.advice().is_empty()));
    }
}
