//! What tests of disk snapshots share.

use crate::process::chronofs_binary;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The script of the page that FoundationDB's operators start from.
pub const PAGE: &str = r#"#!/bin/bash
while (( "$#" )); do
    case "$1" in
        --uid) SNAPUID=$2; shift 2;;
        --path) DATADIR=$2; shift 2;;
        --role) ROLE=$2; shift 2;;
        --destdir) DESTDIR=$2; shift 2;;
        *) shift;;
    esac
done
mkdir -p "$DESTDIR/$SNAPUID/$ROLE" || exit 1
cp "$DATADIR/"* "$DESTDIR/$SNAPUID/$ROLE/" || exit 1
exit 0
"#;

/// The UID of the snapshot that a command has made.
pub fn uid_in(said: &str) -> String {
    let (_, rest) = said.split_once("Snapshot command succeeded with UID ").expect(said);
    let uid: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    assert_eq!(uid.len(), 32, "{said}");
    uid
}

/// The record of a snapshot in a file that `snapshot describe --record` wrote.
pub fn read_record(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap();
    let mut sealed: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(sealed["format"], 1, "{text}");
    sealed["record"].take()
}

/// A folder of programs that only root can change.
pub struct Programs(tempfile::TempDir);

impl Programs {
    /// Without any yet.
    #[allow(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Programs {
        Programs(tempfile::Builder::new().prefix("chronofs-programs-").tempdir().unwrap())
    }

    /// Adds a script.
    pub fn add(&self, name: &str, script: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Adds ours.
    pub fn snap_create(&self) -> PathBuf {
        let script = format!("#!/bin/sh\nexec '{}' snap-create \"$@\"\n", chronofs_binary().display());
        self.add("snap-create", &script)
    }

    /// What programs were told, a line per call.
    pub fn told(&self) -> Vec<String> {
        let told = fs::read_to_string(self.0.path().join("told")).unwrap_or_default();
        told.lines().map(str::to_owned).collect()
    }
}
