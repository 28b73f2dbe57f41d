//! Versions, which are instants, and what people write for them.

use jiff::{SignedDuration, Timestamp, Zoned, civil, tz::TimeZone};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A version of a metadata store, which is an instant: nanoseconds since the epoch by the server's hybrid clock,
/// strictly increasing from commit to commit. Shown as RFC 3339 in UTC with nine digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Version(pub u64);

impl Version {
    /// Before every commit.
    pub const ZERO: Version = Version(0);
    /// After every commit: the end of the interval of a row that still holds.
    pub const MAX: Version = Version(u64::MAX);

    /// The next version of a store whose last is `self`, when its clock shows `now_ns`.
    pub fn next(self, now_ns: u64) -> Version {
        Version(now_ns.max(self.0.saturating_add(1)))
    }

    /// As of when a store is, for people. One without a commit is as of no instant, and not of 1970.
    pub fn as_of(self) -> String {
        if self == Version::ZERO { "no commits yet".to_owned() } else { self.to_string() }
    }

    /// As a file time: nanoseconds since the epoch.
    pub fn as_file_time_ns(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(instant) => write!(f, "{instant:.9}"),
            Err(_) => write!(f, "version {}", self.0),
        }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// Why an instant could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' is not an instant: write RFC 3339 with an offset (2026-03-15T10:30:00Z, 2026-03-15T10:30:00.5+01:00), \
     a time ago (-2h, -1d12h) or a day and a time (yesterday 17:00, today 08:30)"
)]
pub struct BadInstant(String);

/// Reads an instant: RFC 3339 with any offset, `-2h` style (units w d h m s, may be combined), or `today|yesterday
/// HH:MM[:SS]` in the zone of `now`. It may lie in the future; whether it can be had is for the server to say.
pub fn parse_instant(text: &str, now: &Zoned) -> Result<Version, BadInstant> {
    let bad = || BadInstant(text.to_owned());
    let instant = match text.trim() {
        "now" => now.timestamp(),
        t if t.starts_with('-') => {
            let ago = parse_span(&t[1..]).ok_or_else(bad)?;
            now.timestamp().checked_sub(ago).map_err(|_| bad())?
        }
        t if t.starts_with("today") => {
            on_day(now.date(), &t["today".len()..], now.time_zone()).ok_or_else(bad)?
        }
        t if t.starts_with("yesterday") => {
            let day = now.date().yesterday().map_err(|_| bad())?;
            on_day(day, &t["yesterday".len()..], now.time_zone()).ok_or_else(bad)?
        }
        t => t.parse::<Timestamp>().map_err(|_| bad())?,
    };
    // What no version can name lies before the first or after the last of them, and is refused as such.
    let ns = instant.as_nanosecond().clamp(0, i128::from(u64::MAX));
    Ok(Version(ns as u64))
}

fn on_day(day: civil::Date, time: &str, zone: &TimeZone) -> Option<Timestamp> {
    let time = if time.is_empty() {
        civil::Time::midnight()
    } else {
        time.strip_prefix(' ')?.trim().parse().ok()?
    };
    Some(day.to_datetime(time).to_zoned(zone.clone()).ok()?.timestamp())
}

/// Reads `1d12h`, `90s`, `2w`: whole numbers, each with a unit of w d h m s.
fn parse_span(text: &str) -> Option<SignedDuration> {
    let mut rest = text;
    let mut seconds: i64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        let unit = match rest.as_bytes()[digits] {
            b'w' => 604_800,
            b'd' => 86_400,
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty()).then(|| SignedDuration::from_secs(seconds))
}

/// How long the past of a volume is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Retention {
    /// No past at all.
    None,
    /// This many seconds, more than 0.
    Seconds(u64),
    /// For ever.
    Forever,
}

impl Retention {
    /// The earliest instant of the window at `now`.
    pub fn window_start(self, now: Version) -> Version {
        match self {
            Retention::None => now,
            Retention::Seconds(s) => Version(now.0.saturating_sub(s.saturating_mul(1_000_000_000))),
            Retention::Forever => Version::ZERO,
        }
    }
}

/// Why a retention could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not a retention: write a time (7d, 12h, 1d12h), 0 for no past, or -1 to keep it for ever")]
pub struct BadRetention(String);

