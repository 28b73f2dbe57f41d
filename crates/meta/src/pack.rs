//! Puts staged slices of a volume together into an object. Stored bytes are checked on the way, never opened.

use crate::machine::{PACK_SLICES_MAX, PackJob, Packed, SharedView};
use bytes::Bytes;
use chronofs_blocks::object::{Entry, ObjectWriter};
use chronofs_engine::{ReadStop, View};
use chronofs_namespace::rows::Staged;
use std::sync::Arc;

/// The object for a job, and what lies in it. Slices whose bytes are damaged stay where they are.
pub fn build_pack(job: &PackJob, view: Arc<dyn View>) -> Result<(Bytes, Packed), String> {
    let reads = SharedView(view);
    let found = chronofs_namespace::staged_slices(
        &reads,
        job.index,
        job.from.clone(),
        job.bytes_max,
        PACK_SLICES_MAX,
    );
    let (found, next) = found.map_err(|stop| match stop {
        ReadStop::Failed(error) => error.to_string(),
        ReadStop::Need(_) => "the view has not all rows".to_owned(),
    })?;
    let capacity = found.iter().map(|(_, row)| row.bytes.len() + 64).sum();
    let mut writer = ObjectWriter::new(job.volume, job.object, capacity);
    let mut slices = Vec::with_capacity(found.len());
    for (id, row) in found {
        let seal = row.seal(id);
        let Staged { ino, block, offset, len, bytes, .. } = row;
        if let Err(error) = chronofs_blocks::seal::verify(&seal, &bytes) {
            tracing::error!(%ino, block, slice = %id, "staged bytes are damaged and stay where they are: {error}");
            continue;
        }
        slices.push((id, writer.push(Entry { ino, at: 0, block, offset, len, seal }, &bytes)));
    }
    Ok((writer.finish(), Packed { slices, next }))
}
