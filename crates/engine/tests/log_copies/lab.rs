//! An engine with copies of its log in folders, whose coordinator is a record in memory.

use super::*;

/// The coordinator's record: epoch, quorum, and the owner's number.
#[derive(Default)]
pub(super) struct Recorded {
    pub(super) epoch: u64,
    pub(super) quorum: Quorum,
    pub(super) owner: u64,
    pub(super) away: bool,
    /// All that was recorded.
    pub(super) changes: Vec<Quorum>,
}

#[derive(Clone)]
pub(super) struct Owner(Arc<Mutex<Recorded>>, u64);

impl Coordinator for Owner {
    fn change(&self, change: &Change, above: u64) -> Result<u64, NotRecorded> {
        let mut recorded = self.0.lock().unwrap();
        if recorded.away {
            return Err(NotRecorded::Unknown("away".to_owned()));
        }
        if recorded.owner != self.1 {
            return Err(NotRecorded::Superseded("another start owns it".to_owned()));
        }
        recorded.epoch = recorded.epoch.max(above) + 1;
        recorded.quorum = change.quorum.clone();
        recorded.changes.push(change.quorum.clone());
        Ok(recorded.epoch)
    }
}

pub(super) struct Lab {
    pub(super) temp: tempfile::TempDir,
    pub(super) recorded: Arc<Mutex<Recorded>>,
    pub(super) wanted: Quorum,
}

impl Lab {
    pub(super) fn new(copies: &[&str], anti_quorum: usize) -> Lab {
        let temp = tempfile::tempdir().unwrap();
        let folder = |name: &&str| temp.path().join(name).to_str().unwrap().to_owned();
        let members: BTreeSet<String> = copies.iter().map(folder).collect();
        Lab { wanted: Quorum { members, anti_quorum }, recorded: Arc::default(), temp }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// What a new owner gets from the coordinator.
    pub(super) fn setup(&self) -> Setup {
        let mut recorded = self.recorded.lock().unwrap();
        recorded.owner += 1;
        recorded.epoch += 1;
        Setup {
            epoch: recorded.epoch,
            recorded: recorded.quorum.clone(),
            wanted: self.wanted.clone(),
            coordinator: Arc::new(Owner(self.recorded.clone(), recorded.owner)),
            connect: Arc::new(|name: &str| -> Result<Box<dyn Link>, CopyError> {
                Ok(Box::new(FolderCopy::new(Path::new(name), STORE)?))
            }),
            deadline: Duration::from_secs(2),
        }
    }

    pub(super) fn open_with(&self, folder: &str, setup: Setup) -> Result<EmbeddedFolder, EngineError> {
        let options = Options { segment_bytes: 64 << 10, flush_bytes: 1 << 20, ..Options::default() };
        open_copied(Folder::open(&self.path(folder))?, options, &RocksOptions::default(), Some(setup))
    }

    pub(super) fn open(&self, folder: &str) -> EmbeddedFolder {
        self.open_with(folder, self.setup()).unwrap()
    }

    pub(super) fn recover(&self, folder: &str) -> Result<EmbeddedFolder, EngineError> {
        let setup = self.setup();
        let log = self.path(folder).join("log");
        drop(Folder::open(&self.path(folder))?);
        recover::recover(&log, setup.epoch, &setup.recorded, &setup.connect)?;
        self.open_with(folder, setup)
    }

    /// Puts a file in the place of a copy's folder, which goes aside, or that folder back: in one step, for a thread that
    /// tries to reach the copy would make the folder anew in between.
    pub(super) fn exchange(&self, name: &str) {
        let (there, aside) = (self.path(name), self.path(&format!("{name} away")));
        renameat_with(CWD, there, CWD, aside, RenameFlags::EXCHANGE).unwrap();
    }

    pub(super) fn take_away(&self, name: &str) {
        std::fs::write(self.path(&format!("{name} away")), "no folder").unwrap();
        self.exchange(name);
    }

    pub(super) fn bring_back(&self, name: &str) {
        self.exchange(name);
        std::fs::remove_file(self.path(&format!("{name} away"))).unwrap();
    }

    /// All copies that are wanted count.
    pub(super) fn whole(&self) -> bool {
        self.recorded.lock().unwrap().quorum == self.wanted
    }
}

#[track_caller]
pub(super) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(super) fn put(engine: &EmbeddedFolder, n: u64) {
    let version = Version(engine.applied().0 + 1);
    let key = Bytes::copy_from_slice(&n.to_be_bytes());
    let value = Bytes::from(vec![n as u8; 3000]);
    let batch = Batch(vec![chronofs_engine::Change::Put(key, value)]);
    engine.apply(vec![Commit { version, tag: Bytes::new(), batch }]).unwrap();
}

pub(super) fn write(engine: &EmbeddedFolder, numbers: std::ops::Range<u64>) {
    for n in numbers {
        put(engine, n);
        if n % 7 == 0 {
            engine.sync().unwrap();
        }
    }
    engine.sync().unwrap();
}

pub(super) fn held(engine: &EmbeddedFolder) -> usize {
    engine.view().scan(b"", &[0xff; 16], usize::MAX).unwrap().len()
}

/// As if the process had been killed, and its disk lost: nothing is closed.
pub(super) fn lose(engine: EmbeddedFolder) {
    std::mem::forget(engine);
}
