//! How long the past is kept: retentions that change, and holds, with a metadata server that is played.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use chronofs_wire::admin::Register;
use chronofs_wire::http::{AdminClient, Method};
use chronofs_wire::identity::Sha256;
use chronofs_wire::question::{Answer, Answers, Asked, HeldSaid, KeepInstant, Said};
use common::{Running, serving, started};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use uuid::Uuid;

async fn patch(server: &Running, body: Value) -> Value {
    server.client.call(Method::PATCH, "/v1/volumes/v", Some(&body)).await.unwrap()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_shorter_retention_waits_can_be_taken_back_and_comes_into_force() {
    let server = started().await;
    let meta = server.with_volume().await;
    let before = server.get("/v1/volumes/v").await;
    let tried = patch(&server, json!({"retention": "1d", "dry_run": true})).await;
    assert_eq!((&tried["retention"], &tried["next_retention"]), (&json!("7d"), &json!("1d")));
    assert!(tried["next_retention_at"].is_string() && tried["next_earliest"].is_string(), "{tried}");
    assert_eq!(server.get("/v1/volumes/v").await, before, "a dry run changes nothing");
    let waits = patch(&server, json!({"retention": "1d", "grace_seconds": 3600})).await;
    assert_eq!((&waits["retention"], &waits["next_retention"]), (&json!("7d"), &json!("1d")));
    let server = server.restarted().await;
    assert_eq!(server.get("/v1/volumes/v").await, waits);
    assert_eq!(patch(&server, json!({"undo_retention": true})).await, before);
    let undo = json!({"undo_retention": true});
    let (code, said) = server.refused(Method::PATCH, "/v1/volumes/v", undo).await;
    assert!(code == "invalid" && said.contains("nothing to take back"), "{said}");
    let grace = json!({"grace_seconds": 5});
    let (code, _) = server.refused(Method::PATCH, "/v1/volumes/v", grace).await;
    assert_eq!(code, "invalid");
    patch(&server, json!({"retention": "0", "grace_seconds": 3600})).await;
    assert_eq!(patch(&server, json!({"retention": "7d"})).await, before, "back is undone, too");
    patch(&server, json!({"retention": "1d", "grace_seconds": 6})).await;
    let begun = Instant::now();
    let retention = async || server.get("/v1/volumes/v").await["retention"].clone();
    assert_eq!(retention().await, "7d");
    until("the retention to come into force", async || retention().await == "1d").await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "nothing before its time");
    let after = server.get("/v1/volumes/v").await;
    assert_eq!((&after["next_retention"], &after["next_earliest"]), (&Value::Null, &Value::Null));
    meta.register(&register(1)).await.unwrap();
    let assigned = meta.assignment(1, 0).await.unwrap();
    assert_eq!(json!(assigned.volumes[0].spec.retention), "1d", "its server learns of it");
}

fn register(boot: u64) -> Register {
    let certificate_sha256 = Sha256::of(b"meta").to_string();
    Register { address: "meta:1".to_owned(), certificate_sha256, boot, epoch: 0, ..Register::default() }
}

/// What a played server holds, what it was asked to keep and never answered, and whether it answers.
#[derive(Default)]
struct Played {
    held: Vec<KeepInstant>,
    released: Vec<Uuid>,
    silent: bool,
    refuses: Option<String>,
}

fn play(meta: AdminClient, boot: u64) -> Arc<Mutex<Played>> {
    let played = Arc::new(Mutex::new(Played::default()));
    let seen = played.clone();
    tokio::spawn(async move {
        while let Ok(polled) = meta.questions(boot).await {
            for question in polled.questions {
                let said = answer(&mut seen.lock().unwrap(), question.asked);
                if let Some(said) = said {
                    let answers = Answers { answers: vec![Answer { id: question.id, said }] };
                    meta.answers(&answers).await.unwrap();
                }
            }
        }
    });
    played
}

