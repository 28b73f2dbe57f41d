//! The lost+found of a volume: where written bytes go whose file a restore of the metadata server has lost.

use super::meta_link::MetaLink;
use super::reply;
use crate::data::{Made, ParkedAt};
use chronofs_core::ops::{NewNode, Request};
use chronofs_core::{Attr, Caller, Errno, FileKind, Ino, Name, Version};

/// Its name in the directory that is mounted.
const LOST_FOUND: &str = "lost+found";
/// So many files that other mounts have made for the same lost one are passed over.
const OTHERS_MAX: u32 = 1000;

impl MetaLink {
    /// Makes a file for the bytes of `lost`, and one for the report, as far as they are not made.
    pub(super) async fn make_parked(&self, lost: Ino, made: &mut Made) -> Result<ParkedAt, Errno> {
        let dir = self.lost_found().await?;
        let (attr, name) = match &made.file {
            Some(file) => file.clone(),
            None => made.file.insert(self.new_file(dir, &format!("inode-{lost}"), "").await?).clone(),
        };
        let report = match &made.report {
            Some(report) => report.clone(),
            None => made.report.insert(self.new_file(dir, &name, ".txt").await?.0).clone(),
        };
        let now = Version(u64::try_from(self.connection.now_ns()).unwrap_or_default());
        let head = format!(
            "The metadata server of this volume was restored from a copy that is older than file {lost} (an inode number).\n\
             The mount {} held bytes that were written to it and not stored yet.\n\
             They are in {name}, each at the offset that it was written at; the rest of the file is not.\n\
             {now}: begun\n",
            self.connection.client_name()
        );
        Ok(ParkedAt { attr, report, path: format!("{LOST_FOUND}/{name}"), head })
    }

    async fn lost_found(&self) -> Result<Ino, Errno> {
        let root = self.connection.root();
        match self.make(root, LOST_FOUND, NewNode::Dir, 0o700).await {
            Ok(attr) => Ok(attr.ino),
            Err(Errno::EEXIST) => {
                let request = Request::Lookup { parent: root, name: name_of(LOST_FOUND)? };
                let (_, attr) = reply::attr(self.connection.call(Caller::ROOT, request).await?)?;
                // Something else of that name: what can be kept is kept beside it.
                Ok(if attr.kind == FileKind::Dir { attr.ino } else { root })
            }
            Err(errno) => Err(errno),
        }
    }

    /// A file with a name that nobody has taken: other mounts may have bytes of the same file, and a call without an answer may
    /// have made one.
    async fn new_file(&self, dir: Ino, stem: &str, end: &str) -> Result<(Attr, String), Errno> {
        for n in 0..OTHERS_MAX {
            let name = if n == 0 { format!("{stem}{end}") } else { format!("{stem}-{n}{end}") };
            match self.make(dir, &name, NewNode::File, 0o600).await {
                Err(Errno::EEXIST) => {}
                made => return made.map(|attr| (attr, name)),
            }
        }
        Err(Errno::EEXIST)
    }

    async fn make(&self, parent: Ino, name: &str, node: NewNode, mode: u16) -> Result<Attr, Errno> {
        let name = name_of(name)?;
        self.cache.naming(parent, &name);
        let request = Request::Create {
            parent,
            name: name.clone(),
            node,
            mode,
            umask: 0,
            open: false,
            exclusive: true,
        };
        let (version, attr) = reply::attr(self.connection.call(Caller::ROOT, request).await?)?;
        self.cache.changed_entry(parent, &name, version);
        Ok(attr)
    }
}

fn name_of(name: &str) -> Result<Name, Errno> {
    Name::new(name.as_bytes().to_vec())
}
