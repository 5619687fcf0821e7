//! NATS `JetStream` in its clients' text protocol, spoken directly: a client library costs more per message than the
//! server does, and would be what is measured.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::arguments::{Arguments, Delivery, GROUP, Target};
use crate::connection::{Came, Connection, Subscription};
use crate::event::Payloads;

const SUBJECTS: &str = "keepstep";
const INPUT_BYTES: usize = 256 * 1024;
/// No line of the protocol is longer, INFO included.
const LINE_BYTES_MAX: usize = 32 * 1024;
const ANSWERS_SID: u64 = 1;
/// The first of them.
const EVENTS_SID: u64 = 2;

/// What all connections of a run have in common.
pub(crate) struct Fleet {
    payloads: Arc<Payloads>,
    delivery: Delivery,
    payload_bytes: usize,
    /// Begins every subject of this run; a later run on the same server has another one.
    prefix: String,
}

impl Fleet {
    fn subject(&self, connection: usize) -> String {
        format!("{}.{}.{}", self.prefix, connection / GROUP, connection % GROUP)
    }

    /// The stream that has the subjects of a connection's group, as keepstep has one for each user: with all groups in one
    /// stream the server does a fraction of it.
    fn stream(&self, connection: usize) -> String {
        format!("{}-{}", self.prefix.replace('.', "-"), connection / GROUP)
    }

    /// What `JetStream` is asked for to make it.
    fn stream_config(&self, connection: usize) -> serde_json::Value {
        serde_json::json!({
            "name": self.stream(connection), "subjects": [format!("{}.{}.*", self.prefix, connection / GROUP)],
            "storage": "file", "retention": "limits", "discard": "old", "num_replicas": 1, "max_msgs": -1,
            "max_bytes": -1, "max_age": 0,
        })
    }
}

/// One connection.
pub(crate) struct Nats {
    fleet: Arc<Fleet>,
    connection: usize,
    socket: TcpStream,
    input: BytesMut,
    output: Vec<u8>,
    /// `PUB`, subject and the beginning of the inbox; the event's index follows.
    head: Vec<u8>,
    tail: Vec<u8>,
}

/// What the server sent, as far as it matters here.
enum Frame {
    Message { sid: u64, subject_tail: usize, error: Option<String>, payload: BytesMut },
    Ping,
    Pong,
    Other,
}

impl Nats {
    async fn connect(fleet: Arc<Fleet>, target: &Target, connection: usize) -> Result<Self> {
        let socket = TcpStream::connect(target.address).await?;
        socket.set_nodelay(true)?;
        let inbox = inbox(&fleet, connection);
        let mut nats = Self {
            head: format!("PUB {} {inbox}.", fleet.subject(connection)).into_bytes(),
            tail: format!(" {}\r\n", fleet.payload_bytes).into_bytes(),
            fleet,
            connection,
            socket,
            input: BytesMut::with_capacity(INPUT_BYTES),
            output: Vec::new(),
        };
        let hello = r#"{"verbose":false,"pedantic":false,"echo":false,"headers":true,"no_responders":true,"lang":"rust","version":"1","protocol":1}"#;
        nats.line(&format!("CONNECT {hello}"));
        nats.line(&format!("SUB {inbox}.* {ANSWERS_SID}"));
        nats.settle().await?;
        Ok(nats)
    }

    fn line(&mut self, line: &str) {
        self.output.extend_from_slice(line.as_bytes());
        self.output.extend_from_slice(b"\r\n");
    }

    /// Waits until the server has done everything that was sent to it.
    async fn settle(&mut self) -> Result<()> {
        self.line("PING");
        self.flush().await?;
        while !matches!(self.next().await?, Frame::Pong) {}
        Ok(())
    }

    /// Asks `JetStream` for something, and waits for its word that it was done.
    async fn ask(&mut self, subject: &str, body: &serde_json::Value) -> Result<()> {
        let body = body.to_string();
        let inbox = inbox(&self.fleet, self.connection);
        self.line(&format!("PUB {subject} {inbox}.0 {}", body.len()));
        self.line(&body);
        self.flush().await?;
        loop {
            if let Frame::Message { sid: ANSWERS_SID, error, .. } = self.next().await? {
                return error.map_or(Ok(()), |error| bail!("{subject}: {error}"));
            }
        }
    }

