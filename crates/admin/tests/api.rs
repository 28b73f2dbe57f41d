//! The API as `configure` uses it, against a real server over TLS.

#![allow(clippy::unwrap_used)]

mod common;

use chronofs_wire::admin::{Assignment, Register};
use chronofs_wire::cluster::{CLUSTER_FILE, ClusterFile};
use chronofs_wire::http::{AdminClient, ClientError};
use chronofs_wire::identity::{Secret, Sha256};
use chronofs_wire::token::{Token, TokenKind};
use common::started;
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn what_was_created_is_shown_listed_changed_and_deleted() {
    let server = started().await;
    server.with_volume().await;
    let volume = server.get("/v1/volumes/v").await;
    assert_eq!(volume["block_size"], 4 << 20);
    assert_eq!(volume["compression"], "lz4");
    assert_eq!(volume["retention"], "7d");
    assert_eq!(volume["state"], "waiting");
    assert!(volume["detail"].as_str().unwrap().contains("'m', which is not connected"));
    assert_eq!(server.get("/v1/volumes").await, json!([volume.clone()]));
    let change = json!({"name": "w", "retention": "-1", "max_bytes": 1 << 30, "compression": "zstd"});
    let changed: Value = server.client.call(Method::PATCH, "/v1/volumes/v", Some(&change)).await.unwrap();
    assert_eq!(changed["id"], volume["id"]);
    assert_eq!((&changed["name"], &changed["retention"]), (&json!("w"), &json!("-1")));
    assert_eq!(server.get("/v1/block-stores/b").await["volumes"], json!(["w"]));
    let delete = async |path| {
        let _: Value = server.client.call(Method::DELETE, path, None::<&()>).await.unwrap();
    };
    delete("/v1/volumes/w").await;
    assert_eq!(server.get("/v1/deleted-volumes/w").await["state"], "kept");
    for store in ["/v1/block-stores/b", "/v1/metadata-stores/m"] {
        let (code, message) = server.refused(Method::DELETE, store, Value::Null).await;
        assert_eq!(code, "in_use", "what can be taken back stays whole: {message}");
        assert!(message.contains("deleted-volume 'w'"), "{message}");
    }
    delete("/v1/deleted-volumes/w").await;
    for store in ["/v1/block-stores/b", "/v1/metadata-stores/m"] {
        delete(store).await;
    }
    for path in ["/v1/volumes/w", "/v1/block-stores/b", "/v1/metadata-stores/m"] {
        let (code, _) = server.refused(Method::GET, path, Value::Null).await;
        assert_eq!(code, "not_found", "{path}");
    }
}

#[tokio::test]
async fn bad_input_is_refused_by_name_and_changes_nothing() {
    let server = started().await;
    server.with_volume().await;
    let volume = |field: &str, value: Value| {
        let mut body = json!({"name": "x", "block_store": "b", "metadata_store": "m"});
        body[field] = value;
        ("/v1/volumes", body)
    };
    let cases = [
        (volume("name", json!("Bad Name")), "invalid", "cannot be the name of a volume"),
        (volume("name", json!("")), "invalid", "cannot be the name"),
        (volume("name", json!("v")), "exists", "volume 'v' exists already"),
        (volume("block_size", json!(3 << 20)), "invalid", "block size of 3145728"),
        (volume("block_size", json!(1024)), "invalid", "256KiB"),
        (volume("retention", json!("soon")), "invalid", "not a retention"),
        (volume("max_bytes", json!(0)), "invalid", "quota of 0 bytes"),
        (volume("max_inodes", json!(-1)), "invalid", "request body"),
        (volume("compression", json!("rar")), "invalid", "unknown variant"),
        (volume("block_store", json!("none")), "not_found", "block-store 'none' does not exist"),
        (volume("metadata_store", json!("none")), "not_found", "metadata-store 'none' does not exist"),
        (volume("colour", json!("red")), "invalid", "unknown field"),
        (
            ("/v1/block-stores", json!({"name": "y", "definition": {"kind": "local", "path": "rel"}})),
            "invalid",
            "not absolute",
        ),
        (
            ("/v1/block-stores", json!({"name": "y", "definition": {"kind": "tape", "path": "/x"}})),
            "invalid",
            "unknown variant `tape`",
        ),
        (
            (
                "/v1/block-stores",
                json!({"name": "y", "definition": {"kind": "local", "path": "/y", "prefix": "p"}}),
            ),
            "invalid",
            "unknown field `prefix`",
        ),
        (
            (
                "/v1/block-stores",
                json!({"name": "y", "unchecked": true, "definition":
                    {"kind": "s3", "bucket": "bytes", "region": "eu", "end_point": "http://127.0.0.1:1"}}),
            ),
            "invalid",
            "unknown field `end_point`",
        ),
        (
            (
                "/v1/block-stores",
                json!({"name": "y", "unchecked": true, "credentials": {"type": "ambient", "secret": "hunter2"},
                    "definition": {"kind": "s3", "bucket": "bytes", "region": "eu"}}),
            ),
            "invalid",
            "unknown field `secret`",
        ),
        (("/v1/accounts", json!({"name": "y", "role": "king"})), "invalid", "unknown variant"),
        (("/v1/volume-tokens", json!({"volume": "none"})), "not_found", "volume 'none' does not exist"),
        (("/v1/volume-tokens", json!({"volume": "v", "path": "sub"})), "invalid", "not absolute"),
        (("/v1/volume-tokens", json!({"volume": "v", "path": "/a/../b"})), "invalid", "not plain"),
        (("/v1/volume-tokens", json!({"volume": "v", "ends_ns": 1})), "invalid", "an instant to come"),
        (("/v1/nothing", json!({})), "not_found", "not a part of this API"),
    ];
    for ((path, body), code, message) in cases {
        let (found, text) = server.refused(Method::POST, path, body.clone()).await;
        assert_eq!(found, code, "{path} {body}: {text}");
        assert!(text.contains(message) && !text.contains("hunter2"), "{path} {body}: {text}");
    }
    let misspelt = json!({"definition": {"kind": "local", "path": "/srv/b", "pfad": "/srv/c"}});
    let (_, text) = server.refused(Method::PATCH, "/v1/block-stores/b", misspelt).await;
    assert!(text.contains("unknown field `pfad`"), "{text}");
    assert_eq!(server.get("/v1/volumes").await.as_array().unwrap().len(), 1);
    assert_eq!(server.get("/v1/block-stores").await.as_array().unwrap().len(), 1);
    assert_eq!(server.get("/v1/volume-tokens").await, json!([]));
}

