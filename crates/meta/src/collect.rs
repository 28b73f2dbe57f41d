//! What is collected, for people, and the look through the block stores.
//!
//! The machine deletes what it knows of. What it has no row for - objects that a client stored and never published,
//! deletions that a store swallowed - is found only by listing the store, now and then and when somebody asks. Each
//! object found is judged by the rows as they are after the page came; what no session explains is reported and never
//! deleted. An error ends the look through that store: nothing is concluded from what was not listed.
//! And while a store holds a single object of these volumes that no grant explains, nothing that was found by listing is
//! deleted there: the metadata may be an old copy, to which the objects of a newer one look like leftovers.

mod shown;

use crate::described::DescribedPut;
use crate::emptied::Emptied;
use crate::executor::{Ask, Input};
use crate::foreign::ForeignKnown;
use crate::kept::Strays;
use crate::keys::KeysPut;
use crate::machine::{DeletedObjects, Event, Now, SharedView};
use crate::pins::Turns;
use crate::reader::ReadersKnown;
use crate::server::objects::Stores;
use chronofs_blocks::work::off_thread;
use chronofs_blocks::{StorePort, parse_object_name};
use chronofs_core::{ObjectId, Version, VolumeIndex};
use chronofs_engine::{ReadStop, View};
use chronofs_namespace::rows::{Sum, Tally, Volume};
use chronofs_namespace::{Judged, PoorObject, judge, poor_object};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

pub use shown::{GcStatus, PastCost, StoreListing, VolumeCollection};

/// A page of a listing comes within this time: other stores are not to wait for one that hangs.
const PAGE_WITHIN: Duration = Duration::from_secs(120);
/// How often the time between two looks for what a deleted volume has left is doubled.
const TRIES_MAX: u32 = 7;
/// How many objects are condemned in one commit.
const CHUNK: usize = 256;
/// How many quarantined names are shown.
const EXAMPLES_MAX: usize = 20;
/// How many objects of a volume one look has deleted.
const GARBAGE_MAX: usize = 1 << 18;
/// Objects of which less than so much is needed are repacked, in percent: by itself, and when somebody asks.
const POOR_BELOW: u64 = 50;
const POOR_BELOW_IF_ASKED: u64 = 95;
/// How many objects of a volume one look has repacked; the next one finds the rest.
const POOR_MAX: usize = 1 << 16;

/// When a server looks through its stores by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rhythm {
    /// So long after its start for the first time,
    pub first: Duration,
    /// and then always after so long.
    pub every: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Rhythm { first: Duration::from_secs(15 * 60), every: Duration::from_secs(24 * 3600) }
    }
}

/// Looks through block stores.
#[derive(Clone)]
pub struct Collector {
    queue: mpsc::Sender<Input>,
    pub(crate) stores: Stores,
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
    rhythm: Rhythm,
    /// Who reads the pins of which store.
    pub(crate) turns: Turns,
    /// Who is registered as a reader in which.
    pub(crate) readers: ReadersKnown,
    /// What was counted of objects that a source stored.
    pub(crate) foreign: ForeignKnown,
    /// Of which snapshots a pin was found without a row.
    pub(crate) strays: Strays,
    /// Which sealed keys lie in their stores.
    pub(crate) keys_put: KeysPut,
    /// What lies there of what volumes are.
    pub(crate) described: DescribedPut,
}

#[derive(Default)]
struct State {
    stores: Vec<StoreListing>,
    looks: u64,
    asked: u64,
    looking: bool,
    /// The look under way was asked for.
    wanted: bool,
    /// What the past of volumes cost when it was last counted.
    past: BTreeMap<VolumeIndex, PastCost>,
    emptied: Emptied,
}

/// The metadata as it is after a page of a listing came.
struct Rows {
    view: Arc<dyn View>,
    volumes: BTreeMap<Uuid, (VolumeIndex, Volume)>,
    over_since: Version,
    brake_from: u64,
    slice_life: Duration,
}

impl Rows {
    fn names(&self) -> Vec<String> {
        self.volumes.values().map(|(_, volume)| volume.shown_name()).collect()
    }

    /// Whether a volume is given up and holds nothing that rows know of.
    fn is_emptied(&self, volume: Uuid) -> Result<bool, String> {
        let Some((index, row)) = self.volumes.get(&volume) else { return Ok(false) };
        if !row.is_given_up() {
            return Ok(false);
        }
        let tally = chronofs_namespace::tally(&SharedView(self.view.clone()), *index);
        let Tally { held, retired, condemned, .. } = tally.map_err(|stop| stop.to_string())?;
        Ok(held.count + retired.count + condemned.count == 0)
    }
}

