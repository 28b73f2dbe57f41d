//! This server as a member of disk snapshots: it keeps what a set needs, holds its log, makes images of log and store, and
//! asks the admin server what to do next.
//!
//! Clients notice nothing but two short waits: while the store links its files, and while a segment of the log is ended. All
//! else happens beside the executor, on files that do not change any more.

use crate::collect::Collector;
use crate::executor::Input;
use crate::kept::Keeper;
use chronofs_backup::{PROGRAM, Plan, store_image};
use chronofs_core::Version;
use chronofs_engine::EngineError;
use chronofs_engine::embedded::{EmbeddedFolder, LogHold, Position, RealDisk, RocksStore};
use chronofs_snapshot::agent::{Agent, Host, Imaged, Setup};
use chronofs_snapshot::protocol::{Attempt, Cut, Ended, Fault, Intent, Order, Poll, Record, What};
use chronofs_snapshot::record;
use chronofs_snapshot::{Guard, Role, SnapshotCode, Whereabouts, Whitelist};
use chronofs_wire::admin::Registered;
use chronofs_wire::http::{AdminClient, ClientError, Method};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

/// Folder of images, in that of the engine, so that files can be linked into them.
const IMAGES: &str = "images";
/// After a call that failed.
const RETRY: Duration = Duration::from_secs(1);
/// That what is kept cannot be read is said so often.
const UNREADABLE: Duration = Duration::from_secs(30);
/// While something is taken away that cannot go yet.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Records that are put at once.
const RECORDS: usize = 4;

/// The log, held for attempts, with the time since when.
type Holds = BTreeMap<Attempt, (Arc<LogHold<RocksStore, RealDisk>>, Instant)>;

/// The server as [`Host`].
struct MetaHost {
    engine: Arc<EmbeddedFolder>,
    /// The engine's folder.
    folder: PathBuf,
    keeper: Arc<Keeper>,
    holds: Mutex<Holds>,
    /// At which segment of the log the images of stores begin.
    imaged: Mutex<BTreeMap<Attempt, u64>>,
    /// Id of this server among the members.
    node: String,
    client: AdminClient,
    runtime: Handle,
}

fn fault(code: SnapshotCode, why: impl std::fmt::Display) -> Fault {
    Fault { code, why: why.to_string() }
}

impl MetaHost {
    fn holds(&self) -> MutexGuard<'_, Holds> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for MetaHost {
    fn ready(&self, intent: &Intent) -> Result<(), Fault> {
        let code = SnapshotCode::NotFullyRecovered;
        if intent.program == PROGRAM {
            let usable = self.plan(intent)?.depot();
            usable.map_err(|error| fault(SnapshotCode::StorageFailed, error))?;
        }
        let asked =
            self.keeper.ask(|core, _| (core.machine.figures().recovering, core.machine.is_assigned()));
        let (recovering, assigned) = asked?;
        if recovering || !assigned {
            return Err(fault(
                code,
                "it is still collecting what was lost, or does not know its volumes yet",
            ));
        }
        self.keeper.keep_past(&intent.attempt, intent.started_ns)?;
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
        self.keeper.keep_cut(&intent.attempt, Version(cut.cut))
    }

    fn store(
        &self,
        intent: &Intent,
        role: Role,
        image: &Path,
        stop: &dyn Fn() -> bool,
    ) -> Result<String, Fault> {
        store_image(&self.plan(intent)?, intent, &self.node, role, image, stop)
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
        self.keeper.release(attempt);
    }

    fn kept(&self) -> Result<Vec<Attempt>, String> {
        Ok(self.keeper.attempts()?.into_iter().collect())
    }

    fn rests(&self, attempt: &Attempt) -> bool {
        self.keeper.rests(attempt)
    }

    fn readers(&self) -> Option<BTreeMap<String, Vec<String>>> {
        self.keeper.readers()
    }
}

impl MetaHost {
    /// Where a backup goes, and with which key. The admin server alone knows it, and only while the backup is made.
    fn plan(&self, intent: &Intent) -> Result<Plan, Fault> {
        let path = format!("/v1/meta/backups/{}", intent.attempt.uid);
        let plan = self.runtime.block_on(self.client.call(Method::GET, &path, None::<&()>));
        plan.map_err(|error| fault(SnapshotCode::StorageFailed, error))
    }

    /// What an engine needs beside the store to open it. The store has synced its own files; each sync of one that has got another
    /// name would hold up the log's, and the folder is synced with the label.
    fn finish_store_image(&self, place: &Path) -> std::io::Result<()> {
        let format = place.join("format");
        std::fs::copy(self.folder.join("format"), &format)?;
        std::fs::File::open(format)?.sync_all()
    }
}

