//! Block stores in buckets, against servers that others wrote (honest and not) and a double of GCS that fails as told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use bytes::Bytes;
use chronofs_blocks::probe::{Check, Report, Verdict, probe};
use chronofs_blocks::seal::{OpenError, open, seal};
use chronofs_blocks::signed::{Action, Setback, SignedClient, SignedPut};
use chronofs_blocks::store::{MARKER, Patience};
use chronofs_blocks::{ObjectPort, RemoteStore, StorePort, Trouble, object_name};
use chronofs_core::store::{Bucket, Credentials, Secret, StoreKind};
use chronofs_core::volume::Compression;
use chronofs_core::{ObjectId, SessionId, SignedRequest, SliceId};
use chronofs_e2e::gcs_double::{Fault, GcsDouble, service_account};
use chronofs_e2e::object_server::{
    AZURE_ACCOUNT, AZURE_KEY, BUCKET, KEY_ID, Kind, ObjectServer, SECRET, request,
};
use chronofs_e2e::process::free_address;
use chronofs_wire::tls::{IDENTITY_FILE, ServerIdentity};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use uuid::Uuid;

const STORE: Uuid = Uuid::from_u128(1);
const MINUTE: Duration = Duration::from_secs(60);

fn id(n: u64) -> ObjectId {
    ObjectId { incarnation: 1, session: SessionId(2), n }
}

fn name(n: u64) -> String {
    object_name(Uuid::from_u128(9), id(n))
}

fn bucket(endpoint: &str, prefix: &str) -> Bucket {
    Bucket {
        bucket: BUCKET.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        ..Bucket::default()
    }
}

fn access_key() -> Credentials {
    Credentials::AccessKey { id: KEY_ID.to_owned(), secret: Secret::new(SECRET), session_token: None }
}

fn of_server(server: &ObjectServer, prefix: &str, create_only: bool) -> RemoteStore {
    let bucket = bucket(&server.endpoint(), prefix);
    let (kind, credentials) = match server.kind {
        Kind::Azurite => (
            StoreKind::Azure(Bucket { account: Some(AZURE_ACCOUNT.to_owned()), ..bucket }),
            Credentials::AccountKey { key: Secret::new(AZURE_KEY) },
        ),
        Kind::GcpEmulator => {
            (StoreKind::Gcs(bucket), Credentials::ServiceAccount { json: Secret::new(service_account()) })
        }
        // Its key is made up of its name, and no other is taken.
        Kind::S3rver => {
            let (id, secret) = (KEY_ID.to_owned(), Secret::new(KEY_ID));
            let region = Some("us-east-1".to_owned());
            let key = Credentials::AccessKey { id, secret, session_token: None };
            (StoreKind::S3(Bucket { region, ..bucket }), key)
        }
        _ => (StoreKind::S3(Bucket { region: Some("us-east-1".to_owned()), ..bucket }), access_key()),
    };
    RemoteStore::new(kind, STORE, credentials, create_only, Patience::Asking).unwrap()
}

fn of_double(double: &GcsDouble, create_only: bool) -> RemoteStore {
    let credentials = Credentials::ServiceAccount { json: Secret::new(service_account()) };
    let kind = StoreKind::Gcs(bucket(&double.endpoint(), "a/b"));
    RemoteStore::new(kind, STORE, credentials, create_only, Patience::Asking).unwrap()
}

/// All but what a protocol does not have.
fn assert_honest(report: &Report) {
    assert_eq!(report.refusal(), None);
    assert_eq!(report.weaknesses(), Vec::<String>::new());
    assert!(report.create_only && report.parallel == 32, "{report:?}");
    let json = serde_json::to_string(report).unwrap();
    assert_eq!(&serde_json::from_str::<Report>(&json).unwrap(), report);
}