/// What a look finds to be garbage of one volume.
#[derive(Default)]
struct Garbage {
    count: u64,
    /// Those that this look has deleted; the next one finds the rest. A page may name one twice.
    objects: BTreeSet<ObjectId>,
}

impl Collector {
    /// A collector; [`Collector::run`] does the work.
    pub fn new(queue: mpsc::Sender<Input>, stores: Stores, rhythm: Rhythm) -> Collector {
        let (state, wake, turns, readers, foreign, strays) = Default::default();
        let (keys_put, described) = Default::default();
        Collector { queue, stores, state, wake, rhythm, turns, readers, foreign, strays, keys_put, described }
    }

    /// Asks for a look through all stores. Gives its number: it is done when [`GcStatus::looks`] is that high.
    pub fn look_soon(&self) -> u64 {
        let mut state = self.lock();
        // A look that is under way may have passed what the new one is to find.
        state.asked = state.looks + 1 + u64::from(state.looking);
        self.wake.notify_one();
        state.asked
    }

    /// Reads pins, and looks through the stores, for as long as the server runs.
    pub async fn run(self) {
        let notes = futures::future::join(self.clone().watch_keys(), self.clone().watch_described());
        futures::join!(self.clone().watch_pins(), notes, self.look_now_and_then());
    }

    async fn look_now_and_then(self) {
        let life = self.ask(|core, _| Duration::from_millis(core.machine.config().slice_life_ms.into()));
        let life = life.await.unwrap_or(self.rhythm.every).max(Duration::from_secs(1));
        let (mut next, mut tries) = (Instant::now() + self.rhythm.first, 0);
        loop {
            self.until(next, life, &mut tries).await;
            next = Instant::now() + self.rhythm.every;
            loop {
                {
                    let mut state = self.lock();
                    state.looking = true;
                    state.wanted = state.looks < state.asked;
                }
                let listings = self.look().await;
                let mut state = self.lock();
                state.stores = listings;
                (state.looking, state.looks) = (false, state.looks + 1);
                if state.looks >= state.asked {
                    break;
                }
            }
            // What the past costs by now, for who asks without reading all rows.
            if let Err(error) = self.status(true).await {
                tracing::warn!("what the past costs could not be counted: {error}");
            }
        }
    }

