//! TLS before a server that has none, with a certificate that only those trust who are told.

use chronofs_wire::tls::{IDENTITY_FILE, ServerIdentity};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use tokio_rustls::TlsAcceptor;

/// A running front. It ends with the process.
pub struct TlsFront {
    port: u16,
    folder: tempfile::TempDir,
}

impl TlsFront {
    /// Starts one before `upstream`.
    pub fn start(upstream: SocketAddr) -> TlsFront {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let identity = ServerIdentity::load_or_make(folder.path(), &["localhost".to_owned()]);
        let identity = identity.expect("a certificate");
        let made = std::fs::read_to_string(folder.path().join(IDENTITY_FILE)).expect("its file");
        let certificate = &made[made.find("-----BEGIN CERTIFICATE").expect("a certificate")..];
        std::fs::write(folder.path().join("ca.pem"), certificate).expect("the file of the certificate");
        let acceptor = TlsAcceptor::from(identity.server_config().expect("a configuration"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let port = listener.local_addr().expect("its address").port();
        std::thread::spawn(move || serve(listener, &acceptor, upstream));
        TlsFront { port, folder }
    }

    /// `https://localhost:PORT`.
    pub fn endpoint(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The file of the certificate, without its key.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}

fn serve(listener: TcpListener, acceptor: &TlsAcceptor, upstream: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        listener.set_nonblocking(true).expect("a listener");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            // Who does not trust it, or leaves, ends no more than its connection.
            tokio::spawn(async move {
                let mut outside = acceptor.accept(stream).await?;
                let mut inside = tokio::net::TcpStream::connect(upstream).await?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    });
}
