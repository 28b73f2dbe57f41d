//! Executables that the admin server hands to machines: what is said of one, who signed that, and which one a machine takes.
//!
//! What counts is the signature of somebody whose public key the machine has from elsewhere. The admin server is a place where
//! executables lie; whoever takes it over can hold one back, and can offer an older one that was signed once, but none of
//! his own.

use crate::identity::Sha256;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::str::FromStr;
use thiserror::Error;

/// What an executable that is all components is called.
pub const WHOLE: &str = "chronofs";
/// The largest executable.
pub const RELEASE_BYTES_MAX: u64 = 1 << 30;

const WORD_MAX: usize = 64;
/// A file of a public key is not longer.
const KEY_FILE_MAX: u64 = 4096;

/// What is wrong with an executable that is offered, or with what is said of it.
#[derive(Debug, Error)]
pub enum DeployError {
    /// A word of it.
    #[error("'{word}' is no {what}: {rule}")]
    Word {
        /// What it should be.
        what: &'static str,
        /// What it is.
        word: String,
        /// How one is written.
        rule: &'static str,
    },
    /// Its size.
    #[error("an executable of {0} bytes is not possible: it has 1 byte to 1 GiB")]
    Size(u64),
    /// No public key.
    #[error("it is no public key: a public key is 64 digits of 0 to 9 and a to f")]
    NoKey,
    /// A file of a public key.
    #[error("public key {path}: {why}")]
    KeyFile {
        /// The file.
        path: String,
        /// Why it cannot be used.
        why: String,
    },
    /// Nobody has signed it.
    #[error("{name} is not signed; refused")]
    Unsigned {
        /// Its name.
        name: String,
    },
    /// Somebody else has signed it.
    #[error(
        "{name} is signed with the key {signed_with}, and this machine believes the key {believed} only; refused. If the key was \
         changed, bring the public key of the new one here by a way that you trust"
    )]
    OtherKey {
        /// Its name.
        name: String,
        /// The key that it names.
        signed_with: PublicKey,
        /// The key that is believed.
        believed: PublicKey,
    },
    /// It is not what was signed.
    #[error("the signature of {name} is wrong: it is not what the holder of the key has signed; refused")]
    Forged {
        /// Its name.
        name: String,
    },
    /// Nothing fits.
    #[error("{0}")]
    None(String),
}

/// The public half of a key that executables are signed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl FromStr for PublicKey {
    type Err = DeployError;
    fn from_str(text: &str) -> Result<Self, DeployError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| DeployError::NoKey)?;
        bytes.try_into().map(PublicKey).map_err(|_| DeployError::NoKey)
    }
}

impl PublicKey {
    /// From its file.
    pub fn read(path: &Path) -> Result<Self, DeployError> {
        let bad = |why: String| DeployError::KeyFile { path: path.display().to_string(), why };
        let length = std::fs::metadata(path).map(|found| found.len());
        let text = match length {
            Ok(length) if length > KEY_FILE_MAX => return Err(bad(DeployError::NoKey.to_string())),
            Ok(_) => std::fs::read_to_string(path),
            Err(error) => Err(error),
        };
        let hint = "; it is made with the signing key by chronofs admin deploy key, and is brought to each machine by hand, as \
                    /etc/chronofs/deploy.pub or for --public-key";
        let text = text.map_err(|error| match error.kind() {
            ErrorKind::NotFound => bad(format!("it is not there{hint}")),
            _ => bad(format!("it cannot be read: {error}")),
        })?;
        text.trim().parse().map_err(|error: DeployError| bad(error.to_string()))
    }

    /// Writes it into a new file, for everybody to read.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if path.try_exists()? {
            return Err(ErrorKind::AlreadyExists.into());
        }
        crate::tls::write_whole(path, format!("{self}\n").as_bytes(), 0o644)
    }
}

/// What is said of an executable, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Release {
    component: String,
    version: String,
    target: String,
    size: u64,
    sha256: Sha256,
}

