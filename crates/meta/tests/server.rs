//! The server over real TLS connections, in this process, with a raw client.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod common;

use bytes::Bytes;
use chronofs_core::ops::{RenameMode, Reply, Request};
use chronofs_core::slice::{Codec, NewSlice, Place, Seal, Slice};
use chronofs_core::{Errno, Ino, ObjectId, SliceId, Version};
use chronofs_wire::message::{Hello, HelloAnswer, RefusalReason, ToClient, ToServer};
use common::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_makes_it_finds_again_after_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let mut client = Client::open(temp.path(), server.address, hello(1)).await.unwrap();
    assert!(!client.welcome.shared && !client.welcome.replay);
    let dir = client.mkdir(Ino::ROOT, "dir").await.unwrap();
    let file = client.create(dir.ino, "file").await.unwrap();
    assert_eq!(client.create(dir.ino, "file").await, Err(Errno::EEXIST));
    let synced = client.sync().await;
    let (session, boot) = (client.session(), client.welcome.boot);
    server.stop().await.unwrap();
    while let Some(frame) = client.next().await {
        client.other.push(frame);
    }
    assert!(client.other.contains(&ToClient::Closing));

    let server = start(temp.path()).await;
    let again = Hello { resume: Some(session), seen: synced, ..hello(1) };
    let mut client = Client::open(temp.path(), server.address, again).await.unwrap();
    assert_eq!(client.session(), session);
    assert_ne!(client.welcome.boot, boot);
    client.next_id = 100;
    assert_eq!(client.lookup(dir.ino, "file").await.unwrap().ino, file.ino);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_comes_twice_is_done_once() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let mut client = Client::open(temp.path(), server.address, hello(1)).await.unwrap();
    client.send_call(1, create(Ino::ROOT, "a", true)).await;
    let first = client.answer(1).await;
    let session = client.session();
    drop(client);
    let again = Hello { resume: Some(session), ..hello(1) };
    let mut client = Client::open(temp.path(), server.address, again).await.unwrap();
    client.send_call(1, create(Ino::ROOT, "a", true)).await;
    assert_eq!(client.answer(1).await, first);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_come_in_is_told_why() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let mut owner = Client::open(temp.path(), server.address, hello(1)).await.unwrap();
    owner.sync().await;
    let with_token = |id: u128| Hello { token_id: uuid::Uuid::from_u128(id), ..hello(9) };
    let old = Hello { protocol_min: 90, protocol_max: 99, ..hello(9) };
    let wrong = Hello { token_secret: Bytes::from_static(b"x"), ..hello(9) };
    let stranger = Hello { volume: uuid::Uuid::from_u128(0x99), ..hello(9) };
    let past = Hello { at: Some(Version(5)), ..with_token(4) };
    let over = Hello { resume: Some(chronofs_core::SessionId(77)), ..hello(9) };
    for (hello, reason, word) in [
        (old, RefusalReason::Protocol, "update"),
        (wrong, RefusalReason::Token, "unknown"),
        (with_token(8), RefusalReason::Token, "unknown"),
        (with_token(3), RefusalReason::Token, "over"),
        (with_token(2), RefusalReason::Token, "/home/ann"),
        (stranger, RefusalReason::Token, "another volume"),
        (past, RefusalReason::Token, "past"),
        (over, RefusalReason::SessionOver, "over"),
    ] {
        // Only one that passes the checks would have to wait until the owner lets go of its caches.
        owner.send(ToServer::Renew { floor: 0 }).await;
        let refusal = match hello.token_id.as_u128() {
            2 => {
                owner.send(ToServer::SharedAck).await;
                let (mut frames, mut output) = connect(temp.path(), server.address).await;
                send(&mut output, &hello).await;
                while !matches!(owner.next().await, Some(ToClient::Shared { shared: true })) {}
                owner.send(ToServer::SharedAck).await;
                let answer: HelloAnswer = frames.next().await.unwrap().unwrap();
                answer.unwrap_err()
            }
            _ => Client::open(temp.path(), server.address, hello).await.err().expect("a refusal"),
        };
        assert_eq!(refusal.reason, reason, "{}", refusal.message);
        assert!(refusal.message.contains(word), "{}", refusal.message);
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_shown_as_it_was_and_refused_where_it_cannot_be_had() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let mut client = Client::open(temp.path(), server.address, hello(1)).await.unwrap();
    client.create(Ino::ROOT, "old").await.unwrap();
    let instant = client.sync().await;
    client.call(Request::Unlink { parent: Ino::ROOT, name: name("old") }).await.unwrap();
    let past = Hello { at: Some(instant), ..hello(2) };
    let mut past = Client::open(temp.path(), server.address, past).await.unwrap();
    assert!(past.welcome.read_only && past.welcome.at == Some(instant));
    past.lookup(Ino::ROOT, "old").await.unwrap();
    assert_eq!(past.create(Ino::ROOT, "new").await, Err(Errno::EROFS));
    assert_eq!(client.lookup(Ino::ROOT, "old").await, Err(Errno::ENOENT));
    for at in [Version(1), Version(u64::MAX / 2)] {
        let hello = Hello { at: Some(at), ..hello(3) };
        let refusal = Client::open(temp.path(), server.address, hello).await.err().unwrap();
        let RefusalReason::Instant { earliest, latest } = refusal.reason else { panic!("{refusal:?}") };
        assert!(earliest < latest && refusal.message.contains(&earliest.to_string()), "{}", refusal.message);
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_session_waits_until_the_first_lets_go_of_its_caches() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let mut first = Client::open(temp.path(), server.address, hello(1)).await.unwrap();
    let (path, address) = (temp.path().to_owned(), server.address);
    let second =
        tokio::spawn(async move { Client::open(&path, address, hello(2)).await.map(|c| c.welcome.shared) });
    assert_eq!(first.next().await, Some(ToClient::Shared { shared: true }));
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!second.is_finished());
    first.send(ToServer::SharedAck).await;
    assert_eq!(second.await.unwrap(), Ok(true));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_go_through_the_server_only_under_granted_names() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let store = chronofs_blocks::BlockStore::create(&temp.path().join("blocks"), uuid::Uuid::from_u128(0x22))
        .unwrap();
    server.stores.set([(VOLUME, std::sync::Arc::new(store) as _)].into());
    let mut client = Client::open(temp.path(), server.address, hello(1)).await.unwrap();
    let own = ObjectId { incarnation: client.welcome.incarnation, session: client.session(), n: 5 };
    let beyond = ObjectId { n: client.welcome.grant.1, ..own };
    let other = ObjectId { session: chronofs_core::SessionId(99), ..own };
    let bytes = Bytes::from_static(b"bytes of the object");
    for (object, result) in
        [(own, Ok(Bytes::new())), (beyond, Err(Errno::EACCES)), (other, Err(Errno::EACCES))]
    {
        let name = chronofs_blocks::object_name(VOLUME, object);
        client.send(ToServer::PutObject { id: 1, name, bytes: bytes.clone() }).await;
        assert_eq!(client.next().await, Some(ToClient::Object { id: 1, result }));
    }
    assert_eq!(client.get(Ino::ROOT, own, 0, 19).await, Err(Errno::ESTALE), "no file shows it");
    server.stop().await.unwrap();
}

