//! Signed requests: who has the credentials of a bucket signs a PUT or GET of one named object, and who has none
//! sends it. So clients move bytes to and from a bucket themselves and hold no secret that opens more.

use crate::hedge::{Hedged, Hedges};
use crate::port::StoreError;
use crate::store::{Patience, RemoteStore};
use bytes::{Bytes, BytesMut};
use chronofs_core::store::{Credentials, StoreKind};
use chronofs_core::{Errno, SignedRequest};
use object_store::HeaderValue;
use object_store::signer::{HeaderMap, HeaderName, Method, SignedUrlOptions, Url};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Response, StatusCode};
use std::sync::Arc;
use std::time::Duration;

/// What is signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Store the object, if the store can refuse it only under a name that is free.
    Put,
    /// Read it, whole or in ranges.
    Get,
    /// Read this range of it (first byte, length) and no other. Stores whose signatures cover headers can do it.
    GetRange(u64, u32),
}

/// What of a bucket can be opened by signatures without opening more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signs {
    /// How reads can be signed.
    pub gets: Gets,
    /// A signed put cannot overwrite. Where it could, nobody gets one: it would let a client change the past.
    pub puts: bool,
}

/// See [`Signs`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gets {
    /// Not at all.
    Never,
    /// For an object whole, so only for who may read all of it.
    Objects,
    /// For a range of an object.
    Ranges,
}

impl Signs {
    /// What the bucket of `kind` can do with `credentials`, at once and without asking anybody: what a service would
    /// have to be asked for each signature (keys of machines at Google and Azure) does not pay.
    pub fn of(kind: &StoreKind, credentials: &Credentials, create_only: bool) -> Signs {
        let gets = match (kind, credentials) {
            (StoreKind::S3(_) | StoreKind::Oci(_), Credentials::AccessKey { .. } | Credentials::Ambient)
            | (StoreKind::Gcs(_), Credentials::ServiceAccount { .. }) => Gets::Ranges,
            // Its signatures cover no headers: no range, and no condition that a name is free.
            (StoreKind::Azure(_), Credentials::AccountKey { .. }) => Gets::Objects,
            _ => Gets::Never,
        };
        Signs { gets, puts: gets == Gets::Ranges && create_only }
    }
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
        let (method, signed, sent) = match action {
            Action::Put => self.put_headers(),
            Action::Get => (Method::GET, HeaderMap::new(), HeaderMap::new()),
            Action::GetRange(offset, len) => {
                let range = HeaderValue::from_str(&range_of(offset, len));
                (Method::GET, range.map(|range| (RANGE, range)).into_iter().collect(), HeaderMap::new())
            }
        };
        let location = self.at(name);
        let options = signed.iter().fold(SignedUrlOptions::default(), |options, (name, value)| {
            options.with_signed_header(name.clone(), value.clone())
        });
        let url: Result<Url, _> = if signed.is_empty() {
            self.client.signer.signed_url(method, &location, valid).await
        } else {
            self.client.signer.signed_url_opts(method, &location, valid, &options).await
        };
        let url = url.map_err(|e| self.unavailable(name, "it cannot be signed for", &e))?;
        let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let headers = signed.iter().chain(&sent).map(|(name, value)| (name.to_string(), text(value)));
        Ok(SignedRequest { url: url.to_string(), headers: headers.collect() })
    }

    /// Method and headers of a put: those that the signature covers, and those that are sent besides.
    fn put_headers(&self) -> (Method, HeaderMap, HeaderMap) {
        let header = |name: &'static str, value: &'static str| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let none_match = self.create_only.then(|| header("if-none-match", "*"));
        let (signed, sent): (Vec<_>, Vec<_>) = match self.kind {
            // A signature there covers no headers; the store wants to be told the type.
            StoreKind::Azure(_) => {
                let kind = header("x-ms-blob-type", "BlockBlob");
                (Vec::new(), [kind].into_iter().chain(none_match).collect())
            }
            StoreKind::Gcs(_) => {
                let free = self.create_only.then(|| header("x-goog-if-generation-match", "0"));
                (free.into_iter().collect(), Vec::new())
            }
            _ => (none_match.into_iter().collect(), Vec::new()),
        };
        (Method::PUT, signed.into_iter().collect(), sent.into_iter().collect())
    }
}

fn range_of(offset: u64, len: u32) -> String {
    format!("bytes={offset}-{}", offset.saturating_add(u64::from(len)).saturating_sub(1))
}

/// What became of a signed put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SignedPut {
    /// Stored.
    Done,
    /// The name was taken: right if it holds the same bytes, from an earlier try whose answer got lost.
    NameTaken,
}

/// Why a signed request brought nothing: says what to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setback {
    /// The store cannot be reached from here, or not in time.
    Unreachable,
    /// It has no time now. Worth another try.
    Passing,
    /// The signature is not taken: it ended, or the credentials were changed. A new one may be.
    Refused,
    /// Anything else; another try will not help.
    Final,
}

/// See [`Setback`].
#[derive(Clone, Debug)]
pub struct SignedError {
    /// What to do about it.
    pub setback: Setback,
    /// What happened. No signature is in it.
    pub error: StoreError,
}

