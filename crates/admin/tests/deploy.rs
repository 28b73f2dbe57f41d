//! Executables in the deploy folder: who may put them there, that only what was signed comes in, and that what was damaged there
//! is refused by whoever fetches it.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use chronofs_keys::SecretKey;
use chronofs_wire::deploy::{PublicKey, Release, SignedRelease};
use chronofs_wire::http::{AdminClient, ClientError, Method};
use chronofs_wire::identity::Sha256;
use common::{Running, started};
use serde_json::{Value, json};

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn key() -> (SecretKey, PublicKey) {
    let key = SecretKey::new([1; 32]);
    let public = PublicKey(key.public_half().unwrap());
    (key, public)
}

fn signed(version: &str, bytes: &[u8]) -> (Release, SignedRelease) {
    let release = Release::new("chronofs", version, TARGET, bytes.len() as u64, Sha256::of(bytes)).unwrap();
    let (key, public) = key();
    let signature = key.sign(release.statement().as_bytes()).unwrap();
    let signed = release.signed(public, &signature);
    (release, signed)
}

async fn fetched(client: &AdminClient, release: &Release) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::new();
    let keep = |part: &[u8]| {
        bytes.extend_from_slice(part);
        Ok(())
    };
    client.fetch(release, keep).await?;
    Ok(bytes)
}

async fn account(server: &Running, name: &str, role: &str) -> AdminClient {
    let account = server.post("/v1/accounts", json!({"name": name, "role": role})).await;
    AdminClient::new(&account["token"].as_str().unwrap().parse().unwrap()).unwrap()
}

#[tokio::test]
async fn what_an_admin_puts_there_every_token_can_fetch_also_after_a_restart() {
    let server = started().await;
    let bytes: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
    let (release, said) = signed("1.2.3+build.7", &bytes);
    assert_eq!(server.client.deploy(&said, bytes.clone().into()).await.unwrap(), said);
    let meta = server.with_volume().await;
    let viewer = account(&server, "eve", "viewer").await;
    let server = server.restarted().await;
    for client in [&server.client, &meta, &viewer] {
        let offered = client.deployed().await.unwrap();
        assert_eq!(offered, std::slice::from_ref(&said));
        assert_eq!(offered[0].believed(&key().1).unwrap(), release);
        assert!(fetched(client, &release).await.unwrap() == bytes);
    }
    let again = server.client.deploy(&said, bytes.into()).await.unwrap_err();
    assert_eq!(again.code(), Some("exists"));
    server.client.undeploy(&release.name()).await.unwrap();
    assert_eq!(server.client.deployed().await.unwrap(), []);
    let gone = fetched(&server.client, &release).await.unwrap_err();
    assert_eq!(gone.code(), Some("not_found"));
    assert_eq!(server.client.undeploy(&release.name()).await.unwrap_err().code(), Some("not_found"));
}

#[tokio::test]
async fn only_admins_change_what_is_there_and_it_is_written_down() {
    let server = started().await;
    let (release, said) = signed("1.0.0", b"executable");
    let operator = account(&server, "olga", "operator").await;
    let refused = operator.deploy(&said, (&b"executable"[..]).into()).await.unwrap_err();
    assert_eq!(refused.code(), Some("forbidden"));
    let meta = server.with_volume().await;
    let refused = meta.deploy(&said, (&b"executable"[..]).into()).await.unwrap_err();
    assert_eq!(refused.code(), Some("forbidden"));
    server.client.deploy(&said, (&b"executable"[..]).into()).await.unwrap();
    assert_eq!(operator.undeploy(&release.name()).await.unwrap_err().code(), Some("forbidden"));
    server.client.undeploy(&release.name()).await.unwrap();
    let rows = server.get("/v1/audit").await;
    let of_deploy = rows.as_array().unwrap().iter().rev().filter_map(|row| {
        let texts = ["who", "action", "object", "outcome"].map(|field| row[field].as_str().unwrap());
        texts[1].contains("/v1/deploy").then(|| texts.join(", "))
    });
    let name = release.name();
    // What is no account's is gathered, and written a moment later.
    let (accounts, others): (Vec<_>, Vec<_>) =
        of_deploy.partition(|row: &String| row.starts_with("account "));
    assert_eq!(others, ["metadata-store m, POST /v1/deploy, /v1/deploy, forbidden"]);
    assert_eq!(
        accounts,
        [
            "account olga, POST /v1/deploy, /v1/deploy, forbidden".to_owned(),
            format!("account root, POST /v1/deploy, executable {name}, done"),
            format!("account olga, DELETE /v1/deploy/{{name}}, /v1/deploy/{name}, forbidden"),
            format!("account root, DELETE /v1/deploy/{{name}}, executable {name}, done"),
        ]
    );
}

#[tokio::test]
async fn nothing_comes_in_that_is_not_what_was_signed() {
    let server = started().await;
    let (_, said) = signed("1.0.0", b"executable");
    let send = async |said: &SignedRelease, bytes: &'static [u8]| {
        let refused = server.client.deploy(said, bytes.into()).await.unwrap_err();
        assert_eq!(refused.code(), Some("invalid"), "{refused}");
        refused.to_string()
    };
    assert!(send(&said, b"Executable").await.contains("SHA-256"));
    assert!(send(&said, b"execut").await.contains("has 6 bytes and not 10"));
    assert!(send(&said, b"executable and more").await.contains("longer than 10 bytes"));
    let other = SignedRelease { version: "1.0.1".to_owned(), ..said.clone() };
    assert!(send(&other, b"executable").await.contains("signature"));
    let unsigned = SignedRelease { signature: String::new(), ..said.clone() };
    assert!(send(&unsigned, b"executable").await.contains("is not signed"));
    let path = SignedRelease { component: "../../etc".to_owned(), ..said.clone() };
    assert!(send(&path, b"executable").await.contains("is no component"));
    let (code, _) = server.refused(Method::POST, "/v1/deploy", Value::Null).await;
    assert_eq!(code, "invalid");
    assert_eq!(server.client.deployed().await.unwrap(), []);
    let folder = server.folder.path().join("deploy");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "nothing is left");
}

#[tokio::test]
async fn what_was_changed_in_the_folder_is_refused_by_whoever_fetches_it() {
    let server = started().await;
    let (release, said) = signed("1.0.0", b"executable");
    server.client.deploy(&said, (&b"executable"[..]).into()).await.unwrap();
    let file = server.folder.path().join("deploy").join(release.name());
    for (bytes, why) in [
        (&b"Executable"[..], "SHA-256"),
        (b"exec", "has 4 bytes and not 10"),
        (b"executable++", "longer than"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let refused = fetched(&server.client, &release).await.unwrap_err();
        assert!(matches!(refused, ClientError::NotAsSigned { .. }), "{refused}");
        assert!(refused.to_string().contains(why), "{refused}");
    }
    std::fs::write(&file, b"executable").unwrap();
    assert_eq!(fetched(&server.client, &release).await.unwrap(), b"executable");
    let kept = server.client.fetch(&release, |_| Err(std::io::Error::other("no room"))).await.unwrap_err();
    assert_eq!(kept.to_string(), "no room");
}
