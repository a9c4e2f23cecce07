//! The first bytes of a connection: whether it is to be encrypted.

use super::measured::Measured;
use super::session::Statement;
use bytes::BytesMut;
use pgwire::api::{ClientInfo, DefaultClient, PgWireConnectionState};
use pgwire::tokio::server::PgWireMessageServerCodec;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::codec::{Framed, FramedParts};

/// A client's messages.
pub type Socket<S> = Framed<Measured<S>, PgWireMessageServerCodec<Statement>>;

/// A connection whose first message is still to be read.
pub enum Begun {
    Plain(Box<Socket<TcpStream>>),
    Tls(Box<Socket<TlsStream<TcpStream>>>),
}

/// Bytes of a message of somebody who is not let in yet (as PostgreSQL has it for the first).
const LONGEST: u32 = 10_000;
/// Length and code of the requests that come before anything else (PostgreSQL, protocol, message formats).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// Answers what is asked for until the client starts. Of what comes before a handshake nothing is taken for what comes within.
pub async fn begin(mut stream: TcpStream, acceptor: Option<TlsAcceptor>) -> io::Result<Begun> {
    let address = stream.peer_addr()?;
    // Answers are small: waiting to fill a packet only delays them. It works without, too.
    let _ = stream.set_nodelay(true);
    loop {
        let mut head = [0; 8];
        stream.read_exact(&mut head).await?;
        match (head, &acceptor) {
            (SSL_REQUEST, Some(acceptor)) => {
                stream.write_all(b"S").await?;
                let encrypted = acceptor.accept(stream).await?;
                return Ok(Begun::Tls(Box::new(socket(encrypted, address, true, &[])?)));
            }
            (SSL_REQUEST | GSS_REQUEST, _) => stream.write_all(b"N").await?,
            _ => return Ok(Begun::Plain(Box::new(socket(stream, address, false, &head)?))),
        }
    }
}

/// Messages of a stream of which some bytes are read.
fn socket<S>(stream: S, address: SocketAddr, is_secure: bool, read: &[u8]) -> io::Result<Socket<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut stream = Measured::new(stream, LONGEST);
    stream.measure(read)?;
    let codec = PgWireMessageServerCodec::new(DefaultClient::new(address, is_secure));
    let mut parts = FramedParts::new::<pgwire::messages::PgWireBackendMessage>(stream, codec);
    parts.read_buf = BytesMut::from(read);
    let mut socket = Framed::from_parts(parts);
    socket.set_state(PgWireConnectionState::AwaitingStartup);
    Ok(socket)
}
