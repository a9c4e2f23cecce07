//! The listeners: bound sockets, with TLS or without, served until it is time to end.

use super::AppError;
use crate::config::Config;
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
        let listener = listener.map_err(|error| AppError::Tls { setting: "[gateway] tls", error })?;
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
    certificates.map(Some).map_err(|error| AppError::Tls { setting: "[postgres] tls_cert, tls_key", error })
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

/// Serves until it is time to end, and then what is under way.
pub(super) fn listen(
    listener: impl Listener<Addr = SocketAddr>,
    router: Router,
    mut halted: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
        // The sender goes away only at the end, which is a stop as well.
        let _ = halted.wait_for(|halt| *halt).await;
    });
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "a listener ended");
        }
    })
}
