//! Centrifugo: its JSON protocol over WebSocket, for a namespace in which clients may subscribe and publish.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::arguments::{Arguments, GROUP, Target};
use crate::connection::{Came, Connection, Subscription};
use crate::event::Payloads;
use crate::websocket::WebSocket;

const CONNECT_ID: usize = 1;
const SUBSCRIBE_ID: usize = 2;
/// Commands that publish have this id and the event's index.
const PUBLISH_ID: usize = 16;

/// What all connections of a run have in common.
pub(crate) struct Fleet {
    payloads: Arc<Payloads>,
    /// Begins every channel of this run.
    prefix: String,
}

/// One connection.
pub(crate) struct Centrifugo {
    fleet: Arc<Fleet>,
    connection: usize,
    channel: String,
    socket: WebSocket,
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(default)]
    id: usize,
    error: Option<serde_json::Value>,
    #[serde(borrow)]
    push: Option<Push<'a>>,
}

#[derive(Deserialize)]
struct Push<'a> {
    #[serde(borrow, rename = "pub")]
    publication: Option<Publication<'a>>,
}

#[derive(Deserialize)]
struct Publication<'a> {
    data: &'a str,
}

/// What a line means.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Came(Came),
    /// An empty object, which is answered with one.
    Ping,
    Nothing,
}

fn read(payloads: &Payloads, line: &str) -> Result<Said> {
    let reply: Reply<'_> = serde_json::from_str(line).with_context(|| format!("the server says {line}"))?;
    if let Some(error) = reply.error {
        return Ok(Said::Came(Came::Refused(error.to_string())));
    }
    if let Some(push) = reply.push {
        let Some(publication) = push.publication else { return Ok(Said::Nothing) };
        let (author, index) = payloads.read(publication.data.as_bytes())?;
        return Ok(Said::Came(Came::Delivered(author, index)));
    }
    Ok(match reply.id {
        0 => Said::Ping,
        CONNECT_ID => Said::Nothing,
        SUBSCRIBE_ID => Said::Came(Came::CaughtUp),
        id => Said::Came(Came::Acknowledged(id.checked_sub(PUBLISH_ID).context("an answer to nothing")?)),
    })
}

fn publication(channel: &str, payload: &str, index: usize) -> String {
    format!(r#"{{"id":{},"publish":{{"channel":"{channel}","data":"{payload}"}}}}"#, index + PUBLISH_ID)
}

impl Connection for Centrifugo {
    type Fleet = Fleet;

    async fn prepare(_arguments: &Arguments, _target: &Target, payloads: Arc<Payloads>) -> Result<Fleet> {
        let mut run = [0; 8];
        getrandom::fill(&mut run)?;
        Ok(Fleet { payloads, prefix: format!("keepstep-{:016x}", u64::from_be_bytes(run)) })
    }

    async fn open(fleet: Arc<Fleet>, target: &Target, connection: usize, subscription: Subscription) -> Result<Self> {
        let channel = format!("{}-{}", fleet.prefix, connection / GROUP);
        let mut opened = Self { fleet, connection, channel, socket: WebSocket::connect(target).await? };
        opened.socket.queue(format!(r#"{{"id":{CONNECT_ID},"connect":{{}}}}"#));
        match subscription {
            Subscription::None => {}
            Subscription::Others => opened
                .socket
                .queue(format!(r#"{{"id":{SUBSCRIBE_ID},"subscribe":{{"channel":"{}"}}}}"#, opened.channel)),
            Subscription::Everything { .. } => bail!("what Centrifugo stored is not read by this adaptor"),
        }
        opened.flush().await?;
        let mut came = Vec::new();
        while subscription == Subscription::Others && !came.contains(&Came::CaughtUp) {
            opened.receive(&mut came).await?;
            ensure!(came.iter().all(|one| *one == Came::CaughtUp), "subscribing was answered {came:?}");
        }
        Ok(opened)
    }

    fn publish(&mut self, index: usize) -> Result<()> {
        let mut payload = Vec::new();
        self.fleet.payloads.write(&mut payload, (self.connection, index));
        self.socket.queue(publication(&self.channel, std::str::from_utf8(&payload)?, index));
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        self.socket.flush().await
    }

    async fn receive(&mut self, came: &mut Vec<Came>) -> Result<()> {
        for message in self.socket.receive().await? {
            for line in message.lines() {
                match read(&self.fleet.payloads, line)? {
                    Said::Came(one) => came.push(one),
                    Said::Ping => self.socket.queue("{}".to_owned()),
                    Said::Nothing => {}
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_is_told_apart() -> Result<()> {
        let payloads = Payloads::new(32)?;
        let mut payload = Vec::new();
        payloads.write(&mut payload, (4, 7));
        let data = String::from_utf8(payload)?;
        let push = format!(r#"{{"push":{{"channel":"c","pub":{{"data":"{data}","offset":3}}}}}}"#);
        assert_eq!(read(&payloads, &push)?, Said::Came(Came::Delivered(4, 7)));
        assert_eq!(read(&payloads, r#"{"id":25,"publish":{}}"#)?, Said::Came(Came::Acknowledged(9)));
        assert_eq!(read(&payloads, r#"{"id":2,"subscribe":{}}"#)?, Said::Came(Came::CaughtUp));
        assert_eq!(read(&payloads, r#"{"id":1,"connect":{"client":"x","ping":25,"pong":true}}"#)?, Said::Nothing);
        assert_eq!(read(&payloads, "{}")?, Said::Ping);
        assert_eq!(read(&payloads, r#"{"push":{"channel":"c","join":{}}}"#)?, Said::Nothing);
        let refused = r#"{"id":25,"error":{"code":103,"message":"permission denied"}}"#;
        assert!(matches!(read(&payloads, refused)?, Said::Came(Came::Refused(_))));
        assert!(read(&payloads, "no JSON").is_err());
        assert!(read(&payloads, r#"{"id":3}"#).is_err());
        Ok(())
    }

    #[test]
    fn a_publication_is_one_json_object() -> Result<()> {
        let sent: serde_json::Value = serde_json::from_str(&publication("c", "0f", 9))?;
        assert_eq!(sent, serde_json::json!({ "id": 25, "publish": { "channel": "c", "data": "0f" } }));
        Ok(())
    }
}
