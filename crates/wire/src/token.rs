//! Tokens: one printable word that says who somebody is, where the admin server is, and how to know it.
//!
//! Layout: `chronofs1_` and base64url (no padding) of: kind (1 byte), id (16), secret (32), SHA-256 of the admin
//! server's certificate (32), address of the admin server (the rest), and the first 4 bytes of the SHA-256 of all
//! before, so that a token that was cut or mistyped is known as such without asking anybody.

use crate::identity::{NoRandom, Secret, Sha256};
use data_encoding::BASE64URL_NOPAD;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use uuid::Uuid;

const PREFIX: &str = "chronofs1_";
const FIXED: usize = 1 + 16 + 32 + 32;
const CHECK: usize = 4;

/// What a token is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TokenKind {
    /// An account of the admin server: `configure`.
    Account,
    /// A metadata store: the metadata server that serves it.
    MetadataStore,
    /// A volume, or a part of it: mounts.
    Volume,
    /// A log server: what keeps copies of logs for metadata servers.
    LogServer,
}

impl TokenKind {
    fn byte(self) -> u8 {
        match self {
            TokenKind::Account => b'a',
            TokenKind::MetadataStore => b'm',
            TokenKind::Volume => b'v',
            TokenKind::LogServer => b't',
        }
    }
}

impl fmt::Display for TokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenKind::Account => "account",
            TokenKind::MetadataStore => "metadata store",
            TokenKind::Volume => "volume",
            TokenKind::LogServer => "log server",
        })
    }
}

/// A token. `{}` shows it whole, with its secret; `{:?}` hides the secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// What it is for.
    pub kind: TokenKind,
    /// Its id at the admin server.
    pub id: Uuid,
    /// Proves that the holder got it.
    pub secret: Secret,
    /// Where the admin server is: `host:port`.
    pub admin: String,
    /// SHA-256 of the admin server's certificate (DER).
    pub pin: Sha256,
}

impl Token {
    /// A new token with a new id and secret.
    pub fn draw(kind: TokenKind, admin: &str, pin: Sha256) -> Result<Self, NoRandom> {
        Ok(Token { kind, id: Uuid::now_v7(), secret: Secret::draw()?, admin: admin.to_owned(), pin })
    }

    /// Reads a token that must be of `kind`.
    pub fn parse_as(text: &str, kind: TokenKind) -> Result<Self, BadToken> {
        let token: Token = text.parse()?;
        if token.kind != kind {
            return Err(BadToken::Kind { wanted: kind, found: token.kind });
        }
        Ok(token)
    }

    /// What stands in the header `Authorization` of calls to the admin server.
    pub fn bearer(&self) -> String {
        format!("Bearer {}.{}", self.id.simple(), BASE64URL_NOPAD.encode(&self.secret.0))
    }
}

/// Reads what [`Token::bearer`] wrote: id and secret.
pub fn parse_bearer(header: &str) -> Option<(Uuid, Secret)> {
    let (id, secret) = header.strip_prefix("Bearer ")?.split_once('.')?;
    let secret = BASE64URL_NOPAD.decode(secret.as_bytes()).ok()?;
    Some((Uuid::try_parse(id).ok()?, Secret(secret.try_into().ok()?)))
}

/// Why a text is not the token that is needed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadToken {
    /// It is something else.
    #[error("this is not a chronofs token: it does not begin with {PREFIX}; pass the word as it was printed")]
    Prefix,
    /// It is damaged.
    #[error("the token is cut or mistyped: copy it whole, it is one word")]
    Damaged,
    /// It is for something else.
    #[error("this token is for: {found}; what is needed here is one for: {wanted}")]
    Kind {
        /// What is needed.
        wanted: TokenKind,
        /// What it is.
        found: TokenKind,
    },
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(FIXED + self.admin.len() + CHECK);
        bytes.push(self.kind.byte());
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&self.pin.0);
        bytes.extend_from_slice(self.admin.as_bytes());
        let check = Sha256::of(&bytes);
        bytes.extend_from_slice(&check.0[..CHECK]);
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Token {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Self, BadToken> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(BadToken::Prefix)?;
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| BadToken::Damaged)?;
        parse_body(&bytes).ok_or(BadToken::Damaged)
    }
}

