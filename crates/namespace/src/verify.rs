//! Checks every invariant of the rows, a page at a time, and is exact about what is wrong.

mod content;
mod counts;
mod history;
mod mend;
mod tree;

pub use mend::mends;

use crate::leave::is_bare;
use crate::protect::list_kept;
use crate::rows::{
    COUNTERS, Counters, Format, KEYS, PURGE, STORE, STORE_WIDE, Store, VOLUME, Volume, ino_key,
};
use crate::system::{list_sessions, list_volumes};
use bytes::Bytes;
use chronofs_core::{Ino, Version, VolumeIndex};
use chronofs_engine::{Change, ReadStop, Reads};
use chronofs_history::{Row, Snapshot, Table};
use std::collections::BTreeSet;
use std::fmt;

const PAGE: usize = 512;

/// Something that is not as it must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The volume; 0 for rows of the whole store.
    pub volume: VolumeIndex,
    /// Name of the table.
    pub table: &'static str,
    /// Key of the row, without table and volume.
    pub key: Bytes,
    /// What is there.
    pub found: String,
    /// What should be.
    pub expected: String,
    /// The change that makes it so, where other rows say what should be.
    pub mend: Option<Change>,
}

impl Fault {
    /// All but what is found there.
    fn what(&self) -> (VolumeIndex, &'static str, Bytes, String) {
        (self.volume, self.table, self.key.clone(), self.expected.clone())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {} table {} key ", self.volume.0, self.table)?;
        for byte in &self.key {
            write!(f, "{byte:02x}")?;
        }
        write!(f, ": {}; expected {}", self.found, self.expected)
    }
}

/// Checks every row of every volume. No faults: no invariant is broken. An error: reading failed.
pub fn verify<R: Reads + ?Sized>(reads: &R) -> Result<Vec<Fault>, ReadStop> {
    let mut faults = Vec::new();
    verify_each(reads, &mut |fault| faults.push(fault))?;
    Ok(faults)
}

/// As [`fn@verify`], and calls `found` with each fault at once.
pub fn verify_each<R: Reads + ?Sized>(reads: &R, found: &mut dyn FnMut(Fault)) -> Result<(), ReadStop> {
    verify_at(reads, Version::ZERO, &mut BTreeSet::new(), found)
}

/// The same; mends are made for a commit at `version`. Volumes that seem to have lost rows, of which counts still tell, are added
/// to `lossy`; of those that are there already nothing is mended that says so.
fn verify_at<R: Reads + ?Sized>(
    reads: &R,
    version: Version,
    lossy: &mut BTreeSet<VolumeIndex>,
    found: &mut dyn FnMut(Fault),
) -> Result<(), ReadStop> {
    let volumes = list_volumes(reads)?;
    verify_store(reads, &volumes, found)?;
    for (index, volume) in &volumes {
        let tables = Snapshot::new(reads, *index, None);
        let mut check = Check::new(tables, volume, *index, version, &mut *found);
        check.lossy = lossy.contains(index);
        if !volume.is_live() && check_leaving(reads, &mut check)? {
            continue;
        }
        let sums = tree::check(&mut check)?;
        content::check(&mut check)?;
        history::check(&mut check)?;
        counts::check(&mut check)?;
        if check.doubtful && check.lowers {
            lossy.insert(*index);
        }
        check_counters(&mut check, sums)?;
    }
    Ok(())
}

/// Checks a volume whose rows go in any order; whether that is all there is to check.
fn check_leaving<R: Reads + Copy>(reads: R, check: &mut Check<'_, R>) -> Result<bool, ReadStop> {
    let key = check.index.0.to_be_bytes();
    if check.volume.is_gone() && !is_bare(&reads, check.index)? {
        check.fault(VOLUME, &key, "a volume that is gone has rows", "none");
    }
    if check.volume.is_given_up() {
        counts::check(check)?;
    }
    Ok(check.volume.is_given_up() || check.volume.is_gone())
}

/// What the inodes of a volume come to.
#[derive(Default)]
struct Sums {
    inodes: u64,
    bytes: u64,
    counter_max: u64,
}

