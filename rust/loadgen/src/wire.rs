//! MessagePack as far as a device needs it: writing, and reading what a server sends (protocol.md section 4).

use anyhow::{Context, Result, bail, ensure};
use keepstep_core::msgpack::{Reader, write_binary, write_integer};

/// Types of the messages that a load generator sends.
pub(crate) mod from_device {
    pub(crate) const CLIENT_HELLO: u64 = 1;
    pub(crate) const CLIENT_AUTH: u64 = 3;
    pub(crate) const PUBLISH: u64 = 16;
    pub(crate) const ACK: u64 = 17;
    pub(crate) const SUBSCRIBE: u64 = 18;
    pub(crate) const PING: u64 = 25;
    pub(crate) const REKEY: u64 = 26;
    pub(crate) const BYE: u64 = 27;
}

/// Types of the messages that it reads.
pub(crate) mod from_server {
    pub(crate) const SERVER_HELLO: u64 = 2;
    pub(crate) const READY: u64 = 4;
    pub(crate) const ACCEPTED: u64 = 64;
    pub(crate) const EVENTS: u64 = 65;
    pub(crate) const CAUGHT_UP: u64 = 66;
    pub(crate) const ERROR: u64 = 71;
    pub(crate) const DRAINING: u64 = 73;
    pub(crate) const RESUMED: u64 = 74;
    pub(crate) const REKEY: u64 = 75;
}

/// Appends an array's head; at most 65,535 elements.
pub(crate) fn write_array(output: &mut Vec<u8>, count: u16) {
    if count < 16 {
        output.push(0x90 | count.to_be_bytes()[1]);
    } else {
        output.push(0xdc);
        output.extend_from_slice(&count.to_be_bytes());
    }
}

/// Appends a map's head; at most 65,535 entries.
pub(crate) fn write_map(output: &mut Vec<u8>, count: u16) {
    if count < 16 {
        output.push(0x80 | count.to_be_bytes()[1]);
    } else {
        output.push(0xde);
        output.extend_from_slice(&count.to_be_bytes());
    }
}

/// Appends text of at most 255 bytes.
pub(crate) fn write_text(output: &mut Vec<u8>, text: &str) -> Result<()> {
    let length = u8::try_from(text.len()).context("text above 255 bytes")?;
    if length < 32 {
        output.push(0xa0 | length);
    } else {
        output.extend_from_slice(&[0xd9, length]);
    }
    output.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Appends nil.
pub(crate) fn write_nil(output: &mut Vec<u8>) {
    output.push(0xc0);
}

/// Appends `[seq, chain]`.
pub(crate) fn write_position(output: &mut Vec<u8>, seq: u64, chain: &[u8]) -> Result<()> {
    write_array(output, 2);
    write_integer(output, seq);
    write_binary(output, chain)?;
    Ok(())
}

/// Bytes read in order, knowing where it stands: what `Reader` leaves can be looked at.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// What has not been read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Leaves out bytes that are known already.
    pub(crate) fn skip(&mut self, count: usize) {
        self.rest = &self.rest[count..];
    }

    fn read<T>(&mut self, read: impl FnOnce(&mut Reader<'a>) -> keepstep_core::Result<T>) -> Result<T> {
        let mut reader = Reader::new(self.rest);
        let value = read(&mut reader)?;
        self.rest = &self.rest[self.rest.len() - reader.remaining()..];
        Ok(value)
    }

    pub(crate) fn array(&mut self) -> Result<u64> {
        self.read(Reader::array)
    }

    pub(crate) fn integer(&mut self) -> Result<u64> {
        self.read(Reader::integer)
    }

    pub(crate) fn binary(&mut self) -> Result<&'a [u8]> {
        self.read(Reader::binary)
    }

    pub(crate) fn binary_of<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.read(Reader::binary_of)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str> {
        Ok(std::str::from_utf8(self.read(Reader::text)?)?)
    }

    pub(crate) fn nil(&mut self) -> bool {
        let mut reader = Reader::new(self.rest);
        let nil = reader.nil();
        self.rest = &self.rest[self.rest.len() - reader.remaining()..];
        nil
    }

    /// One value of any kind.
    pub(crate) fn value(&mut self) -> Result<rmpv::ValueRef<'a>> {
        Ok(rmpv::decode::read_value_ref(&mut self.rest)?)
    }
}

