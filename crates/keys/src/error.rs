//! Why a key cannot be had. No message holds anything of a key or a passphrase.

use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Error {
    #[error("it is no key: a key is 64 digits of 0 to 9 and a to f")]
    NoKey,
    #[error("the system gives no random numbers")]
    NoRandom,
    #[error("the key cannot be used to sign; make another")]
    NoSignature,
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("a passphrase needs at least {0} characters; some words that nobody puts together are good")]
    TooShort(usize),
    #[error("a passphrase has at most {0} bytes")]
    TooLong(usize),
    #[error("how the key follows from the passphrase cannot be used: {0}")]
    Kdf(String),
    #[error("what is kept of the volume's keys cannot be used: {0}")]
    Keys(String),
    #[error("it is not the one that the volume's keys are sealed for, or somebody has changed these")]
    WrongSecret,
    #[error("the volume is opened by a passphrase, not by a key file")]
    ByPassphrase,
    #[error("the volume is opened by a key file, not by a passphrase")]
    ByKey,
    #[error("the cipher refused; this is a fault of the program")]
    Cipher,
}
