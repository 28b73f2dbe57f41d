//! Clients of object stores, by kind: what the crate `object_store` needs to reach a bucket, with our time-outs.

use crate::hedge::Hedged;
use chronofs_core::store::{Bucket, Credentials, StoreKind};
use futures::future::BoxFuture;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::list::PaginatedListStore;
use object_store::signer::Signer;
use object_store::{BackoffConfig, Certificate, ClientOptions, HeaderValue, ObjectStore, RetryConfig};
use std::env;
use std::sync::Arc;
use std::time::Duration;

/// How long a request may take and how often it is tried. The waits between tries are drawn at random from a span
/// that grows, so that clients that failed together do not come back together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// For data: a request of 16 MiB has a minute (at least 2.3 Mbit/s); tries begin for 45 s.
    Serving,
    /// For somebody who waits for the answer: 10 s a request, tries begin for 5 s.
    Asking,
}

/// Until the connection stands, in both cases.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Patience {
    pub(crate) fn request(self) -> Duration {
        Duration::from_secs(if self == Patience::Serving { 60 } else { 10 })
    }

    fn retries(self) -> RetryConfig {
        let (max_retries, seconds) = if self == Patience::Serving { (30, 45) } else { (8, 5) };
        RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(5),
                // The next wait is drawn from 100 ms to this many times the last one: on average twice as long.
                base: 4.0,
            },
            max_retries,
            retry_timeout: Duration::from_secs(seconds),
        }
    }
}

/// The faces of one client.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) pages: Arc<dyn PaginatedListStore>,
    pub(crate) signer: Arc<dyn Signer>,
}

fn faces<T: ObjectStore + PaginatedListStore + Signer>(client: T) -> Client {
    let client = Arc::new(client);
    Client { objects: client.clone(), pages: client.clone(), signer: client }
}

/// Connects clients that tell when the store says that it has too much to do: the crate tries again by itself and says
/// nothing of it.
#[derive(Debug)]
struct Connect {
    hedged: Arc<Hedged>,
}

impl HttpConnector for Connect {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Listening { client, hedged: Arc::clone(&self.hedged) }))
    }
}

#[derive(Debug)]
struct Listening {
    client: HttpClient,
    hedged: Arc<Hedged>,
}

impl HttpService for Listening {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> BoxFuture<'b, Result<HttpResponse, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let answer = self.client.execute(request).await?;
            if matches!(answer.status().as_u16(), 429 | 503) {
                self.hedged.throttled();
            }
            Ok(answer)
        })
    }
}

/// A client of the bucket of `kind`, which tells `hedged` when there is too much to do. It connects to nothing yet.
pub(crate) fn client(
    kind: &StoreKind,
    credentials: &Credentials,
    patience: Patience,
    hedged: &Arc<Hedged>,
) -> object_store::Result<Client> {
    let connect = Connect { hedged: Arc::clone(hedged) };
    match kind {
        StoreKind::S3(bucket) => s3(bucket, s3_endpoint(bucket), credentials, patience, connect).map(faces),
        StoreKind::Oci(bucket) => {
            s3(bucket, Some(oci_endpoint(bucket)), credentials, patience, connect).map(faces)
        }
        StoreKind::Gcs(bucket) => gcs(bucket, credentials, patience, connect).map(faces),
        StoreKind::Azure(bucket) => azure(bucket, credentials, patience, connect).map(faces),
        StoreKind::Local { .. } => {
            Err(object_store::Error::Generic { store: "folder", source: "a folder has no bucket".into() })
        }
    }
}

fn options(bucket: &Bucket, patience: Patience) -> object_store::Result<ClientOptions> {
    let plain_http = bucket.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut options = ClientOptions::new()
        .with_user_agent(HeaderValue::from_static(concat!("chronofs/", env!("CARGO_PKG_VERSION"))))
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(patience.request())
        // No proxy, not even one that the environment names: neither bytes nor the machine's credentials go through
        // somebody else. The crate has no other way to say so.
        .with_proxy_url("http://localhost")
        .with_proxy_excludes("*,0.0.0.0/0,::/0")
        .with_allow_http(plain_http);
    for certificate in Certificate::from_pem_bundle(bucket.ca_pem.as_deref().unwrap_or_default().as_bytes())?
    {
        options = options.with_root_certificate(certificate);
    }
    Ok(options)
}

/// With virtual hosting the crate wants the bucket's name in the endpoint already.
fn s3_endpoint(bucket: &Bucket) -> Option<String> {
    let endpoint = bucket.endpoint.as_ref()?;
    Some(match endpoint.split_once("://") {
        Some((scheme, host)) if bucket.virtual_hosted => format!("{scheme}://{}.{host}", bucket.bucket),
        _ => endpoint.clone(),
    })
}

fn oci_endpoint(bucket: &Bucket) -> String {
    bucket.endpoint.clone().unwrap_or_else(|| {
        let (namespace, region) = (bucket.account.as_deref(), bucket.region.as_deref());
        format!(
            "https://{}.compat.objectstorage.{}.oraclecloud.com",
            namespace.unwrap_or_default(),
            region.unwrap_or_default()
        )
    })
}

