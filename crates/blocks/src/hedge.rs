//! Reads that are asked for a second time: where an answer takes longer than almost all took, another request is sent,
//! and the first good answer counts. One that hangs in a network then costs moments and no minute.
//!
//! [`Hedge`] decides, with times handed in; [`Hedged`] sends. Of 20 reads one may be sent twice, so a store that
//! has become slow gets hardly more to do; and none while it says that it has too much.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A second request is sent no sooner and no later than this.
const DELAY_MIN: Duration = Duration::from_millis(20);
const DELAY_MAX: Duration = Duration::from_secs(2);
/// Answers that the delay is taken from, how many there must be, and of how many all but one came within the delay.
const RECENT: usize = 128;
const RECENT_MIN: usize = 16;
const ONE_OF: usize = 20;
/// What one read adds to the budget, in parts of a second request, and what the budget holds at first and at most.
const PARTS: u32 = 20;
const PARTS_FIRST: u32 = PARTS;
const PARTS_MAX: u32 = 10 * PARTS;
/// How long nothing is sent twice after the store said that it has too much to do.
const QUIET: Duration = Duration::from_secs(30);

/// When a second request may be sent.
#[derive(Debug)]
pub struct Hedge {
    /// How long the last reads took, the next to be replaced, and the delay that follows.
    recent: Vec<Duration>,
    next: usize,
    delay: Duration,
    parts: u32,
    quiet_until: Duration,
}

impl Default for Hedge {
    fn default() -> Self {
        Hedge {
            recent: Vec::new(),
            next: 0,
            delay: DELAY_MAX,
            parts: PARTS_FIRST,
            quiet_until: Duration::ZERO,
        }
    }
}

impl Hedge {
    /// A read begins. After how long without an answer it may be asked for again.
    pub fn begins(&mut self) -> Duration {
        self.parts = (self.parts + 1).min(PARTS_MAX);
        self.delay
    }

    /// Whether a read that has no answer may be asked for again now; if so, it is.
    pub fn may_send(&mut self, now: Duration) -> bool {
        let may = self.parts >= PARTS && now >= self.quiet_until;
        if may {
            self.parts -= PARTS;
        }
        may
    }

    /// A read took so long, from its first request to its answer.
    pub fn took(&mut self, time: Duration) {
        if self.recent.len() < RECENT {
            self.recent.push(time);
        } else if let Some(oldest) = self.recent.get_mut(self.next) {
            *oldest = time;
        }
        self.next = (self.next + 1) % RECENT;
        // All of them need not be sorted for each.
        if self.recent.len() >= RECENT_MIN && self.next.is_multiple_of(8) {
            let mut sorted = self.recent.clone();
            sorted.sort_unstable();
            let slow = sorted.len() - 1 - sorted.len() / ONE_OF;
            self.delay = sorted.get(slow).map_or(DELAY_MAX, |delay| (*delay).clamp(DELAY_MIN, DELAY_MAX));
        }
    }

    /// The store says that it has too much to do.
    pub fn throttled(&mut self, now: Duration) {
        self.quiet_until = now + QUIET;
    }
}

/// How many reads were sent twice, and of how many the second answer counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hedges {
    /// Sent twice.
    pub sent: u64,
    /// The second answer counted.
    pub won: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Hedged {
    hedge: Mutex<Hedge>,
    start: Instant,
    sent: AtomicU64,
    won: AtomicU64,
}

impl Default for Hedged {
    fn default() -> Self {
        Hedged {
            hedge: Mutex::default(),
            start: Instant::now(),
            sent: AtomicU64::default(),
            won: AtomicU64::default(),
        }
    }
}

impl Hedged {
    /// Sends what `ask` makes, once or twice. An answer that does not settle it waits for the other.
    pub(crate) async fn read<F: Future>(
        &self,
        ask: impl Fn() -> F,
        settles: impl Fn(&F::Output) -> bool,
    ) -> F::Output {
        let (began, delay) = (Instant::now(), self.hedge().begins());
        let first = ask();
        tokio::pin!(first);
        let answer = match tokio::time::timeout(delay, &mut first).await {
            Ok(answer) => answer,
            Err(_) if !self.hedge().may_send(self.start.elapsed()) => first.await,
            Err(_) => {
                self.sent.fetch_add(1, Ordering::Relaxed);
                let second = ask();
                tokio::pin!(second);
                let (answer, is_second) = tokio::select! {
                    answer = &mut first => match settles(&answer) {
                        true => (answer, false),
                        false => (second.await, true),
                    },
                    answer = &mut second => match settles(&answer) {
                        true => (answer, true),
                        false => (first.await, false),
                    },
                };
                self.won.fetch_add(u64::from(is_second && settles(&answer)), Ordering::Relaxed);
                answer
            }
        };
        if settles(&answer) {
            self.hedge().took(began.elapsed());
        }
        answer
    }

