//! What is put into a prepared data folder: of what it was made, and for whom. A server that finds it starts in restore mode,
//! and notes in it how far that has come.

use crate::error::Error;
use crate::manifest::text;
use crate::name::SnapshotUid;
use crate::protocol::Cut;
use crate::tree::Entry;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Its file in the data folder.
pub const MARK: &str = "chronofs-restore.json";
const FORMAT: u32 = 1;

/// See the module. New fields come as optional ones at the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// Its format, 1.
    pub format: u32,
    /// The snapshot.
    #[serde(with = "text")]
    pub uid: SnapshotUid,
    /// Which try of it.
    pub number: u64,
    /// The cluster that the images are of.
    pub source: String,
    /// The cluster that the server is to be of.
    pub cluster: String,
    /// Id of the node that the images are of.
    pub node: String,
    /// What people call it.
    pub name: String,
    /// Where it was.
    pub old: String,
    /// Where it is to be.
    pub new: String,
    /// When the folder was prepared, as RFC 3339.
    pub prepared: String,
    /// Of a server with a log: its images are as of this commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// Random numbers, by which two clones of one set differ.
    pub draw: [u64; 2],
    /// The commit with which the clone went its own way; none before the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<u64>,
    /// It was said that the restore is as it should be.
    #[serde(default)]
    pub accepted: bool,
    /// Volumes that the admin server knew and this server did not, at the first look; and those that only this one knew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmatched: Option<[Vec<String>; 2]>,
    /// The block stores in which the clone is registered as a reader of its snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readers: Vec<String>,
    /// Whether the source kept the snapshot when that was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<bool>,
    /// The clone is registered no longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
    /// The server goes on in the place of the one that the images are of.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
    /// There were no images. What the server goes on from instead, in words: an old copy of its folder, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
    /// The files that were put into the data folder; empty once a server has started on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<Entry>,
}

impl Mark {
    /// The format that this program writes.
    pub const FORMAT: u32 = FORMAT;

    /// What tells this restore from others of the same server: no two prepared folders draw alike.
    #[must_use]
    pub fn restore_id(&self) -> String {
        format!("{:016x}{:016x}", self.draw[0], self.draw[1])
    }

    /// By what the admin server says that this restore is accepted: of a clone that is the snapshot, which all of its servers are
    /// of; a server in place may have been restored from the same one before.
    #[must_use]
    pub fn accepted_by(&self) -> String {
        if self.in_place { self.restore_id() } else { self.uid.to_string() }
    }

    /// What it was restored from, in words.
    #[must_use]
    pub fn from(&self) -> String {
        self.instead.clone().unwrap_or_else(|| format!("disk snapshot {}", self.uid))
    }

    /// By what that is known: the snapshot's UID.
    #[must_use]
    pub fn known_as(&self) -> String {
        self.instead.clone().unwrap_or_else(|| self.uid.to_string())
    }

    /// That of a data folder; none if nobody prepared it.
    pub fn read(folder: &Path) -> Result<Option<Mark>, Error> {
        let path = folder.join(MARK);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(Error::io("read", &path))?,
        };
        let bad = |why: String| Error::Manifest { path: path.clone(), why };
        let mark: Mark = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        match mark.format {
            FORMAT => Ok(Some(mark)),
            other => Err(bad(format!("its format is {other}, this program knows {FORMAT}"))),
        }
    }

    /// Writes it, in the place of one that is there, durably.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let (path, beside) = (folder.join(MARK), folder.join(format!("{MARK}.new")));
        let bad = |error: serde_json::Error| Error::Manifest { path: path.clone(), why: error.to_string() };
        let mut text = serde_json::to_vec_pretty(self).map_err(bad)?;
        text.push(b'\n');
        let written = File::create(&beside).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(folder)?.sync_all()
        });
        written.map_err(Error::io("write", &path))
    }
}
