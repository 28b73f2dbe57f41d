//! The keys of an encrypted volume, in the memory of its mount alone.
//!
//! They are had before a session is opened: without the right secret nothing of the volume is asked for, and nothing written.
//! A data key that was made since is learnt when something that it sealed is met, with what the secret gave.

use crate::connection::{Source, Target};
use chronofs_keys::volume::Kek;
use chronofs_keys::{Error, SealedKeys, VolumeKeys, VolumeSecret};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long it is believed that a key which the admin server did not have is not there.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Why a volume cannot be opened with what was given.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "each message says what it is")]
pub enum KeyError {
    #[error(
        "the volume '{0}' is encrypted, and no key was given: name its secret with --passphrase-file FILE, --key-file FILE or \
         --passphrase (asks)"
    )]
    Missing(String),
    #[error(
        "the volume '{0}' is not encrypted, and a key was given: if it should be, somebody has made another of this name; if \
         not, leave the key away (also the variables CHRONOFS_VOLUME_KEY_FILE and CHRONOFS_VOLUME_PASSPHRASE)"
    )]
    NotEncrypted(String),
    #[error("the encrypted volume '{volume}' cannot be opened: {why}; {next}")]
    Refused { volume: String, why: Error, next: &'static str },
    #[error("the encrypted volume '{0}' cannot be opened: the admin server gave the keys of another volume")]
    OfAnother(String),
}

/// The keys of a volume, and what opens those that are made later.
pub struct KeyRing {
    now: RwLock<Arc<VolumeKeys>>,
    kek: Kek,
    source: Source,
    /// When the admin server was asked last in vain. Held while it is asked.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({:?})", self.now())
    }
}

