//! Text messages over WebSocket, many at a time.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::arguments::Target;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// One connection.
pub(crate) struct WebSocket {
    socket: WebSocketStream<TcpStream>,
    queued: Vec<String>,
}

impl WebSocket {
    /// Connects.
    pub(crate) async fn connect(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let upgrade = client_async(target.url.as_str(), stream);
        let (socket, _) = timeout(CONNECT_TIMEOUT, upgrade).await.context("the upgrade took too long")??;
        Ok(Self { socket, queued: Vec::new() })
    }

    /// Sends this with the next flush.
    pub(crate) fn queue(&mut self, message: String) {
        self.queued.push(message);
    }

    /// Sends what was queued. Not cancel-safe.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        for message in self.queued.drain(..) {
            self.socket.feed(Message::text(message)).await?;
        }
        self.socket.flush().await?;
        Ok(())
    }

    /// Waits for a message; returns it with those that came meanwhile. Cancel-safe.
    pub(crate) async fn receive(&mut self) -> Result<Vec<Utf8Bytes>> {
        let mut texts = Vec::new();
        let mut next = Some(self.socket.next().await);
        while let Some(message) = next {
            texts.extend(text(message)?);
            next = self.socket.next().now_or_never();
        }
        Ok(texts)
    }
}

fn text(message: Option<Result<Message, Error>>) -> Result<Option<Utf8Bytes>> {
    match message.context("the server ended the connection")?? {
        Message::Text(text) => Ok(Some(text)),
        Message::Ping(_) | Message::Pong(_) => Ok(None),
        other => bail!("the server sent {other:?}"),
    }
}