/// One volume being checked.
struct Check<'a, R> {
    tables: Snapshot<R>,
    volume: &'a Volume,
    index: VolumeIndex,
    /// Of the commit that mends.
    version: Version,
    /// Rows that could not be read so far.
    unreadable: u64,
    /// There was a fault that no row decides.
    undecided: bool,
    /// What was found before counts says that rows may have been lost.
    doubtful: bool,
    /// Rows name something less often than its count says.
    lowers: bool,
    /// It is known to be both.
    lossy: bool,
    found: &'a mut dyn FnMut(Fault),
}

impl<'a, R: Reads + Copy> Check<'a, R> {
    fn new(
        tables: Snapshot<R>,
        volume: &'a Volume,
        index: VolumeIndex,
        version: Version,
        found: &'a mut dyn FnMut(Fault),
    ) -> Check<'a, R> {
        Check {
            tables,
            volume,
            index,
            version,
            unreadable: 0,
            undecided: false,
            doubtful: false,
            lowers: false,
            lossy: false,
            found,
        }
    }

    fn fault(&mut self, table: Table, key: &[u8], found: impl Into<String>, expected: impl Into<String>) {
        self.fault_with(table, key, found, expected, None);
    }

    fn fault_with(
        &mut self,
        table: Table,
        key: &[u8],
        found: impl Into<String>,
        expected: impl Into<String>,
        mend: Option<Change>,
    ) {
        // What other rows do not decide is wrong for a reason that they do not know.
        self.undecided |= mend.is_none();
        (self.found)(Fault {
            volume: self.index,
            table: table.name,
            key: Bytes::copy_from_slice(key),
            found: found.into(),
            expected: expected.into(),
            mend,
        });
    }

    /// Records a fault unless both are equal.
    fn equal<T: PartialEq + fmt::Debug>(
        &mut self,
        table: Table,
        key: &[u8],
        what: &str,
        found: T,
        expected: T,
    ) {
        self.equal_with(table, key, what, found, expected, None);
    }

    /// The same, of what other rows say.
    fn equal_with<T: PartialEq + fmt::Debug>(
        &mut self,
        table: Table,
        key: &[u8],
        what: &str,
        found: T,
        expected: T,
        mend: Option<Change>,
    ) {
        if found != expected {
            self.fault_with(table, key, format!("{what} {found:?}"), format!("{expected:?}"), mend);
        }
    }

    /// Decodes a row, or records that it cannot be.
    fn decode<T: Format>(&mut self, table: Table, key: &[u8], row: &[u8]) -> Option<T> {
        match T::decode(table, key, row) {
            Ok(row) => Some(row),
            Err(error) => {
                self.unreadable += 1;
                self.fault(table, key, error.to_string(), "a row of this format");
                None
            }
        }
    }

    fn get<T: Format>(&mut self, table: Table, key: &[u8]) -> Result<Option<T>, ReadStop> {
        let row = self.tables.get(table, key)?;
        Ok(row.and_then(|row| self.decode(table, key, &row.value)))
    }

    /// Whether the inode is gone and its rows are still being removed.
    fn is_purged(&self, ino: Ino) -> Result<bool, ReadStop> {
        Ok(self.tables.get_plain(PURGE, &ino_key(ino))?.is_some())
    }

    /// Calls `visit` with each row of a versioned table whose key starts with `prefix`.
    fn each<T: Format>(
        &mut self,
        table: Table,
        prefix: &[u8],
        mut visit: impl FnMut(&mut Self, &[u8], T) -> Result<(), ReadStop>,
    ) -> Result<(), ReadStop> {
        let mut start = Vec::new();
        loop {
            let page: Vec<(Bytes, Row)> = self.tables.scan(table, prefix, &start, PAGE)?;
            let last_page = page.len() < PAGE;
            if let Some((key, _)) = page.last() {
                start = [&key[prefix.len()..], &[0]].concat();
            }
            for (key, row) in page {
                if let Some(row) = self.decode::<T>(table, &key, &row.value) {
                    visit(self, &key, row)?;
                }
            }
            if last_page {
                return Ok(());
            }
        }
    }

    /// Like [`Check::each`] for a table that is not versioned.
    fn each_plain<T: Format>(
        &mut self,
        table: Table,
        mut visit: impl FnMut(&mut Self, &[u8], T) -> Result<(), ReadStop>,
    ) -> Result<(), ReadStop> {
        let mut start = Vec::new();
        loop {
            let page = self.tables.scan_plain(table, &[], &start, PAGE)?;
            let last_page = page.len() < PAGE;
            if let Some((key, _)) = page.last() {
                start = [key.as_ref(), &[0]].concat();
            }
            for (key, row) in page {
                if let Some(row) = self.decode::<T>(table, &key, &row) {
                    visit(self, &key, row)?;
                }
            }
            if last_page {
                return Ok(());
            }
        }
    }
}

