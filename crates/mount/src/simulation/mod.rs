//! Files over a store that lies and fails, with clients and servers that die between any two steps.
//!
//! All of production that decides runs here, in one thread and by one seed: the data path of mounts (sealing, puts,
//! publishes, merges, reads and their checks), the state of their connections, [`RemoteStore`] over a bucket that lies
//! (`bucket.rs`), and the metadata server with its engine, collector, deleter and packer (`server.rs`). Only what carries frames
//! and requests is made of other stuff: signed requests, which are nothing without HTTP, are not in here, and `tests/lying_store.rs`
//! of `e2e` has them. In most stories small slices are packed soon, so that objects of them are made, become poor, are repacked and
//! deleted while all else goes on; in the others they stay with the metadata. Beside it stands a model of every file's bytes at every instant that was
//! acknowledged (`model.rs`). What must hold:
//!
//! * no byte is read that the file did not have: as of an instant exactly, live since the last acknowledged close;
//! * what rows name, live or of a protected instant, lies in the store at every moment;
//! * what rows name stays for the life of a slice after they do not any more, for those who know where it lies;
//! * what somebody has pinned is there until it is released, wherever the window is;
//! * what was acknowledged as durable is there whatever died, and readable once the store is honest;
//! * in the end, without clients, the store holds just what rows name.
//!
//! `CHRONOFS_SEEDS` sets the number of seeds (2,000), `CHRONOFS_FROM` the first, `CHRONOFS_SEED` runs one; with `CHRONOFS_TELL=1`
//! it tells what happens.
//!
//! Faults were put into the code by hand to see whether it finds them. Found, with the first seed that did on earlier forms
//! of the stories: condemning at once instead of after a while (12), pins that cannot be read taken for none (6), deleting
//! before they were read (293), objects handed out before the commit that condemns them is durable, with syncs of up to
//! 1.5 s (49), a checksum that is not looked at (2), a put that is acknowledged although the store answered an error (0), a
//! put whose name is taken by other bytes and that is acknowledged all the same (7). A pin that was committed while the
//! server still collected what a power cut took was a fault of the code: the next start told clients that all below it had
//! survived.
//! Not found: taking a listing of objects that failed for an empty one, since nothing in here is unexplained.
//!
//! [`RemoteStore`]: chronofs_blocks::RemoteStore

mod bucket;
mod client;
mod model;
mod pinned;
mod server;
mod story;

use bucket::Bucket;
use chronofs_core::Retention;
use chronofs_core::volume::Compression;
use chronofs_engine::embedded::MemMedium;
use chronofs_engine::sim::{Random, SimDisk};
use chronofs_meta::machine::ConnId;
use client::Client;
use futures::FutureExt;
use model::File;
use pinned::Pinned;
use server::{FromServer, Server};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::data::lock;

const START_NS: u64 = 1_800_000_000_000_000_000;

type Shared = Arc<World>;

/// Whether a process lives. What a dead one has begun never goes on; what it has sent arrives.
#[derive(Debug)]
struct Life(watch::Sender<bool>);

impl Life {
    fn new() -> Arc<Self> {
        Arc::new(Life(watch::channel(true).0))
    }

    fn end(&self) {
        self.0.send_replace(false);
    }

    fn is_over(&self) -> bool {
        !*self.0.borrow()
    }

