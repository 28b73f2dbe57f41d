//! A raw client of the wire protocol, and a server in this process without an admin server.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use bytes::{Bytes, BytesMut};
use chronofs_core::ops::{NewNode, Replayed, Reply, Request};
use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression, VolumeSpec};
use chronofs_core::{Attr, Caller, Errno, Ino, Name, Retention, SessionId, Version};
use chronofs_meta::executor::Input;
use chronofs_meta::machine::Event;
use chronofs_meta::{Server, StartConfig};
use chronofs_wire::admin::{AssignedStore, AssignedToken, AssignedVolume, Assignment, StoreKind};
use chronofs_wire::frame::{self, FrameReader};
use chronofs_wire::identity::Sha256;
use chronofs_wire::message::{
    Hello, HelloAnswer, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, ToClient, ToServer, Welcome,
};
use chronofs_wire::tls::{ServerIdentity, client_config, server_name};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

pub const VOLUME: Uuid = Uuid::from_u128(0x11);
pub const SECRET: &[u8] = b"secret of the token";

pub fn token(id: u128) -> AssignedToken {
    AssignedToken {
        id: Uuid::from_u128(id),
        secret_sha256: Sha256::of(SECRET).to_string(),
        volume: VOLUME,
        path: None,
        read_only: false,
        past: true,
        ends_ns: None,
    }
}

pub fn volume(folder: &Path) -> AssignedVolume {
    AssignedVolume {
        spec: VolumeSpec {
            id: VOLUME,
            name: "docs".to_owned(),
            block_size: BLOCK_SIZE_DEFAULT,
            compression: Compression::Lz4,
            retention: Retention::Seconds(3600),
            max_bytes: None,
            max_inodes: None,
            hash_key: [7; 16],
        },
        deleted: false,
        born_ns: 0,
        give_up_after_s: None,
        store: AssignedStore {
            id: Uuid::from_u128(0x22),
            kind: StoreKind::Local { path: folder.to_str().unwrap().to_owned() },
            credentials: Default::default(),
            create_only: false,
        },
        keys: None,
    }
}

pub fn assignment(folder: &Path) -> Assignment {
    let confined = AssignedToken { path: Some("/home/ann".to_owned()), ..token(2) };
    let over = AssignedToken { ends_ns: Some(1), ..token(3) };
    let no_past = AssignedToken { past: false, read_only: true, ..token(4) };
    Assignment {
        revision: 1,
        volumes: vec![volume(folder)],
        tokens: vec![token(1), confined, over, no_past],
        probes: Vec::new(),
        log: Default::default(),
        log_servers: Vec::new(),
        accepted_restore: None,
        copy_restored: false,
        reader_stores: Vec::new(),
        admin_epoch: 0,
    }
}

pub fn config(folder: &Path) -> StartConfig {
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    StartConfig {
        db_folder: folder.join("meta"),
        bind_addr: local,
        advertise: None,
        http_addr: Some(local),
        tls: None,
        timing: Default::default(),
        whitelist: Vec::new(),
        cluster: None,
        whereabouts: Default::default(),
        recover_log: false,
    }
}

pub async fn start(folder: &Path) -> Server {
    let server = Server::start(&config(folder), false).await.unwrap();
    let assignment = assignment(&folder.join("blocks"));
    server.queue.send(Input::Events(vec![Event::Assignment(Box::new(assignment))])).await.unwrap();
    server.queue.send(Input::Events(vec![Event::Tick])).await.unwrap();
    server
}

pub fn hello(client: u128) -> Hello {
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        token_id: Uuid::from_u128(1),
        token_secret: Bytes::from_static(SECRET),
        volume: VOLUME,
        client,
        client_name: format!("test {client}"),
        resume: None,
        at: None,
        read_only: false,
        seen: Version::ZERO,
        direct: false,
    }
}

pub struct Client {
    pub welcome: Box<Welcome>,
    frames: FrameReader<ReadHalf<TlsStream<TcpStream>>>,
    output: WriteHalf<TlsStream<TcpStream>>,
    pub next_id: u64,
    pub acked: u64,
    /// Frames that came while an answer was awaited.
    pub other: Vec<ToClient>,
}

pub type Raw = (FrameReader<ReadHalf<TlsStream<TcpStream>>>, WriteHalf<TlsStream<TcpStream>>);

