//! Connections of which nobody knows yet who they are: how many there may be, and how many from one address.
//!
//! Anybody can open one. Neither may they put out who is in, nor may those of one address keep everybody else from coming in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// At a time.
pub(crate) const STRANGERS_MAX: usize = 64;
/// Of them from one address.
pub(crate) const OF_ONE_MAX: usize = STRANGERS_MAX / 4;

/// See the module.
#[derive(Default)]
pub(crate) struct Strangers(Mutex<BTreeMap<IpAddr, usize>>);

impl Strangers {
    /// A place for one from this address, or why there is none.
    pub(crate) fn enter(self: &Arc<Self>, from: IpAddr) -> Result<Stranger, String> {
        let from = network(from);
        let mut known = self.lock();
        if known.values().sum::<usize>() >= STRANGERS_MAX {
            return Err(format!("{STRANGERS_MAX} connections have not said hello yet"));
        }
        let of_one = known.entry(from).or_default();
        if *of_one >= OF_ONE_MAX {
            return Err(format!("{OF_ONE_MAX} connections from there have not said hello yet"));
        }
        *of_one += 1;
        drop(known);
        Ok(Stranger { all: self.clone(), from })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.lock().values().sum()
    }
}

/// A place, until it is dropped.
pub(crate) struct Stranger {
    all: Arc<Strangers>,
    from: IpAddr,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut known = self.all.lock();
        if let Some(of_one) = known.get_mut(&self.from) {
            *of_one -= 1;
            if *of_one == 0 {
                known.remove(&self.from);
            }
        }
    }
}

/// Who has one address of IPv6 has all that begin with the same 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure ends the test with its message")]
mod tests {
    use super::*;

    #[test]
    fn one_address_takes_a_quarter_of_the_places_and_gives_them_back() {
        let all = Arc::<Strangers>::default();
        let enter = |text: &str| all.enter(text.parse().unwrap());
        let fill = |text: &str| (0..OF_ONE_MAX).map(|_| enter(text).unwrap()).collect::<Vec<_>>();
        let one = fill("10.0.0.1");
        assert!(enter("10.0.0.1").err().unwrap().contains("from there"));
        assert!(enter("::ffff:10.0.0.1").is_err(), "it is the same");
        let others = [fill("10.0.0.2"), fill("2001:db8::1")];
        assert!(enter("2001:db8::2").is_err(), "it is of the same network");
        let last = fill("2001:db8:0:1::1");
        assert!(enter("10.0.0.3").err().unwrap().starts_with("64 connections"));
        assert_eq!(all.count(), STRANGERS_MAX);
        drop(one);
        drop(fill("10.0.0.3"));
        drop((others, last));
        assert!(all.lock().is_empty(), "nothing of who was there once");
    }
}
