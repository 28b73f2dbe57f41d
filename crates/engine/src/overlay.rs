//! Changes that are decided but not applied yet, laid over a view: what the next request of a group reads.

use crate::{Batch, Change, ReadStop, Reads};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A view with pending changes over it.
pub struct Overlay<R> {
    base: R,
    pending: BTreeMap<Bytes, Option<Bytes>>,
}

impl<R: Reads> Overlay<R> {
    /// `base` with nothing over it.
    pub fn new(base: R) -> Self {
        Overlay { base, pending: BTreeMap::new() }
    }

    /// Lays `batch` over what is there.
    pub fn push(&mut self, batch: &Batch) {
        for change in &batch.0 {
            match change {
                Change::Put(key, value) => self.pending.insert(key.clone(), Some(value.clone())),
                Change::Delete(key) => self.pending.insert(key.clone(), None),
            };
        }
    }
}

impl<R: Reads> Reads for Overlay<R> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadStop> {
        match self.pending.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadStop> {
        if from >= to || limit == 0 {
            return Ok(Vec::new());
        }
        let range = (Bound::Included(from), Bound::Excluded(to));
        let mut pending = self.pending.range::<[u8], _>(range).peekable();
        if pending.peek().is_none() {
            return self.base.scan(from, to, limit);
        }
        let mut merged = Vec::new();
        let mut start = Bytes::copy_from_slice(from);
        loop {
            let page = self.base.scan(&start, to, limit)?;
            let last_page = page.len() < limit;
            let next_start = page.last().map(|(key, _)| {
                let mut after = key.to_vec();
                after.push(0);
                Bytes::from(after)
            });
            for (key, value) in page {
                while let Some((pending_key, pending_value)) = pending.next_if(|(k, _)| **k < key) {
                    merged.extend(pending_value.as_ref().map(|v| (pending_key.clone(), v.clone())));
                }
                match pending.next_if(|(k, _)| **k == key) {
                    Some((_, over)) => merged.extend(over.as_ref().map(|v| (key, v.clone()))),
                    None => merged.push((key, value)),
                }
                if merged.len() >= limit {
                    merged.truncate(limit);
                    return Ok(merged);
                }
            }
            match next_start {
                Some(next) if !last_page => start = next,
                _ => break,
            }
        }
        merged.extend(pending.filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
        merged.truncate(limit);
        Ok(merged)
    }
}
