//! The recorded set of FoundationDB's images (tests/data), unpacked; nearly all of it is holes, so that costs little.
// Each test program uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub const UID: &str = "de01497a344441362c2deffed56a529b";
pub const ADDRESSES: [&str; 3] = ["127.0.0.1:4601", "127.0.0.1:4602", "127.0.0.1:4603"];

/// A copy of one's own, to damage.
pub struct Recorded {
    pub folder: TempDir,
}

impl Recorded {
    pub fn new() -> Recorded {
        let folder = tempfile::Builder::new().prefix("chronofs-set-").tempdir().unwrap();
        let archive = "../snapshot/tests/data/foundationdb-7.3-snapshot-set.tar.xz";
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(archive);
        run(Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(folder.path()));
        Recorded { folder }
    }

    /// The folder named by the UID.
    pub fn set(&self) -> PathBuf {
        self.folder.path().join(UID)
    }

    pub fn image(&self, address: &str, role: &str) -> PathBuf {
        self.set().join(address).join(role)
    }

    /// A file of an image, by the start of its name.
    pub fn file(&self, address: &str, role: &str, start: &str) -> PathBuf {
        one_named(&self.image(address, role).join("files"), start)
    }
}

/// The file whose name starts so; the first of several.
pub fn one_named(folder: &Path, start: &str) -> PathBuf {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    names.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start));
    names.sort();
    names.into_iter().next().unwrap_or_else(|| panic!("no {start}* in {}", folder.display()))
}

/// What FoundationDB itself was found to need in its data folder, each from the image of its role: name and file.
pub fn right_restore(image: impl Fn(&str) -> PathBuf) -> Vec<(String, PathBuf)> {
    let mut right = Vec::new();
    for (role, wanted) in [
        ("storage", &["storage-"][..]),
        ("tlog", &["log2-", "logqueue-"]),
        ("coord", &["coordination-", "processId", "clusterId"]),
    ] {
        for entry in std::fs::read_dir(image(role)).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if wanted.iter().any(|start| name.starts_with(start)) {
                right.push((name, entry.path()));
            }
        }
    }
    right.sort();
    right
}

/// A data folder holds exactly these, byte for byte, and no more space than they do.
pub fn assert_restored(data: &Path, right: &[(String, PathBuf)]) {
    use std::os::unix::fs::MetadataExt;
    let mut names: Vec<_> = std::fs::read_dir(data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, right.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    for (name, source) in right {
        let restored = data.join(name);
        assert!(
            std::fs::read(&restored).unwrap() == std::fs::read(source).unwrap(),
            "{name} of {}",
            data.display()
        );
        let (now, then) = (std::fs::metadata(&restored).unwrap(), std::fs::metadata(source).unwrap());
        assert_eq!((now.mode(), now.uid()), (then.mode(), then.uid()), "{name}");
        assert!(
            now.blocks() <= then.blocks() + 64,
            "{name} has lost its holes: {} blocks, had {}",
            now.blocks(),
            then.blocks()
        );
    }
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
