//! A transaction in one flight: what the hot transaction is sent as, and how PostgreSQL's answers are read (docs/adr/0270).
//!
//! PostgreSQL's documentation of its protocol, version 3, "Extended Query", "Pipelining" and "COPY Operations". Statements
//! outside of a transaction block are one transaction up to the Sync, which commits it; after an error everything up to the
//! Sync is skipped and rolled back. So one write asks for all of it, and the session is idle again whatever came of it.

use crate::copy;
use crate::error::{Error, Result};
use crate::ingest::Ingested;

/// Most bytes of one answer: rows here hold a transaction's number, errors and notices some sentences.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

const BIGINT: i32 = 20;
const BYTEA: i32 = 17;
/// Message type and length.
const HEADER_BYTES: usize = 5;
/// One format code for all parameters, or for all columns: binary.
const BINARY: &[u8] = &[0, 1, 0, 1];

/// The statements as they were prepared on the connection.
#[derive(Clone, Copy)]
pub struct Statements<'a> {
    /// Name of the compare and set of the heads.
    pub move_heads: &'a str,
    /// Retention class and name of the COPY into its table; those that the batch has.
    pub copies: &'a [(i16, &'a str)],
}

/// Writes the whole flight: the heads move, all or none, the events are copied, and the transaction is committed.
pub fn encode(ingested: &Ingested, statements: &Statements<'_>) -> Result<Vec<u8>> {
    let rows: usize = ingested.moved.iter().map(|moved| moved.copy_rows.len() + HEADER_BYTES).sum();
    let mut output = Vec::with_capacity(rows + ingested.moved.len() * 512 + 1024);
    write_move(&mut output, ingested, statements.move_heads)?;
    for &(retention_class, name) in statements.copies {
        bind_and_execute(&mut output, name, 0, |_| Ok(()))?;
        message(&mut output, b'd', |body| bytes(body, copy::HEADER))?;
        for moved in ingested.moved.iter().filter(|moved| moved.new.retention_class == retention_class) {
            message(&mut output, b'd', |body| bytes(body, &moved.copy_rows))?;
        }
        message(&mut output, b'd', |body| bytes(body, copy::TRAILER))?;
        message(&mut output, b'c', |_| Ok(()))?;
    }
    message(&mut output, b'S', |_| Ok(()))?;
    Ok(output)
}

/// The parameters in the order of `move_heads` in queries.sql.
fn write_move(output: &mut Vec<u8>, ingested: &Ingested, name: &str) -> Result<()> {
    let moved = &ingested.moved;
    let count = i32::try_from(moved.len()).map_err(|_| Error::Argument("too many heads move"))?;
    bind_and_execute(output, name, 12, |body| {
        let integers = |body: &mut Vec<u8>, value: &dyn Fn(usize) -> [u8; 8]| {
            array(body, BIGINT, count, |body| (0..moved.len()).try_for_each(|index| value_of(body, &value(index))))
        };
        integers(body, &|index| moved[index].old.user_pk.to_be_bytes())?;
        integers(body, &|index| moved[index].old.stream_pk.to_be_bytes())?;
        integers(body, &|index| moved[index].old.seq.to_be_bytes())?;
        array(body, BYTEA, count, |body| moved.iter().try_for_each(|each| value_of(body, &each.old.chain)))?;
        integers(body, &|index| moved[index].old.auth_epoch.to_be_bytes())?;
        integers(body, &|index| moved[index].new.seq.to_be_bytes())?;
        array(body, BYTEA, count, |body| moved.iter().try_for_each(|each| value_of(body, &each.new.chain)))?;
        integers(body, &|index| moved[index].new.received_at_ms.to_be_bytes())?;
        array(body, BYTEA, count, |body| moved.iter().try_for_each(|each| value_of(body, &each.new.authors_packed())))?;
        integers(body, &|index| {
            moved[index].new.stored_bytes.wrapping_sub(moved[index].old.stored_bytes).to_be_bytes()
        })?;
        value_of(body, &i64::from(count).to_be_bytes())?;
        value_of(body, &[1]) // all of them, or an error
    })
}

