//! A wire between a client and a server, which can be cut, clogged and slowed down while it is used.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A TCP proxy with an address of its own, in the process of the tests.
pub struct Cuts {
    address: SocketAddr,
    wire: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    refuses: AtomicBool,
    stalls: AtomicBool,
    over: AtomicBool,
    delay_us: AtomicU64,
    open: Mutex<Vec<Arc<Connection>>>,
}

/// Both ends of a connection through the wire.
struct Connection {
    client: TcpStream,
    server: TcpStream,
    closed: AtomicBool,
}

impl Connection {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.client.shutdown(Shutdown::Both).ok();
        self.server.shutdown(Shutdown::Both).ok();
    }
}

impl Cuts {
    /// Forwards to `target` (`host:port`), which need not listen yet.
    pub fn before(target: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let cuts = Cuts { address: listener.local_addr().unwrap(), wire: Arc::default() };
        let (wire, target) = (cuts.wire.clone(), target.to_owned());
        thread::spawn(move || {
            for client in listener.incoming() {
                if wire.over.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(client) = client {
                    let (wire, target) = (wire.clone(), target.clone());
                    thread::spawn(move || wire.join(client, &target));
                }
            }
        });
        cuts
    }

    /// `host:port` for the client.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Closes all connections now; new ones are taken.
    pub fn cut(&self) {
        self.wire.open.lock().unwrap().drain(..).for_each(|connection| connection.close());
    }

    /// Whether new connections are closed at once. Open ones stay.
    pub fn refuse(&self, refuses: bool) {
        self.wire.refuses.store(refuses, Ordering::SeqCst);
    }

    /// What is sent arrives this much later, each way.
    pub fn delay(&self, delay: Duration) {
        self.wire.delay_us.store(delay.as_micros() as u64, Ordering::SeqCst);
    }

    /// Whether nothing gets through, while all connections stay open.
    pub fn stall(&self, stalls: bool) {
        self.wire.stalls.store(stalls, Ordering::SeqCst);
    }
}

impl Drop for Cuts {
    fn drop(&mut self) {
        self.wire.over.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that takes connections.
        TcpStream::connect(self.address).ok();
    }
}

impl Wire {
    fn join(&self, client: TcpStream, target: &str) {
        if self.refuses.load(Ordering::SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(target) else { return };
        client.set_nodelay(true).ok();
        server.set_nodelay(true).ok();
        let connection = Arc::new(Connection { client, server, closed: AtomicBool::new(false) });
        self.open.lock().unwrap().push(connection.clone());
        // One that came while the wire was dropped.
        if self.over.load(Ordering::SeqCst) {
            connection.close();
        }
        thread::scope(|scope| {
            scope.spawn(|| self.carry(&connection, &connection.client, &connection.server));
            self.carry(&connection, &connection.server, &connection.client);
        });
        self.open.lock().unwrap().retain(|open| !Arc::ptr_eq(open, &connection));
    }

    /// One way, until either end closes it.
    fn carry(&self, connection: &Connection, mut from: &TcpStream, mut to: &TcpStream) {
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            thread::sleep(Duration::from_micros(self.delay_us.load(Ordering::SeqCst)));
            while self.stalls.load(Ordering::SeqCst) && !connection.closed.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            if to.write_all(&chunk[..length]).is_err() {
                connection.close();
                return;
            }
        }
        to.shutdown(Shutdown::Write).ok();
    }
}
