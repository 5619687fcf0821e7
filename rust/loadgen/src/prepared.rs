//! Everything a device will publish, signed and encoded before the clock starts.

use std::ops::Range;

use anyhow::Result;
use keepstep_core::hash::{Hash, chain_0};

use crate::arguments::Arguments;
use crate::fleet::{User, write_event, write_publish};
use crate::identity::{Device, Draft, Seen};
use crate::streams::stream_name;
use crate::wire::Cursor;

/// Of a MessagePack binary of at most 255 bytes.
const BINARY_HEAD_BYTES: usize = 2;

/// How much a device publishes, and into how many streams.
///
/// It begins a share of them with a message each. Then its messages go into all of them in turns, from the first of its
/// share on, a run of messages into each.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) frames: usize,
    pub(crate) events_per_frame: usize,
    pub(crate) payload_bytes: usize,
    pub(crate) streams: usize,
    /// Messages into one stream before it is the next one's turn.
    pub(crate) run: usize,
    /// The first stream of its share.
    pub(crate) first_stream: usize,
    /// Streams in its share.
    pub(crate) share: usize,
}

impl Shape {
    /// Everything into one stream.
    pub(crate) fn of_one_stream(frames: usize, events_per_frame: usize, payload_bytes: usize) -> Self {
        Self { frames, events_per_frame, payload_bytes, streams: 1, run: 1, first_stream: 0, share: 0 }
    }

    fn stream_of(&self, frame: usize) -> usize {
        let place = frame.checked_sub(self.share).map_or(frame, |after| after / self.run);
        (place + self.first_stream) % self.streams
    }

    /// Its place among the streams, from the first of its share on.
    fn place(&self, stream: usize) -> usize {
        (stream + self.streams - self.first_stream) % self.streams
    }

    /// How many of the first `frames` messages go into a stream.
    fn frames_of(&self, stream: usize, frames: usize) -> usize {
        let place = self.place(stream);
        let begun = usize::from(place < self.share.min(frames));
        let after = frames.saturating_sub(self.share);
        let round = self.streams * self.run;
        begun + after / round * self.run + (after % round).saturating_sub(place * self.run).min(self.run)
    }

    /// The message that is a stream's `number`th, counted from 0.
    fn frame_of(&self, stream: usize, number: usize) -> usize {
        let place = self.place(stream);
        let begun = usize::from(place < self.share);
        match number.checked_sub(begun) {
            None => place,
            Some(after) => self.share + (after / self.run * self.streams + place) * self.run + after % self.run,
        }
    }
}

/// One device's publish messages.
pub(crate) struct Prepared {
    bytes: Vec<u8>,
    frames: Vec<Range<usize>>,
    /// Of every event in the order of the messages: header, signature, payload and trace, as a delivered row ends.
    tails: Vec<Range<usize>>,
    hashes: Vec<Hash>,
    shape: Shape,
}

/// How far an author is in one stream.
struct Author {
    name: String,
    seen: Seen,
    n: u64,
    previous: Hash,
}

impl Prepared {
    /// Signs all of a device's events.
    pub(crate) fn sign(device: &Device, devices_seen: Seen, shape: &Shape, time_ms: u64) -> Result<Self> {
        let count = shape.frames * shape.events_per_frame;
        let author = |stream| {
            let name = stream_name(stream);
            let chain = chain_0(&device.user_key, &name);
            Author { name, seen: Seen { seq: 0, chain }, n: 0, previous: [0; 32] }
        };
        let mut authors: Vec<Author> = (0..shape.streams).map(author).collect();
        let mut prepared = Self {
            bytes: Vec::with_capacity(count * (shape.payload_bytes + 320)),
            frames: Vec::with_capacity(shape.frames),
            tails: Vec::with_capacity(count),
            hashes: Vec::with_capacity(count),
            shape: *shape,
        };
        let mut payload = vec![0; shape.payload_bytes];
        for frame in 0..shape.frames {
            let author = &mut authors[shape.stream_of(frame)];
            let start = prepared.bytes.len();
            write_publish(&mut prepared.bytes, frame as u64, shape.events_per_frame)?;
            for _ in 0..shape.events_per_frame {
                author.n += 1;
                getrandom::fill(&mut payload)?;
                let event = device.event(&Draft {
                    stream: &author.name,
                    n: author.n,
                    previous: &author.previous,
                    seen: author.seen,
                    devices_seen,
                    time_ms,
                    payload: &payload,
                })?;
                let event_start = prepared.bytes.len();
                write_event(&mut prepared.bytes, &event, &payload)?;
                prepared.tails.push(event_start + 1..prepared.bytes.len());
                prepared.hashes.push(event.hash);
                author.previous = event.hash;
            }
            prepared.frames.push(start..prepared.bytes.len());
        }
        Ok(prepared)
    }