    /// Waits until somebody asks for a look, or it is time for one, or a deleted volume has nothing left but what a look
    /// finds. That is looked for when its last sessions are over for `life`, and if something stays, less and less often.
    async fn until(&self, next: Instant, life: Duration, tries: &mut u32) {
        loop {
            let at = next.min(Instant::now() + life * (1 << *tries));
            let asked = tokio::time::timeout_at(at, self.wake.notified()).await.is_ok();
            if asked || Instant::now() >= next {
                return;
            }
            let emptied = self.ask(|core, _| core.machine.is_emptied(&SharedView(core.engine.view())));
            if emptied.await == Some(true) {
                *tries = (*tries + 1).min(TRIES_MAX);
                return;
            }
            *tries = 0;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self) -> Vec<StoreListing> {
        let mut listings = Vec::new();
        for (store, volumes) in self.stores.each() {
            let mut listing = StoreListing::default();
            // Whoever asks for a look is not to wait for the next reading: until then nothing may go.
            self.read_pins(&store, &volumes).await;
            if let Err(error) = self.look_through(&*store, &volumes, &mut listing).await {
                tracing::warn!("a block store could not be looked through: {error}");
                listing.error = Some(error);
            }
            if listing.quarantined.count > 0 {
                let (name, reason) = listing.examples.first().cloned().unwrap_or_default();
                tracing::warn!(
                    count = listing.quarantined.count,
                    "a block store holds what nothing explains; it is left alone: {name}: {reason}"
                );
            }
            listings.push(listing);
        }
        listings
    }

    async fn look_through(
        &self,
        store: &dyn StorePort,
        volumes: &[Uuid],
        listing: &mut StoreListing,
    ) -> Result<(), String> {
        let (mut from, mut there) = (None, BTreeSet::new());
        let mut garbage: BTreeMap<Uuid, Garbage> = BTreeMap::new();
        let mut poor: BTreeMap<Uuid, Vec<PoorObject>> =
            volumes.iter().map(|volume| (*volume, Vec::new())).collect();
        let below = if self.lock().wanted { POOR_BELOW_IF_ASKED } else { POOR_BELOW };
        loop {
            let page = tokio::time::timeout(PAGE_WITHIN, store.list(from)).await;
            let page = page.map_err(|_| format!("no answer for {} seconds", PAGE_WITHIN.as_secs()))?;
            let page = page.map_err(|error| error.to_string())?;
            // Sessions are opened before they store anything: these rows explain all that is on the page.
            let rows = self.rows(volumes).await?;
            listing.at = rows.view.version().to_string();
            listing.volumes = rows.names();
            let names = page.names;
            let mut judged = std::mem::take(listing);
            let judging = off_thread(move || {
                let found = judge_page(&rows, &names, below, &mut judged);
                (judged, found)
            });
            let found;
            (*listing, found) = judging.await.map_err(|error| error.to_string())?;
            let found = found.map_err(|stop| stop.to_string())?;
            // Also if the listing fails further on.
            found.there.iter().for_each(|volume| self.lock().emptied.not_yet(*volume));
            there.extend(found.there);
            for (volume, object) in found.poor {
                let poor = poor.entry(volume).or_default();
                if poor.len() < POOR_MAX {
                    poor.push(object);
                }
            }
            for (volume, object) in found.garbage {
                let garbage = garbage.entry(volume).or_default();
                garbage.count += 1;
                if garbage.objects.len() < GARBAGE_MAX {
                    garbage.objects.insert(object);
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        if listing.unexplained == 0 {
            self.send_garbage(garbage, volumes, listing).await?;
            for (volume, objects) in poor {
                self.send(Event::Poor(volume, objects)).await;
            }
        }
        self.forget_deleted(volumes).await?;
        // Rows of objects that are gone went with that.
        let rows = self.rows(volumes).await?;
        for &volume in volumes {
            if there.contains(&volume) || !rows.is_emptied(volume)? {
                self.lock().emptied.not_yet(volume);
                continue;
            }
            let ends = self.lock().emptied.shows_nothing(volume, Instant::now(), rows.slice_life);
            if ends {
                self.send(Event::NoneFound(volume)).await;
            }
        }
        Ok(())
    }

    /// More garbage than is held looks like an old copy of the metadata, to which the objects of a newer one are
    /// leftovers, even if no session betrays it.
    async fn send_garbage(
        &self,
        garbage: BTreeMap<Uuid, Garbage>,
        volumes: &[Uuid],
        listing: &mut StoreListing,
    ) -> Result<(), String> {
        let rows = self.rows(volumes).await?;
        for (volume, garbage) in garbage {
            let Some((index, row)) = rows.volumes.get(&volume) else { continue };
            let tally = chronofs_namespace::tally(&SharedView(rows.view.clone()), *index);
            let tally = tally.map_err(|stop| stop.to_string())?;
            if row.is_live() && brakes(garbage.count, &tally, rows.over_since, rows.brake_from) {
                listing.braked.push(row.spec.name.clone());
                continue;
            }
            let objects: Vec<ObjectId> = garbage.objects.into_iter().collect();
            for chunk in objects.chunks(CHUNK) {
                self.send(Event::Garbage(volume, chunk.to_vec())).await;
            }
        }
        Ok(())
    }

    /// Rows of deleted objects stay while the session could name the object again; now it may be over.
    async fn forget_deleted(&self, volumes: &[Uuid]) -> Result<(), String> {
        let rows = self.rows(volumes).await?;
        let finding = off_thread(move || {
            let reads = SharedView(rows.view.clone());
            let mut found = Vec::new();
            for (&id, &(index, _)) in &rows.volumes {
                found.push((id, chronofs_namespace::gone_objects(&reads, index)?));
            }
            Ok(found)
        });
        let found: Result<Vec<_>, ReadStop> = finding.await.map_err(|error| error.to_string())?;
        for (volume, objects) in found.map_err(|stop| stop.to_string())? {
            for chunk in objects.chunks(CHUNK) {
                let (asked, deleted) = (Vec::new(), chunk.to_vec());
                let gone = DeletedObjects { volume, asked, deleted, failure: None };
                self.send(Event::Deleted(Box::new(gone))).await;
            }
        }
        Ok(())
    }

    pub(crate) async fn send(&self, event: Event) {
        drop(self.queue.send(Input::Events(vec![event])).await);
    }

    async fn rows(&self, volumes: &[Uuid]) -> Result<Rows, String> {
        let wanted = volumes.to_vec();
        let rows = self.ask(move |core, steady_ns| {
            let collected = core.machine.volumes().filter(|volume| volume.row.is_collected());
            let ours = collected.filter(|volume| wanted.contains(&volume.id()));
            let recovering = core.machine.figures().recovering;
            Rows {
                view: core.engine.view(),
                volumes: ours.map(|volume| (volume.id(), (volume.index, volume.row.clone()))).collect(),
                over_since: core
                    .machine
                    .collects_before(steady_ns)
                    .filter(|_| !recovering)
                    .unwrap_or(Version::ZERO),
                brake_from: core.machine.config().brake_from,
                slice_life: Duration::from_millis(core.machine.config().slice_life_ms.into()),
            }
        });
        rows.await.ok_or_else(|| "the server stops".to_owned())
    }

    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut crate::core::Core, u64) -> T + Send + 'static,
    ) -> Option<T> {
        self.ask_at(move |core, now| question(core, now.steady_ns)).await
    }

    pub(crate) async fn ask_at<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut crate::core::Core, Now) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        let ask: Ask = Box::new(move |core, now| drop(sender.send(question(core, now))));
        self.queue.send(Input::Ask(ask)).await.ok()?;
        answer.await.ok()
    }