#[tokio::test]
async fn what_is_in_use_stays_and_its_users_are_named() {
    let server = started().await;
    server.with_volume().await;
    let token = server.post("/v1/volume-tokens", json!({"volume": "v"})).await;
    let id = token["id"].as_str().unwrap();
    for (path, user) in [
        ("/v1/block-stores/b", "volume 'v'"),
        ("/v1/metadata-stores/m", "volume 'v'"),
        ("/v1/volumes/v", id),
        ("/v1/accounts/root", "only account with the role admin"),
    ] {
        let (code, message) = server.refused(Method::DELETE, path, Value::Null).await;
        assert_eq!(code, "in_use", "{path}");
        assert!(message.contains(user), "{path}: {message}");
        server.get(path).await;
    }
    let (code, _) = server.refused(Method::PATCH, "/v1/accounts/root", json!({"role": "viewer"})).await;
    assert_eq!(code, "in_use");
}

#[tokio::test]
async fn a_wrong_token_and_a_wrong_pin_are_refused() {
    let server = started().await;
    let wrong = [
        Token { secret: Secret::draw().unwrap(), ..server.root.clone() },
        Token::draw(TokenKind::Account, &server.address, server.root.pin).unwrap(),
    ];
    for token in wrong {
        let client = AdminClient::new(&token).unwrap();
        let error = client.call::<Value>(Method::GET, "/v1/volumes", None::<&()>).await.unwrap_err();
        assert_eq!(error.code(), Some("unauthorized"), "{error}");
        assert!(!error.is_transient());
    }
    let pinned = Token { pin: Sha256::of(b"another"), ..server.root.clone() };
    let error = AdminClient::new(&pinned).unwrap().resolve("v").await.unwrap_err();
    assert!(matches!(error, ClientError::WrongCertificate { .. }), "{error}");
}

#[tokio::test]
async fn who_means_another_cluster_is_refused_by_name_whatever_they_ask() {
    let server = started().await;
    let cluster = server.client.cluster().await.unwrap();
    assert_eq!(cluster.coordinators, std::slice::from_ref(&server.address));
    let path = server.folder.path().join(CLUSTER_FILE);
    let ours = ClusterFile::read(&path).unwrap();
    assert_eq!(cluster.line, ours.to_string());
    // The first address that can be reached is used.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let several = ClusterFile { coordinators: vec![free, server.address.clone()], ..ours.clone() };
    for file in [&ours, &several] {
        let client = AdminClient::reached(&server.root, None, Some(file)).unwrap();
        client.call::<Value>(Method::GET, "/v1/volumes", None::<&()>).await.unwrap();
        client.ready().await.unwrap();
    }
    let other = ClusterFile { name: "lab:42".parse().unwrap(), ..ours.clone() };
    let client = AdminClient::reached(&server.root, None, Some(&other)).unwrap();
    let refused = client.ready().await.unwrap_err();
    assert!(refused.is_wrong_cluster() && !refused.is_transient(), "{refused}");
    let store = json!({"name": "m"});
    for (method, path) in [(Method::POST, "/v1/metadata-stores"), (Method::POST, "/v1/meta/register")] {
        let refused = client.call::<Value>(method, path, Some(&store)).await.unwrap_err();
        assert!(refused.is_wrong_cluster(), "{refused}");
        let said = refused.to_string();
        assert!(said.contains("lab:42") && said.contains(ours.name.as_str()), "{said}");
    }
    assert_eq!(server.get("/v1/metadata-stores").await, json!([]));
    let restarted = server.restarted().await;
    assert_eq!(restarted.client.cluster().await.unwrap(), cluster, "the identity is kept");
}

