//! Whether a set is whole: every image is of this snapshot, this server and this role, none is missing, none is cut off.
//!
//! What the images say about themselves counts, and what FoundationDB's own files give away. Images without checksums can
//! be damaged in ways that nobody could see here.

use crate::cluster_file::ClusterFile;
use crate::error::Error;
use crate::name::{Address, Role};
use crate::restore::{Image, Refused, Set};
use crate::tree::{Kind, differences};
use std::net::IpAddr;

/// Whether a file of a server's data folder belongs to a role; what belongs to none is made anew by the server.
#[must_use]
pub fn belongs(role: Role, name: &str) -> bool {
    match role {
        Role::Storage => name.starts_with("storage-"),
        Role::Tlog => name.starts_with("log"),
        Role::Coord => name.starts_with("coordination-") || matches!(name, "processId" | "clusterId"),
    }
}

const fn pattern(role: Role) -> &'static str {
    match role {
        Role::Storage => "storage-*",
        Role::Tlog => "log*",
        Role::Coord => "coordination-*",
    }
}

/// Refuses a set that is not whole; gives the cluster file that all its images agree on.
pub fn check(set: &Set) -> Result<ClusterFile, Error> {
    for image in set.images.values() {
        labels(set, image)?;
    }
    let cluster_file = one_cluster(set)?;
    members(set, &cluster_file)?;
    for image in set.images.values() {
        files(image)?;
    }
    identities(set)?;
    Ok(cluster_file)
}

/// What an image says it is, against the place that it has.
fn labels(set: &Set, image: &Image) -> Result<(), Refused> {
    let place = image.place.clone();
    if let Some(said) = image.said_uid.as_ref().filter(|said| *said != set.uid.as_str()) {
        return Err(Refused::Mixed { place, said: said.clone(), uid: set.uid.clone() });
    }
    if let Some(said) = image.said_address.as_ref().filter(|said| **said != image.address) {
        return Err(Refused::Swapped { place, said: said.clone(), address: image.address.clone() });
    }
    match image.said_role.filter(|said| *said != image.role) {
        Some(said) => Err(Refused::WrongRole { place, said, role: image.role }),
        None => Ok(()),
    }
}

fn one_cluster(set: &Set) -> Result<ClusterFile, Refused> {
    let mut with_file =
        set.images.values().filter_map(|image| Some((&image.place, image.cluster_file.as_ref()?)));
    let (other, first) = with_file.next().ok_or(Refused::NoClusterFile)?;
    let named = |file: &ClusterFile| format!("{}:{}", file.description, file.id);
    let coordinators = |file: &ClusterFile| {
        let mut texts: Vec<String> = file.coordinators.iter().map(ToString::to_string).collect();
        texts.sort();
        texts.join(",")
    };
    for (place, file) in with_file {
        let (place, other) = (place.clone(), other.clone());
        if file.description != first.description {
            return Err(Refused::TwoClusters { place, said: named(file), other, cluster: named(first) });
        }
        // The id changes together with the coordinators, also those that keep their addresses.
        if file.id != first.id || coordinators(file) != coordinators(first) {
            let (said, coordinators) = (coordinators(file), coordinators(first));
            return Err(Refused::Coordinators { place, said, other, coordinators });
        }
    }
    Ok(first.clone())
}