    async fn subscribe(&mut self, subscription: Subscription) -> Result<()> {
        let (subjects, policy) = match subscription {
            Subscription::None => return Ok(()),
            // Its author is of the same group.
            Subscription::Everything { author } => (vec![self.fleet.subject(author)], "all"),
            Subscription::Others => {
                let group = self.connection / GROUP * GROUP;
                let others = (group..group + GROUP).filter(|&one| one != self.connection);
                (others.map(|one| self.fleet.subject(one)).collect(), "new")
            }
        };
        if self.fleet.delivery == Delivery::Core && policy == "new" {
            for (sid, subject) in (EVENTS_SID..).zip(&subjects) {
                self.line(&format!("SUB {subject} {sid}"));
            }
            return self.settle().await;
        }
        // Not below the inbox, whose subscription would be told too.
        let deliver = format!("_DELIVER.{}.{}", self.fleet.prefix, self.connection);
        self.line(&format!("SUB {deliver} {EVENTS_SID}"));
        let config = serde_json::json!({
            "deliver_subject": deliver, "deliver_policy": policy, "filter_subjects": subjects,
            "ack_policy": "none", "replay_policy": "instant", "mem_storage": true, "num_replicas": 1,
        });
        let stream = self.fleet.stream(self.connection);
        let body = serde_json::json!({ "stream_name": stream, "config": config });
        self.ask(&format!("$JS.API.CONSUMER.CREATE.{stream}"), &body).await
    }

