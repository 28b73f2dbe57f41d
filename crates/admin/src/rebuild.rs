//! An admin server made anew of what a block store says of its volumes: for when its database is lost and no backup is
//! left. Volumes, their metadata stores and the sealed keys of encrypted ones come back under the ids that they had, so metadata
//! servers go on with what they have. Accounts, tokens, holds and schedules were nowhere else, and are gone.
//!
//! The block store is only read. A folder that was rebuilt of one store takes another one in the same way.

use crate::db::{
    Database, audit, block_stores, epochs, now_ns, set_setting, setting, stores, tokens, volumes,
};
use crate::model::{check_definition, check_name};
use crate::setup::{InitConfig, init_creds};
use crate::{AdminError, FolderLock, cluster};
use chronofs_blocks::described::VOLUMES;
use chronofs_blocks::keys::{KEYS, KeysName, keys_of};
use chronofs_blocks::{BlockStore, Described, DescribedName, RemoteStore, StoreError, StorePort};
use chronofs_core::store::{Credentials, StoreKind};
use chronofs_keys::SealedKeys;
use chronofs_wire::cluster::ClusterName;
use chronofs_wire::secrets::SecretBox;
use chronofs_wire::status::RestoredAdmin;
use rusqlite::Transaction;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Of a name that is taken: so much goes before the id.
const NAME_CHARS_KEPT: usize = 50;

/// What to make an admin server of.
#[derive(Clone, Debug)]
pub struct RebuildConfig {
    /// Its folder. Of one that was not set up before root account, certificate and all else are made.
    pub init: InitConfig,
    /// What the block store is called from now on.
    pub name: String,
    /// Where it is.
    pub definition: StoreKind,
    /// What opens it.
    pub credentials: Credentials,
    /// The cluster, `description:id`, if the store has volumes of several.
    pub cluster: Option<String>,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Rebuilt {
    /// The token of `root`, if the folder was set up just now.
    pub root: Option<String>,
    /// The cluster, `description:id`.
    pub cluster: String,
    /// Metadata stores that were not known yet, by name, each with a new token.
    pub metadata_stores: Vec<(String, String)>,
    /// Volumes that were not known yet.
    pub volumes: Vec<RebuiltVolume>,
    /// What the store has and nobody can understand: name and reason.
    pub unreadable: Vec<(String, String)>,
}

/// A volume that came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RebuiltVolume {
    /// Its id.
    pub id: Uuid,
    /// Its name from now on.
    pub name: String,
    /// The name that it had, if somebody else has that now.
    pub was: Option<String>,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// It was deleted, and is kept until somebody gives it up or takes it back.
    pub deleted: bool,
}

/// What a block store says.
#[derive(Debug, Default)]
struct Said {
    volumes: BTreeMap<DescribedName, Described>,
    /// The newest of each incarnation of each volume.
    keys: BTreeMap<(Uuid, u16), SealedKeys>,
    unreadable: Vec<(String, String)>,
}

/// Makes an admin server anew, or brings the volumes of one more block store into one that was made so. No server may run
/// on the folder.
pub async fn rebuild(config: RebuildConfig) -> Result<Rebuilt, AdminError> {
    check_name(block_stores::BLOCK, &config.name)?;
    let definition = check_definition(&config.definition, &config.credentials)?;
    let config = RebuildConfig { definition, ..config };
    let (id, store) = opened(&config).await?;
    let said = listen(&*store).await?;
    let made = tokio::task::spawn_blocking(move || make(&config, id, said)).await;
    made.map_err(|error| AdminError::Internal(format!("the task ended: {error}")))?
}

async fn opened(config: &RebuildConfig) -> Result<(Uuid, Arc<dyn StorePort>), AdminError> {
    if let StoreKind::Local { path } = &config.definition {
        let path = path.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let (path, id) = (Path::new(&path), BlockStore::id_of(Path::new(&path))?);
            Ok((id, Arc::new(BlockStore::open(path, id)?) as Arc<dyn StorePort>))
        });
        let opened =
            opened.await.map_err(|error| AdminError::Internal(format!("the task ended: {error}")))?;
        return opened
            .map_err(|error: chronofs_blocks::store::FolderError| AdminError::Invalid(error.to_string()));
    }
    let marked = RemoteStore::found_at(config.definition.clone(), config.credentials.clone()).await;
    let store = marked.map_err(|error| refused(&error))?;
    Ok((store.id(), Arc::new(store)))
}

