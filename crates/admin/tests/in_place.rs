//! Restores in place: of a metadata server, whose folders of before are refused from then on, and of the admin server itself,
//! which asks metadata servers what it had said since.

#![allow(clippy::unwrap_used)]

mod common;

use chronofs_admin::{InPlace, prepare_in_place};
use chronofs_snapshot::protocol::{Record, State};
use chronofs_wire::admin::{Known, ParkedBytes, Register, RestoreEpoch};
use chronofs_wire::http::AdminClient;
use chronofs_wire::identity::Sha256;
use chronofs_wire::log::{LogChange, LogCopies, OpenLog};
use chronofs_wire::token::Token;
use common::{Running, serving, started};
use serde_json::{Value, json};
use uuid::Uuid;

fn register(boot: u64) -> Register {
    let certificate_sha256 = Sha256::of(b"meta").to_string();
    Register { address: "meta:1".to_owned(), certificate_sha256, boot, ..Register::default() }
}

/// From a folder that was prepared under this id.
fn restored(boot: u64, id: &str) -> Register {
    let restore = RestoreEpoch { id: id.to_owned(), uid: "c5".to_owned(), cut_ns: 10, ..Default::default() };
    Register { restore: Some(restore), ..register(boot) }
}

/// The same, with what its server was told and has begun since.
fn goes_on(boot: u64, id: &str, epoch: u64, began_ns: u64) -> Register {
    let register = restored(boot, id);
    let restore = register.restore.clone().map(|of| RestoreEpoch { epoch, began_ns: Some(began_ns), ..of });
    Register { restore, ..register }
}

async fn refused(meta: &AdminClient, register: &Register) -> String {
    let checked = meta.check_fence(register).await.unwrap_err();
    let refused = meta.register(register).await.unwrap_err();
    assert!(checked.is_fenced() && refused.is_fenced(), "{checked}, {refused}");
    refused.to_string()
}

/// Prepared at an instant.
fn prepared(register: Register, prepared_ns: u64) -> Register {
    let restore = register.restore.clone();
    let restore = restore.map(|of| RestoreEpoch { prepared_ns: Some(prepared_ns), ..of });
    Register { restore, ..register }
}

#[tokio::test]
async fn a_restored_metadata_server_takes_over_far_above_and_folders_of_before_are_refused_once_it_has_begun()
{
    let server = started().await;
    let meta = server.with_volume().await;
    assert_eq!(meta.register(&register(1)).await.unwrap().restore, None);
    meta.check_fence(&register(1)).await.unwrap();
    meta.check_fence(&restored(2, "a")).await.unwrap();
    meta.check_fence(&register(1)).await.unwrap();
    let first = meta.register(&restored(2, "a")).await.unwrap();
    // Mounts may have seen epochs that an admin server does not know that was restored as well.
    assert!(first.epoch > 1 << 20, "{first:?}");
    assert_eq!(first.restore.as_ref().unwrap().epoch, 1);
    // Sent again: it is the same restore.
    assert_eq!(meta.register(&restored(2, "a")).await.unwrap(), first);
    assert!(!server.audit().await.contains("restored in place"), "it has not begun");
    let begun = meta.register(&goes_on(2, "a", 1, 20)).await.unwrap();
    assert_eq!((begun.epoch, begun.restore.unwrap().began_ns), (first.epoch, Some(20)));
    assert!(server.audit().await.contains("restore epoch 1"));
    let said = refused(&meta, &register(1)).await;
    assert!(said.contains("restore epoch 1") && said.contains("c5"), "{said}");
    refused(&meta, &register(3)).await;
    // Started again: it is the same restore.
    let again = meta.register(&goes_on(4, "a", 1, 20)).await.unwrap();
    assert_eq!((again.epoch, again.restore.unwrap().began_ns), (first.epoch + 1, Some(20)));
    // Another copy of the prepared folder would give again what the first has given.
    for copy in [restored(9, "a"), goes_on(9, "a", 0, 21)] {
        let said = refused(&meta, &copy).await;
        assert!(said.contains("prepare it anew"), "{said}");
    }
    let status = server.get("/v1/status").await;
    let shown = &status["restored_servers"][0];
    assert_eq!((shown["store"].as_str(), shown["restore"]["epoch"].as_u64()), (Some("m"), Some(1)));
    assert!(status["warnings"].to_string().contains("restore accept"), "{status}");
    // Another one from an older backup.
    let second = meta.register(&restored(5, "b")).await.unwrap();
    assert_eq!(second.restore.unwrap().epoch, 2);
    meta.register(&goes_on(5, "b", 2, 30)).await.unwrap();
    let said = refused(&meta, &goes_on(6, "a", 1, 20)).await;
    assert!(said.contains("is of restore epoch 1"), "{said}");
    server.stop().await;
}

