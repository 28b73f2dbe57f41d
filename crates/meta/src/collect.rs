//! What is collected, for people, and the look through the block stores.
//!
//! The machine deletes what it knows of. What it has no row for - objects that a client stored and never published,
//! deletions that a store swallowed - is found only by listing the store, now and then and when somebody asks. Each
//! object found is judged by the rows as they are after the page came; what no session explains is reported and never
//! deleted. An error ends the look through that store: nothing is concluded from what was not listed.
//! And while a store holds a single object of these volumes that no grant explains, nothing that was found by listing is
//! deleted there: the metadata may be an old copy, to which the objects of a newer one look like leftovers.

use crate::executor::{Ask, Input};
use crate::machine::{CollectionShown, DeletedObjects, Event, SharedView};
use crate::server::objects::Stores;
use chronofs_blocks::work::off_thread;
use chronofs_blocks::{StorePort, parse_object_name};
use chronofs_core::{ObjectId, Version, VolumeIndex};
use chronofs_engine::{ReadStop, View};
use chronofs_namespace::rows::{Sum, Volume};
use chronofs_namespace::{Judged, judge};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

/// When a server first looks through its stores by itself, and how often.
const FIRST_LOOK: Duration = Duration::from_secs(15 * 60);
const LOOK_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How many objects are condemned in one commit.
const CHUNK: usize = 256;
/// How many quarantined names are shown.
const EXAMPLES_MAX: usize = 20;
/// How many objects one look has deleted; the next one finds the rest.
const GARBAGE_MAX: usize = 1 << 18;

/// What `/gc` says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GcStatus {
    /// The volumes.
    pub volumes: Vec<VolumeCollection>,
    /// The block stores, as they were found when they were last looked through.
    pub stores: Vec<StoreListing>,
    /// How often all stores were looked through.
    pub looks: u64,
    /// How often that was asked for or begun.
    pub asked: u64,
}

/// A volume in [`GcStatus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeCollection {
    /// Its name.
    pub name: String,
    /// Objects and staged slices that rows name, live or past.
    pub held: Sum,
    /// Of these bytes so many are needed by what is there now; the past costs the rest. Only after a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_bytes: Option<u64>,
    /// Named by none, and kept for a while.
    pub retired: Sum,
    /// Of them those that could go now.
    pub due: Sum,
    /// On their way out.
    pub condemned: Sum,
    /// How it goes.
    #[serde(flatten)]
    pub shown: CollectionShown,
}

/// A block store as it was found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StoreListing {
    /// The volumes whose objects lie there.
    pub volumes: Vec<String>,
    /// When the look ended, as an instant.
    pub at: String,
    /// What was there for these volumes.
    pub found: Sum,
    /// Of it: granted to a session, which is over, and named by nothing. It goes.
    pub garbage: Sum,
    /// Of it: granted to a session that may still publish it.
    pub open: Sum,
    /// Of it: explained by nothing, and names that are no object's. It stays.
    pub quarantined: Sum,
    /// How many of the quarantined are objects of these volumes. While there are any, no garbage goes.
    #[serde(default)]
    pub unexplained: u64,
    /// Some of the quarantined, with the reason.
    pub examples: Vec<(String, String)>,
    /// Objects of other volumes.
    pub others: Sum,
    /// Why the look ended early.
    pub error: Option<String>,
}

/// Looks through block stores.
#[derive(Clone)]
pub struct Collector {
    queue: mpsc::Sender<Input>,
    stores: Stores,
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct State {
    stores: Vec<StoreListing>,
    looks: u64,
    asked: u64,
    looking: bool,
}

/// The metadata as it is after a page of a listing came.
struct Rows {
    view: Arc<dyn View>,
    volumes: BTreeMap<Uuid, (VolumeIndex, Volume)>,
    over_since: Version,
}

impl Collector {
    /// A collector; [`Collector::run`] does the work.
    pub fn new(queue: mpsc::Sender<Input>, stores: Stores) -> Collector {
        Collector { queue, stores, state: Arc::default(), wake: Arc::default() }
    }

    /// Asks for a look through all stores. Gives its number: it is done when [`GcStatus::looks`] is that high.
    pub fn look_soon(&self) -> u64 {
        let mut state = self.lock();
        // A look that is under way may have passed what the new one is to find.
        state.asked = state.looks + 1 + u64::from(state.looking);
        self.wake.notify_one();
        state.asked
    }

