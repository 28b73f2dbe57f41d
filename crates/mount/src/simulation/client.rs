//! A mount of the simulation: the data path and the state of the connection of production. The task that carries
//! frames does what `connection/driver.rs` does over a network.

use super::server::{FromServer, SECRET, TOKEN, VOLUME};
use super::{Life, Random, Shared, lock, tell};
use crate::connection::state::{Answer, State};
use crate::data::{Config, Data, FileData, Meta, Publish, PublishError, SliceList, Tuning};
use bytes::Bytes;
use chronofs_core::ops::{NewNode, Reply, Request};
use chronofs_core::{Attr, Caller, Errno, Ino, Name, SessionId, SliceId, Version};
use chronofs_meta::machine::{Call, ConnId, Event};
use chronofs_wire::frame::FrameReader;
use chronofs_wire::message::{
    Hello, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, RefusalReason, ToClient, ToServer, Welcome,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// The longest that a frame is on its way.
pub(super) const LATENCY_MS: u64 = 20;

/// A mount.
pub(super) struct Client {
    world: Shared,
    pub(super) life: Arc<Life>,
    at: Option<Version>,
    state: Mutex<State>,
    wake: Notify,
    random: Mutex<Random>,
    lease: Mutex<Lease>,
    boot: AtomicU64,
    /// How often the server had lost power when it last welcomed this client.
    cuts: AtomicU64,
    /// The same when it last answered a change of a file.
    changed: Mutex<BTreeMap<Ino, u64>>,
    pub(super) data: Mutex<Option<Arc<Data<Link>>>>,
}

struct Lease {
    shared: bool,
    until: Instant,
    asked: Option<Instant>,
}

/// The client as its data path sees it.
pub(super) struct Link(pub(super) Arc<Client>);

pub(super) type Opened = Arc<FileData<Link>>;

/// One connection.
struct Wire {
    conn: ConnId,
    frames: mpsc::UnboundedReceiver<FromServer>,
    welcome: Box<Welcome>,
    asked: Instant,
}

fn hello(client: u128, resume: Option<SessionId>, at: Option<Version>, seen: Version) -> Hello {
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        token_id: TOKEN,
        token_secret: Bytes::from_static(SECRET),
        volume: VOLUME,
        client,
        client_name: format!("simulated {client}"),
        resume,
        at,
        read_only: at.is_some(),
        seen,
        direct: false,
    }
}

/// Says hello; `None`: nobody is there, or the connection is lost.
async fn connect(world: &Shared, hello: Hello) -> Result<Wire, Option<Refusal>> {
    let asked = Instant::now();
    let conn = ConnId(world.number());
    let (sender, mut frames) = mpsc::unbounded_channel();
    if lock(&world.server).is_none() {
        return Err(None);
    }
    lock(&world.conns).insert(conn, sender);
    world.events(vec![Event::Hello(conn, Box::new(hello))]);
    match tokio::time::timeout(Duration::from_secs(60), frames.recv()).await {
        Ok(Some(FromServer::Answer(Ok(welcome)))) => Ok(Wire { conn, frames, welcome, asked }),
        Ok(Some(FromServer::Answer(Err(refusal)))) => Err(Some(refusal)),
        _ => {
            lock(&world.conns).remove(&conn);
            world.events(vec![Event::Gone(conn)]);
            Err(None)
        }
    }
}

fn retry_after(refusal: Option<&Refusal>) -> Option<Duration> {
    match refusal.map(|refusal| &refusal.reason) {
        None => Some(Duration::from_millis(100)),
        Some(RefusalReason::NotNow { retry_ms }) => {
            Some(Duration::from_millis(u64::from((*retry_ms).clamp(10, 5000))))
        }
        Some(_) => None,
    }
}

