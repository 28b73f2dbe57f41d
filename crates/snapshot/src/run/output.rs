//! What a program says, with a bound: how it began and how it ended. All of it is read, for a full pipe would stop the
//! program; what lies between is only counted.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};

const HEAD: usize = 8 << 10;
const TAIL: usize = 32 << 10;

/// The start and the end of what a program said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Output {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    skipped: u64,
}

impl Output {
    /// Reads once, what is there; 0 at the end.
    pub(super) fn read_from(&mut self, pipe: &mut impl Read) -> io::Result<usize> {
        let mut buffer = [0; 16 << 10];
        let read = pipe.read(&mut buffer)?;
        self.take(&buffer[..read]);
        Ok(read)
    }

    fn take(&mut self, said: &[u8]) {
        let (head, tail) = said.split_at(said.len().min(HEAD - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend(tail);
        let over = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..over);
        self.skipped += over as u64;
    }

    /// How many bytes it said.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64 + self.skipped
    }

    /// Its last lines that hold something, at most `most`, for a message.
    #[must_use]
    pub fn last_lines(&self, most: usize) -> Vec<String> {
        let text = self.to_string();
        let mut lines: Vec<_> =
            text.lines().rev().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        lines.truncate(most);
        lines.into_iter().rev().map(str::to_owned).collect()
    }
}

/// The whole, or start and end with a line between them that says how much is missing.
impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        if self.skipped == 0 {
            return f.write_str(&String::from_utf8_lossy(&[&self.head[..], &tail].concat()));
        }
        let (head, tail) = (String::from_utf8_lossy(&self.head), String::from_utf8_lossy(&tail));
        write!(f, "{head}\n[... {} bytes ...]\n{tail}", self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_little_is_kept_and_the_ends_of_much() {
        let mut output = Output::default();
        output.take(b"one\n");
        output.take("zwölf\n\n  \n".as_bytes());
        assert_eq!(output.to_string(), "one\nzwölf\n\n  \n");
        assert_eq!(output.last_lines(1), ["zwölf"]);
        let mut much = Output::default();
        for n in 0..100_000 {
            much.take(format!("line {n}\n").as_bytes());
        }
        let text = much.to_string();
        assert!(text.starts_with("line 0\n") && text.ends_with("line 99999\n"), "{text}");
        assert!(text.len() < HEAD + TAIL + 50 && text.contains(&format!("[... {} bytes ...]", much.skipped)));
        assert_eq!(much.bytes(), (0..100_000).map(|n| format!("line {n}\n").len() as u64).sum::<u64>());
        assert_eq!(much.last_lines(2), ["line 99998", "line 99999"]);
    }
}
