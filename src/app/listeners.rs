//! The listeners: bound sockets, with TLS or without, served until it is time to end.

use super::AppError;
use crate::config::Config;
use crate::console::cut::{Cut, Cuttable};
use crate::gateway::tls::{CertificateFiles, Certificates, TlsListener};
use axum::Router;
use axum::serve::{Listener, ListenerExt};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often the files of a certificate are looked at.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// The gateway's listener.
pub(super) enum Public {
    Plain(TcpListener),
    Tls(Box<TlsListener>),
}

impl Public {
    pub fn new(tcp: TcpListener, config: &Config) -> Result<Self, AppError> {
        let Some(tls) = config.gateway.tls.clone() else { return Ok(Public::Plain(tcp)) };
        let files = CertificateFiles { cert: tls.cert, key: tls.key };
        let listener = TlsListener::new(tcp, files, RENEW_EVERY);
        let listener = listener.map_err(|error| AppError::Tls { setting: "[gateway] tls", error: error.into() })?;
        Ok(Public::Tls(Box::new(listener)))
    }

    pub fn address(&self) -> Result<String, AppError> {
        match self {
            Public::Plain(listener) => Ok(format!("http://{}", local(listener)?)),
            Public::Tls(listener) => Ok(format!("https://{}", local(&**listener)?)),
        }
    }

    pub fn listen(self, router: Router, halted: watch::Receiver<bool>) -> JoinHandle<()> {
        match self {
            Public::Plain(listener) => listen(without_delay(listener), router, halted),
            Public::Tls(listener) => listen(*listener, router, halted),
        }
    }
}

/// The certificate that clients of PostgreSQL are shown, where there is one.
pub(super) fn postgres_certificates(config: &Config) -> Result<Option<Certificates>, AppError> {
    let (Some(cert), Some(key)) = (config.postgres.tls_cert.clone(), config.postgres.tls_key.clone()) else {
        return Ok(None);
    };
    let certificates = Certificates::new(CertificateFiles { cert, key }, &["postgresql"]);
    let setting = "[postgres] tls_cert, tls_key";
    certificates.map(Some).map_err(|error| AppError::Tls { setting, error: error.into() })
}

/// Where it listens.
pub(super) fn local(listener: &impl Listener<Addr = SocketAddr>) -> Result<SocketAddr, AppError> {
    let failed = |error: std::io::Error| AppError::Failed { what: "a listener", reason: error.to_string() };
    listener.local_addr().map_err(failed)
}

pub(super) fn without_delay(listener: TcpListener) -> impl Listener<Addr = SocketAddr> {
    listener.tap_io(|stream| {
        // Answers are small: waiting to fill a packet only delays them. It works without, too.
        let _ = stream.set_nodelay(true);
    })
}

/// Serves the console: like [`listen`], and its connections can be cut off.
pub(super) fn listen_console(tcp: TcpListener, router: Router, halted: watch::Receiver<bool>) -> JoinHandle<()> {
    let service = router.into_make_service_with_connect_info::<Cut>();
    until_halted(axum::serve(Cuttable(without_delay(tcp)), service).with_graceful_shutdown(is_halted(halted)))
}

/// Serves until it is time to end, and then what is under way.
pub(super) fn listen(
    listener: impl Listener<Addr = SocketAddr>,
    router: Router,
    halted: watch::Receiver<bool>,
) -> JoinHandle<()> {
    until_halted(axum::serve(listener, router).with_graceful_shutdown(is_halted(halted)))
}

async fn is_halted(mut halted: watch::Receiver<bool>) {
    // The sender goes away only at the end, which is a stop as well.
    let _ = halted.wait_for(|halt| *halt).await;
}

fn until_halted<S>(serving: S) -> JoinHandle<()>
where
    S: IntoFuture<Output = std::io::Result<()>>,
    S::IntoFuture: Send + 'static,
{
    let serving = serving.into_future();
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "a listener ended");
        }
    })
}