pub async fn connect(folder: &Path, address: SocketAddr) -> Raw {
    let pin = ServerIdentity::load_existing(&folder.join("meta")).unwrap().pin();
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(client_config(pin).unwrap());
    let stream = connector.connect(server_name(&address.to_string()), stream).await.unwrap();
    let (input, output) = split(stream);
    (FrameReader::new(input), output)
}

pub async fn send<T: serde::Serialize>(output: &mut WriteHalf<TlsStream<TcpStream>>, message: &T) {
    let mut buffer = BytesMut::new();
    frame::encode(message, &mut buffer).unwrap();
    output.write_all(&buffer).await.unwrap();
    output.flush().await.unwrap();
}

impl Client {
    pub async fn open(folder: &Path, address: SocketAddr, hello: Hello) -> Result<Client, Refusal> {
        let (mut frames, mut output) = connect(folder, address).await;
        send(&mut output, &hello).await;
        let answer: HelloAnswer = tokio::time::timeout(Duration::from_secs(20), frames.next())
            .await
            .expect("an answer")
            .unwrap()
            .unwrap();
        answer.map(|welcome| Client { welcome, frames, output, next_id: 1, acked: 0, other: Vec::new() })
    }

    pub fn session(&self) -> SessionId {
        self.welcome.session
    }

    pub async fn send(&mut self, frame: ToServer) {
        send(&mut self.output, &frame).await;
    }

    /// The next frame, but for what is said again and again of the window; `None` when the server ended the connection.
    pub async fn next(&mut self) -> Option<ToClient> {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(10), self.frames.next());
            match next.await.expect("a frame").ok().flatten() {
                Some(ToClient::Window { .. }) => {}
                next => return next,
            }
        }
    }

    pub async fn send_call(&mut self, id: u64, request: Request) {
        let acked = self.acked;
        self.send(ToServer::Call { id, acked, caller: Caller::ROOT, request }).await;
    }

    /// The answer to `id` and its version.
    pub async fn answer(&mut self, wanted: u64) -> (Version, Result<Reply, Errno>) {
        loop {
            match self.next().await.expect("an answer before the end") {
                ToClient::Return { id, version, result, .. } if id == wanted => return (version, result),
                other => self.other.push(other),
            }
        }
    }

    pub async fn call(&mut self, request: Request) -> Result<Reply, Errno> {
        let id = self.next_id;
        self.next_id += 1;
        self.send_call(id, request).await;
        let (_, result) = self.answer(id).await;
        self.acked = id;
        result
    }

    pub async fn create(&mut self, parent: Ino, name: &str) -> Result<Attr, Errno> {
        self.call(create(parent, name, false)).await.map(attr)
    }

    pub async fn mkdir(&mut self, parent: Ino, name: &str) -> Result<Attr, Errno> {
        let Request::Create { parent, name, mode, umask, open, exclusive, .. } = create(parent, name, false)
        else {
            unreachable!()
        };
        self.call(Request::Create { parent, name, node: NewNode::Dir, mode, umask, open, exclusive })
            .await
            .map(attr)
    }

    pub async fn lookup(&mut self, parent: Ino, name: &str) -> Result<Attr, Errno> {
        self.call(Request::Lookup { parent, name: self::name(name) }).await.map(attr)
    }

    pub async fn sync(&mut self) -> Version {
        match self.call(Request::Sync).await.unwrap() {
            Reply::Instant(version) => version,
            other => panic!("{other:?}"),
        }
    }
}

pub fn name(name: &str) -> Name {
    Name::new(name.as_bytes().to_vec()).unwrap()
}

pub fn create(parent: Ino, file: &str, open: bool) -> Request {
    Request::Create {
        parent,
        name: name(file),
        node: NewNode::File,
        mode: 0o644,
        umask: 0,
        open,
        exclusive: true,
    }
}

pub fn attr(reply: Reply) -> Attr {
    match reply {
        Reply::Attr(attr) | Reply::Opened { attr, .. } => attr,
        other => panic!("no attributes: {other:?}"),
    }
}

pub fn replayed(id: u64, version: Version, request: Request, made: Option<Ino>) -> Replayed {
    Replayed { id, version, caller: Caller::ROOT, request, made, found: false }
}
