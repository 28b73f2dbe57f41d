//! Clones of disk snapshots as readers in block stores, from both sides. As a clone this server registers before it serves
//! anybody, and looks afterwards whether the source keeps the snapshot. As a source it tells who is registered.

use crate::collect::Collector;
use crate::executor::{Ask, Input};
use crate::files::Folder;
use crate::kept::{is_of, own_sets};
use crate::restored::WRITING;
use crate::server::objects::Stores;
use crate::stores::open_marked;
use bytes::Bytes;
use chronofs_blocks::reader::{READERS, readers_of};
use chronofs_blocks::{Pin, Reader, StoreError, StorePort};
use chronofs_core::Version;
use chronofs_namespace::Foreign;
use chronofs_namespace::rows::Sum;
use chronofs_snapshot::protocol::Attempt;
use chronofs_snapshot::restore::own::Mark;
use chronofs_wire::admin::AssignedStore;
use chronofs_wire::identity::Sha256;
use chronofs_wire::question::Said;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// A block store that does not do it in this time is away.
const WITHIN: Duration = Duration::from_secs(20);

type Found = Vec<(String, Bytes)>;

/// What was last read of readers in each block store; none where that failed.
#[derive(Clone, Default)]
pub(crate) struct ReadersKnown(Arc<Mutex<Vec<KnownOf>>>);

type KnownOf = (Weak<dyn StorePort>, Option<Found>);

impl ReadersKnown {
    fn set(&self, store: &Arc<dyn StorePort>, found: Option<Found>) {
        let store = Arc::downgrade(store);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(of, _)| of.strong_count() > 0 && !of.ptr_eq(&store));
        known.push((store, found));
    }

    /// Whether that could be read since this store was opened.
    pub(crate) fn is_known(&self, store: &Arc<dyn StorePort>) -> bool {
        let store = Arc::downgrade(store);
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|(of, found)| of.ptr_eq(&store) && found.is_some())
    }

    /// The readers of these snapshots in all of these block stores; none while those of one are not known.
    pub(crate) fn of(
        &self,
        stores: &Stores,
        snapshots: &BTreeSet<Attempt>,
    ) -> Option<BTreeMap<String, Vec<String>>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut readers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (store, _) in stores.each() {
            let store = Arc::downgrade(&store);
            let (_, found) = known.iter().find(|(of, _)| of.ptr_eq(&store))?;
            for attempt in snapshots {
                let uid = attempt.uid.as_str();
                let of = readers_of(uid, found.as_ref()?);
                if !of.is_empty() {
                    readers.entry(uid.to_owned()).or_default().extend(of);
                }
            }
        }
        Some(readers)
    }
}

async fn within<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, String> {
    match tokio::time::timeout(WITHIN, work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("a block store has not answered for {} seconds", WITHIN.as_secs())),
    }
}

impl Collector {
    /// Reads who is registered in a block store.
    pub(crate) async fn read_readers(&self, store: &Arc<dyn StorePort>) {
        self.readers.set(store, within(store.notes(READERS)).await.ok());
    }
}

/// Who is registered as a reader of a snapshot, in all block stores, now; with `forget` they are had gone. Those of a snapshot
/// for which this server keeps nothing are none of its business: it may be one of them.
pub(crate) async fn answer_readers(collector: &Collector, snapshot: &str, forget: bool) -> Said {
    let mut readers = BTreeSet::new();
    let mut own = match collector.ask(|core, _| own_sets(core)).await {
        Some(Ok(own)) => own,
        Some(Err(stop)) => return Said::Trouble(format!("cannot say what it keeps: {stop}")),
        None => return Said::Trouble("is stopping".to_owned()),
    };
    own.extend(collector.strays.all());
    if !own.iter().any(|attempt| attempt.uid.as_str() == snapshot) {
        return Said::Readers(Vec::new());
    }
    for (store, _) in collector.stores.each() {
        let found = match within(store.notes(READERS)).await {
            Ok(found) => found,
            Err(why) => return Said::Trouble(why),
        };
        let mine = format!("{READERS}/{snapshot}/");
        for (name, _) in found.iter().filter(|(name, _)| forget && name.starts_with(&mine)) {
            if let Err(why) = within(store.remove_note(name)).await {
                return Said::Trouble(why);
            }
            tracing::warn!(name, "a clone is forgotten on demand: what it reads is not kept for it any more");
        }
        readers.extend(readers_of(snapshot, &found));
        if forget {
            collector.read_readers(&store).await;
        } else {
            collector.readers.set(&store, Some(found));
        }
    }
    Said::Readers(readers.into_iter().collect())
}

