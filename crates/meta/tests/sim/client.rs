//! A simulated client: random requests, and the protocol's duties around them.

use super::store::SharedStore;
use crate::common;
use bytes::Bytes;
use chronofs_blocks::object::{Entry, ObjectWriter};
use chronofs_blocks::seal;
use chronofs_core::ops::{NewNode, Replayed, Reply, Request, XattrMode};
use chronofs_core::slice::{NewSlice, Place, Seal, Slice};
use chronofs_core::volume::Compression;
use chronofs_core::{Caller, Errno, Ino, ObjectId, SessionId, SetAttr, SliceId, Version};
use chronofs_engine::sim::Random;
use chronofs_meta::machine::ConnId;
use chronofs_wire::message::{Hello, HelloAnswer, RefusalReason, ToClient, ToServer};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub enum FromServer {
    Answer(HelloAnswer),
    Frame(ToClient),
}

pub struct SimClient {
    pub number: u128,
    /// It works in a directory of its own, so that nobody's loss can spoil what it did.
    pub private: bool,
    /// The window for replays is so short that it may miss it. What comes then is done only where it undoes nothing
    /// of others.
    pub may_be_late: bool,
    pub session: Option<SessionId>,
    pub conn: Option<ConnId>,
    pub welcomed: bool,
    pub seen: Version,
    next_id: u64,
    next_object: u64,
    pub outstanding: BTreeMap<u64, Request>,
    pub undurable: Vec<Replayed>,
    opens: BTreeMap<Ino, u32>,
    dirs: Vec<Ino>,
    files: Vec<Ino>,
    home_asked: bool,
    pub inbox: VecDeque<FromServer>,
    pub outbox: VecDeque<ToServer>,
    /// Mutations answered with success.
    pub acknowledged: BTreeMap<u64, Version>,
    /// Calls that make an inode, with the one that they were answered with.
    pub creates: BTreeMap<u64, Option<Ino>>,
    /// Calls that it was told to be lost.
    pub parked: BTreeSet<u64>,
    /// The highest version it was told to be durable.
    pub durable: Version,
    /// Syncs: (version of the answer).
    pub synced: Version,
    /// It writes much.
    busy: bool,
    store: SharedStore,
    /// Objects it put, of its session.
    put: Vec<ObjectId>,
}

impl SimClient {
    pub fn new(number: u128, private: bool, may_be_late: bool, busy: bool, store: SharedStore) -> Self {
        SimClient {
            number,
            private,
            may_be_late,
            session: None,
            conn: None,
            welcomed: false,
            seen: Version::ZERO,
            next_id: 1,
            next_object: 0,
            outstanding: BTreeMap::new(),
            undurable: Vec::new(),
            opens: BTreeMap::new(),
            dirs: Vec::new(),
            files: Vec::new(),
            home_asked: false,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            acknowledged: BTreeMap::new(),
            creates: BTreeMap::new(),
            parked: BTreeSet::new(),
            durable: Version::ZERO,
            synced: Version::ZERO,
            busy,
            store,
            put: Vec::new(),
        }
    }

    pub fn hello(&self) -> Hello {
        Hello { resume: self.session, seen: self.seen, ..common::hello(self.number) }
    }

    pub fn disconnected(&mut self) {
        self.conn = None;
        self.welcomed = false;
        self.outbox.clear();
    }

    fn acked(&self) -> u64 {
        self.outstanding.keys().next().map_or(self.next_id, |first| *first) - 1
    }

    fn call(&mut self, request: Request) {
        let id = self.next_id;
        self.next_id += 1;
        self.outstanding.insert(id, request.clone());
        if matches!(request, Request::Create { .. }) {
            self.creates.insert(id, None);
        }
        let acked = self.acked();
        self.outbox.push_back(ToServer::Call { id, acked, caller: Caller::ROOT, request });
    }

    /// Asks for something.
    pub fn act(&mut self, random: &mut Random) {
        if !self.welcomed || self.outstanding.len() > 12 {
            return;
        }
        if self.private && self.dirs.is_empty() {
            if !self.home_asked {
                self.home_asked = true;
                let mut request = common::create(Ino::ROOT, &format!("home{}", self.number), false);
                if let Request::Create { node, mode, .. } = &mut request {
                    (*node, *mode) = (NewNode::Dir, 0o755);
                }
                self.call(request);
            }
            return;
        }
        let request = self.draw(random);
        self.call(request);
    }

    fn pick(inos: &[Ino], random: &mut Random) -> Ino {
        if inos.is_empty() { Ino::ROOT } else { inos[random.below(inos.len() as u64) as usize] }
    }

