//! Looks at folders before block stores move there. The admin server may be on another machine, so it asks the
//! servers of all metadata stores that have a volume in the block store: a question travels with the assignment, its
//! answer with the report.

use super::App;
use crate::AdminError;
use crate::db::block_stores::{self, Move};
use chronofs_wire::admin::{Probe, Probed};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a metadata server may take to look.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was asked and is not answered yet.
#[derive(Default)]
pub(super) struct Probes(Mutex<BTreeMap<u64, Asked>>);

struct Asked {
    metadata_store: String,
    probe: Probe,
    answer: oneshot::Sender<Option<String>>,
}

impl Probes {
    fn ask(&self, metadata_store: &str, to: &Move) -> (u64, oneshot::Receiver<Option<String>>) {
        let (answer, answered) = oneshot::channel();
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = open.last_key_value().map_or(1, |(last, _)| last + 1);
        let probe = Probe { id, store: to.store, path: to.path.clone() };
        open.insert(id, Asked { metadata_store: metadata_store.to_owned(), probe, answer });
        (id, answered)
    }

    fn forget(&self, id: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// What the server of a metadata store is to look at.
    pub(super) fn of(&self, metadata_store: &str) -> Vec<Probe> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let its = open.values().filter(|asked| asked.metadata_store == metadata_store);
        its.map(|asked| asked.probe.clone()).collect()
    }

    /// What it found.
    pub(super) fn answer(&self, metadata_store: &str, probed: &[Probed]) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for Probed { id, problem } in probed {
            if open.get(id).is_some_and(|asked| asked.metadata_store == metadata_store)
                && let Some(asked) = open.remove(id)
            {
                // Nobody listens any more if it took too long.
                let _ = asked.answer.send(problem.clone());
            }
        }
    }
}

/// Refuses unless every server that keeps bytes in block store `name` finds them in the folder at `path`, which was
/// checked.
pub(super) async fn refuse_unless_there(
    app: &App,
    store: &str,
    name: &str,
    path: &str,
) -> Result<(), AdminError> {
    let (id, to) = (store.to_owned(), path.to_owned());
    let to = app.database.run(move |tx| block_stores::plan_move(tx, &id, &to)).await?;
    for (id, server) in &to.servers {
        let cannot = |why: &str| {
            AdminError::Unavailable(format!(
                "block-store '{name}' cannot move to {path} now: the server of metadata store '{server}', which must \
                 look at that folder, {why}; start it and try again, or add --unchecked if you know that everything \
                 is there"
            ))
        };
        if !app.is_connected(id) {
            return Err(cannot("is not connected"));
        }
        let (probe, answered) = app.probes.ask(id, &to);
        app.wake_pollers();
        let answer = timeout(PATIENCE, answered).await;
        app.probes.forget(probe);
        match answer {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(problem))) => {
                return Err(AdminError::Invalid(format!(
                    "block-store '{name}' cannot move to {path}: the server of metadata store '{server}' found: \
                     {problem}"
                )));
            }
            _ => return Err(cannot("did not answer")),
        }
    }
    Ok(())
}