fn refused(error: &StoreError) -> AdminError {
    AdminError::Invalid(format!("{}; {}", error.reason, error.next_step))
}

async fn listen(store: &dyn StorePort) -> Result<Said, AdminError> {
    let mut said = Said::default();
    for (name, bytes) in store.notes(VOLUMES).await.map_err(|error| refused(&error))? {
        let found =
            DescribedName::parse(&name).ok_or_else(|| "it is not named as what volumes are is".to_owned());
        let found = found.and_then(|named| Ok((named, Described::read(&bytes)?)));
        match found {
            Ok((named, described)) if named.volume == described.volume.id => {
                said.volumes.insert(named, described);
            }
            Ok(_) => said.unreadable.push((name, "it says what another volume is".to_owned())),
            Err(reason) => said.unreadable.push((name, reason)),
        }
    }
    for (name, bytes) in store.notes(KEYS).await.map_err(|error| refused(&error))? {
        let found = KeysName::parse(&name).zip(keys_of(&bytes));
        let fits = |(named, keys): &(KeysName, SealedKeys)| {
            (named.volume, named.revision) == (keys.volume(), keys.revision())
        };
        let Some((named, keys)) = found.filter(fits) else {
            said.unreadable.push((name, "these are no sealed keys of the volume that it names".to_owned()));
            continue;
        };
        let of = (named.volume, named.incarnation);
        if said.keys.get(&of).is_none_or(|known| known.revision() < keys.revision()) {
            said.keys.insert(of, keys);
        }
    }
    Ok(said)
}

/// A volume as it was last, since then, with its sealed keys.
struct Found<'a> {
    since_ns: u64,
    described: &'a Described,
    keys: Option<&'a SealedKeys>,
}

/// The volumes of one cluster: those that are not deleted first, and of these those that changed last.
fn of_cluster<'a>(said: &'a Said, wanted: Option<&str>) -> Result<(ClusterName, Vec<Found<'a>>), AdminError> {
    let clusters: BTreeSet<&str> =
        said.volumes.values().map(|described| described.cluster.as_str()).collect();
    let all = || clusters.iter().copied().collect::<Vec<_>>().join(", ");
    let chosen = match (wanted, clusters.len()) {
        (Some(wanted), _) if clusters.contains(wanted) => wanted,
        (Some(wanted), 1..) => {
            return Err(AdminError::Invalid(format!(
                "the block store has no volume of cluster {wanted}, but of {}",
                all()
            )));
        }
        (None, 1) => clusters.first().copied().unwrap_or_default(),
        (None, 2..) => {
            return Err(AdminError::Invalid(format!(
                "the block store has volumes of several clusters: choose one with --cluster: {}",
                all()
            )));
        }
        (_, 0) => {
            return Err(AdminError::Invalid(format!(
                "the block store says of no volume what it is (nothing is below {VOLUMES}/ there): metadata servers put that there, \
                 of this version or later; restore the admin server from a backup, or set a new one up and make the volumes again"
            )));
        }
    };
    let name: ClusterName = chosen.parse().map_err(|error| {
        AdminError::Invalid(format!(
            "the block store names the cluster '{chosen}', which is no name: {error}"
        ))
    })?;
    // The later ones come last. A clone has keys of its own, below another incarnation of the same volume.
    let mut newest: BTreeMap<Uuid, Found<'_>> = BTreeMap::new();
    for (named, described) in said.volumes.iter().filter(|(_, described)| described.cluster == chosen) {
        let before = newest.get(&named.volume).and_then(|found| found.keys);
        let keys = said.keys.get(&(named.volume, named.incarnation)).or(before);
        newest.insert(named.volume, Found { since_ns: named.since_ns, described, keys });
    }
    let mut found: Vec<Found<'_>> = newest.into_values().collect();
    found.sort_by_key(|found| (found.described.deleted, std::cmp::Reverse(found.since_ns)));
    Ok((name, found))
}

