//! What an image says about itself: `manifest.json` beside its files, and `manifest.blake3` with its checksum, in the
//! form that `b3sum --check` reads.

use crate::error::Error;
use crate::name::{Address, Role, SnapshotUid};
use crate::server::Server;
use crate::tree::Entry;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

/// The manifest's file.
pub const MANIFEST: &str = "manifest.json";
const CHECKSUM: &str = "manifest.blake3";
const FORMAT: u32 = 1;

/// How an image is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Every byte is read and written.
    Copy,
    /// Files share their blocks with the originals.
    Reflink,
    /// A read-only snapshot of the btrfs subvolume.
    Btrfs,
    /// A snapshot of the logical volume.
    Lvm,
    /// A snapshot of the ZFS dataset.
    Zfs,
    /// Whatever a program of the operator's does.
    Command,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Copy => "copy",
            Method::Reflink => "reflink",
            Method::Btrfs => "btrfs",
            Method::Lvm => "lvm",
            Method::Zfs => "zfs",
            Method::Command => "command",
        })
    }
}

/// What is known of an image. New fields come as optional ones at the end; another meaning of an old one is a new format.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this file.
    pub format: u32,
    /// The snapshot.
    #[serde(with = "text")]
    pub uid: SnapshotUid,
    /// What of the server it holds.
    #[serde(with = "text")]
    pub role: Role,
    /// The server.
    #[serde(with = "text")]
    pub address: Address,
    /// `cluster:ip:port:UID`
    pub name: String,
    /// How it was made.
    pub method: Method,
    /// When, as RFC 3339.
    pub created: String,
    /// Version of the server.
    pub server_version: String,
    /// The folder that it is an image of.
    pub source: String,
    /// The cluster's name.
    pub cluster: Option<String>,
    /// The server's cluster file, word for word.
    pub cluster_file: Option<String>,
    /// What the server was started with.
    pub command_line: Vec<String>,
    /// Machine, zone and so on.
    pub locality: BTreeMap<String, String>,
    /// Where the files are: below the image's folder, or from `/` on; `None` where they cannot be read without more.
    pub data: Option<String>,
    /// What else belongs to the image: the name of a volume or dataset, or of a program.
    pub volume: Option<String>,
    /// Its files, where they were copied or cloned.
    pub entries: Option<Vec<Entry>>,
}

/// Where an image is and how it came about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Made {
    pub(crate) data: Option<String>,
    pub(crate) volume: Option<String>,
    pub(crate) entries: Option<Vec<Entry>>,
}

/// The name that the specification recommends for an image.
#[must_use]
pub fn recommended_name(server: &Server, uid: &SnapshotUid) -> String {
    let cluster = server.cluster.as_deref().unwrap_or("unnamed");
    format!("{cluster}:{}:{}:{uid}", server.address.host(), server.address.port())
}

impl Manifest {
    pub(crate) fn new(request: &crate::create::Request, made: Made) -> Manifest {
        let server = &request.server;
        Manifest {
            format: FORMAT,
            uid: request.uid.clone(),
            role: request.role,
            address: server.address.clone(),
            name: recommended_name(server, &request.uid),
            method: request.method,
            created: request.created.clone(),
            server_version: request.version.clone(),
            source: request.path.display().to_string(),
            cluster: server.cluster.clone(),
            cluster_file: server.cluster_file.clone(),
            command_line: server.command_line.clone(),
            locality: server.locality.clone(),
            data: made.data,
            volume: made.volume,
            entries: made.entries,
        }
    }