    /// The next thing that the server says. Cancel-safe.
    async fn next(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = take(&mut self.input)? {
                return Ok(frame);
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<()> {
        self.input.reserve(INPUT_BYTES / 4);
        let count = self.socket.read_buf(&mut self.input).await?;
        ensure!(count > 0, "the server ended the connection");
        Ok(())
    }

    fn came(&mut self, frame: Frame) -> Result<Option<Came>> {
        Ok(match frame {
            Frame::Message { sid: ANSWERS_SID, error: Some(error), .. } => Some(Came::Refused(error)),
            Frame::Message { sid: ANSWERS_SID, subject_tail, .. } => Some(Came::Acknowledged(subject_tail)),
            Frame::Message { payload, .. } => {
                let (author, index) = self.fleet.payloads.read(&payload)?;
                Some(Came::Delivered(author, index))
            }
            Frame::Ping => {
                self.line("PONG");
                None
            }
            Frame::Pong | Frame::Other => None,
        })
    }
}

fn inbox(fleet: &Fleet, connection: usize) -> String {
    format!("_INBOX.{}.{connection}", fleet.prefix)
}

impl Connection for Nats {
    type Fleet = Fleet;

    async fn prepare(arguments: &Arguments, target: &Target, payloads: Arc<Payloads>) -> Result<Fleet> {
        let mut run = [0; 8];
        getrandom::fill(&mut run)?;
        let prefix = format!("{SUBJECTS}.{:016x}", u64::from_be_bytes(run));
        let (delivery, payload_bytes) = (arguments.delivery, arguments.payload_bytes);
        let fleet = Arc::new(Fleet { payloads, delivery, payload_bytes, prefix });
        let mut nats = Self::connect(Arc::clone(&fleet), target, usize::MAX).await?;
        for first in (0..arguments.connections).step_by(GROUP) {
            nats.ask(&format!("$JS.API.STREAM.CREATE.{}", fleet.stream(first)), &fleet.stream_config(first)).await?;
        }
        drop(nats);
        Arc::into_inner(fleet).context("a connection outlived its use")
    }

    async fn open(fleet: Arc<Fleet>, target: &Target, connection: usize, subscription: Subscription) -> Result<Self> {
        let mut nats = Self::connect(fleet, target, connection).await?;
        nats.subscribe(subscription).await?;
        Ok(nats)
    }

    fn publish(&mut self, index: usize) -> Result<()> {
        self.output.extend_from_slice(&self.head);
        self.output.extend_from_slice(index.to_string().as_bytes());
        self.output.extend_from_slice(&self.tail);
        self.fleet.payloads.write(&mut self.output, (self.connection, index));
        self.output.extend_from_slice(b"\r\n");
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        self.socket.write_all(&self.output).await?;
        self.output.clear();
        Ok(())
    }

    async fn receive(&mut self, came: &mut Vec<Came>) -> Result<()> {
        loop {
            while let Some(frame) = take(&mut self.input)? {
                came.extend(self.came(frame)?);
            }
            if !came.is_empty() || !self.output.is_empty() {
                return Ok(());
            }
            self.read().await?;
        }
    }
}

/// Takes one thing that the server said off the input; nothing where it is not complete yet.
fn take(input: &mut BytesMut) -> Result<Option<Frame>> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        ensure!(input.len() <= LINE_BYTES_MAX, "a line without an end");
        return Ok(None);
    };
    let line = std::str::from_utf8(&input[..end])?.trim_end_matches('\r');
    let mut words = line.split(' ');
    let verb = words.next().unwrap_or_default();
    if !matches!(verb, "MSG" | "HMSG") {
        ensure!(verb != "-ERR", "the server says {line}");
        let frame = match verb {
            "PING" => Frame::Ping,
            "PONG" => Frame::Pong,
            _ => Frame::Other,
        };
        input.advance(end + 1);
        return Ok(Some(frame));
    }
    let subject = words.next().context("a message without a subject")?;
    let sid: u64 = words.next().context("a message without a subscription")?.parse()?;
    let subject_tail = subject.rsplit('.').next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let length: usize = words.next_back().context("a message without a length")?.parse()?;
    let headers: usize =
        if verb == "HMSG" { words.next_back().context("headers without a length")?.parse()? } else { 0 };
    ensure!(headers <= length, "headers longer than their message");
    let whole = end + 1 + length + 2;
    if input.len() < whole {
        return Ok(None);
    }
    input.advance(end + 1);
    let mut payload = input.split_to(length);
    input.advance(2);
    payload.advance(headers);
    let error = (sid == ANSWERS_SID && (headers > 0 || memmem::find(&payload, b"\"error\"").is_some())).then(|| {
        if headers > 0 { "nobody answers".to_owned() } else { String::from_utf8_lossy(&payload).into_owned() }
    });
    Ok(Some(Frame::Message { sid, subject_tail, error, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUT: &[u8] = b"INFO {\"a\":1}\r\nPING\r\nMSG _INBOX.x.3.17 1 29\r\n{\"stream\":\"S\", \"seq\":1234567}\r\n\
        MSG s.0.1 2 $JS.ACK.S.c.1.2.3.4.5 5\r\nhello\r\nHMSG _INBOX.x.3.0 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\nPONG\r\n";

    #[test]
    fn each_group_has_a_stream_of_its_own_with_its_subjects() -> Result<()> {
        let payloads = Arc::new(Payloads::new(16)?);
        let prefix = "keepstep.0f".to_owned();
        let fleet = Fleet { payloads, delivery: Delivery::Stream, payload_bytes: 16, prefix };
        let streams: Vec<String> = [0, GROUP - 1, GROUP, 2 * GROUP].map(|connection| fleet.stream(connection)).into();
        assert_eq!(streams, ["keepstep-0f-0", "keepstep-0f-0", "keepstep-0f-1", "keepstep-0f-2"]);
        assert_eq!(fleet.stream_config(GROUP)["subjects"], serde_json::json!(["keepstep.0f.1.*"]));
        assert_eq!(fleet.subject(GROUP + 2), "keepstep.0f.1.2");
        Ok(())
    }

    #[test]
    fn what_the_server_says_is_told_apart() -> Result<()> {
        let mut input = BytesMut::from(INPUT);
        let mut seen = Vec::new();
        while let Some(frame) = take(&mut input)? {
            seen.push(match frame {
                Frame::Message { sid, subject_tail, error, payload } => {
                    format!("{sid} {subject_tail} {error:?} {}", payload.len())
                }
                Frame::Ping => "ping".to_owned(),
                Frame::Pong => "pong".to_owned(),
                Frame::Other => "other".to_owned(),
            });
        }
        assert_eq!(seen, ["other", "ping", "1 17 None 29", "2 1 None 5", "1 0 Some(\"nobody answers\") 0", "pong"]);
        assert!(input.is_empty());
        Ok(())
    }

    #[test]
    fn what_is_cut_short_waits_for_the_rest() -> Result<()> {
        for length in 0..INPUT.len() {
            let mut input = BytesMut::from(&INPUT[..length]);
            while take(&mut input)?.is_some() {}
            input.extend_from_slice(&INPUT[length..]);
            while take(&mut input)?.is_some() {}
            assert!(input.is_empty(), "cut at {length}");
        }
        Ok(())
    }

    #[test]
    fn an_error_of_the_server_ends_the_run() {
        assert!(take(&mut BytesMut::from(&b"-ERR 'Authorization Violation'\r\n"[..])).is_err());
        assert!(take(&mut BytesMut::from(&b"MSG a 2 x\r\n"[..])).is_err());
    }
}
