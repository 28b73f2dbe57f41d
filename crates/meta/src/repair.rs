//! `meta verify --repair`: corrects what other rows decide, in a store that no server uses, after copying it.

use crate::files::Folder;
use crate::machine::{SharedView, tag};
use crate::start::open_engine;
use anyhow::{Context, Result, bail};
use chronofs_engine::{Change, Commit, Engine};
use chronofs_namespace::{mends, unproven};
use chronofs_snapshot::restore::own::Mark;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What a commit may hold.
const COMMIT_MAX: usize = 256 << 20;

/// What [`repair`] did.
#[derive(Clone, Debug, Default)]
pub struct Repaired {
    /// Every fault that was corrected, as one line.
    pub mended: Vec<String>,
    /// The store as it was, if anything was corrected.
    pub copy: Option<PathBuf>,
}

/// Corrects counts, sums and indexes of a metadata store that no server uses, if other rows say what they should be.
pub fn repair(db_folder: &Path) -> Result<Repaired> {
    let folder = Folder(db_folder.to_owned());
    if !folder.engine().is_dir() {
        bail!("{} holds no metadata store; name its folder with --db-folder", db_folder.display());
    }
    let locked = folder.lock()?;
    if let Some(mark) = Mark::read(&folder.0)?.filter(|mark| mark.began.is_none()) {
        // The first start has to find it just at the cut; with a commit more it would refuse it for good.
        bail!(
            "{} was prepared from {}, and no server has started on it yet: start the server on it once, so that it goes its own \
             way, stop it, and repair then",
            db_folder.display(),
            mark.from()
        );
    }
    if locked.maybe_lost()? {
        // A commit of today would lie above what clients still have to say again.
        bail!(
            "the machine went down while the server of {} ran: start the server once, so that clients can say again what \
             was lost, stop it, and repair then",
            db_folder.display()
        );
    }
    let now_ns = crate::executor::now().wall_ns;
    let engine = open_engine(&locked.folder, None)?;
    let found = mends(&SharedView(engine.view()), engine.applied().next(now_ns));
    drop(engine);
    if found
        .with_context(|| format!("cannot read the metadata store in {}", db_folder.display()))?
        .1
        .0
        .is_empty()
    {
        return Ok(Repaired::default());
    }
    let copy = copied(&folder)?;
    let engine = open_engine(&locked.folder, None)?;
    let version = engine.applied().next(now_ns);
    let reads = SharedView(engine.view());
    let (mended, mut batch) = mends(&reads, version)?;
    if batch.0.is_empty() {
        return Ok(Repaired { mended: Vec::new(), copy: Some(copy) });
    }
    // The next start goes on from this commit, which is of today. How old the store is, if it is a copy that was put back, only
    // what was there before tells.
    // After a kill `applied` lies above it.
    batch.0.extend(unproven(&reads, engine.opening().last_commit)?.0);
    let bytes: usize = batch.0.iter().map(|change| change.key().len() + value_len(change)).sum();
    if bytes > COMMIT_MAX {
        bail!("{} rows with {bytes} bytes are to be corrected, which is too much at once", batch.0.len());
    }
    engine.apply(vec![Commit { version, tag: tag::encode(&tag::Tag::System), batch }])?;
    engine.sync()?;
    Ok(Repaired { mended: mended.iter().map(ToString::to_string).collect(), copy: Some(copy) })
}

fn value_len(change: &Change) -> usize {
    match change {
        Change::Put(_, value) => value.len(),
        Change::Delete(_) => 0,
    }
}

