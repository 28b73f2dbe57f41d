//! What an object store can do, and where it lies: tried out before it is trusted with bytes, and recorded.
//!
//! The probe works in a folder of its own below the store's prefix, and takes away what it wrote. It rests on nothing
//! but the answers: a store that accepts a create-only put of a name that is taken is found out by what it then holds.

use crate::store::{PROBE_FOLDER, RemoteStore};
use bytes::Bytes;
use futures::future::join_all;
use object_store::list::PaginatedListOptions;
use object_store::path::Path as Location;
use object_store::{Error, GetOptions, GetRange, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Instant;
use uuid::Uuid;

const BYTES: usize = 64 << 10;
/// Objects that are put at once, and then listed.
const OBJECTS: usize = 32;
/// Asked for in one page of a list, so that there are several.
const PAGE: usize = 10;
const RACERS: usize = 8;
const RACES: usize = 2;

/// What was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Bytes that were put are read back whole.
    Write,
    /// Ranges at the start and in the middle.
    Ranges,
    /// The last bytes without knowing the length. Not used.
    SuffixRange,
    /// A range behind the end gives no bytes.
    RangeBehindEnd,
    /// An object that is not there is said not to be there.
    Missing,
    /// A put that must not overwrite does not.
    CreateOnly,
    /// Of several such puts at once one wins.
    CreateRace,
    /// What was overwritten is seen at once. Not used.
    Overwrite,
    /// A list in several pages has every object once.
    List,
    /// Deleting works, also of what is not there.
    Delete,
    /// A list does not have what was deleted. Not used yet.
    ListAfterDelete,
    /// Several requests at once are all answered.
    Parallel,
}

impl Check {
    /// Without these a store is of no use, or of harm: a list that leaves out hides pins, and then goes what they keep.
    fn is_needed(self) -> bool {
        use Check::*;
        matches!(self, Write | Ranges | RangeBehindEnd | Missing | List | Delete)
    }
}

/// How it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should.
    Ok,
    /// The store says that it cannot.
    Refused,
    /// The store says that it did, and did not.
    Lies,
}

/// One thing that was tried.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub check: Check,
    /// How it went.
    pub verdict: Verdict,
    /// What happened, if not what should.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// All that a probe found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// In the order in which they were tried.
    pub findings: Vec<Finding>,
    /// Create-only puts are honest: puts ask for them.
    pub create_only: bool,
    /// So many puts at once were all answered.
    pub parallel: u32,
    /// How long the probe took.
    pub took_ms: u64,
}

impl Report {
    /// How a check went; `None` if it was not tried since one before it failed.
    pub fn verdict(&self, check: Check) -> Option<Verdict> {
        self.findings.iter().find(|finding| finding.check == check).map(|finding| finding.verdict)
    }

    /// Why the store cannot be used, if it cannot.
    pub fn refusal(&self) -> Option<String> {
        let bad = |f: &&Finding| f.check.is_needed() && f.verdict != Verdict::Ok;
        self.findings.iter().find(bad).map(|finding| format!("{}: {}", finding.word(), finding.detail))
    }

    /// What it cannot do or lies about, though it can be used.
    pub fn weaknesses(&self) -> Vec<String> {
        let weak = |f: &&Finding| f.verdict != Verdict::Ok && !matches!(f.check, Check::SuffixRange);
        self.findings
            .iter()
            .filter(weak)
            .map(|finding| format!("{}: {}", finding.word(), finding.detail))
            .collect()
    }
}

impl Finding {
    fn word(&self) -> &'static str {
        match self.check {
            Check::Write => "write",
            Check::Ranges => "ranges",
            Check::SuffixRange => "suffix range",
            Check::RangeBehindEnd => "range behind the end",
            Check::Missing => "missing object",
            Check::CreateOnly => "create-only put",
            Check::CreateRace => "race of create-only puts",
            Check::Overwrite => "overwrite",
            Check::List => "list",
            Check::Delete => "delete",
            Check::ListAfterDelete => "list after delete",
            Check::Parallel => "parallel puts",
        }
    }
}

/// A check that did not go as it should.
type Tried = Result<(), (Verdict, String)>;

fn lies(detail: impl Into<String>) -> Tried {
    Err((Verdict::Lies, detail.into()))
}

/// Tries out what `store` can do. Takes some 150 requests, most of them several at once.
pub async fn probe(store: &RemoteStore) -> Report {
    let began = Instant::now();
    let probe = Probe { store, folder: format!("{PROBE_FOLDER}{}", Uuid::new_v4().simple()) };
    let mut report = Report { findings: Vec::new(), create_only: false, parallel: 0, took_ms: 0 };
    probe.run(&mut report).await;
    probe.clean_up().await;
    let honest = |check| report.verdict(check) == Some(Verdict::Ok);
    report.create_only = honest(Check::CreateOnly) && honest(Check::CreateRace);
    report.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    report
}