    fn draw(&mut self, random: &mut Random) -> Request {
        let (parent, other) = (Self::pick(&self.dirs, random), Self::pick(&self.dirs, random));
        let file = Self::pick(&self.files, random);
        let letter =
            |random: &mut Random| common::name(["a", "b", "c", "d", "e", "f"][random.below(6) as usize]);
        let name = letter(random);
        match random.below(if self.busy { 32 } else { 22 }) {
            20..=31 if !self.files.is_empty() => {
                // Of few files, so that slices are covered and cut.
                let few = self.files.len().min(3) as u64;
                let file = self.files[self.files.len() - 1 - random.below(few) as usize];
                if random.one_in(4) {
                    let set =
                        SetAttr { size: Some(random.below(200)), by_handle: true, ..SetAttr::default() };
                    return Request::SetAttr { ino: file, set };
                }
                self.write(file, random)
            }
            0..=4 => {
                let mut request = common::create(parent, "x", random.one_in(3));
                if let Request::Create { name: slot, exclusive, .. } = &mut request {
                    (*slot, *exclusive) = (name, random.one_in(2));
                }
                request
            }
            5 | 6 => Request::Create {
                parent,
                name,
                node: NewNode::Dir,
                mode: 0o755,
                umask: 0,
                open: false,
                exclusive: true,
            },
            7 => Request::Unlink { parent, name },
            8 => Request::Rmdir { parent, name },
            9 => {
                let mode = chronofs_core::ops::RenameMode::Replace;
                Request::Rename { from: parent, name, to: other, new_name: letter(random), mode }
            }
            10 => Request::Link { ino: file, parent, name },
            11 => {
                let set =
                    SetAttr { size: Some(random.below(1 << 20)), by_handle: true, ..SetAttr::default() };
                Request::SetAttr { ino: file, set }
            }
            12 => {
                let value = Bytes::from(random.number().to_le_bytes().to_vec());
                let name = Bytes::from_static(b"user.a");
                Request::SetXattr { ino: file, name, value, mode: XattrMode::Any }
            }
            13 => Request::Lookup { parent, name },
            14 => Request::ReadDir { dir: parent, after: 0, limit: 10, attrs: true },
            15 => Request::Open { ino: file, read: true, write: false },
            16 => match self.opens.keys().next().copied() {
                Some(ino) => {
                    if let Some(count) = self.opens.get_mut(&ino) {
                        *count -= 1;
                    }
                    self.opens.retain(|_, count| *count > 0);
                    Request::Close { ino, count: 1 }
                }
                None => Request::StatFs,
            },
            17 => Request::Sync,
            18 => Request::Grant { count: 10 },
            _ => Request::GetAttr { ino: file },
        }
    }

    /// Puts an object, or takes one that it put before, and publishes slices of it; sometimes it forgets to.
    fn write(&mut self, ino: Ino, random: &mut Random) -> Request {
        let session = self.session.expect("it is welcomed");
        self.put.retain(|id| id.session == session);
        if self.put.is_empty() || !random.one_in(8) {
            let id = ObjectId { incarnation: 0, session, n: self.next_object };
            self.next_object += 1;
            self.put.push(id);
            self.store.lock().unwrap().put(id, whole_object(id, ino));
            if random.one_in(8) {
                return Request::StatFs;
            }
        }
        let object = self.put[self.put.len() - 1 - random.below(self.put.len().min(3) as u64) as usize];
        let slices = (0..1 + random.below(3)).map(|n| {
            let id = SliceId { object, index: n as u32 };
            let (seal, _) = sealed(id);
            let offset = random.below(4) as u32 * 32;
            let staged = random.one_in(4).then(|| {
                let object = ObjectId { n: self.next_object, ..object };
                self.next_object += 1;
                let bytes = Bytes::from(vec![random.number() as u8; 64]);
                seal::seal(SliceId { object, index: 0 }, Compression::None, &bytes)
            });
            let (place, staged) = match staged {
                Some((seal, bytes)) => (Place::Staged(seal), Some(bytes)),
                None => (Place::Object(seal, 64 * n), None),
            };
            let slice = Slice { offset, len: 64, skip: 0, place };
            NewSlice { block: block_of(object), slice, staged }
        });
        let slices = slices.collect();
        Request::Publish { ino, slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None }
    }

