//! FoundationDB's cluster file: `description:id@coordinator,coordinator`, with comments after `#`.

use crate::name::Address;
use std::fmt;
use std::str::FromStr;

/// What a cluster file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterFile {
    /// The cluster's name.
    pub description: String,
    /// What tells it from another of that name.
    pub id: String,
    /// Where its coordinators are.
    pub coordinators: Vec<Coordinator>,
}

/// Where a coordinator is, and how it is talked to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coordinator {
    /// Where.
    pub address: Address,
    /// Over TLS.
    pub tls: bool,
}

impl FromStr for ClusterFile {
    type Err = String;

    fn from_str(text: &str) -> Result<ClusterFile, String> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let said: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        let [line] = said[..] else {
            return Err(format!("it has {} lines that say something, not 1", said.len()));
        };
        // Not word for word: whoever names a file that is none should not learn what is in it.
        let shape = || "its line is not description:id@host:port,...".to_owned();
        let (name, coordinators) = line.split_once('@').ok_or_else(shape)?;
        let (description, id) = name.split_once(':').ok_or_else(shape)?;
        let word =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !word(description) || !word(id) {
            return Err(shape());
        }
        let coordinators = coordinators.split(',').map(|text| text.trim().parse::<Coordinator>());
        let coordinators = coordinators.collect::<Result<Vec<_>, _>>()?;
        Ok(ClusterFile { description: description.to_owned(), id: id.to_owned(), coordinators })
    }
}

impl FromStr for Coordinator {
    type Err = String;

    fn from_str(text: &str) -> Result<Coordinator, String> {
        let address = text.parse().map_err(|_| "one of its coordinators is not host:port".to_owned())?;
        Ok(Coordinator { address, tls: text.ends_with(":tls") })
    }
}

impl fmt::Display for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.address, if self.tls { ":tls" } else { "" })
    }
}

/// The line that the file holds.
impl fmt::Display for ClusterFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}@", self.description, self.id)?;
        for (n, coordinator) in self.coordinators.iter().enumerate() {
            write!(f, "{}{coordinator}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_file_reads_back_as_written() {
        let line = "trial:qq8TJ7mj@127.0.0.1:4601,[fd00::1]:4602:tls,db-3.example:4603";
        let file: ClusterFile = format!("# DO NOT EDIT!\n\n  {line} # ours\n").parse().unwrap();
        assert_eq!(file.to_string(), line);
        assert_eq!((file.description.as_str(), file.id.as_str()), ("trial", "qq8TJ7mj"));
        assert_eq!(file.coordinators.iter().map(|c| c.tls).collect::<Vec<_>>(), [false, true, false]);
        for bad in [
            "",
            "# nothing",
            "a:b@",
            "a@127.0.0.1:1",
            ":b@127.0.0.1:1",
            "a:b@x",
            "a:b@1.1.1.1:1\nc:d@1.1.1.1:1",
        ] {
            assert!(bad.parse::<ClusterFile>().is_err(), "{bad}");
        }
    }
}
