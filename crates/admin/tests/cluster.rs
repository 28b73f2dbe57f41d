//! The cluster for its operators, with a metadata server that is played.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use chronofs_wire::admin::Register;
use chronofs_wire::analyze::{Analyze, Begun, Follow, Look, Subject, Told};
use chronofs_wire::http::{AdminClient, Method};
use chronofs_wire::identity::Sha256;
use chronofs_wire::question::{Answer, Answers, Asked, Blob, KeyOp, KeyRefused, KeyReply, Said, Starting};
use chronofs_wire::status::{ClusterStatus, MemberState};
use chronofs_wire::token::Token;
use common::{Running, started};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn register(boot: u64) -> Register {
    let certificate_sha256 = Sha256::of(b"meta").to_string();
    Register { address: "meta:1".to_owned(), certificate_sha256, boot, epoch: 0, ..Register::default() }
}

async fn store(server: &Running, name: &str) -> AdminClient {
    let made = server.post("/v1/metadata-stores", json!({"name": name})).await;
    AdminClient::new(&made["token"].as_str().unwrap().parse().unwrap()).unwrap()
}

async fn status(server: &Running) -> ClusterStatus {
    server.client.call(Method::GET, "/v1/status", None::<&()>).await.unwrap()
}

/// Answers questions to the start `boot`; gives the key operations that it was asked for.
fn play(meta: AdminClient, boot: u64, status: Value) -> Arc<Mutex<Vec<KeyOp>>> {
    play_with(meta, boot, move || status.clone())
}

fn play_with(
    meta: AdminClient,
    boot: u64,
    status: impl Fn() -> Value + Send + 'static,
) -> Arc<Mutex<Vec<KeyOp>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok(polled) = meta.questions(boot).await {
            for question in polled.questions {
                let said = match question.asked {
                    Asked::Status => Said::Status(status()),
                    Asked::Keep(_) | Asked::Holds => continue,
                    Asked::Keys(op) => {
                        seen.lock().unwrap().push(op.clone());
                        match op {
                            KeyOp::Get { .. } => Said::Keys(KeyReply::Value { version: 7, value: None }),
                            KeyOp::Set { .. } => Said::Keys(KeyReply::Committed { version: 8 }),
                            KeyOp::GetRange { .. } => Said::Refused(KeyRefused::InvertedRange),
                            // Never answered.
                            KeyOp::Clear { .. } => continue,
                        }
                    }
                    Asked::ReleaseBrake => Said::Released,
                    Asked::Readers { .. } => Said::Readers(Vec::new()),
                    Asked::Detach { .. } | Asked::WouldDetach { .. } => {
                        Said::Detached { needed: 0, unnamed: 0 }
                    }
                    Asked::Look { replica: None, .. } => Said::Looking(5),
                    Asked::Look { replica: Some(store), .. } => {
                        Said::Trouble(format!("{} with {:?}", store.kind, store.credentials))
                    }
                    Asked::Follow { look: 5, seen } => Said::Looked(Told { upto: seen, ..Told::default() }),
                    Asked::Follow { .. } => Said::Looked(Told { gone: true, ..Told::default() }),
                };
                meta.answers(&Answers { answers: vec![Answer { id: question.id, said }] }).await.unwrap();
            }
        }
    });
    asked
}

fn well(revision: u64) -> Value {
    json!({"assigned": true, "figures": {"revision": revision}})
}

fn key() -> Blob {
    Blob::from(&b"k"[..])
}