    /// Looks through the stores for as long as the server runs.
    pub async fn run(self) {
        let mut wait = FIRST_LOOK;
        loop {
            drop(tokio::time::timeout(wait, self.wake.notified()).await);
            wait = LOOK_EVERY;
            loop {
                self.lock().looking = true;
                let listings = self.look().await;
                let mut state = self.lock();
                state.stores = listings;
                (state.looking, state.looks) = (false, state.looks + 1);
                if state.looks >= state.asked {
                    break;
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self) -> Vec<StoreListing> {
        let mut listings = Vec::new();
        for (store, volumes) in self.stores.each() {
            let mut listing = StoreListing::default();
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
        let mut from = None;
        let mut garbage: Vec<(Uuid, ObjectId)> = Vec::new();
        loop {
            let page = store.list(from).await.map_err(|error| error.to_string())?;
            // Sessions are opened before they store anything: these rows explain all that is on the page.
            let rows = self.rows(volumes).await?;
            listing.at = rows.view.version().to_string();
            listing.volumes = rows.volumes.values().map(|(_, volume)| volume.spec.name.clone()).collect();
            let names = page.names;
            let mut judged = std::mem::take(listing);
            let judging = off_thread(move || {
                let found = judge_page(&rows, &names, &mut judged);
                (judged, found)
            });
            let found;
            (*listing, found) = judging.await.map_err(|error| error.to_string())?;
            garbage.extend(found.map_err(|stop| stop.to_string())?);
            garbage.truncate(GARBAGE_MAX);
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        if listing.unexplained == 0 {
            self.send_garbage(garbage).await;
        }
        self.forget_deleted(volumes).await
    }

    async fn send_garbage(&self, garbage: Vec<(Uuid, ObjectId)>) {
        let mut by_volume: BTreeMap<Uuid, Vec<ObjectId>> = BTreeMap::new();
        for (volume, object) in garbage {
            by_volume.entry(volume).or_default().push(object);
        }
        for (volume, objects) in by_volume {
            for chunk in objects.chunks(CHUNK) {
                self.send(Event::Garbage(volume, chunk.to_vec())).await;
            }
        }
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

    async fn send(&self, event: Event) {
        drop(self.queue.send(Input::Events(vec![event])).await);
    }

    async fn rows(&self, volumes: &[Uuid]) -> Result<Rows, String> {
        let wanted = volumes.to_vec();
        let rows = self.ask(move |core, steady_ns| {
            let live = core.machine.volumes().filter(|volume| volume.row.deleted.is_none());
            let ours = live.filter(|volume| wanted.contains(&volume.id()));
            let recovering = core.machine.figures().recovering;
            Rows {
                view: core.engine.view(),
                volumes: ours.map(|volume| (volume.id(), (volume.index, volume.row.clone()))).collect(),
                over_since: core
                    .machine
                    .collects_before(steady_ns)
                    .filter(|_| !recovering)
                    .unwrap_or(Version::ZERO),
            }
        });
        rows.await.ok_or_else(|| "the server stops".to_owned())
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut crate::core::Core, u64) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        let ask: Ask = Box::new(move |core, now| drop(sender.send(question(core, now.steady_ns))));
        self.queue.send(Input::Ask(ask)).await.ok()?;
        answer.await.ok()
    }

    /// How collection stands. With `dry_run` all rows are read to say what the past costs and what could go.
    pub async fn status(&self, dry_run: bool) -> Result<GcStatus, String> {
        let asked = self.ask(|core, steady_ns| {
            let live = core.machine.volumes().filter(|volume| volume.row.deleted.is_none());
            let volumes =
                live.map(|volume| (volume.index, volume.row.spec.name.clone(), volume.collection().clone()));
            let before = core.machine.collects_before(steady_ns).unwrap_or(Version::ZERO);
            (core.engine.view(), volumes.collect::<Vec<_>>(), before)
        });
        let (view, volumes, before) = asked.await.ok_or("the executor does not answer")?;
        let reading = off_thread(move || {
            let reads = SharedView(view);
            let each = volumes.into_iter().map(|(index, name, shown)| {
                let tally = chronofs_namespace::tally(&reads, index)?;
                let due = chronofs_namespace::retired_since(&reads, index, before)?;
                let live_bytes = match dry_run {
                    true => Some(chronofs_namespace::live_stored_bytes(&reads, index)?),
                    false => None,
                };
                let (held, retired, condemned) = (tally.held, tally.retired, tally.condemned);
                Ok(VolumeCollection { name, held, live_bytes, retired, due, condemned, shown })
            });
            each.collect::<Result<Vec<_>, ReadStop>>()
        });
        let volumes = reading.await.map_err(|error| error.to_string())?.map_err(|stop| stop.to_string())?;
        let state = self.lock();
        Ok(GcStatus { volumes, stores: state.stores.clone(), looks: state.looks, asked: state.asked })
    }

    /// What lost its last name by now may go, however much it is.
    pub async fn release_brakes(&self) -> Result<(), String> {
        let (sender, answer) = oneshot::channel();
        let ask: Ask = Box::new(move |core, now| {
            let released = core.decide(now, |machine, group| machine.release_brakes(group));
            drop(sender.send(released.map(drop).map_err(|error| error.to_string())));
        });
        let stops = |_| "the server stops".to_owned();
        self.queue.send(Input::Ask(ask)).await.map_err(|_| "the server stops".to_owned())?;
        answer.await.map_err(stops)?
    }
}

/// Judges what is on a page of a listing. Gives the garbage.
fn judge_page(
    rows: &Rows,
    names: &[(String, u64)],
    listing: &mut StoreListing,
) -> Result<Vec<(Uuid, ObjectId)>, ReadStop> {
    let reads = SharedView(rows.view.clone());
    let mut garbage = Vec::new();
    for (name, bytes) in names {
        let Some((volume, object)) = parse_object_name(name) else {
            quarantine(listing, name, *bytes, "it is not the name of an object");
            continue;
        };
        let Some((index, row)) = rows.volumes.get(&volume) else {
            add(&mut listing.others, *bytes);
            continue;
        };
        add(&mut listing.found, *bytes);
        match judge(&reads, *index, row, object, rows.over_since)? {
            Judged::Known => {}
            Judged::Open => add(&mut listing.open, *bytes),
            Judged::Garbage => {
                add(&mut listing.garbage, *bytes);
                garbage.push((volume, object));
            }
            Judged::Quarantined(reason) => {
                listing.unexplained += 1;
                quarantine(listing, name, *bytes, reason);
            }
        }
    }
    Ok(garbage)
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
