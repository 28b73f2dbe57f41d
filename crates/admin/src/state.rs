//! What ails a metadata server: from what is known of it to a word and a sentence. Plain code, so that every fault can be
//! tested.

use chronofs_wire::status::{APART, MemberState, MetaSaid};
use std::time::Duration;

/// A sync that takes longer is no hiccup any more.
const SYNC_SLOW_S: f64 = 2.0;
/// Less room than this on its disk is worth a word: the log takes 64 MiB at a time.
const ROOM_MIN: u64 = 256 << 20;

/// What is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// It has registered at some time.
    pub(crate) registered: bool,
    /// It was heard of so long ago, if it was since this process started.
    pub(crate) heard: Option<Duration>,
    /// For how long this process has run.
    pub(crate) up: Duration,
    /// It says that it has been opening its store for so long.
    pub(crate) starting: Option<Duration>,
    /// It answered just now.
    pub(crate) answered: bool,
    /// What it said, as far as it is understood.
    pub(crate) said: Option<MetaSaid>,
    /// The revision of its list of volumes.
    pub(crate) revision: u64,
}

/// Its state, and what ails it.
pub(crate) fn judge(facts: &Facts) -> (MemberState, Option<String>) {
    use MemberState::*;
    if !facts.answered {
        return silent(facts);
    }
    let Some(said) = &facts.said else {
        return (Degraded, Some("its status is not understood: are the versions the same?".to_owned()));
    };
    let faults = [
        said.full.map(|full| {
            let (since, last) = (full.seconds, full.last_seconds);
            let why = format!("its disk is full: what writes is refused, for {since} s, the last time {last} s ago; give it room");
            (Full, why)
        }),
        said.figures.recovering.then(|| {
            (Replaying, "replaying: it collects from its clients what a power cut took; calls wait".to_owned())
        }),
        (!said.assigned).then(|| (Starting, "starting: it has no list of volumes yet".to_owned())),
        (said.syncing_s > SYNC_SLOW_S).then(|| {
            let why = format!("behind: its disk has been making the log durable for {:.1} s", said.syncing_s);
            (Behind, why)
        }),
        (said.figures.revision != facts.revision && said.assigned).then(|| {
            let (has, wanted) = (said.figures.revision, facts.revision);
            (Behind, format!("behind: it serves revision {has} of its list of volumes, and {wanted} is the newest"))
        }),
    ];
    if let Some((state, why)) = faults.into_iter().flatten().next() {
        return (state, Some(why));
    }
    match smaller_faults(said) {
        faults if faults.is_empty() => (Healthy, None),
        faults => (Degraded, Some(faults.join("; "))),
    }
}

fn silent(facts: &Facts) -> (MemberState, Option<String>) {
    if let Some(since) = facts.starting {
        let why = format!("starting: it opens its store and replays its log, for {} s", since.as_secs());
        return (MemberState::Starting, Some(why));
    }
    if !facts.registered {
        let why = "no server has ever registered for it; start one with chronofs meta start".to_owned();
        return (MemberState::NeverSeen, Some(why));
    }
    let since = match facts.heard {
        Some(ago) => format!("last heard of {} s ago", ago.as_secs()),
        None => format!("not heard of since the admin server started {} s ago", facts.up.as_secs()),
    };
    (MemberState::Unreachable, Some(format!("unreachable: it does not answer, {since}")))
}

/// What leaves most of it at work.
fn smaller_faults(said: &MetaSaid) -> Vec<String> {
    let volumes = said.volumes.iter().filter_map(|volume| {
        Some(format!("volume {} cannot be served: {}", volume.name, volume.problem.as_ref()?))
    });
    let held = said.volumes.iter().filter_map(|volume| {
        let at = volume.collection.held_at.as_ref()?;
        Some(format!(
            "more than half of the files of volume {} were removed within an hour; the instant before, {at}, is held until it is \
             let go: chronofs configure list hold",
            volume.name
        ))
    });
    let stores = said.stores.iter().filter_map(|store| {
        let outage = store.outage.as_ref()?;
        Some(format!(
            "block store {} cannot be used for {} s: {}",
            store.place, outage.seconds, outage.reason
        ))
    });
    let (free, size) = (said.process.disk_free_bytes, said.process.disk_bytes);
    let room = (size > 0 && free < ROOM_MIN)
        .then(|| format!("its disk is almost full: {} MiB are left; give it room", free >> 20));
    let copies = said.log.copies.iter().filter(|copy| !copy.counts || copy.problem.is_some()).map(|copy| {
        let how = copy.problem.as_deref().map_or_else(
            || format!("it catches up, {} KiB are missing", copy.behind_bytes >> 10),
            str::to_owned,
        );
        let counts =
            if copy.counts { "writes that are to be durable wait for it" } else { "it does not count" };
        format!("log copy {}: {counts}: {how}", copy.name)
    });
    let epoch = said
        .log
        .problem
        .iter()
        .map(|why| format!("nothing becomes durable until another epoch of the log can be had: {why}"));
    volumes.chain(held).chain(stores).chain(room).chain(epoch).chain(copies).collect()
}

