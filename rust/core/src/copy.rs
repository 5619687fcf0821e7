//! PostgreSQL's binary COPY format (its documentation of COPY, "Binary Format") for rows of the event tables.

use crate::error::{Error, Result};
use crate::hash::Hash;

/// What comes before the rows: signature, no flags, no extension.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What comes after the rows.
pub const TRAILER: &[u8] = &[0xff, 0xff];

const COLUMNS: i16 = 12;
/// The length of a null.
const NULL: &[u8] = &(-1_i32).to_be_bytes();

/// One row of an event table.
pub struct EventRow<'a> {
    /// The user's row number.
    pub user_pk: i64,
    /// The stream's row number.
    pub stream_pk: i64,
    /// The place in the stream.
    pub seq: u64,
    /// Unix milliseconds.
    pub received_at_ms: u64,
    /// The author's row number.
    pub device_pk: i64,
    /// The author number.
    pub n: u64,
    /// Where the author's event n - 1 is; 0 for none.
    pub author_prev_seq: u64,
    /// Unix milliseconds.
    pub expires_at_ms: Option<u64>,
    /// The header, as signed.
    pub header: &'a [u8],
    /// The signature.
    pub signature: &'a [u8],
    /// The payload; `None` where it was dropped.
    pub payload: Option<&'a [u8]>,
    /// The chain at `seq`.
    pub chain: &'a Hash,
}

impl EventRow<'_> {
    /// Appends the row, columns in the order of the fields.
    pub fn write(&self, output: &mut Vec<u8>) -> Result<()> {
        output.extend_from_slice(&COLUMNS.to_be_bytes());
        write_integer(output, self.user_pk.to_be_bytes());
        write_integer(output, self.stream_pk.to_be_bytes());
        for value in [self.seq, self.received_at_ms] {
            write_integer(output, value.to_be_bytes());
        }
        write_integer(output, self.device_pk.to_be_bytes());
        for value in [self.n, self.author_prev_seq] {
            write_integer(output, value.to_be_bytes());
        }
        match self.expires_at_ms {
            Some(expires_at_ms) => write_integer(output, expires_at_ms.to_be_bytes()),
            None => output.extend_from_slice(NULL),
        }
        for value in [Some(self.header), Some(self.signature), self.payload, Some(self.chain)] {
            let Some(value) = value else {
                output.extend_from_slice(NULL);
                continue;
            };
            let length = i32::try_from(value.len()).map_err(|_| Error::Argument("a column is above 2 GiB"))?;
            output.extend_from_slice(&length.to_be_bytes());
            output.extend_from_slice(value);
        }
        Ok(())
    }
}

fn write_integer(output: &mut Vec<u8>, value: [u8; 8]) {
    output.extend_from_slice(&8_i32.to_be_bytes());
    output.extend_from_slice(&value);
}
