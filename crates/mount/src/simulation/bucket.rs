//! A bucket that lies and fails, below the store that production uses ([`RemoteStore`]): requests are refused, time out
//! and work all the same, arrive late, bring bytes cut short or a page of something else; listings leave out and show
//! what is gone. What is stored is never harmed: only what is said of it.

use super::{Life, Random, lock};
use bytes::Bytes;
use chronofs_blocks::RemoteStore;
use chronofs_blocks::name::parse_object_name;
use chronofs_blocks::pin::PINS;
use chronofs_core::SessionId;
use chronofs_core::store::{Bucket as Place, Credentials, StoreKind};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(0x22);
/// What some gateways say with status 200.
const PAGE: &[u8] = b"<!DOCTYPE html><html><body>Service temporarily unavailable</body></html>\n";
const NAMES_PER_PAGE: usize = 9;

/// How it behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mood {
    Honest,
    /// One request in so many goes wrong.
    Lies(u64),
    /// None is answered well.
    Away,
}

/// What becomes of a request. Which of them have a meaning depends on the request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fate {
    Fine,
    /// Refused at once: 500, 503, 429.
    Refused,
    /// No answer, and nothing done.
    TimesOut,
    /// Done, and answered with an error.
    DoneButError,
    /// No answer, and done a long time later.
    DoneLate,
    /// Said to be done, and not done. Of puts: only a part is stored, and an error said.
    Lost,
    /// Fewer bytes than asked for.
    CutShort,
    /// An error page as if it were the bytes.
    Page,
    /// As many bytes as asked for, and one of them wrong.
    Damaged,
    /// Said not to be there.
    Missing,
}

const OF_PUTS: &[Fate] = &[Fate::Refused, Fate::TimesOut, Fate::DoneButError, Fate::DoneLate, Fate::Lost];
const OF_GETS: &[Fate] =
    &[Fate::Refused, Fate::TimesOut, Fate::CutShort, Fate::Page, Fate::Damaged, Fate::Missing];
const OF_DELETES: &[Fate] =
    &[Fate::Refused, Fate::TimesOut, Fate::DoneButError, Fate::DoneLate, Fate::Lost, Fate::Lost];
const OF_LISTS: &[Fate] = &[Fate::Refused, Fate::TimesOut, Fate::CutShort, Fate::Lost];

/// See the module.
pub(super) struct Bucket(Mutex<Inner>, Notify);

struct Inner {
    objects: BTreeMap<String, Bytes>,
    /// All names that ever were there: a stale listing shows them.
    ever: BTreeSet<String>,
    random: Random,
    mood: Mood,
    /// What happened how often, for those who want to know whether it happens at all.
    seen: BTreeMap<(&'static str, Fate), u64>,
    /// Requests whose effect is still to come.
    under_way: u64,
    deleted: u64,
    /// Of them those that the server put together.
    packs_deleted: u64,
}

impl Bucket {
    pub(super) fn new(random: Random) -> Arc<Self> {
        let inner = Inner {
            objects: BTreeMap::new(),
            ever: BTreeSet::new(),
            random,
            mood: Mood::Honest,
            seen: BTreeMap::new(),
            under_way: 0,
            deleted: 0,
            packs_deleted: 0,
        };
        Arc::new(Bucket(Mutex::new(inner), Notify::new()))
    }

    /// The store of production over this bucket, for one process.
    pub(super) fn store(self: &Arc<Self>, life: &Arc<Life>, create_only: bool) -> RemoteStore {
        // Making the client of a real bucket takes longer than a whole simulation.
        static REAL: OnceLock<[RemoteStore; 2]> = OnceLock::new();
        let real = |create_only| {
            let (bucket, region) = ("simulated".to_owned(), Some("nowhere".to_owned()));
            let place = Place { bucket, region, ..Place::default() };
            let patience = chronofs_blocks::store::Patience::Serving;
            let credentials = Credentials::Anonymous;
            RemoteStore::new(StoreKind::S3(place), ID, credentials, create_only, patience).unwrap()
        };
        let face = Arc::new(Face { bucket: self.clone(), life: life.clone() });
        let real = REAL.get_or_init(|| [real(false), real(true)]);
        real[usize::from(create_only)].through(face.clone(), face)
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        lock(&self.0).mood = mood;
    }

    /// Something lies there that nobody here has put.
    pub(super) fn lay(&self, name: String, bytes: Bytes) {
        let mut inner = lock(&self.0);
        inner.ever.insert(name.clone());
        inner.objects.insert(name, bytes);
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        lock(&self.0).objects.keys().cloned().collect()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        lock(&self.0).objects.contains_key(name)
    }

    pub(super) fn seen(&self) -> BTreeMap<(&'static str, Fate), u64> {
        lock(&self.0).seen.clone()
    }

    pub(super) fn deleted(&self) -> u64 {
        lock(&self.0).deleted
    }

    pub(super) fn packs_deleted(&self) -> u64 {
        lock(&self.0).packs_deleted
    }

    /// Waits until an object is deleted.
    pub(super) async fn next_delete(&self) {
        self.1.notified().await;
    }

