//! WebSocket frames as a server reads and writes them (RFC 6455 section 5), without I/O: bytes in, messages out.
//!
//! Binary messages only and no extension, as protocol.md section 2 has it. What a peer can make a reader hold is bounded: one message of
//! at most the limit in force, and one control frame.

/// Control frames between two messages; more are a flood.
pub const CONTROL_FRAMES_MAX: u32 = 256;
/// Frames that one message may be cut into.
pub const FRAGMENTS_MAX: u32 = 1024;
/// Longest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// Longest header of a frame that a client sends: 2 bytes, a length of 8, a mask of 4.
const HEADER_BYTES_MAX: usize = 14;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// RFC 6455 section 7.4.1: "an endpoint is terminating the connection due to a protocol error".
const PROTOCOL_ERROR: u16 = 1002;
/// The same section: "data within a message that was not consistent with the type of the message".
const INVALID_DATA: u16 = 1007;

/// Why no more messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer sent a close frame; the answer to it is among the replies.
    Closed,
    /// The peer broke RFC 6455; the close frame that says so is among the replies.
    Broken,
    /// A message above the limit, too many fragments or too many control frames. The caller says so to the peer.
    TooLarge,
    /// A text message. The caller says so to the peer.
    Malformed,
}

/// What came of bytes that were fed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Whole messages, in order.
    pub messages: Vec<Vec<u8>>,
    /// Frames to send: pongs, and the last close frame.
    pub replies: Vec<u8>,
}

/// A frame whose payload is being received.
#[derive(Clone, Copy)]
struct Frame {
    opcode: u8,
    is_final: bool,
    /// The mask, turned so that its first byte is for the next byte of the payload.
    mask: [u8; 4],
    remaining: usize,
}

/// One peer's frames. After its end it takes bytes and gives nothing.
pub struct FrameReader {
    message_bytes_max: usize,
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    frame: Option<Frame>,
    message: Vec<u8>,
    is_in_message: bool,
    control: Vec<u8>,
    fragments: u32,
    control_frames: u32,
    end: Option<End>,
}

