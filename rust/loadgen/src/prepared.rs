//! Everything a device will publish, signed and encoded before the clock starts.

use std::ops::Range;

use anyhow::Result;
use keepstep_core::hash::{Hash, chain_0};

use crate::arguments::Arguments;
use crate::fleet::{STREAM, User, write_event, write_publish};
use crate::identity::{Device, Draft, Seen};

/// One device's publish messages.
pub(crate) struct Prepared {
    bytes: Vec<u8>,
    frames: Vec<Range<usize>>,
    /// Of event n at n - 1: header, signature, payload and trace, exactly as a delivered row ends.
    tails: Vec<Range<usize>>,
    hashes: Vec<Hash>,
    events_per_frame: usize,
}

impl Prepared {
    /// Signs all of a device's events.
    pub(crate) fn sign(
        device: &Device,
        devices_seen: Seen,
        frames: usize,
        events_per_frame: usize,
        payload_bytes: usize,
        time_ms: u64,
    ) -> Result<Self> {
        let count = frames * events_per_frame;
        let seen = Seen { seq: 0, chain: chain_0(&device.user_key, STREAM) };
        let mut prepared = Self {
            bytes: Vec::with_capacity(count * (payload_bytes + 320)),
            frames: Vec::with_capacity(frames),
            tails: Vec::with_capacity(count),
            hashes: Vec::with_capacity(count),
            events_per_frame,
        };
        let mut payload = vec![0; payload_bytes];
        let mut previous = [0; 32];
        let mut n = 0;
        for rid in 0..frames {
            let start = prepared.bytes.len();
            write_publish(&mut prepared.bytes, rid as u64, events_per_frame)?;
            for _ in 0..events_per_frame {
                n += 1;
                getrandom::fill(&mut payload)?;
                let draft =
                    Draft { stream: STREAM, n, previous: &previous, seen, devices_seen, time_ms, payload: &payload };
                let event = device.event(&draft)?;
                let event_start = prepared.bytes.len();
                write_event(&mut prepared.bytes, &event, &payload)?;
                prepared.tails.push(event_start + 1..prepared.bytes.len());
                prepared.hashes.push(event.hash);
                previous = event.hash;
            }
            prepared.frames.push(start..prepared.bytes.len());
        }
        Ok(prepared)
    }

    /// How many publish messages there are; their `rid`s count from 0.
    pub(crate) fn frames(&self) -> usize {
        self.frames.len()
    }

    /// A publish message.
    pub(crate) fn frame(&self, index: usize) -> &[u8] {
        &self.bytes[self.frames[index].clone()]
    }

    /// Author numbers in a publish message.
    pub(crate) fn numbers(&self, frame: usize) -> Range<usize> {
        frame * self.events_per_frame + 1..(frame + 1) * self.events_per_frame + 1
    }

    /// The publish message that holds an author number.
    pub(crate) fn frame_of(&self, n: usize) -> usize {
        (n - 1) / self.events_per_frame
    }

    /// What a delivered row of event n must end with; nothing where there is no such event.
    pub(crate) fn tail(&self, n: usize) -> &[u8] {
        n.checked_sub(1).and_then(|index| self.tails.get(index)).map_or(&[], |range| &self.bytes[range.clone()])
    }

    /// The hash of event n, which exists.
    pub(crate) fn hash(&self, n: usize) -> &Hash {
        &self.hashes[n - 1]
    }
}

/// Signs for every device of every user, on all processors.
pub(crate) fn sign_all(users: &[User], arguments: &Arguments, time_ms: u64) -> Result<Vec<Vec<Prepared>>> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let share = users.len().div_ceil(processors).max(1);
    let sign = |user: &User| -> Result<Vec<Prepared>> {
        let frames = arguments.frames_per_connection();
        user.devices
            .iter()
            .map(|device| {
                let (events, payload) = (arguments.events_per_frame, arguments.payload_bytes);
                Prepared::sign(device, user.devices_seen, frames, events, payload, time_ms)
            })
            .collect()
    };
    std::thread::scope(|scope| {
        // All threads are started before the first is waited for.
        let mut threads = Vec::new();
        for users in users.chunks(share) {
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
        Prepared::sign(&device, Seen { seq: 1, chain: [1; 32] }, 3, 4, 50, 1_760_000_000_000)
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
                assert_eq!((event.n, prepared.frame_of(n)), (n as u64, frame));
                assert_eq!((event.hash, &event.prev[..]), (*prepared.hash(n), &previous[..16]));
                previous = event.hash;
            }
        }
        Ok(())
    }

    #[test]
    fn a_tail_is_the_event_without_its_array_head() -> Result<()> {
        let prepared = prepared()?;
        let message = prepared.frame(0);
        let first = prepared.tail(1);
        assert_eq!(&message[5..5 + first.len()], first);
        assert!(prepared.tail(0).is_empty());
        assert!(prepared.tail(13).is_empty());
        Ok(())
    }
}
