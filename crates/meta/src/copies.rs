//! The copies of this server's log: whom it asks about them, how it reaches them, and the start with them.
//!
//! The engine ships and waits; here is what it takes from the admin server, which records which copies count, under epochs.

mod remote;

use crate::files::{Folder, LockedFolder};
use crate::restored;
use anyhow::{Context, Result, anyhow, bail};
use chronofs_engine::copies::{
    self, Change, Connect, Coordinator, CopyError, DEADLINE, FolderCopy, Health, Link, NotRecorded, Quorum,
    Setup,
};
use chronofs_wire::admin::{Register, Registered, RestoreEpoch};
use chronofs_wire::http::{AdminClient, ClientError};
use chronofs_wire::log::{LogChange, LogCopies, LogEpoch, OpenLog};
use chronofs_wire::status::{LogCopySaid, LogSaid};
use chronofs_wire::tlog::{LogServerAccess, server_of};
use remote::RemoteLink;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// After the admin server could not be asked.
const RETRY: Duration = Duration::from_secs(2);
/// How long it may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The quorum that the admin server means.
pub(crate) fn quorum(copies: &LogCopies) -> Quorum {
    Quorum { members: copies.copies.iter().cloned().collect(), anti_quorum: copies.anti_quorum as usize }
}

fn said(quorum: &Quorum) -> LogCopies {
    LogCopies {
        copies: quorum.members.iter().cloned().collect(),
        anti_quorum: u32::try_from(quorum.anti_quorum).unwrap_or(u32::MAX),
    }
}

/// How log servers are reached: what the admin server said last.
#[derive(Clone, Default, Debug)]
pub(crate) struct Servers(Arc<Mutex<BTreeMap<String, LogServerAccess>>>);

