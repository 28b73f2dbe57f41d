//! The store of the model made of real parts: the file system's state machine with its history, on the engine, with a log on
//! a simulated disk and a store in memory.
//!
//! The bank is twelve coins, which are files, in the folders of six accounts: they are moved by renames, and all of them are
//! always somewhere, once. The ring is six names that exchange their files. Every commit is one request of a client, so both
//! hold at every instant of a volume, and in whatever is restored of it.

use super::{Op, Random};
use bytes::Bytes;
use chronofs_core::ops::{NewNode, RenameMode, Reply, Request, Scope, SystemRequest, XattrMode};
use chronofs_core::volume::{BLOCK_SIZE_MIN, Compression, VolumeSpec};
use chronofs_core::{Caller, Errno, Ino, Name, Retention, SessionId, Version, VolumeIndex};
use chronofs_engine::embedded::{Embedded, LogHold, MemMedium, MemStore, Options};
use chronofs_engine::memory::State;
use chronofs_engine::sim::SimDisk;
use chronofs_engine::{Batch, Commit, Engine as _, Reads, View};
use chronofs_namespace::{Ctx, SystemCtx, SystemReply, query, restored, step, system, verify};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

type Engine = Embedded<MemStore, SimDisk>;

const ACCOUNTS: usize = 6;
const COINS: usize = 12;
const RING: usize = 6;
/// What is between two commits of the model: more than versions are reserved ahead.
const VERSION_STEP: u64 = 10_000;
/// Where the model's first commit is; what makes bank and ring is before it.
const BEGIN: u64 = 1_000_000_000;
/// What a restored store does, to show that it goes on.
const OPS_AFTERWARDS: u64 = 12;

/// The image of a role.
#[derive(Clone)]
pub(crate) enum Image {
    Store(MemMedium),
    Log(SimDisk),
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an image of real parts")
    }
}

/// Where bank and ring are, and who works on them.
#[derive(Clone, Debug)]
struct Ledger {
    volume: VolumeIndex,
    session: SessionId,
    accounts: Vec<Ino>,
    ring: Ino,
}

/// See the module.
pub(crate) struct Real {
    disk: SimDisk,
    medium: MemMedium,
    ledger: Ledger,
    engine: Arc<Engine>,
    hold: Option<LogHold<MemStore, SimDisk>>,
    /// All that was ever committed and not lost.
    history: Vec<Commit>,
    images: u64,
}

impl std::fmt::Debug for Real {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "real parts with {} commits", self.history.len())
    }
}

/// Another machine's copy of the disk.
impl Clone for Real {
    fn clone(&self) -> Real {
        let (disk, medium) = (self.disk.copy(), self.medium.copy());
        let engine = open(&disk, &medium);
        let (ledger, history) = (self.ledger.clone(), self.history.clone());
        Real { disk, medium, ledger, engine, hold: None, history, images: self.images }
    }
}

/// Small, so that the log is dropped piece by piece all the time.
fn options() -> Options {
    Options {
        segment_bytes: 1024,
        flush_log_bytes: 1 << 20,
        row_cache_bytes: 0,
        ceiling_ahead: Duration::from_nanos(1000),
        keeper: false,
        ..Options::default()
    }
}

fn open(disk: &SimDisk, medium: &MemMedium) -> Arc<Engine> {
    Arc::new(Embedded::new(disk.clone(), MemStore::open(medium.clone()), options()).unwrap())
}

fn version_of(model: u64) -> Version {
    Version(BEGIN + model * VERSION_STEP)
}

fn name(kind: &str, n: usize) -> Name {
    Name::new(Bytes::from(format!("{kind}{n}"))).unwrap()
}

fn nobody(_: Ino) -> bool {
    false
}

/// Decides with `decide` and commits at the version.
fn commit(engine: &Engine, version: Version, batch: Batch) -> Commit {
    let commit = Commit { version, tag: Bytes::from_static(b"tag"), batch };
    engine.apply(vec![commit.clone()]).unwrap();
    commit
}

