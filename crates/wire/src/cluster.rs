//! The cluster file: one line that says which cluster this is and where its coordinator (the admin server) is.
//!
//! `description:id@address[,address...]`, and comments after `#`. It is no secret and proves nothing: who answers at an
//! address is known by the pin in a token. It says which cluster is meant, so that nobody talks to another by mistake.

use crate::http::{ADMIN_PORT, parse_address, with_port};
use crate::identity::{NoRandom, random};
use crate::tls::write_whole;
use data_encoding::HEXLOWER;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// What a cluster file is called where nobody names another.
pub const CLUSTER_FILE: &str = "chronofs.cluster";
/// The header of calls to the admin server that says which cluster is meant.
pub const CLUSTER_HEADER: &str = "chronofs-cluster";
/// Code of the refusal of a call that means another cluster.
pub const WRONG_CLUSTER: &str = "wrong_cluster";

/// The longest cluster file, in bytes.
const FILE_MAX: u64 = 64 << 10;
/// The longest description, and the longest id.
const WORD_MAX: usize = 128;
/// The most addresses.
const ADDRESSES_MAX: usize = 64;

const HEADER: &str = "# Which chronofs cluster this is, and where its coordinator (the admin server) is:\n\
                      # description:id@address[,address...]. No secret; copy it to every machine of the cluster.\n";

/// The identity of a cluster: `description:id`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name of a new cluster; its id is random.
    pub fn draw(description: &str) -> Result<Self, NoRandom> {
        Ok(ClusterName(format!("{description}:{}", HEXLOWER.encode(&random::<16>()?))))
    }

    /// The part that is for people.
    pub fn description(&self) -> &str {
        self.0.split_once(':').map_or("", |(description, _)| description)
    }

    /// The part that tells it from others of its description.
    pub fn id(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, id)| id)
    }

    /// As it stands in files and headers.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClusterName {
    type Err = BadLine;
    fn from_str(text: &str) -> Result<Self, BadLine> {
        let (description, id) = text.split_once(':').ok_or(BadLine::Shape)?;
        for (what, word) in [("description", description), ("id", id)] {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            if word.is_empty() || word.len() > WORD_MAX || !word.bytes().all(plain) {
                return Err(BadLine::Word(what));
            }
        }
        Ok(ClusterName(text.to_owned()))
    }
}

/// What a cluster file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterFile {
    /// Which cluster.
    pub name: ClusterName,
    /// Where its coordinator is, `host:port`; the first that can be reached is used. Never empty.
    pub coordinators: Vec<String>,
}

/// Why a line is not that of a cluster file. Nothing of it is repeated: whoever names a file that is none should not
/// learn what is in it.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BadLine {
    /// Its parts are not there.
    #[error("it is not description:id@address[,address...]")]
    Shape,
    /// Description or id.
    #[error("its {0} is not made of 1 to {WORD_MAX} letters, digits and '_'")]
    Word(&'static str),
    /// An address.
    #[error("address {0} of it is not HOST:PORT")]
    Address(usize),
    /// Addresses.
    #[error("it names more than {ADDRESSES_MAX} addresses")]
    Addresses,
    /// An address that stands there again.
    #[error("address {0} of it was named before")]
    Twice(usize),
}

/// Why a cluster file cannot be used.
#[derive(Debug, Error)]
pub enum ClusterFileError {
    /// It could not be read or written.
    #[error("cannot {verb} cluster file {path}: {source}{}", next_step(source))]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line of it says something else.
    #[error(
        "cannot use cluster file {path}: line {line}: {reason}; copy the file anew from the admin server's folder"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: BadLine,
    },
    /// It has none or several lines that say something.
    #[error(
        "cannot use cluster file {path}: {found} of its lines say something, and just one should; copy the file anew \
         from the admin server's folder"
    )]
    Lines {
        /// The file.
        path: PathBuf,
        /// How many do.
        found: usize,
    },
}

fn next_step(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "; copy it from the admin server's folder, or name another with --cluster-file"
        }
        io::ErrorKind::PermissionDenied => "; let this user read it, or name another with --cluster-file",
        _ => "",
    }
}

