//! A keeper with a machine, an engine and a block store of its own; the store does something in between where a test says so.

use super::*;
use crate::collect::Rhythm;
use crate::files::Folder;
use crate::machine::{Config, Event, Found, Machine};
use bytes::Bytes;
use chronofs_blocks::{BlockStore, ListPage, ObjectPort, Reader, StoreError, StorePort};
use chronofs_core::Retention;
use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression, VolumeSpec};
use chronofs_namespace::rows::{PIN, STORE_WIDE};
use chronofs_wire::admin::{AssignedStore, AssignedVolume, Assignment, StoreKind};
use chronofs_wire::question::Said;
use futures::future::BoxFuture;

pub(crate) const VOLUME: Uuid = Uuid::from_u128(1);
const NOW_NS: u64 = 1_800_000_000_000_000_000;

pub(crate) fn attempt() -> Attempt {
    Attempt { uid: "c50263df28be44ebb596f5c2a849adbb".parse().unwrap(), number: 17 }
}

/// A store in a folder, in which others do something just when pins are being put or taken away.
pub(crate) struct Racing {
    store: BlockStore,
    /// A clone registers when one is taken away.
    reader: Mutex<Option<Reader>>,
    /// It is put again when it was taken away.
    again: Mutex<Option<Pin>>,
    /// Nothing is put before there is a permit.
    late: Mutex<Option<Arc<tokio::sync::Semaphore>>>,
}

impl Racing {
    fn new(store: BlockStore) -> Racing {
        Racing { store, reader: Mutex::default(), again: Mutex::default(), late: Mutex::default() }
    }

    pub(crate) fn put_again(&self, pin: Pin) {
        *self.again.lock().unwrap() = Some(pin);
    }

    pub(crate) fn put_late(&self) -> Arc<tokio::sync::Semaphore> {
        let permits = Arc::new(tokio::sync::Semaphore::new(0));
        *self.late.lock().unwrap() = Some(permits.clone());
        permits
    }
}

impl ObjectPort for Racing {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.put(name, bytes)
    }
    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.store.get(name, offset, len)
    }
}

impl StorePort for Racing {
    fn whole<'a>(&'a self, name: &'a str, max: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.store.whole(name, max)
    }
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.delete(name)
    }
    fn list(&self, from: Option<String>) -> BoxFuture<'_, Result<ListPage, StoreError>> {
        self.store.list(from)
    }
    fn put_note<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let late = self.late.lock().unwrap().clone();
            if let Some(late) = late {
                late.acquire().await.unwrap().forget();
            }
            self.store.put_note(name, bytes).await
        })
    }
    fn remove_note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let reader = self.reader.lock().unwrap().take();
            if let Some(reader) = reader {
                self.store.put_note(&reader.name_in_store(), reader.encode().unwrap()).await?;
            }
            self.store.remove_note(name).await?;
            let again = self.again.lock().unwrap().take();
            match again {
                Some(pin) => self.store.put_pin(&pin).await,
                None => Ok(()),
            }
        })
    }
    fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>, StoreError>> {
        self.store.notes(folder)
    }
}

fn assigned(id: Uuid, retention: Retention) -> AssignedVolume {
    let spec = VolumeSpec {
        id,
        name: format!("v{}", id.as_u128()),
        block_size: BLOCK_SIZE_DEFAULT,
        compression: Compression::None,
        retention,
        max_bytes: None,
        max_inodes: None,
        hash_key: [0; 16],
    };
    let kind = StoreKind::Local { path: "/nowhere".to_owned() };
    let store =
        AssignedStore { id: Uuid::from_u128(9), kind, credentials: Default::default(), create_only: false };
    AssignedVolume { spec, deleted: false, born_ns: 0, give_up_after_s: None, store, keys: None }
}

pub(crate) struct Bench {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) keeper: Keeper,
    pub(crate) store: Arc<Racing>,
    pub(crate) folder: tempfile::TempDir,
}

