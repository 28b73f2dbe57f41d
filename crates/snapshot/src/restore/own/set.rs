//! Finds the images of a set by their labels, below any folders.

use super::Refused;
use crate::error::Error;
use crate::label::{LABEL, LABEL_SUM, Label};
use crate::name::{Role, SnapshotUid};
use crate::protocol::{Attempt, Node};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Images lie less deep than this, also within the snapshot of a whole volume.
const DEPTH_MAX: usize = 32;
/// Programs name a folder for the server this deep: `ADDRESS/ROLE`, or `UID/ADDRESS/ROLE`.
const NAMED_MAX: usize = 2;

/// An image with its label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnImage {
    /// Its folder.
    pub place: PathBuf,
    /// The names of the folders that lead to it from where it was looked for.
    pub way: Vec<String>,
    /// What it says of itself.
    pub label: Label,
    /// The checksum of that.
    pub label_sum: String,
}

/// All images that are there, of one attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnSet {
    /// The attempt.
    pub attempt: Attempt,
    /// The cluster that it is of.
    pub cluster: String,
    /// Everybody who took part.
    pub nodes: Vec<Node>,
    /// By id of the node and role.
    pub images: BTreeMap<(String, Role), OwnImage>,
    /// Where they were looked for.
    pub folders: Vec<PathBuf>,
}

impl OwnSet {
    /// Whether any image of ours is below one of these folders.
    pub fn is_here(folders: &[PathBuf]) -> Result<bool, Error> {
        for folder in folders {
            if !find(folder)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All images below these folders; refused when they are not of one attempt, or not where their label belongs.
    pub fn read(folders: &[PathBuf]) -> Result<OwnSet, Error> {
        let mut set: Option<(PathBuf, OwnSet)> = None;
        let mut looked = Vec::new();
        for folder in folders {
            let folder = fs::canonicalize(folder).map_err(Error::io("find", folder))?;
            let places = find(&folder)?;
            if places.is_empty() {
                return Err(Refused::Empty(folder).into());
            }
            let named = folder.file_name().and_then(|name| name.to_str()?.parse::<SnapshotUid>().ok());
            for place in places {
                let read = Label::read_with_sum(&place)?;
                let (label, label_sum) = read.ok_or_else(|| Refused::Unlabelled(place.clone()))?;
                if let Some(uid) = named.as_ref().filter(|uid| **uid != label.attempt.uid) {
                    let said = label.attempt.uid.clone();
                    return Err(Refused::Mixed { place, said, other: folder, uid: uid.clone() }.into());
                }
                let relative = place.strip_prefix(&folder).unwrap_or(&place);
                let way = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
                let image = OwnImage { place, way, label, label_sum };
                match &mut set {
                    None => set = Some((image.place.clone(), OwnSet::of(image))),
                    Some((first, set)) => set.add(first, image)?,
                }
            }
            looked.push(folder);
        }
        let (_, set) = set.ok_or_else(|| Refused::Empty(PathBuf::from("the list of folders")))?;
        let set = OwnSet { folders: looked, ..set };
        set.images.values().try_for_each(|image| set.fits_its_place(image))?;
        Ok(set)
    }

    fn of(image: OwnImage) -> OwnSet {
        let Label { attempt, cluster, nodes, node, role, .. } = image.label.clone();
        OwnSet { attempt, cluster, nodes, images: [((node, role), image)].into(), folders: Vec::new() }
    }

    fn add(&mut self, first: &Path, image: OwnImage) -> Result<(), Refused> {
        let label = &image.label;
        let (place, other) = (image.place.clone(), first.to_owned());
        if label.attempt.uid != self.attempt.uid {
            let (said, uid) = (label.attempt.uid.clone(), self.attempt.uid.clone());
            return Err(Refused::Mixed { place, said, other, uid });
        }
        if label.attempt.number != self.attempt.number {
            let (said, number) = (label.attempt.number, self.attempt.number);
            return Err(Refused::Straggler { place, said, other, number });
        }
        if label.cluster != self.cluster {
            let (said, cluster) = (label.cluster.clone(), self.cluster.clone());
            return Err(Refused::TwoClusters { place, said, other, cluster });
        }
        if label.nodes != self.nodes {
            return Err(Refused::OtherMembers { place, other });
        }
        match self.images.get(&(label.node.clone(), label.role)) {
            // The snapshot of a whole volume holds the images of all its roles.
            Some(known) if known.label == image.label => Ok(()),
            Some(known) => Err(Refused::Twice { first: known.place.clone(), second: place }),
            None => {
                self.images.insert((label.node.clone(), label.role), image);
                Ok(())
            }
        }
    }

    /// The node of an id.
    #[must_use]
    pub fn node(&self, id: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Whether the folders that an image lies in are named for its own server and role, as far as they are named for any.
    fn fits_its_place(&self, image: &OwnImage) -> Result<(), Refused> {
        let (place, label) = (image.place.clone(), &image.label);
        let own = self.node(&label.node).filter(|node| node.roles.contains(&label.role));
        let own = own.ok_or_else(|| Refused::Stranger { place: place.clone(), node: label.node.clone() })?;
        let is_named = |node: &Node, part: &String| [&node.id, &node.address].contains(&part);
        // Deeper in the snapshot of a whole volume folders have names of their own.
        let named = || image.way.iter().take(NAMED_MAX);
        if !named().any(|part| is_named(own, part))
            && let Some(other) = named().find_map(|part| self.nodes.iter().find(|node| is_named(node, part)))
        {
            return Err(Refused::Swapped { place, said: shown(own), named: shown(other) });
        }
        let named = image.way.iter().rev().find_map(|part| part.parse::<Role>().ok());
        match named.filter(|named| *named != label.role) {
            Some(named) => Err(Refused::WrongRole { place, said: label.role, named }),
            None => Ok(()),
        }
    }
}

/// A node as people know it.
pub(super) fn shown(node: &Node) -> String {
    format!("{} at {}", node.name, node.address)
}

/// Folders that hold a label or its checksum, in order. What was never finished has a name that begins with a point.
fn find(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut open = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = open.pop() {
        if folder.join(LABEL).exists() || folder.join(LABEL_SUM).exists() {
            found.push(folder);
            continue;
        }
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && !hidden && depth < DEPTH_MAX {
                open.push((entry.path(), depth + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}
