//! A double of the services that tell a machine of a cloud who it is: Amazon's, in its second version only, Google's and
//! Azure's.

use crate::http::Request;
use crate::process::serve_each;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// With what the ids of the keys begin that Amazon's machine has: how many it was given before follows.
pub const ROLE_KEY_ID: &str = "ASIAOFTHEMACHINE";
/// The key, which no request shows.
pub const ROLE_SECRET: &str = "the-secret-of-the-machine";
/// The token that every request with this key must carry.
pub const ROLE_TOKEN: &str = "the-token-of-the-machine";
/// What Google's machine shows, and Azure's.
pub const BEARER: &str = "the-bearer-of-the-machine";

const ROLE: &str = "machines";
const ROLES: &str = "latest/meta-data/iam/security-credentials/";
const ASKING: &str = "a-token-for-questions";
const IDENTITY: &str = "metadata/identity/oauth2/token";

/// A running double. It ends with the process.
#[derive(Clone)]
pub struct Machine {
    /// Where it listens.
    pub address: SocketAddr,
    given: Arc<AtomicU32>,
    lives: Duration,
}

impl Machine {
    /// Starts it.
    pub fn start() -> Machine {
        Machine::start_with_keys_for(Duration::from_secs(3600))
    }

    /// Starts it. Each of its keys ends after so long, in whole seconds.
    pub fn start_with_keys_for(lives: Duration) -> Machine {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let address = listener.local_addr().expect("its address");
        let machine = Machine { address, given: Arc::default(), lives };
        let served = machine.clone();
        serve_each(listener, move |connection| served.serve(connection));
        machine
    }

    /// The variables of the environment that have it asked.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        let amazon = format!("http://{}", self.address);
        let azure = format!("http://{}/{IDENTITY}", self.address);
        let google = self.address.to_string();
        [("AWS_METADATA_ENDPOINT", amazon), ("GCE_METADATA_HOST", google), ("AZURE_MSI_ENDPOINT", azure)]
    }

    /// How often it gave credentials.
    pub fn given(&self) -> u32 {
        self.given.load(Ordering::SeqCst)
    }

    fn serve(&self, mut connection: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(connection.try_clone()?);
        while let Some(request) = Request::read(&mut reader)? {
            let (status, body) = self.answer(&request);
            let length = body.len();
            write!(connection, "HTTP/1.1 {status} .\r\nContent-Length: {length}\r\n\r\n{body}")?;
        }
        Ok(())
    }

    fn answer(&self, request: &Request) -> (u16, String) {
        let has = |key: &str, value: &str| request.headers.get(key).is_some_and(|found| found == value);
        let asks = request.method == "GET" && has("x-aws-ec2-metadata-token", ASKING);
        let lives = request.headers.contains_key("x-aws-ec2-metadata-token-ttl-seconds");
        match &*request.path {
            "latest/api/token" if request.method == "PUT" && lives => (200, ASKING.to_owned()),
            path if path == ROLES && asks => (200, ROLE.to_owned()),
            path if path.strip_prefix(ROLES) == Some(ROLE) && asks => {
                let before = self.given.fetch_add(1, Ordering::SeqCst);
                let ends = jiff::Timestamp::now() + self.lives;
                let credentials = serde_json::json!({
                    "Code": "Success",
                    "Type": "AWS-HMAC",
                    "LastUpdated": "2026-01-01T00:00:00Z",
                    "AccessKeyId": format!("{ROLE_KEY_ID}{before}"),
                    "SecretAccessKey": ROLE_SECRET,
                    "Token": ROLE_TOKEN,
                    "Expiration": ends.to_string(),
                });
                (200, credentials.to_string())
            }
            path if path.ends_with("service-accounts/default/token") && has("metadata-flavor", "Google") => {
                self.given.fetch_add(1, Ordering::SeqCst);
                let token =
                    serde_json::json!({"access_token": BEARER, "expires_in": 3600, "token_type": "Bearer"});
                (200, token.to_string())
            }
            IDENTITY if request.method == "GET" && has("metadata", "true") && request.is_for_storage() => {
                self.given.fetch_add(1, Ordering::SeqCst);
                let ends = jiff::Timestamp::now() + self.lives;
                let token = serde_json::json!({
                    "access_token": BEARER,
                    "expires_on": ends.as_second().to_string(),
                    "resource": "https://storage.azure.com",
                    "token_type": "Bearer",
                });
                (200, token.to_string())
            }
            _ => (401, String::new()),
        }
    }
}

impl Request {
    /// Whether a token for Azure's storage is asked for, and not for anything else of Azure.
    fn is_for_storage(&self) -> bool {
        let resource = self.query.get("resource").map(String::as_str).unwrap_or_default();
        resource.trim_end_matches('/') == "https://storage.azure.com"
            && self.query.contains_key("api-version")
    }
}
