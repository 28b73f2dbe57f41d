//! The key space of operators: a few keys and values of the store itself, apart from every volume, with which a backup can
//! be tried from end to end. A change is a commit like any other; nothing is answered before it is durable, and a read
//! waits for what it has seen.
//!
//! ```text
//! 0x41 | volume 0 | key  -> 1 | flags, since, value     a pair
//! 0x42 | volume 0        -> 1 | flags, keys, bytes      what all of them come to
//! ```

use super::Machine;
use super::group::{Effect, Group, Undo};
use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::{Batch, Change, EngineError, ReadStop, Reads};
use chronofs_wire::question::{
    Blob, KEY_MAX, KeyOp, KeyRefused, KeyReply, KeyValue, RANGE_BYTES_MAX, RANGE_MAX, VALUE_MAX,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What is before every key.
const PAIRS: [u8; 5] = [0x41, 0, 0, 0, 0];
/// Where the rows of pairs end.
const PAIRS_END: [u8; 5] = [0x41, 0, 0, 0, 1];
/// Where their sum is.
const SUM: [u8; 5] = [0x42, 0, 0, 0, 0];
/// The first byte of each row.
const FORMAT: u8 = 1;

/// A pair of the key space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Pair {
    /// None known.
    flags: u16,
    /// The commit that set it.
    since: Version,
    /// The value.
    value: Bytes,
}

/// The row of what all pairs come to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct SumRow {
    /// None known.
    flags: u16,
    sum: KeySum,
}

/// What the pairs of the key space come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KeySum {
    /// Keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

trait Row: Serialize + DeserializeOwned {
    fn flags(&self) -> u16;
}

impl Row for Pair {
    fn flags(&self) -> u16 {
        self.flags
    }
}

impl Row for SumRow {
    fn flags(&self) -> u16 {
        self.flags
    }
}

enum Stop {
    Refused(KeyRefused),
    Read(ReadStop),
}

impl From<KeyRefused> for Stop {
    fn from(refused: KeyRefused) -> Stop {
        Stop::Refused(refused)
    }
}

impl From<ReadStop> for Stop {
    fn from(stop: ReadStop) -> Stop {
        Stop::Read(stop)
    }
}

impl Machine {
    /// Decides a question of the key space; [`Effect::Keyed`] brings the answer once what it rests on is durable.
    pub(super) fn key_call(&mut self, group: &mut Group, id: u64, op: &KeyOp) -> Result<(), EngineError> {
        let decided = match self.decide_key(group, op) {
            Ok(reply) => Ok(reply),
            Err(Stop::Refused(refused)) => Err(refused),
            Err(Stop::Read(stop)) => {
                self.stopped(group, stop, "the key space")?;
                Err(KeyRefused::Damaged)
            }
        };
        match decided {
            Ok(reply) if reply.version() > self.durable.0 => {
                self.keyed.push((id, reply));
                group.undo.push(Undo::Keyed);
                group.effects.push(Effect::Hurry);
            }
            decided => group.effects.push(Effect::Keyed(id, decided)),
        }
        Ok(())
    }

    /// Gives out the answers that rest on what is durable now.
    pub(super) fn keys_durable(&mut self, group: &mut Group) {
        let durable = self.durable.0;
        let ready = |(_, reply): &mut (u64, KeyReply)| reply.version() <= durable;
        let ready = self.keyed.extract_if(.., ready).map(|(id, reply)| Effect::Keyed(id, Ok(reply)));
        group.effects.extend(ready);
    }

    fn decide_key(&mut self, group: &mut Group, op: &KeyOp) -> Result<KeyReply, Stop> {
        if self.is_recovering() {
            return Err(KeyRefused::Replaying.into());
        }
        let version = self.last.0;
        match op {
            KeyOp::Get { key } => {
                check_key(key)?;
                let value = pair(&group.reads, key)?.map(|pair| Blob(pair.value));
                Ok(KeyReply::Value { version, value })
            }
            KeyOp::GetRange { begin, end, limit } => {
                let (pairs, more) = range(&group.reads, begin, end.as_ref(), *limit)?;
                Ok(KeyReply::Range { version, pairs, more })
            }
            KeyOp::Set { key, value } => {
                if value.0.len() > VALUE_MAX {
                    return Err(KeyRefused::ValueTooLarge(value.0.len() as u64).into());
                }
                self.change_key(group, key, Some(&value.0))
            }
            KeyOp::Clear { key } => self.change_key(group, key, None),
        }
    }

    /// Commits a change. Clearing what has no value is one, too: its version says since when there is certainly none.
    fn change_key(&mut self, group: &mut Group, key: &Blob, value: Option<&Bytes>) -> Result<KeyReply, Stop> {
        check_key(key)?;
        if group.full {
            return Err(KeyRefused::DiskFull.into());
        }
        let version = self.next_version(group);
        let mut sum = key_sum(&group.reads)?;
        let len = |value: &Bytes| (key.0.len() + value.len()) as u64;
        if let Some(before) = pair(&group.reads, key)? {
            (sum.keys, sum.bytes) =
                (sum.keys.saturating_sub(1), sum.bytes.saturating_sub(len(&before.value)));
        }
        let change = match value {
            Some(value) => {
                (sum.keys, sum.bytes) = (sum.keys + 1, sum.bytes + len(value));
                let most = self.config.key_bytes_max;
                if sum.bytes > most {
                    return Err(KeyRefused::SpaceFull(most).into());
                }
                Change::Put(place(key), encode(&Pair { flags: 0, since: version, value: value.clone() })?)
            }
            None => Change::Delete(place(key)),
        };
        let batch =
            Batch(vec![change, Change::Put(Bytes::from_static(&SUM), encode(&SumRow { flags: 0, sum })?)]);
        self.commit_system(group, version, batch);
        Ok(KeyReply::Committed { version: version.0 })
    }
}

