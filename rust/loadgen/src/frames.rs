//! WebSocket frames as a client reads and writes them (RFC 6455 section 5), without I/O, many at a time.

use std::mem;

use anyhow::{Result, bail, ensure};

/// Opcodes (section 5.2).
const CONTINUATION: u8 = 0x0;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
/// In place of a length: it follows in so many bytes (section 5.2).
const TWO_BYTES: u8 = 126;
const EIGHT_BYTES: u8 = 127;
/// Of a close frame that has no code (section 7.4.1).
const NO_CODE: u16 = 1005;

/// One server's frames.
#[derive(Default)]
pub(crate) struct FrameReader {
    /// A frame that is not whole yet.
    rest: Vec<u8>,
    /// The first fragments of a message that comes in several.
    fragments: Vec<u8>,
    is_in_message: bool,
    message_bytes_max: usize,
}

/// A frame's first byte, and where its payload is.
struct Frame {
    first: u8,
    begin: usize,
    end: usize,
}

impl FrameReader {
    /// A reader of messages of at most so many bytes.
    pub(crate) fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, ..Self::default() }
    }

    /// Takes the next bytes, however they are cut; hands over each message that they complete, in order. Payloads of
    /// pings, which are to be answered, are appended to `pings`.
    ///
    /// # Errors
    /// The server closed, broke the standard, sent text or more than the limit, or `take` failed.
    pub(crate) fn feed(
        &mut self,
        data: &[u8],
        pings: &mut Vec<Vec<u8>>,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if self.rest.is_empty() {
            let taken = self.read(data, pings, &mut take)?;
            self.rest.extend_from_slice(&data[taken..]);
        } else {
            let mut bytes = mem::take(&mut self.rest);
            bytes.extend_from_slice(data);
            let taken = self.read(&bytes, pings, &mut take)?;
            bytes.drain(..taken);
            self.rest = bytes;
        }
        Ok(())
    }

    /// Reads all whole frames; how many bytes they have.
    fn read(
        &mut self,
        data: &[u8],
        pings: &mut Vec<Vec<u8>>,
        take: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<usize> {
        let mut taken = 0;
        while let Some(frame) = self.frame(&data[taken..])? {
            let payload = &data[taken + frame.begin..taken + frame.end];
            taken += frame.end;
            match frame.first {
                first if first == FINAL | BINARY && !self.is_in_message => take(payload)?,
                first if first == FINAL | PING => pings.push(payload.to_vec()),
                first if first == FINAL | PONG => {}
                first if first == FINAL | CLOSE => {
                    let code = payload.first_chunk().map_or(NO_CODE, |code| u16::from_be_bytes(*code));
                    bail!("the server closed the connection with {code}");
                }
                first => self.fragment(first, payload, take)?,
            }
        }
        Ok(taken)
    }

    /// The frame at the beginning, where it is whole.
    fn frame(&self, data: &[u8]) -> Result<Option<Frame>> {
        let [first, second, ..] = *data else { return Ok(None) };
        ensure!(first & RESERVED == 0 && second & MASKED == 0, "a frame that no server sends");
        let (begin, length) = match second {
            TWO_BYTES => (4, data[2..].first_chunk().map(|length| u64::from(u16::from_be_bytes(*length)))),
            EIGHT_BYTES => (10, data[2..].first_chunk().map(|length| u64::from_be_bytes(*length))),
            short => (2, Some(u64::from(short))),
        };
        let Some(length) = length else { return Ok(None) };
        let room = self.message_bytes_max - self.fragments.len();
        ensure!(length <= room as u64, "a message above {} bytes", self.message_bytes_max);
        let end = begin + usize::try_from(length)?;
        Ok((data.len() >= end).then_some(Frame { first, begin, end }))
    }

    /// A part of a message.
    fn fragment(&mut self, first: u8, payload: &[u8], take: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let opcode = if self.is_in_message { CONTINUATION } else { BINARY };
        ensure!(first & !FINAL == opcode, "a frame with opcode {}, where {opcode} belongs", first & !FINAL);
        self.fragments.extend_from_slice(payload);
        self.is_in_message = first & FINAL == 0;
        if !self.is_in_message {
            take(&mem::take(&mut self.fragments))?;
        }
        Ok(())
    }
}

/// Writes frames with masks that are cheap to make: they have to be unlike each other, nobody here chooses payloads by them.
pub(crate) struct FrameWriter {
    state: u64,
}

