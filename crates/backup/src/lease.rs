//! Who changes a place of backups: one at a time. An admin server does one thing after the other anyhow; the lease is for a
//! second one, which should not exist: an old copy of the first.
//!
//! ```text
//! lease               who has it
//! lease-after/HOLDER  who has it after that one, whose time is over: at most one, as for each name only one is first
//! ```
//!
//! Who takes over a lease that is over is decided by the note after its holder, and by nothing else: of two at once the place refuses
//! one. Whoever has it then writes `lease`, and after that removes the note. A note after somebody who is not in `lease` any more
//! counts for nothing, so whoever comes late with one finds that out by reading `lease` behind it.

use crate::error::Error;
use crate::key::{Key, hex};
use crate::place::Place;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const LEASE: &str = "lease";
const AFTER: &str = "lease-after";
/// It is held for so long without being renewed.
const FOR_NS: u64 = 600_000_000_000;
/// Who finds one that is over waits until this much later: clocks differ.
const GRACE_NS: u64 = 60_000_000_000;
/// A place that does not decide which of two is first is read again after this long: the later one has overwritten the other then.
const PAUSE: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(3) };
/// Each is of somebody who died while taking over.
const NOTES_MAX: usize = 1000;

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

/// The lease that counts, and the notes that lead to it.
struct Last {
    held: Held,
    notes: Vec<String>,
}

fn read(place: &dyn Place, name: &str) -> Result<Option<Held>, Error> {
    let Some(bytes) = place.get(name)? else { return Ok(None) };
    let bad = |why| Error::Damaged { place: place.shown(), name: name.to_owned(), why };
    let held: Held = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    // It becomes part of a name.
    match held.holder.len() == 64 && held.holder.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(Some(held)),
        false => Err(bad("its holder is no holder".to_owned())),
    }
}

fn note_after(held: &Held) -> String {
    format!("{AFTER}/{}", held.holder)
}

fn last(place: &dyn Place) -> Result<Option<Last>, Error> {
    let Some(mut held) = read(place, LEASE)? else { return Ok(None) };
    let mut notes = Vec::new();
    loop {
        let note = note_after(&held);
        let Some(next) = read(place, &note)? else { return Ok(Some(Last { held, notes })) };
        notes.push(note);
        held = next;
        if notes.len() > NOTES_MAX {
            let why = "it leads to no end".to_owned();
            return Err(Error::Damaged { place: place.shown(), name: AFTER.to_owned(), why });
        }
    }
}

fn text(held: &Held) -> Vec<u8> {
    // Plain fields do not fail.
    serde_json::to_vec(held).unwrap_or_default()
}

impl Held {
    fn new(owner: &str, what: &str, now_ns: u64) -> Result<Held, Error> {
        let holder = hex(&Key::draw()?.derive("holder", &[]));
        let until_ns = now_ns.saturating_add(FOR_NS);
        Ok(Held { holder, owner: owner.to_owned(), what: what.to_owned(), until_ns })
    }
}

impl Lease {
    pub(crate) fn take(place: &dyn Place, owner: &str, what: &str, now_ns: u64) -> Result<Lease, Error> {
        let held = Held::new(owner, what, now_ns)?;
        if place.put_new(LEASE, &text(&held))? {
            return Lease { held }.seen(place);
        }
        match last(place)? {
            Some(Last { held: other, .. })
                if other.owner != owner && other.until_ns.saturating_add(GRACE_NS) > now_ns =>
            {
                let over_ns = other.until_ns.saturating_add(GRACE_NS);
                let seconds = over_ns.saturating_sub(now_ns) / 1_000_000_000 + 1;
                Err(Error::Busy { place: place.shown(), what: other.what, seconds })
            }
            Some(over) => Lease::take_over(place, over, held),
            // It was given back in this moment.
            None if place.put_new(LEASE, &text(&held))? => Lease { held }.seen(place),
            None => Err(Error::LeaseLost(place.shown())),
        }
    }

