//! Mutations that were answered but are not durable yet.
//!
//! After a power cut the server may have lost the end of what it applied. Every client keeps what it was answered,
//! in version order, until the server says that it is durable, and sends it again when asked.

use chronofs_core::Version;
use chronofs_core::ops::{Replayed, Request};
use std::collections::{BTreeMap, BTreeSet};

/// Answered mutations by version, and by id for those that changed nothing and were answered with the version before.
#[derive(Debug, Default)]
pub(crate) struct ReplayBuffer {
    kept: BTreeMap<(Version, u64), Replayed>,
    durable: Version,
    /// About how many bytes `kept` takes.
    bytes: usize,
}

/// About how many bytes one frame of replayed calls may hold.
const CHUNK_BYTES_MAX: usize = 4 << 20;

impl ReplayBuffer {
    /// Keeps `call` unless it is durable already.
    pub(crate) fn keep(&mut self, call: Replayed) {
        if call.version > self.durable {
            self.bytes += call.request.weight();
            if let Some(before) = self.kept.insert((call.version, call.id), call) {
                self.bytes -= before.request.weight();
            }
        }
    }

    /// Everything up to `version` survives a power cut: it need not be kept.
    pub(crate) fn durable(&mut self, version: Version) {
        self.durable = self.durable.max(version);
        while let Some(first) = self.kept.first_entry().filter(|first| first.key().0 <= self.durable) {
            self.bytes -= first.remove().request.weight();
        }
    }

    /// What is kept, oldest first, cut into frames of bounded size. At least one chunk, which may be empty.
    pub(crate) fn chunks(&self) -> Vec<Vec<Replayed>> {
        let mut chunks = vec![Vec::new()];
        let mut bytes = 0;
        for call in self.kept.values() {
            let size = call.request.weight();
            if bytes + size > CHUNK_BYTES_MAX && bytes > 0 {
                chunks.push(Vec::new());
                bytes = 0;
            }
            bytes += size;
            if let Some(chunk) = chunks.last_mut() {
                chunk.push(call.clone());
            }
        }
        chunks
    }

    /// Takes out everything: the session that it belongs to is over.
    pub(crate) fn take_all(&mut self) -> Vec<Replayed> {
        self.bytes = 0;
        std::mem::take(&mut self.kept).into_values().collect()
    }

    /// Takes out the calls `ids`, as far as they are kept.
    pub(crate) fn take(&mut self, ids: &BTreeSet<u64>) -> Vec<Replayed> {
        let taken: Vec<Replayed> =
            self.kept.extract_if(.., |(_, id), _| ids.contains(id)).map(|(_, call)| call).collect();
        self.bytes -= taken.iter().map(|call| call.request.weight()).sum::<usize>();
        taken
    }

    /// What they ask for.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &Request> {
        self.kept.values().map(|call| &call.request)
    }

    /// How many calls are kept.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// About how many bytes they take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::Caller;
    use chronofs_core::ops::Request;
    use proptest::prelude::*;

    fn call(version: u64) -> Replayed {
        Replayed {
            id: version,
            version: Version(version),
            caller: Caller::ROOT,
            request: Request::Grant { count: version },
            made: None,
            found: false,
        }
    }

    fn versions(buffer: &ReplayBuffer) -> Vec<u64> {
        buffer.chunks().concat().iter().map(|call| call.version.0).collect()
    }

    #[test]
    fn what_is_durable_is_not_kept_and_the_rest_keeps_its_order() {
        let mut buffer = ReplayBuffer::default();
        for version in [7, 3, 9, 5] {
            buffer.keep(call(version));
        }
        assert_eq!(versions(&buffer), [3, 5, 7, 9]);
        buffer.durable(Version(5));
        assert_eq!(versions(&buffer), [7, 9]);
        buffer.durable(Version(4));
        assert_eq!(versions(&buffer), [7, 9], "durable never goes back");
        buffer.keep(call(5));
        assert_eq!(versions(&buffer), [7, 9], "an answer that arrives late may be durable already");
        buffer.durable(Version::MAX);
        assert_eq!((buffer.len(), buffer.bytes()), (0, 0));
    }

    #[test]
    fn a_call_that_changed_nothing_does_not_push_out_the_one_whose_version_it_was_answered_with() {
        let mut buffer = ReplayBuffer::default();
        buffer.keep(call(7));
        buffer.keep(Replayed { id: 8, ..call(7) });
        assert_eq!(buffer.chunks().concat().iter().map(|call| call.id).collect::<Vec<_>>(), [7, 8]);
        buffer.durable(Version(7));
        assert_eq!((buffer.len(), buffer.bytes()), (0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn chunks_hold_everything_in_order_whatever_was_kept(
            kept in proptest::collection::btree_set(1u64..10_000, 0..3000), durable in 0u64..10_000,
        ) {
            let mut buffer = ReplayBuffer::default();
            for &version in &kept {
                buffer.keep(call(version));
            }
            buffer.durable(Version(durable));
            let expected: Vec<u64> = kept.into_iter().filter(|&version| version > durable).collect();
            let bytes = expected.len() * Request::Grant { count: 0 }.weight();
            prop_assert_eq!(versions(&buffer), expected);
            prop_assert_eq!(buffer.bytes(), bytes);
        }
    }
}
