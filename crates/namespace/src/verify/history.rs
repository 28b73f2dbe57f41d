//! Rows of the past: the intervals of a key stand in order, do not overlap, and end before the live row begins.

use super::{Check, PAGE, content};
use crate::rows::{
    DIR, Dir, ENTRY, Entry, Format, INODE, Inode, LINK, Link, SLICE, SliceRow, VERSIONED, XATTR, Xattr,
};
use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::{PastRow, Table};

pub(super) fn check<R: Reads + Copy>(check: &mut Check<'_, R>) -> Result<(), ReadStop> {
    VERSIONED.into_iter().try_for_each(|table| past_of(check, table))
}

fn past_of<R: Reads + Copy>(check: &mut Check<'_, R>, table: Table) -> Result<(), ReadStop> {
    let mut start = Vec::new();
    let mut before: Option<(Bytes, Version)> = None;
    loop {
        let page = check.tables.history(table, &start, PAGE)?;
        let last_page = page.len() < PAGE;
        if let Some(past) = page.last() {
            start = [past.place.as_ref(), &[0]].concat();
        }
        for past in page {
            let free_from =
                before.take().filter(|(key, _)| key == past.key()).map_or(Version::ZERO, |(_, u)| u);
            past_row(check, table, &past, free_from)?;
            before = Some((Bytes::copy_from_slice(past.key()), past.until()));
        }
        if last_page {
            return Ok(());
        }
    }
}

fn past_row<R: Reads + Copy>(
    check: &mut Check<'_, R>,
    table: Table,
    past: &PastRow,
    free_from: Version,
) -> Result<(), ReadStop> {
    let (since, until) = (past.row.since, past.until());
    if past.key().len() != table.key_len {
        check.fault(
            table,
            &past.place,
            format!("a past key of {} bytes", past.key().len()),
            "another length",
        );
        return Ok(());
    }
    let found = || format!("in the past from {since:?} to {until:?}");
    if since >= until {
        check.fault(table, past.key(), found(), "an interval");
    }
    if since < free_from {
        check.fault(table, past.key(), found(), format!("from {free_from:?} or later, as the one before it"));
    }
    let live = check.tables.get(table, past.key())?;
    if let Some(live) = live
        && live.since < until
    {
        check.fault(
            table,
            past.key(),
            found(),
            format!("up to {:?}, since when the live row holds", live.since),
        );
    }
    let (key, row) = (past.key(), past.row.value.as_ref());
    match table {
        INODE => decodes::<Inode, R>(check, table, key, row),
        DIR => decodes::<Dir, R>(check, table, key, row),
        ENTRY => decodes::<Entry, R>(check, table, key, row),
        LINK => decodes::<Link, R>(check, table, key, row),
        XATTR => decodes::<Xattr, R>(check, table, key, row),
        SLICE => {
            if let Some(row) = check.decode::<SliceRow>(SLICE, key, row) {
                content::slice(check, key, &row.slice)?;
            }
        }
        _ => check.fault(table, key, "a past row of a table without a past", "none"),
    }
    Ok(())
}

fn decodes<T: Format, R: Reads + Copy>(check: &mut Check<'_, R>, table: Table, key: &[u8], row: &[u8]) {
    let _ = check.decode::<T>(table, key, row);
}
