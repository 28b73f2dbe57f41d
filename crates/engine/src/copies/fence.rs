//! The copy's side of the protocol, without I/O: whom it obeys, and where it goes on.

use crate::embedded::Place;

/// Why a copy refuses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It obeys an owner of this later epoch.
    Fenced(u64),
    /// It goes on here, and not where it was asked to.
    Elsewhere(Place),
}

/// What a copy must not forget: the highest epoch that it was opened or sealed under, and where it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fence {
    /// Nobody of a lower epoch is obeyed.
    pub epoch: u64,
    /// The owner of `epoch` has not said yet that it appends: it only sealed, so nobody appends.
    pub sealed: bool,
}

impl Fence {
    /// No epoch below this appends any more, and this one does not yet. To be made durable before it is answered.
    pub fn seal(self, epoch: u64) -> Result<Fence, Refusal> {
        if epoch < self.epoch {
            return Err(Refusal::Fenced(self.epoch));
        }
        Ok(Fence { epoch, sealed: true })
    }

    /// The owner of this epoch is going to append. To be made durable before it is answered.
    pub fn open(self, epoch: u64) -> Result<Fence, Refusal> {
        if epoch < self.epoch {
            return Err(Refusal::Fenced(self.epoch));
        }
        Ok(Fence { epoch, sealed: false })
    }

    /// Whether the owner of this epoch may append at `place`, where the copy ends at `end`: there, or with a new segment.
    pub fn append(self, epoch: u64, place: Place, end: Place) -> Result<(), Refusal> {
        if epoch != self.epoch || self.sealed {
            return Err(Refusal::Fenced(self.epoch));
        }
        let goes_on = place == end || (place.segment > end.segment && place.offset == 0);
        if goes_on { Ok(()) } else { Err(Refusal::Elsewhere(end)) }
    }
}

/// The length of what both have at the beginning of a segment, if `same(n)` says whether the first `n` bytes are the same.
pub fn common_length<E>(length: u64, mut same: impl FnMut(u64) -> Result<bool, E>) -> Result<u64, E> {
    if same(length)? {
        return Ok(length);
    }
    let (mut good, mut bad) = (0, length);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if same(middle)? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(good)
}