#[tokio::test]
async fn a_restore_that_has_not_begun_refuses_nobody_and_is_over_when_the_server_of_before_starts() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let tried = meta.register(&restored(2, "a")).await.unwrap();
    assert!(server.get("/v1/status").await["warnings"].to_string().contains("has not begun"));
    // Its store never opens. The healthy server starts again, where it is.
    meta.check_fence(&register(3)).await.unwrap();
    let healthy = meta.register(&register(3)).await.unwrap();
    assert!(healthy.epoch > tried.epoch && healthy.restore.is_none(), "{healthy:?}");
    assert!(
        server.get("/v1/status").await["restored_servers"].is_null(),
        "it is left out while there are none"
    );
    // Tried again, it begins.
    let told = restored(4, "a").restore.map(|of| RestoreEpoch { epoch: 1, ..of });
    meta.register(&Register { restore: told, ..register(4) }).await.unwrap();
    meta.register(&goes_on(4, "a", 1, 20)).await.unwrap();
    refused(&meta, &register(5)).await;
    // So with a later one, which the restored server ends; what was prepared before that began is of before it.
    meta.register(&prepared(restored(6, "b"), 30)).await.unwrap();
    assert_eq!(meta.register(&goes_on(7, "a", 1, 20)).await.unwrap().restore.unwrap().id, "a");
    for old in [restored(8, "c"), goes_on(8, "c", 0, 40), goes_on(8, "c", 2, 40)] {
        refused(&meta, &prepared(old, 10)).await;
    }
    meta.register(&prepared(goes_on(9, "b", 2, 40), 30)).await.unwrap();
    refused(&meta, &goes_on(10, "a", 1, 20)).await;
    server.stop().await;
}

#[tokio::test]
async fn only_copies_that_count_make_an_old_folder_one_of_the_newest_restore() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&restored(1, "a")).await.unwrap();
    let begun = meta.register(&goes_on(1, "a", 1, 20)).await.unwrap();
    let recovers = |boot| Register { recovers: true, ..register(boot) };
    refused(&meta, &recovers(2)).await;
    // Nothing of it is left: who owns the store does so still.
    assert_eq!(meta.register(&goes_on(1, "a", 1, 20)).await.unwrap(), begun);
    let members = LogCopies { copies: vec!["/a".to_owned()], anti_quorum: 0 };
    let change = Some(LogChange { after: 0, members });
    meta.open_log(&OpenLog { boot: 1, above: 0, change }).await.unwrap();
    assert_eq!(meta.register(&recovers(2)).await.unwrap().restore.unwrap().id, "a");
    // Its folder is what it was if that fails.
    refused(&meta, &register(3)).await;
    server.stop().await;
}