impl Release {
    /// `component`: what it is an executable of, [`WHOLE`] for all; `target`: for what machines, as Rust names them.
    pub fn new(
        component: &str,
        version: &str,
        target: &str,
        size: u64,
        sha256: Sha256,
    ) -> Result<Self, DeployError> {
        let word = |what: &'static str, word: &str, rule: &'static str, fits: bool| match fits {
            true => Ok(word.to_owned()),
            false => Err(DeployError::Word { what, word: word.chars().take(WORD_MAX).collect(), rule }),
        };
        let made_of = |word: &str, more: &str| {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || more.as_bytes().contains(&b);
            (1..=WORD_MAX).contains(&word.len()) && word.bytes().all(plain)
        };
        let begins = |word: &str, fits: fn(&u8) -> bool| word.as_bytes().first().is_some_and(fits);
        // No '_' in the first two: a name is all three with '_' between them.
        let component_fits = made_of(component, "-") && begins(component, u8::is_ascii_lowercase);
        let version_fits = made_of(version, ".-+") && begins(version, u8::is_ascii_digit);
        let target_fits = made_of(target, "-_") && begins(target, u8::is_ascii_lowercase);
        if !(1..=RELEASE_BYTES_MAX).contains(&size) {
            return Err(DeployError::Size(size));
        }
        Ok(Release {
            component: word(
                "component",
                component,
                "it begins with a letter, and is made of up to 64 small letters, digits and -",
                component_fits,
            )?,
            version: word(
                "version",
                version,
                "it begins with a digit, as 1.2.0-rc1, and is made of up to 64 small letters, digits, . - and +",
                version_fits,
            )?,
            target: word(
                "target",
                target,
                "write it as x86_64-unknown-linux-gnu, of up to 64 small letters, digits, - and _",
                target_fits,
            )?,
            size,
            sha256,
        })
    }

    /// What it is called in the deploy folder: never a path.
    pub fn name(&self) -> String {
        format!("{}_{}_{}", self.component, self.version, self.target)
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its length.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hash of all its bytes.
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// What is signed.
    pub fn statement(&self) -> String {
        let Release { component, version, target, size, sha256 } = self;
        format!(
            "chronofs deploy 1\ncomponent {component}\nversion {version}\ntarget {target}\nsize {size}\nsha256 {sha256}\n"
        )
    }

    /// With who signed it.
    pub fn signed(&self, public_key: PublicKey, signature: &[u8; 64]) -> SignedRelease {
        SignedRelease {
            component: self.component.clone(),
            version: self.version.clone(),
            target: self.target.clone(),
            size: self.size,
            sha256: self.sha256.to_string(),
            public_key: public_key.to_string(),
            signature: HEXLOWER.encode(signature),
        }
    }
}

/// What somebody says of an executable and may have signed: nothing of it counts before [`SignedRelease::believed`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema, utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(deny_unknown_fields)]
pub struct SignedRelease {
    /// What it is an executable of; `chronofs` for all.
    pub component: String,
    /// Its version.
    pub version: String,
    /// For what machines, as `x86_64-unknown-linux-gnu`.
    pub target: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// The Ed25519 key that it is signed with, in hex.
    pub public_key: String,
    /// The signature, in hex.
    pub signature: String,
}

impl SignedRelease {
    /// What it is called, as it says itself.
    pub fn name(&self) -> String {
        format!("{}_{}_{}", self.component, self.version, self.target)
    }

    /// As a query of HTTP.
    pub fn query(&self) -> String {
        let Self { component, version, target, size, sha256, public_key, signature } = self;
        // The only character of all these that means something else there.
        let version = version.replace('+', "%2B");
        format!(
            "component={component}&version={version}&target={target}&size={size}&sha256={sha256}\
             &public_key={public_key}&signature={signature}"
        )
    }

    /// What it says, if that makes sense and is signed with the key that it names itself: that says nothing about who that is.
    pub fn checked(&self) -> Result<Release, DeployError> {
        let sha256 = self.sha256.parse().map_err(|_| DeployError::Word {
            what: "SHA-256",
            word: self.sha256.chars().take(WORD_MAX).collect(),
            rule: "write 64 lower-case hexadecimal digits",
        })?;
        let Self { component, version, target, size, .. } = self;
        let release = Release::new(component, version, target, *size, sha256)?;
        let name = release.name();
        if self.signature.is_empty() || self.public_key.is_empty() {
            return Err(DeployError::Unsigned { name });
        }
        let key: PublicKey = self.public_key.parse()?;
        let forged = || DeployError::Forged { name: name.clone() };
        let signature = HEXLOWER.decode(self.signature.as_bytes()).map_err(|_| forged())?;
        let verifier = UnparsedPublicKey::new(&ED25519, key.0);
        verifier.verify(release.statement().as_bytes(), &signature).map_err(|_| forged())?;
        Ok(release)
    }

