//! Objects by signed requests: bytes go between this mount and the bucket, and no secret of the bucket is here.
//!
//! What a signed request cannot do, for whatever reason, goes through the metadata server: it knows the store better, and
//! only its word counts that something is missing or damaged. Requests for reads come with the slices; where one is not at
//! hand (it ended, or was one too many), asking for the slices of the block again brings it.

use super::ThroughServer;
use super::way::Way;
use crate::clock::{jittered, since_boot};
use crate::connection::Connection;
use bytes::Bytes;
use chronofs_blocks::hedge::Hedges;
use chronofs_blocks::name::parse_object_name;
use chronofs_blocks::signed::{Setback, SignedClient, SignedError, SignedPut};
use chronofs_blocks::{ObjectPort, ShownBy, StoreError};
use chronofs_core::ops::Request;
use chronofs_core::{Caller, ObjectId, SignedRequest};
use chronofs_wire::message::Welcome;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};

/// Requests to the store at once: with what a slice or an object takes, this bounds memory too.
const REQUESTS_MAX: usize = 32;
/// How often a store that has no time is asked before the metadata server is, and the first and the longest wait between.
const TRIES: u32 = 4;
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(2);
/// How many puts are asked for at once, and with how many left the next are.
const PUTS_ASKED: u32 = 32;
const PUTS_LEFT_MIN: usize = 16;
/// Blocks whose slices are asked for to have requests: their slices fit into one reply, however many each has.
const ASK_BLOCKS: u32 = 8;

/// See the module.
pub(super) struct SignedPort {
    inner: Arc<Inner>,
}

struct Inner {
    client: SignedClient,
    through_server: ThroughServer,
    /// Puts are signed.
    puts: bool,
    use_for: Duration,
    permits: Semaphore,
    way: Way,
    asking_gets: Arc<Mutex<()>>,
    asking_puts: Arc<Mutex<()>>,
}

/// What to do after a setback.
enum Next {
    Again,
    AskAnew,
    ThroughServer,
}

impl SignedPort {
    pub(super) fn new(
        through_server: ThroughServer,
        use_ms: u32,
        ca_pem: Option<&str>,
        puts: bool,
    ) -> Result<Self, StoreError> {
        let inner = Inner {
            client: SignedClient::new(ca_pem)?,
            through_server,
            puts,
            use_for: Duration::from_millis(u64::from(use_ms)),
            permits: Semaphore::new(REQUESTS_MAX),
            way: Way::default(),
            asking_gets: Arc::default(),
            asking_puts: Arc::default(),
        };
        Ok(SignedPort { inner: Arc::new(inner) })
    }

    /// Asks for the first puts of a session, so that the first one need not wait for that.
    pub(super) fn expect_puts(&self, welcome: &Welcome) {
        let &Welcome { incarnation, session, grant: (n, end), .. } = welcome;
        if self.inner.puts && n < end {
            let inner = Arc::clone(&self.inner);
            tokio::spawn(async move {
                let _asking = inner.asking_puts.lock().await;
                inner.ask_for_puts(ObjectId { incarnation, session, n }).await;
            });
        }
    }
}

impl ObjectPort for SignedPort {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            if self.inner.put(name, &bytes).await {
                return Ok(());
            }
            // Also when the name was taken: the server compares.
            self.inner.through_server.put(name, bytes).await
        })
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.inner.through_server.get(name, offset, len)
    }

    fn get_slice<'a>(
        &'a self,
        shown_by: ShownBy,
        name: &'a str,
        offset: u64,
        len: u32,
    ) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(async move {
            match self.inner.get(shown_by, name, offset, len).await {
                Some(bytes) => Ok(bytes),
                None => self.inner.through_server.get_slice(shown_by, name, offset, len).await,
            }
        })
    }

    fn hedges(&self) -> Hedges {
        self.inner.client.hedges()
    }
}

impl Inner {
    fn connection(&self) -> &Arc<Connection> {
        &self.through_server.0
    }

    /// Whether the object is stored now. If not, nothing is said of the store.
    async fn put(self: &Arc<Self>, name: &str, bytes: &Bytes) -> bool {
        let Some((_, object)) = parse_object_name(name) else { return false };
        if !self.puts || !self.through_server.is_ours(name) || !self.way.may_pass(since_boot()) {
            return false;
        }
        let Ok(_permit) = self.permits.acquire().await else { return false };
        let mut asked_anew = false;
        for attempt in 1..=TRIES {
            let Some(request) = self.put_request(object).await else { return false };
            let error = match self.client.put(&request, name, bytes.clone()).await {
                Ok(put) => {
                    self.worked();
                    return put == SignedPut::Done;
                }
                Err(error) => error,
            };
            match self.after(&error, attempt, asked_anew).await {
                Next::Again => {}
                Next::AskAnew => {
                    asked_anew = true;
                    self.connection().requests().forget_puts();
                }
                Next::ThroughServer => return false,
            }
        }
        false
    }