    pub(super) fn is_quiet(&self) -> bool {
        lock(&self.0).under_way == 0
    }

    /// Draws what becomes of a request, and how long its way takes.
    fn draw(&self, what: &'static str, fates: &[Fate]) -> (Fate, Duration) {
        let mut inner = lock(&self.0);
        let goes_wrong = match inner.mood {
            Mood::Honest => false,
            Mood::Lies(one_in) => inner.random.one_in(one_in),
            Mood::Away => true,
        };
        let fate = match inner.mood {
            _ if !goes_wrong => Fate::Fine,
            Mood::Away => fates[inner.random.below(2) as usize],
            _ => fates[inner.random.below(fates.len() as u64) as usize],
        };
        let slow = goes_wrong && inner.random.one_in(2);
        let ms = 1 + inner.random.below(if slow { 4000 } else { 40 });
        *inner.seen.entry((what, fate)).or_default() += 1;
        (fate, Duration::from_millis(ms))
    }

    /// Has a change arrive after `delay`, whatever becomes of who sent it.
    fn send<T: Send + 'static>(
        self: &Arc<Self>,
        delay: Duration,
        change: impl FnOnce(&mut Inner) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, result) = oneshot::channel();
        let bucket = self.clone();
        lock(&self.0).under_way += 1;
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let mut inner = lock(&bucket.0);
            inner.under_way -= 1;
            drop(done.send(change(&mut inner)));
        });
        result
    }
}

/// The bucket as one process reaches it. What is answered to a process that is gone, nobody hears.
struct Face {
    bucket: Arc<Bucket>,
    life: Arc<Life>,
}

fn failed(what: &str) -> Error {
    Error::Generic { store: "simulated", source: what.to_owned().into() }
}

/// Whether the server put the object together, of small slices or of what is left of others.
pub(super) fn is_of_the_server(name: &str) -> bool {
    parse_object_name(name).is_some_and(|(_, object)| object.session == SessionId::SERVER)
}

fn absent(name: &str) -> Error {
    Error::NotFound { path: name.to_owned(), source: "404".into() }
}

fn meta(name: &str, size: u64) -> ObjectMeta {
    let location = Path::from(name);
    ObjectMeta { location, last_modified: Default::default(), size, e_tag: None, version: None }
}

impl Face {
    async fn put(&self, name: String, bytes: Bytes, create_only: bool) -> Result<()> {
        self.life.lives().await;
        let (fate, wait) = self.bucket.draw("put", OF_PUTS);
        let late = match fate {
            Fate::DoneLate => wait + Duration::from_secs(3),
            _ => wait,
        };
        let arrives = match fate {
            Fate::Refused | Fate::TimesOut => None,
            // A store that is no atom: what came before the connection broke stands there.
            Fate::Lost => Some(bytes.slice(..bytes.len() / 2)),
            _ => Some(bytes),
        };
        let taken = arrives.map(|bytes| {
            self.bucket.send(late, move |inner| {
                if create_only && inner.objects.contains_key(&name) {
                    return true;
                }
                inner.ever.insert(name.clone());
                inner.objects.insert(name, bytes);
                false
            })
        });
        let result = match (fate, taken) {
            (Fate::Fine, Some(taken)) => match taken.await {
                Ok(false) => Ok(()),
                _ => Err(Error::AlreadyExists { path: String::new(), source: "412".into() }),
            },
            _ => {
                tokio::time::sleep(wait).await;
                Err(failed("503, or no answer"))
            }
        };
        self.life.lives().await;
        result
    }