    /// The store says that it has too much to do.
    pub(crate) fn throttled(&self) {
        self.hedge().throttled(self.start.elapsed());
    }

    pub(crate) fn figures(&self) -> Hedges {
        Hedges { sent: self.sent.load(Ordering::Relaxed), won: self.won.load(Ordering::Relaxed) }
    }

    fn hedge(&self) -> MutexGuard<'_, Hedge> {
        self.hedge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_delay_follows_the_slowest_of_twenty_within_its_limits() {
        let mut hedge = Hedge::default();
        assert_eq!(hedge.begins(), DELAY_MAX, "nothing is known yet");
        (0..1000).for_each(|n| hedge.took(ms(if n % 20 == 7 { 900 } else { 100 })));
        assert_eq!(hedge.begins(), ms(100), "one of 20 is slower");
        (0..1000).for_each(|n| hedge.took(ms(if n % 10 == 7 { 900 } else { 100 })));
        assert_eq!(hedge.begins(), ms(900), "one of 10 is: that is how the store is");
        (0..200).for_each(|_| hedge.took(ms(1)));
        assert_eq!(hedge.begins(), DELAY_MIN);
        (0..200).for_each(|_| hedge.took(ms(60_000)));
        assert_eq!(hedge.begins(), DELAY_MAX);
    }

    #[test]
    fn at_most_one_of_twenty_is_sent_twice_whatever_the_store_does() {
        let mut hedge = Hedge::default();
        let sent = |hedge: &mut Hedge, reads: u32| {
            (0..reads)
                .filter(|_| {
                    hedge.begins();
                    hedge.may_send(ms(0))
                })
                .count() as u32
        };
        assert!(sent(&mut hedge, 10_000) <= 10_000 / 20 + 1);
        // What was not used is kept for a while, not for ever.
        (0..10_000).for_each(|_| _ = hedge.begins());
        assert!((10..=11).contains(&sent(&mut hedge, 15)));
    }

    #[test]
    fn nothing_is_sent_twice_while_the_store_has_too_much_to_do() {
        let mut hedge = Hedge::default();
        (0..1000).for_each(|_| _ = hedge.begins());
        assert!(hedge.may_send(ms(5000)));
        hedge.throttled(ms(5000));
        assert!(!hedge.may_send(ms(5000)) && !hedge.may_send(ms(34_999)) && hedge.may_send(ms(35_000)));
    }

    /// Requests that answer after so long with this, one after the other.
    async fn read(
        hedged: &Hedged,
        requests: &[(u64, Result<u32, ()>)],
    ) -> (Result<u32, ()>, Duration, usize) {
        let (sent, start) = (Cell::new(0), Instant::now());
        let ask = || {
            let (after, answer) = requests[sent.replace(sent.get() + 1)];
            async move {
                tokio::time::sleep(ms(after)).await;
                answer
            }
        };
        let answer = hedged.read(ask, |answer| answer.is_ok()).await;
        (answer, start.elapsed(), sent.get())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_good_answer_counts() {
        let hedged = || {
            let hedged = Hedged::default();
            (0..100).for_each(|_| _ = hedged.hedge().begins());
            hedged
        };
        for (requests, answer, after, figures) in [
            (&[(10, Ok(1))][..], Ok(1), 10, (0, 0)),
            (&[(10, Err(()))], Err(()), 10, (0, 0)),
            (&[(60_000, Ok(1)), (10, Ok(2))], Ok(2), 2010, (1, 1)),
            (&[(2500, Ok(1)), (1000, Ok(2))], Ok(1), 2500, (1, 0)),
            (&[(2500, Err(())), (1000, Ok(2))], Ok(2), 3000, (1, 1)),
            (&[(9000, Ok(1)), (1000, Err(()))], Ok(1), 9000, (1, 0)),
            (&[(9000, Err(())), (1000, Err(()))], Err(()), 9000, (1, 0)),
        ] {
            let hedged = hedged();
            let got = read(&hedged, requests).await;
            assert_eq!(got, (answer, ms(after), requests.len()), "{requests:?}");
            assert_eq!((hedged.figures().sent, hedged.figures().won), figures, "{requests:?}");
        }
        let throttled = hedged();
        throttled.throttled();
        assert_eq!(read(&throttled, &[(9000, Ok(1))]).await, (Ok(1), ms(9000), 1));
    }
}