/// What this clone calls itself, whenever it starts.
fn reader(mark: &Mark) -> Reader {
    let text = format!("{} {} {:?}", mark.cluster, mark.node, mark.draw);
    let id = Uuid::from_slice(&Sha256::of(text.as_bytes()).0[..16]).unwrap_or_default();
    let since = Version(mark.began.unwrap_or_default());
    Reader::new(mark.uid.as_str(), id, &mark.cluster, (&mark.name, &mark.new), since)
}

/// The volumes that were in the set, each with whether the source has to pin it: of what is given up nobody reads anything.
async fn volumes_of_set(queue: &mpsc::Sender<Input>, cut: Version) -> Option<BTreeMap<Uuid, bool>> {
    let (sender, answer) = oneshot::channel();
    let ask: Ask = Box::new(move |core, _| {
        let there = core.machine.volumes().filter(|volume| !volume.row.is_gone() && volume.row.born <= cut);
        drop(sender.send(there.map(|volume| (volume.id(), !volume.row.is_given_up())).collect()));
    });
    queue.send(Input::Ask(ask)).await.ok()?;
    answer.await.ok()
}

/// Whether each of these volumes has a pin of this attempt that does not end.
fn is_kept(found: &[(String, Bytes)], attempt: &Attempt, volumes: &BTreeSet<Uuid>) -> bool {
    let pins = found.iter().filter_map(|(name, bytes)| Pin::decode(name, bytes).ok());
    let ours = pins.filter(|pin| is_of(pin, attempt) && pin.ends.is_none());
    let pinned: BTreeSet<Uuid> = ours.map(|pin| pin.volume).collect();
    volumes.is_subset(&pinned)
}

/// Of all block stores, none where that is not known: one that keeps nothing is enough for no, and yes takes all of them.
/// A no of before stays until all have been looked at.
fn kept_in_all(before: Option<bool>, each: &[Option<bool>]) -> Option<bool> {
    match each {
        [] => before,
        _ if each.contains(&Some(false)) => Some(false),
        _ if each.contains(&None) => before.filter(|kept| !kept),
        _ => Some(true),
    }
}

/// Nobody is served before it is known whether this is a clone, and of which volumes.
fn none_is_served(
    why: &str,
    wanted: &[(Uuid, AssignedStore)],
    stores: &mut HashMap<Uuid, Arc<dyn StorePort>>,
) -> BTreeMap<Uuid, String> {
    stores.clear();
    let why = format!("whether this clone must register as a reader is not known: {why}");
    wanted.iter().map(|(volume, _)| (*volume, why.clone())).collect()
}

/// Registers a clone in the block stores of the volumes that were in its set. Those where that cannot be done are taken out
/// of `stores`: nobody is served from there before. Gives why, by volume.
pub(crate) async fn register(
    folder: &Folder,
    queue: &mpsc::Sender<Input>,
    wanted: &[(Uuid, AssignedStore)],
    stores: &mut HashMap<Uuid, Arc<dyn StorePort>>,
) -> BTreeMap<Uuid, String> {
    let mut problems = BTreeMap::new();
    let _writing = WRITING.lock().await;
    let mut mark = match Mark::read(&folder.0) {
        Ok(Some(mark)) => mark,
        Ok(None) => return problems,
        Err(error) => return none_is_served(&error.to_string(), wanted, stores),
    };
    // In place of its source it reads nobody else's.
    let (Some(cut), false) = (mark.cut, mark.detached || mark.in_place) else { return problems };
    let Some(of_set) = volumes_of_set(queue, Version(cut.cut)).await else {
        return none_is_served("the server is stopping", wanted, stores);
    };
    let before = mark.clone();
    let reader = reader(&mark);
    let attempt = Attempt { uid: mark.uid.clone(), number: mark.number };
    let ids: BTreeSet<Uuid> =
        wanted.iter().filter(|(volume, _)| of_set.contains_key(volume)).map(|(_, store)| store.id).collect();
    let mut kept: BTreeMap<Uuid, Option<bool>> = ids.iter().map(|id| (*id, None)).collect();
    for id in ids {
        let here: Vec<Uuid> =
            wanted.iter().filter(|(_, store)| store.id == id).map(|(volume, _)| *volume).collect();
        let Some(store) = here.iter().find_map(|volume| stores.get(volume)).cloned() else { continue };
        let put = async {
            let bytes = reader.encode()?;
            store.put_note(&reader.name_in_store(), bytes).await
        };
        let is_known = mark.readers.contains(&id.to_string());
        match within(put).await {
            Ok(()) if is_known => {}
            Ok(()) => mark.readers.push(id.to_string()),
            Err(why) if is_known => {
                tracing::warn!("that this clone still reads here cannot be looked at: {why}")
            }
            Err(why) => {
                let why = format!(
                    "this clone must register as a reader before it serves anybody, and cannot: {why}"
                );
                for volume in here {
                    stores.remove(&volume);
                    problems.insert(volume, why.clone());
                }
                continue;
            }
        }
        // After it is registered: the source looks for readers when its pins are gone.
        let pinned = here.into_iter().filter(|volume| of_set.get(volume) == Some(&true)).collect();
        match within(store.pins()).await {
            Ok(found) => drop(kept.insert(id, Some(is_kept(&found, &attempt, &pinned)))),
            Err(why) => tracing::warn!("whether the source keeps this snapshot cannot be looked at: {why}"),
        }
    }
    mark.kept = kept_in_all(before.kept, &kept.into_values().collect::<Vec<_>>());
    if mark.kept == Some(false) && before.kept != Some(false) {
        tracing::error!(
            uid = %mark.uid,
            "the source does not keep this snapshot: files of this clone may lose their bytes, or have lost them"
        );
    }
    if mark != before
        && let Err(error) = mark.write(&folder.0)
    {
        tracing::error!("{error}; the next start registers again");
    }
    problems
}