#[tokio::test]
async fn what_is_accepted_is_the_newest_restore_that_has_begun_and_no_earlier_one_of_the_same_backup() {
    let server = started().await;
    let meta = server.with_volume().await;
    let accept = || server.refused(reqwest::Method::POST, "/v1/restore/accept", Value::Null);
    assert_eq!(accept().await.0, "invalid");
    let dry_run = "/v1/restore/accept?dry_run=true";
    assert_eq!(server.refused(reqwest::Method::POST, dry_run, Value::Null).await.0, "invalid");
    meta.register(&restored(1, "a")).await.unwrap();
    assert_eq!(accept().await.0, "invalid", "there is nothing to look at yet");
    meta.register(&goes_on(1, "a", 1, 20)).await.unwrap();
    assert_eq!(meta.assignment(1, 0).await.unwrap().accepted_restore, None);
    assert_eq!(server.post(dry_run, Value::Null).await["servers"][0]["restore"]["id"], "a");
    assert_eq!(meta.assignment(1, 0).await.unwrap().accepted_restore, None, "a dry run does nothing");
    let accepted = server.post("/v1/restore/accept", Value::Null).await;
    assert_eq!(accepted["servers"][0]["restore"]["id"], "a");
    assert_eq!(meta.assignment(1, 0).await.unwrap().accepted_restore.as_deref(), Some("a"));
    assert_eq!(server.post(dry_run, Value::Null).await, json!({}), "nothing is left to accept");
    meta.register(&restored(2, "b")).await.unwrap();
    server.post("/v1/restore/accept", Value::Null).await;
    meta.register(&goes_on(2, "b", 2, 30)).await.unwrap();
    assert_eq!(meta.assignment(2, 0).await.unwrap().accepted_restore, None);
    server.stop().await;
}

#[tokio::test]
async fn an_old_database_learns_of_a_later_restore_and_still_refuses_the_ones_before() {
    let server = started().await;
    let meta = server.with_volume().await;
    // This database is of before both.
    let newest = meta.register(&goes_on(1, "b", 2, 50)).await.unwrap();
    assert_eq!(newest.restore.unwrap().epoch, 2);
    refused(&meta, &goes_on(2, "a", 1, 20)).await;
    // It knows an earlier one: the running server is of a later.
    let later = meta.register(&goes_on(3, "d", 4, 90)).await.unwrap();
    assert_eq!(later.restore.unwrap().epoch, 4);
    refused(&meta, &goes_on(4, "c", 3, 70)).await;
    server.stop().await;
}

fn record() -> Record {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshot/tests/golden/record-1.txt");
    let mut record = chronofs_snapshot::record::open(&std::fs::read(golden).unwrap()).unwrap();
    record.intent.keep_until_ns = None;
    Record { state: State::Complete, ..record }
}

async fn token(server: &Running) -> String {
    server.post("/v1/volume-tokens", json!({"volume": "v"})).await["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_restored_admin_server_names_what_was_revoked_since_and_holds_it_back_until_that_is_accepted() {
    let server = started().await;
    let meta = server.with_volume().await;
    let (good, revoked, made) = (token(&server).await, token(&server).await, Uuid::from_u128(9));
    let before = meta.register(&register(1)).await.unwrap();
    assert!(!before.review && before.admin_epoch == 0);
    let volumes = meta.assignment(1, 0).await.unwrap().volumes;
    let (folder, root, address) = server.stop().await;
    let wanted = InPlace { record: record(), moved: None, with_servers: false, after: 0 };
    let file = prepare_in_place(folder.path(), &wanted).unwrap();
    assert_eq!(file.coordinators, std::slice::from_ref(&address));
    let server = serving(folder, root, address).await;
    let registered = meta.register(&register(1)).await.unwrap();
    assert!(registered.review && registered.admin_epoch > 0, "{registered:?}");
    // What it was told from here shows nothing of what was revoked before; it is no answer.
    let told = meta.assignment(1, 0).await.unwrap();
    assert_eq!(told.admin_epoch, registered.admin_epoch);
    meta.known(&Known::of(&told)).await.unwrap();
    assert!(meta.register(&register(1)).await.unwrap().review, "it is asked still");
    assert_eq!(server.get("/v1/status").await["restored_admin"]["reviews"], Value::Null);
    let known = Known {
        admin_epoch: 0,
        tokens: vec![good.parse().unwrap(), made],
        volumes: [(Uuid::from_u128(8), "new".to_owned())].into(),
        deleted: volumes.iter().map(|volume| (volume.spec.id, volume.spec.name.clone())).collect(),
    };
    meta.known(&known).await.unwrap();
    let registered = meta.register(&register(1)).await.unwrap();
    assert!(!registered.review, "it has said so");
    // From now on it only knows what it is told from here.
    meta.known(&Known::default()).await.unwrap();
    let tokens = || async {
        let told = meta.assignment(1, 0).await.unwrap().tokens;
        let mut ids: Vec<String> = told.iter().map(|token| token.id.to_string()).collect();
        ids.sort();
        ids
    };
    assert_eq!(tokens().await, [good.as_str()]);
    let status = server.get("/v1/status").await;
    let review = &status["restored_admin"]["reviews"]["m"];
    assert_eq!(review["revoked"], json!([revoked]));
    assert_eq!(review["made"], json!([made.to_string()]));
    assert_eq!((&review["volumes_made"], &review["volumes_deleted"]), (&json!(["new"]), &json!(["v"])));
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains(&revoked) && warnings.contains("accounts"), "{warnings}");
    // The set that the database was taken for is known to be one: what it needs is kept.
    let uid = record().intent.attempt.uid.to_string();
    assert_eq!(server.get(&format!("/v1/snapshots/{uid}")).await["state"], "COMPLETE");
    let accepted = server.post("/v1/restore/accept", Value::Null).await;
    assert_eq!(accepted["admin"]["uid"], uid.as_str());
    let mut both = [good, revoked];
    both.sort();
    assert_eq!(tokens().await, both);
    server.stop().await;
}