#[tokio::test]
async fn keys_go_to_one_store_and_only_to_the_start_that_owns_it() {
    let server = started().await;
    let get = KeyOp::Get { key: key() };
    let none = server.client.call::<Value>(Method::POST, "/v1/keys", Some(&get)).await.unwrap_err();
    assert!(none.to_string().contains("no metadata store yet"), "{none}");
    let (first, second) = (store(&server, "z").await, store(&server, "a").await);
    for meta in [&first, &second] {
        meta.register(&register(1)).await.unwrap();
    }
    let [of_first, of_second] = [first.clone(), second].map(|meta| play(meta, 1, well(1)));
    let reply: KeyReply = server.client.call(Method::POST, "/v1/keys", Some(&get)).await.unwrap();
    assert_eq!(reply, KeyReply::Value { version: 7, value: None });
    // The same store after a restart, though another start serves it now: the old one is told nothing any more.
    let server = server.restarted().await;
    first.register(&register(2)).await.unwrap();
    let of_new = play(first.clone(), 2, well(1));
    let (named, value) = (Blob::from(&b"k\0"[..]), Blob::from(&b"secret"[..]));
    let set = KeyOp::Set { key: named, value };
    let reply: KeyReply = server.client.call(Method::POST, "/v1/keys", Some(&set)).await.unwrap();
    assert_eq!(reply, KeyReply::Committed { version: 8 });
    let written = &server.get("/v1/audit").await[0];
    assert_eq!(
        (&written["object"], &written["outcome"]),
        (&json!("key k\\x00"), &json!("done")),
        "not the value"
    );
    assert_eq!((&*of_first.lock().unwrap(), &*of_new.lock().unwrap()), (&vec![get], &vec![set]));
    assert!(of_second.lock().unwrap().is_empty());
    let superseded = first.questions(1).await.unwrap_err();
    assert_eq!(superseded.code(), Some("superseded"), "{superseded}");
    let range = KeyOp::GetRange { begin: key(), end: None, limit: 1 };
    let refused = server.client.call::<Value>(Method::POST, "/v1/keys", Some(&range)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.to_string()),
        (Some("invalid"), KeyRefused::InvertedRange.to_string())
    );
    let members = status(&server).await.members;
    assert_eq!(
        members.iter().map(|m| (m.name.as_str(), m.key_space)).collect::<Vec<_>>(),
        [("a", false), ("z", true)]
    );
}

#[tokio::test]
async fn a_viewer_reads_keys_and_status_and_changes_nothing() {
    let server = started().await;
    let meta = store(&server, "m").await;
    meta.register(&register(1)).await.unwrap();
    let asked = play(meta.clone(), 1, well(1));
    let made = server.post("/v1/accounts", json!({"name": "eve", "role": "viewer"})).await;
    let token: Token = made["token"].as_str().unwrap().parse().unwrap();
    let eve = AdminClient::new(&token).unwrap();
    let get = KeyOp::Get { key: key() };
    eve.call::<KeyReply>(Method::POST, "/v1/keys", Some(&get)).await.unwrap();
    eve.call::<ClusterStatus>(Method::GET, "/v1/status", None::<&()>).await.unwrap();
    for op in [KeyOp::Set { key: key(), value: key() }, KeyOp::Clear { key: key() }] {
        let refused = eve.call::<Value>(Method::POST, "/v1/keys", Some(&op)).await.unwrap_err();
        assert_eq!(refused.code(), Some("forbidden"));
    }
    for path in ["/v1/status", "/v1/keys"] {
        let refused = meta.call::<Value>(Method::GET, path, None::<&()>).await.unwrap_err();
        assert_ne!(refused.code(), None, "{path} is not for a metadata server");
    }
    assert_eq!(*asked.lock().unwrap(), [get]);
}

#[tokio::test]
async fn the_brake_is_released_by_who_may_do_so_and_it_is_written_down_who_did() {
    let server = started().await;
    let meta = store(&server, "m").await;
    let path = "/v1/metadata-stores/m/release-brake";
    let (code, why) = server.refused(Method::POST, path, Value::Null).await;
    assert!(code == "unavailable" && why.contains("cannot be reached"), "{why}");
    meta.register(&register(1)).await.unwrap();
    let _asked = play(meta, 1, well(1));
    let mut ends = Vec::new();
    for (name, role) in [("eve", "viewer"), ("anna", "operator")] {
        let made = server.post("/v1/accounts", json!({"name": name, "role": role})).await;
        let token: Token = made["token"].as_str().unwrap().parse().unwrap();
        let client = AdminClient::new(&token).unwrap();
        let released = client.call::<Value>(Method::POST, path, None::<&()>).await;
        ends.push(released.map_err(|error| error.code().map(str::to_owned)));
    }
    assert_eq!(ends, [Err(Some("forbidden".to_owned())), Ok(Value::Null)]);
    let all = server.get("/v1/audit?who=anna").await;
    let row = &all.as_array().unwrap()[0];
    assert_eq!(row["action"], "POST /v1/metadata-stores/{name}/release-brake");
    assert_eq!((&row["object"], &row["outcome"]), (&json!("brake of metadata-store m"), &json!("done")));
    let refused = &server.get("/v1/audit?who=eve").await[0];
    assert_eq!(refused["outcome"], "forbidden");
}

