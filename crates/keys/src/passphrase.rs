//! Passphrases, and how a key follows from one: Argon2id (RFC 9106), with salt and parameters that are no secret.
//!
//! Who keeps salt and parameters may be an adversary, and the key's use tells a right guess from a wrong one. So no parameters
//! are followed that make guessing cheaper than those that this program writes, nor any that would take all of the memory.

use crate::error::Error;
use crate::secret::{SecretKey, read_private};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::rand;
use serde::{Deserialize, Serialize};
use std::path::Path;
use zeroize::{Zeroize, Zeroizing};

/// What is written: the second choice of RFC 9106, section 4, for all machines: 64 MiB, three passes, four lanes.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// The most that is followed.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 16;
const SALT_LEN: usize = 16;
/// The fewest characters of a new one.
const CHARACTERS_MIN: usize = 8;
/// The most bytes of one: a file that is longer is another file.
const BYTES_MAX: usize = 4096;

/// What somebody knows by heart. Its debug form shows nothing of it, and it is wiped when it goes.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

impl PartialEq for Passphrase {
    fn eq(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }
}

impl Eq for Passphrase {}

impl Passphrase {
    /// One as it was typed or found; the end of the line is no part of it.
    pub fn new(text: Zeroizing<String>) -> Result<Self, Error> {
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return Err(Error::TooShort(CHARACTERS_MIN));
        }
        if line.len() > BYTES_MAX {
            return Err(Error::TooLong(BYTES_MAX));
        }
        Ok(Passphrase(Zeroizing::new(line.to_owned())))
    }

    /// From a file, which nobody but its owner may read.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = read_private(path, "")?;
        let named = |error: Error| Error::File { path: path.to_owned(), why: error.to_string() };
        Passphrase::new(text).map_err(named)
    }

    /// Whether it may be the secret of something new.
    pub fn check_new(&self) -> Result<(), Error> {
        match self.0.chars().count() < CHARACTERS_MIN {
            true => Err(Error::TooShort(CHARACTERS_MIN)),
            false => Ok(()),
        }
    }

    /// Its text. Nobody may see it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// How a key follows from a passphrase. It is no secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kdf {
    /// `argon2id`, version 1.3.
    algorithm: String,
    /// 16 random bytes in hex.
    salt: String,
    /// KiB of memory.
    memory_kib: u32,
    /// Passes over it.
    passes: u32,
    /// Lanes of it.
    lanes: u32,
}

impl Kdf {
    const ALGORITHM: &str = "argon2id";

    /// One with a salt of its own.
    pub fn draw() -> Result<Self, Error> {
        let mut salt = [0; SALT_LEN];
        rand::fill(&mut salt).map_err(|_| Error::NoRandom)?;
        Ok(Kdf::with(salt))
    }

    fn with(salt: [u8; SALT_LEN]) -> Self {
        Kdf {
            algorithm: Kdf::ALGORITHM.to_owned(),
            salt: data_encoding::HEXLOWER.encode(&salt),
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            lanes: LANES,
        }
    }

    /// The key. It takes a part of a second and as much memory as is said.
    pub fn derive(&self, passphrase: &Passphrase) -> Result<SecretKey, Error> {
        let params = self.check()?;
        let salt = data_encoding::HEXLOWER_PERMISSIVE.decode(self.salt.as_bytes()).unwrap_or_default();
        if salt.len() != SALT_LEN {
            return Err(Error::Kdf(format!("its salt is not {SALT_LEN} bytes in hex")));
        }
        let mut key = Zeroizing::new([0; 32]);
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        fill(&argon2, passphrase.0.as_bytes(), &salt, &mut key[..])?;
        Ok(SecretKey::new(*key))
    }

    fn check(&self) -> Result<Params, Error> {
        if self.algorithm != Kdf::ALGORITHM {
            return Err(Error::Kdf(format!("this program knows {}", Kdf::ALGORITHM)));
        }
        let is_followed = (MEMORY_KIB..=MEMORY_KIB_MAX).contains(&self.memory_kib)
            && (PASSES..=PASSES_MAX).contains(&self.passes)
            && (1..=LANES_MAX).contains(&self.lanes);
        if !is_followed {
            return Err(Error::Kdf(format!(
                "{} KiB, {} passes and {} lanes are not within {MEMORY_KIB} to {MEMORY_KIB_MAX} KiB, {PASSES} to {PASSES_MAX} \
                 passes and 1 to {LANES_MAX} lanes: somebody may have made it weaker",
                self.memory_kib, self.passes, self.lanes
            )));
        }
        Params::new(self.memory_kib, self.passes, self.lanes, None).map_err(|e| Error::Kdf(e.to_string()))
    }
}

