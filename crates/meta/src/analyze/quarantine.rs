//! What nothing explains among the objects of a volume, each by its name, for whoever decides what becomes of it.
//!
//! Nothing is deleted here. That an object of another incarnation is not needed only the clone can know, or the source, that
//! stored it, and one of this incarnation may be of metadata that is newer than these.

use super::objects::each_judged;
use super::store::Store;
use super::{Desk, Looked, Stop};
use chronofs_blocks::object_name;
use chronofs_core::ObjectId;
use chronofs_namespace::Judged;
use chronofs_wire::analyze::{Counted, News, QuarantinedObject};
use futures::StreamExt;

/// Requests to the block store at once: clients have theirs, too.
const AT_ONCE: usize = 8;
/// So many are prepared at once.
const BATCH: usize = 256;
/// So many are held in memory, about 50 MB.
const HELD_MAX: usize = 1 << 20;

/// An object that nothing explains, with its length and why not.
type Strange = (ObjectId, u64, &'static str);

/// Tells of each, and how much it is.
pub(super) async fn look(desk: &Desk, volume: Looked) -> Result<Counted, Stop> {
    let mut strange = Vec::<Strange>::new();
    each_judged(desk, &volume, |_, bytes, object, judged| match judged {
        Judged::Quarantined(reason) if strange.len() <= HELD_MAX => strange.push((object, bytes, reason)),
        _ => {}
    })
    .await?;
    if strange.len() > HELD_MAX {
        return Err(Stop::Failed(format!(
            "more than {HELD_MAX} objects are explained by nothing, which are not named one by one: chronofs analyze objects counts them"
        )));
    }
    let store = Store::of(&volume)?;
    let mut sum = Counted::default();
    for batch in strange.chunks(BATCH) {
        let looking = batch.iter().map(|found| looked_at(&store, &volume, *found));
        let mut looking = futures::stream::iter(looking.collect::<Vec<_>>()).buffered(AT_ONCE);
        while let Some(object) = looking.next().await {
            let object = object?;
            sum.count += 1;
            sum.bytes += object.bytes;
            desk.tell(News::Quarantined(Box::new(object))).await;
        }
    }
    Ok(sum)
}

async fn looked_at(
    store: &Store,
    volume: &Looked,
    (object, bytes, reason): Strange,
) -> Result<QuarantinedObject, Stop> {
    let name = object_name(volume.id, object);
    let stored_ns = store.stored_ns(&name).await?;
    let incarnation = object.incarnation;
    Ok(QuarantinedObject { object: name, bytes, incarnation, stored_ns, reason: reason.to_owned() })
}