#[tokio::test]
async fn a_change_without_an_answer_may_have_been_done_and_one_that_was_not_taken_was_not() {
    let server = started().await;
    let meta = store(&server, "m").await;
    let clear = KeyOp::Clear { key: key() };
    let ask = async || {
        server.client.call::<Value>(Method::POST, "/v1/keys", Some(&clear)).await.unwrap_err().to_string()
    };
    let not_taken = ask().await;
    assert!(not_taken.contains("cannot be reached") && not_taken.contains("nothing was done"), "{not_taken}");
    meta.register(&register(1)).await.unwrap();
    let asked = play(meta, 1, well(1));
    let not_answered = ask().await;
    assert!(not_answered.contains("may have been committed, or not"), "{not_answered}");
    assert_eq!(asked.lock().unwrap().len(), 1, "it was asked once");
}

#[tokio::test]
async fn the_status_tells_starting_from_unreachable_and_both_from_healthy() {
    let server = started().await;
    let meta = store(&server, "m").await;
    let state = async || {
        let status = status(&server).await;
        assert_eq!(status.healthy, status.faults.is_empty());
        (status.members[0].state, status.faults.join(" "))
    };
    assert_eq!(state().await.0, MemberState::NeverSeen);
    meta.starting(&Starting { seconds: 12 }).await.unwrap();
    let (found, why) = state().await;
    assert!(found == MemberState::Starting && why.contains("metadata store 'm': starting"), "{why}");
    meta.register(&register(1)).await.unwrap();
    let began = Instant::now();
    meta.starting(&Starting { seconds: 12 }).await.unwrap();
    assert_eq!(state().await.0, MemberState::Starting);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    play(meta.clone(), 1, well(1));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(state().await, (MemberState::Healthy, String::new()));
    // A later start takes over and says nothing.
    meta.register(&register(2)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (found, why) = state().await;
    assert!(found == MemberState::Unreachable && why.contains("last heard of"), "{why}");
}

#[tokio::test]
async fn a_server_is_behind_when_it_has_not_learnt_of_a_change_for_a_while_and_not_at_once() {
    let server = started().await;
    let metas = [store(&server, "slow").await, store(&server, "stuck").await];
    for meta in &metas {
        meta.register(&register(1)).await.unwrap();
    }
    let revision = metas[0].assignment(1, 0).await.unwrap().revision;
    let began = Instant::now();
    let learns = move || well(revision - u64::from(began.elapsed() < Duration::from_secs(1)));
    play_with(metas[0].clone(), 1, learns);
    play(metas[1].clone(), 1, well(metas[1].assignment(1, 0).await.unwrap().revision - 1));
    let found = status(&server).await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    let states: Vec<_> = found.members.iter().map(|member| (member.name.as_str(), member.state)).collect();
    assert_eq!(states, [("slow", MemberState::Healthy), ("stuck", MemberState::Behind)]);
    assert!(
        found.faults.len() == 1 && found.faults[0].contains(&format!("and {revision} is the newest")),
        "{:?}",
        found.faults
    );
}

#[tokio::test]
async fn a_look_into_a_volume_needs_an_operator_and_goes_to_the_server_that_has_it() {
    let server = started().await;
    let metas = [store(&server, "z").await, store(&server, "a").await];
    for meta in &metas {
        meta.register(&register(1)).await.unwrap();
    }
    server
        .post("/v1/block-stores", json!({"name": "b", "definition": {"kind": "local", "path": "/srv/b"}}))
        .await;
    let volume = json!({"name": "v", "block_store": "b", "metadata_store": "a"});
    server.post("/v1/volumes", volume).await;
    let look = Look::Blocks { deep: true, bytes_per_second: 7, from: None };
    let wanted = Analyze { subject: Subject::Volume("v".to_owned()), look };
    let begin = |client: AdminClient, wanted: Analyze| async move {
        client.call::<Begun>(Method::POST, "/v1/analyze", Some(&wanted)).await
    };
    // Nobody answers for the store that does not have it.
    play(metas[1].clone(), 1, well(1));
    let begun = begin(server.client.clone(), wanted.clone()).await.unwrap();
    let follow = Follow { store: begun.store.clone(), look: begun.look, seen: 3 };
    let told: Told = server.client.call(Method::POST, "/v1/analyze/follow", Some(&follow)).await.unwrap();
    assert_eq!(told, Told { upto: 3, ..Told::default() });
    let other = Follow { look: 6, ..follow.clone() };
    let told: Told = server.client.call(Method::POST, "/v1/analyze/follow", Some(&other)).await.unwrap();
    assert!(told.gone);
    let whole = Analyze { subject: Subject::MetadataStore("a".to_owned()), look: Look::Rows };
    assert_eq!(begin(server.client.clone(), whole).await.unwrap(), begun);
    for nobody in [Subject::Volume("w".to_owned()), Subject::MetadataStore("v".to_owned())] {
        let none = begin(server.client.clone(), Analyze { subject: nobody, ..wanted.clone() }).await;
        assert_eq!(none.unwrap_err().code(), Some("not_found"));
    }
    let made = server.post("/v1/accounts", json!({"name": "eve", "role": "viewer"})).await;
    let token: Token = made["token"].as_str().unwrap().parse().unwrap();
    let eve = AdminClient::new(&token).unwrap();
    assert_eq!(begin(eve.clone(), wanted).await.unwrap_err().code(), Some("forbidden"));
    let refused = eve.call::<Told>(Method::POST, "/v1/analyze/follow", Some(&follow)).await.unwrap_err();
    assert_eq!(refused.code(), Some("forbidden"));
}

#[tokio::test]
async fn what_opens_a_copy_of_a_block_store_goes_to_the_metadata_server_and_a_folder_is_its_own_business() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    play(meta, 1, well(1));
    let secret = json!({"name": "copy", "unchecked": true, "credentials":
        {"type": "access-key", "id": "AKIA", "secret": "hunter2-hunter2"},
        "definition": {"kind": "s3", "bucket": "copies", "region": "eu"}});
    server.post("/v1/block-stores", secret).await;
    let repair = async |from_store: Option<&str>, dry_run: bool| {
        let from_store = from_store.map(str::to_owned);
        let look = Look::Repair {
            dry_run,
            deep: false,
            bytes_per_second: 0,
            from_store,
            from_cache: None,
            from_copy: Some("/copy".to_owned()),
            from: None,
        };
        let wanted = Analyze { subject: Subject::Volume("v".to_owned()), look };
        server.client.call::<Begun>(Method::POST, "/v1/analyze", Some(&wanted)).await
    };
    for own in [None, Some("/srv/copy")] {
        assert_eq!(repair(own, false).await.unwrap().look, 5);
    }
    // The one that is played says what it was told: the store, and credentials, which show nothing of themselves.
    let told = repair(Some("copy"), true).await.unwrap_err().to_string();
    assert!(told.contains("copies") && told.contains("AKIA") && !told.contains("hunter2"), "{told}");
    assert_eq!(repair(Some("other"), false).await.unwrap_err().code(), Some("not_found"));
    let rows = server.get("/v1/audit").await;
    let objects: Vec<_> =
        rows.as_array().unwrap().iter().map(|row| row["object"].as_str().unwrap()).collect();
    assert!(objects.contains(&"repair of volume v") && objects.contains(&"repair of volume v (dry run)"));
}
