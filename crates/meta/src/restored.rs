//! Restore mode: this server's folder was prepared from a disk snapshot. Before it serves, the store has to open just at the
//! cut that the labels told, and goes its own way with one commit: other numbers than its source gives, nobody connected,
//! and the instants since the cut lost. Until somebody accepts the restore, nothing is forgotten or deleted.
//!
//! That is the same for a clone, beside its source, and for a server that goes on in the place of its source, which is gone: what
//! the lost server gave numbers to since the cut must not be mistaken for anything new. In place the admin server also learns of
//! a restore epoch, and refuses folders of before.

use crate::executor::{Ask, Input};
use crate::files::{CREDENTIALS, CREDENTIALS_BESIDE, Folder, LockedFolder};
use crate::machine::SharedView;
use crate::machine::tag::{self, Tag};
use crate::start::open_engine;
use anyhow::{Context, Result, bail};
use chronofs_core::Version;
use chronofs_core::time::written_instant;
use chronofs_engine::embedded::EmbeddedFolder;
use chronofs_engine::{Commit, Engine};
use chronofs_namespace::rows::Volume;
use chronofs_namespace::{list_volumes, restored};
use chronofs_snapshot::protocol::Cut;
use chronofs_snapshot::restore::own::{MARK, Mark};
use chronofs_wire::admin::{Assignment, Register, Registered, RestoreEpoch};
use chronofs_wire::http::{AdminClient, ClientError};
use chronofs_wire::identity::random;
use chronofs_wire::status::RestoredSaid;
use chronofs_wire::token::Token;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};
use tokio::sync::{Mutex, mpsc, oneshot};
use uuid::Uuid;

/// The admin server is one of before a restore of it.
const OLD_ADMIN: &str = "old_admin";
/// How long a start waits for the admin server to say whether its folder may serve.
const FENCE_WITHIN: Duration = Duration::from_millis(2500);

/// Held by who reads the mark to change it.
pub(crate) static WRITING: Mutex<()> = Mutex::const_new(());

/// What a server goes on from of which nothing is left, no image either.
const NOTHING: &str = "nothing";
/// What it goes on from whose folder was copied by other tools, and put back later.
const OLD_COPY: &str = "an old copy of its folder";

/// Marks a folder in which a server begins of which nothing is left: it is put back as of before its first commit.
pub(crate) fn begin_anew(folder: &Folder, token: &Token, now_ns: u64) -> Result<()> {
    mark(token, (NOTHING, Version::ZERO), now_ns)?.write(&folder.0)?;
    Ok(())
}

/// Refuses a folder with anything in it but what an earlier try to begin anew there has left: the mark, and the token after it.
pub(crate) fn must_be_empty(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    let half = format!("{MARK}.new");
    let of_a_try = match Mark::read(folder)? {
        Some(mark) => {
            let ours = |name: &String| {
                *name == MARK || *name == half || name == CREDENTIALS || name.starts_with(CREDENTIALS_BESIDE)
            };
            mark.instead.as_deref() == Some(NOTHING) && mark.began.is_none() && names.iter().all(ours)
        }
        None => names.iter().all(|name| *name == half),
    };
    if !of_a_try {
        bail!(
            "{} is not empty: a server begins anew in a folder of its own; name an empty one with --db-folder, and keep this one",
            folder.display()
        );
    }
    Ok(())
}

/// Marks a folder that was copied by other tools: it is put back as of its last commit. What it knows of how things were, it
/// forgets.
pub(crate) fn go_on_from_old_copy(locked: &LockedFolder, token: &Token, now_ns: u64) -> Result<Version> {
    let folder = &locked.folder;
    if let Some(mark) = Mark::read(&folder.0)? {
        let is_clone = !mark.in_place && !mark.detached;
        if is_clone || (mark.began.is_none() && mark.instead.is_none()) {
            let why = match is_clone {
                true => "is a clone that needs its source: prepare it anew",
                false => "no server has started on it: start one",
            };
            bail!("the folder {} was prepared from {}, and {why}", folder.0.display(), mark.from());
        }
    }
    if folder.log()?.is_some_and(|log| !log.members.copies.is_empty()) {
        bail!(
            "the log of the folder {} has copies, which know what came since: start the server with --recover-log, and nothing is lost",
            folder.0.display()
        );
    }
    let last = open_engine(folder, None)?.opening().last_commit;
    mark(token, (OLD_COPY, last), now_ns)?.write(&folder.0)?;
    // Who was connected is not, whatever the copy says.
    folder.forget_run()?;
    Ok(last)
}

