//! The link to the admin server: registers, waits for assignments, keeps the last one, reports what became of it.
//! The server goes on without the admin server with what it was told last.

use crate::copies;
use crate::executor::{Ask, Input};
use crate::files::Folder;
use crate::machine::Event;
use crate::reader;
use crate::restored;
use crate::server::objects::Stores;
use crate::stores::{look_at, open_stores};
use chronofs_engine::Engine;
use chronofs_engine::embedded::EmbeddedFolder;
use chronofs_namespace::instants;
use chronofs_wire::admin::{
    AssignedStore, Assignment, Known, Probe, Probed, Register, Registered, Report, VolumeReport,
};
use chronofs_wire::http::{ASSIGNMENT_WAIT, AdminClient, ClientError};
use chronofs_wire::log::LogEpoch;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

const RETRY: Duration = Duration::from_secs(2);
/// Clients with unknown tokens do not make it ask more often than this.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// The server cannot go on: see [`copies::check`].
const LOG_NOT_OPENED: &str = "log_not_opened";
/// How long the admin server may take to answer at once.
const ASK_WITHIN: Duration = Duration::from_millis(2500);

/// Whether it is time to report though nothing is new. Every question ends the wait for an assignment, after which it would be time
/// anyhow, and clients with unknown tokens bring one after the other: an older copy of the folder is told by what was reported last.
fn is_report_due(reported: Option<Instant>, now: Instant) -> bool {
    reported.is_none_or(|reported| now.duration_since(reported) >= ASSIGNMENT_WAIT)
}

/// What the executor wants to have asked. One question is on its way at a time, and it stands for all before it.
#[derive(Debug)]
pub struct Questions {
    wanted: watch::Receiver<u64>,
    answered: u64,
    last: Option<Instant>,
}

impl Questions {
    /// The questions whose last number is in `wanted`.
    pub fn new(wanted: watch::Receiver<u64>) -> Self {
        Questions { wanted, answered: 0, last: None }
    }

    /// Waits for a question and until it may be asked. Gives its number.
    async fn next(&mut self) -> u64 {
        let answered = self.answered;
        if self.wanted.wait_for(|wanted| *wanted > answered).await.is_err() {
            // The executor has ended; so does the link.
            std::future::pending::<()>().await;
        }
        if let Some(last) = self.last {
            tokio::time::sleep_until(last + ASK_EVERY).await;
        }
        self.last = Some(Instant::now());
        *self.wanted.borrow()
    }
}

/// The link.
pub struct AdminLink {
    /// Calls go through it.
    pub client: AdminClient,
    /// What the server says of itself.
    pub register: Register,
    /// Where the last assignment is kept.
    pub folder: Folder,
    /// The executor.
    pub queue: mpsc::Sender<Input>,
    /// The block stores in reach.
    pub stores: Stores,
    /// Told at every registration.
    pub registered: watch::Sender<Option<Registered>>,
    /// Asked for by the executor.
    pub questions: Questions,
    /// The engine, whose log may have copies.
    pub engine: Arc<EmbeddedFolder>,
    /// How the log servers are reached that these may be on.
    pub(crate) log_servers: copies::Servers,
    /// Told when the admin server says that it is of another cluster than was meant.
    pub mislead: Option<oneshot::Sender<ClientError>>,
}