/// The answer to consecutive events of one publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// `count` events stored from `seq` on.
    Accepted { count: u64, seq: u64, received_at_ms: u64, chain: [u8; 32] },
    /// One event that was stored before: `[seq, chain, received_at_ms]`, nil where the server did not look.
    Duplicate(Option<(u64, [u8; 32], u64)>),
    /// One event that was not stored.
    Refused(String),
}

/// Answers of one message, read as they are asked for: most messages have one, and none needs a place of its own.
#[derive(Clone, Debug)]
pub(crate) struct Answers<'a> {
    remaining: u64,
    cursor: Cursor<'a>,
}

impl Iterator for Answers<'_> {
    type Item = Result<Answer>;

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        let answer = read_answer(&mut self.cursor);
        if answer.is_err() {
            self.remaining = 0;
        }
        Some(answer)
    }
}

/// What a server sends in a session.
#[derive(Debug)]
pub(crate) enum FromServer<'a> {
    Accepted {
        rid: u64,
        answers: Answers<'a>,
    },
    /// `rows` begins at the first row; the chain follows the last one.
    Events {
        stream: &'a str,
        count: u64,
        rows: &'a [u8],
    },
    Resumed {
        stream: &'a str,
        answer: &'a str,
    },
    /// The signed bytes of the head, as they are.
    CaughtUp {
        stream: &'a str,
        head: &'a [u8],
        signature: [u8; 64],
    },
    Error {
        code: &'a str,
    },
    Draining,
    Rekey,
    /// Anything a load generator has no use for.
    Other,
}

impl<'a> FromServer<'a> {
    /// Reads one message.
    pub(crate) fn read(data: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor::new(data);
        let fields = cursor.array()?;
        ensure!(fields > 0, "a message without a type");
        Ok(match cursor.integer()? {
            from_server::ACCEPTED => {
                let rid = cursor.integer()?;
                let remaining = cursor.array()?;
                Self::Accepted { rid, answers: Answers { remaining, cursor } }
            }
            from_server::EVENTS => {
                let stream = cursor.text()?;
                let count = cursor.array()?;
                Self::Events { stream, count, rows: cursor.rest() }
            }
            from_server::CAUGHT_UP => {
                let stream = cursor.text()?;
                ensure!(cursor.array()? == 2, "a signed head has two parts");
                Self::CaughtUp { stream, head: cursor.binary()?, signature: cursor.binary_of()? }
            }
            from_server::RESUMED => Self::Resumed { stream: cursor.text()?, answer: cursor.text()? },
            from_server::ERROR => {
                cursor.value()?;
                Self::Error { code: cursor.text()? }
            }
            from_server::DRAINING => Self::Draining,
            from_server::REKEY => Self::Rekey,
            _ => Self::Other,
        })
    }
}

