//! Puts a plan into folders: `OUT/NEW-ADDRESS` with `data/`, `fdb.cluster` and `restore.json`, the record of what was put
//! there. Each is made under another name and moved into place when all of it is on disk.

use crate::create::sync;
use crate::error::Error;
use crate::manifest::{put, text};
use crate::name::{Address, SnapshotUid};
use crate::restore::{Machine, Plan, Refused, belongs};
use crate::tree::{Damage, Depth, Entry, Way, compare_tree, copy_into, differences};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

const DATA: &str = "data";
const CLUSTER_FILE: &str = "fdb.cluster";
const RECORD: &str = "restore.json";
const FORMAT: u32 = 1;

/// What was put into a machine's folder.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Of this file.
    pub format: u32,
    /// The snapshot.
    #[serde(with = "text")]
    pub uid: SnapshotUid,
    /// Where the server was.
    #[serde(with = "text")]
    pub old: Address,
    /// Where it is to be.
    #[serde(with = "text")]
    pub new: Address,
    /// When, as RFC 3339.
    pub prepared: String,
    /// The new cluster file.
    pub cluster_file: String,
    /// Machine, zone and so on, which the server should be started with again.
    pub locality: BTreeMap<String, String>,
    /// What it was started with.
    pub command_line: Vec<String>,
    /// Version of the server.
    pub server_version: Option<String>,
    /// The files of the data folder.
    pub entries: Vec<Entry>,
}

/// A folder that was prepared, or is to be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Prepared {
    /// The machine's folder.
    pub folder: PathBuf,
    /// What was put there.
    #[serde(flatten)]
    pub record: Record,
    /// How it is now.
    #[serde(flatten)]
    pub state: State,
}

/// How a prepared folder is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct State {
    /// As it was prepared.
    pub whole: bool,
    /// What is different.
    pub damages: Vec<String>,
}

/// Prepares a plan's folders below `out`, or only that of the machine with the old or new address `only`. With
/// `dry_run` it only refuses what it would refuse, and names the folders.
pub fn prepare(
    plan: &Plan,
    out: &Path,
    only: Option<&Address>,
    dry_run: bool,
    now: &str,
) -> Result<Vec<PathBuf>, Error> {
    let wanted = |m: &&Machine| only.is_none_or(|only| m.new == *only || m.old == *only);
    let machines: Vec<&Machine> = plan.machines.iter().filter(wanted).collect();
    if let (Some(only), true) = (only, machines.is_empty()) {
        return Err(Refused::OnlyUnknown(only.clone()).into());
    }
    let out = check_out(out, &plan.folders)?;
    let folders: Vec<PathBuf> = machines.iter().map(|machine| out.join(machine.new.to_string())).collect();
    for folder in &folders {
        empty_or_absent(folder)?;
    }
    if dry_run {
        return Ok(folders);
    }
    DirBuilder::new().recursive(true).mode(0o755).create(&out).map_err(Error::io("make folder", &out))?;
    for (machine, folder) in machines.iter().zip(&folders) {
        let staging = out.join(format!(".{}.{}", machine.new, std::process::id()));
        let made = assemble(plan, machine, &staging, now).and_then(|()| {
            // A rename takes the place of an empty folder, and of no other.
            fs::rename(&staging, folder).map_err(|error| match error.kind() {
                ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => {
                    Refused::NotEmpty(folder.clone()).into()
                }
                _ => Error::io("make", folder)(error),
            })?;
            sync(&out)
        });
        if made.is_err() {
            // What failed is to be told, and not that its half could not be taken away; its name shows what it is.
            let _ = fs::remove_dir_all(&staging);
        }
        made?;
    }
    Ok(folders)
}

/// Where to prepare; it lies in none of the folders of the set.
pub(super) fn check_out(out: &Path, sets: &[PathBuf]) -> Result<PathBuf, Error> {
    let out = std::path::absolute(out).map_err(Error::io("find", out))?;
    let real = out.ancestors().find_map(|part| fs::canonicalize(part).ok()).unwrap_or_default();
    match sets.iter().find(|set| real.starts_with(set) || out.starts_with(set)) {
        Some(set) => Err(Refused::OutInSet { out, set: set.clone() }.into()),
        None => Ok(out),
    }
}

