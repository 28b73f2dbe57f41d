use super::sealed::{Kek, SealedKeys, VolumeSecret};
use super::{NAME_SEALED_MAX, OpenFault, SLICE_OVERHEAD, SliceSeal, VALUE_OVERHEAD, VolumeKeys, follow};
use crate::passphrase::Passphrase;
use crate::secret::SecretKey;
use crate::{Error, Kdf};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use std::collections::BTreeMap;
use uuid::Uuid;
use zeroize::Zeroizing;

const GOLDEN: &str = include_str!("../../tests/golden/volume-keys-1.json");
const ID: &[u8] = b"0123456789abcdefghijkl";

fn key(byte: u8) -> SecretKey {
    SecretKey::new([byte; 32])
}

fn keys() -> VolumeKeys {
    let data = BTreeMap::from([(1, key(1)), (2, key(2))]);
    VolumeKeys { volume: Uuid::from_u128(0x11), active: 2, data, names: key(9) }
}

fn phrase(text: &str) -> VolumeSecret {
    VolumeSecret::Passphrase(Passphrase::new(Zeroizing::new(text.to_owned())).unwrap())
}

fn opened(sealed: &SealedKeys, secret: &VolumeSecret) -> Result<VolumeKeys, Error> {
    sealed.open(&sealed.kek(secret)?)
}

fn seal(slice: &[u8]) -> SliceSeal<'_> {
    SliceSeal { slice, about: b"about" }
}

fn same(a: &VolumeKeys, b: &VolumeKeys) -> bool {
    (a.volume, a.active, &a.data, &a.names) == (b.volume, b.active, &b.data, &b.names)
}

/// RFC 5869, appendix A.1 and A.3.
#[test]
fn keys_follow_as_the_vectors_of_the_rfc_say() {
    struct Len(usize);
    impl KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let salt = HEXLOWER.decode(b"000102030405060708090a0b0c").unwrap();
    let info = HEXLOWER.decode(b"f0f1f2f3f4f5f6f7f8f9").unwrap();
    for (salt, info, expected) in [
        (
            &salt[..],
            &info[..],
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (&[], &[], "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ] {
        let prk = Salt::new(HKDF_SHA256, salt).extract(&[0x0b; 22]);
        let mut out = [0; 42];
        prk.expand(&[info], Len(42)).unwrap().fill(&mut out).unwrap();
        assert_eq!(HEXLOWER.encode(&out), expected);
    }
    // Ours, as another implementation of it says (Python's `cryptography`).
    let ours = follow(&key(1), &[b"chronofs slice 1", ID]).unwrap();
    assert_eq!(*ours, *follow(&key(1), &[b"chronofs slice 1", &ID[..5], &ID[5..]]).unwrap());
    assert_ne!(*ours, *follow(&key(2), &[b"chronofs slice 1", ID]).unwrap());
}

/// Test case 16 of "The Galois/Counter Mode of Operation", McGrew and Viega, as NIST takes it.
#[test]
fn the_cipher_gives_what_its_vector_says() {
    let hex = |text: &str| HEXLOWER.decode(text.as_bytes()).unwrap();
    let secret = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
    let nonce: [u8; 12] = hex("cafebabefacedbaddecaf888").try_into().unwrap();
    let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    let mut text = hex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
    );
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret).unwrap());
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = cipher.seal_in_place_separate_tag(nonce, Aad::from(aad), &mut text).unwrap();
    assert_eq!(
        HEXLOWER.encode(&text),
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
    );
    assert_eq!(HEXLOWER.encode(tag.as_ref()), "76fc6ece0f4e1768cddf8853bb2d551b");
}

/// What was written once opens for ever. The bytes were made by another implementation of these formats, on Python's
/// `cryptography` (OpenSSL).
#[test]
fn sealed_forms_stay_as_they_are() {
    let id: Vec<u8> = (0..22).collect();
    let seal = SliceSeal { slice: &id, about: &[1, 5, 0, 0, 0] };
    let stored = keys().seal_slice_with(seal, b"hello", [5; 12]).unwrap();
    let hex = HEXLOWER.encode(&stored);
    assert_eq!(hex, "02000000050505050505050505050505a17651076a7499bc8fddc387fbb66d127650c111d8");
    let name = keys().seal_name("entry", 1, b"report.txt").unwrap();
    assert_eq!(name, b"TYyrvQblepJ7EGKiP35P1uvGvt7tGBqzNa0oO06N69Y");
    let value = keys().seal_value_with("target", b"", b"../elsewhere", [6; 12]).unwrap();
    let hex = HEXLOWER.encode(&value);
    assert_eq!(hex, "0606060606060606060606062b89347721af84bd57d4e5be83f66c2bd825f1597adb0dfbec640fb2");
    let kek = SealedKeys::parse(GOLDEN.trim_end()).unwrap().kek(&VolumeSecret::Key(key(3))).unwrap();
    let mut n = 0;
    let nonce = || {
        n += 1;
        Ok([n - 1; 12])
    };
    let sealed = SealedKeys::seal_with(&keys(), 3, None, &kek, nonce).unwrap();
    assert_eq!(sealed.to_json().unwrap(), GOLDEN.trim_end());
    assert!(same(&sealed.open(&kek).unwrap(), &keys()));
}