/// What every store must do, however weak it is.
async fn keeps_objects(store: &RemoteStore) {
    store.claim().await.unwrap();
    store.claim().await.unwrap();
    store.check_marker().await.unwrap();
    let bytes = Bytes::from_static(b"0123456789");
    for _ in 0..2 {
        store.put(&name(1), bytes.clone()).await.unwrap();
    }
    assert_eq!(store.get(&name(1), 0, 10).await.unwrap(), bytes);
    assert_eq!(store.get(&name(1), 3, 4).await.unwrap(), "3456");
    for other in [&b"other"[..], b"012345678", b"0123456789x"] {
        let refused = store.put(&name(1), Bytes::copy_from_slice(other)).await.unwrap_err();
        assert_eq!(refused.trouble, Trouble::Damaged, "{refused}");
    }
    assert_eq!(store.get(&name(1), 0, 10).await.unwrap(), bytes);
    for (offset, len) in [(0, 11), (9, 2), (10, 1), (1000, 5)] {
        let cut = store.get(&name(1), offset, len).await.unwrap_err();
        assert_eq!(cut.trouble, Trouble::Damaged, "{offset} {len}: {cut}");
    }
    let missing = store.get(&name(2), 0, 1).await.unwrap_err();
    assert_eq!(missing.trouble, Trouble::Missing, "{missing}");
    assert!(missing.to_string().contains(&name(2)), "{missing}");
    for stranger in [MARKER, "../x", ""] {
        assert!(
            store.get(stranger, 0, 1).await.is_err() && store.put(stranger, bytes.clone()).await.is_err()
        );
    }
    let large: Bytes = (0..5 << 20).map(|i: u32| (i / 7) as u8).collect();
    store.put(&name(3), large.clone()).await.unwrap();
    let middle = 3 << 20;
    assert_eq!(store.get(&name(3), middle, 1 << 20).await.unwrap(), large[middle as usize..][..1 << 20]);
    assert_eq!(listed(store).await, [(name(1), 10), (name(3), 5 << 20)].into());
    for _ in 0..2 {
        store.delete(&name(1)).await.unwrap();
    }
    assert!(store.delete(MARKER).await.is_err(), "only objects are deleted");
    assert_eq!(listed(store).await, [(name(3), 5 << 20)].into());
    assert_eq!(store.get(&name(1), 0, 1).await.unwrap_err().trouble, Trouble::Missing);
}

async fn listed(store: &RemoteStore) -> BTreeMap<String, u64> {
    let (mut found, mut from) = (BTreeMap::new(), None);
    loop {
        let page = store.list(from).await.unwrap();
        found.extend(page.names);
        match page.next {
            Some(next) => from = Some(next),
            None => return found,
        }
    }
}

/// Bytes go both ways without credentials, and only as far as was signed.
async fn serves_signed_requests(store: &RemoteStore, ranges: bool) {
    let client = SignedClient::new(None).unwrap();
    let bytes = Bytes::from_static(b"0123456789");
    let put = store.sign(Action::Put, &name(50), MINUTE).await.unwrap();
    assert_eq!(client.put(&put, &name(50), bytes.clone()).await.unwrap(), SignedPut::Done);
    let get = store.sign(Action::Get, &name(50), MINUTE).await.unwrap();
    assert_eq!(client.get(&get, &name(50), 0, 10).await.unwrap(), bytes);
    assert_eq!(client.get(&get, &name(50), 3, 4).await.unwrap(), "3456");
    for (offset, len) in [(5, 6), (10, 1)] {
        let cut = client.get(&get, &name(50), offset, len).await.unwrap_err();
        assert_eq!((cut.error.trouble, cut.setback), (Trouble::Damaged, Setback::Final));
    }
    let again = client.put(&put, &name(50), Bytes::from_static(b"other")).await.unwrap();
    assert_eq!(again, SignedPut::NameTaken);
    assert_eq!(client.get(&get, &name(50), 0, 10).await.unwrap(), bytes);
    let missing = store.sign(Action::Get, &name(51), MINUTE).await.unwrap();
    let missing = client.get(&missing, &name(51), 0, 1).await.unwrap_err();
    assert_eq!((missing.error.trouble, missing.setback), (Trouble::Missing, Setback::Final));
    if ranges {
        let get = store.sign(Action::GetRange(3, 4), &name(50), MINUTE).await.unwrap();
        assert_eq!(client.get(&get, &name(50), 3, 4).await.unwrap(), "3456");
        assert!(client.get(&get, &name(50), 0, 10).await.is_err(), "its header says which bytes");
        let covered = get.url.to_lowercase().contains("signedheaders=host%3brange");
        assert!(covered, "the signature covers the range: {}", get.url);
    }
    let (shown, query) = (format!("{get:?}"), get.url.split_once('?').unwrap().1);
    assert!(shown.contains(&name(50)) && !shown.contains(query), "{shown}");
    assert!(store.sign(Action::Get, MARKER, MINUTE).await.is_err(), "only objects are signed for");
}

#[tokio::test]
async fn moto_is_found_honest_and_keeps_objects() {
    let server = ObjectServer::start(Kind::Moto);
    assert_honest(&probe(&of_server(&server, "probed/here", false)).await);
    for (prefix, create_only) in [("", true), ("weak", false)] {
        keeps_objects(&of_server(&server, prefix, create_only)).await;
    }
    serves_signed_requests(&of_server(&server, "weak", true), true).await;
}