fn parse_body(bytes: &[u8]) -> Option<Token> {
    let (body, check) = bytes.split_last_chunk::<CHECK>()?;
    if Sha256::of(body).0[..CHECK] != check[..] {
        return None;
    }
    let (kind, rest) = body.split_first()?;
    let kind = match kind {
        b'a' => TokenKind::Account,
        b'm' => TokenKind::MetadataStore,
        b'v' => TokenKind::Volume,
        b't' => TokenKind::LogServer,
        _ => return None,
    };
    let (id, rest) = rest.split_first_chunk::<16>()?;
    let (secret, rest) = rest.split_first_chunk::<32>()?;
    let (pin, admin) = rest.split_first_chunk::<32>()?;
    let admin = std::str::from_utf8(admin).ok()?.to_owned();
    Some(Token { kind, id: Uuid::from_bytes(*id), secret: Secret(*secret), admin, pin: Sha256(*pin) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Token {
        Token::draw(TokenKind::Volume, "admin.example:8443", Sha256::of(b"certificate")).unwrap()
    }

    #[test]
    fn a_token_reads_back_as_printed() {
        let kinds = [TokenKind::Account, TokenKind::MetadataStore, TokenKind::Volume, TokenKind::LogServer];
        for kind in kinds {
            let token = Token { kind, ..sample() };
            assert_eq!(token.to_string().parse(), Ok(token.clone()));
            assert_eq!(format!("  {token}\n").parse(), Ok(token.clone()));
            assert_eq!(parse_bearer(&token.bearer()), Some((token.id, token.secret)));
        }
    }

    #[test]
    fn the_layout_of_a_token_does_not_change() {
        let token = Token {
            kind: TokenKind::Account,
            id: Uuid::from_bytes([1; 16]),
            secret: Secret([2; 32]),
            admin: "h:1".to_owned(),
            pin: Sha256([3; 32]),
        };
        let text = "chronofs1_YQEBAQEBAQEBAQEBAQEBAQECAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgMDAwMDAwMDAwMDAwMD\
                    AwMDAwMDAwMDAwMDAwMDAwMDaDoxANsJeA";
        assert_eq!(token.to_string(), text);
        assert_eq!(text.parse(), Ok(token));
    }

    #[test]
    fn what_is_no_token_is_refused_by_reason() {
        let text = sample().to_string();
        assert_eq!("".parse::<Token>(), Err(BadToken::Prefix));
        assert_eq!("secret".parse::<Token>(), Err(BadToken::Prefix));
        assert_eq!("chronofs1_".parse::<Token>(), Err(BadToken::Damaged));
        assert_eq!(text[..text.len() - 1].parse::<Token>(), Err(BadToken::Damaged));
        assert_eq!(format!("{text}A").parse::<Token>(), Err(BadToken::Damaged));
        let wrong = Token::parse_as(&text, TokenKind::Account);
        assert_eq!(wrong, Err(BadToken::Kind { wanted: TokenKind::Account, found: TokenKind::Volume }));
    }

    #[test]
    fn no_debug_output_holds_the_secret() {
        assert!(format!("{:?}", sample()).contains("hidden"));
    }

    proptest! {
        #[test]
        fn one_changed_character_is_always_found(at in 10usize..140, with in "[A-Za-z0-9_-]") {
            let text = sample().to_string();
            prop_assume!(at < text.len() && text[at..=at] != with[..]);
            let changed = format!("{}{with}{}", &text[..at], &text[at + 1..]);
            prop_assert!(changed.parse::<Token>().is_err());
        }
    }
}