impl SignedError {
    fn last(error: StoreError) -> Self {
        SignedError { setback: Setback::Final, error }
    }
}

/// Sends signed requests.
#[derive(Clone, Debug)]
pub struct SignedClient {
    http: reqwest::Client,
    hedged: Arc<Hedged>,
}

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
            // Tries are counted by who asks.
            .retry(reqwest::retry::never())
            .connect_timeout(Duration::from_secs(5))
            .timeout(Patience::Serving.request())
            .build()
            .map_err(failed)?;
        Ok(SignedClient { http: client, hedged: Arc::default() })
    }

    /// Stores `bytes` as the object `name` that `request` was signed for.
    pub async fn put(
        &self,
        request: &SignedRequest,
        name: &str,
        bytes: Bytes,
    ) -> Result<SignedPut, SignedError> {
        let sent = self.http.put(&request.url).headers(headers(name, request)?).body(bytes).send().await;
        let response = sent.map_err(|e| not_sent(name, e))?;
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
    ) -> Result<Bytes, SignedError> {
        let settles = |answer: &Result<Bytes, SignedError>| match answer {
            Ok(_) => true,
            Err(error) => !matches!(error.setback, Setback::Passing | Setback::Unreachable),
        };
        self.hedged.read(|| self.get_once(request, name, offset, len), settles).await
    }

    /// Reads that were sent a second time.
    pub fn hedges(&self) -> Hedges {
        self.hedged.figures()
    }

    async fn get_once(
        &self,
        request: &SignedRequest,
        name: &str,
        offset: u64,
        len: u32,
    ) -> Result<Bytes, SignedError> {
        let last = offset.saturating_add(u64::from(len)).saturating_sub(1);
        let mut headers = headers(name, request)?;
        if !headers.contains_key(RANGE) {
            let range = HeaderValue::from_str(&range_of(offset, len));
            headers.extend(range.map(|range| (RANGE, range)).ok());
        }
        let response = self.http.get(&request.url).headers(headers).send().await;
        let response = response.map_err(|e| not_sent(name, e))?;
        if matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            self.hedged.throttled();
        }
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::NOT_FOUND => {
                return Err(SignedError::last(StoreError::missing(name, "the store has no such object")));
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let reason = format!("it ends before byte {offset}");
                return Err(SignedError::last(StoreError::damaged(name, reason)));
            }
            // Whole, or a page of something in between: no range that was asked for.
            _ => return Err(refused(name, &response)),
        }
        let told =
            response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = body(response, len as usize).await.map_err(|e| not_sent(name, e))?;
        let told = told.unwrap_or_default();
        let (span, total) =
            told.strip_prefix("bytes ").and_then(|rest| rest.split_once('/')).unwrap_or_default();
        if bytes.len() == len as usize && span == format!("{offset}-{last}") {
            return Ok(bytes);
        }
        Err(SignedError::last(match total.parse::<u64>() {
            Ok(total) if total <= last => StoreError::damaged(
                name,
                format!("it ends at byte {total} and byte {} was asked for", last + 1),
            ),
            _ => StoreError::unavailable(
                name,
                Errno::EIO,
                format!("another range came than was asked for: {told}"),
            ),
        }))
    }
}

/// The body of an answer that is to have `len` bytes, or the beginning of one that has more. Each part is copied while it
/// is in the processor's caches, and its memory is free for the next.
async fn body(mut response: Response, len: usize) -> reqwest::Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(len);
    while let Some(part) = response.chunk().await? {
        bytes.extend_from_slice(&part);
        if bytes.len() > len {
            break;
        }
    }
    Ok(bytes.freeze())
}

fn headers(name: &str, request: &SignedRequest) -> Result<HeaderMap, SignedError> {
    let parsed = request.headers.iter().map(|(key, value)| {
        let key = HeaderName::try_from(key).ok()?;
        Some((key, HeaderValue::try_from(value).ok()?))
    });
    parsed.collect::<Option<HeaderMap>>().ok_or_else(|| {
        let reason = "the signed request has headers that are none";
        SignedError::last(StoreError::unavailable(name, Errno::EIO, reason))
    })
}

/// The URL carries the signature, so it is not shown.
fn not_sent(name: &str, error: reqwest::Error) -> SignedError {
    // One that is this slow is as good as none, and an address that is none will not become one.
    let is_no_way = error.is_connect() || error.is_timeout() || error.is_builder();
    let setback = if is_no_way { Setback::Unreachable } else { Setback::Passing };
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let reason = format!("the store cannot be reached: {error}: {cause}");
    SignedError { setback, error: StoreError::unavailable(name, Errno::EIO, reason) }
}

fn refused(name: &str, response: &Response) -> SignedError {
    let status = response.status();
    let setback = match status {
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Setback::Refused,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Setback::Passing,
        status if status.is_server_error() => Setback::Passing,
        _ => Setback::Final,
    };
    // Its text may repeat the signature.
    let reason = format!("the store answered the signed request with {status}");
    SignedError { setback, error: StoreError::unavailable(name, Errno::EIO, reason) }
}
