//! An event's header (protocol.md section 3): strict decoding, and which kind goes into which stream.

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::msgpack::Reader;

/// Longest name of a stream, bytes.
pub const STREAM_NAME_BYTES_MAX: usize = 128;
/// Longest life of an event, seconds: 100 years of 365 days. With the bound on times no sum overflows a bigint.
pub const TTL_S_MAX: u64 = 100 * 365 * 24 * 60 * 60;

/// The stream of a user's account log.
pub const DEVICES_STREAM: &str = "$devices";
/// The stream of a user's wrapped content keys.
pub const KEYS_STREAM: &str = "$keys";
/// What a device's inbox begins with; the device's id follows as 32 lowercase hexadecimal digits.
pub const INBOX_PREFIX: &str = "$inbox/";

const VERSION: u64 = 1;
const FIELDS: u64 = 14;

/// What an event is (protocol.md section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// 0: the application's own, sealed.
    Application,
    /// 1: what the stream does with its events.
    Policy,
    /// 2: the state after a prefix of the stream, sealed.
    Snapshot,
    /// 3: a device's word that a snapshot is right.
    Confirm,
    /// 4: the end of some payloads.
    Erase,
    /// 5: a change of the account log.
    Account,
    /// 6: wrapped content keys.
    Keys,
}

impl Kind {
    /// The number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Application => 0,
            Self::Policy => 1,
            Self::Snapshot => 2,
            Self::Confirm => 3,
            Self::Erase => 4,
            Self::Account => 5,
            Self::Keys => 6,
        }
    }

    /// Whether the event is checked against what is stored before it is, and so is stored alone.
    pub const fn checked_apart(self) -> bool {
        matches!(self, Self::Snapshot | Self::Confirm | Self::Erase)
    }

    /// Whether it lives in `$devices` or `$keys`.
    pub const fn is_reserved(self) -> bool {
        matches!(self, Self::Account | Self::Keys)
    }

    /// Whether it bounds, empties or vouches for a stream and holds nothing of the application.
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Policy | Self::Confirm | Self::Erase)
    }

    fn from_number(number: u64) -> Result<Self> {
        match number {
            0 => Ok(Self::Application),
            1 => Ok(Self::Policy),
            2 => Ok(Self::Snapshot),
            3 => Ok(Self::Confirm),
            4 => Ok(Self::Erase),
            5 => Ok(Self::Account),
            6 => Ok(Self::Keys),
            _ => Err(Error::Unsupported("no such kind of event")),
        }
    }

    /// Account events live in `$devices`, keys in `$keys`, application events in inboxes and application streams, all
    /// others in application streams, whose names do not start with `$`.
    fn check_stream(self, stream: &str) -> Result<()> {
        let belongs = match stream {
            DEVICES_STREAM => self == Self::Account,
            KEYS_STREAM => self == Self::Keys,
            _ if is_inbox(stream) => self == Self::Application,
            _ if stream.starts_with('$') => return Err(Error::UnknownStream),
            _ => !matches!(self, Self::Account | Self::Keys),
        };
        if belongs { Ok(()) } else { Err(Error::Malformed("this kind of event does not go into that stream")) }
    }
}

/// A position in a stream, as an author names it.
pub type Position = (u64, Hash);

/// What an event builds on, for policies that ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// It does not say.
    Unnamed,
    /// The author's own event with this number.
    Own(u64),
    /// That position.
    At(Position),
}

/// A decoded header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// What the event is.
    pub kind: Kind,
    /// UUID version 7.
    pub id: [u8; 16],
    /// The stream's name.
    pub stream: &'a str,
    /// The author number: 1, 2, 3 … per device and stream.
    pub n: u64,
    /// First 16 bytes of the hash of the author's event n - 1; zeros for n = 1.
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
    /// Life after `received_at`, seconds, 1 to `TTL_S_MAX`.
    pub ttl_s: Option<u64>,
    /// Length of the payload, bytes.
    pub payload_len: u64,
    /// BLAKE3 of the payload.
    pub payload_hash: Hash,
}

impl<'a> Header<'a> {
    /// Decodes exactly one header in minimal encoding, with nothing after it.
    pub fn decode(bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let fields = reader.array()?;
        if reader.integer()? != VERSION {
            return Err(Error::Unsupported("no such version of the event header"));
        }
        if fields != FIELDS {
            return Err(Error::Malformed("an event header has 14 fields"));
        }
        let kind = reader.integer()?;
        let id = reader.binary_of()?;
        let stream = stream_name(reader.text()?)?;
        let n = reader.integer()?;
        let prev = reader.binary_of()?;
        let base = base(&mut reader)?;
        let seen = position(&mut reader)?;
        let devices_seen = position(&mut reader)?;
        let key = if reader.nil() { None } else { Some(reader.binary_of()?) };
        let hlc = reader.integer()?;
        let ttl_s = reader.optional_integer()?;
        let payload_len = reader.integer()?;
        let payload_hash = reader.binary_of()?;
        reader.end()?;
        check_form(n, &id, ttl_s)?;
        let kind = Kind::from_number(kind)?;
        kind.check_stream(stream)?;
        if (stream.starts_with('$') || kind != Kind::Application) && ttl_s.is_some() {
            return Err(Error::Malformed("only an application event of an application stream has a ttl"));
        }
        Ok(Self { kind, id, stream, n, prev, base, seen, devices_seen, key, hlc, ttl_s, payload_len, payload_hash })
    }

    /// The creation time in the id, unix milliseconds (RFC 9562 section 5.7).
    pub fn id_time_ms(&self) -> u64 {
        self.id[..6].iter().fold(0, |time, &byte| (time << 8) | u64::from(byte))
    }
}

/// Whether a stream is the inbox of some device.
pub fn is_inbox(stream: &str) -> bool {
    stream.strip_prefix(INBOX_PREFIX).is_some_and(|id| {
        id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
    })
}

/// The bounds that hold for every kind of event, also those of later versions.
fn check_form(n: u64, id: &[u8; 16], ttl_s: Option<u64>) -> Result<()> {
    if n == 0 {
        return Err(Error::Malformed("author numbers start at 1"));
    }
    if id[6] >> 4 != 7 || id[8] >> 6 != 0b10 {
        return Err(Error::Malformed("the event id is not a UUID of version 7"));
    }
    if ttl_s.is_some_and(|ttl_s| !(1..=TTL_S_MAX).contains(&ttl_s)) {
        return Err(Error::Malformed("the ttl is not in 1 s to 100 years"));
    }
    Ok(())
}

fn stream_name(bytes: &[u8]) -> Result<&str> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:@/$-".contains(byte);
    if bytes.is_empty() || bytes.len() > STREAM_NAME_BYTES_MAX || !bytes.iter().all(allowed) {
        return Err(Error::Malformed("not a stream name"));
    }
    std::str::from_utf8(bytes).map_err(|_| Error::Malformed("not a stream name"))
}

fn position(reader: &mut Reader<'_>) -> Result<Position> {
    if reader.array()? != 2 {
        return Err(Error::Malformed("a position is [seq, chain]"));
    }
    Ok((reader.integer()?, reader.binary_of()?))
}

fn base(reader: &mut Reader<'_>) -> Result<Base> {
    if reader.nil() {
        return Ok(Base::Unnamed);
    }
    if reader.at_array() { position(reader).map(Base::At) } else { reader.integer().map(Base::Own) }
}
