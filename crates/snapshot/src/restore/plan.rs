//! Who goes where: each old address to one new one, each role's files to the data folder of its server, and the cluster
//! file that names the coordinators at their new addresses.

use crate::cluster_file::ClusterFile;
use crate::error::Error;
use crate::manifest::text;
use crate::name::{Address, Role, SnapshotUid};
use crate::restore::{Refused, Set, belongs, check};
use crate::tree::{Entry, Kind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// New addresses by old ones, one to one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mapping(BTreeMap<Address, Address>);

impl Mapping {
    /// Of `OLD=NEW` each, and of the lines of a file (`OLD=NEW` or `OLD NEW`, comments after `#`).
    pub fn read(pairs: &[String], file: Option<&Path>) -> Result<Mapping, Error> {
        Mapping::read_named(pairs, file, &|_| Ok(None))
    }

    /// The same, where a server may also go by a name, which `named` knows the address of.
    pub(crate) fn read_named(
        pairs: &[String],
        file: Option<&Path>,
        named: &dyn Fn(&str) -> Result<Option<Address>, Error>,
    ) -> Result<Mapping, Error> {
        let text = match file {
            Some(path) => fs::read_to_string(path).map_err(Error::io("read", path))?,
            None => String::new(),
        };
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let mut mapping = Mapping::default();
        for pair in lines.filter(|line| !line.is_empty()).chain(pairs.iter().map(String::as_str)) {
            let bad = || Refused::NoMapping(pair.to_owned());
            let (old, new) =
                pair.split_once('=').or_else(|| pair.split_once(char::is_whitespace)).ok_or_else(bad)?;
            let address = |text: &str| text.trim().parse::<Address>().map_err(|_| bad());
            let old = match named(old.trim())? {
                Some(old) => old,
                None => address(old)?,
            };
            mapping.add(old, address(new)?)?;
        }
        Ok(mapping)
    }

    pub(crate) fn olds(&self) -> impl Iterator<Item = &Address> {
        self.0.keys()
    }

    fn add(&mut self, old: Address, new: Address) -> Result<(), Refused> {
        if let Some((first, _)) = self.0.iter().find(|(other, taken)| **taken == new && **other != old) {
            return Err(Refused::OneForTwo { new, first: first.clone(), second: old });
        }
        match self.0.insert(old.clone(), new.clone()) {
            Some(first) if first != new => Err(Refused::MappedTwice { old, first, second: new }),
            _ => Ok(()),
        }
    }

    /// A server of which nothing is said stays where it was.
    pub(crate) fn stays(&mut self, old: &Address) -> Result<(), Refused> {
        if self.0.contains_key(old) { Ok(()) } else { self.add(old.clone(), old.clone()) }
    }

    pub(crate) fn of(&self, old: &Address) -> Result<Address, Refused> {
        self.0.get(old).cloned().ok_or_else(|| Refused::NotMapped(old.clone()))
    }
}

/// What goes where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Plan {
    /// The snapshot.
    #[serde(with = "text")]
    pub uid: SnapshotUid,
    /// The new cluster file.
    pub cluster_file: String,
    /// By old address.
    pub machines: Vec<Machine>,
    /// The folders that the set was read from.
    #[serde(skip)]
    pub(crate) folders: Vec<PathBuf>,
}

/// A server of the new cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Machine {
    /// Where it was.
    #[serde(with = "text")]
    pub old: Address,
    /// Where it is to be.
    #[serde(with = "text")]
    pub new: Address,
    /// Machine, zone and so on, which it should be started with again.
    pub locality: BTreeMap<String, String>,
    /// What it was started with.
    pub command_line: Vec<String>,
    /// Version of the server.
    pub server_version: Option<String>,
    /// What its data folder is put together from.
    pub parts: Vec<Part>,
}

/// What of an image goes into a data folder.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Part {
    /// The image's role.
    #[serde(with = "text")]
    pub role: Role,
    /// Where its files are.
    pub image: PathBuf,
    /// When it was made.
    pub created: Option<String>,
    /// How many files.
    pub files: usize,
    /// How long they are together.
    pub bytes: u64,
    /// Whether their checksums are known.
    pub checksums: bool,
    /// What the image was when it was made, as far as that is known.
    #[serde(skip)]
    pub(crate) entries: Option<Vec<Entry>>,
}