    /// Goes on for the living, and for the dead never.
    async fn lives(&self) {
        if self.is_over() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the end.
    async fn ended(&self) {
        let _ = self.0.subscribe().wait_for(|lives| !*lives).await;
    }
}

struct Disk {
    disk: SimDisk,
    medium: MemMedium,
    maybe_lost: bool,
}

/// What all share.
struct World {
    begun: Instant,
    /// `CHRONOFS_TELL` is set.
    tells: bool,
    random: Mutex<Random>,
    bucket: Arc<Bucket>,
    create_only: bool,
    /// How long a commit may wait for the sync that it shares with others.
    sync_ms_max: u64,
    compression: Compression,
    retention: Retention,
    /// When what is staged is packed into an object.
    pack_after_ms: u32,
    disk: Mutex<Disk>,
    server: Mutex<Option<Server>>,
    boots: AtomicU64,
    /// How often the server lost power.
    cuts: AtomicU64,
    conns: Mutex<BTreeMap<ConnId, mpsc::UnboundedSender<FromServer>>>,
    numbers: AtomicU64,
    files: Mutex<Vec<File>>,
    /// All clients that ever were.
    lives: Mutex<Vec<Arc<Life>>>,
    clients: Mutex<Vec<Weak<Client>>>,
    pinned: Mutex<Vec<Pinned>>,
    /// What was pinned and is released.
    unpinned: Mutex<Vec<uuid::Uuid>>,
    /// What a task of its own has found wrong.
    panicked: Mutex<Option<String>>,
    told: Told,
}

/// What happened how often: a simulation in which nothing happens shows nothing.
#[derive(Debug, Default)]
struct Told {
    crashes: AtomicU64,
    synced: AtomicU64,
    read_live: AtomicU64,
    read_past: AtomicU64,
    pinned: AtomicU64,
    pinned_beside: AtomicU64,
    held: AtomicU64,
    refused: AtomicU64,
    packed: AtomicU64,
    repacked: AtomicU64,
    lie_packed: AtomicU64,
}

impl Told {
    fn figures(&self) -> [(&'static str, u64); 11] {
        [
            ("clients died", &self.crashes),
            ("instants were acknowledged", &self.synced),
            ("files were read live", &self.read_live),
            ("files were read as of an instant", &self.read_past),
            ("instants were pinned", &self.pinned),
            ("instants were pinned in the store alone", &self.pinned_beside),
            ("what a hold keeps was read", &self.held),
            ("reads failed", &self.refused),
            ("objects of small slices were stored", &self.packed),
            ("objects of what is left of others were stored", &self.repacked),
            ("objects of the server are named in the end", &self.lie_packed),
        ]
        .map(|(what, count)| (what, count.load(Ordering::Relaxed)))
    }
}

/// Tells what happens, with the milliseconds since the begin, where somebody wants to know.
macro_rules! tell {
    ($world:expr, $($what:tt)*) => {
        if $world.tells {
            eprintln!("{:>8} {}", $world.begun.elapsed().as_millis(), format_args!($($what)*));
        }
    };
}
use tell;

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl World {
    fn new(seed: u64) -> Shared {
        let mut random = Random::new(seed ^ 0x11e5);
        let retention = match random.below(5) {
            0 | 1 => Retention::None,
            2 => Retention::Seconds(1),
            3 => Retention::Seconds(3),
            _ => Retention::Seconds(3600),
        };
        let pack_after_ms = if random.one_in(4) { 60_000 } else { 300 };
        Arc::new(World {
            begun: Instant::now(),
            tells: std::env::var_os("CHRONOFS_TELL").is_some(),
            bucket: Bucket::new(Random::new(random.number())),
            create_only: random.one_in(2),
            sync_ms_max: if random.one_in(3) { 1500 } else { 12 },
            compression: if random.one_in(8) { Compression::Lz4 } else { Compression::None },
            retention,
            pack_after_ms,
            disk: Mutex::new(Disk {
                disk: SimDisk::new(random.number()),
                medium: MemMedium::default(),
                maybe_lost: false,
            }),
            random: Mutex::new(random),
            server: Mutex::default(),
            boots: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            conns: Mutex::default(),
            numbers: AtomicU64::new(1),
            files: Mutex::default(),
            lives: Mutex::default(),
            clients: Mutex::default(),
            pinned: Mutex::default(),
            unpinned: Mutex::default(),
            panicked: Mutex::default(),
            told: Told::default(),
        })
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A source of random numbers for somebody of his own.
    fn split(&self) -> Random {
        Random::new(lock(&self.random).number())
    }

    fn spawn(self: &Shared, task: impl Future<Output = ()> + Send + 'static) {
        let world = self.clone();
        tokio::spawn(async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                let said = panic.downcast_ref::<String>().cloned();
                let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                lock(&world.panicked).get_or_insert(said.unwrap_or_default());
            }
        });
    }

    fn check_tasks(&self) {
        if let Some(said) = &*lock(&self.panicked) {
            panic!("a task found: {said}");
        }
    }
}

fn run(seed: u64) -> Shared {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let world = runtime.block_on(story::play(seed));
    drop(runtime);
    // A client and its data path hold each other, and the world with them.
    for client in lock(&world.clients).drain(..).filter_map(|client| client.upgrade()) {
        drop(lock(&client.data).take());
    }
    // Thousands of worlds do not fit into memory.
    assert_eq!(Arc::strong_count(&world), 1, "something of the story is held by itself, and stays");
    world
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn no_wrong_byte_nothing_reachable_deleted_nothing_durable_lost_over_a_store_that_lies() {
    let seeds = match number("CHRONOFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = number("CHRONOFS_FROM").unwrap_or(0);
            from..from + number("CHRONOFS_SEEDS").unwrap_or(2_000)
        }
    };
    let many = seeds.end - seeds.start >= 2_000;
    let (mut told, mut lies) = (BTreeMap::new(), BTreeMap::new());
    let (mut deleted, mut packs_deleted) = (0, 0);
    for seed in seeds {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(world) => {
                world.told.figures().into_iter().for_each(|(what, n)| *told.entry(what).or_insert(0) += n);
                world.bucket.seen().into_iter().for_each(|(what, n)| *lies.entry(what).or_insert(0) += n);
                deleted += world.bucket.deleted();
                packs_deleted += world.bucket.packs_deleted();
            }
            Err(panic) => {
                eprintln!("seed {seed} failed; run it again with CHRONOFS_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!(
        "{told:?}; {deleted} objects were deleted, of them {packs_deleted} of the server; the store: {lies:?}"
    );
    let happened = told.values().chain(lies.values()).chain([&deleted, &packs_deleted]).all(|&n| n > 0);
    let seen = happened && lies.len() >= 26;
    assert!(seen || !many, "something that is to be tried never happened");
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    for seed in 0..6 {
        let [one, other] = [(); 2].map(|()| run(seed).digest());
        assert_eq!(one, other, "seed {seed}");
    }
}
