//! Reads on other threads: what they may show, and to whom.

use super::*;
use chronofs_core::ops::NewNode;
use chronofs_meta::executor::run_read;
use uuid::Uuid;

impl Server {
    /// Calls, and reads on this thread what another would.
    fn read(&mut self, conn: u64, id: u64, caller: Caller, request: Request) -> Result<Reply, Errno> {
        let effects = self.run(Event::Call(ConnId(conn), Call { id, acked: 0, caller, request }));
        let job = effects.into_iter().find_map(|effect| match effect {
            Effect::Read(job) => Some(job),
            _ => None,
        });
        run_read(&job.expect("a read for another thread"), self.core.engine.view())
    }

    fn make_dir(&mut self, id: u64, parent: Ino, file: &str, mode: u16) -> Ino {
        let request = Request::Create {
            parent,
            name: name(file),
            node: NewNode::Dir,
            mode,
            umask: 0,
            open: false,
            exclusive: true,
        };
        attr(self.call(1, id, request).1.unwrap()).ino
    }
}

#[test]
fn a_directory_is_listed_for_those_only_who_may_read_it() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    let dir = server.make_dir(1, Ino::ROOT, "closed", 0o711);
    let list = Request::ReadDir { dir, after: 0, limit: 9, attrs: true };
    let other = Caller { uid: 1000, gid: 1000, groups: Vec::new() };
    assert_eq!(server.read(1, 2, other.clone(), list.clone()), Err(Errno::EACCES));
    assert!(server.read(1, 3, Caller::ROOT, list.clone()).is_ok());
    server.call(1, 4, Request::Open { ino: dir, read: true, write: false }).1.unwrap();
    assert_eq!(server.read(1, 5, other, list), Err(Errno::EACCES), "another opened it");
}

#[test]
fn of_files_without_a_name_a_confined_session_reads_only_those_that_it_has_open() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    let home = server.make_dir(1, Ino::ROOT, "home", 0o755);
    let ann = server.make_dir(2, home, "ann", 0o755);
    let theirs = attr(server.call(1, 3, create(Ino::ROOT, "theirs", true)).1.unwrap()).ino;
    let confined = Hello { token_id: Uuid::from_u128(2), ..hello(2) };
    assert!(server.open(2, confined).is_none());
    server.frame(1, ToServer::SharedAck);
    assert_eq!(welcome(server.durable()).unwrap().root, ann);
    let own = attr(server.call(2, 1, create(ann, "own", true)).1.unwrap()).ino;
    let slices = |ino| Request::Slices { ino, first: 0, count: 1, staged: true };
    assert_eq!(server.read(2, 2, Caller::ROOT, slices(theirs)), Err(Errno::ENOENT), "outside");
    server.call(1, 4, Request::Unlink { parent: Ino::ROOT, name: name("theirs") }).1.unwrap();
    server.call(2, 3, Request::Unlink { parent: ann, name: name("own") }).1.unwrap();
    assert_eq!(server.read(2, 4, Caller::ROOT, slices(theirs)), Err(Errno::ENOENT), "still outside");
    assert_eq!(server.call(2, 5, Request::GetAttr { ino: theirs }).1, Err(Errno::ENOENT));
    assert!(server.read(2, 6, Caller::ROOT, slices(own)).is_ok());
    assert!(server.call(2, 7, Request::GetAttr { ino: own }).1.is_ok());
    assert!(server.read(1, 5, Caller::ROOT, slices(theirs)).is_ok());
}