impl ClusterFile {
    /// The cluster of this name, with its coordinator at `address` (the usual port unless it names one).
    pub fn new(name: ClusterName, address: &str) -> Self {
        ClusterFile { name, coordinators: vec![with_port(address, ADMIN_PORT)] }
    }

    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, ClusterFileError> {
        let failed = |source| ClusterFileError::File { verb: "read", path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > FILE_MAX {
            return Err(failed(io::Error::other(format!("it is longer than {FILE_MAX} bytes"))));
        }
        let said = |(at, line): (usize, &'_ str)| {
            let line = line.split('#').next().unwrap_or_default().trim().to_owned();
            (!line.is_empty()).then_some((at + 1, line))
        };
        let said: Vec<(usize, String)> = text.lines().enumerate().filter_map(said).collect();
        let [(at, line)] = &said[..] else {
            return Err(ClusterFileError::Lines { path: path.to_owned(), found: said.len() });
        };
        let bad = |reason| ClusterFileError::Line { path: path.to_owned(), line: *at, reason };
        line.parse().map_err(bad)
    }

    /// Reads the file at `path`, if there is one.
    pub fn find(path: &Path) -> Result<Option<Self>, ClusterFileError> {
        match Self::read(path) {
            Ok(file) => Ok(Some(file)),
            Err(ClusterFileError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the file, whole or not at all, for everybody to read.
    pub fn write(&self, path: &Path) -> Result<(), ClusterFileError> {
        write_whole(path, format!("{HEADER}{self}\n").as_bytes(), 0o644)
            .map_err(|source| ClusterFileError::File { verb: "write", path: path.to_owned(), source })
    }
}

/// The line of the file.
impl fmt::Display for ClusterFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.coordinators.join(","))
    }
}

impl FromStr for ClusterFile {
    type Err = BadLine;
    fn from_str(line: &str) -> Result<Self, BadLine> {
        let (name, addresses) = line.split_once('@').ok_or(BadLine::Shape)?;
        let name = name.parse()?;
        let mut coordinators: Vec<String> = Vec::new();
        for (n, text) in addresses.split(',').map(str::trim).enumerate() {
            if n >= ADDRESSES_MAX {
                return Err(BadLine::Addresses);
            }
            let address = parse_address(text).map_err(|_| BadLine::Address(n + 1))?;
            let address = with_port(&address, ADMIN_PORT);
            if coordinators.contains(&address) {
                return Err(BadLine::Twice(n + 1));
            }
            coordinators.push(address);
        }
        Ok(ClusterFile { name, coordinators })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn reads(text: &str) -> Result<ClusterFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        std::fs::write(&path, text).unwrap();
        ClusterFile::read(&path).map_err(|error| error.to_string().replace(path.to_str().unwrap(), "c"))
    }

    #[test]
    fn a_file_reads_back_as_written_and_everybody_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CLUSTER_FILE);
        let file = ClusterFile::new(ClusterName::draw("trial").unwrap(), "admin.example");
        assert_eq!(file.coordinators, ["admin.example:8443"]);
        assert_eq!((file.name.description(), file.name.id().len()), ("trial", 32));
        assert_eq!(ClusterFile::find(&path).unwrap(), None);
        for _ in 0..2 {
            file.write(&path).unwrap();
            assert_eq!(ClusterFile::find(&path).unwrap(), Some(file.clone()));
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn comments_and_blank_lines_are_passed_over() {
        let file =
            reads("# ours\n\n  lab:qq8TJ7mj@10.0.0.1:4601, [fd00::1]:4602,db-3.example # all of it\r\n");
        assert_eq!(file.unwrap().to_string(), "lab:qq8TJ7mj@10.0.0.1:4601,[fd00::1]:4602,db-3.example:8443");
    }

    #[test]
    fn what_is_no_cluster_file_is_refused_with_its_line_and_reason_and_not_repeated() {
        let long = "x".repeat(129);
        for (text, why) in [
            ("", "0 of its lines say something"),
            ("# nothing\n\n", "0 of its lines say something"),
            ("a:b@h:1\nc:d@h:1", "2 of its lines say something"),
            ("\nhunter2", "line 2: it is not description:id@address"),
            ("a@h:1", "line 1: it is not description:id@address"),
            (":b@h:1", "line 1: its description is not made of"),
            ("a:@h:1", "line 1: its id is not made of"),
            ("a:hunter2 b@h:1", "line 1: its id is not made of"),
            (&format!("a:{long}@h:1"), "line 1: its id is not made of"),
            ("a:b@", "line 1: address 1 of it is not HOST:PORT"),
            ("a:b@h:1,", "line 1: address 2 of it is not HOST:PORT"),
            ("a:b@h:1,hunter2:0", "line 1: address 2 of it is not HOST:PORT"),
            ("a:b@h:1,h:1", "line 1: address 2 of it was named before"),
            ("a:b@h,h:8443", "line 1: address 2 of it was named before"),
        ] {
            let error = reads(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
            assert!(error.contains("cluster file c") && error.contains("copy the file"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let missing = ClusterFile::read(Path::new("/nowhere/c")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/c") && missing.contains("--cluster-file"), "{missing}");
        let long = reads(&"#".repeat((64 << 10) + 1)).unwrap_err();
        assert!(long.contains("longer than 65536 bytes"), "{long}");
        let addresses = (0..65).map(|n| format!("h{n}:1")).collect::<Vec<_>>().join(",");
        assert!(reads(&format!("a:b@{addresses}")).unwrap_err().contains("more than 64 addresses"));
    }

    proptest! {
        #[test]
        fn any_line_that_reads_reads_back_as_shown(
            name in "[A-Za-z0-9_]{1,20}:[A-Za-z0-9_]{1,20}",
            hosts in proptest::collection::btree_set("[a-z][a-z0-9.-]{0,10}:[1-9][0-9]{0,3}", 1..6),
        ) {
            let line = format!("{name}@{}", hosts.into_iter().collect::<Vec<_>>().join(","));
            let file: ClusterFile = line.parse().unwrap();
            prop_assert_eq!(file.to_string(), line);
        }

        #[test]
        fn nothing_makes_it_panic_and_what_it_takes_is_stable(text in "\\PC{0,60}") {
            if let Ok(file) = text.parse::<ClusterFile>() {
                prop_assert_eq!(file.to_string().parse::<ClusterFile>(), Ok(file));
            }
        }
    }
}