#[tokio::test]
async fn azurite_is_found_honest_and_keeps_objects() {
    let server = ObjectServer::start(Kind::Azurite);
    let report = probe(&of_server(&server, "probed", false)).await;
    assert_eq!(
        report.verdict(Check::SuffixRange),
        Some(Verdict::Refused),
        "Azure has none, and none is used"
    );
    assert_honest(&report);
    keeps_objects(&of_server(&server, "", true)).await;
    serves_signed_requests(&of_server(&server, "", true), false).await;
}

#[tokio::test]
async fn rclone_is_found_to_lie_about_create_only_puts_and_to_give_no_ranges() {
    let server = ObjectServer::start(Kind::Rclone);
    let report = probe(&of_server(&server, "probed", true)).await;
    assert_eq!(report.verdict(Check::CreateOnly), Some(Verdict::Lies), "{report:?}");
    assert!(
        !report.create_only && report.weaknesses().iter().any(|w| w.contains("create-only")),
        "{report:?}"
    );
    // It sends the part of a range with the status of the whole.
    assert!(report.refusal().unwrap().contains("ranges"), "{report:?}");
}

#[tokio::test]
async fn servers_that_give_other_bytes_or_answers_than_they_should_are_refused() {
    // The last is not asked for more once it is not known what it did with a put.
    for (kind, why, create_only) in
        [(Kind::S3rver, "ranges", Some(Verdict::Lies)), (Kind::GcpEmulator, "write", None)]
    {
        let server = ObjectServer::start(kind);
        let report = probe(&of_server(&server, "probed", true)).await;
        let refusal = report.refusal().unwrap_or_else(|| panic!("{kind:?} was taken: {report:?}"));
        assert!(refusal.contains(why), "{kind:?}: {report:?}");
        assert_eq!(report.verdict(Check::CreateOnly), create_only, "{kind:?}: {report:?}");
    }
}

#[tokio::test]
async fn the_double_of_gcs_is_found_honest_and_keeps_objects() {
    let double = GcsDouble::start();
    assert_honest(&probe(&of_double(&double, false)).await);
    assert_eq!(double.names(), Vec::<String>::new(), "a probe leaves nothing behind");
    keeps_objects(&of_double(&double, true)).await;
    serves_signed_requests(&of_double(&double, true), true).await;
    assert!(double.names().contains(&format!("{BUCKET}/a/b/{}", name(3))));
}

#[tokio::test]
async fn a_put_that_worked_and_was_answered_with_an_error_is_recognised() {
    for create_only in [true, false] {
        let double = GcsDouble::start();
        let store = of_double(&double, create_only);
        store.claim().await.unwrap();
        double.set_fault(Fault::PutsAnswerErrors);
        let first = store.put(&name(1), Bytes::from_static(b"kept")).await;
        // A create-only put is found out by its own second try, any other by the next put.
        assert_eq!(first.is_ok(), create_only, "{first:?}");
        let before = double.puts();
        store.put(&name(1), Bytes::from_static(b"kept")).await.unwrap();
        assert!(create_only || double.puts() == before, "nothing is overwritten");
        let other = store.put(&name(1), Bytes::from_static(b"other")).await.unwrap_err();
        assert_eq!(other.trouble, Trouble::Damaged, "{other}");
    }
}

