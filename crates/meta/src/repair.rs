//! `meta verify --repair`: corrects what other rows decide, in a store that no server uses, after copying it.

use crate::files::Folder;
use crate::machine::{SharedView, tag};
use crate::start::open_engine;
use anyhow::{Context, Result, bail};
use chronofs_engine::{Change, Commit, Engine};
use chronofs_namespace::{mends, unproven};
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
    batch.0.extend(unproven(&reads, engine.applied())?.0);
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