impl Bench {
    /// A server with one volume of this retention.
    pub(crate) fn new(retention: Retention) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let engine = crate::start::open_engine(&Folder::make(&folder.path().join("meta")).unwrap(), None);
        let engine = Arc::new(engine.unwrap());
        let reads = SharedView(engine.view());
        let now = Now::from(NOW_NS);
        let machine = Machine::new(Config::default(), &reads, Version::ZERO, Found::default(), now).unwrap();
        let mut core = Core { machine, engine: engine.clone() };
        let (queue, mut inputs) = mpsc::channel::<Input>(64);
        runtime.spawn(async move {
            while let Some(input) = inputs.recv().await {
                match input {
                    Input::Events(events) => core.run(now, events, &mut |_| ()).unwrap(),
                    Input::Ask(ask) => {
                        ask(&mut core, now);
                        core.engine.sync().unwrap();
                    }
                    _ => unreachable!("nobody is connected"),
                }
            }
        });
        let volumes = vec![assigned(VOLUME, retention)];
        let assignment = Assignment { revision: 1, volumes, ..Default::default() };
        let told =
            vec![Event::Assignment(Box::new(assignment)), Event::Owner(true), Event::Tick, Event::Tick];
        queue.blocking_send(Input::Events(told)).unwrap_or_else(|_| panic!("the channel has room"));
        let opened = BlockStore::create(&folder.path().join("blocks"), Uuid::from_u128(9)).unwrap();
        let store = Arc::new(Racing::new(opened));
        let stores = crate::server::objects::Stores::default();
        stores.set([(VOLUME, store.clone() as Arc<dyn StorePort>)].into());
        let collector = Collector::new(queue.clone(), stores, Rhythm::default());
        let handle = runtime.handle().clone();
        let keeper = Keeper { queue, engine, collector, runtime: handle, resting: Mutex::default() };
        Bench { runtime, keeper, store, folder }
    }

    pub(crate) fn pins(&self) -> Vec<Pin> {
        let found = self.runtime.block_on(self.store.pins()).unwrap();
        found.iter().map(|(name, bytes)| Pin::decode(name, bytes).unwrap()).collect()
    }

    pub(crate) fn rows(&self) -> usize {
        let rows = self.keeper.ask(|core, _| list_kept(&SharedView(core.engine.view())).unwrap().len());
        rows.unwrap()
    }

    /// Everything up to the cut, which is the last commit.
    pub(crate) fn keep_a_set(&self) -> Version {
        self.keeper.keep_past(&attempt(), NOW_NS).unwrap();
        let cut = self.keeper.ask(|core, _| core.machine.last()).unwrap();
        self.keeper.keep_cut(&attempt(), cut).unwrap();
        cut
    }

    fn reader(&self) -> Reader {
        Reader::new(attempt().uid.as_str(), Uuid::from_u128(5), "clone:1", ("store", "h:1"), Version(3))
    }
}

#[test]
fn a_note_says_for_which_attempt_an_instant_is_kept() {
    assert_eq!(attempt_of(&note(&attempt())), Some(attempt()));
    for other in ["", "a backup", "disk snapshot", "disk snapshot: x 1", "disk snapshots: c5 1"] {
        assert_eq!(attempt_of(other), None, "{other}");
    }
}

#[test]
fn another_incarnation_or_try_never_names_the_pins_of_this_one() {
    let mut seen = BTreeSet::new();
    for kind in ALL {
        for incarnation in 0..1000 {
            assert!(seen.insert(id_of(&attempt(), kind, incarnation)));
        }
        assert!(seen.insert(id_of(&Attempt { number: 18, ..attempt() }, kind, 0)));
    }
}

#[test]
fn what_a_set_needs_is_kept_twice_from_the_begin_and_up_to_the_cut_whatever_the_retention() {
    for retention in [Retention::None, Retention::Seconds(60), Retention::Forever] {
        let bench = Bench::new(retention);
        bench.keeper.keep_past(&attempt(), NOW_NS).unwrap();
        let pins = bench.pins();
        assert_eq!((pins.len(), bench.rows()), (1, 2), "{retention:?}");
        assert!(is_of(&pins[0], &attempt()) && pins[0].ends > Some(Version(NOW_NS)));
        assert_eq!(bench.keeper.attempts().unwrap(), [attempt()].into());
        let cut = bench.keeper.ask(|core, _| core.machine.last()).unwrap();
        bench.keeper.keep_cut(&attempt(), cut).unwrap();
        let now = bench.pins();
        assert_eq!((now.len(), bench.rows()), (1, 1));
        assert_eq!((now[0].from, now[0].to, now[0].ends), (pins[0].from, cut, None));
        bench.keeper.release(&attempt());
        assert_eq!((bench.pins().len(), bench.rows(), bench.keeper.attempts().unwrap().len()), (0, 0, 0));
    }
}

