//! A client of the admin server's HTTP API: pinned TLS, a token, typed calls for servers and mounts, and plain JSON
//! calls for `configure`.

use crate::admin::{
    Assignment, Cluster, FENCED, Known, ParkedBytes, Problem, Register, Registered, Report, Resolve,
    Resolved, StorePlace,
};
use crate::cluster::{CLUSTER_HEADER, ClusterFile, ClusterName, WRONG_CLUSTER};
use crate::deploy::{Release, SignedRelease};
use crate::identity::Sha256Sum;
use crate::log::{LogEpoch, OpenLog};
use crate::question::{Answers, Questions, Starting};
use crate::tlog::{LogAssignment, LogServerSaid};
use crate::tls::{self, TlsError};
use crate::token::Token;
use bytes::Bytes;
pub use reqwest::Method;
use reqwest::header::AUTHORIZATION;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::Ipv6Addr;
use std::time::Duration;
use thiserror::Error;

/// The port of the admin server where an address names none.
pub const ADMIN_PORT: u16 = 8443;
/// How long the server may hold back the answer to [`AdminClient::assignment`].
pub const ASSIGNMENT_WAIT: Duration = Duration::from_secs(20);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A call takes no longer for who makes it; what takes the server longer says so before, and goes on.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Sending or fetching an executable takes no longer.
const EXECUTABLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Nothing came for so long: the rest will not come either.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No connection, or it broke, or the answer took too long.
    #[error("cannot reach the admin server at {admin}: {reason}; is it running, and is the address right?")]
    Unreachable {
        /// Its address.
        admin: String,
        /// What happened.
        reason: String,
    },
    /// The address is none.
    #[error("'{admin}' cannot be the address of an admin server ({reason}): write HOST:PORT")]
    Address {
        /// The address.
        admin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another server than the token names answered.
    #[error(
        "the server at {admin} is not the admin server that the token was made by: its certificate is another; \
         get a new token, or correct the address or the cluster file"
    )]
    WrongCertificate {
        /// The address.
        admin: String,
    },
    /// The server refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// See [`Problem`].
        code: String,
        /// See [`Problem`].
        message: String,
    },
    /// The answer was not understood.
    #[error(
        "the server at {admin} gave an answer that is not understood ({reason}); are the versions the same?"
    )]
    Unexpected {
        /// Its address.
        admin: String,
        /// What it was.
        reason: String,
    },
    /// What came is not what was said of it.
    #[error(
        "{name} from {admin} is not what was signed ({reason}): refused; put it there anew with chronofs admin deploy"
    )]
    NotAsSigned {
        /// The executable.
        name: String,
        /// Where it came from.
        admin: String,
        /// What is different.
        reason: String,
    },
    /// What came cannot be kept.
    #[error("{0}")]
    NotKept(std::io::Error),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ClientError {
    /// Whether the same call may succeed later without anybody's doing: worth trying again.
    pub fn is_transient(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }

    /// Whether the cluster file is one of another cluster.
    pub fn is_wrong_cluster(&self) -> bool {
        self.code() == Some(WRONG_CLUSTER)
    }

    /// Whether the folder of this server was followed by a restore in place.
    pub fn is_fenced(&self) -> bool {
        self.code() == Some(FENCED)
    }

    /// The word for programs of a refusal, see [`Problem::code`].
    pub fn code(&self) -> Option<&str> {
        match self {
            ClientError::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// Calls to the admin server in the name of a token. Cheap to clone; connections are kept and shared.
#[derive(Clone, Debug)]
pub struct AdminClient {
    http: reqwest::Client,
    /// Where the admin server is; the first that can be reached is used.
    addresses: Vec<String>,
    /// The cluster that is meant, if that was said.
    cluster: Option<ClusterName>,
    bearer: String,
}

impl AdminClient {
    /// A client of the admin server that `token` names.
    pub fn new(token: &Token) -> Result<Self, ClientError> {
        Self::at(&token.admin, token)
    }

    /// The same, at another address (`host:port`); the pin of the token still decides.
    pub fn at(address: &str, token: &Token) -> Result<Self, ClientError> {
        Self::reached(token, Some(address), None)
    }

    /// A client of the admin server of the cluster that `cluster` names: at `address`, else where the cluster file says,
    /// else where the token does. Whatever the address, the pin of the token decides who is talked to; and the server
    /// refuses every call that means another cluster than its own.
    pub fn reached(
        token: &Token,
        address: Option<&str>,
        cluster: Option<&ClusterFile>,
    ) -> Result<Self, ClientError> {
        let addresses = match (address, cluster) {
            (Some(address), _) => vec![with_port(address, ADMIN_PORT)],
            (None, Some(cluster)) => cluster.coordinators.clone(),
            (None, None) => vec![with_port(&token.admin, ADMIN_PORT)],
        };
        let tls = tls::client_config(token.pin)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .no_proxy()
            .https_only(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .build()
            .map_err(|e| ClientError::Unexpected { admin: addresses.join(","), reason: chain(&e) })?;
        let cluster = cluster.map(|cluster| cluster.name.clone());
        Ok(AdminClient { http, addresses, cluster, bearer: token.bearer() })
    }

    /// `host:port` of the admin server; the first, if there are several.
    pub fn address(&self) -> &str {
        self.addresses.first().map_or("", String::as_str)
    }

    /// Asks which cluster the admin server is of.
    pub async fn cluster(&self) -> Result<Cluster, ClientError> {
        self.call(Method::GET, "/v1/cluster", None::<&()>).await
    }

    /// Says that this metadata server serves its store from now on.
    pub async fn register(&self, register: &Register) -> Result<Registered, ClientError> {
        self.call(Method::POST, "/v1/meta/register", Some(register)).await
    }

    /// Asks whether the folder of this server may serve still.
    pub async fn check_fence(&self, register: &Register) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/meta/fence", Some(register)).await
    }

    /// Says what the admin server said before it was restored.
    pub async fn known(&self, known: &Known) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/meta/known", Some(known)).await
    }

    /// Says that bytes of a volume lie in its lost+found.
    pub async fn parked(&self, parked: &ParkedBytes) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/mount/parked", Some(parked)).await
    }

    /// Waits for an assignment with a revision above `after`; answers after about [`ASSIGNMENT_WAIT`] at the
    /// latest, then perhaps with the same revision. An answer says also that the start with this `boot` owns the store.
    pub async fn assignment(&self, boot: u64, after: u64) -> Result<Assignment, ClientError> {
        let path = format!("/v1/meta/assignment?boot={boot}&after={after}");
        self.call(Method::GET, &path, None::<&()>).await
    }

    /// Opens another epoch of the log of this server's store.
    pub async fn open_log(&self, open: &OpenLog) -> Result<LogEpoch, ClientError> {
        self.call(Method::POST, "/v1/meta/log", Some(open)).await
    }

    /// Says that this log server goes by its name from now on.
    pub async fn register_log_server(&self, register: &Register) -> Result<Registered, ClientError> {
        self.call(Method::POST, "/v1/tlog/register", Some(register)).await
    }

    /// Waits for an assignment of this log server with another revision than `after`, as [`AdminClient::assignment`] does.
    pub async fn log_assignment(&self, boot: u64, after: u64) -> Result<LogAssignment, ClientError> {
        let path = format!("/v1/tlog/assignment?boot={boot}&after={after}");
        self.call(Method::GET, &path, None::<&()>).await
    }

    /// Says how this log server is.
    pub async fn report_log_server(&self, said: &LogServerSaid) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/tlog/report", Some(said)).await
    }

    /// Says what became of the assignment.
    pub async fn report(&self, report: &Report) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/meta/report", Some(report)).await
    }

    /// Says that the server is starting.
    pub async fn starting(&self, starting: &Starting) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/meta/starting", Some(starting)).await
    }

    /// Waits for questions to the server with this `boot`; after about 20 s there are none.
    pub async fn questions(&self, boot: u64) -> Result<Questions, ClientError> {
        self.call(Method::GET, &format!("/v1/meta/questions?boot={boot}"), None::<&()>).await
    }

    /// Answers questions.
    pub async fn answers(&self, answers: &Answers) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/meta/answers", Some(answers)).await
    }

    /// Asks where the volume with this name or id is served.
    pub async fn resolve(&self, volume: &str) -> Result<Resolved, ClientError> {
        self.call(Method::POST, "/v1/mount/resolve", Some(&Resolve { volume: volume.to_owned() })).await
    }

    /// Asks where the objects of the volume with this name or id are.
    pub async fn store_place(&self, volume: &str) -> Result<StorePlace, ClientError> {
        self.call(Method::POST, "/v1/mount/store", Some(&Resolve { volume: volume.to_owned() })).await
    }

    /// Asks which executables there are. Nothing of the answer counts before it is [believed](SignedRelease::believed).
    pub async fn deployed(&self) -> Result<Vec<SignedRelease>, ClientError> {
        self.call(Method::GET, "/v1/deploy", None::<&()>).await
    }

    /// Puts an executable into the deploy folder.
    pub async fn deploy(&self, release: &SignedRelease, bytes: Bytes) -> Result<SignedRelease, ClientError> {
        let path = format!("/v1/deploy?{}", release.query());
        let response =
            self.ask(Method::POST, &path, |request| request.body(bytes.clone()).timeout(EXECUTABLE_TIMEOUT));
        let (admin, response) = response.await?;
        let bytes = response.bytes().await.map_err(|error| failed(&admin, &error))?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Unexpected { admin, reason: e.to_string() })
    }

    /// Takes an executable out of the deploy folder.
    pub async fn undeploy(&self, name: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/deploy/{name}"), None::<&()>).await
    }

    /// Fetches an executable, a part after the other for `take`. Only when this returns `Ok` is all that was taken what
    /// `release` says, which somebody must have been [believed](SignedRelease::believed) to say.
    pub async fn fetch(
        &self,
        release: &Release,
        mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), ClientError> {
        let name = release.name();
        let path = format!("/v1/deploy/{}", name.replace('+', "%2B"));
        let (admin, mut response) =
            self.ask(Method::GET, &path, |request| request.timeout(EXECUTABLE_TIMEOUT)).await?;
        let wrong =
            |reason: String| ClientError::NotAsSigned { name: name.clone(), admin: admin.clone(), reason };
        let (mut sum, mut length) = (Sha256Sum::default(), 0u64);
        loop {
            let part = tokio::time::timeout(STALLED_AFTER, response.chunk()).await;
            let part = part.map_err(|_| ClientError::Unreachable {
                admin: admin.clone(),
                reason: format!("{name} did not come to its end: nothing for {} s", STALLED_AFTER.as_secs()),
            })?;
            let Some(part) = part.map_err(|error| failed(&admin, &error))? else { break };
            length = length.saturating_add(part.len() as u64);
            if length > release.size() {
                return Err(wrong(format!("it is longer than {} bytes", release.size())));
            }
            sum.add(&part);
            take(&part).map_err(ClientError::NotKept)?;
        }
        let found = sum.end();
        if length != release.size() {
            return Err(wrong(format!("it has {length} bytes and not {}", release.size())));
        }
        if found != release.sha256() {
            return Err(wrong(format!("its SHA-256 is {found} and not {}", release.sha256())));
        }
        Ok(())
    }

    /// A call with a JSON body (or none) that is answered with JSON; an empty answer reads as `null`.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let bytes = self.send(method, path, body).await?;
        let bytes = if bytes.is_empty() { &b"null"[..] } else { &bytes[..] };
        serde_json::from_slice(bytes).map_err(|e| ClientError::Unexpected {
            admin: self.address().to_owned(),
            reason: format!("{path}: {e}"),
        })
    }

    /// Asks the coordinator with `question` and waits for its answer. Whoever stops waiting, to ask with something newer, does
    /// not break the connection with that, which would cost both sides a handshake: the older question ends when the newer
    /// one arrives, and its answer is lost.
    pub async fn ask_coordinator<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &'static str,
        question: &(impl Serialize + Clone + Send + Sync + 'static),
    ) -> Result<T, ClientError> {
        let (client, question) = (self.clone(), question.clone());
        let asking = tokio::spawn(async move { client.call(Method::POST, path, Some(&question)).await });
        asking.await.map_err(|error| ClientError::Unexpected {
            admin: self.address().to_owned(),
            reason: format!("{path}: {error}"),
        })?
    }

    /// Asks whether the server is ready for requests; needs no token that it knows.
    pub async fn ready(&self) -> Result<(), ClientError> {
        self.send(Method::GET, "/readyz", None::<&()>).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Bytes, ClientError> {
        let with_body = |request: RequestBuilder| match body {
            Some(body) => request.json(body),
            None => request,
        };
        let (admin, response) = self.ask(method, path, with_body).await?;
        response.bytes().await.map_err(|error| failed(&admin, &error))
    }

    /// Sends to the first address that can be reached, and gives that and the answer, which is no refusal. What could not be
    /// connected to has seen nothing, so a call is never done twice.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        more: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<(String, Response), ClientError> {
        let mut addresses = self.addresses.iter().peekable();
        while let Some(admin) = addresses.next() {
            let mut request = self.http.request(method.clone(), format!("https://{admin}{path}"));
            request = request.header(AUTHORIZATION, &self.bearer);
            if let Some(cluster) = &self.cluster {
                request = request.header(CLUSTER_HEADER, cluster.as_str());
            }
            let response = match more(request).send().await {
                Err(error) if error.is_connect() && addresses.peek().is_some() => continue,
                sent => sent.map_err(|error| failed(admin, &error))?,
            };
            let status = response.status();
            if !status.is_success() {
                let bytes = response.bytes().await.map_err(|error| failed(admin, &error))?;
                return Err(refused(admin, status, &bytes));
            }
            return Ok((admin.clone(), response));
        }
        let reason = "no address is named".to_owned();
        Err(ClientError::Address { admin: String::new(), reason })
    }
}

