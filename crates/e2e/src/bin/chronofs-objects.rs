//! A plain client of an S3 store, as a measure of what that store gives: large objects, several at once, over plain HTTP.
//!
//! `chronofs-objects put URL BUCKET COUNT MIB PARALLEL` puts objects `plain/N`, `get` with the same arguments reads
//! them; both print MiB per second. `count URL BUCKET PREFIX` prints how many objects there are.
//! Credentials: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`. It signs in S3's first way, which costs nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::hmac;
use data_encoding::BASE64;

struct Store {
    /// `HOST:PORT`.
    address: String,
    bucket: String,
    key: String,
    secret: hmac::Key,
}

impl Store {
    fn new(url: &str, bucket: &str) -> Result<Store> {
        let of_environment = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        let address = url.strip_prefix("http://").context("the URL is to be http://HOST:PORT")?;
        let secret = of_environment("AWS_SECRET_ACCESS_KEY")?;
        Ok(Store {
            address: address.to_owned(),
            bucket: bucket.to_owned(),
            key: of_environment("AWS_ACCESS_KEY_ID")?,
            secret: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes()),
        })
    }

    fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(&self.address).with_context(|| self.address.clone())?;
        stream.set_nodelay(true)?;
        Ok(Connection { reader: BufReader::with_capacity(1 << 18, stream.try_clone()?), stream })
    }

    /// Sends a request and reads the answer into `answer`.
    fn request(
        &self,
        connection: &mut Connection,
        method: &str,
        (path, query): (&str, &str),
        body: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<()> {
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let path = format!("/{}{path}", self.bucket);
        let signed = hmac::sign(&self.secret, format!("{method}\n\n\n{date}\n{path}").as_bytes());
        let (address, key, signed) = (&self.address, &self.key, BASE64.encode(signed.as_ref()));
        write!(
            connection.stream,
            "{method} {path}{query} HTTP/1.1\r\nHost: {address}\r\nDate: {date}\r\nAuthorization: AWS {key}:{signed}\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        )?;
        connection.stream.write_all(body)?;
        let status = connection.read(answer)?;
        let said = || String::from_utf8_lossy(&answer[..answer.len().min(300)]).into_owned();
        ensure!(status == 200, "{method} {path}: {status} {}", said());
        Ok(())
    }
}

struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Status and body.
    fn read(&mut self, body: &mut Vec<u8>) -> Result<u16> {
        let (mut line, mut length, mut chunked) = (String::new(), 0, false);
        self.reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.with_context(|| format!("no HTTP answer: {line}"))?;
        loop {
            line.clear();
            self.reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse()?,
                "transfer-encoding" => chunked = true,
                _ => {}
            }
        }
        body.clear();
        if !chunked {
            body.resize(length, 0);
            self.reader.read_exact(body)?;
            return Ok(status);
        }
        loop {
            line.clear();
            self.reader.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim(), 16)?;
            let at = body.len();
            body.resize(at + length + 2, 0);
            self.reader.read_exact(&mut body[at..])?;
            body.truncate(at + length);
            if length == 0 {
                return Ok(status);
            }
        }
    }
}

/// MiB per second of `count` objects of `mib` MiB.
fn transfer(store: &Store, method: &str, count: usize, mib: usize, parallel: usize) -> Result<f64> {
    let body = if method == "PUT" { noise(mib << 20) } else { Vec::new() };
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let worker = || -> Result<()> {
        let (mut connection, mut answer) = (store.connect()?, Vec::new());
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return Ok(());
            }
            store.request(&mut connection, method, (&format!("/plain/{n}"), ""), &body, &mut answer)?;
            ensure!(method == "PUT" || answer.len() == mib << 20, "object {n} has {} bytes", answer.len());
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..parallel).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
    })?;
    Ok((count * mib) as f64 / began.elapsed().as_secs_f64())
}

/// Bytes that nobody compresses.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let draw = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(draw).collect()
}

fn count(store: &Store, prefix: &str) -> Result<usize> {
    let (mut connection, mut answer) = (store.connect()?, Vec::new());
    let (mut found, mut marker) = (0, String::new());
    loop {
        let query = format!("?prefix={prefix}&marker={marker}&max-keys=1000");
        store.request(&mut connection, "GET", ("", &query), &[], &mut answer)?;
        let page = String::from_utf8_lossy(&answer).into_owned();
        found += page.matches("<Key>").count();
        let last = page.rsplit_once("<Key>").and_then(|(_, rest)| rest.split_once("</Key>"));
        match last {
            Some((last, _)) if page.contains("<IsTruncated>true") => marker = last.to_owned(),
            _ => return Ok(found),
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [what @ ("put" | "get"), url, bucket, count, mib, parallel] => {
            let (store, method) = (Store::new(url, bucket)?, what.to_uppercase());
            println!("{:.0}", transfer(&store, &method, count.parse()?, mib.parse()?, parallel.parse()?)?);
        }
        ["count", url, bucket, prefix] => println!("{}", count(&Store::new(url, bucket)?, prefix)?),
        _ => bail!("usage: chronofs-objects put|get URL BUCKET COUNT MIB PARALLEL | count URL BUCKET PREFIX"),
    }
    Ok(())
}