impl FromStr for Retention {
    type Err = BadRetention;
    fn from_str(text: &str) -> Result<Self, BadRetention> {
        match text {
            "0" => Ok(Retention::None),
            "-1" => Ok(Retention::Forever),
            _ => match parse_span(text).map(|span| span.as_secs()) {
                Some(0) => Ok(Retention::None),
                Some(seconds) => Ok(Retention::Seconds(seconds.unsigned_abs())),
                None => Err(BadRetention(text.to_owned())),
            },
        }
    }
}

impl TryFrom<String> for Retention {
    type Error = BadRetention;
    fn try_from(text: String) -> Result<Self, BadRetention> {
        text.parse()
    }
}

impl From<Retention> for String {
    fn from(retention: Retention) -> String {
        retention.to_string()
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = match self {
            Retention::None => return f.write_str("0"),
            Retention::Forever => return f.write_str("-1"),
            Retention::Seconds(seconds) => *seconds,
        };
        let mut rest = seconds;
        for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
            if rest >= length {
                write!(f, "{}{unit}", rest / length)?;
                rest %= length;
            }
        }
        Ok(())
    }
}

/// An instant that a program has written down, as RFC 3339. None if it is not one.
#[must_use]
pub fn written_instant(text: &str) -> Option<Version> {
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_nanosecond()).ok().map(Version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-03-15T12:00:00+01:00[+01:00]".parse().unwrap()
    }

    fn shown(text: &str) -> String {
        parse_instant(text, &now()).unwrap().to_string()
    }

    #[test]
    fn what_has_no_commit_is_as_of_no_instant() {
        assert_eq!(Version::ZERO.as_of(), "no commits yet");
        assert_eq!(Version(1).as_of(), "1970-01-01T00:00:00.000000001Z");
    }

    #[test]
    fn instants_are_read_in_every_documented_spelling() {
        assert_eq!(shown("2026-03-15T10:30:00Z"), "2026-03-15T10:30:00.000000000Z");
        assert_eq!(shown("2026-03-15T10:30:00.123456789+01:00"), "2026-03-15T09:30:00.123456789Z");
        assert_eq!(shown("-2h"), "2026-03-15T09:00:00.000000000Z");
        assert_eq!(shown("-1d12h"), "2026-03-13T23:00:00.000000000Z");
        assert_eq!(shown("yesterday 17:00"), "2026-03-14T16:00:00.000000000Z");
        assert_eq!(shown("today 08:30:15"), "2026-03-15T07:30:15.000000000Z");
        assert_eq!(shown("now"), "2026-03-15T11:00:00.000000000Z");
        assert_eq!(parse_instant("2999-01-01T00:00:00Z", &now()), Ok(Version::MAX));
        assert_eq!(parse_instant("1969-01-01T00:00:00Z", &now()), Ok(Version::ZERO));
    }

    #[test]
    fn what_is_no_instant_is_refused_with_the_spellings_that_work() {
        for text in [
            "",
            "-",
            "-2",
            "-2x",
            "-h",
            "tomorrow",
            "2026-03-15",
            "2026-03-15T10:30:00",
            "yesterday17:00",
            "1",
        ] {
            let error = parse_instant(text, &now()).expect_err(text);
            assert!(error.to_string().contains("RFC 3339"), "{error}");
        }
    }

    #[test]
    fn a_shown_version_reads_back_as_itself() {
        let version = Version(1_773_570_600_123_456_789);
        assert_eq!(parse_instant(&version.to_string(), &now()), Ok(version));
    }

    #[test]
    fn versions_rise_even_when_the_clock_stands_or_goes_back() {
        assert_eq!(Version(10).next(10), Version(11));
        assert_eq!(Version(10).next(3), Version(11));
        assert_eq!(Version(10).next(20), Version(20));
    }

    #[test]
    fn retentions_read_back_as_shown() {
        for text in ["0", "-1", "7d", "12h", "1d12h30m", "60s"] {
            let retention: Retention = text.parse().unwrap();
            assert_eq!(retention.to_string().parse(), Ok(retention));
        }
        assert_eq!("60s".parse::<Retention>().unwrap().to_string(), "1m");
        assert!("7".parse::<Retention>().is_err());
        assert!("-2".parse::<Retention>().is_err());
    }
}