    /// Writes it and its checksum into a folder, durably.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(MANIFEST);
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::Manifest { path: path.clone(), why: error.to_string() })?;
        text.push('\n');
        put(&path, &text)?;
        put(&folder.join(CHECKSUM), &format!("{}  {MANIFEST}\n", blake3::hash(text.as_bytes()).to_hex()))
    }

    /// Reads that of an image; `None` if it has none.
    pub fn read(folder: &Path) -> Result<Option<Manifest>, Error> {
        let path = folder.join(MANIFEST);
        if !path.try_exists().map_err(Error::io("look at", &path))? {
            return Ok(None);
        }
        let bad = |why: String| Error::Manifest { path: path.clone(), why };
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let beside = folder.join(CHECKSUM);
        let sum = fs::read_to_string(&beside).map_err(Error::io("read", &beside))?;
        if sum.split_ascii_whitespace().next() != Some(blake3::hash(&bytes).to_hex().as_str()) {
            return Err(bad(format!("it does not fit its checksum in {CHECKSUM}")));
        }
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if head.format != FORMAT {
            return Err(bad(format!(
                "it has format {}, and this version of chronofs reads {FORMAT}",
                head.format
            )));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|error| bad(error.to_string()))
    }

    /// Bytes of all its files, where they are known.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.entries.as_ref().map(|entries| entries.iter().map(|entry| entry.size).sum())
    }
}

/// A new file, synced.
pub(crate) fn put(path: &Path, text: &str) -> Result<(), Error> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(Error::io("write", path))
}

/// Names as JSON strings.
pub(crate) mod text {
    use super::{Deserialize, Deserializer, FromStr, Serializer, fmt};

    pub(crate) fn serialize<T: fmt::Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'a, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'a>,
    {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Kind;

    fn example() -> Manifest {
        let entry = |path: &str, kind, size, blake3: Option<&str>, target: Option<&str>| Entry {
            path: path.to_owned(),
            kind,
            size,
            blake3: blake3.map(str::to_owned),
            target: target.map(str::to_owned),
        };
        let sum = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        Manifest {
            format: 1,
            uid: "de01497a344441362c2deffed56a529b".parse().unwrap(),
            role: Role::Tlog,
            address: "127.0.0.1:4601".parse().unwrap(),
            name: "trial:127.0.0.1:4601:de01497a344441362c2deffed56a529b".to_owned(),
            method: Method::Copy,
            created: "2026-11-21T07:57:45Z".to_owned(),
            server_version: "7.3.79".to_owned(),
            source: "/var/lib/foundationdb/data/4601".to_owned(),
            cluster: Some("trial".to_owned()),
            cluster_file: Some("trial:id@127.0.0.1:4601\n".to_owned()),
            command_line: vec!["fdbserver".to_owned(), "-p".to_owned(), "127.0.0.1:4601".to_owned()],
            locality: [("zoneid".to_owned(), "z1".to_owned())].into(),
            data: Some("files".to_owned()),
            volume: None,
            entries: Some(vec![
                entry("folder", Kind::Folder, 0, None, None),
                entry("folder/link", Kind::Link, 0, None, Some("..")),
                entry("logqueue-0.fdq", Kind::File, 0, Some(sum), None),
            ]),
        }
    }

    #[test]
    fn the_form_on_disk_stays() {
        let golden = include_str!("../tests/golden/manifest-1.json");
        assert_eq!(serde_json::to_string_pretty(&example()).unwrap() + "\n", golden);
        assert_eq!(serde_json::from_str::<Manifest>(golden).unwrap(), example());
        let later = golden.replacen('{', "{\n  \"of_later\": [1],", 1);
        assert_eq!(
            serde_json::from_str::<Manifest>(&later).unwrap(),
            example(),
            "what later versions add is passed over"
        );
    }

    #[test]
    fn a_manifest_reads_back_and_one_byte_of_difference_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), None);
        example().write(folder.path()).unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), Some(example()));
        let path = folder.path().join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("7.3.79", "7.3.78")).unwrap();
        assert!(Manifest::read(folder.path()).unwrap_err().to_string().contains("does not fit its checksum"));
        assert!(example().write(folder.path()).is_err(), "it overwrites nothing");
    }

    #[test]
    fn a_later_format_is_refused_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        Manifest { format: 2, ..example() }.write(folder.path()).unwrap();
        assert!(Manifest::read(folder.path()).unwrap_err().to_string().contains("it has format 2"));
    }
}
