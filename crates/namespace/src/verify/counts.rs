//! Counts of objects and staged slices: rows name each as often as its count says, and what none names is entered as
//! retired.

use super::{Check, PAGE};
use crate::counted::Named;
use crate::rows::{
    CONDEMNED, Condemned, Format, MOVED, Moved, OBJECT, RETIRED, Refs, Retired, SHARED, SLICE, STAGED,
    SliceRow, Staged, Sum, TALLY, Tally, Volume, number_at, parse_object_key, parse_staged_key,
};
use chronofs_core::Version;
use chronofs_engine::{Change, ReadStop, Reads};
use chronofs_history::Table;
use std::collections::BTreeMap;
use std::fmt;

/// Why a count that is too high stays. Such a one keeps bytes for too long; one that is too low has them deleted, and no copy of
/// the metadata brings them back.
const NONE_IS_LEFT: &str =
    "not corrected, since what no row names is deleted, and rows that named it may have been lost";
const DOUBTFUL: &str =
    "not corrected, since other faults of this volume say that rows of it may have been lost";

/// What the rows come to.
#[derive(Default)]
struct Sums {
    held: Sum,
    retired: Sum,
    condemned: Sum,
    staged: Sum,
}

/// How many rows name a thing, how many bytes it has at least, and how many of them are named.
#[derive(Clone, Copy, Default)]
struct Name {
    rows: u32,
    bytes: u64,
    named: u64,
}

impl Name {
    fn add(&mut self, bytes: u64, len: u32) {
        self.rows += 1;
        self.bytes = self.bytes.max(bytes);
        self.named += u64::from(len);
    }
}

type Names = BTreeMap<Named, Name>;
/// What is to be entered as retired, with its bytes.
type RetiredKeys = BTreeMap<Vec<u8>, u64>;

pub(super) fn check<R: Reads + Copy>(check: &mut Check<'_, R>) -> Result<(), ReadStop> {
    if check.volume.flags & Volume::COUNTED == 0 {
        return Ok(());
    }
    check.doubtful |= check.undecided;
    let mut names = names(check)?;
    let mut sums = Sums::default();
    let mut retired = RetiredKeys::new();
    check.each_plain::<Moved>(MOVED, |check, key, moved| {
        let named = Named::Staged(parse_staged_key(key));
        let name = Name { bytes: 0, ..names.remove(&named).unwrap_or_default() };
        let refs = small(check, key, 0)?;
        one(check, named, key, &refs, name, (&mut sums, &mut retired))?;
        let end = moved.at.saturating_add(u64::from(moved.len));
        names.entry(Named::Object(moved.object)).or_default().add(end, moved.len);
        Ok(())
    })?;
    check.each_plain::<Refs>(OBJECT, |check, key, refs| {
        let named = Named::Object(parse_object_key(key));
        let name = names.remove(&named).unwrap_or_default();
        one(check, named, key, &refs, name, (&mut sums, &mut retired))
    })?;
    check.each_plain::<Staged>(STAGED, |check, key, staged| {
        let named = Named::Staged(parse_staged_key(key));
        let bytes = staged.bytes.len() as u64;
        let refs = small(check, key, bytes)?;
        let name = Name { bytes, ..names.remove(&named).unwrap_or_default() };
        one(check, named, key, &refs, name, (&mut sums, &mut retired))?;
        if refs.retired.is_none() {
            sums.staged.add(refs.bytes);
        }
        Ok(())
    })?;
    for (named, Name { rows, bytes, named: named_bytes }) in names {
        let (table, key) = named.count();
        // A slice that is neither staged nor moved is lost, and no count brings it back.
        let mend = match named {
            Named::Object(_) if check.unreadable == 0 => {
                let right = Refs { rows, bytes, named: named_bytes, ..Refs::new(check.version) };
                Some(check.plain(table, &key, &right)?)
            }
            _ => None,
        };
        check.fault_with(table, &key, "no count", format!("{rows}: so many rows name it"), mend);
    }
    check_tables(check, sums, retired)
}

/// The count of a small slice; without a row of its own it is named once.
fn small<R: Reads + Copy>(check: &mut Check<'_, R>, key: &[u8], bytes: u64) -> Result<Refs, ReadStop> {
    let unshared = Refs { rows: 1, bytes, ..Refs::new(Version::ZERO) };
    Ok(match check.tables.get_plain(SHARED, key)? {
        Some(row) => check.decode::<Refs>(SHARED, key, &row).unwrap_or(unshared),
        None => unshared,
    })
}