impl Servers {
    /// From now on as `said`.
    pub(crate) fn set(&self, said: &[LogServerAccess]) {
        let by_name = said.iter().map(|access| (access.name.clone(), access.clone()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = by_name.collect();
    }

    fn get(&self, name: &str) -> Option<LogServerAccess> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

/// The admin server, asked from a thread of the engine.
struct Admin {
    client: AdminClient,
    boot: u64,
    runtime: Handle,
    folder: Folder,
}

impl Coordinator for Admin {
    fn change(&self, change: &Change, above: u64) -> Result<u64, NotRecorded> {
        let change = LogChange { after: change.after, members: said(&change.quorum) };
        // It may be recorded, and this server end before it hears of that: the next start must ask all the same.
        note_asked(&self.folder, &change.members)
            .map_err(|error| NotRecorded::Unknown(format!("{error:#}")))?;
        let open = OpenLog { boot: self.boot, above, change: Some(change) };
        let asked = self
            .runtime
            .block_on(async { tokio::time::timeout(ANSWER_WITHIN, self.client.open_log(&open)).await });
        match asked {
            Ok(Ok(log)) => {
                keep(&self.folder, &log);
                Ok(log.epoch)
            }
            Ok(Err(error)) if error.code() == Some("superseded") => {
                Err(NotRecorded::Superseded(error.to_string()))
            }
            Ok(Err(error)) => Err(NotRecorded::Unknown(error.to_string())),
            Err(_) => Err(NotRecorded::Unknown("the admin server does not answer".to_owned())),
        }
    }
}

/// Notes that these copies may count from now on, if none did.
fn note_asked(folder: &Folder, members: &LogCopies) -> Result<()> {
    let kept = folder.log()?.unwrap_or_default();
    if members.copies.is_empty() || !kept.members.copies.is_empty() {
        return Ok(());
    }
    folder.save_log(&LogEpoch { members: members.clone(), ..kept })
}

/// Keeps what the admin server has recorded; here it only says that a start must ask first, and which copies are no new ones.
pub(crate) fn keep(folder: &Folder, log: &LogEpoch) {
    if let Err(error) = folder.save_log(log).and_then(|()| note_known(folder, log)) {
        tracing::error!("{error:#}");
    }
}

/// Notes which copies have counted, and are still wanted or count: an empty folder is not taken for one of them.
pub(crate) fn note_known(folder: &Folder, log: &LogEpoch) -> Result<()> {
    let before = folder.known_copies()?;
    let mut known = before.clone();
    known.extend(log.members.copies.iter().cloned());
    known.retain(|name| log.wanted.copies.contains(name) || log.members.copies.contains(name));
    if known == before { Ok(()) } else { folder.save_known_copies(&known) }
}

/// Reaches the copies of the metadata store that `folder` is of.
fn connect(folder: Folder, servers: Servers, runtime: Handle) -> Connect {
    let told = Mutex::new(BTreeSet::new());
    Arc::new(move |name: &str| -> Result<Box<dyn Link>, CopyError> {
        let registered = folder.registered().map_err(|error| CopyError::Unusable(format!("{error:#}")))?;
        let registered = registered.ok_or_else(|| CopyError::Unusable("not registered yet".to_owned()))?;
        let known = folder.known_copies().map_err(|error| CopyError::Unusable(format!("{error:#}")))?;
        if let Some(server) = server_of(name) {
            let access = servers.get(server).ok_or_else(|| {
                CopyError::Unusable("the admin server has not said yet how it is reached".to_owned())
            })?;
            let link = RemoteLink::new(&runtime, &access, registered.store, known.contains(name))?;
            return Ok(Box::new(link));
        }
        if known.contains(name) && !FolderCopy::is_in(Path::new(name)) {
            return Err(CopyError::Unusable(format!(
                "{name} held a copy and is empty now: is its disk mounted? If the copy is lost, name another folder with --log-copies"
            )));
        }
        let copy = FolderCopy::new(Path::new(name), &registered.store.to_string())?;
        let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if device(Path::new(name)) == device(&folder.engine()) && told.insert(name.to_owned()) {
            tracing::warn!(
                copy = name,
                "this log copy is on the same disk as the log, or its own is not mounted: the loss of that disk loses both"
            );
        }
        Ok(Box::new(copy))
    })
}

/// Asks the admin server for an epoch of the log, if copies count: nobody else can make anything durable from then on. A store
/// whose log had copies, or may have, waits for the admin server.
pub(crate) async fn open(
    locked: &LockedFolder,
    client: &AdminClient,
    register: &mut Register,
    servers: &Servers,
    recover: bool,
) -> Result<Setup> {
    let folder = &locked.folder;
    let known = folder.registered()?;
    let kept = folder.log()?.unwrap_or_default();
    let must_ask = recover || !kept.members.copies.is_empty();
    let ask = must_ask || known.is_none();
    let mut told = false;
    let asked = loop {
        if !ask {
            break None;
        }
        match ask_epoch(client, register, kept.epoch, folder, servers).await {
            Ok(log) => break Some(log),
            Err(error)
                if error.is_wrong_cluster() || error.is_fenced() || error.code() == Some("superseded") =>
            {
                return Err(error.into());
            }
            Err(error) if must_ask => {
                if !told {
                    tracing::error!(
                        %error,
                        "the log of this metadata store has copies, so its server starts when the admin server has \
                         answered"
                    );
                    told = true;
                }
                tokio::time::sleep(RETRY).await;
            }
            // The first start of a folder: without the admin server there is nothing that it could serve.
            Err(_) => break None,
        }
    };
    let log = asked.unwrap_or_else(|| LogEpoch { epoch: kept.epoch, ..LogEpoch::default() });
    let coordinator = Admin {
        client: client.clone(),
        boot: register.boot,
        runtime: Handle::current(),
        folder: folder.clone(),
    };
    let setup = Setup {
        epoch: log.epoch,
        recorded: quorum(&log.members),
        wanted: quorum(&log.wanted),
        coordinator: Arc::new(coordinator),
        connect: connect(folder.clone(), servers.clone(), Handle::current()),
        deadline: DEADLINE,
    };
    if recover && log.members.copies.is_empty() {
        bail!(
            "--recover-log: no copy of this metadata store's log counts, so there is nothing to recover from; \
             chronofs configure show metadata-store says which copies there are"
        );
    }
    Ok(setup)
}

async fn ask_epoch(
    client: &AdminClient,
    register: &mut Register,
    above: u64,
    folder: &Folder,
    servers: &Servers,
) -> Result<LogEpoch, ClientError> {
    let registered = client.register(register).await?;
    restored::must_be_the_newest(folder, client, &registered)?;
    register.epoch = register.epoch.max(registered.epoch);
    let mut kept = registered.clone();
    if register.recovers {
        // The folder is not of that restore before its log is: see [`recover`].
        register.restore = registered.restore;
        kept.restore = folder.registered().ok().flatten().and_then(|before| before.restore);
    }
    if let Err(error) = folder.save_registered(&kept) {
        tracing::error!("{error:#}");
    }
    let assignment = client.assignment(register.boot, 0).await?;
    servers.set(&assignment.log_servers);
    let log = assignment.log;
    if log.members.copies.is_empty() {
        return Ok(log);
    }
    let log = client.open_log(&OpenLog { boot: register.boot, above, change: None }).await?;
    keep(folder, &log);
    Ok(log)
}

/// Writes the log anew from its copies. From then on, and not before, the folder is of the restore in place that these are of: a
/// try that fails leaves it what it was, and refused without its copies. Blocks.
pub(crate) fn recover(locked: &LockedFolder, setup: &Setup, restore: Option<RestoreEpoch>) -> Result<()> {
    let engine = locked.folder.engine();
    // Makes it an engine's folder, if it is a new one.
    drop(chronofs_engine::embedded::Folder::open(&engine).context("--recover-log")?);
    let log = engine.join("log");
    // What was answered and not durable is to be collected from the clients, also if this is cut short.
    locked.doubt()?;
    let Setup { epoch, recorded, connect, .. } = setup;
    let found = copies::recover::recover(&log, *epoch, recorded, connect).context("--recover-log")?;
    tracing::warn!(
        copy = found.copy, sealed = ?found.sealed, segments = found.segments,
        segment = found.end.segment, offset = found.end.offset, "the log was recovered from its copies"
    );
    match locked.folder.registered()? {
        Some(kept) if kept.restore != restore => {
            locked.folder.save_registered(&Registered { restore, ..kept }).context("--recover-log")
        }
        _ => Ok(()),
    }
}

/// Refuses to go on if another start has opened the log since, or if this one never did though copies count.
pub(crate) fn check(log: &LogEpoch, boot: u64) -> Result<()> {
    if log.members.copies.is_empty() || log.boot == boot {
        return Ok(());
    }
    Err(anyhow!(
        "the log of this metadata store has copies that this start has not opened ({}): start the server again; if the \
         folder is new or was restored, with --recover-log",
        log.members.copies.join(", ")
    ))
}

/// How the copies are, for people.
pub(crate) fn shown(copies: &copies::Copies) -> LogSaid {
    let status = copies.status();
    let (end, segment_bytes) = (status.end, 64 << 20);
    let said = status.copies.into_iter().map(|copy| {
        let segments = end.segment.saturating_sub(copy.acked.segment);
        let behind = (segments * segment_bytes + end.offset).saturating_sub(copy.acked.offset);
        LogCopySaid {
            name: copy.name,
            counts: copy.member,
            behind_bytes: if end > copy.acked { behind } else { 0 },
            problem: match copy.health {
                Health::Failed(why) => Some(why),
                Health::Behind | Health::Following => None,
            },
        }
    });
    LogSaid {
        epoch: status.epoch,
        anti_quorum: u32::try_from(status.anti_quorum).unwrap_or(u32::MAX),
        copies: said.collect(),
        problem: status.unrecorded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_wire::identity::Sha256;
    use chronofs_wire::token::{Token, TokenKind};

    #[test]
    fn that_copies_may_count_is_kept_before_the_admin_server_is_asked() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::make(temp.path()).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let token = Token::draw(TokenKind::MetadataStore, "127.0.0.1:1", Sha256([0; 32])).unwrap();
        let client = AdminClient::new(&token).unwrap();
        let admin = Admin { client, boot: 1, runtime: runtime.handle().clone(), folder: folder.clone() };
        let asked = |members: &[&str]| {
            let members = members.iter().map(|name| (*name).to_owned()).collect();
            let change = Change { after: 0, quorum: Quorum { members, anti_quorum: 0 } };
            assert!(matches!(admin.change(&change, 0), Err(NotRecorded::Unknown(_))));
            folder.log().unwrap().map(|log| log.members.copies)
        };
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&["/a"]), Some(vec!["/a".to_owned()]));
        // What counted is not forgotten by asking.
        assert_eq!(asked(&[]), Some(vec!["/a".to_owned()]));
        // What cannot be kept is not asked for.
        std::fs::remove_file(temp.path().join("log.json")).unwrap();
        std::fs::create_dir(temp.path().join("log.json")).unwrap();
        let change =
            Change { after: 0, quorum: Quorum { members: ["/a".to_owned()].into(), anti_quorum: 0 } };
        let Err(NotRecorded::Unknown(why)) = admin.change(&change, 0) else { panic!("it was asked") };
        assert!(why.contains("log.json"), "{why}");
    }

    /// Else a plain start would be let in after a recovery that failed, on a folder of before the restore.
    #[test]
    fn a_recovery_that_fails_leaves_a_folder_of_before_a_restore_what_it_was() {
        let temp = tempfile::tempdir().unwrap();
        let locked = Folder::make(temp.path()).unwrap().lock().unwrap();
        let before = Registered { name: "m".to_owned(), epoch: 3, ..Registered::default() };
        locked.folder.save_registered(&before).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let token = Token::draw(TokenKind::MetadataStore, "127.0.0.1:1", Sha256([0; 32])).unwrap();
        let client = AdminClient::new(&token).unwrap();
        let folder = locked.folder.clone();
        let coordinator = Admin { client, boot: 1, runtime: runtime.handle().clone(), folder };
        let none: Connect = Arc::new(|_: &str| -> Result<Box<dyn Link>, CopyError> {
            Err(CopyError::Unusable("it is away".to_owned()))
        });
        let recorded = Quorum { members: ["/a".to_owned()].into(), anti_quorum: 0 };
        let setup = Setup {
            epoch: 5,
            wanted: recorded.clone(),
            recorded,
            coordinator: Arc::new(coordinator),
            connect: none,
            deadline: DEADLINE,
        };
        let restore = RestoreEpoch { epoch: 1, id: "a".to_owned(), ..RestoreEpoch::default() };
        recover(&locked, &setup, Some(restore)).unwrap_err();
        assert_eq!(locked.folder.registered().unwrap(), Some(before));
    }

    #[test]
    fn a_copy_that_counts_is_known_also_when_it_is_no_longer_wanted() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::make(temp.path()).unwrap();
        let copies = |name: &str| LogCopies { copies: vec![name.to_owned()], anti_quorum: 0 };
        let swapped = LogEpoch { epoch: 1, members: copies("/a"), wanted: copies("tlog:b"), boot: 1 };
        note_known(&folder, &swapped).unwrap();
        assert_eq!(folder.known_copies().unwrap(), BTreeSet::from(["/a".to_owned()]));
        note_known(&folder, &LogEpoch { members: copies("tlog:b"), ..swapped }).unwrap();
        assert_eq!(folder.known_copies().unwrap(), BTreeSet::from(["tlog:b".to_owned()]));
    }
}