#[tokio::test]
async fn a_role_bounds_what_an_account_may_do() {
    let server = started().await;
    for (role, volumes, accounts) in
        [("viewer", false, false), ("operator", true, false), ("admin", true, true)]
    {
        let made = server.post("/v1/accounts", json!({"name": role, "role": role})).await;
        let token: Token = made["token"].as_str().unwrap().parse().unwrap();
        let client = AdminClient::new(&token).unwrap();
        let list = client.call::<Value>(Method::GET, "/v1/accounts", None::<&()>).await.unwrap();
        assert!(!list.to_string().contains("token"), "a token is shown once only");
        let store = json!({"name": format!("of-{role}")});
        let made = client.call::<Value>(Method::POST, "/v1/metadata-stores", Some(&store)).await;
        assert_eq!(made.is_ok(), volumes, "{role}");
        let account = json!({"name": format!("by-{role}"), "role": "viewer"});
        let made = client.call::<Value>(Method::POST, "/v1/accounts", Some(&account)).await;
        assert_eq!(made.is_ok(), accounts, "{role}");
    }
}

#[tokio::test]
async fn a_new_token_revokes_the_old_one() {
    let server = started().await;
    let made = server.post("/v1/accounts", json!({"name": "ann", "role": "viewer"})).await;
    let old = AdminClient::new(&made["token"].as_str().unwrap().parse().unwrap()).unwrap();
    old.call::<Value>(Method::GET, "/v1/whoami", None::<&()>).await.unwrap();
    let change = json!({"new_token": true});
    let changed: Value = server.client.call(Method::PATCH, "/v1/accounts/ann", Some(&change)).await.unwrap();
    let error = old.call::<Value>(Method::GET, "/v1/whoami", None::<&()>).await.unwrap_err();
    assert_eq!(error.code(), Some("unauthorized"));
    let new = AdminClient::new(&changed["token"].as_str().unwrap().parse().unwrap()).unwrap();
    let who: Value = new.call(Method::GET, "/v1/whoami", None::<&()>).await.unwrap();
    assert_eq!(who["account"], "ann");
}

