//! Who the guest talks to: programs on this host, in this process.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Shorter ones are no gaps.
const GAP: Duration = Duration::from_micros(500);
const BUFFER: usize = 256 << 10;

type Gaps = Arc<Mutex<Vec<(Instant, Instant)>>>;

/// Ports of their listeners.
pub struct Peers {
    /// Reads all there is.
    pub sink: u16,
    /// Sends until it is told to stop.
    pub source: u16,
    /// Sends datagrams back.
    pub echo: u16,
    gaps: Gaps,
}

impl Peers {
    pub fn start(address: &str) -> io::Result<Self> {
        let gaps = Gaps::default();
        let noted = gaps.clone();
        let sink = serve(address, move |stream| read_all(stream, &noted))?;
        let source = serve(address, |mut stream| {
            let filler = vec![0x5a; BUFFER];
            while stream.write_all(&filler).is_ok() {}
        })?;
        let socket = UdpSocket::bind((address, 0))?;
        let echo = socket.local_addr()?.port();
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..count], from);
            }
        });
        Ok(Self { sink, source, echo, gaps })
    }

    pub fn forget_gaps(&self) {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Of the stream that came in, of those that lie at least partly in this span.
    pub fn longest_gap(&self, begin: Instant, end: Instant) -> Duration {
        let gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        let within = gaps.iter().filter(|(from, to)| *to > begin && *from < end);
        within.map(|(from, to)| *to - *from).max().unwrap_or_default()
    }
}

fn serve(address: &str, each: impl Fn(TcpStream) + Send + 'static) -> io::Result<u16> {
    let listener = TcpListener::bind((address, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(each));
    Ok(port)
}

fn read_all(mut stream: TcpStream, gaps: &Gaps) {
    let mut buffer = vec![0; BUFFER];
    let mut last = Instant::now();
    while let Ok(1..) = stream.read(&mut buffer) {
        let now = Instant::now();
        if now - last >= GAP {
            gaps.lock().unwrap_or_else(PoisonError::into_inner).push((last, now));
        }
        last = now;
    }
}
