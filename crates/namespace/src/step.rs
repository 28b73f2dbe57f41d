//! Mutations: from request to operation.

use crate::create::NewEntry;
use crate::ctx::{Ctx, Done, Outcome, answered};
use crate::op::Op;
use crate::publish::Published;
use crate::rows::{Format, SESSION, STORE_WIDE, Volume};
use crate::{sealed, system};
use chronofs_core::Errno;
use chronofs_core::ops::{Reply, Request};
use chronofs_engine::{Batch, ReadStop, Reads};
use chronofs_history::Txn;

/// The most object counters of one grant.
pub const GRANT_MAX: u64 = 1 << 32;

pub(crate) fn step<R: Reads + ?Sized>(
    reads: &R,
    ctx: &Ctx<'_>,
    request: &Request,
) -> Result<Outcome, ReadStop> {
    match answered(decide(reads, ctx, request))? {
        Ok((reply, batch)) => Ok(Outcome { reply: Ok(reply), batch }),
        Err(errno) => Ok(Outcome { reply: Err(errno), batch: Batch::default() }),
    }
}

fn decide<R: Reads + ?Sized>(reads: &R, ctx: &Ctx<'_>, request: &Request) -> Done<(Reply, Batch)> {
    if ctx.read_only || ctx.at.is_some() {
        return Err(Errno::EROFS.into());
    }
    let volume = live_volume(reads, ctx)?;
    sealed::check_names(&volume, request)?;
    let mut op = Op::new(reads, ctx, &volume);
    let reply = perform(&mut op, request)?;
    Ok((reply, op.into_batch()?))
}

/// Errors: ESTALE for a volume that is not there or deleted.
pub(crate) fn live_volume<R: Reads + ?Sized>(reads: &R, ctx: &Ctx<'_>) -> Done<Volume> {
    let volume = system::volume(reads, ctx.volume)?.filter(|volume| volume.deleted.is_none());
    Ok(volume.ok_or(Errno::ESTALE)?)
}

fn perform<R: Reads + ?Sized>(op: &mut Op<'_, R>, request: &Request) -> Done<Reply> {
    match request {
        Request::Create { parent, name, node, mode, umask, open, exclusive } => op.create(&NewEntry {
            parent: *parent,
            name,
            node,
            mode: *mode,
            umask: *umask,
            open: *open,
            exclusive: *exclusive,
        }),
        Request::Link { ino, parent, name } => op.link(*ino, *parent, name),
        Request::Unlink { parent, name } => op.unlink(*parent, name),
        Request::Rmdir { parent, name } => op.rmdir(*parent, name),
        Request::Rename { from, name, to, new_name, mode } => op.rename(*from, name, *to, new_name, *mode),
        Request::SetAttr { ino, set } => op.set_attr(*ino, set),
        Request::SetXattr { ino, name, value, mode } => op.set_xattr(*ino, name, value, *mode),
        Request::RemoveXattr { ino, name } => op.remove_xattr(*ino, name),
        Request::Publish { ino, slices, size_min, mtime_ns, kill_priv, merge } => op.publish(&Published {
            ino: *ino,
            slices,
            size_min: *size_min,
            mtime_ns: *mtime_ns,
            kill_priv: *kill_priv,
            merge: merge.as_ref(),
        }),
        Request::Grant { count } => grant(op, *count),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// A further range of object counters. Errors: EINVAL, ESTALE without a session.
fn grant<R: Reads + ?Sized>(op: &mut Op<'_, R>, count: u64) -> Done<Reply> {
    if count == 0 || count > GRANT_MAX {
        return Err(Errno::EINVAL.into());
    }
    let session = system::session(op.reads, op.ctx.session)?;
    let mut session = session.filter(|session| session.volume == op.ctx.volume).ok_or(Errno::ESTALE)?;
    let first = session.granted;
    let end = first.checked_add(count).ok_or(Errno::ENOSPC)?;
    session.granted = end;
    let mut store = Txn::new(op.reads, STORE_WIDE, op.ctx.version, false);
    store.put_plain(SESSION, &op.ctx.session.0.to_be_bytes(), &session.encode()?);
    op.store_wide = store.into_batch();
    Ok(Reply::Grant { first, end })
}
