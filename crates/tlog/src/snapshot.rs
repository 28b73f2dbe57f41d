//! This server as a member of disk snapshots: the image of each copy that counts, up to where its log was ended.
//!
//! The metadata servers hold and end their logs; what is durable is here, so the image is made when they have done that.

use crate::stores::Stores;
use chronofs_backup::{Plan, store_image};
use chronofs_engine::embedded::Place;
use chronofs_snapshot::agent::{Agent, Host, Imaged, Setup};
use chronofs_snapshot::protocol::{Attempt, Cut, Fault, Intent, Order, Poll, What};
use chronofs_snapshot::{Guard, Role, SnapshotCode, Whereabouts, Whitelist};
use chronofs_wire::admin::Registered;
use chronofs_wire::http::{AdminClient, ClientError, Method};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// After a call that failed, and while steps are said again.
const RETRY: Duration = Duration::from_secs(1);
/// While something is taken away that cannot go yet.
const ASK_AGAIN: Duration = Duration::from_millis(200);

struct TlogHost {
    node: String,
    stores: Arc<Stores>,
    client: AdminClient,
    runtime: Handle,
}

fn fault(why: impl std::fmt::Display) -> Fault {
    Fault { code: SnapshotCode::TlogFailed, why: why.to_string() }
}

impl Host for TlogHost {
    fn ready(&self, _: &Intent) -> Result<(), Fault> {
        Ok(())
    }

    fn hold(&self, _: &Attempt) -> Result<(), Fault> {
        Ok(())
    }

    fn let_go(&self, _: &Attempt) {}

    fn image(&self, intent: &Intent, _: Role, place: &Path) -> Result<Imaged, Fault> {
        let node = intent.node(&self.node).ok_or_else(|| fault("the intent does not name this server"))?;
        let failed = |error: std::io::Error| fault(format_args!("{}: {error}", place.display()));
        std::fs::DirBuilder::new().mode(0o700).create(place).map_err(failed)?;
        for store in &node.copies {
            let ended = intent.ended.get(store);
            let ended =
                ended.ok_or_else(|| fault(format_args!("it is not known where the log of {store} ended")))?;
            let id: Uuid = store.parse().map_err(fault)?;
            let copy = self.stores.open(id, true).map_err(fault)?;
            let end = Place { segment: ended.segment, offset: ended.length };
            copy.link_into(end, place, &format!("{store}-")).map_err(fault)?;
        }
        std::fs::File::open(place).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(Imaged::default())
    }

    fn keep(&self, _: &Intent, _: Option<Cut>) -> Result<(), Fault> {
        Ok(())
    }

    fn store(
        &self,
        intent: &Intent,
        role: Role,
        image: &Path,
        stop: &dyn Fn() -> bool,
    ) -> Result<String, Fault> {
        let path = format!("/v1/tlog/backups/{}", intent.attempt.uid);
        let plan: Result<Plan, ClientError> =
            self.runtime.block_on(self.client.call(Method::GET, &path, None::<&()>));
        store_image(&plan.map_err(fault)?, intent, &self.node, role, image, stop)
    }

    fn release(&self, _: &Attempt) {}

    fn kept(&self) -> Result<Vec<Attempt>, String> {
        Ok(Vec::new())
    }
}

/// What it takes to be a member.
pub(crate) struct Part {
    pub(crate) stores: Arc<Stores>,
    /// Where images are made: on the disk of the copies.
    pub(crate) images: PathBuf,
    pub(crate) client: AdminClient,
    pub(crate) whitelist: Whitelist,
    pub(crate) whereabouts: Whereabouts,
}

/// Takes part in snapshots, from the first registration on.
pub(crate) async fn take_part(part: Part, mut registered: watch::Receiver<Option<Registered>>) {
    let Ok(first) = registered.wait_for(Option::is_some).await.map(|first| first.clone()) else { return };
    let Some(Registered { store, epoch, .. }) = first else { return };
    let wake = Arc::new(Notify::new());
    let setup = Setup {
        node: store.to_string(),
        folder: part.images,
        whitelist: part.whitelist,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        whereabouts: part.whereabouts,
        guard: Guard::default(),
    };
    let (client, runtime) = (part.client.clone(), Handle::current());
    let host = TlogHost { node: store.to_string(), stores: part.stores, client, runtime };
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
        // What it keeps it always knows: nothing.
        let Ok(Ok(poll)) = poll.await else { return };
        tokio::select! {
            answered = ask(&part.client, &poll) => match answered {
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
            // The lease is looked at.
            () = tokio::time::sleep(RETRY), if !poll.said.is_empty() => {}
        }
    }
}

async fn ask(client: &AdminClient, poll: &Poll) -> Result<Vec<Order>, ClientError> {
    client.ask_coordinator("/v1/tlog/snapshot", poll).await
}

/// Ends programs that run for a snapshot when the server stops.
struct StopsAgent(Agent);

impl Drop for StopsAgent {
    fn drop(&mut self) {
        self.0.stop();
    }
}
