//! The protocol's bytes, as the golden files have them: every variant of every message once, and the bodies that
//! servers and mounts exchange with the admin server.
//!
//! A variant or a field that has no line here does not compile; one that changed its place fails. After something was
//! added, `CHRONOFS_GOLDEN=write` writes the files anew: the difference must be lines that are new.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use bytes::{Bytes, BytesMut};
use chronofs_core::ops::{DirEntry, Merge, NewNode, RenameMode, Replayed, Reply, Request, StatFs, XattrMode};
use chronofs_core::slice::{Codec, NewSlice, Place, PlacedSlice, Seal, Slice, SliceKey};
use chronofs_core::volume::{Compression, VolumeSpec};
use chronofs_core::{
    Attr, Caller, Errno, FileKind, Ino, Name, ObjectId, Retention, SessionId, SetAttr, SetTime,
    SignedRequest, SliceId, Version,
};
use chronofs_wire::frame;
use chronofs_wire::message::{
    Hello, HelloAnswer, Refusal, RefusalReason, SignedGet, StoreAccess, ToClient, ToServer, Welcome, Window,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::{Debug, Write};
use uuid::Uuid;

/// Values of an enum under the names of their variants. A variant without a value does not compile.
macro_rules! every {
    ($enum:ident { $($variant:ident = $value:expr),+ $(,)? }) => {{
        fn variant_of(value: &$enum) -> &'static str {
            match value { $($enum::$variant { .. } => stringify!($variant),)+ }
        }
        let values = vec![$((stringify!($variant), $value)),+];
        values.iter().for_each(|(of, value)| assert_eq!(*of, variant_of(value)));
        values
    }};
}

#[path = "golden/bodies.rs"]
mod bodies;
#[path = "golden/tlog.rs"]
mod tlog;

