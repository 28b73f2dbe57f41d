//! Who changes a place of backups: one at a time. An admin server does one thing after the other anyhow; the lease is for a
//! second one, which should not exist: an old copy of the first.

use crate::error::Error;
use crate::key::{Key, hex};
use crate::place::Place;
use serde::{Deserialize, Serialize};

const LEASE: &str = "lease";
/// It is held for so long without being renewed.
const FOR_NS: u64 = 600_000_000_000;
/// Who finds one that is over waits until this much later: clocks differ.
const GRACE_NS: u64 = 60_000_000_000;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Held {
    /// Drawn for each lease.
    holder: String,
    /// Who took it: one of whom there can be only one, so that it takes over what it held before it died.
    owner: String,
    what: String,
    until_ns: u64,
}

/// A lease that is held. It ends by [`Lease::end`], or when it is not renewed any more.
#[derive(Clone, Debug)]
pub struct Lease {
    held: Held,
}

fn read(place: &dyn Place) -> Result<Option<Held>, Error> {
    let Some(bytes) = place.get(LEASE)? else { return Ok(None) };
    let bad = |why| Error::Damaged { place: place.shown(), name: LEASE.to_owned(), why };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| bad(error.to_string()))
}

fn text(held: &Held) -> Vec<u8> {
    // Plain fields do not fail.
    serde_json::to_vec(held).unwrap_or_default()
}

impl Lease {
    pub(crate) fn take(place: &dyn Place, owner: &str, what: &str, now_ns: u64) -> Result<Lease, Error> {
        let holder = hex(&Key::draw()?.derive("holder", &[]));
        let until_ns = now_ns.saturating_add(FOR_NS);
        let held = Held { holder, owner: owner.to_owned(), what: what.to_owned(), until_ns };
        if place.put_new(LEASE, &text(&held))? {
            return Ok(Lease { held });
        }
        match read(place)? {
            Some(other) if other.owner != owner && other.until_ns.saturating_add(GRACE_NS) > now_ns => {
                let over_ns = other.until_ns.saturating_add(GRACE_NS);
                let seconds = over_ns.saturating_sub(now_ns) / 1_000_000_000 + 1;
                Err(Error::Busy { place: place.shown(), what: other.what, seconds })
            }
            _ => {
                place.remove(LEASE)?;
                let taken = place.put_new(LEASE, &text(&held))?;
                let lease = Lease { held };
                // Somebody else may have found the old one over, too.
                if taken && lease.is_held(place)? { Ok(lease) } else { Err(Error::LeaseLost(place.shown())) }
            }
        }
    }

    pub(crate) fn is_held(&self, place: &dyn Place) -> Result<bool, Error> {
        Ok(read(place)?.is_some_and(|held| held.holder == self.held.holder))
    }

    pub(crate) fn renew(&mut self, place: &dyn Place, now_ns: u64) -> Result<(), Error> {
        if !self.is_held(place)? {
            return Err(Error::LeaseLost(place.shown()));
        }
        self.held.until_ns = now_ns.saturating_add(FOR_NS);
        place.put(LEASE, &text(&self.held))
    }

    pub(crate) fn end(self, place: &dyn Place) -> Result<(), Error> {
        if self.is_held(place)? { place.remove(LEASE) } else { Ok(()) }
    }
}
