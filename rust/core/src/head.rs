//! A stream's head and its authors: one row version, cached as one value (docs/adr/0051).

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::hash::{Hash, chain_0};
use crate::msgpack::INTEGER_MAX;
use crate::policy::Policy;

/// Most authors packed into the streams row; above it they live in the authors table.
pub const AUTHORS_PACKED_MAX: usize = 16;
/// Largest time, unix milliseconds: what a UUIDv7 can hold (the year 10889).
pub const TIME_MS_MAX: u64 = (1 << 48) - 1;
/// Largest seq of a loaded head: no batch brings it above a bigint.
pub const SEQ_MAX: u64 = 1 << 62;

const AUTHOR_BYTES: usize = 8 + 8 + 8 + 32;

/// What the log knows of one device in one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// The device's row number.
    pub device_pk: i64,
    /// Its last author number.
    pub last_n: u64,
    /// Where that event is.
    pub last_seq: u64,
    /// That event's hash.
    pub last_hash: Hash,
}

impl Author {
    /// A device that never wrote.
    pub const fn new(device_pk: i64) -> Self {
        Self { device_pk, last_n: 0, last_seq: 0, last_hash: [0; 32] }
    }

    fn pack(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(&self.device_pk.to_be_bytes());
        output.extend_from_slice(&self.last_n.to_be_bytes());
        output.extend_from_slice(&self.last_seq.to_be_bytes());
        output.extend_from_slice(&self.last_hash);
    }

    fn unpack(packed: &[u8; AUTHOR_BYTES]) -> Option<Self> {
        Some(Self {
            device_pk: i64::from_be_bytes(*packed.first_chunk()?),
            last_n: u64::from_be_bytes(*packed[8..].first_chunk()?),
            last_seq: u64::from_be_bytes(*packed[16..].first_chunk()?),
            last_hash: *packed.last_chunk()?,
        })
    }
}

/// One stream's head. Immutable.
#[derive(Clone, Debug)]
pub struct StreamHead {
    /// The user's row number.
    pub user_pk: i64,
    /// The stream's row number, unique within the user.
    pub stream_pk: i64,
    /// The stream's name.
    pub name: Arc<str>,
    /// Which event table its rows live in.
    pub retention_class: i16,
    /// What becomes of concurrent events.
    pub policy: Policy,
    /// The longest life of an application event, seconds.
    pub ttl_max_s: Option<u64>,
    /// The most bytes that the rows may hold, as the policy says.
    pub bytes_max: Option<u64>,
    /// What the rows hold at most: payloads that went since this head was loaded are still in it.
    pub stored_bytes: u64,
    /// The last sequence number, 0 for none.
    pub seq: u64,
    /// The chain there.
    pub chain: Hash,
    /// When the last event was received, unix milliseconds; it never steps back.
    pub received_at_ms: u64,
    /// Guards against changes of the account.
    pub auth_epoch: i64,
    /// Ascending by device.
    pub authors: Arc<[Author]>,
    /// Whether the authors live in the authors table.
    pub authors_in_table: bool,
}

impl StreamHead {
    /// Whether the stream takes what `other` takes: no policy event came in between.
    pub fn has_rules_of(&self, other: &Self) -> bool {
        (self.policy, self.ttl_max_s, self.bytes_max) == (other.policy, other.ttl_max_s, other.bytes_max)
    }

    /// A new stream: policy `append`, seq 0, the chain of nothing, no authors.
    pub fn create(
        user_pk: i64,
        user_key: &[u8; 32],
        stream_pk: i64,
        name: &str,
        retention_class: i16,
        auth_epoch: i64,
    ) -> Self {
        Self {
            user_pk,
            stream_pk,
            name: name.into(),
            retention_class,
            policy: Policy::Append,
            ttl_max_s: None,
            bytes_max: None,
            stored_bytes: 0,
            seq: 0,
            chain: chain_0(user_key, name),
            received_at_ms: 0,
            auth_epoch,
            authors: Arc::default(),
            authors_in_table: false,
        }
    }

    /// Takes the authors as the database has them: packed bytes, or, where these are empty, rows of the authors table.
    pub fn with_stored_authors(mut self, packed: &[u8], rows: Vec<Author>) -> Result<Self> {
        let inconsistent = Error::Argument("the stored authors do not belong to this head");
        let (records, rest) = packed.as_chunks::<AUTHOR_BYTES>();
        if !rest.is_empty() || records.len() > AUTHORS_PACKED_MAX || !(packed.is_empty() || rows.is_empty()) {
            return Err(inconsistent);
        }
        self.authors_in_table = !rows.is_empty();
        let mut authors = rows;
        authors.extend(records.iter().filter_map(Author::unpack));
        authors.sort_unstable_by_key(|author| author.device_pk);
        let distinct = authors.windows(2).all(|pair| pair[0].device_pk < pair[1].device_pk);
        let possible = authors
            .iter()
            .all(|author| (1..=INTEGER_MAX).contains(&author.last_n) && (1..=self.seq).contains(&author.last_seq));
        let bounded = self.seq <= SEQ_MAX && self.received_at_ms <= TIME_MS_MAX;
        if !distinct || !possible || !bounded || authors.is_empty() != (self.seq == 0) {
            return Err(inconsistent);
        }
        self.authors = authors.into();
        Ok(self)
    }

    /// The streams row's bytes; empty where the authors live in the table.
    pub fn authors_packed(&self) -> Vec<u8> {
        let mut packed = Vec::new();
        if !self.authors_in_table {
            packed.reserve(self.authors.len() * AUTHOR_BYTES);
            for author in self.authors.iter() {
                author.pack(&mut packed);
            }
        }
        packed
    }

    /// What the log knows of a device; `None` where it never wrote.
    pub fn author(&self, device_pk: i64) -> Option<&Author> {
        let index = self.authors.binary_search_by_key(&device_pk, |author| author.device_pk).ok()?;
        self.authors.get(index)
    }
}