#[test]
fn a_store_that_is_away_keeps_a_set_from_being_one_and_what_was_kept_is_let_go_when_it_is_back() {
    let bench = Bench::new(Retention::Forever);
    let (blocks, away) = (bench.folder.path().join("blocks"), bench.folder.path().join("away"));
    std::fs::rename(&blocks, &away).unwrap();
    let fault = bench.keeper.keep_past(&attempt(), NOW_NS).unwrap_err();
    assert_eq!(fault.code, SnapshotCode::StorageFailed);
    assert!(fault.why.contains("cannot be pinned in its block store"), "{}", fault.why);
    bench.keeper.release(&attempt());
    assert_eq!((bench.rows(), bench.keeper.attempts().unwrap().len()), (2, 1));
    assert!(bench.keeper.rests(&attempt()));
    std::fs::rename(&away, &blocks).unwrap();
    bench.keeper.release(&attempt());
    assert_eq!((bench.pins().len(), bench.rows()), (0, 0));
    assert!(!bench.keeper.rests(&attempt()));
}

#[test]
fn a_store_that_is_away_keeps_what_lies_in_others_from_being_let_go_no_longer() {
    let bench = Bench::new(Retention::Forever);
    let other = Uuid::from_u128(2);
    let volumes = [VOLUME, other].map(|id| assigned(id, Retention::Forever)).to_vec();
    let assignment = Assignment { revision: 2, volumes, ..Default::default() };
    let told = vec![Event::Assignment(Box::new(assignment)), Event::Tick, Event::Tick];
    bench.keeper.queue.blocking_send(Input::Events(told)).unwrap_or_else(|_| panic!("there is room"));
    let (there, away) = (bench.folder.path().join("others"), bench.folder.path().join("away"));
    let others = Arc::new(BlockStore::create(&there, Uuid::from_u128(10)).unwrap());
    let stores = [(VOLUME, bench.store.clone() as Arc<dyn StorePort>), (other, others.clone())];
    bench.keeper.collector.stores.set(stores.into());
    bench.keep_a_set();
    let others_pins = || bench.runtime.block_on(others.pins()).unwrap().len();
    assert_eq!((bench.pins().len(), others_pins(), bench.rows()), (1, 1, 2));
    std::fs::rename(&there, &away).unwrap();
    bench.keeper.release(&attempt());
    assert_eq!((bench.pins().len(), bench.rows()), (0, 1));
    assert!(bench.keeper.rests(&attempt()), "the other one is tried again");
    std::fs::rename(&away, &there).unwrap();
    assert_eq!(others_pins(), 1);
    bench.keeper.release(&attempt());
    assert_eq!((others_pins(), bench.rows(), bench.keeper.rests(&attempt())), (0, 0, false));
}

#[test]
fn what_a_straggler_pinned_without_a_row_goes_too() {
    let bench = Bench::new(Retention::Forever);
    bench.keep_a_set();
    let late = bench.pins().remove(0);
    bench.keeper.release(&attempt());
    bench.runtime.block_on(bench.store.put_pin(&late)).unwrap();
    bench.keeper.release(&attempt());
    assert_eq!(bench.pins(), []);
}