fn make(config: &RebuildConfig, store: Uuid, said: Said) -> Result<Rebuilt, AdminError> {
    let folder = &config.init.db_folder;
    let (known, is_begun) = known(folder)?;
    if let (Some(known), Some(wanted)) = (&known, &config.cluster)
        && known != wanted
    {
        return Err(AdminError::Invalid(format!(
            "folder {} is of cluster {known}, not of {wanted}: name another folder",
            folder.display()
        )));
    }
    let (cluster, found) = of_cluster(&said, known.as_deref().or(config.cluster.as_deref()))?;
    let root = if is_begun { None } else { Some(set_up(&config.init, &cluster)?) };
    let _lock = FolderLock::take(folder)?;
    let database = Database::open(folder)?;
    let secrets = SecretBox::open(folder)?;
    let mut rebuilt = Rebuilt { root, cluster: cluster.to_string(), ..Rebuilt::default() };
    let since_ns = found.iter().map(|found| found.since_ns).max().unwrap_or(0);
    database.write(|tx| {
        block_stores::must_be_unknown(tx, &store.to_string())?;
        let (definition, credentials) = (config.definition.clone(), config.credentials.clone());
        let place = block_stores::Place { definition, credentials, probe: None };
        block_stores::create(tx, &secrets, &store.to_string(), &config.name, &place)?;
        for Found { described, keys, .. } in &found {
            bring_back(tx, &mut rebuilt, store, described, *keys)?;
        }
        if rebuilt.root.is_some() {
            let (now_ns, reviews) = (now_ns(), BTreeMap::new());
            let uid = format!("block store {}", config.name);
            let (prepared_ns, epoch) = (now_ns, now_ns);
            let row = RestoredAdmin { uid, cut_ns: since_ns, prepared_ns, epoch, accepted_ns: None, reviews };
            epochs::save_admin(tx, &row)?;
        }
        audit::note(
            tx,
            "admin rebuild",
            "rebuilt",
            &format!("the admin server of block store {}", config.name),
        )
    })?;
    database.checkpoint()?;
    drop(found);
    rebuilt.unreadable = said.unreadable;
    Ok(rebuilt)
}

/// The cluster of a folder, if it has one, and whether anything was brought back there: an earlier try may have come to its
/// account only, whose token nobody has seen.
fn known(folder: &Path) -> Result<(Option<String>, bool), AdminError> {
    if !crate::setup::is_set_up(folder)? {
        return Ok((None, false));
    }
    let _lock = FolderLock::take(folder)?;
    Database::open(folder)?
        .write(|tx| Ok((setting(tx, cluster::CLUSTER)?, !block_stores::list(tx)?.is_empty())))
}

/// Sets a new folder up as that of a server of `cluster`. Gives the token of `root`.
fn set_up(init: &InitConfig, name: &ClusterName) -> Result<String, AdminError> {
    crate::setup::make_folder(&init.db_folder)?;
    {
        let _lock = FolderLock::take(&init.db_folder)?;
        let database = Database::open(&init.db_folder)?;
        database.write(|tx| set_setting(tx, cluster::CLUSTER, name.as_str()))?;
    }
    init_creds(&InitConfig { rotate: true, ..init.clone() })
}

/// A volume, and its metadata store, if they are not there.
fn bring_back(
    tx: &Transaction<'_>,
    rebuilt: &mut Rebuilt,
    block_store: Uuid,
    described: &Described,
    keys: Option<&SealedKeys>,
) -> Result<(), AdminError> {
    let metadata_store = described.metadata_store.to_string();
    if stores::find_metadata(tx, &metadata_store).is_err() {
        let id = described.metadata_store;
        let name = free(&described.metadata_store_name, id, |name| stores::find_metadata(tx, name).is_err());
        stores::bring_back(tx, &metadata_store, &name)?;
        let token = tokens::issue_metadata(tx, &metadata_store)?;
        rebuilt.metadata_stores.push((name, token.to_string()));
    }
    let spec = &described.volume;
    if volumes::is_known(tx, &spec.id.to_string())? {
        return Ok(());
    }
    // Of deleted ones several may have had a name.
    let is_free = |name: &str| described.deleted || volumes::find(tx, name).is_err();
    let name = free(&spec.name, spec.id, is_free);
    let of = (block_store.to_string(), metadata_store);
    volumes::bring_back(tx, (&of.0, &of.1), &name, spec, keys)?;
    if described.deleted {
        volumes::bring_back_deleted(tx, &spec.id.to_string())?;
    }
    let was = (name != spec.name).then(|| spec.name.clone());
    let deleted = described.deleted;
    rebuilt.volumes.push(RebuiltVolume { id: spec.id, name, was, encrypted: keys.is_some(), deleted });
    Ok(())
}

