//! The events of one publish message: parsed in one pass, each with its hash, its own error and its cached verdict.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::ed25519::{PublicKey, SIGNATURE_BYTES};
use crate::error::{Error, Result};
use crate::hash::{Hash, blake3, event_hash};
use crate::header::{Base, Header, Kind, Position};
use crate::msgpack::Reader;
use crate::policy::Rules;

/// Longest trace context an event carries, bytes.
pub const TRACE_BYTES_MAX: usize = 256;

const SIGNING_CONTEXT: &[u8] = b"keepstep/v1/event\0";
const EVENT_FIELDS: u64 = 4;

/// Who signs: the fields a signature binds besides the header.
#[derive(Debug, PartialEq, Eq)]
pub struct Signer {
    /// The user id.
    pub user_key: [u8; 32],
    /// The device's UUID.
    pub device_id: [u8; 16],
    /// The device's key.
    pub device_key: PublicKey,
}

impl Signer {
    /// The signed bytes, in parts: context ‖ `user_key` ‖ `device_id` ‖ header (protocol.md section 3).
    pub fn signing_input<'a>(&'a self, header: &'a [u8]) -> [&'a [u8]; 4] {
        [SIGNING_CONTEXT, &self.user_key, &self.device_id, header]
    }
}

/// Whether the signature is this signer's.
#[derive(Clone)]
struct Verdict {
    signer: Arc<Signer>,
    good: bool,
}

/// What a well-formed event's header says, with the stream as an index.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What the event is.
    pub kind: Kind,
    /// UUID version 7.
    pub id: [u8; 16],
    /// Its creation time, unix milliseconds.
    pub id_time_ms: u64,
    /// Index into `Events::streams`.
    pub stream: usize,
    /// The author number.
    pub n: u64,
    /// First 16 bytes of the hash of the author's event n - 1.
    pub prev: [u8; 16],
    /// What the event builds on.
    pub base: Base,
    /// What the author had verified of this stream.
    pub seen: Position,
    /// What the author had verified of `$devices`.
    pub devices_seen: Position,
    /// What is written, for the policy `latest`.
    pub key: Option<[u8; 16]>,
    /// Unix milliseconds · 2^16 + counter.
    pub hlc: u64,
    /// Life after `received_at`, seconds.
    pub ttl_s: Option<u64>,
    /// What a policy event says.
    pub rules: Option<Rules>,
    /// `H("keepstep/v1/event-hash", header ‖ sig)`.
    pub hash: Hash,
}

#[derive(Clone)]
struct Event {
    fields: Fields,
    parsed: Result<Parsed>,
    verdict: OnceLock<Verdict>,
}

/// An event's bytes as they were received.
#[derive(Clone, Copy)]
pub struct Bytes<'a> {
    /// The header, as signed.
    pub header: &'a [u8],
    /// The signature, 64 bytes in a well-formed event.
    pub signature: &'a [u8],
    /// The payload; `None` where it was dropped, which only stored events may show.
    pub payload: Option<&'a [u8]>,
    /// The trace context, if any; it is relayed, not stored.
    pub trace: Option<&'a [u8]>,
}

impl Bytes<'_> {
    /// What the row counts in `streams.stored_bytes`: header, signature and payload.
    pub fn stored(&self) -> u64 {
        (self.header.len() + self.signature.len() + self.payload.map_or(0, <[u8]>::len)) as u64
    }
}

/// The events of one publish message.
pub struct Events {
    raw: Arc<[u8]>,
    events: Vec<Event>,
    streams: Vec<Arc<str>>,
    payload_bytes: usize,
}

impl Events {
    /// Parses `[[header, sig, payload|nil, trace|nil]…]`, minimal encoding, nothing after it.
    ///
    /// Refuses what does not have that form, is empty, or holds more than `events_max`. A fault inside an event is kept
    /// with the event.
    pub fn parse(raw: Arc<[u8]>, events_max: usize, payload_bytes_max: usize) -> Result<Self> {
        Self::read(raw, events_max, payload_bytes_max, false)
    }

