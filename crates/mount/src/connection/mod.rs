//! The session of a mount with its metadata server: calls that survive whatever happens to the network.
//!
//! [`Connection::call`] hands a request in and waits for its answer, over as many connections as it takes. A task of
//! its own ([`driver`]) connects, reconnects with back-off, says what is open and sends again what has no answer;
//! [`state`] remembers what that takes and does no I/O. While the server is away calls wait; they fail only when it
//! refuses the mount.

mod driver;
mod flow;
mod link;
mod put_back;
mod replay;
pub(crate) mod state;
mod target;

pub use driver::Event;
pub use link::OpenError;
pub use state::Answer;
pub use target::{Credentials, Source, Target};

use crate::clock::{ServerClock, since_boot};
use crate::objects::requests::Requests;
use bytes::Bytes;
use chronofs_blocks::ShownBy;
use chronofs_core::ops::{Reply, Request};
use chronofs_core::{Caller, Errno, Ino, ObjectId, SessionId, SignedRequest, Version};
use chronofs_wire::message::{ToServer, Welcome, Window};
use put_back::PutBack;
use state::{Delivery, Phase, State, Transfer};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};

/// What a mount asks for when it opens its session.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the volume is served.
    pub source: Source,
    /// Id and secret of the volume token.
    pub credentials: Credentials,
    /// Host, process and folder, for people.
    pub client_name: String,
    /// The instant to show; `None` is the present.
    pub at: Option<Version>,
    /// The mount will not write.
    pub read_only: bool,
    /// It needs no way to the objects: it has one of its own.
    pub direct: bool,
    /// It seals what it writes: the server is to refuse it if the volume is not encrypted, and only then not.
    pub sealed: bool,
}

/// How the connection is, for `status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionStatus {
    /// Calls are answered now.
    pub connected: bool,
    /// The server refuses the mount with this error.
    pub refused: Option<Errno>,
    /// The session.
    pub session: SessionId,
    /// Address of the server.
    pub address: String,
    /// Calls without an answer.
    pub waiting: usize,
    /// Answered mutations that are not durable yet.
    pub undurable: usize,
    /// How far back the volume goes, as the server said last.
    pub window: Option<Window>,
}

/// See the module.
pub struct Connection {
    state: Mutex<State>,
    wanted: Wanted,
    /// What the session was opened as; only under this name does the server give it back.
    client: Mutex<u128>,
    /// The server was last seen here.
    target: Mutex<Target>,
    /// There are frames to write.
    wake: Notify,
    /// Calls, answers and renewals are worth nothing any more: the mount ends.
    closing: watch::Sender<bool>,
    clock: ServerClock,
    lease: Lease,
    requests: Requests,
    /// The run of the server that was heard last.
    boot: AtomicU64,
    window: Mutex<Option<Window>>,
    /// The directory that the session shows, as the server said last.
    root: AtomicU64,
    put_back: PutBack,
}

/// How long what the server said may be believed without asking again.
///
/// Times are counted on a clock that runs on while the machine sleeps: the server goes on without a sleeping client.
struct Lease {
    base: Duration,
    /// What the server said last: another session may change the volume.
    told_shared: AtomicBool,
    /// Nothing may be cached: it was told so, or caches that may be wrong are not emptied yet.
    shared: AtomicBool,
    /// The session lives at least until then, in milliseconds since `base`.
    until_ms: AtomicU64,
    /// When the oldest renewal without an answer was sent, in milliseconds since `base`; 0 for none.
    asked_ms: AtomicU64,
}

impl Connection {
    /// Opens a session and keeps it. Events come for as long as the connection lives.
    pub async fn open(
        wanted: Wanted,
    ) -> Result<(Arc<Self>, Welcome, mpsc::UnboundedReceiver<Event>), OpenError> {
        let first = link::open_first(&wanted).await?;
        let welcome = (*first.welcome).clone();
        let (closing, _) = watch::channel(false);
        let connection = Arc::new(Connection {
            state: Mutex::new(State::new(&welcome)),
            wanted,
            client: Mutex::new(first.client),
            target: Mutex::new(first.target.clone()),
            wake: Notify::new(),
            closing,
            clock: ServerClock::new(),
            lease: Lease::new(),
            requests: Requests::new(),
            boot: AtomicU64::new(0),
            window: Mutex::new(None),
            root: AtomicU64::new(welcome.root.0),
            put_back: PutBack::new(welcome.restored),
        });
        connection.heard_welcome(&welcome, first.asked);
        connection.caches_emptied();
        let (events, received) = mpsc::unbounded_channel();
        tokio::spawn(driver::run(Arc::clone(&connection), first, events));
        Ok((connection, welcome, received))
    }

    /// Asks the server. Waits while it is away; an error means that there is no answer, because it refuses the mount.
    pub async fn ask(&self, caller: Caller, request: Request) -> Result<Answer, Errno> {
        let answer = self.state().call(caller, request);
        self.wake.notify_one();
        answer.await.unwrap_or(Err(Errno::EIO))
    }