impl AdminLink {
    /// Runs until it is dropped, or until the admin server says that another cluster is meant, or that the log has copies
    /// that this start has not opened, or that the folder was followed by a restore in place.
    pub async fn run(mut self, kept: Option<Assignment>) {
        let (mut known, mut problems) = (None, BTreeMap::new());
        if let Some(mut assignment) = kept {
            forget_due(&mut assignment);
            known = Some(assignment.clone());
            problems = self.take(assignment).await;
        }
        let mut told_failure = false;
        loop {
            match self.serve(&mut known, &mut problems, &mut told_failure).await {
                Ok(()) => {}
                Err(error)
                    if error.is_wrong_cluster()
                        || error.is_fenced()
                        || error.code() == Some(LOG_NOT_OPENED) =>
                {
                    if let Some(mislead) = self.mislead.take() {
                        drop(mislead.send(error));
                    }
                    return;
                }
                Err(error) => {
                    if error.code() == Some("superseded") {
                        self.tell(Event::Owner(false)).await;
                    }
                    if !told_failure {
                        tracing::error!(%error, "no link to the admin server; going on with the last assignment");
                        told_failure = true;
                    }
                    let question = *self.questions.wanted.borrow();
                    self.answer(question, Some(error.to_string())).await;
                    // Somebody who asks is told by the next try.
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        _ = self.questions.next() => {}
                    }
                }
            }
        }
    }

    /// Registers and then follows assignments until a call fails.
    async fn serve(
        &mut self,
        known: &mut Option<Assignment>,
        problems: &mut BTreeMap<Uuid, String>,
        told_failure: &mut bool,
    ) -> Result<(), ClientError> {
        let registered = self.client.register(&self.register).await?;
        restored::must_be_the_newest(&self.folder, &self.client, &registered)?;
        // Before the first assignment: from then on nothing is known of what was said before the restore, and what was said since
        // would show that nothing was revoked.
        let before = known.as_ref().filter(|known| known.admin_epoch < registered.admin_epoch);
        if let Some(before) = before.filter(|_| registered.review) {
            self.client.known(&Known::of(before)).await?;
        }
        self.register.restore.clone_from(&registered.restore);
        self.register.epoch = self.register.epoch.max(registered.epoch);
        tracing::info!(store = registered.name, epoch = registered.epoch, "registered with the admin server");
        *told_failure = false;
        if let Err(error) = self.folder.save_registered(&registered) {
            tracing::error!("{error:#}");
        }
        let admin_epoch = registered.admin_epoch;
        self.stores.set_owner(&registered);
        self.registered.send_replace(Some(registered));
        // The first answer comes at once whatever is known already: the admin server may have been restored.
        let (mut after, boot) = (0, self.register.boot);
        let mut reported = None;
        loop {
            // A question ends the wait: what is known already is asked for at once, so that the answer is newer.
            let asked = tokio::select! {
                assignment = self.client.assignment(boot, after) => Err(assignment?),
                question = self.questions.next() => Ok(question),
            };
            let (mut assignment, question) = match asked {
                Err(assignment) => (assignment, None),
                Ok(question) => (self.assignment_now().await?, Some(question)),
            };
            // The admin server was restored between two calls, of which none failed: it is to be told what was known before.
            if assignment.admin_epoch != admin_epoch {
                return Ok(());
            }
            after = assignment.revision;
            self.log_servers.set(&assignment.log_servers);
            self.follow_log(&assignment.log)?;
            let probes = std::mem::take(&mut assignment.probes);
            let used = store_of_volumes(&assignment);
            let news = self.answered(assignment, known, problems).await;
            if let Some(question) = question {
                self.answer(question, None).await;
                if !news && probes.is_empty() && !is_report_due(reported, Instant::now()) {
                    continue;
                }
            }
            if let Some(mut report) = self.report(problems.clone()).await {
                report.probed = self.look(probes, &used, &report).await;
                self.client.report(&report).await?;
                reported = Some(Instant::now());
            }
        }
    }

    /// Follows an answer of the admin server, whose probes are looked at by others. Whether it says anything new: not by
    /// its number, for one that was put back from a copy may give a number to two of them.
    async fn answered(
        &self,
        assignment: Assignment,
        known: &mut Option<Assignment>,
        problems: &mut BTreeMap<Uuid, String>,
    ) -> bool {
        let news = known.as_ref() != Some(&assignment);
        if news || !problems.is_empty() || self.stores.is_empty() {
            *known = Some(assignment.clone());
            if let Err(error) = self.folder.save_assignment(&assignment) {
                tracing::error!("{error:#}; a restart without the admin server will use an older one");
            }
            *problems = self.take(assignment).await;
        }
        // Not before what was said with it: a volume that is taken back would be given up by the word before.
        self.tell(Event::Owner(true)).await;
        news
    }

    /// Has the engine keep the copies that are wanted now.
    fn follow_log(&self, log: &LogEpoch) -> Result<(), ClientError> {
        if let Err(error) = copies::check(log, self.register.boot) {
            // So that the next start asks before it opens the log.
            copies::keep(&self.folder, log);
            let code = LOG_NOT_OPENED.to_owned();
            return Err(ClientError::Refused { status: 0, code, message: error.to_string() });
        }
        if let Err(error) = copies::note_known(&self.folder, log) {
            tracing::error!("{error:#}");
        }
        if let Err(error) = self.engine.want_copies(&copies::quorum(&log.wanted)) {
            tracing::error!(%error, "the copies of the log cannot be changed");
        }
        Ok(())
    }

    async fn assignment_now(&self) -> Result<Assignment, ClientError> {
        let asked = tokio::time::timeout(ASK_WITHIN, self.client.assignment(self.register.boot, 0)).await;
        asked.unwrap_or_else(|_| {
            let admin = self.client.address().to_owned();
            Err(ClientError::Unreachable { admin, reason: "no answer in time".to_owned() })
        })
    }

    /// Tells the executor what became of its questions up to this one.
    async fn answer(&mut self, question: u64, failure: Option<String>) {
        if question > self.questions.answered {
            self.questions.answered = question;
            self.tell(Event::AdminAsked(question, failure)).await;
        }
    }

    async fn tell(&self, event: Event) {
        drop(self.queue.send(Input::Events(vec![event])).await);
    }

    /// Brings an assignment to the machine and opens its block stores. Why volumes cannot be served, by volume.
    async fn take(&self, assignment: Assignment) -> BTreeMap<Uuid, String> {
        restored::follow(&self.folder, &assignment, &self.queue).await;
        let wanted: Vec<(Uuid, AssignedStore)> = assignment
            .volumes
            .iter()
            // Those of deleted volumes, too: pins are put there, and of one that is given up objects are to be deleted.
            .map(|volume| (volume.spec.id, volume.store.clone()))
            .collect();
        let (mut stores, mut problems) =
            open_stores(&self.folder, wanted.clone(), self.stores.watches()).await;
        problems.extend(reader::register(&self.folder, &self.queue, &wanted, &mut stores).await);
        // A deleted volume that nobody reaches is no trouble.
        let kept =
            assignment.volumes.iter().filter(|volume| volume.deleted && volume.give_up_after_s.is_none());
        kept.for_each(|volume| drop(problems.remove(&volume.spec.id)));
        for (volume, problem) in &problems {
            tracing::error!(%volume, "the volume cannot be served: {problem}");
        }
        self.stores.set_ids(wanted.iter().map(|(volume, store)| (*volume, store.id)).collect());
        self.stores.set(stores);
        self.stores.set_of_readers(assignment.reader_stores.clone());
        let ids: Vec<Uuid> = assignment.volumes.iter().map(|volume| volume.spec.id).collect();
        let set = problems.clone();
        self.tell(Event::Assignment(Box::new(assignment))).await;
        // New volumes are in the state after the next tick.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let ask: Ask = Box::new(move |core, _| {
            for id in ids {
                core.machine.set_problem(id, set.get(&id).cloned());
            }
        });
        drop(self.queue.send(Input::Ask(ask)).await);
        problems
    }

    /// Looks at folders that block stores are to move to. A mount has the old folder open for as long as it lasts.
    async fn look(&self, probes: Vec<Probe>, used: &HashMap<Uuid, Uuid>, report: &Report) -> Vec<Probed> {
        let mut probed = Vec::new();
        for Probe { id, store, path } in probes {
            let of_store = report.volumes.iter().filter(|volume| used.get(&volume.id) == Some(&store));
            let mounts: u32 = of_store.map(|volume| volume.sessions).sum();
            let problem = if mounts > 0 {
                Some(format!(
                    "it is mounted ({mounts}), and mounts would go on with the old folder; unmount first"
                ))
            } else {
                let folder = self.folder.clone();
                let looked = move || look_at(&folder, store, Path::new(&path));
                let looked = tokio::task::spawn_blocking(looked).await;
                looked.unwrap_or_else(|error| Some(format!("the look at it ended: {error}")))
            };
            probed.push(Probed { id, problem });
        }
        probed
    }

    /// The state of every volume.
    async fn report(&self, problems: BTreeMap<Uuid, String>) -> Option<Report> {
        let (sender, answer) = oneshot::channel();
        let ask: Ask = Box::new(move |core, now| {
            let indexes: Vec<_> = core.machine.volumes().map(|volume| volume.index).collect();
            let mut volumes = Vec::new();
            for index in indexes {
                let mut figures = (0, 0);
                let read = core.decide(now, |machine, group| {
                    figures = machine.volume_figures(group, index)?;
                    Ok(())
                });
                if let Err(error) = read {
                    tracing::error!(%error, "the figures of a volume cannot be read");
                }
                let Some(volume) = core.machine.volume(index) else { continue };
                if !volume.row.is_live() {
                    volumes.extend(core.machine.report_of_deleted(volume));
                    continue;
                }
                // The window moves on also where nothing changes.
                let (earliest, _) = instants(&volume.row, core.machine.last().next(now.wall_ns));
                volumes.push(VolumeReport {
                    id: volume.id(),
                    born_ns: volume.row.born.0,
                    earliest_ns: earliest.0,
                    used_bytes: figures.0,
                    used_inodes: figures.1,
                    sessions: core.machine.sessions_of(index),
                    problem: volume.problem.clone().or_else(|| problems.get(&volume.id()).cloned()),
                    missing: false,
                    given_up: false,
                    gone: false,
                    keys: core.machine.keys_beyond_assignment(volume),
                });
            }
            volumes.extend(core.machine.missing().iter().map(|(id, problem)| missing(*id, problem)));
            let revision = core.machine.figures().revision;
            drop(sender.send(Report { revision, volumes, ..Report::default() }));
        });
        self.queue.send(Input::Ask(ask)).await.ok()?;
        let mut report: Report = answer.await.ok()?;
        // As the folder holds it, which a copy of the folder is told by.
        report.kept_epoch = self.folder.registered().ok().flatten().map_or(0, |kept| kept.epoch);
        report.boot = self.register.boot;
        // What was said to have been born is looked for after every start.
        let born_ns = report.volumes.iter().map(|volume| volume.born_ns).max().unwrap_or(0);
        if chronofs_core::Version(born_ns) > self.engine.durable() {
            let engine = self.engine.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || engine.sync()).await.ok()? {
                tracing::error!(%error, "volumes that are not durable are not reported");
                return None;
            }
        }
        report.durable_ns = self.engine.durable_commit().0;
        Some(report)
    }
}

