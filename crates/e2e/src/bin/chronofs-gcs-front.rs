//! Stands before Google's storage-testbench and gives it the parts of GCS's XML API that it does not have.
//!
//! `chronofs-gcs-front HOST:PORT FOLDER` makes a bucket in the testbench that listens there, puts the file of a service
//! account into the folder, prints flags of `configure create block-store` on one line, and serves until it is killed.
//!
//! What is whose: objects, preconditions, ranges, absence and what is listed are the testbench's. Puts and gets go to it as
//! they come, and their status and bytes come back as they are. Here a list and a delete are translated into calls of its JSON
//! API, a list is cut into pages, and an answer about an object gets the ETag (by the testbench's MD5 of it) and the time
//! that Google's answers have. Nobody checks signatures.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chronofs_e2e::gcs_double::service_account;
use chronofs_e2e::object_server::BUCKET;
use data_encoding::{BASE64, HEXLOWER};
use serde_json::Value;

/// What a page of a list holds unless fewer are asked for.
const PAGE: usize = 1000;

/// A request or an answer: its first line, its headers by their names in lower case, its body.
#[derive(Debug, Default)]
struct Message {
    first: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Message {
    /// `None` at the end of a connection. The answer to a HEAD tells a length and has no body.
    fn read(reader: &mut impl BufRead, bodyless: bool) -> std::io::Result<Option<Message>> {
        let mut message = Message::default();
        if reader.read_line(&mut message.first)? == 0 {
            return Ok(None);
        }
        message.first.truncate(message.first.trim_end().len());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            message.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        if message.headers.get("transfer-encoding").is_some_and(|coding| coding != "identity") {
            return Err(std::io::Error::other("neither side sends chunks"));
        }
        if !bodyless {
            let length = message.headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
            message.body.resize(length, 0);
            reader.read_exact(&mut message.body)?;
        }
        Ok(Some(message))
    }

    fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let headers: String =
            self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        to.write_all(format!("{}\r\n{headers}\r\n", self.first).as_bytes())?;
        to.write_all(&self.body)
    }

    fn answer(status: &str, body: String) -> Message {
        let headers = [("content-type", "application/xml"), ("content-length", &body.len().to_string())];
        Message {
            first: format!("HTTP/1.1 {status}"),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            body: body.into_bytes(),
        }
    }

    /// Of an answer.
    fn status(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or_default()
    }

    fn is_success(&self) -> bool {
        self.status().starts_with('2')
    }
}

/// The testbench.
#[derive(Clone)]
struct Front {
    upstream: String,
}

impl Front {
    fn forward(&self, request: &Message) -> std::io::Result<Message> {
        let mut upstream = TcpStream::connect(&self.upstream)?;
        upstream.set_read_timeout(Some(Duration::from_secs(60)))?;
        request.write(&mut upstream)?;
        let answer = Message::read(&mut BufReader::new(upstream), request.first.starts_with("HEAD "))?;
        let mut answer = answer.ok_or_else(|| std::io::Error::other("the testbench gave no answer"))?;
        answer.headers.remove("connection");
        Ok(answer)
    }

    fn json(&self, method: &str, target: &str, body: &str) -> std::io::Result<Message> {
        let length = body.len().to_string();
        let headers = [
            ("host", &*self.upstream),
            ("connection", "close"),
            ("content-type", "application/json"),
            ("content-length", &length),
        ];
        self.forward(&Message {
            first: format!("{method} /storage/v1/{target} HTTP/1.1"),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            body: body.as_bytes().to_vec(),
        })
    }

