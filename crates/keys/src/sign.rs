//! Signing with a key, by Ed25519 (RFC 8032). The public half proves who signed and is no secret.

use crate::{Error, SecretKey};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

impl SecretKey {
    /// The public half of the key, as that of an Ed25519 key.
    pub fn public_half(&self) -> Result<[u8; 32], Error> {
        let pair = self.pair()?;
        pair.public_key().as_ref().try_into().map_err(|_| Error::NoSignature)
    }

    /// What proves that the holder of this key has signed `message`.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], Error> {
        let signature = self.pair()?.try_sign(message).map_err(|_| Error::NoSignature)?;
        signature.as_ref().try_into().map_err(|_| Error::NoSignature)
    }

    fn pair(&self) -> Result<Ed25519KeyPair, Error> {
        // The public half follows from the key and is kept nowhere beside it.
        Ed25519KeyPair::from_seed_unchecked(self.bytes()).map_err(|_| Error::NoSignature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_of_the_standard() {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        // RFC 8032, section 7.1, test 2.
        let key =
            SecretKey::parse("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").unwrap();
        assert_eq!(
            hex(&key.public_half().unwrap()),
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        );
        assert_eq!(
            hex(&key.sign(&[0x72]).unwrap()),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
    }
}