    async fn get(&self, name: &str, range: Option<object_store::GetRange>, head: bool) -> Result<GetResult> {
        self.life.lives().await;
        let (fate, wait) = self.bucket.draw(if head { "head" } else { "get" }, OF_GETS);
        tokio::time::sleep(wait).await;
        self.life.lives().await;
        if matches!(fate, Fate::Refused | Fate::TimesOut) {
            return Err(failed("500, or no answer"));
        }
        let found = lock(&self.bucket.0).objects.get(name).cloned();
        let whole = found.filter(|_| fate != Fate::Missing).ok_or_else(|| absent(name))?;
        let (size, all) = (whole.len() as u64, 0..whole.len() as u64);
        let range =
            range.map_or(Ok(all), |range| range.as_range(size)).map_err(|e| failed(&e.to_string()))?;
        let bytes = whole.slice(range.start as usize..range.end as usize);
        let told = match fate {
            Fate::CutShort => bytes.slice(..bytes.len() / 2),
            Fate::Page => PAGE.iter().copied().cycle().take(bytes.len()).collect(),
            Fate::Damaged => {
                let mut harmed = bytes.to_vec();
                let at = harmed.len() / 2;
                harmed.get_mut(at).into_iter().for_each(|byte| *byte ^= 0x10);
                harmed.into()
            }
            _ => bytes,
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(futures::stream::iter([Ok(told)]).boxed()),
            meta: meta(name, size),
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    async fn delete(&self, name: String) -> Result<Path> {
        self.life.lives().await;
        let (fate, wait) = self.bucket.draw("delete", OF_DELETES);
        let late = if fate == Fate::DoneLate { wait + Duration::from_secs(3) } else { wait };
        let path = Path::from(name.as_str());
        if matches!(fate, Fate::Fine | Fate::DoneButError | Fate::DoneLate) {
            let bucket = self.bucket.clone();
            drop(self.bucket.send(late, move |inner| {
                if inner.objects.remove(&name).is_some() {
                    inner.deleted += 1;
                    inner.packs_deleted += u64::from(is_of_the_server(&name));
                }
                bucket.1.notify_waiters();
            }));
        }
        // Longer than the way of the request: an answer says that it is done.
        tokio::time::sleep(wait + Duration::from_millis(1)).await;
        self.life.lives().await;
        match fate {
            Fate::Fine | Fate::Lost => Ok(path),
            _ => Err(failed("503, or no answer")),
        }
    }

    async fn list(&self, prefix: &str, from: Option<String>) -> Result<PaginatedListResult> {
        self.life.lives().await;
        let (fate, wait) = self.bucket.draw("list", OF_LISTS);
        tokio::time::sleep(wait).await;
        self.life.lives().await;
        if matches!(fate, Fate::Refused | Fate::TimesOut) {
            return Err(failed("500, or no answer"));
        }
        let mut inner = lock(&self.bucket.0);
        let Inner { objects, ever, random, .. } = &mut *inner;
        let names: Vec<&String> = match fate {
            // As it was some time ago.
            Fate::Lost => ever.iter().collect(),
            _ => objects.keys().collect(),
        };
        let mut rest = names.into_iter().filter(|name| name.starts_with(prefix));
        let start = from.unwrap_or_default();
        let page: Vec<String> =
            rest.by_ref().filter(|name| **name > start).take(NAMES_PER_PAGE).cloned().collect();
        let page_token = page.last().cloned().filter(|_| rest.next().is_some());
        // Of a pin that only the store has nobody could know, if it were left out.
        let leaves_out = fate == Fate::CutShort && !prefix.starts_with(PINS);
        let shown = page.iter().filter(|_| !leaves_out || random.one_in(2));
        let shown = shown.map(|name| meta(name, objects.get(name).map_or(7, |bytes| bytes.len() as u64)));
        let result = ListResult {
            common_prefixes: Vec::new(),
            objects: shown.collect(),
            extensions: Default::default(),
        };
        Ok(PaginatedListResult { result, page_token })
    }
}

impl fmt::Debug for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated bucket")
    }
}

impl fmt::Display for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated bucket")
    }
}

impl ObjectStore for Face {
    fn put_opts<'a, 'b, 't>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> BoxFuture<'t, Result<PutResult>>
    where
        'a: 't,
        'b: 't,
    {
        let create_only = matches!(opts.mode, PutMode::Create);
        let put = self.put(location.to_string(), payload.into(), create_only);
        let said = PutResult { e_tag: None, version: None, extensions: Default::default() };
        async move { put.await.map(|()| said) }.boxed()
    }

    fn put_multipart_opts<'a, 'b, 't>(
        &'a self,
        _: &'b Path,
        _: PutMultipartOptions,
    ) -> BoxFuture<'t, Result<Box<dyn MultipartUpload>>>
    where
        'a: 't,
        'b: 't,
    {
        unreachable!("objects are put in one piece")
    }

    fn get_opts<'a, 'b, 't>(
        &'a self,
        location: &'b Path,
        options: GetOptions,
    ) -> BoxFuture<'t, Result<GetResult>>
    where
        'a: 't,
        'b: 't,
    {
        let name = location.to_string();
        async move { self.get(&name, options.range, options.head).await }.boxed()
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let face = Face { bucket: self.bucket.clone(), life: self.life.clone() };
        let face = Arc::new(face);
        let delete = move |location: Result<Path>| {
            let face = face.clone();
            async move { face.delete(location?.to_string()).await }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        unreachable!("listings come in pages")
    }

    fn list_with_delimiter<'a, 'b, 't>(&'a self, _: Option<&'b Path>) -> BoxFuture<'t, Result<ListResult>>
    where
        'a: 't,
        'b: 't,
    {
        unreachable!("listings come in pages")
    }

    fn copy_opts<'a, 'b, 'c, 't>(
        &'a self,
        _: &'b Path,
        _: &'c Path,
        _: CopyOptions,
    ) -> BoxFuture<'t, Result<()>>
    where
        'a: 't,
        'b: 't,
        'c: 't,
    {
        unreachable!("nothing is copied")
    }
}

impl PaginatedListStore for Face {
    fn list_paginated<'a, 'b, 't>(
        &'a self,
        prefix: Option<&'b str>,
        opts: PaginatedListOptions,
    ) -> BoxFuture<'t, Result<PaginatedListResult>>
    where
        'a: 't,
        'b: 't,
    {
        async move { Face::list(self, prefix.unwrap_or_default(), opts.page_token).await }.boxed()
    }
}