/// As after the metadata was put back to a time before the set.
#[test]
fn a_pin_without_a_row_stays_as_long_as_a_clone_reads_what_it_keeps() {
    let bench = Bench::new(Retention::Forever);
    bench.keep_a_set();
    let pin = bench.pins().remove(0);
    bench.keeper.release(&attempt());
    assert_eq!((bench.pins().len(), bench.rows()), (0, 0));
    let bytes = bench.reader().encode().unwrap();
    bench.runtime.block_on(bench.store.put_pin(&pin)).unwrap();
    bench.runtime.block_on(bench.store.put_note(&bench.reader().name_in_store(), bytes)).unwrap();
    bench.keeper.release(&attempt());
    assert_eq!(bench.pins(), std::slice::from_ref(&pin), "also before the pins were read");
    assert!(bench.keeper.rests(&attempt()));
    let store: Arc<dyn StorePort> = bench.store.clone();
    bench.runtime.block_on(bench.keeper.collector.read_pins(&store, &[VOLUME]));
    bench.runtime.block_on(bench.keeper.collector.read_readers(&store));
    assert_eq!(bench.keeper.readers().unwrap().len(), 1);
    let ask = |forget| {
        let uid = attempt().uid;
        let asked = crate::reader::answer_readers(&bench.keeper.collector, uid.as_str(), forget);
        bench.runtime.block_on(asked)
    };
    let Said::Readers(named) = ask(false) else { panic!() };
    assert_eq!(named.len(), 1);
    ask(true);
    bench.keeper.release(&attempt());
    assert_eq!((bench.pins(), bench.keeper.attempts().unwrap()), (Vec::new(), [].into()));
}

/// The clone registers after the source looked for readers, and before the pins are gone.
#[test]
fn a_clone_that_registers_while_its_set_is_let_go_finds_the_pins_again() {
    let bench = Bench::new(Retention::Seconds(60));
    bench.keep_a_set();
    let before = bench.pins();
    *bench.store.reader.lock().unwrap() = Some(bench.reader());
    bench.keeper.release(&attempt());
    assert_eq!(bench.runtime.block_on(bench.store.notes(READERS)).unwrap().len(), 1, "it has registered");
    assert_eq!((bench.pins(), bench.rows()), (before.clone(), 1));
    let known = || {
        let store: Arc<dyn StorePort> = bench.store.clone();
        bench.runtime.block_on(bench.keeper.collector.read_readers(&store));
        bench.keeper.readers()
    };
    assert_eq!(bench.keeper.readers(), None, "they were not read yet");
    assert_eq!(known().unwrap().len(), 1);
    bench.keeper.release(&attempt());
    assert_eq!((bench.pins(), bench.rows()), (before, 1), "it is there still");
    let ask = |forget| {
        let uid = attempt().uid;
        let asked = crate::reader::answer_readers(&bench.keeper.collector, uid.as_str(), forget);
        bench.runtime.block_on(asked)
    };
    let Said::Readers(named) = ask(false) else { panic!() };
    assert!(named[0].starts_with("store at h:1 of cluster clone:1"), "{named:?}");
    ask(true);
    assert_eq!(known().unwrap().len(), 0);
    bench.keeper.release(&attempt());
    assert_eq!((bench.pins().len(), bench.rows()), (0, 0));
    // Of a set that others keep nobody is forgotten here, and a clone is one of those.
    let bytes = bench.reader().encode().unwrap();
    bench.runtime.block_on(bench.store.put_note(&bench.reader().name_in_store(), bytes)).unwrap();
    assert_eq!(ask(true), Said::Readers(Vec::new()));
    assert_eq!(bench.runtime.block_on(bench.store.notes(READERS)).unwrap().len(), 1);
}

#[test]
fn the_record_of_a_set_lies_beside_its_pins_and_goes_with_them_and_nobody_elses_does() {
    let bench = Bench::new(Retention::Seconds(60));
    let sealed = b"a record".to_vec();
    let records = || bench.runtime.block_on(bench.store.notes(SNAPSHOTS)).unwrap().len();
    bench.keeper.put_record(&attempt(), sealed.clone()).unwrap();
    assert_eq!(records(), 0, "this server keeps nothing of that set");
    bench.keep_a_set();
    for _ in 0..2 {
        bench.keeper.put_record(&attempt(), sealed.clone()).unwrap();
    }
    assert_eq!(records(), 1);
    bench.keeper.release(&Attempt { number: 18, ..attempt() });
    assert_eq!((records(), bench.pins().len(), bench.rows()), (1, 1, 1), "another try of it is over");
    bench.keeper.release(&attempt());
    assert_eq!(records(), 0);
}

