//! What happens without a program asking: the volume becomes shared, the server comes back.

use super::Vfs;
use super::cache::KERNEL_TTL_MAX;
use crate::connection::Event;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;

/// Lives as long as the file system.
pub(super) async fn run(vfs: Weak<Vfs>, mut events: UnboundedReceiver<Event>) {
    while let Some(event) = events.recv().await {
        let Some(vfs) = vfs.upgrade() else { return };
        match event {
            Event::Shared(true) => {
                vfs.empty_caches();
                // What the kernel was told before must have run out; answers on their way get a little longer.
                tokio::time::sleep(KERNEL_TTL_MAX + Duration::from_millis(100)).await;
                vfs.connection.acknowledge_shared();
            }
            Event::Shared(false) => {
                vfs.empty_caches();
                vfs.connection.caches_emptied();
            }
            Event::Reconnected { welcome, replaced, restarted } => {
                vfs.empty_caches();
                if restarted && vfs.at.is_none() {
                    vfs.cache.forget_pages();
                    tokio::spawn(Arc::clone(&vfs).forget_pages());
                }
                if replaced {
                    vfs.data.set_grant(welcome.incarnation, welcome.session, welcome.grant);
                }
                vfs.connection.caches_emptied();
            }
        }
    }
}

impl Vfs {
    /// What the kernel has of open files may be lost: it is to ask again, once the server has again what it had lost and
    /// can be told.
    async fn forget_pages(self: Arc<Self>) {
        if self.statfs().await.is_ok()
            && let Some(forget) = self.wrong_pages.get()
        {
            self.open_files().into_iter().for_each(forget);
        }
    }

    fn empty_caches(&self) {
        // The past never changes: what is known of it stays right.
        if self.at.is_none() {
            self.cache.clear(self.connection.seen());
        }
    }
}
