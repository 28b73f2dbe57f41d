//! Work on several files of a place at once: a bucket answers each request after a while, however many are under way.

use crate::error::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

/// So many at a time.
pub(crate) const AT_ONCE: usize = 8;
/// So many bytes all of them hold in memory together, but for what packing takes, one piece at a time. One is let in whatever it holds.
const HELD_MAX: u64 = 128 << 20;
/// How soon it is noticed that nobody wants it any more.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number that others wait for.
#[derive(Default)]
struct Count {
    now: Mutex<u64>,
    less: Condvar,
}

impl Count {
    /// Adds to it, when it leaves room for that.
    fn enter(&self, bytes: u64) -> Counted<'_> {
        let mut now = lock(&self.now);
        while *now > 0 && now.saturating_add(bytes) > HELD_MAX {
            now = self.less.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        *now += bytes;
        Counted { count: self, by: bytes }
    }
}

/// Takes away from a count when it is dropped, whatever happens.
struct Counted<'a> {
    count: &'a Count,
    by: u64,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        *lock(&self.count.now) -= self.by;
        self.count.less.notify_all();
    }
}

/// Does `work` with each item, several at once, and gives the results in the order of the items, or the first error. `held` says how
/// many bytes an item has in memory. When `stop` says that nobody wants it any more, the flag that `work` is given is set.
pub(crate) fn at_once<T: Sync, R: Send>(
    items: &[T],
    held: impl Fn(&T) -> u64 + Sync,
    stop: &dyn Fn() -> bool,
    work: impl Fn(&T, &AtomicBool) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    if stop() {
        return Err(Error::Stopped);
    }
    let (room, running) = (Count::default(), Count::default());
    let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(items.len()));
    let take = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(n) else { return };
            let _entered = room.enter(held(item));
            if lock(&failed).is_some() {
                return;
            }
            let worked = match stopped.load(Ordering::Relaxed) {
                true => Err(Error::Stopped),
                false => work(item, &stopped),
            };
            match worked {
                Ok(result) => lock(&done).push((n, result)),
                Err(error) => {
                    lock(&failed).get_or_insert(error);
                    return;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let mut began = 0;
        for _ in 0..AT_ONCE.min(items.len()) {
            let counted = running.enter(1);
            let begun = Builder::new().spawn_scoped(scope, || {
                let _counted = counted;
                take();
            });
            began += usize::from(begun.is_ok());
        }
        if began == 0 {
            // The system gives no thread: then it is done here.
            take();
        }
        let mut now = lock(&running.now);
        while *now > 0 {
            if stop() {
                stopped.store(true, Ordering::Relaxed);
            }
            let waited = running.less.wait_timeout(now, LOOK_EVERY);
            now = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(n, _)| *n);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn several_are_worked_on_at_once_and_never_more_than_fit_and_results_keep_their_order() {
        for (bytes, most) in [(1, AT_ONCE), (HELD_MAX / 2, 2), (HELD_MAX * 3, 1)] {
            let (now, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let items: Vec<usize> = (0..24).collect();
            let doubled = at_once(
                &items,
                |_| bytes,
                &|| false,
                |item, _| {
                    peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    sleep(Duration::from_millis(20));
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(item * 2)
                },
            );
            assert_eq!(doubled.unwrap(), (0..24).map(|item| item * 2).collect::<Vec<_>>());
            let peak = peak.into_inner();
            assert!(peak <= most && (most == 1 || peak > 1), "{bytes}: {peak} at once");
        }
    }

    #[test]
    fn an_error_and_a_stop_end_what_has_not_begun() {
        let items: Vec<u64> = (0..1000).collect();
        let begun = AtomicUsize::new(0);
        let failed = at_once(
            &items,
            |_| 0,
            &|| false,
            |item, _| {
                begun.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_millis(1));
                if *item == 3 { Err(Error::Cipher) } else { Ok(()) }
            },
        );
        assert!(matches!(failed, Err(Error::Cipher)));
        assert!(begun.into_inner() < 900);
        let stopped = at_once(&items, |_| 0, &|| true, |_, _| Ok(()));
        assert!(matches!(stopped, Err(Error::Stopped)));
        let asked = AtomicUsize::new(0);
        let later = || asked.fetch_add(1, Ordering::SeqCst) > 0;
        let stopped = at_once(
            &items,
            |_| 0,
            &later,
            |_, _| {
                sleep(Duration::from_millis(20));
                Ok(())
            },
        );
        assert!(matches!(stopped, Err(Error::Stopped)));
    }
}