impl KeyRing {
    /// The keys of the volume that `target` is, opened with `secret`; none if it is not encrypted. It takes a part of a
    /// second. `volume` is what people call it.
    pub(crate) fn open(
        source: &Source,
        target: &Target,
        volume: &str,
        secret: Option<&VolumeSecret>,
    ) -> Result<Option<Arc<Self>>, KeyError> {
        let (sealed, secret) = match (&target.keys, secret) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(KeyError::NotEncrypted(volume.to_owned())),
            (Some(_), None) => return Err(KeyError::Missing(volume.to_owned())),
            (Some(sealed), Some(secret)) => (sealed, secret),
        };
        let refused = |why: Error| {
            let next = match &why {
                Error::WrongSecret => "nothing was read or written; give the secret that opens it",
                Error::ByPassphrase => "use --passphrase-file FILE or --passphrase",
                Error::ByKey => "use --key-file FILE",
                _ => "nothing was read or written",
            };
            KeyError::Refused { volume: volume.to_owned(), why, next }
        };
        let sealed = SealedKeys::parse(sealed).map_err(refused)?;
        if sealed.volume() != target.volume {
            return Err(KeyError::OfAnother(volume.to_owned()));
        }
        let kek = sealed.kek(secret).map_err(refused)?;
        let keys = sealed.open(&kek).map_err(refused)?;
        Ok(Some(Arc::new(KeyRing {
            now: RwLock::new(Arc::new(keys)),
            kek,
            source: source.clone(),
            asked: tokio::sync::Mutex::new(None),
        })))
    }

    /// Opens `known` for tests, of a volume whose admin server has `newest`.
    #[cfg(test)]
    pub(crate) fn between(
        known: &SealedKeys,
        newest: &SealedKeys,
        secret: &VolumeSecret,
    ) -> Result<Arc<Self>, KeyError> {
        let target = |sealed: &SealedKeys| Target {
            volume: sealed.volume(),
            address: "h:1".to_owned(),
            pin: chronofs_wire::identity::Sha256([0; 32]),
            epoch: 1,
            keys: sealed.to_json().ok(),
        };
        let ring = KeyRing::open(&Source::Fixed(target(newest)), &target(known), "data", Some(secret))?;
        ring.ok_or_else(|| KeyError::Missing("data".to_owned()))
    }

    /// The keys.
    pub(crate) fn now(&self) -> Arc<VolumeKeys> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks the admin server for keys that are newer than what is known, among them the data key `number`.
    pub(crate) async fn learn(&self, number: u32) -> Result<Arc<VolumeKeys>, String> {
        let mut asked = self.asked.lock().await;
        let known = self.now();
        if known.has(number) {
            return Ok(known);
        }
        let none = || "the admin server does not have that key; was it restored from an old copy?".to_owned();
        if asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
            return Err(none());
        }
        *asked = Some(Instant::now());
        let target = self.source.resolve().await.map_err(|error| error.to_string())?;
        let sealed = target.keys.ok_or_else(none)?;
        let sealed = SealedKeys::parse(&sealed).map_err(|error| error.to_string())?;
        let keys = match sealed.open(&self.kek) {
            Ok(keys) if keys.volume() == known.volume() => Arc::new(keys),
            Ok(_) => return Err("the admin server gave the keys of another volume".to_owned()),
            Err(Error::WrongSecret) => {
                return Err("the volume has another secret now; mount it again with that".to_owned());
            }
            Err(error) => return Err(error.to_string()),
        };
        if !keys.has(number) {
            return Err(none());
        }
        tracing::info!(
            data_key = keys.active(),
            "the volume has a new data key, which seals what is written from now on"
        );
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&keys);
        *asked = None;
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_keys::SecretKey;
    use chronofs_wire::identity::Sha256;
    use uuid::Uuid;

    const VOLUME: Uuid = Uuid::from_u128(5);

    fn target(volume: Uuid, keys: Option<&SealedKeys>) -> Target {
        let keys = keys.map(|keys| keys.to_json().unwrap());
        Target { volume, address: "h:1".to_owned(), pin: Sha256([0; 32]), epoch: 1, keys }
    }

    fn open(target: &Target, secret: Option<&VolumeSecret>) -> Result<Option<Arc<KeyRing>>, String> {
        KeyRing::open(&Source::Fixed(target.clone()), target, "data", secret).map_err(|e| e.to_string())
    }

    #[test]
    fn an_encrypted_volume_is_opened_by_its_secret_alone_and_every_refusal_says_what_to_do() {
        let (right, wrong) = (SecretKey::new([3; 32]), SecretKey::new([4; 32]));
        let (right, wrong) = (VolumeSecret::Key(right), VolumeSecret::Key(wrong));
        let sealed = SealedKeys::draw(VOLUME, &right).unwrap();
        let encrypted = target(VOLUME, Some(&sealed));
        let ring = open(&encrypted, Some(&right)).unwrap().unwrap();
        assert_eq!(ring.now().volume(), VOLUME);
        assert!(open(&target(VOLUME, None), None).unwrap().is_none());
        let said = |target: &Target, secret: Option<&VolumeSecret>| open(target, secret).unwrap_err();
        assert!(
            said(&encrypted, None).contains("'data' is encrypted")
                && said(&encrypted, None).contains("--key-file")
        );
        assert!(said(&encrypted, Some(&wrong)).contains("give the secret that opens it"));
        assert!(said(&target(VOLUME, None), Some(&right)).contains("'data' is not encrypted"));
        assert!(said(&target(Uuid::from_u128(6), Some(&sealed)), Some(&right)).contains("of another volume"));
        let text = chronofs_keys::Passphrase::new("some words".to_owned().into()).unwrap();
        assert!(said(&encrypted, Some(&VolumeSecret::Passphrase(text))).contains("--key-file FILE"));
    }

    #[tokio::test]
    async fn a_data_key_that_was_made_since_is_learnt_and_another_secret_is_not_believed() {
        let secret = VolumeSecret::Key(SecretKey::new([3; 32]));
        let first = SealedKeys::draw(VOLUME, &secret).unwrap();
        let kek = first.kek(&secret).unwrap();
        let keys = first.open(&kek).unwrap();
        let second = first.with_new_key(&keys, &kek).unwrap();
        let now = target(VOLUME, Some(&second));
        let ring = KeyRing::open(&Source::Fixed(now), &target(VOLUME, Some(&first)), "data", Some(&secret));
        let ring = ring.unwrap().unwrap();
        assert_eq!(ring.now().active(), 1);
        assert!(ring.learn(3).await.unwrap_err().contains("does not have that key"));
        *ring.asked.lock().await = None;
        assert_eq!(ring.learn(2).await.unwrap().active(), 2);
        assert_eq!(ring.now().active(), 2);
        let other = VolumeSecret::Key(SecretKey::new([4; 32]));
        let third = second.with_secret(&second.open(&kek).unwrap(), &other).unwrap();
        let now = target(VOLUME, Some(&third));
        let ring = KeyRing::open(&Source::Fixed(now), &target(VOLUME, Some(&first)), "data", Some(&secret));
        assert!(ring.unwrap().unwrap().learn(2).await.unwrap_err().contains("another secret"));
    }
}
