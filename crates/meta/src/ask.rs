//! What tools ask of a running server over its HTTP address.

use crate::collect::GcStatus;
use crate::http::{GcRequest, Status};
use anyhow::{Context, Result, bail};
use reqwest::{Client, RequestBuilder};
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::time::Duration;

/// A dry run reads all rows.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);

/// The status of a running server.
pub async fn status(http_addr: SocketAddr) -> Result<Status> {
    answer(http_addr, client()?.get(format!("http://{http_addr}/status")).timeout(Duration::from_secs(5)))
        .await
}

/// How the collection of a running server stands. With `dry_run` it also says what the past costs and what could go.
pub async fn gc_status(http_addr: SocketAddr, dry_run: bool) -> Result<GcStatus> {
    let query = if dry_run { "?dry_run=true" } else { "" };
    answer(http_addr, client()?.get(format!("http://{http_addr}/gc{query}"))).await
}

/// Has a running server look through its block stores.
pub async fn gc(http_addr: SocketAddr) -> Result<GcStatus> {
    let request = GcRequest { full: true };
    answer(http_addr, client()?.post(format!("http://{http_addr}/gc")).json(&request)).await
}

fn client() -> Result<Client> {
    let tls = chronofs_wire::tls::client_config(chronofs_wire::identity::Sha256([0; 32]))?;
    Ok(Client::builder()
        .no_proxy()
        .timeout(ANSWER_WITHIN)
        .tls_backend_preconfigured((*tls).clone())
        .build()?)
}

async fn answer<T: DeserializeOwned>(http_addr: SocketAddr, request: RequestBuilder) -> Result<T> {
    let answer = request.send().await.with_context(|| {
        format!("no metadata server answers on {http_addr}; is it running? name it with --http-addr")
    })?;
    if !answer.status().is_success() {
        let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
        bail!("the metadata server on {http_addr} answers {status}: {}", text.trim());
    }
    answer.json().await.context("the answer is not understood; are the versions the same?")
}
