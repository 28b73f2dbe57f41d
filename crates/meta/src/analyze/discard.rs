//! Deletes objects that nothing explains, each of which somebody has named.
//!
//! That nothing explains an object is no reason to delete it: a clone may need it, or a snapshot of a time that is lost here. So
//! beside the name it takes that nobody says so in the block store: no clone is registered as a reader, what describes the
//! incarnation that stored the object is of this cluster, and no pin of it is of a time that these metadata do not have.

use super::store::Store;
use super::{Desk, Looked, Stop};
use crate::machine::SharedView;
use chronofs_blocks::described::VOLUMES;
use chronofs_blocks::reader::READERS;
use chronofs_blocks::work::off_thread;
use chronofs_blocks::{Described, DescribedName, Pin, Trouble, parse_object_name};
use chronofs_core::{ObjectId, Version};
use chronofs_namespace::{Judged, judge, session};
use chronofs_wire::analyze::{DISCARD_MAX, DiscardedObject, News};
use futures::StreamExt;
use std::collections::BTreeMap;

/// Requests to the block store at once: clients have theirs, too.
const AT_ONCE: usize = 8;
/// So many are judged by one view.
const BATCH: usize = 256;

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) dry_run: bool,
    pub(super) names: Vec<String>,
}

/// Tells what becomes of each, and how many were deleted, or would be.
pub(super) async fn look(desk: &Desk, volume: Looked, asked: Asked) -> Result<u64, Stop> {
    if asked.names.len() > DISCARD_MAX {
        return Err(Stop::Failed(format!("more than {DISCARD_MAX} names at once: ask again for the others")));
    }
    let store = Store::of(&volume)?;
    let mut count = 0;
    for names in asked.names.chunks(BATCH) {
        may_delete(&volume).await?;
        let needed = Needed::read(&store, &volume).await?;
        let judged = judged(&volume, names.to_vec(), needed).await?;
        let each = judged.into_iter().map(|(name, refused)| one(&store, asked.dry_run, name, refused));
        let mut each = futures::stream::iter(each.collect::<Vec<_>>()).buffered(AT_ONCE);
        while let Some(object) = each.next().await {
            let object = object?;
            count += u64::from(object.refused.is_none());
            desk.tell(News::Discarded(Box::new(object))).await;
        }
    }
    Ok(count)
}

/// Whether this server may have anything of the volume deleted at all.
async fn may_delete(volume: &Looked) -> Result<(), Stop> {
    let index = volume.index;
    let why = volume.collector.ask(move |core, steady_ns| core.machine.deletes_nothing(index, steady_ns));
    match why.await.ok_or(Stop::Stops)? {
        None => Ok(()),
        Some(why) => {
            Err(Stop::Failed(format!("nothing of volume {} may be deleted now: {why}", volume.row.spec.name)))
        }
    }
}

/// What is said in the block store of who may need what nothing explains here.
struct Needed {
    own: String,
    /// Who stored as this incarnation of the volume.
    clusters: BTreeMap<u16, Vec<String>>,
    /// Pins of other incarnations, of a time that these metadata do not have.
    pinned: BTreeMap<u16, String>,
}

impl Needed {
    async fn read(store: &Store, volume: &Looked) -> Result<Needed, Stop> {
        let readers = store.notes(READERS).await?;
        if let Some((name, _)) = readers.first() {
            return Err(Stop::Failed(format!(
                "a clone reads what lies in this block store ({name}): have it detached there first (chronofs restore detach)"
            )));
        }
        let own = volume.collector.stores.owner().and_then(|owner| owner.cluster).unwrap_or_default();
        let mut needed = Needed { own, clusters: BTreeMap::new(), pinned: BTreeMap::new() };
        for (name, bytes) in store.notes(VOLUMES).await? {
            let Some(named) = DescribedName::parse(&name).filter(|named| named.volume == volume.id) else {
                continue;
            };
            let described = Described::read(&bytes)
                .map_err(|why| Stop::Failed(format!("{name} cannot be read: {why}")))?;
            needed.clusters.entry(named.incarnation).or_default().push(described.cluster);
        }
        let cut = volume.row.gaps.last().map_or(Version::ZERO, |(cut, _)| *cut);
        for (name, bytes) in store.pins().await? {
            let pin = Pin::decode(&name, &bytes).map_err(|error| Stop::Failed(error.to_string()))?;
            if pin.volume == volume.id && pin.incarnation != volume.row.incarnation && pin.to > cut {
                let whose = format!("{name} ({}: {})", pin.owner, pin.reason);
                needed.pinned.insert(pin.incarnation, whose);
            }
        }
        Ok(needed)
    }

    /// Why an object of this incarnation stays, if somebody may need it.
    fn refuses(&self, incarnation: u16) -> Option<String> {
        if let Some(pin) = self.pinned.get(&incarnation) {
            return Some(format!("a pin of a time that is lost here may need it: {pin}"));
        }
        let Some(clusters) = self.clusters.get(&incarnation) else {
            return Some("nothing in the block store says which cluster stored it".to_owned());
        };
        let other = clusters.iter().find(|cluster| **cluster != self.own)?;
        Some(format!("cluster {other} has stored it, and may need it: discard it there"))
    }
}

/// Each with the reason why it stays, if there is one.
async fn judged(
    volume: &Looked,
    names: Vec<String>,
    needed: Needed,
) -> Result<Vec<(String, Option<String>)>, Stop> {
    let view = volume.collector.ask(|core, _| core.engine.view());
    let (view, of) = (view.await.ok_or(Stop::Stops)?, volume.clone());
    let judging = off_thread(move || -> Result<Vec<_>, Stop> {
        let reads = SharedView(view);
        let judge = |name: String| -> Result<(String, Option<String>), Stop> {
            let refused = match parse_object_name(&name).filter(|(id, _)| *id == of.id) {
                None => Some("it is no name of an object of this volume".to_owned()),
                Some((_, object)) => stays(&reads, &of, object, &needed)?,
            };
            Ok((name, refused))
        };
        names.into_iter().map(judge).collect()
    });
    judging.await?
}

fn stays(
    reads: &SharedView,
    volume: &Looked,
    object: ObjectId,
    needed: &Needed,
) -> Result<Option<String>, Stop> {
    Ok(match judge(reads, volume.index, &volume.row, object, Version::ZERO)? {
        Judged::Known => Some("it is known: rows name it, or it is being deleted".to_owned()),
        Judged::Open | Judged::Garbage => {
            Some("it is known: it goes by itself if it is never used".to_owned())
        }
        Judged::Quarantined(_) if object.incarnation != volume.row.incarnation => {
            needed.refuses(object.incarnation)
        }
        // What a mount is granted next may be the name of it.
        Judged::Quarantined(_) => session(reads, object.session)?
            .is_some()
            .then(|| "a mount that runs may store under its name".to_owned()),
    })
}

async fn one(
    store: &Store,
    dry_run: bool,
    object: String,
    refused: Option<String>,
) -> Result<DiscardedObject, Stop> {
    if refused.is_some() {
        return Ok(DiscardedObject { object, refused });
    }
    match store.get(&object, 0, 1).await? {
        Err(error) if error.trouble == Trouble::Missing => {
            return Ok(DiscardedObject { object, refused: Some("it is not there".to_owned()) });
        }
        _ if dry_run => {}
        // It is there, whatever it is.
        _ => store.delete(&object).await?,
    }
    Ok(DiscardedObject { object, refused: None })
}
