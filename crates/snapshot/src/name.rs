//! The names that snapshots go by: the set's UID, the role of an image, the address of the server it is of.
//!
//! All three become names of folders, so a value of these types cannot leave the folder that it is put in.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// The identity of one snapshot: all its images carry it. 32 hexadecimal digits in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotUid(String);

/// A text that is no [`SnapshotUid`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a snapshot's UID: write its 32 digits of 0 to 9 and a to f, as the snapshot command printed it"
)]
pub struct InvalidUid(String);

impl SnapshotUid {
    /// The UID of these bytes; who makes a snapshot draws them at random.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> SnapshotUid {
        SnapshotUid(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotUid {
    type Err = InvalidUid;

    fn from_str(text: &str) -> Result<SnapshotUid, InvalidUid> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match text.len() == 32 && text.bytes().all(digit) {
            true => Ok(SnapshotUid(text.to_owned())),
            false => Err(InvalidUid(text.to_owned())),
        }
    }
}

impl fmt::Display for SnapshotUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What of a server an image holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Ordered keys.
    Storage,
    /// The log of commits.
    Tlog,
    /// The coordinator's own state.
    Coord,
}

/// A text that is no [`Role`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a role: write storage, tlog or coord")]
pub struct InvalidRole(String);

impl Role {
    /// All, in the order in which their images are taken.
    pub const ALL: [Role; 3] = [Role::Storage, Role::Tlog, Role::Coord];

    /// As a program is told it, and as folders are named.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Storage => "storage",
            Role::Tlog => "tlog",
            Role::Coord => "coord",
        }
    }
}

impl FromStr for Role {
    type Err = InvalidRole;

    /// `coordinator` is what FoundationDB's page calls the role that its server calls `coord`.
    fn from_str(text: &str) -> Result<Role, InvalidRole> {
        match text {
            "storage" => Ok(Role::Storage),
            "tlog" => Ok(Role::Tlog),
            "coord" | "coordinator" => Ok(Role::Coord),
            _ => Err(InvalidRole(text.to_owned())),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a server is reached: an IP address or a host's name, and a port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    host: String,
    port: u16,
}

/// A text that is no [`Address`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address: write IP:PORT or HOST:PORT, such as 10.0.0.1:4500 or [fd00::1]:4500")]
pub struct InvalidAddress(String);

impl Address {
    /// The address without its port; an IPv6 address in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    /// FoundationDB's suffix `:tls` says how to connect, not where, and is passed over.
    fn from_str(text: &str) -> Result<Address, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        let bare = text.strip_suffix(":tls").unwrap_or(text);
        let (host, port) = bare.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(invalid)?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => format!("[{}]", inner.parse::<Ipv6Addr>().map_err(|_| invalid())?),
            None => host.to_owned(),
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let named = host.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && host.bytes().all(plain);
        match named || host.starts_with('[') {
            true => Ok(Address { host, port }),
            false => Err(invalid()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_32_digits_and_nothing_else() {
        let good = "de01497a344441362c2deffed56a529b";
        assert_eq!(good.parse::<SnapshotUid>().unwrap().as_str(), good);
        for bad in [
            "",
            "de01497a",
            &good.to_uppercase(),
            &format!("{good}0"),
            &good.replace('d', "/"),
            &format!("{good} "),
        ] {
            assert!(bad.parse::<SnapshotUid>().is_err(), "{bad}");
        }
        let mut bytes = [0; 16];
        bytes[0] = 0xde;
        assert_eq!(SnapshotUid::from_bytes(bytes).as_str(), "de000000000000000000000000000000");
    }

    #[test]
    fn an_address_cannot_lead_out_of_its_folder() {
        for (text, shown) in [
            ("127.0.0.1:4601", "127.0.0.1:4601"),
            ("10.0.0.1:4500:tls", "10.0.0.1:4500"),
            ("[FD00:0::1]:4500", "[fd00::1]:4500"),
            ("node-1.example:8444", "node-1.example:8444"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            ":1",
            "a",
            "a:",
            "a:0",
            "a:70000",
            "../x:1",
            "..:1",
            "a/b:1",
            "[x]:1",
            "fd00::1:x",
            "auto:4500 ",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn roles_are_called_as_servers_call_them() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert_eq!("coordinator".parse(), Ok(Role::Coord));
        assert!("Storage".parse::<Role>().is_err());
    }
}
