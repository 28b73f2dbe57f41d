//! The commit record of a snapshot as it lies outside of the coordinator's database: as `snapshots/UID` in the block stores, and
//! in the file that `snapshot describe --record` writes. Two lines: format and record as JSON, and the BLAKE3 of that line.

use crate::protocol::Record;
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;

/// The first line; optional fields may be added at its end.
#[derive(Serialize, Deserialize)]
struct Line<R> {
    format: u32,
    record: R,
}

/// Why a record cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// It is not two lines, or the second is not what the first asks for.
    #[error("it is cut short or changed, or no record of a snapshot: its checksum is wrong")]
    Checksum,
    /// A newer program made it.
    #[error("its format is {0}, and this program knows {FORMAT}; use the newer one")]
    Format(u32),
    /// It says nothing that makes sense.
    #[error("it makes no sense: {0}")]
    Content(String),
}

/// A record with its checksum.
pub fn seal(record: &Record) -> Result<Vec<u8>, RecordError> {
    let line = serde_json::to_string(&Line { format: FORMAT, record });
    let line = line.map_err(|error| RecordError::Content(error.to_string()))?;
    Ok(format!("{line}\n{}\n", blake3::hash(line.as_bytes()).to_hex()).into_bytes())
}

/// The record that was sealed.
pub fn open(bytes: &[u8]) -> Result<Record, RecordError> {
    #[derive(Deserialize)]
    struct AnyFormat {
        format: u32,
    }
    let lines = std::str::from_utf8(bytes).ok().and_then(|text| text.strip_suffix('\n')?.split_once('\n'));
    let sealed = |(line, sum): &(&str, &str)| blake3::hash(line.as_bytes()).to_hex().as_str() == *sum;
    let (line, _) = lines.filter(sealed).ok_or(RecordError::Checksum)?;
    let content = |error: serde_json::Error| RecordError::Content(error.to_string());
    match serde_json::from_str(line).map_err(content)? {
        AnyFormat { format: FORMAT } => {
            serde_json::from_str::<Line<Record>>(line).map(|line| line.record).map_err(content)
        }
        AnyFormat { format } => Err(RecordError::Format(format)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/record-1.txt");

    #[test]
    fn a_record_of_format_1_has_these_bytes() {
        if std::env::var("CHRONOFS_GOLDEN").is_ok_and(|word| word == "write") {
            std::fs::write(GOLDEN, seal(&crate::protocol::tests::record()).unwrap()).unwrap();
        }
        let golden = std::fs::read(GOLDEN).unwrap();
        let record = open(&golden).unwrap();
        assert_eq!(record.intent, crate::protocol::tests::record().intent);
        assert_eq!(record.cuts, crate::protocol::tests::record().cuts);
        assert_eq!(seal(&record).unwrap(), golden);
    }

    #[test]
    fn whatever_byte_is_changed_or_missing_it_proves_nothing() {
        let bytes = seal(&crate::protocol::tests::record()).unwrap();
        for at in 0..bytes.len() {
            assert_eq!(open(&bytes[..at]), Err(RecordError::Checksum), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(open(&changed), Err(RecordError::Checksum), "changed at {at}");
        }
        let newer = r#"{"format":2,"all":"else"}"#;
        let newer = format!("{newer}\n{}\n", blake3::hash(newer.as_bytes()).to_hex());
        assert_eq!(open(newer.as_bytes()), Err(RecordError::Format(2)));
    }
}
