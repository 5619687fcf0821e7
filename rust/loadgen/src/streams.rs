//! The streams that a user's devices publish into: one, or so many that hardly two messages meet in the same.

use anyhow::Result;
use keepstep_core::hash::Hash;
use keepstep_core::msgpack::{write_binary, write_integer};

use crate::wire::{from_device, write_array, write_map, write_text};

/// The first one's name; others have their number behind it.
pub(crate) const STREAM: &str = "load";
/// Most streams in one message of a session (protocol.md section 4).
pub(crate) const STREAMS_PER_MESSAGE_MAX: usize = 1_024;

/// The name of a stream.
pub(crate) fn stream_name(index: usize) -> String {
    if index == 0 { STREAM.to_owned() } else { format!("{STREAM}-{index}") }
}

/// Which stream a name is of, among the first `count`.
pub(crate) fn stream_index(name: &str, count: usize) -> Option<usize> {
    let index = match name.strip_prefix(STREAM)? {
        "" => 0,
        number => number.strip_prefix('-')?.parse().ok().filter(|index| *index > 0)?,
    };
    (index < count && stream_name(index) == name).then_some(index)
}

/// `[17, {stream: [seq, chain16]}]`, as many messages as it takes.
pub(crate) fn write_acks(streams: &[usize], place: impl Fn(usize) -> (u64, Hash)) -> Result<Vec<Vec<u8>>> {
    let messages = streams.chunks(STREAMS_PER_MESSAGE_MAX).map(|streams| {
        let mut message = Vec::with_capacity(streams.len() * 48);
        write_array(&mut message, 2);
        write_integer(&mut message, from_device::ACK);
        write_map(&mut message, u16::try_from(streams.len())?);
        for stream in streams {
            let (seq, chain) = place(*stream);
            write_text(&mut message, &stream_name(*stream))?;
            write_array(&mut message, 2);
            write_integer(&mut message, seq);
            write_binary(&mut message, &chain[..16])?;
        }
        Ok(message)
    });
    messages.collect()
}

/// `[18, {stream: "start"}]`, as many messages as it takes, for the first `count` streams.
pub(crate) fn write_subscriptions(count: usize) -> Result<Vec<Vec<u8>>> {
    let streams: Vec<usize> = (0..count).collect();
    let messages = streams.chunks(STREAMS_PER_MESSAGE_MAX).map(|streams| {
        let mut message = Vec::with_capacity(streams.len() * 20);
        write_array(&mut message, 2);
        write_integer(&mut message, from_device::SUBSCRIBE);
        write_map(&mut message, u16::try_from(streams.len())?);
        for stream in streams {
            write_text(&mut message, &stream_name(*stream))?;
            write_text(&mut message, "start")?;
        }
        Ok(message)
    });
    messages.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Cursor;

    #[test]
    fn names_and_numbers_agree() {
        for index in [0, 1, 9, 9_999] {
            assert_eq!(stream_index(&stream_name(index), 10_000), Some(index));
        }
        for name in ["load-10000", "load-0", "load-01", "load-+1", "load-", "loa", "other"] {
            assert_eq!(stream_index(name, 10_000), None, "{name}");
        }
    }

    #[test]
    fn one_stream_is_acknowledged_as_ever() -> Result<()> {
        let messages = write_acks(&[0], |_| (7, [5; 32]))?;
        let [message] = &messages[..] else { anyhow::bail!("one message") };
        assert_eq!(message[..3], [0x92, 17, 0x81]);
        let mut cursor = Cursor::new(&message[3..]);
        assert_eq!((cursor.text()?, cursor.array()?, cursor.integer()?), (STREAM, 2, 7));
        assert_eq!(cursor.binary()?, [5; 16]);
        Ok(())
    }

    #[test]
    fn many_streams_take_several_messages() -> Result<()> {
        let messages = write_subscriptions(2_050)?;
        let counts: Vec<&[u8]> = messages.iter().map(|message| &message[2..5]).collect();
        assert_eq!(counts, [&[0xde, 4, 0][..], &[0xde, 4, 0], &[0x82, 0xa9, b'l']]);
        assert_eq!(write_acks(&(0..1_025).collect::<Vec<_>>(), |_| (1, [0; 32]))?.len(), 2);
        Ok(())
    }
}