impl FrameReader {
    /// A reader of messages of at most so many bytes.
    pub const fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            header: [0; HEADER_BYTES_MAX],
            header_bytes: 0,
            frame: None,
            message: Vec::new(),
            is_in_message: false,
            control: Vec::new(),
            fragments: 0,
            control_frames: 0,
            end: None,
        }
    }

    /// From the next frame on messages may have so many bytes.
    pub const fn limit(&mut self, message_bytes_max: usize) {
        self.message_bytes_max = message_bytes_max;
    }

    /// Why no more messages come, if so.
    pub const fn end(&self) -> Option<End> {
        self.end
    }

    /// Bytes of memory that a message takes which is not whole yet.
    pub const fn unfinished_bytes(&self) -> usize {
        self.message.capacity()
    }

    /// Ends without a word, as if the message that is not whole yet were too large.
    pub fn give_up(&mut self) {
        (self.message, self.control) = (Vec::new(), Vec::new());
        self.end = self.end.or(Some(End::TooLarge));
    }

    /// Takes the next bytes, however they are cut, and adds to `received` what they complete. Gives the end, once there is one.
    pub fn feed(&mut self, mut data: &[u8], received: &mut Received) -> Option<End> {
        while self.end.is_none() && !data.is_empty() {
            data = match self.frame {
                Some(frame) => self.take_payload(frame, data, received),
                None => self.take_header(data, received),
            };
        }
        if self.end.is_some() {
            (self.message, self.control) = (Vec::new(), Vec::new());
        }
        self.end
    }

    /// Ends with a close frame that says why.
    fn fail(&mut self, code: u16, received: &mut Received) {
        frame_close(code, "", &mut received.replies);
        self.end = Some(End::Broken);
    }

    /// Takes bytes of a header; gives what is left. A header that breaks the standard ends the connection as soon as it shows.
    fn take_header<'data>(&mut self, mut data: &'data [u8], received: &mut Received) -> &'data [u8] {
        while let Some((&byte, rest)) = data.split_first() {
            self.header[self.header_bytes] = byte;
            self.header_bytes += 1;
            data = rest;
            let checked = match self.header_bytes {
                1 => self.check_first(),
                2 => self.check_second(),
                _ => Ok(()),
            };
            if let Err(end) = checked {
                if end == End::Broken {
                    self.fail(PROTOCOL_ERROR, received);
                }
                self.end = Some(end);
                return data;
            }
            if self.header_bytes >= 2 && self.header_bytes == header_bytes(self.header[1]) {
                self.begin_frame(received);
                return data;
            }
        }
        data
    }

    /// FIN, RSV and opcode.
    const fn check_first(&self) -> Result<(), End> {
        let first = self.header[0];
        if first & 0x70 != 0 {
            return Err(End::Broken); // section 5.2: "MUST be 0 unless an extension is negotiated"
        }
        match first & 0x0F {
            // section 5.5: "All control frames [...] MUST NOT be fragmented."
            CLOSE | PING | PONG if first & FINAL == 0 => Err(End::Broken),
            // section 5.4: the fragments of one message must not be interleaved with those of another
            CONTINUATION if !self.is_in_message => Err(End::Broken),
            TEXT | BINARY if self.is_in_message => Err(End::Broken),
            CONTINUATION | BINARY | TEXT | CLOSE | PING | PONG => Ok(()),
            _ => Err(End::Broken), // section 5.2: reserved
        }
    }

    /// Mask bit and the first seven bits of the length.
    const fn check_second(&self) -> Result<(), End> {
        let (opcode, second) = (self.header[0] & 0x0F, self.header[1]);
        if second & MASKED == 0 {
            return Err(End::Broken); // section 5.1: "The server MUST close the connection upon receiving a frame that is not masked."
        }
        if opcode >= CLOSE && (second & !MASKED) as usize > CONTROL_BYTES_MAX {
            return Err(End::Broken); // section 5.5: "MUST have a payload length of 125 bytes or less"
        }
        if opcode == TEXT {
            return Err(End::Malformed);
        }
        Ok(())
    }

    /// A whole header is there.
    fn begin_frame(&mut self, received: &mut Received) {
        let (length, mask) = self.header[1..self.header_bytes].split_at(self.header_bytes - 5);
        let length = match *length {
            [short] => u64::from(short & !MASKED),
            [_, ref long @ ..] => long.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
            [] => u64::MAX, // a header has at least one byte of length
        };
        let shortest = if length < 126 { 6 } else { header_bytes(if length <= 0xFFFF { 126 } else { 127 }) };
        // section 5.2: "the minimal number of bytes MUST be used to encode the length", "the most significant bit MUST be 0"
        if self.header_bytes != shortest || length >> 63 != 0 {
            self.fail(PROTOCOL_ERROR, received);
            return;
        }
        let (opcode, is_final) = (self.header[0] & 0x0F, self.header[0] & FINAL != 0);
        if opcode >= CLOSE {
            self.control_frames += 1;
        } else {
            self.fragments += 1;
        }
        let room = self.message_bytes_max.saturating_sub(self.message.len());
        let is_above = opcode < CLOSE && usize::try_from(length).map_or(true, |length| length > room);
        if is_above || self.control_frames > CONTROL_FRAMES_MAX || self.fragments > FRAGMENTS_MAX {
            self.end = Some(End::TooLarge);
            return;
        }
        let remaining = usize::try_from(length).unwrap_or(usize::MAX); // checked right above
        let mask = [mask[0], mask[1], mask[2], mask[3]];
        self.header_bytes = 0;
        let frame = Frame { opcode, is_final, mask, remaining };
        self.frame = Some(frame);
        if remaining == 0 {
            self.end_frame(frame, received);
        }
    }

    /// Takes bytes of a payload; gives what is left.
    fn take_payload<'data>(&mut self, mut frame: Frame, data: &'data [u8], received: &mut Received) -> &'data [u8] {
        let (taken, rest) = data.split_at(frame.remaining.min(data.len()));
        let target = if frame.opcode >= CLOSE { &mut self.control } else { &mut self.message };
        if taken.len() == frame.remaining {
            target.reserve_exact(taken.len());
        }
        append_unmasked(target, taken, frame.mask);
        frame.mask.rotate_left(taken.len() % 4);
        frame.remaining -= taken.len();
        self.frame = Some(frame);
        if frame.remaining == 0 {
            self.end_frame(frame, received);
        }
        rest
    }

    /// A frame's payload is whole.
    fn end_frame(&mut self, frame: Frame, received: &mut Received) {
        self.frame = None;
        match frame.opcode {
            CLOSE => self.end_connection(received),
            PING => {
                write_frame(PONG, &self.control, &mut received.replies);
                self.control.clear();
            }
            PONG => self.control.clear(),
            _ if frame.is_final => {
                received.messages.push(std::mem::take(&mut self.message));
                self.is_in_message = false;
                self.fragments = 0;
                self.control_frames = 0;
                self.control = Vec::new(); // an idle peer's reader holds nothing
            }
            _ => self.is_in_message = true,
        }
    }

    /// The peer's close frame is whole: section 5.5.1.
    fn end_connection(&mut self, received: &mut Received) {
        let control = std::mem::take(&mut self.control);
        match *control {
            [] => write_frame(CLOSE, &[], &mut received.replies),
            [high, low, ref reason @ ..] => {
                let code = u16::from_be_bytes([high, low]);
                if !is_close_code(code) {
                    return self.fail(PROTOCOL_ERROR, received);
                }
                if std::str::from_utf8(reason).is_err() {
                    return self.fail(INVALID_DATA, received);
                }
                frame_close(code, "", &mut received.replies);
            }
            [_] => return self.fail(PROTOCOL_ERROR, received),
        }
        self.end = Some(End::Closed);
    }
}

