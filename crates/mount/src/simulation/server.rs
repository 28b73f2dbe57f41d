//! The metadata server of the simulation: the machine and the engine of production on a disk in memory, its collector and
//! its deleter over the bucket. It can be killed, and lose power, between any two steps.

use super::bucket::is_of_the_server;
use super::{Life, START_NS, Shared, World, count, lock, tell};
use chronofs_blocks::store::MARKER;
use chronofs_blocks::{StorePort, object_name};
use chronofs_core::slice::Place;
use chronofs_core::volume::{BLOCK_SIZE_MIN, VolumeSpec};
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::Engine;
use chronofs_engine::embedded::{Embedded, MemStore, Options};
use chronofs_engine::sim::SimDisk;
use chronofs_meta::collect::{Collector, Rhythm};
use chronofs_meta::core::Core;
use chronofs_meta::executor::{Input, ObjectHandler, run_read};
use chronofs_meta::machine::{Config, ConnId, Effect, Event, Found, Machine, Now, SharedView, Source};
use chronofs_meta::metrics::Metrics;
use chronofs_meta::server::objects::{Objects, Stores};
use chronofs_namespace::{HeldFrom, held_slices};
use chronofs_wire::admin::{AssignedStore, AssignedToken, AssignedVolume, Assignment, StoreKind};
use chronofs_wire::identity::Sha256;
use chronofs_wire::message::{HelloAnswer, ToClient};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use uuid::Uuid;

pub(super) const VOLUME: Uuid = Uuid::from_u128(0x11);
pub(super) const TOKEN: Uuid = Uuid::from_u128(0x01);
pub(super) const SECRET: &[u8] = b"secret of the token";
pub(super) const BLOCK_SIZE: u32 = BLOCK_SIZE_MIN;
pub(super) const INDEX: VolumeIndex = VolumeIndex(1);
const SLICE_LIFE_MS: u32 = 300;
const TICK: Duration = Duration::from_millis(100);

type SimEngine = Embedded<MemStore, SimDisk>;

/// A server while it runs.
pub(super) struct Server {
    boot: u64,
    life: Arc<Life>,
    core: Core,
    engine: Arc<SimEngine>,
    queue: mpsc::Sender<Input>,
    objects: Objects,
    pub(super) collector: Collector,
    syncing: bool,
}

/// What comes to a client over its connection.
pub(super) enum FromServer {
    Answer(HelloAnswer),
    Frame(ToClient),
}

impl World {
    /// Starts the server, if it is down.
    pub(super) fn start_server(self: &Shared) {
        if lock(&self.server).is_some() {
            return;
        }
        tell!(self, "the server starts");
        let (disk, boot) = (lock(&self.disk), self.boots.fetch_add(1, Ordering::Relaxed) + 1);
        let options = Options {
            segment_bytes: 128 << 10,
            flush_bytes: 64 << 10,
            flush_log_bytes: 128 << 10,
            row_cache_bytes: 64 << 10,
            ceiling_ahead: Duration::from_secs(2),
            keeper: false,
        };
        let engine = Embedded::new(disk.disk.clone(), MemStore::open(disk.medium.clone()), options);
        let engine = Arc::new(engine.expect("the engine opens"));
        let last_commit = engine.opening().last_commit;
        let config = Config {
            boot,
            ttl_ms: 500,
            life_ms: 3000,
            replay_window_ms: 4000,
            slice_life_ms: SLICE_LIFE_MS,
            pins_age_ms: 4000,
            horizon_step_ms: 100,
            mark_after_commits: 60,
            pack_after_ms: self.pack_after_ms,
            ..Config::default()
        };
        let found = Found { recovered: engine.recovered(), maybe_lost: disk.maybe_lost, last_commit };
        let reads = SharedView(engine.view());
        let machine = Machine::new(config, &reads, engine.applied(), found, self.now()).unwrap();
        drop(disk);
        let life = Life::new();
        let store: Arc<dyn StorePort> = Arc::new(self.bucket.store(&life, self.create_only));
        let stores = Stores::default();
        stores.set(HashMap::from([(VOLUME, store)]));
        let (queue, inputs) = mpsc::channel(64);
        let collector = Collector::new(queue.clone(), stores.clone(), Rhythm::default());
        let metrics = Arc::new(Metrics::new().0);
        let objects = Objects { stores, runtime: tokio::runtime::Handle::current(), metrics };
        let core = Core { machine, engine: engine.clone() };
        let server = Server {
            boot,
            life: life.clone(),
            core,
            engine,
            queue,
            objects,
            collector: collector.clone(),
            syncing: false,
        };
        *lock(&self.server) = Some(server);
        self.events(vec![Event::Assignment(Box::new(self.assignment())), Event::Tick]);
        tokio::spawn(collector.run());
        self.spawn(take_inputs(self.clone(), inputs, life.clone()));
        self.spawn(tick(self.clone(), life));
    }