/// A slice of an object, as a client publishes it.
fn stored(object: ObjectId, at: u64, stored_len: u32) -> NewSlice {
    let id = SliceId { object, index: 0 };
    let seal = Seal { id, codec: Codec::Raw, stored_len, full_len: stored_len, crc32c: 0 };
    let slice = Slice { offset: 0, len: stored_len, skip: 0, place: Place::Object(seal, at) };
    NewSlice { block: 0, slice, staged: None }
}

impl Client {
    /// Stores an object of 20 bytes and publishes eight of them, from 4 on, as the content of `ino`.
    async fn fill(&mut self, ino: Ino, n: u64) -> ObjectId {
        let object = ObjectId { incarnation: self.welcome.incarnation, session: self.session(), n };
        let name = chronofs_blocks::object_name(VOLUME, object);
        let bytes = Bytes::from(format!("{n:04}hellohello{n:06}"));
        self.send(ToServer::PutObject { id: n, name, bytes }).await;
        // What else is told meanwhile, of durability, may come first.
        let put = loop {
            match self.next().await {
                Some(ToClient::Object { result, .. }) => break result,
                Some(_) => {}
                None => panic!("no answer"),
            }
        };
        put.unwrap();
        self.call(Request::Publish {
            ino,
            slices: vec![stored(object, 4, 8)],
            size_min: Some(8),
            mtime_ns: None,
            kill_priv: false,
            merge: None,
        })
        .await
        .unwrap();
        object
    }