/// Has this clone registered no longer, if it needs no object of its source, or that is forced. As a dry run it only says
/// what would come of it.
pub(crate) async fn answer_detach(folder: &Path, collector: &Collector, force: bool, dry_run: bool) -> Said {
    let _writing = WRITING.lock().await;
    let mark = match Mark::read(folder) {
        Ok(mark) => mark,
        Err(error) => return Said::Trouble(error.to_string()),
    };
    let (foreign, as_of) = match collector.count_foreign().await {
        Ok(counted) => counted,
        Err(why) => return Said::Trouble(why),
    };
    let Foreign { named: Sum { count: needed, .. }, unnamed } = foreign;
    let Some(mut mark) = mark else {
        return match needed + unnamed {
            // Made in the clone after its restore.
            0 => Said::Detached { needed, unnamed },
            _ => {
                Said::Trouble("has objects of a source, and was not restored from a disk snapshot".to_owned())
            }
        };
    };
    if needed + unnamed > 0 && !force {
        return Said::Detached { needed, unnamed };
    }
    // What a crash takes back names objects of the source again.
    if !force && let Err(why) = collector.until_durable(as_of).await {
        return Said::Trouble(why);
    }
    let name = reader(&mark).name_in_store();
    let (stores, missing) = stores_with_notes(collector, &mark).await;
    if !missing.is_empty() {
        return Said::Trouble(format!(
            "is registered as a reader in block store {}: to have that forgotten, run chronofs snapshot delete {} --force at the \
             source",
            missing.join(", "),
            mark.uid
        ));
    }
    if dry_run {
        return Said::Detached { needed, unnamed };
    }
    for store in stores {
        if let Err(why) = within(store.remove_note(&name)).await {
            return Said::Trouble(why);
        }
    }
    (mark.detached, mark.readers) = (true, Vec::new());
    match mark.write(folder) {
        Ok(()) => Said::Detached { needed, unnamed },
        Err(error) => Said::Trouble(error.to_string()),
    }
}

/// The stores of volumes, and those others in which this clone is registered; and in which of these it cannot be looked.
async fn stores_with_notes(collector: &Collector, mark: &Mark) -> (Vec<Arc<dyn StorePort>>, Vec<String>) {
    let each = collector.stores.each();
    let ids =
        each.iter().flat_map(|(_, volumes)| volumes).filter_map(|volume| collector.stores.id_of(*volume));
    let reached: BTreeSet<String> = ids.map(|id| id.to_string()).collect();
    let mut stores: Vec<_> = each.into_iter().map(|(store, _)| store).collect();
    let told = collector.stores.of_readers();
    let mut missing = Vec::new();
    for id in mark.readers.iter().filter(|id| !reached.contains(*id)) {
        let Some(store) = told.iter().find(|store| store.id.to_string() == *id) else {
            missing.push(format!(
                "{id}, which is not in reach, or is not a block store of this cluster any more"
            ));
            continue;
        };
        match tokio::time::timeout(WITHIN, open_marked(store)).await {
            Ok(Ok(store)) => stores.push(store),
            Ok(Err(why)) => missing.push(format!("{id}, which cannot be used ({why})")),
            Err(_) => missing.push(format!("{id}, which does not answer")),
        }
    }
    (stores, missing)
}

#[cfg(test)]
mod tests;
