//! Pins of a timeline that is lost. A server is started on metadata behind which another had gone on and had pinned an instant:
//! until that pin is gone from the store nothing is deleted, however often the server is started meanwhile, and it never
//! counts as one of this timeline.

use super::World;
use crate::common;
use chronofs_blocks::Pin;
use chronofs_core::Version;
use chronofs_engine::Engine;
use chronofs_meta::machine::SharedView;
use uuid::Uuid;

impl World {
    /// The server is about to be started on what survived up to `last`.
    pub fn lose_timeline(&mut self, last: Version) {
        let Some(random) = &mut self.strays else { return };
        match &self.stray {
            // Somebody has seen to it.
            Some(_) if random.one_in(3) => self.stray = None,
            None if random.one_in(20) => {
                let to = Version(last.0 + 1 + random.below(1_000_000));
                self.stray = Some(Pin::new(common::VOLUME, 0, Uuid::from_u128(7), to, to));
            }
            _ => {}
        }
    }

    pub fn check_stray(&mut self) {
        let (Some(server), Some(stray)) = (&self.server, &self.stray) else { return };
        let kept = chronofs_namespace::list_kept(&SharedView(server.engine.view())).unwrap();
        assert_eq!(kept, [], "{stray:?} is of a lost timeline");
        self.starts_on_old_copies += usize::from(server.core.machine.last() > stray.to);
    }
}
