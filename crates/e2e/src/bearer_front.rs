//! A front of Azurite that serves those who show a bearer, as Azure serves its machines. Azurite itself takes bearers over TLS
//! only, and those that somebody has signed.
//!
//! What may pass is sent on with a shared access signature of the account. A batch of deletes, in which each shows the bearer for
//! itself, is taken apart.

use crate::http::Raw;
use crate::object_server::{AZURE_ACCOUNT, AZURE_KEY};
use crate::process::serve_each;
use aws_lc_rs::hmac;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// What the signature of the account opens, and until when.
const MAY: &str = "rwdlac";
const ENDS: &str = "2099-01-01T00:00:00Z";
const VERSION: &str = "2019-12-12";
const BOUNDARY: &str = "batchresponse_of_the_front";

/// Headers that go no further.
const OWN: [&str; 2] = ["authorization", "connection"];

/// A running front. It ends with the process.
#[derive(Clone)]
pub struct BearerFront {
    /// Where it listens.
    pub address: SocketAddr,
    upstream: SocketAddr,
    bearer: String,
}

impl BearerFront {
    /// Starts one before the Azurite at `upstream`.
    pub fn start(upstream: SocketAddr, bearer: &str) -> BearerFront {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let address = listener.local_addr().expect("its address");
        let front = BearerFront { address, upstream, bearer: bearer.to_owned() };
        let served = front.clone();
        serve_each(listener, move |connection| served.serve(connection));
        front
    }

    /// `http://HOST:PORT/ACCOUNT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}/{AZURE_ACCOUNT}", self.address)
    }

    fn serve(&self, mut connection: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(connection.try_clone()?);
        while let Some(request) = Raw::read(&mut reader)? {
            let shown = format!("Bearer {}", self.bearer);
            let may = request.headers.get("authorization") == Some(&shown);
            let answer = match (may, &*request.method) {
                (false, _) => b"HTTP/1.1 401 .\r\nContent-Length: 0\r\n\r\n".to_vec(),
                (true, "POST") if request.target.contains("comp=batch") => self.batch(&request, &shown)?,
                (true, _) => self.forward(&request)?,
            };
            connection.write_all(&answer)?;
        }
        Ok(())
    }

    /// The answer of the server behind it, with a length.
    fn forward(&self, request: &Raw) -> std::io::Result<Vec<u8>> {
        let Raw { method, target, headers, body } = request;
        let mark = if target.contains('?') { '&' } else { '?' };
        // Of the first version of HTTP: the answer is in one piece and ends with the connection.
        let mut sent = format!("{method} {target}{mark}{} HTTP/1.0\r\n", signature());
        for (key, value) in headers.iter().filter(|(key, _)| !OWN.contains(&key.as_str())) {
            sent.push_str(&format!("{key}: {value}\r\n"));
        }
        let mut upstream = TcpStream::connect(self.upstream)?;
        upstream.set_read_timeout(Some(Duration::from_secs(20)))?;
        upstream.write_all(format!("{sent}\r\n").as_bytes())?;
        upstream.write_all(body)?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(answer.len());
        let (head, content) = answer.split_at(end);
        let content = content.get(4..).unwrap_or_default();
        let head = String::from_utf8_lossy(head);
        // What a HEAD is told of is the length of something that does not come.
        let keeps = |line: &&str| {
            let line = line.to_ascii_lowercase();
            let of_connection = ["connection:", "keep-alive:", "transfer-encoding:"];
            let length = line.starts_with("content-length:") && method != "HEAD";
            !length && !of_connection.iter().any(|name| line.starts_with(name))
        };
        let mut kept: String =
            head.split("\r\n").filter(keeps).map(|line| format!("{}\r\n", line.trim_end())).collect();
        if method != "HEAD" {
            kept.push_str(&format!("Content-Length: {}\r\n", content.len()));
        }
        Ok([format!("{kept}\r\n").as_bytes(), content].concat())
    }

    fn batch(&self, request: &Raw, shown: &str) -> std::io::Result<Vec<u8>> {
        let asked = String::from_utf8_lossy(&request.body);
        let mut parts = String::new();
        for (n, part) in asked.split("DELETE /").skip(1).enumerate() {
            let name = part.split(' ').next().unwrap_or_default();
            let account = format!("{AZURE_ACCOUNT}/");
            let name = name.strip_prefix(&account).unwrap_or(name);
            let status = if part.contains(shown) {
                let delete = Raw {
                    method: "DELETE".to_owned(),
                    target: format!("/{account}{name}"),
                    headers: [("host", &*self.address.to_string()), ("x-ms-version", VERSION)]
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .into(),
                    body: Vec::new(),
                };
                let answer = self.forward(&delete)?;
                let line = String::from_utf8_lossy(answer.get(..12).unwrap_or_default()).into_owned();
                line.split(' ').nth(1).unwrap_or("500").to_owned()
            } else {
                "401".to_owned()
            };
            parts.push_str(&format!(
                "--{BOUNDARY}\r\nContent-Type: application/http\r\nContent-ID: {n}\r\n\r\n\
                 HTTP/1.1 {status} .\r\nx-ms-version: {VERSION}\r\n\r\n"
            ));
        }
        parts.push_str(&format!("--{BOUNDARY}--\r\n"));
        let kind = format!("Content-Type: multipart/mixed; boundary={BOUNDARY}");
        let length = parts.len();
        Ok(format!("HTTP/1.1 202 .\r\n{kind}\r\nContent-Length: {length}\r\n\r\n{parts}").into_bytes())
    }
}

/// What opens everything of the account, as part of an address.
fn signature() -> String {
    let text = [AZURE_ACCOUNT, MAY, "b", "sco", "", ENDS, "", "", VERSION, ""].join("\n");
    let key = data_encoding::BASE64.decode(AZURE_KEY.as_bytes()).expect("a key in base64");
    let signed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), text.as_bytes());
    let signed = data_encoding::BASE64.encode(signed.as_ref());
    let signed = signed.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let ends = ENDS.replace(':', "%3A");
    format!("sv={VERSION}&ss=b&srt=sco&sp={MAY}&se={ends}&sig={signed}")
}