fn answer(played: &mut Played, asked: Asked) -> Option<Said> {
    let problem = match asked {
        Asked::Keep(wanted) if wanted.at_ns.is_none() => {
            played.held.retain(|held| held.id != wanted.id);
            played.released.push(wanted.id);
            None
        }
        Asked::Keep(wanted) => {
            played.held.push(wanted);
            played.refuses.clone()
        }
        Asked::Holds => {
            let held = played.held.iter().map(|held| HeldSaid {
                id: held.id,
                volume: held.volume.unwrap(),
                name: "v".to_owned(),
                owner: if held.hold { "hold" } else { "registered copy" }.to_owned(),
                note: held.note.clone(),
                from_ns: held.at_ns.unwrap(),
                to_ns: held.to_ns.unwrap(),
                made_ns: 1,
                ends_ns: held.ends_ns,
            });
            return Some(Said::Holds(held.collect()));
        }
        other => panic!("{other:?}"),
    };
    (!played.silent).then_some(Said::Kept { problem })
}

#[tokio::test]
async fn a_hold_is_in_force_when_it_is_acknowledged_and_what_is_not_is_taken_back() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let played = play(meta.clone(), 1);
    let new = json!({"volume": "v", "from_ns": 7, "to_ns": 9, "reason": "audit: june"});
    let made = server.post("/v1/holds", new.clone()).await;
    assert_eq!(
        (&made["owner"], &made["reason"], &made["state"]),
        (&json!("root"), &json!("audit: june"), &json!("held"))
    );
    let path = format!("/v1/holds/{}", made["id"].as_str().unwrap());
    {
        let held = &played.lock().unwrap().held[0];
        assert_eq!(
            (held.at_ns, held.to_ns, held.hold, held.note.as_str()),
            (Some(7), Some(9), true, "root: audit: june")
        );
    }
    // It says why not, and what it may have begun is taken back.
    played.lock().unwrap().refuses = Some("instant X cannot be had: choose one from Y".to_owned());
    let (code, said) = server.refused(Method::POST, "/v1/holds", new.clone()).await;
    assert!(code == "invalid" && said.contains("choose one from Y"), "{said}");
    assert_eq!(played.lock().unwrap().held.len(), 1);
    // It does not answer: nothing is in force, and it goes once it answers again.
    (played.lock().unwrap().refuses, played.lock().unwrap().silent) = (None, true);
    let (code, said) = server.refused(Method::POST, "/v1/holds", new.clone()).await;
    assert!(code == "unavailable" && said.contains("taken back"), "{said}");
    let states = async || -> Vec<Value> {
        let all = server.get("/v1/holds").await;
        all["holds"].as_array().unwrap().iter().map(|hold| hold["state"].clone()).collect()
    };
    assert_eq!(states().await, ["ending", "held"]);
    played.lock().unwrap().silent = false;
    until("what was not acknowledged to go", async || states().await == ["held"]).await;
    until("it at the server", async || played.lock().unwrap().held.len() == 1).await;
    // The server was put back from an older copy: that is said.
    let held = std::mem::take(&mut played.lock().unwrap().held);
    assert_eq!(states().await, ["lost"]);
    played.lock().unwrap().held = held;
    assert_eq!(server.get(&path).await["state"], "held");
    let viewer = server.post("/v1/accounts", json!({"name": "eve", "role": "viewer"})).await;
    let viewer = AdminClient::new(&viewer["token"].as_str().unwrap().parse().unwrap()).unwrap();
    let refused = viewer.call::<Value>(Method::DELETE, &path, None::<&()>).await.unwrap_err();
    assert_eq!(refused.code(), Some("forbidden"));
    // However the id is spelled: what was deleted has no record that it is in force.
    let id = made["id"].as_str().unwrap();
    let spelled = format!("/v1/holds/{}", id.replace('-', "").to_uppercase());
    assert_eq!(server.get(&spelled).await["id"], id);
    let _: Value = server.client.call(Method::DELETE, &spelled, None::<&()>).await.unwrap();
    assert!(states().await.is_empty() && played.lock().unwrap().held.is_empty());
}