    async fn get(self: &Arc<Self>, shown_by: ShownBy, name: &str, offset: u64, len: u32) -> Option<Bytes> {
        let (_, object) = parse_object_name(name)?;
        if !self.way.may_pass(since_boot()) {
            return None;
        }
        let _permit = self.permits.acquire().await.ok()?;
        let mut asked_anew = false;
        for attempt in 1..=TRIES {
            let request = self.get_request(shown_by, object, offset).await?;
            let error = match self.client.get(&request, name, offset, len).await {
                Ok(bytes) => {
                    self.worked();
                    return Some(bytes);
                }
                Err(error) => error,
            };
            match self.after(&error, attempt, asked_anew).await {
                Next::Again => {}
                Next::AskAnew => {
                    asked_anew = true;
                    self.connection().requests().forget_get(object, offset);
                }
                Next::ThroughServer => return None,
            }
        }
        None
    }

    async fn after(&self, failed: &SignedError, attempt: u32, asked_anew: bool) -> Next {
        match failed.setback {
            Setback::Passing if attempt < TRIES => {
                tracing::debug!("{}", failed.error);
                tokio::time::sleep(jittered(WAIT_FIRST, attempt, WAIT_MAX)).await;
                Next::Again
            }
            Setback::Refused if !asked_anew => Next::AskAnew,
            Setback::Unreachable => {
                if self.way.failed(since_boot()) {
                    tracing::warn!("objects go through the metadata server for now: {}", failed.error.reason);
                }
                Next::ThroughServer
            }
            _ => {
                tracing::debug!("asked again through the metadata server: {}", failed.error);
                Next::ThroughServer
            }
        }
    }

    fn worked(&self) {
        if self.way.worked() {
            tracing::info!("objects go to the block store directly again");
        }
    }

    async fn get_request(
        self: &Arc<Self>,
        shown_by: ShownBy,
        object: ObjectId,
        offset: u64,
    ) -> Option<SignedRequest> {
        let find = || self.connection().requests().get(object, offset, since_boot(), self.use_for);
        if let Some(found) = find() {
            if found.ages
                && let Ok(asking) = Arc::clone(&self.asking_gets).try_lock_owned()
            {
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    this.ask_for_gets(shown_by).await;
                    drop(asking);
                });
            }
            return Some(found.request);
        }
        let _asking = self.asking_gets.lock().await;
        if find().is_none() {
            self.ask_for_gets(shown_by).await;
        }
        find().map(|found| found.request)
    }

    /// The requests come along. What else the answer says is of no use here.
    async fn ask_for_gets(&self, shown_by: ShownBy) {
        let ShownBy { ino, block } = shown_by;
        let slices = Request::Slices { ino, first: block, count: ASK_BLOCKS, staged: false };
        drop(self.connection().call(Caller::ROOT, slices).await);
    }

    async fn put_request(self: &Arc<Self>, object: ObjectId) -> Option<SignedRequest> {
        let find = || self.connection().requests().put(object, since_boot(), self.use_for);
        if let Some((found, left)) = find() {
            if (found.ages || left < PUTS_LEFT_MIN)
                && let Ok(asking) = Arc::clone(&self.asking_puts).try_lock_owned()
            {
                let this = Arc::clone(self);
                let next = ObjectId { n: object.n + 1 + if found.ages { 0 } else { left as u64 }, ..object };
                tokio::spawn(async move {
                    this.ask_for_puts(next).await;
                    drop(asking);
                });
            }
            return Some(found.request);
        }
        let _asking = self.asking_puts.lock().await;
        if find().is_none() {
            self.ask_for_puts(object).await;
        }
        find().map(|(found, _)| found.request)
    }

    async fn ask_for_puts(&self, first: ObjectId) {
        let session = self.connection().session();
        if session != first.session {
            return;
        }
        let asked = since_boot();
        match self.connection().sign_puts(first.n, PUTS_ASKED).await {
            Ok(requests) => self.connection().requests().add_puts(session, first.n, requests, asked),
            Err(errno) => tracing::debug!(%errno, "no puts are signed"),
        }
    }
}
