//! What disk snapshots need of volumes, kept in two places: as rows of the metadata, and as pins in the block stores, which old
//! copies of the metadata find and obey. Rows are made first and go last, so whatever is lost in between, one of both holds.
//!
//! From before anything else is done all that a volume has of its past is kept, and all that comes. When the cut is known, the
//! past up to it. Ids are made of the attempt and the incarnation of the volume: a clone, whose rows are those of its
//! source and whose incarnation is another, never names a pin of its source.

use crate::collect::Collector;
use crate::core::Core;
use crate::executor::{Ask, Input};
use crate::machine::{Now, SharedView};
use chronofs_blocks::Pin;
use chronofs_blocks::note::SNAPSHOTS;
use chronofs_blocks::reader::{READERS, readers_of};
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::embedded::EmbeddedFolder;
use chronofs_engine::{Engine, ReadStop};
use chronofs_namespace::list_kept;
use chronofs_snapshot::SnapshotCode;
use chronofs_snapshot::protocol::{Attempt, Fault};
use chronofs_wire::identity::Sha256;
use futures::stream::{self, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Who needs what is kept for a snapshot. UID and number follow as the reason.
const OWNER: &str = "disk snapshot";
/// What is kept before the cut is known goes after this, whatever becomes of the snapshot.
const BEFORE_THE_CUT: Duration = Duration::from_secs(6 * 3600);
/// A pin whose end is so long ago is taken away.
const TIDY_AFTER_NS: u64 = 24 * 3_600_000_000_000;
/// Pins of so many volumes are put or taken away at once,
const AT_ONCE: usize = 16;
/// and each within this time: less than the phase has.
const PIN_WITHIN: Duration = Duration::from_secs(50);

/// What could not be let go is tried again after this.
const REST: Duration = Duration::from_secs(30);

/// What is kept of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Its past up to the cut.
    Cut,
    /// Its past as it was at the begin.
    Past,
    /// All since then. A row only: of what was still to come then, an old copy of the metadata has nothing.
    Coming,
}

const ALL: [Kind; 3] = [Kind::Cut, Kind::Past, Kind::Coming];

fn record_name(attempt: &Attempt) -> String {
    format!("{SNAPSHOTS}/{}", attempt.uid)
}

fn id_of(of: &Attempt, kind: Kind, incarnation: u16) -> Uuid {
    let sum = Sha256::of(format!("{} {} {kind:?} {incarnation}", of.uid, of.number).as_bytes());
    Uuid::from_slice(&sum.0[..16]).unwrap_or_default()
}

fn note(attempt: &Attempt) -> String {
    format!("{OWNER}: {} {}", attempt.uid, attempt.number)
}

fn attempt_of(note: &str) -> Option<Attempt> {
    let (uid, number) = note.strip_prefix(OWNER)?.strip_prefix(": ")?.split_once(' ')?;
    Some(Attempt { uid: uid.parse().ok()?, number: number.parse().ok()? })
}

/// Whether a pin keeps what this attempt needs.
pub(crate) fn is_of(pin: &Pin, attempt: &Attempt) -> bool {
    pin.owner == OWNER && pin.reason == format!("{} {}", attempt.uid, attempt.number)
}

/// Attempts of which a pin of this server was found without a row, by volume. One that was given up on its way into the
/// store, and came there late, is such a pin. It is kept, as far as the coordinator is concerned, until it says otherwise.
#[derive(Clone, Default)]
pub(crate) struct Strays(Arc<Mutex<BTreeMap<Uuid, BTreeSet<Attempt>>>>);

impl Strays {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, BTreeSet<Attempt>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn all(&self) -> BTreeSet<Attempt> {
        self.lock().values().flatten().cloned().collect()
    }

    fn forget(&self, attempt: &Attempt) {
        for attempts in self.lock().values_mut() {
            attempts.remove(attempt);
        }
    }
}

/// What pins of snapshots in a block store are judged to be.
#[derive(Default)]
struct Judged {
    /// Ended long ago.
    over: Vec<Pin>,
    /// Without a row; not said where rows cannot be read.
    strays: Option<BTreeMap<Uuid, BTreeSet<Attempt>>>,
}

