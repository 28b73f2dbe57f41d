//! This server as a member of disk snapshots: it keeps what a set needs, holds its log, makes images of log and store, and
//! asks the admin server what to do next.
//!
//! Clients notice nothing but two short waits: while the store links its files, and while a segment of the log is ended. All
//! else happens beside the executor, on files that do not change any more.

use crate::core::Core;
use crate::executor::{Ask, Input};
use crate::machine::{Now, SharedView};
use chronofs_core::{Retention, Version};
use chronofs_engine::embedded::{EmbeddedFolder, LogHold, Position, RealDisk, RocksStore};
use chronofs_engine::{Engine, EngineError};
use chronofs_namespace::list_kept;
use chronofs_snapshot::agent::{Agent, Host, Imaged, Setup};
use chronofs_snapshot::protocol::{Attempt, Cut, Ended, Fault, Intent, Order, Poll, What};
use chronofs_snapshot::{Role, SnapshotCode, SnapshotUid, Whitelist};
use chronofs_wire::admin::Registered;
use chronofs_wire::http::{AdminClient, ClientError, Method};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use uuid::Uuid;

/// Folder of images, in that of the engine, so that files can be linked into them.
const IMAGES: &str = "images";
/// What notes of kept instants begin with; UID and number follow.
const NOTE: &str = "disk snapshot";
/// An instant that was kept before the cut was known is let go after this, whatever becomes of the snapshot.
const BEFORE_THE_CUT: Duration = Duration::from_secs(6 * 3600);
/// After a call that failed.
const RETRY: Duration = Duration::from_secs(1);
/// While something is taken away that cannot go yet.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// The log, held for attempts, with the time since when.
type Holds = BTreeMap<Attempt, (Arc<LogHold<RocksStore, RealDisk>>, Instant)>;

/// The server as [`Host`].
struct MetaHost {
    engine: Arc<EmbeddedFolder>,
    /// The engine's folder.
    folder: PathBuf,
    queue: mpsc::Sender<Input>,
    holds: Mutex<Holds>,
    /// At which segment of the log the images of stores begin.
    imaged: Mutex<BTreeMap<Attempt, u64>>,
}

fn fault(code: SnapshotCode, why: impl std::fmt::Display) -> Fault {
    Fault { code, why: why.to_string() }
}

/// The id under which a snapshot keeps its cut, and the one under which it keeps the instant of its beginning.
fn ids(uid: &SnapshotUid) -> (Uuid, Uuid) {
    let cut = Uuid::parse_str(uid.as_str()).unwrap_or_default();
    (cut, Uuid::from_u128(!cut.as_u128()))
}

fn note(attempt: &Attempt) -> String {
    format!("{NOTE} {} {}", attempt.uid, attempt.number)
}

fn attempt_of(note: &str) -> Option<Attempt> {
    let (uid, number) = note.strip_prefix(NOTE)?.trim_start().split_once(' ')?;
    Some(Attempt { uid: uid.parse().ok()?, number: number.parse().ok()? })
}

