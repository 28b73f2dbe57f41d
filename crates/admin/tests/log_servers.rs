//! Log servers: who is told of whom, with which secret, and which start is the server.

#![allow(clippy::unwrap_used)]

mod common;

use chronofs_admin::NewCluster;
use chronofs_wire::admin::{Assignment, Register};
use chronofs_wire::cluster::ClusterName;
use chronofs_wire::http::AdminClient;
use chronofs_wire::identity::Sha256;
use chronofs_wire::log::{LogChange, LogCopies, OpenLog};
use chronofs_wire::tlog::{LogAssignment, LogServerSaid};
use chronofs_wire::token::Token;
use common::{Running, serving, started};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

fn register(boot: u64) -> Register {
    let certificate_sha256 = Sha256::of(b"far").to_string();
    Register {
        address: format!("far.example:{}", 8446 + boot),
        certificate_sha256,
        boot,
        epoch: 0,
        ..Register::default()
    }
}

async fn log_server(server: &Running, name: &str) -> AdminClient {
    let made = server.post("/v1/log-servers", json!({ "name": name })).await;
    let token: Token = made["token"].as_str().unwrap().parse().unwrap();
    AdminClient::new(&token).unwrap()
}

async fn want(server: &Running, copies: &[&str]) -> Value {
    let body = json!({ "log_copies": copies });
    server.client.call(Method::PATCH, "/v1/metadata-stores/m", Some(&body)).await.unwrap()
}

fn count(boot: u64, after: u64, names: &[&str]) -> OpenLog {
    let copies = names.iter().map(|name| (*name).to_owned()).collect();
    let members = LogCopies { copies, anti_quorum: 0 };
    OpenLog { boot, above: 0, change: Some(LogChange { after, members }) }
}

/// The secrets of a store for its log servers, as they are told, and whether the log server has the hash of its own.
fn fits(told: &Assignment, far: &LogAssignment) -> bool {
    let secret = told.log_servers.iter().find(|access| access.name == "far").unwrap().presented().unwrap();
    far.stores.len() == 1 && far.stores[0].secret_sha256 == secret.sha256()
}

#[tokio::test]
async fn a_store_and_its_log_server_are_told_of_each_other_and_nobody_else_is() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&Register { address: "m:1".to_owned(), ..register(1) }).await.unwrap();
    let (far, near) = (log_server(&server, "far").await, log_server(&server, "near").await);
    assert_eq!(far.log_assignment(1, 0).await.unwrap_err().code(), Some("unavailable"), "not registered");
    far.register_log_server(&register(1)).await.unwrap();
    near.register_log_server(&register(9)).await.unwrap();
    let before = far.log_assignment(1, 0).await.unwrap();
    assert!(before.stores.is_empty());
    assert!(meta.assignment(1, 0).await.unwrap().log_servers.is_empty());
    let (_, unknown) = server
        .refused(Method::PATCH, "/v1/metadata-stores/m", json!({ "log_copies": ["tlog:nowhere"] }))
        .await;
    assert!(unknown.contains("no log server 'nowhere'") && unknown.contains("tlog:far"), "{unknown}");

    // It waits for news, and gets them at once.
    let waiting = far.clone();
    let waits = tokio::spawn(async move { waiting.log_assignment(1, before.revision).await.unwrap() });
    let shown = want(&server, &["tlog:far", "/disk2"]).await;
    assert!(!shown.to_string().contains("secret"), "{shown}");
    let told = tokio::time::timeout(Duration::from_secs(5), waits).await.unwrap().unwrap();
    let asked = meta.assignment(1, 0).await.unwrap();
    assert!(fits(&asked, &told), "{asked:?} {told:?}");
    assert_eq!(asked.log_servers[0].address.as_deref(), Some("far.example:8447"));
    assert!(near.log_assignment(9, 0).await.unwrap().stores.is_empty());
    assert_eq!(server.get("/v1/log-servers/far").await["stores"], json!(["m"]));

    // Another one that the same store names has another secret.
    want(&server, &["tlog:far", "tlog:near"]).await;
    let asked = meta.assignment(1, 0).await.unwrap();
    let secrets: Vec<_> = asked.log_servers.iter().map(|access| access.presented().unwrap()).collect();
    assert!(secrets.len() == 2 && secrets[0] != secrets[1]);
    want(&server, &["tlog:far"]).await;
    assert!(near.log_assignment(9, 0).await.unwrap().stores.is_empty());

    // A copy that counts is reached until it does not, whatever is wanted.
    meta.open_log(&count(1, 0, &["tlog:far"])).await.unwrap();
    want(&server, &[]).await;
    assert!(fits(&meta.assignment(1, 0).await.unwrap(), &far.log_assignment(1, 0).await.unwrap()));
    let (code, why) = server.refused(Method::DELETE, "/v1/log-servers/far", Value::Null).await;
    assert!(code == "in_use" && why.contains("metadata store 'm'"), "{code}: {why}");

    // A new token of the store makes its secrets others.
    let old = far.log_assignment(1, 0).await.unwrap();
    let body = json!({ "new_token": true });
    let made: Value = server.client.call(Method::PATCH, "/v1/metadata-stores/m", Some(&body)).await.unwrap();
    let new = far.log_assignment(1, 0).await.unwrap();
    assert_ne!(old.stores[0].secret_sha256, new.stores[0].secret_sha256);
    assert!(meta.assignment(1, 0).await.is_err());
    let token: Token = made["token"].as_str().unwrap().parse().unwrap();
    let meta = AdminClient::new(&token).unwrap();
    meta.register(&Register { address: "m:1".to_owned(), ..register(2) }).await.unwrap();
    assert!(fits(&meta.assignment(2, 0).await.unwrap(), &new));
    let server = server.restarted().await;
    assert!(fits(&meta.assignment(2, 0).await.unwrap(), &far.log_assignment(1, 0).await.unwrap()));

    meta.open_log(&count(2, 1, &[])).await.unwrap();
    assert!(far.log_assignment(1, 0).await.unwrap().stores.is_empty());
    server.client.call::<Value>(Method::DELETE, "/v1/log-servers/far", None::<&()>).await.unwrap();
    assert_eq!(far.log_assignment(1, 0).await.unwrap_err().code(), Some("unauthorized"));
    server.stop().await;
}