#[tokio::test]
async fn what_a_store_says_to_a_signed_request_tells_what_to_do_next() {
    let double = GcsDouble::start();
    let store = of_double(&double, true);
    store.claim().await.unwrap();
    store.put(&name(1), Bytes::from_static(b"0123456789")).await.unwrap();
    let client = SignedClient::new(None).unwrap();
    let get = store.sign(Action::Get, &name(1), MINUTE).await.unwrap();
    let put = store.sign(Action::Put, &name(2), MINUTE).await.unwrap();
    for (fault, wanted) in [
        (Fault::SignedRefused, Setback::Refused),
        (Fault::SignedAway, Setback::Passing),
        (Fault::ErrorPages, Setback::Final),
    ] {
        double.set_fault(fault);
        let failed = client.get(&get, &name(1), 0, 4).await.unwrap_err();
        assert_eq!(failed.setback, wanted, "{fault:?}: {failed:?}");
        assert!(!failed.error.to_string().contains("Signature="), "{failed:?}");
    }
    double.set_fault(Fault::PutsAnswerErrors);
    let failed = client.put(&put, &name(2), Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(failed.setback, Setback::Passing);
    let again = client.put(&put, &name(2), Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(again, SignedPut::NameTaken, "the first got that far");
    let nobody =
        SignedRequest { url: format!("http://{}/x?Signature=1", free_address()), headers: Vec::new() };
    let failed = client.get(&nobody, &name(1), 0, 4).await.unwrap_err();
    assert_eq!(failed.setback, Setback::Unreachable);
    assert!(!failed.error.to_string().contains("Signature="), "{failed:?}");
}

/// Answers one request for bytes 0 to 3 over TLS, with a certificate of its own.
async fn serve_once(listener: tokio::net::TcpListener, identity: ServerIdentity) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let acceptor = tokio_rustls::TlsAcceptor::from(identity.server_config().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let answer = b"HTTP/1.1 206 .\r\nContent-Range: bytes 0-3/4\r\nContent-Length: 4\r\n\r\n0123";
        let _ = stream.write_all(answer).await;
        let _ = stream.shutdown().await;
    }
}

#[tokio::test]
async fn a_signed_request_goes_to_a_store_with_a_certificate_that_its_ca_file_names_and_to_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let identity = ServerIdentity::load_or_make(folder.path(), &["localhost".to_owned()]).unwrap();
    let pem = std::fs::read_to_string(folder.path().join(IDENTITY_FILE)).unwrap();
    let pem = &pem[pem.find("-----BEGIN CERTIFICATE").unwrap()..];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/o?Signature=1", listener.local_addr().unwrap().port());
    tokio::spawn(serve_once(listener, identity));
    let request = SignedRequest { url, headers: Vec::new() };
    let strange = SignedClient::new(None).unwrap().get(&request, &name(1), 0, 4).await.unwrap_err();
    assert_eq!(strange.setback, Setback::Unreachable, "{strange:?}");
    let known = SignedClient::new(Some(pem)).unwrap().get(&request, &name(1), 0, 4).await;
    assert_eq!(known.unwrap(), "0123");
}

#[tokio::test]
async fn an_error_page_served_as_data_is_never_given_as_bytes() {
    let double = GcsDouble::start();
    let store = of_double(&double, true);
    store.claim().await.unwrap();
    let slice = SliceId { object: id(1), index: 0 };
    let bytes: Bytes = (0..5000).map(|i: u32| (i * i) as u8).collect();
    let (sealed, stored) = seal(slice, Compression::None, &bytes);
    store.put(&name(1), stored.clone()).await.unwrap();
    double.set_fault(Fault::ErrorPages);
    let page = store.get(&name(1), 0, sealed.stored_len).await.unwrap_err();
    assert_eq!(page.trouble, Trouble::Unavailable, "{page}");
    // What the transport cannot tell, the checksum does.
    double.set_fault(Fault::WrongBytes);
    let wrong = store.get(&name(1), 0, sealed.stored_len).await.unwrap();
    assert!(matches!(open(&sealed, wrong), Err(OpenError::Checksum { .. })));
    double.set_fault(Fault::None);
    let right = store.get(&name(1), 0, sealed.stored_len).await.unwrap();
    assert_eq!(open(&sealed, right).unwrap(), bytes);
}

#[tokio::test]
async fn the_probe_finds_what_makes_a_store_useless_or_weak() {
    let double = GcsDouble::start();
    for (fault, check) in [(Fault::ErrorPages, Check::Write), (Fault::WrongBytes, Check::Ranges)] {
        double.set_fault(fault);
        let report = probe(&of_double(&double, false)).await;
        assert!(report.refusal().is_some(), "{fault:?}: {report:?}");
        assert_eq!(report.verdict(check), Some(Verdict::Lies), "{fault:?}: {report:?}");
    }
    double.set_fault(Fault::ListsAreCut);
    let report = probe(&of_double(&double, false)).await;
    assert_eq!(report.verdict(Check::List), Some(Verdict::Lies), "{report:?}");
    assert!(
        report.refusal().unwrap().contains("list: a list of 32 objects in 1 pages lacks 22"),
        "{report:?}"
    );
    double.set_fault(Fault::PutsAnswerErrors);
    let report = probe(&of_double(&double, false)).await;
    assert!(report.refusal().unwrap().contains("503"), "{report:?}");
}

