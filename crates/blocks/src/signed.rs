//! Signed requests: who has the credentials of a bucket signs a PUT or GET of one named object, and who has none
//! sends it. So clients move bytes to and from a bucket themselves and hold no secret that opens more.

use crate::port::StoreError;
use crate::store::{Patience, RemoteStore};
use bytes::Bytes;
use chronofs_core::Errno;
use chronofs_core::store::StoreKind;
use object_store::HeaderValue;
use object_store::signer::{HeaderMap, HeaderName, Method, SignedUrlOptions, Url};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A request that anybody may send until it ends: treat it as a secret. Its debug form shows none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRequest {
    /// With the signature in its query.
    pub url: String,
    /// Headers that must be sent with it.
    pub headers: Vec<(String, String)>,
}

impl fmt::Debug for SignedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = self.url.split('?').next().unwrap_or_default();
        write!(f, "SignedRequest({bare}?…)")
    }
}

/// What is signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Store the object, if the store can refuse it only under a name that is free.
    Put,
    /// Read it, whole or in ranges.
    Get,
}

impl RemoteStore {
    /// Signs a request for the object `name` that ends after `valid` (at most 7 days). Needs no request to the store
    /// where the key is at hand; credentials of machines may have to be renewed.
    pub async fn sign(
        &self,
        action: Action,
        name: &str,
        valid: Duration,
    ) -> Result<SignedRequest, StoreError> {
        crate::store::check_name(name)?;
        let method = if action == Action::Put { Method::PUT } else { Method::GET };
        let (signed, sent) = if action == Action::Put { self.put_headers() } else { Default::default() };
        let location = self.at(name);
        let options = SignedUrlOptions::default();
        let options = signed.iter().fold(options, |options, (name, value)| {
            options.with_signed_header(HeaderName::from_static(name), HeaderValue::from_static(value))
        });
        let url: Result<Url, _> = if signed.is_empty() {
            self.client.signer.signed_url(method, &location, valid).await
        } else {
            self.client.signer.signed_url_opts(method, &location, valid, &options).await
        };
        let url = url.map_err(|e| self.unavailable(name, "it cannot be signed for", &e))?;
        let headers =
            signed.iter().chain(&sent).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Ok(SignedRequest { url: url.to_string(), headers: headers.collect() })
    }

    /// Headers of a put: those that the signature covers, and those that are sent besides.
    fn put_headers(&self) -> (Vec<Header>, Vec<Header>) {
        let none_match = self.create_only.then_some(("if-none-match", "*"));
        match self.kind {
            // A signature there covers no headers; the store wants to be told the type.
            StoreKind::Azure(_) => {
                (Vec::new(), [("x-ms-blob-type", "BlockBlob")].into_iter().chain(none_match).collect())
            }
            StoreKind::Gcs(_) => (
                self.create_only.then_some(("x-goog-if-generation-match", "0")).into_iter().collect(),
                Vec::new(),
            ),
            _ => (none_match.into_iter().collect(), Vec::new()),
        }
    }
}

type Header = (&'static str, &'static str);

/// What became of a signed put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SignedPut {
    /// Stored.
    Done,
    /// The name was taken: right if it holds the same bytes, from an earlier try whose answer got lost.
    NameTaken,
}

/// Sends signed requests.
#[derive(Clone, Debug)]
pub struct SignedClient(reqwest::Client);

impl SignedClient {
    /// A client that trusts, besides the system's, the certificates in `ca_pem`.
    pub fn new(ca_pem: Option<&str>) -> Result<Self, StoreError> {
        let failed =
            |e: reqwest::Error| StoreError::unavailable("(none)", Errno::EIO, format!("no HTTP client: {e}"));
        let mut roots = Vec::new();
        if let Some(pem) = ca_pem {
            roots = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(failed)?;
        }
        let client = reqwest::Client::builder()
            .tls_certs_merge(roots)
            .no_proxy()
            // A store that answers with another place is misconfigured, and a signature is for one place.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(Patience::Serving.request())
            .build()
            .map_err(failed)?;
        Ok(SignedClient(client))
    }

    /// Stores `bytes` as the object `name` that `request` was signed for.
    pub async fn put(
        &self,
        request: &SignedRequest,
        name: &str,
        bytes: Bytes,
    ) -> Result<SignedPut, StoreError> {
        let sent = self.0.put(&request.url).headers(headers(name, request)?).body(bytes).send().await;
        let response = sent.map_err(|e| unreachable(name, e))?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => Ok(SignedPut::Done),
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => Ok(SignedPut::NameTaken),
            _ => Err(refused(name, &response)),
        }
    }

    /// Exactly `len` bytes from `offset` of the object `name` that `request` was signed for.
    pub async fn get(
        &self,
        request: &SignedRequest,
        name: &str,
        offset: u64,
        len: u32,
    ) -> Result<Bytes, StoreError> {
        let last = offset.saturating_add(u64::from(len)).saturating_sub(1);
        let range = format!("bytes={offset}-{last}");
        let sent =
            self.0.get(&request.url).headers(headers(name, request)?).header(RANGE, range).send().await;
        let response = sent.map_err(|e| unreachable(name, e))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::NOT_FOUND => return Err(StoreError::missing(name, "the store has no such object")),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(StoreError::damaged(name, format!("it ends before byte {offset}")));
            }
            // Whole, or a page of something in between: no range that was asked for.
            _ => return Err(refused(name, &response)),
        }
        let told =
            response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = response.bytes().await.map_err(|e| unreachable(name, e))?;
        let told = told.unwrap_or_default();
        let (span, total) =
            told.strip_prefix("bytes ").and_then(|rest| rest.split_once('/')).unwrap_or_default();
        if bytes.len() == len as usize && span == format!("{offset}-{last}") {
            return Ok(bytes);
        }
        match total.parse::<u64>() {
            Ok(total) if total <= last => Err(StoreError::damaged(
                name,
                format!("it ends at byte {total} and byte {} was asked for", last + 1),
            )),
            _ => Err(StoreError::unavailable(
                name,
                Errno::EIO,
                format!("another range came than was asked for: {told}"),
            )),
        }
    }
}

fn headers(name: &str, request: &SignedRequest) -> Result<HeaderMap, StoreError> {
    let parsed = request.headers.iter().map(|(key, value)| {
        let key = HeaderName::try_from(key).ok()?;
        Some((key, HeaderValue::try_from(value).ok()?))
    });
    parsed.collect::<Option<HeaderMap>>().ok_or_else(|| {
        StoreError::unavailable(name, Errno::EIO, "the signed request has headers that are none")
    })
}

/// The URL carries the signature, so it is not shown.
fn unreachable(name: &str, error: reqwest::Error) -> StoreError {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    StoreError::unavailable(name, Errno::EIO, format!("the store cannot be reached: {error}: {cause}"))
}

fn refused(name: &str, response: &Response) -> StoreError {
    let status = response.status();
    // Its text may repeat the signature.
    StoreError::unavailable(name, Errno::EIO, format!("the store answered the signed request with {status}"))
}
