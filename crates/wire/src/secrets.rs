//! Secrets at rest: a key in a file for its owner only, and texts that are sealed with it (AES-256-GCM).
//!
//! What it is for: a copy of a database, of one file or of a log gives no secret away. Who has the folder with the
//! key has the secrets; a server that starts without a person's doing must have both.

use crate::tls::write_secret;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use data_encoding::{BASE64, HEXLOWER};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The key's file in the folder of a server.
pub const KEY_FILE: &str = "secrets.key";
const KEY_BYTES: usize = 32;
/// First byte of what is sealed: AES-256-GCM, then the nonce, then the sealed text with its tag.
const FORMAT_1: u8 = 1;

/// Why a secret cannot be sealed or opened.
#[derive(Debug, Error)]
pub enum SecretsError {
    /// The key's file.
    #[error("key file {path}: {reason}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Another key sealed it, or for another owner, or it is damaged.
    #[error(
        "a secret cannot be opened with {path}: restore the file that it was sealed with, or give the secret anew"
    )]
    Sealed {
        /// The key's file.
        path: PathBuf,
    },
    /// No random numbers.
    #[error("the system gives no random numbers")]
    NoRandom,
}

/// Seals and opens. Its debug form shows no key.
pub struct SecretBox {
    key: LessSafeKey,
    path: PathBuf,
}

impl std::fmt::Debug for SecretBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretBox").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SecretBox {
    /// The key of `folder`, made if there is none. Without the old one nothing opens that was sealed with it: who has
    /// sealed secrets and finds no [`KEY_FILE`] says so.
    pub fn open(folder: &Path) -> Result<Self, SecretsError> {
        let path = folder.join(KEY_FILE);
        let refuse = |reason: String| SecretsError::KeyFile { path: path.clone(), reason };
        let bytes = match fs::read_to_string(&path) {
            Ok(text) => {
                check_mode(&path).map_err(refuse)?;
                HEXLOWER
                    .decode(text.trim().as_bytes())
                    .map_err(|e| refuse(format!("it holds no key: {e}")))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = vec![0; KEY_BYTES];
                rand::fill(&mut key).map_err(|_| SecretsError::NoRandom)?;
                write_secret(&path, format!("{}\n", HEXLOWER.encode(&key)).as_bytes())
                    .map_err(|e| refuse(format!("it cannot be written: {e}")))?;
                key
            }
            Err(error) => return Err(refuse(format!("it cannot be read: {error}"))),
        };
        let key = UnboundKey::new(&AES_256_GCM, &bytes)
            .map_err(|_| refuse("it holds no key of 32 bytes".to_owned()))?;
        Ok(SecretBox { key: LessSafeKey::new(key), path })
    }

    /// Seals `text` for `owner` (an id): opened under another owner's name, it does not open.
    pub fn seal(&self, owner: &str, text: &str) -> Result<Vec<u8>, SecretsError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SecretsError::NoRandom)?;
        let mut sealed = text.as_bytes().to_vec();
        let aad = Aad::from(owner.as_bytes());
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .map_err(|_| self.cannot())?;
        Ok([&[FORMAT_1], &nonce[..], &sealed].concat())
    }

    /// Opens what [`SecretBox::seal`] made for `owner`.
    pub fn unseal(&self, owner: &str, sealed: &[u8]) -> Result<String, SecretsError> {
        let Some((&FORMAT_1, rest)) = sealed.split_first() else { return Err(self.cannot()) };
        let Some((nonce, body)) = rest.split_first_chunk::<NONCE_LEN>() else { return Err(self.cannot()) };
        let mut body = body.to_vec();
        let aad = Aad::from(owner.as_bytes());
        let text = self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut body);
        let text = text.map_err(|_| self.cannot())?;
        String::from_utf8(text.to_vec()).map_err(|_| self.cannot())
    }

    /// [`SecretBox::seal`] as text, for JSON.
    pub fn seal_text(&self, owner: &str, text: &str) -> Result<String, SecretsError> {
        self.seal(owner, text).map(|sealed| BASE64.encode(&sealed))
    }

    /// [`SecretBox::unseal`] of text.
    pub fn unseal_text(&self, owner: &str, sealed: &str) -> Result<String, SecretsError> {
        self.unseal(owner, &BASE64.decode(sealed.as_bytes()).map_err(|_| self.cannot())?)
    }

    fn cannot(&self) -> SecretsError {
        SecretsError::Sealed { path: self.path.clone() }
    }
}

fn check_mode(path: &Path) -> Result<(), String> {
    let mode = fs::metadata(path).map_err(|e| format!("it cannot be looked at: {e}"))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(format!(
            "others may read it (mode {:o}): chmod 600, and consider its secrets as known",
            mode & 0o777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_again_after_a_restart_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let sealed = SecretBox::open(folder.path()).unwrap().seal("store-1", "hunter2").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"hunter2"));
        let again = SecretBox::open(folder.path()).unwrap();
        assert_eq!(again.unseal("store-1", &sealed).unwrap(), "hunter2");
        assert!(again.unseal("store-2", &sealed).is_err());
        for i in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[i] ^= 1;
            assert!(again.unseal("store-1", &damaged).is_err(), "byte {i}");
            assert!(again.unseal("store-1", &sealed[..i]).is_err(), "cut at {i}");
        }
        let text = again.seal_text("store-1", "hunter2").unwrap();
        assert_eq!(again.unseal_text("store-1", &text).unwrap(), "hunter2");
        assert_ne!(again.seal_text("store-1", "hunter2").unwrap(), text, "a nonce is used once");
    }

    #[test]
    fn a_key_that_is_another_open_to_others_or_broken_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let sealed = SecretBox::open(folder.path()).unwrap().seal("o", "hunter2").unwrap();
        fs::remove_file(folder.path().join(KEY_FILE)).unwrap();
        let another = SecretBox::open(folder.path()).unwrap().unseal("o", &sealed).unwrap_err().to_string();
        assert!(another.contains(KEY_FILE), "{another}");
        SecretBox::open(folder.path()).unwrap();
        let path = folder.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let open = SecretBox::open(folder.path()).unwrap_err().to_string();
        assert!(open.contains("mode 640"), "{open}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for broken in ["", "ab", "no hex at all"] {
            fs::write(&path, broken).unwrap();
            assert!(SecretBox::open(folder.path()).is_err(), "{broken}");
        }
        assert!(format!("{:?}", SecretBox::open(&folder.path().join("none"))).contains("cannot be written"));
    }
}
