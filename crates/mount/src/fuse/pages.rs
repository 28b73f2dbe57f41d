//! The kernel's pages of files: those that are wrong are forgotten, those that programs changed through mappings are
//! written back.
//!
//! One notification does both: before the kernel forgets the pages of an inode it writes back what is dirty, and waits
//! for that. From within a request it would wait for itself, so a thread of its own asks for it.

use crate::vfs::Vfs;
use fuser::{INodeNo, Notifier};
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

/// Asks for pages to be forgotten and written back.
#[derive(Clone, Debug)]
pub(crate) struct Pages(Sender<Asked>);

/// What is asked of the thread.
#[derive(Debug)]
pub(crate) enum Asked {
    Forget(INodeNo),
    /// Say so when everything asked before is done.
    Tell(oneshot::Sender<()>),
}

impl Pages {
    /// The second part is for [`serve`].
    pub(crate) fn new() -> (Self, Receiver<Asked>) {
        let (asks, asked) = channel();
        (Pages(asks), asked)
    }

    /// What the kernel has of `ino` is wrong.
    pub(super) fn forget(&self, ino: INodeNo) {
        // Without the thread the mount has ended, and the kernel's pages with it.
        let _ = self.0.send(Asked::Forget(ino));
    }

    /// What programs have changed through mappings is written to `vfs` when this returns. A mapping keeps its file
    /// open, and what a file's last descriptor and mapping leave the kernel writes by itself. Waits for a server that
    /// is away: the kernel locks a page that it is just reading, the thread would wait for that, and while it does
    /// this process cannot even be killed.
    pub(crate) async fn write_back(&self, vfs: &Vfs) {
        let files = vfs.open_for_writing();
        // A server that refuses the mount will store nothing.
        if files.is_empty() || vfs.sync().await.is_err() {
            return;
        }
        files.into_iter().for_each(|ino| self.forget(INodeNo(ino.0)));
        let (done, told) = oneshot::channel();
        let _ = self.0.send(Asked::Tell(done));
        let _ = told.await;
    }
}

/// The body of the thread.
pub(crate) fn serve(notifier: &Notifier, asked: &Receiver<Asked>) {
    while let Ok(asked) = asked.recv() {
        match asked {
            Asked::Forget(ino) => {
                if let Err(error) = notifier.inval_inode(ino, 0, 0) {
                    tracing::debug!("forgetting pages of inode {}: {error}", ino.0);
                }
            }
            Asked::Tell(done) => {
                let _ = done.send(());
            }
        }
    }
}
