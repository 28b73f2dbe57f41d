//! Opens the block stores of an assignment.
//!
//! A place is marked as a store's own only the first time that this server sees the store: later a folder without the
//! marker is an unmounted disk, and a bucket without it another bucket, not a new store.

use crate::files::Folder;
use crate::watched::{Watched, Watches};
use chronofs_blocks::store::Patience;
use chronofs_blocks::{BlockStore, RemoteStore, StorePort, Trouble};
use chronofs_wire::admin::{AssignedStore, StoreKind};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// A bucket that does not answer in this time does not hold up the others.
const CLAIM_WITHIN: Duration = Duration::from_secs(15);
/// One that was ours before is served meanwhile, so less is lost by not waiting.
const CHECK_WITHIN: Duration = Duration::from_secs(2);

/// The stores of volumes, and why the rest cannot be served.
pub(crate) type Opened = (HashMap<Uuid, Arc<dyn StorePort>>, BTreeMap<Uuid, String>);

/// Opens the block stores of volumes, all at once.
pub(crate) async fn open_stores(
    folder: &Folder,
    wanted: Vec<(Uuid, AssignedStore)>,
    watches: &Watches,
) -> Opened {
    let mut marked = folder.marked_stores().unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        Default::default()
    });
    let before = marked.clone();
    let each: BTreeMap<Uuid, AssignedStore> =
        wanted.iter().map(|(_, store)| (store.id, store.clone())).collect();
    watches.keep(each.values().map(|store| (store.id, store.kind.to_string())));
    let opening = each.into_values().map(|store| open(store, &before, watches));
    let by_store: BTreeMap<Uuid, _> = futures::future::join_all(opening).await.into_iter().collect();
    let (mut stores, mut problems) = (HashMap::new(), BTreeMap::new());
    for (volume, store) in wanted {
        match by_store.get(&store.id) {
            Some(Ok(opened)) => {
                marked.insert(store.id);
                stores.insert(volume, Arc::clone(opened));
            }
            Some(Err(problem)) => drop(problems.insert(volume, problem.clone())),
            None => {}
        }
    }
    if marked != before
        && let Err(error) = folder.save_marked_stores(&marked)
    {
        tracing::error!("{error:#}");
    }
    (stores, problems)
}

/// Opens a store that must carry its marker, and be there.
pub(crate) async fn open_marked(store: &AssignedStore) -> Result<Arc<dyn StorePort>, String> {
    if let StoreKind::Local { path } = &store.kind {
        return open_folder(Path::new(path), store.id, false).map(|store| store as _);
    }
    let opened = bucket(store.clone())?;
    opened.check_marker().await.map_err(|error| format!("{}; {}", error.reason, error.next_step))?;
    Ok(opened)
}

async fn open(
    store: AssignedStore,
    marked: &BTreeSet<Uuid>,
    watches: &Watches,
) -> (Uuid, Result<Arc<dyn StorePort>, String>) {
    let first_time = !marked.contains(&store.id);
    let (id, watch) = (store.id, watches.of(store.id));
    let opened: Result<Arc<dyn StorePort>, String> = match store.kind {
        StoreKind::Local { path } => {
            let opened =
                tokio::task::spawn_blocking(move || open_folder(Path::new(&path), id, first_time)).await;
            opened.unwrap_or_else(|e| Err(e.to_string())).map(|store| store as _)
        }
        _ => open_bucket(store, first_time).await.map(|store| store as _),
    };
    (id, opened.map(|store| Watched::new(store, watch) as _))
}

fn open_folder(path: &Path, id: Uuid, first_time: bool) -> Result<Arc<BlockStore>, String> {
    let opened =
        if first_time && is_free(path) { BlockStore::create(path, id) } else { BlockStore::open(path, id) };
    opened.map(Arc::new).map_err(|error| error.to_string())
}