fn check_counters<R: Reads + Copy>(check: &mut Check<'_, R>, sums: Sums) -> Result<(), ReadStop> {
    let row = check.tables.get_plain(COUNTERS, &[])?;
    let Some(counters) = row.and_then(|row| check.decode::<Counters>(COUNTERS, &[], &row)) else {
        check.fault(COUNTERS, &[], "no row", "one");
        return Ok(());
    };
    // An inode that cannot be read is one that is not summed up.
    let right = Counters {
        next_ino: counters.next_ino.max(sums.counter_max + 1),
        used_bytes: sums.bytes,
        used_inodes: sums.inodes,
        ..counters
    };
    let mend = if check.unreadable == 0 { Some(check.plain(COUNTERS, &[], &right)?) } else { None };
    let Counters { used_inodes, used_bytes, next_ino, .. } = counters;
    check.equal_with(COUNTERS, &[], "used inodes", used_inodes, sums.inodes, mend.clone());
    check.equal_with(COUNTERS, &[], "used bytes", used_bytes, sums.bytes, mend.clone());
    if next_ino <= sums.counter_max {
        let expected = format!("above {}, which is in use", sums.counter_max);
        check.fault_with(COUNTERS, &[], format!("next inode counter {next_ino}"), expected, mend);
    }
    Ok(())
}

fn verify_store<R: Reads + ?Sized>(
    reads: &R,
    volumes: &[(VolumeIndex, Volume)],
    found: &mut dyn FnMut(Fault),
) -> Result<(), ReadStop> {
    let Some((_, first)) = volumes.first() else { return Ok(()) };
    let tables = Snapshot::new(reads, STORE_WIDE, None);
    let version = Version::ZERO;
    let mut check = Check::new(tables, first, STORE_WIDE, version, found);
    let row = tables.get_plain(STORE, &[])?;
    let Some(store) = row.and_then(|row| check.decode::<Store>(STORE, &[], &row)) else {
        check.fault(STORE, &[], "no row", "one");
        return Ok(());
    };
    let (sessions, kept) = (list_sessions(reads)?, list_kept(reads)?);
    for (index, volume) in volumes {
        let key = index.0.to_be_bytes();
        if index.0 >= store.next_volume {
            check.fault(VOLUME, &key, "volume", format!("below {}", store.next_volume));
        }
        if volume.is_encrypted() && !volume.is_gone() && check.tables.get_plain(KEYS, &key)?.is_none() {
            check.fault(VOLUME, &key, "encrypted, and without sealed keys", "a row of table keys");
        }
        let leases = sessions.iter().filter(|(_, s)| s.volume == *index && s.at.is_some()).count()
            + kept.iter().filter(|(of, ..)| of == index).count();
        let right = Volume { leases: u32::try_from(leases).unwrap_or(u32::MAX), ..volume.clone() };
        let mend = Some(check.plain(VOLUME, &key, &right)?);
        check.equal_with(VOLUME, &key, "leases", volume.leases as usize, leases, mend);
    }
    for (id, session) in &sessions {
        let key = id.0.to_be_bytes();
        if id.0 >= store.next_session {
            check.fault(crate::rows::SESSION, &key, "session", format!("below {}", store.next_session));
        }
        if !volumes.iter().any(|(index, _)| *index == session.volume) {
            check.fault(crate::rows::SESSION, &key, format!("{:?}", session.volume), "a volume of the store");
        }
    }
    Ok(())
}
