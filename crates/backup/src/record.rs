//! What the admin server knows of a backup, and how whole it is. Plain code: the clock is handed in.

use chronofs_core::Version;
use serde::{Deserialize, Serialize};

/// How a backup stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// It is being made.
    Running,
    /// Its manifest is written.
    Complete,
    /// It is none.
    Failed,
    /// The admin server went down while its manifest was written; the next backup into the same place finds out.
    Unsure,
    /// A copy that others made: only the instant is kept.
    Registered,
}

/// A backup, as it is kept in the admin server's database.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Backup {
    /// Its UID, which is that of its snapshot.
    pub uid: String,
    /// Where it lies, as it was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub dest: String,
    /// Id of that place.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub depot: String,
    /// The schedule that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// What somebody wrote down about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// When it began, nanoseconds since the epoch.
    pub started_ns: u64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ns: Option<u64>,
    /// Until when what it needs is kept; none: until it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_until_ns: Option<u64>,
    /// How it stands.
    pub state: State,
    /// All that was done before this instant is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point_ns: Option<u64>,
    /// Bytes of its images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Those that had to be stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How much of what a backup names is still in the block stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Wholeness {
    /// All of it.
    Whole,
    /// That of some volumes for sure.
    Partly,
    /// Of no volume for sure.
    Hollow,
}

/// [`Wholeness`], and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Judged {
    /// How much.
    pub wholeness: Wholeness,
    /// Why.
    pub because: String,
}

/// A volume that a backup had, as it stands now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stands {
    /// Its name.
    pub name: String,
    /// The earliest instant that its past reaches back to, as last reported.
    pub earliest_ns: Option<u64>,
    /// Why perhaps nothing of it is left, if that is so.
    pub gone: Option<String>,
}

/// How whole the backup of the instant `point_ns` is. `kept_until_ns`: until when that is kept for it, if it is at all
/// (`u64::MAX`: until somebody lets it go). `volumes`: those that it had, also such as are gone by now.
#[must_use]
pub fn judge(point_ns: u64, kept_until_ns: Option<u64>, volumes: &[Stands], now_ns: u64) -> Judged {
    let judged = |wholeness, because: String| Judged { wholeness, because };
    match kept_until_ns {
        Some(u64::MAX) => {
            return judged(Wholeness::Whole, "what it needs is kept until it is deleted".to_owned());
        }
        Some(until_ns) if until_ns > now_ns => {
            let because = format!("what it needs is kept until {}", Version(until_ns));
            return judged(Wholeness::Whole, because);
        }
        _ => {}
    }
    let over = match kept_until_ns {
        Some(until_ns) => format!("what it needs was kept until {}", Version(until_ns)),
        None => "what it needs is not kept any more".to_owned(),
    };
    let reaches = |volume: &Stands| {
        volume.gone.is_none() && volume.earliest_ns.is_some_and(|earliest_ns| earliest_ns <= point_ns)
    };
    let named = |volume: &Stands| match &volume.gone {
        Some(why) => format!("{} ({why})", volume.name),
        None => volume.name.clone(),
    };
    let names = |wanted: bool| -> Vec<String> {
        volumes.iter().filter(|volume| reaches(volume) == wanted).map(named).collect()
    };
    let (whole, hollow) = (names(true), names(false));
    match (whole.is_empty(), hollow.is_empty()) {
        (true, true) => judged(Wholeness::Hollow, format!("{over}: files may lack their bytes")),
        (true, false) => {
            let because = format!("{over}: files of {} may lack their bytes", hollow.join(", "));
            judged(Wholeness::Hollow, because)
        }
        (false, true) => {
            judged(Wholeness::Whole, format!("{over}, but the past of every volume still reaches back to it"))
        }
        (false, false) => judged(
            Wholeness::Partly,
            format!(
                "{over}: files of {} may lack their bytes; the past of {} still reaches back to it",
                hollow.join(", "),
                whole.join(", ")
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_whole_as_long_as_it_is_kept_and_then_as_far_as_the_past_of_volumes_reaches() {
        let volumes = |earliest: &[Option<u64>]| -> Vec<Stands> {
            let stands = |(n, earliest): (usize, &Option<u64>)| Stands {
                name: format!("v{n}"),
                earliest_ns: *earliest,
                gone: None,
            };
            earliest.iter().enumerate().map(stands).collect()
        };
        let judged = |kept, earliest: &[Option<u64>]| judge(100, kept, &volumes(earliest), 200);
        assert_eq!(judged(Some(u64::MAX), &[Some(150)]).wholeness, Wholeness::Whole);
        assert_eq!(judged(Some(201), &[Some(150)]).wholeness, Wholeness::Whole);
        for kept in [Some(200), None] {
            assert_eq!(judged(kept, &[Some(100), Some(3)]).wholeness, Wholeness::Whole);
            assert_eq!(judged(kept, &[Some(101), None]).wholeness, Wholeness::Hollow);
            assert_eq!(judged(kept, &[]).wholeness, Wholeness::Hollow);
            let some = judged(kept, &[Some(100), Some(101), None]);
            assert_eq!(some.wholeness, Wholeness::Partly);
            assert!(some.because.contains("files of v1, v2 may") && some.because.contains("past of v0 "));
        }
    }

    #[test]
    fn a_volume_that_is_gone_is_named_with_the_reason_however_far_its_past_reached() {
        let there = Stands { name: "there".to_owned(), earliest_ns: Some(3), gone: None };
        let why = Some("deleted and given up".to_owned());
        let gone = Stands { name: "gone".to_owned(), gone: why, ..there.clone() };
        let some = judge(100, None, &[there.clone(), gone.clone()], 200);
        assert_eq!(some.wholeness, Wholeness::Partly);
        assert!(some.because.contains("files of gone (deleted and given up) may lack"), "{}", some.because);
        let none = judge(100, None, std::slice::from_ref(&gone), 200);
        assert_eq!(none.wholeness, Wholeness::Hollow);
        assert!(none.because.contains("files of gone (deleted and given up) may lack"), "{}", none.because);
        assert_eq!(judge(100, Some(u64::MAX), &[there, gone], 200).wholeness, Wholeness::Whole);
    }
}