/// Argon2 in memory that is wiped.
fn fill(argon2: &Argon2<'_>, passphrase: &[u8], salt: &[u8], out: &mut [u8]) -> Result<(), Error> {
    let count = argon2.params().block_count();
    let mut blocks = Vec::new();
    // Too little memory is an answer, and no end of the program.
    blocks.try_reserve_exact(count).map_err(|e| Error::Kdf(format!("there is not memory enough: {e}")))?;
    blocks.resize(count, Block::default());
    let filled = argon2.hash_password_into_with_memory(passphrase, salt, out, &mut blocks);
    blocks.iter_mut().for_each(Zeroize::zeroize);
    filled.map_err(|e| Error::Kdf(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::{AssociatedData, ParamsBuilder};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn phrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.to_owned())).unwrap()
    }

    /// RFC 9106, section 5.
    #[test]
    fn the_vectors_of_the_rfc_come_out() {
        let params = ParamsBuilder::new()
            .m_cost(32)
            .t_cost(3)
            .p_cost(4)
            .data(AssociatedData::new(&[4; 12]).unwrap())
            .output_len(32)
            .build()
            .unwrap();
        for (algorithm, tag) in [
            (Algorithm::Argon2d, "512b391b6f1162975371d30919734294f868e3be3984f3c1a13a4db9fabe4acb"),
            (Algorithm::Argon2i, "c814d9d1dc7f37aa13f0d77f2494bda1c8de6b016dd388d29952a4c4672b6ce8"),
            (Algorithm::Argon2id, "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"),
        ] {
            let secret = [3; 8];
            let argon2 = Argon2::new_with_secret(&secret, algorithm, Version::V0x13, params.clone()).unwrap();
            let mut out = [0; 32];
            fill(&argon2, &[1; 32], &[2; 16], &mut out).unwrap();
            assert_eq!(data_encoding::HEXLOWER.encode(&out), tag, "{algorithm}");
        }
    }

    /// What was written once opens for ever. The value was computed with another implementation, that of OpenSSL:
    /// `Argon2id(salt=b"\x07"*16, length=32, iterations=3, lanes=4, memory_cost=65536)` of Python's `cryptography`.
    #[test]
    fn a_passphrase_with_its_salt_gives_the_same_key_for_ever() {
        let kdf = Kdf::with([7; SALT_LEN]);
        let text = serde_json::to_string(&kdf).unwrap();
        assert_eq!(
            text,
            "{\"algorithm\":\"argon2id\",\"salt\":\"07070707070707070707070707070707\",\"memory_kib\":65536,\"passes\":3,\
             \"lanes\":4}"
        );
        let key = serde_json::from_str::<Kdf>(&text).unwrap().derive(&phrase("correct horse")).unwrap();
        assert_eq!(key.reveal().as_str(), "b9544fd17a6791078aa071a2eb5d1e653ca9788d942f83158bb4ee9b552a2326");
        assert_ne!(Kdf::draw().unwrap().derive(&phrase("correct horse")).unwrap(), key, "a salt is drawn");
        assert_ne!(kdf.derive(&phrase("correct hors")).unwrap(), key);
    }

    #[test]
    fn parameters_that_help_to_guess_or_take_all_memory_are_not_followed() {
        let good = Kdf::with([7; SALT_LEN]);
        for bad in [
            Kdf { memory_kib: MEMORY_KIB - 1, ..good.clone() },
            Kdf { memory_kib: MEMORY_KIB_MAX + 1, ..good.clone() },
            Kdf { passes: PASSES - 1, ..good.clone() },
            Kdf { passes: PASSES_MAX + 1, ..good.clone() },
            Kdf { lanes: 0, ..good.clone() },
            Kdf { lanes: LANES_MAX + 1, ..good.clone() },
            Kdf { algorithm: "argon2i".to_owned(), ..good.clone() },
            Kdf { salt: "07".to_owned(), ..good.clone() },
            Kdf { salt: "x".repeat(32), ..good },
        ] {
            let refused = bad.derive(&phrase("correct horse")).unwrap_err();
            assert!(matches!(refused, Error::Kdf(_)), "{bad:?}");
        }
    }

    #[test]
    fn a_passphrase_is_one_line_and_shows_nothing() {
        assert_eq!(phrase("two words\n"), phrase("two words"));
        assert_eq!(phrase("two words\r\n"), phrase("two words"));
        assert_ne!(phrase("two words \n"), phrase("two words"));
        assert_eq!(format!("{:?}", phrase("two words")), "Passphrase(…)");
        assert!(Passphrase::new(Zeroizing::new("\n".to_owned())).is_err());
        assert!(Passphrase::new(Zeroizing::new("x".repeat(BYTES_MAX + 1))).is_err());
        assert!(phrase("seven c").check_new().is_err());
        assert!(phrase("eight ch").check_new().is_ok());
    }

    #[test]
    fn a_passphrase_file_is_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        fs::write(&path, "two words\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let said = Passphrase::read(&path).unwrap_err().to_string();
        assert!(said.contains("mode 644") && !said.contains("two"), "{said}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Passphrase::read(&path).unwrap(), phrase("two words"));
    }
}
