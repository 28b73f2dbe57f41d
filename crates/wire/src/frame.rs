//! Framing: a length (u32, big-endian, of what follows) and a postcard body.
//!
//! Writers coalesce: encode all queued messages into one buffer and write it once.

use crate::message::FRAME_MAX;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The connection failed or ended inside a frame.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// The frame is longer than [`FRAME_MAX`], or than the reader allows.
    #[error("a frame of {len} bytes is over the limit of {max}")]
    TooLong {
        /// Length of the body.
        len: usize,
        /// What it may be at most.
        max: usize,
    },
    /// The body is not a message of this protocol.
    #[error(
        "a frame of {len} bytes is no message of this protocol: {source}; do both sides speak one version?"
    )]
    Unknown {
        /// Length of the body.
        len: usize,
        /// What postcard found.
        source: postcard::Error,
    },
}

/// Appends `message` as a frame to `out`. On an error `out` is as before.
pub fn encode<T: Serialize>(message: &T, out: &mut BytesMut) -> Result<(), FrameError> {
    let start = out.len();
    out.put_u32(0);
    let mut body = out.split_off(start + 4).writer();
    let written = postcard::to_io(message, &mut body).map(drop);
    let body = body.into_inner();
    let len = body.len();
    if let Err(source) = written {
        out.truncate(start);
        return Err(FrameError::Unknown { len, source });
    }
    if len > FRAME_MAX {
        out.truncate(start);
        return Err(FrameError::TooLong { len, max: FRAME_MAX });
    }
    out[start..start + 4].copy_from_slice(&(len as u32).to_be_bytes());
    out.unsplit(body);
    Ok(())
}

/// How much is read at once, unless a frame is longer.
const READ_BYTES: usize = 64 << 10;

/// Reads frames from a connection through a buffer of its own.
pub struct FrameReader<R> {
    input: R,
    buffer: BytesMut,
    /// Bytes of the frames given out since they were last asked for.
    given: usize,
    max: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `input`.
    pub fn new(input: R) -> Self {
        FrameReader { input, buffer: BytesMut::with_capacity(READ_BYTES), given: 0, max: FRAME_MAX }
    }

    /// No frame may be longer from now on: less than [`FRAME_MAX`] for those of whom nothing is known yet.
    pub fn set_max(&mut self, max: usize) {
        self.max = max.min(FRAME_MAX);
    }

    /// Bytes of the frames given out since the last time this was asked.
    pub fn take_given(&mut self) -> usize {
        std::mem::take(&mut self.given)
    }

    /// The next message, or `None` when the connection ended between frames. Cancelling loses nothing.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        loop {
            if let Some(body) = self.take_buffered()? {
                let len = body.len();
                return postcard::from_bytes(&body)
                    .map(Some)
                    .map_err(|source| FrameError::Unknown { len, source });
            }
            // No more than the frame that has begun and a little: what lies in the buffer is in nobody's count.
            let wanted = self.missing().max(READ_BYTES);
            self.buffer.reserve(wanted);
            if self.input.read_buf(&mut (&mut self.buffer).limit(wanted)).await? == 0 {
                let clean = self.buffer.is_empty();
                return if clean {
                    Ok(None)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
    }

    /// A whole frame that is in the buffer already, so that a server can take all that has come at once.
    fn take_buffered(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(prefix) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > self.max {
            return Err(FrameError::TooLong { len, max: self.max });
        }
        if self.buffer.len() < 4 + len {
            return Ok(None);
        }
        self.buffer.advance(4);
        self.given += 4 + len;
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// Bytes that the frame in the buffer still lacks.
    fn missing(&self) -> usize {
        let prefix = self.buffer.first_chunk::<4>();
        prefix
            .map_or(0, |prefix| (4 + u32::from_be_bytes(*prefix) as usize).saturating_sub(self.buffer.len()))
    }

    /// The next message if all of it has been received already.
    pub fn try_next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(body) = self.take_buffered()? else { return Ok(None) };
        let len = body.len();
        postcard::from_bytes(&body).map(Some).map_err(|source| FrameError::Unknown { len, source })
    }
}
