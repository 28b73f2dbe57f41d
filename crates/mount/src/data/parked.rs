//! Written bytes of a file that is not there any more, because the metadata server was put back from a copy that is older than
//! the file. They are not dropped: they go into a file of their own in the volume's lost+found, with a report beside it, and
//! whoever has the file open is told ESTALE.

use super::file::FileData;
use super::meta::{Meta, ParkedAt};
use super::write_back::Batch;
use bytes::Bytes;
use chronofs_blocks::plan::{Content, Piece};
use chronofs_core::{Errno, Version};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where the bytes of a lost file go.
pub(super) struct Parked<M: Meta> {
    file: Arc<FileData<M>>,
    report: Arc<FileData<M>>,
    /// How long the report is.
    said: u64,
    path: String,
}

/// What never works, however often it is tried: there is no way to keep the bytes.
pub(super) fn is_hopeless(errno: Errno) -> bool {
    matches!(errno, Errno::EACCES | Errno::EPERM | Errno::EROFS)
}

impl<M: Meta> FileData<M> {
    /// Whether this answer means that the file was lost with a restore of the server.
    pub(super) fn is_lost(&self, errno: Errno) -> bool {
        matches!(errno, Errno::ENOENT | Errno::ESTALE) && self.data.meta.restored()
    }

    /// Has another file take over what a batch shows. From then on nothing more is written to this one.
    pub(super) fn park<'a>(self: &'a Arc<Self>, batch: &'a Batch) -> BoxFuture<'a, Result<(), Errno>> {
        async move {
            self.gone.store(true, Ordering::SeqCst);
            let pieces = self.left_of(batch);
            let bytes: u64 = pieces.iter().map(stored_bytes).sum();
            if pieces.is_empty() {
                return Ok(());
            }
            let mut parked = self.parked.lock().await;
            let parked = match &mut *parked {
                Some(parked) => parked,
                none => none.insert(self.new_parked().await?),
            };
            let from = pieces.iter().map(|piece| piece.offset).min().unwrap_or_default();
            let to = pieces.iter().map(|piece| piece.offset + piece.content.len()).max().unwrap_or_default();
            let now = Version(u64::try_from(self.data.meta.now_ns()).unwrap_or_default());
            parked.say(&format!("{now}: {bytes} bytes written between offsets {from} and {to}\n"));
            parked.file.adopt(pieces);
            self.data.meta.parked(self.ino, &parked.path, bytes);
            tracing::error!(
                ino = %self.ino, bytes, path = parked.path,
                "a restore of the metadata server has lost this file; what was written to it is kept"
            );
            // They are that file's from now on: a failure is tried again as with every other.
            for file in [&parked.file, &parked.report] {
                if let Err(errno) = file.write_back().await {
                    tracing::warn!(path = parked.path, %errno, "it is not stored yet; it is tried again");
                }
            }
            Ok(())
        }
        .boxed()
    }

    async fn new_parked(&self) -> Result<Parked<M>, Errno> {
        let ParkedAt { attr, report, path, head } = self.data.meta.park(self.ino).await?;
        let (file, report) = (self.data.file(&attr), self.data.file(&report));
        let mut parked = Parked { file, report, said: 0, path };
        parked.say(&head);
        Ok(parked)
    }

    /// What a truncation has left of a batch that is in front.
    fn left_of(&self, batch: &Batch) -> Vec<Piece> {
        let cut = {
            let state = self.state();
            let front = state.frozen.front().filter(|frozen| frozen.batch.seq == batch.seq);
            front.map_or(u64::MAX, |frozen| frozen.cut)
        };
        batch.overlap(0, u64::MAX, cut).map(|(offset, content)| Piece { offset, content }).collect()
    }
}

fn stored_bytes(piece: &Piece) -> u64 {
    match &piece.content {
        Content::Bytes(bytes) => bytes.len() as u64,
        Content::Hole(_) => 0,
    }
}

impl<M: Meta> Parked<M> {
    fn say(&mut self, line: &str) {
        let content = Content::Bytes(Bytes::copy_from_slice(line.as_bytes()));
        self.report.adopt(vec![Piece { offset: self.said, content }]);
        self.said += line.len() as u64;
    }
}