    /// Takes the place of a lease that is over, unless somebody else does.
    fn take_over(place: &dyn Place, over: Last, held: Held) -> Result<Lease, Error> {
        let note = note_after(&over.held);
        if !place.put_new(&note, &text(&held))? {
            return Err(Error::LeaseLost(place.shown()));
        }
        let lease = match (Lease { held: held.clone() }).seen(place) {
            Ok(lease) => lease,
            Err(error) => {
                // It may be a note that counts for nothing; of somebody else's it is left.
                if read(place, &note)?.is_some_and(|found| found.holder == held.holder) {
                    place.remove(&note)?;
                }
                return Err(error);
            }
        };
        place.put(LEASE, &text(&lease.held))?;
        // Only now: until then the note alone says who has it.
        over.notes.iter().chain([&note]).try_for_each(|note| place.remove(note))?;
        Ok(lease)
    }

    /// It was just taken: whether it is the one that counts.
    fn seen(self, place: &dyn Place) -> Result<Lease, Error> {
        if !place.decides() {
            std::thread::sleep(PAUSE);
        }
        if self.is_held(place)? { Ok(self) } else { Err(Error::LeaseLost(place.shown())) }
    }

    pub(crate) fn is_held(&self, place: &dyn Place) -> Result<bool, Error> {
        Ok(last(place)?.is_some_and(|last| last.held.holder == self.held.holder))
    }

    pub(crate) fn renew(&mut self, place: &dyn Place, now_ns: u64) -> Result<(), Error> {
        let mine = last(place)?.filter(|last| last.held.holder == self.held.holder);
        let mine = mine.ok_or_else(|| Error::LeaseLost(place.shown()))?;
        if now_ns > self.held.until_ns {
            // Somebody may be about to take it over.
            let again = Held::new(&self.held.owner, &self.held.what, now_ns)?;
            *self = Lease::take_over(place, mine, again)?;
            return Ok(());
        }
        self.held.until_ns = now_ns.saturating_add(FOR_NS);
        place.put(LEASE, &text(&self.held))
    }

    /// Gives it back. One whose time is over is left to whoever takes it over: that may be at this moment, and then it is theirs.
    pub(crate) fn end(self, place: &dyn Place, now_ns: u64) -> Result<(), Error> {
        if now_ns <= self.held.until_ns && self.is_held(place)? { place.remove(LEASE) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    const MINUTE: u64 = 60_000_000_000;

    type Meddle = Box<dyn FnOnce(&Memory) + Send>;

    /// A place in memory, in which somebody else does something before a certain call.
    #[derive(Default)]
    struct Memory {
        objects: Mutex<BTreeMap<String, Vec<u8>>>,
        /// Which of two is first is not decided: a name is looked up, and then put.
        looks_up: bool,
        meddle: Mutex<Option<(usize, Meddle)>>,
    }

    impl Memory {
        fn called(&self) {
            let due = {
                let mut meddle = self.meddle.lock().unwrap();
                match meddle.as_mut() {
                    Some((0, _)) => meddle.take(),
                    Some((left, _)) => {
                        *left -= 1;
                        None
                    }
                    None => None,
                }
            };
            if let Some((_, act)) = due {
                act(self);
            }
        }
    }

    impl Place for Memory {
        fn shown(&self) -> String {
            "memory".to_owned()
        }

        fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
            self.called();
            Ok(self.objects.lock().unwrap().get(name).cloned())
        }

        fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
            self.called();
            self.objects.lock().unwrap().insert(name.to_owned(), bytes.to_vec());
            Ok(())
        }

        fn put_new(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
            self.called();
            let is_taken = self.objects.lock().unwrap().contains_key(name);
            if !is_taken && self.looks_up {
                self.called();
            }
            if !is_taken {
                self.objects.lock().unwrap().insert(name.to_owned(), bytes.to_vec());
            }
            Ok(!is_taken)
        }

        fn decides(&self) -> bool {
            !self.looks_up
        }

        fn remove(&self, name: &str) -> Result<(), Error> {
            self.called();
            self.objects.lock().unwrap().remove(name);
            Ok(())
        }

        fn list(&self, _: &str) -> Result<BTreeMap<String, u64>, Error> {
            Ok(BTreeMap::new())
        }

        fn is_empty(&self) -> Result<bool, Error> {
            Ok(self.objects.lock().unwrap().is_empty())
        }
    }

