//! The past in the simulation: mounts that lease an instant, a window that moves on, and what must be there still.

use super::{MS, World};
use crate::common;
use chronofs_core::{Retention, Version, VolumeIndex};
use chronofs_engine::memory::State;
use chronofs_engine::{Batch, Change, Commit, Engine, Reads};
use chronofs_history::Snapshot;
use chronofs_meta::machine::{ConnId, Event, SharedView};
use chronofs_namespace::rows::{VERSIONED, Volume};
use chronofs_wire::message::{Hello, HelloAnswer, ToServer};

const INDEX: VolumeIndex = VolumeIndex(1);
const SECOND: u64 = 1000 * MS;

/// A mounted past.
pub struct Lease {
    /// Its connection, while the server that it came to runs.
    conn: Option<ConnId>,
    at: Version,
    /// It was told that it has its instant.
    welcomed: bool,
}

impl World {
    /// Whether the past is mounted and forgotten, and time leaps. Not where clients come late: commits and time of this
    /// kind have marks come more often there, which leads to the gap that docs/arch/meta.md names.
    pub fn looks_back(&self) -> bool {
        self.window_ms >= 1000
    }

    pub fn draw_retention(&mut self) {
        let seconds = [1, 1, 2, 3600][self.past_random.below(4) as usize];
        self.retention = match self.looks_back() {
            true if self.store_random.one_in(4) => Retention::None,
            true => Retention::Seconds(seconds),
            false => Retention::Seconds(3600),
        };
    }

    /// Somebody mounts an instant of the last two seconds.
    pub fn mount_past(&mut self) {
        if self.server.is_none() {
            return;
        }
        let (conn, client) = (ConnId(self.next_conn), 1000 + u128::from(self.next_conn));
        self.next_conn += 1;
        let at = Version(self.now_ns - self.past_random.below(2 * SECOND));
        self.leases.push(Lease { conn: Some(conn), at, welcomed: false });
        let hello = Hello { at: Some(at), ..common::hello(client) };
        self.with_server(vec![Event::Hello(conn, Box::new(hello))]);
    }

    pub fn past_answered(&mut self, conn: ConnId, answer: &HelloAnswer) {
        if let Some(lease) = self.leases.iter_mut().find(|lease| lease.conn == Some(conn)) {
            lease.welcomed = answer.is_ok();
        }
        self.leases.retain(|lease| lease.welcomed || lease.conn != Some(conn));
    }

    pub fn unmount_past(&mut self) {
        let n = self.past_random.below(1 + self.leases.len() as u64) as usize;
        if n < self.leases.len()
            && let Some(conn) = self.leases[n].conn
        {
            self.leases.remove(n);
            self.unmount(conn);
        }
    }

    /// The goodbye may find no room in the log; then the session goes when it was silent for so long.
    fn unmount(&mut self, conn: ConnId) {
        self.with_server(vec![Event::Frame(conn, ToServer::Goodbye), Event::Gone(conn)]);
    }

    /// The server is gone. Who was told that it has its instant keeps it; it has not lived for long.
    pub fn past_server_gone(&mut self) {
        self.leases.retain(|lease| lease.welcomed);
        self.leases.iter_mut().for_each(|lease| lease.conn = None);
    }

    /// Every protected instant shows each row that it would show if nothing had ever been forgotten.
    pub fn check_past(&mut self) {
        let Some(server) = &self.server else { return };
        let reads = SharedView(server.engine.view());
        let Some(volume) = chronofs_namespace::volume(&reads, INDEX).unwrap() else { return };
        if volume.is_given_up() || volume.is_gone() {
            return;
        }
        let applied = server.engine.applied();
        let window_start = self.retention.window_start(Version(self.now_ns).max(applied));
        assert!(volume.horizon <= window_start.max(volume.born), "the horizon is in the window: {volume:?}");
        let whole = self.unforgotten();
        let mut instants: Vec<Version> = self.leases.iter().filter(|l| l.welcomed).map(|l| l.at).collect();
        let first = window_start.max(volume.born).0;
        instants.push(Version(first));
        instants.push(Version(first + self.past_random.below(applied.0.saturating_sub(first).max(1))));
        for at in instants {
            for table in VERSIONED {
                let rows = |reads: &dyn Reads| {
                    Snapshot::new(reads, INDEX, Some(at)).scan(table, &[], &[], usize::MAX).unwrap()
                };
                assert_eq!(rows(&reads), rows(&whole), "{} at {at:?}; {volume:?}", table.name);
            }
        }
    }

    /// The state as it were if no row of the past had been removed.
    fn unforgotten(&self) -> State {
        let mut whole = State::default();
        for commit in self.record.lock().unwrap().iter() {
            let of_the_past = |change: &Change| matches!(change, Change::Delete(key) if key[0] == 0x80);
            let changes = commit.batch.0.iter().filter(|change| !of_the_past(change)).cloned().collect();
            whole.apply(&Commit { batch: Batch(changes), ..commit.clone() });
        }
        whole
    }

    /// Time goes on and nobody needs the past any more: then none of it is left.
    pub fn finish_past(&mut self) {
        self.check_past();
        for conn in self.leases.drain(..).filter_map(|lease| lease.conn).collect::<Vec<_>>() {
            self.unmount(conn);
        }
        // What nobody has open any more goes first.
        for _ in 0..4 {
            self.sync();
            self.with_server(vec![Event::Tick]);
        }
        self.now_ns += 2 * 3600 * SECOND;
        for _ in 0..10 {
            self.sync();
            self.with_server(vec![Event::Tick]);
        }
        let server = self.server.as_ref().expect("nothing fails any more");
        let reads = SharedView(server.engine.view());
        let volume: Option<Volume> = chronofs_namespace::volume(&reads, INDEX).unwrap();
        let left = reads.first(&[0x80], &[0x81]).unwrap();
        assert!(left.is_none(), "{left:?} is kept for ever: {volume:?}");
    }
}