/// Bind of a prepared statement to the unnamed portal, everything binary, and its Execute.
fn bind_and_execute(
    output: &mut Vec<u8>,
    name: &str,
    parameters: i16,
    values: impl FnOnce(&mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    message(output, b'B', |body| {
        body.push(0);
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(BINARY);
        body.extend_from_slice(&parameters.to_be_bytes());
        values(body)?;
        bytes(body, BINARY)
    })?;
    message(output, b'E', |body| {
        body.push(0);
        body.extend_from_slice(&0_i32.to_be_bytes());
        Ok(())
    })
}

fn message(output: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
    output.push(kind);
    measured(output, 4, body)
}

/// A length, of `own` bytes more than the content, and the content.
fn measured(output: &mut Vec<u8>, own: usize, content: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
    let start = output.len();
    output.extend_from_slice(&[0; 4]);
    content(output)?;
    let length = i32::try_from(output.len() - start - 4 + own)
        .map_err(|_| Error::Argument("a message to PostgreSQL is above 2 GiB"))?;
    output[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// PostgreSQL's `array_send` of one dimension without nulls.
fn array(
    output: &mut Vec<u8>,
    element_type: i32,
    count: i32,
    elements: impl FnOnce(&mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    measured(output, 0, |body| {
        for value in [1, 0, element_type, count, 1] {
            body.extend_from_slice(&value.to_be_bytes());
        }
        elements(body)
    })
}

fn value_of(output: &mut Vec<u8>, value: &[u8]) -> Result<()> {
    measured(output, 0, |body| bytes(body, value))
}

#[allow(clippy::unnecessary_wraps)] // the content of a message
fn bytes(output: &mut Vec<u8>, value: &[u8]) -> Result<()> {
    output.extend_from_slice(value);
    Ok(())
}

/// The server says what no server that has these statements says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfStep(pub &'static str);

/// What PostgreSQL answered, as far as it has come.
#[derive(Default)]
pub struct Answers {
    /// Statements that are to be completed.
    statements: usize,
    completed: usize,
    /// The transaction's number.
    pub xid: Option<String>,
    /// The fields of the first error, by their code.
    pub error: Option<Vec<(u8, Vec<u8>)>>,
    /// Whether the commit warned: its wait for a standby was cut short.
    pub warned: bool,
    /// Whether the session is idle again: the transaction was committed, or there is an error and it was rolled back.
    pub over: bool,
}

impl Answers {
    /// Those to a flight with `copies` COPYs.
    pub fn new(copies: usize) -> Self {
        Self { statements: 1 + copies, ..Self::default() }
    }

    /// Takes the whole messages at the beginning of `input`; returns how many bytes they were.
    ///
    /// Nothing is taken after the one that ends the flight.
    pub fn take(&mut self, input: &[u8]) -> std::result::Result<usize, OutOfStep> {
        let mut taken = 0;
        while !self.over
            && let Some((&[kind, ref length @ ..], rest)) = input[taken..].split_first_chunk::<HEADER_BYTES>()
        {
            let length = usize::try_from(i32::from_be_bytes(*length)).ok().and_then(|length| length.checked_sub(4));
            let Some(length) = length.filter(|&length| length <= ANSWER_BYTES_MAX) else {
                return Err(OutOfStep("an answer of that length is none"));
            };
            let Some(body) = rest.get(..length) else { break };
            self.answer(kind, body)?;
            taken += HEADER_BYTES + length;
        }
        Ok(taken)
    }

    fn answer(&mut self, kind: u8, body: &[u8]) -> std::result::Result<(), OutOfStep> {
        match kind {
            b'D' if self.completed == 0 && self.xid.is_none() => self.xid = Some(first_column(body)?),
            b'C' => self.completed += 1,
            b'E' => {
                let fields = fields(body)?;
                self.error.get_or_insert(fields);
            }
            b'N' => {
                // The commit comes after everything else.
                self.warned |= self.completed == self.statements
                    && fields(body)?.iter().any(|(code, value)| (*code, &value[..]) == (b'V', b"WARNING"));
            }
            b'Z' => {
                let done = self.completed == self.statements && self.xid.is_some();
                if body != b"I" || !(done || self.error.is_some()) {
                    return Err(OutOfStep("the session is not idle, or not everything was answered"));
                }
                self.over = true;
            }
            // BindComplete, CopyInResponse; NotificationResponse and ParameterStatus, which may come at any time.
            b'2' | b'G' | b'A' | b'S' => {}
            _ => return Err(OutOfStep("an answer of that kind was not to be expected")),
        }
        Ok(())
    }
}

/// The text in the first column of a row.
fn first_column(row: &[u8]) -> std::result::Result<String, OutOfStep> {
    let column = row.get(2..6).and_then(|length| length.first_chunk()).and_then(|length| {
        let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
        String::from_utf8(row.get(6..)?.get(..length)?.to_vec()).ok()
    });
    column.ok_or(OutOfStep("the row does not begin with the transaction's number"))
}

/// The fields of an error or a notice.
fn fields(mut body: &[u8]) -> std::result::Result<Vec<(u8, Vec<u8>)>, OutOfStep> {
    let mut found = Vec::new();
    loop {
        match body {
            [0] => return Ok(found),
            [code, rest @ ..] if *code != 0 => {
                let end = rest.iter().position(|&byte| byte == 0).ok_or(OutOfStep("a field has no end"))?;
                found.push((*code, rest[..end].to_vec()));
                body = &rest[end + 1..];
            }
            _ => return Err(OutOfStep("an error without its end")),
        }
    }
}
