//! What metadata servers and mounts ask of the admin server, and the life of its process.

#![allow(clippy::unwrap_used)]

mod common;

use chronofs_admin::{AdminError, InitConfig, Server, StartConfig, init_creds};
use chronofs_snapshot::protocol::{Order, Poll};
use chronofs_wire::admin::{Probed, Register, Report, RestoreEpoch, StoreKind, VolumeReport};
use chronofs_wire::http::AdminClient;
use chronofs_wire::identity::Sha256;
use chronofs_wire::token::Token;
use common::started;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn register(boot: u64) -> Register {
    let certificate_sha256 = Sha256::of(b"meta").to_string();
    Register {
        address: format!("meta.example:{}", 8000 + boot % 1000),
        certificate_sha256,
        boot,
        epoch: 0,
        ..Register::default()
    }
}

#[tokio::test]
async fn epochs_rise_with_every_boot_and_an_old_boot_does_not_come_back() {
    let server = started().await;
    let meta = server.with_volume().await;
    let first = meta.register(&register(1)).await.unwrap();
    assert_eq!((first.name.as_str(), first.epoch), ("m", 1));
    assert_eq!(meta.register(&register(1)).await.unwrap(), first);
    assert_eq!(meta.register(&register(2)).await.unwrap().epoch, 2);
    let old = meta.register(&register(1)).await.unwrap_err();
    assert_eq!(old.code(), Some("superseded"));
    assert!(old.to_string().contains("meta.example:8002"), "{old}");
    let server = server.restarted().await;
    assert_eq!(meta.register(&register(2)).await.unwrap().epoch, 2);
    assert_eq!(meta.register(&register(u64::MAX)).await.unwrap().epoch, 3);
    for address in ["", "host", ":1", "host:0", "host:70000"] {
        let bad = Register { address: address.to_owned(), ..register(9) };
        assert_eq!(meta.register(&bad).await.unwrap_err().code(), Some("invalid"), "{address}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_folder_that_is_an_older_copy_of_one_that_has_served_is_refused_with_the_way_out() {
    let server = started().await;
    let meta = server.with_volume().await;
    let volume = meta.register(&register(1)).await.map(|registered| registered.epoch).unwrap();
    assert_eq!(volume, 1);
    let assigned = meta.assignment(1, 0).await.unwrap();
    let of = |missing| VolumeReport { id: assigned.volumes[0].spec.id, missing, ..VolumeReport::default() };
    let report = |missing, kept_epoch| Report {
        revision: assigned.revision,
        volumes: vec![of(missing)],
        kept_epoch,
        ..Report::default()
    };
    let with = |boot, epoch| Register { epoch, ..register(boot) };
    // A server that had nothing to serve has given no numbers.
    meta.register(&with(2, 1)).await.unwrap();
    meta.report(&report(true, 2)).await.unwrap();
    meta.register(&with(3, 1)).await.unwrap();
    meta.report(&report(false, 3)).await.unwrap();
    // One that went down before it had written its epoch down comes again with the one before.
    meta.register(&with(4, 3)).await.unwrap();
    meta.register(&with(5, 3)).await.unwrap();
    let server = server.restarted().await;
    for refused in [
        meta.check_fence(&with(6, 2)).await.unwrap_err(),
        meta.register(&with(6, 2)).await.map(drop).unwrap_err(),
        meta.register(&with(7, 1)).await.map(drop).unwrap_err(),
    ] {
        assert!(refused.is_fenced(), "{refused}");
        for part in ["older copy", "epoch 3", "--old-copy"] {
            assert!(refused.to_string().contains(part), "{part}: {refused}");
        }
    }
    // The owner that registers again is none, whatever it says to have held; nor is a restore in place.
    meta.register(&with(5, 1)).await.unwrap();
    let restore = RestoreEpoch {
        epoch: 0,
        id: "ab".to_owned(),
        uid: "an old copy of its folder".to_owned(),
        cut_ns: 1,
        began_ns: None,
        prepared_ns: None,
    };
    let restored = Register { restore: Some(restore), ..with(8, 0) };
    meta.check_fence(&restored).await.unwrap();
    meta.register(&restored).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_folder_that_lacks_what_its_server_told_to_be_durable_is_refused_with_the_way_out() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let assigned = meta.assignment(1, 0).await.unwrap();
    let of = |missing| VolumeReport { id: assigned.volumes[0].spec.id, missing, ..VolumeReport::default() };
    let told = |boot, durable_ns, missing| Report {
        revision: assigned.revision,
        volumes: vec![of(missing)],
        kept_epoch: 1,
        boot,
        durable_ns,
        ..Report::default()
    };
    let with = |boot, last_commit_ns| Register { epoch: 1, last_commit_ns, ..register(boot) };
    // A server that had nothing to serve has given no numbers.
    meta.report(&told(1, 500, true)).await.unwrap();
    meta.register(&with(2, Some(400))).await.unwrap();
    meta.report(&told(2, 600, false)).await.unwrap();
    // What was told is there after whatever loss, and more may be; nobody believes one that was followed by another.
    meta.register(&with(3, Some(600))).await.unwrap();
    meta.report(&told(2, 900, false)).await.unwrap();
    meta.report(&told(3, 700, false)).await.unwrap();
    meta.report(&told(3, 0, false)).await.unwrap();
    // It registers again with what it was opened with; who was followed by it is told that, and nothing of an old copy.
    meta.register(&with(3, Some(600))).await.unwrap();
    let followed = meta.register(&with(2, Some(400))).await.unwrap_err();
    assert_eq!(followed.code(), Some("superseded"), "{followed}");
    let server = server.restarted().await;
    let old = with(4, Some(650));
    for refused in
        [meta.check_fence(&old).await.unwrap_err(), meta.register(&old).await.map(drop).unwrap_err()]
    {
        assert!(refused.is_fenced(), "{refused}");
        for part in ["older copy", "00:00:00.000000650Z", "00:00:00.000000700Z", "--old-copy"] {
            assert!(refused.to_string().contains(part), "{part}: {refused}");
        }
    }
    // One that could not say so before is told as soon as it does.
    meta.register(&with(4, None)).await.unwrap();
    assert!(meta.register(&old).await.unwrap_err().is_fenced());
    // One that was admitted with less, from images, goes on with that.
    meta.report(&told(4, 100, false)).await.unwrap();
    meta.register(&with(5, Some(100))).await.unwrap();
    meta.report(&told(5, 800, false)).await.unwrap();
    // So does a restore in place, from before it has begun.
    let restored = |boot, began_ns| {
        let uid = "an old copy of its folder".to_owned();
        let id = "ab".to_owned();
        let restore = RestoreEpoch { epoch: 0, id, uid, cut_ns: 10, began_ns, prepared_ns: None };
        Register { restore: Some(restore), ..with(boot, Some(10)) }
    };
    meta.register(&restored(6, None)).await.unwrap();
    let begun = restored(6, Some(20));
    meta.check_fence(&begun).await.unwrap();
    meta.register(&begun).await.unwrap();
    meta.register(&restored(7, Some(20))).await.unwrap();
    server.stop().await;
}

/// Each of the phases of a disk snapshot would begin with a handshake otherwise.
#[tokio::test]
async fn a_member_that_asks_the_coordinator_anew_ends_its_older_question_and_breaks_nothing_off() {
    let server = started().await;
    let meta = server.with_volume().await;
    let registered = meta.register(&register(1)).await.unwrap();
    let (node, epoch) = (registered.store.to_string(), registered.epoch);
    let poll = Poll { node, epoch, holding: vec![], doing: None, said: vec![], readers: None };
    let ask = || {
        let (meta, poll) = (meta.clone(), poll.clone());
        async move { meta.ask_coordinator::<Vec<Order>>("/v1/meta/snapshot", &poll).await.unwrap() }
    };
    let begun = Instant::now();
    let mut older = tokio::spawn(ask());
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!older.is_finished(), "there is nothing to do");
        let newer = tokio::spawn(ask());
        assert_eq!(std::mem::replace(&mut older, newer).await.unwrap(), []);
    }
    // Whoever does not wait for the answer asks all the same, and that is what ends the older one.
    tokio::time::timeout(Duration::from_millis(200), ask()).await.unwrap_err();
    assert_eq!(older.await.unwrap(), []);
    // One that was superseded is another member: they would end each other's questions again and again.
    let newest = meta.register(&register(2)).await.unwrap();
    let asked = Poll { epoch: newest.epoch, ..poll.clone() };
    let (asking, superseded) = (meta.clone(), tokio::spawn(ask()));
    let newest = tokio::spawn(async move {
        asking.ask_coordinator::<Vec<Order>>("/v1/meta/snapshot", &asked).await.unwrap()
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!superseded.is_finished(), "{:?}", superseded.await);
    assert!(!newest.is_finished(), "{:?}", newest.await);
    superseded.abort();
    newest.abort();
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}: they were answered when their time was over",
        begun.elapsed()
    );
    server.stop().await;
}

