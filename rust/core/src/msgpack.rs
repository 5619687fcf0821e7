//! MessagePack, the part the protocol signs and hashes: minimal encodings only, every length checked before it is used.

use crate::error::{Error, Result};

/// Largest integer on the wire: every one fits a PostgreSQL bigint.
pub const INTEGER_MAX: u64 = i64::MAX as u64;
/// Arrays and maps inside each other in what is passed over: more than any version has, and less than any decoder takes.
pub const NESTED_MAX: usize = 64;

const NOT_MINIMAL: Error = Error::Malformed("MessagePack: not the minimal encoding");
const OTHER_TYPE: Error = Error::Malformed("MessagePack: not the documented type");
const TOO_DEEP: Error = Error::Malformed("MessagePack: too many arrays inside each other");
const TOO_SHORT: Error = Error::Malformed("MessagePack: the value is cut short");

/// Reads one value after the other from a slice.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Ends: nothing may be left.
    pub fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(Error::Malformed("MessagePack: bytes after the value")) }
    }

    /// An array's number of elements; they are read next.
    pub fn array(&mut self) -> Result<u64> {
        let head = self.byte()?;
        match head {
            0x90..=0x9f => Ok(u64::from(head & 0x0f)),
            0xdc => self.length(2, 16),
            0xdd => self.length(4, 1 << 16),
            _ => Err(OTHER_TYPE),
        }
    }

    /// An unsigned integer up to `INTEGER_MAX`.
    pub fn integer(&mut self) -> Result<u64> {
        let head = self.byte()?;
        let value = match head {
            0x00..=0x7f => u64::from(head),
            0xcc => self.length(1, 1 << 7)?,
            0xcd => self.length(2, 1 << 8)?,
            0xce => self.length(4, 1 << 16)?,
            0xcf => self.length(8, 1 << 32)?,
            _ => return Err(OTHER_TYPE),
        };
        if value > INTEGER_MAX {
            return Err(Error::Malformed("an integer is above 2^63 - 1"));
        }
        Ok(value)
    }

    /// A byte string.
    pub fn binary(&mut self) -> Result<&'a [u8]> {
        let length = match self.byte()? {
            0xc4 => self.length(1, 0)?,
            0xc5 => self.length(2, 1 << 8)?,
            0xc6 => self.length(4, 1 << 16)?,
            _ => return Err(OTHER_TYPE),
        };
        self.take(length)
    }

    /// A byte string of exactly `N` bytes.
    pub fn binary_of<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.binary()?.try_into().map_err(|_| Error::Malformed("a byte string has another length than documented"))
    }

    /// A text string's bytes, not checked to be UTF-8.
    pub fn text(&mut self) -> Result<&'a [u8]> {
        let head = self.byte()?;
        let length = match head {
            0xa0..=0xbf => u64::from(head & 0x1f),
            0xd9 => self.length(1, 32)?,
            0xda => self.length(2, 1 << 8)?,
            0xdb => self.length(4, 1 << 16)?,
            _ => return Err(OTHER_TYPE),
        };
        self.take(length)
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether nil is next; if so it is read.
    pub fn nil(&mut self) -> bool {
        match self.rest.split_first() {
            Some((0xc0, rest)) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// An unsigned integer or nil.
    pub fn optional_integer(&mut self) -> Result<Option<u64>> {
        if self.nil() { Ok(None) } else { self.integer().map(Some) }
    }

    /// Whether an array is next.
    pub fn at_array(&self) -> bool {
        matches!(self.rest.first(), Some(0x90..=0x9f | 0xdc | 0xdd))
    }

    fn byte(&mut self) -> Result<u8> {
        let (&head, rest) = self.rest.split_first().ok_or(TOO_SHORT)?;
        self.rest = rest;
        Ok(head)
    }

    /// A big-endian number of `size` bytes that no shorter form could hold.
    fn length(&mut self, size: u64, least: u64) -> Result<u64> {
        let value = self.take(size)?.iter().fold(0, |value, &byte| (value << 8) | u64::from(byte));
        if value < least { Err(NOT_MINIMAL) } else { Ok(value) }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let length = usize::try_from(length).map_err(|_| TOO_SHORT)?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(TOO_SHORT)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Reads what need not be in its one encoding: messages, whose fields beyond the known ones are passed over.
pub struct LenientReader<'a>(Reader<'a>);

impl<'a> LenientReader<'a> {
    /// Starts at the first byte.
    pub fn new(data: &'a [u8]) -> Self {
        Self(Reader::new(data))
    }

    /// Ends: nothing may be left.
    pub fn end(self) -> Result<()> {
        self.0.end()
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.0.remaining()
    }

    /// An array's number of elements, in any form; they are read next.
    pub fn array(&mut self) -> Result<u64> {
        match self.0.byte()? {
            head @ 0x90..=0x9f => Ok(u64::from(head & 0x0f)),
            0xdc => self.0.length(2, 0),
            0xdd => self.0.length(4, 0),
            _ => Err(OTHER_TYPE),
        }
    }

    /// An integer of 0 to `INTEGER_MAX`, in any form.
    pub fn integer(&mut self) -> Result<u64> {
        let head = self.0.byte()?;
        let (value, most) = match head {
            0x00..=0x7f => (u64::from(head), INTEGER_MAX),
            0xcc..=0xcf => (self.0.length(1 << (head - 0xcc), 0)?, INTEGER_MAX),
            0xd0..=0xd3 => {
                let bytes = 1_u64 << (head - 0xd0);
                (self.0.length(bytes, 0)?, INTEGER_MAX >> (64 - 8 * bytes)) // above it the sign is set
            }
            _ => return Err(OTHER_TYPE),
        };
        if value > most { Err(Error::Malformed("an integer is not in 0 to 2^63 - 1")) } else { Ok(value) }
    }

    /// Passes over so many values with all that is in them, at most `NESTED_MAX` arrays and maps inside each other.
    pub fn skip(&mut self, values: u64) -> Result<()> {
        let mut left = [0; NESTED_MAX + 1]; // values at each level
        left[0] = values;
        let mut level = 0;
        loop {
            if left[level] == 0 {
                if level == 0 {
                    return Ok(());
                }
                level -= 1;
                continue;
            }
            left[level] -= 1;
            // Each value has a byte at least, so a count above what is left of the bytes ends soon.
            let (bytes, inside) = match self.0.byte()? {
                0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (0, 0),
                head @ 0x80..=0x8f => (0, 2 * u64::from(head & 0x0f)),
                head @ 0x90..=0x9f => (0, u64::from(head & 0x0f)),
                head @ 0xa0..=0xbf => (u64::from(head & 0x1f), 0),
                head @ (0xc4..=0xc6) => (self.0.length(1 << (head - 0xc4), 0)?, 0),
                head @ (0xc7..=0xc9) => (self.0.length(1 << (head - 0xc7), 0)? + 1, 0), // and the type of an extension
                head @ (0xca | 0xcb) => (4 << (head - 0xca), 0),
                head @ (0xcc..=0xcf) => (1 << (head - 0xcc), 0),
                head @ (0xd0..=0xd3) => (1 << (head - 0xd0), 0),
                head @ (0xd4..=0xd8) => ((1 << (head - 0xd4)) + 1, 0),
                head @ (0xd9..=0xdb) => (self.0.length(1 << (head - 0xd9), 0)?, 0),
                head @ (0xdc | 0xdd) => (0, self.0.length(2 << (head - 0xdc), 0)?),
                head @ (0xde | 0xdf) => (0, 2 * self.0.length(2 << (head - 0xde), 0)?),
                0xc1 => return Err(OTHER_TYPE),
            };
            self.0.take(bytes)?;
            if inside > 0 {
                level += 1;
                *left.get_mut(level).ok_or(TOO_DEEP)? = inside;
            }
        }
    }
}

/// Appends an unsigned integer.
pub fn write_integer(output: &mut Vec<u8>, value: u64) {
    let bytes = value.to_be_bytes();
    match value {
        0..=0x7f => output.push(bytes[7]),
        0x80..=0xff => output.extend_from_slice(&[0xcc, bytes[7]]),
        0x100..=0xffff => write_head(output, 0xcd, &bytes[6..]),
        0x1_0000..=0xffff_ffff => write_head(output, 0xce, &bytes[4..]),
        _ => write_head(output, 0xcf, &bytes),
    }
}

/// Appends what an array of `count` values begins with; more than 4 G of them, which no message can carry, are refused.
pub fn write_array(output: &mut Vec<u8>, count: usize) -> Result<()> {
    let length = u32::try_from(count).map_err(|_| Error::Argument("an array is above 4 G values"))?.to_be_bytes();
    match length {
        [0, 0, 0, short @ 0..=15] => output.push(0x90 | short),
        [0, 0, ..] => write_head(output, 0xdc, &length[2..]),
        _ => write_head(output, 0xdd, &length),
    }
    Ok(())
}

/// Appends text; one above 4 GiB, which no message can carry, is refused.
pub fn write_text(output: &mut Vec<u8>, value: &str) -> Result<()> {
    let length = u32::try_from(value.len()).map_err(|_| Error::Argument("a text is above 4 GiB"))?.to_be_bytes();
    match length {
        [0, 0, 0, short @ 0..=31] => output.push(0xa0 | short),
        [0, 0, 0, short] => output.extend_from_slice(&[0xd9, short]),
        [0, 0, ..] => write_head(output, 0xda, &length[2..]),
        _ => write_head(output, 0xdb, &length),
    }
    output.extend_from_slice(value.as_bytes());
    Ok(())
}

/// Appends a byte string; one above 4 GiB, which no message can carry, is refused.
pub fn write_binary(output: &mut Vec<u8>, value: &[u8]) -> Result<()> {
    let length = u32::try_from(value.len()).map_err(|_| Error::Argument("a byte string is above 4 GiB"))?.to_be_bytes();
    match length {
        [0, 0, 0, short] => output.extend_from_slice(&[0xc4, short]),
        [0, 0, ..] => write_head(output, 0xc5, &length[2..]),
        _ => write_head(output, 0xc6, &length),
    }
    output.extend_from_slice(value);
    Ok(())
}

/// Appends a byte string or nil.
pub fn write_optional_binary(output: &mut Vec<u8>, value: Option<&[u8]>) -> Result<()> {
    if let Some(value) = value {
        return write_binary(output, value);
    }
    output.push(0xc0);
    Ok(())
}

fn write_head(output: &mut Vec<u8>, head: u8, rest: &[u8]) {
    output.push(head);
    output.extend_from_slice(rest);
}
