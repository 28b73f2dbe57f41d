//! The images below a `--destdir`: which there are, whether they are whole, and away with them.

use crate::create::{self, FILES, remove};
use crate::error::Error;
use crate::manifest::{MANIFEST, Manifest, Method};
use crate::name::{Address, Role, SnapshotUid};
use crate::tree::{Damage, Depth, compare_tree};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// Which images.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// Of this snapshot.
    pub uid: Option<SnapshotUid>,
    /// Of this server.
    pub address: Option<Address>,
    /// Of this role.
    pub role: Option<Role>,
}

/// A folder that an image was made in.
#[derive(Debug)]
pub struct Found {
    /// The snapshot.
    pub uid: SnapshotUid,
    /// The server.
    pub address: Address,
    /// Where.
    pub folder: PathBuf,
    /// What it says about itself; `None` if it was never finished.
    pub manifest: Result<Option<Manifest>, Error>,
}

/// What a check of an image came to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Verdict {
    /// Nothing speaks against it.
    pub whole: bool,
    /// What was looked at: `content`, `sizes`, `volume`, `manifest`, or `nothing`.
    pub checked: &'static str,
    /// What is wrong.
    pub damages: Vec<String>,
}

/// All that match, in order of UID, address and role; unfinished ones too.
pub fn find(destdir: &Path, which: &Which) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for (uid, folder) in folders::<SnapshotUid>(destdir)? {
        if which.uid.as_ref().is_some_and(|wanted| *wanted != uid) {
            continue;
        }
        for (address, folder) in folders::<Address>(&folder)? {
            if which.address.as_ref().is_none_or(|wanted| *wanted == address) {
                found.extend(images(&uid, &address, &folder, which.role)?);
            }
        }
    }
    Ok(found)
}

fn images(
    uid: &SnapshotUid,
    address: &Address,
    folder: &Path,
    wanted: Option<Role>,
) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for (name, folder) in folders::<String>(folder)? {
        // `.storage.4711` was left by a process that was killed while it made an image of storage.
        let finished = !name.starts_with('.');
        let role = name.trim_start_matches('.').split('.').next().unwrap_or_default().parse::<Role>();
        if role.is_ok_and(|role| wanted.is_none_or(|wanted| wanted == role)) {
            let manifest = if finished { Manifest::read(&folder) } else { Ok(None) };
            found.push(Found { uid: uid.clone(), address: address.clone(), folder, manifest });
        }
    }
    Ok(found)
}

/// Folders (no links to such) whose names can be read as `T`, in order of their names.
fn folders<T: std::str::FromStr>(folder: &Path) -> Result<Vec<(T, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let (true, Some(name)) = (is_folder, entry.file_name().to_str().and_then(|name| name.parse().ok()))
        {
            found.push((entry.file_name(), name, entry.path()));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found.into_iter().map(|(_, name, path)| (name, path)).collect())
}

/// Looks at all that can be looked at.
#[must_use]
pub fn verify(image: &Found) -> Verdict {
    let verdict = |checked, damages: Vec<String>| Verdict { whole: damages.is_empty(), checked, damages };
    let manifest = match &image.manifest {
        Err(error) => return verdict("manifest", vec![error.to_string()]),
        Ok(None) => return verdict("manifest", vec![format!("it was never finished: it has no {MANIFEST}")]),
        Ok(Some(manifest)) => manifest,
    };
    let placed = create::image_folder(Path::new(""), &manifest.uid, &manifest.address, manifest.role);
    if !image.folder.ends_with(&placed) {
        return verdict("manifest", vec![format!("its manifest says that it is {}", placed.display())]);
    }
    match (manifest.method, &manifest.entries) {
        (Method::Copy | Method::Reflink, Some(entries)) => {
            let checked = if manifest.method == Method::Copy { "content" } else { "sizes" };
            let files = image.folder.join(FILES);
            match compare_tree(&files, entries, Depth::Content, &|_| true) {
                Ok(damages) => verdict(checked, damages.iter().map(Damage::to_string).collect()),
                Err(error) => verdict(checked, vec![error.to_string()]),
            }
        }
        (Method::Command, _) => verdict("nothing", Vec::new()),
        _ => {
            let checked = create::check_volume(&image.folder, manifest);
            verdict("volume", checked.err().iter().map(ToString::to_string).collect())
        }
    }
}

/// Takes images away, each with its volume, and folders that are empty afterwards.
pub fn delete(destdir: &Path, uid: &SnapshotUid, which: &Which) -> Result<Vec<Found>, Error> {
    let found = find(destdir, &Which { uid: Some(uid.clone()), ..which.clone() })?;
    if found.is_empty() {
        return Err(Error::NoImages { uid: uid.clone(), place: destdir.to_owned() });
    }
    for image in &found {
        // A manifest that cannot be read does not say which volume is its own; then there may be one left.
        remove(&image.folder, image.manifest.as_ref().ok().and_then(Option::as_ref))?;
        for folder in image.folder.ancestors().skip(1).take(2) {
            // Not empty, as long as others are there.
            let _ = fs::remove_dir(folder);
        }
    }
    Ok(found)
}