/// What it takes to be a member.
pub(crate) struct Part {
    pub(crate) engine: Arc<EmbeddedFolder>,
    /// The engine's folder.
    pub(crate) folder: PathBuf,
    pub(crate) queue: mpsc::Sender<Input>,
    /// With the block stores in reach.
    pub(crate) collector: Collector,
    pub(crate) client: AdminClient,
    pub(crate) whitelist: Whitelist,
    pub(crate) whereabouts: Whereabouts,
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
        whereabouts: part.whereabouts,
        guard: Guard::default(),
    };
    let Part { engine, folder, queue, collector, client, .. } = part;
    let (runtime, resting) = (Handle::current(), Mutex::default());
    let keeper = Arc::new(Keeper { queue, engine: engine.clone(), collector, runtime, resting });
    let host = MetaHost {
        engine,
        folder,
        keeper: keeper.clone(),
        holds: Mutex::default(),
        imaged: Mutex::default(),
        node: store.to_string(),
        client: client.clone(),
        runtime: Handle::current(),
    };
    let records = Arc::new(Records {
        client: client.clone(),
        keeper,
        wake: wake.clone(),
        known: Mutex::default(),
        turns: Semaphore::new(RECORDS),
    });
    let woken = wake.clone();
    let agent = match Agent::new(setup, epoch, host, move || woken.notify_one()) {
        Ok(agent) => agent,
        Err(error) => return tracing::error!(%error, "this server takes part in no disk snapshot"),
    };
    let _end = StopsAgent(agent.clone());
    let mut complained: Option<Instant> = None;
    loop {
        let known = registered.borrow_and_update().as_ref().map_or(epoch, |registered| registered.epoch);
        let turn = agent.clone();
        let poll = tokio::task::spawn_blocking(move || {
            turn.set_epoch(known);
            turn.tick();
            turn.poll()
        });
        let poll = match poll.await {
            Ok(Ok(poll)) => poll,
            Ok(Err(why)) => {
                if complained.is_none_or(|at| at.elapsed() >= UNREADABLE) {
                    complained = Some(Instant::now());
                    tracing::error!(
                        "what is kept for disk snapshots cannot be read, so all of it stays, and this server takes part in none: \
                         {why}"
                    );
                }
                // No longer: limits of what is under way are looked at in each turn.
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(_) => return,
        };
        tokio::select! {
            answered = ask(&client, &poll) => match answered {
                Ok(mut orders) => {
                    let current = poll.doing.as_ref().map(|(number, _)| *number);
                    let waiting = records.sort_out(current, &mut orders);
                    let over = orders.iter().all(|order| matches!(order.what, What::Finish { .. }));
                    let turn = agent.clone();
                    let again = over && !orders.is_empty();
                    drop(tokio::task::spawn_blocking(move || turn.orders(&orders)).await);
                    if waiting {
                        // The coordinator would say the same at once.
                        drop(tokio::time::timeout(RETRY, wake.notified()).await);
                    } else if again {
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
    client.ask_coordinator("/v1/meta/snapshot", poll).await
}

/// Records of complete sets on their way into the block stores. A member's part in a set is over when its record is there;
/// meanwhile the member goes on asking.
struct Records {
    client: AdminClient,
    keeper: Arc<Keeper>,
    wake: Arc<Notify>,
    /// Also once they are put, until that is heeded.
    known: Mutex<BTreeMap<Attempt, Way>>,
    /// A server that starts is told of all its sets.
    turns: Semaphore,
}

/// How far a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Under,
    Put,
}

impl Records {
    /// Takes out the orders that have to wait for a record, and begins with those records. Whether there are any.
    fn sort_out(self: &Arc<Self>, current: Option<u64>, orders: &mut Vec<Order>) -> bool {
        let (begin, waiting) = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            sort_out(&mut known, current, orders)
        };
        for attempt in begin {
            let records = self.clone();
            drop(tokio::spawn(async move { records.bring(attempt).await }));
        }
        waiting
    }

    async fn bring(&self, attempt: Attempt) {
        let put = match self.turns.acquire().await {
            Ok(_turn) => self.put(&attempt).await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = &put {
            tracing::warn!(uid = %attempt.uid, "the record of a disk snapshot is not in every block store yet: {why}");
            tokio::time::sleep(RETRY).await;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match put {
            Ok(()) => known.insert(attempt, Way::Put),
            // It is said again that the set is complete, and so this begins again.
            Err(_) => known.remove(&attempt),
        };
        drop(known);
        self.wake.notify_one();
    }

    async fn put(&self, attempt: &Attempt) -> Result<(), String> {
        let path = format!("/v1/meta/snapshot/{}", attempt.uid);
        let known = self.client.call::<Record>(Method::GET, &path, None::<&()>).await;
        let known = known.map_err(|error| error.to_string())?;
        let (keeper, attempt) = (self.keeper.clone(), attempt.clone());
        let putting = tokio::task::spawn_blocking(move || {
            let sealed = record::seal(&known).map_err(|error| error.to_string())?;
            keeper.put_record(&attempt, sealed)
        });
        putting.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// Takes out what cannot be heeded before a record is put: that its set is complete, or gone, since the record would come after
/// that; and what another attempt wants, if `current`, the number of the member's attempt, is the one that waits. Gives the
/// records to begin with, and whether anything waits.
fn sort_out(
    known: &mut BTreeMap<Attempt, Way>,
    current: Option<u64>,
    orders: &mut Vec<Order>,
) -> (Vec<Attempt>, bool) {
    let (mut begin, mut waiting) = (Vec::new(), BTreeSet::new());
    orders.retain(|order| {
        let What::Finish { complete } = order.what else { return true };
        match (known.get(&order.attempt), complete) {
            (Some(Way::Put), _) => drop(known.remove(&order.attempt)),
            (None, false) => {}
            (way, _) => {
                if way.is_none() {
                    known.insert(order.attempt.clone(), Way::Under);
                    begin.push(order.attempt.clone());
                }
                waiting.insert(order.attempt.number);
                return false;
            }
        }
        true
    });
    if current.is_some_and(|number| waiting.contains(&number)) {
        orders.retain(|order| !matches!(order.what, What::Do(..)));
    }
    (begin, !waiting.is_empty())
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

    fn attempt(number: u64) -> Attempt {
        Attempt { uid: "c50263df28be44ebb596f5c2a849adbb".parse().unwrap(), number }
    }

    fn finish(number: u64, complete: bool) -> Order {
        Order { attempt: attempt(number), epoch: 1, what: What::Finish { complete } }
    }

    fn begin(number: u64) -> Order {
        let intent = Intent {
            attempt: attempt(number),
            cluster: String::new(),
            program: String::new(),
            arguments: Vec::new(),
            nodes: Vec::new(),
            started_ns: 0,
            keep_until_ns: None,
            hold_ms: 1,
            run_ms: 1,
            ended: BTreeMap::new(),
        };
        Order { attempt: attempt(number), epoch: 1, what: What::Do(Box::new(intent), Vec::new()) }
    }

    /// Sorted out: the orders that are left, the records to begin with, and whether anything waits.
    fn sorted(
        known: &mut BTreeMap<Attempt, Way>,
        current: Option<u64>,
        mut orders: Vec<Order>,
    ) -> (Vec<Order>, Vec<Attempt>, bool) {
        let (begin, waiting) = sort_out(known, current, &mut orders);
        (orders, begin, waiting)
    }

    #[test]
    fn while_the_record_of_a_members_set_is_on_its_way_no_other_attempt_begins_and_the_set_does_not_end() {
        let mut known = BTreeMap::new();
        let told = || vec![finish(7, true), finish(5, false), begin(8)];
        let first = sorted(&mut known, Some(7), told());
        assert_eq!(first, (vec![finish(5, false)], vec![attempt(7)], true));
        let again = sorted(&mut known, Some(7), told());
        assert_eq!(again, (vec![finish(5, false)], Vec::new(), true), "it is put once at a time");
        let deleted = sorted(&mut known, Some(7), vec![finish(7, false)]);
        assert_eq!(deleted, (Vec::new(), Vec::new(), true), "the record would come after its end");
        known.insert(attempt(7), Way::Put);
        assert_eq!(sorted(&mut known, Some(7), told()), (told(), Vec::new(), false));
        assert!(known.is_empty());
    }

    /// After a start a member is told of all its sets: one whose block store is gone must not be in the way of every other.
    #[test]
    fn the_record_of_an_older_set_is_in_nobodys_way() {
        for current in [None, Some(8)] {
            let left = sorted(&mut BTreeMap::new(), current, vec![finish(7, true), begin(8)]);
            assert_eq!(left, (vec![begin(8)], vec![attempt(7)], true), "{current:?}");
        }
    }
}
