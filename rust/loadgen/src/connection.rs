//! One device's connection: WebSocket outside, sealed records inside (protocol.md section 2).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::arguments::DeviceUrl;
use crate::handshake::{Fresh, Hello, Limits, Session};
use crate::identity::{Device, random};
use crate::wire::{FromServer, from_device};

const SUBPROTOCOL: &str = "keepstep.v1";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest message of a session (protocol.md section 4), and its record's tag.
const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024 + 16;
/// A direction changes its key after this many records or this long (protocol.md section 2).
const REKEY_RECORDS: u64 = 1 << 20;
const REKEY_AFTER: Duration = Duration::from_secs(60 * 60);

/// An active session of a device.
pub(crate) struct Connection {
    socket: WebSocketStream<TcpStream>,
    session: Session,
    sealing_since: Instant,
    pub(crate) limits: Limits,
}

impl Connection {
    /// Connects and authenticates.
    pub(crate) async fn open(target: &DeviceUrl, device: &Device, suite: u64) -> Result<Self> {
        timeout(CONNECT_TIMEOUT, Self::authenticate(target, device, suite))
            .await
            .context("the handshake took too long")?
    }

    async fn authenticate(target: &DeviceUrl, device: &Device, suite: u64) -> Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let mut request = target.url.as_str().into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let (mut socket, _) = client_async_with_config(request, stream, Some(config)).await?;

        let hello = Hello::new(Fresh { ephemeral: random()?, nonce: random()? }, suite)?;
        socket.send(Message::binary(hello.message().to_vec())).await?;
        let server_hello = next(&mut socket).await?;
        let auth = hello.receive(&server_hello, &target.server_key, device)?;
        socket.send(Message::binary(auth.message.clone())).await?;
        let (session, limits) = auth.receive(&next(&mut socket).await?)?;
        Ok(Self { socket, session, sealing_since: Instant::now(), limits })
    }

    /// Seals and sends one message. Not cancel-safe: a record that was sealed must be sent.
    pub(crate) async fn send(&mut self, message: &[u8]) -> Result<()> {
        if self.session.sealer.records() >= REKEY_RECORDS - 1 || self.sealing_since.elapsed() >= REKEY_AFTER {
            let record = self.session.sealer.seal(&[0x91, u8::try_from(from_device::REKEY)?])?;
            self.socket.feed(Message::binary(record)).await?;
            self.session.sealer.rekey()?;
            self.sealing_since = Instant::now();
        }
        let record = self.session.sealer.seal(message)?;
        self.socket.send(Message::binary(record)).await?;
        Ok(())
    }

    /// The next message, opened. Cancel-safe: nothing is taken from the socket unless it is returned.
    pub(crate) async fn receive(&mut self) -> Result<Vec<u8>> {
        loop {
            let record = next(&mut self.socket).await?;
            let message = self.session.opener.open(&record)?;
            if !matches!(FromServer::read(&message)?, FromServer::Rekey) {
                return Ok(message);
            }
            self.session.opener.rekey()?;
        }
    }

    /// Says goodbye and closes.
    pub(crate) async fn close(mut self) -> Result<()> {
        self.send(&[0x91, u8::try_from(from_device::BYE)?]).await?;
        self.socket.close(None).await?;
        Ok(())
    }

    /// Says goodbye, closes, and waits until the server has closed too.
    pub(crate) async fn leave(mut self) -> Result<()> {
        self.send(&[0x91, u8::try_from(from_device::BYE)?]).await?;
        self.socket.close(None).await?;
        let closed = async { while self.socket.next().await.is_some_and(|message| message.is_ok()) {} };
        timeout(CONNECT_TIMEOUT, closed).await.context("the server did not close")
    }
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Result<Vec<u8>> {
    loop {
        match socket.next().await.context("the server ended the connection")?? {
            Message::Binary(data) => return Ok(data.into()),
            Message::Close(frame) => {
                let code = frame.map_or(1005, |frame| u16::from(frame.code));
                bail!("the server closed the connection with {code}");
            }
            message => ensure!(message.is_ping() || message.is_pong(), "the server sent text"),
        }
    }
}