/// Variables of the environment that may say who this machine is. Not those that say where the store is.
const AWS_VARIABLES: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
    "AWS_IMDSV1_FALLBACK",
];
const GOOGLE_VARIABLES: &[&str] =
    &["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"];
const AZURE_VARIABLES: &[&str] = &[
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_TENANT_ID",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_MSI_ENDPOINT",
];

/// Those of `names` that are set and that the crate knows.
fn ambient<K: std::str::FromStr>(names: &[&str]) -> Vec<(K, String)> {
    names
        .iter()
        .filter_map(|name| Some((name.to_ascii_lowercase().parse().ok()?, env::var(name).ok()?)))
        .collect()
}

fn s3(
    bucket: &Bucket,
    endpoint: Option<String>,
    credentials: &Credentials,
    patience: Patience,
    connect: Connect,
) -> object_store::Result<AmazonS3> {
    let mut builder = AmazonS3Builder::new();
    match credentials {
        Credentials::AccessKey { id, secret, session_token } => {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret.reveal());
            if let Some(token) = session_token {
                builder = builder.with_token(token.reveal());
            }
        }
        Credentials::Anonymous => builder = builder.with_skip_signature(true),
        _ => {
            for (key, value) in ambient::<AmazonS3ConfigKey>(AWS_VARIABLES) {
                builder = builder.with_config(key, value);
            }
        }
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder
        .with_bucket_name(&bucket.bucket)
        .with_region(bucket.region.as_deref().unwrap_or("us-east-1"))
        .with_virtual_hosted_style_request(bucket.virtual_hosted)
        .with_client_options(options(bucket, patience)?)
        .with_http_connector(connect)
        .with_retry(patience.retries())
        .build()
}

fn gcs(
    bucket: &Bucket,
    credentials: &Credentials,
    patience: Patience,
    connect: Connect,
) -> object_store::Result<GoogleCloudStorage> {
    let mut builder = GoogleCloudStorageBuilder::new();
    match credentials {
        Credentials::ServiceAccount { json } => builder = builder.with_service_account_key(json.reveal()),
        Credentials::Anonymous => builder = builder.with_skip_signature(true),
        _ => {
            for (key, value) in ambient::<GoogleConfigKey>(GOOGLE_VARIABLES) {
                builder = builder.with_config(key, value);
            }
        }
    }
    if let Some(endpoint) = &bucket.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    builder
        .with_bucket_name(&bucket.bucket)
        .with_client_options(options(bucket, patience)?)
        .with_http_connector(connect)
        .with_retry(patience.retries())
        .build()
}

fn azure(
    bucket: &Bucket,
    credentials: &Credentials,
    patience: Patience,
    connect: Connect,
) -> object_store::Result<MicrosoftAzure> {
    let mut builder = MicrosoftAzureBuilder::new();
    match credentials {
        Credentials::AccountKey { key } => builder = builder.with_access_key(key.reveal()),
        Credentials::SharedAccess { token } => {
            builder = builder.with_config(AzureConfigKey::SasKey, token.reveal());
        }
        Credentials::Anonymous => builder = builder.with_skip_signature(true),
        _ => {
            for (key, value) in ambient::<AzureConfigKey>(AZURE_VARIABLES) {
                builder = builder.with_config(key, value);
            }
        }
    }
    if let Some(endpoint) = &bucket.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    builder
        .with_account(bucket.account.as_deref().unwrap_or_default())
        .with_container_name(&bucket.bucket)
        .with_client_options(options(bucket, patience)?)
        .with_http_connector(connect)
        .with_retry(patience.retries())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_of_the_environment_is_one_that_the_crate_knows() {
        for name in AWS_VARIABLES {
            name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().unwrap();
        }
        for name in GOOGLE_VARIABLES {
            name.to_ascii_lowercase().parse::<GoogleConfigKey>().unwrap();
        }
        for name in AZURE_VARIABLES {
            name.to_ascii_lowercase().parse::<AzureConfigKey>().unwrap();
        }
    }

    #[test]
    fn oci_and_virtual_hosts_get_their_endpoint() {
        let text = |text: &str| Some(text.to_owned());
        let bucket = Bucket {
            bucket: "bytes".to_owned(),
            region: text("eu-frankfurt-1"),
            account: text("ns"),
            endpoint: None,
            virtual_hosted: true,
            ..Bucket::default()
        };
        assert_eq!(oci_endpoint(&bucket), "https://ns.compat.objectstorage.eu-frankfurt-1.oraclecloud.com");
        assert_eq!(s3_endpoint(&bucket), None);
        let own = Bucket { endpoint: text("https://s3.example:9"), ..bucket };
        assert_eq!(s3_endpoint(&own).as_deref(), Some("https://bytes.s3.example:9"));
        let path_style = Bucket { virtual_hosted: false, ..own };
        assert_eq!(s3_endpoint(&path_style).as_deref(), Some("https://s3.example:9"));
    }
}
