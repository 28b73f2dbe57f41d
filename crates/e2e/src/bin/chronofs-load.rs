//! Loads a metadata server directly, over its own protocol: creates, then lookups, with many requests in flight.
//!
//! `chronofs-load TOKEN-FILE VOLUME CREATES LOOKUPS IN-FLIGHT` prints `create OPS/S` and `lookup OPS/S`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use chronofs_core::ops::{NewNode, Reply, Request};
use chronofs_core::{Caller, Ino, Name, Version};
use chronofs_wire::frame::{self, FrameReader};
use chronofs_wire::http::AdminClient;
use chronofs_wire::message::{
    Hello, HelloAnswer, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, RefusalReason, ToClient, ToServer,
};
use chronofs_wire::tls::{client_config, server_name};
use chronofs_wire::token::{Token, TokenKind};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Entries per directory.
const FOLDER_ENTRIES: u64 = 1000;

type Input = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
type Output = WriteHalf<TlsStream<TcpStream>>;

struct Client {
    input: Input,
    output: Output,
    root: Ino,
    next_id: u64,
}

impl Client {
    async fn connect(token: &Token, volume: &str) -> Result<Client> {
        let found = AdminClient::new(token)?.resolve(volume).await?;
        let pin = found.certificate_sha256.parse()?;
        let hello = Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            token_id: token.id,
            token_secret: Bytes::copy_from_slice(&token.secret.0),
            volume: found.volume,
            client: u128::from(std::process::id()),
            client_name: "chronofs-load".to_owned(),
            resume: None,
            at: None,
            read_only: false,
            seen: Version::ZERO,
            direct: false,
        };
        loop {
            let stream = TcpStream::connect(&found.address).await.context(found.address.clone())?;
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(client_config(pin)?);
            let (input, mut output) = split(connector.connect(server_name(&found.address), stream).await?);
            let mut input = FrameReader::new(input);
            let mut out = BytesMut::new();
            frame::encode(&hello, &mut out)?;
            output.write_all(&out).await?;
            output.flush().await?;
            let answer: HelloAnswer = input.next().await?.context("the server closed the connection")?;
            match answer {
                Ok(welcome) => return Ok(Client { input, output, root: welcome.root, next_id: 1 }),
                Err(Refusal { reason: RefusalReason::NotNow { retry_ms }, .. }) => {
                    tokio::time::sleep(Duration::from_millis(u64::from(retry_ms))).await;
                }
                Err(refusal) => bail!("refused: {}", refusal.message),
            }
        }
    }

    /// Sends `count` requests with at most `in_flight` unanswered; gives each answer to `done`.
    async fn run(
        &mut self,
        count: u64,
        in_flight: u64,
        mut request: impl FnMut(u64) -> Request,
        mut done: impl FnMut(u64, Reply) -> Result<()>,
    ) -> Result<f64> {
        let started = Instant::now();
        let first_id = self.next_id;
        let (mut sent, mut answered) = (0, 0);
        let mut renewed = Instant::now();
        let mut out = BytesMut::new();
        while answered < count {
            while sent < count && sent - answered < in_flight {
                // Answers may come in another order, but never more than the window apart.
                let acked = (first_id + answered).saturating_sub(in_flight);
                let (id, caller) = (first_id + sent, Caller::ROOT);
                frame::encode(&ToServer::Call { id, acked, caller, request: request(sent) }, &mut out)?;
                sent += 1;
            }
            if renewed.elapsed() > Duration::from_secs(1) {
                frame::encode(&ToServer::Renew { floor: 0 }, &mut out)?;
                renewed = Instant::now();
            }
            if !out.is_empty() {
                self.output.write_all(&out).await?;
                self.output.flush().await?;
                out.clear();
            }
            let mut next: Option<ToClient> = self.input.next().await?;
            while let Some(message) = next {
                if let ToClient::Return { id, result, .. } = message {
                    let reply = result.map_err(|errno| anyhow!("request {id} failed: {errno:?}"))?;
                    done(id - first_id, reply)?;
                    answered += 1;
                }
                next = self.input.try_next()?;
            }
        }
        self.next_id += count;
        Ok(count as f64 / started.elapsed().as_secs_f64())
    }
}

fn name(n: u64) -> Result<Name> {
    Name::new(Bytes::from(format!("file-{n:08}"))).map_err(|errno| anyhow!("{errno:?}"))
}

fn create(parent: Ino, name: Name, node: NewNode) -> Request {
    Request::Create { parent, name, node, mode: 0o755, umask: 0, open: false, exclusive: true }
}

fn ino_of(reply: Reply) -> Result<Ino> {
    match reply {
        Reply::Attr(attr) => Ok(attr.ino),
        other => bail!("no attributes: {other:?}"),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, token_file, volume, creates, lookups, in_flight] = &arguments[..] else {
        bail!("usage: chronofs-load TOKEN-FILE VOLUME CREATES LOOKUPS IN-FLIGHT");
    };
    let (creates, lookups, in_flight): (u64, u64, u64) =
        (creates.parse()?, lookups.parse()?, in_flight.parse()?);
    let token = Token::parse_as(std::fs::read_to_string(token_file)?.trim(), TokenKind::Volume)?;
    let mut client = Client::connect(&token, volume).await?;

    let folder_count = creates.div_ceil(FOLDER_ENTRIES);
    let root = client.root;
    let names: Vec<Name> = (0..creates.max(folder_count)).map(name).collect::<Result<_>>()?;
    let run = format!("load-{}", std::process::id());
    let mut top = root;
    let run = Name::new(Bytes::from(run)).map_err(|errno| anyhow!("{errno:?}"))?;
    let answer = |_, reply| ino_of(reply).map(|ino| top = ino);
    client.run(1, 1, |_| create(root, run.clone(), NewNode::Dir), answer).await?;
    let mut folders = vec![root; folder_count as usize];
    let answer = |n: u64, reply| ino_of(reply).map(|ino| folders[n as usize] = ino);
    client
        .run(folder_count, in_flight, |n| create(top, names[n as usize].clone(), NewNode::Dir), answer)
        .await?;

    let folder_of = |n: u64| folders[(n % folder_count) as usize];
    let file = |n: u64| create(folder_of(n), names[n as usize].clone(), NewNode::File);
    let rate = client.run(creates, in_flight, file, |_, reply| ino_of(reply).map(drop)).await?;
    println!("create {rate:.0}");
    // Every name in an order that visits the folders by turns; 7919 is prime to the number of names.
    let look = |n: u64| {
        let file = n.wrapping_mul(7919) % creates;
        Request::Lookup { parent: folder_of(file), name: names[file as usize].clone() }
    };
    let rate = client.run(lookups, in_flight, look, |_, reply| ino_of(reply).map(drop)).await?;
    println!("lookup {rate:.0}");
    let mut out = BytesMut::new();
    frame::encode(&ToServer::Goodbye, &mut out)?;
    client.output.write_all(&out).await?;
    client.output.flush().await?;
    Ok(())
}