fn judge(core: &Core, now: Now, pins: Vec<Pin>) -> Judged {
    if !core.machine.owns_store(now.steady_ns) {
        return Judged::default();
    }
    let known = volumes(core);
    let own = |pin: &Pin| {
        let is_its = |volume: &&Known| volume.id == pin.volume && volume.incarnation == pin.incarnation;
        known.iter().find(is_its).copied()
    };
    let strays = list_kept(&SharedView(core.engine.view())).ok().map(|kept| {
        let mut strays = BTreeMap::<Uuid, BTreeSet<Attempt>>::new();
        for (pin, volume) in pins.iter().filter_map(|pin| Some((pin, own(pin)?))) {
            let of = attempt_of(&format!("{}: {}", pin.owner, pin.reason));
            let named = |of: &Attempt| ALL.iter().any(|kind| pin.id == id_of(of, *kind, volume.incarnation));
            let has_row = kept.iter().any(|(index, id, _)| (*index, *id) == (volume.index, pin.id));
            if let Some(of) = of.filter(named).filter(|_| !has_row) {
                strays.entry(volume.id).or_default().insert(of);
            }
        }
        strays
    });
    let is_over = |pin: &Pin| {
        let ended = pin.ends.is_some_and(|ends| ends.0.saturating_add(TIDY_AFTER_NS) <= now.wall_ns);
        ended && own(pin).is_some()
    };
    Judged { over: pins.iter().filter(|pin| is_over(pin)).cloned().collect(), strays }
}

fn fault(code: SnapshotCode, why: impl std::fmt::Display) -> Fault {
    Fault { code, why: why.to_string() }
}

/// See the module. Nothing of it is called from one of the runtime's threads.
pub(crate) struct Keeper {
    pub(crate) queue: mpsc::Sender<Input>,
    pub(crate) engine: Arc<EmbeddedFolder>,
    pub(crate) collector: Collector,
    pub(crate) runtime: Handle,
    /// What could not be let go, and when that was tried.
    pub(crate) resting: Mutex<BTreeMap<Attempt, Instant>>,
}

/// A volume that may have something to keep.
#[derive(Clone, Copy)]
struct Known {
    index: VolumeIndex,
    id: Uuid,
    incarnation: u16,
    born: Version,
    given_up: bool,
}

fn volumes(core: &Core) -> Vec<Known> {
    let there = core.machine.volumes().filter(|volume| !volume.row.is_gone());
    let known = there.map(|volume| Known {
        index: volume.index,
        id: volume.id(),
        incarnation: volume.row.incarnation,
        born: volume.row.born,
        given_up: volume.row.is_given_up(),
    });
    known.collect()
}

/// The attempts whose cut this server keeps for itself. A clone has none of its source's: it keeps nothing for them.
pub(crate) fn own_sets(core: &Core) -> Result<BTreeSet<Attempt>, ReadStop> {
    let kept = list_kept(&SharedView(core.engine.view()))?;
    let mut own = BTreeSet::new();
    for volume in volumes(core) {
        for (_, id, row) in kept.iter().filter(|(index, ..)| *index == volume.index) {
            let of = attempt_of(&row.note);
            own.extend(of.filter(|of| *id == id_of(of, Kind::Cut, volume.incarnation)));
        }
    }
    Ok(own)
}