    fn make_bucket(&self) -> Result<()> {
        // Without lists of rights on each object, which make long listings slow.
        let uniform = r#"{"uniformBucketLevelAccess":{"enabled":true}}"#;
        let body = format!(r#"{{"name":"{BUCKET}","iamConfiguration":{uniform}}}"#);
        let made = self.json("POST", "b?project=tests", &body).context(self.upstream.clone())?;
        // Of an earlier run.
        let there = made.status() == "409";
        let said = String::from_utf8_lossy(&made.body);
        ensure!(made.is_success() || there, "the bucket cannot be made: {} {said}", made.status());
        Ok(())
    }

    fn serve(&self, mut connection: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(connection.try_clone()?);
        while let Some(request) = Message::read(&mut reader, false)? {
            self.answer(request)?.write(&mut connection)?;
        }
        Ok(())
    }

    fn answer(&self, mut request: Message) -> std::io::Result<Message> {
        request.headers.insert("connection".to_owned(), "close".to_owned());
        let mut words = request.first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (bucket, object) = path.trim_start_matches('/').split_once('/').unwrap_or((&path[1..], ""));
        match method {
            "GET" if object.is_empty() => self.list(bucket, query),
            "DELETE" if !object.is_empty() => {
                let answer = self.json("DELETE", &format!("b/{bucket}/o/{object}"), "")?;
                Ok(match answer.status() {
                    "200" | "204" => Message::answer("204 No Content", String::new()),
                    _ => answer,
                })
            }
            "PUT" if !object.is_empty() => {
                let mut answer = self.forward(&request)?;
                if answer.is_success() {
                    let found = self.json("GET", &format!("b/{bucket}/o/{object}"), "")?;
                    let found: Value = serde_json::from_slice(&found.body)?;
                    let etag = etag(found["md5Hash"].as_str().unwrap_or_default());
                    answer.headers.insert("etag".to_owned(), etag);
                }
                Ok(answer)
            }
            _ => {
                let mut answer = self.forward(&request)?;
                let hash = answer.headers.get("x-goog-hash").cloned().unwrap_or_default();
                let md5 = hash.split(',').find_map(|each| each.trim().strip_prefix("md5="));
                if let (true, Some(md5)) = (answer.is_success(), md5) {
                    answer.headers.insert("etag".to_owned(), etag(md5));
                    // The testbench does not say here when the object was made, and nobody of ours wants to know.
                    let date = answer.headers.get("date").cloned().unwrap_or_default();
                    answer.headers.insert("last-modified".to_owned(), date);
                }
                Ok(answer)
            }
        }
    }

    fn list(&self, bucket: &str, query: &str) -> std::io::Result<Message> {
        let asked: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        if asked.get("list-type") != Some(&"2") || asked.contains_key("delimiter") {
            return Ok(Message::answer("501 Not Implemented", String::new()));
        }
        // Values stay encoded as they came. What follows a name directly is that name with a zero byte behind it.
        let after = asked.get("continuation-token").or(asked.get("start-after"));
        let start = after.map(|name| format!("&startOffset={name}%00")).unwrap_or_default();
        let prefix = asked.get("prefix").unwrap_or(&"");
        let found = self.json("GET", &format!("b/{bucket}/o?prefix={prefix}{start}"), "")?;
        if !found.is_success() {
            return Ok(found);
        }
        let found: Value = serde_json::from_slice(&found.body)?;
        let items = found["items"].as_array().map_or(&[][..], Vec::as_slice);
        let count = asked.get("max-keys").and_then(|n| n.parse().ok()).unwrap_or(PAGE);
        Ok(Message::answer("200 OK", page(items, count)))
    }
}

/// The first objects of a JSON listing, as Google's XML shows them.
fn page(items: &[Value], count: usize) -> String {
    let text = |item: &Value, field: &str| escaped(item[field].as_str().unwrap_or_default());
    let page = &items[..items.len().min(count)];
    let contents: String = page
        .iter()
        .map(|item| {
            let size = item["size"].as_str().unwrap_or("0");
            let etag = escaped(&etag(item["md5Hash"].as_str().unwrap_or_default()));
            format!(
                "<Contents><Key>{}</Key><Size>{size}</Size><LastModified>{}</LastModified><ETag>{etag}</ETag></Contents>",
                text(item, "name"),
                text(item, "updated")
            )
        })
        .collect();
    let token = match page.last() {
        Some(last) if items.len() > count => {
            format!("<NextContinuationToken>{}</NextContinuationToken>", text(last, "name"))
        }
        _ => String::new(),
    };
    format!("<?xml version=\"1.0\"?><ListBucketResult>{contents}{token}</ListBucketResult>")
}

/// As Google makes it of an object that was put whole.
fn etag(md5: &str) -> String {
    let md5 = BASE64.decode(md5.as_bytes()).unwrap_or_default();
    format!("\"{}\"", HEXLOWER.encode(&md5))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [upstream, folder] = &arguments[..] else { bail!("chronofs-gcs-front HOST:PORT FOLDER") };
    let front = Front { upstream: upstream.clone() };
    front.make_bucket()?;
    let account = Path::new(folder).join("account.json");
    std::fs::write(&account, service_account()).with_context(|| account.display().to_string())?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, account) = (listener.local_addr()?, account.display());
    println!("--kind gcs --bucket {BUCKET} --endpoint http://{address} --credentials-file {account}");
    for connection in listener.incoming().flatten() {
        let front = front.clone();
        std::thread::spawn(move || {
            match front.serve(connection) {
                // A client that leaves, as one does that asked twice and has its answer.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
                Err(error) => eprintln!("a request was not answered: {error}"),
                Ok(()) => {}
            }
        });
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure ends the test with its message")]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_cut_into_pages_that_tell_where_the_next_one_begins() {
        let item = |name: &str| serde_json::json!({ "name": name, "size": "5", "md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg==" });
        let items = [item("a"), item("b&c"), item("d")];
        let first = page(&items, 2);
        assert!(first.contains("<Key>b&amp;c</Key><Size>5</Size>"), "{first}");
        assert!(first.contains("&quot;d41d8cd98f00b204e9800998ecf8427e&quot;"), "{first}");
        assert!(first.contains("<NextContinuationToken>b&amp;c</NextContinuationToken>"), "{first}");
        assert!(!first.contains("<Key>d</Key>"), "{first}");
        assert!(!page(&items, 3).contains("NextContinuationToken"));
    }

    #[test]
    fn the_answer_to_a_head_keeps_its_length_and_has_no_body() {
        let mut raw = &b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"[..];
        let head = Message::read(&mut raw, true).unwrap().unwrap();
        let mut out = Vec::new();
        head.write(&mut out).unwrap();
        assert_eq!(out, b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n");
    }
}
