//! A block store in a bucket: how much is asked of the bucket at once, and where its requests go.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use bytes::Bytes;
use chronofs_blocks::signed::Action;
use chronofs_blocks::store::Patience;
use chronofs_blocks::{ObjectPort, RemoteStore, StorePort, Trouble, object_name};
use chronofs_core::store::{Bucket, Credentials, Secret, StoreKind};
use chronofs_core::{ObjectId, SessionId};
use futures::future::{BoxFuture, join_all};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::memory::InMemory;
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// So many requests a store may have under way (docs/arch/blocks.md).
const REQUESTS_MAX: usize = 64;
const ID: Uuid = Uuid::from_u128(1);

fn name(n: u64) -> String {
    object_name(ID, ObjectId { incarnation: 1, session: SessionId(1), n })
}

/// A bucket in memory that takes a second for each request, and counts how many it has at once.
#[derive(Clone, Debug, Default)]
struct Counting {
    bucket: Arc<InMemory>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Counting {
    async fn request<T>(&self, answer: impl Future<Output = T>) -> T {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let answer = answer.await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        answer
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bucket that counts")
    }
}

impl ObjectStore for Counting {
    fn put_opts<'a, 'b, 't>(
        &'a self,
        location: &'b Location,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'t, Result<PutResult>>
    where
        'a: 't,
        'b: 't,
    {
        self.request(self.bucket.put_opts(location, payload, options)).boxed()
    }

    fn put_multipart_opts<'a, 'b, 't>(
        &'a self,
        _: &'b Location,
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
        location: &'b Location,
        options: GetOptions,
    ) -> BoxFuture<'t, Result<GetResult>>
    where
        'a: 't,
        'b: 't,
    {
        self.request(self.bucket.get_opts(location, options)).boxed()
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Location>>,
    ) -> BoxStream<'static, Result<Location>> {
        let this = self.clone();
        let delete = move |location: Result<Location>| {
            let this = this.clone();
            async move {
                let location = location?;
                this.request(this.bucket.delete(&location)).await.map(|()| location)
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, _: Option<&Location>) -> BoxStream<'static, Result<ObjectMeta>> {
        unreachable!("listings come in pages")
    }

    fn list_with_delimiter<'a, 'b, 't>(&'a self, _: Option<&'b Location>) -> BoxFuture<'t, Result<ListResult>>
    where
        'a: 't,
        'b: 't,
    {
        unreachable!("listings come in pages")
    }

