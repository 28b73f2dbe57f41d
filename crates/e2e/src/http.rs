//! Requests of HTTP as the doubles of servers read them.

use std::collections::BTreeMap;
use std::io::BufRead;

/// A request as it came.
pub struct Raw {
    /// `GET`, ...
    pub method: String,
    /// What is asked for, as it is written.
    pub target: String,
    /// By names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its content.
    pub body: Vec<u8>,
}

/// A request.
pub struct Request {
    /// `GET`, ...
    pub method: String,
    /// Decoded, without slashes at its start.
    pub path: String,
    /// What comes after the question mark, decoded.
    pub query: BTreeMap<String, String>,
    /// By names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its content.
    pub body: Vec<u8>,
}

impl Raw {
    /// The next request of a connection; `None` at its end.
    pub fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Raw>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((key, value)) = line.trim().split_once(':') else { break };
            headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok(Some(Raw { method, target, headers, body }))
    }
}

impl Request {
    /// The next request of a connection; `None` at its end.
    pub fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
        let Some(Raw { method, target, headers, body }) = Raw::read(reader)? else { return Ok(None) };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = pairs.map(|(key, value)| (key.to_owned(), decoded(value))).collect();
        let path = decoded(path).trim_start_matches('/').to_owned();
        Ok(Some(Request { method, path, query, headers, body }))
    }

    /// First byte and the byte behind the last, of an object of this size; `None` for no bytes at all.
    pub fn range(&self, size: usize) -> Option<Option<(usize, usize)>> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        let (first, last) = range.split_once('-')?;
        let span = match (first.parse::<usize>().ok(), last.parse::<usize>().ok()) {
            (Some(first), Some(last)) => (first, (last + 1).min(size)),
            (Some(first), None) => (first, size),
            (None, Some(suffix)) => (size.saturating_sub(suffix), size),
            (None, None) => return None,
        };
        Some((span.0 < size).then_some(span))
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                bytes.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