fn mark(token: &Token, (instead, cut): (&str, Version), now_ns: u64) -> Result<Mark> {
    let draw = [u64::from_le_bytes(random()?), u64::from_le_bytes(random()?)];
    Ok(Mark {
        format: Mark::FORMAT,
        uid: format!("{:016x}{:016x}", draw[0], draw[1]).parse()?,
        number: 0,
        source: String::new(),
        cluster: String::new(),
        node: token.id.to_string(),
        name: String::new(),
        old: String::new(),
        new: token.admin.clone(),
        prepared: Version(now_ns).to_string(),
        cut: Some(Cut { store: 0, cut: cut.0 }),
        draw,
        began: None,
        accepted: false,
        unmatched: None,
        readers: Vec::new(),
        kept: None,
        detached: false,
        in_place: true,
        instead: Some(instead.to_owned()),
        entries: Vec::new(),
    })
}

/// Brings a restored store to where it may be served. Gives the commit with which it goes on, and while the restore is not
/// accepted what it is from.
pub(crate) fn begin(
    folder: &Folder,
    engine: &EmbeddedFolder,
    now_ns: u64,
) -> Result<Option<(Version, Option<String>)>> {
    let Some(mut mark) = Mark::read(&folder.0)? else { return Ok(None) };
    let cut = mark.cut.with_context(|| {
        format!("the folder {} was prepared for an admin server: start that on it", folder.0.display())
    })?;
    let cut = Version(cut.cut);
    let from = mark.from();
    let began = match mark.began {
        Some(began) => Version(began),
        None => {
            let began =
                go_apart(engine, &mark, cut, now_ns).with_context(|| format!("restored from {from}"))?;
            mark.began = Some(began.0);
            mark.entries.clear();
            mark.write(&folder.0)?;
            began
        }
    };
    let (accepted, in_place) = (mark.accepted, mark.in_place);
    tracing::info!(from, source = mark.source, %cut, accepted, in_place, "restored, as of its cut");
    Ok(Some((began, Some(from).filter(|_| !accepted))))
}

/// The commit with which the clone begins.
fn go_apart(engine: &EmbeddedFolder, mark: &Mark, cut: Version, now_ns: u64) -> Result<Version> {
    let found = engine.opening().last_commit;
    let reads = SharedView(engine.view());
    let mut volumes = list_volumes(&reads)?.into_iter().filter(|(_, row)| row.flags & Volume::GONE == 0);
    if found == cut {
        let version = engine.applied().next(now_ns);
        let batch = restored(&reads, cut, version, mark.draw)?;
        engine.apply(vec![Commit { version, tag: tag::encode(&Tag::System), batch }])?;
        engine.sync()?;
        return Ok(version);
    }
    // It was killed between that commit and the note of it.
    if found > cut && volumes.all(|(_, row)| row.gaps.last().is_some_and(|(before, _)| *before == cut)) {
        return Ok(found);
    }
    bail!(
        "the store opens at {found}, and the labels of its images say {cut}: what lies in the folder is not the set that was \
         prepared; prepare it anew"
    )
}

/// What there is to say of a restore.
pub(crate) fn said(folder: &Path) -> Option<RestoredSaid> {
    let mark = Mark::read(folder).ok().flatten()?;
    let uid = mark.known_as();
    let [only_admin, only_here] = mark.unmatched.unwrap_or_default();
    Some(RestoredSaid {
        uid,
        source: mark.source,
        cut: mark.cut.map(|cut| Version(cut.cut).as_of()),
        accepted: mark.accepted,
        only_admin,
        only_here,
        readers: mark.readers.len() as u64,
        kept: mark.kept,
        detached: mark.detached,
        foreign: None,
        in_place: mark.in_place,
        began: mark.began.map(|began| Version(began).to_string()),
    })
}