/// Nobody tells who was there. The cluster file names the coordinators; and a data folder, which each image holds in
/// whole where it was copied so, shows which roles its server has.
fn members(set: &Set, cluster_file: &ClusterFile) -> Result<(), Refused> {
    let coordinators: Vec<&Address> = cluster_file.coordinators.iter().map(|c| &c.address).collect();
    let of = |role: Role| set.images.values().filter(move |image| image.role == role);
    if of(Role::Coord).next().is_none() {
        let texts: Vec<String> = coordinators.iter().map(ToString::to_string).collect();
        return Err(Refused::NoCoordinators(texts.join(", ")));
    }
    if let Some(role) = [Role::Storage, Role::Tlog].into_iter().find(|role| of(*role).next().is_none()) {
        return Err(Refused::NoneOf(role));
    }
    let by_number = |address: &&&Address| address.host().trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let has_image = |address: &&&Address| set.images.contains_key(&((**address).clone(), Role::Coord));
    if let Some(missing) = coordinators.iter().filter(by_number).find(|address| !has_image(address)) {
        return Err(Refused::MissingCoordinator((*missing).clone()));
    }
    // A name of a host stands for an address that the file does not tell; so those are only counted.
    let unnamed: Vec<&Image> =
        of(Role::Coord).filter(|image| !coordinators.contains(&&image.address)).collect();
    let names: Vec<&&Address> = coordinators.iter().filter(|address| !has_image(address)).collect();
    if let Some(image) = unnamed.get(names.len()) {
        return Err(Refused::NotACoordinator { place: image.place.clone(), address: image.address.clone() });
    }
    if let Some(missing) = names.get(unnamed.len()) {
        return Err(Refused::MissingCoordinator((**missing).clone()));
    }
    for image in set.images.values() {
        let shows = |role: Role| image.found.iter().any(|entry| belongs(role, &entry.path));
        let missing = |role: &Role| shows(*role) && !set.images.contains_key(&(image.address.clone(), *role));
        if let Some(role) = [Role::Storage, Role::Tlog].into_iter().find(missing) {
            return Err(Refused::Missing {
                address: image.address.clone(),
                role,
                place: image.place.clone(),
            });
        }
    }
    Ok(())
}

/// The files of the image's role are there, whole, and as its manifest has them.
fn files(image: &Image) -> Result<(), Error> {
    let role = image.role;
    let own: Vec<_> = image.found.iter().filter(|entry| belongs(role, &entry.path)).collect();
    let says = |name: &str| {
        if role == Role::Coord { name.starts_with("coordination-") } else { belongs(role, name) }
    };
    if let Some(entries) = &image.entries
        && let Some(damage) =
            differences(entries, &image.found, &|name| belongs(role, name)).into_iter().next()
    {
        return Err(Error::Damaged { place: image.place.clone(), damage });
    }
    if !own.iter().any(|entry| says(&entry.path)) {
        return Err(Refused::Hollow { place: image.place.clone(), role, pattern: pattern(role) }.into());
    }
    let paged = |path: &str| path.ends_with(".sqlite") || path.ends_with(".fdq");
    let torn = own.iter().find(|e| e.kind == Kind::File && paged(&e.path) && !e.size.is_multiple_of(4096));
    match torn {
        Some(entry) => Err(Refused::Torn { file: image.data.join(&entry.path), size: entry.size }.into()),
        None => Ok(()),
    }
}

/// A server writes who it is into its data folder: the same in all its images, different in those of others.
fn identities(set: &Set) -> Result<(), Refused> {
    let images: Vec<&Image> = set.images.values().collect();
    for (n, image) in images.iter().enumerate() {
        for other in &images[..n] {
            let (place, before) = (image.place.clone(), other.place.clone());
            if let (Some(cluster), Some(other_cluster)) = (&image.cluster_id, &other.cluster_id)
                && cluster != other_cluster
            {
                let (said, cluster) = (shown(cluster), shown(other_cluster));
                return Err(Refused::ForeignCluster { place, said, other: before, cluster });
            }
            let (Some(process), Some(other_process)) = (&image.process_id, &other.process_id) else {
                continue;
            };
            match (image.address == other.address, process == other_process) {
                (true, false) => {
                    return Err(Refused::TwoProcesses {
                        place,
                        other: before,
                        address: image.address.clone(),
                    });
                }
                (false, true) => return Err(Refused::OneProcess { place, other: before }),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Enough of an identity to tell it from others: its last bytes that are not zero.
fn shown(identity: &[u8]) -> String {
    let end = identity.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    identity[end.saturating_sub(16)..end].iter().map(|byte| format!("{byte:02x}")).collect()
}