/// What the pairs of the key space come to.
pub fn key_sum<R: Reads + ?Sized>(reads: &R) -> Result<KeySum, ReadStop> {
    let row = reads.get(&SUM)?;
    Ok(row.map(|row| decode::<SumRow>(&SUM, &row)).transpose()?.map_or_else(KeySum::default, |row| row.sum))
}

fn check_key(key: &Blob) -> Result<(), KeyRefused> {
    if key.0.len() > KEY_MAX { Err(KeyRefused::KeyTooLarge(key.0.len() as u64)) } else { Ok(()) }
}

fn place(key: &Blob) -> Bytes {
    [&PAIRS[..], &key.0[..]].concat().into()
}

fn pair<R: Reads + ?Sized>(reads: &R, key: &Blob) -> Result<Option<Pair>, ReadStop> {
    let place = place(key);
    reads.get(&place)?.map(|row| decode(&place, &row)).transpose()
}

fn range<R: Reads + ?Sized>(
    reads: &R,
    begin: &Blob,
    end: Option<&Blob>,
    limit: u32,
) -> Result<(Vec<KeyValue>, bool), Stop> {
    check_key(begin)?;
    end.map_or(Ok(()), check_key)?;
    if end.is_some_and(|end| end < begin) {
        return Err(KeyRefused::InvertedRange.into());
    }
    if limit == 0 || limit > RANGE_MAX {
        return Err(KeyRefused::Limit(limit).into());
    }
    let mut from = place(begin);
    let to = end.map_or_else(|| Bytes::from_static(&PAIRS_END), place);
    let (mut pairs, mut bytes) = (Vec::new(), 0);
    // One by one: a page of long values would be far more than is shown.
    while let Some((place, row)) = reads.first(&from, &to)? {
        if pairs.len() >= limit as usize || bytes >= RANGE_BYTES_MAX {
            return Ok((pairs, true));
        }
        let pair: Pair = decode(&place, &row)?;
        let key = Blob(place.slice(PAIRS.len()..));
        bytes += key.0.len() + pair.value.len();
        pairs.push(KeyValue { key, value: Blob(pair.value) });
        from = [&place[..], &[0]].concat().into();
    }
    Ok((pairs, false))
}

fn encode(row: &impl Row) -> Result<Bytes, ReadStop> {
    let written = postcard::to_extend(row, vec![FORMAT]);
    let cannot = |error| EngineError::Store(format!("a row of the key space cannot be written: {error}"));
    written.map(Bytes::from).map_err(|error| ReadStop::Failed(cannot(error)))
}

fn decode<T: Row>(place: &[u8], row: &[u8]) -> Result<T, ReadStop> {
    let problem = match row.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes::<T>(rest) {
            Ok((row, [])) if row.flags() == 0 => return Ok(row),
            Ok((_, [])) => "a newer chronofs wrote it; start the newer one",
            _ => "its bytes are not a row; run `chronofs meta verify`",
        },
        Some((&format, _)) if format > FORMAT => "a newer chronofs wrote it; start the newer one",
        _ => "its bytes are not a row; run `chronofs meta verify`",
    };
    let what = format!("row {} of the key space", place.escape_ascii());
    Err(ReadStop::Failed(EngineError::Damaged { what, detail: problem.to_owned() }))
}

/// Every row of the key space that is not as it must be, one line each.
pub fn verify_keys<R: Reads + ?Sized>(reads: &R) -> Result<Vec<String>, ReadStop> {
    let (mut faults, mut found) = (Vec::new(), KeySum::default());
    let mut from = Bytes::from_static(&PAIRS);
    while let Some((place, row)) = reads.first(&from, &PAIRS_END)? {
        let key = &place[PAIRS.len()..];
        match decode::<Pair>(&place, &row) {
            Ok(pair) => {
                found.keys += 1;
                found.bytes += (key.len() + pair.value.len()) as u64;
                if key.len() > KEY_MAX || pair.value.len() > VALUE_MAX {
                    faults.push(format!("key space: pair of {} is too long", key.escape_ascii()));
                }
            }
            Err(stop) => faults.push(format!("key space: {stop}")),
        }
        from = [&place[..], &[0]].concat().into();
    }
    match key_sum(reads) {
        Ok(sum) if sum == found => {}
        Ok(sum) => faults.push(format!("key space: its sum is {sum:?}; expected {found:?}")),
        Err(stop) => faults.push(format!("key space: {stop}")),
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        data_encoding::HEXLOWER.encode(bytes)
    }

    /// A change here is a change of what lies on disk: it needs a new format.
    #[test]
    fn rows_and_their_places_have_these_bytes() {
        let pair = Pair { flags: 0, since: Version(300), value: Bytes::from_static(b"v1") };
        let row = encode(&pair).unwrap();
        assert_eq!(
            (hex(&place(&Blob::from(&b"k"[..]))), hex(&row)),
            ("41000000006b".into(), "0100ac02027631".into())
        );
        assert_eq!(decode::<Pair>(b"k", &row).unwrap(), pair);
        let sum = SumRow { flags: 0, sum: KeySum { keys: 1, bytes: 300 } };
        assert_eq!((hex(&SUM), hex(&encode(&sum).unwrap())), ("4200000000".into(), "010001ac02".into()));
        let newer = encode(&Pair { flags: 1, ..pair }).unwrap();
        for (row, why) in [
            (&newer[..], "a newer chronofs wrote it"),
            (&[2, 0], "a newer chronofs wrote it"),
            (&row[..row.len() - 1], "not a row"),
            (&[&row[..], &[0]].concat(), "not a row"),
            (&[], "not a row"),
        ] {
            let error = decode::<Pair>(b"k", row).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
