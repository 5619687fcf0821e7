//! What a stream does with its events: the payload of a policy event (protocol.md section 3, "Policies").

use crate::error::{Error, Result};
use crate::header::TTL_S_MAX;
use crate::msgpack::Reader;

const VERSION: u64 = 1;
const FIELDS: u64 = 5;
/// The retention classes that a stream may choose: 0 keep, 1 standard.
const RETENTION_CLASS_MAX: u64 = 1;

/// What becomes of events that do not know of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// 0: every valid event gets the next seq.
    #[default]
    Append,
    /// 1: `base` must be the head.
    Expect,
    /// 2: stored whatever `base` is; readers see what it is concurrent with.
    Fork,
    /// 3: per `key` the event with the highest (hlc, device id) wins.
    Latest,
}

impl Policy {
    /// The number on the wire and in the streams table.
    pub const fn number(self) -> u8 {
        match self {
            Self::Append => 0,
            Self::Expect => 1,
            Self::Fork => 2,
            Self::Latest => 3,
        }
    }

    /// The policy with that number.
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Append),
            1 => Some(Self::Expect),
            2 => Some(Self::Fork),
            3 => Some(Self::Latest),
            _ => None,
        }
    }
}

/// What a policy event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What becomes of concurrent events.
    pub policy: Policy,
    /// Which event table the stream's rows live in.
    pub retention_class: i16,
    /// The longest life of an application event, seconds; `None` where it may live for ever.
    pub ttl_max_s: Option<u64>,
    /// The most bytes that the stream's rows may hold; `None` where it has no bound of its own.
    pub bytes_max: Option<u64>,
}

impl Rules {
    /// Decodes `[1, policy, retention_class, ttl_max_s | nil, stream_bytes_max | nil]`, minimal encoding, nothing after it.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(payload);
        let fields = reader.array()?;
        if reader.integer()? != VERSION {
            return Err(Error::Unsupported("no such version of a policy"));
        }
        if fields != FIELDS {
            return Err(Error::Malformed("a policy has 5 fields"));
        }
        let policy = reader.integer()?;
        let retention_class = reader.integer()?;
        let ttl_max_s = reader.optional_integer()?;
        let bytes_max = reader.optional_integer()?;
        reader.end()?;
        if ttl_max_s.is_some_and(|ttl_s| !(1..=TTL_S_MAX).contains(&ttl_s)) {
            return Err(Error::Malformed("the longest ttl is not in 1 s to 100 years"));
        }
        let policy = Policy::from_number(policy).ok_or(Error::Unsupported("no such policy"))?;
        if retention_class > RETENTION_CLASS_MAX {
            return Err(Error::Unsupported("no such retention class"));
        }
        let retention_class =
            i16::try_from(retention_class).map_err(|_| Error::Unsupported("no such retention class"))?;
        Ok(Self { policy, retention_class, ttl_max_s, bytes_max })
    }
}