#[tokio::test]
async fn anothers_place_and_a_place_in_use_are_not_claimed() {
    let server = ObjectServer::start(Kind::Moto);
    let store = of_server(&server, "mine", true);
    assert_eq!(store.check_marker().await.unwrap_err().trouble, Trouble::Missing);
    store.claim().await.unwrap();
    let kind = store_kind(&server, "mine");
    let other = RemoteStore::new(kind, Uuid::from_u128(2), access_key(), true, Patience::Asking).unwrap();
    let put = other.put(&name(1), Bytes::from_static(b"x")).await.unwrap_err();
    assert!(put.trouble == Trouble::Unavailable && put.to_string().contains(&STORE.to_string()), "{put}");
    assert_eq!(store.get(&name(1), 0, 1).await.unwrap_err().trouble, Trouble::Missing, "nothing was put");
    for refused in [other.claim().await.unwrap_err(), other.check_marker().await.unwrap_err()] {
        assert!(
            refused.trouble == Trouble::Damaged && refused.to_string().contains(&STORE.to_string()),
            "{refused}"
        );
    }
    let (status, _) = request(server.address, "PUT", &format!("/{BUCKET}/full/letter"), &[]);
    assert_eq!(status, 200);
    let refused = of_server(&server, "full", true).claim().await.unwrap_err();
    assert!(refused.to_string().contains("full/letter"), "{refused}");
}

fn store_kind(server: &ObjectServer, prefix: &str) -> StoreKind {
    let region = Some("us-east-1".to_owned());
    StoreKind::S3(Bucket { region, ..bucket(&server.endpoint(), prefix) })
}

#[tokio::test]
async fn a_store_out_of_reach_or_without_its_bucket_is_unavailable_in_time_and_tells_no_secret() {
    let mut server = ObjectServer::start(Kind::Moto);
    let store = of_server(&server, "p", true);
    store.claim().await.unwrap();
    store.put(&name(1), Bytes::from_static(b"x")).await.unwrap();
    server.kill();
    let began = Instant::now();
    let mut errors = vec![
        store.put(&name(2), Bytes::from_static(b"x")).await.unwrap_err(),
        store.get(&name(1), 0, 1).await.unwrap_err(),
        store.check_marker().await.unwrap_err(),
    ];
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    // Moto has forgotten everything: the bucket is gone, and so nothing counts as missing.
    server.resume();
    errors.push(store.put(&name(2), Bytes::from_static(b"x")).await.unwrap_err());
    errors.push(store.get(&name(1), 0, 1).await.unwrap_err());
    let kind = StoreKind::Gcs(bucket(&format!("http://{}", free_address()), ""));
    let account = Credentials::ServiceAccount { json: Secret::new(SECRET) };
    errors.push(RemoteStore::new(kind, STORE, account, true, Patience::Asking).unwrap_err());
    for error in errors {
        assert_eq!(error.trouble, Trouble::Unavailable, "{error}");
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
    }
    assert!(!format!("{store:?}").contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_never_answered_stalls_nobody_and_costs_few_more() {
    let double = GcsDouble::start();
    let store = of_double(&double, true);
    store.claim().await.unwrap();
    store.put(&name(1), Bytes::from_static(b"0123456789")).await.unwrap();
    for _ in 0..200 {
        assert_eq!(store.get(&name(1), 2, 3).await.unwrap(), "234");
    }
    let known = store.hedges().sent;
    double.set_fault(Fault::ReadsHang);
    let began = Instant::now();
    for _ in 0..100 {
        let read = Instant::now();
        assert_eq!(store.get(&name(1), 2, 3).await.unwrap(), "234");
        // Longer than the longest delay, shorter than any time-out.
        assert!(read.elapsed() < Duration::from_secs(4), "{:?}", read.elapsed());
    }
    assert!(began.elapsed() < Duration::from_secs(9), "the delay follows the store: {:?}", began.elapsed());
    let hedges = store.hedges();
    assert!(hedges.won >= 4 && hedges.sent <= known + 10, "{hedges:?}, {known} before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_has_too_much_to_do_gets_no_read_twice() {
    let double = GcsDouble::start();
    let store = of_double(&double, true);
    store.claim().await.unwrap();
    store.put(&name(1), Bytes::from_static(b"0123456789")).await.unwrap();
    for _ in 0..100 {
        assert_eq!(store.get(&name(1), 2, 3).await.unwrap(), "234");
    }
    double.set_fault(Fault::ReadsBusyOnce);
    assert_eq!(store.get(&name(1), 2, 3).await.unwrap(), "234");
    let sent = store.hedges().sent;
    double.set_fault(Fault::ReadsHang);
    // One of them hangs until its time is over.
    let mut failed = 0;
    for _ in 0..25 {
        match store.get(&name(1), 2, 3).await {
            Ok(bytes) => assert_eq!(bytes, "234"),
            Err(error) => {
                assert_eq!(error.trouble, Trouble::Unavailable, "{error}");
                failed += 1;
            }
        }
    }
    assert_eq!((failed, store.hedges().sent), (1, sent));
}
