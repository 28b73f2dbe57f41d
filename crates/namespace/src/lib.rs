//! The file system as a deterministic state machine: inodes, entries, slices, xattrs, ACLs, quotas, orphans.
//!
//! [`step`] decides a client's mutation, [`query`] answers a read (now or at an instant), [`system`] decides what
//! the server itself asks for. They read through [`Reads`] and give a reply and a batch of changes. Nothing here
//! does I/O, reads a clock, draws random numbers or keeps state: the same reads, context and request give the same
//! bytes. It may depend on `chronofs-core`, `chronofs-engine` and `chronofs-history`.

mod ctx;
pub mod rows;
mod system;

pub use ctx::{Ctx, Outcome, SystemCtx};
pub use system::{
    SystemError, SystemOutcome, SystemReply, instants, list_sessions, list_volumes, session, volume,
};

use chronofs_core::Errno;
use chronofs_core::ops::{Reply, Request, SystemRequest};
use chronofs_engine::{Batch, ReadStop, Reads};

/// Decides a mutation ([`Request::mutates`]). The batch is to be committed at `ctx.version`, which is above every
/// version in `reads`; an error leaves it empty.
pub fn step<R: Reads + ?Sized>(reads: &R, ctx: &Ctx<'_>, request: &Request) -> Result<Outcome, ReadStop> {
    let _ = (reads, ctx, request);
    Ok(Outcome { reply: Err(Errno::ENOSYS), batch: Batch::default() })
}

/// Answers a read, at `ctx.at` if that is set.
pub fn query<R: Reads + ?Sized>(
    reads: &R,
    ctx: &Ctx<'_>,
    request: &Request,
) -> Result<Result<Reply, Errno>, ReadStop> {
    let _ = (reads, ctx, request);
    Ok(Err(Errno::ENOSYS))
}

/// Decides a request of the server itself.
pub fn system<R: Reads + ?Sized>(
    reads: &R,
    ctx: &SystemCtx<'_>,
    request: &SystemRequest,
) -> Result<SystemOutcome, ReadStop> {
    system::system(reads, ctx, request)
}