fn failed(admin: &str, error: &reqwest::Error) -> ClientError {
    let admin = admin.to_owned();
    if tls::is_wrong_certificate(error) {
        ClientError::WrongCertificate { admin }
    } else if error.is_builder() {
        ClientError::Address { admin, reason: root_cause(error) }
    } else {
        ClientError::Unreachable { admin, reason: root_cause(error) }
    }
}

fn refused(admin: &str, status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<Problem>(body) {
        Ok(Problem { code, message }) => ClientError::Refused { status: status.as_u16(), code, message },
        Err(_) => {
            ClientError::Unexpected { admin: admin.to_owned(), reason: format!("HTTP status {status}") }
        }
    }
}

/// `address` with `port` unless it names one.
pub fn with_port(address: &str, port: u16) -> String {
    let after_bracket = address.rsplit_once(']').map_or(address, |(_, rest)| rest);
    let bare_ipv6 = !address.starts_with('[') && address.matches(':').count() > 1;
    if bare_ipv6 {
        format!("[{address}]:{port}")
    } else if after_bracket.contains(':') {
        address.to_owned()
    } else {
        format!("{address}:{port}")
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

/// The innermost error says what happened; those around it only that it did.
fn root_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Reads `HOST:PORT`, or `HOST` where the port goes without saying, as people write the address of a server.
pub fn parse_address(text: &str) -> Result<String, String> {
    let full = with_port(text, ADMIN_PORT);
    let is_host = |host: &str| match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
    };
    let fits = full
        .rsplit_once(':')
        .is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0));
    if fits { Ok(text.to_owned()) } else { Err(format!("'{text}' is not an address: write HOST:PORT")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Sha256;
    use crate::token::TokenKind;

    #[test]
    fn an_address_gets_a_port_unless_it_has_one() {
        for (address, full) in [
            ("host", "host:8443"),
            ("host:1", "host:1"),
            ("10.0.0.1", "10.0.0.1:8443"),
            ("[::1]", "[::1]:8443"),
            ("[::1]:1", "[::1]:1"),
            ("::1", "[::1]:8443"),
        ] {
            assert_eq!(with_port(address, 8443), full);
        }
    }

    #[test]
    fn what_is_no_address_is_known_as_such() {
        for good in ["host", "host:1", "10.0.0.1:8443", "[::1]:1", "::1", "meta-1.example_net"] {
            parse_address(good).unwrap();
        }
        for bad in ["", ":", "h:", ":1", "h:0", "h:99999", "a b", "http://h", "h/x:1", "h:1:2", "h\n", "ü:1"]
        {
            assert!(parse_address(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_a_transient_failure_that_names_the_address() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let token = Token::draw(TokenKind::Volume, &free.to_string(), Sha256::of(b"")).unwrap();
        let error = AdminClient::new(&token).unwrap().resolve("v").await.unwrap_err();
        assert!(error.is_transient());
        assert!(
            error.to_string().contains(&free.to_string()) && error.to_string().contains("refused"),
            "{error}"
        );
    }
}
