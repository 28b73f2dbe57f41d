//! Takes replies apart.

use chronofs_core::ops::Reply;
use chronofs_core::slice::PlacedSlice;
use chronofs_core::{Attr, Errno, Version};

/// A reply that does not fit its request: the server speaks another language.
pub(crate) fn unexpected(reply: &Reply) -> Errno {
    tracing::error!("the server's reply does not fit the request: {reply:?}");
    Errno::EPROTO
}

pub(crate) fn attr((version, reply): (Version, Reply)) -> Result<(Version, Attr), Errno> {
    match reply {
        Reply::Attr(attr) => Ok((version, attr)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn opened(
    (version, reply): (Version, Reply),
) -> Result<(Version, Attr, Option<Vec<PlacedSlice>>), Errno> {
    match reply {
        Reply::Opened { attr, slices } => Ok((version, attr, slices)),
        other => Err(unexpected(&other)),
    }
}
