//! A double of Google Cloud Storage's XML API: what the crate `object_store` speaks, in memory, on loopback. There is
//! no server of it that can be installed from a package registry and keeps preconditions.

use crate::http::Request;
use crate::process::serve_each;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// What it does wrong, on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Every put is done and then answered with 503.
    PutsAnswerErrors,
    /// Every object reads as this page, with status 200.
    ErrorPages,
    /// The same with status 206 and the right length: only checksums tell.
    WrongBytes,
    /// A list ends after its first page.
    ListsAreCut,
    /// Every connection is closed without an answer.
    Away,
    /// Requests with the signature in their address are refused.
    SignedRefused,
    /// Those are refused the first time that they come for an object.
    SignedRefusedOnce,
    /// Those get no answer.
    SignedAway,
    /// Every 25th read of an object is never answered, and its connection stays open.
    ReadsHang,
    /// The first read of each object is answered with 503.
    ReadsBusyOnce,
}

type Objects = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
struct State {
    objects: Objects,
    fault: Fault,
    /// Nothing else opens it.
    bearer: Option<String>,
    puts: u32,
    reads: u32,
    /// What was refused once.
    refused: BTreeSet<(String, String)>,
}

/// A running double with any bucket one asks for. It ends with the process.
#[derive(Clone)]
pub struct GcsDouble {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl GcsDouble {
    /// Starts it.
    pub fn start() -> GcsDouble {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let address = listener.local_addr().expect("its address");
        let double = GcsDouble { address, state: Arc::default() };
        let served = double.clone();
        serve_each(listener, move |connection| served.serve(connection));
        double
    }

    /// `http://HOST:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it does this wrong.
    pub fn set_fault(&self, fault: Fault) {
        self.with(|state| state.fault = fault);
    }

    /// From now on it serves those only who show this.
    pub fn only_for_bearer(&self, bearer: &str) {
        self.with(|state| state.bearer = Some(bearer.to_owned()));
    }

    /// Names of all objects, each with its bucket in front.
    pub fn names(&self) -> Vec<String> {
        self.with(|state| state.objects.keys().cloned().collect())
    }

    /// Puts that were asked for.
    pub fn puts(&self) -> u32 {
        self.with(|state| state.puts)
    }

