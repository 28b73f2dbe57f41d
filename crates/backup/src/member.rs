//! A member of a snapshot that stores its images by itself: what it has to know, and what it does.

use crate::depot::{Depot, Stored};
use crate::error::Error;
use crate::key::Key;
use crate::place::Where;
use chronofs_core::store::Secret;
use chronofs_snapshot::Role;
use chronofs_snapshot::protocol::{Fault, Intent, role_code};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a member is told, over TLS and by nothing else: it is never written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Where to.
    pub place: Where,
    /// Id of that place, so that a folder that is not mounted is not taken for it.
    pub depot: String,
    /// What seals it.
    pub key: Secret,
}

impl Plan {
    /// The place, if it is the same as on the admin server.
    pub fn depot(&self) -> Result<Depot, Error> {
        let depot = Depot::open(self.place.open()?, Key::parse(self.key.reveal())?)?;
        match depot.id() == self.depot {
            true => Ok(depot),
            false => Err(Error::AnotherDepot(depot.shown())),
        }
    }
}

/// Stores the image of a role; `stop` says that nobody wants it any more.
pub fn store_image(
    plan: &Plan,
    intent: &Intent,
    node: &str,
    role: Role,
    image: &Path,
    stop: &dyn Fn() -> bool,
) -> Result<String, Fault> {
    let fault = |error: Error| Fault { code: role_code(role), why: error.to_string() };
    let depot = plan.depot().map_err(fault)?;
    let Stored { bytes, new } = depot.store(&intent.attempt, node, role, image, stop).map_err(fault)?;
    Ok(format!("stored {new} of {bytes} bytes"))
}
