//! What operators have this server look at: rows and objects of a volume. A look runs beside everything else, on views of
//! its own, and is followed through the admin server's questions ([`chronofs_wire::analyze`]).
//!
//! `desk` keeps looks and their news; each other module is one kind of look. None of them changes anything but `repair`, which puts
//! back bytes that are lost; no row is ever changed.

mod blocks;
mod desk;
mod discard;
mod objects;
mod quarantine;
mod repair;
mod rows;
mod salvage;
mod sources;
mod store;
#[cfg(test)]
mod tests;
mod usage;

pub use desk::Looks;

use crate::collect::Collector;
use crate::machine::SharedView;
use chronofs_core::VolumeIndex;
use chronofs_engine::{ReadStop, View};
use chronofs_namespace::rows::Volume;
use chronofs_wire::admin::AssignedStore;
use chronofs_wire::analyze::{Look, Sum};
use desk::Desk;
use std::sync::Arc;
use uuid::Uuid;

/// Why a look ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Nobody follows it any more.
    Left,
    /// The server stops. The next start knows nothing of it: whoever follows begins again where it was.
    Stops,
    /// It cannot go on, for this reason.
    Failed(String),
}

impl From<ReadStop> for Stop {
    fn from(stop: ReadStop) -> Stop {
        Stop::Failed(format!("the metadata cannot be read: {stop}; run chronofs meta verify"))
    }
}

impl From<tokio::task::JoinError> for Stop {
    fn from(error: tokio::task::JoinError) -> Stop {
        if error.is_cancelled() {
            return Stop::Stops;
        }
        Stop::Failed(format!("the look was given up: {error}"))
    }
}

/// The rows as they are now.
async fn rows_now(collector: &Collector) -> Result<SharedView, Stop> {
    let view: Option<Arc<dyn View>> = collector.ask(|core, _| core.engine.view()).await;
    Ok(SharedView(view.ok_or(Stop::Stops)?))
}

/// A volume that is looked at.
#[derive(Clone)]
pub(crate) struct Looked {
    id: Uuid,
    index: VolumeIndex,
    row: Volume,
    collector: Collector,
}

impl Looked {
    async fn of(collector: &Collector, id: Uuid) -> Result<Looked, Stop> {
        let found = collector.ask(move |core, _| {
            let mut there = core.machine.volumes().filter(|volume| volume.row.is_live());
            there.find(|volume| volume.id() == id).map(|volume| (volume.index, volume.row.clone()))
        });
        let found = found.await.ok_or(Stop::Stops)?;
        let (index, row) = found.ok_or_else(|| {
            Stop::Failed(format!("this server has no volume {id}: it was deleted, or was never taken over"))
        })?;
        Ok(Looked { id, index, row, collector: collector.clone() })
    }

    async fn rows(&self) -> Result<SharedView, Stop> {
        rows_now(&self.collector).await
    }
}

/// A path in the form of [`chronofs_wire::analyze::NamedAt::path`].
fn shown_path(path: &[u8]) -> String {
    let mut shown = String::new();
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => shown.push_str("\\\\"),
                c if c.is_control() => {
                    c.to_string().bytes().for_each(|byte| shown.push_str(&format!("\\x{byte:02x}")));
                }
                c => shown.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| shown.push_str(&format!("\\x{byte:02x}")));
    }
    shown
}

/// Looks, and gives what it comes to.
async fn look(
    desk: &Desk,
    collector: &Collector,
    volume: Option<Uuid>,
    look: Look,
    replica: Option<AssignedStore>,
) -> Result<Sum, Stop> {
    let volume = match volume {
        Some(id) => Some(Looked::of(collector, id).await?),
        None => None,
    };
    match (look, volume) {
        (Look::Rows, None) => rows::look(desk, collector).await.map(Sum::Rows),
        (Look::Blocks { deep, bytes_per_second, from }, Some(volume)) => {
            let asked = blocks::Asked { deep, bytes_per_second, from: from.map(|from| from.0) };
            blocks::look(desk, volume, asked).await.map(Sum::Blocks)
        }
        (Look::Usage { by, retention_s }, Some(volume)) => {
            usage::look(desk, volume, usage::Asked { by, retention_s }).await.map(Sum::Usage)
        }
        (
            Look::Repair { dry_run, deep, bytes_per_second, from_store, from_cache, from_copy, from },
            Some(volume),
        ) => {
            let of = blocks::Asked { deep, bytes_per_second, from: from.map(|from| from.0) };
            let wanted = sources::Wanted { from_store, replica, from_cache, from_copy };
            repair::look(desk, volume, repair::Asked { dry_run, of, wanted }).await.map(Sum::Blocks)
        }
        (Look::Objects, Some(volume)) => objects::look(desk, volume).await.map(Sum::Objects),
        (Look::Salvage { list_only }, Some(volume)) => {
            salvage::look(desk, volume, list_only).await.map(Sum::Salvage)
        }
        (Look::Discard { dry_run, names }, Some(volume)) => {
            discard::look(desk, volume, discard::Asked { dry_run, names }).await.map(Sum::Discarded)
        }
        (Look::Quarantined, Some(volume)) => quarantine::look(desk, volume).await.map(Sum::Quarantined),
        (Look::Rows, Some(_)) => Err(Stop::Failed("rows are looked at of a whole metadata store".to_owned())),
        (_, None) => Err(Stop::Failed("name a volume".to_owned())),
    }
}