#[tokio::test]
async fn no_secret_is_in_the_database() {
    let server = started().await;
    server.with_volume().await;
    let token = server.post("/v1/volume-tokens", json!({"volume": "v"})).await;
    let token: Token = token["token"].as_str().unwrap().parse().unwrap();
    let root = server.root.clone();
    let (folder, ..) = server.stop().await;
    let bytes = std::fs::read(folder.path().join(chronofs_admin::db::DATABASE_FILE)).unwrap();
    for token in [root, token] {
        let text = token.to_string();
        assert!(!contains(&bytes, text.as_bytes()) && !contains(&bytes, &token.secret.0));
        assert!(contains(&bytes, token.secret.sha256().to_string().as_bytes()), "its hash is");
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn the_document_names_every_route_and_the_metrics_count_requests() {
    let server = started().await;
    server.with_volume().await;
    for path in ["/v1/volumes", "/v1/volumes/{name}", "/v1/meta/assignment", "/openapi.json", "/healthz"] {
        assert!(server.get("/openapi.json").await["paths"][path].is_object(), "{path}");
    }
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured((*chronofs_wire::tls::client_config(server.root.pin).unwrap()).clone())
        .no_proxy()
        .build()
        .unwrap();
    let text = |path: &str| {
        let request = http.get(format!("https://{}{path}", server.address));
        async move { request.send().await.unwrap().text().await.unwrap() }
    };
    assert_eq!(text("/healthz").await, "ok\n");
    assert_eq!(text("/readyz").await, "ready\n");
    let metrics = text("/metrics").await;
    assert!(metrics.contains("chronofs_admin_volumes 1\n"), "{metrics}");
    assert!(metrics.contains(r#"method="POST",route="/v1/volumes",status="201""#), "{metrics}");
}

#[tokio::test]
async fn credentials_whose_key_is_lost_stay_with_their_servers_until_they_are_given_anew() {
    let server = started().await;
    let bucket = json!({"kind": "s3", "bucket": "bytes", "endpoint": "http://127.0.0.1:1"});
    let key = |secret: &str| json!({"type": "access-key", "id": "AKIA", "secret": secret});
    let new =
        json!({"name": "cloud", "definition": bucket, "credentials": key("hunter2"), "unchecked": true});
    let made = server.post("/v1/block-stores", new).await;
    assert!(made["credentials"] == "access key AKIA" && !made.to_string().contains("hunter2"), "{made}");
    let store = server.post("/v1/metadata-stores", json!({"name": "m"})).await;
    let volume = json!({"name": "v", "block_store": "cloud", "metadata_store": "m"});
    server.post("/v1/volumes", volume).await;
    let meta = AdminClient::new(&store["token"].as_str().unwrap().parse().unwrap()).unwrap();
    let certificate_sha256 = Sha256::of(b"meta").to_string();
    let register = Register {
        address: "meta:8444".to_owned(),
        certificate_sha256,
        boot: 1,
        epoch: 0,
        ..Register::default()
    };
    meta.register(&register).await.unwrap();
    let secret = |assigned: Assignment| {
        assigned.volumes[0]
            .store
            .credentials
            .secrets()
            .iter()
            .map(|s| s.reveal().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(secret(meta.assignment(1, 0).await.unwrap()), ["hunter2"]);
    std::fs::remove_file(server.folder.path().join("secrets.key")).unwrap();
    let server = server.restarted().await;
    let refused = meta.assignment(1, 0).await.unwrap_err();
    assert!(refused.is_transient() && refused.to_string().contains("block-store 'cloud'"), "{refused}");
    let change = json!({"credentials": key("hunter3"), "unchecked": true});
    let changed: Value =
        server.client.call(Method::PATCH, "/v1/block-stores/cloud", Some(&change)).await.unwrap();
    assert!(!changed.to_string().contains("hunter"), "{changed}");
    assert_eq!(secret(meta.assignment(1, 0).await.unwrap()), ["hunter3"]);
}

/// A schema says what it allows: a type, a reference that leads somewhere, or a choice of such.
fn assert_typed(document: &Value, schema: &Value, place: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#'));
        assert!(target.is_some(), "{place}: {reference} leads nowhere");
        return;
    }
    let choices = ["oneOf", "anyOf", "allOf"].iter().filter_map(|word| schema[word].as_array()).flatten();
    let choices: Vec<&Value> = choices.collect();
    assert!(schema["type"] != Value::Null || !choices.is_empty(), "{place}: anything goes: {schema}");
    for (n, choice) in choices.into_iter().enumerate() {
        assert_typed(document, choice, &format!("{place}/{n}"));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        assert_typed(document, property, &format!("{place}/{name}"));
    }
    if schema["type"] == "array" {
        assert_typed(document, &schema["items"], &format!("{place}/items"));
    }
}

#[tokio::test]
async fn every_route_is_in_the_document_and_every_body_has_a_schema() {
    let document: Value = serde_json::from_str(&chronofs_admin::api::openapi_json().unwrap()).unwrap();
    let sources = [
        "accounts",
        "analyze",
        "audit",
        "backups",
        "block_stores",
        "brake",
        "cluster",
        "deleted",
        "deploy",
        "holds",
        "log_servers",
        "questions",
        "registered",
        "restored",
        "schedules",
        "servers",
        "snapshots",
        "stores",
        "system",
        "volumes",
    ]
    .map(|name| {
        let path = format!("{}/src/api/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    });
    // The router is made of nothing else: api::router takes what the document is made of.
    let handlers: usize = sources.iter().map(|source| source.matches("#[utoipa::path(").count()).sum();
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations += 1;
            let place = format!("{method} {path}");
            // A probe takes none, nor does the end of a snapshot, nor a word of consent or release.
            // An executable comes as its bytes.
            let bare = ["/probe", "/abort", "/accept", "/deploy", "/release-brake"]
                .iter()
                .any(|end| path.ends_with(end));
            if ["post", "patch"].contains(&method.as_str()) && !bare {
                let body = &operation["requestBody"]["content"]["application/json"]["schema"];
                assert_typed(&document, body, &place);
            }
            let answers = operation["responses"].as_object().unwrap();
            assert!(answers.keys().any(|status| status.starts_with('2')), "{place}");
            for (status, answer) in answers.iter().filter(|(status, _)| *status != "204") {
                let contents = answer["content"].as_object();
                let contents = contents.unwrap_or_else(|| panic!("{place} {status}: no body"));
                for content in contents.values() {
                    assert_typed(&document, &content["schema"], &format!("{place} {status}"));
                }
            }
        }
    }
    assert_eq!(operations, handlers, "a handler is in no route");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert_typed(&document, schema, name);
    }
}