    /// Versions are ahead of the clock for a while after a restart, which begins above what it had reserved.
    pub(super) fn ahead_ns_max(&self) -> u64 {
        self.boots.load(Ordering::Relaxed) * 2_100_000_000
    }

    fn assignment(&self) -> Assignment {
        let spec = VolumeSpec {
            id: VOLUME,
            name: "docs".to_owned(),
            block_size: BLOCK_SIZE,
            compression: self.compression,
            retention: self.retention,
            max_bytes: None,
            max_inodes: None,
            hash_key: [7; 16],
        };
        let kind = StoreKind::Local { path: "/nowhere".to_owned() };
        let store = AssignedStore {
            id: Uuid::from_u128(0x22),
            kind,
            credentials: Default::default(),
            create_only: false,
        };
        let token = AssignedToken {
            id: TOKEN,
            secret_sha256: Sha256::of(SECRET).to_string(),
            volume: VOLUME,
            path: None,
            read_only: false,
            past: true,
            ends_ns: None,
        };
        let volumes = vec![AssignedVolume {
            spec,
            deleted: false,
            born_ns: 0,
            give_up_after_s: None,
            store,
            keys: None,
        }];
        Assignment {
            revision: 1,
            volumes,
            tokens: vec![token],
            probes: Vec::new(),
            log: Default::default(),
            log_servers: Vec::new(),
            accepted_restore: None,
            copy_restored: false,
            reader_stores: Vec::new(),
            admin_epoch: 0,
        }
    }

    pub(super) fn now(&self) -> Now {
        Now::from(START_NS + self.begun.elapsed().as_nanos() as u64)
    }

    /// The server's process is gone, at once or with the machine that it ran on.
    pub(super) fn stop_server(&self, power_cut: bool) {
        let Some(server) = lock(&self.server).take() else { return };
        tell!(self, "the server stops, power cut: {power_cut}");
        server.life.end();
        let mut disk = lock(&self.disk);
        // Nothing of its end has an effect.
        disk.disk.power_off();
        drop(server);
        disk.medium.crash();
        if power_cut {
            disk.disk.power_on();
            disk.maybe_lost = true;
            self.cuts.fetch_add(1, Ordering::Relaxed);
        } else {
            disk.disk.thaw();
        }
        drop(disk);
        // Connections end; what was sent before may be read.
        lock(&self.conns).clear();
    }

    /// Hands events to the server, and carries out what they come to.
    pub(super) fn events(self: &Shared, events: Vec<Event>) {
        let mut decided = Vec::new();
        {
            let mut server = lock(&self.server);
            let Some(server) = server.as_mut() else { return };
            let done = server.core.run(self.now(), events, &mut |group| decided.push(group));
            done.expect("no fault of the disk is simulated here");
            let commits: usize = decided.iter().map(|group| group.commits).sum();
            if commits > 0 && !std::mem::replace(&mut server.syncing, true) {
                self.spawn(sync(self.clone(), server.life.clone()));
            }
        }
        for effect in decided.into_iter().flat_map(|group| group.effects) {
            self.carry_out(effect);
        }
    }

    fn send(&self, conn: ConnId, what: FromServer) {
        if let Some(sender) = lock(&self.conns).get(&conn) {
            drop(sender.send(what));
        }
    }