    /// How collection stands. With `dry_run` all rows are read to say what the past costs and what could go.
    pub async fn status(&self, dry_run: bool) -> Result<GcStatus, String> {
        let asked = self.ask(|core, steady_ns| {
            let there = core.machine.volumes().filter(|volume| !volume.row.is_gone());
            let volumes = there.map(|volume| {
                let shown = (volume.collection().clone(), volume.packing().clone(), volume.leaving());
                (volume.index, volume.row.shown_name(), shown)
            });
            let before = core.machine.collects_before(steady_ns).unwrap_or(Version::ZERO);
            let unconfirmed = !core.machine.owns_store(steady_ns);
            (core.engine.view(), volumes.collect::<Vec<_>>(), before, unconfirmed)
        });
        let (view, volumes, before, unconfirmed) = asked.await.ok_or("the executor does not answer")?;
        let reading = off_thread(move || {
            let at = view.version().to_string();
            let reads = SharedView(view);
            let each = volumes.into_iter().map(|(index, name, (shown, packing, leaving))| {
                let tally = chronofs_namespace::tally(&reads, index)?;
                let due = chronofs_namespace::retired_since(&reads, index, before)?;
                let live_bytes = match dry_run {
                    true => Some(chronofs_namespace::live_stored_bytes(&reads, index)?),
                    false => None,
                };
                let Tally { held, retired, condemned, staged: to_pack, .. } = tally;
                let cost = |live| PastCost { bytes: held.bytes.saturating_sub(live), at: at.clone() };
                let volume = VolumeCollection {
                    name,
                    held,
                    to_pack,
                    live_bytes,
                    past: live_bytes.map(cost),
                    retired,
                    due,
                    condemned,
                    shown,
                    packing,
                    leaving,
                };
                Ok((index, volume))
            });
            each.collect::<Result<Vec<_>, ReadStop>>()
        });
        let volumes = reading.await.map_err(|error| error.to_string())?.map_err(|stop| stop.to_string())?;
        let mut state = self.lock();
        let told = volumes.into_iter().map(|(index, mut volume)| {
            match &volume.past {
                Some(past) => drop(state.past.insert(index, past.clone())),
                None => volume.past = state.past.get(&index).cloned(),
            }
            volume
        });
        let volumes = told.collect();
        let (stores, looks, asked) = (state.stores.clone(), state.looks, state.asked);
        Ok(GcStatus { volumes, stores, looks, asked, unconfirmed })
    }

    /// What lost its last name by now may go, however much it is; says so when that is durable. `None`: the server stops.
    pub(crate) async fn release_brakes(&self) -> Option<Result<(), String>> {
        let released = self.ask_at(|core, now| {
            let mut released = Ok(());
            let decided = core.decide(now, |machine, group| {
                released = machine.release_brakes(group)?;
                Ok(())
            });
            let decided = decided.map_err(|error| error.to_string())?;
            released.map_err(|error| error.to_string())?;
            decided.full.map_or(Ok(core.engine.applied()), Err)
        });
        Some(match released.await? {
            Ok(as_of) => self.until_durable(as_of).await,
            Err(why) => Err(why),
        })
    }
}