    /// Changes every signature's last half a little: it stays in its form, and is wrong.
    pub(crate) fn spoil_signatures(&mut self) -> Result<()> {
        for tail in &self.tails {
            let mut cursor = Cursor::new(&self.bytes[tail.clone()]);
            cursor.binary()?;
            let begin = tail.end - cursor.rest().len() + BINARY_HEAD_BYTES;
            self.bytes[begin + 32] ^= 1;
        }
        Ok(())
    }

    /// How many publish messages there are; their `rid`s count from 0.
    pub(crate) fn frames(&self) -> usize {
        self.frames.len()
    }

    /// A publish message.
    pub(crate) fn frame(&self, index: usize) -> &[u8] {
        &self.bytes[self.frames[index].clone()]
    }

    /// How many of them begin streams.
    pub(crate) fn beginnings(&self) -> usize {
        self.shape.share
    }

    /// The stream that a publish message goes into.
    pub(crate) fn stream_of(&self, frame: usize) -> usize {
        self.shape.stream_of(frame)
    }

    /// Author numbers in a publish message.
    pub(crate) fn numbers(&self, frame: usize) -> Range<usize> {
        let before = self.count(self.stream_of(frame), frame);
        before + 1..before + self.shape.events_per_frame + 1
    }

    /// How many numbers of a stream the first `frames` publish messages take.
    pub(crate) fn count(&self, stream: usize, frames: usize) -> usize {
        self.shape.frames_of(stream, frames) * self.shape.events_per_frame
    }

    /// The publish message that holds an author number of a stream.
    pub(crate) fn frame_of(&self, stream: usize, n: usize) -> usize {
        self.shape.frame_of(stream, (n - 1) / self.shape.events_per_frame)
    }

    fn index_of(&self, stream: usize, n: usize) -> usize {
        self.frame_of(stream, n) * self.shape.events_per_frame + (n - 1) % self.shape.events_per_frame
    }

    /// What a delivered row of a stream's event n must end with; nothing where there is no such event.
    pub(crate) fn tail(&self, stream: usize, n: usize) -> &[u8] {
        let range = if n > 0 { self.tails.get(self.index_of(stream, n)) } else { None };
        range.map_or(&[], |range| &self.bytes[range.clone()])
    }

    /// The hash of a stream's event n, which exists.
    pub(crate) fn hash(&self, stream: usize, n: usize) -> &Hash {
        &self.hashes[self.index_of(stream, n)]
    }
}

/// Signs for every device of every user, on all processors.
pub(crate) fn sign_all(users: &[User], arguments: &Arguments, time_ms: u64) -> Result<Vec<Vec<Prepared>>> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let users_each = users.len().div_ceil(processors).max(1);
    let sign = |user: &User| -> Result<Vec<Prepared>> {
        let streams = arguments.streams_per_user;
        let shape_of = |device| {
            // The devices of a user begin elsewhere each, and do not all write into the same one at the same time.
            let [first_stream, end] = [device, device + 1].map(|device| device * streams / user.devices.len());
            // A single one begins with whatever comes first.
            let share = if streams > 1 { end - first_stream } else { 0 };
            Shape {
                frames: arguments.frames_per_connection() + arguments.pace.first_frames(share),
                events_per_frame: arguments.events_per_frame,
                payload_bytes: arguments.payload_bytes,
                streams,
                run: arguments.messages_per_stream,
                first_stream,
                share,
            }
        };
        let devices = user.devices.iter().enumerate();
        devices.map(|(index, device)| Prepared::sign(device, user.devices_seen, &shape_of(index), time_ms)).collect()
    };
    std::thread::scope(|scope| {
        // All threads are started before the first is waited for.
        let mut threads = Vec::new();
        for users in users.chunks(users_each) {
            threads.push(scope.spawn(move || users.iter().map(sign).collect::<Result<Vec<_>>>()));
        }
        let mut prepared = Vec::with_capacity(users.len());
        for thread in threads {
            prepared.extend(thread.join().map_err(|_| anyhow::anyhow!("signing panicked"))??);
        }
        Ok(prepared)
    })
}

#[cfg(test)]
mod tests {
    use keepstep_core::event::Events;

    use super::*;

    fn prepared() -> Result<Prepared> {
        let device = Device::new([5; 32])?;
        Prepared::sign(&device, Seen { seq: 1, chain: [1; 32] }, &Shape::of_one_stream(3, 4, 50), 1_760_000_000_000)
    }