impl Keeper {
    /// Asks the executor and waits for what it says.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Core, Now) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let stopped = || fault(SnapshotCode::NotFullyRecovered, "the server is stopping");
        let (sender, answer) = std_mpsc::channel();
        let ask: Ask = Box::new(move |core, now| drop(sender.send(question(core, now))));
        self.queue.blocking_send(Input::Ask(ask)).map_err(|_| stopped())?;
        answer.recv().map_err(|_| stopped())
    }

    /// Keeps the past of every volume, deleted ones too, and all that comes. Durable when it returns, here and in the
    /// block stores.
    pub(crate) fn keep_past(&self, attempt: &Attempt, started_ns: u64) -> Result<(), Fault> {
        let code = SnapshotCode::StorageFailed;
        let limit = u64::try_from(BEFORE_THE_CUT.as_nanos()).unwrap_or(u64::MAX);
        let ends = Version(started_ns.saturating_add(limit));
        let of = attempt.clone();
        let pins = self.ask(move |core, now| {
            let mut pins = Vec::new();
            for volume in volumes(core).into_iter().filter(|volume| !volume.given_up) {
                let ids = [Kind::Past, Kind::Coming].map(|kind| id_of(&of, kind, volume.incarnation));
                let span = decide(core, now, volume.id, |machine, group| {
                    machine.keep_past(group, (volume.id, ids), ends, &note(&of))
                })?;
                pins.push(pin(&of, volume, ids[0], span, Some(ends)));
            }
            Ok(pins)
        })??;
        self.engine.sync().map_err(|error| fault(code, error))?;
        self.put(pins)
    }

    /// The cut is known: from now on just the past up to it is kept.
    pub(crate) fn keep_cut(&self, attempt: &Attempt, cut: Version) -> Result<(), Fault> {
        let of = attempt.clone();
        let pins = self.ask(move |core, now| {
            let kept = list_kept(&SharedView(core.engine.view()))
                .map_err(|stop| fault(SnapshotCode::StorageFailed, stop))?;
            let mut pins = Vec::new();
            for volume in volumes(core) {
                let past = id_of(&of, Kind::Past, volume.incarnation);
                let past = kept.iter().find(|(index, id, _)| (*index, *id) == (volume.index, past));
                // One that was made since the begin is kept from its birth on, if it was there at the cut.
                let from = past.map_or(volume.born, |(.., row)| row.at);
                if from > cut || (past.is_none() && volume.given_up) {
                    continue;
                }
                let id = id_of(&of, Kind::Cut, volume.incarnation);
                decide(core, now, volume.id, |machine, group| {
                    machine.keep_instants(group, (volume.id, id), (from, cut), None, &note(&of))
                })?;
                pins.push(pin(&of, volume, id, (from, cut), None));
            }
            Ok::<_, Fault>(pins)
        })??;
        self.engine.sync().map_err(|error| fault(SnapshotCode::StorageFailed, error))?;
        self.put(pins)?;
        // What cannot go now has an end.
        if let Err(why) = self.let_go(attempt, &[Kind::Past, Kind::Coming]) {
            tracing::warn!(uid = %attempt.uid, "more than the set needs is kept for some hours: {why}");
        }
        Ok(())
    }

    /// Nothing need be kept for this attempt any more; but what a clone reads goes on being kept. What cannot be let go now
    /// is still said to be kept, after a while.
    pub(crate) fn release(&self, attempt: &Attempt) {
        let done = self.try_release(attempt);
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        match done {
            Ok(()) => {
                resting.remove(attempt);
                self.collector.strays.forget(attempt);
            }
            Err(why) => {
                tracing::warn!(uid = %attempt.uid, "what was kept for a disk snapshot stays for now: {why}");
                resting.insert(attempt.clone(), Instant::now());
            }
        }
    }

    fn try_release(&self, attempt: &Attempt) -> Result<(), String> {
        let mut pins = self.own_pins(attempt)?;
        let (strays, mut failed) = self.stray_pins(attempt, &pins)?;
        pins.extend(strays);
        // Where nobody knows who reads it, it stays; other stores do not wait for that one.
        pins.retain(|pin| !failed.contains_key(&pin.volume));
        let mut free = self.free_of_readers(attempt, &pins);
        if free.is_ok() {
            failed = self.remove_pins(attempt, &ALL, failed)?;
            // A clone registers first and looks for the pins then. So one of both sees the other.
            free = self.free_of_readers(attempt, &pins);
        }
        if let Err(why) = free {
            // Those that are there already stay as they are.
            self.put(pins).map_err(|fault| fault.why)?;
            return Err(why);
        }
        self.forget_record(attempt, &pins)?;
        self.release_rows(attempt, &ALL, failed)
    }

    /// Something of it could not be let go a moment ago.
    pub(crate) fn rests(&self, attempt: &Attempt) -> bool {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.get(attempt).is_some_and(|since| since.elapsed() < REST)
    }

    /// For which attempts something is kept, or why that cannot be known.
    pub(crate) fn attempts(&self) -> Result<BTreeSet<Attempt>, String> {
        let asked = self.ask(|core, _| list_kept(&SharedView(core.engine.view())));
        let kept = asked.map_err(|fault| fault.why)?.map_err(|stop| stop.to_string())?;
        let mut attempts = self.collector.strays.all();
        attempts.extend(kept.iter().filter_map(|(.., row)| attempt_of(&row.note)));
        Ok(attempts)
    }

    /// Who is known to read what is kept.
    pub(crate) fn readers(&self) -> Option<BTreeMap<String, Vec<String>>> {
        let mut own = self.ask(|core, _| own_sets(core)).ok()?.ok()?;
        own.extend(self.collector.strays.all());
        self.collector.readers.of(&self.collector.stores, &own)
    }

    /// The pins of this server's own set. A clone has none of the sets of its source.
    fn own_pins(&self, attempt: &Attempt) -> Result<Vec<Pin>, String> {
        let of = attempt.clone();
        let pins = self.ask(move |core, _| {
            // What cannot be read may be what a clone reads.
            let kept = list_kept(&SharedView(core.engine.view())).map_err(|stop| stop.to_string())?;
            let pin_of = |volume: &Known| {
                let id = id_of(&of, Kind::Cut, volume.incarnation);
                let (.., row) =
                    kept.iter().find(|(index, known, _)| (*index, *known) == (volume.index, id))?;
                Some(pin(&of, *volume, id, (row.at, row.to), row.ends))
            };
            Ok(volumes(core).iter().filter_map(pin_of).collect())
        });
        pins.map_err(|fault| fault.why)?
    }

    /// The same of pins that have no row: put late, or made after the time to which the metadata was put back. A clone may read
    /// what they keep. Looked for now: what was read before may be from before they came. Beside them the volumes in whose store nobody
    /// can look, with the reason.
    fn stray_pins(
        &self,
        attempt: &Attempt,
        known: &[Pin],
    ) -> Result<(Vec<Pin>, BTreeMap<Uuid, String>), String> {
        let volumes = self.ask(|core, _| volumes(core)).map_err(|fault| fault.why)?;
        // Of what is given up nobody reads anything, and its store may be away for good.
        let named = volumes.iter().filter(|volume| !volume.given_up);
        let named: BTreeMap<Uuid, Uuid> =
            named.map(|volume| (volume.id, id_of(attempt, Kind::Cut, volume.incarnation))).collect();
        let wanted: BTreeSet<Uuid> =
            named.keys().copied().chain(known.iter().map(|pin| pin.volume)).collect();
        let stores = self.one_each(wanted.iter().copied());
        let (mut strays, mut unread) = (Vec::new(), BTreeMap::new());
        for ((one, ()), found) in self.each(stores, |store, _| async move { store.pins().await }) {
            let found = match found {
                Ok(found) => found,
                Err(why) => {
                    let why = format!("the pins in its block store cannot be read: {why}");
                    let with_it = self.with_it(one).into_iter().filter(|volume| wanted.contains(volume));
                    unread.extend(with_it.map(|volume| (volume, why.clone())));
                    continue;
                }
            };
            let pins = found.iter().filter_map(|(name, bytes)| Pin::decode(name, bytes).ok());
            let is_known =
                |pin: &Pin| known.iter().any(|known| (known.volume, known.id) == (pin.volume, pin.id));
            strays.extend(pins.filter(|pin| named.get(&pin.volume) == Some(&pin.id) && !is_known(pin)));
        }
        Ok((strays, unread))
    }

    /// The volumes in the block store of this one, and this one.
    fn with_it(&self, volume: Uuid) -> Vec<Uuid> {
        let mut stores = self.collector.stores.each().into_iter().map(|(_, volumes)| volumes);
        stores.find(|volumes| volumes.contains(&volume)).unwrap_or_else(|| vec![volume])
    }

    /// One of these volumes for each block store.
    fn one_each(&self, of: impl Iterator<Item = Uuid>) -> Vec<(Uuid, ())> {
        let of: BTreeSet<Uuid> = of.collect();
        let known = self.collector.stores.each();
        let is_one = |volume: &&Uuid| of.contains(*volume);
        let mut named: Vec<Uuid> =
            known.iter().filter_map(|(_, volumes)| volumes.iter().find(is_one).copied()).collect();
        // Where a store is not in reach, that is to be said.
        named.extend(of.iter().copied().filter(|volume| self.collector.stores.of(*volume).is_none()));
        named.into_iter().map(|volume| (volume, ())).collect()
    }

    /// Who reads a set, or why nobody knows.
    fn free_of_readers(&self, attempt: &Attempt, pins: &[Pin]) -> Result<(), String> {
        let stores = self.one_each(pins.iter().map(|pin| pin.volume));
        let looked = self.each(stores, |store, _| async move { store.notes(READERS).await });
        for (_, found) in looked {
            let readers = readers_of(attempt.uid.as_str(), &found?);
            if !readers.is_empty() {
                return Err(format!("it is read by {}", readers.join("; ")));
            }
        }
        Ok(())
    }

    /// Puts the record of a complete set into the block stores of its volumes.
    pub(crate) fn put_record(&self, attempt: &Attempt, sealed: Vec<u8>) -> Result<(), String> {
        let (name, bytes) = (&record_name(attempt), &bytes::Bytes::from(sealed));
        let stores = self.one_each(self.own_pins(attempt)?.iter().map(|pin| pin.volume));
        let put = self.each(stores, |store, _| async move { store.put_note(name, bytes.clone()).await });
        put.into_iter().try_for_each(|(_, put)| put)
    }

    /// Takes the record of this server's own set away.
    fn forget_record(&self, attempt: &Attempt, pins: &[Pin]) -> Result<(), String> {
        let name = &record_name(attempt);
        let stores = self.one_each(pins.iter().map(|pin| pin.volume));
        let removed = self.each(stores, |store, _| async move { store.remove_note(name).await });
        removed.into_iter().try_for_each(|(_, removed)| removed)
    }

    fn let_go(&self, attempt: &Attempt, kinds: &[Kind]) -> Result<(), String> {
        let failed = self.remove_pins(attempt, kinds, BTreeMap::new())?;
        self.release_rows(attempt, kinds, failed)
    }

    /// Takes pins of an attempt away, also where there is no row: what was put late. Gives the volumes where that failed, and
    /// those that `failed` before, of which none is taken.
    fn remove_pins(
        &self,
        attempt: &Attempt,
        kinds: &[Kind],
        mut failed: BTreeMap<Uuid, String>,
    ) -> Result<BTreeMap<Uuid, String>, String> {
        let volumes = self.ask(|core, _| volumes(core)).map_err(|fault| fault.why)?;
        let named = volumes.iter().filter(|volume| !failed.contains_key(&volume.id)).flat_map(|volume| {
            let pinned = kinds.iter().filter(|kind| **kind != Kind::Coming);
            pinned.map(|kind| (volume.id, id_of(attempt, *kind, volume.incarnation)))
        });
        let removed = self
            .each(named.collect(), |store, (volume, id)| async move { store.remove_pin(volume, id).await });
        failed
            .extend(removed.into_iter().filter_map(|((volume, _), removed)| Some((volume, removed.err()?))));
        Ok(failed)
    }

    /// Lets rows of an attempt go, but for those of volumes whose pin could not be taken away. Of a clone all of them: they
    /// are those of its source.
    fn release_rows(
        &self,
        attempt: &Attempt,
        kinds: &[Kind],
        failed: BTreeMap<Uuid, String>,
    ) -> Result<(), String> {
        let (of, kinds) = (attempt.clone(), kinds.to_vec());
        let released = self.ask(move |core, now| {
            let kept = list_kept(&SharedView(core.engine.view())).map_err(|stop| stop.to_string())?;
            let mut left = None;
            for volume in volumes(core) {
                // Also without a row: the pin that stays is a stray.
                if let Some(why) = failed.get(&volume.id).filter(|_| !volume.given_up) {
                    left = Some(format!("volume {}: {why}", volume.id));
                }
                let id = |kind: &Kind| id_of(&of, *kind, volume.incarnation);
                let stay: Vec<Uuid> = ALL.iter().filter(|kind| !kinds.contains(kind)).map(id).collect();
                let rows =
                    kept.iter().filter(|(index, _, row)| *index == volume.index && row.note == note(&of));
                for (_, id, _) in rows.filter(|(_, id, _)| !stay.contains(id)) {
                    match failed.get(&volume.id) {
                        Some(why) => left = Some(format!("volume {}: {why}", volume.id)),
                        // The server stops if this fails; what is kept is known at the next start.
                        None => drop(core.decide(now, |machine, group| {
                            machine.release_instants(group, volume.id, *id).map(drop)
                        })),
                    }
                }
            }
            left.map_or(Ok(()), Err)
        });
        released.map_err(|fault| fault.why)?
    }

    fn put(&self, pins: Vec<Pin>) -> Result<(), Fault> {
        let pins = pins.into_iter().map(|pin| (pin.volume, pin)).collect();
        let put = self.each(pins, |store, (_, pin)| async move { store.put_pin(&pin).await });
        match put.into_iter().find_map(|((volume, _), put)| Some((volume, put.err()?))) {
            None => Ok(()),
            Some((volume, why)) => Err(fault(
                SnapshotCode::StorageFailed,
                format_args!(
                    "what the set needs of volume {volume} cannot be pinned in its block store: {why}"
                ),
            )),
        }
    }

    /// Does something in the block store of each volume, several at once.
    fn each<T: Clone, R, F: Future<Output = Result<R, chronofs_blocks::StoreError>>>(
        &self,
        of: Vec<(Uuid, T)>,
        work: impl Fn(Arc<dyn chronofs_blocks::StorePort>, (Uuid, T)) -> F,
    ) -> Vec<((Uuid, T), Result<R, String>)> {
        let work = &work;
        let each = of.into_iter().map(|named| {
            let store = self.collector.stores.of(named.0);
            async move {
                let Some(store) = store else { return (named, Err("it is not in reach".to_owned())) };
                let done = tokio::time::timeout(PIN_WITHIN, work(store, named.clone())).await;
                let late = |_| Err(format!("it has not answered for {} seconds", PIN_WITHIN.as_secs()));
                (named, done.map_or_else(late, |done| done.map_err(|error| error.to_string())))
            }
        });
        self.runtime.block_on(async { stream::iter(each).buffer_unordered(AT_ONCE).collect().await })
    }
}

