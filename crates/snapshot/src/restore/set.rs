//! Reads a set of images, in each of the forms that programs leave them in:
//!
//! * `UID/ADDRESS/ROLE/manifest.json`, by `snap-create`;
//! * `UID/ADDRESS/ROLE/{files/,arguments,parent-cmdline,fdb.cluster,created}`, by a script that keeps what it was told;
//! * `UID/ROLE/...files`, by the script of FoundationDB's page; whose they are, the caller says.

use crate::cluster_file::ClusterFile;
use crate::create::FILES;
use crate::error::Error;
use crate::manifest::Manifest;
use crate::name::{Address, Role, SnapshotUid};
use crate::restore::Refused;
use crate::server::{Options, split_command_line};
use crate::tree::Entry;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A folder with images of one snapshot: `DIR`, or `ADDRESS=DIR` where the folder does not tell the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// Where.
    pub folder: PathBuf,
    /// The server that its images are of.
    pub address: Option<Address>,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        if let Some((address, folder)) = text.split_once('=')
            && let Ok(address) = address.parse()
        {
            return Ok(Source { folder: folder.into(), address: Some(address) });
        }
        Ok(Source { folder: text.into(), address: None })
    }
}

/// Where the files of an image are that is a snapshot of a volume: `ADDRESS/ROLE=DIR`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// The server.
    pub address: Address,
    /// The role.
    pub role: Role,
    /// Its data folder in the mounted snapshot.
    pub folder: PathBuf,
}

impl FromStr for Attached {
    type Err = String;

    fn from_str(text: &str) -> Result<Attached, String> {
        let bad = || format!("'{text}' is not ADDRESS/ROLE=DIR");
        let (image, folder) = text.split_once('=').ok_or_else(bad)?;
        let (address, role) = image.split_once('/').ok_or_else(bad)?;
        let address = address.parse().map_err(|error: crate::name::InvalidAddress| error.to_string())?;
        let role = role.parse().map_err(|error: crate::name::InvalidRole| error.to_string())?;
        Ok(Attached { address, role, folder: folder.into() })
    }
}

/// An image, and what it says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// Whose place it has.
    pub address: Address,
    /// Of which role.
    pub role: Role,
    /// Its folder.
    pub place: PathBuf,
    /// Its files.
    pub data: PathBuf,
    /// The snapshot that it says it is of.
    pub said_uid: Option<String>,
    /// The server that it says it is of.
    pub said_address: Option<Address>,
    /// The role that it says it is of.
    pub said_role: Option<Role>,
    /// The cluster file of its server.
    pub cluster_file: Option<ClusterFile>,
    /// What its server was started with.
    pub command_line: Vec<String>,
    /// Machine, zone and so on.
    pub locality: BTreeMap<String, String>,
    /// Version of its server.
    pub version: Option<String>,
    /// When it was made.
    pub created: Option<String>,
    /// Its files, where it knows them.
    pub entries: Option<Vec<Entry>>,
    /// What is in `data` now, without checksums.
    pub found: Vec<Entry>,
    /// The identity of its server's process, as the image holds it.
    pub process_id: Option<Vec<u8>>,
    /// The identity of its cluster, as the image holds it.
    pub cluster_id: Option<Vec<u8>>,
}

/// All images that were named, each in the place that it has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// The snapshot.
    pub uid: SnapshotUid,
    /// By server and role.
    pub images: BTreeMap<(Address, Role), Image>,
    /// The folders that it was read from.
    pub folders: Vec<PathBuf>,
}

impl Set {
    /// Reads all of `sources`. `cluster_file` is for images that hold none.
    pub fn read(
        sources: &[Source],
        attached: &[Attached],
        cluster_file: Option<&Path>,
    ) -> Result<Set, Error> {
        let cluster_file = cluster_file.map(read_cluster_file).transpose()?;
        let mut set: Option<Set> = None;
        for source in sources {
            let folder = fs::canonicalize(&source.folder).map_err(Error::io("find", &source.folder))?;
            let named = folder.file_name().and_then(|name| name.to_str()?.parse::<SnapshotUid>().ok());
            let uid = named.ok_or_else(|| Refused::NoUid(folder.clone()))?;
            let set = set.get_or_insert_with(|| Set {
                uid: uid.clone(),
                images: BTreeMap::new(),
                folders: Vec::new(),
            });
            if set.uid != uid {
                return Err(Refused::TwoSets { folder, uid: set.uid.clone(), other: uid }.into());
            }
            let before = set.images.len();
            for (address, role, place) in places(&folder, source.address.as_ref())? {
                let mut image = Image::read(&address, role, &place, attached)?;
                image.cluster_file = image.cluster_file.or_else(|| cluster_file.clone());
                if let Some(first) = set.images.insert((address.clone(), role), image) {
                    return Err(Refused::Twice { address, role, first: first.place, second: place }.into());
                }
            }
            if set.images.len() == before {
                return Err(Refused::Empty(folder).into());
            }
            set.folders.push(folder);
        }
        set.ok_or_else(|| Refused::Empty(PathBuf::from("the list of folders")).into())
    }

    /// The servers, in order.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        let mut addresses: Vec<_> = self.images.keys().map(|(address, _)| address.clone()).collect();
        addresses.dedup();
        addresses
    }
}

