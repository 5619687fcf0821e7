//! Committed events of one stream as sessions send them: what the in-memory tail holds.

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::msgpack::{write_array, write_binary, write_integer, write_optional_binary, write_text};

/// What `messages.Events` begins with: an array of four, the first of them 65.
const EVENTS_HEAD: [u8; 2] = [0x94, 65];
/// Of a message beside the rows, the stream's name and the chain: its head, and what says how long those are.
const MESSAGE_OVERHEAD_BYTES_MAX: usize = 2 + 5 + 5 + 2;

/// `[seq, device_id, received_at_ms, header, sig, payload|nil, trace|nil]` (protocol.md section 4, `events`).
pub struct WireRow<'a> {
    /// The place in the stream.
    pub seq: u64,
    /// The author's UUID.
    pub device_id: &'a [u8; 16],
    /// Unix milliseconds.
    pub received_at_ms: u64,
    /// The header, as signed.
    pub header: &'a [u8],
    /// The signature.
    pub signature: &'a [u8],
    /// The payload; `None` where it was deleted.
    pub payload: Option<&'a [u8]>,
    /// The trace context.
    pub trace: Option<&'a [u8]>,
}

impl WireRow<'_> {
    /// Appends the row as MessagePack.
    pub fn write(&self, output: &mut Vec<u8>) -> Result<()> {
        output.push(0x97);
        write_integer(output, self.seq);
        write_binary(output, self.device_id)?;
        write_integer(output, self.received_at_ms);
        write_binary(output, self.header)?;
        write_binary(output, self.signature)?;
        write_optional_binary(output, self.payload)?;
        write_optional_binary(output, self.trace)
    }
}

/// Consecutive events of one stream, encoded. Immutable once built.
pub struct Run {
    /// The user's row number.
    pub user_pk: i64,
    /// The stream's row number.
    pub stream_pk: i64,
    /// Seq of the first event.
    pub first_seq: u64,
    /// The chain before it.
    pub prev_chain: Hash,
    /// Earliest expiry of any event in it, unix milliseconds.
    pub expires_at_ms: Option<u64>,
    rows: Vec<u8>,
    /// Per event, where its row ends and the chain at it.
    ends: Vec<(usize, Hash)>,
}

/// Part of a run: rows, how many, seq of the last and the chain there.
pub struct Page<'a> {
    /// Concatenated `WireRow`s.
    pub rows: &'a [u8],
    /// How many.
    pub count: usize,
    /// Seq of the last.
    pub last_seq: u64,
    /// The chain there.
    pub chain: Hash,
}

impl Run {
    /// A run without events, after `prev_chain`.
    pub fn new(user_pk: i64, stream_pk: i64, first_seq: u64, prev_chain: Hash) -> Self {
        Self { user_pk, stream_pk, first_seq, prev_chain, expires_at_ms: None, rows: Vec::new(), ends: Vec::new() }
    }

    /// Appends the next event; the caller numbers without a gap.
    pub fn push(&mut self, row: &WireRow<'_>, chain: Hash, expires_at_ms: Option<u64>) -> Result<()> {
        row.write(&mut self.rows)?;
        self.ends.push((self.rows.len(), chain));
        self.expires_at_ms = match (self.expires_at_ms, expires_at_ms) {
            (Some(earliest), Some(other)) => Some(earliest.min(other)),
            (earliest, other) => earliest.or(other),
        };
        Ok(())
    }

    /// Seq of the last event.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + self.ends.len() as u64 - 1
    }

    /// The chain at the last event.
    pub fn chain(&self) -> Hash {
        self.ends.last().map_or(self.prev_chain, |(_, chain)| *chain)
    }

    /// How many events.
    pub const fn count(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of their rows.
    pub const fn rows_bytes(&self) -> usize {
        self.rows.len()
    }

    /// Whether its first event is the next one behind another run of the same stream.
    pub fn continues(&self, last: &Self) -> bool {
        self.first_seq == last.last_seq() + 1 && self.prev_chain == last.chain()
    }

    /// All of it as `messages.Events`: `[65, stream, [row…], chain]` (protocol.md section 4).
    pub fn message(&self, stream: &str) -> Result<Vec<u8>> {
        let chain = self.chain();
        let mut message = Vec::with_capacity(self.rows.len() + stream.len() + chain.len() + MESSAGE_OVERHEAD_BYTES_MAX);
        message.extend_from_slice(&EVENTS_HEAD);
        write_text(&mut message, stream)?;
        write_array(&mut message, self.count())?;
        message.extend_from_slice(&self.rows);
        write_binary(&mut message, &chain)?;
        Ok(message)
    }

    /// Bytes it holds in memory.
    pub fn size_bytes(&self) -> usize {
        self.rows.len() + self.ends.len() * size_of::<(usize, Hash)>() + size_of::<Self>()
    }

    /// Rows after seq `after`: as many as fit `events_max` and `bytes_max`, at least one.
    pub fn page(&self, after: u64, events_max: usize, bytes_max: usize) -> Result<Page<'_>> {
        let outside = Error::Argument("the page does not start inside the run");
        let skipped = after
            .checked_sub(self.first_seq - 1)
            .and_then(|skipped| usize::try_from(skipped).ok())
            .filter(|skipped| *skipped < self.ends.len())
            .ok_or(outside)?;
        let start = if skipped == 0 { 0 } else { self.ends[skipped - 1].0 };
        let candidates = &self.ends[skipped..self.ends.len().min(skipped.saturating_add(events_max))];
        let count = candidates.partition_point(|(end, _)| end - start <= bytes_max).max(1);
        let (end, chain) = self.ends[skipped + count - 1];
        Ok(Page { rows: &self.rows[start..end], count, last_seq: after + count as u64, chain })
    }
}
