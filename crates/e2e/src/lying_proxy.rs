//! A proxy before an S3 server that lies and fails: answers that are errors although the request was done, bodies cut
//! short, error pages with status 200, wrong bytes in the right frame, objects said to be missing, deletes that are said to be
//! done, listings that leave out and show what is gone, throttling, slowness, answers that never come.

use crate::process::serve_each;
use crate::rng::Rng;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const PAGE: &[u8] = b"<!DOCTYPE html><html><body>We will be back soon</body></html>\n";

/// What it does to a request or to its answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lie {
    /// Answers 500 and does nothing.
    Fails,
    /// Answers 503 `SlowDown` and does nothing.
    Throttles,
    /// Answers 429 and does nothing.
    TooMany,
    /// Has it done and answers 500.
    DoneButError,
    /// Has it done and closes the connection without an answer.
    DoneButSilent,
    /// Has it done, answers nothing and keeps the connection: the client is to wait as long as it likes. It is told only
    /// where a test asks for it, since each costs a time-out.
    Hangs,
    /// Ends the body early.
    CutsShort,
    /// Gives a page with status 200 instead.
    Page,
    /// Gives the right answer with one byte changed.
    WrongByte,
    /// Says that it is done and does nothing.
    Lost,
    /// Says that there is no such object.
    Missing,
    /// Leaves one object out of a listing.
    LeavesOut,
    /// Gives the first answer that it ever gave to this question.
    Stale,
    /// Does right, after a second.
    Slow,
}

const OF_GETS: &[Lie] = &[
    Lie::Fails,
    Lie::Throttles,
    Lie::TooMany,
    Lie::CutsShort,
    Lie::Page,
    Lie::WrongByte,
    Lie::Missing,
    Lie::Slow,
];
const OF_PUTS: &[Lie] =
    &[Lie::Fails, Lie::Throttles, Lie::TooMany, Lie::DoneButError, Lie::DoneButSilent, Lie::Slow];
const OF_DELETES: &[Lie] = &[Lie::Fails, Lie::DoneButError, Lie::DoneButSilent, Lie::Lost, Lie::Lost];
const OF_LISTS: &[Lie] = &[
    Lie::Fails,
    Lie::Throttles,
    Lie::CutsShort,
    Lie::Page,
    Lie::LeavesOut,
    Lie::Stale,
    Lie::Stale,
    Lie::Slow,
];

/// A running proxy. It ends with the process.
#[derive(Clone)]
pub struct LyingProxy {
    /// Where it listens.
    pub address: SocketAddr,
    upstream: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    rng: Rng,
    /// One request in so many goes wrong; 0: none.
    one_in: u64,
    /// Of all lies just this one.
    only: Option<Lie>,
    /// The first answers to lists.
    lists: BTreeMap<String, (String, Vec<u8>)>,
    told: BTreeMap<(String, Lie), u32>,
    heads: Vec<String>,
    /// It takes no notice of the condition that a name is free.
    puts_over: bool,
}

struct Request {
    method: String,
    target: String,
    head: String,
    body: Vec<u8>,
}

