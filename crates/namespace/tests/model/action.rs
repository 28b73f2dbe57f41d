//! What happens to the namespace and to the model beside it. `generate.rs` draws it, `world.rs` carries it out.

use crate::pack::Packing;
use chronofs_core::SliceId;
use chronofs_core::ops::Request;

/// One thing that happens. Inode numbers in requests are numbers of slots: slot 0 is the root, the others hold what
/// was last created into them.
#[derive(Clone, Debug)]
pub enum Action {
    /// A client's request; what it makes goes into slot `keep`.
    Ask {
        caller: usize,
        scope: usize,
        read_only: bool,
        tick: u64,
        keep: usize,
        request: Request,
    },
    /// A client's read at a past version.
    AskPast {
        caller: usize,
        pick: u64,
        request: Request,
    },
    Close {
        slot: usize,
    },
    Reap {
        slot: usize,
        tick: u64,
    },
    /// The server removes further rows of an inode that is gone.
    Purge {
        tick: u64,
    },
    /// Begins to list a directory.
    List {
        slot: usize,
        cursor: usize,
    },
    /// The next page.
    Page {
        cursor: usize,
        limit: u32,
        attrs: bool,
    },
    /// A client reads a block, to merge it later.
    ReadBlock {
        slot: usize,
        block: u32,
        note: usize,
    },
    /// The merge: the bytes in as many slices as there are runs, or all of the range in one.
    Merge {
        note: usize,
        tick: u64,
        one: bool,
        id: SliceId,
    },
    Quota {
        bytes: Option<u64>,
        inodes: Option<u64>,
        tick: u64,
    },
    /// A mount of the past leases the present instant: from here on it can be read whatever the retention.
    Lease {
        tick: u64,
    },
    /// The mount goes.
    EndLease,
    /// A disk snapshot begins: all of the past is kept, and all that comes.
    KeepPast {
        tick: u64,
    },
    /// It keeps what was up to now.
    Cut,
    /// It is deleted, complete or not.
    LetGo,
    /// What was decided and not applied yet is lost.
    Crash,
    /// The executor applies its group.
    Apply,
    CheckNow,
    CheckPast {
        pick: u64,
    },
    /// The checker finds nothing wrong.
    Verify,
    /// The horizon moves forward as far as it can.
    Horizon {
        tick: u64,
    },
    /// A step of a sweep through the past.
    Forget {
        limit: u32,
    },
    /// Time goes on, and a sweep through the whole past leaves what is protected.
    ForgetAll {
        tick: u64,
        limit: u32,
        pick: u64,
    },
    /// The server packs staged slices into an object.
    Pack(Packing),
    /// What is needed of an object that the server made goes into another one.
    Repack {
        pick: u64,
        step: usize,
    },
    /// No client writes any more, and what is needed of every object goes into another one.
    RepackAll,
    /// Objects that no row names are condemned, staged slices go.
    Condemn {
        limit: u32,
    },
    /// The store deletes condemned objects.
    Delete {
        limit: usize,
    },
    /// All that no row names goes, and nothing else.
    CollectAll,
    /// All of the past is forgotten but for these instants, which show what they did. Comes last.
    Expire {
        picks: Vec<u64>,
        limit: usize,
    },
}