fn read_cluster_file(path: &Path) -> Result<ClusterFile, Error> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    text.parse().map_err(|why| Error::ClusterFile { path: path.to_owned(), why })
}

/// The folders of images below that of a set. What is named otherwise is none: unfinished images, lost+found.
fn places(folder: &Path, address: Option<&Address>) -> Result<Vec<(Address, Role, PathBuf)>, Error> {
    let mut places = Vec::new();
    for (name, place) in folders(folder)? {
        if let Ok(role) = name.parse() {
            let address = address.ok_or_else(|| Refused::NoAddress(folder.to_owned()))?;
            places.push((address.clone(), role, place));
        } else if let Ok(named) = name.parse::<Address>() {
            for (name, place) in folders(&place)? {
                places.extend(name.parse().ok().map(|role| (named.clone(), role, place)));
            }
        }
    }
    Ok(places)
}

fn folders(folder: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        if let (true, Ok(name)) = (entry.path().is_dir(), entry.file_name().into_string()) {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

impl Image {
    fn read(address: &Address, role: Role, place: &Path, attached: &[Attached]) -> Result<Image, Error> {
        let mut image = match Manifest::read(place)? {
            Some(manifest) => Image::with_manifest(address, role, place, manifest, attached)?,
            None if place.join(FILES).is_dir() => Image::recorded(address, role, place)?,
            None if place.join("parent-cmdline").exists() => {
                return Err(Refused::NoFiles(place.to_owned()).into());
            }
            None => Image { data: place.to_owned(), ..Image::bare(address, role, place) },
        };
        if !image.data.is_dir() {
            return Err(Refused::NoFiles(place.to_owned()).into());
        }
        image.found = crate::tree::list_tree(&image.data)?;
        image.process_id = image.identity("processId")?;
        image.cluster_id = image.identity("clusterId")?;
        Ok(image)
    }

    fn bare(address: &Address, role: Role, place: &Path) -> Image {
        Image {
            address: address.clone(),
            role,
            place: place.to_owned(),
            data: place.join(FILES),
            said_uid: None,
            said_address: None,
            said_role: None,
            cluster_file: None,
            command_line: Vec::new(),
            locality: BTreeMap::new(),
            version: None,
            created: None,
            entries: None,
            found: Vec::new(),
            process_id: None,
            cluster_id: None,
        }
    }

    fn with_manifest(
        address: &Address,
        role: Role,
        place: &Path,
        manifest: Manifest,
        attached: &[Attached],
    ) -> Result<Image, Error> {
        let wanted = |at: &&Attached| at.address == *address && at.role == role;
        let data = match (attached.iter().find(wanted), &manifest.data) {
            (Some(attached), _) => attached.folder.clone(),
            (None, Some(data)) => place.join(data),
            (None, None) => {
                let volume = manifest.volume.unwrap_or_else(|| manifest.name.clone());
                let (place, address) = (place.to_owned(), address.clone());
                return Err(Refused::NotAttached { place, volume, address, role }.into());
            }
        };
        let unreadable = |why| Refused::Unreadable(place.to_owned(), why);
        let cluster_file =
            manifest.cluster_file.map(|text| text.parse::<ClusterFile>().map_err(unreadable)).transpose()?;
        Ok(Image {
            data,
            said_uid: Some(manifest.uid.to_string()),
            said_address: Some(manifest.address),
            said_role: Some(manifest.role),
            cluster_file,
            command_line: manifest.command_line,
            locality: manifest.locality,
            version: Some(manifest.server_version),
            created: Some(manifest.created),
            entries: manifest.entries,
            ..Image::bare(address, role, place)
        })
    }

    /// With what a script kept: its arguments one per line, the server's command line, its cluster file.
    fn recorded(address: &Address, role: Role, place: &Path) -> Result<Image, Error> {
        let optional = |name: &str| match fs::read(place.join(name)) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &place.join(name))(error)),
        };
        let unreadable = |why| Error::from(Refused::Unreadable(place.to_owned(), why));
        let arguments = optional("arguments")?.unwrap_or_default();
        let argument = |name: &str| {
            let mut lines = arguments.lines().skip_while(|line| *line != name);
            lines.nth(1).map(str::to_owned)
        };
        let command_line = optional("parent-cmdline")?.unwrap_or_default();
        let command_line = split_command_line(command_line.trim_end_matches('\n').as_bytes());
        let options = Options::read(&command_line);
        let said_role = argument("--role").map(|text| text.parse::<Role>()).transpose();
        let cluster_file = optional("fdb.cluster")?.map(|text| text.parse::<ClusterFile>()).transpose();
        Ok(Image {
            said_uid: argument("--uid"),
            // `auto:PORT` does not tell.
            said_address: options.public_address.and_then(|text| text.parse().ok()),
            said_role: said_role.map_err(|error| unreadable(error.to_string()))?,
            cluster_file: cluster_file.map_err(unreadable)?,
            command_line,
            locality: options.locality,
            version: argument("--version"),
            created: optional("created")?.map(|text| text.trim().to_owned()),
            ..Image::bare(address, role, place)
        })
    }

    fn identity(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.data.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }
}
