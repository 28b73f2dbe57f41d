//! What files must hold, and what of it was acknowledged.

use super::{World, lock};
use chronofs_core::{Ino, Version};
use std::sync::Arc;
use std::sync::atomic::Ordering;

type Content = Arc<Vec<u8>>;

/// A file in the model. One client at a time writes to it.
pub(super) struct File {
    pub(super) name: String,
    pub(super) ino: Ino,
    /// Its bytes after each call that changed them.
    states: Vec<Content>,
    /// The last that was acknowledged by a close, with how often the server had lost power until it answered that.
    closed: (usize, u64),
    /// The last that was acknowledged as durable.
    durable: usize,
    /// What was acknowledged as of instants.
    pub(super) instants: Vec<(Version, usize)>,
}

impl File {
    pub(super) fn new(name: String, ino: Ino) -> File {
        let states = vec![Content::default()];
        File { name, ino, states, closed: (0, 0), durable: 0, instants: Vec::new() }
    }

    pub(super) fn latest(&self) -> Content {
        self.states.last().expect("there is always one").clone()
    }

    fn latest_index(&self) -> usize {
        self.states.len() - 1
    }

    /// What is known of it, for people.
    pub(super) fn known(&self) -> String {
        let sizes: Vec<usize> = self.states.iter().map(|state| state.len()).collect();
        format!("closed (state, cuts) {:?}, durable {}, sizes {sizes:?}", self.closed, self.durable)
    }

    pub(super) fn state(&self, index: usize) -> Content {
        self.states[index].clone()
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut content = (*self.latest()).clone();
        change(&mut content);
        self.states.push(Arc::new(content));
    }

    /// The last change did not happen.
    pub(super) fn take_back(&mut self) {
        self.states.pop();
    }
}

impl World {
    pub(super) fn file<T>(&self, n: usize, look: impl FnOnce(&mut File) -> T) -> T {
        look(&mut lock(&self.files)[n])
    }

    /// Closed by a client to which the server had answered the last change when it had lost power so often. One cut more, and what
    /// was published is not there before that client has sent it again, whatever it closes meanwhile.
    pub(super) fn closed(&self, n: usize, cuts: u64) {
        self.file(n, |file| {
            if file.closed.0 != file.latest_index() {
                file.closed = (file.latest_index(), cuts);
            }
        });
    }

    pub(super) fn durable_at(&self, n: usize, instant: Version) {
        let cuts = self.cuts.load(Ordering::Relaxed);
        self.file(n, |file| {
            file.closed = (file.latest_index(), cuts);
            file.durable = file.latest_index();
            file.instants.push((instant, file.durable));
        });
    }

    /// The first state that somebody may see who opens the file now.
    pub(super) fn oldest(&self, n: usize) -> usize {
        let cuts = self.cuts.load(Ordering::Relaxed);
        self.file(n, |file| {
            let (closed, when) = file.closed;
            // Who closed a file and died before it was durable may have lost it with the server's power.
            if when == cuts { closed.max(file.durable) } else { file.durable }
        })
    }

    /// `found` was read whole by somebody who opened the file when `oldest` was the oldest that may be seen: each byte
    /// was there in one of the states since. If the server has lost power meanwhile, so has what was only closed before.
    pub(super) fn check_live(&self, n: usize, oldest: usize, found: &[u8]) {
        let oldest = oldest.min(self.oldest(n));
        self.file(n, |file| {
            let states = &file.states[oldest.min(file.latest_index())..];
            if states.iter().any(|state| state[..] == *found) {
                return;
            }
            let (shortest, longest) = (states.iter().map(|state| state.len()).min().unwrap(), states.iter());
            let longest = longest.map(|state| state.len()).max().unwrap();
            let len = found.len();
            let name = &file.name;
            assert!(
                (shortest..=longest).contains(&len),
                "{name} has {len} bytes, not {shortest} to {longest}"
            );
            for (at, byte) in found.iter().enumerate() {
                let had = |state: &Content| state.get(at).copied().unwrap_or(0) == *byte;
                assert!(states.iter().any(had), "byte {at} of {name} is {byte}, which it never was");
            }
        });
    }

    /// A new client has taken the file over, as it found it.
    pub(super) fn taken_over(&self, n: usize, found: Vec<u8>, cuts: u64) {
        self.file(n, |file| file.states.push(Arc::new(found)));
        self.closed(n, cuts);
    }
}