fn decide_system(engine: &Engine, version: Version, request: &SystemRequest) -> (Commit, SystemReply) {
    let ctx = SystemCtx { version, is_open: &nobody, freed_max: 64, place: &|_| None };
    let outcome = system(&*engine.view(), &ctx, request).unwrap();
    (commit(engine, version, outcome.batch), outcome.reply.unwrap())
}

fn open_session(engine: &Engine, version: Version) -> (Commit, SessionId) {
    let request = SystemRequest::OpenSession {
        volume: Uuid::from_u128(7),
        client: 1,
        at: None,
        read_only: false,
        ttl_ms: 60_000,
        scope: Scope { token: Uuid::nil(), root: Ino::ROOT },
    };
    match decide_system(engine, version, &request) {
        (commit, SystemReply::Session { id, .. }) => (commit, id),
        other => panic!("{other:?}"),
    }
}

impl Ledger {
    fn ctx(&self, version: Version, at: Option<Version>) -> Ctx<'static> {
        Ctx {
            volume: self.volume,
            version,
            at,
            caller: Caller::ROOT,
            session: self.session,
            root: Ino::ROOT,
            read_only: false,
            is_open: &nobody,
            holds: &nobody,
            freed_max: 64,
            made: None,
        }
    }

    fn act(&self, engine: &Engine, version: Version, request: &Request) -> Result<(Commit, Reply), String> {
        let outcome =
            step(&*engine.view(), &self.ctx(version, None), request).map_err(|e| format!("{e:?}"))?;
        let reply = outcome.reply.map_err(|errno| format!("{request:?}: {errno:?}"))?;
        Ok((commit(engine, version, outcome.batch), reply))
    }

    fn find(
        &self,
        view: &dyn View,
        at: Option<Version>,
        parent: Ino,
        name: Name,
    ) -> Result<Option<Ino>, String> {
        let request = Request::Lookup { parent, name };
        match query(view, &self.ctx(view.version(), at), &request).map_err(|e| format!("{e:?}"))? {
            Ok(Reply::Attr(attr)) => Ok(Some(attr.ino)),
            Err(Errno::ENOENT) => Ok(None),
            other => Err(format!("{request:?}: {other:?}")),
        }
    }

    /// In which accounts a coin is.
    fn holders(&self, view: &dyn View, at: Option<Version>, coin: usize) -> Result<Vec<usize>, String> {
        let mut holders = Vec::new();
        for (n, account) in self.accounts.iter().enumerate() {
            if self.find(view, at, *account, name("coin", coin))?.is_some() {
                holders.push(n);
            }
        }
        Ok(holders)
    }

    /// What an operation of the model is here: two files of the ring are exchanged, or a coin is moved.
    fn request(&self, view: &dyn View, op: Op) -> Result<Request, String> {
        let [from, to] = [op.from, op.to].map(usize::from);
        let coin = op.money as usize % COINS;
        let holder = self.holders(view, None, coin)?[0];
        Ok(match op.money % 2 == 0 {
            true if from != to => {
                let (name, new_name) = (name("ring", from), name("ring", to));
                Request::Rename { from: self.ring, name, to: self.ring, new_name, mode: RenameMode::Exchange }
            }
            false if holder != to => {
                let (from, to) = (self.accounts[holder], self.accounts[to]);
                let (name, new_name) = (name("coin", coin), name("coin", coin));
                Request::Rename { from, name, to, new_name, mode: RenameMode::NoReplace }
            }
            _ => {
                let value = Bytes::from(op.money.to_string());
                let name = Bytes::from_static(b"user.last");
                Request::SetXattr { ino: self.ring, name, value, mode: XattrMode::Any }
            }
        })
    }

    /// All coins are there, each once, and all files of the ring.
    fn check(&self, view: &dyn View, at: Option<Version>) -> Result<(), String> {
        for coin in 0..COINS {
            let holders = self.holders(view, at, coin)?;
            if holders.len() != 1 {
                return Err(format!("coin {coin} is in accounts {holders:?} at {at:?}"));
            }
        }
        let mut ring = BTreeSet::new();
        for n in 0..RING {
            ring.extend(self.find(view, at, self.ring, name("ring", n))?);
        }
        match ring.len() == RING {
            true => Ok(()),
            false => Err(format!("the ring has {} files at {at:?}", ring.len())),
        }
    }
}

