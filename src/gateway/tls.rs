//! TLS on a listener, with certificates that are renewed while it runs.

use axum::serve::Listener;
use sha2::{Digest, Sha256};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

/// A client that has not shaken hands by then is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why a certificate cannot be used. The text names the file; it never quotes it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {error}")]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{path} holds no PEM {what}")]
    Nothing { path: PathBuf, what: &'static str },
    #[error("{cert} and {key} cannot be used together: {error}")]
    Unusable { cert: PathBuf, key: PathBuf, error: rustls::Error },
}

/// Where a certificate is: both files PEM, the chain with the server's own certificate first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What the files held when they were read last.
struct Contents {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl CertificateFiles {
    fn read(&self) -> Result<Contents, TlsError> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|error| TlsError::Unreadable { path: path.to_owned(), error });
        Ok(Contents { chain: read(&self.cert)?, key: read(&self.key)? })
    }

    fn config(&self, contents: &Contents, protocols: &[&str]) -> Result<ServerConfig, TlsError> {
        let no_chain = || TlsError::Nothing { path: self.cert.clone(), what: "certificate" };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&contents.chain).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(no_chain)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|_| TlsError::Nothing { path: self.key.clone(), what: "private key" })?;
        let unusable = |error| TlsError::Unusable { cert: self.cert.clone(), key: self.key.clone(), error };
        // Named, as the build holds two providers and neither is the default.
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(unusable)?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(config)
    }
}

impl Contents {
    fn digest(&self) -> [u8; 32] {
        Sha256::new().chain_update(Sha256::digest(&self.chain)).chain_update(&self.key).finalize().into()
    }
}

/// A certificate that is renewed while it is used.
pub struct Certificates {
    files: CertificateFiles,
    /// What is spoken within TLS (ALPN), the liked best first.
    protocols: &'static [&'static str],
    /// Of the files as they were looked at last, good or bad.
    seen: [u8; 32],
    acceptor: TlsAcceptor,
}

impl Certificates {
    /// Reads the certificate.
    pub fn new(files: CertificateFiles, protocols: &'static [&'static str]) -> Result<Self, TlsError> {
        let contents = files.read()?;
        let acceptor = TlsAcceptor::from(Arc::new(files.config(&contents, protocols)?));
        Ok(Self { seen: contents.digest(), files, protocols, acceptor })
    }

    /// Shakes hands with whoever comes now.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Takes up files that have changed; a pair that is no good leaves the one before in use. Reads a few kilobytes, once in
    /// a while.
    pub fn renew(&mut self) {
        let renewed = self.files.read().and_then(|contents| {
            if std::mem::replace(&mut self.seen, contents.digest()) == self.seen {
                return Ok(None);
            }
            self.files.config(&contents, self.protocols).map(Some)
        });
        match renewed {
            Ok(None) => {}
            Ok(Some(config)) => {
                self.acceptor = TlsAcceptor::from(Arc::new(config));
                tracing::info!(cert = %self.files.cert.display(), "the certificate was renewed");
            }
            Err(error) => tracing::error!(%error, "the certificate cannot be renewed: the one before stays in use"),
        }
    }
}

/// A TCP listener whose clients speak TLS, HTTP/2 or 1.1 within. Hands are shaken side by side, so no client waits for
/// another.
pub struct TlsListener {
    tcp: TcpListener,
    certificates: Certificates,
    look: Interval,
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl TlsListener {
    /// Reads the certificate now, and again when a look every so often finds the files changed.
    pub fn new(tcp: TcpListener, files: CertificateFiles, look_every: Duration) -> Result<Self, TlsError> {
        let certificates = Certificates::new(files, &["h2", "http/1.1"])?;
        let mut look = interval(look_every);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { tcp, certificates, look, handshakes: JoinSet::new() })
    }