impl Plan {
    /// The way from a set to new addresses. Refuses a set that is not whole, and a mapping that is not one to one.
    pub fn new(set: &Set, mapping: &Mapping) -> Result<Plan, Error> {
        let old = check(set)?;
        let addresses = set.addresses();
        let named = |address: &Address| {
            addresses.contains(address) || old.coordinators.iter().any(|c| c.address == *address)
        };
        if let Some(stranger) = mapping.0.keys().find(|address| !named(address)) {
            return Err(Refused::NotInSet(stranger.clone()).into());
        }
        let machines =
            addresses.iter().map(|address| machine(set, address, mapping)).collect::<Result<_, _>>()?;
        let cluster_file = moved(&old, mapping)?.to_string();
        Ok(Plan { uid: set.uid.clone(), cluster_file, machines, folders: set.folders.clone() })
    }
}

fn machine(set: &Set, old: &Address, mapping: &Mapping) -> Result<Machine, Refused> {
    let images: Vec<_> = set.images.values().filter(|image| image.address == *old).collect();
    let parts = images.iter().map(|image| {
        let files = || image.found.iter().filter(|e| e.kind == Kind::File && belongs(image.role, &e.path));
        let summed = |e: &Entry| e.kind != Kind::File || e.blake3.is_some();
        Part {
            role: image.role,
            image: image.data.clone(),
            created: image.created.clone(),
            files: files().count(),
            bytes: files().map(|entry| entry.size).sum(),
            checksums: image.entries.as_ref().is_some_and(|entries| entries.iter().all(summed)),
            entries: image.entries.clone(),
        }
    });
    let parts = parts.collect();
    let mut locality = BTreeMap::new();
    images.iter().for_each(|image| locality.extend(image.locality.clone()));
    Ok(Machine {
        old: old.clone(),
        new: mapping.of(old)?,
        locality,
        command_line: images
            .iter()
            .map(|image| image.command_line.clone())
            .find(|c| !c.is_empty())
            .unwrap_or_default(),
        server_version: images.iter().find_map(|image| image.version.clone()),
        parts,
    })
}

/// The same cluster with its coordinators elsewhere.
fn moved(old: &ClusterFile, mapping: &Mapping) -> Result<ClusterFile, Refused> {
    let mut new = old.clone();
    for coordinator in &mut new.coordinators {
        coordinator.address = mapping.of(&coordinator.address)?;
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[&str]) -> Result<Mapping, Error> {
        Mapping::read(&pairs.iter().map(|pair| (*pair).to_owned()).collect::<Vec<_>>(), None)
    }

    #[test]
    fn a_mapping_is_one_to_one() {
        let mapping =
            read(&["10.0.0.1:1=10.0.1.1:1", "10.0.0.2:1=10.0.0.1:1", "10.0.0.1:1=10.0.1.1:1"]).unwrap();
        assert_eq!(mapping.of(&"10.0.0.2:1".parse().unwrap()).unwrap().to_string(), "10.0.0.1:1");
        for (pairs, said) in [
            (&["10.0.0.1:1=a:1", "10.0.0.1:1=b:1"][..], "10.0.0.1:1 is mapped to a:1 and to b:1"),
            (&["10.0.0.1:1=a:1", "10.0.0.2:1=a:1"][..], "10.0.0.1:1 and 10.0.0.2:1 are both mapped to a:1"),
            (&["10.0.0.1:1"][..], "'10.0.0.1:1' is no mapping"),
            (&["10.0.0.1=10.0.0.2"][..], "'10.0.0.1=10.0.0.2' is no mapping"),
        ] {
            let error = read(pairs).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_file_of_mappings_has_comments_and_both_forms() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        fs::write(&path, "# old new\n10.0.0.1:1 10.0.1.1:1 # first\n\n10.0.0.2:1=10.0.1.2:1\n").unwrap();
        let mapping = Mapping::read(&["10.0.0.3:1=10.0.1.3:1".to_owned()], Some(&path)).unwrap();
        assert_eq!(mapping.0.len(), 3);
    }
}