/// Copies the store beside itself, durably.
fn copied(folder: &Folder) -> Result<PathBuf> {
    let mut numbers = 1..;
    let copy = loop {
        let Some(n) = numbers.next() else { bail!("no name is left for a copy of the store") };
        let copy: PathBuf = folder.0.join(format!("before-repair-{n}"));
        match fs::create_dir(&copy) {
            Ok(()) => break copy,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("cannot make {}", copy.display())),
        }
    };
    let done = copy_tree(&folder.engine(), &copy).and_then(|()| File::open(&folder.0)?.sync_all());
    done.with_context(|| format!("cannot copy the store into {}; nothing was changed", copy.display()))?;
    Ok(copy)
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kept::tests::Bench;
    use chronofs_core::{Retention, Version, VolumeIndex};
    use chronofs_engine::Batch;
    use chronofs_history::{Snapshot, encode_plain};
    use chronofs_namespace::list_unproven;
    use chronofs_namespace::rows::{COUNTERS, Counters, STORE_WIDE, UNPROVEN};

    const INDEX: VolumeIndex = VolumeIndex(1);

    /// A store that was killed, with a sum that is wrong, whose pins were read. Gives its last commit.
    fn damaged() -> (tempfile::TempDir, Version) {
        let Bench { runtime, keeper, folder, .. } = Bench::new(Retention::Seconds(3600));
        let engine = keeper.engine.clone();
        // Once what is decided is decided.
        keeper.ask(|_, _| ()).unwrap();
        let reads = SharedView(engine.view());
        let row = Snapshot::new(&reads, INDEX, None).get_plain(COUNTERS, &[]).unwrap().unwrap();
        let mut counters: Counters = postcard::from_bytes(&row).unwrap();
        counters.used_bytes += 7;
        let version = engine.applied().next(0);
        let batch = Batch(vec![
            Change::Put(
                COUNTERS.live_key(INDEX, &[]),
                encode_plain(&postcard::to_stdvec(&counters).unwrap()),
            ),
            Change::Delete(UNPROVEN.live_key(STORE_WIDE, &INDEX.0.to_be_bytes())),
        ]);
        engine.apply(vec![Commit { version, tag: tag::encode(&tag::Tag::System), batch }]).unwrap();
        engine.sync().unwrap();
        // What a process that is killed leaves: one that ends by itself says up to where it has handed out versions.
        let killed = folder.path().join("killed");
        fs::create_dir_all(killed.join("engine")).unwrap();
        copy_tree(&folder.path().join("meta/engine"), &killed.join("engine")).unwrap();
        drop((runtime, keeper, engine, reads));
        (folder, version)
    }

    #[test]
    fn a_repair_notes_the_last_commit_as_what_survived_and_not_what_may_have_been_handed_out_above_it() {
        let (folder, last) = damaged();
        let path = folder.path().join("killed");
        let engine = open_engine(&Folder(path.clone()), None).unwrap();
        assert_eq!(engine.opening().last_commit, last);
        assert!(engine.applied() > last, "it was not stopped");
        drop(engine);
        let repaired = repair(&path).unwrap();
        assert_eq!((repaired.mended.len(), repaired.copy.is_some()), (1, true), "{repaired:?}");
        let engine = open_engine(&Folder(path), None).unwrap();
        assert_eq!(list_unproven(&SharedView(engine.view())).unwrap(), [(INDEX, last)]);
    }

    #[test]
    fn a_folder_that_was_prepared_and_never_started_is_left_as_it_is() {
        let (folder, last) = damaged();
        let path = folder.path().join("killed");
        let mut mark: Mark = serde_json::from_value(serde_json::json!({
            "format": 1, "uid": "c50263df28be44ebb596f5c2a849adbb", "number": 17, "source": "s", "cluster": "c",
            "node": "n", "name": "n", "old": "h:1", "new": "h:2", "prepared": "2026-11-22T00:00:00Z",
            "cut": { "store": last.0, "cut": last.0 }, "draw": [1, 2], "entries": [],
        }))
        .unwrap();
        mark.write(&path).unwrap();
        let refused = repair(&path).unwrap_err().to_string();
        assert!(refused.contains("start the server on it once"), "{refused}");
        assert!(!path.join("before-repair-1").exists());
        mark.began = Some(last.0);
        mark.write(&path).unwrap();
        assert_eq!(repair(&path).unwrap().mended.len(), 1);
    }
}