#[test]
fn only_the_secret_opens_the_keys_and_each_kind_says_what_is_wanted() {
    let volume = Uuid::from_u128(7);
    for (secret, wrong, other_kind) in [
        (VolumeSecret::Key(key(3)), VolumeSecret::Key(key(4)), phrase("correct horse")),
        (phrase("correct horse"), phrase("correct hors!"), VolumeSecret::Key(key(3))),
    ] {
        let sealed = SealedKeys::draw(volume, &secret).unwrap();
        let sealed = SealedKeys::parse(&sealed.to_json().unwrap()).unwrap();
        let keys = opened(&sealed, &secret).unwrap();
        assert_eq!((keys.volume(), keys.active()), (volume, 1));
        assert!(matches!(opened(&sealed, &wrong), Err(Error::WrongSecret)));
        let kind = opened(&sealed, &other_kind).unwrap_err();
        assert!(matches!(kind, Error::ByPassphrase | Error::ByKey), "{kind}");
        assert!(!same(&keys, &opened(&SealedKeys::draw(volume, &secret).unwrap(), &secret).unwrap()));
    }
    assert!(SealedKeys::draw(volume, &phrase("short")).is_err());
}

#[test]
fn a_new_secret_or_a_new_key_leaves_what_was_sealed_readable() {
    let (old, new) = (VolumeSecret::Key(key(3)), phrase("another one"));
    let first = SealedKeys::draw(Uuid::from_u128(7), &old).unwrap();
    let keys = opened(&first, &old).unwrap();
    let slice = keys.seal_slice(seal(ID), b"content").unwrap();
    let second = first.with_new_key(&keys, &first.kek(&old).unwrap()).unwrap();
    let more = opened(&second, &old).unwrap();
    assert_eq!((more.active(), second.revision()), (2, 2));
    assert_eq!(more.open_slice(seal(ID), slice.clone()).unwrap(), b"content");
    assert_eq!(more.seal_name("entry", 1, b"a").unwrap(), keys.seal_name("entry", 1, b"a").unwrap());
    let newer = more.seal_slice(seal(b"1123456789abcdefghijkl"), b"x").unwrap();
    assert_eq!(keys.open_slice(seal(b"1123456789abcdefghijkl"), newer), Err(OpenFault::UnknownKey(2)));
    let third = second.with_secret(&more, &new).unwrap();
    assert!(matches!(opened(&third, &old), Err(Error::ByPassphrase)));
    assert!(same(&opened(&third, &new).unwrap(), &more));
    assert!(second.follows(&first) && third.follows(&second));
    assert!(!third.follows(&first) && !first.follows(&first) && !first.follows(&second));
    let other = SealedKeys::draw(Uuid::from_u128(8), &old).unwrap();
    assert!(!opened(&other, &old).unwrap().with_revision(1, &old).follows(&first), "of another volume");
}

impl VolumeKeys {
    fn with_revision(&self, revision: u64, secret: &VolumeSecret) -> SealedKeys {
        let blank = SealedKeys::draw(self.volume, secret).unwrap();
        let kek = blank.kek(secret).unwrap();
        SealedKeys::seal_with(self, revision + 1, None, &kek, || Ok([1; 12])).unwrap()
    }
}

#[test]
fn keys_that_somebody_has_changed_do_not_open() {
    let secret = VolumeSecret::Key(key(3));
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    let says = |value: serde_json::Value| {
        let text = value.to_string();
        SealedKeys::parse(&text).and_then(|sealed| opened(&sealed, &secret))
    };
    assert!(says(golden.clone()).is_ok());
    let mut older = golden.clone();
    older["active"] = 1.into();
    assert!(matches!(says(older), Err(Error::WrongSecret)), "an older key would seal");
    let mut revision = golden.clone();
    revision["revision"] = 4.into();
    assert!(matches!(says(revision), Err(Error::WrongSecret)));
    let mut fewer = golden.clone();
    fewer["keys"].as_array_mut().unwrap().remove(1);
    assert!(matches!(says(fewer), Err(Error::WrongSecret)), "a key is left out");
    let mut swapped = golden.clone();
    let (a, b) = (golden["keys"][1].clone(), golden["keys"][2].clone());
    (swapped["keys"][1]["sealed"], swapped["keys"][2]["sealed"]) = (b["sealed"].clone(), a["sealed"].clone());
    (swapped["keys"][1]["nonce"], swapped["keys"][2]["nonce"]) = (b["nonce"].clone(), a["nonce"].clone());
    assert!(matches!(says(swapped), Err(Error::WrongSecret)));
    let mut other = golden.clone();
    other["volume"] = Uuid::from_u128(0x12).to_string().into();
    assert!(matches!(says(other), Err(Error::WrongSecret)), "they are given to another volume");
    for (field, value) in [("format", 2), ("active", 0), ("active", 9)] {
        let mut senseless = golden.clone();
        senseless[field] = value.into();
        assert!(matches!(says(senseless), Err(Error::Keys(_))), "{field} {value}");
    }
    let mut more = golden;
    more["more"] = 1.into();
    assert!(matches!(says(more), Err(Error::Keys(_))), "a newer program wrote it");
}