/// Why a block store cannot move to the folder `path`, if it cannot: the folder must be its own, and writable.
pub(crate) fn look_at(folder: &Folder, store: Uuid, path: &Path) -> Option<String> {
    let marked = folder.marked_stores().is_ok_and(|marked| marked.contains(&store));
    if !marked && is_free(path) {
        // It has no bytes yet; its folder is made when it is opened.
        return None;
    }
    if let Err(error) = BlockStore::open(path, store) {
        return Some(error.to_string());
    }
    let probe = path.join(format!("chronofs-probe.{}.tmp", std::process::id()));
    let written = std::fs::File::create_new(&probe).and_then(|_| std::fs::remove_file(&probe));
    written.err().map(|error| {
        format!(
            "block store folder {}: it cannot be written to: {error}; make it writable for this user",
            path.display()
        )
    })
}

/// Whether a folder is missing or empty, so that it may become a store's.
fn is_free(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Asks nothing of the bucket yet.
fn bucket(store: AssignedStore) -> Result<Arc<RemoteStore>, String> {
    let AssignedStore { id, kind, credentials, create_only } = store;
    // The name of the marker adds nothing to what is said of the bucket.
    let opened = RemoteStore::new(kind, id, credentials, create_only, Patience::Serving);
    opened.map(Arc::new).map_err(|error| format!("{}; {}", error.reason, error.next_step))
}

async fn open_bucket(store: AssignedStore, first_time: bool) -> Result<Arc<RemoteStore>, String> {
    let opened = bucket(store)?;
    let check = async { if first_time { opened.claim().await } else { opened.check_marker().await } };
    let within = if first_time { CLAIM_WITHIN } else { CHECK_WITHIN };
    let (unreachable, why) = match tokio::time::timeout(within, check).await {
        Ok(Ok(())) => return Ok(opened),
        Ok(Err(error)) => {
            (error.trouble == Trouble::Unavailable, format!("{}; {}", error.reason, error.next_step))
        }
        Err(_) => (true, format!("{opened:?} does not answer; check its address and the network")),
    };
    // What was this store's before is served while the bucket is away: names can be used, and bytes wait. It looks
    // for its marker before it puts anything.
    if unreachable && !first_time {
        tracing::warn!("{why}");
        return Ok(opened);
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(id: u128, path: &Path) -> (Uuid, AssignedStore) {
        let kind = StoreKind::Local { path: path.to_str().unwrap().to_owned() };
        let id = Uuid::from_u128(id);
        let store = AssignedStore { id, kind, credentials: Default::default(), create_only: false };
        (Uuid::from_u128(id.as_u128() + 100), store)
    }

    #[tokio::test]
    async fn a_folder_is_marked_once_and_an_unmounted_disk_is_not_taken_for_a_new_store() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::make(&temp.path().join("db")).unwrap();
        let path = temp.path().join("store");
        let (stores, problems) = open_stores(&folder, vec![assigned(1, &path)], &Watches::default()).await;
        assert_eq!((stores.len(), problems.len()), (1, 0));
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let (stores, problems) = open_stores(&folder, vec![assigned(1, &path)], &Watches::default()).await;
        assert_eq!((stores.len(), problems.len()), (0, 1), "{problems:?}");
    }

    #[tokio::test]
    async fn a_strangers_folder_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::make(&temp.path().join("db")).unwrap();
        let path = temp.path().join("store");
        open_stores(&folder, vec![assigned(1, &path)], &Watches::default()).await;
        let (_, problems) = open_stores(&folder, vec![assigned(2, &path)], &Watches::default()).await;
        assert_eq!(problems.len(), 1);
        std::fs::create_dir(temp.path().join("full")).unwrap();
        std::fs::write(temp.path().join("full/letter"), "dear").unwrap();
        let (_, problems) =
            open_stores(&folder, vec![assigned(3, &temp.path().join("full"))], &Watches::default()).await;
        assert_eq!(problems.len(), 1);
    }
}
