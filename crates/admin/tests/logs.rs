//! Copies of the logs of metadata stores: who may say which count, and what a lost answer does.

#![allow(clippy::unwrap_used)]

mod common;

use chronofs_admin::NewCluster;
use chronofs_wire::admin::Register;
use chronofs_wire::cluster::ClusterName;
use chronofs_wire::http::AdminClient;
use chronofs_wire::identity::Sha256;
use chronofs_wire::log::{LogChange, LogCopies, LogEpoch, OpenLog};
use common::{serving, started};
use reqwest::Method;
use serde_json::{Value, json};

fn register(boot: u64) -> Register {
    let certificate_sha256 = Sha256::of(b"meta").to_string();
    Register {
        address: "meta.example:8444".to_owned(),
        certificate_sha256,
        boot,
        epoch: 0,
        ..Register::default()
    }
}

fn copies(names: &[&str]) -> LogCopies {
    LogCopies { copies: names.iter().map(|name| (*name).to_owned()).collect(), anti_quorum: 0 }
}

fn change(boot: u64, after: u64, names: &[&str]) -> OpenLog {
    OpenLog { boot, above: 0, change: Some(LogChange { after, members: copies(names) }) }
}

#[tokio::test]
async fn only_the_owner_opens_epochs_of_its_log_and_only_after_the_newest() {
    let server = started().await;
    let meta = server.with_volume().await;
    assert_eq!(meta.open_log(&change(1, 0, &["/a"])).await.unwrap_err().code(), Some("unavailable"));
    meta.register(&register(1)).await.unwrap();
    let before = meta.assignment(1, 0).await.unwrap();
    assert_eq!(before.log, LogEpoch::default());
    let first = meta.open_log(&change(1, 0, &["/a", "/b"])).await.unwrap();
    assert_eq!((first.epoch, first.boot, &first.members), (1, 1, &copies(&["/a", "/b"])));
    assert_eq!(meta.open_log(&change(1, 0, &["/a", "/b"])).await.unwrap(), first, "the answer was lost");
    let second = meta.open_log(&change(1, 1, &["/a"])).await.unwrap();
    assert_eq!(second.epoch, 2);
    let late = meta.open_log(&change(1, 1, &["/b"])).await.unwrap_err();
    assert_eq!(late.code(), Some("superseded"), "{late}");
    let told = meta.assignment(1, before.revision).await.unwrap();
    assert_eq!(told.log, second);

    // A later start takes the same copies over; the old one is not heard any more.
    meta.register(&register(2)).await.unwrap();
    let taken = meta.open_log(&OpenLog { boot: 2, above: 0, change: None }).await.unwrap();
    assert_eq!((taken.epoch, taken.boot, &taken.members), (3, 2, &copies(&["/a"])));
    assert_eq!(meta.open_log(&change(1, 2, &[])).await.unwrap_err().code(), Some("superseded"));
    assert_eq!(meta.open_log(&change(2, 2, &[])).await.unwrap_err().code(), Some("superseded"));
    // An admin server that is an old copy goes on above what copies obey.
    let above = meta.open_log(&OpenLog { above: 40, ..change(2, 3, &["/a", "/c"]) }).await.unwrap();
    assert_eq!(above.epoch, 41);
    let absurd = OpenLog { boot: 2, above: u64::MAX >> 1, change: None };
    assert_eq!(meta.open_log(&absurd).await.unwrap_err().code(), Some("invalid"));
    let server = server.restarted().await;
    assert_eq!(meta.assignment(2, 0).await.unwrap().log, above);
    server.stop().await;
}

#[tokio::test]
async fn copies_that_make_no_sense_are_refused() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    let update = |body: Value| {
        let client = server.client.clone();
        async move { client.call::<Value>(Method::PATCH, "/v1/metadata-stores/m", Some(&body)).await }
    };
    let many: Vec<String> = (0..9).map(|n| format!("/disk{n}")).collect();
    for body in [
        json!({"log_copies": ["relative"]}),
        json!({"log_copies": ["/"]}),
        json!({"log_copies": ["/a/../b"]}),
        json!({"log_copies": ["/a/"]}),
        json!({"log_copies": ["/a", "//a"]}),
        json!({"log_copies": ["/a/b", "/a//b"]}),
        json!({"log_copies": ["/a", "/./a"]}),
        json!({"log_copies": ["/a/."]}),
        json!({"log_copies": ["/a\n"]}),
        json!({"log_copies": ["/a", "/a"]}),
        json!({"log_copies": many}),
        json!({"log_copies": ["/a", "/b"], "log_anti_quorum": 1}),
        json!({"log_copies": ["/a", "/b", "/c", "/d"], "log_anti_quorum": 2}),
        json!({"log_anti_quorum": 1}),
    ] {
        let error = update(body.clone()).await.unwrap_err();
        assert_eq!(error.code(), Some("invalid"), "{body}: {error}");
    }
    let before = meta.assignment(1, 0).await.unwrap();
    let shown = update(json!({"log_copies": ["/a", "/b.", "/c"], "log_anti_quorum": 1})).await.unwrap();
    assert_eq!(shown["log"]["wanted"], json!({"copies": ["/a", "/b.", "/c"], "anti_quorum": 1}));
    let told = meta.assignment(1, before.revision).await.unwrap().log;
    assert_eq!((told.epoch, told.wanted.copies.len(), told.wanted.anti_quorum), (0, 3, 1));
    let shown = update(json!({"log_copies": [], "log_anti_quorum": 0})).await.unwrap();
    assert_eq!(shown["log"]["wanted"]["copies"], json!([]));
    server.stop().await;
}

#[tokio::test]
async fn a_clone_has_no_copies_and_leaves_those_of_its_source_alone() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&register(1)).await.unwrap();
    assert_eq!(meta.open_log(&change(1, 0, &["/a"])).await.unwrap().epoch, 1);
    let (folder, root, address) = server.stop().await;
    let clone = NewCluster {
        uid: "ab".repeat(16),
        source: "lab:1".to_owned(),
        name: ClusterName::draw("clone").unwrap(),
        address: address.clone(),
    };
    let (tokens, _) = chronofs_admin::prepare_clone(folder.path(), &clone).unwrap();
    let server = serving(folder, root, address).await;
    let meta = AdminClient::new(tokens.values().next().unwrap()).unwrap();
    meta.register(&register(2)).await.unwrap();
    assert_eq!(meta.assignment(2, 0).await.unwrap().log, LogEpoch::default());
    server.stop().await;
}