#[tokio::test]
async fn the_newest_start_is_the_log_server_and_says_how_it_is() {
    let server = started().await;
    let far = log_server(&server, "far").await;
    assert_eq!(far.register_log_server(&register(1)).await.unwrap().epoch, 1);
    assert_eq!(far.register_log_server(&register(1)).await.unwrap().epoch, 1, "the answer was lost");
    assert_eq!(server.get("/v1/log-servers/far").await["connected"], false);
    let said = |boot| LogServerSaid { boot, ..LogServerSaid::default() };
    far.report_log_server(&said(1)).await.unwrap();
    let shown = server.get("/v1/log-servers/far").await;
    assert_eq!((&shown["connected"], &shown["address"]), (&json!(true), &json!("far.example:8447")));
    assert_eq!(far.register_log_server(&register(2)).await.unwrap().epoch, 2);
    for refused in [
        far.register_log_server(&register(1)).await.map(drop),
        far.log_assignment(1, 0).await.map(drop),
        far.report_log_server(&said(1)).await,
    ] {
        assert_eq!(refused.unwrap_err().code(), Some("superseded"));
    }
    // The server has held a higher epoch than this database, which is an old copy.
    let held = Register { epoch: 40, ..register(2) };
    assert_eq!(far.register_log_server(&held).await.unwrap().epoch, 41);
    let status = server.get("/v1/status").await;
    assert_eq!(
        (&status["log_servers"][0]["name"], &status["log_servers"][0]["epoch"]),
        (&json!("far"), &json!(41))
    );
    // Tokens of other kinds lead to no place of a log server, and its own to no other.
    let root = &server.client;
    assert_eq!(root.log_assignment(2, 0).await.unwrap_err().code(), Some("forbidden"));
    assert_eq!(far.register(&register(2)).await.unwrap_err().code(), Some("forbidden"));
    let listed = far.call::<Value>(Method::GET, "/v1/log-servers", None::<&()>).await;
    assert_eq!(listed.unwrap_err().code(), Some("forbidden"));
    server.stop().await;
}