/// Bytes of a masked frame's header, by its second byte.
const fn header_bytes(second: u8) -> usize {
    match second & !MASKED {
        126 => 8,
        127 => 14,
        _ => 6,
    }
}

/// Whether a peer may close with it: those of section 7.4.1 and of the registry that may be sent, and those for libraries and applications.
const fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Section 5.3, eight bytes at a time, which compilers turn into whole vectors.
fn append_unmasked(target: &mut Vec<u8>, data: &[u8], mask: [u8; 4]) {
    let start = target.len();
    target.extend_from_slice(data);
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = target[start..].as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= key;
    }
}

/// Adds a whole unmasked frame.
fn write_frame(opcode: u8, payload: &[u8], output: &mut Vec<u8>) {
    write_header(opcode, payload.len(), output);
    output.extend_from_slice(payload);
}

/// Adds the header of a whole unmasked frame.
fn write_header(opcode: u8, length: usize, output: &mut Vec<u8>) {
    output.push(FINAL | opcode);
    if length < 126 {
        output.push(length.to_le_bytes()[0]);
    } else if let Ok(length) = u16::try_from(length) {
        output.push(126);
        output.extend(length.to_be_bytes());
    } else {
        output.push(127);
        output.extend((length as u64).to_be_bytes());
    }
}

/// Adds a binary message as one frame.
pub fn frame_message(message: &[u8], output: &mut Vec<u8>) {
    output.reserve(message.len() + 10);
    write_frame(BINARY, message, output);
}

/// Adds the header of a binary message of so many bytes, which are to follow, as one frame.
pub fn begin_message(length: usize, output: &mut Vec<u8>) {
    output.reserve(length + 10);
    write_header(BINARY, length, output);
}

/// Adds a close frame; of the reason as many characters as fit.
pub fn frame_close(code: u16, reason: &str, output: &mut Vec<u8>) {
    let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    write_frame(CLOSE, &payload, output);
}
