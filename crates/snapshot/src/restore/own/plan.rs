//! Who goes where: each server of the set to one new address.

use super::check::{cut_of, is_content};
use super::{OwnSet, Refused};
use crate::error::Error;
use crate::manifest::text;
use crate::name::{Address, Role, SnapshotUid};
use crate::protocol::{Cut, Node};
use crate::restore::Mapping;
use crate::tree::Entry;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What goes where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct OwnPlan {
    /// The snapshot.
    #[serde(with = "text")]
    pub uid: SnapshotUid,
    /// Which try of it.
    pub number: u64,
    /// The cluster that it is of.
    pub source: String,
    /// The servers.
    pub machines: Vec<OwnMachine>,
    /// Log servers of the set. What their copies have is in the images of the metadata servers, too, so a clone begins without
    /// copies, and never asks a log server of its source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// The servers go on in the place of those that the images are of: same cluster, same names, same tokens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
    #[serde(skip)]
    pub(super) folders: Vec<PathBuf>,
}

/// A server of the clone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct OwnMachine {
    /// Id of the node: of a metadata server that of its store.
    pub node: String,
    /// What people call it.
    pub name: String,
    /// Where it was.
    #[serde(with = "text")]
    pub old: Address,
    /// Where it is to be.
    #[serde(with = "text")]
    pub new: Address,
    /// As of which commit it is.
    pub cut: Option<Cut>,
    /// What its data folder is put together from.
    pub parts: Vec<OwnPart>,
}

/// An image that goes into a data folder.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct OwnPart {
    /// Its role.
    #[serde(with = "text")]
    pub role: Role,
    /// Its folder.
    pub image: PathBuf,
    /// How many files.
    pub files: usize,
    /// How long they are together.
    pub bytes: u64,
    #[serde(skip)]
    pub(super) entries: Vec<Entry>,
}

impl OwnMachine {
    /// The coordinator's.
    #[must_use]
    pub fn is_coordinator(&self) -> bool {
        self.parts.iter().any(|part| part.role == Role::Coord)
    }
}

impl OwnPlan {
    /// The way from a set that was checked to new addresses: `pairs` and the lines of `file` say which, by old address or
    /// name.
    pub fn new(set: &OwnSet, pairs: &[String], file: Option<&Path>) -> Result<OwnPlan, Error> {
        let named = |text: &str| -> Result<Option<Address>, Error> {
            let node = set.nodes.iter().find(|node| [&node.name, &node.id].contains(&&text.to_owned()));
            node.map(|node| address(&node.address)).transpose()
        };
        let mapping = Mapping::read_named(pairs, file, &named)?;
        OwnPlan::mapped(set, &mapping, false)
    }

    /// Servers that go on in the place of those that the images are of: all, or the `only` one, by name, id or old address. One
    /// whose address is not said has the one it had.
    pub fn in_place(
        set: &OwnSet,
        only: Option<&str>,
        pairs: &[String],
        file: Option<&Path>,
    ) -> Result<OwnPlan, Error> {
        let servers = || set.nodes.iter().filter(|node| !node.keeps_copies());
        let called =
            |node: &Node, text: &str| [&node.name, &node.id, &node.address].iter().any(|of| *of == text);
        let named = |text: &str| -> Result<Option<Address>, Error> {
            servers().find(|node| called(node, text)).map(|node| address(&node.address)).transpose()
        };
        let mut mapping = Mapping::read_named(pairs, file, &named)?;
        for node in servers() {
            mapping.stays(&address(&node.address)?)?;
        }
        let mut plan = OwnPlan::mapped(set, &mapping, true)?;
        let Some(only) = only else { return Ok(plan) };
        let wanted = servers().find(|node| called(node, only));
        let id = &wanted.ok_or_else(|| Refused::UnknownServer(only.to_owned()))?.id;
        plan.machines.retain(|machine| machine.node == *id);
        // What the copies have that are left is the live admin server's to say.
        plan.left_out.clear();
        Ok(plan)
    }

    fn mapped(set: &OwnSet, mapping: &Mapping, in_place: bool) -> Result<OwnPlan, Error> {
        let mut machines = Vec::new();
        for node in set.nodes.iter().filter(|node| !node.keeps_copies()) {
            let old = address(&node.address)?;
            let parts = node.roles.iter().filter_map(|role| set.images.get(&(node.id.clone(), *role)));
            let parts = parts.map(|image| OwnPart {
                role: image.label.role,
                image: image.place.clone(),
                files: image.label.files.len(),
                bytes: image.label.bytes(),
                entries: image.label.files.iter().filter(|entry| is_content(&entry.path)).cloned().collect(),
            });
            machines.push(OwnMachine {
                node: node.id.clone(),
                name: node.name.clone(),
                new: mapping.of(&old)?,
                old,
                cut: cut_of(set, &node.id)?,
                parts: parts.collect(),
            });
        }
        let left_out: Vec<&Node> = set.nodes.iter().filter(|node| node.keeps_copies()).collect();
        let is_here = |old: &Address| {
            let text = old.to_string();
            machines.iter().any(|m| m.old == *old) || left_out.iter().any(|node| node.address == text)
        };
        if let Some(stranger) = mapping.olds().find(|old| !is_here(old)) {
            return Err(Refused::UnknownServer(stranger.to_string()).into());
        }
        machines.sort_by_key(|machine| (!machine.is_coordinator(), machine.name.clone()));
        Ok(OwnPlan {
            uid: set.attempt.uid.clone(),
            number: set.attempt.number,
            source: set.cluster.clone(),
            machines,
            left_out: left_out.iter().map(|node| node.name.clone()).collect(),
            in_place,
            folders: set.folders.clone(),
        })
    }

    /// The coordinator's server; a set that was checked has one.
    #[must_use]
    pub fn coordinator(&self) -> Option<&OwnMachine> {
        self.machines.iter().find(|machine| machine.is_coordinator())
    }
}

fn address(text: &str) -> Result<Address, Error> {
    text.parse().map_err(|_| Refused::UnknownServer(text.to_owned()).into())
}
