//! Counts of objects and staged slices: rows name each as often as its count says, and what none names is entered as
//! retired.

use super::{Check, PAGE};
use crate::counted::Named;
use crate::rows::{
    CONDEMNED, Condemned, Format, MOVED, Moved, OBJECT, RETIRED, Refs, Retired, SHARED, SLICE, STAGED,
    SliceRow, Staged, Sum, TALLY, Tally, Volume, number_at, parse_object_key, parse_staged_key,
};
use chronofs_core::Version;
use chronofs_engine::{ReadStop, Reads};
use std::collections::{BTreeMap, BTreeSet};

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

pub(super) fn check<R: Reads + Copy>(check: &mut Check<'_, R>) -> Result<(), ReadStop> {
    if check.volume.flags & Volume::COUNTED == 0 {
        return Ok(());
    }
    let mut names = names(check)?;
    let mut sums = Sums::default();
    let mut retired: BTreeSet<Vec<u8>> = BTreeSet::new();
    check.each_plain::<Moved>(MOVED, |check, key, moved| {
        let named = Named::Staged(parse_staged_key(key));
        let name = Name { bytes: 0, ..names.remove(&named).unwrap_or_default() };
        let refs = small(check, key, 0)?;
        one(check, named, key, &refs, name, (&mut sums, &mut retired));
        let end = moved.at.saturating_add(u64::from(moved.len));
        names.entry(Named::Object(moved.object)).or_default().add(end, moved.len);
        Ok(())
    })?;
    check.each_plain::<Refs>(OBJECT, |check, key, refs| {
        let named = Named::Object(parse_object_key(key));
        let name = names.remove(&named).unwrap_or_default();
        check.equal(OBJECT, key, "named bytes", refs.named, name.named);
        one(check, named, key, &refs, name, (&mut sums, &mut retired));
        Ok(())
    })?;
    check.each_plain::<Staged>(STAGED, |check, key, staged| {
        let named = Named::Staged(parse_staged_key(key));
        let bytes = staged.bytes.len() as u64;
        let refs = small(check, key, bytes)?;
        let name = Name { bytes, ..names.remove(&named).unwrap_or_default() };
        one(check, named, key, &refs, name, (&mut sums, &mut retired));
        if refs.retired.is_none() {
            sums.staged.add(refs.bytes);
        }
        Ok(())
    })?;
    for (named, Name { rows, .. }) in names {
        let (table, key) = named.count();
        check.fault(table, &key, "no count", format!("{rows}: so many rows name it"));
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
            // One that cannot be read is named where the past is checked.
            if let Ok(row) = SliceRow::decode(SLICE, past.key(), &past.row.value) {
                note(&row)?;
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
    Name { rows, bytes, .. }: Name,
    (sums, retired): (&mut Sums, &mut BTreeSet<Vec<u8>>),
) {
    let (table, _) = named.count();
    check.equal(table, key, "rows that name it", refs.rows, rows);
    check.equal(table, key, "retired", refs.retired.is_some(), refs.rows == 0);
    if refs.bytes < bytes {
        check.fault(table, key, format!("{} bytes", refs.bytes), format!("at least {bytes}"));
    }
    match (refs.retired, refs.condemned) {
        (_, Some(_)) => {}
        (Some(since), None) => {
            sums.retired.add(refs.bytes);
            retired.insert(named.retired_key(since));
        }
        (None, None) => sums.held.add(refs.bytes),
    }
}

fn check_tables<R: Reads + Copy>(
    check: &mut Check<'_, R>,
    mut sums: Sums,
    mut retired: BTreeSet<Vec<u8>>,
) -> Result<(), ReadStop> {
    check.each_plain::<Retired>(RETIRED, |check, key, _| {
        if !retired.remove(key) {
            check.fault(RETIRED, key, "entered as retired", "no row: its count says otherwise");
        }
        Ok(())
    })?;
    for key in retired {
        let since = Version(number_at(&key, 0));
        check.fault(RETIRED, &key, "no row", format!("one: it is retired since {since:?}"));
    }
    check.each_plain::<Condemned>(CONDEMNED, |_, _, row| {
        sums.condemned.add(row.bytes);
        Ok(())
    })?;
    let row = check.tables.get_plain(TALLY, &[])?;
    let tally = row.and_then(|row| check.decode::<Tally>(TALLY, &[], &row)).unwrap_or_default();
    check.equal(TALLY, &[], "held", tally.held, sums.held);
    check.equal(TALLY, &[], "retired", tally.retired, sums.retired);
    check.equal(TALLY, &[], "condemned", tally.condemned, sums.condemned);
    check.equal(TALLY, &[], "staged", tally.staged, sums.staged);
    Ok(())
}
