//! Sealed keys of encrypted volumes: kept and handed out as they are, changed one step at a time, never lost to an old copy.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod common;

use chronofs_keys::{SealedKeys, SecretKey, VolumeSecret};
use chronofs_wire::admin::{KeptKeys, Register, Report, VolumeReport};
use chronofs_wire::http::Method;
use common::started;
use serde_json::{Value, json};

fn secret() -> VolumeSecret {
    VolumeSecret::Key(SecretKey::new([3; 32]))
}

fn next(keys: &SealedKeys) -> SealedKeys {
    let opened = keys.open(&keys.kek(&secret()).unwrap()).unwrap();
    keys.with_new_key(&opened, &keys.kek(&secret()).unwrap()).unwrap()
}

fn body(keys: &SealedKeys, from_copy: bool) -> Value {
    json!({ "keys": keys, "from_copy": from_copy })
}

#[tokio::test]
async fn keys_come_with_the_volume_and_change_one_step_at_a_time() {
    let server = started().await;
    let meta = server.with_volume().await;
    let first = SealedKeys::of_new_volume(&secret()).unwrap();
    let new = json!({"name": "vault", "block_store": "b", "metadata_store": "m", "keys": first});
    let made = server.post("/v1/volumes", new).await;
    assert_eq!(made["id"], first.volume().to_string());
    assert_eq!(made["encryption"], "opened by a key file; data key 1");
    assert!(server.get("/v1/volumes/v").await.get("encryption").is_none());
    let kept: SealedKeys = serde_json::from_value(server.get("/v1/volumes/vault/keys").await).unwrap();
    assert_eq!(kept, first);

    let (second, path) = (next(&first), "/v1/volumes/vault/keys");
    let third = next(&second);
    let (code, said) = server.refused(Method::PUT, path, body(&third, false)).await;
    assert!(code == "in_use" && said.contains("do not follow them"), "{code}: {said}");
    let changed: Value = server.client.call(Method::PUT, path, Some(&body(&second, false))).await.unwrap();
    assert_eq!(changed["encryption"], "opened by a key file; data key 2");
    let (_, said) = server.refused(Method::PUT, path, body(&second, false)).await;
    assert!(said.contains("revision 2"), "twice is once: {said}");
    let (_, said) = server.refused(Method::PUT, path, body(&first, true)).await;
    assert!(said.contains("do not follow them"), "an older copy: {said}");
    let (_, said) = server.refused(Method::PUT, "/v1/volumes/v/keys", body(&second, false)).await;
    assert!(said.contains("from the start or never"), "{said}");

    // Its metadata server is told, and tells what this database lost.
    let registering = Register {
        boot: 1,
        address: "127.0.0.1:9".to_owned(),
        certificate_sha256: "ab".repeat(32),
        epoch: 0,
        ..Register::default()
    };
    meta.register(&registering).await.unwrap();
    let assigned = meta.assignment(1, 0).await.unwrap();
    let vault = assigned.volumes.iter().find(|volume| volume.spec.name == "vault").unwrap();
    assert_eq!(vault.keys, Some(KeptKeys { revision: 2, sealed: second.to_json().unwrap() }));
    let report = |id, keys: Option<KeptKeys>| Report {
        revision: assigned.revision,
        volumes: vec![VolumeReport {
            id,
            born_ns: 1,
            earliest_ns: 1,
            used_bytes: 0,
            used_inodes: 1,
            sessions: 0,
            problem: None,
            missing: false,
            given_up: false,
            gone: false,
            keys,
        }],
        ..Report::default()
    };
    let told = KeptKeys { revision: 3, sealed: third.to_json().unwrap() };
    let shown = || async { server.get("/v1/volumes/vault").await["encryption"].clone() };
    let lie = KeptKeys { revision: 9, sealed: "{}".to_owned() };
    meta.report(&report(first.volume(), Some(lie))).await.unwrap();
    assert_eq!(shown().await, "opened by a key file; data key 2", "what makes no sense is not taken");
    meta.report(&report(first.volume(), Some(told))).await.unwrap();
    assert_eq!(shown().await, "opened by a key file; data key 3");

    let token = server.post("/v1/volume-tokens", json!({"volume": "vault"})).await;
    let mount = chronofs_wire::http::AdminClient::new(&token["token"].as_str().unwrap().parse().unwrap());
    let resolved = mount.unwrap().resolve("vault").await.unwrap();
    assert_eq!(resolved.keys, Some(third.to_json().unwrap()));
}
