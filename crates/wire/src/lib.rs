//! The protocol between clients and servers: messages, framing, sessions, and how each side knows the other.
//!
//! It may depend on `chronofs-core` alone. The body of a frame is postcard; enums only grow, at their end; the
//! hello negotiates a range of protocol versions, and a message that is not known is refused by name.
//! `tests/golden` holds the bytes of every variant, and the bodies for the admin server.

pub mod admin;
pub mod analyze;
pub mod cluster;
pub mod deploy;
pub mod frame;
pub mod http;
pub mod identity;
pub mod log;
pub mod message;
pub mod question;
pub mod secrets;
pub mod status;
pub mod tlog;
pub mod tls;
pub mod token;