/// Whether so much garbage of a volume waits until its brake was released after all of its sessions were over.
fn brakes(garbage: u64, tally: &Tally, over_since: Version, brake_from: u64) -> bool {
    garbage >= brake_from && garbage > tally.held.count && tally.released < over_since
}

/// What is to be done about objects of a store.
#[derive(Default)]
struct Found {
    garbage: Vec<(Uuid, ObjectId)>,
    poor: Vec<(Uuid, PoorObject)>,
    /// Volumes that have objects there, whatever they are.
    there: BTreeSet<Uuid>,
}

/// Judges what is on a page of a listing. Poor is an object of which less than `below` percent are needed.
fn judge_page(
    rows: &Rows,
    names: &[(String, u64)],
    below: u64,
    listing: &mut StoreListing,
) -> Result<Found, ReadStop> {
    let reads = SharedView(rows.view.clone());
    let mut found = Found::default();
    for (name, bytes) in names {
        let Some((volume, object)) = parse_object_name(name) else {
            quarantine(listing, name, *bytes, "it is not the name of an object");
            continue;
        };
        let Some((index, row)) = rows.volumes.get(&volume) else {
            // It may be given up while the pages come.
            found.there.insert(volume);
            add(&mut listing.others, *bytes);
            continue;
        };
        add(&mut listing.found, *bytes);
        // What a clone stored, or the volume that this one was restored from, is in nobody's way here.
        let foreign = object.incarnation != row.incarnation;
        if !foreign {
            found.there.insert(volume);
        }
        match judge(&reads, *index, row, object, rows.over_since)? {
            Judged::Known => {
                let poor = poor_object(&reads, *index, object, *bytes, below)?;
                found.poor.extend(poor.filter(|_| row.is_live()).map(|poor| (volume, poor)));
            }
            Judged::Open => add(&mut listing.open, *bytes),
            Judged::Garbage => {
                add(&mut listing.garbage, *bytes);
                found.garbage.push((volume, object));
            }
            Judged::Quarantined(reason) => {
                listing.unexplained += u64::from(!foreign);
                quarantine(listing, name, *bytes, reason);
            }
        }
    }
    Ok(found)
}

fn quarantine(listing: &mut StoreListing, name: &str, bytes: u64, reason: &str) {
    add(&mut listing.quarantined, bytes);
    if listing.examples.len() < EXAMPLES_MAX {
        listing.examples.push((name.to_owned(), reason.to_owned()));
    }
}

fn add(sum: &mut Sum, bytes: u64) {
    sum.count += 1;
    sum.bytes += bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_garbage_than_is_held_waits_until_the_brake_is_released() {
        let held = |count, released| Tally {
            held: Sum { count, bytes: 0 },
            released: Version(released),
            ..Tally::default()
        };
        let brakes = |garbage, tally| brakes(garbage, &tally, Version(100), 10);
        assert!(brakes(30, held(20, 0)));
        assert!(!brakes(30, held(30, 0)), "as much is held");
        assert!(!brakes(9, held(0, 0)), "a little is no reason");
        assert!(!brakes(30, held(20, 100)), "released since the last of its sessions was over");
    }

    #[test]
    fn what_lies_in_a_store_is_there_also_of_a_volume_that_is_not_collected_when_the_page_comes() {
        let engine = chronofs_engine::memory::Memory::default();
        let view = chronofs_engine::Engine::view(&engine);
        let (volumes, over_since) = (BTreeMap::new(), Version::ZERO);
        let rows = Rows { view, volumes, over_since, brake_from: 0, slice_life: Duration::ZERO };
        let volume = Uuid::from_u128(1);
        let object = ObjectId { incarnation: 0, session: chronofs_core::SessionId(1), n: 1 };
        let names = [(chronofs_blocks::object_name(volume, object), 7)];
        let mut listing = StoreListing::default();
        // It is given up between this page and the last: no other page names it.
        let found = judge_page(&rows, &names, POOR_BELOW, &mut listing).unwrap();
        assert_eq!((found.there, listing.others.count), (BTreeSet::from([volume]), 1));
    }
}
