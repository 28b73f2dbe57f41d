//! A real admin server on a port of its own, and clients of it.

// Each test program uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use chronofs_admin::{InitConfig, Server, StartConfig, init_creds};
use chronofs_wire::http::AdminClient;
use chronofs_wire::token::Token;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub struct Running {
    pub folder: TempDir,
    pub root: Token,
    pub client: AdminClient,
    pub address: String,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

pub async fn started() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let config = InitConfig {
        db_folder: folder.path().to_owned(),
        address: Some(address.clone()),
        tls: None,
        rotate: false,
        cluster_file: None,
    };
    let root: Token = init_creds(&config).unwrap().parse().unwrap();
    serving(folder, root, address).await
}

pub async fn serving(folder: TempDir, root: Token, address: String) -> Running {
    let config = StartConfig {
        db_folder: folder.path().to_owned(),
        bind_addr: address.parse().unwrap(),
        tls: None,
        snapshots: Default::default(),
        cluster_file: None,
        locality: Default::default(),
        deploy_folder: None,
    };
    let server = Server::bind(config).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        server.run(async { drop(stopped.await) }).await.unwrap();
    });
    let client = AdminClient::new(&root).unwrap();
    Running { folder, root, client, address, stop: Some(stop), task }
}

impl Running {
    pub async fn stop(mut self) -> (TempDir, Token, String) {
        drop(self.stop.take());
        self.task.await.unwrap();
        (self.folder, self.root, self.address)
    }

    pub async fn restarted(self) -> Running {
        let (folder, root, address) = self.stop().await;
        serving(folder, root, address).await
    }

    pub async fn get(&self, path: &str) -> Value {
        self.client.call(Method::GET, path, None::<&()>).await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.client.call(Method::POST, path, Some(&body)).await.unwrap()
    }

    /// All that the audit log has.
    pub async fn audit(&self) -> String {
        self.get("/v1/audit").await.to_string()
    }

    /// Code and message of a refusal.
    pub async fn refused(&self, method: Method, path: &str, body: Value) -> (String, String) {
        let body = Some(body).filter(|body| !body.is_null());
        let error = self.client.call::<Value>(method, path, body.as_ref()).await.unwrap_err();
        (error.code().unwrap_or("none").to_owned(), error.to_string())
    }

    /// Block store `b`, metadata store `m`, volume `v`; the client of the metadata server.
    pub async fn with_volume(&self) -> AdminClient {
        self.post(
            "/v1/block-stores",
            json!({"name": "b", "definition": {"kind": "local", "path": "/srv/b"}}),
        )
        .await;
        let store = self.post("/v1/metadata-stores", json!({"name": "m"})).await;
        self.post("/v1/volumes", json!({"name": "v", "block_store": "b", "metadata_store": "m"})).await;
        AdminClient::new(&store["token"].as_str().unwrap().parse().unwrap()).unwrap()
    }
}