#[test]
fn nothing_of_the_keys_is_shown() {
    let sealed = SealedKeys::draw(Uuid::from_u128(7), &VolumeSecret::Key(key(3))).unwrap();
    let keys = opened(&sealed, &VolumeSecret::Key(key(3))).unwrap();
    let shown = format!(
        "{keys:?} {:?} {:?}",
        VolumeSecret::Key(key(3)),
        Kek::clone(&sealed.kek(&VolumeSecret::Key(key(3))).unwrap())
    );
    for secret in keys.data.values().chain([&keys.names, &key(3)]) {
        assert!(!shown.contains(secret.reveal().as_str()), "{shown}");
        assert!(!shown.contains(&format!("{:?}", secret.bytes())), "{shown}");
    }
    assert!(Kdf::draw().is_ok());
}

#[test]
fn a_name_of_any_length_fits_where_sealed_names_fit() {
    for len in [1, 15, 16, 17, 31, 254, 255] {
        let name = vec![b'n'; len];
        let sealed = keys().seal_name("entry", 9, &name).unwrap();
        assert!(sealed.len() <= NAME_SEALED_MAX, "{len}: {}", sealed.len());
        assert!(sealed.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)));
        assert_eq!(keys().open_name("entry", 9, &sealed).unwrap(), name);
    }
    let len = |name: &[u8]| keys().seal_name("entry", 9, name).unwrap().len();
    assert_eq!(len(b"a"), len(b"sixteen bytes 16"), "lengths show in steps");
    for none in [&b""[..], b"lost+found", b"AAAA"] {
        assert_eq!(keys().open_name("entry", 9, none), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_slice_opens_in_its_own_place_and_only_as_it_was(
        plain in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let stored = keys().seal_slice(seal(ID), &plain).unwrap();
        prop_assert_eq!(stored.len(), plain.len() + SLICE_OVERHEAD);
        prop_assert_eq!(keys().open_slice(seal(ID), stored.clone()).unwrap(), plain.clone());
        let other = seal(b"1123456789abcdefghijkl");
        prop_assert_eq!(keys().open_slice(other, stored.clone()), Err(OpenFault::Forged));
        let about = SliceSeal { slice: ID, about: b"abouT" };
        prop_assert_eq!(keys().open_slice(about, stored.clone()), Err(OpenFault::Forged));
        let elsewhere = VolumeKeys { volume: Uuid::from_u128(0x12), ..keys() };
        prop_assert_eq!(elsewhere.open_slice(seal(ID), stored.clone()), Err(OpenFault::Forged));
        prop_assert_ne!(keys().seal_slice(seal(ID), &plain).unwrap(), stored.clone());
        let mut flipped = stored.clone();
        flipped[at.index(stored.len())] ^= 1 << bit;
        prop_assert!(keys().open_slice(seal(ID), flipped).is_err());
        prop_assert!(keys().open_slice(seal(ID), stored[..at.index(stored.len())].to_vec()).is_err());
    }

    #[test]
    fn names_come_back_and_show_nothing_of_each_other(
        a in prop::collection::vec(1u8..=255, 1..=255), b in prop::collection::vec(1u8..=255, 1..=255),
        at in any::<prop::sample::Index>(),
    ) {
        let sealed = keys().seal_name("entry", 5, &a).unwrap();
        prop_assert_eq!(keys().open_name("entry", 5, &sealed), Some(a.clone()));
        prop_assert_eq!(keys().seal_name("entry", 5, &a).unwrap(), sealed.clone(), "it is found by its name");
        prop_assert_ne!(keys().seal_name("entry", 6, &a).unwrap(), sealed.clone(), "in another directory");
        prop_assert_eq!(keys().open_name("entry", 6, &sealed), None);
        prop_assert_eq!(keys().open_name("other", 5, &sealed), None);
        prop_assert_eq!(keys().seal_name("entry", 5, &b).unwrap() == sealed, a == b);
        let mut changed = sealed.clone();
        let at = at.index(changed.len());
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        prop_assert_eq!(keys().open_name("entry", 5, &changed), None);
    }

    #[test]
    fn values_come_back_where_they_belong(value in prop::collection::vec(any::<u8>(), 0..200), bit in 0usize..200) {
        let sealed = keys().seal_value("attribute", b"of", &value).unwrap();
        prop_assert_eq!(sealed.len(), value.len() + VALUE_OVERHEAD);
        prop_assert_eq!(keys().open_value("attribute", b"of", &sealed), Some(value.clone()));
        prop_assert_eq!(keys().open_value("attribute", b"off", &sealed), None);
        prop_assert_eq!(keys().open_value("target", b"of", &sealed), None);
        prop_assert_ne!(keys().seal_value("attribute", b"of", &value).unwrap(), sealed.clone());
        let mut flipped = sealed.clone();
        let bit = bit % (flipped.len() * 8);
        flipped[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(keys().open_value("attribute", b"of", &flipped), None);
    }
}