/// Everything that slices name, live and past.
fn names<R: Reads + Copy>(check: &mut Check<'_, R>) -> Result<Names, ReadStop> {
    let row = check.tables.get_plain(TALLY, &[])?;
    if row.is_none() && !check.tables.scan_plain(MOVED, &[], &[], 1)?.is_empty() {
        // Whether slices lie elsewhere than where they were born is not known: no count is to rest on it.
        check.unreadable += 1;
    }
    let tally = row.and_then(|row| check.decode::<Tally>(TALLY, &[], &row)).unwrap_or_default();
    let repacked = tally.flags & Tally::REPACKED != 0;
    let tables = check.tables;
    let mut names = Names::new();
    let mut note = |row: &SliceRow| -> Result<(), ReadStop> {
        let place = &row.slice.place;
        let (Some((mut named, bytes)), Some(seal)) = (Named::by(place), place.seal()) else { return Ok(()) };
        let born = matches!(named, Named::Object(_));
        if repacked && born && crate::pack::moved(&tables, seal.id)?.is_some() {
            named = Named::Staged(seal.id);
        }
        names.entry(named).or_default().add(bytes, seal.stored_len);
        Ok(())
    };
    check.each::<SliceRow>(SLICE, &[], |_, _, row| note(&row))?;
    let mut start = Vec::new();
    loop {
        let page = check.tables.history(SLICE, &start, PAGE)?;
        for past in &page {
            match SliceRow::decode(SLICE, past.key(), &past.row.value) {
                Ok(row) => note(&row)?,
                // It is named where the past is checked; that of volumes that were given up is not.
                Err(_) => check.unreadable += 1,
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => start = [last.place.as_ref(), &[0]].concat(),
            _ => return Ok(names),
        }
    }
}

fn one<R: Reads + Copy>(
    check: &mut Check<'_, R>,
    named: Named,
    key: &[u8],
    refs: &Refs,
    name: Name,
    (sums, retired): (&mut Sums, &mut RetiredKeys),
) -> Result<(), ReadStop> {
    let (table, _) = named.count();
    let Name { rows, bytes, .. } = name;
    let mend = count_mended(check, named, key, refs, name)?;
    if let Named::Object(_) = named {
        check.count(OBJECT, key, "named bytes", refs.named, name.named, &mend);
    }
    check.count(table, key, "rows that name it", refs.rows, rows, &mend);
    check.count(table, key, "retired", refs.retired.is_some(), refs.rows == 0, &mend);
    if refs.bytes < bytes {
        let expected = mend.expected(format!("at least {bytes}"));
        check.fault_with(table, key, format!("{} bytes", refs.bytes), expected, mend.change);
    }
    match (refs.retired, refs.condemned) {
        (_, Some(_)) => {}
        (Some(since), None) => {
            sums.retired.add(refs.bytes);
            retired.insert(named.retired_key(since), refs.bytes);
        }
        (None, None) => sums.held.add(refs.bytes),
    }
    Ok(())
}

/// What becomes of a count that is wrong.
#[derive(Default)]
struct Mend {
    change: Option<Change>,
    withheld: Option<&'static str>,
}

impl Mend {
    fn expected(&self, right: String) -> String {
        self.withheld.map_or(right.clone(), |why| format!("{right}: {why}"))
    }
}

impl<R: Reads + Copy> Check<'_, R> {
    fn count<T: PartialEq + fmt::Debug>(
        &mut self,
        table: Table,
        key: &[u8],
        what: &str,
        found: T,
        expected: T,
        mend: &Mend,
    ) {
        if found != expected {
            let expected = mend.expected(format!("{expected:?}"));
            self.fault_with(table, key, format!("{what} {found:?}"), expected, mend.change.clone());
        }
    }
}

/// The row of a count as rows say. Who is named by a row that cannot be read or was lost is not known: then none is made, lest
/// something is collected that is needed.
fn count_mended<R: Reads + Copy>(
    check: &mut Check<'_, R>,
    named: Named,
    key: &[u8],
    refs: &Refs,
    name: Name,
) -> Result<Mend, ReadStop> {
    if check.unreadable > 0 || refs.condemned.is_some() {
        return Ok(Mend::default());
    }
    let small = matches!(named, Named::Staged(_));
    let lower = name.rows < refs.rows || (!small && name.named < refs.named);
    check.lowers |= lower;
    let withheld = if check.doubtful && lower {
        Some(DOUBTFUL)
    } else {
        (name.rows == 0 && refs.rows > 0).then_some(NONE_IS_LEFT)
    };
    if withheld.is_some() {
        return Ok(Mend { change: None, withheld });
    }
    let (table, _) = named.count();
    if small && name.rows == 1 {
        // Without a row of its own it is named once.
        return Ok(Mend { change: Some(check.gone(table, key)), withheld });
    }
    let right = Refs {
        rows: name.rows,
        bytes: refs.bytes.max(name.bytes),
        named: if small { refs.named } else { name.named },
        retired: (name.rows == 0).then(|| refs.retired.unwrap_or(check.version)),
        ..refs.clone()
    };
    Ok(Mend { change: Some(check.plain(table, key, &right)?), withheld })
}

fn check_tables<R: Reads + Copy>(
    check: &mut Check<'_, R>,
    mut sums: Sums,
    mut retired: RetiredKeys,
) -> Result<(), ReadStop> {
    check.each_plain::<Retired>(RETIRED, |check, key, _| {
        if retired.remove(key).is_none() {
            let mend = check.gone(RETIRED, key);
            let mend = Some(mend).filter(|_| check.unreadable == 0);
            check.fault_with(RETIRED, key, "entered as retired", "no row: its count says otherwise", mend);
        }
        Ok(())
    })?;
    for (key, bytes) in retired {
        let since = Version(number_at(&key, 0));
        let mend = check.plain(RETIRED, &key, &Retired { flags: 0, bytes })?;
        let mend = Some(mend).filter(|_| check.unreadable == 0);
        check.fault_with(RETIRED, &key, "no row", format!("one: it is retired since {since:?}"), mend);
    }
    check.each_plain::<Condemned>(CONDEMNED, |_, _, row| {
        sums.condemned.add(row.bytes);
        Ok(())
    })?;
    let row = check.tables.get_plain(TALLY, &[])?;
    let tally = row.and_then(|row| check.decode::<Tally>(TALLY, &[], &row)).unwrap_or_default();
    let Sums { held, retired, condemned, staged } = sums;
    let right = Tally { held, retired, condemned, staged, ..tally };
    let mend = Some(check.plain(TALLY, &[], &right)?).filter(|_| check.unreadable == 0);
    check.equal_with(TALLY, &[], "held", tally.held, held, mend.clone());
    check.equal_with(TALLY, &[], "retired", tally.retired, retired, mend.clone());
    check.equal_with(TALLY, &[], "condemned", tally.condemned, condemned, mend.clone());
    check.equal_with(TALLY, &[], "staged", tally.staged, staged, mend);
    Ok(())
}
