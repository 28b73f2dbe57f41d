//! Frames on their way to one client: encoded where they arise, written together in one piece.

use bytes::BytesMut;
use chronofs_wire::frame::{self, FrameError};
use serde::Serialize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A client that lets so much pile up is cut off. One that keeps to the protocol asks for half as much at the most.
const PILED_UP_MAX: usize = 128 << 20;
/// With so much on its way a client is asked for nothing more: what it sends waits in the network.
const ROOM_BYTES: usize = 16 << 20;

#[derive(Default)]
struct State {
    buffer: BytesMut,
    /// Bytes that were taken out and are being written.
    writing: usize,
    /// Nothing more is taken; what is there goes out, then the connection ends.
    closing: bool,
    /// The connection ends at once.
    cut: bool,
}

/// What the writer of a connection is to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Write this.
    Write(BytesMut),
    /// End the connection.
    End,
}

/// The outbox of a connection.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    ready: Notify,
    written: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Encoding does not panic half way: postcard reports its errors.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a frame.
    pub fn push<T: Serialize>(&self, message: &T) -> Result<(), FrameError> {
        let mut state = self.lock();
        if state.closing || state.cut {
            return Ok(());
        }
        let was_empty = state.buffer.is_empty();
        frame::encode(message, &mut state.buffer)?;
        state.cut = state.buffer.len() > PILED_UP_MAX;
        drop(state);
        if was_empty {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Ends the connection once what is there is out.
    pub fn close(&self) {
        self.lock().closing = true;
        self.ready.notify_one();
    }

    /// Ends the connection at once.
    pub fn cut(&self) {
        self.lock().cut = true;
        self.ready.notify_one();
    }

    /// Waits until what is on its way is little enough to go on with the client's wishes. For one waiter.
    pub async fn room(&self) {
        loop {
            {
                let state = self.lock();
                if state.buffer.len() + state.writing < ROOM_BYTES || state.cut {
                    return;
                }
            }
            self.written.notified().await;
        }
    }

    /// Waits for something to do; what was given out before is written then. Cancelling loses nothing.
    pub async fn next(&self) -> Next {
        self.lock().writing = 0;
        self.written.notify_one();
        loop {
            {
                let mut state = self.lock();
                if state.cut {
                    return Next::End;
                }
                if !state.buffer.is_empty() {
                    state.writing = state.buffer.len();
                    return Next::Write(std::mem::take(&mut state.buffer));
                }
                if state.closing {
                    return Next::End;
                }
            }
            self.ready.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn queued_frames_go_out_in_one_piece_and_then_the_connection_ends() {
        let outbox = Outbox::default();
        outbox.push(&1u8).unwrap();
        outbox.push(&2u8).unwrap();
        outbox.close();
        outbox.push(&3u8).unwrap();
        assert_eq!(outbox.next().await, Next::Write(BytesMut::from(&[0, 0, 0, 1, 1, 0, 0, 0, 1, 2][..])));
        assert_eq!(outbox.next().await, Next::End);
    }

    #[tokio::test]
    async fn a_cut_does_not_wait_for_what_is_queued() {
        let outbox = Outbox::default();
        outbox.push(&1u8).unwrap();
        outbox.cut();
        assert_eq!(outbox.next().await, Next::End);
    }
}