#[test]
fn a_pin_that_nobody_could_let_go_goes_a_day_after_its_end_and_no_other() {
    let bench = Bench::new(Retention::Forever);
    let day = TIDY_AFTER_NS;
    let pin = |id: u128, owner: &str, incarnation, ends| {
        let mut pin = Pin::new(VOLUME, incarnation, Uuid::from_u128(id), Version(1), Version(2));
        (pin.owner, pin.ends) = (owner.to_owned(), ends);
        bench.runtime.block_on(bench.store.put_pin(&pin)).unwrap();
    };
    pin(1, OWNER, 0, Some(Version(NOW_NS - day)));
    pin(2, OWNER, 0, Some(Version(NOW_NS - day + 1)));
    pin(3, OWNER, 0, None);
    pin(4, OWNER, 1, Some(Version(1)));
    pin(5, "a backup", 0, Some(Version(1)));
    let found = bench.runtime.block_on(bench.store.pins()).unwrap();
    bench.runtime.block_on(bench.keeper.collector.tidy(&*bench.store, &[VOLUME], &found));
    let mut left: Vec<u128> = bench.pins().iter().map(|pin| pin.id.as_u128()).collect();
    left.sort_unstable();
    assert_eq!(left, [2, 3, 4, 5]);
}

/// A put that timed out goes on in the store, and arrives when the attempt is over here.
#[test]
fn a_pin_that_comes_after_the_end_of_its_attempt_is_said_to_be_kept_until_that_is_heeded() {
    let bench = Bench::new(Retention::Forever);
    let other = Attempt { number: 18, ..attempt() };
    bench.keep_a_set();
    let late = bench.pins().remove(0);
    let read = || {
        let store: Arc<dyn StorePort> = bench.store.clone();
        bench.runtime.block_on(bench.keeper.collector.read_pins(&store, &[VOLUME]));
        bench.keeper.attempts().unwrap()
    };
    assert_eq!(read(), [attempt()].into(), "it has its row");
    bench.keeper.release(&attempt());
    assert_eq!(read(), [].into());
    assert!(late.ends.is_none());
    bench.runtime.block_on(bench.store.put_pin(&late)).unwrap();
    // One of a clone, and one that no attempt of ours could have put.
    let mut foreign = late.clone();
    (foreign.incarnation, foreign.id) = (1, id_of(&other, Kind::Cut, 1));
    let mut odd = late.clone();
    (odd.id, odd.reason) = (Uuid::from_u128(3), format!("{} 18", other.uid));
    for pin in [&foreign, &odd] {
        bench.runtime.block_on(bench.store.put_pin(pin)).unwrap();
    }
    assert_eq!(read(), [attempt()].into(), "the coordinator is asked");
    bench.keeper.release(&other);
    assert_eq!(bench.keeper.attempts().unwrap(), [attempt()].into(), "that was another one");
    for pin in [&foreign, &odd] {
        bench.runtime.block_on(bench.store.remove_pin(VOLUME, pin.id)).unwrap();
    }
    assert_eq!(bench.pins(), [late]);
    // What it answers for an attempt that is over.
    bench.keeper.release(&attempt());
    assert_eq!((bench.pins().len(), bench.keeper.attempts().unwrap().len()), (0, 0));
    assert_eq!(read(), [].into());
}

#[test]
fn rows_that_cannot_be_read_are_not_taken_for_none() {
    let bench = Bench::new(Retention::Forever);
    bench.keep_a_set();
    assert_eq!(bench.keeper.attempts().unwrap(), [attempt()].into());
    let spoiled = bench.keeper.ask(|core, _| {
        let key = PIN.live_key(STORE_WIDE, &[0; 20]);
        let change = chronofs_engine::Change::Put(key, b"\xff".as_slice().into());
        let version = Version(core.engine.applied().0 + 1);
        let batch = chronofs_engine::Batch(vec![change]);
        let commit = chronofs_engine::Commit { version, tag: Vec::new().into(), batch };
        core.engine.apply(vec![commit]).unwrap();
    });
    spoiled.unwrap();
    let why = bench.keeper.attempts().unwrap_err();
    let row = PIN.live_key(STORE_WIDE, &[0; 20]).escape_ascii().to_string();
    assert!(why.contains(&row), "it names the row: {why}");
    bench.keeper.release(&attempt());
    assert!(bench.keeper.rests(&attempt()));
    assert_eq!(bench.pins().len(), 1);
}