#[tokio::test]
async fn only_the_owner_of_a_store_is_told_what_to_serve() {
    let server = started().await;
    let meta = server.with_volume().await;
    let unknown = meta.assignment(1, 0).await.unwrap_err();
    assert_eq!(unknown.code(), Some("unavailable"), "{unknown}");
    meta.register(&register(1)).await.unwrap();
    let revision = meta.assignment(1, 0).await.unwrap().revision;
    let waiting = {
        let meta = meta.clone();
        tokio::spawn(async move { meta.assignment(1, revision).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    meta.register(&register(2)).await.unwrap();
    let refused = waiting.await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Some("superseded"), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(meta.assignment(2, 0).await.unwrap().revision, revision);
    server.stop().await;
}

#[tokio::test]
async fn an_admin_that_is_an_old_copy_goes_on_above_the_epochs_that_members_had() {
    let server = started().await;
    let meta = server.with_volume().await;
    assert_eq!(meta.register(&register(1)).await.unwrap().epoch, 1);
    // As after a restore: members had epochs that this database has never given.
    let held = |boot, epoch| Register { epoch, ..register(boot) };
    assert_eq!(meta.register(&held(2, 7)).await.unwrap().epoch, 8, "a boot that is not known");
    assert_eq!(meta.register(&held(2, 8)).await.unwrap().epoch, 8, "the owner keeps it");
    assert_eq!(
        meta.register(&held(2, 20)).await.unwrap().epoch,
        21,
        "a boot that is known under a lower one"
    );
    assert_eq!(meta.register(&held(3, 0)).await.unwrap().epoch, 22, "and never a lower one again");
    assert_eq!(meta.register(&held(2, 21)).await.unwrap_err().code(), Some("superseded"));
    for claimed in [u64::MAX, i64::MAX as u64, 1 << 60] {
        assert_eq!(meta.register(&held(4, claimed)).await.unwrap_err().code(), Some("invalid"), "{claimed}");
    }
    assert_eq!(meta.register(&held(4, 22)).await.unwrap().epoch, 23);
}

#[tokio::test]
async fn an_assignment_waits_for_the_next_change_and_tells_all() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let first = meta.assignment(1, 0).await.unwrap();
    assert_eq!(first.volumes.len(), 1);
    assert_eq!(first.volumes[0].store.kind, StoreKind::Local { path: "/srv/b".to_owned() });
    assert!(first.tokens.is_empty());
    let waiting = tokio::spawn({
        let meta = meta.clone();
        async move { meta.assignment(1, first.revision).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    let body = json!({"volume": "v", "path": "/sub/", "read_only": true, "past": false});
    let made = server.post("/v1/volume-tokens", body).await;
    let second = waiting.await.unwrap().unwrap();
    assert!(second.revision > first.revision);
    let token: Token = made["token"].as_str().unwrap().parse().unwrap();
    let told = &second.tokens[0];
    assert_eq!((told.id, &told.secret_sha256), (token.id, &token.secret.sha256().to_string()));
    assert_eq!((told.path.as_deref(), told.read_only, told.past), (Some("/sub"), true, false));
    let path = format!("/v1/volume-tokens/{}", token.id);
    let _: Value = server.client.call(Method::DELETE, &path, None::<&()>).await.unwrap();
    let _: Value = server.client.call(Method::DELETE, "/v1/volumes/v", None::<&()>).await.unwrap();
    let last = meta.assignment(1, second.revision).await.unwrap();
    assert!(last.tokens.is_empty() && last.volumes[0].deleted);
    assert_eq!(last.volumes[0].spec.id, first.volumes[0].spec.id);
}

async fn delete(server: &common::Running, path: &str) {
    let _: Value = server.client.call(Method::DELETE, path, None::<&()>).await.unwrap();
}

/// A bucket is opened once for all of its volumes, whichever of them is named.
#[tokio::test]
async fn the_credentials_of_a_bucket_come_with_deleted_volumes_too() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let definition = json!({"kind": "s3", "bucket": "bytes", "endpoint": "http://127.0.0.1:1"});
    let credentials = json!({"type": "access-key", "id": "who", "secret": "hunter2"});
    let bucket =
        json!({"name": "cloud", "definition": definition, "credentials": credentials, "unchecked": true});
    server.post("/v1/block-stores", bucket).await;
    for name in ["w", "x"] {
        server
            .post("/v1/volumes", json!({"name": name, "block_store": "cloud", "metadata_store": "m"}))
            .await;
    }
    delete(&server, "/v1/volumes/x").await;
    let volumes = meta.assignment(1, 0).await.unwrap().volumes;
    let in_bucket: Vec<_> = volumes.iter().filter(|volume| volume.store.kind.bucket().is_some()).collect();
    assert_eq!(in_bucket.iter().map(|volume| volume.deleted).collect::<Vec<_>>(), [false, true]);
    for volume in in_bucket {
        assert!(serde_json::to_string(&volume.store).unwrap().contains("hunter2"), "{}", volume.spec.name);
    }
}

#[tokio::test]
async fn a_deleted_volume_is_kept_and_can_be_taken_back_until_it_is_given_up() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let id = server.get("/v1/volumes/v").await["id"].as_str().unwrap().to_owned();
    let told = |deleted, after_s| {
        let (meta, id) = (meta.clone(), id.clone());
        async move {
            let volumes = meta.assignment(1, 0).await.unwrap().volumes;
            let found = volumes.iter().find(|volume| volume.spec.id.to_string() == id).unwrap();
            assert_eq!((found.deleted, found.give_up_after_s), (deleted, after_s));
        }
    };
    delete(&server, "/v1/volumes/v").await;
    told(true, None).await;
    let kept = server.get("/v1/deleted-volumes/v").await;
    assert_eq!((&kept["id"], &kept["state"]), (&json!(id), &json!("kept")));
    assert!(kept["kept_until"].as_str() > kept["deleted"].as_str(), "{kept}");
    for store in ["/v1/block-stores/b", "/v1/metadata-stores/m"] {
        let (code, message) = server.refused(Method::DELETE, store, Value::Null).await;
        assert!(code == "in_use" && message.contains("deleted-volume 'v'"), "{message}");
    }

    // Its name was free meanwhile.
    let again = json!({"name": "v", "block_store": "b", "metadata_store": "m", "retention": "-1"});
    server.post("/v1/volumes", again).await;
    let path = "/v1/deleted-volumes/v/undelete";
    let (code, _) = server.refused(Method::POST, path, json!({})).await;
    assert_eq!(code, "exists");
    let back = server.post(path, json!({"new_name": "w"})).await;
    assert_eq!((&back["id"], &back["name"]), (&json!(id), &json!("w")));
    told(false, None).await;
    assert_eq!(server.get("/v1/deleted-volumes").await, json!([]));

    delete(&server, "/v1/volumes/v?keep=-1").await;
    delete(&server, &format!("/v1/volumes/{id}?keep=0")).await;
    let begun = Instant::now();
    while server.get("/v1/deleted-volumes/w").await["state"] != "due" {
        assert!(begun.elapsed() < Duration::from_secs(20), "its time is over");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    told(true, Some(0)).await;
    // Its server has not begun yet.
    server.post("/v1/deleted-volumes/w/undelete", json!({})).await;
    told(false, None).await;
    delete(&server, &format!("/v1/volumes/{id}?keep=0")).await;
    // What is kept for ever is given up by a word.
    let other = server.get("/v1/deleted-volumes/v").await;
    assert_eq!((&other["state"], &other["kept_until"]), (&json!("kept"), &Value::Null));
    delete(&server, "/v1/deleted-volumes/v").await;
    assert_eq!(server.get("/v1/deleted-volumes/v").await["state"], "due");

    let gone = VolumeReport {
        id: id.parse().unwrap(),
        born_ns: 1,
        earliest_ns: 1,
        used_bytes: 0,
        used_inodes: 0,
        sessions: 0,
        problem: None,
        missing: false,
        given_up: true,
        gone: true,
        keys: None,
    };
    let going = VolumeReport { gone: false, ..gone.clone() };
    for needed in [Some("instants of it are kept for brake 7".to_owned()), None] {
        let going = VolumeReport { problem: needed.clone(), ..going.clone() };
        meta.report(&Report { revision: 2, volumes: vec![going], ..Report::default() }).await.unwrap();
        let shown = server.get("/v1/deleted-volumes/w").await;
        assert_eq!((&shown["detail"], &shown["state"]), (&json!(needed), &json!("given up")));
    }
    let server = server.restarted().await;
    for (method, path) in
        [(Method::POST, "/v1/deleted-volumes/w/undelete"), (Method::DELETE, "/v1/deleted-volumes/w")]
    {
        let body = if method == Method::POST { json!({}) } else { Value::Null };
        let (code, message) = server.refused(method, path, body).await;
        assert!(code == "invalid" && message.contains("given up already"), "{message}");
    }
    meta.report(&Report { revision: 2, volumes: vec![gone.clone()], ..Report::default() }).await.unwrap();
    let left = server.get("/v1/deleted-volumes").await;
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
    let volumes = meta.assignment(1, 0).await.unwrap().volumes;
    assert!(
        volumes.iter().all(|volume| volume.spec.id.to_string() != id),
        "nobody has to know of it any more"
    );
    // A volume that lives is not gone, whatever is said.
    let live = json!({"name": "x", "block_store": "b", "metadata_store": "m"});
    let live = server.post("/v1/volumes", live).await["id"].as_str().unwrap().parse().unwrap();
    let lie = VolumeReport { id: live, ..gone };
    meta.report(&Report { revision: 2, volumes: vec![lie], ..Report::default() }).await.unwrap();
    delete(&server, "/v1/volumes/x").await;
    assert_eq!(server.get("/v1/deleted-volumes/x").await["state"], "kept");
    server.stop().await;
}

#[tokio::test]
async fn a_mount_learns_where_its_volume_is_once_a_server_has_registered() {
    let server = started().await;
    let meta = server.with_volume().await;
    let made = server.post("/v1/volume-tokens", json!({"volume": "v"})).await;
    let mount = AdminClient::new(&made["token"].as_str().unwrap().parse().unwrap()).unwrap();
    let early = mount.resolve("v").await.unwrap_err();
    assert_eq!(early.code(), Some("unavailable"));
    assert!(early.is_transient() && early.to_string().contains("metadata store 'm'"), "{early}");
    meta.register(&register(5)).await.unwrap();
    let resolved = mount.resolve("v").await.unwrap();
    assert_eq!((resolved.address.as_str(), resolved.epoch), ("meta.example:8005", 1));
    assert_eq!(mount.resolve(&resolved.volume.to_string()).await.unwrap(), resolved);
    let unknown = mount.resolve("w").await.unwrap_err();
    assert_eq!(unknown.code(), Some("not_found"));
    let place = mount.store_place("v").await.unwrap();
    assert_eq!(place.kind, StoreKind::Local { path: "/srv/b".to_owned() });
    assert_eq!(place.id, meta.assignment(5, 0).await.unwrap().volumes[0].store.id);
    assert_eq!(mount.store_place("w").await.unwrap_err().code(), Some("not_found"));
    assert_eq!(meta.store_place("v").await.unwrap_err().code(), Some("forbidden"));
    let wrong_kind = meta.resolve("v").await.unwrap_err();
    assert_eq!(wrong_kind.code(), Some("forbidden"));
    let wrong_kind = mount.assignment(1, 0).await.unwrap_err();
    assert_eq!(wrong_kind.code(), Some("forbidden"));
}

#[tokio::test]
async fn a_report_is_shown_with_the_volume_and_keeps_a_mounted_one() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let waiting = server.get("/v1/volumes/v").await;
    assert_eq!(waiting["detail"], "waiting for the server of metadata store 'm'");
    assert_eq!(server.get("/v1/metadata-stores/m").await["connected"], true);
    let id = waiting["id"].as_str().unwrap().parse().unwrap();
    let mut volume = VolumeReport {
        id,
        born_ns: 1,
        earliest_ns: 1_000_000_000,
        used_bytes: 7,
        used_inodes: 2,
        sessions: 3,
        problem: None,
        missing: false,
        given_up: false,
        gone: false,
        keys: None,
    };
    meta.report(&Report { revision: 2, volumes: vec![volume.clone()], ..Report::default() }).await.unwrap();
    let ready = server.get("/v1/volumes/v").await;
    assert_eq!((&ready["state"], &ready["used_bytes"]), (&json!("ready"), &json!(7)));
    assert_eq!(ready["earliest"], "1970-01-01T00:00:01.000000000Z");
    let (code, message) = server.refused(Method::DELETE, "/v1/volumes/v", Value::Null).await;
    assert_eq!(code, "in_use");
    assert!(message.contains("3 mounts"), "{message}");
    volume.problem = Some("folder /srv/b: permission denied".to_owned());
    meta.report(&Report { revision: 2, volumes: vec![volume], ..Report::default() }).await.unwrap();
    let problem = server.get("/v1/volumes/v").await;
    assert_eq!(
        (&problem["state"], &problem["detail"]),
        (&json!("problem"), &json!("folder /srv/b: permission denied"))
    );
}

#[tokio::test]
async fn a_change_does_not_take_back_another_that_was_made_while_it_was_checked() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let revision = meta.assignment(1, 0).await.unwrap().revision;
    let to = |path: &str| json!({"definition": {"kind": "local", "path": path}});
    let slow = {
        let (client, change) = (server.client.clone(), to("/srv/slow"));
        async move { client.call::<Value>(Method::PATCH, "/v1/block-stores/b", Some(&change)).await }
    };
    let slow = tokio::spawn(slow);
    let begun = Instant::now();
    let asked = loop {
        let probes = meta.assignment(1, 0).await.unwrap().probes;
        if let [asked] = &probes[..] {
            break asked.id;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "nobody was asked to look at the folder");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let mut quick = to("/srv/quick");
    quick["unchecked"] = json!(true);
    let _: Value = server.client.call(Method::PATCH, "/v1/block-stores/b", Some(&quick)).await.unwrap();
    let probed = vec![Probed { id: asked, problem: None }];
    meta.report(&Report { revision, probed, ..Report::default() }).await.unwrap();
    let refused = slow.await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Some("changed"), "{refused}");
    assert_eq!(server.get("/v1/block-stores/b").await["place"], "/srv/quick");
}

#[tokio::test]
async fn a_stop_ends_long_polls_at_once_and_leaves_no_wal() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let revision = meta.assignment(1, 0).await.unwrap().revision;
    let waiting = tokio::spawn(async move { meta.assignment(1, revision).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    let (folder, ..) = server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(waiting.await.unwrap().unwrap().revision, revision);
    let wal = folder.path().join(format!("{}-wal", chronofs_admin::db::DATABASE_FILE));
    assert!(!wal.exists() || wal.metadata().unwrap().len() == 0);
}

#[tokio::test]
async fn a_second_process_and_a_taken_port_are_refused_by_name() {
    let server = started().await;
    let config = StartConfig {
        db_folder: server.folder.path().to_owned(),
        bind_addr: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        snapshots: Default::default(),
        cluster_file: None,
        locality: Default::default(),
        deploy_folder: None,
    };
    let locked = Server::bind(config.clone()).await.err().unwrap();
    assert!(matches!(locked, AdminError::Locked { .. }), "{locked}");
    assert!(locked.to_string().contains(&std::process::id().to_string()), "{locked}");
    let other = tempfile::tempdir().unwrap();
    let fresh = StartConfig { db_folder: other.path().to_owned(), ..config };
    let missing = Server::bind(fresh.clone()).await.err().unwrap().to_string();
    assert!(missing.contains("init creds"), "{missing}");
    let init = InitConfig {
        db_folder: other.path().to_owned(),
        address: None,
        tls: None,
        rotate: false,
        cluster_file: None,
    };
    let token: Token = init_creds(&init).unwrap().parse().unwrap();
    assert_eq!(token.admin, "localhost:8443");
    let twice = init_creds(&init).unwrap_err().to_string();
    assert!(twice.contains("--rotate"), "{twice}");
    let rotated: Token = init_creds(&InitConfig { rotate: true, ..init }).unwrap().parse().unwrap();
    assert!(rotated.id != token.id && rotated.pin == token.pin);
    let taken = StartConfig { bind_addr: server.address.parse().unwrap(), ..fresh };
    let taken = Server::bind(taken).await.err().unwrap().to_string();
    assert!(taken.contains(&server.address) && taken.contains("in use"), "{taken}");
}
