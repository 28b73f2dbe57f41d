//! Signed requests: who is given them, and for what.

use super::*;
use chronofs_core::ObjectId;
use chronofs_core::store::{Bucket, Credentials, Secret, StoreKind};
use chronofs_meta::machine::{ObjectAction, SignFor};
use chronofs_wire::message::StoreAccess;
use common::VOLUME;
use uuid::Uuid;

/// A server whose volume is in a bucket.
fn in_bucket(kind: fn(Bucket) -> StoreKind, credentials: Credentials, create_only: bool) -> Server {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    let store = &mut assignment.volumes[0].store;
    store.kind = kind(Bucket { ca_pem: Some("PEM".to_owned()), ..Bucket::default() });
    (store.credentials, store.create_only) = (credentials, create_only);
    assignment.revision = 2;
    server.run(Event::Assignment(Box::new(assignment)));
    server.run(Event::Tick);
    server
}

fn access_key() -> Credentials {
    Credentials::AccessKey { id: "id".to_owned(), secret: Secret::new("secret"), session_token: None }
}

fn account_key() -> Credentials {
    Credentials::AccountKey { key: Secret::new("secret") }
}

/// Makes the folder that token 2 is confined to, then opens sessions with tokens 1 (whole), 2 and 4 (no past).
fn open_all(server: &mut Server) -> [Box<Welcome>; 3] {
    let first = server.open(1, hello(1)).unwrap();
    let mut parent = Ino::ROOT;
    for (id, name) in [(1, "home"), (2, "ann")] {
        let Request::Create { parent: _, name, mode, umask, open, exclusive, .. } =
            create(parent, name, false)
        else {
            unreachable!()
        };
        let node = chronofs_core::ops::NewNode::Dir;
        let request = Request::Create { parent, name, node, mode, umask, open, exclusive };
        parent = attr(server.call(1, id, request).1.unwrap()).ino;
    }
    let mut others = [2, 4].into_iter().map(|token| {
        let hello = Hello { token_id: Uuid::from_u128(token), ..hello(token) };
        let at_once = server.open(token as u64, hello);
        at_once.unwrap_or_else(|| {
            server.frame(1, ToServer::SharedAck);
            welcome(server.durable()).unwrap()
        })
    });
    [first, others.next().unwrap(), others.next().unwrap()]
}

/// How the answer to a question for slices is to be signed.
fn sign_of(server: &mut Server, conn: u64) -> Option<SignFor> {
    let request = Request::Slices { ino: Ino::ROOT, first: 0, count: 1, staged: false };
    let call = Call { id: 9, acked: 0, caller: Caller::ROOT, request };
    let effects = server.run(Event::Call(ConnId(conn), call));
    let job = effects.into_iter().find_map(|effect| match effect {
        Effect::Read(job) => Some(job),
        _ => None,
    });
    job.expect("a read for another thread").sign
}

#[test]
fn every_session_of_a_bucket_whose_signatures_cover_ranges_reads_just_what_it_is_told() {
    let mut server = in_bucket(StoreKind::S3, access_key(), true);
    for welcome in open_all(&mut server) {
        let StoreAccess::Signed { use_ms, ca_pem, puts } = welcome.store else { panic!("{welcome:?}") };
        assert!(use_ms >= 60_000 && ca_pem.as_deref() == Some("PEM") && puts);
    }
    for conn in [1, 2, 4] {
        assert_eq!(sign_of(&mut server, conn), Some(SignFor { volume: VOLUME, whole: false }));
    }
}

#[test]
fn whole_objects_are_signed_for_sessions_only_that_may_read_all_of_them() {
    let mut server = in_bucket(StoreKind::Azure, account_key(), true);
    let [whole, confined, no_past] = open_all(&mut server);
    assert!(matches!(whole.store, StoreAccess::Signed { puts: false, .. }), "{whole:?}");
    for other in [confined, no_past] {
        assert_eq!(other.store, StoreAccess::ThroughServer, "it is not to ask for what it will not get");
    }
    let signs = [1, 2, 4].map(|conn| sign_of(&mut server, conn));
    assert_eq!(signs, [Some(SignFor { volume: VOLUME, whole: true }), None, None]);
}

#[test]
fn what_cannot_be_signed_on_the_spot_goes_through_the_server() {
    #[allow(clippy::type_complexity, reason = "it is said once")]
    let kinds: [(fn(Bucket) -> StoreKind, Credentials); 3] = [
        (StoreKind::S3, Credentials::Anonymous),
        (StoreKind::Gcs, Credentials::Ambient),
        (StoreKind::Azure, Credentials::SharedAccess { token: Secret::new("sig") }),
    ];
    for (kind, credentials) in kinds {
        let mut server = in_bucket(kind, credentials, true);
        assert_eq!(server.open(1, hello(1)).unwrap().store, StoreAccess::ThroughServer);
        assert_eq!(sign_of(&mut server, 1), None);
    }
}

#[test]
fn puts_are_signed_for_names_of_the_sessions_grant_and_only_where_they_cannot_overwrite() {
    let ask = |server: &mut Server, conn, first, count| {
        server.frame(conn, ToServer::SignPuts { id: 3, first, count }).remove(0)
    };
    let mut server = in_bucket(StoreKind::S3, access_key(), true);
    let session = server.open(1, hello(1)).unwrap();
    let (incarnation, end) = (session.incarnation, session.grant.1);
    let name = |n| {
        let object = ObjectId { incarnation, session: session.session, n };
        chronofs_blocks::object_name(VOLUME, object)
    };
    for (first, count, signed) in [(0, 3, 3), (7, 1000, 64), (end - 2, 9, 2)] {
        let Effect::Object(job) = ask(&mut server, 1, first, count) else { panic!("no job") };
        let ObjectAction::SignPuts(names) = job.action else { panic!("{:?}", job.action) };
        assert_eq!((names.len(), &names[0], job.volume), (signed, &name(first), VOLUME));
    }
    let refused =
        |effect| matches!(effect, Effect::Send(_, ToClient::SignedPuts { result: Err(Errno::EACCES), .. }));
    assert!(refused(ask(&mut server, 1, end, 1)));
    open_all(&mut server);
    assert!(refused(ask(&mut server, 4, 0, 1)), "a token that cannot write");
    let mut server = in_bucket(StoreKind::S3, access_key(), false);
    server.open(1, hello(1)).unwrap();
    let Effect::Send(_, ToClient::SignedPuts { result, .. }) = ask(&mut server, 1, 0, 1) else {
        panic!("signed")
    };
    assert_eq!(result, Ok(Vec::new()));
}