impl Client {
    /// Mounts the volume, live or as of an instant.
    pub(super) async fn mount(world: &Shared, at: Option<Version>) -> Result<Arc<Client>, Refusal> {
        let number = u128::from(world.number());
        let wire = loop {
            match connect(world, hello(number, None, at, Version::ZERO)).await {
                Ok(wire) => break wire,
                Err(refusal) => match retry_after(refusal.as_ref()) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(refusal.expect("without one it is tried again")),
                },
            }
        };
        let (life, mut random) = (Life::new(), world.split());
        lock(&world.lives).push(life.clone());
        let tuning = Tuning {
            dirty_age_max: Duration::from_millis(300 + random.below(1500)),
            cache_bytes_max: if random.one_in(2) { 1 } else { 64 << 20 },
            slices_per_block_max: 5,
            random_share: || 0.5,
            ..Tuning::default()
        };
        let welcome = &wire.welcome;
        let config = Config {
            volume: VOLUME,
            incarnation: welcome.incarnation,
            session: welcome.session,
            grant: welcome.grant,
            block_size: welcome.volume.block_size,
            compression: welcome.volume.compression,
            read_only: welcome.read_only,
            keys: None,
            disk: None,
            tuning,
        };
        let port = Arc::new(world.bucket.store(&life, world.create_only));
        let client = Arc::new(Client {
            world: world.clone(),
            life,
            at,
            state: Mutex::new(State::new(welcome)),
            wake: Notify::new(),
            random: Mutex::new(random),
            lease: Mutex::new(Lease { shared: true, until: wire.asked, asked: None }),
            boot: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            changed: Mutex::default(),
            data: Mutex::default(),
        });
        client.welcomed(&wire);
        lock(&world.clients).push(Arc::downgrade(&client));
        *lock(&client.data) = Some(Data::start(config, Arc::new(Link(client.clone())), port));
        world.spawn(client.clone().run(wire, number));
        Ok(client)
    }

    /// The process is gone. Its connection is noticed later.
    pub(super) fn die(&self) {
        tell!(self.world, "{:?} dies", lock(&self.state).session());
        self.life.end();
    }

    /// Everything was stored: an orderly end.
    pub(super) async fn unmount(&self) {
        lock(&self.state).send_if_up(ToServer::Goodbye);
        self.wake.notify_one();
        tokio::time::sleep(Duration::from_millis(3 * LATENCY_MS)).await;
        self.die();
    }

    /// The server has answered a change of this file.
    pub(super) fn note_changed(&self, ino: Ino) {
        lock(&self.changed).insert(ino, self.cuts.load(Ordering::Relaxed));
    }

    /// How often it had lost power when it last did.
    pub(super) fn changed(&self, ino: Ino) -> u64 {
        lock(&self.changed).get(&ino).copied().unwrap_or_default()
    }

    fn welcomed(&self, wire: &Wire) {
        self.cuts.store(self.world.cuts.load(Ordering::Relaxed), Ordering::Relaxed);
        let ttl = Duration::from_millis(u64::from(wire.welcome.ttl_ms));
        if self.at.is_none() {
            self.boot.store(wire.welcome.boot, Ordering::Relaxed);
        }
        *lock(&self.lease) = Lease { shared: wire.welcome.shared, until: wire.asked + ttl, asked: None };
    }

    async fn run(self: Arc<Self>, first: Wire, mut number: u128) {
        let mut wire = first;
        loop {
            let conn = wire.conn;
            self.serve(wire).await;
            lock(&self.world.conns).remove(&conn);
            if !self.life.is_over() {
                lock(&self.state).down();
            }
            let unnoticed_ms = lock(&self.random).below(200);
            tokio::time::sleep(Duration::from_millis(unnoticed_ms)).await;
            self.world.events(vec![Event::Gone(conn)]);
            if self.life.is_over() {
                return;
            }
            match self.reconnect(&mut number).await {
                Some(next) => wire = next,
                None => return,
            }
        }
    }

    async fn reconnect(&self, number: &mut u128) -> Option<Wire> {
        let mut resume = Some(lock(&self.state).session());
        loop {
            self.life.lives().await;
            let seen = lock(&self.state).seen();
            match connect(&self.world, hello(*number, resume, self.at, seen)).await {
                Ok(wire) => {
                    self.welcomed(&wire);
                    let mut state = lock(&self.state);
                    if resume.is_some() {
                        state.resumed(&wire.welcome);
                        return Some(wire);
                    }
                    let (_, lost) = state.replaced(&wire.welcome);
                    drop(state);
                    if lost > 0 {
                        // It says so in the log: whoever needs more than that mounts anew.
                        self.die();
                    }
                    let welcome = &wire.welcome;
                    if let Some(data) = &*lock(&self.data) {
                        data.set_grant(welcome.incarnation, welcome.session, welcome.grant);
                    }
                    return Some(wire);
                }
                Err(Some(Refusal { reason: RefusalReason::SessionOver, .. })) if resume.is_some() => {
                    resume = None;
                    *number = u128::from(self.world.number());
                }
                Err(refusal) => match retry_after(refusal.as_ref()) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    // A past that is out of the window by now, after its session was over.
                    None => {
                        lock(&self.state).refused(Errno::EIO);
                        return None;
                    }
                },
            }
        }
    }

    /// Carries frames until the connection or the client is gone.
    async fn serve(&self, mut wire: Wire) {
        let pause = Duration::from_millis(u64::from(wire.welcome.ttl_ms) / 4);
        let ttl = pause * 4;
        let mut renew = Instant::now() + pause;
        loop {
            tokio::select! {
                biased;
                () = self.life.ended() => return,
                frame = wire.frames.recv() => match frame {
                    Some(FromServer::Frame(frame)) => {
                        if !self.received(frame, ttl) {
                            return;
                        }
                    }
                    _ => return,
                },
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(renew) => {
                    renew += pause;
                    lock(&self.lease).asked.get_or_insert(Instant::now());
                    lock(&self.state).renew();
                }
            }
            if !self.send(wire.conn).await {
                return;
            }
        }
    }

    /// Sends what is to be sent. What a client has sent that dies meanwhile may arrive, or not.
    async fn send(&self, conn: ConnId) -> bool {
        loop {
            let out = lock(&self.state).take_out();
            if out.is_empty() {
                return true;
            }
            let mut frames = FrameReader::new(&out[..]);
            let mut events = Vec::new();
            while let Some(frame) = frames.next::<ToServer>().await.unwrap() {
                events.push(match frame {
                    ToServer::Call { id, acked, caller, request } => {
                        Event::Call(conn, Call { id, acked, caller, request })
                    }
                    frame => Event::Frame(conn, frame),
                });
            }
            let (way_ms, arrives) = {
                let mut random = lock(&self.random);
                (if random.one_in(3) { random.below(LATENCY_MS) } else { 0 }, random.one_in(2))
            };
            tokio::time::sleep(Duration::from_millis(way_ms)).await;
            let there = lock(&self.world.conns).contains_key(&conn);
            if there && (arrives || !self.life.is_over()) {
                self.world.events(events);
            }
            if self.life.is_over() || !there {
                return false;
            }
        }
    }

    fn received(&self, frame: ToClient, ttl: Duration) -> bool {
        let mut state = lock(&self.state);
        match frame {
            ToClient::Return { id, version, durable, result } => state.returned(id, version, durable, result),
            ToClient::Durable { version } => state.durable(version),
            ToClient::Renewed { .. } => {
                let mut lease = lock(&self.lease);
                if let Some(asked) = lease.asked.take() {
                    lease.until = asked + ttl;
                }
            }
            ToClient::Shared { shared } => {
                lock(&self.lease).shared = shared;
                if shared {
                    state.send_if_up(ToServer::SharedAck);
                }
            }
            ToClient::Parked { calls } => {
                // What a program was answered is lost, and it is told so in the log.
                state
                    .send_if_up(ToServer::ParkedAck { calls: calls.into_iter().map(|(id, _)| id).collect() });
                drop(state);
                self.die();
            }
            ToClient::Window { .. } => {}
            ToClient::Closing | ToClient::Refused { .. } => return false,
            other => unreachable!("{other:?}"),
        }
        true
    }

    async fn ask(&self, request: Request) -> Result<Answer, Errno> {
        self.life.lives().await;
        let short = |what: &dyn std::fmt::Debug| format!("{what:?}").chars().take(160).collect::<String>();
        tell!(self.world, "  {:?} calls {}", lock(&self.state).session(), short(&request));
        let answer = lock(&self.state).call(Caller::ROOT, request);
        self.wake.notify_one();
        let answer = answer.await.unwrap_or(Err(Errno::EIO));
        tell!(self.world, "  {:?} hears {}", lock(&self.state).session(), short(&answer));
        self.life.lives().await;
        answer
    }

    pub(super) async fn call(&self, request: Request) -> Result<(Version, Reply), Errno> {
        let answer = self.ask(request).await?;
        answer.result.map(|reply| (answer.version, reply))
    }

    pub(super) async fn create(&self, name: &str) -> Result<Ino, Errno> {
        let name = Name::new(name.as_bytes().to_vec()).unwrap();
        let (parent, node, exclusive) = (Ino::ROOT, NewNode::File, true);
        let create = Request::Create { parent, name, node, mode: 0o644, umask: 0, open: false, exclusive };
        self.call(create).await.map(|(_, reply)| attr(reply).ino)
    }

    pub(super) async fn open(&self, ino: Ino, write: bool) -> Result<Opened, Errno> {
        let (_, reply) = self.call(Request::Open { ino, read: true, write }).await?;
        let Reply::Opened { attr, slices } = reply else { panic!("{reply:?}") };
        let data = lock(&self.data).clone().expect("it is mounted");
        let file = data.file(&attr);
        file.opened(&attr, slices);
        Ok(file)
    }

    pub(super) async fn close(&self, ino: Ino) {
        drop(self.call(Request::Close { ino, count: 1 }).await);
    }

    /// Everything up to the instant survives a power cut.
    pub(super) async fn sync(&self) -> Result<Version, Errno> {
        match self.call(Request::Sync).await?.1 {
            Reply::Instant(version) => Ok(version),
            other => panic!("{other:?}"),
        }
    }
}