/// Has something of a volume decided.
fn decide<T>(
    core: &mut Core,
    now: Now,
    volume: Uuid,
    mut what: impl FnMut(
        &mut crate::machine::Machine,
        &mut crate::machine::Group,
    ) -> Result<Result<T, chronofs_namespace::SystemError>, chronofs_engine::EngineError>,
) -> Result<T, Fault> {
    let code = SnapshotCode::StorageFailed;
    let mut said = None;
    let decided = core.decide(now, |machine, group| {
        said = Some(what(machine, group)?);
        Ok(())
    });
    if let Some(full) = decided.map_err(|error| fault(code, error))?.full {
        return Err(fault(code, full));
    }
    match said {
        Some(Ok(done)) => Ok(done),
        Some(Err(error)) => Err(fault(code, format_args!("volume {volume}: {error}"))),
        None => Err(fault(code, "nothing was decided")),
    }
}

fn pin(of: &Attempt, volume: Known, id: Uuid, (from, to): (Version, Version), ends: Option<Version>) -> Pin {
    let mut pin = Pin::new(volume.id, volume.incarnation, id, from, to);
    (pin.owner, pin.reason) = (OWNER.to_owned(), format!("{} {}", of.uid, of.number));
    pin.ends = ends;
    pin
}

impl Collector {
    /// Looks at the pins that were `found` in the block store of these volumes. Those of snapshots and holds whose end is long
    /// ago go: they are of what nobody could end, in nobody's way, and would be read again and again. Of a snapshot's without a
    /// row the coordinator is asked.
    pub(crate) async fn tidy(
        &self,
        store: &dyn chronofs_blocks::StorePort,
        of: &[Uuid],
        found: &[(String, bytes::Bytes)],
    ) {
        let pins = found.iter().filter_map(|(name, bytes)| Pin::decode(name, bytes).ok());
        let ours = |pin: &Pin| pin.owner == OWNER || crate::holds::OWNERS.contains(&pin.owner.as_str());
        let pins: Vec<Pin> = pins.filter(|pin| ours(pin) && of.contains(&pin.volume)).collect();
        let judged = self.ask_at(move |core, now| judge(core, now, pins)).await.unwrap_or_default();
        if let Some(mut strays) = judged.strays {
            let mut known = self.strays.lock();
            known.retain(|volume, _| !of.contains(volume));
            known.append(&mut strays);
        }
        for pin in judged.over {
            if let Err(error) = store.remove_pin(pin.volume, pin.id).await {
                tracing::debug!(%error, "the next reading tries again");
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
