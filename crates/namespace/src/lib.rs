//! The file system as a deterministic state machine: inodes, entries, slices, xattrs, ACLs, quotas, orphans.
//!
//! [`fn@step`] decides a client's mutation, [`fn@query`] answers a read (now or at an instant), [`fn@system`] decides what
//! the server itself asks for. They read through [`Reads`] and give a reply and a batch of changes. Nothing here
//! does I/O, reads a clock, draws random numbers or keeps state: the same reads, context and request give the same
//! bytes. It may depend on `chronofs-core`, `chronofs-engine` and `chronofs-history`.

mod acl;
mod attrs;
mod collect;
mod counted;
mod create;
mod ctx;
mod held;
mod leave;
mod look;
mod named;
mod op;
mod pack;
mod paths;
mod protect;
mod publish;
mod read;
mod readdir;
mod remove;
mod rename;
mod repack;
mod restored;
pub mod rows;
mod sealed;
mod slices;
mod slots;
mod spent;
mod step;
mod system;
#[cfg(test)]
mod tests;
mod verify;
mod xattr;

pub use collect::{
    Foreign, Judged, foreign_objects, gone_objects, judge, list_condemned, list_objects, live_stored_bytes,
    object_refs, retired_since, tally,
};
pub use create::TARGET_LEN_MAX;
pub use ctx::{Ctx, FREED_MAX, Outcome, SystemCtx};
pub use held::{HeldFrom, HeldSlice, held_again, held_slices};
pub use named::{Named, NamedFor, names_of};
pub use op::LINKS_MAX;
pub use pack::{StagedPage, staged_slices};
pub use paths::{first_purge, list_orphans, resolve, usage};
pub use protect::{KeptInstant, check_kept_instant, list_kept, list_unproven, protected_instants, unproven};
pub use publish::{CUT_SLICES_MAX, size_max};
pub use read::SLICES_PER_REPLY_MAX;
pub use readdir::ENTRIES_PER_REPLY_MAX;
pub use repack::{IndexedSlice, PoorObject, needed_slices, poor_object};
pub use restored::{drawn_apart_since, restored};
pub use sealed::sealed_keys;
pub use spent::{Lies, SpentBlock, SpentSlice, inode_page, last_known, spent_blocks};
pub use step::GRANT_MAX;
pub use system::{
    SystemError, SystemOutcome, SystemReply, check_instant, instants, list_sessions, list_volumes, session,
    skip_lost_inos, volume,
};
pub use verify::{Fault, mends, verify, verify_each};
pub use xattr::{XATTR_NAME_MAX, XATTR_VALUE_MAX};

use chronofs_core::Errno;
use chronofs_core::ops::{Reply, Request, SystemRequest};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::Snapshot;
use look::Look;

/// Decides a mutation ([`Request::mutates`]). The batch is to be committed at `ctx.version`, which is above every
/// version in `reads`; an error leaves it empty.
pub fn step<R: Reads + ?Sized>(reads: &R, ctx: &Ctx<'_>, request: &Request) -> Result<Outcome, ReadStop> {
    step::step(reads, ctx, request)
}

/// Answers a read, at `ctx.at` if that is set. In the past a caller other than root needs the right as of then and,
/// as long as the inode lives, now.
pub fn query<R: Reads + ?Sized>(
    reads: &R,
    ctx: &Ctx<'_>,
    request: &Request,
) -> Result<Result<Reply, Errno>, ReadStop> {
    let answer = step::live_volume(reads, ctx).and_then(|volume| {
        sealed::check_names(&volume, request)?;
        let tables = Snapshot::new(reads, ctx.volume, ctx.at);
        let present = ctx.at.map(|_| Snapshot::new(reads, ctx.volume, None));
        read::read(&Look { tables, present, ctx, volume: &volume }, request)
    });
    ctx::answered(answer)
}

/// Decides a request of the server itself.
pub fn system<R: Reads + ?Sized>(
    reads: &R,
    ctx: &SystemCtx<'_>,
    request: &SystemRequest,
) -> Result<SystemOutcome, ReadStop> {
    system::system(reads, ctx, request)
}