    fn carry_out(self: &Shared, effect: Effect) {
        match effect {
            Effect::Send(conn, frame) => self.send(conn, FromServer::Frame(frame)),
            Effect::Answer(conn, answer) => self.send(conn, FromServer::Answer(answer)),
            Effect::Close(conn) => drop(lock(&self.conns).remove(&conn)),
            Effect::Read(job) => {
                let Some(view) = self.view() else { return };
                let (version, result) = (view.0.version(), run_read(&job, view.0));
                let frame = ToClient::Return { id: job.id, version, durable: Version::ZERO, result };
                self.send(job.conn, FromServer::Frame(frame));
            }
            Effect::Mark(version) => {
                let server = lock(&self.server);
                let Some(server) = server.as_ref() else { return };
                server.engine.sync().unwrap();
                server.engine.mark(version).unwrap();
            }
            Effect::Delete(job) => {
                let server = lock(&self.server);
                let Some(server) = server.as_ref() else { return };
                server.objects.delete(job, server.queue.downgrade());
            }
            Effect::Pack(job) => {
                let server = lock(&self.server);
                let Some(server) = server.as_ref() else { return };
                server.objects.pack(*job, server.core.engine.view(), server.queue.downgrade());
            }
            Effect::Object(_) | Effect::SendSigned(..) => unreachable!("clients reach the bucket themselves"),
            Effect::Keyed(..) => unreachable!("no operator is there"),
            Effect::AskAdmin(_) | Effect::Hurry | Effect::Warn(_) => {}
        }
    }

    pub(super) fn view(&self) -> Option<SharedView> {
        lock(&self.server).as_ref().map(|server| SharedView(server.core.engine.view()))
    }

    /// The engine writes its store, and lets go of its log.
    pub(super) fn maintain(&self) {
        let server = lock(&self.server);
        if let Some(server) = server.as_ref() {
            server.engine.maintain().unwrap();
            lock(&self.disk).medium.complete_one();
        }
    }

    pub(super) fn collector(&self) -> Option<Collector> {
        lock(&self.server).as_ref().map(|server| server.collector.clone())
    }

    /// The collector looks through the bucket.
    pub(super) fn look_soon(&self) {
        if let Some(server) = lock(&self.server).as_ref() {
            server.collector.look_soon();
        }
    }

    /// Names of the objects that rows name, now and in the past.
    pub(super) fn named(&self) -> BTreeSet<String> {
        let Some(reads) = self.view() else { return BTreeSet::new() };
        let (mut named, mut from) = (BTreeSet::new(), Some(HeldFrom::default()));
        while let Some(start) = from {
            let (page, next) = held_slices(&reads, INDEX, &start, 256).unwrap();
            for held in page {
                match &held.slice.place {
                    Place::Object(seal, _) => drop(named.insert(object_name(VOLUME, seal.id.object))),
                    Place::Moved(_, object, _) => drop(named.insert(object_name(VOLUME, *object))),
                    Place::Staged(_) => assert!(held.staged.is_some(), "staged bytes are gone: {held:?}"),
                    Place::Hole | Place::Inline(..) => {}
                }
            }
            from = next;
        }
        named
    }

    /// Whatever rows name lies in the bucket.
    pub(super) fn check_reachable(&self) {
        let lost: Vec<String> = self.named().into_iter().filter(|name| !self.bucket.has(name)).collect();
        assert!(lost.is_empty(), "rows name {lost:?}, which are not in the store");
    }

    /// What rows name now stays for the life of a slice, whatever becomes of the rows: readers know where it lies.
    pub(super) fn check_stays(self: &Shared) {
        let (world, names) = (self.clone(), self.named());
        self.spawn(async move {
            tokio::time::sleep(Duration::from_millis(u64::from(SLICE_LIFE_MS) - 10)).await;
            let lost: Vec<String> = names.into_iter().filter(|name| !world.bucket.has(name)).collect();
            assert!(lost.is_empty(), "{lost:?} was just named, and is not in the store");
        });
    }