impl LyingProxy {
    /// Starts an honest one before `upstream`.
    pub fn start(upstream: SocketAddr, seed: u64) -> LyingProxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let address = listener.local_addr().expect("its address");
        let state = State {
            rng: Rng::new(seed),
            one_in: 0,
            only: None,
            lists: BTreeMap::new(),
            told: BTreeMap::new(),
            heads: Vec::new(),
            puts_over: false,
        };
        let proxy = LyingProxy { address, upstream, state: Arc::new(Mutex::new(state)) };
        let served = proxy.clone();
        serve_each(listener, move |connection| served.serve(connection));
        proxy
    }

    /// From now on one request in so many goes wrong, somehow; 0: none.
    pub fn lie_one_in(&self, one_in: u64) {
        self.with(|state| (state.one_in, state.only) = (one_in, None));
    }

    /// From now on every request that this lie can be told to is lied to, and no other.
    pub fn always(&self, lie: Lie) {
        self.with(|state| (state.one_in, state.only) = (1, Some(lie)));
    }

    /// From now on every put is done, also one that is to be done only if the name is free: as stores do that do not know the
    /// condition. That is no lie, and is not counted.
    pub fn put_over(&self) {
        self.with(|state| state.puts_over = true);
    }

    /// What it did, to which kind of request, how often.
    pub fn told(&self) -> BTreeMap<(String, Lie), u32> {
        self.with(|state| state.told.clone())
    }

    /// First line and headers of every request so far.
    pub fn heads(&self) -> Vec<String> {
        self.with(|state| state.heads.clone())
    }

    fn with<T>(&self, job: impl FnOnce(&mut State) -> T) -> T {
        job(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn draw(&self, request: &Request) -> Option<Lie> {
        let (kind, lies) = match &*request.method {
            "GET" if request.target.contains("list-type=") => ("LIST", OF_LISTS),
            "GET" => ("GET", OF_GETS),
            "PUT" => ("PUT", OF_PUTS),
            "DELETE" => ("DELETE", OF_DELETES),
            // The crate deletes with a list in a POST, or one by one.
            "POST" => ("DELETE", OF_DELETES),
            _ => return None,
        };
        self.with(|state| {
            if state.one_in == 0 || state.rng.below(state.one_in) > 0 {
                return None;
            }
            let lie = match state.only {
                Some(Lie::Hangs) if matches!(kind, "GET" | "PUT") => Lie::Hangs,
                Some(only) => *lies.iter().find(|lie| **lie == only)?,
                None => lies[state.rng.below(lies.len() as u64) as usize],
            };
            *state.told.entry((kind.to_owned(), lie)).or_default() += 1;
            Some(lie)
        })
    }

    fn serve(&self, mut connection: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(connection.try_clone()?);
        while let Some(mut request) = Request::read(&mut reader)? {
            let head = format!("{} {}\r\n{}", request.method, request.target, request.head);
            let puts_over = self.with(|state| {
                state.heads.push(head);
                state.puts_over
            });
            if puts_over {
                request.head = without_condition(&request.head);
            }
            let lie = self.draw(&request);
            let refusal = match lie {
                Some(Lie::Fails) => Some((500, "InternalError")),
                Some(Lie::Throttles) => Some((503, "SlowDown")),
                Some(Lie::TooMany) => Some((429, "TooManyRequests")),
                Some(Lie::Missing) => Some((404, "NoSuchKey")),
                _ => None,
            };
            if let Some((status, code)) = refusal {
                connection.write_all(&error(status, code))?;
                continue;
            }
            if lie == Some(Lie::Lost) {
                connection.write_all(&lost(&request))?;
                continue;
            }
            if lie == Some(Lie::Slow) {
                std::thread::sleep(Duration::from_secs(1));
            }
            let (mut head, mut body) = self.forward(&request)?;
            if request.target.contains("list-type=") {
                let first = self.with(|state| {
                    let answer = state.lists.entry(request.target.clone());
                    answer.or_insert_with(|| (head.clone(), body.clone())).clone()
                });
                if lie == Some(Lie::Stale) {
                    (head, body) = first;
                }
            }
            match lie {
                Some(Lie::DoneButError) => {
                    connection.write_all(&error(500, "InternalError"))?;
                    continue;
                }
                Some(Lie::DoneButSilent) => return connection.shutdown(Shutdown::Both),
                Some(Lie::Hangs) => return reader.read(&mut [0]).map(drop),
                Some(Lie::Page) => {
                    (head, body) = ("HTTP/1.1 200 OK\r\nContent-Type: text/html".to_owned(), PAGE.to_vec());
                }
                Some(Lie::LeavesOut) => body = without_one(body),
                Some(Lie::WrongByte) => {
                    let at = body.len() / 2;
                    body.get_mut(at).into_iter().for_each(|byte| *byte ^= 0x10);
                }
                _ => {}
            }
            let length = if request.method == "HEAD" {
                String::new()
            } else {
                format!("\r\nContent-Length: {}", body.len())
            };
            connection.write_all(format!("{head}{length}\r\n\r\n").as_bytes())?;
            if lie == Some(Lie::CutsShort) {
                connection.write_all(&body[..body.len() / 2])?;
                return connection.shutdown(Shutdown::Both);
            }
            connection.write_all(&body)?;
        }
        Ok(())
    }

    /// The answer of the server behind it: its head without lengths, and its body.
    fn forward(&self, request: &Request) -> std::io::Result<(String, Vec<u8>)> {
        let mut upstream = TcpStream::connect(self.upstream)?;
        upstream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let first = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
        upstream.write_all(format!("{first}{}Connection: close\r\n\r\n", request.head).as_bytes())?;
        upstream.write_all(&request.body)?;
        let mut reader = BufReader::new(upstream);
        let (mut head, mut length, mut chunked) = (String::new(), None, false);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end();
            let lower = line.to_ascii_lowercase();
            if line.is_empty() {
                break;
            } else if let Some(n) = lower.strip_prefix("content-length:") {
                length = n.trim().parse::<usize>().ok();
            } else if lower.starts_with("transfer-encoding:") {
                chunked = true;
            } else if !lower.starts_with("connection:") {
                head.push_str(if head.is_empty() { "" } else { "\r\n" });
                head.push_str(line);
            }
        }
        assert!(!chunked, "moto says how long its answers are");
        if request.method == "HEAD" {
            let told = length.map_or(String::new(), |n| format!("\r\nContent-Length: {n}"));
            return Ok((head + &told, Vec::new()));
        }
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length, 0);
                reader.read_exact(&mut body)?;
            }
            None => drop(reader.read_to_end(&mut body)?),
        }
        Ok((head, body))
    }
}

impl Request {
    fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default().to_owned();
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((key, value)) = line.trim().split_once(':') else { break };
            if key.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap_or(0);
            }
            if !key.eq_ignore_ascii_case("connection") {
                head.push_str(&format!("{key}:{value}\r\n"));
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok(Some(Request { method, target, head, body }))
    }
}

/// That everything was deleted that was to be.
fn lost(request: &Request) -> Vec<u8> {
    if request.method == "DELETE" {
        return b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n".to_vec();
    }
    let asked = String::from_utf8_lossy(&request.body);
    let keys = asked.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
    let deleted: String = keys.map(|key| format!("<Deleted><Key>{key}</Key></Deleted>")).collect();
    let body = format!("<?xml version=\"1.0\"?><DeleteResult>{deleted}</DeleteResult>");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {}", body.len());
    format!("{head}\r\n\r\n{body}").into_bytes()
}

/// Headers without the one that wants the name to be free.
fn without_condition(head: &str) -> String {
    let is_condition = |line: &&str| line.to_ascii_lowercase().starts_with("if-none-match:");
    head.split_inclusive("\r\n").filter(|line| !is_condition(line)).collect()
}

/// A listing without its first object.
fn without_one(listing: Vec<u8>) -> Vec<u8> {
    let text = String::from_utf8_lossy(&listing);
    const END: &str = "</Contents>";
    match (text.find("<Contents>"), text.find(END)) {
        (Some(from), Some(to)) if from < to => [&text[..from], &text[to + END.len()..]].concat().into_bytes(),
        _ => listing,
    }
}

fn error(status: u16, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as the seed says</Message></Error>"
    );
    let head = format!("HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
