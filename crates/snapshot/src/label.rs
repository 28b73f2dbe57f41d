//! What an image of our own servers says about itself: `chronofs-image.json` among its files, and
//! `chronofs-image.blake3` with its checksum, in the form that `b3sum --check` reads.
//!
//! A set is whole when all its labels are of one attempt, name the same nodes, and every node has an image of each of its
//! roles with just the files that its label lists.

use crate::error::Error;
use crate::manifest::text;
use crate::name::Role;
use crate::protocol::{Attempt, Cut, Node};
use crate::tree::Entry;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// The label's file.
pub const LABEL: &str = "chronofs-image.json";
/// The file of its checksum.
pub const LABEL_SUM: &str = "chronofs-image.blake3";
const FORMAT: u32 = 1;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Label {
    /// Its format, 1.
    pub format: u32,
    /// Id of the cluster.
    pub cluster: String,
    /// The attempt.
    pub attempt: Attempt,
    /// Everybody who takes part.
    pub nodes: Vec<Node>,
    /// Id of the node that the image is of.
    pub node: String,
    /// Its role.
    #[serde(with = "text")]
    pub role: Role,
    /// The epoch of the node.
    pub epoch: u64,
    /// Up to which commit its store's image and its log's go; none of a coordinator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// The files, with their checksums.
    pub files: Vec<Entry>,
}

impl Label {
    /// A label of the format that this program writes, without files.
    #[must_use]
    pub fn new(cluster: String, attempt: Attempt, nodes: Vec<Node>, node: &Node, role: Role) -> Label {
        let (epoch, node) = (node.epoch, node.id.clone());
        Label { format: FORMAT, cluster, attempt, nodes, node, role, epoch, cut: None, files: Vec::new() }
    }

    /// The length of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|entry| entry.size).sum()
    }

    /// Writes it into the image, durably. Gives its checksum.
    pub fn write(&self, image: &Path) -> Result<String, Error> {
        let unreadable =
            |why: serde_json::Error| Error::Manifest { path: image.join(LABEL), why: why.to_string() };
        let mut text = serde_json::to_vec_pretty(self).map_err(unreadable)?;
        text.push(b'\n');
        let sum = blake3::hash(&text).to_hex().to_string();
        let line = format!("{sum}  {LABEL}\n");
        for (name, bytes) in [(LABEL, &text[..]), (LABEL_SUM, line.as_bytes())] {
            let path = image.join(name);
            let written = File::create_new(&path).and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            });
            written.map_err(Error::io("write", &path))?;
        }
        File::open(image).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", image))?;
        Ok(sum)
    }

    /// The label of an image; none if it has none.
    pub fn read(image: &Path) -> Result<Option<Label>, Error> {
        Ok(Label::read_with_sum(image)?.map(|(label, _)| label))
    }

    /// The same with its checksum, which is right.
    pub fn read_with_sum(image: &Path) -> Result<Option<(Label, String)>, Error> {
        let path = image.join(LABEL);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(Error::io("read", &path))?,
        };
        let bad = |why: String| Error::Manifest { path: path.clone(), why };
        let sums = image.join(LABEL_SUM);
        let said = fs::read_to_string(&sums).map_err(Error::io("read", &sums))?;
        let sum = blake3::hash(&text).to_hex().to_string();
        if said.split_whitespace().next() != Some(sum.as_str()) {
            return Err(bad("its checksum is wrong".to_owned()));
        }
        let label: Label = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        match label.format {
            FORMAT => Ok(Some((label, sum))),
            newer => Err(bad(format!("its format is {newer}, this program knows {FORMAT}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Kind;

    fn example() -> Label {
        let node = Node {
            id: "0190".to_owned(),
            name: "store".to_owned(),
            address: "10.0.0.1:8444".to_owned(),
            epoch: 3,
            roles: vec![Role::Storage, Role::Tlog],
            copies: Vec::new(),
        };
        let uid = "c50263df28be44ebb596f5c2a849adbb".parse().unwrap();
        let attempt = Attempt { uid, number: 7 };
        let label = Label::new("c1".to_owned(), attempt, vec![node.clone()], &node, Role::Storage);
        let file = Entry {
            path: "000012.sst".to_owned(),
            kind: Kind::File,
            size: 5,
            blake3: Some("ab".to_owned()),
            target: None,
        };
        Label { cut: Some(Cut { store: 10, cut: 12 }), files: vec![file], ..label }
    }

    #[test]
    fn a_label_is_read_as_it_was_written_and_keeps_its_form() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Label::read(folder.path()).unwrap(), None);
        let sum = example().write(folder.path()).unwrap();
        assert_eq!(Label::read(folder.path()).unwrap(), Some(example()));
        assert_eq!(Label::read_with_sum(folder.path()).unwrap(), Some((example(), sum)));
        let text = fs::read_to_string(folder.path().join(LABEL)).unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/label-1.json");
        if std::env::var("CHRONOFS_GOLDEN").is_ok_and(|word| word == "write") {
            fs::write(golden, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(golden).unwrap());
    }

    #[test]
    fn a_label_with_another_byte_or_of_another_format_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        example().write(folder.path()).unwrap();
        let path = folder.path().join(LABEL);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"cut\": 12", "\"cut\": 13")).unwrap();
        let error = Label::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("its checksum is wrong"), "{error}");
        let newer = tempfile::tempdir().unwrap();
        Label { format: 2, ..example() }.write(newer.path()).unwrap();
        let error = Label::read(newer.path()).unwrap_err().to_string();
        assert!(error.contains("its format is 2"), "{error}");
    }
}