fn read_answer(cursor: &mut Cursor<'_>) -> Result<Answer> {
    let fields = cursor.array()?;
    let (answer, known) = match cursor.integer()? {
        0 => {
            let (count, seq, received_at_ms) = (cursor.integer()?, cursor.integer()?, cursor.integer()?);
            (Answer::Accepted { count, seq, received_at_ms, chain: cursor.binary_of()? }, 5)
        }
        1 => {
            let place = if cursor.nil() {
                ensure!(cursor.nil() && cursor.nil(), "an unchecked duplicate with a place");
                None
            } else {
                Some((cursor.integer()?, cursor.binary_of()?, cursor.integer()?))
            };
            (Answer::Duplicate(place), 4)
        }
        2 => (Answer::Refused(cursor.text()?.to_owned()), 2),
        other => bail!("an answer of unknown kind {other}"),
    };
    for _ in known..fields {
        cursor.value()?;
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_arrays_have_the_minimal_encoding() -> Result<()> {
        let mut output = Vec::new();
        write_array(&mut output, 15);
        write_array(&mut output, 16);
        write_text(&mut output, "a")?;
        write_text(&mut output, &"b".repeat(32))?;
        let mut cursor = Cursor::new(&output);
        assert_eq!((cursor.array()?, cursor.array()?), (15, 16));
        assert_eq!((cursor.text()?, cursor.text()?), ("a", "b".repeat(32).as_str()));
        assert!(cursor.rest().is_empty());
        assert!(write_text(&mut output, &"c".repeat(256)).is_err());
        Ok(())
    }

    fn accepted() -> Result<Vec<u8>> {
        let mut data = vec![0x93, 64, 7, 0x95];
        write_array(&mut data, 5);
        for value in [0, 3, 300, 70_000] {
            write_integer(&mut data, value);
        }
        write_binary(&mut data, &[5; 32])?;
        data.extend_from_slice(&[0x94, 1, 0xc0, 0xc0, 0xc0]);
        data.extend_from_slice(&[0x94, 1, 9]);
        write_binary(&mut data, &[6; 32])?;
        data.push(8);
        data.extend_from_slice(&[0x93, 2]);
        write_text(&mut data, "out_of_order")?;
        data.extend_from_slice(&[0x92, 1, 0xc4, 1, 0]);
        data.extend_from_slice(&[0x93, 2]);
        write_text(&mut data, "malformed")?;
        data.push(0x90);
        Ok(data)
    }

    #[test]
    fn every_kind_of_answer_is_read() -> Result<()> {
        let data = accepted()?;
        let FromServer::Accepted { rid, answers } = FromServer::read(&data)? else { bail!("another message") };
        assert_eq!(rid, 7);
        assert_eq!(
            answers.collect::<Result<Vec<_>>>()?,
            [
                Answer::Accepted { count: 3, seq: 300, received_at_ms: 70_000, chain: [5; 32] },
                Answer::Duplicate(None),
                Answer::Duplicate(Some((9, [6; 32], 8))),
                Answer::Refused("out_of_order".into()),
                Answer::Refused("malformed".into()),
            ]
        );
        Ok(())
    }

    #[test]
    fn what_is_cut_short_is_an_error() -> Result<()> {
        let data = accepted()?;
        let read = |data| match FromServer::read(data)? {
            FromServer::Accepted { answers, .. } => answers.collect::<Result<Vec<_>>>(),
            _ => bail!("another message"),
        };
        assert_eq!(read(&data)?.len(), 5);
        for length in 0..data.len() {
            assert!(read(&data[..length]).is_err(), "{length}");
        }
        Ok(())
    }

    #[test]
    fn other_messages_are_told_apart() -> Result<()> {
        assert!(matches!(FromServer::read(&[0x91, 75])?, FromServer::Rekey));
        assert!(matches!(FromServer::read(&[0x92, 73, 5])?, FromServer::Draining));
        assert!(matches!(FromServer::read(&[0x92, 69, 5])?, FromServer::Other));
        let error = [0x94, 71, 0xc0, 0xa1, b'x', 0xc0];
        assert!(matches!(FromServer::read(&error)?, FromServer::Error { code: "x" }));
        let resumed = [0x93, 74, 0xa1, b's', 0xa1, b'c'];
        assert!(matches!(FromServer::read(&resumed)?, FromServer::Resumed { stream: "s", answer: "c" }));
        let mut caught_up = vec![0x93, 66, 0xa1, b's', 0x92, 0xc4, 1, 7, 0xc4, 64];
        caught_up.extend_from_slice(&[9; 64]);
        let FromServer::CaughtUp { stream, head, signature } = FromServer::read(&caught_up)? else {
            bail!("another message")
        };
        assert_eq!((stream, head, signature), ("s", &[7][..], [9; 64]));
        let events = [0x94, 65, 0xa1, b's', 0x92, 1, 2];
        assert!(matches!(FromServer::read(&events)?, FromServer::Events { stream: "s", count: 2, rows: [1, 2] }));
        Ok(())
    }
}
