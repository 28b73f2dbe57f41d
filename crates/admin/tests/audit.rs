//! Who did what is written down, whoever asks and however it ends, and never a secret.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use chronofs_wire::admin::Register;
use chronofs_wire::http::{AdminClient, Method};
use chronofs_wire::identity::{Secret, Sha256};
use chronofs_wire::question::{Answer, Answers, Said};
use chronofs_wire::token::{Token, TokenKind};
use common::{Running, started};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

async fn listed(server: &Running, query: &str) -> Vec<Value> {
    server.get(&format!("/v1/audit{query}")).await.as_array().unwrap().clone()
}

fn texts<'a>(row: &'a Value, fields: &[&str]) -> Vec<&'a str> {
    fields.iter().map(|field| row[field].as_str().unwrap()).collect()
}

#[tokio::test]
async fn what_is_refused_with_200_is_written_down_as_refused() {
    let server = started().await;
    server.with_volume().await;
    let new = json!({"uid": "ab".repeat(16), "program": "/usr/bin/true", "arguments": []});
    let refused = server.post("/v1/snapshots", new).await;
    assert!(!refused["refused"].is_null(), "no server has ever registered: {refused}");
    let row = listed(&server, "").await.remove(0);
    assert_eq!(texts(&row, &["action", "outcome"]), ["POST /v1/snapshots", "refused"]);
}

/// The client has 30 s; a shell that is closed, or a machine that goes down, has less.
#[tokio::test]
async fn what_was_done_is_written_down_as_done_also_when_who_asked_for_it_has_left() {
    let server = started().await;
    let meta = server.with_volume().await;
    let certificate_sha256 = Sha256::of(b"meta").to_string();
    let register = Register {
        address: "meta:1".to_owned(),
        certificate_sha256,
        boot: 1,
        epoch: 0,
        ..Register::default()
    };
    meta.register(&register).await.unwrap();
    let client = AdminClient::new(&server.root).unwrap();
    let new = json!({"volume": "v", "from_ns": 7, "reason": "audit"});
    let asks =
        tokio::spawn(
            async move { client.call::<Value>(Method::POST, "/v1/holds", Some(&new)).await.is_ok() },
        );
    let asked = meta.questions(1).await.unwrap().questions.remove(0);
    asks.abort();
    assert!(asks.await.unwrap_err().is_cancelled());
    // The server has time to see that.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let said = Said::Kept { problem: None };
    meta.answers(&Answers { answers: vec![Answer { id: asked.id, said }] }).await.unwrap();
    let begun = Instant::now();
    loop {
        let all = listed(&server, "").await;
        let row = all.iter().find(|row| row["action"] == "POST /v1/holds").unwrap();
        if row["outcome"] == "done" {
            assert!(row["object"].as_str().unwrap().starts_with("hold "), "{row}");
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{row}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn every_change_is_written_down_with_who_and_how_it_ended() {
    let server = started().await;
    server.with_volume().await;
    server.get("/v1/volumes").await;
    let anna = server.post("/v1/accounts", json!({"name": "anna", "role": "viewer"})).await;
    let token = anna["token"].as_str().unwrap().to_owned();
    let anna = AdminClient::new(&token.parse().unwrap()).unwrap();
    let refused = anna.call::<Value>(Method::DELETE, "/v1/volumes/v", None::<&()>).await.unwrap_err();
    assert_eq!(refused.code(), Some("forbidden"));
    let secret = json!({"name": "c", "unchecked": true, "credentials":
        {"type": "access-key", "id": "AKIA", "secret": "hunter2-hunter2"},
        "definition": {"kind": "s3", "bucket": "bytes", "region": "eu"}});
    server.post("/v1/block-stores", secret.clone()).await;
    let (code, _) = server.refused(Method::POST, "/v1/block-stores", secret).await;
    assert_eq!(code, "exists");
    let server = server.restarted().await;
    let all = listed(&server, "").await;
    let rows: Vec<Vec<&str>> =
        all.iter().rev().map(|row| texts(row, &["who", "action", "object", "outcome"])).collect();
    let root = "account root";
    assert_eq!(
        rows,
        [
            [root, "POST /v1/block-stores", "block-store b", "done"],
            [root, "POST /v1/metadata-stores", "metadata-store m", "done"],
            [root, "POST /v1/volumes", "volume v", "done"],
            [root, "POST /v1/accounts", "account anna", "done"],
            ["account anna", "DELETE /v1/volumes/{name}", "/v1/volumes/v", "forbidden"],
            [root, "POST /v1/block-stores", "block-store c", "done"],
            [root, "POST /v1/block-stores", "/v1/block-stores", "exists"],
        ]
    );
    assert!(all.iter().all(|row| row["address"] == "127.0.0.1" && row["at"].is_string()));
    let numbers: Vec<u64> = all.iter().map(|row| row["n"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a > b), "the newest first: {numbers:?}");
    let of_anna = listed(&server, "?who=anna").await;
    assert_eq!(of_anna.len(), 1);
    assert_eq!(listed(&server, &format!("?since_ns={}", u64::MAX / 2)).await, Vec::<Value>::new());
    assert_eq!(listed(&server, "?limit=2").await.len(), 2);
    // Neither tokens nor credentials are in the file.
    let secret_of = token.parse::<Token>().unwrap();
    let (folder, ..) = server.stop().await;
    let file = std::fs::read(folder.path().join("admin.sqlite")).unwrap();
    let holds = |text: &str| file.windows(text.len()).any(|found| found == text.as_bytes());
    assert!(!holds("hunter2") && !holds(&token) && holds("AKIA") && secret_of.kind == TokenKind::Account);
}

#[tokio::test]
async fn whoever_is_not_let_in_is_written_down_and_cannot_fill_the_disk() {
    let server = started().await;
    let stranger = Token { secret: Secret([7; 32]), ..server.root.clone() };
    let stranger = AdminClient::new(&stranger).unwrap();
    for _ in 0..30 {
        let refused = stranger.call::<Value>(Method::GET, "/v1/volumes", None::<&()>).await.unwrap_err();
        assert_eq!(refused.code(), Some("unauthorized"));
    }
    let all = listed(&server, "").await;
    assert!((1..30).contains(&all.len()), "those that are alike are one row: {all:?}");
    assert_eq!(all.iter().map(|row| row["times"].as_u64().unwrap()).sum::<u64>(), 30);
    let id = server.root.id;
    let expected = [format!("token {id}"), "GET /v1/volumes".to_owned(), "unauthorized".to_owned()];
    assert_eq!(texts(&all[0], &["who", "action", "outcome"]), expected);
}

#[tokio::test]
async fn what_a_viewer_fails_to_change_stays_no_longer_than_what_is_refused() {
    let server = started().await;
    let eve = server.post("/v1/accounts", json!({"name": "eve", "role": "viewer"})).await;
    let eve = AdminClient::new(&eve["token"].as_str().unwrap().parse().unwrap()).unwrap();
    let bad = eve.call::<Value>(Method::POST, "/v1/volumes", Some(&json!({"x": 1}))).await.unwrap_err();
    assert_eq!(bad.code(), Some("invalid"));
    let (folder, ..) = server.stop().await;
    let database = rusqlite::Connection::open(folder.path().join("admin.sqlite")).unwrap();
    let refused = |who: &str| -> bool {
        database.query_row("SELECT refused FROM audit WHERE actor = ?1", [who], |row| row.get(0)).unwrap()
    };
    assert!(refused("account eve") && !refused("account root"));
}