/// The restore in place that a folder goes on from, for the admin server.
pub(crate) fn epoch_of(folder: &Folder) -> Result<Option<RestoreEpoch>> {
    let known = folder.registered()?.and_then(|registered| registered.restore);
    let Some(mark) = Mark::read(&folder.0)?.filter(|mark| mark.in_place) else { return Ok(known) };
    let Some(cut) = mark.cut else { return Ok(known) };
    let id = mark.restore_id();
    Ok(match known {
        // Its log was recovered from copies since, which are those of a later restore.
        Some(known) if known.id != id => Some(known),
        known => Some(RestoreEpoch {
            epoch: known.map_or(0, |known| known.epoch),
            id,
            uid: mark.known_as(),
            cut_ns: cut.cut,
            began_ns: mark.began,
            prepared_ns: written_instant(&mark.prepared).map(|at| at.0),
        }),
    })
}

/// An admin server that was restored is followed, and not the one of before that, which may come back: it does not know what was
/// revoked.
pub(crate) fn must_be_the_newest(
    folder: &Folder,
    client: &AdminClient,
    registered: &Registered,
) -> Result<(), ClientError> {
    let kept = folder.registered().ok().flatten().map_or(0, |kept| kept.admin_epoch);
    if registered.admin_epoch >= kept {
        return Ok(());
    }
    let message = old_admin(client.address(), registered.admin_epoch, kept);
    Err(ClientError::Refused { status: 0, code: OLD_ADMIN.to_owned(), message })
}

/// What it means that an admin server comes with a lower epoch than one before, and what to do.
fn old_admin(address: &str, found: u64, kept: u64) -> String {
    let found = match found {
        0 => "was never restored".to_owned(),
        found => format!("is of a restore with epoch {found}"),
    };
    format!(
        "the admin server at {address} {found}, and this server has followed one of a restore with epoch {kept} ({}): if it is the \
         one of before that restore, stop it; if it was restored last, on a machine whose clock is behind, prepare it anew with \
         chronofs restore prepare --in-place --after {kept}",
        Version(kept)
    )
}