#[tokio::test]
async fn the_epoch_of_a_restored_admin_server_rises_also_where_the_clock_is_behind() {
    let server = started().await;
    let meta = server.with_volume().await;
    let (folder, root, address) = server.stop().await;
    let prepared = |after| InPlace { record: record(), moved: None, with_servers: false, after };
    let far = 1 << 62;
    prepare_in_place(folder.path(), &prepared(far)).unwrap();
    let server = serving(folder, root, address).await;
    assert_eq!(meta.register(&register(1)).await.unwrap().admin_epoch, far + 1);
    let (folder, root, address) = server.stop().await;
    // From a copy that knows of that restore nothing has to be said.
    prepare_in_place(folder.path(), &prepared(0)).unwrap();
    let server = serving(folder, root, address).await;
    assert_eq!(meta.register(&register(1)).await.unwrap().admin_epoch, far + 2);
    server.stop().await;
}

#[tokio::test]
async fn what_is_parked_is_written_down_once_for_each_mount_of_a_restore_and_never_without_one() {
    let server = started().await;
    let meta = server.with_volume().await;
    let may = |read_only: bool| json!({"volume": "v", "read_only": read_only});
    let mut mounts = Vec::new();
    for read_only in [false, true] {
        let made = server.post("/v1/volume-tokens", may(read_only)).await;
        let token: Token = made["token"].as_str().unwrap().parse().unwrap();
        mounts.push(AdminClient::new(&token).unwrap());
    }
    let said = |mount: &str| ParkedBytes {
        mount: mount.to_owned(),
        path: "lost+found/inode-7\n".to_owned() + &"x".repeat(5000),
        files: 2,
        bytes: 30,
    };
    let refused = mounts[0].parked(&said("a")).await.unwrap_err().to_string();
    assert!(refused.contains("was not restored"), "{refused}");
    meta.register(&restored(1, "a")).await.unwrap();
    meta.register(&goes_on(1, "a", 1, 20)).await.unwrap();
    for mount in ["a", "a", "b"] {
        mounts[0].parked(&said(mount)).await.unwrap();
    }
    assert_eq!(mounts[1].parked(&said("c")).await.unwrap_err().code(), Some("forbidden"));
    assert!(meta.parked(&said("d")).await.is_err(), "it is no volume token");
    let rows = server.get("/v1/audit").await;
    let rows: Vec<String> = rows.as_array().unwrap().iter().map(Value::to_string).collect();
    let parked: Vec<&String> = rows.iter().filter(|row| row.contains("bytes of 2 files")).collect();
    assert_eq!(parked.len(), 2, "{rows:?}");
    assert!(parked.iter().all(|row| row.len() < 700 && !row.contains("\\n")), "{parked:?}");
    server.stop().await;
}