    /// What the holder of `key` has said.
    pub fn believed(&self, key: &PublicKey) -> Result<Release, DeployError> {
        let name = self.name();
        if self.signature.is_empty() || self.public_key.is_empty() {
            return Err(DeployError::Unsigned { name });
        }
        let signed_with: PublicKey = self.public_key.parse()?;
        if signed_with != *key {
            return Err(DeployError::OtherKey { name, signed_with, believed: *key });
        }
        self.checked()
    }
}

/// The machines that this program was built for.
pub fn own_target() -> String {
    let c = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    format!("{}-unknown-linux-{c}", std::env::consts::ARCH)
}

/// Of what is offered, what `component` takes on machines of `target`: `version`, or else the highest one. What is offered for
/// the component goes before what is for all. Whether it is signed rightly is not asked: of a higher one that is not, somebody
/// should hear.
pub fn choose<'a>(
    offered: &'a [SignedRelease],
    component: &str,
    target: &str,
    version: Option<&str>,
) -> Result<&'a SignedRelease, DeployError> {
    let fits = |release: &&SignedRelease| {
        (release.component == component || release.component == WHOLE)
            && release.target == target
            && version.is_none_or(|version| release.version == version)
    };
    let by_version = |a: &&SignedRelease, b: &&SignedRelease| {
        let own = |release: &SignedRelease| release.component == component;
        compare_versions(&a.version, &b.version).then(own(a).cmp(&own(b)))
    };
    offered.iter().filter(fits).max_by(by_version).ok_or_else(|| {
        let wanted = version.map(|version| format!(" {version}")).unwrap_or_default();
        let names: Vec<String> = offered.iter().map(SignedRelease::name).collect();
        let there = match names.is_empty() {
            true => "its deploy folder is empty".to_owned(),
            false => format!("it has {}", names.join(", ")),
        };
        DeployError::None(format!(
            "the admin server has no executable of {component}{wanted} for {target}: {there}; chronofs admin deploy add puts one there"
        ))
    })
}