    /// Takes one message. Answers what the protocol wants answered.
    pub fn take(&mut self) {
        match self.inbox.pop_front() {
            Some(FromServer::Answer(Ok(welcome))) => {
                self.session = Some(welcome.session);
                self.welcomed = true;
                self.seen = self.seen.max(welcome.applied);
                // Not only when `boot` is new: the one before may have been lost.
                let opens = self.opens.iter().map(|(&ino, &count)| (ino, count)).collect();
                self.outbox.push_back(ToServer::Reclaim { opens });
                self.told_durable(welcome.durable);
                if welcome.replay {
                    let calls = self.undurable.clone();
                    self.outbox.push_back(ToServer::Replay { calls, end: true });
                }
                let acked = self.acked();
                for (&id, request) in &self.outstanding {
                    let request = request.clone();
                    self.outbox.push_back(ToServer::Call { id, acked, caller: Caller::ROOT, request });
                }
            }
            Some(FromServer::Answer(Err(refusal))) => {
                assert!(matches!(refusal.reason, RefusalReason::NotNow { .. }), "{refusal:?}");
                self.disconnected();
            }
            Some(FromServer::Frame(ToClient::Return { id, version, durable, result })) => {
                self.seen = self.seen.max(version);
                self.answered(id, version, result);
                self.told_durable(durable);
            }
            Some(FromServer::Frame(ToClient::Durable { version })) => self.told_durable(version),
            Some(FromServer::Frame(ToClient::Shared { shared: true })) => {
                self.outbox.push_back(ToServer::SharedAck)
            }
            Some(FromServer::Frame(ToClient::Parked { calls })) => {
                let held = |id: u64| self.undurable.iter().find(move |call| call.id == id);
                let lost: Vec<_> = calls.iter().map(|(id, errno)| (held(*id), errno)).collect();
                let at_peace = self.private && !self.may_be_late;
                assert!(!at_peace, "client {} lost {lost:?} of {:?}", self.number, self.undurable);
                self.parked.extend(calls.iter().map(|(id, _)| *id));
                self.outbox
                    .push_back(ToServer::ParkedAck { calls: calls.iter().map(|(id, _)| *id).collect() });
            }
            Some(FromServer::Frame(ToClient::Refused { message })) => panic!("refused: {message}"),
            _ => {}
        }
    }

    fn told_durable(&mut self, durable: Version) {
        self.durable = self.durable.max(durable);
        self.undurable.retain(|call| call.version > durable);
    }

    fn answered(&mut self, id: u64, version: Version, result: Result<Reply, Errno>) {
        // An answer may come twice, after the call was sent twice.
        let Some(request) = self.outstanding.remove(&id) else { return };
        let reply = match result {
            Ok(reply) => reply,
            Err(errno) => {
                assert_ne!(errno, Errno::EIO, "{request:?}");
                if matches!(&request, Request::Create { parent: Ino::ROOT, .. }) && self.private {
                    self.home_asked = false;
                }
                return;
            }
        };
        if let Reply::Instant(version) = &reply {
            self.synced = self.synced.max(*version);
        }
        let made = match (&request, &reply) {
            (Request::Create { node, .. }, Reply::Attr(attr) | Reply::Opened { attr, .. }) => {
                let list = if *node == NewNode::Dir { &mut self.dirs } else { &mut self.files };
                list.push(attr.ino);
                self.creates.insert(id, Some(attr.ino));
                Some(attr.ino)
            }
            _ => None,
        };
        if let Reply::Opened { attr, .. } = &reply {
            *self.opens.entry(attr.ino).or_default() += 1;
        }
        if request.mutates() {
            self.acknowledged.insert(id, version);
            let found = matches!(&request, Request::Create { exclusive: false, .. })
                && matches!(&reply, Reply::Opened { slices: None, .. });
            self.undurable.push(Replayed { id, version, caller: Caller::ROOT, request, made, found });
        }
    }
}

/// A slice of 64 bytes.
fn sealed(id: SliceId) -> (Seal, Bytes) {
    let bytes = Bytes::from(vec![(id.object.n as u8).wrapping_mul(31) ^ id.index as u8; 64]);
    seal::seal(id, Compression::None, &bytes)
}

fn block_of(object: ObjectId) -> u32 {
    (object.n % 2) as u32
}

/// An object of three slices for a file.
fn whole_object(id: ObjectId, ino: Ino) -> Bytes {
    let mut writer = ObjectWriter::new(common::VOLUME, id, 0);
    for index in 0..3 {
        let (seal, stored) = sealed(SliceId { object: id, index });
        let block = block_of(id);
        writer.push(Entry { ino, at: 0, block, offset: 0, len: 64, seal }, &stored);
    }
    writer.finish()
}