    /// While `first` does something, `b` takes the lease before each of its calls in turn. One of them has it then, and the other
    /// one knows that it has not.
    fn only_one_has_it(looks_up: bool, first: impl Fn(&Memory, Lease) -> Result<Lease, Error>) {
        for call in 0..16 {
            let place = Memory { looks_up, ..Memory::default() };
            let old = Lease::take(&place, "old", "a backup", 0).unwrap();
            let of_b: Arc<Mutex<Option<Result<Lease, Error>>>> = Arc::default();
            let taken = of_b.clone();
            let meddle: Meddle = Box::new(move |place: &Memory| {
                *taken.lock().unwrap() = Some(Lease::take(place, "b", "b's backup", 20 * MINUTE));
            });
            *place.meddle.lock().unwrap() = Some((call, meddle));
            let a = first(&place, old);
            place.meddle.lock().unwrap().take();
            let b = of_b.lock().unwrap().take();
            let b = b.unwrap_or_else(|| Lease::take(&place, "b", "b's backup", 20 * MINUTE));
            let [a, b] = [a, b].map(|taken| taken.is_ok_and(|lease| lease.is_held(&place).unwrap()));
            assert!(a != b, "before call {call}: a has it: {a}, b has it: {b}");
            let left: Vec<String> = place.objects.lock().unwrap().keys().cloned().collect();
            assert_eq!(left, [LEASE], "before call {call}");
        }
    }

    #[test]
    fn of_two_that_take_over_one_lease_at_once_one_has_it() {
        for looks_up in [false, true] {
            only_one_has_it(looks_up, |place, _| Lease::take(place, "a", "a's backup", 20 * MINUTE));
        }
    }

    #[test]
    fn a_lease_that_is_renewed_too_late_while_somebody_takes_it_over_is_one_of_the_two() {
        for looks_up in [false, true] {
            only_one_has_it(looks_up, |place, mut old| old.renew(place, 20 * MINUTE).map(|()| old));
        }
    }

    #[test]
    fn a_lease_that_is_given_back_too_late_while_somebody_takes_it_over_is_theirs() {
        for call in 0..4 {
            let place = Memory::default();
            let old = Lease::take(&place, "old", "a backup", 0).unwrap();
            let of_b: Arc<Mutex<Option<Lease>>> = Arc::default();
            let taken = of_b.clone();
            let meddle: Meddle = Box::new(move |place: &Memory| {
                *taken.lock().unwrap() = Some(Lease::take(place, "b", "b's backup", 20 * MINUTE).unwrap());
            });
            *place.meddle.lock().unwrap() = Some((call, meddle));
            old.end(&place, 20 * MINUTE).unwrap();
            place.meddle.lock().unwrap().take();
            let b = of_b.lock().unwrap().take();
            let b = b.unwrap_or_else(|| Lease::take(&place, "b", "b's backup", 20 * MINUTE).unwrap());
            assert!(b.is_held(&place).unwrap(), "before call {call}");
        }
    }

    #[test]
    fn whoever_dies_while_taking_over_has_the_lease_until_its_time_is_over() {
        let place = Memory::default();
        let old = Lease::take(&place, "old", "a backup", 0).unwrap();
        let dead = Held::new("dead", "its backup", 20 * MINUTE).unwrap();
        assert!(place.put_new(&note_after(&old.held), &text(&dead)).unwrap());
        let busy = Lease::take(&place, "b", "b's backup", 25 * MINUTE).unwrap_err().to_string();
        assert!(busy.contains("its backup"), "{busy}");
        let b = Lease::take(&place, "b", "b's backup", 32 * MINUTE).unwrap();
        assert!(b.is_held(&place).unwrap() && !old.is_held(&place).unwrap());
        assert_eq!(place.objects.lock().unwrap().len(), 1, "no note is left");
        b.end(&place, 32 * MINUTE).unwrap();
        assert!(place.is_empty().unwrap());
    }
}
