//! When a backup is due by a schedule, and when its newest recoverable point is too old. Plain code: the clock is handed in.

use serde::{Deserialize, Serialize};

const SECOND_NS: u64 = 1_000_000_000;
const DAY_S: u64 = 86_400;
/// After one that failed the next try is at most so much later.
const RETRY_S: u64 = 300;
/// Backups are not made more often.
pub const EVERY_MIN_S: u64 = 10;

/// When.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// So many seconds after the one before began.
    Every(u64),
    /// Each day, so many seconds after midnight UTC.
    Daily(u64),
}

impl When {
    /// From one to the next.
    #[must_use]
    pub const fn period_s(self) -> u64 {
        match self {
            When::Every(seconds) => seconds,
            When::Daily(_) => DAY_S,
        }
    }

    /// Refuses what makes no sense.
    pub fn check(self) -> Result<(), String> {
        match self {
            When::Every(seconds) if seconds < EVERY_MIN_S => {
                Err(format!("a backup every {seconds} s is too often: {EVERY_MIN_S} s or more"))
            }
            When::Daily(seconds) if seconds >= DAY_S => Err("a day has 24 hours".to_owned()),
            _ => Ok(()),
        }
    }
}

/// A schedule, as it is kept in the admin server's database. The key of its place is kept apart, sealed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// Where its backups go.
    pub dest: String,
    /// When they are made.
    pub when: When,
    /// For how many seconds each is kept; none: until it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_seconds: Option<u64>,
    /// Its newest point must not be older than this many seconds.
    pub limit_seconds: u64,
    /// Since when there is this schedule, nanoseconds since the epoch.
    pub created_ns: u64,
    /// When it last began to make one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_ns: Option<u64>,
    /// When it last began to make one that is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_ns: Option<u64>,
    /// Why the last one failed, or why one whose time is over could not be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Schedule {
    /// Its newest point may be as old as this, unless something else is said: half a period of delay is no alarm.
    #[must_use]
    pub const fn limit_for(when: When) -> u64 {
        when.period_s() + when.period_s() / 2
    }

    /// Whether a backup is to begin now.
    #[must_use]
    pub fn is_due(&self, now_ns: u64) -> bool {
        let since = |then_ns: u64| now_ns.saturating_sub(then_ns) / SECOND_NS;
        let wanted = match self.when {
            When::Every(seconds) => self.made_ns.is_none_or(|made_ns| since(made_ns) >= seconds),
            When::Daily(at) => {
                let now_s = now_ns / SECOND_NS;
                let today = now_s / DAY_S * DAY_S + at;
                let slot_s = if today > now_s { today.saturating_sub(DAY_S) } else { today };
                self.made_ns.unwrap_or(self.created_ns) < slot_s * SECOND_NS
            }
        };
        let failed = self.tried_ns.filter(|tried_ns| self.made_ns.is_none_or(|made_ns| made_ns < *tried_ns));
        // One that failed, or that a restart of the server ended, is tried again after a while.
        wanted && failed.is_none_or(|tried_ns| since(tried_ns) >= RETRY_S.min(self.when.period_s()))
    }

    /// How old its newest recoverable point is, in seconds; without any, how long there is none.
    #[must_use]
    pub fn age_s(&self, point_ns: Option<u64>, now_ns: u64) -> u64 {
        now_ns.saturating_sub(point_ns.unwrap_or(self.created_ns)) / SECOND_NS
    }

    /// What is wrong, if its newest recoverable point is too old. Silence is a failure like any other.
    #[must_use]
    pub fn fault(&self, point_ns: Option<u64>, now_ns: u64) -> Option<String> {
        let age_s = self.age_s(point_ns, now_ns);
        if age_s <= self.limit_seconds {
            return None;
        }
        let problem =
            self.problem.as_ref().map_or_else(String::new, |why| format!("; its last problem: {why}"));
        let limit_s = self.limit_seconds;
        Some(match point_ns {
            Some(_) => {
                format!("its newest recoverable point is {age_s} s old, and may be {limit_s} s old{problem}")
            }
            None => format!("it has no recoverable point, {age_s} s after it was made{problem}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_NS: u64 = DAY_S * SECOND_NS;

    fn schedule(when: When) -> Schedule {
        Schedule {
            name: "s".to_owned(),
            dest: "/mnt".to_owned(),
            when,
            keep_seconds: None,
            limit_seconds: Schedule::limit_for(when),
            created_ns: 100 * DAY_NS,
            tried_ns: None,
            made_ns: None,
            problem: None,
        }
    }

    #[test]
    fn every_so_often_from_one_beginning_to_the_next_and_sooner_after_a_failure() {
        let start = 100 * DAY_NS;
        let mut hourly = schedule(When::Every(3600));
        assert!(hourly.is_due(start), "the first one at once");
        (hourly.tried_ns, hourly.made_ns) = (Some(start), Some(start));
        assert!(!hourly.is_due(start + 3599 * SECOND_NS));
        assert!(hourly.is_due(start + 3600 * SECOND_NS));
        hourly.tried_ns = Some(start + 3600 * SECOND_NS);
        assert!(!hourly.is_due(start + 3899 * SECOND_NS));
        assert!(hourly.is_due(start + 3900 * SECOND_NS));
    }

    #[test]
    fn daily_once_after_each_time_of_day_also_if_the_server_was_away_then() {
        let mut daily = schedule(When::Daily(3 * 3600));
        let at = |day: u64, hour: u64| day * DAY_NS + hour * 3600 * SECOND_NS;
        assert!(!daily.is_due(at(100, 2)));
        assert!(daily.is_due(at(100, 3)));
        (daily.tried_ns, daily.made_ns) = (Some(at(100, 3)), Some(at(100, 3)));
        assert!(!daily.is_due(at(100, 23)) && !daily.is_due(at(101, 2)));
        assert!(daily.is_due(at(101, 3)));
        assert!(daily.is_due(at(103, 1)), "late is better than never");
    }

    #[test]
    fn silence_is_a_fault() {
        let hourly = schedule(When::Every(3600));
        let start = hourly.created_ns;
        assert_eq!(hourly.fault(None, start + 5400 * SECOND_NS), None);
        let fault = hourly.fault(None, start + 5401 * SECOND_NS).unwrap();
        assert!(fault.contains("no recoverable point, 5401 s"), "{fault}");
        let failing = Schedule { problem: Some("no room".to_owned()), ..hourly };
        let fault = failing.fault(Some(start), start + 9000 * SECOND_NS).unwrap();
        assert!(fault.contains("9000 s old, and may be 5400 s old") && fault.contains("no room"), "{fault}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(When::Every(9).check().is_err() && When::Daily(DAY_S).check().is_err());
        assert!(When::Every(10).check().is_ok() && When::Daily(0).check().is_ok());
    }
}
