//! `meta verify`: looks at every row of a store that no server uses, and on request at every slice that a row names.

use crate::files::Folder;
use crate::machine::{SharedView, verify_keys};
use crate::start::open_engine;
use crate::stores::open_marked;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chronofs_blocks::{StorePort, object_name, seal};
use chronofs_core::ObjectId;
use chronofs_core::slice::{Place, Seal};
use chronofs_engine::Engine;
use chronofs_namespace::{HeldFrom, HeldSlice, held_slices, rows};
use chronofs_wire::admin::AssignedStore;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Slices that are looked at together. Their staged bytes are in memory, and those of as many objects as a block
/// store reads at once.
const PAGE: usize = 256;

/// What [`verify`] found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Every fault, as one line.
    pub faults: Vec<String>,
    /// Volumes looked at.
    pub volumes: usize,
    /// Slices looked at, if that was asked for.
    pub blocks: Option<Checked>,
}

/// How far a check of slices has come.
#[derive(Clone, Copy, Default, Debug)]
pub struct Checked {
    /// Slices, live and past.
    pub slices: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Those that cannot be opened.
    pub bad: u64,
}

/// Checks a metadata store that no server uses: opens its engine, which checks the log, and looks at every row. With
/// `progress` it also opens every slice that a live or past row names, and calls it after each few hundred.
pub async fn verify(db_folder: &Path, progress: Option<&mut dyn FnMut(Checked)>) -> Result<Verified> {
    if !db_folder.is_dir() {
        bail!("{} is no folder of a metadata server; name it with --db-folder", db_folder.display());
    }
    let folder = Folder(db_folder.to_owned());
    if !folder.engine().is_dir() {
        // Opening it would make one, in which nothing could be wrong.
        bail!("{} holds no metadata store; name its folder with --db-folder", db_folder.display());
    }
    let locked = folder.lock()?;
    let engine = open_engine(&locked.folder, None)?;
    let reads = SharedView(engine.view());
    let cannot = || format!("cannot read the metadata store in {}", db_folder.display());
    let volumes = chronofs_namespace::list_volumes(&reads).with_context(cannot)?;
    let faults = chronofs_namespace::verify(&reads).with_context(cannot)?;
    let mut faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    faults.extend(verify_keys(&reads).with_context(cannot)?);
    let mut verified = Verified { faults, volumes: volumes.len(), blocks: None };
    let Some(progress) = progress else { return Ok(verified) };
    let stores = assigned_stores(&folder)?;
    let mut checked = Checked::default();
    // The objects of a deleted volume are nobody's any more.
    for (index, row) in volumes.iter().filter(|(_, row)| row.deleted.is_none()) {
        let volume = match VolumeBlocks::open(row, stores.get(&row.spec.id)).await {
            Ok(volume) => volume,
            Err(problem) => {
                let name = &row.spec.name;
                verified.faults.push(format!("volume {name}: none of its slices was looked at: {problem}"));
                continue;
            }
        };
        let mut next = Some(HeldFrom::default());
        while let Some(from) = next {
            let page;
            (page, next) = held_slices(&reads, *index, &from, PAGE).with_context(cannot)?;
            volume.check(page, &mut checked, &mut verified.faults).await?;
            progress(checked);
        }
    }
    verified.blocks = Some(checked);
    Ok(verified)
}

fn assigned_stores(folder: &Folder) -> Result<HashMap<Uuid, AssignedStore>> {
    let volumes = folder.assignment()?.map_or(Vec::new(), |assignment| assignment.volumes);
    Ok(volumes.into_iter().map(|volume| (volume.spec.id, volume.store)).collect())
}

/// Where the slices of a volume are.
struct VolumeBlocks {
    id: Uuid,
    name: String,
    store: Arc<dyn StorePort>,
}

impl VolumeBlocks {
    async fn open(row: &rows::Volume, assigned: Option<&AssignedStore>) -> Result<VolumeBlocks, String> {
        let Some(assigned) = assigned else {
            let problem = "this folder does not say which block store it uses; start the server once while the \
                           admin server runs";
            return Err(problem.to_owned());
        };
        let store = open_marked(assigned).await?;
        Ok(VolumeBlocks { id: row.spec.id, name: row.spec.name.clone(), store })
    }

    /// Opens a page of slices, as many at once as the block store takes, and names the bad ones in their order.
    async fn check(
        &self,
        page: Vec<HeldSlice>,
        checked: &mut Checked,
        faults: &mut Vec<String>,
    ) -> Result<()> {
        let mut running = JoinSet::new();
        for (n, held) in page.into_iter().enumerate() {
            checked.slices += 1;
            checked.bytes += held.slice.place.seal().map_or(0, |seal| u64::from(seal.stored_len));
            let (volume, store) = (self.id, self.store.clone());
            running.spawn(async move { (n, open(volume, &*store, &held).await.map_err(|why| (held, why))) });
        }
        let mut bad = Vec::new();
        while let Some(done) = running.join_next().await {
            let (n, result) = done.context("checking a slice was given up")?;
            bad.extend(result.err().map(|(held, why)| (n, self.fault(&held, &why))));
        }
        bad.sort_unstable();
        checked.bad += bad.len() as u64;
        faults.extend(bad.into_iter().map(|(_, fault)| fault));
        Ok(())
    }

    fn fault(&self, held: &HeldSlice, why: &str) -> String {
        let HeldSlice { ino, key, slice, since, until, .. } = held;
        let to = slice.offset.saturating_add(slice.len);
        let held = match until {
            Some(until) => format!("in the past from {since} to {until}"),
            None => format!("live since {since}"),
        };
        let (name, block, from) = (&self.name, key.block, slice.offset);
        format!("volume {name} inode {ino} block {block} bytes {from} to {to}, {held}: {why}")
    }
}

async fn in_object<'a>(
    volume: Uuid,
    store: &dyn StorePort,
    seal: &'a Seal,
    object: ObjectId,
    at: u64,
) -> Result<(&'a Seal, Bytes, String), String> {
    let name = object_name(volume, object);
    let stored = store.get(&name, at, seal.stored_len).await.map_err(|error| error.to_string())?;
    Ok((seal, stored, format!("object {name}")))
}

/// Opens a slice, or says why it cannot be. Of one that is encrypted its checksum is all that can be known here.
async fn open(volume: Uuid, store: &dyn StorePort, held: &HeldSlice) -> Result<(), String> {
    let (seal, stored, whose) = match &held.slice.place {
        Place::Hole => return Ok(()),
        Place::Inline(seal, stored) => (seal, stored.clone(), "its row".to_owned()),
        Place::Staged(seal) => {
            let stored = held
                .staged
                .clone()
                .ok_or_else(|| format!("the staged bytes of slice {} are not there", seal.id))?;
            (seal, stored, "its staged bytes".to_owned())
        }
        Place::Object(seal, at) => in_object(volume, store, seal, seal.id.object, *at).await?,
        Place::Moved(seal, object, at) => in_object(volume, store, seal, *object, *at).await?,
    };
    seal::check(seal, stored).map_err(|error| format!("{whose}: {error}"))
}