/// Which of two versions is the later one: numbers by their value, and what is before a release before it, as in 1.2.0-rc1.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let parts = |version: &str| {
        let version = version.split('+').next().unwrap_or_default().to_owned();
        let (main, before) = version.split_once('-').map_or((version.as_str(), None), |(m, b)| (m, Some(b)));
        (main.to_owned(), before.map(str::to_owned))
    };
    let ((main_a, before_a), (main_b, before_b)) = (parts(a), parts(b));
    let words = |a: &str, b: &str| {
        let (a, b): (Vec<&str>, Vec<&str>) = (a.split('.').collect(), b.split('.').collect());
        let differ = a.iter().zip(&b).map(|(a, b)| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            (Err(_), Err(_)) => a.cmp(b),
        });
        differ.into_iter().find(|order| order.is_ne()).unwrap_or(a.len().cmp(&b.len()))
    };
    words(&main_a, &main_b).then_with(|| match (&before_a, &before_b) {
        (None, None) => Ordering::Equal,
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(a), Some(b)) => words(a, b),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    fn key(seed: u8) -> (Ed25519KeyPair, PublicKey) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = PublicKey(pair.public_key().as_ref().try_into().unwrap());
        (pair, public)
    }

    fn release(component: &str, version: &str) -> Release {
        Release::new(component, version, "x86_64-unknown-linux-gnu", 3, Sha256::of(b"abc")).unwrap()
    }

    fn signed(release: &Release, seed: u8) -> SignedRelease {
        let (pair, public) = key(seed);
        let signature = pair.sign(release.statement().as_bytes());
        release.signed(public, signature.as_ref().try_into().unwrap())
    }

    #[test]
    fn only_what_the_holder_of_the_key_has_said_is_believed() {
        let (mine, others) = (key(1).1, key(2).1);
        let release = release(WHOLE, "1.2.3");
        let good = signed(&release, 1);
        assert_eq!(good.believed(&mine).unwrap(), release);
        assert!(matches!(good.believed(&others).unwrap_err(), DeployError::OtherKey { .. }));
        // Somebody else says that he is the holder of the key.
        let claimed = SignedRelease { public_key: mine.to_string(), ..signed(&release, 2) };
        assert!(matches!(claimed.believed(&mine).unwrap_err(), DeployError::Forged { .. }));
        let changes: [fn(&mut SignedRelease); 6] = [
            |it| it.version = "1.2.4".to_owned(),
            |it| it.component = "meta".to_owned(),
            |it| it.target = "aarch64-unknown-linux-gnu".to_owned(),
            |it| it.size += 1,
            |it| it.sha256 = Sha256::of(b"abd").to_string(),
            |it| it.signature.replace_range(..2, if it.signature.starts_with("00") { "01" } else { "00" }),
        ];
        for change in changes {
            let mut changed = good.clone();
            change(&mut changed);
            assert!(
                matches!(changed.believed(&mine).unwrap_err(), DeployError::Forged { .. }),
                "{changed:?}"
            );
        }
        let cut = SignedRelease { signature: good.signature[..126].to_owned(), ..good.clone() };
        assert!(matches!(cut.believed(&mine).unwrap_err(), DeployError::Forged { .. }));
        for unsigned in [
            SignedRelease { signature: String::new(), ..good.clone() },
            SignedRelease { public_key: String::new(), ..good },
        ] {
            assert!(matches!(unsigned.believed(&mine).unwrap_err(), DeployError::Unsigned { .. }));
            assert!(matches!(unsigned.checked().unwrap_err(), DeployError::Unsigned { .. }));
        }
    }

    #[test]
    fn a_name_is_never_a_path_and_says_one_thing_only() {
        let new = |component: &str, version: &str, target: &str, size| {
            Release::new(component, version, target, size, Sha256::of(b""))
        };
        let target = "x86_64-unknown-linux-gnu";
        assert_eq!(new("meta", "1.0.0-rc.1", target, 1).unwrap().name(), format!("meta_1.0.0-rc.1_{target}"));
        for component in ["", "..", "a/b", "a_b", "A", ".meta", "1", "a\n", &"a".repeat(65)] {
            assert!(new(component, "1", target, 1).is_err(), "{component:?}");
        }
        for version in ["", "..", "1/2", "1_2", "v1", "1 2", "1\n"] {
            assert!(new("meta", version, target, 1).is_err(), "{version:?}");
        }
        for target in ["", "../x", "_x", "x86 64"] {
            assert!(new("meta", "1", target, 1).is_err(), "{target:?}");
        }
        for size in [0, RELEASE_BYTES_MAX + 1] {
            assert!(new("meta", "1", target, size).is_err(), "{size}");
        }
    }

    #[test]
    fn the_highest_version_is_taken_and_the_components_own_before_that_of_all() {
        let offered: Vec<SignedRelease> = [
            ("chronofs", "0.9.0"),
            ("chronofs", "0.10.0"),
            ("chronofs", "0.10.0-rc1"),
            ("meta", "0.10.0"),
            ("tlog", "1.0.0"),
        ]
        .map(|(component, version)| signed(&release(component, version), 1))
        .into();
        let target = "x86_64-unknown-linux-gnu";
        let name = |component: &str, version: Option<&str>| {
            choose(&offered, component, target, version).map(SignedRelease::name)
        };
        assert_eq!(name("admin", None).unwrap(), format!("chronofs_0.10.0_{target}"));
        assert_eq!(name("meta", None).unwrap(), format!("meta_0.10.0_{target}"));
        assert_eq!(name("tlog", None).unwrap(), format!("tlog_1.0.0_{target}"));
        assert_eq!(name("meta", Some("0.9.0")).unwrap(), format!("chronofs_0.9.0_{target}"));
        let none = name("meta", Some("7")).unwrap_err().to_string();
        assert!(none.contains("meta 7 for x86_64") && none.contains("tlog_1.0.0"), "{none}");
        let none = choose(&offered, "meta", "riscv64gc-unknown-linux-gnu", None).unwrap_err().to_string();
        assert!(none.contains("riscv64gc"), "{none}");
        assert!(choose(&[], "meta", target, None).unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let rising = ["0.1", "0.1.0-alpha", "0.1.0-rc.2", "0.1.0-rc.10", "0.1.0", "0.2.0", "0.10.0", "1.0.0"];
        for (n, a) in rising.iter().enumerate() {
            for (m, b) in rising.iter().enumerate() {
                assert_eq!(compare_versions(a, b), n.cmp(&m), "{a} {b}");
            }
        }
        assert_eq!(compare_versions("1.0.0+a", "1.0.0+b"), Ordering::Equal);
    }

    #[test]
    fn a_public_key_is_kept_in_a_file_that_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deploy.pub");
        let missing = PublicKey::read(&path).unwrap_err().to_string();
        assert!(missing.contains("admin deploy key") && missing.contains("deploy.pub"), "{missing}");
        let public = key(1).1;
        public.write(&path).unwrap();
        assert_eq!(PublicKey::read(&path).unwrap(), public);
        assert!(key(2).1.write(&path).is_err());
        std::fs::write(&path, "abc").unwrap();
        assert!(PublicKey::read(&path).unwrap_err().to_string().contains("64 digits"));
    }
}
