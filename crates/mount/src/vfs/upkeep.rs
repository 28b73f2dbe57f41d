//! What happens without a program asking: the volume becomes shared, the server comes back.

use super::Vfs;
use super::cache::KERNEL_TTL_MAX;
use crate::connection::Event;
use std::sync::Weak;
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
            Event::Reconnected { welcome, replaced } => {
                vfs.empty_caches();
                if replaced {
                    vfs.data.set_grant(welcome.incarnation, welcome.session, welcome.grant);
                }
                vfs.connection.caches_emptied();
            }
        }
    }
}

impl Vfs {
    fn empty_caches(&self) {
        // The past never changes: what is known of it stays right.
        if self.at.is_none() {
            self.cache.clear(self.connection.seen());
        }
    }
}
