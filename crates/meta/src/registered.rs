//! Instants that are kept because an operator says so: for a copy of the servers that others made. When exactly such a copy
//! was made nobody knows: some time between the instant that is named and now. So all of that is kept.

use crate::core::Core;
use crate::executor::{Ask, Input};
use crate::machine::{Now, SharedView};
use chronofs_core::{Retention, Version};
use chronofs_namespace::list_kept;
use chronofs_wire::question::KeepInstant;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Keeps the instants of every volume from the wanted one until now, or lets them go; durable when it is done. Without a word nobody
/// knows whether it was.
pub(crate) async fn keep(queue: &mpsc::Sender<Input>, wanted: KeepInstant) -> Option<Result<(), String>> {
    let (sender, answered) = oneshot::channel();
    let ask: Ask = Box::new(move |core, now| {
        let done = match wanted.at_ns {
            Some(at_ns) => keep_all(core, now, &wanted, Version(at_ns)),
            None => release_all(core, now, wanted.id),
        };
        let synced = done.and_then(|()| core.engine.sync().map(drop).map_err(|error| error.to_string()));
        // Whoever asked may have left.
        let _ = sender.send(synced);
    });
    queue.send(Input::Ask(ask)).await.ok()?;
    answered.await.ok()
}

fn keep_all(core: &mut Core, now: Now, wanted: &KeepInstant, at: Version) -> Result<(), String> {
    // Of a store that is idle nothing has changed since its last commit.
    let to = core.machine.last().max(Version(now.wall_ns)).max(at);
    let live = core.machine.volumes().filter(|volume| volume.row.deleted.is_none() && volume.row.born <= to);
    let volumes: Vec<(Uuid, Version, String, Retention)> = live
        .map(|volume| {
            let spec = &volume.row.spec;
            (volume.id(), volume.row.born, spec.name.clone(), spec.retention)
        })
        .collect();
    for (volume, born, name, retention) in volumes {
        if retention == Retention::None {
            return Err(format!("volume {name} keeps no past, so no instant of it can be kept"));
        }
        let mut kept = Ok(());
        let decided = core.decide(now, |machine, group| {
            let ends = wanted.ends_ns.map(Version);
            let span = (at.max(born), to);
            kept = machine.keep_instants(group, (volume, wanted.id), span, ends, &wanted.note)?;
            Ok(())
        });
        let decided = decided.map_err(|error| error.to_string())?;
        kept.map_err(|error| format!("volume {name}: {error}"))?;
        if let Some(full) = decided.full {
            return Err(full.to_string());
        }
    }
    Ok(())
}

fn release_all(core: &mut Core, now: Now, id: Uuid) -> Result<(), String> {
    let kept =
        list_kept(&SharedView(core.engine.view())).map_err(|_| "what is kept cannot be read".to_owned())?;
    let volumes: Vec<Uuid> = kept
        .iter()
        .filter(|(_, kept, _)| *kept == id)
        .filter_map(|(index, ..)| Some(core.machine.volume(*index)?.id()))
        .collect();
    for volume in volumes {
        let mut released = Ok(());
        let decided = core.decide(now, |machine, group| {
            released = machine.release_instants(group, volume, id)?;
            Ok(())
        });
        decided.map_err(|error| error.to_string())?;
        released.map_err(|error| error.to_string())?;
    }
    Ok(())
}
