//! The face to clients: TLS connections, their frames in and out, objects for those who cannot reach the store.

pub mod outbox;