    /// Asks the server for something that it can only do or refuse.
    pub async fn call(&self, caller: Caller, request: Request) -> Result<(Version, Reply), Errno> {
        let answer = self.ask(caller, request).await?;
        answer.result.map(|reply| (answer.version, reply))
    }

    /// Asks without waiting for the answer; it is asked again after a reconnect all the same.
    pub fn cast(&self, caller: Caller, request: Request) {
        drop(self.state().call(caller, request));
        self.wake.notify_one();
    }

    /// Stores an object through the server.
    pub async fn put_object(&self, name: String, bytes: Bytes) -> Result<(), Errno> {
        self.transfer(Transfer::Put { name, bytes }).await.map(drop)
    }

    /// Reads the stored bytes of a slice through the server: the one that `shown_by` shows in `object` at `offset`.
    pub async fn get_object(
        &self,
        shown_by: ShownBy,
        object: ObjectId,
        offset: u64,
        len: u32,
    ) -> Result<Bytes, Errno> {
        match self.transfer(Transfer::Get { shown_by, object, offset, len }).await? {
            Delivery::Bytes(bytes) => Ok(bytes),
            Delivery::Puts(_) => Err(Errno::EIO),
        }
    }

    /// Requests that put the session's objects from the counter `first` on; none if the store cannot sign.
    pub async fn sign_puts(&self, first: u64, count: u32) -> Result<Vec<SignedRequest>, Errno> {
        match self.transfer(Transfer::SignPuts { first, count }).await? {
            Delivery::Puts(requests) => Ok(requests),
            Delivery::Bytes(_) => Err(Errno::EIO),
        }
    }

    async fn transfer(&self, transfer: Transfer) -> Result<Delivery, Errno> {
        let answer = self.state().transfer(transfer);
        self.wake.notify_one();
        answer.await.unwrap_or(Err(Errno::EIO))
    }

    /// Signed requests that the server gave.
    pub(crate) fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Says that nothing is left in the kernel of what it may not cache any more.
    pub fn acknowledge_shared(&self) {
        self.state().send_if_up(ToServer::SharedAck);
        self.wake.notify_one();
    }

    /// How long from now the kernel may keep what a server says now, at most `limit`; zero on a shared volume.
    pub fn lease_left(&self, limit: Duration) -> Duration {
        self.lease.left(limit)
    }

    /// Whether no other session may change the volume now.
    pub fn exclusive(&self) -> bool {
        !self.lease_left(Duration::from_millis(1)).is_zero()
    }

    /// Nothing is cached any more that may be wrong: cache again, if the server's last word allows it.
    pub fn caches_emptied(&self) {
        let lease = &self.lease;
        lease.shared.store(lease.told_shared.load(Ordering::SeqCst), Ordering::SeqCst);
        // The server may have said otherwise in between: its word wins.
        if lease.told_shared.load(Ordering::SeqCst) {
            lease.shared.store(true, Ordering::SeqCst);
        }
    }

    /// The server's clock, nanoseconds since the epoch.
    pub fn now_ns(&self) -> i64 {
        self.clock.now_ns()
    }

    /// Another number after each start of the server, before any answer of that run: what an earlier one answered may
    /// be lost. The past is never lost.
    pub fn boot(&self) -> u64 {
        if self.wanted.at.is_some() { 0 } else { self.boot.load(Ordering::SeqCst) }
    }

    /// How often answered changes of `ino` were lost with the server's power.
    pub fn lost(&self, ino: Ino) -> u64 {
        self.state().lost(ino)
    }

    /// How often the server was put back from a copy since the volume was mounted: what it was told after the copy is lost. The
    /// past of before the copy is as it was.
    pub fn restores(&self) -> u64 {
        if self.wanted.at.is_some() { 0 } else { self.put_back.times() }
    }

    /// What it means that the server does not know an inode that a program has: after a restore, that its number names nothing
    /// any more, and never will.
    pub(crate) fn lost_or(&self, errno: Errno) -> Errno {
        if errno == Errno::ENOENT && self.restores() > 0 { Errno::ESTALE } else { errno }
    }

    /// The directory that the session shows: a restore may have given it another number.
    pub(crate) fn root(&self) -> Ino {
        Ino(self.root.load(Ordering::SeqCst))
    }

    /// What this mount calls itself, for people.
    pub(crate) fn client_name(&self) -> &str {
        &self.wanted.client_name
    }

    /// Written bytes of a file that is lost lie at `path` now. The admin server is told for its audit log, a while after the first
    /// and then no more: the log of this mount and the reports say it all.
    pub(crate) fn tell_parked(self: &Arc<Self>, ino: Ino, path: &str, bytes: u64) {
        if self.put_back.parked(ino, path, bytes) {
            tokio::spawn(put_back::tell(Arc::downgrade(self), self.restores()));
        }
    }

    /// How the connection is.
    pub fn status(&self) -> ConnectionStatus {
        let address = self.target().address.clone();
        let state = self.state();
        let (waiting, undurable) = state.waiting();
        let refused = match state.phase() {
            Phase::Refused(errno) => Some(errno),
            _ => None,
        };
        let connected = state.phase() == Phase::Up;
        let window = *self.window.lock().unwrap_or_else(PoisonError::into_inner);
        ConnectionStatus { connected, refused, session: state.session(), address, waiting, undurable, window }
    }

