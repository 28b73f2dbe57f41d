//! Requests to a bucket that were signed by who has its credentials, for who has none.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A request that anybody may send until it ends: treat it as a secret. Its debug form shows none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRequest {
    /// With the signature in its query.
    pub url: String,
    /// Headers that must be sent with it.
    pub headers: Vec<(String, String)>,
}

impl fmt::Debug for SignedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = self.url.split('?').next().unwrap_or_default();
        write!(f, "SignedRequest({bare}?…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_of_a_signed_request_opens_nothing() {
        let url = "https://store.example/bytes/objects/1?X-Amz-Signature=abc".to_owned();
        let request = SignedRequest { url, headers: vec![("x-key".to_owned(), "abc".to_owned())] };
        assert_eq!(format!("{request:?}"), "SignedRequest(https://store.example/bytes/objects/1?…)");
    }
}
