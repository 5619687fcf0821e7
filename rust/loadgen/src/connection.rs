//! One device's connection: WebSocket outside, sealed records inside (protocol.md section 2).
//!
//! Everything that a socket has is taken in one read and everything that is to be sent goes in one write: a generator shares the
//! processor with what it measures.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::arguments::DeviceUrl;
use crate::frames::{BINARY, CLOSE, FrameReader, FrameWriter};
use crate::handshake::{Fresh, Hello, Limits, Session};
use crate::identity::{Device, random};
use crate::wire::{Cursor, from_device, from_server};

const SUBPROTOCOL: &str = "keepstep.v1";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest message of a session (protocol.md section 4), and its record's tag.
const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024 + 16;
/// A direction changes its key after this many records or this long (protocol.md section 2).
const REKEY_RECORDS: u64 = 1 << 20;
const REKEY_AFTER: Duration = Duration::from_secs(60 * 60);
/// Most bytes of one read.
const READ_BYTES: usize = 256 * 1024;
/// What a device closes with (RFC 6455 section 7.4.1).
const CLOSE_NORMAL: [u8; 2] = 1000_u16.to_be_bytes();

thread_local! {
    /// Where a thread's sockets are read into, one after the other.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A socket after its upgrade.
struct WebSocket {
    stream: TcpStream,
    reader: FrameReader,
    writer: FrameWriter,
    pings: Vec<Vec<u8>>,
    /// Frames to send, of which the first `sent` bytes are gone.
    output: Vec<u8>,
    sent: usize,
}

/// An active session of a device.
pub(crate) struct Connection {
    socket: WebSocket,
    session: Session,
    sealing_since: Instant,
    /// Messages that came with one that was waited for.
    waiting: VecDeque<Vec<u8>>,
    pub(crate) limits: Limits,
}

impl WebSocket {
    /// Upgrades. A server says nothing before the device does, so nothing of a session comes with the answer.
    async fn connect(target: &DeviceUrl) -> Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let mut request = target.url.as_str().into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
        let (upgraded, _) = client_async(request, stream).await?;
        Ok(Self {
            stream: upgraded.into_inner(),
            reader: FrameReader::new(MESSAGE_BYTES_MAX),
            writer: FrameWriter::new(u64::from_be_bytes(random()?)),
            pings: Vec::new(),
            output: Vec::new(),
            sent: 0,
        })
    }

    fn queue(&mut self, message: &[u8]) {
        self.writer.write(BINARY, message, &mut self.output);
    }

    /// Sends what the socket takes now; wakes the task when it takes more.
    fn poll_send(&mut self, context: &mut TaskContext<'_>) -> Result<()> {
        while self.sent < self.output.len() {
            match Pin::new(&mut self.stream).poll_write(context, &self.output[self.sent..]) {
                Poll::Ready(sent) => self.sent += sent?,
                Poll::Pending => return Ok(()),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    /// Sends what is queued while it waits until something comes; hands over each whole message. Cancel-safe.
    async fn receive(&mut self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        poll_fn(|context| {
            self.poll_send(context)?;
            READ.with_borrow_mut(|read| {
                let mut buffer = ReadBuf::new(read);
                ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
                if buffer.filled().is_empty() {
                    return Poll::Ready(Err(anyhow!("the server ended the connection")));
                }
                self.reader.feed(buffer.filled(), &mut self.pings, &mut take)?;
                for ping in self.pings.drain(..) {
                    self.writer.pong(&ping, &mut self.output);
                }
                Poll::Ready(Ok(()))
            })
        })
        .await
    }

    /// The next message, and those that came with it.
    async fn next(&mut self) -> Result<(Vec<u8>, VecDeque<Vec<u8>>)> {
        let mut messages = VecDeque::new();
        loop {
            self.receive(|message| {
                messages.push_back(message.to_vec());
                Ok(())
            })
            .await?;
            if let Some(first) = messages.pop_front() {
                return Ok((first, messages));
            }
        }
    }

    /// Sends everything that is queued. Cancel-safe.
    async fn flush(&mut self) -> Result<()> {
        while self.sent < self.output.len() {
            self.sent += self.stream.write(&self.output[self.sent..]).await?;
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }
}

impl Connection {
    /// Connects and authenticates.
    pub(crate) async fn open(target: &DeviceUrl, device: &Device, suite: u64) -> Result<Self> {
        timeout(CONNECT_TIMEOUT, Self::authenticate(target, device, suite))
            .await
            .context("the handshake took too long")?
    }

    async fn authenticate(target: &DeviceUrl, device: &Device, suite: u64) -> Result<Self> {
        let mut socket = WebSocket::connect(target).await?;
        let hello = Hello::new(Fresh { ephemeral: random()?, nonce: random()? }, suite)?;
        socket.queue(hello.message());
        let (server_hello, early) = socket.next().await?;
        ensure!(early.is_empty(), "the server sent something before it knew the device");
        let auth = hello.receive(&server_hello, &target.server_key, device)?;
        socket.queue(&auth.message);
        let (ready, rest) = socket.next().await?;
        let (mut session, limits) = auth.receive(&ready)?;
        let waiting = rest.iter().map(|record| session.opener.open(record)).collect::<Result<_, _>>()?;
        Ok(Self { socket, session, sealing_since: Instant::now(), waiting, limits })
    }

    /// Seals one message, which goes with what is sent next.
    pub(crate) fn queue(&mut self, message: &[u8]) -> Result<()> {
        if self.session.sealer.records() >= REKEY_RECORDS - 1 || self.sealing_since.elapsed() >= REKEY_AFTER {
            let record = self.session.sealer.seal(&[0x91, u8::try_from(from_device::REKEY)?])?;
            self.socket.queue(&record);
            self.session.sealer.rekey()?;
            self.sealing_since = Instant::now();
        }
        let record = self.session.sealer.seal(message)?;
        self.socket.queue(&record);
        Ok(())
    }

    /// Seals and sends one message. Cancel-safe: what was not sent goes with what is sent next.
    pub(crate) async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.queue(message)?;
        self.socket.flush().await
    }

    /// Sends what is queued while it waits until something comes; hands over all of it, opened, in order. Cancel-safe.
    pub(crate) async fn receive_all(&mut self, mut take: impl FnMut(Vec<u8>) -> Result<()>) -> Result<()> {
        if !self.waiting.is_empty() {
            self.socket.flush().await?;
            return self.waiting.drain(..).try_for_each(take);
        }
        let opener = &mut self.session.opener;
        let open = |record: &[u8]| {
            let message = opener.open(record)?;
            if is_rekey(&message) { Ok(opener.rekey()?) } else { take(message) }
        };
        self.socket.receive(open).await
    }

    /// The next message, opened. Cancel-safe: nothing is taken unless it is returned or kept for the next call.
    pub(crate) async fn receive(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                return Ok(message);
            }
            let mut came = VecDeque::new();
            self.receive_all(|message| {
                came.push_back(message);
                Ok(())
            })
            .await?;
            self.waiting = came;
        }
    }

    /// Says goodbye and closes.
    pub(crate) async fn close(mut self) -> Result<()> {
        self.say_goodbye().await
    }

    /// Says goodbye, closes, and waits until the server has closed too.
    pub(crate) async fn leave(mut self) -> Result<()> {
        self.say_goodbye().await?;
        let closed = async { while self.socket.receive(|_| Ok(())).await.is_ok() {} };
        timeout(CONNECT_TIMEOUT, closed).await.context("the server did not close")
    }

    async fn say_goodbye(&mut self) -> Result<()> {
        self.queue(&[0x91, u8::try_from(from_device::BYE)?])?;
        self.socket.writer.write(CLOSE, &CLOSE_NORMAL, &mut self.socket.output);
        self.socket.flush().await
    }
}

/// Whether from the next record on the server seals with another key.
fn is_rekey(message: &[u8]) -> bool {
    let mut cursor = Cursor::new(message);
    cursor.array().is_ok() && cursor.integer().is_ok_and(|kind| kind == from_server::REKEY)
}