    fn shake_hands(&mut self, stream: TcpStream, address: SocketAddr) {
        // Answers are small: waiting to fill a packet only delays them. It works without, too.
        let _ = stream.set_nodelay(true);
        let handshake = self.certificates.acceptor.accept(stream);
        self.handshakes.spawn(async move {
            match timeout(HANDSHAKE, handshake).await {
                Ok(Ok(stream)) => Some((stream, address)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, %address, "a client did not speak TLS as it should");
                    None
                }
                Err(_) => {
                    tracing::debug!(%address, "a client took too long to speak TLS");
                    None
                }
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                (stream, address) = Listener::accept(&mut self.tcp) => self.shake_hands(stream, address),
                // A handshake that panicked has told so itself.
                Some(shaken) = self.handshakes.join_next() => if let Ok(Some(shaken)) = shaken { return shaken },
                _ = self.look.tick() => self.certificates.renew(),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::Version;
    use axum::routing::get;
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use std::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Writes a new certificate for `localhost`; it, as PEM.
    fn certify(files: &CertificateFiles) -> String {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&files.cert, cert.pem()).unwrap();
        std::fs::write(&files.key, signing_key.serialize_pem()).unwrap();
        cert.pem()
    }

    fn files(dir: &Path) -> CertificateFiles {
        CertificateFiles { cert: dir.join("chain.pem"), key: dir.join("key.pem") }
    }

    async fn listener(files: &CertificateFiles) -> TlsListener {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        TlsListener::new(tcp, files.clone(), Duration::from_millis(10)).unwrap()
    }

    fn serve(listener: TlsListener) -> SocketAddr {
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || "hello"));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }

    /// Trusts this certificate alone, on a new connection.
    async fn ask(address: SocketAddr, trusted: &str, http1: bool) -> reqwest::Result<(Version, String)> {
        let root = reqwest::Certificate::from_pem(trusted.as_bytes())?;
        let mut client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).resolve("localhost", address);
        client = client.tls_built_in_root_certs(false).add_root_certificate(root);
        if http1 {
            client = client.http1_only();
        }
        let response = client.build()?.get(format!("https://localhost:{}/", address.port())).send().await?;
        Ok((response.version(), response.text().await?))
    }

    #[tokio::test]
    async fn both_versions_of_http_are_spoken() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        let trusted = certify(&files);
        let address = serve(listener(&files).await);
        assert_eq!(ask(address, &trusted, false).await.unwrap(), (Version::HTTP_2, "hello".into()));
        assert_eq!(ask(address, &trusted, true).await.unwrap(), (Version::HTTP_11, "hello".into()));
    }

    #[tokio::test]
    async fn who_does_not_shake_hands_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        let trusted = certify(&files);
        let address = serve(listener(&files).await);
        let mut slow = Vec::new();
        for _ in 0..20 {
            slow.push(TcpStream::connect(address).await.unwrap());
        }
        let plain = reqwest::Client::builder().no_proxy().build().unwrap();
        assert!(plain.get(format!("http://{address}/")).send().await.is_err());
        assert_eq!(ask(address, &trusted, false).await.unwrap().1, "hello");
        drop(slow);
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_taken_up_and_a_bad_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        let old = certify(&files);
        let mut listener = listener(&files).await;
        std::fs::write(&files.cert, "half a cert").unwrap();
        std::fs::write(&files.key, "and no key").unwrap();
        listener.certificates.renew();
        let address = serve(listener);
        assert_eq!(ask(address, &old, false).await.unwrap().1, "hello");
        let new = certify(&files);
        let started = Instant::now();
        while ask(address, &new, false).await.is_err() {
            assert!(started.elapsed() < PATIENCE, "the new certificate was not taken up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(ask(address, &old, false).await.is_err());
    }

    #[tokio::test]
    async fn bad_files_are_named_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let good = files(dir.path());
        certify(&good);
        let other = tempfile::tempdir().unwrap();
        certify(&files(other.path()));
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let missing = dir.path().join("missing.pem");
        for (cert, key, parts) in [
            (&missing, &good.key, ["missing.pem", "No such file"]),
            (&good.cert, &missing, ["missing.pem", "No such file"]),
            (&empty, &good.key, ["empty.pem", "no PEM certificate"]),
            (&good.cert, &empty, ["empty.pem", "no PEM private key"]),
            (&good.cert, &other.path().join("key.pem"), ["chain.pem", "cannot be used together"]),
        ] {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let files = CertificateFiles { cert: cert.clone(), key: key.clone() };
            let error = TlsListener::new(tcp, files, Duration::from_secs(60)).err().unwrap().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