    /// Whether an instant is in the window, as far as the server knows.
    pub(super) fn is_in_window(&self, at: Version) -> bool {
        let server = lock(&self.server);
        let row = server.as_ref().and_then(|server| Some(server.core.machine.volume(INDEX)?.row.clone()));
        row.is_some_and(|row| row.horizon <= at)
    }

    /// Counts what the packer has stored.
    fn note(&self, event: &Event) {
        if let Event::Packed(job, Ok(packed)) = event
            && packed.slices > 0
        {
            tell!(self, "{} slices were stored in {:?}", packed.slices, job.object);
            count(match job.source {
                Source::Staged(_) => &self.told.packed,
                Source::Objects(_) => &self.told.repacked,
            });
        }
    }

    /// Counts the objects of the server in which slices lie.
    pub(super) fn count_packed(&self) {
        let packed = self.named().iter().filter(|name| is_of_the_server(name)).count();
        self.told.lie_packed.fetch_add(packed as u64, Ordering::Relaxed);
    }

    /// Whether the store holds just what rows name.
    pub(super) fn is_collected(&self) -> bool {
        let mut kept = self.bucket.names();
        kept.remove(MARKER);
        // Pins too: all are released by then.
        kept == self.named() && self.left_to_collect() == (0, 0)
    }

    /// Why it does not.
    pub(super) fn uncollected(&self) -> String {
        let (kept, named) = (self.bucket.names(), self.named());
        format!("{:?} in the rows, {kept:?} in the store, of them named {named:?}", self.left_to_collect())
    }

    fn left_to_collect(&self) -> (u64, u64) {
        let reads = self.view().expect("the server runs");
        let tally = chronofs_namespace::tally(&reads, INDEX).unwrap();
        (tally.retired.count, tally.condemned.count)
    }

    pub(super) fn verify(&self) {
        let reads = self.view().expect("the server runs");
        let faults = chronofs_namespace::verify(&reads).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
    }

    /// A number that two runs of one seed share, if they are the same.
    pub(super) fn digest(&self) -> (Version, Vec<(String, usize)>) {
        let applied = lock(&self.server).as_ref().map_or(Version::ZERO, |server| server.engine.applied());
        let seen = self.bucket.seen();
        (applied, seen.into_iter().map(|(key, count)| (format!("{key:?}"), count as usize)).collect())
    }

    fn boot_of(&self) -> Option<u64> {
        lock(&self.server).as_ref().map(|server| server.boot)
    }
}

/// What the executor's thread does with what comes from the collector and the deleter.
async fn take_inputs(world: Shared, mut inputs: mpsc::Receiver<Input>, life: Arc<Life>) {
    while let Some(input) = inputs.recv().await {
        if life.is_over() {
            return;
        }
        match input {
            Input::Events(events) => {
                events.iter().for_each(|event| world.note(event));
                world.events(events);
            }
            Input::Ask(ask) => {
                let now = world.now();
                if let Some(server) = lock(&world.server).as_mut() {
                    ask(&mut server.core, now);
                }
            }
            Input::Open(..) | Input::Received(..) | Input::Keys(..) | Input::Stop(_) => {
                unreachable!("nobody sends these")
            }
        }
    }
}

async fn tick(world: Shared, life: Arc<Life>) {
    let boot = world.boot_of();
    while !life.is_over() {
        assert_eq!(world.boot_of(), boot, "two servers at once");
        world.events(vec![Event::Tick]);
        tokio::time::sleep(TICK).await;
    }
}

async fn sync(world: Shared, life: Arc<Life>) {
    let wait_ms = 1 + lock(&world.random).below(world.sync_ms_max);
    tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    if life.is_over() {
        return;
    }
    let version = {
        let mut server = lock(&world.server);
        let Some(server) = server.as_mut() else { return };
        server.syncing = false;
        let recovering = server.core.machine.figures().recovering;
        let version = server.engine.sync().unwrap();
        let mut disk = lock(&world.disk);
        // What was lost is applied again, and durable: only now the next start may think nothing is.
        disk.maybe_lost &= recovering;
        version
    };
    world.events(vec![Event::Durable(version)]);
}
