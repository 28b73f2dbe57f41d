//! TLS with pinned certificates: a server makes a certificate of its own at its first start (or is given one), and
//! a client accepts exactly the certificate whose SHA-256 it was told, whoever signed it and whatever it names.
//!
//! The only crypto provider is aws-lc-rs, passed to every configuration by hand: rustls would stop the program if it
//! had to choose between two.

use crate::identity::Sha256;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as RustlsError, ServerConfig,
    SignatureScheme,
};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// The file in a server's folder that holds its key and its certificate. One file, so that there is never one
/// without the other.
pub const IDENTITY_FILE: &str = "tls.pem";

/// Why a server has no identity.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file could not be read or written.
    #[error("cannot {verb} {path}: {source}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no {what} in PEM: {reason}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
        /// What was found.
        reason: String,
    },
    /// Making a certificate failed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Certificate and key do not fit together, or cannot be used.
    #[error("the certificate and its key cannot be used: {0}")]
    Unusable(#[from] RustlsError),
}

/// The certificate chain and key of a server.
pub struct ServerIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl ServerIdentity {
    /// The identity in `folder`, made there first (with `names` as the names of the host) if there is none.
    pub fn load_or_make(folder: &Path, names: &[String]) -> Result<Self, TlsError> {
        let path = folder.join(IDENTITY_FILE);
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => make(&path, names)?,
            Err(source) => return Err(TlsError::File { verb: "look at", path, source }),
        }
        Self::load(&path, &path)
    }

    /// The identity in `folder`, if one was made.
    pub fn load_existing(folder: &Path) -> Result<Self, TlsError> {
        let path = folder.join(IDENTITY_FILE);
        Self::load(&path, &path)
    }

    /// A certificate (with its chain) and its key that somebody else made, in PEM files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| TlsError::File { verb: "read", path: path.to_owned(), source })
        };
        let bad = |path: &Path, what, reason| TlsError::Pem { path: path.to_owned(), what, reason };
        let (certificate_pem, key_pem) = (read(certificate)?, read(key)?);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate_pem).collect();
        let chain = chain.map_err(|e| bad(certificate, "certificate", e.to_string()))?;
        if chain.is_empty() {
            return Err(bad(certificate, "certificate", "no section CERTIFICATE".to_owned()));
        }
        let key_der =
            PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| bad(key, "private key", e.to_string()))?;
        Ok(ServerIdentity { chain, key: key_der })
    }

    /// What clients know the server by: SHA-256 of its own certificate (DER).
    pub fn pin(&self) -> Sha256 {
        self.chain.first().map_or(Sha256([0; 32]), |certificate| Sha256::of(certificate))
    }

    /// The configuration of a TLS server with this identity.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(Arc::new(config))
    }
}

/// The one crypto provider of this program.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The configuration of a TLS client that accepts exactly the certificate with this SHA-256.
pub fn client_config(pin: Sha256) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let verifier = Arc::new(PinVerifier { pin, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The name to pass to a TLS connection to `address` (`host:port`). The pin decides, not the name; it is sent only
/// because TLS wants one.
pub fn server_name(address: &str) -> ServerName<'static> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(host).unwrap_or(ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()))
}

/// Whether a failure to connect came from a certificate other than the pinned one.
pub fn is_wrong_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if matches!(error.downcast_ref(), Some(RustlsError::InvalidCertificate(_))) {
            return true;
        }
        // source() of an io::Error skips the error that it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

#[derive(Debug)]
struct PinVerifier {
    pin: Sha256,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        if Sha256::of(end_entity) == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(RustlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn make(path: &Path, names: &[String]) -> Result<(), TlsError> {
    let mut all = vec!["localhost".to_owned()];
    all.extend(names.iter().filter(|name| *name != "localhost").cloned());
    let made = rcgen::generate_simple_self_signed(all)?;
    let text = format!("{}{}", made.signing_key.serialize_pem(), made.cert.pem());
    write_secret(path, text.as_bytes()).map_err(|source| TlsError::File {
        verb: "write",
        path: path.to_owned(),
        source,
    })
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, bytes, 0o600)
}

/// Writes a file with these rights, whole or not at all: beside it, synced, then renamed over it.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let beside = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    async fn connect(server: &ServerIdentity, pin: Sha256) -> io::Result<Vec<u8>> {
        let (client_end, server_end) = duplex(1 << 16);
        let acceptor = TlsAcceptor::from(server.server_config().unwrap());
        tokio::spawn(async move {
            let Ok(mut stream) = acceptor.accept(server_end).await else { return };
            stream.write_all(b"hello").await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let connector = TlsConnector::from(client_config(pin).unwrap());
        let mut stream = connector.connect(server_name("host.example:1"), client_end).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    #[tokio::test]
    async fn a_client_accepts_the_pinned_certificate_and_no_other() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = ServerIdentity::load_or_make(folder.path(), &["host.example".to_owned()]).unwrap();
        let stranger = ServerIdentity::load_or_make(other.path(), &[]).unwrap();
        assert_eq!(connect(&server, server.pin()).await.unwrap(), b"hello");
        let error = connect(&server, stranger.pin()).await.unwrap_err();
        assert!(is_wrong_certificate(&error), "{error}");
    }

    #[test]
    fn an_identity_is_made_once_and_only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = ServerIdentity::load_or_make(folder.path(), &[]).unwrap().pin();
        assert_eq!(ServerIdentity::load_or_make(folder.path(), &[]).unwrap().pin(), first);
        let mode = fs::metadata(folder.path().join(IDENTITY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_certificate_is_refused_by_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pem");
        let missing = ServerIdentity::load(&path, &path).err().unwrap().to_string();
        assert!(missing.contains("cannot read") && missing.contains("x.pem"), "{missing}");
        fs::write(&path, "nothing").unwrap();
        let empty = ServerIdentity::load(&path, &path).err().unwrap().to_string();
        assert!(empty.contains("no certificate"), "{empty}");
    }

    #[test]
    fn a_host_of_any_spelling_gives_a_name() {
        for address in ["a.example:1", "127.0.0.1:1", "[::1]:1", "under_score:1", "", ":"] {
            let _ = server_name(address);
        }
        assert_eq!(server_name("[::1]:1"), ServerName::try_from("::1").unwrap());
    }
}
