//! Whether a set is whole: counted against its own members and the record of its snapshot, and every byte as its label says.

use super::set::shown;
use super::{OwnImage, OwnSet, Refused};
use crate::error::Error;
use crate::label::{LABEL, LABEL_SUM};
use crate::name::Role;
use crate::protocol::{Cut, Record};
use crate::tree::{Depth, compare_tree};

/// What proves that a set is one.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    /// What the coordinator said at the end.
    Record(&'a Record),
    /// The labels alone: they are written when all images are made, of servers that held their logs all the time.
    Labels,
    /// Nothing is at hand.
    None,
}

/// Refuses a set that is not whole. Nothing but labels is read.
pub fn check(set: &OwnSet, proof: Proof<'_>) -> Result<(), Refused> {
    let roles = || set.nodes.iter().flat_map(|node| node.roles.iter().map(move |role| (node, *role)));
    let is_here = |id: &str, role: Role| set.images.contains_key(&(id.to_owned(), role));
    let coordinators: Vec<String> =
        roles().filter(|(_, role)| *role == Role::Coord).map(|(node, _)| shown(node)).collect();
    if !set.images.keys().any(|(_, role)| *role == Role::Coord) {
        return Err(Refused::NoCoordinator(coordinators.join(", ")));
    }
    if let Some((node, role)) = roles().find(|(node, role)| !is_here(&node.id, *role)) {
        return Err(Refused::Missing { node: shown(node), role });
    }
    for node in &set.nodes {
        cut_of(set, &node.id)?;
    }
    match proof {
        Proof::None => Err(Refused::Uncommitted(set.attempt.uid.clone())),
        Proof::Labels => Ok(()),
        Proof::Record(record) => committed(set, record),
    }
}

/// The cut of a server that has one; its images agree on it.
pub(super) fn cut_of(set: &OwnSet, id: &str) -> Result<Option<Cut>, Refused> {
    let image = |role: Role| set.images.get(&(id.to_owned(), role));
    let (storage, tlog) = (image(Role::Storage), image(Role::Tlog));
    let mut cut = None;
    // A log server has the logs of others, whose cuts their own images say.
    for image in [storage, storage.and(tlog)].into_iter().flatten() {
        cut = Some(image.label.cut.ok_or_else(|| Refused::NoCut(image.place.clone()))?);
    }
    match (storage, tlog) {
        (Some(storage), Some(tlog)) if storage.label.cut != tlog.label.cut => {
            let (storage, tlog) = (storage.place.clone(), tlog.place.clone());
            Err(Refused::Cuts { storage, tlog })
        }
        _ => Ok(cut),
    }
}

fn committed(set: &OwnSet, record: &Record) -> Result<(), Refused> {
    let (uid, intent) = (&set.attempt.uid, &record.intent);
    if intent.attempt.uid != *uid {
        return Err(Refused::OtherRecord { said: intent.attempt.uid.clone(), uid: uid.clone() });
    }
    if !record.state.has_images() {
        let state = format!("{:?}", record.state).to_lowercase();
        return Err(Refused::NotComplete { uid: uid.clone(), state });
    }
    if intent.attempt.number != set.attempt.number {
        return Err(Refused::OtherTry { said: intent.attempt.number, number: set.attempt.number });
    }
    if intent.nodes != set.nodes || intent.cluster != set.cluster {
        return Err(Refused::RecordMembers);
    }
    for node in &set.nodes {
        let (said, cut) = (record.cuts.get(&node.id).copied(), cut_of(set, &node.id)?);
        if said != cut {
            let text = |cut: Option<Cut>| cut.map_or_else(|| "nothing".to_owned(), |cut| cut.cut.to_string());
            return Err(Refused::RecordCut { node: shown(node), said: text(said), cut: text(cut) });
        }
    }
    for image in set.images.values() {
        // A server of an earlier version has not told the sums of its labels.
        let Some(sums) = record.labels.get(&image.label.node) else { continue };
        if sums.get(&image.label.role) != Some(&image.label_sum) {
            return Err(Refused::RecordLabel(image.place.clone()));
        }
    }
    Ok(())
}

/// Refuses an image of which any byte is not as its label says.
pub fn check_files(image: &OwnImage) -> Result<(), Error> {
    let damages = compare_tree(&image.place, &image.label.files, Depth::Content, &is_content)?;
    match damages.into_iter().next() {
        Some(damage) => Err(Error::Damaged { place: image.place.clone(), damage }),
        None => Ok(()),
    }
}

/// What of an image's folder is not the label.
pub(super) fn is_content(name: &str) -> bool {
    name != LABEL && name != LABEL_SUM
}