impl Real {
    /// With bank and ring.
    pub(super) fn new(seed: u64) -> Real {
        let (disk, medium) = (SimDisk::new(seed), MemMedium::default());
        let engine = open(&disk, &medium);
        let mut n = 0;
        let mut next = || {
            n += 1;
            Version(BEGIN / 2 + n * VERSION_STEP)
        };
        let spec = VolumeSpec {
            id: Uuid::from_u128(7),
            name: "bank".to_owned(),
            block_size: BLOCK_SIZE_MIN,
            compression: Compression::None,
            retention: Retention::Forever,
            max_bytes: None,
            max_inodes: None,
            hash_key: [7; 16],
        };
        let (made, reply) = decide_system(&engine, next(), &SystemRequest::CreateVolume(spec));
        let SystemReply::Volume { index: volume, .. } = reply else { panic!("{reply:?}") };
        let (opened, session) = open_session(&engine, next());
        let mut history = vec![made, opened];
        let mut ledger = Ledger { volume, session, accounts: Vec::new(), ring: Ino::ROOT };
        let mut create = |ledger: &Ledger, parent: Ino, name: Name, node: NewNode| -> Ino {
            let request =
                Request::Create { parent, name, node, mode: 0o755, umask: 0, open: false, exclusive: true };
            match ledger.act(&engine, next(), &request).unwrap() {
                (commit, Reply::Attr(attr)) => {
                    history.push(commit);
                    attr.ino
                }
                other => panic!("{other:?}"),
            }
        };
        for n in 0..ACCOUNTS {
            let account = create(&ledger, Ino::ROOT, name("account", n), NewNode::Dir);
            ledger.accounts.push(account);
        }
        for coin in 0..COINS {
            create(&ledger, ledger.accounts[coin % ACCOUNTS], name("coin", coin), NewNode::File);
        }
        ledger.ring = create(&ledger, Ino::ROOT, name("the ring", 0), NewNode::Dir);
        for n in 0..RING {
            create(&ledger, ledger.ring, name("ring", n), NewNode::File);
        }
        engine.sync().unwrap();
        Real { disk, medium, ledger, engine, hold: None, history, images: 0 }
    }

    pub(super) fn commit(&mut self, model: u64, op: Op) {
        let request = self.ledger.request(&*self.engine.view(), op).unwrap();
        let (commit, _) = self.ledger.act(&self.engine, version_of(model), &request).unwrap();
        self.history.push(commit);
    }

    pub(super) fn sync(&self) {
        self.engine.sync().unwrap();
    }

    pub(super) fn flush(&self) {
        self.engine.flush().unwrap();
        while self.medium.complete_one() {}
    }

    /// From now on the log is held, or not.
    pub(super) fn hold(&mut self, held: bool) {
        if !held {
            self.hold = None;
        } else if self.hold.is_none() {
            self.hold = Some(self.engine.hold_log());
        }
    }

    pub(super) fn drop_log(&self) {
        self.engine.mark(self.engine.applied()).unwrap();
        self.engine.maintain().unwrap();
    }

    /// The process goes, and what it had in memory.
    pub(super) fn restart(&mut self) {
        self.leave_behind();
        self.reopen();
    }

    /// Whatever the old process still does when it goes, it does elsewhere.
    fn leave_behind(&mut self) {
        self.hold = None;
        (self.disk, self.medium) = (self.disk.copy(), self.medium.copy());
        self.medium.crash();
    }

    /// The machine goes as well. Gives what of the model's commits is left.
    pub(super) fn lose_power(&mut self) -> u64 {
        self.leave_behind();
        self.disk.power_off();
        self.disk.power_on();
        self.reopen();
        self.engine.opening().last_commit.0.saturating_sub(BEGIN) / VERSION_STEP
    }

    fn reopen(&mut self) {
        self.engine = open(&self.disk, &self.medium);
        let last = self.engine.opening().last_commit;
        self.history.retain(|commit| commit.version <= last);
    }