struct Probe<'a> {
    store: &'a RemoteStore,
    folder: String,
}

/// Bytes that differ from place to place.
fn pattern(len: usize, salt: u8) -> Bytes {
    (0..len).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ (i as u8) ^ salt).collect()
}

impl Probe<'_> {
    async fn run(&self, report: &mut Report) {
        let mut note = |check, tried: Tried| {
            let (verdict, detail) = match tried {
                Ok(()) => (Verdict::Ok, String::new()),
                Err((verdict, detail)) => (verdict, detail),
            };
            report.findings.push(Finding { check, verdict, detail });
            verdict == Verdict::Ok
        };
        let bytes = pattern(BYTES, 0);
        if !note(Check::Write, self.write(&bytes).await) {
            return;
        }
        note(Check::Ranges, self.ranges(&bytes).await);
        note(Check::SuffixRange, self.suffix(&bytes).await);
        note(Check::RangeBehindEnd, self.behind_end(&bytes).await);
        note(Check::Missing, self.missing().await);
        note(Check::CreateOnly, self.create_only(&bytes).await);
        note(Check::CreateRace, self.race().await);
        note(Check::Overwrite, self.overwrite().await);
        let (answered, tried) = self.parallel().await;
        note(Check::Parallel, tried);
        note(Check::List, self.list(OBJECTS).await);
        note(Check::Delete, self.delete().await);
        note(Check::ListAfterDelete, self.list(0).await);
        report.parallel = answered;
    }

    fn at(&self, name: &str) -> Location {
        self.store.at(&format!("{}/{name}", self.folder))
    }

    async fn put(&self, name: &str, bytes: Bytes, mode: PutMode) -> Result<(), Error> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.store.client.objects.put_opts(&self.at(name), PutPayload::from(bytes), options).await.map(drop)
    }

    async fn get(&self, name: &str, range: Option<GetRange>) -> Result<Bytes, Error> {
        let options = GetOptions { range, ..GetOptions::default() };
        self.store.client.objects.get_opts(&self.at(name), options).await?.bytes().await
    }

    fn refused(&self, error: &Error) -> (Verdict, String) {
        (Verdict::Refused, self.store.said(error))
    }

    async fn write(&self, bytes: &Bytes) -> Tried {
        self.put("whole", bytes.clone(), PutMode::Overwrite).await.map_err(|e| self.refused(&e))?;
        let found = self.get("whole", None).await.map_err(|e| self.refused(&e))?;
        if found == *bytes { Ok(()) } else { lies(format!("{} other bytes were read back", found.len())) }
    }

    async fn ranges(&self, bytes: &Bytes) -> Tried {
        for range in [0..1, 0..4096, 30_011..31_337, BYTES as u64 - 7..BYTES as u64] {
            let found = self.get("whole", Some(GetRange::Bounded(range.clone()))).await;
            let found = found.map_err(|e| self.refused(&e))?;
            if found != bytes[range.start as usize..range.end as usize] {
                return lies(format!("bytes {range:?} are others ({} of them)", found.len()));
            }
        }
        Ok(())
    }

    async fn suffix(&self, bytes: &Bytes) -> Tried {
        match self.get("whole", Some(GetRange::Suffix(10))).await {
            Ok(found) if found == bytes[BYTES - 10..] => Ok(()),
            Ok(found) => lies(format!("the last 10 bytes are others ({} of them)", found.len())),
            Err(error) => Err(self.refused(&error)),
        }
    }

    async fn behind_end(&self, bytes: &Bytes) -> Tried {
        let end = BYTES as u64;
        // Cut at the end, or an error: both are right.
        if let Ok(found) = self.get("whole", Some(GetRange::Bounded(end - 6..end + 60))).await
            && found != bytes[BYTES - 6..]
        {
            return lies(format!("a range across the end gave {} bytes, not 6", found.len()));
        }
        match self.get("whole", Some(GetRange::Bounded(end + 100..end + 200))).await {
            Ok(found) if !found.is_empty() => lies(format!("{} bytes came from behind the end", found.len())),
            _ => Ok(()),
        }
    }

    async fn missing(&self) -> Tried {
        match self.get("never-put", None).await {
            Err(Error::NotFound { .. }) => Ok(()),
            Ok(found) => lies(format!("an object that was never put has {} bytes", found.len())),
            Err(error) => Err(self.refused(&error)),
        }
    }

    async fn create_only(&self, bytes: &Bytes) -> Tried {
        let put = self.put("whole", pattern(100, 1), PutMode::Create).await;
        let found = self.get("whole", None).await.map_err(|e| self.refused(&e))?;
        match put {
            _ if found != *bytes => lies("a put that must not overwrite did overwrite"),
            Ok(()) => lies("a put that must not overwrite was accepted for a name that is taken"),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                // And of a free name it works.
                self.put("created", pattern(100, 2), PutMode::Create).await.map_err(|e| self.refused(&e))
            }
            Err(error) => Err(self.refused(&error)),
        }
    }

    async fn race(&self) -> Tried {
        for round in 0..RACES {
            let name = format!("race-{round}");
            let racers = (0..RACERS).map(|n| self.put(&name, pattern(1000, n as u8), PutMode::Create));
            let results = join_all(racers).await;
            let winners: Vec<usize> = (0..RACERS).filter(|&n| results[n].is_ok()).collect();
            let found = self.get(&name, None).await.map_err(|e| self.refused(&e))?;
            match winners[..] {
                [winner] if found == pattern(1000, winner as u8) => {}
                [winner] => return lies(format!("writer {winner} won, and the bytes are another's")),
                // The winner's answer may have been lost, and its second try refused.
                [] => return Err((Verdict::Refused, format!("none of {RACERS} writers won"))),
                _ => return lies(format!("{} of {RACERS} writers of one name won", winners.len())),
            }
        }
        Ok(())
    }

    async fn overwrite(&self) -> Tried {
        for round in 0..4 {
            let bytes = pattern(500, round);
            self.put("overwritten", bytes.clone(), PutMode::Overwrite).await.map_err(|e| self.refused(&e))?;
            let found = self.get("overwritten", None).await.map_err(|e| self.refused(&e))?;
            if found != bytes {
                return lies("old bytes were read after an overwrite");
            }
        }
        Ok(())
    }

    async fn parallel(&self) -> (u32, Tried) {
        let puts = (0..OBJECTS).map(|n| async move {
            self.put(&format!("list/{n:03}"), pattern(4096, n as u8), PutMode::Overwrite).await
        });
        let results = join_all(puts).await;
        let failed: Vec<&Error> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        let answered = u32::try_from(OBJECTS - failed.len()).unwrap_or_default();
        match failed.first() {
            None => (answered, Ok(())),
            Some(error) => {
                let detail = format!("{} of {OBJECTS} failed: {}", failed.len(), self.store.said(error));
                (answered, Err((Verdict::Refused, detail)))
            }
        }
    }

    /// Lists in small pages and compares with what must be there.
    async fn list(&self, expected: usize) -> Tried {
        let prefix = format!("{}/", self.at("list"));
        let (mut names, mut twice, mut pages) = (BTreeSet::new(), 0, 0);
        let mut page_token = None;
        loop {
            let page =
                PaginatedListOptions { max_keys: Some(PAGE), page_token, ..PaginatedListOptions::default() };
            let listed = self.store.client.pages.list_paginated(Some(&prefix), page).await;
            let listed = listed.map_err(|e| self.refused(&e))?;
            pages += 1;
            for object in listed.result.objects {
                twice += usize::from(!names.insert(object.location));
            }
            page_token = listed.page_token;
            // A store whose pages do not end must not hold us for ever.
            if page_token.is_none() || pages > 10 * OBJECTS {
                break;
            }
        }
        let wanted: BTreeSet<Location> = (0..expected).map(|n| self.at(&format!("list/{n:03}"))).collect();
        let (lacks, extra) = (wanted.difference(&names).count(), names.difference(&wanted).count());
        match (lacks, extra, twice, page_token) {
            (0, 0, 0, None) => Ok(()),
            (_, _, _, Some(_)) => {
                lies(format!("a list of {expected} objects does not end after {pages} pages"))
            }
            _ => lies(format!(
                "a list of {expected} objects in {pages} pages lacks {lacks}, has {twice} twice, and {extra} that are not \
                 there"
            )),
        }
    }

    async fn delete(&self) -> Tried {
        let deletes = (0..OBJECTS).map(|n| async move {
            let location = self.at(&format!("list/{n:03}"));
            self.store.client.objects.delete(&location).await
        });
        for result in join_all(deletes).await {
            result.map_err(|e| self.refused(&e))?;
        }
        match self.get("list/000", None).await {
            Err(Error::NotFound { .. }) => {}
            Ok(_) => return lies("an object that was deleted is still read"),
            Err(error) => return Err(self.refused(&error)),
        }
        match self.store.client.objects.delete(&self.at("list/000")).await {
            // Some say that there was nothing, some do not: both are right.
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.refused(&error)),
        }
    }

    /// What stays is ours by its name and in nobody's way, so a failure here is no finding.
    async fn clean_up(&self) {
        let races = (0..RACES).map(|round| format!("race-{round}"));
        let list = (0..OBJECTS).map(|n| format!("list/{n:03}"));
        let names =
            ["whole", "created", "overwritten"].map(str::to_owned).into_iter().chain(races).chain(list);
        join_all(names.map(|name| async move {
            let _ = self.store.client.objects.delete(&self.at(&name)).await;
        }))
        .await;
    }
}