    /// The session that calls are made under now.
    pub fn session(&self) -> SessionId {
        self.state().session()
    }

    /// From now on nothing is published that lies in an object of `session` with a counter below `floor`.
    pub(crate) fn published_below(&self, session: SessionId, floor: u64) {
        self.state().set_floor(session, floor);
    }

    /// The highest version that any answer named.
    pub fn seen(&self) -> Version {
        self.state().seen()
    }

    /// Ends the session: says goodbye if the server is there, and stops trying if it is not.
    pub async fn close(&self) {
        {
            // Nothing is taken out before it is known why the server will hang up: else its end looks like a loss.
            let mut state = self.state();
            state.send_if_up(ToServer::Goodbye);
            self.closing.send_replace(true);
        }
        self.wake.notify_one();
        // The driver writes what is queued and ends; there is nothing to wait for when the server is away.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.closing.closed()).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> u128 {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_client(&self, client: u128) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    fn heard_window(&self, window: Window) {
        *self.window.lock().unwrap_or_else(PoisonError::into_inner) = Some(window);
    }

    /// What a welcome says about clock, lease and sharing. `asked` is when the hello was sent. Nothing is cached
    /// until [`Connection::caches_emptied`].
    fn heard_welcome(&self, welcome: &Welcome, asked: Duration) {
        self.clock.set(welcome.now_ns);
        self.root.store(welcome.root.0, Ordering::SeqCst);
        if self.put_back.heard(welcome.restored) {
            tracing::error!(
                "the metadata server was restored from a copy: what was changed after that is lost; bytes of files that are not \
                 there any more go to lost+found"
            );
        }
        self.boot.store(welcome.boot, Ordering::SeqCst);
        // Another server may know better whether the bucket is still the store's.
        self.requests.forget_puts();
        self.lease.shared.store(true, Ordering::SeqCst);
        self.lease.told_shared.store(welcome.shared, Ordering::SeqCst);
        self.lease.asked_ms.store(0, Ordering::SeqCst);
        self.lease.extend(self.lease.ms(asked), Duration::from_millis(u64::from(welcome.ttl_ms)));
    }
}

impl Lease {
    fn new() -> Self {
        Lease {
            base: since_boot(),
            told_shared: AtomicBool::new(true),
            shared: AtomicBool::new(true),
            until_ms: AtomicU64::new(0),
            asked_ms: AtomicU64::new(0),
        }
    }

    fn ms(&self, since_boot: Duration) -> u64 {
        since_boot.saturating_sub(self.base).as_millis() as u64
    }

    fn left(&self, limit: Duration) -> Duration {
        if self.shared.load(Ordering::SeqCst) {
            return Duration::ZERO;
        }
        let left_ms = self.until_ms.load(Ordering::SeqCst).saturating_sub(self.ms(since_boot()));
        Duration::from_millis(left_ms).min(limit)
    }

    fn told(&self, shared: bool) {
        self.told_shared.store(shared, Ordering::SeqCst);
        if shared {
            self.shared.store(true, Ordering::SeqCst);
        }
    }

    /// A renewal is about to be sent.
    fn asked(&self) {
        let now_ms = self.ms(since_boot()).max(1);
        let _ = self.asked_ms.compare_exchange(0, now_ms, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// The oldest renewal was answered: the session's time counts from when it was sent.
    fn renewed(&self, ttl: Duration) {
        let asked_ms = self.asked_ms.swap(0, Ordering::SeqCst);
        if asked_ms > 0 {
            self.extend(asked_ms, ttl);
        }
    }

    fn extend(&self, asked_ms: u64, ttl: Duration) {
        self.until_ms.store(asked_ms + ttl.as_millis() as u64, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_cached_on_a_shared_volume_or_after_the_lease() {
        let lease = Lease::new();
        lease.extend(0, Duration::from_secs(60));
        assert_eq!(lease.left(Duration::from_secs(1)), Duration::ZERO, "shared until told otherwise");
        lease.shared.store(false, Ordering::SeqCst);
        assert_eq!(lease.left(Duration::from_secs(1)), Duration::from_secs(1));
        lease.extend(0, Duration::ZERO);
        assert_eq!(lease.left(Duration::from_secs(1)), Duration::ZERO);
        lease.extend(0, Duration::from_secs(60));
        lease.told(true);
        assert_eq!(lease.left(Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn a_renewal_counts_from_when_the_oldest_open_one_was_sent() {
        let lease = Lease::new();
        lease.shared.store(false, Ordering::SeqCst);
        lease.asked();
        let first = lease.asked_ms.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        lease.asked();
        lease.renewed(Duration::from_secs(1));
        assert_eq!(lease.until_ms.load(Ordering::SeqCst), first + 1000);
        lease.renewed(Duration::from_secs(9));
        assert_eq!(lease.until_ms.load(Ordering::SeqCst), first + 1000, "nothing was asked");
    }
}