impl MetaHost {
    /// Asks the executor and waits for what it says. Not from one of the runtime's threads.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Core, Now) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let stopped = || fault(SnapshotCode::NotFullyRecovered, "the server is stopping");
        let (sender, answer) = std_mpsc::channel();
        let ask: Ask = Box::new(move |core, now| drop(sender.send(question(core, now))));
        self.queue.blocking_send(Input::Ask(ask)).map_err(|_| stopped())?;
        answer.recv().map_err(|_| stopped())
    }

    /// Keeps an instant of every volume: that one, or this moment. Durable when it returns.
    fn keep_instants(
        &self,
        attempt: &Attempt,
        id: Uuid,
        at: Option<Version>,
        ends: Option<Version>,
        code: SnapshotCode,
    ) -> Result<(), Fault> {
        let note = note(attempt);
        self.ask(move |core, now| {
            let live = core.machine.volumes().filter(|volume| volume.row.deleted.is_none());
            let volumes: Vec<(Uuid, Version)> = live.map(|volume| (volume.id(), volume.row.born)).collect();
            // Of a store that is idle the last commit may have left the window; nothing has changed since.
            let at = at.unwrap_or(core.machine.last().max(Version(now.wall_ns)));
            for (volume, born) in volumes.into_iter().filter(|(_, born)| *born <= at) {
                let mut kept = Ok(());
                let decided = core.decide(now, |machine, group| {
                    let at = at.max(born);
                    kept = machine.keep_instants(group, (volume, id), (at, at), ends, &note)?;
                    Ok(())
                });
                let decided = decided.map_err(|error| fault(code, error))?;
                kept.map_err(|error| fault(code, format_args!("volume {volume}: {error}")))?;
                if let Some(full) = decided.full {
                    return Err(fault(code, full));
                }
            }
            Ok(())
        })??;
        self.engine.sync().map(drop).map_err(|error| fault(code, error))
    }

    fn release_id(&self, id: Uuid) -> Result<(), Fault> {
        self.ask(move |core, now| {
            let kept = list_kept(&SharedView(core.engine.view())).unwrap_or_default();
            let volumes: Vec<Uuid> = kept
                .iter()
                .filter(|(_, kept, _)| *kept == id)
                .filter_map(|(index, ..)| Some(core.machine.volume(*index)?.id()))
                .collect();
            for volume in volumes {
                // What cannot be let go now is still kept, so it is tried again.
                drop(
                    core.decide(now, |machine, group| machine.release_instants(group, volume, id).map(drop)),
                );
            }
        })
    }

    fn holds(&self) -> MutexGuard<'_, Holds> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for MetaHost {
    fn ready(&self, intent: &Intent) -> Result<(), Fault> {
        let code = SnapshotCode::NotFullyRecovered;
        let (recovering, assigned) =
            self.ask(|core, _| (core.machine.figures().recovering, core.machine.is_assigned()))?;
        if recovering || !assigned {
            return Err(fault(
                code,
                "it is still collecting what was lost, or does not know its volumes yet",
            ));
        }
        let without_past = self.ask(|core, _| {
            let mut live = core.machine.volumes().filter(|volume| volume.row.deleted.is_none());
            let found = live.find(|volume| volume.row.spec.retention == Retention::None);
            found.map(|volume| volume.row.spec.name.clone())
        })?;
        if let Some(name) = without_past {
            let why = format!(
                "volume {name} keeps no past, so what a set needs of it cannot be kept: give it a retention, of a minute or more"
            );
            return Err(fault(SnapshotCode::StorageFailed, why));
        }
        let (_, before) = ids(&intent.attempt.uid);
        let limit = u64::try_from(BEFORE_THE_CUT.as_nanos()).unwrap_or(u64::MAX);
        let ends = Version(intent.started_ns.saturating_add(limit));
        self.keep_instants(&intent.attempt, before, None, Some(ends), code)?;
        self.engine.prepare_image().map_err(|error| fault(code, error))
    }

    fn hold(&self, attempt: &Attempt) -> Result<(), Fault> {
        let held = || (Arc::new(self.engine.hold_log()), Instant::now());
        self.holds().entry(attempt.clone()).or_insert_with(held);
        Ok(())
    }

    fn let_go(&self, attempt: &Attempt) {
        let held = self.holds().remove(attempt);
        if let Some((_, since)) = held {
            let held_ms = since.elapsed().as_millis();
            tracing::info!(uid = %attempt.uid, held_ms, "the log was held for a disk snapshot");
        }
    }

    fn image(&self, intent: &Intent, role: Role, place: &Path) -> Result<Imaged, Fault> {
        let attempt = &intent.attempt;
        let code = chronofs_snapshot::protocol::role_code(role);
        let hold = self.holds().get(attempt).map(|(hold, _)| hold.clone());
        let hold = hold.ok_or_else(|| fault(SnapshotCode::EnableTlogPopFailed, "the log is not held"))?;
        let made = match role {
            Role::Storage => hold.image_store(place),
            Role::Tlog => {
                hold.image_log(place).map(|sealed| Position { version: sealed.version, place: sealed.place })
            }
            Role::Coord => Err(EngineError::Refused("a metadata server is no coordinator".to_owned())),
        };
        if let (Role::Storage, Ok(position)) = (role, &made) {
            let mut imaged = self.imaged.lock().unwrap_or_else(PoisonError::into_inner);
            imaged.insert(attempt.clone(), position.place.segment);
        }
        let Position { version, place: end } = made.map_err(|error| fault(code, error))?;
        if role == Role::Storage {
            self.finish_store_image(place).map_err(|error| {
                fault(code, format_args!("cannot finish the image {}: {error}", place.display()))
            })?;
        }
        let ended = (role == Role::Tlog).then_some(Ended { segment: end.segment, length: end.offset });
        Ok(Imaged { version: Some(version.0), ended })
    }

    fn keep(&self, intent: &Intent, cut: Option<Cut>) -> Result<(), Fault> {
        let code = SnapshotCode::StorageFailed;
        let cut = cut.ok_or_else(|| fault(code, "the cut is not known"))?;
        let (id, before) = ids(&intent.attempt.uid);
        let ends = intent.keep_until_ns.map(Version);
        self.keep_instants(&intent.attempt, id, Some(Version(cut.cut)), ends, code)?;
        self.release_id(before)
    }

    fn complete(&self, attempt: &Attempt) {
        // Copies of the log go on keeping what a recovery needs on top of this set.
        let begins = self.imaged.lock().unwrap_or_else(PoisonError::into_inner).remove(attempt);
        if let (Some(begins), Some(copies)) = (begins, self.engine.copies()) {
            copies.trim(begins);
        }
    }

    fn release(&self, attempt: &Attempt) {
        self.imaged.lock().unwrap_or_else(PoisonError::into_inner).remove(attempt);
        let (id, before) = ids(&attempt.uid);
        for id in [id, before] {
            // The server stops if this fails; what is kept is known at the next start.
            let _ = self.release_id(id);
        }
    }

    fn kept(&self) -> Vec<Attempt> {
        let kept = self.ask(|core, _| list_kept(&SharedView(core.engine.view())).unwrap_or_default());
        kept.unwrap_or_default().iter().filter_map(|(_, _, row)| attempt_of(&row.note)).collect()
    }
}

