//! What the bytes of a socket are, from the first that a stranger sends to the last of a device's.

use keepstep_core::incoming::Incoming;
use keepstep_core::websocket::{End, FrameReader, Received};

use crate::incoming::SharedRecords;
use crate::websocket::end_name;

/// Largest upgrade request, bytes; one chunk above it is looked at.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// What no method begins with, but TLS does: it would be waited for without end.
const CONTROL_MAX: u8 = 0x20;
/// What a peer that is gone is called, for whom no frame says why.
pub(crate) const GONE: &str = "gone";

/// Where a connection is.
pub(crate) enum Stage {
    /// It sends its upgrade request, of which so much came.
    Request(Vec<u8>),
    /// A stranger's messages are frames.
    Messages,
    /// A device's messages are records in frames.
    Session(SharedRecords),
    /// It has been told to leave; what it still says is passed over.
    Farewell,
}

/// What one chunk of a socket's bytes was.
#[derive(Default)]
pub(crate) struct Chunk {
    /// The request's head and what came behind it, or messages.
    pub(crate) opened: Vec<Incoming>,
    /// Of a session's messages.
    pub(crate) record_bytes: usize,
    /// Frames that answer frames.
    pub(crate) replies: Vec<u8>,
    pub(crate) end: Option<&'static str>,
}

impl Stage {
    /// Whether nothing is taken behind what was given, until more is asked for.
    pub(crate) const fn is_strangers(&self) -> bool {
        matches!(self, Self::Request(_) | Self::Messages)
    }

    /// Takes bytes in their order.
    pub(crate) fn take(&mut self, reader: &mut FrameReader, data: &[u8]) -> Chunk {
        match self {
            Self::Request(received) => take_request(received, data),
            Self::Farewell => {
                let is_answer = reader.feed(data, &mut Received::default()) == Some(End::Closed);
                Chunk { end: is_answer.then_some(end_name(End::Closed)), ..Chunk::default() }
            }
            Self::Messages | Self::Session(_) => {
                let mut received = Received::default();
                let end = reader.feed(data, &mut received).map(end_name);
                let Received { messages, replies } = received;
                let record_bytes = messages.iter().map(Vec::len).sum();
                let opened = match self {
                    Self::Session(records) => records.read(messages),
                    _ => messages.into_iter().map(Incoming::Message).collect(),
                };
                Chunk { opened, record_bytes, replies, end }
            }
        }
    }
}

/// Its head and what came behind it, once it is whole.
fn take_request(received: &mut Vec<u8>, data: &[u8]) -> Chunk {
    let start = received.len().saturating_sub(3);
    received.extend_from_slice(data);
    let mut chunk = Chunk::default();
    if received.first().is_some_and(|&first| first <= CONTROL_MAX) {
        chunk.end = Some(GONE);
    } else if let Some(end) = head_end(&received[start..]) {
        let rest = received.split_off(start + end);
        chunk.opened = vec![Incoming::Message(std::mem::take(received)), Incoming::Message(rest)];
    } else if received.len() > REQUEST_BYTES_MAX {
        chunk.end = Some(GONE);
    }
    chunk
}

/// Where an empty line ends, if there is one; a line may end without a carriage return.
fn head_end(data: &[u8]) -> Option<usize> {
    let after = |index: usize| match data.get(index + 1..)? {
        [b'\n', ..] => Some(index + 2),
        [b'\r', b'\n', ..] => Some(index + 3),
        _ => None,
    };
    data.iter().enumerate().filter(|&(_, &byte)| byte == b'\n').find_map(|(index, _)| after(index))
}