    fn copy_opts<'a, 'b, 'c, 't>(
        &'a self,
        _: &'b Location,
        _: &'c Location,
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

impl PaginatedListStore for Counting {
    fn list_paginated<'a, 'b, 't>(
        &'a self,
        _: Option<&'b str>,
        _: PaginatedListOptions,
    ) -> BoxFuture<'t, Result<PaginatedListResult>>
    where
        'a: 't,
        'b: 't,
    {
        let result =
            ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() };
        self.request(async { Ok(PaginatedListResult { result, page_token: None }) }).boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn however_much_is_asked_for_the_store_has_no_more_requests_at_once_than_it_may() {
    let bucket = Counting::default();
    let place =
        Bucket { bucket: "counted".to_owned(), region: Some("nowhere".to_owned()), ..Bucket::default() };
    let kind = StoreKind::S3(place);
    for create_only in [true, false] {
        let store =
            RemoteStore::new(kind.clone(), ID, Credentials::Anonymous, create_only, Patience::Serving);
        let store = store.unwrap().through(Arc::new(bucket.clone()), Arc::new(bucket.clone()));
        store.claim().await.unwrap();
        let bytes = Bytes::from_static(b"0123456789");
        let names: Vec<String> = (0..200).map(name).collect();
        let most = || bucket.most.swap(0, Ordering::SeqCst);

        most();
        let puts = join_all(names.iter().map(|name| store.put(name, bytes.clone()))).await;
        assert!(puts.iter().all(|put| put.is_ok()));
        assert_eq!(most(), REQUESTS_MAX, "puts");
        let gets = join_all(names.iter().map(|name| store.get(name, 2, 3))).await;
        assert!(gets.into_iter().all(|got| got.unwrap() == "234"));
        assert_eq!(most(), REQUESTS_MAX, "reads");
        let lists = join_all((0..200).map(|_| store.list(None))).await;
        assert!(lists.iter().all(|list| list.is_ok()));
        assert_eq!(most(), REQUESTS_MAX, "lists");
        // All kinds together, also of what is not there.
        let deletes = join_all(names.iter().map(|name| store.delete(name)));
        let missing: Vec<String> = (200..400).map(name).collect();
        let reads = join_all(missing.iter().map(|name| store.get(name, 2, 3)));
        let later: Vec<String> = (400..600).map(name).collect();
        let puts = join_all(later.iter().map(|name| store.put(name, bytes.clone())));
        let (deletes, reads, puts) = futures::join!(deletes, reads, puts);
        assert!(deletes.iter().chain(&puts).all(|done| done.is_ok()));
        assert!(reads.into_iter().all(|read| read.unwrap_err().trouble == Trouble::Missing));
        assert_eq!(most(), REQUESTS_MAX, "all of them");
        let again = join_all(later.iter().map(|name| store.delete(name))).await;
        assert!(again.iter().all(|done| done.is_ok()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_longer_than_any_can_be_is_not_read_whole() {
    let bucket = Counting::default();
    let place =
        Bucket { bucket: "counted".to_owned(), region: Some("nowhere".to_owned()), ..Bucket::default() };
    let store =
        RemoteStore::new(StoreKind::S3(place), ID, Credentials::Anonymous, true, Patience::Serving).unwrap();
    let store = store.through(Arc::new(bucket.clone()), Arc::new(bucket.clone()));
    store.claim().await.unwrap();
    store.put(&name(1), Bytes::from_static(b"0123456789")).await.unwrap();
    assert_eq!(store.whole(&name(1), 10).await.unwrap(), "0123456789");
    let error = store.whole(&name(1), 9).await.unwrap_err();
    assert_eq!(error.trouble, Trouble::Damaged);
    assert!(error.reason.contains("10 bytes") && error.reason.contains("more than 9"), "{error}");
}

#[tokio::test]
async fn requests_are_for_the_region_and_go_to_the_host_of_the_bucket() {
    let text = |text: &str| Some(text.to_owned());
    let bucket = Bucket { bucket: "bytes".to_owned(), region: text("eu-north-7"), ..Bucket::default() };
    let own = Bucket { endpoint: text("http://s3.example:9"), ..bucket.clone() };
    let hosted = |bucket: &Bucket| StoreKind::S3(Bucket { virtual_hosted: true, ..bucket.clone() });
    let oracle = StoreKind::Oci(Bucket { account: text("ns"), ..bucket.clone() });
    for (kind, place) in [
        (hosted(&bucket), "https://bytes.s3.eu-north-7.amazonaws.com/"),
        (hosted(&own), "http://bytes.s3.example:9/"),
        (StoreKind::S3(bucket), "https://s3.eu-north-7.amazonaws.com/bytes/"),
        (StoreKind::S3(own), "http://s3.example:9/bytes/"),
        (oracle, "https://ns.compat.objectstorage.eu-north-7.oraclecloud.com/bytes/"),
    ] {
        let (id, secret) = ("AKIA".to_owned(), Secret::new("secret"));
        let key = Credentials::AccessKey { id, secret, session_token: None };
        let store = RemoteStore::new(kind.clone(), ID, key, true, Patience::Asking).unwrap();
        for action in [Action::Get, Action::GetRange(3, 4), Action::Put] {
            let signed = store.sign(action, &name(1), Duration::from_secs(60)).await.unwrap();
            let (url, query) = signed.url.split_once('?').unwrap();
            assert_eq!(url, format!("{place}{}", name(1)), "{kind}");
            let scope = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Credential=")).unwrap();
            assert!(scope.replace("%2F", "/").ends_with("/eu-north-7/s3/aws4_request"), "{kind}: {query}");
        }
    }
}
