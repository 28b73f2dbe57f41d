//! Reading versioned tables: now, or as they were at an instant.

use crate::expire::until_of;
use crate::{Row, Table, decode_plain, decode_versioned};
use bytes::Bytes;
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::{ReadStop, Reads};
use std::cmp::Ordering;

/// One volume's tables, now (`at` is `None`) or at an instant.
#[derive(Clone, Copy)]
pub struct Snapshot<R> {
    reads: R,
    volume: VolumeIndex,
    at: Option<Version>,
}

impl<R: Reads> Snapshot<R> {
    /// The tables of `volume` in the state of `reads`, as of `at`.
    pub fn new(reads: R, volume: VolumeIndex, at: Option<Version>) -> Self {
        Snapshot { reads, volume, at }
    }

    /// The instant, if it is not now.
    pub fn at(&self) -> Option<Version> {
        self.at
    }

    /// The volume.
    pub fn volume(&self) -> VolumeIndex {
        self.volume
    }

    /// The row of `key`. At an instant: the live row if it holds since then or earlier, else one seek to the first
    /// row of history that ends later.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Row>, ReadStop> {
        let live_key = table.live_key(self.volume, key);
        let live = match self.reads.get(&live_key)? {
            Some(stored) => Some(decode_versioned(&live_key, &stored)?),
            None => None,
        };
        let Some(at) = self.at else { return Ok(live) };
        if let Some(row) = live
            && row.since <= at
        {
            return Ok(Some(row));
        }
        let from = table.history_key(self.volume, key, Version(at.0.saturating_add(1)));
        let to = successor(&table.history_prefix(self.volume, key));
        let Some((past_key, stored)) = self.reads.first(&from, &to)? else { return Ok(None) };
        let row = decode_versioned(&past_key, &stored)?;
        Ok((row.since <= at).then_some(row))
    }

    /// A row of a table that is not versioned.
    pub fn get_plain(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, ReadStop> {
        let live_key = table.live_key(self.volume, key);
        self.reads.get(&live_key)?.map(|stored| decode_plain(&live_key, &stored)).transpose()
    }

    /// Rows of a table that is not versioned, as [`Snapshot::scan`] gives them.
    pub fn scan_plain(
        &self,
        table: Table,
        prefix: &[u8],
        start: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, ReadStop> {
        let mut from = prefix.to_vec();
        from.extend_from_slice(start);
        let to = successor(&table.prefix(self.volume, prefix));
        let pairs = self.reads.scan(&table.prefix(self.volume, &from), &to, limit)?;
        pairs.into_iter().map(|(key, stored)| Ok((key.slice(5..), decode_plain(&key, &stored)?))).collect()
    }

    /// Up to `limit` rows with `prefix` whose key is at or above `prefix` + `start`, in key order. The keys come
    /// whole, without table and volume.
    pub fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        start: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Row)>, ReadStop> {
        let mut from = prefix.to_vec();
        from.extend_from_slice(start);
        match self.at {
            None => self.scan_live(table, prefix, &from, limit),
            Some(at) => self.scan_at(table, prefix, &from, limit, at),
        }
    }

    /// Up to `limit` rows of history whose key, with `until` behind it, is at or above `start`, in the order of key
    /// and `until`. To go on, start after [`PastRow::place`] of the last.
    pub fn history(&self, table: Table, start: &[u8], limit: usize) -> Result<Vec<PastRow>, ReadStop> {
        let from = table.history_prefix(self.volume, start);
        let to = successor(&table.history_prefix(self.volume, &[]));
        let pairs = self.reads.scan(&from, &to, limit)?;
        pairs
            .into_iter()
            .map(|(key, stored)| Ok(PastRow { row: decode_versioned(&key, &stored)?, place: key.slice(6..) }))
            .collect()
    }

    fn scan_live(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Row)>, ReadStop> {
        let to = successor(&table.prefix(self.volume, prefix));
        let pairs = self.reads.scan(&table.prefix(self.volume, from), &to, limit)?;
        pairs
            .into_iter()
            .map(|(key, stored)| Ok((key.slice(5..), decode_versioned(&key, &stored)?)))
            .collect()
    }

    /// Merges the live range with the range of history, page by page.
    fn scan_at(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
        at: Version,
    ) -> Result<Vec<(Bytes, Row)>, ReadStop> {
        let page = limit.clamp(16, 1024);
        let mut live = Pages::new(
            &self.reads,
            table.prefix(self.volume, from),
            successor(&table.prefix(self.volume, prefix)),
            page,
        );
        let mut past = Pages::new(
            &self.reads,
            table.history_prefix(self.volume, from),
            successor(&table.history_prefix(self.volume, prefix)),
            page,
        );
        let mut found: Vec<(Bytes, Row)> = Vec::new();
        while found.len() < limit {
            let live_key = live.peek()?.map(|(key, _)| key.slice(5..));
            let past_key = past.peek()?.map(|(key, _)| key.slice(6..key.len() - 8));
            let order = match (&live_key, &past_key) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(live_key), Some(past_key)) => live_key.cmp(past_key),
            };
            let side = if order == Ordering::Greater { &mut past } else { &mut live };
            let Some((key, stored)) = side.next()? else { break };
            let row = decode_versioned(&key, &stored)?;
            if order == Ordering::Greater {
                let split = key.len() - 8;
                // A history key goes on after the row's key, so one that is too low for `from` may come up when
                // `from` is longer than a key ("after this key").
                if until_of(&key) > at && row.since <= at && key[6..split] >= *from {
                    found.push((key.slice(6..split), row));
                }
            } else if row.since <= at {
                found.push((key.slice(5..), row));
            }
        }
        Ok(found)
    }
}

/// A row of history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PastRow {
    /// The row.
    pub row: Row,
    /// Its key and, behind it, until when it held.
    pub place: Bytes,
}

impl PastRow {
    /// The key, without table and volume.
    pub fn key(&self) -> &[u8] {
        self.place.split_last_chunk::<8>().map_or(&[], |(key, _)| key)
    }

    /// The version from which on it no longer held.
    pub fn until(&self) -> Version {
        self.place.last_chunk::<8>().map_or(Version::ZERO, |until| Version(u64::from_be_bytes(*until)))
    }
}

/// A range read a page at a time.
struct Pages<'r, R> {
    reads: &'r R,
    from: Bytes,
    to: Bytes,
    page: usize,
    buffer: std::collections::VecDeque<(Bytes, Bytes)>,
    end: bool,
}

impl<'r, R: Reads> Pages<'r, R> {
    fn new(reads: &'r R, from: Bytes, to: Bytes, page: usize) -> Self {
        Pages { reads, from, to, page, buffer: Default::default(), end: false }
    }

    fn peek(&mut self) -> Result<Option<&(Bytes, Bytes)>, ReadStop> {
        if self.buffer.is_empty() && !self.end {
            let pairs = self.reads.scan(&self.from, &self.to, self.page)?;
            self.end = pairs.len() < self.page;
            if let Some((key, _)) = pairs.last() {
                let mut after = key.to_vec();
                after.push(0);
                self.from = after.into();
            }
            self.buffer = pairs.into();
        }
        Ok(self.buffer.front())
    }

    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadStop> {
        self.peek()?;
        Ok(self.buffer.pop_front())
    }
}

/// The first key after every key that starts with `prefix` (which is not all 0xff: its first byte is a table).
pub(crate) fn successor(prefix: &[u8]) -> Bytes {
    let mut next = prefix.to_vec();
    while let Some(last) = next.pop() {
        if last < u8::MAX {
            next.push(last + 1);
            break;
        }
    }
    next.into()
}