/// Names and values that stand in a golden file, one to a line.
type Lines<T> = Vec<(&'static str, T)>;

fn golden_path(file: &str) -> String {
    format!("{}/tests/golden/{file}", env!("CARGO_MANIFEST_DIR"))
}

fn assert_golden(file: &str, found: &str) {
    let path = golden_path(file);
    if std::env::var("CHRONOFS_GOLDEN").is_ok_and(|word| word == "write") {
        std::fs::write(&path, found).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(found, golden, "{file}: what other versions send and understand has changed");
}

/// Frames of `lines` are those of the golden file, and those of the golden file mean what `lines` say.
fn assert_frames<T: Serialize + DeserializeOwned + PartialEq + Debug>(file: &str, lines: &Lines<T>) {
    let mut found = String::new();
    for (name, value) in lines {
        let mut out = BytesMut::new();
        frame::encode(value, &mut out).unwrap();
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(found, "{name} {hex}").unwrap();
    }
    assert_golden(file, &found);
    for (line, (_, value)) in found.lines().zip(lines) {
        let (name, hex) = line.split_once(' ').unwrap();
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let body: Vec<u8> = (8..hex.len()).step_by(2).map(digit).collect();
        assert_eq!(&postcard::from_bytes::<T>(&body).unwrap(), value, "{file}: {name}");
    }
}

fn name(text: &'static str) -> Name {
    Name::new(text).unwrap()
}

fn uuid(n: u8) -> Uuid {
    Uuid::from_bytes([n; 16])
}

fn caller() -> Caller {
    Caller { uid: 1000, gid: 1001, groups: vec![4, 20] }
}

fn seal(codec: Codec) -> Seal {
    let object = ObjectId { incarnation: 2, session: SessionId(3), n: 4 };
    Seal { id: SliceId { object, index: 5 }, codec, stored_len: 6, full_len: 7, crc32c: 0x0102_0304 }
}

fn key() -> SliceKey {
    SliceKey { block: 8, version: Version(900), n: 10 }
}

fn codecs() -> Lines<Codec> {
    every!(Codec {
        Raw = Codec::Raw,
        Lz4 = Codec::Lz4,
        Zstd = Codec::Zstd,
        SealedRaw = Codec::SealedRaw,
        SealedLz4 = Codec::SealedLz4,
        SealedZstd = Codec::SealedZstd,
    })
}

fn places() -> Lines<Place> {
    every!(Place {
        Hole = Place::Hole,
        Inline = Place::Inline(seal(Codec::Raw), Bytes::from("inline")),
        Staged = Place::Staged(seal(Codec::Lz4)),
        Object = Place::Object(seal(Codec::Zstd), 4096),
        Moved = Place::Moved(seal(Codec::Zstd), seal(Codec::Lz4).id.object, 4096),
    })
}

fn slice(place: Place) -> Slice {
    Slice { offset: 11, len: 12, skip: 13, place }
}

fn new_slices() -> Vec<NewSlice> {
    let new = |(_, place): (_, Place)| {
        let staged = matches!(place, Place::Staged(_)).then(|| Bytes::from("staged"));
        NewSlice { block: 14, slice: slice(place), staged }
    };
    places().into_iter().map(new).collect()
}

fn placed_slices() -> Vec<PlacedSlice> {
    let new_slices = new_slices().into_iter();
    new_slices.map(|new| PlacedSlice { key: key(), slice: new.slice, staged: new.staged }).collect()
}

fn kinds() -> Lines<FileKind> {
    every!(FileKind {
        File = FileKind::File,
        Dir = FileKind::Dir,
        Symlink = FileKind::Symlink,
        Fifo = FileKind::Fifo,
        Socket = FileKind::Socket,
        Char = FileKind::Char,
        Block = FileKind::Block,
    })
}

fn attr(kind: FileKind) -> Attr {
    Attr {
        ino: Ino(15),
        kind,
        mode: 0o4751,
        nlink: 16,
        uid: 17,
        gid: 18,
        size: 19,
        allocated: 20,
        rdev: 21,
        atime_ns: -22,
        mtime_ns: 23,
        ctime_ns: 24,
        crtime_ns: 25,
        data_version: Version(26),
    }
}

fn nodes() -> Lines<NewNode> {
    every!(NewNode {
        File = NewNode::File,
        Dir = NewNode::Dir,
        Symlink = NewNode::Symlink(Bytes::from("target")),
        Fifo = NewNode::Fifo,
        Socket = NewNode::Socket,
        Char = NewNode::Char(0x0103),
        Block = NewNode::Block(0x0801),
    })
}

fn rename_modes() -> Lines<RenameMode> {
    every!(RenameMode {
        Replace = RenameMode::Replace,
        NoReplace = RenameMode::NoReplace,
        Exchange = RenameMode::Exchange,
        Whiteout = RenameMode::Whiteout,
    })
}

fn xattr_modes() -> Lines<XattrMode> {
    every!(XattrMode { Any = XattrMode::Any, Create = XattrMode::Create, Replace = XattrMode::Replace, })
}

fn set_times() -> Lines<SetTime> {
    every!(SetTime { Now = SetTime::Now, At = SetTime::At(-27), })
}

fn set_attr() -> SetAttr {
    SetAttr {
        mode: Some(0o2640),
        uid: Some(28),
        gid: Some(29),
        size: Some(30),
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(31)),
        by_handle: true,
        kill_priv: false,
    }
}

fn create() -> Request {
    Request::Create {
        parent: Ino::ROOT,
        name: name("new"),
        node: NewNode::File,
        mode: 0o644,
        umask: 0o022,
        open: true,
        exclusive: false,
    }
}

fn publish() -> Request {
    Request::Publish {
        ino: Ino(32),
        slices: new_slices(),
        size_min: Some(33),
        mtime_ns: Some(34),
        kill_priv: true,
        merge: Some(Merge { block: 35, newest: key() }),
    }
}

fn requests() -> Lines<Request> {
    let ino = Ino(36);
    every!(Request {
        Lookup = Request::Lookup { parent: ino, name: name("a name") },
        Parent = Request::Parent { dir: ino },
        GetAttr = Request::GetAttr { ino },
        ReadDir = Request::ReadDir { dir: ino, after: 37, limit: 38, attrs: true },
        ReadLink = Request::ReadLink { ino },
        GetXattr = Request::GetXattr { ino, name: Bytes::from("user.a") },
        ListXattr = Request::ListXattr { ino },
        Slices = Request::Slices { ino, first: 39, count: 40, staged: true },
        Staged = Request::Staged { ino, ids: vec![seal(Codec::Raw).id] },
        StatFs = Request::StatFs,
        Access = Request::Access { ino, mask: 5 },
        Open = Request::Open { ino, read: true, write: false },
        Close = Request::Close { ino, count: 41 },
        Create = create(),
        Link = Request::Link { ino, parent: Ino::ROOT, name: name("link") },
        Unlink = Request::Unlink { parent: ino, name: name("gone") },
        Rmdir = Request::Rmdir { parent: ino, name: name("empty") },
        Rename = Request::Rename {
            from: ino,
            name: name("old"),
            to: Ino(42),
            new_name: name("new"),
            mode: RenameMode::Replace,
        },
        SetAttr = Request::SetAttr { ino, set: set_attr() },
        SetXattr = Request::SetXattr {
            ino,
            name: Bytes::from("user.b"),
            value: Bytes::from("value"),
            mode: XattrMode::Any,
        },
        RemoveXattr = Request::RemoveXattr { ino, name: Bytes::from("user.c") },
        Publish = publish(),
        Sync = Request::Sync,
        Grant = Request::Grant { count: 43 },
        Narrowed = Request::Narrowed { dir: ino },
    })
}

fn replies() -> Lines<Reply> {
    let entry = DirEntry {
        cookie: 44,
        name: Bytes::from("entry"),
        ino: Ino(45),
        kind: FileKind::Dir,
        attr: Some(attr(FileKind::Dir)),
    };
    let figures = StatFs { used_bytes: 46, used_inodes: 47, max_bytes: Some(48), max_inodes: Some(49) };
    every!(Reply {
        Done = Reply::Done,
        Attr = Reply::Attr(attr(FileKind::Symlink)),
        Entries = Reply::Entries { entries: vec![entry], end: true },
        Bytes = Reply::Bytes(Bytes::from("bytes")),
        Names = Reply::Names(vec![Bytes::from("user.a"), Bytes::from("user.b")]),
        Slices = Reply::Slices(placed_slices()),
        Staged = Reply::Staged(vec![Bytes::from("staged")]),
        StatFs = Reply::StatFs(figures),
        Opened = Reply::Opened { attr: attr(FileKind::File), slices: Some(placed_slices()) },
        Instant = Reply::Instant(Version(50)),
        Grant = Reply::Grant { first: 51, end: 52 },
        Narrowed = Reply::Narrowed(true),
    })
}

fn spec(compression: Compression) -> VolumeSpec {
    VolumeSpec {
        id: uuid(53),
        name: "work".to_owned(),
        block_size: 4 << 20,
        compression,
        retention: Retention::Seconds(7 * 86_400),
        max_bytes: Some(54),
        max_inodes: Some(55),
        hash_key: [56; 16],
    }
}

fn hello() -> Hello {
    Hello {
        protocol_min: 1,
        protocol_max: 2,
        token_id: uuid(57),
        token_secret: Bytes::from("secret"),
        volume: uuid(58),
        client: 59,
        client_name: "host:60:/mnt".to_owned(),
        resume: Some(SessionId(61)),
        at: Some(Version(62)),
        read_only: true,
        seen: Version(63),
        direct: true,
    }
}

fn accesses() -> Lines<StoreAccess> {
    every!(StoreAccess {
        Folder = StoreAccess::Folder { path: "/srv/blocks".to_owned(), marker: uuid(64) },
        ThroughServer = StoreAccess::ThroughServer,
        Signed = StoreAccess::Signed { use_ms: 114, ca_pem: Some("PEM".to_owned()), puts: true },
    })
}

fn welcome(store: StoreAccess) -> Welcome {
    Welcome {
        protocol: 1,
        session: SessionId(65),
        boot: 66,
        epoch: 67,
        volume: spec(Compression::Lz4),
        incarnation: 68,
        root: Ino::ROOT,
        grant: (69, 70),
        applied: Version(71),
        durable: Version(72),
        now_ns: 73,
        ttl_ms: 74,
        shared: true,
        read_only: false,
        at: Some(Version(75)),
        store,
        replay: true,
        life_ms: 76,
        restored: Version(77),
    }
}

fn reasons() -> Lines<RefusalReason> {
    every!(RefusalReason {
        Protocol = RefusalReason::Protocol,
        Token = RefusalReason::Token,
        UnknownVolume = RefusalReason::UnknownVolume,
        Instant = RefusalReason::Instant { earliest: Version(77), latest: Version(78) },
        SessionOver = RefusalReason::SessionOver,
        NotNow = RefusalReason::NotNow { retry_ms: 79 },
        Gap = RefusalReason::Gap { before: Version(110), after: Version(111) },
    })
}

fn to_server() -> Lines<ToServer> {
    let replayed = Replayed {
        id: 80,
        version: Version(81),
        caller: caller(),
        request: Request::Unlink { parent: Ino::ROOT, name: name("gone") },
        made: Some(Ino(82)),
        found: true,
    };
    every!(ToServer {
        Call = ToServer::Call { id: 83, acked: 84, caller: caller(), request: Request::Sync },
        Renew = ToServer::Renew { floor: 300 },
        Reclaim = ToServer::Reclaim { opens: vec![(Ino(85), 86)] },
        Replay = ToServer::Replay { calls: vec![replayed], end: true },
        SharedAck = ToServer::SharedAck,
        Goodbye = ToServer::Goodbye,
        PutObject = ToServer::PutObject { id: 87, name: "o/1".to_owned(), bytes: Bytes::from("object") },
        GetObject = ToServer::GetObject {
            id: 88,
            ino: Ino(112),
            block: 113,
            object: seal(Codec::Raw).id.object,
            offset: 89,
            len: 90
        },
        ParkedAck = ToServer::ParkedAck { calls: vec![112] },
        SignPuts = ToServer::SignPuts { id: 115, first: 116, count: 117 },
    })
}

fn to_client() -> Lines<ToClient> {
    let result = Err(Errno::ENOENT);
    let request = SignedRequest {
        url: "https://store/o?sig".to_owned(),
        headers: vec![("range".to_owned(), "bytes=1-2".to_owned())],
    };
    let get =
        SignedGet { object: seal(Codec::Raw).id.object, range: Some((118, 119)), request: request.clone() };
    let window = Window { retention: Retention::Seconds(90_061), earliest: Version(121) };
    every!(ToClient {
        Return = ToClient::Return { id: 91, version: Version(92), durable: Version(93), result },
        Durable = ToClient::Durable { version: Version(94) },
        Shared = ToClient::Shared { shared: true },
        Object = ToClient::Object { id: 95, result: Ok(Bytes::from("object")) },
        Closing = ToClient::Closing,
        Renewed = ToClient::Renewed { now_ns: 96 },
        Refused = ToClient::Refused { message: "why".to_owned() },
        Parked = ToClient::Parked { calls: vec![(97, Errno::ESTALE)] },
        Signed = ToClient::Signed { gets: vec![get] },
        SignedPuts = ToClient::SignedPuts { id: 120, result: Ok(vec![request]) },
        Window = ToClient::Window { window },
    })
}

#[test]
fn messages_are_written_as_the_golden_files_have_them() {
    assert_frames("request.hex", &requests());
    assert_frames("reply.hex", &replies());
    assert_frames("to_server.hex", &to_server());
    assert_frames("to_client.hex", &to_client());
    assert_frames("hello.hex", &vec![("Hello", hello())]);
    let welcomes = accesses().into_iter().map(|(name, access)| (name, Ok(Box::new(welcome(access)))));
    let refusal = |reason| Err(Refusal { reason, message: "what to do".to_owned() });
    let refusals = reasons().into_iter().map(|(name, reason)| (name, refusal(reason)));
    assert_frames::<HelloAnswer>("hello_answer.hex", &welcomes.chain(refusals).collect());
}

#[test]
fn what_messages_carry_is_written_as_the_golden_files_have_it() {
    assert_frames("codec.hex", &codecs());
    assert_frames("place.hex", &places());
    assert_frames("file_kind.hex", &kinds());
    assert_frames("new_node.hex", &nodes());
    assert_frames("rename_mode.hex", &rename_modes());
    assert_frames("xattr_mode.hex", &xattr_modes());
    assert_frames("set_time.hex", &set_times());
    let compressions = every!(Compression {
        None = Compression::None,
        Lz4 = Compression::Lz4,
        Zstd = Compression::Zstd,
    });
    assert_frames("compression.hex", &compressions);
    let retentions = every!(Retention {
        None = Retention::None,
        Seconds = Retention::Seconds(90_061),
        Forever = Retention::Forever,
    });
    assert_frames("retention.hex", &retentions);
}