#[tokio::test]
async fn a_clone_has_no_log_servers_and_no_key_for_those_of_its_source() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&Register { address: "m:1".to_owned(), ..register(1) }).await.unwrap();
    let far = log_server(&server, "far").await;
    far.register_log_server(&register(1)).await.unwrap();
    want(&server, &["tlog:far"]).await;
    let before = meta.assignment(1, 0).await.unwrap().log_servers;
    let (folder, root, address) = server.stop().await;
    let clone = NewCluster {
        uid: "ab".repeat(16),
        source: "lab:1".to_owned(),
        name: ClusterName::draw("clone").unwrap(),
        address: address.clone(),
    };
    let (tokens, _) = chronofs_admin::prepare_clone(folder.path(), &clone).unwrap();
    let server = serving(folder, root, address).await;
    assert_eq!(server.get("/v1/log-servers").await, json!([]));
    assert_eq!(far.log_assignment(1, 0).await.unwrap_err().code(), Some("unauthorized"));
    let meta = AdminClient::new(tokens.values().next().unwrap()).unwrap();
    meta.register(&Register { address: "m:1".to_owned(), ..register(2) }).await.unwrap();
    assert!(meta.assignment(2, 0).await.unwrap().log_servers.is_empty());
    // One of the same name there is another one.
    let far = log_server(&server, "far").await;
    far.register_log_server(&register(1)).await.unwrap();
    want(&server, &["tlog:far"]).await;
    let after = meta.assignment(2, 0).await.unwrap().log_servers;
    assert_ne!(before[0].presented(), after[0].presented());
    server.stop().await;
}

/// A log server with a copy that counts is a member of every snapshot.
#[tokio::test]
async fn a_snapshot_without_a_log_server_that_counts_is_refused() {
    let server = started().await;
    let meta = server.with_volume().await;
    meta.register(&Register { address: "m:1".to_owned(), ..register(1) }).await.unwrap();
    let far = log_server(&server, "far").await;
    far.register_log_server(&register(1)).await.unwrap();
    want(&server, &["tlog:far"]).await;
    let body = |uid: &str| json!({ "uid": uid.repeat(16), "program": "/bin/true", "arguments": [] });
    meta.open_log(&count(1, 0, &["tlog:far"])).await.unwrap();
    let refused = server.post("/v1/snapshots", body("ab")).await.to_string();
    assert!(
        refused.contains("log server 'far' has a log copy that counts, and is not connected"),
        "{refused}"
    );
    // In touch, it is one of the members; without a copy that counts it is none.
    far.report_log_server(&LogServerSaid { boot: 1, ..LogServerSaid::default() }).await.unwrap();
    let begun = server.post("/v1/snapshots", body("ab")).await;
    let nodes = begun["record"]["intent"]["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|node| node["name"] == "far").unwrap();
    assert_eq!(node["roles"], json!(["tlog"]));
    assert_eq!(node["copies"].as_array().unwrap().len(), 1);
    // Another set of copies than the one that it began with ends it.
    meta.open_log(&count(1, 1, &[])).await.unwrap();
    let uid = "ab".repeat(16);
    let ended = server.get(&format!("/v1/snapshots/{uid}")).await;
    assert_eq!(ended["state"], "FAILED", "{ended}");
    let begun = server.post("/v1/snapshots", body("cd")).await;
    assert_eq!(begun["record"]["intent"]["nodes"].as_array().unwrap().len(), 2, "{begun}");
    server.stop().await;
}

#[tokio::test]
async fn an_id_that_is_none_is_an_error_and_not_another_id() {
    let server = started().await;
    server.with_volume().await;
    log_server(&server, "far").await;
    assert_eq!(server.get("/v1/status").await["log_servers"][0]["name"], "far");
    for (table, what) in [("log_server", "log server 'far'"), ("metadata_store", "metadata store 'm'")] {
        let database = rusqlite::Connection::open(server.folder.path().join("admin.sqlite")).unwrap();
        database.pragma_update(None, "foreign_keys", false).unwrap();
        let id: String =
            database.query_row(&format!("SELECT id FROM {table}"), [], |row| row.get(0)).unwrap();
        let rename = format!("UPDATE {table} SET id = ?1");
        database.execute(&rename, ["no-id"]).unwrap();
        let (code, said) = server.refused(Method::GET, "/v1/status", Value::Null).await;
        assert!(code == "internal" && said.contains(what) && said.contains("'no-id'"), "{code}: {said}");
        database.execute(&rename, [id]).unwrap();
    }
}
