//! The objects of a volume: how full they are, and what of the block store rows and sessions explain.

use super::store::Store;
use super::{Desk, Looked, Stop};
use crate::machine::SharedView;
use chronofs_blocks::parse_object_name;
use chronofs_blocks::work::off_thread;
use chronofs_core::{ObjectId, SessionId, Version};
use chronofs_namespace::{Judged, judge, list_objects, tally};
use chronofs_wire::analyze::{Counted, Fill, News, Objects, Progress, Strange};
use std::sync::Arc;

/// Rows at once.
const PAGE: usize = 1024;
/// Bounds of how much of an object is needed, in percent.
const FILLS: [u64; 5] = [25, 50, 75, 95, 100];
/// How many objects that nothing explains are named.
const EXAMPLES_MAX: usize = 20;

/// Looks at rows first, and then at what is stored.
pub(super) async fn look(desk: &Desk, volume: Looked) -> Result<Objects, Stop> {
    let (reads, of) = (volume.rows().await?, volume.clone());
    let found = off_thread(move || -> Result<Objects, Stop> {
        let tally = tally(&reads, of.index)?;
        let counted = |sum: chronofs_namespace::rows::Sum| Counted { count: sum.count, bytes: sum.bytes };
        let mut found = Objects {
            at_ns: reads.0.version().0,
            small: counted(tally.staged),
            retired: counted(tally.retired),
            condemned: counted(tally.condemned),
            fills: FILLS.map(|percent| Fill { up_to_percent: percent, ..Fill::default() }).to_vec(),
            ..Objects::default()
        };
        let mut after = None;
        loop {
            let page = list_objects(&reads, of.index, after, PAGE)?;
            for (id, refs) in page.iter().filter(|(_, refs)| refs.rows > 0) {
                let who = if id.session == SessionId::SERVER { &mut found.packed } else { &mut found.direct };
                add(who, refs.bytes);
                let percent = (refs.named.saturating_mul(100)).checked_div(refs.bytes).unwrap_or(0).min(100);
                if let Some(fill) = found.fills.iter_mut().find(|fill| percent <= fill.up_to_percent) {
                    fill.objects += 1;
                    fill.bytes += refs.bytes;
                    fill.needed_bytes += refs.named;
                }
            }
            after = page.last().map(|(id, _)| *id);
            if page.len() < PAGE {
                return Ok(found);
            }
        }
    });
    listed(desk, &volume, found.await??).await
}

/// Adds up what the block store lists.
async fn listed(desk: &Desk, volume: &Looked, mut found: Objects) -> Result<Objects, Stop> {
    each_judged(desk, volume, |name, bytes, _, judged| match judged {
        Judged::Known => add(&mut found.known, bytes),
        Judged::Open => add(&mut found.open, bytes),
        Judged::Garbage => add(&mut found.garbage, bytes),
        Judged::Quarantined(reason) => {
            add(&mut found.quarantined, bytes);
            if found.examples.len() < EXAMPLES_MAX {
                found.examples.push(Strange { object: name, bytes, reason: reason.to_owned() });
            }
        }
    })
    .await?;
    Ok(found)
}

/// Judges what the block store lists of a volume, each page by rows that are read after it came. `take` gets each object's
/// name, bytes and id.
pub(super) async fn each_judged(
    desk: &Desk,
    volume: &Looked,
    mut take: impl FnMut(String, u64, ObjectId, Judged),
) -> Result<(), Stop> {
    let store = Store::of(volume)?;
    let (mut from, mut listed) = (None, 0);
    loop {
        let page = store.page(from).await?;
        let now = volume.collector.ask(|core, steady_ns| {
            let recovering = core.machine.figures().recovering;
            let before = core.machine.collects_before(steady_ns).filter(|_| !recovering);
            (core.engine.view(), before.unwrap_or(Version::ZERO))
        });
        let (view, over_since) = now.await.ok_or(Stop::Stops)?;
        let (of, names) = (volume.clone(), page.names);
        listed += names.len() as u64;
        let judged = off_thread(move || -> Result<Vec<_>, Stop> {
            let reads = SharedView(Arc::clone(&view));
            let mut judged = Vec::new();
            for (name, bytes) in names {
                let own = parse_object_name(&name).filter(|(id, _)| *id == of.id);
                let Some((_, object)) = own else { continue };
                let found = judge(&reads, of.index, &of.row, object, over_since)?;
                judged.push((name, bytes, object, found));
            }
            Ok(judged)
        });
        for (name, bytes, object, judged) in judged.await?? {
            take(name, bytes, object, judged);
        }
        desk.tell(News::At(Progress { listed, ..Progress::default() })).await;
        from = match page.next {
            Some(next) => Some(next),
            None => return Ok(()),
        };
    }
}

fn add(sum: &mut Counted, bytes: u64) {
    sum.count += 1;
    sum.bytes += bytes;
}