fn attr(reply: Reply) -> Attr {
    match reply {
        Reply::Attr(attr) | Reply::Opened { attr, .. } => attr,
        other => panic!("no attributes: {other:?}"),
    }
}

impl Meta for Link {
    async fn attributes(&self, ino: Ino) -> Result<Attr, Errno> {
        self.0.call(Request::GetAttr { ino }).await.map(|(_, reply)| attr(reply))
    }

    fn boot(&self) -> u64 {
        self.0.boot.load(Ordering::Relaxed)
    }

    fn lost(&self, ino: Ino) -> u64 {
        lock(&self.0.state).lost(ino)
    }

    async fn slices(&self, ino: Ino, first: u32, count: u32) -> Result<SliceList, Errno> {
        match self.0.call(Request::Slices { ino, first, count, staged: true }).await? {
            (version, Reply::Slices(slices)) => Ok(SliceList { version, slices }),
            (_, other) => panic!("{other:?}"),
        }
    }

    async fn staged(&self, ino: Ino, ids: Vec<SliceId>) -> Result<Vec<Bytes>, Errno> {
        match self.0.call(Request::Staged { ino, ids }).await? {
            (_, Reply::Staged(bytes)) => Ok(bytes),
            (_, other) => panic!("{other:?}"),
        }
    }