    /// As `parse`, of events that were stored before, whose payloads may have been dropped since.
    pub fn parse_stored(raw: Arc<[u8]>, events_max: usize, payload_bytes_max: usize) -> Result<Self> {
        Self::read(raw, events_max, payload_bytes_max, true)
    }

    fn read(raw: Arc<[u8]>, events_max: usize, payload_bytes_max: usize, stored: bool) -> Result<Self> {
        let mut reader = Reader::new(&raw);
        let count = usize::try_from(reader.array()?).unwrap_or(usize::MAX);
        if count == 0 {
            return Err(Error::Malformed("a publish holds at least one event"));
        }
        if count > events_max {
            return Err(Error::TooLarge("too many events in one publish"));
        }
        let mut streams = Vec::new();
        let mut events = Vec::with_capacity(count.min(raw.len()));
        for _ in 0..count {
            let fields = Fields::read(&mut reader, &raw)?;
            let parsed = fields.parse(&raw, payload_bytes_max, stored, &mut streams);
            events.push(Event { fields, parsed, verdict: OnceLock::new() });
        }
        reader.end()?;
        let payload_bytes = events.iter().map(|event| event.fields.payload_bytes()).sum();
        Ok(Self { raw, events, streams, payload_bytes })
    }

    /// How many events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Never: there is at least one event.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Bytes of memory that they take: those of their message, of which what is no event may have any number, and what was parsed.
    pub fn held_bytes(&self) -> usize {
        self.raw.len() + self.events.len() * size_of::<Event>()
    }

    /// Bytes of all payloads.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Names used by the well-formed events, in order of first use.
    pub fn streams(&self) -> &[Arc<str>] {
        &self.streams
    }

    /// Kinds used by the well-formed events, ascending.
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<_> = self.events.iter().filter_map(|event| Some(event.parsed.as_ref().ok()?.kind)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// What the authors of the well-formed events had verified of `$devices`, each position once, in order of first use.
    pub fn devices_seen(&self) -> Vec<Position> {
        let mut positions: Vec<Position> = Vec::new();
        for parsed in self.events.iter().filter_map(|event| event.parsed.as_ref().ok()) {
            if positions.last() != Some(&parsed.devices_seen) && !positions.contains(&parsed.devices_seen) {
                positions.push(parsed.devices_seen);
            }
        }
        positions
    }

    /// Whether an event is checked against what is stored before it is.
    pub fn checked_apart(&self) -> bool {
        self.events.iter().any(|event| event.parsed.as_ref().is_ok_and(|parsed| parsed.kind.checked_apart()))
    }

    /// Whether an event lives in `$devices` or `$keys`.
    pub fn has_reserved(&self) -> bool {
        self.events.iter().any(|event| event.parsed.as_ref().is_ok_and(|parsed| parsed.kind.is_reserved()))
    }

    /// The event's header, or what is wrong with the event.
    pub fn parsed(&self, index: usize) -> Result<&Parsed> {
        self.events[index].parsed.as_ref().map_err(|error| *error)
    }

    /// The event's bytes.
    pub fn bytes(&self, index: usize) -> Bytes<'_> {
        self.events[index].fields.bytes(&self.raw)
    }

    /// One `Events` per event, in order; verdicts are kept.
    pub fn split(&self) -> Vec<Self> {
        self.events
            .iter()
            .map(|event| {
                let mut event = event.clone();
                let streams = match &mut event.parsed {
                    Ok(parsed) => vec![Arc::clone(&self.streams[std::mem::take(&mut parsed.stream)])],
                    Err(_) => Vec::new(),
                };
                let payload_bytes = event.fields.payload_bytes();
                Self { raw: Arc::clone(&self.raw), events: vec![event], streams, payload_bytes }
            })
            .collect()
    }

    /// Whether the signature is `signer`'s, where that was found out before.
    pub fn verdict(&self, index: usize, signer: &Arc<Signer>) -> Option<bool> {
        let verdict = self.events[index].verdict.get()?;
        (Arc::ptr_eq(&verdict.signer, signer) || verdict.signer == *signer).then_some(verdict.good)
    }