    fn with<T>(&self, job: impl FnOnce(&mut State) -> T) -> T {
        job(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn serve(&self, connection: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(connection.try_clone()?);
        let mut connection = connection;
        loop {
            let Some(request) = Request::read(&mut reader)? else { return Ok(()) };
            let head = request.method == "HEAD";
            let signed = request.query.contains_key("X-Goog-Signature");
            match self.with(|state| state.fault) {
                Fault::Away => return Ok(()),
                Fault::SignedAway if signed => return Ok(()),
                _ => {}
            }
            if self.with(|state| state.hangs(&request)) {
                // Until the client leaves.
                let _ = reader.read(&mut [0]);
                return Ok(());
            }
            let Answer { status, mut headers, body } = self.with(|state| state.answer(&request));
            headers.push_str(&format!("Content-Length: {}\r\n", body.len()));
            connection.write_all(format!("HTTP/1.1 {status} .\r\n{headers}\r\n").as_bytes())?;
            if !head {
                connection.write_all(&body)?;
            }
        }
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: String::new(), body: body.into() }
}

impl State {
    /// Whether a request is one that is never answered.
    fn hangs(&mut self, request: &Request) -> bool {
        if self.fault != Fault::ReadsHang || request.method != "GET" || !request.headers.contains_key("range")
        {
            return false;
        }
        self.reads += 1;
        self.reads.is_multiple_of(25)
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let shown = request.headers.get("authorization");
        let may = match &self.bearer {
            Some(bearer) => shown.is_some_and(|shown| *shown == format!("Bearer {bearer}")),
            None => shown.is_some() || request.query.contains_key("X-Goog-Signature"),
        };
        if !may {
            return answer(401, "<Error><Code>AuthenticationRequired</Code></Error>");
        }
        let refused = request.query.contains_key("X-Goog-Signature")
            && match self.fault {
                Fault::SignedRefused => true,
                Fault::SignedRefusedOnce => {
                    self.refused.insert((request.method.clone(), request.path.clone()))
                }
                _ => false,
            };
        if refused {
            return answer(403, "<Error><Code>ExpiredToken</Code></Error>");
        }
        let busy = self.fault == Fault::ReadsBusyOnce && request.method == "GET";
        if busy && self.refused.insert((request.method.clone(), request.path.clone())) {
            return answer(503, "<Error><Code>SlowDown</Code></Error>");
        }
        // What the signature covers must be there; the signature itself is believed.
        let covered = request.query.get("X-Goog-SignedHeaders").map(String::as_str).unwrap_or_default();
        if !covered.split(';').filter(|name| !name.is_empty()).all(|name| request.headers.contains_key(name))
        {
            return answer(403, "<Error><Code>SignatureDoesNotMatch</Code></Error>");
        }
        let name = request.path.clone();
        match request.method.as_str() {
            "PUT" => self.put(name, request),
            "GET" | "HEAD" if request.query.contains_key("list-type") => self.list(&name, request),
            "GET" | "HEAD" => self.get(&name, request),
            "DELETE" => match self.objects.remove(&name) {
                Some(_) => answer(204, ""),
                None => answer(404, "<Error><Code>NoSuchKey</Code></Error>"),
            },
            _ => answer(405, ""),
        }
    }

    fn put(&mut self, name: String, request: &Request) -> Answer {
        self.puts += 1;
        let create = request.headers.get("x-goog-if-generation-match").is_some_and(|n| n == "0");
        if create && self.objects.contains_key(&name) {
            return answer(412, "<Error><Code>PreconditionFailed</Code></Error>");
        }
        self.objects.insert(name, request.body.clone());
        match self.fault {
            Fault::PutsAnswerErrors => answer(503, "<Error><Code>ServiceUnavailable</Code></Error>"),
            _ => Answer { headers: self.object_headers(), ..answer(200, "") },
        }
    }

    fn object_headers(&self) -> String {
        format!(
            "ETag: \"{0}\"\r\nx-goog-generation: {0}\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n",
            self.puts
        )
    }

    fn get(&self, name: &str, request: &Request) -> Answer {
        const PAGE: &[u8] = b"<html>Please log in to the network</html>";
        let Some(bytes) = self.objects.get(name) else {
            return answer(404, "<Error><Code>NoSuchKey</Code></Error>");
        };
        let headers = self.object_headers();
        if self.fault == Fault::ErrorPages {
            return Answer { headers, ..answer(200, PAGE) };
        }
        match request.range(bytes.len()) {
            None => Answer { headers, ..answer(200, &bytes[..]) },
            Some(None) => answer(416, "<Error><Code>InvalidRange</Code></Error>"),
            Some(Some((first, end))) => {
                let mut body = bytes[first..end].to_vec();
                if self.fault == Fault::WrongBytes {
                    body.iter_mut().zip(PAGE.iter().cycle()).for_each(|(byte, page)| *byte = *page);
                }
                let range = format!("Content-Range: bytes {first}-{}/{}\r\n", end - 1, bytes.len());
                Answer { headers: headers + &range, ..answer(206, body) }
            }
        }
    }

    fn list(&self, bucket: &str, request: &Request) -> Answer {
        let asked = |key: &str| request.query.get(key).map(String::as_str);
        let start = format!("{bucket}/{}", asked("prefix").unwrap_or_default());
        let after = asked("continuation-token").map(|token| format!("{bucket}/{token}"));
        let count = asked("max-keys").and_then(|n| n.parse().ok()).unwrap_or(1000);
        let mut found = self
            .objects
            .iter()
            .filter(|(name, _)| name.starts_with(&start) && after.as_ref().is_none_or(|after| *name > after));
        let page: Vec<_> = found.by_ref().take(count).collect();
        let more = found.next().is_some() && self.fault != Fault::ListsAreCut;
        let key = |name: &str| name[bucket.len() + 1..].to_owned();
        let items: String = page
            .iter()
            .map(|(name, bytes)| {
                format!(
                    "<Contents><Key>{}</Key><Size>{}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                     <ETag>\"1\"</ETag></Contents>",
                    key(name),
                    bytes.len()
                )
            })
            .collect();
        let token = match page.last() {
            Some((name, _)) if more => {
                format!("<NextContinuationToken>{}</NextContinuationToken>", key(name))
            }
            _ => String::new(),
        };
        answer(200, format!("<?xml version=\"1.0\"?><ListBucketResult>{items}{token}</ListBucketResult>"))
    }
}

/// The JSON file of a service account, with a key of its own. The double takes whatever it signs.
pub fn service_account() -> String {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key");
    let der: Pkcs8V1Der<'_> = pair.as_der().expect("its form");
    let text = data_encoding::BASE64.encode(der.as_ref());
    let key = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    serde_json::json!({
        "type": "service_account",
        "private_key": key,
        "private_key_id": "1",
        "client_email": "tests@example.iam.gserviceaccount.com",
    })
    .to_string()
}