    async fn publish(&self, publish: Publish) -> Result<Attr, PublishError> {
        let Publish { ino, slices, size_min, mtime_ns, kill_priv, merge } = publish;
        let session = || lock(&self.0.state).session();
        let before = session();
        let mut sessions = slices.iter().filter_map(|new| Some(new.slice.place.seal()?.id.object.session));
        let named = sessions.next().unwrap_or(before);
        let request = Request::Publish { ino, slices, size_min, mtime_ns, kill_priv, merge };
        let asked = self.0.ask(request).await;
        let now = session();
        let failed = |error| if (before, named) == (now, now) { error } else { PublishError::SessionOver };
        let answer = asked.map_err(|errno| failed(PublishError::NoAnswer(errno)))?;
        let published = answer.result.map(attr).map_err(|errno| failed(PublishError::Answered(errno)))?;
        self.0.note_changed(ino);
        Ok(published)
    }

    async fn grant(&self, count: u64) -> Result<(u64, u64), Errno> {
        match self.0.call(Request::Grant { count }).await? {
            (_, Reply::Grant { first, end }) => self.0.sync().await.map(|_| (first, end)),
            (_, other) => panic!("{other:?}"),
        }
    }

    fn published_below(&self, session: SessionId, floor: u64) {
        lock(&self.0.state).set_floor(session, floor);
    }

    fn now_ns(&self) -> i64 {
        self.0.world.now().wall_ns as i64
    }

    fn exclusive(&self) -> bool {
        let lease = lock(&self.0.lease);
        !lease.shared && Instant::now() < lease.until
    }
}