    async fn get(&mut self, ino: Ino, object: ObjectId, offset: u64, len: u32) -> Result<Bytes, Errno> {
        self.send(ToServer::GetObject { id: 7, ino, block: 0, object, offset, len }).await;
        loop {
            match self.next().await {
                Some(ToClient::Object { result, .. }) => return result,
                Some(_) => {}
                None => panic!("no answer"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_folder_reads_what_its_files_show_and_nothing_else_of_the_volumes_objects() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let store = chronofs_blocks::BlockStore::create(&temp.path().join("blocks"), uuid::Uuid::from_u128(0x22))
        .unwrap();
    server.stores.set([(VOLUME, std::sync::Arc::new(store) as _)].into());
    let mut all = Client::open(temp.path(), server.address, hello(1)).await.unwrap();
    let home = all.mkdir(Ino::ROOT, "home").await.unwrap().ino;
    let ann = all.mkdir(home, "ann").await.unwrap().ino;
    let theirs = all.create(home, "theirs").await.unwrap().ino;
    let secret = all.fill(theirs, 1).await;
    let mut files = Vec::new();
    for (n, name) in (2..).zip(["overwritten", "unlinked", "moved", "held"]) {
        let ino = all.create(ann, name).await.unwrap().ino;
        files.push((ino, all.fill(ino, n).await));
    }
    let [(over, first), (unlinked, orphan), (moved, gone), (held, kept)] = files[..] else { panic!() };
    let then = all.sync().await;
    let hello = Hello { token_id: uuid::Uuid::from_u128(2), ..hello(2) };
    all.send(ToServer::SharedAck).await;
    let mut client = Client::open(temp.path(), server.address, hello.clone()).await.unwrap();
    for (ino, object) in &files {
        assert_eq!(client.get(*ino, *object, 4, 8).await.as_deref(), Ok(&b"hellohel"[..]));
    }
    let refused = Err(Errno::ESTALE);
    assert_eq!(client.get(theirs, secret, 4, 8).await, refused, "a file of others");
    assert_eq!(client.get(held, secret, 4, 8).await, refused, "an object of others as one's own");
    for (offset, len) in [(0, 20), (4, 9), (3, 8), (12, 8), (4, 0)] {
        assert_eq!(client.get(held, kept, offset, len).await, refused, "what else is in the object");
    }
    assert_eq!(all.get(theirs, secret, 4, 8).await.as_deref(), Ok(&b"hellohel"[..]));
    // What it has open stays its own without a name, what it has not does not.
    client.call(Request::Open { ino: held, read: true, write: false }).await.unwrap();
    all.call(Request::Open { ino: unlinked, read: true, write: false }).await.unwrap();
    for file in ["unlinked", "held"] {
        all.call(Request::Unlink { parent: ann, name: name(file) }).await.unwrap();
    }
    let rename = Request::Rename {
        from: ann,
        name: name("moved"),
        to: home,
        new_name: name("moved"),
        mode: RenameMode::Replace,
    };
    all.call(rename).await.unwrap();
    let newer = all.fill(over, 9).await;
    assert_eq!(client.get(unlinked, orphan, 4, 8).await, refused);
    assert_eq!(client.get(moved, gone, 4, 8).await, refused);
    assert!(client.get(held, kept, 4, 8).await.is_ok());
    assert!(client.get(over, newer, 4, 8).await.is_ok());
    // In the past it sees what was there then.
    let past = Hello { at: Some(then), client: 3, ..hello };
    let mut past = Client::open(temp.path(), server.address, past).await.unwrap();
    for (ino, object) in [(over, first), (unlinked, orphan), (moved, gone), (held, kept)] {
        assert_eq!(past.get(ino, object, 4, 8).await.as_deref(), Ok(&b"hellohel"[..]));
    }
    assert_eq!(past.get(theirs, secret, 4, 8).await, refused);
    assert_eq!(past.get(over, newer, 4, 8).await, refused, "it was not there then");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_frame_is_refused_and_the_connection_ends() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let (mut frames, mut output) = connect(temp.path(), server.address).await;
    send(&mut output, &"not a hello").await;
    let answer: HelloAnswer = frames.next().await.unwrap().unwrap();
    assert_eq!(answer.unwrap_err().reason, RefusalReason::Protocol);
    assert!(frames.next::<ToClient>().await.unwrap().is_none());
    let (mut frames, mut output) = connect(temp.path(), server.address).await;
    send(&mut output, &hello(1)).await;
    let answer: HelloAnswer = frames.next().await.unwrap().unwrap();
    answer.unwrap();
    let frame = frames.next::<ToClient>().await.unwrap();
    assert!(matches!(frame, Some(ToClient::Window { .. })), "{frame:?}");
    send(&mut output, &(200u8, 1u8)).await;
    let frame = frames.next::<ToClient>().await.unwrap();
    assert!(matches!(frame, Some(ToClient::Refused { .. })), "{frame:?}");
    assert!(frames.next::<ToClient>().await.unwrap().is_none());
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlinked_file_lives_until_its_last_close() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let mut client = Client::open(temp.path(), server.address, hello(1)).await.unwrap();
    let file = attr(client.call(create(Ino::ROOT, "a", true)).await.unwrap());
    client.call(Request::Unlink { parent: Ino::ROOT, name: name("a") }).await.unwrap();
    assert_eq!(attr(client.call(Request::GetAttr { ino: file.ino }).await.unwrap()).nlink, 0);
    assert_eq!(client.call(Request::Close { ino: file.ino, count: 1 }).await, Ok(Reply::Done));
    let mut gone = false;
    for _ in 0..50 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        gone = client
            .call(Request::StatFs)
            .await
            .is_ok_and(|reply| matches!(reply, Reply::StatFs(figures) if figures.used_inodes == 1));
        if gone {
            break;
        }
    }
    assert!(gone, "the file was not freed");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_status_and_figures_are_served() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let mut client = Client::open(temp.path(), server.address, hello(1)).await.unwrap();
    client.create(Ino::ROOT, "a").await.unwrap();
    assert_eq!(client.create(Ino::ROOT, "a").await, Err(Errno::EEXIST));
    let http = server.http_address.unwrap();
    let status = chronofs_meta::status(http).await.unwrap();
    assert_eq!((status.figures.sessions, status.volumes.len(), status.assigned), (1, 1, true));
    let figures = get(http, "/metrics").await;
    assert!(
        figures.contains("errno=\"EEXIST\",kind=\"create\"")
            || figures.contains("kind=\"create\",errno=\"EEXIST\""),
        "{figures}"
    );
    assert!(get(http, "/readyz").await.ends_with("ready\n"));
    assert!(get(http, "/healthz").await.ends_with("ok\n"));
    server.stop().await.unwrap();
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_a_folder_or_a_port_is_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let server = start(temp.path()).await;
    let error = chronofs_meta::Server::start(&config(temp.path()), false).await.err().unwrap();
    assert!(error.to_string().contains("in use"), "{error:#}");
    let other = tempfile::tempdir().unwrap();
    let taken = chronofs_meta::StartConfig { bind_addr: server.address, ..config(other.path()) };
    let error = chronofs_meta::Server::start(&taken, false).await.err().unwrap();
    assert!(error.to_string().contains("--bind-addr"), "{error:#}");
    server.stop().await.unwrap();
}
