//! Written bytes of a file that is not there any more, because the metadata server was put back from a copy that is older than
//! the file. They are not dropped: they go into a file of their own in the volume's lost+found, with a report beside it, and
//! whoever has the file open is told ESTALE.
//!
//! Only a restore does that. A file that was seen after the last one, and is gone, was removed by somebody.

use super::file::{FileData, stored_bytes};
use super::meta::{Made, Meta, ParkedAt};
use super::write_back::Batch;
use bytes::Bytes;
use chronofs_blocks::plan::{Content, Piece};
use chronofs_core::{Errno, Version};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where the bytes of a lost file go.
pub(super) struct Parking<M: Meta> {
    /// Kept while it is tried again.
    made: Made,
    parked: Option<Parked<M>>,
}

struct Parked<M: Meta> {
    file: Arc<FileData<M>>,
    report: Arc<FileData<M>>,
    /// How long the report is.
    said: u64,
    path: String,
}

impl<M: Meta> Default for Parking<M> {
    fn default() -> Self {
        Parking { made: Made::default(), parked: None }
    }
}

/// What never works, however often it is tried: there is no way to keep the bytes.
pub(super) fn is_hopeless(errno: Errno) -> bool {
    matches!(errno, Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::EDQUOT)
}

impl<M: Meta> FileData<M> {
    /// Whether this answer to a publish means that the file was lost with a restore of the server.
    pub(super) fn is_lost(&self, errno: Errno) -> bool {
        errno == Errno::ENOENT && self.data.meta.restores() > self.there.load(Ordering::SeqCst)
    }

    /// The server knew the file when it was asked, after so many restores.
    pub fn is_there(&self, restores: u64) {
        self.there.fetch_max(restores, Ordering::SeqCst);
    }

    /// Has another file take over the batch in front. From then on nothing more is written to this one. Whether anything was left
    /// to be taken over.
    pub(super) fn park<'a>(self: &'a Arc<Self>, batch: &'a Batch) -> BoxFuture<'a, Result<bool, Errno>> {
        async move {
            self.gone.store(true, Ordering::SeqCst);
            let mut parking = self.parking.lock().await;
            let Some(left) = self.left_of(batch) else { return Ok(false) };
            if left.iter().all(|piece| stored_bytes(piece) == 0) {
                self.take_leave(batch, Errno::ESTALE, 0);
                return Ok(true);
            }
            let Parking { made, parked } = &mut *parking;
            let parked = match parked {
                Some(parked) => parked,
                none => none.insert(self.new_parked(made).await?),
            };
            // It may have been cut or discarded while the files were made. From here on nothing is waited for.
            let Some(pieces) = self.left_of(batch) else { return Ok(false) };
            let bytes: u64 = pieces.iter().map(stored_bytes).sum();
            self.take_leave(batch, Errno::ESTALE, bytes);
            let from = pieces.iter().map(|piece| piece.offset).min().unwrap_or_default();
            let to = pieces.iter().map(|piece| piece.offset + piece.content.len()).max().unwrap_or_default();
            let now = Version(u64::try_from(self.data.meta.now_ns()).unwrap_or_default());
            parked.file.adopt(pieces, bytes);
            parked.say(&format!("{now}: {bytes} bytes written between offsets {from} and {to}\n"));
            self.data.meta.parked(self.ino, &parked.path, bytes);
            tracing::error!(
                ino = %self.ino, bytes, path = parked.path,
                "a restore of the metadata server has lost this file; what was written to it is kept"
            );
            let (files, path) = ([parked.file.clone(), parked.report.clone()], parked.path.clone());
            drop(parking);
            // They are that file's from now on: a failure is tried again as with every other.
            for file in files {
                if let Err(errno) = file.write_back().await {
                    tracing::warn!(path, %errno, "it is not stored yet; it is tried again");
                }
            }
            Ok(true)
        }
        .boxed()
    }

    async fn new_parked(&self, made: &mut Made) -> Result<Parked<M>, Errno> {
        let ParkedAt { attr, report, path, head } = self.data.meta.park(self.ino, made).await?;
        let (file, report) = (self.data.file(&attr), self.data.file(&report));
        let mut parked = Parked { file, report, said: 0, path };
        parked.say(&head);
        Ok(parked)
    }

    /// What a truncation has left of a batch; none if it is not in front any more, for who discarded it wants nothing of it.
    fn left_of(&self, batch: &Batch) -> Option<Vec<Piece>> {
        let cut = {
            let state = self.state();
            state.frozen.front().filter(|frozen| frozen.batch.seq == batch.seq)?.cut
        };
        let left = batch.overlap(0, u64::MAX, cut);
        Some(left.map(|(offset, content)| Piece { offset, content }).collect())
    }
}

impl<M: Meta> Parked<M> {
    fn say(&mut self, line: &str) {
        let content = Content::Bytes(Bytes::copy_from_slice(line.as_bytes()));
        // A line is so little that it is not counted.
        self.report.adopt(vec![Piece { offset: self.said, content }], 0);
        self.said += line.len() as u64;
    }
}