impl MetaHost {
    /// What an engine needs beside the store to open it, and everything synced.
    fn finish_store_image(&self, place: &Path) -> std::io::Result<()> {
        std::fs::copy(self.folder.join("format"), place.join("format"))?;
        for entry in std::fs::read_dir(place)? {
            std::fs::File::open(entry?.path())?.sync_all()?;
        }
        std::fs::File::open(place)?.sync_all()
    }
}

/// What it takes to be a member.
pub(crate) struct Part {
    pub(crate) engine: Arc<EmbeddedFolder>,
    /// The engine's folder.
    pub(crate) folder: PathBuf,
    pub(crate) queue: mpsc::Sender<Input>,
    pub(crate) client: AdminClient,
    pub(crate) whitelist: Whitelist,
}

/// Takes part in snapshots, from the first time that the admin server has said under which epoch this start is a member.
pub(crate) async fn take_part(part: Part, mut registered: watch::Receiver<Option<Registered>>) {
    let Ok(first) = registered.wait_for(Option::is_some).await.map(|first| first.clone()) else { return };
    let Some(Registered { store, epoch, .. }) = first else { return };
    let wake = Arc::new(Notify::new());
    let setup = Setup {
        node: store.to_string(),
        folder: part.folder.join(IMAGES),
        whitelist: part.whitelist,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_file: None,
    };
    let Part { engine, folder, queue, client, .. } = part;
    let host = MetaHost { engine, folder, queue, holds: Mutex::default(), imaged: Mutex::default() };
    let woken = wake.clone();
    let agent = match Agent::new(setup, epoch, host, move || woken.notify_one()) {
        Ok(agent) => agent,
        Err(error) => return tracing::error!(%error, "this server takes part in no disk snapshot"),
    };
    let _end = StopsAgent(agent.clone());
    loop {
        let known = registered.borrow_and_update().as_ref().map_or(epoch, |registered| registered.epoch);
        let turn = agent.clone();
        let poll = tokio::task::spawn_blocking(move || {
            turn.set_epoch(known);
            turn.tick();
            turn.poll()
        });
        let Ok(poll) = poll.await else { return };
        tokio::select! {
            answered = ask(&client, &poll) => match answered {
                Ok(orders) => {
                    let over = orders.iter().all(|order| matches!(order.what, What::Finish { .. }));
                    let turn = agent.clone();
                    let again = over && !orders.is_empty();
                    drop(tokio::task::spawn_blocking(move || turn.orders(&orders)).await);
                    if again {
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the admin server cannot be asked about disk snapshots");
                    tokio::time::sleep(RETRY).await;
                }
            },
            () = wake.notified() => {}
            _ = registered.changed() => {}
            // The lease on the log is looked at.
            () = tokio::time::sleep(RETRY), if !poll.said.is_empty() => {}
        }
    }
}

async fn ask(client: &AdminClient, poll: &Poll) -> Result<Vec<Order>, ClientError> {
    client.call(Method::POST, "/v1/meta/snapshot", Some(poll)).await
}

/// Ends programs that run for a snapshot when the server stops.
struct StopsAgent(Agent);

impl Drop for StopsAgent {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_for_which_attempt_an_instant_is_kept() {
        let attempt = Attempt { uid: "c50263df28be44ebb596f5c2a849adbb".parse().unwrap(), number: 17 };
        assert_eq!(attempt_of(&note(&attempt)), Some(attempt));
        for other in ["", "a backup", "disk snapshot", "disk snapshot x 1", "disk snapshots c5 1"] {
            assert_eq!(attempt_of(other), None, "{other}");
        }
    }
}