    pub(super) fn image_store(&mut self) -> Image {
        let place = self.place();
        let hold = self.engine.hold_log();
        hold.image_store(&place).unwrap();
        Image::Store(self.medium.of_image(&place).expect("it was just made"))
    }

    pub(super) fn image_log(&mut self) -> Image {
        let place = self.place();
        let hold = self.engine.hold_log();
        hold.image_log(&place).unwrap();
        Image::Log(self.disk.of_image(&place).copy())
    }

    fn place(&mut self) -> PathBuf {
        self.images += 1;
        PathBuf::from(format!("image{}", self.images))
    }

    /// Whether the two images open, as what this store was at `cut`, with a bank and a ring, then and at each instant
    /// before; and whether what is restored goes on.
    pub(super) fn check(&self, storage: &Image, tlog: &Image, cut: u64) -> Result<(), String> {
        let (Image::Store(medium), Image::Log(disk)) = (storage, tlog) else {
            return Err("an image is of another role".to_owned());
        };
        let (medium, disk) = (medium.copy(), disk.copy());
        let opened = || Embedded::new(disk.clone(), MemStore::open(medium.clone()), options());
        let engine = opened().map_err(|error| format!("the images do not open: {error}"))?;
        let found = engine.opening();
        let before: Vec<&Commit> =
            self.history.iter().take_while(|commit| commit.version <= version_of(cut)).collect();
        let expected = before.last().map_or(Version::ZERO, |commit| commit.version);
        if (found.last_commit, found.torn) != (expected, false) {
            return Err(format!("the images open as of {}, not of {expected}", found.last_commit));
        }
        let mut state = State::default();
        before.iter().for_each(|commit| state.apply(commit));
        let view = engine.view();
        let rows = |reads: &dyn Reads| reads.scan(b"", &[0xff; 4], usize::MAX).map_err(|e| format!("{e:?}"));
        if rows(&*view)? != rows(&state)? {
            return Err("the rows are not those of the cut".to_owned());
        }
        check_files(&self.ledger, &engine, &before)?;
        let ledger = self.begin_again(&engine)?;
        drop(engine);
        let engine = opened().map_err(|error| format!("what was restored does not open again: {error}"))?;
        check_files(&ledger, &engine, &before)
    }

    /// The commit by which a restored store goes apart from its source, and what a client then does.
    fn begin_again(&self, engine: &Engine) -> Result<Ledger, String> {
        let cut = engine.opening().last_commit;
        let mut version = engine.floor().max(cut).next(cut.0 + 600 * 1_000_000_000);
        let mut next = || {
            version = version.next(version.0 + VERSION_STEP);
            version
        };
        let at = next();
        let batch = restored(&&*engine.view(), cut, at, [cut.0, cut.0 / 3]).map_err(|e| format!("{e:?}"))?;
        commit(engine, at, batch);
        let (_, session) = open_session(engine, next());
        let ledger = Ledger { session, ..self.ledger.clone() };
        let mut random = Random(cut.0);
        for _ in 0..OPS_AFTERWARDS {
            let request = ledger.request(&*engine.view(), Op::random(&mut random))?;
            ledger.act(engine, next(), &request)?;
        }
        Ok(ledger)
    }
}

/// Bank and ring are whole, now and at instants before the cut, and every row fits the others.
fn check_files(ledger: &Ledger, engine: &Engine, before: &[&Commit]) -> Result<(), String> {
    let view = engine.view();
    ledger.check(&*view, None)?;
    // What makes them is not whole yet.
    let whole = before.iter().filter(|commit| commit.version.0 > BEGIN).map(|commit| commit.version);
    let whole: Vec<Version> = whole.collect();
    for part in 0..4 {
        if let Some(at) = whole.get(whole.len() * part / 4) {
            ledger.check(&*view, Some(*at))?;
        }
    }
    let faults = verify(&*view).map_err(|error| format!("{error:?}"))?;
    if faults.is_empty() { Ok(()) } else { Err(format!("{faults:?}")) }
}