/// Ends the start of a server whose folder is of before a restore in place. An admin server that does not say is not waited for:
/// it is asked again as soon as it is there.
pub(crate) async fn must_not_be_fenced(client: &AdminClient, register: &Register) -> Result<()> {
    match tokio::time::timeout(FENCE_WITHIN, client.check_fence(register)).await {
        Ok(Err(error)) if error.is_fenced() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Heeds what the admin server says to a restored store: which volumes it knows, and that the restore is accepted.
pub(crate) async fn follow(folder: &Folder, assignment: &Assignment, queue: &mpsc::Sender<Input>) {
    let _writing = WRITING.lock().await;
    let mut mark = match Mark::read(&folder.0) {
        Ok(Some(mark)) if !mark.accepted => mark,
        Ok(_) => return,
        Err(error) => return tracing::error!("{error}; nothing is forgotten or deleted"),
    };
    let before = mark.clone();
    if mark.unmatched.is_none() {
        let Some(here) = volumes_here(queue).await else { return };
        mark.unmatched = Some(compare(assignment, here));
    }
    mark.accepted = assignment.accepted_restore == Some(mark.accepted_by());
    if mark == before {
        return;
    }
    // Noted first: a start after this one must not believe less.
    if let Err(error) = mark.write(&folder.0) {
        return tracing::error!("{error}; nothing is forgotten or deleted");
    }
    if mark.accepted {
        tracing::info!(uid = %mark.uid, "the restore is accepted: forgetting and deleting go on");
        let ask: Ask = Box::new(|core, _| core.machine.accept_restore());
        drop(queue.send(Input::Ask(ask)).await);
    }
}

async fn volumes_here(queue: &mpsc::Sender<Input>) -> Option<BTreeMap<Uuid, String>> {
    let (sender, answer) = oneshot::channel();
    let ask: Ask = Box::new(move |core, _| {
        let live = core.machine.volumes().filter(|volume| volume.row.is_live());
        drop(sender.send(live.map(|volume| (volume.id(), volume.row.spec.name.clone())).collect()));
    });
    queue.send(Input::Ask(ask)).await.ok()?;
    answer.await.ok()
}

/// Admin and metadata server are cut milliseconds apart: volumes that only the one or only the other knows. Those that only
/// the admin server knows are made empty, which is how they were at the cut; those that only this one knows stay, and nobody
/// reaches them.
fn compare(assignment: &Assignment, mut here: BTreeMap<Uuid, String>) -> [Vec<String>; 2] {
    let mut only_admin = Vec::new();
    for volume in &assignment.volumes {
        if here.remove(&volume.spec.id).is_none() && !volume.deleted {
            tracing::warn!(
                volume = volume.spec.name,
                "this volume was made after the cut: it is made anew, and empty"
            );
            only_admin.push(volume.spec.name.clone());
        }
    }
    let only_here: Vec<String> = here.into_values().collect();
    for name in &only_here {
        tracing::warn!(
            volume = name,
            "the restored admin server does not know this volume: nobody reaches it"
        );
    }
    [only_admin, only_here]
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_wire::identity::Sha256;
    use chronofs_wire::token::TokenKind;

    #[test]
    fn an_admin_server_of_before_a_restore_is_not_followed_and_the_message_names_the_way_out() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::make(temp.path()).unwrap();
        let token = Token::draw(TokenKind::MetadataStore, "127.0.0.1:1", Sha256([0; 32])).unwrap();
        let client = AdminClient::new(&token).unwrap();
        let of = |admin_epoch| Registered { admin_epoch, ..Registered::default() };
        must_be_the_newest(&folder, &client, &of(0)).unwrap();
        folder.save_registered(&of(7)).unwrap();
        must_be_the_newest(&folder, &client, &of(7)).unwrap();
        must_be_the_newest(&folder, &client, &of(8)).unwrap();
        for (old, found) in [(0, "never restored"), (6, "epoch 6")] {
            let why = must_be_the_newest(&folder, &client, &of(old)).unwrap_err().to_string();
            for part in [found, "127.0.0.1:1", "stop it", "--after 7"] {
                assert!(why.contains(part), "{part}: {why}");
            }
        }
    }

    #[test]
    fn beginning_anew_is_repeated_where_a_try_was_interrupted_and_refused_where_anything_else_lies() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("meta");
        let token = Token::draw(TokenKind::MetadataStore, "127.0.0.1:1", Sha256([0; 32])).unwrap();
        let begin = || crate::start::begin_anew(&dir, &token.to_string(), None);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(format!("{MARK}.new")), "half of it").unwrap();
        begin().unwrap();
        // Between the mark and the token.
        fs::remove_file(dir.join(CREDENTIALS)).unwrap();
        fs::write(dir.join(format!("{CREDENTIALS_BESIDE}7")), "half of it").unwrap();
        begin().unwrap();
        begin().unwrap();
        assert_eq!(Folder(dir.clone()).token().unwrap().to_string(), token.to_string());
        assert_eq!(Mark::read(&dir).unwrap().unwrap().instead.as_deref(), Some(NOTHING));

        let refused = || {
            let why = begin().unwrap_err().to_string();
            assert!(why.contains("is not empty"), "{why}");
        };
        fs::create_dir(dir.join("engine")).unwrap();
        refused();
        fs::remove_dir(dir.join("engine")).unwrap();
        let begun = Mark { began: Some(1), ..Mark::read(&dir).unwrap().unwrap() };
        begun.write(&dir).unwrap();
        refused();
        Mark { began: None, instead: None, ..begun }.write(&dir).unwrap();
        refused();
        fs::remove_file(dir.join(MARK)).unwrap();
        refused();
    }

    use chronofs_core::Retention;
    use chronofs_core::store::{Credentials, StoreKind};
    use chronofs_core::volume::{Compression, VolumeSpec};
    use chronofs_wire::admin::{AssignedStore, AssignedVolume};

    #[test]
    fn volumes_that_only_one_of_both_knows_are_told_apart() {
        let spec = |n: u128| VolumeSpec {
            id: Uuid::from_u128(n),
            name: format!("v{n}"),
            block_size: 1 << 22,
            compression: Compression::Lz4,
            retention: Retention::Forever,
            max_bytes: None,
            max_inodes: None,
            hash_key: [0; 16],
        };
        let store = || AssignedStore {
            id: Uuid::nil(),
            kind: StoreKind::Local { path: "/b".to_owned() },
            credentials: Credentials::Ambient,
            create_only: false,
        };
        let volume = |n, deleted| AssignedVolume {
            spec: spec(n),
            deleted,
            born_ns: 0,
            give_up_after_s: None,
            store: store(),
            keys: None,
        };
        let assignment = Assignment {
            revision: 1,
            volumes: vec![volume(1, false), volume(2, false), volume(3, true)],
            ..Default::default()
        };
        let here = [1, 4].map(|n| (Uuid::from_u128(n), format!("v{n}"))).into();
        assert_eq!(compare(&assignment, here), [vec!["v2".to_owned()], vec!["v4".to_owned()]]);
    }
}
