//! What a file has lost: bytes that the server refused, and what it had taken and lost with its power. Whoever has the
//! file open is told, once, and nothing of it is shown.

use super::file::FileData;
use super::meta::Meta;
use chronofs_core::Errno;
use std::sync::atomic::{AtomicU64, Ordering};

/// What an open handle has seen of the errors of its file, so that each is returned once.
#[derive(Debug)]
pub struct ErrorMark {
    /// Bytes that the server refused.
    refused: AtomicU64,
    /// Changes that it had taken and lost.
    lost: AtomicU64,
}

impl<M: Meta> FileData<M> {
    /// Where a new handle starts to be told of errors.
    pub fn error_mark(&self) -> ErrorMark {
        let lost = self.data.meta.lost(self.ino);
        ErrorMark { refused: AtomicU64::new(self.state().errors), lost: AtomicU64::new(lost) }
    }

    /// What went wrong with the file since its handle was told the last time. It counts as told now.
    pub fn check(&self, mark: &ErrorMark) -> Result<(), Errno> {
        let (untold, refused, lost) = self.untold(mark);
        mark.refused.store(refused, Ordering::Relaxed);
        mark.lost.store(lost, Ordering::Relaxed);
        untold
    }

    /// What the handle is to be told, and up to which errors that is all.
    pub(super) fn untold(&self, mark: &ErrorMark) -> (Result<(), Errno>, u64, u64) {
        let lost = self.data.meta.lost(self.ino);
        let (refused, last_error) = {
            let state = self.state();
            (state.errors, state.last_error)
        };
        let untold = match mark.lost.load(Ordering::Relaxed) < lost {
            true => Err(Errno::EIO),
            false if mark.refused.load(Ordering::Relaxed) < refused => Err(last_error),
            false => Ok(()),
        };
        (untold, refused, lost)
    }

    /// Learns anew what is published, if the server was started since it was told. What of it was lost is not shown any
    /// more, though its versions were higher.
    pub(super) async fn refresh_if_stale(&self) -> Result<(), Errno> {
        let stale = self.state().stale;
        if stale { self.refresh().await } else { Ok(()) }
    }

    async fn refresh(&self) -> Result<(), Errno> {
        // Nothing that this mount changes itself comes in between.
        let _order = self.order.lock().await;
        loop {
            let boot = {
                let state = self.state();
                if !state.stale {
                    return Ok(());
                }
                state.boot
            };
            let restores = self.data.meta.restores();
            let attr = self.data.meta.attributes(self.ino).await?;
            self.is_there(restores);
            let mut state = self.state();
            if state.boot == boot {
                state.stale = false;
                state.published_size = attr.size;
                state.forget_published(attr.data_version);
            }
        }
    }
}
