//! Requests that are not answered at once: a task of their own, and an end when a signal asks for it.
//!
//! fuser knows no FUSE_INTERRUPT, so the kernel waits for the answer of a request that it has handed out, whatever
//! signals come. A request that waits long looks at its thread's signals by itself; once interrupted it is answered
//! with EINTR, and what it began goes on behind the scenes until it is known how it ended.

use super::convert;
use crate::process::procstatus;
use chronofs_core::Errno;
use std::future::Future;
use std::time::Duration;

/// How long a request may take before its thread's signals are looked at, and how often then.
const PATIENCE: Duration = Duration::from_millis(200);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A reply that can say that it failed.
pub(super) trait Fail: Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! fail {
    ($($reply:ident),* $(,)?) => {
        $(impl Fail for fuser::$reply {
            fn fail(self, errno: Errno) {
                self.error(convert::errno(errno));
            }
        })*
    };
}

fail!(
    ReplyEmpty,
    ReplyData,
    ReplyEntry,
    ReplyAttr,
    ReplyOpen,
    ReplyWrite,
    ReplyStatfs,
    ReplyCreate,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyXattr,
    ReplyLseek,
);

/// Runs `operation` for the thread `tid` and hands its result to `answer`; to `abandon` when nobody waits for it.
pub(super) async fn serve<R: Fail, T>(
    tid: u32,
    reply: R,
    operation: impl Future<Output = Result<T, Errno>>,
    answer: impl FnOnce(R, T),
    abandon: impl FnOnce(T),
) {
    tokio::pin!(operation);
    match unless_interrupted(tid, &mut operation).await {
        Some(Ok(done)) => answer(reply, done),
        Some(Err(errno)) => reply.fail(errno),
        None => {
            reply.fail(Errno::EINTR);
            if let Ok(late) = operation.await {
                abandon(late);
            }
        }
    }
}

/// As [`serve`], for an operation that does nothing until it is done: when interrupted it never happens.
pub(super) async fn serve_or_drop<R: Fail, T>(
    tid: u32,
    reply: R,
    operation: impl Future<Output = Result<T, Errno>>,
    answer: impl FnOnce(R, T),
) {
    match unless_interrupted(tid, operation).await {
        Some(Ok(done)) => answer(reply, done),
        Some(Err(errno)) => reply.fail(errno),
        None => reply.fail(Errno::EINTR),
    }
}

/// What `operation` gives, or `None` when a signal asks the thread `tid` to stop waiting for it.
async fn unless_interrupted<T>(tid: u32, operation: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(operation);
    match tokio::time::timeout(PATIENCE, &mut operation).await {
        Ok(result) => Some(result),
        Err(_) => tokio::select! {
            result = &mut operation => Some(result),
            () = interrupted(tid) => None,
        },
    }
}

/// Returns when a signal asks the thread to stop waiting; never for requests of the kernel itself.
async fn interrupted(tid: u32) {
    while !procstatus::is_interrupted(tid) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
