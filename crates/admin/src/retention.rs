//! How a retention changes. What is kept for longer is so at once. What is kept for less waits for a time of grace, in which it
//! can be taken back; nothing goes before that is over. Plain code: the clock is handed in.

use chronofs_core::{Retention, Version};

/// How long a shorter retention waits unless something else is said: a week, because it cannot be taken back afterwards.
pub const GRACE_DEFAULT_S: u64 = 7 * 86_400;
const SECOND_NS: u64 = 1_000_000_000;

/// The retention of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// What is in force.
    pub now: Retention,
    /// A shorter one, and when it comes into force.
    pub next: Option<Next>,
}

/// A shorter retention that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Next {
    /// The retention.
    pub retention: Retention,
    /// From when on it is in force, nanoseconds since the epoch.
    pub from_ns: u64,
}

impl Next {
    /// Nothing before this can be had when it comes into force.
    pub fn earliest(&self) -> Version {
        self.retention.window_start(Version(self.from_ns))
    }
}

fn length(retention: Retention) -> u64 {
    match retention {
        Retention::None => 0,
        Retention::Seconds(seconds) => seconds,
        Retention::Forever => u64::MAX,
    }
}

impl Standing {
    /// Another retention is wanted; a shorter one after so many seconds.
    pub fn change(self, to: Retention, grace_s: Option<u64>, now_ns: u64) -> Standing {
        let grace = grace_s.unwrap_or(GRACE_DEFAULT_S).saturating_mul(SECOND_NS);
        if length(to) >= length(self.now) || grace == 0 {
            return Standing { now: to, next: None };
        }
        // Who says the same again does not have it wait anew.
        let same = self.next.filter(|next| next.retention == to && grace_s.is_none());
        let next = same.unwrap_or(Next { retention: to, from_ns: now_ns.saturating_add(grace) });
        Standing { next: Some(next), ..self }
    }

    /// The change that waits is taken back. Errors: none does.
    pub fn undo(self) -> Result<Standing, String> {
        match self.next {
            Some(_) => Ok(Standing { next: None, ..self }),
            None => Err("no shorter retention waits, so there is nothing to take back".to_owned()),
        }
    }

    /// What is due comes into force.
    pub fn at(self, now_ns: u64) -> Standing {
        match self.next {
            Some(next) if next.from_ns <= now_ns => Standing { now: next.retention, next: None },
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WEEK: Standing = Standing { now: Retention::Seconds(7 * 86_400), next: None };
    const DAY: Retention = Retention::Seconds(86_400);

    #[test]
    fn less_waits_and_more_does_not() {
        for longer in [WEEK.now, Retention::Seconds(8 * 86_400), Retention::Forever] {
            assert_eq!(WEEK.change(longer, None, 5), Standing { now: longer, next: None });
        }
        for shorter in [DAY, Retention::None] {
            let waits = WEEK.change(shorter, Some(10), 5);
            let next = Next { retention: shorter, from_ns: 5 + 10 * SECOND_NS };
            assert_eq!(waits, Standing { next: Some(next), ..WEEK });
            assert_eq!(waits.at(next.from_ns - 1), waits);
            assert_eq!(waits.at(next.from_ns), Standing { now: shorter, next: None });
            assert_eq!(waits.undo(), Ok(WEEK));
            assert_eq!(waits.change(WEEK.now, None, 6), WEEK, "back is undone");
        }
        assert_eq!(WEEK.change(DAY, Some(0), 5), Standing { now: DAY, next: None });
        assert!(WEEK.undo().is_err());
    }

    #[test]
    fn the_same_again_keeps_its_time_and_another_waits_anew() {
        let waits = WEEK.change(DAY, None, 5);
        assert_eq!(waits.change(DAY, None, 1_000), waits);
        let other = waits.change(Retention::None, None, 1_000).next.unwrap();
        assert_eq!((other.retention, other.from_ns), (Retention::None, 1_000 + GRACE_DEFAULT_S * SECOND_NS));
        assert_eq!(
            waits.change(DAY, Some(0), 1_000),
            Standing { now: DAY, next: None },
            "now, if that is said"
        );
        let next = Next { retention: DAY, from_ns: 30 * 86_400 * SECOND_NS };
        assert_eq!(next.earliest(), Version(29 * 86_400 * SECOND_NS));
    }

    proptest! {
        /// Whatever is asked for, and whenever: what is in force gets shorter only when somebody asked for that and the grace
        /// that went with it is over.
        #[test]
        fn nothing_gets_shorter_before_its_grace_is_over(
            steps in proptest::collection::vec((0u64..5, 0u64..4, 0u64..3), 1..40),
        ) {
            let (mut standing, mut now_ns, mut asked) = (WEEK, 0, Vec::new());
            for (days, grace_s, wait_s) in steps {
                let to = if days == 4 { Retention::Forever } else { Retention::Seconds(days * 4 * 86_400 + 1) };
                asked.push((to, now_ns + grace_s * SECOND_NS));
                let before = standing.now;
                standing = standing.change(to, Some(grace_s), now_ns);
                now_ns += wait_s * SECOND_NS;
                standing = standing.at(now_ns);
                if length(standing.now) < length(before) {
                    let due = asked.iter().any(|(to, at_ns)| *to == standing.now && *at_ns <= now_ns);
                    prop_assert!(due, "{standing:?} at {now_ns} after {asked:?}");
                }
            }
        }
    }
}