pub(super) fn empty_or_absent(folder: &Path) -> Result<(), Error> {
    match fs::read_dir(folder) {
        Ok(mut names) => match names.next() {
            None => Ok(()),
            Some(_) => Err(Refused::NotEmpty(folder.to_owned()).into()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            Err(Refused::NotEmpty(folder.to_owned()).into())
        }
        Err(error) => Err(Error::io("list", folder)(error)),
    }
}

fn assemble(plan: &Plan, machine: &Machine, staging: &Path, now: &str) -> Result<(), Error> {
    let data = staging.join(DATA);
    DirBuilder::new().mode(0o755).create(staging).map_err(Error::io("make folder", staging))?;
    DirBuilder::new().mode(0o700).create(&data).map_err(Error::io("make folder", &data))?;
    let mut entries = Vec::new();
    for part in &machine.parts {
        let keep = |name: &str| belongs(part.role, name);
        let copied = copy_into(&part.image, &data, Way::Copy, &keep)?;
        let known = part.entries.as_deref();
        if let Some(damage) = known.and_then(|known| differences(known, &copied, &keep).into_iter().next()) {
            return Err(Error::Damaged { place: part.image.clone(), damage });
        }
        entries.extend(copied);
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let cluster_file = staging.join(CLUSTER_FILE);
    put(&cluster_file, &format!("{}\n", plan.cluster_file))?;
    // The server writes it anew when its coordinators change: it belongs to whom the data folder belongs.
    let owner = fs::metadata(&data).map_err(Error::io("look at", &data))?;
    for path in [staging, &cluster_file] {
        chown(path, Some(owner.uid()), Some(owner.gid())).map_err(Error::io("set the owner of", path))?;
    }
    let record = Record {
        format: FORMAT,
        uid: plan.uid.clone(),
        old: machine.old.clone(),
        new: machine.new.clone(),
        prepared: now.to_owned(),
        cluster_file: plan.cluster_file.clone(),
        locality: machine.locality.clone(),
        command_line: machine.command_line.clone(),
        server_version: machine.server_version.clone(),
        entries,
    };
    let path = staging.join(RECORD);
    let json = serde_json::to_string_pretty(&record);
    put(&path, &json.map_err(|error| Error::Manifest { path: path.clone(), why: error.to_string() })?)?;
    sync(staging)
}

/// What was prepared below `out` (or in it, if it is a machine's folder), and whether names and sizes are still so.
pub fn status(out: &Path) -> Result<Vec<Prepared>, Error> {
    look(out, Depth::Sizes)
}

/// The same with every byte. A folder that a server was started on is different, as it should be.
pub fn verify(out: &Path) -> Result<Vec<Prepared>, Error> {
    look(out, Depth::Content)
}

fn look(out: &Path, depth: Depth) -> Result<Vec<Prepared>, Error> {
    let mut found = Vec::new();
    for folder in super::folders_in(out)? {
        let path = folder.join(RECORD);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let bad = |why: String| Error::Manifest { path: path.clone(), why };
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if record.format != FORMAT {
            return Err(bad(format!(
                "it has format {}, and this version of chronofs reads {FORMAT}",
                record.format
            )));
        }
        let damages = damages(&folder, &record, depth)?;
        found.push(Prepared { folder, record, state: State { whole: damages.is_empty(), damages } });
    }
    match found.is_empty() {
        true => Err(Refused::NothingPrepared(out.to_owned()).into()),
        false => Ok(found),
    }
}

fn damages(folder: &Path, record: &Record, depth: Depth) -> Result<Vec<String>, Error> {
    let data = folder.join(DATA);
    if !data.is_dir() {
        return Ok(vec![Damage::Missing(DATA.to_owned()).to_string()]);
    }
    let mut damages: Vec<String> =
        compare_tree(&data, &record.entries, depth, &|_| true)?.iter().map(ToString::to_string).collect();
    let said = fs::read_to_string(folder.join(CLUSTER_FILE));
    if said.is_err() || said.is_ok_and(|text| text.trim() != record.cluster_file) {
        damages.push(format!("{CLUSTER_FILE} is not '{}'", record.cluster_file));
    }
    Ok(damages)
}
