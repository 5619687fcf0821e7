//! What the records of one device say: opened in their order, rekeys heeded, publishes parsed (protocol.md sections 2 to 4).
//!
//! Only what the record layer itself has to know of a message is decoded here, and what is frequent. Messages need not be in minimal
//! encoding and may have fields that this version does not know; what is signed inside them is read strictly.

use std::ops::Range;
use std::sync::Arc;

use crate::aead::{RecordKey, TAG_BYTES};
use crate::error::{Error, Result};
use crate::event::{Events, Signer};
use crate::ingest::Submission;
use crate::msgpack::LenientReader;

/// Largest message of a session, bytes (`messages.MESSAGE_BYTES_MAX`).
pub const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Largest list of events in a publish, bytes (`messages.PUBLISH_BYTES_MAX`).
pub const PUBLISH_BYTES_MAX: usize = 1024 * 1024;

/// `messages.Publish`: `[16, rid, [event…]]`.
const PUBLISH: u64 = 16;
const PUBLISH_FIELDS: u64 = 3;
/// `messages.Rekey`: `[26]`.
const REKEY: u64 = 26;

const OTHER_FORM: Error = Error::Malformed("a message is not the documented MessagePack form");

/// The device whose records they are, and what one of its publishes may hold.
pub struct Author {
    /// The user's row number.
    pub user_pk: i64,
    /// The device's row number.
    pub device_pk: i64,
    /// User, device and key that the signatures bind.
    pub signer: Arc<Signer>,
    /// Capability bits that its submissions begin with.
    pub capabilities: u64,
    /// Events in one publish.
    pub events_max: usize,
    /// Bytes of one payload.
    pub payload_bytes_max: usize,
}

/// What one record was.
pub enum Incoming {
    /// A publish: its rid, and its events or why they are refused; the session goes on either way.
    Publish(u64, Result<Submission>),
    /// Any other message, as it was sealed.
    Message(Vec<u8>),
    /// The record ends the session.
    Fault(Error),
}

/// What a message is to the record layer.
enum Kind {
    Publish { rid: u64, events: Range<usize> },
    Rekey,
    Other,
}

/// Reads one device's records.
pub struct RecordReader {
    author: Author,
    records_max: u64,
    is_over: bool,
}

impl RecordReader {
    /// A reader that takes at most `records_max` records under one secret, the rekey among them.
    pub const fn new(author: Author, records_max: u64) -> Self {
        Self { author, records_max, is_over: false }
    }

    /// Reads one record. Gives nothing any more after a fault.
    pub fn read(&mut self, key: &mut RecordKey, record: Vec<u8>) -> Option<Incoming> {
        if self.is_over {
            return None;
        }
        Some(self.open(key, record).unwrap_or_else(|error| {
            self.is_over = true;
            Incoming::Fault(error)
        }))
    }

    fn open(&self, key: &mut RecordKey, mut record: Vec<u8>) -> Result<Incoming> {
        if record.len() > MESSAGE_BYTES_MAX + TAG_BYTES {
            return Err(Error::TooLarge("a record is above the limit"));
        }
        key.open_in_place(&mut record)?;
        let kind = Kind::of(&record)?;
        if matches!(kind, Kind::Rekey) {
            key.rekey()?;
        } else if key.records() >= self.records_max {
            return Err(Error::Unexpected("the peer used a secret for too many records"));
        }
        match kind {
            Kind::Publish { rid, events } => Ok(Incoming::Publish(rid, self.submission(&record[events]))),
            Kind::Rekey | Kind::Other => Ok(Incoming::Message(record)),
        }
    }

    fn submission(&self, raw: &[u8]) -> Result<Submission> {
        let Author { user_pk, device_pk, ref signer, capabilities, events_max, payload_bytes_max } = self.author;
        let events = Arc::new(Events::parse(Arc::from(raw), events_max, payload_bytes_max)?);
        let signer = Arc::clone(signer);
        Ok(Submission { user_pk, device_pk, signer, capabilities, suspect: false, anew: false, events })
    }
}

impl Kind {
    /// Of an opened message. What is no `[type, …]` is left to whoever decodes the others.
    fn of(message: &[u8]) -> Result<Self> {
        let mut reader = LenientReader::new(message);
        let Ok(fields @ 1..) = reader.array() else { return Ok(Self::Other) };
        match reader.integer() {
            Ok(PUBLISH) => Self::publish(message, reader, fields).map_err(|error| match error {
                Error::TooLarge(_) => error,
                _ => OTHER_FORM,
            }),
            Ok(REKEY) => {
                reader.skip(fields - 1).and_then(|()| reader.end()).map_err(|_| OTHER_FORM)?;
                Ok(Self::Rekey)
            }
            _ => Ok(Self::Other),
        }
    }

    fn publish(message: &[u8], mut reader: LenientReader<'_>, fields: u64) -> Result<Self> {
        let more = fields.checked_sub(PUBLISH_FIELDS).ok_or(OTHER_FORM)?;
        let rid = reader.integer()?;
        let start = message.len() - reader.remaining();
        reader.skip(1)?;
        let events = start..message.len() - reader.remaining();
        reader.skip(more)?;
        reader.end()?;
        if events.len() > PUBLISH_BYTES_MAX {
            return Err(Error::TooLarge("the events of a publish are above the limit"));
        }
        Ok(Self::Publish { rid, events })
    }
}