impl FrameWriter {
    /// With any seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed | 1 }
    }

    /// The answer to a ping.
    pub(crate) fn pong(&mut self, payload: &[u8], output: &mut Vec<u8>) {
        self.write(PONG, payload, output);
    }

    /// Appends a whole masked frame.
    pub(crate) fn write(&mut self, opcode: u8, payload: &[u8], output: &mut Vec<u8>) {
        output.reserve(payload.len() + 14);
        output.push(FINAL | opcode);
        let length = payload.len();
        if let Some(short) = u8::try_from(length).ok().filter(|short| *short < TWO_BYTES) {
            output.push(MASKED | short);
        } else if let Ok(length) = u16::try_from(length) {
            output.push(MASKED | TWO_BYTES);
            output.extend_from_slice(&length.to_be_bytes());
        } else {
            output.push(MASKED | EIGHT_BYTES);
            output.extend_from_slice(&(length as u64).to_be_bytes());
        }
        let mask = self.mask();
        output.extend_from_slice(&mask);
        let begin = output.len();
        output.extend_from_slice(payload);
        let [a, b, c, d] = mask;
        let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let (words, rest) = output[begin..].as_chunks_mut::<8>();
        for word in words {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
        for (byte, key) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
            *byte ^= key;
        }
    }

    /// xorshift64* (Vigna, 2016), its upper half.
    fn mask(&mut self) -> [u8; 4] {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let [a, b, c, d, ..] = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_be_bytes();
        [a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use keepstep_core::websocket::{FrameReader as ServersReader, Received, frame_close, frame_message};

    use super::*;

    const MESSAGE_BYTES_MAX: usize = 100_000;

    type Payloads = Vec<Vec<u8>>;

    /// Messages and pings.
    fn read(pieces: &[&[u8]]) -> Result<(Payloads, Payloads)> {
        let mut reader = FrameReader::new(MESSAGE_BYTES_MAX);
        let (mut messages, mut pings) = (Vec::new(), Vec::new());
        for piece in pieces {
            reader.feed(piece, &mut pings, |message| {
                messages.push(message.to_vec());
                Ok(())
            })?;
        }
        Ok((messages, pings))
    }

    #[test]
    fn what_a_server_frames_comes_out_however_it_is_cut() -> Result<()> {
        let sent: Vec<Vec<u8>> = [0, 1, 125, 126, 65_535, 65_536].map(|length| vec![7; length]).into();
        let mut bytes = Vec::new();
        for message in &sent {
            frame_message(message, &mut bytes);
        }
        for size in [bytes.len(), 1_000, 3] {
            assert_eq!(read(&bytes.chunks(size).collect::<Vec<_>>())?.0, sent, "{size}");
        }
        Ok(())
    }

    #[test]
    fn a_server_reads_what_is_written() {
        let sent: Vec<Vec<u8>> = [0, 1, 13, 125, 126, 65_535, 65_536].map(|length| vec![7; length]).into();
        let (mut writer, mut bytes, mut received) = (FrameWriter::new(0), Vec::new(), Received::default());
        for message in &sent {
            writer.write(BINARY, message, &mut bytes);
        }
        writer.pong(b"x", &mut bytes);
        assert_eq!(ServersReader::new(MESSAGE_BYTES_MAX).feed(&bytes, &mut received), None);
        assert_eq!(received.messages, sent);
    }

    #[test]
    fn masks_differ() {
        let mut writer = FrameWriter::new(5);
        assert_ne!(writer.mask(), writer.mask());
    }

    #[test]
    fn fragments_are_joined_with_control_frames_between_them() -> Result<()> {
        let frames = [&[0x02, 1, b'a'][..], &[0x89, 1, b'p'], &[0x00, 1, b'b'], &[0x8A, 0], &[0x80, 1, b'c']].concat();
        assert_eq!(read(&[&frames])?, (vec![b"abc".to_vec()], vec![b"p".to_vec()]));
        Ok(())
    }

    #[test]
    fn a_close_frame_ends_with_its_code() {
        let mut bytes = Vec::new();
        frame_close(4_001, "why", &mut bytes);
        assert!(read(&[&bytes]).is_err_and(|error| error.to_string().ends_with("with 4001")));
        assert!(read(&[&[0x88, 0]]).is_err_and(|error| error.to_string().ends_with("with 1005")));
    }

    #[test]
    fn what_no_server_may_send_is_an_error() {
        for frame in [&[0xC2, 0][..], &[0x82, 0x80], &[0x81, 1, b'a'], &[0x80, 0], &[0x82, 127, 0, 0, 0, 0, 0, 2, 0, 0]]
        {
            assert!(read(&[frame]).is_err(), "{frame:?}");
        }
        assert!(read(&[&[0x02, 0], &[0x82, 0]]).is_err(), "a message within another");
    }
}