    #[test]
    fn every_frame_is_a_publish_of_consecutive_chained_events() -> Result<()> {
        let prepared = prepared()?;
        let mut previous = [0; 32];
        for frame in 0..prepared.frames() {
            let message = prepared.frame(frame);
            assert_eq!(message[..3], [0x93, 16, u8::try_from(frame)?]);
            let events = Events::parse(message[3..].into(), 256, 1_000)?;
            for (index, n) in prepared.numbers(frame).enumerate() {
                let event = events.parsed(index)?;
                assert_eq!((event.n, prepared.frame_of(0, n)), (n as u64, frame));
                assert_eq!((event.hash, &event.prev[..]), (*prepared.hash(0, n), &previous[..16]));
                previous = event.hash;
            }
        }
        Ok(())
    }

    #[test]
    fn a_spoilt_signature_is_the_only_thing_that_is_wrong() -> Result<()> {
        let device = Device::new([5; 32])?;
        let sign = || {
            Prepared::sign(&device, Seen { seq: 1, chain: [1; 32] }, &Shape::of_one_stream(1, 2, 50), 1_760_000_000_000)
        };
        let mut prepared = sign()?;
        let before = prepared.bytes.clone();
        prepared.spoil_signatures()?;
        let changed = before.iter().zip(&prepared.bytes).filter(|(before, after)| before != after).count();
        assert_eq!(changed, 2);
        let key = keepstep_core::ed25519::PublicKey::from_bytes(&device.public())?;
        for n in 1..=2 {
            let mut cursor = Cursor::new(prepared.tail(0, n));
            let header = cursor.binary()?;
            let signed = [b"keepstep/v1/event\0".as_slice(), &[5; 32], &device.id, header];
            let mut signature: [u8; 64] = cursor.binary_of()?;
            assert!(key.verify(&signed, &signature).is_err());
            signature[32] ^= 1;
            key.verify(&signed, &signature)?;
        }
        Ok(())
    }

    #[test]
    fn a_tail_is_the_event_without_its_array_head() -> Result<()> {
        let prepared = prepared()?;
        let message = prepared.frame(0);
        let first = prepared.tail(0, 1);
        assert_eq!(&message[5..5 + first.len()], first);
        assert!(prepared.tail(0, 0).is_empty());
        assert!(prepared.tail(0, 13).is_empty());
        Ok(())
    }

    #[test]
    fn messages_go_into_the_streams_in_turns_and_numbers_are_each_streams_own() -> Result<()> {
        let device = Device::new([5; 32])?;
        let one = Shape::of_one_stream(13, 2, 20);
        let in_turns = [1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1];
        check_turns(&device, &Shape { streams: 3, first_stream: 1, ..one }, in_turns)?;
        let begun_first = [1, 2, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2];
        check_turns(&device, &Shape { streams: 3, first_stream: 1, share: 2, ..one }, begun_first)?;
        let in_runs = [2, 2, 2, 0, 0, 1, 1, 2, 2, 0, 0, 1, 1];
        check_turns(&device, &Shape { streams: 3, first_stream: 2, share: 1, run: 2, ..one }, in_runs)
    }

    /// Which stream each message goes into, and that numbers, messages and chains of each agree with that.
    fn check_turns(device: &Device, shape: &Shape, streams: [usize; 13]) -> Result<()> {
        let prepared = Prepared::sign(device, Seen { seq: 1, chain: [1; 32] }, shape, 1_760_000_000_000)?;
        let mut previous = [[0; 32]; 3];
        let mut counts = [0; 3];
        assert_eq!(prepared.beginnings(), shape.share);
        for (frame, expected) in streams.into_iter().enumerate() {
            let stream = prepared.stream_of(frame);
            assert_eq!(stream, expected);
            let events = Events::parse(prepared.frame(frame)[3..].into(), 256, 1_000)?;
            for (index, n) in prepared.numbers(frame).enumerate() {
                let event = events.parsed(index)?;
                counts[stream] += 1;
                assert_eq!((event.n, n, prepared.frame_of(stream, n)), (n as u64, counts[stream], frame));
                assert_eq!((event.hash, &event.prev[..]), (*prepared.hash(stream, n), &previous[stream][..16]));
                previous[stream] = event.hash;
            }
            assert_eq!([0, 1, 2].map(|stream| prepared.count(stream, frame + 1)), counts);
        }
        assert!(prepared.tail(0, counts[0] + 1).is_empty());
        Ok(())
    }
}