/// A volume that is not here.
fn missing(id: Uuid, problem: &str) -> VolumeReport {
    VolumeReport { id, missing: true, problem: Some(problem.to_owned()), ..VolumeReport::default() }
}

/// What was kept is an old word by now: no volume is given up by it.
fn forget_due(kept: &mut Assignment) {
    for volume in &mut kept.volumes {
        volume.give_up_after_s = None;
    }
}

/// The block store of every volume that is not deleted.
fn store_of_volumes(assignment: &Assignment) -> HashMap<Uuid, Uuid> {
    let live = assignment.volumes.iter().filter(|volume| !volume.deleted);
    live.map(|volume| (volume.spec.id, volume.store.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::Retention;
    use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression, VolumeSpec};
    use chronofs_wire::admin::{AssignedVolume, StoreKind};
    use chronofs_wire::identity::Sha256;
    use chronofs_wire::token::{Token, TokenKind};

    fn link(folder: &Path) -> (AdminLink, mpsc::Receiver<Input>) {
        let token = Token::draw(TokenKind::MetadataStore, "127.0.0.1:1", Sha256::of(b"nobody")).unwrap();
        let register = Register {
            address: "m:1".to_owned(),
            certificate_sha256: String::new(),
            boot: 1,
            epoch: 0,
            ..Register::default()
        };
        let (queue, told) = mpsc::channel(64);
        let kept = Folder::make(&folder.join("meta")).unwrap();
        let link = AdminLink {
            client: AdminClient::new(&token).unwrap(),
            register,
            engine: Arc::new(crate::start::open_engine(&kept, None).unwrap()),
            log_servers: copies::Servers::default(),
            folder: kept,
            queue,
            stores: Stores::default(),
            registered: watch::channel(None).0,
            questions: Questions::new(watch::channel(0).1),
            mislead: None,
        };
        (link, told)
    }

    fn assignment(folder: &Path, deleted: bool) -> Assignment {
        let spec = VolumeSpec {
            id: Uuid::from_u128(1),
            name: "v".to_owned(),
            block_size: BLOCK_SIZE_DEFAULT,
            compression: Compression::None,
            retention: Retention::None,
            max_bytes: None,
            max_inodes: None,
            hash_key: [0; 16],
        };
        let kind = StoreKind::Local { path: folder.join("blocks").to_str().unwrap().to_owned() };
        let store = AssignedStore {
            id: Uuid::from_u128(2),
            kind,
            credentials: Default::default(),
            create_only: false,
        };
        let give_up_after_s = deleted.then_some(0);
        let volumes = vec![AssignedVolume { spec, deleted, born_ns: 0, give_up_after_s, store, keys: None }];
        Assignment { revision: 7, volumes, ..Default::default() }
    }

    /// What the machine was told: whether of a volume that is deleted, or who owns the store.
    fn said(told: &mut mpsc::Receiver<Input>) -> Vec<&'static str> {
        let mut said = Vec::new();
        while let Ok(input) = told.try_recv() {
            let Input::Events(events) = input else { continue };
            said.extend(events.iter().map(|event| match event {
                Event::Assignment(assignment) if assignment.volumes[0].deleted => "deleted",
                Event::Assignment(_) => "there",
                Event::Owner(true) => "owner",
                other => panic!("{other:?}"),
            }));
        }
        said
    }

    #[test]
    fn a_server_that_is_asked_all_the_time_reports_as_often_as_one_that_nobody_asks() {
        let begun = Instant::now();
        assert!(is_report_due(None, begun), "it has never reported");
        let mut reported = begun;
        let mut reports = 0;
        // A question every 200 ms for a minute.
        for n in 1..=300_u32 {
            let now = begun + n * ASK_EVERY;
            if is_report_due(Some(reported), now) {
                reported = now;
                reports += 1;
            }
        }
        assert_eq!(reports, 3);
    }

    /// Between the two a tick would give a volume up by the old word, though the new one takes it back.
    #[tokio::test]
    async fn what_an_answer_says_holds_before_it_confirms_the_owner_whatever_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let (link, mut told) = link(folder.path());
        let (mut known, mut problems) = (None, BTreeMap::new());
        let deleted = assignment(folder.path(), true);
        assert!(link.answered(deleted.clone(), &mut known, &mut problems).await);
        assert_eq!(said(&mut told), ["deleted", "owner"]);
        assert!(!link.answered(deleted, &mut known, &mut problems).await);
        assert_eq!(said(&mut told), ["owner"]);
        // An admin server that was put back from a copy counts anew from there.
        assert!(link.answered(assignment(folder.path(), false), &mut known, &mut problems).await);
        assert_eq!(said(&mut told), ["there", "owner"]);
    }
}