/// The name, or if it is taken one with the id behind it.
fn free(name: &str, id: Uuid, is_free: impl Fn(&str) -> bool) -> String {
    if is_free(name) {
        return name.to_owned();
    }
    let short: String = name.chars().take(NAME_CHARS_KEPT).collect();
    format!("{short}-{}", &id.simple().to_string()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::Retention;
    use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression, VolumeSpec};
    use chronofs_keys::{SecretKey, VolumeSecret};

    const VOLUME: Uuid = Uuid::from_u128(1);

    fn described(cluster: &str, id: Uuid, deleted: bool) -> Described {
        let spec = VolumeSpec {
            id,
            name: "home".to_owned(),
            block_size: BLOCK_SIZE_DEFAULT,
            compression: Compression::None,
            retention: Retention::None,
            max_bytes: None,
            max_inodes: None,
            hash_key: [0; 16],
        };
        Described::new(cluster, (Uuid::from_u128(9), "main"), spec).deleted(deleted)
    }

    fn named(volume: Uuid, incarnation: u16, since_ns: u64) -> DescribedName {
        DescribedName { volume, incarnation, since_ns }
    }

    /// Keys of a volume, of revisions 1 and 2.
    fn keys() -> [SealedKeys; 2] {
        let secret = VolumeSecret::Key(SecretKey::new([3; 32]));
        let first = SealedKeys::draw(VOLUME, &secret).unwrap();
        let opened = first.open(&first.kek(&secret).unwrap()).unwrap();
        let second = first.with_secret(&opened, &secret).unwrap();
        [first, second]
    }

    #[test]
    fn what_a_clone_put_into_the_same_store_is_not_taken_for_the_cluster_s_own() {
        let [first, second] = keys();
        let mut said = Said::default();
        said.volumes.insert(named(VOLUME, 0, 5), described("lab:1", VOLUME, false));
        said.volumes.insert(named(VOLUME, 7, 9), described("copy:2", VOLUME, false));
        said.keys.insert((VOLUME, 0), first.clone());
        said.keys.insert((VOLUME, 7), second.clone());
        let several = of_cluster(&said, None).err().unwrap().to_string();
        assert!(several.contains("copy:2, lab:1"), "{several}");
        assert!(of_cluster(&said, Some("lab:3")).err().unwrap().to_string().contains("copy:2, lab:1"));
        let revision = |said: &Said, cluster: &str| {
            let (name, found) = of_cluster(said, Some(cluster)).unwrap();
            assert_eq!((name.as_str(), found.len()), (cluster, 1));
            found[0].keys.map(SealedKeys::revision)
        };
        assert_eq!((revision(&said, "lab:1"), revision(&said, "copy:2")), (Some(1), Some(2)));
        // After a restore in place the keys of before count until there are others.
        said.volumes.insert(named(VOLUME, 12, 20), described("lab:1", VOLUME, false));
        assert_eq!(revision(&said, "lab:1"), Some(1));
        said.keys.insert((VOLUME, 12), second);
        assert_eq!(revision(&said, "lab:1"), Some(2));
        assert!(
            of_cluster(&Said::default(), None)
                .err()
                .unwrap()
                .to_string()
                .contains("nothing is below volumes/")
        );
    }

    #[test]
    fn a_volume_that_is_not_deleted_keeps_its_name_and_of_two_the_one_that_changed_last() {
        let mut said = Said::default();
        for (id, since_ns, deleted) in [(1, 9, true), (2, 5, false), (3, 7, false)] {
            let id = Uuid::from_u128(id);
            said.volumes.insert(named(id, 0, since_ns - 4), described("lab:1", id, false));
            said.volumes.insert(named(id, 0, since_ns), described("lab:1", id, deleted));
        }
        let (_, found) = of_cluster(&said, None).unwrap();
        let order: Vec<_> = found.iter().map(|found| found.described.volume.id.as_u128()).collect();
        assert_eq!(order, [3, 2, 1]);
        let taken = |name: &str| name != "home";
        let long = "x".repeat(63);
        assert_eq!(free("home", VOLUME, taken), "home-00000000");
        assert_eq!(free(&long, VOLUME, |name| name != long).len(), 59);
        assert_eq!(free("other", VOLUME, taken), "other");
    }
}