/// What ails it not, and should be known.
pub(crate) fn warnings(said: &MetaSaid) -> Option<&'static str> {
    said.apart.then_some(APART)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_wire::status::{
        CollectionSaid, FiguresSaid, FullDisk, LogCopySaid, OutageSaid, ProcessStatus, StoreSaid, VolumeSaid,
    };

    fn well() -> Facts {
        let said = MetaSaid {
            assigned: true,
            figures: FiguresSaid { revision: 7, ..FiguresSaid::default() },
            process: ProcessStatus {
                disk_free_bytes: 1 << 40,
                disk_bytes: 1 << 41,
                ..ProcessStatus::default()
            },
            ..MetaSaid::default()
        };
        Facts {
            registered: true,
            heard: Some(Duration::from_secs(1)),
            answered: true,
            said: Some(said),
            revision: 7,
            ..Facts::default()
        }
    }

    fn judged(change: impl FnOnce(&mut Facts, &mut MetaSaid)) -> (MemberState, String) {
        let mut facts = well();
        let mut said = facts.said.take().unwrap();
        change(&mut facts, &mut said);
        facts.said = facts.answered.then_some(said);
        let (state, fault) = judge(&facts);
        (state, fault.unwrap_or_default())
    }

    #[test]
    fn every_fault_has_its_word_and_its_sentence() {
        use MemberState::*;
        assert_eq!(judged(|_, _| {}), (Healthy, String::new()));
        let full = FullDisk { seconds: 9, last_seconds: 2 };
        let (state, why) = judged(|_, said| said.full = Some(full));
        assert!(state == Full && why.contains("for 9 s") && why.contains("2 s ago"), "{why}");
        let (state, why) = judged(|_, said| said.figures.recovering = true);
        assert!(state == Replaying && why.contains("power cut"), "{why}");
        let (state, _) = judged(|_, said| (said.assigned, said.figures.revision) = (false, 0));
        assert_eq!(state, Starting);
        let (state, why) = judged(|_, said| said.syncing_s = 5.25);
        assert!(state == Behind && why.contains("5.2 s"), "{why}");
        let (state, why) = judged(|facts, _| facts.revision = 8);
        assert!(state == Behind && why.contains("revision 7") && why.contains('8'), "{why}");
        let problem = || VolumeSaid {
            name: "v".to_owned(),
            problem: Some("no folder".to_owned()),
            collection: CollectionSaid { held_at: Some("12:00".to_owned()) },
        };
        let outage = || OutageSaid { seconds: 4, reason: "refused".to_owned() };
        let (state, why) = judged(|_, said| {
            said.volumes = vec![VolumeSaid::default(), problem()];
            said.stores = vec![StoreSaid { place: "b".to_owned(), outage: Some(outage()) }];
            said.process.disk_free_bytes = 100 << 20;
        });
        assert_eq!(state, Degraded);
        for part in [
            "volume v cannot be served: no folder",
            "before, 12:00, is held",
            "block store b",
            "4 s: refused",
            "100 MiB",
        ] {
            assert!(why.contains(part), "{part}: {why}");
        }
    }

    #[test]
    fn a_log_copy_that_does_not_count_is_said() {
        use MemberState::*;
        let copy = |counts, problem: Option<&str>| LogCopySaid {
            name: "/disk2/log".to_owned(),
            counts,
            behind_bytes: 3 << 10,
            problem: problem.map(str::to_owned),
        };
        let (state, _) = judged(|_, said| said.log.copies = vec![copy(true, None)]);
        assert_eq!(state, Healthy);
        let (state, why) = judged(|_, said| said.log.copies = vec![copy(false, None)]);
        assert!(state == Degraded && why.contains("does not count") && why.contains("3 KiB"), "{why}");
        let (state, why) = judged(|_, said| {
            said.log.copies = vec![copy(true, Some("no room"))];
            said.log.problem = Some("the admin server does not answer".to_owned());
        });
        assert!(state == Degraded && why.contains("wait for it: no room"), "{why}");
        assert!(why.contains("nothing becomes durable until another epoch"), "{why}");
    }

    #[test]
    fn a_log_on_another_disk_than_the_store_is_a_warning_and_no_fault() {
        let mut said = well().said.unwrap();
        assert_eq!(warnings(&said), None);
        said.apart = true;
        assert_eq!(warnings(&said), Some(APART));
        let (state, why) = judged(|_, said| said.apart = true);
        assert_eq!((state, why.as_str()), (MemberState::Healthy, ""));
    }

    #[test]
    fn who_does_not_answer_is_unreachable_starting_or_was_never_there() {
        use MemberState::*;
        let silent = |facts: &mut Facts| facts.answered = false;
        let (state, why) = judged(|facts, _| silent(facts));
        assert!(state == Unreachable && why.contains("1 s ago"), "{why}");
        let (state, why) = judged(|facts, _| {
            silent(facts);
            (facts.heard, facts.up) = (None, Duration::from_secs(33));
        });
        assert!(state == Unreachable && why.contains("since the admin server started 33 s ago"), "{why}");
        let (state, why) = judged(|facts, _| {
            silent(facts);
            facts.starting = Some(Duration::from_secs(12));
        });
        assert!(state == Starting && why.contains("replays its log, for 12 s"), "{why}");
        let (state, why) = judged(|facts, _| {
            silent(facts);
            (facts.registered, facts.heard) = (false, None);
        });
        assert!(state == NeverSeen && why.contains("meta start"), "{why}");
        let mut strange = well();
        strange.said = None;
        assert_eq!(judge(&strange).0, Degraded);
    }
}
