//! What disaster drills share: a load that notes what was stored for good, and an exact account of what a disaster took of it.
//!
//! A drill prints lines that begin with `drill:`: how long it took until files could be read again, and what was lost.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Manifest;
use crate::model::now_ns;
use crate::process::{PATIENCE, text, wait_for};

/// Writes a new file over and over, each synced, with a copy of it elsewhere, and says when each was stored. It is a process of its
/// own: what a test starts while a server is away would wait for files that are open in the test itself.
const WRITES: &str = r#"
n=0
while [ ! -e "$1/stop" ]; do
    head -c 5000 /dev/urandom > "$1/$n"
    began=$EPOCHREALTIME
    if dd if="$1/$n" of="$0/$n" bs=64K conv=fsync status=none 2> /dev/null; then
        echo "$n ${began/[.,]/} ${EPOCHREALTIME/[.,]/}"
    else
        sleep 0.05
    fi
    n=$((n + 1))
done
"#;

/// A file of the load: it is stored for good, as `fsync` has said.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Its name.
    pub n: u64,
    /// Before it was made, nanoseconds since the epoch.
    pub began_ns: u64,
    /// After it was synced.
    pub ended_ns: u64,
}

/// Writes on and on, whatever becomes of it.
pub struct Load {
    shell: Child,
    stored: Arc<Mutex<Vec<Stored>>>,
    reader: Option<JoinHandle<()>>,
    copies: Option<tempfile::TempDir>,
}

impl Load {
    /// Begins to write into `dir`, which it makes.
    #[track_caller]
    pub fn on(dir: &Path) -> Load {
        fs::create_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let copies = tempfile::Builder::new().prefix("chronofs-load-").tempdir().unwrap();
        let mut command = Command::new("bash");
        command.args(["-c", WRITES, text(dir), text(copies.path())]);
        let mut shell = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (stored, said) = (Arc::new(Mutex::new(Vec::new())), shell.stdout.take().unwrap());
        let noted = stored.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
                let [n, began, ended] = numbers[..] else { panic!("the load says {line}") };
                let one = Stored { n, began_ns: began * 1000, ended_ns: ended * 1000 };
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(one);
            }
        });
        Load { shell, stored, reader: Some(reader), copies: Some(copies) }
    }

    fn count(&self) -> usize {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until more is stored than now.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.count();
        wait_for("the load to go on", || (self.count() > before + 5).then_some(()));
    }

    /// Ends it, and gives what it has stored.
    #[track_caller]
    pub fn end(mut self) -> Written {
        let copies = self.copies.take().unwrap();
        fs::write(copies.path().join("stop"), "").unwrap();
        wait_for("the load to end", || self.shell.try_wait().unwrap());
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        let files = std::mem::take(&mut *self.stored.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(!files.is_empty(), "there was no load");
        Written { files, copies }
    }
}

impl Drop for Load {
    /// A drill that fails takes its mount away: nobody is to be in it then.
    fn drop(&mut self) {
        if let Some(copies) = &self.copies {
            let _ = fs::write(copies.path().join("stop"), "");
        }
        let left = Instant::now();
        while matches!(self.shell.try_wait(), Ok(None)) && left.elapsed() < PATIENCE / 6 {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// What a load has stored.
pub struct Written {
    /// The files, in the order in which they were written.
    pub files: Vec<Stored>,
    copies: tempfile::TempDir,
}

impl Written {
    /// What a file has to hold.
    pub fn content(&self, file: &Stored) -> Vec<u8> {
        fs::read(self.copies.path().join(file.n.to_string())).unwrap()
    }

    /// The files that are not in `dir` as they were written. One may be cut off there, but holds nothing that was never written to it:
    /// wrong bytes are worse than none.
    #[track_caller]
    pub fn missing_in(&self, dir: &Path) -> Vec<Stored> {
        let is_there = |file: &Stored| match fs::read(dir.join(file.n.to_string())) {
            Ok(found) => {
                let content = self.content(file);
                assert!(content.starts_with(&found), "{file:?} holds other bytes than were written");
                found == content
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => panic!("{}: {error}", dir.join(file.n.to_string()).display()),
        };
        self.files.iter().filter(|file| !is_there(file)).copied().collect()
    }
}

/// A disaster that has just happened.
pub struct Drill {
    name: &'static str,
    since: Instant,
    since_ns: u64,
}

impl Drill {
    /// It has happened now.
    pub fn struck(name: &'static str) -> Drill {
        Drill { name, since: Instant::now(), since_ns: now_ns() }
    }

    /// Prints a line of its report.
    pub fn says(&self, what: &str) {
        what.trim().lines().for_each(|line| println!("drill: {}: {line}", self.name));
    }

    /// Prints the time to recovery: it is over with this.
    pub fn recovered(&self, what: &str) {
        self.says(&format!("{what} {:.1} s after the disaster", self.since.elapsed().as_secs_f64()));
    }

    /// Says what is not in `dir` of what the load has stored. Nothing may be lost but what was stored after `held_ns`, the last instant
    /// that the copy holds from which it was recovered, and before the disaster; without one nothing at all.
    #[track_caller]
    pub fn account(&self, written: &Written, dir: &Path, held_ns: Option<u64>) -> Vec<Stored> {
        let missing = written.missing_in(dir);
        for file in &missing {
            let held = held_ns.is_none_or(|held_ns| file.ended_ns <= held_ns);
            assert!(!held, "{}: {file:?} is lost, which was held until {held_ns:?}", self.name);
            assert!(file.began_ns < self.since_ns, "{}: {file:?} is lost, which came later", self.name);
        }
        let all = written.files.len();
        match (missing.is_empty(), held_ns) {
            (false, Some(held_ns)) => self.says(&format!(
                "lost: {} of {all} files that were stored under load, all of them in the {:.3} s between what the copy holds and \
                 the disaster",
                missing.len(),
                Duration::from_nanos(self.since_ns.saturating_sub(held_ns)).as_secs_f64()
            )),
            _ => self.says(&format!("lost: none of the {all} files that were stored under load")),
        }
        missing
    }

    /// Compares a tree with what it has to be, and says what is lost of it: nothing.
    #[track_caller]
    pub fn is_whole(&self, what: &str, expected: &Manifest, found: &Manifest) {
        expected.assert_same(found, &format!("{}: {what}", self.name));
        self.says(&format!("lost: nothing of {what} ({} names)", expected.0.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_absent_or_cut_off_is_missing_and_one_of_other_bytes_fails_the_drill() {
        let (copies, found) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = [0, 1, 2, 3].map(|n| Stored { n, began_ns: 1, ended_ns: 2 }).to_vec();
        files.iter().for_each(|file| fs::write(copies.path().join(file.n.to_string()), "written").unwrap());
        for (n, content) in [("0", "written"), ("1", ""), ("2", "writ")] {
            fs::write(found.path().join(n), content).unwrap();
        }
        let written = Written { files, copies };
        let missing: Vec<u64> = written.missing_in(found.path()).iter().map(|file| file.n).collect();
        assert_eq!(missing, [1, 2, 3]);
        fs::write(found.path().join("3"), "writter").unwrap();
        let look = std::panic::AssertUnwindSafe(|| written.missing_in(found.path()));
        assert!(std::panic::catch_unwind(look).is_err(), "other bytes count as lost");
    }
}