    /// Keeps a verdict; the first signer an event was checked for has the place.
    pub fn keep_verdict(&self, index: usize, signer: &Arc<Signer>, good: bool) {
        self.events[index].verdict.get_or_init(|| Verdict { signer: Arc::clone(signer), good });
    }
}

/// Where in the message an event's fields lie.
#[derive(Clone)]
struct Fields {
    header: Range<usize>,
    signature: Range<usize>,
    payload: Option<Range<usize>>,
    trace: Option<Range<usize>>,
}

impl Fields {
    fn read(reader: &mut Reader<'_>, raw: &[u8]) -> Result<Self> {
        if reader.array()? != EVENT_FIELDS {
            return Err(Error::Malformed("an event is [header, sig, payload, trace]"));
        }
        let binary = |reader: &mut Reader<'_>| {
            let length = reader.binary()?.len();
            let end = raw.len() - reader.remaining();
            Ok(end - length..end)
        };
        Ok(Self {
            header: binary(reader)?,
            signature: binary(reader)?,
            payload: if reader.nil() { None } else { Some(binary(reader)?) },
            trace: if reader.nil() { None } else { Some(binary(reader)?) },
        })
    }

    fn bytes<'a>(&self, raw: &'a [u8]) -> Bytes<'a> {
        Bytes {
            header: &raw[self.header.clone()],
            signature: &raw[self.signature.clone()],
            payload: self.payload.clone().map(|payload| &raw[payload]),
            trace: self.trace.clone().map(|trace| &raw[trace]),
        }
    }

    fn payload_bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, ExactSizeIterator::len)
    }

    /// The part of the server's checks that needs nothing but the event, in their order: size, shape, names, payload.
    fn parse(&self, raw: &[u8], payload_bytes_max: usize, stored: bool, streams: &mut Vec<Arc<str>>) -> Result<Parsed> {
        let bytes = self.bytes(raw);
        if bytes.payload.is_some_and(|payload| payload.len() > payload_bytes_max) {
            return Err(Error::TooLarge("the payload is too large"));
        }
        if bytes.trace.is_some_and(|trace| trace.len() > TRACE_BYTES_MAX) {
            return Err(Error::TooLarge("the trace context is too large"));
        }
        if bytes.signature.len() != SIGNATURE_BYTES {
            return Err(Error::Malformed("a signature has 64 bytes"));
        }
        let header = Header::decode(bytes.header)?;
        let rules = match bytes.payload {
            Some(payload) => read_payload(&header, payload)?,
            None if stored => None,
            None => return Err(Error::Malformed("a published event has its payload")),
        };
        Ok(Parsed {
            kind: header.kind,
            id: header.id,
            id_time_ms: header.id_time_ms(),
            stream: stream_index(streams, header.stream),
            n: header.n,
            prev: header.prev,
            base: header.base,
            seen: header.seen,
            devices_seen: header.devices_seen,
            key: header.key,
            hlc: header.hlc,
            ttl_s: header.ttl_s,
            rules,
            hash: event_hash(bytes.header, bytes.signature),
        })
    }
}

/// The payload is the one that was signed; of a policy, what it says.
fn read_payload(header: &Header<'_>, payload: &[u8]) -> Result<Option<Rules>> {
    if header.payload_len != payload.len() as u64 || header.payload_hash != blake3(payload) {
        return Err(Error::Malformed("the payload is not the one the header names"));
    }
    if header.kind == Kind::Policy { Rules::decode(payload).map(Some) } else { Ok(None) }
}

/// Messages name few streams, and most often the last one again: a search from the end is the fastest map.
fn stream_index(streams: &mut Vec<Arc<str>>, name: &str) -> usize {
    streams.iter().rposition(|known| **known == *name).unwrap_or_else(|| {
        streams.push(name.into());
        streams.len() - 1
    })
}
