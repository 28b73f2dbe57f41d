//! Puts a plan into folders: `OUT/NEW-ADDRESS/data`, with a mark in it. They are made under other names, so that whoever
//! completes them (tokens, the database) does it before any of them is there, and all are moved into place at the end.

use super::check::is_content;
use super::{Mark, OwnMachine, OwnPlan};
use crate::create::sync;
use crate::error::Error;
use crate::name::Role;
use crate::restore::Refused as Common;
use crate::restore::prepare::{check_out, empty_or_absent};
use crate::tree::{Depth, Entry, Way, compare_tree, copy_into, differences};
use serde::Serialize;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Folder of a server's data in its own.
const DATA: &str = "data";
/// Where a metadata server has its engine, and where that has store, log and its format, which lies in the store's image.
pub const ENGINE_PARTS: [&str; 4] = ["engine", "store", "log", "format"];

/// Folders that are made and not in place yet. Dropped, they are taken away.
#[derive(Debug)]
pub struct Staged {
    out: PathBuf,
    machines: Vec<(OwnMachine, PathBuf, PathBuf)>,
}

/// Makes the folders of a plan below `out`; `cluster` is the clone's name, or that of the source for servers that go on in its
/// place; `draw` are random. With `dry_run` it only refuses what it would refuse; nothing is made.
pub fn stage(
    plan: &OwnPlan,
    out: &Path,
    cluster: &str,
    draw: [u64; 2],
    now: &str,
    dry_run: bool,
) -> Result<Staged, Error> {
    let out = check_out(out, &plan.folders)?;
    let place = |machine: &OwnMachine| out.join(machine.new.to_string());
    for machine in &plan.machines {
        empty_or_absent(&place(machine))?;
    }
    let mut staged = Staged { out: out.clone(), machines: Vec::new() };
    if dry_run {
        return Ok(staged);
    }
    DirBuilder::new().recursive(true).mode(0o755).create(&out).map_err(Error::io("make folder", &out))?;
    for machine in &plan.machines {
        let staging = out.join(format!(".{}.{}", machine.new, std::process::id()));
        staged.machines.push((machine.clone(), staging.clone(), place(machine)));
        let mark = Mark {
            format: Mark::FORMAT,
            uid: plan.uid.clone(),
            number: plan.number,
            source: plan.source.clone(),
            cluster: cluster.to_owned(),
            node: machine.node.clone(),
            name: machine.name.clone(),
            old: machine.old.to_string(),
            new: machine.new.to_string(),
            prepared: now.to_owned(),
            cut: machine.cut,
            draw,
            began: None,
            accepted: false,
            unmatched: None,
            readers: Vec::new(),
            kept: None,
            detached: false,
            in_place: plan.in_place,
            instead: None,
            entries: Vec::new(),
        };
        assemble(machine, &staging, mark)?;
    }
    Ok(staged)
}

fn new_folder(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("make folder", path))
}

fn assemble(machine: &OwnMachine, staging: &Path, mut mark: Mark) -> Result<(), Error> {
    let [engine, store, log, format] = ENGINE_PARTS;
    let data = staging.join(DATA);
    new_folder(&data)?;
    for part in &machine.parts {
        let below = match part.role {
            Role::Coord => String::new(),
            Role::Storage => format!("{engine}/{store}/"),
            Role::Tlog => format!("{engine}/{log}/"),
        };
        let target = data.join(&below);
        new_folder(&target)?;
        let copied = copy_into(&part.image, &target, Way::Copy, &is_content)?;
        only_for_the_owner(&target, &copied)?;
        if let Some(damage) = differences(&part.entries, &copied, &is_content).into_iter().next() {
            return Err(Error::Damaged { place: part.image.clone(), damage });
        }
        mark.entries.extend(copied.into_iter().map(|e| Entry { path: format!("{below}{}", e.path), ..e }));
    }
    let inner = data.join(engine).join(store).join(format);
    if inner.exists() {
        let outer = data.join(engine).join(format);
        fs::rename(&inner, &outer).map_err(Error::io("move", &inner))?;
        for entry in &mut mark.entries {
            if entry.path == [engine, store, format].join("/") {
                entry.path = [engine, format].join("/");
            }
        }
        sync(&data.join(engine).join(store))?;
        sync(&data.join(engine))?;
    }
    // The database is changed for the clone; what it was is checked above.
    mark.entries.retain(|_| !machine.is_coordinator());
    mark.write(&data)?;
    sync(staging)
}

/// Whatever the modes are that an image came back with: in it are names of files, and keys.
fn only_for_the_owner(folder: &Path, files: &[Entry]) -> Result<(), Error> {
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(Error::io("set the mode of", path))
    };
    set(folder, 0o700)?;
    files.iter().try_for_each(|file| set(&folder.join(&file.path), 0o600))
}

impl Staged {
    /// The servers, each with its data folder as it is now.
    pub fn machines(&self) -> impl Iterator<Item = (&OwnMachine, PathBuf)> {
        self.machines.iter().map(|(machine, staging, _)| (machine, staging.join(DATA)))
    }

    /// Moves all into place.
    pub fn finish(mut self) -> Result<Vec<(OwnMachine, PathBuf)>, Error> {
        self.machines.iter().try_for_each(|(_, staging, _)| sync(staging))?;
        let mut made = Vec::new();
        for (machine, staging, folder) in &self.machines {
            if let Err(error) = fs::rename(staging, folder) {
                // All or none: what is in place goes back, and then away with the rest.
                for (_, staging, folder) in &self.machines[..made.len()] {
                    let _ = fs::rename(folder, staging);
                }
                return Err(match error.kind() {
                    ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => {
                        Common::NotEmpty(folder.clone()).into()
                    }
                    _ => Error::io("make", folder)(error),
                });
            }
            made.push((machine.clone(), folder.clone()));
        }
        sync(&self.out)?;
        self.machines.clear();
        Ok(made)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for (_, staging, _) in &self.machines {
            // Its name shows what it is, if it cannot go.
            let _ = fs::remove_dir_all(staging);
        }
    }
}

/// A prepared folder, and how it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Found {
    /// The server's folder.
    pub folder: PathBuf,
    /// Its mark.
    #[serde(flatten)]
    pub mark: Mark,
    /// What is not as it was prepared; of a folder that a server started on nothing is said.
    pub damages: Vec<String>,
}

/// The folders that were prepared below `out`, or it itself.
pub fn look(out: &Path, depth: Depth) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for folder in crate::restore::folders_in(out)? {
        let data = folder.join(DATA);
        let Some(mark) = Mark::read(&data)? else { continue };
        let damages = match mark.began {
            None if !mark.entries.is_empty() => {
                let [engine, ..] = ENGINE_PARTS;
                let differ =
                    compare_tree(&data.join(engine), &below(&mark.entries, engine), depth, &|_| true)?;
                differ.iter().map(ToString::to_string).collect()
            }
            _ => Vec::new(),
        };
        found.push(Found { folder, mark, damages });
    }
    Ok(found)
}

/// The entries below a folder, with their paths in it, and the folders on their way.
fn below(entries: &[Entry], folder: &str) -> Vec<Entry> {
    use crate::tree::Kind;
    let [_, store, log, _] = ENGINE_PARTS;
    let folders = [store, log].map(|name| Entry {
        path: name.to_owned(),
        kind: Kind::Folder,
        size: 0,
        blake3: None,
        target: None,
    });
    let files = entries.iter().filter_map(|entry| {
        let path = entry.path.strip_prefix(folder)?.strip_prefix('/')?.to_owned();
        Some(Entry { path, ..entry.clone() })
    });
    files.chain(folders).collect()
}