#[tokio::test]
async fn what_nobody_lists_is_let_go_of_everywhere_and_who_does_not_answer_is_named() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let played = play(meta.clone(), 1);
    let id = Uuid::from_u128(7);
    let path = format!("/v1/holds/{id}");
    let _: Value = server.client.call(Method::DELETE, &path, None::<&()>).await.unwrap();
    assert_eq!(played.lock().unwrap().released, [id]);
    let (code, _) = server.refused(Method::DELETE, "/v1/holds/june", Value::Null).await;
    assert_eq!(code, "not_found");
    // Another server is away: it may have it.
    server.post("/v1/metadata-stores", json!({"name": "away"})).await;
    let listed = server.get("/v1/holds").await;
    let [silent] = &listed["silent"].as_array().unwrap()[..] else { panic!("{listed}") };
    assert!(silent.as_str().unwrap().contains("'away'"), "a list that is not whole says so: {listed}");
    for method in [Method::DELETE, Method::GET] {
        let (code, said) = server.refused(method, &path, Value::Null).await;
        assert!(code == "unavailable" && said.contains("'away'"), "{said}");
    }
    assert_eq!(played.lock().unwrap().released, [id, id]);
}

/// What a server holds, of volume `n`.
fn held(id: u128, n: u128, hold: bool) -> KeepInstant {
    KeepInstant {
        id: Uuid::from_u128(id),
        at_ns: Some(1),
        ends_ns: None,
        note: "text".to_owned(),
        volume: Some(Uuid::from_u128(n)),
        to_ns: Some(1),
        hold,
    }
}

#[tokio::test]
async fn what_is_kept_for_a_copy_goes_with_its_record_or_by_itself_if_there_is_none() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let played = play(meta.clone(), 1);
    let id = Uuid::from_u128(7);
    let path = format!("/v1/holds/{id}");
    // Of a copy that is known: its record would be left without what it is for.
    let copy = json!({"uid": id.simple().to_string(), "at_ns": 1, "note": "text"});
    server.post("/v1/backups/registered", copy).await;
    played.lock().unwrap().held = vec![held(7, 1, false), held(7, 2, false)];
    let (code, said) = server.refused(Method::DELETE, &path, Value::Null).await;
    assert!(code == "in_use" && said.contains(&format!("backup delete {} --forget", id.simple())), "{said}");
    assert_eq!(played.lock().unwrap().held.len(), 2);
    // As in a clone, and after a server died while it registered one: nothing else lets go of it.
    played.lock().unwrap().held = vec![held(8, 1, false), held(8, 2, false)];
    let unknown = format!("/v1/holds/{}", Uuid::from_u128(8));
    let _: Value = server.client.call(Method::DELETE, &unknown, None::<&()>).await.unwrap();
    assert!(played.lock().unwrap().held.is_empty(), "of all volumes");
    assert_eq!(server.get("/v1/holds").await, json!({"holds": [], "silent": []}));
}

#[tokio::test]
async fn a_volume_of_which_something_is_held_is_not_deleted_and_not_given_up() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    play(meta.clone(), 1);
    let made = server.post("/v1/holds", json!({"volume": "v", "from_ns": 7, "reason": "audit"})).await;
    let hold = made["id"].as_str().unwrap().to_owned();
    let (code, said) = server.refused(Method::DELETE, "/v1/volumes/v", Value::Null).await;
    assert!(code == "in_use" && said.contains(&format!("hold '{hold}'")), "{said}");
    // An earlier build deleted it all the same.
    let (folder, root, address) = server.stop().await;
    let database = rusqlite::Connection::open(folder.path().join("admin.sqlite")).unwrap();
    assert_eq!(database.execute("UPDATE volume SET deleted_ns = 1", []).unwrap(), 1);
    drop(database);
    let server = serving(folder, root, address).await;
    let (code, said) = server.refused(Method::DELETE, "/v1/deleted-volumes/v", Value::Null).await;
    assert!(code == "in_use" && said.contains(&format!("hold '{hold}'")), "{said}");
    play(meta, 1);
    let _: Value =
        server.client.call(Method::DELETE, &format!("/v1/holds/{hold}"), None::<&()>).await.unwrap();
    let _: Value = server.client.call(Method::DELETE, "/v1/deleted-volumes/v", None::<&()>).await.unwrap();
    assert_eq!(server.get("/v1/deleted-volumes/v").await["state"], "due");
}

#[tokio::test]
async fn a_list_of_many_holds_arrives() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let played = play(meta.clone(), 1);
    let many = (0..10_000).map(|n| KeepInstant { note: "x".repeat(500), ..held(n, 1, true) });
    played.lock().unwrap().held = many.collect();
    assert_eq!(server.get("/v1/holds").await["holds"].as_array().unwrap().len(), 10_000);
}
